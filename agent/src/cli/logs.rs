//! `batch-agent logs`: what a task has written, on its node or anywhere.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use oss::growing::GrownReader;
use oss::{Key, Location, Stores};

use super::storage::StorageArguments;
use crate::exit;
use crate::logs::{Entry, LogBook, LogText};
use crate::node::Node;
use crate::outcome::{Cause, Failure};

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

    #[command(flatten)]
    storage: StorageArguments,

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
    let mut settings = arguments.storage.settings(&place.target)?;
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
    let settings = arguments.storage.settings(&location)?;
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
