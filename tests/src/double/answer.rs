//! Answers: outcomes as HTTP responses, and bodies that trickle, stop or lie when a fault says so.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

use super::config::Dialect;
use super::error::Refusal;
use super::fault::Fault;
use super::operation::Reply;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The refusal that a fault makes up.
pub(super) fn injected(fault: Option<&Fault>) -> Option<Refusal> {
    let internal = || Refusal::new(500, "InternalError", "We encountered an internal error. Please try again.");
    match fault? {
        Fault::InternalError | Fault::ErrorInside200 => Some(internal()),
        Fault::SlowDown { retry_after } => {
            let refusal = Refusal::new(503, "SlowDown", "Please reduce your request rate.");
            Some(match retry_after {
                Some(time) => refusal.header("retry-after", time.as_secs().to_string()),
                None => refusal,
            })
        }
        _ => None,
    }
}

/// The same bytes with one bit of the one in the middle flipped.
pub(super) fn damaged(bytes: &Bytes) -> Bytes {
    let mut copy = bytes.to_vec();
    let middle = copy.len() / 2;
    if let Some(byte) = copy.get_mut(middle) {
        *byte ^= 1;
    }
    copy.into()
}

/// What an answer needs to know about its request.
pub(super) struct Answer {
    pub(super) dialect: Dialect,
    pub(super) host: String,
    pub(super) is_head: bool,
    pub(super) request_id: String,
    pub(super) now: SystemTime,
}

impl Answer {
    /// The reply, whatever the outcome.
    pub(super) fn reply(&self, outcome: Result<Reply, Refusal>, hide_status: bool) -> Reply {
        let refusal = match outcome {
            Ok(reply) => return reply,
            Err(refusal) => refusal,
        };
        let status = if hide_status { 200 } else { refusal.status };
        let mut reply =
            refusal.headers.iter().fold(Reply::empty(status), |reply, (name, value)| reply.header(name, value));
        if status == 304 {
            return reply;
        }
        let document = refusal.document(self.dialect, &self.host, &self.request_id);
        if let Some(ec) = refusal.ec_code().filter(|_| self.dialect == Dialect::Oss) {
            reply = reply.header("x-oss-ec", ec);
        }
        if self.is_head && self.dialect == Dialect::Oss {
            // There is no body to say it in.
            reply = reply.header("x-oss-err", STANDARD.encode(&document));
        }
        reply.content = document.into();
        reply.header("content-type", "application/xml")
    }

    pub(super) fn response(&self, reply: Reply, fault: Option<&Fault>) -> Response<Body> {
        let mut response = Response::new(StreamBody::new(stream::empty()).boxed_unsync());
        *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut header = |name: &str, value: &[u8]| {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_bytes(value)) {
                response.headers_mut().append(name, value);
            }
        };
        header("date", httpdate::fmt_http_date(self.now).as_bytes());
        header("server", if self.dialect == Dialect::Oss { b"AliyunOSS" } else { b"AmazonS3" });
        header(self.dialect.request_id_header(), self.request_id.as_bytes());
        for (name, value) in &reply.headers {
            header(name, value.as_bytes());
        }
        let has_body = !matches!(reply.status, 204 | 304);
        // S3 says nothing about the length of an error that a HEAD does not carry.
        if has_body && !(self.is_head && reply.status >= 300) {
            header("content-length", reply.content.len().to_string().as_bytes());
        }
        if has_body && !self.is_head {
            *response.body_mut() = body(reply, fault);
        }
        response
    }
}

/// How a body goes out.
struct Pace {
    chunks: VecDeque<Bytes>,
    /// Before each chunk but the first.
    pause: Duration,
    end: End,
}

/// What comes after the last chunk.
enum End {
    Good,
    Cut,
    Hang,
}

fn body(reply: Reply, fault: Option<&Fault>) -> Body {
    let len = reply.content.len();
    let all = 0..len;
    let pace = match fault {
        Some(Fault::Truncate) => {
            Pace { chunks: reply.content.chunks(0..len / 2).into(), pause: Duration::ZERO, end: End::Cut }
        }
        Some(Fault::StallBody { after }) => {
            Pace { chunks: reply.content.chunks(0..(*after).min(len)).into(), pause: Duration::ZERO, end: End::Hang }
        }
        Some(Fault::Slow { bytes_per_second }) => {
            // Ten times a second, and at least a byte.
            let step = (bytes_per_second / 10).max(1);
            let starts = (0..len).step_by(usize::try_from(step).unwrap_or(usize::MAX));
            Pace {
                chunks: starts.flat_map(|start| reply.content.chunks(start..(start + step).min(len))).collect(),
                pause: Duration::from_secs(1) * u32::try_from(step).unwrap_or(u32::MAX)
                    / u32::try_from(*bytes_per_second).unwrap_or(u32::MAX).max(1),
                end: End::Good,
            }
        }
        Some(Fault::WrongByte) if reply.is_object && len > 0 => {
            let middle = len / 2;
            let mut chunks: VecDeque<Bytes> = reply.content.chunks(0..middle).into();
            chunks.extend(reply.content.chunks(middle..middle + 1).iter().map(damaged));
            chunks.extend(reply.content.chunks(middle + 1..len));
            Pace { chunks, pause: Duration::ZERO, end: End::Good }
        }
        _ => Pace { chunks: reply.content.chunks(all).into(), pause: Duration::ZERO, end: End::Good },
    };
    let frames = stream::unfold((pace, true), |(mut pace, first)| async move {
        if let Some(chunk) = pace.chunks.pop_front() {
            if !first && !pace.pause.is_zero() {
                tokio::time::sleep(pace.pause).await;
            }
            return Some((Ok(Frame::data(chunk)), (pace, false)));
        }
        match pace.end {
            End::Good => None,
            End::Hang => pending().await,
            End::Cut => {
                // What was written before must reach the client, or this would be another fault.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Err(io::Error::from(io::ErrorKind::ConnectionAborted)), (pace, false)))
            }
        }
    });
    StreamBody::new(frames).boxed_unsync()
}
