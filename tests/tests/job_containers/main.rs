//! Tasks in containers, under a real Docker daemon and a real Podman that the tests start.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::agent::{Node, eventually, finished, merge, package};
use tests::docker::Engine;
use tests::double::{Double, DoubleConfig};
use tests::node::BootNode;

mod images;
mod site;

use images::{images, oci_archives};
use site::{BUCKET, IMAGE, LIMIT, Site, assert_failed, own, task};

/// What a task sees, and what comes of what it does.
fn plain(site: &Site) {
    site.engine.import(IMAGE, &["ENV FROM_IMAGE=yes", "ENTRYPOINT [\"/bin/false\"]", "USER 1000"]);
    site.double.put(BUCKET, "in/a.txt", "alpha");
    site.double.put(BUCKET, "in/sub/b.txt", "beta");
    site.double.put(BUCKET, "ref/genome.fa", "ACGT");
    let script = "#!/bin/sh\nid -u; pwd; echo $PATH $FROM_IMAGE $BATCH_COMPUTE_DAG_INSTANCE_ID ${BATCH_COMPUTE_WORKER_ID-none} $LINES\n\
                  cat /home/in/a.txt /home/in/sub/b.txt /home/ref.fa; echo; echo changed > /home/in/b.txt; cat /home/in/b.txt\n\
                  touch /home/ref.fa 2>/dev/null || echo read-only; mount -t tmpfs none /tmp 2>/dev/null || echo unprivileged\n\
                  echo result > /home/out/r; echo single > /tmp/rc; ln /new/call/one /new/call/glob/one 2>/dev/null\n\
                  echo 1 > /new/call/one; ln /new/call/one /new/call/glob/two; echo problem >&2; exit 3\n";
    site.double.put(BUCKET, "worker.tar.gz", package(&[("main.sh", script)]));
    let run = site.run_with(
        &task(
            "./main.sh",
            json!({
                "Parameters": {"Command": {
                    "PackagePath": "oss://test-bucket/worker.tar.gz", "EnvVars": {"LINES": "one\ntwo"},
                }},
                "WriteSupport": true,
                "InputMapping": {"oss://test-bucket/in/": "/home/in/"},
                "Mounts": {"Entries": [
                    {"Source": "oss://test-bucket/ref/genome.fa", "Destination": "/home/ref.fa", "WriteSupport": false}
                ]},
                "OutputMapping": {
                    "/home/out/": "oss://test-bucket/out/", "/tmp/rc": "oss://test-bucket/rc",
                    "/new/call/one": "oss://test-bucket/one", "/new/call/glob/": "oss://test-bucket/glob/",
                },
            }),
        ),
        &["--worker-id=w-1"],
    );
    assert_eq!(run.status, 3, "{run:#?}\n{}", site.engine.log());
    assert_eq!(
        site.log("stdout", &run),
        "0\n/batchcompute/workdir\n/sbin:/usr/sbin:/bin:/usr/bin yes 0 none one two\nalphabetaACGT\nchanged\nread-only\nunprivileged\n"
    );
    assert_eq!(site.log("stderr", &run), "problem\n");
    for (key, content) in [("out/r", "result\n"), ("rc", "single\n"), ("one", "1\n"), ("glob/two", "1\n")] {
        let found = site.double.get(BUCKET, key).unwrap_or_else(|| panic!("no {key}: {run:#?}\n{}", site.engine.log()));
        assert_eq!(String::from_utf8(found).unwrap(), content);
    }
    assert!(site.double.get(BUCKET, "in/b.txt").is_none());
    site.assert_clean();
}

