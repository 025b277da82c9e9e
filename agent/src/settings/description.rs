//! The settings behind the edge.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use fuse_oss::ByteSize;
use oss::{Location, Settings};

use crate::container::Logins;
use crate::events::{Topic, Webhook};
use crate::instance::EarlyUpload;
use crate::job::Output;

/// All that is known of how a node is to be prepared and what it is to do.
#[derive(Clone, Default)]
pub struct NodeSettings {
    /// Who this node is, as far as the settings say; what they leave out is asked of the cloud.
    pub identity: Identity,
    /// The disks that are wanted, in the order in which they are prepared.
    pub disks: DiskSettings,
    /// Where working directories, logs, outputs, uppers and the object cache are; when absent, [`DiskSettings::scratch`], else
    /// `/var/lib/batch-agent/scratch`.
    pub scratch: Option<PathBuf>,
    /// What is mounted for every program of the node. No two have the same target.
    pub mounts: Vec<NodeMount>,
    /// Local directories and files whose content goes to object storage when the task has ended.
    pub outputs: Vec<Output>,
    /// How outputs are sent while the task runs.
    pub early_upload: EarlyUpload,
    /// The object cache.
    pub cache: CacheSettings,
    /// How tasks run in containers.
    pub containers: ContainerSettings,
    /// How object storage is reached.
    pub storage: Settings,
    /// The cluster's environment variables: bootstrap and task see them.
    pub environment: BTreeMap<String, String>,
    /// The cluster's user data: bootstrap and task see it as environment variables.
    pub user_data: BTreeMap<String, String>,
    /// Runs once everything is mounted, on every node.
    pub bootstrap: Option<Bootstrap>,
    /// What the node is for; without one it is prepared for somebody else's scheduler.
    pub task: Option<NodeTask>,
    /// Where the node's own story goes.
    pub report: Report,
    /// What happens when the task has ended and everything is uploaded.
    pub at_end: AtEnd,
}

impl fmt::Debug for NodeSettings {
    /// Shows names of variables and not their values, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSettings")
            .field("identity", &self.identity)
            .field("disks", &self.disks)
            .field("scratch", &self.scratch)
            .field("mounts", &self.mounts)
            .field("outputs", &self.outputs)
            .field("early_upload", &self.early_upload)
            .field("cache", &self.cache)
            .field("containers", &self.containers)
            .field("storage", &self.storage)
            .field("environment", &self.environment.keys())
            .field("user_data", &self.user_data.keys())
            .field("bootstrap", &self.bootstrap)
            .field("task", &self.task)
            .field("report", &self.report)
            .field("at_end", &self.at_end)
            .finish()
    }
}

/// A cloud, by its metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cloud {
    /// Alibaba Cloud ECS.
    Alibaba,
    /// Amazon EC2.
    Aws,
    /// Neither: nothing is asked.
    None,
}

/// Who a node is. Each field that is absent is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Identity {
    /// The cloud; when absent, found out by asking.
    pub cloud: Option<Cloud>,
    /// `cn-hangzhou`, `us-east-1`.
    pub region: Option<String>,
    /// `cn-hangzhou-b`, `us-east-1a`.
    pub zone: Option<String>,
    /// `i-...`.
    pub instance_id: Option<String>,
    /// `ecs.g7.large`, `c5d.9xlarge`.
    pub instance_type: Option<String>,
    /// Whether the cloud may take it back.
    pub spot: Option<bool>,
    /// The cluster it belongs to.
    pub cluster: Option<String>,
    /// The metadata service, when it is not at its usual address.
    pub metadata_endpoint: Option<String>,
}

/// Disks to be prepared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskSettings {
    /// As `nvme-setup` takes them: its request, in its own words.
    pub request: serde_json::Value,
    /// Where scratch is when nothing else is said: in a directory of its own on the first volume that is made for this node. On one that
    /// is only mounted (`existing`) there are somebody's data.
    pub scratch: Option<PathBuf>,
}

impl DiskSettings {
    /// Whether none are wanted.
    pub fn is_empty(&self) -> bool {
        self.request.is_null()
    }
}

