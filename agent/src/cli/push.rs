//! `batch-agent push`: a directory or a file to object storage, as the outputs of a task are sent.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use fuse_oss::Charset;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use oss::{Location, Stores};

use super::transfer::{TransferArguments, files, location, report};
use crate::console::Console;
use crate::durable::private_directory;
use crate::exit;
use crate::instance::outputs::{Delivery, Present, Source, UploadBook, deliver};
use crate::job::Output;
use crate::node::Node;
use crate::outcome::{Cause, Failure};

/// What `batch-agent push` can be told.
#[derive(Debug, Args)]
#[command(after_help = "\
What is there already with the same content, by checksum, is not sent again; other objects of the same names are replaced; nothing is \
deleted. Files travel under the rules for a task's outputs: links are followed only to files inside the directory, pipes, sockets and \
devices are left out and said, empty directories become markers (`dir/`). Interrupted, it is run again and goes on with the file it \
was at; killed, with the parts of it that have arrived.\n
Exit status: 0 all is there; 64 usage, 66 the source is missing, 71 it cannot be read, 74 some did not arrive, 77 denied, 78 bad settings, 130 \
and 143 stopped.")]
pub(super) struct PushArguments {
    /// The directory whose content is sent, or a file.
    #[arg(value_name = "DIR")]
    source: PathBuf,

    /// Where to: `oss://bucket/prefix/` for a directory, with the slash at the end; for a file that, or the object's own name.
    #[arg(value_name = "LOCATION")]
    target: String,

    /// The character set of names that are not UTF-8.
    #[arg(long, value_name = "CHARSET", default_value = "utf-8")]
    locale: Charset,

    /// Where is kept how far large files are, for the same command to go on after it was killed.
    /// [default: root: /var/lib/batch-agent, else $XDG_STATE_HOME/batch-agent, else ~/.local/state/batch-agent]
    #[arg(long, value_name = "DIR", env = "BATCH_AGENT_STATE_DIR")]
    state_dir: Option<PathBuf>,

    #[command(flatten)]
    transfer: TransferArguments,
}

/// Sends it, and says what has arrived.
pub(super) fn push(arguments: &PushArguments, console: &Console) -> Result<ExitCode, Failure> {
    let source = source(&arguments.source, location(&arguments.target)?, arguments.locale)?;
    let stores = Stores::new(arguments.transfer.storage.settings(&source.output.target)?);
    let label = source.output.target.escaped();
    let open = book(arguments.state_dir.clone(), &source);
    let book = open.as_ref().map(|(book, _lock)| book);
    let sent = arguments.transfer.run(async |budget| {
        let sent =
            deliver(std::slice::from_ref(&source), (Present::Keep, book), &stores, budget, console, &label).await;
        if let Some(book) = book {
            // Of files that are no longer there.
            book.give_up_all(&stores).await;
        }
        sent
    })?;
    for skipped in &sent.skipped {
        tracing::warn!("not sent: {skipped}");
    }
    super::run::print(&summary(&sent))?;
    report(sent.failed)?;
    Ok(ExitCode::SUCCESS)
}

/// Where large files are written down, and what keeps another `push` of the same away from it. Nothing if there is another, or no place
/// for it: then a file that is interrupted begins anew.
fn book(state: Option<PathBuf>, source: &Source) -> Option<(UploadBook, Flock<File>)> {
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let of_user = || home("XDG_STATE_HOME").or_else(|| home("HOME").map(|home| home.join(".local/state")));
    let state = state.or_else(|| {
        let is_root = nix::unistd::geteuid().is_root();
        if is_root { Some(Node::STATE.into()) } else { of_user().map(|of_user| of_user.join("batch-agent")) }
    })?;
    let what = [source.path.as_os_str().as_bytes(), b"\0", source.output.target.to_string().as_bytes()].concat();
    let directory = state.join("pushes").join(format!("{:016x}", oss::crc::crc64(&what)));
    let lock = || -> std::io::Result<Option<Flock<File>>> {
        loop {
            private_directory(&directory).map_err(|error| error.source)?;
            let file = match Flock::lock(File::open(&directory)?, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EAGAIN)) => return Ok(None),
                Err((_, errno)) => return Err(errno.into()),
            };
            // One that has just ended may have taken it away.
            let is_there = std::fs::metadata(&directory).is_ok_and(|there| {
                file.metadata().is_ok_and(|locked| (there.dev(), there.ino()) == (locked.dev(), locked.ino()))
            });
            if is_there {
                return Ok(Some(file));
            }
        }
    };
    match lock() {
        Ok(Some(lock)) => Some((UploadBook::in_directory(directory), lock)),
        Ok(None) => {
            tracing::warn!("another push of the same is running");
            None
        }
        Err(error) => {
            tracing::warn!("how far large files are cannot be kept in {}: {error}", directory.display());
            None
        }
    }
}

/// What goes where.
fn source(path: &Path, target: Location, locale: Charset) -> Result<Source, Failure> {
    let missing = |error: std::io::Error| {
        let status = if error.kind() == std::io::ErrorKind::NotFound { exit::INPUT_MISSING } else { exit::OS };
        Failure::new(Cause::User, status, format!("{} cannot be sent: {error}", path.display()))
    };
    // A link that the user names is meant; those inside are what a stranger may have put there.
    let path = path.canonicalize().map_err(missing)?;
    let is_directory = path.metadata().map_err(missing)?.is_dir();
    let target = match (is_directory, target.is_directory()) {
        (true, false) => {
            let message = format!(
                "{} is a directory, and {} is one object: write {}/ for a directory",
                path.display(),
                target.escaped(),
                target.escaped()
            );
            return Err(Failure::new(Cause::User, exit::USAGE, message));
        }
        (false, true) => {
            let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
                let message = format!("the name of {path:?} is not UTF-8: name the object as well");
                Failure::new(Cause::User, exit::USAGE, message)
            })?;
            target.join(name)
        }
        _ => target,
    };
    let output = Output { source: path.clone(), target, locale };
    Ok(Source { output, path, without: Vec::new() })
}

fn summary(sent: &Delivery) -> String {
    let bytes: u64 = sent.arrived.iter().map(|file| file.size).sum();
    let kept = match sent.kept {
        0 => String::new(),
        kept => format!(", {kept} of them already"),
    };
    format!("{} there, {bytes} bytes{kept}", files(sent.arrived.len()))
}
