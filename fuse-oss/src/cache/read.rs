//! Reading what an entry has.

use std::os::unix::fs::FileExt;

use super::entry::{Entry, Files, Group, Opened, lock, shared};
use super::files::{drop_pages, read_up_to};
use super::format::{SLOT_LEN, Slot};
use super::sums::{Kind, Sum, crc32c};
use super::{Loaded, Whole};
use crate::geometry::{BLOCK, GRANULE, GRANULES, Granules, block_len, by_block, bytes_of, start_of};

/// What [`Entry::check`] found.
#[derive(Debug, Clone, Default)]
pub(super) struct Checked {
    /// Bytes read.
    pub(super) bytes: u64,
    /// Bytes that were not what was written; they are forgotten now.
    pub(super) damaged: u64,
    /// The object is complete, and not the one that the store described.
    pub(super) wrong: bool,
}

impl Entry {
    /// Fills `buffer` with the object's bytes from `offset` on, if every granule they touch was written or verified by this
    /// process and the files are open; otherwise says no without any I/O. What is in the buffer then means nothing.
    pub fn read_proved(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let Some(range) = self.range(offset, buffer) else { return false };
        if buffer.is_empty() {
            return true;
        }
        let Some(opened) = self.opened_now() else { return false };
        let Some(data) = self.data_now(opened.files()) else { return false };
        for (extent, part) in super::by_extent(range) {
            let Some(group) = self.known_group(extent) else { return false };
            let Ok(_gate) = group.gate.try_read() else { return false };
            let proved = by_block(part.clone())
                .all(|(block, within)| group.blocks[at(block)].proved().has(Granules::touched(&within)));
            if !proved {
                return false;
            }
            self.note_read(extent, group);
            let place = usize_of(part.start - offset)..usize_of(part.end - offset);
            if data.read_exact_at(&mut buffer[place], part.start).is_err() {
                return false;
            }
        }
        true
    }

    /// Fills `buffer` with the object's bytes from `offset` on, verifying what this process has not verified before. What is found
    /// damaged is forgotten, here and on the disk, and counted. On anything but [`Loaded::Filled`] the buffer's content means
    /// nothing.
    pub fn load(&self, offset: u64, buffer: &mut [u8]) -> Loaded {
        let Some(range) = self.range(offset, buffer) else { return Loaded::Absent };
        if buffer.is_empty() {
            return Loaded::Filled;
        }
        let Ok(Some(opened)) = self.opened() else { return Loaded::Absent };
        let mut last = false;
        for (extent, part) in super::by_extent(range) {
            let group = self.group(&opened, extent);
            let _gate = shared(&group.gate);
            for (block, within) in by_block(part) {
                let start = usize_of(start_of(block) + u64::from(within.start) - offset);
                let len = usize_of(u64::from(within.end - within.start));
                match self.load_block(opened.files(), group, block, within, &mut buffer[start..start + len]) {
                    Loaded::Filled => {}
                    other => return other,
                }
            }
            self.note_read(extent, group);
            last |= self.complete();
        }
        drop(opened);
        if last && !self.proved() {
            // The last granule may have been proved just now; what there is to compare is compared once.
            self.whole();
        }
        Loaded::Filled
    }

    fn range(&self, offset: u64, buffer: &[u8]) -> Option<std::ops::Range<u64>> {
        let end = offset.checked_add(u64::try_from(buffer.len()).ok()?)?;
        (end <= self.size).then_some(offset..end)
    }

