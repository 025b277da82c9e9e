//! The rules that settings must obey. What comes out is valid by construction, and nothing behind it checks again.
//!
//! The rules for paths, locations, command lines and variables are those of jobs.

mod disks;
mod mounts;
mod places;
mod report;
mod task;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use fuse_oss::{ByteSize, Charset, CharsetError, MIN_MEMORY};
use oss::{CredentialSource, Settings, StoreSettings};

use self::places::{Claim, Kind, Places};
use super::description::{AtEnd, Bootstrap, CacheSettings, Cloud, ContainerSettings, Identity, NodeSettings, Program};
use super::format::{
    AtEndDocument, BootstrapDocument, CacheDocument, CloudDocument, ContainersDocument, IdentityDocument,
    OutputDocument, SettingsDocument, StoreDocument,
};
use crate::container::{Login, Logins, Reference};
use crate::instance::{EarlyUpload, EarlyUploadError};
use crate::job::draft::DraftCommand;
use crate::job::finding::{At, Findings, Place, is_deceptive, quoted};
use crate::job::validate::{self as job, local_path};
use crate::job::yaml::values::{CommandDocument, TimeoutDocument};
use crate::job::{Output, validate::mappings};
use crate::node::Node;

/// The longest time that anything may be given, in seconds: a week.
const MAX_TIME: i64 = 7 * 86_400;

/// How long the bootstrap may run when nothing is said. Long enough to install a few packages from a slow mirror.
const BOOTSTRAP: Duration = Duration::from_secs(30 * 60);

/// How long a node that is to be powered off stays when something of its task could not be uploaded.
const POWEROFF: Duration = Duration::from_secs(3600);

/// The longest id, in bytes.
const MAX_ID: usize = 128;

/// Checks the document. `base` is what is known of object storage without it.
pub(super) fn validate(document: SettingsDocument, base: Settings, findings: &mut Findings) -> NodeSettings {
    let root = Place::root();
    let mut places = Places::default();
    let scratch = document.scratch.as_deref().and_then(|text| own_directory(text, &root.key("scratch"), findings));
    if let Some(path) = &scratch {
        places.claim(Claim { path: path.clone(), place: root.key("scratch"), kind: Kind::Scratch }, findings);
    }
    let place = root.key("disks");
    let disks = disks::check(document.disks.unwrap_or_default(), &place, scratch.is_none(), &mut places, findings);
    let mounts = mounts::check(document.mounts.unwrap_or_default(), &root.key("mounts"), &mut places, findings);
    let outputs = outputs(document.outputs.unwrap_or_default(), &root.key("outputs"), &mut places, findings);
    let early_upload = early_upload(document.early_upload.as_deref(), &root.key("early_upload"), findings);
    let cache = cache(&document.cache.unwrap_or_default(), &root.key("cache"), &mut places, findings);
    places.judge(findings);

    let containers = containers(document.containers.unwrap_or_default(), &root.key("containers"), findings);
    let store = document.storage.unwrap_or_default();
    let place = root.key("storage");
    let storage = Settings {
        oss: storage(store.oss.unwrap_or_default(), base.oss, &place.key("oss"), findings),
        s3: storage(store.s3.unwrap_or_default(), base.s3, &place.key("s3"), findings),
    };
    let environment = variables(document.environment, &root.key("environment"), findings);
    let user_data = variables(document.user_data, &root.key("user_data"), findings);
    for name in user_data.keys().filter(|name| environment.contains_key(*name)) {
        let cause = "is also in environment, whose value is used";
        findings.warn(&root.key("user_data").key(name), cause, "remove one of them");
    }
    let bootstrap = document.bootstrap.map(|bootstrap| self::bootstrap(bootstrap, &root.key("bootstrap"), findings));
    let task = document.task.and_then(|task| task::check(task, &root.key("task"), findings));
    let report = report::check(document.report.unwrap_or_default(), &root.key("report"), findings);
    let at_end = at_end(document.at_end, document.poweroff_deadline, &root, findings);
    if task.is_none() && findings.error_count() == 0 {
        let never = "means nothing without a task, whose end it waits for";
        if at_end != AtEnd::Stay {
            findings.warn(&root.key("at_end"), never, "add a task, or remove it");
        }
        if !outputs.is_empty() {
            findings.warn(&root.key("outputs"), never, "add a task, or remove them");
        }
    }
    NodeSettings {
        identity: identity(document.identity.unwrap_or_default(), &root.key("identity"), findings),
        disks,
        scratch,
        mounts,
        outputs,
        early_upload,
        cache,
        containers,
        storage,
        environment,
        user_data,
        bootstrap,
        task,
        report,
        at_end,
    }
}

fn early_upload(written: Option<&str>, place: &Place, findings: &mut Findings) -> EarlyUpload {
    match written.map(str::parse) {
        None => EarlyUpload::default(),
        Some(Ok(early)) => early,
        Some(Err(error)) => {
            let error: EarlyUploadError = error;
            findings.error_with(place, error.cause, EarlyUploadError::REMEDY);
            EarlyUpload::default()
        }
    }
}

