//! One attempt of an instance, from nothing to nothing.
//!
//! [`run`] reads top to bottom as what happens: a workspace is made, package and inputs are got, the program runs under
//! its shim while its logs are followed, and when it has ended, for whatever reason, everything it left is brought
//! home and every trace removed.

mod logs;
mod plan;
mod result;
mod telemetry;

use std::path::Path;
use std::time::Duration;

use oss::Location;
use oss::transfer::DownloadOptions;

use super::outputs::early::Early;
use super::outputs::{self, UploadBook};
use super::record::{Record, Sources};
use super::retry::{Failed, Next, Tries};
use super::stop::{StopSignal, Urgency};
use super::view::{Host, ThisHost};
use super::workspace::{Workspace, clean_up};
use super::{Context, container, package, reserve};
use crate::account::{Account, AccountError};
use crate::container::{ContainerRecord, with_files_of};
use crate::disk::DiskWatch;
use crate::durable::{self, FileError};
use crate::exit;
use crate::job::Task;
use crate::job::names::Attempt;
use crate::network;
use crate::outcome::{Cause, Failure, InstanceOutcome, State};
use crate::shim::{ExitRecord, ProcessId, Shim, ShimError, Spec};
use logs::{Logs, send_manifest};
use plan::{WORKDIR, plan};
use result::{Course, ending, outcome};
pub(crate) use telemetry::Evidence;
use telemetry::Telemetry;

/// How long giving up what was sent ahead may hold up the end. The next run does the rest.
const GIVING_UP: Duration = Duration::from_secs(120);

/// An attempt that is over. What it has made is still there, and is to be taken away ([`Over::close`]) once it is written down how it
/// ended.
pub(super) struct Over {
    pub(super) outcome: InstanceOutcome,
    /// Whether there will be another one, whose outputs are then the ones that count.
    pub(super) next: Next,
    pub(super) evidence: Evidence,
    /// What it has made, unless that stays for a person to look into.
    remains: Option<Workspace>,
}

/// Runs one attempt. `tries` are those before it.
///
/// `begun` is what another agent has written down of this very attempt, before it was killed: then the program that it has started,
/// which may have ended meanwhile, is gone on with.
pub(super) async fn run(
    context: &Context,
    task: &Task,
    attempt: Attempt<'_>,
    tries: Tries,
    begun: Option<Record>,
    stop: StopSignal,
) -> Over {
    let mut course = Course::default();
    let mut opened = open(context, attempt, begun).await;
    match &mut opened {
        Err(error) => course.failures.push(Failure::platform(error)),
        Ok(workspace) => {
            let goes_on = |failed| goes_on(context, task, tries, failed, &stop);
            live(context, task, attempt, goes_on, stop.clone(), workspace, &mut course).await;
        }
    }
    let program_ran = course.program_ran();
    let evidence = std::mem::take(&mut course.evidence);
    let mut outcome = outcome(attempt, course, stop.reason().as_ref());
    outcome.figures.clone_from(&evidence.recorded.program);
    let failed = outcome.cause.filter(|_| outcome.state == State::Failed).map(|cause| Failed {
        cause,
        exit_status: outcome.exit_status,
        program_ran,
    });
    let next = failed.map_or(Next::Over, |failed| goes_on(context, task, tries, failed, &stop));
    let remains = opened.ok().filter(|workspace| {
        // A node that is being taken back is nobody's to look into.
        let is_wanted = program_ran && next == Next::Over && !stop.is_asked() && task.reserve_on_fail;
        !(is_wanted && failed.is_some() && stays(context, workspace.record.clone(), &mut outcome))
    });
    Over { outcome, next, evidence, remains }
}

impl Over {
    /// Takes everything away again.
    pub(super) async fn close(&self, context: &Context) {
        if let Some(workspace) = &self.remains {
            take_away(context, &workspace.record).await;
        }
    }
}

/// Takes away what an attempt has made.
pub(super) async fn take_away(context: &Context, record: &Record) {
    if let Err(error) = clean_up(record, &context.node, &context.mounter, &context.mount_points).await {
        tracing::error!(attempt = record.id, error, "not everything could be removed; the next run tries again");
    }
}

