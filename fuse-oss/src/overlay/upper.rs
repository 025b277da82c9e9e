//! The directory that receives what is written in a view, from its making to its removal.
//!
//! ```text
//! DIR/fuse-oss-upper-<number>/     mode 0700: nobody gets at what is in it but through the view
//!   owner                          locked while a process answers for it; says that it is one of these
//!   upper/  work/                  the two directories that overlayfs wants
//! CACHE_DIR/upper/                 DIR, unless another was chosen; then a link of the same name leads to each
//! ```
//!
//! Whoever holds the lock removes it; when nobody is left to, [`leftovers`](super::leftovers) are found.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::OverlayError;
use super::quota::{NoQuota, ProjectQuota, Usage};
use super::removal::remove_tree;
use super::suitability::{check_features, check_file_system, check_owner};
use crate::mountpoint;

pub(super) const PREFIX: &str = "fuse-oss-upper-";
pub(super) const OWNER: &str = "owner";
pub(super) const FORMAT: u32 = 1;

/// Says once per process that there are no quotas; that is the same for every mount.
static SAID: AtomicBool = AtomicBool::new(false);

/// What is in `owner`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) format: u32,
    /// The name of the directory, so that a copy elsewhere proves nothing.
    pub(super) name: String,
    pid: u32,
    /// Its project number, if it has a quota.
    pub(super) project: Option<u32>,
}

/// A directory that receives what is written. It is locked until it is removed or dropped; dropping removes nothing.
#[derive(Debug)]
pub struct Upper {
    root: PathBuf,
    parent: File,
    registered: Option<PathBuf>,
    quota: Option<ProjectQuota>,
    owner: Flock<File>,
}

impl AsFd for Upper {
    /// Of the file whose lock says that its server lives.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.owner.as_fd()
    }
}

impl Upper {
    /// Makes one, in `parent` or else in the registry itself, for at most so many bytes; without a limit it may take what is free
    /// now less a reserve. Where the file system has no quotas there is no limit, and the log says so.
    ///
    /// # Errors
    /// When the directory is not there, others may write in it, or its file system cannot be an upper layer.
    pub fn create(registry: &Path, parent: Option<&Path>, limit: Option<u64>) -> Result<Self, OverlayError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(registry);
        made.map_err(OverlayError::io("make", registry))?;
        let directory = parent.unwrap_or(registry);
        let no_directory = |source| OverlayError::NoDirectory { path: directory.to_owned(), source };
        let directory = directory.canonicalize().map_err(no_directory)?;
        let opened = open_directory(&directory)
            .map_err(|source| OverlayError::NoDirectory { path: directory.clone(), source })?;
        check_owner(&directory, &opened)?;
        check_file_system(&directory)?;

        let name = format!("{PREFIX}{:016x}", random());
        let root = directory.join(&name);
        let is_registry = registry.canonicalize().is_ok_and(|registry| registry == directory);
        let registered = (!is_registry).then(|| registry.join(&name));
        let unfinished = Unfinished { parent: &opened, name: Path::new(&name), registered: registered.as_deref() };
        if let Some(link) = &registered {
            // First, so that there is no moment at which the directory is there and nobody knows.
            symlink(&root, link).map_err(OverlayError::io("make", link))?;
        }
        fs::DirBuilder::new().mode(0o700).create(&root).map_err(OverlayError::io("make", &root))?;
        let held = open_directory(&root).map_err(OverlayError::io("open", &root))?;
        let quota = Self::limit(&directory, &held, &opened, limit)?;
        let owner = Owner {
            format: FORMAT,
            name: name.clone(),
            pid: std::process::id(),
            project: quota.as_ref().map(ProjectQuota::project),
        };
        let owner = write_owner(&root, &owner).map_err(OverlayError::io("lock", &root))?;
        for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
            let path = root.join(name);
            fs::DirBuilder::new().mode(mode).create(&path).map_err(OverlayError::io("make", &path))?;
        }
        check_features(&root)?;
        std::mem::forget(unfinished);
        Ok(Self { root, parent: opened, registered, quota, owner })
    }

    /// One that another process of the same server has made, with the locked file it has left ([`AsFd`]).
    ///
    /// # Errors
    /// When it is not there any more, or the file is not that of this directory.
    pub fn adopt(registry: &Path, root: &Path, owner: OwnedFd) -> io::Result<Self> {
        let other = || io::Error::other("it is not the directory it was");
        let name = root.file_name().ok_or_else(other)?;
        let directory = root.parent().ok_or_else(other)?;
        let (held, parent) = (open_directory(root)?, open_directory(directory)?);
        // Locked already, through the same open file.
        let mut owner = Flock::lock(File::from(owner), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        let mut text = String::new();
        owner.rewind()?;
        owner.read_to_string(&mut text)?;
        let said: Owner = serde_json::from_str(&text).map_err(|_| other())?;
        if said.format != FORMAT || name != said.name.as_str() {
            return Err(other());
        }
        let quota = match said.project {
            Some(project) => ProjectQuota::of(&held, parent.try_clone()?, project),
            None => None,
        };
        let registered = (registry.canonicalize().ok().as_deref() != Some(directory)).then(|| registry.join(name));
        Ok(Self { root: root.to_owned(), parent, registered, quota, owner })
    }

    fn limit(
        directory: &Path,
        held: &File,
        parent: &File,
        limit: Option<u64>,
    ) -> Result<Option<ProjectQuota>, OverlayError> {
        let anchor = parent.try_clone().map_err(OverlayError::io("open", directory))?;
        match ProjectQuota::assign(held, anchor, limit) {
            Ok(quota) => Ok(Some(quota)),
            Err(reason) => {
                if limit.is_some() {
                    warn!(upper = %directory.display(), %reason, "the size of what is written cannot be limited");
                } else if matches!(reason, NoQuota::NotKept) && SAID.swap(true, Ordering::Relaxed) {
                    debug!(upper = %directory.display(), %reason, "what is written is not limited");
                } else {
                    info!(upper = %directory.display(), %reason, "what is written is not limited and can fill the disk");
                }
                Ok(None)
            }
        }
    }

    /// Where everything is that belongs to it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The upper layer.
    pub fn upper(&self) -> PathBuf {
        self.root.join("upper")
    }

    /// The work directory of overlayfs.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// What has been written and what may be; nothing where there is no quota.
    pub fn usage(&self) -> Option<Usage> {
        self.quota.as_ref().and_then(ProjectQuota::usage)
    }

    /// Removes it with all that was written. The overlay must be gone.
    ///
    /// # Errors
    /// What is left is removed when the next server starts.
    pub fn remove(self) -> io::Result<()> {
        remove(&self.root, &self.parent, self.quota.as_ref(), self.registered.as_deref())
    }
}

