//! A file that is being written and has no name yet.
//!
//! Where the file system can (`O_TMPFILE`: ext4, XFS, Btrfs, tmpfs, overlayfs), the file has no name at all until it is
//! complete, so that nothing is left behind whatever kills the process. Elsewhere (NFS, FUSE) it has a name of ours,
//! which is removed on failure.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc;
use nix::unistd::linkat;

use crate::store::PutMode;

/// Names of files that hold a write in progress begin with this. `file://` neither takes nor lists such keys.
pub(crate) const TEMPORARY: &str = ".oss-tmp.";

/// A file in the making. Dropped without [`Staged::commit`], it is gone.
#[derive(Debug)]
pub(crate) struct Staged {
    file: File,
    directory: PathBuf,
    /// Its temporary name, where it must have one.
    name: Option<PathBuf>,
}

impl Staged {
    /// A new empty file in `directory`, which exists.
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        // Without /proc an unnamed file could not be given a name later.
        if Path::new("/proc/self/fd").exists() {
            let unnamed =
                OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o644).open(directory);
            match unnamed {
                Ok(file) => return Ok(Self { file, directory: directory.to_owned(), name: None }),
                // How kernels and file systems say that they cannot: EISDIR is that of very old ones.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
                Err(error) => return Err(error),
            }
        }
        Self::named(directory)
    }

    fn named(directory: &Path) -> io::Result<Self> {
        let name = temporary_name(directory);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&name)?;
        Ok(Self { file, directory: directory.to_owned(), name: Some(name) })
    }

    /// The file, to be written.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, replacing what is there or, with [`PutMode::IfAbsent`], failing with `EEXIST`. The content
    /// is on the disk by then if `durable`; a crash of the machine may otherwise leave an empty file.
    pub(crate) fn commit(mut self, target: &Path, mode: PutMode, durable: bool) -> io::Result<Metadata> {
        // The kernel's own stamps are as coarse as its tick, and inode numbers are used again at once: without an exact
        // time two contents of the same length could have one entity tag.
        self.file.set_modified(SystemTime::now())?;
        if durable {
            self.file.sync_data()?;
        }
        match self.name.take() {
            None => self.link(target, mode)?,
            Some(name) => {
                if let Err(error) = move_to(&name, target, mode) {
                    self.name = Some(name);
                    return Err(error);
                }
            }
        }
        self.file.metadata()
    }

    fn link(&self, target: &Path, mode: PutMode) -> io::Result<()> {
        let unnamed = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let link = |to: &Path| linkat(AT_FDCWD, &unnamed, AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW);
        match (link(target), mode) {
            (Err(Errno::EEXIST), PutMode::Overwrite) => {
                let name = temporary_name(&self.directory);
                link(&name)?;
                fs::rename(&name, target).inspect_err(|_| remove_quietly(&name))
            }
            (result, _) => Ok(result?),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            remove_quietly(name);
        }
    }
}

fn move_to(name: &Path, target: &Path, mode: PutMode) -> io::Result<()> {
    match mode {
        PutMode::Overwrite => fs::rename(name, target),
        // A hard link refuses to replace, also on NFS, which has no rename that does.
        PutMode::IfAbsent => {
            fs::hard_link(name, target)?;
            remove_quietly(name);
            Ok(())
        }
    }
}

fn temporary_name(directory: &Path) -> PathBuf {
    directory.join(format!("{TEMPORARY}{:016x}", fastrand::u64(..)))
}

fn remove_quietly(name: &Path) {
    if let Err(error) = fs::remove_file(name) {
        tracing::warn!("cannot remove the temporary file {name:?}: {error}; remove it by hand");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn appears_whole_replaces_and_respects_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x");
        for make in [Staged::new, Staged::named] {
            for (content, mode, ok) in [
                ("one", PutMode::IfAbsent, true),
                ("two", PutMode::IfAbsent, false),
                ("three", PutMode::Overwrite, true),
            ] {
                let staged = make(directory.path()).unwrap();
                staged.file().write_all(content.as_bytes()).unwrap();
                let result = staged.commit(&target, mode, true);
                assert_eq!(result.is_ok(), ok, "{content} {result:?}");
                if let Err(error) = result {
                    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
                }
                assert_eq!(names(directory.path()), ["x"]);
            }
            assert_eq!(fs::read_to_string(&target).unwrap(), "three");
            fs::remove_file(&target).unwrap();
        }
    }

    #[test]
    fn what_is_dropped_or_fails_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("d")).unwrap();
        for make in [Staged::new, Staged::named] {
            drop(make(directory.path()).unwrap());
            assert_eq!(names(directory.path()), ["d"]);
            let error = make(directory.path()).unwrap().commit(&directory.path().join("d"), PutMode::Overwrite, false);
            assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EISDIR));
            assert_eq!(names(directory.path()), ["d"]);
        }
    }
}
