//! What a server leaves where others find it: the lock on its cache directory, its control socket, and a record of its mounts
//! by which the next one cleans up if it dies.
//!
//! ```text
//! RUNTIME_DIR/<hash>.sock      control socket; the hash is of the cache directory's path
//! RUNTIME_DIR/<hash>.metrics   socket where metrics are scraped
//! RUNTIME_DIR/<hash>.mounts    what is mounted, as JSON
//! RUNTIME_DIR/<hash>.log       the log of a server that was started by a client
//! RUNTIME_DIR/<hash>.lower/    mounts on their way to become the lower layer of a view
//! CACHE_DIR/lock               locked while a server lives; says which
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use crate::error::{ErrorKind, MountError};
use crate::mountpoint;
use crate::options::UnmountMode;

/// The paths that belong to one cache directory.
#[derive(Debug, Clone)]
pub struct RuntimePaths {
    /// The control socket.
    pub socket: PathBuf,
    /// The socket where metrics are scraped.
    pub metrics: PathBuf,
    /// The record of mounts.
    pub record: PathBuf,
    /// The log of a server that nobody's terminal belongs to.
    pub log: PathBuf,
    /// Where mounts are made that become the lower layer of a view.
    pub lower: PathBuf,
}

/// Makes a directory that only we may enter, or checks that an existing one is ours and only we may write in it.
///
/// # Errors
/// [`ErrorKind::System`] when it cannot be made; [`ErrorKind::Invalid`] when others own it or may write in it.
pub fn private_dir(path: &Path, what: &str) -> Result<PathBuf, MountError> {
    let shown = path.display();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        MountError::new(
            ErrorKind::System,
            format_args!("cannot make the {what} {shown}: {error}; choose another or run as root"),
        )
    })?;
    let real = path
        .canonicalize()
        .map_err(|error| MountError::new(ErrorKind::System, format_args!("cannot use the {what} {shown}: {error}")))?;
    let meta = fs::metadata(&real)
        .map_err(|error| MountError::new(ErrorKind::System, format_args!("cannot use the {what} {shown}: {error}")))?;
    let me = nix::unistd::geteuid();
    if meta.uid() != me.as_raw() {
        return Err(MountError::new(
            ErrorKind::Invalid,
            format_args!(
                "the {what} {shown} belongs to user {} and not to {me}; choose a directory of your own",
                meta.uid()
            ),
        ));
    }
    // Readable by others is all right: what we put there we make readable to ourselves only.
    if meta.mode() & 0o022 != 0 {
        return Err(MountError::new(
            ErrorKind::Invalid,
            format_args!(
                "others may write in the {what} {shown} (mode {:o}); chmod go-w it or choose another",
                meta.mode() & 0o7777
            ),
        ));
    }
    Ok(real)
}

impl RuntimePaths {
    /// The paths for `cache_dir`, which need not exist yet.
    ///
    /// # Errors
    /// When it is relative and there is no working directory.
    pub fn new(runtime_dir: &Path, cache_dir: &Path) -> Result<Self, MountError> {
        let absolute = std::path::absolute(cache_dir).map_err(|error| {
            MountError::new(ErrorKind::Invalid, format_args!("bad cache directory {}: {error}", cache_dir.display()))
        })?;
        // Two names of one directory must lead to one server; of one that does not exist there can be no server.
        let real = absolute.canonicalize().unwrap_or(absolute);
        let hash = hex::encode(&Sha256::digest(real.as_os_str().as_encoded_bytes())[..8]);
        let file = |suffix: &str| runtime_dir.join(format!("{hash}.{suffix}"));
        Ok(Self {
            socket: file("sock"),
            metrics: file("metrics"),
            record: file("mounts"),
            log: file("log"),
            lower: file("lower"),
        })
    }
}

/// The sockets of all servers of a runtime directory, dead ones included.
pub fn sockets(runtime_dir: &Path) -> Vec<PathBuf> {
    let mut sockets: Vec<PathBuf> = fs::read_dir(runtime_dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    sockets.sort();
    sockets
}

#[derive(Debug, Serialize, Deserialize)]
struct LockOwner {
    pid: u32,
    socket: PathBuf,
}

/// The lock on a cache directory; given back when dropped, also by the kernel when the process dies.
#[derive(Debug)]
pub struct CacheLock {
    file: Flock<File>,
}

impl CacheLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// [`ErrorKind::CacheInUse`] with the owner's process and socket.
    pub fn take(cache_dir: &Path, paths: &RuntimePaths) -> Result<Self, MountError> {
        let path = cache_dir.join("lock");
        let system = |error: &dyn std::fmt::Display| {
            MountError::new(ErrorKind::System, format_args!("cannot lock {}: {error}", path.display()))
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&path)
            .map_err(|error| system(&error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => {
                let mut lock = Self { file };
                lock.sign(paths)?;
                Ok(lock)
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                let owner = match serde_json::from_str::<LockOwner>(&text) {
                    Ok(owner) => format!("process {}, socket {}", owner.pid, owner.socket.display()),
                    Err(_) => "another process".to_owned(),
                };
                Err(MountError::new(
                    ErrorKind::CacheInUse,
                    format_args!(
                        "the cache directory {} belongs to another fuse-oss server ({owner}); use that one \
                         (fuse-oss mount with the same --cache-dir and --runtime-dir) or give this one its own --cache-dir",
                        cache_dir.display()
                    ),
                ))
            }
            Err((_, errno)) => Err(system(&errno.desc())),
        }
    }
}

impl CacheLock {
    /// Writes into it whose it is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn sign(&mut self, paths: &RuntimePaths) -> Result<(), MountError> {
        let owner = LockOwner { pid: std::process::id(), socket: paths.socket.clone() };
        let mut write = || {
            let text = serde_json::to_vec(&owner)?;
            self.file.set_len(0)?;
            self.file.rewind()?;
            self.file.write_all(&text)
        };
        write().map_err(|error: io::Error| {
            MountError::new(ErrorKind::System, format_args!("cannot write the lock of the cache directory: {error}"))
        })
    }

    /// The lock as another process has left it to us, with the descriptor.
    ///
    /// # Errors
    /// [`ErrorKind::CacheInUse`] when it is not that lock.
    pub fn inherited(descriptor: OwnedFd) -> Result<Self, MountError> {
        // Locking what is locked through the same open file changes nothing.
        Flock::lock(File::from(descriptor), FlockArg::LockExclusiveNonblock).map(|file| Self { file }).map_err(
            |(_, errno)| {
                MountError::new(
                    ErrorKind::CacheInUse,
                    format_args!("the cache directory's lock was lost: {}", errno.desc()),
                )
            },
        )
    }
}

