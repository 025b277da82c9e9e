//! What goes over the control socket: one JSON object per line, a request and its answer, then the next.
//!
//! Every line carries the protocol's version, so that a client of another release gets a sentence and not a parse error.
//! Credentials travel here and nowhere else: the socket is in a directory only its owner may enter, both ends check
//! who the other is, and nothing logs a line.

use std::path::PathBuf;
use std::time::Duration;

use oss::{Addressing, CredentialSource, Secret, Settings, StoreSettings, Timeouts};
use serde::{Deserialize, Serialize};

use crate::cache::{Cleared, Listed, Verified};
use crate::error::{ErrorKind, MountError};
use crate::options::{MountEntry, MountOptions, MountReply, MountRequest, Status, UnmountMode};

/// Raised when a line changes its meaning.
pub const VERSION: u32 = 1;

/// The longest line that is read: room for some 50,000 entries.
pub const MAX_LINE: usize = 32 << 20;

/// What a client asks.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Mount something.
    Mount(Box<WireMount>),
    /// Undo a mount.
    Unmount {
        /// The absolute path it is mounted on.
        target: PathBuf,
        /// What to do when it is in use.
        mode: UnmountMode,
    },
    /// Say what is mounted.
    Status,
    /// Say what the cache holds of objects whose digests begin with this byte: all of it may be too long for a line.
    CacheList {
        /// That byte.
        shard: u8,
    },
    /// Read the whole cache back; is answered with [`Answer::CacheVerifying`] again and again, at last with
    /// [`Answer::CacheVerified`].
    CacheVerify,
    /// Empty the cache.
    CacheClear,
    /// Go on with another program. There is no answer when that is done: the connection ends with the worker.
    Replace {
        /// The program's absolute path.
        program: PathBuf,
    },
    /// To a worker that has lost its keeper: go over to the one that listens at this socket. There is no answer when that is done, as with
    /// [`Request::Replace`].
    GoOver {
        /// Its absolute path.
        socket: PathBuf,
    },
}

/// What the server answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is mounted and answers.
    Mounted(MountReply),
    /// It is unmounted.
    Unmounted,
    /// What is mounted.
    Status(Box<Status>),
    /// What the cache holds.
    CacheListed(Vec<Listed>),
    /// How far verifying is.
    CacheVerifying {
        /// Objects that were read.
        objects: u64,
        /// Bytes that were read.
        bytes: u64,
    },
    /// What verifying found.
    CacheVerified(Box<Verified>),
    /// What clearing did.
    CacheCleared(Box<Cleared>),
    /// It could not be done.
    Failed(MountError),
}

/// A [`MountRequest`] on its way.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WireMount {
    target: PathBuf,
    entries: Vec<MountEntry>,
    options: MountOptions,
    oss: WireStore,
    s3: WireStore,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireStore {
    endpoint: Option<String>,
    region: Option<String>,
    addressing: Addressing,
    metadata_endpoint: Option<String>,
    connect_ms: u64,
    read_ms: u64,
    total_ms: u64,
    credentials: WireCredentials,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum WireCredentials {
    Automatic,
    Anonymous,
    Static { access_key_id: String, access_key_secret: String, security_token: Option<String> },
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize)]
struct OutLine<'a, T> {
    version: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct InLine<T> {
    body: T,
}

