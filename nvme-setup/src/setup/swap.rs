//! A swap file on a volume of ours.
//!
//! A file and not a partition: volumes are whole disks. Its blocks are allocated by fallocate(2) and never written, which
//! the kernel takes for swap on ext4 always and on xfs since Linux 4.18 (before, it saw holes and refused). It
//! gets its name only when it is complete, so what has the name can be swapped on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use super::StepError;
use super::hand::{system, text};
use crate::tools::Tools;

/// Makes a swap file, if it is not there.
pub(super) fn make(tools: &Tools, path: &Path, size: u64) -> Result<(), StepError> {
    let doing = |what: &str| system(format!("{what} {}", path.display()));
    let Some(directory) = path.parent() else {
        return Err(StepError::Changed { what: path.display().to_string(), why: "is no file".into() });
    };
    let root = fs::symlink_metadata(directory).map_err(doing("looking at the directory of"))?;
    // Whoever may write there could put something else in the file's place.
    if root.uid() != 0 || root.mode() & 0o022 != 0 {
        return Err(StepError::Changed {
            what: directory.display().to_string(),
            why: "can be written by others than root, so no swap file is made there (chown root, chmod go-w)".into(),
        });
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.uid() == 0 && found.mode() & 0o077 == 0 => return Ok(()),
        Ok(_) => {
            return Err(StepError::Changed {
                what: path.display().to_string(),
                why: "is there already and is not a swap file of this program's; move it away".into(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(doing("looking at")(error)),
    }
    let new = path.with_extension("swap.new");
    match fs::remove_file(&new) {
        // What an interrupted run has left. The name is this program's own.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(doing("removing what is left of")(error)),
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&new)
        .map_err(doing("making"))?;
    let length = libc::off_t::try_from(size).map_err(|error| doing("making")(io::Error::other(error)))?;
    fallocate(file.as_fd(), FallocateFlags::empty(), 0, length)
        .map_err(|error| doing("finding room for")(error.into()))?;
    tools.run("mkswap", &["--quiet", text(&new)?])?;
    file.sync_all().map_err(doing("writing"))?;
    fs::rename(&new, path).map_err(doing("naming"))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(doing("writing the directory of"))
}