/// A mount of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeMount {
    /// What.
    pub source: MountSource,
    /// Where: absolute and normalised. A file exactly when the source is one object.
    pub target: PathBuf,
    /// Whether it may be written to. Object storage: local edits that are never uploaded. NAS and Lustre: the real thing.
    pub writable: bool,
    /// Whether the node cannot do without.
    pub required: bool,
    /// How long mounting may take, retries included.
    pub deadline: Duration,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A directory or one object in object storage.
    Object {
        /// Where it is.
        location: Location,
        /// The character set names are shown in; UTF-8 when absent.
        locale: Option<String>,
    },
    /// NAS or Lustre.
    Network(NetworkFileSystem),
}

/// A network file system as the kernel mounts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkFileSystem {
    /// `nas://HOST:/DIRECTORY` or `nfs://...`.
    Nfs {
        /// Name or address of the server or mount target.
        host: String,
        /// The exported directory with what is below it: absolute and normalised.
        path: PathBuf,
        /// The protocol.
        version: NfsVersion,
        /// Further mount options, as given.
        options: Vec<String>,
    },
    /// `lustre://FS@tcp:/NAME`.
    Lustre {
        /// As the mount command wants it: `fs-x.fsx.region.amazonaws.com@tcp:/name`.
        device: String,
        /// Further mount options, as given.
        options: Vec<String>,
    },
}

/// A version of NFS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NfsVersion {
    /// 3, without locks across nodes: what Alibaba Cloud recommends for one writer.
    #[default]
    V3,
    /// 4.0.
    V4_0,
    /// 4.1.
    V4_1,
}

/// The object cache, and the memory that mounts may take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheSettings {
    /// Its directory; below the scratch directory when absent.
    pub directory: Option<PathBuf>,
    /// How much it may hold; a fifth of its file system when absent.
    pub size: Option<ByteSize>,
    /// Memory for blocks.
    pub memory: Option<ByteSize>,
}

/// How tasks run in containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSettings {
    /// Where the engine listens; found when absent.
    pub socket: Option<PathBuf>,
    /// How long an image may be pulled; [`Containers::PULL_DEADLINE`](crate::container::Containers::PULL_DEADLINE) when absent.
    pub pull_deadline: Option<Duration>,
    /// Who the node is to registries.
    pub logins: Logins,
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Never empty; no shell has seen it.
    pub command: Vec<String>,
}

/// The start-up script of every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    /// What is run: in the image, or below a mount.
    pub program: Program,
    /// How long it may take.
    pub deadline: Duration,
    /// The directory in object storage that receives its output; it is kept on the node all the same.
    pub log: Option<Location>,
}

/// Where a description is: the job's, or that of the App it is made from.
///
/// `Debug` does not show an inline one: a job can hold storage keys and variables.
#[derive(Clone, PartialEq, Eq)]
pub enum TaskSource {
    /// In the settings themselves: the text, in either format.
    Inline(String),
    /// In a file of the node; it may be below a mount.
    File(PathBuf),
    /// In object storage.
    Object(Location),
}

impl fmt::Debug for TaskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(text) => write!(f, "Inline({} bytes)", text.len()),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Object(location) => f.debug_tuple("Object").field(location).finish(),
        }
    }
}

/// What a node runs: one instance of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTask {
    /// The job.
    pub source: TaskSource,
    /// The description of the App that it is made from, if it is.
    pub app: Option<TaskSource>,
    /// How long what it leaves when it fails stays, if the job asks for that.
    pub reserve: Duration,
    /// The run's id, which log objects are named after; made up and kept when absent.
    pub job_id: Option<String>,
    /// Which task of the job; its only one when absent.
    pub task: Option<String>,
    /// Which instance of it.
    pub instance: u32,
}

/// Where the node's own story goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The directory in object storage that receives `events.<instance id>.jsonl` and the final outcome; the journal gets events in
    /// any case.
    pub directory: Option<Location>,
    /// A server that is told what happens.
    pub webhook: Option<WebhookSettings>,
    /// A topic that is told what happens.
    pub topic: Option<Topic>,
    /// Where metrics can be asked for: a loopback address.
    pub prometheus: Option<SocketAddr>,
}

/// A webhook, and where its secret is if it is not in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSettings {
    /// The webhook.
    pub webhook: Webhook,
    /// The file that holds the secret.
    pub secret_file: Option<PathBuf>,
}

/// What happens at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtEnd {
    /// The node stays as it is.
    #[default]
    Stay,
    /// It is powered off through systemd, when all is uploaded.
    PowerOff {
        /// How long it stays when something could not be uploaded.
        deadline: Duration,
    },
}
