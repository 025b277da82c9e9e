//! When a worker that has died gets a successor, and when it does not. Pure: the clock is given.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long there may be no worker that answers. After that whoever waits is better served by an error.
pub const DOWN_LIMIT: Duration = Duration::from_secs(30);

/// A worker that ends by itself so often within [`FAULT_WINDOW`] does so because of what it is asked: the request is sent again to
/// each successor, and would be for ever.
const MAX_FAULTS: usize = 8;
const FAULT_WINDOW: Duration = Duration::from_secs(60);

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL: by the kernel for want of memory, or by somebody. No fault of its own.
    Killed,
    /// By another signal or with an exit status: a fault of ours.
    Fault,
    /// To make room for another program.
    Replaced,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Start another after this long.
    Start(Duration),
    /// Abort all mounts: it will not do.
    GiveUp(&'static str),
}

/// The history that decides.
#[derive(Debug)]
pub struct Restarts {
    /// Since when nobody has answered.
    down_since: Option<Instant>,
    attempts: u32,
    faults: VecDeque<Instant>,
}

impl Restarts {
    /// The first worker is being started now.
    pub fn new(now: Instant) -> Self {
        Self { down_since: Some(now), attempts: 0, faults: VecDeque::new() }
    }

    /// A worker answers.
    pub fn ready(&mut self) {
        self.down_since = None;
        self.attempts = 0;
    }

    /// Until when there must be one that answers; none while there is.
    pub fn deadline(&self) -> Option<Instant> {
        self.down_since.map(|since| since + DOWN_LIMIT)
    }

    /// A worker has ended.
    pub fn died(&mut self, now: Instant, death: Death) -> Next {
        let since = *self.down_since.get_or_insert(now);
        if death == Death::Fault {
            self.faults.push_back(now);
        }
        while self.faults.front().is_some_and(|at| now.duration_since(*at) > FAULT_WINDOW) {
            self.faults.pop_front();
        }
        if self.faults.len() > MAX_FAULTS {
            return Next::GiveUp("its workers end by themselves again and again");
        }
        if now.duration_since(since) >= DOWN_LIMIT {
            return Next::GiveUp("no worker has answered for 30 s");
        }
        let pause = match self.attempts {
            0 => Duration::ZERO,
            attempts => FIRST_PAUSE.saturating_mul(1 << (attempts - 1).min(10)).min(LONGEST_PAUSE),
        };
        self.attempts += 1;
        Next::Start(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_successor_comes_at_once_and_later_ones_less_and_less_quickly() {
        let start = Instant::now();
        let mut restarts = Restarts::new(start);
        restarts.ready();
        let pauses: Vec<Duration> = (0..9)
            .map(|_| match restarts.died(start, Death::Killed) {
                Next::Start(pause) => pause,
                Next::GiveUp(why) => panic!("{why}"),
            })
            .collect();
        assert_eq!(pauses[0], Duration::ZERO);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
        assert_eq!(pauses[8], LONGEST_PAUSE);
        restarts.ready();
        assert_eq!(restarts.died(start, Death::Killed), Next::Start(Duration::ZERO));
    }

    #[test]
    fn being_killed_is_no_reason_to_give_up_as_long_as_workers_come_up() {
        let start = Instant::now();
        let mut restarts = Restarts::new(start);
        for second in 0..1000 {
            restarts.ready();
            assert!(matches!(restarts.died(start + Duration::from_secs(second), Death::Killed), Next::Start(_)));
        }
    }

    #[test]
    fn nobody_waits_longer_than_the_limit() {
        let start = Instant::now();
        let mut restarts = Restarts::new(start);
        assert_eq!(restarts.deadline(), Some(start + DOWN_LIMIT));
        assert!(matches!(restarts.died(start + Duration::from_secs(29), Death::Killed), Next::Start(_)));
        assert!(matches!(restarts.died(start + Duration::from_secs(30), Death::Killed), Next::GiveUp(_)));
        restarts.ready();
        assert_eq!(restarts.deadline(), None);
    }

    #[test]
    fn a_request_that_kills_every_worker_ends_the_chain() {
        let start = Instant::now();
        let mut restarts = Restarts::new(start);
        for _ in 0..MAX_FAULTS {
            restarts.ready();
            assert!(matches!(restarts.died(start, Death::Fault), Next::Start(_)));
        }
        restarts.ready();
        assert!(matches!(restarts.died(start, Death::Fault), Next::GiveUp(_)));
        // Long ago is forgiven.
        restarts.ready();
        assert!(matches!(restarts.died(start + FAULT_WINDOW * 2, Death::Fault), Next::Start(_)));
    }
}
