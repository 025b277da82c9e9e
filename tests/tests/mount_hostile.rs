//! What a bucket can hold against whoever mounts it: odd keys at every place, a million names, listings without end, and objects
//! that change under their readers.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use tests::bucket::{Bucket, NAME, sample};
use tests::double::{DoubleConfig, Generated, Operation, Request};
use tests::mounts::Sandbox;

const SECOND: &str = "second-bucket";

/// Keys of which no part is to be seen, and how many of them each directory they are in counts.
const HIDDEN: &[&str] = &[
    "..",
    ".",
    "/etc/passwd",
    "//",
    "a//b",
    "up/../../../etc/passwd",
    "up/./x",
    "up/..",
    "nul\0byte",
    "nul\0/below",
    "x",
];

/// Keys that are shown as they are written.
const SHOWN: &[&str] = &[
    "plain",
    "up/fine",
    "a/ok",
    "x/y",
    "new\nline",
    "esc\u{1b}[31mred",
    "tab\tand\rreturn",
    "\u{202e}gnp.exe",
    "...",
    "..x/.y",
    " ",
    "-rf",
    "$(reboot)`id`;'\"",
    "per%2F..%2fcent",
    "back\\..\\slash",
    "\u{fffd}\u{10ffff}",
    "#U002f",
];

fn put_odd_keys(bucket: &Bucket, name: &str, prefix: &str) {
    let long = "n".repeat(256);
    for key in HIDDEN.iter().chain(SHOWN).copied().chain([long.as_str(), &format!("{long}/below")]) {
        bucket.double.put(name, &format!("{prefix}{key}"), format!("content of {key}").into_bytes());
    }
}

/// Every file below a directory by its path. Nothing in it may be anything but a file or a directory of the same file system.
fn files(directory: &Path) -> BTreeSet<String> {
    let device = fs::metadata(directory).unwrap().dev();
    let mut files = BTreeSet::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert_eq!(metadata.dev(), device, "{path:?} leads elsewhere");
            assert_eq!(path.canonicalize().unwrap(), path);
            if metadata.is_dir() {
                todo.push(path);
            } else {
                assert!(metadata.is_file(), "{path:?}");
                files.insert(path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files
}

fn shown(prefix: &str) -> BTreeSet<String> {
    SHOWN.iter().map(|key| format!("{prefix}{key}")).collect()
}

fn assert_contents(directory: &Path) {
    for key in SHOWN {
        assert_eq!(fs::read_to_string(directory.join(key)).unwrap(), format!("content of {key}"), "{key:?}");
    }
}

#[test]
fn odd_keys_neither_escape_nor_hide_others() {
    let bucket = Bucket::new();
    put_odd_keys(&bucket, NAME, "");
    bucket.mount();
    assert_eq!(files(&bucket.sandbox.mnt()), shown(""));
    assert_contents(&bucket.sandbox.mnt());
    let mount = bucket.sandbox.status()["mounts"][0].clone();
    // "/etc/passwd" and "//" are one prefix; so are the two of "up/..", but one of them is an object.
    assert_eq!(mount["hidden"], HIDDEN.len() + 2 - 1);
    let log = bucket.sandbox.log();
    assert_eq!(log.matches("a file system cannot show").count(), 1, "said once: {log}");
    assert!(!log.contains('\u{1b}') && !log.contains('\0'), "{log:?}");
    // None of them by their names either.
    bucket.remount();
    for name in ["a/", "up/./x"] {
        assert!(fs::metadata(bucket.path(&format!("{name}b"))).is_err(), "{name:?}");
    }
    assert!(!bucket.path("up/../../../etc/passwd").starts_with("/etc"));
    assert!(fs::metadata(bucket.path(&"n".repeat(256))).unwrap_err().raw_os_error() == Some(libc::ENAMETOOLONG));
    assert_contents(&bucket.sandbox.mnt());
}

#[test]
fn they_do_not_at_stitched_places_and_in_other_character_sets() {
    for locale in ["UTF-8", "GB18030"] {
        let bucket = Bucket::with(DoubleConfig::default().bucket(SECOND, "cn-test"))
            .argument("--entry=inner/most=oss://second-bucket/odd/")
            .argument("--entry=inner/up=oss://second-bucket/odd/up/")
            .argument(&format!("--locale={locale}"));
        put_odd_keys(&bucket, NAME, "inner/");
        put_odd_keys(&bucket, SECOND, "odd/");
        for key in ["inner/most/../../x", "inner/most/x", "inner/up", "inner/most//", "inner/up/fine"] {
            bucket.put(key, "of the outer one".into());
        }
        bucket.mount();
        if locale == "UTF-8" {
            let mut expected: BTreeSet<String> = shown("inner/").into_iter().chain(shown("inner/most/")).collect();
            assert_eq!(files(&bucket.sandbox.mnt()), expected);
            expected.retain(|path| path.starts_with("inner/most/"));
            assert_contents(&bucket.path("inner/most"));
            assert_eq!(fs::read_to_string(bucket.path("inner/up/fine")).unwrap(), "content of up/fine");
        } else {
            // Names are bytes there; nothing is lost and nothing leads out.
            let mut todo = vec![bucket.sandbox.mnt()];
            let mut count = 0;
            while let Some(at) = todo.pop() {
                for entry in fs::read_dir(&at).unwrap() {
                    let entry = entry.unwrap();
                    if entry.file_type().unwrap().is_dir() { todo.push(entry.path()) } else { count += 1 }
                }
            }
            assert_eq!(count, 2 * SHOWN.len());
        }
    }
}

#[test]
fn an_object_of_any_key_can_be_mounted_alone() {
    let sandbox_names = ["up/../../../etc/passwd", "a//b", "..", "esc\u{1b}[31m\nline", "/etc/passwd"];
    for key in sandbox_names {
        let bucket = Bucket::new().location("oss", key);
        bucket.put(key, key.into());
        let target = bucket.sandbox.path("alone");
        bucket.mount_on(&target);
        assert_eq!(fs::read_to_string(&target).unwrap(), key, "{key:?}");
        assert_eq!(bucket.sandbox.mounts(), std::slice::from_ref(&target));
        let status = bucket.sandbox.run(["status"]);
        assert!(!status.stdout.contains('\u{1b}'), "{:?}", status.stdout);
        bucket.sandbox.run(["umount".as_ref(), target.as_os_str()]).succeeded();
        assert!(!target.exists());
    }
}

/// What a process has in memory, in bytes.
fn resident(sandbox: &Sandbox) -> u64 {
    let pid = sandbox.status()["pid"].as_i64().unwrap();
    // The one that answers may be a child of the one that is known.
    let mut pids = vec![pid.to_string()];
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent =
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)).unwrap_or_default().to_owned();
        if parent == pid.to_string() {
            pids.push(entry.file_name().to_str().unwrap().to_owned());
        }
    }
    let sum = pids.iter().map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB").trim().to_owned();
        line.trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    });
    sum.sum()
}

