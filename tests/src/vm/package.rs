//! The Debian package of the programs under test, as `systemd/dist.sh` makes it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::{programs, tools};

/// It lays everything out in one place.
static TURN: Mutex<()> = Mutex::new(());

/// Packs the programs that cargo has built beside the tests, into a file in `folder`.
///
/// # Panics
/// When they have not been built or cannot be packed.
pub fn debian(folder: &Path) -> PathBuf {
    let programs = ["batch-agent", "fuse-oss", "nvme-setup"].map(programs::path);
    let directory = programs[0].parent().unwrap_or(Path::new("/"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/dist.sh");
    let mut pack = Command::new(script);
    pack.arg("--programs").arg(directory).arg("deb").env("DIST", folder);
    {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        tools::done(&mut pack);
    }
    let entries = folder.read_dir().unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    let found =
        entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|kind| kind == "deb"));
    found.unwrap_or_else(|| panic!("dist.sh has left no package in {}", folder.display()))
}
