//! Telling others what happens: each event at least once, in order, whatever becomes of the agent.
//!
//! ```text
//!                 ┌→ webhook   (signed)
//! tell → log ─────┼→ topic     (the job's Notification)
//!       (on disk) ├→ journal   (standard output of the unit)
//!                 └→ object    (events.<name>.jsonl)
//! ```
//!
//! [`Events::tell`] adds a line to a bounded log (`log`) on disk and never waits for anybody. Each recipient has a courier of its own
//! that reads that log, so one that is down holds up nobody else, and an agent that is killed is followed by one that goes on where it
//! stopped. Every event has an id: what is told a second time, because an agent died between telling and writing that down, has the
//! same one. No secret is written: addresses and keys come from settings or the job each time.

mod courier;
mod log;
pub mod message;
mod mirror;
pub mod topic;
pub mod webhook;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use oss::credentials::AccessKeys;
use oss::web::WebClient;
use oss::{Location, Scheme, Stores};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::durable::{self, FileError};
use crate::settings::Identity;
use courier::Recipient;
use log::{Cursor, Log};
use message::Message;
pub use topic::Topic;
pub use webhook::Webhook;

/// What of a recipient that has not taken everything is left on disk is dropped after this long, when nobody delivers it.
const KEPT: Duration = Duration::from_secs(7 * 86_400);

/// Longer than anybody waits, and a time that clocks can tell.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);

/// The name of the cursor that says where the events of this start of the machine begin.
const BEGIN: &str = "begin";

/// Why a recipient did not take an event.
#[derive(Debug)]
struct Refusal {
    /// In words, without secrets.
    why: String,
    /// Whether it is this event that it does not take, and not that it takes none.
    of_this: bool,
    /// When it wants to be asked again.
    after: Option<Duration>,
}

/// Something that has happened to the node itself.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Event<'a> {
    /// `PhaseStarted`, `PhaseDone`, `PhaseFailed`, `MountDone`, `MountFailed`, `NodeDone`.
    pub event: &'a str,
    /// What it is about: a phase, a mount point, a task.
    pub subject: &'a str,
    /// How long it took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'a str>,
}

#[derive(Serialize)]
struct NodeLine<'a> {
    id: String,
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<&'a str>,
    #[serde(flatten)]
    event: Event<'a>,
}

/// What an object is kept like the log, for an agent that goes on with it.
#[derive(Debug, Serialize, Deserialize)]
struct Mirrored {
    directory: Location,
    name: String,
}

/// A recipient that is being told.
#[derive(Debug)]
struct Courier {
    shown: String,
    told: watch::Receiver<Cursor>,
    work: JoinHandle<()>,
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.work.abort();
    }
}

#[derive(Debug)]
struct Hub {
    log: Arc<Log>,
    scope: String,
    opened: i64,
    count: AtomicU64,
    couriers: Mutex<Vec<Courier>>,
    hurry: watch::Sender<bool>,
    /// Held as long as the log is this agent's.
    _lock: Flock<File>,
}

/// Where events go. Cheap to clone; by default, nowhere.
#[derive(Debug, Clone, Default)]
pub struct Events(Option<Arc<Hub>>);

impl Events {
    /// Opens the log in `directory`, which must be this agent's alone. `scope` makes ids unique: two logs with events about the same
    /// things have different ones. `anew` begins another file: what was before it is still delivered to those who were being told it,
    /// and not to others.
    ///
    /// # Errors
    /// When the directory cannot be written, or another agent has it.
    pub fn open(directory: &Path, scope: &str, anew: bool) -> Result<Self, FileError> {
        durable::private_directory(directory)?;
        Self::locked(directory, lock(directory, PATIENCE)?, scope, anew)
    }

    fn locked(directory: &Path, lock: Flock<File>, scope: &str, anew: bool) -> Result<Self, FileError> {
        let log = Log::open(directory, anew)?;
        if anew {
            log.set_cursor(BEGIN, log.end())?;
        }
        let hub = Hub {
            log: Arc::new(log),
            scope: scope.to_owned(),
            opened: Timestamp::now().as_millisecond(),
            count: AtomicU64::new(0),
            couriers: Mutex::default(),
            hurry: watch::Sender::new(false),
            _lock: lock,
        };
        Ok(Self(Some(Arc::new(hub))))
    }

