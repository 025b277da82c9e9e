//! One instance of a task: its attempts, one after the other, until one succeeds or no more are allowed.

mod attempt;
mod container;
mod follow;
mod inputs;
mod mount_point;
mod network_mounts;
pub(crate) mod outputs;
mod package;
pub mod record;
pub mod reserve;
pub mod retry;
mod stop;
pub mod view;
mod workspace;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use oss::Stores;
use oss::transfer::TransferBudget;

pub use follow::{Followed, Follower, Origin, Place as LogSource, Sent, open_log};
pub use inputs::{Mounter, meaning_of};
pub use mount_point::MountPoints;
pub use network_mounts::NetworkMounter;
pub use stop::{Reason, StopRequest, StopSignal, Stopper, Urgency};
pub use workspace::clean_up;

pub use outputs::early::{EarlyUpload, EarlyUploadError};
pub use outputs::give_up_left_behind;

pub(crate) use attempt::Evidence;
#[cfg(test)]
pub(crate) use outputs::Arrived;

use crate::console::Console;
use crate::container::Containers;
use crate::events::{Events, message};
use crate::job::Task;
use crate::job::names::{Attempt, JobId};
use crate::metrics::Metrics;
use crate::node::Node;
use crate::outcome::InstanceOutcome;
use crate::report::{self, Timeline};
use message::{Stage, Streams};
use record::{Record, stop_request};
use retry::{Next, Tries};

/// Everything an instance needs from around it. Shared by all instances of a run.
#[derive(Debug)]
pub struct Context {
    /// Where things are kept.
    pub node: Node,
    /// The run of the job.
    pub job: JobId,
    /// Storage as the node reaches it.
    pub stores: Arc<Stores>,
    /// Bounds what all uploads and downloads together keep in memory.
    pub budget: TransferBudget,
    /// Mounts inputs.
    pub mounter: Mounter,
    /// Mounts network file systems.
    pub network: NetworkMounter,
    /// Runs containers.
    pub containers: Containers,
    /// Makes mount points.
    pub mount_points: MountPoints,
    /// What the user sees.
    pub console: Console,
    /// Whether this is the node's own daemon, whose programs outlive it.
    pub of_the_node: bool,
    /// Is told when a program has been started.
    pub on_start: OnStart,
    /// Where events go.
    pub events: Events,
    /// Measures what is used.
    pub metrics: Metrics,
    /// What came before, for reports.
    pub timeline: Timeline,
    /// How outputs are sent while the task runs.
    pub early: EarlyUpload,
    /// How long a program may take to end after SIGTERM.
    pub grace: Duration,
    /// How long what a failed instance has made stays, if its job asks for that.
    pub reserve: Duration,
    /// How many faults of the platform's are answered by another attempt; see [`retry`].
    pub faults: u32,
    /// What the task is told about where it runs.
    pub place: Place,
}

/// Somebody who wants to know when a program has been started; nobody by default.
#[derive(Clone, Default)]
pub struct OnStart(Option<Arc<dyn Fn() + Send + Sync>>);

impl OnStart {
    /// Has this called.
    pub fn call(told: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(told)))
    }

    fn tell(&self) {
        if let Some(told) = &self.0 {
            told();
        }
    }
}

impl fmt::Debug for OnStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnStart").field(&self.0.is_some()).finish()
    }
}

/// Where a node is, as far as anyone has said.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The region.
    pub region: Option<String>,
    /// The cluster it belongs to.
    pub cluster: Option<String>,
    /// Its own id.
    pub worker: Option<String>,
    /// The directories the agent itself finds programs in.
    pub path: Option<String>,
}

