//! Who goes, when, and that nobody notices.

use super::*;

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
        evict(&cache, unit, size);
    }
    assert!(!path(&cache, id(1), Part::Data).exists() && !path(&cache, id(1), Part::Index).exists());
}

/// Tells the readers to stop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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
        // Also when this panics: the others would go on for ever.
        let _stop = Stop(&stop);
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
                evict(&cache, unit, size);
            }
            assert!(cache.used() <= 70 * BLOCK);
        }
    });
    assert!(filled.load(Ordering::Relaxed) > 100, "{filled:?}");
    assert_eq!(cache.0.metrics.corrupt.get(), 0);
    assert!(cache.used().abs_diff(on_disk(dir.path())) < 64 * PAGE, "{} {}", cache.used(), on_disk(dir.path()));
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
