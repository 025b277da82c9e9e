//! The cache as a whole, on a real file system.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use oss::Checksum;
use oss::crc::{crc64, crc64_nvme};
use proptest::prelude::*;

use super::files::Part;
use super::files::journal::Write;
use super::format::{SLOT_LEN, SLOTS_AT, SMALL};
use super::*;
use crate::geometry::{BLOCK, GRANULE, block_count};

fn open_with(dir: &Path, limit: u64) -> Cache {
    Cache::with_free(dir, limit, 0, Arc::default(), Box::new(|| None)).unwrap()
}

fn open(dir: &Path) -> Cache {
    open_with(dir, u64::MAX)
}

fn id(number: u8) -> ObjectId {
    ObjectId([number; 16])
}

fn described(id: ObjectId) -> Description {
    Description { location: format!("oss://bucket/{}", id.0[0]), etag: Some(format!("\"{}\"", id.0[0])) }
}

type Contents = HashMap<(ObjectId, u64), Arc<[u8]>>;

/// What an object of the tests holds; of no two objects, nor of two places, the same. Made once.
fn content(id: ObjectId, size: u64) -> Arc<[u8]> {
    static MADE: Mutex<Option<Contents>> = Mutex::new(None);
    let mut made = lock(&MADE);
    let made = made.get_or_insert_default().entry((id, size)).or_insert_with(|| {
        let seed = u64::from(id.0[0]) << 40;
        let mut bytes = vec![0; usize::try_from(size.next_multiple_of(8)).unwrap()];
        for (place, word) in bytes.chunks_exact_mut(8).zip(1..) {
            let word: u64 = (seed + word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            place.copy_from_slice(&word.rotate_left(29).to_le_bytes());
        }
        bytes.truncate(usize::try_from(size).unwrap());
        bytes.into()
    });
    Arc::clone(made)
}

fn entry(cache: &Cache, id: ObjectId, size: u64) -> Arc<Entry> {
    cache.entry(id, size, || described(id))
}

/// Keeps the granules that `range` touches.
fn keep(entry: &Entry, range: Range<u64>) -> Kept {
    let range = crate::geometry::widened(&range, entry.size());
    let bytes = content(entry.id(), entry.size());
    entry.keep(range.start, &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]).unwrap()
}

fn fill(cache: &Cache, id: ObjectId, size: u64) -> Arc<Entry> {
    let entry = entry(cache, id, size);
    for start in (0..size).step_by(1 << 20) {
        keep(&entry, start..(start + BLOCK).min(size));
    }
    entry
}

/// Reads a range if it is there, and says what happened; what is read is right, or this panics.
fn load(entry: &Entry, range: Range<u64>) -> Loaded {
    let mut buffer = vec![0xee; usize::try_from(range.end - range.start).unwrap()];
    let loaded = entry.load(range.start, &mut buffer);
    if loaded == Loaded::Filled {
        let right = content(entry.id(), entry.size());
        let right = &right[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        assert!(buffer == right, "wrong bytes in {range:?} of {} bytes", entry.size());
    }
    loaded
}

fn read_proved(entry: &Entry, range: Range<u64>) -> bool {
    let mut buffer = vec![0xee; usize::try_from(range.end - range.start).unwrap()];
    let read = entry.read_proved(range.start, &mut buffer);
    if read {
        let right = content(entry.id(), entry.size());
        assert!(buffer == right[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]);
    }
    read
}

/// Bytes of the disk that all cache files take.
fn on_disk(dir: &Path) -> u64 {
    let shards = fs::read_dir(dir.join("objects")).unwrap().flatten();
    let files = shards.flat_map(|shard| fs::read_dir(shard.path()).unwrap().flatten());
    files.map(|file| file.metadata().unwrap().blocks() * 512).sum()
}

fn path(cache: &Cache, id: ObjectId, part: Part) -> std::path::PathBuf {
    cache.0.place.path_of(id, part)
}

const SIZES: [u64; 9] = [1, 5000, GRANULE, 64 << 10, SMALL, SMALL + 1, BLOCK, 3 * BLOCK + 17, 65 * BLOCK + GRANULE + 5];

#[test]
fn what_is_kept_is_found_again_also_by_the_next_process() {
    for size in SIZES {
        let dir = tempfile::tempdir().unwrap();
        let id = id(7);
        let cache = open(dir.path());
        cache.scan();
        let one = entry(&cache, id, size);
        assert!(!one.complete() && !one.proved() && one.pin().is_none());
        assert_eq!(load(&one, 0..1), Loaded::Absent);
        assert_eq!(on_disk(dir.path()), 0, "an entry makes no file");
        one.learn(Some(Checksum::Crc64Nvme(crc64_nvme(&content(id, size)))));
        // The end first, in a granule, then all in pieces of a MiB.
        let last = (size - 1) / GRANULE * GRANULE;
        let mut kept = vec![keep(&one, last..size)];
        assert_eq!(keep(&one, last..size), Kept::Already);
        assert!(read_proved(&one, last..size) && one.has(&(last..size)));
        kept.extend((0..size).step_by(1 << 20).map(|start| keep(&one, start..(start + BLOCK).min(size))));
        let completed = kept.iter().filter(|kept| **kept == Kept::Completed(Whole::Right)).count();
        assert_eq!(completed, 1, "{size}: {kept:?}");
        assert!(one.complete() && one.proved(), "{size}");
        assert_eq!(one.whole(), Whole::Right);
        assert!(read_proved(&one, 0..size));
        assert_eq!(one.pin().is_some(), size > SMALL);
        assert!(
            cache.used().abs_diff(on_disk(dir.path())) <= 2 * PAGE,
            "{size}: {} {}",
            cache.used(),
            on_disk(dir.path())
        );
        drop((one, cache));

        for scanned in [false, true] {
            let cache = open(dir.path());
            if scanned {
                cache.scan();
                assert!(cache.used().abs_diff(on_disk(dir.path())) <= 2 * PAGE, "{size}");
            }
            let one = entry(&cache, id, size);
            assert!(one.complete() && !one.proved() && !read_proved(&one, 0..size), "{size}");
            assert_eq!(one.whole(), Whole::Right);
            assert_eq!(load(&one, size / 2..size), Loaded::Filled);
            assert_eq!(load(&one, 0..size), Loaded::Filled);
            assert!(one.proved() && read_proved(&one, 0..size), "{size}");
            drop(one);
            // As long as the process lives, that stays so.
            assert!(entry(&cache, id, size).proved());
            assert_eq!(cache.0.metrics.corrupt.get(), 0);
        }
    }
}

#[test]
fn granules_in_any_order_and_either_checksum_make_a_whole() {
    for (size, step) in [(SMALL - 7, 5), (2 * BLOCK + 100, 37)] {
        let whole = content(id(3), size);
        for (checksum, expected) in [
            (Some(Checksum::Crc64(crc64(&whole))), Whole::Right),
            (Some(Checksum::Crc64Nvme(crc64_nvme(&whole))), Whole::Right),
            (Some(Checksum::Crc64(1)), Whole::Wrong),
            (Some(Checksum::Md5([0; 16])), Whole::Unknown),
            (None, Whole::Unknown),
        ] {
            for late in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let cache = open(dir.path());
                let one = entry(&cache, id(3), size);
                if !late {
                    one.learn(checksum);
                }
                let granules = size.div_ceil(GRANULE);
                let mut kept = Kept::Already;
                for number in 0..granules {
                    let start = number * step % granules * GRANULE;
                    kept = keep(&one, start..start + 1);
                }
                let first = if late { Whole::Unknown } else { expected };
                assert_eq!(kept, Kept::Completed(first), "{size}");
                one.learn(checksum);
                assert_eq!(one.whole(), expected);
                assert_eq!(one.proved(), expected != Whole::Wrong);
                drop((one, cache));
                // Whoever dies in between does not leave wrong bytes behind that nobody doubts.
                let cache = open(dir.path());
                let one = entry(&cache, id(3), size);
                assert_eq!(load(&one, 0..size), Loaded::Filled);
                assert_eq!(one.whole(), expected);
                assert_eq!(one.proved(), expected != Whole::Wrong);
                one.forget();
                assert!(!one.has(&(0..1)) && on_disk(dir.path()) == 0 && cache.used() == 0);
                assert_eq!(keep(&one, 0..1), Kept::Stored);
            }
        }
    }
}

