//! How jobs end: each way a task can fail, with its outcome, its message, and what is in storage afterwards.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::io::Write;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::EntryType;
use tests::agent::{Finished, Node, command, eventually, job, job_on, merge, package};
use tests::double::{AccessKey, Action, BucketConfig, Double, DoubleConfig, Fault, Often, Operation, Outage, When};

const BUCKET: &str = "test-bucket";

fn double() -> Double {
    Double::start(DoubleConfig::default())
}

/// A task of this command line with more of a description.
fn task(line: &str, more: Value) -> Value {
    let mut task = command(line);
    merge(&mut task, &more);
    job(&task)
}

fn log(double: &Double, stream: &str, run: &Finished) -> String {
    let id = run.outcome["job_id"].as_str().unwrap_or_else(|| panic!("{run:?}"));
    let key = format!("logs/{stream}.{id}.task.0");
    let content = double.get(BUCKET, &key).unwrap_or_else(|| panic!("no {key}: {run:?}"));
    String::from_utf8(content).unwrap()
}

#[track_caller]
fn assert_failed(run: &Finished, status: i32, cause: &str, message: &[&str]) {
    assert_eq!(run.status, status, "{run:#?}");
    let instance = run.instance("task", 0);
    assert_eq!((&instance["state"], &instance["cause"]), (&json!("Failed"), &json!(cause)), "{run:#?}");
    for part in message {
        assert!(run.message().contains(part), "{:?} lacks {part:?}", run.message());
    }
}

#[test]
fn a_job_that_works_leaves_its_results_and_nothing_else() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "in/a.txt", "alpha");
    double.put(BUCKET, "in/sub/b.txt", "beta");
    double.put(BUCKET, "ref/genome.fa", "ACGT");
    double.put(BUCKET, "pkg/worker.tar.gz", package(&[("main.sh", include_str!("data/worker.sh"))]));
    let (input, output) = (node.mapped("in/"), node.mapped("out/"));
    let run = node.run(&task(
        "/bin/sh main.sh 'two words'",
        json!({
            "Parameters": {"Command": {
                "PackagePath": "oss://test-bucket/pkg/worker.tar.gz",
                "EnvVars": {"INPUT": input, "OUTPUT": output, "GENOME": node.mapped("ref/genome.fa")},
            }},
            "InputMapping": {"oss://test-bucket/in/": input, "oss://test-bucket/ref/genome.fa": node.mapped("ref/genome.fa")},
            "OutputMapping": {&output: "oss://test-bucket/out/", node.mapped("single/rc"): "oss://test-bucket/rc"},
        }),
    ));
    assert_eq!(run.status, 0, "{run:#?}");
    assert_eq!(log(&double, "stdout", &run), "args: two words\nalpha\nbeta\nACGT\n");
    assert_eq!(log(&double, "stderr", &run), "to stderr\n");
    assert_eq!(double.get(BUCKET, "out/deep/copy.txt").unwrap(), b"alpha");
    assert_eq!(double.get(BUCKET, "rc").unwrap(), b"0\n");
    assert!(double.object(BUCKET, "out/empty/").is_some(), "an empty directory is kept as a marker");
    // Local changes to inputs go nowhere.
    assert_eq!(double.get(BUCKET, "in/a.txt").unwrap(), b"alpha");
    assert!(double.get(BUCKET, "in/new.txt").is_none());
    let id = run.outcome["job_id"].as_str().unwrap();
    let manifest = double.get(BUCKET, &format!("logs/manifest.{id}.task.0.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["files"].as_array().unwrap().len(), 2);
    node.assert_clean();
}

#[test]
fn program_exits_3() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let out = node.mapped("out");
    let line = format!("/bin/sh -c 'echo partial > {out}/part; echo bye >&2; exit 3'");
    let run = node.run(&task(&line, json!({"OutputMapping": {format!("{out}/"): "oss://test-bucket/out/"}})));
    assert_failed(&run, 3, "user", &["exit code 3", "logs/stderr."]);
    assert_eq!(run.instance("task", 0)["exit_code"], 3);
    assert_eq!(log(&double, "stderr", &run), "bye\n");
    assert_eq!(double.get(BUCKET, "out/part").unwrap(), b"partial\n", "outputs go up when the task fails, too");
    node.assert_clean();
}

