//! Whether an attempt that failed is followed by another one.
//!
//! There are two accounts. What a *program* does is its author's: `retries` says how often it may be started again, and some failures
//! are final however many are left, because another attempt would fail as well. What the *platform* does (a mount that cannot
//! be made, storage that is away, a fault of the machine) is not counted against the author. It is answered by [`FAULTS`] more
//! attempts, with pauses that grow. One thing is the author's in either case: a program that may have done something already is only
//! started again where the author has said that this is all right, by allowing retries at all.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exit;
use crate::job::Task;
use crate::outcome::{Cause, Failure};

/// How often a fault of the platform's is answered by another attempt. What it waits for has waited before, each within its own
/// deadline, so this is for what passes and not for what stays.
pub const FAULTS: u32 = 3;

/// The pause before the first of those; each next one is four times as long.
const PAUSE: Duration = Duration::from_secs(2);

/// The attempts before this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// Those that failed by the program's doing.
    pub retries: u32,
    /// Those that failed by the platform's.
    pub faults: u32,
}

/// What comes after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: how it ended is how the instance ended.
    Over,
    /// Another attempt.
    Again {
        /// How many there will have been before it.
        tries: Tries,
        /// How long to wait first.
        pause: Duration,
    },
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// Whose doing.
    pub cause: Cause,
    /// What we would exit with: the program's own status, if it had one.
    pub exit_status: u8,
    /// Whether the program had been started.
    pub program_ran: bool,
}

impl Failed {
    /// The failure of an attempt in which the program ran, or did not.
    pub fn new(failure: &Failure, program_ran: bool) -> Self {
        Self { cause: failure.cause, exit_status: failure.exit_status, program_ran }
    }

    fn is_fault(self) -> bool {
        match self.cause {
            Cause::Mount | Cause::Platform => true,
            // Who is not let in now will not be let in a little later.
            Cause::Storage => self.exit_status != exit::DENIED,
            _ => false,
        }
    }
}

impl Tries {
    /// Which attempt this is, from 1.
    pub fn attempt(self) -> u32 {
        self.retries.saturating_add(self.faults).saturating_add(1)
    }

    /// What comes after this attempt, which has failed. `faults` is how many of the platform's are put up with.
    pub fn after(self, task: &Task, failed: Failed, faults: u32) -> Next {
        if failed.is_fault() {
            let may_run_again = !failed.program_ran || task.max_retries > 0;
            if self.faults >= faults || !may_run_again {
                return Next::Over;
            }
            let pause = PAUSE * 4_u32.saturating_pow(self.faults.min(4));
            return Next::Again { tries: Self { faults: self.faults + 1, ..self }, pause };
        }
        let is_final = match failed.cause {
            // The node is on its way out, or somebody wanted the end.
            Cause::SpotReclaim | Cause::Cancelled => true,
            Cause::Timeout => !task.retry_rules.timeouts,
            _ => failed.program_ran && task.retry_rules.never.contains(&failed.exit_status),
        };
        if is_final || self.retries >= task.max_retries {
            return Next::Over;
        }
        Next::Again { tries: Self { retries: self.retries + 1, ..self }, pause: Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Format, read};

    fn task(max_retries: u32, never: &[u8], timeouts: bool) -> Task {
        let (job, _) = read(b"version: 1\ntasks: {a: {command: x}}", Format::Yaml).unwrap();
        let mut task = job.tasks.into_iter().next().unwrap();
        task.max_retries = max_retries;
        task.retry_rules.never = never.iter().copied().collect();
        task.retry_rules.timeouts = timeouts;
        task
    }

    fn failed(cause: Cause, exit_status: u8, program_ran: bool) -> Failed {
        Failed { cause, exit_status, program_ran }
    }

    /// What becomes of an instance whose every attempt fails this way: how often it was tried again on either account.
    fn all(task: &Task, failed: Failed) -> Tries {
        let mut tries = Tries::default();
        while let Next::Again { tries: next, .. } = tries.after(task, failed, FAULTS) {
            assert_eq!(next.attempt(), tries.attempt() + 1);
            tries = next;
        }
        tries
    }

    #[test]
    fn each_failure_is_on_its_account() {
        let (none, two) = (task(0, &[], false), task(2, &[], false));
        let tries = |retries, faults| Tries { retries, faults };
        for (cause, status, ran, of_none, of_two) in [
            (Cause::User, 1, true, tries(0, 0), tries(2, 0)),
            (Cause::User, exit::INPUT_MISSING, false, tries(0, 0), tries(2, 0)),
            (Cause::OutOfMemory, 137, true, tries(0, 0), tries(2, 0)),
            (Cause::DiskFull, 1, true, tries(0, 0), tries(2, 0)),
            (Cause::Timeout, 143, true, tries(0, 0), tries(0, 0)),
            (Cause::Cancelled, 143, true, tries(0, 0), tries(0, 0)),
            (Cause::SpotReclaim, 143, true, tries(0, 0), tries(0, 0)),
            (Cause::Mount, exit::OS, false, tries(0, FAULTS), tries(0, FAULTS)),
            (Cause::Platform, exit::OS, false, tries(0, FAULTS), tries(0, FAULTS)),
            (Cause::Storage, exit::STORAGE_UNAVAILABLE, false, tries(0, FAULTS), tries(0, FAULTS)),
            (Cause::Storage, exit::DENIED, false, tries(0, 0), tries(2, 0)),
            // A program that ran is not run again unless its author allows it.
            (Cause::Platform, exit::OS, true, tries(0, 0), tries(0, FAULTS)),
            (Cause::Storage, exit::UPLOAD_FAILED, true, tries(0, 0), tries(0, FAULTS)),
        ] {
            let failed = failed(cause, status, ran);
            assert_eq!((all(&none, failed), all(&two, failed)), (of_none, of_two), "{failed:?}");
        }
    }

    #[test]
    fn authors_say_what_is_final() {
        let task = task(3, &[2, 137], true);
        let retries = |cause, status, ran| all(&task, failed(cause, status, ran)).retries;
        assert_eq!(retries(Cause::User, 2, true), 0);
        assert_eq!(retries(Cause::OutOfMemory, 137, true), 0, "128 + N for signal N");
        assert_eq!(retries(Cause::User, 3, true), 3);
        assert_eq!(retries(Cause::User, 2, false), 3, "a status of ours is no exit code");
        assert_eq!(retries(Cause::Timeout, 143, true), 3);
    }

    #[test]
    fn pauses_grow_and_the_accounts_are_apart() {
        let task = task(1, &[], false);
        let mut tries = Tries { retries: 1, faults: 0 };
        let mut pauses = Vec::new();
        while let Next::Again { tries: next, pause } = tries.after(&task, failed(Cause::Mount, exit::OS, false), FAULTS)
        {
            pauses.push(pause.as_secs());
            tries = next;
        }
        assert_eq!((pauses, tries), (vec![2, 8, 32], Tries { retries: 1, faults: FAULTS }));
        let faulty = Tries { retries: 0, faults: FAULTS };
        let next = Next::Again { tries: Tries { retries: 1, faults: FAULTS }, pause: Duration::ZERO };
        assert_eq!(faulty.after(&task, failed(Cause::User, 1, true), FAULTS), next);
    }
}
