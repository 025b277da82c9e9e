//! A local file becomes an object.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use md5::{Digest, Md5};

use super::budget::Open;
use super::buffers::Buffers;
use super::plan::{part_size, pieces};
use super::{Progress, TransferBudget, blocking, local};
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location};
use crate::store::{Checksum, ETag, PartReceipt, PutMode, PutResponse, Store, UploadId};
use crate::sums::Sums;

const OPERATION: &str = "UPLOAD";
/// How long a failed upload waits for the store to free its parts.
const ABORT_PATIENCE: Duration = Duration::from_secs(30);

/// How an upload is done.
#[derive(Clone)]
pub struct UploadOptions {
    /// Whether to replace an object that is there.
    pub mode: PutMode,
    /// Files up to this many bytes are sent in one request: 16 MiB.
    pub single_limit: u64,
    /// The length of parts in bytes where the store has no other wishes: 16 MiB.
    pub part_size: u64,
    /// Is told how much has arrived.
    pub progress: Option<Progress>,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self { mode: PutMode::Overwrite, single_limit: 16 << 20, part_size: 16 << 20, progress: None }
    }
}

impl fmt::Debug for UploadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadOptions").field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// A file that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// Its length in bytes.
    pub size: u64,
    /// The CRC-64/XZ of what was sent.
    pub crc64: u64,
    /// The new object's entity tag.
    pub etag: Option<ETag>,
}

/// Sends the first `size` bytes of `file`, which are all of it, to the object `key`.
///
/// The caller has opened the file and so answers for whose it is: with `O_NOFOLLOW` and a look at its type where others
/// can write to the directory. The object appears whole at the end; on failure, and when the future is dropped, the
/// parts that were sent are given up (as far as the store can still be reached).
///
/// # Errors
/// [`ErrorKind::Changed`] when the file was written to meanwhile, [`ErrorKind::LocalFile`] when it cannot be read,
/// [`ErrorKind::Corrupt`] when the store received something else, [`ErrorKind::AlreadyExists`] by [`UploadOptions::mode`],
/// [`ErrorKind::Invalid`] when the file is larger than an object can be, and the store's own.
pub async fn upload(
    store: &Arc<dyn Store>,
    key: &Key,
    file: File,
    size: u64,
    options: &UploadOptions,
    budget: &TransferBudget,
) -> Result<Uploaded> {
    let location = store.root().with_key(key.clone());
    let source = Arc::new(Source::new(location, file, size)?);
    if size <= options.single_limit {
        in_one_piece(store, key, &source, options, budget).await
    } else {
        in_parts(store, key, &source, options, budget).await
    }
}

async fn in_one_piece(
    store: &Arc<dyn Store>,
    key: &Key,
    source: &Arc<Source>,
    options: &UploadOptions,
    budget: &TransferBudget,
) -> Result<Uploaded> {
    let _lease = budget.lease(source.size).await;
    let (bytes, sums) = source.read(0..source.size).await?;
    source.check_unchanged()?;
    let answer = store.put(key, bytes.clone(), options.mode).await?;
    if let Some(Checksum::Md5(md5)) = answer.checksum
        && Md5::digest(&bytes)[..] != md5
    {
        return Err(corrupt(&source.location));
    }
    if let Some(progress) = &options.progress {
        progress(source.size);
    }
    arrived(source, sums, answer)
}

async fn in_parts(
    store: &Arc<dyn Store>,
    key: &Key,
    source: &Arc<Source>,
    options: &UploadOptions,
    budget: &TransferBudget,
) -> Result<Uploaded> {
    let length = part_size(source.size, options.part_size, &store.capabilities()).ok_or_else(|| {
        let message = format!("{} bytes are more than an object of this store can hold", source.size);
        Error::new(ErrorKind::Invalid, OPERATION, &source.location, message)
    })?;
    let mut upload = InProgress::begin(store, key, budget.open()).await?;
    let result = async {
        let (receipts, whole) = send_parts(&upload, source, length, options, budget).await?;
        source.check_unchanged()?;
        let answer = match store.complete_multipart(key, &upload.id, &receipts, options.mode).await {
            Err(error) => arrived_after_all(store, key, &whole, error).await?,
            Ok(answer) => answer,
        };
        Ok((whole, answer))
    }
    .await;
    match result {
        Ok((whole, answer)) => {
            upload.done();
            arrived(source, whole, answer)
        }
        Err(error) => {
            upload.abort().await;
            Err(error)
        }
    }
}

async fn send_parts(
    upload: &InProgress,
    source: &Arc<Source>,
    length: u64,
    options: &UploadOptions,
    budget: &TransferBudget,
) -> Result<(Vec<PartReceipt>, Sums)> {
    let sent = AtomicU64::new(0);
    let send = |(index, range): (usize, Range<u64>)| {
        let sent = &sent;
        let part = async move {
            // The plan keeps the number of parts below the store's maximum, which is a u32.
            let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
            let _lease = budget.lease(range.end - range.start).await;
            let (bytes, sums) = source.read(range).await?;
            let receipt = upload.store.put_part(&upload.key, &upload.id, number, bytes).await?;
            if (receipt.crc64, receipt.size) != (sums.crc64, sums.size) {
                return Err(corrupt(&source.location));
            }
            let sent = sent.fetch_add(sums.size, Ordering::Relaxed) + sums.size;
            if let Some(progress) = &options.progress {
                progress(sent);
            }
            Ok((receipt, sums))
        };
        part.boxed()
    };
    // In the order of their numbers, although they go up as they may.
    let parts: Vec<_> = stream::iter(pieces(source.size, length).enumerate())
        .map(send)
        .buffered(budget.concurrency())
        .try_collect()
        .await?;
    let whole = parts.iter().fold(Sums::default(), |whole, (_, sums)| whole.then(*sums));
    Ok((parts.into_iter().map(|(receipt, _)| receipt).collect(), whole))
}

