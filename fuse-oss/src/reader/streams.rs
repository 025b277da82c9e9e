//! Who reads from front to back, and how far ahead of him to fetch. Pure: places and times of reads go in, advice comes out.
//!
//! A file is read by several at once more often than one would think: a sorted merge of a file's own chunks, a viewer beside a
//! scanner. So each open file has a few *streams*, and a read belongs to the stream it continues. One that continues none
//! begins a new one, and fetches no more than it asks for until somebody reads on from there: random readers pay for what they
//! read.
//!
//! How far ahead. While its reader has to wait, a stream's window grows fourfold at a time, but never beyond eight times what was
//! read in one go, nor beyond the reader's share of the memory. After each growth the rate is compared with the one before: when it has
//! not become a tenth better, the network was not what held the reader up, and the window goes back.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::blocks::LONGEST;
use crate::geometry::{BLOCK, widened};

/// Streams per open file.
const STREAMS: usize = 4;

/// Reads at least this long come from the kernel's own reading ahead: somebody reads on, and several may be under way at once, out of
/// order. In bytes.
const KERNEL_AHEAD: u64 = 128 << 10;

/// How far out of order they come, in bytes.
const SLACK: u64 = 4 << 20;

/// How far a small read may skip and still continue a stream, in bytes.
const SKIP: u64 = 64 << 10;

/// The first window, in bytes; more where the store is far away.
const FIRST_WINDOW: u64 = 8 << 20;

/// The largest window, in bytes: what 32 connections have under way to a store 20 ms away. More would only be more memory.
const LARGEST_WINDOW: u64 = 128 << 20;

/// What a store may be expected to bring per second to one reader, for the first window; in bytes.
const EXPECTED_RATE: u64 = 1 << 30;

/// A store whose first byte takes this long is a distant one.
const DISTANT: Duration = Duration::from_millis(5);

/// Windows that go by before a growth that did not pay is tried again.
const HOLD: u32 = 32;

/// What the outside sets.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The object's length in bytes.
    pub size: u64,
    /// The most that one reader may have ahead of it, in bytes.
    pub ahead: u64,
    /// What a random read brings along, in bytes; a power of two.
    pub unit: u64,
    /// How long a request takes until its first byte comes.
    pub latency: Duration,
}

/// What to do about a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// What to fetch with it if it has to be fetched; covers it.
    pub along: Range<u64>,
    /// What to fetch in advance.
    pub ahead: Range<u64>,
    /// How long each request for that should be, in bytes.
    pub request: u64,
}

/// The streams of one open file.
#[derive(Debug, Default)]
pub struct Streams {
    streams: Vec<Stream>,
    reads: u64,
}

#[derive(Debug)]
struct Stream {
    /// The furthest byte that was read.
    reached: u64,
    /// The first byte that was not asked for in advance.
    frontier: u64,
    /// Bytes to be ahead, at present.
    window: u64,
    /// Bytes read in one go.
    run: u64,
    /// Reads in one go.
    reads: u64,
    /// The number of the read that came last.
    last: u64,
    pace: Pace,
}

/// What growing has brought so far.
#[derive(Debug)]
struct Pace {
    since: Instant,
    bytes: u64,
    stalled: bool,
    /// Bytes per second before the last growth.
    before: Option<f64>,
    hold: u32,
}

impl Streams {
    /// Notes a read of `range`, which is within the object and not empty; `stalled` says that its bytes were not at hand.
    pub fn on_read(&mut self, range: &Range<u64>, stalled: bool, now: Instant, limits: &Limits) -> Advice {
        self.reads += 1;
        let len = range.end - range.start;
        let found = self.streams.iter_mut().filter(|stream| stream.continues(range)).max_by_key(|stream| stream.last);
        let Some(stream) = found else {
            self.begin(range, now);
            let along = if len < limits.unit {
                range.start / limits.unit * limits.unit..range.end.next_multiple_of(limits.unit).min(limits.size)
            } else {
                widened(range, limits.size)
            };
            return Advice { along, ahead: 0..0, request: BLOCK };
        };
        stream.last = self.reads;
        stream.advance(range, stalled, now, limits);
        let ahead = stream.ask(limits);
        Advice { along: widened(range, limits.size), ahead, request: stream.request(limits) }
    }

