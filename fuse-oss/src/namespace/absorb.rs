//! From pages to names: takes listings of one directory and of whole subtrees into the table. No I/O.
//!
//! Pages come from listings that began at different places, at different times, and overlap. So a page says behind which key it
//! begins, and each directory it touches takes from it what carries its own listing on without a gap: a directory whose
//! beginning lies in the page, or one that has been listed as far as where the page begins. Names that were seen before are passed
//! over; a directory is complete when a page has gone past its last key.
//!
//! Where another location has its place inside this one, or a directory on the way to one is, that name is taken: what pages
//! bring of it is counted as hidden, and no key below another location's place goes any further.
//!
//! All of a page is taken in under one lock: between "the listing is complete" and "these are its names" nobody may look.

use oss::{ListPage, ObjectMeta};

use super::listing::{Listing, Partial};
use super::table::{Dir, Table};
use crate::fault::Fault;

/// Depths below a sweep's base that are told apart when its speed is estimated.
pub const DEPTHS: usize = 8;

/// What a page brought.
#[derive(Debug, Default)]
pub struct Absorbed {
    /// The last key or prefix on it; none when it was empty.
    pub last: Option<String>,
    /// How many directories the sweep left behind, by their depth below its base (0 for those directly in it).
    pub passed: [u32; DEPTHS],
    /// How many of the directories that it completed had been asked about.
    pub answered: u32,
}

/// Why a page was not taken in.
#[derive(Debug)]
pub enum Refused {
    /// Its keys are not in the order of their bytes, so nothing can be said about what is not on it.
    Unordered,
    /// There are too many names.
    Full(Fault),
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self::Full(fault)
    }
}

/// A directory on the way to the key at hand.
struct Level {
    /// None when it is not shown.
    dir: Option<Dir>,
    /// How long its prefix is.
    prefix: usize,
    /// The page carries its listing on.
    feeding: bool,
}

enum Entry {
    Object(ObjectMeta),
    Prefix(String),
}

impl Entry {
    fn key(&self) -> &str {
        match self {
            Self::Object(meta) => meta.key.as_str(),
            Self::Prefix(prefix) => prefix,
        }
    }
}

