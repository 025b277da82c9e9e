//! Volumes on real block devices: made, found again, interrupted everywhere, taken away. Needs root and loop devices.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails its test by panicking")]

mod common;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nvme_setup::{Event, Fs, Node, Report, Request, Setup, SetupError, Step, Volume, What};
use tempfile::TempDir;

use common::{Disk, SIZE, gpt, run};

/// A node with a place for its mount points, its lock and its programs. What it has mounted goes with it.
struct Place {
    directory: TempDir,
    setup: Setup,
}

impl Place {
    fn new() -> Self {
        Self::of_node("i-test")
    }

    fn of_node(id: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("nvme-setup-place-").tempdir().unwrap();
        fs::create_dir(directory.path().join("programs")).unwrap();
        let setup = Setup::new(Node::new(id))
            .with_lock(directory.path().join("lock"))
            .with_programs(directory.path().join("programs"));
        Self { directory, setup }
    }

    fn at(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.directory.path()).unwrap().join(name)
    }

    /// One volume on one disk.
    fn request(&self, disk: &Disk) -> Request {
        Request { volumes: vec![Volume::new(What::Device(disk.path.clone()), self.at("data"))], wait: 0 }
    }

    fn ext4(&self, disk: &Disk) -> Request {
        let mut request = self.request(disk);
        request.volumes[0].fs = Some(Fs::Ext4);
        request
    }

    fn apply(&self, request: &Request) -> Result<Report, SetupError> {
        self.setup.apply(request, &mut |_| ControlFlow::Continue(()))
    }

    /// Applies, and stops before the step with this number.
    fn apply_until(&self, request: &Request, number: usize) -> Result<Report, SetupError> {
        let mut left = number;
        self.setup.apply(request, &mut |event| match event {
            Event::Begin(_) if left == 0 => ControlFlow::Break(()),
            Event::Begin(_) => {
                left -= 1;
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        })
    }

    /// As after a reboot: nothing is mounted.
    fn reboot(&self) {
        for at in mounts_below(&fs::canonicalize(self.directory.path()).unwrap()) {
            for line in fs::read_to_string("/proc/swaps").unwrap().lines() {
                if let Some(file) = line.split_whitespace().next().filter(|file| Path::new(file).starts_with(&at)) {
                    run("swapoff", "mount", &[file]);
                }
            }
            umount2(&at, MntFlags::empty()).unwrap();
        }
    }

    /// A program that is run in place of the system's.
    fn program(&self, name: &str, script: &str) {
        let path = self.directory.path().join("programs").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn forget_program(&self, name: &str) {
        fs::remove_file(self.directory.path().join("programs").join(name)).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A panic here would hide the one that ended the test; a disk that stays in use is seen when it is detached.
        let Ok(root) = fs::canonicalize(self.directory.path()) else { return };
        for at in mounts_below(&root) {
            let swap = at.join("nvme-setup.swap");
            if fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.contains(&*swap.to_string_lossy())) {
                let _ = Command::new("/sbin/swapoff").arg(&swap).status();
            }
            let _ = umount2(&at, MntFlags::MNT_DETACH);
        }
    }
}

/// Mount points below a directory, the inner ones first.
fn mounts_below(root: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let paths = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.starts_with(root)).collect();
    paths.sort();
    paths.reverse();
    paths
}

fn steps(report: &Report) -> Vec<String> {
    report.done.iter().map(|planned| planned.step.to_string()).collect()
}

