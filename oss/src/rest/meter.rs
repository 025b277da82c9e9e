//! How fast the downloads of a bucket go, so that one that hardly moves can be told from a line that is slow for all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::http::STALL_RATE;

/// Shared by all downloads of a bucket.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes: AtomicU64,
    streams: AtomicU64,
}

impl Meter {
    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// One download's share, over a window of waiting.
#[derive(Debug)]
pub(crate) struct Gauge {
    window: Duration,
    waited: Duration,
    own: u64,
    all_at_start: u64,
}

impl Gauge {
    /// Judges over windows of this length, counted while waiting for the store and not while the reader of the bytes is busy.
    pub(crate) fn new(meter: &Meter, window: Duration) -> Self {
        meter.streams.fetch_add(1, Ordering::Relaxed);
        let all_at_start = meter.bytes.load(Ordering::Relaxed);
        Self { window, waited: Duration::ZERO, own: 0, all_at_start }
    }

    /// Must be called once, when the download is over.
    pub(crate) fn close(&self, meter: &Meter) {
        meter.streams.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes in that `bytes` came after `waited`, and tells how the window that thereby ended went, if one did.
    pub(crate) fn record(&mut self, meter: &Meter, bytes: u64, waited: Duration) -> Option<Pace> {
        meter.add(bytes);
        self.own += bytes;
        self.waited += waited;
        if self.waited < self.window {
            return None;
        }
        let all = meter.bytes.load(Ordering::Relaxed);
        let others_bytes = all.saturating_sub(self.all_at_start).saturating_sub(self.own);
        let others = meter.streams.load(Ordering::Relaxed).saturating_sub(1);
        let pace = judge(self.own, others_bytes, others, self.waited);
        (self.waited, self.own, self.all_at_start) = (Duration::ZERO, 0, all);
        Some(pace)
    }
}

/// How a window went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Above the limit.
    Good,
    /// Below it, as for all others: the line is slow and another connection would not help.
    SlowForAll,
    /// Below it while others do better, or alone.
    Stalled,
}

fn judge(own: u64, others_bytes: u64, others: u64, waited: Duration) -> Pace {
    let floor = u64::try_from(u128::from(STALL_RATE) * waited.as_millis() / 1000).unwrap_or(u64::MAX);
    if own >= floor {
        return Pace::Good;
    }
    match others_bytes.checked_div(others) {
        Some(each) if each < floor => Pace::SlowForAll,
        _ => Pace::Stalled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_alone_is_a_stall_and_slow_with_all_is_a_slow_line() {
        let second = Duration::from_secs(1);
        assert_eq!(judge(STALL_RATE, 0, 0, second), Pace::Good);
        assert_eq!(judge(STALL_RATE - 1, 0, 0, second), Pace::Stalled);
        assert_eq!(judge(10, 3 * STALL_RATE * 50, 3, second), Pace::Stalled);
        assert_eq!(judge(10, 30, 3, second), Pace::SlowForAll);
    }

    #[test]
    fn a_window_counts_only_waiting() {
        let meter = Meter::default();
        let mut gauge = Gauge::new(&meter, Duration::from_secs(2));
        let other = Gauge::new(&meter, Duration::from_secs(2));
        assert_eq!(gauge.record(&meter, 100, Duration::from_secs(1)), None);
        meter.add(1 << 20);
        assert_eq!(gauge.record(&meter, 100, Duration::from_secs(1)), Some(Pace::Stalled));
        assert_eq!(gauge.record(&meter, 100, Duration::from_secs(2)), Some(Pace::SlowForAll));
        other.close(&meter);
        gauge.close(&meter);
        assert_eq!(meter.streams.load(Ordering::Relaxed), 0);
    }
}
