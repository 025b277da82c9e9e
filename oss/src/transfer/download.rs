//! An object becomes a local file.

use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, Write};
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
    /// The object's length in bytes, where a listing has told it: what is no longer than a piece is then asked for at once, and not
    /// its metadata first. If it is another by now, that does no harm.
    pub listed: Option<u64>,
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
        Self {
            limit: u64::MAX,
            piece: 8 << 20,
            listed: None,
            durable: false,
            called: None,
            permissions: None,
            progress: None,
        }
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
    let request = Request { store, location: store.root().with_key(key.clone()), key, target, options, budget };
    let mut attempt = 1;
    loop {
        match request.carry_out().await {
            Err(error) if *error.kind() == ErrorKind::Corrupt && attempt < WHOLE_ATTEMPTS => {
                tracing::warn!("{error}; downloading it once more");
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// What [`download`] was asked.
struct Request<'a> {
    store: &'a Arc<dyn Store>,
    location: Location,
    key: &'a Key,
    target: &'a Path,
    options: &'a DownloadOptions,
    budget: &'a TransferBudget,
}

impl<'a> Request<'a> {
    async fn carry_out(&self) -> Result<Downloaded> {
        let (listed, piece) = (self.options.listed, self.options.piece);
        if let Some(size) = listed.filter(|size| *size <= piece)
            && let Some(done) = self.at_once(size).await?
        {
            return Ok(done);
        }
        let meta = self.store.head(self.key).await?;
        if meta.archived {
            let message = "the object is in an archive tier and cannot be read yet";
            return Err(Error::new(ErrorKind::Archived, OPERATION, self.location.clone(), message));
        }
        check_limit(&self.location, meta.size, self.options.limit)?;
        self.job(meta).run().await
    }

    /// One request for an object of about this length; nothing if it has become longer than a piece.
    async fn at_once(&self, size: u64) -> Result<Option<Downloaded>> {
        let location = &self.location;
        let lease = self.budget.lease(size).await;
        let ask = || self.store.get(self.key, GetOptions::default()).boxed();
        let take = |answer: GetResponse| {
            let taken = async move {
                let meta = answer.meta.clone();
                check_limit(location, meta.size, self.options.limit)?;
                if meta.size > self.options.piece {
                    return Ok(None);
                }
                Ok(Some((meta, body(location, answer).await?)))
            };
            taken.boxed()
        };
        let Some((meta, chunks)) = patiently(ask, take).await? else { return Ok(None) };
        let done = self.job(meta).keep(chunks).await?;
        drop(lease);
        Ok(Some(done))
    }

    fn job(&self, meta: ObjectMeta) -> Job<'a> {
        Job {
            store: Arc::clone(self.store),
            location: self.location.clone(),
            meta,
            target: self.target.to_owned(),
            options: self.options,
            budget: self.budget,
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
            let chunks = body(location, answer).await?;
            if agree(&chunks, &Sums::of_all(&chunks), checksum) == Some(false) {
                return Err(corrupt(location));
            }
            Ok(joined(chunks))
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

/// Whether bytes in memory, of which these are the sums, have the store's checksum; nothing if it has none.
fn agree(chunks: &[Bytes], sums: &Sums, checksum: Option<Checksum>) -> Option<bool> {
    let Some(Checksum::Md5(md5)) = checksum else { return sums.agree(checksum) };
    let mut ours = Md5::new();
    chunks.iter().for_each(|chunk| ours.update(chunk));
    Some(ours.finalize()[..] == md5)
}

fn joined(mut chunks: Vec<Bytes>) -> Bytes {
    match chunks.len() {
        1 => chunks.remove(0),
        _ => chunks.concat().into(),
    }
}

/// The body as it came, as long as it was announced.
async fn body(location: &Location, mut answer: GetResponse) -> Result<Vec<Bytes>> {
    let announced = answer.range.end - answer.range.start;
    let (mut chunks, mut came) = (Vec::new(), 0);
    while let Some(chunk) = answer.body.next().await.transpose()? {
        came += chunk.len() as u64;
        chunks.push(chunk);
    }
    if came == announced {
        return Ok(chunks);
    }
    let message = format!("{came} bytes arrived instead of {announced}");
    Err(Error::new(ErrorKind::Unavailable, OPERATION, location, message))
}

/// Asks again when the body broke off or came out wrong. What the request itself fails with is final: the store has
/// tried that as often as it makes sense.
async fn patiently<'a, T>(
    ask: impl Fn() -> BoxFuture<'a, Result<GetResponse>>,
    take: impl Fn(GetResponse) -> BoxFuture<'a, Result<T>>,
) -> Result<T> {
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

    /// The whole object is in memory: verifies it and makes it the file, all on one thread.
    async fn keep(&self, chunks: Vec<Bytes>) -> Result<Downloaded> {
        let (directory, permissions) = (self.directory()?, self.options.permissions);
        let (target, durable) = (self.target.clone(), self.options.durable);
        let checksum = self.meta.checksum;
        let kept = blocking(OPERATION, &self.location, move || {
            let sums = Sums::of_all(&chunks);
            let right = agree(&chunks, &sums, checksum);
            if right == Some(false) {
                return Ok((sums, right));
            }
            let staged = staged(&directory, permissions)?;
            for chunk in &chunks {
                staged.file().write_all(chunk)?;
            }
            staged.commit(&target, PutMode::Overwrite, durable)?;
            Ok((sums, right))
        });
        let (sums, right) = kept.await?.map_err(|error| self.unwritable(error))?;
        if right == Some(false) {
            return Err(corrupt(&self.location));
        }
        self.report(sums.size);
        let etag = self.meta.etag.clone();
        Ok(Downloaded { size: sums.size, crc64: sums.crc64, etag, verified: right.is_some() })
    }

    /// The directory that the file is made in.
    fn directory(&self) -> Result<PathBuf> {
        match self.target.parent() {
            None => Err(self.unwritable(io::ErrorKind::IsADirectory.into())),
            Some(parent) if parent.as_os_str().is_empty() => Ok(PathBuf::from(".")),
            Some(parent) => Ok(parent.to_owned()),
        }
    }

    /// The file in the making, with room for the object.
    async fn stage(&self) -> Result<Staged> {
        let directory = self.directory()?;
        let (size, permissions) = (self.meta.size, self.options.permissions);
        let staged = blocking(OPERATION, &self.location, move || {
            let staged = staged(&directory, permissions)?;
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
        let chunks = patiently(ask, |answer| body(&self.location, answer).boxed()).await?;
        let mut offset = range.start;
        let file = Arc::clone(file);
        let written = blocking(OPERATION, &self.location, move || {
            let sums = Sums::of_all(&chunks);
            for chunk in chunks {
                file.write_all_at(&chunk, offset)?;
                offset += chunk.len() as u64;
            }
            Ok(sums)
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

/// A file in the making, with these permissions.
fn staged(directory: &Path, permissions: Option<u32>) -> io::Result<Staged> {
    let staged = Staged::new(directory)?;
    if let Some(permissions) = permissions {
        staged.file().set_permissions(Permissions::from_mode(permissions))?;
    }
    Ok(staged)
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
