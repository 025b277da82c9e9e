//! `file://`: the local file system as a store.
//!
//! What a key means here, where a file system differs from a bucket:
//! - `a/b` is the file `/a/b`. Keys with empty, `.` or `..` segments are refused; nothing is decoded or normalised.
//! - `dir/` is the directory. It can be written (empty), which makes it; deleting it removes it if it is empty. Empty
//!   directories are listed as zero-byte objects `dir/`, others only by what is in them. `x` beside `x/y` cannot be.
//! - Only regular files are objects. A symbolic link in the last place of a key is never followed, and a listing does
//!   not go through the ones it meets: this code runs as root over trees that others can write to. (Links on the
//!   way to the directory that the location names are the administrator's, and work.)
//! - A write appears whole or not at all, is on the disk when it returns, and leaves nothing behind (see [`staged`](crate::staged)).
//!   Directories on the way are made. Appends go to the file itself and are not synced.
//! - An entity tag is made of inode number, modification time in nanoseconds and length. There are no stored checksums:
//!   writes answer with the checksum of what was written, heads and listings have none.
//! - Multipart uploads live as long as the store object.

mod fault;
mod name;
mod upload;
mod walk;

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use nix::libc;

use self::upload::{Layout, Part};
use self::walk::{Hidden, Walk};
use crate::crc::crc64;
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location};
use crate::staged::Staged;
use crate::store::{
    AppendResponse, Capabilities, Checksum, ETag, GetOptions, GetResponse, ListPage, ListRequest, ObjectMeta,
    PartReceipt, PutMode, PutResponse, Store, UploadId,
};

/// How much is read at once. Larger gains nothing, and every read is in memory until the reader takes it.
const CHUNK: u64 = 1 << 20;
/// Entries on a page when the caller does not say: a page costs one reading of each directory on it, so few and large.
const PAGE: usize = 10_000;
/// How long an append waits for another one on the same file.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The local file system.
#[derive(Debug)]
pub(super) struct FileStore {
    shared: Arc<Shared>,
}

/// What the blocking halves of the operations need.
#[derive(Debug)]
struct Shared {
    root: Location,
    base: PathBuf,
    hidden: Hidden,
    uploads: Mutex<HashMap<UploadId, Arc<Upload>>>,
}

#[derive(Debug)]
struct Upload {
    key: Key,
    directory: PathBuf,
    layout: Mutex<Layout>,
    /// Parts are written under the read lock, so that completing waits for those whose caller has given up.
    staged: RwLock<Option<Staged>>,
}

impl FileStore {
    /// The whole local tree.
    pub(super) fn new(root: Location) -> Self {
        Self {
            shared: Arc::new(Shared {
                root,
                base: PathBuf::from("/"),
                hidden: Hidden::default(),
                uploads: Mutex::default(),
            }),
        }
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &Key,
        work: impl FnOnce(&Shared, &Target) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        let target = Target { operation, location: shared.root.with_key(key.clone()) };
        let location = target.location.clone();
        let done = tokio::task::spawn_blocking(move || work(&shared, &target)).await;
        done.unwrap_or_else(|error| {
            let message = "the work was given up because the program is ending, or failed inside";
            Err(Error::new(ErrorKind::Unavailable, operation, location, message).with_source(error))
        })
    }
}

/// What is being done to which object, for messages.
struct Target {
    operation: &'static str,
    location: Location,
}

