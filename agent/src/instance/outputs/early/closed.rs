//! Which files of a file system were closed by a writer or got a new name: fanotify, through a small wrapper.
//!
//! The mark is on the whole file system, because a task's own mounts of it are others than ours. So events are for files of everybody;
//! the kernel names the directory by a handle, and whether that is one of ours is told from its path. An event is a hint and nothing
//! else: what a file is, is seen when it is opened. Some can be missed (the queue is bounded, and a file that a process never closed had
//! no event), which is what looking again is for.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is read at once: a few hundred events.
const BUFFER: usize = 32 << 10;

/// How many events are taken at a time: everybody's files on the disk can be closed faster than we want to look at them. Should the kernel's
/// queue run over, it says so.
const MOST: usize = 2000;

/// What the kernel tells of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// This file may be new.
    File(PathBuf),
    /// A directory got a new name, or events were lost: everything has to be looked at.
    Anything,
}

/// Closings of files on one file system.
#[derive(Debug)]
pub(super) struct Closings {
    group: OwnedFd,
    /// A directory on the file system, for opening others by their handles.
    mount: OwnedFd,
}

impl Closings {
    /// Of the file system that holds the directory `path`, which nobody else can rename.
    pub(super) fn watch(path: &Path) -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_REPORT_DFID_NAME;
        // SAFETY: plain numbers; the result is checked.
        let group = owned(unsafe { libc::fanotify_init(flags, libc::O_RDONLY as libc::c_uint) })?;
        let mask = libc::FAN_CLOSE_WRITE | libc::FAN_MOVED_TO | libc::FAN_ONDIR;
        let name = CString::new(path.as_os_str().as_bytes())?;
        let how = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        // SAFETY: the name is a string that ends in a zero and lives until the call returns.
        let failed = unsafe { libc::fanotify_mark(group.as_raw_fd(), how, mask, libc::AT_FDCWD, name.as_ptr()) };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        let mount = std::fs::File::open(path)?.into();
        let closings = Self { group, mount };
        // It is no use to be told what cannot be opened: that needs a right of its own.
        closings.probe(path)?;
        Ok(closings)
    }

    /// Makes sure that directories can be opened by their handles.
    fn probe(&self, path: &Path) -> io::Result<()> {
        let mut handle =
            Handle { head: libc::file_handle { handle_bytes: 128, handle_type: 0, f_handle: [] }, bytes: [0; 128] };
        let name = CString::new(path.as_os_str().as_bytes())?;
        let mut mount_id = 0;
        // SAFETY: the handle has as much room as it says, and the other two places are there.
        let failed = unsafe {
            libc::name_to_handle_at(libc::AT_FDCWD, name.as_ptr(), (&raw mut handle).cast(), &mut mount_id, 0)
        };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        self.open(&mut handle).map(drop)
    }

    fn open(&self, handle: &mut Handle) -> io::Result<OwnedFd> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the handle is a whole one, of as many bytes as it says, and lives until the call returns.
        owned(unsafe { libc::open_by_handle_at(self.mount.as_raw_fd(), (handle as *mut Handle).cast(), flags) })
    }

    /// What has happened since the last time, as far as it concerns files of `least` bytes or more; at most [`MOST`] events or so, the
    /// others later. Does not wait.
    pub(super) fn take(&self, least: u64) -> io::Result<Vec<Event>> {
        let (mut events, mut seen) = (Vec::new(), 0);
        let mut buffer = vec![0_u8; BUFFER];
        while seen < MOST {
            let count = match nix::unistd::read(&self.group, &mut buffer) {
                Ok(0) | Err(nix::errno::Errno::EAGAIN) => return Ok(events),
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            for told in parse(&buffer[..count]) {
                seen += 1;
                match told {
                    Told::Lost | Told::Directory => events.push(Event::Anything),
                    Told::File { handle_type, handle, name } => {
                        if let Some(path) = self.resolve(handle_type, handle, name, least) {
                            events.push(Event::File(path));
                        }
                    }
                }
            }
        }
        Ok(events)
    }

    /// The path of a file, if it is large enough.
    fn resolve(&self, handle_type: i32, bytes: &[u8], name: &OsStr, least: u64) -> Option<PathBuf> {
        let head = libc::file_handle { handle_bytes: u32::try_from(bytes.len()).ok()?, handle_type, f_handle: [] };
        let mut handle = Handle { head, bytes: [0; 128] };
        handle.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let directory = self.open(&mut handle).ok()?;
        let stat = nix::sys::stat::fstatat(&directory, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG || u64::try_from(stat.st_size).ok()? < least {
            return None;
        }
        Some(std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()?.join(name))
    }
}

/// A handle of a file with its bytes behind it, as the kernel has it.
#[repr(C)]
struct Handle {
    head: libc::file_handle,
    bytes: [u8; 128],
}

fn owned(number: libc::c_int) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
enum Told<'a> {
    /// The queue ran over.
    Lost,
    /// A directory got a new name.
    Directory,
    File {
        handle_type: i32,
        handle: &'a [u8],
        name: &'a OsStr,
    },
}

/// Length of the fixed part of an event, in bytes.
const EVENT: usize = size_of::<libc::fanotify_event_metadata>();

