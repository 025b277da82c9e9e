//! From what is missing to requests: which stretches to ask for. Pure.

use std::ops::Range;

use crate::geometry::{Granules, bytes_of};

/// What requests may look like.
#[derive(Debug, Clone, Copy)]
pub struct Missing {
    /// The object's length in bytes.
    pub size: u64,
    /// Two stretches that are at most this far apart are asked for with one request; what lies between is fetched again and
    /// dropped. In bytes.
    pub gap: u64,
    /// The most that one request asks for, in bytes.
    pub longest: u64,
}

/// What one request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The bytes.
    pub range: Range<u64>,
    /// Which granules of them are wanted, by block, in order; the rest only lies between.
    pub claimed: Vec<(u32, Granules)>,
}

/// Puts missing granules, block by block in order, together to requests.
pub fn stretches(blocks: impl Iterator<Item = (u32, Granules)>, missing: &Missing) -> Vec<Stretch> {
    let mut all: Vec<Stretch> = Vec::new();
    for (block, granules) in blocks {
        for run in granules.runs() {
            let bytes = bytes_of(missing.size, block, &run);
            let claimed = (block, Granules::numbered(run));
            let joins = all.last_mut().filter(|last| {
                bytes.start <= last.range.end + missing.gap && bytes.end - last.range.start <= missing.longest
            });
            match joins {
                Some(last) => {
                    last.range.end = bytes.end;
                    match last.claimed.last_mut() {
                        Some((same, granules)) if *same == block => *granules = granules.with(claimed.1),
                        _ => last.claimed.push(claimed),
                    }
                }
                None => all.push(Stretch { range: bytes, claimed: vec![claimed] }),
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{BLOCK, GRANULE};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn everything_missing_is_asked_for_once(
            sets in prop::collection::vec(any::<u64>(), 1..5), size in 1_u64..5 << 20, gap in 0_u64..200_000, longest in 1_u64..9
        ) {
            let longest = longest << 20;
            let missing = Missing { size, gap, longest };
            let blocks: Vec<(u32, Granules)> = (0..)
                .zip(sets)
                .map(|(block, set)| (block, Granules(set).among(Granules::of_block(size, block))))
                .collect();
            let found = stretches(blocks.iter().copied(), &missing);
            let mut claimed: Vec<(u32, Granules)> = Vec::new();
            for stretch in &found {
                prop_assert!(stretch.range.end - stretch.range.start <= longest);
                prop_assert!(stretch.range.end <= size && stretch.range.start < stretch.range.end);
                for &(block, granules) in &stretch.claimed {
                    for run in granules.runs() {
                        let bytes = bytes_of(size, block, &run);
                        prop_assert!(stretch.range.start <= bytes.start && bytes.end <= stretch.range.end);
                    }
                    match claimed.last_mut() {
                        Some((same, all)) if *same == block => {
                            prop_assert!(!all.meets(granules));
                            *all = all.with(granules);
                        }
                        _ => claimed.push((block, granules)),
                    }
                }
            }
            let expected: Vec<_> = blocks.into_iter().filter(|(_, set)| !set.is_empty()).collect();
            prop_assert_eq!(claimed, expected);
            prop_assert!(found.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
        }
    }

    #[test]
    fn small_gaps_are_bridged() {
        let set = Granules::numbered(0..2).with(Granules::numbered(4..5)).with(Granules::numbered(60..64));
        let blocks = [(0, set), (1, Granules::numbered(0..64))];
        let ranges = |gap| -> Vec<Range<u64>> {
            let missing = Missing { size: 2 * BLOCK, gap, longest: 8 * BLOCK };
            stretches(blocks.into_iter(), &missing).into_iter().map(|stretch| stretch.range).collect()
        };
        assert_eq!(ranges(2 * GRANULE), [0..5 * GRANULE, 60 * GRANULE..2 * BLOCK]);
        assert_eq!(ranges(0).len(), 3);
        assert_eq!(ranges(BLOCK).len(), 1);
    }
}