#[test]
fn program_missing() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let run = node.run(&task("no-such-program --now", json!({})));
    assert_failed(&run, 127, "user", &["\"no-such-program\"", "not found on PATH", "./no-such-program"]);
    assert!(log(&double, "stderr", &run).contains("not found on PATH"), "whoever looks only at stderr sees why");
    assert_eq!(log(&double, "stdout", &run), "");
    node.assert_clean();
}

#[test]
fn interpreter_missing() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "worker", "#!/opt/none/python9\n");
    let run =
        node.run(&task("./worker", json!({"Parameters": {"Command": {"PackagePath": "oss://test-bucket/worker"}}})));
    assert_failed(&run, 127, "user", &["/opt/none/python9"]);
    node.assert_clean();
}

#[test]
fn killed_by_a_signal() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let run = node.run(&task("/bin/sh -c 'echo before; kill -SEGV $$'", json!({})));
    assert_failed(&run, 139, "user", &["signal 11", "SIGSEGV"]);
    let instance = run.instance("task", 0);
    assert_eq!((&instance["signal"], &instance["exit_code"]), (&json!(11), &Value::Null));
    assert_eq!(log(&double, "stdout", &run), "before\n");
    node.assert_clean();
}

#[test]
fn package_absent() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let run =
        node.run(&task("./run", json!({"Parameters": {"Command": {"PackagePath": "oss://test-bucket/gone.tar.gz"}}})));
    assert_failed(&run, 66, "user", &["package oss://test-bucket/gone.tar.gz", "NoSuchKey"]);
    assert!(log(&double, "stderr", &run).contains("gone.tar.gz"));
    node.assert_clean();
}

/// A gzipped archive with one entry as an attacker would write it, after one that is harmless.
fn malicious(name: &str, kind: EntryType, link: &str, size: u64) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, kind, link, size) in [("run", EntryType::Regular, "", 0), (name, kind, link, size)] {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(size);
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
    }
    archive.extend_from_slice(&[0; 1024]);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&archive).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn seven_malicious_packages() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let canary = node.path().join("canary");
    let canary = canary.to_str().unwrap();
    let up = format!("../../../../../../../../..{canary}");
    let cases = [
        ("parent", malicious(&up, EntryType::Regular, "", 0), ".."),
        ("absolute", malicious(canary, EntryType::Regular, "", 0), "absolute name"),
        ("link-out", malicious("link", EntryType::Symlink, "/etc", 0), "absolute path"),
        ("link-up", malicious("link", EntryType::Symlink, "../../..", 0), "leaves the working directory"),
        ("hard-link", malicious("link", EntryType::Link, "/etc/passwd", 0), "absolute name"),
        ("device", malicious("sda", EntryType::Block, "", 0), "device"),
        ("bomb", malicious("zeros", EntryType::Regular, "", 1 << 40), "unpacks to more than"),
    ];
    for (name, content, expected) in cases {
        double.put(BUCKET, name, content);
        let location = format!("oss://test-bucket/{name}");
        let run = node.run(&task("./run", json!({"Parameters": {"Command": {"PackagePath": location}}})));
        assert_failed(&run, 65, "user", &[&location, expected]);
        assert!(!std::path::Path::new(canary).exists(), "{name}");
    }
    node.assert_clean();
}

#[test]
fn input_missing() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    for source in ["oss://test-bucket/gone/", "oss://test-bucket/gone.txt"] {
        let slash = if source.ends_with('/') { "/" } else { "" };
        let target = format!("{}{slash}", node.mapped("in"));
        let run = node.run(&task("/bin/true", json!({"InputMapping": {source: target}})));
        assert_failed(&run, 66, "user", &["input", source]);
        assert!(log(&double, "stderr", &run).contains(source));
    }
    node.assert_clean();
}

#[test]
fn bucket_missing() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let run = node.run(&task("/bin/true", json!({"InputMapping": {"oss://no-such-bucket/in/": node.mapped("in/")}})));
    assert_failed(&run, 66, "user", &["no-such-bucket"]);
    node.assert_clean();
}

