//! The network file systems of a task: mounted for one attempt, side by side, below its runtime directory.
//!
//! Number N is mounted at `<runtime>/network/N`, and the view binds it to where the task wants it. The place follows from the
//! attempt's record alone, so whoever cleans up, now or after a crash, knows where to look.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::view::NetworkView;
use crate::exit;
use crate::job::{NetworkMount, Task};
use crate::network::Mounting;
use crate::outcome::{Cause, Failure};
use crate::programs::Programs;
use crate::settings::NetworkFileSystem;

/// Mounts what tasks ask for.
#[derive(Debug, Clone)]
pub struct NetworkMounter {
    programs: Programs,
    deadline: Duration,
}

impl NetworkMounter {
    /// The time that each mount may take unless something else is said.
    pub const DEADLINE: Duration = Duration::from_secs(120);

    /// A mounter with the system's `programs`, which gives each mount so long.
    pub fn new(programs: Programs, deadline: Duration) -> Self {
        Self { programs, deadline }
    }

    /// Begins to mount the network file systems of `task` below `directory`.
    pub(super) fn start(&self, task: &Task, directory: &Path) -> Result<Pending, Failure> {
        let parse = |mount: &NetworkMount| {
            NetworkFileSystem::parse(&mount.source)
                .map_err(|error| Failure::new(Cause::User, exit::BAD_DATA, error.of(&mount.source)))
        };
        let parsed: Vec<_> = task.network_mounts.iter().map(parse).collect::<Result<_, _>>()?;
        let begin = |(number, (what, mount)): (usize, (NetworkFileSystem, &NetworkMount))| {
            let source = directory.join(number.to_string());
            let mounting = Mounting::start(&what, &source, mount.writable, self.deadline, &self.programs);
            (NetworkView { source, target: mount.target.clone(), writable: mount.writable }, mounting)
        };
        let mounts = parsed.into_iter().zip(&task.network_mounts).enumerate().map(begin).collect();
        Ok(Pending { mounts })
    }
}

/// Mounts that are being made.
#[derive(Debug)]
pub(super) struct Pending {
    mounts: Vec<(NetworkView, Mounting)>,
}

impl Pending {
    /// Waits until all are there, or one of them fails.
    pub(super) async fn finished(&mut self) -> Result<Vec<NetworkView>, Failure> {
        let all = self.mounts.iter_mut().map(|(view, mounting)| async move {
            let mounted = mounting.finished().await.map_err(|error| (view.target.clone(), error));
            mounted.map(|mounted| {
                tracing::info!(
                    device = mounted.device,
                    attempts = mounted.attempts,
                    elapsed_ms = mounted.elapsed_ms,
                    "mounted"
                )
            })
        });
        let mut all: FuturesUnordered<_> = all.collect();
        while let Some(mounted) = all.next().await {
            mounted.map_err(|(target, error)| {
                let failure = error.failure();
                // The task knows it by the path it asked for, and not by ours.
                let message = format!("network file system for {}: {}", target.display(), failure.message);
                Failure::new(failure.cause, failure.exit_status, message)
            })?;
        }
        drop(all);
        Ok(self.mounts.iter().map(|(view, _)| view.clone()).collect())
    }

    /// Ends those that are still being made. What is mounted by now is left to the cleaning up.
    pub(super) async fn abandon(self) {
        let all: FuturesUnordered<_> = self.mounts.into_iter().map(|(_, mounting)| mounting.abandon()).collect();
        all.collect::<Vec<()>>().await;
    }
}
