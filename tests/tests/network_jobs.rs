//! Jobs that use NAS and Lustre, with stand-ins for the programs that mount them: what a task sees, what stays on the server, and
//! that mounts go when the task does, whatever ends it.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::agent::{Node, command, eventually, job_on, merge};
use tests::network::{Dead, FileServers, LUSTRE, NFS3, Play, mounted_below};

const LONG: Duration = Duration::from_secs(60);

/// A node that finds its mount programs where `servers` has them, and stores logs and results in a directory of its own.
fn node(servers: &FileServers) -> (Node, String) {
    let node = Node::new().environment("BATCH_AGENT_PROGRAM_PATH", &servers.programs().to_string_lossy());
    let store = format!("file://{}/store/", node.path().display());
    fs::create_dir(node.path().join("store")).unwrap();
    (node, store)
}

/// A job with one task that runs `line` in a shell and has these network mounts: source, target, writable.
fn job(store: &str, line: &str, mounts: &[(&str, &str, bool)]) -> Value {
    let entries: Vec<Value> = mounts
        .iter()
        .map(|(source, target, writable)| json!({"Source": source, "Destination": target, "WriteSupport": writable}))
        .collect();
    let mut task = command(&format!("/bin/sh -c '{line}'"));
    merge(&mut task, &json!({"Mounts": {"Entries": entries}}));
    job_on(store, &task)
}

fn assert_clean(node: &Node, servers: &FileServers) {
    node.assert_clean();
    assert_eq!(mounted_below(node.path()), Vec::<String>::new());
    eventually("no mount command is left", LONG, || servers.running().is_empty());
}

#[test]
fn a_task_works_on_network_file_systems_as_they_are() {
    let servers = FileServers::new();
    let (node, store) = node(&servers);
    let nas = servers.server("nas.example", NFS3, Play::Serve);
    let lustre = servers.server("fs.example", LUSTRE, Play::Serve);
    fs::create_dir_all(nas.join("team")).unwrap();
    fs::create_dir_all(lustre.join("name")).unwrap();
    fs::write(nas.join("team/in"), "from the NAS").unwrap();
    fs::write(nas.join("team/old"), "goes").unwrap();
    fs::write(lustre.join("name/ref"), "from Lustre").unwrap();
    let (work, same, fast) = (node.mapped("work"), node.mapped("deep/same"), node.mapped("fast"));
    let out = node.mapped("out");
    let line = format!(
        "set -e; cat {work}/in {fast}/ref; echo written >{work}/new; rm {work}/old; cat {same}/new; \
         if echo x >{same}/no; then exit 3; fi; if rm {fast}/ref; then exit 4; fi; echo result >{out}/result"
    );
    let mounts = [
        ("nas://nas.example:/team/", work.as_str(), true),
        ("nas://nas.example:/team", same.as_str(), false),
        ("lustre://fs.example@tcp:/name", fast.as_str(), false),
    ];
    let mut job = job(&store, &line, &mounts);
    merge(&mut job["DAG"]["Tasks"]["task"], &json!({"OutputMapping": {format!("{out}/"): format!("{store}out/")}}));
    let run = node.run(&job);
    assert_eq!(run.status, 0, "{run:#?}");
    assert_eq!(fs::read_to_string(nas.join("team/new")).unwrap(), "written\n");
    assert!(!nas.join("team/old").exists() && nas.join("team/in").exists() && lustre.join("name/ref").exists());
    assert_eq!(fs::read_to_string(node.path().join("store/out/result")).unwrap(), "result\n");
    let uploaded = fs::read_dir(node.path().join("store/out")).unwrap().count();
    assert_eq!(uploaded, 1, "nothing that is on a file server is uploaded");
    assert_eq!(servers.calls().len(), 3);
    assert_clean(&node, &servers);
}

#[test]
fn what_cannot_be_mounted_fails_the_task_with_that_cause() {
    let servers = FileServers::new();
    let (node, store) = node(&servers);
    servers.server("nas", NFS3, Play::Serve);
    servers.server("closed", NFS3, Play::Say("mount.nfs: access denied by server while mounting closed:/d"));
    let (target, ran) = (node.mapped("nas"), node.path().join("ran"));
    let mounts = [("nas://closed:/d", target.as_str(), true), ("nas://nas:/", &node.mapped("other"), true)];
    let run = node.run(&job(&store, &format!("touch {}", ran.display()), &mounts));
    assert_eq!(run.status, 77, "{run:#?}");
    assert_eq!(run.instance("task", 0)["cause"], "mount");
    let expected = format!("network file system for {target}: cannot mount closed:/d at ");
    assert!(run.message().starts_with(&expected) && run.message().contains("let this node's address in"), "{run:#?}");
    assert!(!ran.exists(), "the program was started all the same");
    assert_clean(&node, &servers);

    // One that hangs costs its deadline, and is told as such.
    servers.server("dead", NFS3, Play::Hang);
    let run = node.run_with(&job(&store, "true", &[("nas://dead:/", &target, true)]), &["--mount-deadline=2"]);
    assert_eq!(run.status, 71, "{run:#?}");
    assert!(run.message().contains("did not answer within 2s, and the mount command was killed"), "{run:#?}");
    assert_clean(&node, &servers);
}

