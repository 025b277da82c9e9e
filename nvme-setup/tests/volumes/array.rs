//! Programs that are stood in for, or are missing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nvme_setup::What;

use crate::common::{Disk, SIZE};
use crate::place::{Place, refused};

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
    // What fails is tried again for a moment.
    let mut calls = calls(&place);
    calls.dedup();
    assert_eq!(calls, ["--create", "--zero-superblock", "--create", "--assemble"]);
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
