//! What an attempt came to. Pure.

use jiff::Timestamp;
use oss::Location;

use crate::exit;
use crate::instance::outputs::Delivery;
use crate::job::names::Attempt;
use crate::outcome::{Cause, Failure, InstanceOutcome, State, Uploaded, exit_status};
use crate::shim::{ExitRecord, StartFailure, Stopped};

/// What an attempt comes to.
#[derive(Default)]
pub(super) struct Course {
    pub(super) exit: Option<ExitRecord>,
    /// Whether the program may have done something, although there is no record of its end.
    pub(super) was_lost: bool,
    pub(super) failures: Vec<Failure>,
    pub(super) delivery: Delivery,
    pub(super) disk_was_full: bool,
    pub(super) stdout: Option<Location>,
    pub(super) stderr: Option<Location>,
}

/// How a program ended, in words.
pub(super) fn ending(exit: &ExitRecord) -> String {
    let base = match (&exit.start_failure, exit.exit_code, exit.signal) {
        (Some(failure), ..) => return failure.message.clone(),
        (None, Some(code), _) => format!("exit code {code}"),
        (None, None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown", nix::sys::signal::Signal::as_str);
            format!("killed by signal {signal} ({name})")
        }
        (None, None, None) => exit.lost.clone().unwrap_or_else(|| "no status".to_owned()),
    };
    match exit.stopped {
        Some(Stopped::Timeout) => format!("{base}, after its time limit"),
        Some(Stopped::Request) => format!("{base}, after it was asked to stop"),
        None => base,
    }
}

/// Puts together what an attempt came to. The first thing that went wrong is the cause; the program's own status is kept
/// whatever else failed.
pub(super) fn outcome(attempt: Attempt<'_>, course: Course, cancelled: bool) -> InstanceOutcome {
    let Course { exit, was_lost: _, failures, delivery, disk_was_full, stdout, stderr } = course;
    let uploaded: Uploaded = delivery.summary();
    let own = exit.as_ref().and_then(|exit| failure_of(exit, disk_was_full, stderr.as_ref()));
    let own_status = exit.as_ref().and_then(|exit| match &exit.start_failure {
        Some(failure) if failure.by_platform => None,
        Some(failure) => u8::try_from(failure.exit_code).ok(),
        None => exit_status(exit.exit_code, exit.signal),
    });
    let mut all: Vec<Failure> = own.into_iter().chain(failures).chain(delivery.failed).collect();
    if disk_was_full {
        // Whatever could not be written while the disk was full is explained by that.
        for failure in all.iter_mut().filter(|failure| failure.cause == Cause::Platform) {
            failure.cause = Cause::DiskFull;
        }
    }
    let first = all.first();
    let exit_status = match (own_status, first) {
        (Some(status), _) if status != 0 => status,
        (_, Some(failure)) => failure.exit_status,
        (Some(status), None) => status,
        (None, None) => exit::INTERNAL,
    };
    let is_cancelled = cancelled && first.is_some_and(|failure| failure.cause == Cause::Cancelled);
    let state = match first {
        None => State::Finished,
        Some(_) if is_cancelled => State::Stopped,
        Some(_) => State::Failed,
    };
    let more = all.len().saturating_sub(1);
    let message = first.map(|failure| match more {
        0 => failure.message.clone(),
        more => format!("{} (and {more} more)", failure.message),
    });
    InstanceOutcome {
        task: attempt.task.to_owned(),
        instance: attempt.instance,
        retries: 0,
        attempts: attempt.number,
        state,
        exit_code: exit.as_ref().and_then(|exit| exit.exit_code.or_else(|| own_exit_code(exit.start_failure.as_ref()?))),
        signal: exit.as_ref().and_then(|exit| exit.signal),
        cause: first.map(|failure| failure.cause),
        message,
        started: Timestamp::now(),
        ended: Timestamp::now(),
        elapsed_ms: exit.as_ref().map(|exit| exit.elapsed_ms),
        usage: exit.as_ref().map(|exit| exit.usage),
        stdout: stdout.map(|location| location.to_string()),
        stderr: stderr.map(|location| location.to_string()),
        outputs: uploaded,
        exit_status,
    }
}

/// The status a shell would give for a program that was not started, if that is the program's fault.
fn own_exit_code(failure: &StartFailure) -> Option<i32> {
    (!failure.by_platform).then_some(failure.exit_code)
}

impl Course {
    /// The program's own failure, if it ran and has one.
    pub(super) fn own_failure(&self) -> Option<Failure> {
        failure_of(self.exit.as_ref()?, self.disk_was_full, self.stderr.as_ref())
    }

    /// Whether the program was started, as far as anybody knows.
    pub(super) fn program_ran(&self) -> bool {
        self.exit.as_ref().map_or(self.was_lost, |exit| exit.start_failure.is_none())
    }
}

/// The program's own failure, if it has one.
fn failure_of(exit: &ExitRecord, disk_was_full: bool, stderr: Option<&Location>) -> Option<Failure> {
    if exit.exit_code == Some(0) && exit.stopped.is_none() {
        return None;
    }
    // What is the machine's fault has no status of the program's.
    let by_platform = exit.lost.is_some() || exit.start_failure.as_ref().is_some_and(|failure| failure.by_platform);
    let status =
        if by_platform { exit::OS } else { exit_status(exit.exit_code, exit.signal).unwrap_or(exit::INTERNAL) };
    let seen = stderr.map_or(String::new(), |stderr| format!("; its stderr is in {}", stderr.escaped()));
    let words = ending(exit);
    let (cause, message) = match exit.stopped {
        Some(Stopped::Timeout) => {
            (Cause::Timeout, format!("the program ran longer than its time limit and was stopped ({words})"))
        }
        Some(Stopped::Request) => (Cause::Cancelled, format!("the program was stopped ({words})")),
        None if by_platform => (Cause::Platform, words),
        None if exit.start_failure.is_some() => (Cause::User, words),
        None if disk_was_full => (
            Cause::DiskFull,
            format!(
                "the scratch disk ran full while the program ran ({words}){seen}; give the node a larger data disk"
            ),
        ),
        None => (Cause::User, format!("the program failed: {words}{seen}")),
    };
    Some(Failure::new(cause, status, message))
}
