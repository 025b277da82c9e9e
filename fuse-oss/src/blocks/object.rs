//! One version of one object, and what the disk cache holds of it.
//!
//! Two locks, in this order. `files` is held shared by everybody who reads or writes the cache file and exclusively by whoever
//! empties it, so that nobody reads the hole that eviction leaves. `slots` says which blocks are there and is only ever
//! held for a moment.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use oss::{Checksum, ETag, Key};
use sha2::{Digest, Sha256};

use super::index::{self, BLOCK, Header, Sums};
use crate::namespace::Origin;

/// What tells a version of an object from everything else there is: half a SHA-256 over store, key, version and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectId(pub [u8; 16]);

/// An object as it was when a mount first saw it.
#[derive(Debug)]
pub struct Object {
    /// Its identity.
    pub id: ObjectId,
    /// Where it is.
    pub origin: Arc<Origin>,
    /// Its key.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// Its version.
    pub etag: Option<ETag>,
    /// When it was written.
    pub modified: Option<SystemTime>,
    files: RwLock<Option<CacheFiles>>,
    slots: Mutex<Slots>,
    replaced: AtomicBool,
    complained: AtomicU64,
}

/// The two files that the cache keeps for an object.
#[derive(Debug)]
pub struct CacheFiles {
    /// As long as the object, with holes where blocks are missing.
    pub data: File,
    /// See [`index`].
    pub index: File,
}

#[derive(Debug, Default)]
struct Slots {
    table: Vec<Slot>,
    present: usize,
    /// The whole object's checksum, once the store has told it.
    checksum: Option<Checksum>,
    verified: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Slot {
    #[default]
    Absent,
    /// Recorded; not read back since this process started.
    Recorded(Sums),
    /// Read back and found right.
    Checked(Sums),
}

/// What reading a block back from the disk gave.
#[derive(Debug)]
pub enum Loaded {
    /// The block.
    Block(Bytes),
    /// It is not there.
    Absent,
    /// It was there and wrong; it is forgotten now.
    Corrupt,
}

/// What became of the whole object when its last block arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// Blocks are missing, or the store keeps no checksum that can be put together from blocks, or it was checked before.
    NotChecked,
    /// All is there and the checksum is right.
    Right,
    /// All is there and the checksum is wrong.
    Wrong,
}

impl Object {
    /// An object that nothing is cached of; [`Object::attach`] adds the disk cache.
    pub fn new(
        origin: Arc<Origin>,
        key: Key,
        size: u64,
        etag: Option<ETag>,
        modified: Option<SystemTime>,
        salt: u64,
    ) -> Self {
        let id = identify(&origin.identity, &key, size, etag.as_ref(), modified, salt);
        Self {
            id,
            origin,
            key,
            size,
            etag,
            modified,
            files: RwLock::default(),
            slots: Mutex::default(),
            replaced: AtomicBool::new(false),
            complained: AtomicU64::new(0),
        }
    }

