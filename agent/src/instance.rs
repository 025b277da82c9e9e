//! One instance of a task: its attempts, one after the other, until one succeeds or no more are allowed.

mod attempt;
mod follow;
mod inputs;
mod mount_point;
mod network_mounts;
mod outputs;
mod package;
pub mod record;
mod stop;
pub mod view;
mod workspace;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use oss::Stores;
use oss::transfer::TransferBudget;

pub use follow::{Follower, open_log};
pub use inputs::{Mounter, meaning_of};
pub use mount_point::MountPoints;
pub use network_mounts::NetworkMounter;
pub use stop::{StopSignal, Stopper, Urgency};
pub use workspace::clean_up;

use crate::console::Console;
use crate::events::{Events, message};
use crate::job::Task;
use crate::job::names::{Attempt, JobId};
use crate::node::Node;
use crate::outcome::{Cause, InstanceOutcome, State};
use message::{Stage, Streams};
use record::Record;

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
    /// How long a program may take to end after SIGTERM.
    pub grace: Duration,
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

/// How often the instance was tried again, and the attempt that an agent before this one has left unfinished; only the node's own
/// daemon goes on with one.
fn left_unfinished(context: &Context, task: &Task, instance: u32) -> (u32, Option<Record>) {
    if !context.of_the_node {
        return (0, None);
    }
    let records = Record::all(&context.node).unwrap_or_else(|error| {
        tracing::warn!(%error, "what an agent before this one has left cannot be read");
        Vec::new()
    });
    let attempt = |retries: u32| {
        let attempt = Attempt { job: context.job.as_str(), task: &task.name, instance, number: retries + 1 };
        let id = attempt.to_string();
        let record = records.iter().find(|record| record.id == id && record.of_the_node && !record.agent.is_alive())?;
        Some((retries, Some(record.clone())))
    };
    (0..=task.max_retries).rev().find_map(attempt).unwrap_or((0, None))
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
    let (mut retries, mut begun) = left_unfinished(context, task, number);
    loop {
        let attempt = Attempt { job: context.job.as_str(), task: &task.name, instance: number, number: retries + 1 };
        let may_retry = retries < task.max_retries;
        tell(context, task, attempt, Stage::Running, Some(started), None);
        let mut outcome = attempt::run(context, task, attempt, may_retry, begun.take(), stop.clone()).await;
        outcome.retries = retries;
        outcome.started = started;
        let again = may_retry && outcome.state == State::Failed && outcome.cause != Some(Cause::Cancelled);
        if !again || stop.is_asked() {
            tell(context, task, attempt, outcome.state.into(), Some(started), Some(&outcome));
            return outcome;
        }
        retries += 1;
        tracing::warn!(
            task = %format_args!("{}.{number}", task.name),
            "{}; trying again ({retries} of {})",
            outcome.message.as_deref().unwrap_or("it failed"),
            task.max_retries
        );
    }
}
