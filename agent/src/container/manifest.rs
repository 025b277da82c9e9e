//! Manifests: what an image is made of, as registries and OCI archives say it. Pure.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::reference::is_sha256;

/// The digest of something in an image: SHA-256 in hexadecimal digits, safe as the name of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Digest(String);

impl Digest {
    /// Reads `sha256:...`, as manifests and links write it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let hex = text.trim().strip_prefix("sha256:")?;
        is_sha256(hex).then(|| Self(hex.to_owned()))
    }

    /// The digest of this content.
    pub(super) fn of(content: &[u8]) -> Self {
        use sha2::{Digest as _, Sha256};
        Self(Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The 64 digits.
    pub(super) fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Its configuration, whose digest is the image's id.
    pub config: Digest,
    /// Its layers, the lowest first, with their sizes in bytes.
    pub layers: Vec<(Digest, u64)>,
}

/// What a document describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Document {
    Image(Manifest),
    /// The same image for several machines, of which this is the one for ours.
    ForUs(Digest),
    /// There is none for ours; these there are.
    ForOthers(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    schema_version: u32,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    media_type: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Value,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// This machine's architecture in the words of images.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The annotation by which the index of an OCI archive names its images.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Reads a manifest or a list of them; of several images in a list, `tag` says which.
pub(super) fn parse(text: &[u8], architecture: &str, tag: Option<&str>) -> Result<Document, String> {
    let wire: Wire = serde_json::from_slice(text).map_err(|error| format!("its manifest cannot be read: {error}"))?;
    if wire.schema_version == 1 {
        return Err(
            "its manifest is of the first version, which engines no longer take; push it again with a newer docker"
                .into(),
        );
    }
    let digest = |descriptor: &Descriptor| {
        Digest::parse(&descriptor.digest)
            .ok_or_else(|| format!("its manifest names {:?}, which is no SHA-256", descriptor.digest))
    };
    match wire {
        Wire { manifests: Some(list), .. } => {
            let named = |descriptor: &&Descriptor| {
                let name = descriptor.annotations[REF_NAME].as_str();
                // Either the tag alone or the whole name.
                tag.is_some_and(|tag| name.is_some_and(|name| name == tag || name.ends_with(&format!(":{tag}"))))
            };
            let chosen: Vec<&Descriptor> = match list.iter().filter(named).collect::<Vec<_>>() {
                named if named.is_empty() => list.iter().collect(),
                named => named,
            };
            let here = chosen.iter().find(|descriptor| {
                let for_us = |p: &Platform| p.architecture == architecture && (p.os == "linux" || p.os.is_empty());
                // One that does not say is looked into.
                descriptor.platform.as_ref().map_or(chosen.len() == 1, for_us)
            });
            match here {
                Some(here) => digest(here).map(Document::ForUs),
                None => Ok(Document::ForOthers(list.iter().filter_map(|d| d.platform.as_ref()).map(shown).collect())),
            }
        }
        Wire { config: Some(config), layers: Some(layers), .. } => {
            let layer = |layer: &Descriptor| {
                if layer.media_type.contains("foreign") || layer.media_type.contains("nondistributable") {
                    return Err("it has layers that are kept elsewhere, as Windows images do".to_owned());
                }
                Ok((digest(layer)?, layer.size))
            };
            let layers = layers.iter().map(layer).collect::<Result<_, _>>()?;
            Ok(Document::Image(Manifest { config: digest(&config)?, layers }))
        }
        _ => Err("its manifest is neither that of an image nor a list of images".to_owned()),
    }
}

fn shown(platform: &Platform) -> String {
    format!("{}/{}", platform.os, platform.architecture)
}

/// Whom an image's configuration says it is for, if that is not this machine.
pub(super) fn foreign(config: &[u8], architecture: &str) -> Option<String> {
    let platform: Platform = serde_json::from_slice(config).ok()?;
    let fits = platform.architecture.is_empty() || platform.architecture == architecture;
    (!fits || !(platform.os.is_empty() || platform.os == "linux")).then(|| shown(&platform))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    fn read(document: &Value, tag: Option<&str>) -> Result<Document, String> {
        parse(document.to_string().as_bytes(), "amd64", tag)
    }

    #[test]
    fn images_and_lists_are_told_apart() {
        let image = json!({ "schemaVersion": 2, "config": { "digest": digest('c') },
            "layers": [{ "digest": digest('1'), "size": 7 }, { "digest": digest('2'), "size": 8 }] });
        let Ok(Document::Image(manifest)) = read(&image, None) else { panic!("an image") };
        assert_eq!(manifest.config.to_string(), digest('c'));
        assert_eq!(manifest.layers.iter().map(|(_, size)| *size).collect::<Vec<_>>(), [7, 8]);

        let entry =
            |digit, arch: &str| json!({ "digest": digest(digit), "platform": { "os": "linux", "architecture": arch } });
        let list = json!({ "schemaVersion": 2, "manifests": [entry('a', "arm64"), entry('b', "amd64")] });
        assert_eq!(read(&list, None), Ok(Document::ForUs(Digest::parse(&digest('b')).unwrap())));
        let others = json!({ "schemaVersion": 2, "manifests": [entry('a', "arm64")] });
        assert_eq!(read(&others, None), Ok(Document::ForOthers(vec!["linux/arm64".to_owned()])));

        let named = |digit, name: &str| json!({ "digest": digest(digit), "annotations": { REF_NAME: name } });
        let index = json!({ "schemaVersion": 2, "manifests": [named('a', "1"), named('b', "docker.io/x/y:2")] });
        assert_eq!(read(&index, Some("2")), Ok(Document::ForUs(Digest::parse(&digest('b')).unwrap())));
    }

    #[test]
    fn what_no_engine_takes_is_refused() {
        for (document, words) in [
            (json!({ "schemaVersion": 1, "fsLayers": [] }), "first version"),
            (json!({ "schemaVersion": 2 }), "neither"),
            (json!({ "schemaVersion": 2, "config": { "digest": "sha256:../../etc" }, "layers": [] }), "no SHA-256"),
            (
                json!({ "schemaVersion": 2, "config": { "digest": digest('c') },
                "layers": [{ "digest": digest('1'), "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" }] }),
                "elsewhere",
            ),
        ] {
            let problem = read(&document, None).unwrap_err();
            assert!(problem.contains(words), "{problem}");
        }
        assert_eq!(foreign(br#"{"architecture":"arm64","os":"linux"}"#, "amd64"), Some("linux/arm64".to_owned()));
        assert_eq!(foreign(br#"{"architecture":"amd64","os":"linux"}"#, "amd64"), None);
    }

    proptest! {
        #[test]
        fn digests_are_names_of_files(text in "(sha256:)?[0-9a-f./]{0,70}") {
            if let Some(digest) = Digest::parse(&text) {
                prop_assert!(digest.hex().len() == 64 && !digest.hex().contains(['.', '/']));
            }
        }
    }
}
