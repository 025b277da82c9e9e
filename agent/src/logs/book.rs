//! Which logs there are, or were, on this node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use oss::{Location, Scheme, Settings};
use serde::{Deserialize, Serialize};

use crate::durable::{self, FileError};
use crate::instance::record::file_name;
use crate::job::names::Attempt;
use crate::node::Node;

/// The version of [`Entry`].
const VERSION: u32 = 1;

/// How many attempts are remembered. Once there are [`SPARE`] more, the oldest go: reading all of them costs too much to do it for each
/// attempt.
const KEPT: usize = 1000;

/// See [`KEPT`].
const SPARE: usize = 100;

/// The logs of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    version: u32,
    /// `<job>.<task>.<instance>`, with the attempt after the first.
    pub id: String,
    /// The task's name.
    pub task: String,
    /// The instance.
    pub instance: u32,
    /// When it began.
    pub began: Timestamp,
    /// When everything of its logs had been sent, or given up.
    pub ended: Option<Timestamp>,
    /// Its standard output.
    pub stdout: LogPlace,
    /// Its standard error.
    pub stderr: LogPlace,
    /// How its storage is reached, by scheme; never with credentials.
    pub storage: BTreeMap<String, Reach>,
}

/// Where a log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPlace {
    /// The object.
    pub target: Location,
    /// The file, while the attempt runs.
    pub file: PathBuf,
    /// What is known of how far that was sent.
    pub progress: PathBuf,
}

/// How a kind of storage is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The endpoint.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
}

impl Entry {
    /// The logs of an attempt that begins now.
    pub fn new(attempt: Attempt<'_>, stdout: LogPlace, stderr: LogPlace, settings: &Settings) -> Self {
        let stores = [(Scheme::Oss, &settings.oss), (Scheme::S3, &settings.s3)];
        let reach = stores.map(|(scheme, store)| {
            (scheme.to_string(), Reach { endpoint: store.endpoint.clone(), region: store.region.clone() })
        });
        Self {
            version: VERSION,
            id: attempt.to_string(),
            task: attempt.task.to_owned(),
            instance: attempt.instance,
            began: Timestamp::now(),
            ended: None,
            stdout,
            stderr,
            storage: reach.into(),
        }
    }

    /// Adds to `settings` what they do not say of how the storage is reached.
    pub fn complete(&self, settings: &mut Settings) {
        for (scheme, store) in [(Scheme::Oss, &mut settings.oss), (Scheme::S3, &mut settings.s3)] {
            if let Some(reach) = self.storage.get(scheme.as_str())
                && store.endpoint.is_none()
            {
                store.endpoint.clone_from(&reach.endpoint);
                store.region = store.region.take().or_else(|| reach.region.clone());
            }
        }
    }
}

/// All of them, as files below the state directory.
#[derive(Debug, Clone)]
pub struct LogBook {
    directory: PathBuf,
}

impl LogBook {
    /// The book of a node with this state directory.
    pub fn of(state: &Path) -> Self {
        Self { directory: state.join("log-book") }
    }

    /// The book of a node.
    pub fn of_node(node: &Node) -> Self {
        Self::of(&node.state)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{}.json", file_name(id)))
    }

