//! A store for unit tests: objects in memory or made up on the fly, small listing pages, and faults on demand.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use oss::{
    Capabilities, Checksum, ETag, Error, ErrorKind, GetOptions, GetResponse, Key, ListPage, ListRequest, Location,
    ObjectMeta, PartReceipt, PutMode, PutResponse, Result, Store, UploadId,
};

use crate::namespace::Origin;

/// What an object holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// These bytes.
    Bytes(Bytes),
    /// So many bytes of [`made_up`].
    MadeUp(u64),
}

#[derive(Debug, Clone)]
struct Stored {
    content: Content,
    etag: ETag,
    checksum: Option<Checksum>,
}

/// Faults and counters.
#[derive(Debug, Default)]
pub struct Knobs {
    pub gets: AtomicU64,
    pub heads: AtomicU64,
    pub lists: AtomicU64,
    pub bytes: AtomicU64,
    /// So many bodies break off in the middle.
    pub break_bodies: AtomicU64,
    /// So many requests are never answered.
    pub hang_next: AtomicU64,
    /// So many bodies stop in the middle for ever.
    pub stall_next: AtomicU64,
    /// Every request is refused with 403.
    pub deny: AtomicBool,
    /// If-Match is ignored, as by some servers.
    pub ignore_if_match: AtomicBool,
    /// Bodies come only after this many milliseconds.
    pub delay_ms: AtomicU64,
    /// Listings, too.
    pub list_delay_ms: AtomicU64,
    /// Listings without delimiter are refused with 403.
    pub deny_flat: AtomicBool,
    /// Nobody answers.
    pub outage: AtomicBool,
    /// Pages come in the reverse order of keys.
    pub reversed: AtomicBool,
    /// Every page is empty and not the last.
    pub endless: AtomicBool,
    /// A place to begin behind is ignored, as by some servers.
    pub ignore_start_after: AtomicBool,
}

#[derive(Debug)]
pub struct DoubleStore {
    root: Location,
    page: usize,
    objects: Mutex<BTreeMap<String, Stored>>,
    versions: AtomicU64,
    pub knobs: Knobs,
    /// What is below this is refused with 403.
    pub denied_prefix: Mutex<Option<String>>,
}

/// Byte number `at` of every made-up object.
pub fn made_up(at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

impl DoubleStore {
    pub fn new(page: usize) -> Arc<Self> {
        Arc::new(Self {
            root: "oss://double".parse().unwrap(),
            page,
            objects: Mutex::default(),
            versions: AtomicU64::new(1),
            knobs: Knobs::default(),
            denied_prefix: Mutex::default(),
        })
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Stored>> {
        self.objects.lock().unwrap()
    }

    pub fn put(&self, key: &str, content: Content) {
        let checksum = match &content {
            Content::Bytes(bytes) => Some(Checksum::Crc64(oss::crc::crc64(bytes))),
            Content::MadeUp(_) => None,
        };
        self.put_with(key, content, checksum);
    }

    pub fn put_with(&self, key: &str, content: Content, checksum: Option<Checksum>) {
        let etag = ETag(format!("\"{}\"", self.versions.fetch_add(1, Ordering::Relaxed)));
        self.objects().insert(key.to_owned(), Stored { content, etag, checksum });
    }

    pub fn with_keys(page: usize, keys: &[&str]) -> Arc<Self> {
        let store = Self::new(page);
        for key in keys {
            store.put(key, Content::Bytes(Bytes::from((*key).to_owned())));
        }
        store
    }

    pub fn remove(&self, key: &str) {
        self.objects().remove(key);
    }

    pub fn origin(self: &Arc<Self>) -> Arc<Origin> {
        let store: Arc<dyn Store> = Arc::clone(self) as Arc<dyn Store>;
        Arc::new(Origin {
            store,
            identity: "double".to_owned(),
            deadline: Duration::from_secs(5),
            peers: crate::blocks::peers::Peers::default(),
        })
    }

    fn check(&self, operation: &'static str, key: &str) -> Result<()> {
        if self.knobs.deny.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Denied, operation, self.root.with_key(key), "no"));
        }
        if self.denied_prefix.lock().unwrap().as_ref().is_some_and(|prefix| key.starts_with(prefix)) {
            return Err(Error::new(ErrorKind::Denied, operation, self.root.with_key(key), "not there"));
        }
        if self.knobs.outage.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, operation, self.root.with_key(key), "out"));
        }
        Ok(())
    }

    fn meta(&self, key: &str, listed: bool) -> Option<ObjectMeta> {
        self.objects().get(key).map(|stored| stored.meta(key, listed))
    }
}

impl Stored {
    fn meta(&self, key: &str, listed: bool) -> ObjectMeta {
        let size = match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::MadeUp(size) => *size,
        };
        ObjectMeta {
            key: Key::new(key),
            size,
            etag: Some(self.etag.clone()),
            modified: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000)),
            checksum: self.checksum.filter(|_| !listed),
            archived: false,
        }
    }
}

fn unsupported<T>(operation: &'static str) -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, operation, "oss://double/", "a mount never writes"))
}

