//! What comes out: a table for people, JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::case::Sample;
use crate::figures::{Spread, Unit, float};
use crate::goal::{Evidence, Goal, Verdict};
use crate::machine::Machine;

/// One run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of this file's layout.
    pub format: u32,
    /// Where it ran.
    pub machine: Machine,
    /// The load averages at the end.
    pub load_at_end: String,
    /// Each program with its version, or why it was left out.
    pub programs: Vec<Program>,
    /// What sizes were multiplied by.
    pub scale: f64,
    /// The results.
    pub cases: Vec<CaseReport>,
}

/// A program that was measured, or not.
#[derive(Debug, Clone, Serialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Its version, or "not installed".
    pub version: String,
}

/// One case's results.
#[derive(Debug, Clone, Serialize)]
pub struct CaseReport {
    /// Its name.
    pub name: String,
    /// What was done.
    pub about: String,
    /// What figures are in.
    pub unit: Unit,
    /// What ratios refer to, in words; nothing when there are none.
    pub yardstick: String,
    /// The ratio that our own mount must reach, where that is what is asked.
    pub goal_ratio: Option<f64>,
    /// Limits first, then mounts.
    pub rows: Vec<Row>,
    /// What our own mount must reach and whether it has.
    pub verdicts: Vec<Verdict>,
}

/// One line of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub subject: String,
    /// Whether it is a limit.
    pub limit: bool,
    /// The figures; absent when it failed.
    pub figures: Option<Spread>,
    /// How much of the yardstick's median the median reaches; more is better.
    pub ratio: Option<f64>,
    /// Requests to the store, the most of any sample.
    pub requests: Option<f64>,
    /// Those of them for objects, the most of any sample.
    pub object_requests: Option<f64>,
    /// Bytes of objects that the store sent, median.
    pub fetched: Option<f64>,
    /// The same for each operation, median.
    pub fetched_per_operation: Option<f64>,
    /// Processor seconds of the mount's program, median.
    pub cpu: Option<f64>,
    /// Processor seconds of program and readers for each GiB that was read, the kernel's part included, median. Only where
    /// reading is all there is.
    pub cpu_per_gib: Option<f64>,
    /// The greatest peak of its memory, in bytes.
    pub peak_memory: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Row {
    /// From what was measured; `error` is of the sample after which nothing more was measured.
    pub fn new(subject: String, limit: bool, unit: Unit, samples: &[Sample], error: Option<String>) -> Self {
        let all = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value));
        let cpu_per_gib = |sample: &Sample| {
            (sample.cpu.unwrap_or(0.0) + sample.readers) * float(1 << 30) / float(sample.done.bytes.max(1))
        };
        let fetched_per_operation =
            |sample: &Sample| float(sample.traffic.bytes) / float(sample.done.operations.max(1));
        Self {
            subject,
            limit,
            figures: all(|sample| sample.value),
            ratio: None,
            requests: all(|sample| float(sample.traffic.requests)).map(|spread| spread.max),
            object_requests: all(|sample| float(sample.traffic.objects)).map(|spread| spread.max),
            fetched: all(|sample| float(sample.traffic.bytes)).map(|spread| spread.median),
            fetched_per_operation: all(fetched_per_operation).map(|spread| spread.median),
            cpu: Spread::of(samples.iter().filter_map(|sample| sample.cpu)).map(|spread| spread.median),
            cpu_per_gib: (unit == Unit::GibPerSecond).then(|| all(cpu_per_gib)).flatten().map(|spread| spread.median),
            peak_memory: samples.iter().filter_map(|sample| sample.peak_memory).max(),
            error,
        }
    }
}

