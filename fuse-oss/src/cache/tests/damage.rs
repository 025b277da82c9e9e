//! Whatever happens to the files: nothing wrong is ever served.

use super::*;

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
        evict(&cache, one.unit(0), size);
        keep(&one, BLOCK..2 * BLOCK);
    }
    evict(&cache, one.unit(one.extents() - 1), size);
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
