//! Telling others what happens: who is told what, in which order, and what becomes of those who are down.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::agent::{self, Node, eventually};
use tests::double::{Double, DoubleConfig};
use tests::node::{BootNode, LIMIT};
use tests::python;
use tests::receiver::Receiver;

/// The example of the Standard Webhooks specification.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A file with the secret.
fn secret(directory: &Path) -> PathBuf {
    let path = directory.join("secret");
    fs::write(&path, format!("{SECRET}\n")).expect("it is written");
    path
}

/// Checks every request with the libraries that receivers use.
fn verify_webhook(receiver: &Receiver, directory: &Path) {
    let file = directory.join("requests");
    receiver.write(&file);
    let output = python::script("with_webhooks.py").arg(SECRET).arg(&file).output().expect("the interpreter starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn two_tasks(first: &str, second: &str) -> Value {
    let task = |line: &str| {
        json!({"Parameters": {
            "Command": {"CommandLine": line},
            "StdoutRedirectPath": "oss://test-bucket/logs/",
            "StderrRedirectPath": "oss://test-bucket/logs/",
        }})
    };
    json!({"Name": "two", "Type": "DAG", "DAG": {
        "Tasks": {"one": task(first), "two": task(second)}, "Dependencies": {"one": ["two"]}
    }})
}

/// What is told of two tasks that both finish.
const ALL_OF_TWO: [&str; 15] = [
    "OnJobWaiting",
    "OnTaskWaiting",
    "OnTaskWaiting",
    "OnInstanceWaiting",
    "OnInstanceWaiting",
    "OnJobRunning",
    "OnTaskRunning",
    "OnInstanceRunning",
    "OnInstanceFinished",
    "OnTaskFinished",
    "OnTaskRunning",
    "OnInstanceRunning",
    "OnInstanceFinished",
    "OnTaskFinished",
    "OnJobFinished",
];

#[test]
fn a_receiver_that_was_down_is_told_everything_in_order() {
    told_after(Duration::from_secs(20));
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_a_receiver_that_was_down_for_ten_minutes_is_told_everything_in_order() {
    told_after(Duration::from_secs(600));
}

/// Runs a job while the receiver is down for so long.
fn told_after(outage: Duration) {
    let (double, receiver) = (Double::start(DoubleConfig::default()), Receiver::start());
    let node = Node::with_double(&double.endpoint());
    let secret = secret(node.path());
    receiver.set_down(true);
    let began = Instant::now();
    let url = format!("{}/hook?token=hidden", receiver.endpoint());
    let options = [
        "--webhook",
        &url,
        "--webhook-secret",
        secret.to_str().expect("it was told"),
        "--report-wait=3000",
        "--report",
        "oss://test-bucket/reports/",
        "--job-id",
        "job-1",
    ];
    let running = node.start(&two_tasks("/bin/true", "/bin/true"), &options);
    eventually("it is asked while it is down", LIMIT, || receiver.refused() > 0);
    std::thread::sleep(outage.saturating_sub(began.elapsed()));
    receiver.lose_replies(1);
    receiver.set_down(false);
    let run = running.wait();
    assert_eq!(run.status, 0, "{}", run.stderr);
    assert_eq!(receiver.names(), ALL_OF_TWO, "{}", run.stderr);
    assert!(receiver.requests().len() > ALL_OF_TWO.len(), "lost replies are told again");
    verify_webhook(&receiver, node.path());
    assert!(run.stderr.contains("takes events again") && !run.stderr.contains("hidden"), "{}", run.stderr);

    let finished =
        receiver.events().into_iter().find(|event| event["Event"] == "OnInstanceFinished").expect("it was told");
    assert_eq!(finished["StdoutRedirectPath"], "oss://test-bucket/logs/stdout.job-1.one.0");
    assert_eq!((&finished["ExitCode"], &finished["Progress"]), (&json!("0"), &json!("100")));
    // The same, line by line, as an object.
    let object = double.get("test-bucket", "reports/events.job-1.jsonl").expect("events were written");
    let lines = String::from_utf8(object).expect("it was told");
    let names: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("it was told")["Event"].clone()).collect();
    assert_eq!(names, ALL_OF_TWO);
    assert_eq!(
        fs::read_dir(node.path().join("state/events/runs")).expect("it was told").count(),
        0,
        "all was delivered"
    );
    node.assert_clean();
}

#[test]
fn what_a_run_could_not_deliver_the_next_one_does() {
    let (double, receiver) = (Double::start(DoubleConfig::default()), Receiver::start());
    let node = Node::with_double(&double.endpoint());
    receiver.set_down(true);
    let url = format!("{}/secret-path", receiver.endpoint());
    let options = ["--webhook", &url, "--report-wait=1"];
    let run = node.run_with(&two_tasks("/bin/true", "/bin/false"), &options);
    assert_eq!(run.status, 1, "{}", run.stderr);
    assert!(run.stderr.contains("has not been told everything"), "{}", run.stderr);
    // Nothing that could be a secret is on disk.
    let mut kept = Vec::new();
    for run in fs::read_dir(node.path().join("state/events/runs")).unwrap() {
        for file in fs::read_dir(run.unwrap().path()).unwrap() {
            kept.extend(fs::read(file.unwrap().path()).unwrap());
        }
    }
    assert!(!kept.is_empty() && !String::from_utf8_lossy(&kept).contains("secret-path"));

    // One that is killed in the middle of everything, as well.
    let line = "/bin/sh -c 'echo begun; sleep 1000'";
    let running = node.start(&agent::job(&agent::command(line)), &options);
    eventually("its program runs", LIMIT, || {
        let mut objects = double.objects("test-bucket").into_values();
        objects.any(|object| object.bytes() == b"begun\n")
    });
    eventually("it runs", LIMIT, || {
        let runs = fs::read_dir(node.path().join("state/events/runs")).into_iter().flatten().flatten();
        runs.filter_map(|run| fs::read_to_string(run.path().join("events.jsonl")).ok())
            .any(|text| text.contains("OnInstanceRunning") && !text.contains("\"two\""))
    });
    running.signal(Signal::SIGKILL);
    running.wait();
    receiver.set_down(false);
    let options = ["--webhook", &url, "--webhook-event=OnJobFinished"];
    let run = node.run_with(&agent::job(&agent::command("/bin/true")), &options);
    assert_eq!(run.status, 0, "{}", run.stderr);
    let names = receiver.names();
    for name in ["OnInstanceFailed", "OnTaskFailed", "OnJobFailed", "OnInstanceRunning", "OnJobFinished"] {
        assert!(names.contains(&name.to_owned()), "{name}: {names:?}\n{}", run.stderr);
    }
    assert_eq!(fs::read_dir(node.path().join("state/events/runs")).unwrap().count(), 0, "{}", run.stderr);
    node.assert_clean();
}

#[test]
fn a_jobs_topic_is_told_as_alibabas_sdk_would() {
    let (double, service) = (Double::start(DoubleConfig::default()), Receiver::start());
    let node = Node::with_double(&double.endpoint());
    let mut job = two_tasks("/bin/true", "/bin/sh -c 'kill -9 $$'");
    job["Notification"] = json!({"Topic": {
        "Name": "test-topic",
        "Endpoint": service.endpoint(),
        "Events": ["OnJobWaiting", "OnTaskRunning", "OnInstanceFailed", "OnJobFailed", "OnPriorityChange"],
    }});
    job["Name"] = json!("名字 <&>");
    let run = node.run(&job);
    assert_eq!(run.status, 137, "{}", run.stderr);
    let file = node.path().join("requests");
    service.write(&file);
    let output = python::script("with_mns.py").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        names.lines().collect::<Vec<_>>(),
        ["OnJobWaiting", "OnTaskRunning", "OnTaskRunning", "OnInstanceFailed", "OnJobFailed"]
    );
    let requests = service.requests();
    let failed = requests.iter().find(|request| request["body"].to_string().contains("OnInstanceFailed")).unwrap();
    assert!(failed["body"].to_string().contains("killed by signal 9"), "{failed}");
    node.assert_clean();
}

