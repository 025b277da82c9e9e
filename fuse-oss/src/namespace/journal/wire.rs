//! Pages of listings as bytes: some forty for a name. Pure.
//!
//! Keys stand in order and have most of their bytes in common with the one before, so only the rest is written. Numbers have seven bits
//! to a byte, times are written as the distance from the one before, entity tags of the usual form as what their digits say.
//! Checksums are left out: the table does not keep them.

use oss::{ETag, Key, ListPage, ObjectMeta};

use crate::namespace::table::{TIMELESS, nanos, time};
use crate::namespace::tag::Packed;

const TIMED: u8 = 1;
const ARCHIVED: u8 = 2;
const TAGGED: u8 = 4;
/// The tag is of the usual form.
const PACKED: u8 = 8;
const UPPER: u8 = 16;
const PARTS: u8 = 32;

/// How many bytes a page takes, more or less.
pub fn room(page: &ListPage) -> usize {
    (page.objects.len() + page.prefixes.len()) * 64
}

/// Seven bits to a byte, the lowest first.
pub fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7F) as u8);
}

fn put_bytes(bytes: &mut Vec<u8>, text: &[u8]) {
    put_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text);
}

/// A text and its length.
pub fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_bytes(bytes, text.as_bytes());
}

/// A text that may be absent.
pub fn put_optional_text(bytes: &mut Vec<u8>, text: Option<&str>) {
    bytes.push(u8::from(text.is_some()));
    if let Some(text) = text {
        put_text(bytes, text);
    }
}

/// A page. Whether there is another one is always written, how the store calls it only with `token`.
pub fn put_page(bytes: &mut Vec<u8>, page: &ListPage, token: bool) {
    put_optional_text(bytes, page.continuation.as_ref().map(|next| if token { next.as_str() } else { "" }));
    put_number(bytes, page.objects.len() as u64);
    let mut last = Last::default();
    for meta in &page.objects {
        last.put(bytes, meta);
    }
    put_number(bytes, page.prefixes.len() as u64);
    let mut before = "";
    for prefix in &page.prefixes {
        put_rest(bytes, before.as_bytes(), prefix.as_bytes());
        before = prefix;
    }
}

/// One object by itself.
pub fn put_object(bytes: &mut Vec<u8>, meta: &ObjectMeta) {
    Last::default().put(bytes, meta);
}

fn put_rest(bytes: &mut Vec<u8>, before: &[u8], text: &[u8]) {
    let common = before.iter().zip(text).take_while(|(a, b)| a == b).count();
    put_number(bytes, common as u64);
    put_bytes(bytes, &text[common..]);
}

/// The object before the one at hand.
#[derive(Default)]
struct Last<'a> {
    key: &'a [u8],
    modified: i64,
}

impl<'a> Last<'a> {
    fn put(&mut self, bytes: &mut Vec<u8>, meta: &'a ObjectMeta) {
        let tag = meta.etag.as_ref().map(|tag| tag.0.as_str());
        let packed = tag.and_then(Packed::new);
        let modified = nanos(meta.modified);
        let mut flags = 0;
        for (flag, is_set) in [
            (TIMED, modified != TIMELESS),
            (ARCHIVED, meta.archived),
            (TAGGED, tag.is_some()),
            (PACKED, packed.is_some()),
            (UPPER, packed.is_some_and(|packed| packed.upper)),
            (PARTS, packed.is_some_and(|packed| packed.parts > 0)),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        bytes.push(flags);
        let key = meta.key.as_str().as_bytes();
        put_rest(bytes, self.key, key);
        self.key = key;
        put_number(bytes, meta.size);
        if modified != TIMELESS {
            put_signed(bytes, modified.wrapping_sub(self.modified));
            self.modified = modified;
        }
        match (packed, tag) {
            (Some(packed), _) => {
                bytes.extend_from_slice(&packed.bytes);
                if packed.parts > 0 {
                    put_number(bytes, packed.parts.into());
                }
            }
            (None, Some(tag)) => put_text(bytes, tag),
            (None, None) => {}
        }
    }
}

/// Small distances in either direction are small numbers.
fn put_signed(bytes: &mut Vec<u8>, number: i64) {
    put_number(bytes, (number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned());
}

/// Bytes to be read from the front. Everything is none where they end too early or say what nobody wrote.
#[derive(Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// One byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// So many bytes as they are.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N as u64)?.try_into().ok()
    }

