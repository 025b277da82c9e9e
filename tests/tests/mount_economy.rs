//! What reading costs: memory, and requests to the store. Counted, and never timed.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tests::bucket::{Bucket, NAME, forget_pages, sample};
use tests::double::{Content, Fault, Often, Operation, Request, When};
use tests::mounts::wait_until;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The part of all requests that may be repeated: one that is much slower than its peers is raced by a second one, and on a machine
/// that is busy with other tests some are.
const RACED: usize = 20;

fn is_get(request: &Request) -> bool {
    request.operation == Operation::GetObject
}

/// The bytes a GET asked for, of an object of this size.
fn range(request: &Request, size: u64) -> Range<u64> {
    let Some(range) = &request.range else { return 0..size };
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    first.parse().unwrap()..last.parse::<u64>().map_or(size, |last| last + 1)
}

fn slow_gets(bucket: &Bucket, milliseconds: u64) {
    let when = When::any().operation(Operation::GetObject);
    bucket.double.fault(Fault::Latency(Duration::from_millis(milliseconds)), when, Often::Always);
}

/// Until so many bytes are in the cache on disk: what was read is written there behind the reader's back.
fn settled(bucket: &Bucket, bytes: u64) {
    wait_until("everything read is in the cache", || bucket.sandbox.status()["cache_used"].as_u64().unwrap() >= bytes);
}

/// What nobody else could use of a process's memory, in bytes: its program and the files it has mapped are not its own.
fn own_memory(pid: nix::unistd::Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
    };
    (line("RssAnon:").unwrap_or(0) + line("RssShmem:").unwrap_or(0)) * KIB
}

#[test]
fn sixty_four_readers_stay_within_the_memory_limit() {
    const READERS: u64 = 64;
    const LIMIT: u64 = 64 * MIB;
    // 512 MiB in all, which neither the double nor the test has to hold: each object repeats a block of its own.
    const PERIOD: u64 = MIB - 17;
    let size = 8 * MIB;
    let blocks: Vec<Bytes> = (0..READERS).map(|number| sample(number, PERIOD)).collect();
    // On disk and without: with no cache there, memory is all there is.
    for cache in ["1GiB", "0"] {
        let bucket = Bucket::new().memory_limit("64MiB").cache_size(cache);
        for (number, block) in blocks.iter().enumerate() {
            bucket.double.put(NAME, &format!("{number}"), Content::repeating(block.clone(), size));
        }
        slow_gets(&bucket, 5);
        bucket.mount();
        let server = bucket.sandbox.server().unwrap();
        let (done, start) = (AtomicBool::new(false), Barrier::new(blocks.len()));
        let peak = std::thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut peak = 0;
                while !done.load(Ordering::Relaxed) {
                    peak = peak.max(own_memory(server));
                    std::thread::sleep(Duration::from_millis(2));
                }
                peak
            });
            let readers: Vec<_> = (0..)
                .zip(&blocks)
                .map(|(number, block)| {
                    let (bucket, start) = (&bucket, &start);
                    let number: usize = number;
                    let twice = [block.clone(), block.clone()].concat();
                    scope.spawn(move || {
                        let mut file = bucket.open(&number.to_string());
                        start.wait();
                        let (mut at, mut got) = (0, vec![0; 128 << 10]);
                        loop {
                            let count = file.read(&mut got).unwrap_or_else(|error| {
                                panic!("reader {number} cannot read at {at}: {error}");
                            });
                            if count == 0 {
                                break;
                            }
                            let inside = at % block.len();
                            assert!(got[..count] == twice[inside..inside + count], "reader {number} at {at}");
                            at += count;
                        }
                        assert_eq!(at as u64, size, "reader {number}");
                    })
                })
                .collect();
            let ended: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
            done.store(true, Ordering::Relaxed);
            let peak = sampler.join().unwrap();
            for reader in ended {
                reader.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
            peak
        });
        assert!(peak > MIB, "{peak} bytes is not what a server takes");
        assert!(
            peak <= LIMIT + 32 * MIB,
            "{} MiB of memory with a limit of {} MiB and a cache of {cache}",
            peak / MIB,
            LIMIT / MIB
        );
        let status = bucket.sandbox.status();
        assert!(status["memory_used"].as_u64().unwrap() <= LIMIT, "{status}");
    }
}

