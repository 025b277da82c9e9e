//! Where the agent keeps things on this machine.

use std::path::{Path, PathBuf};

use crate::durable::{self, FileError};

/// The directories of one agent. All are the agent's alone (mode 0700) but scratch, below which tasks write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What must survive a reboot.
    pub state: PathBuf,
    /// Sockets and mounts of tasks; empty after a reboot.
    pub runtime: PathBuf,
    /// Working directories, logs, outputs and the object cache: the largest and fastest disk.
    pub scratch: PathBuf,
}

impl Node {
    /// The default of [`Node::state`].
    pub const STATE: &str = "/var/lib/batch-agent";
    /// The default of [`Node::runtime`].
    pub const RUNTIME: &str = "/run/batch-agent";

    /// Makes the directories that are missing, and removes what agents that were killed while they wrote have left in those of the state.
    ///
    /// # Errors
    /// When one cannot be made or tidied up.
    pub fn prepare(&self) -> Result<(), FileError> {
        for path in [&self.state, &self.runtime, &self.scratch] {
            durable::private_directory(path)?;
        }
        for path in [self.records(), self.outcomes(), self.tasks_runtime(), self.tasks_scratch()] {
            durable::private_directory(&path)?;
        }
        [self.state.clone(), self.records(), self.outcomes()].iter().try_for_each(|path| durable::remove_torn(path))
    }

    /// One record for each instance that is not finished with.
    pub fn records(&self) -> PathBuf {
        self.state.join("instances")
    }

    /// The uploads in parts of each attempt, in a directory of its own.
    pub fn uploads(&self) -> PathBuf {
        self.state.join("uploads")
    }

    /// The outcomes of the last jobs.
    pub fn outcomes(&self) -> PathBuf {
        self.state.join("outcomes")
    }

    /// Runtime directories of instances.
    pub fn tasks_runtime(&self) -> PathBuf {
        self.runtime.join("tasks")
    }

    /// Scratch directories of instances.
    pub fn tasks_scratch(&self) -> PathBuf {
        self.scratch.join("tasks")
    }

    /// Logs of tasks that could not be sent. Nobody removes them but people.
    pub fn unsent_logs(&self) -> PathBuf {
        self.scratch.join("unsent-logs")
    }

    /// The cache that all object mounts of the node share.
    pub fn object_cache(&self) -> PathBuf {
        self.scratch.join("object-cache")
    }
}

impl Default for Node {
    fn default() -> Self {
        let state = Path::new(Self::STATE);
        Self { state: state.to_owned(), runtime: Self::RUNTIME.into(), scratch: state.join("scratch") }
    }
}
