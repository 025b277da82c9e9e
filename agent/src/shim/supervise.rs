//! Watching the program until it has ended and nothing of it is left.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::program::Started;
use super::record::Clock;
use super::streams::Streams;
use super::{ExitRecord, Place, Spec, Stopped, Usage, descendants};
use crate::cgroup::TaskGroup;

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

    /// Waits for a signal, at most until `until`; or until something came through the streams, which is moved.
    fn wait(&self, until: Option<Instant>, streams: &mut Option<Streams>) -> Option<Signal> {
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // Rounded up, so that a deadline has passed when the wait for it is over.
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let streams_in = streams.iter().flat_map(Streams::descriptors);
        let all = std::iter::once(self.0.as_fd()).chain(streams_in);
        let mut all: Vec<PollFd<'_>> = all.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
        if !poll(&mut all, timeout).is_ok_and(|ready| ready > 0) {
            return None;
        }
        if let Some(streams) = streams {
            streams.pump();
        }
        self.next()
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

/// How often it is looked whether a task whose program has heard SIGTERM and ended has anything left.
const LOOK: Duration = Duration::from_millis(50);

/// Runs until the program and everything that has come of it is gone.
pub(super) fn supervise(
    (child, mut streams): Started,
    spec: &Spec,
    group: Option<&TaskGroup>,
    signals: &Signals,
    started: Clock,
) -> ExitRecord {
    let mut task = Family::new(&child, group);
    let grace = Duration::from_millis(spec.grace_ms);
    let timeout = spec.timeout_ms.map(|ms| started.monotonic + Duration::from_millis(ms));
    let mut phase = Phase::Running;
    let mut stopped = None;
    loop {
        task.reap();
        let now = Instant::now();
        // The program's end is the task's end; but what was asked to end has the grace for it, all of it.
        let until = match (&phase, task.ended.is_some()) {
            (Phase::Killed, _) | (Phase::Running, true) => break,
            (Phase::Running, false) => timeout,
            (Phase::Terminating { kill_at }, true) => Some(now + LOOK).filter(|look| look < kill_at).or(Some(*kill_at)),
            (Phase::Terminating { kill_at }, false) => Some(*kill_at),
        };
        if matches!(phase, Phase::Terminating { .. }) && task.ended.is_some() && task.is_gone() {
            break;
        }
        let signal = signals.wait(until, &mut streams);
        let now = Instant::now();
        match signal {
            Some(signal) if signal == KILL => {
                stopped = stopped.or(Some(Stopped::Request));
                phase = Phase::Killed;
            }
            Some(STOP | Signal::SIGINT | Signal::SIGHUP) if matches!(phase, Phase::Running) => {
                stopped = Some(Stopped::Request);
                task.terminate();
                phase = Phase::Terminating { kill_at: now + grace };
            }
            _ => {}
        }
        // Deadlines are looked at whatever woke us: a task that keeps sending us SIGCHLD must not outrun them.
        match phase {
            Phase::Running if timeout.is_some_and(|timeout| now >= timeout) => {
                task.reap();
                if task.ended.is_none() {
                    stopped = Some(Stopped::Timeout);
                    task.terminate();
                    phase = Phase::Terminating { kill_at: now + grace };
                }
            }
            Phase::Terminating { kill_at } if now >= kill_at => phase = Phase::Killed,
            _ => {}
        }
    }

    let mut record = ExitRecord::ended(started);
    record.stopped = stopped;
    let goes_on = spec.place == Place::Machine && stopped.is_none();
    if !goes_on {
        let (killed, stuck) = task.kill();
        let told = if matches!(phase, Phase::Killed) { &mut record.outlived_grace } else { &mut record.left_behind };
        *told = killed;
        record.stuck = stuck;
    }
    if let Some(streams) = streams {
        streams.finish();
    }
    if let Some((status, usage)) = task.ended {
        (record.exit_code, record.signal) = status;
        record.usage = usage;
    }
    if let Some(used) = group.map(TaskGroup::usage) {
        let usage = &mut record.usage;
        usage.user_ms = used.user_ms.unwrap_or(usage.user_ms);
        usage.system_ms = used.system_ms.unwrap_or(usage.system_ms);
        (usage.memory_peak_bytes, usage.oom_kills) = (used.memory_peak_bytes, used.oom_kills);
        usage.pids_refused = used.pids_refused;
    }
    record
}

type Ended = ((Option<i32>, Option<i32>), Usage);

/// The program, and all that has come of it: whoever is below this process, and whoever is in the group.
struct Family<'a> {
    me: i32,
    main: i32,
    group: Option<&'a TaskGroup>,
    /// Status and usage of the program, once it has been waited for.
    ended: Option<Ended>,
}

impl<'a> Family<'a> {
    fn new(child: &Child, group: Option<&'a TaskGroup>) -> Self {
        let number = |id: u32| i32::try_from(id).unwrap_or(0);
        Self { me: number(std::process::id()), main: number(child.id()), group, ended: None }
    }

    /// Everybody who is alive.
    fn processes(&self) -> BTreeSet<i32> {
        let mut all = self.group.map(|group| group.processes(false)).unwrap_or_default();
        all.extend(descendants::descendants(self.me));
        all
    }

    fn is_gone(&self) -> bool {
        self.processes().is_empty()
    }

    /// Asks everybody to end. Stopped processes are woken, or they would never hear of it.
    fn terminate(&self) {
        let all = self.processes();
        let _ = killpg(Pid::from_raw(self.main), Signal::SIGTERM);
        for pid in &all {
            if nix::unistd::getpgid(Some(Pid::from_raw(*pid))).map(Pid::as_raw) != Ok(self.main) {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGTERM);
            }
        }
        for pid in &all {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGCONT);
        }
    }

    /// Ends whoever is left, and says how many that were, and how many of them did not go: those are in the kernel's hands.
    fn kill(&mut self) -> (u32, u32) {
        let begun = Instant::now();
        let mut killed = 0;
        if let Some(group) = self.group
            && let Ok(ended) = group.kill(false, KILL_DEADLINE, || self.reap())
        {
            killed = ended;
        }
        // And whoever has left the group. Whoever has not died by now is counted here, too.
        let rest = KILL_DEADLINE.saturating_sub(begun.elapsed());
        let stuck = match descendants::kill_descendants(self.me, rest, || self.reap()) {
            Ok(more) => {
                killed += more;
                0
            }
            Err(stuck) => stuck,
        };
        self.reap();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        (number(killed), number(stuck))
    }

    /// Collects dead children, and keeps what is known of the program once it is among them.
    fn reap(&mut self) {
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
                return;
            }
            if pid == self.main && self.ended.is_none() {
                let exited = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
                let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
                self.ended = Some(((exited, signal), used(&usage)));
            }
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
        memory_peak_bytes: None,
        oom_kills: None,
        pids_refused: None,
    }
}
