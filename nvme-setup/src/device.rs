//! What is known about one block device from the kernel.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::text::{serialize_optional_path, serialize_path, serialize_paths};

/// `major:minor`, the kernel's number for a device. It holds for one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = ();

    /// Reads `259:0`, as sysfs and mountinfo write it.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.trim().split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(drop)?, minor: minor.parse().map_err(drop)? })
    }
}

impl Serialize for DeviceNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a block device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A whole disk with a driver behind it.
    Disk,
    /// A part of a disk.
    Partition,
    /// A file as a disk.
    Loop,
    /// Memory as a disk (`ram`, `zram`).
    Ram,
    /// An array of the `md` driver.
    Array,
    /// A mapping of the device mapper: a logical volume, an encrypted volume, a path group.
    Mapping,
    /// A drive for CDs or DVDs.
    Optical,
    /// A floppy drive.
    Floppy,
    /// Anything else that is made by software (`nbd`, `drbd`, `bcache`).
    Virtual,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "a disk",
            Self::Partition => "a partition",
            Self::Loop => "a loop device",
            Self::Ram => "memory",
            Self::Array => "an array",
            Self::Mapping => "a mapping of the device mapper",
            Self::Optical => "an optical drive",
            Self::Floppy => "a floppy drive",
            Self::Virtual => "a virtual device",
        })
    }
}

/// How a device is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// An NVMe controller.
    Nvme,
    /// A virtio block device.
    Virtio,
    /// SCSI, virtio-scsi included.
    Scsi,
    /// SATA or IDE.
    Ata,
    /// USB.
    Usb,
    /// A Xen block device.
    Xen,
    /// An SD card or eMMC.
    Mmc,
    /// Not attached: made by the kernel.
    Virtual,
    /// A bus that is not known here.
    Other,
}

/// What a device is for, as far as the hardware and the root file system tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It holds the root file system, or something that holds it does.
    Root,
    /// A volume of the cloud's block storage, by model. It outlives the instance.
    CloudDisk,
    /// A disk of the host the instance runs on, by model. It comes back empty after a stop.
    InstanceStore,
    /// Another whole disk.
    DataDisk,
    /// Not a disk.
    Other,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::CloudDisk => "cloud disk",
            Self::InstanceStore => "instance store",
            Self::DataDisk => "data disk",
            Self::Other => "other",
        })
    }
}

/// A place where a device's file system is mounted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mount {
    /// The directory.
    #[serde(serialize_with = "serialize_path")]
    pub at: PathBuf,
    /// The file system's type.
    pub fs_type: String,
}

/// A block device, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name in sysfs: `nvme0n1`. A `!` stands for the `/` of the path.
    pub name: String,
    /// `/dev/nvme0n1`.
    #[serde(serialize_with = "serialize_path")]
    pub path: PathBuf,
    /// `259:0`.
    pub number: DeviceNumber,
    /// What it is.
    pub kind: Kind,
    /// How it is attached; a partition as its disk is.
    pub transport: Transport,
    /// What it is for.
    pub role: Role,
    /// In bytes; 0 for a drive without a medium or a loop device without a file.
    pub size: u64,
    /// The smallest unit that can be addressed, in bytes.
    pub logical_sector_size: u32,
    /// The smallest unit that is written in one go, in bytes.
    pub physical_sector_size: u32,
    /// Whether it says that it turns. Virtual disks often do.
    pub rotational: bool,
    /// Whether the kernel refuses to write to it.
    pub read_only: bool,
    /// Whether it, or its disk, is a medium that can be taken out.
    pub removable: bool,
    /// Whether input and output are held back (device mapper): reading it would wait until somebody resumes it.
    pub suspended: bool,
    /// The manufacturer's name for it.
    pub model: Option<String>,
    /// The serial number; a cloud's volume id.
    pub serial: Option<String>,
    /// The world-wide identifier, as the kernel puts it: the same for every path that leads to a disk.
    pub wwid: Option<String>,
    /// The file behind a loop device.
    #[serde(serialize_with = "serialize_optional_path")]
    pub backing_file: Option<PathBuf>,
    /// All names of this device in `/dev/disk/by-id`, sorted.
    #[serde(serialize_with = "serialize_paths")]
    pub by_id: Vec<PathBuf>,
    /// What it lies on: the disk of a partition, the members of an array or a mapping.
    pub parents: BTreeSet<String>,
    /// Its partitions.
    pub partitions: BTreeSet<String>,
    /// The arrays and mappings that lie on it.
    pub holders: BTreeSet<String>,
    /// Where it is mounted.
    pub mounts: Vec<Mount>,
    /// Whether it is swapped on.
    pub swap: bool,
}

impl Device {
    /// A device about which nothing but its name is known; a start for those who fill in what they know.
    pub fn new(name: impl Into<String>, number: DeviceNumber, kind: Kind) -> Self {
        let name = name.into();
        Self {
            path: Path::new("/dev").join(name.replace('!', "/")),
            name,
            number,
            kind,
            transport: Transport::Other,
            role: Role::Other,
            size: 0,
            logical_sector_size: 512,
            physical_sector_size: 512,
            rotational: false,
            read_only: false,
            removable: false,
            suspended: false,
            model: None,
            serial: None,
            wwid: None,
            backing_file: None,
            by_id: Vec::new(),
            parents: BTreeSet::new(),
            partitions: BTreeSet::new(),
            holders: BTreeSet::new(),
            mounts: Vec::new(),
            swap: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!("259:12\n".parse(), Ok(DeviceNumber { major: 259, minor: 12 }));
        for bad in ["", "259", "259:", ":1", "a:b", "-1:0", "1:2:3"] {
            assert_eq!(bad.parse::<DeviceNumber>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn an_exclamation_mark_is_a_slash_of_the_path() {
        let device = Device::new("cciss!c0d0", DeviceNumber { major: 104, minor: 0 }, Kind::Disk);
        assert_eq!(device.path, Path::new("/dev/cciss/c0d0"));
    }
}