/// Removes a directory that has not become an [`Upper`].
struct Unfinished<'a> {
    parent: &'a File,
    name: &'a Path,
    registered: Option<&'a Path>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(self.parent, self.name) {
            warn!(path = %self.name.display(), %error, "cannot remove what was made for a view");
            return;
        }
        if let Some(link) = self.registered {
            let _ = fs::remove_file(link);
        }
    }
}

pub(super) fn remove(
    root: &Path,
    parent: &File,
    quota: Option<&ProjectQuota>,
    registered: Option<&Path>,
) -> io::Result<()> {
    let name = root.file_name().map(Path::new).ok_or(io::ErrorKind::InvalidInput)?;
    // What proves that it is one of these goes last: who is interrupted can be followed by another.
    let held = open_directory(root)?;
    for part in ["work", "upper"] {
        remove_tree(&held, Path::new(part))?;
    }
    remove_tree(parent, name)?;
    if let Some(quota) = quota {
        quota.release();
    }
    match registered.map(fs::remove_file) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The directory around the upper layer of a mount, if that is named like one of ours.
pub fn root_of(mount: &mountpoint::MountInfo) -> Option<PathBuf> {
    if mount.fs_type != super::FS_TYPE {
        return None;
    }
    let upper = PathBuf::from(mount.option("upperdir")?);
    let root = upper.parent()?;
    (upper.ends_with("upper") && is_named_so(root)).then(|| root.to_owned())
}

pub(super) fn is_named_so(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let number = name.and_then(|name| name.strip_prefix(PREFIX));
    number.is_some_and(|number| number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Writes the file and locks it before it has its name.
fn write_owner(root: &Path, owner: &Owner) -> io::Result<Flock<File>> {
    let temporary = root.join(format!("{OWNER}.new"));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary)?;
    let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    file.write_all(&serde_json::to_vec(owner)?)?;
    fs::rename(temporary, root.join(OWNER))?;
    Ok(file)
}

pub(super) fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)
}

/// A number that another process would hardly come up with.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Seeded by the system; nothing here depends on nobody being able to guess it.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(directory: &Path) -> Vec<PathBuf> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn directories_that_will_not_do_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("registry");
        let refused = |parent: &Path| Upper::create(&registry, Some(parent), None).unwrap_err().to_string();
        assert!(refused(&dir.path().join("none")).contains("make it"));
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refused(&open).contains("others may write in it (mode 777)"));
        assert!(refused(Path::new("/proc")).contains("/proc"));
        assert!(names(&registry).is_empty());
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        Upper::create(&registry, Some(&open), None).unwrap().remove().unwrap();
        Upper::create(&registry, Some(&registry), None).unwrap().remove().unwrap();
        assert!(names(&registry).is_empty());
    }
}
