//! The request to stop, as it travels from a signal, or from `batch-agent cancel`, to whoever is waiting.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::durable::{self, FileError};

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

/// How often it is looked whether somebody has asked for the end of an instance.
const LOOK: Duration = Duration::from_millis(250);

/// A request to stop one instance, as a file: it reaches the agent that is there, and the one after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Whether it is to be killed without being asked to end first.
    pub at_once: bool,
}

impl StopRequest {
    /// Leaves it in `file`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn leave(self, file: &Path) -> Result<(), FileError> {
        durable::replace_json(file, &self)
    }

    fn look(file: &Path) -> Option<Self> {
        // Looked at first: reading says in the log what is wrong with a file, and there is none nearly always.
        if !file.exists() {
            return None;
        }
        durable::read_json(file).ok().flatten()
    }
}

/// Listens to the request in a file until it is dropped.
#[derive(Debug)]
pub(super) struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StopSignal {
    /// This signal, and beside it the request that somebody may leave in `file`.
    pub(super) fn with_requests_in(mut self, file: PathBuf) -> (Self, Listening) {
        let (sender, both) = watch::channel(self.0.borrow().clone());
        let listening = tokio::spawn(async move {
            let raise = |to: Urgency, reason: Option<Reason>| {
                sender.send_if_modified(|asked| {
                    let is_more = to > asked.urgency;
                    if is_more {
                        *asked = Asked { urgency: to, reason: asked.reason.take().or(reason) };
                    }
                    is_more
                })
            };
            let mut heard = sender.borrow().urgency;
            let mut look = tokio::time::interval(LOOK);
            loop {
                tokio::select! {
                    urgency = self.beyond(heard) => {
                        heard = urgency;
                        raise(urgency, self.reason());
                    }
                    _ = look.tick() => if let Some(request) = StopRequest::look(&file) {
                        let urgency = if request.at_once { Urgency::AtOnce } else { Urgency::Gracefully };
                        raise(urgency, Some(Reason::Cancelled));
                    }
                }
            }
        });
        (Self(both), Listening(listening))
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

    #[tokio::test]
    async fn a_file_asks_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("request");
        let (stopper, signal) = Stopper::new();
        let (mut both, _listening) = signal.clone().with_requests_in(file.clone());
        assert!(!both.is_asked());
        StopRequest { at_once: false }.leave(&file).unwrap();
        assert_eq!(both.beyond(Urgency::None).await, Urgency::Gracefully);
        assert!(!signal.is_asked(), "others are not stopped");
        stopper.ask();
        stopper.ask();
        assert_eq!(both.beyond(Urgency::Gracefully).await, Urgency::AtOnce);
        // One that had been asked already.
        let (mut both, _listening) = signal.with_requests_in(file);
        assert_eq!(both.beyond(Urgency::Gracefully).await, Urgency::AtOnce);
    }
}
