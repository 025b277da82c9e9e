//! Disks of a machine: sparse files of the host, and what has to be the same of them before and after.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::tools;

/// Where the root partition begins, in bytes: as `tests/vm/image.sh` makes it.
const ROOT_PARTITION: u64 = 1 << 20;
/// Where a file system of ext4 keeps its UUID, from its beginning.
const EXT4_UUID: u64 = 1024 + 0x68;
/// How much of either end of a disk a partition table takes.
const TABLE: u64 = 34 * 512;

/// A disk, as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// The disk that is this file.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// An empty disk of so many MiB.
    ///
    /// # Panics
    /// When the file cannot be made, as all of these do.
    pub fn empty(path: &Path, mebibytes: u64) -> Self {
        let file = File::create(path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        file.set_len(mebibytes << 20).unwrap_or_else(|error| panic!("cannot size {}: {error}", path.display()));
        Self::at(path)
    }

    /// A disk with somebody's data on it, of no kind that any program knows by name, far from its beginning.
    pub fn foreign(path: &Path, mebibytes: u64) -> Self {
        let disk = Self::empty(path, mebibytes);
        let mut random = fastrand::Rng::with_seed(0x00f0_7e16);
        let noise: Vec<u8> = (0..1 << 20).map(|_| random.u8(..)).collect();
        let file = disk.open();
        // Both ends are zero.
        file.write_all_at(&noise, (mebibytes << 20) / 2).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        disk
    }

    /// A disk with a file system of ext4 that holds empty files of these sizes in MiB.
    pub fn drawer(path: &Path, mebibytes: u64, files: &[(&str, u64)]) -> Self {
        let disk = Self::empty(path, mebibytes);
        let content = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        for (name, size) in files {
            Self::empty(&content.path().join(name), *size);
        }
        let mkfs = tools::system("mkfs.ext4", "e2fsprogs");
        tools::done(Command::new(mkfs).args(["-q", "-F", "-d"]).arg(content.path()).arg(path));
        disk
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> File {
        let mut options = File::options();
        options.read(true).write(true);
        options.open(&self.path).unwrap_or_else(|error| panic!("cannot open {}: {error}", self.path.display()))
    }

    fn bytes(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = self.open().read_exact_at(&mut bytes, offset);
        read.unwrap_or_else(|error| panic!("cannot read {} at {offset}: {error}", self.path.display()));
        bytes
    }

    /// The SHA-256 of all of it, in hexadecimal.
    pub fn sha256(&self) -> String {
        let mut file = self.open();
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = file.read(&mut buffer).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
            if count == 0 {
                return hex::encode(digest.finalize());
            }
            digest.update(&buffer[..count]);
        }
    }

    /// What says whose a root disk is: both copies of the partition table, and the UUID of the file system in it.
    pub fn identity(&self) -> RootIdentity {
        let len = self.open().metadata().map(|metadata| metadata.len()).unwrap_or_default();
        RootIdentity {
            tables: [self.bytes(0, TABLE), self.bytes(len - TABLE, TABLE)],
            uuid: hex::encode(self.bytes(ROOT_PARTITION + EXT4_UUID, 16)),
        }
    }

    /// Whether any of these texts is anywhere in it.
    pub fn has(&self, wanted: &[&str]) -> bool {
        // Gigabytes, most of them holes, which grep knows how to skip. Bytes are bytes: quicker than characters.
        let mut grep = Command::new("grep");
        grep.env("LC_ALL", "C").args(["--quiet", "--text", "--fixed-strings"]);
        grep.args(wanted.iter().flat_map(|text| ["-e", text]));
        let status = grep.arg(&self.path).status();
        match status.map(|status| status.code()) {
            Ok(Some(0)) => true,
            Ok(Some(1)) => false,
            other => panic!("grep of {} failed: {other:?}", self.path.display()),
        }
    }

    /// Whether every byte is zero.
    pub fn is_blank(&self) -> bool {
        let mut file = self.open();
        let (mut buffer, zeros) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        loop {
            let count = file.read(&mut buffer).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
            if count == 0 {
                return true;
            }
            if buffer[..count] != zeros[..count] {
                return false;
            }
        }
    }
}

/// See [`Disk::identity`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootIdentity {
    tables: [Vec<u8>; 2],
    uuid: String,
}

/// Writes a file of made-up bytes and answers with its SHA-256 in hexadecimal.
///
/// # Panics
/// When it cannot be written.
pub fn made_up(path: &Path, len: usize, seed: u64) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    let bytes: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
    let written = File::create(path).and_then(|mut file| file.write_all(&bytes));
    written.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    hex::encode(Sha256::digest(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_known_again_and_searched_whole() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::empty(&folder.path().join("disk"), 3);
        assert!(disk.is_blank());
        let (before, sum) = (disk.identity(), disk.sha256());
        disk.open().write_all_at(b"needle", (1 << 20) - 3).unwrap();
        assert!(disk.has(&["none", "needle"]) && !disk.has(&["needles"]) && !disk.is_blank());
        assert_ne!(disk.sha256(), sum);
        assert!(disk.identity() == before, "only what is between the tables has changed");
        for offset in [100, (3 << 20) - 1, ROOT_PARTITION + EXT4_UUID + 15] {
            disk.open().write_all_at(b"x", offset).unwrap();
            assert!(disk.identity() != before, "{offset}");
            disk.open().write_all_at(b"\0", offset).unwrap();
        }
    }

    #[test]
    fn foreign_data_is_where_only_a_careful_look_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::foreign(&folder.path().join("disk"), 8);
        assert!(!disk.is_blank());
        assert!(disk.bytes(0, 1 << 20).iter().chain(&disk.bytes(7 << 20, 1 << 20)).all(|byte| *byte == 0));
    }
}