#[async_trait]
impl Store for DoubleStore {
    fn root(&self) -> &Location {
        &self.root
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            append: false,
            max_append_size: 0,
            put_if_absent: false,
            copy_part: false,
            crc64: true,
            min_part_size: 1,
            max_part_size: 1,
            max_parts: 1,
            list_from_inside: true,
            resumable_uploads: false,
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.knobs.heads.fetch_add(1, Ordering::Relaxed);
        self.check("HEAD", key.as_str())?;
        self.meta(key.as_str(), false)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "HEAD", self.root.with_key(key.clone()), "no such key"))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResponse> {
        self.knobs.gets.fetch_add(1, Ordering::Relaxed);
        self.check("GET", key.as_str())?;
        if take_one(&self.knobs.hang_next) {
            std::future::pending::<()>().await;
        }
        let target = self.root.with_key(key.clone());
        let meta = self
            .meta(key.as_str(), false)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "GET", &target, "no such key"))?;
        let wrong = options.if_match.is_some() && options.if_match != meta.etag;
        if wrong && !self.knobs.ignore_if_match.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Changed, "GET", &target, "another ETag"));
        }
        let range = options.range.unwrap_or(0..meta.size);
        let range = range.start..range.end.min(meta.size);
        let content = self.objects().get(key.as_str()).unwrap().content.clone();
        let bytes = slice(&content, &range);
        let mut chunks: Vec<Result<Bytes>> =
            bytes.chunks(300_007).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let stall = take_one(&self.knobs.stall_next);
        if stall {
            chunks.truncate(1);
        }
        if take_one(&self.knobs.break_bodies) {
            chunks.truncate(chunks.len() / 2);
            chunks.push(Err(Error::new(ErrorKind::Unavailable, "GET", &target, "the connection broke off")));
        }
        let sent: usize = chunks.iter().flatten().map(Bytes::len).sum();
        self.knobs.bytes.fetch_add(sent as u64, Ordering::Relaxed);
        let delay = Duration::from_millis(self.knobs.delay_ms.load(Ordering::Relaxed));
        let body =
            stream::once(tokio::time::sleep(delay)).flat_map(move |()| stream::iter(std::mem::take(&mut chunks)));
        let body = if stall { body.chain(stream::pending()).boxed() } else { body.boxed() };
        Ok(GetResponse { meta, range, request_id: None, body })
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let number = self.knobs.lists.fetch_add(1, Ordering::Relaxed);
        let delay = self.knobs.list_delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        self.check("LIST", &request.prefix)?;
        if !request.delimiter && request.max_keys != Some(1) && self.knobs.deny_flat.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Denied, "LIST", &self.root, "no listing without delimiter"));
        }
        if self.knobs.endless.load(Ordering::Relaxed) {
            return Ok(ListPage { continuation: Some(number.to_string()), ..ListPage::default() });
        }
        let begin = request.start_after.filter(|_| !self.knobs.ignore_start_after.load(Ordering::Relaxed));
        let after = request.continuation.or(begin).unwrap_or_default();
        let limit = self.page.min(request.max_keys.map_or(usize::MAX, |max| max as usize));
        let mut page = ListPage::default();
        let mut last = String::new();
        let objects = self.objects();
        for (key, stored) in objects.range(request.prefix.clone()..) {
            if !key.starts_with(&request.prefix) {
                break;
            }
            let rest = &key[request.prefix.len()..];
            let rolled = rest.find('/').filter(|_| request.delimiter).map(|at| &key[..=request.prefix.len() + at]);
            let entry = rolled.unwrap_or(key);
            if entry <= after.as_str() || entry == last {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == limit {
                page.continuation = Some(last);
                break;
            }
            last = entry.to_owned();
            match rolled {
                Some(prefix) => page.prefixes.push(prefix.to_owned()),
                None => page.objects.push(stored.meta(key, true)),
            }
        }
        if self.knobs.reversed.load(Ordering::Relaxed) {
            page.objects.reverse();
            page.prefixes.reverse();
        }
        Ok(page)
    }

    async fn put(&self, _: &Key, _: Bytes, _: PutMode) -> Result<PutResponse> {
        unsupported("PUT")
    }

    async fn create_multipart(&self, _: &Key) -> Result<UploadId> {
        unsupported("POST")
    }

    async fn put_part(&self, _: &Key, _: &UploadId, _: u32, _: Bytes) -> Result<PartReceipt> {
        unsupported("PUT")
    }

    async fn copy_part(&self, _: &Key, _: &UploadId, _: u32, _: &Key, _: Range<u64>, _: u64) -> Result<PartReceipt> {
        unsupported("PUT")
    }

    async fn complete_multipart(&self, _: &Key, _: &UploadId, _: &[PartReceipt], _: PutMode) -> Result<PutResponse> {
        unsupported("POST")
    }

    async fn abort_multipart(&self, _: &Key, _: &UploadId) -> Result<()> {
        unsupported("DELETE")
    }

    async fn delete(&self, _: &Key) -> Result<()> {
        unsupported("DELETE")
    }

    async fn copy(&self, _: &Key, _: &Key) -> Result<PutResponse> {
        unsupported("COPY")
    }
}

fn take_one(knob: &AtomicU64) -> bool {
    knob.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

fn slice(content: &Content, range: &Range<u64>) -> Vec<u8> {
    match content {
        Content::Bytes(bytes) => bytes[range.start as usize..range.end as usize].to_vec(),
        Content::MadeUp(_) => range.clone().map(made_up).collect(),
    }
}
