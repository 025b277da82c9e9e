//! What an attempt came to. Pure.

use jiff::Timestamp;
use oss::Location;

use super::Evidence;
use crate::exit;
use crate::instance::Reason;
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
    pub(super) evidence: Evidence,
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
pub(super) fn outcome(attempt: Attempt<'_>, course: Course, asked: Option<&Reason>) -> InstanceOutcome {
    let Course { exit, was_lost: _, failures, delivery, disk_was_full, stdout, stderr, evidence: _ } = course;
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
    if let Some(Reason::SpotReclaim(words)) = asked {
        for failure in all.iter_mut().filter(|failure| failure.cause == Cause::Cancelled) {
            failure.cause = Cause::SpotReclaim;
            failure.message = format!("{words}: {}", failure.message);
        }
    }
    let first = all.first();
    let exit_status = match (own_status, first) {
        (Some(status), _) if status != 0 => status,
        (_, Some(failure)) => failure.exit_status,
        (Some(status), None) => status,
        (None, None) => exit::INTERNAL,
    };
    // Also when the one who asked for it has been replaced since: the program's end says so.
    let was_asked = asked.is_some() || exit.as_ref().is_some_and(|exit| exit.stopped == Some(Stopped::Request));
    let is_cancelled = was_asked && first.is_some_and(|failure| failure.cause == Cause::Cancelled);
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
    let message = message.or_else(|| exit.as_ref().and_then(remark));
    InstanceOutcome {
        task: attempt.task.to_owned(),
        instance: attempt.instance,
        retries: 0,
        attempts: attempt.number,
        state,
        exit_code: exit
            .as_ref()
            .and_then(|exit| exit.exit_code.or_else(|| own_exit_code(exit.start_failure.as_ref()?))),
        signal: exit.as_ref().and_then(|exit| exit.signal),
        cause: first.map(|failure| failure.cause),
        message,
        started: Timestamp::now(),
        ended: Timestamp::now(),
        elapsed_ms: exit.as_ref().map(|exit| exit.elapsed_ms),
        usage: exit.as_ref().map(|exit| exit.usage),
        stdout: stdout.map(|location| location.to_string()),
        stderr: stderr.map(|location| location.to_string()),
        figures: None,
        outputs: uploaded,
        reserved: None,
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
        // The kernel's own count, and not the status: anything can send SIGKILL, and any program can exit with 137.
        None if ran_out_of_memory(exit) => (
            Cause::OutOfMemory,
            format!("the program ran out of memory: {} ({words}){seen}; {}", killed_for_memory(exit), remedy(exit)),
        ),
        None if disk_was_full => (
            Cause::DiskFull,
            format!(
                "the scratch disk ran full while the program ran ({words}){seen}; give the node a larger data disk"
            ),
        ),
        None => (Cause::User, format!("the program failed: {words}{}{}{seen}", not_for_memory(exit), refused(exit))),
    };
    Some(Failure::new(cause, status, message))
}

fn ran_out_of_memory(exit: &ExitRecord) -> bool {
    exit.usage.oom_kills.is_some_and(|kills| kills > 0)
}

/// What a person is told about a program that succeeded although something of it was killed. Nothing else knows of it.
fn remark(exit: &ExitRecord) -> Option<String> {
    (ran_out_of_memory(exit) && exit.exit_code == Some(0)).then(|| {
        format!("the program finished, but {}: is its result whole? {}", killed_for_memory(exit), remedy(exit))
    })
}

fn killed_for_memory(exit: &ExitRecord) -> String {
    match exit.usage.oom_kills {
        Some(1) => "the kernel has killed one process of it for want of memory".to_owned(),
        kills => format!("the kernel has killed {} processes of it for want of memory", kills.unwrap_or_default()),
    }
}

fn remedy(exit: &ExitRecord) -> String {
    let peak = exit.usage.memory_peak_bytes.map(|bytes| format!("it had {} MiB at most; ", bytes >> 20));
    format!("{}raise its limit of memory, or give it a larger machine", peak.unwrap_or_default())
}

