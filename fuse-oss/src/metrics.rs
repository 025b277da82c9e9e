//! What a server counts about itself: since when it started, for `status` and for whoever scrapes it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// So many bytes more.
    pub fn bytes(&self, len: usize) {
        self.add(u64::try_from(len).unwrap_or(u64::MAX));
    }

    /// How many there are.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper ends of the buckets of a [`Latencies`], in milliseconds; what took longer is in one more.
pub const BUCKETS_MS: [u64; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000];

/// How long something took, as a histogram.
#[derive(Debug, Default)]
pub struct Latencies {
    buckets: [Counter; BUCKETS_MS.len() + 1],
    micros: Counter,
}

impl Latencies {
    /// Notes one.
    pub fn record(&self, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_MS.iter().position(|end| millis < *end).unwrap_or(BUCKETS_MS.len());
        self.buckets[bucket].one();
        self.micros.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// How many fell into each bucket; the last is for what took longer than all of [`BUCKETS_MS`].
    pub fn counts(&self) -> [u64; BUCKETS_MS.len() + 1] {
        std::array::from_fn(|bucket| self.buckets[bucket].get())
    }

    /// All of it together, in microseconds.
    pub fn total_micros(&self) -> u64 {
        self.micros.get()
    }
}

/// Reads that one tier answered.
#[derive(Debug, Default)]
pub struct Served {
    /// How many.
    pub reads: Counter,
    /// How many bytes of them.
    pub bytes: Counter,
}

impl Served {
    /// Notes one.
    pub fn record(&self, len: usize) {
        self.reads.one();
        self.bytes.bytes(len);
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Reads that were answered from memory.
    pub from_memory: Served,
    /// Reads that were answered from the disk cache by this process; what the kernel reads there itself it does not tell.
    pub from_disk: Served,
    /// Reads that had to wait for the store, in whole or in part.
    pub from_store: Served,
    /// Files opened that the kernel reads without this process.
    pub opened_passthrough: Counter,
    /// Files opened that this process answers for.
    pub opened_cached: Counter,
    /// Requests for objects' bytes.
    pub gets: Counter,
    /// Bytes they brought.
    pub fetched: Counter,
    /// How long until their first byte came.
    pub get_latency: Latencies,
    /// Requests for listings and for single names.
    pub lookups: Counter,
    /// How long until these were answered.
    pub lookup_latency: Latencies,
    /// Bytes that were fetched before anybody asked for them.
    pub ahead: Counter,
    /// Bytes of these that were dropped from memory before anybody read them.
    pub ahead_wasted: Counter,
    /// Requests that were raced by a second one because they were slow.
    pub raced: Counter,
    /// How often the second one won.
    pub races_won: Counter,
    /// Bytes that were not written to the disk cache, because there was no room or the disk was too slow.
    pub not_kept: Counter,
    /// Times that something was evicted from the disk cache.
    pub evictions: Counter,
    /// Bytes that gave back.
    pub evicted: Counter,
    /// Pieces or whole objects that were found to be wrong and fetched again.
    pub corrupt: Counter,
    /// Objects that were replaced or deleted while they were shown.
    pub replaced: Counter,
    /// Reads, opens and lookups that failed because the store said no.
    pub failed_denied: Counter,
    /// ... because the object was gone or another one.
    pub failed_changed: Counter,
    /// ... because the store could not be reached or did not answer properly.
    pub failed_unavailable: Counter,
    /// ... for another reason.
    pub failed_other: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_in_the_bucket_that_ends_above_it() {
        let latencies = Latencies::default();
        for millis in [0, 1, 4, 60_000] {
            latencies.record(Duration::from_millis(millis));
        }
        let counts = latencies.counts();
        assert_eq!((counts[0], counts[1], counts[2], counts[BUCKETS_MS.len()]), (1, 1, 1, 1));
        assert_eq!(latencies.total_micros(), 60_005_000);
    }
}
