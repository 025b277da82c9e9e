//! Inventories of machines that are made up: trees of sysfs, proc and dev in a temporary directory.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails its test by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nvme_setup::{DeviceNumber, Inventory, InventoryError, Kind, Role, Roots, Rules, Transport, judge};
use tempfile::TempDir;

/// A machine in a temporary directory.
struct Machine {
    directory: TempDir,
    mountinfo: String,
}

/// A device of one, to be given more.
struct Node<'a> {
    machine: &'a Machine,
    directory: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for part in ["sys/class/block", "proc/self", "dev/disk/by-id"] {
            fs::create_dir_all(directory.path().join(part)).unwrap();
        }
        Self { directory, mountinfo: String::new() }
    }

    fn roots(&self) -> Roots {
        let at = |part: &str| self.directory.path().join(part);
        Roots { sys: at("sys"), proc: at("proc"), dev: at("dev") }
    }

    fn path(&self, part: &str) -> PathBuf {
        self.directory.path().join(part)
    }

    fn write(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A device at a place in the tree of devices. The size is in GiB.
    fn device(&self, place: &str, number: &str, gib: u64) -> Node<'_> {
        let directory = self.path("sys/devices").join(place);
        fs::create_dir_all(&directory).unwrap();
        let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
        symlink(&directory, self.path("sys/class/block").join(&name)).unwrap();
        fs::create_dir_all(directory.join("holders")).unwrap();
        let node = Node { machine: self, directory };
        node.attribute("dev", &format!("{number}\n")).attribute("size", &format!("{}\n", gib << 21));
        node.attribute("ro", "0\n");
        let path = self.path("dev").join(name.replace('!', "/"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        node
    }

    /// A whole disk, with what only disks have.
    fn disk(&self, place: &str, number: &str, gib: u64) -> Node<'_> {
        let node = self.device(place, number, gib);
        node.attribute("removable", "0\n").attribute("queue/logical_block_size", "512\n");
        node.attribute("queue/physical_block_size", "4096\n").attribute("queue/rotational", "0\n");
        node
    }

    fn nvme(&self, index: u32, model: &str, gib: u64) -> Node<'_> {
        let place = format!("pci0000:00/0000:00:1{index}.0/nvme/nvme{index}/nvme{index}n1");
        let node = self.disk(&place, &format!("259:{}", index * 10), gib);
        // As the kernel writes it: padded to its field.
        node.attribute("device/model", &format!("{model:<40}\n"));
        node.attribute("device/serial", &format!("serial{index:<14}\n"));
        node
    }

    fn by_id(&self, link: &str, name: &str) {
        symlink(format!("../../{name}"), self.path("dev/disk/by-id").join(link)).unwrap();
    }

    fn mount(&mut self, number: &str, at: &str, fs_type: &str, source: &str) -> &mut Self {
        self.mountinfo += &format!("30 1 {number} / {at} rw,relatime shared:1 - {fs_type} {source} rw\n");
        self
    }

    fn read(&self) -> Result<Inventory, InventoryError> {
        self.write("proc/self/mountinfo", &self.mountinfo);
        Inventory::read(&self.roots())
    }
}

impl Node<'_> {
    fn attribute(&self, name: &str, text: &str) -> &Self {
        self.machine.write(self.directory.join(name), text);
        self
    }

    fn partition(&self, name: &str, number: &str, gib: u64) {
        let place = self.directory.strip_prefix(self.machine.path("sys/devices")).unwrap().join(name);
        self.machine.device(place.to_str().unwrap(), number, gib).attribute("partition", "1\n");
    }

    fn lies_on(&self, lower: &[&str]) {
        for name in lower {
            let lower = fs::canonicalize(self.machine.path("sys/class/block").join(name)).unwrap();
            fs::create_dir_all(self.directory.join("slaves")).unwrap();
            symlink(&lower, self.directory.join("slaves").join(name)).unwrap();
            symlink(&self.directory, lower.join("holders").join(self.directory.file_name().unwrap())).unwrap();
        }
    }
}

