//! What looking at names costs in requests, and bringing things in ahead of time. Counted, and never timed.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use tests::bucket::{Bucket, sample};
use tests::double::{Fault, Often, Operation, Request, When};
use tests::mounts::wait_until;

const DIRECTORIES: u64 = 200;
const FILES: u64 = 100;

fn is_list(request: &Request) -> bool {
    request.operation == Operation::ListObjects
}

fn key(directory: u64, file: u64) -> String {
    format!("lane-{directory:03}/read-{file:03}")
}

/// 20,000 objects in 200 directories, of different lengths.
fn wide() -> Bucket {
    let bucket = Bucket::new();
    for directory in 0..DIRECTORIES {
        for file in 0..FILES {
            bucket.put(&key(directory, file), sample(1, directory + file));
        }
    }
    bucket
}

/// Lines of `ls -lR` that are about files.
fn ls(bucket: &Bucket) -> usize {
    let output = Command::new("ls").arg("-lR").arg(bucket.sandbox.mnt()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().filter(|line| line.starts_with("-r")).count()
}

#[test]
fn a_walk_costs_the_pages_of_the_tree_and_the_next_one_nothing() {
    let bucket = wide();
    bucket.double.fault(Fault::Latency(Duration::from_millis(5)), When::any(), Often::Always);
    bucket.mount();
    assert_eq!(ls(&bucket), 20_000);
    assert!(bucket.double.count(is_list) <= 25, "{} listings", bucket.double.count(is_list));
    assert_eq!(bucket.double.count(|request| !is_list(request)), 0);
    bucket.double.clear_requests();
    assert_eq!(ls(&bucket), 20_000);
    assert_eq!(bucket.double.requests().len(), 0);
}

#[test]
fn looking_at_names_in_no_order_soon_costs_nothing() {
    let bucket = wide();
    bucket.mount();
    for look in 0..2000 {
        let number = look * 7919 % (DIRECTORIES * FILES);
        let (directory, file) = (number / FILES, number % FILES);
        assert_eq!(fs::metadata(bucket.path(&key(directory, file))).unwrap().size(), directory + file);
        assert!(fs::metadata(bucket.path(&format!("{}-none", key(directory, file)))).is_err());
    }
    assert!(bucket.double.requests().len() <= 60, "{} requests", bucket.double.requests().len());
}

#[test]
fn all_names_can_be_there_before_anybody_asks() {
    let bucket = wide().argument("--prefetch=metadata");
    bucket.mount();
    let ahead = || bucket.sandbox.status()["mounts"][0]["prefetch"].clone();
    wait_until("all names are there", || ahead()["finished"].as_bool().unwrap());
    let ahead = ahead();
    let total: u64 = (0..DIRECTORIES * FILES).map(|number| number / FILES + number % FILES).sum();
    assert_eq!(ahead["error"], serde_json::Value::Null);
    assert_eq!(
        (&ahead["kind"], &ahead["objects_total"], &ahead["objects_done"]),
        (&"metadata".into(), &20_000.into(), &0.into())
    );
    assert_eq!((&ahead["names"], &ahead["bytes_total"]), (&20_201.into(), &total.into()));
    assert!(bucket.double.count(is_list) <= 30, "{} listings", bucket.double.count(is_list));
    bucket.double.clear_requests();
    assert_eq!(ls(&bucket), 20_000);
    assert_eq!(bucket.double.requests().len(), 0);
    let shown = bucket.sandbox.run(["status"]);
    assert!(shown.stdout.contains("fetched ahead: 20201 names, done"), "{}", shown.stdout);
}

#[test]
fn so_can_all_content() {
    let bucket = Bucket::new().argument("-oprefetch=all");
    let sizes = [0, 1, 70_000, 1 << 20, (3 << 20) + 7];
    for (number, size) in (0..).zip(sizes) {
        bucket.put(&format!("{number}/of-{size}"), sample(number, size));
    }
    bucket.mount();
    let ahead = || bucket.sandbox.status()["mounts"][0]["prefetch"].clone();
    wait_until("all content is there", || ahead()["finished"].as_bool().unwrap());
    let ahead = ahead();
    assert_eq!(ahead["error"], serde_json::Value::Null);
    assert_eq!(
        (&ahead["objects_done"], &ahead["bytes_done"]),
        (&sizes.len().into(), &sizes.iter().sum::<u64>().into())
    );
    bucket.double.clear_requests();
    for (number, size) in (0..).zip(sizes) {
        assert!(fs::read(bucket.path(&format!("{number}/of-{size}"))).unwrap() == sample(number, size), "{number}");
    }
    assert_eq!(bucket.gets(), 0);
}

#[test]
fn a_mount_can_go_while_its_names_are_being_listed() {
    let bucket = wide().argument("--prefetch=metadata");
    let when = When::any().operation(Operation::ListObjects);
    bucket.double.fault(Fault::Latency(Duration::from_millis(200)), when, Often::Always);
    bucket.mount();
    let ahead = bucket.sandbox.status()["mounts"][0]["prefetch"].clone();
    assert_eq!(ahead["finished"], false);
    bucket.sandbox.umount();
    let before = bucket.double.count(is_list);
    std::thread::sleep(Duration::from_millis(700));
    // What was under way when it went, and no more.
    assert!(bucket.double.count(is_list) <= before + 4);
}

#[test]
fn what_cannot_be_listed_ahead_is_said_and_harms_nobody() {
    let bucket = Bucket::new().argument("--prefetch=all").argument("--total-timeout=1");
    bucket.put("a/b", sample(1, 10));
    // All but the listing of the top, which mounting needs.
    let below = When::any()
        .operation(Operation::ListObjects)
        .that(|request| request.query("prefix").is_some() || request.query("delimiter").is_none());
    bucket.double.fault(Fault::InternalError, below, Often::Always);
    bucket.mount();
    let ahead = || bucket.sandbox.status()["mounts"][0]["prefetch"].clone();
    wait_until("listing has been given up", || ahead()["finished"].as_bool().unwrap());
    assert!(ahead()["error"].is_string(), "{}", ahead());
    assert!(bucket.sandbox.log().contains("listing ahead of time was given up"), "{}", bucket.sandbox.log());
    bucket.double.clear_faults();
    assert!(fs::read(bucket.path("a/b")).unwrap() == sample(1, 10));
}

#[test]
fn what_is_not_known_cannot_be_brought_in_ahead() {
    let bucket = Bucket::new();
    let refused = bucket.sandbox.run(["mount", "oss://test-bucket/", "/mnt", "--prefetch=everything"]);
    assert_eq!(refused.code, Some(64), "{refused:?}");
    assert!(refused.stderr.contains("write none, metadata or all"), "{}", refused.stderr);
}
