//! What stays of a failed task whose job asks for that, how a person gets in, and how it goes away again.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::agent::{Node, command, eventually, job, merge};
use tests::double::{Double, DoubleConfig};

const BUCKET: &str = "test-bucket";

fn task(line: &str, more: Value) -> Value {
    let mut task = command(line);
    merge(&mut task, &json!({"AutoCluster": {"ReserveOnFail": true}}));
    merge(&mut task, &more);
    job(&task)
}

fn agent(node: &Node, arguments: &[&str]) -> Command {
    let mut command = node.agent();
    command.arg(arguments[0]).arg("--state-dir").arg(node.path().join("state")).args(&arguments[1..]);
    command
}

/// Runs a command of the agent: its exit status, and all it said.
fn said(node: &Node, arguments: &[&str]) -> (i32, String) {
    let output = agent(node, arguments).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn a_failed_task_stays_for_a_person_to_look_into() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "in/a.txt", "alpha");
    let (input, out) = (node.mapped("in"), node.mapped("out"));
    let failing = task(
        &format!("/bin/sh -c 'echo made > made; echo partial > {out}/part; exit 3'"),
        json!({
            "MaxRetryCount": 1,
            "InputMapping": {"oss://test-bucket/in/": format!("{input}/")},
            "OutputMapping": {format!("{out}/"): "oss://test-bucket/out/"},
            "Parameters": {"Command": {"EnvVars": {"MINE": "yes"}}},
        }),
    );
    let run = node.run_with(&failing, &["--job-id=j"]);
    assert_eq!(run.status, 3, "{run:#?}");
    assert_eq!(double.get(BUCKET, "out/part").unwrap(), b"partial\n", "outputs go up all the same");
    let instance = run.instance("task", 0);
    let enter = instance["reserved"]["enter"].as_str().unwrap_or_else(|| panic!("{run:#?}"));
    assert!(enter.ends_with("j.task.0.2") && run.message().contains(enter), "{enter}: {}", run.message());
    assert!(run.message().contains("stay until 20"), "{}", run.message());

    let words =
        ["enter", "j.task.0.2", "sh", "-c", "pwd; cat made $1/a.txt; cat $2/part; echo $MINE; env", "-", &input, &out];
    let (status, text) = said(&node, &words);
    assert_eq!(status, 0, "{text}");
    assert!(text.starts_with("/batchcompute/workdir\nmade\nalphapartial\nyes\n"), "{text}");
    assert!(!text.contains("test-secret") && !text.contains("OSS_ACCESS_KEY"), "{text}");
    assert!(!std::path::Path::new(&input).join("a.txt").exists(), "the host sees nothing of it");
    assert_eq!(said(&node, &["enter", "task", "sh", "-c", "exit 7"]).0, 7);
    assert_eq!(said(&node, &["enter", "task", "no-such-program"]).0, 71);
    let (status, text) = said(&node, &["enter", "other"]);
    assert!(status == 66 && text.contains("there are j.task.0.2"), "{text}");

    // The next run lets it be; the same one again takes its place.
    assert_eq!(node.run(&task("/bin/true", json!({}))).status, 0);
    assert_eq!(said(&node, &["enter", "task", "cat", "made"]), (0, "made\n".to_owned()));
    let mut inside = agent(&node, &["enter", "task", "sleep", "1000"]).spawn().unwrap();
    let (status, text) = said(&node, &["release", "task"]);
    assert_eq!((status, text.as_str()), (0, ""));
    assert!(!inside.wait().unwrap().success(), "who is inside goes with it");
    node.assert_clean();
    assert_eq!(said(&node, &["enter", "task"]).0, 66);
}

#[test]
fn a_reservation_ends_by_itself_or_when_the_task_is_run_again() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    // Gone before anybody could look.
    let run = node.run_with(&task("/bin/false", json!({})), &["--job-id=j", "--reserve-for=1000"]);
    assert!(run.instance("task", 0)["reserved"].is_object(), "{run:#?}");
    let run = node.run_with(&task("/bin/true", json!({})), &["--job-id=j"]);
    assert_eq!((run.status, &run.instance("task", 0)["reserved"]), (0, &Value::Null), "{run:#?}");
    let run = node.run_with(&task("/bin/false", json!({})), &["--reserve-for=2"]);
    assert!(run.instance("task", 0)["reserved"].is_object(), "{run:#?}");
    eventually("it is gone", Duration::from_secs(60), || node.left_behind().is_empty());
}

#[test]
fn a_running_task_can_be_entered_until_it_ends() {
    entered_until_it_ends(false);
}

#[test]
fn so_can_one_that_would_be_reserved() {
    entered_until_it_ends(true);
}

fn entered_until_it_ends(reserve: bool) {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "in/a.txt", "alpha");
    let input = node.mapped("in");
    let sleeping = task(
        "/bin/sh -c 'echo here > here; sleep 1000'",
        json!({
            "InputMapping": {"oss://test-bucket/in/": format!("{input}/")},
            "Parameters": {"Command": {"EnvVars": {"INPUT": input}}},
            "AutoCluster": {"ReserveOnFail": reserve},
        }),
    );
    let running = node.start(&sleeping, &["--job-id=j"]);
    eventually("it can be entered", Duration::from_secs(60), || {
        said(&node, &["enter", "task", "cat", "here"]).1 == "here\n"
    });
    assert_eq!(said(&node, &["enter", "j", "cat", &format!("{input}/a.txt")]), (0, "alpha".to_owned()));
    let (status, text) = said(&node, &["release", "task"]);
    assert!(status == 64 && text.contains("is running and not reserved"), "{text}");

    let words = ["enter", "task", "sh", "-c", "setsid sleep 1000 & echo inside; exec sleep 1000"];
    let mut inside = agent(&node, &words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 7];
    std::io::Read::read_exact(inside.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert_eq!(&line, b"inside\n");
    running.signal(Signal::SIGTERM);
    let run = running.wait();
    // Stopped by a person, who knows why.
    assert_eq!(
        (&run.instance("task", 0)["state"], &run.instance("task", 0)["reserved"]),
        (&json!("Stopped"), &Value::Null)
    );
    let output = inside.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("j.task.0 is over"), "{output:?}");
    node.assert_clean();
    let is_left = |process: &fs::DirEntry| {
        fs::read(process.path().join("environ")).is_ok_and(|all| String::from_utf8_lossy(&all).contains(&input))
    };
    let left = fs::read_dir("/proc").unwrap().flatten().filter(is_left).count();
    assert_eq!(left, 0, "nothing that was started beside it is left");
}
