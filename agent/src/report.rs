//! `report.<job>.<task>.<instance>.html`: everything about an instance on one page, for a person.
//!
//! The page is one file that needs nothing else: its style is in it, its curves are drawn, it runs no script, and a content security
//! policy says so to the browser. Whatever comes from the task (names, messages, log lines) is text and stays text: there is one way of
//! putting it into the page, `Page::text`, and that escapes.

mod chart;

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use oss::{Location, PutMode};
use serde_json::Value;

use crate::events::Events;
use crate::instance::{Context, Evidence};
use crate::job::Task;
use crate::job::names::Attempt;
use crate::metrics::sample::{Level, Role, Sample};
use crate::outcome::{InstanceOutcome, State};
pub(crate) use chart::bytes;
use chart::{Curve, Ink, Unit, clock};

/// The style sheet.
const STYLE: &str = include_str!("report/page.css");

/// The most uploaded files that are listed; the manifest has all.
const FILES: usize = 100;

/// The most events that are listed.
const EVENTS: usize = 200;

/// How long writing it may keep an instance from ending.
const LIMIT: Duration = Duration::from_secs(20);

/// Something that took its time, for the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// What.
    pub name: String,
    /// When it began.
    pub started: Timestamp,
    /// When it was over; it goes on when absent.
    pub ended: Option<Timestamp>,
    /// Whether it failed.
    pub failed: bool,
    /// What there is to say.
    pub message: Option<String>,
}

/// Somebody who knows what came before the instance; nobody by default.
#[derive(Clone, Default)]
pub struct Timeline(Option<Arc<dyn Fn() -> Vec<Span> + Send + Sync>>);

impl Timeline {
    /// Asks this.
    pub fn ask(spans: impl Fn() -> Vec<Span> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(spans)))
    }

    fn spans(&self) -> Vec<Span> {
        self.0.as_ref().map(|spans| spans()).unwrap_or_default()
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Timeline").field(&self.0.is_some()).finish()
    }
}

/// The instance's own: preparing it, its program, and bringing home what that has left.
fn own_spans(outcome: &InstanceOutcome, program: Option<(Timestamp, Timestamp)>) -> Vec<Span> {
    let span = |name: &str, started, ended, failed| Span {
        name: name.to_owned(),
        started,
        ended: Some(ended),
        failed,
        message: None,
    };
    match program {
        None => vec![span("preparing", outcome.started, outcome.ended, outcome.state == State::Failed)],
        Some((started, ended)) => {
            let failed = outcome.exit_code != Some(0);
            vec![
                span("preparing", outcome.started.min(started), started, false),
                span("program", started, ended, failed),
                span("outputs and logs", ended, outcome.ended.max(ended), !outcome.outputs.failed.is_empty()),
            ]
        }
    }
}

/// All that is on a page.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub job: &'a str,
    pub outcome: &'a InstanceOutcome,
    pub evidence: &'a Evidence,
    pub command: &'a [String],
    pub timeline: Vec<Span>,
    pub events: Vec<Value>,
}

/// A page that is to be written.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Report {
    /// Where to.
    target: String,
    page: String,
}

/// The report of an instance that has ended, to be written beside its logs; none if it has none.
pub(crate) fn report(context: &Context, task: &Task, outcome: &InstanceOutcome, evidence: &Evidence) -> Option<Report> {
    let beside = evidence.beside.as_ref()?;
    let attempt = Attempt { job: context.job.as_str(), task: &task.name, instance: outcome.instance, number: 1 };
    let mut timeline = context.timeline.spans();
    timeline.extend(own_spans(outcome, evidence.program));
    let subject = Subject {
        job: context.job.as_str(),
        outcome,
        evidence,
        command: &task.command,
        timeline,
        events: of_the_instance(&context.events, context.job.as_str(), &task.name, outcome.instance),
    };
    Some(Report { target: beside.sibling(&attempt.report()).to_string(), page: page(&subject) })
}

impl Report {
    /// Writes it. That it could not be written is said, and no more than that.
    pub(crate) async fn publish(&self, context: &Context) {
        let put = async {
            let target: Location = self.target.parse().map_err(|error| format!("{error}"))?;
            let store = context.stores.open(&target).map_err(|error| error.to_string())?;
            let put = store.put(target.key(), self.page.clone().into(), PutMode::Overwrite);
            put.await.map(drop).map_err(|error| error.to_string())
        };
        let target = self.target.escape_debug();
        match tokio::time::timeout(LIMIT, put).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("report {target}: {error}"),
            Err(_) => tracing::warn!("report {target}: storage does not take it"),
        }
    }
}

