//! A server is a keeper and a worker: what happens when one of them dies, or makes room for another program.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::mounts::{Sandbox, alive, wait_until};

const LARGE: usize = 9 << 20;

/// A tree with a small file, a large one and a directory.
fn fill(sandbox: &Sandbox) -> Vec<u8> {
    let bytes: Vec<u8> =
        (0..LARGE).map(|n| u8::try_from(n * 7 / 3 % 251).expect("the test's own files and processes")).collect();
    fs::write(sandbox.source().join("large"), &bytes).expect("the test's own files and processes");
    fs::write(sandbox.source().join("small"), "hello").expect("the test's own files and processes");
    fs::create_dir(sandbox.source().join("directory")).expect("the test's own files and processes");
    fs::write(sandbox.source().join("directory/file"), "inside").expect("the test's own files and processes");
    bytes
}

/// A server that a test runs itself, with these arguments, and the mount.
fn serve(sandbox: &Sandbox, arguments: &[&str]) -> Child {
    let log = File::create(sandbox.path("run/test.log")).expect("the test's own files and processes");
    let mut server = sandbox.command();
    let child = server
        .arg("serve")
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the test's own files and processes");
    wait_until("the server answers", || sandbox.run(["status", "--json"]).stdout.contains("\"worker\""));
    sandbox.mount();
    child
}

fn kill_worker(sandbox: &Sandbox) -> Pid {
    let worker = sandbox.worker().expect("a worker");
    kill(worker, Signal::SIGKILL).expect("the test's own files and processes");
    wait_until("there is another worker", || {
        sandbox.worker().is_some_and(|now| now != worker) && sandbox.run(["status"]).code == Some(0)
    });
    worker
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("the test's own files and processes"))
}

