//! Everything that keeps a mount from being made: the message, the exit status, and that nothing is left.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::mounts::{Ran, Sandbox};

fn mount(sandbox: &Sandbox, location: &str, target: &Path, more: &[&str]) -> Ran {
    let mut command = sandbox.command();
    command.arg("mount").arg(location).arg(target).args(more);
    Ran::from(command.output().unwrap())
}

#[test]
fn the_source_must_be_there() {
    let sandbox = Sandbox::new();
    let missing = format!("{}missing/", sandbox.location());
    mount(&sandbox, &missing, &sandbox.mnt(), &[]).failed(66, &[&missing, "no such directory", "check the path"]);
    assert!(sandbox.mounts().is_empty());
}

#[test]
fn the_target_must_be_there_empty_and_free() {
    let sandbox = Sandbox::new();
    let location = sandbox.location();
    let none = sandbox.path("none");
    mount(&sandbox, &location, &none, &[]).failed(71, &[none.to_str().unwrap(), "mkdir -p"]);
    let file = sandbox.source().join("file");
    fs::write(&file, "x").unwrap();
    mount(&sandbox, &location, &file, &[]).failed(71, &["not a directory"]);
    fs::write(sandbox.mnt().join("precious"), "x").unwrap();
    mount(&sandbox, &location, &sandbox.mnt(), &[]).failed(71, &["not empty", "nonempty"]);
    mount(&sandbox, &location, &sandbox.mnt(), &["-o", "nonempty"]).succeeded();
    mount(&sandbox, &location, &sandbox.mnt(), &["-o", "nonempty"])
        .failed(71, &[sandbox.mnt().to_str().unwrap(), "is mounted there already", &location, "umount"]);
    sandbox.umount();
    assert_eq!(fs::read_to_string(sandbox.mnt().join("precious")).unwrap(), "x");
}

#[test]
fn without_a_fuse_device_it_says_what_to_do() {
    let sandbox = Sandbox::new();
    // In a mount namespace of its own, where /dev has nothing in it but what the program needs to start.
    let script = "mount -t tmpfs none /dev && : > /dev/null && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    let ours = sandbox.command();
    command.arg(ours.get_program());
    for (name, value) in ours.get_envs() {
        command.env(name, value.unwrap());
    }
    command.arg("mount").arg(sandbox.location()).arg(sandbox.mnt()).arg("--foreground");
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, Some(71), "{ran:?}");
    assert!(ran.stderr.contains("cannot open /dev/fuse") && ran.stderr.contains("modprobe fuse"), "{ran:?}");
    assert!(sandbox.mounts().is_empty());
}

#[test]
fn what_is_written_wrongly_is_named() {
    let sandbox = Sandbox::new();
    let (location, mnt) = (sandbox.location(), sandbox.mnt());
    mount(&sandbox, "bucket/key/", &mnt, &[]).failed(64, &["bucket/key/", "oss://"]);
    mount(&sandbox, "nas://host:/dir/", &mnt, &[]).failed(64, &["unknown storage scheme"]);
    mount(&sandbox, &location, &mnt, &["-o", "ro,colour=red"]).failed(64, &["colour", "--help"]);
    let ran = mount(&sandbox, &location, &mnt, &["--cache-size", "many"]);
    assert!(ran.code == Some(64) && ran.stderr.contains("is not a size"), "{ran:?}");
    let ran = mount(&sandbox, &location, &mnt, &["--colour=red"]);
    assert!(ran.code == Some(64) && ran.stderr.contains("--colour"), "{ran:?}");
    mount(&sandbox, &location, &mnt, &["--memory-limit=1MiB"]).failed(78, &["--memory-limit", "at least 32MiB"]);
    fs::set_permissions(sandbox.path("cache"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    mount(&sandbox, &location, &mnt, &[]).failed(78, &["others may write in the cache directory", "chmod go-w"]);
    sandbox.run(["umount".as_ref(), mnt.as_os_str()]).failed(71, &["nothing is mounted on"]);
    sandbox.run(["umount", "/proc"]).failed(71, &["is not ours", "umount(8)"]);
    assert!(sandbox.server().is_none() && sandbox.mounts().is_empty());
}

#[test]
fn a_mount_that_the_client_could_not_see_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.mount();
    fs::create_dir(sandbox.path("second")).unwrap();
    let ours = sandbox.command();
    let mut command = Command::new("unshare");
    command.arg("--mount").arg(ours.get_program());
    for (name, value) in ours.get_envs() {
        command.env(name, value.unwrap());
    }
    command.arg("mount").arg(sandbox.location()).arg(sandbox.path("second"));
    Ran::from(command.output().unwrap()).failed(78, &["another mount namespace"]);
}
