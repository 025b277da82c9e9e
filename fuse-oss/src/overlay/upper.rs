//! The directory that receives what is written in a view, from its making to its removal.
//!
//! ```text
//! DIR/fuse-oss-upper-<number>/     mode 0700: nobody gets at what is in it but through the view
//!   owner                          locked while a process answers for it; says that it is one of these
//!   upper/  work/                  the two directories that overlayfs wants
//! CACHE_DIR/upper/                 DIR, unless another was chosen; then a link of the same name leads to each
//! ```
//!
//! Nothing that was written may outlive its view, and a server that is killed cannot remove anything. So the next one does, and as
//! it removes what it has not made itself, it wants proof: the directory has the name, owner and mode that these have; the file
//! `owner` in it is a regular file of ours that names it; nobody holds the lock on that; and no mount of any namespace
//! has it as its upper layer. Names alone prove nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;
use nix::sys::statfs::{
    self, FUSE_SUPER_MAGIC, FsType, MSDOS_SUPER_MAGIC, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs,
};
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::OverlayError;
use super::quota::{NoQuota, ProjectQuota, Usage};
use super::removal::remove_tree;
use crate::mountpoint;

const PREFIX: &str = "fuse-oss-upper-";
const OWNER: &str = "owner";
const FORMAT: u32 = 1;

/// Says once per process that there are no quotas; that is the same for every mount.
static SAID: AtomicBool = AtomicBool::new(false);

/// What is in `owner`.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    format: u32,
    /// The name of the directory, so that a copy elsewhere proves nothing.
    name: String,
    pid: u32,
    /// Its project number, if it has a quota.
    project: Option<u32>,
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

fn remove(root: &Path, parent: &File, quota: Option<&ProjectQuota>, registered: Option<&Path>) -> io::Result<()> {
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

/// The directory around the upper layer of a mount, if that is named like one of ours.
pub fn root_of(mount: &mountpoint::MountInfo) -> Option<PathBuf> {
    if mount.fs_type != super::FS_TYPE {
        return None;
    }
    let upper = PathBuf::from(mount.option("upperdir")?);
    let root = upper.parent()?;
    (upper.ends_with("upper") && is_named_so(root)).then(|| root.to_owned())
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

fn is_named_so(path: &Path) -> bool {
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

fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)
}

fn check_owner(path: &Path, directory: &File) -> Result<(), OverlayError> {
    let meta = directory.metadata().map_err(OverlayError::io("look at", path))?;
    let untrusted = |why: String| Err(OverlayError::Untrusted { path: path.to_owned(), why });
    let me = nix::unistd::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 {
        return untrusted(format!("it belongs to user {}", meta.uid()));
    }
    // In a sticky directory, such as /tmp, nobody can exchange what another has made.
    if meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0 {
        return untrusted(format!("others may write in it (mode {:o})", meta.mode() & 0o7777));
    }
    Ok(())
}

/// File systems that cannot be an upper layer, whatever they are asked.
const UNSUITABLE: &[(FsType, &str, &str)] = &[
    (OVERLAYFS_SUPER_MAGIC, "overlayfs", "which cannot be the upper layer of another"),
    (FUSE_SUPER_MAGIC, "a FUSE mount", "which cannot be an upper layer"),
    (NFS_SUPER_MAGIC, "NFS", "which cannot be an upper layer"),
    (MSDOS_SUPER_MAGIC, "FAT", "which has neither owners nor extended attributes"),
    (statfs::SMB_SUPER_MAGIC, "SMB", "which cannot be an upper layer"),
];

fn check_file_system(path: &Path) -> Result<(), OverlayError> {
    let found = statfs(path).map_err(|errno| OverlayError::io("look at", path)(errno.into()))?.filesystem_type();
    match UNSUITABLE.iter().find(|(kind, ..)| *kind == found) {
        Some((_, name, why)) => {
            Err(OverlayError::Unsuitable { path: path.to_owned(), file_system: (*name).to_owned(), why })
        }
        None => Ok(()),
    }
}

/// What overlayfs needs and says nothing about until it is too late.
fn check_features(root: &Path) -> Result<(), OverlayError> {
    let unsuitable = |why| {
        let kind = statfs(root).map(|stat| stat.filesystem_type());
        let name = match kind {
            Ok(TMPFS_MAGIC) => "tmpfs".to_owned(),
            Ok(kind) => format!("a file system of type {:#x}", kind.0),
            Err(_) => "another file system".to_owned(),
        };
        Err(OverlayError::Unsuitable { path: root.parent().unwrap_or(root).to_owned(), file_system: name, why })
    };
    if let Err(errno) = set_trusted_attribute(&root.join("work")) {
        return match errno {
            Errno::EPERM => {
                Err(OverlayError::io("set an attribute (trusted.*, which needs root) on", root)(errno.into()))
            }
            _ => unsuitable("which has no extended attributes of the kind trusted.*"),
        };
    }
    let mut directory = Dir::open(root, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| OverlayError::io("read", root)(errno.into()))?;
    let typed = directory.iter().flatten().any(|entry| entry.file_type() == Some(Type::Directory));
    if typed { Ok(()) } else { unsuitable("whose directories do not tell files from directories (on xfs: ftype=0)") }
}

fn set_trusted_attribute(path: &Path) -> nix::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let name = c"trusted.fuse-oss";
    // SAFETY: both names are C strings, and the value is the one byte that it is said to be.
    let set = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), b"y".as_ptr().cast(), 1, 0) };
    Errno::result(set)?;
    // SAFETY: as above.
    let removed = unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) };
    Errno::result(removed).map(drop)
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
