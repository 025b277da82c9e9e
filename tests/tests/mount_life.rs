//! How mounts and their server begin and end, and what is left of them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tests::mounts::{Ran, Sandbox, alive, wait_until};

#[test]
fn after_unmounting_nothing_is_left() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.source().join("file"), "hello").unwrap();
    sandbox.mount();
    let server = sandbox.server().expect("mount started a server");
    assert_eq!(fs::read_to_string(sandbox.mnt().join("file")).unwrap(), "hello");
    sandbox.umount();
    assert!(sandbox.mounts().is_empty());
    // A second mount within the server's idle time uses the same one.
    sandbox.mount();
    assert_eq!(sandbox.server(), Some(server));
    sandbox.umount();
    wait_until("the idle server has ended", || !alive(server));
    let left: Vec<_> = fs::read_dir(sandbox.path("run")).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(left.iter().all(|path| path.extension().is_some_and(|extension| extension == "log")), "{left:?}");
    sandbox.run(["status"]).succeeded();
}

#[test]
fn a_client_does_not_hold_the_pipe_of_its_server_and_leaves_no_secret() {
    let sandbox = Sandbox::new();
    // Command::output() reads to the end of both pipes: it would not return while the server, which lives as long as the
    // mount, holds one.
    let mut command = sandbox.command();
    command.env("OSS_ACCESS_KEY_ID", "the-id").env("OSS_ACCESS_KEY_SECRET", "the-secret-value");
    let output = command.args(["mount".as_ref(), sandbox.location().as_ref(), sandbox.mnt().as_os_str()]).output();
    Ran::from(output.unwrap()).succeeded();
    let server = sandbox.server().unwrap();
    for file in ["environ", "cmdline"] {
        let text = fs::read(format!("/proc/{server}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains("the-secret-value"), "{file}");
    }
    assert!(!sandbox.log().contains("the-secret-value"));
    // It is in nobody's session and nobody's zombie.
    let stat = fs::read_to_string(format!("/proc/{server}/stat")).unwrap();
    let session: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(session, server.as_raw());
}

#[test]
fn a_mount_in_use_says_who_uses_it_and_can_be_detached() {
    let sandbox = Sandbox::new();
    let bytes = vec![5; 10 << 20];
    fs::write(sandbox.source().join("file"), &bytes).unwrap();
    sandbox.mount();
    let open = File::open(sandbox.mnt().join("file")).unwrap();
    let mut inside = Command::new("sleep").arg("100").current_dir(sandbox.mnt()).stdin(Stdio::null()).spawn().unwrap();
    let ran = sandbox.run(["umount".as_ref(), sandbox.mnt().as_os_str()]);
    let lazy = sandbox.run(["umount".as_ref(), sandbox.mnt().as_os_str(), "--lazy".as_ref()]);
    let sleeper = format!("process {} (sleep) works in it", inside.id());
    inside.kill().unwrap();
    inside.wait().unwrap();
    ran.failed(71, &["it is in use", &sleeper, &format!("process {} ", std::process::id()), "--lazy"]);
    lazy.succeeded();
    assert!(sandbox.mounts().is_empty());
    // Who has a file open keeps it, blocks included that were not read yet.
    let mut buffer = vec![0; 1000];
    open.read_exact_at(&mut buffer, 9 << 20).unwrap();
    assert_eq!(buffer, [5; 1000]);
    assert_eq!(sandbox.status()["mounts"][0]["detached"], true);
    drop(open);
    wait_until("the detached mount has ended", || sandbox.status()["mounts"].as_array().unwrap().is_empty());
}

#[test]
fn umount_of_the_system_does_as_well() {
    let sandbox = Sandbox::new();
    sandbox.mount();
    let status = Command::new("umount").arg(sandbox.mnt()).status().unwrap();
    assert!(status.success());
    wait_until("the server knows", || sandbox.status()["mounts"].as_array().unwrap().is_empty());
    sandbox.run(["umount".as_ref(), sandbox.mnt().as_os_str()]).failed(71, &["nothing is mounted on"]);
}

#[test]
fn sigterm_unmounts_everything() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.source().join("file"), "x").unwrap();
    fs::create_dir(sandbox.path("second")).unwrap();
    sandbox.mount();
    sandbox.run(["mount".as_ref(), sandbox.location().as_ref(), sandbox.path("second").as_os_str()]).succeeded();
    assert_eq!(sandbox.mounts().len(), 2);
    let held = File::open(sandbox.mnt().join("file")).unwrap();
    sandbox.end_server(Signal::SIGTERM);
    assert!(sandbox.mounts().is_empty());
    // Nobody hangs on what is gone.
    assert!(held.read_at(&mut [0; 1], 0).is_ok() || File::open(sandbox.mnt().join("file")).is_err());
}

