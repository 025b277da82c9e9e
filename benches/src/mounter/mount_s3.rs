//! Mountpoint for Amazon S3.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Mounter, Place, clean};
use crate::server::BUCKET;

/// `mount-s3 --read-only --cache`. It empties its cache at every mount, so that its warm figures show fetches.
#[derive(Debug)]
pub struct MountS3 {
    /// The program.
    pub program: PathBuf,
}

impl Mounter for MountS3 {
    fn name(&self) -> &'static str {
        "mount-s3"
    }

    fn program(&self) -> &Path {
        &self.program
    }

    fn command(&self, place: &Place) -> anyhow::Result<Command> {
        let mut command = clean(&self.program);
        command.arg(BUCKET).arg(&place.target).args(["--foreground", "--read-only", "--force-path-style"]);
        command.args(["--no-sign-request", "--region", "us-east-1", "--endpoint-url", &place.endpoint()]);
        command.arg("--cache").arg(&place.cache);
        Ok(command)
    }
}
