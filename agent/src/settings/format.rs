//! The format of `node.yaml`.
//!
//! The types here are the format: their documentation becomes the JSON Schema's, and the schema is what a file is checked
//! against before it is read into them. So what is not required is an `Option`, and an item of a list that turned out to be
//! wrong is left empty in its place, that the others keep their numbers.

use std::collections::BTreeMap;

use oss::{Addressing, Secret};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::job::yaml::values::{CommandDocument, TimeoutDocument};

/// Settings of a batch-agent node.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "batch-agent node")]
pub(super) struct SettingsDocument {
    /// Who this node is. What is left out is asked of the cloud's metadata service.
    pub identity: Option<IdentityDocument>,
    /// Where working directories, logs, outputs and the object cache are: an absolute path. When absent, the directory batch-agent on
    /// the first of `disks.volumes` that is not `existing`, else /var/lib/batch-agent/scratch.
    pub scratch: Option<String>,
    /// Disks that are prepared and mounted first.
    pub disks: Option<DisksDocument>,
    /// What is mounted for every program of the node.
    #[schemars(with = "Option<Vec<MountDocument>>")]
    pub mounts: Option<Vec<Option<MountDocument>>>,
    /// Local directories and files whose content is uploaded when the task has ended.
    #[schemars(with = "Option<Vec<OutputDocument>>")]
    pub outputs: Option<Vec<Option<OutputDocument>>>,
    /// How large outputs are sent while the task runs, as parts that nobody sees: `on`, `off`, or some of
    /// `bandwidth=64MiB,cpu=0.1,quiet=5s,from=16MiB`: bytes a second, processors, how long a file must not have changed, and its least
    /// length. These values when absent.
    pub early_upload: Option<String>,
    /// The object cache, and the memory that object mounts may take.
    pub cache: Option<CacheDocument>,
    /// How tasks run in containers.
    pub containers: Option<ContainersDocument>,
    /// How object storage is reached. What is left out comes from the environment, the instance's role and its region.
    pub storage: Option<StorageDocument>,
    /// Environment variables that bootstrap and task see.
    pub environment: Option<BTreeMap<String, String>>,
    /// The cluster's user data, which bootstrap and task see as environment variables.
    pub user_data: Option<BTreeMap<String, String>>,
    /// A program that runs once everything is mounted, before the task. When it fails the node stops there.
    pub bootstrap: Option<BootstrapDocument>,
    /// What the node runs. Without a task it is prepared for somebody else's scheduler.
    pub task: Option<TaskDocument>,
    /// Where the node's own story goes.
    pub report: Option<ReportDocument>,
    /// What happens when the task has ended and everything is uploaded. `stay` when absent.
    pub at_end: Option<AtEndDocument>,
    /// With `at_end: poweroff`: how long the node stays all the same when something of the task could not be uploaded, so that a person
    /// can save it: `30m`, or seconds; at most a week. An hour when absent.
    pub poweroff_deadline: Option<TimeoutDocument>,
}

/// Who a node is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IdentityDocument {
    /// Whose metadata service is asked. `auto` when absent: found out from the machine's maker, else by asking.
    pub cloud: Option<CloudDocument>,
    /// The region, such as cn-hangzhou or us-east-1.
    pub region: Option<String>,
    /// The zone within it, such as cn-hangzhou-b or us-east-1a.
    pub zone: Option<String>,
    /// The instance's id, such as i-0123456789abcdef0.
    pub instance_id: Option<String>,
    /// Its type, such as ecs.g7.large or c5d.9xlarge.
    pub instance_type: Option<String>,
    /// Whether the cloud may take it back at short notice.
    pub spot: Option<bool>,
    /// The id of the cluster it belongs to.
    pub cluster: Option<String>,
    /// The address of the metadata service when it is not the cloud's usual one.
    #[schemars(regex(pattern = "^http://"))]
    pub metadata_endpoint: Option<String>,
}

/// Whose machine this is.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum CloudDocument {
    /// Found out.
    Auto,
    /// Alibaba Cloud ECS.
    Alibaba,
    /// Amazon EC2.
    Aws,
    /// Nobody's: no metadata service is asked.
    None,
}

