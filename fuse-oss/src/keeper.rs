//! The keeper: the small process that holds what a server must not lose.
//!
//! `fuse-oss serve` is two processes. The *worker* (see [`server`](crate::server)) answers the kernel and clients and does all that can go
//! wrong. The *keeper*, its parent, holds for each mount the descriptor of `/dev/fuse`, the request it was made from, the journal of the
//! names it has shown and the ledger of its open files ([`Files`]), and beside them the sockets clients connect to and the lock on the cache
//! directory. It does nothing else, so it needs next to no memory and has nothing to stumble over.
//!
//! A FUSE connection lives as long as somebody has its descriptor open. So when a worker dies, of SIGKILL, for want of memory, or of a
//! mistake of ours, nothing happens to the mounts: whoever reads from them waits. The keeper starts another worker and gives it
//! everything; the worker learns from journal and ledger what its predecessor has told the kernel, has the kernel send again what was
//! not answered, and goes on. A program that is upgraded takes over in the same way ([`replace`]).
//!
//! Waiting has an end: if there is no worker for half a minute, or if workers die of the same request again and again, all mounts
//! are aborted ([`restarts`] decides), because an error is better than a machine full of processes that cannot be killed.
//!
//! The keeper has one thread (a foreground mount has a second one for a moment) and waits in one place.

mod adopt;
mod errand;
mod files;
pub mod link;
mod manager;
pub mod message;
pub mod replace;
pub mod restarts;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use crate::error::{ErrorKind, MountError};
use crate::mountpoint;
use crate::options::UnmountMode;
use crate::runtime::{CacheLock, RuntimePaths, bind_private, clean_up, clean_up_lower, private_dir};
use crate::size::ByteSize;
pub use errand::Errand;
use errand::Errands;
pub use files::{Files, Parts};
use manager::Manager;
use message::{ToKeeper, ToWorker};
use restarts::{Death, Next, Restarts};
use worker::Worker;

/// How much longer than its patience a worker may take to end.
const ENDING_LIMIT: Duration = Duration::from_secs(20);

/// How long a worker may take to make room for another program.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(10);

/// What a server is given.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// How long a mount in use is waited for when the server ends.
    pub patience: Duration,
    /// Do not have requests sent again, as on a kernel that cannot.
    pub without_resend: bool,
    /// Global options of the command line, for processes that are started.
    pub log_arguments: Vec<String>,
}

/// A mount as the keeper knows it.
#[derive(Debug)]
struct Held {
    target: PathBuf,
    /// `major:minor`; none as long as the mount is being made.
    device: Option<String>,
    files: Files,
}

/// The keeper of a server.
#[derive(Debug)]
pub struct Keeper {
    settings: ServerSettings,
    paths: RuntimePaths,
    lock: CacheLock,
    control: UnixListener,
    metrics: Option<UnixListener>,
    mounts: BTreeMap<u64, Held>,
    /// Targets where a worker was killed while it was mounting.
    abandoned: Vec<PathBuf>,
    next_id: u64,
    /// Workers started so far.
    workers: u64,
    /// Programs that have taken over so far.
    replaced: u64,
    /// The program this one has taken over from, until a worker of ours answers.
    previous: Option<OwnedFd>,
    restarts: Restarts,
    manager: Manager,
    worker: Option<Worker>,
    start_at: Option<Instant>,
    phase: Phase,
    signals: SignalFd,
    errands: Errands,
}

/// What the keeper is about.
#[derive(Debug)]
enum Phase {
    /// No worker has answered yet.
    Starting,
    Serving,
    /// The errand is done: end with the last mount.
    UntilUnmounted,
    /// The worker makes room for this program, at the latest until then.
    Replacing(PathBuf, Instant),
    /// Unmounting, at the latest until then, with this result.
    Ending(Instant, Result<(), MountError>),
    /// The worker has unmounted everything.
    Ended(Result<(), MountError>),
}

/// How a turn of the loop went.
enum Turn {
    Again,
    Done(Result<(), MountError>),
}

fn system(what: &str, error: &dyn std::fmt::Display) -> MountError {
    MountError::new(ErrorKind::System, format_args!("{what}: {error}"))
}

fn signals() -> Result<SignalFd, MountError> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    let made =
        set.thread_block().and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK));
    made.map_err(|errno| system("cannot receive signals", &errno.desc()))
}

