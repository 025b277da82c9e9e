//! What a container uses, and whether the kernel has killed any of it for want of memory.
//!
//! Engines do not say the first, and of the second they say what they have noticed: Podman's monitor notices nothing where the machine has
//! control groups of both versions, and Docker's may be late. So the shim reads the container's control group itself. It is there from
//! before the program begins, and gone soon after it has ended; the moments to read it are when the kernel says that the first process of
//! the container has ended, and when it says that there was not enough memory. Then it is a matter of milliseconds, so the shim goes before
//! others ([`hurry`]); and between these moments the group is read now and then, in case one is missed all the same. That nothing was killed
//! is claimed only if the last moment was not missed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use crate::cgroup::{ForeignGroup, GroupUsage, OomNews, OomWatch};
use crate::durable;
use crate::shim::{Usage, open_process};

/// The pause after the first reading; each next one is twice as long.
const FIRST: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(10);

/// How long the kernel may take to say that a group has been removed.
const SETTLING: Duration = Duration::from_secs(1);

/// The container's control group, as long as it is there, and what was read of it.
#[derive(Debug)]
pub(super) struct Accounts {
    /// What the name of its group has in it.
    id: String,
    group: Option<ForeignGroup>,
    /// The container's first process; readable when it has ended.
    process: Option<OwnedFd>,
    memory: Option<OomWatch>,
    news: OomNews,
    last: GroupUsage,
    /// Whether that is all of it.
    is_final: bool,
    next: Instant,
    pause: Duration,
}

