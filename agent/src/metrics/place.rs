//! File systems by what they are for, and the devices under them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{major, minor};
use nix::sys::statvfs::statvfs;

use super::question::Question;
use super::reading::{Reading, float};
use super::sample::{Disk, Level, Role};

/// How often a file system is asked how full it is.
const EVERY: Duration = Duration::from_secs(5);

/// What a file system says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    /// The number of the file system: two places with the same one are one.
    number: u64,
    size: u64,
    used: u64,
    /// The kernel's number and name of the device.
    device: Option<((u32, u32), String)>,
}

/// A place that is looked at.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    role: Role,
    question: Question<Option<Answer>>,
}

impl Place {
    pub(super) fn new(path: &Path, role: Role) -> Self {
        let asked = path.to_owned();
        Self { path: path.to_owned(), role, question: Question::new(EVERY, move || look(&asked)) }
    }

    pub(super) fn ask(&self) {
        self.question.ask();
    }

    pub(super) fn wait(&self, end: std::time::Instant) {
        self.question.wait(end);
    }

    pub(super) fn device(&self) -> Option<(u32, u32)> {
        self.question.answer().0.flatten()?.device.map(|(device, _)| device)
    }
}

/// How things are at `path`; a directory that is not there yet is where its parent is.
fn look(path: &Path) -> Option<Answer> {
    let path = path.ancestors().find(|path| path.symlink_metadata().is_ok())?;
    let stat = statvfs(path).ok()?;
    let number = path.metadata().ok()?.dev();
    let device = (u32::try_from(major(number)).ok()?, u32::try_from(minor(number)).ok()?);
    let name = device_name(device);
    let unit = stat.fragment_size();
    Some(Answer {
        number,
        size: stat.blocks() * unit,
        used: stat.blocks().saturating_sub(stat.blocks_free()) * unit,
        device: name.map(|name| (device, name)),
    })
}

fn device_name((major, minor): (u32, u32)) -> Option<String> {
    let about = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    about.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(str::to_owned)
}

/// The file systems at `places`, each once.
pub(super) fn disks(places: &[Place], now: &Reading, before: &Reading) -> Vec<Disk> {
    let mut disks: Vec<(Option<u64>, Disk)> = Vec::new();
    for place in places {
        let (answer, is_stuck) = place.question.answer();
        let answer = answer.flatten().filter(|_| !is_stuck);
        if answer.is_none() && !is_stuck {
            continue;
        }
        let number = answer.as_ref().map(|answer| answer.number);
        let known = disks.iter_mut().find(|(known, _)| number.is_some() && *known == number);
        if let Some((_, disk)) = known {
            if !disk.roles.contains(&place.role) {
                disk.roles.push(place.role);
            }
            continue;
        }
        let mut disk = Disk {
            path: place.path.to_string_lossy().into_owned(),
            roles: vec![place.role],
            is_stuck,
            ..Disk::default()
        };
        if let Some(answer) = answer {
            (disk.size, disk.used) = (answer.size, Level::of(float(answer.used)));
            if let Some((_, device)) = answer.device {
                (disk.read, disk.written, disk.busy) = now.disk(before, &device);
                disk.device = device;
            }
        }
        disks.push((number, disk));
    }
    disks.into_iter().map(|(_, disk)| disk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_file_system_is_told_once_with_all_that_it_is_for() {
        let directory = tempfile::tempdir().unwrap();
        let places = [
            Place::new(directory.path(), Role::System),
            Place::new(&directory.path().join("not/there/yet"), Role::Data),
            Place::new(Path::new("/proc"), Role::Mount),
        ];
        for place in &places {
            place.ask();
            place.wait(Instant::now() + Duration::from_secs(60));
        }
        let reading = Reading::take(&[]);
        let disks = disks(&places, &reading, &reading);
        assert_eq!(disks.len(), 2, "{disks:?}");
        assert_eq!(disks[0].roles, [Role::System, Role::Data]);
        assert!(disks[0].size > 0 && disks[0].used.mean > 0.0 && !disks[0].is_stuck, "{disks:?}");
    }
}
