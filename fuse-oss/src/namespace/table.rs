//! The names of a mount in little memory. No I/O.
//!
//! A mount of a real bucket holds millions of names, and they are never forgotten, so a name costs a record of 48 bytes, its own
//! bytes in one long buffer, four bytes at its place in its directory and some eight in its directory's index. What few names
//! have (an entity tag of an odd form, a key that is not made of the path) stands beside the records.
//!
//! Numbers, not pointers: an inode number less one is a record's place, and a key is put together from the path when a request
//! needs it.

mod additions;

use std::collections::hash_map::{DefaultHasher, RandomState};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oss::{ETag, Key};

use super::listing::Listing;
use super::tag::Packed;
use super::{File, Known, Node, Origin, ROOT};
use crate::charset::Charset;

/// The most names a mount remembers unless it is told otherwise, at some 100 bytes each.
pub const MOST_NAMES: u64 = 10_000_000;

/// The most names any mount can remember: their numbers have 32 bits, and so have the places of their names.
const NUMBERS: usize = 100_000_000;

/// Directories of up to so many names are searched from front to back.
const SMALL: usize = 8;

const DIRECTORY: u8 = 1;
const ARCHIVED: u8 = 2;
/// It was read from the store once in this mount, so it is there and we may read it.
const PROVED: u8 = 4;
const TAG_PACKED: u8 = 8;
const TAG_UPPER: u8 = 16;
const TAG_ASIDE: u8 = 32;
const KEY_ASIDE: u8 = 64;
/// Its name is 256 bytes longer than its record says; see [`MAX_SEGMENT`](crate::charset::MAX_SEGMENT).
const LONG: u8 = 128;

/// No time is known.
pub const TIMELESS: i64 = i64::MIN;

/// A directory's place among the directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dir(u32);

impl Dir {
    /// Its place; see [`Table::nth_directory`].
    pub fn number(self) -> u64 {
        self.0.into()
    }
}

/// The key of the hash by which names are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub [u8; 16]);

impl Seed {
    /// One that nobody can guess.
    pub fn random() -> Self {
        // What the standard library keys its hash maps with comes from the system's random numbers.
        let half = || RandomState::new().hash_one(0_u64).to_le_bytes();
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&half());
        seed[8..].copy_from_slice(&half());
        Self(seed)
    }
}

#[derive(Debug)]
struct Record {
    /// The directory's inode number.
    parent: u32,
    /// Where its name begins.
    name: u32,
    /// Which name of its directory it is.
    position: u32,
    name_len: u8,
    flags: AtomicU8,
    tag_parts: u16,
    /// A file's length in bytes, a directory's place among the directories.
    payload: u64,
    /// Nanoseconds since 1970.
    modified: i64,
    tag: [u8; 16],
}

/// A directory, as far as it has been looked at.
#[derive(Debug)]
pub struct Directory {
    /// Its inode number.
    pub ino: u32,
    /// Which of the mounted locations it is in; none for made-up parents.
    pub root: Option<u32>,
    /// How far it has been listed.
    pub listing: Listing,
    /// Which page of which sweep listed it to the end; 0 when it was listed otherwise.
    pub swept: u64,
    /// Somebody asked what is in it.
    pub asked: AtomicBool,
    /// Somebody asked about it or something below it.
    pub asked_below: AtomicBool,
    /// How many of its directories have `asked_below`.
    pub children_asked: AtomicU32,
    /// Inode numbers in the order in which names were met, which is what readdir's offsets count.
    order: Vec<u32>,
    /// Open addressing by the name's hash; empty for small directories, a power of two of slots otherwise.
    index: Vec<u32>,
    /// Hashes of names that were looked for and are not there. Of two names in 2^64 one would be taken for the other; the
    /// hash is keyed at random, so nobody can find such a pair.
    #[expect(clippy::box_collection, reason = "most directories have none, and there are many directories")]
    missing: Option<Box<HashSet<u64>>>,
}

