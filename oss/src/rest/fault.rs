//! What is wrong with one attempt, and with an operation after all of them.

use http::StatusCode;

use super::refusal::{Condition, Refusal};
use super::retry::{Remedy, remedy_for};
use crate::error::{Error, ErrorKind};
use crate::http::SendError;

/// A failure, after all retries.
pub(crate) struct Failure {
    pub error: Error,
    /// Whether one of the attempts may have been carried out.
    pub ambiguous: bool,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// What is wrong with one attempt.
pub(crate) struct Fault {
    pub kind: ErrorKind,
    pub message: String,
    pub status: Option<StatusCode>,
    pub code: Option<String>,
    pub request_id: Option<String>,
    pub remedy: Remedy,
    pub ambiguous: bool,
    /// Our own deadline ended it.
    pub cut_short: bool,
    /// It will stay so until somebody changes something.
    pub lasting: bool,
}

impl Fault {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let remedy = remedy_for(&kind);
        Self {
            kind,
            message: message.into(),
            status: None,
            code: None,
            request_id: None,
            remedy,
            ambiguous: false,
            cut_short: false,
            lasting: false,
        }
    }

    /// The answer is a success and its content is not right: bytes changed on the way, or no sense in it.
    pub(crate) fn in_answer(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut fault = Self::new(kind, message);
        fault.ambiguous = true;
        fault
    }

    pub(crate) fn refused(refusal: &Refusal, condition: Condition) -> Self {
        let kind = refusal.kind(condition);
        Self {
            remedy: remedy_for(&kind),
            kind,
            message: refusal.message.clone(),
            status: Some(refusal.status),
            code: refusal.code.clone(),
            request_id: refusal.request_id.clone(),
            ambiguous: refusal.may_have_happened(),
            cut_short: false,
            lasting: false,
        }
    }

    /// No answer came. `via` names the proxy that was asked, if one was.
    pub(crate) fn broken(error: &SendError, via: &str) -> Self {
        // A failure to connect names the proxy by itself.
        let via = if matches!(error, SendError::Connect(_)) { "" } else { via };
        let mut fault = Self::new(ErrorKind::Unavailable, format!("{error}{via}"));
        fault.ambiguous = error.may_have_arrived();
        let (few, lasting) = match error {
            SendError::Connect(cause) => (cause.is_permanent(), cause.is_lasting()),
            SendError::NotHttp(_) => (true, true),
            SendError::Timeout(_) | SendError::Late | SendError::Broken(_) => (false, false),
        };
        if few {
            fault.remedy = Remedy::WaitFew;
        }
        fault.lasting = lasting;
        fault
    }

    /// The proxy itself refused to carry the request.
    pub(crate) fn proxy_wants_credentials(via: &str) -> Self {
        let why = format!(
            "the proxy wants a user name and password, or others{via}: write them into its URL, HTTP_PROXY=http://USER:PASSWORD@HOST:PORT"
        );
        let mut fault = Self::new(ErrorKind::Unavailable, why);
        fault.status = Some(StatusCode::PROXY_AUTHENTICATION_REQUIRED);
        fault.remedy = Remedy::None;
        fault.lasting = true;
        fault
    }
}
