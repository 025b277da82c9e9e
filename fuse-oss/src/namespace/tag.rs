//! Entity tags in 16 bytes. Pure.
//!
//! Nearly all are an MD5 in hexadecimal digits between quotes, those of objects put in parts with `-` and the number of parts
//! behind it. A tag is given back exactly as the store wrote it, because it is sent to the store again.

/// A tag that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// What the digits say.
    pub bytes: [u8; 16],
    /// The digits above 9 are capital letters.
    pub upper: bool,
    /// The number of parts; 0 when the tag has none.
    pub parts: u16,
}

/// What a byte is as a digit: its value, and which kind of letter it is. This is on the way of every name that is listed.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16_u8 {
        if value < 10 {
            digits[(b'0' + value) as usize] = value;
        } else {
            digits[(b'a' + value - 10) as usize] = value | SMALL;
            digits[(b'A' + value - 10) as usize] = value | CAPITAL;
        }
        value += 1;
    }
    digits
};

const SMALL: u8 = 0x10;
const CAPITAL: u8 = 0x20;
const NO_DIGIT: u8 = 0x80;

impl Packed {
    /// Packs a tag, if it is of the usual form.
    pub fn new(tag: &str) -> Option<Self> {
        let inner = tag.strip_prefix('"')?.strip_suffix('"')?;
        let (digits, rest) = inner.split_at_checked(32)?;
        let (mut bytes, mut kinds) = ([0; 16], 0);
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
            kinds |= high | low;
            *byte = high << 4 | (low & 0xF);
        }
        if kinds & NO_DIGIT != 0 || kinds & (SMALL | CAPITAL) == SMALL | CAPITAL {
            return None;
        }
        let parts = match rest.strip_prefix('-') {
            Some(text) => text.parse::<u16>().ok().filter(|&parts| parts > 0 && parts.to_string() == text)?,
            None if rest.is_empty() => 0,
            None => return None,
        };
        Some(Self { bytes, upper: kinds & CAPITAL != 0, parts })
    }

    /// The tag as it was.
    pub fn text(&self) -> String {
        let digits = if self.upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
        let mut text = String::with_capacity(40);
        text.push('"');
        for byte in self.bytes {
            text.push(char::from(digits[usize::from(byte >> 4)]));
            text.push(char::from(digits[usize::from(byte & 0xF)]));
        }
        if self.parts > 0 {
            text.push('-');
            text.push_str(&self.parts.to_string());
        }
        text.push('"');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual_forms_fit_and_others_do_not() {
        for tag in [
            "\"5B3C1A2E053D763E1B002CC607C5A0FE\"",
            "\"9b2cf535f27731c974343645a3985328\"",
            "\"00000000000000000000000000000000-10000\"",
        ] {
            assert_eq!(Packed::new(tag).unwrap().text(), tag);
        }
        for tag in [
            "9b2cf535f27731c974343645a3985328",
            "\"9B2cf535f27731c974343645a3985328\"",
            "\"9b2cf535f27731c974343645a3985328-0\"",
            "\"9b2cf535f27731c974343645a3985328-007\"",
            "\"9b2cf535f27731c974343645a3985328-70000\"",
            "\"9b2cf535\"",
            "W/\"9b2cf535f27731c974343645a3985328\"",
            "\"\"",
            "\"",
            "",
        ] {
            assert_eq!(Packed::new(tag), None, "{tag}");
        }
    }

    proptest! {
        #[test]
        fn what_fits_comes_back_exactly(tag in prop_oneof![
            any::<String>(), "\"[0-9a-f]{32}\"", "\"[0-9A-F]{32}(-[0-9]{1,5})?\"", "\"[0-9a-fA-F]{31,33}\"",
        ]) {
            if let Some(packed) = Packed::new(&tag) {
                prop_assert_eq!(packed.text(), tag);
            }
        }
    }
}
