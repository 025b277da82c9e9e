//! The open files of a mount, in memory that outlives the process.
//!
//! The kernel keeps file handles and backing ids of ours for as long as a program has a file open. When the process that gave them
//! is killed, the one that takes its place has to know them: which file a handle stands for, whether the kernel reads it by itself
//! and from which backing id, and which backing ids nobody uses. That is a table of small slots in a shared
//! memory file; whoever holds its descriptor can hand it on, and a store into it is there however the process ends. Noting an
//! open file costs a few stores and no system call.
//!
//! A slot's last word says whether it is in use; it is written last and taken back first, so a slot is whole or free whenever the
//! process is stopped. A handle is the slot's number and how often the slot has been used, so none is ever given twice. The order of
//! events is the caller's: a slot is there before the kernel is told of it, and gone before it is told that it is closed. A backing id's
//! slot goes after the id is closed, not before: closing twice does no harm, and forgetting one would keep its file for ever.
//!
//! The file is ours alone and still not trusted so far as to lead anywhere else in memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;

/// By how much it grows, in bytes; a whole number of pages on every machine.
const CHUNK: usize = 64 << 10;

/// 64-bit words to a slot: inode number, kind and backing id, request, state.
const SLOT: usize = 4;

const WORDS: usize = CHUNK / size_of::<u64>();

const SLOTS: u64 = (WORDS / SLOT) as u64;

/// The bits of a handle that are the slot's number: at most so many files are open at a time, and a slot is used 2^40 times.
const NUMBER_BITS: u32 = 24;

const NUMBER_MASK: u64 = (1 << NUMBER_BITS) - 1;

const MOST_SLOTS: u64 = 1 << NUMBER_BITS;

/// How often a slot can be used.
const MOST_USES: u64 = (1 << (64 - NUMBER_BITS)) - 1;

/// In front of the slots, in the place of this many.
const HEADER: u64 = 2;

const MAGIC: u64 = u64::from_le_bytes(*b"fuseoss1");

/// What the words of the header are: the magic number, and what is true of the whole mount.
const HEADER_MAGIC: usize = 0;
const HEADER_FLAGS: usize = 1;

const NEGOTIATED: u64 = 1;
const PASSTHROUGH: u64 = 2;
const DISTRUSTED: u64 = 4;

/// The lowest bits of a slot's state; above them is how often it has been used.
const FREE: u64 = 0;
const OPEN: u64 = 1;
const IDLE: u64 = 2;
const STATE_BITS: u32 = 2;

/// The kernel sets this bit of a request that it sends again.
const SENT_AGAIN: u64 = 1 << 63;

/// How the kernel reads an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Through us, into its page cache.
    Cached,
    /// By itself, from the file behind this backing id.
    Passthrough(u32),
}

/// An open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFile {
    /// What the kernel calls it.
    pub handle: u64,
    /// Which file it is.
    pub ino: u64,
    /// How it is read.
    pub access: Access,
}

/// A backing id that no open file uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleBacking {
    /// Where it is noted; see [`Ledger::forget`].
    pub slot: Slot,
    /// Whose it is.
    pub ino: u64,
    /// What the kernel calls it.
    pub backing: u32,
}

/// A slot that holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u64);

/// A request's number, the same when the kernel sends the request again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unique(u64);

impl Unique {
    /// The number the kernel gave. Says whether it was sent before.
    pub fn new(unique: u64) -> (Self, bool) {
        (Self(unique & !SENT_AGAIN), unique & SENT_AGAIN != 0)
    }
}

/// A stretch of the file in this process's memory.
#[derive(Debug)]
struct Chunk(NonNull<[AtomicU64; WORDS]>);

// SAFETY: it is memory of atomic integers that stays where it is until the chunk is dropped.
unsafe impl Send for Chunk {}
// SAFETY: as above; atomic integers may be used from several threads.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn map(file: BorrowedFd<'_>, number: u64) -> io::Result<Self> {
        let offset = number.checked_mul(CHUNK as u64).and_then(|offset| libc::off_t::try_from(offset).ok());
        let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice takes nothing away from anybody.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                CHUNK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn words(&self) -> &[AtomicU64; WORDS] {
        // SAFETY: mapped as long as `self` lives, at a page's beginning, and only ever used as atomic integers, by this process
        // and by any other. The file cannot be made shorter (it is sealed).
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped, and nobody can have a reference into it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), CHUNK) };
    }
}

/// The table.
#[derive(Debug)]
pub struct Ledger {
    file: OwnedFd,
    chunks: Vec<Chunk>,
    /// Slots that can be used. Only in this process.
    free: Vec<u64>,
    /// It was another process's before.
    adopted: bool,
}

