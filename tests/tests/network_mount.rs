//! Mounting NAS and Lustre, with stand-ins for the programs that do it: this machine's kernel may have neither. What is mounted
//! where, how each failure is told, and that nothing hangs and nothing stays behind.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use batch_agent::network::{self, Cause, Health, Mounted, Mounting, NetworkError, There};
use batch_agent::programs::Programs;
use batch_agent::settings::{NetworkFileSystem, NfsVersion};
use tests::agent::eventually;
use tests::network::{Dead, FileServers, LUSTRE, NFS3, Play, Targets, mounted_below};

/// Enough for whatever is to happen.
const LONG: Duration = Duration::from_secs(60);

/// A deadline that is meant to pass.
const SHORT: Duration = Duration::from_millis(1500);

fn nas(source: &str) -> NetworkFileSystem {
    NetworkFileSystem::parse(source).unwrap()
}

async fn mount_within(
    servers: &FileServers,
    source: &str,
    target: &Path,
    writable: bool,
    deadline: Duration,
) -> Result<Mounted, NetworkError> {
    let programs = Programs::new([servers.programs().to_owned()]);
    network::mount(&nas(source), target, writable, deadline, &programs).await
}

async fn mount(servers: &FileServers, source: &str, target: &Path, writable: bool) -> Result<Mounted, NetworkError> {
    mount_within(servers, source, target, writable, LONG).await
}

#[tokio::test]
async fn what_is_mounted_is_there_and_goes_again_with_all_that_was_made_for_it() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    let export = servers.server("nas.example", NFS3, Play::Serve);
    fs::create_dir_all(export.join("a b/sub")).unwrap();
    fs::write(export.join("a b/sub/file"), "content").unwrap();
    let target = targets.path("made/for/it");
    let mounted = mount(&servers, "nas://nas.example:/a b/sub/", &target, true).await.unwrap();
    assert_eq!(servers.calls(), [format!("-t nfs -o rw,{NFS3} nas.example:/a b/sub {}", target.display())]);
    assert_eq!((mounted.device.as_str(), mounted.attempts, mounted.was_there), ("nas.example:/a b/sub", 1, false));
    assert_eq!(mounted.made, [targets.path("made"), targets.path("made/for"), target.clone()]);
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "content");
    fs::write(target.join("new"), "written").unwrap();

    // Whoever comes after has only what was written down.
    let written = serde_json::to_string(&mounted).unwrap();
    let mounted: Mounted = serde_json::from_str(&written).unwrap();
    network::unmount(&mounted).await.unwrap();
    assert!(!targets.path("made").exists() && mounted_below(targets.root()).is_empty());
    assert_eq!(fs::read_to_string(export.join("a b/sub/new")).unwrap(), "written");
    network::unmount(&mounted).await.unwrap();
}

