//! Our own job description (YAML, version 1).
//!
//! ```yaml
//! version: 1
//! name: log-count
//! tasks:
//!   count:
//!     command: python3 count.py            # split into words; no shell. A list of words works, too.
//!     package: oss://my-bucket/worker.tar.gz
//!     instances: 3
//!     timeout: 2h
//!     inputs:
//!       - source: oss://my-bucket/parts/
//!         target: /home/input/
//!     outputs:
//!       - source: /home/output/
//!         target: oss://my-bucket/counts/
//!     stdout: oss://my-bucket/logs/
//!     after: [split]
//! ```
//!
//! Unlike BatchCompute's JSON, which has to take what old clients write, a key that is not known is an error. The types here
//! are the format: their documentation becomes the JSON Schema's.

mod message;
pub(crate) mod values;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use self::values::{CommandDocument, Ordered, SizeDocument, TimeoutDocument, UserDocument};
use super::description::{ContainerNetwork, PullPolicy};
use super::document;
use super::draft::{
    Draft, DraftCache, DraftCommand, DraftContainer, DraftInput, DraftLimits, DraftNotification, DraftOutput,
    DraftTask, Edge,
};
use super::finding::{At, Place, Problems};

/// A job for batch-agent.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "batch-agent job")]
pub(super) struct JobDocument {
    /// The version of the format: 1.
    #[schemars(range(min = 1, max = 1))]
    version: u32,
    /// What the job is called; for people only.
    #[serde(default)]
    name: Option<String>,
    /// The tasks by name. A name is a component of object names, so it must not hold slashes.
    tasks: Ordered<TaskDocument>,
    /// What happens when an instance has failed for good.
    #[serde(default)]
    on_failure: OnFailure,
    /// A topic of Alibaba Cloud's message service that is told what happens.
    #[serde(default)]
    notification: Option<NotificationDocument>,
}

/// A topic that is told what happens.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct NotificationDocument {
    /// The topic's name.
    topic: String,
    /// Where the message service is: `http://1234567890.mns.cn-hangzhou.aliyuncs.com/`.
    endpoint: String,
    /// The events that it is told, such as OnJobFinished, OnTaskFailed, OnInstanceRunning.
    events: Vec<String>,
}

/// What happens when an instance has failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum OnFailure {
    /// The job fails and the other instances are stopped.
    #[default]
    Stop,
    /// The rest runs on, except what comes after the failed task.
    Continue,
}

/// A program that runs as one or more instances.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TaskDocument {
    /// The program and its arguments: one line, which is split into words by a shell's quoting rules, or a list of words. No
    /// shell runs; for one, write `/bin/bash -c '...'`.
    command: CommandDocument,
    /// The object that is put into the working directory first: a gzipped tar archive, which is unpacked, or a single program.
    #[serde(default)]
    package: Option<String>,
    /// Environment variables.
    #[serde(default)]
    environment: BTreeMap<String, String>,
    /// The container it runs in; on the machine itself when absent.
    #[serde(default)]
    container: Option<ContainerDocument>,
    /// What the task sees at local paths.
    #[serde(default)]
    inputs: Vec<InputDocument>,
    /// How inputs from object storage use the node's cache on disk.
    #[serde(default)]
    input_cache: InputCacheDocument,
    /// What is uploaded when the task has ended, also when it failed.
    #[serde(default)]
    outputs: Vec<OutputDocument>,
    /// Log files the program writes by itself. A target that ends in `/` receives `<basename>.<job>.<task>.<instance>`.
    #[serde(default)]
    logs: Vec<OutputDocument>,
    /// The directory in object storage that receives `stdout.<job>.<task>.<instance>` while the task runs.
    #[serde(default)]
    stdout: Option<String>,
    /// The same for stderr.
    #[serde(default)]
    stderr: Option<String>,
    /// How many instances run; each finds its number, from 0, in `BATCH_COMPUTE_DAG_INSTANCE_ID`. 1 when absent.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000))]
    instances: Option<i64>,
    /// How often a failed instance is started again. 0 when absent.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    retries: Option<i64>,
    /// Exit codes after which a failed instance is not started again; 128 + N for signal N.
    #[serde(default)]
    #[schemars(inner(range(min = 1, max = 255)))]
    no_retry_exit_codes: Vec<i64>,
    /// Whether an instance that ran out of time is started again, as far as `retries` allows. False when absent.
    #[serde(default)]
    retry_timeouts: bool,
    /// Whether the mounts and directories of an instance that has failed for good stay for a while, so that a person can look into
    /// them with `batch-agent enter`. False when absent.
    #[serde(default)]
    reserve_on_fail: bool,
    /// How long one attempt of an instance may run: `90s`, `30m`, `1h30m`, `2d`, or seconds. No limit when absent.
    #[serde(default)]
    timeout: Option<TimeoutDocument>,
    /// The most that each instance may use of the machine.
    #[serde(default)]
    limits: LimitsDocument,
    /// Who the program runs as: a user of the machine or its number, and behind a colon a group; root when absent.
    #[serde(default)]
    user: Option<UserDocument>,
    /// The tasks that must have finished before this one starts.
    #[serde(default)]
    after: Vec<String>,
}

