//! The files of the cache directory: where they are, and every operation on them.
//!
//! ```text
//! CACHE_DIR/lock                       who owns the directory (held with flock)
//! CACHE_DIR/objects/3f/3fa9...         an object's data, with holes where something is missing
//! CACHE_DIR/objects/3f/3fa9....index   what of it is there, and checksums
//! CACHE_DIR/objects/07/07c2....small   an object of at most 256 KiB: data and index in one
//! ```
//!
//! Names are digests, so nothing an object is called can reach outside. Links are never followed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};

use super::ObjectId;

/// What the name of an index file ends with.
pub const INDEX_SUFFIX: &str = ".index";

/// What the name of a small object's file ends with.
pub const SMALL_SUFFIX: &str = ".small";

/// One of an object's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Its data.
    Data,
    /// What is there.
    Index,
    /// Both.
    Small,
}

impl Part {
    /// An error that says which file it is about.
    fn named(self, error: &io::Error) -> io::Error {
        let what = match self {
            Self::Data => "the data file of an object",
            Self::Index => "the index file of an object",
            Self::Small => "the file of a small object",
        };
        io::Error::new(error.kind(), format!("{what}: {error}"))
    }
}

/// The directory of objects.
#[derive(Debug)]
pub struct Place {
    objects: PathBuf,
    #[cfg(test)]
    pub journal: journal::Journal,
}

impl Place {
    /// In `dir`, which exists and is ours.
    ///
    /// # Errors
    /// When the `objects` directory cannot be made.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let objects = dir.join("objects");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&objects)?;
        Ok(Self {
            objects,
            #[cfg(test)]
            journal: journal::Journal::default(),
        })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.objects
    }

    /// The directory of all objects whose digests begin with this byte.
    pub fn shard(&self, first: u8) -> PathBuf {
        self.objects.join(hex::encode([first]))
    }

    /// Where one of an object's files is.
    pub fn path_of(&self, id: ObjectId, part: Part) -> PathBuf {
        let mut name = hex::encode(id.0);
        match part {
            Part::Data => {}
            Part::Index => name.push_str(INDEX_SUFFIX),
            Part::Small => name.push_str(SMALL_SUFFIX),
        }
        self.shard(id.0[0]).join(name)
    }

    /// Opens a file for reading and writing; none when it is not there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(&self, id: ObjectId, part: Part) -> io::Result<Option<File>> {
        absent(options().open(self.path_of(id, part)))
    }

    /// Opens a file for reading only; none when it is not there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open_read_only(&self, id: ObjectId, part: Part) -> io::Result<Option<File>> {
        absent(options().write(false).open(self.path_of(id, part)))
    }

    /// Makes a file, or empties one that is there, and makes it `len` bytes long without storing any.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(&self, id: ObjectId, part: Part, len: u64) -> io::Result<File> {
        let path = self.path_of(id, part);
        let open = || options().create(true).truncate(true).mode(0o600).open(&path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(self.shard(id.0[0]))?;
                open()?
            }
            other => other?,
        };
        #[cfg(test)]
        self.note(|| journal::Write::Created { part });
        if len > 0 {
            self.resize(&file, part, len)?;
        }
        Ok(file)
    }

    /// Makes a file `len` bytes long.
    ///
    /// # Errors
    /// What the file system says.
    pub fn resize(&self, file: &File, part: Part, len: u64) -> io::Result<()> {
        file.set_len(len).map_err(|error| part.named(&error))?;
        #[cfg(test)]
        self.note(|| journal::Write::Resized { part, len });
        Ok(())
    }

    /// Removes a file. That it is not there is all right.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self, id: ObjectId, part: Part) -> io::Result<()> {
        match fs::remove_file(self.path_of(id, part)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                #[cfg(test)]
                self.note(|| journal::Write::Removed { part });
                Ok(())
            }
        }
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, file: &File, part: Part, bytes: &[u8], at: u64) -> io::Result<()> {
        #[cfg(test)]
        self.note(|| journal::Write::Bytes { part, at, bytes: bytes.to_vec() });
        file.write_all_at(bytes, at).map_err(|error| part.named(&error))
    }

    /// Writes two pieces, one behind the other, with one call where that works.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_both(&self, file: &File, part: Part, pieces: [&[u8]; 2], at: u64) -> io::Result<()> {
        let [first, second] = pieces;
        let slices = [IoSlice::new(first), IoSlice::new(second)];
        let offset = libc::off_t::try_from(at).map_err(io::Error::other)?;
        let written = loop {
            match nix::sys::uio::pwritev(file, &slices, offset) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(|errno| part.named(&errno.into()))?,
            }
        };
        #[cfg(test)]
        self.note(|| journal::Write::Bytes { part, at, bytes: [first, second].concat() });
        let at = |skip: usize| at + u64::try_from(skip).unwrap_or(u64::MAX);
        if written < first.len() {
            file.write_all_at(&first[written..], at(written))?;
        }
        let of_second = written.saturating_sub(first.len());
        if of_second < second.len() {
            file.write_all_at(&second[of_second..], at(first.len() + of_second))?;
        }
        Ok(())
    }

    /// Makes a hole: gives the space back, and what is read there is zeros. `false` where the file system cannot.
    ///
    /// # Errors
    /// What the file system says.
    pub fn punch(&self, file: &File, part: Part, at: u64, len: u64) -> io::Result<bool> {
        let range = libc::off_t::try_from(at).and_then(|at| Ok((at, libc::off_t::try_from(len)?)));
        let (offset, length) = range.map_err(io::Error::other)?;
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            match fallocate(file, mode, offset, length) {
                Ok(()) => {
                    #[cfg(test)]
                    self.note(|| journal::Write::Hole { part, at, len });
                    return Ok(true);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(false),
                Err(errno) => return Err(part.named(&errno.into())),
            }
        }
    }

    #[cfg(test)]
    fn note(&self, write: impl FnOnce() -> journal::Write) {
        self.journal.note(write);
    }
}

