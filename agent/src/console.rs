//! What the user sees: lines on standard error, and bars where that is a terminal.
//!
//! Everything said goes through `tracing`, so a terminal, a pipe and journald show the same lines, as text or as JSON. On a
//! terminal, bars for transfers stand below the lines; nothing else is drawn. Elsewhere long transfers say now and then how far they are.

use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use oss::transfer::Progress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// The user's side of the agent.
#[derive(Debug, Clone)]
pub struct Console {
    bars: MultiProgress,
}

impl Console {
    /// Sets up logging for this process. `verbosity` 0 shows what happens, 1 how, 2 everything.
    pub fn start(format: LogFormat, verbosity: u8) -> Self {
        let is_terminal = io::stderr().is_terminal() && format == LogFormat::Text;
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let console = Self { bars: MultiProgress::with_draw_target(target) };
        let level = match verbosity {
            0 => "info",
            1 => "info,batch_agent=debug,oss=debug,fuse_oss=debug",
            _ => "debug,batch_agent=trace,oss=trace,fuse_oss=trace",
        };
        let filter = EnvFilter::try_from_env("BATCH_AGENT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(console.clone());
        // Whoever set up logging before us (a test) keeps it.
        let _ = match format {
            LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
            LogFormat::Text => {
                let text = subscriber.compact().with_target(verbosity > 0).with_ansi(is_terminal);
                // journald adds a time of its own; a person at a terminal knows the date.
                if is_terminal {
                    text.with_timer(TimeOfDay).try_init()
                } else if std::env::var_os("JOURNAL_STREAM").is_some() {
                    text.without_time().try_init()
                } else {
                    text.try_init()
                }
            }
        };
        console
    }

    /// A bar over `length` bytes; invisible where there is no terminal. It goes away when it is dropped.
    pub fn bar(&self, label: String, length: u64) -> Bar {
        let bar = self.bars.add(ProgressBar::new(length));
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(label);
        Bar(bar)
    }
}

/// How often a transfer says how far it is where no bar can be drawn.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Hours to milliseconds, in UTC.
struct TimeOfDay;

impl FormatTime for TimeOfDay {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let now = jiff::Timestamp::now().to_string();
        // 2026-11-20T11:02:22.980366472Z; a timestamp that falls on a whole second has no fraction.
        write!(writer, "{}", now.get(11..23).unwrap_or(&now))
    }
}

/// A progress bar.
#[derive(Debug, Clone)]
pub struct Bar(ProgressBar);

impl Bar {
    /// Moves it on.
    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// For one file of many: takes how much of it has arrived so far, and moves the bar by what is new.
    pub fn share(&self) -> Progress {
        let (bar, most) = (self.clone(), AtomicU64::new(0));
        // Pieces arrive in any order, and a download can begin again: what was counted once stays.
        Arc::new(move |done| {
            let before = most.fetch_max(done, Ordering::Relaxed);
            bar.advance(done.saturating_sub(before));
        })
    }

    /// Waits for `work`, and where the bar cannot be seen says in lines how far it is.
    pub async fn told<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            match tokio::time::timeout(TELL_EVERY, &mut work).await {
                Ok(done) => return done,
                Err(_) if self.0.is_hidden() => {
                    let (done, all) = (self.0.position(), self.0.length().unwrap_or(0));
                    tracing::info!("{}: {} of {}", self.0.message(), HumanBytes(done), HumanBytes(all));
                }
                Err(_) => {}
            }
        }
    }

    /// Takes it away.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Lines go above the bars.
#[derive(Debug)]
pub struct LineWriter(MultiProgress);

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Console {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter(self.bars.clone())
    }
}
