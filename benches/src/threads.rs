//! Several threads that do one thing.

use anyhow::anyhow;

/// Runs `work` on this many threads and waits for all of them.
///
/// # Errors
/// The first error of any.
pub fn together(threads: usize, work: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let all: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(number))).collect();
        let mut outcome = Ok(());
        for thread in all {
            let ended = thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of the benchmark panicked")));
            outcome = outcome.and(ended);
        }
        outcome
    })
}
