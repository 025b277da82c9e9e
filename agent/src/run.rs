//! Running a job on this machine, from its first task to its outcome.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;

use crate::durable::{self, FileError};
use crate::events::Events;
use crate::events::message::{self, Stage};
use crate::exit;
use crate::instance::{self, Context, LeftBehind, Reason, StopSignal, Stopper, Urgency};
use crate::job::check::{Abilities, Report};
use crate::job::{JobDescription, Task};
use crate::outcome::{self, InstanceOutcome, JobOutcome, State, TaskOutcome};
use crate::schedule::{Ended, InstanceIndex, Schedule, TaskShape};
use crate::sweep::sweep;

/// How many outcomes are kept on the node; the oldest go.
const OUTCOMES_KEPT: usize = 1000;

/// How long a job that has ended waits until parts of uploads that a killed agent has left are given up.
const LEFT_BEHIND: Duration = Duration::from_secs(30);

/// Up to so many instances are told to be waiting when the job begins; those of a job with more, as each is about to begin.
const FORETOLD: u64 = 1000;

/// What this version can do for a task beyond running it on objects.
pub const ABILITIES: Abilities = Abilities { network_mounts: true, containers: true };

/// What of a job is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it, with at most so many instances at once.
    Whole {
        /// At least 1.
        parallel: u32,
    },
    /// One instance, whatever it depends on: what a node of a cluster does.
    One {
        /// The task's name.
        task: String,
        /// The instance's number.
        instance: u32,
    },
}

/// Why a job could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The task asked for is not in the job.
    #[error("the job has no task {task:?}; it has {}", known.join(", "))]
    NoSuchTask {
        /// The name asked for.
        task: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The instance asked for is not in the task.
    #[error("task {task:?} has {instances} instances, numbered from 0; there is no instance {instance}")]
    NoSuchInstance {
        /// The task.
        task: String,
        /// The number asked for.
        instance: u32,
        /// How many there are.
        instances: u32,
    },
    /// A task needs what this version does not have.
    #[error("task {task:?} needs {needs}: {remedy}")]
    Unsupported {
        /// The task.
        task: String,
        /// What it needs.
        needs: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The agent's own files.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Runs `part` of `job` until it has ended or `stop` asks for its end. What goes wrong with a task is in the outcome.
///
/// # Errors
/// When nothing could be begun.
pub async fn run(
    context: Arc<Context>,
    job: Arc<JobDescription>,
    part: Part,
    stop: StopSignal,
) -> Result<JobOutcome, RunError> {
    check(&job, &part)?;
    context.node.prepare()?;
    sweep(&context.node, &context.mounter, &context.mount_points).await?;
    // Beside the job: storage may be far away, or out of reach.
    let (left, stores) = (LeftBehind::find(&context.node), Arc::clone(&context.stores));
    let given_up = tokio::spawn(async move { left.give_up(&stores).await });

    let started = Timestamp::now();
    tracing::info!(job = %context.job, "running {:?}", job.name);
    let mut tasks: Vec<Vec<InstanceOutcome>> = vec![Vec::new(); job.tasks.len()];
    let news = News { events: &context.events, job: context.job.as_str(), started };
    if let Part::Whole { .. } = part {
        news.begin(&context, &job);
    }
    let first_failure = match &part {
        Part::Whole { parallel } => run_all(&context, &job, *parallel, stop.clone(), &news, &mut tasks).await,
        Part::One { task, instance } => run_one(&context, &job, task, *instance, stop.clone(), &mut tasks).await,
    };
    let outcome = put_together(&context, &job, &part, started, tasks, first_failure, stop.is_asked());
    if let Part::Whole { .. } = part {
        news.end(&outcome);
    }
    save(&context, &outcome)?;
    // What is not given up by then is, by the next run.
    let _ = tokio::time::timeout(LEFT_BEHIND, given_up).await;
    Ok(outcome)
}

/// Tells what happens to a whole job and its tasks; instances are told as they run.
struct News<'a> {
    events: &'a Events,
    job: &'a str,
    started: Timestamp,
}

impl News<'_> {
    fn begin(&self, context: &Context, job: &JobDescription) {
        self.events.tell(message::job(self.job, &job.name, Stage::Waiting, self.started, None));
        for task in &job.tasks {
            self.events.tell(message::task(self.job, &task.name, Stage::Waiting, None, None));
        }
        if job.tasks.iter().map(|task| u64::from(task.instances)).sum::<u64>() <= FORETOLD {
            for task in &job.tasks {
                (0..task.instances).for_each(|number| instance::expect(context, task, number));
            }
        }
        self.events.tell(message::job(self.job, &job.name, Stage::Running, self.started, None));
    }

    /// An instance begins; the first one of a task is the beginning of that.
    fn begins(&self, context: &Context, task: &Task, instance: u32) {
        self.events.tell(message::task(self.job, &task.name, Stage::Running, Some(Timestamp::now()), None));
        // Told before, mostly: the same event is told once.
        instance::expect(context, task, instance);
    }

    /// The last instance of a task has ended.
    fn task_ends(&self, task: &str, instances: &[InstanceOutcome]) {
        let started = instances.iter().map(|outcome| outcome.started).min();
        let ended = instances.iter().map(|outcome| outcome.ended).max();
        let any = |state| instances.iter().any(|outcome| outcome.state == state);
        let stage = match (any(State::Failed), any(State::Stopped)) {
            (true, _) => Stage::Failed,
            (false, true) => Stage::Stopped,
            (false, false) => Stage::Finished,
        };
        self.events.tell(message::task(self.job, task, stage, started, ended));
    }

    fn end(&self, outcome: &JobOutcome) {
        for task in &outcome.tasks {
            match task.state {
                State::Stopped if task.instances.is_empty() => {
                    self.events.tell(message::task(self.job, &task.name, Stage::Stopped, None, Some(outcome.ended)));
                }
                State::Waiting => {}
                _ => self.task_ends(&task.name, &task.instances),
            }
        }
        let stage = outcome.state.into();
        self.events.tell(message::job(self.job, &outcome.name, stage, self.started, Some(outcome)));
    }
}

