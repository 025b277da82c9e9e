//! Reads the devices in `/sys/class/block`.
//!
//! Devices come and go while they are being read: one that vanishes half-way was not there. Everything else that cannot
//! be read, and that a decision hangs on, is an error, never a default.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use crate::device::{Device, DeviceNumber, Kind, Transport};
use crate::inventory::InventoryError;

/// The unit of `size` in sysfs, whatever the device's own sectors are.
const SYSFS_SECTOR: u64 = 512;

/// Where the kernel's and udev's views of the machine are.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `/sys`
    pub sys: PathBuf,
    /// `/proc`
    pub proc: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
}

impl Default for Roots {
    /// This machine's.
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

/// All block devices, without what is mounted, swapped on or linked, and with the links of the stack as sysfs has them.
pub(crate) fn devices(roots: &Roots) -> Result<Vec<Device>, InventoryError> {
    let class = roots.sys.join("class/block");
    let mut devices = Vec::new();
    for entry in fs::read_dir(&class).map_err(|source| unreadable(&class, source))? {
        let entry = entry.map_err(|source| unreadable(&class, source))?;
        let Ok(name) = entry.file_name().into_string() else {
            return Err(InventoryError::Strange { path: entry.path(), why: "its name is not text".into() });
        };
        match device(roots, &name, &entry.path()) {
            Ok(Some(device)) => devices.push(device),
            Ok(None) => {}
            Err(_) if !entry.path().join("size").exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(devices)
}

/// One device, or `None` for one that is only a path to another (NVMe multipath) and cannot be opened.
fn device(roots: &Roots, name: &str, link: &Path) -> Result<Option<Device>, InventoryError> {
    let directory = fs::canonicalize(link).map_err(|source| unreadable(link, source))?;
    let attribute = |name: &str| required(&directory.join(name));
    if optional(&directory.join("hidden"))?.as_deref() == Some("1") {
        return Ok(None);
    }
    let number: DeviceNumber = attribute("dev")?
        .parse()
        .map_err(|()| InventoryError::Strange { path: directory.join("dev"), why: "it is not MAJOR:MINOR".into() })?;
    let is_partition = directory.join("partition").exists();
    // The attributes of a disk stand for its partitions, too.
    let disk = match directory.parent() {
        Some(parent) if is_partition => parent,
        _ => &directory,
    };
    let transport = transport(&directory);
    let kind = if is_partition { Kind::Partition } else { kind(name, number, &directory) };
    let mut device = Device::new(name, number, kind);
    device.path = roots.dev.join(name.replace('!', "/"));
    device.transport = transport;
    device.size = parse::<u64>(&directory.join("size"))?.saturating_mul(SYSFS_SECTOR);
    device.logical_sector_size = parse(&disk.join("queue/logical_block_size"))?;
    device.physical_sector_size = parse(&disk.join("queue/physical_block_size"))?;
    device.rotational = flag(&disk.join("queue/rotational"))?;
    device.read_only = flag(&directory.join("ro"))? || flag(&disk.join("ro"))?;
    device.removable = flag(&disk.join("removable"))?;
    device.suspended = optional(&directory.join("dm/suspended"))?.as_deref() == Some("1");
    device.backing_file = match fs::read(directory.join("loop/backing_file")) {
        Ok(path) => Some(PathBuf::from(std::ffi::OsString::from_vec(path.trim_ascii_end().to_vec()))),
        Err(_) => None,
    };
    if !is_partition {
        device.model = model(&directory, transport)?;
        device.serial = serial(&directory)?;
        device.wwid = wwid(&directory)?;
    }
    device.holders = names(&directory.join("holders"))?;
    device.parents = names(&directory.join("slaves"))?;
    if is_partition {
        let parent = disk.file_name().and_then(|name| name.to_str()).ok_or_else(|| InventoryError::Strange {
            path: directory.clone(),
            why: "it is a partition of no disk".into(),
        })?;
        device.parents.insert(parent.to_owned());
    }
    device.partitions =
        names(&directory)?.into_iter().filter(|child| directory.join(child).join("partition").exists()).collect();
    Ok(Some(device))
}

/// What a device that is no partition is.
fn kind(name: &str, number: DeviceNumber, directory: &Path) -> Kind {
    // Majors from the kernel's Documentation/admin-guide/devices.txt.
    match number.major {
        1 => Kind::Ram,
        2 => Kind::Floppy,
        7 => Kind::Loop,
        11 => Kind::Optical,
        _ if name.starts_with("zram") => Kind::Ram,
        _ if directory.join("dm").is_dir() => Kind::Mapping,
        _ if directory.join("md").is_dir() => Kind::Array,
        _ if directory.join("device").exists() => Kind::Disk,
        _ => Kind::Virtual,
    }
}

/// How a device is attached, from where it is in the tree of devices: the nearest bus that is known.
fn transport(directory: &Path) -> Transport {
    let numbered = |part: &str, prefix: &str| {
        part.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    // virtio-scsi has a host below its virtio device, and USB and SATA disks have one below theirs: what the disk is
    // attached to says more than the command set.
    let mut found = Transport::Other;
    for part in directory.components() {
        let Component::Normal(part) = part else { continue };
        let Some(part) = part.to_str() else { continue };
        found = match part {
            "nvme" | "nvme-subsystem" => return Transport::Nvme,
            "virtual" => Transport::Virtual,
            "mmc_host" => return Transport::Mmc,
            _ if part.starts_with("vbd-") => return Transport::Xen,
            _ if numbered(part, "usb") => return Transport::Usb,
            _ if numbered(part, "ata") => return Transport::Ata,
            _ if numbered(part, "host") => return Transport::Scsi,
            _ if numbered(part, "virtio") => Transport::Virtio,
            _ => found,
        };
    }
    found
}

fn model(directory: &Path, transport: Transport) -> Result<Option<String>, InventoryError> {
    let Some(model) = optional(&directory.join("device/model"))? else { return Ok(None) };
    let vendor = match transport {
        Transport::Scsi | Transport::Usb => optional(&directory.join("device/vendor"))?,
        _ => None,
    };
    Ok(Some(match vendor {
        // What libata makes up.
        Some(vendor) if vendor != "ATA" => format!("{vendor} {model}"),
        _ => model,
    }))
}

fn serial(directory: &Path) -> Result<Option<String>, InventoryError> {
    // NVMe and MMC have it at the device, virtio at the disk.
    for place in ["device/serial", "serial"] {
        if let Some(serial) = optional(&directory.join(place))? {
            return Ok(Some(serial));
        }
    }
    // SCSI: the page "unit serial number", four bytes of heading and the number.
    let page = fs::read(directory.join("device/vpd_pg80")).unwrap_or_default();
    let serial = String::from_utf8_lossy(page.get(4..).unwrap_or_default()).trim_matches(['\0', ' ']).to_owned();
    Ok(Some(serial).filter(|serial| !serial.is_empty()))
}

fn wwid(directory: &Path) -> Result<Option<String>, InventoryError> {
    // NVMe has it at the disk (the namespace), SCSI at the device.
    for place in ["wwid", "device/wwid"] {
        if let Some(wwid) = optional(&directory.join(place))? {
            return Ok(Some(wwid));
        }
    }
    Ok(None)
}

/// The names in a directory; none when there is no directory.
fn names(directory: &Path) -> Result<BTreeSet<String>, InventoryError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(unreadable(directory, source)),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(|source| unreadable(directory, source))?;
        names.insert(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// An attribute that every device has.
fn required(path: &Path) -> Result<String, InventoryError> {
    Ok(fs::read_to_string(path).map_err(|source| unreadable(path, source))?.trim().to_owned())
}

/// An attribute that some devices have. An empty one is none.
fn optional(path: &Path) -> Result<Option<String>, InventoryError> {
    match fs::read(path) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim_matches(['\0', ' ', '\n', '\t']).to_owned())
            .filter(|text| !text.is_empty())),
        // ENODEV and the like: the device has the attribute and cannot say it just now.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(unreadable(path, error)),
        Err(_) => Ok(None),
    }
}

fn parse<T: std::str::FromStr>(path: &Path) -> Result<T, InventoryError> {
    required(path)?
        .parse()
        .map_err(|_| InventoryError::Strange { path: path.to_owned(), why: "it is not a number".into() })
}

fn flag(path: &Path) -> Result<bool, InventoryError> {
    Ok(parse::<u8>(path)? != 0)
}

fn unreadable(path: &Path, source: io::Error) -> InventoryError {
    InventoryError::Unreadable { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transport_is_the_nearest_known_bus() {
        for (path, expected) in [
            ("/sys/devices/pci0000:00/0000:00:1f.0/nvme/nvme1/nvme1n1", Transport::Nvme),
            ("/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1", Transport::Nvme),
            ("/sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda/vda1", Transport::Virtio),
            ("/sys/devices/pci0000:00/0000:00:02.0/virtio1/host2/target2:0:0/2:0:0:0/block/sda", Transport::Scsi),
            ("/sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda", Transport::Ata),
            ("/sys/devices/pci0/usb1/1-1/1-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb", Transport::Usb),
            ("/sys/devices/vbd-51712/block/xvda", Transport::Xen),
            ("/sys/devices/platform/soc/mmc_host/mmc0/mmc0:0001/block/mmcblk0", Transport::Mmc),
            ("/sys/devices/virtual/block/loop0", Transport::Virtual),
            ("/sys/devices/platform/strange/block/abc", Transport::Other),
        ] {
            assert_eq!(transport(Path::new(path)), expected, "{path}");
        }
    }
}
