//! `bench-logs`: how soon a line of a task's log can be read in storage, and what that costs.
//!
//! The real agent runs a task that writes at a steady rate; storage is the tests' double of OSS and S3 in this process. The writer
//! notes when it wrote how much, this program when how much was there. What an hour costs is what the time that was measured cost,
//! in proportion.

mod writer;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use serde_json::json;
use tests::double::{Double, DoubleConfig, Operation};

/// Where the log goes.
const BUCKET: &str = "test-bucket";
/// Its object.
const KEY: &str = "logs/stdout.bench.only.0";
/// How often storage is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How long the last bytes may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measure how soon a task's log can be read in storage at several rates, on OSS and S3, and what it costs. Needs root: the agent runs
/// tasks in namespaces. Leaves nothing behind.
#[derive(Debug, Parser)]
#[command(name = "bench-logs", version)]
struct Arguments {
    /// How long to write at each rate, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// The rates, in bytes per second.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 1_000_000, 50_000_000])]
    rates: Vec<u64>,
    /// The batch-agent program [default: the one beside this program].
    #[arg(long, value_name = "FILE")]
    batch_agent: Option<PathBuf>,
    /// Where logs and objects are while this runs.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Write bytes at a rate, as the task does. Not for people.
    #[arg(long, hide = true, num_args = 3, value_names = ["RATE", "SECONDS", "NOTES"])]
    write: Option<Vec<String>>,
}

/// What was measured at one rate.
struct Row {
    /// From the write to when it can be read, in seconds, sorted.
    latencies: Vec<f64>,
    /// For how long.
    seconds: f64,
    /// Requests that write.
    requests: usize,
    /// Bytes sent, and bytes written.
    sent: u64,
    written: u64,
    /// Processor time of the agent, in seconds.
    cpu: f64,
    /// The longest that the writer was behind its rate, in seconds.
    behind: f64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(write) = &arguments.write {
        return writer::write(write);
    }
    ensure!(nix::unistd::geteuid().is_root(), "the agent runs tasks in namespaces, so this must run as root");
    let own = std::env::current_exe().context("this program does not know where it is")?;
    let agent = arguments.batch_agent.clone().unwrap_or_else(|| own.with_file_name("batch-agent"));
    println!("{}", std::fs::read_to_string("/proc/version").unwrap_or_default().trim());
    println!("load at the beginning: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    println!(
        "{:<6} {:>12} {:>8} {:>8} {:>8} {:>12} {:>16} {:>8} {:>16}",
        "store", "bytes/s", "p50 s", "p99 s", "max s", "requests/h", "sent twice MB/h", "CPU %", "writer behind s"
    );
    for scheme in ["oss", "s3"] {
        for rate in &arguments.rates {
            let row = measure(&arguments, &agent, &own, scheme, *rate)
                .with_context(|| format!("{scheme} at {rate} bytes a second"))?;
            row.print(scheme, *rate);
        }
    }
    Ok(())
}

