//! The server: the process that works on a cache directory with a memory budget and serves all mounts from them. It is the
//! worker of a [`keeper`](crate::keeper), which holds what must survive it.
//!
//! It is reached over its control socket (see [`protocol`](crate::protocol)). Beside that is a socket where its
//! [`metrics`](crate::metrics) are scraped; who connects there changes nothing and keeps nothing alive. It ends when the keeper says so
//! (everything is unmounted first) or, when it was started by a client, some seconds after its last mount has gone.

mod control;
pub mod keeping;
mod mounting;
mod prefetching;
mod recovery;
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
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::blocks::Blocks;
use crate::cache::Cache;
use crate::error::{ErrorKind, MountError};
use crate::filesystem::Inner;
use crate::keeper::ServerSettings;
use crate::keeper::message::{ToKeeper, ToWorker};
use crate::metrics::Metrics;
use crate::mountpoint;
use crate::options::{MIN_MEMORY, MountEntry, MountStatus, Status, UnmountMode};
use crate::overlay::upper::Upper;
use crate::runtime::{Recorded, RuntimePaths, write_record};
use crate::size::ByteSize;

use keeping::{Inheritance, Keeping, Numbers, Orders};
use prefetching::Prefetching;
use recovery::Down;

/// How long the end waits for requests that are being answered.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Between two attempts to unmount what is in use.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// How long the end waits for the cache to be written.
const LAST_WRITES: Duration = Duration::from_secs(3);

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
    keeping: Keeping,
    /// How many workers there were before this one, and how many times a program has taken over.
    before: u64,
    replaced: u64,
    without_resend: bool,
    /// A mount that is in use is not waited for any longer.
    hurry: Notify,
    /// Why the program that a client wants was not started.
    not_replaced: watch::Sender<Option<MountError>>,
}

/// What a server works with.
#[derive(Debug)]
pub struct Means {
    paths: RuntimePaths,
    blocks: Arc<Blocks>,
    metrics: Arc<Metrics>,
}

