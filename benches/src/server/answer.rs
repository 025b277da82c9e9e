//! From one request to its response.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, RANGE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use percent_encoding::percent_decode_str;
use tokio::time::{Instant, Sleep, sleep_until};

use super::listing::Query;
use super::{BUCKET, Shared};
use crate::content::Object;

/// When every object was written, as HTTP and as listings say it.
const WRITTEN: &str = "Thu, 01 Jan 2026 00:00:00 GMT";
/// Bytes sent at once on a line of limited bandwidth.
const PACED_PIECE: u64 = 64 << 10;

/// Answers one request. Nothing is ever written, and signatures are not looked at.
pub async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let latency = Duration::from_micros(shared.latency_micros.load(Ordering::Relaxed));
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    Ok(respond(&shared, &request))
}

fn respond(shared: &Arc<Shared>, request: &Request<Incoming>) -> Response<Answer> {
    let head = request.method() == Method::HEAD;
    if !head && request.method() != Method::GET {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", head);
    }
    let Ok(path) = percent_decode_str(request.uri().path()).decode_utf8() else {
        return refusal(StatusCode::BAD_REQUEST, "InvalidURI", head);
    };
    let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    if bucket != BUCKET {
        return refusal(StatusCode::NOT_FOUND, "NoSuchBucket", head);
    }
    if key.is_empty() {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let text = if query.location { LOCATION.to_owned() } else { query.listing(shared.world.objects()) };
        return xml(StatusCode::OK, text, head);
    }
    shared.objects.fetch_add(1, Ordering::Relaxed);
    match shared.world.get(key) {
        Some(object) => self::object(shared, object, request.headers().get(RANGE), head),
        None => refusal(StatusCode::NOT_FOUND, "NoSuchKey", head),
    }
}

/// The answer to `?location`: the oldest region, which has no name.
const LOCATION: &str = "<LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"/>";

fn object(shared: &Arc<Shared>, object: Object, range: Option<&HeaderValue>, head: bool) -> Response<Answer> {
    let wanted = match range.and_then(|range| range.to_str().ok()) {
        None => None,
        Some(text) => match parse_range(text, object.size) {
            Some(range) => Some(range),
            None => return refusal(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", head),
        },
    };
    let status = if wanted.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let bytes = wanted.clone().unwrap_or(0..object.size);
    let mut response = Response::new(if head {
        Answer::text(String::new())
    } else {
        Answer::Object {
            shared: Arc::clone(shared),
            object,
            begun: Instant::now(),
            sent: 0,
            pause: None,
            bandwidth: shared.bandwidth.load(Ordering::Relaxed),
            rest: bytes.clone(),
        }
    });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, (bytes.end - bytes.start).into());
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(LAST_MODIFIED, HeaderValue::from_static(WRITTEN));
    insert(headers, ETAG, &object.etag());
    if wanted.is_some() {
        insert(headers, CONTENT_RANGE, &format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, object.size));
    }
    response
}

fn insert(headers: &mut http::HeaderMap, name: http::HeaderName, value: &str) {
    headers.insert(name, HeaderValue::from_str(value).expect("digits, quotes and dashes are legal in headers"));
}

/// The bytes that a `Range` header asks for: `bytes=A-B`, `bytes=A-` or `bytes=-N`. None when there are no such bytes or
/// it is written otherwise.
fn parse_range(text: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(last)) if first.is_empty() => size.saturating_sub(last)..size,
        _ => return None,
    };
    (range.start < range.end).then_some(range)
}

fn refusal(status: StatusCode, code: &str, head: bool) -> Response<Answer> {
    xml(status, format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>"), head)
}

fn xml(status: StatusCode, text: String, head: bool) -> Response<Answer> {
    let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{text}");
    let length = text.len();
    let mut response = Response::new(Answer::text(if head { String::new() } else { text }));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response.headers_mut().insert("x-amz-bucket-region", HeaderValue::from_static("us-east-1"));
    response
}

/// A body.
pub enum Answer {
    /// All of it, in one piece.
    Text(Bytes),
    /// Bytes of an object.
    Object {
        shared: Arc<Shared>,
        object: Object,
        /// What is still to come.
        rest: Range<u64>,
        /// Bytes per second; 0 is unlimited.
        bandwidth: u64,
        begun: Instant,
        sent: u64,
        /// Runs until the next piece is due.
        pause: Option<Pin<Box<Sleep>>>,
    },
}

impl Answer {
    fn text(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Object { shared, object, rest, bandwidth, begun, sent, pause } => {
                if rest.is_empty() {
                    return Poll::Ready(None);
                }
                if let Some(micros) = sent.saturating_mul(1_000_000).checked_div(*bandwidth) {
                    let due = *begun + Duration::from_micros(micros);
                    let timer = pause.get_or_insert_with(|| Box::pin(sleep_until(due)));
                    if timer.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    *pause = None;
                }
                let most = if *bandwidth > 0 { PACED_PIECE } else { u64::MAX };
                let piece = shared.world.piece(*object, rest.start, most.min(rest.end - rest.start));
                let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
                rest.start += length;
                *sent += length;
                shared.bytes.fetch_add(length, Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Object { rest, .. } => rest.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Text(text) => u64::try_from(text.len()).unwrap_or(u64::MAX),
            Self::Object { rest, .. } => rest.end - rest.start,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, range) in [
            ("bytes=0-0", Some(0..1)),
            ("bytes=3-", Some(3..10)),
            ("bytes=-4", Some(6..10)),
            ("bytes=-40", Some(0..10)),
            ("bytes=8-99", Some(8..10)),
            ("bytes=10-", None),
            ("bytes=5-4", None),
            ("bytes=-", None),
            ("bytes=1-2,4-5", None),
            ("lines=1-2", None),
        ] {
            assert_eq!(parse_range(text, 10), range, "{text}");
        }
    }
}
