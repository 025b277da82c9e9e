//! Blocks and granules: how the bytes of an object are counted.
//!
//! A *block* of 1 MiB is what reading from front to back moves: large enough that the work per block does not matter. A
//! *granule* of 16 KiB is the least that is fetched, kept and checked, because who reads 4 KiB here and there should
//! not pay for a megabyte each time. A block has 64 granules, so a set of them is one machine word.

use std::ops::Range;

/// Bytes in a block, except an object's last one.
pub const BLOCK: u64 = 1 << 20;

/// Bytes in a granule, except an object's last one.
pub const GRANULE: u64 = 16 << 10;

/// Granules in a block.
pub const GRANULES: u32 = 64;

/// Some of the granules of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Granules(pub u64);

impl Granules {
    /// None of them.
    pub const EMPTY: Self = Self(0);

    /// The granules numbered `range`, which is within `0..GRANULES`.
    pub fn numbered(range: Range<u32>) -> Self {
        let up_to = |end: u32| if end >= GRANULES { u64::MAX } else { (1 << end) - 1 };
        Self(up_to(range.end) & !up_to(range.start))
    }

    /// The granules that the bytes `within` of a block touch.
    pub fn touched(within: &Range<u32>) -> Self {
        let granule = u32::try_from(GRANULE).expect("16 Ki fits");
        if within.is_empty() {
            Self::EMPTY
        } else {
            Self::numbered(within.start / granule..within.end.div_ceil(granule))
        }
    }

    /// All granules that a block of an object of `size` bytes has.
    pub fn of_block(size: u64, block: u32) -> Self {
        Self::touched(&(0..block_len(size, block)))
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether all of `others` are among these.
    pub fn has(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    /// Whether any of `others` is among these.
    pub fn meets(self, others: Self) -> bool {
        others.0 & self.0 != 0
    }

    /// These and the others.
    #[must_use]
    pub fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// These without the others.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Those that are among both.
    #[must_use]
    pub fn among(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// Stretches of neighbouring granules, in order.
    pub fn runs(self) -> impl Iterator<Item = Range<u32>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let start = rest.trailing_zeros();
            let end = start + (rest >> start).trailing_ones();
            rest &= !Self::numbered(start..end).0;
            Some(start..end)
        })
    }
}

/// How many blocks an object of `size` bytes has.
pub fn block_count(size: u64) -> u32 {
    // 4096 TiB; no store holds such an object.
    u32::try_from(size.div_ceil(BLOCK)).unwrap_or(u32::MAX)
}

/// How many bytes a block of an object of `size` bytes has.
pub fn block_len(size: u64, block: u32) -> u32 {
    u32::try_from(size.saturating_sub(start_of(block)).min(BLOCK)).expect("at most BLOCK, which fits")
}

/// Where a block begins in its object.
pub fn start_of(block: u32) -> u64 {
    u64::from(block) * BLOCK
}

/// The bytes of the object that the granules `run` of a block are.
pub fn bytes_of(size: u64, block: u32, run: &Range<u32>) -> Range<u64> {
    let at = |granule: u32| (start_of(block) + u64::from(granule) * GRANULE).min(size);
    at(run.start)..at(run.end)
}

/// `range` from one granule's beginning to another's end, cut off at the end of the object.
pub fn widened(range: &Range<u64>, size: u64) -> Range<u64> {
    let start = range.start / GRANULE * GRANULE;
    start..range.end.next_multiple_of(GRANULE).min(size)
}

/// `range`, block by block: which block, and which of its bytes.
pub fn by_block(range: Range<u64>) -> impl Iterator<Item = (u32, Range<u32>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let block = at / BLOCK;
        let end = ((block + 1) * BLOCK).min(range.end);
        let within = |byte: u64| u32::try_from(byte - block * BLOCK).expect("at most BLOCK, which fits");
        let part = (u32::try_from(block).unwrap_or(u32::MAX), within(at)..within(end));
        at = end;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_cover_an_object_exactly() {
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 7 * BLOCK + GRANULE + 1] {
            let blocks = 0..block_count(size);
            assert_eq!(blocks.clone().map(|block| u64::from(block_len(size, block))).sum::<u64>(), size);
            let granules: u64 = blocks.map(|block| u64::from(Granules::of_block(size, block).count())).sum();
            assert_eq!(granules, size.div_ceil(GRANULE));
        }
        assert_eq!(Granules::numbered(0..64), Granules(u64::MAX));
        assert_eq!(Granules::numbered(3..3), Granules::EMPTY);
    }

    proptest! {
        #[test]
        fn runs_are_the_set(bits: u64) {
            let set = Granules(bits);
            let runs: Vec<_> = set.runs().collect();
            prop_assert!(runs.iter().all(|run| run.start < run.end));
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            let again = runs.into_iter().fold(Granules::EMPTY, |all, run| all.with(Granules::numbered(run)));
            prop_assert_eq!(again, set);
        }

        #[test]
        fn parts_are_the_whole(start in 0_u64..5 << 20, len in 0_u64..5 << 20) {
            let mut at = start;
            for (block, within) in by_block(start..start + len) {
                prop_assert_eq!(start_of(block) + u64::from(within.start), at);
                prop_assert!(!within.is_empty() && u64::from(within.end) <= BLOCK);
                at = start_of(block) + u64::from(within.end);
            }
            prop_assert_eq!(at, start + len);
        }
    }
}
