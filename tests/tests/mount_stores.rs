//! Mounts of buckets over the wire: the protocol double's, with the keys, refusals and faults of real ones.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use fuse_oss::client::Client;
use fuse_oss::{ErrorKind, MountEntry, MountOptions, MountRequest, ServeSettings, UnmountMode};
use oss::{CredentialSource, Secret, Settings, StoreSettings};
use tests::double::{AccessKey, Action, Double, DoubleConfig, Fault, Often, Operation, Outage, When};
use tests::mounts::{Ran, Sandbox, wait_until};

const BUCKET: &str = "test-bucket";

fn start() -> Double {
    Double::start(DoubleConfig::default())
}

fn mount(sandbox: &Sandbox, double: &Double, location: &str, more: &[&str]) -> Ran {
    Ran::from(sandbox.mounting(double, location, &sandbox.mnt()).args(more).output().unwrap())
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_bucket_with_odd_keys_shows_everything_that_can_be_shown() {
    let long = "n".repeat(256);
    for scheme in ["oss", "s3"] {
        let double = start();
        for key in [
            "plain",
            "dir/a",
            "x",
            "x/y",
            "x-1",
            "x.log",
            "a//b",
            "a/ok",
            "/lead",
            "..",
            ".",
            "up/../../etc/passwd",
            "up/./x",
            "up/fine",
            "new\nline",
            "数据/样本.bam",
            "per%20cent+plus&amp;",
            &long,
        ] {
            double.put(BUCKET, key, format!("content of {key}").into_bytes());
        }
        for marker in ["empty", "dir/", "markers/deep/"] {
            double.put(BUCKET, marker, "");
        }
        let sandbox = Sandbox::new();
        mount(&sandbox, &double, &format!("{scheme}://{BUCKET}/"), &[]).succeeded();
        let mnt = sandbox.mnt();
        assert_eq!(
            names(&mnt),
            set(&[
                "plain",
                "dir",
                "markers",
                "x",
                "x-1",
                "x.log",
                "a",
                "up",
                "new\nline",
                "数据",
                "per%20cent+plus&amp;",
                "empty"
            ])
        );
        assert_eq!(names(&mnt.join("dir")), set(&["a"]));
        assert_eq!(names(&mnt.join("markers")), set(&["deep"]));
        assert_eq!(names(&mnt.join("markers/deep")), set(&[]));
        assert_eq!(names(&mnt.join("x")), set(&["y"]));
        assert_eq!(names(&mnt.join("a")), set(&["ok"]));
        assert_eq!(names(&mnt.join("up")), set(&["fine"]));
        for name in [
            "plain",
            "dir/a",
            "x/y",
            "x-1",
            "x.log",
            "a/ok",
            "up/fine",
            "new\nline",
            "数据/样本.bam",
            "per%20cent+plus&amp;",
        ] {
            assert_eq!(fs::read_to_string(mnt.join(name)).unwrap(), format!("content of {name}"));
        }
        assert_eq!(fs::read(mnt.join("empty")).unwrap(), b"");
        let log = sandbox.log();
        assert_eq!(log.matches("keys that a file system cannot show").count(), 1, "{log}");
        assert_eq!(sandbox.status()["mounts"][0]["hidden"], 8, "{}", sandbox.status());
        sandbox.umount();
    }
}

#[test]
fn names_that_were_hidden_are_not_found_by_asking_for_them_either() {
    let double = start();
    for key in ["a//b", "a/ok", "x", "x/y"] {
        double.put(BUCKET, key, "x");
    }
    let sandbox = Sandbox::new();
    mount(&sandbox, &double, &format!("oss://{BUCKET}/"), &[]).succeeded();
    assert!(fs::metadata(sandbox.mnt().join("x")).unwrap().is_dir());
    assert_eq!(fs::metadata(sandbox.mnt().join("a/b")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn refusals_of_a_store_say_what_and_why_and_what_to_do() {
    let double = start();
    double.put(BUCKET, "dir/file", "x");
    double.put(BUCKET, "secret/file", "x");
    double.add_bucket(tests::double::BucketConfig {
        name: "far-away".to_owned(),
        region: "cn-elsewhere".to_owned(),
        public_read: false,
    });
    let sandbox = Sandbox::new();
    for scheme in ["oss", "s3"] {
        let try_mount = |path: &str, more: &[&str]| mount(&sandbox, &double, &format!("{scheme}://{path}"), more);
        try_mount("no-such-bucket/", &[]).failed(66, &["no-such-bucket", "NoSuchBucket", "check the bucket's name"]);
        try_mount(&format!("{BUCKET}/missing/"), &[]).failed(66, &["missing/", "no such directory"]);
        try_mount(&format!("{BUCKET}/dir"), &[]).failed(64, &["is one object", "trailing slash"]);
        try_mount("far-away/", &[]).failed(78, &["far-away", "--region"]);
        double.set_keys(vec![AccessKey::new("test-key", "test-secret").deny_all("secret/")]);
        try_mount(&format!("{BUCKET}/secret/"), &[]).failed(77, &["secret/", "AccessDenied", "allow this action"]);
        double.set_keys(vec![AccessKey::new("test-key", "another-secret")]);
        let ran = try_mount(&format!("{BUCKET}/"), &[]);
        ran.failed(77, &["SignatureDoesNotMatch"]);
        assert!(!ran.stderr.contains("test-secret"), "{ran:?}");
        double.set_keys(vec![AccessKey::new("another-key", "test-secret")]);
        try_mount(&format!("{BUCKET}/"), &[]).failed(77, &["InvalidAccessKeyId", "OSS_ACCESS_KEY_ID"]);
        double.set_keys(vec![AccessKey::new("test-key", "test-secret")]);
        try_mount(&format!("{BUCKET}/dir/"), &["--anonymous"]).failed(77, &[BUCKET]);
        double.outage(Outage::Refuse);
        try_mount(&format!("{BUCKET}/"), &["--total-timeout=2", "--connect-timeout=1"])
            .failed(69, &[BUCKET, "check the endpoint"]);
        double.restore();
        assert!(sandbox.mounts().is_empty());
    }
    // An empty bucket is not a missing one.
    double.delete(BUCKET, "dir/file");
    double.delete(BUCKET, "secret/file");
    mount(&sandbox, &double, &format!("oss://{BUCKET}/"), &[]).succeeded();
    assert_eq!(names(&sandbox.mnt()), set(&[]));
}

#[test]
fn what_is_refused_while_mounted_has_the_right_error_number() {
    let double = start();
    for key in ["allowed", "denied", "removed", "archived"] {
        double.put(BUCKET, key, vec![1; 3 << 20]);
    }
    double.set_archived(BUCKET, "archived", true);
    double.set_keys(vec![AccessKey::new("test-key", "test-secret").deny(Action::Read, "denied")]);
    let sandbox = Sandbox::new();
    mount(&sandbox, &double, &format!("oss://{BUCKET}/"), &[]).succeeded();
    let mnt = sandbox.mnt();
    assert_eq!(names(&mnt).len(), 4);
    double.delete(BUCKET, "removed");
    let open = |name: &str| File::open(mnt.join(name)).map(drop).map_err(|error| error.raw_os_error().unwrap());
    assert_eq!(open("allowed"), Ok(()));
    assert_eq!(open("denied"), Err(libc::EACCES));
    assert_eq!(open("removed"), Err(libc::ENOENT));
    assert_eq!(open("archived"), Err(libc::EIO));
    assert!(sandbox.log().contains("restore"), "{}", sandbox.log());
}

#[test]
fn trouble_on_the_way_changes_no_byte() {
    let double = start();
    let bytes: Vec<u8> = (0..6_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for number in 0..3 {
        double.put(BUCKET, &format!("file-{number}"), bytes.clone());
    }
    for number in 0..60 {
        double.put(BUCKET, &format!("small/{number}"), format!("small {number}").into_bytes());
    }
    let sandbox = Sandbox::new();
    mount(&sandbox, &double, &format!("oss://{BUCKET}/"), &[]).succeeded();
    let get = |key: &str| When::any().operation(Operation::GetObject).prefix(key);
    for (fault, key, times) in [
        (Fault::Truncate, "file-0", 4),
        (Fault::ResetLate, "file-1", 2),
        (Fault::LoseReply, "file-2", 2),
        (Fault::InternalError, "small/1", 3),
        (Fault::ResetEarly, "small/2", 3),
        (Fault::SlowDown { retry_after: None }, "small/3", 1),
        // A small object is fetched whole, so its client sees the wrong checksum before anybody sees the byte.
        (Fault::WrongByte, "small/4", 2),
    ] {
        double.fault(fault, get(key), Often::Next(times));
    }
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (mnt, bytes) = (sandbox.mnt(), &bytes);
            scope.spawn(move || assert!(fs::read(mnt.join(format!("file-{number}"))).unwrap() == *bytes));
        }
    });
    for number in 0..60 {
        let path = sandbox.mnt().join(format!("small/{number}"));
        assert_eq!(fs::read_to_string(path).unwrap(), format!("small {number}"));
    }
    // Everything is there, and the whole was compared with the store's own checksum.
    assert_eq!(sandbox.status()["corrupt"], 0);
}

#[test]
fn a_wrong_byte_in_a_large_object_is_found_when_all_of_it_is_there() {
    let double = start();
    let bytes: Vec<u8> = (0..5_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    double.put(BUCKET, "file", bytes.clone());
    double.fault(Fault::WrongByte, When::any().operation(Operation::GetObject).ranged(true), Often::Next(1));
    let sandbox = Sandbox::new();
    mount(&sandbox, &double, &format!("oss://{BUCKET}/"), &[]).succeeded();
    let _ = fs::read(sandbox.mnt().join("file")).unwrap();
    wait_until("the wrong byte is found", || sandbox.status()["corrupt"] == 1);
    assert!(sandbox.log().contains("the checksum of the whole object is not the one"), "{}", sandbox.log());
    // Opened again it is right: neither our caches nor the kernel's have kept the byte.
    assert!(fs::read(sandbox.mnt().join("file")).unwrap() == bytes);
    wait_until("all of it is in the cache", || sandbox.status()["cache_used"].as_u64().unwrap() >= 20_000_000);
    assert_eq!(sandbox.status()["corrupt"], 1);
}

#[test]
fn a_store_that_is_away_for_a_while_is_waited_for() {
    let double = start();
    double.put(BUCKET, "file", vec![9; 30 << 20]);
    let sandbox = Sandbox::new();
    mount(&sandbox, &double, &format!("oss://{BUCKET}/"), &["--connect-timeout=1"]).succeeded();
    let file = File::open(sandbox.mnt().join("file")).unwrap();
    double.outage(Outage::Refuse);
    // A connection that is open may still answer what arrives in the very moment the outage begins.
    std::thread::sleep(Duration::from_millis(200));
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 4096];
        file.read_exact_at(&mut buffer, 25 << 20).map(|()| buffer)
    });
    std::thread::sleep(Duration::from_secs(3));
    // Meanwhile everything that is known is answered at once.
    assert_eq!(names(&sandbox.mnt()), set(&["file"]));
    assert!(!reader.is_finished());
    double.restore();
    assert_eq!(reader.join().unwrap().unwrap(), [9; 4096]);
}

