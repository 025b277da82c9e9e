//! The system that a machine boots: Debian as `tests/vm/image.sh` makes it once, with what a test puts into its own copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::disk::Disk;
use crate::tools;

/// The image and its kernel, in the test environment.
#[derive(Debug, Clone)]
pub struct Image {
    cache: PathBuf,
}

/// What is put into an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A Debian package, installed as a person would.
    Package(PathBuf),
    /// A file or directory of the host, and where it goes. A unit is enabled as well.
    File(PathBuf, String),
}

impl Image {
    /// The image that `tests/run.sh` has made.
    ///
    /// # Panics
    /// When it is not there or was made by another recipe than today's, with the command that makes it: a test that downloads for
    /// minutes would be a surprise.
    pub fn made() -> Self {
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.test-env/vm");
        let recipe = script("image.sh");
        let known = fs::read_to_string(cache.join("recipe")).unwrap_or_default();
        let output = tools::done(Command::new("sha256sum").arg(&recipe));
        let now = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            known.trim().len() == 16 && now.starts_with(known.trim()),
            "there is no virtual machine's image of this recipe in {}; run `make test-env`, or `tests/vm/image.sh .test-env/vm`",
            cache.display()
        );
        Self { cache }
    }

    /// The kernel; it is started without a boot loader.
    pub fn kernel(&self) -> PathBuf {
        self.cache.join("vmlinuz")
    }

    /// The newer kernel that `tests/vm/kernel.sh` has made, and its modules.
    ///
    /// # Panics
    /// When it is not there, with the command that makes it.
    pub fn newer_kernel(&self) -> (PathBuf, PathBuf) {
        let folder = self.cache.join("newer");
        let (kernel, modules) = (folder.join("vmlinuz"), folder.join("modules"));
        assert!(kernel.exists(), "there is no {}; run `tests/vm/kernel.sh .test-env/vm`", kernel.display());
        (kernel, modules)
    }

    /// A copy of the image with more in it, as a disk at `path`.
    ///
    /// # Panics
    /// When it cannot be made: that needs root, for mounting it, and some 600 MB.
    pub fn with(&self, path: &Path, payload: &[Payload]) -> Disk {
        tools::done(
            Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(self.cache.join("root.img")).arg(path),
        );
        let mut install = Command::new(script("install.sh"));
        install.arg(path);
        for item in payload {
            match item {
                Payload::Package(package) => install.arg(package),
                Payload::File(from, to) => install.arg(format!("{}={to}", from.display())),
            };
        }
        tools::done(&mut install);
        Disk::at(path)
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vm").join(name)
}
