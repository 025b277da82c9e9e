//! Objects that are complete in the cache are read by the kernel alone, where it can; and whatever becomes of the cache meanwhile,
//! every byte is right. Where passthrough is not expected, the same bytes must come through the server.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use tests::bucket::{Bucket, forget_pages, passthrough_expected, sample};
use tests::double::{Fault, Often, Operation, When};
use tests::mapped::Mapped;
use tests::model::damage;
use tests::mounts::wait_until;

const MIB: u64 = 1 << 20;
/// Too large to count as small, with an odd end.
const SIZE: u64 = 8 * MIB + 4321;

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// Reads a whole file on an open handle, in pieces of an odd size, and compares it.
#[track_caller]
fn assert_reads(file: &File, right: &Bytes) {
    assert_piecewise(right, |at, got| file.read_exact_at(got, at as u64));
}

/// The same through a mapping.
#[track_caller]
fn assert_maps(mapped: &Mapped, right: &Bytes) {
    assert_piecewise(right, |at, got| mapped.read_at(at, got).map(|count| assert_eq!(count, got.len())));
}

#[track_caller]
fn assert_piecewise(right: &Bytes, read: impl Fn(usize, &mut [u8]) -> std::io::Result<()>) {
    let mut got = vec![0; 777_777];
    for (number, piece) in right.chunks(777_777).enumerate() {
        let at = number * 777_777;
        let got = &mut got[..piece.len()];
        read(at, got).unwrap_or_else(|error| panic!("{} bytes at {at}: {error}", piece.len()));
        if got != piece {
            let same = piece.iter().zip(got.iter()).take_while(|(right, got)| right == got).count();
            panic!("byte {} is {} and should be {}", at + same, got[same], piece[same]);
        }
    }
}

fn map(file: &File, right: &Bytes) -> Mapped {
    Mapped::new(file, NonZeroUsize::new(right.len()).unwrap()).unwrap()
}

/// A handle on an object that is in the cache, whole: served by the kernel alone where that can be.
#[track_caller]
fn complete(bucket: &Bucket, key: &str, right: &Bytes) -> File {
    assert_reads(&bucket.open(key), right);
    if !passthrough_expected(&bucket.sandbox) {
        return bucket.open(key);
    }
    // What was fetched last may still be on its way to the disk, and the handle before on its way out: how a file is read is
    // chosen anew only when nobody has it open.
    for attempt in 0..8 {
        let file = bucket.open(key);
        let alone = bucket.works_without_server(|| {
            forget_pages(&file).unwrap();
            let mut got = vec![0; 70_000];
            file.read_exact_at(&mut got, 3 * MIB).unwrap();
            assert!(got == right[index(3 * MIB)..][..70_000]);
        });
        if alone {
            return file;
        }
        drop(file);
        std::thread::sleep(Duration::from_millis(100 << attempt));
    }
    panic!("{key:?} is complete in the cache and still cannot be read without the server");
}

/// Reads so much of other objects that whatever a cache of 20 MiB had before is gone from it.
fn crowd_out(bucket: &Bucket) {
    for number in 0..5 {
        let bytes = sample(100 + number, 12 * MIB);
        let key = format!("crowd/{number}");
        assert!(fs::read(bucket.path(&key)).unwrap() == bytes, "{key}");
    }
}

fn put_crowd(bucket: &Bucket) {
    for number in 0..5 {
        bucket.put(&format!("crowd/{number}"), sample(100 + number, 12 * MIB));
    }
}