impl Table {
    /// Takes in a page of a directory's own listing (with a delimiter), which holds everything behind `from`. `continued` says that
    /// the store was asked to go on and not to begin behind a key.
    ///
    /// # Errors
    /// [`Fault::TooManyNames`].
    pub fn absorb_own(
        &mut self,
        dir: Dir,
        from: Option<&str>,
        continued: bool,
        page: ListPage,
    ) -> Result<Absorbed, Fault> {
        let prefix = self.prefix(dir);
        let complete = page.continuation.is_none();
        let mut objects = page.objects.into_iter().map(Entry::Object).peekable();
        let mut prefixes = page.prefixes.into_iter().map(Entry::Prefix).peekable();
        let mut entries: Vec<Entry> = Vec::with_capacity(objects.len() + prefixes.len());
        loop {
            let object_first = match (objects.peek(), prefixes.peek()) {
                (Some(object), Some(prefix)) => object.key() < prefix.key(),
                (object, _) => object.is_some(),
            };
            let next = if object_first { objects.next() } else { prefixes.next() };
            let Some(next) = next else { break };
            entries.push(next);
        }
        let disorder = entries.windows(2).any(|pair| pair[0].key() >= pair[1].key());
        let again = continued && from.zip(entries.first()).is_some_and(|(from, first)| first.key() <= from);
        if disorder || again {
            self.set_unordered(dir);
        }
        let last = entries.last().map(|entry| entry.key().to_owned());
        let mut absorbed = Absorbed { last, ..Absorbed::default() };
        if !self.directory(dir).listing.continues(&prefix, from) {
            return Ok(absorbed);
        }
        let ordered = self.root_of(dir).is_some_and(|root| root.ordered);
        for entry in entries {
            if ordered && self.has_seen(dir, entry.key()) {
                continue;
            }
            if !ordered && self.is_missed(dir, &prefix, entry.key()) {
                self.hide(entry.key());
                continue;
            }
            match entry {
                Entry::Prefix(full) => {
                    let name = full.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix('/'));
                    match name {
                        Some(name) => self.feed_directory(dir, name, &full, ordered).map(drop)?,
                        None => self.hide(&full),
                    }
                }
                Entry::Object(meta) => match meta.key.as_str().strip_prefix(&prefix) {
                    Some(_) => self.feed_object(dir, prefix.len(), meta, ordered)?,
                    // A store that answers with what was not asked for; showing it would put it in the wrong place.
                    None => self.hide(meta.key.as_str()),
                },
            }
        }
        if complete {
            self.finish(dir, prefix.len(), 0, &mut absorbed)?;
        } else if let (Some(partial), Some(last)) = (self.directory_mut(dir).listing.partial(), &absorbed.last)
            && (*last > partial.reached || !ordered)
        {
            partial.reached.clone_from(last);
        }
        Ok(absorbed)
    }

    /// Takes in a page of a listing of everything below `base` (without a delimiter), which holds everything behind `from`, or
    /// from there on if it is a prefix.
    /// `swept` is what the directories it completes remember it by.
    ///
    /// # Errors
    /// [`Refused`]; nothing was taken in when the page was in disorder.
    pub fn absorb_sweep(
        &mut self,
        base: Dir,
        from: Option<&str>,
        swept: u64,
        page: ListPage,
    ) -> Result<Absorbed, Refused> {
        let base_prefix = self.prefix(base);
        let mut keys = page.objects.iter().map(|meta| meta.key.as_str());
        let in_order = keys.clone().zip(keys.clone().skip(1)).all(|(a, b)| a < b);
        if !in_order || !keys.all(|key| key.starts_with(&base_prefix)) || !page.prefixes.is_empty() {
            self.set_unordered(base);
            return Err(Refused::Unordered);
        }
        let last = page.objects.last().map(|meta| meta.key.as_str().to_owned());
        let is_before = |key: &str| from.is_some_and(|from| key < from || (key == from && !from.ends_with('/')));
        let last = last.filter(|last| !is_before(last));
        let mut absorbed = Absorbed { last, ..Absorbed::default() };
        let feeding = self.directory(base).listing.continues(&base_prefix, from);
        let mut path = base_prefix.clone();
        let mut stack = vec![Level { dir: Some(base), prefix: path.len(), feeding }];
        if let Some(from) = from.filter(|from| from.starts_with(&base_prefix)) {
            // The page before ended in these.
            self.descend(&mut stack, &mut path, from, from, false)?;
        }
        for meta in page.objects {
            let key = meta.key.as_str();
            // Not asked for: a store that cannot begin inside a listing.
            if is_before(key) {
                continue;
            }
            while !key.starts_with(&path) {
                self.leave(&mut stack, &mut path, swept, &mut absorbed)?;
            }
            if key[path.len()..].contains('/') {
                self.descend(&mut stack, &mut path, key, from.unwrap_or_default(), from.is_none())?;
            }
            if let Some(&Level { dir: Some(dir), prefix, feeding: true }) = stack.last()
                && !self.has_seen(dir, key)
            {
                self.feed_object(dir, prefix, meta, true)?;
            }
        }
        if page.continuation.is_none() {
            while !stack.is_empty() {
                self.leave(&mut stack, &mut path, swept, &mut absorbed)?;
            }
        } else if let Some(last) = &absorbed.last {
            for level in &stack {
                if let Some(dir) = level.dir.filter(|_| level.feeding)
                    && let Some(partial) = self.directory_mut(dir).listing.partial()
                    && *last > partial.reached
                {
                    partial.reached.clone_from(last);
                }
            }
        }
        Ok(absorbed)
    }

    /// Goes down to the directory that `key` is in.
    fn descend(
        &mut self,
        stack: &mut Vec<Level>,
        path: &mut String,
        key: &str,
        from: &str,
        whole: bool,
    ) -> Result<(), Fault> {
        while let Some(at) = key[path.len()..].find('/') {
            let name = &key[path.len()..path.len() + at];
            let full = &key[..=path.len() + at];
            let above = stack.last().and_then(|level| Some((level.dir?, level.feeding)));
            let dir = match above {
                // On the way to where the page begins, nothing is new.
                Some((above, _)) if key == from => self.find(above, name).and_then(|ino| self.child(above, ino)),
                Some((above, true)) if !self.has_seen(above, full) => self.feed_directory(above, name, full, true)?,
                Some((above, _)) => match self.find(above, name) {
                    Some(ino) => self.child(above, ino),
                    // Something is below it, so that much is certain even where a gap is left. What was passed before and not
                    // seen may have been shown as missing.
                    None if !self.has_seen(above, full) && self.charset(above).shows(name) => {
                        self.settle_directory(above, name)?.and_then(|ino| self.child(above, ino))
                    }
                    None => None,
                },
                None => None,
            };
            let from = (!whole).then_some(from);
            let feeding = dir.is_some_and(|dir| self.directory(dir).listing.continues(full, from));
            path.clear();
            path.push_str(full);
            stack.push(Level { dir, prefix: full.len(), feeding });
        }
        Ok(())
    }

    /// Goes up one level, past the last key of a directory.
    fn leave(
        &mut self,
        stack: &mut Vec<Level>,
        path: &mut String,
        swept: u64,
        absorbed: &mut Absorbed,
    ) -> Result<(), Fault> {
        let Some(level) = stack.pop() else { return Ok(()) };
        path.truncate(stack.last().map_or(0, |above| above.prefix));
        let Some(dir) = level.dir else { return Ok(()) };
        if let Some(passed) = stack.len().checked_sub(1).and_then(|depth| absorbed.passed.get_mut(depth)) {
            *passed += 1;
        }
        if level.feeding { self.finish(dir, level.prefix, swept, absorbed) } else { Ok(()) }
    }

    fn finish(&mut self, dir: Dir, prefix: usize, swept: u64, absorbed: &mut Absorbed) -> Result<(), Fault> {
        let held = self.directory_mut(dir).listing.partial().map(Partial::take_held).unwrap_or_default();
        for meta in &held {
            self.settle_file(dir, &meta.key.as_str()[prefix..], meta)?;
        }
        self.directory_mut(dir).listing = Listing::Complete;
        self.settle_down(dir);
        let directory = self.directory_mut(dir);
        directory.swept = swept;
        absorbed.answered += u32::from(*directory.asked.get_mut());
        Ok(())
    }

    fn has_seen(&self, dir: Dir, entry: &str) -> bool {
        self.directory(dir).listing.reached().is_some_and(|reached| entry <= reached)
    }

    /// Whether something that a listing in disorder brings may have been shown as missing before the disorder was seen.
    fn is_missed(&self, dir: Dir, prefix: &str, entry: &str) -> bool {
        let name = entry.strip_prefix(prefix).map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        name.is_some_and(|name| !name.is_empty() && self.find(dir, name).is_none() && self.is_passed(dir, name))
    }

    /// Puts in what had been held back and is certain now that the listing has come to `entry`.
    fn release(&mut self, dir: Dir, prefix: usize, entry: &str) -> Result<(), Fault> {
        while let Some(meta) = self.directory_mut(dir).listing.partial().and_then(|partial| partial.release(entry)) {
            self.settle_file(dir, &meta.key.as_str()[prefix..], &meta)?;
        }
        Ok(())
    }

    fn feed_directory(&mut self, dir: Dir, name: &str, full: &str, ordered: bool) -> Result<Option<Dir>, Fault> {
        if ordered {
            self.release(dir, full.len() - name.len() - 1, full)?;
        }
        if let Some(meta) = self.directory_mut(dir).listing.partial().and_then(|partial| partial.shadowed_by(full)) {
            self.hide(meta.key.as_str());
        }
        if !self.charset(dir).shows(name) {
            self.hide(full);
            return Ok(None);
        }
        let child = self.settle_directory(dir, name)?.and_then(|ino| self.child(dir, ino));
        if child.is_none() && self.is_placed(dir, name) {
            self.hide(full);
        }
        Ok(child)
    }

    fn feed_object(&mut self, dir: Dir, prefix: usize, meta: ObjectMeta, ordered: bool) -> Result<(), Fault> {
        if ordered {
            self.release(dir, prefix, meta.key.as_str())?;
        }
        let name = &meta.key.as_str()[prefix..];
        if name.is_empty() && prefix > 0 {
            // The directory's own marker, which says nothing that is not known; unless somebody wrote data into it.
            if meta.size > 0 {
                self.hide(meta.key.as_str());
            }
        } else if !self.charset(dir).shows(name) || self.is_placed(dir, name) {
            self.hide(meta.key.as_str());
        } else if let Some(partial) = self.directory_mut(dir).listing.partial() {
            partial.hold(meta);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
