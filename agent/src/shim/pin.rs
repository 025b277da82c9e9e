//! Keeping the task's mount namespace when the last process in it is gone.
//!
//! A namespace lives as long as a process is in it, or as its file in /proc is mounted somewhere. That mount has to be made in the
//! host's namespace, and by a process that is not in this one; a child goes back there for it. It is done before the program is
//! started, so a program that fails at once leaves its namespace, too.

use std::fs::File;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// The host's namespace, as long as this process is in it.
pub(super) fn host() -> std::io::Result<File> {
    File::open("/proc/self/ns/mnt")
}

/// Mounts this process's namespace on the file `at`, in the namespace `host`. There `at` has to be on a mount that is private: one
/// that is propagated to this namespace would make it hold itself.
pub(super) fn pin(at: &Path, host: &File) -> Result<(), Errno> {
    let own = format!("/proc/{}/ns/mnt", std::process::id());
    // SAFETY: this process has one thread, so the child may do whatever we may. It makes two system calls and ends without running
    // anything that was registered for the end of this one.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let mounted = setns(host, CloneFlags::CLONE_NEWNS)
                .and_then(|()| mount(Some(own.as_str()), at, None::<&str>, MsFlags::MS_BIND, None::<&str>));
            let status = mounted.map_or_else(|errno| errno as i32, |()| 0);
            // SAFETY: ends the process at once; takes a plain number.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                Ok(WaitStatus::Exited(_, status)) => return Err(Errno::from_raw(status)),
                Ok(_) => return Err(Errno::ECHILD),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        },
    }
}
