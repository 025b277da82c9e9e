//! The cache as a whole, on a real file system.

mod damage;
mod eviction;
mod model;

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
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

/// Puts out this very extent, as if it had been chosen.
fn evict(cache: &Cache, unit: policy::Unit, size: u64) {
    if let Some(bytes) = cache.0.space.take(&unit) {
        cache.0.evict(unit, size, bytes);
    }
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

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
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
