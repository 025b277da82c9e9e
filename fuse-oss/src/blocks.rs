//! Bytes of objects, from wherever they are nearest: memory, then disk, then the store.
//!
//! Every mount of a server reads through one [`Blocks`], so that the memory budget is one and the cache is shared. An object
//! is a version of a key in a bucket reached a certain way ([`ObjectId`]); bytes of different versions
//! never meet, so they cannot be mixed whatever happens to the bucket.
//!
//! The chain. *Memory* ([`memory`]) holds what was fetched a moment ago, in pieces, until it was read and written to disk. The
//! *disk* ([`cache`](crate::cache)) holds it for longer, and the kernel's page cache in front of it is a better memory tier than
//! a second copy in this process. A *fetch* (`flight`) is one ranged request for a stretch of an object; its pieces are
//! handed out as they arrive, and while it is under way, everybody else who wants one of them waits for the same fetch. A slow one
//! is raced by a second (`race`). Writing to the disk happens behind the readers' backs (`writer`).
//!
//! One budget ([`buffers`]) counts all of it. A reader whose fetch finds no room waits for what others give back (that is the
//! back-pressure); fetching ahead may use three quarters and is simply not done when they are used up.

pub mod buffers;
mod flight;
pub mod memory;
pub mod object;
mod opened;
mod parts;
pub mod peers;
pub mod plan;
mod race;
mod streaming;
mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tracing::{debug, error, warn};

use crate::cache::{Cache, Kept, Loaded, ObjectId, Pin, Whole};
use crate::fault::Fault;
use crate::geometry::{Granules, by_block, bytes_of, start_of};
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use buffers::{Buffers, Share};
use flight::Flight;
use memory::{BlockId, Claim, Memory, Piece, Purpose};
use object::Object;
use opened::Objects;
pub use parts::Parts;
use parts::scratch;
use plan::{Missing, Stretch};
use streaming::Streaming;
use writer::{Write, Writer};

/// The most that one request asks for, in bytes.
pub const LONGEST: u64 = 8 << 20;

/// An object up to this length is asked for as a whole, in bytes.
pub const SMALL: u64 = 1 << 20;

/// Threads that write to the disk cache.
const WRITERS: usize = 2;

/// How long somebody who waits for memory sleeps before he looks whether something can be dropped.
const LOOK_FOR_MEMORY: Duration = Duration::from_millis(10);

/// Who has to know that content was found wrong which the kernel may have.
pub trait Watcher: std::fmt::Debug + Send + Sync {
    /// Some object as a whole is wrong. Nothing of it has been dropped yet.
    fn found_wrong(&self);
}

/// All bytes of all mounts.
#[derive(Debug)]
pub struct Blocks {
    runtime: Handle,
    memory: Memory,
    buffers: Buffers,
    cache: Option<Arc<Cache>>,
    writer: Writer,
    metrics: Arc<Metrics>,
    objects: Mutex<Objects>,
    /// How often an object as a whole was found to be wrong; empty on a good day.
    wrong: Mutex<HashMap<ObjectId, u64>>,
    watchers: Mutex<Vec<Weak<dyn Watcher>>>,
    streaming: Streaming,
    no_room: Notify,
    disk_trouble: AtomicU64,
    log_limit: LogLimit,
}