    /// The extent's gate is held.
    fn load_block(
        &self,
        files: &Files,
        group: &Group,
        number: u32,
        within: std::ops::Range<u32>,
        buffer: &mut [u8],
    ) -> Loaded {
        let block = &group.blocks[at(number)];
        let wanted = Granules::touched(&within);
        if !block.present().has(wanted) {
            return Loaded::Absent;
        }
        let Ok(data) = self.data(files) else { return Loaded::Absent };
        let doubtful = wanted.without(block.proved());
        let start = start_of(number) + u64::from(within.start);
        let granule = u32::try_from(GRANULE).expect("16 Ki fits");
        let run = within.start / granule..within.end.div_ceil(granule);
        let whole = bytes_of(self.size, number, &run);
        let mut scratch = Vec::new();
        let exact = whole.start == start && whole.end == start + u64::from(within.end - within.start);
        let bytes: &mut [u8] = if exact || doubtful.is_empty() {
            buffer
        } else {
            scratch.resize(usize_of(whole.end - whole.start), 0);
            &mut scratch
        };
        let from = if exact || doubtful.is_empty() { start } else { whole.start };
        let read = data.read_exact_at(bytes, from);
        if read.is_ok() && doubtful.is_empty() {
            return Loaded::Filled;
        }
        let bad = if read.is_err() {
            wanted
        } else {
            let slot = {
                let _slots = lock(&group.slots);
                self.read_slot(files, number)
            };
            let right = |granule: u32| {
                let slot = slot.as_ref()?;
                let place = bytes_of(self.size, number, &(granule..granule + 1));
                let bytes = &bytes[usize_of(place.start - from)..usize_of(place.end - from)];
                (slot.granules.has(Granules::numbered(granule..granule + 1))
                    && crc32c(bytes) == slot.crcs[usize_of(u64::from(granule))])
                .then_some(())
            };
            each(doubtful).filter(|granule| right(*granule).is_none()).fold(Granules::EMPTY, with)
        };
        if !bad.is_empty() {
            // Not there any more, or wrong.
            return if self.forget_damaged(files, group, number, bad).is_empty() {
                Loaded::Absent
            } else {
                Loaded::Damaged
            };
        }
        {
            // With the slots held, nobody forgets them at the same time.
            let _slots = lock(&group.slots);
            let still = doubtful.among(block.present());
            self.mark_proved(block, still);
        }
        if !exact {
            let skip = usize_of(start - whole.start);
            let len = buffer.len();
            buffer.copy_from_slice(&scratch[skip..skip + len]);
        }
        Loaded::Filled
    }

    /// The slot of a block as it is on the disk. The extent's slots are held.
    pub(super) fn read_slot(&self, files: &Files, block: u32) -> Option<Slot> {
        let mut bytes = [0; SLOT_LEN];
        let read = read_up_to(&files.index, &mut bytes, self.slot_place(block)).ok()?;
        Slot::decode(&self.id.0, block, &bytes[..read])
    }

    /// Writes the slot of a block. The extent's slots are held.
    pub(super) fn write_slot(&self, files: &Files, block: u32, slot: &Slot) -> std::io::Result<()> {
        let bytes = slot.encode(&self.id.0, block);
        self.shared.place.write(&files.index, self.index_part(), &bytes, self.slot_place(block))
    }

    /// Looks at suspects again and forgets those that are wrong, or the whole block when its slot is. Returns what was forgotten.
    /// The extent's gate is held.
    pub(super) fn forget_damaged(&self, files: &Files, group: &Group, number: u32, suspects: Granules) -> Granules {
        let block = &group.blocks[at(number)];
        let gone = {
            let _slots = lock(&group.slots);
            let present = block.present();
            let bad = match self.read_slot(files, number) {
                // What somebody writes at this moment has no slot yet, and is not present yet either.
                None => present,
                Some(slot) => {
                    let wrong = |granule: &u32| !self.is_right(files, number, *granule, &slot);
                    each(suspects.among(present)).filter(wrong).fold(Granules::EMPTY, with)
                }
            };
            if bad.is_empty() {
                return bad;
            }
            let mut slot = self.read_slot(files, number).unwrap_or(Slot::EMPTY);
            slot.granules = slot.granules.without(bad);
            slot.sum = None;
            // Should this fail, it is found again after a restart.
            let _ = self.write_slot(files, number, &slot);
            self.unmark(block, bad)
        };
        self.shared.metrics.corrupt.add(u64::from(gone.count()));
        self.shared.space.shrunk(&self.unit(number / super::entry::EXTENT_BLOCKS), self.stored(number, gone));
        self.not_whole(files);
        gone
    }

