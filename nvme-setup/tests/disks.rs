//! Real block devices with every kind of content, looked at by the library and by the program. Needs root and loop devices.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails its test by panicking")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use nix::mount::{MsFlags, mount, umount};
use nvme_setup::{Content, Device, Evidence, Examiner, Inventory, Reason, Roots, Rules, Verdict, judge};

use common::{Disk, SIZE, gpt, run};

/// How much of a disk of that size is read: both ends, 256 pieces evenly between, and 4 places of superblock copies.
const SAMPLED: u64 = (2 << 20) + 260 * (64 << 10);

impl Disk {
    fn inventory(&self) -> (Inventory, Device) {
        let inventory = Inventory::read(&Roots::default()).unwrap();
        let device = inventory.find(&self.path).unwrap().clone();
        (inventory, device)
    }

    fn examine(&self) -> Evidence {
        Examiner::default().examine(&self.inventory().1)
    }

    fn verdict(&self) -> Verdict {
        let (inventory, device) = self.inventory();
        let evidence = Examiner::default().examine(&device);
        judge(&inventory, &device, Some(&evidence), &Rules { loop_devices: true, ..Rules::default() })
    }
}

fn signature(evidence: &Evidence) -> String {
    match &evidence.content {
        Content::Signature(signature) => signature.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_disk_is_usable_and_stays_untouched() {
    let disk = Disk::new(SIZE);
    disk.remember();
    let evidence = disk.examine();
    assert_eq!(evidence, Evidence { content: Content::Empty { sampled: SAMPLED }, claimed: false });
    let verdict = disk.verdict();
    assert!(verdict.usable(), "{verdict}");
    disk.is_as_remembered();
}

#[test]
fn file_systems_and_swap_are_known_by_name_and_left_alone() {
    let mkswap = |file: &Path| {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        run("mkswap", "util-linux", &["--quiet", "-L", "memory", file.to_str().unwrap()]);
    };
    for (disk, expected) in [
        (Disk::formatted("mkfs.ext4", "e2fsprogs", &["-q", "-L", "my data"]), "ext4 labelled \"my data\""),
        (Disk::formatted("mkfs.xfs", "xfsprogs", &["-q", "-L", "scratch"]), "xfs labelled \"scratch\""),
        (Disk::prepared(SIZE, &[], mkswap), "swap labelled \"memory\""),
    ] {
        disk.remember();
        assert_eq!(signature(&disk.examine()), expected);
        let verdict = disk.verdict();
        assert_eq!(verdict.to_string(), format!("no: it carries {expected}"));
        assert!(verdict.erase_command().unwrap().starts_with("wipefs --all /dev/loop"));
        disk.is_as_remembered();
    }
}

#[test]
fn an_empty_partition_table_is_a_signature() {
    let disk = Disk::prepared(SIZE, &[], |file| gpt(file, SIZE).unwrap());
    assert_eq!(signature(&disk.examine()), "gpt partition table");
    assert!(!disk.verdict().usable());
    // Only the copy at the end is left: what a beginning that was wiped leaves behind.
    let disk = Disk::prepared(SIZE, &[], |file| {
        gpt(file, SIZE).unwrap();
        File::options().write(true).open(file).unwrap().write_all_at(&vec![0; 1 << 20], 0).unwrap();
    });
    let content = disk.examine().content;
    assert!(matches!(content, Content::Signature(_) | Content::Data { .. }), "{content:?}");
    assert!(!disk.verdict().usable());
}

#[test]
fn data_without_a_signature_is_seen_at_the_last_byte_and_between() {
    let at = |offset: u64| {
        Disk::prepared(SIZE, &[], |file| {
            File::options().write(true).open(file).unwrap().write_all_at(&[1], offset).unwrap();
        })
    };
    let disk = at(SIZE - 1);
    assert_eq!(disk.examine().content, Content::Data { first_nonzero_at: SIZE - 1 });
    assert_eq!(disk.verdict().reasons(), [Reason::Data { first_nonzero_at: SIZE - 1 }]);
    // Of 4 GiB with 256 samples of 64 KiB, a run of 32 MiB cannot be missed.
    let disk = Disk::prepared(4 << 30, &[], |file| {
        let data = vec![0xA5; 32 << 20];
        File::options().write(true).open(file).unwrap().write_all_at(&data, 2 << 30).unwrap();
    });
    let Content::Data { first_nonzero_at } = disk.examine().content else { panic!() };
    assert!((2 << 30..(2 << 30) + (32 << 20)).contains(&first_nonzero_at), "{first_nonzero_at}");
}

#[test]
fn a_torn_superblock_is_still_data() {
    for (program, package, magic_at) in [("mkfs.ext4", "e2fsprogs", 1024 + 56), ("mkfs.xfs", "xfsprogs", 0)] {
        let disk = Disk::prepared(SIZE, &[], |file| {
            run(program, package, &["-q", file.to_str().unwrap()]);
            File::options().write(true).open(file).unwrap().write_all_at(&[0; 4], magic_at).unwrap();
        });
        let content = disk.examine().content;
        assert!(matches!(content, Content::Data { .. }), "{program}: {content:?}");
        assert!(!disk.verdict().usable());
    }
}

#[test]
fn a_file_system_that_lost_its_beginning_is_found_by_its_copies() {
    for (program, package, size, copy) in [
        ("mkfs.xfs", "xfsprogs", 4 << 30, 1 << 30),
        ("mkfs.ext4", "e2fsprogs", SIZE, (8 << 20) + 1024),
        ("mkfs.ext4", "e2fsprogs", 4 << 30, 128 << 20),
    ] {
        let disk = Disk::prepared(size, &[], |file| {
            let file = file.to_str().unwrap();
            run(program, package, &["-q", file]);
            // Everything before the copy goes.
            run("fallocate", "util-linux", &["--punch-hole", "--length", &copy.to_string(), file]);
        });
        let content = disk.examine().content;
        let Content::Data { first_nonzero_at } = content else { panic!("{program}: {content:?}") };
        assert!((copy..copy + 4096).contains(&first_nonzero_at), "{program}: {first_nonzero_at}");
    }
}

#[test]
fn two_file_systems_at_once_are_ambiguous() {
    let disk = Disk::prepared(SIZE, &[], |file| {
        run("mkfs.ext4", "e2fsprogs", &["-q", file.to_str().unwrap()]);
        let mut superblock = [0; 1024];
        File::open(file).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
        fs::remove_file(file).unwrap();
        File::create(file).unwrap().set_len(SIZE).unwrap();
        run("mkfs.xfs", "xfsprogs", &["-q", file.to_str().unwrap()]);
        File::options().write(true).open(file).unwrap().write_all_at(&superblock, 1024).unwrap();
    });
    assert_eq!(disk.examine().content, Content::Ambiguous);
    assert_eq!(disk.verdict().reasons(), [Reason::Ambiguous]);
}

#[test]
fn read_only_and_small_disks_are_refused() {
    let disk = Disk::prepared(SIZE, &["--read-only"], |_| {});
    assert_eq!(disk.verdict().reasons(), [Reason::ReadOnly]);
    let disk = Disk::new(64 << 20);
    assert_eq!(disk.verdict().reasons(), [Reason::TooSmall { size: 64 << 20, minimum: 300 << 20 }]);
}

/// Unmounts when it goes.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // A panic here would hide the one that ended the test; what is left is found by the detach that fails.
        let _ = umount(self.0);
    }
}

