//! What was measured at one rate, as rows for people.

use std::ops::Range;

use tests::double::{Operation, Request};

use super::reader::Followed;
use super::{KEY, float};

/// What S3 keeps in one object, which is sent again with every request.
const SEGMENT: u64 = 8 << 20;

/// So much of the log was in storage at this time.
pub struct Seen {
    pub length: u64,
    /// In seconds since 1970.
    pub at: f64,
    /// Processor time of the agent so far, in seconds.
    pub cpu: f64,
}

/// One rate on one store.
pub struct Run {
    /// In bytes per second.
    pub rate: u64,
    pub seen: Vec<Seen>,
    /// The most of the log's file that was on the disk, in bytes.
    pub most_on_disk: u64,
    /// What those have seen who follow the log.
    pub followed: Vec<Followed>,
    /// How much was written when, in seconds since 1970.
    pub written: Vec<(u64, f64)>,
    /// The same without an agent.
    pub plain: Option<Vec<(u64, f64)>>,
    /// All requests about the log.
    pub requests: Vec<Request>,
}

/// Names the columns.
pub fn print_head() {
    println!(
        "{:<16} {:>11} {:>6} {:>6} {:>6} {:>7} {:>10} {:>10} {:>10} {:>11} {:>6} {:>9} {:>8} {:>12}",
        "store",
        "bytes/s",
        "p50 s",
        "p99 s",
        "max s",
        "seconds",
        "requests",
        "requests/h",
        "twice MB",
        "twice MB/h",
        "CPU %",
        "writer s",
        "alone s",
        "on disk MB"
    );
}

impl Run {
    /// One row; on S3 one for the first object, which is seen soonest and sent most often, and one for what lies behind.
    pub fn print(&self, store: &str) {
        let last = self.written.last().map_or(0, |(end, _)| *end);
        if store != "s3" {
            self.print_stretch(store, 0..last, |_| true);
            return;
        }
        self.print_stretch("s3 first 8 MiB", 0..last.min(SEGMENT), |key| key == KEY);
        if last > SEGMENT {
            self.print_stretch("s3 behind", SEGMENT..last, |key| key != KEY);
        }
    }

    /// What there is to say of these bytes of the log, which are in the objects of these keys.
    fn print_stretch(&self, name: &str, bytes: Range<u64>, is_in: impl Fn(&str) -> bool) {
        let ends: Vec<_> = self.written.iter().filter(|(end, _)| bytes.start < *end && *end <= bytes.end).collect();
        let latencies = sorted_latencies(&ends, &self.seen);
        let (Some((_, first)), Some((_, last))) = (ends.first(), ends.last()) else { return };
        let seconds = (last - first).max(1.0);
        let is_write = |request: &&Request| {
            matches!(request.operation, Operation::AppendObject | Operation::PutObject) && is_in(&request.key)
        };
        let writes = self.requests.iter().filter(is_write);
        let (requests, sent) = writes.fold((0, 0), |(count, sent), write| (count + 1, sent + write.received));
        let twice = float(sent) - float(bytes.end - bytes.start);
        let hour = 3600.0 / seconds;
        let cpu = self.cpu_at(*last) - self.cpu_at(*first);
        let took =
            |notes: &[(u64, f64)]| notes.last().map_or(0.0, |last| last.1) - notes.first().map_or(0.0, |first| first.1);
        let alone = self.plain.as_deref().map_or("-".to_owned(), |notes| format!("{:.2}", took(notes)));
        println!(
            "{name:<16} {:>11} {:>6.2} {:>6.2} {:>6.2} {seconds:>7.1} {requests:>10} {:>10.0} {:>10.1} {:>11.1} {:>6.2} {:>9.2} {alone:>8} \
             {:>12.1}",
            self.rate,
            at(&latencies, 0.5),
            at(&latencies, 0.99),
            at(&latencies, 1.0),
            float(requests) * hour,
            twice / 1e6,
            twice * hour / 1e6,
            cpu / seconds * 100.0,
            took(&self.written),
            float(self.most_on_disk) / 1e6,
        );
        for Followed { name, seen } in &self.followed {
            let latencies = sorted_latencies(&ends, seen);
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| at(&latencies, share));
            println!("  {name:<14} {:>11} {p50:>6.2} {p99:>6.2} {max:>6.2}", "");
        }
    }

    /// Processor time of the agent up to then.
    fn cpu_at(&self, at: f64) -> f64 {
        let index = self.seen.partition_point(|seen| seen.at <= at);
        index.checked_sub(1).and_then(|index| self.seen.get(index)).map_or(0.0, |seen| seen.cpu)
    }
}

/// From when so much was written to when it was seen, in seconds, sorted.
fn sorted_latencies(written: &[&(u64, f64)], seen: &[Seen]) -> Vec<f64> {
    let seen_at = |length: u64| seen.get(seen.partition_point(|seen| seen.length < length)).map(|seen| seen.at);
    let mut latencies: Vec<f64> = written.iter().filter_map(|(end, at)| Some((seen_at(*end)? - at).max(0.0))).collect();
    latencies.sort_by(f64::total_cmp);
    latencies
}

/// The value that this share of them do not exceed.
fn at(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index, rounded down on purpose")]
    let index = (float(sorted.len().saturating_sub(1) as u64) * share) as usize;
    sorted.get(index).copied().unwrap_or(0.0)
}
