//! Why a network file system is not mounted.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nvme_setup::printable;

use super::options::OptionError;
use crate::exit;
use crate::outcome::{self, Failure};

/// A mount that was not made.
#[derive(Debug)]
pub struct NetworkError {
    /// What was to be mounted, as the mount command takes it.
    pub device: String,
    /// Where.
    pub target: PathBuf,
    /// Why it is not.
    pub cause: Box<Cause>,
    /// How often the mount command was run.
    pub attempts: u32,
    /// How long it was tried.
    pub elapsed: Duration,
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target.to_string_lossy();
        write!(f, "cannot mount {} at {}: {}", printable(&self.device), printable(&target), self.cause)?;
        if self.attempts > 1 {
            write!(f, " (tried {} times in {:.0?})", self.attempts, self.elapsed)?;
        }
        Ok(())
    }
}

impl std::error::Error for NetworkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.cause)
    }
}

impl NetworkError {
    /// What it means for a task or a node.
    pub fn failure(&self) -> Failure {
        let (cause, exit_status) = match &*self.cause {
            Cause::Denied { .. } => (outcome::Cause::Mount, exit::DENIED),
            Cause::NoSuchExport { .. } => (outcome::Cause::User, exit::INPUT_MISSING),
            Cause::Option(_) | Cause::BadOption { .. } => (outcome::Cause::User, exit::BAD_SETTINGS),
            Cause::Cancelled => (outcome::Cause::Cancelled, exit::OS),
            _ => (outcome::Cause::Mount, exit::OS),
        };
        Failure::new(cause, exit_status, self.to_string())
    }
}

/// Each way in which mounting fails. `said` is what the mount command printed, made safe for a terminal.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The server's name leads nowhere.
    #[error(
        "the server's name cannot be resolved ({said}); check the name, and that this node's DNS knows it: a cloud's file \
         service is known only inside its VPC"
    )]
    NameUnknown {
        /// What was printed.
        said: String,
    },
    /// There is a machine, and nothing listens.
    #[error(
        "the server refuses the connection ({said}); check that the file service runs there, and that the name leads to the \
         right machine"
    )]
    Refused {
        /// What was printed.
        said: String,
    },
    /// Nobody answers.
    #[error(
        "the server does not answer ({said}); check that it runs, and that routes, security groups and firewalls let this node \
         reach its TCP port {port}"
    )]
    Unreachable {
        /// What was printed.
        said: String,
        /// The port of the service.
        port: u16,
    },
    /// Nothing answers, and the mount command does not come back from asking.
    #[error(
        "the server did not answer within {limit:.0?}, and the mount command {}; check that the server runs, and that routes, \
         security groups and firewalls let this node reach its TCP port {port}",
        if *.gone { "was killed" } else {
            "hangs in the kernel: it was killed without effect and is left behind, and may still mount it when the server \
             answers"
        }
    )]
    Hung {
        /// The time there was.
        limit: Duration,
        /// Whether the command could be killed.
        gone: bool,
        /// The port of the service.
        port: u16,
    },
    /// The server has no such directory or file system.
    #[error(
        "the server has no such {} ({said}); check the name{}",
        if *.lustre { "file system" } else { "directory" },
        if *.lustre { " after the \":/\"" } else { ", and make a subdirectory on the file system before it is mounted" }
    )]
    NoSuchExport {
        /// What was printed.
        said: String,
        /// Whether it is Lustre, where names are of file systems.
        lustre: bool,
    },
    /// The server does not let this node in.
    #[error(
        "the server denies access ({said}); let this node's address in (permission group, export list) and check the directory; a \
         server that takes only ports below 1024 needs its export's option `insecure` or the mount option `resvport`"
    )]
    Denied {
        /// What was printed.
        said: String,
    },
    /// The program that knows the protocol is missing.
    #[error("the program {program} is not installed; {install}")]
    HelperMissing {
        /// Its name.
        program: String,
        /// What to do.
        install: String,
    },
    /// The kernel cannot.
    #[error("the running kernel {kernel} has no module {module} that fits it ({said}); {install}")]
    ModuleMissing {
        /// The module.
        module: &'static str,
        /// As `uname -r` shows it.
        kernel: String,
        /// What was printed.
        said: String,
        /// What to do.
        install: String,
    },
    /// The server speaks another version, or not this one.
    #[error(
        "the server does not offer this version of NFS over TCP ({said}); set `version` to one that it has (3, 4.0 or 4.1), or start \
         the file service there"
    )]
    VersionUnsupported {
        /// What was printed.
        said: String,
        /// Whether a server that is only just starting would have said the same.
        may_be_starting: bool,
    },
    /// Locks across nodes were asked for, and what keeps them does not run here.
    #[error(
        "locks across nodes need rpc.statd, which does not run here ({said}); start it, remove the option `lock`, or use NFS 4.0 or \
         later"
    )]
    LockService {
        /// What was printed.
        said: String,
    },
    /// The mount command, the kernel or the server does not take an option.
    #[error("a mount option is wrong, or does not go with this server ({said}); the options were {options}")]
    BadOption {
        /// What was printed.
        said: String,
        /// All that were given.
        options: String,
    },
    /// The server has forgotten what it exported.
    #[error("the server answers with a stale file handle ({said}); export the directory there again")]
    Stale {
        /// What was printed.
        said: String,
    },
    /// An option that we do not pass on.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The target is not a path that can be mounted at.
    #[error("the target is not an absolute path without \"..\"; write one such as /mnt/nas")]
    TargetNotAbsolute,
    /// The target, or something on the way to it, is a file.
    #[error("{} is there and is not a directory; mount at another path", file.display())]
    TargetIsFile {
        /// Which.
        file: PathBuf,
    },
    /// Mounting would hide files.
    #[error(
        "the directory {} is not empty and the mount would hide what is in it; move that away, or mount at another path",
        path.display()
    )]
    TargetNotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The target cannot be made or looked at.
    #[error("cannot {action} {}: {source}", path.display())]
    TargetUnusable {
        /// `create`, `look at`.
        action: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The target lies in something that does not answer.
    #[error("looking at {} takes for ever, because {holder}; unmount that (umount -l)", path.display())]
    TargetStuck {
        /// The target.
        path: PathBuf,
        /// What it lies in.
        holder: String,
    },
    /// Something else is mounted there.
    #[error("{there} is mounted there already{stuck}; {difference}; unmount it (umount {}), or mount at another path", path.display())]
    Occupied {
        /// The target.
        path: PathBuf,
        /// What is there.
        there: String,
        /// Empty, or that it does not answer.
        stuck: &'static str,
        /// How it is not what is wanted.
        difference: String,
    },
    /// It is mounted there, and dead.
    #[error(
        "it is mounted there already, but {state}; if the server does not come back, unmount it (umount -l {}) and mount it again",
        path.display()
    )]
    Dead {
        /// The target.
        path: PathBuf,
        /// How it is.
        state: String,
    },
    /// It can be written to and should not be, or the other way round.
    #[error(
        "it did not become {wanted}, as this kernel gives all mounts of one export the access of the first; mount it with the \
         same access everywhere, or add the option nosharecache"
    )]
    WrongAccess {
        /// `writable` or `read-only`.
        wanted: &'static str,
    },
    /// The mount command reported a success that is none.
    #[error("the mount command reports success, but nothing is mounted there; look at the kernel's log (dmesg)")]
    Vanished,
    /// Nobody waits for it any more.
    #[error("it was given up")]
    Cancelled,
    /// A program could not be run, or this machine is out of something.
    #[error("{0}")]
    System(String),
    /// Anything else.
    #[error("the mount command failed: {said}; look at the kernel's log (dmesg)")]
    Other {
        /// What was printed.
        said: String,
    },
}

