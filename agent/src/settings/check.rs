//! What a node would do with its settings, for a person to read before it does.

use std::fmt;

use oss::{CredentialSource, StoreSettings};
use serde::Serialize;
use serde_json::Value as Json;

use super::description::{
    AtEnd, Cloud, ContainerSettings, MountSource, NetworkFileSystem, NfsVersion, NodeMount, NodeSettings, Report,
    TaskSource,
};
use crate::instance::EarlyUpload;
use crate::job::Warning;
use crate::job::check::length;
use crate::job::finding::visible;
use crate::node::Node;

/// The settings in short. It holds no secret and no value of a variable.
#[derive(Debug, Serialize)]
pub struct SettingsReport {
    identity: String,
    scratch: String,
    volumes: Vec<String>,
    mounts: Vec<MountReport>,
    outputs: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    early_upload: Option<String>,
    cache: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    containers: Option<String>,
    storage: Vec<String>,
    /// Names only.
    environment: Vec<String>,
    /// Names only.
    user_data: Vec<String>,
    bootstrap: Option<String>,
    task: Option<String>,
    report: Option<String>,
    at_end: String,
    warnings: Vec<Warning>,
}

#[derive(Debug, Serialize)]
struct MountReport {
    source: String,
    target: String,
    how: String,
}

impl SettingsReport {
    /// What follows from the settings alone; nothing is asked of the machine or the cloud.
    pub fn new(settings: &NodeSettings, warnings: &[Warning]) -> Self {
        let volumes = settings.disks.request.get("volumes").and_then(Json::as_array).cloned().unwrap_or_default();
        let volumes: Vec<String> = volumes.iter().map(volume).collect();
        let scratch = settings.scratch.as_ref().or(settings.disks.scratch.as_ref());
        let scratch = scratch.unwrap_or(&Node::default().scratch).display().to_string();
        let names = |map: &std::collections::BTreeMap<String, String>| map.keys().cloned().collect();
        Self {
            identity: identity(settings),
            scratch,
            volumes,
            mounts: settings.mounts.iter().map(mount).collect(),
            outputs: settings
                .outputs
                .iter()
                .map(|output| format!("{} → {}", output.source.display(), output.target))
                .collect(),
            early_upload: (settings.early_upload != EarlyUpload::default()).then(|| settings.early_upload.to_string()),
            cache: cache(settings),
            containers: containers(settings),
            storage: [("oss://", &settings.storage.oss), ("s3://", &settings.storage.s3)]
                .map(|(scheme, store)| format!("{scheme} {}", self::store(store)))
                .to_vec(),
            environment: names(&settings.environment),
            user_data: names(&settings.user_data),
            bootstrap: settings.bootstrap.as_ref().map(|bootstrap| {
                let words: Vec<_> = bootstrap.program.command.iter().map(|word| shell_words::quote(word)).collect();
                let log = bootstrap.log.as_ref().map(|log| format!(", output to {log}")).unwrap_or_default();
                format!("{} (stopped after {}{log})", words.join(" "), length(bootstrap.deadline))
            }),
            task: settings.task.as_ref().map(|task| {
                let source = match &task.source {
                    TaskSource::Inline(_) => "the job in the settings".to_owned(),
                    TaskSource::File(path) => format!("the job in {}", path.display()),
                    TaskSource::Object(location) => format!("the job at {location}"),
                };
                let name = task.task.as_ref().map(|name| format!("task {name} of ")).unwrap_or_default();
                format!("instance {} of {name}{source}", task.instance)
            }),
            report: report(&settings.report),
            at_end: match settings.at_end {
                AtEnd::Stay => "the node stays".to_owned(),
                AtEnd::PowerOff { deadline } => format!(
                    "the node is powered off: at once when everything has been uploaded, else after {}",
                    length(deadline)
                ),
            },
            warnings: warnings.to_vec(),
        }
    }
}

