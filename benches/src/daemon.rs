//! The ceiling of the daemon path: a FUSE file system that does nothing but answer reads from memory.
//!
//! No mount whose program answers reads can be faster than this one, however it gets its bytes: what is left is the kernel's
//! part, the wake-ups and one copy. It is set up as a good mount is: answers of 1 MiB, read-ahead of 1 MiB, two threads, pages kept
//! by the kernel; without `clone_fd`, which would make it impossible to take over the connection of a program that died. It runs
//! in a process of its own, as the program of a mount does.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, Session,
};

use crate::content::{Object, World};

/// The only file.
pub const FILE: &str = "object";

const FILE_NODE: INodeNo = INodeNo(2);
const FOREVER: Duration = Duration::from_secs(1 << 30);
const THREADS: usize = 2;
/// Requests that the kernel may have under way by itself, which read-ahead is made of; 16 if nothing is said.
const BACKGROUND: u16 = 64;

#[derive(Debug)]
struct FromMemory {
    world: World,
    object: Object,
}

impl FromMemory {
    fn attributes(&self, node: INodeNo) -> Option<FileAttr> {
        let (kind, size, perm, nlink) = match node {
            INodeNo::ROOT => (FileType::Directory, 0, 0o555, 2),
            FILE_NODE => (FileType::RegularFile, self.object.size, 0o444, 1),
            _ => return None,
        };
        Some(FileAttr {
            ino: node,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for FromMemory {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The kernel's own figures do, where it does not take these.
        let _ = config.set_max_background(BACKGROUND);
        let _ = config.set_congestion_threshold(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE_NODE).filter(|_| parent == INodeNo::ROOT && name == FILE) {
            Some(attributes) => reply.entry(&FOREVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(node) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let wanted = u64::from(size).min(self.object.size.saturating_sub(offset));
        let piece = self.world.bytes(self.object, offset, wanted);
        let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        if length == wanted {
            return reply.data(piece);
        }
        // Where the repeating buffer begins again.
        let mut whole = piece.to_vec();
        whole.extend_from_slice(self.world.bytes(self.object, offset + length, wanted - length));
        reply.data(&whole);
    }
}

/// Mounts on `target` and answers until it is unmounted.
///
/// # Errors
/// When it cannot be mounted.
pub fn serve(target: &Path, object: Object) -> anyhow::Result<()> {
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("bench".to_owned())];
    config.n_threads = Some(THREADS);
    let session = Session::new(FromMemory { world: World::new(), object }, target, &config);
    let session = session.with_context(|| format!("cannot mount on {}", target.display()))?;
    session.run().context("the FUSE session broke")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_one_file() {
        let memory = FromMemory { world: World::new(), object: Object::from_parts(5000, 1) };
        assert_eq!(memory.attributes(FILE_NODE).map(|file| (file.size, file.blocks)), Some((5000, 10)));
        assert_eq!(memory.attributes(INodeNo::ROOT).map(|root| root.kind), Some(FileType::Directory));
        assert!(memory.attributes(INodeNo(3)).is_none());
    }
}
