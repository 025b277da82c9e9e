//! How long to bear with a store that does not take a log.

use std::time::Duration;

use oss::{ErrorKind, Location};
use tokio::sync::watch;
use tokio::time::Instant;

/// How long the rest may take to begin to arrive after the task has ended, where storage has taken something before: an hour without
/// storage must cost no log. A node cannot wait for ever.
const DEADLINE: Duration = Duration::from_secs(75 * 60);
/// The same where storage was never there: nobody knows whether it ever will be.
const SHORT_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// The pause before the second try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause, and so the longest that it takes to notice that storage is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often the same trouble is told.
const TELL: Duration = Duration::from_secs(60);

/// Patience with one store.
#[derive(Debug)]
pub(super) struct Patience {
    target: Location,
    ended: watch::Receiver<bool>,
    pause: Duration,
    /// When to give up, once that has to be thought of.
    give_up: Option<Instant>,
    told: Option<Instant>,
    has_worked: bool,
}

impl Patience {
    pub(super) fn new(target: Location, ended: watch::Receiver<bool>) -> Self {
        Self { target, ended, pause: FIRST_PAUSE, give_up: None, told: None, has_worked: false }
    }

    /// Storage has taken something from an agent before this one.
    pub(super) fn has_worked_before(&mut self) {
        self.has_worked = true;
    }

    /// Something has arrived.
    pub(super) fn worked(&mut self) {
        if self.told.take().is_some() {
            tracing::info!(log = %self.target.escaped(), "storage takes the log again");
        }
        (self.pause, self.give_up, self.has_worked) = (FIRST_PAUSE, None, true);
    }

    /// How long to pause after this failure, at this time; none to give up. While the task runs there is nothing to lose by hoping that
    /// somebody mends it. Once it has ended, what no waiting mends is given up at once, and the rest after a deadline.
    fn pause(&mut self, error: &oss::Error, now: Instant) -> Option<Duration> {
        if *self.ended.borrow() {
            let deadline = if self.has_worked { DEADLINE } else { SHORT_DEADLINE };
            let give_up = *self.give_up.get_or_insert(now + deadline);
            let may_pass = match error.kind() {
                ErrorKind::Unavailable | ErrorKind::Throttled { .. } | ErrorKind::Corrupt => true,
                // They were good: they have expired, and whoever has the new ones is away as well.
                ErrorKind::BadCredentials => self.has_worked,
                _ => false,
            };
            if !may_pass || error.is_lasting() || now >= give_up {
                return None;
            }
        }
        let pause = self.pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }

    /// Waits before another try, or gives up.
    pub(super) async fn wait(&mut self, error: oss::Error) -> Result<(), oss::Error> {
        let Some(pause) = self.pause(&error, Instant::now()) else { return Err(error) };
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            tracing::warn!(%error, log = %self.target.escaped(), "log not sent yet; trying again");
            self.told = Some(Instant::now());
        }
        let mut ended = self.ended.clone();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The end of the task is a reason to try at once.
            _ = ended.wait_for(|ended| *ended), if !*self.ended.borrow() => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(ended: bool) -> Patience {
        Patience::new("oss://bucket/log".parse().unwrap(), watch::channel(ended).1)
    }

    /// How often and how long it tries, at most so long.
    fn tries(patience: &mut Patience, kind: &ErrorKind, most: Duration) -> (u32, Duration) {
        let error = oss::Error::new(kind.clone(), "APPEND", "oss://bucket/log", "it is away");
        let (began, mut time, mut tries) = (Instant::now(), Duration::ZERO, 0);
        while let Some(pause) = patience.pause(&error, began + time).filter(|_| time < most) {
            assert!(pause <= LONGEST_PAUSE && pause >= FIRST_PAUSE / 2, "{pause:?}");
            time += pause;
            tries += 1;
        }
        (tries, time)
    }

    #[test]
    fn an_hour_without_storage_is_borne_and_its_end_is_soon_noticed() {
        for kind in [ErrorKind::Unavailable, ErrorKind::BadCredentials] {
            let mut patience = patience(true);
            patience.has_worked_before();
            let (count, time) = tries(&mut patience, &kind, 2 * DEADLINE);
            assert!(time >= DEADLINE && time <= DEADLINE + LONGEST_PAUSE, "{kind:?}: {time:?}");
            // Each pause is between half of the longest and all of it.
            assert!((900..=1900).contains(&count), "{kind:?}: {count}");
            // What arrives makes it patient again, from the shortest pause on.
            patience.worked();
            let (_, time) = tries(&mut patience, &kind, FIRST_PAUSE / 2);
            assert!(time <= FIRST_PAUSE, "{time:?}");
        }
    }

    #[test]
    fn what_was_never_there_is_not_waited_for_as_long() {
        let (_, time) = tries(&mut patience(true), &ErrorKind::Unavailable, DEADLINE);
        assert!(time >= SHORT_DEADLINE && time <= SHORT_DEADLINE + LONGEST_PAUSE, "{time:?}");
        for kind in [ErrorKind::BadCredentials, ErrorKind::Denied] {
            assert_eq!(tries(&mut patience(true), &kind, DEADLINE), (0, Duration::ZERO));
        }
    }

    #[test]
    fn while_the_task_runs_nothing_is_given_up() {
        for kind in [ErrorKind::BadCredentials, ErrorKind::Denied, ErrorKind::Unavailable] {
            assert!(tries(&mut patience(false), &kind, 3 * DEADLINE).1 >= 3 * DEADLINE);
        }
    }
}
