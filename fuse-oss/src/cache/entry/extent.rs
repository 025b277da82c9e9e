//! What is there, granule by granule, in extents of 64 blocks.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

use tracing::warn;

use super::{Entry, Opened, lock};
use crate::cache;
use crate::cache::files::read_up_to;
use crate::cache::format::{SLOT_LEN, Slot};
use crate::geometry::Granules;

/// An extent.
#[derive(Debug)]
pub(in crate::cache) struct Group {
    pub(in crate::cache) gate: RwLock<()>,
    pub(in crate::cache) slots: Mutex<()>,
    pub(in crate::cache) blocks: Box<[Block]>,
    /// In which opening of the object it was used last.
    pub(super) seen: AtomicU32,
}

/// What is there of a block, as sets of granules.
#[derive(Debug, Default)]
pub(in crate::cache) struct Block {
    pub(in crate::cache) present: AtomicU64,
    pub(in crate::cache) proved: AtomicU64,
    pub(in crate::cache) writing: AtomicU64,
}

impl Block {
    pub(in crate::cache) fn present(&self) -> Granules {
        Granules(self.present.load(Ordering::Acquire))
    }

    pub(in crate::cache) fn proved(&self) -> Granules {
        Granules(self.proved.load(Ordering::Acquire))
    }
}

impl Entry {
    /// An extent, if anything can be there.
    pub(super) fn look_up(&self, extent: u32) -> Option<&Group> {
        let place = self.groups.get(usize::try_from(extent).ok()?)?;
        if let Some(group) = place.get() {
            return Some(group);
        }
        let opened = self.opened().ok()??;
        Some(self.group(&opened, extent))
    }

    /// An extent that was looked at before.
    pub(in crate::cache) fn known_group(&self, extent: u32) -> Option<&Group> {
        self.groups.get(usize::try_from(extent).ok()?)?.get()
    }

    /// An extent; its part of the index is read at the first time.
    pub(in crate::cache) fn group(&self, opened: &Opened<'_>, extent: u32) -> &Group {
        let place = &self.groups[usize::try_from(extent).unwrap_or(usize::MAX)];
        place.get_or_init(|| {
            let blocks = self.blocks_of(extent);
            let mut bytes = vec![0; blocks.len() * SLOT_LEN];
            let empty = opened.files().fresh.load(Ordering::Acquire) || self.doomed.load(Ordering::Acquire);
            let read = if empty {
                Ok(0)
            } else {
                read_up_to(&opened.files().index, &mut bytes, self.slot_place(blocks.start))
            };
            let read = read.unwrap_or_else(|error| {
                warn!(%error, object = %hex::encode(self.id.0), "cannot read an index of the cache");
                0
            });
            self.decode_group(extent, &bytes[..read])
        })
    }

    /// Takes in what an index says of an extent. Exactly once per extent, because it counts.
    pub(super) fn decode_group(&self, extent: u32, bytes: &[u8]) -> Group {
        let trusted = self.trusted.load(Ordering::Relaxed);
        let (mut all, mut present, mut stored) = (0_u64, 0_u64, 0_u64);
        let blocks = self.blocks_of(extent).zip(0..).map(|(number, at)| {
            let every = Granules::of_block(self.size, number);
            let slot = bytes.get(at * SLOT_LEN..).and_then(|bytes| Slot::decode(&self.id.0, number, bytes));
            let here = slot.map_or(Granules::EMPTY, |slot| slot.granules.among(every));
            all += u64::from(every.count());
            present += u64::from(here.count());
            stored += self.stored(number, here);
            let proved = if trusted { here } else { Granules::EMPTY };
            Block { present: here.0.into(), proved: proved.0.into(), writing: AtomicU64::new(0) }
        });
        let blocks = blocks.collect();
        if self.assumed_present.load(Ordering::Relaxed) {
            self.missing.fetch_add(all - present, Ordering::AcqRel);
        } else {
            self.missing.fetch_sub(present, Ordering::AcqRel);
        }
        let proved = if trusted { present } else { 0 };
        if self.assumed_proved.load(Ordering::Relaxed) {
            self.unproved.fetch_add(all - proved, Ordering::AcqRel);
        } else {
            self.unproved.fetch_sub(proved, Ordering::AcqRel);
        }
        if present > 0 {
            let bytes = stored + self.overhead(extent);
            self.shared.space.restore(self.unit(extent), self.size, bytes, self.is_used_again());
        }
        Group { gate: RwLock::new(()), slots: Mutex::new(()), blocks, seen: AtomicU32::new(u32::MAX) }
    }

    /// How many bytes these granules of a block take on the disk.
    pub(in crate::cache) fn stored(&self, block: u32, granules: Granules) -> u64 {
        cache::stored(self.size, block, granules)
    }

    /// How many bytes the index of an extent takes on the disk.
    pub(in crate::cache) fn overhead(&self, extent: u32) -> u64 {
        let tail = if self.is_small() { SLOT_LEN + self.header(&lock(&self.record)).encode().len() + 8 } else { 0 };
        cache::overhead(self.size, self.blocks_of(extent).len(), tail)
    }

    /// Counts granules as present and proved. True when that made the object complete.
    pub(in crate::cache) fn mark(&self, block: &Block, granules: Granules) -> bool {
        let new = Granules(granules.0 & !block.present.fetch_or(granules.0, Ordering::AcqRel));
        self.mark_proved(block, granules);
        let count = u64::from(new.count());
        count > 0 && self.missing.fetch_sub(count, Ordering::AcqRel) == count
    }

    /// Counts granules as proved. True when that was the last of the object.
    pub(in crate::cache) fn mark_proved(&self, block: &Block, granules: Granules) -> bool {
        let new = Granules(granules.0 & !block.proved.fetch_or(granules.0, Ordering::AcqRel));
        let count = u64::from(new.count());
        count > 0 && self.unproved.fetch_sub(count, Ordering::AcqRel) == count
    }

    /// Counts granules as not there. Returns those that were.
    pub(in crate::cache) fn unmark(&self, block: &Block, granules: Granules) -> Granules {
        let proved = Granules(block.proved.fetch_and(!granules.0, Ordering::AcqRel) & granules.0);
        self.unproved.fetch_add(u64::from(proved.count()), Ordering::AcqRel);
        let present = Granules(block.present.fetch_and(!granules.0, Ordering::AcqRel) & granules.0);
        self.missing.fetch_add(u64::from(present.count()), Ordering::AcqRel);
        present
    }

    /// Forgets an extent in memory, unless somebody has the object pinned. The extent's gate is held exclusively.
    pub(in crate::cache) fn blank_extent(&self, group: &Group) -> bool {
        let pins = lock(&self.pins);
        if *pins > 0 {
            return false;
        }
        for block in &group.blocks {
            self.unmark(block, Granules(u64::MAX));
        }
        true
    }
}
