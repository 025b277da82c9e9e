//! The counters as plain numbers, as `status --json` shows them.

use serde::{Deserialize, Serialize};

use super::{BUCKETS_MS, Latencies, Metrics, Served};

/// All of [`Metrics`] at one moment, under the same names. Counts are since the server started; what is not named otherwise is a
/// number of events.
///
/// A field that is missing is 0, so that a client can ask a server of an older release.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Reads answered from memory.
    pub from_memory: ServedSnapshot,
    /// Reads answered from the disk cache by the server.
    pub from_disk: ServedSnapshot,
    /// Reads that had to wait for the store, in whole or in part.
    pub from_store: ServedSnapshot,
    /// The part of all these reads that did not have to wait for the store, 0 to 1; absent before the first.
    pub hit_ratio: Option<f64>,
    /// Files opened that the kernel reads without the server.
    pub opened_passthrough: u64,
    /// Files opened that the server answers for.
    pub opened_cached: u64,
    /// Requests for objects' bytes.
    pub gets: u64,
    /// Bytes they brought.
    pub fetched: u64,
    /// How long until their first byte could be had.
    pub get_latency: LatencySnapshot,
    /// Requests for listings and single names.
    pub lookups: u64,
    /// How long until they were answered.
    pub lookup_latency: LatencySnapshot,
    /// Bytes fetched before anybody asked for them.
    pub ahead: u64,
    /// Bytes of these that were dropped before anybody read them.
    pub ahead_wasted: u64,
    /// Requests raced by a second one.
    pub raced: u64,
    /// Races that the second one won.
    pub races_won: u64,
    /// Bytes not written to the disk cache, for want of room or speed.
    pub not_kept: u64,
    /// Evictions from the disk cache.
    pub evictions: u64,
    /// Bytes they gave back.
    pub evicted: u64,
    /// Pieces or whole objects found to be wrong.
    pub corrupt: u64,
    /// Objects replaced or deleted while they were shown.
    pub replaced: u64,
    /// Requests that failed because the store said no.
    pub failed_denied: u64,
    /// ... because the object was gone or another one.
    pub failed_changed: u64,
    /// ... because the store could not be reached or did not answer properly.
    pub failed_unavailable: u64,
    /// ... for another reason.
    pub failed_other: u64,
}

/// Reads that one tier answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServedSnapshot {
    /// How many.
    pub reads: u64,
    /// How many bytes of them.
    pub bytes: u64,
}

/// How long something took, as a histogram.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencySnapshot {
    /// How many were measured.
    pub count: u64,
    /// All of them together, in microseconds.
    pub total_micros: u64,
    /// What half of them took at most, in milliseconds, estimated from the buckets; absent when there is nothing.
    pub p50_ms: Option<f64>,
    /// What 99 of 100 took at most.
    pub p99_ms: Option<f64>,
    /// How many took more than one bucket's end and at most the next one's, shortest first.
    pub buckets: Vec<Bucket>,
}

/// A bucket of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its upper end in milliseconds, inclusive; absent for the last, which has none.
    pub up_to_ms: Option<u64>,
    /// How many fell into it.
    pub count: u64,
}

impl Metrics {
    /// The numbers as they are now.
    pub fn snapshot(&self) -> Snapshot {
        // Named one by one, so that a counter that is added and not shown does not compile.
        let Self {
            from_memory,
            from_disk,
            from_store,
            opened_passthrough,
            opened_cached,
            gets,
            fetched,
            get_latency,
            lookups,
            lookup_latency,
            ahead,
            ahead_wasted,
            raced,
            races_won,
            not_kept,
            evictions,
            evicted,
            corrupt,
            replaced,
            failed_denied,
            failed_changed,
            failed_unavailable,
            failed_other,
        } = self;
        let (from_memory, from_disk, from_store) = (from_memory.into(), from_disk.into(), from_store.into());
        Snapshot {
            from_memory,
            from_disk,
            from_store,
            hit_ratio: hit_ratio(from_memory.reads.saturating_add(from_disk.reads), from_store.reads),
            opened_passthrough: opened_passthrough.get(),
            opened_cached: opened_cached.get(),
            gets: gets.get(),
            fetched: fetched.get(),
            get_latency: get_latency.into(),
            lookups: lookups.get(),
            lookup_latency: lookup_latency.into(),
            ahead: ahead.get(),
            ahead_wasted: ahead_wasted.get(),
            raced: raced.get(),
            races_won: races_won.get(),
            not_kept: not_kept.get(),
            evictions: evictions.get(),
            evicted: evicted.get(),
            corrupt: corrupt.get(),
            replaced: replaced.get(),
            failed_denied: failed_denied.get(),
            failed_changed: failed_changed.get(),
            failed_unavailable: failed_unavailable.get(),
            failed_other: failed_other.get(),
        }
    }
}

