//! A model of disks, and of what each step does to them, torn in the middle included.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::device::{Device, DeviceNumber, Kind, Mount, Role};
use crate::examine::Evidence;
use crate::identity::{Made, Node, Uuid};
use crate::inventory::{Facts, Inventory};
use crate::plan::plan;
use crate::request::{Request, Volume, What};
use crate::signature::{Content, Signature};
use crate::step::{Plan, Step, Target};
use crate::trace::{Member, Traces};
use crate::world::{Place, World};

pub(super) const GIB: u64 = 1 << 30;

/// What really is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Truth {
    /// Zeros.
    Empty,
    /// Something that has nothing to do with us, as it is seen.
    Foreign(Content),
    /// A complete file system.
    Fs { uuid: Uuid, kind: &'static str },
    /// The mark of a file system, and what `mkfs` has written so far. `stranger`: something else, too.
    Marked { uuid: Uuid, blocks: bool, signature: bool, stranger: bool, claimed: bool },
    /// A member of an array. `used`: something has been written to the array.
    Member { array: Uuid, disks: u32, used: bool },
}

/// The machine.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) node: Node,
    pub(super) devices: Vec<(Device, Option<Truth>)>,
    /// What is in arrays, whether they run or not.
    pub(super) arrays: BTreeMap<Uuid, Truth>,
    pub(super) mounted: BTreeMap<PathBuf, String>,
    pub(super) directories: BTreeSet<PathBuf>,
    pub(super) places: BTreeMap<PathBuf, Place>,
    pub(super) swap_files: BTreeSet<PathBuf>,
}

pub(super) fn disk(name: &str, minor: u32, role: Role) -> Device {
    let mut disk = Device::new(name, DeviceNumber { major: 259, minor }, Kind::Disk);
    disk.size = 100 * GIB;
    disk.model = match role {
        Role::InstanceStore => Some("Amazon EC2 NVMe Instance Storage".to_owned()),
        Role::CloudDisk => Some("Amazon Elastic Block Store".to_owned()),
        _ => None,
    };
    disk.serial = Some(format!("vol{minor}"));
    disk.wwid = Some(format!("nvme.{minor:04}"));
    disk.by_id = vec![format!("/dev/disk/by-id/nvme-{minor:04}").into()];
    disk
}

pub(super) fn foreign(kind: &str) -> Truth {
    let usage = if kind == "linux_raid_member" { "raid" } else { "filesystem" };
    Truth::Foreign(Content::Signature(Signature {
        kind: Some(kind.to_owned()),
        usage: Some(usage.to_owned()),
        uuid: Some("c8b5b2da-0000-4000-8000-000000000001".to_owned()),
        ..Signature::default()
    }))
}

impl Model {
    pub(super) fn new(devices: impl IntoIterator<Item = (Device, Truth)>) -> Self {
        Self {
            node: Node::new("i-this"),
            devices: devices.into_iter().map(|(device, truth)| (device, Some(truth))).collect(),
            arrays: BTreeMap::new(),
            mounted: BTreeMap::new(),
            directories: BTreeSet::new(),
            places: BTreeMap::new(),
            swap_files: BTreeSet::new(),
        }
    }

    /// This many empty instance-store disks.
    pub(super) fn store(count: u32) -> Self {
        let name = |index: u32| format!("nvme{index}n1");
        Self::new((0..count).map(|index| (disk(&name(index), index, Role::InstanceStore), Truth::Empty)))
    }

    pub(super) fn fs_uuid(&self, key: &str) -> Uuid {
        self.node.uuid(key, Made::FileSystem)
    }

    pub(super) fn truth(&self, name: &str) -> Option<&Truth> {
        self.devices.iter().find(|(device, _)| device.name == name).and_then(|(_, truth)| truth.as_ref())
    }

    pub(super) fn set(&mut self, name: &str, new: Truth) {
        // What is written to an array lies on its members.
        if let Some(uuid) = self.array_of(name) {
            self.arrays.insert(uuid, new.clone());
            let parents = self.device(name).parents.clone();
            for parent in parents {
                if let Some(Some(Truth::Member { used, .. })) = self.slot(&parent) {
                    *used = true;
                }
            }
        }
        *self.slot(name).expect("the device is there") = Some(new);
    }

    fn slot(&mut self, name: &str) -> Option<&mut Option<Truth>> {
        self.devices.iter_mut().find(|(device, _)| device.name == name).map(|(_, truth)| truth)
    }

    pub(super) fn device(&self, name: &str) -> &Device {
        self.devices.iter().map(|(device, _)| device).find(|device| device.name == name).expect("the device is there")
    }

    fn array_of(&self, name: &str) -> Option<Uuid> {
        let parents =
            &self.devices.iter().find(|(device, _)| device.name == name && device.kind == Kind::Array)?.0.parents;
        match self.truth(parents.first()?)? {
            Truth::Member { array, .. } => Some(*array),
            _ => None,
        }
    }

