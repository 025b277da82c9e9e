//! s3fs-fuse.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::{Mounter, Place, clean};
use crate::server::BUCKET;

/// `s3fs` with its disk cache (`use_cache`), the only one it has.
#[derive(Debug)]
pub struct S3fs {
    /// The program.
    pub program: PathBuf,
}

impl Mounter for S3fs {
    fn name(&self) -> &'static str {
        "s3fs"
    }

    fn program(&self) -> &Path {
        &self.program
    }

    fn command(&self, place: &Place) -> anyhow::Result<Command> {
        let password = place.work.join("passwd");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&password)
            .context("cannot write a password file")?;
        // Made up; the server does not look.
        file.write_all(b"bench:bench\n").context("cannot write a password file")?;
        let options = [
            format!("url={}", place.endpoint()),
            "use_path_request_style".to_owned(),
            "ro".to_owned(),
            format!("passwd_file={}", password.display()),
            format!("use_cache={}", place.cache.display()),
        ];
        let mut command = clean(&self.program);
        command.arg(BUCKET).arg(&place.target).arg("-f").args(["-o", &options.join(",")]);
        Ok(command)
    }
}
