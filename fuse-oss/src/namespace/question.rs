//! What a question about a directory tells beside the directory: who else was asked about around it, and how far away it is. Reads
//! the table only.

use std::sync::atomic::Ordering;

use super::table::{Dir, Table};

/// A question about what is in a directory.
#[derive(Debug, Clone)]
pub struct Question {
    /// The directory.
    pub dir: Dir,
    /// Which of the mounted locations it is in.
    pub root: Option<u32>,
    /// The prefix of its keys.
    pub prefix: String,
    /// The key up to which it has been listed.
    pub reached: Option<String>,
    /// The outermost directory around it of which two children have been asked about, and its prefix.
    pub base: Option<(Dir, String)>,
    /// How many names that one has.
    pub base_names: usize,
    /// Sweeps may begin: the store's pages are in order, and there is room for names nobody asked for.
    pub sweepable: bool,
    /// The store can begin a listing anywhere at no extra cost.
    pub from_inside: bool,
}

/// What lies between where a sweep is and a directory further on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// How deep below the sweep's base the two ways part.
    pub depth: usize,
    /// How many siblings further on it is, there.
    pub siblings: usize,
}

impl Table {
    /// Remembers that somebody asked what is in a directory; says so the first time.
    pub fn ask(&self, dir: Dir) -> bool {
        let directory = self.directory(dir);
        // Looked at first: this is on the way of every lookup, and writing would take the cache line from the other processors.
        if directory.asked.load(Ordering::Relaxed) || directory.asked.swap(true, Ordering::Relaxed) {
            return false;
        }
        let mut at = dir;
        while !self.directory(at).asked_below.swap(true, Ordering::Relaxed) {
            let Some(above) = self.parent_within_root(at) else { break };
            self.directory(above).children_asked.fetch_add(1, Ordering::Relaxed);
            at = above;
        }
        true
    }

    /// What the plan has to know to answer for a directory.
    pub fn question(&self, dir: Dir) -> Question {
        let mut base = None;
        let mut at = dir;
        while let Some(above) = self.parent_within_root(at) {
            if self.directory(above).children_asked.load(Ordering::Relaxed) > 1 {
                base = Some(above);
            }
            at = above;
        }
        let root = self.root_of(dir);
        Question {
            dir,
            root: self.directory(dir).root,
            prefix: self.prefix(dir),
            reached: self.directory(dir).listing.reached().map(str::to_owned),
            base_names: base.map_or(0, |base| self.count(base)),
            base: base.map(|base| (base, self.prefix(base))),
            sweepable: root.is_some_and(|root| root.ordered) && self.has_room(),
            from_inside: root.is_some_and(|root| root.origin.store.capabilities().list_from_inside),
        }
    }

    /// What lies between a key below `base` and a directory further on; none when that is not known.
    pub fn gap(&self, base: Dir, key: &str, dir: Dir) -> Option<Gap> {
        let (under, target) = (self.prefix(base), self.prefix(dir));
        let (mut way, mut target) = (key.strip_prefix(&under)?, target.strip_prefix(&under)?);
        let (mut here, mut depth) = (base, 0);
        loop {
            let (next, rest) = target.split_once('/')?;
            let (at, on) = way.split_once('/').unwrap_or((way, ""));
            if at == next {
                here = self.dir(self.find(here, next)?)?;
                (way, target, depth) = (on, rest, depth + 1);
                continue;
            }
            // What has its place in the tree stands before all that was listed, whatever its name.
            if self.is_placed(here, next) || self.is_placed(here, at) {
                return None;
            }
            let to = self.position(self.find(here, next)?)?;
            let from = self.position(self.find(here, at)?)?;
            return Some(Gap { depth, siblings: to.checked_sub(from)? });
        }
    }
}