#[test]
fn nothing_is_asked_of_the_disk_for_what_is_not_cached() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cache = open(dir.path());
    cache.scan();
    drop(fill(&open(other.path()), id(1), 5000));
    // Put there behind its back, and not seen, because nobody looks.
    fs::create_dir(cache.0.place.shard(1)).unwrap();
    let file = path(&cache, id(1), Part::Small);
    fs::copy(other.path().join("objects/01").join(file.file_name().unwrap()), &file).unwrap();
    assert!(!entry(&cache, id(1), 5000).complete());
    assert_eq!(load(&entry(&open(dir.path()), id(1), 5000), 0..5000), Loaded::Filled);
}

/// The damage of which a test wants to know what becomes.
fn damaged(size: u64, damage: impl FnOnce(&Cache)) -> (Loaded, u64) {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    drop(fill(&cache, id(1), size));
    damage(&cache);
    let cache = open(dir.path());
    cache.scan();
    let one = entry(&cache, id(1), size);
    let loaded = load(&one, 0..size);
    // It is fetched again, and then all is well, now and later.
    let again = (0..200).find(|_| {
        fill(&cache, id(1), size);
        load(&one, 0..size) == Loaded::Filled
    });
    assert!(again.is_some() && one.complete(), "{size}");
    let corrupt = cache.0.metrics.corrupt.get();
    drop((one, cache));
    let cache = open(dir.path());
    assert_eq!(load(&entry(&cache, id(1), size), 0..size), Loaded::Filled);
    assert_eq!(cache.0.metrics.corrupt.get(), 0);
    (loaded, corrupt)
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
}

#[test]
fn damaged_data_is_never_served() {
    for size in [5000, SMALL, SMALL + 1, 2 * BLOCK + 9] {
        let part = if size <= SMALL { Part::Small } else { Part::Data };
        for at in [0, size / 2, size - 1] {
            let flipped = damaged(size, |cache| flip(&path(cache, id(1), part), at));
            assert_eq!(flipped, (Loaded::Damaged, 1), "{size} {at}");
        }
    }
    let size = 2 * BLOCK;
    let cut = damaged(size, |cache| {
        fs::OpenOptions::new().write(true).open(path(cache, id(1), Part::Data)).unwrap().set_len(BLOCK + 5).unwrap();
    });
    assert_eq!((cut.0, cut.1 > 1), (Loaded::Damaged, true));
    let longer = damaged(size, |cache| {
        fs::OpenOptions::new().write(true).open(path(cache, id(1), Part::Data)).unwrap().set_len(3 * BLOCK).unwrap();
    });
    assert_eq!(longer, (Loaded::Filled, 0));
    let gone = damaged(size, |cache| fs::remove_file(path(cache, id(1), Part::Data)).unwrap());
    assert_eq!(gone, (Loaded::Absent, 0));
    let of_another = damaged(size, |cache| {
        drop(fill(cache, id(2), size));
        let (one, two) = (path(cache, id(1), Part::Data), path(cache, id(2), Part::Data));
        fs::rename(two, one).unwrap();
    });
    assert_eq!(of_another.0, Loaded::Damaged);
}