#[test]
fn a_killed_worker_is_not_noticed() {
    let sandbox = Sandbox::new();
    let bytes = fill(&sandbox);
    sandbox.mount();
    let server = sandbox.server().unwrap();
    let large = File::open(sandbox.mnt().join("large")).unwrap();
    let small = File::open(sandbox.mnt().join("small")).unwrap();
    let listed: Vec<_> = fs::read_dir(sandbox.mnt()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(fs::metadata(sandbox.mnt().join("missing")).is_err());
    let inode = |name: &str| fs::metadata(sandbox.mnt().join(name)).unwrap().ino();
    let inodes = ["large", "small", "directory"].map(inode);
    let mut inside = Command::new("sleep").arg("100").current_dir(sandbox.mnt().join("directory")).spawn().unwrap();
    // What has been looked for and was missing stays missing, whatever happens in between.
    fs::write(sandbox.source().join("missing"), "late").unwrap();
    for round in 0..5 {
        kill_worker(&sandbox);
        let mut some = vec![0; 300_000];
        large.read_exact_at(&mut some, (round * 1_500_000) as u64).unwrap();
        assert!(some == bytes[round * 1_500_000..][..300_000], "round {round}");
        let mut text = [0; 5];
        small.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"hello");
        assert!(fs::metadata(sandbox.mnt().join("missing")).is_err());
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert!(fs::metadata(sandbox.mnt().join("missing")).is_err());
        let again: Vec<_> = fs::read_dir(sandbox.mnt()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(again, listed);
        assert_eq!(["large", "small", "directory"].map(inode), inodes);
        assert_eq!(fs::read_to_string(sandbox.mnt().join("directory/file")).unwrap(), "inside");
    }
    assert!(fs::read(sandbox.mnt().join("large")).unwrap() == bytes);
    assert_eq!(sandbox.server(), Some(server), "the keeper is the same");
    assert_eq!(sandbox.status()["before"], 5);
    drop((large, small));
    inside.kill().unwrap();
    inside.wait().unwrap();
    sandbox.umount();
    assert!(sandbox.mounts().is_empty());
}

#[test]
fn on_a_kernel_that_cannot_send_again_a_mount_is_made_anew() {
    let sandbox = Sandbox::new();
    let bytes = fill(&sandbox);
    let mut server = serve(&sandbox, &["--without-resend"]);
    let held = File::open(sandbox.mnt().join("large")).unwrap();
    kill_worker(&sandbox);
    wait_until("it is mounted anew", || fs::read(sandbox.mnt().join("small")).is_ok_and(|text| text == b"hello"));
    assert!(fs::read(sandbox.mnt().join("large")).unwrap() == bytes);
    // Whoever had it open gets an error, and does not wait.
    let mut held = held;
    assert!(held.read(&mut [0; 1 << 20]).is_err());
    assert_eq!(sandbox.mounts(), [sandbox.mnt()], "only one of them is there");
    drop(held);
    kill(pid(&server), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
    assert!(sandbox.mounts().is_empty());
}

#[test]
fn on_such_a_kernel_a_view_stays_down_and_says_why() {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    let view = sandbox.path("view");
    fs::create_dir(&view).unwrap();
    let mut server = serve(&sandbox, &["--without-resend"]);
    let location = sandbox.location();
    sandbox.run(["mount".as_ref(), "--writable".as_ref(), location.as_ref(), view.as_os_str()]).succeeded();
    fs::write(view.join("mine"), "local").unwrap();
    kill_worker(&sandbox);
    wait_until("the other mount is made anew", || {
        fs::read(sandbox.mnt().join("small")).is_ok_and(|text| text == b"hello")
    });
    // Nothing is written to the directory below by mistake, and nobody waits.
    assert!(fs::read(view.join("large")).is_err());
    let down = sandbox.status()["mounts"].as_array().unwrap().iter().any(|mount| {
        mount["target"] == view.to_str().unwrap() && mount["down"].as_str().is_some_and(|why| why.contains("again"))
    });
    assert!(down, "{}", sandbox.status());
    assert!(sandbox.run(["status"]).stdout.contains("DOWN"), "people see it, too");
    sandbox.run(["umount".as_ref(), view.as_os_str()]).succeeded();
    assert!(fs::read_dir(&view).unwrap().next().is_none());
    wait_until("what was written is gone", || {
        fs::read_dir(sandbox.path("cache/upper")).is_ok_and(|mut uppers| uppers.next().is_none())
    });
    sandbox.run(["mount".as_ref(), "--writable".as_ref(), location.as_ref(), view.as_os_str()]).succeeded();
    assert!(fs::read(view.join("mine")).is_err() && fs::read(view.join("small")).is_ok());
    kill(pid(&server), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
    assert!(sandbox.mounts().is_empty());
}

#[test]
fn a_worker_without_a_keeper_goes_on_until_it_is_told_to_end() {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    sandbox.mount();
    let (server, worker) = (sandbox.server().unwrap(), sandbox.worker().unwrap());
    kill(server, Signal::SIGKILL).unwrap();
    wait_until("the keeper is gone", || !alive(server));
    assert_eq!(fs::read_to_string(sandbox.mnt().join("directory/file")).unwrap(), "inside");
    // Clients reach it, and it owns the cache directory.
    wait_until("it says who it is", || sandbox.status()["pid"] == worker.as_raw());
    kill(worker, Signal::SIGTERM).unwrap();
    wait_until("it has ended", || !alive(worker));
    assert!(sandbox.mounts().is_empty());
}

#[test]
fn a_new_server_takes_over_from_a_worker_that_has_lost_its_keeper() {
    let sandbox = Sandbox::new();
    let bytes = fill(&sandbox);
    sandbox.mount();
    let view = sandbox.path("view");
    fs::create_dir(&view).unwrap();
    let location = sandbox.location();
    sandbox.run(["mount".as_ref(), "--writable".as_ref(), location.as_ref(), view.as_os_str()]).succeeded();
    fs::write(view.join("mine"), "local").unwrap();
    let large = File::open(sandbox.mnt().join("large")).unwrap();
    let inode = fs::metadata(sandbox.mnt().join("directory")).unwrap().ino();
    let (server, worker) = (sandbox.server().unwrap(), sandbox.worker().unwrap());
    // As long as there is a keeper, nobody goes over.
    sandbox.run(["serve"]).failed(71, &["belongs to another fuse-oss server"]);
    assert_eq!(sandbox.worker(), Some(worker));
    kill(server, Signal::SIGKILL).unwrap();
    wait_until("the keeper is gone", || !alive(server));
    wait_until("the worker knows", || sandbox.status()["pid"] == worker.as_raw());
    let mut successor = sandbox.command().arg("serve").stdout(Stdio::null()).spawn().unwrap();
    wait_until("another server has taken over", || {
        !alive(worker)
            && sandbox.server() == Some(pid(&successor))
            && sandbox.status()["mounts"].as_array().is_some_and(|mounts| mounts.len() == 2)
    });
    // Nobody has noticed, and what is kept is kept again: it survives the next worker's death, too.
    for _ in 0..2 {
        let mut all = vec![0; bytes.len()];
        large.read_exact_at(&mut all, 0).unwrap();
        assert!(all == bytes);
        assert_eq!(fs::read_to_string(sandbox.mnt().join("directory/file")).unwrap(), "inside");
        assert_eq!(fs::metadata(sandbox.mnt().join("directory")).unwrap().ino(), inode);
        assert_eq!(fs::read_to_string(view.join("mine")).unwrap(), "local");
        assert_eq!(fs::read_to_string(view.join("small")).unwrap(), "hello");
        kill_worker(&sandbox);
    }
    assert_eq!(sandbox.server(), Some(pid(&successor)));
    drop(large);
    kill(pid(&successor), Signal::SIGTERM).unwrap();
    assert!(successor.wait().unwrap().success());
    assert!(sandbox.mounts().is_empty());
    // What was written in the view has gone with it.
    assert!(fs::read_dir(sandbox.path("cache/upper")).map_or(true, |mut uppers| uppers.next().is_none()));
}

#[test]
fn a_mount_in_use_is_waited_for_and_then_detached() {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    let mut server = serve(&sandbox, &["--stop-timeout=2"]);
    let mut inside = Command::new("sleep").arg("100").current_dir(sandbox.mnt()).spawn().unwrap();
    kill(pid(&server), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
    let log = sandbox.log();
    let user = format!("process {} (sleep) works in it", inside.id());
    assert!(log.contains("waited for, for 2 s") && log.contains(&user) && log.contains("detaching it"), "{log}");
    inside.kill().unwrap();
    inside.wait().unwrap();
    assert!(sandbox.mounts().is_empty());
}

#[test]
fn when_no_worker_comes_up_nobody_waits_for_ever() {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    let mut server = serve(&sandbox, &[]);
    let held = File::open(sandbox.mnt().join("large")).unwrap();
    // No worker can begin without its cache directory.
    fs::rename(sandbox.path("cache"), sandbox.path("elsewhere")).unwrap();
    fs::write(sandbox.path("cache"), "no directory").unwrap();
    kill(sandbox.processes().into_iter().find(|process| *process != pid(&server)).unwrap(), Signal::SIGKILL).unwrap();
    // It waits as long as there is hope, and gets an error then.
    let error = held.read_exact_at(&mut vec![0; 1 << 20], 4 << 20).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)), "{error}");
    assert_eq!(server.wait().unwrap().code(), Some(70));
    let log = sandbox.log();
    assert!(log.contains("giving up") && log.contains("a worker cannot serve"), "{log}");
    fs::remove_file(sandbox.path("cache")).unwrap();
    fs::rename(sandbox.path("elsewhere"), sandbox.path("cache")).unwrap();
    drop(held);
    // The next server removes what is left.
    sandbox.mount();
    assert_eq!(fs::read_to_string(sandbox.mnt().join("small")).unwrap(), "hello");
    sandbox.umount();
}

#[test]
fn a_second_signal_does_not_wait() {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    let mut server = serve(&sandbox, &["--stop-timeout=3600"]);
    let mut inside = Command::new("sleep").arg("100").current_dir(sandbox.mnt()).spawn().unwrap();
    kill(pid(&server), Signal::SIGTERM).unwrap();
    wait_until("it waits", || sandbox.log().contains("waited for"));
    kill(pid(&server), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
    inside.kill().unwrap();
    inside.wait().unwrap();
    assert!(sandbox.mounts().is_empty());
}

#[test]
fn another_program_takes_over_and_one_that_cannot_does_not() {
    let sandbox = Sandbox::new();
    let bytes = fill(&sandbox);
    sandbox.mount();
    let (server, worker) = (sandbox.server().unwrap(), sandbox.worker().unwrap());
    let large = File::open(sandbox.mnt().join("large")).unwrap();
    sandbox.run(["serve", "--replace"]).succeeded();
    let status = sandbox.status();
    assert_eq!((&status["pid"], &status["replaced"]), (&server.as_raw().into(), &1.into()));
    assert_ne!(status["worker"], worker.as_raw());
    let mut all = vec![0; bytes.len()];
    large.read_exact_at(&mut all, 0).unwrap();
    assert!(all == bytes);

    // A program that understands nothing, as its caller would be: refused, and nothing has changed.
    let other = sandbox.path("other");
    fs::write(&other, "#!/bin/sh\necho something else\n").unwrap();
    fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let refused = replace_with(&sandbox, &other);
    assert!(refused.contains("cannot take over"), "{refused}");
    // One that says it does, and dies: the one before goes on.
    let understood = fuse_oss::keeper::replace::understood();
    let script = format!("#!/bin/sh\n[ \"$2\" = --understands ] && echo '{understood}' && exit 0\nexit 3\n");
    fs::write(&other, script).unwrap();
    assert_eq!(sandbox.status()["replaced"], 1);
    assert_eq!(fs::read_to_string(sandbox.mnt().join("small")).unwrap(), "hello");
    drop(large);
    sandbox.umount();
}

/// Asks the server over its socket to go on with this program; the answer as it came.
fn replace_with(sandbox: &Sandbox, program: &Path) -> String {
    let socket = fs::read_dir(sandbox.path("run")).expect("the test's own files and processes").find_map(|entry| {
        let path = entry.expect("the test's own files and processes").path();
        path.extension().is_some_and(|extension| extension == "sock").then_some(path)
    });
    let mut stream =
        std::os::unix::net::UnixStream::connect(socket.expect("a socket")).expect("the test's own files and processes");
    let request = fuse_oss::protocol::Request::Replace { program: program.to_owned() };
    std::io::Write::write_all(
        &mut stream,
        &fuse_oss::protocol::encode(&request).expect("the test's own files and processes"),
    )
    .expect("the test's own files and processes");
    let mut answer = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut answer)
        .expect("the test's own files and processes");
    answer
}

#[test]
fn the_keeper_is_small_and_neither_process_shows_a_secret() {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    let mut command = sandbox.command();
    command.env("OSS_ACCESS_KEY_ID", "the-id").env("OSS_ACCESS_KEY_SECRET", "the-secret-value");
    let mounted = command.args(["mount".as_ref(), sandbox.location().as_ref(), sandbox.mnt().as_os_str()]).status();
    assert!(mounted.unwrap().success());
    fs::read(sandbox.mnt().join("large")).unwrap();
    for process in [sandbox.server().unwrap(), sandbox.worker().unwrap()] {
        for file in ["environ", "cmdline"] {
            let text = fs::read(format!("/proc/{process}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&text).contains("the-secret-value"), "{file}");
        }
    }
    let memory = fs::read_to_string(format!("/proc/{}/smaps_rollup", sandbox.server().unwrap())).unwrap();
    let dirty = memory.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    let kib: u64 = dirty.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 4096, "{kib} KiB");
    let score = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    let (keeper, worker) = (score(sandbox.server().unwrap()), score(sandbox.worker().unwrap()));
    assert_ne!(worker.trim(), "-900");
    // Containers often may not: CAP_SYS_RESOURCE.
    let may = kill_preference_can_be_lowered();
    assert_eq!(keeper.trim() == "-900", may, "{keeper}");
}

fn kill_preference_can_be_lowered() -> bool {
    let mut child = Command::new("sleep").arg("100").spawn().expect("the test's own files and processes");
    let lowered = fs::write(format!("/proc/{}/oom_score_adj", child.id()), "-900").is_ok();
    child.kill().expect("the test's own files and processes");
    child.wait().expect("the test's own files and processes");
    lowered
}
