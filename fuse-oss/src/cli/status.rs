//! `fuse-oss status`: the servers of this machine, for people and for programs.

use std::fmt::{self, Display, Formatter};

use fuse_oss::client::servers;
use fuse_oss::metrics::{LatencySnapshot, ServedSnapshot, Snapshot};
use fuse_oss::server::human;
use fuse_oss::{ErrorKind, MountError, MountStatus, Prefetch, PrefetchStatus, Status, WritableStatus};

use super::arguments::StatusArguments;

/// Prints what the servers say.
pub fn status(arguments: &StatusArguments) -> Result<(), MountError> {
    let all: Vec<Status> = servers(&arguments.runtime_dir).into_iter().map(|(_, status)| status).collect();
    if arguments.json {
        let text = serde_json::to_string_pretty(&all)
            .map_err(|error| MountError::new(ErrorKind::Internal, format_args!("cannot print the status: {error}")))?;
        println!("{text}");
        return Ok(());
    }
    if all.is_empty() {
        println!("no fuse-oss server is running (looked in {})", arguments.runtime_dir.display());
    }
    for status in &all {
        print!("{}", ForPeople(status));
    }
    Ok(())
}

/// A server's status as some lines of text.
struct ForPeople<'a>(&'a Status);

impl Display for ForPeople<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let status = self.0;
        writeln!(
            f,
            "server {} (version {}), cache {}: {} of {} on disk, {} of {} in memory, {} fetched, {} found damaged",
            status.pid,
            status.version,
            status.cache_dir.display(),
            human(status.cache_used.bytes()),
            human(status.cache_size.bytes()),
            human(status.memory_used.bytes()),
            human(status.memory_limit.bytes()),
            human(status.fetched.bytes()),
            status.corrupt
        )?;
        if status.before > 0 {
            let (before, replaced) = (status.before, status.replaced);
            line(
                f,
                "worker",
                format_args!(
                    "process {}, after {before} others ({replaced} made room for another program)",
                    status.worker
                ),
            )?;
        }
        for mount in &status.mounts {
            show_mount(f, mount)?;
        }
        if status.mounts.is_empty() {
            writeln!(f, "  nothing is mounted")?;
        }
        show_metrics(f, &status.metrics)?;
        if let Some(socket) = &status.metrics_socket {
            line(f, "metrics", format_args!("curl --unix-socket {} http://localhost/metrics", socket.display()))?;
        }
        Ok(())
    }
}

fn line(f: &mut Formatter<'_>, name: &str, text: impl Display) -> fmt::Result {
    writeln!(f, "  {name:<11} {text}")
}

fn show_mount(f: &mut Formatter<'_>, mount: &MountStatus) -> fmt::Result {
    let detached = if mount.detached { ", detached" } else { "" };
    writeln!(f, "  {} ({} names, {} files open{detached})", mount.target.display(), mount.nodes, mount.open_files)?;
    if let Some(cause) = &mount.down {
        writeln!(f, "    DOWN: it answers with errors until it is unmounted: {cause}")?;
    }
    for entry in &mount.entries {
        writeln!(f, "    {:?} -> {}", entry.at, entry.location.escaped())?;
    }
    if let Some(writable) = &mount.writable {
        writeln!(f, "    {}", Written(writable))?;
    }
    if let Some(prefetch) = &mount.prefetch {
        writeln!(f, "    {}", Ahead(prefetch))?;
    }
    if mount.hidden > 0 {
        writeln!(
            f,
            "    {} keys are not shown: no file system can hold them, or another entry has their place",
            mount.hidden
        )?;
    }
    Ok(())
}

/// What was written in a view.
struct Written<'a>(&'a WritableStatus);

impl Display for Written<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let written = self.0;
        write!(f, "writable, into {}: ", written.upper.display())?;
        if let Some(used) = written.used {
            write!(f, "{} written, ", human(used.bytes()))?;
        }
        if let Some(limit) = written.limit {
            write!(f, "{} at most, ", human(limit.bytes()))?;
        }
        write!(f, "{} can be written yet", human(written.available.bytes()))
    }
}

