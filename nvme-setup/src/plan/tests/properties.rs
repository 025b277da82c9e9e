//! What holds for every machine, every request and every moment at which a run is interrupted.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::model::{GIB, Model, Truth, disk, foreign, request};
use crate::device::{Device, DeviceNumber, Kind, Role};
use crate::identity::{Made, Node};
use crate::request::{Fs, Request, Volume, What};
use crate::signature::{Content, Signature};
use crate::step::{Plan, Step};

/// The mount points that requests use; keys of what is found on disks.
const MOUNTS: [&str; 3] = ["/data", "/b", "/data/c"];

fn content() -> impl Strategy<Value = Option<Truth>> {
    let node = || prop_oneof![4 => Just(Node::new("i-this")), 1 => Just(Node::new("i-other"))];
    let key = || {
        let index = prop_oneof![2 => Just(String::new()), 1 => Just("/0".to_owned()), 1 => Just("/1".to_owned())];
        (prop::sample::select(&MOUNTS[..]), index).prop_map(|(mount, index)| format!("{mount}{index}"))
    };
    let kind = prop::sample::select(&["xfs", "ext4"][..]);
    prop_oneof![
        6 => Just(Some(Truth::Empty)),
        1 => prop::sample::select(&["ext4", "xfs", "swap", "LVM2_member", "linux_raid_member", "crypto_LUKS", "zfs_member"][..])
            .prop_map(|kind| Some(foreign(kind))),
        1 => Just(Some(Truth::Foreign(Content::Ambiguous))),
        1 => Just(Some(Truth::Foreign(Content::Data { first_nonzero_at: 0 }))),
        1 => Just(Some(Truth::Foreign(Content::Unknown { why: "it does not answer".into() }))),
        1 => Just(Some(Truth::Foreign(Content::Empty { sampled: 0 }))),
        1 => Just(Some(Truth::Foreign(Content::Signature(Signature { partition_table: Some("gpt".into()), ..Signature::default() })))),
        1 => Just(None),
        3 => (node(), key(), kind).prop_map(|(node, key, kind)| {
            Some(Truth::Fs { uuid: node.uuid(&key, Made::FileSystem), kind })
        }),
        3 => (node(), key(), any::<[bool; 4]>()).prop_map(|(node, key, [blocks, signature, stranger, claimed])| {
            let uuid = node.uuid(&key, Made::FileSystem);
            Some(Truth::Marked { uuid, blocks, signature: blocks && signature, stranger, claimed })
        }),
        3 => (node(), key(), 1..4_u32, any::<bool>()).prop_map(|(node, key, disks, used)| {
            Some(Truth::Member { array: node.uuid(&key, Made::Array), disks, used })
        }),
    ]
}

/// A device, and flags that change what it is.
fn devices() -> impl Strategy<Value = Vec<(Device, Option<Truth>)>> {
    let role = prop_oneof![3 => Just(Role::InstanceStore), 2 => Just(Role::CloudDisk), 1 => Just(Role::DataDisk)];
    let kind = prop_oneof![12 => Just(Kind::Disk), 1 => Just(Kind::Loop), 1 => Just(Kind::Partition), 1 => Just(Kind::Mapping)];
    let size = prop_oneof![4 => Just(100 * GIB), 1 => Just(7 * GIB), 1 => 0..400_u64 << 20];
    // Several may be paths to one.
    let wwid = prop::option::weighted(0.3, 0..4_u32);
    let device = (role, kind, size, prop::bool::weighted(0.05), prop::bool::weighted(0.05), 0..4_u32, wwid, content());
    prop::collection::vec(device, 0..7).prop_map(|devices| {
        let device = |(index, (role, kind, size, read_only, removable, serial, wwid, truth)): (usize, _)| {
            let minor = u32::try_from(index).expect("few disks");
            let mut device: Device = disk(&format!("d{index}"), minor, role);
            (device.kind, device.size, device.read_only, device.removable) = (kind, size, read_only, removable);
            // Some have the same one.
            (device.serial, device.wwid) = (Some(format!("vol{serial}")), None);
            if let Some(wwid) = wwid {
                // All paths to a disk know both.
                (device.wwid, device.serial) = (Some(format!("eui.{wwid}")), Some(format!("vol{wwid}")));
            }
            (device, truth)
        };
        let mut devices: Vec<_> = devices.into_iter().enumerate().map(device).collect();
        for index in 1..devices.len() {
            let (before, path) = devices.split_at_mut(index);
            if let Some((_, truth)) =
                before.iter().find(|(other, _)| other.wwid.is_some() && other.wwid == path[0].0.wwid)
            {
                // What is on it is seen over each.
                path[0].1.clone_from(truth);
            }
        }
        devices
    })
}

