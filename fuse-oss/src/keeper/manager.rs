//! What the keeper tells the service manager that has started it, if one has: that the server answers, that it lives, and that it
//! is about to end.
//!
//! It is the keeper and not its worker that says so: the keeper is the service's main process, and stays it when workers and programs
//! change. It feeds the watchdog from the one place where it waits. So a keeper that hangs is found out by the watchdog, and a worker that
//! does not come up by the keeper, which then ends by itself ([`restarts`](super::restarts)).

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::debug;

/// The line to the service manager.
#[derive(Debug)]
pub struct Manager {
    /// How often the watchdog is fed; none when nobody watches.
    beat: Option<Duration>,
    next: Instant,
    is_stopping: bool,
    is_busy: bool,
}

impl Manager {
    /// Whether somebody watches is in the environment, which a program that takes over has as well.
    pub fn new(now: Instant) -> Self {
        Self::watched(sd_notify::watchdog_enabled(), now)
    }

    fn watched(limit: Option<Duration>, now: Instant) -> Self {
        // Two may be late before it bites.
        Self { beat: limit.map(|limit| limit / 3), next: now, is_stopping: false, is_busy: false }
    }

    /// When the watchdog is to be fed next.
    pub fn due(&self) -> Option<Instant> {
        self.beat.map(|_| self.next)
    }

    /// Feeds the watchdog if it is time. Answers whether it was.
    pub fn beat(&mut self, now: Instant) -> bool {
        let Some(beat) = self.beat.filter(|_| now >= self.next) else { return false };
        self.next = now + beat;
        tell(&[NotifyState::Watchdog]);
        true
    }

    /// There is something to do first: that the server answers will not be all that somebody waits for.
    pub fn hold(&mut self) {
        self.is_busy = true;
    }

    /// That is done.
    pub fn release(&mut self) {
        self.is_busy = false;
        self.ready();
    }

    /// The server answers.
    pub fn ready(&self) {
        if self.is_busy {
            return;
        }
        tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
    }

    /// The server unmounts everything and ends. Said once.
    pub fn stopping(&mut self) {
        if !std::mem::replace(&mut self.is_stopping, true) {
            tell(&[NotifyState::Stopping, NotifyState::Status("unmounting")]);
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_fed_three_times_in_its_limit_and_only_when_there_is_one() {
        let start = Instant::now();
        let mut manager = Manager::watched(Some(Duration::from_secs(30)), start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(manager.due(), Some(start));
        assert!(manager.beat(start));
        assert_eq!(manager.due(), Some(after(10)));
        assert!(!manager.beat(after(9)));
        assert!(manager.beat(after(12)));
        assert_eq!(manager.due(), Some(after(22)), "from when it was fed, not from when it should have been");
        let mut nobody = Manager::watched(None, start);
        assert_eq!(nobody.due(), None);
        assert!(!nobody.beat(after(1000)));
    }
}
