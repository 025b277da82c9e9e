//! A disk for a while: a loop device over a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::cleanup::{Loop, Starting};

/// Disks that are made, in bytes. The least that `mkfs.xfs` takes is 300 MiB.
const SIZE: u64 = 2 << 30;

/// An empty disk. When dropped, what is mounted of it is gone, and then the disk. Its file is for whoever owns the directory.
#[derive(Debug)]
pub struct Disk {
    /// In the order in which they go.
    mounts: Vec<Starting>,
    device: Loop,
}

impl Disk {
    /// Makes one in `directory`.
    ///
    /// # Errors
    /// When there is no room for it, or no loop device to be had.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        let file = directory.join("disk");
        File::create(&file).and_then(|file| file.set_len(SIZE)).context("cannot make a file for a disk")?;
        Ok(Self { mounts: Vec::new(), device: Loop::over(&file)? })
    }

    /// The device.
    pub fn path(&self) -> &Path {
        self.device.path()
    }

    /// Enters that it will be mounted at `target`, which is made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn will_be_at(&mut self, target: PathBuf) -> anyhow::Result<()> {
        std::fs::create_dir_all(&target).context("cannot make a mount point")?;
        self.mounts.push(crate::cleanup::Served::announce(&target)?);
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Before the device.
        self.mounts.clear();
    }
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started or fails, with what it said.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{} failed ({}): {}", program.display(), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
