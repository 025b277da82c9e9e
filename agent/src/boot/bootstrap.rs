//! The start-up script: run once per boot, when everything is mounted.
//!
//! It runs on the machine itself, not in a view of its own: it is there to mount more things and to start daemons, and those go on
//! after it. Like a task it runs under a shim, so that an agent that is killed meanwhile is followed by one that goes on waiting
//! for it instead of running it twice.

use std::path::PathBuf;
use std::time::Duration;

use super::phase::Came;
use super::story::BootstrapRun;
use super::{Boot, Known};
use crate::durable;
use crate::exit;
use crate::instance::{Followed, Follower, Origin, open_log};
use crate::job::environment;
use crate::outcome::{Cause, Failure};
use crate::settings::Bootstrap;
use crate::shim::{ExitRecord, Place, ProcessId, Shim, Spec, Stopped, find_by_spec};

/// How long it may take to end after SIGTERM, when its time is up.
const GRACE: Duration = Duration::from_secs(10);

/// How many of its last bytes a failure shows.
const SHOWN: usize = 2000;

/// Where it is kept: below the state directory, so that what it said outlives the boot.
struct Files {
    spec: PathBuf,
    log: PathBuf,
    exit: PathBuf,
}

/// Runs it, or goes on waiting for one that an agent before this one has started.
pub async fn run(known: &Known, boot: &Boot) -> Result<Came<()>, Failure> {
    let Some(bootstrap) = &known.settings.bootstrap else { return Ok(Came::ToNothing(())) };
    let directory = known.node.state.join("bootstrap");
    durable::private_directory(&directory)?;
    let files =
        Files { spec: directory.join("spec.json"), log: directory.join("log"), exit: directory.join("exit.json") };
    let story = boot.teller.story();
    let begun = story.bootstrap.clone();
    // It ran in this boot already and has ended. Whoever waited for it may have had no time to send what it printed.
    if let Some(run) = &begun
        && story.steps.iter().any(|step| step.phase == super::phase::Phase::Bootstrap && step.begun > 1)
        && let Some(record) = durable::read_json::<ExitRecord>(&files.exit)?
    {
        if !run.is_sent {
            send(follow(bootstrap, known, &files)?, boot, &files).await;
        }
        return judge(&record, bootstrap, &files);
    }
    let mut shim = match begun {
        Some(run) => go_on(run, &files)?,
        None => start(bootstrap, known, boot, &files).await?,
    };
    let follower = follow(bootstrap, known, &files)?;
    let ended = shim.ended().await.map_err(Failure::platform);
    send(follower, boot, &files).await;
    judge(&ended?, bootstrap, &files)
}

fn go_on(run: BootstrapRun, files: &Files) -> Result<Shim, Failure> {
    tracing::info!("waiting for the start-up script that an agent before this one has started");
    let nobody = ProcessId { pid: 0, start_ticks: 0, boot_id: String::new() };
    let id = find_by_spec(&files.spec).into_iter().next().or(run.shim).unwrap_or(nobody);
    Shim::find(id, files.exit.clone()).map_err(Failure::platform)
}

