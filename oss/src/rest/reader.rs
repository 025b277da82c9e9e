//! The body of a `GET`: one clean stream over as many connections as it takes.
//!
//! When a connection breaks, ends early, falls silent or crawls, the rest is asked for anew from the byte where it stopped, on
//! condition that the object is still the same. Timeouts run only while we wait for the store, not while whoever reads the stream
//! is busy. As long as bytes keep coming the stream may take any time; once they do not, the total deadline counts.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt as _, ready};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH, RANGE};
use http::{HeaderValue, Method};
use hyper::body::{Body as _, Frame};
use tokio::time::Instant;

use super::call::{Call, Dialect, Expect, Reply};
use super::channel::Channel;
use super::digest::Digest;
use super::fault::Fault;
use super::meter::{Gauge, Pace};
use super::names;
use super::refusal::{Condition, request_id};
use super::retry::{Deadline, Remedy, pause};
use crate::error::{Error, ErrorKind, Result};
use crate::http::{Body, SendError, Silence};
use crate::location::Key;
use crate::store::{Checksum, ETag};

/// A connection that brought this many bytes before it broke was good, and the next is made as after a first failure.
const GOOD_CONNECTION: u64 = 1 << 20;

/// Which bytes an answer to a `GET` holds, and how long the object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Served {
    pub range: Range<u64>,
    pub size: u64,
}

/// Reads which bytes an answer holds.
pub(crate) fn served(reply: &Reply) -> Result<Served, String> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let length = reply.header(CONTENT_LENGTH).and_then(number).ok_or("the answer does not say how long it is")?;
    if reply.status != http::StatusCode::PARTIAL_CONTENT {
        return Ok(Served { range: 0..length, size: length });
    }
    let text = reply.header(CONTENT_RANGE).ok_or("a part of the object came without saying which")?;
    let bad = || format!("the part that came is named {text:?}, which cannot be understood");
    let (range, size) = text.trim().strip_prefix("bytes ").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
    let (first, last) = range.split_once('-').ok_or_else(bad)?;
    let (first, last) = (number(first).ok_or_else(bad)?, number(last).ok_or_else(bad)?);
    let size = number(size).ok_or_else(bad)?;
    let end = last.checked_add(1).filter(|end| first < *end && *end <= size).ok_or_else(bad)?;
    if end - first != length {
        return Err(format!("the part that came is named {text:?} and is {length} bytes long"));
    }
    Ok(Served { range: first..end, size })
}

/// A `GET` of some bytes of an object.
pub(crate) fn request<'a>(
    dialect: Dialect,
    key: &'a Key,
    range: Option<&Range<u64>>,
    if_match: Option<&ETag>,
) -> Call<'a> {
    let mut call = Call::new("GET", Method::GET, Some(key));
    call.expect = Expect::Stream;
    if let Some(range) = range {
        let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        call = call.with(RANGE, HeaderValue::try_from(text));
        if dialect == Dialect::Oss {
            // Without this OSS answers a range that goes past the end with the whole object.
            let standard = HeaderValue::from_static("standard");
            call = call.with::<Infallible>(names::OSS_RANGE_BEHAVIOR.clone(), Ok(standard));
        }
    }
    // A range from the middle has no checksum.
    if dialect == Dialect::S3 && range.is_none_or(|range| range.start == 0) {
        let enabled = HeaderValue::from_static("ENABLED");
        call = call.with::<Infallible>(names::S3_CHECKSUM_MODE.clone(), Ok(enabled));
    }
    if let Some(etag) = if_match {
        call = call.with(IF_MATCH, HeaderValue::from_str(&etag.0));
        call.condition = Condition::IsUnchanged;
    }
    call
}

/// What a body is of.
pub(crate) struct Source {
    /// The object's.
    pub etag: Option<ETag>,
    /// The store's name for the request that brought the body.
    pub request_id: Option<String>,
    /// What the bytes must have, where all of the object comes.
    pub checksum: Option<Checksum>,
}

/// An object's bytes on their way.
pub(crate) struct Reader {
    channel: Arc<Channel>,
    key: Key,
    etag: Option<ETag>,
    /// Of the request that brought the present body, or the last.
    request_id: Option<String>,
    /// What is still to come.
    rest: Range<u64>,
    /// Bytes of the present body that come before what is wanted: from a server that ignores ranges.
    skip: u64,
    flow: Flow,
    digest: Option<Digest>,
    gauge: Gauge,
    /// Connections that failed since the last that was any good.
    failures: u32,
    /// Bytes that came over the present connection.
    came: u64,
    /// Counts from when bytes last came at a good pace, without the time that whoever reads them took.
    deadline: Deadline,
    /// When bytes were last handed out.
    handed_out: Option<Instant>,
    silence: Silence,
}

