//! Volumes as they live: made, found again, released.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};

use nvme_setup::{Event, Fs, What};

use crate::common::{Disk, SIZE, run};
use crate::place::{Place, refused, steps};

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
fn only_volumes_that_ask_for_it_are_trimmed() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let mut request = place.request(&disk);
    place.apply(&request).unwrap();
    assert!(place.setup.trim(&request).unwrap().is_empty());
    request.volumes[0].trim = nvme_setup::Trim::Periodic;
    assert_eq!(place.setup.trim(&request).unwrap(), [place.at("data")]);
    place.reboot();
    assert!(place.setup.trim(&request).unwrap().is_empty());
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