fn refused(result: Result<Report, SetupError>) -> String {
    match result {
        Err(SetupError::Refused(plan)) => plan.refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_is_made_mounted_and_found_again() {
    for fs_name in [Fs::Xfs, Fs::Ext4] {
        let (disk, place) = (Disk::new(SIZE), Place::new());
        let mut request = place.request(&disk);
        request.volumes[0].fs = Some(fs_name);
        request.volumes[0].label = Some("scratch".into());
        let report = place.apply(&request).unwrap();
        assert_eq!(steps(&report).len(), 5, "{report:?}");
        fs::write(place.at("data/kept"), "kept").unwrap();
        let shown =
            run("findmnt", "util-linux", &["-n", "-o", "FSTYPE,OPTIONS,LABEL", place.at("data").to_str().unwrap()]);
        assert!(shown.contains(fs_name.name()) && shown.contains("noatime"), "{shown}");
        assert_eq!(run("blkid", "util-linux", &["-p", "-o", "value", "-s", "LABEL", disk.path()]).trim(), "scratch");

        // A second run does nothing, and says what is there.
        let report = place.apply(&request).unwrap();
        assert_eq!((steps(&report), report.settled.len()), (Vec::new(), 1));
        assert_eq!(report.settled[0].device.path, disk.path);

        place.reboot();
        assert_eq!(steps(&place.apply(&request).unwrap()).len(), 1);
        assert_eq!(fs::read_to_string(place.at("data/kept")).unwrap(), "kept");

        // Nothing of the mark is left.
        place.reboot();
        let mut block = [1; 4096];
        File::open(&disk.path).unwrap().read_exact_at(&mut block, SIZE - (1 << 20)).unwrap();
        assert_eq!(block, [0; 4096]);
        // A new mount point does not matter to a volume with a label.
        request.volumes[0].mount = place.at("elsewhere");
        assert_eq!(steps(&place.apply(&request).unwrap()).len(), 2);
        assert!(place.at("elsewhere/kept").exists());
    }
}

#[test]
fn an_emptied_instance_store_is_made_anew() {
    let place = Place::new();
    let disk = Disk::new(SIZE);
    let request = place.request(&disk);
    place.apply(&request).unwrap();
    place.reboot();
    let device = File::options().write(true).open(&disk.path).unwrap();
    let zeros = vec![0; 4 << 20];
    for at in (0..SIZE).step_by(zeros.len()) {
        device.write_all_at(&zeros, at).unwrap();
    }
    drop(device);
    assert_eq!(steps(&place.apply(&request).unwrap()).len(), 4);
}

/// Disks with something on them, each with what the refusal has to say.
fn contents() -> Vec<(&'static str, Disk, &'static str)> {
    let bytes = |pieces: &'static [(u64, &'static [u8])]| {
        Disk::prepared(SIZE, &[], |file| {
            let file = File::options().write(true).open(file).unwrap();
            pieces.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
        })
    };
    let torn = |program: &str, package: &str, at: u64| {
        Disk::prepared(SIZE, &[], |file| {
            run(program, package, &["-q", file.to_str().unwrap()]);
            File::options().write(true).open(file).unwrap().write_all_at(&[0; 4], at).unwrap();
        })
    };
    let swap = Disk::prepared(SIZE, &[], |file| {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        run("mkswap", "util-linux", &["--quiet", file.to_str().unwrap()]);
    });
    vec![
        ("gpt", Disk::prepared(SIZE, &[], |file| gpt(file, SIZE).unwrap()), "gpt partition table"),
        (
            "mbr",
            bytes(&[(446, &[0x80, 0, 2, 0, 0x83, 0, 9, 0, 0, 8, 0, 0, 0, 0, 1, 0]), (510, &[0x55, 0xAA])]),
            "carries",
        ),
        ("ext2", Disk::formatted("mkfs.ext4", "e2fsprogs", &["-q", "-t", "ext2"]), "carries ext2"),
        ("ext3", Disk::formatted("mkfs.ext4", "e2fsprogs", &["-q", "-t", "ext3"]), "carries ext3"),
        (
            "ext4",
            Disk::formatted("mkfs.ext4", "e2fsprogs", &["-q", "-L", "theirs"]),
            "carries ext4 labelled \"theirs\"",
        ),
        ("xfs", Disk::formatted("mkfs.xfs", "xfsprogs", &["-q"]), "carries xfs"),
        ("swap", swap, "carries swap"),
        // Superblocks by hand, where their programs are not to be had everywhere: whatever blkid makes of them.
        ("btrfs", bytes(&[(0x1_0040, b"_BHRfS_M")]), "carries"),
        ("vfat", bytes(&[(0, b"\xEB\x58\x90mkfs.fat\0\x02"), (82, b"FAT32   "), (510, &[0x55, 0xAA])]), "carries"),
        ("lvm", bytes(&[(512, b"LABELONE\x01\0\0\0\0\0\0\0"), (536, b"LVM2 001")]), "carries"),
        ("md", bytes(&[(4096, b"\xFC\x4E\x2B\xA9\x01\0\0\0")]), "carries"),
        ("md at the end", bytes(&[(SIZE - 8192, b"\xFC\x4E\x2B\xA9\x01\0\0\0")]), "carries"),
        ("luks", bytes(&[(0, b"LUKS\xBA\xBE\x00\x01")]), "carries"),
        ("zfs", bytes(&[(131_072, b"\x0C\xB1\xBA\0\0\0\0\0"), (SIZE - 131_072, b"\x0C\xB1\xBA\0\0\0\0\0")]), "carries"),
        ("start", bytes(&[(0, b"x")]), "the byte at 0 is not zero"),
        ("middle", bytes(&[(SIZE / 4, b"x")]), "is not zero"),
        ("end", bytes(&[(SIZE - 1, b"x")]), "is not zero"),
        ("torn ext4", torn("mkfs.ext4", "e2fsprogs", 1024 + 56), "is not zero"),
        ("torn xfs", torn("mkfs.xfs", "xfsprogs", 0), "is not zero"),
    ]
}

