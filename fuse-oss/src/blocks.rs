//! Blocks of objects, from wherever they are nearest: memory, then disk, then the store.
//!
//! Every mount of a server reads through one [`Blocks`], so that the memory budget is one and the cache is shared. An object
//! is a version of a key in a bucket reached a certain way ([`ObjectId`]); blocks of different versions never meet, so
//! bytes of two versions cannot be mixed whatever happens to the bucket.
//!
//! The chain. Memory holds blocks that were fetched a moment ago. The disk holds them for longer, and what is on disk
//! and was checked is read from there directly: the kernel's page cache is a better memory tier than a second copy in this
//! process. A fetch is one ranged request for a run of neighbouring blocks, each handed out as soon as it is complete;
//! while it is under way, everybody else who wants one of its blocks waits for the same fetch.
//!
//! Half of the memory budget is for blocks in memory and half for fetches. A reader whose fetch finds no room waits (that is
//! the back-pressure); read-ahead that finds none is dropped.

pub mod disk;
mod flight;
pub mod index;
pub mod memory;
pub mod object;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lru::LruCache;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, error, warn};

use crate::fault::Fault;
use crate::log_limit::LogLimit;
use disk::Disk;
use flight::Flight;
use index::BLOCK;
use memory::{Claim, Memory, Outcome};
use object::{Loaded, Object, ObjectId, Whole};

/// The most blocks one request asks for.
pub const MAX_RUN: u32 = 8;

/// The most blocks that are fetched ahead of one reader.
const MAX_AHEAD: u32 = 32;

/// Objects whose index stays in memory after the last reader closed them.
const WARM_OBJECTS: usize = 256;

/// All blocks of all mounts.
#[derive(Debug)]
pub struct Blocks {
    runtime: Handle,
    memory: Memory,
    memory_limit: usize,
    /// One permit is one KiB under way.
    budget: Arc<Semaphore>,
    budget_kib: u32,
    disk: Option<Disk>,
    objects: Mutex<Objects>,
    /// How often an object as a whole was found to be wrong; empty on a good day.
    wrong: Mutex<HashMap<ObjectId, u64>>,
    fetched: AtomicU64,
    corrupt: AtomicU64,
    disk_trouble: AtomicU64,
    readers: AtomicUsize,
    log_limit: LogLimit,
}

#[derive(Debug)]
struct Objects {
    open: HashMap<ObjectId, Weak<Object>>,
    warm: LruCache<ObjectId, Arc<Object>>,
    sweep_at: usize,
}

impl Blocks {
    /// Blocks within `memory_limit` bytes, with a disk tier where there is one. Fetches run on `runtime`.
    pub fn new(runtime: Handle, memory_limit: usize, disk: Option<Disk>) -> Self {
        let half = memory_limit / 2;
        let budget_kib = u32::try_from(half / 1024).unwrap_or(u32::MAX).min(u32::MAX >> 3);
        let warm = LruCache::new(std::num::NonZeroUsize::new(WARM_OBJECTS).expect("256 is not zero"));
        Self {
            runtime,
            memory: Memory::new(memory_limit - half),
            memory_limit,
            budget: Arc::new(Semaphore::new(usize::try_from(budget_kib).unwrap_or(Semaphore::MAX_PERMITS))),
            budget_kib,
            disk,
            objects: Mutex::new(Objects { open: HashMap::new(), warm, sweep_at: 2 * WARM_OBJECTS }),
            wrong: Mutex::default(),
            fetched: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            disk_trouble: AtomicU64::new(0),
            readers: AtomicUsize::new(0),
            log_limit: LogLimit::default(),
        }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one [`Object`] of this identity, with its cache files opened.
    pub fn open(&self, object: Object) -> Arc<Object> {
        let mut objects = self.objects();
        let known = objects.open.get(&object.id).and_then(Weak::upgrade);
        let object = known.unwrap_or_else(|| {
            if let Some(disk) = self.disk.as_ref().filter(|_| object.size > 0)
                && let Err(error) = disk.open(object.id).and_then(|files| object.attach(files))
            {
                self.report_disk(&error);
            }
            Arc::new(object)
        });
        objects.open.insert(object.id, Arc::downgrade(&object));
        let id = object.id;
        objects.warm.put(id, Arc::clone(&object));
        // The table of weak references is swept when it has doubled since the last time.
        if objects.open.len() >= objects.sweep_at {
            objects.open.retain(|_, object| object.strong_count() > 0);
            objects.sweep_at = 2 * objects.open.len().max(WARM_OBJECTS);
        }
        object
    }

    /// Bytes of memory in use: blocks held and fetches under way.
    pub fn memory_used(&self) -> u64 {
        let budget = usize::try_from(self.budget_kib).unwrap_or(0);
        let under_way = budget.saturating_sub(self.budget.available_permits()) * 1024;
        u64::try_from(self.memory.used() + under_way).unwrap_or(u64::MAX)
    }

    /// The memory budget in bytes.
    pub fn memory_limit(&self) -> u64 {
        u64::try_from(self.memory_limit).unwrap_or(u64::MAX)
    }

    /// Bytes in the disk cache, and the most there may be.
    pub fn disk_use(&self) -> (u64, u64) {
        self.disk.as_ref().map_or((0, 0), |disk| (disk.used(), disk.limit()))
    }

    /// Bytes fetched from stores so far.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Blocks or objects that were found to be wrong so far.
    pub fn corrupt(&self) -> u64 {
        self.corrupt.load(Ordering::Relaxed)
    }

    /// How often this object was found to be wrong as a whole. When that has changed since a file was opened before, the kernel's
    /// pages of it are not to be trusted.
    pub fn times_wrong(&self, object: ObjectId) -> u64 {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).get(&object).copied().unwrap_or(0)
    }

