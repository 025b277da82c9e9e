//! The REST client for OSS and S3.
//!
//! Both speak one XML dialect under two signatures; where they differ is said at the place that differs. The layers, from the
//! bottom: `endpoint` says where a bucket is, `channel` sends signed requests and tries again, `refusal` says what a failure
//! means, `reader` makes one stream of a download, `listing` and `writing` are the operations.
//!
//! Every upload is verified on arrival, and every download of a whole object: by CRC-64 on OSS, by CRC-64/NVME or MD5 on S3
//! (uploads over plain HTTP by the SHA-256 that is signed).

mod call;
mod channel;
mod clock;
mod digest;
pub(crate) mod endpoint;
mod fault;
mod listing;
mod meter;
mod names;
mod page;
mod reader;
mod refusal;
mod retry;
mod uploads;
#[cfg(test)]
mod wire;
mod writing;
mod xml;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::Method;
use http::header::{CONTENT_LENGTH, ETAG, LAST_MODIFIED};

use crate::error::{Error, ErrorKind, Result};
use crate::http::HttpClient;
use crate::location::{Key, Location};
use crate::settings::StoreSettings;
use crate::store::{
    AppendResponse, Capabilities, ETag, GetOptions, GetResponse, ListPage, ListRequest, ObjectMeta, PartPage,
    PartReceipt, PutMode, PutResponse, Store, UploadId, UploadMarker, UploadPage,
};
use call::{Call, Dialect, Expect, Reply};
use channel::Channel;
use fault::{Failure, Fault};
use reader::{Reader, Served, Source, served};

/// Whole objects up to this size, in bytes, are read and verified before anything is handed out, so that a wrong checksum costs a
/// second request and no error.
const VERIFY_FIRST: u64 = 1 << 20;

/// A bucket of OSS or S3.
#[derive(Debug)]
pub struct RestStore {
    channel: Arc<Channel>,
    /// Whether anything in the bucket was ever found, after which a missing object is not a missing bucket.
    bucket_seen: AtomicBool,
}

impl RestStore {
    /// The bucket of `root` (its key is ignored). Nothing is sent yet.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when endpoint, region and addressing contradict each other, [`ErrorKind::BadCredentials`] for
    /// an empty access key.
    pub fn open(root: &Location, settings: &StoreSettings) -> Result<Self> {
        Self::with_client(root, settings, HttpClient::new(settings.timeouts.connect))
    }

    /// The same, with the connections of `http`.
    pub(crate) fn with_client(root: &Location, settings: &StoreSettings, http: HttpClient) -> Result<Self> {
        let channel = Arc::new(Channel::open(root.with_key(""), settings.clone(), http)?);
        Ok(Self { channel, bucket_seen: AtomicBool::new(false) })
    }

    /// Carries out a call whose success needs no checking.
    async fn plain(&self, call: &Call<'_>) -> Result<Reply, Failure> {
        self.channel.run(call, self.channel.deadline(), &|_| Ok(())).await
    }

    fn is_oss(&self) -> bool {
        self.channel.dialect() == Dialect::Oss
    }

    /// `HEAD`, with the object's checksum where the store keeps one. S3 tells it only when asked, and refuses that for an object
    /// under KMS to those who have no right to decrypt; they are told the rest.
    async fn head_object(&self, key: &Key) -> Result<ObjectMeta> {
        let call = || Call::new("HEAD", Method::HEAD, Some(key));
        if self.is_oss() {
            return self.head_call(key, call()).await;
        }
        match self.head_call(key, call().header("x-amz-checksum-mode", "ENABLED")).await {
            Err(error) if *error.kind() == ErrorKind::Denied => self.head_call(key, call()).await,
            told => told,
        }
    }

    async fn head_call(&self, key: &Key, mut call: Call<'_>) -> Result<ObjectMeta> {
        call.expect = Expect::Stream;
        match self.channel.run(&call, self.channel.deadline(), &check_length).await {
            Ok(reply) => {
                self.bucket_seen.store(true, Ordering::Relaxed);
                let size = length(&reply).unwrap_or_default();
                Ok(self.meta(key, &reply, size))
            }
            Err(failure) => Err(self.explain_missing(key, failure.error).await),
        }
    }

