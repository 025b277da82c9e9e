//! Finding what a task has left in an output directory.
//!
//! The task is gone, but what it left is hostile: names, links, pipes. The walk never follows a symbolic link to a directory, and
//! a file is opened through the kernel's own guard (`openat2` with `RESOLVE_BENEATH`), so a link that leads out of the
//! directory cannot be followed even if it was put there between the walk and the opening.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Found {
    /// Regular files and links to such inside the directory, relative to it.
    pub files: Vec<Entry>,
    /// Directories with nothing in them, relative, with a trailing slash.
    pub empty_directories: Vec<String>,
    /// What is left out on purpose, each with the reason: pipes, sockets, links that lead outside.
    pub skipped: Vec<String>,
    /// What should go up and cannot, each with the reason.
    pub problems: Vec<String>,
}

/// A file to upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name below the output directory, with `/` between components; what the key ends in.
    pub name: String,
    /// The path to open, which differs from the name for a link with an absolute target inside the directory.
    pub path: PathBuf,
    /// Its length in bytes when it was found.
    pub size: u64,
}

/// Walks `root`, which the task knew as `seen_as`, and passes over the relative paths in `without`. Blocking.
pub fn walk(root: &Path, seen_as: &Path, without: &[PathBuf]) -> Found {
    let mut found = Found::default();
    let mut queue = vec![PathBuf::new()];
    while let Some(directory) = queue.pop() {
        let entries = match fs::read_dir(root.join(&directory)) {
            Ok(entries) => entries,
            Err(error) => {
                found.problems.push(format!("{}: cannot be read: {error}", seen_as.join(&directory).display()));
                continue;
            }
        };
        let mut is_empty = true;
        for entry in entries {
            is_empty = false;
            let path = match &entry {
                Ok(entry) => directory.join(entry.file_name()),
                Err(error) => {
                    found.problems.push(format!("{}: cannot be read: {error}", seen_as.join(&directory).display()));
                    continue;
                }
            };
            if !without.contains(&path) {
                look_at(root, seen_as, path, &mut queue, &mut found);
            }
        }
        if is_empty && !directory.as_os_str().is_empty() {
            match directory.to_str() {
                Some(name) => found.empty_directories.push(format!("{name}/")),
                None => found.problems.push(not_utf8(&seen_as.join(&directory))),
            }
        }
    }
    found.files.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn not_utf8(path: &Path) -> String {
    format!("{path:?}: the name is not UTF-8 and cannot be an object's name; rename it in the program")
}

fn look_at(root: &Path, seen_as: &Path, path: PathBuf, queue: &mut Vec<PathBuf>, found: &mut Found) {
    let shown = seen_as.join(&path);
    let metadata = match fs::symlink_metadata(root.join(&path)) {
        Ok(metadata) => metadata,
        Err(error) => return found.problems.push(format!("{}: cannot be read: {error}", shown.display())),
    };
    let kind = metadata.file_type();
    if kind.is_dir() {
        queue.push(path);
    } else if kind.is_file() {
        match path.to_str() {
            Some(name) => found.files.push(Entry { name: name.to_owned(), size: metadata.len(), path }),
            None => found.problems.push(not_utf8(&shown)),
        }
    } else if kind.is_symlink() {
        match link_target(root, seen_as, &path) {
            Ok((target, size)) => match path.to_str() {
                Some(name) => found.files.push(Entry { name: name.to_owned(), size, path: target }),
                None => found.problems.push(not_utf8(&shown)),
            },
            Err(reason) => found.skipped.push(format!("{}: {reason}", shown.display())),
        }
    } else if kind.is_char_device() && metadata.rdev() == 0 {
        // A whiteout: where an output lies inside a writable input, this is how overlayfs remembers a deletion.
    } else {
        found.skipped.push(format!("{}: not a regular file (a pipe, socket or device)", shown.display()));
    }
}

/// The file inside the directory that a link leads to, and its length.
fn link_target(root: &Path, seen_as: &Path, link: &Path) -> Result<(PathBuf, u64), String> {
    let target = fs::read_link(root.join(link)).map_err(|error| error.to_string())?;
    let path = match target.strip_prefix(seen_as) {
        Ok(inside) if target.is_absolute() => inside.to_owned(),
        _ => link.to_owned(),
    };
    let directory = open_directory(root).map_err(|error| error.to_string())?;
    let file = open_beneath(&directory, &path)
        .map_err(|_| format!("a symbolic link to {target:?}, which is not a file inside the output directory"))?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    Ok((path, metadata.len()))
}

/// Opens the directory that files are then opened in.
///
/// # Errors
/// When it is missing, not a directory, or a symbolic link.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Opens a regular file below `directory` and nowhere else, for reading.
///
/// # Errors
/// When the path leads outside, or to something that is not a regular file.
pub fn open_beneath(directory: &impl AsFd, path: &Path) -> io::Result<File> {
    if path.components().any(|component| matches!(component, Component::ParentDir | Component::RootDir)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // O_NONBLOCK: opening a pipe must not wait for a writer that will never come.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let file = File::from(openat2(directory, path, OpenHow::new().flags(flags).resolve(resolve))?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    #[test]
    fn files_are_found_and_nothing_outside_is_reached() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("out");
        let seen_as = Path::new("/home/output");
        fs::create_dir_all(root.join("a/empty")).unwrap();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        fs::write(root.join("a/real"), "real").unwrap();
        symlink("a/real", root.join("inside")).unwrap();
        symlink("/home/output/a/real", root.join("absolute")).unwrap();
        symlink("../secret", root.join("outside")).unwrap();
        symlink("/etc/passwd", root.join("passwd")).unwrap();
        symlink(".", root.join("loop")).unwrap();
        symlink("/proc/self/root/etc/passwd", root.join("magic")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();

        fs::create_dir(root.join("mounted")).unwrap();
        let found = walk(&root, seen_as, &[PathBuf::from("mounted")]);
        let names: Vec<_> = found.files.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a/real", "absolute", "inside"]);
        assert_eq!(found.empty_directories, ["a/empty/"]);
        assert_eq!(found.skipped.len(), 5, "{:?}", found.skipped);
        assert!(found.problems.is_empty());
        let directory = open_directory(&root).unwrap();
        for entry in &found.files {
            let mut content = String::new();
            open_beneath(&directory, &entry.path).unwrap().read_to_string(&mut content).unwrap();
            assert_eq!(content, "real");
        }
        for path in ["outside", "passwd", "magic", "pipe", "../secret", "/etc/passwd"] {
            assert!(open_beneath(&directory, Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn names_that_cannot_be_keys_are_problems() {
        use std::os::unix::ffi::OsStrExt;
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
        let found = walk(root.path(), Path::new("/out"), &[]);
        assert_eq!(found.problems.len(), 1);
        assert!(found.problems[0].contains("not UTF-8"));
        assert!(walk(&root.path().join("gone"), Path::new("/out"), &[]).problems[0].contains("/out"));
    }
}
