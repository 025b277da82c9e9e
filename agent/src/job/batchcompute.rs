//! BatchCompute's job description (JSON), as its SDKs, `bcs` and Cromwell write it.
//!
//! This file knows the format's names and where things are; which values are allowed is judged in
//! [`validate`](super::validate) for both formats. What clients write loosely is accepted, each with its reason here or in
//! [`object`]:
//! - `null` and, for text, `""` count as absent; missing objects are empty;
//! - whole numbers may be written `3.0`;
//! - values of `EnvVars` may be numbers and flags, with a warning (the service never looked at them);
//! - a directory's local path may lack its slash, with a warning: `bcs sub -r oss://bucket/in/:/home/input`, as in the
//!   service's own tutorial, writes it so.
//!
//! A number written as text (`"Timeout": "3600"`) is an error, as it was in the service.

pub(super) mod app;
mod keys;
mod object;

use oss::{CredentialSource, Secret, StoreSettings};
use serde_json::{Map, Value};

use self::object::{Kind, Object, expect, type_of};
use super::draft::{Draft, DraftCommand, DraftContainer, DraftInput, DraftNotification, DraftOutput, DraftTask, Edge};
use super::finding::{At, Findings, Place, nearest, quoted};

/// How long a task may run when its description does not say, in seconds: the service's default.
const DEFAULT_TIMEOUT: i64 = 86_400;

/// The variable that names a container image.
const IMAGE_VARIABLE: &str = "BATCH_COMPUTE_DOCKER_IMAGE";

/// The variable that names the object-storage directory which holds the image's registry.
const REGISTRY_VARIABLE: &str = "BATCH_COMPUTE_DOCKER_REGISTRY_OSS_PATH";

/// Whether an object with these keys is meant as a BatchCompute job: it has the format's keys, or none of ours.
pub(super) fn is_meant(map: &Map<String, Value>) -> bool {
    let has = |key| map.contains_key(key);
    has("DAG") || has("App") || !(has("tasks") || has("version"))
}

/// Turns a parsed document into a draft; what is wrong with its form goes to `findings`. `app` is the description of the App that
/// an App job is made from.
pub(super) fn read(document: &Value, app: Option<&Value>, findings: &mut Findings) -> Draft {
    let root = Place::root();
    let mut draft = Draft { stop_on_failure: true, slashes_agree: true, ..Draft::default() };
    let Some(map) = document.as_object() else {
        findings.error_with(
            &root,
            format!("expected an object with the job's keys, got {}", type_of(document)),
            "a job description begins with { \"Name\": ..., \"DAG\": ... }",
        );
        return draft;
    };
    let job = Object::open(root, map, keys::JOB, findings);
    if let Some(notification) = job.object("Notification", keys::NOTIFICATION, findings) {
        draft.notification = notification.object("Topic", keys::TOPIC, findings).map(|topic| DraftNotification {
            name: topic.text("Name"),
            endpoint: topic.text("Endpoint"),
            events: topic
                .list("Events")
                .filter_map(|item| Some(At::new(item.place.clone(), item.value.as_str()?.to_owned())))
                .collect(),
            place: topic.place,
        });
    }
    draft.name = job.text("Name");
    draft.stop_on_failure = job.flag("JobFailOnInstanceFail").unwrap_or(true);
    match kind(&job, findings) {
        Some(JobKind::Dag) => {}
        Some(JobKind::App) => {
            draft.tasks_place = job.place.key("App");
            draft.tasks.extend(app::read(&job, app, findings));
            return draft;
        }
        None => return draft,
    }
    app::unused(app, findings);
    let Some(dag) = job.object("DAG", keys::DAG, findings) else {
        if !job.has("DAG") {
            findings.error_with(&job.place.key("DAG"), "is missing", "a job holds its tasks in DAG.Tasks");
        }
        return draft;
    };
    draft.tasks_place = dag.place.key("Tasks");
    for (name, task) in dag.mapping("Tasks").iter().flat_map(Object::entries) {
        if let Some(map) = task.value.as_object() {
            let task = Object::open(task.place, map, keys::TASK, findings);
            draft.tasks.push(read_task(name, &task, findings));
        } else {
            findings.error(&task.place, format!("expected an object, got {}", type_of(task.value)));
        }
    }
    draft.edges = dependencies(&dag, findings);
    draft
}

