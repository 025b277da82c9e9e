//! The places an attempt lives in, and how they are taken away again: by the agent that made them, or by the next one
//! when that was killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::inputs::Mounter;
use super::mount_point::MountPoints;
use super::record::Record;
use super::reserve::Anchor;
use crate::cgroup::TaskGroup;
use crate::durable::{self, FileError};
use crate::job::names::Attempt;
use crate::logs::LogBook;
use crate::network;
use crate::node::Node;
use crate::shim::{ProcessId, find_by_spec, kill_descendants};

/// How long the processes of a dead run may take to disappear.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The directories of one attempt. The record of them is written before they are.
#[derive(Debug)]
pub(super) struct Workspace {
    pub(super) record: Record,
}

impl Workspace {
    /// Makes the directories of a new attempt.
    pub(super) fn create(attempt: Attempt<'_>, node: &Node, of_the_node: bool) -> Result<Self, FileError> {
        let record = Record { of_the_node, ..Record::new(attempt, node)? };
        let id = &record.id;
        if let Some(other) = Record::all(node)?.into_iter().find(|other| other.id == *id && other.agent.is_alive()) {
            return Err(FileError {
                action: "begin",
                path: id.clone().into(),
                source: io::Error::other(format!(
                    "process {} is running it already; wait for it, or use another --job-id",
                    other.agent.pid
                )),
            });
        }
        record.save(node)?;
        let workspace = Self { record };
        for path in [workspace.workdir(), workspace.logs(), workspace.record.inputs(), workspace.views()] {
            durable::private_directory(&path)?;
        }
        // The one directory a task of another user has to be able to enter.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(workspace.workdir(), open).map_err(FileError::on("open up", &workspace.workdir()))?;
        Ok(workspace)
    }

    /// Goes on with what another agent has begun, if its program had been started. What had not come that far, and what a start of the
    /// machine has ended, is to be cleaned up.
    pub(super) fn resume(mut record: Record, node: &Node) -> Result<Result<Self, Record>, FileError> {
        let found = shims(record.shim.clone(), &record.shim_spec()).into_iter().find(outlives_its_agent);
        let has_ended = record.exit_record(node).exists() && record.scratch.exists();
        let this_boot = ProcessId::of(1).map(|init| init.boot_id);
        // One that has made its group may have started the program.
        let is_of_this_boot = record.shim.as_ref().map(|shim| &shim.boot_id) == this_boot.as_ref();
        let is_lost = found.is_none() && !has_ended && !is_of_this_boot && !record.group().exists();
        if record.sources.is_none() || is_lost {
            return Ok(Err(record));
        }
        record.shim = found.or(record.shim);
        record.adopt()?;
        // Nobody has been told that it is over: that was to come.
        record.reserved = None;
        record.save(node)?;
        Ok(Ok(Self { record }))
    }

    /// The working directory.
    pub(super) fn workdir(&self) -> PathBuf {
        self.record.scratch.join("work")
    }

    /// The log files.
    pub(super) fn logs(&self) -> PathBuf {
        self.record.scratch.join("logs")
    }

    /// Layers, uppers and outputs.
    pub(super) fn views(&self) -> PathBuf {
        self.record.scratch.join("views")
    }

    /// The package on its way into the working directory.
    pub(super) fn package(&self) -> PathBuf {
        self.record.scratch.join("package")
    }

    /// The shim's specification.
    pub(super) fn shim_spec(&self) -> PathBuf {
        self.record.shim_spec()
    }

    /// For mounts that exist only while the view is built.
    pub(super) fn hold(&self) -> PathBuf {
        self.record.runtime.join("hold")
    }
}