impl Blocks {
    /// Bytes within `memory_limit`, with a disk tier where there is one. Fetches run on `runtime`.
    pub fn new(runtime: Handle, memory_limit: usize, cache: Option<Arc<Cache>>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new_cyclic(|blocks: &Weak<Self>| {
            let blocks = Weak::clone(blocks);
            let write = move |write: &Write| {
                if let Some(blocks) = blocks.upgrade() {
                    blocks.keep(write);
                }
            };
            let threads = if cache.is_some() { WRITERS } else { 0 };
            Self {
                runtime,
                memory: Memory::new(Arc::clone(&metrics)),
                buffers: Buffers::new(memory_limit),
                writer: Writer::start(threads, memory_limit / 2, Arc::clone(&metrics), write),
                cache,
                metrics,
                objects: Mutex::new(Objects::none()),
                wrong: Mutex::default(),
                watchers: Mutex::default(),
                streaming: Streaming::default(),
                no_room: Notify::new(),
                disk_trouble: AtomicU64::new(0),
                log_limit: LogLimit::default(),
            }
        })
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The one [`Object`] of this identity.
    pub fn open(&self, object: Object) -> Arc<Object> {
        let id = object.id;
        let known = self.objects().known(id);
        if let Some((known, _)) = known {
            return known;
        }
        // Not under the lock: it may read the disk.
        let object = Arc::new(match &self.cache {
            Some(cache) if !object.passing => object.cached(cache),
            _ => object,
        });
        let (object, _out) = {
            let mut objects = self.objects();
            objects.known(id).unwrap_or_else(|| objects.add(object))
        };
        object
    }

    /// Takes an object off the disk; whoever has it open keeps reading it, from the store.
    pub fn forget(&self, object: &Object) {
        if let Some(entry) = &object.entry {
            entry.forget();
        }
    }

    /// Lets go of objects that nobody has open, so that the cache does not count them as in use.
    pub fn give_up_idle(&self) {
        let warm: Vec<Arc<Object>> = {
            let mut objects = self.objects();
            std::iter::from_fn(|| objects.warm.pop_lru()).map(|(_, object)| object).collect()
        };
        // Not under the lock: the last one to let go of an object writes down that it was used.
        drop(warm);
    }

    /// Bytes of memory in use: held, under way, or waiting for the disk.
    pub fn memory_used(&self) -> u64 {
        u64::try_from(self.buffers.used()).unwrap_or(u64::MAX)
    }

    /// The memory budget in bytes.
    pub fn memory_limit(&self) -> u64 {
        u64::try_from(self.buffers.total()).unwrap_or(u64::MAX)
    }

    /// The disk cache, where there is one.
    pub fn cache(&self) -> Option<&Arc<Cache>> {
        self.cache.as_ref()
    }

    /// How often this object was found to be wrong as a whole. When that has changed since a file was opened before, the kernel's
    /// pages of it are not to be trusted.
    pub fn times_wrong(&self, object: ObjectId) -> u64 {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).get(&object).copied().unwrap_or(0)
    }

    /// The file of a complete and proved object, safe from eviction as long as it is held. The kernel may read it by itself.
    pub fn pin(&self, object: &Object) -> Option<Pin> {
        object.entry.as_ref().filter(|_| !object.is_replaced())?.pin()
    }

    /// Reads what the disk has of a complete object that no process has checked yet since this one started; for a blocking
    /// thread.
    pub fn prove(&self, object: &Object) -> bool {
        let mut buffer = vec![0; 1 << 20];
        by_block(0..object.size)
            .all(|(block, within)| read_back(object, start_of(block), &mut buffer[..within.len()]) == Loaded::Filled)
    }

    /// Checks a stretch of a complete object that somebody is about to read, on a thread of its own: it reads the disk ahead of the reader, who
    /// then finds it checked.
    pub fn prove_ahead(self: &Arc<Self>, object: &Arc<Object>, range: Range<u64>) {
        let object = Arc::clone(object);
        self.runtime.spawn_blocking(move || {
            for (block, within) in by_block(range) {
                let start = start_of(block) + u64::from(within.start);
                // What is missing then is fetched by whoever reads it.
                scratch(within.len(), |buffer| read_back(&object, start, buffer));
            }
        });
    }

    /// Reads `range` from the disk, checking what has not been checked, if all of it is there and right; for a blocking thread.
    pub fn from_disk<T>(&self, object: &Object, range: &Range<u64>, answer: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let len = usize::try_from(range.end - range.start).ok()?;
        scratch(len, |buffer| {
            (read_back(object, range.start, buffer) == Loaded::Filled).then(|| {
                self.metrics.from_disk.record(len);
                answer(buffer)
            })
        })
    }

    /// Hands `answer` the bytes of `range` if they are at hand: in memory, or on disk and checked. Never waits for the network.
    pub fn at_hand<T>(&self, object: &Object, range: &Range<u64>, answer: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let len = usize::try_from(range.end - range.start).ok()?;
        let mut parts = by_block(range.clone());
        let (block, within) = parts.next()?;
        if within.len() == len
            && let Some(bytes) = self.memory.get((object.id, block), &within)
        {
            self.metrics.from_memory.record(len);
            return Some(answer(&bytes));
        }
        scratch(len, |buffer| {
            if object.entry.as_ref().is_some_and(|entry| entry.read_proved(range.start, buffer)) {
                self.metrics.from_disk.record(len);
                return Some(answer(buffer));
            }
            let mut at = 0;
            for (block, within) in by_block(range.clone()) {
                let part = &mut buffer[at..at + within.len()];
                match self.memory.get((object.id, block), &within) {
                    Some(bytes) => part.copy_from_slice(&bytes),
                    None => {
                        let entry = object.entry.as_ref()?;
                        if !entry.read_proved(start_of(block) + u64::from(within.start), part) {
                            return None;
                        }
                    }
                }
                at += within.len();
            }
            self.metrics.from_memory.record(len);
            Some(answer(buffer))
        })
    }