/// An instance on Amazon EC2: root on EBS, one EBS data disk, two instance-store disks.
fn ec2() -> Machine {
    let mut machine = Machine::new();
    let root = machine.nvme(0, "Amazon Elastic Block Store", 8);
    root.partition("nvme0n1p1", "259:1", 7);
    root.partition("nvme0n1p14", "259:2", 1);
    machine.nvme(1, "Amazon EC2 NVMe Instance Storage", 894);
    machine.nvme(2, "Amazon EC2 NVMe Instance Storage", 894);
    machine.nvme(3, "Amazon Elastic Block Store", 100);
    machine.by_id("nvme-Amazon_Elastic_Block_Store_vol0123", "nvme0n1");
    machine.by_id("nvme-nvme.1d0f-766f6c30313233", "nvme0n1");
    machine.by_id("nvme-Amazon_Elastic_Block_Store_vol0123-part1", "nvme0n1p1");
    machine.by_id("nvme-dangling", "nvme9n1");
    machine.mount("259:1", "/", "ext4", "/dev/root").mount("259:2", "/boot/efi", "vfat", "/dev/nvme0n1p14");
    machine.mount("0:21", "/proc", "proc", "proc");
    machine
}

#[test]
fn an_ec2_instance() {
    let machine = ec2();
    let inventory = machine.read().unwrap();
    let names: Vec<&str> = inventory.devices().iter().map(|device| &*device.name).collect();
    assert_eq!(names, ["nvme0n1", "nvme0n1p1", "nvme0n1p14", "nvme1n1", "nvme2n1", "nvme3n1"]);
    assert_eq!(inventory.notes(), [""; 0]);
    let roles: Vec<Role> = inventory.devices().iter().map(|device| device.role).collect();
    let store = Role::InstanceStore;
    assert_eq!(roles, [Role::Root, Role::Root, Role::Other, store, store, Role::CloudDisk]);

    let root = inventory.get("nvme0n1").unwrap();
    assert_eq!(root.partitions.iter().collect::<Vec<_>>(), ["nvme0n1p1", "nvme0n1p14"]);
    assert_eq!(root.by_id.len(), 2, "{:?}", root.by_id);
    assert_eq!((root.kind, root.transport), (Kind::Disk, Transport::Nvme));
    let partition = inventory.get("nvme0n1p14").unwrap();
    assert_eq!((partition.kind, partition.logical_sector_size), (Kind::Partition, 512));
    assert_eq!(partition.parents.iter().collect::<Vec<_>>(), ["nvme0n1"]);
    assert_eq!(partition.mounts[0].at, Path::new("/boot/efi"));
    let store = inventory.get("nvme1n1").unwrap();
    assert_eq!(store.model.as_deref(), Some("Amazon EC2 NVMe Instance Storage"));
    assert_eq!(store.serial.as_deref(), Some("serial1"));
    assert_eq!((store.size, store.physical_sector_size), (894 << 30, 4096));
    assert_eq!(store.number, DeviceNumber { major: 259, minor: 10 });
    // By a link, and by its bare name.
    let link = machine.path("dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123");
    assert_eq!(inventory.find(&link).unwrap().name, "nvme0n1");
    assert_eq!(inventory.find(Path::new("nvme2n1")).unwrap().name, "nvme2n1");

    let verdict = judge(&inventory, root, None, &Rules::default()).to_string();
    for part in [
        "no: the root file system lies on it; nvme0n1p1 is mounted at /; nvme0n1p14 is mounted at /boot/efi",
        "it has partitions: nvme0n1p1, nvme0n1p14",
    ] {
        assert!(verdict.contains(part), "{verdict}");
    }
}

#[test]
fn root_on_an_encrypted_array_reaches_every_member() {
    let mut machine = Machine::new();
    machine.nvme(0, "one", 10).partition("nvme0n1p2", "259:1", 9);
    machine.nvme(1, "two", 10);
    machine.nvme(2, "three", 10);
    let array = machine.disk("virtual/block/md127", "9:127", 18);
    array.attribute("md/level", "raid0\n").lies_on(&["nvme0n1p2", "nvme1n1"]);
    let mapping = machine.disk("virtual/block/dm-0", "253:0", 18);
    mapping.attribute("dm/name", "root\n").attribute("dm/suspended", "0\n").lies_on(&["md127"]);
    machine.mount("253:0", "/", "xfs", "/dev/mapper/root");
    let inventory = machine.read().unwrap();
    let role = |name: &str| inventory.get(name).unwrap().role;
    for name in ["nvme0n1", "nvme0n1p2", "nvme1n1", "md127", "dm-0"] {
        assert_eq!(role(name), Role::Root, "{name}");
    }
    assert_eq!(role("nvme2n1"), Role::DataDisk);
    assert_eq!(inventory.get("md127").unwrap().kind, Kind::Array);
    assert_eq!(inventory.get("dm-0").unwrap().kind, Kind::Mapping);
    let verdict = judge(&inventory, inventory.get("nvme1n1").unwrap(), None, &Rules::default()).to_string();
    assert!(verdict.contains("dm-0 is mounted at /") && verdict.contains("it is in use by md127"), "{verdict}");
}