/// Disks that are prepared and mounted.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DisksDocument {
    /// How long to wait for disks that are not there yet: `60s`, `2m`, or seconds; at most an hour. 60 seconds when absent.
    pub wait: Option<TimeoutDocument>,
    /// The volumes, in the words of `nvme-setup`: each says `what` disk it is and where to `mount` it.
    #[schemars(with = "Option<Vec<BTreeMap<String, Value>>>")]
    pub volumes: Option<Vec<Value>>,
}

/// A mount.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MountDocument {
    /// Object storage (oss://, s3://, gs://, az:// or file://), a directory with a trailing slash or one object; or
    /// nas://HOST:/DIRECTORY (also nfs://), or lustre://FS@tcp:/NAME (also FS@tcp:/NAME).
    pub source: String,
    /// The absolute path where it appears, made when missing.
    pub target: String,
    /// Whether it may be written to; false when absent. In object storage nothing changes by that: changes stay on the node.
    /// On a network file system they are real.
    #[serde(default)]
    pub writable: Option<bool>,
    /// For NAS: the version of the NFS protocol. 3 when absent.
    #[serde(default)]
    pub version: Option<VersionDocument>,
    /// For NAS and Lustre: further mount options, such as nconnect=4.
    #[serde(default)]
    pub options: Option<Vec<String>>,
    /// For object storage: the character set in which names are shown, such as GBK. UTF-8 when absent.
    #[serde(default)]
    pub locale: Option<String>,
    /// Whether the node is of no use without it; true when absent.
    #[serde(default)]
    pub required: Option<bool>,
    /// How long mounting may take, with retries: `120s`, `5m`, or seconds. 120 seconds when absent.
    #[serde(default)]
    pub deadline: Option<TimeoutDocument>,
}

/// A version of NFS.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub(super) enum VersionDocument {
    /// Without locks across nodes.
    #[serde(rename = "3")]
    V3,
    /// With locks across nodes.
    #[serde(rename = "4.0")]
    V4_0,
    /// With locks across nodes, and sessions.
    #[serde(rename = "4.1")]
    V4_1,
}

/// A local path whose content is uploaded.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputDocument {
    /// The absolute local path.
    pub source: String,
    /// Where it goes: a directory with a trailing slash, or one object.
    pub target: String,
    /// The character set of names that are not UTF-8, such as GBK.
    #[serde(default)]
    pub locale: Option<String>,
}

/// The object cache.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CacheDocument {
    /// Its directory: an absolute path. Below the scratch directory when absent.
    pub directory: Option<String>,
    /// How much it may hold: `200GB` (powers of 1000), `2GiB` (of 1024), or bytes. A fifth of its file system when absent.
    pub size: Option<String>,
    /// How much memory mounted objects may take, at least 32MiB. A quarter of the machine's, at most 2GiB, when absent.
    pub memory: Option<String>,
}

/// How tasks run in containers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ContainersDocument {
    /// Where the engine, Docker or Podman, listens: an absolute path. /run/docker.sock, else /run/podman/podman.sock, when absent.
    pub socket: Option<String>,
    /// How long an image may be pulled, with retries: `30m`, `2h`, or seconds. An hour when absent.
    pub pull_timeout: Option<TimeoutDocument>,
    /// Registries that want a login.
    #[schemars(with = "Option<Vec<RegistryDocument>>")]
    pub registries: Option<Vec<Option<RegistryDocument>>>,
}

/// A login for a registry of images.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RegistryDocument {
    /// Its host, with its port if it has one: registry.cn-hangzhou.aliyuncs.com, docker.io.
    pub host: String,
    /// The user's name.
    pub username: String,
    /// The password, or a token in its place. The file must then be readable by root only.
    #[schemars(with = "String", extend("writeOnly" = true))]
    pub registry_password: Secret,
}

/// How object storage is reached.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StorageDocument {
    /// For oss://.
    pub oss: Option<StoreDocument>,
    /// For s3://.
    pub s3: Option<StoreDocument>,
}

