//! Whether a device could be used as scratch space, and why not: a pure function of what was found out.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::device::{Device, Kind, Role};
use crate::examine::Evidence;
use crate::inventory::Inventory;
use crate::signature::{Content, Signature};
use crate::text::{human_size, printable, printable_os, serialize_path};

/// What a device has to be, besides free and empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The smallest size in bytes. By default 300 MiB, the smallest that `mkfs.xfs` makes a file system for.
    pub minimum_size: u64,
    /// Whether a loop device counts as a disk. Only for those that a person has named: a loop device is somebody's file.
    pub loop_devices: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { minimum_size: 300 << 20, loop_devices: false }
    }
}

/// A reason why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// It holds the root file system, or something that does lies on it.
    Root,
    /// It, or something on it, is mounted.
    Mounted {
        /// Which device is.
        device: String,
        /// Where.
        #[serde(serialize_with = "serialize_path")]
        at: PathBuf,
    },
    /// It, or something on it, is swapped on.
    Swap {
        /// Which device is.
        device: String,
    },
    /// Arrays or mappings lie on it.
    Held {
        /// Their names.
        by: Vec<String>,
    },
    /// Other devices are the same disk, seen over another path. Nothing is written over one of several paths: each keeps
    /// what it knows to itself, and two of them would make an array of one disk.
    AnotherPath {
        /// Their names.
        to: Vec<String>,
    },
    /// It has partitions.
    Partitioned {
        /// Their names.
        partitions: Vec<String>,
    },
    /// Only whole disks are used.
    NotADisk {
        /// What it is instead.
        kind: Kind,
    },
    /// It cannot be written.
    ReadOnly,
    /// It can be taken out.
    Removable,
    /// It is too small.
    TooSmall {
        /// Its size in bytes.
        size: u64,
        /// The smallest size in bytes.
        minimum: u64,
    },
    /// It carries something that is known by name.
    Carries {
        /// What.
        signature: Signature,
    },
    /// It carries something.
    Data {
        /// Where the first byte is that is not zero, of those that were looked at.
        first_nonzero_at: u64,
    },
    /// It carries several things that contradict each other.
    Ambiguous,
    /// What it carries could not be found out.
    Unknown {
        /// Why not.
        why: String,
    },
    /// The kernel keeps it for somebody whom nothing else shows.
    Claimed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("the root file system lies on it"),
            Self::Mounted { device, at } => write!(f, "{} is mounted at {}", printable(device), printable_os(at)),
            Self::Swap { device } => write!(f, "{} is used as swap", printable(device)),
            Self::Held { by } => write!(f, "it is in use by {}", printable(&by.join(", "))),
            Self::AnotherPath { to } => {
                write!(f, "it is the same disk as {}, seen over another path (multipath)", printable(&to.join(", ")))
            }
            Self::Partitioned { partitions } => write!(f, "it has partitions: {}", printable(&partitions.join(", "))),
            Self::NotADisk { kind } => write!(f, "it is {kind}, not a whole disk"),
            Self::ReadOnly => f.write_str("it is read-only"),
            Self::Removable => f.write_str("it is a removable medium"),
            Self::TooSmall { size, minimum } => {
                write!(f, "it is too small: {} of at least {}", human_size(*size), human_size(*minimum))
            }
            Self::Carries { signature } => write!(f, "it carries {signature}"),
            Self::Data { first_nonzero_at } => {
                write!(f, "it carries data of no known kind: the byte at {first_nonzero_at} is not zero")
            }
            Self::Ambiguous => f.write_str("it carries several signatures that contradict each other (see wipefs)"),
            Self::Unknown { why } => write!(f, "what it carries is not known: {}", printable(why)),
            Self::Claimed => f.write_str(
                "the kernel keeps it for somebody: mounted in another namespace, or opened exclusively by a program",
            ),
        }
    }
}

impl Reason {
    /// Whether it is about what the device carries, and not about what it is or who uses it.
    pub(crate) fn is_content(&self) -> bool {
        matches!(self, Self::Carries { .. } | Self::Data { .. } | Self::Ambiguous | Self::Unknown { .. })
    }

