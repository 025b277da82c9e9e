//! Names in another character set than UTF-8. Pure.
//!
//! Keys are UTF-8. A program that was written for GBK sees, and asks for, names in GBK when its mount says so. The conversion is
//! one to one: every key has exactly one name and [`Charset::to_key`] leads back to it, so no two keys can meet at one name
//! and hide one another.
//!
//! What makes that hard are the characters that a character set does not have, or that come back as others: in Shift_JIS a yen sign
//! would turn into a backslash. Each is written as an escape in the form that Info-ZIP's `unzip` has for such names: `#U4e2d`, with
//! four small hexadecimal digits, or `#L01f600`, with six, above U+FFFF. A `#` in a key that would read as the beginning of such an escape
//! is escaped itself (`#U0023`). A name is accepted only in the form in which it is shown; any other spelling is a name that does not
//! exist.
//!
//! Tables are those of the WHATWG Encoding Standard, which are the ones of Windows where the two differ from the C library: GBK has a
//! euro sign at 0x80, and ISO-8859-1 means windows-1252. Every set that is accepted shows ASCII as it is, so that `.`, `..` and
//! slashes are what they are everywhere. Those with shift states (ISO-2022-JP) and those of wide units (UTF-16) cannot be
//! a file system's, and are refused.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use encoding_rs::{EncoderResult, Encoding, ISO_2022_JP, REPLACEMENT, UTF_8, UTF_16BE, UTF_16LE, X_USER_DEFINED};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::namespace::listing::{MAX_NAME, is_name};

/// The longest segment of a key that can be shown in any character set, in bytes of UTF-8: 255 bytes of a set of two bytes a
/// character are 381 in UTF-8.
pub const MAX_SEGMENT: usize = 511;

/// What most people mean.
const COMMON: &str = "UTF-8, GBK, GB18030, Big5, Shift_JIS, EUC-JP, EUC-KR, windows-1252, KOI8-R";

/// Names that the C library, Windows and BatchCompute have for what the standard calls otherwise; compared without punctuation.
const ALIASES: &[(&str, &str)] = &[
    ("gb231280", "GBK"),
    ("cp936", "GBK"),
    ("ms936", "GBK"),
    ("cp932", "Shift_JIS"),
    ("eucjp", "EUC-JP"),
    ("ujis", "EUC-JP"),
    ("cp949", "EUC-KR"),
    ("uhc", "EUC-KR"),
    ("euckr", "EUC-KR"),
    ("cp950", "Big5"),
    ("koi8r", "KOI8-R"),
    ("koi8u", "KOI8-U"),
    ("tis620", "windows-874"),
    ("iso885915", "ISO-8859-15"),
];

/// A character set in which names are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Charset(&'static Encoding);

/// Why a character set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CharsetError {
    /// Nobody knows it.
    #[error("the character set {0:?} is not known; common ones are {COMMON}")]
    Unknown(String),
    /// A file system cannot have names in it.
    #[error(
        "names cannot be in {name} ({text:?}), because it has shift states, wide units, or no fixed meaning; \
         common character sets are {COMMON}"
    )]
    Unsuitable {
        /// What was asked for.
        text: String,
        /// What that stands for.
        name: &'static str,
    },
}

impl Default for Charset {
    fn default() -> Self {
        Self::UTF_8
    }
}

impl fmt::Debug for Charset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Charset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Charset {
    type Err = CharsetError;

    /// Reads a label of the standard (`gbk`, `shift-jis`, `cp1251`) or a locale of the C library (`zh_CN.GBK`, `C.UTF-8`, `POSIX`).
    fn from_str(text: &str) -> Result<Self, CharsetError> {
        if matches!(text, "C" | "POSIX") {
            return Ok(Self::UTF_8);
        }
        let without_modifier = text.split_once('@').map_or(text, |(locale, _)| locale);
        let codeset = without_modifier.rsplit_once('.').map_or(without_modifier, |(_, codeset)| codeset);
        let encoding = [text, codeset].into_iter().find_map(by_label);
        let encoding = encoding.ok_or_else(|| CharsetError::Unknown(text.to_owned()))?;
        if [REPLACEMENT, UTF_16LE, UTF_16BE, ISO_2022_JP, X_USER_DEFINED].contains(&encoding) {
            return Err(CharsetError::Unsuitable { text: text.to_owned(), name: encoding.name() });
        }
        Ok(Self(encoding))
    }
}

