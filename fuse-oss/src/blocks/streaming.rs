//! Who reads ahead at present: they share the memory for it.
//!
//! Open files are no measure, because a program may keep hundreds open and read one. So whoever asks is counted once a second, and
//! the larger of this second's count and the last one's is how many there are.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many readers asked lately.
#[derive(Debug, Default)]
pub(super) struct Streaming {
    second: AtomicU64,
    now: AtomicUsize,
    before: AtomicUsize,
}

impl Streaming {
    /// Counts a reader in the second `now`, and says how many there are, itself included. `last` is when it asked last, kept by it.
    pub(super) fn count(&self, last: &AtomicU64, now: u64) -> usize {
        let shown = self.second.load(Ordering::Relaxed);
        if shown != now && self.second.compare_exchange(shown, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let before = self.now.swap(0, Ordering::Relaxed);
            self.before.store(if now == shown + 1 { before } else { 0 }, Ordering::Relaxed);
        }
        if last.swap(now, Ordering::Relaxed) != now {
            self.now.fetch_add(1, Ordering::Relaxed);
        }
        self.now.load(Ordering::Relaxed).max(self.before.load(Ordering::Relaxed)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_in_this_second_or_the_last_is_counted_once() {
        let streaming = Streaming::default();
        let readers: Vec<AtomicU64> = (0..5).map(|_| AtomicU64::new(0)).collect();
        for reader in readers.iter().chain(&readers) {
            streaming.count(reader, 100);
        }
        assert_eq!(streaming.count(&readers[0], 100), 5);
        assert_eq!(streaming.count(&readers[0], 101), 5);
        assert_eq!(streaming.count(&readers[0], 102), 1);
        assert_eq!(streaming.count(&readers[1], 110), 1);
    }
}
