//! One instance of a task: its attempts, one after the other, until one succeeds or no more are allowed.

mod attempt;
mod container;
mod follow;
mod inputs;
mod mount_point;
mod network_mounts;
pub(crate) mod outputs;
mod package;
mod progress;
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
pub use progress::forget;
pub use stop::{Reason, StopRequest, StopSignal, Stopper, Urgency};
pub use workspace::clean_up;

pub use outputs::LeftBehind;
pub use outputs::early::{EarlyUpload, EarlyUploadError};

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
use progress::{Ended, Progress};
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

/// The attempt that an agent before this one has left unfinished and which is gone on with. What it has left of others, which are over, is
/// taken away.
async fn left_unfinished(
    context: &Context,
    task: &Task,
    first: Attempt<'_>,
    progress: &mut Option<Progress>,
) -> Option<Record> {
    let records = Record::all(&context.node).unwrap_or_else(|error| {
        tracing::warn!(%error, "what an agent before this one has left cannot be read");
        Vec::new()
    });
    let id = |tries: Tries| Attempt { number: tries.attempt(), ..first }.to_string();
    let is_left = |record: &&Record| record.of_the_node && !record.agent.is_alive();
    let left: Vec<&Record> = records.iter().filter(is_left).collect();
    if progress.is_none() {
        // What is running counts, should the file be gone.
        let counted = (1..=task.max_retries).rev().map(|retries| Tries { retries, faults: 0 });
        let running = counted.into_iter().find(|tries| left.iter().any(|record| record.id == id(*tries)));
        *progress = running.map(|tries| Progress { tries, ..Progress::default() });
    }
    let ended = progress.as_mut().is_some_and(|progress| {
        let has_ended = progress.end.is_some();
        if progress.is_to_be_run_again() {
            (progress.end, progress.boot_id) = (None, None);
        }
        has_ended
    });
    let tries = progress.as_ref().map_or_else(Tries::default, |progress| progress.tries);
    let current = (!ended).then(|| id(tries));
    let is_over = |record: &&&Record| {
        let mut tries = (0..tries.attempt()).map(|retries| Tries { retries, faults: 0 });
        record.reserved.is_none() && tries.any(|tries| record.id == id(tries))
    };
    for record in left.iter().filter(|record| Some(&record.id) != current.as_ref()).filter(is_over) {
        attempt::take_away(context, record).await;
    }
    left.into_iter().find(|record| Some(&record.id) == current.as_ref()).cloned()
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
///
/// The node's own daemon writes down how far it is, and goes on where one before it was. It has to [`forget`] that when it has written down
/// the outcome.
pub async fn run(context: &Context, task: &Task, number: u32, stop: StopSignal) -> InstanceOutcome {
    let first = Attempt { job: context.job.as_str(), task: &task.name, instance: number, number: 1 };
    let request = stop_request(&context.node, first);
    let mut progress = context.of_the_node.then(|| Progress::read(&context.node, &first.to_string())).flatten();
    let begun = match context.of_the_node {
        true => left_unfinished(context, task, first, &mut progress).await,
        false => None,
    };
    if begun.is_none() && progress.is_none() {
        // It was meant for one of the same name.
        let _ = std::fs::remove_file(&request);
    }
    let Progress { tries, end, .. } = progress.unwrap_or_default();
    let Ended { outcome, report } = match end {
        Some(ended) => ended,
        None => {
            let (of_this, _listening) = stop.clone().with_requests_in(request.clone());
            attempts(context, task, first, tries, begun, (of_this, &stop)).await
        }
    };
    let _ = std::fs::remove_file(&request);
    if let Some(report) = report {
        report.publish(context).await;
    }
    let last = Attempt { number: outcome.attempts, ..first };
    tell(context, task, last, outcome.state.into(), Some(outcome.started), Some(&outcome));
    outcome
}

/// Runs one attempt after the other. Nothing of them is left when it is over. The machine asks for the end with the second signal; the
/// first one is that with what others ask.
async fn attempts(
    context: &Context,
    task: &Task,
    first: Attempt<'_>,
    mut tries: Tries,
    mut begun: Option<Record>,
    (mut stop, of_the_machine): (StopSignal, &StopSignal),
) -> Ended {
    let started = Timestamp::now();
    let name = format!("{}.{}", task.name, first.instance);
    let over = loop {
        let attempt = Attempt { number: tries.attempt(), ..first };
        tell(context, task, attempt, Stage::Running, Some(started), None);
        let mut over = attempt::run(context, task, attempt, tries, begun.take(), stop.clone()).await;
        let outcome = &mut over.outcome;
        (outcome.retries, outcome.attempts, outcome.started) = (tries.retries, tries.attempt(), started);
        let Next::Again { tries: next, pause } = over.next else { break over };
        tracing::warn!(
            task = name,
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
        write_down(context, first, &Progress { tries, ..Progress::default() });
        over.close(context).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.beyond(Urgency::None) => break over,
        }
    };
    let report = report::report(context, task, &over.outcome, &over.evidence);
    let ended = Ended { outcome: over.outcome.clone(), report };
    let boot_id = of_the_machine.is_asked().then(progress::this_boot).flatten();
    write_down(context, first, &Progress { tries, end: Some(ended.clone()), boot_id });
    over.close(context).await;
    ended
}

/// Writes down, for an agent that comes after this one, how far the instance is.
fn write_down(context: &Context, first: Attempt<'_>, progress: &Progress) {
    if context.of_the_node
        && let Err(error) = progress.save(&context.node, &first.to_string())
    {
        tracing::warn!(%error, "how far the task is cannot be written down; after a crash it is not remembered");
    }
}