/// Writes a request or an answer as a line.
///
/// # Errors
/// When it holds a path that is not UTF-8.
pub fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, MountError> {
    let mut line = serde_json::to_vec(&OutLine { version: VERSION, body })
        .map_err(|error| MountError::new(ErrorKind::Usage, format_args!("cannot be sent to the server: {error}")))?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a request or an answer.
///
/// # Errors
/// [`ErrorKind::Internal`] when the other end is of another version or does not speak this protocol. The message never quotes
/// the line.
pub fn decode<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Result<T, MountError> {
    let refuse = |text: String| MountError::new(ErrorKind::Internal, text);
    let Versioned { version } = serde_json::from_slice(line)
        .map_err(|_| refuse("the other end of the control socket does not speak fuse-oss's protocol".to_owned()))?;
    if version != VERSION {
        return Err(refuse(format!(
            "the other end of the control socket speaks protocol version {version}, this program {VERSION}: \
             client and server are of different releases; unmount everything, so that the old server ends, and try again"
        )));
    }
    // serde_json quotes offending values in some messages, which could be a secret: only the place is told.
    let InLine { body } = serde_json::from_slice(line)
        .map_err(|error| refuse(format!("unreadable line on the control socket (column {})", error.column())))?;
    Ok(body)
}

impl From<&MountRequest> for WireMount {
    fn from(request: &MountRequest) -> Self {
        Self {
            target: request.target.clone(),
            entries: request.entries.clone(),
            options: request.options.clone(),
            oss: WireStore::from(&request.stores.oss),
            s3: WireStore::from(&request.stores.s3),
        }
    }
}

impl From<WireMount> for MountRequest {
    fn from(wire: WireMount) -> Self {
        let stores = Settings { oss: wire.oss.into(), s3: wire.s3.into() };
        Self { target: wire.target, entries: wire.entries, options: wire.options, stores }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&StoreSettings> for WireStore {
    fn from(settings: &StoreSettings) -> Self {
        Self {
            endpoint: settings.endpoint.clone(),
            region: settings.region.clone(),
            addressing: settings.addressing,
            metadata_endpoint: settings.metadata_endpoint.clone(),
            connect_ms: millis(settings.timeouts.connect),
            read_ms: millis(settings.timeouts.read),
            total_ms: millis(settings.timeouts.total),
            credentials: match &settings.credentials {
                CredentialSource::Automatic => WireCredentials::Automatic,
                CredentialSource::Anonymous => WireCredentials::Anonymous,
                CredentialSource::Static { access_key_id, access_key_secret, security_token } => {
                    WireCredentials::Static {
                        access_key_id: access_key_id.clone(),
                        access_key_secret: access_key_secret.expose().to_owned(),
                        security_token: security_token.as_ref().map(|token| token.expose().to_owned()),
                    }
                }
            },
        }
    }
}

impl From<WireStore> for StoreSettings {
    fn from(wire: WireStore) -> Self {
        Self {
            endpoint: wire.endpoint,
            region: wire.region,
            addressing: wire.addressing,
            metadata_endpoint: wire.metadata_endpoint,
            timeouts: Timeouts {
                connect: Duration::from_millis(wire.connect_ms),
                read: Duration::from_millis(wire.read_ms),
                total: Duration::from_millis(wire.total_ms),
            },
            credentials: match wire.credentials {
                WireCredentials::Automatic => CredentialSource::Automatic,
                WireCredentials::Anonymous => CredentialSource::Anonymous,
                WireCredentials::Static { access_key_id, access_key_secret, security_token } => {
                    CredentialSource::Static {
                        access_key_id,
                        access_key_secret: Secret::new(access_key_secret),
                        security_token: security_token.map(Secret::new),
                    }
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_arrives_as_it_was_sent() {
        let request = MountRequest {
            target: "/mnt/x".into(),
            entries: vec![MountEntry::new("a", "oss://b/odd \n\"key//../".parse().unwrap())],
            options: MountOptions { uid: Some(7), ..MountOptions::default() },
            stores: Settings {
                oss: StoreSettings {
                    endpoint: Some("http://127.0.0.1:1".into()),
                    credentials: CredentialSource::Static {
                        access_key_id: "id".into(),
                        access_key_secret: Secret::new("s3cret"),
                        security_token: None,
                    },
                    ..StoreSettings::default()
                },
                s3: StoreSettings { credentials: CredentialSource::Anonymous, ..StoreSettings::default() },
            },
        };
        let line = encode(&Request::Mount(Box::new((&request).into()))).unwrap();
        assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
        let Request::Mount(wire) = decode(&line).unwrap() else { panic!("another request") };
        let again = MountRequest::from(*wire);
        assert_eq!((again.target, again.entries, again.options), (request.target, request.entries, request.options));
        assert_eq!(again.stores, request.stores);
    }

    #[test]
    fn another_version_gets_a_sentence_and_a_bad_line_is_not_quoted() {
        let error = decode::<Answer>(br#"{"version":99,"body":"anything"}"#).unwrap_err();
        assert!(error.message.contains("version 99"), "{error}");
        let error = decode::<Request>(br#"{"version":1,"body":{"mount":{"secret":"hunter2"}}}"#).err().unwrap();
        assert!(!error.message.contains("hunter2"), "{error}");
        assert!(decode::<Request>(b"GET / HTTP/1.1").is_err());
    }
}
