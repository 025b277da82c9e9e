//! The task's package: a gzipped tar archive that is unpacked into the working directory, or one program put there.
//!
//! Packages come from users and are hostile until shown otherwise. An archive is read twice: the first pass looks at every
//! entry and writes nothing, so a bad one is refused whole, by the name of the entry; the second writes. Nothing outside
//! the working directory can be reached, because
//!
//! - names are relative and without `..`, and no entry is ever written *through* a symbolic link of the archive;
//! - a link's target is relative, `..` stands only at its beginning and not more often than its directory is deep. A link
//!   that is followed in the middle of another one's target therefore leads to a place inside, too;
//! - hard links name a regular file that the archive has brought before;
//! - devices, pipes and sockets are refused, set-user-ID bits are dropped, everything belongs to root;
//! - sizes are added up from the headers before a byte is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

/// The most bytes an archive may unpack to. Data belongs into an input mapping; this is for programs.
pub const MAX_UNPACKED: u64 = 16 << 30;
/// The most entries an archive may have.
pub const MAX_ENTRIES: u64 = 1_000_000;
/// The deepest directory of an archive.
const MAX_DEPTH: usize = 256;
/// Left free on the scratch disk for the task itself.
const RESERVE: u64 = 64 << 20;

/// Why a package is not used. Each message follows the package's own name.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// An entry would reach outside of the working directory.
    #[error("entry {entry:?} {problem}; pack it anew with names relative to the working directory")]
    Escape {
        /// The entry's name.
        entry: String,
        /// How it would.
        problem: String,
    },
    /// An entry is something a package has no use for.
    #[error("entry {entry:?} is a {what}, which a package may not hold")]
    Special {
        /// The entry's name.
        entry: String,
        /// What it is.
        what: &'static str,
    },
    /// It would unpack to more than is reasonable.
    #[error(
        "it unpacks to more than {limit} {what} (reached at entry {entry:?}); put data into an input mapping instead"
    )]
    Bomb {
        /// Where the limit was reached.
        entry: String,
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// The scratch disk is too small.
    #[error("it needs {needed} bytes, and the scratch disk has {free} free; give the node a larger data disk")]
    NoSpace {
        /// What it unpacks to.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// It is not what it looks like.
    #[error(
        "it begins like a gzip file but is not a gzipped tar archive ({0}); pack it with: tar czf worker.tar.gz FILES"
    )]
    Damaged(String),
    /// A program's name that cannot be a file's.
    #[error("{0:?} cannot be the name of a program")]
    BadName(String),
    /// The working directory could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Puts the package `file` into `directory`, which is fresh and ours. `base_name` is what it is called in storage: the
/// name a single program gets. Blocking.
///
/// # Errors
/// When the package is refused. Nothing has been written then, unless the error is [`PackageError::Write`].
pub fn install(file: &mut File, base_name: &str, directory: &Path) -> Result<(), PackageError> {
    let failed = |source| PackageError::Write { path: directory.to_owned(), source };
    let mut magic = [0; 2];
    let read = read_up_to(file, &mut magic).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    if read < 2 || magic != [0x1f, 0x8b] {
        return install_program(file, base_name, directory);
    }
    let contents = inspect(Archive::new(MultiGzDecoder::new(BufReader::new(&mut *file))))?;
    let free = nix::sys::statvfs::statvfs(directory).map_err(|errno| failed(errno.into()))?;
    let free = free.blocks_available() * free.fragment_size();
    if contents.bytes > free.saturating_sub(RESERVE) {
        return Err(PackageError::NoSpace { needed: contents.bytes, free });
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    unpack(Archive::new(MultiGzDecoder::new(BufReader::new(file))), directory)
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..])? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}

fn install_program(file: &mut File, base_name: &str, directory: &Path) -> Result<(), PackageError> {
    let plain = Path::new(base_name).components().collect::<Vec<_>>();
    if !matches!(plain[..], [Component::Normal(_)]) || base_name.len() > 255 || base_name.contains(['\0', '/']) {
        return Err(PackageError::BadName(base_name.to_owned()));
    }
    let path = directory.join(base_name);
    let mut copy = || -> io::Result<()> {
        let mut target = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path)?;
        io::copy(file, &mut target)?;
        target.set_permissions(fs::Permissions::from_mode(0o755))
    };
    copy().map_err(|source| PackageError::Write { path: path.clone(), source })
}