/// The events that concern an instance: its own, its job's, its task's and the node's.
fn of_the_instance(events: &Events, job: &str, task: &str, instance: u32) -> Vec<Value> {
    let instance = instance.to_string();
    events.last(EVENTS, |event| {
        let is = |key: &str, value: &str| event.get(key).is_none_or(|found| found == value);
        let is_started = event.get("event").is_some_and(|name| name == "PhaseStarted" || name == "PhaseSkipped");
        let is_cluster = event.get("Category").is_some_and(|category| category == "Cluster");
        !is_started && (is_cluster || (is("JobId", job) && is("Task", task) && is("InstanceId", &instance)))
    })
}

/// A page that grows.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    /// Our own mark-up.
    fn raw(&mut self, markup: &str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Somebody's text.
    fn text(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(c),
                // What a terminal understands and a page does not, and what turns the order of letters around.
                c if c.is_control() || is_deceptive(c) => {
                    // Writing to a String cannot fail.
                    let _ = write!(self.0, "&lt;{:02x}&gt;", u32::from(c));
                }
                c => self.0.push(c),
            }
        }
        self
    }
}

/// Characters that make text look like another.
fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The page.
pub(crate) fn page(subject: &Subject<'_>) -> String {
    let outcome = subject.outcome;
    let title = format!("{} \u{b7} {}.{}", subject.job, outcome.task, outcome.instance);
    let mut page = Page::default();
    page.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .raw("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n")
        .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"robots\" content=\"noindex\">\n<title>")
        .text(&title)
        .raw("</title>\n<style>\n")
        .raw(STYLE)
        .raw("</style>\n</head>\n<body>\n");
    head(&mut page, subject);
    facts(&mut page, subject);
    timeline(&mut page, &subject.timeline);
    charts(&mut page, subject);
    figures(&mut page, subject);
    outputs(&mut page, subject);
    events(&mut page, &subject.events);
    logs(&mut page, subject);
    page.raw("<footer>batch-agent ").raw(env!("CARGO_PKG_VERSION")).raw(", ").text(&second(outcome.ended));
    page.raw(" UTC</footer>\n</body>\n</html>\n");
    page.0
}

/// A time to the second.
fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn head(page: &mut Page, subject: &Subject<'_>) {
    let outcome = subject.outcome;
    let state = format!("{:?}", outcome.state);
    page.raw("<header>\n<h1>").text(&format!("{}.{}", outcome.task, outcome.instance));
    page.raw(" <span class=\"state ")
        .raw(&state)
        .raw("\">")
        .raw(&state)
        .raw("</span></h1>\n<div class=\"quiet\">job <code>");
    page.text(subject.job).raw("</code></div>\n");
    if let Some(message) = &outcome.message {
        page.raw("<div class=\"message\">").text(message);
        if let Some(cause) = outcome.cause {
            page.raw(" <span class=\"quiet\">(cause: ").raw(cause.as_str()).raw(")</span>");
        }
        page.raw("</div>\n");
    }
    let command = shell_words::join(subject.command);
    page.raw("<p class=\"mono\">").text(&shortened(&command, 2000)).raw("</p>\n</header>\n");
}

fn shortened(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{} \u{2026}", &text[..end]),
        None => text.to_owned(),
    }
}