impl CaseReport {
    /// From what was measured: `yardstick` names limits, of which the lowest counts, and `ours` the mount that is judged.
    pub fn new(
        (name, about, unit): (String, String, Unit),
        mut rows: Vec<Row>,
        yardstick: &[String],
        goals: &[Goal],
        ours: &str,
    ) -> Self {
        let median = |row: &Row| row.figures.map(|figures| figures.median);
        let limits: Vec<_> = rows.iter().filter(|row| row.limit && yardstick.contains(&row.subject)).collect();
        // A limit that could not be measured leaves nothing to compare with.
        let known: Option<Vec<f64>> = limits.into_iter().map(median).collect();
        let lowest = known.and_then(|known| known.into_iter().reduce(|a, b| unit.worse(a, b)));
        let bound = goals.iter().find_map(|goal| if let Goal::Figure(bound) = goal { Some(*bound) } else { None });
        // Where nothing bounds a mount, the figure that it must reach is the measure.
        let measure = if yardstick.is_empty() { bound } else { lowest };
        let share = goals.iter().find_map(|goal| if let Goal::Share(share) = goal { Some(*share) } else { None });
        let goal_ratio = measure.and_then(|measure| share.or_else(|| Some(unit.share(bound?, measure))));
        for row in &mut rows {
            row.ratio = row.figures.zip(measure).map(|(figures, measure)| unit.share(figures.median, measure));
        }
        let yardstick = match yardstick {
            [] => bound.map(|bound| format!("the {} {} asked for", unit.show(bound), unit.name())).unwrap_or_default(),
            [one] => one.clone(),
            several => format!("the lower of {}", several.join(" and ")),
        };
        let peers = rows.iter().filter(|row| !row.limit && row.subject != ours).filter_map(median);
        let best_peer = peers.reduce(|a, b| unit.better(a, b));
        let peers = rows.iter().filter(|row| !row.limit && row.subject != ours).filter_map(|row| row.cpu_per_gib);
        let least_cpu = peers.reduce(f64::min);
        let mut verdicts = Vec::new();
        if let Some(row) = rows.iter().find(|row| !row.limit && row.subject == ours) {
            let evidence = Evidence {
                figure: median(row),
                yardstick: lowest,
                best_peer,
                cpu: row.cpu_per_gib,
                least_cpu: least_cpu.filter(|_| best_peer.is_some()),
                requests: row.requests,
                object_requests: row.object_requests,
                fetched_per_operation: row.fetched_per_operation,
            };
            verdicts = goals.iter().map(|goal| goal.judge(unit, &yardstick, &evidence)).collect();
        }
        Self { name, about, unit, yardstick, goal_ratio, rows, verdicts }
    }

    /// As a table.
    pub fn table(&self) -> String {
        let mut out = format!("{}: {}\n", self.name, self.about);
        let special = match self.unit {
            Unit::GibPerSecond => "CPU s/GiB",
            Unit::PerSecond => "KiB/op",
            Unit::Seconds | Unit::Mib => "",
        };
        let unit = self.unit.name();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "  {:<24} {unit:>8} {:>17} {:>3} {:>6} {:>9} {:>9} {:>12} {special:>9} {:>7} {:>9}",
            "", "min - max", "n", "ratio", "requests", "objects", "fetched MiB", "CPU s", "peak MiB"
        );
        for row in &self.rows {
            let optional = |value: Option<f64>, digits: usize| match value {
                Some(value) => format!("{value:.digits$}"),
                None => "-".to_owned(),
            };
            let special = match self.unit {
                Unit::GibPerSecond => optional(row.cpu_per_gib, 2),
                Unit::PerSecond => optional(row.fetched_per_operation.map(|bytes| bytes / 1024.0), 0),
                Unit::Seconds | Unit::Mib => String::new(),
            };
            if let Some(figures) = row.figures {
                let spread = format!("{} - {}", self.unit.show(figures.min), self.unit.show(figures.max));
                let _ = writeln!(
                    out,
                    "  {:<24} {:>8} {spread:>17} {:>3} {:>6} {:>9} {:>9} {:>12} {special:>9} {:>7} {:>9}",
                    row.subject,
                    self.unit.show(figures.median),
                    figures.count,
                    optional(row.ratio, 2),
                    optional(row.requests, 0),
                    optional(row.object_requests, 0),
                    optional(row.fetched.map(|bytes| bytes / float(1 << 20)), 1),
                    optional(row.cpu, 2),
                    optional(row.peak_memory.map(|bytes| float(bytes >> 20)), 0),
                );
            }
            if let Some(error) = &row.error {
                let _ = writeln!(out, "  {:<24} FAILED: {error}", row.subject);
            }
        }
        if !self.yardstick.is_empty() {
            let _ = writeln!(out, "  ratio: to {}", self.yardstick);
        }
        for verdict in &self.verdicts {
            let _ = writeln!(out, "  goal: {}: {}, {}", verdict.goal, verdict.found, verdict.outcome());
        }
        out
    }
}

impl Report {
    /// What stands above the tables.
    pub fn head(&self) -> String {
        let machine = &self.machine;
        let mut out = format!(
            "{}, {} cores ({}), {} GiB, Linux {}, load {}, in {}\n",
            machine.time,
            machine.cores,
            machine.processor,
            machine.memory_gib,
            machine.kernel,
            machine.load,
            machine.directory
        );
        for program in &self.programs {
            let _ = writeln!(out, "  {:<15} {}", program.name, program.version);
        }
        if machine.is_busy() {
            out.push_str(
                "  WARNING: something else is running; figures, and ratios less so, say what is left over by it\n",
            );
        }
        if (self.scale - 1.0).abs() > f64::EPSILON {
            let _ = writeln!(out, "  sizes times {}: figures asked for in seconds are those of scale 1", self.scale);
        }
        out
    }

