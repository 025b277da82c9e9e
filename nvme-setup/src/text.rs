//! What is shown to people.

use std::ffi::OsStr;
use std::path::Path;

/// Control characters escaped: labels and mount points are written by whoever had the disk, and must not be able to
/// move the cursor, recolour the terminal or forge a line.
pub fn printable(text: &str) -> String {
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text.to_owned() }
}

/// [`printable`] for paths and other names of the operating system, which need not be UTF-8.
pub(crate) fn printable_os(text: impl AsRef<OsStr>) -> String {
    printable(&text.as_ref().to_string_lossy())
}

/// A path in JSON: a string, whatever its bytes.
pub(crate) fn serialize_path<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// [`serialize_path`] for a list.
pub(crate) fn serialize_paths<S: serde::Serializer>(
    paths: &[std::path::PathBuf],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

/// [`serialize_path`] for one that may be missing.
pub(crate) fn serialize_optional_path<S: serde::Serializer>(
    path: &Option<std::path::PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.serialize_some(&path.to_string_lossy()),
        None => serializer.serialize_none(),
    }
}

/// A size with a binary unit, as short as it can be read: `512 B`, `1.5 GiB`, `100 GiB`.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    // In tenths of the unit, rounded down: a disk is never shown larger than it is.
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        _ if tenths >= 1000 => format!("{} {}", tenths / 10, UNITS[unit]),
        tenth => format!("{}.{tenth} {}", tenths / 10, UNITS[unit]),
    }
}

/// Orders names as people count: `nvme2n1` before `nvme10n1`.
pub(crate) fn natural_key(name: &str) -> Vec<(u128, String)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let letters = rest.find(|character: char| character.is_ascii_digit()).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(letters);
        let digits = tail.find(|character: char| !character.is_ascii_digit()).unwrap_or(tail.len());
        let (number, tail) = tail.split_at(digits);
        key.push((0, word.to_owned()));
        // A disk comes before its partitions. No name of the kernel's has a number that does not fit; if one had, it
        // would only be sorted last.
        let number = if number.is_empty() { 0 } else { number.parse().unwrap_or(u128::MAX) };
        key.push((number, String::new()));
        rest = tail;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_rounded_up() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1_900_000_000_000, "1.7 TiB"),
            (100 << 30, "100 GiB"),
            ((1 << 30) - 1, "1023 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }

    #[test]
    fn names_are_ordered_as_people_count() {
        let mut names = ["nvme10n1", "vda1", "vda", "nvme2n1p10", "nvme2n1", "nvme2n1p2", "dm-0"];
        names.sort_by_key(|name| natural_key(name));
        assert_eq!(names, ["dm-0", "nvme2n1", "nvme2n1p2", "nvme2n1p10", "nvme10n1", "vda", "vda1"]);
    }

    #[test]
    fn control_characters_are_escaped_and_nothing_else() {
        assert_eq!(printable("Daten ä"), "Daten ä");
        assert_eq!(printable("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
    }
}