#[test]
fn denied() {
    let config = DoubleConfig::empty().bucket(BUCKET, "cn-test").key(
        AccessKey::new("test-key", "test-secret")
            .deny(Action::Read, "secret/")
            .deny(Action::List, "secret/")
            .deny(Action::Write, "guarded/"),
    );
    let double = Double::start(config);
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "secret/x", "x");
    let reading =
        node.run(&task("/bin/true", json!({"InputMapping": {"oss://test-bucket/secret/x": node.mapped("x")}})));
    assert_failed(&reading, 77, "storage", &["secret/x", "AccessDenied"]);

    let out = node.mapped("out");
    let line = format!("/bin/sh -c 'echo 1 > {out}/one'");
    let writing = node.run(&task(&line, json!({"OutputMapping": {format!("{out}/"): "oss://test-bucket/guarded/"}})));
    assert_failed(&writing, 77, "storage", &["guarded/one", "AccessDenied"]);
    assert_eq!(writing.instance("task", 0)["exit_code"], 0, "the program's own status is kept");
    node.assert_clean();
}

#[test]
fn wrong_credentials() {
    let double = double();
    let node = Node::with_double(&double.endpoint()).environment("OSS_ACCESS_KEY_SECRET", "hunter2-not-the-secret");
    let run = node.run(&task("/bin/true", json!({"InputMapping": {"oss://test-bucket/in/": node.mapped("in/")}})));
    assert_eq!(run.status, 77, "{run:#?}");
    assert!(!format!("{run:?}").contains("hunter2"), "{run:?}");
    node.assert_clean();
}

#[test]
fn store_unreachable_for_20_seconds_and_back() {
    let double = double();
    let node = Node::with_double(&double.endpoint()).option("--read-timeout=3");
    let out = node.mapped("out");
    double.put(BUCKET, "in/data", vec![b'd'; 300_000]);
    // Writes to stdout all the time, reads its input in the middle of the outage and writes an output.
    let line =
        format!("/bin/sh -c 'for i in $(seq 100); do echo line $i; sleep 0.1; done; cat $INPUT/data > {out}/data'");
    let description = task(
        &line,
        json!({
            "Parameters": {"Command": {"EnvVars": {"INPUT": node.mapped("in")}}},
            "InputMapping": {"oss://test-bucket/in/": node.mapped("in/")},
            "OutputMapping": {format!("{out}/"): "oss://test-bucket/out/"},
        }),
    );
    let running = node.start(&description, &[]);
    let began = Instant::now();
    eventually("the log begins to appear", Duration::from_secs(20), || {
        double.objects(BUCKET).iter().any(|(key, object)| key.starts_with("logs/stdout.") && !object.content.is_empty())
    });
    double.outage(Outage::Refuse);
    std::thread::sleep(Duration::from_secs(20));
    double.restore();
    let run = running.wait();
    assert_eq!(run.status, 0, "after {:?}: {run:#?}", began.elapsed());
    let expected: String = (1..=100).map(|n| format!("line {n}\n")).collect();
    assert_eq!(log(&double, "stdout", &run), expected);
    assert_eq!(double.get(BUCKET, "out/data").unwrap().len(), 300_000);
    node.assert_clean();
}

#[test]
fn output_directory_missing() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    // Below one parent of the task's own, so that it can be removed: a mount point itself cannot.
    let line = format!("/bin/rm -rf {}", node.mapped("tree/out"));
    let run = node.run(&task(&line, json!({"OutputMapping": {node.mapped("tree/out/"): "oss://test-bucket/out/", node.mapped("tree/file"): "oss://test-bucket/file"}})));
    assert_failed(&run, 74, "user", &["tree/", "has not written it", "1 more"]);
    assert_eq!(run.instance("task", 0)["exit_code"], 0);
    assert_eq!(run.instance("task", 0)["outputs"]["failed"].as_array().unwrap().len(), 2);
    node.assert_clean();
}