#[test]
fn a_damaged_index_is_never_believed() {
    let size = 2 * BLOCK + 9;
    for at in [0, 30, 90, 100, SLOTS_AT, SLOTS_AT + 8, SLOTS_AT + 100, SLOTS_AT + 2 * 288 + 287] {
        let (loaded, _) = damaged(size, |cache| flip(&path(cache, id(1), Part::Index), at));
        assert_eq!(loaded, Loaded::Absent, "{at}");
    }
    // Words nobody needs to believe.
    assert_eq!(damaged(size, |cache| flip(&path(cache, id(1), Part::Index), SLOTS_AT - 1)), (Loaded::Filled, 0));
    for len in [0, 50, SLOTS_AT, SLOTS_AT + 300] {
        let (loaded, _) = damaged(size, |cache| {
            let index = fs::OpenOptions::new().write(true).open(path(cache, id(1), Part::Index)).unwrap();
            index.set_len(len).unwrap();
        });
        assert_eq!(loaded, Loaded::Absent, "{len}");
    }
    let misplaced = damaged(size, |cache| {
        let index = fs::OpenOptions::new().read(true).write(true).open(path(cache, id(1), Part::Index)).unwrap();
        let mut slot = [0; SLOT_LEN];
        index.read_exact_at(&mut slot, SLOTS_AT).unwrap();
        index.write_all_at(&slot, SLOTS_AT + 288).unwrap();
    });
    assert_eq!(misplaced, (Loaded::Absent, 0));
    for other in [size, size + 1] {
        let of_another = damaged(size, |cache| {
            drop(fill(cache, id(2), other));
            fs::rename(path(cache, id(2), Part::Index), path(cache, id(1), Part::Index)).unwrap();
        });
        assert_eq!(of_another, (Loaded::Absent, 0));
    }
    for at in [0, 8, 100, 287, 288, 330, 400] {
        let (loaded, _) = damaged(9000, |cache| flip(&path(cache, id(1), Part::Small), 9000 + at));
        assert_eq!(loaded, Loaded::Absent, "{at}");
    }
    for len in [0, 8999, 9000, 9200, 9400] {
        let (loaded, _) = damaged(9000, |cache| {
            fs::OpenOptions::new().write(true).open(path(cache, id(1), Part::Small)).unwrap().set_len(len).unwrap();
        });
        assert_eq!(loaded, Loaded::Absent, "{len}");
    }
    let small_of_another = damaged(9000, |cache| {
        drop(fill(cache, id(2), 9000));
        fs::rename(path(cache, id(2), Part::Small), path(cache, id(1), Part::Small)).unwrap();
    });
    assert_eq!(small_of_another, (Loaded::Absent, 0));
}

#[test]
fn damage_under_a_running_process_is_found_too() {
    let dir = tempfile::tempdir().unwrap();
    drop(fill(&open(dir.path()), id(1), 2 * BLOCK));
    let cache = open(dir.path());
    let one = entry(&cache, id(1), 2 * BLOCK);
    assert_eq!(load(&one, 0..GRANULE), Loaded::Filled);
    flip(&path(&cache, id(1), Part::Index), SLOTS_AT + 24);
    assert_eq!(load(&one, GRANULE..2 * GRANULE), Loaded::Damaged);
    assert!(!one.complete() && !one.has(&(0..1)) && one.has(&(BLOCK..2 * BLOCK)));
    // The slot of a block that gets another granule.
    flip(&path(&cache, id(1), Part::Index), SLOTS_AT + 288 + 24);
    assert_eq!(load(&one, BLOCK..BLOCK + 1), Loaded::Damaged);
    keep(&one, BLOCK..BLOCK + 1);
    assert_eq!(load(&one, BLOCK..BLOCK + GRANULE), Loaded::Filled);
    assert_eq!(load(&one, BLOCK..2 * BLOCK), Loaded::Absent);
    keep(&one, 0..2 * BLOCK);
    assert_eq!(load(&one, 0..2 * BLOCK), Loaded::Filled);
    assert_eq!(one.whole(), Whole::Unknown);
}

/// Applies some of what was done to an object's files to another directory.
fn apply(cache: &Cache, id: ObjectId, write: &Write) {
    let place = &cache.0.place;
    let open = |part| place.open(id, part).unwrap();
    match write {
        Write::Created { part } => drop(place.create(id, *part, 0).unwrap()),
        Write::Resized { part, len } => open(*part).into_iter().for_each(|file| file.set_len(*len).unwrap()),
        Write::Removed { part } => place.remove(id, *part).unwrap(),
        Write::Bytes { part, at, bytes } => {
            open(*part).into_iter().for_each(|file| file.write_all_at(bytes, *at).unwrap());
        }
        Write::Hole { part, at, len } => open(*part).into_iter().for_each(|file| {
            place.punch(&file, *part, *at, *len).unwrap();
        }),
    }
}