fn settings(node: &BootNode, receiver: &Receiver, line: &str) -> Value {
    let task =
        json!({"command": ["bash", "-c", line], "stdout": node.location("out/"), "stderr": node.location("out/")});
    json!({
        "identity": {"cluster": "cls-1"},
        "report": {
            "directory": node.location("out/"),
            "webhook": {"url": format!("{}/hook", receiver.endpoint()), "secret": SECRET},
        },
        "task": {"job": {"version": 1, "name": "a job", "tasks": {"only": task}}, "job_id": "job-1"},
    })
}

#[test]
fn a_nodes_events_survive_its_agents() {
    let (node, receiver) = (BootNode::new(), Receiver::start());
    receiver.set_down(true);
    node.settings(&settings(&node, &receiver, "sleep 2"));
    // Killed while the task runs, and again when it waits for the receiver.
    for phase in ["running", "done"] {
        let mut agent = node.boot();
        node.until("task", phase);
        kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), Signal::SIGKILL).unwrap();
        agent.wait().unwrap();
    }
    assert!(receiver.requests().is_empty());
    receiver.set_down(false);
    assert_eq!(node.boot_to_end(), 0, "{}", node.log());
    verify_webhook(&receiver, &node.path("state"));
    let names = receiver.names();
    let at = |name: &str| names.iter().position(|found| found == name).unwrap_or_else(|| panic!("{name}: {names:?}"));
    let order = ["PhaseStarted", "OnInstanceCreated", "OnInstanceActive", "OnInstanceRunning", "OnInstanceFinished"];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{names:?}");
    for once in &order[1..] {
        assert_eq!(names.iter().filter(|name| name == once).count(), 1, "{once}: {names:?}");
    }
    assert!(at("NodeDone") > at("OnInstanceFinished"), "{names:?}");
    let events = receiver.events();
    let created = events.iter().find(|event| event["Event"] == "OnInstanceCreated").unwrap();
    assert_eq!(
        (&created["ClusterId"], &created["InstanceId"], &created["State"]),
        (&json!("cls-1"), &json!("i-test"), &json!("Starting"))
    );
    // The object has the same, and each has an id of its own.
    let stored = node.stored("out/events.i-test.jsonl");
    let ids: Vec<String> = stored
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|event| event["EventId"].as_str().or(event["id"].as_str()).unwrap().to_owned())
        .collect();
    let unique: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
    assert_eq!(ids.len(), names.len(), "{stored}");
}
