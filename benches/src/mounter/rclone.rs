//! rclone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::{Mounter, Place, clean};
use crate::server::BUCKET;

/// `rclone mount --vfs-cache-mode full`, which is its mode with a disk cache for reads, and `--use-server-modtime`: without it,
/// it asks for the metadata of every object one by one, and walks take minutes.
#[derive(Debug)]
pub struct Rclone {
    /// The program.
    pub program: PathBuf,
}

impl Mounter for Rclone {
    fn name(&self) -> &'static str {
        "rclone"
    }

    fn program(&self) -> &Path {
        &self.program
    }

    fn version(&self) -> Command {
        let mut command = clean(&self.program);
        command.arg("version");
        command
    }

    fn command(&self, place: &Place) -> anyhow::Result<Command> {
        let config = rclone_config(&place.work, &place.endpoint())?;
        let mut command = clean(&self.program);
        command.arg("mount").arg(format!("store:{BUCKET}")).arg(&place.target);
        command.arg("--config").arg(config).arg("--cache-dir").arg(&place.cache);
        command.args(["--read-only", "--vfs-cache-mode", "full", "--use-server-modtime"]);
        Ok(command)
    }
}

/// Writes the configuration that names the bucket's server `store` into a directory.
///
/// # Errors
/// When it cannot be written.
pub fn rclone_config(work: &Path, endpoint: &str) -> anyhow::Result<PathBuf> {
    let config = work.join("rclone.conf");
    // The keys are made up; the server does not look.
    let text = format!(
        "[store]\ntype = s3\nprovider = Other\nregion = us-east-1\nforce_path_style = true\nendpoint = {endpoint}\n\
         access_key_id = bench\nsecret_access_key = bench\n"
    );
    std::fs::write(&config, text).context("cannot write rclone's configuration")?;
    Ok(config)
}
