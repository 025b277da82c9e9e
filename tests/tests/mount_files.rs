//! What a mount shows and what is read through it, byte for byte.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tests::mounts::Sandbox;

const BLOCK: u64 = 1 << 20;

/// Bytes that look like nothing else and can be made anywhere.
fn content(seed: u64, len: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    random.fill(&mut bytes);
    bytes
}

/// Path, length and content of everything in a tree.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<(u64, [u8; 32])>> {
    fn walk(root: &Path, at: &Path, out: &mut BTreeMap<PathBuf, Option<(u64, [u8; 32])>>) {
        for entry in fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if entry.file_type().unwrap().is_dir() {
                out.insert(name, None);
                walk(root, &path, out);
            } else {
                let bytes = fs::read(&path).unwrap();
                assert_eq!(bytes.len() as u64, entry.metadata().unwrap().len(), "{}", path.display());
                out.insert(name, Some((bytes.len() as u64, Sha256::digest(&bytes).into())));
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

#[test]
fn a_whole_tree_is_the_same_byte_for_byte() {
    let sandbox = Sandbox::new();
    let source = sandbox.source();
    for (seed, len) in
        [0, 1, 4095, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 9 * BLOCK + 12_345].into_iter().enumerate()
    {
        fs::write(source.join(format!("size-{len}")), content(seed as u64, len)).unwrap();
    }
    let deep = source.join("a/b/c/d/e/f/g");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("leaf"), "deep").unwrap();
    fs::create_dir(source.join("empty")).unwrap();
    for name in ["数据.txt", "with space", "new\nline", "-dash", "q\"uote", "back\\slash", &"n".repeat(255)] {
        fs::write(source.join(name), name).unwrap();
    }
    let many = source.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..2500 {
        fs::write(many.join(format!("{number:04}")), number.to_string()).unwrap();
    }
    sandbox.mount();
    let expected = tree(&source);
    assert_eq!(tree(&sandbox.mnt()), expected);
    // Again from the kernel's caches, and again from the disk cache through a new mount.
    assert_eq!(tree(&sandbox.mnt()), expected);
    let fetched = sandbox.status()["fetched"].as_u64().unwrap();
    sandbox.umount();
    sandbox.mount();
    assert_eq!(tree(&sandbox.mnt()), expected);
    assert_eq!(sandbox.status()["fetched"].as_u64().unwrap(), fetched, "the cache was not used");
    sandbox.umount();
}

#[test]
fn attributes_are_those_of_the_objects() {
    let sandbox = Sandbox::new();
    let file = sandbox.source().join("file");
    fs::write(&file, vec![7; 1000]).unwrap();
    sandbox
        .run([
            "mount".as_ref(),
            sandbox.location().as_ref(),
            sandbox.mnt().as_os_str(),
            "--file-mode=0440".as_ref(),
            "--dir-mode=0550".as_ref(),
            "--uid=1234".as_ref(),
            "--gid=4321".as_ref(),
        ])
        .succeeded();
    let (there, source) = (fs::metadata(sandbox.mnt().join("file")).unwrap(), fs::metadata(&file).unwrap());
    assert_eq!((there.len(), there.mode() & 0o7777, there.uid(), there.gid()), (1000, 0o440, 1234, 4321));
    assert_eq!((there.mtime(), there.nlink(), there.blocks()), (source.mtime(), 1, 2));
    let root = fs::metadata(sandbox.mnt()).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid()), (0o550, 1234));
    for error in [
        File::create(sandbox.mnt().join("new")).map(drop).unwrap_err(),
        fs::remove_file(sandbox.mnt().join("file")).unwrap_err(),
        fs::create_dir(sandbox.mnt().join("new")).unwrap_err(),
        File::options().append(true).open(sandbox.mnt().join("file")).map(drop).unwrap_err(),
    ] {
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
    }
    assert_eq!(fs::metadata(sandbox.mnt().join("none")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    let long = fs::metadata(sandbox.mnt().join("n".repeat(256))).unwrap_err();
    assert_eq!(long.raw_os_error(), Some(libc::ENAMETOOLONG));
    let by_default = Sandbox::new();
    fs::write(by_default.source().join("run-me"), "#!/bin/sh\necho it runs\n").unwrap();
    by_default.mount();
    assert_eq!(fs::metadata(by_default.mnt().join("run-me")).unwrap().mode() & 0o7777, 0o555);
    let output = std::process::Command::new(by_default.mnt().join("run-me")).output().unwrap();
    assert_eq!(output.stdout, b"it runs\n");
}

#[test]
fn a_hundred_gigabytes_are_read_at_odd_places() {
    let sandbox = Sandbox::new();
    let len = 100_000_000_007_u64;
    let source = File::create(sandbox.source().join("huge")).unwrap();
    source.set_len(len).unwrap();
    let places = [0, 1, BLOCK - 3, 4 * (1 << 30) - 5, 50_000_000_001, len - 70_001, len - 9];
    for (seed, &place) in places.iter().enumerate() {
        let bytes = content(seed as u64, (len - place).min(70_000));
        source.write_all_at(&bytes, place).unwrap();
    }
    let source = File::open(sandbox.source().join("huge")).unwrap();
    sandbox.mount();
    let mounted = File::open(sandbox.mnt().join("huge")).unwrap();
    assert_eq!(mounted.metadata().unwrap().len(), len);
    assert_eq!(mounted.metadata().unwrap().blocks(), len.div_ceil(512));
    for &place in &places {
        for from in [place.saturating_sub(33), place, place + 1] {
            let size = usize::try_from((len - from).min(200_000)).unwrap();
            let (mut expected, mut got) = (vec![0; size], vec![0; size]);
            source.read_exact_at(&mut expected, from).unwrap();
            mounted.read_exact_at(&mut got, from).unwrap();
            assert!(Sha256::digest(&expected) == Sha256::digest(&got), "at {from}");
        }
    }
    assert_eq!(mounted.read_at(&mut [0; 10], len).unwrap(), 0);
    assert_eq!(mounted.read_at(&mut [0; 10], len + (1 << 40)).unwrap(), 0);
    assert_eq!(mounted.read_at(&mut [0; 100], len - 4).unwrap(), 4);
}

#[test]
fn sixteen_readers_at_random_places_get_the_right_bytes() {
    let sandbox = Sandbox::new();
    let bytes = content(99, 40 * BLOCK + 4321);
    for name in ["one", "two"] {
        fs::write(sandbox.source().join(name), &bytes).unwrap();
    }
    sandbox.mount();
    std::thread::scope(|scope| {
        for reader in 0..16_u64 {
            let (bytes, mnt) = (&bytes, sandbox.mnt());
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(reader);
                let file = File::open(mnt.join(if reader % 2 == 0 { "one" } else { "two" })).unwrap();
                for _ in 0..60 {
                    let from = random.usize(..bytes.len());
                    let size = random.usize(1..300_000).min(bytes.len() - from);
                    let mut got = vec![0; size];
                    file.read_exact_at(&mut got, from as u64).unwrap();
                    assert!(got == bytes[from..from + size], "{size} bytes at {from}");
                }
                let mut all = Vec::new();
                File::open(mnt.join("one")).unwrap().read_to_end(&mut all).unwrap();
                assert!(all == *bytes, "sequential reader");
            });
        }
    });
    let status = sandbox.status();
    let fetched = status["fetched"].as_u64().unwrap();
    // Nothing is fetched twice but what lies between two missing stretches and costs less than another request, which on a busy
    // machine is more (some 6 % have been seen), and what was raced, at most a request's length each time. Without
    // fetches being shared it would be several times as much.
    let (once, raced) = (2 * bytes.len() as u64, status["metrics"]["raced"].as_u64().unwrap());
    let allowed = once + once / 8 + raced * (8 << 20);
    assert!(
        fetched <= allowed,
        "the same was fetched more than once: {fetched} for {once}, {raced} requests were raced"
    );
    assert!(status["memory_used"].as_u64().unwrap() <= 256 << 20, "{status}");
}

