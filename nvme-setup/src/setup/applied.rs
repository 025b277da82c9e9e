//! What was applied in this boot, for commands that come later and are told nothing: which name the node had, and which volumes were asked
//! for.
//!
//! A file in `/run`, beside the lock: a boot begins without one. Nothing is decided from it that changes a disk; whose a volume is, and
//! how far, is told from the disks as ever. It only spares a timer, or a person at night, to say again what was said at boot.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::identity::Node;
use crate::request::Request;

/// The version of the file.
const FORMAT: u32 = 1;

/// What was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    format: u32,
    /// What the node was called.
    pub node: String,
    /// The volumes, of all runs under this name.
    pub request: Request,
}

impl Applied {
    /// Reads it. None where nothing was applied, or the file is of another version.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let applied: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (applied.format == FORMAT).then_some(applied)
    }

    /// Adds a request to what was applied before.
    pub(super) fn add(path: &Path, node: &Node, request: &Request) -> io::Result<()> {
        let mut all = request.clone();
        if let Some(before) = Self::read(path).filter(|before| before.node == node.id()) {
            let is_new = |mount: &Path| request.volumes.iter().all(|volume| volume.mount != mount);
            all.volumes.extend(before.request.volumes.into_iter().filter(|volume| is_new(&volume.mount)));
        }
        let applied = Self { format: FORMAT, node: node.id().to_owned(), request: all };
        let temporary = path.with_extension("new");
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
        file.write_all(&serde_json::to_vec(&applied)?)?;
        fs::rename(&temporary, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Trim, Volume, What};

    #[test]
    fn later_requests_are_added_and_another_name_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("applied.json");
        assert_eq!(Applied::read(&path), None);
        let request = |mount: &str, trim| {
            let volume = Volume { trim, ..Volume::new(What::InstanceStore, mount) };
            Request { volumes: vec![volume], wait: 0 }
        };
        let mounts = || {
            let volumes = Applied::read(&path).unwrap().request.volumes;
            volumes.iter().map(|volume| (volume.mount.display().to_string(), volume.trim)).collect::<Vec<_>>()
        };
        let node = Node::new("i-1");
        Applied::add(&path, &node, &request("/a", Trim::None)).unwrap();
        Applied::add(&path, &node, &request("/b", Trim::Periodic)).unwrap();
        Applied::add(&path, &node, &request("/a", Trim::Periodic)).unwrap();
        assert_eq!(mounts(), [("/a".to_owned(), Trim::Periodic), ("/b".to_owned(), Trim::Periodic)]);
        Applied::add(&path, &Node::new("i-2"), &request("/c", Trim::None)).unwrap();
        assert_eq!((Applied::read(&path).unwrap().node, mounts().len()), ("i-2".to_owned(), 1));
        fs::write(&path, "{torn").unwrap();
        assert_eq!(Applied::read(&path), None);
        Applied::add(&path, &node, &request("/a", Trim::None)).unwrap();
        assert_eq!(mounts().len(), 1);
    }
}
