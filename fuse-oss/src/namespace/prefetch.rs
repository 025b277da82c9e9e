//! Listing everything of a mount ahead of time, a few requests at a time, so that those who wait for an answer are not held up.
//!
//! Sweeps from the first key to the last do nearly all of it, side by side where the names at the top tell where to divide. What they
//! leave (directories in which another sweep had begun, stores whose pages come in no order) is listed directory by directory. A
//! directory that may not be listed is passed over and said in the end; any other failure is the end of it. The mount goes on to
//! list what it is asked for.

use std::sync::{Arc, PoisonError};

use tracing::{info, warn};

use super::table::{Dir, Table};
use super::{Namespace, Shared};
use crate::fault::Fault;

/// Sweeps side by side over one mounted location.
const SIDE_BY_SIDE: usize = 4;

/// There is no use in dividing fewer directories than this.
const WORTH_DIVIDING: usize = 4 * SIDE_BY_SIDE;

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
            roots.map(|root| (root.dir, table.question(root.dir), division(&table, root.dir))).collect()
        };
        for (dir, question, begins) in roots {
            let fetches = self.shared.plan().whole(&question, begins);
            self.launch(fetches);
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
        let (mut from, mut refused) = (0, None);
        loop {
            let next = self.shared.read().incomplete_from(from);
            let Some((at, dir)) = next else { return refused.map_or(Ok(()), Err) };
            if !self.shared.has_room() {
                return Err(Fault::TooManyNames(self.shared.read().len()));
            }
            match self.until(dir, |table| table.directory(dir).listing.is_complete().then_some(())).await {
                Err(Fault::Store(error)) if *error.kind() == oss::ErrorKind::Denied => {
                    refused.get_or_insert(Fault::Store(error));
                }
                outcome => outcome?,
            }
            from = at + 1;
        }
    }
}

/// Where sweeps over a directory can begin beside the one from its beginning.
fn division(table: &Table, dir: Dir) -> Vec<String> {
    let from_inside = table.root_of(dir).is_some_and(|root| root.origin.store.capabilities().list_from_inside);
    let below: Vec<Dir> = table.entries(dir, 0).filter_map(|(node, _)| table.child(dir, node.ino)).collect();
    if !from_inside || below.len() < WORTH_DIVIDING {
        return Vec::new();
    }
    (1..SIDE_BY_SIDE).map(|part| table.prefix(below[below.len() * part / SIDE_BY_SIDE])).collect()
}
