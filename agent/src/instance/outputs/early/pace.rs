//! How much of the machine sending ahead of time may take, and what keeps it to that.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fuse_oss::ByteSize;

/// Parts of outputs that travel while the task runs: whether, and at what cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EarlyUpload {
    /// Whether anything is sent before the task has ended.
    pub enabled: bool,
    /// Bytes a second, on average.
    pub bandwidth: u64,
    /// Processors: 0.1 is a tenth of one.
    pub cpu: f64,
    /// How long a file must not have been changed.
    pub quiet: Duration,
    /// The least length of a file, in bytes.
    pub from: u64,
}

impl Default for EarlyUpload {
    fn default() -> Self {
        Self { enabled: true, bandwidth: 64 << 20, cpu: 0.1, quiet: Duration::from_secs(5), from: 16 << 20 }
    }
}

/// Why some words do not say how outputs are sent ahead of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; {}", Self::REMEDY)]
pub struct EarlyUploadError {
    /// What is wrong, with the word.
    pub cause: String,
}

impl EarlyUploadError {
    /// What to write in its place.
    pub const REMEDY: &str = "write on, off, or some of bandwidth=64MiB,cpu=0.1,quiet=5s,from=16MiB";
}

impl FromStr for EarlyUpload {
    type Err = EarlyUploadError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut early = Self::default();
        match text.trim() {
            "on" => return Ok(early),
            "off" => return Ok(Self { enabled: false, ..early }),
            _ => {}
        }
        for word in text.split(',').map(str::trim) {
            let bad = |why: &str| EarlyUploadError { cause: format!("{word:?} {why}") };
            let (name, value) = word.split_once('=').ok_or_else(|| bad("is not name=value"))?;
            let size = || value.trim().parse::<ByteSize>().map(ByteSize::bytes).map_err(|_| bad("is not a size"));
            match name.trim() {
                // Slower than that no part would arrive before its request is given up.
                "bandwidth" => {
                    early.bandwidth = size()
                        .ok()
                        .filter(|rate| *rate >= 64 << 10)
                        .ok_or_else(|| bad("is not a size of 64KiB or more"))?
                }
                "from" => early.from = size()?.max(1),
                "cpu" => {
                    let cpu: Option<f64> = value.trim().parse().ok().filter(|cpu| (0.01..=64.0).contains(cpu));
                    early.cpu = cpu.ok_or_else(|| bad("is not a number of processors from 0.01 to 64"))?;
                }
                "quiet" => {
                    let seconds = value.trim().strip_suffix('s').and_then(|number| number.parse().ok());
                    let seconds = seconds.filter(|seconds: &u64| (1..=3600).contains(seconds));
                    early.quiet = Duration::from_secs(seconds.ok_or_else(|| bad("is not a time from 1s to 3600s"))?);
                }
                _ => return Err(bad("is unknown")),
            }
        }
        Ok(early)
    }
}

impl fmt::Display for EarlyUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.enabled {
            return f.write_str("off");
        }
        let (bandwidth, from) = (ByteSize::new(self.bandwidth), ByteSize::new(self.from));
        write!(f, "bandwidth={bandwidth},cpu={},quiet={}s,from={from}", self.cpu, self.quiet.as_secs())
    }
}

impl EarlyUpload {
    /// How long to rest after `bytes` have travelled in `elapsed` and cost `cpu` of processor time. Pure.
    pub(super) fn rest(&self, bytes: u64, elapsed: Duration, cpu: Duration) -> Duration {
        /// However slow a machine is, it goes on now and then.
        const MOST: Duration = Duration::from_secs(120);
        #[expect(clippy::cast_precision_loss, reason = "a pause need not be exact")]
        let by_wire = bytes as f64 / self.bandwidth.max(1) as f64;
        let by_cpu = cpu.as_secs_f64() / self.cpu;
        let due = by_wire.max(by_cpu).min(MOST.as_secs_f64());
        Duration::from_secs_f64(due).saturating_sub(elapsed)
    }
}

/// The processor time of the threads that say that they belong to it.
#[derive(Debug, Clone, Default)]
pub(super) struct Threads(Arc<Mutex<Vec<(libc::clockid_t, Duration)>>>);

impl Threads {
    /// The calling thread belongs to it from now on, and gives way to everybody else: the lowest priority for the processor, and for
    /// disks whatever others leave idle (where the disk's scheduler knows priorities).
    pub(super) fn join(&self) {
        let mut clock: libc::clockid_t = 0;
        // SAFETY: the thread is the calling one, and the clock's id is written to a place that is there.
        let failed = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
        if failed == 0 {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push((clock, Duration::ZERO));
        }
        const WHO_PROCESS: libc::c_int = 1;
        const CLASS_IDLE: libc::c_int = 3 << 13;
        // SAFETY: plain numbers; 0 is the calling thread, whose priorities nothing else depends on. A refusal changes nothing.
        unsafe {
            libc::setpriority(libc::PRIO_PROCESS, 0, 19);
            libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE);
        }
    }

    /// What they have used since they joined, those that have ended included as far as was seen.
    pub(super) fn used(&self) -> Duration {
        let mut clocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (clock, last) in clocks.iter_mut() {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the time is written to a place that is there; the clock of a thread that has ended is an error and nothing else.
            if unsafe { libc::clock_gettime(*clock, &mut time) } == 0 {
                let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
                *last = (*last).max(Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0)));
            }
        }
        clocks.iter().map(|(_, used)| *used).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_read_as_they_are_shown() {
        let default = EarlyUpload::default();
        assert_eq!("on".parse(), Ok(default));
        assert!(!"off".parse::<EarlyUpload>().unwrap().enabled);
        let some: EarlyUpload = "quiet=1s, bandwidth=1MiB,cpu=0.5,from=1MiB".parse().unwrap();
        assert_eq!((some.quiet, some.bandwidth, some.cpu, some.from), (Duration::from_secs(1), 1 << 20, 0.5, 1 << 20));
        for early in [default, some, EarlyUpload { enabled: false, ..default }] {
            assert_eq!(early.to_string().parse(), Ok(early), "{early}");
        }
        for bad in ["", "yes", "bandwidth", "bandwidth=fast", "bandwidth=1", "cpu=0", "cpu=nan", "quiet=5", "speed=1"] {
            assert!(bad.parse::<EarlyUpload>().is_err(), "{bad}");
        }
    }

    #[test]
    fn threads_are_counted_after_their_end_too() {
        let threads = Threads::default();
        let joined = threads.clone();
        let worker = std::thread::spawn(move || {
            joined.join();
            let begun = std::time::Instant::now();
            while joined.used() < Duration::from_millis(5) && begun.elapsed() < Duration::from_secs(60) {}
        });
        worker.join().unwrap();
        assert!(threads.used() >= Duration::from_millis(5));
    }

    proptest! {
        #[test]
        fn neither_budget_is_exceeded(bytes in 0_u64..1 << 30, elapsed in 0_u64..20_000, cpu in 0_u64..2_000) {
            let (elapsed, cpu) = (Duration::from_millis(elapsed), Duration::from_millis(cpu));
            let early = EarlyUpload::default();
            let whole = (elapsed + early.rest(bytes, elapsed, cpu)).as_secs_f64() + 1e-6;
            #[expect(clippy::cast_precision_loss, reason = "far below where it matters")]
            let bytes = bytes as f64;
            prop_assert!(bytes / whole <= 67_108_864.0 * 1.001 || bytes == 0.0);
            prop_assert!(cpu.as_secs_f64() / whole <= 0.1001);
        }
    }
}