#[test]
fn nothing_that_carries_anything_is_touched() {
    let place = Place::new();
    for (name, disk, expected) in contents() {
        for mut request in [place.request(&disk), place.ext4(&disk)] {
            disk.remember();
            let text = refused(place.apply(&request));
            assert!(text.contains(expected) && text.contains(disk.path()), "{name}: {text}");
            assert!(text.contains("if nothing on it is needed: wipefs --all"), "{name}: {text}");
            request.volumes[0].what = What::Devices(vec![disk.path.clone()]);
            refused(place.apply(&request));
            request.volumes[0].each = true;
            refused(place.apply(&request));
            disk.is_as_remembered();
        }
    }
    assert!(!place.at("data").exists());
}

#[test]
fn another_nodes_volume_is_refused_and_can_be_mounted_as_it_is() {
    let (disk, first, second) = (Disk::new(SIZE), Place::of_node("i-one"), Place::of_node("i-two"));
    first.apply(&first.request(&disk)).unwrap();
    fs::write(first.at("data/kept"), "kept").unwrap();
    first.reboot();
    disk.remember();
    let mut request = second.request(&disk);
    // Even at the same mount point.
    let text = refused(second.apply(&request));
    assert!(text.contains("it was made by nvme-setup on another node") && text.contains("existing"), "{text}");
    disk.is_as_remembered();
    request.volumes[0].existing = true;
    assert_eq!(steps(&second.apply(&request).unwrap()).len(), 2);
    assert_eq!(fs::read_to_string(second.at("data/kept")).unwrap(), "kept");
}

#[test]
fn existing_never_formats() {
    let place = Place::new();
    let disk = Disk::new(SIZE);
    let mut request = place.request(&disk);
    request.volumes[0].existing = true;
    disk.remember();
    let text = refused(place.apply(&request));
    assert!(text.contains("`existing` wants a file system, and the device is empty"), "{text}");
    disk.is_as_remembered();
    let disk = Disk::formatted("mkfs.ext4", "e2fsprogs", &["-q"]);
    request.volumes[0].what = What::Device(disk.path.clone());
    assert_eq!(steps(&place.apply(&request).unwrap()).len(), 2);
    assert_eq!(steps(&place.apply(&request).unwrap()), Vec::<String>::new());
    place.reboot();
    assert_eq!(steps(&place.apply(&request).unwrap()).len(), 1);
}

#[test]
fn a_run_that_stops_between_any_two_steps_is_taken_up() {
    for fs_name in [Fs::Xfs, Fs::Ext4] {
        let place = Place::new();
        for number in 0..20 {
            let disk = Disk::new(SIZE);
            let mut request = place.request(&disk);
            request.volumes[0].fs = Some(fs_name);
            request.volumes[0].swap = Some(16);
            let stopped = match place.apply_until(&request, number) {
                Err(SetupError::Stopped(_)) => true,
                Ok(_) => false,
                Err(error) => panic!("{number}: {error}"),
            };
            // Half of the time the machine is started again in between.
            if number % 2 == 1 {
                place.reboot();
            }
            place.apply(&request).unwrap_or_else(|error| panic!("{fs_name}, after {number} steps: {error}"));
            assert_eq!(steps(&place.apply(&request).unwrap()), Vec::<String>::new());
            place.setup.release(Some(&request)).unwrap();
            assert!(mounts_below(&place.at("data")).is_empty());
            if !stopped {
                assert!(number >= 7, "{number}");
                return_to_empty(&place);
                break;
            }
            return_to_empty(&place);
        }
    }
}

