//! The memory tier and the list of fetches under way, under one lock, so that between "not in memory" and "I fetch it" nobody
//! else can begin the same fetch.
//!
//! What arrives is kept as *pieces*: stretches of granules of one block, as they came. A piece that was read to its end and that
//! the disk has is dropped at once, so that a stream through the mount keeps using the same little memory. When room is
//! needed, what was read goes before what was fetched ahead and still waits for its reader.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::oneshot;

use super::plan::{Missing, Stretch, stretches};
use crate::cache::ObjectId;
use crate::fault::Fault;
use crate::geometry::{GRANULE, Granules, by_block};
use crate::metrics::Metrics;

/// A block of an object.
pub type BlockId = (ObjectId, u32);

/// Granules of one block with their bytes.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The number of the first granule.
    pub first: u32,
    /// The bytes from there on.
    pub bytes: Bytes,
}

impl Piece {
    /// Which granules these are.
    pub fn granules(&self) -> Granules {
        Granules::touched(&self.within())
    }

    /// Which bytes of the block.
    pub fn within(&self) -> Range<u32> {
        let start = self.first * u32::try_from(GRANULE).expect("16 Ki fits");
        start..start + u32::try_from(self.bytes.len()).expect("a piece is at most a block")
    }

    /// Some of the bytes, by their place in the block; none when they are not all here.
    pub fn slice(&self, wanted: &Range<u32>) -> Option<Bytes> {
        let have = self.within();
        let from = usize::try_from(wanted.start.checked_sub(have.start)?).ok()?;
        (wanted.end <= have.end).then(|| self.bytes.slice(from..from + wanted.len()))
    }
}

/// What bytes are fetched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Somebody waits for them.
    Read,
    /// Somebody is expected to want them soon.
    Ahead,
    /// They are to be on the disk.
    Warm,
}

/// What somebody who waits for a piece gets.
pub type Outcome = Result<Piece, Fault>;

/// How bytes that were not at hand can be had.
#[derive(Debug)]
pub enum Claim {
    /// Something has changed meanwhile; look again.
    LookAgain,
    /// The next piece that meets what is wanted comes here. The stretches are for the caller to fetch; there are none when
    /// everything wanted is under way already.
    Wait(oneshot::Receiver<Outcome>, Vec<Stretch>),
}

/// What has been fetched lately, and what is being fetched.
#[derive(Debug)]
pub struct Memory {
    inner: Mutex<Inner>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Inner {
    /// Blocks with pieces that nobody has read to the end yet.
    unread: LruCache<BlockId, Vec<Held>>,
    /// Blocks of which everything was read.
    read: LruCache<BlockId, Vec<Held>>,
    flying: HashMap<BlockId, Flying>,
}

#[derive(Debug)]
struct Held {
    piece: Piece,
    /// It was fetched before somebody asked, and nobody has since.
    ahead: bool,
    /// Somebody has read its last byte.
    read: bool,
    /// The disk has it.
    kept: bool,
}

#[derive(Debug, Default)]
struct Flying {
    granules: Granules,
    waiters: Vec<(Granules, oneshot::Sender<Outcome>)>,
}

impl Memory {
    /// An empty one.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let inner = Inner { unread: LruCache::unbounded(), read: LruCache::unbounded(), flying: HashMap::new() };
        Self { inner: Mutex::new(inner), metrics }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These bytes of a block, if one piece has them all.
    pub fn get(&self, id: BlockId, wanted: &Range<u32>) -> Option<Bytes> {
        self.inner().read(id, wanted)
    }

    /// Takes what there is of `missing` and adds it to `parts`; returns what is still missing then.
    pub fn collect(&self, id: BlockId, missing: Granules, parts: &mut Vec<Piece>) -> Granules {
        let mut inner = self.inner();
        let mut left = missing;
        for held in inner.held(id) {
            if held.piece.granules().meets(left) {
                left = left.without(held.piece.granules());
                held.ahead = false;
                parts.push(held.piece.clone());
            }
        }
        if left != missing {
            let end = parts.iter().map(|piece| piece.within().end).max().unwrap_or(0);
            inner.note_read(id, end);
        }
        left
    }

