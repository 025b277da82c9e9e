//! Project quotas: a limit on what a directory and everything below it may take.
//!
//! xfs and ext4 count blocks and files per *project*, a number that a directory hands down to what is made in it. Whoever writes
//! beyond the limit gets EDQUOT (ext4) or ENOSPC (xfs), while everybody else on that disk goes on. It needs a file system
//! that was mounted with `prjquota` (`pquota`), and on ext4 one that was made with `-O quota,project`; where that is
//! not so there is no quota, and no error either.
//!
//! The classic commands (`Q_SETQUOTA`, `Q_GETQUOTA`) work on both file systems, as the kernel translates them for xfs.
//! quotactl_fd(2), of Linux 5.14, takes a directory; before that the block device has to be named.
//!
//! Root is not above these limits when it writes through an overlay: overlayfs gives up `CAP_SYS_RESOURCE` for what it does in its
//! layers. Pages of a file that root has mapped are written by root itself, and on ext4 past the limit.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, fstatfs};

use crate::mountpoint;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// `struct fs_qfilestat` of linux/dqblk_xfs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct QuotaFile {
    ino: u64,
    blocks: u64,
    extents: u32,
}

/// `struct fs_quota_stat` of linux/dqblk_xfs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct QuotaState {
    version: i8,
    flags: u16,
    pad: i8,
    user: QuotaFile,
    group: QuotaFile,
    in_core: u32,
    times: [i32; 3],
    warnings: [u16; 2],
}

const FS_IOC_FSGETXATTR: libc::Ioctl = libc::_IOR::<FsXattr>(b'X' as u32, 31);
const FS_IOC_FSSETXATTR: libc::Ioctl = libc::_IOW::<FsXattr>(b'X' as u32, 32);
/// New entries of a directory get its project.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
/// Quotas of projects, not of users or groups.
const PRJQUOTA: i32 = 2;
/// `XQM_CMD(5)`.
const Q_XGETQSTAT: i32 = 0x5805;
/// Usage of projects is counted, and their limits are kept.
const COUNTED_AND_KEPT: u16 = 1 << 4 | 1 << 5;
/// Both kinds of limits are set, of blocks and of inodes.
const QIF_LIMITS: u32 = 1 | 4;
/// The unit of limits of space, in bytes.
const QUOTA_BLOCK: u64 = 1024;
const XFS_SUPER_MAGIC: FsType = FsType(libc::XFS_SUPER_MAGIC);

/// Numbers that are given to projects; people use small ones.
const FIRST_PROJECT: u32 = 1 << 24;
const LAST_PROJECT: u32 = i32::MAX as u32;
/// How many numbers are tried.
const ATTEMPTS: u32 = 64;

/// The most that is left free beside a view for which no limit was given, in bytes.
const MAX_RESERVE: u64 = 10 << 30;
/// The least a limit is, in bytes; 0 would mean none.
const MIN_LIMIT: u64 = 1 << 20;

/// Why there is no quota on a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoQuota {
    /// The file system has none, or is not mounted with them.
    #[error(
        "its file system keeps no project quotas (xfs: mount with pquota; ext4: made with mkfs.ext4 -O quota,project and mounted with prjquota)"
    )]
    NotKept,
    /// Somebody has put a limit on the directory around it, which holds for this one as well.
    #[error("the directory it is in belongs to project {project} already, whose limit holds")]
    Taken {
        /// Its number.
        project: u32,
    },
    /// The system refused.
    #[error("cannot {action}: {}", errno.desc())]
    Refused {
        /// What it refused.
        action: &'static str,
        /// What it said.
        errno: Errno,
    },
    /// Every number that was tried is in use.
    #[error("no project number is free")]
    NoFreeNumber,
}

fn refused(action: &'static str) -> impl FnOnce(Errno) -> NoQuota {
    move |errno| NoQuota::Refused { action, errno }
}

/// What a project may take and has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in use.
    pub used: u64,
    /// Bytes that may be used at most; 0 for no limit.
    pub limit: u64,
}

/// A limit on a directory.
#[derive(Debug)]
pub struct ProjectQuota {
    /// Any directory of that file system that lives as long as this.
    anchor: File,
    project: u32,
}