fn volume() -> impl Strategy<Value = Volume> {
    let device = || (0..7_usize).prop_map(|index| PathBuf::from(format!("/dev/d{index}")));
    let what = prop_oneof![
        4 => Just(What::InstanceStore),
        2 => prop::collection::vec(device(), 1..4).prop_map(What::Devices),
        2 => device().prop_map(What::Device),
        1 => (0..4_u32).prop_map(|serial| What::Serial(format!("vol{serial}"))),
        1 => (0..4_u32).prop_map(|serial| What::VolumeId(format!("vol-{serial}"))),
        1 => Just(What::Size(100)),
        2 => Just(What::OnlyEmpty),
    ];
    let fs = prop::sample::select(&[None, Some(Fs::Xfs), Some(Fs::Ext4)][..]);
    (what, prop::sample::select(&MOUNTS[..]), any::<bool>(), prop::bool::weighted(0.3), fs).prop_map(
        |(what, mount, each, existing, fs)| {
            let mut volume = Volume::new(what, mount);
            volume.each = each && volume.is_set();
            volume.existing = existing && !volume.is_set() && volume.what != What::OnlyEmpty;
            volume.fs = fs;
            volume
        },
    )
}

#[derive(Debug, Clone)]
struct Use {
    mounts: Vec<(usize, &'static str)>,
    swaps: Vec<usize>,
    links: Vec<(usize, usize, bool)>,
}

fn uses() -> impl Strategy<Value = Use> {
    let mount = (0..12_usize, prop::sample::select(&["/", "/data", "/b", "/data/0", "/x"][..]));
    let links = prop::collection::vec((0..16_usize, 0..16_usize, any::<bool>()), 0..3);
    (prop::collection::vec(mount, 0..2), prop::collection::vec(0..16_usize, 0..2), links)
        .prop_map(|(mounts, swaps, links)| Use { mounts, swaps, links })
}

fn model(devices: Vec<(Device, Option<Truth>)>, uses: &Use) -> Model {
    let mut model = Model::new([]);
    model.devices = devices;
    let count = model.devices.len();
    for &(index, at) in &uses.mounts {
        if index < count {
            model.mounted.insert(at.into(), format!("d{index}"));
        }
    }
    for &index in &uses.swaps {
        if let Some((device, _)) = model.devices.get_mut(index) {
            device.swap = true;
        }
    }
    for &(lower, upper, partition) in &uses.links {
        if lower < count && upper < count && lower != upper {
            let name = format!("d{upper}");
            let device = &mut model.devices[lower].0;
            if partition {
                device.partitions.insert(name)
            } else {
                device.holders.insert(name)
            };
        }
    }
    // Arrays of members that say the same.
    let mut groups: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for (device, truth) in &model.devices {
        if let Some(Truth::Member { array, used: true, .. }) = truth
            && device.holders.is_empty()
        {
            groups.entry(*array).or_default().push(device.name.clone());
        }
    }
    for (index, (uuid, members)) in groups.into_iter().enumerate() {
        let minor = u32::try_from(index).expect("few arrays");
        let mut array = Device::new(format!("md{index}"), DeviceNumber { major: 9, minor }, Kind::Array);
        array.size = 50 * GIB;
        array.parents = members.iter().cloned().collect();
        for (device, _) in &mut model.devices {
            if members.contains(&device.name) {
                device.holders.insert(array.name.clone());
            }
        }
        let content = if minor == 0 { Truth::Empty } else { foreign("xfs") };
        model.arrays.insert(uuid, content.clone());
        model.devices.push((array, Some(content)));
    }
    model
}

/// Whether a step may write to a device: the rule itself, put in other words than in the code.
fn may_write(model: &Model, step: &Step, name: &str, earlier: &[&Step]) -> Result<(), String> {
    let device = model.inventory().get(name).cloned().ok_or("it is not there")?;
    if matches!(device.kind, Kind::Partition | Kind::Mapping) || device.read_only || device.removable {
        return Err(format!("it is {}", device.kind));
    }
    let mut above = BTreeSet::from([name.to_owned()]);
    loop {
        let before = above.len();
        for (device, _) in &model.devices {
            if above.contains(&device.name) {
                above.extend(device.holders.iter().chain(&device.partitions).cloned());
            }
            if device.parents.iter().any(|parent| above.contains(parent)) {
                above.insert(device.name.clone());
            }
        }
        if above.len() == before {
            break;
        }
    }
    if above.len() > 1 || model.mounted.values().any(|mounted| mounted == name) || device.swap {
        return Err("it is in use".to_owned());
    }
    let is_path = |other: &Device| other.name != name && other.kind == Kind::Disk && other.wwid == device.wwid;
    if device.wwid.is_some() && model.devices.iter().any(|(other, _)| is_path(other)) {
        return Err("another path leads to it".to_owned());
    }
    if device.kind == Kind::Array {
        let own = |parent: &String| matches!(model.truth(parent), Some(Truth::Member { array, .. }) if model.node.owner(*array) == Some(crate::identity::Owner::ThisNode));
        if !device.parents.iter().all(own) {
            return Err("it is somebody else's array".to_owned());
        }
    }
    let prepared = |wanted: fn(&Step) -> bool| {
        earlier.iter().any(|step| wanted(step) && step.written().iter().any(|target| target.name == name))
    };
    let fine = match (step, model.truth(name)) {
        (Step::Mark { .. } | Step::CreateArray { .. }, Some(Truth::Empty)) => true,
        (Step::Format { .. }, Some(Truth::Empty)) => prepared(|step| matches!(step, Step::Mark { .. })),
        (Step::Unmark { .. }, Some(Truth::Empty)) => prepared(|step| matches!(step, Step::Format { .. })),
        (Step::Clear { uuid, .. }, Some(Truth::Marked { uuid: found, stranger: false, claimed: false, .. })) => {
            uuid == found
        }
        (
            Step::Format { uuid, .. },
            Some(Truth::Marked { uuid: found, blocks, stranger: false, claimed: false, .. }),
        ) => uuid == found && (!blocks || prepared(|step| matches!(step, Step::Clear { .. }))),
        (Step::Unmark { uuid, .. }, Some(Truth::Marked { uuid: found, .. })) => {
            uuid == found && prepared(|step| matches!(step, Step::Format { .. }))
        }
        (Step::ClearMember { uuid, .. }, Some(Truth::Member { array, used: false, .. })) => uuid == array,
        _ => false,
    };
    if fine { Ok(()) } else { Err(format!("it carries {:?}", model.truth(name))) }
}

/// The root file system on a stack above a disk: partition, volume group, encryption, array, in any order.
fn root() -> impl Strategy<Value = Option<(usize, Vec<Kind>)>> {
    let kind = prop::sample::select(&[Kind::Partition, Kind::Mapping, Kind::Mapping, Kind::Array][..]);
    prop::option::of((0..7_usize, prop::collection::vec(kind, 0..4)))
}

/// Puts the root file system above a disk, which may look empty all the same: what is read is not what protects it.
fn put_root(devices: &mut Vec<(Device, Option<Truth>)>, root: Option<(usize, Vec<Kind>)>) -> Option<String> {
    let (base, stack) = root.filter(|(base, _)| *base < devices.len())?;
    let mut below = base;
    for (level, kind) in stack.into_iter().enumerate() {
        let minor = u32::try_from(level).expect("low stacks");
        let mut device = Device::new(format!("r{level}"), DeviceNumber { major: 253, minor }, kind);
        device.size = 90 * GIB;
        let lower = &mut devices[below].0;
        // One direction is enough: the other is found from it.
        if level % 2 == 0 {
            device.parents.insert(lower.name.clone());
        } else if kind == Kind::Partition {
            lower.partitions.insert(device.name.clone());
        } else {
            lower.holders.insert(device.name.clone());
        }
        devices.push((device, Some(Truth::Empty)));
        below = devices.len() - 1;
    }
    Some(devices[below].0.name.clone())
}

/// A machine, and what is asked of it.
type Machine = (Vec<(Device, Option<Truth>)>, Use, Option<(usize, Vec<Kind>)>, Vec<Volume>);

/// Anything with anything: nearly all of it is refused.
fn wild() -> impl Strategy<Value = Machine> {
    (devices(), uses(), root(), prop::collection::vec(volume(), 1..4))
}

/// A node as there are many: its instance store new, in use, or as an interrupted run has left it, a data disk perhaps, and beside them
/// what others have left.
fn usual() -> impl Strategy<Value = Machine> {
    let others = prop::collection::vec(content(), 0..3);
    let store = (1..4_u32, 0..6_u8, prop::bool::weighted(0.3), 1..4_u32, any::<[bool; 3]>());
    let drawn = (store, any::<bool>(), others, prop::option::weighted(0.3, root()), prop::bool::weighted(0.05));
    drawn.prop_map(|(store, data, others, root, two_paths)| {
        let (count, state, each, members, [blocks, signature, used]) = store;
        let node = Node::new("i-this");
        let truth = |index: u32| {
            let key = if each { format!("/data/{index}") } else { "/data".to_owned() };
            let uuid = node.uuid(&key, Made::FileSystem);
            match state {
                0 if each || count == 1 => Truth::Fs { uuid, kind: "xfs" },
                1 | 2 if each || count == 1 => {
                    Truth::Marked { uuid, blocks, signature: blocks && signature, stranger: false, claimed: false }
                }
                1 | 2 if index < members => {
                    Truth::Member { array: node.uuid("/data", Made::Array), disks: count, used }
                }
                _ => Truth::Empty,
            }
        };
        let mut devices: Vec<(Device, Option<Truth>)> = (0..count)
            .map(|index| (disk(&format!("d{index}"), index, Role::InstanceStore), Some(truth(index))))
            .collect();
        let mut volumes = vec![Volume { each, ..Volume::new(What::InstanceStore, "/data") }];
        let mut add = |role, truth| {
            let index = u32::try_from(devices.len()).expect("few disks");
            devices.push((disk(&format!("d{index}"), index, role), truth));
        };
        if data {
            add(Role::CloudDisk, Some(Truth::Empty));
            volumes.push(Volume::new(What::OnlyEmpty, "/b"));
        }
        others.into_iter().for_each(|truth| add(Role::DataDisk, truth));
        if two_paths {
            let (mut path, truth) = devices[0].clone();
            path.name = "path".to_owned();
            path.path = "/dev/path".into();
            path.number.minor = 99;
            devices.push((path, truth));
        }
        let uses = Use { mounts: Vec::new(), swaps: Vec::new(), links: Vec::new() };
        (devices, uses, root.flatten(), volumes)
    })
}

/// What plans came to. A property of plans that do nothing would prove nothing.
#[derive(Debug, Default)]
struct Came {
    plans: u32,
    carried_out: u32,
    formatted: u32,
    arrays: u32,
    taken_up: u32,
    mounted_as_found: u32,
    refused: u32,
    with_root_below: u32,
    refused_for_paths: u32,
}

impl Came {
    fn count(&mut self, model: &Model, plan: &Plan, root: bool) {
        let has = |wanted: fn(&Step) -> bool| u32::from(plan.steps.iter().any(|planned| wanted(&planned.step)));
        let formats = has(|step| matches!(step, Step::Format { .. }));
        let found = plan.steps.iter().any(|planned| match &planned.step {
            Step::Mount { device, .. } => matches!(model.truth(&device.name), Some(Truth::Fs { .. })),
            _ => false,
        });
        self.plans += 1;
        self.refused += u32::from(!plan.refusals.is_empty());
        self.carried_out += u32::from(plan.refusals.is_empty() && !plan.steps.is_empty());
        self.formatted += formats;
        self.arrays += has(|step| matches!(step, Step::CreateArray { .. }));
        self.taken_up += has(|step| matches!(step, Step::Clear { .. } | Step::ClearMember { .. }));
        self.mounted_as_found += u32::from(found);
        let for_paths = |refusal: &crate::step::Refusal| refusal.why.contains("over another path");
        self.refused_for_paths += u32::from(plan.refusals.iter().any(for_paths));
        self.with_root_below += u32::from(root && formats > 0);
    }
}

/// What is asked of each plan.
fn hold(model: &Model, request: &Request, plan: &Plan) -> Result<(), TestCaseError> {
    let steps: Vec<&Step> = plan.steps.iter().map(|planned| &planned.step).collect();
    let mut owners: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (index, planned) in plan.steps.iter().enumerate() {
        for target in planned.step.written() {
            // A loop device is somebody's file, unless a person has named it.
            let is_loop = model.inventory().get(&target.name).is_some_and(|device| device.kind == Kind::Loop);
            let named = request.volumes.iter().any(|volume| match &volume.what {
                What::Device(path) => *path == target.path,
                What::Devices(paths) => paths.contains(&target.path),
                _ => false,
            });
            prop_assert!(!is_loop || named, "{} {model:?}", planned.step);
            let role = model.inventory().get(&target.name).map(|device| device.role);
            prop_assert_ne!(role, Some(Role::Root), "{} {:?}", planned.step, model);
            let allowed = may_write(model, &planned.step, &target.name, &steps[..index]);
            prop_assert_eq!(&allowed, &Ok(()), "{} {:?}", planned.step, model);
            let owner = owners.entry(target.name.clone()).or_insert_with(|| planned.volume.clone());
            prop_assert_eq!(&*owner, &planned.volume);
        }
        if let Step::Mount { device, at, uuid, .. } = &planned.step {
            let existing = request.volumes.iter().any(|volume| volume.existing && volume.mount == *at);
            let made =
                steps[..index].iter().any(|step| matches!(step, Step::Unmark { device: other, .. } if other == device));
            let ours = match model.truth(&device.name) {
                Some(Truth::Fs { uuid: found, .. }) => {
                    Some(found.to_string()) == *uuid
                        && model.node.owner(*found) == Some(crate::identity::Owner::ThisNode)
                }
                _ => false,
            };
            prop_assert!(existing || made || ours, "{} {:?}", planned.step, model);
            prop_assert!(!(existing && made));
            prop_assert!(!model.mounted.contains_key(at));
        }
    }
    // Every volume is settled, planned for, or refused.
    for volume in &request.volumes {
        let about = |at: &PathBuf| at.starts_with(&volume.mount);
        prop_assert!(
            plan.refusals.iter().any(|refusal| about(&refusal.volume))
                || plan.steps.iter().any(|planned| about(&planned.volume))
                || plan.settled.iter().any(|settled| about(&settled.volume))
                // A request that cannot be is refused as a whole.
                || request.check().is_err(),
            "{} {plan:?}",
            volume.mount.display()
        );
    }
    Ok(())
}

#[test]
fn no_plan_touches_what_is_not_provably_empty_or_ours() {
    let config = ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() };
    let came = RefCell::new(Came::default());
    let machines = prop_oneof![wild(), usual()];
    let outcome = TestRunner::new(config).run(&machines, |(devices, uses, root, volumes)| {
        let mut model = model(devices, &uses);
        let root = put_root(&mut model.devices, root);
        let has_root = root.is_some();
        model.mounted.extend(root.map(|name| (PathBuf::from("/"), name)));
        let request = request(volumes);
        let plan = model.plan(&request);
        came.borrow_mut().count(&model, &plan, has_root);
        hold(&model, &request, &plan)
    });
    let came = came.into_inner();
    println!("{came:?}");
    assert!(outcome.is_ok(), "{outcome:?}");
    // A third of what it usually comes to.
    for (what, count, least) in [
        ("carried out", came.carried_out, 1500),
        ("formatted", came.formatted, 1200),
        ("arrays", came.arrays, 500),
        ("taken up", came.taken_up, 200),
        ("mounted as found", came.mounted_as_found, 150),
        ("refused", came.refused, 1800),
        ("formatted beside a root", came.with_root_below, 100),
        ("refused for paths", came.refused_for_paths, 100),
    ] {
        assert!(count >= least, "only {count} of {} plans were {what}", came.plans);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_interrupted_run_is_taken_up(
        disks in 1..4_u32,
        each: bool,
        data: bool,
        kills in prop::collection::vec((0..12_usize, any::<bool>(), 0..3_u8), 0..5),
    ) {
        let mut model = Model::store(disks);
        model.devices.push((disk("nvme9n1", 9, Role::CloudDisk), Some(Truth::Empty)));
        let mut volumes = vec![Volume { each, ..Volume::new(What::InstanceStore, "/data") }];
        if data {
            volumes.push(Volume::new(What::OnlyEmpty, "/b"));
        }
        let request: Request = request(volumes);
        for (after, torn, then) in kills {
            let mut left = after;
            'run: for _ in 0..8 {
                let plan = model.plan(&request);
                prop_assert!(plan.refusals.is_empty(), "{:?} {model:?}", plan.refusals);
                for planned in plan.steps {
                    if left == 0 {
                        if torn {
                            model.perform(&planned.step, true);
                        }
                        break 'run;
                    }
                    left -= 1;
                    model.perform(&planned.step, false);
                }
            }
            match then {
                0 => {}
                1 => model.reboot(),
                _ => model.restart_elsewhere(),
            }
        }
        let result = model.settle(&request);
        prop_assert!(result.is_ok(), "{result:?} {model:?}");
        let mounts = if each { usize::try_from(disks).expect("few disks") } else { 1 } + usize::from(data);
        prop_assert_eq!(model.mounted.len(), mounts);
        prop_assert_eq!(model.settle(&request), Ok(Vec::new()));
    }
}
