//! Checksums: CRC-32C of every granule, by which damage is found, and the CRC-64 that the store keeps of the whole object,
//! put together from the blocks'.
//!
//! Only one kind of CRC-64 is computed, the one the store uses: per MiB each costs some 30 µs, the CRC-32Cs of all its granules
//! 13 µs together, and writing it 400 to 700 µs.

use std::sync::OnceLock;

use oss::Checksum;
use oss::crc::{crc64, crc64_combine, crc64_nvme, crc64_nvme_combine};

use crate::geometry::BLOCK;

/// The CRC-32C of a granule.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Which CRC-64 a store keeps of whole objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// CRC-64/XZ: OSS.
    Xz,
    /// CRC-64/NVME: S3.
    Nvme,
}

/// A CRC-64 of a block or a whole object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sum {
    /// Which one.
    pub kind: Kind,
    /// Its value.
    pub value: u64,
}

impl Sum {
    /// The checksum that a store told, if it is one that can be put together from those of pieces.
    pub fn of_store(checksum: Checksum) -> Option<Self> {
        match checksum {
            Checksum::Crc64(value) => Some(Self { kind: Kind::Xz, value }),
            Checksum::Crc64Nvme(value) => Some(Self { kind: Kind::Nvme, value }),
            Checksum::Md5(_) => None,
        }
    }

    /// The checksum of these bytes.
    pub fn of(kind: Kind, bytes: &[u8]) -> Self {
        let value = match kind {
            Kind::Xz => crc64(bytes),
            Kind::Nvme => crc64_nvme(bytes),
        };
        Self { kind, value }
    }
}

impl Kind {
    /// The checksum of a text whose first half has the checksum `a` and whose second half, `len` bytes long, has `b`.
    ///
    /// For a whole block behind it that is one multiplication by a matrix made once: the general way costs half a
    /// millisecond each time, which for 100 GB would be a minute.
    pub fn combine(self, a: u64, b: u64, len: u64) -> u64 {
        if len == BLOCK { times(self.shift(), a) ^ b } else { self.combine_any(a, b, len) }
    }

    fn combine_any(self, a: u64, b: u64, len: u64) -> u64 {
        match self {
            Self::Xz => crc64_combine(a, b, len),
            Self::Nvme => crc64_nvme_combine(a, b, len),
        }
    }

    /// What `BLOCK` bytes that follow make of each bit of a checksum.
    fn shift(self) -> &'static [u64; 64] {
        static XZ: OnceLock<[u64; 64]> = OnceLock::new();
        static NVME: OnceLock<[u64; 64]> = OnceLock::new();
        let place = match self {
            Self::Xz => &XZ,
            Self::Nvme => &NVME,
        };
        place.get_or_init(|| std::array::from_fn(|bit| self.combine_any(1 << bit, 0, BLOCK)))
    }
}

fn times(matrix: &[u64; 64], mut bits: u64) -> u64 {
    let mut out = 0;
    while bits != 0 {
        out ^= matrix[usize::try_from(bits.trailing_zeros()).unwrap_or(0)];
        bits &= bits - 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_check_value_of_the_catalogue() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(Sum::of_store(Checksum::Md5([0; 16])), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn the_quick_way_gives_what_the_general_one_does(a: u64, b: u64) {
            for kind in [Kind::Xz, Kind::Nvme] {
                prop_assert_eq!(kind.combine(a, b, BLOCK), kind.combine_any(a, b, BLOCK));
            }
        }

        #[test]
        fn blocks_make_the_whole(seed: u64, tail in 0_u64..100) {
            let bytes: Vec<u8> = (0..BLOCK * 2 + tail).map(|at| (at.wrapping_mul(seed | 1) >> 11).to_le_bytes()[0]).collect();
            for kind in [Kind::Xz, Kind::Nvme] {
                let blocks = bytes.chunks(1 << 20).map(|block| (Sum::of(kind, block).value, block.len() as u64));
                let whole = blocks.reduce(|(a, _), (b, len)| (kind.combine(a, b, len), 0)).unwrap();
                prop_assert_eq!(whole.0, Sum::of(kind, &bytes).value);
            }
        }
    }
}
