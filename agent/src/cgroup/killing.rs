//! Ending all processes of a group, until the kernel says that there are none.
//!
//! The kernel does it in one step where it can (`cgroup.kill` of v2, Linux 5.14): nothing can fork its way out of that. Elsewhere the
//! group is frozen, everybody in it is killed, and then it is thawed, because what is frozen in v1 does not die.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::hierarchy::{Controller, Version};
use super::{Branch, TaskGroup, processes, tree, write};

/// How long freezing is waited for. A process that hangs in the kernel is not frozen, nor would it fork.
const FREEZING: Duration = Duration::from_millis(500);

/// How often, in rounds of [`PAUSE`], freezing is tried where the kernel's own way should have been enough.
const SELDOM: u32 = 20;

const PAUSE: Duration = Duration::from_millis(5);

impl TaskGroup {
    /// Kills every process of the task, with the shim if it `is_whole`, and says how many there were. `reap` is called between rounds, for
    /// whoever is their parent.
    ///
    /// # Errors
    /// How many are still there after `deadline`: processes that hang in the kernel.
    pub fn kill(&self, is_whole: bool, deadline: Duration, mut reap: impl FnMut()) -> Result<usize, usize> {
        let end = Instant::now() + deadline;
        let mut killed = BTreeSet::new();
        for round in 0_u32.. {
            let there = self.processes(is_whole);
            if there.is_empty() && !self.is_populated(is_whole) {
                break;
            }
            if Instant::now() >= end {
                return Err(there.len().max(1));
            }
            killed.extend(there);
            let mut is_struck = false;
            for branch in self.branches.iter().filter(|branch| branch.version == Version::V2) {
                is_struck |= write(&branch.part(is_whole).join("cgroup.kill"), "1").is_ok();
            }
            if !is_struck || round % SELDOM == SELDOM - 1 {
                self.kill_frozen(is_whole, &mut killed);
            }
            reap();
            std::thread::sleep(PAUSE);
        }
        Ok(killed.len())
    }

    /// Whether the kernel says that somebody is in the group. Only v2 does.
    fn is_populated(&self, is_whole: bool) -> bool {
        self.branches.iter().filter(|branch| branch.version == Version::V2).any(|branch| {
            let events = fs::read_to_string(branch.part(is_whole).join("cgroup.events")).unwrap_or_default();
            events.lines().any(|line| line == "populated 1")
        })
    }

    /// Freezes the group where it can be frozen, kills whoever is listed, and thaws it.
    fn kill_frozen(&self, is_whole: bool, killed: &mut BTreeSet<i32>) {
        let freezer = self.with(Controller::Freezer).map(|branch| (branch, branch.part(is_whole)));
        if let Some((branch, group)) = &freezer {
            branch.freeze(group);
        }
        // Read once nobody can fork any more; and none of these numbers becomes another process's meanwhile.
        for pid in self.processes(is_whole) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            killed.insert(pid);
        }
        if let Some((branch, group)) = &freezer {
            branch.thaw(group);
        }
    }
}

impl Branch {
    /// Freezes a group, with all groups inside of it.
    fn freeze(&self, group: &Path) {
        let (file, value, state, frozen) = match self.version {
            Version::V1 => ("freezer.state", "FROZEN", "freezer.state", "FROZEN"),
            Version::V2 => ("cgroup.freeze", "1", "cgroup.events", "frozen 1"),
        };
        if write(&group.join(file), value).is_err() {
            return;
        }
        let began = Instant::now();
        let is_frozen = || {
            let text = fs::read_to_string(group.join(state)).unwrap_or_default();
            text.lines().any(|line| line == frozen)
        };
        while !is_frozen() && began.elapsed() < FREEZING && !processes(group).is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Thaws a group and all groups inside of it, which the task may have frozen by itself.
    fn thaw(&self, group: &Path) {
        let (file, value) = match self.version {
            Version::V1 => ("freezer.state", "THAWED"),
            Version::V2 => ("cgroup.freeze", "0"),
        };
        for group in tree(group) {
            let _ = write(&group.join(file), value);
        }
    }
}
