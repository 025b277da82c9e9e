//! How quick a store usually is: from that follow how much a random read should bring along, and when a request is so slow beside
//! its peers that a second one is worth sending.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::geometry::GRANULE;

/// Requests that are remembered.
const SAMPLES: usize = 64;

/// The figures are made anew after so many requests.
const EVERY: u64 = 8;

/// Nothing is raced before this has passed, however quick the others are: a second request is not free.
const SOONEST: Duration = Duration::from_millis(50);

/// One request in this many may be raced.
const RACE_ONE_IN: u64 = 20;

/// Races that may be saved up.
const RACES_SAVED: u64 = 8;

/// The most that a random read brings along, in bytes.
const LARGEST_UNIT: u64 = 128 << 10;

/// What is assumed of a connection before it is known, in bytes per second.
const TYPICAL_RATE: u64 = 100 << 20;

/// What is known of a store's speed. One per store.
#[derive(Debug)]
pub struct Peers {
    samples: Mutex<Samples>,
    /// Microseconds until the first byte: in the middle, and for nineteen of twenty.
    typical: AtomicU64,
    slow: AtomicU64,
    /// Bytes per second of one connection.
    rate: AtomicU64,
    /// Races that may be run, in parts of [`RACE_ONE_IN`].
    races: AtomicU64,
}

#[derive(Debug)]
struct Samples {
    micros: [u64; SAMPLES],
    count: u64,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            samples: Mutex::new(Samples { micros: [0; SAMPLES], count: 0 }),
            typical: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            races: AtomicU64::new(RACE_ONE_IN),
        }
    }
}

impl Peers {
    /// Notes how long a request waited for its first byte.
    pub fn answered(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(samples.count % 64).expect("below 64");
        samples.micros[at] = micros;
        samples.count += 1;
        // The first figures are wanted soon: they decide how a new mount begins.
        if samples.count < EVERY || samples.count.is_multiple_of(EVERY) {
            let known = usize::try_from(samples.count).unwrap_or(SAMPLES).min(SAMPLES);
            let mut sorted = samples.micros;
            let sorted = &mut sorted[..known];
            sorted.sort_unstable();
            self.typical.store(sorted[known / 2], Ordering::Relaxed);
            if samples.count >= EVERY {
                self.slow.store(sorted[known * 19 / 20], Ordering::Relaxed);
            }
        }
        drop(samples);
        let _ = self.races.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| {
            (saved < RACES_SAVED * RACE_ONE_IN).then_some(saved + 1)
        });
    }

    /// Notes how long a body of some length took.
    pub fn carried(&self, bytes: u64, took: Duration) {
        if bytes < LARGEST_UNIT {
            return;
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let rate = bytes.saturating_mul(1_000_000) / micros;
        let before = self.rate.load(Ordering::Relaxed);
        let smoothed = if before == 0 { rate } else { before - before / 8 + rate / 8 };
        self.rate.store(smoothed, Ordering::Relaxed);
    }

    /// How long to wait for a first byte before a second request is worth it; none as long as too little is known.
    pub fn slow_after(&self) -> Option<Duration> {
        let (typical, slow) = (self.typical.load(Ordering::Relaxed), self.slow.load(Ordering::Relaxed));
        (slow > 0).then(|| Duration::from_micros((4 * typical).max(2 * slow)).max(SOONEST))
    }

    /// How long `bytes` should take at most on a connection like the others.
    pub fn slow_body(&self, bytes: u64) -> Option<Duration> {
        let rate = self.rate.load(Ordering::Relaxed);
        let micros = bytes.saturating_mul(1_000_000).checked_div(rate)?;
        Some(Duration::from_micros(5 * micros) + self.slow_after()?)
    }

    /// How long a request usually takes until its first byte comes; nothing as long as too little is known.
    pub fn latency(&self) -> Duration {
        Duration::from_micros(self.typical.load(Ordering::Relaxed))
    }

    /// Asks for leave to race a request; one in twenty may be.
    pub fn may_race(&self) -> bool {
        self.races.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| saved.checked_sub(RACE_ONE_IN)).is_ok()
    }

    /// How much one random read brings along, in bytes, a power of two: what costs about a sixteenth of the time that the request
    /// takes anyway. On a store next door that is a granule, on one 20 ms away 64 KiB.
    pub fn unit(&self) -> u64 {
        let rate = match self.rate.load(Ordering::Relaxed) {
            0 => TYPICAL_RATE,
            rate => rate,
        };
        let worth = self.typical.load(Ordering::Relaxed).saturating_mul(rate) / 1_000_000 / 16;
        let power = worth.clamp(GRANULE, LARGEST_UNIT);
        1 << power.ilog2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(count: usize, took: Duration) -> Peers {
        let peers = Peers::default();
        (0..count).for_each(|_| peers.answered(took));
        peers
    }

    #[test]
    fn a_distant_store_makes_random_reads_larger() {
        assert_eq!(Peers::default().unit(), GRANULE);
        assert_eq!(after(64, Duration::from_micros(150)).unit(), GRANULE);
        let far = after(64, Duration::from_millis(20));
        assert_eq!(far.unit(), LARGEST_UNIT);
        (0..64).for_each(|_| far.carried(8 << 20, Duration::from_millis(93)));
        assert_eq!(far.unit(), 64 << 10);
    }

    #[test]
    fn slow_is_slow_beside_the_others() {
        assert_eq!(after(7, Duration::from_millis(20)).slow_after(), None);
        assert_eq!(after(8, Duration::from_millis(20)).slow_after(), Some(Duration::from_millis(80)));
        assert_eq!(after(8, Duration::from_micros(100)).slow_after(), Some(SOONEST));
        assert_eq!(after(8, Duration::from_millis(20)).slow_body(1), None);
    }

    #[test]
    fn one_in_twenty_may_be_raced() {
        let peers = Peers::default();
        assert!(peers.may_race());
        assert!(!peers.may_race());
        (0..20).for_each(|_| peers.answered(Duration::from_millis(1)));
        assert!(peers.may_race());
        assert!(!peers.may_race());
        (0..10_000).for_each(|_| peers.answered(Duration::from_millis(1)));
        assert_eq!((0..100).filter(|_| peers.may_race()).count(), 8);
    }
}