#[test]
fn the_view_is_frozen_and_the_next_mount_shows_what_is_there_then() {
    let sandbox = Sandbox::new();
    let (source, mnt) = (sandbox.source(), sandbox.mnt());
    fs::write(source.join("kept"), "old").unwrap();
    fs::write(source.join("removed"), "old").unwrap();
    sandbox.mount();
    let before: Vec<_> = fs::read_dir(&mnt).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let inode = fs::metadata(mnt.join("kept")).unwrap().ino();
    fs::write(source.join("kept"), "new and longer").unwrap();
    fs::remove_file(source.join("removed")).unwrap();
    fs::write(source.join("added"), "new").unwrap();
    let after: Vec<_> = fs::read_dir(&mnt).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(before, after);
    assert_eq!(fs::metadata(mnt.join("kept")).unwrap().len(), 3);
    assert_eq!(fs::metadata(mnt.join("kept")).unwrap().ino(), inode);
    assert!(!mnt.join("added").exists());
    // Its content is not the one that was shown: no byte of the new one is handed out under the old name.
    assert_eq!(fs::read(mnt.join("kept")).unwrap_err().raw_os_error(), Some(libc::ESTALE));
    assert_eq!(fs::read(mnt.join("removed")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    sandbox.umount();
    sandbox.mount();
    assert_eq!(fs::read_to_string(mnt.join("kept")).unwrap(), "new and longer");
    assert_eq!(fs::read_to_string(mnt.join("added")).unwrap(), "new");
    assert!(!mnt.join("removed").exists());
}

#[test]
fn an_object_replaced_while_it_is_read_is_an_error_and_never_a_mixture() {
    let sandbox = Sandbox::new();
    let (old, new) = (content(1, 80 * BLOCK), content(2, 80 * BLOCK));
    let path = sandbox.source().join("file");
    fs::write(&path, &old).unwrap();
    sandbox.mount();
    let file = File::open(sandbox.mnt().join("file")).unwrap();
    let mut buffer = vec![0; 4096];
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert!(buffer == old[..4096]);
    let replacement = sandbox.source().join("replacement");
    File::create(&replacement).unwrap().write_all(&new).unwrap();
    fs::rename(&replacement, &path).unwrap();
    let error = file.read_exact_at(&mut buffer, 60 * BLOCK).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
    let log = sandbox.log();
    assert!(log.contains("mount again") || log.contains("mounted again"), "{log}");
    // Block by block: the old bytes or an error.
    for block in 0..80 {
        if file.read_exact_at(&mut buffer, block * BLOCK).is_ok() {
            let at = usize::try_from(block * BLOCK).unwrap();
            assert!(buffer == old[at..at + 4096], "block {block} is of another version");
        }
    }
}

#[test]
fn an_empty_directory_and_a_single_file_can_be_told_apart() {
    let sandbox = Sandbox::new();
    sandbox.mount();
    assert_eq!(fs::read_dir(sandbox.mnt()).unwrap().count(), 0);
    sandbox.umount();
    fs::write(sandbox.source().join("file"), "x").unwrap();
    let file = format!("file://{}/file", sandbox.source().display());
    sandbox
        .run(["mount".as_ref(), file.as_ref(), sandbox.mnt().as_os_str()])
        .failed(64, &["is one object", "trailing slash"]);
}
