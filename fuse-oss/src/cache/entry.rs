//! One object of the cache, while somebody holds it.
//!
//! What is there is two bits per granule: *present* (recorded in the index) and *proved* (written or verified by this
//! process). They are atomics, read without any lock. Checksums stay in the index file and are read when needed: an object
//! of 100 GB has 27 MB of them, and most readers want a few. The slots of 64 blocks, an extent, are read at the first
//! touch of it: that is one read of 18 KiB, where reading the whole table at open would be 27 MB before the first byte.
//! Whether an object is complete is known from the header alone.
//!
//! # Locks
//! Taken in this order:
//! 1. `body`: shared by everybody who uses the files, exclusive for opening, closing and removing them.
//! 2. an extent's `gate`: shared by everybody who reads or writes there, exclusive for punching it out. So nobody reads the hole
//!    that eviction leaves.
//! 3. an extent's `slots`: held while its slots are read and written.
//! 4. `record`: held while the header is written.
//! 5. `pins`, and the tables of the cache: only ever held for a moment.
//!
//! Two writers of one granule would be a mess: a third bit, *writing*, says that somebody does, and the other leaves it to him.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::SystemTime;

use oss::Checksum;
use tracing::warn;

use super::files::{Part, read_up_to};
use super::format::{self, Description, Header, SLOT_LEN, SMALL, Slot, TAIL_MAX};
use super::policy::Unit;
use super::sums::{Kind, Sum};
use super::{ObjectId, Shared, Whole};
use crate::geometry::{BLOCK, GRANULE, Granules, block_count, by_block};

/// Blocks that are evicted together, and whose slots are read together: 64 MiB.
pub(super) const EXTENT_BLOCKS: u32 = 64;

/// Bytes of an extent.
pub(super) const EXTENT: u64 = EXTENT_BLOCKS as u64 * BLOCK;

/// How old the last change of a file may be before another use of it is noted there.
const NOTE_USE_AFTER: u64 = 60;

const UNCHECKED: u8 = 0;
const RIGHT: u8 = 1;
const UNKNOWN: u8 = 2;
const WRONG: u8 = 3;

/// An object of the cache. See the [module](self); [`Cache::entry`](super::Cache::entry) makes them.
#[derive(Debug)]
pub struct Entry {
    pub(super) id: ObjectId,
    pub(super) size: u64,
    pub(super) shared: Arc<Shared>,
    me: Weak<Self>,
    body: RwLock<Body>,
    groups: Box<[OnceLock<Group>]>,
    /// Granules that are not present, as far as the header and the extents looked at say.
    pub(super) missing: AtomicU64,
    /// Granules that are not proved.
    unproved: AtomicU64,
    /// Extents not looked at yet count as present...
    assumed_present: AtomicBool,
    /// ... and as proved.
    assumed_proved: AtomicBool,
    /// Whatever the index says was proved by this process.
    trusted: AtomicBool,
    whole: AtomicU8,
    /// The kind of the store's checksum, once it is known: 0, 1 XZ, 2 NVME.
    kind: AtomicU8,
    pub(super) record: Mutex<Record>,
    /// How often it was opened.
    pub(super) opens: AtomicU32,
    touched: AtomicBool,
    used_again: AtomicBool,
    used_again_noted: AtomicBool,
    /// For closing what was not used for long.
    used_lately: AtomicBool,
    pins: Mutex<u32>,
    /// Found wrong while somebody holds a pin; removed with the last one.
    pub(super) doomed: AtomicBool,
}

/// What is in the header, or will be.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) complete: bool,
    pub(super) right: bool,
    pub(super) sum: Option<Sum>,
    pub(super) description: Description,
}

#[derive(Debug, Default)]
pub(super) struct Body {
    state: State,
    files: Option<Files>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Nobody has looked yet.
    #[default]
    Unread,
    /// There are no files.
    Absent,
    /// There are.
    There,
}

/// The open files.
#[derive(Debug)]
pub(super) struct Files {
    /// The index, or all of a small object.
    pub(super) index: File,
    data: OnceLock<File>,
    /// A small object's file that has no index behind its data yet.
    pub(super) fresh: AtomicBool,
}