async fn start(bootstrap: &Bootstrap, known: &Known, boot: &Boot, files: &Files) -> Result<Shim, Failure> {
    durable::remove(&files.exit)?;
    durable::remove(&files.log)?;
    open_log(&files.log).map_err(|error| Failure::platform(format!("cannot make {}: {error}", files.log.display())))?;
    let identity = &known.identity;
    let oss_host = known.oss_host();
    let own = environment::Machine {
        region: identity.region.as_deref(),
        oss_host: oss_host.as_deref(),
        cluster: identity.cluster.as_deref(),
        worker: identity.instance_id.as_deref(),
        working_directory: "/root",
        more_path: None,
    };
    // Where both name a variable, `environment` wins, as it does for tasks.
    let mut all = known.settings.user_data.clone();
    all.extend(known.settings.environment.clone());
    let spec = Spec {
        version: crate::shim::SPEC_VERSION,
        command: bootstrap.program.command.clone(),
        environment: environment::of_the_machine(&own, &all),
        workdir: if std::path::Path::new("/root").is_dir() { "/root".into() } else { "/".into() },
        stdout: files.log.clone(),
        stderr: files.log.clone(),
        place: Place::Machine,
        container: None,
        steps: Vec::new(),
        pin: None,
        hold: known.node.runtime.join("hold"),
        exit_record: files.exit.clone(),
        timeout_ms: Some(u64::try_from(bootstrap.deadline.as_millis()).unwrap_or(u64::MAX)),
        grace_ms: u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX),
        // What it starts goes on with the agent's unit, or in units of its own.
        group: None,
        takes_over: false,
        account: None,
    };
    // Whoever comes after us must not start it again.
    boot.teller.change(|story| story.bootstrap = Some(BootstrapRun::default()))?;
    tracing::info!("running the start-up script: {}", shell_words::join(&bootstrap.program.command).escape_debug());
    let shim = Shim::start(&files.spec, &spec)
        .await
        .map_err(|error| Failure::platform(format!("the start-up script cannot be started: {error}")))?;
    let run = BootstrapRun { shim: Some(shim.id().clone()), ..BootstrapRun::default() };
    boot.teller.change(|story| story.bootstrap = Some(run))?;
    Ok(shim)
}

/// Sends what it prints to object storage while it runs, if there is a place for it.
fn follow(bootstrap: &Bootstrap, known: &Known, files: &Files) -> Result<Option<Follower>, Failure> {
    let Some(directory) = &bootstrap.log else { return Ok(None) };
    let target = directory.join(&format!("bootstrap.{}", known.name()));
    let store =
        known.stores.open(&target).map_err(|error| Failure::writing(&format!("log {}", target.escaped()), &error))?;
    // It stays whole: people look for it on the node.
    Ok(Some(Follower::start(Followed { origin: Origin::Own(files.log.clone()), store, target, sent: None })))
}

/// Sends the rest of what it has printed. The node does not depend on it.
async fn send(follower: Option<Follower>, boot: &Boot, files: &Files) {
    if let Some(follower) = follower
        && let Err(error) = follower.finish().await
    {
        tracing::warn!(%error, "the start-up script's output could not be sent; it is in {}", files.log.display());
    }
    // Once is enough, however it went: agents that come later begin with the same file.
    boot.teller.note(|story| {
        if let Some(run) = &mut story.bootstrap {
            run.is_sent = true;
        }
    });
}

fn judge(record: &ExitRecord, bootstrap: &Bootstrap, files: &Files) -> Result<Came<()>, Failure> {
    let words = match (&record.start_failure, record.exit_code, record.signal) {
        (Some(failure), ..) => failure.message.clone(),
        (None, Some(0), _) if record.stopped.is_none() => {
            let words = format!("done in {} ms", record.elapsed_ms);
            return Ok(Came::To((), Some(words)));
        }
        (None, Some(code), _) => format!("exit code {code}"),
        (None, None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None, None) => "no status".to_owned(),
    };
    let (cause, what) = match record.stopped {
        Some(Stopped::Timeout) => (
            Cause::Timeout,
            format!("ran longer than its deadline of {} s and was stopped ({words})", bootstrap.deadline.as_secs()),
        ),
        Some(Stopped::Request) => (Cause::Cancelled, format!("was stopped ({words})")),
        None => (Cause::User, format!("failed: {words}")),
    };
    let program = shell_words::join(&bootstrap.program.command);
    let last = last_lines(files);
    let message = format!(
        "the start-up script {} {what}; its output is in {}{last}",
        program.escape_debug(),
        files.log.display()
    );
    Err(Failure::new(cause, exit::OS, message))
}

/// The end of what it printed, on one line.
fn last_lines(files: &Files) -> String {
    use std::os::unix::fs::FileExt;
    let read = || -> std::io::Result<String> {
        let file = std::fs::File::open(&files.log)?;
        let len = file.metadata()?.len();
        let from = len.saturating_sub(SHOWN as u64);
        let mut bytes = vec![0; usize::try_from(len - from).unwrap_or(SHOWN)];
        file.read_exact_at(&mut bytes, from)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" | ");
    if last.is_empty() { String::new() } else { format!(" and ends with: {}", last.escape_debug()) }
}