#[test]
fn readers_of_the_same_range_are_one_request() {
    let bucket = Bucket::new();
    let bytes = sample(1, 8 * MIB);
    bucket.put("object", bytes.clone());
    // Each mount has pages of its own in the kernel, so that all of them ask; the cache behind them is one.
    let mounts: Vec<_> = (0..6).map(|number| bucket.sandbox.path(&format!("mount-{number}"))).collect();
    for mount in &mounts {
        bucket.mount_at(mount);
    }
    slow_gets(&bucket, 300);
    let start = Barrier::new(4 * mounts.len());
    let place = 5 * MIB;
    std::thread::scope(|scope| {
        for mount in &mounts {
            let file = File::open(mount.join("object")).unwrap();
            for reader in 0..4_u64 {
                let (file, start, bytes) = (file.try_clone().unwrap(), &start, &bytes);
                scope.spawn(move || {
                    start.wait();
                    let (at, mut got) = (place + reader * 100, [0; 4096]);
                    file.read_exact_at(&mut got, at).unwrap();
                    assert!(got == bytes[usize::try_from(at).unwrap()..][..4096]);
                });
            }
        }
    });
    let requests = bucket.double.requests();
    let there: Vec<_> =
        requests.iter().filter(|request| is_get(request)).map(|request| range(request, 8 * MIB)).collect();
    let there = there.iter().filter(|range| range.contains(&place));
    // One, and at most one that races it: it is slow.
    let count = there.clone().count();
    assert!((1..=2).contains(&count), "{count} requests for the same place: {:?}", there.collect::<Vec<_>>());
}

#[test]
fn a_small_file_is_one_request_and_never_another() {
    let bucket = Bucket::new();
    let files: Vec<(String, Bytes)> = (0..60)
        .map(|number| (format!("dir-{}/{number}", number % 3), sample(number, 1 + number * 997 % (64 * KIB))))
        .collect();
    for (key, bytes) in &files {
        bucket.put(key, bytes.clone());
    }
    let total: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    bucket.mount();
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (bucket, files) = (&bucket, &files);
            scope.spawn(move || {
                for (key, bytes) in files.iter().cycle().skip(reader * 7).take(files.len()) {
                    assert!(fs::read(bucket.path(key)).unwrap() == *bytes, "{key}");
                }
            });
        }
    });
    let requests = bucket.double.requests();
    for (key, bytes) in &files {
        let of_it: Vec<_> = requests.iter().filter(|request| is_get(request) && request.key == *key).collect();
        assert!((1..=2).contains(&of_it.len()), "{key} of {} bytes: {of_it:?}", bytes.len());
    }
    assert!(bucket.gets() <= files.len() + files.len() / RACED, "{} requests for {} files", bucket.gets(), files.len());
    let heads = bucket.double.count(|request| request.operation == Operation::HeadObject);
    // A name may be looked up before its directory has been listed.
    assert!(heads <= 3, "{heads} HEAD requests for what the listing says");
    settled(&bucket, total);
    for again in ["without pages", "mounted again", "another server"] {
        match again {
            "without pages" => {
                for (key, _) in &files {
                    forget_pages(&bucket.open(key)).unwrap();
                }
            }
            "mounted again" => bucket.remount(),
            _ => bucket.restart(),
        }
        bucket.double.clear_requests();
        for (key, bytes) in &files {
            assert!(fs::read(bucket.path(key)).unwrap() == *bytes, "{key} {again}");
        }
        assert_eq!(bucket.gets(), 0, "{again}");
    }
}

