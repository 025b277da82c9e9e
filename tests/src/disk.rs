//! A small disk of a test's own: a file behind a loop device, formatted and mounted, gone when it is dropped.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A mounted loop device.
#[derive(Debug)]
pub struct LoopDisk {
    directory: TempDir,
}

impl LoopDisk {
    /// An ext4 file system of about `bytes`.
    ///
    /// # Panics
    /// When it cannot be made: tests with disks need root, loop devices and e2fsprogs.
    pub fn ext4(bytes: u64) -> Self {
        Self::make(bytes, &["mkfs.ext4", "-q", "-F"], "loop")
    }

    /// The same, with project quotas.
    ///
    /// # Panics
    /// When it cannot be made: this also needs a kernel with `CONFIG_QFMT_V2`.
    pub fn ext4_with_quotas(bytes: u64) -> Self {
        let format = ["mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"];
        Self::make(bytes, &format, "loop,prjquota")
    }

    /// An xfs file system with project quotas; it takes 300 MB at least.
    ///
    /// # Panics
    /// When it cannot be made: tests with it need root, loop devices, xfsprogs and a kernel with `CONFIG_XFS_QUOTA`.
    pub fn xfs_with_quotas(bytes: u64) -> Self {
        Self::make(bytes, &["mkfs.xfs", "-q"], "loop,pquota")
    }

    fn make(bytes: u64, format: &[&str], options: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("batch-agent-disk-").tempdir().expect("a temporary directory");
        let image = directory.path().join("image");
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("an image");
        run(Command::new(format[0]).args(&format[1..]).arg(&image));
        let mounted = directory.path().join("mounted");
        std::fs::create_dir(&mounted).expect("a mount point");
        // mount(8) detaches the loop device it has made when the file system is unmounted.
        run(Command::new("mount").args(["-o", options]).arg(&image).arg(&mounted));
        Self { directory }
    }

    /// Where it is mounted.
    pub fn mounted(&self) -> std::path::PathBuf {
        self.directory.path().join("mounted")
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.mounted(), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn run(command: &mut Command) {
    let path = std::env::var("PATH").unwrap_or_default();
    let output =
        command.env("PATH", format!("{path}:/usr/sbin:/sbin")).output().expect("the tools for disks are installed");
    let program = Path::new(command.get_program()).display();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}
