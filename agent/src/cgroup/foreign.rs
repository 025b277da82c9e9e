//! The control group of processes that somebody else has put there: a container's, which its engine makes and takes away.
//!
//! It is read and never changed. What it has counted is gone with it, and its engine takes it away a few milliseconds after the last process
//! has ended. So whoever wants to know has it in view from before the program begins ([`ForeignGroup::find`]), and reads it at the moment at
//! which that ends. For what must not be missed in any case, a kill for want of memory, there is an [`OomWatch`].

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

use super::hierarchy::{Controller, Hierarchy, Version};
use super::{GroupUsage, has, processes, usage};
use crate::durable::{self, FileError};

/// The most groups that are looked at in a search. No node has as many.
const MOST_GROUPS: usize = 20_000;

/// A control group that is not ours, in all hierarchies in which it is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignGroup {
    places: Vec<(Version, PathBuf)>,
}

impl ForeignGroup {
    /// The group whose name has `mark` in it, and one of its processes. Nothing while there is none, or no process is in it.
    ///
    /// One that is just being made may not be everywhere yet where it will be.
    pub fn find(mark: &str) -> Option<(Self, i32)> {
        let hierarchies = Hierarchy::all().ok()?;
        let group = hierarchies.iter().find_map(|hierarchy| search(&hierarchy.mount, mark))?;
        let pid = *processes(&group).first()?;
        Some((Self::of(pid, mark)?, pid))
    }

    /// The groups of the process `pid` whose names have `mark` in them.
    pub fn of(pid: i32, mark: &str) -> Option<Self> {
        let hierarchies = Hierarchy::of(pid).ok()?;
        let is_it = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(mark));
        // Engines may put processes into a group inside of it.
        let place = |hierarchy: Hierarchy| {
            let group = hierarchy.own.ancestors().find(|path| is_it(path))?;
            Some((hierarchy.version, group.to_owned()))
        };
        let places: Vec<_> = hierarchies.into_iter().filter_map(place).collect();
        (!places.is_empty()).then_some(Self { places })
    }

    /// The group that `record` tells of, if there is one.
    ///
    /// # Errors
    /// When the record is there and cannot be read.
    pub fn of_record(record: &Path) -> Result<Option<Self>, FileError> {
        durable::read_json(record)
    }

    /// What its processes have used so far; nothing of it when it is gone.
    pub fn usage(&self) -> GroupUsage {
        usage::read(|controller| self.at(controller))
    }

    /// How much memory they have now, in bytes, without files that can be dropped at once.
    pub fn memory_now(&self) -> Option<u64> {
        usage::memory_now(self.at(Controller::Memory)?)
    }

    /// Begins to notice kills for want of memory.
    ///
    /// # Errors
    /// When the kernel does not tell of them here.
    pub fn watch_memory(&self) -> io::Result<OomWatch> {
        let (version, group) = self.at(Controller::Memory).ok_or(io::ErrorKind::Unsupported)?;
        OomWatch::new(version, &group)
    }

    fn at(&self, controller: Controller) -> Option<(Version, PathBuf)> {
        self.places.iter().find(|(version, group)| has(group, *version, controller)).cloned()
    }
}

/// Looks through a tree for the group whose name has `mark` in it, from the top down.
fn search(top: &Path, mark: &str) -> Option<PathBuf> {
    let mut waiting = VecDeque::from([top.to_owned()]);
    for _ in 0..MOST_GROUPS {
        let group = waiting.pop_front()?;
        for entry in fs::read_dir(&group).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(mark) {
                    return Some(entry.path());
                }
                waiting.push_back(entry.path());
            }
        }
    }
    None
}

/// The kernel's word on a group that runs out of memory, which outlives the group.
///
/// With v1 it adds to a number of ours each time it has to kill somebody because the group's limit is reached, at once, and once more when the
/// group is removed. So another number is kept that only the removal adds to. With v2 it wakes whoever waits for a change of the group's
/// counts, which are to be read then.
#[derive(Debug)]
pub enum OomWatch {
    /// v1.
    Numbers {
        /// Kills, and the removal.
        kills: EventFd,
        /// The removal.
        removal: EventFd,
    },
    /// v2.
    Counts(File),
}