/// How far bringing things in ahead of time is.
struct Ahead<'a>(&'a PrefetchStatus);

impl Display for Ahead<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ahead = self.0;
        write!(f, "fetched ahead: {} names", ahead.names)?;
        if ahead.kind == Prefetch::All {
            let (done, total) = (human(ahead.bytes_done), human(ahead.bytes_total));
            write!(f, ", {} of {} objects ({done} of {total})", ahead.objects_done, ahead.objects_total)?;
        }
        match (&ahead.error, ahead.finished) {
            (Some(error), _) => write!(f, ", given up: {error}"),
            (None, true) => f.write_str(", done"),
            (None, false) => f.write_str(", going on"),
        }
    }
}

/// What was counted. Lines about what has not happened are left out.
fn show_metrics(f: &mut Formatter<'_>, counted: &Snapshot) -> fmt::Result {
    if counted.opened_passthrough + counted.opened_cached > 0 {
        let by = format_args!(
            "{} read by the kernel alone, {} by the server",
            counted.opened_passthrough, counted.opened_cached
        );
        line(f, "opened", by)?;
    }
    if let Some(ratio) = counted.hit_ratio {
        line(
            f,
            "reads",
            format_args!(
                "{:.1} % without waiting: {} from memory, {} from disk, {} from the store",
                ratio * 100.0,
                Reads(counted.from_memory),
                Reads(counted.from_disk),
                Reads(counted.from_store)
            ),
        )?;
    }
    if counted.gets > 0 {
        let first = Latency(&counted.get_latency, "first byte");
        line(f, "fetched", format_args!("{} in {} requests{first}", human(counted.fetched), counted.gets))?;
    }
    if counted.raced > 0 {
        line(f, "raced", format_args!("{} slow requests, {} won by the second", counted.raced, counted.races_won))?;
    }
    if counted.lookups > 0 {
        let answered = Latency(&counted.lookup_latency, "answered");
        line(f, "names", format_args!("{} requests{answered}", counted.lookups))?;
    }
    if counted.ahead > 0 {
        let (ahead, wasted) = (counted.ahead, counted.ahead_wasted);
        let percent = wasted as f64 / ahead as f64 * 100.0;
        line(f, "read ahead", format_args!("{}, {} of it for nothing ({percent:.1} %)", human(ahead), human(wasted)))?;
    }
    if counted.evictions > 0 {
        line(f, "evicted", format_args!("{} in {} pieces", human(counted.evicted), counted.evictions))?;
    }
    if counted.not_kept > 0 {
        let why = "for want of room, or the disk was too slow";
        line(f, "not cached", format_args!("{} ({why})", human(counted.not_kept)))?;
    }
    let trouble: Vec<String> = [
        (counted.failed_denied, "denied"),
        (counted.failed_changed, "of objects gone or changed"),
        (counted.failed_unavailable, "with the store unavailable"),
        (counted.failed_other, "otherwise"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, why)| format!("{count} {why}"))
    .collect();
    if !trouble.is_empty() {
        line(f, "failed", format_args!("requests: {} (the log says which)", trouble.join(", ")))?;
    }
    if counted.replaced > 0 {
        line(f, "replaced", format_args!("{} objects while they were shown: mount again", counted.replaced))?;
    }
    Ok(())
}

/// `12 (3 MiB)`.
struct Reads(ServedSnapshot);

impl Display for Reads {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0.reads, human(self.0.bytes))
    }
}

/// `, first byte within p50 12 ms, p99 340 ms`; nothing when nothing was measured.
struct Latency<'a>(&'a LatencySnapshot, &'a str);

impl Display for Latency<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(latency, what) = self;
        let (Some(half), Some(most)) = (latency.p50_ms, latency.p99_ms) else { return Ok(()) };
        write!(f, ", {what} within p50 {}, p99 {}", Millis(half, latency), Millis(most, latency))
    }
}

