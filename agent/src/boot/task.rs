//! The node's task: one instance of one task of a job, as `batch-agent run` would run it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oss::transfer::TransferBudget;
use oss::{GetOptions, Location, PutMode};

use super::phase::{Came, Phase};
use super::story::Story;
use super::{Boot, Known, mounts};
use crate::container::Containers;
use crate::exit;
use crate::instance::{self, Context, LeftBehind, MountPoints, Mounter, NetworkMounter, OnStart, Place};
use crate::job::names::JobId;
use crate::job::{self, Format, JobDescription};
use crate::outcome::{Cause, Failure, InstanceOutcome};
use crate::run::ABILITIES;
use crate::settings::{NodeTask, TaskSource};
use crate::sweep::sweep;

/// How long a program may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// How long mounting a network file system of the task's own may take.
const NETWORK_DEADLINE: Duration = Duration::from_secs(180);

/// What has to be free on the scratch disk before a task is started, in bytes: logs and state have to fit even if the task uses the rest.
const LEAST_SPACE: u64 = 256 << 20;

/// Runs it, or goes on with one that an agent before this one has started. A task that has ended is not run again, whatever
/// happens to the machine.
pub async fn run(known: &Known, boot: &Boot) -> Result<Came<Option<InstanceOutcome>>, Failure> {
    let Some(wanted) = &known.settings.task else { return Ok(Came::ToNothing(None)) };
    end_reservations(known, boot).await?;
    let story = boot.teller.story();
    if let Some(outcome) = has_ended(&story, wanted) {
        if let Some(job) = story.job_id.as_ref().and_then(|id| id.parse().ok()) {
            instance::forget(&known.node, &job, &outcome.task, outcome.instance);
        }
        let message = format!("it ended before: {}", outcome.summary());
        return Ok(Came::To(Some(outcome), Some(message)));
    }
    let job = fetch(wanted, known).await?;
    let (task, job_name) = choose(&job, wanted)?;
    let mut task = task.clone();
    for (name, value) in known.settings.environment.iter().chain(&known.settings.user_data) {
        task.environment.entry(name.clone()).or_insert_with(|| value.clone());
    }
    task.outputs.extend(known.settings.outputs.iter().cloned());
    check(&job, &task.name)?;

    let job_id = job_id(wanted, &story)?;
    // What is there of another task is not how this one ended.
    boot.teller.change(|story| (story.job_id, story.outcome) = (Some(job_id.to_string()), None))?;
    known.node.prepare()?;
    check_space(&known.node.scratch)?;
    tracing::info!(job = %job_id, task = task.name, instance = wanted.instance, "running the task of {job_name:?}");
    let (teller, began) = (Arc::clone(&boot.teller), boot.began);
    let on_start = OnStart::call(move || {
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        teller.note(|story| story.program_started_ms = story.program_started_ms.or(Some(elapsed_ms)));
    });
    let context = context(known, boot, job_id.clone(), on_start);
    let (left, stores) = (LeftBehind::find(&known.node), Arc::clone(&known.stores));
    tokio::spawn(async move { left.give_up(&stores).await });
    let outcome = instance::run(&context, &task, wanted.instance, boot.stop.clone()).await;
    let summary = outcome.summary();
    boot.teller.change(|story| story.outcome = serde_json::to_value(&outcome).ok())?;
    instance::forget(&known.node, &job_id, &task.name, wanted.instance);
    Ok(Came::To(Some(outcome), Some(summary)))
}

/// Takes away what is reserved no longer, and whatever an agent other than this node's has left.
async fn end_reservations(known: &Known, boot: &Boot) -> Result<(), Failure> {
    known.node.prepare()?;
    let mounter = Mounter::new(mounts::serve_settings(&known.settings, &known.node, &boot.fuse_oss));
    sweep(&known.node, &mounter, &MountPoints::new(Path::new(crate::node::Node::STATE))).await?;
    Ok(())
}

