//! `batch-agent mount`: what the boot sequence does for one network file system, by hand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::programs::ProgramArguments;
use crate::exit;
use crate::network::Mounting;
use crate::outcome::{Cause, Failure};
use crate::settings::{NetworkFileSystem, NfsVersion};

/// What `batch-agent mount` can be told.
#[derive(Debug, Args)]
pub(super) struct MountArguments {
    /// nas://HOST:/DIRECTORY, nfs://HOST:/DIRECTORY, lustre://HOST@tcp:/NAME, or HOST@tcp:/NAME.
    source: String,

    /// The directory to mount it at; made when it is missing.
    target: PathBuf,

    /// Mount it so that it can be written to; read-only otherwise.
    #[arg(long)]
    writable: bool,

    /// The version of NFS.
    #[arg(long, value_enum, default_value_t = Version::V3)]
    nfs_version: Version,

    /// More mount options; one replaces ours of the same name.
    #[arg(short, long = "options", value_name = "OPTION[,OPTION...]", value_delimiter = ',')]
    options: Vec<String>,

    /// How long it may take, in seconds, retries included.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    deadline: u64,

    #[command(flatten)]
    programs: ProgramArguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Version {
    #[value(name = "3")]
    V3,
    #[value(name = "4.0")]
    V4_0,
    #[value(name = "4.1")]
    V4_1,
}

/// Mounts it, and says what was done.
pub(super) fn mount(arguments: &MountArguments) -> Result<ExitCode, Failure> {
    let mut what = NetworkFileSystem::parse(&arguments.source)
        .map_err(|error| Failure::new(Cause::User, exit::USAGE, error.of(&arguments.source)))?;
    match &mut what {
        NetworkFileSystem::Nfs { version, options, .. } => {
            *version = match arguments.nfs_version {
                Version::V3 => NfsVersion::V3,
                Version::V4_0 => NfsVersion::V4_0,
                Version::V4_1 => NfsVersion::V4_1,
            };
            options.clone_from(&arguments.options);
        }
        NetworkFileSystem::Lustre { options, .. } => options.clone_from(&arguments.options),
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            Cause::Platform,
            exit::DENIED,
            "mounting needs root; try: sudo batch-agent mount ...",
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::platform(format!("cannot start: {error}")))?;
    let mounted = runtime.block_on(async {
        let failed = |error| Failure::platform(format!("cannot listen to signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let deadline = Duration::from_secs(arguments.deadline);
        let programs = arguments.programs.programs();
        let mut mounting = Mounting::start(&what, &arguments.target, arguments.writable, deadline, &programs);
        let ended = tokio::select! {
            ended = mounting.finished() => Some(ended),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        };
        match ended {
            Some(ended) => ended.map_err(|error| error.failure()),
            None => {
                mounting.abandon().await;
                Err(Failure::new(Cause::Cancelled, exit::OS, "stopped; nothing is mounted"))
            }
        }
    })?;
    let (device, target) = (&mounted.device, mounted.target.display());
    super::run::print(&if mounted.was_there {
        format!("{device} is mounted at {target} already")
    } else {
        format!("{device} is mounted at {target} ({} ms)", mounted.elapsed_ms)
    })?;
    Ok(ExitCode::SUCCESS)
}