impl From<&Served> for ServedSnapshot {
    fn from(served: &Served) -> Self {
        Self { reads: served.reads.get(), bytes: served.bytes.get() }
    }
}

impl From<&Latencies> for LatencySnapshot {
    fn from(latencies: &Latencies) -> Self {
        let ends = BUCKETS_MS.iter().copied().map(Some).chain([None]);
        let buckets = ends.zip(latencies.counts()).map(|(up_to_ms, count)| Bucket { up_to_ms, count });
        Self::of(buckets.collect(), latencies.total_micros())
    }
}

impl LatencySnapshot {
    /// `count` is made from the buckets and not counted apart, so that the two agree while others are counting.
    fn of(buckets: Vec<Bucket>, total_micros: u64) -> Self {
        let count = buckets.iter().map(|bucket| bucket.count).fold(0, u64::saturating_add);
        let (p50_ms, p99_ms) = (quantile(&buckets, 0.5), quantile(&buckets, 0.99));
        Self { count, total_micros, p50_ms, p99_ms, buckets }
    }
}

fn hit_ratio(hits: u64, misses: u64) -> Option<f64> {
    let all = hits.saturating_add(misses);
    (all > 0).then(|| hits as f64 / all as f64)
}

/// What the part `q` of all took at most, in milliseconds, taking a bucket's to be spread evenly over it, as Prometheus'
/// `histogram_quantile` does. Within the last bucket, which has no end, all that can be said is where it begins.
fn quantile(buckets: &[Bucket], q: f64) -> Option<f64> {
    let count: f64 = buckets.iter().map(|bucket| bucket.count as f64).sum();
    if count <= 0.0 {
        return None;
    }
    let rank = q * count;
    let (mut below, mut start) = (0.0, 0.0);
    for Bucket { up_to_ms, count } in buckets {
        let Some(end) = up_to_ms.map(|end| end as f64) else { break };
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            return Some(start + (end - start) * (rank - below) / count);
        }
        below += count;
        start = end;
    }
    Some(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn the_numbers_are_those_of_the_counters() {
        let metrics = Metrics::default();
        assert_eq!(metrics.snapshot().hit_ratio, None);
        assert_eq!(metrics.snapshot().get_latency.p50_ms, None);
        metrics.from_memory.record(100);
        metrics.from_disk.record(10);
        metrics.from_disk.record(10);
        metrics.from_store.record(1);
        metrics.get_latency.record(Duration::from_millis(7));
        metrics.failed_denied.one();
        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.from_disk, ServedSnapshot { reads: 2, bytes: 20 });
        assert_eq!(snapshot.hit_ratio, Some(0.75));
        assert_eq!((snapshot.get_latency.count, snapshot.get_latency.total_micros), (1, 7000));
        assert_eq!(snapshot.get_latency.buckets[3], Bucket { up_to_ms: Some(10), count: 1 });
        assert_eq!(snapshot.get_latency.buckets.last().unwrap().up_to_ms, None);
        assert_eq!((snapshot.failed_denied, snapshot.failed_other), (1, 0));
    }

    #[test]
    fn a_snapshot_survives_the_wire_and_an_older_server_sends_less() {
        let metrics = Metrics::default();
        metrics.from_memory.record(3);
        metrics.lookup_latency.record(Duration::from_secs(40));
        let snapshot = metrics.snapshot();
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
        assert_eq!(serde_json::from_str::<Snapshot>("{}").unwrap(), Snapshot::default());
    }

    #[test]
    fn quantiles_are_between_the_ends_of_their_bucket() {
        let latencies = Latencies::default();
        for _ in 0..98 {
            latencies.record(Duration::from_millis(15));
        }
        latencies.record(Duration::from_millis(800));
        latencies.record(Duration::from_secs(100));
        let snapshot = LatencySnapshot::from(&latencies);
        assert!((10.0..20.0).contains(&snapshot.p50_ms.unwrap()), "{snapshot:?}");
        assert!((500.0..=1000.0).contains(&snapshot.p99_ms.unwrap()), "{snapshot:?}");
        // Nothing but the beginning of the last bucket can be told.
        assert_eq!(quantile(&snapshot.buckets, 1.0), Some(30_000.0));
    }

    proptest! {
        #[test]
        fn quantiles_never_fall_and_stay_within_the_buckets(counts in prop::array::uniform15(0_u64..1000)) {
            let ends = BUCKETS_MS.iter().copied().map(Some).chain([None]);
            let buckets: Vec<Bucket> =
                ends.zip(counts).map(|(up_to_ms, count)| Bucket { up_to_ms, count }).collect();
            let mut before = 0.0;
            for percent in 0..=100 {
                match quantile(&buckets, f64::from(percent) / 100.0) {
                    None => prop_assert!(counts.iter().all(|count| *count == 0)),
                    Some(quantile) => {
                        prop_assert!(before <= quantile && quantile <= 30_000.0, "{before} {quantile}");
                        before = quantile;
                    }
                }
            }
        }
    }
}