impl Target {
    fn key(&self) -> &str {
        self.location.key().as_str()
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, self.operation, &self.location, message)
    }

    fn path(&self, base: &Path) -> Result<PathBuf> {
        name::path_of(base, self.key()).map_err(|error| fault::from_name(self.operation, &self.location, error))
    }

    fn io(&self, error: io::Error) -> Error {
        fault::from_io(self.operation, &self.location, error)
    }

    fn read(&self, error: io::Error) -> Error {
        fault::from_read(self.operation, &self.location, error)
    }

    fn not_found(&self) -> Error {
        self.error(ErrorKind::NotFound, "there is no such file")
    }

    /// The key without a trailing slash, for operations on files; a directory is no such thing.
    fn file_path(&self, base: &Path) -> Result<PathBuf> {
        let path = self.path(base)?;
        if self.key().ends_with('/') {
            return Err(
                self.error(ErrorKind::Invalid, "a name with a trailing slash is a directory and holds no bytes")
            );
        }
        Ok(path)
    }

    /// Opens the object for reading: a file, or nothing for a directory's key.
    fn open(&self, base: &Path) -> Result<(Option<File>, ObjectMeta)> {
        let path = self.path(base)?;
        if self.key().ends_with('/') {
            let metadata = fs::metadata(&path).map_err(|error| self.read(error))?;
            if !metadata.is_dir() {
                return Err(self.not_found());
            }
            return Ok((None, describe(Key::new(self.key()), &metadata)));
        }
        // Not blocking, because the name may be a pipe's.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path)
            .map_err(|error| self.read(error))?;
        let metadata = file.metadata().map_err(|error| self.read(error))?;
        if !metadata.is_file() {
            return Err(self.not_found());
        }
        Ok((Some(file), describe(Key::new(self.key()), &metadata)))
    }

    /// The directory an object's file is in, made if it is not there.
    fn make_parent(&self, path: &Path) -> Result<PathBuf> {
        // Every key has at least one segment below the root directory.
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.io(io::Error::from_raw_os_error(libc::ENOTDIR)),
            _ => self.io(error),
        })?;
        Ok(parent.to_owned())
    }
}

fn describe(key: Key, metadata: &Metadata) -> ObjectMeta {
    let directory = metadata.is_dir();
    ObjectMeta {
        key,
        size: if directory { 0 } else { metadata.len() },
        etag: (!directory).then(|| etag_of(metadata)),
        modified: metadata.modified().ok(),
        checksum: None,
        archived: false,
    }
}