/// A mounted prefix.
#[derive(Debug)]
pub struct Root {
    /// Where it is.
    pub origin: Arc<Origin>,
    /// Empty or ending in a slash.
    pub prefix: String,
    /// The directory that shows it.
    pub dir: Dir,
    /// The character set its names are shown in.
    pub charset: Charset,
    /// Pages were in the order of the keys' bytes so far.
    pub ordered: bool,
}

/// All names.
#[derive(Debug)]
pub struct Table {
    records: Vec<Record>,
    names: Vec<u8>,
    directories: Vec<Directory>,
    roots: Vec<Root>,
    seed: Seed,
    /// The most names there may be.
    most: usize,
    /// Entity tags that do not fit into a record, by inode number.
    tags: HashMap<u32, Box<str>>,
    /// Single objects that were put at a place of the tree, by inode number.
    objects: HashMap<u32, (Arc<Origin>, Box<str>)>,
    /// What was put at a place of the tree and what was made up on the way there, by inode number: no listing changes it.
    placed: HashSet<u32>,
    /// The directories that such names are in.
    with_placed: HashSet<Dir>,
    /// The character sets of directories that are in no mounted location.
    made_up: HashMap<Dir, Charset>,
    /// How often a file's content had been found wrong when it was opened last, where it ever was.
    wrong: HashMap<u32, AtomicU64>,
    /// Objects that are shown.
    pub files: u64,
    /// Their length in bytes.
    pub bytes: u64,
    /// Keys that cannot be shown.
    pub hidden: u64,
    /// The first of them.
    pub first_hidden: Option<String>,
}

fn narrow(number: u64) -> u32 {
    // `NUMBERS` is far below.
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Nanoseconds since 1970.
pub fn nanos(time: Option<SystemTime>) -> i64 {
    let Some(time) = time else { return TIMELESS };
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(TIMELESS),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(TIMELESS, |nanos| -nanos),
    }
}

/// The time so many nanoseconds since 1970.
pub fn time(nanos: i64) -> Option<SystemTime> {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    match nanos {
        TIMELESS => None,
        0.. => UNIX_EPOCH.checked_add(distance),
        _ => UNIX_EPOCH.checked_sub(distance),
    }
}

impl Table {
    /// A table with a root directory that nothing is mounted at yet.
    pub fn with_seed(seed: Seed, most_names: u64) -> Self {
        let most = usize::try_from(most_names).map_or(NUMBERS, |most| most.min(NUMBERS));
        let mut table = Self {
            records: Vec::new(),
            names: Vec::new(),
            directories: Vec::new(),
            roots: Vec::new(),
            seed,
            most,
            tags: HashMap::new(),
            objects: HashMap::new(),
            placed: HashSet::new(),
            with_placed: HashSet::new(),
            made_up: HashMap::new(),
            wrong: HashMap::new(),
            files: 0,
            bytes: 0,
            hidden: 0,
            first_hidden: None,
        };
        let ino = narrow(ROOT);
        table.directories.push(Directory::new(ino, None));
        table.records.push(Record {
            parent: ino,
            name: 0,
            position: 0,
            name_len: 0,
            flags: AtomicU8::new(DIRECTORY),
            tag_parts: 0,
            payload: 0,
            modified: TIMELESS,
            tag: [0; 16],
        });
        table
    }