    /// The bytes of `range`, from wherever they are, in parts. What has to be fetched is fetched with all of `along`, which covers
    /// it.
    ///
    /// # Errors
    /// When the store's retries, and ours for broken bodies, are exhausted.
    pub async fn get(
        self: &Arc<Self>,
        object: &Arc<Object>,
        range: Range<u64>,
        along: &Range<u64>,
    ) -> Result<Parts, Fault> {
        let mut parts = Vec::new();
        let mut fetched = false;
        let mut len = 0;
        for (block, within) in by_block(range) {
            len += within.len();
            fetched |= self.get_part(object, block, &within, along, &mut parts).await?;
        }
        if fetched {
            self.metrics.from_store.record(len);
        } else {
            self.metrics.from_disk.record(len);
        }
        Ok(Parts(parts))
    }

    /// The bytes of a part of a block; says whether somebody had to fetch some of them.
    async fn get_part(
        self: &Arc<Self>,
        object: &Arc<Object>,
        block: u32,
        within: &Range<u32>,
        along: &Range<u64>,
        out: &mut Vec<Bytes>,
    ) -> Result<bool, Fault> {
        let id = (object.id, block);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut missing = Granules::touched(within);
        let mut fetched = false;
        loop {
            if pieces.is_empty()
                && let Some(bytes) = self.memory.get(id, within)
            {
                out.push(bytes);
                return Ok(fetched);
            }
            missing = self.memory.collect(id, missing, &mut pieces);
            let on_disk = object.on_disk(block).among(missing);
            if !on_disk.is_empty() {
                for run in on_disk.runs() {
                    if let Some(piece) = self.load(object, block, &run).await? {
                        missing = missing.without(piece.granules());
                        pieces.push(piece);
                    }
                }
                // What was damaged is not there any more.
            }
            if missing.is_empty() {
                break;
            }
            let plan = self.missing(object, LONGEST);
            match self.memory.claim(id, missing, along, &plan, |block| object.on_disk(block)) {
                Claim::LookAgain => tokio::task::yield_now().await,
                Claim::Wait(receiver, stretches) => {
                    self.fetch(object, stretches, within.len()).await;
                    fetched = true;
                    let gone = || Fault::Internal("a fetch ended without an answer".to_owned());
                    let piece = receiver.await.unwrap_or_else(|_| Err(gone()))?;
                    missing = missing.without(piece.granules());
                    pieces.push(piece);
                }
            }
        }
        pieces.sort_unstable_by_key(|piece| piece.first);
        let mut at = within.start;
        for piece in &pieces {
            let have = piece.within();
            if have.end <= at || at >= within.end {
                continue;
            }
            let part = piece.slice(&(at..have.end.min(within.end)));
            out.push(part.ok_or_else(|| Fault::Internal(format!("a gap in block {block} of {}", object.name())))?);
            at = have.end.min(within.end);
        }
        if at < within.end {
            return Err(Fault::Internal(format!("block {block} of {} is too short", object.name())));
        }
        Ok(fetched)
    }

    /// Carries out fetches that somebody waits for.
    async fn fetch(self: &Arc<Self>, object: &Arc<Object>, stretches: Vec<Stretch>, wanted: usize) {
        let mut stretches = stretches.into_iter();
        let single = stretches.len() == 1;
        for stretch in stretches.by_ref() {
            let small = stretch.range.end - stretch.range.start <= u64::try_from(wanted.max(128 << 10)).unwrap_or(0);
            let flight = Flight::new(self, object, stretch, Purpose::Read);
            if single && small {
                // The one who waits does it himself: a task less to wake. How it ends, he hears with everybody else.
                let _ = flight.run(None).await;
            } else {
                self.runtime.spawn(flight.run(None));
            }
        }
    }

    fn missing(&self, object: &Object, longest: u64) -> Missing {
        // Bringing along what lies between costs less than another request as long as it is about what the request's
        // latency could have carried.
        Missing { size: object.size, gap: (16 * object.origin.peers.unit()).min(1 << 20), longest }
    }

