//! What servers that were killed have left of their views, and its removal.
//!
//! Nothing that was written may outlive its view, and a server that is killed cannot remove anything. So the next one does, and as
//! it removes what it has not made itself, it wants proof: the directory has the name, owner and mode that these have; the file
//! `owner` in it is a regular file of ours that names it; nobody holds the lock on that; and no mount of any namespace
//! has it as its upper layer. Names alone prove nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use tracing::{debug, info, warn};

use super::quota::ProjectQuota;
use super::upper::{FORMAT, OWNER, Owner, is_named_so, open_directory, remove};
use crate::mountpoint;

/// What servers have made that had a registry before this one.
#[derive(Debug)]
pub struct Leftovers {
    /// Each with the link that leads to it from the registry.
    roots: Vec<(PathBuf, Option<PathBuf>)>,
}

impl Leftovers {
    /// Looks through a registry that nobody else may use. What is made in it from now on is no leftover.
    pub fn find(registry: &Path) -> Self {
        let found = fs::read_dir(registry).into_iter().flatten().flatten().filter_map(|entry| {
            let path = entry.path();
            if !is_named_so(&path) {
                return None;
            }
            if !entry.file_type().ok()?.is_symlink() {
                return Some((path, None));
            }
            // The name says what it is, whatever the link says.
            let root = fs::read_link(&path).ok().filter(|root| root.file_name() == path.file_name())?;
            Some((root, Some(path)))
        });
        Self { roots: found.collect() }
    }

    /// Removes those whose server has died.
    pub fn remove(self) {
        for (root, link) in self.roots {
            remove_dead(&root, link.as_deref(), true);
        }
    }
}

/// Removes what servers that have died, of whatever cache directory, left in a directory.
pub fn sweep_directory(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_named_so(&entry.path()) && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_dead(&entry.path(), None, false);
        }
    }
}

/// Removes a directory whose server has died; leaves it alone, and says why, when that cannot be proved. `registered` says that
/// it is in a registry that nobody else may use at this time.
pub fn remove_dead(root: &Path, link: Option<&Path>, registered: bool) {
    let shown = root.display();
    match prove_dead(root, registered) {
        Ok(Dead::Gone) => {
            if let Some(link) = link {
                let _ = fs::remove_file(link);
            }
        }
        Ok(Dead::Left { parent, quota, _owner }) => match remove(root, &parent, quota.as_ref(), link) {
            Ok(()) => info!(path = %shown, "removed what was written in a view whose server has died"),
            Err(error) => {
                warn!(path = %shown, %error, "cannot remove what was written in a view whose server has died")
            }
        },
        Err(why) => debug!(path = %shown, why, "left alone"),
    }
}

/// What is known of a directory without a server.
enum Dead {
    /// It is not there any more, or never was finished.
    Gone,
    /// It is to be removed.
    Left { parent: File, quota: Option<ProjectQuota>, _owner: Flock<File> },
}

