//! What one thread does to a mount, compared with the model as it goes.
//!
//! Which file is meant and where in it is said relative to what there is ([`Pick`], [`Place`]), so that an operation makes sense
//! for every tree and keeps its meaning when a failing case is made smaller.

use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::run::{Session, Wrong};
use super::tree;
use crate::bucket::forget_pages;
use crate::mapped::Mapped;

/// Which file: by size, so that large and small ones are both met often.
#[derive(Debug, Clone, Copy)]
pub enum Pick {
    /// One of the largest.
    Large(u8),
    /// Any.
    Any(u16),
}

/// Where in a file, as a part of its length in 65536ths, and how many bytes.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// 0 is the beginning, 65535 almost the end.
    pub at: u16,
    /// How many bytes are asked for; what is beyond the end does not come.
    pub len: usize,
}

/// One thing to do.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each variant says what its fields are")]
pub enum Operation {
    /// Open, read from front to back with this buffer, and find the end where it is.
    ReadAll { file: Pick, buffer: usize },
    /// Open and read here and there.
    ReadAt { file: Pick, places: Vec<Place> },
    /// Read from several places onwards, in turns, on one handle.
    Streams { file: Pick, streams: usize, buffer: usize },
    /// Read from the back to the front, at most a few hundred pieces.
    Backwards { file: Pick, buffer: usize },
    /// Read here and there through a mapping.
    Mapped { file: Pick, places: Vec<Place> },
    /// Read from front to back through a mapping.
    MappedAll { file: Pick },
    /// Open, read a few bytes and close, again and again.
    Churn { file: Pick, times: u8 },
    /// Read across the end, at it and beyond it.
    PastEnd { file: Pick },
    /// Open and keep the handle for the rest of the round.
    Hold { file: Pick },
    /// Read on the handles that are kept.
    ReadHeld { place: Place },
    /// Drop what the kernel has cached of a file.
    Forget { file: Pick },
    /// List a directory and look at everything in it.
    List { directory: u16 },
    /// List everything.
    Walk,
    /// Look for names that are not there.
    Missing { directory: u16, name: u16 },
    /// Put other bytes into the bucket in a file's place, or delete it: from then on it has its old bytes or is stale.
    Replace { file: Pick, delete: bool },
    /// Drop caches of the whole system: pages (1), names (2) or both (3). Left out when it has been done often enough.
    DropCaches { what: u8 },
}

/// What a thread keeps open.
pub type Held = Vec<(Arc<tree::File>, File)>;

/// The most pieces that are read one by one.
const MOST_PIECES: usize = 300;

impl Operation {
    /// Does it.
    ///
    /// # Errors
    /// What was not as the model has it.
    pub(super) fn perform(&self, session: &Session<'_>, held: &mut Held) -> Result<(), Wrong> {
        match self {
            Self::ReadAll { file, buffer } => with(session, *file, |file| read_all(session, file, *buffer)),
            Self::ReadAt { file, places } => with(session, *file, |file| {
                let handle = session.open(file)?;
                places.iter().try_for_each(|place| read_place(session, file, &handle, *place))
            }),
            Self::Streams { file, streams, buffer } => {
                with(session, *file, |file| read_streams(session, file, *streams, *buffer))
            }
            Self::Backwards { file, buffer } => with(session, *file, |file| {
                let handle = session.open(file)?;
                let starts = (0..file.bytes.len()).step_by(*buffer).rev().take(MOST_PIECES);
                starts.into_iter().try_for_each(|start| read_piece(session, file, &handle, start, *buffer))
            }),
            Self::Mapped { file, places } => with(session, *file, |file| {
                let Some(mapped) = map(session, file)? else { return Ok(()) };
                places
                    .iter()
                    .try_for_each(|place| read_mapped(session, file, &mapped, start_of(file, *place), place.len))
            }),
            Self::MappedAll { file } => with(session, *file, |file| {
                let Some(mapped) = map(session, file)? else { return Ok(()) };
                let mut starts = (0..file.bytes.len()).step_by(100_000);
                starts.try_for_each(|start| read_mapped(session, file, &mapped, start, 100_000))
            }),
            Self::Churn { file, times } => with(session, *file, |file| {
                for time in 0..usize::from(*times) {
                    let handle = session.open(file)?;
                    let start = (time * 7_919 * 4096) % file.bytes.len().max(1);
                    read_piece(session, file, &handle, start, 100)?;
                    look(session, file)?;
                }
                Ok(())
            }),
            Self::PastEnd { file } => with(session, *file, |file| {
                let (handle, len) = (session.open(file)?, file.bytes.len());
                for start in [len.saturating_sub(1), len, len + 1, len + 4096, len + (1 << 40)] {
                    read_piece(session, file, &handle, start, 5000)?;
                }
                Ok(())
            }),
            Self::Hold { file } => with(session, *file, |file| {
                held.push((Arc::clone(file), session.open(file)?));
                Ok(())
            }),
            Self::ReadHeld { place } => {
                held.iter().try_for_each(|(file, handle)| read_place(session, file, handle, *place))
            }
            Self::Forget { file } => with(session, *file, |file| {
                let handle = session.open(file)?;
                forget_pages(&handle).map_err(|errno| session.wrong(&file.path, "drop the pages of", &errno.into()))
            }),
            Self::List { directory } => list(session, &pick_directory(session, *directory)).map(drop),
            Self::Walk => walk(session),
            Self::Missing { directory, name } => missing(session, &pick_directory(session, *directory), *name),
            Self::Replace { file, delete } => with(session, *file, |file| {
                session.replace(file, *delete);
                Ok(())
            }),
            Self::DropCaches { what } => {
                session.drop_caches(*what);
                Ok(())
            }
        }
    }
}

