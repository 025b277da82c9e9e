//! The memory tier and the list of fetches under way, under one lock, so that between "not in memory" and "I fetch it" nobody
//! else can begin the same fetch.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::oneshot;

use super::object::ObjectId;
use crate::fault::Fault;

/// A block of an object.
pub type BlockId = (ObjectId, u32);

/// What somebody who waits for a block gets.
pub type Outcome = Result<Bytes, Fault>;

/// How a block can be had.
#[derive(Debug)]
pub enum Claim {
    /// Here it is.
    Have(Bytes),
    /// Somebody fetches it already.
    Wait(oneshot::Receiver<Outcome>),
    /// The caller has to fetch this many blocks from here on.
    Fetch(u32, oneshot::Receiver<Outcome>),
}

/// Recently fetched blocks, and fetches under way.
#[derive(Debug)]
pub struct Memory {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    blocks: LruCache<BlockId, Bytes>,
    bytes: usize,
    flights: HashMap<BlockId, Vec<oneshot::Sender<Outcome>>>,
}

impl Memory {
    /// Keeps at most `limit` bytes of blocks.
    pub fn new(limit: usize) -> Self {
        let inner = Inner { blocks: LruCache::unbounded(), bytes: 0, flights: HashMap::new() };
        Self { limit, inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.inner().bytes
    }

    /// The block, if it is in memory.
    pub fn get(&self, id: &BlockId) -> Option<Bytes> {
        self.inner().blocks.get(id).cloned()
    }

    /// The block, or a place in the queue for it, or the duty to fetch it and up to `run` - 1 that follow it, as far as nobody
    /// else has or fetches them (`on_disk` says what the disk has).
    pub fn claim(&self, object: ObjectId, first: u32, run: u32, on_disk: impl Fn(u32) -> bool) -> Claim {
        let mut inner = self.inner();
        if let Some(bytes) = inner.blocks.get(&(object, first)) {
            return Claim::Have(bytes.clone());
        }
        let (sender, receiver) = oneshot::channel();
        if let Some(waiters) = inner.flights.get_mut(&(object, first)) {
            waiters.push(sender);
            return Claim::Wait(receiver);
        }
        inner.flights.insert((object, first), vec![sender]);
        let more = inner.claim_run(object, first + 1, run.saturating_sub(1), on_disk);
        Claim::Fetch(1 + more, receiver)
    }

    /// Like [`Memory::claim`] when nobody waits for the blocks yet: how many from `first` on the caller has to fetch.
    pub fn claim_ahead(&self, object: ObjectId, first: u32, run: u32, on_disk: impl Fn(u32) -> bool) -> u32 {
        self.inner().claim_run(object, first, run, on_disk)
    }

    /// Ends the fetch of a block: keeps it, if it came, and tells everybody who waits.
    pub fn deliver(&self, id: BlockId, outcome: &Outcome) {
        let waiters = {
            let mut inner = self.inner();
            if let Ok(bytes) = outcome {
                inner.put(id, bytes.clone(), self.limit);
            }
            inner.flights.remove(&id)
        };
        for waiter in waiters.into_iter().flatten() {
            // Whoever stopped waiting needs no answer.
            let _ = waiter.send(outcome.clone());
        }
    }

    /// Forgets the blocks of an object.
    pub fn forget(&self, object: ObjectId, blocks: u32) {
        let mut inner = self.inner();
        let held = u32::try_from(inner.blocks.len()).unwrap_or(u32::MAX);
        let ids: Vec<BlockId> = if blocks <= held {
            (0..blocks).map(|block| (object, block)).collect()
        } else {
            inner.blocks.iter().map(|(id, _)| *id).filter(|(of, _)| *of == object).collect()
        };
        for id in ids {
            if let Some(bytes) = inner.blocks.pop(&id) {
                inner.bytes -= bytes.len();
            }
        }
    }
}

impl Inner {
    fn claim_run(&mut self, object: ObjectId, first: u32, run: u32, on_disk: impl Fn(u32) -> bool) -> u32 {
        for offset in 0..run {
            let id = (object, first + offset);
            if self.blocks.contains(&id) || self.flights.contains_key(&id) || on_disk(first + offset) {
                return offset;
            }
            self.flights.insert(id, Vec::new());
        }
        run
    }

    fn put(&mut self, id: BlockId, bytes: Bytes, limit: usize) {
        self.bytes += bytes.len();
        if let Some(old) = self.blocks.put(id, bytes) {
            self.bytes -= old.len();
        }
        while self.bytes > limit {
            let Some((_, old)) = self.blocks.pop_lru() else { break };
            self.bytes -= old.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: ObjectId = ObjectId([7; 16]);

    fn fetched(memory: &Memory, first: u32, run: u32) -> u32 {
        match memory.claim(OBJECT, first, run, |_| false) {
            Claim::Fetch(count, _) => count,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_block_is_fetched_once_and_everybody_gets_it() {
        let memory = Memory::new(1 << 20);
        let Claim::Fetch(2, first) = memory.claim(OBJECT, 0, 2, |_| false) else { panic!("not ours to fetch") };
        let Claim::Wait(second) = memory.claim(OBJECT, 0, 1, |_| false) else { panic!("fetched twice") };
        let Claim::Wait(ahead) = memory.claim(OBJECT, 1, 4, |_| false) else { panic!("fetched twice") };
        memory.deliver((OBJECT, 0), &Ok(Bytes::from_static(b"zero")));
        memory.deliver((OBJECT, 1), &Err(Fault::Internal("gone".into())));
        assert_eq!(first.blocking_recv().unwrap().unwrap(), "zero");
        assert_eq!(second.blocking_recv().unwrap().unwrap(), "zero");
        assert!(ahead.blocking_recv().unwrap().is_err());
        assert!(matches!(memory.claim(OBJECT, 0, 1, |_| false), Claim::Have(bytes) if bytes == "zero"));
        // A failure is not remembered.
        assert_eq!(fetched(&memory, 1, 1), 1);
    }

    #[test]
    fn a_run_ends_where_somebody_has_a_block() {
        let memory = Memory::new(1 << 20);
        assert_eq!(memory.claim_ahead(OBJECT, 5, 1, |_| false), 1);
        assert_eq!(fetched(&memory, 3, 8), 2);
        assert_eq!(memory.claim_ahead(OBJECT, 6, 8, |block| block == 9), 3);
        assert_eq!(memory.claim_ahead(OBJECT, 6, 8, |_| false), 0);
    }

    #[test]
    fn memory_stays_within_its_limit() {
        let memory = Memory::new(10);
        for block in 0..5 {
            memory.deliver((OBJECT, block), &Ok(Bytes::from_static(b"four")));
        }
        assert_eq!(memory.used(), 8);
        assert!(memory.get(&(OBJECT, 4)).is_some() && memory.get(&(OBJECT, 2)).is_none());
        memory.forget(OBJECT, 5);
        assert_eq!(memory.used(), 0);
    }
}
