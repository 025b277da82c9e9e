//! Several threads that do one thing, and what the readers of the benchmark cost.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::anyhow;
use nix::sys::resource::{UsageWho, getrusage};

use crate::figures::float;

/// Processor time of all threads of [`together`] so far, in microseconds.
static SPENT: AtomicU64 = AtomicU64::new(0);

/// Runs `work` on this many threads and waits for all of them.
///
/// # Errors
/// The first error of any.
pub fn together(threads: usize, work: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let counted = |number| {
        let outcome = work(number);
        SPENT.fetch_add(micros(UsageWho::RUSAGE_THREAD), Ordering::Relaxed);
        outcome
    };
    let counted = &counted;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|number| scope.spawn(move || counted(number))).collect();
        let mut outcome = Ok(());
        for thread in all {
            let ended = thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of the benchmark panicked")));
            outcome = outcome.and(ended);
        }
        outcome
    })
}

/// Processor time, in seconds, that reading has cost so far: of this thread, of those of [`together`] and of processes that have
/// ended, the kernel's part included. The store's threads are not in it. To be called from the main thread.
pub fn readers_cpu() -> f64 {
    let own = micros(UsageWho::RUSAGE_THREAD) + micros(UsageWho::RUSAGE_CHILDREN);
    float(own + SPENT.load(Ordering::Relaxed)) / 1e6
}

fn micros(who: UsageWho) -> u64 {
    let Ok(usage) = getrusage(who) else { return 0 };
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec()).unwrap_or(0))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_spend_is_known_when_they_have_ended() {
        let before = readers_cpu();
        together(2, |_| {
            let begun = std::time::Instant::now();
            while begun.elapsed().as_millis() < 50 {
                std::hint::black_box(fastrand::u64(..));
            }
            Ok(())
        })
        .unwrap();
        assert!(readers_cpu() > before);
        assert!(together(3, |number| if number == 1 { Err(anyhow!("no")) } else { Ok(()) }).is_err());
    }
}
