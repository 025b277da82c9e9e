//! `batch-agent status` and `batch-agent wait`: how far the node is.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::node::StateArguments;
use super::run::print;
use crate::boot::phase::Phase;
use crate::boot::service::{self, Coming};
use crate::boot::story::{State, Step, Story};
use crate::exit;
use crate::metrics::sample::Level;
use crate::metrics::{self, Latest};
use crate::network;
use crate::outcome::{Cause, Failure, InstanceOutcome};
use crate::programs::Programs;
use crate::report::bytes;

/// What `batch-agent status` can be told.
#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Show where the time went, and how much of it was ours.
    #[arg(long)]
    timing: bool,

    #[command(flatten)]
    state: StateArguments,
}

/// What `batch-agent wait` can be told.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 it is so; 1 it will not be in this boot, and why is printed; 75 it was not within --timeout.")]
pub(super) struct WaitArguments {
    /// What for.
    #[arg(value_enum)]
    what: What,

    /// How long at most, in seconds; for ever when absent.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,

    #[command(flatten)]
    state: StateArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Disks and mounts are there.
    Mounts,
    /// And the start-up script is done.
    Ready,
    /// The task is over, and everything of it sent.
    Task,
}

/// It was not so in time (sysexits.h: `EX_TEMPFAIL`).
const NOT_YET: u8 = 75;

/// How often the story is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How often the service manager is asked, while there is no agent.
const ASK: Duration = Duration::from_secs(2);

fn read(state: &std::path::Path) -> Result<Option<Story>, Failure> {
    Story::read(state).map_err(|error| match error.source.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Failure::new(Cause::Platform, exit::DENIED, format!("{error}; run: sudo batch-agent status"))
        }
        _ => Failure::platform(error),
    })
}

fn this_boot() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Shows it.
pub(super) fn status(arguments: &StatusArguments) -> Result<ExitCode, Failure> {
    let Some(story) = read(&arguments.state.state_dir)? else {
        return Err(Failure::new(
            Cause::Platform,
            exit::INPUT_MISSING,
            format!(
                "no agent has told anything in {}; is the service there? systemctl status batch-agent",
                arguments.state.state_dir.display()
            ),
        ));
    };
    let latest = metrics::read(&metrics::latest_file(&arguments.state.state_dir)).filter(|_| story.agent.is_alive());
    let text = match (arguments.json, arguments.timing) {
        (true, _) => json(&story, latest.as_ref())?,
        (false, true) => timing(&story),
        (false, false) => shown(&story) + &latest.as_ref().map(used).unwrap_or_default(),
    };
    print(text.trim_end())?;
    Ok(ExitCode::from(if story.trouble.is_some() { 1 } else { 0 }))
}

/// The node for programs.
fn json(story: &Story, latest: Option<&Latest>) -> Result<String, Failure> {
    let mut all = serde_json::to_value(story).map_err(Failure::platform)?;
    if let Some(latest) = latest {
        all["metrics"] = serde_json::to_value(latest).map_err(Failure::platform)?;
    }
    serde_json::to_string_pretty(&all).map_err(Failure::platform)
}