    /// The file that events are being added to; none where they go nowhere.
    pub fn path(&self) -> Option<PathBuf> {
        self.0.as_ref().map(|hub| hub.log.segment_path(hub.log.end().segment))
    }

    /// Tells an event of a job. The same thing told again is told once.
    pub fn tell(&self, message: Message) {
        let Some(hub) = &self.0 else { return };
        let Message { name, subject, mut body } = message;
        let id = format!("{}:{subject}:{name}", hub.scope);
        tracing::debug!(event = name, id, "event");
        body.insert(message::ID.to_owned(), Value::String(id.clone()));
        hub.add(&name, &id, &body);
    }

    /// Tells an event of the node.
    pub fn note(&self, event: Event<'_>, identity: Option<&Identity>) {
        let Some(hub) = &self.0 else { return };
        let number = hub.count.fetch_add(1, Ordering::Relaxed) + 1;
        let id = format!("{}-{:x}-{number}", hub.scope, hub.opened);
        let message = event.message.map(message::short);
        let event = Event { message: message.as_deref(), ..event };
        let instance_id = identity.and_then(|identity| identity.instance_id.as_deref());
        hub.add(event.event, &id, &NodeLine { id: id.clone(), time: Timestamp::now(), instance_id, event });
    }

    /// Tells a webhook from now on, and what it has missed. Must be called inside a runtime, as what follows.
    pub fn to_webhook(&self, webhook: Webhook) {
        self.remember(&webhook.name(), &webhook.events);
        self.start(Recipient::Webhook { webhook, client: WebClient::new() });
    }

    /// Tells a topic, signing with the keys that `oss://` is reached with.
    pub fn to_topic(&self, topic: Topic, stores: &Stores) {
        match AccessKeys::new(Scheme::Oss, &stores.settings().oss) {
            Ok(keys) => {
                self.remember(&topic.file_name(), &topic);
                self.start(Recipient::Topic { topic, client: WebClient::new(), keys });
            }
            Err(error) => tracing::error!("{} is not told what happens: {error}", topic.shown()),
        }
    }

    /// Tells the journal.
    pub fn to_journal(&self) {
        self.start(Recipient::Journal);
    }

    /// Keeps `events.<name>.jsonl` in `directory`.
    pub fn to_objects(&self, directory: &Location, name: &str, stores: &Arc<Stores>) {
        let Some(hub) = &self.0 else { return };
        self.remember(mirror::NAME, &Mirrored { directory: directory.clone(), name: name.to_owned() });
        let (told, shown) = (watch::Sender::new(hub.cursor(mirror::NAME)), directory.escaped());
        let receiver = told.subscribe();
        let work = mirror::run(
            Arc::clone(&hub.log),
            Arc::clone(stores),
            directory.clone(),
            name.to_owned(),
            told,
            hub.hurry.subscribe(),
        );
        hub.keep(Courier { shown, told: receiver, work: tokio::spawn(work) });
    }

    /// Goes on telling those whom an agent before this one has not told everything. A webhook's address is in no file, so it has to be
    /// given again.
    pub fn resume(&self, webhook: Option<&Webhook>, stores: &Arc<Stores>) {
        let Some(hub) = &self.0 else { return };
        for (name, _) in hub.log.cursors() {
            let path = hub.log.directory().join(format!("{name}.json"));
            if let Some(webhook) = webhook.filter(|webhook| webhook.name() == name) {
                let events = durable::read_json(&path).ok().flatten().unwrap_or_default();
                self.to_webhook(Webhook { events, ..webhook.clone() });
            } else if name == mirror::NAME {
                if let Ok(Some(Mirrored { directory, name })) = durable::read_json(&path) {
                    self.to_objects(&directory, &name, stores);
                }
            } else if let Ok(Some(topic)) = durable::read_json::<Topic>(&path) {
                self.to_topic(topic, stores);
            }
        }
    }

