//! A local file becomes an object.

mod ahead;
mod resume;
mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use md5::{Digest, Md5};

pub use self::ahead::PartsAhead;
use self::resume::{Found, find};
pub use self::resume::{OpenUpload, SentPart, UploadJournal};
pub use self::source::FileStamp;
use self::source::Source;
use super::budget::Open;
use super::plan::{part_size, pieces};
use super::{Progress, TransferBudget, blocking};
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
    /// Where an upload in parts is written down, where the store can tell another process what has arrived of it.
    pub journal: Option<Arc<dyn UploadJournal>>,
    /// What the journal says was begun before: it is gone on with if the file is still the same, else given up. Then the file is sent in
    /// parts, however small it is.
    pub resume: Option<OpenUpload>,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self {
            mode: PutMode::Overwrite,
            single_limit: 16 << 20,
            part_size: 16 << 20,
            progress: None,
            journal: None,
            resume: None,
        }
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
    if size <= options.single_limit && options.resume.is_none() {
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
    if let Some(open) = &options.resume {
        match go_on(store, key, source, open, options, budget).await {
            Ok(Some(uploaded)) => return Ok(uploaded),
            Ok(None) => {}
            // What was written down and what the store holds do not fit together after all.
            Err(error) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Corrupt) => {
                tracing::warn!("an upload that was begun before is begun anew: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    if options.resume.is_some() && source.size <= options.single_limit {
        return in_one_piece(store, key, source, options, budget).await;
    }
    let length = part_size(source.size, options.part_size, &store.capabilities()).ok_or_else(|| {
        let message = format!("{} bytes are more than an object of this store can hold", source.size);
        Error::new(ErrorKind::Invalid, OPERATION, &source.location, message)
    })?;
    let journal = options.journal.clone().filter(|_| store.capabilities().resumable_uploads);
    let upload = InProgress::begin(store, key, (source.stamp, length), journal, budget.open()).await?;
    finish(upload, BTreeMap::new(), length, source, options, budget).await
}

/// Goes on with an upload that was begun before; nothing if that is no longer possible, and it is then given up.
async fn go_on(
    store: &Arc<dyn Store>,
    key: &Key,
    source: &Arc<Source>,
    open: &OpenUpload,
    options: &UploadOptions,
    budget: &TransferBudget,
) -> Result<Option<Uploaded>> {
    let found = find(store, key, source.stamp, open).await?;
    let of = |open: &OpenUpload| InProgress {
        store: Arc::clone(store),
        key: key.clone(),
        id: open.id.clone(),
        journal: options.journal.clone(),
        open: Some(budget.open()),
    };
    match found {
        Found::Open(kept) => {
            tracing::debug!(parts = kept.len(), "going on with the upload to {}", source.location.escaped());
            finish(of(open), kept, open.part_size, source, options, budget).await.map(Some)
        }
        Found::Completed(whole, etag) => {
            of(open).done();
            if let Some(progress) = &options.progress {
                progress(whole.size);
            }
            Ok(Some(Uploaded { size: whole.size, crc64: whole.crc64, etag }))
        }
        Found::Useless => {
            of(open).abort().await;
            Ok(None)
        }
        Found::Gone => {
            of(open).done();
            Ok(None)
        }
    }
}

/// Sends the parts of an upload that are not `kept`, and completes it.
async fn finish(
    mut upload: InProgress,
    kept: BTreeMap<u32, SentPart>,
    length: u64,
    source: &Arc<Source>,
    options: &UploadOptions,
    budget: &TransferBudget,
) -> Result<Uploaded> {
    let result = async {
        let (receipts, whole) = send_parts(&upload, kept, source, length, options, budget).await?;
        source.check_unchanged()?;
        let (store, key) = (&upload.store, &upload.key);
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
    kept: BTreeMap<u32, SentPart>,
    source: &Arc<Source>,
    length: u64,
    options: &UploadOptions,
    budget: &TransferBudget,
) -> Result<(Vec<PartReceipt>, Sums)> {
    let sent = AtomicU64::new(kept.values().map(|part| part.sums().size).sum());
    if let Some(progress) = options.progress.as_ref().filter(|_| !kept.is_empty()) {
        progress(sent.load(Ordering::Relaxed));
    }
    let kept = &kept;
    let send = |(index, range): (usize, Range<u64>)| {
        let sent = &sent;
        let part = async move {
            // The plan keeps the number of parts below the store's maximum, which is a u32.
            let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
            if let Some(part) = kept.get(&number) {
                return Ok((part.receipt().clone(), part.sums()));
            }
            let _lease = budget.lease(range.end - range.start).await;
            let (bytes, sums) = source.read(range).await?;
            let receipt = upload.store.put_part(&upload.key, &upload.id, number, bytes).await?;
            if (receipt.crc64, receipt.size) != (sums.crc64, sums.size) {
                return Err(corrupt(&source.location));
            }
            if let Some(journal) = &upload.journal {
                journal.sent(&SentPart::new(receipt.clone(), sums)).unwrap_or_else(unwritten);
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

/// What cannot be written down cannot be gone on with by another process. That is no reason for this one not to do its work.
fn unwritten(error: std::io::Error) {
    tracing::warn!("the journal of uploads cannot be written, so an interrupted upload may begin anew: {error}");
}

/// An upload whose parts are given up unless it is done.
struct InProgress {
    store: Arc<dyn Store>,
    key: Key,
    id: UploadId,
    journal: Option<Arc<dyn UploadJournal>>,
    /// Until it is done.
    open: Option<Open>,
}

impl InProgress {
    /// Begins one. A caller that is dropped meanwhile leaves nothing behind: the answer is waited for, because only it says
    /// which upload is to be given up.
    async fn begin(
        store: &Arc<dyn Store>,
        key: &Key,
        (stamp, part_size): (FileStamp, u64),
        journal: Option<Arc<dyn UploadJournal>>,
        open: Open,
    ) -> Result<Self> {
        let (store, key) = (Arc::clone(store), key.clone());
        let location = store.root().with_key(key.clone());
        let target = location.clone();
        let begun = tokio::spawn(async move {
            if let Some(journal) = journal.clone() {
                blocking(OPERATION, &target, move || journal.beginning().unwrap_or_else(unwritten)).await?;
            }
            let id = match store.create_multipart(&key).await {
                Ok(id) => id,
                Err(error) => {
                    // Whether it was begun after all is not known when the answer was lost.
                    if let Some(journal) = journal.filter(|_| !is_ambiguous(&error)) {
                        journal.ended();
                    }
                    return Err(error);
                }
            };
            let upload = Self { store, key, id: id.clone(), journal: journal.clone(), open: Some(open) };
            if let Some(journal) = journal {
                let written = OpenUpload { id, stamp, part_size, parts: Vec::new() };
                blocking(OPERATION, &target, move || journal.begun(&written).unwrap_or_else(unwritten)).await?;
            }
            Ok(upload)
        });
        begun.await.map_err(|error| {
            let message = "the upload was given up because the program is ending, or failed inside";
            Error::new(ErrorKind::Unavailable, OPERATION, location, message).with_source(error)
        })?
    }

    /// It is completed, or gone.
    fn done(&mut self) {
        self.open = None;
        if let Some(journal) = &self.journal {
            journal.ended();
        }
    }

    async fn abort(&mut self) {
        // Dropped half way, it is given up once more, which does no harm.
        give_up(Arc::clone(&self.store), self.key.clone(), self.id.clone(), self.journal.clone()).await;
        self.open = None;
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        if self.journal.as_ref().is_some_and(|journal| journal.outlives_its_future()) {
            return;
        }
        // Without a runtime the program is ending, and the bucket's own rule for unfinished uploads has to do.
        if let (Some(open), Ok(runtime)) = (self.open.take(), tokio::runtime::Handle::try_current()) {
            let given_up = give_up(Arc::clone(&self.store), self.key.clone(), self.id.clone(), self.journal.clone());
            runtime.spawn(async move {
                given_up.await;
                drop(open);
            });
        }
    }
}

fn is_ambiguous(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Throttled { .. })
}

async fn give_up(store: Arc<dyn Store>, key: Key, id: UploadId, journal: Option<Arc<dyn UploadJournal>>) {
    let why = match tokio::time::timeout(ABORT_PATIENCE, store.abort_multipart(&key, &id)).await {
        Ok(Ok(())) => {
            if let Some(journal) = journal {
                journal.ended();
            }
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the store did not answer in time".to_owned(),
    };
    let location = store.root().with_key(key).escaped();
    tracing::warn!(
        "the parts of an upload to {location} that was given up stay in the bucket and cost money until its lifecycle \
         rule for unfinished uploads removes them: {why}"
    );
}
