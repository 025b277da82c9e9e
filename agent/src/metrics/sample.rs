//! What the machine and a task used over some time. Pure.
//!
//! A [`Sample`] says for each quantity its mean and its peak. Two that follow one another can be put together into one of the whole time
//! ([`Sample::and`]); the figures of a task are all of its samples put together.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A quantity over some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Its mean.
    pub mean: f64,
    /// The highest it was found at.
    pub peak: f64,
}

impl Level {
    /// A quantity that was the same all the time.
    pub fn of(value: f64) -> Self {
        Self { mean: value, peak: value }
    }

    /// This for `before` seconds, then `later` for `after`.
    fn and(self, later: Self, (before, after): (f64, f64)) -> Self {
        let whole = before + after;
        let mean = if whole > 0.0 {
            (self.mean * before + later.mean * after) / whole
        } else {
            (self.mean + later.mean) / 2.0
        };
        Self { mean, peak: self.peak.max(later.peak) }
    }
}

/// Processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// How many there are.
    pub cores: u32,
    /// How many of them were busy.
    pub used: Level,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// How much there is.
    pub total: u64,
    /// How much of it could not be given to others.
    pub used: Level,
}

/// The share of the time in which something waited, 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// For a processor.
    pub cpu: Level,
    /// For memory.
    pub memory: Level,
    /// For disks.
    pub io: Level,
}

/// What a file system is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It holds the operating system.
    System,
    /// It holds what tasks work on: scratch, or a prepared volume.
    Data,
    /// It holds the object cache.
    Cache,
    /// It is mounted for the node's programs.
    Mount,
}

impl Role {
    /// As it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Data => "data",
            Self::Cache => "cache",
            Self::Mount => "mount",
        }
    }
}

/// A file system and the device under it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is.
    pub path: String,
    /// What it is for.
    pub roles: Vec<Role>,
    /// The kernel's name of the device; empty where there is none.
    pub device: String,
    /// How much it can hold, in bytes.
    pub size: u64,
    /// How much it holds, in bytes.
    pub used: Level,
    /// Bytes read from the device per second.
    pub read: Level,
    /// Bytes written to it per second.
    pub written: Level,
    /// The share of the time in which the device was busy, 0 to 1.
    pub busy: Level,
    /// Whether it does not answer.
    #[serde(default)]
    pub is_stuck: bool,
}

/// The network, in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// What came in.
    pub received: Level,
    /// What went out.
    pub sent: Level,
}

/// A graphics processor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its number.
    pub index: u32,
    /// What it is.
    pub name: String,
    /// How busy it was, 0 to 1.
    pub used: Level,
    /// Its memory, in bytes.
    pub memory_total: u64,
    /// How much of it was used, in bytes.
    pub memory_used: Level,
}

/// The node's object mounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Objects {
    /// Bytes fetched from storage per second.
    pub fetched: Level,
    /// Bytes in the cache on disk.
    pub cached: Level,
    /// Bytes of blocks in memory.
    pub memory: Level,
    /// Reads answered per second, without those that the kernel answers.
    pub reads: Level,
}

/// What a task used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskUse {
    /// How many processors it kept busy.
    pub cpu: Level,
    /// The memory of its processes, in bytes.
    pub memory: Level,
}

/// All of it, over some time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The end of the time.
    pub time: Timestamp,
    /// How long it was.
    pub seconds: f64,
    /// The machine's processors.
    pub cpu: Cpu,
    /// The machine's memory.
    pub memory: Memory,
    /// Where the kernel measures it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// File systems.
    pub disks: Vec<Disk>,
    /// All network devices together.
    pub network: Network,
    /// Graphics processors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    /// Object mounts, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<Objects>,
    /// The task, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskUse>,
}

impl Sample {
    /// This one and one that follows it, as one. What only one of them knows is as that one says.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        let spans = (self.seconds, later.seconds);
        let level = |before: Level, after: Level| before.and(after, spans);
        let disks = join(
            self.disks,
            later.disks,
            |disk| disk.path.clone(),
            |before, after| Disk {
                used: level(before.used, after.used),
                read: level(before.read, after.read),
                written: level(before.written, after.written),
                busy: level(before.busy, after.busy),
                is_stuck: before.is_stuck || after.is_stuck,
                ..after
            },
        );
        let gpus = join(
            self.gpus,
            later.gpus,
            |gpu| gpu.index,
            |before, after| Gpu {
                used: level(before.used, after.used),
                memory_used: level(before.memory_used, after.memory_used),
                ..after
            },
        );
        Self {
            time: later.time,
            seconds: spans.0 + spans.1,
            cpu: Cpu { cores: later.cpu.cores, used: level(self.cpu.used, later.cpu.used) },
            memory: Memory { total: later.memory.total, used: level(self.memory.used, later.memory.used) },
            pressure: either(self.pressure, later.pressure, |before, after| Pressure {
                cpu: level(before.cpu, after.cpu),
                memory: level(before.memory, after.memory),
                io: level(before.io, after.io),
            }),
            disks,
            network: Network {
                received: level(self.network.received, later.network.received),
                sent: level(self.network.sent, later.network.sent),
            },
            gpus,
            objects: either(self.objects, later.objects, |before, after| Objects {
                fetched: level(before.fetched, after.fetched),
                cached: level(before.cached, after.cached),
                memory: level(before.memory, after.memory),
                reads: level(before.reads, after.reads),
            }),
            task: either(self.task, later.task, |before, after| TaskUse {
                cpu: level(before.cpu, after.cpu),
                memory: level(before.memory, after.memory),
            }),
        }
    }

    /// The disk with this role.
    pub fn disk(&self, role: Role) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.roles.contains(&role))
    }
}

