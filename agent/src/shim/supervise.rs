//! Watching the program until it has ended and nothing of it is left.

use std::os::fd::{AsFd, BorrowedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::record::Clock;
use super::{ExitRecord, Place, Spec, Stopped, Usage, descendants};

/// How long killed processes may take to disappear. Only one that hangs in the kernel takes longer.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The signals a shim listens to, as a descriptor.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks them, so that none is lost before anyone looks.
    pub(super) fn block() -> nix::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGCHLD, STOP, KILL, Signal::SIGINT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// Waits for a signal, at most until `until`.
    fn wait(&self, until: Option<Instant>) -> Option<Signal> {
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // Rounded up, so that a deadline has passed when the wait for it is over.
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(_) => None,
            Ok(_) => self.next(),
        }
    }

    /// The next signal that has come, if any.
    pub(crate) fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The agent's request to end the task: terminate, wait for the grace, kill.
pub(crate) const STOP: Signal = Signal::SIGTERM;
/// The agent's request to end the task at once.
pub(crate) const KILL: Signal = Signal::SIGUSR1;

/// Where the task is on its way out.
enum Phase {
    Running,
    Terminating { kill_at: Instant },
    Killed,
}

/// Runs until `child` and everything below this process is gone.
pub(super) fn supervise(child: Child, spec: &Spec, signals: &Signals, started: Clock) -> ExitRecord {
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let main = i32::try_from(child.id()).unwrap_or(0);
    let grace = Duration::from_millis(spec.grace_ms);
    let timeout = spec.timeout_ms.map(|ms| started.monotonic + Duration::from_millis(ms));
    let mut phase = Phase::Running;
    let mut stopped = None;

    let (status, usage) = loop {
        if let Some(ended) = reap(main) {
            break ended;
        }
        let until = match phase {
            Phase::Running => timeout,
            Phase::Terminating { kill_at } => Some(kill_at),
            Phase::Killed => Some(Instant::now() + Duration::from_millis(100)),
        };
        let signal = signals.wait(until);
        let now = Instant::now();
        match signal {
            Some(signal) if signal == KILL => {
                stopped = stopped.or(Some(Stopped::Request));
                phase = Phase::Killed;
            }
            Some(STOP | Signal::SIGINT | Signal::SIGHUP) if matches!(phase, Phase::Running) => {
                stopped = Some(Stopped::Request);
                terminate(me, main);
                phase = Phase::Terminating { kill_at: now + grace };
            }
            _ => {}
        }
        // Deadlines are looked at whatever woke us: a task that keeps sending us SIGCHLD must not outrun them.
        match phase {
            Phase::Running if timeout.is_some_and(|timeout| now >= timeout) => {
                stopped = Some(Stopped::Timeout);
                terminate(me, main);
                phase = Phase::Terminating { kill_at: now + grace };
            }
            Phase::Terminating { kill_at } if now >= kill_at => phase = Phase::Killed,
            _ => {}
        }
        if matches!(phase, Phase::Killed) {
            kill_all(me, main);
        }
    };

    let mut record = ExitRecord::ended(started);
    (record.exit_code, record.signal) = status;
    record.stopped = stopped;
    record.usage = usage;
    if spec.place == Place::Machine && stopped.is_none() {
        return record;
    }
    // Both outcomes say how many: the ones that did not go are in the kernel's hands.
    let left = descendants::kill_descendants(me, KILL_DEADLINE, || while reap(0).is_some() {});
    record.left_behind = u32::try_from(left.unwrap_or_else(|stuck| stuck)).unwrap_or(u32::MAX);
    record
}

/// Asks everything below us to end. Stopped processes are woken, or they would never hear of it.
fn terminate(me: i32, main: i32) {
    let _ = killpg(Pid::from_raw(main), Signal::SIGTERM);
    for pid in descendants::descendants(me) {
        if nix::unistd::getpgid(Some(Pid::from_raw(pid))).map(Pid::as_raw) != Ok(main) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
    descendants::signal_descendants(me, Signal::SIGCONT);
}

fn kill_all(me: i32, main: i32) {
    let _ = killpg(Pid::from_raw(main), Signal::SIGKILL);
    descendants::signal_descendants(me, Signal::SIGKILL);
}

type Ended = ((Option<i32>, Option<i32>), Usage);

/// Collects dead children. Answers with the status and usage of `main` once it is among them; for a `main` of 0, with any.
fn reap(main: i32) -> Option<Ended> {
    loop {
        let mut status = 0;
        // SAFETY: an all-zero rusage is a valid value of the plain C struct.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live variables of the types that wait4 writes.
        let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
        if pid == -1 && Errno::last() == Errno::EINTR {
            continue;
        }
        if pid <= 0 {
            return None;
        }
        if pid == main || main == 0 {
            let exited = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
            let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
            return Some(((exited, signal), used(&usage)));
        }
    }
}

fn used(usage: &libc::rusage) -> Usage {
    let ms = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1000 + u64::try_from(time.tv_usec).unwrap_or(0) / 1000
    };
    Usage {
        user_ms: ms(usage.ru_utime),
        system_ms: ms(usage.ru_stime),
        // Linux counts it in KiB.
        max_resident_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        ..Usage::default()
    }
}
