//! The disk tier: what was fetched once and is kept, also over restarts.
//!
//! One sparse file per version of an object, an index that says which *granules* of it are there (16 KiB each, see
//! [`geometry`](crate::geometry)) with a CRC-32C of each, and nothing that is ever synced: whatever a crash leaves behind is
//! either whole or found out. The rules:
//!
//! - Data is written before the slot that speaks of it, and a slot is taken back before the data goes.
//! - What this process wrote, from an answer that came well, it serves. What an earlier one wrote is compared with its CRC-32C the
//!   first time it is used. What is wrong is never served; it is forgotten and fetched again.
//! - When the last granule of an object arrives, the checksum of the whole, put together from the blocks', is compared with
//!   the one that the store keeps. Only that finds what went wrong before the bytes came here.
//! - Nobody reads the hole that eviction leaves: readers share a lock with each other, and eviction takes it alone.
//! - Files that are not the cache's are never touched.
//!
//! From the bottom up: [`mod@format`] is the index byte by byte and [`policy`] who has to go, both pure; `sums` are the
//! checksums, [`files`] the directory, [`space`] what may be used, [`entry`] an object with its parts `read`, `write` and
//! `evict`; `scan` finds what is there at the start, [`maintenance`] is for people.

pub mod entry;
mod evict;
pub mod files;
pub mod format;
pub mod maintenance;
pub mod policy;
mod read;
mod scan;
pub mod space;
mod sums;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

pub use entry::{Entry, Pin};
pub use format::Description;
pub use maintenance::{Cleared, Damaged, Listed, Stayed, Verified};

use crate::geometry::{Granules, bytes_of};
use crate::metrics::Metrics;
use entry::{EXTENT, lock};
use files::Place;
use format::{SLOT_LEN, SMALL};
use space::{Free, Space};

/// How many objects have their files open at the same time.
const OPEN_OBJECTS: usize = 512;

/// What the file system stores is counted in these.
const PAGE: u64 = 4096;

/// What tells a version of an object from everything else there is: half a SHA-256 over store, key, version and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub [u8; 16]);

/// What [`Entry::load`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    /// The buffer has the bytes.
    Filled,
    /// Some of them are not there.
    Absent,
    /// Some of them were there and wrong; they are forgotten now.
    Damaged,
}

/// What [`Entry::keep`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The bytes, or those that were missing, are in the cache now.
    Stored,
    /// They were there already.
    Already,
    /// They are not kept, or not all: nothing can be put out for them.
    NoRoom,
    /// They are stored and were the last of the object.
    Completed(Whole),
}

/// What is known of an object as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// Something is missing.
    Incomplete,
    /// It is complete, and has the checksum that its store keeps.
    Right,
    /// It is complete, and its store told no checksum that can be put together from pieces.
    Unknown,
    /// It is complete, and has another checksum than its store keeps: bytes were changed on the way or in the store. To be
    /// [forgotten](Entry::forget).
    Wrong,
}

/// A cache directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Shared>);

/// What the entries of a cache share.
#[derive(Debug)]
struct Shared {
    place: Place,
    space: Space,
    metrics: Arc<Metrics>,
    entries: Mutex<HashMap<ObjectId, Weak<Entry>>>,
    descriptors: Descriptors,
    /// What is there from earlier is known.
    scanned: AtomicBool,
}

impl Cache {
    /// The cache in `dir`, which exists and is ours, of at most `limit` bytes; `floor` bytes of its file system are left free. What it
    /// holds from earlier is counted by [`Cache::scan`].
    ///
    /// # Errors
    /// When the `objects` directory cannot be made.
    pub fn new(dir: &Path, limit: u64, floor: u64, metrics: Arc<Metrics>) -> io::Result<Self> {
        let objects = dir.to_owned();
        let free = move || {
            let stat = nix::sys::statvfs::statvfs(&objects).ok()?;
            Some(stat.blocks_available() * stat.fragment_size())
        };
        Self::with_free(dir, limit, floor, metrics, Box::new(free))
    }

