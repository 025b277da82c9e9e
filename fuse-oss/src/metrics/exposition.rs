//! A server's status in the text format that Prometheus scrapes (version 0.0.4), and everything that reads the same: Telegraf,
//! Vector, Grafana's and Datadog's agents.
//!
//! All names begin with `fuse_oss_`. Counters end in `_total` and begin at 0 with the server; sizes are in bytes and times in seconds,
//! and their names say so. A hit ratio is not among them, because only a query knows over which time it is wanted:
//!
//! ```text
//! 1 - sum(rate(fuse_oss_reads_total{tier="store"}[5m])) / sum(rate(fuse_oss_reads_total[5m]))
//! ```
//!
//! One exposition may hold no two samples with the same name and labels, or the scraper refuses all of it. Labels are
//! words of ours, but for the target of a mount, which can hold any bytes and can occur several times (a detached mount lives on
//! beside the new one in its place): what would have the same labels is added up.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{LatencySnapshot, ServedSnapshot, Snapshot};
use crate::options::{MountStatus, Status};

/// The media type of [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// The status in Prometheus' text format.
pub fn text(status: &Status) -> String {
    // Named one by one, so that a number that is added and not shown does not compile.
    let Status {
        pid: _,
        worker: _,
        before,
        replaced,
        version,
        cache_dir,
        cache_used,
        cache_size,
        memory_used,
        memory_limit,
        fetched: _,
        corrupt: _,
        metrics,
        metrics_socket: _,
        mounts,
    } = status;
    let mut out = Exposition(String::with_capacity(8192));
    let cache_dir = label_of(cache_dir);
    out.family("info", GAUGE, "Always 1; its labels say which server this is.");
    out.sample("info", &[("version", version), ("cache_dir", &cache_dir)], 1);
    out.gauge("memory_used_bytes", "Memory that blocks take, those under way included.", memory_used.bytes());
    out.gauge("memory_limit_bytes", "The most memory that blocks may take.", memory_limit.bytes());
    out.gauge("cache_used_bytes", "Bytes in the disk cache.", cache_used.bytes());
    out.gauge("cache_size_bytes", "The most bytes there may be in the disk cache.", cache_size.bytes());
    out.counter("workers_lost_total", "Workers that were killed or have made room, each followed by another.", *before);
    out.counter("replaced_total", "Programs that have taken over while mounts went on.", *replaced);
    out.counted(metrics);
    out.mounts(mounts);
    out.0
}

/// A text that grows family by family: all samples of one name follow its HELP and TYPE.
struct Exposition(String);

