//! The control group of a task: what its processes may use, what they have used, and that none of them is left.
//!
//! A [`TaskGroup`] is one directory in each hierarchy (`hierarchy`) that this machine has, with two groups inside: `task` for the program
//! and all that comes of it, `shim` for the process that watches over it. Who is limited, or killed, is `task`; the other one stays to tell.
//! They are two because in v2 a group with limits for groups inside of it cannot have processes of its own.
//!
//! The directory is not below the agent's own group, which ends with the agent's unit:
//!
//! - where systemd runs, it is a scope that systemd makes for the task and delegates to us (`systemd`). Only controllers
//!   that systemd does not know (the freezer of v1) have ours at the top of their trees;
//! - elsewhere it is `batch-agent/<task>` at the top of each tree.
//!
//! Nothing here is needed for a task to run. What a machine does not have or does not let us use is told as a note, and the task runs
//! without it. Notes are for people: they name what is not done and why.
//!
//! A group says who is in it, and so proves that nobody is. It does not keep root from leaving: a task that runs as root
//! may move itself elsewhere. So whoever ends a task looks below its shim as well (see the shim's `descendants`).

mod foreign;
mod hierarchy;
mod killing;
mod systemd;
mod usage;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuse_oss::ByteSize;
use serde::{Deserialize, Serialize};

use crate::durable::{self, FileError};
use crate::job::Limits;
pub use foreign::{ForeignGroup, OomNews, OomWatch};
use hierarchy::{Controller, Hierarchy, Version};
pub use usage::GroupUsage;

/// Our directory at the top of a tree that systemd does not manage.
const TOP: &str = "batch-agent";

/// The group of the program.
const TASK: &str = "task";

/// The group of the shim.
const SHIM: &str = "shim";

/// The period of processor limits, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// How long removing may take: a group is busy for a moment after its last process has ended.
const REMOVAL_LIMIT: Duration = Duration::from_secs(2);

/// What a group is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSpec {
    /// Tells it from all others on this machine; see [`group_name`].
    pub name: String,
    /// Receives the [`TaskGroup`], before anything of it is made, so that whoever comes later can take it away.
    pub record: PathBuf,
    /// What its processes may use.
    pub limits: Limits,
}

/// The name of the group of the attempt `id` of the agent that has this runtime directory. Short, and of letters, digits, `-`, `_` and `.`,
/// as names of units want it; two agents of one machine may have attempts of one id.
pub fn group_name(id: &str, runtime: &Path) -> String {
    const SHOWN: usize = 80;
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let shown: String = id.chars().map(safe).take(SHOWN).collect();
    format!("batch-{shown}-{}-{}", mark(id.as_bytes()), agent_mark(runtime))
}

/// What names of groups end in whose agent has this runtime directory.
pub fn agent_mark(runtime: &Path) -> String {
    mark(runtime.as_os_str().as_encoded_bytes())
}

fn mark(bytes: &[u8]) -> String {
    format!("{:08x}", oss::crc::crc64(bytes) >> 32)
}

/// The control group of a task, in all hierarchies. What it names may be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskGroup {
    branches: Vec<Branch>,
    /// The scope around it, where systemd has been asked for one.
    #[serde(default)]
    scope: Option<String>,
}

/// A task's group in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Branch {
    version: Version,
    /// The directory with the two groups.
    base: PathBuf,
    /// The top of the tree, if what is between it and the base is ours to make and remove.
    top: Option<PathBuf>,
}

