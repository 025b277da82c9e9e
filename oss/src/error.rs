//! What can go wrong with a request, in terms a caller can act on.

use std::fmt;
use std::time::Duration;

/// The result of every operation on a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failure means to the caller. Everything a caller must tell apart is here and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such object.
    NotFound,
    /// There is no such bucket.
    NoSuchBucket,
    /// The credentials are good but do not allow this.
    Denied,
    /// There are no credentials, or the store does not know them, or they have expired.
    BadCredentials,
    /// The bucket lives in another region than the one we signed for or connected to.
    WrongRegion {
        /// The right one, when the store said so.
        region: Option<String>,
    },
    /// The store asked us to slow down, and still did after all retries.
    Throttled {
        /// How long it asked us to wait.
        retry_after: Option<Duration>,
    },
    /// The object is no longer the one we began with (another ETag).
    Changed,
    /// A put-if-absent or a copy found the object already there.
    AlreadyExists,
    /// The object is in an archive tier and has to be restored first.
    Archived,
    /// An append was sent for another position than the object's length.
    PositionMismatch {
        /// Where the next append has to begin, in bytes, when the store said so.
        next: Option<u64>,
    },
    /// The object exists but was not made by append.
    NotAppendable,
    /// The bytes that arrived are not the bytes that were sent, by checksum.
    Corrupt,
    /// The store could not be reached or failed to answer, and still did after all retries.
    Unavailable,
    /// The request makes no sense: a key the store cannot hold, a range past the end, settings that contradict.
    Invalid,
    /// The store cannot do this at all (append on S3, conditional writes on some servers).
    Unsupported,
    /// The local disk that an object is being written to is full, or its quota is used up.
    DiskFull,
    /// The local file that is being read or written failed, otherwise than by a full disk.
    LocalFile,
}

/// A failed operation: what was tried on which object, what the store said, and what to do about it.
///
/// `Display` is one line without control characters; it never holds a credential.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    target: String,
    message: String,
    status: Option<u16>,
    code: Option<String>,
    request_id: Option<String>,
    attempts: u32,
    lasting: bool,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure of `operation` (such as `GET`) on `target` (a location as it is written).
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        target: impl fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        Self(Box::new(Inner {
            kind,
            operation,
            target: printable(&target.to_string()),
            message: printable(&message.into()),
            status: None,
            code: None,
            request_id: None,
            attempts: 1,
            lasting: false,
            source: None,
        }))
    }

    /// Adds the HTTP status and, where there is one, the store's error code (such as `NoSuchKey`).
    #[must_use]
    pub fn with_status(mut self, status: u16, code: Option<&str>) -> Self {
        self.0.status = Some(status);
        self.0.code = code.map(printable);
        self
    }

    /// Adds the store's name for the request, which its support asks for.
    #[must_use]
    pub fn with_request_id(mut self, id: Option<&str>) -> Self {
        self.0.request_id = id.map(printable);
        self
    }

    /// Says how often the request was tried.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.0.attempts = attempts;
        self
    }

    /// Says how often it was tried, where that is more than the error knows of.
    #[must_use]
    pub(crate) fn with_attempts_if_more(mut self, attempts: u32) -> Self {
        self.0.attempts = self.0.attempts.max(attempts);
        self
    }

    /// Says that it will stay so until somebody changes something.
    #[must_use]
    pub(crate) fn lasting(mut self, lasting: bool) -> Self {
        self.0.lasting = lasting;
        self
    }

    /// Adds the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What the failure means.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The HTTP status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// The store's own error code, such as `NoSuchKey`.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The store's name for the failed request.
    pub fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// Whether the object or bucket is simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self.0.kind, ErrorKind::NotFound | ErrorKind::NoSuchBucket)
    }

    /// Whether a store that is [`ErrorKind::Unavailable`] will stay so until somebody changes something: its certificate is not
    /// trusted, it does not speak the protocol, a proxy refuses. Waiting for it is as good as giving up.
    pub fn is_lasting(&self) -> bool {
        self.0.lasting
    }

    /// What a person can do about it, where that can be said in general.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self.0.kind {
            ErrorKind::NoSuchBucket => "check the bucket's name and the endpoint it is asked at",
            ErrorKind::Denied => "allow this action to the role or user whose credentials are in use",
            ErrorKind::BadCredentials => {
                "give the instance a RAM/IAM role, or set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET \
                 (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://)"
            }
            ErrorKind::WrongRegion { .. } => {
                "set the bucket's region (--region) and an endpoint of that region (--endpoint)"
            }
            ErrorKind::Throttled { .. } => "ask for fewer requests at once, or have the bucket's limit raised",
            ErrorKind::Changed => {
                "objects must not be replaced while they are being read; start again to read the new one"
            }
            ErrorKind::Archived => {
                "restore it first (ossutil restore oss://BUCKET/KEY, or aws s3api restore-object), which can take hours"
            }
            ErrorKind::DiskFull => "free space on that file system, or use a larger one",
            ErrorKind::Unavailable => "check the endpoint, the network path to it and the store's status",
            _ => return None,
        })
    }
}

/// Control characters escaped, so that a hostile key or a server's message cannot forge a log line.
fn printable(text: &str) -> String {
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text.to_owned() }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        write!(f, "{} {}: ", inner.operation, inner.target)?;
        match (inner.status, &inner.code) {
            (Some(status), Some(code)) => write!(f, "{code} ({status}): ")?,
            (Some(status), None) => write!(f, "status {status}: ")?,
            (None, Some(code)) => write!(f, "{code}: ")?,
            (None, None) => {}
        }
        f.write_str(&inner.message)?;
        if let ErrorKind::WrongRegion { region: Some(region) } = &inner.kind {
            write!(f, "; the bucket is in {region}")?;
        }
        if inner.attempts > 1 {
            write!(f, " (after {} attempts)", inner.attempts)?;
        }
        if let Some(id) = &inner.request_id {
            write!(f, " [request id {id}]")?;
        }
        if let Some(remedy) = self.remedy() {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        if let Some(source) = &self.0.source {
            write!(f, " (source: {source})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_thing_cause_and_remedy_on_one_line() {
        let error = Error::new(ErrorKind::Denied, "GET", "oss://b/a\nb", "You have no right\r\nto do this")
            .with_status(403, Some("AccessDenied"))
            .with_request_id(Some("5C3D"))
            .with_attempts(2);
        assert_eq!(
            error.to_string(),
            "GET oss://b/a\\nb: AccessDenied (403): You have no right\\r\\nto do this (after 2 attempts) \
             [request id 5C3D]; allow this action to the role or user whose credentials are in use"
        );
        assert!(size_of::<Error>() == size_of::<usize>());
    }
}
