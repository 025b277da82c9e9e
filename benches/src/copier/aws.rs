//! The command line of AWS, of the series that is on PyPI. It has no client of the AWS Common Runtime for `s3 cp`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::{Copier, Errand, Way};
use crate::mounter::clean;

/// What it is told when it shall do its best here. More requests at once than these make it slower.
const BEST: &str = "max_concurrent_requests = 32\n  max_queue_size = 10000\n  multipart_chunksize = 16MB";

/// `aws s3 cp --recursive`.
#[derive(Debug)]
pub struct Aws {
    /// The program.
    pub program: PathBuf,
    /// Whether it is told [`BEST`], or nothing.
    pub best: bool,
}

impl Copier for Aws {
    fn name(&self) -> &'static str {
        if self.best { "aws s3 cp, best" } else { "aws s3 cp" }
    }

    fn program(&self) -> &Path {
        &self.program
    }

    fn settings(&self) -> String {
        if self.best { BEST.replace("\n ", ",") } else { "defaults".to_owned() }
    }

    fn command(&self, errand: &Errand) -> anyhow::Result<Command> {
        let config = errand.work.join("aws");
        let best = if self.best { format!("\n  {BEST}") } else { String::new() };
        let text = format!("[default]\nregion = us-east-1\ns3 =\n  addressing_style = path{best}\n");
        std::fs::write(&config, text).context("cannot write the settings of aws")?;
        let mut command = clean(&self.program);
        command.env("AWS_CONFIG_FILE", config).env("AWS_EC2_METADATA_DISABLED", "true");
        // The keys are made up; the server does not look.
        command.env("AWS_ACCESS_KEY_ID", "bench").env("AWS_SECRET_ACCESS_KEY", "bench");
        command.args(["--endpoint-url", &errand.endpoint(), "s3", "cp", "--recursive", "--only-show-errors"]);
        let remote = errand.remote("s3://");
        match errand.way {
            Way::Push => command.arg(&errand.directory).arg(remote),
            Way::Pull => command.arg(remote).arg(&errand.directory),
        };
        Ok(command)
    }
}
