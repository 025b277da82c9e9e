//! The one interface that mounts, transfers and growing objects use.
//!
//! A [`Store`] is one bucket (or, for `file://`, the whole local tree). Implementations are
//! [`RestStore`](crate::rest::RestStore) for OSS and S3 and [`ForeignStore`](crate::foreign::ForeignStore) for the rest.
//! Methods are single requests with their retries; what needs several requests (uploads of files, whole downloads,
//! growing objects) is built on top and works for every store.

use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location};

/// An entity tag as the store wrote it, quotes included where it sent them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct ETag(pub String);

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checksum of a whole object, as far as the store keeps one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// CRC-64/XZ, which OSS keeps for every object.
    Crc64(u64),
    /// CRC-64/NVME over the full object, S3's default.
    Crc64Nvme(u64),
    /// MD5: S3 and OSS give it as the ETag of objects put in one piece without encryption.
    Md5([u8; 16]),
}

/// What is known of an object without reading it.
#[derive(Debug, Clone)]
pub struct ObjectMeta {
    /// Its key.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// Its entity tag, where the store has them.
    pub etag: Option<ETag>,
    /// When it was last written.
    pub modified: Option<SystemTime>,
    /// A checksum of the whole object; listings have none.
    pub checksum: Option<Checksum>,
    /// Whether it must be restored from an archive tier before it can be read.
    pub archived: bool,
}

/// Which bytes to get, and of which version.
#[derive(Debug, Clone, Default)]
pub struct GetOptions {
    /// The bytes wanted, `start..end`; all when absent. An end past the object's is cut off, a start past it is
    /// [`ErrorKind::Invalid`].
    pub range: Option<Range<u64>>,
    /// Fail with [`ErrorKind::Changed`] unless the object still has this entity tag.
    pub if_match: Option<ETag>,
}

/// The answer to a get: the object's metadata and a stream of the bytes asked for.
///
/// The stream fails rather than end early: a body shorter than announced is an error. A whole object (no range)
/// whose checksum the store sent is verified, and the stream's last item is [`ErrorKind::Corrupt`] when it is wrong.
pub struct GetResponse {
    /// The whole object's metadata.
    pub meta: ObjectMeta,
    /// Which bytes follow.
    pub range: Range<u64>,
    /// The store's name for the request, for log lines about these bytes; none where the store gives none (files, Google,
    /// Azure). A body that broke off and was taken up again came by further requests: the error that a body ends with names the
    /// last of them.
    pub request_id: Option<String>,
    /// The bytes.
    pub body: BoxStream<'static, Result<Bytes>>,
}

impl fmt::Debug for GetResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetResponse")
            .field("meta", &self.meta)
            .field("range", &self.range)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

impl GetResponse {
    /// Collects the body. The caller has bounded its size by the range or knows the object to be small.
    ///
    /// # Errors
    /// Whatever the body fails with.
    pub async fn bytes(mut self) -> Result<Bytes> {
        let Some(first) = self.body.next().await.transpose()? else {
            return Ok(Bytes::new());
        };
        let Some(second) = self.body.next().await.transpose()? else {
            return Ok(first);
        };
        let expected = usize::try_from(self.range.end - self.range.start).unwrap_or(0);
        let mut all = BytesMut::with_capacity(expected.max(first.len() + second.len()));
        all.extend_from_slice(&first);
        all.extend_from_slice(&second);
        while let Some(chunk) = self.body.next().await.transpose()? {
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }
}

/// Whether a write may replace what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PutMode {
    /// Replace it.
    #[default]
    Overwrite,
    /// Fail with [`ErrorKind::AlreadyExists`].
    IfAbsent,
}

/// The answer to a completed write.
#[derive(Debug, Clone, Default)]
pub struct PutResponse {
    /// The new object's entity tag.
    pub etag: Option<ETag>,
    /// The whole object's checksum as the store computed it.
    pub checksum: Option<Checksum>,
}