#[test]
fn a_complete_object_is_read_by_the_kernel_alone() {
    let bucket = Bucket::new();
    let bytes = sample(1, SIZE);
    bucket.put("object", bytes.clone());
    bucket.mount();
    for restarted in [false, true] {
        let file = complete(&bucket, "object", &bytes);
        if passthrough_expected(&bucket.sandbox) {
            // Made before: the process that gets the mapping closes what it inherits, and each such close asks the server.
            let mapped = map(&file, &bytes);
            let alone = bucket.works_without_server(|| {
                forget_pages(&file).unwrap();
                assert_reads(&file, &bytes);
                assert_maps(&mapped, &bytes);
                assert_eq!(file.read_at(&mut [0; 10], SIZE).unwrap(), 0);
                assert_eq!(file.read_at(&mut [0; 10], SIZE - 3).unwrap(), 3);
            });
            assert!(alone, "the server was needed, restarted: {restarted}");
        }
        drop(file);
        if !restarted {
            bucket.double.clear_requests();
            bucket.restart();
        }
    }
    assert_eq!(bucket.gets(), 0, "it is in the cache");
}

#[test]
fn a_handle_from_before_the_object_was_complete_goes_on_beside_those_from_after() {
    let bucket = Bucket::new();
    let bytes = sample(1, SIZE);
    bucket.put("object", bytes.clone());
    bucket.mount();
    let before = bucket.open("object");
    let mapped_before = map(&before, &bytes);
    before.read_exact_at(&mut [0; 4096], 0).unwrap();
    assert_reads(&bucket.open("object"), &bytes);
    wait_until("all of it is in the cache", || bucket.sandbox.status()["cache_used"].as_u64().unwrap() >= SIZE);
    for _ in 0..5 {
        let after = bucket.open("object");
        forget_pages(&before).unwrap();
        assert_reads(&after, &bytes);
        assert_reads(&before, &bytes);
        assert_maps(&mapped_before, &bytes);
        assert_maps(&map(&after, &bytes), &bytes);
    }
    drop(mapped_before);
    drop(before);
    // And the other way round, with the last one of the old kind gone.
    let kernel = complete(&bucket, "object", &bytes);
    for _ in 0..5 {
        let another = bucket.open("object");
        assert_reads(&another, &bytes);
        assert_reads(&kernel, &bytes);
    }
}

