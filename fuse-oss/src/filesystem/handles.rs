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
//!
//! All of it is noted in a [`Ledger`], from which a process that takes the mount over knows which files are open, and how. It has checked
//! nothing yet, but an inode that the kernel reads by itself must be opened with the same backing id again, checked or not: the
//! process before had checked it, and kept its object until it was killed. From then on the cache may evict the object, which
//! takes nothing away from those who have it open.

use std::collections::{HashMap, HashSet};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, INodeNo, Notifier, ReplyOpen, RequestId};
use tokio::runtime::Handle;
use tracing::{debug, warn};

use super::ledger::{Access, Ledger, OpenFile, Slot, Unique};
use crate::blocks::{Blocks, Watcher};
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
    /// Those that this process has opened, or has been asked to read.
    open: RwLock<HashMap<u64, Arc<Reader>>>,
    inodes: Mutex<Inodes>,
    /// Whether this kernel can, and may here.
    passthrough: AtomicBool,
    notifier: Mutex<Option<Notifier>>,
}

#[derive(Debug)]
struct Inodes {
    /// The same for a process after this one; it is at least as new whenever the kernel gets an answer.
    ledger: Ledger,
    open: HashMap<u64, Kind>,
    idle: lru::LruCache<u64, Idle>,
    /// Files whose pages the kernel has been told to drop since a process before this one found something wrong; none unless one did.
    dropped: Option<HashSet<u64>>,
}

/// How an inode is open, and how often.
#[derive(Debug)]
enum Kind {
    Cached(usize),
    Passthrough(usize, Backing),
}

impl Kind {
    fn count(&self) -> usize {
        match self {
            Self::Cached(count) | Self::Passthrough(count, _) => *count,
        }
    }
}

/// A cache file that the kernel reads by itself.
#[derive(Debug)]
struct Backing {
    id: Id,
    /// What the kernel calls it.
    raw: u32,
    /// Dropped after the id. What a process before this one opened has none until it was checked here.
    pin: Option<Pin>,
}

/// One that nobody has open, and where it is noted.
#[derive(Debug)]
struct Idle {
    backing: Backing,
    slot: Slot,
}

/// A backing id; dropping it closes it.
#[derive(Debug)]
enum Id {
    /// This process made it.
    Made(BackingId),
    /// A process before this one did.
    Adopted(Adopted),
}

/// A backing id that a process before this one made, and the FUSE device that it belongs to.
#[derive(Debug)]
struct Adopted {
    id: u32,
    device: Arc<OwnedFd>,
}

impl Adopted {
    /// `FUSE_DEV_IOC_BACKING_CLOSE` of linux/fuse.h.
    const CLOSE: libc::Ioctl = libc::_IOW::<u32>(229, 2);
}

impl Drop for Adopted {
    fn drop(&mut self) {
        // SAFETY: the call reads one number of 32 bits, which lives until it is done. Nobody uses the id any more.
        let outcome = unsafe { libc::ioctl(self.device.as_raw_fd(), Self::CLOSE, &raw const self.id) };
        if outcome < 0 {
            let error = io::Error::last_os_error();
            debug!(id = self.id, %error, "a backing id of the process before was closed already");
        }
    }
}

impl Backing {
    /// Makes the kernel a backing file of what is pinned.
    fn make(pin: Pin, reply: &ReplyOpen) -> io::Result<Self> {
        let raw = reply.open_backing(&pin)?.into_raw();
        // SAFETY: it was made for this session a moment ago, and nobody else knows it.
        let id = unsafe { reply.wrap_backing(raw) };
        Ok(Self { id: Id::Made(id), raw, pin: Some(pin) })
    }

    /// Tells the kernel that a file is open and read from here.
    fn answer(&self, handle: u64, reply: ReplyOpen) {
        let handle = FileHandle(handle);
        match &self.id {
            Id::Made(id) => reply.opened_passthrough(handle, FopenFlags::empty(), id),
            Id::Adopted(adopted) => {
                // SAFETY: it belongs to this session and stays open as long as `self` lives. What is wrapped here is not closed:
                // it is unwrapped again below.
                let id = unsafe { reply.wrap_backing(adopted.id) };
                reply.opened_passthrough(handle, FopenFlags::empty(), &id);
                id.into_raw();
            }
        }
    }
}

impl Inodes {
    fn new(ledger: Ledger) -> Self {
        Self { ledger, open: HashMap::new(), idle: lru::LruCache::new(IDLE), dropped: None }
    }

