//! What was asked and what was answered.

use std::time::Instant;

use super::config::Dialect;
use super::fault::Fault;
use super::operation::Operation;

/// One request as it came in, and how it ended.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its place in the order of arrival, from 0.
    pub number: usize,
    /// The protocol it spoke.
    pub dialect: Dialect,
    /// What it asked for.
    pub operation: Operation,
    /// When its head arrived.
    pub arrived: Instant,
    /// When the head of its answer was ready; `None` while it is not, or if there was no answer.
    pub answered: Option<Instant>,
    /// Its HTTP method.
    pub method: String,
    /// Its bucket, or empty.
    pub bucket: String,
    /// Its key, decoded, or empty.
    pub key: String,
    /// Its query, decoded, in the order it was sent.
    pub query: Vec<(String, String)>,
    /// Its Range header.
    pub range: Option<String>,
    /// Bytes of its body that were read.
    pub received: u64,
    /// The status it was answered with; `None` while there is no answer, or if there was none.
    pub status: Option<u16>,
    /// The error code in the answer.
    pub code: Option<String>,
    /// Bytes of body in the answer, as its Content-Length says.
    pub sent: u64,
    /// What was made to go wrong.
    pub fault: Option<Fault>,
}

/// What the answer to the request of this number calls it.
pub(super) fn request_id(number: usize) -> String {
    format!("5F{:022X}", number + 1)
}

impl Request {
    /// What the answer calls the request: `x-oss-request-id` or `x-amz-request-id`, and the same in an error document.
    pub fn id(&self) -> String {
        request_id(self.number)
    }

    /// The value of a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The most requests that were waited for at the same moment; one that got no answer does not count.
pub(super) fn most_at_once<'a>(requests: impl Iterator<Item = &'a Request>) -> usize {
    // An answer comes before an arrival in the same moment: those two never met.
    let mut events: Vec<(Instant, bool)> =
        requests.filter_map(|request| Some([(request.arrived, true), (request.answered?, false)])).flatten().collect();
    events.sort();
    let (mut now, mut most) = (0_usize, 0);
    for (_, begins) in events {
        now = if begins { now + 1 } else { now.saturating_sub(1) };
        most = most.max(now);
    }
    most
}
