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

/// The asking end.
#[derive(Debug)]
pub struct Stopper(watch::Sender<Urgency>);

/// The listening end.
#[derive(Debug, Clone)]
pub struct StopSignal(watch::Receiver<Urgency>);

impl Stopper {
    /// A pair of ends.
    pub fn new() -> (Self, StopSignal) {
        let (sender, receiver) = watch::channel(Urgency::None);
        (Self(sender), StopSignal(receiver))
    }

    /// Asks for an end, more urgently than before: the second time it is at once.
    pub fn ask(&self) {
        self.0.send_modify(|urgency| {
            *urgency = if *urgency == Urgency::None { Urgency::Gracefully } else { Urgency::AtOnce };
        });
    }
}

impl StopSignal {
    /// Whether anybody has asked.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow() > Urgency::None
    }

    /// Waits until it is asked for more urgently than `than`; for ever when nobody can ask any more.
    pub async fn beyond(&mut self, than: Urgency) -> Urgency {
        loop {
            let now = *self.0.borrow_and_update();
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
        assert!(!signal.is_asked());
        stopper.ask();
        assert_eq!(signal.beyond(Urgency::None).await, Urgency::Gracefully);
        stopper.ask();
        assert_eq!(signal.beyond(Urgency::Gracefully).await, Urgency::AtOnce);
        assert!(signal.is_asked());
    }
}
