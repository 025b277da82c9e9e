//! Open files, and which of them the kernel reads by itself.
//!
//! An object that is complete in the cache and checked is read by the kernel straight from the cache file (*passthrough*), at the disk's
//! speed and without this process. Everything else is read through this process into the kernel's page cache. The kernel demands
//! of each inode that all its open files are of one kind, and that those it reads by itself share one *backing id*; breaking
//! that is an I/O error for whoever opens. So the choice is made here, under one lock. Small files stay with the page
//! cache even when they are complete: giving the kernel a backing file costs more than reading them.
//!
//! Backing ids are kept for a while after the last close, because making one costs as much as some thousand bytes of reading. Each
//! keeps its object from being evicted, so they are few, and they go when the cache has no room.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, INodeNo, Notifier, ReplyOpen};
use tokio::runtime::Handle;
use tracing::{debug, warn};

use crate::blocks::Blocks;
use crate::cache::Pin;
use crate::reader::Reader;

/// Objects up to this length are quicker through the page cache, in bytes: a new backing id costs some 20 microseconds.
pub const STAYS_CACHED: u64 = 256 << 10;

/// Backing ids that nobody uses at present.
const IDLE: NonZeroUsize = NonZeroUsize::new(128).expect("128 is not zero");

/// How long a file that was closed may take until all of it is in the cache.
const SETTLING: Duration = Duration::from_secs(2);

/// All open files of a mount.
#[derive(Debug)]
pub struct Handles {
    open: RwLock<HashMap<u64, Arc<Reader>>>,
    next: AtomicU64,
    inodes: Mutex<Inodes>,
    /// Whether this kernel can, and may here.
    passthrough: AtomicBool,
    notifier: Mutex<Option<Notifier>>,
}

#[derive(Debug)]
struct Inodes {
    open: HashMap<u64, Kind>,
    idle: lru::LruCache<u64, Arc<Backing>>,
}

/// How an inode is open, and how often.
#[derive(Debug)]
enum Kind {
    Cached(usize),
    Passthrough(usize, Arc<Backing>),
}

/// A cache file that the kernel reads by itself.
#[derive(Debug)]
struct Backing {
    id: BackingId,
    /// Dropped after the id.
    _pin: Pin,
}

impl Default for Handles {
    fn default() -> Self {
        let inodes = Inodes { open: HashMap::new(), idle: lru::LruCache::new(IDLE) };
        Self {
            open: RwLock::default(),
            next: AtomicU64::new(1),
            inodes: Mutex::new(inodes),
            passthrough: AtomicBool::new(false),
            notifier: Mutex::default(),
        }
    }
}

impl Handles {
    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel has said that it can read backing files.
    pub fn allow_passthrough(&self) {
        self.passthrough.store(true, Ordering::Relaxed);
    }

    /// Whether the next open of an inode could be one that the kernel reads by itself.
    pub fn may_pass_through(&self, ino: INodeNo) -> bool {
        self.passthrough.load(Ordering::Relaxed) && !matches!(self.inodes().open.get(&ino.0), Some(Kind::Cached(_)))
    }

    /// The way to tell the kernel things unasked.
    pub fn set_notifier(&self, notifier: Notifier) {
        *self.notifier.lock().unwrap_or_else(PoisonError::into_inner) = Some(notifier);
    }

    /// Gives the backing file of an inode up, if nobody uses it.
    pub fn give_up(&self, ino: INodeNo) {
        let idle = self.inodes().idle.pop(&ino.0);
        drop(idle);
    }

    /// Whether an inode is open.
    pub fn is_open(&self, ino: INodeNo) -> bool {
        self.inodes().open.contains_key(&ino.0)
    }

    /// How many files are open.
    pub fn count(&self) -> u64 {
        u64::try_from(self.open.read().unwrap_or_else(PoisonError::into_inner).len()).unwrap_or(u64::MAX)
    }

