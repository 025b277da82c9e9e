//! Memory for bytes under way: counted to the last byte, and used again instead of being asked for anew.
//!
//! Whatever holds bytes of objects (a fetch, the memory tier, a reply, a write to the cache that waits for the disk) holds a
//! share of one budget, which is given back when the last of them lets go. So the limit holds by construction, and whoever
//! finds no room waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::geometry::BLOCK;

/// Idle buffers that are kept, if the budget has room for them. Fresh memory costs a page fault per 4 KiB, which is a sixth of the time
/// of fetching them.
const IDLE: usize = 64;

/// A stretch at least this long gets a whole block's buffer; a shorter one memory of its own size.
const WORTH_A_BLOCK: usize = 768 << 10;

const UNIT: usize = 1024;

/// The budget, and idle buffers.
#[derive(Debug)]
pub struct Buffers {
    permits: Arc<Semaphore>,
    total: usize,
    idle: Arc<Idle>,
}

/// Whole blocks' buffers that nobody uses at present.
#[derive(Debug)]
struct Idle {
    buffers: Mutex<Vec<Box<[u8]>>>,
    permits: Arc<Semaphore>,
}

/// A part of the budget.
#[derive(Debug)]
pub struct Share(OwnedSemaphorePermit);

/// Memory to be filled, and its share of the budget.
#[derive(Debug)]
pub struct Buffer {
    memory: Box<[u8]>,
    len: usize,
    idle: Option<Arc<Idle>>,
    _share: Share,
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

impl Buffers {
    /// A budget of `total` bytes.
    pub fn new(total: usize) -> Self {
        let total =
            (total / UNIT).min(Semaphore::MAX_PERMITS).min(usize::try_from(u32::MAX >> 1).unwrap_or(usize::MAX));
        let permits = Arc::new(Semaphore::new(total));
        let idle = Arc::new(Idle { buffers: Mutex::default(), permits: Arc::clone(&permits) });
        Self { permits, total, idle }
    }

    /// Bytes of the budget in use.
    pub fn used(&self) -> usize {
        (self.total - self.permits.available_permits().min(self.total)) * UNIT
    }

    /// The budget in bytes.
    pub fn total(&self) -> usize {
        self.total * UNIT
    }

    /// A share of `bytes`, if there is as much left.
    pub fn try_share(&self, bytes: usize) -> Option<Share> {
        // Half of a tiny budget has to do for a request that is larger than it.
        let count = units(bytes).min(u32::try_from(self.total / 2).unwrap_or(u32::MAX));
        Arc::clone(&self.permits).try_acquire_many_owned(count).ok().map(Share)
    }

    /// The same, waiting in line until there is.
    pub async fn share(&self, bytes: usize) -> Option<Share> {
        let count = units(bytes).min(u32::try_from(self.total / 2).unwrap_or(u32::MAX));
        Arc::clone(&self.permits).acquire_many_owned(count).await.ok().map(Share)
    }

    /// Memory for `len` bytes, at most a block, out of a share.
    pub fn buffer(&self, len: usize, share: &mut Share) -> Buffer {
        let share = share.part(len);
        let whole = usize::try_from(BLOCK).expect("1 Mi fits");
        if len < WORTH_A_BLOCK {
            self.idle.trim();
            return Buffer { memory: vec![0; len].into(), len, idle: None, _share: share };
        }
        let memory = self.idle.lock().pop();
        let memory = memory.unwrap_or_else(|| vec![0; whole.max(len)].into());
        Buffer { memory, len, idle: Some(Arc::clone(&self.idle)), _share: share }
    }
}

impl Share {
    /// Takes `bytes` off this share, or what is left of it.
    pub fn part(&mut self, bytes: usize) -> Self {
        let count = usize::try_from(units(bytes)).unwrap_or(usize::MAX).min(self.0.num_permits());
        // As many as there are can always be split off.
        Self(self.0.split(count).expect("at most as many as there are"))
    }
}

impl Buffer {
    /// All of it, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }

    /// The filled buffer, to be shared; its memory and its share go back when nobody has it any more.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(idle) = &self.idle else { return };
        idle.lock().push(std::mem::take(&mut self.memory));
        idle.trim();
    }
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Vec<Box<[u8]>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives memory back that the budget has no room for.
    fn trim(&self) {
        let room = self.permits.available_permits() / (usize::try_from(BLOCK).expect("1 Mi fits") / UNIT);
        let mut idle = self.lock();
        while idle.len() > room.min(IDLE) {
            idle.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_given_back_with_the_last_byte() {
        let buffers = Buffers::new(4 << 20);
        let mut share = buffers.try_share(2 << 20).unwrap();
        assert_eq!(buffers.used(), 2 << 20);
        let mut large = buffers.buffer(1 << 20, &mut share);
        large.bytes_mut().fill(7);
        let small = buffers.buffer(10_000, &mut share).freeze();
        drop(share);
        assert_eq!(buffers.used(), (1 << 20) + 10 * 1024);
        let large = large.freeze();
        let part = large.slice(5..6);
        drop(large);
        assert_eq!(buffers.used(), (1 << 20) + 10 * 1024);
        assert_eq!((part[0], small.len()), (7, 10_000));
        drop((part, small));
        assert_eq!(buffers.used(), 0);
        assert_eq!(buffers.idle.lock().len(), 1);
    }

    #[test]
    fn more_than_there_is_gets_half() {
        let buffers = Buffers::new(4 << 20);
        let share = buffers.try_share(100 << 20).unwrap();
        assert_eq!(buffers.used(), 2 << 20);
        let rest = buffers.try_share(3 << 20).unwrap();
        assert_eq!(buffers.used(), 4 << 20);
        assert!(buffers.try_share(1).is_none());
        drop((share, rest));
        assert_eq!(buffers.used(), 0);
    }
}
