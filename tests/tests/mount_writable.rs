//! Mounts that can be written to: everything a program does on a local disk works, none of it reaches the store, and all of it is
//! gone with the mount.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use nix::sys::statvfs::FsFlags;
use tests::bucket::{Bucket, passthrough_expected, sample};
use tests::disk::LoopDisk;
use tests::double::Operation;
use tests::mounts::{Ran, Sandbox, as_nobody, wait_until};

/// A bucket with a few objects, mounted so that it can be written to.
fn bucket() -> Bucket {
    let bucket = Bucket::new().argument("--writable");
    for (key, size) in [("a.txt", 10), ("d/one", 100), ("d/two", 5000), ("d/sub/three", 3), ("big", 3 << 20), ("z", 1)]
    {
        bucket.put(key, sample(size, size));
    }
    bucket
}

/// Name and content of everything in a tree: directories have none.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    fn walk(root: &Path, at: &Path, out: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let is_directory = fs::symlink_metadata(&path).unwrap().is_dir();
            out.insert(path.strip_prefix(root).unwrap().to_owned(), (!is_directory).then(|| fs::read(&path).unwrap()));
            if is_directory {
                walk(root, &path, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

/// Fails if anything but reading was ever asked of the store.
#[track_caller]
fn assert_only_read(bucket: &Bucket) {
    let requests = bucket.double.requests();
    assert!(!requests.is_empty());
    for request in requests {
        assert!(matches!(request.method.as_str(), "GET" | "HEAD"), "{request:?}");
        let reads = [Operation::GetObject, Operation::HeadObject, Operation::ListObjects];
        assert!(reads.contains(&request.operation), "{request:?}");
    }
}

/// What is in the default directory for upper layers.
fn uppers(sandbox: &Sandbox) -> Vec<PathBuf> {
    fs::read_dir(sandbox.path("cache/upper")).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[track_caller]
fn assert_errno(result: io::Result<impl Sized>, errno: i32) {
    let error = result.err().expect("an error");
    assert_eq!(error.raw_os_error(), Some(errno), "{error}");
}

#[test]
fn everything_can_be_changed_and_nothing_is_uploaded() {
    let bucket = bucket();
    let (before, mnt) = (bucket.double.objects("test-bucket").len(), bucket.sandbox.mnt());
    bucket.mount();
    let original = tree(&mnt);
    let path = |name: &str| mnt.join(name);
    let mut right = original.clone();
    let mut expect = |name: &str, content: &[u8]| right.insert(name.into(), Some(content.to_owned()));

    // New files and directories.
    fs::write(path("new"), "new").unwrap();
    expect("new", b"new");
    fs::create_dir_all(path("d/sub/deeper/down")).unwrap();
    fs::write(path("d/sub/deeper/down/new"), "deep").unwrap();
    expect("d/sub/deeper/down/new", b"deep");

    // Append, overwrite in the middle, cut, lengthen, replace.
    let mut content = sample(100, 100).to_vec();
    File::options().append(true).open(path("d/one")).unwrap().write_all(b"appended").unwrap();
    content.extend(b"appended");
    expect("d/one", &content);
    let mut content = sample(3 << 20, 3 << 20).to_vec();
    let big = File::options().read(true).write(true).open(path("big")).unwrap();
    big.write_all_at(b"overwritten", 1_234_567).unwrap();
    content[1_234_567..][..11].copy_from_slice(b"overwritten");
    big.set_len(2 << 20).unwrap();
    big.set_len((2 << 20) + 10).unwrap();
    content.truncate(2 << 20);
    content.extend([0; 10]);
    let mut at_end = Vec::new();
    (&big).seek(SeekFrom::Start((2 << 20) - 1)).unwrap();
    (&big).read_to_end(&mut at_end).unwrap();
    assert_eq!(at_end.len(), 11);
    expect("big", &content);
    fs::write(path("a.txt"), "replaced").unwrap();
    expect("a.txt", b"replaced");

    // A file that was open for reading before it was changed sees the change, as on any disk.
    let open = File::open(path("d/two")).unwrap();
    let mut buffer = [0; 4];
    open.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(buffer, sample(5000, 5000)[..4]);
    File::options().write(true).open(path("d/two")).unwrap().write_all(b"else").unwrap();
    open.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"else");
    let mut content = sample(5000, 5000).to_vec();
    content[..4].copy_from_slice(b"else");
    expect("d/two", &content);
    let mapped = File::options().read(true).write(true).open(path("z")).unwrap();
    mapped.set_len(8192).unwrap();
    write_mapped(&mapped, 5000, b"through a mapping");
    let mut content = sample(1, 1).to_vec();
    content.resize(8192, 0);
    content[5000..][..17].copy_from_slice(b"through a mapping");
    expect("z", &content);
    assert_eq!(tree(&mnt)[Path::new("z")].as_deref(), Some(&content[..]));

    drop((open, big, mapped));
    let now = tree(&mnt);
    for (name, content) in &right {
        assert_eq!(now.get(name), Some(content), "{}", name.display());
    }
    assert_eq!(bucket.double.objects("test-bucket").len(), before);
    assert_only_read(&bucket);
    bucket.sandbox.umount();
    wait_until("what was written is gone", || uppers(&bucket.sandbox).is_empty());
    bucket.mount();
    assert_eq!(tree(&mnt), original);
    assert_only_read(&bucket);
}

#[test]
fn names_can_be_moved_removed_and_used_again() {
    let bucket = bucket();
    let mnt = bucket.sandbox.mnt();
    bucket.mount();
    let original = tree(&mnt);
    let path = |name: &str| mnt.join(name);

    fs::write(path("local"), "local").unwrap();
    fs::rename(path("local"), path("d/moved")).unwrap();
    fs::rename(path("a.txt"), path("d/a.txt")).unwrap();
    // A directory that is in the store, with what is in it and was never looked at.
    fs::rename(path("d"), path("e")).unwrap();
    assert_eq!(fs::read(path("e/sub/three")).unwrap(), sample(3, 3));
    assert_eq!(fs::read(path("e/moved")).unwrap(), b"local");
    assert_eq!(fs::read(path("e/a.txt")).unwrap(), sample(10, 10));
    assert_errno(fs::metadata(path("d")), libc::ENOENT);
    fs::rename(path("e/sub"), path("sub")).unwrap();
    fs::create_dir(path("local-dir")).unwrap();
    fs::rename(path("local-dir"), path("sub/renamed")).unwrap();

    // Gone, and again as something else: what was there does not shine through.
    fs::create_dir(path("d")).unwrap();
    assert_eq!(fs::read_dir(path("d")).unwrap().count(), 0);
    fs::remove_file(path("z")).unwrap();
    assert_errno(File::open(path("z")), libc::ENOENT);
    fs::create_dir(path("z")).unwrap();
    fs::write(path("z/inside"), "x").unwrap();
    fs::remove_dir_all(path("e")).unwrap();
    fs::write(path("e"), "now a file").unwrap();

    // Over something that is there.
    fs::write(path("other"), "other").unwrap();
    fs::rename(path("other"), path("big")).unwrap();
    assert_eq!(fs::read(path("big")).unwrap(), b"other");
    assert_errno(fs::remove_dir(path("sub")), libc::ENOTEMPTY);

    let names: Vec<_> = tree(&mnt).into_keys().map(|name| name.to_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["big", "d", "e", "sub", "sub/renamed", "sub/three", "z", "z/inside"]);
    assert_only_read(&bucket);
    bucket.remount();
    assert_eq!(tree(&mnt), original);
}

#[test]
fn links_and_attributes_are_those_of_a_disk() {
    let bucket = bucket();
    let mnt = bucket.sandbox.mnt();
    bucket.mount();
    let path = |name: &str| mnt.join(name);
    let meta = |name: &str| fs::metadata(mnt.join(name)).unwrap();

    let seen = meta("d/one");
    assert_eq!((seen.mode() & 0o7777, seen.uid(), seen.len()), (0o555, 0, 100));
    // The number stays when the file is copied up.
    fs::set_permissions(path("d/one"), Permissions::from_mode(0o640)).unwrap();
    chown(path("d/one"), Some(1234), Some(4321)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let times = fs::FileTimes::new().set_modified(then).set_accessed(then);
    File::options().append(true).open(path("d/one")).unwrap().set_times(times).unwrap();
    let now = meta("d/one");
    assert_eq!((now.mode() & 0o7777, now.uid(), now.gid(), now.mtime()), (0o640, 1234, 4321, 1_000_000_000));
    assert_eq!((now.ino(), now.len()), (seen.ino(), 100));
    assert_eq!(fs::read(path("d/one")).unwrap(), sample(100, 100));

    fs::hard_link(path("big"), path("d/linked")).unwrap();
    assert_eq!((meta("big").ino(), meta("big").nlink()), (meta("d/linked").ino(), 2));
    File::options().append(true).open(path("d/linked")).unwrap().write_all(b"x").unwrap();
    assert_eq!(meta("big").len(), (3 << 20) + 1);
    fs::remove_file(path("big")).unwrap();
    assert_eq!(fs::read(path("d/linked")).unwrap()[..3 << 20], sample(3 << 20, 3 << 20));

    symlink("d/two", path("link")).unwrap();
    assert_eq!(fs::read(path("link")).unwrap(), sample(5000, 5000));
    symlink("nowhere", path("dangling")).unwrap();
    assert_errno(File::open(path("dangling")), libc::ENOENT);
    // A change of mode copies no content: the object is read from the store, through the server.
    fs::set_permissions(path("d/two"), Permissions::from_mode(0o777)).unwrap();
    assert_eq!(fs::read(path("d/two")).unwrap(), sample(5000, 5000));
    let sockets = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    drop(sockets);
    nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_only_read(&bucket);
}

#[test]
fn programs_run_unless_that_is_forbidden() {
    let bucket = bucket();
    let script = "#!/bin/sh\necho $1";
    bucket.put("d/script", script.as_bytes().to_vec().into());
    bucket.mount();
    let local = bucket.path("d/local");
    fs::write(&local, script).unwrap();
    fs::set_permissions(&local, Permissions::from_mode(0o4755)).unwrap();
    for program in [bucket.path("d/script"), local] {
        let ran = Ran::from(Command::new(program).arg("it runs").output().unwrap());
        assert_eq!(ran.stdout, "it runs\n", "{ran:?}");
    }
    let flags = |mnt: &Path| nix::sys::statvfs::statvfs(mnt).unwrap().flags();
    assert!(flags(&bucket.sandbox.mnt()).contains(FsFlags::ST_NOSUID | FsFlags::ST_NODEV));
    assert!(!flags(&bucket.sandbox.mnt()).contains(FsFlags::ST_NOEXEC));
    let bucket = bucket.argument("-o").argument("noexec");
    bucket.remount();
    assert!(flags(&bucket.sandbox.mnt()).contains(FsFlags::ST_NOEXEC));
    assert_errno(Command::new(bucket.path("d/script")).output(), libc::EACCES);
}

#[test]
fn nothing_but_the_target_is_to_be_seen() {
    let bucket = bucket();
    let (sandbox, mnt) = (&bucket.sandbox, bucket.sandbox.mnt());
    bucket.mount();
    assert_eq!(sandbox.mounts(), [sandbox.mnt()]);
    let mounted = fuse_oss::mountpoint::mounted_on(&mnt).unwrap();
    assert_eq!((mounted.fs_type.as_str(), mounted.source.to_str().unwrap()), ("overlay", "oss://test-bucket/"));
    assert!(mounted.is_ours());
    let [upper] = &uppers(sandbox)[..] else { panic!("one upper layer") };
    assert_eq!(fs::metadata(upper).unwrap().mode() & 0o7777, 0o700);
    let left = fs::read_dir(sandbox.path("run")).unwrap().map(|file| file.unwrap().path());
    assert_eq!(left.filter(|path| path.extension().is_some_and(|end| end == "lower")).count(), 0);

    fs::write(mnt.join("file"), vec![1; 100_000]).unwrap();
    let status = &sandbox.status()["mounts"][0];
    assert_eq!(status["target"], mnt.to_str().unwrap());
    let writable = &status["writable"];
    assert!(writable["upper"].as_str().unwrap().starts_with(upper.to_str().unwrap()), "{status}");
    assert!(writable["available"].as_u64().unwrap() > 0, "{status}");
    assert!(sandbox.run(["status"]).stdout.contains("writable, into "));
    // A mount that only shows says nothing of it, and cannot be made on top.
    sandbox
        .run(["mount".as_ref(), sandbox.location().as_ref(), mnt.as_os_str()])
        .failed(71, &["is mounted there already"]);
    sandbox.umount();
    assert!(sandbox.mounts().is_empty());
}

#[test]
fn complete_objects_are_read_by_the_kernel_alone_below_a_view() {
    let bucket = bucket();
    bucket.mount();
    let read = || assert!(fs::read(bucket.path("big")).unwrap() == sample(3 << 20, 3 << 20));
    read();
    let opened = || bucket.sandbox.status()["metrics"]["opened_passthrough"].as_u64().unwrap();
    if passthrough_expected(&bucket.sandbox) {
        // What was read just now may still be on its way to the disk.
        wait_until("the kernel reads by itself", || {
            read();
            opened() > 0
        });
        let file = File::open(bucket.path("big")).unwrap();
        tests::bucket::forget_pages(&file).unwrap();
        assert!(bucket.works_without_server(|| {
            let mut got = vec![0; 1 << 20];
            file.read_exact_at(&mut got, 1 << 20).unwrap();
            assert!(got == sample(3 << 20, 3 << 20)[1 << 20..2 << 20]);
        }));
    } else {
        read();
    }
}

#[test]
fn users_without_rights_may_do_what_the_modes_allow() {
    let bucket = bucket().argument("--allow-other").argument("--dir-mode=0777");
    let (sandbox, mnt) = (&bucket.sandbox, bucket.sandbox.mnt());
    fs::set_permissions(sandbox.path(""), Permissions::from_mode(0o755)).unwrap();
    bucket.mount();
    let script = "set -e; cd $1; cat d/two | wc -c; echo mine > d/mine; cat d/mine; mv d/one d/uno; rm z; mkdir own; stat -c %u own d/mine";
    let ran = as_nobody(script, &mnt);
    ran.succeeded();
    assert_eq!(ran.stdout.split_whitespace().collect::<Vec<_>>(), ["5000", "mine", "65534", "65534"]);
    // Objects cannot be written to, by anybody but root.
    assert_ne!(as_nobody("echo x >> $1/d/two", &mnt).code, Some(0));
    assert_ne!(as_nobody("chmod 777 $1/d/two", &mnt).code, Some(0));
    fs::write(mnt.join("d/two"), "root may").unwrap();
    assert_eq!(as_nobody("cat $1/d/two", &mnt).stdout, "root may");
    // And nobody gets at the layers behind the view.
    let upper = uppers(sandbox).remove(0);
    assert_ne!(as_nobody("ls $1", &upper).code, Some(0));
    assert_only_read(&bucket);
}

#[test]
fn without_leave_other_users_do_not_get_in() {
    let bucket = bucket().argument("--dir-mode=0777");
    fs::set_permissions(bucket.sandbox.path(""), Permissions::from_mode(0o755)).unwrap();
    bucket.mount();
    let root = fs::metadata(bucket.sandbox.mnt()).unwrap();
    assert_eq!(root.mode() & 0o7777, 0o700);
    for script in ["ls $1", "cat $1/d/two", "echo x > $1/new"] {
        let ran = as_nobody(script, &bucket.sandbox.mnt());
        assert_ne!(ran.code, Some(0));
        assert!(ran.stderr.to_lowercase().contains("permission denied"), "{ran:?}");
    }
}

#[test]
fn who_has_a_file_open_keeps_it_and_its_layers() {
    let bucket = bucket();
    let sandbox = &bucket.sandbox;
    bucket.mount();
    fs::write(bucket.path("mine"), "written").unwrap();
    let (mine, object) = (File::open(bucket.path("mine")).unwrap(), File::open(bucket.path("big")).unwrap());
    let refused = sandbox.run(["umount".as_ref(), sandbox.mnt().as_os_str()]);
    refused.failed(71, &["it is in use", &format!("process {} ", std::process::id()), "--lazy"]);
    sandbox.run(["umount".as_ref(), "--lazy".as_ref(), sandbox.mnt().as_os_str()]).succeeded();
    assert!(sandbox.mounts().is_empty());
    let mut got = [0; 7];
    mine.read_exact_at(&mut got, 0).unwrap();
    assert_eq!(&got, b"written");
    object.read_exact_at(&mut got, 2 << 20).unwrap();
    assert_eq!(got, sample(3 << 20, 3 << 20)[2 << 20..][..7]);
    assert_eq!((uppers(sandbox).len(), &sandbox.status()["mounts"][0]["detached"]), (1, &true.into()));
    // Another view meanwhile has layers of its own.
    bucket.mount();
    assert!(!bucket.path("mine").exists());
    assert_eq!(uppers(sandbox).len(), 2);
    sandbox.umount();
    drop((mine, object));
    wait_until("the layers are gone", || uppers(sandbox).is_empty());
    wait_until("the sessions have ended", || sandbox.status()["mounts"].as_array().unwrap().is_empty());
}

#[test]
fn umount_of_the_system_takes_everything_along() {
    let bucket = bucket();
    bucket.mount();
    for directory in 0..20 {
        fs::create_dir(bucket.path(&directory.to_string())).unwrap();
        for file in 0..50 {
            fs::write(bucket.path(&format!("{directory}/{file}")), "x").unwrap();
        }
    }
    assert!(Command::new("umount").arg(bucket.sandbox.mnt()).status().unwrap().success());
    wait_until("the layers are gone", || uppers(&bucket.sandbox).is_empty());
    wait_until("the server knows", || bucket.sandbox.status()["mounts"].as_array().unwrap().is_empty());
}

#[test]
fn sigterm_leaves_nothing() {
    let bucket = bucket();
    bucket.mount();
    fs::write(bucket.path("new"), vec![1; 1 << 20]).unwrap();
    bucket.sandbox.end_server(Signal::SIGTERM);
    assert!(bucket.sandbox.mounts().is_empty());
    assert!(uppers(&bucket.sandbox).is_empty());
}

#[test]
fn what_a_killed_server_leaves_goes_with_the_next() {
    let bucket = bucket();
    let elsewhere = bucket.sandbox.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    // What is not ours, whatever it is called.
    let stranger = elsewhere.join("fuse-oss-upper-0123456789abcdef");
    fs::create_dir(&stranger).unwrap();
    fs::write(stranger.join("file"), "x").unwrap();
    let bucket = bucket.argument("--upper").argument(elsewhere.to_str().unwrap());
    bucket.mount();
    let mnt = bucket.sandbox.mnt();
    fs::write(mnt.join("new"), "x").unwrap();
    let count = || fs::read_dir(&elsewhere).unwrap().count();
    assert_eq!(count(), 2);
    bucket.sandbox.end_server(Signal::SIGKILL);
    // What was written is still there, what is in the store cannot be reached.
    assert_eq!(fs::read_to_string(mnt.join("new")).unwrap(), "x");
    let dead = fs::read(mnt.join("d/two")).unwrap_err().raw_os_error();
    assert!(matches!(dead, Some(libc::ENOTCONN | libc::ECONNABORTED)), "{dead:?}");
    bucket.mount();
    assert_eq!(bucket.sandbox.mounts(), [bucket.sandbox.mnt()]);
    assert!(!mnt.join("new").exists());
    assert_eq!(fs::read(mnt.join("d/two")).unwrap(), sample(5000, 5000));
    wait_until("what was written is gone", || count() == 2);
    // By hand, without a server.
    fs::write(mnt.join("new"), "x").unwrap();
    bucket.sandbox.end_server(Signal::SIGKILL);
    bucket.sandbox.umount();
    assert!(bucket.sandbox.mounts().is_empty());
    assert_eq!(count(), 1);
    assert!(stranger.join("file").exists());
}

#[test]
fn directories_that_cannot_hold_what_is_written_are_refused_by_name() {
    let bucket = bucket();
    let sandbox = &bucket.sandbox;
    fs::write(sandbox.source().join("file"), "x").unwrap();
    let mount = |upper: &Path| {
        sandbox.run([
            "mount".as_ref(),
            sandbox.location().as_ref(),
            sandbox.mnt().as_os_str(),
            "--writable".as_ref(),
            "--upper".as_ref(),
            upper.as_os_str(),
        ])
    };
    mount(&sandbox.mnt()).failed(64, &["would hide", "outside"]);
    assert_eq!(fs::read_dir(sandbox.mnt()).unwrap().count(), 0);
    mount(&sandbox.path("none")).failed(78, &["there is no directory", "none", "make it"]);
    let open = sandbox.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    mount(&open).failed(78, &["others may write in it (mode 777)"]);
    // Inside of another view: overlayfs on overlayfs.
    fs::create_dir(sandbox.path("view")).unwrap();
    bucket.mount_at(&sandbox.path("view"));
    fs::create_dir(sandbox.path("view/upper")).unwrap();
    mount(&sandbox.path("view/upper")).failed(78, &["it is on overlayfs", "ext4"]);
    let shows = sandbox.path("shows");
    fs::create_dir(&shows).unwrap();
    sandbox.run(["mount".as_ref(), sandbox.location().as_ref(), shows.as_os_str()]).succeeded();
    mount(&shows).failed(78, &["it is on a FUSE mount", "ext4"]);
    sandbox.run(["umount".as_ref(), shows.as_os_str()]).succeeded();
    // Names that the kernel's parser might trip over.
    let odd = sandbox.path("odd,upperdir=x:y\\z");
    fs::create_dir(&odd).unwrap();
    mount(&odd).succeeded();
    fs::write(sandbox.mnt().join("new"), "x").unwrap();
    sandbox.umount();
    wait_until("what was written is gone", || fs::read_dir(&odd).unwrap().count() == 0);
    // It makes no sense without.
    let ran = sandbox.run([
        "mount".as_ref(),
        "oss://b/".as_ref(),
        sandbox.mnt().as_os_str(),
        "-o".as_ref(),
        "upper=/x".as_ref(),
    ]);
    ran.failed(64, &["-o writable"]);
    let ran = sandbox.run([
        "mount".as_ref(),
        "oss://b/".as_ref(),
        sandbox.mnt().as_os_str(),
        "-o".as_ref(),
        "ro,writable".as_ref(),
    ]);
    ran.failed(64, &["contradict"]);
    assert_eq!(sandbox.mounts(), [sandbox.path("view")]);
}

#[test]
fn a_full_disk_is_said_to_the_writer_and_a_large_copy_in_the_log() {
    let sandbox = Sandbox::new();
    let disk = LoopDisk::ext4(64 << 20);
    for name in ["large", "changed"] {
        File::create(sandbox.source().join(name)).unwrap().set_len((1 << 30) + 1).unwrap();
    }
    let mounted = disk.mounted();
    let arguments = ["--writable", "--upper", mounted.to_str().unwrap()];
    let mount = ["mount".to_owned(), sandbox.location(), sandbox.mnt().to_str().unwrap().to_owned()];
    sandbox.run(mount.iter().map(String::as_str).chain(arguments)).succeeded();
    let path = |name: &str| sandbox.mnt().join(name);
    let said = || sandbox.log().matches("changes a large object").count();
    let appended = |name: &str| File::options().append(true).open(path(name));
    // Readers copy nothing, nor does a change of mode.
    File::open(path("large")).unwrap().read_exact_at(&mut [0; 4096], 1 << 29).unwrap();
    fs::set_permissions(path("changed"), Permissions::from_mode(0o644)).unwrap();
    assert_eq!(said(), 0, "{}", sandbox.log());
    assert_errno(appended("large"), libc::ENOSPC);
    assert_eq!(said(), 1, "{}", sandbox.log());
    assert!(sandbox.log().contains("source/large") && sandbox.log().contains("1 GiB"));
    // What had been copied is gone again, and everything else works.
    assert_eq!(fs::metadata(path("large")).unwrap().len(), (1 << 30) + 1);
    fs::write(path("new"), vec![1; 10 << 20]).unwrap();
    assert_errno(fs::write(path("more"), vec![1; 100 << 20]), libc::ENOSPC);
    fs::remove_file(path("more")).unwrap();
    assert_eq!(fs::metadata(path("new")).unwrap().len(), 10 << 20);
    // Of a file whose attributes had been changed before the kernel keeps what it has copied, until the file is removed.
    assert_errno(appended("changed"), libc::ENOSPC);
    assert_eq!(said(), 2, "{}", sandbox.log());
    File::open(path("changed")).unwrap().read_exact_at(&mut [0; 4096], 1 << 29).unwrap();
    fs::remove_file(path("changed")).unwrap();
    // A file system may give out what has become free a moment later.
    wait_until("there is room again", || fs::write(path("more"), vec![1; 10 << 20]).is_ok());
    // Emptying it copies nothing.
    fs::write(path("large"), "small").unwrap();
    assert_eq!(said(), 2);
    sandbox.umount();
    sandbox.end_server(Signal::SIGTERM);
}

#[test]
fn many_views_of_one_bucket_do_not_meet() {
    let bucket = bucket();
    let views: Vec<PathBuf> = (0..6).map(|number| bucket.sandbox.path(&format!("view-{number}"))).collect();
    std::thread::scope(|scope| {
        for (number, view) in views.iter().enumerate() {
            let bucket = &bucket;
            scope.spawn(move || {
                bucket.mount_at(view);
                fs::write(view.join("d/one"), number.to_string()).unwrap();
                fs::rename(view.join("d"), view.join(format!("d-{number}"))).unwrap();
            });
        }
    });
    for (number, view) in views.iter().enumerate() {
        assert_eq!(fs::read_to_string(view.join(format!("d-{number}/one"))).unwrap(), number.to_string());
        assert_eq!(fs::read(view.join("z")).unwrap(), sample(1, 1));
    }
    assert_only_read(&bucket);
    bucket.sandbox.end_server(Signal::SIGTERM);
    assert!(bucket.sandbox.mounts().is_empty() && uppers(&bucket.sandbox).is_empty());
}

/// Writes through a shared mapping, as databases do.
fn write_mapped(file: &File, at: usize, bytes: &[u8]) {
    let script = "import mmap, sys\n\
        with open(sys.argv[1], 'r+b') as f:\n\
        \x20   m = mmap.mmap(f.fileno(), 0)\n\
        \x20   at, data = int(sys.argv[2]), bytes.fromhex(sys.argv[3])\n\
        \x20   m[at:at + len(data)] = data\n\
        \x20   m.flush()\n";
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut command = Command::new(tests::python::interpreter());
    let ran = Ran::from(command.args(["-c", script]).arg(path).arg(at.to_string()).arg(hex).output().unwrap());
    ran.succeeded();
}