    /// One more open file, or with `false` one fewer: they share the memory for reading ahead.
    pub fn count_reader(&self, opened: bool) {
        if opened {
            self.readers.fetch_add(1, Ordering::Relaxed);
        } else {
            self.readers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The most blocks that reading ahead may be in front of one reader: its share of a quarter of the memory, so that what was
    /// fetched in advance is still there when its reader comes; none at all when very many files are open.
    pub fn max_ahead(&self) -> u32 {
        let readers = u32::try_from(self.readers.load(Ordering::Relaxed).max(1)).unwrap_or(u32::MAX);
        (self.budget_kib / 2 / u32::try_from(BLOCK / 1024).expect("1024 fits") / readers).min(MAX_AHEAD)
    }

    /// Counts what the disk holds from earlier; for a thread of its own.
    pub fn scan_disk(&self) {
        if let Some(disk) = &self.disk {
            let victims = disk.scan();
            self.evict(disk, &victims);
        }
    }

    /// The block, if it is in memory.
    pub fn in_memory(&self, object: &Object, block: u32) -> Option<Bytes> {
        self.memory.get(&(object.id, block))
    }

    /// The block, from wherever it is; when it has to be fetched, up to `run` blocks are asked for with one request.
    ///
    /// # Errors
    /// When the store's retries, and ours for broken bodies, are exhausted.
    pub async fn get(self: &Arc<Self>, object: &Arc<Object>, block: u32, run: u32) -> Outcome {
        if let Some(bytes) = self.in_memory(object, block) {
            return Ok(bytes);
        }
        if object.has(block)
            && let Some(bytes) = self.load(object, block).await
        {
            return Ok(bytes);
        }
        let run = run.clamp(1, MAX_RUN).min(object.blocks() - block);
        let receiver = match self.memory.claim(object.id, block, run, |block| object.has(block)) {
            Claim::Have(bytes) => return Ok(bytes),
            Claim::Wait(receiver) => receiver,
            Claim::Fetch(count, receiver) => {
                self.spawn(object, block, count, None);
                receiver
            }
        };
        receiver.await.unwrap_or_else(|_| Err(Fault::Internal("a fetch ended without an answer".to_owned())))
    }

    /// Begins to fetch the blocks of `range` that are nowhere near, as far as there is memory for it.
    pub fn ahead(self: &Arc<Self>, object: &Arc<Object>, range: std::ops::Range<u32>) {
        let end = range.end.min(object.blocks());
        let mut next = range.start;
        while next < end {
            let run = MAX_RUN.min(end - next);
            let Ok(permit) = Arc::clone(&self.budget).try_acquire_many_owned(self.kib(run)) else { return };
            let count = self.memory.claim_ahead(object.id, next, run, |block| object.has(block));
            if count == 0 {
                next += 1;
                continue;
            }
            self.spawn(object, next, count, Some(permit));
            next += count;
        }
    }

    fn kib(&self, blocks: u32) -> u32 {
        // A budget smaller than a run still lets one through.
        (blocks * u32::try_from(BLOCK / 1024).expect("1024 fits")).min(self.budget_kib)
    }

    async fn load(self: &Arc<Self>, object: &Arc<Object>, block: u32) -> Option<Bytes> {
        let (blocks, object) = (Arc::clone(self), Arc::clone(object));
        let loaded = self.runtime.spawn_blocking(move || match object.load(block) {
            Loaded::Block(bytes) => Some(bytes),
            Loaded::Absent => None,
            Loaded::Corrupt => {
                blocks.corrupt.fetch_add(1, Ordering::Relaxed);
                warn!(object = object.name(), block, "a cached block was damaged on the disk; it is fetched again");
                None
            }
        });
        loaded.await.ok().flatten()
    }

    fn spawn(self: &Arc<Self>, object: &Arc<Object>, first: u32, count: u32, permit: Option<OwnedSemaphorePermit>) {
        self.runtime.spawn(Flight::new(self, object, first, first + count).run(permit));
    }

    /// Writes a block to the disk cache and does what follows from it.
    fn keep(&self, object: &Object, block: u32, bytes: &[u8]) {
        let Some(disk) = &self.disk else { return };
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if !disk.has_room(len) {
            let victims = disk.grown(object.id, 0);
            self.evict(disk, &victims);
            if !disk.has_room(len) {
                return;
            }
        }
        match object.keep(block, bytes) {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => {
                self.report_disk(&error);
                return;
            }
        }
        let victims = disk.grown(object.id, len.next_multiple_of(4096));
        self.evict(disk, &victims);
        match object.check_whole() {
            Whole::NotChecked => {}
            Whole::Right => debug!(object = object.name(), "complete in the cache, checksum right"),
            Whole::Wrong => {
                self.corrupt.fetch_add(1, Ordering::Relaxed);
                error!(
                    object = object.name(),
                    "the checksum of the whole object is not the one its store keeps: bytes were changed on the way or in the \
                     store. All its blocks are dropped and fetched again; what was read before may have been wrong"
                );
                *self.wrong.lock().unwrap_or_else(PoisonError::into_inner).entry(object.id).or_default() += 1;
                self.memory.forget(object.id, object.blocks());
                object.clear();
                disk.removed(object.id);
            }
        }
    }

    fn evict(&self, disk: &Disk, victims: &[ObjectId]) {
        for &victim in victims {
            // Under this lock, so that nobody opens what is being removed.
            let mut objects = self.objects();
            objects.warm.pop(&victim);
            match objects.open.get(&victim).and_then(Weak::upgrade) {
                Some(open) => {
                    open.clear();
                    disk.removed(victim);
                }
                None => disk.unlink(victim),
            }
        }
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

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::index::block_len;
    use super::*;
    use crate::double::{Content, DoubleStore, made_up};
    use oss::{Checksum, Key, Store};
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    const MIB: usize = 1 << 20;

    fn blocks(dir: Option<&std::path::Path>, limit: u64) -> Arc<Blocks> {
        let disk = dir.map(|dir| Disk::new(dir, limit, 0).unwrap());
        Arc::new(Blocks::new(Handle::current(), 32 * MIB, disk))
    }

    async fn open(blocks: &Blocks, store: &Arc<DoubleStore>, key: &str) -> Arc<Object> {
        let meta = store.head(&Key::new(key)).await.unwrap();
        blocks.open(Object::new(store.origin(), meta.key, meta.size, meta.etag, meta.modified, 0))
    }

    fn expected(block: u32, len: usize) -> Vec<u8> {
        let start = u64::from(block) * BLOCK;
        (start..start + len as u64).map(made_up).collect()
    }

    /// Until everything fetched is on the disk.
    async fn settled(blocks: &Blocks) {
        while blocks.budget.available_permits() < usize::try_from(blocks.budget_kib).unwrap() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn gets(store: &DoubleStore) -> u64 {
        store.knobs.gets.load(Ordering::Relaxed)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_hundred_readers_of_a_block_are_one_request() {
        let store = DoubleStore::new(1000);
        store.put("k", Content::MadeUp(3 * BLOCK + 5));
        store.knobs.delay_ms.store(50, Ordering::Relaxed);
        let blocks = blocks(None, 0);
        let object = open(&blocks, &store, "k").await;
        let readers = (0..100).map(|_| {
            let (blocks, object) = (Arc::clone(&blocks), Arc::clone(&object));
            tokio::spawn(async move { blocks.get(&object, 3, 1).await.unwrap() })
        });
        for reader in readers.collect::<Vec<_>>() {
            assert_eq!(reader.await.unwrap(), expected(3, 5));
        }
        assert_eq!(gets(&store), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_broken_body_goes_on_where_it_stopped() {
        let store = DoubleStore::new(1000);
        store.put("k", Content::MadeUp(8 * BLOCK));
        store.knobs.break_bodies.store(3, Ordering::Relaxed);
        let blocks = blocks(None, 0);
        let object = open(&blocks, &store, "k").await;
        let first = blocks.get(&object, 0, 8).await.unwrap();
        assert_eq!(first, expected(0, MIB));
        assert_eq!(blocks.get(&object, 7, 1).await.unwrap(), expected(7, MIB));
        assert_eq!(gets(&store), 4);
        let fetched = store.knobs.bytes.load(Ordering::Relaxed);
        assert!(fetched < 16 * BLOCK, "{fetched} bytes for 8 MiB: whole blocks were fetched again");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replaced_object_is_an_error_even_if_the_server_ignores_if_match() {
        for ignore in [false, true] {
            let store = DoubleStore::new(1000);
            store.put("k", Content::MadeUp(2 * BLOCK));
            store.knobs.ignore_if_match.store(ignore, Ordering::Relaxed);
            let blocks = blocks(None, 0);
            let object = open(&blocks, &store, "k").await;
            blocks.get(&object, 0, 1).await.unwrap();
            store.put("k", Content::MadeUp(2 * BLOCK));
            let fault = blocks.get(&object, 1, 1).await.unwrap_err();
            assert_eq!(fault.errno_at_read(), libc::ESTALE, "{fault}");
            assert!(object.is_replaced());
            // What is at hand is still the old version, whole.
            assert_eq!(blocks.get(&object, 0, 1).await.unwrap(), expected(0, MIB));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_refusal_is_told_at_once() {
        let store = DoubleStore::new(1000);
        store.put("k", Content::MadeUp(9));
        let blocks = blocks(None, 0);
        let object = open(&blocks, &store, "k").await;
        store.knobs.deny.store(true, Ordering::Relaxed);
        assert_eq!(blocks.get(&object, 0, 1).await.unwrap_err().errno_at_open(), libc::EACCES);
        store.knobs.deny.store(false, Ordering::Relaxed);
        assert_eq!(blocks.get(&object, 0, 1).await.unwrap(), expected(0, 9));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_cache_survives_and_damage_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = DoubleStore::new(1000);
        store.put("k", Content::MadeUp(3 * BLOCK + 100));
        {
            let blocks = blocks(Some(dir.path()), u64::MAX);
            let object = open(&blocks, &store, "k").await;
            for block in 0..4 {
                blocks.get(&object, block, 1).await.unwrap();
            }
            settled(&blocks).await;
            assert!(object.is_complete());
        }
        let before = gets(&store);
        let blocks = blocks(Some(dir.path()), u64::MAX);
        let object = open(&blocks, &store, "k").await;
        let files = Disk::new(dir.path(), u64::MAX, 0).unwrap().open(object.id).unwrap();
        // A block that was torn, and a slot that was.
        files.data.write_all_at(b"damage", BLOCK + 500_000).unwrap();
        for block in 0..4 {
            let len = block_len(object.size, block);
            assert_eq!(blocks.get(&object, block, 1).await.unwrap(), expected(block, len), "block {block}");
        }
        assert_eq!(gets(&store), before + 1);
        assert_eq!(blocks.corrupt(), 1);
        settled(&blocks).await;
        let mut buffer = vec![0; 10];
        assert!(object.read_checked(3 * BLOCK + 50, &mut buffer));
        drop((blocks, object));
        files.index.write_all_at(&[0xff; 5], index::slot_offset(2) + 3).unwrap();
        let blocks = self::blocks(Some(dir.path()), u64::MAX);
        let object = open(&blocks, &store, "k").await;
        assert!(!object.is_complete() && object.has(1) && !object.has(2));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_whole_is_compared_with_the_stores_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Bytes = (0..2 * BLOCK + 17).map(made_up).collect();
        let right = oss::crc::crc64(&bytes);
        let nvme = oss::crc::crc64_nvme(&bytes);
        let store = DoubleStore::new(1000);
        store.put_with("xz", Content::Bytes(bytes.clone()), Some(Checksum::Crc64(right)));
        store.put_with("nvme", Content::Bytes(bytes.clone()), Some(Checksum::Crc64Nvme(nvme)));
        store.put_with("wrong", Content::Bytes(bytes), Some(Checksum::Crc64(right ^ 1)));
        let blocks = blocks(Some(dir.path()), u64::MAX);
        for (key, corrupt) in [("xz", 0), ("nvme", 0), ("wrong", 1)] {
            let object = open(&blocks, &store, key).await;
            for block in 0..3 {
                blocks.get(&object, block, 1).await.unwrap();
                settled(&blocks).await;
            }
            assert_eq!(blocks.corrupt(), corrupt, "{key}");
            assert_eq!(object.is_complete(), corrupt == 0, "{key}");
            assert_eq!(blocks.in_memory(&object, 0).is_some(), corrupt == 0, "{key}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_disk_cache_stays_within_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let store = DoubleStore::new(1000);
        let blocks = blocks(Some(dir.path()), 5 * BLOCK);
        for number in 0..10 {
            let key = format!("k{number}");
            store.put(&key, Content::MadeUp(2 * BLOCK));
            let object = open(&blocks, &store, &key).await;
            for block in 0..2 {
                assert_eq!(blocks.get(&object, block, 1).await.unwrap(), expected(block, MIB));
            }
            settled(&blocks).await;
            assert!(blocks.disk_use().0 <= 5 * BLOCK, "{:?}", blocks.disk_use());
        }
        // One that is larger than the whole cache: it is read all the same.
        store.put("large", Content::MadeUp(12 * BLOCK));
        let object = open(&blocks, &store, "large").await;
        for block in 0..12 {
            assert_eq!(blocks.get(&object, block, 4).await.unwrap(), expected(block, MIB));
        }
        settled(&blocks).await;
        assert!(blocks.disk_use().0 <= 5 * BLOCK, "{:?}", blocks.disk_use());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_huge_object_is_read_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let store = DoubleStore::new(1000);
        let size = 100_000_000_007;
        store.put("huge", Content::MadeUp(size));
        let blocks = blocks(Some(dir.path()), u64::MAX);
        let object = open(&blocks, &store, "huge").await;
        for block in [0, 1, 50_000, object.blocks() - 1] {
            let len = block_len(size, block);
            assert_eq!(blocks.get(&object, block, 8).await.unwrap(), expected(block, len));
        }
        settled(&blocks).await;
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        /// Whatever is read in whatever order, with bodies that break and blocks that are ruined on the disk between restarts, every
        /// byte is right.
        #[test]
        fn every_byte_is_right(
            size in 1_u64..4 * BLOCK,
            rounds in prop::collection::vec(
                (prop::collection::vec((0_u32..6, 1_u32..8), 1..12), 0_u64..3, any::<u64>(), any::<bool>()), 1..4
            ),
        ) {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let dir = tempfile::tempdir().unwrap();
                let store = DoubleStore::new(1000);
                store.put("k", Content::Bytes((0..size).map(made_up).collect()));
                for (reads, breaks, ruin, in_index) in rounds {
                    let blocks = blocks(Some(dir.path()), u64::MAX);
                    let object = open(&blocks, &store, "k").await;
                    store.knobs.break_bodies.store(breaks, Ordering::Relaxed);
                    for (block, run) in reads {
                        let block = block % object.blocks();
                        blocks.ahead(&object, block..block + run);
                        let got = blocks.get(&object, block, run).await.unwrap();
                        assert!(got == expected(block, block_len(size, block)), "block {block} of {size} bytes");
                    }
                    settled(&blocks).await;
                    let files = Disk::new(dir.path(), u64::MAX, 0).unwrap().open(object.id).unwrap();
                    let file = if in_index { &files.index } else { &files.data };
                    let at = ruin % file.metadata().unwrap().len().max(1);
                    let mut byte = [0];
                    if file.read_at(&mut byte, at).unwrap() == 1 {
                        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
                    }
                }
            });
        }
    }
}
