//! Which disks a volume means.

use std::path::Path;

use super::{Planner, Slot, State};
use crate::device::{Device, Kind, Role};
use crate::request::{Volume, What, volume_serials};

/// How far the size of a disk may be from what the cloud says, in bytes.
const TOLERANCE: u64 = 1 << 20;

impl<'a> Planner<'a> {
    /// The devices of each volume for which there are any; for the others there is a refusal.
    ///
    /// Volumes that name their disk choose first, then the only empty one, then those that take what is left.
    pub(super) fn choose(&mut self) -> Vec<(&'a Volume, Vec<&'a Device>)> {
        let mut volumes: Vec<&'a Volume> = self.request.volumes.iter().collect();
        volumes.sort_by_key(|volume| match volume.what {
            What::InstanceStore => 2,
            What::OnlyEmpty => 1,
            _ => 0,
        });
        let mut chosen = Vec::new();
        for volume in volumes {
            let Some(devices) = self.devices(volume) else { continue };
            if self.take(volume, &devices) {
                chosen.push((volume, devices));
            }
        }
        chosen
    }

    /// Notes that these devices belong to a volume. Two volumes that want the same one are refused.
    fn take(&mut self, volume: &'a Volume, devices: &[&'a Device]) -> bool {
        for (index, device) in devices.iter().enumerate() {
            let twice = devices[..index].iter().any(|other| other.name == device.name);
            let other = self.taken.get(&device.name).cloned();
            let why = match other {
                Some(other) => format!("{} wants the same disk", other.display()),
                None if twice => "it is named twice".to_owned(),
                None => continue,
            };
            self.refuse(&Slot::of(volume), Some(device), why, "give each volume a disk of its own".into(), false);
            return false;
        }
        for device in devices {
            self.taken.insert(device.name.clone(), volume.mount.clone());
        }
        true
    }

    fn devices(&mut self, volume: &'a Volume) -> Option<Vec<&'a Device>> {
        match &volume.what {
            What::InstanceStore => self.instance_store(volume),
            What::Devices(paths) => {
                let found: Vec<Option<&Device>> = paths.iter().map(|path| self.at(volume, path)).collect();
                found.into_iter().collect()
            }
            What::Device(path) => Some(vec![self.at(volume, path)?]),
            What::OnlyEmpty => self.only_empty(volume),
            what => self.single(volume, what),
        }
    }

    fn at(&mut self, volume: &'a Volume, path: &Path) -> Option<&'a Device> {
        let found = self.world.named.get(path).and_then(|name| self.world.inventory.get(name));
        if found.is_none() {
            self.missing(volume, format!("there is no device {}", path.display()));
        }
        found
    }

    fn missing(&mut self, volume: &'a Volume, why: String) {
        let remedy = "attach it, wait longer (`wait`), or see `nvme-setup status` for what there is".to_owned();
        self.refuse(&Slot::of(volume), None, why, remedy, true);
    }

    fn disks(&self) -> impl Iterator<Item = &'a Device> + use<'a> {
        self.world.inventory.devices().iter().filter(|device| device.kind == Kind::Disk)
    }

    fn single(&mut self, volume: &'a Volume, what: &What) -> Option<Vec<&'a Device>> {
        let matching: Vec<&'a Device> = match what {
            What::Serial(serial) => self.disks().filter(|disk| disk.serial.as_deref() == Some(serial.trim())).collect(),
            What::VolumeId(id) => {
                let serials = volume_serials(id).unwrap_or_default();
                let matches = |disk: &&Device| disk.serial.as_ref().is_some_and(|serial| serials.contains(serial));
                self.disks().filter(matches).collect()
            }
            What::ById(name) => {
                let name = name.strip_prefix("/dev/disk/by-id/").unwrap_or(name);
                let matches =
                    |disk: &&Device| disk.by_id.iter().any(|link| link.file_name().is_some_and(|found| found == name));
                let partitions = |device: &&Device| volume.existing && device.kind == Kind::Partition;
                let devices = self.world.inventory.devices().iter();
                devices.filter(|device| device.kind == Kind::Disk || partitions(device)).filter(matches).collect()
            }
            What::Size(size) => {
                let bytes = size.saturating_mul(1 << 30);
                let data = |disk: &&Device| matches!(disk.role, Role::CloudDisk | Role::DataDisk);
                self.disks().filter(data).filter(|disk| disk.size.abs_diff(bytes) <= TOLERANCE).collect()
            }
            _ => Vec::new(),
        };
        match &*matching {
            [] => {
                self.missing(volume, format!("there is no disk with {what}"));
                None
            }
            [only] => Some(vec![*only]),
            several => {
                // After a restart the one that carries the volume is known.
                if let [ours] = *self.carrying(volume, several) {
                    return Some(vec![ours]);
                }
                self.ambiguous(volume, &format!("several disks have {what}"), several);
                None
            }
        }
    }

    fn only_empty(&mut self, volume: &'a Volume) -> Option<Vec<&'a Device>> {
        let data = |disk: &&'a Device| matches!(disk.role, Role::CloudDisk | Role::DataDisk);
        let disks: Vec<&'a Device> =
            self.disks().filter(data).filter(|disk| !self.taken.contains_key(&disk.name)).collect();
        match *self.carrying(volume, &disks) {
            [] => {}
            [ours] => return Some(vec![ours]),
            ref several => {
                self.ambiguous(volume, "several disks carry this volume", several);
                return None;
            }
        }
        let empty: Vec<&'a Device> = disks.into_iter().filter(|disk| self.verdict(disk).usable()).collect();
        match &*empty {
            [] => {
                self.missing(volume, "there is no empty data disk".to_owned());
                None
            }
            [only] => Some(vec![*only]),
            several => {
                self.ambiguous(volume, "several data disks are empty", several);
                None
            }
        }
    }

    /// Those that carry this volume, finished or not.
    fn carrying(&self, volume: &'a Volume, devices: &[&'a Device]) -> Vec<&'a Device> {
        let slot = Slot::of(volume);
        let carries = |device: &&'a Device| !matches!(self.state(&slot, device), State::Empty | State::Other);
        devices.iter().copied().filter(carries).collect()
    }

    fn ambiguous(&mut self, volume: &'a Volume, what: &str, several: &[&Device]) {
        let names: Vec<String> = several
            .iter()
            .map(|disk| match &disk.serial {
                Some(serial) => format!("{} (serial number {serial})", disk.path.display()),
                None => disk.path.display().to_string(),
            })
            .collect();
        let why = format!("{what}: {}", names.join(", "));
        self.refuse(&Slot::of(volume), None, why, "name one by `serial`, `by-id` or `volume-id`".into(), false);
    }

    fn instance_store(&mut self, volume: &'a Volume) -> Option<Vec<&'a Device>> {
        let found: Vec<&'a Device> = self
            .disks()
            .filter(|disk| disk.role == Role::InstanceStore && !self.taken.contains_key(&disk.name))
            .collect();
        let names = || found.iter().map(|disk| disk.path.display().to_string()).collect::<Vec<_>>().join(", ");
        let expected = volume.count.and_then(|count| usize::try_from(count).ok());
        match expected {
            Some(expected) if found.is_empty() => {
                self.missing(volume, format!("there is no instance-store disk, and {expected} are expected"));
                None
            }
            Some(expected) if found.len() < expected => {
                let why = format!("{} of {expected} instance-store disks are there: {}", found.len(), names());
                self.missing(volume, why);
                None
            }
            Some(expected) if found.len() > expected => {
                let why =
                    format!("{} instance-store disks are there, and {expected} are expected: {}", found.len(), names());
                self.refuse(&Slot::of(volume), None, why, "correct `count`".into(), false);
                None
            }
            _ if found.is_empty() => {
                self.missing(volume, "there is no instance-store disk".to_owned());
                None
            }
            _ => Some(found),
        }
    }
}
