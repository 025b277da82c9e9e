//! From what is there and what is wanted to what is done: a pure function.
//!
//! A plan never holds a step that writes to a device unless that device is proved to be free and empty, or to hold
//! nothing but this node's own work that has never been used: a file system that was never mounted, an array that
//! was never completed. What carries anything else is mounted when it is this node's volume or `existing`, and refused
//! otherwise, with the command that a person would run. There is no way to force it.
//!
//! Where what comes next cannot be known before something is done (what is in an array shows when it runs), a plan ends in
//! [`Step::LookAgain`], and another one is made from what is there then. So every decision comes from the disks as they are,
//! and an interrupted run is taken up by the next one without a memory of it.

mod choose;
mod existing;
mod set;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::device::{Device, Kind};
use crate::examine::Evidence;
use crate::identity::{Made, Node, Owner, Uuid};
use crate::judge::{Reason, Rules, Verdict, judge};
use crate::request::{Fs, Request, Volume};
use crate::signature::{Content, Signature};
use crate::step::{Plan, Planned, Refusal, Settled, Step, Target, swap_file};
use crate::text::printable;
use crate::trace::Traces;
use crate::world::{Place, World};

/// Plans what is to be done so that every volume of a request is there.
///
/// A request that [`Request::check`] refuses gives a plan of refusals only.
pub fn plan(world: &World, request: &Request, node: &Node) -> Plan {
    if let Err(errors) = request.check() {
        let refusals = errors.into_iter().map(|error| Refusal {
            volume: error.volume,
            device: None,
            why: error.why,
            remedy: "correct the request".to_owned(),
            may_pass: false,
        });
        return Plan { refusals: refusals.collect(), ..Plan::default() };
    }
    let mut planner = Planner { world, node, request, taken: BTreeMap::new(), plan: Plan::default() };
    let chosen = planner.choose();
    for (volume, devices) in chosen {
        if volume.existing {
            planner.existing(volume, devices[0]);
        } else if volume.each {
            planner.each(volume, &devices);
        } else if volume.is_set() {
            planner.set(volume, &devices);
        } else {
            let slot = Slot::of(volume);
            planner.settle(&slot, devices[0]);
        }
    }
    planner.finish()
}

/// A place that gets one file system: a volume, or one directory of an `each`.
struct Slot<'a> {
    volume: &'a Volume,
    at: PathBuf,
    key: String,
}

impl<'a> Slot<'a> {
    fn of(volume: &'a Volume) -> Self {
        Self { volume, at: volume.mount.clone(), key: volume.key() }
    }

    /// One directory of an `each`.
    fn nth(volume: &'a Volume, index: usize) -> Self {
        Self { volume, at: volume.mount.join(index.to_string()), key: format!("{}/{index}", volume.key()) }
    }

    fn fs(&self) -> Fs {
        self.volume.fs.unwrap_or(Fs::Xfs)
    }

    fn uuid(&self, node: &Node) -> Uuid {
        node.uuid(&self.key, Made::FileSystem)
    }
}

struct Planner<'a> {
    world: &'a World,
    node: &'a Node,
    request: &'a Request,
    /// Which volume has which device.
    taken: BTreeMap<String, PathBuf>,
    plan: Plan,
}

/// What a device is to a slot.
enum State {
    /// It carries the slot's file system.
    Ours { fs_type: String },
    /// It carries the slot's file system, complete and still marked.
    Finished,
    /// It carries nothing but what an interrupted run has left of the slot's file system.
    Unfinished { only_mark: bool },
    /// It is free and empty.
    Empty,
    /// Anything else.
    Other,
}

