//! Going on where another worker was killed.
//!
//! For each mount the keeper has handed over the names are read back from its journal and the open files from its ledger, the session
//! is taken up on the old connection, and the kernel is asked to send again what the last worker left unanswered. No store is asked
//! anything, so this takes as long as reading the journal does.
//!
//! Where that is not possible (a kernel before 6.9 cannot send again, a journal was lost to a full disk) the connection is
//! aborted, so that nobody waits for ever. A read-only mount is then made anew in its place. A writable view is not:
//! mounting a second overlay over an upper directory that somebody may still hold is undefined. It stays where it is and answers
//! with errors, so that nothing is written to the directory below by mistake, until it is unmounted.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oss::Stores;
use tracing::{error, info, warn};

use super::keeping::{Inherited, Kept};
use super::mounting::{label, origin};
use super::{Active, Prefetching, Server};
use crate::error::{ErrorKind, MountError};
use crate::filesystem::Mounted;
use crate::filesystem::ledger::Ledger;
use crate::keeper::Files;
use crate::keeper::message::ToKeeper;
use crate::mountpoint;
use crate::namespace::Namespace;
use crate::options::{MountEntry, MountRequest, UnmountMode};
use crate::overlay::upper::Upper;
use crate::runtime::clean_up_lower;
use crate::transport::Transport;

/// What there is of a mount to go on with.
struct Found {
    id: u64,
    target: PathBuf,
    device: String,
    connection: OwnedFd,
    ledger: OwnedFd,
    journal: Option<OwnedFd>,
}

/// A mount that can be written to and could not be gone on with. It is still there, and answers with errors.
#[derive(Debug)]
pub struct Down {
    /// Where.
    pub target: PathBuf,
    /// What it shows.
    pub entries: Vec<MountEntry>,
    /// What is seen there, as `major:minor`.
    pub device: String,
    /// Why it is down.
    pub cause: String,
    /// What was written to it, to be removed when it is unmounted.
    pub upper: Option<Upper>,
}

impl Server {
    /// Takes over every mount of a predecessor. What cannot be taken over is dealt with in the background.
    pub fn recover(self: &Arc<Self>, mounts: Vec<Inherited>) {
        for inherited in mounts {
            let (id, target, device) = (inherited.id, inherited.target.clone(), inherited.device.clone());
            let kept = match Kept::read(&inherited.files.request) {
                Ok(kept) => kept,
                Err(cause) => {
                    error!(target = %target.display(), %cause, "this mount cannot be gone on with; it is aborted");
                    self.keeping.say(&ToKeeper::Gone { id });
                    continue;
                }
            };
            let request = MountRequest::from(kept.wire);
            let Inherited { files: Files { request: _, device: connection, ledger, journal, upper }, .. } = inherited;
            let adopt = |(root, owner): (PathBuf, OwnedFd)| {
                let adopted = Upper::adopt(&self.upper_registry(), &root, owner);
                adopted
                    .inspect_err(|error| warn!(path = %root.display(), %error, "what was written is left behind"))
                    .ok()
            };
            let upper = kept.upper.zip(upper).and_then(adopt);
            let found = Found { id, target: target.clone(), device: device.clone(), connection, ledger, journal };
            let Err(cause) = self.take_over(found, &request) else {
                if let Some(active) = self.table().sessions.get_mut(&id) {
                    active.upper = upper;
                }
                continue;
            };
            error!(target = %target.display(), cause, "this mount cannot be gone on with; it is aborted");
            // With the keeper's descriptor, the last one, the connection goes.
            self.keeping.say(&ToKeeper::Gone { id });
            if request.options.writable.is_some() {
                error!(
                    target = %target.display(),
                    "it could be written to, so it is not mounted anew and answers with errors until it is unmounted (fuse-oss umount)"
                );
                self.table().down.push(Down { target, entries: request.entries, device, cause, upper });
            } else {
                let server = Arc::clone(self);
                self.runtime.spawn(async move { server.make_anew(request, &device, &cause).await });
            }
        }
        self.save_record();
    }

