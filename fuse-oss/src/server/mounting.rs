//! From a request to a mount that answers, and back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use oss::{ListRequest, Location, Scheme, StoreSettings, Stores};
use tracing::{info, warn};

use super::keeping::{self, Keeping, Kept};
use super::writable::{Discarding, View};
use super::{Active, Prefetching, Server};
use crate::blocks::peers::Peers;
use crate::error::{ErrorKind, MountError};
use crate::fault::Fault;
use crate::filesystem::Mounted;
use crate::filesystem::ledger::Ledger;
use crate::keeper::Files;
use crate::keeper::message::ToKeeper;
use crate::metrics::Metrics;
use crate::mountpoint::{self, Target, Top};
use crate::namespace::{Identity, Namespace, Origin, Placed, Source};
use crate::observed::Observed;
use crate::options::{MountEntry, MountReply, MountRequest, UnmountMode, check_entries};
use crate::overlay::upper::Upper;
use crate::transport::{Transport, raise_read_ahead};

/// How many entries are looked at side by side before a mount.
const PROBES: usize = 32;

/// How long an unmounted file system may take to end before we answer anyway.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A target that is being mounted on; others who want it are refused meanwhile.
struct Reservation<'a> {
    server: &'a Server,
    target: PathBuf,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.server.table().reserved.retain(|target| *target != self.target);
        self.server.changed.notify_waiters();
    }
}

/// Removes the file that was made to be mounted on when nothing was.
struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        mountpoint::remove_made(&self.0);
    }
}

/// A mount that the keeper knows of; it is told when it comes to nothing.
struct HeldMount<'a> {
    keeping: &'a Keeping,
    id: u64,
    established: bool,
}

impl HeldMount<'_> {
    fn established(mut self, device: &str) {
        self.keeping.say(&ToKeeper::Established { id: self.id, device: device.to_owned() });
        self.established = true;
    }
}

impl Drop for HeldMount<'_> {
    fn drop(&mut self) {
        if !self.established {
            self.keeping.say(&ToKeeper::Gone { id: self.id });
        }
    }
}