fn return_to_empty(place: &Place) {
    fs::remove_dir(place.at("data")).unwrap();
}

/// The path of a program of the system.
fn system_program(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed; install the package that has it"))
}

/// Makes `mkfs` die before its write with this number.
fn kill_mkfs_at(place: &Place, name: &str, number: u32) {
    let (strace, mkfs) = (system_program("strace"), system_program(name));
    place.program(
        name,
        &format!(
            "exec {} -f -qq -o /dev/null -e trace=pwrite64 -e inject=pwrite64:signal=SIGKILL:when={number} {} \"$@\"",
            strace.display(),
            mkfs.display()
        ),
    );
}

#[test]
fn mkfs_xfs_that_is_killed_at_any_write_is_done_again() {
    let place = Place::new();
    let (mut killed, mut cleared) = (0, 0);
    for number in (1..100).step_by(6) {
        let disk = Disk::new(SIZE);
        let request = place.request(&disk);
        kill_mkfs_at(&place, "mkfs.xfs", number);
        let result = place.apply(&request);
        place.forget_program("mkfs.xfs");
        match result {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("signal: 9"), "{error}"),
        }
        killed += 1;
        // It may happen twice.
        if number % 2 == 0 {
            kill_mkfs_at(&place, "mkfs.xfs", number / 2);
            assert!(place.apply(&request).is_err());
            place.forget_program("mkfs.xfs");
        }
        let report = place.apply(&request).unwrap_or_else(|error| panic!("killed at write {number}: {error}"));
        cleared += usize::from(report.done.iter().any(|planned| matches!(planned.step, Step::Clear { .. })));
        fs::write(place.at("data/file"), "content").unwrap();
        place.reboot();
        run("xfs_repair", "xfsprogs", &["-n", disk.path()]);
    }
    assert!((6..17).contains(&killed) && cleared > 4, "{killed} {cleared}");
}

#[test]
fn an_unfinished_ext4_is_finished_or_refused_and_never_mounted() {
    let place = Place::new();
    let (mut killed, mut refusals) = (0, 0);
    for number in (1..500).step_by(53) {
        let disk = Disk::new(SIZE);
        let request = place.ext4(&disk);
        kill_mkfs_at(&place, "mkfs.ext4", number);
        let result = place.apply(&request);
        place.forget_program("mkfs.ext4");
        match result {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("signal: 9"), "{error}"),
        }
        killed += 1;
        disk.remember();
        match place.apply(&request) {
            Ok(_) => {
                place.reboot();
                run("e2fsck", "e2fsprogs", &["-f", "-n", disk.path()]);
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("this node began to make and did not finish"), "{text}");
                assert!(text.contains("wipefs --all"), "{text}");
                disk.is_as_remembered();
                refusals += 1;
            }
        }
    }
    assert!((4..10).contains(&killed) && refusals > 1, "{killed} {refusals}");
}

#[test]
fn what_somebody_puts_on_an_unfinished_volume_is_never_erased() {
    let place = Place::new();
    for (name, at, bytes) in [
        ("first", 64 << 10, &b"somebody's"[..]),
        ("second", SIZE / 4 + 8192 - 10, b"somebody's"),
        ("last", SIZE - 10, b"somebody's"),
        ("gpt", 512, b"EFI PART\x00\x00\x01\x00\x5C\x00\x00\x00"),
    ] {
        let disk = Disk::new(SIZE);
        let request = place.request(&disk);
        kill_mkfs_at(&place, "mkfs.xfs", 30);
        place.apply(&request).unwrap_err();
        place.forget_program("mkfs.xfs");
        let device = File::options().write(true).open(&disk.path).unwrap();
        // A whole block that is theirs, as any file system writes.
        device.write_all_at(&[0; 4096], at / 4096 * 4096).unwrap();
        device.write_all_at(bytes, at).unwrap();
        drop(device);
        disk.remember();
        let text = refused(place.apply(&request));
        assert!(text.contains("something that cannot be proved to be a part of it"), "{name}: {text}");
        disk.is_as_remembered();
    }
}

