//! The kernel's counters: reading them, and what two readings say about the time between. Pure but for [`Reading::take`].
//!
//! All of it are files of `/proc`, which the kernel answers at once whatever disks and servers do.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use super::sample::{Cpu, Level, Memory, Network, Pressure};

/// Bytes of a sector in `/proc/diskstats`, whatever the device's are.
const SECTOR: u64 = 512;

/// What a disk has done since the machine was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DiskCounters {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Milliseconds in which it was busy.
    pub busy_ms: u64,
}

/// Counters at one moment.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub at: Instant,
    cores: u32,
    /// In the kernel's ticks: busy, and all.
    ticks: (u64, u64),
    memory: (u64, u64),
    /// Microseconds in which something waited, for processors, memory and disks.
    pressure: Option<[u64; 3]>,
    /// By name.
    pub disks: BTreeMap<String, DiskCounters>,
    /// Bytes received and sent.
    network: (u64, u64),
}

impl Reading {
    /// Reads them. What cannot be read is as if it did not change. Of disks those that `wanted` names, by major and minor number.
    pub(super) fn take(wanted: &[(u32, u32)]) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (cores, ticks) = processors(&read("/proc/stat"));
        let pressure = ["cpu", "memory", "io"].map(|what| stalled(&read(&format!("/proc/pressure/{what}"))));
        Self {
            at: Instant::now(),
            cores,
            ticks,
            memory: memory(&read("/proc/meminfo")),
            pressure: match pressure {
                [Some(cpu), Some(memory), Some(io)] => Some([cpu, memory, io]),
                _ => None,
            },
            disks: if wanted.is_empty() { BTreeMap::new() } else { disks(&read("/proc/diskstats"), wanted) },
            network: network(&read("/proc/net/dev"), is_hardware),
        }
    }

    /// The seconds since `before`.
    pub(super) fn since(&self, before: &Self) -> f64 {
        self.at.saturating_duration_since(before.at).as_secs_f64()
    }

    pub(super) fn cpu(&self, before: &Self) -> Cpu {
        let (busy, all) = (self.ticks.0.saturating_sub(before.ticks.0), self.ticks.1.saturating_sub(before.ticks.1));
        // The kernel counts in hundredths of a second: too coarse for a moment.
        let share = if all == 0 { 0.0 } else { float(busy) / float(all) };
        Cpu { cores: self.cores, used: Level::of(share * f64::from(self.cores)) }
    }

    pub(super) fn memory(&self) -> Memory {
        let (total, available) = self.memory;
        Memory { total, used: Level::of(float(total.saturating_sub(available))) }
    }

    pub(super) fn pressure(&self, before: &Self) -> Option<Pressure> {
        let (now, then) = (self.pressure?, before.pressure?);
        let seconds = self.since(before);
        let share = |index: usize| {
            let waited: f64 = float(now[index].saturating_sub(then[index])) / 1e6;
            Level::of(if seconds > 0.0 { (waited / seconds).min(1.0) } else { 0.0 })
        };
        Some(Pressure { cpu: share(0), memory: share(1), io: share(2) })
    }

    pub(super) fn network(&self, before: &Self) -> Network {
        let seconds = self.since(before);
        Network {
            received: rate(self.network.0, before.network.0, seconds),
            sent: rate(self.network.1, before.network.1, seconds),
        }
    }

    /// Reading, writing and being busy of a device.
    pub(super) fn disk(&self, before: &Self, device: &str) -> (Level, Level, Level) {
        let seconds = self.since(before);
        let none = (Level::default(), Level::default(), Level::default());
        let (Some(now), Some(then)) = (self.disks.get(device), before.disks.get(device)) else { return none };
        let busy = rate(now.busy_ms, then.busy_ms, seconds * 1000.0);
        (rate(now.read, then.read, seconds), rate(now.written, then.written, seconds), Level::of(busy.mean.min(1.0)))
    }
}

/// Numbers of bytes and the like; what a double cannot hold exactly nobody measures.
#[expect(clippy::cast_precision_loss, reason = "a 53-bit mantissa is exact to 9 PB")]
pub(super) fn float(value: u64) -> f64 {
    value as f64
}

/// How fast a counter grew. One that was set back, because the device went and came, has grown from nothing.
pub(super) fn rate(now: u64, then: u64, seconds: f64) -> Level {
    let grown = if now < then { now } else { now - then };
    Level::of(if seconds > 0.0 { float(grown) / seconds } else { 0.0 })
}

/// How many processors there are, and their busy and all ticks.
fn processors(stat: &str) -> (u32, (u64, u64)) {
    let mut lines = stat.lines();
    let all: Vec<u64> = lines
        .next()
        .and_then(|line| line.strip_prefix("cpu "))
        .into_iter()
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.parse().ok())
        .collect();
    // User, nice, system, idle, waiting for disks, interrupts, soft interrupts, taken by the hypervisor; guests are in user already.
    let total: u64 = all.iter().take(8).sum();
    let idle: u64 = all.iter().skip(3).take(2).sum();
    let cores = lines.take_while(|line| line.starts_with("cpu")).count();
    (u32::try_from(cores).unwrap_or(0), (total.saturating_sub(idle), total))
}

