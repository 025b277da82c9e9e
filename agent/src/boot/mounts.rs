//! Mounting what the node's programs use: NAS and Lustre, and object storage.
//!
//! Mounts that do not lie in one another are made side by side, each within its own deadline, so that a server that is dead
//! costs its own mount and nothing else. Object mounts that do lie in one another are one mount of several places.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuse_oss::client::Client;
use fuse_oss::{
    ErrorKind, MountEntry, MountError, MountOptions, MountRequest, ServeSettings, Writable, default_runtime_dir,
};
use tokio::task::JoinSet;

use super::phase::Came;
use super::service;
use super::story::{Mounted, State, Teller};
use crate::events::Event;
use crate::exit;
use crate::network;
use crate::node::Node;
use crate::outcome::{Cause, Failure};
use crate::programs::Programs;
use crate::settings::{MountSource, NetworkFileSystem, NodeMount, NodeSettings};

/// Between two attempts at an object mount.
const PAUSE: Duration = Duration::from_secs(2);

/// Writes down what will be mounted.
pub fn expect(settings: &NodeSettings, teller: &Teller) {
    let mounts = settings.mounts.iter().map(|mount| Mounted {
        source: source(mount),
        target: mount.target.clone(),
        state: State::Waiting,
        elapsed_ms: None,
        message: None,
    });
    teller.note(|story| story.mounts = mounts.collect());
}

fn source(mount: &NodeMount) -> String {
    match &mount.source {
        MountSource::Object { location, .. } => location.escaped(),
        MountSource::Network(network) => network.device().to_string_lossy().into_owned(),
    }
}

fn networks(settings: &NodeSettings) -> Vec<(NodeMount, NetworkFileSystem)> {
    let mounts = settings.mounts.iter();
    let network = |mount: &NodeMount| match &mount.source {
        MountSource::Network(network) => Some((mount.clone(), network.clone())),
        MountSource::Object { .. } => None,
    };
    mounts.filter_map(network).collect()
}

/// The longest deadline of a network mount; none without any.
pub fn network_limit(settings: &NodeSettings) -> Option<Duration> {
    networks(settings).iter().map(|(mount, _)| mount.deadline).max()
}

/// The longest deadline of an object mount; none without any.
pub fn object_limit(settings: &NodeSettings) -> Option<Duration> {
    let objects = settings.mounts.iter().filter(|mount| matches!(mount.source, MountSource::Object { .. }));
    objects.map(|mount| mount.deadline).max()
}

/// Mounts NAS and Lustre.
pub async fn network(settings: &NodeSettings, programs: &Programs, teller: &Teller) -> Result<Came<()>, Failure> {
    let mut waves = in_waves(networks(settings));
    if waves.is_empty() {
        return Ok(Came::ToNothing(()));
    }
    let mut count = Count::default();
    for wave in waves.drain(..) {
        let mut making = JoinSet::new();
        for (mount, network) in wave {
            begin(&mount, teller);
            let programs = programs.clone();
            making.spawn(async move {
                let began = Instant::now();
                let made = network::mount(&network, &mount.target, mount.writable, mount.deadline, &programs).await;
                (mount, began.elapsed(), made.map(drop).map_err(|error| error.failure()))
            });
        }
        while let Some(made) = making.join_next().await {
            let (mount, took, made) = made.map_err(Failure::platform)?;
            count.add(end(&mount, took, made, teller));
        }
        // What lies in a mount that is missing would be mounted into nowhere.
        count.stop_if_failed()?;
    }
    count.came()
}

/// Mounts in an order in which none comes before one that it lies in; those of one wave have nothing to do with one another.
fn in_waves<T>(mounts: Vec<(NodeMount, T)>) -> Vec<Vec<(NodeMount, T)>> {
    let targets: Vec<PathBuf> = mounts.iter().map(|(mount, _)| mount.target.clone()).collect();
    let depth = |target: &Path| targets.iter().filter(|outer| *outer != target && target.starts_with(outer)).count();
    let mut waves: Vec<Vec<(NodeMount, T)>> = Vec::new();
    for (mount, what) in mounts {
        let depth = depth(&mount.target);
        waves.resize_with(waves.len().max(depth + 1), Vec::new);
        waves[depth].push((mount, what));
    }
    waves.retain(|wave| !wave.is_empty());
    waves
}

fn begin(mount: &NodeMount, teller: &Teller) {
    teller.mount(&mount.target, |told| told.state = State::Running);
}

