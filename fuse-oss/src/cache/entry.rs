//! One object of the cache, while somebody holds it.
//!
//! What is there is two bits per granule: *present* (recorded in the index) and *proved* (written or verified by this
//! process). They are atomics, read without any lock. Checksums stay in the index file and are read when needed: an object
//! of 100 GB has 27 MB of them, and most readers want a few. The slots of 64 blocks, an extent, are read at the first
//! touch of it: that is one read of 18 KiB, where reading the whole table at open would be 27 MB before the first byte.
//! Whether an object is complete is known from the header alone.
//!
//! # Locks
//! Taken in this order:
//! 1. `body`: shared by everybody who uses the files, exclusive for opening, closing and removing them.
//! 2. an extent's `gate`: shared by everybody who reads or writes there, exclusive for punching it out. So nobody reads the hole
//!    that eviction leaves.
//! 3. an extent's `slots`: held while its slots are read and written.
//! 4. `record`: held while the header is written.
//! 5. `pins`, and the tables of the cache: only ever held for a moment.
//!
//! Two writers of one granule would be a mess: a third bit, *writing*, says that somebody does, and the other leaves it to him.

mod body;
mod extent;
mod pin;
mod whole;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Instant;

pub use pin::Pin;

pub(super) use body::{Files, Opened};
pub(super) use extent::Group;

use super::files::Part;
use super::format::{Description, SMALL, Slot};
use super::policy::Unit;
use super::{ObjectId, Shared};
use crate::geometry::{BLOCK, GRANULE, Granules, block_count, by_block};
use body::{Body, State};
use extent::Block;
use whole::{RIGHT, Record, UNCHECKED, UNKNOWN};

/// Blocks that are evicted together, and whose slots are read together: 64 MiB.
pub(super) const EXTENT_BLOCKS: u32 = 64;

/// Bytes of an extent.
pub(super) const EXTENT: u64 = EXTENT_BLOCKS as u64 * BLOCK;

/// An object of the cache. See the [module](self); [`Cache::entry`](super::Cache::entry) makes them.
pub struct Entry {
    pub(super) id: ObjectId,
    pub(super) size: u64,
    pub(super) shared: Arc<Shared>,
    me: Weak<Self>,
    body: RwLock<Body>,
    groups: Box<[OnceLock<Group>]>,
    /// Granules that are not present, as far as the header and the extents looked at say.
    pub(super) missing: AtomicU64,
    /// Granules that are not proved.
    unproved: AtomicU64,
    /// Extents not looked at yet count as present...
    assumed_present: AtomicBool,
    /// ... and as proved.
    assumed_proved: AtomicBool,
    /// Whatever the index says was proved by this process.
    trusted: AtomicBool,
    whole: AtomicU8,
    /// The kind of the store's checksum, once it is known: 0, 1 XZ, 2 NVME.
    kind: AtomicU8,
    /// The kind that its store is known to use, in the same way.
    likely: AtomicU8,
    pub(super) record: Mutex<Record>,
    /// How often it was opened.
    pub(super) opens: AtomicU32,
    touched: AtomicBool,
    used_again: AtomicBool,
    used_again_noted: AtomicBool,
    /// For closing what was not used for long.
    used_lately: AtomicBool,
    /// The extent that found no room last, and when: asking anew for each piece of it would cost more than it is worth.
    pub(super) refused: Mutex<Option<Refusal>>,
    pins: Mutex<u32>,
    /// Found wrong while somebody holds a pin; removed with the last one.
    pub(super) doomed: AtomicBool,
}

