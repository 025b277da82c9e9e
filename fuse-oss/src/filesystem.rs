//! The file system as the kernel asks for it.
//!
//! A FUSE thread never waits for the network: what is known or at hand is answered on the spot, for everything else the
//! reply object goes to a task and is answered there. Attributes and names are handed out with a life of a century,
//! including names that are missing, and pages and directory contents stay in the kernel's caches: the view is frozen (see
//! [`namespace`](crate::namespace)), so nothing handed out can become untrue.

pub mod handles;
mod inner;
pub mod ledger;

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime::Handle;
use tracing::{debug, warn};

use crate::allowance::Allowance;
use crate::blocks::{Blocks, SMALL, Watcher};
use crate::log_limit::LogLimit;
use crate::namespace::{Known, Namespace, ROOT};
use crate::options::MountOptions;
use crate::overlay::copy_up;
use crate::reader::Reader;
use handles::{Handles, STAYS_CACHED};
pub use inner::Inner;
use ledger::Ledger;

/// For ever, in a form the kernel can still add to its clock.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Requests the kernel may have under way in the background (read-ahead); its default of 16 starves parallel readers.
const MAX_BACKGROUND: u16 = 256;

/// An object up to this length that a process before this one has cached is checked when it is opened, in bytes, so that the
/// kernel may read it by itself at once; a longer one piece by piece, as it is read.
const PROVED_AT_OPEN: u64 = 8 << 20;

/// How long opening a file waits for the end of writing it to the cache.
const SETTLING: Duration = Duration::from_millis(100);

/// A mount, as far as the kernel sees it.
#[derive(Debug)]
pub struct Mounted {
    inner: Arc<Inner>,
    runtime: Handle,
}

impl Mounted {
    /// A file system that shows `namespace` and notes in `ledger` what is open.
    pub fn new(
        runtime: Handle,
        namespace: Namespace,
        blocks: Arc<Blocks>,
        options: MountOptions,
        ledger: Ledger,
    ) -> Self {
        Self::with(runtime, namespace, blocks, options, Handles::new(ledger))
    }

    /// The file system of a process that has ended, with its [recovered](Namespace::recover) namespace and the ledger of what was open.
    /// `device` is the mount's FUSE device.
    pub fn adopt(
        runtime: Handle,
        namespace: Namespace,
        blocks: Arc<Blocks>,
        options: MountOptions,
        ledger: Ledger,
        device: OwnedFd,
    ) -> Self {
        Self::with(runtime, namespace, blocks, options, Handles::adopt(ledger, device))
    }

    fn with(
        runtime: Handle,
        namespace: Namespace,
        blocks: Arc<Blocks>,
        options: MountOptions,
        handles: Handles,
    ) -> Self {
        let handles = Arc::new(handles);
        let watcher: Arc<dyn Watcher> = Arc::clone(&handles) as Arc<dyn Watcher>;
        blocks.watch(&watcher);
        let allowance = options.cache.limit.map(|limit| Mutex::new(Allowance::new(limit.bytes())));
        let (siblings, log_limit) = (Mutex::default(), LogLimit::default());
        let inner = Arc::new(Inner { namespace, blocks, options, handles, allowance, siblings, log_limit });
        Self { inner, runtime }
    }

    /// For `status`, after the file system itself has gone to its session.
    pub fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.inner)
    }
}

/// Which name a directory offset stands for.
fn place(offset: u64) -> usize {
    usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX)
}

