//! Views that can be written to and keep what is written to themselves: overlayfs over a directory that only shows.
//!
//! ```text
//! TARGET              the view: overlay, what a program sees
//!   upper layer       DIR/fuse-oss-upper-<number>/upper on a local disk: everything that was written, see [`upper`]
//!   lower layer       a read-only mount that shows a store, or a directory of the host
//! ```
//!
//! The kernel does the work: a file is copied into the upper layer when it is first opened for writing (all of it, however little
//! is written), what is deleted gets a whiteout there, and everything else is read from below at the speed it has there.
//!
//! An overlay has no use for the *path* of its lower layer once it is mounted: since there is overlayfs (Linux 3.18) it keeps a
//! private clone of the mount. So a mount that is only there to be a lower layer can be detached from the tree right after, is seen
//! by nobody, and ends exactly when the overlay does, whoever unmounts that.
//!
//! Two sets of options are used. With `metacopy=on,redirect_dir=on` a change of mode, owner or times copies no data and directories
//! that come from below can be renamed. Whoever reads the *upper* directory by itself afterwards would find files without content
//! in it, so where that is wanted ([`Overlay::whole_files`]) both are off: a change of mode then copies the file, and renaming a directory
//! from below is EXDEV, which `mv` answers by copying.
//!
//! What goes when the view goes need never reach the disk: with `volatile` (Linux 5.10) fsync(2) returns at once and unmounting does not
//! wait until gigabytes are written that are removed right after. Should the disk refuse a write, every later fsync(2) fails. Kernels that do
//! not know an option say EINVAL; then it is left out.
//!
//! What differs from a disk, all of it known of overlayfs: a device node 0:0 cannot be made, which is how the kernel notes a deletion; a
//! mapping made before a file was first written to keeps the old bytes; and a copy for which there was no room leaves what it has copied
//! behind until the file is removed, if that file's mode or times had been changed before.

pub mod copy_up;
pub mod leftovers;
pub mod quota;
pub mod removal;
mod suitability;
pub mod upper;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use tracing::debug;

use crate::error::{ErrorKind, MountError};

/// The type of an overlay, as `/proc/mounts` has it.
pub const FS_TYPE: &str = "overlay";

/// mount(2) takes one page of options, and the last byte of it ends them.
const MAX_OPTIONS: usize = 4095;

/// Why there is no view that can be written to.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// A file or directory did not do what it was told.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `create`, `lock`, ...
        action: &'static str,
        /// What it was.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory for what is written is not there.
    #[error("there is no directory {} for what is written: {source}; make it, or choose another for the upper layer", path.display())]
    NoDirectory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else could exchange what is written.
    #[error("{} cannot hold what is written: {why}; choose a directory of your own that nobody else may write in", path.display())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// Who could.
        why: String,
    },
    /// The file system cannot be an upper layer.
    #[error(
        "{} cannot hold what is written: it is on {file_system}, {why}; choose a directory on xfs (ftype=1), ext4 or btrfs, or on \
         tmpfs where the kernel has extended attributes for it", path.display()
    )]
    Unsuitable {
        /// The directory.
        path: PathBuf,
        /// The type of its file system.
        file_system: String,
        /// What it lacks.
        why: &'static str,
    },
    /// The paths are too long for mount(2).
    #[error("cannot mount a view that can be written to on {}: its options would take {length} bytes and {MAX_OPTIONS} is the most; use shorter paths", target.display())]
    TooLong {
        /// Where it was to be.
        target: PathBuf,
        /// How long they are.
        length: usize,
    },
    /// The kernel refused.
    #[error(
        "cannot mount a view that can be written to on {}: overlay: {}; {remedy}", target.display(), errno.desc()
    )]
    Refused {
        /// Where it was to be.
        target: PathBuf,
        /// What it said.
        errno: Errno,
        /// What to do.
        remedy: String,
    },
}

impl OverlayError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

