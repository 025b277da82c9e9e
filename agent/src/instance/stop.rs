//! The request to stop, as it travels from a signal to whoever is waiting.

use tokio::sync::watch;

use crate::shim::StopMode;

/// How urgent it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nobody has asked.
    None,
    /// The task is to end: SIGTERM, grace, SIGKILL.
    Gracefully,
    /// The task is to end at once.
    AtOnce,
}

/// Why the task is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Somebody wants it to.
    Cancelled,
    /// The cloud takes the instance back, as these words say.
    SpotReclaim(String),
}

#[derive(Debug, Clone)]
struct Asked {
    urgency: Urgency,
    /// Of whoever asked first.
    reason: Option<Reason>,
}

/// The asking end.
#[derive(Debug)]
pub struct Stopper(watch::Sender<Asked>);

/// The listening end.
#[derive(Debug, Clone)]
pub struct StopSignal(watch::Receiver<Asked>);

impl Stopper {
    /// A pair of ends.
    pub fn new() -> (Self, StopSignal) {
        let (sender, receiver) = watch::channel(Asked { urgency: Urgency::None, reason: None });
        (Self(sender), StopSignal(receiver))
    }

    /// Asks for an end because somebody wants it, more urgently than before: the second time it is at once.
    pub fn ask(&self) {
        self.ask_for(Reason::Cancelled);
    }

    /// The same for a reason. Who asked first is why the task ends.
    pub fn ask_for(&self, reason: Reason) {
        self.0.send_modify(|asked| {
            let is_first = asked.urgency == Urgency::None;
            asked.urgency = if is_first { Urgency::Gracefully } else { Urgency::AtOnce };
            asked.reason.get_or_insert(reason);
        });
    }
}

impl StopSignal {
    /// Whether anybody has asked.
    pub fn is_asked(&self) -> bool {
        self.0.borrow().urgency > Urgency::None
    }

    /// Why, if anybody has.
    pub fn reason(&self) -> Option<Reason> {
        self.0.borrow().reason.clone()
    }

    /// Waits until it is asked for more urgently than `than`; for ever when nobody can ask any more.
    pub async fn beyond(&mut self, than: Urgency) -> Urgency {
        loop {
            let now = self.0.borrow_and_update().urgency;
            if now > than {
                return now;
            }
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Urgency {
    /// What the shim is told.
    pub fn mode(self) -> StopMode {
        if self == Self::AtOnce { StopMode::AtOnce } else { StopMode::Gracefully }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn asking_twice_is_urgent() {
        let (stopper, mut signal) = Stopper::new();
        assert!(!signal.is_asked() && signal.reason().is_none());
        stopper.ask();
        assert_eq!(signal.beyond(Urgency::None).await, Urgency::Gracefully);
        stopper.ask_for(Reason::SpotReclaim("at noon".to_owned()));
        assert_eq!(signal.beyond(Urgency::Gracefully).await, Urgency::AtOnce);
        assert!(signal.is_asked());
        assert_eq!(signal.reason(), Some(Reason::Cancelled), "the first one counts");
    }
}