fn by_label(label: &str) -> Option<&'static Encoding> {
    let letters: String = label.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == letters).map(|(_, name)| *name);
    Encoding::for_label(label.as_bytes()).or_else(|| Encoding::for_label(alias?.as_bytes()))
}

impl Serialize for Charset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Charset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Charset {
    /// Names are shown as keys are written.
    pub const UTF_8: Self = Self(UTF_8);

    /// What the standard calls it.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// Whether names are shown as keys are written.
    pub fn is_utf8(&self) -> bool {
        self.0 == UTF_8
    }

    /// Whether a segment of a key can be shown as a file's name.
    pub fn shows(self, segment: &str) -> bool {
        if !is_name(segment) {
            return false;
        }
        if self.is_utf8() || segment.is_ascii() && !segment.contains('#') {
            return segment.len() <= MAX_NAME;
        }
        segment.len() <= MAX_SEGMENT && self.to_local(segment).len() <= MAX_NAME
    }

    /// The name that a segment of a key is shown as. The other way round is [`Charset::to_key`].
    pub fn to_local(self, segment: &str) -> Cow<'_, [u8]> {
        if self.is_utf8() || segment.is_ascii() && !segment.contains('#') {
            return Cow::Borrowed(segment.as_bytes());
        }
        let mut local = Vec::with_capacity(segment.len());
        for (at, character) in segment.char_indices() {
            let is_literal = character != '#' || escape(&segment[at..]).is_none();
            match self.encode(character).filter(|_| is_literal) {
                Some((bytes, length)) => local.extend_from_slice(&bytes[..length]),
                None if u32::from(character) <= 0xFFFF => {
                    local.extend_from_slice(format!("#U{:04x}", u32::from(character)).as_bytes());
                }
                None => local.extend_from_slice(format!("#L{:06x}", u32::from(character)).as_bytes()),
            }
        }
        Cow::Owned(local)
    }

    /// The segment of a key that is shown as this name; none when none is.
    pub fn to_key(self, local: &[u8]) -> Option<Cow<'_, str>> {
        if self.is_utf8() || local.is_ascii() && !local.contains(&b'#') {
            return std::str::from_utf8(local).ok().map(Cow::Borrowed);
        }
        let text = self.0.decode_without_bom_handling_and_without_replacement(local)?;
        let mut key = String::with_capacity(text.len());
        let mut rest = &*text;
        while let Some(character) = rest.chars().next() {
            let length = match escape(rest) {
                Some((value, length)) => {
                    key.push(char::from_u32(value)?);
                    length
                }
                None => {
                    key.push(character);
                    character.len_utf8()
                }
            };
            rest = &rest[length..];
        }
        (*self.to_local(&key) == *local).then_some(Cow::Owned(key))
    }

    /// The text that bytes mean in this character set, without escapes; none when they are no text in it.
    pub fn decode(self, bytes: &[u8]) -> Option<Cow<'_, str>> {
        self.0.decode_without_bom_handling_and_without_replacement(bytes)
    }

    /// The bytes of a character, and how many there are; none when it has none, when they mean another character, or when
    /// they would end or divide a name.
    fn encode(self, character: char) -> Option<([u8; 8], usize)> {
        let mut utf8 = [0; 4];
        let source = character.encode_utf8(&mut utf8);
        let mut bytes = [0; 8];
        let (result, _, length) = self.0.new_encoder().encode_from_utf8_without_replacement(source, &mut bytes, true);
        if result != EncoderResult::InputEmpty {
            return None;
        }
        let written = &bytes[..length];
        let back = self.0.decode_without_bom_handling_and_without_replacement(written)?;
        let is_safe = character.is_ascii() || !written.iter().any(|byte| matches!(byte, 0 | b'/'));
        (*back == *source && is_safe).then_some((bytes, length))
    }
}

