//! Which failures are followed by another attempt, on whose account, and what is left of each.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::agent::{Node, eventually, script};
use tests::double::{Double, DoubleConfig};
use tests::node::{BootNode, LIMIT};
use tests::programs;

const BUCKET: &str = "test-bucket";

/// A job in our own format, of one task `task`.
fn job(task: Value) -> Value {
    let mut whole = json!({"stdout": "oss://test-bucket/logs/", "stderr": "oss://test-bucket/logs/"});
    tests::agent::merge(&mut whole, &task);
    json!({"version": 1, "tasks": {"task": whole}})
}

/// A line that fails with `status` until it was run `times` times, and says how often it was.
fn fails(node: &Node, times: u32, status: u32) -> Value {
    let counter = node.path().join("counter");
    let line = format!(
        "n=$(($(cat {0} 2>/dev/null || echo 0) + 1)); echo $n > {0}; echo attempt $n; ls; touch left; [ $n -gt {times} ] || exit {status}",
        counter.display()
    );
    json!({"command": ["sh", "-c", line]})
}

fn with(mut task: Value, more: &Value) -> Value {
    tests::agent::merge(&mut task, more);
    job(task)
}

fn runs(node: &Node) -> String {
    fs::read_to_string(node.path().join("counter")).unwrap_or_default().trim().to_owned()
}

#[test]
fn each_attempt_begins_anew_and_has_logs_of_its_own() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    let run = node.run_with(&with(fails(&node, 2, 3), &json!({"retries": 5})), &["--job-id=j"]);
    assert_eq!(run.status, 0, "{run:#?}");
    let instance = run.instance("task", 0);
    assert_eq!((&instance["retries"], &instance["attempts"]), (&json!(2), &json!(3)));
    for (name, log) in [("j.task.0", "attempt 1\n"), ("j.task.0.2", "attempt 2\n"), ("j.task.0.3", "attempt 3\n")] {
        assert_eq!(
            double.get(BUCKET, &format!("logs/stdout.{name}")).unwrap(),
            log.as_bytes(),
            "nothing was left over"
        );
    }
    node.assert_clean();
}

#[test]
fn what_is_final_is_not_tried_again() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    let run = node.run(&with(fails(&node, 9, 42), &json!({"retries": 5, "no-retry-exit-codes": [41, 42]})));
    assert_eq!((run.status, run.instance("task", 0)["attempts"].clone()), (42, json!(1)), "{run:#?}");
    let slow = json!({"command": "sleep 1000", "timeout": 1, "retries": 1});
    let run = node.run(&job(slow.clone()));
    assert_eq!(run.instance("task", 0)["attempts"], 1, "{run:#?}");
    let run = node.run(&with(slow, &json!({"retry-timeouts": true})));
    assert_eq!(run.instance("task", 0)["attempts"], 2, "{run:#?}");
    assert_eq!(run.instance("task", 0)["cause"], "timeout");
    node.assert_clean();
}

/// A `fuse-oss` that cannot be started the first `times` times.
fn flaky_server(node: &Node, times: u32) -> String {
    let path = node.path().join("fuse-oss");
    let real = programs::path("fuse-oss");
    let counter = node.path().join("starts");
    let text = format!(
        "#!/bin/sh\nn=$(($(cat {0} 2>/dev/null || echo 0) + 1)); echo $n > {0}\n[ $n -gt {times} ] || exit 1\nexec {1} \"$@\"\n",
        counter.display(),
        real.display()
    );
    script(&path, &text);
    format!("--fuse-oss={}", path.display())
}

#[test]
fn a_fault_of_the_platforms_is_not_counted() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint()).environment("BATCH_AGENT_FAULT_RETRIES", "3");
    double.put(BUCKET, "in/a", "alpha");
    let inputs = json!({"inputs": [{"source": "oss://test-bucket/in/", "target": node.mapped("in")}]});
    let server = flaky_server(&node, 1);
    let run = node.run_with(&with(fails(&node, 0, 0), &inputs), &[&server]);
    assert_eq!(run.status, 0, "{run:#?}");
    let instance = run.instance("task", 0);
    assert_eq!((&instance["retries"], &instance["attempts"]), (&json!(0), &json!(2)));
    assert!(run.stderr.contains("1 of 3, not counted as a retry"), "{}", run.stderr);
    assert_eq!(runs(&node), "1");
    node.assert_clean();
}

