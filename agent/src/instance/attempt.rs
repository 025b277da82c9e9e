//! One attempt of an instance, from nothing to nothing.
//!
//! [`run`] reads top to bottom as what happens: a workspace is made, package and inputs are got, the program runs under
//! its shim while its logs are followed, and when it has ended, for whatever reason, everything it left is brought
//! home and every trace removed.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuse_oss::Charset;
use jiff::Timestamp;
use oss::transfer::DownloadOptions;
use oss::{Location, PutMode};
use serde::Serialize;

use super::follow::{Follower, open_log};
use super::outputs::{self, Arrived, Delivery, Source};
use super::record::{Record, Sources};
use super::stop::{StopSignal, Urgency};
use super::view::{self, InputView, Kind, NetworkView, ThisHost};
use super::workspace::{Workspace, clean_up};
use super::{Context, package};
use crate::disk::DiskWatch;
use crate::durable::FileError;
use crate::exit;
use crate::job::names::Attempt;
use crate::job::{Output, Task, environment};
use crate::network;
use crate::outcome::{Cause, Failure, InstanceOutcome, State, Uploaded, exit_status};
use crate::shim::{ExitRecord, ProcessId, Shim, Spec, Stopped};

/// The working directory, as every task knows it.
const WORKDIR: &str = "/batchcompute/workdir";

/// What an attempt comes to.
#[derive(Default)]
struct Course {
    exit: Option<ExitRecord>,
    failures: Vec<Failure>,
    delivery: Delivery,
    disk_was_full: bool,
    stdout: Option<Location>,
    stderr: Option<Location>,
}

/// Runs one attempt. `may_retry` says that a failure will be followed by another attempt, whose outputs are then the ones
/// that count.
///
/// `begun` is what another agent has written down of this very attempt, before it was killed: then the program that it has started,
/// which may have ended meanwhile, is gone on with.
pub(super) async fn run(
    context: &Context,
    task: &Task,
    attempt: Attempt<'_>,
    may_retry: bool,
    begun: Option<Record>,
    stop: StopSignal,
) -> InstanceOutcome {
    let mut course = Course::default();
    match open(context, attempt, begun).await {
        Err(error) => course.failures.push(Failure::platform(error)),
        Ok(mut workspace) => {
            live(context, task, attempt, may_retry, stop.clone(), &mut workspace, &mut course).await;
            let cleaned = clean_up(&workspace.record, &context.node, &context.mounter, &context.mount_points).await;
            if let Err(error) = cleaned {
                tracing::error!(
                    task = name(attempt),
                    error,
                    "not everything could be removed; the next run tries again"
                );
            }
        }
    }
    outcome(attempt, course, stop.is_asked())
}

/// The workspace of the attempt: a new one, or that of an agent before this one.
async fn open(context: &Context, attempt: Attempt<'_>, begun: Option<Record>) -> Result<Workspace, String> {
    let text = |error: FileError| error.to_string();
    if let Some(record) = begun {
        match Workspace::resume(record, &context.node).map_err(text)? {
            Ok(workspace) => return Ok(workspace),
            // Its program had not been started.
            Err(record) => clean_up(&record, &context.node, &context.mounter, &context.mount_points).await?,
        }
    }
    Workspace::create(&attempt.to_string(), &context.node, context.of_the_node).map_err(text)
}

fn name(attempt: Attempt<'_>) -> String {
    format!("{}.{}", attempt.task, attempt.instance)
}

