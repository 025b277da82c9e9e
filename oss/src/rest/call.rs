//! Requests and answers of the protocol, before they are signed and after they were understood.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::AsHeaderName;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::refusal::Condition;
use crate::http::Body;
use crate::location::Key;

/// Which of the two protocols is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Oss,
    S3,
}

/// What may be sent a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replay {
    /// Doing it twice is as good as once, or the operation sorts it out.
    Always,
    /// Only when it surely was not done: append.
    UnlessAmbiguous,
}

/// What is read of a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// The head only; the body is handed out.
    Stream,
    /// A body up to [`LIMIT`](super::xml::LIMIT).
    Body,
}

/// A request of the protocol.
pub(crate) struct Call<'a> {
    /// For messages: `GET`, `PUT`, `LIST`.
    pub operation: &'static str,
    pub method: Method,
    /// The object; absent for the bucket.
    pub key: Option<&'a Key>,
    pub query: Vec<(&'static str, Cow<'a, str>)>,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub condition: Condition,
    pub replay: Replay,
    pub expect: Expect,
    /// A header whose value cannot be sent.
    pub unsendable: Option<HeaderName>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(operation: &'static str, method: Method, key: Option<&'a Key>) -> Self {
        Self {
            operation,
            method,
            key,
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            condition: Condition::None,
            replay: Replay::Always,
            expect: Expect::Body,
            unsendable: None,
        }
    }

    pub(crate) fn query(mut self, name: &'static str, value: impl Into<Cow<'a, str>>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(crate) fn header(self, name: &'static str, value: &str) -> Self {
        self.with(HeaderName::from_static(name), HeaderValue::from_str(value))
    }

    /// The same with what need not be parsed or copied.
    pub(crate) fn with<E>(mut self, name: HeaderName, value: Result<HeaderValue, E>) -> Self {
        match value {
            Ok(value) => {
                self.headers.insert(name, value);
            }
            // Reported when the call is run. A condition that was left out would be worse than a failure.
            Err(_) => self.unsendable = Some(name),
        }
        self
    }
}

/// A success.
pub(crate) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The body, when it was expected whole.
    pub bytes: Bytes,
    /// The body, when it was expected as a stream.
    pub stream: Option<Body>,
    /// Whether an earlier attempt may have been carried out.
    pub ambiguous: bool,
}

impl Reply {
    /// A header's text.
    pub(crate) fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}