#[tokio::test]
async fn read_only_is_read_only_and_options_are_passed_on() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    let options =
        "vers=4.1,proto=tcp,rsize=1048576,wsize=1048576,timeo=600,retrans=2,noresvport,retry=0,nosuid,nodev,soft";
    servers.server("nas.example", options, Play::Serve);
    let mut what = nas("nfs://nas.example:/");
    if let NetworkFileSystem::Nfs { version, options, .. } = &mut what {
        *version = NfsVersion::V4_1;
        options.push("soft".to_owned());
    }
    let target = targets.path("t");
    let programs = Programs::new([servers.programs().to_owned()]);
    network::mount(&what, &target, false, LONG, &programs).await.unwrap();
    assert_eq!(fs::write(target.join("x"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert!(servers.calls()[0].starts_with(&format!("-t nfs -o ro,{options} nas.example:/ ")));
}

#[tokio::test]
async fn lustre_is_mounted_when_its_module_is_there() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    let export = servers.server("fs-1.fsx.example", LUSTRE, Play::Serve);
    fs::create_dir(export.join("name")).unwrap();
    mount(&servers, "lustre://fs-1.fsx.example@tcp:/name", &targets.path("fsx"), true).await.unwrap();
    assert_eq!(
        servers.calls(),
        [format!("-t lustre -o rw,{LUSTRE} fs-1.fsx.example@tcp:/name {}", targets.path("fsx").display())]
    );

    servers.modprobe("echo 'modprobe: FATAL: Module lustre not found in directory /lib/modules/5.10' >&2; exit 1");
    let error = mount(&servers, "fs-1.fsx.example@tcp:/name", &targets.path("other"), true).await.unwrap_err();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for words in ["no module lustre that fits", kernel.trim(), "not found in directory", "ustre-client"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(servers.calls().len() == 1 && !targets.path("other").exists());
    servers.without("mount.lustre");
    let error = mount(&servers, "fs-1.fsx.example@tcp:/name", &targets.path("other"), true).await.unwrap_err();
    assert!(matches!(&*error.cause, Cause::HelperMissing { program, .. } if program == "mount.lustre"), "{error}");
}

/// Each way in which a mount command fails for good is told in its own words, at once, and leaves nothing.
#[tokio::test]
async fn what_will_be_the_same_in_a_minute_fails_at_once() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    type Check = fn(&Cause) -> bool;
    let cases: [(&'static str, &str, Check); 7] = [
        ("mount.nfs: access denied by server while mounting h:/d", "let this node's address in", |cause| {
            matches!(cause, Cause::Denied { .. })
        }),
        (
            "mount.nfs: mounting h:/d failed, reason given by server: No such file or directory",
            "the server has no such directory",
            |cause| matches!(cause, Cause::NoSuchExport { .. }),
        ),
        ("mount.nfs: an incorrect mount option was specified", "vers=3,nolock", |cause| {
            matches!(cause, Cause::BadOption { .. })
        }),
        ("mount.nfs: No such device", "has no module nfs", |cause| matches!(cause, Cause::ModuleMissing { .. })),
        (
            "mount: /t: bad option; for several filesystems (e.g. nfs, cifs) you might need a /sbin/mount.<type> helper program.",
            "mount.nfs is not installed",
            |cause| matches!(cause, Cause::HelperMissing { .. }),
        ),
        (
            "mount.nfs: rpc.statd is not running but is required for remote locking.",
            "remove the option `lock`",
            |cause| matches!(cause, Cause::LockService { .. }),
        ),
        ("mount.nfs: mount system call failed", "look at the kernel's log", |cause| {
            matches!(cause, Cause::Other { .. })
        }),
    ];
    for (number, (words, expected, check)) in cases.into_iter().enumerate() {
        let host = format!("host-{number}");
        servers.server(&host, NFS3, Play::Say(words));
        let target = targets.path(&format!("{number}/t"));
        let error = mount(&servers, &format!("nas://{host}:/d"), &target, true).await.unwrap_err();
        let message = error.to_string();
        assert!(check(&error.cause), "{error:?}");
        assert!(message.starts_with(&format!("cannot mount {host}:/d at {}: ", target.display())), "{message}");
        assert!(message.contains(expected), "{message}");
        assert_eq!(error.attempts, 1, "{message}");
        assert!(!targets.path(&number.to_string()).exists());
    }
    assert_eq!(servers.calls().len(), 7);
}

#[tokio::test]
async fn servers_that_are_still_starting_are_waited_for() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    servers.server("late", NFS3, Play::ServeAfter(2));
    let mounted = mount(&servers, "nas://late:/", &targets.path("t"), true).await.unwrap();
    assert_eq!((mounted.attempts, servers.calls().len()), (3, 3));
}

#[tokio::test]
async fn what_stays_away_is_tried_until_the_deadline_and_told_as_what_it_is() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    type Check = fn(&Cause) -> bool;
    let cases: [(&'static str, Check); 3] = [
        ("mount.nfs: Failed to resolve server h: Name or service not known", |cause| {
            matches!(cause, Cause::NameUnknown { .. })
        }),
        ("mount.nfs: Connection refused", |cause| matches!(cause, Cause::Refused { .. })),
        ("mount.nfs: Connection timed out", |cause| matches!(cause, Cause::Unreachable { .. })),
    ];
    for (number, (words, check)) in cases.into_iter().enumerate() {
        servers.server(&format!("h{number}"), NFS3, Play::Say(words));
        let source = format!("nas://h{number}:/d");
        let error = mount_within(&servers, &source, &targets.path("t"), true, SHORT).await.unwrap_err();
        assert!(check(&error.cause), "{error:?}");
        assert!(error.attempts > 1 && error.to_string().contains("tried "), "{error}");
        assert!(!targets.path("t").exists());
    }
    // What a server that is only just starting says, too, is tried again; what it says when it has started is not.
    let words = "mount.nfs: requested NFS version or transport protocol is not supported";
    for (host, words, again) in [("starting", words, true), ("old", "mount.nfs: Protocol not supported", false)] {
        servers.server(host, NFS3, Play::Say(words));
        let error =
            mount_within(&servers, &format!("nas://{host}:/"), &targets.path("t"), true, SHORT).await.unwrap_err();
        assert!(matches!(&*error.cause, Cause::VersionUnsupported { .. }), "{error:?}");
        assert_eq!(error.attempts > 1, again, "{error:?}");
    }
}

#[tokio::test]
async fn one_dead_server_costs_only_its_own_mount() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    servers.server("dead", NFS3, Play::Hang);
    servers.server("alive", NFS3, Play::Serve);
    let programs = Programs::new([servers.programs().to_owned()]);
    let deadline = Duration::from_secs(5);
    let mut dead = Mounting::start(&nas("nas://dead:/"), &targets.path("dead"), true, deadline, &programs);
    eventually("the dead server's mount hangs", LONG, || servers.running().len() >= 2);
    let mut others = Vec::new();
    for number in 0..8 {
        let target = targets.path(&format!("alive-{number}"));
        others.push(Mounting::start(&nas("nas://alive:/"), &target, true, LONG, &programs));
    }
    for other in &mut others {
        other.finished().await.unwrap();
    }
    assert!(!servers.running().is_empty(), "the others did not wait for the dead one");
    let error = dead.finished().await.unwrap_err();
    assert!(matches!(&*error.cause, Cause::Hung { gone: true, .. }), "{error:?}");
    assert!(error.to_string().contains("did not answer within 5s, and the mount command was killed"), "{error}");
    eventually("what the mount command had started is gone", LONG, || servers.running().is_empty());
    assert!(!targets.path("dead").exists());
}

