//! What has happened to the node since it was started: one small file, replaced at every step.
//!
//! It is written when something begins and when it ends, never only at the end, so that whoever comes later (the agent that
//! takes the place of one that was killed, `batch-agent status`, a person) finds how far the node is. It says of which boot it is: what a
//! boot before this one has done is nobody's ground to build on. So it need not wait for the disk, which would cost every phase its time.
//!
//! What another boot has to know is little: the task's run and how it ended (`Kept`). That has a file of its own and is on the disk
//! before anything follows from it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::phase::Phase;
use crate::durable::{self, FileError};
use crate::events::{Event, Events};
use crate::outcome::{Cause, Failure};
use crate::settings::Identity;
use crate::shim::ProcessId;
use crate::spot::Notice;

/// The version of [`Story`].
const VERSION: u32 = 1;

/// How far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its turn has not come.
    Waiting,
    /// It is being done.
    Running,
    /// It is done.
    Done,
    /// It could not be done.
    Failed,
    /// There is nothing to do, or something before it failed.
    Skipped,
}

/// A step of the boot sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub phase: Phase,
    /// How far it is.
    pub state: State,
    /// When it was begun, the last time.
    pub started: Option<Timestamp>,
    /// When it was over.
    pub ended: Option<Timestamp>,
    /// How long it took by the monotonic clock, in milliseconds.
    pub elapsed_ms: Option<u64>,
    /// How often it was begun: more than once when an agent was killed in the middle of it.
    pub begun: u32,
    /// What it came to, or why it failed.
    pub message: Option<String>,
}

/// A mount of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// What.
    pub source: String,
    /// Where.
    pub target: PathBuf,
    /// How far it is.
    pub state: State,
    /// How long mounting took, in milliseconds.
    pub elapsed_ms: Option<u64>,
    /// Why it failed.
    pub message: Option<String>,
}

/// The start-up script, as far as another agent has to know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootstrapRun {
    /// The process it runs under.
    pub shim: Option<ProcessId>,
    /// Whether it has ended and what it printed is where it goes, as far as that could be done.
    #[serde(default)]
    pub is_sent: bool,
}

/// Why the node is of no use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// In which step.
    pub phase: Phase,
    /// Whose doing.
    pub cause: Cause,
    /// What to tell a person.
    pub message: String,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// The format's version.
    pub version: u32,
    /// Which boot of the machine it is about.
    pub boot_id: String,
    /// The agent that tells it.
    pub agent: ProcessId,
    /// Its version.
    pub agent_version: String,
    /// When the first agent of this boot began.
    pub started: Timestamp,
    /// How many agents there were before this one in this boot.
    pub agents_before: u32,
    /// Who the node is, once that is known.
    pub identity: Option<Identity>,
    /// Every step, in order.
    pub steps: Vec<Step>,
    /// Every mount, in the order of the settings.
    pub mounts: Vec<Mounted>,
    /// The start-up script, once it was started.
    pub bootstrap: Option<BootstrapRun>,
    /// The id of the task's run, once there is one.
    pub job_id: Option<String>,
    /// How long the start of the task's program had taken from the start of the agent, in milliseconds.
    pub program_started_ms: Option<u64>,
    /// How the task ended.
    pub outcome: Option<serde_json::Value>,
    /// Whether the task was asked to end because the machine goes down.
    #[serde(default)]
    pub going_down: bool,
    /// That the cloud takes the instance back, if it has said so.
    #[serde(default)]
    pub reclaim: Option<Notice>,
    /// Why the node is of no use, if it is not.
    pub trouble: Option<Trouble>,
}

impl Story {
    /// Where it is.
    pub fn path(state: &Path) -> PathBuf {
        state.join("boot.json")
    }

    /// Reads it; none when no agent has run here, or the file cannot be read any more.
    ///
    /// # Errors
    /// When it is there and the system does not let us read it.
    pub fn read(state: &Path) -> Result<Option<Self>, FileError> {
        Ok(durable::read_json::<Self>(&Self::path(state))?.filter(|story| story.version == VERSION))
    }

    fn new(agent: ProcessId) -> Self {
        let step = |phase| Step {
            phase,
            state: State::Waiting,
            started: None,
            ended: None,
            elapsed_ms: None,
            begun: 0,
            message: None,
        };
        Self {
            version: VERSION,
            boot_id: agent.boot_id.clone(),
            agent,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            started: Timestamp::now(),
            agents_before: 0,
            identity: None,
            steps: Phase::ALL.map(step).to_vec(),
            mounts: Vec::new(),
            bootstrap: None,
            job_id: None,
            program_started_ms: None,
            outcome: None,
            going_down: false,
            reclaim: None,
            trouble: None,
        }
    }