    /// Whether everybody who was ever told anything has been told everything.
    pub fn is_through(&self) -> bool {
        let Some(hub) = &self.0 else { return true };
        let end = hub.log.end();
        hub.log.cursors().iter().all(|(name, cursor)| name == BEGIN || *cursor >= end)
    }

    /// Writes down whom to tell, for an agent that comes after this one.
    fn remember(&self, name: &str, what: &impl Serialize) {
        let Some(hub) = &self.0 else { return };
        if let Err(error) = durable::replace_json(&hub.log.directory().join(format!("{name}.json")), what) {
            tracing::warn!(%error, "who is told what happens cannot be written down");
        }
    }

    fn start(&self, recipient: Recipient) {
        let Some(hub) = &self.0 else { return };
        let (told, shown) = (watch::Sender::new(hub.cursor(&recipient.name())), recipient.shown());
        let receiver = told.subscribe();
        let work = tokio::spawn(courier::run(recipient, Arc::clone(&hub.log), told));
        hub.keep(Courier { shown, told: receiver, work });
    }

    /// Whether somebody has not been told everything.
    pub fn is_behind(&self) -> bool {
        let Some(hub) = &self.0 else { return false };
        let (end, couriers) = (hub.log.end(), hub.couriers.lock().unwrap_or_else(PoisonError::into_inner));
        couriers.iter().any(|courier| *courier.told.borrow() < end)
    }

    /// Waits until everybody has been told what there is now, at most so long. Who has not been told is in the answer.
    pub async fn delivered(&self, limit: Duration) -> Vec<String> {
        let Some(hub) = &self.0 else { return Vec::new() };
        hub.hurry.send_replace(true);
        let end = hub.log.end();
        let waiting: Vec<_> = {
            let couriers = hub.couriers.lock().unwrap_or_else(PoisonError::into_inner);
            couriers.iter().map(|courier| (courier.shown.clone(), courier.told.clone())).collect()
        };
        let deadline = tokio::time::Instant::now() + limit.min(FOREVER);
        let mut missing = Vec::new();
        for (shown, mut told) in waiting {
            let all = told.wait_for(|told| *told >= end);
            if !matches!(tokio::time::timeout_at(deadline, all).await, Ok(Ok(_))) {
                missing.push(shown);
            }
        }
        hub.hurry.send_replace(false);
        missing
    }

    /// The last events that are about `subject`, or about everything: their name, their time where they have one, and their text.
    pub fn last(&self, count: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let Some(hub) = &self.0 else { return Vec::new() };
        let path = hub.log.segment_path(hub.log.end().segment);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().rev().filter_map(|line| serde_json::from_str(line).ok()).filter(wanted);
        let mut last: Vec<Value> = lines.take(count).collect();
        last.reverse();
        last
    }

    /// Removes the log. For a run that has told everybody.
    pub fn remove(self) {
        let Some(hub) = self.0 else { return };
        let directory = hub.log.directory().to_owned();
        drop(hub);
        if let Err(error) = std::fs::remove_dir_all(&directory) {
            tracing::debug!(%error, "events that were delivered are left in {}", directory.display());
        }
    }
}

impl Hub {
    fn add(&self, name: &str, id: &str, event: &impl Serialize) {
        let written = serde_json::to_string(event)
            .map_err(|error| error.to_string())
            .and_then(|text| self.log.add(id, &text).map_err(|error| error.to_string()));
        if let Err(error) = written {
            tracing::warn!(error, event = name, "an event cannot be written down");
        }
    }

    fn keep(&self, courier: Courier) {
        self.couriers.lock().unwrap_or_else(PoisonError::into_inner).push(courier);
    }

    /// How far `name` is. Who is new begins with this start of the machine, and from now on somebody knows that he is owed something.
    fn cursor(&self, name: &str) -> Cursor {
        self.log.cursor(name).unwrap_or_else(|| {
            let begin = self.log.cursor(BEGIN).unwrap_or_default();
            if let Err(error) = self.log.set_cursor(name, begin) {
                tracing::warn!(%error, "who is told what happens cannot be written down");
            }
            begin
        })
    }
}