#[test]
fn disk_full() {
    let double = double();
    let disk = tests::disk::LoopDisk::ext4(64 << 20);
    let node =
        Node::with_double(&double.endpoint()).scratch(&disk.mounted().join("scratch")).option("--cache-size=16MiB");
    let out = node.mapped("out");
    let line = format!("/bin/sh -c 'echo small > {out}/small; echo filling; cat /dev/zero > {out}/big; exit 1'");
    let run = node.run(&task(&line, json!({"OutputMapping": {format!("{out}/"): "oss://test-bucket/out/"}})));
    assert_failed(&run, 1, "disk-full", &["scratch disk ran full", "larger data disk"]);
    assert_eq!(log(&double, "stdout", &run), "filling\n", "logs still arrive");
    assert!(log(&double, "stderr", &run).contains("No space left on device"));
    assert_eq!(double.get(BUCKET, "out/small").unwrap(), b"small\n");
    node.assert_clean();
}

#[test]
fn unreadable_output_file() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let out = node.mapped("out");
    // Root can read whatever has a mode; what it cannot read is a name that no object can have, and a link that leads nowhere
    // as the output itself.
    let line = format!(
        "/bin/sh -c 'cd {out} && echo good > good && echo bad > \"$(printf \"bad\\377name\")\" && ln -s /etc/shadow {}'",
        node.mapped("single/link")
    );
    let run = node.run(&task(
        &line,
        json!({"OutputMapping": {format!("{out}/"): "oss://test-bucket/out/", node.mapped("single/link"): "oss://test-bucket/link"}}),
    ));
    assert_failed(&run, 74, "user", &["output", "1 more"]);
    let failed = run.instance("task", 0)["outputs"]["failed"].to_string();
    assert!(failed.contains("not UTF-8") && failed.contains("single/link"), "{failed}");
    assert_eq!(double.get(BUCKET, "out/good").unwrap(), b"good\n", "the rest still goes up");
    assert!(double.get(BUCKET, "link").is_none(), "a link never leads outside");
    node.assert_clean();
}

#[test]
fn output_that_the_disk_cannot_read() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let out = node.mapped("out");
    let line = format!("/bin/sh -c 'cd {out} && echo good > good && mkfifo pipe && ln -s /etc/passwd stolen'");
    let run = node.run(&task(&line, json!({"OutputMapping": {format!("{out}/"): "oss://test-bucket/out/"}})));
    assert_eq!(run.status, 0, "{run:#?}");
    let keys: Vec<_> = double.objects(BUCKET).into_keys().filter(|key| key.starts_with("out/")).collect();
    assert_eq!(keys, ["out/good"]);
    assert!(run.stderr.contains("stolen") && run.stderr.contains("pipe"), "{}", run.stderr);
    node.assert_clean();
}

#[test]
fn timeout_stops_the_program() {
    let double = double();
    let node = Node::with_double(&double.endpoint()).option("--grace=1");
    let run =
        node.run(&task("/bin/sh -c 'trap \"\" TERM; echo on; while :; do sleep 0.1; done'", json!({"Timeout": 1})));
    assert_failed(&run, 137, "timeout", &["time limit"]);
    assert_eq!(log(&double, "stdout", &run), "on\n");
    node.assert_clean();
}

#[test]
fn a_failed_instance_is_tried_again_with_a_clean_directory_and_fresh_logs() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "state/seen", "x");
    let run = node.run(&task("/bin/sh -c 'ls; echo attempt > left; exit 5'", json!({"MaxRetryCount": 2})));
    assert_failed(&run, 5, "user", &["exit code 5"]);
    assert_eq!(run.instance("task", 0)["retries"], 2);
    let id = run.outcome["job_id"].as_str().unwrap();
    for name in ["", ".2", ".3"] {
        let key = format!("logs/stdout.{id}.task.0{name}");
        assert_eq!(double.get(BUCKET, &key).unwrap_or_else(|| panic!("no {key}")), b"", "{key}");
    }
    node.assert_clean();
}

