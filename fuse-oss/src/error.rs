//! Why a mount, an unmount or the server itself failed, in terms a caller can act on.

use std::fmt;

use oss::ErrorKind as StoreErrorKind;
use serde::{Deserialize, Serialize};

/// What a failure means to whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request makes no sense: entries that overlap, an unknown option.
    Usage,
    /// The settings cannot work: no endpoint and no region, a cache directory that others may write.
    Invalid,
    /// There is no such bucket.
    NoSuchBucket,
    /// The bucket is there, the directory or object in it is not.
    NotFound,
    /// The object is in an archive tier and must be restored before it can be read.
    Archived,
    /// The credentials are good and do not allow this.
    Denied,
    /// There are no credentials, or they are wrong or have expired.
    BadCredentials,
    /// The bucket is in another region.
    WrongRegion,
    /// The store cannot be reached or does not answer.
    Unavailable,
    /// The directory to mount on does not exist or is not a directory.
    TargetMissing,
    /// The directory to mount on is a mount point already or not empty; or the mount to be undone is in use.
    TargetBusy,
    /// Nothing of ours is mounted there.
    NotMounted,
    /// There is no usable `/dev/fuse`.
    NoFuseDevice,
    /// The operating system refused (mount(2), the cache directory, the control socket).
    System,
    /// Another server owns the cache directory.
    CacheInUse,
    /// The server could not be reached or went away.
    NoServer,
    /// The disk did not give back what was written to the cache.
    Damaged,
    /// A mistake of ours.
    Internal,
}

impl ErrorKind {
    /// The exit status of the command line for this failure, after sysexits.h: 64 usage, 66 input missing, 69 storage
    /// unavailable, 70 internal, 71 mount or operating system, 74 damage in the cache, 77 denied, 78 bad settings.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::NoSuchBucket | Self::NotFound | Self::Archived => 66,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::TargetMissing
            | Self::TargetBusy
            | Self::NotMounted
            | Self::NoFuseDevice
            | Self::System
            | Self::CacheInUse
            | Self::NoServer => 71,
            Self::Damaged => 74,
            Self::Denied | Self::BadCredentials => 77,
            Self::Invalid | Self::WrongRegion => 78,
        }
    }
}

impl From<&StoreErrorKind> for ErrorKind {
    fn from(kind: &StoreErrorKind) -> Self {
        match kind {
            StoreErrorKind::NotFound => Self::NotFound,
            StoreErrorKind::NoSuchBucket => Self::NoSuchBucket,
            StoreErrorKind::Denied => Self::Denied,
            StoreErrorKind::BadCredentials => Self::BadCredentials,
            StoreErrorKind::WrongRegion { .. } => Self::WrongRegion,
            StoreErrorKind::Archived => Self::Archived,
            StoreErrorKind::Throttled { .. }
            | StoreErrorKind::Unavailable
            | StoreErrorKind::Corrupt
            | StoreErrorKind::Changed => Self::Unavailable,
            StoreErrorKind::Invalid | StoreErrorKind::Unsupported => Self::Invalid,
            _ => Self::Internal,
        }
    }
}

/// A failed request: one line that names the thing, the cause and the remedy, and a kind for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct MountError {
    /// What it means.
    pub kind: ErrorKind,
    /// The line for people. It holds no credential and no control character.
    pub message: String,
}

/// What [`Client`](crate::client::Client) fails with: what the server answered, or why it could not be asked.
pub type ClientError = MountError;

impl MountError {
    /// A failure with its line for people.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let message = if message.contains(char::is_control) { message.escape_debug().to_string() } else { message };
        Self { kind, message }
    }

    /// A store's refusal while `what` was being mounted.
    pub fn from_store(what: &oss::Location, error: &oss::Error) -> Self {
        Self::new(error.kind().into(), format_args!("cannot mount {}: {error}", what.escaped()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_a_store_has_the_exit_status_of_its_meaning() {
        let code = |kind: &StoreErrorKind| ErrorKind::from(kind).exit_code();
        assert_eq!(code(&StoreErrorKind::NotFound), 66);
        assert_eq!(code(&StoreErrorKind::NoSuchBucket), 66);
        assert_eq!(code(&StoreErrorKind::Unavailable), 69);
        assert_eq!(code(&StoreErrorKind::Throttled { retry_after: None }), 69);
        assert_eq!(code(&StoreErrorKind::Denied), 77);
        assert_eq!(code(&StoreErrorKind::BadCredentials), 77);
        assert_eq!(code(&StoreErrorKind::WrongRegion { region: None }), 78);
        assert_eq!(code(&StoreErrorKind::Invalid), 78);
    }

    #[test]
    fn messages_are_one_line() {
        let error = MountError::new(ErrorKind::Usage, "a\nb\u{1b}[31m");
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
}