/// How one kind of object storage is reached.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StoreDocument {
    /// The endpoint, such as `https://oss-cn-hangzhou-internal.aliyuncs.com`; a bare host means https. From the region when
    /// absent.
    pub endpoint: Option<String>,
    /// The region. From the endpoint's name or the instance when absent.
    pub region: Option<String>,
    /// How the bucket is put into a URL. `auto` when absent.
    #[schemars(with = "Option<AddressingDocument>")]
    pub addressing: Option<Addressing>,
    /// An access key's public half. The instance's role when absent, which is better: a file with keys must be readable by
    /// root only, and keys in images get around.
    pub access_key_id: Option<String>,
    /// Its secret half.
    #[schemars(with = "Option<String>", extend("writeOnly" = true))]
    pub access_key_secret: Option<Secret>,
    /// The STS token of a temporary access key.
    #[schemars(with = "Option<String>", extend("writeOnly" = true))]
    pub security_token: Option<Secret>,
}

/// How the bucket is put into a URL.
#[derive(JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(dead_code, reason = "only its schema is used: the values are those of the storage crate")]
enum AddressingDocument {
    /// `path` for IP addresses, else `virtual-hosted`.
    Auto,
    /// `https://endpoint/bucket/key`.
    Path,
    /// `https://bucket.endpoint/key`.
    VirtualHosted,
}

/// A program that prepares the node.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BootstrapDocument {
    /// The program and its arguments: one line, which is split into words by a shell's quoting rules, or a list of words. No
    /// shell runs; for one, write `/bin/bash -c '...'`.
    pub command: CommandDocument,
    /// How long it may run: `10m`, `1h30m`, or seconds. 30 minutes when absent.
    #[serde(default)]
    pub timeout: Option<TimeoutDocument>,
    /// The directory in object storage that receives its output, which is kept on the node in any case.
    #[serde(default)]
    pub log: Option<String>,
}

/// One instance of one task.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TaskDocument {
    /// The job description itself, in the YAML format of `batch-agent schema` or in BatchCompute's.
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    pub job: Option<Value>,
    /// Instead: a file of the node that holds it. It may be below a mount.
    pub file: Option<String>,
    /// Instead: an object that holds it.
    pub object: Option<String>,
    /// The description of the App, when the job is made from one.
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    pub app: Option<Value>,
    /// Instead: a file of the node that holds it.
    pub app_file: Option<String>,
    /// Instead: an object that holds it.
    pub app_object: Option<String>,
    /// How long the mounts and directories of a failed task stay, if its job asks for that (ReserveOnFail): `8h`, or seconds. 8 hours
    /// when absent.
    pub reserve: Option<TimeoutDocument>,
    /// The id of the run: letters, digits, '.', '_' and '-', at most 64. Log objects are named after it. Made up when absent.
    pub job_id: Option<String>,
    /// Which task of the job; may be left out when it has only one.
    pub task: Option<String>,
    /// Which instance of the task, from 0. 0 when absent.
    pub instance: Option<u32>,
}

/// Where the node's own story goes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ReportDocument {
    /// The directory in object storage that receives the node's events and its final outcome.
    pub directory: Option<String>,
    /// A server that is told what happens, by HTTP.
    pub webhook: Option<WebhookDocument>,
    /// A topic of Alibaba Cloud's message service that is told what happens.
    pub topic: Option<TopicDocument>,
    /// Where metrics can be asked for in Prometheus' format: an address of this machine itself, such as 127.0.0.1:9464. Nowhere
    /// when absent.
    pub prometheus: Option<String>,
}

/// A receiver of events. Requests are as the Standard Webhooks specification has them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookDocument {
    /// Its address: http:// or https://.
    pub url: String,
    /// What requests are signed with: `whsec_` and base64, or any text of at least 16 bytes.
    #[schemars(with = "Option<String>", extend("writeOnly" = true))]
    #[serde(default)]
    pub secret: Option<Secret>,
    /// A file of the node that holds it.
    #[serde(default)]
    pub secret_file: Option<String>,
    /// The events that it is told, such as PhaseFailed, OnInstanceActive, OnInstanceFinished. All when absent.
    #[serde(default)]
    pub events: Option<Vec<String>>,
}

/// A topic that is told what happens.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TopicDocument {
    /// Its name.
    pub name: String,
    /// Where the message service is: `http://1234567890.mns.cn-hangzhou.aliyuncs.com/`.
    pub endpoint: String,
    /// The events that it is told: OnInstanceCreated, OnInstanceActive and those of the task's instance. All of these when absent.
    #[serde(default)]
    pub events: Option<Vec<String>>,
}

/// What happens at the end.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum AtEndDocument {
    /// The node stays as it is.
    Stay,
    /// It is powered off.
    PowerOff,
}
