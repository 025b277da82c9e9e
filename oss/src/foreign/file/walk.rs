//! One page of a listing, in the order of the keys' bytes.
//!
//! Directories are read one at a time and their entries sorted with a `/` after the names of directories: since all
//! keys below `a/` begin with `a/`, walking in that order visits every key in byte order, `a.txt` before `a/x` before
//! `a0`. A page begins again at the top and skips what lies before its continuation without opening it.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::location::Key;
use crate::staged::TEMPORARY;
use crate::store::{ListPage, ListRequest, ObjectMeta};

/// Says once per store that something is not shown.
#[derive(Debug, Default)]
pub(super) struct Hidden(AtomicBool);

impl Hidden {
    fn say(&self, path: &Path, why: &str) {
        if !self.0.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{path:?} is not shown: {why}. (Said once. Symbolic links, special files and names that are not UTF-8 \
                 are no objects.)"
            );
        }
    }
}

/// A page in the making.
pub(super) struct Walk<'a> {
    prefix: &'a str,
    delimiter: bool,
    /// Only keys behind this one.
    after: &'a str,
    limit: usize,
    hidden: &'a Hidden,
    /// Makes an entry of a file's key and metadata.
    describe: fn(Key, &fs::Metadata) -> ObjectMeta,
    page: ListPage,
    /// The last entry on the page.
    last: String,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Flow {
    More,
    Full,
}

struct Entry {
    /// With a trailing slash for a directory.
    name: String,
    path: PathBuf,
}

impl<'a> Walk<'a> {
    /// A page for `request`, of at most `limit` entries.
    pub(super) fn new(
        request: &'a ListRequest,
        limit: usize,
        hidden: &'a Hidden,
        describe: fn(Key, &fs::Metadata) -> ObjectMeta,
    ) -> Self {
        Self {
            prefix: &request.prefix,
            delimiter: request.delimiter,
            after: request.continuation.as_deref().or(request.behind()).unwrap_or(""),
            limit,
            hidden,
            describe,
            page: ListPage::default(),
            last: String::new(),
        }
    }

    /// Fills the page from `directory`, whose key is `key`. A directory that is not there is empty.
    pub(super) fn page(mut self, directory: &Path, key: &str) -> io::Result<ListPage> {
        if self.directory(directory, key)? == Flow::Full {
            self.page.continuation = Some(self.last);
        }
        Ok(self.page)
    }

    fn directory(&mut self, path: &Path, key: &str) -> io::Result<Flow> {
        let Some(entries) = self.entries(path)? else {
            return Ok(Flow::More);
        };
        // An empty directory is what a console's zero-byte object `dir/` is elsewhere.
        if entries.is_empty() && !key.is_empty() && key.starts_with(self.prefix) && key > self.after {
            return self.object(path, key.to_owned());
        }
        for entry in entries {
            let key = format!("{key}{}", entry.name);
            if !key.starts_with(self.prefix) {
                continue;
            }
            let flow = match (key.ends_with('/'), self.delimiter) {
                (true, true) if key.as_str() > self.after => self.rolled_up(key),
                (true, false) if key.as_str() > self.after || self.after.starts_with(&key) => {
                    self.directory(&entry.path, &key)?
                }
                (false, _) if key.as_str() > self.after => self.object(&entry.path, key)?,
                _ => Flow::More,
            };
            if flow == Flow::Full {
                return Ok(Flow::Full);
            }
        }
        Ok(Flow::More)
    }

    fn is_full(&self) -> bool {
        self.page.objects.len() + self.page.prefixes.len() >= self.limit
    }

    fn rolled_up(&mut self, key: String) -> Flow {
        if self.is_full() {
            return Flow::Full;
        }
        self.last.clone_from(&key);
        self.page.prefixes.push(key);
        Flow::More
    }

    fn object(&mut self, path: &Path, key: String) -> io::Result<Flow> {
        if self.is_full() {
            return Ok(Flow::Full);
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) => {
                self.last.clone_from(&key);
                self.page.objects.push((self.describe)(Key::new(key), &metadata));
            }
            // Removed since the directory was read.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(Flow::More)
    }

    /// What is shown of a directory, sorted; nothing when there is no such directory.
    fn entries(&self, path: &Path) -> io::Result<Option<Vec<Entry>>> {
        let directory = match fs::read_dir(path) {
            Ok(directory) => directory,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut entries = Vec::new();
        for entry in directory {
            let entry = entry?;
            let path = entry.path();
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            let Ok(mut name) = String::from_utf8(entry.file_name().into_vec()) else {
                self.hidden.say(&path, "its name is not UTF-8");
                continue;
            };
            if name.starts_with(TEMPORARY) {
                continue;
            }
            if kind.is_dir() {
                name.push('/');
            } else if !kind.is_file() {
                self.hidden
                    .say(&path, if kind.is_symlink() { "it is a symbolic link" } else { "it is a special file" });
                continue;
            }
            entries.push(Entry { name, path });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(entries))
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