/// Everything between the making and the removing of the workspace.
async fn live(
    context: &Context,
    task: &Task,
    attempt: Attempt<'_>,
    may_retry: bool,
    stop: StopSignal,
    workspace: &mut Workspace,
    course: &mut Course,
) {
    let logs = match Logs::start(context, task, attempt, workspace) {
        Ok(logs) => logs,
        Err(failure) => return course.failures.push(failure),
    };
    (course.stdout, course.stderr) = (Some(logs.stdout.target().clone()), Some(logs.stderr.target().clone()));
    let watch = DiskWatch::start(&workspace.record.scratch);
    let ran = prepare_and_run(context, task, attempt, stop, workspace).await;
    course.disk_was_full = watch.was_full();
    match ran {
        Ok(Ran { exit, sources }) => {
            let started = exit.start_failure.is_none();
            let failed = exit.exit_code != Some(0);
            if let Some(failure) = &exit.start_failure {
                logs.explain(&failure.message);
            }
            course.exit = Some(exit);
            if started && !(failed && may_retry) {
                let label = format!("{} outputs", name(attempt));
                let (stores, budget) = (&context.stores, &context.budget);
                course.delivery = outputs::deliver(&sources.outputs, stores, budget, &context.console, &label).await;
            }
            if started {
                let (found, absent): (Vec<_>, Vec<_>) =
                    sources.logs.into_iter().partition(|source| source.path.symlink_metadata().is_ok());
                for source in absent {
                    let log = source.output.source.display();
                    tracing::warn!(
                        task = name(attempt),
                        "log file {log} was never written; nothing is uploaded for it"
                    );
                }
                let label = format!("{} logs", name(attempt));
                let sent = outputs::deliver(&found, &context.stores, &context.budget, &context.console, &label).await;
                course.failures.extend(sent.failed);
            }
        }
        Err(failure) => {
            logs.explain(&failure.message);
            course.failures.push(failure);
        }
    }
    for skipped in &course.delivery.skipped {
        tracing::warn!(task = name(attempt), "output not uploaded: {skipped}");
    }
    let directory = logs.stdout.target().clone();
    course.failures.extend(logs.finish().await);
    if course.exit.is_some() {
        course.failures.extend(send_manifest(context, attempt, &directory, &course.delivery).await.err());
    }
}

/// What came of the program, and where the host finds what it left.
struct Ran {
    exit: ExitRecord,
    sources: Sources,
}

async fn prepare_and_run(
    context: &Context,
    task: &Task,
    attempt: Attempt<'_>,
    stop: StopSignal,
    workspace: &mut Workspace,
) -> Result<Ran, Failure> {
    let (shim, sources) = match workspace.record.sources.clone() {
        Some(sources) => (find(context, attempt, workspace)?, sources),
        None => start(context, task, attempt, stop.clone(), workspace).await?,
    };
    let exit = wait(shim, attempt, stop).await?;
    Ok(Ran { exit, sources })
}

/// The shim that another agent has started.
fn find(context: &Context, attempt: Attempt<'_>, workspace: &Workspace) -> Result<Shim, Failure> {
    tracing::info!(task = name(attempt), "going on with what an agent before this one has started");
    let nobody = ProcessId { pid: 0, start_ticks: 0, boot_id: String::new() };
    let id = workspace.record.shim.clone().unwrap_or(nobody);
    Shim::find(id, workspace.record.exit_record(&context.node)).map_err(Failure::platform)
}

/// Makes everything ready and starts the program.
async fn start(
    context: &Context,
    task: &Task,
    attempt: Attempt<'_>,
    stop: StopSignal,
    workspace: &mut Workspace,
) -> Result<(Shim, Sources), Failure> {
    let label = name(attempt);
    let mut network = context.network.start(task, &workspace.record.network())?;
    let objects = async {
        if let Some(package) = &task.package {
            tracing::info!(task = label, package = package.escaped(), "fetching the package");
            fetch_package(context, package, workspace).await?;
        }
        if !task.inputs.is_empty() {
            tracing::info!(task = label, inputs = task.inputs.len(), "mounting inputs");
        }
        context.mounter.mount(task, &workspace.record.inputs(), input_stores(context, task)).await
    };
    let mut asked = stop;
    let ready = tokio::select! {
        biased;
        _ = asked.beyond(Urgency::None) => {
            Err(Failure::new(Cause::Cancelled, exit::OS, "stopped before the program was started"))
        }
        ready = async { tokio::try_join!(objects, network.finished()) } => ready,
    };
    let (inputs, networks) = match ready {
        Ok(ready) => ready,
        Err(failure) => {
            // None may come up in a directory that is being removed.
            network.abandon().await;
            return Err(failure);
        }
    };
    check_targets(task).await?;
    // It waits for a lock that other agents may hold, and writes files.
    let (spec, sources) = tokio::task::block_in_place(|| {
        let plan = |made| plan(context, task, attempt, workspace, (&inputs, &networks), &ThisHost { made });
        context.mount_points.acquire(&workspace.record.id, plan)
    })?;
    // Whoever comes after us finds a program that may have been started, and what it leaves.
    workspace.record.sources = Some(sources.clone());
    workspace.record.save(&context.node).map_err(Failure::platform)?;

    tracing::info!(task = label, "starting {}", shown(&task.command));
    let shim = Shim::start(&workspace.shim_spec(), &spec)
        .await
        .map_err(|error| Failure::new(Cause::Mount, exit::OS, format!("the task's view cannot be built: {error}")))?;
    let _ = context.program_started.set(std::time::Instant::now());
    workspace.record.shim = Some(shim.id().clone());
    workspace.record.save(&context.node).map_err(Failure::platform)?;
    Ok((shim, sources))
}

