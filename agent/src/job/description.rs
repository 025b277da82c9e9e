//! What a job is, once it has been read: the one description behind the edge.
//!
//! Both formats, BatchCompute's JSON and our YAML, are turned into this and checked at the edge; nothing behind it
//! knows either. Everything here is valid by construction: names are safe as path components, command lines are split, local
//! paths are absolute and normalised, locations are parsed, and the dependencies form no cycle.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use fuse_oss::{CacheUse, Charset};
use oss::{Location, StoreSettings};
use serde::{Deserialize, Serialize};

use crate::account::UserName;
use crate::container::Reference;
use crate::events::Topic;

/// A whole job: tasks and the order between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// What its author calls it; for people only.
    pub name: String,
    /// The tasks, in an order in which every task comes after those it depends on.
    pub tasks: Vec<Task>,
    /// Whether the first instance that fails for good ends the job. Otherwise the rest runs on, except what depends on
    /// the failed task.
    pub stop_on_failure: bool,
    /// Who wants to be told what happens to it.
    pub notification: Option<Topic>,
}

impl Job {
    /// The task of that name.
    pub fn task(&self, name: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| task.name == name)
    }
}

/// One task: a program that runs as one or more instances.
///
/// `Debug` shows the names of environment variables and not their values, which may be secrets of the author's.
#[derive(Clone, PartialEq, Eq)]
pub struct Task {
    /// Its name, unique in the job, safe as a path component.
    pub name: String,
    /// The tasks that must have finished before this one starts.
    pub after: Vec<String>,
    /// The program and its arguments, never empty. No shell has seen them and none will.
    pub command: Vec<String>,
    /// What is put into the working directory first: a gzipped tar archive, or a single program.
    pub package: Option<Location>,
    /// Environment from the job's author.
    pub environment: BTreeMap<String, String>,
    /// The container image it runs in; on the machine itself when absent.
    pub container: Option<Container>,
    /// Object storage it reads.
    pub inputs: Vec<Input>,
    /// What it leaves for object storage.
    pub outputs: Vec<Output>,
    /// Log files of its own that are uploaded.
    pub logs: Vec<LogFile>,
    /// NAS and Lustre it uses.
    pub network_mounts: Vec<NetworkMount>,
    /// The directory in object storage that receives `stdout.<job>.<task>.<instance>`.
    pub stdout: Option<Location>,
    /// The same for stderr.
    pub stderr: Option<Location>,
    /// How many instances there are, at least 1; they are numbered from 0.
    pub instances: u32,
    /// How often a failed instance is started again.
    pub max_retries: u32,
    /// Which failures are final whatever `max_retries` says.
    pub retry_rules: RetryRules,
    /// Whether the mounts, directories and namespace of an instance that has failed for good stay for a person to look into.
    pub reserve_on_fail: bool,
    /// How long one attempt of an instance may run; no limit when absent.
    pub timeout: Option<Duration>,
    /// Storage access the job brings along (`Mounts.OSS` credentials): replaces the node's for this task's inputs.
    pub input_store: Option<StoreSettings>,
    /// How much of its inputs the node's cache on disk may hold, and how they are fetched.
    pub input_cache: CacheUse,
    /// What each of its instances may use of the machine.
    pub limits: Limits,
    /// Who it runs as; root when absent.
    pub user: Option<UserName>,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("name", &self.name)
            .field("after", &self.after)
            .field("command", &self.command)
            .field("package", &self.package)
            .field("environment", &self.environment.keys())
            .field("container", &self.container)
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .field("logs", &self.logs)
            .field("network_mounts", &self.network_mounts)
            .field("stdout", &self.stdout)
            .field("stderr", &self.stderr)
            .field("instances", &self.instances)
            .field("max_retries", &self.max_retries)
            .field("retry_rules", &self.retry_rules)
            .field("reserve_on_fail", &self.reserve_on_fail)
            .field("timeout", &self.timeout)
            .field("input_store", &self.input_store)
            .field("input_cache", &self.input_cache)
            .field("limits", &self.limits)
            .field("user", &self.user)
            .finish()
    }
}

/// The most that one instance may use of the machine, all of its processes together; no limit where absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processor time, in thousandths of a processor: 2500 are two and a half. At least 10.
    pub cpu_millis: Option<u32>,
    /// Memory, in bytes, the page cache of its files included as far as it cannot be dropped. Swap does not add to it.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Which of a program's failures another attempt is no answer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetryRules {
    /// Exit codes that say so.
    pub never: BTreeSet<u8>,
    /// Whether there is another attempt after one that ran out of time, which would most probably do so, too.
    pub timeouts: bool,
}

/// The container a task runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its image.
    pub image: Reference,
    /// Where the image comes from.
    pub source: ImageSource,
    /// Whether an image that the node has already is asked for again.
    pub pull: PullPolicy,
    /// Its network.
    pub network: ContainerNetwork,
    /// Devices of the machine that it may use, absolute and below `/dev`.
    pub devices: Vec<PathBuf>,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// The registry that its name says.
    Registry,
    /// One object: an archive as `docker save` writes it, or an OCI archive, gzipped or not.
    Archive(Location),
    /// A directory with the files of a registry (`BATCH_COMPUTE_DOCKER_REGISTRY_OSS_PATH`).
    Tree(Location),
}

/// Whether an image that the node has already is asked for again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Only what the node does not have is pulled.
    #[default]
    Missing,
    /// The registry is asked each time, because its tag may have moved.
    Always,
}

/// A container's network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerNetwork {
    /// The machine's own.
    #[default]
    Host,
    /// The engine's, with an address of its own behind the machine's.
    Bridge,
    /// None but loopback.
    None,
}

/// A directory or object that the task sees at a local path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// What is shown. A directory or one object.
    pub source: Location,
    /// Where: absolute and normalised, without a trailing slash. A directory exactly when the source is one.
    pub target: PathBuf,
    /// Whether the task may change it locally. Such changes are never uploaded.
    pub writable: bool,
    /// The character set the task sees names in.
    pub locale: Charset,
}

/// A local path whose content goes to object storage when the task has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The local directory or file: absolute and normalised, without a trailing slash.
    pub source: PathBuf,
    /// Where it goes. A directory exactly when the source is meant as one.
    pub target: Location,
    /// What the names of its files are read as that are not UTF-8, as nearly all are.
    pub locale: Charset,
}

impl Output {
    /// Whether a whole directory is uploaded, and not one file.
    pub fn is_directory(&self) -> bool {
        self.target.is_directory()
    }
}

/// A log file the program writes by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The local file, absolute and normalised.
    pub source: PathBuf,
    /// The object, or a directory that receives `<basename>.<job>.<task>.<instance>`.
    pub target: Location,
}

/// A network file system, mounted as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkMount {
    /// As written: `nas://host:/dir`, `lustre://fs@tcp:/name`.
    pub source: String,
    /// Where: absolute and normalised.
    pub target: PathBuf,
    /// Whether the task may write.
    pub writable: bool,
}