/// What the node has used lately, for people.
fn used(latest: &Latest) -> String {
    let (node, rate) = (&latest.node, |level: Level| format!("{}/s", bytes(level.mean)));
    let mut text = format!("in the last {:.0} s:\n", node.seconds);
    let mut line = |what: &str, words: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {what:<15} {words}");
    };
    line("processors", format!("{:.1} of {} busy", node.cpu.used.mean, node.cpu.cores));
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let size = |size: u64| bytes(size as f64);
    line("memory", format!("{} of {}", bytes(node.memory.used.mean), size(node.memory.total)));
    for disk in &node.disks {
        let what = disk.roles.first().map_or("disk", |role| role.as_str());
        let words = if disk.is_stuck {
            "DOES NOT ANSWER".to_owned()
        } else {
            let (read, written) = (rate(disk.read), rate(disk.written));
            format!("{} of {}, {read} read, {written} written", bytes(disk.used.mean), size(disk.size))
        };
        line(what, format!("{}: {words}", disk.path.escape_debug()));
    }
    line("network", format!("{} in, {} out", rate(node.network.received), rate(node.network.sent)));
    for gpu in &node.gpus {
        let (used, total) = (bytes(gpu.memory_used.mean), size(gpu.memory_total));
        line("gpu", format!("{}: {:.0} % busy, {used} of {total}", gpu.index, gpu.used.mean * 100.0));
    }
    for (name, task) in latest.tasks.iter().filter_map(|(name, sample)| Some((name, sample.task?))) {
        line("task", format!("{name}: {:.1} processors, {}", task.cpu.mean, bytes(task.memory.mean)));
    }
    text
}

/// The node for people.
fn shown(story: &Story) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        text.push_str(&words);
        text.push('\n');
    };
    let known = story.identity.as_ref().map(|identity| {
        let words = [&identity.instance_id, &identity.instance_type, &identity.zone];
        words.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ")
    });
    let who = known.filter(|words| !words.is_empty()).unwrap_or_else(|| "this node".to_owned());
    let agent = if story.agent.is_alive() {
        format!("agent {} (process {})", story.agent_version, story.agent.pid)
    } else {
        format!("agent {}, which is not running", story.agent_version)
    };
    line(format!("{who}: {}; {agent}", summary(story)));
    if this_boot().is_some_and(|boot| boot != story.boot_id) {
        line("this was before the machine was started the last time; no agent has begun since".to_owned());
    }
    if let Some(notice) = &story.reclaim {
        line(notice.text());
    }
    if story.agents_before > 0 {
        line(format!("{} agents came before this one since the machine was started", story.agents_before));
    }
    for step in &story.steps {
        line(format!(
            "  {:<15} {:<8} {:>9}  {}",
            step.phase.name(),
            word(step.state),
            took(step),
            first_line(step.message.as_deref())
        ));
        for mount in story.mounts.iter().filter(|mount| is_of(step.phase, &mount.source)) {
            let time = mount.elapsed_ms.map_or(String::new(), millis);
            let health = health(mount.state, &mount.target);
            line(format!(
                "    {:<13} {:<8} {time:>9}  {} -> {}{}",
                "",
                word(mount.state),
                mount.source,
                mount.target.display(),
                health
            ));
        }
    }
    if let Some(trouble) = &story.trouble {
        line(format!("the node is of no use, because {} failed: {}", trouble.phase.name(), trouble.message));
    }
    text
}

fn is_of(phase: Phase, source: &str) -> bool {
    match phase {
        Phase::ObjectMounts => source.contains("://"),
        Phase::NetworkMounts => !source.contains("://"),
        _ => false,
    }
}

/// What a mount says now, if it was made: it may have died since.
fn health(state: State, target: &std::path::Path) -> String {
    if state != State::Done {
        return String::new();
    }
    match network::probe_here(target, Duration::from_secs(1)) {
        network::Health::Answers => String::new(),
        network::Health::Fails(errno) => format!("  BUT NOW: {}", errno.desc()),
        network::Health::Stuck => "  BUT NOW: it does not answer".to_owned(),
    }
}

fn summary(story: &Story) -> String {
    if story.trouble.is_some() {
        return "not prepared".to_owned();
    }
    let outcome = story.outcome.clone().and_then(|outcome| serde_json::from_value::<InstanceOutcome>(outcome).ok());
    if let Some(outcome) = outcome {
        return outcome.summary();
    }
    match story.steps.iter().find(|step| step.state == State::Running) {
        Some(step) => format!("at {}", step.phase.name()),
        None if story.is_past(Phase::Bootstrap) => "ready".to_owned(),
        None => "waiting".to_owned(),
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Waiting => "-",
        State::Running => "running",
        State::Done => "done",
        State::Failed => "FAILED",
        State::Skipped => "nothing",
    }
}