    /// A place in the queue for `wanted` granules of a block, and the duty to fetch what nobody has or fetches yet: of `wanted`,
    /// and of the bytes `along` that should come along (`on_disk` says what the disk has of a block).
    pub fn claim(
        &self,
        id: BlockId,
        wanted: Granules,
        along: &Range<u64>,
        missing: &Missing,
        on_disk: impl Fn(u32) -> Granules,
    ) -> Claim {
        let mut inner = self.inner();
        let have = inner.in_memory(id);
        if have.meets(wanted) || on_disk(id.1).meets(wanted) {
            return Claim::LookAgain;
        }
        let stretches = inner.claim(id.0, along, missing, on_disk);
        let Some(flying) = inner.flying.get_mut(&id).filter(|flying| flying.granules.meets(wanted)) else {
            // It got to the disk between the two looks. What was claimed along with it is given back, or nobody would ever fetch it.
            for (block, granules) in stretches.into_iter().flat_map(|stretch| stretch.claimed) {
                inner.landed((id.0, block), granules);
            }
            return Claim::LookAgain;
        };
        let (sender, receiver) = oneshot::channel();
        flying.waiters.push((wanted, sender));
        Claim::Wait(receiver, stretches)
    }

    /// Like [`Memory::claim`] when nobody waits for the bytes yet.
    pub fn claim_ahead(
        &self,
        object: ObjectId,
        along: &Range<u64>,
        missing: &Missing,
        on_disk: impl Fn(u32) -> Granules,
    ) -> Vec<Stretch> {
        self.inner().claim(object, along, missing, on_disk)
    }

    /// Ends the fetch of a piece that came: keeps it and tells everybody who waits for it.
    pub fn deliver(&self, id: BlockId, piece: Piece, purpose: Purpose) {
        let granules = piece.granules();
        let waiters = {
            let mut inner = self.inner();
            let waiters = inner.landed(id, granules);
            // The last granule is what counts as reading to the end.
            let last = Granules(1 << (63 - granules.0.leading_zeros()));
            let read = purpose == Purpose::Warm || waiters.iter().any(|(wanted, _)| wanted.meets(last));
            let ahead = purpose == Purpose::Ahead && waiters.is_empty();
            inner.put(id, Held { piece: piece.clone(), ahead, read, kept: false });
            waiters
        };
        for (_, waiter) in waiters {
            // Whoever stopped waiting needs no answer.
            let _ = waiter.send(Ok(piece.clone()));
        }
    }

    /// Ends the fetch of granules that did not come.
    pub fn fail(&self, id: BlockId, granules: Granules, fault: &Fault) {
        let waiters = self.inner().landed(id, granules);
        for (_, waiter) in waiters {
            let _ = waiter.send(Err(fault.clone()));
        }
    }

    /// Notes that the disk has a piece now: what was read of it need not be in memory any more.
    pub fn kept(&self, id: BlockId, granules: Granules) {
        let mut inner = self.inner();
        for held in inner.held(id) {
            held.kept |= granules.has(held.piece.granules());
        }
        inner.sort(id);
    }

    /// Drops at least `bytes`, if there are as many: what was read first; with `unread`, also what was fetched ahead. Says
    /// how many were dropped.
    pub fn evict(&self, bytes: usize, unread: bool) -> usize {
        let mut dropped: Vec<Vec<Held>> = Vec::new();
        let mut freed = 0;
        {
            let mut inner = self.inner();
            while freed < bytes {
                let next = inner.read.pop_lru();
                let next = if next.is_none() && unread { inner.unread.pop_lru() } else { next };
                let Some((_, held)) = next else { break };
                freed += held.iter().map(|held| held.piece.bytes.len()).sum::<usize>();
                dropped.push(held);
            }
        }
        let wasted = dropped.iter().flatten().filter(|held| held.ahead).map(|held| held.piece.bytes.len());
        self.metrics.ahead_wasted.bytes(wasted.sum());
        freed
    }

    /// Forgets the blocks of an object.
    pub fn forget(&self, object: ObjectId) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        for blocks in [&mut inner.unread, &mut inner.read] {
            let ids: Vec<BlockId> = blocks.iter().map(|(id, _)| *id).filter(|(of, _)| *of == object).collect();
            for id in ids {
                blocks.pop(&id);
            }
        }
    }

    /// Whether all of these granules are in memory.
    pub fn has(&self, id: BlockId, granules: Granules) -> bool {
        self.inner().in_memory(id).has(granules)
    }
}

impl Inner {
    fn held(&mut self, id: BlockId) -> impl Iterator<Item = &mut Held> {
        let unread = self.unread.get_mut(&id).into_iter();
        unread.chain(self.read.get_mut(&id)).flatten()
    }

