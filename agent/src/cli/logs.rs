//! `batch-agent logs`: what a task has written, on its node or anywhere.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use oss::growing::GrownReader;
use oss::{Key, Location, Settings, Stores};

use crate::exit;
use crate::logs::{Entry, LogBook, LogText};
use crate::node::Node;
use crate::outcome::{Cause, Failure};
use crate::settings::{self, SettingsSource};

/// What `batch-agent logs` can be told.
#[derive(Debug, Args)]
#[command(after_help = "\
On the node of a task: its log from the beginning, while it runs and afterwards. Which task, if there were several: the one that runs, else the \
last. Elsewhere: the log object at LOCATION with everything that belongs to it (its parts, in order).\n
Exit status: 0; 66 there is no such log, 69 storage unavailable, 77 denied, 78 bad settings.")]
pub(super) struct LogsArguments {
    /// A task of this node (`TASK`, `TASK.INSTANCE` or `JOB.TASK.INSTANCE`), or where the log is (`oss://...`, `s3://...`).
    #[arg(value_name = "TASK|LOCATION")]
    which: Option<String>,

    /// Go on while it is written, to its end.
    #[arg(short, long)]
    follow: bool,

    /// Standard error instead of standard output.
    #[arg(long)]
    stderr: bool,

    /// Take how storage is reached from these settings. [default: those in /etc/batch-agent, if there are any, over the environment]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The endpoint of the log's storage.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,

    /// The region of the log's storage.
    #[arg(long, value_name = "REGION")]
    region: Option<String>,

    /// Where the agent keeps its state.
    #[arg(long, value_name = "DIR", default_value = Node::STATE, env = "BATCH_AGENT_STATE_DIR")]
    state_dir: PathBuf,
}

/// How often a log that is followed is looked at on this node.
const LOOK_HERE: Duration = Duration::from_millis(200);

/// The same in storage, where each look is a request or two.
const LOOK_THERE: Duration = Duration::from_secs(1);

/// Prints it.
pub(super) fn logs(arguments: &LogsArguments) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::platform(format!("cannot start: {error}")))?;
    let printed = match &arguments.which {
        Some(which) if which.contains("://") => {
            let location =
                which.parse::<Location>().map_err(|error| Failure::new(Cause::User, exit::USAGE, error.to_string()))?;
            runtime.block_on(elsewhere(arguments, &location))
        }
        which => {
            let book = LogBook::of(&arguments.state_dir);
            let entry = choose(&book, which.as_deref(), &arguments.state_dir)?;
            runtime.block_on(here(arguments, &book, &entry))
        }
    };
    match printed {
        Ok(()) | Err(Ended::NobodyReads) => Ok(ExitCode::SUCCESS),
        Err(Ended::Failed(failure)) => Err(failure),
    }
}

/// Why printing ended early.
enum Ended {
    Failed(Failure),
    /// `logs | head` is no failure.
    NobodyReads,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn choose(book: &LogBook, which: Option<&str>, state: &Path) -> Result<Entry, Failure> {
    let found = book.search(which).map_err(|error| match error.source.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Failure::new(Cause::Platform, exit::DENIED, format!("{error}; run: sudo batch-agent logs"))
        }
        _ => Failure::platform(error),
    })?;
    let missing = || {
        let known = book.search(None).unwrap_or_default();
        let names: Vec<_> = known.iter().take(10).map(|entry| entry.id.as_str()).collect();
        let message = match (which, names.is_empty()) {
            (_, true) => format!("no task has run with the state in {}", state.display()),
            (Some(which), false) => format!("no task {which:?} has run here; the last were {}", names.join(", ")),
            (None, false) => "no task has run here".to_owned(),
        };
        Failure::new(Cause::User, exit::INPUT_MISSING, message)
    };
    let entry = found.first().cloned().ok_or_else(missing)?;
    if found.len() > 1 && which != Some(entry.id.as_str()) {
        eprintln!("batch-agent: the log of {}", entry.id);
    }
    Ok(entry)
}

fn print(bytes: &[u8]) -> Result<(), Ended> {
    let mut output = std::io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Ended::NobodyReads),
        Err(error) => Err(Failure::platform(format!("cannot write to standard output: {error}")).into()),
    }
}