fn either<T>(before: Option<T>, after: Option<T>, both: impl FnOnce(T, T) -> T) -> Option<T> {
    match (before, after) {
        (Some(before), Some(after)) => Some(both(before, after)),
        (before, after) => before.or(after),
    }
}

/// Puts together what has the same key, in the order of the later ones; what only the earlier have comes last.
fn join<T, K: PartialEq>(before: Vec<T>, after: Vec<T>, key: impl Fn(&T) -> K, both: impl Fn(T, T) -> T) -> Vec<T> {
    let mut before: Vec<Option<T>> = before.into_iter().map(Some).collect();
    let mut joined: Vec<T> = after
        .into_iter()
        .map(|after| {
            let same = before.iter_mut().find(|found| found.as_ref().is_some_and(|found| key(found) == key(&after)));
            match same.and_then(Option::take) {
                Some(before) => both(before, after),
                None => after,
            }
        })
        .collect();
    joined.extend(before.into_iter().flatten());
    joined
}

/// At most so many samples that cover a task of any length: when there are too many, neighbours become one.
#[derive(Debug, Clone, Default)]
pub struct Series {
    samples: Vec<Sample>,
}

impl Series {
    /// The most that are kept. A curve has fewer pixels.
    pub const MOST: usize = 720;

    /// Adds one that follows the others.
    pub fn push(&mut self, sample: Sample) {
        if self.samples.len() >= Self::MOST {
            let mut all = std::mem::take(&mut self.samples).into_iter();
            while let Some(first) = all.next() {
                self.samples.push(match all.next() {
                    Some(second) => first.and(second),
                    None => first,
                });
            }
        }
        self.samples.push(sample);
    }

    /// They, the first one first.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// All of them as one; none without any.
    pub fn whole(&self) -> Option<Sample> {
        self.samples.iter().cloned().reduce(Sample::and)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sample(second: i64, seconds: f64, cpu: f64) -> Sample {
        let disk = |path: &str, role, used| Disk {
            path: path.to_owned(),
            roles: vec![role],
            device: "vda".to_owned(),
            size: 40 << 30,
            used: Level::of(used),
            ..Disk::default()
        };
        Sample {
            time: Timestamp::from_second(1_700_000_000 + second).unwrap(),
            seconds,
            cpu: Cpu { cores: 4, used: Level::of(cpu) },
            memory: Memory { total: 8 << 30, used: Level::of(cpu * 1e9) },
            pressure: None,
            disks: vec![disk("/", Role::System, 1e9), disk("/data", Role::Data, cpu * 1e9)],
            network: Network::default(),
            gpus: Vec::new(),
            objects: None,
            task: Some(TaskUse { cpu: Level::of(cpu / 2.0), memory: Level::of(cpu * 5e8) }),
        }
    }

    #[test]
    fn means_are_of_the_time_and_peaks_of_all() {
        let both = sample(10, 10.0, 1.0).and(sample(40, 30.0, 3.0));
        assert_eq!((both.seconds, both.cpu.used), (40.0, Level { mean: 2.5, peak: 3.0 }));
        assert_eq!(both.disk(Role::Data).unwrap().used, Level { mean: 2.5e9, peak: 3e9 });
        assert_eq!(both.task.unwrap().cpu, Level { mean: 1.25, peak: 1.5 });
        assert_eq!(both.time.as_second(), 1_700_000_040);
    }

    #[test]
    fn what_comes_and_goes_is_kept() {
        let mut first = sample(5, 5.0, 1.0);
        first.pressure = Some(Pressure::default());
        first.gpus.push(Gpu { index: 1, used: Level::of(0.5), ..Gpu::default() });
        let mut second = sample(10, 5.0, 1.0);
        second.gpus.push(Gpu { index: 0, used: Level::of(1.0), ..Gpu::default() });
        second.disks.remove(0);
        let both = first.and(second);
        assert_eq!(both.gpus.iter().map(|gpu| gpu.index).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(both.disks.len(), 2);
        assert!(both.pressure.is_some());
    }

    proptest! {
        #[test]
        fn a_series_of_any_length_is_short_and_says_the_same(cpus in prop::collection::vec(0.0..4.0f64, 1..5000)) {
            let mut series = Series::default();
            for (number, cpu) in cpus.iter().enumerate() {
                series.push(sample(i64::try_from(number).unwrap(), 5.0, *cpu));
            }
            prop_assert!(series.samples().len() <= Series::MOST);
            let whole = series.whole().unwrap();
            let mean = cpus.iter().sum::<f64>() / cpus.len() as f64;
            let peak = cpus.iter().copied().fold(0.0, f64::max);
            prop_assert!((whole.cpu.used.mean - mean).abs() < 1e-6 && whole.cpu.used.peak == peak);
            prop_assert!((whole.seconds - 5.0 * cpus.len() as f64).abs() < 1e-6);
            prop_assert!(series.samples().windows(2).all(|pair| pair[0].time < pair[1].time));
        }
    }
}
