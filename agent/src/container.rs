//! Tasks in containers.
//!
//! A task may name an image that its program runs in. The container is run by the engine that the machine has, Docker or
//! Podman, over its HTTP interface ([`engine`] says why), and looked after by the task's shim as any other program is
//! (`supervise`): the agent may be killed and replaced at any time.
//!
//! What a container is: unprivileged, root inside, at home in `/batchcompute/workdir`; it sees the image's files, the task's
//! mappings at their paths (`volumes`), the node's mounts, and the machine's network. It is removed with the task; its image stays
//! (`image`).
//!
//! Why the machine's network: programs of one job talk to each other, to the scheduler and to the metadata service as they would
//! without a container, no address is translated on the way of bulk data, no port has to be published, and nothing is made
//! that would have to be removed. `network: bridge` or `none` asks for something else.

mod accounts;
mod archive;
mod ending;
pub mod engine;
mod enter;
mod error;
mod files;
mod http;
mod image;
mod kept;
pub mod login;
mod manifest;
mod output;
pub mod reference;
mod relay;
mod spec;
mod supervise;
mod tree;
mod volumes;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use engine::{Engine, Image};
pub use enter::Visit;
pub use error::{EngineError, ImageError};
pub use login::{Login, Logins};
pub use reference::{Reference, ReferenceError};
pub use spec::{ContainerSpec, Volume};
pub(crate) use supervise::supervise;

use crate::instance::view::{Fetched, Host, Step, ThisHost, View};
use crate::job::Container;
use crate::outcome::Failure;
use image::{Abort, Files};

/// The label that every container of the agent has; its value says which attempt it belongs to.
const LABEL: &str = "batch-agent.attempt";

/// What a node knows about running containers.
#[derive(Debug, Clone)]
pub struct Containers {
    /// Where the engine listens; found when absent.
    pub socket: Option<PathBuf>,
    /// Who the node is to registries.
    pub logins: Logins,
    /// How long pulling an image may be tried.
    pub pull_deadline: Duration,
    /// What every container sees of the machine at the same path: where the node has mounted something.
    pub node_mounts: Vec<PathBuf>,
}

impl Containers {
    /// How long pulling an image may be tried unless something else is said.
    pub const PULL_DEADLINE: Duration = Duration::from_secs(60 * 60);
}

impl Default for Containers {
    fn default() -> Self {
        Self { socket: None, logins: Logins::default(), pull_deadline: Self::PULL_DEADLINE, node_mounts: Vec::new() }
    }
}

/// A container that may be there, for whoever has to remove it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Whose it is.
    pub engine: Engine,
    /// Its name.
    pub name: String,
    /// Outputs that are among its own files.
    #[serde(default)]
    pub fetched: Vec<Fetched>,
}

impl ContainerRecord {
    /// The container of the attempt whose runtime directory this is: no other attempt, and no other agent's, has the same.
    pub fn new(engine: Engine, runtime: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let path = runtime.as_os_str().as_bytes();
        Self { engine, name: format!("batch-agent-{:016x}", oss::crc::crc64(path)), fetched: Vec::new() }
    }

    /// The container by which the image is looked into.
    fn look(&self) -> String {
        format!("{}-look", self.name)
    }

    /// Ends and removes the container, if it is there. It may take as long as the engine takes.
    ///
    /// # Errors
    /// When it stays.
    pub fn remove(&self) -> Result<(), EngineError> {
        self.engine.remove(&self.name)?;
        self.engine.remove(&self.look())
    }
}

/// Where preparing may put things.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where the image's files in object storage are mounted, if they are.
    pub mount: PathBuf,
    /// A directory on the scratch disk.
    pub scratch: PathBuf,
}

/// Finds the engine.
///
/// # Errors
/// When the machine has none.
pub async fn find_engine(containers: &Containers) -> Result<Engine, Failure> {
    let socket = containers.socket.clone();
    let found = blocking(move || Engine::find(socket.as_deref())).await?;
    found.map_err(Failure::platform)
}

/// Makes sure that the engine has the task's image. Dropped before it is done, it ends what the engine does for it.
///
/// # Errors
/// When there is no image to run.
pub async fn get_image(
    containers: &Containers,
    engine: &Engine,
    container: &Container,
    places: Places,
) -> Result<Image, Failure> {
    struct GivesUp(Abort);
    impl Drop for GivesUp {
        fn drop(&mut self) {
            self.0.now();
        }
    }
    let gives_up = GivesUp(Abort::default());
    let abort = gives_up.0.clone();
    let (containers, engine, container) = (containers.clone(), engine.clone(), container.clone());
    let files = Files { mount: places.mount, scratch: places.scratch };
    let got = blocking(move || image::get(&containers, &engine, &container, &files, &abort)).await;
    drop(gives_up);
    got?.map_err(|error| error.failure())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::platform)
}