/// The most that each instance may use of the machine, all of its processes together. No limit where absent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LimitsDocument {
    /// Processors, such as 2.5; at least 0.01.
    #[serde(default)]
    #[schemars(range(min = 0.01, max = 100_000))]
    cpu: Option<f64>,
    /// Memory, such as 4GiB, or bytes; at least 4MiB. A task that needs more is killed, with the cause out-of-memory.
    #[serde(default)]
    memory: Option<SizeDocument>,
    /// Processes and threads.
    #[serde(default)]
    #[schemars(range(min = 1, max = 4_194_304))]
    pids: Option<i64>,
}

/// The container a task runs in: unprivileged, root inside, with the task's mappings and the node's mounts at their paths. The command is
/// run as it is; an entry point of the image is not.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ContainerDocument {
    /// The image, as registry/name:tag. It is pulled from that registry unless one of the next two says something else.
    image: String,
    /// An object that holds the image: an archive as `docker save` writes it, or an OCI archive; gzipped or not.
    #[serde(default)]
    archive: Option<String>,
    /// The directory in object storage that holds the files of a registry, when the image is in none that runs.
    #[serde(default)]
    registry_tree: Option<String>,
    /// Whether an image that the node has already is asked for again. `missing` when absent.
    #[serde(default)]
    pull: PullDocument,
    /// Its network. The machine's own when absent.
    #[serde(default)]
    network: NetworkDocument,
    /// Devices of the machine that it may use, such as /dev/fuse.
    #[serde(default)]
    devices: Vec<String>,
}

/// Whether an image that the node has already is asked for again.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum PullDocument {
    /// Only an image that the node does not have is pulled.
    #[default]
    Missing,
    /// The registry is asked each time.
    Always,
}

/// A container's network.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum NetworkDocument {
    /// The machine's own.
    #[default]
    Host,
    /// The engine's, with an address of its own behind the machine's.
    Bridge,
    /// None but loopback.
    None,
}

/// Something remote that the task sees at a local path.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct InputDocument {
    /// `oss://`, `s3://`, `gs://`, `az://` or `file://`, a directory with a trailing slash or one object; or a network file
    /// system, `nas://host:/directory/` or `lustre://host@tcp:/name`.
    source: String,
    /// The absolute local path.
    target: String,
    /// Whether the task may change what it sees. In object storage nothing changes by that: changes stay local and are
    /// dropped in the end. On a network file system they are real.
    #[serde(default)]
    writable: bool,
    /// The character set in which the task sees names, such as `GBK`; UTF-8 when absent.
    #[serde(default)]
    locale: Option<String>,
}

/// How inputs from object storage use the node's cache on disk.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct InputCacheDocument {
    /// Whether they use it. True when absent.
    #[serde(default)]
    disk: Option<bool>,
    /// The most of them that it may hold, in bytes. As much as of any other mount when absent.
    #[serde(default)]
    limit: Option<i64>,
    /// The least that a random read fetches, in bytes, at most 8 MiB. What pays with the store when absent.
    #[serde(default)]
    fetch: Option<i64>,
}

/// A local path whose content is uploaded.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OutputDocument {
    /// The absolute local path.
    source: String,
    /// Where it goes: a directory with a trailing slash, or one object.
    target: String,
    /// The character set that names are in which are not UTF-8, such as `Shift_JIS`; GBK when absent.
    #[serde(default)]
    locale: Option<String>,
}

/// Reads a document into a draft. Only the first error of form is found; errors of substance are found together later.
pub(super) fn read(text: &str) -> Result<Draft, Problems> {
    let mut path = String::new();
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, document::yaml_options(), |parser| {
        serde_path_to_error::deserialize::<_, JobDocument>(parser).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    });
    let job = parsed.map_err(|error| message::problem(&error, &path))?;
    if job.version != 1 {
        return Err(Problems::single(
            &Place::root().key("version"),
            format!("expected 1, got {}", job.version),
            "this version of batch-agent knows version 1 of the format",
        ));
    }
    Ok(draft(job))
}

