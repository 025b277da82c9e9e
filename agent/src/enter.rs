//! A process beside a task, in its namespace: with its mounts, its variables and its working directory, and nothing of the agent's. Where the
//! task runs in a container, its engine does it ([`Visit`]).
//!
//! A task that runs is found by its shim, one that is over and reserved by the mount that holds its namespace. A number of a process is
//! never believed: the namespace is opened first, and then the shim must still be who it was. Whoever enters goes with the
//! task: what was started in its namespace must not hold its mounts when it is over.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::container::{ContainerRecord, Visit};
use crate::durable::{self, FileError};
use crate::instance::record::Record;
use crate::instance::reserve::{Anchor, end_all_in};
use crate::node::Node;
use crate::shim::{ProcessId, Spec};

/// How often is looked whether the task or the command is over.
const LOOK: Duration = Duration::from_millis(100);

/// What runs when no command is given: the task's own shell if it has one, `/bin/sh` otherwise.
const SHELL: [&str; 3] = ["/bin/sh", "-c", r#"if [ -x "$SHELL" ]; then exec "$SHELL"; fi; exec /bin/sh"#];

/// Variables that say what terminal a person sits at.
const TERMINAL: [&str; 2] = ["TERM", "COLORTERM"];

/// Why a task cannot be entered, or found.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// No task is called that, or there is none at all.
    #[error("no task {0} is running or reserved here; {1}")]
    NotFound(String, String),
    /// Several are.
    #[error("{0} could be any of {1}; name one of them")]
    Ambiguous(String, String),
    /// It is over, or has not begun.
    #[error("{0} cannot be entered: its program has not been started yet, or has just ended")]
    NotThere(String),
    /// The system refused.
    #[error("{0} cannot be entered: {1}")]
    Failed(String, #[source] io::Error),
    /// The agent's own files.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The attempt that somebody calls `name`: its id (`job.task.instance`), a part of that between dots, or nothing if there is only one.
///
/// # Errors
/// When there is none of that name, or there are several.
pub fn find(node_state: PathBuf, name: Option<&str>) -> Result<Record, EnterError> {
    let node = Node { state: node_state, ..Node::default() };
    let mut records = match Record::all(&node) {
        Ok(records) => records,
        // No agent has run here.
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    records.retain(|record| record.reserved.is_some() || record.shim.as_ref().is_some_and(|shim| shim.is_alive()));
    choose(records, name)
}

fn choose(records: Vec<Record>, name: Option<&str>) -> Result<Record, EnterError> {
    let shown = name.map_or(String::new(), |name| format!("{name:?}"));
    let list = |records: &[Record]| records.iter().map(|record| record.id.as_str()).collect::<Vec<_>>().join(", ");
    let is_called = |record: &&Record| {
        name.is_none_or(|name| record.id == name || format!(".{}.", record.id).contains(&format!(".{name}.")))
    };
    // An id may be a part of another one: the second attempt's begins with the first one's.
    let exact = records.iter().find(|record| Some(record.id.as_str()) == name);
    let found: Vec<Record> = match exact {
        Some(exact) => vec![exact.clone()],
        None => records.iter().filter(is_called).cloned().collect(),
    };
    match <[Record; 1]>::try_from(found) {
        Ok([only]) => Ok(only),
        Err(found) if found.is_empty() => {
            let there = if records.is_empty() { "none is".to_owned() } else { format!("there are {}", list(&records)) };
            Err(EnterError::NotFound(shown, there))
        }
        Err(found) => Err(EnterError::Ambiguous(if shown.is_empty() { "it".to_owned() } else { shown }, list(&found))),
    }
}

/// Runs a command beside the task, a shell when there are no words, and answers with its exit status, as a shell would.
///
/// # Errors
/// When that is not possible.
pub fn enter(record: &Record, command: &[String]) -> Result<u8, EnterError> {
    match &record.container {
        Some(container) => visit(record, container, command),
        None => enter_namespace(record, command).map(exit_status),
    }
}

/// Runs a command in the task's container, or beside it.
fn visit(record: &Record, container: &ContainerRecord, command: &[String]) -> Result<u8, EnterError> {
    let not_there = || EnterError::NotThere(record.id.clone());
    let spec: Spec = durable::read_json(&record.shim_spec())?.ok_or_else(not_there)?;
    // It is written before the container is started.
    let made = durable::read_json::<String>(&record.container_made())?;
    let described = spec.container.as_ref().filter(|_| made.is_some()).ok_or_else(not_there)?;
    let variable = |name: &str| std::env::var(name).ok().map(|value| (name.to_owned(), value));
    let is_new = |(name, _): &(String, String)| !spec.environment.contains_key(name);
    let variables = TERMINAL.into_iter().filter_map(variable).filter(is_new).collect();
    let status =
        Visit { record: container, spec: &spec, container: described, command: words(command), variables }.run();
    let is_over = !record.shim.as_ref().is_some_and(ProcessId::is_alive) && !record.shim_spec().exists();
    if is_over {
        eprintln!("\nbatch-agent: {} is over, and what was started beside it ends with it", record.id);
    }
    status.map_err(|error| EnterError::Failed(record.id.clone(), io::Error::other(error)))
}

/// The command, or what runs when there is none.
fn words(command: &[String]) -> Vec<String> {
    if command.is_empty() { SHELL.map(str::to_owned).to_vec() } else { command.to_vec() }
}

fn enter_namespace(record: &Record, command: &[String]) -> Result<ExitStatus, EnterError> {
    let failed = |error: io::Error| EnterError::Failed(record.id.clone(), error);
    let not_there = || EnterError::NotThere(record.id.clone());
    let namespace = namespace(record).map_err(failed)?.ok_or_else(not_there)?;
    let spec: Spec = durable::read_json(&record.shim_spec())?.ok_or_else(not_there)?;
    let words = words(command);
    let mut process = Command::new(&words[0]);
    process.args(&words[1..]).env_clear().envs(&spec.environment);
    for name in TERMINAL {
        if let Some(value) = std::env::var_os(name).filter(|_| !spec.environment.contains_key(name)) {
            process.env(name, value);
        }
    }
    let workdir = std::ffi::CString::new(spec.workdir.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let inside = namespace.try_clone().map_err(failed)?;
    let account = spec.account.map(|account| {
        let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
        (Uid::from_raw(account.uid), Gid::from_raw(account.gid), groups)
    });
    let prepare = move || {
        hear_every_signal()?;
        setns(&inside, CloneFlags::CLONE_NEWNS)?;
        nix::unistd::chdir(workdir.as_c_str())?;
        if let Some((uid, gid, groups)) = &account {
            setgroups(groups)?;
            setresgid(*gid, *gid, *gid)?;
            setresuid(*uid, *uid, *uid)?;
            if !uid.is_root() {
                nix::sys::prctl::set_no_new_privs()?;
            }
        }
        // Giving up rights has undone it.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(())
    };
    // SAFETY: the function makes system calls only, and takes no memory.
    unsafe { process.pre_exec(prepare) };
    close_inherited();
    // Ctrl-C is for the command.
    for ignored in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: ignoring a signal installs no handler.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    let mut child = process.spawn().map_err(failed)?;
    loop {
        let ended = child.try_wait().map_err(failed)?;
        if ended.is_none_or(|status| status.signal().is_some()) && is_over(record) {
            eprintln!("\nbatch-agent: {} is over, and what was started beside it ends with it", record.id);
            end_all_in(&namespace).map_err(failed)?;
            return child.wait().map_err(failed);
        }
        if let Some(status) = ended {
            return Ok(status);
        }
        std::thread::sleep(LOOK);
    }
}

/// The exit status a shell would give.
fn exit_status(status: ExitStatus) -> u8 {
    crate::outcome::exit_status(status.code(), status.signal()).unwrap_or(crate::exit::INTERNAL)
}

/// The task's namespace, if there is one.
fn namespace(record: &Record) -> io::Result<Option<File>> {
    let anchor = Anchor::of(record);
    if anchor.holds() {
        return File::open(anchor.file()).map(Some);
    }
    let Some(shim) = &record.shim else { return Ok(None) };
    match File::open(format!("/proc/{}/ns/mnt", shim.pid)) {
        // Looked at after it was opened: from here on the number cannot become another's.
        Ok(namespace) => Ok(Some(namespace).filter(|_| shim.is_alive())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether there is nothing left to be beside.
fn is_over(record: &Record) -> bool {
    !record.shim.as_ref().is_some_and(|shim| shim.is_alive()) && !Anchor::of(record).holds()
}

/// Whatever this process was given stays outside.
fn close_inherited() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: close_range takes three plain numbers and, with this flag, changes nothing but the close-on-exec mark.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Between fork and exec: undoes what this process ignores.
fn hear_every_signal() -> io::Result<()> {
    for each in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGPIPE] {
        // SAFETY: signal(2) to its default is async-signal-safe and installs no handler.
        unsafe { signal(each, SigHandler::SigDfl) }?;
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::names::Attempt;

    #[test]
    fn tasks_are_found_by_parts_of_their_ids() {
        let root = tempfile::tempdir().unwrap();
        let node = Node { state: root.path().into(), runtime: root.path().join("run"), scratch: root.path().into() };
        let record = |id: &str| {
            let attempt = Attempt { job: "j", task: "t", instance: 0, number: 1 };
            Record { id: id.to_owned(), ..Record::new(attempt, &node).unwrap() }
        };
        let records = || ["job-1.count.0", "job-1.count.1", "job-1.count.1.2", "job-2.merge.0"].map(record).to_vec();
        let found = |name| choose(records(), name).map(|record| record.id).map_err(|error| error.to_string());
        assert_eq!(found(Some("merge")), Ok("job-2.merge.0".to_owned()));
        assert_eq!(found(Some("job-2")), Ok("job-2.merge.0".to_owned()));
        assert_eq!(found(Some("count.0")), Ok("job-1.count.0".to_owned()));
        assert_eq!(found(Some("job-1.count.1")), Ok("job-1.count.1".to_owned()), "the whole id comes first");
        let several = "\"count\" could be any of job-1.count.0, job-1.count.1, job-1.count.1.2; name one of them";
        assert_eq!(found(Some("count")), Err(several.to_owned()));
        assert!(
            found(Some("coun"))
                .unwrap_err()
                .starts_with("no task \"coun\" is running or reserved here; there are job-1")
        );
        assert!(found(None).unwrap_err().starts_with("it could be any of"));
        assert_eq!(choose(vec![record("a.b.0")], None).unwrap().id, "a.b.0");
        assert!(choose(Vec::new(), None).is_err());
    }
}