#[test]
fn sigterm_stops_the_task_then_uploads_then_unmounts() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let out = node.mapped("out");
    double.put(BUCKET, "in/x", "x");
    let line = format!(
        "/bin/sh -c 'trap \"echo stopping; echo late > {out}/late; exit 9\" TERM; echo ready; while :; do sleep 0.1; done'"
    );
    let description = task(
        &line,
        json!({"InputMapping": {"oss://test-bucket/in/": node.mapped("in/")}, "OutputMapping": {format!("{out}/"): "oss://test-bucket/out/"}}),
    );
    let running = node.start(&description, &[]);
    eventually("the program is up", Duration::from_secs(20), || {
        double
            .objects(BUCKET)
            .iter()
            .any(|(key, object)| key.starts_with("logs/stdout.") && object.bytes() == b"ready\n")
    });
    running.signal(nix::sys::signal::Signal::SIGTERM);
    let run = running.wait();
    assert_eq!(run.status, 9, "{run:#?}");
    let instance = run.instance("task", 0);
    assert_eq!((&instance["state"], &instance["cause"]), (&json!("Stopped"), &json!("cancelled")), "{run:#?}");
    assert_eq!(log(&double, "stdout", &run), "ready\nstopping\n");
    assert_eq!(double.get(BUCKET, "out/late").unwrap(), b"late\n");
    node.assert_clean();
}

#[test]
fn sigterm_while_inputs_are_being_mounted_leaves_no_mount() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "in/x", "x");
    // The store takes its time to say what there is: the job is stopped long before the mount stands.
    double.fault(Fault::Latency(Duration::from_secs(4)), When::any().prefix("in/"), Often::Always);
    double.fault(Fault::Latency(Duration::from_secs(4)), When::any().operation(Operation::ListObjects), Often::Always);
    let running =
        node.start(&task("/bin/true", json!({"InputMapping": {"oss://test-bucket/in/": node.mapped("in/")}})), &[]);
    eventually("the mount has begun", Duration::from_secs(20), || running.messages().contains("mounting inputs"));
    std::thread::sleep(Duration::from_millis(500));
    running.signal(nix::sys::signal::Signal::SIGTERM);
    let run = running.wait();
    let instance = run.instance("task", 0);
    assert_eq!((&instance["state"], &instance["cause"]), (&json!("Stopped"), &json!("cancelled")), "{run:#?}");
    assert!(run.message().contains("before the program was started"), "{}", run.message());
    node.assert_clean();
}

/// The two seconds are a promise to users and not to a busy test machine: what counts is the middle one of several lines.
fn logs_are_visible_within_two_seconds(store: &str) {
    const LINES: usize = 7;
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let gate = node.path().join("gate");
    let gate = gate.to_str().unwrap();
    let line = format!(
        "/bin/sh -c 'for i in $(seq 0 {LINES}); do while [ ! -e {gate}$i ]; do sleep 0.01; done; echo line $i; done'"
    );
    let running = node.start(&job_on(store, &command(&line)), &[]);
    let lines = |double: &Double| {
        let objects = double.objects(BUCKET);
        let log = objects.iter().find(|(key, _)| key.starts_with("logs/stdout."));
        log.map_or(0, |(_, object)| object.bytes().iter().filter(|byte| **byte == b'\n').count())
    };
    let mut delays = Vec::new();
    for number in 0..=LINES {
        std::fs::write(format!("{gate}{number}"), "").unwrap();
        let written = Instant::now();
        let what = format!("line {number} is in storage while the program runs");
        eventually(&what, Duration::from_secs(30), || lines(&double) == number + 1);
        delays.push(written.elapsed());
    }
    // The first one waited for the program to start.
    delays.remove(0);
    delays.sort();
    assert!(delays[LINES / 2] <= Duration::from_secs(2), "{delays:?}");
    assert_eq!(running.wait().status, 0);
    node.assert_clean();
}

#[test]
fn logs_on_oss_are_visible_within_two_seconds_of_the_write() {
    logs_are_visible_within_two_seconds("oss://test-bucket/");
}

#[test]
fn logs_on_s3_are_visible_within_two_seconds_of_the_write() {
    logs_are_visible_within_two_seconds("s3://test-bucket/");
}

#[test]
fn parallel_instances_do_not_meet() {
    let double = double();
    let node = Node::with_double(&double.endpoint()).option("--parallel=4");
    let out = node.mapped("out");
    // All write the same names: in the working directory, the output directory and beside a single output file.
    let line = format!(
        "/bin/sh -c 'n=$BATCH_COMPUTE_DAG_INSTANCE_ID; echo $n > mine; echo $n > {out}/result.$n; sleep 1; [ $(cat mine) = $n ] && [ $(ls {out}) = result.$n ]'"
    );
    let description =
        task(&line, json!({"InstanceCount": 4, "OutputMapping": {format!("{out}/"): "oss://test-bucket/out/"}}));
    let run = node.run(&description);
    assert_eq!(run.status, 0, "{run:#?}");
    for number in 0..4 {
        assert_eq!(double.get(BUCKET, &format!("out/result.{number}")).unwrap(), format!("{number}\n").as_bytes());
    }
    node.assert_clean();
}