#[test]
fn a_killed_server_is_replaced_and_its_dead_mounts_removed() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.source().join("file"), "hello").unwrap();
    fs::create_dir(sandbox.path("second")).unwrap();
    let second = sandbox.path("second");
    sandbox.mount();
    sandbox.run(["mount".as_ref(), sandbox.location().as_ref(), second.as_os_str()]).succeeded();
    sandbox.end_server(Signal::SIGKILL);
    // The second while the kernel is still taking the connection down.
    let dead = fs::read_dir(sandbox.mnt()).unwrap_err().raw_os_error();
    assert!(matches!(dead, Some(libc::ENOTCONN | libc::ECONNABORTED)), "{dead:?}");
    // By hand, without a server.
    sandbox.run(["umount".as_ref(), second.as_os_str()]).succeeded();
    assert_eq!(sandbox.mounts(), [sandbox.mnt()]);
    // Or by whoever mounts next.
    sandbox.mount();
    assert_eq!(sandbox.mounts(), [sandbox.mnt()]);
    assert_eq!(fs::read_to_string(sandbox.mnt().join("file")).unwrap(), "hello");
    assert!(sandbox.log().contains("removed a mount that a server left when it died"), "{}", sandbox.log());
    sandbox.umount();
}

#[test]
fn a_damaged_cache_is_noticed_and_fetched_again() {
    let sandbox = Sandbox::new();
    let bytes: Vec<u8> = (0..5_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    fs::write(sandbox.source().join("file"), &bytes).unwrap();
    sandbox.mount();
    assert!(fs::read(sandbox.mnt().join("file")).unwrap() == bytes);
    sandbox.umount();
    // In one process a block is checked once, so the damage is done between two.
    sandbox.end_server(Signal::SIGTERM);
    let mut damaged = 0;
    for shard in fs::read_dir(sandbox.path("cache/objects")).unwrap() {
        for file in fs::read_dir(shard.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none() {
                let file = File::options().write(true).open(&path).unwrap();
                file.write_all_at(b"some other bytes", 3_000_000).unwrap();
                file.write_all_at(&[0; 4096], 10_000_000).unwrap();
                damaged += 1;
            }
        }
    }
    assert_eq!(damaged, 1);
    sandbox.mount();
    assert!(fs::read(sandbox.mnt().join("file")).unwrap() == bytes);
    let status = sandbox.status();
    assert_eq!(status["corrupt"], 2, "{status}");
    assert!(sandbox.log().contains("damaged on the disk"), "{}", sandbox.log());
    let fetched = status["fetched"].as_u64().unwrap();
    assert_eq!(fetched, 2 * (16 << 10), "only the damaged granules are fetched again");
}

#[test]
fn a_second_server_for_a_cache_directory_is_refused_by_name() {
    let sandbox = Sandbox::new();
    sandbox.mount();
    let server = sandbox.server().unwrap();
    let hints = ["belongs to another fuse-oss server", &format!("process {server}"), "--cache-dir"];
    sandbox.run(["serve"]).failed(71, &hints);
    // Nor can somebody who looks for the server elsewhere start another.
    fs::create_dir(sandbox.path("elsewhere")).unwrap();
    fs::create_dir(sandbox.path("second")).unwrap();
    let ran = sandbox.run([
        "mount".as_ref(),
        sandbox.location().as_ref(),
        sandbox.path("second").as_os_str(),
        "--runtime-dir".as_ref(),
        sandbox.path("elsewhere").as_os_str(),
    ]);
    ran.failed(71, &hints);
    assert_eq!(sandbox.server(), Some(server));
}

#[test]
fn a_foreground_mount_ends_with_its_process_and_the_process_with_its_mount() {
    for by_signal in [true, false] {
        let sandbox = Sandbox::new();
        fs::write(sandbox.source().join("file"), "hello").unwrap();
        let mut process = sandbox
            .command()
            .args(["mount".as_ref(), "--foreground".as_ref(), sandbox.location().as_ref(), sandbox.mnt().as_os_str()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("it is mounted", || {
            fs::read_to_string(sandbox.mnt().join("file")).is_ok_and(|text| text == "hello")
        });
        let pid = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
        assert_eq!(sandbox.server(), Some(pid));
        if by_signal {
            nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
        } else {
            sandbox.umount();
        }
        assert_eq!(process.wait().unwrap().code(), Some(0));
        assert!(sandbox.mounts().is_empty());
    }
}

#[test]
fn many_clients_at_once_share_one_server() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.source().join("file"), "hello").unwrap();
    let targets: Vec<_> = (0..8).map(|number| sandbox.path(&format!("mnt-{number}"))).collect();
    for target in &targets {
        fs::create_dir(target).unwrap();
    }
    std::thread::scope(|scope| {
        for target in &targets {
            scope.spawn(|| {
                sandbox.run(["mount".as_ref(), sandbox.location().as_ref(), target.as_os_str()]).succeeded();
                assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "hello");
            });
        }
    });
    assert_eq!(sandbox.status()["mounts"].as_array().unwrap().len(), 8);
    sandbox.end_server(Signal::SIGTERM);
    assert!(sandbox.mounts().is_empty());
}