impl OomWatch {
    fn new(version: Version, group: &Path) -> io::Result<Self> {
        if version == Version::V2 {
            let counts = File::open(group.join("memory.events"))?;
            let watch = Self::Counts(counts);
            watch.heard();
            return Ok(watch);
        }
        // More than there is of anything: it is never reached.
        const NEVER: u64 = i64::MAX as u64 & !0xffff;
        let number = || EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let (kills, removal) = (number()?, number()?);
        let control = fs::OpenOptions::new().write(true).open(group.join("cgroup.event_control"))?;
        let register = |number: &EventFd, file: &str, more: &str| {
            let file = File::open(group.join(file))?;
            let (number, file) = (number.as_fd().as_raw_fd(), file.as_raw_fd());
            control.write_at(format!("{number} {file}{more}").as_bytes(), 0).map(drop)
        };
        register(&removal, "memory.usage_in_bytes", &format!(" {NEVER}"))?;
        register(&kills, "memory.oom_control", "")?;
        Ok(Self::Numbers { kills, removal })
    }

    /// Whether it has told of every kill when the group is gone.
    pub fn outlives_group(&self) -> bool {
        matches!(self, Self::Numbers { .. })
    }

    /// What to wait for.
    pub fn events(&self) -> PollFlags {
        match self {
            Self::Numbers { .. } => PollFlags::POLLIN,
            Self::Counts(_) => PollFlags::POLLPRI,
        }
    }

    /// Takes notice of what has happened, and says how much that was. What a number has grown by is told once.
    pub fn heard(&self) -> OomNews {
        let taken = |number: &EventFd| number.read().unwrap_or(0);
        match self {
            Self::Numbers { kills, removal } => OomNews { told: taken(kills), removals: taken(removal) },
            Self::Counts(counts) => {
                // It has to be read to the end before it tells of the next change.
                let mut text = [0; 4096];
                let _ = counts.read_at(&mut text, 0);
                OomNews::default()
            }
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Numbers { kills, .. } => kills.as_fd(),
            Self::Counts(counts) => counts.as_fd(),
        }
    }
}

/// What an [`OomWatch`] was told; to be added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OomNews {
    told: u64,
    removals: u64,
}

impl OomNews {
    /// Adds what was told later.
    pub fn add(&mut self, later: Self) {
        self.told += later.told;
        self.removals += later.removals;
    }

    /// Whether the group may have been removed without the kernel having said so.
    pub fn is_undecided(self) -> bool {
        self.told > 0 && self.removals == 0
    }

    /// How often the group has run out of memory for certain. `is_gone` says that it has been removed, whether we have been told or not.
    pub fn kills(self, is_gone: bool) -> u64 {
        // The kernel tells of the removal in two steps.
        self.told.saturating_sub(self.removals.max(u64::from(is_gone)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_a_part_of_its_name() {
        let top = tempfile::tempdir().unwrap();
        for group in ["system.slice/docker-abc.scope/init", "user.slice", "docker/def"] {
            fs::create_dir_all(top.path().join(group)).unwrap();
        }
        let found = |mark| search(top.path(), mark).map(|path| path.strip_prefix(top.path()).unwrap().to_owned());
        assert_eq!(found("abc"), Some("system.slice/docker-abc.scope".into()));
        assert_eq!(found("def"), Some("docker/def".into()));
        assert_eq!(found("nobody"), None);
    }

    #[test]
    fn a_removal_is_no_kill() {
        let heard = |told, removals| OomNews { told, removals };
        let mut all = heard(1, 0);
        all.add(heard(2, 1));
        assert_eq!(all.kills(true), 2);
        assert_eq!((heard(1, 0).kills(false), heard(1, 0).kills(true)), (1, 0));
        assert_eq!((heard(0, 1).kills(true), heard(0, 0).kills(false)), (0, 0));
    }
}
