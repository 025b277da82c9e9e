//! NAS and Lustre: mounting what the kernel mounts, over a network that may not be there yet, or ever.
//!
//! Everything about a network file system can hang: the mount command, a look at the target, even `stat` on a parent. So each
//! mount is the work of a thread of its own; whatever could hang is done by a child process with a deadline (the mount command
//! itself, killed with all it has started) or by a thread that is left behind (looking at files). One dead server costs its
//! own mount and its own deadline, and nobody else anything.
//!
//! What is tried again and what is not: at boot, network, name server and file server come up in any order, so a name that
//! is not known, a refused connection and silence are tried again, with growing pauses, until the deadline. Denied access, a
//! directory that the server does not have, a wrong option or a missing module will be the same in a minute: those fail at once.
//!
//! What is mounted already is recognised by the kernel's table and left as it is, so that all this can be run again after the agent
//! was restarted. Nothing is ever mounted over something else, or over files.

mod diagnosis;
mod error;
mod lustre;
pub mod options;
mod packages;
mod probe;
mod source;
mod table;
mod target;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nvme_setup::command::CommandError;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use error::{Cause, NetworkError};
pub use probe::{Health, PROBE_LIMIT, probe, probe_here};
pub use source::SourceError;
pub use table::There;

use crate::programs::Programs;
use crate::settings::NetworkFileSystem;
use error::Retry;
use packages::System;
use probe::within;

/// The pause before the second attempt; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// With less time than this left, nothing is tried again.
const LEAST_TIME: Duration = Duration::from_millis(200);

/// An attempt that was cut short earlier than this says less than the attempt before it.
const TELLING: Duration = Duration::from_secs(10);

/// How long detaching a mount may take. What has been written is sent to the server first, if nobody uses the mount any more.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(60);

/// How long a killed mount command may take to go.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// The most mounts on top of each other at one place that are taken away.
const STACKED: usize = 16;

/// Something that is mounted. It can be written down, to be unmounted by whoever comes after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// What, as the mount command was given it.
    pub device: String,
    /// Where, without symbolic links.
    pub target: PathBuf,
    /// The kernel's number of the mount.
    pub mount_id: u64,
    /// The directories that were made for it, the outermost first.
    pub made: Vec<PathBuf>,
    /// Whether it was there already, and nothing was done.
    pub was_there: bool,
    /// How often the mount command was run.
    pub attempts: u32,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// Mounts `what` at `target`, which is made where it is missing, within `deadline`, retries included.
///
/// It is done when this comes back; dropped before, the mount command is killed and what it had mounted is taken away again, soon.
///
/// # Errors
/// Whatever keeps it from being mounted; see [`Cause`]. Nothing is mounted then, and what was made is removed.
pub async fn mount(
    what: &NetworkFileSystem,
    target: &Path,
    writable: bool,
    deadline: Duration,
    programs: &Programs,
) -> Result<Mounted, NetworkError> {
    Mounting::start(what, target, writable, deadline, programs).finished().await
}

/// A mount that is being made.
#[derive(Debug)]
pub struct Mounting {
    cancelled: Arc<AtomicBool>,
    /// None once it has been received.
    result: Option<oneshot::Receiver<Result<Mounted, NetworkError>>>,
    device: String,
    target: PathBuf,
}

impl Mounting {
    /// Begins what [`mount`] does.
    pub fn start(
        what: &NetworkFileSystem,
        target: &Path,
        writable: bool,
        deadline: Duration,
        programs: &Programs,
    ) -> Self {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (sender, result) = oneshot::channel();
        let device = what.device().to_string_lossy().into_owned();
        let work = Work {
            what: what.clone(),
            device: device.clone(),
            target: target.to_owned(),
            writable,
            begun: Instant::now(),
            deadline,
            programs: programs.clone(),
            cancelled: Arc::clone(&cancelled),
            attempts: 0,
        };
        let thread = thread::Builder::new().name("mount".to_owned()).spawn(move || {
            if let Err(Ok(mounted)) = sender.send(work.run()) {
                // Nobody waits for it any more.
                take_away(&mounted);
            }
        });
        if let Err(error) = thread {
            tracing::error!(%error, "no thread for a mount");
        }
        Self { cancelled, result: Some(result), device, target: target.to_owned() }
    }

    /// Waits for the end of it, once.
    ///
    /// # Errors
    /// As [`mount`].
    pub async fn finished(&mut self) -> Result<Mounted, NetworkError> {
        let received = match &mut self.result {
            Some(result) => result.await.ok(),
            None => None,
        };
        self.result = None;
        // The thread ends without an answer only if it could not be started.
        received.unwrap_or_else(|| {
            let cause =
                Cause::System("no thread works on it; this machine may be out of memory or processes".to_owned());
            Err(NetworkError {
                device: self.device.clone(),
                target: self.target.clone(),
                cause: Box::new(cause),
                attempts: 0,
                elapsed: Duration::ZERO,
            })
        })
    }