impl Server {
    /// Mounts, and returns when the mount answers.
    ///
    /// # Errors
    /// Any [`ErrorKind`] but those of clients; nothing is left mounted then.
    pub async fn mount(self: &Arc<Self>, request: MountRequest) -> Result<MountReply, MountError> {
        check_entries(&request.entries)?;
        let (path, nonempty) = (request.target.clone(), request.options.nonempty);
        let top = top(&request.entries);
        if top == Top::File && request.options.writable.is_some() {
            return Err(MountError::new(
                ErrorKind::Usage,
                format_args!(
                    "{} is one object, and only a directory can be made writable: mount it inside one (--entry NAME=LOCATION)",
                    label(&request.entries)
                ),
            ));
        }
        let checked = self.runtime.spawn_blocking(move || Target::check(&path, top, nonempty));
        let target = match tokio::time::timeout(Duration::from_secs(30), checked).await {
            Ok(Ok(target)) => target?,
            Ok(Err(error)) => return Err(internal(&error)),
            Err(_) => {
                return Err(MountError::new(
                    ErrorKind::TargetBusy,
                    format_args!(
                        "cannot mount on {}: looking at it hangs, probably on a dead network mount",
                        request.target.display()
                    ),
                ));
            }
        };
        if target.path().to_str().is_none() {
            // The answer, and everybody's status, could not say where it is.
            return Err(MountError::new(
                ErrorKind::Usage,
                format_args!("cannot mount on {}: the path is not UTF-8; choose another", target.path().display()),
            ));
        }
        let _made = Made(target.path().to_owned());
        let reservation = self.reserve(target.path())?;
        // Better said now than after a minute of asking a store.
        let device = crate::transport::open_device()?;

        let stores = Arc::new(Stores::new(request.stores.clone()));
        let sources = self.resolve(&stores, &request).await?;
        let label = label(&request.entries);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let identity = Identity::new(id ^ u64::from(std::process::id()) << 32, &request.options);
        let view = match request.options.writable.clone() {
            Some(writable) => Some(self.prepare_view(writable, target.path(), id).await?),
            None => None,
        };
        let upper = view.as_ref().and_then(View::upper);
        let journal = self.journal();
        let for_keeper = journal.as_ref().map(keeping::duplicate).transpose()?;
        let namespace = Namespace::new(label.clone(), identity, sources, journal)
            .map_err(|fault| MountError::new(kind_of(&fault), format_args!("cannot mount {label}: {fault}")))?;
        let ledger = Ledger::create().map_err(|error| internal(&error))?;
        let files = Files {
            request: Kept::write(&request, upper.map(Upper::root))?,
            device: keeping::duplicate(&device)?,
            ledger: keeping::duplicate(&ledger)?,
            journal: for_keeper,
            upper: upper.map(keeping::duplicate).transpose()?,
        };
        let blocks = Arc::clone(&self.blocks);
        let filesystem = Mounted::new(self.runtime.clone(), namespace, blocks, request.options.clone(), ledger);
        let inner = filesystem.inner();
        let held = self.hold(id, target.path(), &files);
        drop(files);
        let (source, options) = (source_name(&request.entries), request.options.clone());
        let mounting = self.runtime.spawn_blocking(move || {
            // What can be written to is mounted out of sight first.
            let at = view.as_ref().and_then(View::lower).unwrap_or(&target);
            let at_path = at.path().to_owned();
            let transport = Transport::mount(filesystem, device, at, &source, &options)?;
            Ok::<_, MountError>((transport, at_path, target, view, source, options))
        });
        let (transport, at, target, mut view, source, options) = mounting.await.map_err(|error| internal(&error))??;
        inner.handles().set_notifier(transport.notifier());
        let path = target.path().to_owned();
        let device = mountpoint::mounted_on(&at).map(|mount| mount.device).unwrap_or_default();
        let prefetching = Prefetching::new(request.options.prefetch, &inner);
        let active = Active {
            target: path.clone(),
            entries: request.entries,
            inner,
            device: device.clone(),
            upper: view.as_mut().and_then(View::take_upper),
            detached: false,
            prefetching,
        };
        self.table().sessions.insert(id, active);
        drop(reservation);
        self.save_record();
        self.spawn_session(id, transport);
        self.wait_until_it_answers(&at).await?;
        raise_read_ahead(&device);
        if let Some(lower) = view.as_mut().and_then(View::take_lower) {
            if let Err(error) = self.cover(id, lower, target, options, source).await {
                // Its session ends now, and takes what was made for it along.
                let _ = tokio::time::timeout(END_LIMIT, self.gone(&path)).await;
                return Err(error);
            }
            self.save_record();
        }
        held.established(&self.device_of(id));
        if let Some(prefetching) = self.table().sessions.get_mut(&id).and_then(|active| active.prefetching.as_mut()) {
            prefetching.start(&self.runtime);
        }
        info!(target = %path.display(), what = label, "mounted");
        Ok(MountReply { target: path, pid: self.status_pid() })
    }