impl From<OverlayError> for MountError {
    fn from(error: OverlayError) -> Self {
        let kind = match error {
            OverlayError::NoDirectory { .. }
            | OverlayError::Untrusted { .. }
            | OverlayError::Unsuitable { .. }
            | OverlayError::TooLong { .. } => ErrorKind::Invalid,
            OverlayError::Io { .. } | OverlayError::Refused { .. } => ErrorKind::System,
        };
        Self::new(kind, error)
    }
}

/// An overlay to be mounted.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// What shows through.
    pub lower: &'a Path,
    /// Receives what is written: a directory of the same file system as `work`.
    pub upper: &'a Path,
    /// The kernel's own: an empty directory.
    pub work: &'a Path,
    /// Whether the upper directory must hold whole files and directories, because somebody reads it by itself.
    pub whole_files: bool,
    /// Whether what is written may be lost when the machine crashes, because it goes with the view anyway.
    pub volatile: bool,
    /// What the mount table calls it.
    pub source: &'a str,
    /// Flags of the mount.
    pub flags: MsFlags,
}

impl Overlay<'_> {
    /// Mounts it on `target`, which error messages call `shown`.
    ///
    /// # Errors
    /// [`OverlayError::TooLong`], [`OverlayError::Refused`].
    pub fn mount(&self, target: &Path, shown: &Path) -> Result<(), OverlayError> {
        // With `on`, inode numbers are those of the layers with the layer's number in the upper bits, so that they stay what
        // they are when a file is copied up. `auto` does that only where the lower file system leaves those bits alone for sure.
        let fewer: &[&str] = if self.volatile { &["xino=on,volatile", "xino=on"] } else { &["xino=on"] };
        for extras in fewer {
            match self.attempt(target, shown, extras) {
                Err(OverlayError::Refused { errno: Errno::EINVAL, .. }) => {
                    debug!(target = %shown.display(), extras, "overlay was refused with these options; trying fewer");
                }
                other => return other,
            }
        }
        self.attempt(target, shown, "xino=auto")
    }

    fn attempt(&self, target: &Path, shown: &Path, extras: &str) -> Result<(), OverlayError> {
        let options = self.options(extras);
        if options.len() > MAX_OPTIONS {
            return Err(OverlayError::TooLong { target: shown.to_owned(), length: options.len() });
        }
        let options = OsStr::from_bytes(&options);
        mount(Some(self.source), target, Some(FS_TYPE), self.flags, Some(options)).map_err(|errno| {
            let remedy = match errno {
                Errno::EPERM | Errno::EACCES => "mounting needs root (CAP_SYS_ADMIN)".to_owned(),
                Errno::ENODEV => "this kernel has no overlayfs: modprobe overlay".to_owned(),
                _ => format!(
                    "the disk with {} must be xfs (ftype=1), ext4 or btrfs; the kernel's log (dmesg) has the reason",
                    self.upper.display()
                ),
            };
            OverlayError::Refused { target: shown.to_owned(), errno, remedy }
        })
    }

    fn options(&self, extras: &str) -> Vec<u8> {
        let features = if self.whole_files { "metacopy=off,redirect_dir=off" } else { "metacopy=on,redirect_dir=on" };
        let mut options = Vec::new();
        for (name, path) in [("lowerdir", self.lower), ("upperdir", self.upper), ("workdir", self.work)] {
            options.extend(name.bytes());
            options.push(b'=');
            options.extend(escape(path));
            options.push(b',');
        }
        // An index would tie the upper directory to this very lower mount; neither file handles nor hard links from below need it.
        options.extend(format!("{features},index=off,nfs_export=off,{extras}").bytes());
        options
    }
}