fn fact(page: &mut Page, value: &str, what: &str) {
    page.raw("<div class=\"fact\"><b>").text(value).raw("</b><span>").text(what).raw("</span></div>\n");
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

fn facts(page: &mut Page, subject: &Subject<'_>) {
    let outcome = subject.outcome;
    page.raw("<div class=\"facts\">\n");
    match (outcome.exit_code, outcome.signal) {
        (Some(code), _) => fact(page, &code.to_string(), "exit code"),
        (None, Some(signal)) => fact(page, &signal.to_string(), "killed by signal"),
        (None, None) => fact(page, "\u{2013}", "the program never ran"),
    }
    if let Some(elapsed) = outcome.elapsed_ms {
        let whole = seconds(outcome.started, outcome.ended);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of any program are exact")]
        let program = elapsed as f64 / 1000.0;
        fact(page, &clock(program), &format!("of {} ran the program", clock(whole)));
    }
    let figures = outcome.figures.as_ref();
    if let Some((sample, task)) = figures.and_then(|figures| Some((figures, figures.task?))) {
        let peak = format!("of {} cores on average, {} at most", sample.cpu.cores, Unit::Cores.shown(task.cpu.peak));
        fact(page, &Unit::Cores.shown(task.cpu.mean), &peak);
        let total = Unit::Bytes.shown(approximate(sample.memory.total));
        fact(page, &bytes(task.memory.peak), &format!("memory at most, of {total}"));
    }
    let uploaded = approximate(outcome.outputs.bytes);
    fact(page, &outcome.outputs.files.to_string(), &format!("files uploaded, {}", bytes(uploaded)));
    if outcome.attempts > 1 {
        fact(page, &outcome.attempts.to_string(), "attempts");
    }
    page.raw("</div>\n");
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn approximate(value: u64) -> f64 {
    value as f64
}

fn timeline(page: &mut Page, spans: &[Span]) {
    let Some(begin) = spans.iter().map(|span| span.started).min() else { return };
    let end = spans.iter().filter_map(|span| span.ended).max().unwrap_or(begin);
    let whole = seconds(begin, end).max(0.001);
    page.raw("<h2>Timeline</h2>\n<div class=\"card\"><table class=\"bars\">\n");
    for span in spans {
        let from = seconds(begin, span.started) / whole * 100.0;
        let took = span.ended.map(|ended| seconds(span.started, ended));
        let width = (took.unwrap_or(whole) / whole * 100.0).clamp(0.4, 100.0);
        let class = match (span.failed, span.ended) {
            (true, _) => " class=\"failed\"",
            (false, None) => " class=\"running\"",
            (false, Some(_)) => "",
        };
        page.raw("<tr><td>").text(&span.name).raw("</td><td class=\"number\">");
        page.text(&took.map_or_else(|| "\u{2026}".to_owned(), clock)).raw("</td><td><div class=\"bar\">");
        let (from, width) = (from.min(99.6), width.min(100.0 - from.min(99.6)));
        page.raw(&format!(
            "<svg viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect{class} x=\"{from:.2}\" y=\"0\" width=\"{width:.2}\" height=\"10\"/></svg>"
        ));
        page.raw("</div>");
        if let Some(message) = &span.message {
            page.raw("<span class=\"quiet\">").text(&shortened(message, 300)).raw("</span>");
        }
        page.raw("</td></tr>\n");
    }
    page.raw("</table></div>\n");
}

/// One chart: its title, its unit and its curves.
struct Chart {
    title: &'static str,
    unit: Unit,
    curves: Vec<Curve>,
}

fn charts(page: &mut Page, subject: &Subject<'_>) {
    let samples = subject.evidence.recorded.series.samples();
    if samples.len() < 2 {
        return;
    }
    let begin = samples[0].time;
    let end = seconds(begin, samples[samples.len() - 1].time);
    page.raw("<h2>What was used</h2>\n<div class=\"charts\">\n");
    for chart in all_charts(samples, begin) {
        page.raw("<div class=\"card\"><h3>").text(chart.title).raw("<span class=\"key\">");
        for curve in &chart.curves {
            let class = match curve.ink {
                Ink::First => "i1",
                Ink::Second => "i2",
                Ink::Third => "i3",
                Ink::Limit => "i4",
            };
            page.raw("<i class=\"").raw(class).raw("\"></i>").text(curve.name);
        }
        page.raw("</span></h3>\n").raw(&chart::draw(&chart.curves, 0.0..end, chart.unit)).raw("</div>\n");
    }
    page.raw("</div>\n");
}

fn all_charts(samples: &[Sample], begin: Timestamp) -> Vec<Chart> {
    let curve = |ink, name, filled, value: &dyn Fn(&Sample) -> Option<f64>| Curve {
        ink,
        name,
        filled,
        points: samples.iter().filter_map(|sample| Some((seconds(begin, sample.time), value(sample)?))).collect(),
    };
    let disks = |value: fn(&crate::metrics::sample::Disk) -> Level| {
        move |sample: &Sample| {
            // A device is told with each of its file systems, and counts once.
            let mut devices: Vec<(&str, f64)> =
                sample.disks.iter().map(|disk| (disk.device.as_str(), value(disk).mean)).collect();
            devices.sort_by(|one, other| one.0.cmp(other.0));
            devices.dedup_by(|one, other| one.0 == other.0);
            Some(devices.iter().filter(|(device, _)| !device.is_empty()).map(|(_, value)| value).sum::<f64>())
        }
    };
    let full = |role: Role| {
        move |sample: &Sample| {
            let disk = sample.disk(role)?;
            // One disk that is all of them is one curve.
            let first = disk.roles.iter().min();
            (first == Some(&role) && disk.size > 0).then(|| disk.used.mean / approximate(disk.size))
        }
    };
    let mut charts = vec![
        Chart {
            title: "Processors",
            unit: Unit::Cores,
            curves: vec![
                curve(Ink::First, "machine", true, &|sample| Some(sample.cpu.used.mean)),
                curve(Ink::Second, "task", false, &|sample| sample.task.map(|task| task.cpu.mean)),
                curve(Ink::Limit, "there are", false, &|sample| Some(f64::from(sample.cpu.cores))),
            ],
        },
        Chart {
            title: "Memory",
            unit: Unit::Bytes,
            curves: vec![
                curve(Ink::First, "machine", true, &|sample| Some(sample.memory.used.mean)),
                curve(Ink::Second, "task", false, &|sample| sample.task.map(|task| task.memory.mean)),
                curve(Ink::Limit, "there is", false, &|sample| Some(approximate(sample.memory.total))),
            ],
        },
        Chart {
            title: "Disks",
            unit: Unit::Rate,
            curves: vec![
                curve(Ink::First, "read", true, &disks(|disk| disk.read)),
                curve(Ink::Second, "written", false, &disks(|disk| disk.written)),
            ],
        },
        Chart {
            title: "Network",
            unit: Unit::Rate,
            curves: vec![
                curve(Ink::First, "received", true, &|sample| Some(sample.network.received.mean)),
                curve(Ink::Second, "sent", false, &|sample| Some(sample.network.sent.mean)),
            ],
        },
    ];
    let space = Chart {
        title: "Space on disks",
        unit: Unit::Share,
        curves: vec![
            curve(Ink::First, "system", true, &full(Role::System)),
            curve(Ink::Second, "data", false, &full(Role::Data)),
            curve(Ink::Third, "cache", false, &full(Role::Cache)),
        ],
    };
    charts.push(space);
    if samples.iter().any(|sample| sample.pressure.is_some()) {
        charts.push(Chart {
            title: "Waiting",
            unit: Unit::Share,
            curves: vec![
                curve(Ink::First, "for processors", true, &|sample| Some(sample.pressure?.cpu.mean)),
                curve(Ink::Second, "for memory", false, &|sample| Some(sample.pressure?.memory.mean)),
                curve(Ink::Third, "for disks", false, &|sample| Some(sample.pressure?.io.mean)),
            ],
        });
    }
    if samples.iter().any(|sample| !sample.gpus.is_empty()) {
        let mean = |value: fn(&crate::metrics::sample::Gpu) -> f64| {
            move |sample: &Sample| {
                let all: Vec<f64> = sample.gpus.iter().map(value).collect();
                (!all.is_empty()).then(|| all.iter().sum::<f64>() / approximate(all.len() as u64))
            }
        };
        charts.push(Chart {
            title: "Graphics processors",
            unit: Unit::Share,
            curves: vec![
                curve(Ink::First, "busy", true, &mean(|gpu| gpu.used.mean)),
                curve(
                    Ink::Second,
                    "memory",
                    false,
                    &mean(|gpu| {
                        if gpu.memory_total == 0 { 0.0 } else { gpu.memory_used.mean / approximate(gpu.memory_total) }
                    }),
                ),
            ],
        });
    }
    if samples.iter().any(|sample| sample.objects.is_some()) {
        charts.push(Chart {
            title: "Object mounts",
            unit: Unit::Rate,
            curves: vec![curve(Ink::First, "fetched from storage", true, &|sample| Some(sample.objects?.fetched.mean))],
        });
    }
    for chart in &mut charts {
        chart.curves.retain(|curve| !curve.points.is_empty());
    }
    charts.retain(|chart| !chart.curves.is_empty());
    charts
}

/// Mean and peak of everything while the program ran.
fn figures(page: &mut Page, subject: &Subject<'_>) {
    let Some(figures) = &subject.outcome.figures else { return };
    page.raw("<h2>While the program ran</h2>\n<div class=\"card\"><table>\n");
    page.raw("<tr><th></th><th class=\"number\">mean</th><th class=\"number\">peak</th><th class=\"number\">there is</th></tr>\n");
    let mut row = |name: &str, level: Level, unit: Unit, total: Option<f64>| {
        page.raw("<tr><td>").text(name).raw("</td>");
        let total = total.map_or(String::new(), |total| unit.shown(total));
        for value in [unit.shown(level.mean), unit.shown(level.peak), total] {
            page.raw("<td class=\"number\">").text(&value).raw("</td>");
        }
        page.raw("</tr>\n");
    };
    let (cores, memory) = (Some(f64::from(figures.cpu.cores)), Some(approximate(figures.memory.total)));
    if let Some(task) = figures.task {
        row("processors, task", task.cpu, Unit::Cores, cores);
    }
    row("processors, machine", figures.cpu.used, Unit::Cores, cores);
    if let Some(task) = figures.task {
        row("memory, task", task.memory, Unit::Bytes, memory);
    }
    row("memory, machine", figures.memory.used, Unit::Bytes, memory);
    let mut told = Vec::new();
    for disk in &figures.disks {
        let roles = disk.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ");
        let name = format!("{roles} disk {}", disk.path);
        if disk.is_stuck {
            row(&format!("{name}, which did not always answer"), disk.used, Unit::Bytes, None);
        } else {
            row(&name, disk.used, Unit::Bytes, Some(approximate(disk.size)));
        }
        if !disk.device.is_empty() && !told.contains(&disk.device) {
            told.push(disk.device.clone());
            row(&format!("read from {}", disk.device), disk.read, Unit::Rate, None);
            row(&format!("written to {}", disk.device), disk.written, Unit::Rate, None);
        }
    }
    row("received", figures.network.received, Unit::Rate, None);
    row("sent", figures.network.sent, Unit::Rate, None);
    for gpu in &figures.gpus {
        row(&format!("GPU {} ({})", gpu.index, gpu.name), gpu.used, Unit::Share, None);
        let total = Some(approximate(gpu.memory_total));
        row(&format!("GPU {} memory", gpu.index), gpu.memory_used, Unit::Bytes, total);
    }
    page.raw("</table></div>\n");
}

fn outputs(page: &mut Page, subject: &Subject<'_>) {
    let (arrived, failed) = (&subject.evidence.arrived, &subject.outcome.outputs.failed);
    if arrived.is_empty() && failed.is_empty() {
        return;
    }
    page.raw("<h2>Outputs</h2>\n");
    for failure in failed {
        page.raw("<div class=\"message\">").text(failure).raw("</div>\n");
    }
    if arrived.is_empty() {
        return;
    }
    page.raw("<div class=\"card\"><table>\n<tr><th>file</th><th class=\"number\">size</th><th>object</th></tr>\n");
    for file in arrived.iter().take(FILES) {
        page.raw("<tr><td class=\"mono\">").text(&file.path.to_string_lossy()).raw("</td><td class=\"number\">");
        page.text(&bytes(approximate(file.size)))
            .raw("</td><td class=\"mono\">")
            .text(&file.location)
            .raw("</td></tr>\n");
    }
    page.raw("</table>");
    if arrived.len() > FILES {
        let more = format!("and {} more, which the manifest has", arrived.len() - FILES);
        page.raw("<div class=\"quiet\">").text(&more).raw("</div>");
    }
    page.raw("</div>\n");
}

fn events(page: &mut Page, events: &[Value]) {
    if events.is_empty() {
        return;
    }
    page.raw("<h2>Events</h2>\n<div class=\"card\"><table>\n");
    let text = |event: &Value, keys: &[&str]| {
        let found = keys.iter().find_map(|key| event.get(key)?.as_str().filter(|text| !text.is_empty()));
        found.unwrap_or_default().to_owned()
    };
    for event in events {
        let time = text(event, &["time", "EndTime", "StartTime", "CreationTime"]);
        let time = time.parse::<Timestamp>().map(second).unwrap_or_default();
        page.raw("<tr><td class=\"time\">").text(&time).raw("</td><td>").text(&text(event, &["event", "Event"]));
        page.raw("</td><td>").text(&text(event, &["subject", "Task", "InstanceId"])).raw("</td><td>");
        page.text(&shortened(&text(event, &["message", "ErrorMessage", "Message"]), 500)).raw("</td></tr>\n");
    }
    page.raw("</table></div>\n");
}

fn logs(page: &mut Page, subject: &Subject<'_>) {
    let (outcome, evidence) = (subject.outcome, subject.evidence);
    page.raw("<h2>The ends of the logs</h2>\n<div class=\"logs\">\n");
    for (name, object, text) in
        [("stdout", &outcome.stdout, &evidence.stdout), ("stderr", &outcome.stderr, &evidence.stderr)]
    {
        page.raw("<div><h3>").raw(name);
        if let Some(object) = object {
            page.raw(" <span class=\"quiet mono\">").text(object).raw("</span>");
        }
        page.raw("</h3>\n<pre>\n").text(if text.is_empty() { "(nothing)" } else { text }).raw("</pre></div>\n");
    }
    page.raw("</div>\n");
}

#[cfg(test)]
mod tests;
