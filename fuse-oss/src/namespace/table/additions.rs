//! What adds to the table: entries that are put at their places before the first page is taken in, and names that are frozen after
//! that. The first answer about a name stands, whoever comes with another one later.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use oss::ObjectMeta;

use super::{
    ARCHIVED, DIRECTORY, Dir, Directory, KEY_ASIDE, LONG, Record, Root, SMALL, TAG_ASIDE, TAG_PACKED, TAG_UPPER,
    TIMELESS, Table, nanos, narrow,
};
use crate::charset::Charset;
use crate::fault::Fault;
use crate::namespace::listing::Listing;
use crate::namespace::tag::Packed;
use crate::namespace::{Origin, ROOT};

impl Table {
    /// Begins a mounted location at a directory that nothing is mounted at or below.
    pub fn mount(&mut self, dir: Dir, origin: Arc<Origin>, prefix: String, charset: Charset) {
        let root = u32::try_from(self.roots.len()).unwrap_or(u32::MAX);
        self.roots.push(Root { origin, prefix, dir, charset, ordered: true });
        let directory = self.directory_mut(dir);
        directory.root = Some(root);
        directory.listing = Listing::Fresh;
    }

    fn push(&mut self, dir: Dir, name: &str, mut flags: u8, payload: u64) -> Result<u32, Fault> {
        let too_many = Fault::TooManyNames(self.records.len());
        if self.records.len() >= self.most {
            return Err(too_many);
        }
        // One listing that never ends must not be the end of all others.
        let most_in_one = self.most / 5 * 4;
        if self.count(dir) >= most_in_one {
            return Err(Fault::DirectoryTooLarge(most_in_one));
        }
        let short = match name.len().checked_sub(256) {
            Some(over) => {
                flags |= LONG;
                over
            }
            None => name.len(),
        };
        let (Ok(at), Ok(name_len)) = (u32::try_from(self.names.len()), u8::try_from(short)) else {
            return Err(too_many);
        };
        self.names.extend_from_slice(name.as_bytes());
        let parent = self.directory(dir).ino;
        let position = narrow(self.directory(dir).order.len() as u64);
        self.records.push(Record {
            parent,
            name: at,
            position,
            name_len,
            flags: AtomicU8::new(flags),
            tag_parts: 0,
            payload,
            modified: TIMELESS,
            tag: [0; 16],
        });
        let ino = narrow(self.records.len() as u64);
        self.directory_mut(dir).order.push(ino);
        self.index(dir, ino, self.hash(name));
        Ok(ino)
    }

    fn index(&mut self, dir: Dir, ino: u32, hash: u64) {
        let directory = self.directory(dir);
        let (names, slots) = (directory.order.len(), directory.index.len());
        if names <= SMALL {
            return;
        }
        if names * 4 <= slots * 3 {
            insert(&mut self.directory_mut(dir).index, ino, hash);
            return;
        }
        let mut index = vec![0; (names * 2).next_power_of_two()];
        for &ino in &directory.order {
            insert(&mut index, ino, self.hash(self.name(u64::from(ino)).unwrap_or_default()));
        }
        self.directory_mut(dir).index = index;
    }

    /// What a name stands for by now: it may have been frozen before, and the first answer stands.
    fn frozen(&self, dir: Dir, name: &str) -> Option<Option<u64>> {
        let directory = self.directory(dir);
        let hash = self.hash(name);
        if let Some(ino) = self.find_hashed(directory, name, hash) {
            return Some(Some(u64::from(ino)));
        }
        let is_missing = directory.missing.as_ref().is_some_and(|missing| missing.contains(&hash));
        (is_missing || directory.listing.is_complete()).then_some(None)
    }

    /// Freezes a name as a directory, unless it was frozen before. Returns what stands.
    ///
    /// # Errors
    /// [`Fault::TooManyNames`].
    pub fn settle_directory(&mut self, dir: Dir, name: &str) -> Result<Option<u64>, Fault> {
        if let Some(frozen) = self.frozen(dir, name) {
            return Ok(frozen);
        }
        let place = self.directories.len() as u64;
        let root = self.directory(dir).root;
        let ino = self.push(dir, name, DIRECTORY, place)?;
        self.directories.push(Directory::new(ino, root));
        Ok(Some(u64::from(ino)))
    }

    /// Freezes a name as an object, unless it was frozen before. Returns what stands.
    ///
    /// # Errors
    /// [`Fault::TooManyNames`].
    pub fn settle_file(&mut self, dir: Dir, name: &str, meta: &ObjectMeta) -> Result<Option<u64>, Fault> {
        if let Some(frozen) = self.frozen(dir, name) {
            return Ok(frozen);
        }
        self.push_file(dir, name, meta, 0).map(Some)
    }