impl Keeper {
    /// Takes the cache directory and binds the sockets; clients that connect from now on are answered once a worker is there. Where a worker
    /// that has lost its keeper has them, it takes them over from it, with all mounts.
    ///
    /// # Errors
    /// [`ErrorKind::CacheInUse`], [`ErrorKind::Invalid`] for directories that others may write, [`ErrorKind::System`].
    pub fn new(mut settings: ServerSettings) -> Result<Self, MountError> {
        settings.cache_dir = private_dir(&settings.cache_dir, "cache directory")?;
        settings.runtime_dir = private_dir(&settings.runtime_dir, "runtime directory")?;
        let paths = RuntimePaths::new(&settings.runtime_dir, &settings.cache_dir)?;
        let lock = match CacheLock::take(&settings.cache_dir, &paths) {
            Ok(lock) => lock,
            Err(error) if error.kind == ErrorKind::CacheInUse => return Self::adopt(settings, paths, error),
            Err(error) => return Err(error),
        };
        clean_up(&paths.record);
        clean_up_lower(&paths.lower);
        let control = bind_private(&paths.socket).map_err(|error| {
            MountError::new(
                ErrorKind::System,
                format_args!(
                    "cannot make the control socket {}: {error}; choose another --runtime-dir (a socket's path has at most 107 bytes)",
                    paths.socket.display()
                ),
            )
        })?;
        let metrics = bind_private(&paths.metrics).inspect_err(|error| {
            warn!(
                socket = %paths.metrics.display(),
                %error,
                "cannot make the socket for metrics, which are in fuse-oss status --json all the same; \
                 choose another --runtime-dir (a socket's path has at most 107 bytes)"
            );
        });
        Self::assemble(settings, paths, lock, control, metrics.ok())
    }

    fn assemble(
        settings: ServerSettings,
        paths: RuntimePaths,
        lock: CacheLock,
        control: UnixListener,
        metrics: Option<UnixListener>,
    ) -> Result<Self, MountError> {
        Ok(Self {
            settings,
            paths,
            lock,
            control,
            metrics,
            mounts: BTreeMap::new(),
            abandoned: Vec::new(),
            next_id: 1,
            workers: 0,
            replaced: 0,
            previous: None,
            restarts: Restarts::new(Instant::now()),
            manager: Manager::new(Instant::now()),
            worker: None,
            start_at: Some(Instant::now()),
            phase: Phase::Starting,
            signals: signals()?,
            errands: Errands::new()?,
        })
    }

    /// Where its sockets are.
    pub fn paths(&self) -> &RuntimePaths {
        &self.paths
    }

    /// Keeps, until the server has ended. `ready` is told when it answers, or why it never will; then the errand is run.
    ///
    /// # Errors
    /// Why there was no worker, or what the errand failed with.
    pub fn run(
        mut self,
        ready: impl FnOnce(&Result<(), MountError>),
        errand: Option<Errand>,
    ) -> Result<(), MountError> {
        let (mut ready, mut errand) = (Some(ready), errand);
        if errand.is_some() {
            self.manager.hold();
        }
        loop {
            let turn = self.turn();
            if let Turn::Done(outcome) = turn {
                let _ = std::fs::remove_file(&self.paths.socket);
                let _ = std::fs::remove_file(&self.paths.metrics);
                // Whoever hears how it went finds the cache directory free.
                drop(self);
                if let Some(ready) = ready.take() {
                    ready(&outcome);
                }
                return outcome;
            }
            if !matches!(self.phase, Phase::Starting | Phase::Ending(..) | Phase::Ended(_)) {
                if let Some(ready) = ready.take() {
                    ready(&Ok(()));
                }
                if let Some(errand) = errand.take() {
                    self.errands.begin(errand);
                }
            }
        }
    }

    /// One turn: starts a worker that is due, waits for something to happen and deals with it.
    fn turn(&mut self) -> Turn {
        let now = Instant::now();
        self.manager.beat(now);
        if self.start_at.is_some_and(|at| at <= now) {
            self.start_at = None;
            if let Err(error) = self.start_worker() {
                warn!(%error, "cannot start a worker");
                return self.worker_lost(Death::Fault);
            }
        }
        if let Some(done) = self.overdue(now) {
            return done;
        }
        let Ok((link, signal, errand)) = self.wait(now) else { return Turn::Again };
        if errand {
            self.errand_has_ended();
        }
        if link && let Some(done) = self.hear() {
            return done;
        }
        if signal {
            while let Ok(Some(info)) = self.signals.read_signal() {
                match i32::try_from(info.ssi_signo).map(Signal::try_from) {
                    Ok(Ok(Signal::SIGCHLD)) => {}
                    _ => self.end(Ok(())),
                }
            }
            return self.reap();
        }
        Turn::Again
    }