impl Means {
    /// Opens the cache and sets limits. The keeper has made the directories and taken their lock.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for settings that cannot work, [`ErrorKind::System`].
    pub fn new(settings: &ServerSettings, runtime: &Handle) -> Result<Self, MountError> {
        let cache_dir = &settings.cache_dir;
        let paths = RuntimePaths::new(&settings.runtime_dir, cache_dir)?;
        raise_file_limit();
        let memory_limit = settings.memory_limit.unwrap_or_else(default_memory);
        if memory_limit < MIN_MEMORY {
            return Err(MountError::new(
                ErrorKind::Invalid,
                format_args!("--memory-limit {memory_limit} is too little to work with; give at least {MIN_MEMORY}"),
            ));
        }
        let stat = nix::sys::statvfs::statvfs(cache_dir).map_err(|errno| {
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
            let cache = Cache::new(cache_dir, limit, floor, Arc::clone(&metrics)).map_err(|error| {
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
        Ok(Self { paths, blocks, metrics })
    }
}

/// The sockets a server answers on.
#[derive(Debug)]
pub struct Listeners {
    /// For clients.
    pub control: std::os::unix::net::UnixListener,
    /// For whoever collects metrics.
    pub metrics: Option<std::os::unix::net::UnixListener>,
}

/// How serving ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With everything unmounted; mounts in use were waited for so long.
    Unmounted(Duration),
    /// With everything mounted, for a successor.
    HandedOver,
}

#[derive(Debug, Default)]
struct Table {
    /// Every session that still runs, detached ones included.
    sessions: HashMap<u64, Active>,
    /// Targets being mounted on at this moment.
    reserved: Vec<PathBuf>,
    /// Mounts that answer with errors until they are unmounted.
    down: Vec<Down>,
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
    /// A server with everything it needs; nothing is mounted and nobody is answered yet.
    pub fn new(
        settings: &ServerSettings,
        runtime: Handle,
        means: Means,
        keeping: Keeping,
        inheritance: &Inheritance,
    ) -> Arc<Self> {
        let Means { paths, blocks, metrics } = means;
        Arc::new(Self {
            cache_dir: settings.cache_dir.clone(),
            paths,
            blocks,
            metrics,
            runtime,
            table: Mutex::default(),
            changed: Notify::new(),
            connections: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            removing: AtomicUsize::new(0),
            next_id: AtomicU64::new(inheritance.next_id),
            recording: Mutex::default(),
            scraped: AtomicBool::new(false),
            keeping,
            before: inheritance.before,
            replaced: inheritance.replaced,
            without_resend: settings.without_resend,
            hurry: Notify::new(),
            not_replaced: watch::Sender::new(None),
        })
    }

    /// Goes on with what was handed over, and tells the keeper that it is answered again.
    pub async fn begin(self: &Arc<Self>, inheritance: Inheritance) {
        self.recover(inheritance.mounts);
        self.keeping.say(&ToKeeper::Ready);
        self.remove_abandoned(inheritance.abandoned).await;
        // Only now: what was handed over is locked again.
        self.sweep_uppers();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers clients until the keeper wants an end, or until nothing has been mounted for `idle_exit`; then unmounts everything.
    ///
    /// # Errors
    /// [`ErrorKind::System`] when signals cannot be received or the sockets are none.
    pub async fn run(
        self: &Arc<Self>,
        listeners: Listeners,
        mut orders: Orders,
        idle_exit: Option<Duration>,
    ) -> Result<Ending, MountError> {
        // Ends when this function does.
        let mut scrapes = JoinSet::new();
        let listener = adopt(listeners.control)?;
        if let Some(metrics) = listeners.metrics {
            self.scraped.store(true, Ordering::Relaxed);
            let server = Arc::clone(self);
            scrapes.spawn(scrape::serve(adopt(metrics)?, scrape::Limits::default(), move || server.status()));
        }
        let no_signals = |error| MountError::new(ErrorKind::System, format_args!("cannot receive signals: {error}"));
        // The keeper's to obey; only without one they are ours.
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(no_signals)?;
        let mut idle_since = None;
        let ending = loop {
            let idle = self.is_idle();
            if !idle {
                idle_since = None;
            } else if idle_since.is_none() {
                idle_since = Some(tokio::time::Instant::now());
            }
            let end = idle_exit.zip(idle_since).map(|(after, since)| since + after);
            let signalled = tokio::select! {
                accepted = listener.accept() => {
                    match accepted {
                        Ok((stream, _)) => {
                            let connection = control::Connection::new(Arc::clone(self));
                            tokio::spawn(connection.serve(stream));
                        }
                        Err(error) => {
                            warn!(%error, "cannot accept a client");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                    false
                }
                () = self.changed.notified() => false,
                () = self.blocks.no_room() => {
                    self.give_up_pins();
                    false
                }
                Some(order) = orders.recv() => match order {
                    ToWorker::End { patience_ms } => break Ending::Unmounted(Duration::from_millis(patience_ms)),
                    ToWorker::HandOver => break Ending::HandedOver,
                    ToWorker::NotReplaced(error) => {
                        self.not_replaced.send_replace(Some(error));
                        false
                    }
                    _ => false,
                },
                _ = terminate.recv() => true,
                _ = interrupt.recv() => true,
                _ = hangup.recv() => true,
                () = async { match end { Some(end) => tokio::time::sleep_until(end).await, None => std::future::pending().await } } => {
                    if self.is_idle() {
                        info!("nothing is mounted any more; ending");
                        break Ending::Unmounted(Duration::ZERO);
                    }
                    false
                }
            };
            if signalled && !self.keeping.is_alive() {
                break Ending::Unmounted(Duration::ZERO);
            }
        };
        drop(listener);
        match ending {
            Ending::HandedOver => {
                info!("making room for a successor");
                self.settle().await;
            }
            Ending::Unmounted(patience) => {
                let server = Arc::clone(self);
                let hurry = async move {
                    while let Some(order) = orders.recv().await {
                        if matches!(order, ToWorker::End { .. }) {
                            server.hurry.notify_one();
                        }
                    }
                    std::future::pending().await
                };
                tokio::select! {
                    () = self.shut_down(patience) => {}
                    () = hurry => {}
                }
                self.keeping.say(&ToKeeper::Ended);
            }
        }
        Ok(ending)
    }

    /// What a successor goes on from.
    fn numbers(&self) -> Numbers {
        Numbers { next_id: self.next_id.load(Ordering::Relaxed), before: self.before, replaced: self.replaced }
    }

    fn is_idle(&self) -> bool {
        let table = self.table();
        let busy = self.connections.load(Ordering::Acquire) + self.removing.load(Ordering::Acquire);
        table.sessions.is_empty() && table.reserved.is_empty() && table.down.is_empty() && busy == 0
    }

    /// Unmounts everything and removes what others could find. A mount in use is waited for, and then detached: its users get an
    /// error from the next access on, because nobody will be there to answer.
    async fn shut_down(self: &Arc<Self>, patience: Duration) {
        let _ = std::fs::remove_file(&self.paths.socket);
        let _ = std::fs::remove_file(&self.paths.metrics);
        let until = tokio::time::Instant::now() + patience;
        let mut targets: Vec<PathBuf> = self
            .table()
            .sessions
            .values()
            .filter(|active| !active.detached)
            .map(|active| active.target.clone())
            .collect();
        let down: Vec<PathBuf> = self.table().down.iter().map(|down| down.target.clone()).collect();
        for target in down {
            if let Some(Err(error)) = self.unmount_down(&target, UnmountMode::Lazy) {
                warn!(%error, "left behind");
            }
        }
        let mut said = false;
        let mut ended = Vec::new();
        loop {
            let mut busy = Vec::new();
            for target in targets {
                let path = target.clone();
                let idle = self.runtime.spawn_blocking(move || mountpoint::unmount(&path, UnmountMode::WhenIdle)).await;
                match idle {
                    Ok(Err(error)) if error.kind == ErrorKind::TargetBusy => busy.push((target, error)),
                    Ok(Err(error)) if error.kind != ErrorKind::NotMounted => warn!(%error, "left behind"),
                    _ => ended.push(target),
                }
            }
            if busy.is_empty() {
                break;
            }
            let late = tokio::time::Instant::now() >= until;
            for (_, error) in &busy {
                if late {
                    warn!(%error, "detaching it all the same, because the server ends");
                } else if !said {
                    warn!(%error, "it is waited for, for {} s", patience.as_secs());
                }
            }
            said = true;
            targets = busy.into_iter().map(|(target, _)| target).collect();
            if late {
                for path in targets {
                    let lazy = self.runtime.spawn_blocking(move || mountpoint::unmount(&path, UnmountMode::Lazy)).await;
                    if let Ok(Err(error)) = lazy {
                        warn!(%error, "left behind");
                    }
                }
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(BUSY_PAUSE) => {}
                () = self.hurry.notified() => return Box::pin(self.shut_down(Duration::ZERO)).await,
            }
        }
        self.save_record();
        self.settle().await;
        self.discarded(&ended).await;
    }

    /// Gives clients their answers and writes to the cache what would have to be fetched again.
    async fn settle(&self) {
        let answered = async {
            while self.unanswered.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(LAST_ANSWERS, answered).await.is_err() {
            warn!("ending with requests unanswered");
        }
        self.blocks.settle(LAST_WRITES).await;
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
        let mounts: Vec<Recorded> = {
            let table = self.table();
            let active = table.sessions.values().filter(|active| !active.detached);
            let active = active.map(|active| (&active.target, &active.device));
            let all = active.chain(table.down.iter().map(|down| (&down.target, &down.device)));
            all.map(|(target, device)| Recorded { target: target.clone(), device: device.clone() }).collect()
        };
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

    /// The process to send signals to.
    fn status_pid(&self) -> u32 {
        if self.keeping.is_alive() { nix::unistd::getppid().as_raw().unsigned_abs() } else { std::process::id() }
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
                down: None,
            })
            .collect();
        mounts.extend(self.table().down.iter().map(|down| MountStatus {
            target: down.target.clone(),
            entries: down.entries.clone(),
            detached: false,
            nodes: 0,
            hidden: 0,
            open_files: 0,
            prefetch: None,
            writable: down.upper.as_ref().map(writable::status),
            down: Some(down.cause.clone()),
        }));
        mounts.sort_by(|a, b| a.target.cmp(&b.target));
        Status {
            pid: self.status_pid(),
            worker: std::process::id(),
            before: self.before,
            replaced: self.replaced,
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

/// A socket as the keeper has bound it.
fn adopt(listener: std::os::unix::net::UnixListener) -> Result<UnixListener, MountError> {
    let adopted = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    adopted.map_err(|error| MountError::new(ErrorKind::System, format_args!("cannot answer on a socket: {error}")))
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
