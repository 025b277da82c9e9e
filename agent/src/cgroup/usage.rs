//! What the processes of a group have used, those that nobody has waited for included.

use std::fs;
use std::path::{Path, PathBuf};

use super::hierarchy::{Controller, Version};
use super::{TaskGroup, tree};

/// What a group has used; nothing where the machine does not count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupUsage {
    /// Processor time in user mode, in milliseconds.
    pub user_ms: Option<u64>,
    /// Processor time in the kernel, in milliseconds.
    pub system_ms: Option<u64>,
    /// The most memory that all of them had at once, in bytes, with the page cache of their files. v2 knows it since Linux 5.19.
    pub memory_peak_bytes: Option<u64>,
    /// How many of them the kernel has killed for want of memory.
    pub oom_kills: Option<u64>,
    /// How often they were refused another process because of a limit of the task's.
    pub pids_refused: Option<u64>,
}

impl TaskGroup {
    /// What the task has used so far. To be asked before groups are removed: in v1 their counts go with them.
    pub fn usage(&self) -> GroupUsage {
        read(|controller| self.place(controller))
    }

    /// How much memory the task has now, in bytes, without files that can be dropped at once.
    pub fn memory_now(&self) -> Option<u64> {
        memory_now(self.place(Controller::Memory)?)
    }

    fn place(&self, controller: Controller) -> Option<(Version, PathBuf)> {
        self.with(controller).map(|branch| (branch.version, branch.task()))
    }
}

/// Reads what is counted in the group that `place` says for each controller.
pub(super) fn read(place: impl Fn(Controller) -> Option<(Version, PathBuf)>) -> GroupUsage {
    let mut usage = GroupUsage::default();
    if let Some((version, group)) = place(Controller::Cpuacct) {
        (usage.user_ms, usage.system_ms) = match version {
            Version::V2 => {
                let ms = |name| counter(&group, "cpu.stat", name).map(|us| us / 1000);
                (ms("user_usec"), ms("system_usec"))
            }
            Version::V1 => {
                let ms = |file| number(&group, file).map(|ns| ns / 1_000_000);
                (ms("cpuacct.usage_user"), ms("cpuacct.usage_sys"))
            }
        };
    }
    if let Some((version, group)) = place(Controller::Memory) {
        match version {
            Version::V2 => {
                usage.memory_peak_bytes = number(&group, "memory.peak");
                // Of the groups inside as well. Where the whole group was killed, the process that was chosen first is counted twice:
                // by itself, and with the others (`oom_kill_process` in the kernel's mm/oom_kill.c).
                let twice = counter(&group, "memory.events", "oom_group_kill").unwrap_or_default();
                let kills = counter(&group, "memory.events", "oom_kill");
                usage.oom_kills = kills.map(|kills| kills.saturating_sub(twice).max(kills.min(1)));
            }
            Version::V1 => {
                usage.memory_peak_bytes = number(&group, "memory.max_usage_in_bytes");
                // Each group counts its own victims only.
                usage.oom_kills = sum(&group, "memory.oom_control", "oom_kill");
            }
        }
    }
    if let Some((_, group)) = place(Controller::Pids) {
        // Whether a group counts for those inside of it has changed with kernels and mount options; none counts for its parent.
        usage.pids_refused = counter(&group, "pids.events", "max").filter(|refused| *refused > 0);
        usage.pids_refused = usage.pids_refused.or_else(|| sum(&group, "pids.events", "max"));
    }
    usage
}

/// How much memory a group has now, in bytes, without files that can be dropped at once.
pub(super) fn memory_now((version, group): (Version, PathBuf)) -> Option<u64> {
    let (all, droppable) = match version {
        Version::V2 => ("memory.current", "inactive_file"),
        Version::V1 => ("memory.usage_in_bytes", "total_inactive_file"),
    };
    Some(number(&group, all)?.saturating_sub(counter(&group, "memory.stat", droppable).unwrap_or(0)))
}

/// The sum of a counter over a group and the groups inside of it.
fn sum(group: &Path, file: &str, name: &str) -> Option<u64> {
    let counts: Vec<u64> = tree(group).iter().filter_map(|group| counter(group, file, name)).collect();
    (!counts.is_empty()).then(|| counts.iter().sum())
}

/// A file that is one number.
fn number(group: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
}

/// A number in a file of names and numbers.
fn counter(group: &Path, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(group.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