/// Keeps what the attempt has made, and says so in its outcome. Says whether it stays.
fn stays(context: &Context, mut record: Record, outcome: &mut InstanceOutcome) -> bool {
    let (words, stays) = match reserve::reserve(context, &mut record) {
        Ok(reserved) => {
            let words = format!("its mounts and directories stay until {:.0}: {}", reserved.until, reserved.enter);
            outcome.reserved = Some(reserved);
            (words, true)
        }
        Err(why) => (format!("it could not be reserved: {why}"), false),
    };
    outcome.message = Some(match outcome.message.take() {
        Some(message) => format!("{message}; {words}"),
        None => words,
    });
    stays
}

/// What comes after an attempt that failed this way.
fn goes_on(context: &Context, task: &Task, tries: Tries, failed: Failed, stop: &StopSignal) -> Next {
    if stop.is_asked() { Next::Over } else { tries.after(task, failed, context.faults) }
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
    let id = attempt.to_string();
    // It is run anew: what was kept of the last time gives way.
    let kept = Record::all(&context.node).map_err(text)?;
    if let Some(record) = kept.into_iter().find(|record| record.id == id && record.reserved.is_some()) {
        clean_up(&record, &context.node, &context.mounter, &context.mount_points).await?;
    }
    Workspace::create(attempt, &context.node, context.of_the_node).map_err(text)
}

fn name(attempt: Attempt<'_>) -> String {
    format!("{}.{}", attempt.task, attempt.instance)
}

/// Everything between the making and the removing of the workspace.
async fn live(
    context: &Context,
    task: &Task,
    attempt: Attempt<'_>,
    goes_on: impl Fn(Failed) -> Next,
    stop: StopSignal,
    workspace: &mut Workspace,
    course: &mut Course,
) {
    let mut logs = match Logs::start(context, task, attempt, workspace) {
        Ok(logs) => logs,
        Err(failure) => return course.failures.push(failure),
    };
    (course.stdout, course.stderr) = (Some(logs.stdout.target().clone()), Some(logs.stderr.target().clone()));
    let mut telemetry = Telemetry::start(context, attempt, logs.stdout.target(), workspace);
    let watch = DiskWatch::start(&workspace.record.scratch);
    let book = UploadBook::of_attempt(&context.node, &workspace.record.id);
    let was_begun = workspace.record.sources.is_some();
    let ran = prepare_and_run(context, task, attempt, stop, workspace, (&mut logs, &telemetry, &book)).await;
    course.was_lost = was_begun || workspace.record.shim.is_some();
    course.disk_was_full = watch.was_full();
    if let Ok(Ran { exit, .. }) = &ran {
        telemetry.program_ended(exit);
        if exit.start_failure.is_none() {
            course.failures.extend(container::fetch(&workspace.record, exit).await.err());
        }
    }
    let problem = match &ran {
        Ok(Ran { exit, .. }) => exit.start_failure.as_ref().map(|failure| &failure.message),
        Err(failure) => Some(&failure.message),
    };
    if let Some(problem) = problem {
        logs.explain(problem);
    }
    // What there is goes home side by side: a node that is being taken back has no time for one after the other.
    let directory = logs.stdout.target().clone();
    let ((), sent) =
        tokio::join!(bring_home(context, attempt, goes_on, ran, (course, &book, was_begun)), logs.finish());
    course.failures.extend(sent);
    course.evidence = telemetry.finish(workspace).await;
    course.evidence.arrived.clone_from(&course.delivery.arrived);
    if course.exit.is_some() {
        course.failures.extend(send_manifest(context, attempt, &directory, &course.delivery).await.err());
    }
}

/// Uploads what the program has left.
async fn bring_home(
    context: &Context,
    attempt: Attempt<'_>,
    goes_on: impl Fn(Failed) -> Next,
    ran: Result<Ran, Failure>,
    (course, book, was_begun): (&mut Course, &UploadBook, bool),
) {
    deliver(context, attempt, goes_on, ran, (course, book, was_begun)).await;
    // What was sent ahead and is not part of an output, for whatever reason.
    if tokio::time::timeout(GIVING_UP, book.give_up_all(&context.stores)).await.is_err() {
        tracing::warn!(
            task = name(attempt),
            "parts of uploads stay in storage, which does not answer; the next run gives them up"
        );
    }
}