#[test]
fn a_mounted_disk_says_where() {
    let disk = Disk::formatted("mkfs.ext4", "e2fsprogs", &["-q"]);
    let at = disk.directory.path().join("a mount");
    fs::create_dir(&at).unwrap();
    mount(Some(&disk.path), &at, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    let guard = Mounted(&at);
    let verdict = disk.verdict();
    let name = disk.path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(verdict.reasons()[0], Reason::Mounted { device: name, at: at.clone() });
    assert!(matches!(verdict.reasons()[1], Reason::Carries { .. }));
    assert_eq!(verdict.erase_command(), None);
    drop(guard);
}

#[test]
fn an_empty_disk_that_somebody_keeps_is_refused() {
    use std::os::unix::fs::OpenOptionsExt;
    let disk = Disk::new(SIZE);
    let keeper = File::options().read(true).custom_flags(libc::O_EXCL).open(&disk.path).unwrap();
    assert!(disk.examine().claimed);
    assert_eq!(disk.verdict().reasons(), [Reason::Claimed]);
    drop(keeper);
    assert!(disk.verdict().usable());
}

#[test]
fn a_blkid_that_lies_hangs_or_is_not_there_proves_nothing() {
    use std::time::Duration;
    let disk = Disk::new(SIZE);
    let program = |script: &str| {
        let path = disk.directory.path().join("blkid");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let (_, device) = disk.inventory();
    let content = |script: &str| {
        let examiner = Examiner::default().with_blkid(program(script)).with_limit(Duration::from_secs(2));
        examiner.examine(&device).content
    };
    for (script, expected) in [
        ("exit 4", "exit status: 4"),
        ("echo 'usage: blkid' >&2; exit 1", "usage: blkid"),
        ("exit 0", "not understood"),
        ("kill -9 $$", "signal: 9"),
        ("sleep 1000", "did not end within 2s and was killed"),
        ("echo 'error: Input/output error' >&2; exit 2", "Input/output error"),
    ] {
        let Content::Unknown { why } = content(script) else { panic!("{script}") };
        assert!(why.contains(expected), "{script}: {why}");
    }
    assert_eq!(content("exit 2"), Content::Empty { sampled: SAMPLED });
    let missing = Examiner::default().with_blkid("/nonexistent/blkid").examine(&device).content;
    assert!(matches!(missing, Content::Unknown { .. }), "{missing:?}");
    // Whatever it is given, it is `-p -o export` and the device.
    let script = format!("[ \"$*\" = '-p -o export {}' ] || exit 4; exit 2", disk.path());
    assert_eq!(content(&script), Content::Empty { sampled: SAMPLED });
}

#[test]
fn another_device_under_the_same_name_is_not_read() {
    let (one, two) = (Disk::new(SIZE), Disk::new(SIZE));
    let mut device = one.inventory().1;
    device.path = two.path.clone();
    let Content::Unknown { why } = Examiner::default().examine(&device).content else { panic!() };
    assert!(why.contains("and not"), "{why}");
    let mut device = one.inventory().1;
    device.size += 512;
    let Content::Unknown { why } = Examiner::default().examine(&device).content else { panic!() };
    assert!(why.contains("according to sysfs"), "{why}");
}

/// Runs our program.
fn status(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nvme-setup")).arg("status").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn the_program_shows_a_table_and_json() {
    let disk = Disk::formatted("mkfs.ext4", "e2fsprogs", &["-q", "-L", "mine"]);
    let name = disk.path.file_name().unwrap().to_str().unwrap();
    let output = status(&["--device", disk.path(), name]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for part in
        ["DEVICE", "400 MiB", "ext4 labelled \"mine\"", "no: it carries ext4", "wipefs --all /dev/loop", "only if"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert_eq!(table.matches("no: it carries").count(), 1, "named twice, shown once: {table}");

    let json: serde_json::Value = serde_json::from_slice(&status(&["--json", "--device", name]).stdout).unwrap();
    assert_eq!(json["format"], 1);
    let device = &json["devices"][0];
    assert_eq!((&device["name"], &device["kind"]), (&name.into(), &"loop".into()));
    assert_eq!(device["size"], SIZE);
    assert_eq!((&device["content"]["state"], &device["content"]["kind"]), (&"signature".into(), &"ext4".into()));
    assert_eq!(device["verdict"]["usable"], false);
    assert_eq!(device["verdict"]["reasons"][0]["reason"], "carries");

    // Not named, a loop device is no disk, whatever is in it.
    let all: serde_json::Value = serde_json::from_slice(&status(&["--json"]).stdout).unwrap();
    let device = all["devices"].as_array().unwrap().iter().find(|device| device["name"] == name).unwrap();
    assert_eq!(device["verdict"]["reasons"][0]["reason"], "not_a_disk");
    let table = status(&[]);
    assert!(text(&table.stdout).lines().any(|line| line.starts_with(name)), "{table:?}");
}

#[test]
fn wrong_usage_is_64_and_a_missing_device_71() {
    for (arguments, code, message) in [
        (&["--device", "/dev/null"][..], 64, "/dev/null is not a block device"),
        (&["--devise"], 64, "--device"),
        (&["--device", "/dev/no-such-disk"], 71, "there is no device /dev/no-such-disk"),
    ] {
        let output = status(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(text(&output.stderr).contains(message), "{output:?}");
    }
    let help = status(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("USABLE?"));
}

#[test]
fn without_root_it_says_what_it_could_not_see() {
    let disk = Disk::new(SIZE);
    // The program must be where everybody may read it.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("nvme-setup");
    fs::copy(env!("CARGO_BIN_EXE_nvme-setup"), &program).unwrap();
    let output =
        Command::new(&program).args(["status", "--device", disk.path()]).uid(65534).gid(65534).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let error = text(&output.stderr);
    assert!(error.contains("could not look at the content of loop") && error.contains("not run as root"), "{error}");
    let table = text(&output.stdout);
    assert!(table.contains("run this as root") && !table.contains("  yes\n"), "{table}");
}
