//! Trees of several locations, one object at one path, and names in other character sets, on real mounts.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use tests::bucket::{Bucket, passthrough_expected, sample};
use tests::double::{DoubleConfig, KEYS};
use tests::mapped::Mapped;
use tests::mounts::{Ran, wait_until};

const SECOND: &str = "second-bucket";

fn two() -> Bucket {
    Bucket::with(DoubleConfig::default().bucket(SECOND, "cn-test"))
}

/// Every file below a directory, by its path, with its content.
fn tree(directory: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    files
}

fn expected(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
}

#[test]
fn a_tree_is_stitched_from_directories_and_objects_of_several_buckets() {
    let bucket = two()
        .argument("--entry=ref/known/dbsnp.vcf=oss://second-bucket/dbsnp_146.vcf")
        .argument("--entry=ref/extra=oss://second-bucket/extra/")
        .argument("--entry=again=oss://second-bucket/extra/")
        .argument("--entry=file.txt/now/a/directory=oss://test-bucket/ref/");
    for key in ["top", "file.txt", "ref/genome.fa", "ref/extra/hidden", "ref/known/other.vcf", "ref/known/dbsnp.vcf"] {
        bucket.put(key, key.into());
    }
    for key in ["dbsnp_146.vcf", "extra/one", "extra/deep/er", "not-mounted"] {
        bucket.double.put(SECOND, key, format!("second {key}").into_bytes());
    }
    bucket.mount();
    let shown = [
        ("again/deep/er", "second extra/deep/er"),
        ("again/one", "second extra/one"),
        ("file.txt/now/a/directory/extra/hidden", "ref/extra/hidden"),
        ("file.txt/now/a/directory/genome.fa", "ref/genome.fa"),
        ("file.txt/now/a/directory/known/dbsnp.vcf", "ref/known/dbsnp.vcf"),
        ("file.txt/now/a/directory/known/other.vcf", "ref/known/other.vcf"),
        ("ref/extra/deep/er", "second extra/deep/er"),
        ("ref/extra/one", "second extra/one"),
        ("ref/genome.fa", "ref/genome.fa"),
        ("ref/known/dbsnp.vcf", "second dbsnp_146.vcf"),
        ("ref/known/other.vcf", "ref/known/other.vcf"),
        ("top", "top"),
    ];
    assert_eq!(tree(&bucket.sandbox.mnt()), expected(&shown));
    assert!(!bucket.path("ref/extra/hidden").exists());
    // An object where a directory is, one where another object is, and a directory that is covered.
    let status = bucket.sandbox.status();
    assert_eq!(status["mounts"][0]["hidden"], 3);
    assert_eq!(status["mounts"][0]["entries"].as_array().unwrap().len(), 5);
    // It is the same when single names are asked for first.
    bucket.remount();
    for (path, content) in shown.iter().rev() {
        assert_eq!(fs::read_to_string(bucket.path(path)).unwrap(), *content, "{path}");
    }
    assert_eq!(tree(&bucket.sandbox.mnt()), expected(&shown));
}

#[test]
fn a_tree_can_have_no_location_at_its_top() {
    let bucket = Bucket::new();
    bucket.put("a/one", "one".into());
    bucket.put("two", "two".into());
    let mut command = bucket.sandbox.command();
    command.envs(KEYS);
    command.arg("mount").arg(bucket.sandbox.mnt());
    command.args(["--entry=x/y=oss://test-bucket/a/", "--entry=x/z=oss://test-bucket/two"]);
    command.args(["--endpoint", &bucket.double.endpoint(), "--region", "cn-test", "--addressing", "path"]);
    Ran::from(command.output().unwrap()).succeeded();
    assert_eq!(tree(&bucket.sandbox.mnt()), expected(&[("x/y/one", "one"), ("x/z", "two")]));
}