    pub(super) fn inventory(&self) -> Inventory {
        let mount =
            |(at, name): (&PathBuf, &String)| (name.clone(), Mount { at: at.clone(), fs_type: "xfs".to_owned() });
        let facts = Facts { mounts: self.mounted.iter().map(mount).collect(), ..Facts::default() };
        Inventory::assemble(self.devices.iter().map(|(device, _)| device.clone()).collect(), &facts)
    }

    /// What the machine looks like.
    pub(super) fn world(&self, request: &Request) -> World {
        let inventory = self.inventory();
        let mut evidence = BTreeMap::new();
        let mut traces = BTreeMap::new();
        for (device, truth) in &self.devices {
            let Some(truth) = truth else { continue };
            let (content, found) = seen(truth);
            evidence.insert(device.name.clone(), Evidence { content, claimed: false });
            traces.extend(found.map(|found| (device.name.clone(), found)));
        }
        let mut named = BTreeMap::new();
        let mut places = BTreeMap::new();
        for volume in &request.volumes {
            let paths = match &volume.what {
                What::Device(path) => std::slice::from_ref(path),
                What::Devices(paths) => paths,
                _ => &[],
            };
            for path in paths {
                if let Some(device) = inventory.devices().iter().find(|device| device.path == *path) {
                    named.insert(path.clone(), device.name.clone());
                }
            }
            let each = (0..crate::request::MOST_SLOTS).map(|index| volume.mount.join(index.to_string()));
            for at in each.chain([volume.mount.clone()]) {
                let place = self.place(&at);
                places.insert(at, place);
            }
        }
        World { inventory, evidence, traces, named, places, swap_files: self.swap_files.clone() }
    }

    fn place(&self, at: &Path) -> Place {
        if let Some(name) = self.mounted.get(at) {
            return Place::Mounted { number: self.device(name).number, fs_type: "xfs".to_owned() };
        }
        if let Some(place) = self.places.get(at) {
            return place.clone();
        }
        if self.directories.contains(at) { Place::Empty } else { Place::Missing }
    }

    pub(super) fn plan(&self, request: &Request) -> Plan {
        plan(&self.world(request), request, &self.node)
    }

    /// Does a step, after checking what no step may ever do. `torn`: it is killed in the middle.
    pub(super) fn perform(&mut self, step: &Step, torn: bool) {
        for target in step.written() {
            assert!(self.is_free(&target.name), "{step} writes to something that is in use");
        }
        match step {
            Step::LookAgain | Step::Assemble { .. } if torn => {}
            Step::LookAgain => {}
            Step::Mark { device, uuid } => {
                assert_eq!(self.truth(&device.name), Some(&Truth::Empty), "{step}");
                if !torn {
                    let mark =
                        Truth::Marked { uuid: *uuid, blocks: false, signature: false, stranger: false, claimed: false };
                    self.set(&device.name, mark);
                }
            }
            Step::Clear { device, uuid } => {
                self.assert_marked(step, device, *uuid, true);
                if !torn {
                    let mark =
                        Truth::Marked { uuid: *uuid, blocks: false, signature: false, stranger: false, claimed: false };
                    self.set(&device.name, mark);
                }
            }
            Step::Format { device, uuid, .. } => {
                self.assert_marked(step, device, *uuid, false);
                let mark =
                    Truth::Marked { uuid: *uuid, blocks: true, signature: !torn, stranger: false, claimed: false };
                self.set(&device.name, mark);
            }
            Step::Unmark { device, uuid } => {
                assert!(
                    matches!(self.truth(&device.name), Some(Truth::Marked { uuid: found, signature: true, .. }) if found == uuid)
                );
                if !torn {
                    self.set(&device.name, Truth::Fs { uuid: *uuid, kind: "xfs" });
                }
            }
            Step::CreateArray { members, uuid, .. } => {
                let count = u32::try_from(members.len()).expect("few disks");
                for (index, member) in members.iter().enumerate() {
                    assert_eq!(self.truth(&member.name), Some(&Truth::Empty), "{step}");
                    if !torn || index == 0 {
                        self.set(&member.name, Truth::Member { array: *uuid, disks: count, used: false });
                    }
                }
                if !torn {
                    self.arrays.insert(*uuid, Truth::Empty);
                    self.start(members, *uuid);
                }
            }
            Step::Assemble { members, uuid, .. } => {
                for member in members {
                    let found = self.truth(&member.name);
                    assert!(
                        matches!(found, Some(Truth::Member { array, disks, .. })
                        if array == uuid && usize::try_from(*disks).expect("few disks") == members.len()),
                        "{step}"
                    );
                }
                self.start(members, *uuid);
            }
            Step::StopArray { device, .. } => {
                assert!(self.device(&device.name).size == 0, "{step}");
                self.stop_arrays();
            }
            Step::ClearMember { device, uuid } => {
                assert_eq!(
                    self.truth(&device.name)
                        .map(|truth| matches!(truth, Truth::Member { array, used: false, .. } if array == uuid)),
                    Some(true),
                    "{step}"
                );
                if !torn {
                    self.set(&device.name, Truth::Empty);
                }
            }
            Step::MakeDirectory { at } => {
                self.directories.insert(at.clone());
            }
            Step::Mount { device, at, .. } => {
                assert!(matches!(self.truth(&device.name), Some(Truth::Fs { .. } | Truth::Foreign(_))), "{step}");
                assert_eq!(self.place(at), Place::Empty, "{step}");
                if !torn {
                    self.mounted.insert(at.clone(), device.name.clone());
                }
            }
            Step::MakeSwap { .. } => {}
            Step::SwapOn { file } => {
                self.swap_files.insert(file.clone());
            }
        }
    }