impl ProjectQuota {
    /// Puts an empty directory and all that will be in it under a limit, in bytes; without one, what is free now less a reserve (a
    /// twentieth of the file system, at most 10 GiB). `anchor` is any directory of the same file system.
    ///
    /// # Errors
    /// Nothing is changed then, but maybe the directory's own project number.
    pub fn assign(directory: &File, anchor: File, limit: Option<u64>) -> Result<Self, NoQuota> {
        let stat = fstatfs(directory).map_err(refused("look at the file system"))?;
        // The structure below is theirs; others might understand something else by it.
        if !matches!(stat.filesystem_type(), EXT4_SUPER_MAGIC | XFS_SUPER_MAGIC) || !is_kept(&anchor) {
            return Err(NoQuota::NotKept);
        }
        match attributes(directory).map_err(refused("read its project number"))?.projid {
            0 => {}
            project => return Err(NoQuota::Taken { project }),
        }
        let block = u64::try_from(stat.block_size()).unwrap_or(4096);
        let reserve = (stat.blocks() * block / 20).min(MAX_RESERVE);
        let free = (stat.blocks_available() * block).saturating_sub(reserve);
        let limit = limit.unwrap_or(free).max(MIN_LIMIT);
        // As many files as are free now, less a twentieth: a disk can also be full of those.
        let files = stat.files_free().saturating_sub(stat.files() / 20).max(1024);
        let project = free_project(&anchor)?;
        let quota = Self { anchor, project };
        quota.set(limit, files).map_err(refused("set the limit"))?;
        let mark = || {
            let mut attributes = attributes(directory)?;
            attributes.projid = project;
            attributes.xflags |= FS_XFLAG_PROJINHERIT;
            set_attributes(directory, &attributes)
        };
        mark().map_err(|errno| {
            quota.release();
            NoQuota::Refused { action: "give the directory a project number", errno }
        })?;
        Ok(quota)
    }

    /// The quota that an earlier process has put on a directory, to be given back.
    pub fn of(directory: &File, anchor: File, project: u32) -> Option<Self> {
        let is_its = attributes(directory).is_ok_and(|found| found.projid == project);
        (is_its && project >= FIRST_PROJECT).then_some(Self { anchor, project })
    }

    /// The project's number.
    pub fn project(&self) -> u32 {
        self.project
    }

    /// What is used and what may be.
    pub fn usage(&self) -> Option<Usage> {
        usage_of(&self.anchor, self.project)
    }

    /// Takes the limit away, so that the number is free again once nothing has it any more.
    pub fn release(&self) {
        if let Err(errno) = self.set(0, 0) {
            tracing::debug!(project = self.project, error = errno.desc(), "cannot take a project's limit away");
        }
    }

    fn set(&self, bytes: u64, files: u64) -> nix::Result<()> {
        let mut limits = dqblk();
        limits.dqb_bhardlimit = bytes.div_ceil(QUOTA_BLOCK);
        limits.dqb_ihardlimit = files;
        limits.dqb_valid = QIF_LIMITS;
        quotactl(&self.anchor, libc::Q_SETQUOTA, self.project, &mut limits)
    }
}

/// What a project may take and has taken on the file system that a directory is on; nothing when it has no record of it.
pub fn usage_of(anchor: &File, project: u32) -> Option<Usage> {
    let found = get(anchor, project).ok()?;
    Some(Usage { used: found.dqb_curspace, limit: found.dqb_bhardlimit.saturating_mul(QUOTA_BLOCK) })
}

fn dqblk() -> libc::dqblk {
    libc::dqblk {
        dqb_bhardlimit: 0,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: 0,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: 0,
    }
}

fn get(anchor: &File, project: u32) -> nix::Result<libc::dqblk> {
    let mut found = dqblk();
    quotactl(anchor, libc::Q_GETQUOTA, project, &mut found)?;
    Ok(found)
}

fn is_kept(anchor: &File) -> bool {
    let mut state = QuotaState { version: 1, ..QuotaState::default() };
    quotactl(anchor, Q_XGETQSTAT, 0, &mut state).is_ok() && state.flags & COUNTED_AND_KEPT == COUNTED_AND_KEPT
}

