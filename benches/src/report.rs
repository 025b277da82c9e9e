//! What comes out: a table for people, JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::case::Sample;
use crate::figures::{Spread, Unit, float};
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
#[derive(Debug, Serialize)]
pub struct CaseReport {
    /// Its name.
    pub name: String,
    /// What was done.
    pub about: String,
    /// What figures are in.
    pub unit: Unit,
    /// Limits first, then mounts.
    pub rows: Vec<Row>,
}

/// One line of a table.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub subject: String,
    /// Whether it is a limit.
    pub limit: bool,
    /// The figures; absent when it failed.
    pub figures: Option<Spread>,
    /// How much of the best limit's median the median reaches; more is better.
    pub of_limit: Option<f64>,
    /// Requests to the store in the median sample.
    pub requests: Option<f64>,
    /// Bytes of objects that the store sent, median.
    pub fetched: Option<f64>,
    /// Processor seconds of the mount's program, median.
    pub cpu: Option<f64>,
    /// The greatest peak of its memory, in bytes.
    pub peak_memory: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Row {
    /// From what was measured; `error` is of the sample after which nothing more was measured.
    pub fn new(subject: String, limit: bool, samples: &[Sample], error: Option<String>) -> Self {
        let median = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value)).map(|spread| spread.median);
        Self {
            subject,
            limit,
            figures: Spread::of(samples.iter().map(|sample| sample.value)),
            of_limit: None,
            requests: median(|sample| float(sample.traffic.requests)),
            fetched: median(|sample| float(sample.traffic.bytes)),
            cpu: Spread::of(samples.iter().filter_map(|sample| sample.cpu)).map(|spread| spread.median),
            peak_memory: samples.iter().filter_map(|sample| sample.peak_memory).max(),
            error,
        }
    }
}

impl CaseReport {
    /// Fills in the ratios.
    pub fn with_ratios(mut self) -> Self {
        let limits = self.rows.iter().filter(|row| row.limit);
        let best = limits.filter_map(|row| row.figures).map(|figures| figures.median);
        let best = best.reduce(|a, b| self.unit.better(a, b));
        for row in &mut self.rows {
            row.of_limit = row.figures.zip(best).map(|(figures, best)| self.unit.share(figures.median, best));
        }
        self
    }

    /// As a table.
    pub fn table(&self) -> String {
        let mut out = format!("{}: {}\n", self.name, self.about);
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "  {:<24} {:>8} {:>17} {:>3} {:>9} {:>9} {:>12} {:>8} {:>9}",
            "",
            self.unit.name(),
            "min - max",
            "n",
            "of limit",
            "requests",
            "fetched MiB",
            "CPU s",
            "peak MiB"
        );
        for row in &self.rows {
            let optional = |value: Option<f64>, digits: usize| match value {
                Some(value) => format!("{value:.digits$}"),
                None => "-".to_owned(),
            };
            if let Some(figures) = row.figures {
                let spread = format!("{} - {}", self.unit.show(figures.min), self.unit.show(figures.max));
                let _ = writeln!(
                    out,
                    "  {:<24} {:>8} {spread:>17} {:>3} {:>9} {:>9} {:>12} {:>8} {:>9}",
                    row.subject,
                    self.unit.show(figures.median),
                    figures.count,
                    optional(row.of_limit, 2),
                    optional(row.requests, 0),
                    optional(row.fetched.map(|bytes| bytes / float(1 << 20)), 1),
                    optional(row.cpu, 2),
                    optional(row.peak_memory.map(|bytes| float(bytes >> 20)), 0),
                );
            }
            if let Some(error) = &row.error {
                let _ = writeln!(out, "  {:<24} FAILED: {error}", row.subject);
            }
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
            let _ = writeln!(out, "  {:<10} {}", program.name, program.version);
        }
        out
    }

    /// Whether a limit or one of our own mounts failed.
    pub fn failed(&self, ours: &str) -> bool {
        let mut rows = self.cases.iter().flat_map(|case| &case.rows);
        rows.any(|row| row.error.is_some() && (row.limit || row.subject == ours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Traffic;

    fn sample(value: f64) -> Sample {
        Sample { value, traffic: Traffic { requests: 3, bytes: 1 << 20 }, cpu: Some(0.5), peak_memory: Some(7 << 20) }
    }

    #[test]
    fn ratios_are_to_the_best_limit_and_failures_are_shown() {
        let row = |subject: &str, limit, values: &[f64]| {
            let samples: Vec<Sample> = values.iter().map(|value| sample(*value)).collect();
            let error = samples.is_empty().then(|| "it broke".to_owned());
            Row::new(subject.to_owned(), limit, &samples, error)
        };
        let rows = vec![
            row("raw 1", true, &[2.0]),
            row("raw 8", true, &[4.0, 3.0, 5.0]),
            row("ours", false, &[2.0, 9.0, 1.0]),
            row("theirs", false, &[]),
        ];
        let case = CaseReport { name: "x".to_owned(), about: "y".to_owned(), unit: Unit::GibPerSecond, rows };
        let case = case.with_ratios();
        assert_eq!(
            case.rows.iter().map(|row| row.of_limit).collect::<Vec<_>>(),
            [Some(0.5), Some(1.0), Some(0.5), None]
        );
        let table = case.table();
        assert!(table.contains("1.00 - 9.00   3      0.50         3          1.0     0.50         7"), "{table}");
        assert!(table.contains("FAILED: it broke"), "{table}");
        let seconds = CaseReport { unit: Unit::Seconds, ..case }.with_ratios();
        assert_eq!(seconds.rows[2].of_limit, Some(1.0));
    }
}
