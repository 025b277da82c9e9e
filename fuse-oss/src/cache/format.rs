//! What an index file says, byte by byte. Pure, no I/O.
//!
//! An object of more than [`SMALL`] bytes has a data file, which is the object with holes where something is missing, and
//! an index file:
//!
//! ```text
//! 0      header, up to 4096 bytes with the description behind it
//! 4092   usage: whether the object was wanted more than once
//! 4096   slot of block 0, 288 bytes
//! 4384   slot of block 1, ...
//! ```
//!
//! A smaller object has one file, the data with its index behind it, so that keeping it is one write and opening it one read:
//!
//! ```text
//! 0      the object
//! size   slot of block 0, header, description, length of all this, usage
//! ```
//!
//! Nothing is ever synced, so a crash may lose or tear any of it. The header has a checksum over itself, and a slot one
//! over itself, its number and the object's digest: what is torn, old, or in the wrong place reads as "nothing there". A slot that
//! reached the disk before its data is found out by the CRC-32C of each granule, which is compared before anything is
//! served. Numbers are little-endian.

use oss::crc::crc64;

use super::sums::{Kind, Sum};
use crate::geometry::{BLOCK, GRANULE, Granules};

/// Objects up to this size keep their index behind their data.
pub const SMALL: u64 = 256 << 10;

/// Where the slots of an index file begin.
pub const SLOTS_AT: u64 = 4096;

/// Bytes of one slot.
pub const SLOT_LEN: usize = 288;

/// Where an index file has its usage word.
pub const USAGE_AT: u64 = SLOTS_AT - 4;

/// The usage word of an object that was wanted more than once; anything else means it was not.
pub const USED_AGAIN: [u8; 4] = *b"HOT\n";

/// The most bytes that stand behind the data of a small object.
pub const TAIL_MAX: usize = 4096;

/// Bytes of a header without the description.
const HEADER_LEN: usize = 96;

/// The most bytes of description: the rest of the header's page but for the usage word.
const DESCRIPTION_MAX: usize = TAIL_MAX - HEADER_LEN - SLOT_LEN - 8;

const MAGIC: &[u8; 8] = b"FUSEOSS2";

const OLD_MAGIC: &[u8; 8] = b"FUSEOSS1";

const COMPLETE: u32 = 1;
const RIGHT: u32 = 2;

/// Whose bytes these are, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// Where the object is, escaped.
    pub location: String,
    /// Its version.
    pub etag: Option<String>,
}

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The object's digest: place, key and version.
    pub digest: [u8; 16],
    /// The object's length in bytes.
    pub size: u64,
    /// Every granule was there. A hint: the slots decide.
    pub complete: bool,
    /// And the checksum of the whole was the store's.
    pub right: bool,
    /// The whole object's checksum, as its store told it.
    pub sum: Option<Sum>,
    /// Whose bytes these are.
    pub description: Description,
}

impl Header {
    /// The header's bytes, and the description's behind them. A description that is too long is cut off.
    pub fn encode(&self) -> Vec<u8> {
        let etag = cut(self.description.etag.as_deref().unwrap_or_default(), DESCRIPTION_MAX / 4);
        let location = cut(&self.description.location, DESCRIPTION_MAX - etag.len());
        let mut out = vec![0; HEADER_LEN];
        let flags = if self.complete { COMPLETE } else { 0 } | if self.right { RIGHT } else { 0 };
        let (kind, sum) = encode_sum(self.sum);
        let len = |text: &str| u16::try_from(text.len()).expect("less than 4096, which fits");
        out[..8].copy_from_slice(MAGIC);
        out[8..16].copy_from_slice(&BLOCK.to_le_bytes());
        out[16..24].copy_from_slice(&GRANULE.to_le_bytes());
        out[24..32].copy_from_slice(&self.size.to_le_bytes());
        out[32..48].copy_from_slice(&self.digest);
        out[48..52].copy_from_slice(&flags.to_le_bytes());
        out[52..56].copy_from_slice(&kind.to_le_bytes());
        out[56..64].copy_from_slice(&sum.to_le_bytes());
        out[64..66].copy_from_slice(&len(location).to_le_bytes());
        out[66..68].copy_from_slice(&len(etag).to_le_bytes());
        out[68] = u8::from(self.description.etag.is_some());
        out.extend_from_slice(location.as_bytes());
        out.extend_from_slice(etag.as_bytes());
        let check = header_check(&out);
        out[HEADER_LEN - 8..HEADER_LEN].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a header; none when it is torn, of another format or of another geometry.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let fixed = bytes.get(..HEADER_LEN)?;
        if &fixed[..8] != MAGIC || word(fixed, 8)? != BLOCK || word(fixed, 16)? != GRANULE {
            return None;
        }
        let len = |at: usize| Some(usize::from(u16::from_le_bytes(fixed.get(at..at + 2)?.try_into().ok()?)));
        let (location, etag) = (len(64)?, len(66)?);
        let all = bytes.get(..HEADER_LEN + location + etag)?;
        if word(fixed, HEADER_LEN - 8)? != header_check(all) {
            return None;
        }
        let (location, etag) = all[HEADER_LEN..].split_at(location);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let flags = half(fixed, 48)?;
        Some(Self {
            digest: fixed[32..48].try_into().ok()?,
            size: word(fixed, 24)?,
            complete: flags & COMPLETE != 0,
            right: flags & RIGHT != 0,
            sum: decode_sum(half(fixed, 52)?, word(fixed, 56)?),
            description: Description {
                location: text(location)?,
                etag: if fixed[68] == 1 { Some(text(etag)?) } else { None },
            },
        })
    }
}