    /// See [`put_number`].
    pub fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            number |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1).cast_signed() ^ -((number & 1).cast_signed()))
    }

    /// See [`put_text`].
    pub fn text(&mut self) -> Option<&'a str> {
        let len = self.number()?;
        std::str::from_utf8(self.take(len)?).ok()
    }

    /// See [`put_optional_text`].
    pub fn optional_text(&mut self) -> Option<Option<&'a str>> {
        Some(if self.byte()? == 0 { None } else { Some(self.text()?) })
    }

    /// See [`put_page`].
    pub fn page(&mut self) -> Option<ListPage> {
        let continuation = self.optional_text()?.map(str::to_owned);
        let (mut key, mut modified) = (Vec::new(), 0);
        let count = self.count()?;
        let mut objects = Vec::with_capacity(count);
        for _ in 0..count {
            objects.push(self.next_object(&mut key, &mut modified)?);
        }
        let mut prefix = Vec::new();
        let count = self.count()?;
        let mut prefixes = Vec::with_capacity(count);
        for _ in 0..count {
            self.rest(&mut prefix)?;
            prefixes.push(std::str::from_utf8(&prefix).ok()?.to_owned());
        }
        Some(ListPage { objects, prefixes, continuation })
    }

    /// See [`put_object`].
    pub fn object(&mut self) -> Option<ObjectMeta> {
        self.next_object(&mut Vec::new(), &mut 0)
    }

    /// A number of things of which each takes two bytes at least.
    fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.number()?).ok()?;
        (count <= self.0.len() / 2).then_some(count)
    }

    /// Replaces the text before by the next one.
    fn rest(&mut self, text: &mut Vec<u8>) -> Option<()> {
        let common = usize::try_from(self.number()?).ok()?;
        if common > text.len() {
            return None;
        }
        text.truncate(common);
        let len = self.number()?;
        text.extend_from_slice(self.take(len)?);
        Some(())
    }

    fn next_object(&mut self, key: &mut Vec<u8>, modified: &mut i64) -> Option<ObjectMeta> {
        let flags = self.byte()?;
        self.rest(key)?;
        let size = self.number()?;
        if flags & TIMED != 0 {
            *modified = modified.wrapping_add(self.signed()?);
        }
        let etag = if flags & PACKED != 0 {
            let bytes = self.array()?;
            let parts = if flags & PARTS != 0 { u16::try_from(self.number()?).ok()? } else { 0 };
            Some(ETag(Packed { bytes, upper: flags & UPPER != 0, parts }.text()))
        } else if flags & TAGGED != 0 {
            Some(ETag(self.text()?.to_owned()))
        } else {
            None
        };
        Some(ObjectMeta {
            key: Key::new(std::str::from_utf8(key).ok()?),
            size,
            etag,
            modified: if flags & TIMED != 0 { time(*modified) } else { None },
            checksum: None,
            archived: flags & ARCHIVED != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, SystemTime};

    fn meta() -> impl Strategy<Value = ObjectMeta> {
        let tag = prop_oneof![any::<String>(), "\"[0-9a-f]{32}\"", "\"[0-9A-F]{32}(-[1-9][0-9]{0,4})?\""];
        let time = prop_oneof![
            any::<u32>().prop_map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into())),
            any::<u32>().prop_map(|nanos| SystemTime::UNIX_EPOCH - Duration::from_nanos(nanos.into())),
            Just(SystemTime::UNIX_EPOCH),
        ];
        (any::<String>(), any::<u64>(), proptest::option::of(tag), proptest::option::of(time), any::<bool>()).prop_map(
            |(key, size, etag, modified, archived)| ObjectMeta {
                key: Key::new(key),
                size,
                etag: etag.map(ETag),
                modified,
                checksum: None,
                archived,
            },
        )
    }

    proptest! {
        #[test]
        fn a_page_comes_back_as_it_was(
            objects in proptest::collection::vec(meta(), 0..20),
            prefixes in proptest::collection::vec(any::<String>(), 0..20),
            continuation in proptest::option::of(any::<String>()),
            cut in any::<prop::sample::Index>(),
        ) {
            let page = ListPage { objects, prefixes, continuation };
            let mut bytes = Vec::new();
            put_page(&mut bytes, &page, true);
            let mut read = Bytes(&bytes);
            prop_assert_eq!(format!("{page:?}"), format!("{:?}", read.page().unwrap()));
            prop_assert!(read.0.is_empty());
            prop_assert!(Bytes(&bytes[..cut.index(bytes.len())]).page().is_none());
        }

        #[test]
        fn numbers_come_back(number in any::<u64>(), signed in any::<i64>()) {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            put_signed(&mut bytes, signed);
            let mut read = Bytes(&bytes);
            prop_assert_eq!((read.number(), read.signed()), (Some(number), Some(signed)));
        }

        #[test]
        fn nothing_can_be_read_that_does_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Bytes(&bytes).page();
            let _ = Bytes(&bytes).object();
            let _ = Bytes(&bytes).number();
        }
    }
}