/// Finds what would keep the job from running before anything of it has run.
fn check(job: &JobDescription, part: &Part) -> Result<(), RunError> {
    for task in Report::new(job, &[], ABILITIES).tasks {
        let is_wanted = !matches!(part, Part::One { task: only, .. } if *only != task.name);
        if let Some(missing) = task.missing.into_iter().next().filter(|_| is_wanted) {
            return Err(RunError::Unsupported { task: task.name, needs: missing.needs, remedy: missing.remedy });
        }
    }
    let Part::One { task: name, instance } = part else { return Ok(()) };
    let Some(task) = job.task(name) else {
        let known = job.tasks.iter().map(|task| task.name.clone()).collect();
        return Err(RunError::NoSuchTask { task: name.clone(), known });
    };
    if *instance >= task.instances {
        let (task, instances) = (name.clone(), task.instances);
        return Err(RunError::NoSuchInstance { task, instance: *instance, instances });
    }
    Ok(())
}

/// What `batch-agent run` exits with for the first instance that failed.
type FirstFailure = Option<u8>;

async fn run_one(
    context: &Context,
    job: &JobDescription,
    name: &str,
    number: u32,
    stop: StopSignal,
    tasks: &mut [Vec<InstanceOutcome>],
) -> FirstFailure {
    let index = job.tasks.iter().position(|task| task.name == name)?;
    let outcome = instance::run(context, &job.tasks[index], number, stop).await;
    say(&outcome);
    let failed = (outcome.state != State::Finished).then_some(outcome.exit_status);
    tasks[index].push(outcome);
    failed
}

async fn run_all(
    context: &Arc<Context>,
    job: &Arc<JobDescription>,
    parallel: u32,
    mut stop: StopSignal,
    news: &News<'_>,
    tasks: &mut [Vec<InstanceOutcome>],
) -> FirstFailure {
    let mut schedule = Schedule::new(shapes(&job.tasks), parallel, job.stop_on_failure);
    // Instances listen to this one, because a failure stops them, too, and not only the user.
    let (stopper, inner) = Stopper::new();
    let mut running: JoinSet<(InstanceIndex, InstanceOutcome)> = JoinSet::new();
    let mut urgency = Urgency::None;
    let mut first_failure = None;
    loop {
        while let Some(index) = schedule.start_next() {
            news.begins(context, &job.tasks[index.task], index.instance);
            let (context, job, inner) = (Arc::clone(context), Arc::clone(job), inner.clone());
            running.spawn(async move {
                let task = &job.tasks[index.task];
                (index, instance::run(&context, task, index.instance, inner).await)
            });
        }
        tokio::select! {
            ended = running.join_next() => match ended {
                None => break,
                Some(Ok((index, outcome))) => {
                    say(&outcome);
                    let was_stopping = schedule.is_stopping();
                    schedule.ended(index, match outcome.state {
                        State::Finished => Ended::Finished,
                        State::Stopped => Ended::Stopped,
                        State::Failed | State::Waiting => Ended::Failed,
                    });
                    if outcome.state != State::Finished && first_failure.is_none() {
                        first_failure = Some(outcome.exit_status);
                    }
                    if schedule.is_stopping() && !was_stopping && schedule.running() > 0 {
                        tracing::warn!("stopping the job's other instances");
                        stopper.ask();
                    }
                    tasks[index.task].push(outcome);
                    if tasks[index.task].len() == job.tasks[index.task].instances as usize {
                        news.task_ends(&job.tasks[index.task].name, &tasks[index.task]);
                    }
                }
                // Only a panic of ours ends an instance without an outcome. What is known stands; the sweep of the next
                // run removes what it left.
                Some(Err(error)) => {
                    tracing::error!(%error, "an instance was lost by a fault of the agent");
                    first_failure = first_failure.or(Some(exit::INTERNAL));
                    schedule.stop();
                    stopper.ask();
                }
            },
            asked = stop.beyond(urgency) => {
                urgency = asked;
                schedule.stop();
                stopper.ask_for(stop.reason().unwrap_or(Reason::Cancelled));
            }
        }
    }
    for instances in tasks.iter_mut() {
        instances.sort_by_key(|outcome| outcome.instance);
    }
    first_failure
}

