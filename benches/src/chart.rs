//! The ratios as a picture: a bar for every program in every case, in SVG that needs nothing but itself. Pure.
//!
//! The scale is linear, with a line where a program reaches its yardstick and a mark where ours has to be: a mount that reaches a
//! hundredth of the wire should look like it. Bars that go beyond the edge say by how much.

use std::fmt::Write as _;

use crate::figures::float;
use crate::report::{CaseReport, Report, Row};

/// Pixels.
const WIDTH: u32 = 1180;
const COLUMNS: u32 = 2;
const COLUMN: u32 = WIDTH / COLUMNS;
const LABELS: u32 = 76;
const BARS: u32 = 320;
const BAR: u32 = 12;
const TITLE: u32 = 21;
const GAP: u32 = 10;
const HEAD: u32 = 64;

/// The ratio at the right edge.
const EDGE: f64 = 1.25;

/// Ours first, then the peers in the order they are measured in.
const COLOURS: [&str; 5] = ["#0b5cad", "#e08214", "#5aae61", "#9970ab", "#878787"];

/// Draws it.
pub fn chart(report: &Report) -> String {
    let drawn: Vec<&CaseReport> = report.cases.iter().filter(|case| bars(case).next().is_some()).collect();
    let total: u32 = drawn.iter().map(|case| height(case)).sum();
    let mut columns: Vec<Vec<&CaseReport>> = vec![Vec::new()];
    let mut filled = 0;
    for case in drawn {
        if filled >= total.div_ceil(COLUMNS) {
            columns.push(Vec::new());
            filled = 0;
        }
        filled += height(case);
        if let Some(column) = columns.last_mut() {
            column.push(case);
        }
    }
    let tallest = columns.iter().map(|column| column.iter().map(|case| height(case)).sum()).max().unwrap_or(0);
    let height = HEAD + tallest + 26;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    text(
        &mut out,
        (12, 22),
        "font-size=\"15\" font-weight=\"bold\"",
        "Share of what disk, wire and daemon path allow (more is better)",
    );
    let machine = &report.machine;
    let about = format!(
        "{}; {} cores, {} GiB, Linux {}; load {} to {}",
        machine.time, machine.cores, machine.memory_gib, machine.kernel, machine.load, report.load_at_end
    );
    text(&mut out, (12, 38), GREY, &about);
    let mut x = 12;
    for (number, program) in
        report.programs.iter().filter(|program| position(report, &program.name).is_some()).enumerate()
    {
        let number = u32::try_from(number).unwrap_or(0);
        let _ = writeln!(out, "<rect x=\"{x}\" y=\"46\" width=\"10\" height=\"10\" fill=\"{}\"/>", colour(number));
        text(&mut out, (x + 14, 55), "", &program.name);
        x += 100;
    }
    text(
        &mut out,
        (x, 55),
        GREY,
        "dashed line: the yardstick that stands above the bars; red mark: what fuse-oss has to reach",
    );
    for (number, column) in columns.iter().enumerate() {
        let left = u32::try_from(number).unwrap_or(0) * COLUMN + 12;
        let mut top = HEAD;
        for case in column {
            draw(&mut out, report, case, left, top);
            top += self::height(case);
        }
    }
    out.push_str("</svg>\n");
    out
}

const GREY: &str = "fill=\"#666\"";

/// The mounts that have a ratio.
fn bars(case: &CaseReport) -> impl Iterator<Item = (&Row, f64)> {
    let mounts = case.rows.iter().filter(|row| !row.limit);
    mounts.filter_map(|row| Some((row, row.ratio.filter(|ratio| ratio.is_finite())?)))
}

fn height(case: &CaseReport) -> u32 {
    TITLE + BAR * u32::try_from(bars(case).count()).unwrap_or(0) + GAP
}

/// The place of a program among those that were measured.
fn position(report: &Report, name: &str) -> Option<u32> {
    let measured = report.programs.iter().filter(|program| {
        report.cases.iter().any(|case| case.rows.iter().any(|row| !row.limit && row.subject == program.name))
    });
    measured.map(|program| program.name.as_str()).position(|known| known == name).and_then(|at| u32::try_from(at).ok())
}

fn colour(number: u32) -> &'static str {
    COLOURS[usize::try_from(number).unwrap_or(0) % COLOURS.len()]
}

