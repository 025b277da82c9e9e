//! How an attempt ended, as the shim saw it.

use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Why a program could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// The status a shell would give: 127 when the program was not found, 126 when it cannot be executed.
    pub exit_code: i32,
    /// What is wrong and what to do about it.
    pub message: String,
    /// Whether the machine is to blame and not the program: a container engine that failed.
    #[serde(default)]
    pub by_platform: bool,
}

/// Who ended the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stopped {
    /// It ran longer than its time limit.
    Timeout,
    /// The agent asked for it.
    Request,
}

/// What the program used, with all that it has started where the machine has control groups, else with what it has waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, in milliseconds.
    pub user_ms: u64,
    /// CPU time in the kernel, in milliseconds.
    pub system_ms: u64,
    /// The largest resident set of any one process, in bytes.
    pub max_resident_bytes: u64,
    /// The most memory of all processes at once, in bytes, page cache included; nothing where the machine does not count it.
    #[serde(default)]
    pub memory_peak_bytes: Option<u64>,
    /// How many of its processes the kernel has killed for want of memory; nothing where the machine does not count them.
    #[serde(default)]
    pub oom_kills: Option<u64>,
    /// How often it was refused another process or thread because of its limit; nothing where the machine does not count that.
    #[serde(default)]
    pub pids_refused: Option<u64>,
}

/// The exit record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The format's version.
    pub version: u32,
    /// When the program was started.
    pub started: Timestamp,
    /// When it had ended.
    pub ended: Timestamp,
    /// How long it ran by the monotonic clock, in milliseconds.
    pub elapsed_ms: u64,
    /// Its exit code, when it exited.
    pub exit_code: Option<i32>,
    /// The signal that killed it, when one did.
    pub signal: Option<i32>,
    /// Who ended it, when it did not end by itself.
    pub stopped: Option<Stopped>,
    /// Set when it never ran.
    pub start_failure: Option<StartFailure>,
    /// Why nobody knows how it ended: its container is gone.
    #[serde(default)]
    pub lost: Option<String>,
    /// What it used.
    pub usage: Usage,
    /// How many processes it had left behind, which were killed.
    pub left_behind: u32,
    /// How many processes had not ended within the grace after they were asked to, and were killed.
    #[serde(default)]
    pub outlived_grace: u32,
    /// How many processes could not be killed: they hang in the kernel.
    #[serde(default)]
    pub stuck: u32,
    /// What could not be done for it here, such as limits that are not enforced.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The version of [`ExitRecord`].
const VERSION: u32 = 1;

/// A moment on both clocks: one to show, one to measure with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    wall: SystemTime,
    pub(crate) monotonic: Instant,
}

impl Clock {
    pub(crate) fn now() -> Self {
        Self { wall: SystemTime::now(), monotonic: Instant::now() }
    }

    /// A moment before now. What another clock calls the future is now.
    pub(crate) fn at(wall: Timestamp) -> Self {
        let now = Self::now();
        let ago = now.wall.duration_since(wall.into()).unwrap_or_default();
        let monotonic = now.monotonic.checked_sub(ago).unwrap_or(now.monotonic);
        Self { wall: now.wall - ago, monotonic }
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    // Outside of jiff's years -9999 to 9999 the clock is broken anyway.
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl ExitRecord {
    pub(crate) fn not_started(failure: StartFailure, started: Clock) -> Self {
        Self { start_failure: Some(failure), ..Self::ended(started) }
    }

    pub(crate) fn ended(started: Clock) -> Self {
        Self::ended_at(started, Clock::now())
    }

    pub(crate) fn ended_at(started: Clock, ended: Clock) -> Self {
        Self {
            version: VERSION,
            started: timestamp(started.wall),
            ended: timestamp(ended.wall),
            elapsed_ms: u64::try_from(ended.monotonic.saturating_duration_since(started.monotonic).as_millis())
                .unwrap_or(u64::MAX),
            exit_code: None,
            signal: None,
            stopped: None,
            start_failure: None,
            lost: None,
            usage: Usage::default(),
            left_behind: 0,
            outlived_grace: 0,
            stuck: 0,
            notes: Vec::new(),
        }
    }
}