    /// Takes over what a process before this one had open.
    fn adopt(ledger: Ledger, device: OwnedFd) -> Self {
        let device = Arc::new(device);
        let mut inodes = Self::new(ledger);
        inodes.dropped = inodes.ledger.is_distrusted().then(HashSet::new);
        let adopted = |id| Adopted { id, device: Arc::clone(&device) };
        for OpenFile { ino, access, .. } in inodes.ledger.open_files() {
            match (inodes.open.get_mut(&ino), access) {
                (Some(Kind::Cached(count) | Kind::Passthrough(count, _)), _) => *count += 1,
                (None, Access::Cached) => drop(inodes.open.insert(ino, Kind::Cached(1))),
                (None, Access::Passthrough(raw)) => {
                    let backing = Backing { id: Id::Adopted(adopted(raw)), raw, pin: None };
                    inodes.open.insert(ino, Kind::Passthrough(1, backing));
                }
            }
        }
        // What nobody uses is not worth keeping: nothing is known of the files behind it, and some may be closed already.
        let idle: Vec<_> = inodes.ledger.idle().collect();
        for idle in idle {
            let is_used =
                matches!(inodes.open.get(&idle.ino), Some(Kind::Passthrough(_, used)) if used.raw == idle.backing);
            if !is_used {
                drop(adopted(idle.backing));
            }
            inodes.ledger.forget(idle.slot);
        }
        inodes
    }

    /// Closes an open file; true when it was the last one of its inode, and read through this process.
    fn close(&mut self, file: &OpenFile) -> bool {
        let Some(kind) = self.open.get_mut(&file.ino) else {
            self.ledger.close(file.handle);
            return false;
        };
        let (Kind::Cached(count) | Kind::Passthrough(count, _)) = kind;
        *count = count.saturating_sub(1);
        if *count > 0 {
            self.ledger.close(file.handle);
            return false;
        }
        match self.open.remove(&file.ino) {
            Some(Kind::Passthrough(_, backing)) if file.access == Access::Passthrough(backing.raw) => {
                if let Some(slot) = self.ledger.close_to_idle(file.handle) {
                    let out = self.idle.push(file.ino, Idle { backing, slot });
                    self.close_idle(out.map(|(_, idle)| idle));
                }
                false
            }
            last => {
                self.ledger.close(file.handle);
                matches!(last, Some(Kind::Cached(_)))
            }
        }
    }

    /// Closes backing ids that nobody uses, and only then forgets them.
    fn close_idle(&mut self, idle: impl IntoIterator<Item = Idle>) {
        for Idle { backing, slot } in idle {
            drop(backing);
            self.ledger.forget(slot);
        }
    }
}

impl Watcher for Handles {
    fn found_wrong(&self) {
        self.inodes().ledger.distrust();
    }
}

impl Handles {
    /// Those of a new mount.
    pub fn new(ledger: Ledger) -> Self {
        Self::with(Inodes::new(ledger))
    }

    /// Those of a mount that a process before this one had, which has ended. `device` is the mount's FUSE device; it is only used to
    /// close backing ids.
    pub fn adopt(ledger: Ledger, device: OwnedFd) -> Self {
        Self::with(Inodes::adopt(ledger, device))
    }

    fn with(inodes: Inodes) -> Self {
        let passthrough = AtomicBool::new(inodes.ledger.passthrough().unwrap_or(false));
        Self { open: RwLock::default(), inodes: Mutex::new(inodes), passthrough, notifier: Mutex::default() }
    }

    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process and the kernel agreed that it can read backing files; what was agreed upon with a process before this
    /// one stands.
    pub fn negotiated(&self, passthrough: bool) {
        let inodes = self.inodes();
        if inodes.ledger.passthrough().is_none() {
            inodes.ledger.set_passthrough(passthrough);
            self.passthrough.store(passthrough, Ordering::Relaxed);
        }
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
        let mut inodes = self.inodes();
        let idle = inodes.idle.pop(&ino.0);
        inodes.close_idle(idle);
    }

    /// Whether an inode is open.
    pub fn is_open(&self, ino: INodeNo) -> bool {
        self.inodes().open.contains_key(&ino.0)
    }

    /// How many files are open.
    pub fn count(&self) -> u64 {
        let count: usize = self.inodes().open.values().map(Kind::count).sum();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// The reader of an open file; none, too, when a process before this one opened it: see [`Handles::adopt_reader`].
    pub fn reader(&self, handle: FileHandle) -> Option<Arc<Reader>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned()
    }

    /// The reader of a file that a process before this one opened, made by `make` the first time; none when it is not open.
    pub fn adopt_reader(
        &self,
        ino: INodeNo,
        handle: FileHandle,
        make: impl FnOnce() -> Option<Reader>,
    ) -> Option<Arc<Reader>> {
        let is_open = |inodes: &Inodes| inodes.ledger.find(handle.0).is_some_and(|file| file.ino == ino.0);
        if !is_open(&self.inodes()) {
            return None;
        }
        // Not under the lock: it may read the disk, and ask what else is open.
        let reader = Arc::new(make()?);
        let inodes = self.inodes();
        // Nor was it closed meanwhile; while the lock is held it cannot be.
        if !is_open(&inodes) {
            return None;
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(open.entry(handle.0).or_insert(reader)))
    }

