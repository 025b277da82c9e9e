//! Reads samples of a device: the first and the last MiB, 256 pieces of 64 KiB evenly between them, and the places where
//! file systems keep copies of their superblocks.
//!
//! Both ends hold nearly everything that makes a disk somebody's: file systems, swap and LUKS begin at the beginning, GPT,
//! RAID and ZFS have their second copy at the end. The pieces between find those that have lost their beginning. What
//! lies between the samples is not seen: a few MiB written far from any of these places look like an empty disk. A disk below 18 MiB is read whole.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// How much of each end is read, in bytes.
const END: u64 = 1 << 20;
/// How many pieces are read between the ends.
const PIECES: u64 = 256;
/// The size of a piece, in bytes.
const PIECE: u64 = 64 << 10;
/// Pieces begin at multiples of this, in bytes: the largest sector of a disk.
const ALIGNMENT: u64 = 4096;

/// What samples showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sampled {
    /// Only zeros.
    Zeros {
        /// How many bytes were read.
        bytes: u64,
    },
    /// Something else.
    Nonzero {
        /// Where the first byte is that is not zero.
        at: u64,
    },
}

/// Where file systems keep further copies of their beginning, in bytes: what shows them when the first one is gone.
const COPIES: [u64; 5] = [
    8 << 20,   // ext4 with blocks of 1 KiB: its second block group.
    64 << 20,  // btrfs: its second superblock.
    128 << 20, // ext4 with blocks of 4 KiB: its second block group.
    256 << 30, // btrfs: its third superblock.
    1 << 40,   // xfs of 4 TiB and more: its second allocation group. Of smaller ones it begins at a quarter.
];

/// The parts of a device of `size` bytes that are looked at: in order, none of them empty, none touching another.
fn ranges(size: u64) -> Vec<Range<u64>> {
    if size <= 2 * END + PIECES * PIECE {
        return if size == 0 { Vec::new() } else { Vec::from([Range { start: 0, end: size }]) };
    }
    // Between the first MiB and the last one there is room for all pieces: checked above.
    let last = size - END;
    let step = (last - END) / PIECES;
    let even = (0..PIECES).map(|index| END + index * step);
    let mut starts: Vec<u64> =
        even.chain(COPIES).chain([size / 4]).map(|start| start / ALIGNMENT * ALIGNMENT).collect();
    starts.retain(|start| (END..last).contains(start));
    starts.sort_unstable();

    let mut ranges = Vec::from([Range { start: 0, end: END }]);
    let pieces = starts.into_iter().map(|start| start..(start + PIECE).min(last));
    for range in pieces.chain(std::iter::once(last..size)) {
        match ranges.last_mut() {
            Some(previous) if previous.end >= range.start => previous.end = range.end.max(previous.end),
            _ => ranges.push(range),
        }
    }
    ranges
}

/// Whether there are only zeros. Compared piece by piece with zeros: that is as fast as memory is, in any build.
fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// Looks at the samples of a device, or a file, of `size` bytes until one is not zero.
pub(crate) fn sample(file: &File, size: u64) -> io::Result<Sampled> {
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    for range in ranges(size) {
        let mut at = range.start;
        while at < range.end {
            let room = buffer.len();
            let part = &mut buffer[..usize::try_from(range.end - at).unwrap_or(room).min(room)];
            file.read_exact_at(part, at)
                .map_err(|error| io::Error::new(error.kind(), format!("reading at byte {at} failed: {error}")))?;
            let length = u64::try_from(part.len()).map_err(io::Error::other)?;
            if !is_zero(part)
                && let Some(index) = part.iter().position(|&byte| byte != 0)
            {
                return Ok(Sampled::Nonzero { at: at + u64::try_from(index).map_err(io::Error::other)? });
            }
            at += length;
            bytes += length;
        }
    }
    Ok(Sampled::Zeros { bytes })
}

/// Visits every block of 4 KiB of the samples that is not all zeros, until `visit` has seen enough and says `false`.
///
/// Blocks begin at multiples of 4 KiB of the device; the last one of a device may be shorter.
pub(crate) fn nonzero_blocks(file: &File, size: u64, mut visit: impl FnMut(u64, &[u8]) -> bool) -> io::Result<()> {
    let mut buffer = [0; 4096];
    for range in ranges(size) {
        let mut at = range.start / ALIGNMENT * ALIGNMENT;
        while at < range.end {
            let length = usize::try_from((size - at).min(ALIGNMENT)).map_err(io::Error::other)?;
            let block = &mut buffer[..length];
            file.read_exact_at(block, at)
                .map_err(|error| io::Error::new(error.kind(), format!("reading at byte {at} failed: {error}")))?;
            if !is_zero(block) && !visit(at, block) {
                return Ok(());
            }
            at += ALIGNMENT;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A sparse file with some bytes in it.
    fn file(size: u64, data: &[(u64, u8)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (at, byte) in data {
            file.write_all_at(&[*byte], *at).unwrap();
        }
        file
    }

    #[test]
    fn both_ends_are_looked_at_to_the_last_byte() {
        let size = 2_000_000_000_512;
        let Sampled::Zeros { bytes } = sample(&file(size, &[]), size).unwrap() else { panic!("not zeros") };
        let pieces = PIECES + 6;
        assert_eq!(bytes, 2 * END + pieces * PIECE);
        for at in [0, 1024, END - 1, 8 << 20, 64 << 20, (128 << 20) + 56, 256 << 30, size / 4, size - END, size - 1] {
            assert_eq!(sample(&file(size, &[(at, 1)]), size).unwrap(), Sampled::Nonzero { at });
        }
        assert_eq!(sample(&file(size, &[(size - 1, 1), (7, 1)]), size).unwrap(), Sampled::Nonzero { at: 7 });
    }

    #[test]
    fn a_small_disk_is_read_whole() {
        let size = 3 << 20;
        assert_eq!(sample(&file(size, &[]), size).unwrap(), Sampled::Zeros { bytes: size });
        assert_eq!(sample(&file(size, &[(1_600_000, 255)]), size).unwrap(), Sampled::Nonzero { at: 1_600_000 });
        assert_eq!(sample(&file(0, &[]), 0).unwrap(), Sampled::Zeros { bytes: 0 });
    }

    #[test]
    fn a_disk_that_is_shorter_than_it_says_is_an_error() {
        let error = sample(&file(4096, &[]), 1 << 30).unwrap_err().to_string();
        assert!(error.contains("reading at byte 0 failed"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn ranges_are_in_order_within_the_device_and_hold_both_ends(size in prop_oneof![0..1_u64 << 26, 0..1_u64 << 50, 0..=u64::MAX]) {
            let ranges = ranges(size);
            prop_assert_eq!(size == 0, ranges.is_empty());
            if let (Some(first), Some(last)) = (ranges.first(), ranges.last()) {
                prop_assert_eq!((first.start, last.end), (0, size));
                prop_assert!(first.end >= END.min(size));
                prop_assert!(last.start <= size.saturating_sub(END));
            }
            prop_assert!(ranges.iter().all(|range| range.start < range.end));
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let sampled: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            prop_assert!(sampled >= size.min(2 * END + (PIECES - 1) * PIECE));
            // Evenly: no gap is much larger than the mean one.
            let gap = ranges.windows(2).map(|pair| pair[1].start - pair[0].end).max().unwrap_or(0);
            prop_assert!(gap <= size / PIECES + ALIGNMENT);
        }
    }
}
