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

use std::sync::Arc;

use oss::Stores;
use tracing::{error, info, warn};

use super::keeping::{Inherited, Kept};
use super::mounting::{label, origin};
use super::{Active, Prefetching, Server};
use crate::error::MountError;
use crate::filesystem::Mounted;
use crate::filesystem::ledger::Ledger;
use crate::keeper::message::ToKeeper;
use crate::mountpoint;
use crate::namespace::Namespace;
use crate::options::{MountRequest, UnmountMode};
use crate::transport::Transport;

impl Server {
    /// Takes over every mount of a predecessor. What cannot be taken over is dealt with in the background.
    pub fn recover(self: &Arc<Self>, mounts: Vec<Inherited>) {
        for inherited in mounts {
            let (id, target, device) = (inherited.id, inherited.target.clone(), inherited.device.clone());
            let request = match Kept::read(&inherited.files.request) {
                Ok((request, salt)) => match self.take_over(inherited, &request, salt) {
                    Ok(()) => continue,
                    Err(cause) => {
                        error!(target = %target.display(), %cause, "this mount cannot be gone on with; it is aborted");
                        Some((request, cause))
                    }
                },
                Err(cause) => {
                    error!(target = %target.display(), %cause, "this mount cannot be gone on with; it is aborted");
                    None
                }
            };
            // With the keeper's descriptor, the last one, the connection goes.
            self.keeping.say(&ToKeeper::Gone { id });
            if let Some((request, cause)) = request {
                let server = Arc::clone(self);
                self.runtime.spawn(async move { server.make_anew(request, &device, &cause).await });
            }
        }
        self.save_record();
    }

    fn take_over(self: &Arc<Self>, inherited: Inherited, request: &MountRequest, salt: u64) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let files = inherited.files;
        let journal = files.journal.ok_or("its names were not kept, for want of room")?;
        let stores = Stores::new(request.stores.clone());
        let origins: Result<Vec<_>, MountError> =
            request.entries.iter().map(|entry| origin(&stores, &self.metrics, &entry.location)).collect();
        let namespace = Namespace::recover(label(&request.entries), origins.map_err(|e| text(&e))?, journal.into())
            .map_err(|error| text(&error))?;
        let ledger = Ledger::from_fd(files.ledger).map_err(|error| text(&error))?;
        let (runtime, blocks) = (self.runtime.clone(), Arc::clone(&self.blocks));
        let filesystem = Mounted::new(runtime, namespace, blocks, request.options.clone(), salt, ledger);
        let inner = filesystem.inner();
        let transport = Transport::take_over(filesystem, files.device, &request.options)
            .map_err(|error| format!("the session cannot be taken up: {error}"))?;
        if self.without_resend {
            return Err("the kernel cannot send requests again (it is treated as if it could not)".to_owned());
        }
        transport
            .resend()
            .map_err(|error| format!("the kernel cannot send requests again ({error}); kernels from 6.9 on can"))?;
        inner.handles().set_notifier(transport.notifier());
        let there = mountpoint::mounted_on(&inherited.target);
        let detached = there.is_none_or(|mount| mount.device != inherited.device);
        let prefetching = Prefetching::new(request.options.prefetch, &inner);
        let active = Active {
            target: inherited.target.clone(),
            entries: request.entries.clone(),
            inner,
            device: inherited.device,
            detached,
            prefetching,
        };
        self.table().sessions.insert(inherited.id, active);
        self.spawn_session(inherited.id, transport);
        if let Some(prefetching) =
            self.table().sessions.get_mut(&inherited.id).and_then(|active| active.prefetching.as_mut())
        {
            prefetching.start(&self.runtime);
        }
        info!(target = %inherited.target.display(), "went on with a mount");
        Ok(())
    }

    /// Puts a new mount in the place of one that was aborted.
    async fn make_anew(self: Arc<Self>, request: MountRequest, device: &str, cause: &str) {
        let target = request.target.clone();
        if mountpoint::is_ours(&target, Some(device))
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

    /// Removes what a predecessor was about to mount when it was killed.
    pub(super) async fn remove_abandoned(&self, abandoned: Vec<std::path::PathBuf>) {
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
