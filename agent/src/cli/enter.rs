//! `batch-agent enter` and `batch-agent release`: looking into a task, and being done with that.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use super::node::StateArguments;
use crate::enter::{self, EnterError};
use crate::exit;
use crate::instance::record::Record;
use crate::instance::{MountPoints, clean_up, reserve};
use crate::node::Node;
use crate::outcome::{Cause, Failure};

/// What `batch-agent enter` can be told.
#[derive(Debug, Args)]
#[command(after_help = "\
The command sees the task's mounts, files, variables and working directory, and nothing of the agent's. It ends with the task, or with its \
reservation.\n
Exit status: the command's own; 66 no such task; 71 it cannot be entered; 77 not root.")]
pub(super) struct EnterArguments {
    /// The task: JOB.TASK.INSTANCE, or a part of it between the dots. May be left out when there is only one.
    task: Option<String>,

    /// The command and its arguments; a shell when absent.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,

    #[command(flatten)]
    state: StateArguments,
}

/// What `batch-agent release` can be told.
#[derive(Debug, Args)]
pub(super) struct ReleaseArguments {
    /// The task: JOB.TASK.INSTANCE, or a part of it between the dots. May be left out when there is only one.
    task: Option<String>,

    /// Wait until its time is over.
    #[arg(long, hide = true, requires = "task")]
    when_due: bool,

    #[command(flatten)]
    state: StateArguments,
}

/// The longest that is slept at once: clocks are set, and reservations ended by others.
const NAP: Duration = Duration::from_secs(20);

fn failure(error: EnterError) -> Failure {
    let (cause, exit_status) = match &error {
        EnterError::NotFound(..) | EnterError::Ambiguous(..) => (Cause::User, exit::INPUT_MISSING),
        EnterError::NotThere(_) | EnterError::Failed(..) | EnterError::File(_) => (Cause::Platform, exit::OS),
    };
    Failure::new(cause, exit_status, error.to_string())
}

fn need_root(what: &str) -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(Cause::Platform, exit::DENIED, format!("only root may {what} a task; try sudo")))
}

/// Runs a command, or a shell, beside a task.
pub(super) fn enter(arguments: &EnterArguments) -> Result<ExitCode, Failure> {
    need_root("enter")?;
    let record = enter::find(arguments.state.state_dir.clone(), arguments.task.as_deref()).map_err(failure)?;
    let status = enter::enter(&record, &arguments.command).map_err(failure)?;
    Ok(ExitCode::from(status))
}

/// Takes away what a failed task has left.
pub(super) fn release(arguments: &ReleaseArguments) -> Result<ExitCode, Failure> {
    need_root("release")?;
    let find = || enter::find(arguments.state.state_dir.clone(), arguments.task.as_deref());
    loop {
        if !arguments.when_due {
            break;
        }
        let reserved = match find() {
            Ok(record) => record.reserved,
            Err(EnterError::NotFound(..)) => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(failure(error)),
        };
        let Some(reservation) = reserved.filter(|reservation| !reservation.is_over()) else { break };
        let left = reservation.until.duration_since(Timestamp::now());
        std::thread::sleep(Duration::try_from(left).unwrap_or_default().min(NAP));
    }
    let record = match find() {
        Err(EnterError::NotFound(..)) if arguments.when_due => return Ok(ExitCode::SUCCESS),
        other => other.map_err(failure)?,
    };
    take_away(&record, arguments)?;
    Ok(ExitCode::SUCCESS)
}

fn take_away(record: &Record, arguments: &ReleaseArguments) -> Result<(), Failure> {
    let Some(reservation) = &record.reserved else {
        let message = format!("{} is running and not reserved; to end it, see batch-agent cancel", record.id);
        return Err(Failure::new(Cause::User, exit::USAGE, message));
    };
    let node = Node { state: arguments.state.state_dir.clone(), ..Node::default() };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::platform(format!("cannot start: {error}")))?;
    let mount_points = MountPoints::new(Path::new(Node::STATE));
    let mounter = reserve::mounter(reservation);
    runtime.block_on(clean_up(record, &node, &mounter, &mount_points)).map_err(Failure::platform)
}