/// The description that Cromwell writes, in its image, unchanged but for the NAS, which is nowhere.
fn cromwell(site: &Site) {
    let mut cromwell: Value =
        serde_json::from_str(include_str!("../../../agent/tests/fixtures/jobs/cromwell-call.json")).unwrap();
    let task = &mut cromwell["DAG"]["Tasks"]["cromwell"];
    let image = task["Parameters"]["Command"]["Docker"]["Image"].as_str().unwrap().to_owned();
    let entries = task["Mounts"]["Entries"].as_array_mut().unwrap();
    entries.retain(|entry| entry["Source"].as_str().unwrap().starts_with("oss://"));
    site.engine.import(&image, &[]);
    let call = "cromwell-dir/wf_echo/38b088b2-5131-4ea0-a161-4cf2ca8d15ac/call-echo";
    let worker = "#!/bin/bash\nexport script=$cwd/$(basename $exec)\nexport rc=$cwd/rc\n\n(\nmkdir -p $cwd\ncp -rf $exec $script\ncd $cwd\n/bin/bash -c $script\n)\n";
    let body = "#!/bin/bash\necho out > output; echo text > stdout; echo > stderr; mkdir -p glob-0c8a; ln output glob-0c8a/output; \
                echo output > glob-0c8a.list; cat /cromwell_inputs/b1946ac9/sample.bam /home/inputs/i; echo 7 > rc";
    for (key, content) in [
        (format!("{call}/worker"), worker),
        (format!("{call}/script"), body),
        ("inputs/i".to_owned(), "i"),
        ("data/sample.bam".to_owned(), "bam"),
    ] {
        site.double.put("my-bucket", &key, content);
    }
    let run = site.run(&cromwell);
    assert_eq!(run.status, 0, "{run:#?}");
    for (name, content) in [
        ("output", "out\n"),
        ("stdout", "text\n"),
        ("rc", "7\n"),
        ("glob-0c8a/output", "out\n"),
        ("glob-0c8a.list", "output\n"),
    ] {
        let found =
            site.double.get("my-bucket", &format!("{call}/{name}")).unwrap_or_else(|| panic!("{name}: {run:#?}"));
        assert_eq!(String::from_utf8(found).unwrap(), content);
    }
    site.assert_clean();
}

/// Each way in which a task in a container ends.
fn endings(site: &Site) {
    site.engine.import(IMAGE, &[]);
    // The engine's own statuses, when it is the program that exits with them.
    for status in [125, 126, 137] {
        let run = site.run(&task(&format!("/bin/sh -c 'exit {status}'"), json!({})));
        assert_failed(&run, status, "user", &[&format!("exit code {status}")]);
    }
    let missing = site.run(&task("no-such-program --now", json!({})));
    assert_failed(&missing, 127, "user", &["\"no-such-program\"", "was not found in the image", IMAGE]);
    assert!(site.log("stderr", &missing).contains("was not found in the image"));
    let denied = site.run(&task("/etc", json!({})));
    assert_failed(&denied, 126, "user", &["\"/etc\""]);

    // It was waiting for nothing but the signal that its place in the container keeps from it.
    let began = Instant::now();
    let late = site.run_with(&own(json!({"command": "sleep 1000", "timeout": 2})), &["--grace=600"]);
    assert_failed(&late, 137, "timeout", &["time limit"]);
    assert!(began.elapsed() < Duration::from_secs(500), "it had to wait for the grace");

    let child = site.start(
        "stopped",
        &task("/bin/sh -c 'trap \"echo bye; exit 7\" TERM; echo up; while :; do sleep 1; done'", json!({})),
    );
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    let stopped = finished(&child.wait_with_output().unwrap());
    assert_eq!(stopped.instance("task", 0)["state"], "Stopped", "{stopped:#?}");
    assert_eq!(stopped.instance("task", 0)["exit_code"], 7, "{stopped:#?}");
    assert_eq!(site.log("stdout", &stopped), "up\nbye\n");
    site.assert_clean();
}