/// Who is told what happens.
fn report(report: &Report) -> Option<String> {
    let directory = report.directory.as_ref().map(ToString::to_string);
    let webhook = report.webhook.as_ref().map(|settings| {
        let signed = settings.webhook.is_signed() || settings.secret_file.is_some();
        format!("webhook at {}{}", settings.webhook.server(), if signed { "" } else { ", not signed" })
    });
    let topic = report.topic.as_ref().map(|topic| topic.shown());
    let prometheus = report.prometheus.map(|address| format!("metrics at http://{address}/metrics"));
    let all: Vec<String> = [directory, webhook, topic, prometheus].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn identity(settings: &NodeSettings) -> String {
    let identity = &settings.identity;
    let cloud = match identity.cloud {
        None => "cloud found out",
        Some(Cloud::Alibaba) => "Alibaba Cloud",
        Some(Cloud::Aws) => "AWS",
        Some(Cloud::None) => "no cloud",
    };
    let mut text = cloud.to_owned();
    for (name, value) in [
        ("region", &identity.region),
        ("zone", &identity.zone),
        ("instance", &identity.instance_id),
        ("type", &identity.instance_type),
        ("cluster", &identity.cluster),
        ("metadata service", &identity.metadata_endpoint),
    ] {
        text.extend(value.as_ref().map(|value| format!(", {name} {value}")));
    }
    text.push_str(match identity.spot {
        Some(true) => ", spot",
        Some(false) => ", not spot",
        None => "",
    });
    text
}

fn volume(volume: &Json) -> String {
    let mount = volume.get("mount").and_then(Json::as_str).unwrap_or_default();
    let what = match volume.get("what") {
        Some(Json::String(what)) => what.clone(),
        Some(what) => what.to_string(),
        None => "?".to_owned(),
    };
    let existing = volume.get("existing").and_then(Json::as_bool) == Some(true);
    format!(
        "{what} → {mount} ({})",
        if existing { "as it is, never formatted" } else { "formatted when provably empty" }
    )
}

fn mount(mount: &NodeMount) -> MountReport {
    let (source, mut how) = match &mount.source {
        MountSource::Object { location, locale } => {
            let kind = if location.is_directory() { "directory" } else { "one file" };
            let access = if mount.writable { "changes stay local and are dropped" } else { "read-only" };
            let locale = locale.as_ref().map(|locale| format!(", names in {locale}")).unwrap_or_default();
            (location.to_string(), format!("{kind}, {access}{locale}"))
        }
        MountSource::Network(network) => {
            let access = if mount.writable { "changes are written to it" } else { "read-only" };
            let (source, kind, options) = match network {
                NetworkFileSystem::Nfs { host, path, version, options } => {
                    let version = match version {
                        NfsVersion::V3 => "NFS 3",
                        NfsVersion::V4_0 => "NFS 4.0",
                        NfsVersion::V4_1 => "NFS 4.1",
                    };
                    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                    (format!("{host}:{}", path.display()), version, options)
                }
                NetworkFileSystem::Lustre { device, options } => (device.clone(), "Lustre", options),
            };
            let options = if options.is_empty() { String::new() } else { format!(", {}", options.join(",")) };
            (source, format!("{kind}, {access}{options}"))
        }
    };
    let need = if mount.required { "required" } else { "may be missing" };
    how.push_str(&format!(", {need}, within {}", length(mount.deadline)));
    MountReport { source, target: mount.target.display().to_string(), how }
}

fn cache(settings: &NodeSettings) -> String {
    let cache = &settings.cache;
    let directory = cache.directory.as_ref().map_or("below scratch".to_owned(), |path| path.display().to_string());
    let size = cache.size.map_or("a fifth of its disk".to_owned(), |size| size.to_string());
    let memory =
        cache.memory.map_or("a quarter of the machine's memory, at most 2GiB".to_owned(), |size| size.to_string());
    format!("{directory}, {size}; {memory} in memory")
}

/// What is said of containers: nothing, if the settings say nothing.
fn containers(settings: &NodeSettings) -> Option<String> {
    let containers = &settings.containers;
    if *containers == ContainerSettings::default() {
        return None;
    }
    let mut text = match &containers.socket {
        Some(socket) => format!("the engine at {}", socket.display()),
        None => "the machine's engine".to_owned(),
    };
    text.extend(containers.pull_deadline.map(|limit| format!(", images pulled within {}", length(limit))));
    let registries: Vec<&str> = containers.logins.registries().collect();
    if !registries.is_empty() {
        text.push_str(&format!(", logins for {}", registries.join(", ")));
    }
    Some(text)
}

fn store(store: &StoreSettings) -> String {
    let place = match (&store.endpoint, &store.region) {
        (Some(endpoint), Some(region)) => format!("{endpoint} in {region}"),
        (Some(endpoint), None) => endpoint.clone(),
        (None, Some(region)) => format!("the endpoint of {region}"),
        (None, None) => "the endpoint of this instance's region".to_owned(),
    };
    let credentials = match &store.credentials {
        CredentialSource::Automatic => "environment, files or the instance's role",
        CredentialSource::Static { security_token: Some(_), .. } => "a temporary access key that was given",
        CredentialSource::Static { .. } => "an access key that was given",
        CredentialSource::Anonymous => "no signature",
    };
    format!("{place}, with {credentials}")
}

impl fmt::Display for SettingsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// One line; `visible`, because names of objects and files can hold anything.
        fn line(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
            writeln!(f, "{name:<12}{}", visible(text))
        }
        line(f, "node", &self.identity)?;
        line(f, "scratch", &self.scratch)?;
        for volume in &self.volumes {
            line(f, "volume", volume)?;
        }
        let width = |text: fn(&MountReport) -> &str| {
            self.mounts.iter().map(|mount| visible(text(mount)).chars().count()).max().unwrap_or(0)
        };
        let (targets, sources) = (width(|mount| &mount.target), width(|mount| &mount.source));
        for mount in &self.mounts {
            let (target, source) = (visible(&mount.target), visible(&mount.source));
            line(f, "mount", &format!("{target:<targets$}  {source:<sources$}  {}", mount.how))?;
        }
        for output in &self.outputs {
            line(f, "output", output)?;
        }
        if let Some(early) = &self.early_upload {
            line(f, "sent early", early)?;
        }
        line(f, "cache", &self.cache)?;
        if let Some(containers) = &self.containers {
            line(f, "containers", containers)?;
        }
        for storage in &self.storage {
            line(f, "storage", storage)?;
        }
        for (name, variables) in [("variables", &self.environment), ("user data", &self.user_data)] {
            if !variables.is_empty() {
                line(f, name, &variables.join(", "))?;
            }
        }
        line(f, "bootstrap", self.bootstrap.as_deref().unwrap_or("none"))?;
        line(f, "task", self.task.as_deref().unwrap_or("none: the node is prepared for another scheduler"))?;
        if let Some(report) = &self.report {
            line(f, "report", report)?;
        }
        if self.task.is_some() {
            line(f, "at the end", &self.at_end)?;
        }
        if !self.warnings.is_empty() {
            writeln!(f, "\nwarnings")?;
            for warning in &self.warnings {
                writeln!(f, "  {warning}")?;
            }
        }
        Ok(())
    }
}