/// Makes sure that the host answers where the task's mappings go. Planning them looks there while all agents of the machine wait.
async fn check_targets(task: &Task) -> Result<(), Failure> {
    let targets: Vec<&Path> = std::iter::once(Path::new(WORKDIR))
        .chain(task.inputs.iter().map(|input| &*input.target))
        .chain(task.network_mounts.iter().map(|mount| &*mount.target))
        .chain(task.outputs.iter().map(|output| &*output.source))
        .chain(task.logs.iter().map(|log| &*log.source))
        .collect();
    let Some(stuck) = network::find_stuck(&targets).await else { return Ok(()) };
    let mapped = targets.into_iter().find(|target| target.starts_with(&stuck)).unwrap_or(&stuck);
    let (mapped, stuck) = (mapped.display(), stuck.display());
    Err(Failure::new(
        Cause::Mount,
        exit::OS,
        format!(
            "{mapped} cannot be mapped: what this machine has mounted at {stuck} does not answer; unmount that (umount -l {stuck}), or \
             map to another path"
        ),
    ))
}

/// Waits for the end of the program, or asks for it.
async fn wait(mut shim: Shim, attempt: Attempt<'_>, mut stop: StopSignal) -> Result<ExitRecord, Failure> {
    let label = name(attempt);
    let mut urgency = Urgency::None;
    let exit = loop {
        tokio::select! {
            ended = shim.ended() => break ended.map_err(Failure::platform)?,
            asked = stop.beyond(urgency) => {
                tracing::info!(task = label, "stopping the program");
                urgency = asked;
                shim.stop(asked.mode());
            }
        }
    };
    tracing::info!(task = label, elapsed_ms = exit.elapsed_ms, "the program has ended: {}", ending(&exit));
    if exit.left_behind > 0 {
        tracing::warn!(task = label, "{} processes it had left running were killed", exit.left_behind);
    }
    Ok(exit)
}

async fn fetch_package(context: &Context, location: &Location, workspace: &Workspace) -> Result<(), Failure> {
    let what = format!("package {}", location.escaped());
    let store = context.stores.open(location).map_err(|error| Failure::reading(&what, &error))?;
    let path = workspace.package();
    oss::transfer::download(&store, location.key(), &path, &DownloadOptions::default(), &context.budget)
        .await
        .map_err(|error| Failure::reading(&what, &error))?;
    let (base, workdir) = (location.key().base_name().to_owned(), workspace.workdir());
    let install = move || -> Result<(), package::PackageError> {
        let failed = |source| package::PackageError::Write { path: path.clone(), source };
        let mut file = std::fs::File::open(&path).map_err(failed)?;
        package::install(&mut file, &base, &workdir)?;
        drop(file);
        std::fs::remove_file(&path).map_err(failed)
    };
    let installed = tokio::task::spawn_blocking(install).await.map_err(Failure::platform)?;
    installed.map_err(|error| {
        let (cause, exit_status) = match &error {
            package::PackageError::Write { source, .. } if source.raw_os_error() == Some(libc::ENOSPC) => {
                (Cause::DiskFull, exit::OS)
            }
            package::PackageError::NoSpace { .. } => (Cause::DiskFull, exit::OS),
            package::PackageError::Write { .. } => (Cause::Platform, exit::OS),
            _ => (Cause::User, exit::BAD_DATA),
        };
        Failure::new(cause, exit_status, format!("{what}: {error}"))
    })
}

