//! Jobs of several tasks: order, failures between them, single instances, and the two formats.

use serde_json::{Value, json};
use tests::agent::{Finished, Node};
use tests::double::{Double, DoubleConfig};

const BUCKET: &str = "test-bucket";

/// A job of these tasks, each a name with a command line, one after the other where `dependencies` says so.
fn dag(tasks: &[(&str, &str)], dependencies: Value, stop_on_failure: bool) -> Value {
    let tasks: serde_json::Map<_, _> = tasks
        .iter()
        .map(|(name, line)| {
            let task = json!({
                "InstanceCount": 1,
                "Parameters": {
                    "Command": {"CommandLine": line},
                    "StdoutRedirectPath": "oss://test-bucket/logs/",
                    "StderrRedirectPath": "oss://test-bucket/logs/",
                },
            });
            ((*name).to_owned(), task)
        })
        .collect();
    json!({"Name": "dag", "Type": "DAG", "JobFailOnInstanceFail": stop_on_failure, "DAG": {"Tasks": tasks, "Dependencies": dependencies}})
}

fn states(run: &Finished) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let tasks = run.outcome["tasks"].as_array().unwrap_or_else(|| panic!("{run:#?}"));
    let mut states: Vec<_> = tasks.iter().map(|task| (text(&task["name"]), text(&task["state"]))).collect();
    states.sort();
    states
}

fn is(run: &Finished, expected: &[(&str, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect();
    assert_eq!(states(run), expected, "{run:#?}");
}

#[test]
fn tasks_run_in_the_order_of_their_dependencies() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    let mark = node.path().join("order");
    let line = |name: &str| format!("/bin/sh -c 'echo {name} >> {}'", mark.display());
    let (a, b, c, d) = (line("a"), line("b"), line("c"), line("d"));
    let job =
        dag(&[("d", &d), ("c", &c), ("b", &b), ("a", &a)], json!({"a": ["b", "c"], "b": ["d"], "c": ["d"]}), true);
    let run = node.run(&job);
    assert_eq!(run.status, 0, "{run:#?}");
    let order = std::fs::read_to_string(&mark).unwrap();
    assert!(order == "a\nb\nc\nd\n" || order == "a\nc\nb\nd\n", "{order}");
    is(&run, &[("a", "Finished"), ("b", "Finished"), ("c", "Finished"), ("d", "Finished")]);
    node.assert_clean();
}

#[test]
fn the_first_failure_ends_the_job_and_stops_the_others() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint()).option("--parallel=2").option("--grace=1");
    let job = dag(
        &[("fails", "/bin/sh -c 'sleep 1; exit 4'"), ("runs", "/bin/sleep 1000"), ("waits", "/bin/true")],
        json!({"runs": ["waits"]}),
        true,
    );
    let run = node.run(&job);
    assert_eq!(run.status, 4, "{run:#?}");
    is(&run, &[("fails", "Failed"), ("runs", "Stopped"), ("waits", "Stopped")]);
    assert_eq!(run.instance("runs", 0)["cause"], "cancelled");
    node.assert_clean();
}

#[test]
fn without_stopping_only_dependants_of_a_failed_task_do_not_start() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    let job = dag(
        &[
            ("fails", "/bin/sh -c 'exit 4'"),
            ("other", "/bin/sleep 1"),
            ("after-other", "/bin/true"),
            ("after-fails", "/bin/true"),
        ],
        json!({"fails": ["after-fails"], "other": ["after-other"]}),
        false,
    );
    let run = node.run(&job);
    assert_eq!(run.status, 4, "{run:#?}");
    is(&run, &[("after-fails", "Stopped"), ("after-other", "Finished"), ("fails", "Failed"), ("other", "Finished")]);
    node.assert_clean();
}

#[test]
fn one_instance_runs_whatever_it_depends_on() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    let mut job = dag(
        &[
            ("first", "/bin/false"),
            ("second", "/bin/sh -c 'echo I am $BATCH_COMPUTE_DAG_INSTANCE_ID of $BATCH_COMPUTE_DAG_INSTANCE_COUNT'"),
        ],
        json!({"first": ["second"]}),
        true,
    );
    job["DAG"]["Tasks"]["second"]["InstanceCount"] = json!(5);
    let run = node.run_with(&job, &["--job-id", "mine", "--task", "second", "--instance", "3"]);
    assert_eq!(run.status, 0, "{run:#?}");
    is(&run, &[("second", "Finished")]);
    assert_eq!(double.get(BUCKET, "logs/stdout.mine.second.3").unwrap(), b"I am 3 of 5\n");
    for (arguments, message) in [
        (["--task", "third", "--instance", "0"], "no task \"third\"; it has first, second"),
        (["--task", "second", "--instance", "5"], "5 instances, numbered from 0"),
    ] {
        let run = node.run_with(&job, &arguments);
        assert_eq!(run.status, 64, "{run:#?}");
        assert!(run.stderr.contains(message), "{}", run.stderr);
    }
    node.assert_clean();
}

