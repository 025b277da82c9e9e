//! The steps of the boot sequence, and what is the same for all of them: a deadline, timing, and telling.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::story::{State, Teller};
use crate::events::Event;
use crate::exit;
use crate::outcome::{Cause, Failure};

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Reading the settings.
    Settings,
    /// Finding out who this node is.
    Identity,
    /// Preparing disks.
    Disks,
    /// NAS and Lustre.
    NetworkMounts,
    /// Object storage.
    ObjectMounts,
    /// The start-up script.
    Bootstrap,
    /// The task, its logs and its outputs.
    Task,
    /// Sending the node's own story.
    Report,
}

impl Phase {
    /// All of them, in order; the two kinds of mounts are made side by side.
    pub const ALL: [Self; 8] = [
        Self::Settings,
        Self::Identity,
        Self::Disks,
        Self::NetworkMounts,
        Self::ObjectMounts,
        Self::Bootstrap,
        Self::Task,
        Self::Report,
    ];

    /// As it stands in the story.
    pub fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Identity => "identity",
            Self::Disks => "disks",
            Self::NetworkMounts => "network-mounts",
            Self::ObjectMounts => "object-mounts",
            Self::Bootstrap => "bootstrap",
            Self::Task => "task",
            Self::Report => "report",
        }
    }
}

/// What a step came to.
#[derive(Debug)]
pub enum Came<T> {
    /// It was done; in words, if there is something to say.
    To(T, Option<String>),
    /// There was nothing to do.
    ToNothing(T),
}

/// A step that failed.
#[derive(Debug)]
pub struct Broken {
    /// Which.
    pub phase: Phase,
    /// Why.
    pub failure: Failure,
}

impl Broken {
    /// The outcome of two steps that were done side by side: what failed, whichever it was, and both causes where both did.
    ///
    /// # Errors
    /// When one of them has failed.
    pub fn of_both(first: Result<(), Self>, second: Result<(), Self>, teller: &Teller) -> Result<(), Self> {
        match (first, second) {
            (Err(mut first), Err(second)) => {
                let (phase, more) = (second.phase.name(), second.failure.message);
                first.failure.message = format!("{}; and {phase} failed: {more}", first.failure.message);
                teller.trouble(first.phase, &first.failure);
                Err(first)
            }
            (Err(broken), Ok(())) | (Ok(()), Err(broken)) => Err(broken),
            (Ok(()), Ok(())) => Ok(()),
        }
    }
}

impl Teller {
    /// Does a step: tells when it begins, how long it takes, and how it ends. One that takes longer than `deadline` has failed; it is
    /// dropped then, so whatever it does must be something that can be dropped.
    ///
    /// # Errors
    /// The step's own failure, or that it took too long.
    pub async fn phase<T>(
        &self,
        phase: Phase,
        deadline: Option<Duration>,
        work: impl Future<Output = Result<Came<T>, Failure>>,
    ) -> Result<T, Broken> {
        self.step(phase, |step| {
            step.state = State::Running;
            step.started = Some(Timestamp::now());
            (step.ended, step.elapsed_ms, step.message) = (None, None, None);
            step.begun += 1;
        });
        self.event(Event { event: "PhaseStarted", subject: phase.name(), elapsed_ms: None, message: None });
        let began = Instant::now();
        let result = match deadline {
            Some(deadline) => {
                tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| Err(too_long(phase, deadline)))
            }
            None => work.await,
        };
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (state, message, event) = match &result {
            Ok(Came::To(_, message)) => (State::Done, message.clone(), "PhaseDone"),
            Ok(Came::ToNothing(_)) => (State::Skipped, None, "PhaseSkipped"),
            Err(failure) => (State::Failed, Some(failure.message.clone()), "PhaseFailed"),
        };
        match &result {
            Ok(Came::To(..)) => {
                tracing::info!(
                    phase = phase.name(),
                    elapsed_ms,
                    "done{}",
                    message.as_ref().map_or(String::new(), |m| format!(": {m}"))
                );
            }
            Ok(Came::ToNothing(_)) => tracing::debug!(phase = phase.name(), "nothing to do"),
            Err(failure) => tracing::error!(phase = phase.name(), elapsed_ms, "{}", failure.message),
        }
        self.step(phase, |step| {
            (step.state, step.ended, step.elapsed_ms) = (state, Some(Timestamp::now()), Some(elapsed_ms));
            step.message.clone_from(&message);
        });
        self.event(Event { event, subject: phase.name(), elapsed_ms: Some(elapsed_ms), message: message.as_deref() });
        match result {
            Ok(Came::To(value, _) | Came::ToNothing(value)) => Ok(value),
            Err(failure) => {
                self.trouble(phase, &failure);
                Err(Broken { phase, failure })
            }
        }
    }
}

