//! The local file that is sent, and how it is known to be the same still.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use bytes::Bytes;

use super::OPERATION;
use crate::error::{Error, ErrorKind, Result};
use crate::location::Location;
use crate::sums::Sums;
use crate::transfer::buffers::Buffers;
use crate::transfer::{blocking, local};

/// Which file, and which content of it: two equal stamps of one machine mean equal bytes, as long as nobody had the file open for
/// writing when the first was taken and that was longer ago than the file system's clock ticks (a few milliseconds).
///
/// The time of the last status change is the kernel's own: a program that sets the time of modification back changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileStamp {
    /// The file system's device number.
    pub device: u64,
    /// The file's number on it.
    pub inode: u64,
    /// Its length in bytes.
    pub size: u64,
    /// When its content was last changed: seconds since 1970, nanoseconds.
    pub modified: (i64, i64),
    /// When anything of it was last changed, its names and rights included.
    pub changed: (i64, i64),
}

impl FileStamp {
    /// Of an open file.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(&file.metadata()?))
    }
}

impl From<&Metadata> for FileStamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The local file.
pub(super) struct Source {
    pub(super) location: Location,
    file: File,
    pub(super) size: u64,
    pub(super) stamp: FileStamp,
    /// What its parts are read into.
    buffers: Buffers,
}

impl Source {
    pub(super) fn new(location: Location, file: File, size: u64) -> Result<Self> {
        let stamp = FileStamp::of(&file).map_err(|error| unreadable(&location, error))?;
        let source = Self { location, file, size, stamp, buffers: Buffers::default() };
        if stamp.size == size { Ok(source) } else { Err(source.changed()) }
    }

    /// Fails if the content was changed. A new name or other rights are none of our business.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let now = FileStamp::of(&self.file).map_err(|error| unreadable(&self.location, error))?;
        let is_the_same = (now.size, now.modified) == (self.stamp.size, self.stamp.modified);
        if is_the_same { Ok(()) } else { Err(self.changed()) }
    }

    /// These bytes and their checksums.
    pub(super) async fn read(self: &Arc<Self>, range: Range<u64>) -> Result<(Bytes, Sums)> {
        let source = Arc::clone(self);
        blocking(OPERATION, &self.location, move || {
            let length = usize::try_from(range.end - range.start)
                .map_err(|_| unreadable(&source.location, io::ErrorKind::OutOfMemory.into()))?;
            let bytes = source.buffers.fill(length, |buffer| source.file.read_exact_at(buffer, range.start));
            let bytes = bytes.map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => source.changed(),
                _ => unreadable(&source.location, error),
            })?;
            let sums = Sums::of(&bytes);
            Ok((bytes, sums))
        })
        .await?
    }

    pub(super) fn changed(&self) -> Error {
        let message = "the local file was written to while it was being uploaded; let its writer finish first";
        Error::new(ErrorKind::Changed, OPERATION, &self.location, message)
    }
}

fn unreadable(location: &Location, error: io::Error) -> Error {
    local(OPERATION, location, "the local file cannot be read", error)
}
