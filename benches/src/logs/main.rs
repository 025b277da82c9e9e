//! `bench-logs`: how soon a line of a task's log can be read in storage, and what that costs.
//!
//! The real agent runs a task that writes at a steady rate; storage is the tests' double of OSS and S3 in this process. The writer
//! notes when it wrote how much, this program when how much was there. What an hour costs is what the time that was measured cost,
//! in proportion.

mod reader;
mod row;
mod writer;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use serde_json::json;
use tests::double::{Double, DoubleConfig};

use reader::Reader;
use row::{Run, Seen};

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
    /// The stores.
    #[arg(long, value_delimiter = ',', default_values = ["oss", "s3"], value_parser = ["oss", "s3"])]
    stores: Vec<String>,
    /// Also run the same writer into a plain file, with no agent and no storage, to see whether the agent slows it down.
    #[arg(long)]
    plain: bool,
    /// Also run `batch-agent logs -f`, on the node and with the log's URL, and see when these print what was written.
    #[arg(long)]
    follow: bool,
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

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(write) = &arguments.write {
        return writer::write(write);
    }
    ensure!(nix::unistd::geteuid().is_root(), "the agent runs tasks in namespaces, so this must run as root");
    let own = std::env::current_exe().context("this program does not know where it is")?;
    let agent = arguments.batch_agent.clone().unwrap_or_else(|| own.with_file_name("batch-agent"));
    println!("{}", fs::read_to_string("/proc/version").unwrap_or_default().trim());
    println!("load at the beginning: {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    row::print_head();
    for store in &arguments.stores {
        for rate in &arguments.rates {
            let what = || format!("{store} at {rate} bytes a second");
            let run = measure(&arguments, &agent, &own, store, *rate).with_context(what)?;
            run.print(store);
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn float(value: u64) -> f64 {
    value as f64
}

/// The writer as a command.
fn command(arguments: &Arguments, own: &Path, rate: u64, notes: &Path) -> Vec<String> {
    let numbers = [rate, arguments.seconds].map(|number| number.to_string());
    [&[own.to_string_lossy().into_owned(), "--write".to_owned()], &numbers[..], &[notes.to_string_lossy().into_owned()]]
        .concat()
}

/// The writer alone, into a plain file. What it has noted.
fn plain(arguments: &Arguments, own: &Path, rate: u64, directory: &Path) -> anyhow::Result<Vec<(u64, f64)>> {
    let (notes, file) = (directory.join("plain-notes"), directory.join("plain"));
    let command = command(arguments, own, rate, &notes);
    let output = fs::File::create(&file)?;
    let status = Command::new(&command[0]).args(&command[1..]).stdout(output.try_clone()?).status()?;
    ensure!(status.success(), "the writer failed: {status}");
    // What it has left to be written must not slow down who comes next.
    output.sync_all()?;
    fs::remove_file(&file)?;
    writer::read(&notes)
}

fn measure(arguments: &Arguments, agent: &Path, own: &Path, store: &str, rate: u64) -> anyhow::Result<Run> {
    let directory = tempfile::Builder::new().prefix("batch-agent-bench-").tempdir_in(&arguments.dir)?;
    let path = |name: &str| directory.path().join(name);
    let plain = arguments.plain.then(|| plain(arguments, own, rate, directory.path())).transpose()?;
    let double = Double::start(DoubleConfig { spill: Some(directory.path().to_owned()), ..DoubleConfig::default() });
    let notes = path("notes");
    let location = format!("{store}://{BUCKET}/logs/");
    let task = json!({"command": command(arguments, own, rate, &notes), "stdout": location, "stderr": location});
    fs::write(path("job.yaml"), json!({"version": 1, "name": "bench", "tasks": {"only": task}}).to_string())?;
    let mut running = start(agent, directory.path(), &double)?;
    let readers = if arguments.follow {
        let url = format!("{store}://{BUCKET}/{KEY}");
        vec![
            Reader::start("-f", agent, &double, directory.path(), None)?,
            Reader::start("-f URL", agent, &double, directory.path(), Some(url))?,
        ]
    } else {
        Vec::new()
    };
    let file = path("scratch/tasks/bench.only.0/logs/stdout");
    let observed = observe(arguments, &double, running.id(), &file, rate);
    // Whatever came of it, the agent ends and cleans up, or is ended.
    if observed.is_err() {
        end(&mut running);
    }
    let status = running.wait()?;
    let said = fs::read_to_string(path("messages")).unwrap_or_default();
    let (seen, most_on_disk) = observed.with_context(|| said.clone())?;
    ensure!(status.success(), "the agent failed: {said}");
    let followed = readers.into_iter().map(Reader::finish).collect::<anyhow::Result<_>>()?;
    let requests = double.requests().into_iter().filter(|request| request.key.starts_with(KEY)).collect();
    Ok(Run { rate, seen, most_on_disk, followed, written: writer::read(&notes)?, plain, requests })
}

/// The agent's program, which finds its storage.
fn command_of(agent: &Path, double: &Double) -> Command {
    let mut command = Command::new(agent);
    for (name, value) in [
        ("OSS_ENDPOINT", double.endpoint()),
        ("OSS_ACCESS_KEY_ID", "test-key".to_owned()),
        ("OSS_ACCESS_KEY_SECRET", "test-secret".to_owned()),
        ("OSS_REGION", "cn-test".to_owned()),
        ("AWS_ENDPOINT_URL", double.endpoint()),
        ("AWS_ACCESS_KEY_ID", "test-key".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test-secret".to_owned()),
        ("AWS_REGION", "cn-test".to_owned()),
    ] {
        command.env(name, value);
    }
    command.stdin(Stdio::null());
    command
}

/// Starts an agent that runs the job.
fn start(agent: &Path, directory: &Path, double: &Double) -> anyhow::Result<Child> {
    let path = |name: &str| directory.join(name);
    let mut running = command_of(agent, double);
    running.arg("run").arg(path("job.yaml")).args(["--job-id", "bench"]);
    for (option, name) in [("--state-dir", "state"), ("--runtime-dir", "run"), ("--scratch", "scratch")] {
        running.arg(option).arg(path(name));
    }
    let messages = fs::File::create(path("messages"))?;
    running.stdout(Stdio::null()).stderr(messages).spawn().context("cannot start the agent")
}

/// Ends an agent and its task.
fn end(agent: &mut Child) {
    let pid = i32::try_from(agent.id()).ok().map(nix::unistd::Pid::from_raw);
    // If it has ended by itself there is nothing to end.
    let _ = pid.map(|pid| nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM));
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until && matches!(agent.try_wait(), Ok(None)) {
        std::thread::sleep(LOOK);
    }
    let _ = agent.kill();
}

/// Looks at storage until all that was written is there, and at the file: the most of it that was on the disk, in bytes.
fn observe(
    arguments: &Arguments,
    double: &Double,
    agent: u32,
    file: &Path,
    rate: u64,
) -> anyhow::Result<(Vec<Seen>, u64)> {
    let total = rate * arguments.seconds;
    let (mut seen, mut length, mut most_on_disk) = (Vec::new(), 0, 0);
    let begun = Instant::now();
    let part = |number: usize| if number == 0 { KEY.to_owned() } else { format!("{KEY}.part-{number}") };
    // Parts that are followed by another do not grow any more.
    let (mut full, mut number) = (0, 0);
    while length < total {
        let size = |number: usize| double.object(BUCKET, &part(number)).map(|object| object.content.len());
        while size(number + 1).is_some() {
            full += size(number).unwrap_or(0);
            number += 1;
        }
        let now = full + size(number).unwrap_or(0);
        if now > length {
            let cpu = cpu_of(agent).or(seen.last().map(|seen: &Seen| seen.cpu)).unwrap_or(0.0);
            seen.push(Seen { length: now, at: writer::now(), cpu });
            length = now;
        }
        let on_disk = fs::metadata(file).map_or(0, |file| file.blocks() * 512);
        most_on_disk = on_disk.max(most_on_disk);
        let most = Duration::from_secs(arguments.seconds) + PATIENCE;
        ensure!(begun.elapsed() < most, "after {most:?} there are {length} of {total} bytes");
        std::thread::sleep(LOOK);
    }
    Ok((seen, most_on_disk))
}

/// Processor time of a process so far, in seconds.
fn cpu_of(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some(float(ticks) / float(u64::try_from(per_second).ok()?))
}