fn at_end(
    written: Option<AtEndDocument>,
    deadline: Option<TimeoutDocument>,
    root: &Place,
    findings: &mut Findings,
) -> AtEnd {
    let place = root.key("poweroff_deadline");
    match written {
        Some(AtEndDocument::PowerOff) => {
            let deadline = deadline.and_then(|deadline| time(deadline, &place, 0..=MAX_TIME, findings));
            AtEnd::PowerOff { deadline: deadline.unwrap_or(POWEROFF) }
        }
        Some(AtEndDocument::Stay) | None => {
            if deadline.is_some() {
                findings.warn(&place, "means nothing on a node that stays", "add at_end: poweroff, or remove it");
            }
            AtEnd::Stay
        }
    }
}

fn identity(document: IdentityDocument, place: &Place, findings: &mut Findings) -> Identity {
    let mut id = |key: &str, written: Option<String>| {
        let text = written.filter(|text| !text.is_empty())?;
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.len() <= MAX_ID && text.chars().all(fine) && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Some(text);
        }
        let remedy = "use letters, digits, '-', '_' and '.', at most 128 of them";
        findings.error_with(&place.key(key), format!("{} cannot be a name", quoted(&text)), remedy);
        None
    };
    let (region, zone) = (id("region", document.region), id("zone", document.zone));
    let instance_id = id("instance_id", document.instance_id);
    let instance_type = id("instance_type", document.instance_type);
    let cluster = id("cluster", document.cluster);
    let endpoint = document.metadata_endpoint.filter(|text| !text.is_empty());
    if let Some(text) = &endpoint
        && !is_metadata_address(text)
    {
        findings.error_with(
            &place.key("metadata_endpoint"),
            format!("{} is no address of a metadata service", quoted(text)),
            "write it as http://HOST or http://HOST:PORT",
        );
    }
    Identity {
        cloud: match document.cloud {
            None | Some(CloudDocument::Auto) => None,
            Some(CloudDocument::Alibaba) => Some(Cloud::Alibaba),
            Some(CloudDocument::Aws) => Some(Cloud::Aws),
            Some(CloudDocument::None) => Some(Cloud::None),
        },
        region,
        zone,
        instance_id,
        instance_type,
        spot: document.spot,
        cluster,
        metadata_endpoint: endpoint.map(|text| text.trim_end_matches('/').to_owned()),
    }
}

/// `http://HOST[:PORT]`, and nothing behind it but a slash.
fn is_metadata_address(text: &str) -> bool {
    let Some(host) = text.strip_prefix("http://") else { return false };
    let host = host.strip_suffix('/').unwrap_or(host);
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    !host.is_empty() && host.chars().all(fine)
}

fn outputs(
    documents: Vec<Option<OutputDocument>>,
    place: &Place,
    places: &mut Places,
    findings: &mut Findings,
) -> Vec<Output> {
    let mut outputs = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let (Some(document), place) = (document, place.index(index)) else { continue };
        let source = At::new(place.key("source"), document.source);
        let target = At::new(place.key("target"), document.target);
        let (Some(path), Some(location)) = (mappings::local(&source, findings), job::location(&target, findings))
        else {
            continue;
        };
        if !mappings::agree(&location, &path, &target, &source, false, findings) {
            continue;
        }
        let kind = Kind::Output { target: location.clone() };
        places.claim(Claim { path: path.path.clone(), place: source.place, kind }, findings);
        let locale = charset(document.locale.as_deref(), &place.key("locale"), findings);
        outputs.push(Output { source: path.path, target: location, locale });
    }
    outputs
}

fn cache(document: &CacheDocument, place: &Place, places: &mut Places, findings: &mut Findings) -> CacheSettings {
    let at = place.key("directory");
    let directory = document.directory.as_deref().and_then(|text| own_directory(text, &at, findings));
    if let Some(path) = &directory {
        places.claim(Claim { path: path.clone(), place: at, kind: Kind::Cache }, findings);
    }
    let mut size = |key: &str, text: Option<&String>, least: ByteSize| {
        let place = place.key(key);
        match text?.parse::<ByteSize>() {
            Ok(size) if size >= least => Some(size),
            Ok(size) => {
                findings.error_with(&place, format!("{size} is too little"), format!("write at least {least}"));
                None
            }
            Err(error) => {
                findings.error(&place, error.to_string());
                None
            }
        }
    };
    CacheSettings {
        size: size("size", document.size.as_ref(), ByteSize::new(1)),
        memory: size("memory", document.memory.as_ref(), MIN_MEMORY),
        directory,
    }
}