/// The job may bring credentials of its own for what it reads.
fn input_stores(context: &Context, task: &Task) -> oss::Settings {
    let mut settings = context.stores.settings().clone();
    if let Some(own) = &task.input_store {
        settings.oss.credentials = own.credentials.clone();
    }
    settings
}

/// What the shim is to do and where its results will be found; then what has to be made on the host first.
type Planned = ((Spec, Sources), Vec<(PathBuf, Kind)>);

/// Plans the task's view and makes what it needs on the scratch disk.
fn plan(
    context: &Context,
    task: &Task,
    attempt: Attempt<'_>,
    workspace: &Workspace,
    (inputs, networks): (&[InputView], &[NetworkView]),
    host: &ThisHost,
) -> Result<Planned, Failure> {
    let kind = |output: &Output| if output.is_directory() { Kind::Directory } else { Kind::File };
    let logs: Vec<Output> = task
        .logs
        .iter()
        .map(|log| Output {
            source: log.source.clone(),
            target: attempt.log(log),
            // Of one file whose name is given.
            locale: Charset::UTF_8,
        })
        .collect();
    let mut wanted: Vec<_> = task.outputs.iter().map(|output| (output.source.clone(), kind(output))).collect();
    wanted.extend(logs.iter().map(|log| (log.source.clone(), Kind::File)));
    let (scratch, workdir) = (workspace.views(), workspace.workdir());
    let request = view::Request {
        scratch: &scratch,
        workdir: (&workdir, Path::new(WORKDIR)),
        inputs,
        networks,
        outputs: &wanted,
    };
    let view =
        view::plan(&request, host).map_err(|error| Failure::new(Cause::User, exit::BAD_DATA, error.to_string()))?;
    for directory in &view.directories {
        std::fs::create_dir(directory)
            .map_err(|error| Failure::platform(format!("cannot make {}: {error}", directory.display())))?;
    }
    let source = |(output, path): (Output, PathBuf)| {
        let networks = task.network_mounts.iter().map(|mount| &mount.target);
        let shown = task.inputs.iter().map(|input| &input.target).chain(networks);
        let inside = shown.filter_map(|target| target.strip_prefix(&output.source).ok());
        let without = inside.filter(|inside| !inside.as_os_str().is_empty()).map(Path::to_owned).collect();
        Source { output, path, without }
    };
    let mut found = view.outputs.into_iter();
    let sources = Sources {
        outputs: task.outputs.iter().cloned().zip(found.by_ref()).map(source).collect(),
        logs: logs.into_iter().zip(found).map(source).collect(),
    };
    let place = &context.place;
    let oss = &context.stores.settings().oss;
    let of_region = || oss.region.as_ref().map(|region| format!("https://oss-{region}.aliyuncs.com"));
    let oss_host = oss.endpoint.clone().or_else(of_region);
    let facts = environment::Facts {
        job: attempt.job,
        task: attempt.task,
        instance: attempt.instance,
        instances: task.instances,
        region: place.region.as_deref(),
        oss_host: oss_host.as_deref(),
        cluster: place.cluster.as_deref(),
        worker: place.worker.as_deref(),
        working_directory: WORKDIR,
        more_path: context.place.path.as_deref(),
        container: false,
    };
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let spec = Spec {
        version: crate::shim::SPEC_VERSION,
        command: task.command.clone(),
        environment: environment::build(&facts, &task.environment),
        workdir: PathBuf::from(WORKDIR),
        stdout: workspace.logs().join("stdout"),
        stderr: workspace.logs().join("stderr"),
        place: crate::shim::Place::Own,
        steps: view.steps,
        hold: workspace.hold(),
        exit_record: workspace.record.exit_record(&context.node),
        timeout_ms: task.timeout.map(millis),
        grace_ms: millis(context.grace),
    };
    Ok(((spec, sources), view.mount_points))
}

/// The command line for people, quoted where it has to be.
fn shown(command: &[String]) -> String {
    shell_words::join(command).escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")
}

