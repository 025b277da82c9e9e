//! Everything that must be gone at the end, whatever the end is.
//!
//! Mounts, processes and directories are entered here before they come to be, and taken out by the guard that ends them in the
//! ordinary course. Ctrl-C, SIGTERM and a panic (which aborts, so that no destructor runs) go through what is left. Against
//! SIGKILL the children have asked the kernel to be told ([`die_with_parent`]).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// What is there now.
#[derive(Debug)]
struct Registry {
    entries: Vec<Entry>,
    ending: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Mount(PathBuf),
    Process(Pid),
    Loop(PathBuf),
    Directory(PathBuf),
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { entries: Vec::new(), ending: false });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, SIGINT, SIGTERM, SIGHUP and panics clean up before the program ends. To be called before any thread is started.
///
/// # Errors
/// When the signals cannot be blocked.
pub fn guard() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Ok(signal) = signals.wait() {
                eprintln!("\nbench: {signal}: cleaning up");
                sweep();
                std::process::exit(128 + signal as i32);
            }
        })
        .context("cannot start a thread")?;
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        sweep();
    }));
    Ok(())
}

/// Ends everything that is entered. Nothing can be entered afterwards.
fn sweep() {
    let entries = {
        let mut registry = registry();
        registry.ending = true;
        std::mem::take(&mut registry.entries)
    };
    for entry in &entries {
        if let Entry::Mount(target) = entry {
            detach(target);
        }
    }
    for entry in &entries {
        if let Entry::Process(pid) = entry {
            // It may be gone.
            let _ = kill(*pid, Signal::SIGKILL);
            let deadline = Instant::now() + Duration::from_secs(5);
            while alive(*pid) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    for entry in &entries {
        match entry {
            // A program that was about to mount may have done so meanwhile.
            Entry::Mount(target) => detach(target),
            Entry::Loop(device) => detach_loop(device),
            Entry::Directory(path) => remove(path),
            Entry::Process(_) => {}
        }
    }
}

/// While it lives, a mount that hangs is not waited for longer than was said: then the connection of every mount that is entered is
/// cut, and whoever waits for it gets an error.
#[derive(Debug)]
pub struct Watch {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(limit: Duration) -> anyhow::Result<Self> {
        let (over, is_over) = channel();
        let watch = move || {
            if is_over.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("bench: a mount is given up, because something took longer than {limit:?}");
                cut_connections();
            }
        };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(watch);
        Ok(Self { over: Some(over), thread: Some(thread.context("cannot start a thread")?) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn cut_connections() {
    let entries = registry().entries.clone();
    for entry in entries {
        if let Entry::Mount(target) = entry
            && mounts().contains(&target)
        {
            // Force aborts the FUSE connection, which a program that hangs would not.
            let _ = umount2(&target, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
}

/// Whether a process is there and no zombie.
fn alive(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

fn detach(target: &Path) {
    while mounts().iter().any(|mount| mount == target) {
        if let Err(errno) = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            eprintln!("bench: cannot unmount {}: {errno}; do it by hand: umount -l {0}", target.display());
            return;
        }
    }
}

fn remove(path: &Path) {
    // Never into something that is mounted.
    let within: Vec<PathBuf> = mounts().into_iter().filter(|mount| mount.starts_with(path)).collect();
    if !within.is_empty() {
        eprintln!("bench: {} stays, because something is still mounted there: {within:?}", path.display());
        return;
    }
    // Another thread may be writing there when the end is a signal: under another name it finds nothing any more to write to.
    let gone = path.with_extension("gone");
    let path = if std::fs::rename(path, &gone).is_ok() { &gone } else { path };
    for last in [false, false, false, true] {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) if last => eprintln!("bench: cannot remove {}: {error}", path.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Whether a signal has come, and nothing more may be made.
pub fn is_ending() -> bool {
    registry().ending
}

/// Where something is mounted, by the kernel's list. Looks at nothing that may hang.
pub fn mounts() -> Vec<PathBuf> {
    let list = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let fifth = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(unescape);
    list.split(|byte| *byte == b'\n').filter_map(fifth).collect()
}

/// Undoes `\040` and the like.
fn unescape(mut text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        let octal = rest.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                text = &rest[3..];
            }
            None => {
                out.push(*first);
                text = rest;
            }
        }
    }
    OsString::from_vec(out).into()
}

/// A directory for everything, removed at the end.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a new one in `parent`, for us only.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn new(parent: &Path) -> anyhow::Result<Self> {
        let mut registry = registry();
        if registry.ending {
            bail!("the benchmark is ending");
        }
        let made = tempfile::Builder::new().prefix("fuse-oss-bench-").tempdir_in(parent);
        let path = made.with_context(|| format!("cannot make a directory in {}", parent.display()))?.keep();
        // Mount points are compared with the kernel's names for them.
        let path = path.canonicalize().context("the new directory has no name")?;
        registry.entries.push(Entry::Directory(path.clone()));
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
        forget(&Entry::Directory(self.path.clone()));
    }
}

/// A loop device. Gone when dropped, at the latest with the last mount of it.
#[derive(Debug)]
pub struct Loop {
    device: PathBuf,
}

impl Loop {
    /// One over a file.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn over(file: &Path) -> anyhow::Result<Self> {
        let mut registry = registry();
        if registry.ending {
            bail!("the benchmark is ending");
        }
        let device = crate::disk::run(Command::new("losetup").args(["--find", "--show"]).arg(file))?;
        let device = PathBuf::from(device);
        registry.entries.push(Entry::Loop(device.clone()));
        Ok(Self { device })
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        detach_loop(&self.device);
        forget(&Entry::Loop(self.device.clone()));
    }
}

fn detach_loop(device: &Path) {
    if let Err(error) = crate::disk::run(Command::new("losetup").arg("--detach").arg(device)) {
        eprintln!("bench: {error:#}; do it by hand: losetup -d {}", device.display());
    }
}

fn forget(entry: &Entry) {
    registry().entries.retain(|known| known != entry);
}

/// A program that serves a mount. When dropped, the mount and the program are gone.
#[derive(Debug)]
pub struct Served {
    process: Process,
    target: PathBuf,
}

#[derive(Debug)]
enum Process {
    Child(Child),
    /// It has left its parent, and only its number is known.
    Detached(Pid),
}

/// A mount that is about to be made by a program which then leaves its server behind. When dropped, the mount is gone; such
/// servers end by themselves when they have nothing mounted.
#[derive(Debug)]
pub struct Starting {
    target: PathBuf,
}

impl Starting {
    /// The server is this process from now on.
    pub fn served_by(mut self, server: i32) -> Served {
        let pid = Pid::from_raw(server);
        registry().entries.push(Entry::Process(pid));
        Served { process: Process::Detached(pid), target: std::mem::take(&mut self.target) }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if !self.target.as_os_str().is_empty() {
            detach(&self.target);
            forget(&Entry::Mount(self.target.clone()));
        }
    }
}

impl Served {
    /// Starts a program that stays in the foreground and mounts on `target`. Only from the main thread: the kernel ends the
    /// program with the thread that started it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, target: &Path) -> anyhow::Result<Self> {
        let child = launch(&mut command, Some(target))?;
        Ok(Self { process: Process::Child(child), target: target.to_owned() })
    }

    /// Enters a mount that somebody else's program is about to make.
    ///
    /// # Errors
    /// When the benchmark is ending.
    pub fn announce(target: &Path) -> anyhow::Result<Starting> {
        let mut registry = registry();
        if registry.ending {
            bail!("the benchmark is ending");
        }
        registry.entries.push(Entry::Mount(target.to_owned()));
        Ok(Starting { target: target.to_owned() })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        match &self.process {
            Process::Child(child) => pid(child),
            Process::Detached(pid) => *pid,
        }
    }

    /// How it ended, if it has and is ours.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        match &mut self.process {
            Process::Child(child) => child.try_wait().ok().flatten(),
            Process::Detached(_) => None,
        }
    }

    /// Whether the kernel lists its mount.
    pub fn is_mounted(&self) -> bool {
        mounts().contains(&self.target)
    }

    /// Waits for its end. Says whether it has come.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        self.wait(limit)
    }

    fn wait(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while match &mut self.process {
            Process::Child(child) => !matches!(child.try_wait(), Ok(Some(_))),
            Process::Detached(pid) => alive(*pid),
        } {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // A file that was closed a moment ago may still be on its way out.
        for _ in 0..20 {
            match umount2(&self.target, MntFlags::UMOUNT_NOFOLLOW) {
                Err(nix::errno::Errno::EBUSY) => std::thread::sleep(Duration::from_millis(50)),
                _ => break,
            }
        }
        detach(&self.target);
        // A server that was left behind may wait for its next mount.
        let patience = if matches!(self.process, Process::Child(_)) { 10 } else { 0 };
        if !self.wait(Duration::from_secs(patience)) {
            // Some programs do not notice by themselves.
            let _ = kill(self.pid(), Signal::SIGTERM);
            if !self.wait(Duration::from_secs(5)) {
                let _ = kill(self.pid(), Signal::SIGKILL);
                self.wait(Duration::from_secs(5));
            }
        }
        detach(&self.target);
        forget(&Entry::Process(self.pid()));
        forget(&Entry::Mount(self.target.clone()));
    }
}

/// A program that does something and ends. When dropped, it is gone.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts it. Only from the main thread, as [`Served::start`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let child = launch(&mut command, None)?;
        Ok(Self(child))
    }

    /// Waits for its end; nothing when that does not come in time.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ends_within(&mut self, limit: Duration) -> anyhow::Result<Option<std::process::ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.0.try_wait().context("cannot wait for a program")?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What has ended already is left alone.
        let _ = self.0.kill();
        let _ = self.0.wait();
        forget(&Entry::Process(pid(&self.0)));
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process numbers are below 2^22"))
}