    /// All goals on one page: what falls short is found by its word.
    pub fn summary(&self) -> String {
        let mut out = String::from("goals of fuse-oss and batch-agent\n");
        for case in &self.cases {
            for verdict in &case.verdicts {
                let _ = writeln!(
                    out,
                    "  {:<17} {:<74} {:>12}  {}",
                    case.name,
                    verdict.goal,
                    verdict.found,
                    verdict.outcome()
                );
            }
        }
        out
    }

    /// Whether a limit or one of our own programs failed.
    pub fn failed(&self, ours: &[&str]) -> bool {
        let mut rows = self.cases.iter().flat_map(|case| &case.rows);
        rows.any(|row| row.error.is_some() && (row.limit || ours.contains(&row.subject.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Done;
    use crate::server::Traffic;

    fn sample(value: f64) -> Sample {
        let traffic = Traffic { requests: 3, objects: 2, bytes: 1 << 20, taken: 0 };
        let done = Done { operations: 2, bytes: 1 << 29, seconds: None };
        Sample { value, done, readers: 0.25, traffic, cpu: Some(0.5), peak_memory: Some(7 << 20) }
    }

    fn case(unit: Unit, yardstick: &[&str]) -> CaseReport {
        let row = |subject: &str, limit, values: &[f64]| {
            let samples: Vec<Sample> = values.iter().map(|value| sample(*value)).collect();
            let error = samples.is_empty().then(|| "it broke".to_owned());
            Row::new(subject.to_owned(), limit, unit, &samples, error)
        };
        let rows = vec![
            row("raw 1", true, &[2.5]),
            row("raw 8", true, &[4.0, 3.0, 5.0]),
            row("daemon", true, &[2.5, 2.5]),
            row("ours", false, &[2.0, 9.0, 1.0]),
            row("theirs", false, &[]),
            row("others'", false, &[0.5]),
        ];
        let yardstick: Vec<String> = yardstick.iter().map(|&name| name.to_owned()).collect();
        let goals = [Goal::Share(0.9), Goal::Peers(1.0), Goal::ObjectRequests(2), Goal::FetchedPerOperation(1 << 19)];
        CaseReport::new(("x".to_owned(), "y".to_owned(), unit), rows, &yardstick, &goals, "ours")
    }

    #[test]
    fn ratios_are_to_the_lower_limit_and_failures_are_shown() {
        let report = case(Unit::GibPerSecond, &["raw 8", "daemon"]);
        let ratios: Vec<_> = report.rows.iter().map(|row| row.ratio).collect();
        assert_eq!(ratios, [Some(1.0), Some(1.6), Some(1.0), Some(0.8), None, Some(0.2)]);
        let table = report.table();
        assert!(
            table.contains("1.00 - 9.00   3   0.80         3         2          1.0      1.50    0.50         7"),
            "{table}"
        );
        assert!(table.contains("FAILED: it broke"), "{table}");
        assert!(table.contains("ratio: to the lower of raw 8 and daemon\n"), "{table}");
        assert!(table.contains("goal: at least 0.90 of the lower of raw 8 and daemon: 0.80, SHORT\n"), "{table}");
        assert!(table.contains("goal: ahead of every peer: 4.0 x, reached\n"), "{table}");
        assert_eq!(report.verdicts[2].reached, Some(true));
        assert_eq!(report.verdicts[3].reached, Some(true));
        // Of seconds, the lower limit is the longer time.
        assert_eq!(case(Unit::Seconds, &["raw 8", "daemon"]).rows[3].ratio, Some(2.0));
        assert_eq!(case(Unit::Seconds, &["raw 1"]).rows[3].ratio, Some(1.25));
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let report = case(Unit::GibPerSecond, &[]);
        assert!(report.rows.iter().all(|row| row.ratio.is_none()) && report.goal_ratio.is_none());
        assert_eq!(report.verdicts[0].reached, None);
        assert!(!report.table().contains("ratio: to"));
    }

    #[test]
    fn without_a_limit_the_figure_asked_for_is_the_measure() {
        let rows = vec![Row::new("ours".to_owned(), false, Unit::Seconds, &[sample(0.03)], None)];
        let name = ("x".to_owned(), String::new(), Unit::Seconds);
        let report = CaseReport::new(name, rows, &[], &[Goal::Figure(0.06)], "ours");
        assert_eq!((report.rows[0].ratio, report.goal_ratio), (Some(2.0), Some(1.0)));
        assert!(report.table().contains("ratio: to the 0.060 s asked for\n"), "{}", report.table());
    }
}