impl Exposition {
    /// Begins the samples of a name. `help` is ours and holds neither a backslash nor a line end.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP fuse_oss_{name} {help}"));
        self.line(format_args!("# TYPE fuse_oss_{name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let mut shown = String::new();
        for (label, value) in labels {
            let separator = if shown.is_empty() { '{' } else { ',' };
            // As in line().
            let _ = write!(shown, "{separator}{label}=\"{}\"", escaped(value));
        }
        if !shown.is_empty() {
            shown.push('}');
        }
        self.line(format_args!("fuse_oss_{name}{shown} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{line}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, GAUGE, help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, COUNTER, help);
        self.sample(name, &[], value);
    }

    /// A counter that is told apart by a label.
    fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) {
        self.family(name, COUNTER, help);
        for (word, value) in values {
            self.sample(name, &[(label, word)], value);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, latency: &LatencySnapshot) {
        self.family(name, "histogram", help);
        let bucket_name = format!("{name}_bucket");
        let mut up_to_here: u64 = 0;
        for bucket in &latency.buckets {
            up_to_here = up_to_here.saturating_add(bucket.count);
            // The last one is below, where it is there even if nothing was measured.
            if let Some(end) = bucket.up_to_ms {
                self.sample(&bucket_name, &[("le", &seconds(end, 3))], up_to_here);
            }
        }
        self.sample(&bucket_name, &[("le", "+Inf")], latency.count);
        self.sample(&format!("{name}_sum"), &[], seconds(latency.total_micros, 6));
        self.sample(&format!("{name}_count"), &[], latency.count);
    }

    fn counted(&mut self, snapshot: &Snapshot) {
        let Snapshot {
            from_memory,
            from_disk,
            from_store,
            hit_ratio: _,
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
        } = snapshot;
        let tiers = |of: fn(&ServedSnapshot) -> u64| {
            [("memory", of(from_memory)), ("disk", of(from_disk)), ("store", of(from_store))]
        };
        self.counters(
            "reads_total",
            "Reads by the tier that answered: store when any part had to be waited for. The kernel's own cache is not counted.",
            "tier",
            &tiers(|served| served.reads),
        );
        self.counters("read_bytes_total", "Bytes of these reads.", "tier", &tiers(|served| served.bytes));
        self.counters(
            "opens_total",
            "Files opened, by who reads them: the kernel by itself (passthrough) or this server (cached).",
            "mode",
            &[("passthrough", *opened_passthrough), ("cached", *opened_cached)],
        );
        self.counter("gets_total", "Requests for bytes of objects.", *gets);
        self.counter("fetched_bytes_total", "Bytes these requests brought.", *fetched);
        self.histogram(
            "get_first_byte_seconds",
            "Time until the first byte of a requested object could be had, retries included.",
            get_latency,
        );
        self.counter("lookups_total", "Requests for pages of listings and for single names.", *lookups);
        self.histogram("lookup_seconds", "Time until these were answered, retries included.", lookup_latency);
        self.counter("read_ahead_bytes_total", "Bytes fetched before anybody asked for them.", *ahead);
        self.counter(
            "read_ahead_wasted_bytes_total",
            "Bytes fetched ahead and dropped before anybody read them.",
            *ahead_wasted,
        );
        self.counter("raced_requests_total", "Slow requests that were raced by a second one.", *raced);
        self.counter("races_won_total", "Races that the second request won.", *races_won);
        self.counter(
            "not_kept_bytes_total",
            "Bytes not written to the disk cache, for want of room or because the disk was too slow.",
            *not_kept,
        );
        self.counter("evictions_total", "Evictions from the disk cache.", *evictions);
        self.counter("evicted_bytes_total", "Bytes that evictions gave back.", *evicted);
        self.counter("corrupt_total", "Pieces or whole objects found to be wrong and fetched again.", *corrupt);
        self.counter("replaced_objects_total", "Objects replaced or deleted while they were shown.", *replaced);
        self.counters(
            "failures_total",
            "Requests that failed after all their retries, by what it means.",
            "kind",
            &[
                ("denied", *failed_denied),
                ("changed", *failed_changed),
                ("unavailable", *failed_unavailable),
                ("other", *failed_other),
            ],
        );
    }

    fn mounts(&mut self, mounts: &[MountStatus]) {
        let mut by_label: BTreeMap<(String, bool), [u64; 3]> = BTreeMap::new();
        for mount in mounts {
            let sums = by_label.entry((label_of(&mount.target), mount.detached)).or_default();
            for (sum, value) in sums.iter_mut().zip([mount.nodes, mount.hidden, mount.open_files]) {
                *sum = sum.saturating_add(value);
            }
        }
        let count = |detached| {
            let alike = mounts.iter().filter(|mount| mount.detached == detached).count();
            u64::try_from(alike).unwrap_or(u64::MAX)
        };
        self.family("mounts", GAUGE, "Mounts; detached ones live on for the processes that still use them.");
        self.sample("mounts", &[("detached", "false")], count(false));
        self.sample("mounts", &[("detached", "true")], count(true));
        for (at, (name, help)) in [
            ("mount_nodes", "Names seen so far in a mount."),
            ("mount_hidden_keys", "Keys met that no file system can show."),
            ("mount_open_files", "Files open now in a mount."),
        ]
        .into_iter()
        .enumerate()
        {
            self.family(name, GAUGE, help);
            for ((target, detached), values) in &by_label {
                let detached = if *detached { "true" } else { "false" };
                self.sample(name, &[("target", target), ("detached", detached)], values[at]);
            }
        }
    }
}

/// A label's value between its quotes: the format wants exactly these three escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// A path as a label's value, which must be UTF-8. Bytes that are not, and control characters, are written as `\x1b`: people look
/// at this in terminals.
fn label_of(path: &Path) -> String {
    let mut label = String::new();
    let raw = |bytes: &[u8], label: &mut String| {
        for byte in bytes {
            // As in line().
            let _ = write!(label, "\\x{byte:02x}");
        }
    };
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() && character != '\n' {
                raw(character.encode_utf8(&mut [0; 4]).as_bytes(), &mut label);
            } else {
                label.push(character);
            }
        }
        raw(chunk.invalid(), &mut label);
    }
    label
}

/// A whole number of units of 10^-`digits` seconds as decimal seconds, exactly and as short as can be.
fn seconds(units: u64, digits: u32) -> String {
    let one = 10_u64.pow(digits);
    let width = usize::try_from(digits).unwrap_or(0);
    let text = format!("{}.{:0width$}", units / one, units % one);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::size::ByteSize;
    use proptest::prelude::*;
    use std::collections::{BTreeSet, HashMap};
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;
    use std::time::Duration;

    type Labels = Vec<(String, String)>;

    /// A family as a strict reader sees it.
    #[derive(Debug, Default)]
    struct Family {
        kind: String,
        samples: Vec<(String, Labels, f64)>,
    }

    fn is_name(name: &str, colon: bool) -> bool {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colon && c == ':');
        !name.is_empty() && name.chars().all(good) && !name.starts_with(|c: char| c.is_ascii_digit())
    }

