//! How far an instance is, beside the attempt that is running: what an agent that comes after this one must not do again.
//!
//! It is on the disk before anything follows from it. An attempt is over when this says so, and only then is it taken away; until then
//! everything of it is there, and an agent that comes after this one goes on with it. So no moment is left in which a program that has run
//! looks like one that has not.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::file_name;
use super::retry::Tries;
use crate::durable::{self, FileError};
use crate::job::names::{Attempt, JobId};
use crate::node::Node;
use crate::outcome::InstanceOutcome;
use crate::report::Report;
use crate::shim::ProcessId;

/// What is known of an instance of the node's own daemon.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    /// How often it was tried before the attempt that comes now.
    #[serde(flatten)]
    pub(super) tries: Tries,
    /// How it ended, if it has.
    #[serde(default)]
    pub(super) end: Option<Ended>,
    /// The boot in which that is so, if the machine has ended it: in another one it is run again.
    #[serde(default)]
    pub(super) boot_id: Option<String>,
}

/// An instance that is over, and what is still to be told of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ended {
    /// How it ended.
    pub(super) outcome: InstanceOutcome,
    /// Its report.
    pub(super) report: Option<Report>,
}

impl Progress {
    /// What is known of the instance whose first attempt has this id; none when nothing is.
    pub(super) fn read(node: &Node, first: &str) -> Option<Self> {
        durable::read_json(&path(node, first)).unwrap_or_else(|error| {
            tracing::warn!(%error, "how far an agent before this one was is not known");
            None
        })
    }

    /// Whether the machine has ended it, and was started again since.
    pub(super) fn is_to_be_run_again(&self) -> bool {
        self.boot_id.is_some() && self.boot_id != this_boot()
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn save(&self, node: &Node, first: &str) -> Result<(), FileError> {
        durable::replace_json(&path(node, first), self)
    }
}

/// Which boot this is.
pub(super) fn this_boot() -> Option<String> {
    ProcessId::of(1).map(|init| init.boot_id)
}

/// Forgets how far an instance was. For whoever has written down how it ended.
pub fn forget(node: &Node, job: &JobId, task: &str, instance: u32) {
    let first = Attempt { job: job.as_str(), task, instance, number: 1 }.to_string();
    if let Err(error) = durable::remove(&path(node, &first)) {
        tracing::warn!(%error, "how far an instance was cannot be forgotten");
    }
}

fn path(node: &Node, first: &str) -> PathBuf {
    Path::join(&node.records(), format!("{}.progress", file_name(first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_until_it_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let node = Node { state: root.path().into(), runtime: root.path().into(), scratch: root.path().into() };
        node.prepare().unwrap();
        let job: JobId = "j".parse().unwrap();
        assert!(Progress::read(&node, "j.t.0").is_none());
        let tries = Tries { retries: 2, faults: 1 };
        Progress { tries, ..Progress::default() }.save(&node, "j.t.0").unwrap();
        let read = Progress::read(&node, "j.t.0").unwrap();
        assert_eq!((read.tries, read.is_to_be_run_again()), (tries, false));
        let of_boot = |boot_id| Progress { boot_id, ..Progress::default() }.is_to_be_run_again();
        assert_eq!((of_boot(this_boot()), of_boot(Some("another".to_owned()))), (false, true));
        forget(&node, &job, "t", 0);
        forget(&node, &job, "t", 0);
        assert!(Progress::read(&node, "j.t.0").is_none());
        assert_eq!(std::fs::read_dir(node.records()).unwrap().count(), 0);
    }
}