/// Everything but the place of the check itself.
fn header_check(bytes: &[u8]) -> u64 {
    let mut crc = oss::crc::Crc64::new();
    crc.update(&bytes[..HEADER_LEN - 8]);
    crc.update(&bytes[HEADER_LEN..]);
    crc.value()
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Whether an index file without a readable header is one of ours: torn, never written, or of the format before this one, which
/// cannot be read any more.
pub fn is_ours(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC) || bytes.starts_with(OLD_MAGIC) || bytes.iter().all(|byte| *byte == 0)
}

/// What stands behind the data of a small object.
pub fn encode_tail(slot: &[u8; SLOT_LEN], header: &Header, used_again: bool) -> Vec<u8> {
    let mut out = slot.to_vec();
    out.extend(header.encode());
    let len = u32::try_from(out.len() + 8).expect("at most TAIL_MAX, which fits");
    out.extend(len.to_le_bytes());
    out.extend(if used_again { USED_AGAIN } else { [0; 4] });
    out
}

/// Reads the header and the usage from what stands behind the data of a small object; [`Slot::decode`] reads the slot at its
/// beginning.
pub fn decode_tail(bytes: &[u8]) -> Option<(Header, bool)> {
    let header = Header::decode(bytes.get(SLOT_LEN..)?)?;
    let (len, usage) = (half(bytes, bytes.len().checked_sub(8)?)?, &bytes[bytes.len() - 4..]);
    (usize::try_from(len) == Ok(bytes.len())).then_some((header, usage == USED_AGAIN))
}

/// How long what stands behind the data is, by the last bytes of a small object's file.
pub fn tail_len(end: &[u8]) -> Option<usize> {
    let len = usize::try_from(half(end, end.len().checked_sub(8)?)?).ok()?;
    (SLOT_LEN + HEADER_LEN..=TAIL_MAX).contains(&len).then_some(len)
}

/// What is known of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The granules that are there.
    pub granules: Granules,
    /// The checksum of the whole block; only of a block that is complete, and only of the kind that was wanted when it was.
    pub sum: Option<Sum>,
    /// The CRC-32C of each granule that is there.
    pub crcs: [u32; 64],
}

impl Slot {
    /// Nothing is there.
    pub const EMPTY: Self = Self { granules: Granules::EMPTY, sum: None, crcs: [0; 64] };

    /// Where slot `number` of an index file is.
    pub fn place(number: u32) -> u64 {
        SLOTS_AT + u64::from(number) * u64::try_from(SLOT_LEN).expect("288 fits")
    }

