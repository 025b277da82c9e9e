//! Plans for machines as they are met.

use std::path::PathBuf;

use super::model::{GIB, Model, Truth, disk, foreign, request};
use crate::device::{Kind, Role};
use crate::identity::Node;
use crate::request::{Fs, Request, Volume, What};
use crate::signature::{Content, Signature};
use crate::step::Step;
use crate::world::Place;

fn store() -> Request {
    request([Volume::new(What::InstanceStore, "/data")])
}

fn refusals(model: &Model, request: &Request) -> String {
    let plan = model.plan(request);
    plan.refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn names(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

#[test]
fn one_disk_is_a_plain_volume_and_a_second_run_does_nothing() {
    let mut model = Model::store(1);
    let steps = model.settle(&store()).unwrap();
    assert_eq!(
        names(&steps),
        [
            "mark /dev/nvme0n1: a file system is being made",
            "make xfs on /dev/nvme0n1 (100 GiB)",
            "take the mark off /dev/nvme0n1: the file system is complete",
            "make the directory /data",
            "mount /dev/nvme0n1 (xfs) at /data with noatime",
        ]
    );
    assert_eq!(model.settle(&store()).unwrap(), []);
    model.reboot();
    assert_eq!(names(&model.settle(&store()).unwrap()), ["mount /dev/nvme0n1 (xfs) at /data with noatime"]);
    model.restart_elsewhere();
    assert_eq!(model.settle(&store()).unwrap().len(), 4);
}

#[test]
fn several_disks_are_one_array_over_reboot_and_restart() {
    let mut model = Model::store(3);
    let steps = model.settle(&store()).unwrap();
    assert_eq!(steps.len(), 7, "{steps:?}");
    assert!(names(&steps)[0].starts_with("make a RAID0 of /dev/nvme0n1, /dev/nvme1n1, /dev/nvme2n1 (300 GiB"));
    assert_eq!(model.settle(&store()).unwrap(), []);
    model.reboot();
    let steps = names(&model.settle(&store()).unwrap());
    assert_eq!(steps.len(), 3, "{steps:?}");
    assert!(steps[0].starts_with("assemble the array of"), "{steps:?}");
    model.restart_elsewhere();
    assert_eq!(model.settle(&store()).unwrap().len(), 6);
}

#[test]
fn an_array_with_a_member_that_is_empty_or_gone_is_refused() {
    let mut model = Model::store(2);
    model.settle(&store()).unwrap();
    model.reboot();
    model.set("nvme1n1", Truth::Empty);
    let text = refusals(&model, &store());
    assert!(
        text.contains("1 of the 2 disks of its array are there") && text.contains("mdadm --zero-superblock"),
        "{text}"
    );
    model.devices.retain(|(device, _)| device.name != "nvme1n1");
    assert!(model.plan(&store()).refusals[0].may_pass);
}

#[test]
fn an_array_that_was_never_completed_is_made_anew() {
    let mut model = Model::store(3);
    let plan = model.plan(&store());
    model.perform(&plan.steps[0].step, true);
    let steps = names(&model.settle(&store()).unwrap());
    assert!(steps[0].starts_with("clear the array superblock of /dev/nvme0n1"), "{steps:?}");
    assert!(steps.iter().any(|step| step.starts_with("make a RAID0")));
}

#[test]
fn an_array_that_is_not_started_is_stopped_first() {
    let mut model = Model::store(2);
    let plan = model.plan(&store());
    model.perform(&plan.steps[0].step, false);
    for (device, _) in &mut model.devices {
        if device.kind == Kind::Array {
            device.size = 0;
        }
    }
    let steps = names(&model.settle(&store()).unwrap());
    assert_eq!(steps[0], "stop the array /dev/md127");
    assert!(steps[2].starts_with("assemble"), "{steps:?}");
}

#[test]
fn one_volume_for_each_disk_keeps_its_place() {
    let each = request([Volume { each: true, ..Volume::new(What::InstanceStore, "/data") }]);
    let mut model = Model::store(3);
    model.settle(&each).unwrap();
    let first = model.mounted.clone();
    assert_eq!(first.len(), 3);
    assert_eq!(first["/data/1".as_ref() as &std::path::Path], "nvme1n1");
    // The names by id are in another order after the reboot, and the first disk is gone.
    model.reboot();
    model.devices.remove(0);
    model.devices[0].0.by_id = vec!["/dev/disk/by-id/nvme-9".into()];
    model.settle(&each).unwrap();
    assert_eq!(model.mounted["/data/1".as_ref() as &std::path::Path], "nvme1n1");
    assert_eq!(model.mounted["/data/2".as_ref() as &std::path::Path], "nvme2n1");
    assert_eq!(model.mounted.len(), 2);
}

#[test]
fn foreign_content_and_another_nodes_label_are_refused_with_the_command() {
    let another = Model { node: Node::new("i-other"), ..Model::store(0) }.fs_uuid("/data");
    for (truth, expected) in [
        (foreign("ext4"), "it carries ext4"),
        (foreign("linux_raid_member"), "it carries linux_raid_member"),
        (Truth::Foreign(Content::Ambiguous), "several signatures"),
        (Truth::Foreign(Content::Data { first_nonzero_at: 9 }), "the byte at 9 is not zero"),
        (Truth::Fs { uuid: another, kind: "xfs" }, "it was made by nvme-setup on another node"),
        (Truth::Fs { uuid: Model::store(0).fs_uuid("/old"), kind: "xfs" }, "it is another volume of this node's"),
    ] {
        let model = Model::new([(disk("nvme0n1", 0, Role::InstanceStore), truth)]);
        let text = refusals(&model, &store());
        assert!(text.starts_with("/data: /dev/nvme0n1: ") && text.contains(expected), "{text}");
        assert!(text.contains("if nothing on it is needed: wipefs --all /dev/nvme0n1"), "{text}");
        assert!(model.plan(&store()).steps.is_empty());
    }
    let model =
        Model::new([(disk("nvme0n1", 0, Role::InstanceStore), Truth::Foreign(Content::Unknown { why: "x".into() }))]);
    assert!(refusals(&model, &store()).contains("a disk that cannot be read is not used"));
}

#[test]
fn a_copy_of_our_volume_makes_both_refused() {
    let uuid = Model::store(0).fs_uuid("/data");
    let ours = Truth::Fs { uuid, kind: "xfs" };
    let data = request([Volume::new(What::Serial("vol1".into()), "/data")]);
    let model =
        Model::new([(disk("nvme1n1", 1, Role::CloudDisk), ours.clone()), (disk("nvme2n1", 2, Role::CloudDisk), ours)]);
    assert!(refusals(&model, &data).contains("/dev/nvme2n1 carries the same file system"));
}

#[test]
fn a_data_disk_by_every_name() {
    for what in [
        What::Serial("vol7".into()),
        What::VolumeId("vol-7".into()),
        What::ById("nvme-0007".into()),
        What::ById("/dev/disk/by-id/nvme-0007".into()),
        What::Size(70),
        What::Device("/dev/nvme7n1".into()),
    ] {
        let mut seventh = disk("nvme7n1", 7, Role::CloudDisk);
        seventh.size = 70 * GIB;
        let mut model = Model::new([(disk("nvme1n1", 1, Role::CloudDisk), Truth::Empty), (seventh, Truth::Empty)]);
        let wanted = request([Volume::new(what.clone(), "/data")]);
        model.settle(&wanted).unwrap_or_else(|refusal| panic!("{what}: {refusal}"));
        assert_eq!(model.mounted["/data".as_ref() as &std::path::Path], "nvme7n1");
    }
}

#[test]
fn volumes_that_are_there_are_in_the_order_of_the_request_whoever_chose_first() {
    let mut model = Model::store(2);
    model.devices.push((disk("nvme7n1", 7, Role::CloudDisk), Some(Truth::Empty)));
    for each in [false, true] {
        let store = Volume { each, ..Volume::new(What::InstanceStore, "/data") };
        let both = request([store, Volume::new(What::OnlyEmpty, "/a")]);
        let mut model = model.clone();
        model.settle(&both).unwrap();
        let places: Vec<_> = model.plan(&both).settled.into_iter().map(|settled| settled.volume).collect();
        let expected: &[&str] = if each { &["/data/0", "/data/1", "/a"] } else { &["/data", "/a"] };
        assert_eq!(places, expected.iter().map(PathBuf::from).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_missing_may_come_and_what_is_ambiguous_is_named() {
    let empty = |minor| (disk(&format!("nvme{minor}n1"), minor, Role::CloudDisk), Truth::Empty);
    let none = Model::new([]);
    for what in [What::InstanceStore, What::OnlyEmpty, What::Size(9), What::Device("/dev/vdz".into())] {
        let plan = none.plan(&request([Volume::new(what.clone(), "/data")]));
        assert!(plan.refusals[0].may_pass, "{what}");
    }
    let two = Model::new([empty(1), empty(2)]);
    let text = refusals(&two, &request([Volume::new(What::OnlyEmpty, "/data")]));
    assert!(text.contains("several data disks are empty: /dev/nvme1n1 (serial number vol1), /dev/nvme2n1"), "{text}");
    let text = refusals(&two, &request([Volume::new(What::Size(100), "/data")]));
    assert!(text.contains("several disks have 100 GB"), "{text}");
    // Made once, it is known again although the other one is of the same size.
    let mut one = Model::new([empty(1)]);
    let only = request([Volume::new(What::OnlyEmpty, "/data")]);
    one.settle(&only).unwrap();
    one.reboot();
    let (device, truth) = empty(2);
    one.devices.push((device, Some(truth)));
    assert_eq!(names(&one.settle(&only).unwrap()), ["mount /dev/nvme1n1 (xfs) at /data with noatime"]);
}

#[test]
fn the_number_of_disks_is_checked() {
    let count = |count| request([Volume { count: Some(count), ..Volume::new(What::InstanceStore, "/data") }]);
    let model = Model::store(2);
    assert!(model.plan(&count(3)).refusals[0].may_pass);
    assert!(refusals(&Model::store(0), &count(2)).contains("there is no instance-store disk, and 2 are expected"));
    assert!(refusals(&model, &count(1)).contains("2 instance-store disks are there, and 1 are expected"));
    assert!(!model.plan(&count(1)).refusals[0].may_pass);
    assert!(model.plan(&count(2)).refusals.is_empty());
}

#[test]
fn two_volumes_that_mean_one_disk_are_refused_by_name() {
    let model = Model::new([(disk("nvme1n1", 1, Role::CloudDisk), Truth::Empty)]);
    let both = request([
        Volume::new(What::Serial("vol1".into()), "/a"),
        Volume::new(What::Device("/dev/nvme1n1".into()), "/b"),
    ]);
    assert_eq!(refusals(&model, &both), "/b: /dev/nvme1n1: /a wants the same disk; give each volume a disk of its own");
    let twice = request([Volume::new(What::Devices(vec!["/dev/nvme1n1".into(), "/dev/nvme1n1".into()]), "/a")]);
    assert!(refusals(&model, &twice).contains("it is named twice"));
}

#[test]
fn disks_in_use_are_left_out_of_the_instance_store() {
    let mut model = Model::store(2);
    model.mounted.insert("/elsewhere".into(), "nvme0n1".into());
    model.set("nvme0n1", foreign("ext4"));
    let plan = model.plan(&store());
    assert!(plan.notes[0].contains("/dev/nvme0n1 is left out: somebody else uses it"), "{:?}", plan.notes);
    model.settle(&store()).unwrap();
    assert_eq!(model.mounted["/data".as_ref() as &std::path::Path], "nvme1n1");
}

#[test]
fn mount_points_are_never_hidden() {
    for (place, expected) in [
        (Place::NotEmpty, "the directory is not empty"),
        (Place::Strange("it is not a directory".into()), "it is not a directory"),
    ] {
        let mut model = Model::store(1);
        model.places.insert("/data".into(), place);
        let text = refusals(&model, &store());
        assert!(text.contains(expected), "{text}");
    }
    let mut model = Model::store(2);
    model.set("nvme0n1", foreign("ext4"));
    model.mounted.insert("/data".into(), "nvme0n1".into());
    assert!(refusals(&model, &store()).contains("something else is mounted there already: /dev/nvme0n1"));
}

#[test]
fn existing_mounts_what_is_there_and_never_formats() {
    let existing = |what| request([Volume { existing: true, ..Volume::new(what, "/ref") }]);
    let by_serial = existing(What::Serial("vol1".into()));
    let with = |truth| Model::new([(disk("nvme1n1", 1, Role::CloudDisk), truth)]);
    let mut model = with(foreign("ext4"));
    assert_eq!(
        names(&model.settle(&by_serial).unwrap()),
        ["make the directory /ref", "mount /dev/nvme1n1 (ext4) at /ref with noatime"]
    );
    assert_eq!(model.settle(&by_serial).unwrap(), []);
    for (truth, expected) in [
        (Truth::Empty, "the device is empty"),
        (foreign("linux_raid_member"), "it carries linux_raid_member"),
        (Truth::Foreign(Content::Data { first_nonzero_at: 0 }), "data of no known kind"),
        (Truth::Foreign(Content::Ambiguous), "several signatures"),
    ] {
        let text = refusals(&with(truth), &by_serial);
        assert!(text.contains("`existing` wants a file system") && text.contains(expected), "{text}");
        assert!(!text.contains("wipefs --all"), "{text}");
    }
    // On the only partition of a disk.
    let table = Signature { partition_table: Some("gpt".into()), ..Signature::default() };
    let mut partition =
        crate::device::Device::new("nvme1n1p1", crate::device::DeviceNumber { major: 259, minor: 9 }, Kind::Partition);
    partition.parents.insert("nvme1n1".into());
    partition.size = GIB;
    let mut model = with(Truth::Foreign(Content::Signature(table)));
    model.devices.push((partition, Some(foreign("xfs"))));
    let mut wanted = by_serial;
    wanted.volumes[0].fs = Some(Fs::Xfs);
    assert_eq!(names(&model.settle(&wanted).unwrap())[1], "mount /dev/nvme1n1p1 (xfs) at /ref with noatime");
}

#[test]
fn another_file_system_than_the_one_that_is_there_is_refused() {
    let mut model = Model::store(1);
    model.settle(&store()).unwrap();
    let mut other = store();
    other.volumes[0].fs = Some(Fs::Ext4);
    let text = refusals(&model, &other);
    assert!(text.contains("it carries this volume as xfs, and ext4 is wanted; set fs to xfs"), "{text}");
}

#[test]
fn a_program_that_still_works_on_it_is_waited_for() {
    let mut model = Model::store(1);
    let uuid = model.fs_uuid("/data");
    let marked = |stranger, claimed| Truth::Marked { uuid, blocks: true, signature: false, stranger, claimed };
    model.set("nvme0n1", marked(false, true));
    assert!(model.plan(&store()).refusals[0].may_pass);
    // Something that is not ours is never erased.
    model.set("nvme0n1", marked(true, false));
    let text = refusals(&model, &store());
    assert!(text.contains("began to make and did not finish, and also something that cannot be proved"), "{text}");
    model.set("nvme0n1", marked(false, false));
    assert!(names(&model.settle(&store()).unwrap())[0].starts_with("clear the unfinished file system"));
}

#[test]
fn swap_and_a_volume_inside_another() {
    let outer = Volume { swap: Some(1024), ..Volume::new(What::InstanceStore, "/data") };
    let inner = Volume::new(What::Serial("vol7".into()), "/data/inner");
    let both = request([inner, outer]);
    let mut model = Model::store(1);
    model.devices.push((disk("nvme7n1", 7, Role::CloudDisk), Some(Truth::Empty)));
    let steps = names(&model.settle(&both).unwrap());
    let at = |text: &str| {
        steps.iter().position(|step| step.starts_with(text)).unwrap_or_else(|| panic!("{text}: {steps:?}"))
    };
    assert!(at("mount /dev/nvme0n1") < at("make the directory /data/inner"));
    assert!(at("make the swap file /data/nvme-setup.swap of 1 GiB") < at("swap on /data/nvme-setup.swap"));
    assert_eq!(model.settle(&both).unwrap(), []);
}
