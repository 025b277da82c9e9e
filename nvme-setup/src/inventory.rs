//! All block devices of a machine and how they hang together.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use crate::device::{Device, DeviceNumber, Kind, Mount, Role, Transport};
use crate::mounts;
use crate::sysfs::{self, Roots};
use crate::text::{natural_key, printable, printable_os};

/// The model of an instance-store disk of Amazon EC2.
const EC2_INSTANCE_STORE: &str = "Amazon EC2 NVMe Instance Storage";
/// The models of cloud disks that are NVMe devices: Amazon EBS, Alibaba Cloud EBS.
const CLOUD_DISKS: [&str; 2] = ["Amazon Elastic Block Store", "Alibaba Cloud Elastic Block Storage"];
/// What the firmware of Alibaba Cloud's machines says of itself.
const ALIBABA: &str = "Alibaba Cloud";

/// Why there is no inventory. Half of one would be worse than none: what is not known to be mounted looks free.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// A file of the kernel's could not be read.
    #[error("cannot read {}: {source}; check that sysfs and proc are mounted, and that this is run as root", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the kernel's says something that is not understood.
    #[error("cannot understand {}: {why}; this is a fault of nvme-setup or an unknown kernel: please report it", path.display())]
    Strange {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What is known about the use of devices besides what each says of itself. Devices are named as in sysfs.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// What is mounted.
    pub mounts: Vec<(String, Mount)>,
    /// What is swapped on.
    pub swaps: Vec<String>,
    /// The names of devices in `/dev/disk/by-id`.
    pub links: Vec<(PathBuf, String)>,
    /// The devices of each file system that lies on several (btrfs) and is in use. One mount is a mount of all.
    pub pools: Vec<BTreeSet<String>>,
    /// The machine's manufacturer, as its firmware says.
    pub manufacturer: Option<String>,
}

/// The block devices of a machine. The links between them hold in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inventory {
    devices: Vec<Device>,
    notes: Vec<String>,
}

impl Inventory {
    /// Reads this machine's, or that of a test. Opens no device.
    ///
    /// # Errors
    /// When anything cannot be read or understood that a decision hangs on.
    pub fn read(roots: &Roots) -> Result<Self, InventoryError> {
        let devices = sysfs::devices(roots)?;
        let names = Names::new(&devices, roots);
        let mut facts = Facts { pools: btrfs_pools(roots), ..Facts::default() };
        let mut notes = Vec::new();

        for line in mount_lines(roots)? {
            let found = names.of_mount(&line);
            if found.is_empty() && line.at == Path::new("/") {
                notes.push(format!(
                    "the root file system ({} on {}) is on no block device that can be seen from here",
                    printable(&line.fs_type),
                    printable_os(&line.source)
                ));
            }
            let mount = Mount { at: line.at, fs_type: line.fs_type };
            facts.mounts.extend(found.into_iter().map(|name| (name, mount.clone())));
        }
        if !facts.mounts.iter().any(|(_, mount)| mount.at == Path::new("/")) && notes.is_empty() {
            notes.push("no root file system is listed, as in a chroot: the root disk is not known".to_owned());
        }

        let swaps = roots.proc.join("swaps");
        match fs::read(&swaps) {
            Ok(text) => facts.swaps.extend(mounts::swaps(&text).iter().filter_map(|path| names.of_path(path))),
            // A kernel that was built without swap.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(InventoryError::Unreadable { path: swaps, source }),
        }

        // Without udev there is no such directory.
        let by_id = roots.dev.join("disk/by-id");
        for entry in fs::read_dir(&by_id).into_iter().flatten().flatten() {
            if let Some(name) = names.of_path(&entry.path()) {
                facts.links.push((entry.path(), name));
            }
        }
        facts.manufacturer =
            fs::read_to_string(roots.sys.join("class/dmi/id/sys_vendor")).ok().map(|text| text.trim().to_owned());

        let mut inventory = Self::assemble(devices, &facts);
        inventory.notes = notes;
        Ok(inventory)
    }