/// What a process does that is killed at any moment.
fn history(id: ObjectId, size: u64) -> Vec<Write> {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.scan();
    cache.0.place.journal.start();
    let one = entry(&cache, id, size);
    one.learn(Some(Checksum::Crc64(crc64(&content(id, size)))));
    keep(&one, size / 2..size / 2 + 1);
    keep(&one, 0..size.min(3 * GRANULE));
    for block in (0..block_count(size)).rev() {
        let start = u64::from(block) * BLOCK;
        keep(&one, start..(start + BLOCK).min(size));
    }
    assert_eq!(one.whole(), Whole::Right);
    if one.extents() > 1 {
        cache.0.evict(one.unit(0), size, 0);
        keep(&one, BLOCK..2 * BLOCK);
    }
    cache.0.evict(one.unit(one.extents() - 1), size, 0);
    keep(&one, 0..GRANULE.min(size));
    drop(one);
    cache.0.place.journal.taken()
}

/// Whatever is left of the history is read right, or not at all, and can be completed.
fn survives(writes: &[Write], id: ObjectId, size: u64) {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    for write in writes {
        apply(&cache, id, write);
    }
    let cache = open(dir.path());
    if writes.len().is_multiple_of(2) {
        cache.scan();
    }
    let one = entry(&cache, id, size);
    for block in 0..block_count(size) {
        let end = size.min(u64::from(block + 1) * BLOCK);
        for start in (u64::from(block) * BLOCK..end).step_by(1 << 14) {
            load(&one, start..(start + GRANULE).min(end));
        }
    }
    let all = fill(&cache, id, size);
    assert!(all.complete());
    assert_eq!(load(&all, 0..size), Loaded::Filled);
    assert_ne!(all.whole(), Whole::Wrong);
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_wrong() {
    for size in [5000, 200_000, BLOCK + 20_000] {
        let writes = history(id(9), size);
        assert!(writes.len() > 4, "{writes:?}");
        for count in 0..=writes.len() {
            survives(&writes[..count], id(9), size);
            // The last one torn.
            if let Some(Write::Bytes { part, at, bytes }) = writes[..count].last() {
                for cut in [1, bytes.len() / 2, bytes.len() - 1] {
                    let mut torn = writes[..count - 1].to_vec();
                    torn.push(Write::Bytes { part: *part, at: *at, bytes: bytes[..cut].to_vec() });
                    survives(&torn, id(9), size);
                }
            }
        }
    }
}

#[test]
fn a_kill_while_an_extent_goes_leaves_nothing_wrong() {
    let size = 64 * BLOCK + 40_000;
    let writes = history(id(9), size);
    let first_hole =
        writes.iter().position(|write| matches!(write, Write::Hole { .. })).expect("an extent was put out");
    for count in first_hole - 2..=writes.len() {
        survives(&writes[..count], id(9), size);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// After a power failure any of the writes may be missing, whatever came after them.
    #[test]
    fn a_power_failure_leaves_nothing_wrong(size in 1_u64..1_200_000, lost in prop::collection::vec(any::<bool>(), 60)) {
        let writes = history(id(9), size);
        let kept = writes.into_iter().zip(lost.into_iter().cycle()).filter(|(_, lost)| !lost).map(|(write, _)| write);
        survives(&kept.collect::<Vec<_>>(), id(9), size);
    }
}

#[test]
fn the_limit_is_kept_and_an_object_larger_than_it_is_partly_kept() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 5 * BLOCK;
    let cache = open_with(dir.path(), limit);
    cache.scan();
    for number in 0..20 {
        let one = fill(&cache, id(number), if number % 2 == 0 { 2 * BLOCK } else { 60_000 });
        assert!(one.complete(), "{number}");
        assert!(cache.used() <= limit && on_disk(dir.path()) <= limit + 4 * PAGE, "{}", cache.used());
    }
    assert!(cache.0.metrics.evictions.get() > 8);
    let large = fill(&cache, id(100), 12 * BLOCK);
    assert!(!large.complete() && large.has(&(0..4 * BLOCK)) && cache.used() <= limit);
    assert!(cache.0.metrics.not_kept.get() >= 7 * BLOCK, "{}", cache.0.metrics.not_kept.get());
    assert_eq!(keep(&large, 11 * BLOCK..12 * BLOCK), Kept::NoRoom);
    assert!(on_disk(dir.path()) <= limit + 4 * PAGE);
}

#[test]
fn of_a_large_object_extents_go() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_with(dir.path(), 140 * BLOCK);
    cache.scan();
    let size = 192 * BLOCK;
    let large = entry(&cache, id(1), size);
    let piece = vec![7; 1 << 20];
    let blocks =
        |range: Range<u64>| range.filter(|block| large.keep(block * BLOCK, &piece).unwrap() == Kept::Stored).count();
    assert_eq!(blocks(0..130), 130);
    // Another object puts an extent of it out; the others stay.
    drop(fill(&cache, id(2), 20 * BLOCK));
    assert!(!large.has(&(0..1)) && large.has(&(64 * BLOCK..130 * BLOCK)));
    assert_eq!(large.load(0, &mut [0; 10]), Loaded::Absent);
    assert!(!large.read_proved(0, &mut [0; 10]));
    let mut buffer = [0; 10];
    assert_eq!(large.load(64 * BLOCK, &mut buffer), Loaded::Filled);
    assert_eq!(buffer, [7; 10]);
    assert!(cache.used().abs_diff(on_disk(dir.path())) < 20 * PAGE, "{} {}", cache.used(), on_disk(dir.path()));
    drop((large, cache));
    let cache = open_with(dir.path(), 140 * BLOCK);
    cache.scan();
    assert!(cache.used().abs_diff(on_disk(dir.path())) < 20 * PAGE);
    let large = entry(&cache, id(1), size);
    assert!(!large.has(&(0..1)) && large.has(&(64 * BLOCK..130 * BLOCK)) && !large.complete());
    // All of it, one by one: then the files go, too.
    for extent in 0..3 {
        let unit = large.unit(extent);
        let bytes = cache.0.space.take(&unit);
        cache.0.evict(unit, size, bytes);
    }
    assert!(!path(&cache, id(1), Part::Data).exists() && !path(&cache, id(1), Part::Index).exists());
}

