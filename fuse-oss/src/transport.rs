//! `/dev/fuse`, mount(2) and the session loop: the thin layer between the kernel and [`Mounted`].
//!
//! The mount is made here and not by the `fuser` crate, for three reasons. Its own unmounting looks at the path and would
//! take down whatever is mounted there by then. The file system gets its proper type (`fuse.fuse-oss`), which is what fstab,
//! `umount -t` and the clean-up after a crash go by. And the target is the directory that was checked, held open, not a
//! path that may lead elsewhere by now.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fuser::{Notifier, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tracing::debug;

use crate::error::{ErrorKind, MountError};
use crate::filesystem::Mounted;
use crate::mountpoint::{FS_TYPE, Target};
use crate::options::MountOptions;

const DEVICE: &str = "/dev/fuse";

/// The notification by which requests are sent again (`FUSE_NOTIFY_RESEND`, Linux 6.9).
const NOTIFY_RESEND: i32 = 7;

/// The largest read the kernel sends, in bytes; it has the same limit by default (256 pages).
const MAX_READ: u32 = 1 << 20;

/// How far the kernel reads ahead by itself. Its own figure of 128 KiB makes mmap five times slower.
const READ_AHEAD_KIB: u32 = 1024;

/// A mount whose requests are not answered yet: [`Transport::run`] does that.
#[derive(Debug)]
pub struct Transport {
    session: Session<Mounted>,
}

/// Opens the FUSE device.
///
/// # Errors
/// [`ErrorKind::NoFuseDevice`] with what to do about it.
pub fn open_device() -> Result<File, MountError> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(DEVICE);
    device.map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "load the kernel module (modprobe fuse); in a container pass the device in (--device /dev/fuse)"
            }
            Some(libc::EACCES | libc::EPERM) => {
                "run as root; in a container also allow it (--device /dev/fuse --cap-add SYS_ADMIN)"
            }
            _ => "check that FUSE works on this machine (modprobe fuse; ls -l /dev/fuse)",
        };
        MountError::new(ErrorKind::NoFuseDevice, format_args!("cannot open {DEVICE}: {error}; {remedy}"))
    })
}

impl Transport {
    /// Mounts a file system and shakes hands with the kernel.
    ///
    /// # Errors
    /// [`ErrorKind::NoFuseDevice`], [`ErrorKind::System`].
    pub fn mount(
        filesystem: Mounted,
        device: File,
        target: &Target,
        source: &str,
        options: &MountOptions,
    ) -> Result<Self, MountError> {
        let mut flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        if !options.exec {
            flags |= MsFlags::MS_NOEXEC;
        }
        let mut data = format!(
            "fd={},rootmode={},user_id={},group_id={},default_permissions,max_read={MAX_READ}",
            device.as_raw_fd(),
            target.root_mode(),
            nix::unistd::geteuid(),
            nix::unistd::getegid()
        );
        if options.allow_other {
            data.push_str(",allow_other");
        }
        let path = target.path();
        nix::mount::mount(Some(source), &target.held(), Some(FS_TYPE), flags, Some(data.as_str())).map_err(
            |errno| {
                let (kind, remedy) = match errno {
                    Errno::EPERM | Errno::EACCES => (ErrorKind::System, "mounting needs root (CAP_SYS_ADMIN)"),
                    Errno::ENODEV => (ErrorKind::NoFuseDevice, "this kernel has no FUSE: modprobe fuse"),
                    _ => (ErrorKind::System, "see the kernel's log (dmesg)"),
                };
                MountError::new(kind, format_args!("cannot mount on {}: {}; {remedy}", path.display(), errno.desc()))
            },
        )?;
        let (acl, config) = session_settings(options);
        let session = Session::from_fd(filesystem, OwnedFd::from(device), acl, config).map_err(|error| {
            // Nobody can be using a mount that has not answered once.
            let _ = nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            MountError::new(
                ErrorKind::System,
                format_args!("the kernel refused the FUSE session on {}: {error}; see its log (dmesg)", path.display()),
            )
        })?;
        Ok(Self { session })
    }

    /// Takes up a session on a connection that another process has shaken hands on. Requests are answered once it is run, those
    /// that were left unanswered after [`Transport::resend`].
    ///
    /// `fuser` insists on shaking hands itself, so it does, with a socket on which a made-up INIT waits; then the connection
    /// takes the socket's place.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn take_over(filesystem: Mounted, device: OwnedFd, options: &MountOptions) -> io::Result<Self> {
        let (kernel, ours) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        nix::unistd::write(&kernel, &made_up_init())?;
        let (acl, config) = session_settings(options);
        let session = Session::from_fd(filesystem, ours, acl, config)?;
        let socket = session.as_fd().as_raw_fd();
        // SAFETY: both are open descriptors; whoever uses the one that is replaced, the session, does so by its number only.
        if unsafe { libc::dup3(device.as_raw_fd(), socket, libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { session })
    }

    /// Has the kernel send again what was read and not answered.
    ///
    /// # Errors
    /// `EINVAL` from kernels before 6.9, which cannot.
    pub fn resend(&self) -> io::Result<()> {
        // struct fuse_out_header: length, a notification's code, and no request that this would answer.
        let mut header = [0; 16];
        header[..4].copy_from_slice(&16_u32.to_ne_bytes());
        header[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
        nix::unistd::write(self.session.as_fd(), &header)?;
        Ok(())
    }

    /// The way to tell the kernel things unasked.
    pub fn notifier(&self) -> Notifier {
        self.session.notifier()
    }

    /// Answers the kernel until the mount is gone.
    ///
    /// # Errors
    /// When the device fails in a way that is not the end of the mount.
    pub fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

/// `FUSE_INIT` as a kernel sends it that can do everything. What was agreed on with the real one stays; the file system keeps that
/// itself.
fn made_up_init() -> Vec<u8> {
    const INIT: u32 = 26;
    const HEADER: usize = 40;
    const BODY: usize = 64;
    let mut bytes = Vec::with_capacity(HEADER + BODY);
    let mut word = |value: u32| bytes.extend(value.to_ne_bytes());
    // struct fuse_in_header: length, opcode, unique (8 bytes), node (8 bytes), uid, gid, pid, nothing.
    for value in [u32::try_from(HEADER + BODY).unwrap_or(0), INIT, 1, 0, 0, 0, 0, 0, 0, 0] {
        word(value);
    }
    // struct fuse_init_in: major, minor, readahead, flags, more flags, and eleven words for later.
    for value in [7, 40, 128 << 10, u32::MAX, u32::MAX] {
        word(value);
    }
    bytes.resize(HEADER + BODY, 0);
    bytes
}

fn session_settings(options: &MountOptions) -> (SessionACL, fuser::Config) {
    let mut config = fuser::Config::default();
    config.n_threads = Some(threads());
    // Cloned descriptors would help a little and make it impossible to hand a live mount to another process.
    config.clone_fd = false;
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    (acl, config)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 4))
}

/// Lets the kernel read further ahead. The mount works without; `device` is its `major:minor`.
pub fn raise_read_ahead(device: &str) {
    let path = Path::new("/sys/class/bdi").join(device).join("read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        debug!(path = %path.display(), %error, "cannot raise the kernel's read-ahead");
    }
}