/// The two log streams on their way to storage.
struct Logs {
    stdout: Follower,
    stderr: Follower,
    stderr_file: std::fs::File,
}

impl Logs {
    fn start(context: &Context, task: &Task, attempt: Attempt<'_>, workspace: &Workspace) -> Result<Self, Failure> {
        let begin = |directory: &Option<Location>, object: String, file: &str| {
            // Without a place in storage the logs stay on the node, where `batch-agent run` says.
            let local = || {
                Location::new(
                    oss::Scheme::File,
                    "",
                    format!("{}/", local_logs(context).display()).trim_start_matches('/'),
                )
            };
            let directory = match directory {
                Some(directory) => directory.clone(),
                None => local().map_err(Failure::platform)?,
            };
            let target = directory.join(&object);
            let store = context
                .stores
                .open(&target)
                .map_err(|error| Failure::writing(&format!("log {}", target.escaped()), &error))?;
            let path = workspace.logs().join(file);
            let opened = open_log(&path)
                .map_err(|error| Failure::platform(format!("cannot make {}: {error}", path.display())))?;
            Ok::<_, Failure>((Follower::start(path, store, target), opened))
        };
        let (stdout, _) = begin(&task.stdout, attempt.stdout(), "stdout")?;
        let (stderr, stderr_file) = begin(&task.stderr, attempt.stderr(), "stderr")?;
        Ok(Self { stdout, stderr, stderr_file })
    }

    /// For a program that never ran, its stderr says why, to whoever looks only there.
    fn explain(&self, message: &str) {
        let line = format!("batch-agent: {message}\n");
        if let Err(error) = self.stderr_file.write_all_at(line.as_bytes(), 0) {
            tracing::debug!(%error, "the reason could not be written to the task's stderr");
        }
    }

    async fn finish(self) -> Vec<Failure> {
        let (stdout_name, stderr_name) = (self.stdout.target().escaped(), self.stderr.target().escaped());
        let (stdout, stderr) = tokio::join!(self.stdout.finish(), self.stderr.finish());
        [(stdout_name, stdout), (stderr_name, stderr)]
            .into_iter()
            .filter_map(|(name, sent)| sent.err().map(|error| Failure::writing(&format!("log {name}"), &error)))
            .collect()
    }
}

fn local_logs(context: &Context) -> PathBuf {
    context.node.state.join("logs").join(context.job.as_str())
}

/// What an attempt has delivered, as it stands beside its logs.
#[derive(Serialize)]
struct Manifest<'a> {
    version: u32,
    job: &'a str,
    task: &'a str,
    instance: u32,
    attempt: u32,
    files: &'a [Arrived],
    failed: Vec<&'a str>,
}

/// Writes the manifest beside the logs, last, so that whoever finds it finds everything it names.
async fn send_manifest(
    context: &Context,
    attempt: Attempt<'_>,
    beside: &Location,
    delivery: &Delivery,
) -> Result<(), Failure> {
    let key = beside.key().as_str();
    let directory = &key[..key.rfind('/').map_or(0, |slash| slash + 1)];
    let target = beside.with_key(format!("{directory}{}", attempt.manifest()));
    let manifest = Manifest {
        version: 1,
        job: attempt.job,
        task: attempt.task,
        instance: attempt.instance,
        attempt: attempt.number,
        files: &delivery.arrived,
        failed: delivery.failed.iter().map(|failure| failure.message.as_str()).collect(),
    };
    let what = format!("manifest {}", target.escaped());
    let body = serde_json::to_vec_pretty(&manifest).map_err(Failure::platform)?;
    let store = context.stores.open(&target).map_err(|error| Failure::writing(&what, &error))?;
    store
        .put(target.key(), body.into(), PutMode::Overwrite)
        .await
        .map(drop)
        .map_err(|error| Failure::writing(&what, &error))
}

