//! A node from its settings to its results, and agents that are killed on the way.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::agent::eventually;
use tests::mounts::alive;
use tests::node::{BootNode, LIMIT, is_mounted};

/// A job of one task that runs this line in a shell.
fn job(node: &BootNode, line: &str, more: &Value) -> Value {
    let mut task =
        json!({"command": ["bash", "-c", line], "stdout": node.location("out/"), "stderr": node.location("out/")});
    tests::agent::merge(&mut task, more);
    json!({"version": 1, "name": "a job", "tasks": {"only": task}})
}

fn pid(child: &std::process::Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid"))
}

#[test]
fn a_node_prepares_itself_runs_its_task_and_reports() {
    let node = BootNode::new();
    let (mnt, one) = (node.path("mnt"), node.path("made/one.txt"));
    let daemon = node.path("daemon.pid");
    let bootstrap = node.program(
        "bootstrap",
        &format!(
            "#!/bin/bash\necho \"$FLAVOUR $COLOUR $BATCH_COMPUTE_WORKER_ID ${{BATCH_COMPUTE_JOB_ID-none}}\"; cat {}/file\n\
             setsid sleep 1000 >/dev/null 2>&1 & echo $! > {}\n",
            mnt.display(),
            daemon.display()
        ),
    );
    let out = node.path("results");
    let line = format!(
        "cat {0}/deep/er {1}; echo $FLAVOUR; mkdir -p {2}; echo done > {2}/x",
        mnt.display(),
        one.display(),
        out.display()
    );
    node.settings(&json!({
        "mounts": [
            {"source": node.location("in/"), "target": mnt},
            {"source": node.location("in/file"), "target": one},
        ],
        "environment": {"FLAVOUR": "vanilla"},
        "user_data": {"COLOUR": "red"},
        "bootstrap": {"command": bootstrap, "timeout": "60s", "log": node.location("out/")},
        "outputs": [{"source": out, "target": node.location("out/results/")}],
        "report": {"directory": node.location("out/")},
        "task": {"job": job(&node, &line, &json!({})), "job_id": "job-1"},
    }));
    assert_eq!(node.boot_to_end(), 0, "{}", node.log());
    assert_eq!(node.stored("out/bootstrap.i-test"), "vanilla red i-test none\nhello\n");
    assert_eq!(node.stored("out/stdout.job-1.only.0"), "deeper\nhello\nvanilla\n");
    assert_eq!(node.stored("out/results/x"), "done\n");
    let events = node.stored("out/events.i-test.jsonl");
    for event in ["\"PhaseDone\",\"subject\":\"object-mounts\"", "\"MountDone\"", "\"NodeDone\""] {
        assert!(events.contains(event), "{events}");
    }
    assert!(node.stored("out/node.i-test.json").contains("\"exit_code\": 0"));
    // What the start-up script started goes on; the node's mounts stay.
    let daemon = Pid::from_raw(fs::read_to_string(daemon).unwrap().trim().parse().unwrap());
    assert!(alive(daemon));
    kill(daemon, Signal::SIGKILL).unwrap();
    assert!(is_mounted(&mnt) && is_mounted(&one));

    // The same again, as after a restart of the service: nothing is done twice.
    assert_eq!(node.boot_to_end(), 0, "{}", node.log());
    let status = node.status();
    assert_eq!((&status["agents_before"], &status["trouble"]), (&1.into(), &Value::Null));
    assert!(node.step("task")["message"].as_str().unwrap().contains("it ended before"), "{status}");
    assert_eq!(node.log().matches("running the start-up script").count(), 1);
    for (what, code) in [("mounts", 0), ("ready", 0), ("task", 0)] {
        assert_eq!(node.run(&["wait", what, "--timeout=5"]).code, Some(code));
    }
    let timing = node.run(&["status", "--timing"]).stdout;
    assert!(
        timing.contains("from the agent's start to the program's") && timing.contains("and the agent itself"),
        "{timing}"
    );
}