#[tokio::test]
async fn what_is_given_up_leaves_nothing() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    servers.server("dead", NFS3, Play::Hang);
    servers.server("slow", NFS3, Play::ServeAndStay);
    let programs = Programs::new([servers.programs().to_owned()]);
    let target = targets.path("t");
    let hanging = Mounting::start(&nas("nas://dead:/"), &target, true, LONG, &programs);
    eventually("it hangs", LONG, || servers.running().len() >= 2);
    hanging.abandon().await;
    assert!(!target.exists());
    eventually("its processes are gone", LONG, || servers.running().is_empty());

    let slow = Mounting::start(&nas("nas://slow:/"), &target, true, LONG, &programs);
    eventually("it is mounted, and the command has not ended", LONG, || !mounted_below(targets.root()).is_empty());
    slow.abandon().await;
    assert!(mounted_below(targets.root()).is_empty() && !target.exists());

    // The same when it is only dropped.
    let slow = Mounting::start(&nas("nas://slow:/"), &target, true, LONG, &programs);
    eventually("it is mounted", LONG, || !mounted_below(targets.root()).is_empty());
    drop(slow);
    eventually("it is taken away", LONG, || !target.exists());
    assert!(mounted_below(targets.root()).is_empty());
}

/// What an agent that was killed has left at work.
#[tokio::test]
async fn mount_commands_that_were_left_behind_are_found() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    servers.server("dead", NFS3, Play::Hang);
    let programs = Programs::new([servers.programs().to_owned()]);
    let mut left = Mounting::start(&nas("nas://dead:/"), &targets.path("a/0"), true, LONG, &programs);
    let mut other = Mounting::start(&nas("nas://dead:/"), &targets.path("b/0"), true, LONG, &programs);
    eventually("both hang", LONG, || servers.running().len() == 4);
    network::end_left_behind(&targets.path("a")).await;
    let running = servers.running();
    assert!(running.len() == 2 && running.iter().all(|(_, line)| line.contains("/b/0")), "{running:?}");
    assert!(left.finished().await.is_err());
    network::end_left_behind(&targets.path("b")).await;
    assert!(other.finished().await.is_err());
}

