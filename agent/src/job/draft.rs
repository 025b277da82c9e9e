//! A description that has been read but not judged: what both formats are turned into before it is checked.
//!
//! Every value carries its [`Place`], so that the rules, which are the same for both formats, can
//! name what they object to in the author's own terms.

use oss::StoreSettings;

use super::description::{ContainerNetwork, PullPolicy};
use super::finding::{At, Place};

/// A job as it was written.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// What its author calls it.
    pub name: Option<At<String>>,
    /// Where the tasks are.
    pub tasks_place: Place,
    /// The tasks, in the author's order.
    pub tasks: Vec<DraftTask>,
    /// Which task waits for which.
    pub edges: Vec<Edge>,
    /// Whether the first failed instance ends the job.
    pub stop_on_failure: bool,
    /// Who wants to be told what happens to it.
    pub notification: Option<DraftNotification>,
    /// Whether a directory whose local path lacks the trailing slash deserves a warning: it does in BatchCompute's
    /// format, where slashes on both sides say what is meant; in ours the location alone says it.
    pub slashes_agree: bool,
}

/// A topic that is told what happens.
#[derive(Debug)]
pub(crate) struct DraftNotification {
    pub place: Place,
    pub name: Option<At<String>>,
    pub endpoint: Option<At<String>>,
    /// The events that are wanted.
    pub events: Vec<At<String>>,
}

/// `after` starts when `before` has finished.
#[derive(Debug)]
pub(crate) struct Edge {
    /// Where that was written.
    pub place: Place,
    /// The task that goes first.
    pub before: String,
    /// The task that waits.
    pub after: String,
}

/// A task as it was written.
#[derive(Debug, Default)]
pub(crate) struct DraftTask {
    pub place: Place,
    pub name: String,
    pub command: Option<At<DraftCommand>>,
    pub package: Option<At<String>>,
    pub environment: Vec<At<(String, String)>>,
    pub container: Option<DraftContainer>,
    pub inputs: Vec<DraftInput>,
    pub outputs: Vec<DraftOutput>,
    pub logs: Vec<DraftOutput>,
    pub stdout: Option<At<String>>,
    pub stderr: Option<At<String>>,
    pub instances: Option<At<i64>>,
    pub retries: Option<At<i64>>,
    /// In seconds.
    pub timeout: Option<At<i64>>,
    /// Exit codes after which there is no other attempt.
    pub never_retry: Vec<At<i64>>,
    /// Whether there is one after the time limit.
    pub retry_timeouts: bool,
    /// Whether what a failed instance leaves stays for a person to look into.
    pub reserve_on_fail: bool,
    pub input_store: Option<StoreSettings>,
    pub input_cache: DraftCache,
    /// The character set of names in outputs that do not say their own.
    pub output_locale: Option<String>,
    pub limits: DraftLimits,
    pub user: Option<At<String>>,
}

/// What an instance may use of the machine.
#[derive(Debug, Default)]
pub(crate) struct DraftLimits {
    /// In processors.
    pub cpu: Option<At<f64>>,
    /// In bytes.
    pub memory: Option<At<u64>>,
    /// In processes and threads.
    pub pids: Option<At<i64>>,
}

/// How inputs use the node's cache.
#[derive(Debug, Default)]
pub(crate) struct DraftCache {
    /// Whether they use it at all.
    pub disk: Option<bool>,
    /// The most of them that it may hold, in bytes.
    pub limit: Option<At<i64>>,
    /// The least that is fetched at once, in bytes.
    pub fetch: Option<At<i64>>,
}

/// A program and its arguments.
#[derive(Debug)]
pub(crate) enum DraftCommand {
    /// To be split into words.
    Line(String),
    /// Words already.
    Words(Vec<String>),
}

/// An image and where it comes from.
#[derive(Debug)]
pub(crate) struct DraftContainer {
    pub image: At<String>,
    /// An object that holds the image.
    pub archive: Option<At<String>>,
    /// A directory that holds a registry's files.
    pub registry_tree: Option<At<String>>,
    pub pull: PullPolicy,
    pub network: ContainerNetwork,
    pub devices: Vec<At<String>>,
}

impl DraftContainer {
    /// What BatchCompute can say of a container.
    pub(crate) fn new(image: At<String>, registry_tree: Option<At<String>>) -> Self {
        let (pull, network) = (PullPolicy::default(), ContainerNetwork::default());
        Self { image, archive: None, registry_tree, pull, network, devices: Vec::new() }
    }
}

/// Something remote that appears at a local path.
#[derive(Debug)]
pub(crate) struct DraftInput {
    pub source: At<String>,
    pub target: At<String>,
    /// Absent when the author did not say.
    pub writable: Option<bool>,
    pub locale: Option<String>,
}

/// A local path whose content goes somewhere.
#[derive(Debug)]
pub(crate) struct DraftOutput {
    pub source: At<String>,
    pub target: At<String>,
    pub locale: Option<String>,
}