    /// A `HEAD` of S3 cannot say whether it is the object or the bucket that does not exist. Asks once.
    async fn explain_missing(&self, key: &Key, error: Error) -> Error {
        if *error.kind() != ErrorKind::NotFound || error.code().is_some() || self.bucket_seen.load(Ordering::Relaxed) {
            return error;
        }
        let mut call = Call::new("HEAD", Method::HEAD, None);
        call.expect = Expect::Stream;
        match self.plain(&call).await {
            Err(failure) if failure.error.is_not_found() => {
                let why = "there is no such bucket";
                self.channel.error(ErrorKind::NoSuchBucket, "HEAD", Some(key), why).with_status(404, None)
            }
            _ => {
                self.bucket_seen.store(true, Ordering::Relaxed);
                error
            }
        }
    }

    fn meta(&self, key: &Key, reply: &Reply, size: u64) -> ObjectMeta {
        ObjectMeta {
            key: key.clone(),
            size,
            etag: reply.header(ETAG).map(|etag| ETag(etag.to_owned())),
            modified: reply.header(LAST_MODIFIED).and_then(|text| httpdate::parse_http_date(text).ok()),
            checksum: digest::of_answer(self.channel.dialect(), &reply.headers),
            archived: self.of_class(reply).is_some_and(|class| is_archived(class, self.restoration(reply))),
        }
    }

    fn of_class<'r>(&self, reply: &'r Reply) -> Option<&'r str> {
        reply.header(if self.is_oss() { &names::OSS_STORAGE_CLASS } else { &names::S3_STORAGE_CLASS })
    }

    fn restoration<'r>(&self, reply: &'r Reply) -> &'r str {
        let name = if self.is_oss() { &names::OSS_RESTORE } else { &names::S3_RESTORE };
        reply.header(name).unwrap_or_default()
    }

    /// One attempt at a `GET` as the caller sees it.
    async fn get_once(&self, key: &Key, options: &GetOptions) -> Result<GetResponse> {
        let channel = &self.channel;
        let call = reader::request(channel.dialect(), key, options.range.as_ref(), options.if_match.as_ref());
        let wanted = options.range.as_ref();
        let check = |reply: &Reply| {
            let Served { range, size } = served(reply).map_err(|why| Fault::in_answer(ErrorKind::Unavailable, why))?;
            let Some(wanted) = wanted else {
                let whole = range == (0..size);
                return if whole { Ok(()) } else { Err(Fault::in_answer(ErrorKind::Unavailable, "only a part came")) };
            };
            if wanted.start >= size {
                let why = format!("the range begins at byte {} and the object is {size} bytes long", wanted.start);
                return Err(Fault::in_answer(ErrorKind::Invalid, why));
            }
            let covered = range.start <= wanted.start && wanted.end.min(size) <= range.end;
            if covered {
                Ok(())
            } else {
                Err(Fault::in_answer(ErrorKind::Unavailable, "another part came than was asked for"))
            }
        };
        let reply = channel.run(&call, channel.deadline(), &check).await?;
        self.bucket_seen.store(true, Ordering::Relaxed);
        let unreadable = |why: String| channel.error(ErrorKind::Unavailable, "GET", Some(key), why);
        let from = served(&reply).map_err(unreadable)?;
        let meta = self.meta(key, &reply, from.size);
        let range = wanted.map_or(0..from.size, |wanted| wanted.start..wanted.end.min(from.size));
        let whole = range == (0..from.size);
        let request_id = refusal::request_id(&reply.headers).map(str::to_owned);
        let body = reply.stream.ok_or_else(|| unreadable("the answer had no body".to_owned()))?;
        let checksum = meta.checksum.filter(|_| whole);
        let source = Source { etag: meta.etag.clone(), request_id: request_id.clone(), checksum };
        let reader = Reader::new(Arc::clone(channel), key.clone(), source, range.clone(), &from.range, body);
        if whole && from.size <= VERIFY_FIRST {
            let bytes = reader.collect().await?;
            let chunks = if bytes.is_empty() { vec![] } else { vec![Ok(bytes)] };
            return Ok(GetResponse { meta, range, request_id, body: stream::iter(chunks).boxed() });
        }
        Ok(GetResponse { meta, range, request_id, body: reader.boxed() })
    }
}

/// The length that an answer to `HEAD` names.
fn length(reply: &Reply) -> Option<u64> {
    reply.header(CONTENT_LENGTH)?.trim().parse().ok()
}