    /// The command that a person would run to make the device usable, *if nothing on it is needed*. Only for a device that
    /// nobody uses: what is mounted or held is not talked about.
    fn erase(&self, device: &Path) -> Option<String> {
        let device = printable_os(device);
        match self {
            Self::Carries { .. } | Self::Ambiguous => {
                Some(format!("wipefs --all {device} && blkdiscard --zeroout {device}"))
            }
            Self::Data { .. } => Some(format!("blkdiscard --zeroout {device}")),
            _ => None,
        }
    }
}

/// Whether a device could be used, and why or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    path: PathBuf,
    reasons: Vec<Reason>,
    /// How many bytes of it were read and found to be zero.
    sampled: u64,
}

impl Verdict {
    /// Whether the device could be used.
    pub fn usable(&self) -> bool {
        self.reasons.is_empty()
    }

    /// All reasons why it could not, the weightiest first.
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// The command that a person would run to make the device usable, *if nothing on it is needed*. None when its
    /// content is not all that stands in the way.
    pub fn erase_command(&self) -> Option<String> {
        match &*self.reasons {
            [only] => only.erase(&self.path),
            _ => None,
        }
    }
}

impl fmt::Display for Verdict {
    /// One line: `usable: ...`, or `no: ` with every reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.usable() {
            return write!(f, "usable: free, no signature, zeros in all {} that were read", human_size(self.sampled));
        }
        f.write_str("no: ")?;
        for (index, reason) in self.reasons.iter().enumerate() {
            write!(f, "{}{reason}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            #[serde(flatten)]
            reason: &'a Reason,
            sentence: String,
        }
        #[derive(Serialize)]
        struct Form<'a> {
            usable: bool,
            reasons: Vec<Entry<'a>>,
        }
        let entry = |reason| Entry { reason, sentence: Reason::to_string(reason) };
        Form { usable: self.usable(), reasons: self.reasons.iter().map(entry).collect() }.serialize(serializer)
    }
}

