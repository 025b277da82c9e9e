//! The bytes of an object, held so that parts, appends and enormous test files cost nothing.
//!
//! Content is a rope of pieces, and a piece may repeat its block. Completing a multipart upload or appending joins
//! ropes instead of copying, and a 100 GB file for a sparse-reading test is one block of a megabyte that repeats.

use std::ops::Range;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum_combine};

/// `len` bytes, of which the one at offset `i` is `block[i % block.len()]`.
#[derive(Clone, Debug)]
struct Piece {
    block: Bytes,
    len: u64,
}

/// Immutable bytes of any length; a clone shares them.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pieces: Vec<Piece>,
    len: u64,
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        let len = bytes.len() as u64;
        Self::repeating(bytes, len)
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        Bytes::copy_from_slice(bytes).into()
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

impl<const N: usize> From<&[u8; N]> for Content {
    fn from(bytes: &[u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl Content {
    /// `len` bytes made by repeating `block`, which must not be empty unless `len` is 0.
    ///
    /// # Panics
    /// When `block` is empty and `len` is not.
    pub fn repeating(block: Bytes, len: u64) -> Self {
        if len == 0 {
            return Self::default();
        }
        assert!(!block.is_empty(), "an empty block cannot be repeated to {len} bytes");
        Self { pieces: vec![Piece { block, len }], len }
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// These bytes followed by those of `other`.
    #[must_use]
    pub fn followed_by(mut self, other: Self) -> Self {
        self.len += other.len;
        self.pieces.extend(other.pieces);
        self
    }

    /// The chunks that make up `range`, without copying. A range that reaches past the end is cut there.
    pub fn chunks(&self, range: Range<u64>) -> Vec<Bytes> {
        let mut chunks = Vec::new();
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.len;
            let mut at = range.start.max(start);
            let stop = range.end.min(end);
            while at < stop {
                let block = piece.block.len() as u64;
                let inside = (at - start) % block;
                let take = (block - inside).min(stop - at);
                let inside = index(inside);
                chunks.push(piece.block.slice(inside..inside + index(take)));
                at += take;
            }
            start = end;
        }
        chunks
    }

    /// The bytes of `range` as content of its own. A range that reaches past the end is cut there.
    #[must_use]
    pub fn slice(&self, range: Range<u64>) -> Self {
        let pieces: Vec<Piece> =
            self.chunks(range).into_iter().map(|block| Piece { len: block.len() as u64, block }).collect();
        let len = pieces.iter().map(|piece| piece.len).sum();
        Self { pieces, len }
    }

    /// A copy of everything in one buffer. Not for the 100 GB ones.
    pub fn to_vec(&self) -> Vec<u8> {
        self.chunks(0..self.len).concat()
    }

    /// A checksum of everything, in time that grows with the blocks and not with their repetition.
    pub fn checksum(&self, algorithm: CrcAlgorithm) -> u64 {
        let mut sum = crc_fast::checksum(algorithm, b"");
        for piece in &self.pieces {
            let block = piece.block.len() as u64;
            let (times, rest) = (piece.len / block, piece.len % block);
            // Square and multiply: `power` is the checksum of the block repeated `repeated` times.
            let (mut power, mut repeated, mut left) = (crc_fast::checksum(algorithm, &piece.block), block, times);
            while left > 0 {
                if left & 1 == 1 {
                    sum = checksum_combine(algorithm, sum, power, repeated);
                }
                left >>= 1;
                if left > 0 {
                    power = checksum_combine(algorithm, power, power, repeated);
                    repeated *= 2;
                }
            }
            let tail = crc_fast::checksum(algorithm, &piece.block[..index(rest)]);
            sum = checksum_combine(algorithm, sum, tail, rest);
        }
        sum
    }
}

/// An offset within one block. Blocks are in memory, so it always fits.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset into a buffer in memory fits usize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rope_reads_as_its_bytes() {
        let rope = Content::from("hello ")
            .followed_by(Content::repeating(Bytes::from_static(b"abc"), 7))
            .followed_by(Content::from("!"));
        assert_eq!(rope.to_vec(), b"hello abcabca!");
        for start in 0..=14 {
            for end in start..=16 {
                let want = &b"hello abcabca!"[start..end.min(14)];
                assert_eq!(rope.chunks(start as u64..end as u64).concat(), want);
                assert_eq!(rope.slice(start as u64..end as u64).to_vec(), want);
            }
        }
    }

    #[test]
    fn a_checksum_is_that_of_the_bytes() {
        for algorithm in [CrcAlgorithm::Crc64Xz, CrcAlgorithm::Crc64Nvme, CrcAlgorithm::Crc32IsoHdlc] {
            for len in [0, 1, 2, 3, 4, 5, 6, 7, 100, 1000] {
                let rope = Content::from("x").followed_by(Content::repeating(Bytes::from_static(b"abc"), len));
                assert_eq!(rope.checksum(algorithm), crc_fast::checksum(algorithm, &rope.to_vec()), "{len}");
            }
        }
        // The check value of CRC-64/XZ from the catalogue of parametrised CRC algorithms.
        assert_eq!(Content::from("123456789").checksum(CrcAlgorithm::Crc64Xz), 0x995d_c9bb_df19_39fa);
    }

    #[test]
    fn an_enormous_object_costs_nothing() {
        let block = Bytes::from(vec![7_u8; 1 << 20]);
        let rope = Content::repeating(block, 100_000_000_000);
        assert_ne!(rope.checksum(CrcAlgorithm::Crc64Xz), 0);
        assert_eq!(rope.chunks(99_999_999_990..100_000_000_000).concat(), [7; 10]);
    }
}