fn shapes(tasks: &[Task]) -> Vec<TaskShape> {
    let indices: BTreeMap<&str, usize> =
        tasks.iter().enumerate().map(|(index, task)| (task.name.as_str(), index)).collect();
    let after = |task: &Task| task.after.iter().filter_map(|name| indices.get(name.as_str()).copied()).collect();
    tasks.iter().map(|task| TaskShape { instances: task.instances, after: after(task) }).collect()
}

fn say(outcome: &InstanceOutcome) {
    match outcome.state {
        State::Finished if outcome.message.is_some() => tracing::warn!("{}", outcome.summary()),
        State::Finished => {
            tracing::info!(files = outcome.outputs.files, bytes = outcome.outputs.bytes, "{}", outcome.summary())
        }
        _ => tracing::error!("{}", outcome.summary()),
    }
}

fn put_together(
    context: &Context,
    job: &JobDescription,
    part: &Part,
    started: Timestamp,
    tasks: Vec<Vec<InstanceOutcome>>,
    first_failure: FirstFailure,
    asked_to_stop: bool,
) -> JobOutcome {
    let task_state = |task: &Task, instances: &[InstanceOutcome]| {
        let wanted = match part {
            Part::Whole { .. } => task.instances as usize,
            Part::One { .. } => 1,
        };
        let any = |state| instances.iter().any(|outcome| outcome.state == state);
        if any(State::Failed) {
            State::Failed
        } else if any(State::Stopped) {
            State::Stopped
        } else if instances.len() == wanted {
            State::Finished
        } else if instances.is_empty() && !asked_to_stop && first_failure.is_none() {
            State::Waiting
        } else {
            State::Stopped
        }
    };
    let tasks: Vec<TaskOutcome> = job
        .tasks
        .iter()
        .zip(tasks)
        .filter(|(task, _)| !matches!(part, Part::One { task: only, .. } if *only != task.name))
        .map(|(task, instances)| TaskOutcome {
            name: task.name.clone(),
            state: task_state(task, &instances),
            instances,
        })
        .collect();
    let any = |state| tasks.iter().any(|task| task.state == state);
    let state = if any(State::Failed) {
        State::Failed
    } else if any(State::Stopped) || asked_to_stop && first_failure.is_some() {
        State::Stopped
    } else {
        State::Finished
    };
    let exit_status = match (state, first_failure) {
        (State::Finished, _) => 0,
        (_, Some(status)) => status,
        (_, None) => exit::INTERNAL,
    };
    JobOutcome {
        version: outcome::VERSION,
        job_id: context.job.to_string(),
        name: job.name.clone(),
        state,
        exit_status,
        started,
        ended: Timestamp::now(),
        tasks,
    }
}

/// Keeps the outcome on the node, among the last ones.
fn save(context: &Context, outcome: &JobOutcome) -> Result<(), FileError> {
    let directory = context.node.outcomes();
    durable::replace_json(&directory.join(format!("{}.json", outcome.job_id)), outcome)?;
    let entries = std::fs::read_dir(&directory).map_err(FileError::on("read", &directory))?;
    let mut files: Vec<_> =
        entries.flatten().filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    files.sort();
    for (_, path) in files.iter().rev().skip(OUTCOMES_KEPT) {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}