    /// Begins to fetch what is missing of `range`, in requests of `longest` bytes, as far as there is memory for it.
    pub fn ahead(self: &Arc<Self>, object: &Arc<Object>, range: &Range<u64>, longest: u64) {
        let mut at = range.start;
        let end = range.end.min(object.size);
        while at < end && !object.is_replaced() {
            let part = at..(at + longest).min(end);
            at = part.end;
            let len = flight::memory(&part);
            // What somebody waits for must always find room.
            let ceiling = self.buffers.total() / 4 * 3;
            let over = (self.buffers.used() + len).saturating_sub(ceiling);
            if over > 0 {
                self.memory.evict(over, false);
                if self.buffers.used() + len > ceiling {
                    return;
                }
            }
            let Some(mut share) = self.buffers.try_share(len) else { return };
            let plan = self.missing(object, longest);
            for stretch in self.memory.claim_ahead(object.id, &part, &plan, |block| object.on_disk(block)) {
                let share = share.part(flight::memory(&stretch.range));
                self.runtime.spawn(Flight::new(self, object, stretch, Purpose::Ahead).run(Some(share)));
            }
        }
    }

    /// Fetches everything of an object that is not on the disk, to be found there later. Gives way to readers: it waits while more than a
    /// quarter of the memory is in use.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn warm(self: &Arc<Self>, object: &Arc<Object>) -> Result<(), Fault> {
        let mut at = 0;
        while at < object.size && !object.is_replaced() {
            let part = at..(at + LONGEST).min(object.size);
            at = part.end;
            while self.buffers.used() > self.buffers.total() / 4 {
                tokio::time::sleep(LOOK_FOR_MEMORY).await;
            }
            let plan = self.missing(object, LONGEST);
            let stretches = self.memory.claim_ahead(object.id, &part, &plan, |block| object.on_disk(block));
            // In tasks of their own: what was claimed has to be fetched even if this is given up, because others may wait for it.
            let begin = |stretch| self.runtime.spawn(Flight::new(self, object, stretch, Purpose::Warm).run(None));
            let flights: Vec<_> = stretches.into_iter().map(begin).collect();
            for flight in flights {
                flight.await.map_err(|error| Fault::Internal(error.to_string()))??;
            }
        }
        Ok(())
    }

    /// Whether the beginning of an object is in memory.
    pub fn has_begun(&self, object: &Object) -> bool {
        self.memory.has((object.id, 0), Granules::numbered(0..1))
    }

    /// The most that one reader may have ahead of it, in bytes: its share of three quarters of the memory. `second` is when
    /// the reader asked last, kept by it.
    pub fn max_ahead(&self, second: &AtomicU64) -> u64 {
        let readers = self.streaming.count(second, unix_seconds());
        u64::try_from(self.buffers.total() / 4 * 3 / readers).unwrap_or(u64::MAX)
    }

    /// Memory for a fetch that somebody waits for: what was read already is dropped for it, then what waits for the disk, then what
    /// was fetched ahead; and when all is in use, it waits.
    async fn reserve(&self, bytes: usize) -> Option<Share> {
        loop {
            if let Some(share) = self.buffers.try_share(bytes) {
                return Some(share);
            }
            if self.memory.evict(bytes, false) == 0 && self.writer.give_up(bytes) == 0 {
                self.memory.evict(bytes, true);
            }
            if let Some(share) = self.buffers.try_share(bytes) {
                return Some(share);
            }
            if let Ok(share) = tokio::time::timeout(LOOK_FOR_MEMORY, self.buffers.share(bytes)).await {
                return share;
            }
        }
    }

    /// Reads granules of a block back from the disk; none when they are not there any more or are damaged.
    async fn load(
        self: &Arc<Self>,
        object: &Arc<Object>,
        block: u32,
        run: &Range<u32>,
    ) -> Result<Option<Piece>, Fault> {
        let range = bytes_of(object.size, block, run);
        let len = usize::try_from(range.end - range.start).unwrap_or(0);
        let Some(mut share) = self.reserve(len).await else { return Ok(None) };
        let mut buffer = self.buffers.buffer(len, &mut share);
        let (first, loading) = (run.start, Arc::clone(object));
        let loaded = self.runtime.spawn_blocking(move || {
            let loaded = read_back(&loading, range.start, buffer.bytes_mut());
            (loaded, buffer)
        });
        let (loaded, buffer) = loaded.await.map_err(|error| Fault::Internal(error.to_string()))?;
        Ok((loaded == Loaded::Filled).then(|| Piece { first, bytes: buffer.freeze() }))
    }

    /// Writes a piece to the disk cache and does what follows from it.
    fn keep(self: &Arc<Self>, write: &Write) {
        let Write { object, block, piece } = write;
        let Some(entry) = &object.entry else { return };
        let id: BlockId = (object.id, *block);
        match entry.keep(start_of(*block) + u64::from(piece.within().start), &piece.bytes) {
            Ok(Kept::Stored | Kept::Already) => self.memory.kept(id, piece.granules()),
            Ok(Kept::NoRoom) => self.no_room.notify_one(),
            Ok(Kept::Completed(whole)) => {
                self.memory.kept(id, piece.granules());
                self.completed(object, whole);
            }
            Err(error) => self.report_disk(&error),
        }
    }

    /// The last piece of an object is on the disk.
    fn completed(self: &Arc<Self>, object: &Arc<Object>, whole: Whole) {
        match whole {
            Whole::Incomplete => {}
            Whole::Right => debug!(object = object.name(), "complete in the cache, checksum right"),
            Whole::Wrong => self.found_wrong(object),
            // A store that tells the checksum of the whole does so when asked about the whole.
            Whole::Unknown if object.size > SMALL => {
                let (blocks, object) = (Arc::clone(self), Arc::clone(object));
                self.runtime.spawn(async move {
                    let Ok(meta) = object.origin.store.head(&object.key).await else { return };
                    if meta.etag != object.etag || meta.size != object.size {
                        return;
                    }
                    if let (Some(entry), Some(_)) = (&object.entry, meta.checksum) {
                        entry.learn(meta.checksum);
                        if entry.whole() == Whole::Wrong {
                            blocks.found_wrong(&object);
                        }
                    }
                });
            }
            Whole::Unknown => debug!(object = object.name(), "complete in the cache"),
        }
    }

    /// Tells somebody from now on, as long as he lives, of content that is found wrong.
    pub fn watch(&self, watcher: &Arc<dyn Watcher>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(Arc::downgrade(watcher));
    }

    fn found_wrong(&self, object: &Object) {
        self.metrics.corrupt.one();
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for watcher in watchers.iter().filter_map(Weak::upgrade) {
            watcher.found_wrong();
        }
        error!(
            object = object.name(),
            "the checksum of the whole object is not the one its store keeps: bytes were changed on the way or in the \
             store. All of it is dropped and fetched again; what was read before may have been wrong"
        );
        *self.wrong.lock().unwrap_or_else(PoisonError::into_inner).entry(object.id).or_default() += 1;
        self.memory.forget(object.id);
        if let Some(entry) = &object.entry {
            entry.forget();
        }
    }

    /// Tells when something could not be cached because nothing could be put out for it: whoever holds [`Pin`]s he does not need should
    /// let go of them.
    pub async fn no_room(&self) {
        self.no_room.notified().await;
    }

    /// Whether something of an object is about to be written to the disk.
    pub fn is_being_kept(&self, object: &Object) -> bool {
        object.entry.is_some() && self.writer.has(object.id)
    }

    /// Waits until nothing of an object is about to be written, at most this long.
    pub async fn until_kept(&self, object: &Object, at_most: Duration) {
        let until = tokio::time::Instant::now() + at_most;
        while self.is_being_kept(object) && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until everything fetched is on the disk, at most this long; for an orderly end.
    pub async fn settle(&self, at_most: Duration) {
        let settled = async {
            while !self.writer.is_idle() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let _ = tokio::time::timeout(at_most, settled).await;
    }

    /// Says that the cache disk fails, once a minute.
    fn report_disk(&self, error: &std::io::Error) {
        let now = unix_seconds();
        let last = self.disk_trouble.load(Ordering::Relaxed);
        if now >= last + 60
            && self.disk_trouble.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            warn!(%error, "the cache directory cannot be written; reads go to the store until it can");
        }
    }
}

/// Reads from the disk cache, checking what this process has not checked before.
fn read_back(object: &Object, offset: u64, buffer: &mut [u8]) -> Loaded {
    let loaded = object.entry.as_ref().map_or(Loaded::Absent, |entry| entry.load(offset, buffer));
    if loaded == Loaded::Damaged {
        warn!(object = object.name(), offset, "a piece was damaged on the disk; it is fetched again");
    }
    loaded
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