fn etag_of(metadata: &Metadata) -> ETag {
    ETag(format!("\"{:x}-{:x}.{:09x}-{:x}\"", metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

/// The bytes that `wanted` means of an object of `size` bytes.
fn clip(target: &Target, wanted: Option<Range<u64>>, size: u64) -> Result<Range<u64>> {
    match wanted {
        None => Ok(0..size),
        Some(range) if range.start < range.end && range.start < size => Ok(range.start..range.end.min(size)),
        Some(range) => Err(target.error(
            ErrorKind::Invalid,
            format!("the range {}..{} lies outside of the object's {size} bytes", range.start, range.end),
        )),
    }
}

/// The file's bytes from `range.start`, at most [`CHUNK`] of them.
fn read_chunk(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let want = usize::try_from((range.end - range.start).min(CHUNK)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; want];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

impl Shared {
    fn get(&self, target: &Target, options: GetOptions) -> Result<(Option<File>, ObjectMeta, Range<u64>, Bytes)> {
        let (file, meta) = target.open(&self.base)?;
        if options.if_match.is_some() && options.if_match != meta.etag {
            return Err(target.error(ErrorKind::Changed, "the file was replaced or written to since it was first seen"));
        }
        let range = clip(target, options.range, meta.size)?;
        let first = match &file {
            Some(file) if !range.is_empty() => read_chunk(file, &range).map_err(|error| short(target, error))?,
            _ => Bytes::new(),
        };
        Ok((file, meta, range, first))
    }

    fn put(&self, target: &Target, body: &[u8], mode: PutMode) -> Result<PutResponse> {
        if target.key().ends_with('/') {
            return self.put_directory(target, body, mode);
        }
        let path = target.path(&self.base)?;
        let staged = Staged::new(&target.make_parent(&path)?).map_err(|error| target.io(error))?;
        (&mut staged.file()).write_all(body).map_err(|error| target.io(error))?;
        let metadata = staged.commit(&path, mode, true).map_err(|error| target.io(error))?;
        Ok(PutResponse { etag: Some(etag_of(&metadata)), checksum: Some(Checksum::Crc64(crc64(body))) })
    }

    fn put_directory(&self, target: &Target, body: &[u8], mode: PutMode) -> Result<PutResponse> {
        let path = target.path(&self.base)?;
        if !body.is_empty() {
            return Err(
                target.error(ErrorKind::Invalid, "a name with a trailing slash is a directory and holds no bytes")
            );
        }
        target.make_parent(&path)?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && mode == PutMode::Overwrite => {
                if !fs::metadata(&path).map_err(|error| target.io(error))?.is_dir() {
                    return Err(target.io(io::Error::from_raw_os_error(libc::ENOTDIR)));
                }
            }
            result => result.map_err(|error| target.io(error))?,
        }
        Ok(PutResponse { etag: None, checksum: Some(Checksum::Crc64(0)) })
    }

    fn create_multipart(&self, target: &Target) -> Result<UploadId> {
        let path = target.file_path(&self.base)?;
        let directory = target.make_parent(&path)?;
        let staged = Staged::new(&directory).map_err(|error| target.io(error))?;
        let upload = Upload {
            key: target.location.key().clone(),
            directory,
            layout: Mutex::default(),
            staged: RwLock::new(Some(staged)),
        };
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut id = UploadId(format!("{:032x}", fastrand::u128(..)));
        while uploads.contains_key(&id) {
            id = UploadId(format!("{:032x}", fastrand::u128(..)));
        }
        uploads.insert(id.clone(), Arc::new(upload));
        Ok(id)
    }

    fn upload(&self, target: &Target, id: &UploadId) -> Result<Arc<Upload>> {
        let uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        match uploads.get(id) {
            Some(upload) if upload.key.as_str() == target.key() => Ok(Arc::clone(upload)),
            _ => Err(no_such_upload(target)),
        }
    }

    fn put_part(&self, target: &Target, id: &UploadId, number: u32, body: &[u8]) -> Result<PartReceipt> {
        if !(1..=capabilities().max_parts).contains(&number) {
            return Err(target.error(ErrorKind::Invalid, format!("parts are numbered from 1 to 10000, not {number}")));
        }
        let upload = self.upload(target, id)?;
        let staged = upload.staged.read().unwrap_or_else(PoisonError::into_inner);
        let staged = staged.as_ref().ok_or_else(|| no_such_upload(target))?;
        let size = body.len() as u64;
        let offset = upload.layout.lock().unwrap_or_else(PoisonError::into_inner).place(number, size);
        staged.file().write_all_at(body, offset).map_err(|error| target.io(error))?;
        let part = Part { offset, size, crc64: crc64(body) };
        upload.layout.lock().unwrap_or_else(PoisonError::into_inner).arrived(number, part);
        Ok(PartReceipt { number, etag: part_etag(&part), size, crc64: part.crc64 })
    }

    fn complete(&self, target: &Target, id: &UploadId, receipts: &[PartReceipt], mode: PutMode) -> Result<PutResponse> {
        let upload = self.upload(target, id)?;
        let path = target.file_path(&self.base)?;
        let mut staged = upload.staged.write().unwrap_or_else(PoisonError::into_inner);
        let mut parts = Vec::with_capacity(receipts.len());
        let mut last = 0;
        for receipt in receipts {
            let arrived = upload.layout.lock().unwrap_or_else(PoisonError::into_inner).part(receipt.number);
            let part =
                arrived.filter(|part| part_etag(part) == receipt.etag && receipt.number > last).ok_or_else(|| {
                    let message =
                        format!("part {} is out of order, has not arrived or has been sent again", receipt.number);
                    target.error(ErrorKind::Invalid, message)
                })?;
            if (part.size, part.crc64) != (receipt.size, receipt.crc64) {
                return Err(target.error(ErrorKind::Corrupt, format!("part {} is not what was sent", receipt.number)));
            }
            last = receipt.number;
            parts.push(part);
        }
        if parts.is_empty() {
            return Err(target.error(ErrorKind::Invalid, "an upload has at least one part"));
        }
        let from = staged.take().ok_or_else(|| no_such_upload(target))?;
        self.forget(id);
        let whole = upload::assemble(from, &upload.directory, &parts).map_err(|error| target.io(error))?;
        let metadata = whole.commit(&path, mode, true).map_err(|error| target.io(error))?;
        let checksum = Some(Checksum::Crc64(upload::whole(&parts).1));
        Ok(PutResponse { etag: Some(etag_of(&metadata)), checksum })
    }

    fn forget(&self, id: &UploadId) -> Option<Arc<Upload>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    fn abort(&self, target: &Target, id: &UploadId) -> Result<()> {
        if let Ok(upload) = self.upload(target, id) {
            self.forget(id);
            upload.staged.write().unwrap_or_else(PoisonError::into_inner).take();
        }
        Ok(())
    }

    fn list(&self, target: &Target, request: &ListRequest) -> Result<ListPage> {
        let (directory, key) = name::directory_of(&self.base, &request.prefix)
            .map_err(|error| fault::from_name(target.operation, &target.location, error))?;
        let limit = request.max_keys.map_or(PAGE, |keys| usize::try_from(keys).unwrap_or(PAGE).clamp(1, PAGE));
        Walk::new(request, limit, &self.hidden, describe).page(&directory, &key).map_err(|error| target.read(error))
    }

    fn delete(&self, target: &Target) -> Result<()> {
        let path = target.path(&self.base)?;
        let result = if target.key().ends_with('/') {
            fs::remove_dir(&path)
        } else {
            match fs::symlink_metadata(&path) {
                // What is not an object is not there, and not ours to remove.
                Ok(metadata) if !metadata.is_file() => return Ok(()),
                Ok(_) => fs::remove_file(&path),
                Err(error) => Err(error),
            }
        };
        match result {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(target.io(error))
            }
            _ => Ok(()),
        }
    }

    fn copy(&self, from: &Target, to: &Target) -> Result<PutResponse> {
        let (file, _) = from.open(&self.base)?;
        let Some(mut file) = file else {
            return self.put(to, b"", PutMode::Overwrite);
        };
        let path = to.file_path(&self.base)?;
        let staged = Staged::new(&to.make_parent(&path)?).map_err(|error| to.io(error))?;
        // In the kernel, and on some file systems without moving a byte.
        io::copy(&mut file, &mut staged.file()).map_err(|error| to.io(error))?;
        let metadata = staged.commit(&path, PutMode::Overwrite, true).map_err(|error| to.io(error))?;
        Ok(PutResponse { etag: Some(etag_of(&metadata)), checksum: None })
    }

    fn append(&self, target: &Target, position: u64, body: &[u8]) -> Result<AppendResponse> {
        let path = target.file_path(&self.base)?;
        if position == 0 {
            target.make_parent(&path)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(position == 0)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path);
        let file = match file {
            Err(error) if error.kind() == io::ErrorKind::NotFound && position > 0 => {
                let message = format!("there is no such file, so it cannot be {position} bytes long");
                return Err(target.error(ErrorKind::PositionMismatch { next: Some(0) }, message).with_source(error));
            }
            result => result.map_err(|error| target.io(error))?,
        };
        if !file.metadata().map_err(|error| target.io(error))?.is_file() {
            return Err(target.error(ErrorKind::NotAppendable, "this is not a regular file"));
        }
        lock(&file).map_err(|error| target.io(error))?;
        let size = file.metadata().map_err(|error| target.io(error))?.len();
        if size != position {
            let message = format!("the file is {size} bytes long, not {position}");
            return Err(target.error(ErrorKind::PositionMismatch { next: Some(size) }, message));
        }
        if let Err(error) = (&mut &file).write_all(body) {
            // All or nothing. Should this fail too, the caller finds the true length by asking.
            if let Err(error) = file.set_len(position) {
                tracing::warn!("cannot take back an incomplete append to {}: {error}", target.location.escaped());
            }
            return Err(target.io(error));
        }
        Ok(AppendResponse { next_position: position + body.len() as u64, crc64: None })
    }
}

/// Waits for other appends to this file.
fn lock(file: &File) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if begun.elapsed() > LOCK_PATIENCE => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another program holds a lock on the file"));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn part_etag(part: &Part) -> String {
    format!("\"{:x}-{:x}-{:016x}\"", part.offset, part.size, part.crc64)
}

fn no_such_upload(target: &Target) -> Error {
    target.error(ErrorKind::NotFound, "there is no such upload in progress; begin a new one")
}

/// A file that ends before its length was cut short after it was opened.
fn short(target: &Target, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return target.error(ErrorKind::Changed, "the file became shorter while it was being read");
    }
    target.read(error)
}