fn prove_dead(root: &Path, registered: bool) -> Result<Dead, &'static str> {
    let held = match open_directory(root) {
        Ok(held) => held,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Dead::Gone),
        Err(_) => return Err("it cannot be opened"),
    };
    let me = nix::unistd::geteuid().as_raw();
    let meta = held.metadata().map_err(|_| "it cannot be looked at")?;
    if meta.uid() != me || meta.mode() & 0o777 != 0o700 {
        return Err("it has another owner or mode than these have");
    }
    let parent = open_directory(root.parent().ok_or("it has no parent")?).map_err(|_| "its parent cannot be opened")?;
    let owner = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(root.join(OWNER));
    let owner = match owner {
        Ok(owner) => owner,
        Err(error) if registered && error.kind() == io::ErrorKind::NotFound => {
            // Made by a server that died before it could say so: there can be nothing in it yet, which rmdir checks.
            let _ = fs::remove_file(root.join(format!("{OWNER}.new")));
            return fs::remove_dir(root).map(|()| Dead::Gone).map_err(|_| "nothing in it says what it is");
        }
        Err(_) => return Err("nothing in it says what it is"),
    };
    let meta = owner.metadata().map_err(|_| "its owner file cannot be looked at")?;
    if !meta.is_file() || meta.uid() != me || meta.nlink() != 1 {
        return Err("its owner file is not ours");
    }
    let mut owner = Flock::lock(owner, FlockArg::LockExclusiveNonblock).map_err(|_| "its server lives")?;
    let mut text = String::new();
    owner.read_to_string(&mut text).map_err(|_| "its owner file cannot be read")?;
    let said: Owner = serde_json::from_str(&text).map_err(|_| "its owner file cannot be read")?;
    if said.format != FORMAT || root.file_name().is_none_or(|name| name != said.name.as_str()) {
        return Err("its owner file is of another directory or another version of this program");
    }
    if mountpoint::is_upper_of_any(&root.join("upper")) {
        return Err("it is mounted somewhere");
    }
    let quota = match said.project {
        Some(project) => parent.try_clone().ok().and_then(|anchor| ProjectQuota::of(&held, anchor, project)),
        None => None,
    };
    Ok(Dead::Left { parent, quota, _owner: owner })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::upper::{PREFIX, Upper};
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};

    fn names(directory: &Path) -> Vec<PathBuf> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// What a server leaves that is killed.
    fn leave(registry: &Path, parent: Option<&Path>) -> PathBuf {
        let upper = Upper::create(registry, parent, None).unwrap();
        fs::write(upper.upper().join("file"), "x").unwrap();
        upper.root().to_owned()
    }

    #[test]
    fn what_is_left_is_removed_once_nobody_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, elsewhere) = (dir.path().join("registry"), dir.path().join("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        let held = Upper::create(&registry, Some(&elsewhere), None).unwrap();
        let left = [leave(&registry, None), leave(&registry, Some(&elsewhere))];
        assert_eq!((names(&registry).len(), names(&elsewhere).len()), (3, 2));
        Leftovers::find(&registry).remove();
        assert!(left.iter().all(|root| !root.exists()) && held.root().exists());
        assert_eq!(names(&elsewhere), [held.root()]);
        held.remove().unwrap();
        assert!(names(&registry).is_empty() && names(&elsewhere).is_empty());
        // Without the registry, by what is in the directory.
        leave(&registry, Some(&elsewhere));
        sweep_directory(&elsewhere);
        assert!(names(&elsewhere).is_empty());
        Leftovers::find(&registry).remove();
        assert!(names(&registry).is_empty(), "links that lead nowhere go");
    }

    #[test]
    fn what_cannot_be_proved_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path();
        let named = registry.join(format!("{PREFIX}0123456789abcdef"));
        fs::create_dir(&named).unwrap();
        fs::write(named.join("file"), "x").unwrap();
        Leftovers::find(registry).remove();
        sweep_directory(registry);
        // Another's proof, a world-readable one, a link.
        let other = leave(registry, None);
        fs::copy(other.join(OWNER), named.join(OWNER)).unwrap();
        fs::set_permissions(&named, fs::Permissions::from_mode(0o700)).unwrap();
        sweep_directory(registry);
        assert!(named.join("file").exists() && !other.exists());
        let open = leave(registry, None);
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let linked = leave(registry, None);
        fs::rename(linked.join(OWNER), registry.join("aside")).unwrap();
        symlink(registry.join("aside"), linked.join(OWNER)).unwrap();
        symlink(&named, registry.join(format!("{PREFIX}00000000000000aa"))).unwrap();
        Leftovers::find(registry).remove();
        sweep_directory(registry);
        assert!(open.exists() && linked.exists() && named.exists());
    }

    #[test]
    fn a_server_that_died_while_making_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(format!("{PREFIX}0123456789abcdef"));
        let before = Leftovers::find(dir.path());
        fs::DirBuilder::new().mode(0o700).create(&root).unwrap();
        fs::write(root.join("owner.new"), "{").unwrap();
        sweep_directory(dir.path());
        assert!(root.exists(), "another server may be making it at this moment");
        before.remove();
        assert!(root.exists(), "this one may be");
        Leftovers::find(dir.path()).remove();
        assert!(!root.exists());
    }
}
