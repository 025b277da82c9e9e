//! What of a mount outlives a request, and all that answering takes beside the kernel's own words.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, ReplyOpen, RequestId};
use tracing::{info, warn};

use super::handles::Handles;
use super::place;
use crate::allowance::{Admission, Allowance};
use crate::blocks::object::Object;
use crate::blocks::{Blocks, SMALL};
use crate::fault::Fault;
use crate::log_limit::LogLimit;
use crate::namespace::{File, Namespace, Node};
use crate::options::MountOptions;
use crate::reader::Reader;
use crate::siblings::Siblings;
use crate::size::ByteSize;

/// What the first open of a large object reads of it, in bytes.
const FIRST_LOOK: u64 = 256 << 10;

/// What outlives a request.
#[derive(Debug)]
pub struct Inner {
    pub(super) namespace: Namespace,
    pub(super) blocks: Arc<Blocks>,
    pub(super) options: MountOptions,
    pub(super) handles: Arc<Handles>,
    /// What the mount may keep on the disk, where that is limited.
    pub(super) allowance: Option<Mutex<Allowance>>,
    pub(super) siblings: Mutex<Siblings>,
    pub(super) log_limit: LogLimit,
}

impl Inner {
    /// The names.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The open files.
    pub fn handles(&self) -> &Handles {
        &self.handles
    }

