//! Who the node is to registries.
//!
//! A login goes from the settings (or from a file in the form that `docker login` writes) through memory into one header of the
//! request by which an engine is asked to pull. It is never an argument, and never in a file of ours.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use oss::Secret;
use serde::Deserialize;
use serde_json::json;

/// What `docker login` calls Docker's own registry.
const DOCKER_HUB: [&str; 4] = ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// One login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user's name.
    pub username: String,
    /// The password, or a token in its place.
    pub password: Secret,
}

/// Logins by their registries' hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logins(BTreeMap<String, Login>);

/// Why a file with logins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// It is not JSON of that form.
    #[error(
        "it is not of the form that `docker login` writes ({{\"auths\": {{HOST: {{\"auth\": ...}}}}}}), at line {line}"
    )]
    Form {
        /// Where.
        line: usize,
    },
    /// A login in it is not one.
    #[error(
        "its login for {host} is neither \"auth\", the base64 of USER:PASSWORD, nor \"username\" and \"password\"; run docker login again, without a credential helper"
    )]
    Login {
        /// Whose.
        host: String,
    },
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, ConfigLogin>,
}

#[derive(Deserialize)]
struct ConfigLogin {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
}

impl Logins {
    /// Adds one, and says whether it has taken the place of another.
    pub fn insert(&mut self, registry: &str, login: Login) -> bool {
        self.0.insert(host(registry), login).is_some()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The registries there are logins for.
    pub fn registries(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Reads a file such as `~/.docker/config.json`.
    ///
    /// # Errors
    /// When it is of another form. No error shows any of its content.
    pub fn parse(text: &[u8]) -> Result<Self, LoginError> {
        let file: ConfigFile = serde_json::from_slice(text).map_err(|error| LoginError::Form { line: error.line() })?;
        let mut logins = Self::default();
        for (registry, login) in file.auths {
            let known = match login {
                ConfigLogin { username: Some(username), password: Some(password), .. } => {
                    Some(Login { username, password })
                }
                ConfigLogin { auth: Some(auth), .. } => decode(&auth),
                _ => None,
            };
            logins.insert(&registry, known.ok_or_else(|| LoginError::Login { host: host(&registry) })?);
        }
        Ok(logins)
    }

    /// The value of the header by which an engine is told how to log in to `registry`.
    pub(super) fn header(&self, registry: &str) -> Option<Secret> {
        let login = self.0.get(&host(registry))?;
        let text = json!({
            "username": login.username,
            "password": login.password.expose(),
            "serveraddress": registry,
        });
        Some(Secret::new(URL_SAFE.encode(text.to_string())))
    }
}

fn decode(auth: &Secret) -> Option<Login> {
    let text = String::from_utf8(STANDARD.decode(auth.expose()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    // Docker has padded it with NUL bytes at times.
    let password = password.trim_end_matches('\0');
    (!username.is_empty() && !password.is_empty())
        .then(|| Login { username: username.to_owned(), password: Secret::new(password) })
}

/// The host of `https://index.docker.io/v1/` and its like.
fn host(registry: &str) -> String {
    let text = registry.split_once("://").map_or(registry, |(_, rest)| rest);
    let host = text.split('/').next().unwrap_or_default().to_ascii_lowercase();
    if DOCKER_HUB.contains(&host.as_str()) { DOCKER_HUB[0].to_owned() } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_found_by_host_and_never_shown() {
        let auth = STANDARD.encode("me:pass:word");
        let text = json!({ "auths": {
            "https://index.docker.io/v1/": { "auth": auth },
            "Registry.example:5000": { "username": "you", "password": "hidden-word" },
        }, "credsStore": "" });
        let logins = Logins::parse(text.to_string().as_bytes()).unwrap();
        let shown = format!("{logins:?}");
        assert!(!shown.contains("hidden-word") && !shown.contains("pass:word"), "{shown}");
        let header = |registry| {
            let header: Secret = logins.header(registry)?;
            Some(String::from_utf8(URL_SAFE.decode(header.expose()).unwrap()).unwrap())
        };
        assert!(header("docker.io").unwrap().contains("pass:word"));
        assert!(header("registry.example:5000").unwrap().contains("hidden-word"));
        assert_eq!(header("other.example"), None);
    }

    #[test]
    fn errors_hold_nothing_of_the_file() {
        for text in [r#"{"auths":{"x.example":{"auth":"hunter2"}}}"#, r#"{"auths":{"x.example":"hunter2"}}"#, "hunter2"]
        {
            let error = Logins::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