fn too_long(phase: Phase, deadline: Duration) -> Failure {
    Failure::new(
        Cause::Timeout,
        exit::OS,
        format!(
            "{} took longer than {} s and was given up; see the log for what it waited for",
            phase.name(),
            deadline.as_secs()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_step_is_told_from_its_beginning_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let teller = Teller::begin(directory.path()).unwrap();
        let work = async {
            assert_eq!(teller.story().step(Phase::Disks).unwrap().state, State::Running);
            Ok(Came::To(7, Some("two disks".to_owned())))
        };
        assert_eq!(teller.phase(Phase::Disks, None, work).await.unwrap(), 7);
        let step = teller.story().step(Phase::Disks).unwrap().clone();
        assert_eq!((step.state, step.begun, step.message.as_deref()), (State::Done, 1, Some("two disks")));
        teller.phase(Phase::Bootstrap, None, async { Ok(Came::ToNothing(())) }).await.unwrap();
        assert!(teller.story().is_past(Phase::Bootstrap));
    }

    #[tokio::test]
    async fn of_two_that_fail_side_by_side_both_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let teller = Teller::begin(directory.path()).unwrap();
        let fail = |phase, status, why: &'static str| {
            teller.phase::<()>(phase, None, async move { Err(Failure::new(Cause::Mount, status, why)) })
        };
        let (network, objects) = tokio::join!(
            fail(Phase::NetworkMounts, exit::OS, "the NAS does not answer"),
            fail(Phase::ObjectMounts, exit::DENIED, "the bucket is denied")
        );
        let broken = Broken::of_both(network, objects, &teller).unwrap_err();
        assert_eq!((broken.phase, broken.failure.exit_status), (Phase::NetworkMounts, exit::OS));
        let trouble = teller.story().trouble.unwrap();
        assert_eq!(trouble.message, "the NAS does not answer; and object-mounts failed: the bucket is denied");
        assert_eq!((trouble.phase, trouble.message), (broken.phase, broken.failure.message));
        let one = fail(Phase::ObjectMounts, exit::DENIED, "the bucket is denied").await;
        assert_eq!(Broken::of_both(Ok(()), one, &teller).unwrap_err().phase, Phase::ObjectMounts);
        assert!(Broken::of_both(Ok(()), Ok(()), &teller).is_ok());
    }

    #[tokio::test]
    async fn what_takes_too_long_has_failed() {
        let directory = tempfile::tempdir().unwrap();
        let teller = Teller::begin(directory.path()).unwrap();
        let deadline = Some(Duration::from_millis(20));
        let broken = teller.phase::<()>(Phase::NetworkMounts, deadline, std::future::pending()).await.unwrap_err();
        assert_eq!((broken.phase, broken.failure.cause), (Phase::NetworkMounts, Cause::Timeout));
        let trouble = teller.story().trouble.unwrap();
        assert!(trouble.message.contains("network-mounts took longer"), "{trouble:?}");
        assert!(std::fs::read_to_string(teller.events().path().unwrap()).unwrap().contains("PhaseFailed"));
    }
}