fn storage(document: StoreDocument, base: StoreSettings, place: &Place, findings: &mut Findings) -> StoreSettings {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let endpoint = given(document.endpoint);
    if let Some(text) = &endpoint {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        // Before an @ there is a password.
        if host.contains('@') || host.contains("://") || host.chars().any(|c| c.is_whitespace() || is_deceptive(c)) {
            findings.error_with(
                &place.key("endpoint"),
                "is no endpoint",
                "write it as https://HOST, without user or password",
            );
        }
    }
    let secret = document.access_key_secret.filter(|secret| !secret.is_empty());
    let token = document.security_token.filter(|token| !token.is_empty());
    let credentials = match (given(document.access_key_id), secret) {
        (Some(access_key_id), Some(access_key_secret)) => {
            CredentialSource::Static { access_key_id, access_key_secret, security_token: token }
        }
        (None, None) => {
            if token.is_some() {
                let remedy = "add access_key_id and access_key_secret";
                findings.error_with(&place.key("security_token"), "is given without an access key", remedy);
            }
            base.credentials
        }
        (Some(_), None) => {
            findings.error_with(&place.key("access_key_id"), "is given without access_key_secret", "add it");
            base.credentials
        }
        (None, Some(_)) => {
            findings.error_with(&place.key("access_key_secret"), "is given without access_key_id", "add it");
            base.credentials
        }
    };
    StoreSettings {
        endpoint: endpoint.or(base.endpoint),
        region: given(document.region).or(base.region),
        addressing: document.addressing.unwrap_or(base.addressing),
        credentials,
        ..base
    }
}

fn containers(document: ContainersDocument, place: &Place, findings: &mut Findings) -> ContainerSettings {
    let socket = document.socket.filter(|text| !text.is_empty()).and_then(|text| match local_path::normal(&text) {
        Ok(path) => Some(path.path),
        Err(refusal) => {
            findings.error_with(&place.key("socket"), refusal.cause, "write a path such as /run/docker.sock");
            None
        }
    });
    let deadline =
        document.pull_timeout.and_then(|limit| time(limit, &place.key("pull_timeout"), 1..=MAX_TIME, findings));
    let mut logins = Logins::default();
    for (index, registry) in document.registries.unwrap_or_default().into_iter().enumerate() {
        let (Some(registry), place) = (registry, place.key("registries").index(index)) else { continue };
        // A name of an image begins with it.
        if format!("{}/x", registry.host).parse::<Reference>().is_ok_and(|name| name.registry == registry.host) {
            let (username, password) = (registry.username, registry.registry_password);
            if logins.insert(&registry.host, Login { username, password }) {
                findings.error_with(&place.key("host"), "has a login already", "remove one of them");
            }
        } else {
            let cause = format!("{} is not the host of a registry", quoted(&registry.host));
            findings.error_with(
                &place.key("host"),
                cause,
                "write its name, with its port if it has one, and nothing else",
            );
        }
    }
    ContainerSettings { socket, pull_deadline: deadline, logins }
}

fn variables(
    written: Option<BTreeMap<String, String>>,
    place: &Place,
    findings: &mut Findings,
) -> BTreeMap<String, String> {
    let written: Vec<_> =
        written.unwrap_or_default().into_iter().map(|(name, value)| At::new(place.key(&name), (name, value))).collect();
    job::check_environment(&written, findings)
}

fn bootstrap(document: BootstrapDocument, place: &Place, findings: &mut Findings) -> Bootstrap {
    let command = match document.command {
        CommandDocument::Line(line) => DraftCommand::Line(line),
        CommandDocument::Words(words) => DraftCommand::Words(words),
    };
    let command = job::check_command(&At::new(place.key("command"), command), findings);
    let deadline = document.timeout.and_then(|timeout| time(timeout, &place.key("timeout"), 1..=MAX_TIME, findings));
    Bootstrap {
        program: Program { command },
        deadline: deadline.unwrap_or(BOOTSTRAP),
        log: directory(document.log, &place.key("log"), findings),
    }
}

/// A directory in object storage.
fn directory(written: Option<String>, place: &Place, findings: &mut Findings) -> Option<oss::Location> {
    let written = written.filter(|text| !text.is_empty())?;
    job::check_directory(&At::new(place.clone(), written), findings)
}

/// A character set by its name.
fn charset(name: Option<&str>, place: &Place, findings: &mut Findings) -> Charset {
    name.filter(|name| !name.is_empty()).map_or(Charset::UTF_8, |name| {
        name.parse().unwrap_or_else(|error: CharsetError| {
            findings.error(place, error.to_string());
            Charset::UTF_8
        })
    })
}

/// A local path that something is put at.
fn local(text: &str, place: &Place, findings: &mut Findings) -> Option<PathBuf> {
    mappings::local(&At::new(place.clone(), text.to_owned()), findings).map(|local| local.path)
}

/// A directory that the agent keeps things in: anywhere but in the system's own, or in its own default place.
fn own_directory(text: &str, place: &Place, findings: &mut Findings) -> Option<PathBuf> {
    match local_path::normal(text) {
        Ok(path) if path.path.starts_with(Node::default().scratch) => Some(path.path),
        _ => local(text, place, findings),
    }
}

/// A length of time within its range, which is in seconds.
fn time(
    written: TimeoutDocument,
    place: &Place,
    range: std::ops::RangeInclusive<i64>,
    findings: &mut Findings,
) -> Option<Duration> {
    if range.contains(&written.0)
        && let Ok(seconds) = u64::try_from(written.0)
    {
        return Some(Duration::from_secs(seconds));
    }
    let (least, most) = (range.start(), range.end());
    findings.error(place, format!("expected {least} to {most} seconds, got {}", written.0));
    None
}