impl Row {
    fn print(&self, scheme: &str, rate: u64) {
        let at = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index, rounded down on purpose"
            )]
            let index = (float(self.latencies.len() as u64 - 1) * share) as usize;
            self.latencies[index]
        };
        let hour = 3600.0 / self.seconds;
        println!(
            "{scheme:<6} {rate:>12} {:>8.2} {:>8.2} {:>8.2} {:>12.0} {:>16.1} {:>8.2} {:>16.3}",
            at(0.5),
            at(0.99),
            at(1.0),
            float(self.requests as u64) * hour,
            float(self.sent.saturating_sub(self.written)) * hour / 1e6,
            self.cpu / self.seconds * 100.0,
            self.behind,
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn float(value: u64) -> f64 {
    value as f64
}

fn measure(arguments: &Arguments, agent: &Path, own: &Path, scheme: &str, rate: u64) -> anyhow::Result<Row> {
    let directory = tempfile::Builder::new().prefix("batch-agent-bench-").tempdir_in(&arguments.dir)?;
    let path = |name: &str| directory.path().join(name);
    let double = Double::start(DoubleConfig { spill: Some(directory.path().to_owned()), ..DoubleConfig::default() });
    let notes = path("notes");
    let write =
        ["--write", &rate.to_string(), &arguments.seconds.to_string(), &notes.to_string_lossy()].map(str::to_owned);
    let location = format!("{scheme}://{BUCKET}/logs/");
    let command = [vec![own.to_string_lossy().into_owned()], write.to_vec()].concat();
    let task = json!({"command": command, "stdout": location, "stderr": location});
    std::fs::write(path("job.yaml"), json!({"version": 1, "name": "bench", "tasks": {"only": task}}).to_string())?;
    let mut running = Command::new(agent);
    running.arg("run").arg(path("job.yaml")).args([
        "--job-id",
        "bench",
        "--region",
        "cn-test",
        "--region",
        "s3=cn-test",
    ]);
    for (option, name) in [("--state-dir", "state"), ("--runtime-dir", "run"), ("--scratch", "scratch")] {
        running.arg(option).arg(path(name));
    }
    for (name, value) in [
        ("OSS_ENDPOINT", double.endpoint()),
        ("OSS_ACCESS_KEY_ID", "test-key".to_owned()),
        ("OSS_ACCESS_KEY_SECRET", "test-secret".to_owned()),
        ("AWS_ENDPOINT_URL", double.endpoint()),
        ("AWS_ACCESS_KEY_ID", "test-key".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test-secret".to_owned()),
    ] {
        running.env(name, value);
    }
    let messages = std::fs::File::create(path("messages"))?;
    let mut running = running
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(messages)
        .spawn()
        .context("cannot start the agent")?;
    let result = observe(arguments, &double, running.id(), &notes, rate);
    // Whatever came of it, the agent ends and cleans up, or is ended.
    let status = running.wait()?;
    let said = std::fs::read_to_string(path("messages")).unwrap_or_default();
    let row = result.with_context(|| said.clone())?;
    ensure!(status.success(), "the agent failed: {said}");
    Ok(row)
}

/// Looks at storage until all that was written is there.
fn observe(arguments: &Arguments, double: &Double, agent: u32, notes: &Path, rate: u64) -> anyhow::Result<Row> {
    let total = rate * arguments.seconds;
    let mut seen: Vec<(u64, f64)> = Vec::new();
    let begun = Instant::now();
    let mut length = 0;
    let mut cpu = 0.0;
    while length < total {
        let part = |number: usize| if number == 0 { KEY.to_owned() } else { format!("{KEY}.part-{number}") };
        let parts = (0..).map_while(|number| double.object(BUCKET, &part(number)));
        let now: u64 = parts.map(|object| object.content.len()).sum();
        if now > length {
            seen.push((now, writer::now()));
            length = now;
            cpu = cpu_of(agent).unwrap_or(cpu);
        }
        let most = Duration::from_secs(arguments.seconds) + PATIENCE;
        ensure!(begun.elapsed() < most, "after {most:?} there are {length} of {total} bytes");
        std::thread::sleep(LOOK);
    }
    let written = writer::read(notes)?;
    let mut latencies = Vec::new();
    let mut events = seen.iter();
    let mut event = events.next();
    for (end, at) in &written {
        while event.is_some_and(|(length, _)| length < end) {
            event = events.next();
        }
        let (_, then) = event.context("something that was written was never seen")?;
        latencies.push((then - at).max(0.0));
    }
    latencies.sort_by(f64::total_cmp);
    let writes: Vec<_> = double
        .requests()
        .into_iter()
        .filter(|request| request.key.starts_with(KEY))
        .filter(|request| matches!(request.operation, Operation::AppendObject | Operation::PutObject))
        .collect();
    let behind = written.first().map_or(0.0, |(first, began)| {
        let late = written.iter().map(|(end, at)| (at - began) - float(end - first) / float(rate));
        late.fold(0.0, f64::max)
    });
    let seconds = written.last().map_or(0.0, |last| last.1) - written.first().map_or(0.0, |first| first.1);
    Ok(Row {
        latencies,
        seconds: seconds.max(1.0),
        requests: writes.len(),
        sent: writes.iter().map(|request| request.received).sum(),
        written: total,
        cpu,
        behind,
    })
}

/// Processor time of a process so far, in seconds.
fn cpu_of(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some(float(ticks) / float(u64::try_from(per_second).ok()?))
}
