//! What a task uses: its control group's counts, or, on a machine without, those of the processes below its shim.

use std::collections::BTreeMap;
use std::fs;

use super::reading::float;
use super::sample::{Level, TaskUse};

/// What a task has used up to a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TaskReading {
    /// Processor time in microseconds, of processes that have ended, too.
    pub cpu_us: u64,
    /// Memory in bytes.
    pub memory: u64,
}

impl TaskReading {
    /// What was used between `before` and this, `seconds` later.
    pub(super) fn since(&self, before: &Self, seconds: f64, cores: u32) -> TaskUse {
        let used = float(self.cpu_us.saturating_sub(before.cpu_us)) / 1e6;
        let cpu = if seconds > 0.0 { (used / seconds).min(f64::from(cores.max(1))) } else { 0.0 };
        TaskUse { cpu: Level::of(cpu), memory: Level::of(float(self.memory)) }
    }
}

/// One process, as `/proc/PID/stat` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    parent: i32,
    ticks: u64,
    pages: u64,
}

/// All processes of the machine at one moment: the first in which somebody asks.
#[derive(Debug, Default)]
pub(super) struct Processes {
    all: Option<BTreeMap<i32, Process>>,
}

impl Processes {
    /// They. A process that ends while they are read is left out.
    fn all(&mut self) -> &BTreeMap<i32, Process> {
        self.all.get_or_insert_with(Self::take)
    }

    fn take() -> BTreeMap<i32, Process> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let read = |pid| parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?).map(|process| (pid, process));
        pids.filter_map(read).collect()
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&mut self) -> usize {
        self.all().len()
    }

    /// Ends the children of `root`.
    #[cfg(test)]
    pub(super) fn signal_below(&mut self, root: i32) {
        for (pid, _) in self.all().iter().filter(|(_, process)| process.parent == root) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// What the processes below `root` have used, with those that they have waited for.
    pub(super) fn below(&mut self, root: i32) -> TaskReading {
        let all = self.all();
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for (pid, process) in all {
            children.entry(process.parent).or_default().push(*pid);
        }
        let (mut ticks, mut pages) = (0, 0);
        let mut waiting = children.remove(&root).unwrap_or_default();
        while let Some(pid) = waiting.pop() {
            if let Some(process) = all.get(&pid) {
                (ticks, pages) = (ticks + process.ticks, pages + process.pages);
            }
            // Taken out, so that no circle of a table that changed while it was read is run for ever.
            waiting.extend(children.remove(&pid).unwrap_or_default());
        }
        TaskReading { cpu_us: ticks * (1_000_000 / ticks_per_second()), memory: pages * page_size() }
    }
}

fn ticks_per_second() -> u64 {
    constant(nix::unistd::SysconfVar::CLK_TCK, 100)
}

fn page_size() -> u64 {
    constant(nix::unistd::SysconfVar::PAGE_SIZE, 4096)
}

fn constant(name: nix::unistd::SysconfVar, usual: u64) -> u64 {
    nix::unistd::sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(usual).max(1)
}

fn parse(stat: &str) -> Option<Process> {
    // The name is in parentheses, and may hold any character.
    let rest = stat.rsplit_once(')')?.1;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| words.get(index)?.parse::<u64>().ok();
    Some(Process { parent: words.get(1)?.parse().ok()?, ticks: (11..15).filter_map(number).sum(), pages: number(21)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_it_is_called() {
        let stat =
            "42 (a) b (c) S 7 42 42 0 -1 4194304 100 200 0 0 5 6 7 8 20 0 1 0 12345 1000000 321 18446744073709551615 0";
        assert_eq!(parse(stat), Some(Process { parent: 7, ticks: 26, pages: 321 }));
        assert_eq!(parse("42 (a"), None);
    }

    #[test]
    fn everybody_below_the_root_is_counted_and_nobody_else() {
        let process = |parent| Process { parent, ticks: 100, pages: 1 };
        let all =
            BTreeMap::from([(1, process(0)), (10, process(1)), (11, process(10)), (12, process(11)), (20, process(1))]);
        let used = Processes { all: Some(all) }.below(10);
        assert_eq!(used.cpu_us, 200 * (1_000_000 / ticks_per_second()));
        assert_eq!(used.memory, 2 * page_size());
        // A circle, as a table that changes while it is read can have.
        let all = BTreeMap::from([(5, process(6)), (6, process(5))]);
        assert_eq!(Processes { all: Some(all) }.below(5).memory, 2 * page_size());
    }

    #[test]
    fn use_is_a_rate_and_never_more_than_there_is() {
        let before = TaskReading { cpu_us: 1_000_000, memory: 5 };
        let now = TaskReading { cpu_us: 4_000_000, memory: 7 };
        assert_eq!(now.since(&before, 2.0, 4), TaskUse { cpu: Level::of(1.5), memory: Level::of(7.0) });
        assert_eq!(now.since(&before, 0.5, 4).cpu, Level::of(4.0));
        assert_eq!(now.since(&before, 0.0, 4).cpu, Level::of(0.0));
    }
}