fn check_length(reply: &Reply) -> Result<(), Fault> {
    let missing = || Fault::in_answer(ErrorKind::Unavailable, "the answer does not say how long the object is");
    length(reply).map(|_| ()).ok_or_else(missing)
}

/// Whether an object of this storage class has to be restored first, given what is known about a restoration.
fn is_archived(class: &str, restore: &str) -> bool {
    // Not GLACIER_IR, which is readable at once. OSS writes `Archive`, `ColdArchive`, `DeepColdArchive`.
    let archived = matches!(class, "GLACIER" | "DEEP_ARCHIVE" | "Archive" | "ColdArchive" | "DeepColdArchive");
    archived && !restore.contains("ongoing-request=\"false\"")
}

#[async_trait]
impl Store for RestStore {
    fn root(&self) -> &Location {
        self.channel.root()
    }

    fn capabilities(&self) -> Capabilities {
        let oss = self.is_oss();
        Capabilities {
            append: oss,
            // The vendor's limit for one appendable object.
            max_append_size: if oss { 5 << 30 } else { 0 },
            put_if_absent: true,
            copy_part: true,
            crc64: oss,
            min_part_size: if oss { 100 << 10 } else { 5 << 20 },
            max_part_size: 5 << 30,
            max_parts: 10_000,
            list_from_inside: true,
            resumable_uploads: true,
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.head_object(key).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResponse> {
        if let Some(range) = &options.range
            && range.is_empty()
        {
            return self.get_nothing(key, range, options.if_match.as_ref()).await;
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.get_once(key, &options).await {
                Err(error) if reader::is_corrupt(&error) && attempt < retry::FEW => {
                    tracing::warn!(%error, "a download arrived with wrong bytes; fetching it again");
                }
                other => return other.map_err(|error| error.with_attempts_if_more(attempt)),
            }
        }
    }

    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<PutResponse> {
        self.put_object(key, body, mode).await
    }

    async fn create_multipart(&self, key: &Key) -> Result<UploadId> {
        self.initiate(key).await
    }

    async fn put_part(&self, key: &Key, upload: &UploadId, number: u32, body: Bytes) -> Result<PartReceipt> {
        self.upload_part(key, upload, number, body).await
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
        self.upload_part_copy(key, upload, number, source, range, Some(crc64)).await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<PutResponse> {
        self.complete(key, upload, parts, mode, true).await
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<()> {
        self.abort(key, upload).await
    }

    async fn list_parts(&self, key: &Key, upload: &UploadId, after: u32) -> Result<PartPage> {
        self.parts_page(key, upload, after).await
    }

    async fn list_uploads(&self, prefix: &str, after: Option<&UploadMarker>) -> Result<UploadPage> {
        self.uploads_page(prefix, after).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let page = self.list_page(request).await?;
        self.bucket_seen.store(true, Ordering::Relaxed);
        Ok(page)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        match self.plain(&Call::new("DELETE", Method::DELETE, Some(key))).await {
            Ok(_) => Ok(()),
            Err(failure) if *failure.error.kind() == ErrorKind::NotFound => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<PutResponse> {
        self.copy_object(from, to).await
    }

    async fn append(&self, key: &Key, position: u64, body: Bytes) -> Result<AppendResponse> {
        self.append_object(key, position, body).await
    }
}

impl RestStore {
    /// No bytes of an object, which HTTP cannot ask for: its metadata under the same conditions.
    async fn get_nothing(&self, key: &Key, range: &Range<u64>, if_match: Option<&ETag>) -> Result<GetResponse> {
        let meta = self.head(key).await?;
        let failed = |kind, why: String| Err(self.channel.error(kind, "GET", Some(key), why));
        if let (Some(want), Some(have)) = (if_match, &meta.etag)
            && digest::bare(&want.0) != digest::bare(&have.0)
        {
            return failed(ErrorKind::Changed, "the object was replaced".to_owned());
        }
        if range.start > range.end || range.start > meta.size {
            return failed(
                ErrorKind::Invalid,
                format!("no range {}..{} in {} bytes", range.start, range.end, meta.size),
            );
        }
        Ok(GetResponse { meta, range: range.clone(), request_id: None, body: stream::empty().boxed() })
    }
}

/// A time as listings write it.
fn parse_time(text: &str) -> Option<SystemTime> {
    text.trim().parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}