#[test]
fn two_hundred_open_an_object_at_once_while_it_becomes_complete() {
    let bucket = Bucket::new();
    let objects: Vec<(String, Bytes)> = (0..4).map(|number| (format!("{number}"), sample(number, SIZE))).collect();
    for (key, bytes) in &objects {
        bucket.put(key, bytes.clone());
    }
    // So that it takes a while.
    bucket.double.fault(
        Fault::Latency(Duration::from_millis(15)),
        When::any().operation(Operation::GetObject),
        Often::Always,
    );
    bucket.mount();
    for (key, bytes) in &objects {
        let start = Barrier::new(200);
        std::thread::scope(|scope| {
            for reader in 0..200_u64 {
                let (bucket, start) = (&bucket, &start);
                scope.spawn(move || {
                    start.wait();
                    let mut random = fastrand::Rng::with_seed(reader);
                    for _ in 0..6 {
                        let file = bucket.open(key);
                        let at = random.usize(0..bytes.len() - 50_000);
                        let mut got = vec![0; 50_000];
                        file.read_exact_at(&mut got, at as u64)
                            .unwrap_or_else(|error| panic!("reader {reader} of {key:?} at {at}: {error}"));
                        assert!(got == bytes[at..at + 50_000], "reader {reader} of {key:?} at {at}");
                        if reader % 50 == 0 {
                            assert_reads(&file, bytes);
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn what_is_evicted_while_it_is_open_keeps_its_bytes() {
    let bucket = Bucket::new().cache_size("20MiB").memory_limit("32MiB");
    let bytes = sample(1, SIZE);
    bucket.put("object", bytes.clone());
    put_crowd(&bucket);
    bucket.mount();
    for _ in 0..2 {
        let file = complete(&bucket, "object", &bytes);
        let mapped = map(&file, &bytes);
        assert_maps(&mapped, &bytes);
        std::thread::scope(|scope| {
            let crowd = scope.spawn(|| crowd_out(&bucket));
            while !crowd.is_finished() {
                // It fails where somebody has the pages mapped, and then they need not be dropped.
                let _ = forget_pages(&file);
                assert_reads(&file, &bytes);
                assert_maps(&mapped, &bytes);
            }
            crowd.join().unwrap();
        });
        // Whoever opens it now finds it as well, and both go on.
        let again = bucket.open("object");
        forget_pages(&again).unwrap();
        assert_reads(&again, &bytes);
        assert_reads(&file, &bytes);
        assert_maps(&mapped, &bytes);
        wait_until("the cache is within its limit", || {
            bucket.sandbox.status()["cache_used"].as_u64().unwrap() <= 20 * MIB
        });
    }
}

#[test]
fn an_object_that_two_mounts_show_is_evicted_under_both_and_right_in_both() {
    let bucket = Bucket::new().cache_size("20MiB").memory_limit("32MiB");
    let bytes = sample(1, SIZE);
    bucket.put("object", bytes.clone());
    put_crowd(&bucket);
    bucket.mount();
    let second = bucket.sandbox.path("second");
    bucket.mount_at(&second);
    let here = complete(&bucket, "object", &bytes);
    let there = File::open(second.join("object")).unwrap();
    assert_reads(&there, &bytes);
    crowd_out(&bucket);
    // Half of it again, through one of them.
    let again = File::open(second.join("object")).unwrap();
    again.read_exact_at(&mut [0; 4096], 4 * MIB).unwrap();
    for file in [&here, &there, &again] {
        forget_pages(file).unwrap();
        assert_reads(file, &bytes);
    }
    drop((there, again));
    bucket.sandbox.run(["umount".as_ref(), second.as_os_str()]).succeeded();
    forget_pages(&here).unwrap();
    assert_reads(&here, &bytes);
}

#[test]
fn what_was_damaged_on_the_disk_is_not_passed_through() {
    for seed in 0..6 {
        let bucket = Bucket::new();
        let bytes = sample(1, SIZE);
        bucket.put("object", bytes.clone());
        bucket.mount();
        drop(complete(&bucket, "object", &bytes));
        bucket.sandbox.umount();
        bucket.end_server(Signal::SIGTERM);
        let done = damage(&bucket.sandbox.path("cache"), 1, seed).unwrap();
        assert_eq!(done.len(), 1, "there is a file to damage");
        println!("{done:?}");
        bucket.mount();
        // Random places first: nothing may be trusted because something else was found right.
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..20 {
            let file = bucket.open("object");
            let at = random.usize(0..bytes.len() - 9000);
            let mut got = vec![0; 9000];
            file.read_exact_at(&mut got, at as u64).unwrap();
            assert!(got == bytes[at..at + 9000], "at {at}: {done:?}");
        }
        assert_reads(&bucket.open("object"), &bytes);
        drop(complete(&bucket, "object", &bytes));
    }
}

#[test]
fn a_killed_server_leaves_open_handles_right_or_failing() {
    let bucket = Bucket::new();
    let bytes = sample(1, SIZE);
    bucket.put("object", bytes.clone());
    bucket.mount();
    let file = complete(&bucket, "object", &bytes);
    let mapped = map(&file, &bytes);
    bucket.end_server(Signal::SIGKILL);
    for at in (0..SIZE - 4096).step_by(500_000) {
        let mut got = vec![0; 4096];
        for read in [file.read_exact_at(&mut got, at), mapped.read_at(index(at), &mut got).map(drop)] {
            match read {
                Ok(()) => assert!(got == bytes[index(at)..][..4096], "at {at}"),
                Err(error) => {
                    let code = error.raw_os_error().unwrap();
                    assert!([libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::EFAULT].contains(&code), "{error}");
                }
            }
        }
    }
    drop((file, mapped));
    bucket.mount();
    drop(complete(&bucket, "object", &bytes));
}