#[test]
fn conflicts_are_refused_by_name_before_a_store_is_asked() {
    let bucket = Bucket::new();
    let mnt = bucket.sandbox.mnt();
    let mount = |arguments: &[&str]| {
        let mut all: Vec<&OsStr> = vec!["mount".as_ref(), "oss://test-bucket/".as_ref(), mnt.as_os_str()];
        all.extend(arguments.iter().map(|argument| OsStr::new(*argument)));
        let endpoint = bucket.double.endpoint();
        let rest = ["--endpoint", &endpoint, "--region", "cn-test", "--addressing", "path", "--anonymous"];
        all.extend(rest.iter().map(OsStr::new));
        bucket.sandbox.run(all)
    };
    let same = ["--entry=a/b=oss://test-bucket/x/", "--entry=a/b=oss://test-bucket/y/"];
    mount(&same).failed(64, &["oss://test-bucket/x/", "oss://test-bucket/y/", "both to be at \"a/b\""]);
    let inside = ["--entry=a=oss://test-bucket/x", "--entry=a/b=oss://test-bucket/y/"];
    mount(&inside).failed(64, &["oss://test-bucket/y/ at \"a/b\"", "inside oss://test-bucket/x", "one object"]);
    mount(&["--entry=../b=oss://test-bucket/x"]).failed(64, &["\"..\" is no file name"]);
    let one = bucket.sandbox.path("one");
    let alone = ["mount".as_ref(), "oss://test-bucket/x".as_ref(), one.as_os_str(), "--writable".as_ref()];
    bucket
        .sandbox
        .run(alone)
        .failed(64, &["oss://test-bucket/x is one object", "only a directory can be made writable"]);
    assert!(!one.exists());
    mount(&["--locale=UTF-16"]).code.filter(|code| *code == 64).unwrap();
    assert_eq!(bucket.double.requests().len(), 0);
    assert!(bucket.sandbox.mounts().is_empty());
}