    fn begin(&mut self, range: &Range<u64>, now: Instant) {
        let pace = Pace { since: now, bytes: 0, stalled: false, before: None, hold: 0 };
        let len = range.end - range.start;
        let stream =
            Stream { reached: range.end, frontier: range.end, window: 0, run: len, reads: 1, last: self.reads, pace };
        if self.streams.len() < STREAMS {
            return self.streams.push(stream);
        }
        if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.last) {
            *oldest = stream;
        }
    }
}

impl Stream {
    fn continues(&self, range: &Range<u64>) -> bool {
        let len = range.end - range.start;
        if len >= KERNEL_AHEAD {
            // Going by the read's length alone would take a random reader of large pieces for somebody who reads on.
            let slack = if self.reads > 2 { SLACK } else { 0 };
            return range.start <= self.reached + slack && range.end + slack >= self.reached.max(len);
        }
        range.start <= self.reached + SKIP
            && range.end + SKIP / 4 > self.reached
            && range.start + len + SKIP / 4 > self.reached
    }

    fn advance(&mut self, range: &Range<u64>, stalled: bool, now: Instant, limits: &Limits) {
        let progress = range.end.saturating_sub(self.reached);
        self.reached = self.reached.max(range.end);
        self.frontier = self.frontier.max(self.reached);
        self.run += progress;
        self.reads += 1;
        self.pace.bytes += progress;
        self.pace.stalled |= stalled;
        let most = limits.ahead.min(LARGEST_WINDOW).min(8 * self.run);
        if self.window == 0 {
            if stalled || self.run >= BLOCK {
                let far = u64::try_from(limits.latency.as_micros())
                    .unwrap_or(u64::MAX)
                    .saturating_mul(EXPECTED_RATE / 1_000_000);
                self.window = FIRST_WINDOW.max(far).min(most);
                self.pace = Pace { since: now, bytes: 0, stalled: false, before: None, hold: 0 };
            }
            return;
        }
        if self.pace.bytes < self.window / 2 {
            self.window = self.window.min(limits.ahead);
            return;
        }
        // Half of it has been read: did it pay?
        let took = now.saturating_duration_since(self.pace.since).as_secs_f64().max(1e-6);
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
        let rate = self.pace.bytes as f64 / took;
        let paid = self.pace.before.is_none_or(|before| rate > before * 1.1);
        if self.pace.hold > 0 {
            self.pace.hold -= 1;
            self.pace.before = None;
        } else if self.pace.stalled && paid {
            if self.window < most {
                self.pace.before = Some(rate);
                self.window = (self.window * 4).min(most);
            }
        } else if self.pace.stalled {
            self.window = (self.window / 4).max(FIRST_WINDOW).min(most);
            self.pace.hold = HOLD;
            self.pace.before = None;
        }
        self.window = self.window.min(limits.ahead);
        self.pace = Pace { since: now, bytes: 0, stalled: false, ..self.pace };
    }

    /// How long requests are. A connection to a distant store carries little, so many short requests at once fill a window soonest; next
    /// door, long ones cost less.
    fn request(&self, limits: &Limits) -> u64 {
        let (at_once, shortest) = if limits.latency >= DISTANT { (32, 2 * BLOCK) } else { (4, BLOCK) };
        let part = (self.window / at_once).max(shortest);
        (1 << part.ilog2()).min(LONGEST)
    }

