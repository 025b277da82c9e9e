//! What a mount says when the bucket behind it changes, refuses or lies: the right error number, a log line that names the
//! object, and never bytes of two versions.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use tests::bucket::{Bucket, NAME, forget_pages, sample};
use tests::double::{AccessKey, Action, Fault, Often, Operation, When};
use tests::mounts::wait_until;

const MIB: u64 = 1 << 20;
const SMALL: u64 = 20_000;

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// Reads `len` bytes at `offset`: right, or the error's number.
fn read(file: &File, right: &[u8], offset: u64, len: usize) -> Result<(), i32> {
    let mut got = vec![0; len];
    file.read_exact_at(&mut got, offset).map_err(|error| error.raw_os_error().expect("the system's error"))?;
    assert!(got == right[index(offset)..index(offset) + len], "wrong bytes at {offset}");
    Ok(())
}

/// The error's number of reading all of an object.
#[track_caller]
fn failure(bucket: &Bucket, key: &str) -> i32 {
    match fs::read(bucket.path(key)) {
        Ok(bytes) => panic!("{} bytes of {key:?} were read", bytes.len()),
        Err(error) => error.raw_os_error().expect("the system's error"),
    }
}

/// The lines of the server's log that name an object and say all of these.
fn said(bucket: &Bucket, key: &str, hints: &[&str]) -> bool {
    let log = bucket.sandbox.log();
    log.lines().any(|line| line.contains(key) && hints.iter().all(|hint| line.contains(hint)))
}

#[track_caller]
fn assert_said(bucket: &Bucket, key: &str, hints: &[&str]) {
    assert!(said(bucket, key, hints), "no line with {key:?} and {hints:?} in\n{}", bucket.sandbox.log());
}

#[test]
fn an_object_replaced_while_it_is_read_is_stale_and_named() {
    for scheme in ["oss", "s3"] {
        // Without a cache on disk everything that the kernel has dropped has to be fetched again.
        for cache in ["0", "1GiB"] {
            let bucket = Bucket::new().location(scheme, "").cache_size(cache).memory_limit("32MiB");
            let (old, new) = (sample(1, 80 * MIB), sample(2, 80 * MIB));
            bucket.put("dir/replaced", old.clone());
            bucket.mount();
            let file = bucket.open("dir/replaced");
            for offset in (0..20 * MIB).step_by(1 << 20) {
                read(&file, &old, offset, 1 << 20).unwrap();
            }
            bucket.put("dir/replaced", new.clone());
            forget_pages(&file).unwrap();
            // The old bytes or an error, and an error at last: nobody has all of the old ones any more.
            let rest: Vec<_> =
                (0..80 * MIB).step_by(1 << 20).map(|offset| read(&file, &old, offset, 1 << 20)).collect();
            assert!(rest.iter().all(|read| matches!(read, Ok(()) | Err(libc::ESTALE))), "{rest:?}");
            assert!(rest.contains(&Err(libc::ESTALE)), "{rest:?}");
            assert_said(&bucket, "dir/replaced", &["mount"]);
            // Nor does a new handle mix: what was shown is gone.
            match File::open(bucket.path("dir/replaced")) {
                Ok(again) => assert_eq!(read(&again, &old, 79 * MIB, 4096), Err(libc::ESTALE)),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE)),
            }
            drop(file);
            bucket.remount();
            assert!(fs::read(bucket.path("dir/replaced")).unwrap() == new);
        }
    }
}

#[test]
fn an_object_replaced_before_it_is_opened_is_stale_and_named() {
    let bucket = Bucket::new();
    let sizes = [("seen-small", SMALL), ("seen-large", 5 * MIB)];
    for (key, size) in sizes {
        bucket.put(key, sample(1, size));
    }
    bucket.mount();
    for (key, size) in sizes {
        assert_eq!(fs::metadata(bucket.path(key)).unwrap().len(), size);
        bucket.put(key, sample(2, size));
        assert_eq!(failure(&bucket, key), libc::ESTALE, "{key}");
        assert_said(&bucket, key, &["mount"]);
        // Its attributes stay as they were shown.
        assert_eq!(fs::metadata(bucket.path(key)).unwrap().len(), size);
    }
}

#[test]
fn an_object_replaced_by_a_longer_or_shorter_one_is_stale_as_well() {
    let bucket = Bucket::new();
    for (key, after) in [("longer", 4 * MIB), ("shorter", 2 * MIB), ("empty", 0)] {
        bucket.put(key, sample(1, 3 * MIB));
        // Each is seen by a mount of its own before it changes.
        bucket.mount();
        let file = bucket.open(key);
        bucket.put(key, sample(2, after));
        forget_pages(&file).unwrap();
        let last = read(&file, &sample(1, 3 * MIB), 3 * MIB - 4096, 4096);
        assert!(matches!(last, Ok(()) | Err(libc::ESTALE)), "{last:?}");
        assert_eq!(file.metadata().unwrap().len(), 3 * MIB);
        drop(file);
        bucket.sandbox.umount();
    }
}

