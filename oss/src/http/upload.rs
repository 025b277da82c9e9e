//! A request body that tells how far it has been taken.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// How much of a body is handed over at a time: small enough for progress to be seen, large enough to cost nothing.
const CHUNK: usize = 128 << 10;

/// How far a body has gone.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    bytes: AtomicU64,
    /// Milliseconds after `start`.
    last: AtomicU64,
}

impl Progress {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), bytes: AtomicU64::new(0), last: AtomicU64::new(0) })
    }

    /// When it began.
    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// How many bytes have been taken.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When the last of them were.
    pub(super) fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
    }
}

/// Bytes in memory, handed out in slices without copying.
#[derive(Debug)]
pub(super) struct Upload {
    rest: Bytes,
    progress: Arc<Progress>,
}

impl Upload {
    pub(super) fn new(rest: Bytes, progress: Arc<Progress>) -> Self {
        Self { rest, progress }
    }

    /// How many bytes are still to be handed over.
    pub(super) fn len(&self) -> usize {
        self.rest.len()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let take = self.rest.len().min(CHUNK);
        let chunk = self.rest.split_to(take);
        self.progress.add(take);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.rest.len()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_byte_is_handed_over_once_and_counted() {
        let data = Bytes::from((0..CHUNK * 2 + 7).map(|i| u8::try_from(i % 251).unwrap()).collect::<Vec<_>>());
        let progress = Progress::new();
        let mut body = Upload::new(data.clone(), Arc::clone(&progress));
        assert_eq!(body.size_hint().exact(), Some(data.len() as u64));
        let mut seen = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            seen.extend_from_slice(&frame.unwrap().into_data().unwrap());
            assert_eq!(progress.bytes(), seen.len() as u64);
        }
        assert!(body.is_end_stream() && seen == data);
    }
}
