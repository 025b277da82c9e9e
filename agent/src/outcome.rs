//! How things ended: the outcome of an attempt, an instance, a task and a job.
//!
//! An outcome keeps exit code, signal and cause apart, because none of them says what the others say: a program that
//! exits 137 by itself, one that was killed for its memory, and one that ran out of time look alike to a shell. The JSON
//! that [`JobOutcome`] becomes is the truth; the exit status of `batch-agent run` is only derived from it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::exit;
use crate::metrics::sample::Sample;
use crate::shim::Usage;

/// Whose doing a failure was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The program failed, or the job asks for something that is not there.
    User,
    /// It ran longer than it may.
    Timeout,
    /// It used more memory than it may.
    OutOfMemory,
    /// The scratch disk ran full.
    DiskFull,
    /// The cloud took the instance back.
    SpotReclaim,
    /// A mount could not be made.
    Mount,
    /// Object storage refused or failed.
    Storage,
    /// The agent or the machine failed.
    Platform,
    /// Somebody asked for it to be stopped.
    Cancelled,
}

impl Cause {
    /// As it stands in the JSON, for messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Timeout => "timeout",
            Self::OutOfMemory => "out-of-memory",
            Self::DiskFull => "disk-full",
            Self::SpotReclaim => "spot-reclaim",
            Self::Mount => "mount",
            Self::Storage => "storage",
            Self::Platform => "platform",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The state of a job, a task or an instance, in the words of the job service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It was never started.
    Waiting,
    /// It succeeded.
    Finished,
    /// It failed.
    Failed,
    /// It was stopped, or never started because something before it failed.
    Stopped,
}

/// A failure of ours or of the program's, on its way to becoming an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whose doing.
    pub cause: Cause,
    /// What we exit with when the program itself gives no status.
    pub exit_status: u8,
    /// One line: the thing, the cause, the remedy.
    pub message: String,
}

impl Failure {
    /// A failure with its message.
    pub fn new(cause: Cause, exit_status: u8, message: impl Into<String>) -> Self {
        Self { cause, exit_status, message: message.into() }
    }

    /// A failure of the machine or of the agent.
    pub fn platform(message: impl ToString) -> Self {
        Self::new(Cause::Platform, exit::OS, message.to_string())
    }

    /// What a storage error means while the inputs or the package of a task are got.
    pub fn reading(what: &str, error: &oss::Error) -> Self {
        use oss::ErrorKind as Kind;
        let (cause, exit_status) = match error.kind() {
            Kind::NotFound | Kind::NoSuchBucket => (Cause::User, exit::INPUT_MISSING),
            Kind::Denied | Kind::BadCredentials => (Cause::Storage, exit::DENIED),
            Kind::WrongRegion { .. } | Kind::Invalid => (Cause::User, exit::BAD_SETTINGS),
            Kind::Archived => (Cause::User, exit::INPUT_MISSING),
            Kind::DiskFull => (Cause::DiskFull, exit::OS),
            Kind::LocalFile => (Cause::Platform, exit::OS),
            _ => (Cause::Storage, exit::STORAGE_UNAVAILABLE),
        };
        Self::new(cause, exit_status, format!("{what}: {error}"))
    }

    /// What a storage error means while outputs or logs are sent.
    pub fn writing(what: &str, error: &oss::Error) -> Self {
        use oss::ErrorKind as Kind;
        let exit_status = match error.kind() {
            Kind::Denied | Kind::BadCredentials => exit::DENIED,
            _ => exit::UPLOAD_FAILED,
        };
        Self::new(Cause::Storage, exit_status, format!("{what}: {error}"))
    }
}

impl From<crate::durable::FileError> for Failure {
    fn from(error: crate::durable::FileError) -> Self {
        Self::platform(error)
    }
}

/// What was uploaded, and what was not.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Uploaded {
    /// How many files arrived.
    pub files: u64,
    /// How many bytes that was.
    pub bytes: u64,
    /// What did not arrive, each with its reason.
    pub failed: Vec<String>,
}

/// That what a failed instance has made stays for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// Until when.
    pub until: Timestamp,
    /// The command to look into it with.
    pub enter: String,
}

/// How one attempt of an instance ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceOutcome {
    /// The task.
    pub task: String,
    /// The instance's number, from 0.
    pub instance: u32,
    /// How often it was tried again after a failure of the program's; the platform's are not counted.
    pub retries: u32,
    /// How many attempts there were, this one included. Logs of attempts after the first are named after them.
    #[serde(default)]
    pub attempts: u32,
    /// How it ended.
    pub state: State,
    /// The program's exit code, when it exited.
    pub exit_code: Option<i32>,
    /// The signal that killed it, when one did.
    pub signal: Option<i32>,
    /// Whose doing a failure was.
    pub cause: Option<Cause>,
    /// What to tell a person.
    pub message: Option<String>,
    /// When it began, preparation included.
    pub started: Timestamp,
    /// When it was over, uploads included.
    pub ended: Timestamp,
    /// How long the program itself ran, in milliseconds.
    pub elapsed_ms: Option<u64>,
    /// What the program used.
    pub usage: Option<Usage>,
    /// What the node and the program used while it ran: for each quantity its mean and its peak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<Sample>,
    /// The object its standard output is in.
    pub stdout: Option<String>,
    /// The object its standard error is in.
    pub stderr: Option<String>,
    /// Its outputs.
    pub outputs: Uploaded,
    /// Whether what it has made stays for a person to look into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Reserved>,
    /// Our own exit status for it.
    pub exit_status: u8,
}

impl InstanceOutcome {
    /// One line for a person.
    pub fn summary(&self) -> String {
        let name = format!("{}.{}", self.task, self.instance);
        let cause = self.cause.map_or(String::new(), |cause| format!(" ({})", cause.as_str()));
        let message = self.message.as_deref().map_or(String::new(), |message| format!(": {message}"));
        format!("{name} {:?}{cause}{message}", self.state)
    }
}

/// How a task ended.
#[derive(Debug, Clone, Serialize)]
pub struct TaskOutcome {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub state: State,
    /// Its instances, as far as they were started, by number.
    pub instances: Vec<InstanceOutcome>,
}

/// How a job ended.
#[derive(Debug, Clone, Serialize)]
pub struct JobOutcome {
    /// The format's version.
    pub version: u32,
    /// Its id.
    pub job_id: String,
    /// What its author calls it.
    pub name: String,
    /// How it ended.
    pub state: State,
    /// What `batch-agent run` exits with.
    pub exit_status: u8,
    /// When it began.
    pub started: Timestamp,
    /// When it was over.
    pub ended: Timestamp,
    /// Its tasks, in the order they were run.
    pub tasks: Vec<TaskOutcome>,
}

/// The version of [`JobOutcome`].
pub const VERSION: u32 = 1;

/// The exit status for a program that ended this way: its own, or 128 plus the signal.
pub fn exit_status(exit_code: Option<i32>, signal: Option<i32>) -> Option<u8> {
    match (exit_code, signal) {
        (Some(code), _) => u8::try_from(code & 0xff).ok(),
        (None, Some(signal)) => u8::try_from((128 + signal) & 0xff).ok(),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_a_shells() {
        assert_eq!(exit_status(Some(3), None), Some(3));
        assert_eq!(exit_status(None, Some(9)), Some(137));
        assert_eq!(exit_status(None, None), None);
    }

    #[test]
    fn causes_read_the_same_in_messages_and_json() {
        for cause in [Cause::User, Cause::OutOfMemory, Cause::DiskFull, Cause::SpotReclaim, Cause::Cancelled] {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
    }
}
