//! What the agent asks of a shim.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::cgroup::GroupSpec;
use crate::container::ContainerSpec;
use crate::instance::view::Step;

/// Everything the shim needs, in one file that only root can read: the environment may hold the author's secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// The format's version.
    pub version: u32,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Its whole environment.
    pub environment: BTreeMap<String, String>,
    /// Its working directory, as it sees it.
    pub workdir: PathBuf,
    /// Receives its standard output; appended to. A program with a view of its own writes to it through a pipe.
    pub stdout: PathBuf,
    /// Receives its standard error; appended to.
    pub stderr: PathBuf,
    /// Whose view it has.
    #[serde(default)]
    pub place: Place,
    /// The container it runs in, if any. Its view is then built on the host, and the engine shows it.
    #[serde(default)]
    pub container: Option<ContainerSpec>,
    /// How its view is built, if it has one of its own.
    pub steps: Vec<Step>,
    /// A file on the host that the namespace is mounted on, so that it stays when the task is over.
    #[serde(default)]
    pub pin: Option<PathBuf>,
    /// A directory for mounts that are needed only while the view is built.
    pub hold: PathBuf,
    /// Receives the [`ExitRecord`](super::ExitRecord).
    pub exit_record: PathBuf,
    /// How long the program may run, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// How long it may take to end after SIGTERM, in milliseconds.
    pub grace_ms: u64,
    /// The control group it is put into, if it is to have one of its own.
    #[serde(default)]
    pub group: Option<GroupSpec>,
    /// Whether a shim before this one was killed, whose container goes on.
    #[serde(default)]
    pub takes_over: bool,
    /// Who it runs as; the shim's own user, root, when absent.
    #[serde(default)]
    pub account: Option<Account>,
}

/// Where a program runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In a mount namespace of its own; nothing that it has started outlives it. What tasks get.
    #[default]
    Own,
    /// On the machine itself; what it has started goes on after it. What a start-up script gets, which is there to mount things and
    /// to start daemons.
    Machine,
}

/// The version of [`Spec`].
pub const VERSION: u32 = 1;
