//! Volumes that are there already: mounted as they are, never formatted.

use super::{Planner, Slot};
use crate::device::Device;
use crate::judge::Reason;
use crate::signature::Signature;
use crate::step::{Settled, Target};

/// The file systems that are mounted on request. What the kernel would have to guess, or what is no file system, is not.
const KNOWN: [&str; 8] = ["xfs", "ext4", "ext3", "ext2", "btrfs", "vfat", "ntfs", "squashfs"];

impl<'a> Planner<'a> {
    /// Mounts what is on a device, or on its only partition.
    pub(super) fn existing(&mut self, volume: &'a crate::request::Volume, device: &'a Device) {
        let slot = Slot::of(volume);
        let device = match self.only_partition(device) {
            Some(partition) => partition,
            None => device,
        };
        if self.taken.get(&device.name).is_some_and(|other| *other != slot.at) {
            let why = "another volume wants the disk that it lies on".to_owned();
            return self.refuse(&slot, Some(device), why, "give each volume a disk of its own".into(), false);
        }
        let target = Target::new(device);
        if self.world.is_mounted_at(device, &slot.at) {
            self.plan.settled.push(Settled { volume: slot.at.clone(), device: target });
            return self.swap(&slot);
        }
        let read_only = volume.options.iter().any(|option| option == "ro");
        let stands = |reason: &Reason| match reason {
            Reason::NotADisk { .. } | Reason::TooSmall { .. } | Reason::Removable => false,
            Reason::ReadOnly => !read_only,
            _ => true,
        };
        let obstacles: Vec<Reason> = self.obstacles(device, false).into_iter().filter(stands).collect();
        if !obstacles.is_empty() {
            let why = obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            return self.refuse(
                &slot,
                Some(device),
                why,
                "end that use of it first, or ask for another disk".into(),
                false,
            );
        }
        let Some(fs_type) = self.signature(device).and_then(file_system) else {
            let found =
                self.verdict(device).reasons().iter().find(|reason| reason.is_content()).map(ToString::to_string);
            let why = format!(
                "`existing` wants a file system, and {}",
                found.unwrap_or_else(|| "the device is empty".to_owned())
            );
            let remedy = format!("give the right disk; known are {}", KNOWN.join(", "));
            return self.refuse(&slot, Some(device), why, remedy, false);
        };
        if volume.fs.is_some_and(|fs| fs.name() != fs_type) {
            let why = format!("it carries {fs_type}, and {} is asked for", slot.fs());
            return self.refuse(&slot, Some(device), why, "remove `fs`, or give the right disk".into(), false);
        }
        let marked = self.traces(device).is_some_and(|traces| traces.mark.is_some());
        if marked {
            let why = "it carries a file system that was begun by nvme-setup and not finished".to_owned();
            return self.refuse(
                &slot,
                Some(device),
                why,
                "ask for it without `existing`, which finishes it".into(),
                false,
            );
        }
        let uuid = self.signature(device).and_then(|signature| signature.uuid.clone());
        self.mount(&slot, target, fs_type, uuid, "an existing file system is asked for");
    }

    /// The partition of a disk that has only one.
    fn only_partition(&self, device: &Device) -> Option<&'a Device> {
        let mut names = device.partitions.iter();
        let (Some(only), None) = (names.next(), names.next()) else { return None };
        self.world.inventory.get(only)
    }
}

fn file_system(signature: &Signature) -> Option<String> {
    let kind = signature.kind.as_deref()?;
    let plain = signature.usage.as_deref() == Some("filesystem") && signature.partition_table.is_none();
    // A FAT boot sector looks like a partition table to some versions of blkid.
    let plain = plain || kind == "vfat" && signature.usage.as_deref() == Some("filesystem");
    (plain && KNOWN.contains(&kind)).then(|| kind.to_owned())
}