/// What a job is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JobKind {
    /// Tasks and the order between them.
    Dag,
    /// An App and values for its parameters.
    App,
}

/// What the job is made of; what is neither is reported.
fn kind(job: &Object<'_>, findings: &mut Findings) -> Option<JobKind> {
    let place = job.place.key("Type");
    let written = job.text("Type").map(|text| text.value);
    match written.as_deref() {
        Some("DAG") => Some(JobKind::Dag),
        None if !job.has("App") || job.has("DAG") => Some(JobKind::Dag),
        Some("App") | None => Some(JobKind::App),
        Some(other) => {
            let cause = format!("expected DAG or App, got {}", quoted(other));
            match nearest(other, ["DAG", "App"]) {
                Some(near) => findings.error_with(&place, cause, format!("did you mean {near}?")),
                None => findings.error(&place, cause),
            }
            None
        }
    }
}

/// `{from: [to]}`: each `to` runs after `from`. One name instead of a list is accepted.
fn dependencies(dag: &Object<'_>, findings: &mut Findings) -> Vec<Edge> {
    let mut edges = Vec::new();
    for (before, list) in dag.mapping("Dependencies").iter().flat_map(Object::entries) {
        match list.value {
            Value::Null => {}
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let place = list.place.index(index);
                    if let Some(after) = item.as_str() {
                        edges.push(Edge { place, before: before.to_owned(), after: after.to_owned() });
                    } else {
                        findings.error(&place, format!("expected a task's name, got {}", type_of(item)));
                    }
                }
            }
            Value::String(after) => {
                edges.push(Edge { place: list.place, before: before.to_owned(), after: after.clone() });
            }
            other => findings.error(&list.place, format!("expected a list of tasks, got {}", type_of(other))),
        }
    }
    edges
}

fn read_task(name: &str, task: &Object<'_>, findings: &mut Findings) -> DraftTask {
    let mut draft = DraftTask {
        place: task.place.clone(),
        name: name.to_owned(),
        instances: task.whole("InstanceCount"),
        retries: task.whole("MaxRetryCount"),
        timeout: task
            .whole("Timeout")
            .or_else(|| (!task.has("Timeout")).then(|| At::new(task.place.key("Timeout"), DEFAULT_TIMEOUT))),
        ..DraftTask::default()
    };
    let parameters = task.object("Parameters", keys::PARAMETERS, findings);
    let mut mapping_locale = None;
    if let Some(parameters) = &parameters {
        draft.stdout = parameters.text("StdoutRedirectPath");
        draft.stderr = parameters.text("StderrRedirectPath");
        if let Some(command) = parameters.object("Command", keys::COMMAND, findings) {
            read_command(&command, &mut draft, findings);
        }
        if let Some(config) = parameters.object("InputMappingConfig", keys::INPUT_MAPPING_CONFIG, findings) {
            mapping_locale = config.text("Locale").map(|locale| locale.value);
        }
    }
    if draft.command.is_none() && !is_command_reported(task) {
        let place = task.place.key("Parameters").key("Command").key("CommandLine");
        findings.error_with(&place, "is missing", "a task needs a program to run, such as \"python main.py\"");
    }

    let writable = task.flag("WriteSupport").unwrap_or(true);
    for (source, target) in task.mapping("InputMapping").iter().flat_map(Object::entries) {
        if let Some(target_text) = mapped(&target, findings) {
            draft.inputs.push(DraftInput {
                source: At::new(target.place.clone(), source.to_owned()),
                target: At::new(target.place, target_text),
                writable: Some(writable),
                locale: mapping_locale.clone(),
            });
        }
    }
    for (key, mappings) in [("OutputMapping", &mut draft.outputs), ("LogMapping", &mut draft.logs)] {
        for (source, target) in task.mapping(key).iter().flat_map(Object::entries) {
            if let Some(target_text) = mapped(&target, findings) {
                mappings.push(DraftOutput {
                    source: At::new(target.place.clone(), source.to_owned()),
                    target: At::new(target.place, target_text),
                    locale: None,
                });
            }
        }
    }
    draft.output_locale = mapping_locale.clone();

    if let Some(mounts) = task.object("Mounts", keys::MOUNTS, findings) {
        read_mounts(&mounts, mapping_locale.as_deref(), &mut draft, findings);
    }
    if let Some(Value::Object(map)) = task.raw("AutoCluster") {
        let cluster = Object::open(task.place.key("AutoCluster"), map, keys::AUTO_CLUSTER, findings);
        draft.reserve_on_fail = cluster.flag("ReserveOnFail").unwrap_or(false);
        read_cluster(&cluster, mapping_locale.as_deref(), &mut draft, findings);
    }
    draft
}