/// An extent.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) gate: RwLock<()>,
    pub(super) slots: Mutex<()>,
    pub(super) blocks: Box<[Block]>,
    /// In which opening of the object it was used last.
    seen: AtomicU32,
}

/// What is there of a block, as sets of granules.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) present: AtomicU64,
    pub(super) proved: AtomicU64,
    pub(super) writing: AtomicU64,
}

/// The files of an entry, open, and not removed while this is held.
pub(super) struct Opened<'a>(RwLockReadGuard<'a, Body>);

impl Opened<'_> {
    pub(super) fn files(&self) -> &Files {
        self.0.files.as_ref().expect("made only of bodies with files")
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn shared<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn exclusive<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Block {
    pub(super) fn present(&self) -> Granules {
        Granules(self.present.load(Ordering::Acquire))
    }

    pub(super) fn proved(&self) -> Granules {
        Granules(self.proved.load(Ordering::Acquire))
    }
}

impl Entry {
    /// Touches no file.
    pub(super) fn new(me: &Weak<Self>, shared: &Arc<Shared>, id: ObjectId, size: u64, absent: bool) -> Self {
        let extents = usize::try_from(block_count(size).div_ceil(EXTENT_BLOCKS)).unwrap_or(0);
        let granules = size.div_ceil(GRANULE);
        let absent = absent || size == 0;
        let state = if absent { State::Absent } else { State::Unread };
        Self {
            id,
            size,
            shared: Arc::clone(shared),
            me: Weak::clone(me),
            body: RwLock::new(Body { state, files: None }),
            groups: (0..extents).map(|_| OnceLock::new()).collect(),
            missing: AtomicU64::new(granules),
            unproved: AtomicU64::new(granules),
            assumed_present: AtomicBool::new(false),
            assumed_proved: AtomicBool::new(false),
            trusted: AtomicBool::new(false),
            whole: AtomicU8::new(if size == 0 { UNKNOWN } else { UNCHECKED }),
            kind: AtomicU8::new(0),
            record: Mutex::default(),
            opens: AtomicU32::new(0),
            touched: AtomicBool::new(false),
            used_again: AtomicBool::new(false),
            used_again_noted: AtomicBool::new(false),
            used_lately: AtomicBool::new(false),
            pins: Mutex::new(0),
            doomed: AtomicBool::new(false),
        }
    }

    /// Reads the index, unless somebody has or there is none; the description is for what will be written.
    pub(super) fn prepare(&self, describe: impl FnOnce() -> Description) {
        if shared(&self.body).state == State::Unread {
            // What cannot be read is not there; writing will tell.
            let _ = self.opened();
        }
        let mut record = lock(&self.record);
        if record.description.location.is_empty() {
            record.description = describe();
        }
    }

    /// Whose bytes these are.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The object's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Objects of up to 256 KiB have one file.
    pub(super) fn is_small(&self) -> bool {
        self.size <= SMALL
    }

    pub(super) fn index_part(&self) -> Part {
        if self.is_small() { Part::Small } else { Part::Index }
    }

    pub(super) fn data_part(&self) -> Part {
        if self.is_small() { Part::Small } else { Part::Data }
    }

    pub(super) fn extents(&self) -> u32 {
        u32::try_from(self.groups.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn unit(&self, extent: u32) -> Unit {
        Unit { object: self.id, extent }
    }

    /// The blocks of an extent.
    pub(super) fn blocks_of(&self, extent: u32) -> std::ops::Range<u32> {
        let first = extent * EXTENT_BLOCKS;
        first..(first + EXTENT_BLOCKS).min(block_count(self.size))
    }

    pub(super) fn slot_place(&self, block: u32) -> u64 {
        if self.is_small() { self.size } else { Slot::place(block) }
    }

    /// What of a block is recorded as there. Quick: at most, once per 64 MiB, it reads that part of the index.
    pub fn present(&self, block: u32) -> Granules {
        let Some(group) = self.look_up(block / EXTENT_BLOCKS) else { return Granules::EMPTY };
        let at = usize::try_from(block % EXTENT_BLOCKS).unwrap_or(usize::MAX);
        group.blocks.get(at).map_or(Granules::EMPTY, Block::present)
    }

    /// Whether every granule that the bytes `range` touch is recorded as there. As quick as [`Entry::present`].
    pub fn has(&self, range: &std::ops::Range<u64>) -> bool {
        range.end <= self.size
            && by_block(range.clone()).all(|(block, within)| self.present(block).has(Granules::touched(&within)))
    }

    /// Whether every granule of the object is recorded as there.
    pub fn complete(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    /// Whether the object is complete, every granule was written or verified by this process, and the checksum of the whole is
    /// right, if the store told one: then it may be read without asking.
    pub fn proved(&self) -> bool {
        self.complete()
            && self.unproved.load(Ordering::Acquire) == 0
            && matches!(self.whole.load(Ordering::Acquire), RIGHT | UNKNOWN)
            && !self.doomed.load(Ordering::Acquire)
    }

    /// Notes that somebody opened the object again, for what is evicted first. Memory only; it is written down when the last
    /// holder lets go.
    pub fn touch(&self) {
        let now = self.opens.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.touched.store(true, Ordering::Relaxed);
        if self.groups.len() == 1
            && let Some(group) = self.groups[0].get()
        {
            group.seen.store(now, Ordering::Relaxed);
            self.note_use(0);
        }
    }

    fn note_use(&self, extent: u32) {
        if self.shared.space.used_again(&self.unit(extent)) {
            self.used_again.store(true, Ordering::Relaxed);
        }
    }

    /// Somebody reads what is there: the first time since the object was opened that counts as use.
    pub(super) fn note_read(&self, extent: u32, group: &Group) {
        let now = self.opens.load(Ordering::Relaxed);
        if group.seen.load(Ordering::Relaxed) != now && group.seen.swap(now, Ordering::Relaxed) != now {
            self.note_use(extent);
        }
    }

    /// What somebody writes he is not counted as using when he reads it.
    pub(super) fn note_write(&self, group: &Group) {
        group.seen.store(self.opens.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The files, open; none when there are none.
    pub(super) fn opened(&self) -> io::Result<Option<Opened<'_>>> {
        loop {
            let body = shared(&self.body);
            match (body.state, &body.files) {
                (State::Absent, _) => return Ok(None),
                (State::There, Some(_)) => {
                    self.used_lately.store(true, Ordering::Relaxed);
                    return Ok(Some(Opened(body)));
                }
                _ => {}
            }
            drop(body);
            self.change_body(|body| self.open(body))?;
        }
    }

    /// The files, if they are open and nobody is busy with them.
    pub(super) fn opened_now(&self) -> Option<Opened<'_>> {
        let body = self.body.try_read().ok()?;
        body.files.as_ref()?;
        self.used_lately.store(true, Ordering::Relaxed);
        Some(Opened(body))
    }

    /// The files, made if there are none.
    pub(super) fn opened_or_made(&self) -> io::Result<Opened<'_>> {
        loop {
            if let Some(opened) = self.opened()? {
                return Ok(opened);
            }
            self.change_body(|body| if body.state == State::Absent { self.make(body) } else { Ok(()) })?;
        }
    }

    fn change_body(&self, change: impl FnOnce(&mut Body) -> io::Result<()>) -> io::Result<()> {
        let mut body = exclusive(&self.body);
        let before = body.files.is_some();
        let changed = change(&mut body);
        let after = body.files.is_some();
        drop(body);
        if after && !before {
            self.used_lately.store(true, Ordering::Relaxed);
            self.shared.descriptors.opened(&self.me);
        } else if before && !after {
            self.shared.descriptors.closed();
        }
        changed
    }

    fn open(&self, body: &mut Body) -> io::Result<()> {
        if body.files.is_some() || body.state == State::Absent {
            return Ok(());
        }
        let file = self.shared.place.open(self.id, self.index_part());
        let index = match (file, body.state) {
            (Ok(Some(index)), State::Unread) => {
                if !self.read_header(&index)? {
                    // Torn, of another format or of another object: begun anew.
                    drop(index);
                    self.remove_files();
                    body.state = State::Absent;
                    return Ok(());
                }
                index
            }
            (Ok(Some(index)), _) => index,
            (Ok(None), state) => {
                if state == State::There {
                    // Somebody has removed it behind our back.
                    self.blank();
                    self.shared.space.removed_all(self.id, self.extents());
                }
                body.state = State::Absent;
                return Ok(());
            }
            (Err(error), state) => {
                if state == State::Unread {
                    body.state = State::Absent;
                }
                return Err(error);
            }
        };
        body.state = State::There;
        body.files = Some(Files { index, data: OnceLock::new(), fresh: AtomicBool::new(false) });
        Ok(())
    }

    /// Takes in what the header says; of a small object, all that the index says. `false` when it is not one of this object's.
    fn read_header(&self, index: &File) -> io::Result<bool> {
        let mut buffer = [0; TAIL_MAX + 1];
        let (header, used_again) = if self.is_small() {
            let read = read_up_to(index, &mut buffer, self.size)?;
            let Some(tail) = format::decode_tail(&buffer[..read]) else { return Ok(false) };
            tail
        } else {
            let read = read_up_to(index, &mut buffer[..TAIL_MAX], 0)?;
            let usage = usize::try_from(format::USAGE_AT).unwrap_or(0);
            let used_again = buffer[usage..usage + 4] == format::USED_AGAIN;
            let Some(header) = Header::decode(&buffer[..read]) else { return Ok(false) };
            (header, used_again)
        };
        if header.digest != self.id.0 || header.size != self.size {
            return Ok(false);
        }
        self.used_again.store(used_again, Ordering::Relaxed);
        self.used_again_noted.store(used_again, Ordering::Relaxed);
        let trusted = self.shared.space.proved(self.id);
        self.trusted.store(trusted, Ordering::Relaxed);
        if header.complete {
            self.assumed_present.store(true, Ordering::Relaxed);
            self.missing.store(0, Ordering::Release);
            if trusted {
                self.assumed_proved.store(true, Ordering::Relaxed);
                self.unproved.store(0, Ordering::Release);
            }
        }
        let mut record = lock(&self.record);
        record.sum = record.sum.or(header.sum);
        record.complete = header.complete;
        // A checksum that was told since then decides anew.
        record.right = header.right && record.sum == header.sum;
        record.description = header.description;
        self.set_kind(record.sum);
        let whole = match record.sum {
            _ if !header.complete => UNCHECKED,
            None => UNKNOWN,
            Some(_) if record.right => RIGHT,
            Some(_) => UNCHECKED,
        };
        self.whole.store(whole, Ordering::Release);
        drop(record);
        if self.is_small() {
            self.groups[0].get_or_init(|| self.decode_group(0, &buffer[..SLOT_LEN]));
        }
        Ok(true)
    }

    fn make(&self, body: &mut Body) -> io::Result<()> {
        let place = &self.shared.place;
        let index = place.create(self.id, self.index_part(), 0)?;
        let files = Files { index, data: OnceLock::new(), fresh: AtomicBool::new(self.is_small()) };
        if !self.is_small() {
            self.write_header(&files, &lock(&self.record))?;
            let data = place.create(self.id, Part::Data, self.size)?;
            let _ = files.data.set(data);
        }
        body.state = State::There;
        body.files = Some(files);
        Ok(())
    }

    /// The file with the data.
    pub(super) fn data<'a>(&self, files: &'a Files) -> io::Result<&'a File> {
        if self.is_small() {
            return Ok(&files.index);
        }
        if let Some(data) = files.data.get() {
            return Ok(data);
        }
        let place = &self.shared.place;
        // What was cut off or is missing reads as zeros then, and its checksums tell.
        let data = match place.open(self.id, Part::Data)? {
            Some(data) => {
                if data.metadata()?.len() != self.size {
                    place.resize(&data, Part::Data, self.size)?;
                }
                data
            }
            None => place.create(self.id, Part::Data, self.size)?,
        };
        Ok(files.data.get_or_init(|| data))
    }

    /// The file with the data, if it is open.
    pub(super) fn data_now<'a>(&self, files: &'a Files) -> Option<&'a File> {
        if self.is_small() { Some(&files.index) } else { files.data.get() }
    }

    pub(super) fn header(&self, record: &Record) -> Header {
        Header {
            digest: self.id.0,
            size: self.size,
            complete: record.complete,
            right: record.right,
            sum: record.sum,
            description: record.description.clone(),
        }
    }

    /// Whether it was wanted more than once.
    pub(super) fn is_used_again(&self) -> bool {
        self.used_again.load(Ordering::Relaxed)
    }

    pub(super) fn write_header(&self, files: &Files, record: &Record) -> io::Result<()> {
        if self.doomed.load(Ordering::Acquire) {
            return Ok(());
        }
        let at = if self.is_small() { self.size + u64::try_from(SLOT_LEN).expect("288 fits") } else { 0 };
        self.shared.place.write(&files.index, self.index_part(), &self.header(record).encode(), at)
    }

    /// An extent, if anything can be there.
    fn look_up(&self, extent: u32) -> Option<&Group> {
        let place = self.groups.get(usize::try_from(extent).ok()?)?;
        if let Some(group) = place.get() {
            return Some(group);
        }
        let opened = self.opened().ok()??;
        Some(self.group(&opened, extent))
    }

    /// An extent that was looked at before.
    pub(super) fn known_group(&self, extent: u32) -> Option<&Group> {
        self.groups.get(usize::try_from(extent).ok()?)?.get()
    }

    /// An extent; its part of the index is read at the first time.
    pub(super) fn group(&self, opened: &Opened<'_>, extent: u32) -> &Group {
        let place = &self.groups[usize::try_from(extent).unwrap_or(usize::MAX)];
        place.get_or_init(|| {
            let blocks = self.blocks_of(extent);
            let mut bytes = vec![0; blocks.len() * SLOT_LEN];
            let empty = opened.files().fresh.load(Ordering::Acquire) || self.doomed.load(Ordering::Acquire);
            let read = if empty {
                Ok(0)
            } else {
                read_up_to(&opened.files().index, &mut bytes, self.slot_place(blocks.start))
            };
            let read = read.unwrap_or_else(|error| {
                warn!(%error, object = %hex::encode(self.id.0), "cannot read an index of the cache");
                0
            });
            self.decode_group(extent, &bytes[..read])
        })
    }

    /// Takes in what an index says of an extent. Exactly once per extent, because it counts.
    fn decode_group(&self, extent: u32, bytes: &[u8]) -> Group {
        let trusted = self.trusted.load(Ordering::Relaxed);
        let (mut all, mut present, mut stored) = (0_u64, 0_u64, 0_u64);
        let blocks = self.blocks_of(extent).zip(0..).map(|(number, at)| {
            let every = Granules::of_block(self.size, number);
            let slot = bytes.get(at * SLOT_LEN..).and_then(|bytes| Slot::decode(&self.id.0, number, bytes));
            let here = slot.map_or(Granules::EMPTY, |slot| slot.granules.among(every));
            all += u64::from(every.count());
            present += u64::from(here.count());
            stored += self.stored(number, here);
            let proved = if trusted { here } else { Granules::EMPTY };
            Block { present: here.0.into(), proved: proved.0.into(), writing: AtomicU64::new(0) }
        });
        let blocks = blocks.collect();
        if self.assumed_present.load(Ordering::Relaxed) {
            self.missing.fetch_add(all - present, Ordering::AcqRel);
        } else {
            self.missing.fetch_sub(present, Ordering::AcqRel);
        }
        let proved = if trusted { present } else { 0 };
        if self.assumed_proved.load(Ordering::Relaxed) {
            self.unproved.fetch_add(all - proved, Ordering::AcqRel);
        } else {
            self.unproved.fetch_sub(proved, Ordering::AcqRel);
        }
        if present > 0 {
            let bytes = stored + self.overhead(extent);
            self.shared.space.restore(self.unit(extent), self.size, bytes, self.is_used_again());
        }
        Group { gate: RwLock::new(()), slots: Mutex::new(()), blocks, seen: AtomicU32::new(u32::MAX) }
    }

    /// How many bytes these granules of a block take on the disk.
    pub(super) fn stored(&self, block: u32, granules: Granules) -> u64 {
        super::stored(self.size, block, granules)
    }

    /// How many bytes the index of an extent takes on the disk.
    pub(super) fn overhead(&self, extent: u32) -> u64 {
        let tail = if self.is_small() { SLOT_LEN + self.header(&lock(&self.record)).encode().len() + 8 } else { 0 };
        super::overhead(self.size, self.blocks_of(extent).len(), tail)
    }

    /// Counts granules as present and proved. True when that made the object complete.
    pub(super) fn mark(&self, block: &Block, granules: Granules) -> bool {
        let new = Granules(granules.0 & !block.present.fetch_or(granules.0, Ordering::AcqRel));
        self.mark_proved(block, granules);
        let count = u64::from(new.count());
        count > 0 && self.missing.fetch_sub(count, Ordering::AcqRel) == count
    }

    /// Counts granules as proved. True when that was the last of the object.
    pub(super) fn mark_proved(&self, block: &Block, granules: Granules) -> bool {
        let new = Granules(granules.0 & !block.proved.fetch_or(granules.0, Ordering::AcqRel));
        let count = u64::from(new.count());
        count > 0 && self.unproved.fetch_sub(count, Ordering::AcqRel) == count
    }

    /// Counts granules as not there. Returns those that were.
    pub(super) fn unmark(&self, block: &Block, granules: Granules) -> Granules {
        let proved = Granules(block.proved.fetch_and(!granules.0, Ordering::AcqRel) & granules.0);
        self.unproved.fetch_add(u64::from(proved.count()), Ordering::AcqRel);
        let present = Granules(block.present.fetch_and(!granules.0, Ordering::AcqRel) & granules.0);
        self.missing.fetch_add(u64::from(present.count()), Ordering::AcqRel);
        present
    }

    /// Nothing is there any more. `body` is held exclusively.
    fn blank(&self) {
        let granules = self.size.div_ceil(GRANULE);
        self.unproved.store(granules, Ordering::Release);
        self.missing.store(granules, Ordering::Release);
        for group in self.groups.iter().filter_map(OnceLock::get) {
            for block in &group.blocks {
                block.proved.store(0, Ordering::Release);
                block.present.store(0, Ordering::Release);
            }
        }
        for flag in [&self.assumed_present, &self.assumed_proved, &self.trusted, &self.doomed] {
            flag.store(false, Ordering::Release);
        }
        for flag in [&self.used_again, &self.used_again_noted] {
            flag.store(false, Ordering::Relaxed);
        }
        self.whole.store(UNCHECKED, Ordering::Release);
        let mut record = lock(&self.record);
        (record.complete, record.right) = (false, false);
    }

    /// Data before index: should only the first come to pass, the index is of no use and a scan removes it, while data without an
    /// index would stay for ever.
    fn remove_files(&self) {
        let parts: &[Part] = if self.is_small() { &[Part::Small] } else { &[Part::Data, Part::Index] };
        for part in parts {
            if let Err(error) = self.shared.place.remove(self.id, *part) {
                let path = self.shared.place.path_of(self.id, *part);
                warn!(path = %path.display(), %error, "cannot remove a cache file");
            }
        }
    }

    /// Removes the object from the disk if nobody has it pinned and `still` says so. True when it is gone.
    pub(super) fn remove_if(&self, still: impl FnOnce() -> bool) -> bool {
        let mut gone = false;
        let _ = self.change_body(|body| {
            let pins = lock(&self.pins);
            if *pins > 0 || !still() {
                return Ok(());
            }
            self.blank();
            drop(pins);
            // Closed first, so that the space is free when this returns.
            body.files = None;
            if body.state != State::Absent {
                self.remove_files();
            }
            body.state = State::Absent;
            self.shared.space.removed_all(self.id, self.extents());
            gone = true;
            Ok(())
        });
        gone
    }

    /// Drops everything of this object, because it was found wrong. What somebody has pinned is not served from now on and goes with
    /// the last pin.
    pub fn forget(&self) {
        {
            let pins = lock(&self.pins);
            if *pins > 0 {
                self.doomed.store(true, Ordering::Release);
            }
        }
        if !self.doomed.load(Ordering::Acquire) {
            if self.remove_if(|| true) {
                return;
            }
            self.doomed.store(true, Ordering::Release);
        }
        if let Ok(Some(opened)) = self.opened() {
            // No other process may believe it either.
            let _ = self.shared.place.write(&opened.files().index, self.index_part(), &[0; 8], 0);
            for extent in 0..self.extents() {
                for block in &self.group(&opened, extent).blocks {
                    self.unmark(block, Granules(u64::MAX));
                }
            }
        }
        self.whole.store(UNCHECKED, Ordering::Release);
        // The last pin may have gone meanwhile.
        self.remove_if(|| true);
    }

    /// Forgets an extent in memory, unless somebody has the object pinned. The extent's gate is held exclusively.
    pub(super) fn blank_extent(&self, group: &Group) -> bool {
        let pins = lock(&self.pins);
        if *pins > 0 {
            return false;
        }
        for block in &group.blocks {
            self.unmark(block, Granules(u64::MAX));
        }
        true
    }

    /// The object is not complete any more.
    pub(super) fn not_whole(&self, files: &Files) {
        self.whole.store(UNCHECKED, Ordering::Release);
        let mut record = lock(&self.record);
        if record.complete || record.right {
            (record.complete, record.right) = (false, false);
            // Should this fail, the slots still say what is there.
            let _ = self.write_header(files, &record);
        }
    }

    fn set_kind(&self, sum: Option<Sum>) {
        let kind = match sum.map(|sum| sum.kind) {
            None => 0,
            Some(Kind::Xz) => 1,
            Some(Kind::Nvme) => 2,
        };
        self.kind.store(kind, Ordering::Release);
    }

    /// The kind of the store's checksum, if it is known.
    pub(super) fn kind(&self) -> Option<Kind> {
        match self.kind.load(Ordering::Acquire) {
            1 => Some(Kind::Xz),
            2 => Some(Kind::Nvme),
            _ => None,
        }
    }

    /// Notes the whole object's checksum, as an answer of the store told it.
    pub fn learn(&self, checksum: Option<Checksum>) {
        let Some(sum) = checksum.and_then(Sum::of_store) else { return };
        let mut record = lock(&self.record);
        if record.sum != Some(sum) && self.size > 0 {
            record.sum = Some(sum);
            record.right = false;
            self.set_kind(Some(sum));
            self.whole.store(UNCHECKED, Ordering::Release);
            drop(record);
            if let Some(opened) = self.opened_now().filter(|opened| !opened.files().fresh.load(Ordering::Acquire)) {
                // Should this fail, it has to be told again after a restart.
                let _ = self.write_header(opened.files(), &lock(&self.record));
            }
        }
    }

    /// What is known of the object as a whole. Compares checksums when it became complete, or the store's was learnt, since the last
    /// time; that reads the index.
    pub fn whole(&self) -> Whole {
        if !self.complete() {
            return Whole::Incomplete;
        }
        match self.whole.load(Ordering::Acquire) {
            RIGHT => return Whole::Right,
            UNKNOWN => return Whole::Unknown,
            WRONG => return Whole::Wrong,
            _ => {}
        }
        let Ok(Some(opened)) = self.opened() else { return Whole::Incomplete };
        let expected = lock(&self.record).sum;
        let right = match expected {
            None => None,
            Some(expected) => match self.combine(&opened, expected.kind) {
                Some(actual) => Some(actual == expected.value),
                None => return Whole::Incomplete,
            },
        };
        let mut record = lock(&self.record);
        if !self.complete() || record.sum != expected {
            drop(record);
            return if self.complete() { self.whole() } else { Whole::Incomplete };
        }
        let (state, whole) = match right {
            None => (UNKNOWN, Whole::Unknown),
            Some(true) => (RIGHT, Whole::Right),
            Some(false) => (WRONG, Whole::Wrong),
        };
        self.whole.store(state, Ordering::Release);
        (record.complete, record.right) = (whole != Whole::Wrong, whole == Whole::Right);
        // Should this fail, it is found out again after a restart.
        let _ = self.write_header(opened.files(), &record);
        whole
    }

    /// Notes that a small object was written whole, with this result in its header.
    pub(super) fn written_whole(&self, sum: Option<Sum>, actual: Option<Sum>) {
        let mut record = lock(&self.record);
        if record.sum == sum {
            record.complete = true;
            record.right = sum.is_some() && sum == actual;
            let state = match sum {
                None => UNKNOWN,
                Some(_) if record.right => RIGHT,
                Some(_) => WRONG,
            };
            self.whole.store(state, Ordering::Release);
        }
    }

    /// Closes the files unless they were used since the last time this was asked. True when they are closed now.
    pub(super) fn close_if_idle(&self) -> bool {
        if self.used_lately.swap(false, Ordering::Relaxed) {
            return false;
        }
        let Ok(mut body) = self.body.try_write() else { return false };
        // A small object's file that has no index yet would be taken for another's.
        if body.files.as_ref().is_some_and(|files| files.fresh.load(Ordering::Acquire)) {
            return false;
        }
        if body.files.take().is_some() {
            self.shared.descriptors.closed();
        }
        true
    }

    /// Keeps the object from being evicted, forgotten or cleared, and gives its data file; none unless [`Entry::proved`], and none of
    /// small objects, whose index would be seen.
    pub fn pin(self: &Arc<Self>) -> Option<Pin> {
        if self.is_small() {
            return None;
        }
        {
            let mut pins = lock(&self.pins);
            if !self.proved() {
                return None;
            }
            *pins += 1;
        }
        self.shared.space.pinned(self.id, self.size);
        let pinned = Unpin(Arc::clone(self));
        let file = self.shared.place.open_read_only(self.id, Part::Data).ok()??;
        // Who reads the file itself is not seen reading.
        let now = self.opens.load(Ordering::Relaxed);
        for extent in 0..self.extents() {
            match self.known_group(extent) {
                Some(group) if group.seen.swap(now, Ordering::Relaxed) == now => {}
                _ => self.note_use(extent),
            }
        }
        Some(Pin { file, _pinned: pinned })
    }
}

