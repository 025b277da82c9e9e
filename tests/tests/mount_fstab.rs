//! Mounting by mount(8) and fstab, in a mount namespace with helpers of its own: nothing of the machine is changed.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use tests::mounts::{Ran, Sandbox};

/// Runs a script in a mount namespace where `/sbin` has also what is in `sbin`, with fstab's line for the sandbox's source, and
/// ends every server that it started.
fn with_helpers(sandbox: &Sandbox, options: &str, script: &str) -> Ran {
    let sbin = fs::canonicalize("/sbin").unwrap();
    for name in ["upper", "work"] {
        fs::create_dir_all(sandbox.path(name)).unwrap();
    }
    let line = format!("{} {} fuse.fuse-oss {options} 0 0\n", sandbox.location(), sandbox.mnt().display());
    fs::write(sandbox.path("fstab"), line).unwrap();
    let prepare = "set -eu\n\
        mount -t overlay overlay -o lowerdir=$SBIN,upperdir=$UPPER,workdir=$WORK $SBIN\n\
        mount --bind $FSTAB /etc/fstab\n\
        trap 'pid=$(grep -o \"[0-9]*\" $CACHE/lock | head -1); kill $pid; while [ -e /proc/$pid/exe ]; do sleep 0.05; done' EXIT\n";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]).arg(format!("{prepare}{script}"));
    for (name, value) in sandbox.command().get_envs() {
        command.env(name, value.unwrap());
    }
    command
        .env("SBIN", sbin)
        .env("UPPER", sandbox.path("upper"))
        .env("WORK", sandbox.path("work"))
        .env("FSTAB", sandbox.path("fstab"))
        .env("CACHE", sandbox.path("cache"))
        .env("MNT", sandbox.mnt())
        .env("LOCATION", sandbox.location());
    Ran::from(command.output().unwrap())
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    fs::write(sandbox.source().join("file"), "through fstab").unwrap();
    fs::create_dir(sandbox.path("upper")).unwrap();
    sandbox
}

const SCRIPT: &str = "mount $MNT\n\
    cat $MNT/file; echo\n\
    grep -c \"^$LOCATION $MNT fuse.fuse-oss ro,\" /proc/mounts\n\
    stat -c %a $MNT/file\n\
    mount -a\n\
    umount $MNT\n\
    mount -t fuse.fuse-oss -o ro,file_mode=0444 $LOCATION $MNT\n\
    stat -c %a $MNT/file\n\
    umount $MNT\n\
    echo done\n";

#[test]
fn a_link_in_sbin_is_a_helper() {
    for name in ["mount.fuse.fuse-oss", "mount.fuse-oss"] {
        let sandbox = sandbox();
        symlink(sandbox.command().get_program(), sandbox.path("upper").join(name)).unwrap();
        let (options, script) = if name == "mount.fuse-oss" {
            ("ro", SCRIPT.replace("-t fuse.fuse-oss", "-t fuse-oss"))
        } else {
            ("ro,allow_other,nofail,_netdev,noauto,x-systemd.automount,file_mode=0440", SCRIPT.to_owned())
        };
        if name == "mount.fuse-oss" {
            // This type goes by `-t fuse-oss`; the line in fstab says the other.
            let script = script.replacen("mount $MNT\n", "mount -t fuse-oss -o ro,file_mode=0440 $LOCATION $MNT\n", 1);
            let ran = with_helpers(&sandbox, options, &script.replace("mount -a\n", ""));
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "through fstab\n1\n440\n444\ndone\n"), "{ran:?}");
            continue;
        }
        let ran = with_helpers(&sandbox, options, &script);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "through fstab\n1\n440\n444\ndone\n"), "{ran:?}");
    }
}

#[test]
fn libfuses_helper_finds_us_on_the_path() {
    let helper = ["/sbin/mount.fuse3", "/sbin/mount.fuse"].into_iter().find(|path| fs::exists(path).unwrap());
    let helper = helper.expect("mount.fuse3 is missing: apt-get install fuse3");
    let sandbox = sandbox();
    fs::copy(fs::canonicalize(helper).unwrap(), sandbox.path("upper/mount.fuse")).unwrap();
    fs::set_permissions(sandbox.path("upper/mount.fuse"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink(sandbox.command().get_program(), sandbox.path("upper/fuse-oss")).unwrap();
    let ran = with_helpers(&sandbox, "ro,allow_other,nofail,_netdev,file_mode=0440", SCRIPT);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "through fstab\n1\n440\n444\ndone\n"), "{ran:?}");
}

#[test]
fn a_view_that_can_be_written_to_is_mounted_once() {
    let sandbox = sandbox();
    symlink(sandbox.command().get_program(), sandbox.path("upper/mount.fuse.fuse-oss")).unwrap();
    let script = "mount $MNT\n\
        echo changed > $MNT/file\n\
        mount -a\n\
        cat $MNT/file\n\
        grep -c \" $MNT \" /proc/mounts\n\
        grep -c \"^$LOCATION $MNT overlay rw,\" /proc/mounts\n\
        umount $MNT\n\
        mount $MNT\n\
        cat $MNT/file; echo\n\
        umount $MNT\n\
        echo done\n";
    let ran = with_helpers(&sandbox, "writable,upper-size=1GiB,allow_other,nofail,_netdev", script);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "changed\n1\n1\nthrough fstab\ndone\n"), "{ran:?}");
}

#[test]
fn a_bad_line_fails_with_our_message() {
    let sandbox = sandbox();
    symlink(sandbox.command().get_program(), sandbox.path("upper/mount.fuse.fuse-oss")).unwrap();
    let ran = with_helpers(
        &sandbox,
        "ro",
        "mount -t fuse.fuse-oss -o ro,colour=red $LOCATION $MNT || echo refused\nmount $MNT; umount $MNT\n",
    );
    assert_eq!(ran.stdout, "refused\n", "{ran:?}");
    assert!(ran.stderr.contains("unknown mount option \"colour\""), "{ran:?}");
}
