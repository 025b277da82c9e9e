//! Keeping bytes: writing them, and what it takes to find them again.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::entry::{Entry, Group, Opened, Refusal, lock, shared};
use super::files::read_up_to;
use super::format::{SLOT_LEN, Slot, encode_tail};
use super::read::{at, each, usize_of};
use super::space::{Room, Space};
use super::sums::{Sum, crc32c};
use super::{Kept, Whole, by_extent};
use crate::geometry::{GRANULE, Granules, by_block, bytes_of, start_of};

/// How long the answer that there is no room holds at most; others may free space, too.
const REFUSED_FOR: Duration = Duration::from_millis(500);

/// The most units that are put out for one piece. Who needs more, because the disk filled up otherwise, has better things to do.
const MOST_VICTIMS: u32 = 4096;

/// Room in the cache that is set aside; given back unless it was used.
pub(super) struct Reservation<'a> {
    space: &'a Space,
    pending: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.pending > 0 {
            self.space.given_up(self.pending);
        }
    }
}

/// Granules that this thread, and nobody else, writes.
struct Claims<'a> {
    group: &'a Group,
    /// Block by block, in order: its number, the granules, and whether it had some before.
    blocks: Vec<(u32, Granules)>,
}

impl<'a> Claims<'a> {
    fn take(group: &'a Group, range: &Range<u64>) -> Self {
        let mut blocks = Vec::new();
        for (number, within) in by_block(range.clone()) {
            let block = &group.blocks[at(number)];
            let wanted = Granules::touched(&within);
            let before = Granules(block.writing.fetch_or(wanted.0, Ordering::AcqRel));
            let claimed = wanted.without(before);
            let ours = claimed.without(block.present());
            // What came to be there in the meantime.
            block.writing.fetch_and(!claimed.without(ours).0, Ordering::AcqRel);
            if !ours.is_empty() {
                blocks.push((number, ours));
            }
        }
        Self { group, blocks }
    }

    /// Stretches of bytes that lie together, in order.
    fn stretches(&self, size: u64) -> Vec<Range<u64>> {
        let mut out: Vec<Range<u64>> = Vec::new();
        for (number, granules) in &self.blocks {
            for run in granules.runs() {
                let bytes = bytes_of(size, *number, &run);
                match out.last_mut() {
                    Some(last) if last.end == bytes.start => last.end = bytes.end,
                    _ => out.push(bytes),
                }
            }
        }
        out
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        for (number, granules) in &self.blocks {
            self.group.blocks[at(*number)].writing.fetch_and(!granules.0, Ordering::AcqRel);
        }
    }
}

