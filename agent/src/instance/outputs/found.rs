//! Finding what a task has left in an output directory.
//!
//! The task is gone, but what it left is hostile: names, links, pipes. The walk never follows a symbolic link to a directory, and
//! a file is opened through the kernel's own guard (`openat2` with `RESOLVE_BENEATH`), so a link that leads out of the
//! directory cannot be followed even if it was put there between the walk and the opening.
//!
//! Names of objects are UTF-8, names of files are bytes. Most programs write UTF-8, and what is UTF-8 goes up unchanged. Any other name is
//! read in the character set of the job, part by part; one that is no text there, either, or that would then be the name of another
//! file, stays behind and is named.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use fuse_oss::Charset;
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

/// Walks `root`, which the task knew as `seen_as`, and passes over the relative paths in `without`. Names that are not UTF-8 are read in
/// `locale`. Blocking.
pub fn walk(root: &Path, seen_as: &Path, without: &[PathBuf], locale: Charset) -> Found {
    let mut found = Found::default();
    let mut names = Names { seen_as, locale, read: Vec::new() };
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
                look_at(root, &mut names, path, &mut queue, &mut found);
            }
        }
        if is_empty
            && !directory.as_os_str().is_empty()
            && let Some(name) = names.add(&directory, Thing::Directory, &mut found)
        {
            found.empty_directories.push(format!("{name}/"));
        }
    }
    names.settle(&mut found);
    found.files.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// From the names of files to those of objects.
struct Names<'a> {
    seen_as: &'a Path,
    locale: Charset,
    /// What had to be read in the character set, by path, with the name that gave.
    read: Vec<(PathBuf, String, Thing)>,
}

enum Thing {
    Directory,
    /// The path to open, and the length.
    File(PathBuf, u64),
}

impl Names<'_> {
    /// The name of something at a path, if it is one as it stands. Any other is put aside, or is a problem.
    fn add(&mut self, path: &Path, thing: Thing, found: &mut Found) -> Option<String> {
        if let Some(name) = path.to_str() {
            return Some(name.to_owned());
        }
        let locale = self.locale;
        match path.iter().map(|part| in_locale(part, locale)).collect::<Option<Vec<_>>>() {
            Some(parts) => self.read.push((path.to_owned(), parts.join("/"), thing)),
            None => {
                let shown = self.seen_as.join(path);
                let neither = if locale.is_utf8() { String::new() } else { format!(" and no {locale}, either,") };
                found.problems.push(format!(
                    "{shown:?}: the name is not UTF-8{neither} and cannot be an object's name; rename it in the program, or \
                     name the character set in the job (Locale)"
                ));
            }
        }
        None
    }

    /// Adds what was put aside, unless something else has that name.
    fn settle(mut self, found: &mut Found) {
        self.read.sort_by(|a, b| a.0.cmp(&b.0));
        let as_it_stands = found.files.iter().map(|entry| &entry.name).chain(&found.empty_directories);
        let mut taken: HashSet<String> = as_it_stands.cloned().collect();
        for (path, name, thing) in self.read {
            let name = if matches!(thing, Thing::Directory) { format!("{name}/") } else { name };
            if !taken.insert(name.clone()) {
                found.problems.push(format!(
                    "{:?}: read as {}, this is the name of another file, {name:?}, which goes up instead; rename one of them in \
                     the program",
                    self.seen_as.join(&path),
                    self.locale
                ));
                continue;
            }
            match thing {
                Thing::Directory => found.empty_directories.push(name),
                Thing::File(path, size) => found.files.push(Entry { name, path, size }),
            }
        }
    }
}

/// One part of a path as text.
fn in_locale(part: &OsStr, locale: Charset) -> Option<String> {
    let text = match part.to_str() {
        Some(text) => text.to_owned(),
        None => locale.decode(part.as_bytes())?.into_owned(),
    };
    // Tables could have a slash of another width, and no name may become two.
    (!text.contains(['/', '\0'])).then_some(text)
}

fn look_at(root: &Path, names: &mut Names<'_>, path: PathBuf, queue: &mut Vec<PathBuf>, found: &mut Found) {
    let seen_as = names.seen_as;
    let shown = seen_as.join(&path);
    let metadata = match fs::symlink_metadata(root.join(&path)) {
        Ok(metadata) => metadata,
        Err(error) => return found.problems.push(format!("{}: cannot be read: {error}", shown.display())),
    };
    let kind = metadata.file_type();
    if kind.is_dir() {
        queue.push(path);
    } else if kind.is_file() {
        let size = metadata.len();
        if let Some(name) = names.add(&path, Thing::File(path.clone(), size), found) {
            found.files.push(Entry { name, path, size });
        }
    } else if kind.is_symlink() {
        match link_target(root, seen_as, &path) {
            Ok((target, size)) => {
                if let Some(name) = names.add(&path, Thing::File(target.clone(), size), found) {
                    found.files.push(Entry { name, path: target, size });
                }
            }
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
        let found = walk(&root, seen_as, &[PathBuf::from("mounted")], Charset::UTF_8);
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
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(OsStr::from_bytes(b"\xff")), "").unwrap();
        for locale in [Charset::UTF_8, "GBK".parse().unwrap()] {
            let found = walk(root.path(), Path::new("/out"), &[], locale);
            assert_eq!(found.problems.len(), 1);
            assert!(found.problems[0].contains("not UTF-8"));
            assert!(walk(&root.path().join("gone"), Path::new("/out"), &[], locale).problems[0].contains("/out"));
        }
    }

    #[test]
    fn names_are_utf8_or_in_the_jobs_character_set() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &[u8]| root.path().join(OsStr::from_bytes(name));
        fs::create_dir_all(at(b"\xb3\xa1\xbe\xb0/\xbf\xd5")).unwrap();
        // The first is UTF-8, and the second the same in GBK: the first goes up.
        let files: [&[u8]; 5] = [b"\xe4\xb8\xad", b"\xd6\xd0", b"\xb3\xa1\xbe\xb0/\xe4\xb8\xad", b"plain", b"\xff\xfe"];
        for name in files {
            fs::write(at(name), "").unwrap();
        }
        symlink("plain", at(b"\xc1\xb4")).unwrap();
        let found = walk(root.path(), Path::new("/out"), &[], "GBK".parse().unwrap());
        let names: Vec<_> = found.files.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["plain", "\u{4e2d}", "\u{573a}\u{666f}/\u{4e2d}", "\u{94fe}"]);
        assert_eq!(found.empty_directories, ["\u{573a}\u{666f}/\u{7a7a}/"]);
        assert_eq!(found.problems.len(), 2, "{:?}", found.problems);
        assert!(found.problems[0].contains("no GBK, either") && found.problems[1].contains("another file"));
        // Where the job says UTF-8 and means it, nothing is guessed.
        let found = walk(root.path(), Path::new("/out"), &[], Charset::UTF_8);
        assert_eq!((found.files.len(), found.problems.len()), (2, 5), "{:?}", found.problems);
    }
}
