//! The worker's process, as its parent sees it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use serde::Serialize;
use tracing::{debug, warn};

use super::ServerSettings;
use super::link::Link;
use super::restarts::Death;
use crate::runtime::CacheLock;

/// The keeper is the last that the kernel should kill for want of memory: it is small, and all depends on it.
const KEEPERS_OOM_SCORE: &str = "-900";

/// A worker that was started.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    link: Option<Link>,
}

/// The program that runs, even if its file has been replaced since.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

impl Worker {
    /// Starts one.
    ///
    /// # Errors
    /// When there are no processes or descriptors to be had.
    pub fn start(
        settings: &ServerSettings,
        control: &UnixListener,
        metrics: Option<&UnixListener>,
        lock: &CacheLock,
    ) -> io::Result<Self> {
        let (ours, its) = Link::pair()?;
        // Duplicates that survive the exec; ours of them go when this returns.
        let mut inherited = Vec::new();
        let mut command = Command::new(THIS_PROGRAM);
        command.arg0("fuse-oss").arg("worker").args(&settings.log_arguments);
        let mut pass = |name: &str, descriptor: BorrowedFd<'_>| -> io::Result<()> {
            let duplicate = inheritable(descriptor)?;
            command.arg(format!("--{name}-fd={}", duplicate.as_raw_fd()));
            inherited.push(duplicate);
            Ok(())
        };
        pass("link", its.as_fd())?;
        pass("control", control.as_fd())?;
        pass("lock", lock.as_fd())?;
        if let Some(metrics) = metrics {
            pass("metrics", metrics.as_fd())?;
        }
        command.arg("--settings").arg(serde_json::to_string(settings)?);
        // In a group of its own, so that Ctrl-C reaches the keeper only.
        command.stdin(Stdio::null()).process_group(0);
        let own_score = std::fs::read_to_string("/proc/self/oom_score_adj");
        let child = command.spawn()?;
        if let Ok(score) = own_score {
            protect(&child, score.trim());
        }
        Ok(Self { child, link: Some(ours) })
    }

    /// The line to it; none when it has hung up.
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Tells it something.
    ///
    /// # Errors
    /// When it has hung up, or does not listen.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let link = self.link.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        link.send(message, descriptors)
    }

    /// It will say nothing more that matters.
    pub fn hang_up(&mut self) {
        self.link = None;
    }

    /// How it has ended, if it has.
    pub fn has_ended(&mut self) -> Option<Death> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) if status.signal() == Some(libc::SIGKILL) => Some(Death::Killed),
            Ok(Some(status)) => {
                if !status.success() {
                    warn!(%status, pid = self.child.id(), "the worker ended by itself");
                }
                Some(Death::Fault)
            }
            Err(error) => {
                warn!(%error, "cannot tell how the worker ended");
                Some(Death::Fault)
            }
        }
    }

    /// Ends it, whatever it does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        if let Err(error) = self.child.wait() {
            warn!(%error, pid = self.child.id(), "the worker cannot be killed");
        }
    }
}

/// Makes the keeper unlikely to be killed for want of memory, and its worker as likely as the keeper was before. Unprivileged, both stay
/// as they are.
fn protect(child: &Child, before: &str) {
    let before = if before == KEEPERS_OOM_SCORE { "0" } else { before };
    let keeper = std::fs::write("/proc/self/oom_score_adj", KEEPERS_OOM_SCORE);
    let worker = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), before);
    if let Err(error) = keeper.and(worker) {
        debug!(%error, "the kernel may kill keeper and worker alike when memory runs out");
    }
}

/// A duplicate that a program that is executed gets.
pub fn inheritable(descriptor: BorrowedFd<'_>) -> io::Result<std::os::fd::OwnedFd> {
    let duplicate = nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_DUPFD(3))?;
    // SAFETY: the descriptor was just made for us.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(duplicate) })
}
