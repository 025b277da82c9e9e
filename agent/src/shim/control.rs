//! The agent's end of a shim: start it, stop it, read what it wrote.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::process::{Child, Command};

use super::{ExitRecord, Hello, ProcessId, Spec, supervise};
use crate::durable::{self, FileError};

/// How long a shim may take to build the task's view and start the program. Only mounts that hang take longer.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// This very binary, also when it has been replaced or removed since it was started.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// How a task is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// SIGTERM, and SIGKILL after the grace.
    Gracefully,
    /// SIGKILL at once.
    AtOnce,
}

impl StopMode {
    /// What a shim is told.
    fn signal(self) -> Signal {
        match self {
            Self::Gracefully => supervise::STOP,
            Self::AtOnce => supervise::KILL,
        }
    }
}

/// Asks a task to end whose agent is somebody else, or nobody. A shim that is gone does not hear it.
///
/// # Errors
/// When the kernel cannot watch processes (before Linux 5.3).
pub fn stop_shim(id: &ProcessId, mode: StopMode) -> Result<(), ShimError> {
    match open_process(id.pid) {
        // Looked at after it was opened: from here on the number cannot become another's.
        Ok(process) if id.is_alive() => send(&process, mode.signal()),
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            return Err(ShimError::Start(format!("process {} cannot be watched: {error}", id.pid)));
        }
        _ => {}
    }
    Ok(())
}

/// Why there is no running shim, or no record from it.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The task's view could not be built.
    #[error("{0}")]
    View(String),
    /// The shim could not be started, or said nothing.
    #[error("the task's shim could not be started: {0}")]
    Start(String),
    /// It ended without a record: it was killed.
    #[error("the task's shim ended without a record ({0}); was it killed, the machine out of memory or started anew?")]
    Lost(String),
    /// A file of it could not be written or read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A running shim.
#[derive(Debug)]
pub struct Shim {
    id: ProcessId,
    exit_record: PathBuf,
    process: Process,
}

/// The shim's process, as far as it can be waited for.
#[derive(Debug)]
enum Process {
    /// Started by this agent.
    Child(Child),
    /// Started by an agent before this one.
    Found(AsyncFd<OwnedFd>),
    /// Gone before anybody looked.
    Ended,
}

impl Shim {
    /// Starts a shim for `spec`, which is written to `file`.
    ///
    /// # Errors
    /// When the task's view cannot be built. A program that cannot be started is not an error here: the record says so.
    pub async fn start(file: &Path, spec: &Spec) -> Result<Self, ShimError> {
        durable::replace_json(file, spec)?;
        let mut command = Command::new(OWN_PROGRAM);
        command
            .arg0("batch-agent")
            .arg("shim")
            .arg(file)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let agent = nix::unistd::getpid();
        // A copy of the agent that is not yet the shim is found by nobody who comes after that, and holds the agent's locks. It must not be
        // there when the agent is not.
        let die_with_agent = move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() == agent { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
        };
        // SAFETY: both calls are async-signal-safe and take no memory.
        unsafe { command.pre_exec(die_with_agent) };
        let mut child = command.spawn().map_err(|error| ShimError::Start(format!("{OWN_PROGRAM}: {error}")))?;
        let mut hello = Vec::new();
        let mut stdout = child.stdout.take().ok_or_else(|| ShimError::Start("no pipe".to_owned()))?;
        let read = tokio::time::timeout(START_DEADLINE, stdout.read_to_end(&mut hello)).await;
        let problem = match read {
            Err(_) => ShimError::Start(format!("not ready after {} s", START_DEADLINE.as_secs())),
            Ok(Err(error)) => ShimError::Start(error.to_string()),
            Ok(Ok(_)) => match serde_json::from_slice(&hello) {
                Ok(Hello::Started) => {
                    let id = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(ProcessId::of);
                    // A task of no duration may be over already; its record is what counts then.
                    let id = id.unwrap_or(ProcessId { pid: 0, start_ticks: 0, boot_id: String::new() });
                    return Ok(Self { id, exit_record: spec.exit_record.clone(), process: Process::Child(child) });
                }
                Ok(Hello::Failed(message)) => ShimError::View(message),
                Err(_) => ShimError::Start("it died".to_owned()),
            },
        };
        let _ = child.start_kill();
        let _ = child.wait().await;
        Err(problem)
    }