async fn deliver(
    context: &Context,
    attempt: Attempt<'_>,
    goes_on: impl Fn(Failed) -> Next,
    ran: Result<Ran, Failure>,
    (course, book, was_begun): (&mut Course, &UploadBook, bool),
) {
    let Ran { exit, sources } = match ran {
        Ok(ran) => ran,
        Err(failure) => return course.failures.push(failure),
    };
    course.exit = Some(exit);
    if !course.program_ran() {
        return;
    }
    let (stores, budget, console) = (&context.stores, &context.budget, &context.console);
    // Of a program that is going to be run again the last attempt's outputs count.
    if course.own_failure().is_none_or(|own| goes_on(Failed::new(&own, true)) == Next::Over) {
        let label = format!("{} outputs", name(attempt));
        // What an agent before this one has sent is not sent again.
        let present = if was_begun { outputs::Present::Keep } else { outputs::Present::Replace };
        let how = (present, Some(book));
        course.delivery = outputs::deliver(&sources.outputs, how, stores, budget, console, &label).await;
        for skipped in &course.delivery.skipped {
            tracing::warn!(task = name(attempt), "output not uploaded: {skipped}");
        }
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
    (logs, telemetry, book): (&mut Logs, &Telemetry, &UploadBook),
) -> Result<Ran, Failure> {
    let was_begun = workspace.record.sources.is_some();
    let (shim, sources) = match workspace.record.sources.clone() {
        Some(sources) => (find(context, attempt, workspace)?, sources),
        None => start(context, task, attempt, stop.clone(), workspace).await?,
    };
    telemetry.program_started(shim.id(), &workspace.record, was_begun);
    logs.follow_files(context, workspace, &sources.logs);
    let (scratch, settings) = (&workspace.record.scratch, context.stores.settings());
    let early = Early::start(&sources.outputs, scratch, book, settings, context.early);
    let ended = wait(context, shim, attempt, stop, workspace).await;
    if let Some(early) = early {
        early.stop().await;
    }
    let exit = ended?;
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
    container::begin(context, task, workspace).await?;
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
        ready = async { tokio::try_join!(objects, network.finished(), container::image(context, task, workspace)) } => ready,
    };
    let (inputs, networks, image) = match ready {
        Ok(ready) => ready,
        Err(failure) => {
            // None may come up in a directory that is being removed.
            network.abandon().await;
            return Err(failure);
        }
    };
    let account = account(task)?;
    let (views, account) = ((&inputs[..], &networks[..]), account.as_ref());
    let (spec, sources) = match (&image, workspace.record.container.clone()) {
        (Some(image), Some(record)) => {
            let node_mounts = context.containers.mounts_that_are_there();
            answering(&node_mounts.iter().map(|mount| &**mount).collect::<Vec<_>>()).await?;
            tokio::task::block_in_place(|| {
                let plan =
                    |host: &dyn Host| plan(context, task, attempt, workspace, views, account, (host, Some(image)));
                let planned = with_files_of(&record, image, &node_mounts, plan)?;
                workspace.record.container = Some(ContainerRecord { fetched: planned.fetched, ..record });
                let made = planned.mount_points;
                context
                    .mount_points
                    .acquire(&workspace.record.id, |_| Ok::<_, FileError>(((), made)))
                    .map_err(Failure::platform)?;
                Ok::<_, Failure>((planned.spec, planned.sources))
            })?
        }
        _ => {
            check_targets(task).await?;
            // It waits for a lock that other agents may hold, and writes files.
            tokio::task::block_in_place(|| {
                let plan = |made| {
                    let host = ThisHost { made };
                    let planned = plan(context, task, attempt, workspace, views, account, (&host, None))?;
                    Ok::<_, Failure>(((planned.spec, planned.sources), planned.mount_points))
                };
                context.mount_points.acquire(&workspace.record.id, plan)
            })?
        }
    };
    // Whoever comes after us finds a program that may have been started, and what it leaves.
    workspace.record.sources = Some(sources.clone());
    workspace.record.save(&context.node).map_err(Failure::platform)?;

    tracing::info!(task = label, "starting {}", shown(&task.command));
    let shim = Shim::start(&workspace.shim_spec(), &spec)
        .await
        .map_err(|error| Failure::new(Cause::Mount, exit::OS, format!("the task's view cannot be built: {error}")))?;
    context.on_start.tell();
    workspace.record.shim = Some(shim.id().clone());
    workspace.record.save(&context.node).map_err(Failure::platform)?;
    Ok((shim, sources))
}