    /// The reader of an open file.
    pub fn reader(&self, handle: FileHandle) -> Option<Arc<Reader>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned()
    }

    /// Opens an inode and answers the kernel. `keep_pages` says that what the kernel has cached of it is right.
    pub fn open(&self, ino: INodeNo, reader: Reader, keep_pages: bool, blocks: &Blocks, reply: ReplyOpen) {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let reader = Arc::new(reader);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::clone(&reader));
        // Held until the answer is out: two answers of different kinds must not overtake one another.
        let mut inodes = self.inodes();
        if let Some(Kind::Passthrough(..)) = inodes.open.get(&ino.0)
            && !reader.object().is_proved()
        {
            // Its content turned out to be wrong, and the kernel opens it no other way as long as somebody has it open like this.
            drop(inodes);
            warn!(
                object = reader.object().name(),
                "found wrong while it was open; it can be opened again when it was closed everywhere"
            );
            self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
            return reply.error(Errno::EIO);
        }
        if let Some(backing) = self.backing(&mut inodes, ino.0, &reader, blocks, &reply) {
            blocks.metrics().opened_passthrough.one();
            reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &backing.id);
            return;
        }
        match inodes.open.entry(ino.0).or_insert(Kind::Cached(0)) {
            Kind::Cached(count) | Kind::Passthrough(count, _) => *count += 1,
        }
        blocks.metrics().opened_cached.one();
        let mut flags = FopenFlags::FOPEN_NOFLUSH;
        if keep_pages {
            flags |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        reply.opened(FileHandle(handle), flags);
    }

    /// The backing file to open an inode with, if it is to be opened that way; counts it as opened.
    fn backing(
        &self,
        inodes: &mut Inodes,
        ino: u64,
        reader: &Reader,
        blocks: &Blocks,
        reply: &ReplyOpen,
    ) -> Option<Arc<Backing>> {
        match inodes.open.get_mut(&ino) {
            Some(Kind::Cached(_)) => return None,
            Some(Kind::Passthrough(count, backing)) => {
                *count += 1;
                return Some(Arc::clone(backing));
            }
            None => {}
        }
        if !self.passthrough.load(Ordering::Relaxed) || reader.object().size <= STAYS_CACHED {
            return None;
        }
        // What was found wrong since it was used last goes with its pin.
        let idle = inodes.idle.pop(&ino).filter(|_| reader.object().is_proved());
        let backing = match idle {
            Some(backing) => backing,
            None => {
                let pin = blocks.pin(reader.object())?;
                match reply.open_backing(&pin) {
                    Ok(id) => Arc::new(Backing { id, _pin: pin }),
                    Err(error) => {
                        // The cache's file system cannot (overlayfs), or we may not: it will not work the next time either.
                        debug!(%error, "the kernel does not read cache files by itself; all reads go through this process");
                        self.passthrough.store(false, Ordering::Relaxed);
                        return None;
                    }
                }
            }
        };
        inodes.open.insert(ino, Kind::Passthrough(1, Arc::clone(&backing)));
        Some(backing)
    }

    /// Closes an open file.
    pub fn release(self: &Arc<Self>, ino: INodeNo, handle: FileHandle, blocks: &Arc<Blocks>) {
        let reader = self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        let last = {
            let mut inodes = self.inodes();
            let Some(kind) = inodes.open.get_mut(&ino.0) else { return };
            let (Kind::Cached(count) | Kind::Passthrough(count, _)) = kind;
            *count = count.saturating_sub(1);
            if *count > 0 {
                return;
            }
            match inodes.open.remove(&ino.0) {
                Some(Kind::Passthrough(_, backing)) => {
                    inodes.idle.push(ino.0, backing);
                    return;
                }
                last => last,
            }
        };
        if let (Some(Kind::Cached(_)), Some(reader)) = (last, reader)
            && reader.object().size > STAYS_CACHED
            && self.passthrough.load(Ordering::Relaxed)
        {
            self.drop_pages(ino, &reader, blocks);
        }
    }

    /// Gives the backing files up that nobody uses, so that their objects can be evicted.
    pub fn give_up_idle(&self) {
        self.inodes().idle.clear();
    }

    /// Has the kernel drop its own pages of a file that it will read from the cache file when it is opened again: they would be there
    /// twice, and whoever opens it would have to wait until they are gone.
    fn drop_pages(self: &Arc<Self>, ino: INodeNo, reader: &Reader, blocks: &Arc<Blocks>) {
        let notifier = self.notifier.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(notifier), Ok(runtime)) = (notifier, Handle::try_current()) else { return };
        let (object, blocks, handles) = (Arc::clone(reader.object()), Arc::clone(blocks), Arc::clone(self));
        let later = async move {
            blocks.until_kept(&object, SETTLING).await;
            if !object.is_proved() || !handles.may_pass_through(ino) {
                return;
            }
            // On a thread that may block: the kernel may wait for an answer of ours before it is done.
            let dropped = tokio::task::spawn_blocking(move || notifier.inval_inode(ino, 0, 0)).await;
            if let Ok(Err(error)) = dropped {
                debug!(ino = ino.0, %error, "the kernel keeps its pages");
            }
        };
        runtime.spawn(later);
    }
}
