//! Mount points that had to be made on the host, and their way back out.
//!
//! A bind mount needs something to be mounted over. Where the host lacks it, one empty directory (or file) is made,
//! and it is removed when the last instance that uses it has gone. Removing it earlier would be worse than untidy: the
//! kernel detaches what other namespaces have mounted on a directory that is removed. So users are counted in a file of
//! that all agents of a machine share, whatever their other directories are, under a lock; and before anything is removed,
//! the mount tables of all namespaces are asked, because a container may use it, too.

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
    directory: PathBuf,
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
    /// The register kept in `directory`; outside of tests that is [`Node::STATE`](crate::node::Node::STATE), always.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Plans with the mount points that agents have made so far, then makes those the plan wants, for the instance `user`;
    /// all under the lock, so that no two instances can disagree on what is there.
    ///
    /// # Errors
    /// The plan's own, or when a mount point cannot be made. What was made before is given back by [`MountPoints::release`].
    pub fn acquire<T, E: From<FileError>>(
        &self,
        user: &str,
        plan: impl FnOnce(BTreeSet<PathBuf>) -> Result<(T, Vec<(PathBuf, Kind)>), E>,
    ) -> Result<T, E> {
        let mut locked = self.lock()?;
        let (planned, wanted) = plan(locked.register.made.keys().cloned().collect())?;
        let made = &mut locked.register.made;
        for (path, kind) in &wanted {
            // What is there and not in the register is somebody else's: used, and never removed by us.
            if made.contains_key(path) || fs::symlink_metadata(path).is_err() {
                let entry = made.entry(path.clone()).or_insert_with(|| Made { kind: *kind, users: BTreeSet::new() });
                entry.users.insert(user.to_owned());
            }
        }
        // Written before anything is made: whoever is killed in between leaves a register that says too much, not too little.
        locked.save()?;
        for (path, kind) in wanted {
            match make(&path, kind) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(FileError { action: "create", path, source }.into());
                }
                _ => {}
            }
        }
        Ok(planned)
    }

    /// Gives back whatever `user` had, removing what nobody else uses. Only empty directories and empty files go.
    ///
    /// # Errors
    /// When the register cannot be read or written.
    pub fn release(&self, user: &str) -> Result<(), FileError> {
        let mut locked = self.lock()?;
        locked.register.made.retain(|path, made| {
            made.users.remove(user);
            // What somebody else has mounted over is looked at again when the next instance ends.
            if !made.users.is_empty() || is_mounted_anywhere(path) {
                return true;
            }
            match unmake(path, made.kind) {
                Ok(()) => false,
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "a mount point made for a task is in use");
                    true
                }
            }
        });
        locked.save()
    }

    fn lock(&self) -> Result<Locked, FileError> {
        durable::private_directory(&self.directory)?;
        let lock = self.directory.join("mount-points.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
        let file = file.map_err(FileError::on("open", &lock))?;
        let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| FileError {
            action: "lock",
            path: lock.clone(),
            source: errno.into(),
        })?;
        let path = self.directory.join("mount-points.json");
        let register = durable::read_json(&path)?.unwrap_or_default();
        Ok(Locked { register, path, _held: held })
    }
}

/// The register while nobody else may touch it.
struct Locked {
    register: Register,
    path: PathBuf,
    _held: Flock<File>,
}

impl Locked {
    fn save(&mut self) -> Result<(), FileError> {
        self.register.version = VERSION;
        durable::replace_json(&self.path, &self.register)
    }
}

fn make(path: &Path, kind: Kind) -> io::Result<()> {
    match kind {
        Kind::Directory => fs::DirBuilder::new().mode(0o755).create(path),
        Kind::File => OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop),
    }
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

    fn acquire(points: &MountPoints, user: &str, wanted: &[(PathBuf, Kind)]) -> BTreeSet<PathBuf> {
        points.acquire::<_, FileError>(user, |made| Ok((made, wanted.to_vec()))).unwrap()
    }

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
        acquire(&points, "a", &wanted);
        acquire(&points, "b", &wanted);
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
        acquire(&points, "a", &[(directory.clone(), Kind::Directory), (file.clone(), Kind::File)]);
        fs::write(directory.join("data"), "x").unwrap();
        fs::write(&file, "x").unwrap();
        points.release("a").unwrap();
        assert!(directory.join("data").exists() && file.exists());
        // Once they are empty again, the next one to leave takes them along.
        fs::remove_file(directory.join("data")).unwrap();
        fs::write(&file, "").unwrap();
        points.release("b").unwrap();
        assert!(!directory.exists() && !file.exists());
    }
}