    /// The same, with another way to learn how much is free.
    ///
    /// # Errors
    /// As [`Cache::new`].
    pub fn with_free(dir: &Path, limit: u64, floor: u64, metrics: Arc<Metrics>, free: Free) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            place: Place::new(dir)?,
            space: Space::new(limit, floor, free),
            metrics,
            entries: Mutex::default(),
            descriptors: Descriptors::default(),
            scanned: AtomicBool::new(false),
        })))
    }

    /// Finds what is there from earlier and puts out what is more than there may be. For a thread of its own; objects may be used
    /// meanwhile.
    pub fn scan(&self) {
        self.0.scan();
    }

    /// The entry of an object of `size` bytes; the same for everybody as long as anybody holds it. Makes no file. Where
    /// nothing is known to be cached it asks the file system nothing; else it reads the header.
    pub fn entry(&self, id: ObjectId, size: u64, describe: impl FnOnce() -> Description) -> Arc<Entry> {
        let entry = self.0.find(id, size);
        entry.prepare(describe);
        entry
    }

    /// Bytes that are in use.
    pub fn used(&self) -> u64 {
        self.0.space.used()
    }

    /// The most that may be.
    pub fn limit(&self) -> u64 {
        self.0.space.limit()
    }
}

impl Shared {
    fn is_scanned(&self) -> bool {
        self.scanned.load(Ordering::Acquire)
    }

    /// The one entry of this identity. Touches no file.
    fn find(self: &Arc<Self>, id: ObjectId, size: u64) -> Arc<Entry> {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.get(&id).and_then(Weak::upgrade) {
            return entry;
        }
        let absent = self.is_scanned() && !self.space.knows(id);
        let entry = Arc::new_cyclic(|me| Entry::new(me, self, id, size, absent));
        entries.insert(id, Arc::downgrade(&entry));
        entry
    }

    /// The last holder of an entry lets go.
    fn gone(&self, id: ObjectId) {
        let mut entries = lock(&self.entries);
        if entries.get(&id).is_some_and(|entry| entry.strong_count() == 0) {
            entries.remove(&id);
        }
    }

    /// Does something while nobody has the object, and nobody can get it; none when somebody has.
    fn unless_held<T>(&self, id: ObjectId, action: impl FnOnce() -> T) -> Option<T> {
        let entries = lock(&self.entries);
        let held = entries.get(&id).is_some_and(|entry| entry.strong_count() > 0);
        if held { None } else { Some(action()) }
    }
}

/// Who has files open; the ones that were not used for longest are closed when there are too many.
#[derive(Debug, Default)]
struct Descriptors {
    open: AtomicUsize,
    queue: Mutex<VecDeque<Weak<Entry>>>,
}

impl Descriptors {
    fn opened(&self, entry: &Weak<Entry>) {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        let mut rounds = {
            let mut queue = lock(&self.queue);
            queue.push_back(Weak::clone(entry));
            if queue.len() > 4 * OPEN_OBJECTS {
                queue.retain(|entry| entry.strong_count() > 0);
            }
            if open > OPEN_OBJECTS { 2 * queue.len() } else { 0 }
        };
        while rounds > 0 && self.open.load(Ordering::Relaxed) > OPEN_OBJECTS {
            rounds -= 1;
            let Some(oldest) = lock(&self.queue).pop_front() else { break };
            // With the queue let go of: this may be the last holder.
            let Some(entry) = oldest.upgrade() else { continue };
            if !entry.close_if_idle() {
                lock(&self.queue).push_back(oldest);
            }
        }
    }

    fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many bytes these granules of a block take on the disk.
fn stored(size: u64, block: u32, granules: Granules) -> u64 {
    granules
        .runs()
        .map(|run| bytes_of(size, block, &run))
        .map(|bytes| (bytes.end - bytes.start).next_multiple_of(PAGE))
        .sum()
}

/// How many bytes the index of an extent of so many blocks takes on the disk; for a small object, `tail` bytes behind its data.
fn overhead(size: u64, blocks: usize, tail: usize) -> u64 {
    let bytes = |len: usize| u64::try_from(len).unwrap_or(u64::MAX);
    if size <= SMALL {
        (size + bytes(tail)).next_multiple_of(PAGE) - size.next_multiple_of(PAGE)
    } else {
        PAGE + bytes(blocks * SLOT_LEN).next_multiple_of(PAGE)
    }
}

/// `range`, extent by extent.
fn by_extent(range: Range<u64>) -> impl Iterator<Item = (u32, Range<u64>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let extent = at / EXTENT;
        let part = at..((extent + 1) * EXTENT).min(range.end);
        at = part.end;
        Some((u32::try_from(extent).unwrap_or(u32::MAX), part))
    })
}