/// How a program ended, in words.
fn ending(exit: &ExitRecord) -> String {
    let base = match (&exit.start_failure, exit.exit_code, exit.signal) {
        (Some(failure), ..) => return failure.message.clone(),
        (None, Some(code), _) => format!("exit code {code}"),
        (None, None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown", nix::sys::signal::Signal::as_str);
            format!("killed by signal {signal} ({name})")
        }
        (None, None, None) => "no status".to_owned(),
    };
    match exit.stopped {
        Some(Stopped::Timeout) => format!("{base}, after its time limit"),
        Some(Stopped::Request) => format!("{base}, after it was asked to stop"),
        None => base,
    }
}

/// Puts together what an attempt came to. The first thing that went wrong is the cause; the program's own status is kept
/// whatever else failed.
fn outcome(attempt: Attempt<'_>, course: Course, cancelled: bool) -> InstanceOutcome {
    let Course { exit, failures, delivery, disk_was_full, stdout, stderr } = course;
    let uploaded: Uploaded = delivery.summary();
    let own = exit.as_ref().and_then(|exit| failure_of(exit, disk_was_full, stderr.as_ref()));
    let own_status = exit.as_ref().and_then(|exit| match &exit.start_failure {
        Some(failure) => u8::try_from(failure.exit_code).ok(),
        None => exit_status(exit.exit_code, exit.signal),
    });
    let mut all: Vec<Failure> = own.into_iter().chain(failures).chain(delivery.failed).collect();
    if disk_was_full {
        // Whatever could not be written while the disk was full is explained by that.
        for failure in all.iter_mut().filter(|failure| failure.cause == Cause::Platform) {
            failure.cause = Cause::DiskFull;
        }
    }
    let first = all.first();
    let exit_status = match (own_status, first) {
        (Some(status), _) if status != 0 => status,
        (_, Some(failure)) => failure.exit_status,
        (Some(status), None) => status,
        (None, None) => exit::INTERNAL,
    };
    let is_cancelled = cancelled && first.is_some_and(|failure| failure.cause == Cause::Cancelled);
    let state = match first {
        None => State::Finished,
        Some(_) if is_cancelled => State::Stopped,
        Some(_) => State::Failed,
    };
    let more = all.len().saturating_sub(1);
    let message = first.map(|failure| match more {
        0 => failure.message.clone(),
        more => format!("{} (and {more} more)", failure.message),
    });
    InstanceOutcome {
        task: attempt.task.to_owned(),
        instance: attempt.instance,
        retries: attempt.number - 1,
        state,
        exit_code: exit.as_ref().and_then(|exit| exit.exit_code.or(exit.start_failure.as_ref().map(|f| f.exit_code))),
        signal: exit.as_ref().and_then(|exit| exit.signal),
        cause: first.map(|failure| failure.cause),
        message,
        started: Timestamp::now(),
        ended: Timestamp::now(),
        elapsed_ms: exit.as_ref().map(|exit| exit.elapsed_ms),
        usage: exit.as_ref().map(|exit| exit.usage),
        stdout: stdout.map(|location| location.to_string()),
        stderr: stderr.map(|location| location.to_string()),
        outputs: uploaded,
        exit_status,
    }
}

/// The program's own failure, if it has one.
fn failure_of(exit: &ExitRecord, disk_was_full: bool, stderr: Option<&Location>) -> Option<Failure> {
    if exit.exit_code == Some(0) && exit.stopped.is_none() {
        return None;
    }
    let status = exit_status(exit.exit_code, exit.signal).unwrap_or(exit::INTERNAL);
    let seen = stderr.map_or(String::new(), |stderr| format!("; its stderr is in {}", stderr.escaped()));
    let words = ending(exit);
    let (cause, message) = match exit.stopped {
        Some(Stopped::Timeout) => {
            (Cause::Timeout, format!("the program ran longer than its time limit and was stopped ({words})"))
        }
        Some(Stopped::Request) => (Cause::Cancelled, format!("the program was stopped ({words})")),
        None if exit.start_failure.is_some() => (Cause::User, words),
        None if disk_was_full => (
            Cause::DiskFull,
            format!(
                "the scratch disk ran full while the program ran ({words}){seen}; give the node a larger data disk"
            ),
        ),
        None => (Cause::User, format!("the program failed: {words}{seen}")),
    };
    Some(Failure::new(cause, status, message))
}
