//! From the pages of a listing to the names of a directory. Pure: pages go in, names come out.
//!
//! Two things make this more than splitting strings.
//!
//! *Odd keys.* A key may have segments that no file system can show: empty ones (`a//b`, `/a`), `.` and `..`, names with a NUL
//! or of more than 255 bytes. They are counted and left out. Nothing can loop or escape, because a name that is shown
//! is always exactly one segment, and a directory's prefix always its parent's plus one name and a slash.
//!
//! *`x` beside `x/y`.* A bucket can hold both; a directory cannot. The directory keeps the name, because it leads
//! to more, and the object is counted as hidden. In key order other keys stand between the two (`x`, `x-1`, `x.log`, `x/y`),
//! possibly on another page, and a name that was once shown must not change its nature. So an object is held back until the
//! listing has passed the place where its directory would have come. At most one object per level of a chain of
//! prefixes (`x`, `x-`, `x-1`) is held at a time.

use oss::{ListPage, ObjectMeta};

/// The longest name Linux shows, in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// Whether a segment of a key can be a file's name.
pub fn is_visible_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// A name that came out of a page.
#[derive(Debug, Clone)]
pub enum Found {
    /// There is something below `prefix + name + "/"`.
    Directory {
        /// Its name.
        name: String,
    },
    /// There is an object at `prefix + name` and nothing below it.
    File {
        /// Its name.
        name: String,
        /// What the listing says about it.
        meta: ObjectMeta,
    },
}

/// What one page gave.
#[derive(Debug, Default)]
pub struct Absorbed {
    /// Names that are certain now.
    pub found: Vec<Found>,
    /// Keys and prefixes that cannot be shown.
    pub hidden: Vec<String>,
}

/// How far a directory has been listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has been asked.
    Fresh,
    /// There is more, from here.
    Partial(String),
    /// Everything has been seen.
    Complete,
}

/// One directory's listing in progress.
#[derive(Debug)]
pub struct Listing {
    prefix: String,
    progress: Progress,
    held: Vec<ObjectMeta>,
}

impl Listing {
    /// A listing of the keys that begin with `prefix` (empty or ending in a slash).
    pub fn new(prefix: String) -> Self {
        Self { prefix, progress: Progress::Fresh, held: Vec::new() }
    }

    /// How far it has come.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The prefix that all its keys begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Takes in the next page.
    pub fn absorb(&mut self, page: ListPage) -> Absorbed {
        let mut out = Absorbed::default();
        let objects_end = page.objects.last().map(|meta| meta.key.as_str());
        let reached = objects_end.max(page.prefixes.last().map(String::as_str)).map(str::to_owned);

        for prefix in page.prefixes {
            let name = prefix.strip_prefix(&self.prefix).and_then(|rest| rest.strip_suffix('/'));
            match name {
                Some(name) if is_visible_name(name) => {
                    let object_key = &prefix[..prefix.len() - 1];
                    if let Some(at) = self.held.iter().position(|meta| meta.key.as_str() == object_key) {
                        out.hidden.push(self.held.swap_remove(at).key.as_str().to_owned());
                    }
                    out.found.push(Found::Directory { name: name.to_owned() });
                }
                _ => out.hidden.push(prefix),
            }
        }

        // An object of this page is shadowed when its directory is on this page too.
        let directories: std::collections::HashSet<&str> = out
            .found
            .iter()
            .map(|found| match found {
                Found::Directory { name } | Found::File { name, .. } => name.as_str(),
            })
            .collect();
        let mut candidates = std::mem::take(&mut self.held);
        for meta in page.objects {
            let Some(name) = meta.key.as_str().strip_prefix(&self.prefix) else {
                // A store that answers with what was not asked for; showing it would put it in the wrong place.
                out.hidden.push(meta.key.as_str().to_owned());
                continue;
            };
            if name.is_empty() && !self.prefix.is_empty() {
                // The directory's own marker, which says nothing that is not known; unless somebody wrote data into it.
                if meta.size > 0 {
                    out.hidden.push(meta.key.as_str().to_owned());
                }
            } else if !is_visible_name(name) || directories.contains(name) {
                out.hidden.push(meta.key.as_str().to_owned());
            } else {
                candidates.push(meta);
            }
        }

        self.progress = page.continuation.map_or(Progress::Complete, Progress::Partial);
        let complete = self.progress == Progress::Complete;
        for meta in candidates {
            let passed = reached.as_deref().is_some_and(|reached| passes(reached, meta.key.as_str()));
            if complete || passed {
                let name = meta.key.as_str()[self.prefix.len()..].to_owned();
                out.found.push(Found::File { name, meta });
            } else {
                self.held.push(meta);
            }
        }
        out
    }
}