#[test]
fn an_object_deleted_while_it_is_read_is_stale_and_one_deleted_before_is_missing() {
    let bucket = Bucket::new();
    let bytes = sample(1, 60 * MIB);
    bucket.put("deleted-while-open", bytes.clone());
    bucket.put("deleted-before", sample(2, SMALL));
    bucket.mount();
    let file = bucket.open("deleted-while-open");
    read(&file, &bytes, 0, 4096).unwrap();
    assert_eq!(fs::metadata(bucket.path("deleted-before")).unwrap().len(), SMALL);
    bucket.double.delete(NAME, "deleted-while-open");
    bucket.double.delete(NAME, "deleted-before");
    assert_eq!(read(&file, &bytes, 50 * MIB, 4096), Err(libc::ESTALE));
    assert_said(&bucket, "deleted-while-open", &["mount"]);
    assert_eq!(failure(&bucket, "deleted-before"), libc::ENOENT);
}

#[test]
fn a_right_that_is_taken_away_is_said_at_open_and_given_back_without_mounting_again() {
    let bucket = Bucket::new();
    let bytes = sample(1, 3 * MIB);
    for key in ["taken/small", "taken/large"] {
        bucket.put(key, if key.ends_with("small") { bytes.slice(..20_000) } else { bytes.clone() });
    }
    bucket.mount();
    bucket.double.set_keys(vec![AccessKey::new("test-key", "test-secret").deny(Action::Read, "taken/")]);
    for key in ["taken/small", "taken/large"] {
        // Before anything is read, so that programs say what is wrong.
        assert_eq!(File::open(bucket.path(key)).unwrap_err().raw_os_error(), Some(libc::EACCES), "{key}");
    }
    bucket.double.set_keys(vec![AccessKey::new("test-key", "test-secret")]);
    assert!(fs::read(bucket.path("taken/large")).unwrap() == bytes);
    assert!(fs::read(bucket.path("taken/small")).unwrap() == bytes[..20_000]);
}

#[test]
fn an_io_error_comes_only_after_retries_and_names_request_object_and_cause() {
    let bucket = Bucket::new().argument("--total-timeout=5");
    let bytes = sample(1, 60 * MIB);
    bucket.put("dir/failing", bytes.clone());
    bucket.mount();
    let file = bucket.open("dir/failing");
    read(&file, &bytes, 0, 4096).unwrap();
    // A few failures are survived.
    let get = || When::any().operation(Operation::GetObject).key("dir/failing");
    bucket.double.fault(Fault::InternalError, get(), Often::Next(2));
    read(&file, &bytes, 30 * MIB, 4096).unwrap();
    bucket.double.fault(Fault::InternalError, get(), Often::Always);
    bucket.double.clear_requests();
    assert_eq!(read(&file, &bytes, 55 * MIB, 4096), Err(libc::EIO));
    assert!(bucket.gets() >= 2, "{} requests before the error", bucket.gets());
    // The double's ids are their number in its log, and begin like this.
    assert_said(&bucket, "dir/failing", &["InternalError", "5F0000"]);
    // It is not remembered.
    bucket.double.clear_faults();
    read(&file, &bytes, 55 * MIB, 4096).unwrap();
}

#[test]
fn a_small_object_that_always_comes_wrong_is_an_error_and_no_wrong_byte() {
    for size in [1, 4096, SMALL, 256 << 10] {
        let bucket = Bucket::new().argument("--total-timeout=10");
        let bytes = sample(size, size);
        bucket.put("lying", bytes.clone());
        bucket.mount();
        bucket.double.fault(Fault::WrongByte, When::any(), Often::Always);
        assert_eq!(failure(&bucket, "lying"), libc::EIO, "{size}");
        assert_said(&bucket, "lying", &["CRC"]);
        bucket.double.clear_faults();
        assert!(fs::read(bucket.path("lying")).unwrap() == bytes, "{size}");
    }
}

#[test]
fn a_large_object_that_always_comes_wrong_is_reported_and_never_kept() {
    let bucket = Bucket::new();
    let bytes = sample(1, 6 * MIB + 12_345);
    bucket.put("lying", bytes.clone());
    bucket.double.fault(Fault::WrongByte, When::any(), Often::Always);
    bucket.mount();
    // Every time it is complete it is found out; until then HTTP cannot show it.
    for times in 1..3 {
        let _ = fs::read(bucket.path("lying"));
        wait_until("the wrong bytes are found", || {
            // It takes a reader to fetch it again.
            let _ = fs::read(bucket.path("lying"));
            bucket.sandbox.status()["corrupt"].as_u64().unwrap() >= times
        });
    }
    assert_said(&bucket, "lying", &["checksum"]);
    bucket.double.clear_faults();
    wait_until("the right bytes are read", || fs::read(bucket.path("lying")).is_ok_and(|read| read == bytes));
    bucket.restart();
    assert!(fs::read(bucket.path("lying")).unwrap() == bytes);
}

#[test]
fn a_large_object_that_came_wrong_once_is_right_for_whoever_opens_it_after_that_was_found() {
    let bucket = Bucket::new();
    let bytes = sample(1, 9 * MIB);
    bucket.put("once", bytes.clone());
    let fault = bucket.double.fault(Fault::WrongByte, When::any().ranged(true), Often::Next(1));
    bucket.mount();
    // One handle stays open all the while: it must neither fail nor keep others from the right bytes.
    let early = bucket.open("once");
    let _ = fs::read(bucket.path("once")).unwrap();
    assert_eq!(bucket.double.happened(fault), 1);
    wait_until("the wrong byte is found", || bucket.sandbox.status()["corrupt"] == 1);
    let _ = early.read_at(&mut [0; 4096], 4 * MIB).unwrap();
    drop(early);
    assert!(fs::read(bucket.path("once")).unwrap() == bytes);
    assert_eq!(bucket.sandbox.status()["corrupt"], 1);
}