/// Reads until the buffer is full or the file ends.
///
/// # Errors
/// What the file system says.
pub fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + u64::try_from(filled).unwrap_or(u64::MAX)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Drops a file's clean pages from the page cache, so that the next read is of the disk. It is only advice.
pub fn drop_pages(file: impl AsFd, at: u64, len: u64) {
    if let (Ok(at), Ok(len)) = (libc::off_t::try_from(at), libc::off_t::try_from(len)) {
        let _ = posix_fadvise(file, at, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

/// The object whose file has this name, and which of its files it is; none when it is not one of ours.
pub fn parse_name(name: &str) -> Option<(ObjectId, Part)> {
    let (digest, part) = if let Some(digest) = name.strip_suffix(INDEX_SUFFIX) {
        (digest, Part::Index)
    } else if let Some(digest) = name.strip_suffix(SMALL_SUFFIX) {
        (digest, Part::Small)
    } else {
        (name, Part::Data)
    };
    let mut id = [0; 16];
    hex::decode_to_slice(digest, &mut id).ok()?;
    // Upper-case digits would be somebody else's.
    (hex::encode(id) == digest).then_some((ObjectId(id), part))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What was done to the files of an object, so that tests can see what is left of any part of it.
#[cfg(test)]
pub mod journal {
    use super::Part;
    use std::sync::Mutex;

    /// One thing that was done.
    #[derive(Debug, Clone)]
    pub enum Write {
        Created { part: Part },
        Resized { part: Part, len: u64 },
        Removed { part: Part },
        Bytes { part: Part, at: u64, bytes: Vec<u8> },
        Hole { part: Part, at: u64, len: u64 },
    }

    /// All of it, while it is switched on.
    #[derive(Debug, Default)]
    pub struct Journal(Mutex<Option<Vec<Write>>>);

    impl Journal {
        pub fn start(&self) {
            *self.0.lock().unwrap() = Some(Vec::new());
        }

        pub fn taken(&self) -> Vec<Write> {
            self.0.lock().unwrap().take().unwrap_or_default()
        }

        pub fn note(&self, write: impl FnOnce() -> Write) {
            if let Some(writes) = &mut *self.0.lock().unwrap() {
                writes.push(write());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_are_names_of_ours() {
        let id = ObjectId([0xab; 16]);
        let digest = "ab".repeat(16);
        assert_eq!(parse_name(&digest), Some((id, Part::Data)));
        assert_eq!(parse_name(&format!("{digest}.index")), Some((id, Part::Index)));
        assert_eq!(parse_name(&format!("{digest}.small")), Some((id, Part::Small)));
        for name in
            ["lock", "ab", "", ".index", &digest.to_uppercase(), &format!("{digest}0"), &format!("{digest}.idx")]
        {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_link_is_not_followed_and_two_pieces_are_one_behind_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path()).unwrap();
        let id = ObjectId([1; 16]);
        let file = place.create(id, Part::Small, 0).unwrap();
        place.write_both(&file, Part::Small, [b"abc", b"defg"], 2).unwrap();
        assert_eq!(fs::read(place.path_of(id, Part::Small)).unwrap(), b"\0\0abcdefg");
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, place.path_of(id, Part::Data)).unwrap();
        assert!(place.create(id, Part::Data, 0).is_err());
        assert!(place.open(id, Part::Data).is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        place.remove(id, Part::Data).unwrap();
        place.remove(id, Part::Data).unwrap();
        assert!(victim.exists());
    }
}