#[test]
fn what_appears_after_the_plan_is_seen_before_the_step() {
    // Somebody writes to the disk after each step of ours, before the next one.
    for (number, at) in [(0, 5 << 20), (1, 0), (1, SIZE - 4096)] {
        let (place, disk) = (Place::new(), Disk::new(SIZE));
        // The first is between samples: it has to be where samples are.
        let at = if number == 0 { SIZE / 4 } else { at };
        let mut left = number;
        let result = place.setup.apply(&place.request(&disk), &mut |event| {
            if matches!(event, Event::Begin(_)) {
                if left == 0 {
                    let device = File::options().write(true).open(&disk.path).unwrap();
                    device.write_all_at(b"theirs", at).unwrap();
                    device.sync_all().unwrap();
                    disk.remember();
                }
                left -= 1;
            }
            ControlFlow::Continue(())
        });
        let error = result.unwrap_err().to_string();
        assert!(error.contains("nothing was changed"), "{error}");
        disk.is_as_remembered();
    }
}

#[test]
fn a_copy_of_a_volume_is_refused() {
    let place = Place::new();
    let disk = Disk::new(SIZE);
    place.apply(&place.request(&disk)).unwrap();
    place.reboot();
    let original = disk.directory.path().join("disk");
    let copy = Disk::prepared(SIZE, &[], |file| {
        run("cp", "coreutils", &["--sparse=always", original.to_str().unwrap(), file.to_str().unwrap()]);
    });
    let mut request = place.request(&disk);
    request.volumes[0].what = What::Devices(vec![disk.path.clone(), copy.path.clone()]);
    let text = refused(place.apply(&request));
    assert!(text.contains("several disks carry this volume"), "{text}");
}

#[test]
fn one_volume_for_each_disk() {
    let place = Place::new();
    let disks = [Disk::new(SIZE), Disk::new(SIZE)];
    let mut request = place.request(&disks[0]);
    request.volumes[0].what = What::Devices(disks.iter().map(|disk| disk.path.clone()).collect());
    request.volumes[0].each = true;
    assert_eq!(steps(&place.apply(&request).unwrap()).len(), 10);
    fs::write(place.at("data/1/kept"), "kept").unwrap();
    place.reboot();
    // The other way round, and each is where it was.
    request.volumes[0].what = What::Devices(disks.iter().rev().map(|disk| disk.path.clone()).collect());
    assert_eq!(steps(&place.apply(&request).unwrap()).len(), 2);
    assert!(place.at("data/1/kept").exists());
    let released = place.setup.release(Some(&request)).unwrap();
    assert_eq!(released.unmounted, [place.at("data/1"), place.at("data/0")]);
}

#[test]
fn a_mount_point_with_something_in_it_is_refused() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let request = place.request(&disk);
    fs::create_dir(place.at("data")).unwrap();
    fs::write(place.at("data/file"), "").unwrap();
    disk.remember();
    assert!(refused(place.apply(&request)).contains("the directory is not empty"));
    fs::remove_dir_all(place.at("data")).unwrap();
    std::os::unix::fs::symlink("/var", place.at("data")).unwrap();
    assert!(refused(place.apply(&request)).contains("reached through a symbolic link and really is /var"));
    disk.is_as_remembered();
}

