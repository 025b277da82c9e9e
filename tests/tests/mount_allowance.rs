//! What one mount may take of the cache that all share, and the least it fetches.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use tests::bucket::{Bucket, forget_pages, sample};
use tests::mounts::wait_until;

const FILE: u64 = 2 << 20;

/// A bucket of some files of the same length.
fn bucket(argument: &str) -> Bucket {
    let bucket = Bucket::new().argument(argument);
    for number in 0..6 {
        bucket.put(&format!("f{number}"), sample(number, FILE));
    }
    bucket.mount();
    bucket
}

/// Reads a file and drops what the kernel has of it; how many bytes the store had to send.
fn read(bucket: &Bucket, number: u64) -> u64 {
    let before = bucket.bytes_sent();
    let file = bucket.open(&format!("f{number}"));
    assert!(fs::read(bucket.path(&format!("f{number}"))).unwrap() == sample(number, FILE), "{number}");
    forget_pages(&file).unwrap();
    bucket.bytes_sent() - before
}

fn used(bucket: &Bucket) -> u64 {
    bucket.sandbox.status()["cache_used"].as_u64().unwrap()
}

#[test]
fn a_mount_takes_no_more_of_the_disk_than_it_may() {
    let bucket = bucket("--mount-cache-size=5MiB");
    for number in [0, 1, 2, 3, 4, 5, 0, 5] {
        read(&bucket, number);
        wait_until("what has to make room has gone", || used(&bucket) <= (5 << 20) + (1 << 20));
    }
    wait_until("it is on the disk", || used(&bucket) >= 2 * FILE);
    // The last two are there, in memory or on disk, and the others are not on the disk.
    let again = Bucket::gets(&bucket);
    assert_eq!((read(&bucket, 0), read(&bucket, 5), Bucket::gets(&bucket)), (0, 0, again));
    bucket.sandbox.umount();
    assert!(used_after(&bucket) <= (5 << 20) + (1 << 20));
}

/// The same while nothing is mounted: what is in the files.
fn used_after(bucket: &Bucket) -> u64 {
    let mut sum = 0;
    let mut todo = vec![bucket.sandbox.path("cache")];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                todo.push(entry.path());
            } else {
                sum += std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
            }
        }
    }
    sum
}

#[test]
fn a_mount_can_keep_out_of_the_cache() {
    let keeping = bucket("--allow-other");
    read(&keeping, 0);
    wait_until("it is on the disk", || used(&keeping) >= FILE);
    let kept = used(&keeping);
    let other = keeping.sandbox.path("other");
    fs::create_dir(&other).unwrap();
    let keeping = keeping.argument("--mount-cache-size=0");
    keeping.mount_on(&other);
    // Neither what is there already nor what is new comes from the disk or goes to it.
    for number in [0, 1, 2] {
        assert!(fs::read(other.join(format!("f{number}"))).unwrap() == sample(number, FILE));
    }
    keeping.sandbox.run(["umount".as_ref(), other.as_os_str()]).succeeded();
    assert_eq!(used(&keeping), kept);
    // The first mount has what it had.
    assert_eq!(read(&keeping, 0), 0);
}

#[test]
fn a_random_read_fetches_no_less_than_is_asked_for() {
    for (argument, least, most) in [("--fetch-size=3MB", 4 << 20, 5 << 20), ("--fetch-size=4KiB", 1, 3 << 20)] {
        let bucket = Bucket::new().argument(argument).argument("--mount-cache-size=0");
        bucket.put("large", sample(1, 40 << 20));
        bucket.mount();
        // Opening it reads its beginning.
        let file = File::open(bucket.path("large")).unwrap();
        let before = bucket.bytes_sent();
        let mut piece = [0; 100];
        file.read_exact_at(&mut piece, 21 << 20).unwrap();
        assert!(piece[..] == sample(1, 40 << 20)[21 << 20..(21 << 20) + 100]);
        let sent = bucket.bytes_sent() - before;
        assert!((least..=most).contains(&sent), "{argument}: {sent}");
    }
}
