//! Mounting what a task reads: one `fuse-oss` mount per attempt that holds all of its inputs, side by side.
//!
//! Input number N is at `<mount>/N` when it is a directory, and at `<mount>/N/object` when it is one object: the names
//! keys have in storage never become names here. The view (see [`view`](super::view)) then puts them where the task wants them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fuse_oss::client::{Cancellation, Client};
use fuse_oss::runtime::RuntimePaths;
use fuse_oss::{ErrorKind, MountEntry, MountError, MountOptions, MountRequest, ServeSettings, UnmountMode};

use oss::Location;

use super::view::{InputView, Kind};
use crate::exit;
use crate::job::{Input, Task};
use crate::outcome::{Cause, Failure};

/// The name a single object has in its own directory.
const OBJECT: &str = "object";

/// Mounts and unmounts through the node's one `fuse-oss serve`.
#[derive(Debug, Clone)]
pub struct Mounter {
    settings: ServeSettings,
}

impl Mounter {
    /// A mounter that starts the server with these settings when it is needed first.
    pub fn new(settings: ServeSettings) -> Self {
        Self { settings }
    }

    /// The settings of the server.
    pub fn settings(&self) -> &ServeSettings {
        &self.settings
    }

    /// Where the server is, and its cache.
    pub(super) fn places(&self) -> (&Path, &Path) {
        (&self.settings.runtime_dir, &self.settings.cache_dir)
    }

    /// Mounts the inputs of `task` at `target`, a directory that exists.
    ///
    /// # Errors
    /// When one of them cannot be mounted; nothing is mounted then.
    pub async fn mount(&self, task: &Task, target: &Path, stores: oss::Settings) -> Result<Vec<InputView>, Failure> {
        if task.inputs.is_empty() {
            return Ok(Vec::new());
        }
        let entries = task.inputs.iter().enumerate();
        self.mount_request(MountRequest {
            target: target.to_owned(),
            entries: entries.map(|(n, input)| entry(n, input)).collect(),
            // The task may run as somebody else.
            options: MountOptions { allow_other: true, cache: task.input_cache, ..MountOptions::default() },
            stores,
        })
        .await?;
        Ok(task.inputs.iter().enumerate().map(|(n, input)| view_of(n, input, target)).collect())
    }

    /// Mounts one location at `target`, and answers with where it is there: a directory, or one file.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub async fn mount_one(
        &self,
        location: &Location,
        target: &Path,
        stores: oss::Settings,
    ) -> Result<PathBuf, Failure> {
        let place = if location.is_directory() { "0".to_owned() } else { format!("0/{OBJECT}") };
        self.mount_request(MountRequest {
            target: target.to_owned(),
            entries: vec![MountEntry::new(place.clone(), location.clone())],
            options: MountOptions::default(),
            stores,
        })
        .await?;
        Ok(target.join(place))
    }

    async fn mount_request(&self, request: MountRequest) -> Result<(), Failure> {
        let settings = self.settings.clone();
        let (abandon, abandoned) = Abandon::new();
        let work = move || {
            let mut client = Client::connect_or_start(&settings)?;
            if abandoned.is_abandoned_with(client.cancellation()?) {
                return Ok(());
            }
            client.mount(&request).map(drop)
        };
        // Dropped in the middle, as when the user stops the job, this hangs up on the server, which then undoes the mount.
        let mounted = blocking(work).await;
        drop(abandon);
        mounted?.map_err(failure)
    }

    /// Unmounts what [`Mounter::mount`] has mounted; something that is not mounted is a success.
    ///
    /// # Errors
    /// When it stays mounted.
    pub async fn unmount(&self, target: &Path) -> Result<(), Failure> {
        if !is_mount_point(target) {
            return Ok(());
        }
        let (settings, target) = (self.settings.clone(), target.to_owned());
        blocking(move || unmount(&settings, &target)).await?
    }
}

/// Hangs up on the server when it is dropped.
struct Abandon(Arc<Mutex<Call>>);

/// What the thread that talks to the server shares with whoever waits for it.
#[derive(Default)]
struct Call {
    is_abandoned: bool,
    cancellation: Option<Cancellation>,
}

/// The thread's end of an [`Abandon`].
struct Abandoned(Arc<Mutex<Call>>);

impl Abandon {
    fn new() -> (Self, Abandoned) {
        let call = Arc::new(Mutex::default());
        (Self(Arc::clone(&call)), Abandoned(call))
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        let mut call = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        call.is_abandoned = true;
        if let Some(cancellation) = call.cancellation.take() {
            cancellation.cancel();
        }
    }
}

impl Abandoned {
    /// Whether nobody waits any more; if somebody does, `cancellation` is what an end of the waiting will use.
    fn is_abandoned_with(&self, cancellation: Cancellation) -> bool {
        let mut call = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        call.cancellation = Some(cancellation);
        call.is_abandoned
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::platform)
}

fn unmount(settings: &ServeSettings, target: &Path) -> Result<(), Failure> {
    let asked = RuntimePaths::new(&settings.runtime_dir, &settings.cache_dir)
        .and_then(|paths| Client::connect(&paths.socket))
        .and_then(|client| client.map_or(Ok(()), |mut client| client.unmount(target, UnmountMode::Lazy)));
    if let Err(error) = asked {
        tracing::debug!(%error, target = %target.display(), "the server did not unmount it; detaching it");
    }
    if is_mount_point(target) {
        nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH).map_err(|errno| {
            Failure::platform(format!(
                "cannot unmount {}: {errno}; run: umount -l {}",
                target.display(),
                target.display()
            ))
        })?;
    }
    Ok(())
}

/// Whether something is mounted exactly at `path`: by the mount table, because touching a dead mount can hang.
fn is_mount_point(path: &Path) -> bool {
    fuse_oss::mountpoint::mounted_on(path).is_some()
}

fn kind(input: &Input) -> Kind {
    if input.source.is_directory() { Kind::Directory } else { Kind::File }
}

fn place(number: usize, input: &Input) -> String {
    match kind(input) {
        Kind::Directory => number.to_string(),
        Kind::File => format!("{number}/{OBJECT}"),
    }
}

fn entry(number: usize, input: &Input) -> MountEntry {
    let mut entry = MountEntry::new(place(number, input), input.source.clone());
    entry.locale = input.locale;
    entry
}

fn view_of(number: usize, input: &Input, mount: &Path) -> InputView {
    let source: PathBuf = mount.join(place(number, input));
    InputView { source, target: input.target.clone(), kind: kind(input), writable: input.writable }
}

/// Whose doing a failed mount is, and the exit status for it.
pub fn meaning_of(error: &MountError) -> (Cause, u8) {
    match error.kind {
        ErrorKind::NotFound | ErrorKind::NoSuchBucket | ErrorKind::Archived => (Cause::User, exit::INPUT_MISSING),
        ErrorKind::Denied | ErrorKind::BadCredentials => (Cause::Storage, exit::DENIED),
        ErrorKind::Unavailable => (Cause::Storage, exit::STORAGE_UNAVAILABLE),
        ErrorKind::WrongRegion | ErrorKind::Invalid => (Cause::User, exit::BAD_SETTINGS),
        _ => (Cause::Mount, exit::OS),
    }
}

/// What a failed mount means for the task.
fn failure(error: MountError) -> Failure {
    let (cause, exit_status) = meaning_of(&error);
    Failure::new(cause, exit_status, format!("input: {}", error.message))
}