/// The store's name for a multipart upload in progress.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct UploadId(pub String);

/// Proof that a part has arrived.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartReceipt {
    /// 1 to [`Capabilities::max_parts`].
    pub number: u32,
    /// The part's entity tag, quoted back on completion.
    pub etag: String,
    /// The part's length in bytes.
    pub size: u64,
    /// CRC-64/XZ of what we sent, to be combined and compared with the whole's on OSS.
    pub crc64: u64,
    /// The part's CRC-64/NVME, which Amazon's S3 wants combined on completion. None from stores that do not have it.
    #[serde(default)]
    pub crc64_nvme: Option<u64>,
}

/// A part of an upload in progress, as the store tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartMeta {
    /// Its number.
    pub number: u32,
    /// Its length in bytes.
    pub size: u64,
    /// Its entity tag, as its receipt had it but perhaps for the quotes.
    pub etag: String,
    /// Its checksum as the store computed it, where it tells one. Never an MD5.
    pub checksum: Option<Checksum>,
}

/// A page of an upload's parts, in the order of their numbers.
#[derive(Debug, Clone, Default)]
pub struct PartPage {
    /// The parts.
    pub parts: Vec<PartMeta>,
    /// The number to ask for the next page with; absent on the last.
    pub continuation: Option<u32>,
}

/// An upload that was neither completed nor given up, as the store tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadMeta {
    /// The object it is going to be.
    pub key: Key,
    /// The upload.
    pub id: UploadId,
    /// When it was begun, by the store's clock and perhaps in whole seconds.
    pub initiated: Option<SystemTime>,
}

/// Where a page of open uploads ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadMarker {
    /// The last upload's key.
    pub key: Key,
    /// Its id.
    pub id: UploadId,
}

/// A page of open uploads, by their keys.
#[derive(Debug, Clone, Default)]
pub struct UploadPage {
    /// The uploads.
    pub uploads: Vec<UploadMeta>,
    /// What to ask for the next page with; absent on the last.
    pub continuation: Option<UploadMarker>,
}

/// One page of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Roll keys up at the first `/` after the prefix.
    pub delimiter: bool,
    /// Only what sorts behind this, by UTF-8 bytes: objects by their keys, and with a delimiter the prefixes by themselves, so that
    /// behind `a/b` there is no `a/`. It need not be a key that exists. Heeded on the first page and ignored with a
    /// continuation, which knows where it began. Google and Azure are asked for the pages before it, too.
    pub start_after: Option<String>,
    /// Where the page before this one ended.
    pub continuation: Option<String>,
    /// At most this many entries; the store's own limit (1000) when absent.
    pub max_keys: Option<u32>,
}

impl ListRequest {
    /// What the page must lie behind: [`start_after`](Self::start_after) unless there is a continuation.
    pub(crate) fn behind(&self) -> Option<&str> {
        self.start_after.as_deref().filter(|after| self.continuation.is_none() && !after.is_empty())
    }
}

/// What a page of a listing holds. It can be empty and not the last.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// Objects, in the store's order (by UTF-8 bytes on OSS and S3).
    pub objects: Vec<ObjectMeta>,
    /// With a delimiter, the prefixes keys were rolled up to, each ending in `/`.
    pub prefixes: Vec<String>,
    /// What to ask for the next page with; absent on the last.
    pub continuation: Option<String>,
}

/// The answer to an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendResponse {
    /// The object's length now, where the next append begins, in bytes.
    pub next_position: u64,
    /// CRC-64/XZ of the whole object now.
    pub crc64: Option<u64>,
}

