//! Listing everything of a mount ahead of time, one request at a time, so that those who wait for an answer are not held up.
//!
//! A sweep from the first key to the last does nearly all of it. What it leaves (directories in which another sweep had begun, stores
//! whose pages come in no order) is listed directory by directory. A failure is said and is the end of it: the mount goes on
//! to list what it is asked for.

use std::sync::{Arc, PoisonError};

use tracing::{info, warn};

use super::{Namespace, Shared};
use crate::fault::Fault;

/// How far it has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Nothing more will be listed.
    pub finished: bool,
    /// Why not everything was.
    pub error: Option<String>,
}

impl Shared {
    fn progress(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.prefetch.lock().unwrap_or_else(PoisonError::into_inner);
        change(progress.get_or_insert_default());
    }
}

impl Namespace {
    /// How far listing everything has come; none if nobody asked for it.
    pub fn prefetched(&self) -> Option<Progress> {
        self.shared.prefetch.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lists everything below all entries of the mount, and returns when that is done or has failed. [`Namespace::prefetched`] tells
    /// how it goes, [`Namespace::len`] how much there is so far.
    ///
    /// # Errors
    /// When the store fails, or there is no room for more names.
    pub async fn prefetch(&self) -> Result<(), Fault> {
        self.shared.progress(|progress| *progress = Progress::default());
        let outcome = self.list_everything().await;
        let shared = Arc::clone(&self.shared);
        let names = self.len();
        match &outcome {
            Ok(()) => info!(mount = shared.label, names, "everything in the mount has been listed"),
            Err(fault) => {
                warn!(mount = shared.label, names, %fault, "listing ahead of time was given up; the mount lists what it is asked for");
            }
        }
        shared.progress(|progress| {
            progress.finished = true;
            progress.error = outcome.as_ref().err().map(ToString::to_string);
        });
        outcome
    }

    async fn list_everything(&self) -> Result<(), Fault> {
        let roots: Vec<_> = {
            let table = self.shared.read();
            let roots = table.roots().iter().filter(|root| root.ordered);
            roots.map(|root| (root.dir, root.prefix.clone())).collect()
        };
        for (dir, prefix) in roots {
            let first = self.shared.plan().whole(dir, prefix);
            self.launch(first);
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if !self.shared.plan().is_whole_under_way(dir) {
                    break;
                }
                changed.await;
            }
        }
        let mut from = 0;
        loop {
            let next = self.shared.read().incomplete_from(from);
            let Some((at, dir)) = next else { return Ok(()) };
            if !self.shared.has_room() {
                return Err(Fault::TooManyNames(self.shared.read().len()));
            }
            self.until(dir, |table| table.directory(dir).listing.is_complete().then_some(())).await?;
            from = at + 1;
        }
    }
}