    fn assert_marked(&self, step: &Step, device: &Target, uuid: Uuid, blocks: bool) {
        match self.truth(&device.name) {
            Some(Truth::Marked { uuid: found, blocks: written, stranger: false, claimed: false, .. })
                if *found == uuid && (blocks || !written) => {}
            found => panic!("{step}: {found:?}"),
        }
    }

    fn is_free(&self, name: &str) -> bool {
        let inventory = self.inventory();
        let device = inventory.get(name).expect("the device is there");
        let used = |device: &Device| !device.mounts.is_empty() || device.swap;
        !used(device)
            && device.role != Role::Root
            && device.partitions.is_empty()
            && device.holders.is_empty()
            && !device.read_only
            && !inventory.descendants(device).into_iter().any(used)
    }

    fn start(&mut self, members: &[Target], uuid: Uuid) {
        let mut array = Device::new("md127", DeviceNumber { major: 9, minor: 127 }, Kind::Array);
        array.size = members.iter().map(|member| member.size).sum();
        array.parents = members.iter().map(|member| member.name.clone()).collect();
        for (device, _) in &mut self.devices {
            if array.parents.contains(&device.name) {
                device.holders.insert(array.name.clone());
            }
        }
        let content = self.arrays.get(&uuid).cloned();
        self.devices.push((array, content));
    }

    fn stop_arrays(&mut self) {
        self.devices.retain(|(device, _)| device.kind != Kind::Array);
        self.devices.iter_mut().for_each(|(device, _)| device.holders.clear());
    }

    /// Nothing runs any more; the disks are as they were.
    pub(super) fn reboot(&mut self) {
        self.mounted.clear();
        self.swap_files.clear();
        self.stop_arrays();
    }

    /// The instance has been stopped and started: its own disks are empty.
    pub(super) fn restart_elsewhere(&mut self) {
        self.reboot();
        self.arrays.clear();
        for (device, truth) in &mut self.devices {
            if device.model.as_deref() == Some("Amazon EC2 NVMe Instance Storage") {
                *truth = Some(Truth::Empty);
            }
        }
    }

    /// Plans and does until there is nothing to do; returns the steps. A refusal is an error.
    pub(super) fn settle(&mut self, request: &Request) -> Result<Vec<Step>, String> {
        let mut done = Vec::new();
        for _ in 0..8 {
            let plan = self.plan(request);
            if let Some(refusal) = plan.refusals.first() {
                return Err(refusal.to_string());
            }
            if plan.is_done() {
                return Ok(done);
            }
            for planned in plan.steps {
                self.perform(&planned.step, false);
                done.push(planned.step);
            }
        }
        panic!("there is no end: {:?}", self.plan(request));
    }
}

/// What is seen of what is there.
fn seen(truth: &Truth) -> (Content, Option<Traces>) {
    let signature = |kind: &str, usage: &str, uuid: Uuid| {
        Content::Signature(Signature {
            kind: Some(kind.to_owned()),
            usage: Some(usage.to_owned()),
            uuid: Some(uuid.to_string()),
            ..Signature::default()
        })
    };
    let stranger = Traces { stranger_at: Some(8192), ..Traces::default() };
    match truth {
        Truth::Empty => (Content::Empty { sampled: GIB }, None),
        Truth::Foreign(content) => (content.clone(), Some(stranger)),
        Truth::Fs { uuid, kind } => {
            (signature(kind, "filesystem", *uuid), Some(Traces { uuids: BTreeSet::from([*uuid]), ..stranger }))
        }
        Truth::Marked { uuid, blocks, signature: has, stranger, claimed } => {
            let content =
                if *has { signature("xfs", "filesystem", *uuid) } else { Content::Data { first_nonzero_at: 0 } };
            let uuids = if *blocks { BTreeSet::from([*uuid]) } else { BTreeSet::new() };
            let stranger_at = stranger.then_some(4096);
            (content, Some(Traces { mark: Some(*uuid), uuids, stranger_at, claimed: *claimed, ..Traces::default() }))
        }
        Truth::Member { array, disks, used } => {
            let traces = Traces {
                uuids: BTreeSet::from([*array]),
                stranger_at: used.then_some(GIB),
                member: Some(Member { array: *array, disks: *disks }),
                ..Traces::default()
            };
            (signature("linux_raid_member", "raid", *array), Some(traces))
        }
    }
}

pub(super) fn request(volumes: impl IntoIterator<Item = Volume>) -> Request {
    Request { volumes: volumes.into_iter().collect(), wait: 0 }
}
