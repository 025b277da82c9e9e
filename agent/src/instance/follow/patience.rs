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

    /// Something has arrived.
    pub(super) fn worked(&mut self) {
        if self.told.take().is_some() {
            tracing::info!(log = %self.target.escaped(), "storage takes the log again");
        }
        (self.pause, self.give_up, self.has_worked) = (FIRST_PAUSE, None, true);
    }

    /// Waits before another try, or gives up. While the task runs there is nothing to lose by hoping that somebody mends it. Once it has
    /// ended, what no waiting mends is given up at once, and the rest after a deadline.
    pub(super) async fn wait(&mut self, error: oss::Error) -> Result<(), oss::Error> {
        if *self.ended.borrow() {
            let deadline = if self.has_worked { DEADLINE } else { SHORT_DEADLINE };
            let give_up = *self.give_up.get_or_insert_with(|| Instant::now() + deadline);
            let may_pass =
                matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Throttled { .. } | ErrorKind::Corrupt);
            if !may_pass || error.is_lasting() || Instant::now() >= give_up {
                return Err(error);
            }
        }
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            tracing::warn!(%error, log = %self.target.escaped(), "log not sent yet; trying again");
            self.told = Some(Instant::now());
        }
        let pause = self.pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let mut ended = self.ended.clone();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The end of the task is a reason to try at once.
            _ = ended.wait_for(|ended| *ended), if !*self.ended.borrow() => {}
        }
        Ok(())
    }
}