/// Does something with the file that is meant; nothing when there are no files.
fn with(
    session: &Session<'_>,
    pick: Pick,
    act: impl FnOnce(&Arc<tree::File>) -> Result<(), Wrong>,
) -> Result<(), Wrong> {
    let files = session.tree.files();
    if files.is_empty() {
        return Ok(());
    }
    let at = match pick {
        Pick::Large(at) => usize::from(at) % files.len().min(5),
        Pick::Any(at) => usize::from(at) % files.len(),
    };
    act(&files[at])
}

fn pick_directory(session: &Session<'_>, at: u16) -> String {
    let directories = session.tree.directories();
    let at = usize::from(at) % directories.len();
    session.tree.directories().nth(at).unwrap_or_default().to_owned()
}

fn start_of(file: &tree::File, place: Place) -> usize {
    file.bytes.len() * usize::from(place.at) / 65_536
}

fn read_place(session: &Session<'_>, file: &tree::File, handle: &File, place: Place) -> Result<(), Wrong> {
    read_piece(session, file, handle, start_of(file, place), place.len)
}

/// Reads up to `len` bytes from `start` and compares them; fewer may only come at the end.
fn read_piece(session: &Session<'_>, file: &tree::File, handle: &File, start: usize, len: usize) -> Result<(), Wrong> {
    let mut got = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match handle.read_at(&mut got[filled..], (start + filled) as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                session.compare(file, start, &got[..filled])?;
                return Err(session.wrong(&file.path, &format!("read {len} bytes at {start} of"), &error));
            }
        }
    }
    session.compare_end(file, start, &got[..filled], len)
}

