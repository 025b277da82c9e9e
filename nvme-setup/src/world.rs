//! Everything that a plan is made from, as it is at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::device::{Device, DeviceNumber, Kind};
use crate::examine::{Evidence, Examiner};
use crate::identity::Node;
use crate::inventory::{Inventory, InventoryError};
use crate::mounts;
use crate::request::{MOST_SLOTS, Request, What};
use crate::sysfs::Roots;
use crate::trace::Traces;

/// The machine at one moment, as far as a request is concerned.
#[derive(Debug, Clone)]
pub struct World {
    /// What there is.
    pub inventory: Inventory,
    /// What the devices carry, by name.
    pub evidence: BTreeMap<String, Evidence>,
    /// What this node has left on those that are not empty, by name.
    pub traces: BTreeMap<String, Traces>,
    /// The devices that a request names by a path, by that path; a path that names no device is missing.
    pub named: BTreeMap<PathBuf, String>,
    /// The places where something is to be mounted.
    pub places: BTreeMap<PathBuf, Place>,
    /// The files that are swapped on.
    pub swap_files: BTreeSet<PathBuf>,
}

/// What is at a path where something is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    Missing,
    /// A directory with nothing in it.
    Empty,
    /// A directory with something in it.
    NotEmpty,
    /// Something else, or something that could not be looked at, in words.
    Strange(String),
    /// A mounted file system.
    Mounted {
        /// Its device; major 0 for one that has no single device.
        number: DeviceNumber,
        /// Its type.
        fs_type: String,
    },
}

impl World {
    /// Looks at the machine. Devices are opened for reading only.
    ///
    /// # Errors
    /// As [`Inventory::read`].
    pub fn observe(roots: &Roots, examiner: &Examiner, node: &Node, request: &Request) -> Result<Self, InventoryError> {
        let inventory = Inventory::read(roots)?;
        let named = named(&inventory, request);
        let wanted: Vec<&Device> = inventory.devices().iter().filter(|device| is_looked_at(device, &named)).collect();
        let evidence = examiner.examine_all(wanted.iter().copied());
        let traces = examiner.traces_all(wanted, &evidence, node);
        let mounted = mount_points(roots)?;
        let mut places = BTreeMap::new();
        for volume in &request.volumes {
            let mut paths = vec![volume.mount.clone()];
            if volume.each {
                paths = (0..MOST_SLOTS).map(|index| volume.mount.join(index.to_string())).collect();
            }
            for path in paths {
                let found = place(examiner, &mounted, &path);
                places.insert(path, found);
            }
        }
        let swap_files = mounts::swaps(&fs::read(roots.proc.join("swaps")).unwrap_or_default()).into_iter().collect();
        Ok(Self { inventory, evidence, traces, named, places, swap_files })
    }

    /// What is at a path; nothing is known of one that the request does not speak of.
    pub(crate) fn place(&self, path: &Path) -> Place {
        self.places.get(path).cloned().unwrap_or_else(|| Place::Strange("nobody has looked at it".to_owned()))
    }

    /// Whether this device's file system is what is mounted at a path.
    pub(crate) fn is_mounted_at(&self, device: &Device, path: &Path) -> bool {
        match self.places.get(path) {
            Some(Place::Mounted { number, .. }) if number.major == 0 => {
                device.mounts.iter().any(|mount| mount.at == path)
            }
            Some(Place::Mounted { number, .. }) => *number == device.number,
            _ => false,
        }
    }
}

/// Whether what a device carries is asked for. Loop devices and memory are somebody's files and data, unless named.
fn is_looked_at(device: &Device, named: &BTreeMap<PathBuf, String>) -> bool {
    match device.kind {
        _ if named.values().any(|name| *name == device.name) => true,
        Kind::Disk | Kind::Partition | Kind::Array => device.size > 0,
        // Mounted, it may be a volume that is to be released.
        Kind::Loop => !device.mounts.is_empty(),
        _ => false,
    }
}

/// The devices that a request names by path.
fn named(inventory: &Inventory, request: &Request) -> BTreeMap<PathBuf, String> {
    let mut named = BTreeMap::new();
    for volume in &request.volumes {
        let paths = match &volume.what {
            What::Device(path) => std::slice::from_ref(path),
            What::Devices(paths) => paths,
            _ => continue,
        };
        for path in paths {
            if let Some(device) = inventory.find(path) {
                named.insert(path.clone(), device.name.clone());
            }
        }
    }
    named
}

/// What this process sees mounted; at each path the last one, which hides those before it.
pub(crate) fn mount_points(roots: &Roots) -> Result<BTreeMap<PathBuf, Place>, InventoryError> {
    let path = roots.proc.join("self/mountinfo");
    let text = fs::read(&path).map_err(|source| InventoryError::Unreadable { path: path.clone(), source })?;
    let (lines, strange) = mounts::mounts(&text);
    if let Some(line) = strange.first() {
        return Err(InventoryError::Strange { path, why: format!("the line {line:?} is not a mount") });
    }
    let place = |line: mounts::MountLine| (line.at, Place::Mounted { number: line.number, fs_type: line.fs_type });
    Ok(lines.into_iter().map(place).collect())
}

/// What is at a path. What is mounted is not touched: it may not answer.
pub(crate) fn place(examiner: &Examiner, mounted: &BTreeMap<PathBuf, Place>, path: &Path) -> Place {
    if let Some(mounted) = mounted.get(path) {
        return mounted.clone();
    }
    let subject = path.to_owned();
    match examiner.in_time("looking at it", move || directory(&subject)) {
        Ok(place) => place,
        Err(why) => Place::Strange(why),
    }
}

fn directory(path: &Path) -> io::Result<Place> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A link on the way would lead the mount elsewhere, and it would not be found again under this name.
            return match path.ancestors().find(|parent| parent.exists()) {
                Some(parent) if fs::canonicalize(parent)? != parent => Ok(link(parent)?),
                _ => Ok(Place::Missing),
            };
        }
        Err(error) => return Err(error),
    };
    if metadata.is_symlink() || fs::canonicalize(path)? != path {
        return link(path);
    }
    if !metadata.is_dir() {
        return Ok(Place::Strange("it is not a directory".to_owned()));
    }
    Ok(if fs::read_dir(path)?.next().is_some() { Place::NotEmpty } else { Place::Empty })
}

fn link(path: &Path) -> io::Result<Place> {
    let real = fs::canonicalize(path).map_or_else(|_| "nowhere".to_owned(), |real| real.display().to_string());
    Ok(Place::Strange(format!("{} is reached through a symbolic link and really is {real}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir_all(root.join("full/inner")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        std::os::unix::fs::symlink(root.join("full"), root.join("link")).unwrap();
        let look = |name: &str| place(&Examiner::default(), &BTreeMap::new(), &root.join(name));
        assert_eq!(look("full"), Place::NotEmpty);
        assert_eq!(look("full/inner"), Place::Empty);
        assert_eq!(look("none/deeper"), Place::Missing);
        assert_eq!(look("file"), Place::Strange("it is not a directory".into()));
        for linked in ["link", "link/inner", "link/none/deeper"] {
            assert!(matches!(look(linked), Place::Strange(why) if why.contains("symbolic link")), "{linked}");
        }
        assert!(matches!(look("file/deeper"), Place::Strange(_)));
    }
}
