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

impl Packed {
    /// Packs a tag, if it is of the usual form.
    pub fn new(tag: &str) -> Option<Self> {
        let inner = tag.strip_prefix('"')?.strip_suffix('"')?;
        let (digits, parts) = match inner.split_once('-') {
            Some((digits, parts)) => (digits, Some(parts)),
            None => (inner, None),
        };
        let parts = match parts {
            Some(text) => text.parse::<u16>().ok().filter(|&parts| parts > 0 && parts.to_string() == text)?,
            None => 0,
        };
        let upper = digits.bytes().any(|digit| digit.is_ascii_uppercase());
        if upper && digits.bytes().any(|digit| digit.is_ascii_lowercase()) {
            return None;
        }
        let mut bytes = [0; 16];
        hex::decode_to_slice(digits, &mut bytes).ok()?;
        Some(Self { bytes, upper, parts })
    }

    /// The tag as it was.
    pub fn text(&self) -> String {
        let digits = if self.upper { hex::encode_upper(self.bytes) } else { hex::encode(self.bytes) };
        if self.parts == 0 { format!("\"{digits}\"") } else { format!("\"{digits}-{}\"", self.parts) }
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