/// How often something is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// It will be the same next time.
    Never,
    /// It may be a server that is just starting.
    AtMost(u32),
    /// Until the deadline: at boot, networks, names and servers come up in any order.
    UntilDeadline,
}

impl Cause {
    pub(super) fn retry(&self) -> Retry {
        match self {
            Self::NameUnknown { .. } | Self::Refused { .. } | Self::Unreachable { .. } => Retry::UntilDeadline,
            Self::Stale { .. } => Retry::AtMost(3),
            // Half a minute, with the pauses: what a Linux server takes from answering at all to serving files.
            Self::VersionUnsupported { may_be_starting: true, .. } => Retry::AtMost(8),
            _ => Retry::Never,
        }
    }
}

/// How a mount is that does not answer as it should.
pub(super) fn state(answer: Option<Errno>) -> String {
    match answer {
        None => "it does not answer".to_owned(),
        Some(errno) => format!("it answers with an error: {}", errno.desc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(cause: Cause, attempts: u32) -> NetworkError {
        let elapsed = Duration::from_millis(61_400);
        NetworkError {
            device: "h:/d\n".to_owned(),
            target: "/mnt/nas".into(),
            cause: Box::new(cause),
            attempts,
            elapsed,
        }
    }

    #[test]
    fn messages_name_the_thing_the_cause_and_the_remedy_in_one_line() {
        let hung = |gone| Cause::Hung { limit: Duration::from_secs(60), gone, port: 2049 };
        assert_eq!(
            error(hung(true), 1).to_string(),
            "cannot mount h:/d\\n at /mnt/nas: the server did not answer within 60s, and the mount command was killed; check that \
             the server runs, and that routes, security groups and firewalls let this node reach its TCP port 2049"
        );
        let left_behind = error(hung(false), 1).to_string();
        assert!(
            left_behind.contains("killed without effect and is left behind, and may still mount it"),
            "{left_behind}"
        );
        let refused = error(Cause::Refused { said: "mount.nfs: Connection refused".to_owned() }, 12).to_string();
        assert!(refused.ends_with("leads to the right machine (tried 12 times in 61s)"), "{refused}");
        for message in [left_behind, refused] {
            assert!(!message.contains(char::is_control) && !message.contains("  "), "{message}");
        }
    }

    #[test]
    fn whose_doing_it_is_follows_from_the_cause() {
        let said = String::new();
        for (cause, expected) in [
            (Cause::Denied { said: said.clone() }, (outcome::Cause::Mount, exit::DENIED)),
            (Cause::NoSuchExport { said: said.clone(), lustre: false }, (outcome::Cause::User, exit::INPUT_MISSING)),
            (Cause::BadOption { said: said.clone(), options: said }, (outcome::Cause::User, exit::BAD_SETTINGS)),
            (Cause::Vanished, (outcome::Cause::Mount, exit::OS)),
        ] {
            let failure = error(cause, 1).failure();
            assert_eq!((failure.cause, failure.exit_status), expected);
        }
    }
}