/// How it ended, if it has: in this boot or in one before. Another job, or another instance, is another task.
fn has_ended(story: &Story, wanted: &NodeTask) -> Option<InstanceOutcome> {
    let outcome: InstanceOutcome = serde_json::from_value(story.outcome.clone()?).ok()?;
    let is_the_same = wanted.job_id.is_none() || wanted.job_id == story.job_id;
    let is_the_instance =
        outcome.instance == wanted.instance && wanted.task.as_ref().is_none_or(|task| *task == outcome.task);
    (is_the_same && is_the_instance).then_some(outcome)
}

fn job_id(wanted: &NodeTask, story: &Story) -> Result<JobId, Failure> {
    match wanted.job_id.as_ref().or(story.job_id.as_ref()) {
        Some(id) => id
            .parse()
            .map_err(|error| Failure::new(Cause::User, exit::BAD_SETTINGS, format!("task.job_id {id:?} {error}"))),
        None => Ok(JobId::generate()),
    }
}

async fn fetch(wanted: &NodeTask, known: &Known) -> Result<JobDescription, Failure> {
    let bad = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(Cause::User, exit::BAD_DATA, format!("{what}: {error}"))
    };
    let (bytes, format, what) = description(&wanted.source, "job", known).await?;
    let app = match &wanted.app {
        Some(source) => Some(description(source, "App", known).await?.0),
        None => None,
    };
    let (job, warnings) =
        job::read_with_app(&bytes, format, app.as_deref()).map_err(|problems| bad(&what, &problems))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(job)
}

/// What a description says, the format its name tells, and what to call it.
async fn description(source: &TaskSource, kind: &str, known: &Known) -> Result<(Vec<u8>, Format, String), Failure> {
    match source {
        TaskSource::Inline(text) => {
            Ok((text.clone().into_bytes(), Format::Detect, format!("the {kind} description in the settings")))
        }
        TaskSource::File(path) => {
            let what = format!("{kind} description {}", path.display());
            let missing =
                |error| Failure::new(Cause::User, exit::INPUT_MISSING, format!("cannot read the {what}: {error}"));
            Ok((job::contents(path).map_err(missing)?, Format::of(path), what))
        }
        TaskSource::Object(location) => {
            let what = format!("{kind} description {}", location.escaped());
            let bytes = download(known, location, &what).await?;
            Ok((bytes, Format::of(Path::new(location.key().base_name())), what))
        }
    }
}

async fn download(known: &Known, location: &Location, what: &str) -> Result<Vec<u8>, Failure> {
    let failed = |error: &oss::Error| Failure::reading(what, error);
    let store = known.stores.open(location).map_err(|error| failed(&error))?;
    let meta = store.head(location.key()).await.map_err(|error| failed(&error))?;
    if meta.size > job::MAX_BYTES {
        let message = format!("{what}: it has {} bytes and at most {} are read", meta.size, job::MAX_BYTES);
        return Err(Failure::new(Cause::User, exit::BAD_DATA, message));
    }
    let whole = store.get(location.key(), GetOptions::default()).await.map_err(|error| failed(&error))?;
    let bytes = whole.bytes().await.map_err(|error| failed(&error))?;
    Ok(bytes.to_vec())
}

fn choose<'a>(job: &'a JobDescription, wanted: &NodeTask) -> Result<(&'a job::Task, &'a str), Failure> {
    let bad = |text: String| Failure::new(Cause::User, exit::BAD_SETTINGS, text);
    let names = || job.tasks.iter().map(|task| task.name.as_str()).collect::<Vec<_>>().join(", ");
    let task = match (&wanted.task, &job.tasks[..]) {
        (Some(name), _) => {
            job.task(name).ok_or_else(|| bad(format!("task.task: the job has no task {name:?}; it has {}", names())))?
        }
        (None, [only]) => only,
        (None, _) => {
            return Err(bad(format!(
                "the job has several tasks ({}); say in task.task which one this node runs",
                names()
            )));
        }
    };
    if wanted.instance >= task.instances {
        return Err(bad(format!(
            "task.instance: task {:?} has {} instances, numbered from 0; there is no instance {}",
            task.name, task.instances, wanted.instance
        )));
    }
    Ok((task, &job.name))
}

