//! One run at a time, children included.
//!
//! The lock is an flock(2) of a file in `/run`. It belongs to the open file and not to the process: a `mkfs` that has been
//! handed it keeps it when its parent is killed, and the next run waits for the end of that `mkfs` instead of looking at
//! a disk that is being written.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// How long to sleep between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// The lock. Dropping it closes the file and does not unlock it: a child that has the file, too, goes on having the lock.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Waits for it, at most `limit`. `None`: somebody else still has it.
    pub(crate) fn take(path: &Path, limit: Duration) -> io::Result<Option<Self>> {
        let start = Instant::now();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self(file))),
                Err(TryLockError::WouldBlock) if start.elapsed() < limit => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Runs something whose child processes keep the lock for as long as they live. Programs that only look do not get it:
    /// one that hangs on a dead disk would keep everybody out.
    pub(crate) fn shared_with_children<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let set = |flags: FdFlag| fcntl(self.0.as_fd(), FcntlArg::F_SETFD(flags));
        set(FdFlag::empty())?;
        let result = work();
        set(FdFlag::FD_CLOEXEC)?;
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;

    #[test]
    fn a_child_keeps_the_lock_when_its_parent_has_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let lock = Lock::take(&path, Duration::ZERO).unwrap().unwrap();
        assert!(Lock::take(&path, Duration::from_millis(20)).unwrap().is_none());
        let shell = |script: &str| Command::at("/bin/sh", Duration::from_secs(30)).args(["-c", script]).run().unwrap();
        // The shell ends at once; what it leaves behind has the lock.
        lock.shared_with_children(|| shell("sleep 0.5 >/dev/null 2>&1 &")).unwrap();
        drop(lock);
        assert!(Lock::take(&path, Duration::ZERO).unwrap().is_none());
        let lock = Lock::take(&path, Duration::from_secs(30)).unwrap().unwrap();
        // One that only looks does not.
        shell("sleep 0.5 >/dev/null 2>&1 &");
        drop(lock);
        assert!(Lock::take(&path, Duration::ZERO).unwrap().is_some());
    }
}