/// A log of this node.
async fn here(arguments: &LogsArguments, book: &LogBook, entry: &Entry) -> Result<(), Ended> {
    let place = if arguments.stderr { &entry.stderr } else { &entry.stdout };
    let what = format!("log {}", place.target.escaped());
    let mut settings = storage(arguments, &place.target)?;
    entry.complete(&mut settings);
    let store = Stores::new(settings).open(&place.target).map_err(|error| Failure::reading(&what, &error))?;
    let mut text = LogText::new(place.clone(), store);
    loop {
        // Asked first: what was written before it had ended is then certainly seen.
        let now = book.find(&entry.id).map_err(Failure::platform)?;
        let has_ended = now.is_none_or(|now| now.ended.is_some());
        let mut printed = false;
        loop {
            match text.next(has_ended).await {
                Ok(Some(bytes)) => print(&bytes)?,
                Ok(None) => break,
                Err(error) if arguments.follow && !has_ended => {
                    eprintln!("batch-agent: {error}; trying again");
                    break;
                }
                Err(error) => return Err(unreadable(&what, error).into()),
            }
            printed = true;
        }
        if has_ended || !arguments.follow {
            return Ok(());
        }
        if !printed {
            tokio::time::sleep(LOOK_HERE).await;
        }
    }
}

fn unreadable(what: &str, error: crate::logs::TextError) -> Failure {
    match error {
        crate::logs::TextError::Store(error) => Failure::reading(what, &error),
        error @ crate::logs::TextError::File { .. } => Failure::platform(error),
    }
}

/// A log of which only the place is known.
async fn elsewhere(arguments: &LogsArguments, location: &Location) -> Result<(), Ended> {
    if location.is_directory() {
        let message = format!("{} is a directory; name one log in it", location.escaped());
        return Err(Failure::new(Cause::User, exit::USAGE, message).into());
    }
    let mut location = location.clone();
    let (directory, name) = split(location.key());
    if arguments.stderr
        && let Some(rest) = name.strip_prefix("stdout.")
    {
        location = location.with_key(format!("{directory}stderr.{rest}"));
    }
    let what = format!("log {}", location.escaped());
    let settings = storage(arguments, &location)?;
    let store = Stores::new(settings).open(&location).map_err(|error| Failure::reading(&what, &error))?;
    let failed = |error: oss::Error| Failure::reading(&what, &error);
    if !arguments.follow {
        store.head(location.key()).await.map_err(failed)?;
    }
    let mut reader = GrownReader::new(Arc::clone(&store), location.key().clone());
    loop {
        // Asked first: what was sent before the manifest is then certainly seen.
        let has_ended = arguments.follow && has_ended(&store, location.key()).await;
        loop {
            match reader.next().await {
                Ok(Some(bytes)) => print(&bytes)?,
                Ok(None) => break,
                Err(error) if arguments.follow && *error.kind() == oss::ErrorKind::Unavailable => {
                    eprintln!("batch-agent: {error}; trying again");
                    break;
                }
                Err(error) => return Err(failed(error).into()),
            }
        }
        if has_ended || !arguments.follow {
            return Ok(());
        }
        tokio::time::sleep(LOOK_THERE).await;
    }
}

/// The directory of a key, with its slash, and the name in it.
fn split(key: &Key) -> (&str, &str) {
    let text = key.as_str();
    text.split_at(text.rfind('/').map_or(0, |slash| slash + 1))
}

/// Whether the attempt is over, as far as its objects tell: the manifest is written last. A log that is not named as ours are
/// goes on for ever.
async fn has_ended(store: &Arc<dyn oss::Store>, key: &Key) -> bool {
    let (directory, name) = split(key);
    let Some(attempt) = name.strip_prefix("stdout.").or_else(|| name.strip_prefix("stderr.")) else { return false };
    let manifest = Key::new(format!("{directory}manifest.{attempt}.json"));
    let modified = async |key: &Key| store.head(key).await.ok().and_then(|meta| meta.modified);
    // One of an earlier run of the same name is older than the log.
    match (modified(&manifest).await, modified(key).await) {
        (Some(manifest), Some(log)) => manifest >= log,
        _ => false,
    }
}

/// How storage is reached.
fn storage(arguments: &LogsArguments, target: &Location) -> Result<Settings, Failure> {
    let bad = |text: String| Failure::new(Cause::User, exit::BAD_SETTINGS, text);
    let read = |source: &SettingsSource| {
        settings::read(source, &[]).map(|(settings, _)| settings.storage).map_err(|error| bad(error.to_string()))
    };
    let mut settings = match &arguments.config {
        Some(file) => read(&SettingsSource::File(file.clone()))?,
        None if Path::new(settings::DIRECTORY).join("node.yaml").exists() => {
            // Not everybody may read them, nor has to: the environment may say enough.
            read(&SettingsSource::default()).or_else(|failure| {
                eprintln!("batch-agent: {}; going on without", failure.message);
                Settings::from_env().map_err(|error| bad(error.to_string()))
            })?
        }
        None => Settings::from_env().map_err(|error| bad(error.to_string()))?,
    };
    let store = if target.scheme() == oss::Scheme::S3 { &mut settings.s3 } else { &mut settings.oss };
    store.endpoint = arguments.endpoint.clone().or_else(|| store.endpoint.take());
    store.region = arguments.region.clone().or_else(|| store.region.take());
    Ok(settings)
}
