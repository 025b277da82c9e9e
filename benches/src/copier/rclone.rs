//! rclone.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Copier, Errand, Way};
use crate::mounter::{clean, rclone_config};

/// What it is told when it shall do its best here: as many connections as pay, large parts, and no request or second reading of a file
/// that can be spared. The parts of an upload have their `Content-MD5` all the same.
const BEST: [&str; 10] = [
    "--transfers=128",
    "--checkers=128",
    "--s3-chunk-size=16M",
    "--s3-upload-concurrency=32",
    "--s3-disable-checksum",
    "--s3-no-check-bucket",
    "--multi-thread-streams=32",
    "--multi-thread-chunk-size=16M",
    "--no-traverse",
    "--use-server-modtime",
];

/// Of many files it need not ask what has become of each. (With one in parts either makes it find a length of 0 and fail.)
const BEST_OF_MANY: [&str; 2] = ["--s3-no-head", "--s3-no-head-object"];

/// `rclone copy`.
#[derive(Debug)]
pub struct RcloneCopy {
    /// The program.
    pub program: PathBuf,
    /// Whether it is told [`BEST`], or nothing.
    pub best: bool,
}

impl Copier for RcloneCopy {
    fn name(&self) -> &'static str {
        if self.best { "rclone, best" } else { "rclone" }
    }

    fn program(&self) -> &Path {
        &self.program
    }

    fn settings(&self) -> String {
        if self.best {
            format!("{} ({} for many files)", BEST.join(" "), BEST_OF_MANY.join(" "))
        } else {
            "defaults".to_owned()
        }
    }

    fn version(&self) -> Command {
        let mut command = clean(&self.program);
        command.arg("version");
        command
    }

    fn command(&self, errand: &Errand) -> anyhow::Result<Command> {
        let config = rclone_config(&errand.work, &errand.endpoint())?;
        let mut command = clean(&self.program);
        command.arg("copy").arg("--config").arg(config);
        let remote = errand.remote("store:");
        match errand.way {
            Way::Push => command.arg(&errand.directory).arg(remote),
            Way::Pull => command.arg(remote).arg(&errand.directory),
        };
        if self.best {
            command.args(BEST);
            if errand.many {
                command.args(BEST_OF_MANY);
            }
        }
        Ok(command)
    }
}
