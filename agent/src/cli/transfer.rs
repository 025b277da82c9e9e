//! What `push` and `pull` have in common.

use clap::Args;
use oss::Location;
use oss::transfer::TransferBudget;
use tokio::signal::unix::{SignalKind, signal};

use super::storage::StorageArguments;
use crate::exit;
use crate::outcome::{Cause, Failure};

/// The memory that one request may take on average, in bytes: a part of a large file.
const MEMORY_PER_REQUEST: u64 = 16 << 20;

/// What all requests together may take, however many they are.
const MEMORY: u64 = 256 << 20;

/// What both can be told.
#[derive(Debug, Args)]
pub(super) struct TransferArguments {
    /// How many requests may be under way at once. Large ones are fewer: all together take at most 256 MiB of memory.
    #[arg(long, value_name = "REQUESTS", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallel: u16,

    #[command(flatten)]
    pub(super) storage: StorageArguments,
}

impl TransferArguments {
    /// Runs what `work` makes of a budget, until it ends or somebody asks for an end. Uploads that are under way then are given up.
    pub(super) fn run<T>(&self, work: impl AsyncFnOnce(&TransferBudget) -> T) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::platform(format!("cannot start: {error}")))?;
        let memory = (u64::from(self.parallel) * MEMORY_PER_REQUEST).min(MEMORY);
        let budget = TransferBudget::new(usize::from(self.parallel), memory);
        runtime.block_on(async {
            let failed = |error| Failure::platform(format!("cannot listen to signals: {error}"));
            let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
            let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
            let number = tokio::select! {
                done = work(&budget) => return Ok(done),
                _ = interrupt.recv() => 2,
                _ = terminate.recv() => 15,
            };
            tracing::info!("stopping: giving up what is under way (once more: at once)");
            tokio::select! {
                () = budget.settled() => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            let message = "stopped; what has arrived is whole: the same command again does the rest";
            Err(Failure::new(Cause::Cancelled, 128 + number, message))
        })
    }
}

/// A location as it stands on the command line.
pub(super) fn location(text: &str) -> Result<Location, Failure> {
    text.parse().map_err(|error: oss::LocationError| Failure::new(Cause::User, exit::USAGE, error.to_string()))
}

/// Says what has failed and returns the first failure as what the command ends with.
pub(super) fn report(failed: Vec<Failure>) -> Result<(), Failure> {
    let count = failed.len();
    let mut failed = failed.into_iter();
    let Some(first) = failed.next() else { return Ok(()) };
    for failure in std::iter::once(&first).chain(failed.as_slice()) {
        tracing::error!("{}", failure.message);
    }
    let message = format!("{count} did not arrive, named above; the same command again tries only what is missing");
    Err(Failure { message, ..first })
}

/// `1 file`, `2 files`.
pub(super) fn files(count: usize) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}
