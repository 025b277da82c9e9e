//! The object as a whole: its header, and its checksum.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use oss::Checksum;

use super::{Entry, Files, Group, Opened, lock, shared};
use crate::cache::Whole;
use crate::cache::files::read_up_to;
use crate::cache::format::{Description, Header, SLOT_LEN, Slot};
use crate::cache::read::usize_of;
use crate::cache::sums::{Kind, Sum, crc32c};
use crate::geometry::{GRANULE, Granules, block_len, start_of};

/// Nobody has compared anything yet.
pub(super) const UNCHECKED: u8 = 0;
/// The checksum is the store's.
pub(super) const RIGHT: u8 = 1;
/// The store told none that can be compared.
pub(super) const UNKNOWN: u8 = 2;
const WRONG: u8 = 3;

/// What is in the header, or will be.
#[derive(Debug, Default)]
pub(in crate::cache) struct Record {
    pub(in crate::cache) complete: bool,
    pub(in crate::cache) right: bool,
    pub(in crate::cache) sum: Option<Sum>,
    pub(in crate::cache) description: Description,
}

impl Entry {
    pub(in crate::cache) fn header(&self, record: &Record) -> Header {
        Header {
            digest: self.id.0,
            size: self.size,
            complete: record.complete,
            right: record.right,
            sum: record.sum,
            description: record.description.clone(),
        }
    }

    pub(in crate::cache) fn write_header(&self, files: &Files, record: &Record) -> io::Result<()> {
        if self.doomed.load(Ordering::Acquire) {
            return Ok(());
        }
        let at = if self.is_small() { self.size + u64::try_from(SLOT_LEN).expect("288 fits") } else { 0 };
        self.shared.place.write(&files.index, self.index_part(), &self.header(record).encode(), at)
    }

    /// The object is not complete any more.
    pub(in crate::cache) fn not_whole(&self, files: &Files) {
        self.whole.store(UNCHECKED, Ordering::Release);
        let mut record = lock(&self.record);
        if record.complete || record.right {
            (record.complete, record.right) = (false, false);
            // Should this fail, the slots still say what is there.
            let _ = self.write_header(files, &record);
        }
    }

    pub(super) fn set_kind(&self, sum: Option<Sum>) {
        let kind = match sum.map(|sum| sum.kind) {
            None => 0,
            Some(Kind::Xz) => 1,
            Some(Kind::Nvme) => 2,
        };
        self.kind.store(kind, Ordering::Release);
    }

    /// Takes the kind of checksum from the scheme, as long as the store has told none. S3 tells its checksum only to who asks for the
    /// whole object, which is too late to compute ours from what passes by.
    pub(super) fn guess_kind(&self, description: &Description) {
        let location = &description.location;
        let likely = if location.starts_with("s3:") {
            2
        } else if location.starts_with("oss:") {
            1
        } else {
            0
        };
        self.likely.store(likely, Ordering::Relaxed);
    }

    /// The kind of checksum to compute for blocks: the store's, or the one it probably has.
    pub(in crate::cache) fn kind(&self) -> Option<Kind> {
        let kind = match self.kind.load(Ordering::Acquire) {
            0 => self.likely.load(Ordering::Relaxed),
            told => told,
        };
        match kind {
            1 => Some(Kind::Xz),
            2 => Some(Kind::Nvme),
            _ => None,
        }
    }

    /// Notes the whole object's checksum, as an answer of the store told it.
    pub fn learn(&self, checksum: Option<Checksum>) {
        let Some(sum) = checksum.and_then(Sum::of_store) else { return };
        let mut record = lock(&self.record);
        if record.sum != Some(sum) && self.size > 0 {
            record.sum = Some(sum);
            record.right = false;
            self.set_kind(Some(sum));
            self.whole.store(UNCHECKED, Ordering::Release);
            drop(record);
            if let Some(opened) = self.opened_now().filter(|opened| !opened.files().fresh.load(Ordering::Acquire)) {
                // Should this fail, it has to be told again after a restart.
                let _ = self.write_header(opened.files(), &lock(&self.record));
            }
        }
    }

