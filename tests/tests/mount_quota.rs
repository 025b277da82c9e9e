//! How much may be written to a view, where its disk keeps project quotas.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use tests::disk::LoopDisk;
use tests::mounts::{Sandbox, as_nobody, wait_until};

/// What the kernel has on record of the project that an upper layer in `directory` has.
fn project(directory: &Path) -> u32 {
    let upper = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let owner = upper.map(|path| path.join("owner")).find(|path| path.exists()).expect("an upper layer");
    let owner: serde_json::Value = serde_json::from_str(&fs::read_to_string(owner).unwrap()).unwrap();
    u32::try_from(owner["project"].as_u64().expect("it has a quota")).unwrap()
}

fn limited_by_a_quota(disk: &LoopDisk) {
    const MIB: u64 = 1 << 20;
    let (sandbox, mounted) = (Sandbox::new(), disk.mounted());
    fs::set_permissions(sandbox.path(""), Permissions::from_mode(0o755)).unwrap();
    fs::write(sandbox.source().join("object"), vec![7; 30 << 20]).unwrap();
    let mount = |more: &[&str]| {
        let mut arguments = vec!["mount".to_owned(), sandbox.location(), sandbox.mnt().to_str().unwrap().to_owned()];
        arguments.extend(["--writable", "--allow-other", "--dir-mode=0777", "--upper"].map(str::to_owned));
        arguments.push(mounted.to_str().unwrap().to_owned());
        arguments.extend(more.iter().map(|more| (*more).to_owned()));
        sandbox.run(arguments).succeeded();
    };
    let number = |name: &str| sandbox.status()["mounts"][0]["writable"][name].as_u64().unwrap();
    let refused = |result: io::Result<()>| {
        let errno = result.unwrap_err().raw_os_error();
        assert!(matches!(errno, Some(libc::EDQUOT | libc::ENOSPC)), "{errno:?}");
    };
    mount(&["--upper-size", "20MiB"]);
    assert_eq!(number("limit"), 20 * MIB);
    assert!(number("used") < MIB && number("available") > 19 * MIB, "{}", sandbox.status());
    // Root is not above it, nor is anybody else.
    refused(fs::write(sandbox.mnt().join("new"), vec![1; 50 << 20]));
    assert!(number("used") > 15 * MIB && number("used") <= 20 * MIB, "{}", sandbox.status());
    assert_ne!(
        as_nobody("echo x > $1/theirs && dd if=/dev/zero of=$1/theirs bs=1M count=1", &sandbox.mnt()).code,
        Some(0)
    );
    fs::write(mounted.join("of-others"), vec![1; 10 << 20]).unwrap();
    fs::remove_file(sandbox.mnt().join("new")).unwrap();
    refused(File::options().append(true).open(sandbox.mnt().join("object")).map(drop));
    fs::write(sandbox.mnt().join("fits"), vec![1; 10 << 20]).unwrap();
    let shown = nix::sys::statvfs::statvfs(&sandbox.mnt()).unwrap();
    assert!(shown.blocks() * shown.fragment_size() <= 20 * MIB, "df shows what there is: {shown:?}");
    let first = project(&mounted);
    let of = |project: u32| fuse_oss::overlay::quota::usage_of(&File::open(&mounted).unwrap(), project);
    assert_eq!(of(first).unwrap().limit, 20 * MIB);
    sandbox.umount();
    let left = || {
        fs::read_dir(&mounted).unwrap().filter(|entry| entry.as_ref().unwrap().path().join("owner").exists()).count()
    };
    wait_until("what was written is gone", || left() == 0);
    let given_back = |project: u32| of(project).is_none_or(|usage| (usage.used, usage.limit) == (0, 0));
    wait_until("the number is given back", || given_back(first));

    // Without a size there is one all the same: some of the disk stays free.
    mount(&[]);
    let stat = nix::sys::statvfs::statvfs(&mounted).unwrap();
    let (total, free) = (stat.blocks() * stat.fragment_size(), stat.blocks_available() * stat.fragment_size());
    assert!(number("limit") < free - total / 25 && number("limit") > free / 2, "{} of {free}", number("limit"));
    refused(fs::write(sandbox.mnt().join("new"), vec![1; usize::try_from(free).unwrap()]));
    fs::write(mounted.join("of-others"), vec![1; usize::try_from(total / 40).unwrap()]).unwrap();
    // What a killed server leaves is given back by the next.
    let second = project(&mounted);
    assert_ne!(first, second);
    sandbox.end_server(Signal::SIGKILL);
    assert!(!given_back(second));
    mount(&[]);
    wait_until("the number is given back", || given_back(second));
    sandbox.umount();
    sandbox.end_server(Signal::SIGTERM);
    assert_eq!(left(), 0);
}

#[test]
#[ignore = "the kernel must keep project quotas: CONFIG_QFMT_V2"]
fn a_quota_on_ext4_limits_a_view() {
    limited_by_a_quota(&LoopDisk::ext4_with_quotas(400 << 20));
}

#[test]
#[ignore = "the kernel must keep project quotas: CONFIG_XFS_QUOTA"]
fn a_quota_on_xfs_limits_a_view() {
    limited_by_a_quota(&LoopDisk::xfs_with_quotas(400 << 20));
}
