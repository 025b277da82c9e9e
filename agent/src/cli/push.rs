//! `batch-agent push`: a directory or a file to object storage, as the outputs of a task are sent.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use fuse_oss::Charset;
use oss::{Location, Stores};

use super::transfer::{TransferArguments, files, location, report};
use crate::console::Console;
use crate::exit;
use crate::instance::outputs::{Delivery, Present, Source, deliver};
use crate::job::Output;
use crate::outcome::{Cause, Failure};

/// What `batch-agent push` can be told.
#[derive(Debug, Args)]
#[command(after_help = "\
What is there already with the same content, by checksum, is not sent again; other objects of the same names are replaced; nothing is \
deleted. Files travel under the rules for a task's outputs: links are followed only to files inside the directory, pipes, sockets and \
devices are left out and said, empty directories become markers (`dir/`). Interrupted, it is run again and goes on with the file it was at.\n
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

    #[command(flatten)]
    transfer: TransferArguments,
}

/// Sends it, and says what has arrived.
pub(super) fn push(arguments: &PushArguments, console: &Console) -> Result<ExitCode, Failure> {
    let source = source(&arguments.source, location(&arguments.target)?, arguments.locale)?;
    let stores = Stores::new(arguments.transfer.storage.settings(&source.output.target)?);
    let label = source.output.target.escaped();
    let sent = arguments.transfer.run(async |budget| {
        deliver(std::slice::from_ref(&source), (Present::Keep, None), &stores, budget, console, &label).await
    })?;
    for skipped in &sent.skipped {
        tracing::warn!("not sent: {skipped}");
    }
    super::run::print(&summary(&sent))?;
    report(sent.failed)?;
    Ok(ExitCode::SUCCESS)
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