impl Accounts {
    /// Those of the container with this id, of which nothing has been seen.
    pub(super) fn of(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            group: None,
            process: None,
            memory: None,
            news: OomNews::default(),
            last: GroupUsage::default(),
            is_final: false,
            next: Instant::now(),
            pause: FIRST,
        }
    }

    /// Looks for the group while the container is being started.
    pub(super) fn look(&mut self) {
        let Some((group, pid)) = ForeignGroup::find(&self.id) else { return };
        // What the engine starts the container with has other numbers.
        if self.process.is_none() && is_first_of_its_own(pid) {
            self.process = open_process(pid).ok();
        }
        let now = group.usage();
        self.keep(now);
        // Where nobody counts kills, news of them could not be told from the group's removal.
        if self.memory.is_none() && now.oom_kills.is_some() {
            self.memory = group.watch_memory().ok();
        }
        if self.group.as_ref() != Some(&group) {
            self.group = Some(group);
        }
    }

    /// Whether there is nothing more to look for.
    pub(super) fn is_found(&self) -> bool {
        self.process.is_some() && self.memory.is_some()
    }

    /// Writes down where the group is, for whoever else wants to know what the container uses.
    pub(super) fn publish(&self, record: &Path) {
        let Some(group) = &self.group else { return };
        if let Err(error) = durable::replace_json(record, group) {
            tracing::debug!(%error, "the use of the container cannot be followed");
        }
    }

    /// What to wait for.
    pub(super) fn polled(&self) -> [Option<PollFd<'_>>; 2] {
        [
            self.process.as_ref().map(|process| PollFd::new(process.as_fd(), PollFlags::POLLIN)),
            self.memory.as_ref().map(|memory| PollFd::new(memory.as_fd(), memory.events())),
        ]
    }

    /// When to read it next, if nothing happens before.
    pub(super) fn next(&self) -> Option<Instant> {
        self.group.as_ref().map(|_| self.next)
    }

    /// Reads it if it is time to, or something has happened to its processes or to its memory. Says whether its first process has ended.
    pub(super) fn follow(&mut self, process: bool, memory: bool) -> bool {
        if process || memory || self.group.is_some() && Instant::now() >= self.next {
            self.read(process);
        }
        if process {
            self.process = None;
        }
        process
    }

    fn keep(&mut self, now: GroupUsage) {
        let most = |now: Option<u64>, before: Option<u64>| now.max(before);
        let last = &mut self.last;
        *last = GroupUsage {
            user_ms: most(now.user_ms, last.user_ms),
            system_ms: most(now.system_ms, last.system_ms),
            memory_peak_bytes: most(now.memory_peak_bytes, last.memory_peak_bytes),
            oom_kills: most(now.oom_kills, last.oom_kills),
            pids_refused: most(now.pids_refused, last.pids_refused),
        };
    }

    /// Reads it. `is_over` says that nobody is in it any more.
    fn read(&mut self, is_over: bool) {
        let Some(group) = &self.group else { return };
        // First the counts: what follows is of use when they are gone.
        let now = group.usage();
        self.keep(now);
        self.is_final |= is_over && now.oom_kills.is_some();
        if let Some(memory) = &self.memory {
            self.news.add(memory.heard());
        }
        if now.oom_kills.is_none()
            && let Some(memory) = self.memory.take()
        {
            self.settle(&memory);
        }
        if now == GroupUsage::default() {
            // It is gone.
            (self.group, self.process) = (None, None);
        }
        self.next = Instant::now() + self.pause;
        self.pause = LONGEST.min(self.pause * 2);
    }

    /// What the kernel has to say of memory when the group is gone. Its removal looks like a kill until it is told as what it is.
    fn settle(&mut self, memory: &OomWatch) {
        const PAUSE: Duration = Duration::from_millis(10);
        let end = Instant::now() + SETTLING;
        while self.news.is_undecided() && Instant::now() < end {
            std::thread::sleep(PAUSE);
            self.news.add(memory.heard());
        }
        std::thread::sleep(PAUSE);
        self.news.add(memory.heard());
        let kills = self.news.kills(true);
        self.last.oom_kills = self.last.oom_kills.max(Some(kills));
        self.is_final |= memory.outlives_group();
    }

    /// What there is to say in the end. The engine's own word on memory counts as well: it may have seen what nobody else has.
    pub(super) fn close(mut self, engine_says_oom: bool) -> Usage {
        self.read(true);
        let used = self.last;
        let oom_kills = match used.oom_kills {
            kills if engine_says_oom => Some(kills.unwrap_or(0).max(1)),
            Some(0) if !self.is_final => None,
            kills => kills,
        };
        Usage {
            user_ms: used.user_ms.unwrap_or(0),
            system_ms: used.system_ms.unwrap_or(0),
            max_resident_bytes: 0,
            memory_peak_bytes: used.memory_peak_bytes,
            oom_kills,
            pids_refused: used.pids_refused,
        }
    }
}

/// Has this process go before all that are not in a hurry: it works for moments only.
pub(super) fn hurry() {
    const FIRST: libc::c_int = -20;
    // SAFETY: takes plain numbers. Where it is refused we are as others are.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, FIRST) };
}

/// Whether the process is number 1 in a namespace of its own.
fn is_first_of_its_own(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let numbers: Vec<&str> = numbers.unwrap_or_default().split_ascii_whitespace().collect();
    matches!(numbers[..], [_, .., "1"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_word_is_added_to_what_was_read() {
        let accounts = |oom_kills| {
            let mut accounts = Accounts::of("nobody's");
            accounts.last = GroupUsage { user_ms: Some(7), oom_kills, ..GroupUsage::default() };
            accounts.is_final = true;
            accounts
        };
        for (read, said, told) in [
            (None, false, None),
            (None, true, Some(1)),
            (Some(0), true, Some(1)),
            (Some(2), true, Some(2)),
            (Some(2), false, Some(2)),
        ] {
            let usage = accounts(read).close(said);
            assert_eq!((usage.user_ms, usage.oom_kills), (7, told), "{read:?} {said}");
        }
        assert_eq!(Accounts { is_final: false, ..accounts(Some(0)) }.close(false).oom_kills, None);
        assert_eq!(Accounts { is_final: false, ..accounts(Some(1)) }.close(false).oom_kills, Some(1));
        assert!(!is_first_of_its_own(1));
    }
}
