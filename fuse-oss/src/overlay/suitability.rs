//! Whether a directory can hold an upper layer: who may write in it, and what its file system can do.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::statfs::{
    self, FUSE_SUPER_MAGIC, FsType, MSDOS_SUPER_MAGIC, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs,
};

use super::OverlayError;

/// Fails where somebody else could exchange what is made in a directory.
///
/// # Errors
/// [`OverlayError::Untrusted`].
pub fn check_owner(path: &Path, directory: &File) -> Result<(), OverlayError> {
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

/// Fails on file systems that are known not to do, before anything is made there.
///
/// # Errors
/// [`OverlayError::Unsuitable`].
pub fn check_file_system(path: &Path) -> Result<(), OverlayError> {
    let found = statfs(path).map_err(|errno| OverlayError::io("look at", path)(errno.into()))?.filesystem_type();
    match UNSUITABLE.iter().find(|(kind, ..)| *kind == found) {
        Some((_, name, why)) => {
            Err(OverlayError::Unsuitable { path: path.to_owned(), file_system: (*name).to_owned(), why })
        }
        None => Ok(()),
    }
}

/// Tries what overlayfs needs and says nothing about until it is too late, in a new directory that holds `work`.
///
/// # Errors
/// [`OverlayError::Unsuitable`].
pub fn check_features(root: &Path) -> Result<(), OverlayError> {
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