/// Starts a program that is ended with the benchmark, and what it mounts on `target` with it.
fn launch(command: &mut Command, target: Option<&Path>) -> anyhow::Result<Child> {
    // Not in our group, so that Ctrl-C reaches it only through us.
    command.process_group(0);
    die_with_parent(command);
    let mut registry = registry();
    if registry.ending {
        bail!("the benchmark is ending");
    }
    let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    registry.entries.extend(target.map(|target| Entry::Mount(target.to_owned())));
    registry.entries.push(Entry::Process(pid(&child)));
    Ok(child)
}

/// Has the kernel end the program when we are killed, and gives it back the signals that [`guard`] has blocked in us: they are
/// inherited, and a program that cannot be told to end stays.
pub fn die_with_parent(command: &mut Command) {
    let prepare = || {
        SigSet::empty().thread_set_mask()?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
        Ok(())
    };
    // SAFETY: the closure makes two system calls and neither allocates nor takes locks.
    unsafe { command.pre_exec(prepare) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_kernels_list_are_decoded() {
        assert_eq!(unescape(br"/mnt/a\040b\134c"), Path::new(r"/mnt/a b\c"));
        assert_eq!(unescape(br"/mnt/\9"), Path::new(r"/mnt/\9"));
        assert!(mounts().iter().any(|mount| mount == Path::new("/")));
    }

    #[test]
    fn a_watch_ends_with_what_it_watches() {
        let begun = Instant::now();
        drop(Watch::start(Duration::from_secs(3600)).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(600));
    }

    #[test]
    fn a_scratch_directory_is_removed_with_what_is_in_it() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(parent.path()).unwrap();
        std::fs::write(scratch.path().join("x"), "x").unwrap();
        drop(scratch);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_program_is_waited_for_and_one_that_hangs_is_ended() {
        let start = |seconds: &str| {
            let mut command = Command::new("sleep");
            command.arg(seconds);
            Running::start(command).unwrap()
        };
        assert!(start("0").ends_within(Duration::from_secs(60)).unwrap().unwrap().success());
        let mut hanging = start("600");
        assert_eq!(hanging.ends_within(Duration::from_millis(20)).unwrap(), None);
        let pid = pid(&hanging.0);
        drop(hanging);
        assert!(!alive(pid) && !registry().entries.contains(&Entry::Process(pid)));
    }

    #[test]
    fn children_take_the_signals_that_we_block() {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTERM);
        blocked.thread_block().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        die_with_parent(&mut command);
        let mut child = command.spawn().unwrap();
        kill(pid(&child), Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let ended = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let _ = child.kill();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended.unwrap()), Some(Signal::SIGTERM as i32));
    }
}