/// Mounts one object at a path of a directory that has a neighbour.
fn alone(size: u64) -> (Bucket, std::path::PathBuf) {
    let bucket = Bucket::new().location("oss", "dir/object");
    bucket.put("dir/object", sample(7, size));
    let home = bucket.sandbox.path("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("neighbour"), "here").unwrap();
    let target = home.join("file1");
    bucket.mount_on(&target);
    (bucket, target)
}

#[test]
fn one_object_at_one_path_hides_nothing_and_is_not_downloaded() {
    let size = (4 << 20) + 17;
    let (bucket, target) = alone(size);
    assert_eq!(bucket.gets(), 0);
    let metadata = fs::metadata(&target).unwrap();
    assert_eq!((metadata.is_file(), metadata.len(), metadata.mode() & 0o777), (true, size, 0o555));
    let whole = sample(7, size);
    let mut file = File::open(&target).unwrap();
    let mut piece = [0; 100];
    file.seek(SeekFrom::Start(3_000_000)).unwrap();
    file.read_exact(&mut piece).unwrap();
    assert!(piece[..] == whole[3_000_000..3_000_100]);
    assert!(bucket.bytes_sent() < size, "all of it was fetched for a piece");
    let mapped = Mapped::new(&File::open(&target).unwrap(), NonZeroUsize::new(whole.len()).unwrap()).unwrap();
    let mut content = vec![0; whole.len()];
    assert_eq!(mapped.read_at(0, &mut content).unwrap(), whole.len());
    assert!(content == whole);
    drop(mapped);
    assert!(fs::read(&target).unwrap() == whole);
    // The directory is what it was.
    let home = target.parent().unwrap();
    assert_eq!(fs::read_to_string(home.join("neighbour")).unwrap(), "here");
    fs::write(home.join("new"), "new").unwrap();
    fs::rename(home.join("new"), home.join("newer")).unwrap();
    let mut names: Vec<_> = fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file1", "neighbour", "newer"]);
    // The mount cannot be moved or removed.
    for refused in
        [fs::remove_file(&target), fs::rename(&target, home.join("moved")), fs::rename(home.join("newer"), &target)]
    {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    }
    let refused = File::options().write(true).open(&target).unwrap_err();
    assert!(matches!(refused.raw_os_error(), Some(libc::EROFS | libc::EACCES)), "{refused}");
    assert!(fs::metadata(target.join("below")).unwrap_err().raw_os_error() == Some(libc::ENOTDIR));
    let status = bucket.sandbox.status();
    assert_eq!(status["mounts"][0]["target"], target.to_str().unwrap());
    // In use, it stays; the file that was made goes with the mount.
    drop(file);
    let held = File::open(&target).unwrap();
    let umount = || bucket.sandbox.run(["umount".as_ref(), target.as_os_str()]);
    umount().failed(71, &["in use"]);
    drop(held);
    umount().succeeded();
    assert!(!target.exists() && home.join("neighbour").exists());
}

#[test]
fn a_complete_object_at_one_path_is_read_by_the_kernel_alone() {
    let (bucket, target) = alone(2 << 20);
    let whole = sample(7, 2 << 20);
    assert!(fs::read(&target).unwrap() == whole);
    wait_until("the kernel can read it alone", || {
        drop(fs::read(&target).unwrap());
        bucket.sandbox.status()["metrics"]["opened_passthrough"].as_u64() > Some(0)
            || !passthrough_expected(&bucket.sandbox)
    });
    let file = File::open(&target).unwrap();
    if passthrough_expected(&bucket.sandbox) {
        let stopped = bucket.stop_server();
        let mut content = Vec::new();
        (&file).read_to_end(&mut content).unwrap();
        drop(stopped);
        assert!(content == whole);
    }
}

#[test]
fn a_file_that_was_there_stays_and_one_with_content_is_refused() {
    let bucket = Bucket::new().location("oss", "one");
    bucket.put("one", "object".into());
    let target = bucket.sandbox.path("own");
    fs::write(&target, "").unwrap();
    bucket.mount_on(&target);
    assert_eq!(fs::read_to_string(&target).unwrap(), "object");
    bucket.sandbox.run(["umount".as_ref(), target.as_os_str()]).succeeded();
    assert_eq!(fs::read_to_string(&target).unwrap(), "");
    fs::write(&target, "mine").unwrap();
    let ran = bucket.try_mount(&target);
    ran.failed(71, &["the file is not empty"]);
    let ran = bucket.try_mount(&bucket.sandbox.mnt());
    ran.failed(64, &["is one object", "trailing slash"]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
    // The kernel's own program ends it as well, and a mount that fails leaves no file behind.
    let other = bucket.sandbox.path("other");
    bucket.mount_on(&other);
    assert!(Command::new("umount").arg(&other).status().unwrap().success());
    wait_until("the file has gone", || !other.exists());
    bucket.double.delete(tests::bucket::NAME, "one");
    bucket.try_mount(&other).failed(66, &["no such object"]);
    assert!(!other.exists());
}

#[test]
fn names_are_shown_and_taken_in_another_character_set() {
    let bucket = Bucket::new().argument("--locale=zh_CN.GBK");
    let files: &[(&str, &[u8])] = &[
        ("plain", b"plain"),
        ("\u{573a}\u{666f}/\u{8d34}\u{56fe}.png", b"\xb3\xa1\xbe\xb0/\xcc\xf9\xcd\xbc.png"),
        ("\u{573a}\u{666f}/\u{20ac}", b"\xb3\xa1\xbe\xb0/\x80"),
        ("\u{1f600}.txt", b"#L01f600.txt"),
        ("#L01f600.txt", b"#U0023L01f600.txt"),
        ("caf\u{eb}", b"caf#U00eb"),
    ];
    for (key, _) in files {
        bucket.put(key, (*key).into());
    }
    let long = format!("{}.x", "\u{957f}".repeat(120));
    bucket.put(&long, "long".into());
    bucket.put(&format!("{}.x", "\u{957f}".repeat(130)), "too long".into());
    bucket.mount();
    let at = |name: &[u8]| bucket.sandbox.mnt().join(OsStr::from_bytes(name));
    // By names that were never listed.
    for (key, name) in files {
        assert_eq!(fs::read_to_string(at(name)).unwrap(), *key);
    }
    // And as a walk finds them.
    let output =
        Command::new("find").arg(".").args(["-type", "f", "-print0"]).current_dir(bucket.sandbox.mnt()).output();
    let mut found: Vec<Vec<u8>> = output
        .unwrap()
        .stdout
        .split(|byte| *byte == 0)
        .filter_map(|name| name.strip_prefix(b"./"))
        .map(<[u8]>::to_vec)
        .collect();
    found.sort();
    let long = b"\xb3\xa4".repeat(120);
    let mut expected: Vec<Vec<u8>> = files.iter().map(|(_, name)| name.to_vec()).collect();
    expected.push([&long[..], b".x"].concat());
    expected.sort();
    assert_eq!(found, expected);
    // Any other spelling does not exist, nor does what is no text in GBK.
    for name in [&b"caf\xc3\xab"[..], b"#U0070lain", b"\xff\xff", "\u{573a}\u{666f}".as_bytes()] {
        assert_eq!(fs::metadata(at(name)).unwrap_err().raw_os_error(), Some(libc::ENOENT), "{name:?}");
    }
    assert_eq!(bucket.sandbox.status()["mounts"][0]["hidden"], 1);
}

#[test]
fn so_they_are_where_the_mount_can_be_written_to() {
    let bucket = Bucket::new().argument("--locale=GBK").argument("--writable");
    let key = "\u{573a}\u{666f}/\u{8d34}\u{56fe}";
    bucket.put(key, "from the store".into());
    bucket.mount();
    let at = |name: &[u8]| bucket.sandbox.mnt().join(OsStr::from_bytes(name));
    let (old, new) = (at(b"\xb3\xa1\xbe\xb0/\xcc\xf9\xcd\xbc"), at(b"\xb3\xa1\xbe\xb0/\xd0\xc2"));
    assert_eq!(fs::read_to_string(&old).unwrap(), "from the store");
    fs::write(&new, "from here").unwrap();
    fs::rename(&old, at(b"\xcc\xf9")).unwrap();
    let mut names: Vec<_> =
        fs::read_dir(bucket.sandbox.mnt()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [OsStr::from_bytes(b"\xb3\xa1\xbe\xb0"), OsStr::from_bytes(b"\xcc\xf9")]);
    assert_eq!(fs::read_to_string(at(b"\xcc\xf9")).unwrap(), "from the store");
    assert_eq!((fs::read_to_string(&new).unwrap(), old.exists()), ("from here".to_owned(), false));
    assert_eq!(bucket.double.objects(tests::bucket::NAME).len(), 1);
}

#[test]
fn all_of_it_outlives_the_process_that_answers() {
    let bucket = two().argument("--entry=in/side=oss://second-bucket/dir/").argument("--locale=GBK");
    bucket.put("in/\u{8d34}\u{56fe}", "texture".into());
    bucket.put("in/side/covered", "covered".into());
    bucket.double.put(SECOND, "dir/\u{573a}\u{666f}", "scene");
    bucket.mount();
    let at = |name: &[u8]| bucket.sandbox.mnt().join(OsStr::from_bytes(name));
    assert_eq!(fs::read_to_string(at(b"in/\xcc\xf9\xcd\xbc")).unwrap(), "texture");
    let before = bucket.sandbox.status()["mounts"][0]["nodes"].clone();
    let worker = bucket.sandbox.worker().unwrap();
    kill(worker, Signal::SIGKILL).unwrap();
    wait_until("another one is there", || bucket.sandbox.worker().is_some_and(|other| other != worker));
    assert_eq!(fs::read_to_string(at(b"in/side/\xb3\xa1\xbe\xb0")).unwrap(), "scene");
    assert_eq!(fs::read_to_string(at(b"in/\xcc\xf9\xcd\xbc")).unwrap(), "texture");
    assert!(!at(b"in/side/covered").exists());
    assert!(bucket.sandbox.status()["mounts"][0]["nodes"].as_u64() >= before.as_u64());

    let (alone, target) = alone(2 << 20);
    let file = File::open(&target).unwrap();
    let worker = alone.sandbox.worker().unwrap();
    kill(worker, Signal::SIGKILL).unwrap();
    let mut content = Vec::new();
    (&file).read_to_end(&mut content).unwrap();
    assert!(content == sample(7, 2 << 20));
    drop(file);
    wait_until("another one is there", || alone.sandbox.worker().is_some_and(|other| other != worker));
    assert!(fs::read(&target).unwrap() == sample(7, 2 << 20));
    wait_until("it can be unmounted", || alone.sandbox.run(["umount".as_ref(), target.as_os_str()]).code == Some(0));
    assert!(!target.exists(), "whoever unmounts knows that the file was made");
}