#[test]
fn an_agent_that_is_killed_is_followed_by_one_that_goes_on() {
    let node = BootNode::new();
    let mnt = node.path("mnt");
    let began = node.path("began");
    let bootstrap =
        node.program("bootstrap", &format!("#!/bin/bash\necho x >> {}\nsleep 3\necho over\n", began.display()));
    let ran = node.path("ran");
    let line = format!("echo x >> {}; echo begun; sleep 4; cat {}/file", ran.display(), mnt.display());
    node.settings(&json!({
        "mounts": [{"source": node.location("in/"), "target": mnt}],
        "bootstrap": {"command": bootstrap, "timeout": "60s", "log": node.location("out/")},
        "task": {"job": job(&node, &line, &json!({})), "job_id": "job-1"},
    }));
    let killed_in = |phase: &str| {
        let mut agent = node.boot();
        node.until(phase, "running");
        std::thread::sleep(Duration::from_millis(500));
        agent.kill().unwrap();
        agent.wait().unwrap();
    };
    killed_in("bootstrap");
    killed_in("bootstrap");
    killed_in("task");
    // Told to end is not told to end the task.
    let mut agent = node.boot();
    node.until("task", "running");
    std::thread::sleep(Duration::from_millis(300));
    kill(pid(&agent), Signal::SIGTERM).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(0));
    assert!(node.log().contains("detaching"), "{}", node.log());
    assert_eq!(node.boot_to_end(), 0);
    assert_eq!(fs::read_to_string(began).unwrap(), "x\n", "the start-up script ran once");
    assert_eq!(fs::read_to_string(ran).unwrap(), "x\n", "the task ran once");
    assert_eq!(node.stored("out/stdout.job-1.only.0"), "begun\nhello\n");
    assert_eq!(node.stored("out/bootstrap.i-test"), "over\n");
    assert_eq!(node.status()["agents_before"], 4);
    assert_eq!(node.status()["outcome"]["state"], "Finished");
}

#[test]
fn what_a_start_up_script_printed_arrives_when_it_ended_without_an_agent() {
    let node = BootNode::new();
    let (began, go) = (node.path("began"), node.path("go"));
    let text = format!(
        "#!/bin/bash\necho x >> {}\nuntil [ -e {} ]; do sleep 0.1; done\necho over\n",
        began.display(),
        go.display()
    );
    let bootstrap = node.program("bootstrap", &text);
    node.settings(&json!({
        "bootstrap": {"command": bootstrap, "timeout": "60s", "log": node.location("out/")},
        "task": {"job": job(&node, "true", &json!({})), "job_id": "job-1"},
    }));
    let mut agent = node.boot();
    eventually("the start-up script runs", LIMIT, || began.exists());
    agent.kill().unwrap();
    agent.wait().unwrap();
    fs::write(go, "").unwrap();
    let record = node.path("state/bootstrap/exit.json");
    eventually("the start-up script has ended", LIMIT, || record.exists());
    assert_eq!(node.boot_to_end(), 0);
    assert_eq!(fs::read_to_string(began).unwrap(), "x\n", "the start-up script ran once");
    assert_eq!(node.stored("out/bootstrap.i-test"), "over\n");
    assert_eq!(node.status()["bootstrap"]["is_sent"], true);
}

#[test]
fn nothing_comes_after_a_required_mount_that_failed() {
    let node = BootNode::new();
    let (good, bad) = (node.path("good"), node.path("bad"));
    let never = node.path("never");
    let bootstrap = node.program("bootstrap", &format!("#!/bin/bash\ntouch {}\n", never.display()));
    node.settings(&json!({
        "mounts": [
            {"source": node.location("in/"), "target": good},
            {"source": node.location("none/"), "target": bad},
        ],
        "bootstrap": {"command": bootstrap, "timeout": "60s"},
    }));
    assert_eq!(node.boot_to_end(), 66, "{}", node.log());
    assert!(is_mounted(&good) && !never.exists());
    assert_eq!(node.step("object-mounts")["state"], "failed");
    assert_eq!(node.step("bootstrap")["state"], "waiting");
    let waited = node.run(&["wait", "ready", "--timeout=30"]);
    assert!(waited.code == Some(1) && waited.stderr.contains("object-mounts failed"), "{waited:?}");
    let shown = node.run(&["status"]);
    assert!(shown.code == Some(1) && shown.stdout.contains("none/") && shown.stdout.contains("FAILED"), "{shown:?}");

    // Without which the node can do, it does.
    node.settings(&json!({
        "mounts": [
            {"source": node.location("in/"), "target": good},
            {"source": node.location("none/"), "target": bad, "required": false},
        ],
        "bootstrap": {"command": bootstrap, "timeout": "60s"},
    }));
    let mut agent = node.boot();
    eventually("the node is ready", LIMIT, || node.run(&["wait", "ready", "--timeout=1"]).code == Some(0));
    assert!(never.exists());
    // Without a task it is there for others until it is told to end.
    assert!(agent.try_wait().unwrap().is_none());
    kill(pid(&agent), Signal::SIGTERM).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(0));
    assert!(is_mounted(&good));
}

