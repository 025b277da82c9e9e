//! `fuse-oss cache`: what is in the cache on disk, through the server and without one.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tests::mounts::{Sandbox, wait_until};

const MIB: usize = 1 << 20;

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 31 + at / 251 + seed) % 256).expect("less than 256")).collect()
}

/// The files of the cache, without its lock.
fn cache_files(sandbox: &Sandbox) -> Vec<PathBuf> {
    let below = |path: &Path| -> Vec<PathBuf> {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut files: Vec<PathBuf> = below(&sandbox.path("cache/objects")).iter().flat_map(|shard| below(shard)).collect();
    files.sort();
    files
}

fn list(sandbox: &Sandbox) -> Vec<serde_json::Value> {
    let ran = sandbox.run(["cache", "ls", "--json"]);
    ran.succeeded();
    serde_json::from_str(&ran.stdout).expect("it prints JSON")
}

/// Reads the files and waits until the cache has both.
fn fill(sandbox: &Sandbox) {
    for name in ["large", "small"] {
        assert_eq!(fs::read(sandbox.mnt().join(name)).unwrap(), fs::read(sandbox.source().join(name)).unwrap());
    }
    wait_until("both are cached", || {
        let list = list(sandbox);
        list.len() == 2 && list.iter().all(|it| it["complete"] == true)
    });
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    fs::write(sandbox.source().join("large"), bytes(3 * MIB + 5, 1)).unwrap();
    fs::write(sandbox.source().join("small"), bytes(10_000, 2)).unwrap();
    sandbox
}

/// Changes a byte in the middle of the larger object's data, behind everybody's back.
fn damage(sandbox: &Sandbox) {
    let data = cache_files(sandbox).into_iter().find(|path| path.extension().is_none()).expect("a data file");
    let file = OpenOptions::new().read(true).write(true).open(data).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 2_000_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 2_000_000).unwrap();
}

fn shows_verifies_and_clears(sandbox: &Sandbox) {
    let listed = list(sandbox);
    let of = |name: &str| {
        let ends = |it: &&serde_json::Value| it["location"].as_str().is_some_and(|it| it.ends_with(name));
        listed.iter().find(ends).unwrap_or_else(|| panic!("{name} is not listed: {listed:?}"))
    };
    assert_eq!((of("/large")["size"].as_u64(), of("/large")["cached"].as_u64()), (Some(3_145_733), Some(3_145_733)));
    assert_eq!(of("/small")["size"].as_u64(), Some(10_000));
    let ran = sandbox.run(["cache", "ls"]);
    ran.succeeded();
    assert!(ran.stdout.contains("/large") && ran.stdout.contains("complete"), "{ran:?}");
    assert!(ran.stdout.lines().last().is_some_and(|sum| sum.starts_with("2 objects, 3 MiB")), "{ran:?}");

    let ran = sandbox.run(["cache", "verify"]);
    ran.succeeded();
    assert!(ran.stdout.contains("2 objects, 3 MiB read"), "{ran:?}");
    damage(sandbox);
    let ran = sandbox.run(["cache", "verify", "--json"]);
    ran.failed(74, &["1 objects were damaged", "fetched again"]);
    let verified: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(verified["damaged"][0]["bytes"], 16384, "{verified}");
    sandbox.run(["cache", "verify"]).succeeded();
    assert!(list(sandbox).iter().any(|it| it["complete"] == false), "what was damaged is forgotten");
}

#[test]
fn through_the_server_that_uses_it() {
    let sandbox = sandbox();
    sandbox.mount();
    fill(&sandbox);
    shows_verifies_and_clears(&sandbox);
    // It is fetched again, when the kernel's own pages are gone.
    sandbox.umount();
    sandbox.mount();
    fill(&sandbox);
    let open = File::open(sandbox.mnt().join("large")).unwrap();
    let mut buffer = [0; 100];
    open.read_exact_at(&mut buffer, 70_000).unwrap();
    let ran = sandbox.run(["cache", "clear"]);
    ran.succeeded();
    assert!(ran.stdout.contains("1 objects removed") && ran.stdout.contains("because they are in use"), "{ran:?}");
    assert!(ran.stdout.contains("/large"), "{ran:?}");
    open.read_exact_at(&mut buffer, 2_000_000).unwrap();
    assert_eq!(buffer, bytes(3 * MIB + 5, 1)[2_000_000..2_000_100]);
    drop(open);
    wait_until("the closed file can be cleared", || {
        sandbox.run(["cache", "clear"]).succeeded();
        cache_files(&sandbox).is_empty()
    });
    assert!(list(&sandbox).is_empty());
    assert_eq!(sandbox.status()["cache_used"].as_u64(), Some(0));
    // Whoever looks for the server elsewhere is told where it is.
    let elsewhere = sandbox.path("elsewhere");
    let ran = sandbox.run(["cache".as_ref(), "clear".as_ref(), "--runtime-dir".as_ref(), elsewhere.as_os_str()]);
    ran.failed(71, &["belongs to another fuse-oss server", "run/"]);
    sandbox.umount();
}

#[test]
fn without_a_server() {
    let sandbox = sandbox();
    sandbox
        .run(["cache", "ls", "--cache-dir", "/nonexistent/cache"])
        .failed(66, &["no cache directory", "--cache-dir"]);
    assert!(!Path::new("/nonexistent").exists());
    sandbox.run(["cache", "ls"]).succeeded();
    sandbox.run(["cache", "verify"]).succeeded();
    assert_eq!(sandbox.run(["cache", "empty"]).code, Some(64));
    sandbox.mount();
    fill(&sandbox);
    sandbox.umount();
    sandbox.end_server(Signal::SIGTERM);
    shows_verifies_and_clears(&sandbox);
    // What is left serves the next mount; what was forgotten is fetched.
    sandbox.mount();
    fill(&sandbox);
    sandbox.umount();
    sandbox.end_server(Signal::SIGTERM);
    let ran = sandbox.run(["cache", "clear"]);
    ran.succeeded();
    assert!(ran.stdout.contains("2 objects removed") && !ran.stdout.contains("stay"), "{ran:?}");
    assert!(cache_files(&sandbox).is_empty());
    assert!(list(&sandbox).is_empty());
}

#[test]
fn a_server_without_a_cache_on_disk_says_so() {
    let sandbox = sandbox();
    let (location, mnt) = (sandbox.location(), sandbox.mnt());
    let mount = ["mount".as_ref(), location.as_ref(), mnt.as_os_str(), "--cache-size".as_ref(), "0".as_ref()];
    sandbox.run(mount).succeeded();
    assert_eq!(fs::read(sandbox.mnt().join("small")).unwrap(), bytes(10_000, 2));
    for verb in ["ls", "verify", "clear"] {
        sandbox.run(["cache", verb]).failed(78, &["no cache on disk"]);
    }
    sandbox.umount();
}
