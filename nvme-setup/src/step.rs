//! What a plan consists of: steps that can be done, and refusals.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::device::{Device, DeviceNumber};
use crate::identity::Uuid;
use crate::request::Fs;
use crate::text::{human_size, printable, printable_os, serialize_path};

/// A device that a step is about, described so that it can be told from another one that has come in its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Target {
    /// Its name in sysfs.
    pub name: String,
    /// Its path in `/dev`.
    #[serde(serialize_with = "serialize_path")]
    pub path: PathBuf,
    /// The kernel's number for it.
    pub number: DeviceNumber,
    /// Its size in bytes.
    pub size: u64,
    /// Its serial number.
    pub serial: Option<String>,
}

impl Target {
    pub(crate) fn new(device: &Device) -> Self {
        Self {
            name: device.name.clone(),
            path: device.path.clone(),
            number: device.number,
            size: device.size,
            serial: device.serial.clone(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable_os(&self.path))
    }
}

/// Something to do. Each can be repeated, and interrupted at any moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Take the superblock of an array that was never completed off a member that carries nothing else.
    ClearMember {
        /// The member.
        device: Target,
        /// The array.
        uuid: Uuid,
    },
    /// Stop an array that the kernel has put together but not started.
    StopArray {
        /// The array.
        device: Target,
        /// Its UUID.
        uuid: Uuid,
    },
    /// Put an array together from its members.
    Assemble {
        /// All members.
        members: Vec<Target>,
        /// The array.
        uuid: Uuid,
        /// Its name in `/dev/md`.
        name: String,
    },
    /// Make a RAID0 over empty disks, with chunks of 256 KiB.
    CreateArray {
        /// The disks.
        members: Vec<Target>,
        /// The UUID that it gets.
        uuid: Uuid,
        /// Its name in `/dev/md`.
        name: String,
    },
    /// See what is there now, and plan on.
    LookAgain,
    /// Erase a file system that was begun here and has never been mounted.
    Clear {
        /// The device.
        device: Target,
        /// The file system.
        uuid: Uuid,
    },
    /// Mark an empty device: a file system is being made on it.
    Mark {
        /// The device.
        device: Target,
        /// The file system.
        uuid: Uuid,
    },
    /// Make a file system on a device that carries nothing but the mark.
    Format {
        /// The device.
        device: Target,
        /// Which one.
        fs: Fs,
        /// The UUID that it gets.
        uuid: Uuid,
        /// The label that it gets.
        label: Option<String>,
    },
    /// Take the mark away: the file system is complete.
    Unmark {
        /// The device.
        device: Target,
        /// The file system.
        uuid: Uuid,
    },
    /// Make a directory to mount at, and those above it.
    MakeDirectory {
        /// The directory.
        #[serde(serialize_with = "serialize_path")]
        at: PathBuf,
    },
    /// Mount a file system.
    Mount {
        /// The device.
        device: Target,
        /// The file system's type.
        fs_type: String,
        /// Its UUID, as blkid prints it.
        uuid: Option<String>,
        /// Where.
        #[serde(serialize_with = "serialize_path")]
        at: PathBuf,
        /// The options, with commas between.
        options: String,
    },
    /// Make a swap file.
    MakeSwap {
        /// The file.
        #[serde(serialize_with = "serialize_path")]
        file: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Swap on it.
    SwapOn {
        /// The file.
        #[serde(serialize_with = "serialize_path")]
        file: PathBuf,
    },
}

impl Step {
    /// The devices whose content the step changes.
    pub fn written(&self) -> &[Target] {
        match self {
            Self::ClearMember { device, .. }
            | Self::Clear { device, .. }
            | Self::Mark { device, .. }
            | Self::Format { device, .. }
            | Self::Unmark { device, .. } => std::slice::from_ref(device),
            Self::CreateArray { members, .. } => members,
            Self::StopArray { .. }
            | Self::Assemble { .. }
            | Self::LookAgain
            | Self::MakeDirectory { .. }
            | Self::Mount { .. }
            | Self::MakeSwap { .. }
            | Self::SwapOn { .. } => &[],
        }
    }
}

fn paths(members: &[Target]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClearMember { device, .. } => write!(f, "clear the array superblock of {device}"),
            Self::StopArray { device, .. } => write!(f, "stop the array {device}"),
            Self::Assemble { members, .. } => write!(f, "assemble the array of {}", paths(members)),
            Self::CreateArray { members, .. } => {
                let size = members.iter().map(|member| member.size).sum();
                write!(f, "make a RAID0 of {} ({}, chunks of 256 KiB)", paths(members), human_size(size))
            }
            Self::LookAgain => f.write_str("look at what is there now, and go on from there"),
            Self::Clear { device, .. } => write!(f, "clear the unfinished file system on {device}"),
            Self::Mark { device, .. } => write!(f, "mark {device}: a file system is being made"),
            Self::Format { device, fs, label, .. } => {
                write!(f, "make {fs} on {device} ({})", human_size(device.size))?;
                label.as_ref().map_or(Ok(()), |label| write!(f, ", label {label}"))
            }
            Self::Unmark { device, .. } => write!(f, "take the mark off {device}: the file system is complete"),
            Self::MakeDirectory { at } => write!(f, "make the directory {}", printable_os(at)),
            Self::Mount { device, fs_type, at, options, .. } => {
                write!(f, "mount {device} ({}) at {} with {options}", printable(fs_type), printable_os(at))
            }
            Self::MakeSwap { file, size } => {
                write!(f, "make the swap file {} of {}", printable_os(file), human_size(*size))
            }
            Self::SwapOn { file } => write!(f, "swap on {}", printable_os(file)),
        }
    }
}

/// A step, for which volume, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// The mount point of the volume.
    #[serde(serialize_with = "serialize_path")]
    pub volume: PathBuf,
    /// What to do.
    #[serde(flatten)]
    pub step: Step,
    /// Why: what was found, as a sentence without a full stop.
    pub because: String,
}

/// Why a volume is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The mount point of the volume.
    #[serde(serialize_with = "serialize_path")]
    pub volume: PathBuf,
    /// The device, where it is about one.
    pub device: Option<String>,
    /// The cause.
    pub why: String,
    /// What a person can do.
    pub remedy: String,
    /// Whether waiting may help: a disk is not there yet, or somebody is still at work on it.
    pub may_pass: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", printable_os(&self.volume))?;
        if let Some(device) = &self.device {
            write!(f, "{}: ", printable(device))?;
        }
        write!(f, "{}; {}", self.why, self.remedy)
    }
}

/// A volume that is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// The mount point.
    #[serde(serialize_with = "serialize_path")]
    pub volume: PathBuf,
    /// The device that is mounted there.
    pub device: Target,
}

/// What is to be done, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The steps. When there are refusals, none of them is done.
    pub steps: Vec<Planned>,
    /// What cannot be done.
    pub refusals: Vec<Refusal>,
    /// What is there already, in the order of the request.
    pub settled: Vec<Settled>,
    /// What a person should know: disks that are left out, and why.
    pub notes: Vec<String>,
}

impl Plan {
    /// Whether everything is there already.
    pub fn is_done(&self) -> bool {
        self.steps.is_empty() && self.refusals.is_empty()
    }

    /// Whether more has to be planned when the steps have been done.
    pub fn goes_on(&self) -> bool {
        self.steps.iter().any(|planned| planned.step == Step::LookAgain)
    }
}

/// Where the swap file of a volume is.
pub(crate) fn swap_file(mount: &Path) -> PathBuf {
    mount.join("nvme-setup.swap")
}
