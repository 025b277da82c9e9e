//! Going into the background.
//!
//! The process forks before anything else runs in it. The child leaves the terminal's session, writes its log to a file and serves;
//! the parent waits for one line from it, `ready` or why not, and ends with that. So whoever started it can simply wait
//! for the parent, gets no zombie later, and holds no pipe that the child keeps open.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

use crate::error::{ErrorKind, MountError};

/// A log that has grown beyond this when a server starts is begun anew, in bytes.
const MAX_LOG: u64 = 16 << 20;

const READY: &str = "ready";

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The one that was started: it has the child's answer and should end.
    Parent(Result<(), MountError>),
    /// The one that goes on.
    Child(Starter),
}

/// The child's line to the parent.
#[derive(Debug)]
pub struct Starter {
    pipe: File,
}

impl Starter {
    /// Tells the parent that the server answers, or why it does not.
    pub fn tell(mut self, outcome: &Result<(), MountError>) {
        let text = match outcome {
            Ok(()) => READY.to_owned(),
            Err(error) => serde_json::to_string(error).unwrap_or_default(),
        };
        // A parent that does not listen any more needs no answer.
        let _ = self.pipe.write_all(text.as_bytes());
    }
}

/// Forks. To be called while the process has one thread. In the child standard input is empty and standard output and error
/// go to `log`.
///
/// # Errors
/// [`ErrorKind::System`].
pub fn detach(log: &Path) -> Result<Side, MountError> {
    let system = |what: &str, error: &dyn std::fmt::Display| {
        MountError::new(ErrorKind::System, format_args!("cannot go into the background: {what}: {error}"))
    };
    let open_log = |truncate: bool| {
        OpenOptions::new()
            .append(!truncate)
            .write(true)
            .truncate(truncate)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(log)
    };
    let named = |error: std::io::Error| system(&log.display().to_string(), &error);
    let too_long = std::fs::metadata(log).is_ok_and(|meta| meta.len() > MAX_LOG);
    if too_long {
        open_log(true).map_err(named)?;
    }
    let log = open_log(false).map_err(named)?;
    let null = File::open("/dev/null").map_err(|error| system("/dev/null", &error))?;
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| system("pipe", &errno.desc()))?;
    // SAFETY: the process has a single thread (the caller's duty, kept by calling this first in main), so the child may do
    // anything a process may.
    match unsafe { fork() }.map_err(|errno| system("fork", &errno.desc()))? {
        ForkResult::Parent { .. } => {
            drop(write);
            let mut said = String::new();
            let heard = File::from(read).read_to_string(&mut said);
            Ok(Side::Parent(match (heard, said.as_str()) {
                (Ok(_), READY) => Ok(()),
                (Ok(_), text) => Err(serde_json::from_str(text).unwrap_or_else(|_| {
                    MountError::new(ErrorKind::NoServer, "the server ended while it was starting; see its log")
                })),
                (Err(error), _) => Err(system("pipe", &error)),
            }))
        }
        ForkResult::Child => {
            drop(read);
            umask(Mode::S_IRWXG | Mode::S_IRWXO);
            // The caller's directory may be on a file system that somebody wants to unmount.
            chdir("/").map_err(|errno| system("chdir", &errno.desc()))?;
            setsid().map_err(|errno| system("setsid", &errno.desc()))?;
            dup2_stdin(null.as_fd())
                .and_then(|()| dup2_stdout(log.as_fd()))
                .and_then(|()| dup2_stderr(log.as_fd()))
                .map_err(|errno| system("dup2", &errno.desc()))?;
            Ok(Side::Child(Starter { pipe: File::from(write) }))
        }
    }
}
