//! Which blocks of an object are in the cache, and their checksums: the format on disk. Pure, no I/O.
//!
//! An index file is a header and then one fixed slot per block, so that recording a block is one small write at a known
//! place and a file for 100 GB is 2.4 MB. Nothing is ever synced: a crash may lose or tear anything. The header carries its own
//! checksum and a slot carries one over itself, its number and the object's digest, so a torn slot or one that got into
//! the wrong place reads as "not there", and a slot that made it to the disk before its block did is found out when the
//! block is read back for the first time and its checksum is wrong.

use oss::crc::{crc64, crc64_nvme};

/// How many bytes a block has, except an object's last one.
pub const BLOCK: u64 = 1 << 20;

/// Bytes of the header.
pub const HEADER_LEN: usize = 64;
/// Bytes of one slot.
pub const SLOT_LEN: usize = 24;

const MAGIC: &[u8; 8] = b"FUSEOSS1";
const VERIFIED: u32 = 1;

/// The checksums of one block. Both kinds, because OSS keeps one for whole objects and S3 the other, and which it is becomes
/// known only with the first answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// CRC-64/XZ.
    pub xz: u64,
    /// CRC-64/NVME.
    pub nvme: u64,
}

impl Sums {
    /// The checksums of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { xz: crc64(bytes), nvme: crc64_nvme(bytes) }
    }
}

/// How many blocks an object of `size` bytes has.
pub fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK)
}

/// How many bytes block `index` of an object of `size` bytes has.
pub fn block_len(size: u64, index: u32) -> usize {
    let start = u64::from(index) * BLOCK;
    usize::try_from(size.saturating_sub(start).min(BLOCK)).expect("at most BLOCK, which fits")
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The object's digest: key and version.
    pub digest: [u8; 16],
    /// The object's length in bytes.
    pub size: u64,
    /// All blocks were there and the whole object's checksum was right.
    pub verified: bool,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(MAGIC);
        out[8..16].copy_from_slice(&BLOCK.to_le_bytes());
        out[16..24].copy_from_slice(&self.size.to_le_bytes());
        out[24..40].copy_from_slice(&self.digest);
        out[40..44].copy_from_slice(&(if self.verified { VERIFIED } else { 0 }).to_le_bytes());
        let sum = crc64(&out[..HEADER_LEN - 8]);
        out[HEADER_LEN - 8..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a header; none when it is torn, of another format, or of another block size.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_LEN)?;
        if &bytes[..8] != MAGIC
            || word(bytes, 8)? != BLOCK
            || word(bytes, HEADER_LEN - 8)? != crc64(&bytes[..HEADER_LEN - 8])
        {
            return None;
        }
        let flags = u32::from_le_bytes(bytes[40..44].try_into().ok()?);
        Some(Self { digest: bytes[24..40].try_into().ok()?, size: word(bytes, 16)?, verified: flags & VERIFIED != 0 })
    }
}

/// Where slot `index` is in the file.
pub fn slot_offset(index: u32) -> u64 {
    let slot = u64::from(index) * u64::try_from(SLOT_LEN).expect("24 fits");
    slot + u64::try_from(HEADER_LEN).expect("64 fits")
}

/// The bytes of slot `index` for a block with these checksums.
pub fn encode_slot(digest: &[u8; 16], index: u32, sums: Sums) -> [u8; SLOT_LEN] {
    let mut out = [0; SLOT_LEN];
    out[..8].copy_from_slice(&sums.xz.to_le_bytes());
    out[8..16].copy_from_slice(&sums.nvme.to_le_bytes());
    let check = slot_check(digest, index, &out[..16]);
    out[16..].copy_from_slice(&check.to_le_bytes());
    out
}

/// Reads slot `index`; none when it is empty, torn or belongs elsewhere.
pub fn decode_slot(digest: &[u8; 16], index: u32, bytes: &[u8]) -> Option<Sums> {
    let bytes = bytes.get(..SLOT_LEN)?;
    let check = word(bytes, 16)?;
    if check == 0 || check != slot_check(digest, index, &bytes[..16]) {
        return None;
    }
    Some(Sums { xz: word(bytes, 0)?, nvme: word(bytes, 8)? })
}

fn slot_check(digest: &[u8; 16], index: u32, sums: &[u8]) -> u64 {
    let mut whole = [0; 36];
    whole[..16].copy_from_slice(digest);
    whole[16..20].copy_from_slice(&index.to_le_bytes());
    whole[20..].copy_from_slice(sums);
    crc64(&whole)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_cover_an_object_exactly() {
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 100_000_000_000] {
            let count = block_count(size);
            let total: u64 = if count > 200 {
                (count - 1) * BLOCK + block_len(size, u32::try_from(count - 1).unwrap()) as u64
            } else {
                (0..count).map(|i| block_len(size, u32::try_from(i).unwrap()) as u64).sum()
            };
            assert_eq!(total, size);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(digest: [u8; 16], size: u64, verified: bool, index: u32, xz: u64, nvme: u64) {
            let header = Header { digest, size, verified };
            prop_assert_eq!(Header::decode(&header.encode()), Some(header));
            let sums = Sums { xz, nvme };
            prop_assert_eq!(decode_slot(&digest, index, &encode_slot(&digest, index, sums)), Some(sums));
        }

        #[test]
        fn a_torn_header_or_slot_reads_as_nothing(
            digest: [u8; 16], size: u64, index: u32, xz: u64, nvme: u64, at in 0_usize..24, bit in 0_u8..8, cut in 0_usize..24,
        ) {
            let mut header = Header { digest, size, verified: true }.encode();
            header[at] ^= 1 << bit;
            prop_assert_eq!(Header::decode(&header), None);
            let whole = encode_slot(&digest, index, Sums { xz, nvme });
            let mut flipped = whole;
            flipped[at] ^= 1 << bit;
            prop_assert_eq!(decode_slot(&digest, index, &flipped), None);
            let mut torn = whole;
            torn[cut..].fill(0);
            prop_assert!(torn == whole || decode_slot(&digest, index, &torn).is_none());
            prop_assert_eq!(decode_slot(&digest, index.wrapping_add(1), &whole), None);
        }
    }
}