/// Whether the command line is not missing but hidden behind a value of the wrong type, which has been reported.
fn is_command_reported(task: &Object<'_>) -> bool {
    let other = |value: Option<&Value>, kind: Kind| value.is_some_and(|value| !value.is_null() && !kind.accepts(value));
    let parameters = task.raw("Parameters");
    let command = parameters.and_then(|value| value.get("Command"));
    let line = command.and_then(|value| value.get("CommandLine"));
    other(parameters, Kind::Object) || other(command, Kind::Object) || other(line, Kind::Text)
}

/// The right-hand side of a mapping.
fn mapped(target: &At<&Value>, findings: &mut Findings) -> Option<String> {
    expect(&target.place, target.value, Kind::Text, findings)
        .then(|| target.value.as_str().map(str::to_owned))
        .flatten()
}

fn read_command(command: &Object<'_>, draft: &mut DraftTask, findings: &mut Findings) {
    draft.command = command.text("CommandLine").map(|line| At::new(line.place, DraftCommand::Line(line.value)));
    draft.package = command.text("PackagePath");
    let mut image = None;
    let mut registry = None;
    for (name, value) in command.mapping("EnvVars").iter().flat_map(Object::entries) {
        let text = match value.value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => {
                let text = value.value.to_string();
                findings.warn(
                    &value.place,
                    format!("expected text, got {}; its text is used", type_of(value.value)),
                    "put the value in quotes",
                );
                text
            }
            Value::Array(_) | Value::Object(_) => {
                findings.error(&value.place, format!("expected text, got {}", type_of(value.value)));
                continue;
            }
        };
        if !text.is_empty() {
            match name {
                IMAGE_VARIABLE => image = Some(At::new(value.place.clone(), text.clone())),
                REGISTRY_VARIABLE => registry = Some(At::new(value.place.clone(), text.clone())),
                _ => {}
            }
        }
        draft.environment.push(At::new(value.place, (name.to_owned(), text)));
    }
    let docker = command.object("Docker", keys::DOCKER, findings);
    let named = docker.as_ref().and_then(|docker| docker.text("Image"));
    draft.container = match (named, image) {
        (Some(image), other) => {
            if let Some(other) = other.filter(|other| other.value != image.value) {
                findings.warn(
                    &other.place,
                    "names another image than Docker.Image, which is used",
                    "name the image in one place",
                );
            }
            let registry = docker.and_then(|docker| docker.text("RegistryOSSPath"));
            Some(DraftContainer::new(image, registry))
        }
        (None, Some(image)) => Some(DraftContainer::new(image, registry)),
        // Without an image there is nothing to fetch from the registry.
        (None, None) => None,
    };
}