/// When the answer to the completion was lost, the object may be there all the same: if it is what we sent, by the
/// store's own checksum, all is well.
async fn arrived_after_all(store: &Arc<dyn Store>, key: &Key, whole: &Sums, error: Error) -> Result<PutResponse> {
    // A store that has carried out the completion no longer knows the upload when it is asked again.
    if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Throttled { .. } | ErrorKind::NotFound) {
        return Err(error);
    }
    match store.head(key).await {
        Ok(meta) if meta.size == whole.size && whole.agree(meta.checksum) == Some(true) => {
            tracing::info!(
                "{} is complete although its completion failed ({error})",
                store.root().with_key(key.clone()).escaped()
            );
            Ok(PutResponse { etag: meta.etag, checksum: meta.checksum })
        }
        _ => Err(error),
    }
}

fn arrived(source: &Source, sums: Sums, answer: PutResponse) -> Result<Uploaded> {
    if sums.agree(answer.checksum) == Some(false) {
        return Err(corrupt(&source.location));
    }
    Ok(Uploaded { size: sums.size, crc64: sums.crc64, etag: answer.etag })
}

fn corrupt(location: &Location) -> Error {
    let message = "the store received other bytes than were sent, by checksum; what it holds now is not to be used: \
                   upload the file again";
    Error::new(ErrorKind::Corrupt, OPERATION, location, message)
}

/// The local file.
struct Source {
    location: Location,
    file: File,
    size: u64,
    /// Length and time of the last change, which a write during the upload would change.
    stamp: (u64, i64, i64),
    /// What its parts are read into.
    buffers: Buffers,
}

impl Source {
    fn new(location: Location, file: File, size: u64) -> Result<Self> {
        let mut source = Self { location, file, size, stamp: (size, 0, 0), buffers: Buffers::default() };
        source.stamp = source.stamp_now()?;
        if source.stamp.0 != size {
            return Err(source.changed());
        }
        Ok(source)
    }

    fn stamp_now(&self) -> Result<(u64, i64, i64)> {
        let metadata = self.file.metadata().map_err(|error| self.unreadable(error))?;
        Ok((metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    }

    fn check_unchanged(&self) -> Result<()> {
        if self.stamp_now()? == self.stamp { Ok(()) } else { Err(self.changed()) }
    }

    /// These bytes and their checksums.
    async fn read(self: &Arc<Self>, range: Range<u64>) -> Result<(Bytes, Sums)> {
        let source = Arc::clone(self);
        blocking(OPERATION, &self.location, move || {
            let length = usize::try_from(range.end - range.start)
                .map_err(|_| source.unreadable(io::ErrorKind::OutOfMemory.into()))?;
            let bytes = source.buffers.fill(length, |buffer| source.file.read_exact_at(buffer, range.start));
            let bytes = bytes.map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => source.changed(),
                _ => source.unreadable(error),
            })?;
            let sums = Sums::of(&bytes);
            Ok((bytes, sums))
        })
        .await?
    }

    fn unreadable(&self, error: io::Error) -> Error {
        local(OPERATION, &self.location, "the local file cannot be read", error)
    }

    fn changed(&self) -> Error {
        let message = "the local file was written to while it was being uploaded; let its writer finish first";
        Error::new(ErrorKind::Changed, OPERATION, &self.location, message)
    }
}

/// An upload whose parts are given up unless it is done.
struct InProgress {
    store: Arc<dyn Store>,
    key: Key,
    id: UploadId,
    /// Until it is done.
    open: Option<Open>,
}

impl InProgress {
    /// Begins one. A caller that is dropped meanwhile leaves nothing behind: the answer is waited for, because only it says
    /// which upload is to be given up.
    async fn begin(store: &Arc<dyn Store>, key: &Key, open: Open) -> Result<Self> {
        let (store, key) = (Arc::clone(store), key.clone());
        let location = store.root().with_key(key.clone());
        let begun = tokio::spawn(async move {
            let id = store.create_multipart(&key).await?;
            Ok(Self { store, key, id, open: Some(open) })
        });
        begun.await.map_err(|error| {
            let message = "the upload was given up because the program is ending, or failed inside";
            Error::new(ErrorKind::Unavailable, OPERATION, location, message).with_source(error)
        })?
    }

    fn done(&mut self) {
        self.open = None;
    }

    async fn abort(&mut self) {
        // Dropped half way, it is given up once more, which does no harm.
        give_up(Arc::clone(&self.store), self.key.clone(), self.id.clone()).await;
        self.done();
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        // Without a runtime the program is ending, and the bucket's own rule for unfinished uploads has to do.
        if let (Some(open), Ok(runtime)) = (self.open.take(), tokio::runtime::Handle::try_current()) {
            let given_up = give_up(Arc::clone(&self.store), self.key.clone(), self.id.clone());
            runtime.spawn(async move {
                given_up.await;
                drop(open);
            });
        }
    }
}

async fn give_up(store: Arc<dyn Store>, key: Key, id: UploadId) {
    let why = match tokio::time::timeout(ABORT_PATIENCE, store.abort_multipart(&key, &id)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the store did not answer in time".to_owned(),
    };
    let location = store.root().with_key(key).escaped();
    tracing::warn!(
        "the parts of an upload to {location} that was given up stay in the bucket and cost money until its lifecycle \
         rule for unfinished uploads removes them: {why}"
    );
}
