//! A node that the cloud takes back: the task ends with a cause of its own, and what it has is sent.

use std::time::Duration;

use serde_json::{Value, json};
use tests::agent::{Node, eventually};
use tests::imds::Imds;
use tests::node::{BootNode, LIMIT};

/// A node with a task that works until it is told to end, and with the cloud's metadata service.
fn node(cloud: &str, imds: &Imds) -> BootNode {
    let node = BootNode::new();
    let out = node.path("results");
    let line = format!(
        "trap 'echo told; exit 0' TERM; echo part > {}/part; echo working; while :; do sleep 0.1; done",
        out.display()
    );
    node.settings(&json!({
        "identity": {"cloud": cloud, "metadata_endpoint": imds.endpoint(), "region": "cn-test"},
        "task": {"job_id": "job-1", "job": {"version": 1, "tasks": {"only": {
            "command": ["bash", "-c", line],
            "stdout": node.location("out/"),
            "stderr": node.location("out/"),
            "outputs": [{"source": out, "target": node.location("out/results/")}],
            "retries": 3,
            "reserve-on-fail": true,
        }}}},
        "report": {"directory": node.location("out/")},
    }));
    node
}

fn reclaimed(cloud: &str, imds: &Imds, path: &str, notice: &str) {
    let node = node(cloud, imds);
    let mut agent = node.boot();
    eventually("the task works", LIMIT, || node.stored("out/stdout.job-1.only.0").contains("working"));
    imds.set(path, Some(notice));
    eventually("the agent has ended", LIMIT, || agent.try_wait().expect("it is ours").is_some());
    let status = node.status();
    let outcome = &status["outcome"];
    assert_eq!((&outcome["cause"], &outcome["state"]), (&json!("spot-reclaim"), &json!("Failed")), "{status:#}");
    assert_eq!((&outcome["attempts"], &outcome["retries"], &outcome["exit_code"]), (&json!(1), &json!(0), &json!(0)));
    assert_eq!(outcome["reserved"], Value::Null, "there will be nothing to look into");
    let message = outcome["message"].as_str().unwrap_or_default();
    assert!(message.contains("2030-01-02T03:04:05Z") && message.contains("takes this spot instance back"), "{message}");
    assert_eq!(node.stored("out/stdout.job-1.only.0"), "working\ntold\n");
    assert_eq!(node.stored("out/results/part"), "part\n", "what it had is sent");
    let instance = status["identity"]["instance_id"].as_str().unwrap_or_default();
    let events = node.stored(&format!("out/events.{instance}.jsonl"));
    assert_eq!(events.matches("\"SpotReclaim\"").count(), 1, "{events}");
    let shown = node.run(&["status"]).stdout;
    assert!(shown.contains("the cloud takes this spot instance back"), "{shown}");
}

#[test]
fn aws_takes_an_instance_back() {
    let imds = Imds::aws();
    imds.set("instance-life-cycle", Some("spot"));
    let notice = r#"{"action": "terminate", "time": "2030-01-02T03:04:05Z"}"#;
    reclaimed("aws", &imds, "spot/instance-action", notice);
}

#[test]
fn alibaba_cloud_takes_an_instance_back() {
    let imds = Imds::aliyun();
    reclaimed("alibaba", &imds, "instance/spot/termination-time", "2030-01-02T03:04:05Z");
}

/// Without a daemon and its settings: who the machine is, `run` finds out beside what it does.
#[test]
fn a_run_hears_of_it_as_well() {
    let imds = Imds::aws();
    imds.set("instance-life-cycle", Some("spot"));
    let node = Node::new().environment("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds.endpoint());
    let logs = format!("file://{}/logs/", node.path().display());
    let line = "trap 'echo told; exit 0' TERM; echo working; while :; do sleep 0.1; done";
    let task = json!({"command": ["bash", "-c", line], "stdout": logs, "stderr": logs, "retries": 3});
    let running = node.start(&json!({"version": 1, "tasks": {"task": task}}), &["--job-id=j"]);
    let printed = || std::fs::read_to_string(node.path().join("logs/stdout.j.task.0")).unwrap_or_default();
    eventually("the task works", LIMIT, || printed().contains("working"));
    imds.set("spot/instance-action", Some(r#"{"action": "terminate", "time": "2030-01-02T03:04:05Z"}"#));
    let run = running.wait();
    let outcome = run.instance("task", 0);
    assert_eq!((&outcome["cause"], &outcome["state"]), (&json!("spot-reclaim"), &json!("Failed")), "{run:#?}");
    assert!(run.message().contains("takes this spot instance back"), "{run:#?}");
    assert_eq!(printed(), "working\ntold\n");
    node.assert_clean();
}

#[test]
fn an_instance_that_is_not_spot_does_not_ask() {
    let imds = Imds::aws();
    imds.set("instance-life-cycle", Some("on-demand"));
    imds.set("spot/instance-action", Some(r#"{"action": "terminate", "time": "2030-01-02T03:04:05Z"}"#));
    let node = node("aws", &imds);
    let mut agent = node.boot();
    eventually("the task works", LIMIT, || node.stored("out/stdout.job-1.only.0").contains("working"));
    // The first question would have come before the task.
    std::thread::sleep(Duration::from_millis(500));
    let asked: Vec<_> =
        imds.requests().into_iter().filter(|request| request.path.contains("spot/instance-action")).collect();
    assert_eq!(asked, []);
    assert_eq!(node.status()["reclaim"], Value::Null);
    let _ = agent.kill();
    let _ = agent.wait();
}
