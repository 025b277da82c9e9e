//! Finding what is in the directory.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tracing::{info, warn};

use super::entry::EXTENT_BLOCKS;
use super::files::{Part, parse_name, read_up_to};
use super::format::{self, Description, Header, SLOT_LEN, SMALL, Slot, TAIL_MAX};
use super::policy::Unit;
use super::{ObjectId, Shared};
use crate::geometry::{Granules, block_count, bytes_of};

/// How many bytes of data nobody speaks of are left alone.
const UNRECORDED: u64 = 64 << 10;

/// An object's files, as the disk has them.
pub(super) struct Found {
    pub(super) id: ObjectId,
    pub(super) header: Header,
    pub(super) used_again: bool,
    pub(super) used: SystemTime,
    /// Much more of the disk is taken than the slots speak of.
    unrecorded: bool,
    /// Per extent that has any: its number, how many bytes of the object are there, and how many of the disk that takes.
    pub(super) extents: Vec<(u32, u64, u64)>,
}

impl Found {
    /// What is collected of very many of them.
    fn without_description(mut self) -> Self {
        self.header.description = Description::default();
        self
    }
}

/// What a file with a digest for a name turned out to be.
pub(super) enum Look {
    /// An object of the cache.
    Ours(Found),
    /// A leftover of ours: torn by a crash, of the old format, empty, or without the file that belongs to it.
    Leftover,
    /// Somebody else's.
    Foreign,
}

impl Shared {
    pub(super) fn scan(self: &Arc<Self>) {
        let mut found = Vec::new();
        let mut orphans = 0_u32;
        for shard in 0..=u8::MAX {
            for (id, part) in self.names(shard) {
                if part == Part::Data {
                    if !self.place.path_of(id, Part::Index).exists() {
                        orphans += 1;
                    }
                    continue;
                }
                match self.look(id, part) {
                    Ok(Look::Ours(it)) => found.push(it.without_description()),
                    Ok(Look::Leftover) => self.clean(id, part),
                    Ok(Look::Foreign) => {}
                    Err(error) => {
                        warn!(path = %self.place.path_of(id, part).display(), %error, "cannot read a file of the cache");
                    }
                }
            }
        }
        if orphans > 0 {
            warn!(
                directory = %self.place.path().display(),
                "{orphans} files there are nobody's any more: data without an index, which a power failure can leave; \
                 `fuse-oss cache clear` removes them"
            );
        }
        found.sort_by_key(|it| (it.used, it.id));
        let count = found.len();
        for Found { id, header, used_again, unrecorded, extents, .. } in found {
            if unrecorded {
                self.give_back(id, header.size);
            }
            for (extent, _, stored) in extents {
                self.space.restore(Unit { object: id, extent }, header.size, stored, used_again);
            }
        }
        self.scanned.store(true, Ordering::Release);
        self.shrink_to_limit();
        info!(objects = count, bytes = self.space.used(), "the cache was looked through");
    }

    /// The files of a shard whose names are digests that belong there.
    pub(super) fn names(&self, shard: u8) -> Vec<(ObjectId, Part)> {
        let files = fs::read_dir(self.place.shard(shard)).into_iter().flatten().flatten();
        files.filter_map(|file| parse_name(file.file_name().to_str()?)).filter(|(id, _)| id.0[0] == shard).collect()
    }