#[tokio::test]
async fn nothing_is_mounted_over_something_else() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    servers.server("nas", NFS3, Play::Serve);
    let (file, full) = (targets.path("file"), targets.path("full"));
    fs::write(&file, "x").unwrap();
    fs::create_dir(&full).unwrap();
    fs::write(full.join("data"), "x").unwrap();
    let error = mount(&servers, "nas://nas:/", &file.join("below"), true).await.unwrap_err();
    assert!(matches!(&*error.cause, Cause::TargetIsFile { .. }), "{error}");
    let error = mount(&servers, "nas://nas:/", &full, true).await.unwrap_err();
    assert!(matches!(&*error.cause, Cause::TargetNotEmpty { .. }), "{error}");
    for bad in ["relative", "/a/../b", "E:", "/"] {
        let error = mount(&servers, "nas://nas:/", Path::new(bad), true).await.unwrap_err();
        assert!(matches!(&*error.cause, Cause::TargetNotAbsolute), "{error}");
    }
    assert!(servers.calls().is_empty());

    let target = targets.path("t");
    mount(&servers, "nas://nas:/", &target, true).await.unwrap();
    let error = mount(&servers, "nas://nas:/", &target, true).await.unwrap_err();
    // It has the name of the export, but the kernel says that it is something else.
    assert!(matches!(&*error.cause, Cause::Occupied { .. }), "{error}");
    assert!(
        error.to_string().contains("is mounted there already; it is not what is wanted there; unmount it"),
        "{error}"
    );
    let there = network::is_mounted(&nas("nas://nas:/"), &target, true).await.unwrap();
    assert!(matches!(there, There::Other { .. }));
    assert_eq!(mounted_below(&target).len(), 1);
}

#[tokio::test]
async fn a_success_that_is_none_is_an_error() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    servers.server("liar", NFS3, Play::Lie);
    let error = mount(&servers, "nas://liar:/", &targets.path("t"), true).await.unwrap_err();
    assert!(matches!(&*error.cause, Cause::Vanished), "{error}");
    servers.server("other", NFS3, Play::ServeWithOtherAccess);
    for (writable, word) in [(true, "writable"), (false, "read-only")] {
        let error = mount(&servers, "nas://other:/", &targets.path("t"), writable).await.unwrap_err();
        assert!(error.to_string().contains(&format!("did not become {word}")), "{error}");
        assert!(mounted_below(targets.root()).is_empty() && !targets.path("t").exists());
    }
}

#[tokio::test]
async fn without_programs_it_is_said_what_to_install() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    servers.server("nas", NFS3, Play::Serve);
    servers.without("mount.nfs");
    let error = mount(&servers, "nas://nas:/", &targets.path("t"), true).await.unwrap_err().to_string();
    assert!(error.contains("the program mount.nfs is not installed; install the package nfs-"), "{error}");
    assert!(!targets.path("t").exists());
}

/// The threads of this process that wait for mounts.
fn probing() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    threads
        .filter(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.trim() == "probe"))
        .count()
}

