//! An object becomes a local file.

use std::fmt;
use std::fs::{File, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use md5::{Digest, Md5};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::plan::pieces;
use super::{Progress, TransferBudget, blocking, local};
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location};
use crate::staged::Staged;
use crate::store::{Checksum, ETag, GetOptions, GetResponse, ObjectMeta, PutMode, Store};
use crate::sums::Sums;

const OPERATION: &str = "DOWNLOAD";
/// How often a piece is asked for whose body broke off. (The request itself the store retries.)
const ATTEMPTS: u32 = 5;
/// The pause before the second attempt; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });
/// How often a whole object is downloaded whose checksum comes out wrong.
const WHOLE_ATTEMPTS: u32 = 2;

/// How a download is done.
#[derive(Clone)]
pub struct DownloadOptions {
    /// Larger objects, in bytes, are refused before anything is read.
    pub limit: u64,
    /// The length of the pieces that are asked for at once, in bytes: 8 MiB.
    pub piece: u64,
    /// Whether the file is on the disk, and not only in the kernel's memory, when the download returns.
    pub durable: bool,
    /// What the file is called in errors, where the path to it says nothing to people (one that begins at a descriptor).
    pub called: Option<PathBuf>,
    /// The file's permission bits; by the process's umask from 0644 when absent.
    pub permissions: Option<u32>,
    /// Is told how much has arrived.
    pub progress: Option<Progress>,
}

impl Default for DownloadOptions {
    fn default() -> Self {
        Self { limit: u64::MAX, piece: 8 << 20, durable: false, called: None, permissions: None, progress: None }
    }
}

impl fmt::Debug for DownloadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DownloadOptions").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// An object that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// Its length in bytes.
    pub size: u64,
    /// The CRC-64/XZ of what was received.
    pub crc64: u64,
    /// Its entity tag.
    pub etag: Option<ETag>,
    /// Whether the store had a checksum of the whole object, which then was right.
    pub verified: bool,
}

/// Writes the object `key` to the file `target`, replacing one that is there (a symbolic link itself, not what it
/// points to). The directory exists, and the caller answers for where it is. The file appears when it is whole.
///
/// # Errors
/// [`ErrorKind::DiskFull`], [`ErrorKind::LocalFile`] when the file cannot be written, [`ErrorKind::Invalid`] when the object is
/// larger than [`DownloadOptions::limit`], [`ErrorKind::Changed`] when it was replaced meanwhile, [`ErrorKind::Corrupt`] when the
/// checksum is wrong (twice), [`ErrorKind::Archived`], and the store's own.
pub async fn download(
    store: &Arc<dyn Store>,
    key: &Key,
    target: &Path,
    options: &DownloadOptions,
    budget: &TransferBudget,
) -> Result<Downloaded> {
    let meta = store.head(key).await?;
    let location = store.root().with_key(key.clone());
    if meta.archived {
        let message = "the object is in an archive tier and cannot be read yet";
        return Err(Error::new(ErrorKind::Archived, OPERATION, location, message));
    }
    check_limit(&location, meta.size, options.limit)?;
    let job = Job { store: Arc::clone(store), location, meta, target: target.to_owned(), options, budget };
    let mut attempt = 1;
    loop {
        match job.run().await {
            Err(error) if *error.kind() == ErrorKind::Corrupt && attempt < WHOLE_ATTEMPTS => {
                tracing::warn!("{error}; downloading it once more");
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// The bytes of a small object.
///
/// # Errors
/// [`ErrorKind::Invalid`] when it is larger than `limit` bytes; [`ErrorKind::Corrupt`] when the checksum is wrong; the store's own.
pub async fn download_bytes(store: &Arc<dyn Store>, key: &Key, limit: u64) -> Result<Bytes> {
    let location = store.root().with_key(key.clone());
    let location = &location;
    let ask = || {
        let answer = async move {
            let answer = store.get(key, GetOptions::default()).await?;
            check_limit(location, answer.meta.size, limit)?;
            Ok(answer)
        };
        answer.boxed()
    };
    let take = |answer: GetResponse| {
        let bytes = async move {
            let checksum = answer.meta.checksum;
            let bytes = body(location, answer).await?;
            let wrong = match checksum {
                Some(Checksum::Md5(md5)) => Md5::digest(&bytes)[..] != md5,
                other => Sums::of(&bytes).agree(other) == Some(false),
            };
            if wrong { Err(corrupt(location)) } else { Ok(bytes) }
        };
        bytes.boxed()
    };
    patiently(ask, take).await
}

fn check_limit(location: &Location, size: u64, limit: u64) -> Result<()> {
    if size <= limit {
        return Ok(());
    }
    let message = format!("the object is {size} bytes long, at most {limit} are accepted here");
    Err(Error::new(ErrorKind::Invalid, OPERATION, location, message))
}

fn corrupt(location: &Location) -> Error {
    let message = "the bytes received are not the object's, by its checksum; if it stays so, the object is damaged: upload \
                   it again";
    Error::new(ErrorKind::Corrupt, OPERATION, location, message)
}

/// The body, as long as it was announced.
async fn body(location: &Location, answer: GetResponse) -> Result<Bytes> {
    let announced = answer.range.end - answer.range.start;
    let bytes = answer.bytes().await?;
    if bytes.len() as u64 == announced {
        return Ok(bytes);
    }
    let message = format!("{} bytes arrived instead of {announced}", bytes.len());
    Err(Error::new(ErrorKind::Unavailable, OPERATION, location, message))
}

/// Asks again when the body broke off or came out wrong. What the request itself fails with is final: the store has
/// tried that as often as it makes sense.
async fn patiently<'a>(
    ask: impl Fn() -> BoxFuture<'a, Result<GetResponse>>,
    take: impl Fn(GetResponse) -> BoxFuture<'a, Result<Bytes>>,
) -> Result<Bytes> {
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        match take(ask().await?).await {
            Err(error) if attempt < ATTEMPTS && matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Corrupt) => {
                tracing::debug!("{error}; asking again in {pause:?}");
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                pause *= 2;
                attempt += 1;
            }
            result => return result,
        }
    }
}

struct Job<'a> {
    store: Arc<dyn Store>,
    location: Location,
    meta: ObjectMeta,
    target: PathBuf,
    options: &'a DownloadOptions,
    budget: &'a TransferBudget,
}