impl AsFd for CacheLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Listens on a socket that only we and root can connect to. For the owner of the cache lock: a socket that is there belongs to a
/// server that has died.
///
/// # Errors
/// When it cannot be made.
pub fn bind_private(socket: &Path) -> io::Result<UnixListener> {
    let _ = fs::remove_file(socket);
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(socket);
    nix::sys::stat::umask(mask);
    listener
}

/// A mount in the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Where.
    pub target: PathBuf,
    /// `major:minor`, which no other mount has at the same time.
    pub device: String,
}

/// Replaces the record atomically.
///
/// # Errors
/// When the runtime directory cannot be written.
pub fn write_record(path: &Path, mounts: &[Recorded]) -> io::Result<()> {
    if mounts.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let temporary = path.with_extension("mounts.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(mounts)?)?;
    fs::rename(temporary, path)
}

/// Removes the mounts that a server that died was about to make the lower layers of views. The caller holds the cache lock.
pub fn clean_up_lower(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dead = mountpoint::mounted_on(&path).is_some_and(|mount| mountpoint::is_dead(&mount));
        let unmounted = if is_dead { mountpoint::unmount(&path, UnmountMode::Lazy) } else { Ok(()) };
        if let Err(error) = unmounted {
            warn!(%error, "cannot remove a dead mount");
        }
        // Fails where something is mounted.
        let _ = fs::remove_dir(&path);
    }
    let _ = fs::remove_dir(directory);
}

/// Removes what a server that died left mounted. The caller holds the cache lock, so that server is gone for sure; still
/// only mounts of our type, of the recorded device, that nobody answers any more are touched.
pub fn clean_up(record: &Path) {
    let Ok(text) = fs::read(record) else { return };
    let recorded: Vec<Recorded> = match serde_json::from_slice(&text) {
        Ok(recorded) => recorded,
        Err(error) => {
            warn!(path = %record.display(), %error, "unreadable record of mounts; dead mounts, if any, have to be removed by hand (umount -l)");
            return;
        }
    };
    for Recorded { target, device } in recorded {
        let Some(mount) = mountpoint::mounted_on(&target) else { continue };
        if mount.device == device && mountpoint::is_dead(&mount) {
            match mountpoint::unmount(&target, UnmountMode::Lazy) {
                Ok(()) => info!(target = %target.display(), "removed a mount that a server left when it died"),
                Err(error) => warn!(%error, "cannot remove a dead mount"),
            }
        }
    }
    if let Err(error) = write_record(record, &[]) {
        warn!(path = %record.display(), %error, "cannot remove the old record of mounts");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_server_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let paths = RuntimePaths::new(Path::new("/run/x"), dir.path()).unwrap();
        let lock = CacheLock::take(dir.path(), &paths).unwrap();
        let error = CacheLock::take(dir.path(), &paths).unwrap_err();
        assert_eq!(error.kind, ErrorKind::CacheInUse);
        assert!(error.message.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.message.contains("/run/x/"), "{error}");
        drop(lock);
        CacheLock::take(dir.path(), &paths).unwrap();
    }

    #[test]
    fn two_names_of_a_cache_directory_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("cache");
        fs::create_dir(&real).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let paths = |dir: &Path| RuntimePaths::new(Path::new("/run/x"), dir).unwrap().socket;
        assert_eq!(paths(&real), paths(&link));
        assert_ne!(paths(&real), paths(dir.path()));
    }

    #[test]
    fn a_record_survives_and_an_empty_one_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("x.mounts");
        let mounts = [Recorded { target: "/mnt/a".into(), device: "0:99".into() }];
        write_record(&record, &mounts).unwrap();
        assert_eq!(serde_json::from_slice::<Vec<Recorded>>(&fs::read(&record).unwrap()).unwrap(), mounts);
        // Nothing is mounted there, so cleaning up touches nothing and forgets it.
        clean_up(&record);
        assert!(!record.exists());
        fs::write(&record, "{torn").unwrap();
        clean_up(&record);
        assert!(record.exists());
    }

    #[test]
    fn a_private_directory_is_made_or_checked_and_never_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        private_dir(&path, "cache directory").unwrap();
        let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o700);
        let set = |mode| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        set(0o755);
        private_dir(&path, "cache directory").unwrap();
        set(0o777);
        let error = private_dir(&path, "cache directory").unwrap_err();
        assert!(error.message.contains("others may write in the cache directory"), "{error}");
        assert_eq!(mode(), 0o777);
    }
}