#[test]
fn a_start_up_script_that_sleeps_or_fails_stops_the_node() {
    for (text, status, hint) in [
        ("#!/bin/bash\necho before; sleep 1000\n", 71, "ran longer than its deadline of 1 s"),
        ("#!/bin/bash\necho why it failed >&2; exit 3\n", 71, "exit code 3"),
        ("#!/no/such/interpreter\n", 71, "/no/such/interpreter"),
        ("#!/bin/bash\nkill -KILL $$\n", 71, "killed by signal 9"),
    ] {
        let node = BootNode::new();
        let bootstrap = node.program("bootstrap", text);
        node.settings(&json!({
            "bootstrap": {"command": bootstrap, "timeout": "1s", "log": node.location("out/")},
            "task": {"job": job(&node, "true", &json!({}))},
        }));
        assert_eq!(node.boot_to_end(), status, "{text}: {}", node.log());
        let message = node.status()["trouble"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(hint), "{message}");
        assert_eq!(node.step("task")["state"], "waiting");
        if text.contains("why it failed") {
            assert!(message.contains("why it failed"), "{message}");
            assert_eq!(node.stored("out/bootstrap.i-test"), "why it failed\n");
        }
    }
}

#[test]
fn python_and_things_below_a_mount_serve_as_start_up_scripts() {
    let node = BootNode::new();
    let mnt = node.path("mnt");
    fs::write(node.path("store/in/start.py"), "#!/usr/bin/env python3\nimport os\nprint(os.environ['HOME'])\n")
        .unwrap();
    node.settings(&json!({
        "mounts": [{"source": node.location("in/"), "target": mnt}],
        "bootstrap": {"command": mnt.join("start.py"), "timeout": "60s", "log": node.location("out/")},
        "task": {"job": job(&node, "true", &json!({}))},
    }));
    assert_eq!(node.boot_to_end(), 0, "{}", node.log());
    assert_eq!(node.stored("out/bootstrap.i-test"), "/root\n");
}

#[test]
fn a_failed_task_is_no_failed_node_and_keeps_its_outcome() {
    let node = BootNode::new();
    node.settings(&json!({
        "report": {"directory": node.location("out/")},
        "task": {"job": job(&node, "echo no >&2; exit 7", &json!({})), "job_id": "job-7"},
    }));
    assert_eq!(node.boot_to_end(), 0, "{}", node.log());
    let status = node.status();
    assert_eq!((&status["outcome"]["exit_code"], &status["outcome"]["cause"]), (&7.into(), &"user".into()));
    assert_eq!(node.stored("out/stderr.job-7.only.0"), "no\n");
    assert!(node.stored("out/node.i-test.json").contains("\"exit_code\": 7"));
}

#[test]
fn the_job_may_lie_in_a_file_or_in_object_storage() {
    for kind in ["file", "object"] {
        let node = BootNode::new();
        let path = node.path("store/in/job.yaml");
        fs::write(&path, job(&node, "echo it ran", &json!({})).to_string()).unwrap();
        let source = if kind == "file" { json!(path) } else { json!(node.location("in/job.yaml")) };
        node.settings(&json!({"task": {kind: source, "job_id": "job-1"}}));
        assert_eq!(node.boot_to_end(), 0, "{kind}: {}", node.log());
        assert_eq!(node.stored("out/stdout.job-1.only.0"), "it ran\n");
    }
    let node = BootNode::new();
    node.settings(&json!({"task": {"object": node.location("in/none.json")}}));
    assert_eq!(node.boot_to_end(), 66, "{}", node.log());
}

#[test]
fn bad_settings_are_said_and_nothing_is_begun() {
    let node = BootNode::new();
    node.settings(&json!({"mount": [], "task": {"job": job(&node, "true", &json!({}))}}));
    assert_eq!(node.boot_to_end(), 78);
    let message = node.status()["trouble"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("mount") && message.contains("mounts"), "{message}");
    assert_eq!(node.step("identity")["state"], "waiting");
}

#[test]
fn a_mount_that_hangs_costs_its_own_deadline_and_no_more() {
    let node = BootNode::new();
    let mnt = node.path("mnt");
    // Nothing answers at this address, and nobody says so: discard-only, RFC 5737.
    node.settings(&json!({
        "mounts": [
            {"source": node.location("in/"), "target": mnt},
            {"source": "nas://192.0.2.1:/export", "target": node.path("nas"), "required": false, "deadline": "2s"},
        ],
        "task": {"job": job(&node, &format!("cat {}/file", mnt.display()), &json!({})), "job_id": "job-1"},
    }));
    let began = Instant::now();
    assert_eq!(node.boot_to_end(), 0, "{}", node.log());
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    assert_eq!(node.stored("out/stdout.job-1.only.0"), "hello\n");
    let mounts = node.status()["mounts"].clone();
    assert_eq!((&mounts[0]["state"], &mounts[1]["state"]), (&"done".into(), &"failed".into()), "{mounts}");
}
