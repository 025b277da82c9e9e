//! What is on a disk, or comes onto it, that is not ours.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};

use nvme_setup::{Event, What};

use crate::common::{Disk, SIZE, gpt, run};
use crate::interrupted::kill_mkfs_at;
use crate::place::{Place, refused, steps};

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
