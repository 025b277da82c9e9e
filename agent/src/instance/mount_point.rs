//! Mount points that had to be made on the host, and their way back out.
//!
//! A bind mount needs something to be mounted over. Where the host lacks it, one empty directory (or file) is made,
//! and it is removed when the last instance that uses it has gone. Removing it earlier would be worse than untidy: the
//! kernel detaches what other namespaces have mounted on a directory that is removed. So users are counted in a file of
//! the state directory, under a lock that every agent on the machine takes; and before anything is removed, the mount tables
//! of all namespaces are asked, because a container or an agent with another state directory may use it, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::view::Kind;
use crate::durable::{self, FileError};

/// The register of mount points made by agents on this machine.
#[derive(Debug, Clone)]
pub struct MountPoints {
    state: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Register {
    /// The format's version.
    version: u32,
    made: BTreeMap<PathBuf, Made>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Made {
    kind: Kind,
    users: BTreeSet<String>,
}

const VERSION: u32 = 1;

impl MountPoints {
    /// The register kept in the state directory.
    pub fn new(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// Makes what is missing, for the instance `user`.
    ///
    /// # Errors
    /// When a mount point cannot be made. What was made before is given back by [`MountPoints::release`].
    pub fn acquire(&self, user: &str, wanted: &[(PathBuf, Kind)]) -> Result<(), FileError> {
        if wanted.is_empty() {
            return Ok(());
        }
        self.change(|register| {
            for (path, kind) in wanted {
                if let Some(made) = register.made.get_mut(path) {
                    made.users.insert(user.to_owned());
                    make(path, *kind).or_else(ignore_existing).map_err(FileError::on("create", path))?;
                    continue;
                }
                match make(path, *kind) {
                    Ok(()) => {
                        let users = BTreeSet::from([user.to_owned()]);
                        register.made.insert(path.clone(), Made { kind: *kind, users });
                    }
                    // Somebody else's after all: used, but never removed by us.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(FileError { action: "create", path: path.clone(), source: error }),
                }
            }
            Ok(())
        })
    }

    /// Gives back whatever `user` had, removing what nobody else uses. Only empty directories and empty files go.
    ///
    /// # Errors
    /// When the register cannot be read or written.
    pub fn release(&self, user: &str) -> Result<(), FileError> {
        self.change(|register| {
            register.made.retain(|path, made| {
                made.users.remove(user);
                // What somebody else has mounted over is looked at again when the next instance ends.
                if !made.users.is_empty() || is_mounted_anywhere(path) {
                    return true;
                }
                if let Err(error) = unmake(path, made.kind) {
                    tracing::warn!(path = %path.display(), %error, "a mount point made for a task stays behind");
                }
                false
            });
            Ok(())
        })
    }

    fn change(&self, change: impl FnOnce(&mut Register) -> Result<(), FileError>) -> Result<(), FileError> {
        let lock = self.state.join("mount-points.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
        let file = file.map_err(FileError::on("open", &lock))?;
        let _locked: Flock<File> = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| FileError {
            action: "lock",
            path: lock.clone(),
            source: errno.into(),
        })?;
        let path = self.state.join("mount-points.json");
        let mut register: Register = durable::read_json(&path)?.unwrap_or_default();
        register.version = VERSION;
        let result = change(&mut register);
        durable::replace_json(&path, &register)?;
        result
    }
}

fn make(path: &Path, kind: Kind) -> io::Result<()> {
    match kind {
        Kind::Directory => fs::DirBuilder::new().mode(0o755).create(path),
        Kind::File => OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop),
    }
}

fn ignore_existing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

fn unmake(path: &Path, kind: Kind) -> io::Result<()> {
    let result = match kind {
        Kind::Directory => fs::remove_dir(path),
        // The host's own processes may have found and filled it meanwhile.
        Kind::File if fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() > 0) => {
            return Err(io::Error::other("it is no longer empty"));
        }
        Kind::File => fs::remove_file(path),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether any process of the machine sees something mounted at `path` or below it.
fn is_mounted_anywhere(path: &Path) -> bool {
    let Some(path) = path.to_str() else { return false };
    let inside = format!("{path}/");
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let mut seen = BTreeSet::new();
    for process in processes.flatten() {
        // Most processes share a namespace: its table is read once.
        let Ok(namespace) = fs::read_link(process.path().join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let table = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        let mut mounts = table.lines().filter_map(|line| line.split(' ').nth(4));
        if mounts.any(|at| at == path || at.starts_with(&inside)) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_user_removes_what_was_made_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (state, there) = (root.path().join("state"), root.path().join("there"));
        fs::create_dir(&state).unwrap();
        fs::create_dir(&there).unwrap();
        let (directory, file) = (root.path().join("d"), root.path().join("f"));
        let wanted =
            [(directory.clone(), Kind::Directory), (file.clone(), Kind::File), (there.clone(), Kind::Directory)];
        let points = MountPoints::new(&state);
        points.acquire("a", &wanted).unwrap();
        points.acquire("b", &wanted).unwrap();
        points.release("a").unwrap();
        assert!(directory.is_dir() && file.is_file());
        points.release("b").unwrap();
        assert!(!directory.exists() && !file.exists() && there.is_dir());
        points.release("b").unwrap();
    }

    #[test]
    fn what_is_not_empty_stays() {
        let root = tempfile::tempdir().unwrap();
        let (directory, file) = (root.path().join("d"), root.path().join("f"));
        let points = MountPoints::new(root.path());
        points.acquire("a", &[(directory.clone(), Kind::Directory), (file.clone(), Kind::File)]).unwrap();
        fs::write(directory.join("data"), "x").unwrap();
        fs::write(&file, "x").unwrap();
        points.release("a").unwrap();
        assert!(directory.join("data").exists() && file.exists());
    }
}