#[test]
fn readers_and_eviction_together() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_with(dir.path(), 70 * BLOCK);
    cache.scan();
    let sizes: HashMap<u8, u64> =
        [(1, 66 * BLOCK + 5), (2, 3 * BLOCK), (3, 3 * BLOCK), (4, 200_000), (5, 60_000)].into();
    let contents: HashMap<u8, Arc<[u8]>> =
        sizes.iter().map(|(number, size)| (*number, content(id(*number), *size))).collect();
    let (stop, filled) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..3_u64 {
            let (cache, sizes, contents, stop, filled) = (&cache, &sizes, &contents, &stop, &filled);
            scope.spawn(move || {
                let mut random = fastrand_like(seed + 1);
                let mut buffer = vec![0; 1 << 20];
                while !stop.load(Ordering::Relaxed) {
                    let number = u8::try_from(random() % 5 + 1).unwrap();
                    let (size, whole) = (sizes[&number], &contents[&number]);
                    let one = entry(cache, id(number), size);
                    one.touch();
                    for _ in 0..20 {
                        let offset = random() % size;
                        let len = usize::try_from((random() % BLOCK).min(size - offset)).unwrap();
                        let right = &whole[usize::try_from(offset).unwrap()..][..len];
                        if one.read_proved(offset, &mut buffer[..len])
                            || one.load(offset, &mut buffer[..len]) == Loaded::Filled
                        {
                            assert!(buffer[..len] == *right, "object {number}, {len} bytes at {offset}");
                            filled.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        let mut random = fastrand_like(99);
        for _ in 0..600 {
            let number = u8::try_from(random() % 5 + 1).unwrap();
            let (size, whole) = (sizes[&number], &contents[&number]);
            let one = entry(&cache, id(number), size);
            let start = random() % size / BLOCK * BLOCK;
            let end = (start + 4 * BLOCK).min(size);
            one.keep(start, &whole[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()]).unwrap();
            if random().is_multiple_of(5) {
                let unit = one.unit(u32::try_from(random()).unwrap_or(7) % one.extents());
                let bytes = cache.0.space.take(&unit);
                cache.0.evict(unit, size, bytes);
            }
            assert!(cache.used() <= 70 * BLOCK);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(filled.load(Ordering::Relaxed) > 100, "{filled:?}");
    assert_eq!(cache.0.metrics.corrupt.get(), 0);
    assert!(cache.used().abs_diff(on_disk(dir.path())) < 64 * PAGE, "{} {}", cache.used(), on_disk(dir.path()));
}

/// A generator of numbers, the same ones each time.
fn fastrand_like(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    }
}

#[test]
fn many_writers_of_the_same_bytes_store_them_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.scan();
    for size in [SMALL, 5 * BLOCK + 70_000] {
        let one = entry(&cache, id(1), size);
        let whole = content(id(1), size);
        one.learn(Some(Checksum::Crc64(crc64(&whole))));
        let completed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for seed in 0..4_u64 {
                let (one, whole, completed) = (&one, &whole, &completed);
                scope.spawn(move || {
                    let mut random = fastrand_like(seed + 1);
                    for _ in 0..400 {
                        let start = random() % size / GRANULE * GRANULE;
                        let end = (start + (random() % 40 + 1) * GRANULE).min(size);
                        let piece = &whole[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
                        match one.keep(start, piece).unwrap() {
                            Kept::Completed(whole) => {
                                assert_eq!(whole, Whole::Right);
                                completed.fetch_add(1, Ordering::Relaxed);
                            }
                            Kept::NoRoom => panic!("there is room"),
                            Kept::Stored | Kept::Already => {}
                        }
                    }
                });
            }
        });
        keep(&one, 0..size);
        assert!(one.proved() && completed.load(Ordering::Relaxed) <= 1);
        assert_eq!(load(&one, 0..size), Loaded::Filled);
        assert!(cache.used().abs_diff(on_disk(dir.path())) <= 2 * PAGE);
        drop(one);
        cache.clear();
    }
}

#[test]
fn what_is_pinned_stays() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_with(dir.path(), 6 * BLOCK);
    cache.scan();
    let one = fill(&cache, id(1), 4 * BLOCK);
    let pin = one.pin().expect("it is proved");
    let (next, _) = (entry(&cache, id(2), 4 * BLOCK), ());
    assert_eq!((keep(&next, 0..BLOCK), keep(&next, BLOCK..3 * BLOCK)), (Kept::Stored, Kept::NoRoom));
    assert!(one.proved());
    // What is found wrong is not served any more, but whoever reads the file itself still can.
    one.forget();
    assert!(!one.has(&(0..1)) && !one.proved() && one.pin().is_none());
    assert_eq!(keep(&one, 0..BLOCK), Kept::NoRoom);
    let mut buffer = vec![0; 1000];
    let file = fs::File::from(pin.as_fd().try_clone_to_owned().unwrap());
    file.read_exact_at(&mut buffer, 5).unwrap();
    assert_eq!(buffer, content(id(1), 4 * BLOCK)[5..1005]);
    assert!(file.write_at(b"x", 0).is_err(), "read-only");
    // Should the process die now, nobody else serves it either.
    {
        let other = open(dir.path());
        assert!(!entry(&other, id(1), 4 * BLOCK).has(&(0..1)));
        fs::create_dir_all(cache.0.place.shard(1)).unwrap();
    }
    drop(pin);
    assert!(!path(&cache, id(1), Part::Data).exists());
    assert_eq!(keep(&next, BLOCK..3 * BLOCK), Kept::Stored);
    assert_eq!(keep(&one, 0..BLOCK), Kept::Stored);
}

use std::os::fd::AsFd;

#[test]
fn the_free_space_floor_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(100 * BLOCK));
    let told = Arc::clone(&free);
    let look: Free = Box::new(move || Some(told.load(Ordering::Relaxed)));
    let cache = Cache::with_free(dir.path(), u64::MAX, 10 * BLOCK, Arc::default(), look).unwrap();
    cache.scan();
    drop(fill(&cache, id(1), 3 * BLOCK));
    free.store(10 * BLOCK, Ordering::Relaxed);
    std::thread::sleep(std::time::Duration::from_millis(60));
    let next = entry(&cache, id(2), 2 * BLOCK);
    assert_eq!(keep(&next, 0..BLOCK), Kept::Stored, "the other one went for it");
    assert!(!entry(&cache, id(1), 3 * BLOCK).has(&(0..1)));
    free.store(0, Ordering::Relaxed);
    std::thread::sleep(std::time::Duration::from_millis(60));
    assert_eq!(keep(&next, BLOCK..2 * BLOCK), Kept::NoRoom);
    assert!(cache.0.metrics.not_kept.get() >= BLOCK);
}

