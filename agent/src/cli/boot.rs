//! `batch-agent boot`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::node::NodeArguments;
use crate::boot::story::{State, Teller};
use crate::boot::{Boot, End, service};
use crate::console::Console;
use crate::durable;
use crate::events::Events;
use crate::exit;
use crate::instance::{Stopper, reserve};
use crate::node::Node;
use crate::outcome::{Cause, Failure};
use crate::programs::Programs;
use crate::settings::{self, NodeSettings, SettingsSource};

/// How long those who are told what happens may keep a machine from being powered off.
const LAST_WORDS: Duration = Duration::from_secs(600);

/// How long they may keep a machine from going down, and an agent from ending that could not prepare the node: it is started again, mostly,
/// and tells them then.
const SHORT_WORDS: Duration = Duration::from_secs(20);

/// What `batch-agent boot` can be told.
#[derive(Debug, Args)]
#[command(after_help = "\
SIGTERM detaches: a start-up script or a task that runs goes on, mounts stay, and the next `batch-agent boot` goes on with them. Only when \
the machine itself is going down is the task ended, and what it has left is sent.\n
Without a task in the settings the node is prepared for somebody else's scheduler: the agent stays until it is told to end.\n
Exit status: 0 done, or detached; 65 bad job description, 66 something is missing, 69 storage unavailable, 70 internal error, 71 disk, \
mount, start-up script or operating system, 77 denied, 78 bad settings.")]
pub(super) struct BootArguments {
    #[command(flatten)]
    settings: SettingsArguments,

    #[command(flatten)]
    node: NodeArguments,
}

/// Where settings come from.
#[derive(Debug, Clone, Args)]
pub(super) struct SettingsArguments {
    /// Read this file and no other. [default: /etc/batch-agent/node.yaml, with node.yaml.d/*.yaml over it]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// A setting over those of all files, such as cache.size=100GB. May be given several times.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
}

impl SettingsArguments {
    fn read(&self) -> Result<NodeSettings, Failure> {
        let source = match &self.config {
            Some(file) => SettingsSource::File(file.clone()),
            None => SettingsSource::default(),
        };
        let (settings, warnings) = settings::read(&source, &self.overrides)
            .map_err(|error| Failure::new(Cause::User, exit::BAD_SETTINGS, error.to_string()))?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(settings)
    }
}

/// Boots the node, and stays until its work is done or it is told to end.
pub(super) fn boot(arguments: &BootArguments, console: Console) -> Result<ExitCode, Failure> {
    let began = Instant::now();
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            Cause::Platform,
            exit::DENIED,
            "preparing a node formats disks and mounts storage and needs root; it is meant to be run by systemd",
        ));
    }
    let node = arguments.node.node()?;
    durable::private_directory(&node.state)?;
    let teller = Arc::new(Teller::begin(&node.state)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::platform(format!("cannot start: {error}")))?;
    let (stopper, stop) = Stopper::new();
    let stopper = Arc::new(stopper);
    let programs = Programs::default();
    let boot = Boot {
        teller: Arc::clone(&teller),
        node,
        scratch_is_free: arguments.node.scratch_is_free(),
        programs: programs.clone(),
        fuse_oss: arguments.node.fuse_oss(),
        console,
        stop,
        stopper: Arc::clone(&stopper),
        began,
    };
    let settings = arguments.settings.clone();
    let events = teller.events().clone();
    let end = runtime.block_on(async move {
        let mut told = Told::listen()?;
        let booting = Arc::clone(&teller);
        let is_booting = move || {
            let story = booting.story();
            story.trouble.is_none()
                && !story
                    .steps
                    .iter()
                    .rev()
                    .skip(2)
                    .all(|step| matches!(step.state, State::Done | State::Skipped | State::Failed))
        };
        tokio::spawn(service::pulse(is_booting));
        let read = async move { settings.read() };
        let mut life = std::pin::pin!(boot.live(read));
        let end = loop {
            tokio::select! {
                end = &mut life => break end,
                () = told.end_asked() => {}
            }
            if !service::is_shutting_down(&boot.programs).await {
                tracing::info!("detaching: what runs goes on, and the next agent goes on with it");
                return Ok(None);
            }
            tracing::info!("the machine is going down: the task ends now, and what it has left is sent");
            boot.teller.note(|story| story.going_down = true);
            stopper.ask();
        };
        let going_down = boot.teller.story().going_down;
        if !last_words(&end, going_down, &events, &mut told).await {
            return Ok(Some(end));
        }
        // It may be going down to come up again.
        if !going_down {
            last(&end, &mut told, &programs, &boot.node).await;
        }
        Ok::<_, Failure>(Some(end))
    })?;
    // Not waited for: a thread that hangs on a dead mount must not keep the agent from ending.
    runtime.shutdown_background();
    Ok(ExitCode::from(end.map_or(0, |end| end.exit_status())))
}

/// Waits for those who are told what happens and have not heard the end of it. Those who do not answer are waited for as long as nothing
/// else does. Says no when the agent is told to end meanwhile.
async fn last_words(end: &End, going_down: bool, events: &Events, told: &mut Told) -> bool {
    let limit = match end {
        _ if going_down || matches!(end, End::Broken(_)) => SHORT_WORDS,
        _ if end.powers_off_in().is_some() => LAST_WORDS,
        _ => Duration::MAX,
    };
    tokio::select! {
        missing = events.delivered(limit) => {
            for recipient in missing {
                tracing::error!("{recipient} has not been told everything; the next agent goes on");
            }
            true
        }
        () = told.end_asked() => false,
    }
}

/// What is left to do when the node's work is done: powering off, or being there.
async fn last(end: &End, told: &mut Told, programs: &Programs, node: &Node) {
    if let Some(pause) = end.powers_off_in() {
        if let End::Through { outcome: Some(outcome), .. } = end
            && let Some(reserved) = &outcome.reserved
        {
            tracing::warn!(
                "the machine is powered off when the task is no longer reserved; until then: {}",
                reserved.enter
            );
            tokio::select! {
                () = reserve::over(node, reserved.until) => {}
                () = told.end_asked() => return tracing::info!("told to end: the machine is not powered off"),
            }
        }
        if !pause.is_zero() {
            tracing::error!(
                "not everything could be sent (see: batch-agent status), and what is left is on this machine, which is powered off in {} s; \
                 to keep it, run: systemctl stop batch-agent",
                pause.as_secs()
            );
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => service::power_off(programs).await,
            () = told.end_asked() => tracing::info!("told to end: the machine is not powered off"),
        }
    } else if matches!(end, End::Through { outcome: None, .. }) {
        // A node for others: there as long as they are.
        told.end_asked().await;
    }
}

/// What the agent is told by signals.
struct Told {
    terminate: Signal,
    interrupt: Signal,
}

impl Told {
    fn listen() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::platform(format!("cannot listen to signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits until it is told to end, once more each time.
    async fn end_asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
