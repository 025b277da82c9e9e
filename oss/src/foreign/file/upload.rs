//! A multipart upload into one unnamed file.
//!
//! Parts arrive in any order and nobody says how long the others will be. Uploads of files cut them to one length but
//! for the last, so part *n* is written where it will be if all are as long as the first that arrived; one that does not
//! fit there goes behind everything else. When the parts turn out to lie in order and without gaps, completing is a
//! rename; otherwise they are put in order by one copy.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::crc::{Crc64, crc64_combine};
use crate::staged::Staged;

/// Where a part is and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Its first byte in the staged file.
    pub(super) offset: u64,
    /// Its length in bytes.
    pub(super) size: u64,
    /// Its CRC-64/XZ.
    pub(super) crc64: u64,
}

/// Which parts there are and where the next one goes. No I/O.
#[derive(Debug, Default)]
pub(super) struct Layout {
    parts: BTreeMap<u32, Part>,
    /// The length of the first part that arrived.
    stride: Option<u64>,
    /// Where room was given that may still be written to, by offset: places are never given twice, so that a part sent
    /// again while its first copy is still being written harms nobody.
    taken: BTreeMap<u64, u64>,
}

impl Layout {
    /// A place for `size` bytes of part `number` that overlaps no other.
    pub(super) fn place(&mut self, number: u32, size: u64) -> u64 {
        let stride = *self.stride.get_or_insert(size);
        let wanted = stride.checked_mul(u64::from(number.saturating_sub(1)));
        let offset = match wanted {
            Some(offset) if size <= stride && self.is_free(offset, size) => offset,
            _ => self.taken.last_key_value().map_or(0, |(offset, size)| offset + size),
        };
        if size > 0 {
            self.taken.insert(offset, size);
        }
        offset
    }

    fn is_free(&self, offset: u64, size: u64) -> bool {
        let before = self.taken.range(..=offset).next_back().is_none_or(|(start, len)| start + len <= offset);
        let behind = self.taken.range(offset..).next().is_none_or(|(start, _)| offset.saturating_add(size) <= *start);
        before && behind
    }

    /// Part `number` has been written.
    pub(super) fn arrived(&mut self, number: u32, part: Part) {
        self.parts.insert(number, part);
    }

    /// The parts with numbers above `after`, in their order.
    pub(super) fn behind(&self, after: u32) -> impl Iterator<Item = (u32, &Part)> {
        self.parts.range(after.saturating_add(1)..).map(|(number, part)| (*number, part))
    }

    /// The part of that number.
    pub(super) fn part(&self, number: u32) -> Option<Part> {
        self.parts.get(&number).copied()
    }
}

/// Whether these parts, in this order, are the file's bytes from its beginning.
pub(super) fn lie_in_order(parts: &[Part]) -> bool {
    let mut end = 0;
    parts.iter().all(|part| {
        let next = part.size == 0 || part.offset == end;
        end += part.size;
        next
    })
}

/// The length and the CRC-64/XZ of the parts one after the other.
pub(super) fn whole(parts: &[Part]) -> (u64, u64) {
    parts.iter().fold((0, 0), |(size, crc), part| (size + part.size, crc64_combine(crc, part.crc64, part.size)))
}

/// The staged file that holds exactly `parts` in this order: `from` itself, cut to length, or a copy in `directory`.
pub(super) fn assemble(from: Staged, directory: &Path, parts: &[Part]) -> io::Result<Staged> {
    if lie_in_order(parts) {
        from.file().set_len(whole(parts).0)?;
        return Ok(from);
    }
    let to = Staged::new(directory)?;
    let mut buffer = vec![0; 1 << 20];
    for part in parts {
        let (mut done, mut crc) = (0, Crc64::new());
        while done < part.size {
            let want = usize::try_from(part.size - done).unwrap_or(usize::MAX).min(buffer.len());
            let piece = &mut buffer[..want];
            from.file().read_exact_at(piece, part.offset + done)?;
            crc.update(piece);
            to.file().write_all(piece)?;
            done += want as u64;
        }
        if crc.value() != part.crc64 {
            return Err(io::Error::other("a part that was written reads back with another checksum"));
        }
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_parts_in_any_order_need_no_copy() {
        for order in [[1, 2, 3, 4], [3, 1, 2, 4], [2, 4, 3, 1]] {
            let mut layout = Layout::default();
            for number in order {
                let size = if number == 4 { 7 } else { 10 };
                let offset = layout.place(number, size);
                layout.arrived(number, Part { offset, size, crc64: 0 });
            }
            let parts: Vec<_> = (1..=4).map(|n| layout.part(n).unwrap()).collect();
            assert!(lie_in_order(&parts), "{order:?} {parts:?}");
        }
    }

    proptest! {
        #[test]
        fn any_parts_are_put_together_in_order(
            sent in proptest::collection::vec((1_u32..6, proptest::collection::vec(any::<u8>(), 0..40)), 1..12)
        ) {
            let directory = tempfile::tempdir().unwrap();
            let staged = Staged::new(directory.path()).unwrap();
            let mut layout = Layout::default();
            let mut model = BTreeMap::new();
            for (number, bytes) in &sent {
                let offset = layout.place(*number, bytes.len() as u64);
                staged.file().write_all_at(bytes, offset).unwrap();
                layout.arrived(*number, Part { offset, size: bytes.len() as u64, crc64: crate::crc::crc64(bytes) });
                model.insert(*number, bytes.clone());
            }
            let parts: Vec<_> = model.keys().map(|n| layout.part(*n).unwrap()).collect();
            let expected: Vec<u8> = model.into_values().flatten().collect();
            prop_assert_eq!(whole(&parts), (expected.len() as u64, crate::crc::crc64(&expected)));
            let whole = assemble(staged, directory.path(), &parts).unwrap();
            let mut read = vec![0; expected.len()];
            whole.file().read_exact_at(&mut read, 0).unwrap();
            prop_assert_eq!(read, expected);
            prop_assert_eq!(whole.file().metadata().unwrap().len(), parts.iter().map(|p| p.size).sum::<u64>());
        }
    }
}