fn capabilities() -> Capabilities {
    Capabilities {
        append: true,
        max_append_size: i64::MAX.unsigned_abs(),
        put_if_absent: true,
        copy_part: true,
        crc64: false,
        min_part_size: 1,
        max_part_size: i64::MAX.unsigned_abs(),
        max_parts: 10_000,
    }
}

#[async_trait]
impl Store for FileStore {
    fn root(&self) -> &Location {
        &self.shared.root
    }

    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.blocking("HEAD", key, |shared, target| Ok(target.open(&shared.base)?.1)).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResponse> {
        let (file, meta, range, first) =
            self.blocking("GET", key, move |shared, target| shared.get(target, options)).await?;
        let behind_first = range.start + first.len() as u64..range.end;
        let head = stream::iter((!first.is_empty()).then_some(Ok(first)));
        let Some(file) = file.filter(|_| !behind_first.is_empty()) else {
            return Ok(GetResponse { meta, range, body: head.boxed() });
        };
        let store = Self { shared: Arc::clone(&self.shared) };
        let state = (store, key.clone(), Arc::new(file), behind_first);
        let tail = stream::unfold(Some(state), |state| async move {
            let (store, key, file, left) = state.filter(|(.., left)| !left.is_empty())?;
            let (reader, wanted) = (Arc::clone(&file), left.clone());
            let chunk = store
                .blocking("GET", &key, move |_, target| read_chunk(&reader, &wanted).map_err(|e| short(target, e)))
                .await;
            let state = chunk.as_ref().ok().map(|chunk| left.start + chunk.len() as u64..left.end);
            Some((chunk, state.map(|left| (store, key, file, left))))
        });
        Ok(GetResponse { meta, range, body: head.chain(tail).boxed() })
    }

    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<PutResponse> {
        self.blocking("PUT", key, move |shared, target| shared.put(target, &body, mode)).await
    }

