//! The name of an image: `[registry/]repository[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The registry of names that have none.
const DOCKER_HUB: &str = "docker.io";

/// The tag of names that have none.
const LATEST: &str = "latest";

/// The longest name, in bytes: 255 for the repository and 128 for the tag, by the registries' rules, a host and a digest.
const MAX_LENGTH: usize = 640;

/// A name of an image, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Host and port: `registry.cn-shanghai.aliyuncs.com`, `localhost:5000`, `docker.io`.
    pub registry: String,
    /// `batchcompute/myubuntu`, `library/debian`.
    pub repository: String,
    /// `0.2`; `latest` when neither tag nor digest is given.
    pub tag: Option<String>,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

/// The name of an image is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It has characters that no such name has, or an empty part.
    #[error("is not the name of a container image")]
    Form,
    /// Upper case, which registries do not have.
    #[error("is not the name of a container image: repositories are written in lower case")]
    UpperCase,
    /// What is behind the `@`.
    #[error("is not the name of a container image: a digest is sha256: and 64 hexadecimal digits in lower case")]
    Digest,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_LENGTH {
            return Err(ReferenceError::Form);
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(parse_digest(digest).ok_or(ReferenceError::Digest)?)),
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            // A colon before the last slash is a port's.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Form);
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest.to_owned()),
            Some(_) => (DOCKER_HUB, name.to_owned()),
            None => (DOCKER_HUB, format!("library/{name}")),
        };
        let repository = match (registry, repository.contains('/')) {
            ("docker.io" | "index.docker.io", false) => format!("library/{repository}"),
            _ => repository,
        };
        if !is_host(registry) {
            return Err(ReferenceError::Form);
        }
        if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase);
        }
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(ReferenceError::Form);
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(LATEST.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl Reference {
    /// Registry and repository, as an engine takes them.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What says which image of the repository: the digest, if there is one, else the tag.
    pub fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or(LATEST)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, tag) => write!(f, ":{}", tag.as_deref().unwrap_or(LATEST)),
        }
    }
}

fn parse_digest(text: &str) -> Option<String> {
    let hex = text.strip_prefix("sha256:")?;
    is_sha256(hex).then(|| text.to_owned())
}

/// Whether this is a SHA-256 in hexadecimal digits of lower case.
pub(super) fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(tag: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=128).contains(&tag.len()) && tag.bytes().all(fine) && !tag.starts_with(['.', '-'])
}

/// A component of a repository's name: letters and digits in runs, between them `.`, `_`, `__` or dashes.
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let fine = |byte: u8| alphanumeric(byte) || matches!(byte, b'.' | b'_' | b'-');
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| alphanumeric(*byte));
    let bytes = component.as_bytes();
    component.bytes().all(fine) && ends(bytes.first()) && ends(bytes.last()) && !component.contains("..")
}

fn is_host(host: &str) -> bool {
    let (name, port) = host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let port_is_fine =
        port.is_none_or(|port| !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()));
    !name.is_empty() && name.bytes().all(fine) && !name.starts_with(['.', '-']) && port_is_fine
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_taken_apart_as_engines_do() {
        for (text, registry, repository, version) in [
            ("debian", "docker.io", "library/debian", "latest"),
            ("debian:12", "docker.io", "library/debian", "12"),
            ("docker.io/debian", "docker.io", "library/debian", "latest"),
            ("biocontainers/bwa:v0.7.17_cv1", "docker.io", "biocontainers/bwa", "v0.7.17_cv1"),
            ("localhost:5000/myubuntu", "localhost:5000", "myubuntu", "latest"),
            ("localhost/x:1", "localhost", "x", "1"),
            (
                "registry.cn-shanghai.aliyuncs.com/batchcompute/myubuntu:0.2",
                "registry.cn-shanghai.aliyuncs.com",
                "batchcompute/myubuntu",
                "0.2",
            ),
            (&format!("quay.io/a/b__c-d.e:1@{DIGEST}"), "quay.io", "a/b__c-d.e", DIGEST),
        ] {
            let reference: Reference = text.parse().unwrap();
            let parts = (reference.registry.as_str(), reference.repository.as_str(), reference.version());
            assert_eq!(parts, (registry, repository, version), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        use ReferenceError::{Digest, Form, UpperCase};
        for (text, error) in [
            ("", Form),
            ("--privileged", Form),
            ("a b", Form),
            ("a:", Form),
            ("a/", Form),
            ("/a", Form),
            ("a//b", Form),
            ("a/../b", Form),
            ("http://x/y", Form),
            ("x:y/z", Form),
            ("a:b:c", Form),
            ("-x.example/a", Form),
            ("a:.b", Form),
            ("Debian", UpperCase),
            ("a@sha256:12", Digest),
            ("a@", Digest),
        ] {
            assert_eq!(text.parse::<Reference>(), Err(error), "{text:?}");
        }
        assert!("a".repeat(1000).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_safe_and_stays_the_same(text in "[a-zA-Z0-9./:@_-]{0,30}|\\PC{0,20}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let shown = reference.to_string();
                let safe = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
                prop_assert!(shown.chars().all(safe) && !shown.contains("..") && !shown.starts_with('-'));
                let again: Reference = shown.parse().unwrap();
                prop_assert_eq!(again.to_string(), shown);
            }
        }
    }
}
