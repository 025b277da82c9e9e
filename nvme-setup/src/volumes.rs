//! The volumes that are on the disks, told from the disks alone: what was made by this program, of which devices, and how far it is.
//!
//! A pure function of what was seen. It knows no request: whether a volume is wanted, and what would be done with it, is the business of
//! a [`plan`](crate::plan()).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::device::{Device, Kind};
use crate::examine::Evidence;
use crate::identity::{Node, Owner, Uuid};
use crate::inventory::Inventory;
use crate::signature::{Content, Signature};
use crate::trace::Traces;

/// A volume, or what there is of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeStatus {
    /// The disks that it lies on, by path.
    pub devices: Vec<PathBuf>,
    /// The array that they make up, where there is one, by path.
    pub array: Option<PathBuf>,
    /// The UUID of its file system, or of its array as long as there is none.
    pub uuid: Uuid,
    /// Whose it is.
    pub made_by: Owner,
    /// The file system.
    pub fs: Option<String>,
    /// Its label.
    pub label: Option<String>,
    /// Where it is mounted, as text.
    pub mounted_at: Vec<String>,
    /// How far it is.
    #[serde(flatten)]
    pub state: VolumeState,
}

/// How far a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum VolumeState {
    /// It is there.
    Mounted,
    /// It is complete and not mounted.
    NotMounted,
    /// An interrupted run has left it.
    Unfinished,
    /// Its array is not put together.
    NotAssembled,
    /// Disks of its array are missing: all that was on it is lost.
    Incomplete {
        /// How many there are.
        disks: u32,
        /// How many it had.
        expected: u32,
    },
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted => f.write_str("mounted"),
            Self::NotMounted => f.write_str("not mounted"),
            Self::Unfinished => f.write_str("unfinished"),
            Self::NotAssembled => f.write_str("not assembled"),
            Self::Incomplete { disks, expected } => write!(f, "incomplete: {disks} of {expected} disks"),
        }
    }
}

/// All volumes that were made by this program, by the names of their devices.
pub fn volumes(
    inventory: &Inventory,
    evidence: &BTreeMap<String, Evidence>,
    traces: &BTreeMap<String, Traces>,
    node: &Node,
) -> Vec<VolumeStatus> {
    let seen = Seen { inventory, evidence, traces, node };
    let file_systems = inventory.devices().iter().filter_map(|device| seen.file_system(device));
    let mut volumes: Vec<VolumeStatus> = file_systems.collect();
    let arrays: BTreeSet<Uuid> = inventory.devices().iter().filter_map(|device| seen.member_of(device)).collect();
    for array in arrays {
        let shown = |device: &&Device| volumes.iter().any(|volume| volume.devices.contains(&device.path));
        let members: Vec<&Device> =
            inventory.devices().iter().filter(|device| seen.member_of(device) == Some(array)).collect();
        if !members.iter().any(shown) {
            volumes.extend(seen.array(array, &members));
        }
    }
    volumes.sort_by(|one, other| one.devices.cmp(&other.devices));
    volumes
}

struct Seen<'a> {
    inventory: &'a Inventory,
    evidence: &'a BTreeMap<String, Evidence>,
    traces: &'a BTreeMap<String, Traces>,
    node: &'a Node,
}

