//! What one task used, from its preparation to its uploads.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::probe::{Processes, TaskReading};
use super::reading::float;
use super::sample::{Sample, Series};
use super::{Metrics, REPORT};
use crate::cgroup::{ForeignGroup, GroupUsage, TaskGroup};

/// A line covers at least this share of the time before it, so that a task of weeks does not write for ever.
const SHARE: u32 = 2880;

/// Where a task's own use is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSource {
    /// The shim that it runs under.
    pub shim: i32,
    /// Where the shim has written down which control group it has made.
    pub group: PathBuf,
    /// Where it has written down which one the engine has made, if the task runs in a container.
    pub container: Option<PathBuf>,
}

/// What counts for a task.
#[derive(Debug)]
enum Counter {
    Task(TaskGroup),
    Container(ForeignGroup),
}

impl Counter {
    fn of(source: &TaskSource) -> Option<Self> {
        match &source.container {
            Some(record) => ForeignGroup::of_record(record).ok().flatten().map(Self::Container),
            None => TaskGroup::of_record(&source.group).ok().flatten().map(Self::Task),
        }
    }

    fn usage(&self) -> GroupUsage {
        match self {
            Self::Task(group) => group.usage(),
            Self::Container(group) => group.usage(),
        }
    }

    fn memory_now(&self) -> Option<u64> {
        match self {
            Self::Task(group) => group.memory_now(),
            Self::Container(group) => group.memory_now(),
        }
    }
}

impl TaskSource {
    /// What the task has used; none when it is gone. `processes` are asked where no control group counts.
    fn read(&self, counter: &mut Option<Counter>, processes: &mut Processes) -> Option<TaskReading> {
        if counter.is_none() {
            *counter = Counter::of(self);
        }
        let counted = counter.as_ref().and_then(|counter| {
            let usage = counter.usage();
            let cpu_us = (usage.user_ms? + usage.system_ms?) * 1000;
            Some(TaskReading { cpu_us, memory: counter.memory_now()? })
        });
        let reading = counted.unwrap_or_else(|| processes.below(self.shim));
        (reading.memory > 0 || reading.cpu_us > 0).then_some(reading)
    }
}

/// The program, while it runs.
#[derive(Debug)]
struct Program {
    source: TaskSource,
    counter: Option<Counter>,
    last: TaskReading,
    /// When that was.
    at: Instant,
    /// All of its time so far.
    whole: Option<Sample>,
}

/// What is known of a recording.
#[derive(Debug)]
pub(super) struct State {
    name: String,
    begun: Instant,
    file: Option<File>,
    series: Series,
    window: Option<Sample>,
    program: Option<Program>,
}

impl State {
    pub(super) fn new(name: &str, path: Option<&Path>) -> Self {
        let mut series = Series::default();
        let file = path.and_then(|path| open(path, &mut series));
        Self { name: name.to_owned(), begun: Instant::now(), file, series, window: None, program: None }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Adds what the node used, with what the task did.
    pub(super) fn add(&mut self, node: &Sample, processes: &mut Processes) -> Sample {
        let mut sample = node.clone();
        if let Some(program) = &mut self.program {
            // Nobody is left when the program has ended; what it used in the end its shim says.
            if let Some(reading) = program.source.read(&mut program.counter, processes) {
                program.add(&mut sample, reading);
            }
        }
        self.push(sample.clone());
        sample
    }

    fn push(&mut self, sample: Sample) {
        // Two agents, or two in one moment: no time is no information.
        if sample.seconds > 0.0 {
            self.series.push(sample.clone());
        }
        let window = match self.window.take() {
            Some(window) => window.and(sample),
            None => sample,
        };
        let due = REPORT.max(self.begun.elapsed() / SHARE);
        let is_due = window.seconds >= due.as_secs_f64() - 0.5;
        self.window = Some(window);
        if is_due {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let (Some(window), Some(file)) = (self.window.take(), &mut self.file) else { return };
        let line = serde_json::to_vec(&window).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            file.write_all(&line)
        });
        if let Err(error) = line {
            tracing::debug!(%error, task = self.name, "what it uses cannot be written down");
            self.file = None;
        }
    }
}

impl Program {
    fn add(&mut self, sample: &mut Sample, reading: TaskReading) {
        let now = Instant::now();
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        sample.task = Some(reading.since(&self.last, seconds, sample.cpu.cores));
        // Processes that ended without anybody waiting take their time with them.
        self.last = TaskReading { cpu_us: self.last.cpu_us.max(reading.cpu_us), memory: reading.memory };
        self.at = now;
        self.whole = Some(match self.whole.take() {
            Some(whole) => whole.and(sample.clone()),
            None => sample.clone(),
        });
    }
}

