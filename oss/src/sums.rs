//! Checksums of pieces, and of the whole they make.

use bytes::Bytes;

use crate::crc::{Crc64, Crc64Nvme, crc64, crc64_combine, crc64_nvme, crc64_nvme_combine};
use crate::store::Checksum;

/// The checksums that can be combined, of some bytes. Which of the two the store keeps is not known before it
/// answers, and both together cost less than a tenth of what reading the bytes does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Sums {
    /// How many bytes.
    pub(crate) size: u64,
    /// Their CRC-64/XZ.
    pub(crate) crc64: u64,
    /// Their CRC-64/NVME.
    pub(crate) nvme: u64,
}

impl Sums {
    /// Of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, crc64: crc64(bytes), nvme: crc64_nvme(bytes) }
    }

    /// Of these pieces one after the other.
    pub(crate) fn of_all(pieces: &[Bytes]) -> Self {
        let (mut size, mut xz, mut nvme) = (0, Crc64::new(), Crc64Nvme::new());
        for piece in pieces {
            size += piece.len() as u64;
            xz.update(piece);
            nvme.update(piece);
        }
        Self { size, crc64: xz.value(), nvme: nvme.value() }
    }

    /// Of these bytes with `next` behind them.
    pub(crate) fn then(self, next: Self) -> Self {
        Self {
            size: self.size + next.size,
            crc64: crc64_combine(self.crc64, next.crc64, next.size),
            nvme: crc64_nvme_combine(self.nvme, next.nvme, next.size),
        }
    }

    /// Whether the store's checksum is ours; nothing if it has none or one that cannot be compared.
    pub(crate) fn agree(&self, stores: Option<Checksum>) -> Option<bool> {
        match stores? {
            Checksum::Crc64(value) => Some(value == self.crc64),
            Checksum::Crc64Nvme(value) => Some(value == self.nvme),
            Checksum::Md5(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_whole() {
        let whole = Sums::of(b"one").then(Sums::of(b"")).then(Sums::of(b"two"));
        assert_eq!(whole, Sums::of(b"onetwo"));
        assert_eq!(Sums::default().then(whole), whole);
        assert_eq!(Sums::of_all(&[Bytes::from_static(b"one"), Bytes::from_static(b"two")]), whole);
        assert_eq!(Sums::of_all(&[]), Sums::default());
        assert_eq!(whole.agree(Some(Checksum::Crc64(crc64(b"onetwo")))), Some(true));
        assert_eq!(whole.agree(Some(Checksum::Crc64Nvme(crc64_nvme(b"onetwo")))), Some(true));
        assert_eq!(whole.agree(Some(Checksum::Crc64(1))), Some(false));
        assert_eq!(whole.agree(Some(Checksum::Md5([0; 16]))), None);
        assert_eq!(whole.agree(None), None);
    }
}