impl AsFd for Ledger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Ledger {
    /// The table of a new mount.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn create() -> io::Result<Self> {
        let file = memfd_create(c"fuse-oss-open-files", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        // So that no process can pull the memory from under another.
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
        let mut ledger = Self { file, chunks: Vec::new(), free: Vec::new(), adopted: false };
        ledger.grow()?;
        ledger.header(HEADER_MAGIC).store(MAGIC, Ordering::Release);
        Ok(ledger)
    }

    /// The table of a process that has ended.
    ///
    /// # Errors
    /// When it is none, or cannot be mapped.
    pub fn from_fd(file: OwnedFd) -> io::Result<Self> {
        let invalid =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("no table of open files: {what}"));
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS)?;
        if !SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(invalid("its length is not sealed"));
        }
        let len = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
        // Growing may have been interrupted only before anybody used what was new, and it grows by whole chunks at once.
        let chunks = len / CHUNK as u64;
        if chunks == 0 || chunks > MOST_SLOTS / SLOTS {
            return Err(invalid("its length is odd"));
        }
        let mapped = (0..chunks).map(|number| Chunk::map(file.as_fd(), number));
        let chunks = mapped.collect::<io::Result<Vec<_>>>()?;
        let mut ledger = Self { file, chunks, free: Vec::new(), adopted: true };
        if ledger.header(HEADER_MAGIC).load(Ordering::Acquire) != MAGIC {
            return Err(invalid("it does not begin as one"));
        }
        let unused = ledger.slots().rev().filter(|&number| ledger.is_usable(number));
        ledger.free = unused.collect();
        Ok(ledger)
    }

    /// Whether it was another process's before.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    fn header(&self, word: usize) -> &AtomicU64 {
        &self.chunks[0].words()[word]
    }

    fn flag(&self, flag: u64) -> bool {
        self.header(HEADER_FLAGS).load(Ordering::Acquire) & flag != 0
    }

    /// Whether the kernel may read files by itself; none before that was agreed upon.
    pub fn passthrough(&self) -> Option<bool> {
        self.flag(NEGOTIATED).then(|| self.flag(PASSTHROUGH))
    }

    /// Notes whether the kernel may read files by itself.
    pub fn set_passthrough(&self, may: bool) {
        let flags = self.header(HEADER_FLAGS);
        if may {
            flags.fetch_or(NEGOTIATED | PASSTHROUGH, Ordering::AcqRel);
        } else {
            flags.fetch_and(!PASSTHROUGH, Ordering::AcqRel);
            flags.fetch_or(NEGOTIATED, Ordering::AcqRel);
        }
    }

    /// Whether content was found wrong after the kernel may have had some of it.
    pub fn is_distrusted(&self) -> bool {
        self.flag(DISTRUSTED)
    }

    /// Notes that content was found wrong, so that the pages the kernel has are not to be trusted.
    pub fn distrust(&self) {
        self.header(HEADER_FLAGS).fetch_or(DISTRUSTED, Ordering::AcqRel);
    }

    fn slots(&self) -> std::ops::Range<u64> {
        HEADER..self.chunks.len() as u64 * SLOTS
    }

    fn words(&self, number: u64) -> Option<&[AtomicU64]> {
        let number = usize::try_from(number).ok()?;
        let (chunk, at) = (number / (WORDS / SLOT), number % (WORDS / SLOT));
        self.chunks.get(chunk)?.words().get(at * SLOT..(at + 1) * SLOT)
    }

    /// A slot's state and how often it has been used.
    fn state(&self, number: u64) -> Option<(u64, u64)> {
        let state = self.words(number)?[3].load(Ordering::Acquire);
        Some((state & ((1 << STATE_BITS) - 1), state >> STATE_BITS))
    }

    fn is_usable(&self, number: u64) -> bool {
        self.state(number).is_some_and(|(state, uses)| !matches!(state, OPEN | IDLE) && uses < MOST_USES)
    }

    fn grow(&mut self) -> io::Result<()> {
        let number = self.chunks.len() as u64;
        if (number + 1) * SLOTS > MOST_SLOTS {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        let offset = libc::off_t::try_from(number * CHUNK as u64).map_err(|_| io::ErrorKind::InvalidInput)?;
        let len = libc::off_t::try_from(CHUNK).map_err(|_| io::ErrorKind::InvalidInput)?;
        // Not ftruncate: without memory that would be noticed by the first store, and by a signal.
        fallocate(&self.file, FallocateFlags::empty(), offset, len)?;
        self.chunks.push(Chunk::map(self.file.as_fd(), number)?);
        let first = if number == 0 { HEADER } else { number * SLOTS };
        let new = (first..(number + 1) * SLOTS).rev().filter(|&number| self.is_usable(number));
        self.free = new.chain(self.free.iter().copied()).collect();
        Ok(())
    }

    /// Fills a slot that nobody uses.
    fn take(&mut self, state: u64, ino: u64, access: Access, request: Unique) -> io::Result<u64> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.grow()?;
                self.free.pop().ok_or_else(|| io::Error::from_raw_os_error(libc::ENFILE))?
            }
        };
        let (Some(words), Some((_, uses))) = (self.words(number), self.state(number)) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let uses = uses + 1;
        words[0].store(ino, Ordering::Relaxed);
        words[1].store(pack(access), Ordering::Relaxed);
        words[2].store(request.0, Ordering::Relaxed);
        words[3].store(uses << STATE_BITS | state, Ordering::Release);
        Ok(uses << NUMBER_BITS | number)
    }

    /// Notes a file that is about to be open, and gives it a handle that no other has had.
    ///
    /// # Errors
    /// When there is no memory, or too many files are open.
    pub fn open(&mut self, ino: u64, access: Access, request: Unique) -> io::Result<u64> {
        self.take(OPEN, ino, access, request)
    }

    /// What an open file's handle stands for.
    pub fn find(&self, handle: u64) -> Option<OpenFile> {
        let (number, uses) = (handle & NUMBER_MASK, handle >> NUMBER_BITS);
        let words = self.words(number).filter(|_| number >= HEADER)?;
        if self.state(number)? != (OPEN, uses) {
            return None;
        }
        let (ino, access) = (words[0].load(Ordering::Relaxed), unpack(words[1].load(Ordering::Relaxed))?);
        Some(OpenFile { handle, ino, access })
    }

    /// The file that a request opened when it was sent before.
    pub fn opened_by(&self, request: Unique) -> Option<OpenFile> {
        let of_it = |file: &OpenFile| {
            let words = self.words(file.handle & NUMBER_MASK);
            words.is_some_and(|words| words[2].load(Ordering::Relaxed) == request.0)
        };
        self.open_files().find(of_it)
    }

    /// All open files.
    pub fn open_files(&self) -> impl Iterator<Item = OpenFile> {
        self.slots().filter_map(|number| {
            let (_, uses) = self.state(number)?;
            self.find(uses << NUMBER_BITS | number)
        })
    }

    /// Notes that a file is closed. What was not open stays as it is.
    pub fn close(&mut self, handle: u64) {
        if self.find(handle).is_some() {
            self.clear(handle & NUMBER_MASK);
        }
    }

    /// Notes that the last file that used a backing id is closed, and that the id is kept; none when the handle was none.
    pub fn close_to_idle(&mut self, handle: u64) -> Option<Slot> {
        self.find(handle).filter(|file| file.access != Access::Cached)?;
        let number = handle & NUMBER_MASK;
        let (_, uses) = self.state(number)?;
        self.words(number)?[3].store(uses << STATE_BITS | IDLE, Ordering::Release);
        Some(Slot(number))
    }

    /// All backing ids that no open file uses.
    pub fn idle(&self) -> impl Iterator<Item = IdleBacking> {
        self.slots().filter_map(|number| {
            let words = self.words(number).filter(|_| self.state(number).is_some_and(|(state, _)| state == IDLE))?;
            let Access::Passthrough(backing) = unpack(words[1].load(Ordering::Relaxed))? else { return None };
            Some(IdleBacking { slot: Slot(number), ino: words[0].load(Ordering::Relaxed), backing })
        })
    }

    /// Forgets a backing id that is closed, or used by an open file again.
    pub fn forget(&mut self, slot: Slot) {
        if self.state(slot.0).is_some_and(|(state, _)| state == IDLE) {
            self.clear(slot.0);
        }
    }

    fn clear(&mut self, number: u64) {
        let Some((_, uses)) = self.state(number) else { return };
        if let Some(words) = self.words(number) {
            words[3].store(uses << STATE_BITS | FREE, Ordering::Release);
        }
        if uses < MOST_USES {
            self.free.push(number);
        }
    }
}

/// The backing id above, the kind below.
fn pack(access: Access) -> u64 {
    match access {
        Access::Cached => 1,
        Access::Passthrough(backing) => u64::from(backing) << 32 | 2,
    }
}

fn unpack(word: u64) -> Option<Access> {
    match word & 0xFFFF_FFFF {
        1 => Some(Access::Cached),
        2 => u32::try_from(word >> 32).ok().map(Access::Passthrough),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