impl Entry {
    /// Puts bytes of the object, from `offset` on, into the cache; they begin where a granule does and end where one, or the
    /// object, does. What is there already, or is being written by somebody else, is skipped. Makes the files when they are the
    /// first.
    ///
    /// # Errors
    /// When the disk refuses; the bytes are then simply not cached. [`io::ErrorKind::InvalidInput`] when they are not whole
    /// granules of this object.
    pub fn keep(&self, offset: u64, bytes: &[u8]) -> io::Result<Kept> {
        let end = u64::try_from(bytes.len()).ok().and_then(|len| offset.checked_add(len));
        let Some(end) = end.filter(|end| *end <= self.size) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "these are not bytes of this object"));
        };
        if !offset.is_multiple_of(GRANULE) || !(end.is_multiple_of(GRANULE) || end == self.size) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "only whole granules can be kept"));
        }
        let (mut stored, mut full, mut completed) = (false, false, false);
        for (extent, part) in by_extent(offset..end) {
            let piece = &bytes[usize_of(part.start - offset)..usize_of(part.end - offset)];
            match self.keep_in(extent, &part, piece)? {
                Outcome::Already => {}
                Outcome::NoRoom => full = true,
                Outcome::Stored { last } => {
                    stored = true;
                    completed |= last;
                }
            }
        }
        // Putting the checksum of the whole together may find that something of it is damaged.
        let whole = if completed { self.whole() } else { Whole::Incomplete };
        Ok(match (whole, full, stored) {
            (Whole::Right | Whole::Unknown | Whole::Wrong, ..) => Kept::Completed(whole),
            (_, true, _) => Kept::NoRoom,
            (.., true) => Kept::Stored,
            _ => Kept::Already,
        })
    }

    fn keep_in(&self, extent: u32, range: &Range<u64>, bytes: &[u8]) -> io::Result<Outcome> {
        let absent = |(number, within): (u32, Range<u32>)| {
            let present = self.known_group(extent).map_or(Granules::EMPTY, |group| group.blocks[at(number)].present());
            self.stored(number, Granules::touched(&within).without(present))
        };
        let wanted: u64 = by_block(range.clone()).map(absent).sum();
        if wanted == 0 {
            return Ok(Outcome::Already);
        }
        let freed = self.shared.space.times_freed();
        let refused = |was: &Refusal| was.extent == extent && was.freed == freed && was.at.elapsed() < REFUSED_FOR;
        if lock(&self.refused).as_ref().is_some_and(refused) {
            self.shared.metrics.not_kept.bytes(bytes.len());
            return Ok(Outcome::NoRoom);
        }
        // Before anything is held: somebody may have to be put out.
        let overhead = self.overhead(extent);
        let Some(reservation) = self.reserve(extent, wanted + overhead) else {
            *lock(&self.refused) = Some(Refusal { extent, at: Instant::now(), freed });
            self.shared.metrics.not_kept.bytes(bytes.len());
            return Ok(Outcome::NoRoom);
        };
        match self.write(extent, range, bytes, overhead, reservation) {
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                // Somebody else has filled the file system since we looked.
                self.shared.metrics.not_kept.bytes(bytes.len());
                Ok(Outcome::NoRoom)
            }
            other => other,
        }
    }

    fn reserve(&self, extent: u32, bytes: u64) -> Option<Reservation<'_>> {
        let unit = self.unit(extent);
        let space = &self.shared.space;
        for _ in 0..MOST_VICTIMS {
            match space.room(unit, bytes, self.lucky(extent)) {
                Room::Enough => return Some(Reservation { space, pending: bytes }),
                Room::Evict(victim, size, freed) => self.shared.evict(victim, size, freed),
                Room::None => return None,
            }
        }
        None
    }

    /// Whether a piece of this object may put out another of it: one in sixteen may, other ones at each opening.
    fn lucky(&self, extent: u32) -> bool {
        let opens = self.opens.load(Ordering::Relaxed);
        let [a, b, c, d, ..] = self.id.0;
        let mixed =
            (extent ^ u32::from_le_bytes([a, b, c, d])).wrapping_mul(0x9e37_79b1) ^ opens.wrapping_mul(0x85eb_ca6b);
        mixed.wrapping_mul(0xc2b2_ae35) >> 28 == 0
    }

    fn write(
        &self,
        extent: u32,
        range: &Range<u64>,
        bytes: &[u8],
        overhead: u64,
        mut reservation: Reservation<'_>,
    ) -> io::Result<Outcome> {
        let opened = self.opened_or_made()?;
        let group = self.group(&opened, extent);
        let _gate = shared(&group.gate);
        if self.doomed.load(Ordering::Acquire) {
            self.shared.metrics.not_kept.bytes(bytes.len());
            return Ok(Outcome::NoRoom);
        }
        let claims = Claims::take(group, range);
        if claims.blocks.is_empty() {
            return Ok(Outcome::Already);
        }
        let piece = |part: &Range<u64>| &bytes[usize_of(part.start - range.start)..usize_of(part.end - range.start)];
        let slots = self.slots_of(&claims, piece);
        let files = opened.files();
        // One write is enough for all of it.
        let at_once = self.is_small() && claims.blocks == [(0, Granules::of_block(self.size, 0))];
        if !at_once {
            let data = self.data(files)?;
            for stretch in claims.stretches(self.size) {
                self.shared.place.write(data, self.data_part(), piece(&stretch), stretch.start)?;
            }
        }
        let (mut last, mut count, mut failed) = (false, 0, None);
        let mut unsealed = Vec::new();
        for run in neighbours(&slots) {
            match self.record(&opened, group, run, at_once.then_some(bytes), &mut unsealed) {
                Ok(full) => last |= full,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            count += run.iter().map(|(number, slot)| self.stored(*number, slot.granules)).sum::<u64>();
        }
        if count > 0 {
            // While the gate is held, so that who puts this out counts it off later than this counts it.
            self.shared.space.written(self.unit(extent), self.size, reservation.pending, count, overhead);
            reservation.pending = 0;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.note_write(group);
        drop(claims);
        if let Some(kind) = self.kind() {
            for number in unsealed {
                self.seal(files, group, number, kind);
            }
        }
        Ok(Outcome::Stored { last })
    }

    /// What the slots of claimed granules will say of them; the checksum of a block that is written whole, too.
    fn slots_of<'b>(&self, claims: &Claims<'_>, piece: impl Fn(&Range<u64>) -> &'b [u8]) -> Vec<(u32, Slot)> {
        let kind = self.kind();
        let slot = |(number, granules): &(u32, Granules)| {
            let mut slot = Slot { granules: *granules, ..Slot::EMPTY };
            for granule in each(*granules) {
                let bytes = piece(&bytes_of(self.size, *number, &(granule..granule + 1)));
                slot.crcs[usize_of(u64::from(granule))] = crc32c(bytes);
            }
            let every = Granules::of_block(self.size, *number);
            if let Some(kind) = kind.filter(|_| *granules == every) {
                let start = start_of(*number);
                let len = u64::from(crate::geometry::block_len(self.size, *number));
                slot.sum = Some(Sum::of(kind, piece(&(start..start + len))));
            }
            (*number, slot)
        };
        claims.blocks.iter().map(slot).collect()
    }

    /// Records neighbouring blocks whose data is written; of a small object that is `whole`, writes that, too. Blocks that are complete
    /// now and have no checksum go to `unsealed`. True when the object is complete now.
    fn record(
        &self,
        opened: &Opened<'_>,
        group: &Group,
        run: &[(u32, Slot)],
        whole: Option<&[u8]>,
        unsealed: &mut Vec<u32>,
    ) -> io::Result<bool> {
        let (files, place) = (opened.files(), &self.shared.place);
        let Some((first, _)) = run.first() else { return Ok(false) };
        let part = self.index_part();
        let _slots = lock(&group.slots);
        let mut bytes = vec![0; run.len() * SLOT_LEN];
        if run.iter().any(|(number, _)| !group.blocks[at(*number)].present().is_empty()) {
            read_up_to(&files.index, &mut bytes, self.slot_place(*first))?;
        }
        for ((number, new), bytes) in run.iter().zip(bytes.chunks_exact_mut(SLOT_LEN)) {
            let block = &group.blocks[at(*number)];
            let mut slot = new.clone();
            if !block.present().is_empty() {
                match Slot::decode(&self.id.0, *number, bytes) {
                    Some(old) => {
                        slot.granules = slot.granules.with(old.granules);
                        for granule in each(old.granules.without(new.granules)) {
                            let granule = usize_of(u64::from(granule));
                            slot.crcs[granule] = old.crcs[granule];
                        }
                    }
                    // It was damaged since it was read: what it said of the others is lost.
                    None => {
                        let lost = self.unmark(block, Granules(u64::MAX));
                        let unit = self.unit(number / super::entry::EXTENT_BLOCKS);
                        self.shared.space.shrunk(&unit, self.stored(*number, lost));
                        self.shared.metrics.corrupt.one();
                    }
                }
            }
            if slot.sum.is_none() && slot.granules.has(Granules::of_block(self.size, *number)) {
                unsealed.push(*number);
            }
            bytes.copy_from_slice(&slot.encode(&self.id.0, *number));
        }
        if whole.is_some() || files.fresh.load(Ordering::Acquire) {
            self.write_small(opened, run, &bytes, whole)?;
        } else {
            place.write(&files.index, part, &bytes, self.slot_place(*first))?;
        }
        let mut last = false;
        for (number, slot) in run {
            last |= self.mark(&group.blocks[at(*number)], slot.granules);
        }
        Ok(last)
    }

    /// Writes what stands behind the data of a small object for the first time; with the data before it when that is `whole`.
    fn write_small(
        &self,
        opened: &Opened<'_>,
        run: &[(u32, Slot)],
        bytes: &[u8],
        whole: Option<&[u8]>,
    ) -> io::Result<()> {
        let (files, place) = (opened.files(), &self.shared.place);
        let mut slot = [0; SLOT_LEN];
        slot.copy_from_slice(&bytes[..SLOT_LEN]);
        let mut header = self.header(&lock(&self.record));
        let actual = run.first().and_then(|(_, slot)| slot.sum);
        header.complete = whole.is_some();
        header.right = whole.is_some() && header.sum.is_some() && header.sum == actual;
        let tail = encode_tail(&slot, &header, self.is_used_again());
        match whole {
            Some(data) => place.write_both(&files.index, self.index_part(), [data, &tail], 0)?,
            None => place.write(&files.index, self.index_part(), &tail, self.size)?,
        }
        files.fresh.store(false, Ordering::Release);
        if whole.is_some() {
            self.written_whole(header.sum, actual);
        }
        Ok(())
    }
}

enum Outcome {
    Already,
    NoRoom,
    Stored { last: bool },
}

/// Slots of blocks that lie together.
fn neighbours(slots: &[(u32, Slot)]) -> impl Iterator<Item = &[(u32, Slot)]> {
    slots.chunk_by(|(a, _), (b, _)| a + 1 == *b)
}