#[test]
fn a_btrfs_without_a_device_number_is_found_by_its_source() {
    let mut machine = Machine::new();
    for index in 0..5 {
        machine.nvme(index, "x", 10);
    }
    machine.mount("0:40", "/", "btrfs", "/dev/nvme0n1").mount(
        "0:50",
        "/my\\040data",
        "bcachefs",
        "/dev/nvme2n1:/dev/nvme3n1",
    );
    // What only looks like a path is not followed: its file system may not answer.
    machine.mount("0:60", "/nas", "nfs4", "server:/dev/nvme4n1").mount("0:61", "/pool", "fuse", "/dev/../nvme4n1");
    for name in ["nvme0n1", "nvme1n1"] {
        machine.write(format!("sys/fs/btrfs/c8b5-b2da/devices/{name}"), "");
    }
    let inventory = machine.read().unwrap();
    let mounts =
        |name: &str| inventory.get(name).unwrap().mounts.iter().map(|mount| mount.at.clone()).collect::<Vec<_>>();
    assert_eq!(mounts("nvme0n1"), [PathBuf::from("/")]);
    assert_eq!(mounts("nvme1n1"), [PathBuf::from("/")]);
    assert_eq!(inventory.get("nvme1n1").unwrap().role, Role::Root);
    assert_eq!(mounts("nvme2n1"), [PathBuf::from("/my data")]);
    assert_eq!(mounts("nvme3n1"), [PathBuf::from("/my data")]);
    assert!(mounts("nvme4n1").is_empty());
}

#[test]
fn a_mount_that_only_the_first_process_sees_counts() {
    let mut machine = ec2();
    machine.mount("0:30", "/elsewhere", "tmpfs", "tmpfs");
    machine.write("proc/1/mountinfo", "30 1 259:20 / /data rw - xfs /dev/nvme2n1 rw\n");
    let inventory = machine.read().unwrap();
    assert_eq!(inventory.get("nvme2n1").unwrap().mounts[0].at, Path::new("/data"));
}

#[test]
fn swap_on_a_device_and_in_a_file() {
    let machine = ec2();
    machine.write(
        "proc/swaps",
        "Filename\tType\tSize\tUsed\tPriority\n/dev/nvme1n1 partition 1 0 -2\n/swapfile file 1 0 -3\n\
         /dev/disk/by-id/swap-link partition 1 0 -4\n/dev/nvme2n1\\040(deleted) partition 1 0 -5\n",
    );
    machine.by_id("swap-link", "nvme3n1");
    fs::remove_file(machine.path("dev/nvme2n1")).unwrap();
    let inventory = machine.read().unwrap();
    let swap: Vec<&str> = inventory.devices().iter().filter(|device| device.swap).map(|device| &*device.name).collect();
    assert_eq!(swap, ["nvme1n1", "nvme2n1", "nvme3n1"]);
}

#[test]
fn an_alibaba_instance() {
    let mut machine = Machine::new();
    machine.write("sys/class/dmi/id/sys_vendor", "Alibaba Cloud\n");
    let root = machine.disk("pci0000:00/0000:00:05.0/virtio2/block/vda", "253:0", 40);
    root.attribute("device/device", "0x0002\n").attribute("serial", "bp1root");
    root.partition("vda1", "253:1", 39);
    let data = machine.disk("pci0000:00/0000:00:06.0/virtio3/block/vdb", "253:16", 100);
    data.attribute("device/device", "0x0002\n").attribute("serial", "bp1data");
    machine.nvme(0, "Alibaba Cloud Elastic Block Storage", 20);
    machine.nvme(1, "Some maker's 1.8 TB", 1788);
    machine.mount("253:1", "/", "ext4", "/dev/vda1");
    let inventory = machine.read().unwrap();
    let role = |name: &str| inventory.get(name).unwrap().role;
    assert_eq!([role("vda"), role("vdb")], [Role::Root, Role::CloudDisk]);
    assert_eq!([role("nvme0n1"), role("nvme1n1")], [Role::CloudDisk, Role::InstanceStore]);
    assert_eq!(inventory.get("vdb").unwrap().serial.as_deref(), Some("bp1data"));
    assert_eq!(inventory.get("vdb").unwrap().transport, Transport::Virtio);
}

