//! Volumes on all disks of a set: one over all, or one on each.
//!
//! An instance's own disks come back empty after a stop, all of them. So a RAID0 over them is either whole, or not there, or
//! was being made when its maker was killed. Anything between (a member that is gone or empty while another one holds
//! data) is no state that the cloud makes, and is refused: what is left of the data may be wanted for a rescue.

use super::{Planner, Slot, State};
use crate::device::{Device, Kind};
use crate::identity::{Made, Owner, Uuid};
use crate::judge::Reason;
use crate::request::{MOST_SLOTS, Volume};
use crate::step::{Step, Target};

/// What a disk of a set is to a volume over all of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It carries the volume's file system, complete or not.
    Plain,
    /// It is a member of the volume's array.
    Member,
    /// It is free and empty.
    Empty,
    /// Somebody else uses it.
    Used,
    /// It carries something else.
    Foreign,
}

impl<'a> Planner<'a> {
    /// One volume over all disks.
    pub(super) fn set(&mut self, volume: &'a Volume, disks: &[&'a Device]) {
        let slot = Slot::of(volume);
        let array = self.node.uuid(&slot.key, Made::Array);
        let parts: Vec<(&'a Device, Part)> = disks.iter().map(|disk| (*disk, self.part(&slot, array, disk))).collect();
        let of = |wanted: Part| -> Vec<&'a Device> {
            parts.iter().filter(|(_, part)| *part == wanted).map(|(disk, _)| *disk).collect()
        };
        let (plain, members, empty) = (of(Part::Plain), of(Part::Member), of(Part::Empty));
        match (&*plain, &*members, &*empty) {
            ([], [], []) => {
                for disk in of(Part::Used).into_iter().chain(of(Part::Foreign)) {
                    self.refuse_device(&slot, disk, false);
                }
            }
            ([], [], _) => {
                self.leave_out(&slot, &of(Part::Used), "somebody else uses it");
                let foreign = of(Part::Foreign);
                if !foreign.is_empty() {
                    foreign.into_iter().for_each(|disk| self.refuse_device(&slot, disk, false));
                } else if let [only] = *empty {
                    self.settle(&slot, only);
                } else {
                    let members = self.in_order(&empty);
                    let because = "they are free and empty: no signature, and zeros wherever they were read";
                    self.step(&slot, Step::CreateArray { members, uuid: array, name: name(array) }, because);
                    let next = format!("then: make {} on the array and mount it at {}", slot.fs(), slot.at.display());
                    self.step(&slot, Step::LookAgain, &next);
                }
            }
            ([], ..) => {
                self.leave_out(&slot, &[of(Part::Used), of(Part::Foreign)].concat(), "the array was made without it");
                self.array(&slot, array, &members, &empty);
            }
            ([only], [], _) => {
                let rest = [of(Part::Used), of(Part::Foreign), empty.clone()].concat();
                self.leave_out(&slot, &rest, "the volume was made without it");
                self.settle(&slot, only);
            }
            _ => {
                let all = [plain, members].concat();
                let names = all.iter().map(|disk| disk.path.display().to_string()).collect::<Vec<_>>().join(", ");
                let why = format!("several disks carry this volume, and not as one array: {names}");
                let remedy =
                    "detach or empty those that are not wanted; `nvme-setup status` shows what they carry".to_owned();
                self.refuse(&slot, None, why, remedy, false);
            }
        }
    }

    fn part(&self, slot: &Slot<'_>, array: Uuid, disk: &Device) -> Part {
        let is_member = self
            .signature(disk)
            .is_some_and(|found| found.kind.as_deref() == Some("linux_raid_member") && found.partition_table.is_none());
        if is_member && self.carried(disk) == Some(array) {
            return Part::Member;
        }
        let obstacles = self.obstacles(disk, false);
        match self.state(slot, disk) {
            State::Ours { .. } | State::Finished | State::Unfinished { .. } => Part::Plain,
            State::Empty if obstacles.is_empty() => Part::Empty,
            _ if obstacles.iter().any(is_use) => Part::Used,
            _ => Part::Foreign,
        }
    }

    fn leave_out(&mut self, slot: &Slot<'_>, disks: &[&Device], why: &str) {
        for disk in disks {
            let note =
                format!("{}: {} is left out: {why} ({})", slot.at.display(), disk.path.display(), self.verdict(disk));
            self.plan.notes.push(note);
        }
    }

    /// An array of this node's, of which at least one member is there.
    fn array(&mut self, slot: &Slot<'_>, uuid: Uuid, members: &[&'a Device], empty: &[&'a Device]) {
        let holders: Vec<&str> = members.iter().flat_map(|member| member.holders.iter().map(String::as_str)).collect();
        if let Some(first) = holders.first() {
            let array = self.world.inventory.get(first).filter(|array| array.kind == Kind::Array);
            let whole = holders.iter().all(|holder| holder == first) && holders.len() == members.len();
            let same = |array: &&'a Device| {
                array.parents.len() == members.len()
                    && members.iter().all(|member| array.parents.contains(&member.name))
            };
            return match array.filter(|_| whole).filter(same) {
                Some(array) if array.size == 0 => {
                    let step = Step::StopArray { device: Target::new(array), uuid };
                    self.step(slot, step, "it has been put together and not started");
                    self.step(slot, Step::LookAgain, "then: assemble it");
                }
                Some(array) => self.settle_on(slot, array, true),
                None => {
                    let names: Vec<String> = members.iter().map(|member| member.path.display().to_string()).collect();
                    let why = format!(
                        "the disks of its array ({}) are not all in one array: {}",
                        names.join(", "),
                        holders.join(", ")
                    );
                    let remedy = "see /proc/mdstat; `mdadm --stop` what should not be there".to_owned();
                    self.refuse(slot, None, why, remedy, true);
                }
            };
        }
        for member in members {
            let in_the_way: Vec<Reason> = self.obstacles(member, false);
            if !in_the_way.is_empty() {
                return self.refuse_device(slot, member, false);
            }
        }
        let disks = members.iter().map(|member| self.traces(member)?.member).collect::<Option<Vec<_>>>();
        let wanted = match disks.as_deref() {
            Some([first, rest @ ..]) if rest.iter().all(|other| other == first) && first.array == uuid => {
                usize::try_from(first.disks).ok()
            }
            _ => None,
        };
        let Some(wanted) = wanted else {
            let why = "the superblocks of its array contradict each other or cannot be read".to_owned();
            return self.refuse(slot, members.first().copied(), why, rescue(members), false);
        };
        let targets = self.in_order(members);
        if members.len() == wanted {
            let because = "they are all members of this volume's array, which is not running";
            self.step(slot, Step::Assemble { members: targets, uuid, name: name(uuid) }, because);
            self.step(slot, Step::LookAgain, "then: mount what is in it");
            return;
        }
        let unused = |member: &&Device| self.traces(member).is_some_and(|traces| traces.only(uuid) && !traces.claimed);
        let count = members.len();
        if count < wanted && count + empty.len() >= wanted && members.iter().all(unused) {
            for device in targets {
                let because = "an array was being made here and was not completed; there is nothing on it";
                self.step(slot, Step::ClearMember { device, uuid }, because);
            }
            self.step(slot, Step::LookAgain, "then: make the array anew");
            return;
        }
        let why = format!(
            "{count} of the {wanted} disks of its array are there, and they are not empty: the rest of a RAID0 is lost"
        );
        self.refuse(slot, members.first().copied(), why, rescue(members), count < wanted);
    }

    /// In the order of the names in `/dev/disk/by-id`; those that have none come last, by their own names.
    fn in_order(&self, disks: &[&'a Device]) -> Vec<Target> {
        sorted(disks).into_iter().map(Target::new).collect()
    }

    /// The UUID of this node's that a disk carries, or is marked with.
    fn marked_or_carried(&self, disk: &Device) -> Option<Uuid> {
        let marked = self.traces(disk).and_then(|traces| traces.mark);
        marked.or_else(|| self.carried(disk)).filter(|uuid| self.node.owner(*uuid) == Some(Owner::ThisNode))
    }

    /// One volume on each disk.
    pub(super) fn each(&mut self, volume: &'a Volume, disks: &[&'a Device]) {
        let slots: Vec<Slot<'_>> = (0..MOST_SLOTS).map(|index| Slot::nth(volume, index)).collect();
        let mut free: Vec<&Slot<'_>> = slots.iter().collect();
        let mut rest = Vec::new();
        // Those that are known keep their place, whoever else comes or goes.
        for disk in sorted(disks) {
            let mine = |slot: &&&Slot<'_>| !matches!(self.state(slot, disk), State::Empty | State::Other);
            let found = self
                .marked_or_carried(disk)
                .and_then(|_| slots.iter().collect::<Vec<_>>().into_iter().find(|slot| mine(&slot)));
            match found.map(|slot| slot.at.clone()) {
                Some(at) => match free.iter().position(|slot| slot.at == at) {
                    Some(index) => {
                        let slot = free.remove(index);
                        self.settle(slot, disk);
                    }
                    // The first one has the place; looked at from it, this one is its twin, and it is refused for that.
                    None => self.leave_out(&Slot::of(volume), &[disk], "another disk carries the same volume"),
                },
                None => rest.push(disk),
            }
        }
        let known = free.len() < MOST_SLOTS;
        let mut free = free.into_iter();
        for disk in rest {
            let obstacles = self.obstacles(disk, false);
            match self.state(&Slot::of(volume), disk) {
                State::Empty if obstacles.is_empty() => match free.next() {
                    Some(slot) => self.settle(slot, disk),
                    None => self.leave_out(&Slot::of(volume), &[disk], "there is no place for it"),
                },
                _ if obstacles.iter().any(is_use) && (known || disks.len() > 1) => {
                    self.leave_out(&Slot::of(volume), &[disk], "somebody else uses it");
                }
                _ => self.refuse_device(&Slot::of(volume), disk, false),
            }
        }
        let plan = &self.plan;
        let mut about = (plan.steps.iter().map(|planned| &planned.volume))
            .chain(plan.settled.iter().map(|settled| &settled.volume))
            .chain(plan.refusals.iter().map(|refusal| &refusal.volume));
        if !about.any(|at| at.starts_with(&volume.mount)) {
            let why = "somebody else uses every disk".to_owned();
            self.refuse(&Slot::of(volume), None, why, "see `nvme-setup status`".into(), false);
        }
    }
}

/// Whether a reason is that somebody uses the device.
fn is_use(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::Root
            | Reason::Mounted { .. }
            | Reason::Swap { .. }
            | Reason::Held { .. }
            | Reason::Partitioned { .. }
            | Reason::Claimed
    )
}

fn sorted<'a>(disks: &[&'a Device]) -> Vec<&'a Device> {
    let mut disks = disks.to_vec();
    // The inventory is in the order in which people count, and the sort is stable.
    disks.sort_by_key(|disk| (disk.by_id.is_empty(), disk.by_id.first().cloned()));
    disks
}

/// The array's name: `/dev/md/...`.
fn name(array: Uuid) -> String {
    let text = array.to_string();
    format!("nvme-setup-{}", &text[text.len() - 8..])
}

fn rescue(members: &[&Device]) -> String {
    let paths: Vec<String> = members.iter().map(|member| member.path.display().to_string()).collect();
    let paths = paths.join(" ");
    format!(
        "attach the missing disks, or if nothing on them is needed: mdadm --zero-superblock {paths} && wipefs --all {paths}, \
             then blkdiscard --zeroout each of them"
    )
}
