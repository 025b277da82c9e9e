//! What the agent writes down about an attempt before it makes anything, so that whoever comes after a crash can undo it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::outputs::Source;
use super::reserve::Reservation;
use crate::container::ContainerRecord;
use crate::durable::{self, FileError};
use crate::job::names::Attempt;
use crate::node::Node;
use crate::shim::ProcessId;

/// One attempt that has not been cleaned up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The format's version.
    pub version: u32,
    /// `job.task.instance`, with the attempt after the first.
    pub id: String,
    /// The agent that looks after it.
    pub agent: ProcessId,
    /// Where the agent looks for a request to stop the instance. Of all its attempts.
    #[serde(default)]
    pub stop_request: PathBuf,
    /// Whether the node's own daemon runs it, which goes on with it after it was started anew.
    #[serde(default)]
    pub of_the_node: bool,
    /// Where its outputs will be found, once that is known: right before its shim is started.
    #[serde(default)]
    pub sources: Option<Sources>,
    /// The container its program runs in, from before it is made.
    #[serde(default)]
    pub container: Option<ContainerRecord>,
    /// The shim, once there is one.
    pub shim: Option<ProcessId>,
    /// That it is over, and what it has made stays for a while.
    #[serde(default)]
    pub reserved: Option<Reservation>,
    /// Its directory on the scratch disk.
    pub scratch: PathBuf,
    /// Its runtime directory, with its mounts.
    pub runtime: PathBuf,
}

/// Outputs and log files, as the host finds them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// What goes home.
    pub outputs: Vec<Source>,
    /// Log files of the program's own.
    pub logs: Vec<Source>,
}

/// The version of [`Record`].
pub const VERSION: u32 = 1;

/// The longest an attempt's id is as a file name; longer ones are cut and told apart by a checksum.
const MAX_NAME: usize = 180;

/// Where a request to stop the instance of `attempt` is left.
pub fn stop_request(node: &Node, attempt: Attempt<'_>) -> PathBuf {
    let first = Attempt { number: 1, ..attempt };
    node.records().join(format!("{}.stop", file_name(&first.to_string())))
}

/// The file name for an attempt's id.
pub fn file_name(id: &str) -> String {
    if id.len() <= MAX_NAME {
        return id.to_owned();
    }
    let mut end = MAX_NAME - 17;
    while !id.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{:016x}", &id[..end], oss::crc::crc64(id.as_bytes()))
}

impl Record {
    /// A record for a new attempt, not yet written.
    ///
    /// # Errors
    /// When the agent cannot read its own identity from /proc.
    pub fn new(attempt: Attempt<'_>, node: &Node) -> Result<Self, FileError> {
        let agent = this_agent()?;
        let id = attempt.to_string();
        let name = file_name(&id);
        Ok(Self {
            version: VERSION,
            id,
            agent,
            stop_request: stop_request(node, attempt),
            of_the_node: false,
            sources: None,
            container: None,
            shim: None,
            reserved: None,
            scratch: node.tasks_scratch().join(&name),
            runtime: node.tasks_runtime().join(&name),
        })
    }

    /// Makes it this agent's.
    ///
    /// # Errors
    /// When the agent cannot read its own identity from /proc.
    pub fn adopt(&mut self) -> Result<(), FileError> {
        self.agent = this_agent()?;
        Ok(())
    }

    /// Where the attempt's inputs are mounted.
    pub fn inputs(&self) -> PathBuf {
        self.runtime.join("inputs")
    }

    /// Below this its network file systems are mounted.
    pub fn network(&self) -> PathBuf {
        self.runtime.join("network")
    }

    /// Where the files of its container's image are mounted while the engine takes them in.
    pub fn image(&self) -> PathBuf {
        self.runtime.join("image")
    }

    /// Below this is what its container is shown.
    pub fn stage(&self) -> PathBuf {
        self.runtime.join("stage")
    }

    /// What the shim is told.
    pub fn shim_spec(&self) -> PathBuf {
        self.runtime.join("shim.json")
    }

    /// Where the shim says which control group it has made.
    pub fn group(&self) -> PathBuf {
        self.runtime.join("group.json")
    }

    /// Where the shim says which control group the engine has made for the container.
    pub fn container_group(&self) -> PathBuf {
        self.runtime.join("container-group.json")
    }

    /// Where the shim says that it has made the container, before it is started.
    pub fn container_made(&self) -> PathBuf {
        self.runtime.join("container.json")
    }

    /// Where the shim writes how it ended.
    pub fn exit_record(&self, node: &Node) -> PathBuf {
        node.records().join(format!("{}.exit", file_name(&self.id)))
    }

    /// A directory for what is known of how far its logs were sent.
    pub fn log_progress(&self, node: &Node) -> PathBuf {
        node.records().join(format!("{}.logs", file_name(&self.id)))
    }

    fn path(&self, node: &Node) -> PathBuf {
        node.records().join(format!("{}.json", file_name(&self.id)))
    }

    /// Writes the record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, node: &Node) -> Result<(), FileError> {
        durable::replace_json(&self.path(node), self)
    }

    /// Removes the record, and the exit record and what is known of its logs with it. The last thing that is done for an attempt.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, node: &Node) -> Result<(), FileError> {
        let (exit_record, record) = (self.exit_record(node), self.path(node));
        let logs = self.log_progress(node);
        match fs::remove_dir_all(&logs) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(FileError { action: "remove", path: logs, source });
            }
            _ => {}
        }
        durable::remove(&exit_record)?;
        durable::remove(&record)
    }

    /// All records there are.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn all(node: &Node) -> Result<Vec<Self>, FileError> {
        let directory = node.records();
        let failed = |source| FileError { action: "read", path: directory.clone(), source };
        let mut records = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") && !is_hidden(&path) {
                records.extend(durable::read_json::<Self>(&path)?);
            }
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }
}

fn this_agent() -> Result<ProcessId, FileError> {
    ProcessId::of_this().map_err(FileError::on("read", Path::new("/proc/self/stat")))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_until_they_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let node = Node {
            state: root.path().join("state"),
            runtime: root.path().join("run"),
            scratch: root.path().join("scratch"),
        };
        node.prepare().unwrap();
        let attempt = Attempt { job: "job", task: "task", instance: 0, number: 1 };
        let record = Record::new(attempt, &node).unwrap();
        let again = Record::new(Attempt { number: 2, ..attempt }, &node).unwrap();
        assert_eq!((record.id.as_str(), &record.stop_request), ("job.task.0", &again.stop_request));
        record.save(&node).unwrap();
        fs::write(record.exit_record(&node), "{}").unwrap();
        fs::create_dir(record.log_progress(&node)).unwrap();
        assert_eq!(Record::all(&node).unwrap(), std::slice::from_ref(&record));
        assert!(record.agent.is_alive());
        record.remove(&node).unwrap();
        assert_eq!(Record::all(&node).unwrap(), []);
        assert_eq!(fs::read_dir(node.records()).unwrap().count(), 0);
    }

    #[test]
    fn long_ids_make_short_distinct_names() {
        let (a, b) = ("x".repeat(300), format!("{}y", "x".repeat(299)));
        assert!(file_name(&a).len() <= MAX_NAME && file_name(&a) != file_name(&b));
        assert_eq!(file_name("job.t.0"), "job.t.0");
    }
}