/// Reads events as `fanotify(7)` lays them out. What is not as expected is passed over: the kernel's next version may say more. Pure.
fn parse(mut bytes: &[u8]) -> Vec<Told<'_>> {
    let mut all = Vec::new();
    let word =
        |bytes: &[u8], at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_ne_bytes);
    while let Some(length) = word(bytes, 0).and_then(|length| usize::try_from(length).ok()) {
        let Some((event, rest)) = bytes.split_at_checked(length).filter(|_| length >= EVENT) else { break };
        bytes = rest;
        let Some(mask) = event.get(8..16).and_then(|mask| mask.try_into().ok()).map(u64::from_ne_bytes) else { break };
        if mask & libc::FAN_Q_OVERFLOW != 0 {
            all.push(Told::Lost);
            continue;
        }
        if mask & libc::FAN_ONDIR != 0 {
            all.push(Told::Directory);
            continue;
        }
        let mut records = &event[EVENT..];
        // Type, padding, length; then the file system's id, the handle's length and type, the handle, and the name with a zero.
        while let [kind, _, low, high, ..] = records {
            let length = usize::from(u16::from_ne_bytes([*low, *high]));
            let Some((record, rest)) = records.split_at_checked(length).filter(|_| length >= 4) else { break };
            if *kind == libc::FAN_EVENT_INFO_TYPE_DFID_NAME {
                all.extend(name_of(record));
            }
            records = rest;
        }
    }
    all
}

/// A record of a name in a directory.
fn name_of(record: &[u8]) -> Option<Told<'_>> {
    let number = |at: usize| record.get(at..at + 4)?.try_into().ok();
    let size = usize::try_from(u32::from_ne_bytes(number(12)?)).ok()?;
    let handle_type = i32::from_ne_bytes(number(16)?);
    let handle = record.get(20..20_usize.checked_add(size)?)?;
    let name = record[20 + size..].split(|byte| *byte == 0).next()?;
    let is_plain = !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/');
    is_plain.then(|| Told::File { handle_type, handle, name: OsStr::from_bytes(name) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(mask: u64, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut record = vec![libc::FAN_EVENT_INFO_TYPE_DFID_NAME, 0, 0, 0];
        record.extend([7; 8]);
        record.extend(u32::try_from(handle.len()).unwrap().to_ne_bytes());
        record.extend(5_i32.to_ne_bytes());
        record.extend(handle);
        record.extend(name);
        record.extend([0; 3]);
        let length = u16::try_from(record.len()).unwrap().to_ne_bytes();
        record[2..4].copy_from_slice(&length);
        let mut event = u32::try_from(EVENT + record.len()).unwrap().to_ne_bytes().to_vec();
        event.extend([3, 0, 24, 0]);
        event.extend(mask.to_ne_bytes());
        event.extend([0; 8]);
        event.extend(record);
        event
    }

    #[test]
    fn events_are_read_one_after_the_other() {
        let mut bytes = event(libc::FAN_CLOSE_WRITE, b"handle", b"name");
        bytes.extend(event(libc::FAN_MOVED_TO | libc::FAN_ONDIR, b"h", b"d"));
        bytes.extend(event(libc::FAN_Q_OVERFLOW, b"", b""));
        bytes.extend(event(libc::FAN_CLOSE_WRITE, b"h", b".."));
        bytes.extend(event(libc::FAN_MOVED_TO, b"", b"\xff"));
        let file = |handle, name| Told::File { handle_type: 5, handle, name: OsStr::from_bytes(name) };
        assert_eq!(parse(&bytes), [file(b"handle", b"name"), Told::Directory, Told::Lost, file(b"", b"\xff")]);
    }

    proptest! {
        #[test]
        fn anything_at_all_is_read_without_harm(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..90, with in any::<u8>()
        ) {
            parse(&bytes);
            let mut bytes = event(libc::FAN_CLOSE_WRITE, b"handle", b"name");
            let at = at % bytes.len();
            bytes[at] = with;
            parse(&bytes);
        }
    }

    /// Needs root, as the agent does.
    #[test]
    fn what_is_closed_or_renamed_is_told_with_its_path() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not root: fanotify is not tried");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let closings = Closings::watch(&root).unwrap();
        std::fs::create_dir(root.join("a")).unwrap();
        std::fs::write(root.join("a/large"), [1; 100]).unwrap();
        std::fs::write(root.join("a/small"), [1; 10]).unwrap();
        std::fs::write(root.join("b"), [1; 100]).unwrap();
        std::fs::rename(root.join("b"), root.join("c")).unwrap();
        // Others are at work on this disk as well.
        let ours = |events: Vec<Event>| -> Vec<PathBuf> {
            let paths = events.into_iter().filter_map(|event| match event {
                Event::File(path) => Some(path),
                Event::Anything => None,
            });
            paths.filter(|path| path.starts_with(&root)).collect()
        };
        let found = ours(closings.take(50).unwrap());
        assert!(found.contains(&root.join("a/large")) && found.contains(&root.join("c")), "{found:?}");
        assert!(!found.contains(&root.join("a/small")), "{found:?}");
        std::fs::rename(root.join("a"), root.join("d")).unwrap();
        assert!(closings.take(50).unwrap().contains(&Event::Anything));
    }
}