/// What the first pass has found.
struct Contents {
    bytes: u64,
}

/// An entry that has been found harmless.
enum Item {
    Directory,
    File,
    Symlink(PathBuf),
    HardLink(PathBuf),
    /// Metadata for the archive itself.
    Nothing,
}

/// What is known of the archive so far.
#[derive(Default)]
struct Inspector {
    symlinks: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
    entries: u64,
    bytes: u64,
}

fn damaged(error: io::Error) -> PackageError {
    PackageError::Damaged(error.to_string())
}

fn inspect<R: Read>(mut archive: Archive<R>) -> Result<Contents, PackageError> {
    let mut inspector = Inspector::default();
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        inspector.check(&entry)?;
        // Reading to its end proves that the entry is whole and the gzip data intact.
        let copied = io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
        if copied != entry.size() {
            return Err(PackageError::Damaged(format!("entry {:?} is cut off", shown(&entry))));
        }
    }
    // Past the end-of-archive mark there is padding at most; a gzip stream that is cut off shows itself here.
    let mut rest = archive.into_inner();
    io::copy(&mut Read::by_ref(&mut rest).take(MAX_UNPACKED), &mut io::sink()).map_err(damaged)?;
    if inspector.entries == 0 {
        return Err(PackageError::Damaged("it holds no entries".to_owned()));
    }
    Ok(Contents { bytes: inspector.bytes })
}

fn shown<R: Read>(entry: &Entry<'_, R>) -> String {
    String::from_utf8_lossy(&entry.path_bytes()).into_owned()
}

impl Inspector {
    /// The entry's place in the working directory and what to make there.
    fn check<R: Read>(&mut self, entry: &Entry<'_, R>) -> Result<(PathBuf, Item), PackageError> {
        let name = shown(entry);
        let escape = |problem: &str| PackageError::Escape { entry: name.clone(), problem: problem.to_owned() };
        let special = |what| PackageError::Special { entry: name.clone(), what };
        let bomb = |limit, what| PackageError::Bomb { entry: name.clone(), limit, what };

        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(bomb(MAX_ENTRIES, "entries"));
        }
        let kind = entry.header().entry_type();
        if matches!(
            kind,
            EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink
        ) {
            return Ok((PathBuf::new(), Item::Nothing));
        }
        let path = relative(&entry.path().map_err(damaged)?).map_err(&escape)?;
        if path.components().count() > MAX_DEPTH {
            return Err(bomb(MAX_DEPTH as u64, "levels of directories"));
        }
        if let Some(link) = path.ancestors().skip(1).find(|ancestor| self.symlinks.contains(*ancestor)) {
            return Err(escape(&format!("would be written through the symbolic link {:?}", link.display())));
        }
        let item = match kind {
            EntryType::Directory => Item::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                // The real length, which for a sparse file is more than what is stored.
                self.bytes = self.bytes.saturating_add(entry.size());
                if self.bytes > MAX_UNPACKED {
                    return Err(bomb(MAX_UNPACKED, "bytes"));
                }
                Item::File
            }
            EntryType::Symlink => {
                let target = target_of(entry)?;
                link_stays_inside(&path, &target).map_err(|problem| escape(&problem))?;
                Item::Symlink(target)
            }
            EntryType::Link => {
                let target = relative(&target_of(entry)?)
                    .map_err(|problem| escape(&format!("is a hard link that {problem}")))?;
                if !self.files.contains(&target) {
                    let problem =
                        format!("is a hard link to {:?}, which is no file of the archive before it", target.display());
                    return Err(escape(&problem));
                }
                Item::HardLink(target)
            }
            EntryType::Char | EntryType::Block => return Err(special("device")),
            EntryType::Fifo => return Err(special("named pipe")),
            _ => return Err(special("thing of an unknown kind")),
        };
        if path.as_os_str().is_empty() && !matches!(item, Item::Directory) {
            return Err(escape("has no name"));
        }
        self.symlinks.remove(&path);
        self.files.remove(&path);
        match item {
            Item::Symlink(_) => drop(self.symlinks.insert(path.clone())),
            Item::File | Item::HardLink(_) => drop(self.files.insert(path.clone())),
            Item::Directory | Item::Nothing => {}
        }
        Ok((path, item))
    }
}

