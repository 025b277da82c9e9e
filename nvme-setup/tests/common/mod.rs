//! Loop devices for tests, and programs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

pub const SIZE: u64 = 400 << 20;

/// Runs a program that has to succeed. A missing one fails with the name of its package.
pub fn run(program: &str, package: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}; install the package {package}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A loop device on a sparse file, which goes with it.
#[derive(Debug)]
pub struct Disk {
    pub directory: TempDir,
    pub path: PathBuf,
}

impl Disk {
    pub fn new(size: u64) -> Self {
        Self::prepared(size, &[], |_| {})
    }

    /// A disk with what `prepare` puts in its file.
    pub fn prepared(size: u64, options: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        // In memory where there is room for that: a disk that others are writing to makes every sync slow.
        let shared = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
        let parent = shared.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let directory = tempfile::Builder::new().prefix("nvme-setup-test-").tempdir_in(parent).unwrap();
        let file = directory.path().join("disk");
        File::create(&file).unwrap().set_len(size).unwrap();
        prepare(&file);
        let arguments = [options, &["--find", "--show", file.to_str().unwrap()]].concat();
        let path = PathBuf::from(run("losetup", "mount", &arguments).trim());
        Self { directory, path }
    }

    /// A disk that a program has formatted.
    pub fn formatted(program: &str, package: &str, options: &[&str]) -> Self {
        Self::prepared(SIZE, &[], |file| {
            run(program, package, &[options, &[file.to_str().unwrap()]].concat());
        })
    }

    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Keeps a copy of what it carries.
    pub fn remember(&self) {
        let file = self.directory.path().join("disk");
        run("cp", "coreutils", &["--sparse=always", file.to_str().unwrap(), &format!("{}.before", file.display())]);
    }

    /// Fails when anything has changed since.
    pub fn is_as_remembered(&self) {
        run("sync", "coreutils", &[self.path()]);
        let file = self.directory.path().join("disk");
        run("cmp", "diffutils", &[file.to_str().unwrap(), &format!("{}.before", file.display())]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A panic here would hide the one that ended the test; losetup says what is wrong.
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .status();
    }
}

/// Writes a GUID partition table with one partition entry and both copies (UEFI specification, chapter 5).
pub fn gpt(file: &Path, size: u64) -> io::Result<()> {
    const SECTOR: u64 = 512;
    let last = size / SECTOR - 1;
    let file = File::options().write(true).open(file)?;
    let mut protective = [0; 512];
    protective[446..462].copy_from_slice(&[0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    protective[510..].copy_from_slice(&[0x55, 0xAA]);
    file.write_all_at(&protective, 0)?;
    let mut entries = vec![0; 128 * 128];
    entries[..16].copy_from_slice(&[
        0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D, 0xE4,
    ]);
    entries[16..32].copy_from_slice(&[7; 16]);
    entries[32..40].copy_from_slice(&2048_u64.to_le_bytes());
    entries[40..48].copy_from_slice(&(last - 2048).to_le_bytes());
    for (here, other, table) in [(1, last, 2), (last, 1, last - 32)] {
        let mut header = Vec::with_capacity(92);
        header.extend_from_slice(b"EFI PART\x00\x00\x01\x00\x5C\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00");
        for number in [here, other, 34, last - 33] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        header.extend_from_slice(&[9; 16]);
        header.extend_from_slice(&table.to_le_bytes());
        for number in [128, 128, crc32(&entries)] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        file.write_all_at(&header, here * SECTOR)?;
        file.write_all_at(&entries, table * SECTOR)?;
    }
    Ok(())
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}