#[test]
fn yaml_without_a_place_for_logs_keeps_them_on_the_node() {
    let node = Node::new();
    let file = node.path().join("job.yaml");
    std::fs::write(&file, "version: 1\nname: simple\ntasks:\n  hello:\n    command: [echo, hello, two words]\n")
        .unwrap();
    let state = node.path().join("state");
    let mut command = node.agent();
    command.args(["--log-format", "json", "run"]).arg(&file).args(["--job-id", "local"]);
    command.arg("--state-dir").arg(&state).arg("--runtime-dir").arg(node.path().join("run"));
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    for line in stderr.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["message"].is_string() && line["level"].is_string(), "{line}");
    }
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    let log =
        outcome["tasks"][0]["instances"][0]["stdout"].as_str().unwrap().strip_prefix("file://").unwrap().to_owned();
    assert_eq!(std::fs::read_to_string(log).unwrap(), "hello two words\n");
    assert_eq!(
        outcome,
        serde_json::from_slice::<Value>(&std::fs::read(state.join("outcomes/local.json")).unwrap()).unwrap()
    );
    node.assert_clean();
}

#[test]
fn a_task_hears_every_signal() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint()).option("--grace=60");
    let run = node.run(&dag(&[("task", "/bin/grep -E ^Sig(Blk|Ign) /proc/self/status")], json!({}), true));
    let id = run.outcome["job_id"].as_str().unwrap();
    let seen = String::from_utf8(double.get(BUCKET, &format!("logs/stdout.{id}.task.0")).unwrap()).unwrap();
    let masks: Vec<u64> =
        seen.lines().map(|line| u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap()).collect();
    // Signals 32 and 33 are the C library's own; it lets nobody touch them.
    assert_eq!((masks[0], masks[1] & 0x7fff_ffff), (0, 0), "{seen}");
    // A program that does not care ends by SIGTERM and not after the grace.
    let mut sleeping = dag(&[("task", "/bin/sleep 1000")], json!({}), true);
    sleeping["DAG"]["Tasks"]["task"]["Timeout"] = json!(1);
    let run = node.run(&sleeping);
    assert_eq!((run.status, &run.instance("task", 0)["signal"]), (143, &json!(15)), "{run:#?}");
    node.assert_clean();
}

#[test]
fn a_task_finds_nothing_of_the_agents_environment() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint()).environment("SOME_SECRET", "hunter2");
    double.put(BUCKET, "in/x", "x");
    let mut job = dag(
        &[(
            "task",
            "/bin/sh -c 'env; for p in /proc/[0-9]*; do tr \"\\0\" \" \" < $p/cmdline; echo; done; exec python3 -c \"import os; print(\\\"open:\\\", *sorted(os.listdir(\\\"/proc/self/fd\\\")))\"'",
        )],
        json!({}),
        true,
    );
    job["DAG"]["Tasks"]["task"]["InputMapping"] = json!({"oss://test-bucket/in/": node.mapped("in/")});
    let run = node.run(&job);
    assert_eq!(run.status, 0, "{run:#?}");
    let id = run.outcome["job_id"].as_str().unwrap();
    let seen = String::from_utf8(double.get(BUCKET, &format!("logs/stdout.{id}.task.0")).unwrap()).unwrap();
    for secret in ["hunter2", "test-secret", "OSS_ACCESS_KEY"] {
        assert!(!seen.contains(secret), "{secret} in {seen}");
        assert!(!run.stderr.contains(secret), "{secret} in {}", run.stderr);
    }
    assert!(seen.contains("BATCH_COMPUTE_DAG_TASK_ID=task\n"), "{seen}");
    // Standard input, output and error, and the directory that is being read.
    assert!(seen.contains("\nopen: 0 1 2 3\n"), "{seen}");
    node.assert_clean();
}
