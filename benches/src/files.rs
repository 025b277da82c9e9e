//! What a program does with files, as the cases do it: the same on a mount and on a local directory.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::content::{Object, World};

/// Reads of this size, which is what copying programs do and the most that one FUSE request carries.
const BUFFER: usize = 1 << 20;

/// Reads a file from front to back and returns its length.
///
/// # Errors
/// Those of the file system.
pub fn read_through(path: &Path) -> anyhow::Result<u64> {
    let mut file = open(path)?;
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok(total);
        }
        total += u64::try_from(read).unwrap_or(0);
    }
}

/// Reads a file from front to back and compares every byte.
///
/// # Errors
/// Those of the file system, and a byte that is wrong.
pub fn compare(path: &Path, world: &World, object: Object) -> anyhow::Result<()> {
    let mut file = open(path)?;
    let mut buffer = vec![0; BUFFER];
    let mut offset = 0;
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            break;
        }
        ensure!(
            world.matches(object, offset, &buffer[..read]),
            "WRONG BYTES in {} between {offset} and {}",
            path.display(),
            offset + u64::try_from(read).unwrap_or(0)
        );
        offset += u64::try_from(read).unwrap_or(0);
    }
    ensure!(offset == object.size, "{} has {offset} bytes and not {}", path.display(), object.size);
    Ok(())
}

/// Fills `buffer` from a place in a file and compares it.
///
/// # Errors
/// Those of the file system, and a byte that is wrong.
pub fn read_at(file: &File, offset: u64, buffer: &mut [u8], world: &World, object: Object) -> anyhow::Result<()> {
    file.read_exact_at(buffer, offset).with_context(|| format!("cannot read at {offset}"))?;
    ensure!(world.matches(object, offset, buffer), "WRONG BYTES at {offset}");
    Ok(())
}

/// Opens for reading.
///
/// # Errors
/// Those of the file system, with the path.
pub fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// What a walk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tree {
    /// Files.
    pub files: u64,
    /// Directories, the first not counted.
    pub directories: u64,
    /// Bytes in all files, by their attributes.
    pub bytes: u64,
}

/// Lists a tree with the attributes of everything in it, as `ls -lR` does.
///
/// # Errors
/// Those of the file system.
pub fn walk(root: &Path) -> anyhow::Result<Tree> {
    let mut tree = Tree::default();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        let failed = || format!("cannot list {}", directory.display());
        let mut names: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(&directory).with_context(failed)? {
            names.push(entry.with_context(failed)?.path());
        }
        for name in names {
            let meta = name.symlink_metadata().with_context(|| format!("cannot stat {}", name.display()))?;
            if meta.is_dir() {
                tree.directories += 1;
                left.push(name);
            } else {
                tree.files += 1;
                tree.bytes += meta.len();
            }
        }
    }
    Ok(tree)
}

/// Writes the object into a new local file.
///
/// # Errors
/// Those of the file system.
pub fn lay_down(path: &Path, world: &World, object: Object) -> anyhow::Result<()> {
    let file = File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut offset = 0;
    while offset < object.size {
        let piece = world.piece(object, offset, object.size - offset);
        file.write_all_at(&piece, offset).with_context(|| format!("cannot write {}", path.display()))?;
        offset += u64::try_from(piece.len()).unwrap_or(0);
    }
    Ok(())
}

/// Takes a file, or all files of a tree, out of the page cache, after writing them to the disk. Only these: the rest of the
/// machine keeps its caches.
///
/// # Errors
/// Those of the file system.
pub fn drop_from_page_cache(path: &Path) -> anyhow::Result<()> {
    let meta = path.symlink_metadata().with_context(|| format!("cannot look at {}", path.display()))?;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            drop_from_page_cache(&entry?.path())?;
        }
    } else if meta.is_file() {
        let file = open(path)?;
        file.sync_all().with_context(|| format!("cannot write {} to the disk", path.display()))?;
        if let Err(errno) = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
            bail!("cannot take {} out of the page cache: {errno}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_laid_down_is_read_compared_and_walked() {
        let directory = tempfile::tempdir().unwrap();
        let mut world = World::new();
        world.add("x", (9 << 20) + 7);
        world.add("y", (9 << 20) + 7);
        let (x, y) = (world.get("x").unwrap(), world.get("y").unwrap());
        std::fs::create_dir(directory.path().join("d")).unwrap();
        let path = directory.path().join("d/x");
        lay_down(&path, &world, x).unwrap();
        drop_from_page_cache(directory.path()).unwrap();
        assert_eq!(read_through(&path).unwrap(), x.size);
        compare(&path, &world, x).unwrap();
        assert!(compare(&path, &world, y).unwrap_err().to_string().contains("WRONG BYTES"));
        let mut buffer = [0; 4096];
        read_at(&open(&path).unwrap(), (8 << 20) - 5, &mut buffer, &world, x).unwrap();
        assert!(read_at(&open(&path).unwrap(), 5, &mut buffer, &world, y).is_err());
        assert_eq!(walk(directory.path()).unwrap(), Tree { files: 1, directories: 1, bytes: x.size });
    }
}