/// Total and available memory, in bytes.
fn memory(meminfo: &str) -> (u64, u64) {
    let of = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    (of("MemTotal").unwrap_or(0), of("MemAvailable").or(of("MemFree")).unwrap_or(0))
}

/// For how long something waited, in microseconds.
fn stalled(pressure: &str) -> Option<u64> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    some.rsplit_once("total=")?.1.trim().parse().ok()
}

fn disks(diskstats: &str, wanted: &[(u32, u32)]) -> BTreeMap<String, DiskCounters> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words.get(index)?.parse::<u64>().ok();
        let device = (u32::try_from(number(0)?).ok()?, u32::try_from(number(1)?).ok()?);
        if !wanted.contains(&device) {
            return None;
        }
        let counters = DiskCounters { read: number(5)? * SECTOR, written: number(9)? * SECTOR, busy_ms: number(12)? };
        Some(((*words.get(2)?).to_owned(), counters))
    };
    diskstats.lines().filter_map(parse).collect()
}

/// Bytes that came and went over devices that are hardware; where none is, as in a container, over all but the loopback.
fn network(dev: &str, is_hardware: impl Fn(&str) -> bool) -> (u64, u64) {
    let parse = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        Some((name.trim().to_owned(), *numbers.first()?, *numbers.get(8)?))
    };
    let all: Vec<(String, u64, u64)> = dev.lines().filter_map(parse).filter(|(name, ..)| name != "lo").collect();
    let any = all.iter().any(|(name, ..)| is_hardware(name));
    let counted = all.iter().filter(|(name, ..)| !any || is_hardware(name));
    counted.fold((0, 0), |(received, sent), (_, more_received, more_sent)| (received + more_received, sent + more_sent))
}

fn is_hardware(name: &str) -> bool {
    !name.contains('/') && Path::new("/sys/class/net").join(name).join("device").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const STAT: &str =
        "cpu  100 10 50 800 40 5 5 20 30 0\ncpu0 50 5 25 400 20 2 3 10 15 0\ncpu1 50 5 25 400 20 3 2 10 15 0\nintr 1\n";

    #[test]
    fn files_of_proc_are_read() {
        assert_eq!(processors(STAT), (2, (190, 1030)));
        assert_eq!(processors(""), (0, (0, 0)));
        let meminfo = "MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    6000000 kB\n";
        assert_eq!(memory(meminfo), (8_000_000 << 10, 6_000_000 << 10));
        let pressure =
            "some avg10=0.00 avg60=0.12 avg300=0.05 total=1234567\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!((stalled(pressure), stalled("")), (Some(1_234_567), None));
        let diskstats = " 259       0 nvme0n1 100 0 2000 30 200 0 4000 60 0 70 90 0 0 0 0\n   8       0 sda 1 2 3 4 5 6 7 8 9 10 11\n";
        let read = disks(diskstats, &[(259, 0)]);
        assert_eq!(read.len(), 1);
        assert_eq!(read["nvme0n1"], DiskCounters { read: 1_024_000, written: 2_048_000, busy_ms: 70 });
    }

    #[test]
    fn bridges_are_not_counted_beside_the_card_under_them() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n    lo: 7 0 0 0 0 0 0 0 7 0 0 0 0 0 0 0\n  eth0: 100 1 0 0 0 0 0 0 200 1 0 0 0 0 0 0\ndocker0:50 1 0 0 0 0 0 0 60 1 0 0 0 0 0 0\n";
        assert_eq!(network(dev, |name| name == "eth0"), (100, 200));
        assert_eq!(network(dev, |_| false), (150, 260));
    }

    #[test]
    fn two_readings_say_what_was_between() {
        let before = Reading {
            at: Instant::now(),
            cores: 2,
            ticks: (100, 1000),
            memory: (100, 40),
            pressure: Some([0, 0, 1_000_000]),
            disks: BTreeMap::from([("vda".to_owned(), DiskCounters { read: 10, written: 20, busy_ms: 500 })]),
            network: (1000, 2000),
        };
        let after = Reading {
            at: before.at + Duration::from_secs(2),
            ticks: (250, 1200),
            pressure: Some([1_000_000, 0, 1_000_000]),
            disks: BTreeMap::from([("vda".to_owned(), DiskCounters { read: 2010, written: 20, busy_ms: 1500 })]),
            // The device went and came.
            network: (500, 6000),
            ..before.clone()
        };
        assert_eq!(after.cpu(&before), Cpu { cores: 2, used: Level::of(1.5) });
        assert_eq!(after.memory(), Memory { total: 100, used: Level::of(60.0) });
        assert_eq!(after.pressure(&before).unwrap().cpu, Level::of(0.5));
        assert_eq!(after.disk(&before, "vda"), (Level::of(1000.0), Level::of(0.0), Level::of(0.5)));
        assert_eq!(after.disk(&before, "sda"), (Level::default(), Level::default(), Level::default()));
        assert_eq!(after.network(&before), Network { received: Level::of(250.0), sent: Level::of(2000.0) });
        assert_eq!(before.cpu(&before).used, Level::of(0.0));
    }

    #[test]
    fn this_machine_can_be_read() {
        let reading = Reading::take(&[]);
        assert!(reading.cores > 0 && reading.memory.0 > 0, "{reading:?}");
    }
}