/// Who the program runs as, if not as root.
fn account(task: &Task) -> Result<Option<Account>, Failure> {
    let Some(user) = &task.user else { return Ok(None) };
    let bad = |error: AccountError| Failure::new(Cause::User, exit::BAD_DATA, format!("user {user}: {error}"));
    Account::find(user).map(Some).map_err(bad)
}

/// Makes sure that the host answers where the task's mappings go. Planning them looks there while all agents of the machine wait.
async fn check_targets(task: &Task) -> Result<(), Failure> {
    let targets: Vec<&Path> = std::iter::once(Path::new(WORKDIR))
        .chain(task.inputs.iter().map(|input| &*input.target))
        .chain(task.network_mounts.iter().map(|mount| &*mount.target))
        .chain(task.outputs.iter().map(|output| &*output.source))
        .chain(task.logs.iter().map(|log| &*log.source))
        .collect();
    answering(&targets).await
}

/// Makes sure that what this machine has mounted on the way to these paths answers.
async fn answering(targets: &[&Path]) -> Result<(), Failure> {
    let Some(stuck) = network::find_stuck(targets).await else { return Ok(()) };
    let mapped = targets.iter().copied().find(|target| target.starts_with(&stuck)).unwrap_or(&stuck);
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

/// How often a shim that was killed is replaced.
const REPLACEMENTS: u32 = 5;

/// Waits for the end of the program, or asks for it. A program in a container does not need its shim: another one goes on in its place.
async fn wait(
    context: &Context,
    mut shim: Shim,
    attempt: Attempt<'_>,
    mut stop: StopSignal,
    workspace: &mut Workspace,
) -> Result<ExitRecord, Failure> {
    let label = name(attempt);
    let mut urgency = Urgency::None;
    let mut replacements = 0;
    let exit = loop {
        tokio::select! {
            ended = shim.ended() => match ended {
                Err(ShimError::Lost(how)) if workspace.record.container.is_some() && replacements < REPLACEMENTS => {
                    tracing::warn!(task = label, "its shim was lost ({how}); another one goes on with the container");
                    replacements += 1;
                    shim = replace(context, workspace).await?;
                    if urgency > Urgency::None {
                        shim.stop(urgency.mode());
                    }
                }
                ended => break ended.map_err(Failure::platform)?,
            },
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
    if exit.outlived_grace > 0 {
        let killed = exit.outlived_grace;
        let left = if exit.stuck == 0 { "; none is left" } else { "" };
        tracing::warn!(task = label, "{killed} of its processes had to be killed{left}");
    }
    if exit.stuck > 0 {
        tracing::error!(task = label, "{} processes of it cannot be killed: they hang in the kernel", exit.stuck);
    }
    for note in &exit.notes {
        tracing::warn!(task = label, "{note}");
    }
    Ok(exit)
}

/// Starts another shim for a container whose shim was lost. It may be killed as well before it has said anything.
async fn replace(context: &Context, workspace: &mut Workspace) -> Result<Shim, Failure> {
    let file = workspace.shim_spec();
    let spec: Option<Spec> = durable::read_json(&file).map_err(Failure::platform)?;
    let spec = spec.ok_or_else(|| Failure::platform(format!("{} is gone", file.display())))?;
    let spec = Spec { takes_over: true, ..spec };
    let mut tries = 0;
    let shim = loop {
        match Shim::start(&file, &spec).await {
            Err(ShimError::Start(_)) if tries < REPLACEMENTS => tries += 1,
            started => break started.map_err(Failure::platform)?,
        }
    };
    workspace.record.shim = Some(shim.id().clone());
    workspace.record.save(&context.node).map_err(Failure::platform)?;
    Ok(shim)
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

/// The command line for people, quoted where it has to be.
fn shown(command: &[String]) -> String {
    shell_words::join(command).escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")
}
