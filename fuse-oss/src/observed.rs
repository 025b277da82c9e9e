//! A store that is watched: whatever is asked of it is counted, whoever asks.
//!
//! Every mount sees its stores through this, so requests, bytes, latencies and failures are counted in one place, and no caller
//! has to remember to. It costs two looks at the clock and a few atomic additions per request, and one addition per chunk of a
//! body; bytes are not copied.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::BoxStream;
use oss::{
    AppendResponse, Capabilities, ErrorKind, GetOptions, GetResponse, Key, ListPage, ListRequest, Location, ObjectMeta,
    PartPage, PartReceipt, PutMode, PutResponse, Result, Store, UploadId, UploadMarker, UploadPage,
};

use crate::metrics::Metrics;

/// A [`Store`] that counts what is asked of it and passes it on.
///
/// Writing is passed on and not counted: a mount never writes.
#[derive(Debug)]
pub struct Observed {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Observed {
    /// `store`, counted in `metrics`.
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    /// Notes how a listing or a question for one name ended.
    fn looked_up<T>(&self, asked: Instant, answer: Result<T>) -> Result<T> {
        match &answer {
            Err(error) if *error.kind() != ErrorKind::NotFound => self.metrics.failed(error.kind()),
            // That there is no such object is an answer, and a common one: it is how missing names are found out.
            _ => self.metrics.lookup_latency.record(asked.elapsed()),
        }
        answer
    }
}

#[async_trait]
impl Store for Observed {
    fn root(&self) -> &Location {
        self.store.root()
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.metrics.lookups.one();
        let asked = Instant::now();
        self.looked_up(asked, self.store.head(key).await)
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        self.metrics.lookups.one();
        let asked = Instant::now();
        self.looked_up(asked, self.store.list(request).await)
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResponse> {
        self.metrics.gets.one();
        let asked = Instant::now();
        match self.store.get(key, options).await {
            Ok(mut response) => {
                self.metrics.get_latency.record(asked.elapsed());
                response.body = Box::pin(Counted { body: response.body, metrics: Arc::clone(&self.metrics) });
                Ok(response)
            }
            Err(error) => {
                self.metrics.failed(error.kind());
                Err(error)
            }
        }
    }

    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<PutResponse> {
        self.store.put(key, body, mode).await
    }

    async fn create_multipart(&self, key: &Key) -> Result<UploadId> {
        self.store.create_multipart(key).await
    }

    async fn put_part(&self, key: &Key, upload: &UploadId, number: u32, body: Bytes) -> Result<PartReceipt> {
        self.store.put_part(key, upload, number, body).await
    }

    async fn copy_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        source: &Key,
        range: Range<u64>,
        crc64: u64,
    ) -> Result<PartReceipt> {
        self.store.copy_part(key, upload, number, source, range, crc64).await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<PutResponse> {
        self.store.complete_multipart(key, upload, parts, mode).await
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<()> {
        self.store.abort_multipart(key, upload).await
    }

    async fn list_parts(&self, key: &Key, upload: &UploadId, after: u32) -> Result<PartPage> {
        self.store.list_parts(key, upload, after).await
    }

    async fn list_uploads(&self, prefix: &str, after: Option<&UploadMarker>) -> Result<UploadPage> {
        self.store.list_uploads(prefix, after).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.store.delete(key).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<PutResponse> {
        self.store.copy(from, to).await
    }

    async fn append(&self, key: &Key, position: u64, body: Bytes) -> Result<AppendResponse> {
        self.store.append(key, position, body).await
    }
}

/// A body whose bytes are counted as they come.
struct Counted {
    body: BoxStream<'static, Result<Bytes>>,
    metrics: Arc<Metrics>,
}

impl Stream for Counted {
    type Item = Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let item = ready!(this.body.as_mut().poll_next(cx));
        match &item {
            Some(Ok(chunk)) => this.metrics.fetched.bytes(chunk.len()),
            Some(Err(error)) => this.metrics.failed(error.kind()),
            None => {}
        }
        Poll::Ready(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::double::{Content, DoubleStore};
    use futures_util::StreamExt;
    use std::sync::atomic::Ordering;

    fn observed(double: &Arc<DoubleStore>) -> (Observed, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::default());
        (Observed::new(Arc::clone(double) as Arc<dyn Store>, Arc::clone(&metrics)), metrics)
    }

    fn failures(metrics: &Metrics) -> [u64; 4] {
        let snapshot = metrics.snapshot();
        [snapshot.failed_denied, snapshot.failed_changed, snapshot.failed_unavailable, snapshot.failed_other]
    }

    #[tokio::test]
    async fn requests_and_the_bytes_that_came_are_counted() {
        let double = DoubleStore::new(1000);
        double.put("k", Content::MadeUp(1_000_000));
        let (store, metrics) = observed(&double);
        store.head(&Key::new("k")).await.unwrap();
        store.list(ListRequest::default()).await.unwrap();
        let all = store.get(&Key::new("k"), GetOptions::default()).await.unwrap();
        assert_eq!(all.bytes().await.unwrap().len(), 1_000_000);
        let part = GetOptions { range: Some(10..30), ..GetOptions::default() };
        assert_eq!(store.get(&Key::new("k"), part).await.unwrap().bytes().await.unwrap().len(), 20);
        let snapshot = metrics.snapshot();
        assert_eq!((snapshot.lookups, snapshot.lookup_latency.count), (2, 2));
        assert_eq!((snapshot.gets, snapshot.get_latency.count, snapshot.fetched), (2, 2, 1_000_020));
        assert_eq!(failures(&metrics), [0; 4]);
    }

    #[tokio::test]
    async fn a_body_that_is_dropped_counts_what_had_come() {
        let double = DoubleStore::new(1000);
        double.put("k", Content::MadeUp(1_000_000));
        let (store, metrics) = observed(&double);
        let mut response = store.get(&Key::new("k"), GetOptions::default()).await.unwrap();
        let first = response.body.next().await.unwrap().unwrap().len();
        drop(response);
        assert_eq!(metrics.snapshot().fetched, u64::try_from(first).unwrap());
        assert!(first < 1_000_000);
    }

    #[tokio::test]
    async fn failures_are_counted_by_kind_and_a_missing_name_is_none() {
        let double = DoubleStore::new(1000);
        double.put("k", Content::MadeUp(1_000_000));
        let (store, metrics) = observed(&double);
        assert!(store.head(&Key::new("missing")).await.unwrap_err().is_not_found());
        assert_eq!((metrics.snapshot().lookup_latency.count, failures(&metrics)), (1, [0; 4]));
        // An object that was listed and is gone when it is read is another matter.
        store.get(&Key::new("missing"), GetOptions::default()).await.unwrap_err();
        double.knobs.break_bodies.store(1, Ordering::Relaxed);
        store.get(&Key::new("k"), GetOptions::default()).await.unwrap().bytes().await.unwrap_err();
        double.knobs.deny.store(true, Ordering::Relaxed);
        store.head(&Key::new("k")).await.unwrap_err();
        store.list(ListRequest::default()).await.unwrap_err();
        store.get(&Key::new("k"), GetOptions::default()).await.unwrap_err();
        store.put(&Key::new("k"), Bytes::new(), PutMode::Overwrite).await.unwrap_err();
        assert_eq!(failures(&metrics), [3, 1, 1, 0]);
        let snapshot = metrics.snapshot();
        assert_eq!((snapshot.gets, snapshot.get_latency.count), (3, 1));
        assert_eq!((snapshot.lookups, snapshot.lookup_latency.count), (3, 1));
    }
}