    /// Gives it up, unless it has finished, and comes back when nothing of it is left: in little more than a second, if the mount
    /// command can be killed.
    pub async fn abandon(mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        let Some(result) = self.result.take() else { return };
        if let Ok(Ok(mounted)) = result.await {
            let undo = move || take_away(&mounted);
            let _ = tokio::task::spawn_blocking(undo).await;
        }
    }
}

impl Drop for Mounting {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        let Some(mut result) = self.result.take() else { return };
        result.close();
        // It finished in this very moment. Otherwise the thread finds that nobody listens.
        if let Ok(Ok(mounted)) = result.try_recv() {
            // Without a thread it stays mounted, and whoever mounts it next finds it.
            let _ = thread::Builder::new().spawn(move || take_away(&mounted));
        }
    }
}

/// One mount, in a thread of its own.
struct Work {
    what: NetworkFileSystem,
    device: String,
    target: PathBuf,
    writable: bool,
    begun: Instant,
    deadline: Duration,
    programs: Programs,
    cancelled: Arc<AtomicBool>,
    attempts: u32,
}

impl Work {
    fn run(mut self) -> Result<Mounted, NetworkError> {
        let result = self.mount();
        result.map_err(|cause| NetworkError {
            cause: Box::new(cause),
            attempts: self.attempts,
            elapsed: self.begun.elapsed(),
            device: self.device,
            target: self.target,
        })
    }

    fn mount(&mut self) -> Result<Mounted, Cause> {
        let options = options::joined(&self.what, self.writable)?;
        let target = target::check(&self.target)?;
        // As it is written first: looking at the files of a mount that is there and dead takes for ever.
        if let Some(id) = self.is_there(&target)? {
            return Ok(self.mounted(target, id, Vec::new(), true));
        }
        let target = target::real(&target)?;
        if let Some(id) = self.is_there(&target)? {
            return Ok(self.mounted(target, id, Vec::new(), true));
        }
        self.check_programs()?;
        let made = target::prepare(&target)?;
        match self.try_until_deadline(&options, &target) {
            Ok(id) => Ok(self.mounted(target, id, made, false)),
            Err(cause) => {
                target::unmake(&made);
                Err(cause)
            }
        }
    }

