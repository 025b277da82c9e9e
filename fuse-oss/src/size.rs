//! Amounts of bytes as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, read from and printed as `512MiB`, `10GB` or `4096`.
///
/// ```
/// use fuse_oss::ByteSize;
/// assert_eq!("512MiB".parse::<ByteSize>().unwrap().bytes(), 512 << 20);
/// assert_eq!("10GB".parse::<ByteSize>().unwrap().bytes(), 10_000_000_000);
/// assert_eq!(ByteSize::new(2 << 30).to_string(), "2GiB");
/// assert_eq!(ByteSize::new(200_000_000_000).to_string(), "200GB");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ByteSize(u64);

/// Why a text is not a [`ByteSize`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a size: write a number with B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024)"
)]
pub struct ByteSizeError {
    text: String,
}

const UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    // One letter means powers of 1024, as it does for dd, truncate, mount -o size= and systemd.
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("B", 1),
];

impl ByteSize {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ByteSizeError { text: text.to_owned() };
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let unit = unit.trim_start();
        let factor = if unit.is_empty() {
            1
        } else {
            UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(error)?.1
        };
        let number: u64 = number.parse().map_err(|_| error())?;
        number.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that divides the number; what is printed parses back to the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0");
        }
        let units = UNITS.iter().filter(|(name, factor)| name.len() > 1 && self.0.is_multiple_of(*factor));
        match units.max_by_key(|(_, factor)| *factor) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_what_they_say() {
        for (text, bytes) in
            [("0", 0), ("17", 17), ("4k", 4096), ("4 KiB", 4096), ("3MB", 3_000_000), ("1tib", 1 << 40), ("5B", 5)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GB", "10 parsecs", "99999999999999TB"] {
            let message = text.parse::<ByteSize>().unwrap_err().to_string();
            assert!(message.contains("write a number"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn printing_loses_nothing(bytes in any::<u64>()) {
            prop_assert_eq!(ByteSize::new(bytes).to_string().parse::<ByteSize>().unwrap().bytes(), bytes);
        }
    }
}
