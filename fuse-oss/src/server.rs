//! The server: one process that owns a cache directory and a memory budget and serves all mounts from them.
//!
//! It is reached over its control socket (see [`protocol`](crate::protocol)), or by calls in the same process (`fuse-oss mount --foreground`).
//! Beside that is a socket where its [`metrics`](crate::metrics) are scraped; who connects there changes nothing and keeps nothing alive.
//! It ends when told to (SIGTERM, SIGINT: everything is unmounted first) or, when it was started by a client, some seconds after
//! its last mount has gone.

mod control;
mod mounting;
mod prefetching;
mod scrape;
mod writable;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::blocks::Blocks;
use crate::cache::Cache;
use crate::error::{ErrorKind, MountError};
use crate::filesystem::Inner;
use crate::metrics::Metrics;
use crate::mountpoint;
use crate::options::{MIN_MEMORY, MountEntry, MountStatus, Status, UnmountMode};
use crate::overlay::upper::Upper;
use crate::runtime::{CacheLock, Recorded, RuntimePaths, clean_up, clean_up_lower, private_dir, write_record};
use crate::size::ByteSize;

use prefetching::Prefetching;

/// How long the end waits for requests that are being answered.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// How long the end waits for the cache to be written.
const LAST_WRITES: Duration = Duration::from_secs(3);

/// What a server is given.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The cache directory, which it owns alone.
    pub cache_dir: PathBuf,
    /// How much the cache may hold; a fifth of its file system when absent; 0 for no cache on disk.
    pub cache_size: Option<ByteSize>,
    /// How much memory blocks may take; a quarter of the machine's, at most 2 GiB, when absent.
    pub memory_limit: Option<ByteSize>,
    /// Where its control socket is to be.
    pub runtime_dir: PathBuf,
    /// End this long after the last mount has gone; never, when absent.
    pub idle_exit: Option<Duration>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    cache_dir: PathBuf,
    paths: RuntimePaths,
    blocks: Arc<Blocks>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    table: Mutex<Table>,
    changed: Notify,
    connections: AtomicUsize,
    /// Requests that have not been answered yet.
    unanswered: AtomicUsize,
    /// Upper layers that are being removed.
    removing: AtomicUsize,
    next_id: AtomicU64,
    recording: Mutex<()>,
    /// Whether anybody can ask for metrics.
    scraped: AtomicBool,
    _lock: CacheLock,
}

/// The sockets a server answers on.
#[derive(Debug)]
pub struct Listeners {
    control: UnixListener,
    metrics: Option<UnixListener>,
}

#[derive(Debug, Default)]
struct Table {
    /// Every session that still runs, detached ones included.
    sessions: HashMap<u64, Active>,
    /// Targets being mounted on at this moment.
    reserved: Vec<PathBuf>,
}

/// A mount.
#[derive(Debug)]
struct Active {
    target: PathBuf,
    entries: Vec<MountEntry>,
    inner: Arc<Inner>,
    device: String,
    /// Receives what is written, when it can be written to.
    upper: Option<Upper>,
    detached: bool,
    /// Ends with the mount.
    prefetching: Option<Prefetching>,
}

