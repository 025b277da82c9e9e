//! Taking things out of the kernel's caches, so that a disk is measured and not memory.
//!
//! Two steps are needed. What a mount's program has written to its cache directory must be on the disk first, because only clean
//! pages can be dropped. And the pages of a *mounted* file belong to the mount, whose files cannot be named here: they go
//! with `drop_caches`, which only ever drops what can be read again. It makes everything else on the machine slower for a moment,
//! and harms nothing.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::files::open;

const SWITCH: &str = "/proc/sys/vm/drop_caches";

/// Writes the files of a tree to the disk, takes them out of the page cache, and with them the pages of everything else that is
/// clean: those of all mounts.
///
/// # Errors
/// Those of the file system, and when the kernel's switch cannot be written.
pub fn drop_pages(tree: &Path) -> anyhow::Result<()> {
    // One call for all: thousands of small files written to the disk one by one take a minute.
    nix::unistd::sync();
    drop_files(tree)?;
    switch("1")
}

/// Empties the page cache and forgets all names and attributes, of disks and of mounts.
///
/// # Errors
/// When the kernel's switch cannot be written.
pub fn drop_everything() -> anyhow::Result<()> {
    // Inodes with changes stay.
    nix::unistd::sync();
    switch("3")
}

fn switch(value: &str) -> anyhow::Result<()> {
    std::fs::write(SWITCH, value).with_context(|| format!("cannot write to {SWITCH}: caches cannot be dropped here"))
}

/// Takes a file, or all files of a tree, out of the page cache, as far as they are on the disk. Files that go meanwhile are none of
/// ours.
fn drop_files(path: &Path) -> anyhow::Result<()> {
    let Ok(meta) = path.symlink_metadata() else { return Ok(()) };
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            drop_files(&entry?.path())?;
        }
    } else if meta.is_file() {
        let Ok(file) = open(path) else { return Ok(()) };
        if let Err(errno) = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
            bail!("cannot take {} out of the page cache: {errno}", path.display());
        }
    }
    Ok(())
}

/// Waits until a tree has stopped growing: a cache may be written behind the reader's back. At most a few seconds.
pub fn settle(tree: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut before = allocated(tree);
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(60));
        let now = allocated(tree);
        if now == before {
            return;
        }
        before = now;
    }
}

/// Bytes that all files of a tree occupy on the disk, and how many files there are.
fn allocated(path: &Path) -> (u64, u64) {
    let Ok(meta) = path.symlink_metadata() else { return (0, 0) };
    if !meta.is_dir() {
        return (meta.blocks() * 512, 1);
    }
    let Ok(entries) = std::fs::read_dir(path) else { return (0, 0) };
    entries.flatten().map(|entry| allocated(&entry.path())).fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_can_be_dropped_and_are_still_there() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("d")).unwrap();
        std::fs::write(directory.path().join("d/x"), vec![7; 100_000]).unwrap();
        settle(directory.path());
        drop_files(directory.path()).unwrap();
        drop_files(&directory.path().join("gone meanwhile")).unwrap();
        assert_eq!(std::fs::read(directory.path().join("d/x")).unwrap(), vec![7; 100_000]);
        assert_eq!(allocated(directory.path()).1, 1);
        assert!(allocated(directory.path()).0 >= 100_000);
    }
}