/// Where the bytes come from.
enum Flow {
    Body(Body),
    /// The connection is gone, and another one on its way.
    Reopening(BoxFuture<'static, Result<Reopened>>),
    Over,
}

/// The rest of an object, asked for anew.
struct Reopened {
    body: Body,
    begins: u64,
    request_id: Option<String>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.gauge.close(&self.channel.meter);
    }
}

impl Reader {
    /// The bytes `wanted` out of a body that holds those of `from`.
    pub(crate) fn new(
        channel: Arc<Channel>,
        key: Key,
        source: Source,
        wanted: Range<u64>,
        from: &Range<u64>,
        body: Body,
    ) -> Self {
        let Source { etag, request_id, checksum } = source;
        let gauge = Gauge::new(&channel.meter, channel.timeouts().read);
        let deadline = channel.deadline();
        Self {
            skip: wanted.start.saturating_sub(from.start),
            channel,
            key,
            etag,
            request_id,
            rest: wanted,
            flow: Flow::Body(body),
            digest: checksum.map(Digest::new),
            gauge,
            failures: 0,
            came: 0,
            deadline,
            handed_out: None,
            silence: Silence::default(),
        }
    }

    /// All of it, verified.
    pub(crate) async fn collect(mut self) -> Result<Bytes> {
        let mut all = BytesMut::new();
        while let Some(chunk) = self.next().await.transpose()? {
            if all.is_empty() && self.rest.is_empty() {
                // It came in one piece. The next call verifies it.
                if let Some(more) = self.next().await.transpose()? {
                    all.extend_from_slice(&more);
                }
                return Ok(chunk);
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }

    fn poll_advance(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        loop {
            let body = match &mut self.flow {
                Flow::Over => return Poll::Ready(Ok(None)),
                // A connection behind its last byte has gone back to the pool; with the rest that a server sends which ignores ranges
                // it is closed here.
                _ if self.rest.is_empty() => {
                    self.flow = Flow::Over;
                    return Poll::Ready(self.verdict().map(|()| None));
                }
                Flow::Reopening(reopening) => {
                    let reopened = ready!(reopening.as_mut().poll(cx))?;
                    self.skip = self.rest.start.saturating_sub(reopened.begins);
                    self.request_id = reopened.request_id;
                    self.flow = Flow::Body(reopened.body);
                    continue;
                }
                Flow::Body(body) => body,
            };
            let frame = match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    let read = self.channel.timeouts().read;
                    ready!(self.silence.poll(cx, read));
                    self.silence.end();
                    self.interrupted(&SendError::Timeout(read))?;
                    continue;
                }
            };
            let waited = self.silence.end();
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(chunk))) => {
                    if let Some(chunk) = self.take(chunk, waited)? {
                        return Poll::Ready(Ok(Some(chunk)));
                    }
                }
                // Trailers.
                Some(Ok(Err(_))) => {}
                Some(Err(error)) => self.interrupted(&SendError::broken(&error))?,
                None => self.interrupted(&"the body ended early")?,
            }
        }
    }

    /// Takes in what came, and gives what of it is wanted, if anything.
    fn take(&mut self, mut chunk: Bytes, waited: Duration) -> Result<Option<Bytes>> {
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        self.came += length;
        let pace = self.gauge.record(&self.channel.meter, length, waited);
        // A slow line is given time as long as it moves.
        if pace == Some(Pace::Good) {
            self.deadline = self.channel.deadline();
        }
        if self.skip > 0 {
            let skip = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
            chunk = chunk.split_off(skip);
            self.skip -= u64::try_from(skip).unwrap_or(0);
        }
        let wanted = usize::try_from(self.rest.end - self.rest.start).unwrap_or(usize::MAX);
        chunk.truncate(wanted);
        self.rest.start += u64::try_from(chunk.len()).unwrap_or(0);
        if let Some(digest) = &mut self.digest {
            digest.update(&chunk);
        }
        if pace == Some(Pace::Stalled) {
            self.interrupted(&"hardly anything comes any more")?;
        }
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }

    /// Drops the connection and has another one made, after a pause; fails when it is time to give up.
    fn interrupted(&mut self, cause: &(dyn std::fmt::Display + Sync)) -> Result<()> {
        self.flow = Flow::Over;
        self.failures = if self.came >= GOOD_CONNECTION { 1 } else { self.failures + 1 };
        self.came = 0;
        let at = self.rest.start;
        let wait = pause(Remedy::Wait, self.failures, fastrand::f64());
        let Some(wait) = wait.filter(|wait| self.etag.is_some() && self.deadline.allows(*wait)) else {
            let via = self.channel.via();
            let why = if self.etag.is_none() {
                format!(
                    "broke off at byte {at} ({cause}{via}), and without an entity tag it cannot be taken up again safely"
                )
            } else {
                format!("broke off at byte {at}: {cause}{via}")
            };
            return Err(self.error(ErrorKind::Unavailable, why).with_attempts(self.failures));
        };
        let request_id = self.request_id.as_deref();
        tracing::debug!(at, %cause, failures = self.failures, request_id, "a download broke off; going on from there");
        let (channel, key, etag) = (Arc::clone(&self.channel), self.key.clone(), self.etag.clone());
        let (want, deadline, last) = (self.rest.clone(), self.deadline, self.request_id.clone());
        self.flow = Flow::Reopening(Box::pin(async move {
            tokio::time::sleep(wait).await;
            reopen(&channel, &key, &want, etag.as_ref(), deadline, last.as_deref()).await
        }));
        Ok(())
    }

    /// After the last byte: compares the checksum.
    fn verdict(&mut self) -> Result<()> {
        match self.digest.take().map(Digest::finish) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(why)) => Err(self.error(ErrorKind::Corrupt, why)),
        }
    }

    fn error(&self, kind: ErrorKind, why: impl Into<String>) -> Error {
        self.channel.error(kind, "GET", Some(&self.key), why).with_request_id(self.request_id.as_deref())
    }
}