/// Whether a listing that has come as far as `reached` has passed the place of `key + "/"`.
fn passes(reached: &str, key: &str) -> bool {
    match reached.strip_prefix(key) {
        // Below `key`: past its directory when what follows sorts after a slash.
        Some(rest) => rest.as_bytes().first().is_some_and(|&next| next > b'/'),
        None => reached > key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oss::Key;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn meta(key: &str) -> ObjectMeta {
        ObjectMeta { key: Key::new(key), size: 1, etag: None, modified: None, checksum: None, archived: false }
    }

    /// What a store answers for `keys`, in pages of `page` entries.
    fn pages(keys: &BTreeSet<String>, prefix: &str, page: usize) -> Vec<ListPage> {
        let mut entries: Vec<Result<String, String>> = Vec::new();
        for key in keys.iter().filter(|key| key.starts_with(prefix)) {
            match key[prefix.len()..].find('/') {
                Some(at) => {
                    let common = key[..=prefix.len() + at].to_owned();
                    if entries.last() != Some(&Err(common.clone())) {
                        entries.push(Err(common));
                    }
                }
                None => entries.push(Ok(key.clone())),
            }
        }
        let chunks: Vec<_> = entries.chunks(page.max(1)).collect();
        if chunks.is_empty() {
            return vec![ListPage::default()];
        }
        let last = chunks.len() - 1;
        chunks
            .iter()
            .enumerate()
            .map(|(i, chunk)| ListPage {
                objects: chunk.iter().flatten().map(|key| meta(key)).collect(),
                prefixes: chunk.iter().filter_map(|entry| entry.clone().err()).collect(),
                continuation: (i < last).then(|| i.to_string()),
            })
            .collect()
    }

    fn list(keys: &BTreeSet<String>, prefix: &str, page: usize) -> (BTreeMap<String, bool>, Vec<String>) {
        let mut listing = Listing::new(prefix.to_owned());
        let mut names = BTreeMap::new();
        let mut hidden = Vec::new();
        for page in pages(keys, prefix, page) {
            let absorbed = listing.absorb(page);
            hidden.extend(absorbed.hidden);
            for found in absorbed.found {
                let (name, is_directory) = match found {
                    Found::Directory { name } => (name, true),
                    Found::File { name, .. } => (name, false),
                };
                assert!(names.insert(name.clone(), is_directory).is_none(), "{name:?} came twice");
            }
        }
        assert_eq!(listing.progress(), &Progress::Complete);
        assert!(listing.held.is_empty());
        (names, hidden)
    }

    fn set(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn odd_keys_are_hidden_and_everything_else_is_listed() {
        let long = "n".repeat(256);
        let keys =
            set(&["/lead", "a//b", "a/./c", "a/../d", "a/ok", "b", "dir/", "..", ".", "nul\0", "new\nline", &long]);
        let (names, hidden) = list(&keys, "", 3);
        assert_eq!(
            names.into_iter().collect::<Vec<_>>(),
            [("a", true), ("b", false), ("dir", true), ("new\nline", false)].map(|(n, d)| (n.to_owned(), d))
        );
        assert_eq!(hidden.len(), 5, "{hidden:?}");
        let (names, hidden) = list(&keys, "a/", 3);
        assert_eq!(names.into_iter().collect::<Vec<_>>(), [("ok".to_owned(), false)]);
        assert_eq!(hidden.len(), 3, "{hidden:?}");
    }

    #[test]
    fn the_directory_keeps_the_name_on_whatever_page_it_comes() {
        let keys = set(&["x", "x-", "x-/z", "x-1", "x.log", "x/y", "x0"]);
        for page in 1..8 {
            let (names, hidden) = list(&keys, "", page);
            assert_eq!(
                names.into_iter().collect::<Vec<_>>(),
                [("x", true), ("x-", true), ("x-1", false), ("x.log", false), ("x0", false)]
                    .map(|(n, d)| (n.to_owned(), d)),
                "pages of {page}"
            );
            assert_eq!(hidden.into_iter().collect::<BTreeSet<_>>(), set(&["x", "x-"]));
        }
    }

    proptest! {
        /// Whatever the keys and however they are paged, the names are those of a plain reading of the definition.
        #[test]
        fn paging_never_changes_what_is_shown(
            keys in prop::collection::btree_set("[ax./-]{0,6}", 0..40),
            prefix in prop_oneof![Just(String::new()), "[ax.-]{0,2}/"],
            page in 1_usize..10,
        ) {
            let (names, _) = list(&keys, &prefix, page);
            let mut expected = BTreeMap::new();
            for rest in keys.iter().filter_map(|key| key.strip_prefix(prefix.as_str())) {
                let (name, below) = rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
                if is_visible_name(name) {
                    *expected.entry(name.to_owned()).or_insert(false) |= below;
                }
            }
            prop_assert_eq!(names, expected);
        }
    }
}