    fn in_memory(&self, id: BlockId) -> Granules {
        let all = self.unread.peek(&id).into_iter().chain(self.read.peek(&id)).flatten();
        all.fold(Granules::EMPTY, |have, held| have.with(held.piece.granules()))
    }

    fn read(&mut self, id: BlockId, wanted: &Range<u32>) -> Option<Bytes> {
        let bytes = self.held(id).find_map(|held| {
            let bytes = held.piece.slice(wanted)?;
            held.ahead = false;
            Some(bytes)
        })?;
        self.note_read(id, wanted.end);
        Some(bytes)
    }

    /// Notes that everything of a block up to `end` was read by somebody.
    fn note_read(&mut self, id: BlockId, end: u32) {
        let mut changed = false;
        for held in self.held(id) {
            if !held.read && held.piece.within().end <= end {
                held.read = true;
                changed = true;
            }
        }
        if changed {
            self.sort(id);
        }
    }

    /// Puts a block where it belongs after something about its pieces has changed.
    fn sort(&mut self, id: BlockId) {
        let mut pieces = self.unread.pop(&id).unwrap_or_default();
        pieces.extend(self.read.pop(&id).unwrap_or_default());
        pieces.retain(|held| !(held.read && held.kept));
        if pieces.is_empty() {
            return;
        }
        let place = if pieces.iter().all(|held| held.read) { &mut self.read } else { &mut self.unread };
        place.put(id, pieces);
    }

    fn put(&mut self, id: BlockId, held: Held) {
        let mut pieces = self.unread.pop(&id).unwrap_or_default();
        pieces.extend(self.read.pop(&id).unwrap_or_default());
        pieces.push(held);
        let place = if pieces.iter().all(|held| held.read) { &mut self.read } else { &mut self.unread };
        place.put(id, pieces);
    }

    fn claim(
        &mut self,
        object: ObjectId,
        along: &Range<u64>,
        missing: &Missing,
        on_disk: impl Fn(u32) -> Granules,
    ) -> Vec<Stretch> {
        let blocks = by_block(along.clone()).map(|(block, within)| {
            let flying = self.flying.get(&(object, block)).map_or(Granules::EMPTY, |flying| flying.granules);
            let have = self.in_memory((object, block)).with(flying).with(on_disk(block));
            (block, Granules::touched(&within).without(have))
        });
        let stretches = stretches(blocks, missing);
        for (block, granules) in stretches.iter().flat_map(|stretch| &stretch.claimed) {
            let flying = self.flying.entry((object, *block)).or_default();
            flying.granules = flying.granules.with(*granules);
        }
        stretches
    }