fn notification(document: NotificationDocument) -> DraftNotification {
    let place = Place::root().key("notification");
    let events = document.events.into_iter().enumerate();
    DraftNotification {
        name: Some(At::new(place.key("topic"), document.topic)),
        endpoint: Some(At::new(place.key("endpoint"), document.endpoint)),
        events: events.map(|(index, name)| At::new(place.key("events").index(index), name)).collect(),
        place,
    }
}

fn draft(job: JobDocument) -> Draft {
    let tasks_place = Place::root().key("tasks");
    let mut draft = Draft {
        name: job.name.map(|name| At::new(Place::root().key("name"), name)),
        stop_on_failure: job.on_failure == OnFailure::Stop,
        notification: job.notification.map(notification),
        tasks_place: tasks_place.clone(),
        ..Draft::default()
    };
    for (name, task) in job.tasks.0 {
        let place = tasks_place.key(&name);
        let at = |key: &str| place.key(key);
        for (index, before) in task.after.into_iter().enumerate() {
            draft.edges.push(Edge { place: at("after").index(index), before, after: name.clone() });
        }
        let outputs = |key: &str, list: Vec<OutputDocument>| {
            let place = at(key);
            let output = |(index, output): (usize, OutputDocument)| DraftOutput {
                source: At::new(place.index(index).key("source"), output.source),
                target: At::new(place.index(index).key("target"), output.target),
                locale: output.locale,
            };
            list.into_iter().enumerate().map(output).collect()
        };
        let input = |(index, input): (usize, InputDocument)| DraftInput {
            source: At::new(at("inputs").index(index).key("source"), input.source),
            target: At::new(at("inputs").index(index).key("target"), input.target),
            writable: Some(input.writable),
            locale: input.locale,
        };
        let variable = |(name, value): (String, String)| At::new(at("environment").key(&name), (name, value));
        let text = |key: &str, value: Option<String>| value.map(|value| At::new(at(key), value));
        let number = |key: &str, value: Option<i64>| value.map(|value| At::new(at(key), value));
        draft.tasks.push(DraftTask {
            command: Some(At::new(
                at("command"),
                match task.command {
                    CommandDocument::Line(line) => DraftCommand::Line(line),
                    CommandDocument::Words(words) => DraftCommand::Words(words),
                },
            )),
            package: text("package", task.package),
            environment: task.environment.into_iter().map(variable).collect(),
            container: task.container.map(|container| draft_container(container, &at("container"))),
            inputs: task.inputs.into_iter().enumerate().map(input).collect(),
            outputs: outputs("outputs", task.outputs),
            logs: outputs("logs", task.logs),
            stdout: text("stdout", task.stdout),
            stderr: text("stderr", task.stderr),
            instances: number("instances", task.instances),
            retries: number("retries", task.retries),
            timeout: number("timeout", task.timeout.map(|timeout| timeout.0)),
            never_retry: (task.no_retry_exit_codes.into_iter().enumerate())
                .map(|(index, code)| At::new(at("no-retry-exit-codes").index(index), code))
                .collect(),
            retry_timeouts: task.retry_timeouts,
            reserve_on_fail: task.reserve_on_fail,
            input_store: None,
            input_cache: DraftCache {
                disk: task.input_cache.disk,
                limit: task.input_cache.limit.map(|limit| At::new(at("input-cache").key("limit"), limit)),
                fetch: task.input_cache.fetch.map(|fetch| At::new(at("input-cache").key("fetch"), fetch)),
            },
            output_locale: None,
            limits: DraftLimits {
                cpu: task.limits.cpu.map(|cpu| At::new(at("limits").key("cpu"), cpu)),
                memory: task.limits.memory.map(|memory| At::new(at("limits").key("memory"), memory.0)),
                pids: task.limits.pids.map(|pids| At::new(at("limits").key("pids"), pids)),
            },
            user: task.user.map(|user| At::new(at("user"), user.0)),
            place,
            name,
        });
    }
    draft
}

fn draft_container(container: ContainerDocument, place: &Place) -> DraftContainer {
    let text = |key: &str, value: Option<String>| value.map(|value| At::new(place.key(key), value));
    let device = |(index, device): (usize, String)| At::new(place.key("devices").index(index), device);
    DraftContainer {
        image: At::new(place.key("image"), container.image),
        archive: text("archive", container.archive),
        registry_tree: text("registry-tree", container.registry_tree),
        pull: match container.pull {
            PullDocument::Missing => PullPolicy::Missing,
            PullDocument::Always => PullPolicy::Always,
        },
        network: match container.network {
            NetworkDocument::Host => ContainerNetwork::Host,
            NetworkDocument::Bridge => ContainerNetwork::Bridge,
            NetworkDocument::None => ContainerNetwork::None,
        },
        devices: container.devices.into_iter().enumerate().map(device).collect(),
    }
}

#[cfg(test)]
mod tests;