    /// Puts devices and facts together: links in both directions, uses, roles. A pure function.
    pub fn assemble(devices: Vec<Device>, facts: &Facts) -> Self {
        let mut map: BTreeMap<String, Device> =
            devices.into_iter().map(|device| (device.name.clone(), device)).collect();
        connect(&mut map);
        for (name, mount) in &facts.mounts {
            let pool = facts.pools.iter().find(|pool| pool.contains(name));
            for name in pool.map_or_else(|| vec![name], |pool| pool.iter().collect()) {
                if let Some(device) = map.get_mut(name).filter(|device| !device.mounts.contains(mount)) {
                    device.mounts.push(mount.clone());
                }
            }
        }
        for name in &facts.swaps {
            if let Some(device) = map.get_mut(name) {
                device.swap = true;
            }
        }
        for (link, name) in &facts.links {
            if let Some(device) = map.get_mut(name) {
                device.by_id.push(link.clone());
            }
        }
        let is_root = |device: &&Device| device.mounts.iter().any(|mount| mount.at == Path::new("/"));
        let root: Vec<String> = map.values().filter(is_root).map(|device| device.name.clone()).collect();
        let root = closure(&root, |name| map.get(name).map(|device| &device.parents));
        for device in map.values_mut() {
            device.mounts.sort();
            device.by_id.sort();
            device.by_id.dedup();
            device.role = if root.contains(&device.name) {
                Role::Root
            } else {
                role(device, facts.manufacturer.as_deref().unwrap_or_default())
            };
        }
        let mut devices: Vec<Device> = map.into_values().collect();
        devices.sort_by_cached_key(|device| natural_key(&device.name));
        Self { devices, notes: Vec::new() }
    }

    /// All devices, in the order in which people count.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// What a person should know about how this came about.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The device with this name in sysfs.
    pub fn get(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// The device that a path or a link means, or that has this name.
    pub fn find(&self, path: &Path) -> Option<&Device> {
        if let Some(number) = device_number(path) {
            return self.devices.iter().find(|device| device.number == number);
        }
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        self.devices.iter().find(|device| device.path == real || OsStr::new(&device.name) == path.as_os_str())
    }

    /// The other disks that are this one, seen over another path: they have the same world-wide identifier. Where both say a
    /// serial number too, it must be the same; makers have been known to give a whole series one identifier.
    pub fn other_paths(&self, device: &Device) -> Vec<&Device> {
        let Some(wwid) = &device.wwid else { return Vec::new() };
        let agree = |other: &Device| match (&device.serial, &other.serial) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        let is_path = |other: &&Device| {
            other.kind == Kind::Disk && other.name != device.name && other.wwid.as_ref() == Some(wwid) && agree(other)
        };
        self.devices.iter().filter(is_path).collect()
    }

    /// All devices that lie on this one, directly or not: partitions, arrays, mappings.
    pub fn descendants(&self, device: &Device) -> Vec<&Device> {
        let on_it: BTreeMap<&str, BTreeSet<String>> = self
            .devices
            .iter()
            .map(|device| (device.name.as_str(), device.partitions.union(&device.holders).cloned().collect()))
            .collect();
        let found = closure(std::slice::from_ref(&device.name), |name| on_it.get(name));
        self.devices.iter().filter(|other| other.name != device.name && found.contains(&other.name)).collect()
    }
}

/// `start` and all that can be reached from it.
fn closure<'a>(start: &[String], next: impl Fn(&str) -> Option<&'a BTreeSet<String>>) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = start.iter().cloned().collect();
    let mut open: Vec<String> = start.to_vec();
    while let Some(name) = open.pop() {
        for other in next(&name).into_iter().flatten() {
            if found.insert(other.clone()) {
                open.push(other.clone());
            }
        }
    }
    found
}

/// Makes every link hold in both directions: read while the stack is changing, sysfs may show only one of them, and one is
/// enough to make a device used.
fn connect(map: &mut BTreeMap<String, Device>) {
    let mut edges: Vec<(String, String, bool)> = Vec::new();
    for device in map.values() {
        let is_partition = device.kind == Kind::Partition;
        edges.extend(device.parents.iter().map(|parent| (parent.clone(), device.name.clone(), is_partition)));
        edges.extend(device.partitions.iter().map(|child| (device.name.clone(), child.clone(), true)));
        edges.extend(device.holders.iter().map(|child| (device.name.clone(), child.clone(), false)));
    }
    for (parent, child, is_partition) in edges {
        if let Some(device) = map.get_mut(&parent) {
            let children = if is_partition { &mut device.partitions } else { &mut device.holders };
            children.insert(child.clone());
        }
        if let Some(device) = map.get_mut(&child) {
            device.parents.insert(parent);
        }
    }
}

