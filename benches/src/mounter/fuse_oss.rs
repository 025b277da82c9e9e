//! Ours.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Background, Mounter, Place, clean};
use crate::server::BUCKET;

/// `fuse-oss mount`, everything by default.
#[derive(Debug, Clone)]
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
        let mut command = self.mount(place);
        command.arg("--foreground");
        Ok(command)
    }

    fn background(&self, place: &Place) -> anyhow::Result<Option<Background>> {
        let mut status = clean(&self.program);
        status.args(["status", "--json", "--runtime-dir"]).arg(&place.work);
        Ok(Some(Background { mount: self.mount(place), status }))
    }
}

impl FuseOss {
    fn mount(&self, place: &Place) -> Command {
        let mut command = clean(&self.program);
        command.arg("mount").arg(format!("s3://{BUCKET}/")).arg(&place.target);
        command.args(["--region", "us-east-1", "--addressing", "path", "--anonymous", "--endpoint", &place.endpoint()]);
        command.arg("--cache-dir").arg(&place.cache).arg("--runtime-dir").arg(&place.work);
        if let Some(mib) = place.memory_limit {
            command.arg(format!("--memory-limit={mib}MiB"));
        }
        if place.writable {
            command.arg("--writable");
        }
        command
    }
}