impl TaskGroup {
    /// Makes the group and puts this process, the shim, into it, beside the task's place. What cannot be done becomes a note.
    ///
    /// To be called right before the program is started: the first process of a while that changes its group waits for all processors
    /// (10 ms and more), and those that follow at once do not.
    ///
    /// # Errors
    /// When the record of it cannot be written: then nothing has been made.
    pub fn make(spec: &GroupSpec) -> Result<(Self, Vec<String>), FileError> {
        let mut notes = Vec::new();
        let scope = systemd::is_there().then(|| format!("{}-{}.scope", spec.name, std::process::id()));
        if let Some(scope) = &scope
            && let Err(why) = systemd::enter_scope(scope, "A task of batch-agent")
        {
            notes.push(format!("systemd has not made a scope for the task: {why}"));
        }
        let hierarchies = Hierarchy::all().unwrap_or_else(|error| {
            notes.push(format!("control groups cannot be found: {error}"));
            Vec::new()
        });
        let planned = Self::planned(&hierarchies, &spec.name, scope.as_deref());
        durable::replace_json(&spec.record, &planned)?;
        let mut group = Self { branches: Vec::new(), ..planned.clone() };
        let mut refused = Vec::new();
        for branch in planned.branches {
            match branch.make(scope.is_some()) {
                Ok(()) => group.branches.push(branch),
                Err(error) => refused.push(error.to_string()),
            }
        }
        let why = match &refused[..] {
            [] => String::new(),
            [only] => format!(" ({only})"),
            [first, more @ ..] => format!(" ({first}; and {} more)", more.len()),
        };
        if group.branches.is_empty() {
            notes.push(format!("the task has no control group{why}: its processes are found in /proc"));
        } else if !refused.is_empty() {
            notes.push(format!("the task is not in all control groups of this machine{why}"));
        }
        group.limit(&spec.limits, &mut notes);
        Ok((group, notes))
    }

    /// Where it will be. Pure.
    fn planned(hierarchies: &[Hierarchy], name: &str, scope: Option<&str>) -> Self {
        let branch = |hierarchy: &Hierarchy| {
            let is_scope = scope.is_some_and(|scope| hierarchy.own.file_name().is_some_and(|own| own == scope));
            let (base, top) = if is_scope {
                (hierarchy.own.clone(), None)
            } else {
                (hierarchy.mount.join(TOP).join(name), Some(hierarchy.mount.clone()))
            };
            Branch { version: hierarchy.version, base, top }
        };
        Self { branches: hierarchies.iter().map(branch).collect(), scope: scope.map(str::to_owned) }
    }

    /// The group that `record` tells of, if there is one.
    ///
    /// # Errors
    /// When the record is there and cannot be read.
    pub fn of_record(record: &Path) -> Result<Option<Self>, FileError> {
        durable::read_json(record)
    }

    /// What a process writes `0` to in order to be in the group of the task.
    ///
    /// # Errors
    /// When the kernel does not let us in.
    pub fn doors(&self) -> io::Result<Vec<File>> {
        let open = |branch: &Branch| OpenOptions::new().write(true).open(branch.task().join("cgroup.procs"));
        self.branches.iter().map(open).collect()
    }

    fn limit(&self, limits: &Limits, notes: &mut Vec<String>) {
        let mut apply = |what: String, controller: Controller, settings: &[(Version, &str, String)]| {
            let Some(branch) = self.with(controller) else {
                notes.push(format!(
                    "the task's limit of {what} is not enforced: the controller \"{}\" of control groups is missing here, or \
                     not delegated to the agent",
                    controller.name()
                ));
                return;
            };
            for (_, file, value) in settings.iter().filter(|(version, ..)| *version == branch.version) {
                if let Err(error) = write(&branch.task().join(file), value) {
                    notes.push(format!("the task's limit of {what} is not enforced: {error}"));
                }
            }
        };
        if let Some(millis) = limits.cpu_millis {
            let quota = u64::from(millis) * PERIOD_US / 1000;
            let settings = [
                (Version::V2, "cpu.max", format!("{quota} {PERIOD_US}")),
                (Version::V1, "cpu.cfs_period_us", PERIOD_US.to_string()),
                (Version::V1, "cpu.cfs_quota_us", quota.to_string()),
            ];
            apply(format!("{} processors", f64::from(millis) / 1000.0), Controller::Cpu, &settings);
        }
        if let Some(bytes) = limits.memory {
            let settings = [
                (Version::V2, "memory.max", bytes.to_string()),
                (Version::V1, "memory.limit_in_bytes", bytes.to_string()),
            ];
            apply(format!("{} of memory", ByteSize::new(bytes)), Controller::Memory, &settings);
        }
        if let Some(pids) = limits.pids {
            let settings = [(Version::V2, "pids.max", pids.to_string()), (Version::V1, "pids.max", pids.to_string())];
            apply(format!("{pids} processes"), Controller::Pids, &settings);
        }
        if let Some(memory) = self.with(Controller::Memory) {
            if let Some(bytes) = limits.memory {
                // A kernel that does not count swap has neither file, and then nothing of the task's is ever put there.
                let (file, value) = match memory.version {
                    Version::V2 => ("memory.swap.max", "0".to_owned()),
                    Version::V1 => ("memory.memsw.limit_in_bytes", bytes.to_string()),
                };
                let _ = write(&memory.task().join(file), &value);
            }
            // Out of memory, the task ends as a whole: half of it would go on with wrong results, or wait for ever. v1 cannot do that.
            let _ = write(&memory.task().join("memory.oom.group"), "1");
        }
    }