#[test]
fn when_retries_are_exhausted_a_read_fails_and_the_log_says_why() {
    let double = start();
    double.put(BUCKET, "file", vec![9; 30 << 20]);
    let sandbox = Sandbox::new();
    mount(&sandbox, &double, &format!("oss://{BUCKET}/"), &["--total-timeout=2", "--connect-timeout=1"]).succeeded();
    let file = File::open(sandbox.mnt().join("file")).unwrap();
    double.outage(Outage::Refuse);
    // A connection that is open may still answer what arrives in the very moment the outage begins.
    let failed = (10..28).find_map(|mib| file.read_at(&mut [0; 4096], mib << 20).err().map(|error| (mib, error)));
    let (mib, error) = failed.expect("reads fail while the store is away");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let log = sandbox.log();
    assert!(log.contains("cannot be read") && log.contains("file") && log.contains("check the endpoint"), "{log}");
    // A failure is not remembered.
    double.restore();
    let mut buffer = [0; 4096];
    file.read_exact_at(&mut buffer, mib << 20).unwrap();
    assert_eq!(buffer, [9; 4096]);
}

#[test]
fn a_replaced_object_is_never_mixed_with_the_old_one() {
    let double = start();
    double.put(BUCKET, "file", vec![1; 60 << 20]);
    let sandbox = Sandbox::new();
    mount(&sandbox, &double, &format!("s3://{BUCKET}/"), &[]).succeeded();
    let file = File::open(sandbox.mnt().join("file")).unwrap();
    let mut buffer = [0; 4096];
    file.read_exact_at(&mut buffer, 0).unwrap();
    double.put(BUCKET, "file", vec![2; 60 << 20]);
    let error = file.read_at(&mut buffer, 50 << 20).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    for mib in 0..60 {
        if file.read_exact_at(&mut buffer, mib << 20).is_ok() {
            assert_eq!(buffer, [1; 4096]);
        }
    }
    drop(file);
    sandbox.umount();
    mount(&sandbox, &double, &format!("s3://{BUCKET}/"), &[]).succeeded();
    assert!(fs::read(sandbox.mnt().join("file")).unwrap() == vec![2; 60 << 20]);
}