    /// A file without a name for the names that a mount shows.
    fn journal(&self) -> Option<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC);
        let made = options.open(&self.cache_dir).or_else(|_| {
            // The cache's file system has no files without names: memory has.
            nix::sys::memfd::memfd_create(c"fuse-oss-journal", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).map(File::from)
        });
        made.inspect_err(|error| warn!(%error, "nothing can be kept of this mount; it will not outlive this process"))
            .ok()
    }

    /// What is seen at a mount's target, as `major:minor`.
    fn device_of(&self, id: u64) -> String {
        self.table().sessions.get(&id).map(|active| active.device.clone()).unwrap_or_default()
    }

    /// Tells the keeper of a mount before it is made.
    fn hold(&self, id: u64, target: &Path, files: &Files) -> HeldMount<'_> {
        self.keeping.hold(id, target, files);
        HeldMount { keeping: &self.keeping, id, established: false }
    }

    fn reserve(&self, target: &Path) -> Result<Reservation<'_>, MountError> {
        let mut table = self.table();
        if table.reserved.iter().any(|reserved| reserved == target) {
            return Err(MountError::new(
                ErrorKind::TargetBusy,
                format_args!("cannot mount on {}: something is being mounted there at this moment", target.display()),
            ));
        }
        table.reserved.push(target.to_owned());
        Ok(Reservation { server: self, target: target.to_owned() })
    }

    /// Finds out that every location is there and may be read.
    async fn resolve(&self, stores: &Arc<Stores>, request: &MountRequest) -> Result<Vec<Placed>, MountError> {
        let probe = |entry: MountEntry| {
            let (stores, metrics) = (Arc::clone(stores), &self.metrics);
            async move {
                let source = find(&stores, metrics, &entry.location).await?;
                Ok(Placed { at: entry.at, charset: entry.locale, source })
            }
        };
        stream::iter(request.entries.clone()).map(probe).buffered(PROBES).try_collect().await
    }

    pub(super) fn spawn_session(self: &Arc<Self>, id: u64, transport: Transport) {
        let server = Arc::clone(self);
        let run = move || {
            if let Err(error) = transport.run() {
                warn!(%error, "a FUSE session failed");
            }
            server.session_ended(id);
        };
        if let Err(error) = std::thread::Builder::new().name("session".to_owned()).spawn(run) {
            // The transport went down with the closure, so the kernel answers for the mount with ENOTCONN.
            warn!(%error, "cannot start a thread for the mount");
            self.session_ended(id);
        }
    }

    fn session_ended(self: &Arc<Self>, id: u64) {
        let (ended, discarding) = {
            let mut table = self.table();
            // Counted before anybody can see that the mount is gone: who waits for the end of everything waits for this as well.
            (table.sessions.remove(&id), Discarding::new(self))
        };
        self.keeping.say(&ToKeeper::Gone { id });
        if let Some(active) = ended {
            info!(target = %active.target.display(), "unmounted");
            mountpoint::remove_made(&active.target);
            self.save_record();
            if let Some(upper) = active.upper {
                discarding.discard(upper);
            }
        }
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    async fn wait_until_it_answers(&self, path: &Path) -> Result<(), MountError> {
        let probed = path.to_owned();
        let answer = self.runtime.spawn_blocking(move || mountpoint::answers(&probed)).await;
        let cause = match answer {
            Ok(Some(Ok(()))) => return Ok(()),
            Ok(Some(Err(errno))) => errno.desc().to_owned(),
            Ok(None) => "it does not answer".to_owned(),
            Err(error) => error.to_string(),
        };
        let _ = mountpoint::unmount(path, UnmountMode::Lazy);
        Err(MountError::new(
            ErrorKind::Internal,
            format_args!("the new mount on {} was taken back: {cause}", path.display()),
        ))
    }

    /// Unmounts, and returns when the file system has ended; with [`UnmountMode::Lazy`], when it is out of the tree.
    ///
    /// # Errors
    /// [`ErrorKind::NotMounted`], [`ErrorKind::TargetBusy`], [`ErrorKind::System`].
    pub async fn unmount(self: &Arc<Self>, target: &Path, mode: UnmountMode) -> Result<(), MountError> {
        let id = {
            let table = self.table();
            let found = table.sessions.iter().find(|(_, active)| active.target == target && !active.detached);
            found.map(|(id, _)| *id)
        };
        let Some(id) = id else {
            if let Some(done) = self.unmount_down(target, mode) {
                return done;
            }
            return Err(MountError::new(
                ErrorKind::NotMounted,
                format_args!("this server has nothing mounted on {}; see fuse-oss status", target.display()),
            ));
        };
        let path = target.to_owned();
        let done = self.runtime.spawn_blocking(move || mountpoint::unmount(&path, mode));
        done.await.map_err(|error| internal(&error))??;
        if mode == UnmountMode::Lazy {
            if let Some(active) = self.table().sessions.get_mut(&id) {
                active.detached = true;
            }
            self.save_record();
            self.changed.notify_waiters();
            return Ok(());
        }
        if tokio::time::timeout(END_LIMIT, self.gone(target)).await.is_err() {
            warn!(target = %target.display(), "unmounted, but its session has not ended yet");
        }
        Ok(())
    }
}

fn internal(error: &dyn std::fmt::Display) -> MountError {
    MountError::new(ErrorKind::Internal, error)
}