impl Server {
    /// Takes the cache directory and prepares everything; nothing is mounted and nobody is answered yet.
    ///
    /// # Errors
    /// [`ErrorKind::CacheInUse`], [`ErrorKind::Invalid`] for settings that cannot work, [`ErrorKind::System`].
    pub fn new(settings: &ServerSettings, runtime: Handle) -> Result<Arc<Self>, MountError> {
        let cache_dir = private_dir(&settings.cache_dir, "cache directory")?;
        let runtime_dir = private_dir(&settings.runtime_dir, "runtime directory")?;
        let paths = RuntimePaths::new(&runtime_dir, &cache_dir)?;
        let lock = CacheLock::take(&cache_dir, &paths)?;
        clean_up(&paths.record);
        clean_up_lower(&paths.lower);
        raise_file_limit();

        let memory_limit = settings.memory_limit.unwrap_or_else(default_memory);
        if memory_limit < MIN_MEMORY {
            return Err(MountError::new(
                ErrorKind::Invalid,
                format_args!("--memory-limit {memory_limit} is too little to work with; give at least {MIN_MEMORY}"),
            ));
        }
        let stat = nix::sys::statvfs::statvfs(&cache_dir).map_err(|errno| {
            MountError::new(
                ErrorKind::System,
                format_args!("cannot look at the cache directory {}: {}", cache_dir.display(), errno.desc()),
            )
        })?;
        let total = stat.blocks() * stat.fragment_size();
        let limit = settings.cache_size.map_or(total / 5, ByteSize::bytes);
        let metrics = Arc::<Metrics>::default();
        let cache = if limit == 0 {
            None
        } else {
            // A twentieth of the file system stays free, and 10 GiB are enough of that.
            let floor = (total / 20).min(10 << 30);
            let cache = Cache::new(&cache_dir, limit, floor, Arc::clone(&metrics)).map_err(|error| {
                MountError::new(
                    ErrorKind::System,
                    format_args!("cannot use the cache directory {}: {error}", cache_dir.display()),
                )
            })?;
            Some(Arc::new(cache))
        };
        let memory = usize::try_from(memory_limit.bytes()).unwrap_or(usize::MAX);
        if let Some(cache) = &cache {
            let scanner = Arc::clone(cache);
            runtime.spawn_blocking(move || scanner.scan());
        }
        let blocks = Blocks::new(runtime.clone(), memory, cache, Arc::clone(&metrics));
        info!(
            cache_dir = %cache_dir.display(),
            cache_size = %human(limit),
            memory_limit = %human(memory_limit.bytes()),
            socket = %paths.socket.display(),
            "fuse-oss {} is ready",
            env!("CARGO_PKG_VERSION")
        );
        let server = Arc::new(Self {
            cache_dir,
            paths,
            blocks,
            metrics,
            runtime,
            table: Mutex::default(),
            changed: Notify::new(),
            connections: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            removing: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            recording: Mutex::default(),
            scraped: AtomicBool::new(false),
            _lock: lock,
        });
        server.sweep_uppers();
        Ok(server)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds the control socket, and the one for metrics. Whoever connects from now on is answered by [`Server::run`].
    ///
    /// # Errors
    /// [`ErrorKind::System`] when there can be no control socket. A server without metrics still serves, and logs why it has none.
    pub fn listen(&self) -> Result<Listeners, MountError> {
        let _entered = self.runtime.enter();
        let control = bind_private(&self.paths.socket).map_err(|error| {
            MountError::new(
                ErrorKind::System,
                format_args!(
                    "cannot make the control socket {}: {error}; choose another --runtime-dir (a socket's path has at most 107 bytes)",
                    self.paths.socket.display()
                ),
            )
        })?;
        let metrics = bind_private(&self.paths.metrics).inspect_err(|error| {
            warn!(
                socket = %self.paths.metrics.display(),
                %error,
                "cannot make the socket for metrics, which are in fuse-oss status --json all the same; \
                 choose another --runtime-dir (a socket's path has at most 107 bytes)"
            );
        });
        self.scraped.store(metrics.is_ok(), Ordering::Relaxed);
        Ok(Listeners { control, metrics: metrics.ok() })
    }

    /// Answers clients until a signal comes, or until nothing has been mounted for `idle_exit`; then unmounts everything.
    ///
    /// # Errors
    /// [`ErrorKind::System`] when signals cannot be received.
    pub async fn run(self: &Arc<Self>, listeners: Listeners, idle_exit: Option<Duration>) -> Result<(), MountError> {
        let Listeners { control: listener, metrics } = listeners;
        // Ends when this function does.
        let mut scrapes = JoinSet::new();
        if let Some(metrics) = metrics {
            let server = Arc::clone(self);
            scrapes.spawn(scrape::serve(metrics, scrape::Limits::default(), move || server.status()));
        }
        let no_signals = |error| MountError::new(ErrorKind::System, format_args!("cannot receive signals: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        // A terminal that is closed must not leave a dead mount behind.
        let mut hangup = signal(SignalKind::hangup()).map_err(no_signals)?;
        let mut idle_since = None;
        loop {
            let idle = self.is_idle();
            if !idle {
                idle_since = None;
            } else if idle_since.is_none() {
                idle_since = Some(tokio::time::Instant::now());
            }
            let end = idle_exit.zip(idle_since).map(|(after, since)| since + after);
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let connection = control::Connection::new(Arc::clone(self));
                        tokio::spawn(connection.serve(stream));
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a client");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                () = self.changed.notified() => {}
                () = self.blocks.no_room() => self.give_up_pins(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => break,
                () = async { match end { Some(end) => tokio::time::sleep_until(end).await, None => std::future::pending().await } } => {
                    if self.is_idle() {
                        info!("nothing is mounted any more; ending");
                        break;
                    }
                }
            }
        }
        drop(listener);
        self.shut_down().await;
        Ok(())
    }

    fn is_idle(&self) -> bool {
        let table = self.table();
        let busy = self.connections.load(Ordering::Acquire) + self.removing.load(Ordering::Acquire);
        table.sessions.is_empty() && table.reserved.is_empty() && busy == 0
    }

    /// Unmounts everything and removes what others could find. Mounts in use are detached: their users get an error from the next
    /// access on, because nobody will be there to answer.
    pub async fn shut_down(self: &Arc<Self>) {
        let _ = std::fs::remove_file(&self.paths.socket);
        let _ = std::fs::remove_file(&self.paths.metrics);
        let targets: Vec<PathBuf> = self
            .table()
            .sessions
            .values()
            .filter(|active| !active.detached)
            .map(|active| active.target.clone())
            .collect();
        let mut ended = Vec::new();
        for target in targets {
            let path = target.clone();
            let idle = self.runtime.spawn_blocking(move || mountpoint::unmount(&path, UnmountMode::WhenIdle)).await;
            if let Ok(Err(error)) = idle {
                warn!(%error, "detaching it, because the server ends");
                let path = target.clone();
                if let Ok(Err(error)) =
                    self.runtime.spawn_blocking(move || mountpoint::unmount(&path, UnmountMode::Lazy)).await
                {
                    warn!(%error, "left behind");
                }
            } else {
                ended.push(target);
            }
        }
        self.save_record();
        // Whoever asked for the last unmount gets the answer before we go.
        let answered = async {
            while self.unanswered.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(LAST_ANSWERS, answered).await.is_err() {
            warn!("ending with requests unanswered");
        }
        // What was fetched and is not in the cache yet would have to be fetched again.
        self.blocks.settle(LAST_WRITES).await;
        self.discarded(&ended).await;
    }

    /// Waits until the mount on `target` has gone.
    pub async fn gone(&self, target: &Path) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.table().sessions.values().any(|active| active.target == target && !active.detached) {
                return;
            }
            changed.await;
        }
    }

    fn save_record(&self) {
        let _one_at_a_time = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let mounts: Vec<Recorded> = self
            .table()
            .sessions
            .values()
            .filter(|active| !active.detached)
            .map(|active| Recorded { target: active.target.clone(), device: active.device.clone() })
            .collect();
        // What is in the table may have been unmounted while we end.
        let mounts: Vec<Recorded> = mounts
            .into_iter()
            .filter(|mount| mountpoint::mounted_on(&mount.target).is_some_and(|there| there.device == mount.device))
            .collect();
        if let Err(error) = write_record(&self.paths.record, &mounts) {
            warn!(path = %self.paths.record.display(), %error, "cannot record what is mounted; should this process die, its mounts stay behind");
        }
    }

    /// Lets go of what is held only because it may be wanted again soon, so that it can be removed.
    fn give_up_idle(&self) {
        self.give_up_pins();
        self.blocks.give_up_idle();
    }

    /// Lets go of cache files that nobody has open, so that they can be evicted.
    fn give_up_pins(&self) {
        let mounts: Vec<Arc<Inner>> = self.table().sessions.values().map(|active| Arc::clone(&active.inner)).collect();
        for mount in mounts {
            mount.handles().give_up_idle();
        }
    }

    /// What is mounted and how much of everything is used.
    pub fn status(&self) -> Status {
        let (cache_used, cache_size) = self.blocks.cache().map_or((0, 0), |cache| (cache.used(), cache.limit()));
        let mut mounts: Vec<MountStatus> = self
            .table()
            .sessions
            .values()
            .map(|active| MountStatus {
                target: active.target.clone(),
                entries: active.entries.clone(),
                detached: active.detached,
                nodes: active.inner.namespace().len(),
                hidden: active.inner.namespace().hidden(),
                open_files: active.inner.handles().count(),
                prefetch: active.prefetching.as_ref().map(Prefetching::status),
                writable: active.upper.as_ref().map(writable::status),
            })
            .collect();
        mounts.sort_by(|a, b| a.target.cmp(&b.target));
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cache_dir: self.cache_dir.clone(),
            cache_used: ByteSize::new(cache_used),
            cache_size: ByteSize::new(cache_size),
            memory_used: ByteSize::new(self.blocks.memory_used()),
            memory_limit: ByteSize::new(self.blocks.memory_limit()),
            fetched: ByteSize::new(self.blocks.metrics().fetched.get()),
            corrupt: self.blocks.metrics().corrupt.get(),
            metrics: self.metrics.snapshot(),
            metrics_socket: self.scraped.load(Ordering::Relaxed).then(|| self.paths.metrics.clone()),
            mounts,
        }
    }
}

/// Listens on a socket that only we and root can connect to.
fn bind_private(socket: &Path) -> std::io::Result<UnixListener> {
    // We hold the cache lock, so a socket that is there belongs to a server that has died.
    let _ = std::fs::remove_file(socket);
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(socket);
    nix::sys::stat::umask(mask);
    listener
}

/// A quarter of the machine's memory, between the least that works and 2 GiB.
fn default_memory() -> ByteSize {
    let total = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        })
        .map_or(MIN_MEMORY.bytes() * 4, |kib| kib * 1024);
    ByteSize::new((total / 4).clamp(MIN_MEMORY.bytes(), 2 << 30))
}

/// Every open object has two files in the cache; the usual limit of 1024 descriptors is for programs that use select(2).
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(errno) = raised {
        warn!(error = errno.desc(), "cannot raise the limit of open files");
    }
}

/// A size to read, not to compute with.
pub fn human(bytes: u64) -> String {
    let mut value = bytes;
    let mut rest = 0;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024 || unit == "TiB" {
            return if rest >= 103 && value < 10 {
                format!("{value}.{} {unit}", rest * 10 / 1024)
            } else {
                format!("{value} {unit}")
            };
        }
        rest = value % 1024;
        value /= 1024;
    }
    format!("{bytes} B")
}