/// Tells how a mount ended. Answers with its failure if the node cannot do without it.
fn end(mount: &NodeMount, took: Duration, made: Result<(), Failure>, teller: &Teller) -> Option<Failure> {
    let elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let message = made.as_ref().err().map(|failure| failure.message.clone());
    let subject = mount.target.to_string_lossy();
    teller.mount(&mount.target, |told| {
        told.state = if message.is_none() { State::Done } else { State::Failed };
        told.elapsed_ms = Some(elapsed_ms);
        told.message.clone_from(&message);
    });
    let event = if message.is_none() { "MountDone" } else { "MountFailed" };
    teller.event(Event { event, subject: &subject, elapsed_ms: Some(elapsed_ms), message: message.as_deref() });
    match made {
        Ok(()) => {
            tracing::info!(target = %mount.target.display(), elapsed_ms, "mounted {}", source(mount));
            None
        }
        Err(failure) if mount.required => {
            tracing::error!(elapsed_ms, "{}", failure.message);
            Some(failure)
        }
        Err(failure) => {
            tracing::warn!(elapsed_ms, "{} (the settings say that the node can do without)", failure.message);
            None
        }
    }
}

/// What has become of the mounts so far.
#[derive(Default)]
struct Count {
    made: usize,
    failures: Vec<Failure>,
}

impl Count {
    fn add(&mut self, failure: Option<Failure>) {
        match failure {
            Some(failure) => self.failures.push(failure),
            None => self.made += 1,
        }
    }

    fn stop_if_failed(&mut self) -> Result<(), Failure> {
        let Some(first) = self.failures.first() else { return Ok(()) };
        let all: Vec<&str> = self.failures.iter().map(|failure| failure.message.as_str()).collect();
        Err(Failure::new(first.cause, first.exit_status, all.join("; ")))
    }

    fn came(mut self) -> Result<Came<()>, Failure> {
        self.stop_if_failed()?;
        Ok(Came::To((), Some(format!("{} mounted", self.made))))
    }
}

/// One FUSE mount: a place, and what else is inside of it.
#[derive(Debug, Clone)]
struct Group {
    mount: NodeMount,
    entries: Vec<MountEntry>,
    inside: Vec<NodeMount>,
}

/// Puts together what lies in one another.
fn groups(settings: &NodeSettings) -> Result<Vec<Group>, Failure> {
    let mut mounts: Vec<&NodeMount> =
        settings.mounts.iter().filter(|mount| matches!(mount.source, MountSource::Object { .. })).collect();
    // The outer one first.
    mounts.sort_by(|a, b| a.target.components().cmp(b.target.components()));
    let mut groups: Vec<Group> = Vec::new();
    for mount in mounts {
        let outer = groups.iter_mut().find(|group| mount.target.starts_with(&group.mount.target));
        match outer {
            Some(group) if group.mount.writable != mount.writable => {
                return Err(Failure::new(
                    Cause::User,
                    exit::BAD_SETTINGS,
                    format!(
                        "{} lies in {} and only one of them is writable; make both writable or neither",
                        mount.target.display(),
                        group.mount.target.display()
                    ),
                ));
            }
            Some(group) => {
                let at = mount.target.strip_prefix(&group.mount.target).unwrap_or(&mount.target);
                group.entries.push(entry(mount, &at.to_string_lossy())?);
                group.mount.deadline = group.mount.deadline.max(mount.deadline);
                group.inside.push(mount.clone());
            }
            None => groups.push(Group { mount: mount.clone(), entries: vec![entry(mount, "")?], inside: Vec::new() }),
        }
    }
    Ok(groups)
}

fn entry(mount: &NodeMount, at: &str) -> Result<MountEntry, Failure> {
    let MountSource::Object { location, locale } = &mount.source else {
        return Err(Failure::platform("only object storage has entries"));
    };
    let mut entry = MountEntry::new(at, location.clone());
    if let Some(locale) = locale {
        entry.locale = locale.parse().map_err(|error| {
            Failure::new(Cause::User, exit::BAD_SETTINGS, format!("{}: {error}", mount.target.display()))
        })?;
    }
    Ok(entry)
}

/// Mounts object storage through the node's one server.
pub async fn objects(
    settings: &NodeSettings,
    node: &Node,
    fuse_oss: &Path,
    programs: &Programs,
    teller: &Teller,
) -> Result<Came<()>, Failure> {
    let groups = groups(settings)?;
    if groups.is_empty() && settings.task.is_none() {
        return Ok(Came::ToNothing(()));
    }
    node.prepare().map_err(Failure::platform)?;
    let serve = serve_settings(settings, node, fuse_oss);
    service::start_fuse_oss(&serve, node, programs).await?;
    if groups.is_empty() {
        return Ok(Came::ToNothing(()));
    }
    let mut making = JoinSet::new();
    for group in groups {
        begin(&group.mount, teller);
        let request = MountRequest {
            target: group.mount.target.clone(),
            entries: group.entries.clone(),
            options: MountOptions {
                allow_other: true,
                writable: group.mount.writable.then(Writable::default),
                dir_mode: if group.mount.writable { 0o755 } else { 0o555 },
                ..MountOptions::default()
            },
            stores: settings.storage.clone(),
        };
        let serve = serve.clone();
        making.spawn(async move {
            let began = Instant::now();
            let made = mount_object(&serve, &request, group.mount.deadline).await;
            (group, began.elapsed(), made)
        });
    }
    let mut count = Count::default();
    while let Some(made) = making.join_next().await {
        let (group, took, made) = made.map_err(Failure::platform)?;
        for inside in &group.inside {
            teller.mount(&inside.target, |told| {
                told.state = if made.is_ok() { State::Done } else { State::Failed };
            });
        }
        count.add(end(&group.mount, took, made, teller));
    }
    count.came()
}