fn target_of<R: Read>(entry: &Entry<'_, R>) -> Result<PathBuf, PackageError> {
    let target = entry.link_name().map_err(damaged)?;
    target
        .map(|target| target.into_owned())
        .ok_or_else(|| PackageError::Damaged(format!("link {:?} names no target", shown(entry))))
}

/// The path without `.` components, or what is wrong with it.
fn relative(path: &Path) -> Result<PathBuf, &'static str> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                if name.as_encoded_bytes().contains(&0) {
                    return Err("has a NUL byte in its name");
                }
                clean.push(name);
            }
            Component::CurDir => {}
            Component::ParentDir => return Err("leaves the working directory by .."),
            Component::RootDir | Component::Prefix(_) => return Err("has an absolute name"),
        }
    }
    Ok(clean)
}

fn link_stays_inside(link: &Path, target: &Path) -> Result<(), String> {
    let depth = link.components().count().saturating_sub(1);
    let mut up = 0;
    let mut named = false;
    for component in target.components() {
        match component {
            Component::ParentDir if named => {
                return Err(format!("is a link to {:?}, with .. in the middle", target.display()));
            }
            Component::ParentDir => up += 1,
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => {
                return Err(format!("is a link to the absolute path {:?}", target.display()));
            }
        }
    }
    if up > depth {
        return Err(format!("is a link that leaves the working directory: {:?}", target.display()));
    }
    Ok(())
}

