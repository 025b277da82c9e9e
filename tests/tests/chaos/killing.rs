//! When an agent is killed, and what that was the end of.

use std::fmt;
use std::process::Child;
use std::time::{Duration, Instant};

use fastrand::Rng;

/// What agents say when something begins or is over: moments in which much is half done.
const WORDS: [&str; 8] = [
    "running the task of",
    "fetching the package",
    "mounting inputs",
    "starting ",
    "going on with what",
    "the program has ended",
    "trying again",
    "the node has done its work",
];

/// How long an agent has for saying something.
const PATIENCE: Duration = Duration::from_secs(1);

/// A moment to kill an agent at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moment {
    /// So long after its start.
    After(Duration),
    /// So long after it has said this, or after [`PATIENCE`] if it does not.
    Said(&'static str, Duration),
}

impl Moment {
    pub(super) fn any(dice: &mut Rng) -> Self {
        match dice.u8(0..10) {
            0..4 => Self::After(Duration::from_millis(dice.u64(0..500))),
            4 => Self::After(Duration::from_millis(dice.u64(0..2500))),
            _ => Self::Said(WORDS[dice.usize(..WORDS.len())], Duration::from_micros(dice.u64(0..60_000))),
        }
    }

    /// Waits for the moment and kills `agent`, unless it ends before. Says whether it was killed.
    pub(super) fn kill(self, agent: &mut Child, said: impl Fn() -> String) -> bool {
        let began = Instant::now();
        let mut due = match self {
            Self::After(pause) => Some(began + pause),
            Self::Said(..) => None,
        };
        loop {
            if agent.try_wait().unwrap().is_some() {
                return false;
            }
            if let (None, Self::Said(words, pause)) = (due, self)
                && (said().contains(words) || began.elapsed() > PATIENCE)
            {
                due = Some(Instant::now() + pause);
            }
            let now = Instant::now();
            match due {
                Some(due) if now >= due => {
                    agent.kill().unwrap();
                    // It may just have ended.
                    return agent.wait().unwrap().code().is_none();
                }
                Some(due) => std::thread::sleep((due - now).min(Duration::from_millis(5))),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

/// How often agents were killed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kills {
    before_the_program: usize,
    while_it_ran: usize,
    after_it: usize,
}

impl Kills {
    /// One more, at this state of the task.
    pub(super) fn count(&mut self, has_begun: bool, has_ended: bool) {
        *match (has_begun, has_ended) {
            (_, true) => &mut self.after_it,
            (true, false) => &mut self.while_it_ran,
            (false, false) => &mut self.before_the_program,
        } += 1;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.before_the_program += other.before_the_program;
        self.while_it_ran += other.while_it_ran;
        self.after_it += other.after_it;
    }

    pub(super) fn agents(&self) -> usize {
        self.before_the_program + self.while_it_ran + self.after_it
    }

    pub(super) fn while_it_ran(&self) -> usize {
        self.while_it_ran
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before_the_program, while_it_ran, after_it } = self;
        write!(
            f,
            "{} agents killed: {before_the_program} before the program, {while_it_ran} while it ran, {after_it} after it",
            self.agents()
        )
    }
}