    fn mounted(&self, target: PathBuf, mount_id: u64, made: Vec<PathBuf>, was_there: bool) -> Mounted {
        Mounted {
            device: self.device.clone(),
            target,
            mount_id,
            made,
            was_there,
            attempts: self.attempts,
            elapsed_ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The mount, if it is there already. Anything else that is mounted there is an error.
    fn is_there(&self, target: &Path) -> Result<Option<u64>, Cause> {
        let path = target.to_owned();
        let Some(id) = self.on_top(target)? else { return Ok(None) };
        let there = table::there(&self.what, self.writable, target).map_err(no_table)?;
        match (there, probe_here(target, PROBE_LIMIT)) {
            (There::Nothing, _) => Ok(None),
            (There::Other { what: there, difference }, health) => {
                let stuck = if health == Health::Stuck { ", and does not answer" } else { "" };
                Err(Cause::Occupied { path, there, stuck, difference })
            }
            (There::Same, Health::Answers) => Ok(Some(id)),
            (There::Same, Health::Fails(errno)) => Err(Cause::Dead { path, state: error::state(Some(errno)) }),
            (There::Same, Health::Stuck) => Err(Cause::Dead { path, state: error::state(None) }),
        }
    }

    /// What can be known to be missing before anything is made.
    fn check_programs(&self) -> Result<(), Cause> {
        let helper = format!("mount.{}", self.what.fs_type());
        let is_lustre = matches!(self.what, NetworkFileSystem::Lustre { .. });
        if self.programs.find(&helper).is_none() {
            let system = System::here();
            let install = if is_lustre { system.lustre_client() } else { system.nfs_client() };
            return Err(Cause::HelperMissing { program: helper, install });
        }
        if is_lustre { lustre::load_module(&self.programs, self.left(), &self.cancelled) } else { Ok(()) }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_sub(self.begun.elapsed())
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn try_until_deadline(&mut self, options: &str, target: &Path) -> Result<u64, Cause> {
        let mut pause = FIRST_PAUSE;
        let mut before: Option<Cause> = None;
        loop {
            self.attempts += 1;
            let attempt = Instant::now();
            let cause = match self.attempt(options, target) {
                Ok(id) => return Ok(id),
                Err(cause) => cause,
            };
            let cut_short = matches!(cause, Cause::Hung { gone: true, .. }) && attempt.elapsed() < TELLING;
            let cause = match before.take() {
                Some(telling) if cut_short => telling,
                _ => cause,
            };
            let again = match cause.retry() {
                Retry::Never => false,
                Retry::AtMost(attempts) => self.attempts < attempts,
                Retry::UntilDeadline => true,
            };
            if !again || self.left() < LEAST_TIME {
                return Err(cause);
            }
            tracing::debug!(device = self.device, attempt = self.attempts, %cause, "trying again");
            self.sleep(pause.min(self.left() / 2))?;
            pause = (pause * 2).min(LONGEST_PAUSE);
            before = Some(cause);
        }
    }

    fn sleep(&self, pause: Duration) -> Result<(), Cause> {
        const STEP: Duration = Duration::from_millis(20);
        let end = Instant::now() + pause;
        loop {
            if self.is_cancelled() {
                return Err(Cause::Cancelled);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(STEP));
        }
    }

    /// Runs the mount command once, with all the time that is left.
    fn attempt(&self, options: &str, target: &Path) -> Result<u64, Cause> {
        let left = self.left();
        let Some(command) = self.programs.command("mount", left) else {
            let shown = self.programs.shown();
            return Err(Cause::System(format!(
                "there is no program mount in {shown}; install the package mount or util-linux"
            )));
        };
        let before = self.on_top(target)?;
        let command = command
            .args(["-t", self.what.fs_type(), "-o", options])
            .args([self.what.device().as_os_str(), target.as_os_str()])
            .cancelled_by(&self.cancelled);
        let result = command.run();
        let mounted = table::at(target).map_err(no_table)?.filter(|mount| Some(mount.id) != before);
        if self.is_cancelled() {
            if mounted.is_some() {
                detach(target);
            }
            return Err(Cause::Cancelled);
        }
        // What is mounted is mounted, whatever the command came to: it may have been killed on its way out.
        let succeeded = result.as_ref().is_ok_and(|output| output.code() == Some(0));
        if let Some(mount) = mounted
            && (succeeded || table::there(&self.what, self.writable, target).map_err(no_table)? == There::Same)
        {
            // Some kernels give two mounts of one export the access of the first.
            if mount.read_only == self.writable {
                detach(target);
                return Err(Cause::WrongAccess { wanted: if self.writable { "writable" } else { "read-only" } });
            }
            return Ok(mount.id);
        }
        match result {
            Ok(_) if succeeded => Err(Cause::Vanished),
            Ok(output) => {
                let text =
                    if output.stderr.iter().all(u8::is_ascii_whitespace) { &output.stdout } else { &output.stderr };
                let text = String::from_utf8_lossy(text);
                Err(diagnosis::diagnose(&self.what, options, &text, &System::here()))
            }
            Err(CommandError::Deadline { gone, .. }) => {
                Err(Cause::Hung { limit: self.deadline, gone, port: diagnosis::port(&self.what) })
            }
            Err(error) => Err(Cause::System(error.to_string())),
        }
    }

    /// The number of the uppermost mount at a path.
    fn on_top(&self, target: &Path) -> Result<Option<u64>, Cause> {
        Ok(table::at(target).map_err(no_table)?.map(|mount| mount.id))
    }
}

fn no_table(error: io::Error) -> Cause {
    Cause::System(format!("cannot read /proc/self/mountinfo: {error}; is /proc mounted?"))
}

/// What is mounted at `target`: nothing, what is wanted, or something else. Touches no mount; a name server may be asked, for
/// some seconds.
///
/// # Errors
/// When the mount table cannot be read.
pub async fn is_mounted(what: &NetworkFileSystem, target: &Path, writable: bool) -> io::Result<There> {
    let (what, target) = (what.clone(), target.to_owned());
    let look = move || {
        let real = target::check(&target).and_then(|target| target::real(&target));
        table::there(&what, writable, real.as_ref().unwrap_or(&target))
    };
    tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?
}

/// Finds, among the mounts that these paths lead through, one that does not answer: whoever looks at such a path without asking
/// this first may never come back. Local file systems are not asked.
pub async fn find_stuck(paths: &[&Path]) -> Option<PathBuf> {
    // A table that cannot be read is found by whoever needs it.
    let remote: Vec<PathBuf> = fuse_oss::mountpoint::mounts()
        .unwrap_or_default()
        .into_iter()
        .filter(|mount| table::is_remote(&mount.fs_type))
        .map(|mount| mount.path)
        .filter(|mount| paths.iter().any(|path| path.starts_with(mount)))
        .collect();
    let asked = remote.iter().map(|path| async move { (path, probe(path, PROBE_LIMIT).await) });
    let answers = futures_util::future::join_all(asked).await;
    answers.into_iter().find(|(_, health)| *health == Health::Stuck).map(|(path, _)| path.clone())
}

/// Takes a mount away at once, whoever uses it and whether or not its server answers, and then the directories that were made for
/// it. What somebody still has open there works on until it is closed. Something that is not mounted is a success.
///
/// # Errors
/// When it stays mounted.
pub async fn unmount(mounted: &Mounted) -> io::Result<()> {
    let mounted = mounted.clone();
    let work = move || {
        detach_all(&mounted)?;
        target::unmake(&mounted.made);
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Takes away everything that is mounted at `directory` or below it, the innermost first. Touches none of it.
///
/// # Errors
/// When something stays mounted.
pub async fn unmount_below(directory: &Path) -> io::Result<()> {
    let directory = directory.to_owned();
    let work = move || {
        for _ in 0..STACKED {
            let mut below: Vec<PathBuf> = fuse_oss::mountpoint::mounts()?
                .into_iter()
                .map(|mount| mount.path)
                .filter(|path| path.starts_with(&directory))
                .collect();
            if below.is_empty() {
                return Ok(());
            }
            below.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
            for path in below {
                detach_once(&path)?;
            }
        }
        Err(io::Error::other(format!("something is mounted below {} again and again", directory.display())))
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Kills the mount commands that an agent has left behind that was killed itself while they were at work below `directory`, so that
/// nothing comes to be mounted there any more. One that hangs in the kernel stays, and is said.
pub async fn end_left_behind(directory: &Path) {
    let directory = directory.to_owned();
    let work = move || {
        let end = Instant::now() + KILL_LIMIT;
        loop {
            let left = mounting_below(&directory);
            if left.is_empty() {
                return;
            }
            if Instant::now() >= end {
                let directory = directory.display();
                tracing::warn!(%directory, "{} mount commands of an agent before this one hang in the kernel", left.len());
                return;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(10));
        }
    };
    let _ = tokio::task::spawn_blocking(work).await;
}

/// The processes that mount something below `directory`: `mount` itself, and the helper it has started.
fn mounting_below(directory: &Path) -> Vec<Pid> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command_line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments: Vec<&Path> =
            command_line.split(|byte| *byte == 0).map(|argument| Path::new(OsStr::from_bytes(argument))).collect();
        // A script, as some helpers are, has its interpreter before its name.
        let is_mount = arguments.iter().take(2).any(|argument| {
            argument.file_name().is_some_and(|name| name == "mount" || name.as_bytes().starts_with(b"mount."))
        });
        if is_mount && arguments.iter().any(|argument| argument.starts_with(directory)) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

/// Undoes a mount that nobody wants any more.
fn take_away(mounted: &Mounted) {
    if mounted.was_there {
        return;
    }
    detach(&mounted.target);
    target::unmake(&mounted.made);
}

fn detach(target: &Path) {
    if let Err(error) = detach_once(target) {
        tracing::warn!(target = %target.display(), %error, "a mount that was given up stays");
    }
}

/// Detaches a mount, several times if it is there several times. Something else that has come to be there is left alone.
fn detach_all(mounted: &Mounted) -> io::Result<()> {
    let target = &mounted.target;
    for _ in 0..STACKED {
        let Some(mount) = table::at(target)? else { return Ok(()) };
        if mount.id != mounted.mount_id && mount.source.to_string_lossy() != mounted.device {
            let (there, target) = (table::shown(&mount), target.display());
            return Err(io::Error::other(format!("{there} is mounted at {target} by now, and is left there")));
        }
        detach_once(target)?;
    }
    Ok(())
}

/// Detaches what is on top at `target`.
fn detach_once(target: &Path) -> io::Result<()> {
    let top = || table::at(target).map(|mount| mount.map(|mount| mount.id));
    let before = top()?;
    let path = target.to_owned();
    // When nobody uses it, the kernel sends what was written before it comes back, for as long as the server is away.
    let detached = within(UNMOUNT_LIMIT, move || umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW));
    match detached {
        Some(Ok(()) | Err(Errno::EINVAL | Errno::ENOENT)) => Ok(()),
        Some(Err(errno)) => Err(io::Error::other(format!(
            "cannot unmount {}: {}; run: umount -l {}",
            target.display(),
            errno.desc(),
            target.display()
        ))),
        None if top()? != before => {
            tracing::warn!(
                target = %target.display(),
                "it is detached, but its server does not answer: what was written there last may not have arrived"
            );
            Ok(())
        }
        None => Err(io::Error::other(format!(
            "unmounting {} takes longer than {UNMOUNT_LIMIT:?}; its server does not answer",
            target.display()
        ))),
    }
}