    fn kept(&self) -> Kept {
        Kept {
            version: VERSION,
            job_id: self.job_id.clone(),
            outcome: self.outcome.clone(),
            going_down: self.going_down,
        }
    }

    /// The same for another agent in the same boot. Nothing is done until it has found so itself: its settings may be others, and
    /// whoever waits for a mount must not take the word of one that is gone. How often each step was begun stays.
    fn for_another_agent(self, agent: ProcessId, kept: Kept) -> Self {
        let fresh = |step: Step| Step {
            state: State::Waiting,
            started: None,
            ended: None,
            elapsed_ms: None,
            message: None,
            ..step
        };
        let agents_before = self.agents_before + 1;
        let steps = self.steps.into_iter().map(fresh).collect();
        let Kept { job_id, outcome, going_down, .. } = kept;
        Self { agent, agents_before, steps, job_id, outcome, going_down, trouble: None, ..self }
    }

    /// One of another boot: only the task's run goes on, or counts as over. One that was ended with the machine is not over.
    fn of_another_boot(agent: ProcessId, kept: Kept) -> Self {
        let is_stopped = kept.outcome.as_ref().is_some_and(|outcome| outcome["state"] == "Stopped");
        // An instance that was stopped and not released comes back.
        let is_reclaimed = kept.outcome.as_ref().is_some_and(|outcome| outcome["cause"] == Cause::SpotReclaim.as_str());
        let outcome = kept.outcome.filter(|_| !(is_reclaimed || kept.going_down && is_stopped));
        Self { job_id: kept.job_id, outcome, ..Self::new(agent) }
    }

    /// A step.
    pub fn step(&self, phase: Phase) -> Option<&Step> {
        self.steps.iter().find(|step| step.phase == phase)
    }

    /// Whether a step is done, or there was nothing to do.
    pub fn is_past(&self, phase: Phase) -> bool {
        self.step(phase).is_some_and(|step| matches!(step.state, State::Done | State::Skipped))
    }
}

/// What another boot has to know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    version: u32,
    job_id: Option<String>,
    outcome: Option<serde_json::Value>,
    going_down: bool,
}

impl Kept {
    fn path(state: &Path) -> PathBuf {
        state.join("task.json")
    }

    fn read(state: &Path) -> Result<Option<Self>, FileError> {
        Ok(durable::read_json::<Self>(&Self::path(state))?.filter(|kept| kept.version == VERSION))
    }
}

/// Tells the story: to its files, and to whoever listens to events.
#[derive(Debug)]
pub struct Teller {
    state: PathBuf,
    story: Mutex<Told>,
    events: Events,
}

/// The story, and what of it is on the disk.
#[derive(Debug)]
struct Told {
    story: Story,
    kept: Kept,
}

impl Teller {
    /// Begins a story, or goes on with the one of an agent before this one in the same boot. A job that had not ended keeps its id
    /// beyond a reboot.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn begin(state: &Path) -> Result<Self, FileError> {
        let agent = ProcessId::of_this().map_err(FileError::on("read", Path::new("/proc/self/stat")))?;
        let kept = Kept::read(state)?.unwrap_or_default();
        let story = match Story::read(state)? {
            Some(before) if before.boot_id == agent.boot_id => before.for_another_agent(agent, kept.clone()),
            _ => Story::of_another_boot(agent, kept.clone()),
        };
        let is_anew = story.agents_before == 0;
        let events = Events::open(&state.join("events/node"), &story.boot_id, is_anew).unwrap_or_else(|error| {
            tracing::error!(%error, "nobody is told what happens");
            Events::default()
        });
        let teller = Self { state: state.to_owned(), story: Mutex::new(Told { story, kept }), events };
        teller.change(|_| {})?;
        Ok(teller)
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.story.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The story so far.
    pub fn story(&self) -> Story {
        self.lock().story.clone()
    }

    /// Where events go.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Changes it, and writes it down.
    ///
    /// # Errors
    /// When it cannot be written. What is in memory has changed all the same.
    pub fn change(&self, change: impl FnOnce(&mut Story)) -> Result<(), FileError> {
        let mut told = self.lock();
        change(&mut told.story);
        let kept = told.story.kept();
        if kept != told.kept {
            durable::replace_json(&Kept::path(&self.state), &kept)?;
            told.kept = kept;
        }
        durable::replace_json_for_this_boot(&Story::path(&self.state), &told.story)
    }