/// The role of a device that does not hold the root file system.
fn role(device: &Device, manufacturer: &str) -> Role {
    if device.kind != Kind::Disk {
        return Role::Other;
    }
    match device.model.as_deref() {
        Some(EC2_INSTANCE_STORE) => return Role::InstanceStore,
        Some(model) if CLOUD_DISKS.contains(&model) => return Role::CloudDisk,
        _ => {}
    }
    match device.transport {
        // There, a cloud disk on NVMe has the model above, and one on virtio has its id as serial number.
        Transport::Nvme if manufacturer == ALIBABA => Role::InstanceStore,
        Transport::Virtio if manufacturer == ALIBABA && device.serial.is_some() => Role::CloudDisk,
        _ => Role::DataDisk,
    }
}

/// Devices by all that others call them.
struct Names<'a> {
    by_number: BTreeMap<DeviceNumber, &'a str>,
    by_path: BTreeMap<PathBuf, &'a str>,
    /// Where devices are, after links: what a path must begin with to be one.
    dev: PathBuf,
    roots: &'a Roots,
}

impl<'a> Names<'a> {
    fn new(devices: &'a [Device], roots: &'a Roots) -> Self {
        let dev = fs::canonicalize(&roots.dev).unwrap_or_else(|_| roots.dev.clone());
        Self {
            by_number: devices.iter().map(|device| (device.number, device.name.as_str())).collect(),
            by_path: devices
                .iter()
                .map(|device| (dev.join(device.name.replace('!', "/")), device.name.as_str()))
                .collect(),
            dev,
            roots,
        }
    }

    /// The device that a path in `/dev` names: by its number where it is a device, else by its name after links. The latter
    /// finds a device whose node has been removed.
    ///
    /// Other paths are not followed: there, looking may wait for ever for a server that is gone.
    fn of_path(&self, path: &Path) -> Option<String> {
        // What /proc says of /dev is looked for where devices are.
        let rest = path.strip_prefix("/dev").or_else(|_| path.strip_prefix(&self.roots.dev)).ok()?;
        if rest.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        let path = self.roots.dev.join(rest);
        let by_number = device_number(&path).and_then(|number| self.by_number.get(&number));
        let by_path = || {
            let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            let real = match real.strip_prefix(&self.roots.dev) {
                Ok(rest) => self.dev.join(rest),
                Err(_) => real,
            };
            self.by_path.get(&real)
        };
        by_number.or_else(by_path).map(|name| (*name).to_owned())
    }

    /// The devices that carry a mounted file system.
    fn of_mount(&self, line: &mounts::MountLine) -> Vec<String> {
        if let Some(name) = self.by_number.get(&line.number) {
            return vec![(*name).to_owned()];
        }
        // A server's name, or no path at all.
        if line.number.major != 0 || !line.source.as_bytes().starts_with(b"/") {
            return Vec::new();
        }
        // A file system with a number of its own. bcachefs names all its devices, with colons between them.
        let sources = line.source.as_bytes().split(|&byte| byte == b':').map(|path| Path::new(OsStr::from_bytes(path)));
        sources.filter_map(|path| self.of_path(path)).collect()
    }
}

/// The number of a device node, after links; `None` for anything else.
fn device_number(path: &Path) -> Option<DeviceNumber> {
    let metadata = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_block_device())?;
    Some(number_of(metadata.rdev()))
}

/// The kernel's number in its parts.
pub(crate) fn number_of(device: u64) -> DeviceNumber {
    DeviceNumber { major: libc::major(device), minor: libc::minor(device) }
}

