//! Whether a file can be taken for finished.
//!
//! A file is quiet when nobody has it open for writing and it was not changed for a while. The first is asked of the kernel, by a read lease,
//! which is granted only then, mappings of the file into memory included; it is given back at once. The second is seen from the
//! file's times. From such a moment on every further change of the content changes the times: a write does, and the first write through a
//! new mapping does, on all file systems but those that live in memory, which are left out.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::statfs::{FsType, fstatfs};
use oss::transfer::FileStamp;

/// File systems that do not tell when a file was written to through memory.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Which signal tells the holder of a lease that it is wanted back (`fcntl(2)`); not among the constants that we have from elsewhere.
const F_SETSIG: libc::c_int = 10;

/// What is to be done with a file that may be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It can be sent ahead.
    Quiet,
    /// It has to be looked at again after this time.
    Wait(Duration),
    /// It is nothing for us.
    Never,
}

/// By its times. `before` is what the file was when it was looked at last, if it was: a clock that was set says nothing. Pure.
pub(super) fn judge(now: SystemTime, stamp: &FileStamp, since: Duration, quiet: Duration, least: u64) -> Verdict {
    if stamp.size < least {
        return Verdict::Never;
    }
    let at = |(seconds, nanos): (i64, i64)| {
        let (seconds, nanos) = (u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).unwrap_or(UNIX_EPOCH)
    };
    // A program can set the time of modification to anything, and that of the change it cannot.
    let age = now.duration_since(at(stamp.changed)).unwrap_or(Duration::ZERO);
    // By our own watch, too: the machine's clock may have been set forward.
    match quiet.checked_sub(age.min(since)) {
        Some(left) if !left.is_zero() => Verdict::Wait(left),
        _ => Verdict::Quiet,
    }
}

/// What the file is, if nobody has it open for writing.
pub(super) fn unless_open_for_writing(file: &File) -> io::Result<Option<FileStamp>> {
    let before = FileStamp::of(file)?;
    if IN_MEMORY.map(|kind| FsType(kind as _)).contains(&fstatfs(file)?.filesystem_type()) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let number = file.as_raw_fd();
    // A writer that comes while we have the lease is told by a signal to us, which must be one that does no harm.
    // SAFETY: the descriptor is open, and the arguments are numbers.
    if unsafe { libc::fcntl(number, F_SETSIG, libc::SIGURG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(number, libc::F_SETLEASE, libc::F_RDLCK) } != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: as above. Should it fail, the lease ends with the descriptor.
    unsafe { libc::fcntl(number, libc::F_SETLEASE, libc::F_UNLCK) };
    // Whoever has come since changed the file after this.
    Ok(Some(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(changed: i64, size: u64) -> FileStamp {
        FileStamp { device: 1, inode: 1, size, modified: (9_999_999, 0), changed: (changed, 500_000_000) }
    }

    #[test]
    fn only_what_has_not_changed_for_long_enough_by_both_clocks_is_quiet() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let (second, quiet) = (Duration::from_secs(1), Duration::from_secs(5));
        let judge = |changed, since, size| judge(now, &stamp(changed, size), since, quiet, 10);
        assert_eq!(judge(900, 60 * second, 10), Verdict::Quiet);
        assert_eq!(judge(900, 60 * second, 9), Verdict::Never);
        assert_eq!(judge(997, 60 * second, 10), Verdict::Wait(Duration::from_millis(2500)));
        assert_eq!(judge(900, second, 10), Verdict::Wait(4 * second));
        // From the future, and from before all times.
        assert_eq!(judge(2000, 60 * second, 10), Verdict::Wait(5 * second));
        assert_eq!(judge(-7, 60 * second, 10), Verdict::Quiet);
    }

    #[test]
    fn a_file_that_is_open_for_writing_or_mapped_is_not_finished() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut writer = Some(File::create(&path).unwrap());
        let ask = || unless_open_for_writing(&File::open(&path).unwrap());
        if ask().is_err_and(|error| error.kind() == io::ErrorKind::Unsupported) {
            panic!("the temporary directory is in memory: set TMPDIR to a directory on a disk");
        }
        assert_eq!(ask().unwrap(), None);
        writer.take();
        assert_eq!(ask().unwrap(), Some(FileStamp::of(&File::open(&path).unwrap()).unwrap()));
        let reader = File::open(&path).unwrap();
        assert!(ask().unwrap().is_some(), "readers do not count");
        drop(reader);
        // Closed, and still written to through memory.
        let writer = File::options().read(true).write(true).open(&path).unwrap();
        writer.set_len(4096).unwrap();
        let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of a whole file at a place of the kernel's choice, which is not touched and is taken away below.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, shared, writer.as_raw_fd(), 0) };
        assert_ne!(map, libc::MAP_FAILED);
        drop(writer);
        assert_eq!(ask().unwrap(), None);
        // SAFETY: the mapping from above, which nothing refers to.
        assert_eq!(unsafe { libc::munmap(map, 4096) }, 0);
        assert!(ask().unwrap().is_some());
    }
}