    /// The root directory.
    pub fn root() -> Dir {
        Dir(0)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is room for names that nobody asked for.
    pub fn has_room(&self) -> bool {
        // From half of them on only what is asked for is listed, so that listing ahead never is what fills a mount.
        self.records.len() < self.most / 2
    }

    fn record(&self, ino: u64) -> Option<&Record> {
        self.records.get(usize::try_from(ino.checked_sub(1)?).ok()?)
    }

    fn node_of(ino: u64, record: &Record) -> Node {
        let directory = record.flags.load(Ordering::Relaxed) & DIRECTORY != 0;
        Node {
            ino,
            parent: u64::from(record.parent),
            directory,
            size: if directory { 0 } else { record.payload },
            modified: time(record.modified),
        }
    }

    fn name_of(&self, record: &Record) -> &str {
        let from = record.name as usize;
        let more = if record.flags.load(Ordering::Relaxed) & LONG == 0 { 0 } else { 256 };
        let bytes = self.names.get(from..from + usize::from(record.name_len) + more).unwrap_or_default();
        // Only whole strings were put in.
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The node of an inode number.
    pub fn node(&self, ino: u64) -> Option<Node> {
        self.record(ino).map(|record| Self::node_of(ino, record))
    }

    /// Its name; empty for the root.
    pub fn name(&self, ino: u64) -> Option<&str> {
        self.record(ino).map(|record| self.name_of(record))
    }

    /// Which name of its directory it is.
    pub fn position(&self, ino: u64) -> Option<usize> {
        self.record(ino).map(|record| record.position as usize)
    }

    /// The directory at an inode number.
    pub fn dir(&self, ino: u64) -> Option<Dir> {
        let record = self.record(ino)?;
        let is_directory = record.flags.load(Ordering::Relaxed) & DIRECTORY != 0;
        is_directory.then(|| Dir(narrow(record.payload)))
    }

    /// The directory at a place.
    pub fn nth_directory(&self, number: u64) -> Option<Dir> {
        let place = usize::try_from(number).ok().filter(|&place| place < self.directories.len())?;
        u32::try_from(place).ok().map(Dir)
    }

    /// What is known of a directory.
    pub fn directory(&self, dir: Dir) -> &Directory {
        &self.directories[dir.0 as usize]
    }

    /// The same, to be changed.
    pub fn directory_mut(&mut self, dir: Dir) -> &mut Directory {
        &mut self.directories[dir.0 as usize]
    }

    /// The first directory from the `from`th on that has not been listed to its end.
    pub fn incomplete_from(&self, from: usize) -> Option<(usize, Dir)> {
        let mut rest = self.directories.iter().enumerate().skip(from);
        let (at, _) = rest.find(|(_, directory)| !directory.listing.is_complete())?;
        Some((at, Dir(u32::try_from(at).ok()?)))
    }

    /// The directory that a directory is in; none at the top of a mounted location, and for made-up ones.
    pub fn parent_within_root(&self, dir: Dir) -> Option<Dir> {
        let directory = self.directory(dir);
        let root = self.roots.get(directory.root? as usize)?;
        if root.dir == dir {
            return None;
        }
        self.dir(u64::from(self.record(u64::from(directory.ino))?.parent))
    }

    /// The mounted locations.
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// The mounted location that a directory is in.
    pub fn root_of(&self, dir: Dir) -> Option<&Root> {
        self.roots.get(self.directory(dir).root? as usize)
    }

    /// The character set that the names of a directory are shown in.
    pub fn charset(&self, dir: Dir) -> Charset {
        match self.root_of(dir) {
            Some(root) => root.charset,
            None => self.made_up.get(&dir).copied().unwrap_or_default(),
        }
    }

    /// Whether all names are shown as keys are written.
    pub fn is_plain(&self) -> bool {
        let roots = self.roots.iter().map(|root| root.charset);
        roots.chain(self.made_up.values().copied()).all(|charset| charset.is_utf8())
    }

    /// The directory at an inode number, if it is one of the same location as the directory `above` it, and not the top of another
    /// location that has its place there.
    pub fn child(&self, above: Dir, ino: u64) -> Option<Dir> {
        self.dir(ino).filter(|dir| self.directory(*dir).root == self.directory(above).root)
    }

    /// Whether a name was put there by the mount itself, so that whatever the location around it has of that name is not shown.
    pub fn is_placed(&self, dir: Dir, name: &str) -> bool {
        let placed = |ino| self.placed.contains(&narrow(ino));
        self.with_placed.contains(&dir) && self.find(dir, name).is_some_and(placed)
    }

    /// Remembers that a location's pages come in another order than that of the keys. What was shown as missing until now stays so.
    pub fn set_unordered(&mut self, dir: Dir) {
        let number = self.directory(dir).root;
        let Some(root) = number.and_then(|number| self.roots.get_mut(number as usize)) else { return };
        if std::mem::replace(&mut root.ordered, false) {
            self.directories.iter_mut().filter(|directory| directory.root == number).for_each(|directory| {
                directory.listing.lose_order();
            });
        }
    }

    /// Whether a name that is not there may have been shown as missing, because the listing had passed it.
    pub fn is_passed(&self, dir: Dir, name: &str) -> bool {
        let is_ordered = self.root_of(dir).is_some_and(|root| root.ordered);
        let Some(up_to) = self.directory(dir).listing.missing_up_to(is_ordered) else { return false };
        let mut key = self.prefix(dir);
        key.push_str(name);
        super::listing::passes(up_to, &key)
    }

    /// The prefix of all keys in a directory; empty for made-up ones.
    pub fn prefix(&self, dir: Dir) -> String {
        let mut segments = Vec::new();
        let mut at = dir;
        while let Some(parent) = self.parent_within_root(at) {
            segments.push(self.name(u64::from(self.directory(at).ino)).unwrap_or_default());
            at = parent;
        }
        let mut prefix = self.root_of(dir).map_or_else(String::new, |root| root.prefix.clone());
        for segment in segments.iter().rev() {
            prefix.push_str(segment);
            prefix.push('/');
        }
        prefix
    }

    /// What is needed to read a file.
    pub fn file(&self, ino: u64) -> Option<File> {
        let record = self.record(ino)?;
        let flags = record.flags.load(Ordering::Relaxed);
        if flags & DIRECTORY != 0 {
            return None;
        }
        let small = narrow(ino);
        let (origin, key) = if flags & KEY_ASIDE != 0 {
            let (origin, key) = self.objects.get(&small)?;
            (Arc::clone(origin), Key::new(&**key))
        } else {
            let parent = self.dir(u64::from(record.parent))?;
            let mut key = self.prefix(parent);
            key.push_str(self.name_of(record));
            (Arc::clone(&self.root_of(parent)?.origin), Key::new(key))
        };
        let etag = if flags & TAG_PACKED != 0 {
            let packed = Packed { bytes: record.tag, upper: flags & TAG_UPPER != 0, parts: record.tag_parts };
            Some(ETag(packed.text()))
        } else if flags & TAG_ASIDE != 0 {
            self.tags.get(&small).map(|tag| ETag(tag.to_string()))
        } else {
            None
        };
        Some(File {
            ino,
            origin,
            key,
            size: record.payload,
            modified: time(record.modified),
            etag,
            archived: flags & ARCHIVED != 0,
            proved: flags & PROVED != 0,
        })
    }

    /// Notes that a file was read from the store.
    pub fn prove(&self, ino: u64) {
        if let Some(record) = self.record(ino) {
            record.flags.fetch_or(PROVED, Ordering::Relaxed);
        }
    }

    /// Sets how often a file's content has been found wrong and returns what it was before; none when that has to be made room for.
    pub fn swap_times_wrong(&self, ino: u64, times: u64) -> Option<u64> {
        match self.wrong.get(&narrow(ino)) {
            Some(wrong) => Some(wrong.swap(times, Ordering::Relaxed)),
            None if times == 0 => Some(0),
            None => None,
        }
    }

    /// The same for a file that was never found wrong before.
    pub fn first_time_wrong(&mut self, ino: u64, times: u64) -> u64 {
        self.wrong.entry(narrow(ino)).or_default().swap(times, Ordering::Relaxed)
    }

    fn hash(&self, name: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.seed.0);
        hasher.write(name.as_bytes());
        hasher.finish()
    }

    fn slot(hash: u64, slots: usize) -> usize {
        // The index never has more slots than there are numbers of 32 bits.
        narrow(hash & 0xFFFF_FFFF) as usize & (slots - 1)
    }

    fn find_hashed(&self, directory: &Directory, name: &str, hash: u64) -> Option<u32> {
        let is_it = |&ino: &u32| self.name(u64::from(ino)) == Some(name);
        if directory.index.is_empty() {
            return directory.order.iter().copied().find(is_it);
        }
        let slots = directory.index.len();
        let mut slot = Self::slot(hash, slots);
        loop {
            match directory.index[slot] {
                0 => return None,
                ino if is_it(&ino) => return Some(ino),
                _ => slot = (slot + 1) & (slots - 1),
            }
        }
    }

    /// The inode number of a name that is shown.
    pub fn find(&self, dir: Dir, name: &str) -> Option<u64> {
        self.find_hashed(self.directory(dir), name, self.hash(name)).map(u64::from)
    }

    /// What is known about a name without asking the store.
    pub fn known(&self, dir: Dir, name: &str) -> Known {
        let directory = self.directory(dir);
        let hash = self.hash(name);
        if let Some(ino) = self.find_hashed(directory, name, hash) {
            return self.node(u64::from(ino)).map_or(Known::Missing, Known::Node);
        }
        let is_missing = directory.missing.as_ref().is_some_and(|missing| missing.contains(&hash));
        if directory.listing.is_complete() || is_missing || !self.charset(dir).shows(name) {
            return Known::Missing;
        }
        if self.is_passed(dir, name) {
            return Known::Missing;
        }
        Known::Unknown
    }

    /// How many names were looked for in vain in a directory.
    pub fn missing(&self, dir: Dir) -> usize {
        self.directory(dir).missing.as_ref().map_or(0, |missing| missing.len())
    }

    /// How many names of a directory are known.
    pub fn count(&self, dir: Dir) -> usize {
        self.directory(dir).order.len()
    }

    /// Names of a directory from the `from`th on, in the order in which they were met.
    pub fn entries(&self, dir: Dir, from: usize) -> impl Iterator<Item = (Node, &str)> {
        let order = self.directory(dir).order.get(from..).unwrap_or_default();
        order.iter().filter_map(|&ino| {
            let record = self.record(u64::from(ino))?;
            Some((Self::node_of(u64::from(ino), record), self.name_of(record)))
        })
    }
}

impl Directory {
    fn new(ino: u32, root: Option<u32>) -> Self {
        Self {
            ino,
            root,
            // What is made up has no listing: all its names are those that were placed.
            listing: if root.is_some() { Listing::Fresh } else { Listing::Complete },
            swept: 0,
            asked: AtomicBool::new(false),
            asked_below: AtomicBool::new(false),
            children_asked: AtomicU32::new(0),
            order: Vec::new(),
            index: Vec::new(),
            missing: None,
        }
    }
}

#[cfg(test)]
impl Table {
    /// A table that nobody goes on with.
    pub fn new() -> Self {
        Self::with_seed(Seed::random(), MOST_NAMES)
    }

    /// Everything that decides what is shown, in an order of its own.
    pub fn all(&self) -> Vec<String> {
        let mut all: Vec<String> = (1..=self.len() as u64)
            .map(|ino| {
                let file = self.file(ino).map(|file| {
                    let root = file.origin.store.root().to_string();
                    (root, file.key, file.size, file.modified, file.etag, file.archived)
                });
                format!("{:?} {:?} {:?} {file:?}", self.node(ino), self.name(ino), self.position(ino))
            })
            .collect();
        for directory in &self.directories {
            let Directory { ino, root, listing, order, missing, .. } = directory;
            let mut missing: Vec<_> = missing.iter().flat_map(|missing| missing.iter()).collect();
            missing.sort_unstable();
            all.push(format!("{ino} {root:?} {listing:?} {order:?} {missing:?}"));
        }
        for Root { prefix, dir, ordered, charset, .. } in &self.roots {
            all.push(format!("{prefix:?} {dir:?} {ordered} {charset:?}"));
        }
        let mut placed: Vec<_> = self.placed.iter().collect();
        placed.sort_unstable();
        all.push(format!("{placed:?}"));
        all.push(format!("{} {} {} {:?}", self.files, self.bytes, self.hidden, self.first_hidden));
        all
    }
}