/// A number that the kernel has no record of.
fn free_project(anchor: &File) -> Result<u32, NoQuota> {
    let span = LAST_PROJECT - FIRST_PROJECT;
    for _ in 0..ATTEMPTS {
        let offset = u32::try_from(super::upper::random() % u64::from(span)).unwrap_or_default();
        let project = FIRST_PROJECT + offset;
        match get(anchor, project) {
            Err(Errno::ENOENT) => return Ok(project),
            Ok(found)
                if found.dqb_curspace == 0
                    && found.dqb_curinodes == 0
                    && found.dqb_bhardlimit == 0
                    && found.dqb_bsoftlimit == 0
                    && found.dqb_ihardlimit == 0 =>
            {
                return Ok(project);
            }
            Ok(_) => {}
            Err(errno) => return Err(NoQuota::Refused { action: "read quotas", errno }),
        }
    }
    Err(NoQuota::NoFreeNumber)
}

fn attributes(directory: &File) -> nix::Result<FsXattr> {
    let mut attributes = FsXattr::default();
    // SAFETY: the descriptor is open and the request writes one `struct fsxattr`, which is what it is given.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    Errno::result(result).map(|_| attributes)
}

fn set_attributes(directory: &File, attributes: &FsXattr) -> nix::Result<()> {
    // SAFETY: the descriptor is open and the request reads one `struct fsxattr`, which is what it is given.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const *attributes) };
    Errno::result(result).map(drop)
}

/// What quotactl(2) reads or writes with the commands used here.
trait Argument {}
impl Argument for libc::dqblk {}
impl Argument for QuotaState {}

/// quotactl(2) on projects, for the file system that a directory is on.
fn quotactl<T: Argument>(anchor: &File, command: i32, project: u32, argument: &mut T) -> nix::Result<()> {
    let command = libc::QCMD(command, PRJQUOTA);
    let descriptor: RawFd = anchor.as_raw_fd();
    // SAFETY: quotactl_fd(fd, command, id, address). Every command used here reads or writes one structure of the type that
    // `Argument` is implemented for, which lives until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_quotactl_fd, descriptor, command, project, &raw mut *argument) };
    match Errno::result(result) {
        Err(Errno::ENOSYS) => {}
        other => return other.map(drop),
    }
    let device = device(anchor).map_err(|_| Errno::ENODEV)?;
    // SAFETY: quotactl(command, device, id, address): the path is a C string, the structure as above.
    let result = unsafe { libc::syscall(libc::SYS_quotactl, command, device.as_ptr(), project, &raw mut *argument) };
    Errno::result(result).map(drop)
}

/// The block device of the file system that a directory is on, as the mount table has it.
fn device(directory: &File) -> io::Result<CString> {
    let device = directory.metadata()?.dev();
    let device = format!("{}:{}", major(device), minor(device));
    let found = mountpoint::mounts()?.into_iter().find(|mount| mount.device == device);
    let found = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    // `/dev/root` and its like lead nowhere; udev's link by number does.
    let by_name = Path::new(&found.source);
    let by_number = Path::new("/dev/block").join(&device);
    let path = if by_name.exists() { by_name } else { &by_number };
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_size_the_kernel_expects() {
        assert_eq!((size_of::<FsXattr>(), size_of::<QuotaFile>(), size_of::<QuotaState>()), (28, 24, 80));
        assert_eq!(FS_IOC_FSGETXATTR, 0x801c_581f);
    }

    #[test]
    fn where_quotas_are_not_kept_that_is_said_and_nothing_changed() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::open(dir.path()).unwrap();
        if !is_kept(&open()) {
            assert_eq!(ProjectQuota::assign(&open(), open(), None).map(drop), Err(NoQuota::NotKept));
        }
        assert!(ProjectQuota::of(&open(), open(), 0).is_none());
    }

    #[test]
    fn the_device_of_a_directory_is_found() {
        let root = File::open("/").unwrap();
        // Only a block device has one; in a container the root is an overlay.
        if fstatfs(&root).unwrap().filesystem_type() == EXT4_SUPER_MAGIC {
            assert!(device(&root).unwrap().to_str().unwrap().starts_with("/dev/"));
        }
    }
}
