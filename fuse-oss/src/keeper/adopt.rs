//! A server that begins where another one has lost its keeper.
//!
//! A worker whose keeper was killed goes on: its mounts answer, and it owns the cache directory. But nobody would start another one in its
//! place. So a server that finds the cache directory in use asks whoever answers there to go over to it. Only a worker without a keeper
//! does. It sends what its keeper had, the lock and the sockets among it, and ends as it does for a program that takes over; then the
//! mounts are kept again, and whoever reads from them has noticed nothing.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};

use super::link::{Link, LinkListener};
use super::message::ToKeeper;
use super::{Files, Held, Keeper, ServerSettings};
use crate::error::MountError;
use crate::protocol::{self, Request};
use crate::runtime::{CacheLock, RuntimePaths};

/// How long an orphan may take to go over. One that hangs does not: then the cache directory is in use.
const LIMIT: Duration = Duration::from_secs(20);

/// A socket by which an orphan reaches its new keeper; gone when dropped.
struct Meeting {
    path: PathBuf,
    listener: LinkListener,
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Keeper {
    /// Goes on with the mounts of a worker that has lost its keeper.
    ///
    /// # Errors
    /// `in_use`, when there is no such worker at this socket.
    pub(super) fn adopt(settings: ServerSettings, paths: RuntimePaths, in_use: MountError) -> Result<Self, MountError> {
        let Some(link) = meet(&paths) else { return Err(in_use) };
        let mut mounts: BTreeMap<u64, Held> = BTreeMap::new();
        let mut shared = None;
        loop {
            match link.receive::<ToKeeper>() {
                Ok(Some((ToKeeper::Orphaned { next_id, workers, replaced, metrics }, descriptors))) => {
                    shared = Some(((next_id, workers, replaced), metrics, descriptors));
                }
                Ok(Some((ToKeeper::Held { id, target, parts }, descriptors))) => {
                    if let Some(files) = Files::from_descriptors(descriptors, parts) {
                        mounts.insert(id, Held { target, device: None, files });
                    }
                }
                Ok(Some((ToKeeper::Established { id, device }, _))) => {
                    if let Some(held) = mounts.get_mut(&id) {
                        held.device = Some(device);
                    }
                }
                Ok(Some((ToKeeper::Gone { id }, _))) => drop(mounts.remove(&id)),
                Ok(Some(_)) => {}
                // It has ended: what it has told the kernel is written down, and its connections are ours.
                Ok(None) => break,
                Err(error) => {
                    warn!(%error, "the worker that had lost its keeper does not go over");
                    return Err(in_use);
                }
            }
        }
        let Some((numbers, has_metrics, descriptors)) = shared else { return Err(in_use) };
        let mut descriptors = descriptors.into_iter();
        let (Some(lock), Some(control)) = (descriptors.next(), descriptors.next()) else { return Err(in_use) };
        let metrics: Option<OwnedFd> = descriptors.next().filter(|_| has_metrics);
        let mut lock = CacheLock::inherited(lock)?;
        lock.sign(&paths)?;
        info!(mounts = mounts.len(), "a worker that had lost its keeper has gone over to this server");
        let mut keeper = Self::assemble(settings, paths, lock, control.into(), metrics.map(Into::into))?;
        keeper.mounts = mounts;
        (keeper.next_id, keeper.workers, keeper.replaced) = numbers;
        Ok(keeper)
    }
}

/// Asks whoever answers at the control socket to come over, and waits for it. None when it does not come.
fn meet(paths: &RuntimePaths) -> Option<Link> {
    let mut orphan = UnixStream::connect(&paths.socket).ok()?;
    orphan.set_write_timeout(Some(LIMIT)).ok()?;
    let path = paths.socket.with_extension("orphan");
    let listener =
        LinkListener::bind(&path).inspect_err(|error| warn!(%error, "cannot take over from an orphan")).ok()?;
    let meeting = Meeting { path, listener };
    let request = protocol::encode(&Request::GoOver { socket: meeting.path.clone() }).ok()?;
    orphan.write_all(&request).ok()?;
    if !comes(&meeting.listener, &orphan)? {
        return None;
    }
    let link = meeting.listener.accept().ok()?;
    link.give_up_after(LIMIT);
    Some(link)
}

/// Whether it comes. One with a keeper answers with a refusal instead.
fn comes(listener: &LinkListener, orphan: &UnixStream) -> Option<bool> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = deadline.checked_duration_since(Instant::now())?;
        let timeout = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        let mut waited =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(orphan.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, timeout) {
            Ok(0) => return None,
            Ok(_) if waited[0].any() == Some(true) => return Some(true),
            Ok(_) => {
                let mut answer = String::new();
                let _ = BufReader::new(orphan).read_line(&mut answer);
                return Some(false);
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}
