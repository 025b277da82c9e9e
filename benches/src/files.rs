//! What a program does with files, as the cases do it: the same on a mount and on a local directory.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};

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

/// Maps a file and copies it out of the mapping from front to back, as programs do that read by `mmap`, with no hint to the
/// kernel. Returns its length. A file system that fails meanwhile ends the process (SIGBUS): to be called in one of its own.
///
/// # Errors
/// When it cannot be opened or mapped.
pub fn read_mapped(path: &Path) -> anyhow::Result<u64> {
    let file = open(path)?;
    let size = file.metadata().with_context(|| format!("cannot stat {}", path.display()))?.len();
    let length = usize::try_from(size).context("the file is larger than the address space")?;
    ensure!(length > 0, "{} is empty, and nothing can be mapped of it", path.display());
    // SAFETY: a new mapping at an address of the kernel's choice, of a descriptor that is open.
    let base =
        unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    ensure!(base != libc::MAP_FAILED, "cannot map {}: {}", path.display(), std::io::Error::last_os_error());
    let mut buffer = vec![0_u8; BUFFER];
    for offset in (0..length).step_by(BUFFER) {
        let count = BUFFER.min(length - offset);
        // SAFETY: `offset + count` lies within the mapping, and `buffer` is ours and `BUFFER` long. Nobody writes to the file
        // meanwhile; if somebody did, the copy would hold some of both, and only its length is used.
        unsafe { std::ptr::copy_nonoverlapping(base.cast::<u8>().add(offset), buffer.as_mut_ptr(), count) };
        std::hint::black_box(&buffer);
    }
    // SAFETY: the whole mapping made above, of which no reference is left.
    unsafe { libc::munmap(base, length) };
    Ok(size)
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

/// What `ls -lR` (in the C locale) has printed: each file and directory with its size.
pub fn tree_of_listing(listing: &str) -> Tree {
    let mut tree = Tree::default();
    for line in listing.lines() {
        match line.as_bytes().first() {
            Some(b'd') => tree.directories += 1,
            Some(b'-') => {
                tree.files += 1;
                // Mode, links, owner, group, size.
                tree.bytes += line.split_whitespace().nth(4).and_then(|size| size.parse::<u64>().ok()).unwrap_or(0);
            }
            _ => {}
        }
    }
    tree
}

/// Writes the object into a new local file.
///
/// # Errors
/// Those of the file system.
pub fn lay_down(path: &Path, world: &World, object: Object) -> anyhow::Result<()> {
    let file = File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut offset = 0;
    while offset < object.size {
        let piece = world.bytes(object, offset, object.size - offset);
        file.write_all_at(piece, offset).with_context(|| format!("cannot write {}", path.display()))?;
        offset += u64::try_from(piece.len()).unwrap_or(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_laid_down_is_read_compared_and_listed() {
        let directory = tempfile::tempdir().unwrap();
        let mut world = World::new();
        world.add("x", (9 << 20) + 7);
        world.add("y", (9 << 20) + 7);
        let (x, y) = (world.get("x").unwrap(), world.get("y").unwrap());
        std::fs::create_dir(directory.path().join("d")).unwrap();
        let path = directory.path().join("d/x");
        lay_down(&path, &world, x).unwrap();
        assert_eq!(read_through(&path).unwrap(), x.size);
        compare(&path, &world, x).unwrap();
        assert!(compare(&path, &world, y).unwrap_err().to_string().contains("WRONG BYTES"));
        let mut buffer = [0; 4096];
        read_at(&open(&path).unwrap(), (8 << 20) - 5, &mut buffer, &world, x).unwrap();
        assert!(read_at(&open(&path).unwrap(), 5, &mut buffer, &world, y).is_err());
        assert_eq!(read_mapped(&path).unwrap(), x.size);
        let output = std::process::Command::new("ls").arg("-lR").arg(directory.path()).env("LC_ALL", "C").output();
        let listing = String::from_utf8(output.unwrap().stdout).unwrap();
        assert_eq!(tree_of_listing(&listing), Tree { files: 1, directories: 1, bytes: x.size }, "{listing}");
    }
}
