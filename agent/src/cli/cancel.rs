//! `batch-agent cancel`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::durable::FileError;
use crate::exit;
use crate::instance::StopRequest;
use crate::instance::record::Record;
use crate::node::Node;
use crate::outcome::{Cause, Failure};
use crate::shim::{ProcessId, StopMode, find_by_spec, stop_shim};

/// What `batch-agent cancel` can be told.
#[derive(Debug, Args)]
#[command(after_help = "\
The task's agent sees the request within a second; where no agent is alive, the task is told directly, and the next agent sends what it \
has left.\n
Exit status: 0 told, 64 TASK means several, 66 no such task is running, 77 not root.")]
pub(super) struct CancelArguments {
    /// Which task: its name, NAME.INSTANCE, or JOB.NAME.INSTANCE. May be left out when only one is running.
    task: Option<String>,

    /// Every running task, or every one that TASK means.
    #[arg(long)]
    all: bool,

    /// Kill it at once, without SIGTERM and grace.
    #[arg(long)]
    now: bool,

    /// Where the agent keeps what must survive a reboot.
    #[arg(long, value_name = "DIR", default_value = Node::STATE, env = "BATCH_AGENT_STATE_DIR")]
    state_dir: PathBuf,
}

/// Asks for the end of a task.
pub(super) fn cancel(arguments: &CancelArguments) -> Result<ExitCode, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            Cause::Platform,
            exit::DENIED,
            "stopping a task needs root; try: sudo batch-agent cancel ...",
        ));
    }
    let node = Node { state: arguments.state_dir.clone(), ..Node::default() };
    let records = match Record::all(&node) {
        Ok(records) => records,
        Err(FileError { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let records: Vec<Record> = records.into_iter().filter(is_running).collect();
    for record in choose(&records, arguments)? {
        let request = StopRequest { at_once: arguments.now };
        request.leave(&record.stop_request)?;
        if record.agent.is_alive() {
            println!("{}: its agent (process {}) has been asked to stop it", record.id, record.agent.pid);
            continue;
        }
        for shim in shims(record) {
            let mode = if arguments.now { StopMode::AtOnce } else { StopMode::Gracefully };
            stop_shim(&shim, mode).map_err(Failure::platform)?;
        }
        println!(
            "{}: its agent is gone, so the task itself has been told; the next agent sends what it has left",
            record.id
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether there is somebody to ask.
fn is_running(record: &Record) -> bool {
    record.reserved.is_none() && (record.agent.is_alive() || !shims(record).is_empty())
}

/// The shims of an attempt that are alive.
fn shims(record: &Record) -> Vec<ProcessId> {
    let mut found = find_by_spec(&record.shim_spec());
    found.extend(record.shim.clone().filter(|shim| shim.is_alive() && !found.contains(shim)));
    found
}

fn choose<'a>(records: &'a [Record], arguments: &CancelArguments) -> Result<Vec<&'a Record>, Failure> {
    let user = |exit_status, message: String| Failure::new(Cause::User, exit_status, message);
    let is_meant = |record: &&Record| arguments.task.as_deref().is_none_or(|task| means(task, &record.id));
    let meant: Vec<&Record> = records.iter().filter(is_meant).collect();
    let ids = |records: &mut dyn Iterator<Item = &Record>| {
        records.map(|record| record.id.as_str()).collect::<Vec<_>>().join(", ")
    };
    match (&meant[..], &arguments.task) {
        ([], _) if records.is_empty() => Err(user(exit::INPUT_MISSING, "no task is running here".to_owned())),
        ([], task) => {
            let task = task.as_deref().unwrap_or_default();
            let running = ids(&mut records.iter());
            Err(user(exit::INPUT_MISSING, format!("no task {task:?} is running here; running are {running}")))
        }
        ([_], _) => Ok(meant),
        (several, _) if !arguments.all => {
            let several = ids(&mut several.iter().copied());
            Err(user(exit::USAGE, format!("that may be any of {several}; name one, or use --all")))
        }
        _ => Ok(meant),
    }
}

/// Whether `task` means the attempt `id`, which is `job.task.instance`, with its number after the first: some of these in their order.
fn means(task: &str, id: &str) -> bool {
    !task.is_empty() && format!(".{id}.").contains(&format!(".{task}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_meant_by_whole_names() {
        for (task, is_meant) in [
            ("count", true),
            ("count.1", true),
            ("job-1.count.1", true),
            ("job-1", true),
            ("job-1.count.1.2", true),
            ("coun", false),
            ("count.11", false),
            ("", false),
            ("t.1", false),
        ] {
            assert_eq!(means(task, "job-1.count.1.2"), is_meant, "{task}");
        }
    }
}