#[tokio::test]
async fn a_stuck_mount_is_known_as_one_and_holds_nobody_up() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    servers.server("nas", NFS3, Play::Serve);
    let at = targets.path("stuck");
    let dead = Dead::mount(&at);
    let limit = Duration::from_millis(300);
    assert_eq!(network::probe(&at, limit).await, Health::Stuck);
    let threads = probing();
    for _ in 0..5 {
        assert_eq!(network::probe(&at, limit).await, Health::Stuck);
    }
    assert!(probing() <= threads, "a stuck mount costs one thread, however often it is asked");

    let error = mount(&servers, "nas://nas:/", &at, true).await.unwrap_err();
    assert!(error.to_string().contains("dead (fuse) is mounted there already, and does not answer; "), "{error}");
    let error = mount(&servers, "nas://nas:/", &at.join("below/it"), true).await.unwrap_err();
    assert!(matches!(&*error.cause, Cause::TargetStuck { .. }), "{error}");
    assert!(error.to_string().contains("dead (fuse), which it lies in, does not answer; unmount that"), "{error}");
    assert!(servers.calls().is_empty());

    assert_eq!(network::find_stuck(&[Path::new("/etc"), &at.join("x")]).await, Some(at.clone()));
    assert_eq!(network::find_stuck(&[Path::new("/etc"), targets.root()]).await, None);

    network::unmount_below(&at).await.unwrap();
    assert!(mounted_below(&at).is_empty());
    drop(dead);
    eventually("whoever waited has come back", LONG, || probing() == 0);
    assert_eq!(network::probe(&at, limit).await, Health::Answers);
}

#[tokio::test]
async fn everything_below_a_directory_can_be_taken_away() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    let export = servers.server("nas", NFS3, Play::Serve);
    fs::create_dir(export.join("inside")).unwrap();
    let target = targets.path("d/0");
    mount(&servers, "nas://nas:/", &target, true).await.unwrap();
    mount(&servers, "nas://nas:/", &target.join("inside"), true).await.unwrap();
    mount(&servers, "nas://nas:/inside", &targets.path("d-other"), true).await.unwrap();
    network::unmount_below(&targets.path("d")).await.unwrap();
    assert_eq!(mounted_below(targets.root()).len(), 1);
    assert!(export.join("inside").is_dir(), "what a server has is never removed");
    network::unmount_below(&targets.path("none")).await.unwrap();
}

/// `batch-agent mount`, by hand.
#[test]
fn the_command_line_mounts_or_says_why_not() {
    let (servers, targets) = (FileServers::new(), Targets::new());
    let node = tests::agent::Node::new();
    servers.server("nas", NFS3, Play::Serve);
    servers.server("closed", NFS3, Play::Say("mount.nfs: access denied by server while mounting closed:/"));
    let run = |arguments: &[&str]| {
        let mut command = node.agent();
        command.env("BATCH_AGENT_PROGRAM_PATH", servers.programs()).arg("mount").args(arguments);
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let target = targets.path("t");
    let target = target.to_str().unwrap();
    let (status, said, errors) = run(&["nas://nas:/", target, "--writable"]);
    assert_eq!((status, errors.as_str()), (Some(0), ""));
    assert!(said.starts_with(&format!("nas:/ is mounted at {target} (")), "{said}");
    assert_eq!(mounted_below(Path::new(target)).len(), 1);
    for (arguments, status, words) in [
        (&["nas://closed:/", "/nowhere-at-all/t"][..], 77, "the server denies access"),
        (&["smb://x/y", target], 64, "is a mount for Windows"),
        (&["nas://nas:/", "E:"], 71, "not an absolute path"),
        (&["nas://nas:/", target, "-o", "soft,bg"], 78, "mount option \"bg\""),
        (&["nas://nas:/", target, "--nfs-version", "2"], 64, "3, 4.0, 4.1"),
    ] {
        let (found, _, errors) = run(arguments);
        assert_eq!(found, Some(status), "{errors}");
        assert!(errors.contains(words), "{errors}");
    }
}