/// The mounts of this process and of the first one. A service may have a mount namespace of its own, in which the mounts
/// that others see are missing.
fn mount_lines(roots: &Roots) -> Result<Vec<mounts::MountLine>, InventoryError> {
    let mut lines = Vec::new();
    for process in ["self", "1"] {
        let path = roots.proc.join(process).join("mountinfo");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(source) if process == "self" => return Err(InventoryError::Unreadable { path, source }),
            // Only for root, and hidden in some containers; then the kernel's claim on the device still protects it.
            Err(_) => continue,
        };
        let (understood, strange) = mounts::mounts(&text);
        if let Some(line) = strange.first() {
            return Err(InventoryError::Strange { path, why: format!("the line {line:?} is not a mount") });
        }
        for line in understood {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    Ok(lines)
}

/// The devices of each btrfs that is in use: mountinfo names only one of them.
fn btrfs_pools(roots: &Roots) -> Vec<BTreeSet<String>> {
    let pools = fs::read_dir(roots.sys.join("fs/btrfs")).into_iter().flatten().flatten();
    pools
        .map(|pool| {
            let devices = fs::read_dir(pool.path().join("devices")).into_iter().flatten().flatten();
            devices.map(|device| device.file_name().to_string_lossy().into_owned()).collect()
        })
        .filter(|pool: &BTreeSet<String>| !pool.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(minor: u32) -> DeviceNumber {
        DeviceNumber { major: 259, minor }
    }

    #[test]
    fn the_root_disk_is_found_through_every_layer() {
        let disk = |name: &str, minor| Device::new(name, number(minor), Kind::Disk);
        let mut partition = Device::new("vda3", number(3), Kind::Partition);
        partition.parents.insert("vda".into());
        let mut array = Device::new("md0", number(10), Kind::Array);
        array.parents.extend(["vda3".to_owned(), "vdb".to_owned()]);
        let mut mapping = Device::new("dm-0", number(11), Kind::Mapping);
        mapping.parents.insert("md0".into());
        let mount = Mount { at: "/".into(), fs_type: "ext4".into() };
        let facts = Facts { mounts: vec![("dm-0".into(), mount)], ..Facts::default() };
        let inventory = Inventory::assemble(
            vec![disk("vda", 0), disk("vdb", 1), disk("vdc", 2), partition, array, mapping],
            &facts,
        );
        let root: Vec<&str> =
            inventory.devices().iter().filter(|device| device.role == Role::Root).map(|device| &*device.name).collect();
        assert_eq!(root, ["dm-0", "md0", "vda", "vda3", "vdb"]);
        assert_eq!(inventory.get("vdb").unwrap().holders, BTreeSet::from(["md0".to_owned()]));
        assert_eq!(inventory.get("vda").unwrap().partitions, BTreeSet::from(["vda3".to_owned()]));
        let on_it: Vec<&str> =
            inventory.descendants(inventory.get("vda").unwrap()).iter().map(|device| &*device.name).collect();
        assert_eq!(on_it, ["dm-0", "md0", "vda3"]);
    }

    #[test]
    fn a_pool_is_mounted_as_a_whole() {
        let facts = Facts {
            mounts: vec![("vdb".into(), Mount { at: "/data".into(), fs_type: "btrfs".into() })],
            pools: vec![BTreeSet::from(["vdb".to_owned(), "vdc".to_owned()])],
            ..Facts::default()
        };
        let devices = ["vdb", "vdc", "vdd"].map(|name| Device::new(name, number(0), Kind::Disk)).to_vec();
        let inventory = Inventory::assemble(devices, &facts);
        let mounted = |name: &str| inventory.get(name).unwrap().mounts.len();
        assert_eq!((mounted("vdb"), mounted("vdc"), mounted("vdd")), (1, 1, 0));
    }

    #[test]
    fn roles_by_model_and_manufacturer() {
        let role_of = |model: Option<&str>, serial: Option<&str>, transport, manufacturer: &str| {
            let mut device = Device::new("x", number(0), Kind::Disk);
            device.model = model.map(str::to_owned);
            device.serial = serial.map(str::to_owned);
            device.transport = transport;
            role(&device, manufacturer)
        };
        let amazon = "Amazon EC2";
        assert_eq!(role_of(Some(EC2_INSTANCE_STORE), None, Transport::Nvme, amazon), Role::InstanceStore);
        assert_eq!(role_of(Some("Amazon Elastic Block Store"), None, Transport::Nvme, amazon), Role::CloudDisk);
        assert_eq!(role_of(Some(CLOUD_DISKS[1]), None, Transport::Nvme, ALIBABA), Role::CloudDisk);
        assert_eq!(role_of(Some("SAMSUNG MZWLR3T8"), None, Transport::Nvme, ALIBABA), Role::InstanceStore);
        assert_eq!(role_of(None, Some("bp67acfmxazb4p"), Transport::Virtio, ALIBABA), Role::CloudDisk);
        assert_eq!(role_of(None, None, Transport::Virtio, ALIBABA), Role::DataDisk);
        assert_eq!(role_of(None, Some("x"), Transport::Virtio, "QEMU"), Role::DataDisk);
    }
}