    /// Puts a single object at a place, before any page of the location around it is taken in.
    ///
    /// # Errors
    /// [`Fault::TooManyNames`].
    pub fn place_object(
        &mut self,
        dir: Dir,
        name: &str,
        charset: Charset,
        origin: Arc<Origin>,
        meta: &ObjectMeta,
    ) -> Result<(), Fault> {
        self.make_up(dir, charset);
        let ino = narrow(self.push_file(dir, name, meta, KEY_ASIDE)?);
        self.objects.insert(ino, (origin, meta.key.as_str().into()));
        self.placed.insert(ino);
        self.with_placed.insert(dir);
        Ok(())
    }

    /// Notes in which character set a directory outside of all locations shows its names: that of the first entry below it.
    fn make_up(&mut self, dir: Dir, charset: Charset) {
        if self.directory(dir).root.is_none() {
            self.made_up.entry(dir).or_insert(charset);
        }
    }

    /// Makes a single object all there is: the root is a file then. Before anything else is put anywhere.
    pub fn place_alone(&mut self, origin: Arc<Origin>, meta: &ObjectMeta) {
        let ino = narrow(ROOT);
        if let Some(record) = self.records.first_mut() {
            *record.flags.get_mut() = KEY_ASIDE;
            record.payload = meta.size;
        }
        self.describe(ino, meta);
        self.objects.insert(ino, (origin, meta.key.as_str().into()));
    }

    /// A directory on the way to a place; the one that is there, if one is. In a mounted location it is one of that
    /// location, whether there are keys below it or not; elsewhere it is made up, and its names are shown in `charset`.
    ///
    /// # Errors
    /// [`Fault::TooManyNames`].
    pub fn place_directory(&mut self, dir: Dir, name: &str, charset: Charset) -> Result<Option<Dir>, Fault> {
        self.make_up(dir, charset);
        if let Some(ino) = self.find(dir, name) {
            return Ok(self.dir(ino));
        }
        let place = self.directories.len() as u64;
        let ino = self.push(dir, name, DIRECTORY, place)?;
        let root = self.directory(dir).root;
        self.directories.push(Directory::new(ino, root));
        self.placed.insert(ino);
        self.with_placed.insert(dir);
        Ok(self.dir(u64::from(ino)))
    }

    fn push_file(&mut self, dir: Dir, name: &str, meta: &ObjectMeta, flags: u8) -> Result<u64, Fault> {
        let ino = self.push(dir, name, flags, meta.size)?;
        self.describe(ino, meta);
        Ok(u64::from(ino))
    }

    /// Notes what is known of an object in its record, and beside it what does not fit.
    fn describe(&mut self, ino: u32, meta: &ObjectMeta) {
        let tag = meta.etag.as_ref().map(|tag| (tag, Packed::new(&tag.0)));
        let mut flags = match &tag {
            Some((_, Some(packed))) if packed.upper => TAG_PACKED | TAG_UPPER,
            Some((_, Some(_))) => TAG_PACKED,
            Some((_, None)) => TAG_ASIDE,
            None => 0,
        };
        if meta.archived {
            flags |= ARCHIVED;
        }
        if let Some(record) = self.records.get_mut(ino as usize - 1) {
            *record.flags.get_mut() |= flags;
            record.modified = nanos(meta.modified);
            if let Some((_, Some(packed))) = &tag {
                record.tag = packed.bytes;
                record.tag_parts = packed.parts;
            }
        }
        self.files += 1;
        self.bytes = self.bytes.saturating_add(meta.size);
        if let Some((tag, None)) = tag {
            self.tags.insert(ino, tag.0.as_str().into());
        }
    }

    /// Freezes a name as missing, unless it was frozen before. Returns what stands.
    pub fn settle_missing(&mut self, dir: Dir, name: &str) -> Option<u64> {
        if let Some(frozen) = self.frozen(dir, name) {
            return frozen;
        }
        let hash = self.hash(name);
        self.directory_mut(dir).missing.get_or_insert_default().insert(hash);
        None
    }

    /// Counts a key that cannot be shown.
    pub fn hide(&mut self, key: &str) {
        self.hidden += 1;
        if self.first_hidden.is_none() {
            self.first_hidden = Some(key.to_owned());
        }
    }

    /// Gives back what a directory does not need once all its names are known.
    pub fn settle_down(&mut self, dir: Dir) {
        let directory = self.directory_mut(dir);
        directory.missing = None;
        directory.order.shrink_to_fit();
    }
}

fn insert(index: &mut [u32], ino: u32, hash: u64) {
    let slots = index.len();
    let mut slot = Table::slot(hash, slots);
    while index[slot] != 0 {
        slot = (slot + 1) & (slots - 1);
    }
    index[slot] = ino;
}