    /// Opens an inode and answers the kernel's `request`. `keep_pages` says that what the kernel has cached of it is right.
    pub fn open(
        &self,
        ino: INodeNo,
        reader: Reader,
        keep_pages: bool,
        blocks: &Blocks,
        request: RequestId,
        reply: ReplyOpen,
    ) {
        let (request, sent_again) = Unique::new(request.0);
        // Held until the answer is out: two answers of different kinds must not overtake one another.
        let mut inodes = self.inodes();
        if sent_again && let Some(file) = inodes.ledger.opened_by(request) {
            // The process before had come as far as here, and the kernel never heard of it.
            inodes.close(&file);
            self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&file.handle);
        }
        if let Some(Kind::Passthrough(_, backing)) = inodes.open.get_mut(&ino.0) {
            let object = reader.object();
            if object.is_proved() {
                if backing.pin.is_none() {
                    backing.pin = blocks.pin(object);
                }
            } else if matches!(backing.id, Id::Made(_))
                || blocks.times_wrong(object.id) > 0
                || (inodes.dropped.is_some() && !object.is_complete())
            {
                // Its content turned out to be wrong, and the kernel opens it no other way as long as somebody has it open like
                // this. What a process before this one opened was checked by that one.
                drop(inodes);
                warn!(
                    object = reader.object().name(),
                    "found wrong while it was open; it can be opened again when it was closed everywhere"
                );
                return reply.error(Errno::EIO);
            }
        }
        let (made, left) = self.backing(&mut inodes, ino.0, &reader, blocks, &reply);
        let access = match (&made, inodes.open.get(&ino.0)) {
            (Some(backing), _) | (None, Some(Kind::Passthrough(_, backing))) => Access::Passthrough(backing.raw),
            (None, _) => Access::Cached,
        };
        let handle = match inodes.ledger.open(ino.0, access, request) {
            Ok(handle) => handle,
            Err(error) => {
                drop(made);
                if let Some(slot) = left {
                    inodes.ledger.forget(slot);
                }
                drop(inodes);
                warn!(%error, "no more files can be opened");
                return reply.error(Errno::from_i32(error.raw_os_error().unwrap_or(libc::ENOMEM)));
            }
        };
        if let Some(slot) = left {
            inodes.ledger.forget(slot);
        }
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(reader));
        let kind = inodes.open.entry(ino.0).or_insert_with(|| match made {
            Some(backing) => Kind::Passthrough(0, backing),
            None => Kind::Cached(0),
        });
        match kind {
            Kind::Passthrough(count, backing) => {
                *count += 1;
                blocks.metrics().opened_passthrough.one();
                backing.answer(handle, reply);
            }
            Kind::Cached(count) => {
                *count += 1;
                blocks.metrics().opened_cached.one();
                let keep_pages = keep_pages && inodes.dropped.as_mut().is_none_or(|dropped| !dropped.insert(ino.0));
                let mut flags = FopenFlags::FOPEN_NOFLUSH;
                if keep_pages {
                    flags |= FopenFlags::FOPEN_KEEP_CACHE;
                }
                reply.opened(FileHandle(handle), flags);
            }
        }
    }

    /// A backing file for an inode that is not open, if it is to be opened that way, and where it was noted while it was idle.
    fn backing(
        &self,
        inodes: &mut Inodes,
        ino: u64,
        reader: &Reader,
        blocks: &Blocks,
        reply: &ReplyOpen,
    ) -> (Option<Backing>, Option<Slot>) {
        let is_open = inodes.open.contains_key(&ino);
        if is_open || !self.passthrough.load(Ordering::Relaxed) || reader.object().size <= STAYS_CACHED {
            return (None, None);
        }
        if let Some(mut idle) = inodes.idle.pop(&ino) {
            if reader.object().is_proved() {
                idle.backing.pin = idle.backing.pin.or_else(|| blocks.pin(reader.object()));
                return (Some(idle.backing), Some(idle.slot));
            }
            // What was found wrong since it was used last goes with its pin.
            inodes.close_idle([idle]);
        }
        let Some(pin) = blocks.pin(reader.object()) else { return (None, None) };
        match Backing::make(pin, reply) {
            Ok(backing) => (Some(backing), None),
            Err(error) => {
                // The cache's file system cannot (overlayfs), or we may not: it will not work the next time either.
                debug!(%error, "the kernel does not read cache files by itself; all reads go through this process");
                self.passthrough.store(false, Ordering::Relaxed);
                inodes.ledger.set_passthrough(false);
                (None, None)
            }
        }
    }

    /// Closes an open file. One that is closed already stays so: the kernel may say it twice.
    pub fn release(self: &Arc<Self>, ino: INodeNo, handle: FileHandle, blocks: &Arc<Blocks>) {
        let reader = self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        let last_cached = {
            let mut inodes = self.inodes();
            let Some(file) = inodes.ledger.find(handle.0).filter(|file| file.ino == ino.0) else { return };
            inodes.close(&file)
        };
        if let Some(reader) = reader.filter(|_| last_cached)
            && reader.object().size > STAYS_CACHED
            && self.passthrough.load(Ordering::Relaxed)
        {
            self.drop_pages(ino, &reader, blocks);
        }
    }

    /// Gives the backing files up that nobody uses, so that their objects can be evicted.
    pub fn give_up_idle(&self) {
        let mut inodes = self.inodes();
        while let Some((_, idle)) = inodes.idle.pop_lru() {
            inodes.close_idle([idle]);
        }
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

#[cfg(test)]
mod tests;