    /// Its name for messages.
    pub fn name(&self) -> String {
        self.origin.store.root().with_key(self.key.clone()).escaped()
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> u32 {
        // 4096 TiB at a block of 1 MiB; no store holds such an object.
        u32::try_from(index::block_count(self.size)).unwrap_or(u32::MAX)
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> RwLockReadGuard<'_, Option<CacheFiles>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the store has said that the object is another one now. Says true from then on.
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Notes that the store has another version now; true for the first who does.
    pub fn set_replaced(&self) -> bool {
        !self.replaced.swap(true, Ordering::Relaxed)
    }

    /// Whether a line about this object's trouble is due: not more often than every ten seconds (`now` in seconds).
    pub fn may_complain(&self, now: u64) -> bool {
        let last = self.complained.load(Ordering::Relaxed);
        (last == 0 || now >= last + 10)
            && self.complained.compare_exchange(last, now.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Gives the object its cache files and reads what their index says. A file of another object, version or format is begun
    /// anew.
    ///
    /// # Errors
    /// When the files cannot be read or prepared; the object then works without.
    pub fn attach(&self, files: CacheFiles) -> std::io::Result<()> {
        let mut place = self.files.write().unwrap_or_else(PoisonError::into_inner);
        *self.slots() = self.read_index(&files)?;
        *place = Some(files);
        Ok(())
    }

    fn read_index(&self, files: &CacheFiles) -> std::io::Result<Slots> {
        let count = usize::try_from(self.blocks()).unwrap_or(usize::MAX);
        let mut slots = Slots { table: vec![Slot::Absent; count], ..Slots::default() };
        let mut bytes = vec![0; index::HEADER_LEN + count * index::SLOT_LEN];
        let read = read_up_to(&files.index, &mut bytes)?;
        let header = Header::decode(&bytes[..read]);
        let ours = header.filter(|header| header.digest == self.id.0 && header.size == self.size);
        if let Some(header) = ours
            && files.data.metadata()?.len() == self.size
        {
            let stored = bytes[index::HEADER_LEN..read.max(index::HEADER_LEN)].chunks_exact(index::SLOT_LEN);
            for ((slot, bytes), number) in slots.table.iter_mut().zip(stored).zip(0..) {
                if let Some(sums) = index::decode_slot(&self.id.0, number, bytes) {
                    *slot = Slot::Recorded(sums);
                    slots.present += 1;
                }
            }
            slots.verified = header.verified && slots.present == count;
            return Ok(slots);
        }
        files.index.set_len(0)?;
        files.data.set_len(0)?;
        files.data.set_len(self.size)?;
        files.index.write_all_at(&self.header(false), 0)?;
        Ok(slots)
    }

    fn header(&self, verified: bool) -> [u8; index::HEADER_LEN] {
        Header { digest: self.id.0, size: self.size, verified }.encode()
    }

    /// Whether the disk cache claims to have a block.
    pub fn has(&self, block: u32) -> bool {
        let at = usize::try_from(block).unwrap_or(usize::MAX);
        self.slots().table.get(at).is_some_and(|slot| *slot != Slot::Absent)
    }

    /// Whether the disk cache has every block.
    pub fn is_complete(&self) -> bool {
        let slots = self.slots();
        slots.present == slots.table.len() && (self.size == 0 || !slots.table.is_empty())
    }

    /// Fills `buffer` from the disk cache, if all blocks it touches are there and were read back before. The quick way.
    pub fn read_checked(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let files = self.files();
        let Some(files) = &*files else { return false };
        {
            let slots = self.slots();
            let end = offset + u64::try_from(buffer.len()).unwrap_or(u64::MAX);
            let first = usize::try_from(offset / BLOCK).unwrap_or(usize::MAX);
            let last = usize::try_from(end.saturating_sub(1) / BLOCK).unwrap_or(usize::MAX);
            let checked = |slot: &Slot| matches!(slot, Slot::Checked(_));
            if !slots.table.get(first..=last).is_some_and(|range| range.iter().all(checked)) {
                return false;
            }
        }
        files.data.read_exact_at(buffer, offset).is_ok()
    }

    /// Reads a block back from the disk cache and checks it.
    pub fn load(&self, block: u32) -> Loaded {
        let files = self.files();
        let Some(files) = &*files else { return Loaded::Absent };
        let at = usize::try_from(block).unwrap_or(usize::MAX);
        let (sums, checked) = match self.slots().table.get(at) {
            Some(Slot::Recorded(sums)) => (*sums, false),
            Some(Slot::Checked(sums)) => (*sums, true),
            _ => return Loaded::Absent,
        };
        let mut bytes = BytesMut::zeroed(index::block_len(self.size, block));
        let read = files.data.read_exact_at(&mut bytes, u64::from(block) * BLOCK);
        if read.is_ok() && (checked || Sums::of(&bytes) == sums) {
            if let Some(slot) = self.slots().table.get_mut(at)
                && *slot == Slot::Recorded(sums)
            {
                *slot = Slot::Checked(sums);
            }
            return Loaded::Block(bytes.freeze());
        }
        let mut slots = self.slots();
        if let Some(slot) = slots.table.get_mut(at)
            && *slot != Slot::Absent
        {
            *slot = Slot::Absent;
            slots.present -= 1;
            slots.verified = false;
        }
        drop(slots);
        // Should this fail, the block's checksum will be as wrong the next time.
        let _ = files.index.write_all_at(&[0; index::SLOT_LEN], index::slot_offset(block));
        Loaded::Corrupt
    }

    /// Puts a block into the disk cache. `Ok(false)` when there is none or it has the block already.
    ///
    /// # Errors
    /// When the disk refuses; the block is then simply not cached.
    pub fn keep(&self, block: u32, bytes: &[u8]) -> std::io::Result<bool> {
        let files = self.files();
        let Some(files) = &*files else { return Ok(false) };
        if self.has(block) {
            return Ok(false);
        }
        let sums = Sums::of(bytes);
        files.data.write_all_at(bytes, u64::from(block) * BLOCK)?;
        files.index.write_all_at(&index::encode_slot(&self.id.0, block, sums), index::slot_offset(block))?;
        let mut slots = self.slots();
        let at = usize::try_from(block).unwrap_or(usize::MAX);
        if let Some(slot) = slots.table.get_mut(at)
            && *slot == Slot::Absent
        {
            *slot = Slot::Recorded(sums);
            slots.present += 1;
        }
        Ok(true)
    }

    /// Notes the whole object's checksum, as an answer of the store told it.
    pub fn learn(&self, checksum: Option<Checksum>) {
        if checksum.is_some() {
            self.slots().checksum = checksum;
        }
    }

    /// Compares the checksum of the whole, put together from the blocks', with the store's. To be asked after every new block;
    /// it does nothing until the last one is there.
    pub fn check_whole(&self) -> Whole {
        let mut slots = self.slots();
        if slots.verified || slots.table.is_empty() || slots.present < slots.table.len() {
            return Whole::NotChecked;
        }
        let sums = slots.table.iter().map(|slot| match slot {
            Slot::Absent => None,
            Slot::Recorded(sums) | Slot::Checked(sums) => Some(*sums),
        });
        let parts = sums.zip(0..).map(|(sums, number)| {
            let len = u64::try_from(index::block_len(self.size, number)).unwrap_or(0);
            Some((sums?, len))
        });
        let right = match slots.checksum {
            Some(Checksum::Crc64(expected)) => {
                fold(parts, |sums| sums.xz, oss::crc::crc64_combine).map(|actual| actual == expected)
            }
            Some(Checksum::Crc64Nvme(expected)) => {
                fold(parts, |sums| sums.nvme, oss::crc::crc64_nvme_combine).map(|actual| actual == expected)
            }
            Some(Checksum::Md5(_)) | None => None,
        };
        match right {
            Some(true) => {
                slots.verified = true;
                drop(slots);
                if let Some(files) = &*self.files() {
                    // Should this fail, the whole is checked again after a restart.
                    let _ = files.index.write_all_at(&self.header(true), 0);
                }
                Whole::Right
            }
            Some(false) => Whole::Wrong,
            None => Whole::NotChecked,
        }
    }

    /// Forgets every block on the disk and gives their space back.
    pub fn clear(&self) {
        let files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let mut slots = self.slots();
        slots.table.fill(Slot::Absent);
        slots.present = 0;
        slots.verified = false;
        if let Some(files) = &*files {
            // The index goes first: whatever fails, no slot outlives its block. A failure leaves wrong blocks at worst,
            // which their checksums give away.
            let _ = files
                .index
                .set_len(0)
                .and_then(|()| files.index.write_all_at(&self.header(false), 0))
                .and_then(|()| files.data.set_len(0))
                .and_then(|()| files.data.set_len(self.size));
        }
    }
}

fn fold(
    mut parts: impl Iterator<Item = Option<(Sums, u64)>>,
    of: impl Fn(Sums) -> u64,
    combine: impl Fn(u64, u64, u64) -> u64,
) -> Option<u64> {
    let (first, _) = parts.next()??;
    parts.try_fold(of(first), |sum, part| part.map(|(sums, len)| combine(sum, of(sums), len)))
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let offset = u64::try_from(filled).unwrap_or(u64::MAX);
        match file.read_at(&mut buffer[filled..], offset) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// `salt` keeps objects apart that have neither a version nor a time: nothing could tell an old one from a new one.
fn identify(
    identity: &str,
    key: &Key,
    size: u64,
    etag: Option<&ETag>,
    modified: Option<SystemTime>,
    salt: u64,
) -> ObjectId {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(bytes);
    };
    field(identity.as_bytes());
    field(key.as_str().as_bytes());
    field(&size.to_le_bytes());
    match (etag, modified) {
        (Some(etag), _) => field(etag.0.as_bytes()),
        (None, Some(time)) => field(format!("{time:?}").as_bytes()),
        (None, None) => field(&salt.to_le_bytes()),
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    ObjectId(id)
}
