//! The worker's end of the line to its keeper (see [`keeper`](crate::keeper)).

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{error, warn};

use crate::error::{ErrorKind, MountError};
use crate::keeper::Files;
use crate::keeper::link::Link;
use crate::keeper::message::{ToKeeper, ToWorker};
use crate::options::MountRequest;
use crate::protocol::WireMount;

/// What the keeper hands over before a worker begins.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// Mounts to go on with.
    pub mounts: Vec<Inherited>,
    /// Where a worker was killed while it was mounting.
    pub abandoned: Vec<PathBuf>,
    /// The first number for mounts to come.
    pub next_id: u64,
    /// How many workers there were before this one.
    pub before: u64,
    /// How many times a program has taken over.
    pub replaced: u64,
}

/// A mount to go on with.
#[derive(Debug)]
pub struct Inherited {
    /// Its number.
    pub id: u64,
    /// Where it is.
    pub target: PathBuf,
    /// What is seen there, as `major:minor`.
    pub device: String,
    /// What was kept of it.
    pub files: Files,
}

/// The request that a mount was made from, as it is kept: in memory only, because it holds credentials.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    /// The request.
    pub wire: WireMount,
    /// Where what is written to it goes, if it can be written to.
    pub upper: Option<PathBuf>,
}

impl Kept {
    /// Writes it into a file in memory.
    ///
    /// # Errors
    /// [`ErrorKind::System`] when there is no memory or no descriptor.
    pub fn write(request: &MountRequest, upper: Option<&Path>) -> Result<OwnedFd, MountError> {
        let kept = Self { wire: WireMount::from(request), upper: upper.map(Path::to_owned) };
        let write = || -> io::Result<OwnedFd> {
            let mut file = File::from(memfd_create(c"fuse-oss-request", MFdFlags::MFD_CLOEXEC)?);
            file.write_all(&serde_json::to_vec(&kept)?)?;
            Ok(file.into())
        };
        write().map_err(|error| MountError::new(ErrorKind::System, format_args!("cannot keep the request: {error}")))
    }

    /// Reads it back.
    ///
    /// # Errors
    /// When it is not what [`Kept::write`] has written. The message quotes nothing of it.
    pub fn read(file: &OwnedFd) -> io::Result<Self> {
        let mut file = File::from(file.try_clone()?);
        let mut text = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut text)?;
        serde_json::from_slice(&text)
            .map_err(|error| io::Error::other(format!("unreadable request (column {})", error.column())))
    }
}

/// The line, once everything has been handed over.
#[derive(Debug)]
pub struct Keeping {
    link: Arc<Link>,
    alive: Arc<AtomicBool>,
}

/// What the keeper wants while the worker serves.
pub type Orders = mpsc::UnboundedReceiver<ToWorker>;

impl Keeping {
    /// Receives what is handed over.
    ///
    /// # Errors
    /// When the keeper is gone or says something odd.
    pub fn begin(link: Link) -> io::Result<(Self, Inheritance)> {
        let mut inheritance = Inheritance::default();
        loop {
            let Some((said, descriptors)) = link.receive()? else {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the keeper has gone"));
            };
            match said {
                ToWorker::Mount { id, target, device, parts } => {
                    let files = Files::from_descriptors(descriptors, parts)
                        .ok_or_else(|| io::Error::other("a mount without its descriptors"))?;
                    inheritance.mounts.push(Inherited { id, target, device, files });
                }
                ToWorker::Abandoned { target } => inheritance.abandoned.push(target),
                ToWorker::Begin { next_id, before, replaced } => {
                    (inheritance.next_id, inheritance.before, inheritance.replaced) = (next_id, before, replaced);
                    let keeping = Self { link: Arc::new(link), alive: Arc::new(AtomicBool::new(true)) };
                    return Ok((keeping, inheritance));
                }
                ToWorker::End { .. } | ToWorker::HandOver | ToWorker::NotReplaced(_) => {
                    return Err(io::Error::other("the keeper wants an end before the beginning"));
                }
            }
        }
    }

    /// Starts to listen to what the keeper wants.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn orders(&self) -> io::Result<Orders> {
        let (sender, orders) = mpsc::unbounded_channel();
        let (link, alive) = (Arc::clone(&self.link), Arc::clone(&self.alive));
        let listen = move || {
            loop {
                match link.receive::<ToWorker>() {
                    Ok(Some((order, _))) => {
                        // Whoever does not listen any more is about to end.
                        if sender.send(order).is_err() {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        warn!(%error, "the keeper said something odd");
                        break;
                    }
                }
            }
            alive.store(false, Ordering::Release);
            error!(
                "the keeper has died: mounts go on, but will not outlive this process (SIGTERM ends it); start fuse-oss anew when that suits"
            );
        };
        std::thread::Builder::new().name("orders".to_owned()).spawn(listen)?;
        Ok(orders)
    }

    /// Whether there still is a keeper. Without one, signals are obeyed here.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Says something that is not about a mount.
    pub fn say(&self, message: &ToKeeper) {
        if let Err(error) = self.link.send(message, &[])
            && self.is_alive()
        {
            warn!(%error, "cannot tell the keeper");
        }
    }

    /// Hands a mount that is about to be made to the keeper.
    pub fn hold(&self, id: u64, target: &Path, files: &Files) {
        let message = ToKeeper::Held { id, target: target.to_owned(), parts: files.parts() };
        if let Err(error) = self.link.send(&message, &files.borrowed())
            && self.is_alive()
        {
            warn!(%error, target = %target.display(), "the keeper did not take the mount; it will not outlive this process");
        }
    }
}

/// A descriptor for the keeper beside the one that is used here.
///
/// # Errors
/// [`ErrorKind::System`] when there are none left.
pub fn duplicate(descriptor: &impl AsFd) -> Result<OwnedFd, MountError> {
    let duplicate = descriptor.as_fd().try_clone_to_owned();
    duplicate.map_err(|error| MountError::new(ErrorKind::System, format_args!("cannot copy a descriptor: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{MountEntry, MountOptions};

    #[test]
    fn a_request_is_read_back_as_often_as_needed() {
        let entry = MountEntry::new("", "oss://b/d/".parse().unwrap());
        let request = MountRequest {
            target: "/mnt/x".into(),
            entries: vec![entry],
            options: MountOptions::default(),
            stores: oss::Settings::default(),
        };
        let file = Kept::write(&request, Some(Path::new("/upper"))).unwrap();
        for _ in 0..2 {
            let kept = Kept::read(&file).unwrap();
            assert_eq!(kept.upper, Some("/upper".into()));
            let read = MountRequest::from(kept.wire);
            assert_eq!((read.target, read.entries), (request.target.clone(), request.entries.clone()));
        }
    }
}
