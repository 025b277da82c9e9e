//! What a bucket holds, and what a mount of it must show.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;

use crate::bucket::sample;

/// Small objects around these sizes: nothing, pages, the kernel's requests, what counts as small, blocks.
const EDGES: &[u64] = &[4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// No more bytes than this in a tree, the large object apart: a case must be quick.
const TOTAL: u64 = 40 << 20;

/// Names that are legal in a file system and easy to get wrong on the way through URLs, XML and key order.
const ODD_NAMES: &[&str] = &[
    "数据.bam",
    "with space",
    " lead and trail ",
    "new\nline",
    "tab\there",
    "\u{1}control",
    "-dash",
    "--help",
    "q\"uo'te",
    "back\\slash",
    "per%20cent",
    "%2F",
    "plus+and&amp;",
    "question?x=1",
    "hash#fragment",
    "star*[a-z]",
    "...",
    ".hidden",
    "e\u{301}",
    "\u{e9}",
    "🧬",
    "a",
    "a-",
    "a.b",
    "a!",
    "a0",
    "A",
    "\u{ffff}last",
];

/// One object that is shown as a file.
#[derive(Debug, Clone)]
pub struct File {
    /// Its path below the mount.
    pub path: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A bucket's content and its view.
#[derive(Debug, Clone)]
pub struct Tree {
    prefix: &'static str,
    /// Keys below the prefix.
    objects: BTreeMap<String, Bytes>,
    /// Directories that are there because of a key that ends in a slash.
    markers: BTreeSet<String>,
    /// The files, the largest first.
    files: Vec<Arc<File>>,
    /// The names in each directory, with the file's size where it is one. The root is "".
    directories: BTreeMap<String, BTreeMap<String, Option<u64>>>,
    rng: Rng,
}

impl Tree {
    /// A tree of about `count` objects.
    pub fn new(seed: u64, count: usize, large: bool, prefix: &'static str) -> Self {
        let mut tree = Self {
            prefix,
            objects: BTreeMap::new(),
            markers: BTreeSet::new(),
            files: Vec::new(),
            directories: BTreeMap::new(),
            rng: Rng::with_seed(seed),
        };
        let mut total = 0;
        for _ in 0..count {
            let size = tree.size();
            let size = if total + size > TOTAL { size % 3000 } else { size };
            total += size;
            tree.add(size);
        }
        if large {
            let size = tree.rng.u64(20 << 20..40 << 20);
            tree.add(size);
        }
        if count > 0 {
            for _ in 0..tree.rng.usize(0..3) {
                let marker = tree.new_path();
                tree.markers.extend(marker);
            }
        }
        tree.settle();
        tree
    }

    fn size(&mut self) -> u64 {
        match self.rng.u32(0..20) {
            0 => 0,
            1 => 1,
            2..9 => self.rng.u64(2..8000),
            9..17 => {
                // The smaller ones more often: most trees have many small files and a few large ones.
                let edge = EDGES[self.rng.usize(0..EDGES.len()).min(self.rng.usize(0..EDGES.len()))];
                edge + self.rng.u64(0..3) - 1
            }
            17 => self.rng.u64(20 << 10..300 << 10),
            18 => self.rng.u64(300 << 10..2 << 20),
            _ => self.rng.u64(2 << 20..7 << 20),
        }
    }

    fn name(&mut self) -> String {
        match self.rng.u32(0..10) {
            0..3 => ODD_NAMES[self.rng.usize(0..ODD_NAMES.len())].to_owned(),
            3 => "n".repeat(self.rng.usize(200..=255)),
            _ => format!("{:03}", self.rng.u32(0..400)),
        }
    }

    /// A path that is neither a file nor a directory yet, nor below a file; none when that does not come by chance.
    fn new_path(&mut self) -> Option<String> {
        for _ in 0..20 {
            let mut path = String::new();
            for _ in 0..[0, 0, 1, 1, 2, 3][self.rng.usize(0..6)] {
                path.push_str(if self.rng.u32(0..4) == 0 {
                    ODD_NAMES[self.rng.usize(0..ODD_NAMES.len())]
                } else {
                    ["d1", "d2", "d3"][self.rng.usize(0..3)]
                });
                path.push('/');
            }
            path.push_str(&self.name());
            let below = format!("{path}/");
            let is_directory =
                self.objects.range(below.clone()..).next().is_some_and(|(key, _)| key.starts_with(&below))
                    || self.markers.iter().any(|marker| *marker == path || marker.starts_with(&below));
            let is_below_a_file = path.match_indices('/').any(|(at, _)| self.objects.contains_key(&path[..at]));
            // A key may have 1023 bytes.
            if path.len() < 900 && !is_directory && !is_below_a_file && !self.objects.contains_key(&path) {
                return Some(path);
            }
        }
        None
    }

    fn add(&mut self, size: u64) -> Option<String> {
        let path = self.new_path()?;
        let bytes = sample(self.rng.u64(..), size);
        self.objects.insert(path.clone(), bytes);
        Some(path)
    }

    /// Works out what is shown.
    fn settle(&mut self) {
        self.files = self
            .objects
            .iter()
            .map(|(path, bytes)| Arc::new(File { path: path.clone(), bytes: bytes.clone() }))
            .collect();
        self.files.sort_by_key(|file| std::cmp::Reverse(file.bytes.len()));
        self.directories = BTreeMap::from([(String::new(), BTreeMap::new())]);
        let shown: Vec<(String, Option<u64>)> = self
            .objects
            .iter()
            .map(|(path, bytes)| (path.clone(), Some(bytes.len() as u64)))
            .chain(self.markers.iter().map(|path| (path.clone(), None)))
            .collect();
        for (path, size) in shown {
            let (mut path, mut size) = (path.as_str(), size);
            if size.is_none() {
                self.directories.entry(path.to_owned()).or_default();
            }
            loop {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                self.directories.entry(parent.to_owned()).or_default().insert(name.to_owned(), size);
                if parent.is_empty() {
                    break;
                }
                (path, size) = (parent, None);
            }
        }
    }

    /// Every key that the bucket must hold, with its bytes.
    pub fn keys(&self) -> BTreeMap<String, Bytes> {
        let objects = self.objects.iter().map(|(path, bytes)| (self.key(path), bytes.clone()));
        let markers = self.markers.iter().map(|path| (format!("{}{path}/", self.prefix), Bytes::new()));
        let mut keys: BTreeMap<String, Bytes> = objects.chain(markers).collect();
        if !self.prefix.is_empty() {
            // The directory itself, so that it is there when it is empty, and its neighbours, which are not in it.
            keys.insert(self.prefix.to_owned(), Bytes::new());
            keys.insert(self.prefix.trim_end_matches('/').to_owned() + "-neighbour", Bytes::from_static(b"outside"));
            keys.insert("elsewhere/file".to_owned(), Bytes::from_static(b"outside"));
        }
        keys
    }

    /// The files, the largest first.
    pub fn files(&self) -> &[Arc<File>] {
        &self.files
    }

    /// The paths of all directories; the root is "".
    pub fn directories(&self) -> impl ExactSizeIterator<Item = &str> {
        self.directories.keys().map(String::as_str)
    }

    /// The names in a directory, with the file's size where it is one.
    pub fn names(&self, directory: &str) -> Option<&BTreeMap<String, Option<u64>>> {
        self.directories.get(directory)
    }

    /// The key of a file in the bucket.
    pub fn key(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    /// Notes that a file has been replaced by these bytes, or deleted.
    pub fn replaced(&mut self, path: &str, bytes: Option<Bytes>) {
        match bytes {
            Some(bytes) => self.objects.insert(path.to_owned(), bytes),
            None => self.objects.remove(path),
        };
        self.settle();
    }

    /// Replaces, deletes and adds so many objects.
    pub fn change(&mut self, [replace, delete, add]: [u8; 3]) {
        for _ in 0..replace {
            let (Some(path), seed) = (self.any_path(), self.rng.u64(..)) else { break };
            let old = self.objects.get(&path).map_or(0, |bytes| bytes.len() as u64);
            // Often of the same length: then only the entity tag tells the two apart.
            let size = if self.rng.bool() { old } else { self.size() };
            self.objects.insert(path, sample(seed, size));
        }
        for _ in 0..delete {
            let Some(path) = self.any_path() else { break };
            self.objects.remove(&path);
        }
        for _ in 0..add {
            let size = self.size();
            self.add(size);
        }
        self.settle();
    }

    fn any_path(&mut self) -> Option<String> {
        let at = self.rng.usize(0..self.objects.len().max(1));
        self.objects.keys().nth(at).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_the_same_for_the_same_seed_and_no_name_is_both_file_and_directory() {
        for seed in 0..8 {
            let mut tree = Tree::new(seed, 120, seed == 7, "pre/");
            assert_eq!(tree.keys(), Tree::new(seed, 120, seed == 7, "pre/").keys());
            tree.change([5, 5, 5]);
            let files: BTreeSet<&str> = tree.files().iter().map(|file| file.path.as_str()).collect();
            assert_eq!(files.len(), tree.files().len());
            for directory in tree.directories() {
                assert!(!files.contains(directory), "{directory:?} in {seed}");
                for (name, size) in tree.names(directory).unwrap() {
                    let path = if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
                    assert!((1..=255).contains(&name.len()) && !name.contains('/'), "{name:?}");
                    assert_eq!(size.is_some(), files.contains(path.as_str()), "{path:?}");
                    assert_eq!(size.is_none(), tree.names(&path).is_some(), "{path:?}");
                }
            }
            let shown: usize = tree.directories().map(|at| tree.names(at).unwrap().values().flatten().count()).sum();
            assert_eq!(shown, files.len());
        }
        assert_eq!(Tree::new(1, 0, false, "").keys(), BTreeMap::new());
    }
}