impl Stream for Reader {
    type Item = Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let this = self.get_mut();
        if let Some(since) = this.handed_out.take() {
            this.deadline = this.deadline.later_by(since.elapsed());
        }
        match ready!(this.poll_advance(cx)) {
            Ok(Some(chunk)) => {
                // Behind the last byte there is nothing to wait for.
                this.handed_out = (!this.rest.is_empty()).then(Instant::now);
                Poll::Ready(Some(Ok(chunk)))
            }
            Ok(None) => Poll::Ready(None),
            Err(error) => {
                this.flow = Flow::Over;
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

/// Asks for the rest of an object, which must still be the same. `last` is the request that the store knows of if none
/// gets there any more.
async fn reopen(
    channel: &Channel,
    key: &Key,
    want: &Range<u64>,
    etag: Option<&ETag>,
    deadline: Deadline,
    last: Option<&str>,
) -> Result<Reopened> {
    let call = request(channel.dialect(), key, Some(want), etag);
    let check = |reply: &Reply| {
        let served = served(reply).map_err(|why| Fault::in_answer(ErrorKind::Unavailable, why))?;
        let covers = served.range.start <= want.start && want.end <= served.range.end;
        let same = match (etag, reply.header(ETAG)) {
            (Some(ours), Some(theirs)) => super::digest::bare(&ours.0) == super::digest::bare(theirs),
            _ => false,
        };
        if !same {
            return Err(Fault::in_answer(ErrorKind::Changed, "the object was replaced while it was being read"));
        }
        if covers {
            Ok(())
        } else {
            Err(Fault::in_answer(ErrorKind::Unavailable, "another part came than was asked for"))
        }
    };
    let reply = match channel.run(&call, deadline, &check).await {
        Ok(reply) => reply,
        Err(failure) if failure.error.request_id().is_none() => return Err(failure.error.with_request_id(last)),
        Err(failure) => return Err(failure.error),
    };
    let request_id = request_id(&reply.headers).map(str::to_owned);
    let unreadable = |why: String| {
        channel.error(ErrorKind::Unavailable, "GET", Some(key), why).with_request_id(request_id.as_deref())
    };
    let begins = served(&reply).map_err(unreadable)?.range.start;
    let body = reply.stream.ok_or_else(|| unreadable("the answer had no body".to_owned()))?;
    Ok(Reopened { body, begins, request_id })
}

/// Whether a failure of a whole download is worth another one: the bytes were wrong, and nobody has seen them.
pub(crate) fn is_corrupt(error: &Error) -> bool {
    *error.kind() == ErrorKind::Corrupt
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, StatusCode};

    fn reply(status: u16, length: &'static str, range: Option<&'static str>) -> Reply {
        let mut headers = HeaderMap::new();
        headers.insert("content-length", HeaderValue::from_static(length));
        if let Some(range) = range {
            headers.insert("content-range", HeaderValue::from_static(range));
        }
        Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers,
            bytes: Bytes::new(),
            stream: None,
            ambiguous: false,
        }
    }

    #[test]
    fn what_was_served_is_read_and_checked() {
        assert_eq!(served(&reply(200, "7", None)).unwrap(), Served { range: 0..7, size: 7 });
        assert_eq!(served(&reply(206, "3", Some("bytes 4-6/10"))).unwrap(), Served { range: 4..7, size: 10 });
        for bad in ["bytes 4-6/*", "bytes 6-4/10", "bytes 4-6/6", "4-6/10", "bytes 4-18446744073709551615/10"] {
            assert!(served(&reply(206, "3", Some(bad))).is_err(), "{bad}");
        }
        assert!(served(&reply(206, "4", Some("bytes 4-6/10"))).is_err());
        assert!(served(&reply(206, "4", None)).is_err());
        assert!(served(&reply(200, "x", None)).is_err());
    }
}
