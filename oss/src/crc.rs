//! The two CRC-64s that object stores keep: XZ on OSS (which calls it ECMA), NVME on S3.
//!
//! Both can be combined: the checksum of a whole follows from the checksums and lengths of its pieces. That is what
//! lets parts be sent in parallel and the whole be verified without reading anything twice.

use crc_fast::{CrcAlgorithm, Digest, checksum, checksum_combine};

/// A CRC-64/XZ in the making, as OSS computes it for every object (`x-oss-hash-crc64ecma`).
///
/// ```
/// let mut crc = oss::crc::Crc64::new();
/// crc.update(b"1234");
/// crc.update(b"56789");
/// assert_eq!(crc.value(), 0x995d_c9bb_df19_39fa);
/// ```
#[derive(Debug, Clone)]
pub struct Crc64(Digest);

/// A CRC-64/NVME in the making, as S3 computes it for full objects (`x-amz-checksum-crc64nvme`).
#[derive(Debug, Clone)]
pub struct Crc64Nvme(Digest);

impl Crc64 {
    /// The checksum of nothing, which is 0.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64Xz))
    }

    /// Takes in the bytes that follow.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far; more may follow.
    pub fn value(&self) -> u64 {
        self.0.finalize()
    }
}

impl Crc64Nvme {
    /// The checksum of nothing, which is 0.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64Nvme))
    }

    /// Takes in the bytes that follow.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far; more may follow.
    pub fn value(&self) -> u64 {
        self.0.finalize()
    }
}

impl Default for Crc64 {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for Crc64Nvme {
    fn default() -> Self {
        Self::new()
    }
}

/// The CRC-64/XZ of `bytes`.
pub fn crc64(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Xz, bytes)
}

/// The CRC-64/XZ of a text whose first half has the checksum `a` and whose second half, `len_b` bytes long, has `b`.
pub fn crc64_combine(a: u64, b: u64, len_b: u64) -> u64 {
    if len_b == 0 {
        return a;
    }
    checksum_combine(CrcAlgorithm::Crc64Xz, a, b, len_b)
}

/// The CRC-64/NVME of `bytes`.
pub fn crc64_nvme(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// The CRC-64/NVME of a text whose first half has the checksum `a` and whose second half, `len_b` bytes long, has `b`.
pub fn crc64_nvme_combine(a: u64, b: u64, len_b: u64) -> u64 {
    if len_b == 0 {
        return a;
    }
    checksum_combine(CrcAlgorithm::Crc64Nvme, a, b, len_b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // The check values of the "Catalogue of parametrised CRC algorithms".
    #[test]
    fn check_values() {
        assert_eq!(crc64(b"123456789"), 0x995d_c9bb_df19_39fa);
        assert_eq!(crc64_nvme(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!((crc64(b""), crc64_nvme(b"")), (0, 0));
        assert_eq!((Crc64::new().value(), Crc64Nvme::default().value()), (0, 0));
    }

    /// CRC-64/XZ one bit at a time, straight from the definition (polynomial reflected, init and xorout all ones).
    fn bit_by_bit(bytes: &[u8]) -> u64 {
        let mut crc = u64::MAX;
        for byte in bytes {
            crc ^= u64::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xc96c_5795_d787_0f42 } else { crc >> 1 };
            }
        }
        !crc
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..3000), at in any::<proptest::sample::Index>()) {
            let (a, b) = bytes.split_at(at.index(bytes.len() + 1));
            let len_b = b.len() as u64;
            prop_assert_eq!(crc64(&bytes), bit_by_bit(&bytes));
            prop_assert_eq!(crc64_combine(crc64(a), crc64(b), len_b), crc64(&bytes));
            prop_assert_eq!(crc64_nvme_combine(crc64_nvme(a), crc64_nvme(b), len_b), crc64_nvme(&bytes));
            let (mut xz, mut nvme) = (Crc64::new(), Crc64Nvme::new());
            for piece in [a, b] {
                xz.update(piece);
                nvme.update(piece);
            }
            prop_assert_eq!((xz.value(), nvme.value()), (crc64(&bytes), crc64_nvme(&bytes)));
        }
    }
}