    pub(super) fn attributes(&self, node: &Node) -> FileAttr {
        let (kind, mode) = if node.directory {
            (FileType::Directory, self.options.dir_mode)
        } else {
            (FileType::RegularFile, self.options.file_mode)
        };
        let size = node.size;
        // Times before 1970 are as good as none; fuser's conversion of them is not exact.
        let time = node.modified.filter(|time| *time >= UNIX_EPOCH).unwrap_or(self.namespace.identity.created);
        FileAttr {
            ino: INodeNo(node.ino),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: u16::try_from(mode & 0o7777).unwrap_or(0o555),
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.namespace.identity.uid,
            gid: self.namespace.identity.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    pub(super) fn object(&self, file: &File) -> Arc<Object> {
        let origin = Arc::clone(&file.origin);
        let (key, etag) = (file.key.clone(), file.etag.clone());
        let object = Object::new(origin, key, file.size, etag, file.modified, self.namespace.identity.salt);
        self.blocks.open(if self.may_keep(file) { object } else { object.passing() })
    }

    /// Whether the disk cache may keep a file that is about to be read. Takes others off it where they have to make room.
    pub(super) fn may_keep(&self, file: &File) -> bool {
        let Some(allowance) = &self.allowance else { return true };
        let admission = {
            let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
            allowance.admit(file.ino, file.size, |ino| self.handles.is_open(INodeNo(ino)))
        };
        let Admission::Admitted(out) = admission else { return false };
        for file in out.into_iter().filter_map(|ino| self.namespace.file(ino)) {
            self.handles.give_up(INodeNo(file.ino));
            let (key, etag) = (file.key.clone(), file.etag.clone());
            let object = Object::new(
                Arc::clone(&file.origin),
                key,
                file.size,
                etag,
                file.modified,
                self.namespace.identity.salt,
            );
            self.blocks.forget(&self.blocks.open(object));
        }
        true
    }

    pub(super) fn opened(&self, file: &File, object: Arc<Object>, request: RequestId, reply: ReplyOpen) {
        // Opening without KEEP_CACHE drops the kernel's pages: needed once after the content turned out to be wrong.
        let times_wrong = self.blocks.times_wrong(object.id);
        let keep_pages = self.namespace.swap_times_wrong(file.ino, times_wrong) == times_wrong;
        let reader = self.reader_of(object);
        self.handles.open(INodeNo(file.ino), reader, keep_pages, &self.blocks, request, reply);
    }

    pub(super) fn reader_of(&self, object: Arc<Object>) -> Reader {
        let least = self.options.cache.fetch.map_or(0, ByteSize::bytes);
        Reader::new(object, Arc::clone(&self.blocks)).at_least(least)
    }

    /// The reader of an open file.
    pub(super) fn reader(&self, ino: INodeNo, handle: FileHandle) -> Option<Arc<Reader>> {
        self.handles.reader(handle).or_else(|| {
            // A process before this one opened it.
            let make = || {
                let file = self.namespace.file(ino.0)?;
                Some(self.reader_of(self.object(&file)))
            };
            self.handles.adopt_reader(ino, handle, make)
        })
    }

    /// Notes that a small file is opened, and fetches those that will be wanted next. `waits` says that it is not at hand itself.
    pub(super) fn fetch_siblings(&self, node: &Node, waits: bool) {
        let Some(position) = self.namespace.position(node.ino) else { return };
        let wanted = {
            let mut siblings = self.siblings.lock().unwrap_or_else(PoisonError::into_inner);
            siblings.on_open(node.parent, position, waits)
        };
        if wanted.is_empty() {
            return;
        }
        // Files only: directories in between make the positions a little less exact, which does not matter.
        let skip = wanted.start.saturating_sub(position + 1);
        for next in self.namespace.siblings_after(node.ino, skip + wanted.len()).into_iter().skip(skip) {
            if next.size == 0 || next.size > SMALL {
                continue;
            }
            if let Some(file) = self.namespace.file(next.ino).filter(|file| !file.archived) {
                let object = self.object(&file);
                self.blocks.ahead(&object, &(0..object.size), SMALL);
            }
        }
    }

    /// Brings the whole of a file into the disk cache.
    ///
    /// # Errors
    /// When the store's retries are exhausted.
    pub async fn warm(&self, file: &File) -> Result<(), Fault> {
        self.blocks.warm(&self.object(file)).await
    }

    /// How many bytes the disk cache may hold of this mount; 0 when there is none.
    pub fn cache_limit(&self) -> u64 {
        let all = self.blocks.cache().map_or(0, |cache| cache.limit());
        let own = self.options.cache.limit.map_or(u64::MAX, ByteSize::bytes);
        all.min(own)
    }

    /// Brings an object as far as open may promise that it can be read.
    ///
    /// # Errors
    /// When the store refuses.
    pub(super) async fn prepare(&self, object: &Arc<Object>) -> Result<(), Fault> {
        if object.is_complete() {
            let (blocks, object) = (Arc::clone(&self.blocks), Arc::clone(object));
            let proved = tokio::task::spawn_blocking(move || blocks.prove(&object)).await;
            if proved.unwrap_or(false) {
                return Ok(());
            }
        }
        let first = object.size.min(if object.size <= SMALL { SMALL } else { FIRST_LOOK });
        self.blocks.get(object, 0..1, &(0..first)).await.map(drop)
    }

    /// Answers a directory request from names that are known.
    pub(super) fn fill(&self, node: &Node, offset: u64, mut add: impl FnMut(&FileAttr, u64, &OsStr) -> bool) {
        let mut offset = offset;
        // Offsets 0 and 1 are "." and "..", then the names in the order they were met.
        while offset < 2 {
            let (name, ino) = if offset == 0 { (".", node.ino) } else { ("..", node.parent) };
            let Some(node) = self.namespace.node(ino) else { return };
            offset += 1;
            if add(&self.attributes(&node), offset, OsStr::new(name)) {
                return;
            }
        }
        let charset = self.namespace.charset(node.ino);
        self.namespace.entries(node.ino, place(offset), |node, name| {
            offset += 1;
            !add(&self.attributes(node), offset, OsStr::from_bytes(&charset.to_local(name)))
        });
    }

    /// Says what went wrong, unless too much has been said already.
    pub(super) fn report(&self, name: &str, fault: &Fault, what: &str) {
        if let Some(left_out) = self.log_limit.allow(Instant::now()) {
            warn!(name = %name.escape_debug(), %fault, left_out, "{what}");
        }
    }

    /// Says that a program will wait for a large object to be copied to the local disk.
    pub(super) fn announce_copy(&self, object: &Object, tid: u32) {
        if let Some(left_out) = self.log_limit.allow(Instant::now()) {
            let size = crate::server::human(object.size);
            info!(
                object = object.name(),
                size,
                tid,
                left_out,
                "a program changes a large object: all of it is fetched and copied to the local disk first"
            );
        }
    }

    /// Whether a directory request can be answered without asking the store. The two names that are always there are not
    /// an answer worth giving alone.
    pub(super) fn can_fill(&self, node: &Node, offset: u64) -> bool {
        self.namespace.can_tell(node.ino, place(offset))
    }

    pub(super) async fn list_to(&self, node: &Node, offset: u64) -> Result<(), Errno> {
        self.namespace.list_to(node.ino, place(offset)).await.map_err(|fault| {
            self.report(&self.namespace.name(node.ino).unwrap_or_default(), &fault, "cannot be listed");
            Errno::from_i32(fault.errno_at_open())
        })
    }
}
