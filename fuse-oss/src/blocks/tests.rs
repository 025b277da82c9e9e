use super::*;
use crate::double::{Content, DoubleStore, made_up};
use crate::geometry::{BLOCK, GRANULE, block_count};
use oss::{Checksum, Key, Store};
use proptest::prelude::*;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;

fn blocks(dir: Option<&Path>, limit: u64) -> Arc<Blocks> {
    let metrics = Arc::<Metrics>::default();
    let cache = dir.map(|dir| Arc::new(Cache::new(dir, limit, 0, Arc::clone(&metrics)).unwrap()));
    Blocks::new(Handle::current(), 32 * MIB, cache, metrics)
}

async fn open(blocks: &Blocks, store: &Arc<DoubleStore>, key: &str) -> Arc<Object> {
    let meta = store.head(&Key::new(key)).await.unwrap();
    blocks.open(Object::new(store.origin(), meta.key, meta.size, meta.etag, meta.modified, 0))
}

/// Reads `range`, fetching nothing but it.
async fn get(blocks: &Arc<Blocks>, object: &Arc<Object>, range: Range<u64>) -> Result<Vec<u8>, Fault> {
    let range = range.start..range.end.min(object.size);
    let along = crate::geometry::widened(&range, object.size);
    if let Some(bytes) = blocks.at_hand(object, &range, <[u8]>::to_vec) {
        return Ok(bytes);
    }
    blocks.get(object, range, &along).await.map(|parts| parts.whole(<[u8]>::to_vec))
}

fn expected(range: Range<u64>) -> Vec<u8> {
    range.map(made_up).collect()
}

fn block(number: u64) -> Range<u64> {
    number * BLOCK..(number + 1) * BLOCK
}

/// Until everything fetched is on the disk.
async fn settled(blocks: &Blocks) {
    blocks.settle(Duration::from_secs(60)).await;
    assert!(blocks.writer.is_idle());
}

fn gets(store: &DoubleStore) -> u64 {
    store.knobs.gets.load(Ordering::Relaxed)
}