fn took(step: &Step) -> String {
    match (step.state, step.elapsed_ms, step.started) {
        (State::Running, _, Some(started)) => {
            let so_far = Timestamp::now().duration_since(started).as_millis();
            millis(u64::try_from(so_far).unwrap_or(0))
        }
        (State::Done | State::Failed, Some(elapsed), _) => millis(elapsed),
        _ => String::new(),
    }
}

fn millis(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..60_000 => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
        _ => format!("{} min {} s", millis / 60_000, millis / 1000 % 60),
    }
}

fn first_line(message: Option<&str>) -> &str {
    message.and_then(|message| message.lines().next()).unwrap_or_default()
}

/// Where the time from the agent's start to the task's first instruction went.
fn timing(story: &Story) -> String {
    let mut text = String::new();
    let elapsed = |phase| story.step(phase).and_then(|step| step.elapsed_ms).unwrap_or(0);
    for step in story.steps.iter().filter(|step| step.elapsed_ms.is_some()) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<15} {:>9}", step.phase.name(), took(step));
    }
    let Some(total) = story.program_started_ms else {
        text.push_str("no program has been started\n");
        return text;
    };
    let mounts = elapsed(Phase::NetworkMounts).max(elapsed(Phase::ObjectMounts));
    let theirs = elapsed(Phase::Disks) + mounts + elapsed(Phase::Bootstrap);
    let _ = writeln!(text, "from the agent's start to the program's: {}", millis(total));
    let _ = writeln!(text, "of that disks, mounts and start-up script: {}", millis(theirs));
    let _ = writeln!(text, "and the agent itself: {}", millis(total.saturating_sub(theirs)));
    text
}

/// Waits for it.
pub(super) fn wait(arguments: &WaitArguments) -> Result<ExitCode, Failure> {
    let deadline = arguments.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let boot = this_boot();
    let programs = Programs::default();
    let mut ask_at = Instant::now();
    // Without an agent: whether there will be one, and how often the answer was no.
    let (mut coming, mut refusals) = (Coming::Unknown, 0);
    loop {
        let story = read(&arguments.state.state_dir)?.filter(|story| Some(&story.boot_id) == boot.as_ref());
        let is_alive = story.as_ref().is_some_and(|story| story.agent.is_alive());
        if is_alive {
            refusals = 0;
        } else if Instant::now() >= ask_at {
            ask_at = Instant::now() + ASK;
            coming = service::is_agent_coming(&programs);
            refusals = if coming == Coming::No { refusals + 1 } else { 0 };
        }
        // An agent that is on its way finds out for itself what the one before it has done or has failed at.
        if let Some(story) = story.filter(|_| is_alive || coming != Coming::Yes) {
            let past = |phases: &[Phase]| phases.iter().all(|phase| story.is_past(*phase));
            let prepared = [Phase::Disks, Phase::NetworkMounts, Phase::ObjectMounts];
            let is_so = match arguments.what {
                What::Mounts => past(&prepared),
                What::Ready => past(&prepared) && past(&[Phase::Bootstrap]),
                What::Task => past(&[Phase::Task]),
            };
            if is_so {
                return Ok(ExitCode::SUCCESS);
            }
            if let Some(trouble) = &story.trouble {
                eprintln!("batch-agent: {} failed: {}", trouble.phase.name(), trouble.message);
                return Ok(ExitCode::from(1));
            }
        }
        // Asked twice, because it may just be about to be started.
        if refusals > 1 {
            eprintln!("batch-agent: no agent runs, and none is to be started; see: systemctl status batch-agent");
            return Ok(ExitCode::from(1));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            eprintln!("batch-agent: not yet; see: batch-agent status");
            return Ok(ExitCode::from(NOT_YET));
        }
        std::thread::sleep(LOOK);
    }
}