    /// The branch that has this controller.
    fn with(&self, controller: Controller) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.has(controller))
    }

    /// The processes of the task; with the shim, if it `is_whole`.
    pub fn processes(&self, is_whole: bool) -> BTreeSet<i32> {
        self.branches.iter().flat_map(|branch| processes(&branch.part(is_whole))).collect()
    }

    /// Removes the group of the task, when nobody is in it any more.
    pub fn remove_task(&self) {
        for branch in &self.branches {
            let _ = remove(&branch.task());
        }
    }

    /// Removes everything of it. What is gone already is a success: systemd takes its scopes away by itself.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub fn remove(&self) -> io::Result<()> {
        for branch in &self.branches {
            remove(&branch.base)?;
            // The last one turns off the light.
            if let Some(top) = &branch.top {
                let _ = fs::remove_dir(top.join(TOP));
            }
        }
        // With version 2 systemd has seen it.
        let is_seen = self.branches.iter().any(|branch| branch.version == Version::V2 && branch.top.is_none());
        if let (Some(scope), false) = (&self.scope, is_seen) {
            systemd::end_scope(scope);
        }
        Ok(())
    }
}

impl Branch {
    fn task(&self) -> PathBuf {
        self.base.join(TASK)
    }

    fn part(&self, is_whole: bool) -> PathBuf {
        if is_whole { self.base.clone() } else { self.task() }
    }

    /// Whether the task's group has this controller.
    fn has(&self, controller: Controller) -> bool {
        has(&self.task(), self.version, controller)
    }

    /// Makes the two groups. `beside_systemd` says that systemd manages this machine, and so what is above our own directories.
    fn make(&self, beside_systemd: bool) -> Result<(), FileError> {
        let make = |path: &Path| match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        };
        if let Some(top) = &self.top {
            let ours = top.join(TOP);
            // Another agent may just have removed it.
            let made = (0..10).map(|_| make(&ours).and_then(|()| make(&self.base))).find(Result::is_ok);
            if made.is_none() {
                make(&ours).and_then(|()| make(&self.base)).map_err(FileError::on("make the group", &self.base))?;
            }
            if self.version == Version::V2 {
                if !beside_systemd {
                    enable(top);
                }
                enable(&ours);
            }
        }
        let shim = self.base.join(SHIM);
        make(&shim).map_err(FileError::on("make the group", &shim))?;
        write(&shim.join("cgroup.procs"), "0")?;
        if self.version == Version::V2 {
            // A scope has just been left by us, and no other process is in it.
            enable(&self.base);
        }
        make(&self.task()).map_err(FileError::on("make the group", &self.task()))
    }
}

/// Whether a group has this controller. Asked of the kernel: a v2 group has the files of what was enabled for it, a v1 group those of its
/// hierarchy.
fn has(group: &Path, version: Version, controller: Controller) -> bool {
    let file = match (controller, version) {
        (Controller::Cpu, Version::V2) => "cpu.max",
        (Controller::Cpu, Version::V1) => "cpu.cfs_quota_us",
        (Controller::Cpuacct, Version::V2) => "cpu.stat",
        (Controller::Cpuacct, Version::V1) => "cpuacct.usage",
        (Controller::Memory, Version::V2) => "memory.max",
        (Controller::Memory, Version::V1) => "memory.limit_in_bytes",
        (Controller::Pids, _) => "pids.max",
        (Controller::Freezer, Version::V2) => "cgroup.freeze",
        (Controller::Freezer, Version::V1) => "freezer.state",
    };
    group.join(file).exists()
}

