//! How a file is cut into pieces. No I/O.

use std::ops::Range;

use crate::store::Capabilities;

/// A multiple of this is the length of every part but the last.
const GRAIN: u64 = 1 << 20;

/// The length of the parts (but the last) of an upload of `size` bytes: `preferred`, or more where the store would get too
/// many. Nothing if the store cannot hold an object of that size.
pub(super) fn part_size(size: u64, preferred: u64, store: &Capabilities) -> Option<u64> {
    let at_least = size.div_ceil(u64::from(store.max_parts.max(1)));
    let part = preferred.max(store.min_part_size).max(at_least).max(1);
    let rounded = if part > preferred { part.checked_next_multiple_of(GRAIN).unwrap_or(part) } else { part };
    let part = rounded.min(store.max_part_size);
    (part >= at_least && part > 0).then_some(part)
}

/// `0..size` in pieces of `piece` bytes; the last may be shorter. Nothing of nothing.
pub(super) fn pieces(size: u64, piece: u64) -> impl ExactSizeIterator<Item = Range<u64>> {
    let piece = piece.max(1);
    let count = usize::try_from(size.div_ceil(piece)).unwrap_or(usize::MAX);
    (0..count).map(move |index| {
        let start = index as u64 * piece;
        start..size.min(start + piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn store(min: u64, max: u64, parts: u32) -> Capabilities {
        Capabilities {
            append: false,
            max_append_size: 0,
            put_if_absent: false,
            copy_part: false,
            crc64: false,
            min_part_size: min,
            max_part_size: max,
            max_parts: parts,
            list_from_inside: true,
            resumable_uploads: false,
        }
    }

    #[test]
    fn common_sizes() {
        let s3 = store(5 << 20, 5 << 30, 10_000);
        assert_eq!(part_size(17 << 20, 16 << 20, &s3), Some(16 << 20));
        assert_eq!(part_size(100_000_000_000, 16 << 20, &s3), Some(16 << 20));
        assert_eq!(part_size(1 << 40, 16 << 20, &s3), Some(105 << 20));
        assert_eq!(part_size(5 << 40, 16 << 20, &s3), Some(525 << 20));
        assert_eq!(part_size(51 << 40, 16 << 20, &s3), None);
    }

    proptest! {
        #[test]
        fn pieces_cover_exactly_and_the_store_takes_them(
            size in 1_u64..1 << 45, preferred in 1_u64..1 << 27, min in 1_u64..8 << 20, parts in 1_u32..20_000
        ) {
            let store = store(min, 5 << 30, parts);
            match part_size(size, preferred, &store) {
                None => prop_assert!(size > (5 << 30) * u64::from(parts)),
                Some(part) => {
                    prop_assert!(part >= min && part <= 5 << 30);
                    prop_assert!(size.div_ceil(part) <= u64::from(parts));
                    let cut = pieces(size, part);
                    prop_assert_eq!(cut.len() as u64, size.div_ceil(part));
                }
            }
        }

        #[test]
        fn pieces_follow_each_other(size in 0_u64..10_000, piece in 1_u64..500) {
            let mut end = 0;
            for range in pieces(size, piece) {
                prop_assert!(range.start == end && range.end > end && range.end - range.start <= piece);
                prop_assert!(range.end - range.start == piece || range.end == size);
                end = range.end;
            }
            prop_assert_eq!(end, size);
        }
    }
}