#[test]
fn swap_on_a_volume() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let mut request = place.request(&disk);
    request.volumes[0].swap = Some(32);
    let file = place.at("data/nvme-setup.swap");
    let is_on = || fs::read_to_string("/proc/swaps").unwrap().contains(file.to_str().unwrap());
    place.apply(&request).unwrap();
    assert!(is_on());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(steps(&place.apply(&request).unwrap()), Vec::<String>::new());
    let released = place.setup.release(Some(&request)).unwrap();
    assert_eq!((released.swapped_off, released.unmounted), (vec![file.clone()], vec![place.at("data")]));
    assert!(!is_on());
    // What is left of an interrupted one does not matter; what is not ours is not taken.
    place.apply(&request).unwrap();
    run("swapoff", "mount", &[file.to_str().unwrap()]);
    fs::remove_file(&file).unwrap();
    fs::write(file.with_extension("swap.new"), "half").unwrap();
    place.apply(&request).unwrap();
    assert!(is_on());
    run("swapoff", "mount", &[file.to_str().unwrap()]);
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
    let error = place.apply(&request).unwrap_err().to_string();
    assert!(error.contains("is there already and is not a swap file"), "{error}");
    // A directory where others may write is no place for it.
    fs::remove_file(&file).unwrap();
    fs::set_permissions(place.at("data"), fs::Permissions::from_mode(0o777)).unwrap();
    let error = place.apply(&request).unwrap_err().to_string();
    assert!(error.contains("can be written by others than root"), "{error}");
}

#[test]
fn release_does_not_take_what_is_in_use() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let request = place.request(&disk);
    place.apply(&request).unwrap();
    let open = File::create(place.at("data/open")).unwrap();
    let error = place.setup.release(Some(&request)).unwrap_err().to_string();
    assert!(error.contains("cannot unmount") && error.contains("fuser -vm"), "{error}");
    drop(open);
    assert_eq!(place.setup.release(None).unwrap().unmounted, [place.at("data")]);
    assert_eq!(place.setup.release(None).unwrap(), nvme_setup::Released::default());
    assert_eq!(steps(&place.apply(&request).unwrap()).len(), 1);
}

#[test]
fn a_disk_that_comes_later_is_waited_for() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let link = place.at("disk");
    let mut request = place.request(&disk);
    request.volumes[0].what = What::Device(link.clone());
    assert!(refused(place.apply(&request)).contains("there is no device"));
    request.wait = 60;
    let mut waited = 0;
    let report = place.setup.apply(&request, &mut |event| {
        if let Event::Waiting { refusals } = event {
            waited += 1;
            assert!(refusals[0].why.contains("there is no device"));
            std::os::unix::fs::symlink(&disk.path, &link).unwrap();
        }
        ControlFlow::Continue(())
    });
    assert_eq!((report.unwrap().settled.len(), waited), (1, 1));
}

/// A stand-in for mdadm that takes only what ours is to be called with, writes superblocks, and starts no array: the kernel
/// need not have one. It keeps a list of its calls.
fn stand_in_mdadm(place: &Place) {
    let script = r#"
set -eu
here=$(dirname "$0")
echo "$*" >>"$here/calls"
hex() { for byte in $(printf '%s' "$1" | sed 's/../0x& /g'); do printf '\\%03o' "$byte"; done; }
case "$1" in
--create)
    [ "$#" = 11 ] || { echo "unexpected arguments: $*" >&2; exit 1; }
    case "$2" in /dev/md/nvme-setup-????????) ;; *) exit 1 ;; esac
    [ "$3 $4 $5" = "--level=0 --chunk=256 --metadata=1.2" ] || exit 1
    case "$6" in --uuid=????????:????????:????????:????????) ;; *) exit 1 ;; esac
    [ "$7" = "--name=${2#/dev/md/}" ] && [ "$8" = --config=none ] && [ "$9" = --raid-devices=2 ] || exit 1
    uuid=$(echo "${6#--uuid=}" | tr -d :)
    shift 9
    count=0
    for disk in "$@"; do
        [ -b "$disk" ] || exit 1
        count=$((count + 1))
        [ "$count" -le "$(cat "$here/limit")" ] || exit 9
        # Magic, version; the UUID; the number of disks.
        printf '\374\116\053\251\001\000\000\000' | dd of="$disk" bs=1 seek=4096 conv=notrunc status=none
        printf "$(hex "$uuid")" | dd of="$disk" bs=1 seek=4112 conv=notrunc status=none
        printf '\002\000\000\000' | dd of="$disk" bs=1 seek=4188 conv=notrunc status=none
        # Where the superblock is, in sectors, and the checksum: the sum of all words, with the carry added.
        printf '\010' | dd of="$disk" bs=1 seek=4240 conv=notrunc status=none
        sum=0
        for word in $(od -An -v -tu4 -j4096 -N256 "$disk"); do sum=$((sum + word)); done
        sum=$(((sum & 0xffffffff) + (sum >> 32)))
        little=$(printf '%02x%02x%02x%02x' $((sum & 255)) $((sum >> 8 & 255)) $((sum >> 16 & 255)) $((sum >> 24 & 255)))
        printf "$(hex "$little")" | dd of="$disk" bs=1 seek=4312 conv=notrunc status=none
    done ;;
