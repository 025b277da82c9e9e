//! What the operations do on the disk. All of this blocks.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use nix::libc;

use super::upload::{self, Layout, Part};
use super::walk::{Hidden, Walk};
use super::{fault, name};
use crate::crc::crc64;
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location};
use crate::staged::Staged;
use crate::store::{
    AppendResponse, Capabilities, Checksum, ETag, GetOptions, ListPage, ListRequest, ObjectMeta, PartMeta, PartPage,
    PartReceipt, PutMode, PutResponse, UploadId, UploadMarker, UploadMeta, UploadPage,
};

/// How much is read at once. Larger gains nothing, and every read is in memory until the reader takes it.
const CHUNK: u64 = 1 << 20;
/// Entries on a page when the caller does not say: a page costs one reading of each directory on it, so few and large.
const PAGE: usize = 10_000;
/// How long an append waits for another one on the same file.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// What the blocking halves of the operations need.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) root: Location,
    base: PathBuf,
    hidden: Hidden,
    uploads: Mutex<HashMap<UploadId, Arc<Upload>>>,
}

#[derive(Debug)]
struct Upload {
    key: Key,
    initiated: SystemTime,
    directory: PathBuf,
    layout: Mutex<Layout>,
    /// Parts are written under the read lock, so that completing waits for those whose caller has given up.
    staged: RwLock<Option<Staged>>,
}

pub(super) fn capabilities() -> Capabilities {
    Capabilities {
        append: true,
        max_append_size: i64::MAX.unsigned_abs(),
        put_if_absent: true,
        copy_part: true,
        crc64: false,
        min_part_size: 1,
        max_part_size: i64::MAX.unsigned_abs(),
        max_parts: 10_000,
        list_from_inside: true,
        // They are files without a name, and go with the process.
        resumable_uploads: false,
    }
}

/// What is being done to which object, for messages.
pub(super) struct Target {
    pub(super) operation: &'static str,
    pub(super) location: Location,
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
pub(super) fn read_chunk(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let want = usize::try_from((range.end - range.start).min(CHUNK)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; want];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

impl Disk {
    /// The tree below `base`.
    pub(super) fn new(root: Location, base: PathBuf) -> Self {
        Self { root, base, hidden: Hidden::default(), uploads: Mutex::default() }
    }

    pub(super) fn head(&self, target: &Target) -> Result<ObjectMeta> {
        Ok(target.open(&self.base)?.1)
    }

    pub(super) fn get(
        &self,
        target: &Target,
        options: GetOptions,
    ) -> Result<(Option<File>, ObjectMeta, Range<u64>, Bytes)> {
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

    pub(super) fn put(&self, target: &Target, body: &[u8], mode: PutMode) -> Result<PutResponse> {
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

    pub(super) fn create_multipart(&self, target: &Target) -> Result<UploadId> {
        let path = target.file_path(&self.base)?;
        let directory = target.make_parent(&path)?;
        let staged = Staged::new(&directory).map_err(|error| target.io(error))?;
        let upload = Upload {
            key: target.location.key().clone(),
            initiated: SystemTime::now(),
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

    pub(super) fn put_part(&self, target: &Target, id: &UploadId, number: u32, body: &[u8]) -> Result<PartReceipt> {
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
        Ok(PartReceipt { number, etag: part_etag(&part), size, crc64: part.crc64, crc64_nvme: None })
    }

    pub(super) fn complete(
        &self,
        target: &Target,
        id: &UploadId,
        receipts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<PutResponse> {
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

    pub(super) fn abort(&self, target: &Target, id: &UploadId) -> Result<()> {
        if let Ok(upload) = self.upload(target, id) {
            self.forget(id);
            upload.staged.write().unwrap_or_else(PoisonError::into_inner).take();
        }
        Ok(())
    }

    pub(super) fn list_parts(&self, target: &Target, id: &UploadId, after: u32) -> Result<PartPage> {
        let upload = self.upload(target, id)?;
        let layout = upload.layout.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = layout.behind(after).map(|(number, part)| PartMeta {
            number,
            size: part.size,
            etag: part_etag(part),
            checksum: Some(Checksum::Crc64(part.crc64)),
        });
        Ok(PartPage { parts: parts.collect(), continuation: None })
    }

    /// The uploads of this store object; those of other processes are unknown.
    pub(super) fn list_uploads(&self, prefix: &str, after: Option<&UploadMarker>) -> UploadPage {
        let uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<UploadMeta> = uploads
            .iter()
            .filter(|(_, upload)| upload.key.as_str().starts_with(prefix))
            .filter(|(id, upload)| after.is_none_or(|after| (&upload.key, &id.0) > (&after.key, &after.id.0)))
            .map(|(id, upload)| UploadMeta {
                key: upload.key.clone(),
                id: id.clone(),
                initiated: Some(upload.initiated),
            })
            .collect();
        found.sort_by(|a, b| (&a.key, &a.id.0).cmp(&(&b.key, &b.id.0)));
        UploadPage { uploads: found, continuation: None }
    }

    pub(super) fn list(&self, target: &Target, request: &ListRequest) -> Result<ListPage> {
        let (directory, key) = name::directory_of(&self.base, &request.prefix)
            .map_err(|error| fault::from_name(target.operation, &target.location, error))?;
        let limit = request.max_keys.map_or(PAGE, |keys| usize::try_from(keys).unwrap_or(PAGE).clamp(1, PAGE));
        Walk::new(request, limit, &self.hidden, describe).page(&directory, &key).map_err(|error| target.read(error))
    }

    pub(super) fn delete(&self, target: &Target) -> Result<()> {
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

    pub(super) fn copy(&self, from: &Target, to: &Target) -> Result<PutResponse> {
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

    pub(super) fn append(&self, target: &Target, position: u64, body: &[u8]) -> Result<AppendResponse> {
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
pub(super) fn short(target: &Target, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return target.error(ErrorKind::Changed, "the file became shorter while it was being read");
    }
    target.read(error)
}