impl Filesystem for Mounted {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        // Depth 1: the mount may itself be the lower layer of an overlay, and no cache file lies on another stacked file system.
        let passthrough =
            config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() && config.set_max_stack_depth(1).is_ok();
        self.inner.handles.negotiated(passthrough);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(parent) = self.inner.namespace.node(parent.0) else { return reply.error(Errno::ESTALE) };
        if !parent.directory {
            return reply.error(Errno::ENOTDIR);
        }
        if name.len() > crate::namespace::listing::MAX_NAME {
            return reply.error(Errno::ENAMETOOLONG);
        }
        // What is no key's name in this character set cannot be there.
        let charset = self.inner.namespace.charset(parent.ino);
        let Some(name) = charset.to_key(name.as_bytes()) else { return missing(&self.inner, reply) };
        match self.inner.namespace.known(parent.ino, &name) {
            Known::Node(node) => reply.entry(&FOREVER, &self.inner.attributes(&node), Generation(0)),
            Known::Missing => missing(&self.inner, reply),
            Known::Unknown => {
                let (inner, name) = (Arc::clone(&self.inner), name.into_owned());
                self.runtime.spawn(async move {
                    match inner.namespace.lookup(parent.ino, &name).await {
                        Ok(Some(node)) => reply.entry(&FOREVER, &inner.attributes(&node), Generation(0)),
                        Ok(None) => missing(&inner, reply),
                        Err(fault) => {
                            inner.report(&name, &fault, "cannot be looked up");
                            reply.error(Errno::from_i32(fault.errno_at_open()));
                        }
                    }
                });
            }
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.inner.namespace.node(ino.0) {
            Some(node) => reply.attr(&FOREVER, &self.inner.attributes(&node)),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let request = req.unique();
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let Some(node) = self.inner.namespace.node(ino.0) else { return reply.error(Errno::ESTALE) };
        let Some(file) = self.inner.namespace.file(node.ino) else { return reply.error(Errno::EISDIR) };
        let object = self.inner.object(&file);
        object.touch();
        if copy_up::begins(object.size, flags.0, req.pid()) {
            self.inner.announce_copy(&object, req.pid());
        }
        // The first open of an object that is not all here reads its beginning, which is wanted next anyway, so that a missing
        // right or a deleted object is said by open and not by some later read.
        let complete = object.is_complete();
        let prove = complete && (STAYS_CACHED + 1..=PROVED_AT_OPEN).contains(&object.size) && !object.is_proved();
        let waits = !complete && !self.inner.blocks.has_begun(&object);
        if object.size <= SMALL {
            let _entered = self.runtime.enter();
            self.inner.fetch_siblings(&node, waits);
        }
        let settling = !complete
            && file.proved
            && object.size > STAYS_CACHED
            && self.inner.handles.may_pass_through(ino)
            && self.inner.blocks.is_being_kept(&object);
        if settling {
            // It was read a moment ago. When all of it is on the disk, the kernel can read it by itself, which is worth waiting for.
            let inner = Arc::clone(&self.inner);
            self.runtime.spawn(async move {
                inner.blocks.until_kept(&object, SETTLING).await;
                inner.opened(&file, object, request, reply);
            });
            return;
        }
        if (complete || file.proved) && !prove {
            return self.inner.opened(&file, object, request, reply);
        }
        if file.archived && !complete {
            if let Some(left_out) = self.inner.log_limit.allow(Instant::now()) {
                warn!(
                    object = object.name(),
                    left_out,
                    "the object is in an archive tier: restore it first (ossutil restore, aws s3api restore-object), which can take hours"
                );
            }
            return reply.error(Errno::EIO);
        }
        let inner = Arc::clone(&self.inner);
        self.runtime.spawn(async move {
            match inner.prepare(&object).await {
                Ok(()) => {
                    inner.namespace.prove(file.ino);
                    inner.opened(&file, object, request, reply);
                }
                Err(fault) => {
                    debug!(object = object.name(), %fault, "cannot be opened");
                    reply.error(Errno::from_i32(fault.errno_at_open()));
                }
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(reader) = self.inner.reader(ino, fh) else { return reply.error(Errno::EBADF) };
        let range = reader.clamp(offset, size);
        if range.is_empty() {
            return reply.data(&[]);
        }
        let mut reply = Some(reply);
        let answer = |bytes: &[u8]| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        };
        if reader.read_now(&range, answer).is_some() {
            // The runtime is entered because reading ahead begins tasks there.
            let _entered = self.runtime.enter();
            return reader.went_on(&range);
        }
        let Some(reply) = reply else { return };
        if reader.object().has_on_disk(&range) {
            let runtime = self.runtime.clone();
            self.runtime.spawn_blocking(move || {
                let mut reply = Some(reply);
                let answer = |bytes: &[u8]| {
                    if let Some(reply) = reply.take() {
                        reply.data(bytes);
                    }
                };
                reader.read_disk(&range, answer);
                if let Some(reply) = reply {
                    // It was damaged, or evicted just now.
                    runtime.spawn(read(reader, range, reply));
                }
            });
            return;
        }
        self.runtime.spawn(read(reader, range, reply));
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _entered = self.runtime.enter();
        self.inner.handles.release(ino, fh, &self.inner.blocks);
        reply.ok();
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Answered once, never asked again.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(node) = self.inner.namespace.node(ino.0) else { return reply.error(Errno::ESTALE) };
        let inner = Arc::clone(&self.inner);
        if inner.can_fill(&node, offset) {
            inner.fill(&node, offset, |attr, next, name| reply.add(attr.ino, next, attr.kind, name));
            return reply.ok();
        }
        self.runtime.spawn(async move {
            match inner.list_to(&node, offset).await {
                Ok(()) => {
                    inner.fill(&node, offset, |attr, next, name| reply.add(attr.ino, next, attr.kind, name));
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let Some(node) = self.inner.namespace.node(ino.0) else { return reply.error(Errno::ESTALE) };
        let inner = Arc::clone(&self.inner);
        if inner.can_fill(&node, offset) {
            inner
                .fill(&node, offset, |attr, next, name| reply.add(attr.ino, next, name, &FOREVER, attr, Generation(0)));
            return reply.ok();
        }
        self.runtime.spawn(async move {
            match inner.list_to(&node, offset).await {
                Ok(()) => {
                    inner.fill(&node, offset, |attr, next, name| {
                        reply.add(attr.ino, next, name, &FOREVER, attr, Generation(0))
                    });
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // A store has no size. "Plenty, all of it used" keeps programs that look at free space from trying to write,
        // and 1 PiB is small enough for 32-bit arithmetic on blocks of 1 MiB.
        let names = self.inner.namespace.len();
        reply.statfs(1 << 30, 0, 0, names, 0, 1 << 20, 255, 1 << 20);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks modes by itself (default_permissions).
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        // Answered once, never asked again: without this every read of a program costs a request for capabilities.
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

/// Answers a read with bytes from wherever they are.
async fn read(reader: Arc<Reader>, range: Range<u64>, reply: ReplyData) {
    match reader.read(range).await {
        Ok(parts) => parts.whole(|bytes| reply.data(bytes)),
        Err(fault) => reply.error(Errno::from_i32(fault.errno_at_read())),
    }
}

/// Answers that a name is missing, and will be: an entry with inode number 0 is one the kernel may remember.
fn missing(inner: &Inner, reply: ReplyEntry) {
    let root = inner.namespace.node(ROOT);
    match root {
        Some(root) => {
            let attributes = FileAttr { ino: INodeNo(0), ..inner.attributes(&root) };
            reply.entry(&FOREVER, &attributes, Generation(0));
        }
        None => reply.error(Errno::ENOENT),
    }
}