#[test]
fn a_job_that_is_stopped_while_a_server_hangs_ends_at_once() {
    let servers = FileServers::new();
    let (node, store) = node(&servers);
    servers.server("dead", NFS3, Play::Hang);
    let running =
        node.start(&job(&store, "true", &[("nas://dead:/", &node.mapped("nas"), true)]), &["--mount-deadline=600"]);
    eventually("the mount hangs", LONG, || servers.running().len() >= 2);
    running.signal(Signal::SIGTERM);
    let run = running.wait();
    assert_eq!(run.instance("task", 0)["state"], "Stopped", "{run:#?}");
    assert_clean(&node, &servers);
}

#[test]
fn the_next_run_takes_away_what_a_killed_agent_has_mounted() {
    let servers = FileServers::new();
    let (node, store) = node(&servers);
    let nas = servers.server("nas", NFS3, Play::Serve);
    servers.server("dead", NFS3, Play::Hang);
    fs::write(nas.join("data"), "stays").unwrap();
    let target = node.mapped("nas");
    // Killed while the task runs.
    let running =
        node.start(&job(&store, &format!("touch {target}/begun; sleep 1000"), &[("nas://nas:/", &target, true)]), &[]);
    eventually("the task runs", LONG, || nas.join("begun").exists());
    running.signal(Signal::SIGKILL);
    running.wait();
    assert!(!mounted_below(node.path()).is_empty());
    // Killed while a mount command is at work.
    let running = node.start(&job(&store, "true", &[("nas://dead:/", &target, true)]), &["--mount-deadline=600"]);
    eventually("the mount hangs", LONG, || servers.running().len() >= 2);
    assert_eq!(mounted_below(node.path()), Vec::<String>::new(), "swept by the second run");
    running.signal(Signal::SIGKILL);
    running.wait();
    assert!(!servers.running().is_empty());
    let run = node.run(&job(&store, "true", &[]));
    assert_eq!(run.status, 0, "{run:#?}");
    assert_clean(&node, &servers);
    assert_eq!(fs::read_to_string(nas.join("data")).unwrap(), "stays");
    assert!(nas.join("begun").exists());
}

#[test]
fn parallel_instances_share_a_server_and_not_a_mount() {
    let servers = FileServers::new();
    let (node, store) = node(&servers);
    let nas = servers.server("nas", NFS3, Play::Serve);
    let target = node.mapped("nas");
    let line = format!("echo $BATCH_COMPUTE_DAG_INSTANCE_ID >{target}/$BATCH_COMPUTE_DAG_INSTANCE_ID");
    let mut job = job(&store, &line, &[("nas://nas:/", &target, true)]);
    merge(&mut job["DAG"]["Tasks"]["task"], &json!({"InstanceCount": 4}));
    let run = node.run_with(&job, &["--parallel=4"]);
    assert_eq!(run.status, 0, "{run:#?}");
    for instance in 0..4 {
        assert_eq!(fs::read_to_string(nas.join(instance.to_string())).unwrap(), format!("{instance}\n"));
    }
    assert_eq!(servers.calls().len(), 4);
    assert_clean(&node, &servers);
}

/// A mount of the machine's own that is dead, where a task wants something.
#[test]
fn a_stuck_mount_of_the_host_fails_the_task_and_holds_nobody_up() {
    let servers = FileServers::new();
    let (node, store) = node(&servers);
    servers.server("nas", NFS3, Play::Serve);
    let at = node.path().join("stuck");
    let dead = Dead::mount(&at);
    let run = node.run(&job(&store, "true", &[("nas://nas:/", &at.join("inside").to_string_lossy(), true)]));
    assert_eq!(run.status, 71, "{run:#?}");
    assert!(
        run.message().contains(&format!("what this machine has mounted at {} does not answer", at.display())),
        "{run:#?}"
    );
    drop(dead);
    assert_clean(&node, &servers);
}

/// What cannot work is said before anything is mounted.
#[test]
fn nothing_is_mapped_into_a_network_file_system() {
    let servers = FileServers::new();
    let (node, store) = node(&servers);
    let target = node.mapped("nas");
    let nas = [("nas://nas:/", target.as_str(), true)];
    let with = |more: Value| {
        let mut job = job(&store, "true", &nas);
        merge(&mut job["DAG"]["Tasks"]["task"], &more);
        node.run(&job)
    };
    let output = with(json!({"OutputMapping": {format!("{target}/out/"): format!("{store}out/")}}));
    assert!(output.stderr.contains("what is written there stays there and is not uploaded"), "{output:#?}");
    let input = with(json!({"InputMapping": {format!("{store}in/"): format!("{target}/in/")}}));
    assert!(input.stderr.contains("where nothing is made to mount over"), "{input:#?}");
    assert_eq!((output.status, input.status), (65, 65));
    let log = with(json!({"LogMapping": {format!("{target}/log"): format!("{store}log")}}));
    assert!(log.status == 65 && log.stderr.contains("and is not uploaded from there"), "{log:#?}");
    assert!(servers.calls().is_empty());
    assert!(!Path::new(&target).exists());
    assert_clean(&node, &servers);
}
