//! The steps, one by one. Each looks again at what it is about before it changes anything: between a plan and its
//! steps, devices can come, go and change their names.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Setup, StepError};
use crate::command::CommandError;
use crate::device::{Device, Kind};
use crate::identity::{Owner, Uuid};
use crate::inventory::{Inventory, number_of};
use crate::judge::{Reason, Rules, judge};
use crate::lock::Lock;
use crate::mark;
use crate::request::Fs;
use crate::sample::nonzero_blocks;
use crate::signature::Content;
use crate::step::{Step, Target};
use crate::trace::trace;
use crate::world::{Place, mount_points, place};

/// How long udev may look at a device that we want for ourselves.
const UDEV: Duration = Duration::from_secs(10);

/// How long a device may be in use before it counts as being so.
const MOMENT: Duration = Duration::from_secs(2);

fn changed(what: impl ToString, why: impl Into<String>) -> StepError {
    StepError::Changed { what: what.to_string(), why: why.into() }
}

pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> StepError {
    let what = what.into();
    |source| StepError::System { what, source }
}

impl Setup {
    /// Does one step.
    ///
    /// A program that wants a device for itself may find it in use for a moment: when another thread of ours has just
    /// started a program, that one still has a copy of the file by which we had the device. So a failure is tried again
    /// for a while. Each try looks at everything anew; if the first one has changed anything, there is no second one.
    pub(super) fn perform(&self, lock: &Lock, step: &Step) -> Result<(), StepError> {
        let start = Instant::now();
        let mut first = None;
        loop {
            match (self.attempt(lock, step), first.take()) {
                (Ok(()), _) => return Ok(()),
                // What the first try has left is not what it was planned for. It says more.
                (Err(StepError::Changed { .. }), Some(error)) => return Err(error),
                (Err(error @ StepError::Command(CommandError::Failed { .. })), _) if start.elapsed() < MOMENT => {
                    first = Some(error);
                }
                (Err(error), _) => return Err(error),
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn attempt(&self, lock: &Lock, step: &Step) -> Result<(), StepError> {
        let run = |program: &str, arguments: &[&str]| {
            let result = lock.shared_with_children(|| self.tools.run(program, arguments));
            result.map_err(system("passing on the lock"))?.map_err(StepError::from)
        };
        match step {
            Step::LookAgain => Ok(()),
            Step::Mark { device, uuid } => self.mark(device, *uuid),
            Step::Clear { device, uuid } => self.clear(device, *uuid),
            Step::Unmark { device, uuid } => self.unmark(device, *uuid),
            Step::Format { device, fs, uuid, label } => {
                let arguments = arguments(*fs, *uuid, label.as_deref(), device);
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                let held = self.ready_to_format(device, *uuid)?;
                run(&format!("mkfs.{fs}"), &arguments)?;
                drop(held);
                match self.carried(device)? {
                    (Some(kind), Some(found)) if kind == fs.name() && found == uuid.to_string() => Ok(()),
                    found => Err(changed(device, format!("carries something else after mkfs.{fs}: {found:?}"))),
                }
            }
            Step::MakeDirectory { at } => {
                let made = DirBuilder::new().recursive(true).mode(0o755).create(at);
                made.map_err(system(format!("making {}", at.display())))
            }
            Step::Mount { device, fs_type, uuid, at, options } => {
                if self.is_free(at, device)? {
                    let found = self.carried(device)?;
                    if found != (Some(fs_type.clone()), uuid.clone()) {
                        return Err(changed(device, format!("no longer carries {fs_type} {uuid:?}, but {found:?}")));
                    }
                    let (device, at) = (text(&device.path)?, text(at)?);
                    run("mount", &["-t", fs_type, "-o", options, device, at])?;
                }
                Ok(())
            }
            Step::CreateArray { members, uuid, name } => {
                self.empty_members(members)?;
                let mut arguments: Vec<String> = vec!["--create".into(), format!("/dev/md/{name}")];
                let count = members.len();
                arguments.extend(["--level=0", "--chunk=256", "--metadata=1.2"].map(str::to_owned));
                arguments.extend([format!("--uuid={}", uuid.for_mdadm()), format!("--name={name}")]);
                arguments.extend(["--config=none".to_owned(), format!("--raid-devices={count}")]);
                for member in members {
                    arguments.push(text(&member.path)?.to_owned());
                }
                // Without --run: where mdadm would ask a question, it finds nobody to answer and gives up.
                run("mdadm", &arguments.iter().map(String::as_str).collect::<Vec<_>>())
            }
            Step::Assemble { members, uuid, name } => {
                let mut arguments = vec!["--assemble".to_owned(), format!("/dev/md/{name}")];
                arguments.extend(["--config=none".to_owned(), format!("--uuid={}", uuid.for_mdadm())]);
                for member in members {
                    let device = self.fresh(member)?.1;
                    let found = self.examiner.traces(&device, &self.node).map_err(|why| changed(member, why))?;
                    if found.member.map(|member| member.array) != Some(*uuid) {
                        return Err(changed(member, "is no longer a member of this node's array"));
                    }
                    arguments.push(text(&member.path)?.to_owned());
                }
                let result = run("mdadm", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
                // udev puts arrays together, too, and may have been quicker.
                if result.is_err() && self.all_held(members)? { Ok(()) } else { result }
            }
            Step::StopArray { device, .. } => {
                let (inventory, array) = self.fresh(device)?;
                let used = array.swap || !array.mounts.is_empty() || !inventory.descendants(&array).is_empty();
                if array.kind != Kind::Array || used || !self.is_own_array(&inventory, &array) {
                    return Err(changed(device, "is not, or not only, this node's array"));
                }
                run("mdadm", &["--stop", text(&device.path)?])
            }
            Step::ClearMember { device, uuid } => {
                let found = self.fresh(device)?.1;
                let traces = self.examiner.traces(&found, &self.node).map_err(|why| changed(device, why))?;
                let ours = traces.member.is_some_and(|member| member.array == *uuid);
                if !ours || !traces.only(*uuid) || traces.mark.is_some() || traces.claimed {
                    return Err(changed(device, "is no longer an unused member of this node's array"));
                }
                run("mdadm", &["--zero-superblock", text(&device.path)?])
            }
            Step::MakeSwap { file, size } => super::swap::make(&self.tools, file, *size),
            Step::SwapOn { file } => run("swapon", &[text(file)?]),
        }
    }

    /// The device as it is now, if it is still the one that was planned for.
    fn fresh(&self, target: &Target) -> Result<(Inventory, Device), StepError> {
        let inventory = Inventory::read(&self.roots)?;
        let device = inventory.get(&target.name).cloned().ok_or_else(|| changed(target, "is gone"))?;
        if Target::new(&device) != *target {
            return Err(changed(target, "is another device now"));
        }
        Ok((inventory, device))
    }

    /// Fails for a device that anybody uses. What it carries is not looked at.
    fn unused(&self, target: &Target) -> Result<Device, StepError> {
        let (inventory, device) = self.fresh(target)?;
        // Loop devices are planned for only when a person has named them.
        let rules = Rules { loop_devices: true, ..Rules::default() };
        let own_array = self.is_own_array(&inventory, &device);
        let verdict = judge(&inventory, &device, None, &rules);
        let excused = |reason: &&Reason| {
            reason.is_content() || own_array && matches!(reason, Reason::NotADisk { kind: Kind::Array })
        };
        match verdict.reasons().iter().find(|reason| !excused(reason)) {
            Some(reason) => Err(changed(target, format!("cannot be used any more: {reason}"))),
            None => Ok(device),
        }
    }

    /// Whether all that an array lies on are members of an array of this node's.
    fn is_own_array(&self, inventory: &Inventory, array: &Device) -> bool {
        let is_own = |name: &String| {
            let traces = inventory.get(name).and_then(|member| self.examiner.traces(member, &self.node).ok());
            let member = traces.and_then(|traces| traces.member);
            member.and_then(|member| self.node.owner(member.array)) == Some(Owner::ThisNode)
        };
        array.kind == Kind::Array && !array.parents.is_empty() && array.parents.iter().all(is_own)
    }

    fn all_held(&self, members: &[Target]) -> Result<bool, StepError> {
        let inventory = Inventory::read(&self.roots)?;
        let held = |member: &Target| inventory.get(&member.name).is_some_and(|device| !device.holders.is_empty());
        Ok(members.iter().all(held))
    }

    /// What a device carries: kind and UUID as blkid prints them.
    fn carried(&self, target: &Target) -> Result<(Option<String>, Option<String>), StepError> {
        let device = self.fresh(target)?.1;
        match self.examiner.content(&device) {
            Content::Signature(signature) => Ok((signature.kind, signature.uuid)),
            content => Err(changed(target, format!("carries no file system any more: {content:?}"))),
        }
    }

    fn must_be_empty(&self, device: &Device, target: &Target) -> Result<(), StepError> {
        match self.examiner.content(device) {
            Content::Empty { sampled: 1.. } => Ok(()),
            content => Err(changed(target, format!("is not empty any more: {content:?}"))),
        }
    }

    /// Puts the mark on a device that is proved to be empty while nobody else can have it.
    fn mark(&self, target: &Target, uuid: Uuid) -> Result<(), StepError> {
        let device = self.unused(target)?;
        let file = exclusive(target)?;
        self.must_be_empty(&device, target)?;
        mark::write(&file, target.size, uuid).map_err(system(format!("writing to {target}")))
    }

    /// Makes sure that a device carries the mark of this file system and nothing else. Until the result is dropped, udev
    /// keeps away from it. `mkfs` wants the device for itself, so it cannot be kept for ourselves; `mkfs.xfs` looks once
    /// more, as it is not given `-f`.
    fn ready_to_format(&self, target: &Target, uuid: Uuid) -> Result<File, StepError> {
        let device = self.unused(target)?;
        let held = hold(target)?;
        let file = exclusive(target)?;
        let traces = trace(&file, target.size, self.node.prefix()).map_err(system(format!("reading {target}")))?;
        if traces.mark != Some(uuid) || !traces.uuids.is_empty() || traces.stranger_at.is_some() {
            return Err(changed(target, "carries something besides the mark of a new file system"));
        }
        match self.examiner.content(&device) {
            Content::Data { .. } => Ok(held),
            content => Err(changed(target, format!("carries something besides the mark: {content:?}"))),
        }
    }

    fn unmark(&self, target: &Target, uuid: Uuid) -> Result<(), StepError> {
        self.unused(target)?;
        match self.carried(target)? {
            (_, Some(found)) if found == uuid.to_string() => {}
            found => return Err(changed(target, format!("carries something else: {found:?}"))),
        }
        let file = exclusive(target)?;
        mark::remove(&file, target.size, uuid).map_err(system(format!("writing to {target}")))
    }

    /// Clears what an interrupted `mkfs.xfs` has left: every block of the samples, all of which carry its UUID. What lies
    /// between them the next `mkfs.xfs` writes again, in the same places. The mark stays until that has succeeded.
    fn clear(&self, target: &Target, uuid: Uuid) -> Result<(), StepError> {
        self.unused(target)?;
        let file = exclusive(target)?;
        let reading = || system(format!("reading {target}"));
        let look = || trace(&file, target.size, self.node.prefix());
        let traces = look().map_err(reading())?;
        if traces.mark != Some(uuid) || !traces.only(uuid) {
            return Err(changed(target, "carries something that is not a part of the unfinished file system"));
        }
        let marked = mark::position(target.size);
        let mut found = Vec::new();
        nonzero_blocks(&file, target.size, |at, block| {
            if at != marked {
                found.push((at, block.len()));
            }
            true
        })
        .map_err(reading())?;
        for (at, length) in found {
            file.write_all_at(&vec![0; length], at).map_err(system(format!("writing to {target}")))?;
        }
        file.sync_all().map_err(system(format!("writing to {target}")))?;
        let traces = look().map_err(reading())?;
        if traces.uuids.is_empty() && traces.stranger_at.is_none() {
            Ok(())
        } else {
            Err(changed(target, "is being written by somebody else"))
        }
    }

    /// Makes sure that all of them are free and empty, while nobody else can have any of them.
    fn empty_members(&self, members: &[Target]) -> Result<(), StepError> {
        let mut held = Vec::new();
        for member in members {
            let device = self.unused(member)?;
            held.push(exclusive(member)?);
            self.must_be_empty(&device, member)?;
        }
        Ok(())
    }

    /// Whether something is to be mounted at this place. An error when the place is not free.
    fn is_free(&self, at: &Path, target: &Target) -> Result<bool, StepError> {
        match place(&self.examiner, &mount_points(&self.roots)?, at) {
            Place::Empty => Ok(true),
            Place::Mounted { number, .. } if number == target.number => Ok(false),
            Place::Mounted { .. } => Err(changed(at.display(), "has something else mounted on it now")),
            Place::NotEmpty => Err(changed(at.display(), "is not empty, and a mount would hide what is in it")),
            Place::Missing => Err(changed(at.display(), "is gone")),
            Place::Strange(why) => Err(changed(at.display(), format!("cannot be mounted on: {why}"))),
        }
    }
}

/// The arguments of mkfs. Nothing is discarded first: the device is known to be empty, and the mark has to stay.
fn arguments(fs: Fs, uuid: Uuid, label: Option<&str>, device: &Target) -> Vec<String> {
    let uuid = uuid.to_string();
    let mut arguments = match fs {
        Fs::Xfs => vec!["-q".to_owned(), "-K".to_owned(), "-m".to_owned(), format!("uuid={uuid}")],
        Fs::Ext4 => ["-q", "-E", "nodiscard", "-U", &uuid].map(str::to_owned).to_vec(),
    };
    arguments.extend(label.iter().flat_map(|label| ["-L".to_owned(), (*label).to_owned()]));
    arguments.push(device.path.to_string_lossy().into_owned());
    arguments
}

/// A path as an argument. Those of devices and mount points are text: both have been checked.
pub(super) fn text(path: &Path) -> Result<&str, StepError> {
    path.to_str().ok_or_else(|| changed(path.display(), "is no text"))
}

/// Opens a device for writing, for ourselves: the kernel refuses that while it is mounted, in an array, or open like this.
///
/// A program that another thread is just starting has a copy of every open file for a moment, our last one on this
/// device included. So being refused once says nothing.
fn exclusive(target: &Target) -> Result<File, StepError> {
    let start = Instant::now();
    let file = loop {
        match OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&target.path) {
            Ok(file) => break file,
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return Err(system(format!("opening {target}"))(error));
            }
            Err(_) if start.elapsed() < MOMENT => thread::sleep(Duration::from_millis(10)),
            Err(_) => return Err(changed(target, "is in use by somebody")),
        }
    };
    same(&file, target)?;
    // What is cached may be older than the disk: a file system writes past the cache of its device, which goes only with the
    // last one who has the device open. What is decided now is decided from the disk.
    file.sync_all().map_err(system(format!("writing to {target}")))?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(|error| system(format!("forgetting what is cached of {target}"))(error.into()))?;
    Ok(file)
}

/// Keeps udev away from a device: it leaves alone what has an flock (<https://systemd.io/BLOCK_DEVICE_LOCKING/>).
fn hold(target: &Target) -> Result<File, StepError> {
    let start = Instant::now();
    let file = File::open(&target.path).map_err(system(format!("opening {target}")))?;
    same(&file, target)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < UDEV => thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(system(format!("locking {target}"))(error.into())),
        }
    }
}

fn same(file: &File, target: &Target) -> Result<(), StepError> {
    let metadata = file.metadata().map_err(system(format!("looking at {target}")))?;
    if number_of(metadata.rdev()) == target.number { Ok(()) } else { Err(changed(target, "is another device now")) }
}