    /// The bytes of slot `number` of an object. Nothing there is all zeros.
    pub fn encode(&self, digest: &[u8; 16], number: u32) -> [u8; SLOT_LEN] {
        let mut out = [0; SLOT_LEN];
        if self.granules.is_empty() {
            return out;
        }
        let (kind, sum) = encode_sum(self.sum);
        out[..8].copy_from_slice(&self.granules.0.to_le_bytes());
        out[8..16].copy_from_slice(&sum.to_le_bytes());
        out[16..20].copy_from_slice(&kind.to_le_bytes());
        for (place, crc) in out[24..SLOT_LEN - 8].chunks_exact_mut(4).zip(&self.crcs) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        let check = slot_check(digest, number, &out[..SLOT_LEN - 8]);
        out[SLOT_LEN - 8..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads slot `number` of an object; none when it is empty, torn or belongs elsewhere.
    pub fn decode(digest: &[u8; 16], number: u32, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..SLOT_LEN)?;
        let granules = Granules(word(bytes, 0)?);
        if granules.is_empty() || word(bytes, SLOT_LEN - 8)? != slot_check(digest, number, &bytes[..SLOT_LEN - 8]) {
            return None;
        }
        let mut crcs = [0; 64];
        for (crc, at) in crcs.iter_mut().zip((24..).step_by(4)) {
            *crc = half(bytes, at)?;
        }
        Some(Self { granules, sum: decode_sum(half(bytes, 16)?, word(bytes, 8)?), crcs })
    }
}

fn slot_check(digest: &[u8; 16], number: u32, content: &[u8]) -> u64 {
    let mut whole = [0; 20 + SLOT_LEN - 8];
    whole[..16].copy_from_slice(digest);
    whole[16..20].copy_from_slice(&number.to_le_bytes());
    whole[20..].copy_from_slice(content);
    crc64(&whole)
}

fn encode_sum(sum: Option<Sum>) -> (u32, u64) {
    match sum {
        None => (0, 0),
        Some(Sum { kind: Kind::Xz, value }) => (1, value),
        Some(Sum { kind: Kind::Nvme, value }) => (2, value),
    }
}

fn decode_sum(kind: u32, value: u64) -> Option<Sum> {
    let kind = match kind {
        1 => Kind::Xz,
        2 => Kind::Nvme,
        _ => return None,
    };
    Some(Sum { kind, value })
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sums() -> impl Strategy<Value = Option<Sum>> {
        prop_oneof![
            Just(None),
            any::<u64>().prop_map(|value| Some(Sum { kind: Kind::Xz, value })),
            any::<u64>().prop_map(|value| Some(Sum { kind: Kind::Nvme, value })),
        ]
    }

    prop_compose! {
        fn headers()(
            digest: [u8; 16], size: u64, complete: bool, right: bool, sum in sums(), location in ".{0,80}",
            etag in prop::option::of(".{0,40}"),
        ) -> Header {
            Header { digest, size, complete, right, sum, description: Description { location, etag } }
        }
    }

    prop_compose! {
        fn slots()(granules in 1_u64.., sum in sums(), seed: u32) -> Slot {
            let crcs = std::array::from_fn(|at| seed.wrapping_mul(at as u32 | 1));
            Slot { granules: Granules(granules), sum, crcs }
        }
    }

    #[test]
    fn a_description_that_is_too_long_is_cut_where_a_letter_ends() {
        let description = Description { location: "ü".repeat(4000), etag: Some("é".repeat(4000)) };
        let header = Header { digest: [7; 16], size: 9, complete: true, right: false, sum: None, description };
        let bytes = header.encode();
        assert!(bytes.len() <= usize::try_from(USAGE_AT).unwrap());
        let again = Header::decode(&bytes).unwrap();
        assert!(header.description.location.starts_with(&again.description.location));
        assert!(again.description.location.len() > 2000 && again.description.etag.unwrap().len() > 500);
        let tail = encode_tail(&[0; SLOT_LEN], &header, true);
        assert!(tail.len() <= TAIL_MAX);
        assert_eq!(tail_len(&tail), Some(tail.len()));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(header in headers(), slot in slots(), number: u32, used_again: bool) {
            prop_assert_eq!(Header::decode(&header.encode()), Some(header.clone()));
            let bytes = slot.encode(&header.digest, number);
            prop_assert_eq!(Slot::decode(&header.digest, number, &bytes), Some(slot.clone()));
            let tail = encode_tail(&slot.encode(&header.digest, 0), &header, used_again);
            prop_assert_eq!(tail_len(&tail[SLOT_LEN..]), Some(tail.len()));
            prop_assert_eq!(Slot::decode(&header.digest, 0, &tail), Some(slot));
            prop_assert_eq!(decode_tail(&tail), Some((header, used_again)));
        }

        #[test]
        fn a_torn_header_or_slot_reads_as_nothing(
            header in headers(), slot in slots(), number: u32, at: prop::sample::Index, bit in 0_u8..8, cut: prop::sample::Index,
        ) {
            let mut bytes = header.encode();
            let at_header = at.index(bytes.len());
            bytes[at_header] ^= 1 << bit;
            // The few bytes nobody uses are covered like the others.
            prop_assert_eq!(Header::decode(&bytes), None);
            let whole = slot.encode(&header.digest, number);
            let mut flipped = whole;
            flipped[at.index(SLOT_LEN)] ^= 1 << bit;
            prop_assert_eq!(Slot::decode(&header.digest, number, &flipped), None);
            let mut torn = whole;
            torn[cut.index(SLOT_LEN)..].fill(0);
            prop_assert!(torn == whole || Slot::decode(&header.digest, number, &torn).is_none());
            prop_assert_eq!(Slot::decode(&header.digest, number.wrapping_add(1), &whole), None);
            let mut another = header.digest;
            another[0] ^= 1;
            prop_assert_eq!(Slot::decode(&another, number, &whole), None);
        }

        #[test]
        fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = (Header::decode(&bytes), decode_tail(&bytes), tail_len(&bytes), Slot::decode(&[0; 16], 0, &bytes));
        }
    }
}