/// The kernel kills it for the memory it takes, all of it or a part; and what a container uses is told as of any task.
fn out_of_memory(site: &Site) {
    // A line without an end.
    const HUNGRY: &str = "tail /dev/zero";
    let run =
        |script: &str| site.run(&own(json!({"command": ["/bin/sh", "-c", script], "limits": {"memory": "32MiB"}})));
    let hungry = run(HUNGRY);
    assert_eq!(hungry.instance("task", 0)["cause"], "out-of-memory", "{hungry:#?}");
    let at_once = run(&format!("exec {HUNGRY}"));
    assert_eq!(at_once.instance("task", 0)["cause"], "out-of-memory", "{at_once:#?}");
    // One that survives the end of its child has finished, and both are told.
    let survivor = run(&format!("{HUNGRY}; sleep 1; exit 0"));
    assert_eq!(survivor.status, 0, "{survivor:#?}");
    assert!(survivor.instance("task", 0)["usage"]["oom_kills"].as_u64() >= Some(1), "{survivor:#?}");
    // What looks like it and is not.
    let killed = run("kill -9 $$; exit 137");
    assert_eq!(killed.instance("task", 0)["cause"], "user", "{killed:#?}");
    assert_eq!(killed.instance("task", 0)["usage"]["oom_kills"], 0, "{killed:#?}");

    let used = site.run(&own(json!({"command": ["/bin/sh", "-c",
        "head -c 60000000 /dev/zero | tail > /dev/null; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]})));
    let usage = &used.instance("task", 0)["usage"];
    let (cpu, peak) = (&usage["user_ms"], &usage["memory_peak_bytes"]);
    assert!(cpu.as_u64() >= Some(20) && peak.as_u64() >= Some(60_000_000), "{used:#?}");
    let figures = &used.instance("task", 0)["figures"]["task"];
    assert!(figures["memory"]["peak"].as_f64() >= Some(60e6), "{figures:#} of {used:#?}");
    // However short it is.
    let short = site.run(&own(json!({"command": "/bin/true"})));
    assert!(short.instance("task", 0)["usage"]["memory_peak_bytes"].as_u64() > Some(0), "{short:#?}");
    site.assert_clean();
}

/// An agent that is killed leaves a container, and the next one takes it away.
fn killed(site: &Site) {
    let mut child = site.start("killed", &task("/bin/sh -c 'echo up; sleep 1000'", json!({})));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(site.engine.containers().len(), 1);
    let next = site.run(&task("/bin/true", json!({})));
    assert_eq!(next.status, 0, "{next:#?}");
    site.assert_clean();
}

/// The shims of tasks whose files are below this directory.
fn shims(below: &Path) -> Vec<Pid> {
    let is_ours = |command_line: &[u8]| {
        let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&&b"shim"[..])
            && words.get(2).is_some_and(|path| path.starts_with(below.as_os_str().as_bytes()))
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ours =
        processes.filter(|process| std::fs::read(process.path().join("cmdline")).is_ok_and(|line| is_ours(&line)));
    ours.filter_map(|process| process.file_name().to_str()?.parse().ok().map(Pid::from_raw)).collect()
}

#[track_caller]
fn kill_shim(below: &Path) {
    let [shim] = shims(below)[..] else { panic!("{:?}", shims(below)) };
    kill(shim, Signal::SIGKILL).unwrap();
    eventually("the shim is gone", LIMIT, || !shims(below).contains(&shim));
}

/// A shim that is killed loses nothing of its container: another one goes on with it.
fn shim_killed(site: &Site) {
    // It prints all the time, half a line at the end of which there is none, too.
    let script = "echo up; i=0; while [ ! -e /tmp/go ]; do echo $i; echo $i >&2; i=$((i+1)); sleep 0.01; done; echo over; exit 5";
    let child = site.start("orphan", &task(&format!("/bin/sh -c '{script}'"), json!({})));
    for _ in 0..2 {
        kill_shim(site.node.path());
        eventually("there is another one", LIMIT, || !shims(site.node.path()).is_empty());
    }
    site.engine.touch(&site.engine.containers()[0], "/tmp/go");
    let run = finished(&child.wait_with_output().unwrap());
    assert_failed(&run, 5, "user", &["exit code 5"]);
    let (stdout, stderr) = (site.log("stdout", &run), site.log("stderr", &run));
    let numbers: String = (0..stderr.lines().count()).map(|number| format!("{number}\n")).collect();
    assert_eq!((stderr.as_str(), stdout.as_str()), (numbers.as_str(), &*format!("up\n{numbers}over\n")));
    // What it used before is counted, too.
    assert!(run.instance("task", 0)["usage"]["memory_peak_bytes"].as_u64() > Some(0), "{run:#?}");
    assert_eq!(run.instance("task", 0)["attempts"], 1, "{run:#?}");
    site.assert_clean();

    // A time limit holds for what it ran under the shim before, and who stops it is heard.
    let child = site.start(
        "stopped-orphan",
        &task("/bin/sh -c 'trap \"echo bye; exit 7\" TERM; echo up; while :; do sleep 1; done'", json!({})),
    );
    kill_shim(site.node.path());
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    let run = finished(&child.wait_with_output().unwrap());
    assert_eq!(run.instance("task", 0)["state"], "Stopped", "{run:#?}");
    assert_eq!((site.log("stdout", &run).as_str(), &run.instance("task", 0)["exit_code"]), ("up\nbye\n", &json!(7)));
    site.assert_clean();
}

/// An engine that is started anew takes its containers with it. That is not the program's failure.
fn engine_restarted(mut site: Site) {
    site.engine.import(IMAGE, &[]);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let child = site.start(signal.as_str(), &task("/bin/sh -c 'echo up; exec sleep 1000'", json!({})));
        site.engine.restart(signal);
        let run = finished(&child.wait_with_output().unwrap());
        assert_failed(&run, 71, "platform", &["engine", "stopped or started anew", "live-restore"]);
        assert_eq!(run.instance("task", 0)["exit_code"], Value::Null, "{run:#?}");
        site.assert_clean();
    }
    // A second attempt is not counted.
    let script = "if [ -e /home/in/go ]; then exit 3; fi; echo up; exec sleep 1000";
    site.double.put(BUCKET, "in/x", "x");
    let twice = task(
        &format!("/bin/sh -c '{script}'"),
        json!({"MaxRetryCount": 1, "InputMapping": {"oss://test-bucket/in/": "/home/in/"}}),
    );
    let mut command = site.command(&twice, &["--job-id", "twice"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the program is up", LIMIT, || {
        site.double.get(BUCKET, "logs/stdout.twice.task.0").is_some_and(|log| log == b"up\n")
    });
    site.double.put(BUCKET, "in/go", "go");
    site.engine.restart(Signal::SIGKILL);
    let run = finished(&child.wait_with_output().unwrap());
    assert_failed(&run, 3, "user", &["exit code 3"]);
    let instance = run.instance("task", 0);
    assert_eq!((&instance["attempts"], &instance["retries"]), (&json!(3), &json!(1)), "{run:#?}");
    site.assert_clean();
}

/// What stays of a task that has failed, and how a person gets in.
fn reserved(site: &Site) {
    let said = |words: &[&str], input: &str| {
        let mut command = site.node.agent();
        command.arg(words[0]).arg("--state-dir").arg(site.node.path().join("state")).args(&words[1..]);
        let mut child = site
            .engine
            .join(&mut command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    site.double.put(BUCKET, "in/a.txt", "alpha\n");
    let job = |line: &str| {
        task(
            line,
            json!({
                "Parameters": {"Command": {"EnvVars": {"MINE": "yes"}}},
                "InputMapping": {"oss://test-bucket/in/": "/home/in/"},
                "OutputMapping": {"/home/out/": "oss://test-bucket/out/"},
                "AutoCluster": {"ReserveOnFail": true},
            }),
        )
    };
    // While it runs: in the container itself.
    let child = site.start(
        "kept",
        &job("/bin/sh -c 'echo up; echo made > made; echo own > /tmp/own; echo part > /home/out/part; \
                                         while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 3'"),
    );
    let look = "pwd; cat made /tmp/own /home/in/a.txt /home/out/part; echo $MINE $BATCH_COMPUTE_DAG_TASK_ID; exit 7";
    let seen = "/batchcompute/workdir\nmade\nown\nalpha\npart\nyes task\n";
    assert_eq!(said(&["enter", "task", "/bin/sh", "-c", look], ""), (7, seen.to_owned()));
    assert_eq!(said(&["enter", "task", "cat"], "from outside"), (0, "from outside".to_owned()));
    // Docker before version 23 says 126 of a program that is not there.
    assert!(matches!(said(&["enter", "task", "no-such-program"], "").0, 126 | 127));
    assert_eq!(said(&["enter", "task", "touch", "/tmp/go"], "").0, 0);
    let run = finished(&child.wait_with_output().unwrap());
    assert_eq!(run.status, 3, "{run:#?}");
    assert!(run.message().contains("batch-agent enter") && run.message().contains("kept.task.0"), "{run:#?}");
    assert_eq!(site.engine.containers().len(), 1);

    // When it is over: in another one that sees the same, what it left among the image's files included.
    let (status, text) = said(&["enter", "task", "/bin/sh", "-c", look], "");
    assert_eq!((status, text.as_str()), (7, seen));
    assert_eq!(said(&["enter", "task", "cat"], "from outside").1, "from outside");
    assert_eq!(said(&["enter", "task", "/bin/sh"], "exit 9\n").0, 9);
    assert_eq!((site.engine.containers().len(), site.engine.says(&["images", "--quiet"]).lines().count()), (1, 1));
    let mut inside = site.node.agent();
    inside.args(["enter", "--state-dir"]).arg(site.node.path().join("state")).args(["task", "/bin/sleep", "1000"]);
    let mut inside = site.engine.join(&mut inside).stdin(Stdio::null()).spawn().unwrap();
    eventually("somebody is inside", LIMIT, || site.engine.says(&["ps", "--quiet"]).lines().count() == 1);
    assert_eq!(said(&["release", "task"], ""), (0, String::new()));
    assert!(!inside.wait().unwrap().success(), "who is inside goes with it");
    assert_eq!(site.engine.says(&["images", "--quiet"]).lines().count(), 1);
    site.assert_clean();
}

/// Devices and networks that a job asks for, and none that it does not.
fn devices_and_networks(site: &Site) {
    let says = |line: &str, container: Value| {
        let mut job = own(json!({"command": ["/bin/sh", "-c", line]}));
        merge(&mut job["tasks"]["task"]["container"], &container);
        let run = site.run(&job);
        assert_eq!(run.status, 0, "{run:#?}\n{}", site.engine.log());
        site.log("stdout", &run)
    };
    // Seeing a device is one thing, and being let use it another.
    let look = "if [ -c /dev/fuse ]; then (exec 3<>/dev/fuse) && echo usable; else echo none; fi";
    assert_eq!(says(look, json!({})), "none\n");
    assert_eq!(says(look, json!({"devices": ["/dev/fuse"]})), "usable\n");
    let absent = own(json!({"command": "/bin/true", "container": {"image": IMAGE, "devices": ["/dev/no-such"]}}));
    assert_failed(&site.run(&absent), 71, "platform", &["/dev/no-such"]);

    let interfaces = "sed -n 's/^ *\\([^ :]*\\):.*/\\1/p' /proc/net/dev";
    let here = std::fs::read_to_string("/proc/net/dev").unwrap();
    let here: Vec<&str> = here.lines().filter_map(|line| line.split_once(':').map(|(name, _)| name.trim())).collect();
    let host = says(interfaces, json!({}));
    assert_eq!(host.lines().collect::<Vec<_>>(), here);
    assert_eq!(says(interfaces, json!({"network": "none"})), "lo\n");
    site.assert_clean();
}

#[test]
fn docker_shows_a_task_what_it_is_to_see_and_keeps_what_it_prints() {
    let site = Site::new(Engine::docker());
    plain(&site);
    cromwell(&site);
    devices_and_networks(&site);
}

#[test]
fn podman_runs_a_task_as_docker_does() {
    let site = Site::new(Engine::podman());
    plain(&site);
}

#[test]
fn docker_every_ending_has_its_cause() {
    let site = Site::new(Engine::docker());
    endings(&site);
    out_of_memory(&site);
    killed(&site);
    shim_killed(&site);
    reserved(&site);
}

#[test]
fn docker_images_come_from_registries_and_object_storage() {
    let site = Site::new(Engine::docker());
    images(&site);
    oci_archives(&site);
}

/// The node's daemon is killed twice while the container runs, the second time with its shim, and the third one brings its results home.
#[test]
fn a_node_whose_agent_is_killed_goes_on_with_its_container() {
    let engine = Engine::podman();
    engine.import(IMAGE, &[]);
    let node = BootNode::new();
    let mnt = node.path("mnt");
    let line = format!(
        "echo up; cat {0}/file; while [ ! -e /batchcompute/workdir/go ]; do sleep 0.1; done; echo over",
        mnt.display()
    );
    let mut task = own(json!({"command": ["/bin/sh", "-c", line]}));
    let task = &mut task["tasks"]["task"];
    (task["stdout"], task["stderr"]) = (json!(node.location("out/")), json!(node.location("out/")));
    node.settings(&json!({
        "mounts": [{"source": node.location("in/"), "target": mnt}],
        "containers": {"socket": engine.socket()},
        "task": {"job": {"version": 1, "tasks": {"task": task}}, "job_id": "job-1"},
    }));
    let boot = || {
        let mut command = node.boot_command();
        engine.join(&mut command).spawn().unwrap()
    };
    let is_up = || node.stored("out/stdout.job-1.task.0").starts_with("up\nhello\n");
    for _ in 0..2 {
        let mut agent = boot();
        eventually("the program is up", LIMIT, is_up);
        agent.kill().unwrap();
        agent.wait().unwrap();
    }
    // And once more with its shim, so that nobody is there when the program ends.
    kill_shim(&node.path(""));
    let container = engine.containers().remove(0);
    engine.touch(&container, "/batchcompute/workdir/go");
    eventually("it has ended", LIMIT, || !engine.says(&["ps", "--format", "{{.Names}}"]).contains(&container));
    let mut agent = boot();
    assert_eq!(agent.wait().unwrap().code(), Some(0), "{}", node.log());
    assert_eq!(node.stored("out/stdout.job-1.task.0"), "up\nhello\nover\n");
    assert_eq!(engine.containers(), Vec::<String>::new());
}

#[test]
fn without_an_engine_a_task_is_told_so() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint())
        .environment("BATCH_AGENT_ENGINE_SOCKET", "/run/no-such-engine.sock")
        .option("--fault-retries=0");
    let run = node.run(&task("/bin/true", json!({})));
    assert_failed(&run, 71, "platform", &["no container engine", "/run/no-such-engine.sock", "docker.io"]);
    node.assert_clean();
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_podman_endings_and_images() {
    let site = Site::new(Engine::podman());
    endings(&site);
    out_of_memory(&site);
    killed(&site);
    shim_killed(&site);
    reserved(&site);
    devices_and_networks(&site);
    images(&site);
    oci_archives(&site);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_docker_is_started_anew_under_a_container() {
    engine_restarted(Site::with_faults(Engine::docker(), 1));
}

/// Podman's containers do not depend on its service.
#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_podman_is_started_anew_under_a_container() {
    let mut site = Site::new(Engine::podman());
    site.engine.import(IMAGE, &[]);
    let script = "echo up; i=0; while [ ! -e /tmp/go ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 5";
    let child = site.start("anew", &task(&format!("/bin/sh -c '{script}'"), json!({})));
    site.engine.restart(Signal::SIGKILL);
    site.engine.touch(&site.engine.containers()[0], "/tmp/go");
    let run = finished(&child.wait_with_output().unwrap());
    assert_failed(&run, 5, "user", &["exit code 5"]);
    let log = site.log("stdout", &run);
    let numbers: String = (0..log.lines().count() - 1).map(|number| format!("{number}\n")).collect();
    assert_eq!(log, format!("up\n{numbers}"));
    site.assert_clean();
}