/// What may well be why a program failed: it was not let start another process.
fn refused(exit: &ExitRecord) -> String {
    match exit.usage.pids_refused {
        None | Some(0) => String::new(),
        Some(times) => format!(", after it was refused another process {times} times by its limit of processes (pids)"),
    }
}

/// What looks like the kernel's doing and is known not to be.
fn not_for_memory(exit: &ExitRecord) -> &'static str {
    const KILLED: i32 = 128 + libc::SIGKILL;
    let looks_like_it = exit.signal == Some(libc::SIGKILL) || exit.exit_code == Some(KILLED);
    if looks_like_it && exit.usage.oom_kills == Some(0) { ", and not for want of memory" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(change: impl FnOnce(&mut ExitRecord)) -> ExitRecord {
        let json = serde_json::json!({
            "version": 1, "started": "2024-01-01T00:00:00Z", "ended": "2024-01-01T00:00:01Z", "elapsed_ms": 1000,
            "exit_code": null, "signal": null, "stopped": null, "start_failure": null, "left_behind": 0,
            "usage": {"user_ms": 0, "system_ms": 0, "max_resident_bytes": 0},
        });
        let mut record = serde_json::from_value(json).unwrap();
        change(&mut record);
        record
    }

    fn came(disk_was_full: bool, exit: ExitRecord) -> InstanceOutcome {
        let attempt = Attempt { job: "j", task: "t", instance: 0, number: 1 };
        outcome(attempt, Course { exit: Some(exit), disk_was_full, ..Course::default() }, None)
    }

    #[test]
    fn each_end_has_its_cause() {
        let killed = |record: &mut ExitRecord| record.signal = Some(9);
        let code = |code| move |record: &mut ExitRecord| record.exit_code = Some(code);
        let oom = |kills| move |record: &mut ExitRecord| record.usage.oom_kills = Some(kills);
        let both = |a: &dyn Fn(&mut ExitRecord), b: &dyn Fn(&mut ExitRecord)| {
            record(|record| {
                a(record);
                b(record);
            })
        };
        for (exit, cause, status, words) in [
            (
                both(&killed, &oom(1)),
                Cause::OutOfMemory,
                137,
                "one process of it for want of memory (killed by signal 9",
            ),
            (both(&code(137), &oom(2)), Cause::OutOfMemory, 137, "2 processes of it"),
            (both(&code(1), &oom(1)), Cause::OutOfMemory, 1, "exit code 1"),
            (both(&code(137), &oom(0)), Cause::User, 137, "exit code 137, and not for want of memory"),
            (both(&killed, &oom(0)), Cause::User, 137, "(SIGKILL), and not for want of memory"),
            // Where nobody counts, nothing is claimed.
            (record(killed), Cause::User, 137, "the program failed: killed by signal 9 (SIGKILL)"),
            (record(code(3)), Cause::User, 3, "exit code 3"),
        ] {
            let outcome = came(false, exit);
            assert_eq!((outcome.state, outcome.cause, outcome.exit_status), (State::Failed, Some(cause), status));
            let message = outcome.message.unwrap();
            assert!(message.contains(words), "{message:?} lacks {words:?}");
        }
        let full = came(true, record(code(1)));
        assert_eq!(full.cause, Some(Cause::DiskFull));
        let timeout = came(true, both(&killed, &|record| record.stopped = Some(Stopped::Timeout)));
        assert_eq!(timeout.cause, Some(Cause::Timeout));
        let cancelled = came(false, both(&code(143), &|record| record.stopped = Some(Stopped::Request)));
        assert_eq!((cancelled.cause, cancelled.state), (Some(Cause::Cancelled), State::Stopped));
    }

    #[test]
    fn a_program_that_survives_its_childs_end_finishes_and_both_are_told() {
        let outcome = came(
            false,
            record(|record| {
                record.exit_code = Some(0);
                record.usage.oom_kills = Some(1);
            }),
        );
        assert_eq!((outcome.state, outcome.cause, outcome.exit_status), (State::Finished, None, 0));
        assert!(outcome.message.unwrap().contains("one process of it for want of memory"));
    }
}