/// The files of a cache, the longer one first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else if entry.metadata().unwrap().len() > 0 {
                found.push(entry.path());
            }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.metadata().unwrap().len()));
    found
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
        tokio::spawn(async move { get(&blocks, &object, 3 * BLOCK..3 * BLOCK + 5).await.unwrap() })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert_eq!(reader.await.unwrap(), expected(3 * BLOCK..3 * BLOCK + 5));
    }
    assert_eq!(gets(&store), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_read_brings_a_granule_and_a_large_one_is_one_request() {
    let store = DoubleStore::new(1000);
    store.put("k", Content::MadeUp(64 * BLOCK));
    let blocks = blocks(None, 0);
    let object = open(&blocks, &store, "k").await;
    assert_eq!(get(&blocks, &object, 999_999..1_000_099).await.unwrap(), expected(999_999..1_000_099));
    assert_eq!((gets(&store), store.knobs.bytes.load(Ordering::Relaxed)), (1, GRANULE));
    let range = 5 * BLOCK + 77..7 * BLOCK + 5;
    assert_eq!(get(&blocks, &object, range.clone()).await.unwrap(), expected(range));
    assert_eq!(gets(&store), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_body_goes_on_where_it_stopped() {
    let store = DoubleStore::new(1000);
    store.put("k", Content::MadeUp(8 * BLOCK));
    store.knobs.break_bodies.store(3, Ordering::Relaxed);
    let blocks = blocks(None, 0);
    let object = open(&blocks, &store, "k").await;
    assert!(get(&blocks, &object, 0..8 * BLOCK).await.unwrap() == expected(0..8 * BLOCK));
    assert_eq!(gets(&store), 4);
    let fetched = store.knobs.bytes.load(Ordering::Relaxed);
    assert!(fetched < 16 * BLOCK, "{fetched} bytes for 8 MiB: whole stretches were fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_object_is_an_error_even_if_the_server_ignores_if_match() {
    for ignore in [false, true] {
        let store = DoubleStore::new(1000);
        store.put("k", Content::MadeUp(2 * BLOCK));
        store.knobs.ignore_if_match.store(ignore, Ordering::Relaxed);
        let blocks = blocks(None, 0);
        let object = open(&blocks, &store, "k").await;
        get(&blocks, &object, block(0)).await.unwrap();
        store.put("k", Content::MadeUp(2 * BLOCK));
        let fault = get(&blocks, &object, block(1)).await.unwrap_err();
        assert_eq!(fault.errno_at_read(), libc::ESTALE, "{fault}");
        assert!(object.is_replaced());
        // What is at hand is still the old version, whole.
        assert!(get(&blocks, &object, block(0)).await.unwrap() == expected(block(0)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_at_once() {
    let store = DoubleStore::new(1000);
    store.put("k", Content::MadeUp(9));
    let blocks = blocks(None, 0);
    let object = open(&blocks, &store, "k").await;
    store.knobs.deny.store(true, Ordering::Relaxed);
    assert_eq!(get(&blocks, &object, 0..9).await.unwrap_err().errno_at_open(), libc::EACCES);
    store.knobs.deny.store(false, Ordering::Relaxed);
    assert_eq!(get(&blocks, &object, 0..9).await.unwrap(), expected(0..9));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_survives_and_damage_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = DoubleStore::new(1000);
    let size = 3 * BLOCK + 100;
    store.put("k", Content::MadeUp(size));
    {
        let blocks = blocks(Some(dir.path()), u64::MAX);
        let object = open(&blocks, &store, "k").await;
        get(&blocks, &object, 0..size).await.unwrap();
        settled(&blocks).await;
        assert!(object.is_complete() && object.is_proved());
        assert!(blocks.pin(&object).is_some());
    }
    let before = gets(&store);
    let data = files(dir.path()).remove(0);
    std::fs::OpenOptions::new().write(true).open(data).unwrap().write_all_at(b"damage", BLOCK + 500_000).unwrap();
    let blocks = blocks(Some(dir.path()), u64::MAX);
    let object = open(&blocks, &store, "k").await;
    assert!(object.is_complete() && !object.is_proved() && blocks.pin(&object).is_none());
    assert!(get(&blocks, &object, 0..size).await.unwrap() == expected(0..size));
    assert_eq!(gets(&store), before + 1);
    assert_eq!(blocks.metrics.corrupt.get(), 1);
    settled(&blocks).await;
    assert!(object.is_proved());
    assert_eq!(blocks.at_hand(&object, &(7..9), <[u8]>::to_vec).unwrap(), expected(7..9));
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
        for number in 0..3 {
            get(&blocks, &object, block(number)).await.unwrap();
            settled(&blocks).await;
        }
        assert_eq!(blocks.metrics.corrupt.get(), corrupt, "{key}");
        assert_eq!(object.is_complete(), corrupt == 0, "{key}");
        assert_eq!(blocks.times_wrong(object.id), corrupt, "{key}");
        assert_eq!(blocks.pin(&object).is_some(), corrupt == 0, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_cache_stays_within_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let store = DoubleStore::new(1000);
    let blocks = blocks(Some(dir.path()), 5 * BLOCK);
    let used = || blocks.cache().unwrap().used();
    for number in 0..10 {
        let key = format!("k{number}");
        store.put(&key, Content::MadeUp(2 * BLOCK));
        let object = open(&blocks, &store, &key).await;
        assert!(get(&blocks, &object, 0..2 * BLOCK).await.unwrap() == expected(0..2 * BLOCK));
        settled(&blocks).await;
        assert!(used() <= 5 * BLOCK, "{}", used());
    }
    // One that is larger than the whole cache: it is read all the same.
    store.put("large", Content::MadeUp(12 * BLOCK));
    let object = open(&blocks, &store, "large").await;
    for number in 0..12 {
        assert!(get(&blocks, &object, block(number)).await.unwrap() == expected(block(number)));
    }
    settled(&blocks).await;
    assert!(used() <= 5 * BLOCK, "{}", used());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_object_is_read_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = DoubleStore::new(1000);
    let size = 100_000_000_007;
    store.put("huge", Content::MadeUp(size));
    let blocks = blocks(Some(dir.path()), u64::MAX);
    let object = open(&blocks, &store, "huge").await;
    for number in [0, 1, 50_000, u64::from(block_count(size)) - 1] {
        let range = number * BLOCK..((number + 1) * BLOCK).min(size);
        assert!(get(&blocks, &object, range.clone()).await.unwrap() == expected(range));
    }
    settled(&blocks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_in_little_memory_wait_and_none_fails() {
    let dir = tempfile::tempdir().unwrap();
    let store = DoubleStore::new(1000);
    let blocks = blocks(Some(dir.path()), u64::MAX);
    let mut readers = Vec::new();
    for number in 0..32 {
        let key = format!("k{number}");
        store.put(&key, Content::MadeUp(6 * BLOCK));
        let object = open(&blocks, &store, &key).await;
        let blocks = Arc::clone(&blocks);
        readers.push(tokio::spawn(async move {
            for number in 0..6 {
                blocks.ahead(&object, &((number + 1) * BLOCK..(number + 4) * BLOCK), BLOCK);
                assert!(get(&blocks, &object, block(number)).await.unwrap() == expected(block(number)));
                assert!(blocks.memory_used() <= blocks.memory_limit());
            }
        }));
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_hangs_is_raced() {
    let store = DoubleStore::new(1000);
    store.put("k", Content::MadeUp(64 * BLOCK));
    let blocks = blocks(None, 0);
    let object = open(&blocks, &store, "k").await;
    for number in 0..40 {
        get(&blocks, &object, block(number)).await.unwrap();
    }
    assert_eq!(blocks.metrics.raced.get(), 0);
    store.knobs.hang_next.store(1, Ordering::Relaxed);
    assert!(get(&blocks, &object, block(50)).await.unwrap() == expected(block(50)));
    assert_eq!((blocks.metrics.raced.get(), blocks.metrics.races_won.get()), (1, 1));
    // And one whose body stops in the middle.
    store.knobs.stall_next.store(1, Ordering::Relaxed);
    assert!(get(&blocks, &object, block(52)).await.unwrap() == expected(block(52)));
    assert_eq!((blocks.metrics.raced.get(), blocks.metrics.races_won.get()), (2, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Whatever is read in whatever order, with bodies that break and bytes that are ruined on the disk between restarts, every
    /// byte is right.
    #[test]
    fn every_byte_is_right(
        size in 1_u64..4 * BLOCK,
        rounds in prop::collection::vec(
            (prop::collection::vec((any::<u64>(), 1_u64..3 * BLOCK, any::<bool>()), 1..12), 0_u64..3, any::<u64>(), any::<bool>()), 1..4
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
                for (start, len, small) in reads {
                    let start = start % size;
                    let len = if small { len % 5000 + 1 } else { len };
                    let range = start..(start + len).min(size);
                    blocks.ahead(&object, &(range.start / GRANULE * GRANULE..range.end + BLOCK), BLOCK);
                    let got = get(&blocks, &object, range.clone()).await.unwrap();
                    assert!(got == expected(range.clone()), "{range:?} of {size} bytes");
                }
                settled(&blocks).await;
                drop((blocks, object));
                let files = files(dir.path());
                if let Some(file) = files.get(usize::from(in_index)).or(files.first()) {
                    let file = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
                    let at = ruin % file.metadata().unwrap().len().max(1);
                    let mut byte = [0];
                    if file.read_at(&mut byte, at).unwrap() == 1 {
                        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
                    }
                }
            }
        });
    }
}