    /// What to ask for now: whole requests, as long as there is room for one in the window.
    fn ask(&mut self, limits: &Limits) -> Range<u64> {
        if self.window == 0 || self.frontier >= limits.size {
            return 0..0;
        }
        // Requests begin at blocks, so that they do not share one.
        let target = (self.reached + self.window) / BLOCK * BLOCK;
        let request = self.request(limits);
        let room = target.saturating_sub(self.frontier);
        let ask = if target >= limits.size { room } else { room / request * request };
        if ask == 0 {
            return 0..0;
        }
        let from = self.frontier;
        self.frontier = (from + ask).next_multiple_of(BLOCK).min(limits.size);
        from..self.frontier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits =
        Limits { size: 1 << 40, ahead: 256 << 20, unit: 64 << 10, latency: Duration::from_millis(20) };

    /// Reads `count` pieces of `len` from `start` on at `rate(window)` and says how far ahead it was at the end.
    fn read_on(
        streams: &mut Streams,
        start: u64,
        len: u64,
        count: u64,
        limits: &Limits,
        rate: impl Fn(u64) -> f64,
    ) -> u64 {
        let mut now = Instant::now();
        let mut window = 0;
        for number in 0..count {
            let at = start + number * len;
            let advice = streams.on_read(&(at..at + len), true, now, limits);
            window = streams.streams.iter().map(|stream| stream.window).max().unwrap_or(0);
            assert!(advice.along.start <= at && advice.along.end >= at + len);
            now += Duration::from_secs_f64(len as f64 / rate(window));
        }
        window
    }

    #[test]
    fn a_window_grows_as_long_as_that_pays() {
        // Ever better: up to what is allowed.
        let grown = read_on(&mut Streams::default(), 0, 1 << 20, 3000, &LIMITS, |window| window as f64 + 1e6);
        assert_eq!(grown, LARGEST_WINDOW);
        // Never better: back to a small one.
        let near = Limits { latency: Duration::from_micros(100), ..LIMITS };
        let grown = read_on(&mut Streams::default(), 0, 1 << 20, 100, &near, |_| 1e9);
        assert!(grown <= 8 << 20, "{grown}");
    }

    #[test]
    fn what_is_ahead_is_asked_for_once_and_in_order() {
        let mut streams = Streams::default();
        let mut asked: Vec<Range<u64>> = Vec::new();
        let now = Instant::now();
        for at in 0..200 {
            let advice = streams.on_read(&(at * BLOCK..(at + 1) * BLOCK), at % 3 == 0, now, &LIMITS);
            if !advice.ahead.is_empty() {
                asked.push(advice.ahead);
            }
        }
        assert!(asked.windows(2).all(|pair| pair[0].end <= pair[1].start), "{asked:?}");
        assert!(asked.last().unwrap().end > 200 * BLOCK);
    }

    #[test]
    fn random_reads_fetch_what_they_ask_for() {
        let mut streams = Streams::default();
        let mut random = fastrand::Rng::with_seed(7);
        let now = Instant::now();
        for len in [4096, 128 << 10] {
            for _ in 0..1000 {
                let at = random.u64(0..LIMITS.size / len) * len;
                let advice = streams.on_read(&(at..at + len), true, now, &LIMITS);
                assert!(advice.ahead.is_empty());
                assert!(advice.along.end - advice.along.start <= len.max(LIMITS.unit), "{advice:?}");
            }
        }
    }

    #[test]
    fn two_readers_of_one_file_are_two_streams() {
        let mut streams = Streams::default();
        let now = Instant::now();
        let mut ahead = [0, 0];
        for at in 0..100 {
            for (who, start) in [(0, 0), (1, 500 << 20)] {
                let from = start + at * BLOCK;
                ahead[who] = streams.on_read(&(from..from + BLOCK), true, now, &LIMITS).ahead.end.max(ahead[who]);
            }
        }
        assert!(ahead[0] > 100 << 20 && ahead[0] < 400 << 20 && ahead[1] > 600 << 20, "{ahead:?}");
    }

    proptest! {
        #[test]
        fn never_further_ahead_than_allowed(
            reads in prop::collection::vec((0_u64..200 << 20, 1_u64..1 << 20, any::<bool>()), 1..60), ahead in 0_u64..64 << 20
        ) {
            let limits = Limits { size: 300 << 20, ahead, ..LIMITS };
            let mut streams = Streams::default();
            let mut now = Instant::now();
            for (offset, len, stalled) in reads {
                now += Duration::from_millis(1);
                let range = offset..offset + len;
                let advice = streams.on_read(&range, stalled, now, &limits);
                prop_assert!(advice.along.start <= range.start && range.end <= advice.along.end);
                prop_assert!(advice.along.end <= limits.size && advice.ahead.end <= limits.size);
                prop_assert!(advice.request >= BLOCK && advice.request <= LONGEST);
                if !advice.ahead.is_empty() {
                    let reached = streams.streams.iter().map(|stream| stream.reached).max().unwrap();
                    prop_assert!(advice.ahead.end <= reached + ahead + BLOCK);
                }
            }
        }
    }
}
