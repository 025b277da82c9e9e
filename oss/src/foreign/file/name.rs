//! Which path a key is, and which names are ours.

use std::path::{Path, PathBuf};

use crate::staged::TEMPORARY;

/// Why a key has no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameError {
    #[error("a local file cannot have an empty name (the key is empty, begins with '/' or holds '//')")]
    Empty,
    #[error("'.' and '..' are never resolved, write the path without them")]
    Dots,
    #[error("a file name cannot hold the character U+0000")]
    Nul,
    #[error("names that begin with {TEMPORARY} are kept for writes in progress")]
    Reserved,
    #[error("a file name can be 255 bytes long at most")]
    Long,
}

/// The path below `base` that `key` names; a trailing slash is dropped.
pub(super) fn path_of(base: &Path, key: &str) -> Result<PathBuf, NameError> {
    let key = key.strip_suffix('/').unwrap_or(key);
    let mut path = base.to_owned();
    for segment in key.split('/') {
        check_segment(segment)?;
        path.push(segment);
    }
    Ok(path)
}

/// Where a listing of `prefix` begins: the directory, its key (empty or with a trailing slash).
pub(super) fn directory_of(base: &Path, prefix: &str) -> Result<(PathBuf, String), NameError> {
    if prefix.contains('\0') {
        return Err(NameError::Nul);
    }
    match prefix.rsplit_once('/') {
        None => Ok((base.to_owned(), String::new())),
        Some((directory, _)) => Ok((path_of(base, directory)?, format!("{directory}/"))),
    }
}

fn check_segment(segment: &str) -> Result<(), NameError> {
    match segment {
        "" => Err(NameError::Empty),
        "." | ".." => Err(NameError::Dots),
        _ if segment.contains('\0') => Err(NameError::Nul),
        _ if segment.starts_with(TEMPORARY) => Err(NameError::Reserved),
        _ if segment.len() > 255 => Err(NameError::Long),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn raw_names_are_kept_and_dangerous_ones_refused() {
        let base = Path::new("/b");
        for key in ["a", "100%25", "a b?c#d", "数据/样本", "new\nline", "...", "a/..b", "~", "back\\slash"] {
            assert_eq!(path_of(base, key).unwrap(), Path::new(&format!("/b/{key}")));
        }
        assert_eq!(path_of(base, "dir/").unwrap(), Path::new("/b/dir"));
        for (key, error) in [
            ("", NameError::Empty),
            ("/", NameError::Empty),
            ("/etc/passwd", NameError::Empty),
            ("a//b", NameError::Empty),
            ("a//", NameError::Empty),
            ("../x", NameError::Dots),
            ("a/..", NameError::Dots),
            ("a/./b", NameError::Dots),
            ("a\0", NameError::Nul),
            ("d/.oss-tmp.1/x", NameError::Reserved),
        ] {
            assert_eq!(path_of(base, key), Err(error), "{key:?}");
        }
        assert_eq!(path_of(base, &"n".repeat(256)), Err(NameError::Long));
    }

    #[test]
    fn a_listing_begins_in_the_deepest_directory_of_its_prefix() {
        let base = Path::new("/b");
        assert_eq!(directory_of(base, "").unwrap(), (PathBuf::from("/b"), String::new()));
        assert_eq!(directory_of(base, "x").unwrap(), (PathBuf::from("/b"), String::new()));
        assert_eq!(directory_of(base, "a/b/x").unwrap(), (PathBuf::from("/b/a/b"), "a/b/".into()));
        assert_eq!(directory_of(base, "a/b/").unwrap(), (PathBuf::from("/b/a/b"), "a/b/".into()));
        assert_eq!(directory_of(base, "a/../x"), Err(NameError::Dots));
        assert_eq!(directory_of(base, "/"), Err(NameError::Empty));
    }

    proptest! {
        #[test]
        fn no_key_escapes(key in "[a./\\PC]{0,20}") {
            if let Ok(path) = path_of(Path::new("/b"), &key) {
                prop_assert!(path.starts_with("/b") && path != Path::new("/b"));
                prop_assert!(path.components().all(|part| !matches!(part, std::path::Component::ParentDir)));
            }
        }
    }
}