/// How often the instance was tried before, and the attempt that an agent before this one has left unfinished; only the node's own
/// daemon goes on with one.
fn left_unfinished(context: &Context, task: &Task, instance: u32) -> (Tries, Option<Record>) {
    if !context.of_the_node {
        return (Tries::default(), None);
    }
    let records = Record::all(&context.node).unwrap_or_else(|error| {
        tracing::warn!(%error, "what an agent before this one has left cannot be read");
        Vec::new()
    });
    let attempt =
        |tries: Tries| Attempt { job: context.job.as_str(), task: &task.name, instance, number: tries.attempt() };
    let begun = |tries: Tries| {
        let id = attempt(tries).to_string();
        let is_left = |record: &&Record| record.of_the_node && !record.agent.is_alive();
        records.iter().filter(is_left).find(|record| record.id == id).cloned()
    };
    let tries = record::read_tries(&context.node, &attempt(Tries::default()).to_string());
    if let Some(record) = begun(tries) {
        return (tries, Some(record));
    }
    // What is running counts, should the file be gone.
    let counted = (1..=task.max_retries).rev().map(|retries| Tries { retries, faults: 0 });
    let running = counted.filter_map(|tries| Some((tries, Some(begun(tries)?)))).next();
    running.unwrap_or((tries, None))
}

/// Tells what has become of an instance.
fn tell(
    context: &Context,
    task: &Task,
    attempt: Attempt<'_>,
    stage: Stage,
    started: Option<Timestamp>,
    outcome: Option<&InstanceOutcome>,
) {
    let streams = Streams { stdout: task.stdout.as_ref(), stderr: task.stderr.as_ref() };
    context.events.tell(message::instance(attempt, streams, stage, started, outcome));
}

/// Tells that instance `number` of `task` is going to be run.
pub fn expect(context: &Context, task: &Task, number: u32) {
    let attempt = Attempt { job: context.job.as_str(), task: &task.name, instance: number, number: 1 };
    tell(context, task, attempt, Stage::Waiting, None, None);
}

/// Runs instance `number` of `task` to its end. Never fails: whatever happens becomes the outcome.
pub async fn run(context: &Context, task: &Task, number: u32, stop: StopSignal) -> InstanceOutcome {
    let started = Timestamp::now();
    let first = Attempt { job: context.job.as_str(), task: &task.name, instance: number, number: 1 };
    let (mut tries, mut begun) = left_unfinished(context, task, number);
    let request = stop_request(&context.node, first);
    if begun.is_none() && tries == Tries::default() {
        // It was meant for one of the same name.
        let _ = std::fs::remove_file(&request);
    }
    let (mut stop, _listening) = stop.with_requests_in(request.clone());
    let (outcome, evidence) = loop {
        let attempt = Attempt { number: tries.attempt(), ..first };
        tell(context, task, attempt, Stage::Running, Some(started), None);
        let (mut outcome, next, evidence) =
            attempt::run(context, task, attempt, tries, begun.take(), stop.clone()).await;
        (outcome.retries, outcome.attempts) = (tries.retries, tries.attempt());
        outcome.started = started;
        let Next::Again { tries: next, pause } = next else { break (outcome, evidence) };
        tracing::warn!(
            task = %format_args!("{}.{number}", task.name),
            pause_s = pause.as_secs(),
            "{}; trying again ({})",
            outcome.message.as_deref().unwrap_or("it failed"),
            if next.retries > tries.retries {
                format!("{} of {}", next.retries, task.max_retries)
            } else {
                format!("{} of {}, not counted as a retry", next.faults, context.faults)
            },
        );
        tries = next;
        if context.of_the_node
            && let Err(error) = record::write_tries(&context.node, &first.to_string(), tries)
        {
            tracing::warn!(%error, "that it was tried cannot be written down; after a crash it is not remembered");
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.beyond(Urgency::None) => break (outcome, evidence),
        }
    };
    record::forget_tries(&context.node, &first.to_string());
    let _ = std::fs::remove_file(&request);
    report::publish(context, task, &outcome, &evidence).await;
    let last = Attempt { number: outcome.attempts, ..first };
    tell(context, task, last, outcome.state.into(), Some(started), Some(&outcome));
    outcome
}