/// Lets the groups inside of a v2 group have the controllers that it has itself. Those that it cannot pass on they do not have, which
/// is seen when one is needed.
fn enable(group: &Path) {
    let there = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in [Controller::Cpu, Controller::Memory, Controller::Pids] {
        if there.split_ascii_whitespace().any(|name| name == controller.name()) {
            let _ = write(&group.join("cgroup.subtree_control"), &format!("+{}", controller.name()));
        }
    }
}

/// Writes to a file of the kernel's, which takes a value in one piece.
fn write(path: &Path, value: &str) -> Result<(), FileError> {
    let written = OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(FileError::on("write to", path))
}

/// The groups below `group` and itself, from the outside in.
fn tree(group: &Path) -> Vec<PathBuf> {
    let mut found = vec![group.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let entries = fs::read_dir(&found[at]).into_iter().flatten().flatten();
        let inside: Vec<_> = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).collect();
        found.extend(inside.into_iter().map(|entry| entry.path()));
        at += 1;
    }
    found
}

/// The processes in a group and all groups inside of it.
fn processes(group: &Path) -> BTreeSet<i32> {
    let listed = |group: &PathBuf| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let lists: Vec<String> = tree(group).iter().map(listed).collect();
    // One that this namespace does not see is listed as 0.
    lists.iter().flat_map(|list| list.lines()).filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// Removes a group with all groups inside of it, which no process may be in.
fn remove(group: &Path) -> io::Result<()> {
    let began = Instant::now();
    // Asked first: of a read-only tree nothing can be removed, not even what was never there.
    while group.exists() {
        let removed = tree(group).iter().rev().try_for_each(|group| match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", group.display()))),
        });
        match removed {
            Ok(()) => break,
            Err(error) if began.elapsed() >= REMOVAL_LIMIT => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(version: Version, mount: &str, own: &str) -> Hierarchy {
        Hierarchy { version, mount: mount.into(), controllers: Vec::new(), own: own.into() }
    }

    #[test]
    fn a_group_is_below_its_scope_or_at_the_top() {
        let hierarchies = [hierarchy(Version::V2, "/cg", "/cg/slice/x.scope"), hierarchy(Version::V1, "/fr", "/fr")];
        let bases = |scope| {
            let planned = TaskGroup::planned(&hierarchies, "x", scope);
            planned.branches.into_iter().map(|branch| (branch.base, branch.top.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(bases(Some("x.scope")), [("/cg/slice/x.scope".into(), false), ("/fr/batch-agent/x".into(), true)]);
        assert_eq!(bases(None), [("/cg/batch-agent/x".into(), true), ("/fr/batch-agent/x".into(), true)]);
        // A scope that was refused: we are in another one.
        assert_eq!(bases(Some("y.scope"))[0], ("/cg/batch-agent/x".into(), true));
    }

    #[test]
    fn names_are_units_names_and_tell_attempts_apart() {
        let name = group_name("job-1.a/b c.0", Path::new("/run/x"));
        assert!(name.starts_with("batch-job-1.a_b_c.0-"), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')));
        assert_ne!(name, group_name("job-1.a_b_c.0", Path::new("/run/x")));
        assert_ne!(name, group_name("job-1.a/b c.0", Path::new("/run/y")));
        assert!(name.ends_with(&agent_mark(Path::new("/run/x"))));
        assert!(group_name(&"ä".repeat(500), Path::new("/")).len() < 128);
    }

    #[test]
    fn groups_that_are_gone_are_removed_already() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        remove(&gone).unwrap();
        assert!(processes(&gone).is_empty());
        fs::create_dir_all(gone.join("a/b")).unwrap();
        fs::create_dir_all(gone.join("c")).unwrap();
        assert_eq!(tree(&gone).len(), 4);
        remove(&gone).unwrap();
        assert!(!gone.exists());
    }
}