#[test]
fn one_file_of_a_large_directory_does_not_list_it() {
    let double = start();
    for number in 0..5000 {
        double.put(BUCKET, &format!("many/{number:05}"), "x");
    }
    let sandbox = Sandbox::new();
    mount(&sandbox, &double, &format!("oss://{BUCKET}/"), &[]).succeeded();
    double.clear_requests();
    assert_eq!(fs::read_to_string(sandbox.mnt().join("many/04321")).unwrap(), "x");
    let lists = double.count(|request| request.operation == Operation::ListObjects);
    assert!(lists <= 2, "{lists} listings for one name");
    assert_eq!(names(&sandbox.mnt().join("many")).len(), 5000);
    let heads = double.count(|request| request.operation == Operation::HeadObject);
    assert!(heads <= 1, "a listing brings sizes along, but there were {heads} HEAD requests");
}

#[test]
fn one_mount_shows_several_places_through_the_library() {
    let double = start();
    for key in ["a/one", "a/sub/two", "b/genome.fa"] {
        double.put(BUCKET, key, format!("content of {key}").into_bytes());
    }
    let sandbox = Sandbox::new();
    fs::write(sandbox.source().join("local"), "from a file").unwrap();
    let settings = ServeSettings {
        cache_dir: sandbox.path("cache"),
        runtime_dir: sandbox.path("run"),
        memory_limit: Some("64MiB".parse().unwrap()),
        ..ServeSettings::new(sandbox.command().get_program())
    };
    let entry = |at: &str, location: String| MountEntry::new(at, location.parse().unwrap());
    let mut request = MountRequest {
        target: sandbox.mnt(),
        entries: vec![
            entry("0", format!("oss://{BUCKET}/a/")),
            entry("1/object", format!("oss://{BUCKET}/b/genome.fa")),
            entry("2", sandbox.location()),
        ],
        options: MountOptions { allow_other: true, ..MountOptions::default() },
        stores: Settings {
            oss: StoreSettings {
                endpoint: Some(double.endpoint()),
                region: Some("cn-test".to_owned()),
                addressing: oss::Addressing::Path,
                credentials: CredentialSource::Static {
                    access_key_id: "test-key".to_owned(),
                    access_key_secret: Secret::new("test-secret"),
                    security_token: None,
                },
                ..StoreSettings::default()
            },
            s3: StoreSettings::default(),
        },
    };
    let mut client = Client::connect_or_start(&settings).unwrap();
    let reply = client.mount(&request).unwrap();
    assert_eq!(reply.target, sandbox.mnt());
    let mnt = sandbox.mnt();
    assert_eq!(names(&mnt), set(&["0", "1", "2"]));
    assert_eq!(names(&mnt.join("0")), set(&["one", "sub"]));
    assert_eq!(fs::read_to_string(mnt.join("0/sub/two")).unwrap(), "content of a/sub/two");
    assert_eq!(names(&mnt.join("1")), set(&["object"]));
    assert_eq!(fs::read_to_string(mnt.join("1/object")).unwrap(), "content of b/genome.fa");
    assert_eq!(fs::read_to_string(mnt.join("2/local")).unwrap(), "from a file");
    assert_eq!(client.status().unwrap().mounts.len(), 1);
    client.unmount(&mnt, UnmountMode::WhenIdle).unwrap();

    request.entries.push(entry("1/object/inside", format!("oss://{BUCKET}/a/")));
    assert_eq!(client.mount(&request).unwrap_err().kind, ErrorKind::Usage);
    request.entries.pop();
    request.entries.push(entry("3", format!("oss://{BUCKET}/none")));
    let error = client.mount(&request).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.contains("/none") && error.message.contains("no such object"), "{error}");
    assert_eq!(client.unmount(&mnt, UnmountMode::WhenIdle).unwrap_err().kind, ErrorKind::NotMounted);
    drop(client);
    wait_until("nothing is mounted", || sandbox.mounts().is_empty());
}
