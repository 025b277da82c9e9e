//! Small files that must survive: replaced as a whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A file operation that failed, with the path it failed on.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried, as a verb: `write`, `create`.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: turns an I/O error into one that names its file.
    pub fn on<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

/// Replaces `path` by `content`, readable by the owner only: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// When any step fails; the old file is then still whole, and no temporary file is left.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), FileError> {
    exchange(path, content, true)
}

/// The same without waiting for the disk: whoever looks in this boot sees the old file or the new one. After a power cut it may be
/// torn, or empty; for what no other boot needs.
///
/// # Errors
/// As [`replace`].
pub fn replace_for_this_boot(path: &Path, content: &[u8]) -> Result<(), FileError> {
    exchange(path, content, false)
}

fn exchange(path: &Path, content: &[u8], reaches_the_disk: bool) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    // Named after the process: no two write one state file, but one may have died in the middle.
    let temporary = directory.join(format!("{}{}", temporary_prefix(path), std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        if !reaches_the_disk {
            return fs::rename(&temporary, path);
        }
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        FileError { action: "write", path: path.to_owned(), source }
    })
}

/// What the names of temporary files for `path` begin with; a process id follows.
fn temporary_prefix(path: &Path) -> String {
    format!(".{}.tmp-", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes a file and what a killed writer of it may have left. A file that is gone already is a success.
///
/// # Errors
/// When something is there and cannot be removed.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let prefix = temporary_prefix(path);
    let entries = fs::read_dir(directory).map_err(FileError::on("read", directory))?;
    let torn = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    for path in torn.map(|entry| entry.path()).chain([path.to_owned()]) {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(FileError { action: "remove", path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes what writers that were killed in the middle of [`replace`] have left in a directory. One whose process is there may still be
/// at it; should that be another process of the same number, the file goes another time.
///
/// # Errors
/// When the directory cannot be read, or a file in it cannot be removed.
pub fn remove_torn(directory: &Path) -> Result<(), FileError> {
    for entry in fs::read_dir(directory).map_err(FileError::on("read", directory))?.flatten() {
        let name = entry.file_name();
        let Some(writer) = name.to_str().and_then(writer) else { continue };
        let is_there = nix::sys::signal::kill(writer, None) != Err(nix::errno::Errno::ESRCH);
        if is_there || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(FileError { action: "remove", path: entry.path(), source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The process that a temporary file is named after.
fn writer(name: &str) -> Option<Pid> {
    let (_, writer) = name.strip_prefix('.')?.rsplit_once(".tmp-")?;
    writer.parse().ok().filter(|pid| *pid > 0).map(Pid::from_raw)
}

/// [`replace`] with a JSON document.
///
/// # Errors
/// As [`replace`].
pub fn replace_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    replace(path, &json(path, value)?)
}

/// [`replace_for_this_boot`] with a JSON document.
///
/// # Errors
/// As [`replace_json`].
pub fn replace_json_for_this_boot<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    replace_for_this_boot(path, &json(path, value)?)
}

fn json<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, FileError> {
    serde_json::to_vec_pretty(value).map_err(|error| FileError {
        action: "write",
        path: path.to_owned(),
        source: io::Error::other(error),
    })
}

/// Reads a JSON document; `None` when there is no file, or one that is empty, torn or of another format: such a file is
/// as good as lost, and a node must survive that. It is said in the log.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError { action: "read", path: path.to_owned(), source: error }),
    };
    match serde_json::from_slice(&content) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "state file is damaged and ignored");
            Ok(None)
        }
    }
}

/// Makes a directory that is closed to everyone but root; parents that are missing are made as usual.
///
/// # Errors
/// When it cannot be made.
pub fn private_directory(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(FileError::on("create", parent))?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(FileError::on("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_files_are_whole_private_and_leave_no_trace() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        replace_json(&path, &vec![1, 2]).unwrap();
        replace_json(&path, &vec![3]).unwrap();
        assert_eq!(read_json::<Vec<i32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_goes_with_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(directory.path().join(".state.json.tmp-17"), "{").unwrap();
        fs::write(directory.path().join("other.json"), "{}").unwrap();
        replace_json(&path, &1).unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["other.json"]);
    }

    #[test]
    fn what_killed_writers_left_goes_and_what_living_ones_write_stays() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let living = std::process::id();
        let names = [".a.json.tmp-x", ".b.tmp-0", "a.tmp-1", "a.json"].map(str::to_owned);
        let kept = [names.to_vec(), vec![format!(".a.json.tmp-{living}")]].concat();
        for name in kept.iter().chain([&format!(".a.json.tmp-{dead}"), &format!(".b.tmp-1.tmp-{dead}")]) {
            fs::write(directory.path().join(name), "{").unwrap();
        }
        fs::create_dir(directory.path().join(format!(".d.tmp-{dead}"))).unwrap();
        remove_torn(directory.path()).unwrap();
        let mut left: Vec<String> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = [kept, vec![format!(".d.tmp-{dead}")]].concat();
        expected.sort();
        assert_eq!(left, expected);
        assert!(remove_torn(&directory.path().join("none")).is_err());
    }

    #[test]
    fn only_the_directory_itself_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data/scratch");
        private_directory(&path).unwrap();
        private_directory(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap()) & 0o700), (0o700, 0o700));
        assert_ne!(mode(path.parent().unwrap()), 0o700);
    }

    #[test]
    fn torn_and_missing_files_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert_eq!(read_json::<Vec<i32>>(&path).unwrap(), None);
        for torn in ["", "[1, 2", "{}"] {
            fs::write(&path, torn).unwrap();
            assert_eq!(read_json::<Vec<i32>>(&path).unwrap(), None, "{torn:?}");
        }
        assert!(read_json::<Vec<i32>>(directory.path()).is_err());
    }
}