/// Undoes everything an attempt has made: its processes, mounts, mount points and directories, and last its record.
///
/// # Errors
/// The first thing that could not be undone. The record is kept then, so that it is tried again by the next run.
pub async fn clean_up(
    record: &Record,
    node: &Node,
    mounter: &Mounter,
    mount_points: &MountPoints,
) -> Result<(), String> {
    // Before its shim, which then sees it end, and after it, which may just have made it.
    remove_container(record).await?;
    let (known, spec) = (record.shim.clone(), record.shim_spec());
    let end = move || shims(known, &spec).iter().try_for_each(end_shim);
    let ended = tokio::task::spawn_blocking(end).await.map_err(|error| error.to_string())?;
    ended.map_err(|left| format!("{left} processes of the task do not die; they hang in the kernel"))?;
    remove_container(record).await?;
    let file = record.group();
    tokio::task::spawn_blocking(move || remove_group(&file)).await.map_err(|error| error.to_string())??;
    for below in [record.stage(), record.scratch.join("views")] {
        network::unmount_below(&below).await.map_err(|error| error.to_string())?;
    }
    mounter.unmount(&record.image()).await.map_err(|failure| failure.message)?;
    let anchor = Anchor::of(record);
    let let_go = tokio::task::spawn_blocking(move || anchor.let_go()).await.map_err(|error| error.to_string())?;
    let_go.map_err(|error| error.to_string())?;
    mounter.unmount(&record.inputs()).await.map_err(|failure| failure.message)?;
    network::end_left_behind(&record.network()).await;
    network::unmount_below(&record.network()).await.map_err(|error| error.to_string())?;
    let (record, node, mount_points) = (record.clone(), node.clone(), mount_points.clone());
    let files = move || -> Result<(), FileError> {
        mount_points.release(&record.id)?;
        for directory in [&record.runtime, &record.scratch] {
            remove_tree(directory)?;
        }
        // From now on its logs are in storage only.
        LogBook::of_node(&node).end(&record.id)?;
        record.remove(&node)
    };
    tokio::task::spawn_blocking(files).await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

async fn remove_container(record: &Record) -> Result<(), String> {
    let Some(container) = record.container.clone() else { return Ok(()) };
    let was_reserved = record.reserved.is_some();
    let remove = move || {
        if was_reserved {
            container.remove_visits()?;
        }
        container.remove()
    };
    let removed = tokio::task::spawn_blocking(remove).await.map_err(|error| error.to_string())?;
    removed.map_err(|error| error.to_string())
}

/// The shims of an attempt: the one its record names, and any that was started for it by an agent that was killed before it
/// could write that down. One that has not even read its specification ends by itself when that is gone.
fn shims(known: Option<ProcessId>, spec: &Path) -> Vec<ProcessId> {
    let mut found: Vec<ProcessId> = known.into_iter().filter(ProcessId::is_alive).collect();
    for shim in find_by_spec(spec) {
        if !found.contains(&shim) {
            found.push(shim);
        }
    }
    found
}

/// Whether a shim goes on. One whose agent was killed before it was ready for that is killed, too, and takes a moment to be gone.
fn outlives_its_agent(shim: &ProcessId) -> bool {
    let began = Instant::now();
    while shim.is_ending() && began.elapsed() < KILL_DEADLINE {
        std::thread::sleep(Duration::from_millis(5));
    }
    shim.is_alive()
}

/// Ends a shim that nobody waits for, with everything below it. First what is below: while the shim lives it is their
/// parent, so none can get away. The shim itself then ends as after every task; it is killed only if it does not.
fn end_shim(shim: &ProcessId) -> Result<(), usize> {
    let below = kill_descendants(shim.pid, KILL_DEADLINE, || ());
    let pid = nix::unistd::Pid::from_raw(shim.pid);
    let began = Instant::now();
    while shim.is_alive() && began.elapsed() < 2 * KILL_DEADLINE {
        if began.elapsed() >= KILL_DEADLINE {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    below.map(drop)
}

/// Removes the control group that this file tells of, with whoever is still in it: a shim that was killed has left its task there, and
/// nothing else is.
fn remove_group(record: &Path) -> Result<(), String> {
    let Some(group) = TaskGroup::of_record(record).map_err(|error| error.to_string())? else { return Ok(()) };
    let left = |left| format!("{left} processes of the task do not die; they hang in the kernel");
    group.kill(true, KILL_DEADLINE, || ()).map_err(left)?;
    group.remove().map_err(|error| format!("the task's control group cannot be removed: {error}"))
}

/// Removes a directory tree that lies on one file system. Something mounted inside of it is a reason to stop, and never
/// to remove what is in there.
fn remove_tree(directory: &Path) -> Result<(), FileError> {
    let failed = |source| FileError { action: "remove", path: directory.to_owned(), source };
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
    let inside =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).find(|at| Path::new(at).starts_with(directory));
    if let Some(at) = inside {
        return Err(failed(io::Error::other(format!("{at} is still mounted"))));
    }
    let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    match fs::File::open(parent) {
        // A task may have made a tree deeper than the standard library's removal can follow.
        Ok(parent) => fuse_oss::overlay::removal::remove_tree(parent, Path::new(name)).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