fn kind_of(fault: &Fault) -> ErrorKind {
    match fault {
        Fault::Store(error) => error.kind().into(),
        Fault::TooManyNames(_) | Fault::DirectoryTooLarge(_) => ErrorKind::Invalid,
        _ => ErrorKind::Internal,
    }
}

/// What is at the top of a mount: one object alone is a file.
fn top(entries: &[MountEntry]) -> Top {
    let is_alone = |entry: &MountEntry| entry.at.is_empty() && !entry.location.is_directory();
    if entries.iter().any(is_alone) { Top::File } else { Top::Directory }
}

/// How a mount calls itself in the log.
pub(super) fn label(entries: &[MountEntry]) -> String {
    match entries {
        [only] => only.location.escaped(),
        [first, rest @ ..] => format!("{} and {} more", first.location.escaped(), rest.len()),
        [] => String::new(),
    }
}

/// What `/proc/mounts` shows as the source: for one location exactly what was given, by which `mount -a` knows its own.
fn source_name(entries: &[MountEntry]) -> String {
    match entries {
        [only] if !only.location.to_string().contains('\0') => only.location.to_string(),
        _ => "fuse-oss".to_owned(),
    }
}

/// The bucket of a location, which is not asked anything.
pub(super) fn origin(stores: &Stores, metrics: &Arc<Metrics>, location: &Location) -> Result<Arc<Origin>, MountError> {
    let store = stores.open(location).map_err(|error| MountError::from_store(location, &error))?;
    let store = Arc::new(Observed::new(store, Arc::clone(metrics)));
    let settings = settings_of(stores, location.scheme());
    let (identity, deadline, peers) = (identity(location, settings), deadline(settings), Peers::default());
    Ok(Arc::new(Origin { store, identity, deadline, peers }))
}

/// Looks at a location: an object by HEAD, a directory by the first page of its listing, which is kept.
async fn find(stores: &Stores, metrics: &Arc<Metrics>, location: &Location) -> Result<Source, MountError> {
    let refused = |error: oss::Error| MountError::from_store(location, &error);
    let origin = origin(stores, metrics, location)?;
    if !location.is_directory() {
        return match origin.store.head(location.key()).await {
            Ok(meta) => Ok(Source::Object { origin, meta }),
            Err(error) if *error.kind() == oss::ErrorKind::NotFound => Err(MountError::new(
                ErrorKind::NotFound,
                format_args!(
                    "cannot mount {}: there is no such object; check the key, or add a trailing slash if it is a directory",
                    location.escaped()
                ),
            )),
            Err(error) => Err(refused(error)),
        };
    }
    let prefix = location.key().as_str().to_owned();
    let request = ListRequest { prefix: prefix.clone(), delimiter: true, ..ListRequest::default() };
    let first = origin.store.list(request).await.map_err(refused)?;
    let nothing = first.objects.is_empty() && first.prefixes.is_empty() && first.continuation.is_none();
    if nothing && !prefix.is_empty() {
        return Err(MountError::new(
            ErrorKind::NotFound,
            format_args!(
                "cannot mount {}: there is no such directory, neither a marker of that key nor any key below it; check the path",
                location.escaped()
            ),
        ));
    }
    Ok(Source::Directory { origin, prefix, first })
}

fn settings_of(stores: &Stores, scheme: Scheme) -> Option<&StoreSettings> {
    match scheme {
        Scheme::Oss => Some(&stores.settings().oss),
        Scheme::S3 => Some(&stores.settings().s3),
        _ => None,
    }
}

fn deadline(settings: Option<&StoreSettings>) -> Duration {
    settings.map_or_else(|| oss::Timeouts::default().total, |settings| settings.timeouts.total)
}

/// What tells a bucket from one of the same name elsewhere. The endpoint belongs to it: otherwise a job that brings its own
/// endpoint could put blocks into the cache that another job's mount of the real bucket would read. Credentials do not: who
/// may list an object may read what the node has cached of it.
fn identity(location: &Location, settings: Option<&StoreSettings>) -> String {
    let endpoint = settings.and_then(|settings| settings.endpoint.as_deref()).unwrap_or_default();
    let region = settings.and_then(|settings| settings.region.as_deref()).unwrap_or_default();
    format!("{}\n{endpoint}\n{region}\n{}", location.scheme(), location.bucket())
}