/// The number in an escape that a text begins with, and the length of the escape.
fn escape(text: &str) -> Option<(u32, usize)> {
    let digits = match text.as_bytes().get(..2)? {
        b"#U" => 4,
        b"#L" => 6,
        _ => return None,
    };
    let number = text.get(2..2 + digits)?;
    let is_hex = number.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let value = u32::from_str_radix(number, 16).ok().filter(|_| is_hex)?;
    Some((value, 2 + digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETS: &[&str] =
        &["GBK", "GB18030", "Big5", "Shift_JIS", "EUC-JP", "EUC-KR", "windows-1252", "KOI8-R", "windows-874", "UTF-8"];

    fn charset(name: &str) -> Charset {
        name.parse().unwrap()
    }

    #[test]
    fn labels_and_locales_are_understood() {
        for (text, name) in [
            ("GBK", "GBK"),
            ("gb2312", "GBK"),
            ("GB2312-80", "GBK"),
            ("zh_CN.GBK", "GBK"),
            ("zh_CN.GB18030", "gb18030"),
            ("zh_TW.BIG5", "Big5"),
            ("ja_JP.SJIS", "Shift_JIS"),
            ("SHIFT-JIS", "Shift_JIS"),
            ("ja_JP.eucJP", "EUC-JP"),
            ("ko_KR.eucKR", "EUC-KR"),
            ("KSC5601", "EUC-KR"),
            ("ru_RU.KOI8-R", "KOI8-R"),
            ("de_DE.ISO8859-1@euro", "windows-1252"),
            ("CP1251", "windows-1251"),
            ("cp936", "GBK"),
            ("UTF-8", "UTF-8"),
            ("en_US.UTF-8", "UTF-8"),
            ("C.UTF-8", "UTF-8"),
            ("C.utf8", "UTF-8"),
            ("C", "UTF-8"),
            ("POSIX", "UTF-8"),
        ] {
            assert_eq!(charset(text).name(), name, "{text}");
        }
        for text in ["ISO-2022-JP", "utf-16", "UTF-16BE", "x-user-defined", "iso-2022-kr", "hz-gb-2312", "replacement"]
        {
            let error = text.parse::<Charset>().unwrap_err();
            assert!(matches!(&error, CharsetError::Unsuitable { .. }), "{text}: {error}");
            assert!(error.to_string().contains("GBK, GB18030") && error.to_string().contains(text), "{error}");
        }
        for text in ["", "klingon", "zh_CN", "EUC-TW", "."] {
            assert_eq!(text.parse::<Charset>(), Err(CharsetError::Unknown(text.to_owned())));
        }
        assert_eq!(serde_json::to_string(&charset("zh_CN.GBK")).unwrap(), "\"GBK\"");
        assert!(serde_json::from_str::<Charset>("\"UTF-16\"").is_err());
    }

    #[test]
    fn names_are_shown_as_such_programs_expect_them() {
        for (set, key, local) in [
            ("GBK", "plain.txt", &b"plain.txt"[..]),
            ("GBK", "\u{4e2d}\u{6587}.txt", b"\xd6\xd0\xce\xc4.txt"),
            ("GBK", "\u{20ac}", b"\x80"),
            ("GBK", "\u{1f600}", b"#L01f600"),
            ("GBK", "caf\u{eb}", b"caf#U00eb"),
            ("GB18030", "\u{1f600}", b"\x94\x39\xfc\x36"),
            ("Shift_JIS", "\u{8868}", b"\x95\x5c"),
            ("Shift_JIS", "\\", b"\\"),
            ("Shift_JIS", "\u{a5}", b"#U00a5"),
            ("Shift_JIS", "\u{203e}", b"#U203e"),
            ("Shift_JIS", "\u{2212}", b"#U2212"),
            ("EUC-JP", "\u{a5}", b"#U00a5"),
            ("Big5", "\u{4e2d}", b"\xa4\xa4"),
            ("EUC-KR", "\u{d55c}", b"\xc7\xd1"),
            ("KOI8-R", "\u{43f}", b"\xd0"),
            ("windows-1252", "\u{81}", b"\x81"),
            ("GBK", "#1", b"#1"),
            ("GBK", "#U4e2d", b"#U0023U4e2d"),
            ("GBK", "##U4e2d", b"##U0023U4e2d"),
            ("GBK", "#\u{e5e5}", b"##Ue5e5"),
            ("GBK", "#U4E2D", b"#U4E2D"),
            ("GBK", "#L01f600", b"#U0023L01f600"),
            ("GBK", "\u{feff}x", b"#Ufeffx"),
            ("UTF-8", "#U4e2d", b"#U4e2d"),
            ("UTF-8", "\u{feff}x", b"\xef\xbb\xbfx"),
        ] {
            let set = charset(set);
            assert_eq!(&*set.to_local(key), local, "{set} {key:?}");
            assert_eq!(set.to_key(local).as_deref(), Some(key), "{set} {local:?}");
        }
    }

    #[test]
    fn any_other_spelling_is_no_name() {
        for (set, local) in [
            ("GBK", &b"#U4e2d"[..]),
            ("GBK", b"#U0041"),
            ("GBK", b"#L00e5e5"),
            ("GBK", b"#Ud800"),
            ("GBK", b"#L110000"),
            ("GBK", b"#U002f"),
            ("GBK", b"#U0000"),
            ("GBK", b"\xff\xff"),
            ("GBK", b"\xd6"),
            ("Shift_JIS", b"\x81"),
            ("UTF-8", b"\xd6\xd0"),
        ] {
            assert_eq!(charset(set).to_key(local), None, "{set} {local:?}");
        }
    }

    #[test]
    fn length_counts_as_shown() {
        let set = charset("GBK");
        assert!(set.shows(&"\u{4e2d}".repeat(127)) && !set.shows(&"\u{4e2d}".repeat(128)));
        assert!(!Charset::UTF_8.shows(&"\u{4e2d}".repeat(127)) && Charset::UTF_8.shows(&"\u{4e2d}".repeat(85)));
        assert!(set.shows(&"\u{e5e5}".repeat(42)) && !set.shows(&"\u{e5e5}".repeat(43)));
        assert!(set.shows(&"x".repeat(255)) && !set.shows(&"x".repeat(256)));
        for odd in ["", ".", "..", "a/b", "a\0"] {
            assert!(!set.shows(odd) && !Charset::UTF_8.shows(odd), "{odd:?}");
        }
    }

    /// Text with what is odd in one set or another.
    fn text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[ -.0-~]{0,4}",
            "#[UL][0-9a-fA-F]{0,8}",
            "\\PC{0,4}",
            "[\u{4e00}-\u{4e80}\u{3040}-\u{30ff}\u{ac00}-\u{ac80}\u{410}-\u{44f}]{0,4}",
            "[#\\\\~\u{a5}\u{203e}\u{20ac}\u{2212}\u{ff0d}\u{301c}\u{ff5e}\u{a3}\u{b7}\u{80}\u{81}\u{ff61}\u{ca}\u{304}\u{e5e5}\u{1f600}\u{feff}]{0,4}",
        ];
        proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn every_key_comes_back(set in proptest::sample::select(SETS), key in text()) {
            prop_assume!(!key.contains(['/', '\0']));
            let set = charset(set);
            let local = set.to_local(&key);
            prop_assert!(!local.contains(&0) && !local.contains(&b'/'));
            let back = set.to_key(&local);
            prop_assert_eq!(back.as_deref(), Some(key.as_str()), "{:?}", &local);
        }

        #[test]
        fn every_name_has_one_key_or_none(set in proptest::sample::select(SETS), local in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..12),
            "[#UL0-9a-f]{0,16}".prop_map(String::into_bytes),
        ]) {
            let set = charset(set);
            if let Some(key) = set.to_key(&local) {
                prop_assert_eq!(&*set.to_local(&key), &*local);
            }
        }
    }

    #[test]
    fn every_single_character_comes_back_in_every_set() {
        for set in SETS.iter().map(|name| charset(name)) {
            for character in ('\u{1}'..=char::MAX).step_by(7).chain('\u{1}'..='\u{4000}').filter(|c| *c != '/') {
                let key = character.to_string();
                let local = set.to_local(&key);
                assert_eq!(set.to_key(&local).as_deref(), Some(key.as_str()), "{set} {character:?}");
            }
        }
    }
}