    fn wait(&self, now: Instant) -> nix::Result<(bool, bool, bool)> {
        let ending = match &self.phase {
            Phase::Ending(until, _) | Phase::Replacing(_, until) => Some(*until),
            _ => None,
        };
        let next = [self.start_at, self.restarts.deadline(), ending, self.manager.due()].into_iter().flatten().min();
        let timeout = match next {
            Some(at) => {
                // Rounded up: to wake a moment too early would mean to go round and round.
                let millis = at.saturating_duration_since(now).as_millis().saturating_add(1);
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        let mut waited = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.errands.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(link) = self.worker.as_ref().and_then(Worker::link) {
            waited.push(PollFd::new(link.as_fd(), PollFlags::POLLIN));
        }
        poll(&mut waited, timeout)?;
        let ready = |at: usize| waited.get(at).and_then(PollFd::any).unwrap_or(false);
        Ok((ready(2), ready(0), ready(1)))
    }

    fn start_worker(&mut self) -> io::Result<()> {
        let worker = Worker::start(&self.settings, &self.control, self.metrics.as_ref(), &self.lock)?;
        self.workers += 1;
        // What was being mounted when the last worker died is nobody's.
        let lost: Vec<u64> = self.mounts.iter().filter(|(_, held)| held.device.is_none()).map(|(id, _)| *id).collect();
        for id in lost {
            self.abandoned.extend(self.mounts.remove(&id).map(|held| held.target));
        }
        let hand_over = || {
            for (id, held) in &self.mounts {
                let device = held.device.clone().unwrap_or_default();
                let mount = ToWorker::Mount { id: *id, target: held.target.clone(), device, parts: held.files.parts() };
                worker.send(&mount, &held.files.borrowed())?;
            }
            for target in &self.abandoned {
                worker.send(&ToWorker::Abandoned { target: target.clone() }, &[])?;
            }
            let before = self.workers - 1;
            worker.send(&ToWorker::Begin { next_id: self.next_id, before, replaced: self.replaced }, &[])?;
            match self.phase {
                // It was asked to end while there was no worker to tell.
                Phase::Ending(..) => worker.send(&ToWorker::End { patience_ms: 0 }, &[]),
                _ => Ok(()),
            }
        };
        let handed_over = hand_over();
        self.worker = Some(worker);
        handed_over
    }

    /// Gives up what has taken too long.
    fn overdue(&mut self, now: Instant) -> Option<Turn> {
        if let Phase::Ending(until, outcome) = &self.phase {
            if now < *until {
                return None;
            }
            let outcome = outcome.clone();
            warn!("the worker does not end; it is killed, and what is still mounted is detached");
            self.kill_worker();
            self.detach_all();
            return Some(Turn::Done(outcome));
        }
        if matches!(&self.phase, Phase::Replacing(_, until) if now >= *until) {
            self.kill_worker();
            return Some(self.worker_lost(Death::Replaced));
        }
        let late = self.restarts.deadline().is_some_and(|deadline| now >= deadline);
        (late && !matches!(self.phase, Phase::Ended(_))).then(|| {
            self.kill_worker();
            self.give_up("no worker has answered for 30 s")
        })
    }

    fn kill_worker(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            worker.kill();
        }
    }

    fn give_up(&mut self, why: &'static str) -> Turn {
        let count = self.mounts.len();
        error!(
            mounts = count,
            "giving up: {why}; all mounts are aborted, and whoever uses them gets errors from now on. Start fuse-oss again to mount anew"
        );
        // With the last descriptor of a connection the kernel aborts it.
        self.mounts.clear();
        Turn::Done(Err(MountError::new(
            ErrorKind::Internal,
            format_args!("the server cannot go on: {why}; see its log"),
        )))
    }

    /// What the worker says.
    fn hear(&mut self) -> Option<Turn> {
        let link = self.worker.as_ref().and_then(Worker::link)?;
        let heard = match link.receive::<ToKeeper>() {
            Ok(heard) => heard,
            Err(error) => {
                warn!(%error, "the worker said something odd; it gets a successor");
                None
            }
        };
        let Some((said, descriptors)) = heard else {
            // It has ended, or is of no use any more; SIGCHLD comes next.
            if let Some(worker) = &mut self.worker {
                worker.hang_up();
            }
            return None;
        };
        match said {
            ToKeeper::Ready => {
                self.restarts.ready();
                self.abandoned.clear();
                self.previous = None;
                self.manager.ready();
                match self.phase {
                    Phase::Starting => self.phase = Phase::Serving,
                    _ => info!(before = self.workers - 1, mounts = self.mounts.len(), "another worker has taken over"),
                }
            }
            ToKeeper::Failed(error) => {
                if matches!(self.phase, Phase::Starting) && self.mounts.is_empty() {
                    self.phase = Phase::Ended(Err(error));
                } else {
                    warn!(%error, "a worker cannot serve");
                }
            }
            ToKeeper::Held { id, target, parts } => {
                self.next_id = self.next_id.max(id + 1);
                match Files::from_descriptors(descriptors, parts) {
                    Some(files) => drop(self.mounts.insert(id, Held { target, device: None, files })),
                    None => {
                        warn!(target = %target.display(), "a mount came without its descriptors; it will not outlive its worker")
                    }
                }
            }
            ToKeeper::Established { id, device } => {
                if let Some(held) = self.mounts.get_mut(&id) {
                    held.device = Some(device);
                }
            }
            ToKeeper::Gone { id } => {
                self.mounts.remove(&id);
                if self.mounts.is_empty() && matches!(self.phase, Phase::UntilUnmounted) {
                    self.end(Ok(()));
                }
            }
            ToKeeper::Replace { program } => self.begin_replacing(program),
            // Only from one that is not our child; see `adopt`.
            ToKeeper::Orphaned { .. } => {}
            ToKeeper::Ended => {
                let outcome = match &self.phase {
                    Phase::Ending(_, outcome) => outcome.clone(),
                    _ => Ok(()),
                };
                self.phase = Phase::Ended(outcome);
            }
        }
        None
    }

    fn errand_has_ended(&mut self) {
        match self.errands.ended() {
            Some(Ok(())) if self.mounts.is_empty() => self.end(Ok(())),
            Some(Ok(())) => {
                self.manager.release();
                if matches!(self.phase, Phase::Serving) {
                    self.phase = Phase::UntilUnmounted;
                }
            }
            Some(Err(error)) => self.end(Err(error)),
            None => {}
        }
    }

    /// Has everything unmounted. Asked a second time, at once.
    fn end(&mut self, outcome: Result<(), MountError>) {
        self.manager.stopping();
        let (patience, outcome) = match std::mem::replace(&mut self.phase, Phase::Serving) {
            Phase::Ending(_, outcome) => (Duration::ZERO, outcome),
            Phase::Ended(outcome) => return self.phase = Phase::Ended(outcome),
            _ => (self.settings.patience, outcome),
        };
        self.phase = Phase::Ending(Instant::now() + patience + ENDING_LIMIT, outcome);
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        if let Some(worker) = &self.worker
            && let Err(error) = worker.send(&ToWorker::End { patience_ms }, &[])
        {
            warn!(%error, "cannot tell the worker to end");
        }
    }

    fn begin_replacing(&mut self, program: PathBuf) {
        let Some(worker) = &self.worker else { return };
        let answer = if matches!(self.phase, Phase::Serving) {
            ToWorker::HandOver
        } else {
            ToWorker::NotReplaced(MountError::new(
                ErrorKind::Invalid,
                "the server is about to end, or serves a foreground mount",
            ))
        };
        if worker.send(&answer, &[]).is_ok() && matches!(answer, ToWorker::HandOver) {
            self.phase = Phase::Replacing(program, Instant::now() + HAND_OVER_LIMIT);
        }
    }

    /// Looks whether the worker has ended.
    fn reap(&mut self) -> Turn {
        let Some(worker) = &mut self.worker else { return Turn::Again };
        let Some(death) = worker.has_ended() else { return Turn::Again };
        // What it said last is still to be heard.
        while self.worker.as_ref().and_then(Worker::link).is_some() {
            if let Some(done) = self.hear() {
                return done;
            }
        }
        self.worker = None;
        self.worker_lost(death)
    }

    fn worker_lost(&mut self, death: Death) -> Turn {
        self.worker = None;
        match std::mem::replace(&mut self.phase, Phase::Serving) {
            Phase::Ended(outcome) => return Turn::Done(outcome),
            Phase::Ending(_, outcome) => {
                warn!("the worker died while it was unmounting; what is still mounted is detached");
                self.detach_all();
                return Turn::Done(outcome);
            }
            Phase::Replacing(program, _) => {
                self.replace_with(&program);
                // Still here: it could not be executed.
                self.start_at = Some(Instant::now());
                return Turn::Again;
            }
            other => self.phase = other,
        }
        if death == Death::Fault && self.previous.is_some() {
            self.go_back();
        }
        match self.restarts.died(Instant::now(), death) {
            Next::Start(pause) => {
                warn!(mounts = self.mounts.len(), "the worker was lost ({death:?}); another takes over");
                self.start_at = Some(Instant::now() + pause);
                Turn::Again
            }
            Next::GiveUp(why) => self.give_up(why),
        }
    }

    fn detach_all(&mut self) {
        for held in std::mem::take(&mut self.mounts).into_values() {
            if mountpoint::mounted_on(&held.target).is_some_and(|there| Some(there.device) == held.device)
                && let Err(error) = mountpoint::unmount(&held.target, UnmountMode::Lazy)
            {
                warn!(%error, "left behind");
            }
        }
    }
}