#[test]
fn who_was_used_twice_is_still_hot_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.scan();
    for number in 0..10 {
        let size = if number < 5 { 60_000 } else { 300_000 };
        entry(&cache, id(number), size).touch();
        drop(fill(&cache, id(number), size));
        let one = entry(&cache, id(number), size);
        if number % 2 == 0 {
            one.touch();
            load(&one, 0..size);
        }
    }
    drop(cache);
    let limit = on_disk(dir.path()) * 6 / 10;
    let cache = open_with(dir.path(), limit);
    // Somebody is quicker than the scan.
    let early = entry(&cache, id(1), 60_000);
    assert!(early.complete());
    cache.scan();
    assert!(cache.used() <= limit);
    let there = |number: u8| entry(&cache, id(number), if number < 5 { 60_000 } else { 300_000 }).complete();
    assert!([0, 2, 4, 6, 8].into_iter().all(there), "{:?}", (0..10).map(there).collect::<Vec<_>>());
    assert!(!there(5));
}

#[test]
fn few_files_are_open_and_all_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.scan();
    let sized = |number: u32| {
        let mut id = id(u8::try_from(number % 251).unwrap());
        id.0[1..5].copy_from_slice(&number.to_le_bytes());
        entry(&cache, id, 3000)
    };
    let entries: Vec<_> = (0..1500).map(sized).collect();
    for one in &entries {
        keep(one, 0..3000);
    }
    assert!(cache.0.descriptors.open.load(Ordering::Relaxed) <= OPEN_OBJECTS);
    for one in &entries {
        assert_eq!(load(one, 0..3000), Loaded::Filled);
    }
    let open = cache.0.descriptors.open.load(Ordering::Relaxed);
    assert!((1..=OPEN_OBJECTS).contains(&open), "{open}");
    drop(entries);
    assert_eq!(cache.0.descriptors.open.load(Ordering::Relaxed), 0);
    assert!(lock(&cache.0.entries).is_empty());
}

#[test]
fn a_scan_leaves_alone_what_is_not_the_caches_and_removes_its_leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    drop(fill(&cache, id(1), 2 * BLOCK));
    let file = |number: u8, part| path(&cache, id(number), part);
    let write = |number: u8, part, bytes: &[u8]| {
        fs::create_dir_all(cache.0.place.shard(number)).unwrap();
        fs::write(file(number, part), bytes).unwrap();
    };
    // The old format, data and all; a small file that was torn; an index that was never written.
    write(2, Part::Data, b"old data");
    write(2, Part::Index, b"FUSEOSS1 and so on");
    write(3, Part::Small, b"torn");
    write(4, Part::Index, &[0; 5000]);
    // Somebody else's.
    write(5, Part::Index, b"my diary");
    fs::write(cache.0.place.shard(1).join("notes.index"), "x").unwrap();
    fs::write(cache.0.place.shard(1).join(hex::encode([9; 16])), "in the wrong place").unwrap();
    fs::write(dir.path().join("objects/README"), "x").unwrap();
    // Nobody's: data alone. It stays until somebody asks for everything to go.
    write(6, Part::Data, b"data");
    let cache = open(dir.path());
    cache.scan();
    let left: Vec<bool> =
        [(2, Part::Data), (2, Part::Index), (3, Part::Small), (4, Part::Index), (5, Part::Index), (6, Part::Data)]
            .into_iter()
            .map(|(number, part)| path(&cache, id(number), part).exists())
            .collect();
    assert_eq!(left, [false, false, false, false, true, true]);
    let cleared = cache.clear();
    assert_eq!((cleared.objects, cleared.stayed_objects), (1, 0));
    assert!(!path(&cache, id(6), Part::Data).exists() && path(&cache, id(5), Part::Index).exists());
    for theirs in ["objects/01/notes.index", "objects/README"] {
        assert!(dir.path().join(theirs).exists(), "{theirs}");
    }
    assert!(cache.0.place.shard(1).join(hex::encode([9; 16])).exists());
    assert_eq!(cache.used(), 0);
    let mode = fs::metadata(dir.path().join("objects")).unwrap().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

