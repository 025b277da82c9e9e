//! Finding and ending every process below another one.
//!
//! The shim is a sub-reaper, so whatever a task starts stays below it in the process tree, however often it forks or
//! changes its session. They are stopped before they are killed, so that none can fork while the others are dying.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it was started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Which boot that was.
    pub boot_id: String,
}

impl ProcessId {
    /// The process `pid` that is there now.
    pub fn of(pid: i32) -> Option<Self> {
        let start_ticks = Stat::of(pid)?.start_ticks;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        Some(Self { pid, start_ticks, boot_id })
    }

    /// This process.
    ///
    /// # Errors
    /// When /proc does not say.
    pub fn of_this() -> std::io::Result<Self> {
        let this = i32::try_from(std::process::id()).ok().and_then(Self::of);
        this.ok_or_else(|| std::io::Error::other("no start time there; is /proc mounted?"))
    }

    /// Whether it is still there, as more than a zombie.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self) && Stat::of(self.pid).is_some_and(|stat| stat.state != b'Z')
    }
}

impl ProcessId {
    /// Whether it is still there, and has been killed or is about to be gone: what is left to it is to end.
    pub fn is_ending(&self) -> bool {
        const KILLED: u64 = 1 << (libc::SIGKILL - 1);
        /// `PF_EXITING` of the kernel's `include/linux/sched.h`.
        const EXITING: u64 = 4;
        let is_exiting = Stat::of(self.pid).is_some_and(|stat| stat.flags & EXITING != 0);
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let pending = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
        let is_pending = |set: &str| u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & KILLED != 0);
        (is_exiting || pending.into_iter().any(is_pending)) && self.is_alive()
    }
}

/// What `/proc/PID/stat` says.
struct Stat {
    state: u8,
    parent: i32,
    flags: u64,
    start_ticks: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name in parentheses, and a process may put anything into its name.
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        Some(Self {
            state: *fields.first()?.as_bytes().first()?,
            parent: fields.get(1)?.parse().ok()?,
            flags: fields.get(6)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Every live process below `root`, itself not included. Zombies do not count.
pub(super) fn descendants(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<(i32, u8)>> = HashMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(stat) = Stat::of(pid) {
            children.entry(stat.parent).or_default().push((pid, stat.state));
        }
    }
    let mut found = Vec::new();
    let mut queue = vec![root];
    while let Some(parent) = queue.pop() {
        for (pid, state) in children.remove(&parent).unwrap_or_default() {
            if state != b'Z' {
                found.push(pid);
            }
            queue.push(pid);
        }
    }
    found
}

/// Ends every process below `root` without asking, and says how many there were. `reap` is called between rounds; it
/// collects zombies where `root` is this process.
///
/// # Errors
/// How many are still there after `deadline`: processes that hang in the kernel.
pub fn kill_descendants(root: i32, deadline: Duration, mut reap: impl FnMut()) -> Result<usize, usize> {
    let end = Instant::now() + deadline;
    let mut killed = std::collections::HashSet::new();
    loop {
        // Stopping them first until no new ones appear leaves nobody who could fork.
        let mut stopped = std::collections::HashSet::new();
        loop {
            let fresh: Vec<i32> = descendants(root).into_iter().filter(|pid| !stopped.contains(pid)).collect();
            if fresh.is_empty() || Instant::now() >= end {
                break;
            }
            for pid in fresh {
                let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
                stopped.insert(pid);
            }
        }
        for pid in &stopped {
            match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => killed.insert(*pid),
                Err(_) => false,
            };
        }
        reap();
        let left = descendants(root).len();
        if left == 0 {
            return Ok(killed.len());
        }
        if Instant::now() >= end {
            return Err(left);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_told_from_its_successors() {
        let me = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive() && !me.is_ending());
        assert!(!ProcessId { start_ticks: me.start_ticks + 1, ..me.clone() }.is_alive());
        assert!(!ProcessId { boot_id: "another".to_owned(), ..me }.is_alive());
    }

    #[test]
    fn one_that_was_killed_is_seen_to_end() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!id.is_ending());
        child.kill().unwrap();
        let began = Instant::now();
        while id.is_ending() && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!id.is_alive(), "killed, and neither ending nor gone");
        child.wait().unwrap();
    }

    #[test]
    fn grandchildren_that_ignore_signals_are_killed() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "trap '' TERM; for i in 1 2 3; do (trap '' TERM; sleep 1000) & done; echo up; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mut line = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        assert!(descendants(pid).len() >= 3);
        let killed = kill_descendants(pid, Duration::from_secs(10), || ()).unwrap();
        assert!(killed >= 3);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