fn draw(out: &mut String, report: &Report, case: &CaseReport, left: u32, top: u32) {
    let (bar_left, baseline) = (left + LABELS, top + TITLE);
    let count = u32::try_from(bars(case).count()).unwrap_or(0);
    text(out, (left, top + 12), "font-weight=\"bold\"", &case.name);
    text(out, (left + 130, top + 12), GREY, &format!("of {}", case.yardstick));
    let one = f64::from(bar_left) + pixels(1.0);
    let bottom = baseline + BAR * count;
    let _ = writeln!(
        out,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"{baseline}\" y2=\"{bottom}\" stroke=\"#999\" stroke-dasharray=\"2,2\"/>"
    );
    for (number, (row, ratio)) in bars(case).enumerate() {
        let y = baseline + BAR * u32::try_from(number).unwrap_or(0);
        text(out, (left, y + 9), "", &row.subject);
        let fill = colour(position(report, &row.subject).unwrap_or(4));
        let width = pixels(ratio.min(EDGE)).max(0.5);
        let _ = writeln!(
            out,
            "<rect x=\"{bar_left}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" fill=\"{fill}\"/>",
            y + 1,
            BAR - 3
        );
        let beyond = if ratio > EDGE { "\u{2192} " } else { "" };
        let median = row.figures.map(|figures| format!("{} {}", case.unit.show(figures.median), case.unit.name()));
        text(out, (bar_left + BARS + 4, y + 9), "", &format!("{beyond}{ratio:.2}"));
        text(out, (bar_left + BARS + 62, y + 9), GREY, &median.unwrap_or_default());
    }
    if let Some(goal) = case.goal_ratio.filter(|goal| *goal <= EDGE) {
        let x = f64::from(bar_left) + pixels(goal);
        let _ = writeln!(out, "<path d=\"M{:.1},{} h6 l-3,5 z\" fill=\"#c00\"/>", x - 3.0, baseline.saturating_sub(5));
    }
}

fn pixels(ratio: f64) -> f64 {
    ratio / EDGE * float(BARS.into())
}

fn text(out: &mut String, (x, y): (u32, u32), style: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" {style}>{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Spread, Unit};
    use crate::machine::Machine;
    use crate::report::Program;

    fn report(ratios: &[(&str, Option<f64>)]) -> Report {
        let rows = ratios.iter().map(|(name, ratio)| {
            let mut row = Row::new((*name).to_owned(), false, Unit::Seconds, &[], None);
            row.figures = ratio.and_then(|ratio| Spread::of([ratio * 2.0]));
            row
        });
        let mut case =
            CaseReport::new(("seq <&>".to_owned(), String::new(), Unit::Seconds), rows.collect(), &[], &[], "ours");
        case.rows.iter_mut().zip(ratios).for_each(|(row, (_, ratio))| row.ratio = *ratio);
        case.goal_ratio = Some(0.8);
        let cases = (0..3).map(|_| case.clone()).collect();
        let program = |name: &str| Program { name: name.to_owned(), version: "1".to_owned() };
        Report {
            format: 2,
            machine: Machine::look(std::path::Path::new("/")),
            load_at_end: "0".to_owned(),
            programs: vec![program("ours"), program("theirs"), program("absent")],
            scale: 1.0,
            cases,
        }
    }

    #[test]
    fn every_figure_has_a_bar_that_stays_in_the_picture() {
        let drawn = chart(&report(&[("ours", Some(0.93)), ("theirs", Some(7.5)), ("broken", None)]));
        assert_eq!(drawn.matches("height=\"9\"").count(), 6, "{drawn}");
        assert!(drawn.contains(">0.93<") && drawn.contains(">\u{2192} 7.50<") && drawn.contains(">15.0 s<"), "{drawn}");
        // A bar of 0.93, and one that is cut off at the edge.
        assert!(drawn.contains("width=\"238.1\"") && drawn.contains("width=\"320.0\""), "{drawn}");
        assert!(drawn.contains("seq &lt;&amp;&gt;") && !drawn.contains("absent") && !drawn.contains("NaN"));
        assert_eq!(drawn.matches("<text").count(), drawn.matches("</text>").count());
        assert_eq!(drawn.matches("#c00").count(), 3);
    }

    #[test]
    fn a_picture_of_nothing_is_a_picture() {
        let drawn = chart(&report(&[("ours", None)]));
        assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>\n") && drawn.matches("height=\"9\"").count() == 0);
    }
}