    fn take_over(self: &Arc<Self>, found: Found, request: &MountRequest) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let journal = found.journal.ok_or("its names were not kept, for want of room")?;
        let stores = Stores::new(request.stores.clone());
        let origins: Result<Vec<_>, MountError> =
            request.entries.iter().map(|entry| origin(&stores, &self.metrics, &entry.location)).collect();
        let namespace = Namespace::recover(label(&request.entries), &origins.map_err(|e| text(&e))?, journal.into())
            .map_err(|error| text(&error))?;
        let ledger = Ledger::from_fd(found.ledger).map_err(|error| text(&error))?;
        let (runtime, blocks) = (self.runtime.clone(), Arc::clone(&self.blocks));
        let device = found.connection.try_clone().map_err(|error| text(&error))?;
        let filesystem = Mounted::adopt(runtime, namespace, blocks, request.options.clone(), ledger, device);
        let inner = filesystem.inner();
        let transport = Transport::take_over(filesystem, found.connection, &request.options)
            .map_err(|error| format!("the session cannot be taken up: {error}"))?;
        if self.without_resend {
            return Err("the kernel cannot send requests again (it is treated as if it could not)".to_owned());
        }
        transport
            .resend()
            .map_err(|error| format!("the kernel cannot send requests again ({error}); kernels from 6.9 on can"))?;
        inner.handles().set_notifier(transport.notifier());
        let detached = mountpoint::mounted_on(&found.target).is_none_or(|mount| mount.device != found.device);
        let mut prefetching = Prefetching::new(request.options.prefetch, &inner);
        if let Some(prefetching) = &mut prefetching {
            prefetching.start(&self.runtime);
        }
        let (target, entries, device) = (found.target.clone(), request.entries.clone(), found.device);
        let active = Active { target, entries, inner, device, upper: None, detached, prefetching };
        self.table().sessions.insert(found.id, active);
        self.spawn_session(found.id, transport);
        info!(target = %found.target.display(), "went on with a mount");
        Ok(())
    }

    /// Puts a new mount in the place of one that was aborted.
    async fn make_anew(self: Arc<Self>, request: MountRequest, device: &str, cause: &str) {
        let target = request.target.clone();
        if mountpoint::mounted_on(&target).is_some_and(|there| there.device == device)
            && let Err(error) = mountpoint::unmount(&target, UnmountMode::Lazy)
        {
            return warn!(%error, "the aborted mount stays");
        }
        match self.mount(request).await {
            Ok(_) => warn!(
                target = %target.display(),
                cause,
                "mounted anew; programs that had files open there get errors and have to open them again"
            ),
            Err(error) => error!(target = %target.display(), %error, "cannot be mounted anew"),
        }
    }

    /// Unmounts what is down.
    ///
    /// # Errors
    /// As any unmounting.
    pub(super) fn unmount_down(self: &Arc<Self>, target: &Path, mode: UnmountMode) -> Option<Result<(), MountError>> {
        let at = self.table().down.iter().position(|down| down.target == target)?;
        if let Err(error) = mountpoint::unmount(target, mode)
            && error.kind != ErrorKind::NotMounted
        {
            return Some(Err(error));
        }
        let down = self.table().down.remove(at);
        if let Some(upper) = down.upper {
            self.discard(upper);
        }
        Some(Ok(()))
    }

    /// Removes what a predecessor was about to mount when it was killed.
    pub(super) async fn remove_abandoned(&self, abandoned: Vec<PathBuf>) {
        if abandoned.is_empty() {
            return;
        }
        let lower = self.paths.lower.clone();
        let _ = self.runtime.spawn_blocking(move || clean_up_lower(&lower)).await;
        for target in abandoned {
            let removed = self.runtime.spawn_blocking(move || {
                let Some(mount) = mountpoint::mounted_on(&target) else { return };
                if mountpoint::is_dead(&mount) {
                    match mountpoint::unmount(&target, UnmountMode::Lazy) {
                        Ok(()) => info!(target = %target.display(), "removed a mount that was not finished"),
                        Err(error) => warn!(%error, "a mount that was not finished stays"),
                    }
                }
            });
            if let Err(error) = removed.await {
                warn!(%error, "cannot look for mounts that were not finished");
            }
        }
    }
}
