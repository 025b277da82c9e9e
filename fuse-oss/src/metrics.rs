//! What a server counts about itself since it started, for `status` and for whoever scrapes it.
//!
//! Counting is in two places. [`Observed`](crate::observed::Observed) stands between the mounts and every store and counts all
//! requests with their bytes, latencies and failures, whoever makes them. The read path counts what only it knows: which tier
//! answered a read, what was fetched ahead, what was kept and evicted. Counters are relaxed atomics: adding to one costs
//! nanoseconds and orders nothing, so two of them read at once may disagree by what was under way.
//!
//! What nobody here can count: reads that the kernel answers from its own page cache, and all reads of a file that it reads
//! without this process (passthrough). A warm mount that looks idle is a fast one.
//!
//! From the counters to people: [`Metrics::snapshot`] gives plain numbers ([`Snapshot`]), which travel in
//! [`Status`](crate::Status) to `fuse-oss status [--json]`; [`exposition`] makes them into Prometheus' text format, which the
//! server hands out on a socket of its own ([`server`](crate::server)).

pub mod exposition;
mod snapshot;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use snapshot::{Bucket, LatencySnapshot, ServedSnapshot, Snapshot};

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

/// Upper ends of the buckets of a [`Latencies`], in milliseconds and inclusive, as Prometheus has them; what took longer is in
/// one more.
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
        let bucket = BUCKETS_MS.iter().position(|end| took <= Duration::from_millis(*end)).unwrap_or(BUCKETS_MS.len());
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
    /// Requests for objects' bytes. One counts once, however often it had to be sent again, and also when it was given up.
    pub gets: Counter,
    /// Bytes they brought, those included that were of no use because the rest did not come.
    pub fetched: Counter,
    /// How long until their first byte could be had, retries included; of whole objects up to 1 MiB, which the client verifies
    /// first, until all of it could. Failed ones are not in it.
    pub get_latency: Latencies,
    /// Requests for listings (each page is one) and for single names.
    pub lookups: Counter,
    /// How long until these were answered, retries included. "There is no such object" is an answer, a failure is not.
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
    /// Requests that failed, after all their retries, because the store said no: its credentials or rights are wrong.
    pub failed_denied: Counter,
    /// ... because the object was gone or another one.
    pub failed_changed: Counter,
    /// ... because the store could not be reached or did not answer properly.
    pub failed_unavailable: Counter,
    /// ... for another reason.
    pub failed_other: Counter,
}

impl Metrics {
    /// Counts a request that failed for good.
    pub fn failed(&self, kind: &oss::ErrorKind) {
        use oss::ErrorKind as Kind;
        let counter = match kind {
            Kind::Denied | Kind::BadCredentials => &self.failed_denied,
            Kind::NotFound | Kind::Changed => &self.failed_changed,
            Kind::Unavailable | Kind::Throttled { .. } | Kind::Corrupt => &self.failed_unavailable,
            _ => &self.failed_other,
        };
        counter.one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_in_the_bucket_that_ends_at_it_or_above() {
        let latencies = Latencies::default();
        for micros in [0, 1000, 1001, 4000, 30_000_000, 60_000_000] {
            latencies.record(Duration::from_micros(micros));
        }
        let last = BUCKETS_MS.len();
        let mut expected = [0; BUCKETS_MS.len() + 1];
        (expected[0], expected[1], expected[2], expected[last - 1], expected[last]) = (2, 1, 1, 1, 1);
        assert_eq!(latencies.counts(), expected);
        assert_eq!(latencies.total_micros(), 90_006_001);
    }

    #[test]
    fn a_failure_is_counted_as_what_it_means() {
        use oss::ErrorKind as Kind;
        let metrics = Metrics::default();
        for kind in [
            Kind::Denied,
            Kind::BadCredentials,
            Kind::NotFound,
            Kind::Changed,
            Kind::Unavailable,
            Kind::Throttled { retry_after: None },
            Kind::Corrupt,
            Kind::NoSuchBucket,
            Kind::Archived,
        ] {
            metrics.failed(&kind);
        }
        let counted =
            [&metrics.failed_denied, &metrics.failed_changed, &metrics.failed_unavailable, &metrics.failed_other];
        assert_eq!(counted.map(Counter::get), [2, 2, 3, 2]);
    }
}
