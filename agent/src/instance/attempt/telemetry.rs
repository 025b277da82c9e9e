//! What is recorded of an attempt beside its outcome: what it used, and the ends of its logs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use oss::{Location, PutMode, Store};
use tokio::task::JoinHandle;

use crate::instance::Context;
use crate::instance::outputs::Arrived;
use crate::instance::record::Record;
use crate::instance::workspace::Workspace;
use crate::job::names::Attempt;
use crate::metrics::{self, Recorded, Recording, TaskSource};
use crate::shim::{ExitRecord, ProcessId};

/// How much of the end of a log is kept for the report, in bytes.
const TAIL: u64 = 16 << 10;

/// Metrics are written to storage again when so much time has passed, and ...
const PAUSE: Duration = Duration::from_secs(30);

/// ... when the task has become older by this share: all of them are written each time.
const SHARE: u32 = 20;

/// How long the last of them may keep an attempt from ending.
const LAST: Duration = Duration::from_secs(20);

/// What an attempt leaves behind for its report.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// What it used.
    pub(crate) recorded: Recorded,
    /// The end of its standard output.
    pub(crate) stdout: String,
    /// The end of its standard error.
    pub(crate) stderr: String,
    /// When the program began and ended, if it ran.
    pub(crate) program: Option<(Timestamp, Timestamp)>,
    /// What was uploaded.
    pub(crate) arrived: Vec<Arrived>,
    /// An object beside which its report goes.
    pub(crate) beside: Option<Location>,
}

/// The recording of an attempt.
pub(super) struct Telemetry {
    recording: Recording,
    beside: Location,
    lines: Option<Lines>,
    program: Option<(Timestamp, Timestamp)>,
}

impl Telemetry {
    /// Begins it. What an agent before this one has recorded is taken up.
    pub(super) fn start(context: &Context, attempt: Attempt<'_>, beside: &Location, workspace: &Workspace) -> Self {
        let path = metrics::file(&workspace.logs());
        let recording = context.metrics.record(&attempt.to_string(), Some(&path));
        let target = beside.sibling(&attempt.metrics());
        let lines = context.stores.open(&target).ok().filter(|_| path.exists());
        let lines = lines.map(|store| Lines::start(path, store, target));
        Self { recording, beside: beside.clone(), lines, program: None }
    }

    /// The program runs. `has_run` says that an agent before this one has started it.
    pub(super) fn program_started(&self, shim: &ProcessId, record: &Record, has_run: bool) {
        let container = record.container.as_ref().map(|_| record.container_group());
        self.recording.program_started(TaskSource { shim: shim.pid, group: record.group(), container }, has_run);
    }

    /// The program has ended.
    pub(super) fn program_ended(&mut self, exit: &ExitRecord) {
        self.program = exit.start_failure.is_none().then_some((exit.started, exit.ended));
        let cpu = Duration::from_millis(exit.usage.user_ms + exit.usage.system_ms);
        let elapsed = Duration::from_millis(exit.elapsed_ms);
        let memory = match exit.usage.max_resident_bytes {
            // Nobody waits for the processes of a container but its engine.
            0 => exit.usage.memory_peak_bytes.unwrap_or(0),
            resident => resident,
        };
        self.recording.program_ended(cpu, elapsed, memory);
    }

    /// Ends it. Nothing of this is worth failing for.
    pub(super) async fn finish(self, workspace: &Workspace) -> Evidence {
        let recorded = self.recording.finish();
        if let Some(lines) = self.lines {
            lines.finish().await;
        }
        let (stdout, stderr) = (workspace.logs().join("stdout"), workspace.logs().join("stderr"));
        let read = move || (tail(&stdout), tail(&stderr));
        let (stdout, stderr) = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        Evidence { recorded, stdout, stderr, program: self.program, arrived: Vec::new(), beside: Some(self.beside) }
    }
}

/// The end of a log, from the beginning of a line on. What had to make room on the disk is a hole.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let from = length.saturating_sub(TAIL);
        let mut bytes = vec![0; usize::try_from(length - from).unwrap_or(0)];
        file.read_exact_at(&mut bytes, from)?;
        let hole = bytes.iter().take_while(|byte| **byte == 0).count();
        bytes.drain(..hole);
        if from > 0
            && let Some(end) = bytes.iter().position(|byte| *byte == b'\n')
            && end + 1 < bytes.len()
        {
            bytes.drain(..=end);
        }
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let is_gone = text.is_empty() && path.metadata().is_ok_and(|metadata| metadata.len() > 0);
    if is_gone { "(all of it has arrived and is on this machine no more)\n".to_owned() } else { text }
}

/// The lines of metrics on their way to storage.
struct Lines {
    path: PathBuf,
    store: Arc<dyn Store>,
    target: Location,
    now_and_then: JoinHandle<()>,
}

impl Lines {
    fn start(path: PathBuf, store: Arc<dyn Store>, target: Location) -> Self {
        let now_and_then = tokio::spawn({
            let (path, store, target) = (path.clone(), Arc::clone(&store), target.clone());
            async move {
                let began = Instant::now();
                loop {
                    tokio::time::sleep(PAUSE.max(began.elapsed() / SHARE)).await;
                    put(&path, &store, &target).await;
                }
            }
        });
        Self { path, store, target, now_and_then }
    }

    async fn finish(self) {
        self.now_and_then.abort();
        let last = put(&self.path, &self.store, &self.target);
        if tokio::time::timeout(LAST, last).await.is_err() {
            tracing::warn!("metrics {}: storage does not take them", self.target.escaped());
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.now_and_then.abort();
    }
}

async fn put(path: &Path, store: &Arc<dyn Store>, target: &Location) {
    let content = match tokio::fs::read(path).await {
        Ok(content) if content.is_empty() => return,
        Ok(content) => content,
        Err(error) => return tracing::debug!(%error, "metrics cannot be read back"),
    };
    if let Err(error) = store.put(target.key(), content.into(), PutMode::Overwrite).await {
        tracing::warn!("metrics {}: {error}", target.escaped());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_begins_with_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stdout");
        assert_eq!(tail(&path), "");
        std::fs::write(&path, b"short\xff\n").unwrap();
        assert_eq!(tail(&path), "short\u{fffd}\n");
        let lines: String = (0..10_000).map(|number| format!("line {number}\n")).collect();
        std::fs::write(&path, &lines).unwrap();
        let end = tail(&path);
        assert!(end.starts_with("line ") && end.ends_with("line 9999\n") && end.len() <= 16 << 10, "{end}");
        // A hole that reaches into it.
        let mut holed = vec![0; 20_000];
        holed.extend_from_slice(b"rest\n");
        std::fs::write(&path, holed).unwrap();
        assert_eq!(tail(&path), "rest\n");
    }
}