    /// What is known of the object as a whole. Compares checksums when it became complete, or the store's was learnt, since the last
    /// time; that reads the index.
    pub fn whole(&self) -> Whole {
        if !self.complete() {
            return Whole::Incomplete;
        }
        match self.whole.load(Ordering::Acquire) {
            RIGHT => return Whole::Right,
            UNKNOWN => return Whole::Unknown,
            WRONG => return Whole::Wrong,
            _ => {}
        }
        let Ok(Some(opened)) = self.opened() else { return Whole::Incomplete };
        let expected = lock(&self.record).sum;
        let right = match expected {
            None => None,
            Some(expected) => match self.combine(&opened, expected.kind) {
                Some(actual) => Some(actual == expected.value),
                None => return Whole::Incomplete,
            },
        };
        let mut record = lock(&self.record);
        if !self.complete() || record.sum != expected {
            // Something happened meanwhile. Nothing may be held when it is asked anew.
            drop((record, opened));
            return if self.complete() { self.whole() } else { Whole::Incomplete };
        }
        let (state, whole) = match right {
            None => (UNKNOWN, Whole::Unknown),
            Some(true) => (RIGHT, Whole::Right),
            Some(false) => (WRONG, Whole::Wrong),
        };
        self.whole.store(state, Ordering::Release);
        (record.complete, record.right) = (whole != Whole::Wrong, whole == Whole::Right);
        // Should this fail, it is found out again after a restart.
        let _ = self.write_header(opened.files(), &record);
        whole
    }

    /// Notes that a small object was written whole, with this result in its header.
    pub(in crate::cache) fn written_whole(&self, sum: Option<Sum>, actual: Option<Sum>) {
        let mut record = lock(&self.record);
        if record.sum == sum {
            record.complete = true;
            record.right = sum.is_some() && sum == actual;
            let state = match sum {
                None => UNKNOWN,
                Some(_) if record.right => RIGHT,
                Some(_) => WRONG,
            };
            self.whole.store(state, Ordering::Release);
        }
    }

    /// The checksum of the whole, put together from the blocks'; a block that has none of this kind yet gets it. None when something
    /// turns out to be missing.
    pub(in crate::cache) fn combine(&self, opened: &Opened<'_>, kind: Kind) -> Option<u64> {
        let mut whole = None;
        for extent in 0..self.extents() {
            let group = self.group(opened, extent);
            let _gate = shared(&group.gate);
            let blocks = self.blocks_of(extent);
            let mut bytes = vec![0; blocks.len() * SLOT_LEN];
            let read = {
                let _slots = lock(&group.slots);
                read_up_to(&opened.files().index, &mut bytes, self.slot_place(blocks.start)).ok()?
            };
            for (number, bytes) in blocks.zip(bytes[..read].chunks(SLOT_LEN)) {
                let stored = Slot::decode(&self.id.0, number, bytes).and_then(|slot| slot.sum);
                let sum = match stored.filter(|sum| sum.kind == kind) {
                    Some(sum) => sum,
                    None => self.seal(opened.files(), group, number, kind)?,
                };
                let len = u64::from(block_len(self.size, number));
                whole = Some(whole.map_or(sum.value, |before| kind.combine(before, sum.value, len)));
            }
        }
        self.complete().then_some(whole).flatten()
    }

    /// Gives a complete block the checksum of the whole of it, by reading it back. None when it is not complete or not right; what is
    /// damaged is forgotten. The extent's gate is held.
    pub(in crate::cache) fn seal(&self, files: &Files, group: &Group, number: u32, kind: Kind) -> Option<Sum> {
        let every = Granules::of_block(self.size, number);
        let sealed = {
            let _slots = lock(&group.slots);
            match self.read_slot(files, number) {
                Some(mut slot) if slot.granules.has(every) => {
                    if let Some(sum) = slot.sum.filter(|sum| sum.kind == kind) {
                        return Some(sum);
                    }
                    let mut bytes = vec![0; usize_of(u64::from(block_len(self.size, number)))];
                    let read = self.data(files).and_then(|data| data.read_exact_at(&mut bytes, start_of(number)));
                    let right = || {
                        let granules = bytes.chunks(usize_of(GRANULE));
                        granules.zip(&slot.crcs).all(|(bytes, crc)| crc32c(bytes) == *crc)
                    };
                    if read.is_ok() && right() {
                        let sum = Sum::of(kind, &bytes);
                        slot.sum = Some(sum);
                        // Should this fail, it is computed again when it is needed again.
                        let _ = self.write_slot(files, number, &slot);
                        Some(sum)
                    } else {
                        None
                    }
                }
                _ => None,
            }
        };
        if sealed.is_none() {
            self.forget_damaged(files, group, number, every);
        }
        sealed
    }
}