    /// The same where nothing depends on it: what cannot be written is said.
    pub fn note(&self, change: impl FnOnce(&mut Story)) {
        if let Err(error) = self.change(change) {
            tracing::warn!(%error, "what happens to the node cannot be written down");
        }
    }

    /// Changes a step.
    pub fn step(&self, phase: Phase, change: impl FnOnce(&mut Step)) {
        self.note(|story| {
            if let Some(step) = story.steps.iter_mut().find(|step| step.phase == phase) {
                change(step);
            }
        });
    }

    /// Changes a mount.
    pub fn mount(&self, target: &Path, change: impl FnOnce(&mut Mounted)) {
        self.note(|story| {
            if let Some(mount) = story.mounts.iter_mut().find(|mount| mount.target == target) {
                change(mount);
            }
        });
    }

    /// Tells an event.
    pub fn event(&self, event: Event<'_>) {
        self.events.note(event, self.lock().story.identity.as_ref());
    }

    /// The node is of no use.
    pub fn trouble(&self, phase: Phase, failure: &Failure) {
        let message = failure.message.clone();
        self.note(|story| story.trouble = Some(Trouble { phase, cause: failure.cause, message }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_agent_takes_nobodys_word_for_what_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let teller = Teller::begin(directory.path()).unwrap();
        teller.step(Phase::Disks, |step| (step.state, step.begun) = (State::Done, 1));
        drop(teller);
        let story = Teller::begin(directory.path()).unwrap().story();
        assert!(!story.is_past(Phase::Disks));
        assert_eq!((story.agents_before, story.step(Phase::Disks).unwrap().begun), (1, 1));
    }

    #[test]
    fn a_task_that_is_over_is_over_for_every_boot_and_one_that_a_reboot_has_ended_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let outcome = |state: &str| Some(serde_json::json!({"state": state}));
        let reboot = |teller: Teller| {
            teller.note(|story| story.boot_id = "another".to_owned());
            drop(teller);
            Teller::begin(directory.path()).unwrap()
        };
        let teller = Teller::begin(directory.path()).unwrap();
        teller.step(Phase::Task, |step| (step.state, step.begun) = (State::Running, 1));
        teller.note(|story| story.job_id = Some("job-1".to_owned()));
        let teller = reboot(teller);
        let story = teller.story();
        assert_eq!((story.job_id.as_deref(), &story.outcome), (Some("job-1"), &None), "it had not ended");
        assert_eq!(story.step(Phase::Task).unwrap().begun, 0);
        // Ended with the machine: begun anew. Cancelled by a person, or through before the machine went down: over.
        teller.note(|story| (story.outcome, story.going_down) = (outcome("Stopped"), true));
        let mut teller = reboot(teller);
        assert_eq!((teller.story().outcome, teller.story().going_down), (None, false));
        for (state, going_down) in [("Stopped", false), ("Finished", true), ("Failed", true)] {
            teller.note(|story| (story.outcome, story.going_down) = (outcome(state), going_down));
            drop(teller);
            teller = reboot(Teller::begin(directory.path()).unwrap());
            assert_eq!(teller.story().outcome, outcome(state), "{state} is not run again");
        }
    }

    #[test]
    fn a_torn_file_is_no_reason_not_to_boot_and_costs_nothing_that_another_boot_needs() {
        let directory = tempfile::tempdir().unwrap();
        let teller = Teller::begin(directory.path()).unwrap();
        teller.note(|story| (story.job_id, story.outcome) = (Some("job-1".to_owned()), Some("over".into())));
        drop(teller);
        for torn in ["{\"version\": 1, ", ""] {
            std::fs::write(Story::path(directory.path()), torn).unwrap();
            let story = Teller::begin(directory.path()).unwrap().story();
            assert_eq!((story.agents_before, story.job_id.as_deref()), (0, Some("job-1")));
            assert_eq!(story.outcome, Some("over".into()));
        }
        // An agent that was killed between the two files: the one that is on the disk is right.
        let kept = Kept { version: VERSION, job_id: Some("job-2".to_owned()), ..Kept::default() };
        durable::replace_json(&Kept::path(directory.path()), &kept).unwrap();
        let story = Teller::begin(directory.path()).unwrap().story();
        assert_eq!((story.agents_before, story.job_id.as_deref(), story.outcome), (1, Some("job-2"), None));
        std::fs::write(Kept::path(directory.path()), "{").unwrap();
        assert_eq!(Teller::begin(directory.path()).unwrap().story().job_id, None);
    }
}