#[test]
fn people_see_what_is_there_and_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.scan();
    let held = fill(&cache, id(1), 2 * BLOCK);
    drop(fill(&cache, id(2), 7000));
    let part = entry(&cache, id(3), 70 * BLOCK);
    keep(&part, 66 * BLOCK..66 * BLOCK + 1);
    drop(part);
    let list = cache.list();
    let shown: Vec<_> = list.iter().map(|it| (it.location.as_str(), it.cached, it.is_complete())).collect();
    assert_eq!(
        shown,
        [("oss://bucket/1", 2 * BLOCK, true), ("oss://bucket/2", 7000, true), ("oss://bucket/3", GRANULE, false)]
    );
    assert_eq!(list[0].etag.as_deref(), Some("\"1\""));
    assert_eq!(list.iter().map(|it| it.disk).sum::<u64>(), cache.used());

    let verified = cache.verify();
    assert_eq!((verified.objects, verified.damaged_objects), (3, 0));
    assert!(verified.bytes >= 2 * BLOCK + 7000 + GRANULE);
    let mut calls = 0;
    let stopped = cache.verify_while(|_| {
        calls += 1;
        false
    });
    assert!(stopped.stopped && calls == 1);
    flip(&path(&cache, id(1), Part::Data), BLOCK + 7);
    flip(&path(&cache, id(2), Part::Small), 6000);
    let verified = cache.verify();
    let damaged: Vec<_> = verified.damaged.iter().map(|it| (it.location.as_str(), it.bytes, it.wrong)).collect();
    assert_eq!(damaged, [("oss://bucket/1", GRANULE, false), ("oss://bucket/2", 8192, false)]);
    assert_eq!(cache.verify().damaged_objects, 0, "it is forgotten");
    assert!(!held.has(&(BLOCK..BLOCK + 1)) && held.has(&(0..BLOCK)));

    let cleared = cache.clear();
    assert_eq!(cleared.stayed.iter().map(|it| it.location.as_str()).collect::<Vec<_>>(), ["oss://bucket/1"]);
    assert!(held.has(&(0..BLOCK)) && cache.used() > 0);
    drop(held);
    assert_eq!(cache.clear().stayed_objects, 0);
    assert_eq!((cache.used(), on_disk(dir.path()), cache.list().len()), (0, 0, 0));
}

#[test]
fn an_object_that_is_not_the_one_the_store_described_is_found_by_verifying() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let one = entry(&cache, id(1), 3 * BLOCK);
    one.learn(Some(Checksum::Crc64(77)));
    assert_eq!(keep(&one, 0..3 * BLOCK), Kept::Completed(Whole::Wrong));
    drop((one, cache));
    // Killed before it was forgotten.
    let cache = open(dir.path());
    let verified = cache.verify();
    assert_eq!(verified.damaged, [Damaged { location: "oss://bucket/1".into(), bytes: 0, wrong: true }]);
    assert!(cache.list().is_empty());
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_and_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.scan();
    // A file where a directory should be: that stops root, too.
    fs::write(cache.0.place.shard(1), "x").unwrap();
    let one = entry(&cache, id(1), 5000);
    assert!(one.keep(0, &content(id(1), 5000)).is_err());
    assert!(!one.has(&(0..1)) && cache.used() == 0);
    let large = entry(&cache, id(1), 5000);
    assert_eq!(load(&large, 0..10), Loaded::Absent);
    assert!(one.keep(1, &[0; 10]).is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput));
    assert!(one.keep(0, &[0; 10]).is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput));
    assert!(one.keep(0, &[0; 6000]).is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput));
}

#[derive(Debug, Clone)]
enum Step {
    Keep(u8, u64, u64),
    Load(u8, u64, u64),
    Learn(u8),
    Touch(u8),
    Hold(u8),
    Drop(u8),
    Forget(u8),
    Evict(u8, u32),
    Damage(u8, u64, bool),
    Restart(bool),
    Clear,
    Verify,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (object, place) = (0_u8..5, any::<u64>());
    let step = prop_oneof![
        8 => (object.clone(), place, 1_u64..60).prop_map(|(o, p, l)| Step::Keep(o, p, l)),
        8 => (object.clone(), place, 1_u64..900_000).prop_map(|(o, p, l)| Step::Load(o, p, l)),
        1 => object.clone().prop_map(Step::Learn),
        1 => object.clone().prop_map(Step::Touch),
        1 => object.clone().prop_map(Step::Hold),
        1 => object.clone().prop_map(Step::Drop),
        1 => object.clone().prop_map(Step::Forget),
        1 => (object.clone(), any::<u32>()).prop_map(|(o, e)| Step::Evict(o, e)),
        2 => (object, place, any::<bool>()).prop_map(|(o, p, i)| Step::Damage(o, p, i)),
        2 => any::<bool>().prop_map(Step::Restart),
        1 => Just(Step::Clear),
        1 => Just(Step::Verify),
    ];
    prop::collection::vec(step, 1..60)
}