impl Job<'_> {
    async fn run(&self) -> Result<Downloaded> {
        self.report(0);
        let staged = self.stage().await?;
        let file = Arc::new(staged.file().try_clone().map_err(|error| self.unwritable(error))?);
        let received = AtomicU64::new(0);
        let whole = stream::iter(pieces(self.meta.size, self.options.piece))
            .map(|range| self.piece(range, &file, &received).boxed())
            .buffered(self.budget.concurrency())
            .try_fold(Sums::default(), |whole, piece| async move { Ok(whole.then(piece)) })
            .await?;
        let verified = self.verify(whole, &file).await?;
        drop(file);
        let (target, durable) = (self.target.clone(), self.options.durable);
        let named = blocking(OPERATION, &self.location, move || staged.commit(&target, PutMode::Overwrite, durable));
        named.await?.map_err(|error| self.unwritable(error))?;
        Ok(Downloaded { size: whole.size, crc64: whole.crc64, etag: self.meta.etag.clone(), verified })
    }

    /// The file in the making, with room for the object.
    async fn stage(&self) -> Result<Staged> {
        let directory = match self.target.parent() {
            None => return Err(self.unwritable(io::ErrorKind::IsADirectory.into())),
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent.to_owned(),
        };
        let (size, permissions) = (self.meta.size, self.options.permissions);
        let staged = blocking(OPERATION, &self.location, move || {
            let staged = Staged::new(&directory)?;
            if let Some(permissions) = permissions {
                staged.file().set_permissions(Permissions::from_mode(permissions))?;
            }
            make_room(staged.file(), size)?;
            Ok(staged)
        });
        staged.await?.map_err(|error| self.unwritable(error))
    }

    /// Gets a piece and writes it to its place.
    async fn piece(&self, range: Range<u64>, file: &Arc<File>, received: &AtomicU64) -> Result<Sums> {
        let length = range.end - range.start;
        let _lease = self.budget.lease(length).await;
        let ask = || self.ask(range.clone()).boxed();
        let bytes = patiently(ask, |answer| body(&self.location, answer).boxed()).await?;
        let offset = range.start;
        let file = Arc::clone(file);
        let written = blocking(OPERATION, &self.location, move || {
            file.write_all_at(&bytes, offset)?;
            Ok(Sums::of(&bytes))
        });
        let sums = written.await?.map_err(|error| self.unwritable(error))?;
        self.report(received.fetch_add(length, Ordering::Relaxed) + length);
        Ok(sums)
    }

    async fn ask(&self, range: Range<u64>) -> Result<GetResponse> {
        // The whole in one piece is asked for as such, because then the store's client verifies it, too.
        let whole = range == (0..self.meta.size);
        let options = GetOptions { range: (!whole).then(|| range.clone()), if_match: self.meta.etag.clone() };
        let answer = self.store.get(&self.meta.key, options).await?;
        if answer.meta.size != self.meta.size || answer.range != range {
            let message = "the object was replaced while it was being downloaded";
            return Err(Error::new(ErrorKind::Changed, OPERATION, &self.location, message));
        }
        Ok(answer)
    }

    /// Whether the store had something to verify the file by.
    async fn verify(&self, whole: Sums, file: &Arc<File>) -> Result<bool> {
        let right = match self.meta.checksum {
            Some(Checksum::Md5(md5)) => {
                let file = Arc::clone(file);
                let found = blocking(OPERATION, &self.location, move || md5_of(&file)).await?;
                Some(found.map_err(|error| self.unwritable(error))? == md5)
            }
            other => whole.agree(other),
        };
        if right == Some(false) { Err(corrupt(&self.location)) } else { Ok(right.is_some()) }
    }

    fn report(&self, done: u64) {
        if let Some(progress) = &self.options.progress {
            progress(done);
        }
    }

    fn unwritable(&self, error: io::Error) -> Error {
        let called = self.options.called.as_ref().unwrap_or(&self.target);
        let what = format!("the local file {} cannot be written", called.display());
        local(OPERATION, &self.location, &what, error)
    }
}

/// Takes the space at once, so that a full disk shows before the download and not after hours of it.
fn make_room(file: &File, size: u64) -> io::Result<()> {
    let length = i64::try_from(size).map_err(|_| io::Error::from(Errno::EFBIG))?;
    if length == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, length) {
            Err(Errno::EINTR) => {}
            // Not every file system can; then the writes will tell.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(()),
            result => return Ok(result?),
        }
    }
}

fn md5_of(file: &File) -> io::Result<[u8; 16]> {
    let mut digest = Md5::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let count = file.read_at(&mut buffer, offset)?;
        if count == 0 {
            return Ok(digest.finalize().into());
        }
        digest.update(&buffer[..count]);
        offset += count as u64;
    }
}