/// How long one that opens its own log waits for it: an agent that was killed may have left a copy of itself that was about to become
/// another program.
const PATIENCE: Duration = Duration::from_secs(10);

fn lock(directory: &Path, patience: Duration) -> Result<Flock<File>, FileError> {
    let path = directory.join("lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(FileError::on("open", &path))?;
    let began = Instant::now();
    let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    while began.elapsed() < patience
        && let Err((file, Errno::EWOULDBLOCK)) = locked
    {
        std::thread::sleep(Duration::from_millis(10));
        locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    }
    locked.map_err(|(_, errno)| {
        let source = match errno {
            Errno::EWOULDBLOCK => std::io::Error::other("another agent has it"),
            errno => errno.into(),
        };
        FileError { action: "lock", path, source }
    })
}

/// The logs of runs that have ended before everybody was told, below `directory`, each of which is this agent's from now on; those that
/// nobody has delivered for a week are removed.
pub fn left_behind(directory: &Path) -> Vec<Events> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.join("lock").exists()).collect();
    paths.sort();
    let mut left = Vec::new();
    for path in paths {
        // A run that goes on has it, or another one that has just begun.
        let Ok(lock) = lock(&path, Duration::ZERO) else { continue };
        let age = path.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > KEPT) {
            tracing::warn!("events in {} were not delivered for a week and are given up", path.display());
            let _ = std::fs::remove_dir_all(&path);
            continue;
        }
        match Events::locked(&path, lock, "", false) {
            Ok(events) => left.push(events),
            Err(error) => tracing::warn!(%error, "events that an earlier run has left cannot be told"),
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn message(name: &str, subject: &str) -> Message {
        let mut body = Map::new();
        body.insert("Event".to_owned(), name.into());
        Message { name: name.to_owned(), subject: subject.to_owned(), body }
    }

    #[test]
    fn every_event_has_an_id_of_its_own_and_agents_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let event = Event { event: "PhaseDone", subject: "disks", elapsed_ms: Some(3), message: Some("a\nb") };
        for _ in 0..2 {
            let events = Events::open(directory.path(), "boot-1", false).unwrap();
            events.note(event, None);
            events.note(event, None);
            events.tell(message("OnInstanceRunning", "job.task.0"));
            assert!(Events::open(directory.path(), "boot-1", false).unwrap_err().to_string().contains("another agent"));
            std::thread::sleep(Duration::from_millis(2));
        }
        let events = Events::open(directory.path(), "boot-1", false).unwrap();
        let ids: Vec<String> = events
            .last(100, |_| true)
            .iter()
            .map(|line| line["id"].as_str().or(line["EventId"].as_str()).unwrap().to_owned())
            .collect();
        assert_eq!(ids.len(), 5, "what an agent before has told is not told again: {ids:?}");
        let unique: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), 5);
        assert!(ids.contains(&"boot-1:job.task.0:OnInstanceRunning".to_owned()), "{ids:?}");
    }

    #[test]
    fn nowhere_is_a_place_to_tell_things_to() {
        Events::default().tell(message("OnJobRunning", "job"));
        assert!(!Events::default().is_behind() && Events::default().path().is_none());
    }

    #[test]
    fn what_a_killed_run_has_left_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let run = Events::open(&directory.path().join("run-1"), "run-1", false).unwrap();
        run.tell(message("OnJobRunning", "job"));
        assert!(left_behind(directory.path()).is_empty(), "it lives");
        drop(run);
        let left = left_behind(directory.path());
        assert_eq!(left[0].path(), Some(directory.path().join("run-1/events.jsonl")));
        assert!(left.len() == 1 && left_behind(directory.path()).is_empty(), "each is taken up by one");
        drop(left);
        Events::open(&directory.path().join("run-1"), "run-1", false).unwrap().remove();
        assert!(left_behind(directory.path()).is_empty());
    }
}
