//! Removing a tree that somebody else has filled, maybe with ill intent.
//!
//! - No link is followed and no path is looked up twice: every step goes from an open directory to a name inside of it.
//! - Trees may be deeper than a process may have files open and longer than a path can be: a directory that is found very deep is
//!   first moved up to the top and emptied from there.
//! - Modes do not matter (the kernel leaves directories of mode 000 in the work directory of an overlay): where we are refused, the
//!   mode is set first.
//! - Nothing that is mounted inside is entered: it has another device, and keeps its mount point from going.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// How many directories are open at the same time.
const MAX_DEPTH: usize = 64;

/// How many names of a directory are held in memory.
const BATCH: usize = 10_000;

/// How many names may be taken before a directory is not moved after all.
const MAX_TAKEN: usize = 1000;

/// Removes `name` from the directory `parent` with everything in it; it may be gone already.
///
/// # Errors
/// The first one met; as much as possible is removed all the same.
pub fn remove_tree(parent: impl AsFd, name: &Path) -> io::Result<()> {
    let parent = parent.as_fd();
    let top = match open(parent, name) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let device = fstat(&top)?.st_dev;
    let mut removal = Removal { moved: 0, failed: None, device };
    // What is moved up is new at the top: again, until nothing was.
    loop {
        let before = removal.moved;
        removal.failed = None;
        removal.empty(&top, &top, 0);
        if removal.moved == before {
            break;
        }
    }
    if let Some(errno) = removal.failed {
        return Err(errno.into());
    }
    drop(top);
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn open<P: ?Sized + nix::NixPath>(parent: impl AsFd, name: &P) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::EACCES) => {
            // Follows no link: links have no mode, and fchmodat refuses.
            let owner = Mode::S_IRWXU;
            let is_directory =
                fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
            if !is_directory {
                return Err(Errno::EACCES);
            }
            fchmodat(&parent, name, owner, FchmodatFlags::FollowSymlink)?;
            openat(&parent, name, flags, Mode::empty())
        }
        other => other,
    }
}

struct Removal {
    /// How many directories were moved to the top, which also numbers them.
    moved: u64,
    failed: Option<Errno>,
    device: libc::dev_t,
}

impl Removal {
    /// Empties a directory that is `depth` levels below the top.
    fn empty(&mut self, top: &OwnedFd, directory: &OwnedFd, depth: usize) {
        loop {
            let (names, more) = self.names(directory);
            let mut gone = 0_usize;
            for (name, kind) in names {
                match self.entry(top, directory, &name, kind, depth) {
                    Ok(()) | Err(Errno::ENOENT) => gone += 1,
                    Err(errno) => self.failed = self.failed.or(Some(errno)),
                }
            }
            if !more || gone == 0 {
                return;
            }
        }
    }

    fn entry(
        &mut self,
        top: &OwnedFd,
        directory: &OwnedFd,
        name: &CStr,
        kind: Option<Type>,
        depth: usize,
    ) -> nix::Result<()> {
        let unlink = || unlinkat(directory, name, UnlinkatFlags::NoRemoveDir);
        match kind {
            Some(Type::Directory) => self.directory(top, directory, name, depth),
            Some(_) => unlink(),
            None => match unlink() {
                Err(Errno::EISDIR | Errno::EPERM) => self.directory(top, directory, name, depth),
                other => other,
            },
        }
    }

    /// Removes one directory of `parent`.
    fn directory(&mut self, top: &OwnedFd, parent: &OwnedFd, name: &CStr, depth: usize) -> nix::Result<()> {
        if depth >= MAX_DEPTH {
            return self.move_up(top, parent, name);
        }
        let opened = open(parent, name)?;
        if fstat(&opened)?.st_dev != self.device {
            return Err(Errno::EXDEV);
        }
        self.empty(top, &opened, depth + 1);
        drop(opened);
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            // Something in it could not be removed, which has been noted.
            Err(Errno::ENOTEMPTY) if self.failed.is_some() => Ok(()),
            other => other,
        }
    }

    /// Moves a directory to the top, where it is met again.
    fn move_up(&mut self, top: &OwnedFd, parent: &OwnedFd, name: &CStr) -> nix::Result<()> {
        for _ in 0..MAX_TAKEN {
            self.moved += 1;
            let place = format!(".to-be-removed-{}-{}", std::process::id(), self.moved);
            match renameat(parent, name, top, place.as_str()) {
                // Whoever filled the tree has thought of that name as well.
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                other => return other,
            }
        }
        Err(Errno::EEXIST)
    }

    /// Some names of a directory, and whether there are more.
    fn names(&mut self, directory: &OwnedFd) -> (Vec<(CString, Option<Type>)>, bool) {
        // A descriptor of its own: reading moves the position.
        let read = openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .and_then(Dir::from_fd);
        let mut read = match read {
            Ok(read) => read,
            Err(errno) => {
                self.failed = self.failed.or(Some(errno));
                return (Vec::new(), false);
            }
        };
        let mut names = Vec::new();
        for entry in read.iter() {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(_) if names.len() == BATCH => return (names, true),
                Ok(entry) => names.push((entry.file_name().to_owned(), entry.file_type())),
                Err(errno) => {
                    self.failed = self.failed.or(Some(errno));
                    break;
                }
            }
        }
        (names, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn remove(dir: &Path, name: &str) -> io::Result<()> {
        remove_tree(fs::File::open(dir).unwrap(), Path::new(name))
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("kept")).unwrap();
        fs::write(outside.join("file"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("sub/deeper")).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        symlink(outside.join("file"), tree.join("sub/link")).unwrap();
        symlink("missing", tree.join("dangling")).unwrap();
        fs::hard_link(outside.join("file"), tree.join("hard")).unwrap();
        fs::write(tree.join("sub/deeper/odd\nname"), "x").unwrap();
        fs::set_permissions(tree.join("sub/deeper"), fs::Permissions::from_mode(0o000)).unwrap();
        remove(dir.path(), "tree").unwrap();
        assert!(!tree.exists() && outside.join("kept").is_dir());
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "x");
        remove(dir.path(), "tree").unwrap();
        // A link in place of the tree itself is not followed either.
        symlink(&outside, &tree).unwrap();
        assert!(remove(dir.path(), "tree").is_err());
        assert!(outside.join("kept").is_dir());
    }

    #[test]
    fn more_names_than_are_held_in_memory_go() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree/sub")).unwrap();
        for number in 0..BATCH + 5 {
            fs::write(dir.path().join("tree/sub").join(number.to_string()), "").unwrap();
        }
        remove(dir.path(), "tree").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_tree_deeper_than_files_can_be_open_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = open(nix::fcntl::AT_FDCWD, dir.path()).unwrap();
        // Longer than a path can be, too; and names like those that are given to what is moved.
        for depth in 0..3000 {
            let name =
                if depth % 70 == 0 { format!(".to-be-removed-{}-1", std::process::id()) } else { "d".repeat(20) };
            nix::sys::stat::mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
            at = open(&at, name.as_str()).unwrap();
        }
        drop(at);
        fs::create_dir(dir.path().join("tree")).unwrap();
        let first = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).find(|n| n != "tree").unwrap();
        fs::rename(dir.path().join(&first), dir.path().join("tree").join(&first)).unwrap();
        remove(dir.path(), "tree").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