    /// Takes a label's value off the front of `text`, which begins behind the opening quote.
    fn unquote(text: &str) -> (String, &str) {
        let mut value = String::new();
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => return (value, &text[at + 1..]),
                '\\' => match chars.next() {
                    Some((_, '\\')) => value.push('\\'),
                    Some((_, '"')) => value.push('"'),
                    Some((_, 'n')) => value.push('\n'),
                    other => panic!("unknown escape {other:?} in {text:?}"),
                },
                c => value.push(c),
            }
        }
        panic!("no closing quote in {text:?}");
    }

    fn sample(line: &str) -> (String, Labels, f64) {
        let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value in {line:?}"));
        let (name, mut rest) = line.split_at(end);
        assert!(is_name(name, true), "{line:?}");
        let mut labels = Labels::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label in {line:?}"));
                assert!(is_name(label, false), "{label:?} in {line:?}");
                assert!(labels.iter().all(|(known, _)| known != label), "{label:?} twice in {line:?}");
                let (value, after) = unquote(after);
                labels.push((label.to_owned(), value));
                match after.split_at(1) {
                    (",", after) => rest = after,
                    ("}", after) => {
                        rest = after;
                        break;
                    }
                    _ => panic!("neither another label nor the end in {line:?}"),
                }
            }
        }
        let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no blank before the value in {line:?}"));
        assert!(!value.contains(' '), "no timestamps: {line:?}");
        (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("no number in {line:?}")))
    }

    /// Reads an exposition as strictly as the format's description has it, and a little more so.
    fn parse(text: &str) -> HashMap<String, Family> {
        assert!(text.ends_with('\n') && !text.contains('\r'));
        let mut families: HashMap<String, Family> = HashMap::new();
        let mut seen = BTreeSet::new();
        let mut current = String::new();
        let mut helped = None;
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').unwrap();
                assert!(is_name(name, true) && !words.is_empty() && !words.contains('\\'), "{line:?}");
                helped = Some(name.to_owned());
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(helped.take().as_deref(), Some(name), "HELP comes before TYPE");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line:?}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line:?}");
                let family = Family { kind: kind.to_owned(), samples: Vec::new() };
                assert!(families.insert(name.to_owned(), family).is_none(), "{name} comes twice");
                current = name.to_owned();
            } else {
                let (name, labels, value) = sample(line);
                let family = families.get_mut(&current).unwrap();
                let suffix = name.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("{line:?} in {current}"));
                let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(suffixes.contains(&suffix), "{line:?} in {current}");
                let mut sorted = labels.clone();
                sorted.sort();
                assert!(seen.insert((name.clone(), sorted)), "{line:?} comes twice");
                assert!(value >= 0.0, "{line:?}");
                family.samples.push((suffix.to_owned(), labels, value));
            }
        }
        assert_eq!(helped, None);
        for (name, family) in &families {
            if family.kind == "histogram" {
                check_histogram(name, family);
            }
        }
        families
    }

    fn check_histogram(name: &str, family: &Family) {
        let buckets: Vec<(f64, f64)> = family
            .samples
            .iter()
            .filter(|(suffix, ..)| suffix == "_bucket")
            .map(|(_, labels, value)| {
                let [(label, end)] = labels.as_slice() else { panic!("{name}: {labels:?}") };
                assert_eq!(label, "le");
                (end.parse().unwrap(), *value)
            })
            .collect();
        let ascending = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        assert!(ascending, "{name}: {buckets:?}");
        let only = |wanted: &str| {
            let found: Vec<f64> =
                family.samples.iter().filter(|(suffix, ..)| suffix == wanted).map(|sample| sample.2).collect();
            assert_eq!(found.len(), 1, "{name}{wanted}");
            found[0]
        };
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, only("_count"))), "{name}");
        assert!(only("_sum") >= 0.0);
    }

    fn value(families: &HashMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Labels = labels.iter().map(|(l, v)| ((*l).to_owned(), (*v).to_owned())).collect();
        families.get(name)?.samples.iter().find(|(_, own, _)| *own == labels).map(|(.., value)| *value)
    }

    fn mount(target: impl Into<PathBuf>, detached: bool, nodes: u64) -> MountStatus {
        MountStatus {
            target: target.into(),
            entries: vec![],
            detached,
            nodes,
            hidden: 1,
            open_files: 2,
            prefetch: None,
            writable: None,
            down: None,
        }
    }

    fn status(metrics: &Metrics, mounts: Vec<MountStatus>) -> Status {
        Status {
            pid: 7,
            worker: 2,
            before: 3,
            replaced: 1,
            version: "1.2.3".to_owned(),
            cache_dir: "/var/cache/fuse-oss".into(),
            cache_used: ByteSize::new(10),
            cache_size: ByteSize::new(20),
            memory_used: ByteSize::new(30),
            memory_limit: ByteSize::new(u64::MAX),
            fetched: ByteSize::new(0),
            corrupt: 0,
            metrics: metrics.snapshot(),
            metrics_socket: None,
            mounts,
        }
    }

    #[test]
    fn a_server_that_has_done_nothing_shows_every_name_at_zero() {
        let text = text(&status(&Metrics::default(), vec![]));
        let families = parse(&text);
        for (name, labels) in [
            ("fuse_oss_reads_total", &[("tier", "disk")][..]),
            ("fuse_oss_failures_total", &[("kind", "unavailable")]),
            ("fuse_oss_opens_total", &[("mode", "passthrough")]),
            ("fuse_oss_fetched_bytes_total", &[]),
            ("fuse_oss_evicted_bytes_total", &[]),
            ("fuse_oss_mounts", &[("detached", "false")]),
        ] {
            assert_eq!(value(&families, name, labels), Some(0.0), "{name}");
        }
        assert!(text.contains("\nfuse_oss_get_first_byte_seconds_bucket{le=\"+Inf\"} 0\n"), "{text}");
        assert!(text.contains("\nfuse_oss_memory_limit_bytes 18446744073709551615\n"), "{text}");
        assert_eq!(families["fuse_oss_mount_nodes"].samples.len(), 0);
    }

    #[test]
    fn counters_and_latencies_appear_in_base_units() {
        let metrics = Metrics::default();
        metrics.from_disk.record(4096);
        metrics.failed_changed.add(3);
        metrics.get_latency.record(Duration::from_micros(1500));
        metrics.get_latency.record(Duration::from_secs(31));
        let text = text(&status(&metrics, vec![]));
        let families = parse(&text);
        assert_eq!(value(&families, "fuse_oss_reads_total", &[("tier", "disk")]), Some(1.0));
        assert_eq!(value(&families, "fuse_oss_read_bytes_total", &[("tier", "disk")]), Some(4096.0));
        assert_eq!(value(&families, "fuse_oss_failures_total", &[("kind", "changed")]), Some(3.0));
        assert_eq!(
            value(&families, "fuse_oss_info", &[("version", "1.2.3"), ("cache_dir", "/var/cache/fuse-oss")]),
            Some(1.0)
        );
        for line in [
            "fuse_oss_get_first_byte_seconds_bucket{le=\"0.001\"} 0\n",
            "fuse_oss_get_first_byte_seconds_bucket{le=\"0.002\"} 1\n",
            "fuse_oss_get_first_byte_seconds_bucket{le=\"30\"} 1\n",
            "fuse_oss_get_first_byte_seconds_bucket{le=\"+Inf\"} 2\n",
            "fuse_oss_get_first_byte_seconds_sum 31.0015\n",
            "fuse_oss_get_first_byte_seconds_count 2\n",
        ] {
            assert!(text.contains(line), "{line:?} is missing in {text}");
        }
    }

    #[test]
    fn mounts_of_any_name_stay_apart_and_alike_ones_are_added_up() {
        let odd = OsString::from_vec(b"/mnt/\xff\"a\\b\nc\x1b[31m".to_vec());
        let mounts = vec![
            mount("/mnt/a", false, 1),
            mount("/mnt/a", true, 10),
            mount("/mnt/a", true, 100),
            mount(odd, false, 1000),
        ];
        let families = parse(&text(&status(&Metrics::default(), mounts)));
        let nodes = |target: &str, detached: &str| {
            value(&families, "fuse_oss_mount_nodes", &[("target", target), ("detached", detached)])
        };
        assert_eq!(nodes("/mnt/a", "false"), Some(1.0));
        assert_eq!(nodes("/mnt/a", "true"), Some(110.0));
        assert_eq!(nodes("/mnt/\\xff\"a\\b\nc\\x1b[31m", "false"), Some(1000.0));
        assert_eq!(value(&families, "fuse_oss_mounts", &[("detached", "true")]), Some(2.0));
        let hidden = value(&families, "fuse_oss_mount_hidden_keys", &[("target", "/mnt/a"), ("detached", "true")]);
        assert_eq!(hidden, Some(2.0));
    }

    #[test]
    fn seconds_are_exact_and_short() {
        for (units, digits, text) in
            [(0, 3, "0"), (1, 3, "0.001"), (500, 3, "0.5"), (30_000, 3, "30"), (100_000, 3, "100"), (1, 6, "0.000001")]
        {
            assert_eq!(seconds(units, digits), text);
        }
        assert_eq!(seconds(u64::MAX, 6), "18446744073709.551615");
    }

    proptest! {
        #[test]
        fn whatever_is_mounted_the_text_can_be_read(
            targets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..6)
        ) {
            let mounts: Vec<MountStatus> = targets
                .iter()
                .zip(1..)
                .map(|(target, nodes)| mount(OsString::from_vec(target.clone()), nodes % 2 == 0, nodes))
                .collect();
            let all: u64 = mounts.iter().map(|mount| mount.nodes).sum();
            let families = parse(&text(&status(&Metrics::default(), mounts)));
            let shown: f64 = families["fuse_oss_mount_nodes"].samples.iter().map(|sample| sample.2).sum();
            prop_assert!((shown - all as f64).abs() < 0.5);
        }
    }
}