#[test]
fn what_is_in_the_cache_is_not_asked_for_by_a_new_mount_or_a_new_server() {
    let bucket = Bucket::new();
    let files = [("small", 3 * KIB), ("block", MIB), ("large", 21 * MIB + 5)];
    let files = files.map(|(key, size)| (key, sample(size, size)));
    for (key, bytes) in &files {
        bucket.put(key, bytes.clone());
    }
    // Of this one only some places are read, far apart.
    let places = [7 * MIB + 11, 33 * MIB, 60 * MIB - 9000];
    let part = sample(9, 60 * MIB);
    bucket.put("part", part.clone());
    let read = || {
        for (key, bytes) in &files {
            assert!(fs::read(bucket.path(key)).unwrap() == *bytes, "{key}");
        }
        let file = bucket.open("part");
        for at in places {
            let mut got = vec![0; 9000];
            file.read_exact_at(&mut got, at).unwrap();
            assert!(got == part[usize::try_from(at).unwrap()..][..9000], "at {at}");
        }
    };
    bucket.mount();
    read();
    settled(&bucket, 22 * MIB + 3 * KIB + 3 * 9000);
    for restart in [false, true] {
        if restart {
            bucket.restart();
        } else {
            bucket.remount();
        }
        bucket.double.clear_requests();
        read();
        let again = bucket.double.requests();
        let again: Vec<_> = again
            .iter()
            .filter(|request| {
                let range = range(request, 60 * MIB);
                let known = places.iter().any(|at| range.start < at + 9000 && *at < range.end);
                if request.key == "part" {
                    is_get(request) && known
                } else {
                    request.operation != Operation::ListObjects
                }
            })
            .collect();
        assert!(again.is_empty(), "restart {restart}: {again:?}");
    }
}

#[test]
fn a_random_read_of_4_kib_fetches_no_more_than_256_kib() {
    const READS: u64 = 64;
    let bucket = Bucket::new();
    let size = 200 * MIB;
    let block = sample(1, 7 * MIB);
    bucket.double.put(NAME, "object", Content::repeating(block.clone(), size));
    bucket.mount();
    let file = bucket.open("object");
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..READS {
        let at = random.u64(0..size - 4096);
        let mut got = [0; 4096];
        file.read_exact_at(&mut got, at).unwrap();
        let right: Vec<u8> = (at..at + 4096).map(|at| block[usize::try_from(at % (7 * MIB)).unwrap()]).collect();
        assert!(got[..] == right, "at {at}");
    }
    let sent = bucket.bytes_sent();
    // Opening it may have fetched its beginning.
    assert!(sent <= READS * 256 * KIB + MIB, "{} KiB fetched per read", sent / READS / KIB);
}

#[test]
fn small_files_that_are_read_in_order_are_fetched_ahead() {
    const FILES: u64 = 200;
    let bucket = Bucket::new();
    for number in 0..FILES {
        bucket.put(&format!("lane/{number:04}.bin"), sample(number, 20 * KIB));
    }
    bucket.mount();
    let names: Vec<_> = fs::read_dir(bucket.path("lane")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len() as u64, FILES);
    slow_gets(&bucket, 30);
    for path in &names {
        let name = path.file_name().unwrap().to_str().unwrap();
        let number = name.strip_suffix(".bin").unwrap().parse().unwrap();
        assert!(fs::read(path).unwrap() == sample(number, 20 * KIB), "{name}");
    }
    // One request per file, as without reading ahead.
    assert!(bucket.gets() <= names.len() + names.len() / RACED, "{} requests for {FILES} files", bucket.gets());
    assert!(bucket.double.most_at_once(is_get) > 1, "never more than one request under way");
    let chain = one_after_another(&bucket.double.requests());
    assert!(chain <= names.len() / 2, "{chain} of {FILES} requests were made one after another");
}

/// The most requests of which each came when the one before had been answered: what a reader has waited for, at least.
fn one_after_another(requests: &[Request]) -> usize {
    let mut spans: Vec<_> =
        requests.iter().filter(|request| is_get(request)).filter_map(|r| Some((r.answered?, r.arrived))).collect();
    spans.sort();
    let mut free = None;
    let mut chain = 0;
    for (answered, arrived) in spans {
        if free.is_none_or(|free| arrived >= free) {
            free = Some(answered);
            chain += 1;
        }
    }
    chain
}