/// The node's one server of object mounts.
pub fn serve_settings(settings: &NodeSettings, node: &Node, fuse_oss: &Path) -> ServeSettings {
    ServeSettings {
        cache_dir: settings.cache.directory.clone().unwrap_or_else(|| node.object_cache()),
        cache_size: settings.cache.size,
        memory_limit: settings.cache.memory,
        runtime_dir: default_runtime_dir(),
        ..ServeSettings::new(fuse_oss)
    }
}

/// Mounts, again and again as long as the store does not answer and there is time. What is mounted already is recognised.
async fn mount_object(serve: &ServeSettings, request: &MountRequest, deadline: Duration) -> Result<(), Failure> {
    let until = Instant::now() + deadline;
    make_target(request)?;
    loop {
        let (serve, wanted) = (serve.clone(), request.clone());
        let made = tokio::task::spawn_blocking(move || attempt(&serve, &wanted)).await.map_err(Failure::platform)?;
        match made {
            Ok(()) => return Ok(()),
            Err(error) if error.kind == ErrorKind::Unavailable && Instant::now() + PAUSE < until => {
                tracing::warn!("{}; trying again", error.message);
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(failure(&error)),
        }
    }
}

fn attempt(serve: &ServeSettings, request: &MountRequest) -> Result<(), MountError> {
    let mut client = Client::connect_or_start(serve)?;
    let status = client.status()?;
    let there = status.mounts.iter().find(|mount| mount.target == request.target && !mount.detached);
    if let Some(there) = there
        && there.entries == request.entries
        && there.writable.is_some() == request.options.writable.is_some()
    {
        return match &there.down {
            None => Ok(()),
            Some(cause) => Err(MountError::new(
                ErrorKind::TargetBusy,
                format_args!("{} is mounted and does not work any more: {cause}", request.target.display()),
            )),
        };
    }
    client.mount(request).map(drop)
}

/// A directory to mount on is made when it is missing. For one object the server makes the file.
fn make_target(request: &MountRequest) -> Result<(), Failure> {
    let is_file = matches!(&request.entries[..], [only] if !only.location.is_directory());
    let directory = if is_file { request.target.parent() } else { Some(&*request.target) };
    let Some(directory) = directory else { return Ok(()) };
    std::fs::create_dir_all(directory)
        .map_err(|error| Failure::new(Cause::Mount, exit::OS, format!("cannot make {}: {error}", directory.display())))
}

fn failure(error: &MountError) -> Failure {
    let (cause, exit_status) = crate::instance::meaning_of(error);
    Failure::new(cause, exit_status, error.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(target: &str, location: &str, writable: bool) -> NodeMount {
        NodeMount {
            source: MountSource::Object { location: location.parse().unwrap(), locale: None },
            target: target.into(),
            writable,
            required: true,
            deadline: Duration::from_secs(10),
        }
    }

    fn settings(mounts: Vec<NodeMount>) -> NodeSettings {
        NodeSettings { mounts, ..NodeSettings::default() }
    }

    #[test]
    fn what_lies_in_one_another_is_one_mount() {
        let mounts = vec![
            object("/home/in/deep/x", "s3://c/x", false),
            object("/home/in", "oss://b/d/", false),
            object("/home/input", "oss://b/e/", true),
        ];
        let groups = groups(&settings(mounts)).unwrap();
        let shown: Vec<(&Path, Vec<&str>)> = groups
            .iter()
            .map(|group| (&*group.mount.target, group.entries.iter().map(|entry| entry.at.as_str()).collect()))
            .collect();
        assert_eq!(shown, [(Path::new("/home/in"), vec!["", "deep/x"]), (Path::new("/home/input"), vec![""])]);
    }

    #[test]
    fn one_mount_is_not_both_writable_and_not() {
        let mounts = vec![object("/home/in", "oss://b/d/", true), object("/home/in/x", "oss://b/x", false)];
        let failure = groups(&settings(mounts)).unwrap_err();
        assert!(failure.message.contains("/home/in/x lies in /home/in"), "{}", failure.message);
    }

    #[test]
    fn an_outer_mount_comes_before_what_lies_in_it() {
        let mounts = ["/a/b/c", "/x", "/a", "/a/b"].map(|target| (object(target, "oss://b/", false), ()));
        let waves = in_waves(mounts.to_vec());
        let shown: Vec<Vec<&str>> =
            waves.iter().map(|wave| wave.iter().map(|(mount, ())| mount.target.to_str().unwrap()).collect()).collect();
        assert_eq!(shown, [vec!["/x", "/a"], vec!["/a/b"], vec!["/a/b/c"]]);
    }
}