impl<'a> Planner<'a> {
    fn evidence(&self, device: &Device) -> Option<&'a Evidence> {
        self.world.evidence.get(&device.name)
    }

    fn traces(&self, device: &Device) -> Option<&'a Traces> {
        self.world.traces.get(&device.name)
    }

    fn signature(&self, device: &Device) -> Option<&'a Signature> {
        match &self.evidence(device)?.content {
            Content::Signature(signature) => Some(signature),
            _ => None,
        }
    }

    /// The UUID of what a device carries, when it has the form of ours.
    fn carried(&self, device: &Device) -> Option<Uuid> {
        self.signature(device)?.uuid.as_deref()?.parse().ok()
    }

    fn verdict(&self, device: &Device) -> Verdict {
        // A loop device is looked at only when a person has named it, and so is a partition, for `existing`.
        let named = self.world.named.values().any(|name| *name == device.name);
        let rules = Rules { loop_devices: named, ..Rules::default() };
        judge(&self.world.inventory, device, self.evidence(device), &rules)
    }

    /// What stands in the way of a device besides what it carries. An array counts as a disk where it is this node's own.
    fn obstacles(&self, device: &Device, own_array: bool) -> Vec<Reason> {
        let is_own = |reason: &Reason| own_array && matches!(reason, Reason::NotADisk { kind: Kind::Array });
        self.verdict(device)
            .reasons()
            .iter()
            .filter(|reason| !reason.is_content() && !is_own(reason))
            .cloned()
            .collect()
    }

    fn state(&self, slot: &Slot<'_>, device: &Device) -> State {
        let uuid = slot.uuid(self.node);
        let traces = self.traces(device);
        let marked = traces.is_some_and(|traces| traces.mark == Some(uuid));
        // Only xfs writes its UUID into every block.
        let pure = traces.is_some_and(|traces| traces.only(uuid) && (slot.fs() == Fs::Xfs || traces.uuids.is_empty()));
        let only_mark = traces.is_some_and(|traces| traces.uuids.is_empty());
        match self.evidence(device).map(|evidence| &evidence.content) {
            Some(Content::Signature(found))
                if self.carried(device) == Some(uuid) && found.partition_table.is_none() =>
            {
                match found.kind.as_deref() {
                    Some("xfs") if marked && pure => State::Unfinished { only_mark },
                    Some("ext4") if marked && traces.is_some_and(|traces| traces.clean_ext4) => State::Finished,
                    // What could not be read may be marked.
                    Some(kind @ ("xfs" | "ext4")) if !marked && (traces.is_some() || !device.mounts.is_empty()) => {
                        State::Ours { fs_type: kind.to_owned() }
                    }
                    _ => State::Other,
                }
            }
            Some(Content::Data { .. }) if marked && pure => State::Unfinished { only_mark },
            Some(Content::Empty { sampled: 1.. }) => State::Empty,
            _ => State::Other,
        }
    }

    /// Brings one device to one slot: mounted there with this node's file system for it.
    fn settle(&mut self, slot: &Slot<'_>, device: &'a Device) {
        self.settle_on(slot, device, false);
    }

    fn settle_on(&mut self, slot: &Slot<'_>, device: &'a Device, own_array: bool) {
        let uuid = slot.uuid(self.node);
        let obstacles = self.obstacles(device, own_array);
        let target = Target::new(device);
        let state = self.state(slot, device);
        if let State::Ours { fs_type } = &state {
            if let Some(other) = self.twin(device, uuid) {
                let why = format!(
                    "{} carries the same file system ({uuid}): one is a copy of the other",
                    other.path.display()
                );
                let remedy = "detach the one that is not wanted".to_owned();
                return self.refuse(slot, Some(device), why, remedy, false);
            }
            if *fs_type != slot.fs().name() {
                let why = format!("it carries this volume as {fs_type}, and {} is wanted", slot.fs());
                let remedy = format!("set fs to {fs_type}, or if nothing on it is needed: {}", erase(device));
                return self.refuse(slot, Some(device), why, remedy, false);
            }
            if self.world.is_mounted_at(device, &slot.at) {
                self.plan.settled.push(Settled { volume: slot.at.clone(), device: target });
                return self.swap(slot);
            }
        }
        if !obstacles.is_empty() || matches!(state, State::Other) {
            return self.refuse_device(slot, device, own_array);
        }
        let busy = self.traces(device).is_some_and(|traces| traces.claimed);
        if matches!(state, State::Finished | State::Unfinished { .. }) && busy {
            let why = "it holds an unfinished file system of this node's, and a program is at work on it".to_owned();
            return self.refuse(slot, Some(device), why, "wait for its end".to_owned(), true);
        }
        let evidence = self.verdict(device).to_string();
        let unfinished = "an interrupted run has left a file system of this node's here, which has never been mounted; \
                          every block that was read is zero or a part of it";
        let because = match state {
            State::Ours { .. } => format!("it carries this node's volume {} ({uuid})", slot.key),
            State::Finished => {
                let because = format!("the file system {uuid} is complete and has never been mounted");
                self.step(slot, Step::Unmark { device: target.clone(), uuid }, &because);
                because
            }
            State::Empty | State::Unfinished { .. } => {
                let because = if matches!(state, State::Empty) { evidence.as_str() } else { unfinished };
                match state {
                    State::Unfinished { only_mark: true } => {}
                    State::Unfinished { only_mark: false } => {
                        self.step(slot, Step::Clear { device: target.clone(), uuid }, because);
                    }
                    _ => self.step(slot, Step::Mark { device: target.clone(), uuid }, because),
                }
                let label = slot.volume.label.clone();
                let format = Step::Format { device: target.clone(), fs: slot.fs(), uuid, label };
                self.step(slot, format, because);
                self.step(slot, Step::Unmark { device: target.clone(), uuid }, "mkfs has succeeded");
                "it has just been made for this volume".to_owned()
            }
            // Refused above.
            State::Other => return,
        };
        self.mount(slot, target, slot.fs().name().to_owned(), Some(uuid.to_string()), &because);
    }

    /// Another device that carries the same file system, and is neither below nor above this one.
    fn twin(&self, device: &Device, uuid: Uuid) -> Option<&'a Device> {
        let related = |other: &Device| {
            other.name == device.name
                || self.world.inventory.descendants(device).iter().any(|upper| upper.name == other.name)
                || self.world.inventory.descendants(other).iter().any(|upper| upper.name == device.name)
        };
        let mut devices = self.world.inventory.devices().iter();
        devices.find(|other| self.carried(other) == Some(uuid) && !related(other))
    }

    /// The steps from a file system to a mount, and the swap file on it.
    fn mount(&mut self, slot: &Slot<'_>, device: Target, fs_type: String, uuid: Option<String>, because: &str) {
        // What another volume will be mounted over cannot be looked at yet; mounting looks again in any case.
        let outer = self.request.volumes.iter().any(|other| {
            other.mount != slot.at && slot.at.starts_with(&other.mount) && !self.is_settled(&other.mount) && !other.each
        });
        match self.world.place(&slot.at) {
            _ if outer => {
                self.step(slot, Step::MakeDirectory { at: slot.at.clone() }, "the mount point may be missing")
            }
            Place::Missing => {
                self.step(slot, Step::MakeDirectory { at: slot.at.clone() }, "the mount point is missing")
            }
            Place::Empty => {}
            Place::NotEmpty => {
                let remedy = "move away what is in it, or choose another mount point".to_owned();
                return self.refuse(
                    slot,
                    None,
                    "the directory is not empty, and a mount would hide what is in it".into(),
                    remedy,
                    false,
                );
            }
            Place::Strange(why) => {
                return self.refuse(slot, None, why, "choose a directory of its own".into(), false);
            }
            Place::Mounted { number, fs_type } => {
                let known = self.world.inventory.devices().iter().find(|device| device.number == number);
                let what = known.map_or_else(|| number.to_string(), |device| device.path.display().to_string());
                let why = format!("something else is mounted there already: {what} ({})", printable(&fs_type));
                let remedy = format!("umount {}, or choose another mount point", slot.at.display());
                return self.refuse(slot, None, why, remedy, false);
            }
        }
        let options = slot.volume.mount_options();
        let options = if options.is_empty() { "defaults".to_owned() } else { options };
        self.step(slot, Step::Mount { device, fs_type, uuid, at: slot.at.clone(), options }, because);
        self.swap(slot);
    }

    fn is_settled(&self, at: &Path) -> bool {
        self.plan.settled.iter().any(|settled| settled.volume == at)
    }

    fn swap(&mut self, slot: &Slot<'_>) {
        let Some(size) = slot.volume.swap else { return };
        let file = swap_file(&slot.at);
        if !self.world.swap_files.contains(&file) {
            let size = size.saturating_mul(1 << 20);
            self.step(slot, Step::MakeSwap { file: file.clone(), size }, "swap is asked for and not on");
            self.step(slot, Step::SwapOn { file }, "swap is asked for and not on");
        }
    }

    fn step(&mut self, slot: &Slot<'_>, step: Step, because: &str) {
        self.plan.steps.push(Planned { volume: slot.at.clone(), step, because: because.to_owned() });
    }

    fn refuse(&mut self, slot: &Slot<'_>, device: Option<&Device>, why: String, remedy: String, may_pass: bool) {
        let device = device.map(|device| device.path.to_string_lossy().into_owned());
        self.plan.refusals.push(Refusal { volume: slot.at.clone(), device, why, remedy, may_pass });
    }

    /// Refuses a device for what it is, who uses it and what it carries.
    fn refuse_device(&mut self, slot: &Slot<'_>, device: &Device, own_array: bool) {
        let verdict = self.verdict(device);
        let obstacles = self.obstacles(device, own_array);
        let content: Vec<&Reason> = verdict.reasons().iter().filter(|reason| reason.is_content()).collect();
        let mut why: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
        let mut remedy = None;
        let mut claimed = obstacles == [Reason::Claimed];
        match self.traces(device) {
            Some(traces) if traces.mark.is_some() => {
                why.push(
                    "it holds a file system that this node began to make and did not finish, and also something that \
                     cannot be proved to be a part of it"
                        .to_owned(),
                );
                claimed = traces.claimed;
            }
            _ => why.extend(content.iter().map(|reason| reason.to_string())),
        }
        match self.carried(device).and_then(|uuid| Some((uuid, self.node.owner(uuid)?))) {
            Some((_, Owner::AnotherNode)) => {
                why.push("it was made by nvme-setup on another node".to_owned());
                if obstacles.is_empty() {
                    remedy = Some(format!(
                        "to use what is on it, ask for it with `existing: true`; if nothing on it is needed: {}",
                        erase(device)
                    ));
                }
            }
            Some((uuid, Owner::ThisNode)) if uuid != slot.uuid(self.node) && obstacles.is_empty() => {
                why.push(format!("it is another volume of this node's ({uuid})"));
                remedy = Some(format!(
                    "ask for it with the label or mount point that it was made with, or with `existing: true`; if nothing \
                     on it is needed: {}",
                    erase(device)
                ));
            }
            _ => {}
        }
        let remedy = remedy.unwrap_or_else(|| match (&*obstacles, &*content) {
            ([], [Reason::Unknown { .. }] | []) => "see dmesg; a disk that cannot be read is not used".to_owned(),
            ([], _) => format!("if nothing on it is needed: {}", erase(device)),
            _ if obstacles.iter().any(|reason| matches!(reason, Reason::AnotherPath { .. })) => {
                "detach every path but one; of a disk that carries a file system, the mapping of dm-multipath can be mounted with \
                 `existing: true`"
                    .to_owned()
            }
            _ if claimed => "end the program that uses it, or wait for its end".to_owned(),
            _ => "ask for another disk, or end that use of it first".to_owned(),
        });
        self.refuse(slot, Some(device), why.join("; "), remedy, claimed);
    }

    fn finish(mut self) -> Plan {
        // As the request has them, and not as they chose: who asks for the first volume means the first of the request.
        let place = |settled: &Settled| {
            let is_of = |volume: &Volume| {
                settled.volume == volume.mount || volume.each && settled.volume.parent() == Some(&volume.mount)
            };
            self.request.volumes.iter().position(is_of)
        };
        self.plan.settled.sort_by_key(place);
        // A mount point inside another volume comes after it. The order of the steps of one volume stays.
        self.plan.steps.sort_by(|one, two| one.volume.cmp(&two.volume));
        // One look is enough, when everything else has been done.
        let again = self.plan.steps.iter().position(|planned| planned.step == Step::LookAgain);
        if let Some(again) = again {
            let last = self.plan.steps.remove(again);
            self.plan.steps.retain(|planned| planned.step != Step::LookAgain);
            self.plan.steps.push(last);
        }
        self.plan
    }
}

/// The commands that a person would run to empty a device.
fn erase(device: &Device) -> String {
    let path = device.path.display();
    format!("wipefs --all {path} && blkdiscard --zeroout {path}")
}
