//! What requests under way share with whoever asks: the table of names, the plan, the journal, and how a page gets into them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use oss::ListRequest;
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::absorb::Refused;
use super::journal::{Journal, Record};
use super::listing;
use super::plan::{self, Arrived, Fetch, Job, Plan};
use super::prefetch::Progress;
use super::table::Table;
use crate::fault::Fault;

/// What requests under way need. Where several locks are held, the plan's is taken first, then the table's, then the journal's.
#[derive(Debug)]
pub(super) struct Shared {
    /// What changes what is shown goes through [`Shared::change`].
    pub(super) table: RwLock<Table>,
    pub(super) plan: Mutex<Plan>,
    pub(super) journal: Mutex<Journal>,
    /// A page has come, or will not come.
    pub(super) changed: Notify,
    /// How the mount calls itself in the log.
    pub(super) label: String,
    pub(super) said_hidden: AtomicBool,
    pub(super) prefetch: Mutex<Option<Progress>>,
}

impl Shared {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What [`Shared::change`] is to write down; nothing where nothing is written. Not under the table's lock: it takes a while, and
    /// others want to look.
    pub(super) fn record(&self, record: impl FnOnce() -> Record) -> Option<Record> {
        let is_kept = self.journal().is_kept();
        is_kept.then(record)
    }

    /// Has the table take something in, and writes it down before anybody can see what it brought. That is so when taking it in
    /// fails, too, because then part of it is shown.
    pub(super) fn change<T>(&self, record: Option<Record>, change: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = self.write();
        let outcome = change(&mut table);
        if let Some(record) = record {
            self.journal().append(record, &table);
        }
        outcome
    }

    pub(super) fn has_room(&self) -> bool {
        self.read().has_room()
    }

    /// Makes one request after the other for as long as there is a next one.
    pub(super) async fn run(self: Arc<Self>, first: Fetch) {
        let mut next = Some(first);
        while let Some(fetch) = next {
            next = match self.page(&fetch).await {
                Ok(arrived) => self.plan().arrived(&fetch, arrived),
                Err(fault) => {
                    debug!(mount = self.label, %fault, from = fetch.from, "a listing failed");
                    self.plan().failed(&fetch, fault);
                    None
                }
            };
            self.changed.notify_waiters();
        }
    }

    /// Asks for a page and takes it in.
    pub(super) async fn page(&self, fetch: &Fetch) -> Result<Arrived, Fault> {
        let own = matches!(fetch.job, Job::Own(_));
        let (origin, prefix) = {
            let table = self.read();
            let root = table.root_of(fetch.base).ok_or_else(|| Fault::Internal("nothing to list".to_owned()))?;
            (Arc::clone(&root.origin), table.prefix(fetch.base))
        };
        let continued = fetch.token.is_some();
        let begin = |from: &str| if own { from.to_owned() } else { listing::behind(from) };
        let request = ListRequest {
            prefix,
            delimiter: own,
            start_after: fetch.from.as_deref().filter(|_| !continued).map(begin),
            continuation: fetch.token.clone(),
            max_keys: None,
        };
        let page = origin.store.list(request).await?;
        let token = page.continuation.clone();
        if token.is_some() && token == fetch.token {
            return Err(plan::does_not_advance());
        }
        let from = fetch.from.as_deref();
        let absorbed = if own {
            let record = self.record(|| Record::own(fetch.base, from, continued, &page));
            self.change(record, |table| table.absorb_own(fetch.base, from, continued, page))?
        } else {
            let record = self.record(|| Record::sweep(fetch.base, from, &page));
            match self.change(record, |table| table.absorb_sweep(fetch.base, from, fetch.swept, page)) {
                Ok(absorbed) => absorbed,
                Err(Refused::Full(fault)) => return Err(fault),
                Err(Refused::Unordered) => {
                    return Err(Fault::Internal("the store does not list keys in order".to_owned()));
                }
            }
        };
        self.report_hidden();
        Ok(Arrived { absorbed, token, room: self.has_room() })
    }

    pub(super) fn report_hidden(&self) {
        let Some(first) = self.read().first_hidden.clone() else { return };
        if !self.said_hidden.swap(true, Ordering::Relaxed) {
            warn!(
                mount = self.label,
                key = %first.escape_debug(),
                "there are keys that a file system cannot show (empty, '.' or '..' segments, NUL, names over 255 bytes, \
                 or an object beside a directory of the same name), or whose place another entry has; this is the first, further ones are counted in `fuse-oss status`"
            );
        }
    }
}
