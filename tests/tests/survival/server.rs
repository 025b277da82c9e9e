//! The server's two processes: the keeper, which is what one signals, and the worker, which may be killed.

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tests::mounts::Sandbox;

/// How long a successor may take before we say that there is none. Keepers give up after half a minute.
const HANGS: Duration = Duration::from_secs(60);

/// As they are at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// The same for the server's whole life.
    pub keeper: Pid,
    /// The one that answers.
    pub worker: Pid,
}

impl Server {
    /// The server of a sandbox.
    pub fn of(sandbox: &Sandbox) -> Self {
        Self::ask(sandbox).expect("the server answers")
    }

    /// None when nobody answers just now.
    fn ask(sandbox: &Sandbox) -> Option<Self> {
        let ran = sandbox.run(["status", "--json"]);
        let servers: Vec<serde_json::Value> = serde_json::from_str(&ran.stdout).ok()?;
        let pid = |name: &str| {
            let number = servers.first()?.get(name)?.as_i64()?;
            Some(Pid::from_raw(i32::try_from(number).ok()?))
        };
        Some(Self { keeper: pid("pid")?, worker: pid("worker")? })
    }

    /// SIGKILL.
    pub fn kill_worker(self) {
        assert_ne!(self.worker, self.keeper);
        kill(self.worker);
    }

    /// The process that the keeper has started in the place of the one that was killed, whether or not it answers yet.
    pub fn next_worker(self) -> Pid {
        let begun = Instant::now();
        loop {
            if let Some(next) = children(self.keeper).into_iter().find(|pid| *pid != self.worker) {
                return next;
            }
            assert!(begun.elapsed() < HANGS, "the keeper starts no worker");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until another worker answers.
    pub fn wait_for_another(self, sandbox: &Sandbox) -> Self {
        let begun = Instant::now();
        loop {
            match Self::ask(sandbox) {
                Some(server) if server.worker != self.worker => return server,
                _ => assert!(begun.elapsed() < HANGS, "no other worker answers:\n{}", sandbox.log()),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// SIGKILL, unless it has ended by itself.
pub fn kill(pid: Pid) {
    signal(pid, Signal::SIGKILL);
}

/// Sends a signal, unless the process has ended by itself.
pub fn signal(pid: Pid, signal: Signal) {
    match signal::kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("cannot signal {pid}: {errno}"),
    }
}

/// The processes that a process has started and that are no zombies.
fn children(parent: Pid) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
    pids.filter(|pid| tests::mounts::alive(*pid)).collect()
}