    /// Takes granules off the list of what is flying, and whoever waits for one of them.
    fn landed(&mut self, id: BlockId, granules: Granules) -> Vec<(Granules, oneshot::Sender<Outcome>)> {
        let Some(flying) = self.flying.get_mut(&id) else { return Vec::new() };
        flying.granules = flying.granules.without(granules);
        let waiting = flying.waiters.extract_if(.., |(wanted, _)| wanted.meets(granules)).collect();
        if flying.granules.is_empty() && flying.waiters.is_empty() {
            self.flying.remove(&id);
        }
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::BLOCK;

    const OBJECT: ObjectId = ObjectId([7; 16]);
    const MISSING: Missing = Missing { size: 64 * BLOCK, gap: 0, longest: 8 * BLOCK };

    fn memory() -> Memory {
        Memory::new(Arc::default())
    }

    fn wait(
        memory: &Memory,
        block: u32,
        granules: Range<u32>,
        along: Range<u64>,
    ) -> (oneshot::Receiver<Outcome>, usize) {
        match memory.claim((OBJECT, block), Granules::numbered(granules), &along, &MISSING, |_| Granules::EMPTY) {
            Claim::Wait(receiver, stretches) => (receiver, stretches.len()),
            Claim::LookAgain => panic!("nothing to look at"),
        }
    }

    fn piece(first: u32, granules: usize) -> Piece {
        Piece { first, bytes: vec![7; granules * 16384].into() }
    }

    #[test]
    fn a_stretch_is_fetched_once_and_everybody_gets_it() {
        let memory = memory();
        let (first, fetches) = wait(&memory, 0, 0..1, 0..2 * BLOCK);
        assert_eq!(fetches, 1);
        let (second, fetches) = wait(&memory, 0, 0..4, 0..BLOCK);
        assert_eq!(fetches, 0);
        let (third, fetches) = wait(&memory, 1, 5..6, BLOCK..3 * BLOCK);
        assert_eq!(fetches, 1, "only the third block is missing");
        memory.deliver((OBJECT, 0), piece(0, 64), Purpose::Read);
        memory.fail((OBJECT, 1), Granules::numbered(0..64), &Fault::Internal("gone".into()));
        assert_eq!(first.blocking_recv().unwrap().unwrap().bytes.len(), 1 << 20);
        assert_eq!(second.blocking_recv().unwrap().unwrap().first, 0);
        assert!(third.blocking_recv().unwrap().is_err());
        let again = memory.claim((OBJECT, 0), Granules::numbered(3..4), &(0..BLOCK), &MISSING, |_| Granules::EMPTY);
        assert!(matches!(again, Claim::LookAgain));
        // A failure is not remembered.
        assert_eq!(wait(&memory, 1, 0..1, BLOCK..2 * BLOCK).1, 1);
    }

    #[test]
    fn what_the_disk_has_is_not_fetched() {
        let memory = memory();
        let on_disk = |block| if block == 1 { Granules::numbered(0..64) } else { Granules::EMPTY };
        let stretches = memory.claim_ahead(OBJECT, &(0..3 * BLOCK), &MISSING, on_disk);
        let ranges: Vec<_> = stretches.iter().map(|stretch| stretch.range.clone()).collect();
        assert_eq!(ranges, [0..BLOCK, 2 * BLOCK..3 * BLOCK]);
        assert!(memory.claim_ahead(OBJECT, &(0..3 * BLOCK), &MISSING, on_disk).is_empty());
    }

    #[test]
    fn what_was_read_and_kept_is_dropped_and_what_was_read_goes_first() {
        let memory = memory();
        memory.claim_ahead(OBJECT, &(0..4 * BLOCK), &MISSING, |_| Granules::EMPTY);
        for block in 0..4 {
            memory.deliver((OBJECT, block), piece(0, 64), Purpose::Ahead);
        }
        let end = 1 << 20;
        assert!(memory.get((OBJECT, 0), &(0..100)).is_some(), "not read to its end");
        memory.kept((OBJECT, 0), Granules::numbered(0..64));
        assert!(memory.get((OBJECT, 0), &(100..end)).is_some());
        assert!(memory.get((OBJECT, 0), &(100..end)).is_none(), "read and kept");
        assert!(memory.get((OBJECT, 2), &(0..end)).is_some());
        assert_eq!(memory.evict(1, false), 1 << 20);
        assert!(memory.get((OBJECT, 2), &(0..end)).is_none(), "read goes first");
        assert_eq!(memory.evict(1, false), 0);
        assert_eq!(memory.metrics.ahead_wasted.get(), 0);
        assert_eq!(memory.evict(1, true), 1 << 20);
        assert_eq!(memory.metrics.ahead_wasted.get(), 1 << 20);
        memory.forget(OBJECT);
        assert_eq!(memory.evict(1, true), 0);
    }

    #[test]
    fn what_gets_to_the_disk_meanwhile_leaves_no_claim_behind() {
        let memory = memory();
        let looks = std::cell::Cell::new(0);
        let on_disk = |block| {
            looks.set(looks.get() + 1);
            if block == 0 && looks.get() > 1 { Granules::numbered(0..64) } else { Granules::EMPTY }
        };
        let claim = memory.claim((OBJECT, 0), Granules::numbered(0..1), &(0..3 * BLOCK), &MISSING, on_disk);
        assert!(matches!(claim, Claim::LookAgain));
        // The blocks behind it are still there to be fetched.
        assert_eq!(wait(&memory, 1, 0..1, BLOCK..3 * BLOCK).1, 1);
    }

    #[test]
    fn parts_are_collected_from_pieces() {
        let memory = memory();
        memory.claim_ahead(OBJECT, &(0..BLOCK), &MISSING, |_| Granules::EMPTY);
        memory.deliver((OBJECT, 0), piece(2, 3), Purpose::Ahead);
        memory.deliver((OBJECT, 0), piece(8, 1), Purpose::Ahead);
        let mut parts = Vec::new();
        let left = memory.collect((OBJECT, 0), Granules::numbered(0..10), &mut parts);
        assert_eq!(left, Granules::numbered(0..2).with(Granules::numbered(5..8)).with(Granules::numbered(9..10)));
        assert_eq!(parts.len(), 2);
        assert!(memory.has((OBJECT, 0), Granules::numbered(8..9)));
        assert!(!memory.has((OBJECT, 0), Granules::numbered(8..10)));
    }
}