/// Gives a fresh upper directory the owner, group and mode of what it will cover, because the root of a view has those of its upper
/// layer. `mask` takes permission bits away.
///
/// # Errors
/// When `lower` cannot be looked at or `upper` not be changed.
pub fn dress(lower: &Path, upper: &Path, mask: u32) -> Result<(), OverlayError> {
    let like = fs::metadata(lower).map_err(OverlayError::io("look at", lower))?;
    // The owner first: changing it may take bits off the mode.
    std::os::unix::fs::chown(upper, Some(like.uid()), Some(like.gid()))
        .and_then(|()| fs::set_permissions(upper, fs::Permissions::from_mode(like.mode() & 0o7777 & mask)))
        .map_err(OverlayError::io("prepare", upper))
}

/// The kernel splits the options at commas and the lower directories at colons; a backslash keeps it from doing so.
fn escape(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes().iter().copied() {
        if matches!(byte, b',' | b':' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_cannot_be_injected() {
        assert_eq!(escape(Path::new("/a,upperdir=/etc:x\\")), b"/a\\,upperdir=/etc\\:x\\\\");
    }

    proptest! {
        /// However odd the paths, the kernel reads the three that were meant and no option more.
        #[test]
        fn the_kernel_reads_the_paths_that_were_meant(
            lower in "/[a,:=\\\\ ]{0,12}", upper in "/[a,:=\\\\\n]{0,12}", work in "/[a,:=\\\\]{0,12}",
        ) {
            let overlay = Overlay {
                lower: Path::new(&lower),
                upper: Path::new(&upper),
                work: Path::new(&work),
                whole_files: false,
                volatile: true,
                source: "x",
                flags: MsFlags::empty(),
            };
            let read = as_the_kernel_reads(&overlay.options("xino=on,volatile"));
            let value = |name: &str| read.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
            prop_assert_eq!(value("lowerdir"), Some(lower.as_str()));
            prop_assert_eq!(value("upperdir"), Some(upper.as_str()));
            prop_assert_eq!(value("workdir"), Some(work.as_str()));
            prop_assert_eq!(read.len(), 9, "{:?}", read);
        }
    }

    /// Splits at commas that have no backslash before them, then undoes the backslashes, as `ovl_next_opt` and `ovl_unescape` do.
    fn as_the_kernel_reads(options: &[u8]) -> Vec<(String, String)> {
        let mut read = vec![String::new()];
        let mut bytes = options.iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b',' => read.push(String::new()),
                b'\\' => read.last_mut().unwrap().push(char::from(*bytes.next().unwrap())),
                byte => read.last_mut().unwrap().push(char::from(*byte)),
            }
        }
        read.into_iter()
            .map(|option| match option.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => (option, String::new()),
            })
            .collect()
    }

    #[test]
    fn what_is_read_by_itself_holds_whole_files() {
        let overlay = Overlay {
            lower: Path::new("/l,"),
            upper: Path::new("/u"),
            work: Path::new("/w"),
            whole_files: true,
            volatile: false,
            source: "x",
            flags: MsFlags::empty(),
        };
        let text = |overlay: Overlay<'_>| String::from_utf8(overlay.options("xino=on")).unwrap();
        assert_eq!(
            text(overlay),
            "lowerdir=/l\\,,upperdir=/u,workdir=/w,metacopy=off,redirect_dir=off,index=off,nfs_export=off,xino=on"
        );
        assert!(text(Overlay { whole_files: false, ..overlay }).contains("metacopy=on,redirect_dir=on"));
    }

    #[test]
    fn a_refusal_names_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = Overlay {
            lower: dir.path(),
            upper: &dir.path().join("u".repeat(200)).join("x".repeat(4000)),
            work: dir.path(),
            whole_files: false,
            volatile: true,
            source: "x",
            flags: MsFlags::empty(),
        };
        let error = overlay.mount(dir.path(), Path::new("/shown")).unwrap_err();
        assert!(error.to_string().contains("/shown") && error.to_string().contains("shorter paths"), "{error}");
        assert_eq!(MountError::from(error).kind, ErrorKind::Invalid);
    }
}
