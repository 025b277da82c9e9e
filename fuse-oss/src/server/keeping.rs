//! The worker's end of the line to its keeper (see [`keeper`](crate::keeper)).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// The line, once everything has been handed over. What the keeper holds is held here as well, for a keeper that comes after it.
#[derive(Debug)]
pub struct Keeping {
    link: Mutex<Arc<Link>>,
    alive: Arc<AtomicBool>,
    mounts: Mutex<BTreeMap<u64, Own>>,
    shared: Shared,
    /// To the server's own loop.
    orders: Mutex<Option<mpsc::UnboundedSender<ToWorker>>>,
}

/// A mount as it would be handed on.
#[derive(Debug)]
struct Own {
    target: PathBuf,
    /// None as long as it is being made.
    device: Option<String>,
    files: Files,
}

/// What belongs to keeper and worker together.
#[derive(Debug)]
pub struct Shared {
    /// The lock on the cache directory.
    pub lock: OwnedFd,
    /// The control socket.
    pub control: OwnedFd,
    /// The socket for metrics, if there is one.
    pub metrics: Option<OwnedFd>,
}

/// How far a worker has come, in numbers that its successor goes on from.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// The first number for mounts to come.
    pub next_id: u64,
    /// How many workers there were before.
    pub before: u64,
    /// How many times a program has taken over.
    pub replaced: u64,
}

/// What the keeper wants while the worker serves.
pub type Orders = mpsc::UnboundedReceiver<ToWorker>;

impl Keeping {
    /// Receives what is handed over.
    ///
    /// # Errors
    /// When the keeper is gone or says something odd.
    pub fn begin(link: Link, shared: Shared) -> io::Result<(Self, Inheritance)> {
        let mut mounts = BTreeMap::new();
        let mut inheritance = Inheritance::default();
        loop {
            let Some((said, descriptors)) = link.receive()? else {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the keeper has gone"));
            };
            match said {
                ToWorker::Mount { id, target, device, parts } => {
                    let files = Files::from_descriptors(descriptors, parts)
                        .ok_or_else(|| io::Error::other("a mount without its descriptors"))?;
                    let own = Own { target: target.clone(), device: Some(device.clone()), files: files.try_clone()? };
                    mounts.insert(id, own);
                    inheritance.mounts.push(Inherited { id, target, device, files });
                }
                ToWorker::Abandoned { target } => inheritance.abandoned.push(target),
                ToWorker::Begin { next_id, before, replaced } => {
                    (inheritance.next_id, inheritance.before, inheritance.replaced) = (next_id, before, replaced);
                    let keeping = Self {
                        link: Mutex::new(Arc::new(link)),
                        alive: Arc::new(AtomicBool::new(true)),
                        mounts: Mutex::new(mounts),
                        shared,
                        orders: Mutex::new(None),
                    };
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
        *lock(&self.orders) = Some(sender.clone());
        let (link, alive) = (self.link(), Arc::clone(&self.alive));
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
                "the keeper has died: mounts go on, and will not outlive this process (SIGTERM ends it) until another `fuse-oss serve` with \
                 the same directories takes them over"
            );
        };
        std::thread::Builder::new().name("orders".to_owned()).spawn(listen)?;
        Ok(orders)
    }

    /// Whether there still is a keeper. Without one, signals are obeyed here.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    fn link(&self) -> Arc<Link> {
        Arc::clone(&lock(&self.link))
    }

    /// Says something that is not about the making of a mount.
    pub fn say(&self, message: &ToKeeper) {
        match message {
            ToKeeper::Established { id, device } => {
                if let Some(own) = lock(&self.mounts).get_mut(id) {
                    own.device = Some(device.clone());
                }
            }
            ToKeeper::Gone { id } => drop(lock(&self.mounts).remove(id)),
            _ => {}
        }
        if let Err(error) = self.link().send(message, &[])
            && self.is_alive()
        {
            warn!(%error, "cannot tell the keeper");
        }
    }

    /// Hands a mount that is about to be made to the keeper.
    pub fn hold(&self, id: u64, target: &Path, files: &Files) {
        match files.try_clone() {
            Ok(files) => {
                drop(lock(&self.mounts).insert(id, Own { target: target.to_owned(), device: None, files }));
            }
            Err(error) => warn!(%error, target = %target.display(), "this mount would be lost with the keeper"),
        }
        let message = ToKeeper::Held { id, target: target.to_owned(), parts: files.parts() };
        if let Err(error) = self.link().send(&message, &files.borrowed())
            && self.is_alive()
        {
            warn!(%error, target = %target.display(), "the keeper did not take the mount; it will not outlive this process");
        }
    }

    /// Without a keeper: hands everything to another one, and has the server make room for its worker.
    ///
    /// # Errors
    /// When there still is a keeper, or the other one does not listen.
    pub fn go_over(&self, socket: &Path, numbers: Numbers) -> Result<(), MountError> {
        let failed = |error: io::Error| {
            MountError::new(
                ErrorKind::System,
                format_args!("cannot reach the new keeper at {}: {error}", socket.display()),
            )
        };
        if self.is_alive() {
            return Err(MountError::new(ErrorKind::CacheInUse, "this server has a keeper"));
        }
        let link = Arc::new(Link::connect(socket).map_err(failed)?);
        let Numbers { next_id, before, replaced } = numbers;
        let Shared { lock: cache, control, metrics } = &self.shared;
        let message = ToKeeper::Orphaned { next_id, workers: before + 1, replaced, metrics: metrics.is_some() };
        let descriptors: Vec<_> = [cache, control].into_iter().chain(metrics).map(AsFd::as_fd).collect();
        link.send(&message, &descriptors).map_err(failed)?;
        // What is made from now on is told to the new keeper, and what has been made follows.
        *lock(&self.link) = Arc::clone(&link);
        for (id, own) in &*lock(&self.mounts) {
            let held = ToKeeper::Held { id: *id, target: own.target.clone(), parts: own.files.parts() };
            link.send(&held, &own.files.borrowed()).map_err(failed)?;
            if let Some(device) = &own.device {
                link.send(&ToKeeper::Established { id: *id, device: device.clone() }, &[]).map_err(failed)?;
            }
        }
        if let Some(orders) = &*lock(&self.orders) {
            let _ = orders.send(ToWorker::HandOver);
        }
        Ok(())
    }
}

/// What is behind it is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