    /// Finds a shim again that another agent has started. One that is not there any more has left a record, or was lost; waiting
    /// for it says which.
    ///
    /// # Errors
    /// When the kernel cannot watch processes (before Linux 5.3).
    pub fn find(id: ProcessId, exit_record: PathBuf) -> Result<Self, ShimError> {
        let process = match open_process(id.pid) {
            // Nobody has its number: its agent was killed before it could write that down.
            _ if id.pid <= 0 => Process::Ended,
            // Looked at after it was opened: from here on the number cannot become another's.
            Ok(process) if id.is_alive() => {
                // SAFETY: the descriptor is owned by what is registered, gives the same number each time it is asked, and stays open
                // until it is dropped.
                let watched = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
                Process::Found(watched.map_err(|error| ShimError::Start(error.to_string()))?)
            }
            Ok(_) => Process::Ended,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Process::Ended,
            Err(error) => return Err(ShimError::Start(format!("process {} cannot be watched: {error}", id.pid))),
        };
        Ok(Self { id, exit_record, process })
    }

    /// Which process it is, for another agent to find it again.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Asks the task to end. The record follows when it has.
    pub fn stop(&self, mode: StopMode) {
        let signal = mode.signal();
        match &self.process {
            // A child that has not been waited for keeps its number.
            Process::Child(child) if child.id().is_some() => drop(kill(Pid::from_raw(self.id.pid), signal)),
            Process::Found(process) => send(process.get_ref(), signal),
            Process::Child(_) | Process::Ended => {}
        }
    }

    /// Waits for the end of the task and of everything it started.
    ///
    /// # Errors
    /// When the shim ended without leaving a record.
    pub async fn ended(&mut self) -> Result<ExitRecord, ShimError> {
        let lost = |error: std::io::Error| ShimError::Lost(error.to_string());
        let how = match &mut self.process {
            Process::Child(child) => {
                let status = child.wait().await.map_err(lost)?;
                status.signal().map_or_else(|| format!("{status}"), |signal| format!("signal {signal}"))
            }
            Process::Found(process) => {
                // Readable when the process has ended.
                let _ended = process.readable().await.map_err(lost)?;
                "while no agent was there".to_owned()
            }
            Process::Ended => "while no agent was there".to_owned(),
        };
        durable::read_json(&self.exit_record)?.ok_or(ShimError::Lost(how))
    }
}

/// The shims that were started for the specification in this file, however little their agent could write down about them.
pub fn find_by_spec(spec: &Path) -> Vec<ProcessId> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command_line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
        // Its own process only: whatever it has started looks different, or is below it anyway.
        if matches!(arguments[..], [_, b"shim", path, b""] if path == spec.as_os_str().as_bytes()) {
            found.extend(ProcessId::of(pid));
        }
    }
    found
}

/// A descriptor that becomes readable when the process ends.
pub(crate) fn open_process(pid: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: takes two plain numbers and makes a new descriptor, which is ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(descriptor) {
        // SAFETY: it was just made for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Sends a signal to the process behind a descriptor, and never to another one. One that has ended does not hear it.
fn send(process: &OwnedFd, signal: Signal) {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: takes an open descriptor, two plain numbers, and a pointer that may be null.
    let _ = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as i32, no_info, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_is_gone_is_lost_and_one_that_ends_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("exit");
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        let mut found = Shim::find(id.clone(), record.clone()).unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(50), found.ended()).await;
        assert!(waited.is_err(), "it is still there");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(found.ended().await, Err(ShimError::Lost(_))));
        // Another process under the same number is not it.
        let me = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let other = ProcessId { start_ticks: me.start_ticks + 1, ..me };
        let mut none = Shim::find(other, record.clone()).unwrap();
        none.stop(StopMode::AtOnce);
        assert!(matches!(none.ended().await, Err(ShimError::Lost(_))));
        // One of which nobody knows more than that it has left a record.
        let unknown = ProcessId { pid: 0, start_ticks: 0, boot_id: String::new() };
        assert!(matches!(Shim::find(unknown, record).unwrap().ended().await, Err(ShimError::Lost(_))));
    }
}