fn is_list(request: &Request) -> bool {
    request.operation == Operation::ListObjects
}

fn generated(bucket: &Bucket, count: u64, stuck: bool) -> Generated {
    let generated = Generated { prefix: "many/".to_owned(), count, stuck };
    bucket.double.generate(NAME, generated.clone());
    bucket.put("many/marker-of-the-directory", "x".into());
    generated
}

#[test]
fn a_million_names_in_one_directory() {
    const NAMES: u64 = 1_000_000;
    let bucket = Bucket::new();
    let many = generated(&bucket, NAMES, false);
    bucket.mount();
    let path = |number| bucket.path(&many.key(number));
    let began = std::time::Instant::now();
    // One name costs a look at the directory and at the name.
    assert_eq!(fs::metadata(path(777_777)).unwrap().size(), 7);
    assert!(fs::metadata(bucket.path("many/none")).is_err());
    assert!(bucket.double.requests().len() <= 8, "{} requests", bucket.double.requests().len());
    // The first names come with the first pages.
    let mut first = fs::read_dir(bucket.path("many")).unwrap();
    assert_eq!(first.by_ref().take(500).filter(|entry| entry.is_ok()).count(), 500);
    println!("one name and the first 500 after {:?}", began.elapsed());
    assert!(bucket.double.count(is_list) <= 12, "{} listings", bucket.double.count(is_list));
    drop(first);
    let before = resident(&bucket.sandbox);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(bucket.path("many")).unwrap() {
        names.insert(entry.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap());
    }
    assert_eq!((names.len() as u64, names.first().copied(), names.last().copied()), (NAMES, Some(0), Some(NAMES - 1)));
    let taken = resident(&bucket.sandbox).saturating_sub(before);
    println!("{taken} bytes for {NAMES} names, after {:?}", began.elapsed());
    assert!(taken <= NAMES * 300, "{taken} bytes");
    assert!(bucket.double.count(is_list) <= 1_040, "{} listings", bucket.double.count(is_list));
    bucket.double.clear_requests();
    assert_eq!(fs::metadata(path(123_456)).unwrap().size(), 6);
    assert_eq!(bucket.double.requests().len(), 0);
    assert_eq!(fs::read(path(999_999)).unwrap(), b"xxxxxxxxx");
}