    fn is_right(&self, files: &Files, block: u32, granule: u32, slot: &Slot) -> bool {
        let place = bytes_of(self.size, block, &(granule..granule + 1));
        let mut bytes = vec![0; usize_of(place.end - place.start)];
        let Ok(data) = self.data(files) else { return false };
        slot.granules.has(Granules::numbered(granule..granule + 1))
            && data.read_exact_at(&mut bytes, place.start).is_ok()
            && crc32c(&bytes) == slot.crcs[usize_of(u64::from(granule))]
    }

    /// The checksum of the whole, put together from the blocks'; a block that has none of this kind yet gets it. None when something
    /// turns out to be missing.
    pub(super) fn combine(&self, opened: &Opened<'_>, kind: Kind) -> Option<u64> {
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
    pub(super) fn seal(&self, files: &Files, group: &Group, number: u32, kind: Kind) -> Option<Sum> {
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

    /// Reads all that is there back from the disk. What is damaged is forgotten and counted. `go_on` is asked from time to time, with
    /// the bytes read since the last time; `None` when it said no.
    pub(super) fn check(&self, mut go_on: impl FnMut(u64) -> bool) -> Option<Checked> {
        let mut checked = Checked::default();
        let mut buffer = vec![0; usize_of(BLOCK.min(self.size))];
        for extent in 0..self.extents() {
            let Ok(Some(opened)) = self.opened() else { break };
            let files = opened.files();
            let group = self.group(&opened, extent);
            let _gate = shared(&group.gate);
            for (number, block) in self.blocks_of(extent).zip(&group.blocks) {
                let present = block.present();
                if present.is_empty() {
                    continue;
                }
                let len = self.stored(number, present);
                if let Ok(data) = self.data(files) {
                    drop_pages(data, start_of(number), BLOCK);
                }
                let slot = {
                    let _slots = lock(&group.slots);
                    self.read_slot(files, number)
                };
                let mut bad = if slot.is_some() { Granules::EMPTY } else { present };
                for run in present.runs() {
                    let place = bytes_of(self.size, number, &run);
                    let bytes = &mut buffer[..usize_of(place.end - place.start)];
                    let read = self.data(files).and_then(|data| data.read_exact_at(bytes, place.start));
                    if read.is_err() {
                        bad = bad.with(Granules::numbered(run));
                        continue;
                    }
                    for (bytes, granule) in bytes.chunks(usize_of(GRANULE)).zip(run) {
                        let crc = slot.as_ref().map(|slot| slot.crcs[usize_of(u64::from(granule))]);
                        if crc != Some(crc32c(bytes)) {
                            bad = with(bad, granule);
                        }
                    }
                }
                checked.bytes += len;
                if bad.is_empty() {
                    let _slots = lock(&group.slots);
                    let still = present.among(block.present());
                    self.mark_proved(block, still);
                } else {
                    let gone = self.forget_damaged(files, group, number, bad);
                    checked.damaged += self.stored(number, gone);
                }
                if let Ok(data) = self.data(files) {
                    drop_pages(data, start_of(number), BLOCK);
                }
                if !go_on(len) {
                    return None;
                }
            }
        }
        checked.wrong = self.whole() == Whole::Wrong;
        Some(checked)
    }
}

/// Where a block is in its extent.
pub(super) fn at(block: u32) -> usize {
    usize_of(u64::from(block % super::entry::EXTENT_BLOCKS))
}

/// A length that is in memory already or fits there for sure.
pub(super) fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

pub(super) fn each(granules: Granules) -> impl Iterator<Item = u32> {
    (0..GRANULES).filter(move |granule| granules.has(Granules::numbered(*granule..granule + 1)))
}

fn with(granules: Granules, granule: u32) -> Granules {
    granules.with(Granules::numbered(granule..granule + 1))
}
