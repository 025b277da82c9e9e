//! `batch-agent boot`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::boot::story::{State, Teller};
use crate::boot::{Boot, End, service};
use crate::console::Console;
use crate::durable;
use crate::exit;
use crate::instance::Stopper;
use crate::node::Node;
use crate::outcome::{Cause, Failure};
use crate::programs::Programs;
use crate::settings::{self, NodeSettings, SettingsSource};

/// How long those who are told what happens may keep a machine from being powered off.
const LAST_WORDS: Duration = Duration::from_secs(600);

/// How long they may keep an agent from ending that could not prepare the node: it is started again, mostly, and tells them then.
const BROKEN_WORDS: Duration = Duration::from_secs(20);

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

    /// Where working directories, outputs and the object cache are, over the settings' `scratch`.
    /// [default: the first prepared volume, else STATE/scratch]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,

    /// Where the agent keeps what must survive a reboot.
    #[arg(long, value_name = "DIR", default_value = Node::STATE, env = "BATCH_AGENT_STATE_DIR")]
    state_dir: PathBuf,

    /// Where sockets and mounts of tasks are.
    #[arg(long, value_name = "DIR", default_value = Node::RUNTIME, env = "BATCH_AGENT_RUNTIME_DIR")]
    runtime_dir: PathBuf,

    /// The fuse-oss program. [default: the one beside this program, else the one on PATH]
    #[arg(long, value_name = "FILE", env = "BATCH_AGENT_FUSE_OSS")]
    fuse_oss: Option<PathBuf>,
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
    durable::private_directory(&arguments.state_dir)?;
    let teller = Arc::new(Teller::begin(&arguments.state_dir)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::platform(format!("cannot start: {error}")))?;
    let (stopper, stop) = Stopper::new();
    let programs = Programs::default();
    let boot = Boot {
        teller: Arc::clone(&teller),
        node: Node {
            state: arguments.state_dir.clone(),
            runtime: arguments.runtime_dir.clone(),
            scratch: arguments.scratch.clone().unwrap_or_else(|| arguments.state_dir.join("scratch")),
        },
        scratch_is_free: arguments.scratch.is_none(),
        programs: programs.clone(),
        fuse_oss: service::find_fuse_oss(arguments.fuse_oss.clone()),
        console,
        stop,
        began,
    };
    let settings = arguments.settings.clone();
    let events = teller.events().clone();
    let end = runtime.block_on(async move {
        let mut terminate = signal(SignalKind::terminate()).map_err(Failure::platform)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::platform)?;
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
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if !service::is_shutting_down(&boot.programs).await {
                tracing::info!("detaching: what runs goes on, and the next agent goes on with it");
                return Ok(None);
            }
            tracing::info!("the machine is going down: the task ends now, and what it has left is sent");
            stopper.ask();
        };
        // Those who are told what happens and do not answer are waited for, as long as nothing else does.
        let limit = match &end {
            _ if end.powers_off() => LAST_WORDS,
            End::Broken(_) => BROKEN_WORDS,
            End::Through { .. } => Duration::MAX,
        };
        let is_told_to_end = tokio::select! {
            missing = events.delivered(limit) => {
                for recipient in missing {
                    tracing::error!("{recipient} has not been told everything; the next agent goes on");
                }
                false
            }
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
        };
        if end.powers_off() {
            service::power_off(&programs).await;
        } else if matches!(&end, End::Through { outcome: None, .. }) && !is_told_to_end {
            // A node for others: there as long as they are.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        Ok::<_, Failure>(Some(end))
    })?;
    // Not waited for: a thread that hangs on a dead mount must not keep the agent from ending.
    runtime.shutdown_background();
    Ok(ExitCode::from(end.map_or(0, |end| end.exit_status())))
}