/// Judges one device of an inventory. `evidence` is what was found by looking at it; a device that nobody has looked at
/// cannot be used.
pub fn judge(inventory: &Inventory, device: &Device, evidence: Option<&Evidence>, rules: &Rules) -> Verdict {
    let mut reasons = Vec::new();
    if device.role == Role::Root {
        reasons.push(Reason::Root);
    }
    let on_it = inventory.descendants(device);
    for user in std::iter::once(device).chain(on_it) {
        let mounted = |at: &Path| Reason::Mounted { device: user.name.clone(), at: at.to_owned() };
        reasons.extend(user.mounts.iter().map(|mount| mounted(&mount.at)));
        if user.swap {
            reasons.push(Reason::Swap { device: user.name.clone() });
        }
    }
    if !device.holders.is_empty() {
        reasons.push(Reason::Held { by: device.holders.iter().cloned().collect() });
    }
    let to = inventory.other_paths(device);
    if !to.is_empty() {
        reasons.push(Reason::AnotherPath { to: to.iter().map(|other| other.name.clone()).collect() });
    }
    if !device.partitions.is_empty() {
        reasons.push(Reason::Partitioned { partitions: device.partitions.iter().cloned().collect() });
    }
    match device.kind {
        Kind::Disk => {}
        Kind::Loop if rules.loop_devices => {}
        kind => reasons.push(Reason::NotADisk { kind }),
    }
    if device.read_only {
        reasons.push(Reason::ReadOnly);
    }
    if device.removable {
        reasons.push(Reason::Removable);
    }
    if device.size < rules.minimum_size {
        reasons.push(Reason::TooSmall { size: device.size, minimum: rules.minimum_size });
    }
    let mut sampled = 0;
    match evidence.map(|evidence| &evidence.content) {
        Some(Content::Empty { sampled: 0 }) => {
            reasons.push(Reason::Unknown { why: "none of it was read".to_owned() });
        }
        Some(Content::Empty { sampled: bytes }) => sampled = *bytes,
        Some(Content::Signature(signature)) => reasons.push(Reason::Carries { signature: signature.clone() }),
        Some(Content::Data { first_nonzero_at }) => {
            reasons.push(Reason::Data { first_nonzero_at: *first_nonzero_at });
        }
        Some(Content::Ambiguous) => reasons.push(Reason::Ambiguous),
        Some(Content::Unknown { why }) => reasons.push(Reason::Unknown { why: why.clone() }),
        None => reasons.push(Reason::Unknown { why: "nobody has looked at it".to_owned() }),
    }
    if evidence.is_some_and(|evidence| evidence.claimed) {
        reasons.push(Reason::Claimed);
    }
    Verdict { path: device.path.clone(), reasons, sampled }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::device::{DeviceNumber, Mount};
    use crate::inventory::Facts;

    const GIB: u64 = 1 << 30;

    fn disk(name: &str) -> Device {
        let mut disk = Device::new(name, DeviceNumber { major: 259, minor: 0 }, Kind::Disk);
        disk.size = 100 * GIB;
        disk
    }

    fn empty() -> Evidence {
        Evidence { content: Content::Empty { sampled: GIB }, claimed: false }
    }

    fn judged(device: Device, evidence: &Evidence) -> String {
        let inventory = Inventory::assemble(vec![device.clone()], &Facts::default());
        judge(&inventory, &device, Some(evidence), &Rules::default()).to_string()
    }

    #[test]
    fn every_reason_is_a_sentence() {
        assert_eq!(judged(disk("x"), &empty()), "usable: free, no signature, zeros in all 1 GiB that were read");
        let content = |content| Evidence { content, claimed: false };
        let signature = Signature { kind: Some("ext4".into()), label: Some("a\u{1b}b".into()), ..Signature::default() };
        for (evidence, sentence) in [
            (content(Content::Signature(signature)), "it carries ext4 labelled \"a\\u{1b}b\""),
            (content(Content::Data { first_nonzero_at: 4096 }), "it carries data of no known kind: the byte at 4096"),
            (content(Content::Ambiguous), "several signatures that contradict each other"),
            (content(Content::Unknown { why: "x".into() }), "no: what it carries is not known: x"),
            (content(Content::Empty { sampled: 0 }), "none of it was read"),
            (Evidence { claimed: true, ..empty() }, "no: the kernel keeps it for somebody"),
        ] {
            let verdict = judged(disk("x"), &evidence);
            assert!(verdict.contains(sentence), "{verdict}");
        }
        for (change, sentence) in [
            ((|disk| disk.read_only = true) as fn(&mut Device), "no: it is read-only"),
            (|disk| disk.removable = true, "no: it is a removable medium"),
            (|disk| disk.size = 300 << 19, "no: it is too small: 150 MiB of at least 300 MiB"),
            (|disk| disk.kind = Kind::Mapping, "no: it is a mapping of the device mapper, not a whole disk"),
            (|disk| disk.swap = true, "no: x is used as swap"),
            (|disk| disk.wwid = Some("naa.6".into()), "usable: free, no signature, zeros in all 1 GiB that were read"),
            (|disk| disk.role = Role::Root, "no: the root file system lies on it"),
            (|disk| disk.holders = BTreeSet::from(["md0".into()]), "no: it is in use by md0"),
            (|disk| disk.partitions = BTreeSet::from(["x1".into(), "x2".into()]), "no: it has partitions: x1, x2"),
            (
                |disk| disk.mounts.push(Mount { at: "/da\nta".into(), fs_type: "xfs".into() }),
                "no: x is mounted at /da\\nta",
            ),
        ] {
            let mut disk = disk("x");
            change(&mut disk);
            assert_eq!(judged(disk, &empty()), sentence);
        }
    }

    #[test]
    fn what_nobody_looked_at_is_refused() {
        let device = disk("x");
        let inventory = Inventory::assemble(vec![device.clone()], &Facts::default());
        assert!(!judge(&inventory, &device, None, &Rules::default()).usable());
    }

    #[test]
    fn one_of_several_paths_to_a_disk_is_refused() {
        let path = |name: &str, wwid: Option<&str>, serial: Option<&str>| {
            let mut disk = disk(name);
            (disk.wwid, disk.serial) = (wwid.map(str::to_owned), serial.map(str::to_owned));
            disk
        };
        let verdict = |first: &Device, second: &Device| {
            let inventory = Inventory::assemble(vec![first.clone(), second.clone()], &Facts::default());
            judge(&inventory, first, Some(&empty()), &Rules::default())
        };
        let first = path("sda", Some("naa.6"), Some("S1"));
        let refused = verdict(&first, &path("sdb", Some("naa.6"), Some("S1")));
        assert_eq!(refused.to_string(), "no: it is the same disk as sdb, seen over another path (multipath)");
        assert_eq!(refused.erase_command(), None);
        assert!(
            !verdict(&first, &path("sdb", Some("naa.6"), None)).usable(),
            "not every path can say its serial number"
        );
        // Two namespaces of one controller have its serial number, and makers have given many disks one identifier.
        assert!(verdict(&first, &path("sdb", Some("naa.7"), Some("S1"))).usable());
        assert!(verdict(&first, &path("sdb", Some("naa.6"), Some("S2"))).usable());
        assert!(verdict(&path("vda", None, None), &path("vdb", None, None)).usable());
    }

    #[test]
    fn a_loop_device_is_a_disk_only_when_asked_for() {
        let mut device = disk("loop0");
        device.kind = Kind::Loop;
        let inventory = Inventory::assemble(vec![device.clone()], &Facts::default());
        let usable = |rules: &Rules| judge(&inventory, &device, Some(&empty()), rules).usable();
        assert!(!usable(&Rules::default()));
        assert!(usable(&Rules { loop_devices: true, ..Rules::default() }));
    }

    #[test]
    fn a_command_to_erase_is_named_only_when_nothing_else_is_in_the_way() {
        let data = Evidence { content: Content::Data { first_nonzero_at: 1 }, claimed: false };
        let erase = |device: Device| {
            let inventory = Inventory::assemble(vec![device.clone()], &Facts::default());
            judge(&inventory, &device, Some(&data), &Rules::default()).erase_command()
        };
        assert_eq!(erase(disk("x")).as_deref(), Some("blkdiscard --zeroout /dev/x"));
        let mut used = disk("x");
        used.mounts.push(Mount { at: "/data".into(), fs_type: "xfs".into() });
        assert_eq!(erase(used), None);
    }

    #[test]
    fn json_has_the_variant_and_the_sentence() {
        let mut device = disk("x");
        device.mounts.push(Mount { at: "/data".into(), fs_type: "xfs".into() });
        let inventory = Inventory::assemble(vec![device.clone()], &Facts::default());
        let verdict = judge(&inventory, &device, Some(&empty()), &Rules::default());
        assert_eq!(
            serde_json::to_string(&verdict).unwrap(),
            r#"{"usable":false,"reasons":[{"reason":"mounted","device":"x","at":"/data","sentence":"x is mounted at /data"}]}"#
        );
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            6 => Just(Kind::Disk),
            1 => Just(Kind::Partition),
            1 => Just(Kind::Loop),
            1 => Just(Kind::Array),
            1 => Just(Kind::Mapping),
            1 => Just(Kind::Ram),
            1 => Just(Kind::Virtual),
        ]
    }

    fn evidence() -> impl Strategy<Value = Option<Evidence>> {
        let content = prop_oneof![
            6 => (0..GIB).prop_map(|sampled| Content::Empty { sampled }),
            1 => Just(Content::Signature(Signature::default())),
            1 => (0..GIB).prop_map(|first_nonzero_at| Content::Data { first_nonzero_at }),
            1 => Just(Content::Ambiguous),
            1 => Just(Content::Unknown { why: "unknown".into() }),
        ];
        prop::option::weighted(
            0.9,
            (content, prop::bool::weighted(0.1)).prop_map(|(content, claimed)| Evidence { content, claimed }),
        )
    }

    /// One way in which sysfs can show that one device lies on another.
    #[derive(Debug, Clone, Copy)]
    enum Link {
        Parent,
        Partition,
        Holder,
    }

    /// A machine: devices, links from a device to one before it, mounts, swap, evidence. Often wrong in the ways of a machine
    /// whose stack is changing: links in one direction only, names of devices that are gone.
    #[derive(Debug, Clone)]
    struct Machine {
        devices: Vec<Device>,
        links: Vec<(usize, usize, Link)>,
        mounts: Vec<(usize, bool)>,
        swaps: Vec<usize>,
        evidence: Vec<Option<Evidence>>,
    }

    fn machines() -> impl Strategy<Value = Machine> {
        let device = (
            kinds(),
            prop_oneof![4 => GIB..1000 * GIB, 1 => 0..GIB],
            prop::bool::weighted(0.1),
            prop::bool::weighted(0.1),
            prop::option::weighted(0.3, 0..4_u8),
            evidence(),
        );
        let link = prop_oneof![Just(Link::Parent), Just(Link::Partition), Just(Link::Holder)];
        (
            prop::collection::vec(device, 1..12),
            prop::collection::vec((0_usize..12, 0_usize..12, link), 0..8),
            prop::collection::vec((0_usize..12, any::<bool>()), 0..4),
            prop::collection::vec(0_usize..12, 0..2),
        )
            .prop_map(|(devices, links, mounts, swaps)| {
                let mut machine = Machine { devices: Vec::new(), links, mounts, swaps, evidence: Vec::new() };
                for (index, (kind, size, read_only, removable, wwid, evidence)) in devices.into_iter().enumerate() {
                    let mut device = disk(&format!("d{index}"));
                    (device.kind, device.size, device.read_only, device.removable) = (kind, size, read_only, removable);
                    device.wwid = wwid.map(|wwid| format!("eui.{wwid}"));
                    machine.devices.push(device);
                    machine.evidence.push(evidence);
                }
                machine
            })
    }

    impl Machine {
        fn inventory(&self) -> Inventory {
            let name = |index: usize| format!("d{index}");
            let mut devices = self.devices.clone();
            for &(lower, upper, link) in &self.links {
                let (owner, set): (usize, fn(&mut Device) -> &mut BTreeSet<String>) = match link {
                    Link::Parent => (upper, |device| &mut device.parents),
                    Link::Partition => (lower, |device| &mut device.partitions),
                    Link::Holder => (lower, |device| &mut device.holders),
                };
                let other = if owner == upper { lower } else { upper };
                if let Some(device) = devices.get_mut(owner) {
                    set(device).insert(name(other));
                }
            }
            let mount = |root: bool| Mount { at: if root { "/" } else { "/data" }.into(), fs_type: "xfs".into() };
            let facts = Facts {
                mounts: self.mounts.iter().map(|(index, root)| (name(*index), mount(*root))).collect(),
                swaps: self.swaps.iter().map(|index| name(*index)).collect(),
                ..Facts::default()
            };
            Inventory::assemble(devices, &facts)
        }

        /// Everything on a device, found another way than the code does: by following links until nothing changes.
        fn above(&self, index: usize) -> BTreeSet<usize> {
            let exists = |index: usize| index < self.devices.len();
            let mut above = BTreeSet::from([index]);
            loop {
                let before = above.len();
                for &(lower, upper, _) in &self.links {
                    if above.contains(&lower) && exists(lower) && exists(upper) {
                        above.insert(upper);
                    }
                }
                if above.len() == before {
                    return above;
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn nothing_that_is_used_or_carries_anything_is_ever_usable(machine in machines(), loop_devices: bool) {
            let inventory = machine.inventory();
            let rules = Rules { loop_devices, ..Rules::default() };
            let evidence: BTreeMap<String, &Evidence> = machine
                .evidence
                .iter()
                .enumerate()
                .filter_map(|(index, evidence)| Some((format!("d{index}"), evidence.as_ref()?)))
                .collect();
            for (index, device) in machine.devices.iter().enumerate() {
                let known = inventory.get(&device.name).expect("every device is in its inventory");
                let verdict = judge(&inventory, known, evidence.get(&device.name).copied(), &rules);
                let above = machine.above(index);
                let used = machine.mounts.iter().any(|(mounted, _)| above.contains(mounted))
                    || machine.swaps.iter().any(|swap| above.contains(swap))
                    // Something on it, known or not.
                    || machine.links.iter().any(|&(lower, upper, link)| match link {
                        Link::Parent => lower == index && upper < machine.devices.len(),
                        _ => lower == index,
                    });
                let free = match &machine.evidence[index] {
                    Some(Evidence { content: Content::Empty { sampled: 1.. }, claimed: false }) => !used,
                    _ => false,
                };
                let fit = (device.kind == Kind::Disk || device.kind == Kind::Loop && loop_devices)
                    && !device.read_only
                    && !device.removable
                    && device.size >= rules.minimum_size
                    && !(machine.devices.iter().enumerate())
                        .any(|(other, path)| other != index && path.kind == Kind::Disk && path.wwid.is_some() && path.wwid == device.wwid);
                prop_assert_eq!(verdict.usable(), free && fit, "{}: {}", device.name, verdict);
            }
        }
    }
}
