//! `batch-agent pull`: a directory or an object of object storage to this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use oss::Stores;

use super::transfer::{TransferArguments, files, location, report};
use crate::console::Console;
use crate::outcome::Failure;
use crate::pull::{Pulled, pull_directory, pull_object};

/// What `batch-agent pull` can be told.
#[derive(Debug, Args)]
#[command(after_help = "\
Files that are here already with the same content, by checksum, are not fetched again; other files of the same names are replaced; nothing \
is deleted. A file appears when it is whole and verified. Objects whose names are no paths (`..`, `a//b`, names over 255 bytes), or that \
are in the way of others (`x` beside `x/y`), are named and left out; nothing is ever written outside of the directory, nor through \
links inside it. Markers (`dir/`) become directories.\n
Exit status: 0 all is here; 64 usage, 66 there is no such object, 69 storage unavailable, 71 the disk failed or is full, or a name cannot be \
one here, 77 denied, 78 bad settings, 130 and 143 stopped.")]
pub(super) struct PullArguments {
    /// What is fetched: `oss://bucket/prefix/`, with the slash at the end, for all below it; else one object.
    #[arg(value_name = "LOCATION")]
    source: String,

    /// The directory to put it in, made when it is missing; for one object also the file's own name.
    #[arg(value_name = "DIR")]
    target: PathBuf,

    #[command(flatten)]
    transfer: TransferArguments,
}

/// Fetches it, and says what is here.
pub(super) fn pull(arguments: &PullArguments, console: &Console) -> Result<ExitCode, Failure> {
    let source = location(&arguments.source)?;
    let stores = Stores::new(arguments.transfer.storage.settings(&source)?);
    let store = stores.open(&source).map_err(|error| Failure::reading(&source.escaped(), &error))?;
    let target = &arguments.target;
    let pulled = arguments.transfer.run(async |budget| {
        if source.is_directory() {
            pull_directory(&store, &source, target, budget, console).await
        } else {
            pull_object(&store, &source, target, budget, console).await
        }
    })??;
    super::run::print(&summary(&pulled))?;
    report(pulled.failed)?;
    Ok(ExitCode::SUCCESS)
}

fn summary(pulled: &Pulled) -> String {
    let mut text = format!("{} here, {} bytes", files(pulled.files), pulled.bytes);
    if pulled.kept > 0 {
        text += &format!(", {} of them already", pulled.kept);
    }
    if pulled.unverified > 0 {
        text += &format!("; of {} the store has no checksum to verify them by", pulled.unverified);
    }
    text
}
