//! Going on with the tree that a process before this one showed, from the journal it has left.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use oss::ListPage;

use super::journal::{self, Input, Replay, Sums};
use super::plan::Plan;
use super::table::Table;
use super::{Namespace, Origin, Placed, Source, place, settle};
use crate::fault::Fault;

impl Namespace {
    /// The tree that a process before this one showed, exactly as it showed it, and to be gone on with. That process has ended; `origins`
    /// are those of the entries it had, in their order.
    ///
    /// # Errors
    /// [`Fault::Unrecoverable`]; the file is as it was then.
    pub fn recover(label: String, origins: &[Arc<Origin>], journal: std::fs::File) -> Result<Self, Fault> {
        let (header, replay) = Replay::open(journal)?;
        let mut table = Table::with_seed(header.seed, header.identity.most_names);
        let mut plan = Plan::default();
        let mut placed = 0;
        let replay = replay.each(|input, sums| {
            placed += u64::from(matches!(input, Input::Directory { .. } | Input::Object { .. }));
            take_again(&mut table, &mut plan, origins, input)?;
            if Sums::of(&table) == sums {
                return Ok(());
            }
            let cause = "this version of fuse-oss makes something else of it than the one that wrote it";
            Err(Fault::Unrecoverable(cause.to_owned()))
        })?;
        if placed != header.entries || origins.len() as u64 != header.entries {
            let cause =
                format!("{placed} of {} entries are in it, and {} were expected", header.entries, origins.len());
            return Err(Fault::Unrecoverable(cause));
        }
        let journal = replay.go_on(label.clone())?;
        let namespace = Self::with(label, header.identity, table, plan, journal);
        // The process before has said it.
        namespace.shared.said_hidden.store(namespace.hidden() > 0, Ordering::Relaxed);
        Ok(namespace)
    }
}

/// Takes in what a process before this one took in. What failed then fails again, and leaves the same behind.
fn take_again(table: &mut Table, plan: &mut Plan, origins: &[Arc<Origin>], input: Input) -> Result<(), Fault> {
    let directory = |table: &Table, number| {
        let found = table.nth_directory(number);
        found.ok_or_else(|| Fault::Unrecoverable(format!("it has a directory {number} that is not there")))
    };
    match input {
        Input::Directory { entry, at, charset, prefix } => {
            let (origin, first) = (journal::origin_of(origins, entry)?, ListPage::default());
            place(table, Placed { at, charset, source: Source::Directory { origin, prefix, first } }).map(drop)
        }
        Input::Object { entry, at, charset, meta } => {
            let origin = journal::origin_of(origins, entry)?;
            place(table, Placed { at, charset, source: Source::Object { origin, meta } }).map(drop)
        }
        Input::Own { dir, from, continued, page } => {
            let dir = directory(table, dir)?;
            let token = page.continuation.clone();
            if let Ok(absorbed) = table.absorb_own(dir, from.as_deref(), continued, page) {
                plan.begun(dir, absorbed.last.or(from), token);
            }
            Ok(())
        }
        Input::Sweep { base, from, page } => {
            let base = directory(table, base)?;
            // By no sweep of this process.
            let _ = table.absorb_sweep(base, from.as_deref(), 0, page);
            Ok(())
        }
        Input::Name { dir, name, found } => {
            let dir = directory(table, dir)?;
            let _ = settle(table, dir, &name, &found);
            Ok(())
        }
    }
}