    async fn create_multipart(&self, key: &Key) -> Result<UploadId> {
        self.blocking("CREATE UPLOAD", key, |shared, target| shared.create_multipart(target)).await
    }

    async fn put_part(&self, key: &Key, upload: &UploadId, number: u32, body: Bytes) -> Result<PartReceipt> {
        let upload = upload.clone();
        self.blocking("PUT PART", key, move |shared, target| shared.put_part(target, &upload, number, &body)).await
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
        let (length, end) = (range.end.saturating_sub(range.start), range.end);
        let body = self.get(source, GetOptions { range: Some(range), if_match: None }).await?;
        if body.range.end != end {
            let source = self.root().with_key(source.clone());
            let message = format!("the range ends at {end}, the file at {}", body.range.end);
            return Err(Error::new(ErrorKind::Invalid, "COPY PART", source, message));
        }
        let bytes = body.bytes().await?;
        let receipt = self.put_part(key, upload, number, bytes).await?;
        if (receipt.size, receipt.crc64) != (length, crc64) {
            let source = self.root().with_key(source.clone());
            let message = "the bytes of the range are not those that were expected, by checksum";
            return Err(Error::new(ErrorKind::Corrupt, "COPY PART", source, message));
        }
        Ok(receipt)
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<PutResponse> {
        let (upload, parts) = (upload.clone(), parts.to_vec());
        self.blocking("COMPLETE UPLOAD", key, move |shared, target| shared.complete(target, &upload, &parts, mode))
            .await
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<()> {
        let upload = upload.clone();
        self.blocking("ABORT UPLOAD", key, move |shared, target| shared.abort(target, &upload)).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let key = Key::new(request.prefix.clone());
        self.blocking("LIST", &key, move |shared, target| shared.list(target, &request)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.blocking("DELETE", key, |shared, target| shared.delete(target)).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<PutResponse> {
        let source = Target { operation: "COPY", location: self.root().with_key(from.clone()) };
        self.blocking("COPY", to, move |shared, target| shared.copy(&source, target)).await
    }

    async fn append(&self, key: &Key, position: u64, body: Bytes) -> Result<AppendResponse> {
        self.blocking("APPEND", key, move |shared, target| shared.append(target, position, &body)).await
    }
}