#[test]
fn nothing_stays_after_kill_9_and_a_rerun() {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    let out = node.mapped("out");
    double.put(BUCKET, "in/x", "x");
    let description = |line: &str| {
        task(
            line,
            json!({"InputMapping": {"oss://test-bucket/in/": node.mapped("in/")}, "OutputMapping": {format!("{out}/"): "oss://test-bucket/out/"}}),
        )
    };
    let running =
        node.start(&description("/bin/sh -c 'echo up; trap \"\" TERM; sleep 1000 & sleep 1001'"), &["--job-id=again"]);
    eventually("the program is up", Duration::from_secs(20), || {
        double.get(BUCKET, "logs/stdout.again.task.0") == Some(b"up\n".to_vec())
    });
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.wait();
    assert!(!node.left_behind().is_empty(), "the task goes on without its agent");
    let run = node.run_with(&description("/bin/echo second"), &["--job-id=again"]);
    assert_eq!(run.status, 0, "{run:#?}");
    assert!(run.stderr.contains("was killed"), "{}", run.stderr);
    assert_eq!(double.get(BUCKET, "logs/stdout.again.task.0").unwrap(), b"second\n");
    node.assert_clean();
}

/// An agent killed at any moment of a job leaves nothing that the next run does not take away.
fn killed_at_random_moments(times: u64) {
    let double = double();
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "in/x", "x");
    double.put(BUCKET, "pkg", package(&[("run", "#!/bin/sh\ncat $1/x\necho out > $2/out\nsleep 0.3\n")]));
    let (input, out) = (node.mapped("in"), node.mapped("out"));
    let description = task(
        &format!("./run {input} {out}"),
        json!({
            "Parameters": {"Command": {"PackagePath": "oss://test-bucket/pkg"}},
            "InputMapping": {"oss://test-bucket/in/": format!("{input}/")},
            "OutputMapping": {format!("{out}/"): "oss://test-bucket/out/"},
        }),
    );
    let mut random = fastrand::Rng::with_seed(times);
    for round in 0..times {
        let running = node.start(&description, &[]);
        let moment = Duration::from_millis(random.u64(0..900));
        std::thread::sleep(moment);
        running.signal(nix::sys::signal::Signal::SIGKILL);
        running.wait();
        let run = node.run(&description);
        assert_eq!(run.status, 0, "round {round}, killed after {moment:?}: {run:#?}");
        assert_eq!(log(&double, "stdout", &run), "x");
    }
    node.assert_clean();
}

#[test]
fn killed_at_any_moment_and_run_again() {
    killed_at_random_moments(8);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_killed_at_any_moment_and_run_again() {
    killed_at_random_moments(200);
}

#[test]
fn other_buckets_and_stores_are_reached_in_one_job() {
    let double = double();
    double.add_bucket(BucketConfig {
        name: "other-bucket".to_owned(),
        region: "cn-test".to_owned(),
        public_read: false,
    });
    double.put("other-bucket", "a", "from oss");
    double.put(BUCKET, "b", "from s3");
    let node = Node::with_double(&double.endpoint());
    let local = node.path().join("store/c");
    std::fs::create_dir_all(local.parent().unwrap()).unwrap();
    std::fs::write(&local, "from file").unwrap();
    let (a, b, c) = (node.mapped("x/a"), node.mapped("x/b"), node.mapped("x/c"));
    let line = format!("/bin/sh -c 'cat {a} {b} {c}'");
    let run = node.run(&task(
        &line,
        json!({"InputMapping": {"oss://other-bucket/a": a, "s3://test-bucket/b": b, format!("file://{}", local.display()): c}}),
    ));
    assert_eq!(run.status, 0, "{run:#?}");
    assert_eq!(log(&double, "stdout", &run), "from ossfrom s3from file");
    node.assert_clean();
}