/// Opens the file to be added to, and takes up what is in it.
fn open(path: &Path, series: &mut Series) -> Option<File> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).for_each(|sample| series.push(sample));
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path).and_then(|mut file| {
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok(file)
    });
    opened.map_err(|error| tracing::debug!(%error, "no metrics are written to {}", path.display())).ok()
}

/// A recording under way. Dropped, it ends.
#[derive(Debug)]
pub struct Recording {
    metrics: Metrics,
    number: u64,
    /// What the program used, once it has ended.
    program: Option<Sample>,
}

/// What was recorded.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// From beginning to end.
    pub series: Series,
    /// The program's time, as one; none if it never ran.
    pub program: Option<Sample>,
}

impl Recording {
    pub(super) fn new(metrics: Metrics, number: u64) -> Self {
        Self { metrics, number, program: None }
    }

    /// One of nothing.
    pub(super) fn nothing() -> Self {
        Self::new(Metrics::default(), 0)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Option<T> {
        let shared = self.metrics.shared()?;
        shared.lock().recordings.get_mut(&self.number).map(change)
    }

    /// The program runs from now on. `has_run` says that it did so before this agent began, and what it used then is not known.
    pub fn program_started(&self, source: TaskSource, has_run: bool) {
        if let Some(shared) = self.metrics.shared() {
            shared.tick();
        }
        let mut counter = None;
        let used = has_run.then(|| source.read(&mut counter, &mut Processes::default())).flatten();
        self.change(|state| {
            let last = used.unwrap_or_default();
            let program = Program { source, counter, last, at: Instant::now(), whole: None };
            state.program = Some(program);
            state.begun = Instant::now();
        });
        if let Some(shared) = self.metrics.shared() {
            shared.woken.notify_all();
        }
    }

    /// The program has ended, after it had run for `elapsed`, used `cpu` of processor time, and had at least `memory` bytes at some time.
    pub fn program_ended(&mut self, cpu: Duration, elapsed: Duration, memory: u64) {
        if let Some(shared) = self.metrics.shared() {
            shared.tick();
        }
        let ended = self.change(|state| {
            let mut program = state.program.take()?;
            let seconds = program.at.elapsed().as_secs_f64();
            let missing = u64::try_from(cpu.as_micros()).unwrap_or(0).saturating_sub(program.last.cpu_us);
            // What it used after it was last looked at, where that is more than the noise of two clocks.
            let last = program.whole.clone().or_else(|| state.series.samples().last().cloned());
            if let Some(mut rest) = last.filter(|_| seconds > 0.0) {
                let reading = TaskReading { cpu_us: program.last.cpu_us + missing, memory: program.last.memory };
                rest.seconds = seconds;
                rest.time = jiff::Timestamp::now();
                rest.task = Some(reading.since(&program.last, seconds, rest.cpu.cores));
                program.whole = Some(match program.whole.take() {
                    Some(whole) => whole.and(rest),
                    None => rest,
                });
            }
            // Samples miss what is between them; this is all of it.
            if let Some(task) = program.whole.as_mut().and_then(|whole| whole.task.as_mut())
                && !elapsed.is_zero()
            {
                task.cpu.mean = cpu.as_secs_f64() / elapsed.as_secs_f64();
                task.cpu.peak = task.cpu.peak.max(task.cpu.mean);
                task.memory.peak = task.memory.peak.max(float(memory));
                if task.memory.mean == 0.0 {
                    task.memory.mean = float(memory);
                }
            }
            program.whole
        });
        self.program = ended.flatten();
    }

    /// The end, after a last sample.
    pub fn finish(mut self) -> Recorded {
        let Some(shared) = self.metrics.shared() else { return Recorded::default() };
        shared.tick();
        let Some(mut state) = shared.lock().recordings.remove(&self.number) else { return Recorded::default() };
        state.flush();
        Recorded { series: std::mem::take(&mut state.series), program: self.program.take() }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(shared) = self.metrics.shared() {
            shared.lock().recordings.remove(&self.number);
        }
    }
}

/// Where the lines of an attempt are, below the directory of its logs.
pub(crate) fn file(logs: &Path) -> PathBuf {
    logs.join("metrics.jsonl")
}