/// What a store can do. Callers choose by this and never by scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// [`Store::append`] works.
    pub append: bool,
    /// The longest an appended object may become, in bytes.
    pub max_append_size: u64,
    /// [`PutMode::IfAbsent`] is atomic.
    pub put_if_absent: bool,
    /// [`Store::copy_part`] works.
    pub copy_part: bool,
    /// The store verifies or returns a CRC-64/XZ of the whole object.
    pub crc64: bool,
    /// The shortest part but the last, in bytes.
    pub min_part_size: u64,
    /// The longest part, in bytes.
    pub max_part_size: u64,
    /// The most parts in an upload.
    pub max_parts: u32,
    /// [`ListRequest::start_after`] costs nothing extra; elsewhere the pages before it are asked for and skipped.
    pub list_from_inside: bool,
    /// A multipart upload outlives whoever began it, and [`Store::list_parts`] tells what has arrived of it, so that another can go on.
    pub resumable_uploads: bool,
}

/// A bucket.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The bucket, as a location with an empty key.
    fn root(&self) -> &Location;

    /// What the store can do.
    fn capabilities(&self) -> Capabilities;

    /// An object's metadata.
    async fn head(&self, key: &Key) -> Result<ObjectMeta>;

    /// An object's bytes, or some of them.
    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResponse>;

    /// Writes an object in one piece. Verified by checksum on arrival.
    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<PutResponse>;

    /// Begins a multipart upload; the object appears when it is completed.
    async fn create_multipart(&self, key: &Key) -> Result<UploadId>;

    /// Sends a part. Parts may be sent in any order and at once; sending a number again replaces the part.
    async fn put_part(&self, key: &Key, upload: &UploadId, number: u32, body: Bytes) -> Result<PartReceipt>;

    /// Makes a part from `range` of an object of the same bucket, on the server. The caller states the range's CRC-64/XZ.
    async fn copy_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        source: &Key,
        range: Range<u64>,
        crc64: u64,
    ) -> Result<PartReceipt>;

    /// Puts the parts together, in the order of their numbers, and verifies the whole by checksum where the store keeps one.
    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<PutResponse>;

    /// Gives a multipart upload up and frees its parts. An upload that is gone already is a success.
    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<()>;

    /// One page of an upload's parts: those with numbers above `after`, 0 for the first page.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an upload that was completed or given up, [`ErrorKind::Unsupported`] where the store cannot tell.
    async fn list_parts(&self, key: &Key, upload: &UploadId, after: u32) -> Result<PartPage> {
        let _ = (upload, after);
        Err(untold("LIST-PARTS", self.root().with_key(key.clone())))
    }

    /// One page of the uploads in progress, everybody's, to keys that begin with `prefix`; those behind `after`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the store cannot tell.
    async fn list_uploads(&self, prefix: &str, after: Option<&UploadMarker>) -> Result<UploadPage> {
        let _ = after;
        Err(untold("LIST-UPLOADS", self.root().with_key(prefix)))
    }

    /// One page of a listing. A listing of a prefix that does not exist is empty; of a bucket that does not exist it fails.
    async fn list(&self, request: ListRequest) -> Result<ListPage>;

    /// Removes an object. One that is gone already is a success.
    async fn delete(&self, key: &Key) -> Result<()>;

    /// Copies an object within the bucket, on the server.
    async fn copy(&self, from: &Key, to: &Key) -> Result<PutResponse>;

    /// Adds `body` to the end of an appendable object, which must be `position` bytes long; creates it at position 0.
    /// Not retried after a reply was lost: [`GrowingObject`](crate::growing::GrowingObject) recovers by comparing length and CRC.
    ///
    /// # Errors
    /// [`ErrorKind::PositionMismatch`], [`ErrorKind::NotAppendable`], [`ErrorKind::Unsupported`].
    async fn append(&self, key: &Key, position: u64, body: Bytes) -> Result<AppendResponse> {
        let _ = (position, body);
        Err(Error::new(
            ErrorKind::Unsupported,
            "APPEND",
            self.root().with_key(key.clone()),
            "this store has no append operation",
        ))
    }
}

fn untold(operation: &'static str, location: Location) -> Error {
    Error::new(ErrorKind::Unsupported, operation, location, "this store does not tell which uploads are in progress")
}
