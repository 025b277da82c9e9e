//! Ours.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Mounter, Place, clean};
use crate::server::BUCKET;

/// `fuse-oss mount --foreground`, everything else by default.
#[derive(Debug)]
pub struct FuseOss {
    /// The release program.
    pub program: PathBuf,
}

impl Mounter for FuseOss {
    fn name(&self) -> &'static str {
        "fuse-oss"
    }

    fn program(&self) -> &Path {
        &self.program
    }

    fn command(&self, place: &Place) -> anyhow::Result<Command> {
        let mut command = clean(&self.program);
        command.arg("mount").arg(format!("s3://{BUCKET}/")).arg(place.target).arg("--foreground");
        command.args(["--region", "us-east-1", "--addressing", "path", "--anonymous", "--endpoint", &place.endpoint()]);
        command.arg("--cache-dir").arg(place.cache).arg("--runtime-dir").arg(place.work);
        Ok(command)
    }
}