/// A data file that stays as it is while this lives. See [`Entry::pin`].
#[derive(Debug)]
pub struct Pin {
    file: File,
    _pinned: Unpin,
}

impl AsFd for Pin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[derive(Debug)]
struct Unpin(Arc<Entry>);

impl Drop for Unpin {
    fn drop(&mut self) {
        let entry = &self.0;
        let last = {
            let mut pins = lock(&entry.pins);
            *pins -= 1;
            *pins == 0
        };
        entry.shared.space.unpinned(entry.id);
        if last && entry.doomed.load(Ordering::Acquire) {
            entry.remove_if(|| entry.doomed.load(Ordering::Acquire));
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.complete() && self.unproved.load(Ordering::Acquire) == 0 {
            self.shared.space.set_proved(self.id);
        }
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = body.files.take() {
            self.shared.descriptors.closed();
            self.note_on_disk(&files);
        }
        self.shared.gone(self.id);
    }
}

impl Entry {
    /// Writes down that it was used, for the order of eviction after a restart. What cannot be written is only a worse guess.
    fn note_on_disk(&self, files: &Files) {
        if self.is_used_again() && !self.used_again_noted.load(Ordering::Relaxed) {
            let at = if self.is_small() {
                files.index.metadata().map_or(0, |meta| meta.len().saturating_sub(4))
            } else {
                format::USAGE_AT
            };
            if at > self.size || !self.is_small() {
                let _ = self.shared.place.write(&files.index, self.index_part(), &format::USED_AGAIN, at);
            }
        }
        if self.touched.load(Ordering::Relaxed) {
            let now = SystemTime::now();
            let old = files.index.metadata().and_then(|meta| meta.modified()).ok();
            let age = old.and_then(|old| now.duration_since(old).ok()).map_or(0, |age| age.as_secs());
            if age >= NOTE_USE_AFTER {
                let _ = files.index.set_times(std::fs::FileTimes::new().set_modified(now));
            }
        }
    }
}