    /// Reads what an index, or a small object's file, says.
    pub(super) fn look(&self, id: ObjectId, part: Part) -> io::Result<Look> {
        let Some(file) = self.place.open_read_only(id, part)? else { return Ok(Look::Foreign) };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Ok(Look::Foreign);
        }
        let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let read = match part {
            Part::Small => read_small(&file, meta.len())?,
            _ => read_header(&file)?,
        };
        let Ok((header, used_again, slots)) = read else {
            return Ok(if read.is_err_and(|ours| ours) { Look::Leftover } else { Look::Foreign });
        };
        if header.digest != id.0 || (part == Part::Small) != (header.size <= SMALL) {
            return Ok(Look::Leftover);
        }
        let mut allocated = 0;
        if part == Part::Index {
            match fs::symlink_metadata(self.place.path_of(id, Part::Data)) {
                Ok(data) => allocated = data.blocks() * 512,
                Err(_) => return Ok(Look::Leftover),
            }
        }
        let blocks = block_count(header.size);
        let mut extents = Vec::new();
        let mut recorded = 0;
        let mut bytes = vec![0; usize::try_from(blocks.min(EXTENT_BLOCKS)).unwrap_or(0) * SLOT_LEN];
        for extent in 0..blocks.div_ceil(EXTENT_BLOCKS) {
            let numbers = extent * EXTENT_BLOCKS..((extent + 1) * EXTENT_BLOCKS).min(blocks);
            let slots = match &slots {
                Some(slots) => &slots[..],
                None => {
                    let read = read_up_to(&file, &mut bytes, Slot::place(numbers.start))?;
                    &bytes[..read]
                }
            };
            let len = numbers.len();
            let (mut there, mut stored) = (0, 0);
            for (number, bytes) in numbers.zip(slots.chunks(SLOT_LEN)) {
                let granules = recorded_in(&id, header.size, number, bytes);
                there += granules.runs().map(|run| bytes_of(header.size, number, &run)).map(len_of).sum::<u64>();
                stored += super::stored(header.size, number, granules);
            }
            if there > 0 {
                recorded += stored;
                let tail = usize::try_from(meta.len().saturating_sub(header.size)).unwrap_or(0);
                extents.push((extent, there, stored + super::overhead(header.size, len, tail)));
            }
        }
        if extents.is_empty() {
            return Ok(Look::Leftover);
        }
        // The file system's own notes on a file of many pieces count, too.
        let unrecorded = allocated > recorded + recorded / 128 + UNRECORDED;
        Ok(Look::Ours(Found { id, header, used_again, used, unrecorded, extents }))
    }

    /// Gives back the space of data that no slot speaks of, which a crash or damage has left, unless somebody has the object.
    fn give_back(&self, id: ObjectId, size: u64) {
        let given = self.unless_held(id, || -> io::Result<()> {
            let (Some(index), Some(data)) =
                (self.place.open_read_only(id, Part::Index)?, self.place.open(id, Part::Data)?)
            else {
                return Ok(());
            };
            let mut bytes = [0; SLOT_LEN];
            // One hole for neighbouring gaps.
            let mut gap: Option<Range<u64>> = None;
            let punch = |gap: Range<u64>| self.place.punch(&data, Part::Data, gap.start, len_of(gap)).map(drop);
            for number in 0..block_count(size) {
                let read = read_up_to(&index, &mut bytes, Slot::place(number))?;
                let there = recorded_in(&id, size, number, &bytes[..read]);
                for run in Granules::of_block(size, number).without(there).runs() {
                    let place = bytes_of(size, number, &run);
                    gap = Some(match gap.take() {
                        Some(before) if before.end == place.start => before.start..place.end,
                        Some(before) => {
                            punch(before)?;
                            place
                        }
                        None => place,
                    });
                }
            }
            gap.map_or(Ok(()), punch)
        });
        if let Some(Err(error)) = given {
            warn!(path = %self.place.path_of(id, Part::Data).display(), %error, "cannot give back what nobody needs");
        }
    }

    /// Removes a leftover, unless it has come to life meanwhile.
    pub(super) fn clean(&self, id: ObjectId, part: Part) {
        let still = || matches!(self.look(id, part), Ok(Look::Leftover));
        let removed = self.unless_held(id, || {
            if !still() {
                return Ok(());
            }
            if part == Part::Index {
                self.place.remove(id, Part::Data)?;
            }
            self.place.remove(id, part)
        });
        if let Some(Err(error)) = removed {
            warn!(path = %self.place.path_of(id, part).display(), %error, "cannot remove a leftover of the cache");
        }
    }
}

fn recorded_in(id: &ObjectId, size: u64, number: u32, slot: &[u8]) -> Granules {
    let granules = Slot::decode(&id.0, number, slot).map_or(Granules::EMPTY, |slot| slot.granules);
    granules.among(Granules::of_block(size, number))
}

fn len_of(range: Range<u64>) -> u64 {
    range.end - range.start
}

type Read = Result<(Header, bool, Option<Vec<u8>>), bool>;

/// The header of an index file; `Err` says whether the file is ours all the same.
fn read_header(file: &File) -> io::Result<Read> {
    let mut bytes = [0; TAIL_MAX];
    let read = read_up_to(file, &mut bytes, 0)?;
    let usage = usize::try_from(format::USAGE_AT).unwrap_or(0);
    Ok(match Header::decode(&bytes[..read]) {
        Some(header) => Ok((header, bytes[usage..usage + 4] == format::USED_AGAIN, None)),
        // One that was never written reads as zeros after a power failure.
        None => Err(format::is_ours(&bytes[..read])),
    })
}

/// What stands behind the data of a small object.
fn read_small(file: &File, len: u64) -> io::Result<Read> {
    let mut bytes = [0; TAIL_MAX];
    let most = u64::try_from(TAIL_MAX).unwrap_or(u64::MAX).min(len);
    let start = len - most;
    let read = read_up_to(file, &mut bytes, start)?;
    let tail = format::tail_len(&bytes[..read]).filter(|tail| *tail <= read).map(|tail| &bytes[read - tail..read]);
    let Some(tail) = tail else { return Ok(Err(true)) };
    let place = len - u64::try_from(tail.len()).unwrap_or(u64::MAX);
    Ok(match format::decode_tail(tail) {
        Some((header, used_again)) if header.size == place => Ok((header, used_again, Some(tail[..SLOT_LEN].to_vec()))),
        _ => Err(true),
    })
}