fn read_all(session: &Session<'_>, file: &tree::File, buffer: usize) -> Result<(), Wrong> {
    // Byte by byte is only for what is small.
    let buffer = if file.bytes.len() > 20_000 { buffer.max(4096) } else { buffer };
    let mut handle = session.open(file)?;
    let mut got = vec![0; buffer];
    let mut at = 0;
    loop {
        match handle.read(&mut got) {
            Ok(count) => {
                session.compare(file, at, &got[..count])?;
                at += count;
                if count == 0 {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(session.wrong(&file.path, &format!("read on at {at} of"), &error)),
        }
    }
    session.compare_end(file, at, &[], 1)
}

fn read_streams(session: &Session<'_>, file: &tree::File, streams: usize, buffer: usize) -> Result<(), Wrong> {
    let handle = session.open(file)?;
    let share = file.bytes.len().div_ceil(streams);
    for step in (0..share).step_by(buffer).take(MOST_PIECES) {
        for stream in 0..streams {
            read_piece(session, file, &handle, stream * share + step, buffer.min(share - step))?;
        }
    }
    Ok(())
}

/// Maps a file; none when it is empty, which no mapping can be.
fn map(session: &Session<'_>, file: &tree::File) -> Result<Option<Mapped>, Wrong> {
    let handle = session.open(file)?;
    let Some(len) = NonZeroUsize::new(file.bytes.len()) else { return Ok(None) };
    Mapped::new(&handle, len).map(Some).map_err(|error| session.wrong(&file.path, "map", &error))
}

fn read_mapped(
    session: &Session<'_>,
    file: &tree::File,
    mapped: &Mapped,
    start: usize,
    len: usize,
) -> Result<(), Wrong> {
    let mut got = vec![0; len];
    match mapped.read_at(start, &mut got) {
        Ok(count) => session.compare_end(file, start, &got[..count], len),
        Err(error) => {
            Err(session.wrong(&file.path, &format!("read {len} bytes at {start} through a mapping of"), &error))
        }
    }
}

/// Looks at a file's attributes.
fn look(session: &Session<'_>, file: &tree::File) -> Result<(), Wrong> {
    let found = fs::metadata(session.path(&file.path)).map_err(|error| session.wrong(&file.path, "look at", &error))?;
    if found.is_file() && found.len() == file.bytes.len() as u64 {
        return Ok(());
    }
    Err(Wrong::bad(format!("{:?} should be a file of {} bytes: {found:?}", file.path, file.bytes.len())))
}

/// Lists a directory, looks at everything in it and returns the paths of the directories in it.
fn list(session: &Session<'_>, directory: &str) -> Result<Vec<String>, Wrong> {
    let wrong = |error: &io::Error| session.wrong(directory, "list", error);
    let mut found = Vec::new();
    for entry in fs::read_dir(session.path(directory)).map_err(|error| wrong(&error))? {
        let entry = entry.map_err(|error| wrong(&error))?;
        let metadata = entry.metadata().map_err(|error| wrong(&error))?;
        let kind = entry.file_type().map_err(|error| wrong(&error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind != metadata.file_type() {
            return Err(Wrong::bad(format!("{name:?} in {directory:?} is {kind:?} in the listing: {metadata:?}")));
        }
        found.push((name, metadata.is_file().then_some(metadata.len())));
    }
    found.sort();
    let names = session.tree.names(directory).into_iter().flatten();
    let expected: Vec<(String, Option<u64>)> = names.map(|(name, size)| (name.clone(), *size)).collect();
    if found != expected {
        let more: Vec<_> = found.iter().filter(|name| !expected.contains(name)).collect();
        let fewer: Vec<_> = expected.iter().filter(|name| !found.contains(name)).collect();
        return Err(Wrong::bad(format!(
            "{directory:?} has {} names and should have {}; of those that are there these should not (size, none for a \
             directory): {more:?}; these are missing: {fewer:?}",
            found.len(),
            expected.len()
        )));
    }
    let directories = found.into_iter().filter(|(_, size)| size.is_none());
    Ok(directories.map(|(name, _)| if directory.is_empty() { name } else { format!("{directory}/{name}") }).collect())
}

/// Lists everything.
pub(super) fn walk(session: &Session<'_>) -> Result<(), Wrong> {
    let mut next = vec![String::new()];
    while let Some(directory) = next.pop() {
        next.extend(list(session, &directory)?);
    }
    Ok(())
}

fn missing(session: &Session<'_>, directory: &str, name: u16) -> Result<(), Wrong> {
    let names = session.tree.names(directory);
    for name in [format!("missing-{name}"), format!("{name}"), "d1 ".to_owned(), "0000".to_owned()] {
        if names.is_some_and(|names| names.contains_key(&name)) {
            continue;
        }
        let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
        match fs::metadata(session.path(&path)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(session.wrong(&path, "look for the missing", &error)),
            Ok(found) => return Err(Wrong::bad(format!("{path:?} should not be there: {found:?}"))),
        }
    }
    Ok(())
}

impl Session<'_> {
    /// Opens a file.
    fn open(&self, file: &tree::File) -> Result<File, Wrong> {
        File::open(self.path(&file.path)).map_err(|error| self.wrong(&file.path, "open", &error))
    }

    /// Where a path of the model is.
    fn path(&self, path: &str) -> PathBuf {
        // Joining "" would add a slash.
        if path.is_empty() { self.mnt.clone() } else { self.mnt.join(path) }
    }
}