    /// Enters an attempt; one that was entered before it was interrupted stays as it is.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn enter(&self, entry: &Entry) -> Result<(), FileError> {
        durable::private_directory(&self.directory)?;
        let path = self.path(&entry.id);
        let before = durable::read_json::<Entry>(&path)?;
        if before.is_some_and(|before| before.ended.is_none() && before.stdout == entry.stdout) {
            return Ok(());
        }
        durable::replace_json(&path, entry)?;
        if self.files()?.len() <= KEPT + SPARE {
            return Ok(());
        }
        let mut all = self.all()?;
        // Newest first.
        all.sort_by_key(|entry| std::cmp::Reverse(entry.began));
        all.iter().skip(KEPT).try_for_each(|entry| durable::remove(&self.path(&entry.id)))
    }

    /// Notes that an attempt's logs are no longer on the node.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn end(&self, id: &str) -> Result<(), FileError> {
        let Some(entry) = self.find(id)? else { return Ok(()) };
        durable::replace_json(&self.path(id), &Entry { ended: Some(Timestamp::now()), ..entry })
    }

    /// The entry of that id, as it is now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn find(&self, id: &str) -> Result<Option<Entry>, FileError> {
        Ok(durable::read_json::<Entry>(&self.path(id))?.filter(|entry| entry.id == id))
    }

    /// The attempts that `name` fits: an id, a task's name, or `<task>.<instance>`; all when it is absent. Those that run come first,
    /// then the newest.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn search(&self, name: Option<&str>) -> Result<Vec<Entry>, FileError> {
        let mut found = self.all()?;
        if let Some(name) = name {
            let fits = |entry: &Entry| {
                entry.id == name || entry.task == name || format!("{}.{}", entry.task, entry.instance) == name
            };
            found.retain(fits);
        }
        found.sort_by_key(|entry| (entry.ended.is_some(), std::cmp::Reverse(entry.began)));
        Ok(found)
    }

    /// The files of the entries.
    fn files(&self) -> Result<Vec<PathBuf>, FileError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(FileError::on("read", &self.directory))?,
        };
        let paths = entries.flatten().map(|entry| entry.path());
        let is_entry = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            name.ends_with(b".json") && !name.starts_with(b".")
        };
        Ok(paths.filter(is_entry).collect())
    }

    fn all(&self) -> Result<Vec<Entry>, FileError> {
        let mut all = Vec::new();
        for path in self.files()? {
            all.extend(durable::read_json::<Entry>(&path)?.filter(|entry| entry.version == VERSION));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(task: &str, instance: u32, number: u32) -> Entry {
        let attempt = Attempt { job: "job-1", task, instance, number };
        let place = |name: &str| LogPlace {
            target: format!("oss://b/{name}.{attempt}").parse().unwrap(),
            file: "/x".into(),
            progress: "/y".into(),
        };
        let mut settings = Settings::default();
        settings.oss.endpoint = Some("http://127.0.0.1:1".to_owned());
        Entry::new(attempt, place("stdout"), place("stderr"), &settings)
    }

    #[test]
    fn the_oldest_are_forgotten_now_and_then() {
        let directory = tempfile::tempdir().unwrap();
        let book = LogBook::of(directory.path());
        durable::private_directory(&book.directory).unwrap();
        let number = |number: usize| i64::try_from(number).unwrap();
        for index in 0..KEPT + SPARE {
            let began = Timestamp::from_second(number(index)).unwrap();
            let entry = Entry { began, ..entry("a", u32::try_from(index).unwrap(), 1) };
            std::fs::write(book.path(&entry.id), serde_json::to_vec(&entry).unwrap()).unwrap();
        }
        let newest = entry("b", 0, 1);
        book.enter(&newest).unwrap();
        let left = book.search(None).unwrap();
        assert_eq!((left.len(), &left[0]), (KEPT, &newest));
        assert_eq!(left.last().unwrap().began.as_second(), number(SPARE + 1));
    }

    #[test]
    fn what_runs_is_found_first() {
        let directory = tempfile::tempdir().unwrap();
        let book = LogBook::of(directory.path());
        assert_eq!(book.search(None).unwrap(), []);
        let entries = [entry("a", 0, 1), entry("a", 1, 1), entry("a", 1, 2), entry("b.x", 0, 1)];
        for entry in &entries {
            book.enter(entry).unwrap();
        }
        let ids = |name: Option<&str>| -> Vec<String> {
            book.search(name).unwrap().into_iter().map(|entry| entry.id).collect()
        };
        assert_eq!(ids(None), ["job-1.b.x.0", "job-1.a.1.2", "job-1.a.1", "job-1.a.0"]);
        assert_eq!(ids(Some("a")), ["job-1.a.1.2", "job-1.a.1", "job-1.a.0"]);
        assert_eq!(ids(Some("a.1")), ["job-1.a.1.2", "job-1.a.1"]);
        assert_eq!(ids(Some("job-1.a.1")), ["job-1.a.1"]);
        book.end("job-1.a.1.2").unwrap();
        assert_eq!(ids(Some("a.1")), ["job-1.a.1", "job-1.a.1.2"]);
        // One that is gone on with keeps its beginning.
        book.enter(&Entry { began: Timestamp::UNIX_EPOCH, ..entries[0].clone() }).unwrap();
        assert_eq!(book.find("job-1.a.0").unwrap().unwrap().began, entries[0].began);
        let mut settings = Settings::default();
        entries[0].complete(&mut settings);
        assert_eq!(settings.oss.endpoint.as_deref(), Some("http://127.0.0.1:1"));
    }
}
