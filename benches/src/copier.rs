//! Programs that copy between a directory and a bucket: ours and those of others, by default and with their best settings.

mod aws;
mod batch_agent;
mod rclone;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::cleanup::Running;
use crate::mounter::clean;
use crate::server::BUCKET;

pub use aws::Aws;
pub use batch_agent::BatchAgent;
pub use rclone::RcloneCopy;

/// Which way things go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the directory to the bucket.
    Push,
    /// From the bucket to the directory.
    Pull,
}

/// What is to be copied where.
#[derive(Debug)]
pub struct Errand {
    /// Which way.
    pub way: Way,
    /// The directory.
    pub directory: PathBuf,
    /// What all keys begin with, without a slash at the end.
    pub prefix: String,
    /// Whether it is about many small files.
    pub many: bool,
    /// For settings and logs.
    pub work: PathBuf,
    /// The server's port on 127.0.0.1.
    pub port: u16,
}

impl Errand {
    /// The server's URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The place in the bucket, with this in front of the bucket's name.
    pub fn remote(&self, scheme: &str) -> String {
        format!("{scheme}{BUCKET}/{}/", self.prefix)
    }
}

/// A program that copies, with some settings.
pub trait Copier: Sync {
    /// Its name in tables.
    fn name(&self) -> &'static str;

    /// The program.
    fn program(&self) -> &Path;

    /// What it is told beyond what is to be copied, in words.
    fn settings(&self) -> String;

    /// The command that prints its version on the first line of its standard output.
    fn version(&self) -> Command {
        let mut command = clean(self.program());
        command.arg("--version");
        command
    }

    /// The command that does an errand and ends.
    ///
    /// # Errors
    /// When what it needs cannot be prepared.
    fn command(&self, errand: &Errand) -> anyhow::Result<Command>;
}

/// Does an errand, from the start of the program to its end.
///
/// # Errors
/// When the program cannot be started, fails or takes longer than `limit`, with what it said.
pub fn run(copier: &dyn Copier, errand: &Errand, limit: Duration) -> anyhow::Result<()> {
    let log = errand.work.join("log");
    let sink = std::fs::File::create(&log).context("cannot make a log file")?;
    let mut command = copier.command(errand)?;
    let other = sink.try_clone().context("cannot make a log file")?;
    command.current_dir(&errand.work).stdin(Stdio::null()).stdout(sink).stderr(other);
    let said = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    };
    match Running::start(command)?.ends_within(limit)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{} failed ({status}): {}", copier.name(), said()),
        None => bail!("{} was given up after {limit:?}: {}", copier.name(), said()),
    }
}