/// Sizes of the objects of the model.
const MODEL: [u64; 5] = [9, 70_000, SMALL + 3, 2 * BLOCK - 5, 64 * BLOCK + 30_000];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Whatever is done in whatever order: what is served is right, what is there is counted, and the limit is kept.
    #[test]
    fn every_byte_is_right(steps in steps(), limit in (1_u64 << 20)..(8 << 20)) {
        let dir = tempfile::tempdir().unwrap();
        let contents: Vec<Arc<[u8]>> = MODEL.iter().zip(0..).map(|(size, number)| content(id(number), *size)).collect();
        let mut cache = open_with(dir.path(), limit);
        cache.scan();
        let mut held: HashMap<u8, Arc<Entry>> = HashMap::new();
        let size = |object: u8| MODEL[usize::from(object)];
        for step in steps {
            match step {
                Step::Keep(o, place, granules) => {
                    let start = place % size(o) / GRANULE * GRANULE;
                    let end = (start + granules * GRANULE).min(size(o));
                    let one = entry(&cache, id(o), size(o));
                    let corrupt = cache.0.metrics.corrupt.get();
                    let piece = &contents[usize::from(o)][usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
                    match one.keep(start, piece).unwrap() {
                        Kept::NoRoom => {}
                        Kept::Completed(whole) => prop_assert!(one.complete() && whole != Whole::Wrong),
                        // What was there before may turn out to be damaged when a block is complete.
                        Kept::Stored | Kept::Already => {
                            prop_assert!(one.has(&(start..end)) || cache.0.metrics.corrupt.get() > corrupt);
                        }
                    }
                }
                Step::Load(o, place, len) => {
                    let start = place % size(o);
                    let len = usize::try_from(len.min(size(o) - start)).unwrap();
                    let one = entry(&cache, id(o), size(o));
                    let mut buffer = vec![0; len];
                    let right = &contents[usize::from(o)][usize::try_from(start).unwrap()..][..len];
                    if one.read_proved(start, &mut buffer) {
                        // Damage after proof is the disk's to find; the steps damage only what is looked at anew.
                        prop_assert!(buffer == right);
                    }
                    if one.load(start, &mut buffer) == Loaded::Filled {
                        prop_assert!(buffer == right);
                    }
                }
                Step::Learn(o) => {
                    let checksum = Checksum::Crc64(crc64(&contents[usize::from(o)]));
                    let one = entry(&cache, id(o), size(o));
                    one.learn(Some(checksum));
                    prop_assert_ne!(one.whole(), Whole::Wrong);
                }
                Step::Touch(o) => entry(&cache, id(o), size(o)).touch(),
                Step::Hold(o) => drop(held.insert(o, entry(&cache, id(o), size(o)))),
                Step::Drop(o) => drop(held.remove(&o)),
                Step::Forget(o) => entry(&cache, id(o), size(o)).forget(),
                Step::Evict(o, extent) => {
                    let one = entry(&cache, id(o), size(o));
                    let unit = one.unit(extent % one.extents());
                    if cache.0.space.has(&unit) {
                        let bytes = cache.0.space.take(&unit);
                        cache.0.evict(unit, size(o), bytes);
                        prop_assert!(!one.has(&(u64::from(unit.extent) * EXTENT..u64::from(unit.extent) * EXTENT + 1)));
                    }
                }
                Step::Damage(o, place, in_index) => {
                    held.clear();
                    drop(std::mem::replace(&mut cache, open_with(dir.path(), limit)));
                    let small = size(o) <= SMALL;
                    let part = if small { Part::Small } else if in_index { Part::Index } else { Part::Data };
                    let file = path(&cache, id(o), part);
                    if let Ok(meta) = fs::metadata(&file) && meta.len() > 0 {
                        // An index that does not begin as ours do is somebody else's, and stays.
                        let from = if part == Part::Index { 8 } else { 0 };
                        flip(&file, from + place % (meta.len() - from));
                    }
                    cache.scan();
                }
                Step::Restart(scan_late) => {
                    held.clear();
                    cache = open_with(dir.path(), limit);
                    let early = entry(&cache, id(3), size(3));
                    if scan_late {
                        early.has(&(0..size(3)));
                    }
                    cache.scan();
                }
                Step::Clear => {
                    let stayed = cache.clear().stayed_objects;
                    prop_assert!(stayed <= u64::try_from(held.len()).unwrap());
                }
                Step::Verify => drop(cache.verify()),
            }
            prop_assert!(cache.used() <= limit, "{} > {}", cache.used(), limit);
        }
        held.clear();
        let (counted, taken) = (cache.used(), on_disk(dir.path()));
        // Extents that were put out leave their part of the index, and the last granule of a small object its page.
        prop_assert!(counted.abs_diff(taken) <= 24 * PAGE, "{} counted, {} on the disk", counted, taken);
    }
}

#[test]
fn data_that_nothing_speaks_of_any_more_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    drop(fill(&open(dir.path()), id(1), 4 * BLOCK + 5));
    let before = on_disk(dir.path());
    let cache = open(dir.path());
    for block in [1, 2] {
        flip(&path(&cache, id(1), Part::Index), SLOTS_AT + block * 288 + 5);
    }
    // Not while somebody has it.
    let held = entry(&cache, id(1), 4 * BLOCK + 5);
    cache.scan();
    assert_eq!(on_disk(dir.path()), before);
    drop((held, cache));
    let cache = open(dir.path());
    cache.scan();
    assert!(on_disk(dir.path()) <= before - 2 * BLOCK + 2 * PAGE, "{} of {before}", on_disk(dir.path()));
    assert!(cache.used().abs_diff(on_disk(dir.path())) <= 2 * PAGE);
    let one = entry(&cache, id(1), 4 * BLOCK + 5);
    assert_eq!((load(&one, 0..BLOCK), load(&one, BLOCK..BLOCK + 1)), (Loaded::Filled, Loaded::Absent));
    assert_eq!(load(&one, 3 * BLOCK..4 * BLOCK + 5), Loaded::Filled);
}