/// An estimate of a time, with no more digits than it is worth.
struct Millis<'a>(f64, &'a LatencySnapshot);

impl Display for Millis<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(millis, latency) = *self;
        let longest = latency.buckets.iter().rev().find_map(|bucket| bucket.up_to_ms);
        if longest.is_some_and(|end| millis >= end as f64) {
            return write!(f, "over {:.0} s", millis / 1000.0);
        }
        match millis {
            0.0..10.0 => write!(f, "{millis:.1} ms"),
            10.0..1000.0 => write!(f, "{millis:.0} ms"),
            _ => write!(f, "{:.1} s", millis / 1000.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_oss::ByteSize;
    use fuse_oss::metrics::Metrics;
    use std::time::Duration;

    fn text(metrics: &Metrics) -> String {
        let status = Status {
            pid: 7,
            worker: 8,
            before: 0,
            replaced: 0,
            version: "1.2.3".to_owned(),
            cache_dir: "/cache".into(),
            cache_used: ByteSize::new(1 << 20),
            cache_size: ByteSize::new(1 << 30),
            memory_used: ByteSize::new(0),
            memory_limit: ByteSize::new(256 << 20),
            fetched: ByteSize::new(0),
            corrupt: 0,
            metrics: metrics.snapshot(),
            metrics_socket: Some("/run/fuse-oss/ab.metrics".into()),
            mounts: vec![],
        };
        ForPeople(&status).to_string()
    }

    #[test]
    fn what_has_not_happened_takes_no_line() {
        let text = text(&Metrics::default());
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("curl --unix-socket /run/fuse-oss/ab.metrics http://localhost/metrics"), "{text}");
    }

    #[test]
    fn what_was_written_is_told_as_far_as_it_is_known() {
        let size = |mib: u64| ByteSize::new(mib << 20);
        let mut written = WritableStatus { upper: "/u".into(), used: None, limit: None, available: size(7) };
        assert_eq!(Written(&written).to_string(), "writable, into /u: 7 MiB can be written yet");
        (written.used, written.limit) = (Some(size(3)), Some(size(10)));
        assert_eq!(
            Written(&written).to_string(),
            "writable, into /u: 3 MiB written, 10 MiB at most, 7 MiB can be written yet"
        );
    }

    #[test]
    fn the_block_says_whether_the_cache_helps_and_what_went_wrong() {
        let metrics = Metrics::default();
        metrics.opened_passthrough.one();
        metrics.from_memory.record(1 << 20);
        metrics.from_disk.record(4096);
        metrics.from_store.record(4096);
        metrics.gets.add(3);
        metrics.fetched.add(5 << 20);
        for millis in [15, 15, 40_000] {
            metrics.get_latency.record(Duration::from_millis(millis));
        }
        metrics.lookups.one();
        metrics.lookup_latency.record(Duration::from_millis(700));
        metrics.ahead.add(4 << 20);
        metrics.ahead_wasted.add(1 << 20);
        metrics.failed_denied.add(2);
        metrics.failed_other.one();
        let text = text(&metrics);
        for expected in [
            "opened      1 read by the kernel alone, 0 by the server",
            "reads       66.7 % without waiting: 1 (1 MiB) from memory, 1 (4 KiB) from disk, 1 (4 KiB) from the store",
            "fetched     5 MiB in 3 requests, first byte within p50 18 ms, p99 over 30 s",
            "names       1 requests, answered within p50 750 ms, p99 995 ms",
            "read ahead  4 MiB, 1 MiB of it for nothing (25.0 %)",
            "failed      requests: 2 denied, 1 otherwise (the log says which)",
        ] {
            assert!(text.lines().any(|line| line.trim_start() == expected), "{expected:?} is missing in\n{text}");
        }
        assert!(!text.contains("evicted") && !text.contains("raced") && !text.contains("replaced"), "{text}");
    }
}