fn read_mounts(mounts: &Object<'_>, mapping_locale: Option<&str>, draft: &mut DraftTask, findings: &mut Findings) {
    mounts.object("NAS", keys::NAS, findings);
    // `bcs sub --locale` sets the mapping's locale, but `-r` makes entries: so theirs falls back to it.
    let locale = mounts.text("Locale").map(|locale| locale.value).or_else(|| mapping_locale.map(str::to_owned));
    if draft.output_locale.is_none() {
        draft.output_locale = locale.clone();
    }
    let cache = &mut draft.input_cache;
    // What the task says itself comes before what the cluster made for it says. `Lock` needs nothing: locks always work.
    cache.disk = cache.disk.or(mounts.flag("CacheSupport"));
    cache.limit = cache.limit.take().or_else(|| mounts.whole("CacheTotalSize"));
    cache.fetch = cache.fetch.take().or_else(|| mounts.whole("CacheBlockSize"));
    for entry in mounts.list("Entries") {
        if !expect(&entry.place, entry.value, Kind::Object, findings) {
            continue;
        }
        let Some(map) = entry.value.as_object() else { continue };
        let errors = findings.error_count();
        let entry = Object::open(entry.place, map, keys::ENTRY, findings);
        let (source, target) = (entry.text("Source"), entry.text("Destination"));
        if let (Some(source), Some(target)) = (&source, &target) {
            draft.inputs.push(DraftInput {
                source: source.clone(),
                target: target.clone(),
                writable: entry.flag("WriteSupport"),
                locale: locale.clone(),
            });
        } else if findings.error_count() == errors {
            for (key, value) in [("Source", source), ("Destination", target)] {
                if value.is_none() {
                    findings.error(&entry.place.key(key), "is missing");
                }
            }
        }
    }
    if let Some(oss) = mounts.object("OSS", keys::OSS, findings) {
        read_credentials(&oss, draft, findings);
    }
}

/// `Mounts.OSS`: the job brings its own credentials for what it reads.
fn read_credentials(oss: &Object<'_>, draft: &mut DraftTask, findings: &mut Findings) {
    let (id, secret) = (oss.text("AccessKeyId"), oss.text("AccessKeySecret"));
    let token = oss.text("SecurityToken").map(|token| Secret::new(token.value));
    let (id, secret) = match (id, secret) {
        (Some(id), Some(secret)) => (id.value, Secret::new(secret.value)),
        (None, None) if token.is_none() => return,
        (id, _) => {
            let missing = if id.is_some() { "AccessKeySecret" } else { "AccessKeyId" };
            findings.error_with(
                &oss.place.key(missing),
                "is missing beside the other half of the credentials",
                "give AccessKeyId and AccessKeySecret, or neither to use the node's own",
            );
            return;
        }
    };
    let store = StoreSettings {
        credentials: CredentialSource::Static { access_key_id: id, access_key_secret: secret, security_token: token },
        ..StoreSettings::default()
    };
    match &draft.input_store {
        Some(other) if *other != store => findings.warn(
            &oss.place,
            "differs from the credentials in the task's own Mounts.OSS, which are used",
            "give one set of credentials",
        ),
        _ => draft.input_store = Some(store),
    }
}

/// A cluster made for the task. Its machines and disks are not a node's business; its mounts are what the task will see.
fn read_cluster(cluster: &Object<'_>, mapping_locale: Option<&str>, draft: &mut DraftTask, findings: &mut Findings) {
    let Some(configs) = cluster.object("Configs", keys::CONFIGS, findings) else { return };
    if let Some(disks) = configs.object("Disks", keys::DISKS, findings) {
        disks.object("SystemDisk", keys::DISK, findings);
        disks.object("DataDisk", keys::DISK, findings);
    }
    if let Some(networks) = configs.object("Networks", keys::NETWORKS, findings) {
        networks.object("VPC", keys::VPC, findings);
    }
    if let Some(mounts) = configs.object("Mounts", keys::MOUNTS, findings) {
        read_mounts(&mounts, mapping_locale, draft, findings);
    }
}