/// Has `plan` look into the image, with the node's mounts over its files.
///
/// # Errors
/// The plan's own, and when the engine fails meanwhile.
pub fn with_files_of<T>(
    record: &ContainerRecord,
    image: &Image,
    node_mounts: &[PathBuf],
    plan: impl FnOnce(&dyn Host) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let files = files::ImageFiles::open(&record.engine, &image.id, &record.look()).map_err(Failure::platform)?;
    let planned = plan(&files::Shown { image: &files, machine: &ThisHost::default(), node_mounts });
    // It comes first: a plan for an image that could not be looked into is no plan.
    match files.failure() {
        Some(error) => Err(Failure::platform(error)),
        None => planned,
    }
}

/// What is done on the host for a container's view, and what it is then shown. `stage` is a directory of the attempt, `node_mounts` are
/// there.
pub fn stage(view: &View, scratch: &Path, stage: &Path, node_mounts: &[PathBuf]) -> (Vec<Step>, Vec<Volume>) {
    let mut staged = volumes::stage(view, scratch, stage);
    let shared = shared_mounts();
    for path in node_mounts {
        // What the task maps counts more.
        if staged.volumes.iter().any(|volume| path.starts_with(&volume.target)) {
            continue;
        }
        let follows_host = shared.iter().any(|mount| mount == path);
        let (source, target) = (path.clone(), path.clone());
        staged.volumes.push(Volume { source, target, read_only: false, follows_host });
    }
    (staged.steps, staged.volumes)
}

impl Containers {
    /// The node's mounts that are there: one that is not required may be missing.
    pub fn mounts_that_are_there(&self) -> Vec<PathBuf> {
        let is_there = |path: &&PathBuf| fuse_oss::mountpoint::mounted_on(path).is_some();
        self.node_mounts.iter().filter(is_there).cloned().collect()
    }
}

/// The mount points whose later mounts an engine can pass on.
fn shared_mounts() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_line = |line: &str| {
        let (fields, _) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(4);
        let path = fields.next()?;
        fields.skip(1).any(|tag| tag.starts_with("shared:") || tag.starts_with("master:")).then(|| PathBuf::from(path))
    };
    table.lines().filter_map(of_line).collect()
}

/// Brings the outputs that are among the container's own files to the scratch disk. What is not there is left to be missed.
///
/// # Errors
/// When the engine fails, or there is something that is not a file.
pub fn fetch(record: &ContainerRecord, started: jiff::Timestamp) -> Result<(), String> {
    for file in &record.fetched {
        fetch_one(record, file, started).map_err(|error| {
            format!("output {} cannot be brought from the container: {error}", file.source.display())
        })?;
    }
    Ok(())
}

fn fetch_one(record: &ContainerRecord, file: &Fetched, started: jiff::Timestamp) -> Result<(), String> {
    /// Podman sends nothing while it is taking away the mounts of a container that has just ended.
    const TRIES: u32 = 50;
    const PAUSE: Duration = Duration::from_millis(200);
    for _ in 0..TRIES {
        let found = record.engine.fetch(&record.name, &file.source).map_err(|error| error.to_string())?;
        let Some(archive) = found else { return Ok(()) };
        if take_out(archive, file, started)? {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    Err("the engine does not send it".to_owned())
}

/// Takes the one file out of an archive. Says whether there was anything in it.
fn take_out(archive: impl io::Read, file: &Fetched, started: jiff::Timestamp) -> Result<bool, String> {
    let mut archive = tar::Archive::new(archive);
    let failed = |error: io::Error| error.to_string();
    let Some(entry) = archive.entries().map_err(failed)?.next() else { return Ok(false) };
    let mut entry = entry.map_err(failed)?;
    if !entry.header().entry_type().is_file() {
        return Err("it is not a regular file; let the program write the file itself".to_owned());
    }
    let changed = entry.header().mtime().map_err(failed)?;
    if file.was_there && i64::try_from(changed).unwrap_or(i64::MAX) < started.as_second() {
        return Ok(true);
    }
    let mut target = std::fs::File::create(&file.target).map_err(failed)?;
    io::copy(&mut entry, &mut target).map_err(failed)?;
    Ok(true)
}
