//! Job descriptions in YAML, and what is said of those that are none.

use std::time::Duration;

use super::*;
use fuse_oss::{ByteSize, CacheUse, Charset};

use crate::job::description::{
    Container, ImageSource, Input, Job, Limits, LogFile, NetworkMount, Output, RetryRules, Task,
};
use crate::job::{Format, read as read_job};

fn job(text: &str) -> Job {
    match read_job(text.as_bytes(), Format::Detect) {
        Ok((job, warnings)) => {
            assert_eq!(warnings, []);
            job
        }
        Err(problems) => panic!("{problems}"),
    }
}

fn problem(text: &str) -> String {
    match read_job(text.as_bytes(), Format::Detect) {
        Ok((job, _)) => panic!("accepted as {job:?}"),
        Err(problems) => problems.to_string(),
    }
}

fn small(name: &str, command: &[&str]) -> Task {
    Task {
        name: name.to_owned(),
        after: Vec::new(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        package: None,
        environment: BTreeMap::new(),
        container: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        logs: Vec::new(),
        network_mounts: Vec::new(),
        stdout: None,
        stderr: None,
        instances: 1,
        max_retries: 0,
        retry_rules: RetryRules::default(),
        reserve_on_fail: false,
        timeout: None,
        input_store: None,
        input_cache: CacheUse::default(),
        limits: Limits::default(),
        user: None,
    }
}

#[test]
fn every_key_is_read() {
    let text = "\
version: 1
name: all keys
on-failure: continue
tasks:
  second:
    command: [python3, count.py, a b, 5]
    package: oss://b/worker.tar.gz
    environment: {N: 5, ON: yes, TEXT: x}
    container:
      {image: 'registry.example/x:1', registry-tree: oss://b/dockers/, pull: always, network: none, devices: [/dev/fuse]}
    inputs:
      - {source: oss://b/in/, target: /home/in, writable: true, locale: gbk}
      - {source: s3://c/one, target: /home/one}
      - {source: 'nas://h.example:/d/', target: /nas/, writable: true}
    input-cache: {disk: true, limit: 500000000, fetch: 65536}
    outputs: [{source: /home/out, target: oss://b/out/}, {source: /home/more, target: oss://b/more/, locale: sjis}]
    logs: [{source: /home/a.log, target: gs://b/logs/}]
    stdout: oss://b/logs/
    stderr: file:///tmp/logs/
    instances: 3
    retries: 2
    no-retry-exit-codes: [2, 137]
    retry-timeouts: true
    reserve-on-fail: true
    timeout: 1h30m
    limits: {cpu: 2.5, memory: 4GiB, pids: 1000}
    user: alice:staff
    after: [first]
  first:
    command: echo 'a b'
";
    let location = |text: &str| text.parse().unwrap();
    let mut second = small("second", &["python3", "count.py", "a b", "5"]);
    second.after = vec!["first".to_owned()];
    second.package = Some(location("oss://b/worker.tar.gz"));
    second.environment =
        [("N", "5"), ("ON", "yes"), ("TEXT", "x")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    second.container = Some(Container {
        image: "registry.example/x:1".parse().unwrap(),
        source: ImageSource::Tree(location("oss://b/dockers/")),
        pull: PullPolicy::Always,
        network: ContainerNetwork::None,
        devices: vec!["/dev/fuse".into()],
    });
    second.inputs = vec![
        Input {
            source: location("oss://b/in/"),
            target: "/home/in".into(),
            writable: true,
            locale: "GBK".parse().unwrap(),
        },
        Input { source: location("s3://c/one"), target: "/home/one".into(), writable: false, locale: Charset::UTF_8 },
    ];
    let source = "nas://h.example:/d/".to_owned();
    second.network_mounts = vec![NetworkMount { source, target: "/nas".into(), writable: true }];
    let output = |source: &str, target, locale: &str| Output {
        source: source.into(),
        target: location(target),
        locale: locale.parse().unwrap(),
    };
    second.outputs =
        vec![output("/home/out", "oss://b/out/", "GBK"), output("/home/more", "oss://b/more/", "Shift_JIS")];
    second.input_cache = CacheUse { limit: Some(ByteSize::new(500_000_000)), fetch: Some(ByteSize::new(65_536)) };
    second.logs = vec![LogFile { source: "/home/a.log".into(), target: location("gs://b/logs/") }];
    second.stdout = Some(location("oss://b/logs/"));
    second.stderr = Some(location("file:///tmp/logs/"));
    second.instances = 3;
    second.max_retries = 2;
    second.retry_rules = RetryRules { never: [2, 137].into(), timeouts: true };
    second.reserve_on_fail = true;
    second.timeout = Some(Duration::from_secs(5_400));
    second.limits = Limits { cpu_millis: Some(2_500), memory: Some(4 << 30), pids: Some(1000) };
    second.user = Some("alice:staff".parse().unwrap());
    let tasks = vec![small("first", &["echo", "a b"]), second];
    assert_eq!(job(text), Job { name: "all keys".to_owned(), tasks, stop_on_failure: false, notification: None });
}

#[test]
fn it_may_be_written_as_json() {
    let text = r#"{"version": 1, "tasks": {"a": {"command": "true", "timeout": 60}}}"#;
    let mut task = small("a", &["true"]);
    task.timeout = Some(Duration::from_secs(60));
    let expected = Job { name: "job".to_owned(), tasks: vec![task], stop_on_failure: true, notification: None };
    assert_eq!(job(text), expected);
    assert_eq!(read_job(text.as_bytes(), Format::Json).unwrap().0, expected);
}

#[test]
fn limits_and_users_may_be_numbers() {
    let text = "version: 1\ntasks:\n  a: {command: x, limits: {cpu: 1, memory: 8388608}, user: 1000}\n  \
                b: {command: x, limits: {cpu: 0.01, memory: 500MB}, user: 1000:0}\n";
    let [a, b] = &job(text).tasks[..] else { panic!("two tasks") };
    assert_eq!(a.limits, Limits { cpu_millis: Some(1000), memory: Some(8 << 20), pids: None });
    assert_eq!(b.limits, Limits { cpu_millis: Some(10), memory: Some(500_000_000), pids: None });
    assert_eq!((&a.user, &b.user), (&Some("1000".parse().unwrap()), &Some("1000:0".parse().unwrap())));
}

#[test]
fn batchcompute_may_be_written_as_yaml() {
    let text = "Name: x\nDAG:\n  Tasks:\n    a:\n      Parameters:\n        Command: {CommandLine: echo hello}\n";
    assert_eq!(job(text).tasks[0].command, ["echo", "hello"]);
}

#[test]
fn what_is_wrong_is_said_with_place_and_line() {
    let task = |line: &str| format!("version: 1\ntasks:\n  a:\n    command: x\n    {line}\n");
    for (text, message) in [
        (
            task("instanses: 3"),
            "tasks.a.instanses: the key \"instanses\" is not known (line 5, column 5); did you mean instances?",
        ),
        (
            task("inputs: [{source: oss://b/, target: /x, writeable: true}]"),
            "tasks.a.inputs[0].writeable: the key \"writeable\" is not known (line 5, column 45); did you mean writable?",
        ),
        (task("outputs: [{source: /x}]"), "tasks.a.outputs[0]: the key target is missing (line 5, column 16); add it"),
        (
            task("timeout: soon"),
            "tasks.a.timeout: expected a length of time such as 90s, 30m, 1h30m or 2d, or seconds, got \"soon\" \
             (line 5, column 14); correct the value",
        ),
        (task("timeout: 0"), "tasks.a.timeout: expected 1 to 315360000 seconds, got 0"),
        (task("limits: {cpu: 0}"), "tasks.a.limits.cpu: expected 0.01 to 100000 processors, got 0"),
        (task("limits: {cpu: .nan}"), "tasks.a.limits.cpu: expected 0.01 to 100000 processors, got NaN"),
        (
            task("limits: {memory: 100}"),
            "tasks.a.limits.memory: 100 bytes are too little to start any program with; write at least 4MiB",
        ),
        (
            task("limits: {memory: much}"),
            "tasks.a.limits.memory: \"much\" is not a size: write a number with B, KB, MB, GB, TB (powers of 1000) or \
             KiB, MiB, GiB, TiB (powers of 1024) (line 5, column 22); correct the value",
        ),
        (task("limits: {pids: 0}"), "tasks.a.limits.pids: expected 1 to 4194304 processes, got 0"),
        (task("user: 'a b'"), "tasks.a.user: \"a b\" is not the name or number of a user; write USER, or USER:GROUP"),
        (task("instances: many"), "tasks.a.instances: expected a whole number (line 5, column 16); correct the value"),
        (task("command: y"), "tasks.a: the key \"command\" is given twice (line 5, column 5); remove one of them"),
        (task("after: [b]"), "tasks.a.after[0]: there is no task \"b\"; name tasks of this job"),
        ("tasks: {}".to_owned(), "the key version is missing (line 1, column 1); add it"),
        ("version: 1".to_owned(), "the key tasks is missing (line 1, column 1); add it"),
        ("version: 1\ntasks: {}".to_owned(), "tasks: there are no tasks; a job needs at least one"),
        (
            "version: 2\ntasks: {}".to_owned(),
            "version: expected 1, got 2; this version of batch-agent knows version 1 of the format",
        ),
        (
            "version: 1\non-failure: explode\ntasks: {}".to_owned(),
            "on-failure: \"explode\" is not known (line 2, column 13); write one of stop, continue",
        ),
        (String::new(), "the job description is empty or cut off; see `batch-agent schema` for the format"),
        (
            task("environment: TOKEN=very-secret"),
            "tasks.a.environment: expected a map (line 5, column 18); correct the value",
        ),
        (
            task("environment: {A: [very-secret]}"),
            "tasks.a.environment.A: expected text (line 5, column 22); correct the value",
        ),
        (
            task("environment: {A: }"),
            "tasks.a.environment.A: expected text, got nothing (line 5, column 20); write \"\" for an empty text",
        ),
        (task("inputs: [very]"), "tasks.a.inputs[0]: expected a map (line 5, column 14); correct the value"),
        (task("inputs: none"), "tasks.a.inputs: expected a list (line 5, column 13); correct the value"),
        ("- a".to_owned(), "expected a map (line 1, column 1); correct the value"),
        (
            "version: 1\ntasks: {a: {command: {x: y}}}".to_owned(),
            "tasks.a.command: expected a command line, or a list of words, got map (line 2, column 22); correct the value",
        ),
        (
            task("inputs: ]"),
            "tasks.a: the job description cannot be read: misplaced bracket at line 5, column 13; correct it there",
        ),
    ] {
        assert_eq!(problem(&text), message, "{text}");
    }
}