/// Nobody has to ask for it: three times, and what the job itself allows is left to the program.
#[test]
fn a_fault_of_the_platforms_is_tried_again_unless_told_otherwise() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "in/a", "alpha");
    let more = json!({"inputs": [{"source": "oss://test-bucket/in/", "target": node.mapped("in")}], "retries": 1});
    let server = flaky_server(&node, 1);
    let mut command = node.run_command(&with(fails(&node, 1, 3), &more), &[&server]);
    let run = tests::agent::finished(&command.env_remove("BATCH_AGENT_FAULT_RETRIES").output().unwrap());
    assert_eq!(run.status, 0, "{run:#?}");
    let instance = run.instance("task", 0);
    assert_eq!((&instance["retries"], &instance["attempts"]), (&json!(1), &json!(3)));
    assert!(run.stderr.contains("1 of 3, not counted as a retry"), "{}", run.stderr);
    assert_eq!(runs(&node), "2");
    node.assert_clean();
}

#[test]
fn faults_are_put_up_with_so_often_and_stopping_does_not_wait_for_them() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint()).environment("BATCH_AGENT_FAULT_RETRIES", "1");
    let inputs = json!({"inputs": [{"source": "oss://test-bucket/in/", "target": node.mapped("in")}], "retries": 2});
    let job = with(fails(&node, 0, 0), &inputs);
    let server = flaky_server(&node, 99);
    let run = node.run_with(&job, &[&server]);
    let instance = run.instance("task", 0);
    assert_eq!((run.status, &instance["attempts"], &instance["retries"]), (71, &json!(2), &json!(0)), "{run:#?}");
    assert_eq!(instance["cause"], "mount");

    let patient = node.environment("BATCH_AGENT_FAULT_RETRIES", "100");
    let running = patient.start(&job, &[&server]);
    // Half a minute's pause follows the third.
    eventually("it has failed three times", Duration::from_secs(60), || running.messages().contains("3 of 100"));
    running.signal(Signal::SIGTERM);
    let run = running.wait();
    assert_eq!(run.instance("task", 0)["attempts"], 3, "{run:#?}");
    assert_eq!(runs(&patient), "", "the program was never started");
    patient.assert_clean();
}

#[test]
fn an_agent_that_is_killed_is_followed_by_one_that_knows_which_attempt_it_is() {
    let node = BootNode::new();
    let counter = node.path("counter");
    let line = format!(
        "n=$(($(cat {0} 2>/dev/null || echo 0) + 1)); echo $n > {0}; echo attempt $n; [ $n -lt 2 ] && exit 9; \
         [ $n -gt 2 ] || while [ ! -e {1} ]; do sleep 0.1; done; [ $n -gt 2 ] || exit 9",
        counter.display(),
        node.path("go").display()
    );
    node.settings(&json!({"task": {"job_id": "j", "job": {"version": 1, "tasks": {"only": {
        "command": ["sh", "-c", line],
        "stdout": node.location("out/"),
        "stderr": node.location("out/"),
        "retries": 2,
    }}}}}));
    let mut agent = node.boot();
    eventually("the second attempt runs", LIMIT, || node.stored("out/stdout.j.only.0.2").contains("attempt 2"));
    agent.kill().unwrap();
    agent.wait().unwrap();
    fs::write(node.path("go"), "").unwrap();
    assert_eq!(node.boot_to_end(), 0, "{}", node.log());
    let outcome = &node.status()["outcome"];
    assert_eq!(
        (&outcome["state"], &outcome["attempts"], &outcome["retries"]),
        (&json!("Finished"), &json!(3), &json!(2))
    );
    assert_eq!(node.stored("out/stdout.j.only.0.2"), "attempt 2\n");
    assert_eq!(node.stored("out/stdout.j.only.0.3"), "attempt 3\n");
    assert_eq!(fs::read_dir(node.path("state/instances")).unwrap().count(), 0, "nothing is remembered of it");
}