/// An extent that found no room.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) extent: u32,
    pub(super) at: Instant,
    /// How often anything had been freed by then.
    pub(super) freed: u64,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, missing) = (hex::encode(self.id.0), self.missing.load(Ordering::Relaxed));
        f.debug_struct("Entry")
            .field("id", &id)
            .field("size", &self.size)
            .field("missing", &missing)
            .finish_non_exhaustive()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn shared<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn exclusive<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    /// Touches no file.
    pub(super) fn new(me: &Weak<Self>, shared: &Arc<Shared>, id: ObjectId, size: u64, absent: bool) -> Self {
        let extents = usize::try_from(block_count(size).div_ceil(EXTENT_BLOCKS)).unwrap_or(0);
        let granules = size.div_ceil(GRANULE);
        let absent = absent || size == 0;
        let state = if absent { State::Absent } else { State::Unread };
        Self {
            id,
            size,
            shared: Arc::clone(shared),
            me: Weak::clone(me),
            body: RwLock::new(Body { state, files: None }),
            groups: (0..extents).map(|_| OnceLock::new()).collect(),
            missing: AtomicU64::new(granules),
            unproved: AtomicU64::new(granules),
            assumed_present: AtomicBool::new(false),
            assumed_proved: AtomicBool::new(false),
            trusted: AtomicBool::new(false),
            whole: AtomicU8::new(if size == 0 { UNKNOWN } else { UNCHECKED }),
            kind: AtomicU8::new(0),
            likely: AtomicU8::new(0),
            record: Mutex::default(),
            opens: AtomicU32::new(0),
            touched: AtomicBool::new(false),
            used_again: AtomicBool::new(false),
            used_again_noted: AtomicBool::new(false),
            used_lately: AtomicBool::new(false),
            refused: Mutex::default(),
            pins: Mutex::new(0),
            doomed: AtomicBool::new(false),
        }
    }

    /// Reads the index, unless somebody has or there is none; the description is for what will be written.
    pub(super) fn prepare(&self, describe: impl FnOnce() -> Description) {
        if shared(&self.body).state == State::Unread {
            // What cannot be read is not there; writing will tell.
            let _ = self.opened();
        }
        let mut record = lock(&self.record);
        if record.description.location.is_empty() {
            record.description = describe();
        }
        self.guess_kind(&record.description);
    }

    /// Whose bytes these are.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The object's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Objects of up to 256 KiB have one file.
    pub(super) fn is_small(&self) -> bool {
        self.size <= SMALL
    }

    pub(super) fn index_part(&self) -> Part {
        if self.is_small() { Part::Small } else { Part::Index }
    }

    pub(super) fn data_part(&self) -> Part {
        if self.is_small() { Part::Small } else { Part::Data }
    }

    pub(super) fn extents(&self) -> u32 {
        u32::try_from(self.groups.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn unit(&self, extent: u32) -> Unit {
        Unit { object: self.id, extent }
    }

    /// The blocks of an extent.
    pub(super) fn blocks_of(&self, extent: u32) -> Range<u32> {
        let first = extent * EXTENT_BLOCKS;
        first..(first + EXTENT_BLOCKS).min(block_count(self.size))
    }

    pub(super) fn slot_place(&self, block: u32) -> u64 {
        if self.is_small() { self.size } else { Slot::place(block) }
    }

    /// What of a block is recorded as there. Quick: at most, once per 64 MiB, it reads that part of the index.
    pub fn present(&self, block: u32) -> Granules {
        let Some(group) = self.look_up(block / EXTENT_BLOCKS) else { return Granules::EMPTY };
        let at = usize::try_from(block % EXTENT_BLOCKS).unwrap_or(usize::MAX);
        group.blocks.get(at).map_or(Granules::EMPTY, Block::present)
    }

    /// Whether every granule that the bytes `range` touch is recorded as there. As quick as [`Entry::present`].
    pub fn has(&self, range: &Range<u64>) -> bool {
        range.end <= self.size
            && by_block(range.clone()).all(|(block, within)| self.present(block).has(Granules::touched(&within)))
    }

    /// Whether every granule of the object is recorded as there.
    pub fn complete(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    /// Whether the object is complete, every granule was written or verified by this process, and the checksum of the whole is
    /// right, if the store told one: then it may be read without asking.
    pub fn proved(&self) -> bool {
        self.complete()
            && self.unproved.load(Ordering::Acquire) == 0
            && matches!(self.whole.load(Ordering::Acquire), RIGHT | UNKNOWN)
            && !self.doomed.load(Ordering::Acquire)
    }

    /// Notes that somebody opened the object again, for what is evicted first. Memory only; it is written down when the last
    /// holder lets go.
    pub fn touch(&self) {
        let now = self.opens.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.touched.store(true, Ordering::Relaxed);
        if self.groups.len() == 1
            && let Some(group) = self.groups[0].get()
        {
            group.seen.store(now, Ordering::Relaxed);
            self.note_use(0);
        }
    }

    fn note_use(&self, extent: u32) {
        if self.shared.space.used_again(&self.unit(extent)) {
            self.used_again.store(true, Ordering::Relaxed);
        }
    }

    /// Somebody reads what is there: the first time since the object was opened that counts as use.
    pub(super) fn note_read(&self, extent: u32, group: &Group) {
        let now = self.opens.load(Ordering::Relaxed);
        if group.seen.load(Ordering::Relaxed) != now && group.seen.swap(now, Ordering::Relaxed) != now {
            self.note_use(extent);
        }
    }

    /// What somebody writes he is not counted as using when he reads it.
    pub(super) fn note_write(&self, group: &Group) {
        group.seen.store(self.opens.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether it was wanted more than once.
    pub(super) fn is_used_again(&self) -> bool {
        self.used_again.load(Ordering::Relaxed)
    }
}