--zero-superblock)
    [ "$#" = 2 ] && [ -b "$2" ] || exit 1
    dd if=/dev/zero of="$2" bs=4096 seek=1 count=1 conv=notrunc status=none ;;
--assemble)
    [ "$#" = 6 ] && [ "$3" = --config=none ] || exit 1
    case "$4" in --uuid=????????:????????:????????:????????) ;; *) exit 1 ;; esac
    echo "the kernel has no raid0" >&2
    exit 5 ;;
*) exit 1 ;;
esac"#;
    place.program("mdadm", script);
    fs::write(place.directory.path().join("programs/limit"), "9").unwrap();
}

fn calls(place: &Place) -> Vec<String> {
    let text = fs::read_to_string(place.directory.path().join("programs/calls")).unwrap_or_default();
    text.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn mdadm_is_called_as_it_should_be() {
    let place = Place::new();
    stand_in_mdadm(&place);
    let disks = [Disk::new(SIZE), Disk::new(SIZE)];
    let mut request = place.request(&disks[0]);
    request.volumes[0].what = What::Devices(disks.iter().map(|disk| disk.path.clone()).collect());
    // Killed after its first disk.
    fs::write(place.directory.path().join("programs/limit"), "1").unwrap();
    let error = place.apply(&request).unwrap_err().to_string();
    assert!(error.contains("make a RAID0 of"), "{error}");
    fs::write(place.directory.path().join("programs/limit"), "9").unwrap();
    let error = place.apply(&request).unwrap_err().to_string();
    assert!(error.contains("the kernel has no raid0"), "{error}");
    assert_eq!(calls(&place), ["--create", "--zero-superblock", "--create", "--assemble"]);
    // One of two, with something on it.
    let device = File::options().write(true).open(&disks[1].path).unwrap();
    device.write_all_at(&[0; 4096], 4096).unwrap();
    File::options().write(true).open(&disks[0].path).unwrap().write_all_at(b"data", SIZE / 4).unwrap();
    disks[0].remember();
    let text = refused(place.apply(&request));
    assert!(text.contains("1 of the 2 disks of its array are there, and they are not empty"), "{text}");
    disks[0].is_as_remembered();
}

#[test]
fn a_missing_program_names_its_package() {
    let (place, disks) = (Place::new(), [Disk::new(SIZE), Disk::new(SIZE)]);
    if Path::new("/usr/sbin/mdadm").exists() || Path::new("/sbin/mdadm").exists() {
        // With a real one this cannot be asked.
        place.program("mdadm", "echo 'mdadm is not installed; install the package mdadm' >&2; exit 1");
    }
    let mut request = place.request(&disks[0]);
    request.volumes[0].what = What::Devices(disks.iter().map(|disk| disk.path.clone()).collect());
    disks.iter().for_each(Disk::remember);
    let error = place.apply(&request).unwrap_err().to_string();
    assert!(error.contains("mdadm is not installed") && error.contains("install the package mdadm"), "{error}");
    disks.iter().for_each(Disk::is_as_remembered);
}

/// Runs our program for a node of its own.
fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nvme-setup")).args(arguments).args(["--node", "i-test"]).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_program_plans_applies_and_releases() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let at = place.at("data");
    let arguments = ["--device", disk.path(), "--mount", at.to_str().unwrap()];
    let call = |verb: &[&str], more: &[&str]| program(&[verb, &arguments[..], more].concat());
    disk.remember();
    for verb in [&["plan"][..], &["apply", "--dry-run"]] {
        let output = call(verb, &[]);
        let shown = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        for part in ["CARRIES", "make xfs on /dev/loop", "because: usable: free, no signature, zeros in all"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
    let json: serde_json::Value = serde_json::from_slice(&call(&["plan"], &["--json"]).stdout).unwrap();
    assert_eq!((&json["format"], &json["plan"]["steps"][0]["step"]), (&1.into(), &"mark".into()));
    disk.is_as_remembered();
    let output = call(&["apply"], &["--label", "scratch"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains(": ready, on /dev/loop"), "{output:?}");
    let output = call(&["apply"], &["--label", "scratch", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["report"]["done"], &json["error"]), (&serde_json::json!([]), &serde_json::Value::Null));
    let shown = text(&program(&["status", "--device", disk.path()]).stdout);
    assert!(shown.contains("xfs labelled \"scratch\", a volume of this node's"), "{shown}");
    // Another volume on the same disk: refused, and said in JSON.
    let output = call(&["apply"], &["--json", "--wait", "0"]);
    assert_eq!(output.status.code(), Some(71), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["refusals"][0]["why"].as_str().unwrap().contains("is mounted at"), "{json}");
    let output = call(&["release"], &["--label", "scratch"]);
    assert_eq!(text(&output.stdout), format!("unmounted {}\n", at.display()), "{output:?}");
    assert_eq!(text(&call(&["release"], &["--label", "scratch"]).stdout), "nothing to release\n");
}

#[test]
fn settings_from_a_file_and_exit_codes() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let file = place.at("disks.yaml");
    let write = |yaml: &str| fs::write(&file, yaml).unwrap();
    let apply = || program(&["apply", "--config", file.to_str().unwrap()]);
    let mount = place.at("data");
    write(&format!(
        "wait: 0\nvolumes:\n  - what: {{device: {}}}\n    mount: {}\n    fs: ext4\n    options: [noatime, nodev]\n",
        disk.path(),
        mount.display()
    ));
    let output = apply();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(run("findmnt", "util-linux", &["-n", "-o", "OPTIONS", mount.to_str().unwrap()]).contains("nodev"));
    for (yaml, expected) in [
        ("volumes:\n  - {what: instance-store, mount: /data, force: true}\n", "force"),
        ("volumes:\n  - {what: instance-store, mount: data}\n", "must be an absolute path"),
        ("volumes: [", "disks.yaml"),
    ] {
        write(yaml);
        let output = apply();
        assert_eq!(output.status.code(), Some(78), "{yaml}: {output:?}");
        assert!(text(&output.stderr).contains(expected), "{output:?}");
    }
    for (arguments, code, expected) in [
        (&["apply"][..], 64, "say what to prepare"),
        (&["apply", "--fs", "xfs"], 64, "--mount DIR"),
        (&["apply", "--mount", "relative"], 64, "must be an absolute path"),
        (&["apply", "--mount", "/data", "--fs", "zfs"], 64, "zfs"),
        (&["apply", "--config", "/nonexistent"], 78, "cannot read /nonexistent"),
        (
            &["apply", "--mount", "/nonexistent/x", "--device", "/dev/nonexistent", "--wait", "0"],
            71,
            "there is no device",
        ),
    ] {
        let output = program(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(text(&output.stderr).contains(expected), "{output:?}");
    }
}

#[test]
fn the_program_can_be_killed_at_any_moment() {
    let place = Place::new();
    let at = place.at("data");
    for round in 0..10_u32 {
        let disk = Disk::new(SIZE);
        let arguments = ["apply", "--node", "i-test", "--device", disk.path(), "--mount", at.to_str().unwrap()];
        for attempt in 0..4 {
            let mut child = Command::new(env!("CARGO_BIN_EXE_nvme-setup"))
                .args(arguments)
                .stderr(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(u64::from(round * 7 + attempt * 23)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let output = program(&arguments[..1].iter().chain(&arguments[3..]).copied().collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(0), "{round}: {output:?}");
        fs::write(at.join("file"), "content").unwrap();
        place.reboot();
    }
}

#[test]
fn two_runs_at_once_do_the_work_once() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let request = place.request(&disk);
    let done: usize = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| place.apply(&request).unwrap().done.len())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    assert_eq!(done, 5);
}