fn unpack<R: Read>(mut archive: Archive<R>, directory: &Path) -> Result<(), PackageError> {
    let mut inspector = Inspector::default();
    let mut modes = BTreeMap::new();
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let (relative, item) = inspector.check(&entry)?;
        let mode = entry.header().mode().unwrap_or(0o755) & 0o777;
        let path = directory.join(&relative);
        let write = |entry: &mut Entry<'_, R>| -> io::Result<()> {
            if matches!(item, Item::Nothing) {
                return Ok(());
            }
            if let Some(parent) = path.parent() {
                make_directory(parent)?;
            }
            if !matches!(item, Item::Directory) {
                // A later entry of the same name replaces an earlier one, as tar itself does it.
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            match &item {
                Item::Directory => make_directory(&path),
                Item::Symlink(target) => symlink(target, &path),
                Item::HardLink(target) => fs::hard_link(directory.join(target), &path),
                Item::File => {
                    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                    io::copy(entry, &mut file)?;
                    file.set_permissions(fs::Permissions::from_mode(mode))
                }
                Item::Nothing => Ok(()),
            }
        };
        write(&mut entry).map_err(|source| PackageError::Write { path: path.clone(), source })?;
        if matches!(item, Item::Directory) && !relative.as_os_str().is_empty() {
            modes.insert(path, mode);
        }
    }
    // Last, and the deepest first: a directory without write permission must not be in the way of its own content.
    for (path, mode) in modes.into_iter().rev() {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(|source| PackageError::Write { path, source })?;
    }
    Ok(())
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    /// An entry as an attacker would write it: the name goes into the header unchecked.
    fn entry(builder: &mut tar::Builder<Vec<u8>>, name: &str, kind: EntryType, link: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o4755);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    fn gzip(content: &[u8]) -> File {
        let mut encoder = GzEncoder::new(tempfile::tempfile().unwrap(), Compression::fast());
        encoder.write_all(content).unwrap();
        let mut file = encoder.finish().unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    /// Name, kind, target of a link, content.
    type Parts<'a> = (&'a str, EntryType, &'a str, &'a [u8]);

    fn package(entries: &[Parts<'_>]) -> File {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, link, content) in entries {
            entry(&mut builder, name, *kind, link, content);
        }
        gzip(&builder.into_inner().unwrap())
    }

    fn install_into(mut file: File) -> (tempfile::TempDir, Result<(), PackageError>) {
        let directory = tempfile::tempdir().unwrap();
        let result = install(&mut file, "worker.tar.gz", directory.path());
        (directory, result)
    }

    const FILE: EntryType = EntryType::Regular;
    const LINK: EntryType = EntryType::Symlink;

    #[test]
    fn a_package_is_unpacked_without_its_set_user_id_bits() {
        let (directory, result) = install_into(package(&[
            ("./", EntryType::Directory, "", b""),
            ("bin/run", FILE, "", b"#!/bin/sh\n"),
            ("run", LINK, "bin/run", b""),
            ("lib/up", LINK, "../bin/run", b""),
            ("again", EntryType::Link, "bin/run", b""),
        ]));
        result.unwrap();
        let root = directory.path();
        assert_eq!(fs::read(root.join("lib/up")).unwrap(), b"#!/bin/sh\n");
        assert_eq!(fs::read(root.join("again")).unwrap(), b"#!/bin/sh\n");
        assert_eq!(fs::metadata(root.join("run")).unwrap().permissions().mode() & 0o7777, 0o755);
    }

    #[test]
    fn hostile_packages_are_refused_whole_and_by_name() {
        let cases: &[(&[Parts<'_>], &str)] = &[
            (&[("ok", FILE, "", b"x"), ("../evil", FILE, "", b"x")], "leaves the working directory by .."),
            (&[("ok", FILE, "", b"x"), ("/etc/evil", FILE, "", b"x")], "absolute name"),
            (&[("a/../../evil", FILE, "", b"x")], "leaves the working directory by .."),
            (&[("l", LINK, "/etc", b"")], "absolute path"),
            (&[("d/l", LINK, "../..", b"")], "leaves the working directory"),
            (&[("p/q/l", LINK, "../..", b""), ("m", LINK, "p/q/l/../x", b"")], ".. in the middle"),
            (&[("l", LINK, "d", b""), ("l/x", FILE, "", b"x")], "through the symbolic link"),
            (&[("h", EntryType::Link, "/etc/shadow", b"")], "absolute name"),
            (&[("h", EntryType::Link, "nowhere", b"")], "no file of the archive"),
            (&[("l", LINK, "d", b""), ("h", EntryType::Link, "l", b"")], "no file of the archive"),
            (&[("dev", EntryType::Block, "", b"")], "is a device"),
            (&[("pipe", EntryType::Fifo, "", b"")], "is a named pipe"),
        ];
        for (entries, expected) in cases {
            let (directory, result) = install_into(package(entries));
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{error} for {expected}");
            assert!(error.contains(entries.last().unwrap().0), "{error}");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{expected}");
        }
    }

    #[test]
    fn a_bomb_is_refused_by_what_its_headers_say() {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..4].copy_from_slice(b"zero");
        header.set_entry_type(FILE);
        header.set_size(MAX_UNPACKED + 1);
        header.set_cksum();
        let (_directory, result) = install_into(gzip(header.as_bytes()));
        assert!(matches!(result, Err(PackageError::Bomb { .. })), "{result:?}");
    }

    #[test]
    fn what_is_cut_off_or_not_a_tar_archive_is_refused() {
        let whole = package(&[("data", FILE, "", &vec![7; 100_000])]);
        let length = whole.metadata().unwrap().len();
        whole.set_len(length - 20).unwrap();
        let (directory, result) = install_into(whole);
        assert!(matches!(result, Err(PackageError::Damaged(_))), "{result:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let (_directory, result) = install_into(gzip(b"just some text that is longer than nothing"));
        assert!(matches!(result, Err(PackageError::Damaged(_))), "{result:?}");
        let (_directory, result) = install_into(gzip(b""));
        assert!(matches!(result, Err(PackageError::Damaged(_))), "{result:?}");
    }

    #[test]
    fn anything_else_is_a_program_under_its_own_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"#!/bin/bash\n").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        install(&mut file, "worker", directory.path()).unwrap();
        let path = directory.path().join("worker");
        assert_eq!(fs::read(&path).unwrap(), b"#!/bin/bash\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        for bad in ["", "..", "a/b", "."] {
            assert!(matches!(install(&mut file, bad, directory.path()), Err(PackageError::BadName(_))), "{bad:?}");
        }
    }
}