#[test]
fn drives_memory_loops_and_multipath() {
    let mut machine = Machine::new();
    machine.disk("virtual/block/loop3", "7:3", 1).attribute("loop/backing_file", "/var/my file.img\n");
    machine.disk("virtual/block/ram0", "1:0", 1);
    machine.disk("virtual/block/zram0", "252:0", 1);
    machine.disk("pci0/ata1/host0/target0:0:0/0:0:0:0/block/sr0", "11:0", 1).attribute("removable", "1\n");
    machine.disk("virtual/block/nbd0", "43:0", 1);
    let scsi = machine.disk("pci0/virtio4/host2/target2:0:0/2:0:0:0/block/sda", "8:0", 5);
    scsi.attribute("device/model", "Disk  \n").attribute("device/vendor", "QEMU   \n").attribute("ro", "1\n");
    scsi.attribute("device/vpd_pg80", "\0\u{0}\0\u{8}SER-0001").attribute("device/wwid", "naa.5000c500a0000001\n");
    machine.disk("virtual/block/cciss!c0d0", "104:0", 1).attribute("device/model", "x\n");
    // The path of an NVMe disk with several: no device node, and not to be opened.
    machine.disk("pci0/nvme/nvme7/nvme7c7n1", "0:0", 5).attribute("hidden", "1\n");
    let dangling = machine.path("sys/class/block/gone");
    symlink(machine.path("sys/devices/gone"), dangling).unwrap();
    machine.mount("0:22", "/", "overlay", "overlay");

    let inventory = machine.read().unwrap();
    let kind = |name: &str| inventory.get(name).unwrap().kind;
    assert_eq!([kind("loop3"), kind("ram0"), kind("zram0")], [Kind::Loop, Kind::Ram, Kind::Ram]);
    assert_eq!([kind("sr0"), kind("nbd0"), kind("sda")], [Kind::Optical, Kind::Virtual, Kind::Disk]);
    assert_eq!(inventory.get("loop3").unwrap().backing_file.as_deref(), Some(Path::new("/var/my file.img")));
    let scsi = inventory.get("sda").unwrap();
    assert_eq!((scsi.model.as_deref(), scsi.serial.as_deref()), (Some("QEMU Disk"), Some("SER-0001")));
    assert_eq!(scsi.wwid.as_deref(), Some("naa.5000c500a0000001"));
    assert!(scsi.read_only && inventory.get("sr0").unwrap().removable);
    assert_eq!(inventory.get("cciss!c0d0").unwrap().path, machine.path("dev/cciss/c0d0"));
    assert!(inventory.get("nvme7c7n1").is_none() && inventory.get("gone").is_none());
    assert!(inventory.notes()[0].contains("the root file system (overlay on overlay) is on no block device"));
}

#[test]
fn half_an_inventory_is_none() {
    // Without mounts every disk would look free.
    let machine = ec2();
    let error = Inventory::read(&machine.roots()).unwrap_err().to_string();
    assert!(error.contains("proc/self/mountinfo") && error.contains("check that"), "{error}");

    let mut machine = ec2();
    machine.mountinfo += "strange\n";
    let error = machine.read().unwrap_err().to_string();
    assert!(error.contains("the line \"strange\" is not a mount"), "{error}");

    let machine = ec2();
    let device = machine.path("sys/class/block/nvme1n1");
    fs::write(device.join("ro"), "maybe\n").unwrap();
    let error = machine.read().unwrap_err().to_string();
    assert!(error.contains("nvme1n1/ro: it is not a number"), "{error}");
    fs::remove_file(device.join("ro")).unwrap();
    let error = machine.read().unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains("nvme1n1/ro"), "{error}");
}