#[test]
fn a_listing_without_end_is_an_error_and_the_rest_is_not_affected() {
    let bucket = Bucket::new().argument("--max-names=20000");
    generated(&bucket, 1 << 39, false);
    bucket.put("good/file", "good".into());
    bucket.put("top", "top".into());
    bucket.mount();
    let read = |directory: &str| fs::read_dir(bucket.path(directory)).unwrap().collect::<Result<Vec<_>, _>>();
    let error = read("many").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{error}");
    let log = bucket.sandbox.log();
    assert!(log.contains("many") && log.contains("more than 16000 names"), "{log}");
    assert!(bucket.sandbox.status()["mounts"][0]["nodes"].as_u64().unwrap() <= 20_000);
    let before = bucket.double.count(is_list);
    assert!(before <= 60, "{before} listings");
    assert_eq!(fs::read_to_string(bucket.path("good/file")).unwrap(), "good");
    assert_eq!((read("good").unwrap().len(), fs::read_to_string(bucket.path("top")).unwrap().as_str()), (1, "top"));
    // What is known of it can be used.
    assert_eq!(fs::metadata(bucket.path("many/000000000012")).unwrap().size(), 2);
}

#[test]
fn nor_is_it_by_one_that_always_says_the_same() {
    let bucket = Bucket::new();
    generated(&bucket, 1 << 39, true);
    bucket.put("good/file", "good".into());
    bucket.mount();
    let read = |directory: &str| fs::read_dir(bucket.path(directory)).unwrap().collect::<Result<Vec<_>, _>>();
    let error = read("many").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    let log = bucket.sandbox.log();
    assert!(log.contains("oss://test-bucket/many/: the store says there is more and not where"), "{log}");
    assert!(bucket.double.count(is_list) <= 20, "{} listings", bucket.double.count(is_list));
    assert_eq!(fs::read_to_string(bucket.path("good/file")).unwrap(), "good");
    assert_eq!(read("good").unwrap().len(), 1);
}

/// Reads pieces of a file all over; each is one of `old` or an error that says that the object is another one.
fn assert_never_mixed(file: &File, old: &[u8]) -> usize {
    let mut refused = 0;
    for at in (0..old.len()).step_by(256 << 10) {
        let mut piece = [0; 4096];
        match file.read_exact_at(&mut piece, at as u64) {
            Ok(()) => assert!(piece[..] == old[at..at + 4096], "other bytes at {at}"),
            Err(error) => {
                assert!(matches!(error.raw_os_error(), Some(libc::ESTALE | libc::EIO)), "{error}");
                refused += 1;
            }
        }
    }
    refused
}

#[test]
fn objects_that_change_under_their_readers_are_never_mixed() {
    const SIZE: u64 = 64 << 20;
    let bucket = Bucket::with(DoubleConfig::default().bucket(SECOND, "cn-test"))
        .cache_size("0")
        .memory_limit("32MiB")
        .argument("--entry=in/place=oss://second-bucket/object")
        .argument("--entry=in/directory=oss://second-bucket/directory/");
    let paths: [(&str, &str, PathBuf); 3] = [
        (NAME, "own", bucket.path("own")),
        (SECOND, "object", bucket.path("in/place")),
        (SECOND, "directory/object", bucket.path("in/directory/object")),
    ];
    let old = sample(1, SIZE);
    for (number, replaced) in [(1, true), (2, false)] {
        for (name, key, _) in &paths {
            bucket.double.put(name, key, old.clone());
        }
        if number == 1 {
            bucket.mount()
        } else {
            bucket.remount()
        }
        for (name, key, path) in &paths {
            let file = File::open(path).unwrap();
            let mut piece = [0; 4096];
            file.read_exact_at(&mut piece, 0).unwrap();
            assert!(piece[..] == old[..4096]);
            if replaced {
                bucket.double.put(name, key, sample(2, SIZE));
            } else {
                assert!(bucket.double.delete(name, key));
            }
            let refused = assert_never_mixed(&file, &old);
            assert!(refused > 100, "{key}: only {refused} reads were refused");
        }
    }
    let alone = Bucket::new().location("oss", "alone").cache_size("0").memory_limit("32MiB");
    alone.put("alone", old.clone());
    let target = alone.sandbox.path("alone");
    alone.mount_on(&target);
    let file = File::open(&target).unwrap();
    alone.put("alone", sample(2, SIZE));
    assert!(assert_never_mixed(&file, &old) > 100);
}