fn check(job: &JobDescription, name: &str) -> Result<(), Failure> {
    let report = job::check::Report::new(job, &[], ABILITIES);
    let missing =
        report.tasks.into_iter().filter(|task| task.name == name).find_map(|task| task.missing.into_iter().next());
    match missing {
        None => Ok(()),
        Some(missing) => Err(Failure::new(
            Cause::User,
            exit::BAD_DATA,
            format!("task {name:?} needs {}: {}", missing.needs, missing.remedy),
        )),
    }
}

/// A task that cannot even write its log is not started.
fn check_space(scratch: &Path) -> Result<(), Failure> {
    let stat = nix::sys::statvfs::statvfs(scratch)
        .map_err(|errno| Failure::platform(format!("cannot look at {}: {}", scratch.display(), errno.desc())))?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < LEAST_SPACE {
        return Err(Failure::new(
            Cause::DiskFull,
            exit::OS,
            format!(
                "the scratch disk at {} has {} MiB left and {} are the least to start a task with; give the node a larger data disk, \
                 or name another with scratch: in the settings",
                scratch.display(),
                free >> 20,
                LEAST_SPACE >> 20
            ),
        ));
    }
    Ok(())
}

/// What containers get of the node: its engine, its logins, and the places at which it has mounted something.
fn containers(known: &Known) -> Containers {
    let settings = &known.settings;
    let volumes = settings.disks.request.get("volumes").and_then(serde_json::Value::as_array).into_iter().flatten();
    let volumes = volumes.filter_map(|volume| volume["mount"].as_str()).map(PathBuf::from);
    Containers {
        socket: settings.containers.socket.clone(),
        logins: settings.containers.logins.clone(),
        pull_deadline: settings.containers.pull_deadline.unwrap_or(Containers::PULL_DEADLINE),
        node_mounts: volumes.chain(settings.mounts.iter().map(|mount| mount.target.clone())).collect(),
    }
}

fn context(known: &Known, boot: &Boot, job: JobId, on_start: OnStart) -> Context {
    let identity = &known.identity;
    Context {
        node: known.node.clone(),
        job,
        stores: Arc::clone(&known.stores),
        budget: TransferBudget::default(),
        mounter: Mounter::new(mounts::serve_settings(&known.settings, &known.node, &boot.fuse_oss)),
        network: NetworkMounter::new(boot.programs.clone(), NETWORK_DEADLINE),
        containers: containers(known),
        mount_points: MountPoints::new(Path::new(crate::node::Node::STATE)),
        console: boot.console.clone(),
        of_the_node: true,
        events: boot.teller.events().clone(),
        metrics: known.metrics.clone(),
        timeline: super::news::timeline(boot),
        on_start,
        early: known.settings.early_upload,
        grace: GRACE,
        faults: instance::retry::FAULTS,
        reserve: known.settings.task.as_ref().map_or(instance::reserve::LIMIT, |task| task.reserve),
        place: Place {
            region: identity.region.clone(),
            cluster: identity.cluster.clone(),
            worker: identity.instance_id.clone(),
            path: std::env::var("PATH").ok(),
        },
    }
}

/// Sends the node's own story: events and outcome.
pub async fn report(known: &Known, boot: &Boot, outcome: Option<&InstanceOutcome>) -> Result<Came<()>, Failure> {
    let Some(directory) = &known.settings.report.directory else { return Ok(Came::ToNothing(())) };
    boot.teller.event(crate::events::Event {
        event: "NodeDone",
        subject: Phase::Report.name(),
        elapsed_ms: None,
        message: outcome.map(InstanceOutcome::summary).as_deref(),
    });
    let name = known.name();
    let story = serde_json::to_vec_pretty(&boot.teller.story()).map_err(Failure::platform)?;
    let target = directory.join(&format!("node.{name}.json"));
    let what = format!("report {}", target.escaped());
    let store = known.stores.open(&target).map_err(|error| Failure::writing(&what, &error))?;
    store.put(target.key(), story.into(), PutMode::Overwrite).await.map_err(|error| Failure::writing(&what, &error))?;
    Ok(Came::To((), Some(directory.escaped())))
}
