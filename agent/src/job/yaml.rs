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
mod tests {
    use std::time::Duration;

    use super::*;
    use fuse_oss::{ByteSize, CacheUse, Charset};

    use crate::job::description::{
        Container, ImageSource, Input, Job, Limits, LogFile, NetworkMount, Output, RetryRules, Task,
    };
    use crate::job::{Format, read as read_job};

    fn job(text: &str) -> Job {
        match read_job(text.as_bytes(), Format::Detect) {
            Ok((job, warnings)) => {
                assert_eq!(warnings, []);
                job
            }
            Err(problems) => panic!("{problems}"),
        }
    }

    fn problem(text: &str) -> String {
        match read_job(text.as_bytes(), Format::Detect) {
            Ok((job, _)) => panic!("accepted as {job:?}"),
            Err(problems) => problems.to_string(),
        }
    }

    fn small(name: &str, command: &[&str]) -> Task {
        Task {
            name: name.to_owned(),
            after: Vec::new(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            package: None,
            environment: BTreeMap::new(),
            container: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            logs: Vec::new(),
            network_mounts: Vec::new(),
            stdout: None,
            stderr: None,
            instances: 1,
            max_retries: 0,
            retry_rules: RetryRules::default(),
            reserve_on_fail: false,
            timeout: None,
            input_store: None,
            input_cache: CacheUse::default(),
            limits: Limits::default(),
            user: None,
        }
    }

    #[test]
    fn every_key_is_read() {
        let text = "\
version: 1
name: all keys
on-failure: continue
tasks:
  second:
    command: [python3, count.py, a b, 5]
    package: oss://b/worker.tar.gz
    environment: {N: 5, ON: yes, TEXT: x}
    container:
      {image: 'registry.example/x:1', registry-tree: oss://b/dockers/, pull: always, network: none, devices: [/dev/fuse]}
    inputs:
      - {source: oss://b/in/, target: /home/in, writable: true, locale: gbk}
      - {source: s3://c/one, target: /home/one}
      - {source: 'nas://h.example:/d/', target: /nas/, writable: true}
    input-cache: {disk: true, limit: 500000000, fetch: 65536}
    outputs: [{source: /home/out, target: oss://b/out/}, {source: /home/more, target: oss://b/more/, locale: sjis}]
    logs: [{source: /home/a.log, target: gs://b/logs/}]
    stdout: oss://b/logs/
    stderr: file:///tmp/logs/
    instances: 3
    retries: 2
    no-retry-exit-codes: [2, 137]
    retry-timeouts: true
    reserve-on-fail: true
    timeout: 1h30m
    limits: {cpu: 2.5, memory: 4GiB, pids: 1000}
    user: alice:staff
    after: [first]
  first:
    command: echo 'a b'
";
        let location = |text: &str| text.parse().unwrap();
        let mut second = small("second", &["python3", "count.py", "a b", "5"]);
        second.after = vec!["first".to_owned()];
        second.package = Some(location("oss://b/worker.tar.gz"));
        second.environment =
            [("N", "5"), ("ON", "yes"), ("TEXT", "x")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        second.container = Some(Container {
            image: "registry.example/x:1".parse().unwrap(),
            source: ImageSource::Tree(location("oss://b/dockers/")),
            pull: PullPolicy::Always,
            network: ContainerNetwork::None,
            devices: vec!["/dev/fuse".into()],
        });
        second.inputs = vec![
            Input {
                source: location("oss://b/in/"),
                target: "/home/in".into(),
                writable: true,
                locale: "GBK".parse().unwrap(),
            },
            Input {
                source: location("s3://c/one"),
                target: "/home/one".into(),
                writable: false,
                locale: Charset::UTF_8,
            },
        ];
        let source = "nas://h.example:/d/".to_owned();
        second.network_mounts = vec![NetworkMount { source, target: "/nas".into(), writable: true }];
        let output = |source: &str, target, locale: &str| Output {
            source: source.into(),
            target: location(target),
            locale: locale.parse().unwrap(),
        };
        second.outputs =
            vec![output("/home/out", "oss://b/out/", "GBK"), output("/home/more", "oss://b/more/", "Shift_JIS")];
        second.input_cache = CacheUse { limit: Some(ByteSize::new(500_000_000)), fetch: Some(ByteSize::new(65_536)) };
        second.logs = vec![LogFile { source: "/home/a.log".into(), target: location("gs://b/logs/") }];
        second.stdout = Some(location("oss://b/logs/"));
        second.stderr = Some(location("file:///tmp/logs/"));
        second.instances = 3;
        second.max_retries = 2;
        second.retry_rules = RetryRules { never: [2, 137].into(), timeouts: true };
        second.reserve_on_fail = true;
        second.timeout = Some(Duration::from_secs(5_400));
        second.limits = Limits { cpu_millis: Some(2_500), memory: Some(4 << 30), pids: Some(1000) };
        second.user = Some("alice:staff".parse().unwrap());
        let tasks = vec![small("first", &["echo", "a b"]), second];
        assert_eq!(job(text), Job { name: "all keys".to_owned(), tasks, stop_on_failure: false, notification: None });
    }

    #[test]
    fn it_may_be_written_as_json() {
        let text = r#"{"version": 1, "tasks": {"a": {"command": "true", "timeout": 60}}}"#;
        let mut task = small("a", &["true"]);
        task.timeout = Some(Duration::from_secs(60));
        let expected = Job { name: "job".to_owned(), tasks: vec![task], stop_on_failure: true, notification: None };
        assert_eq!(job(text), expected);
        assert_eq!(read_job(text.as_bytes(), Format::Json).unwrap().0, expected);
    }

    #[test]
    fn limits_and_users_may_be_numbers() {
        let text = "version: 1\ntasks:\n  a: {command: x, limits: {cpu: 1, memory: 8388608}, user: 1000}\n  \
                    b: {command: x, limits: {cpu: 0.01, memory: 500MB}, user: 1000:0}\n";
        let [a, b] = &job(text).tasks[..] else { panic!("two tasks") };
        assert_eq!(a.limits, Limits { cpu_millis: Some(1000), memory: Some(8 << 20), pids: None });
        assert_eq!(b.limits, Limits { cpu_millis: Some(10), memory: Some(500_000_000), pids: None });
        assert_eq!((&a.user, &b.user), (&Some("1000".parse().unwrap()), &Some("1000:0".parse().unwrap())));
    }

    #[test]
    fn batchcompute_may_be_written_as_yaml() {
        let text = "Name: x\nDAG:\n  Tasks:\n    a:\n      Parameters:\n        Command: {CommandLine: echo hello}\n";
        assert_eq!(job(text).tasks[0].command, ["echo", "hello"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_place_and_line() {
        let task = |line: &str| format!("version: 1\ntasks:\n  a:\n    command: x\n    {line}\n");
        for (text, message) in [
            (
                task("instanses: 3"),
                "tasks.a.instanses: the key \"instanses\" is not known (line 5, column 5); did you mean instances?",
            ),
            (
                task("inputs: [{source: oss://b/, target: /x, writeable: true}]"),
                "tasks.a.inputs[0].writeable: the key \"writeable\" is not known (line 5, column 45); did you mean writable?",
            ),
            (
                task("outputs: [{source: /x}]"),
                "tasks.a.outputs[0]: the key target is missing (line 5, column 16); add it",
            ),
            (
                task("timeout: soon"),
                "tasks.a.timeout: expected a length of time such as 90s, 30m, 1h30m or 2d, or seconds, got \"soon\" \
                 (line 5, column 14); correct the value",
            ),
            (task("timeout: 0"), "tasks.a.timeout: expected 1 to 315360000 seconds, got 0"),
            (task("limits: {cpu: 0}"), "tasks.a.limits.cpu: expected 0.01 to 100000 processors, got 0"),
            (task("limits: {cpu: .nan}"), "tasks.a.limits.cpu: expected 0.01 to 100000 processors, got NaN"),
            (
                task("limits: {memory: 100}"),
                "tasks.a.limits.memory: 100 bytes are too little to start any program with; write at least 4MiB",
            ),
            (
                task("limits: {memory: much}"),
                "tasks.a.limits.memory: \"much\" is not a size: write a number with B, KB, MB, GB, TB (powers of 1000) or \
                 KiB, MiB, GiB, TiB (powers of 1024) (line 5, column 22); correct the value",
            ),
            (task("limits: {pids: 0}"), "tasks.a.limits.pids: expected 1 to 4194304 processes, got 0"),
            (
                task("user: 'a b'"),
                "tasks.a.user: \"a b\" is not the name or number of a user; write USER, or USER:GROUP",
            ),
            (
                task("instances: many"),
                "tasks.a.instances: expected a whole number (line 5, column 16); correct the value",
            ),
            (task("command: y"), "tasks.a: the key \"command\" is given twice (line 5, column 5); remove one of them"),
            (task("after: [b]"), "tasks.a.after[0]: there is no task \"b\"; name tasks of this job"),
            ("tasks: {}".to_owned(), "the key version is missing (line 1, column 1); add it"),
            ("version: 1".to_owned(), "the key tasks is missing (line 1, column 1); add it"),
            ("version: 1\ntasks: {}".to_owned(), "tasks: there are no tasks; a job needs at least one"),
            (
                "version: 2\ntasks: {}".to_owned(),
                "version: expected 1, got 2; this version of batch-agent knows version 1 of the format",
            ),
            (
                "version: 1\non-failure: explode\ntasks: {}".to_owned(),
                "on-failure: \"explode\" is not known (line 2, column 13); write one of stop, continue",
            ),
            (String::new(), "the job description is empty or cut off; see `batch-agent schema` for the format"),
            (
                task("environment: TOKEN=very-secret"),
                "tasks.a.environment: expected a map (line 5, column 18); correct the value",
            ),
            (
                task("environment: {A: [very-secret]}"),
                "tasks.a.environment.A: expected text (line 5, column 22); correct the value",
            ),
            (
                task("environment: {A: }"),
                "tasks.a.environment.A: expected text, got nothing (line 5, column 20); write \"\" for an empty text",
            ),
            (task("inputs: [very]"), "tasks.a.inputs[0]: expected a map (line 5, column 14); correct the value"),
            (task("inputs: none"), "tasks.a.inputs: expected a list (line 5, column 13); correct the value"),
            ("- a".to_owned(), "expected a map (line 1, column 1); correct the value"),
            (
                "version: 1\ntasks: {a: {command: {x: y}}}".to_owned(),
                "tasks.a.command: expected a command line, or a list of words, got map (line 2, column 22); correct the value",
            ),
            (
                task("inputs: ]"),
                "tasks.a: the job description cannot be read: misplaced bracket at line 5, column 13; correct it there",
            ),
        ] {
            assert_eq!(problem(&text), message, "{text}");
        }
    }
}