impl<'a> Seen<'a> {
    fn signature(&self, device: &Device) -> Option<&'a Signature> {
        match &self.evidence.get(&device.name)?.content {
            Content::Signature(signature) => Some(signature),
            _ => None,
        }
    }

    /// The UUID of what a device carries, and whose it is, if it is one of ours.
    fn carried(&self, device: &Device) -> Option<(Uuid, Owner)> {
        let uuid = self.signature(device)?.uuid.as_deref()?.parse().ok()?;
        Some((uuid, self.node.owner(uuid)?))
    }

    fn is_member(&self, device: &Device) -> bool {
        self.signature(device).is_some_and(|signature| signature.kind.as_deref() == Some("linux_raid_member"))
    }

    /// The array of ours that a device is a part of.
    fn member_of(&self, device: &Device) -> Option<Uuid> {
        self.carried(device).filter(|_| self.is_member(device)).map(|(uuid, _)| uuid)
    }

    /// The volume whose file system a device carries, or the beginning of one.
    fn file_system(&self, device: &Device) -> Option<VolumeStatus> {
        let mark = self.traces.get(&device.name).and_then(|traces| traces.mark);
        let (uuid, made_by) = match (self.carried(device).filter(|_| !self.is_member(device)), mark) {
            (Some(carried), _) => carried,
            (None, Some(mark)) => (mark, self.node.owner(mark)?),
            (None, None) => return None,
        };
        let mounted_at: Vec<String> =
            device.mounts.iter().map(|mount| mount.at.to_string_lossy().into_owned()).collect();
        let signature = self.signature(device);
        let state = match () {
            () if !mounted_at.is_empty() => VolumeState::Mounted,
            () if mark.is_some() => VolumeState::Unfinished,
            () => VolumeState::NotMounted,
        };
        let (devices, array) = self.below(device);
        Some(VolumeStatus {
            devices,
            array,
            uuid,
            made_by,
            fs: signature.and_then(|signature| signature.kind.clone()),
            label: signature.and_then(|signature| signature.label.clone()),
            mounted_at,
            state,
        })
    }

    /// The disks that a file system lies on, and the array of them.
    fn below(&self, device: &Device) -> (Vec<PathBuf>, Option<PathBuf>) {
        if device.kind != Kind::Array {
            return (vec![device.path.clone()], None);
        }
        let parents = device.parents.iter().filter_map(|name| self.inventory.get(name));
        (parents.map(|parent| parent.path.clone()).collect(), Some(device.path.clone()))
    }

    /// What there is of a volume whose file system cannot be seen: only the members of its array, or an array with nothing on it.
    fn array(&self, uuid: Uuid, members: &[&Device]) -> Option<VolumeStatus> {
        let is_array = |device: &&Device| {
            device.kind == Kind::Array && members.iter().all(|member| device.parents.contains(&member.name))
        };
        let array = self.inventory.devices().iter().find(is_array);
        let expected =
            members.iter().filter_map(|member| self.traces.get(&member.name)?.member).map(|member| member.disks);
        let (disks, expected) = (u32::try_from(members.len()).ok()?, expected.max());
        Some(VolumeStatus {
            devices: members.iter().map(|member| member.path.clone()).collect(),
            array: array.map(|array| array.path.clone()),
            uuid,
            made_by: self.node.owner(uuid)?,
            fs: None,
            label: None,
            mounted_at: Vec::new(),
            state: match expected {
                _ if array.is_some() => VolumeState::Unfinished,
                Some(expected) if disks < expected => VolumeState::Incomplete { disks, expected },
                _ => VolumeState::NotAssembled,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceNumber, Mount};
    use crate::identity::Made;
    use crate::inventory::Facts;
    use crate::trace::Member;

    /// Disks by name with what each carries: kind and UUID of a signature.
    struct Machine {
        node: Node,
        devices: Vec<Device>,
        facts: Facts,
        evidence: BTreeMap<String, Evidence>,
        traces: BTreeMap<String, Traces>,
    }

    impl Machine {
        fn new() -> Self {
            Self {
                node: Node::new("i-this"),
                devices: Vec::new(),
                facts: Facts::default(),
                evidence: BTreeMap::new(),
                traces: BTreeMap::new(),
            }
        }

        fn add(&mut self, name: &str, kind: Kind, carries: Option<(&str, Uuid)>) -> &mut Device {
            let minor = u32::try_from(self.devices.len()).unwrap();
            let content = match carries {
                Some((kind, uuid)) => Content::Signature(Signature {
                    kind: Some(kind.to_owned()),
                    uuid: Some(uuid.to_string()),
                    label: Some("a label".to_owned()).filter(|_| kind == "xfs"),
                    ..Signature::default()
                }),
                None => Content::Empty { sampled: 1 },
            };
            self.evidence.insert(name.to_owned(), Evidence { content, claimed: false });
            self.devices.push(Device::new(name, DeviceNumber { major: 259, minor }, kind));
            self.devices.last_mut().unwrap()
        }

        fn shown(&self) -> Vec<(Vec<String>, Option<String>, VolumeState, Owner)> {
            let inventory = Inventory::assemble(self.devices.clone(), &self.facts);
            let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            volumes(&inventory, &self.evidence, &self.traces, &self.node)
                .iter()
                .map(|v| (v.devices.iter().map(name).collect(), v.array.as_ref().map(name), v.state, v.made_by))
                .collect()
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn plain_volumes_are_mounted_or_not_or_begun_or_somebody_elses() {
        let mut machine = Machine::new();
        let of = |node: &Node, key: &str| node.uuid(key, Made::FileSystem);
        let (node, other) = (machine.node.clone(), Node::new("i-other"));
        machine.add("a", Kind::Disk, Some(("xfs", of(&node, "/a"))));
        machine.facts.mounts.push(("a".into(), Mount { at: "/a".into(), fs_type: "xfs".into() }));
        machine.add("b", Kind::Disk, Some(("ext4", of(&node, "/b"))));
        machine.add("c", Kind::Disk, None);
        machine.evidence.get_mut("c").unwrap().content = Content::Data { first_nonzero_at: 0 };
        machine.traces.insert("c".into(), Traces { mark: Some(of(&node, "/c")), ..Traces::default() });
        machine.add("d", Kind::Disk, Some(("xfs", of(&other, "/a"))));
        let foreign = "c8b5b2da-0000-4000-8000-000000000001".parse().unwrap();
        machine.add("e", Kind::Disk, Some(("xfs", foreign)));
        machine.add("f", Kind::Disk, None);
        assert_eq!(
            machine.shown(),
            [
                (names(&["a"]), None, VolumeState::Mounted, Owner::ThisNode),
                (names(&["b"]), None, VolumeState::NotMounted, Owner::ThisNode),
                (names(&["c"]), None, VolumeState::Unfinished, Owner::ThisNode),
                (names(&["d"]), None, VolumeState::NotMounted, Owner::AnotherNode),
            ]
        );
    }

    #[test]
    fn the_disks_of_an_array_are_one_volume_however_far_it_is() {
        let mut machine = Machine::new();
        let array = machine.node.uuid("/data", Made::Array);
        let fs = machine.node.uuid("/data", Made::FileSystem);
        let member = |machine: &mut Machine, name: &str| {
            machine.add(name, Kind::Disk, Some(("linux_raid_member", array)));
            let member = Some(Member { array, disks: 3 });
            machine.traces.insert(name.to_owned(), Traces { member, ..Traces::default() });
        };
        member(&mut machine, "a");
        member(&mut machine, "b");
        let two = names(&["a", "b"]);
        let incomplete = VolumeState::Incomplete { disks: 2, expected: 3 };
        assert_eq!(machine.shown(), [(two, None, incomplete, Owner::ThisNode)]);
        assert_eq!(incomplete.to_string(), "incomplete: 2 of 3 disks");
        member(&mut machine, "c");
        let all = names(&["a", "b", "c"]);
        assert_eq!(machine.shown(), [(all.clone(), None, VolumeState::NotAssembled, Owner::ThisNode)]);
        machine.add("md0", Kind::Array, None).parents = all.iter().cloned().collect();
        let md = Some("md0".to_owned());
        assert_eq!(machine.shown(), [(all.clone(), md.clone(), VolumeState::Unfinished, Owner::ThisNode)]);
        machine.devices.pop();
        machine.add("md0", Kind::Array, Some(("xfs", fs))).parents = all.iter().cloned().collect();
        assert_eq!(machine.shown(), [(all, md, VolumeState::NotMounted, Owner::ThisNode)]);
    }
}
