//! The agent's end of a shim: start it, stop it, read what it wrote.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
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
    #[error("the task's shim ended without a record ({0}); was it killed, or the machine out of memory?")]
    Lost(String),
    /// A file of it could not be written or read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A running shim.
#[derive(Debug)]
pub struct Shim {
    child: Child,
    id: ProcessId,
    exit_record: PathBuf,
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
                    return Ok(Self { child, id, exit_record: spec.exit_record.clone() });
                }
                Ok(Hello::Failed(message)) => ShimError::View(message),
                Err(_) => ShimError::Start("it died".to_owned()),
            },
        };
        let _ = child.start_kill();
        let _ = child.wait().await;
        Err(problem)
    }

    /// Which process it is, for another agent to find it again.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Asks the task to end. The record follows when it has.
    pub fn stop(&self, mode: StopMode) {
        let signal: Signal = match mode {
            StopMode::Gracefully => supervise::STOP,
            StopMode::AtOnce => supervise::KILL,
        };
        // The child is ours and not yet waited for, so the number is still its own.
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for the end of the task and of everything it started.
    ///
    /// # Errors
    /// When the shim ended without leaving a record.
    pub async fn ended(&mut self) -> Result<ExitRecord, ShimError> {
        let status = self.child.wait().await.map_err(|error| ShimError::Lost(error.to_string()))?;
        let how = match status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("{status}"),
        };
        durable::read_json(&self.exit_record)?.ok_or(ShimError::Lost(how))
    }
}
