//! A task is under control: what it may use, why it ended, and that nothing of it is left, on each kind of control groups.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::agent::{Finished, Node, Running, eventually, merge};
use tests::node::BootNode;

/// Long enough for any machine.
const LONG: Duration = Duration::from_secs(60);

/// No control groups of version 2 beside those of version 1, on a machine that has both.
const V1_ONLY: &str = "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi";
/// No control groups at all.
const NONE: &str = "umount --recursive /sys/fs/cgroup";
/// All of them read-only, as in a container that was given none.
const READ_ONLY: &str =
    "for tree in /sys/fs/cgroup/*; do if mountpoint -q $tree; then mount -o remount,bind,ro $tree; fi; done";

/// A job of one task, `task`: a shell with this script, and more of a description.
fn job(node: &Node, script: &str, more: Value) -> Value {
    let logs = format!("file://{}/logs/", node.path().display());
    let mut task = json!({"command": ["/bin/sh", "-c", script], "stdout": logs, "stderr": logs});
    merge(&mut task, &more);
    json!({"version": 1, "tasks": {"task": task}})
}

fn run(node: &Node, script: &str, more: Value) -> Finished {
    node.run(&job(node, script, more))
}

fn log(node: &Node, run: &Finished) -> String {
    let id = run.outcome["job_id"].as_str().unwrap_or_else(|| panic!("{run:?}"));
    fs::read_to_string(node.path().join(format!("logs/stdout.{id}.task.0"))).unwrap()
}

/// What a running task has printed so far.
fn printed(node: &Node, id: &str) -> String {
    fs::read_to_string(node.path().join(format!("logs/stdout.{id}.task.0"))).unwrap_or_default()
}

fn start(node: &Node, id: &str, script: &str, more: Value) -> Running {
    let running = node.start(&job(node, script, more), &[&format!("--job-id={id}")]);
    eventually("the program is up", LONG, || printed(node, id).contains("up\n"));
    running
}

#[track_caller]
fn assert_ended(run: &Finished, state: &str, cause: Value, status: i32, message: &str) {
    let instance = run.instance("task", 0);
    assert_eq!((&instance["state"], &instance["cause"]), (&json!(state), &cause), "{run:#?}");
    assert_eq!(run.status, status, "{run:#?}");
    assert!(run.message().contains(message), "{:?} lacks {message:?}", run.message());
}

/// Processes that were started for this test: `sleep` takes the test's own number of seconds.
fn sleepers(seconds: u32) -> usize {
    let wanted = format!("sleep\0{seconds}\0");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| fs::read(process.path().join("cmdline")).is_ok_and(|line| line == wanted.as_bytes()))
        .count()
}

#[test]
fn out_of_memory_within_its_limit() {
    for view in ["true", V1_ONLY] {
        let node = Node::new().after(view);
        let run = run(&node, "exec tail /dev/zero", json!({"limits": {"memory": "48MiB"}}));
        assert_ended(&run, "Failed", json!("out-of-memory"), 137, "for want of memory (killed by signal 9");
        let usage = &run.instance("task", 0)["usage"];
        assert_eq!(usage["oom_kills"], 1, "{run:#?}");
        // The kernel charges memory in batches, so the last of it may not have been counted.
        let peak = usage["memory_peak_bytes"].as_u64().unwrap() >> 20;
        assert!((40..=48).contains(&peak), "{run:#?}");
        assert!(run.message().contains(&format!("it had {peak} MiB at most; raise its limit")), "{}", run.message());
        node.assert_clean();
    }
}

/// Whether memory is limited by version 1: there a process is killed, and in version 2 the task.
fn kills_one_by_one() -> bool {
    std::path::Path::new("/sys/fs/cgroup/memory").is_dir()
}

/// The groups that a task makes inside of its own are counted as well; in version 1 each counts for itself.
#[test]
fn out_of_memory_in_a_group_of_the_tasks_own() {
    let node = Node::new();
    let script = "\
        if [ -d /sys/fs/cgroup/memory ]; then
            inner=/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)/inner
            mkdir $inner && echo 16777216 > $inner/memory.limit_in_bytes
        else
            own=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup) inner=$own/inner
            mkdir $own/rest $inner && echo 0 > $own/rest/cgroup.procs && echo +memory > $own/cgroup.subtree_control
            echo 16777216 > $inner/memory.max && echo 0 > $inner/memory.swap.max
        fi
        (echo 0 > $inner/cgroup.procs; exec tail /dev/zero)
        exit 7";
    let run = run(&node, script, json!({}));
    assert_ended(&run, "Failed", json!("out-of-memory"), 7, "one process of it");
    node.assert_clean();
}

#[test]
fn a_childs_want_of_memory_that_its_parent_survives_is_told() {
    let node = Node::new();
    let run = run(&node, "tail /dev/zero; echo went on; exit 0", json!({"limits": {"memory": "48MiB"}}));
    if kills_one_by_one() {
        assert_ended(&run, "Finished", Value::Null, 0, "the program finished, but the kernel has killed one process");
        assert_eq!(log(&node, &run), "went on\n");
        assert!(run.stderr.contains("WARN"), "{}", run.stderr);
    } else {
        assert_ended(&run, "Failed", json!("out-of-memory"), 137, "for want of memory");
    }
    node.assert_clean();
}

#[test]
fn what_looks_like_want_of_memory_and_is_none() {
    let node = Node::new();
    for script in ["exit 137", "kill -KILL $$"] {
        let run = run(&node, script, json!({"limits": {"memory": "48MiB"}}));
        assert_ended(&run, "Failed", json!("user"), 137, "and not for want of memory");
    }
    // Where nobody counts, nothing is claimed.
    let node = Node::new().after(NONE);
    let run = run(&node, "kill -KILL $$", json!({}));
    assert_ended(&run, "Failed", json!("user"), 137, "killed by signal 9 (SIGKILL)");
    assert!(!run.message().contains("want of memory"), "{}", run.message());
    assert_eq!(run.instance("task", 0)["usage"]["oom_kills"], Value::Null);
}

#[test]
fn processors_and_processes_are_limited() {
    let node = Node::new();
    let script = "\
        (while :; do :; done) & (while :; do :; done) & sleep 2
        i=0; while [ $i -lt 40 ]; do sleep 4001 & i=$((i + 1)); done";
    let run = run(&node, script, json!({"limits": {"cpu": 0.2, "pids": 20}}));
    let usage = &run.instance("task", 0)["usage"];
    let used = usage["user_ms"].as_u64().unwrap() + usage["system_ms"].as_u64().unwrap();
    let elapsed = run.instance("task", 0)["elapsed_ms"].as_u64().unwrap();
    // Two loops on two processors for two seconds would be four.
    assert!(used < elapsed / 2, "{used} ms of {elapsed} ms");
    assert_ne!(run.status, 0, "it could not start all it wanted");
    assert!(run.message().contains("by its limit of processes (pids)"), "{}", run.message());
    assert_eq!(sleepers(4001), 0);
    node.assert_clean();
}

/// Processor time of those that nobody has waited for counts, too.
#[test]
fn what_is_left_behind_is_killed_and_its_use_counted() {
    let node = Node::new();
    // Until it has used 20 ticks, however long that takes here.
    let script = "(while :; do :; done) & while [ $(cut -d ' ' -f 14 /proc/$!/stat) -lt 20 ]; do sleep 0.1; done";
    let run = run(&node, script, json!({}));
    assert_ended(&run, "Finished", Value::Null, 0, "");
    assert!(run.instance("task", 0)["usage"]["user_ms"].as_u64().unwrap() > 100, "{run:#?}");
    assert!(run.stderr.contains("1 processes it had left running were killed"), "{}", run.stderr);
    node.assert_clean();
}

/// Everything that a task can do so as not to be found: sessions of its own, daemons, ignored signals, stopped processes, endless forking.
const STUBBORN: &str = "\
    trap '' TERM HUP INT
    setsid sh -c 'sleep SECONDS & sleep SECONDS' &
    (setsid sh -c '(sleep SECONDS &) &' &)
    sleep SECONDS & kill -STOP $!
    sh -c 'while :; do sleep SECONDS & sleep 0.05; done' &
    echo up
    while :; do sleep SECONDS; done";

#[test]
fn nothing_is_left_of_a_stubborn_task() {
    for (seconds, view) in [(5001, "true"), (5002, V1_ONLY), (5003, NONE), (5004, READ_ONLY)] {
        let node = Node::new().after(view).option("--grace=1");
        let running = start(&node, "stubborn", &STUBBORN.replace("SECONDS", &seconds.to_string()), json!({}));
        eventually("all of them", LONG, || sleepers(seconds) > 5);
        running.signal(Signal::SIGTERM);
        let run = running.wait();
        assert_eq!(sleepers(seconds), 0, "{view}");
        assert_ended(&run, "Stopped", json!("cancelled"), 137, "");
        assert!(run.stderr.contains("of its processes had to be killed; none is left"), "{}", run.stderr);
        let has_noted = run.stderr.contains("/proc");
        assert_eq!(has_noted, view == NONE || view == READ_ONLY, "{view}: {}", run.stderr);
        node.assert_clean();
    }
}

/// Two thousand that ignore SIGTERM are gone within the grace and two seconds: the time is from the one log line to the other.
#[test]
fn two_thousand_processes_are_gone_at_once() {
    let node = Node::new().option("--grace=1").option("--log-format=json");
    let script = "trap '' TERM; i=0; while [ $i -lt 2000 ]; do sleep 6001 & i=$((i + 1)); done; echo up; wait";
    let running = start(&node, "many", script, json!({}));
    running.signal(Signal::SIGTERM);
    let run = running.wait();
    assert_eq!(sleepers(6001), 0);
    assert_ended(&run, "Stopped", json!("cancelled"), 137, "");
    let lines: Vec<Value> = run.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let at = |words: &str| -> jiff::Timestamp {
        let line = lines
            .iter()
            .find(|line| line.to_string().contains(words))
            .unwrap_or_else(|| panic!("{words}: {}", run.stderr));
        line["timestamp"].as_str().unwrap().parse().unwrap()
    };
    let took = at("the program has ended").duration_since(at("stopping the program"));
    eprintln!("2001 processes ended in {took:?}, with one second of grace");
    assert!(run.stderr.contains("2001 of its processes had to be killed; none is left"), "{}", run.stderr);
    node.assert_clean();
}

#[test]
fn a_task_that_leaves_its_group_is_found() {
    let node = Node::new().option("--grace=1");
    let script = "\
        for procs in /sys/fs/cgroup/*/cgroup.procs; do echo 0 > $procs; done 2>/dev/null
        trap '' TERM; sleep 7001 & echo up; sleep 7001";
    let running = start(&node, "leaver", script, json!({}));
    running.signal(Signal::SIGTERM);
    assert_ended(&running.wait(), "Stopped", json!("cancelled"), 137, "");
    assert_eq!(sleepers(7001), 0);
    node.assert_clean();
}

/// The shim of a job's only instance.
fn shim(node: &Node, id: &str) -> nix::unistd::Pid {
    let record = node.path().join(format!("state/instances/{id}.task.0.json"));
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    nix::unistd::Pid::from_raw(record["shim"]["pid"].as_i64().unwrap().try_into().unwrap())
}

#[test]
fn a_task_whose_shim_was_killed_is_found_by_its_group() {
    let node = Node::new();
    let running = start(&node, "orphan", "setsid sleep 8001 & echo up; exec sleep 8001", json!({}));
    nix::sys::signal::kill(shim(&node, "orphan"), Signal::SIGKILL).unwrap();
    let run = running.wait();
    assert_ended(&run, "Failed", json!("platform"), 71, "the task's shim ended without a record (signal 9)");
    assert_eq!(sleepers(8001), 0);
    node.assert_clean();
}

#[test]
fn an_agent_and_a_shim_that_were_killed_leave_what_the_next_agent_takes_away() {
    let node = Node::new();
    let running = start(&node, "both", "sleep 8002 & echo up; exec sleep 8002", json!({}));
    let shim = shim(&node, "both");
    running.signal(Signal::SIGKILL);
    running.wait();
    nix::sys::signal::kill(shim, Signal::SIGKILL).unwrap();
    assert!(node.left_behind().iter().any(|line| line.contains("control group")), "{:?}", node.left_behind());
    let run = run(&node, "true", json!({}));
    assert_eq!((run.status, sleepers(8002)), (0, 0), "{run:#?}");
    node.assert_clean();
}

/// What a shim has for itself alone: there is one for every task.
#[test]
fn a_shim_takes_little_memory() {
    const LIMIT_KIB: u64 = 3 << 10;
    let node = Node::new();
    let running = start(&node, "small", "echo up; exec sleep 9001", json!({}));
    let maps = fs::read_to_string(format!("/proc/{}/smaps_rollup", shim(&node, "small"))).unwrap();
    let line = maps.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    let kib: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    eprintln!("{kib} KiB of private dirty memory");
    assert!(kib <= LIMIT_KIB, "{maps}");
    running.signal(Signal::SIGTERM);
    running.wait();
    node.assert_clean();
}

fn cancel(node: &Node, more: &[&str]) -> (i32, String) {
    let mut command = node.agent();
    command.arg("cancel").arg("--state-dir").arg(node.path().join("state")).args(more);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn cancelled_by_name() {
    let node = Node::new();
    assert_eq!(cancel(&node, &[]).0, 66);
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    let running = start(&node, "job-1", script, json!({"retries": 3}));
    let (status, text) = cancel(&node, &["tas"]);
    assert_eq!(status, 66, "{text}");
    assert!(text.contains("no task \"tas\" is running here; running are job-1.task.0"), "{text}");
    let (status, text) = cancel(&node, &["task"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("job-1.task.0: its agent (process "), "{text}");
    let run = running.wait();
    assert_ended(&run, "Stopped", json!("cancelled"), 5, "the program was stopped");
    assert_eq!((log(&node, &run).as_str(), &run.instance("task", 0)["retries"]), ("up\nbye\n", &json!(0)));
    node.assert_clean();
}

#[test]
fn cancelled_at_once_and_only_the_one() {
    let node = Node::new();
    let script = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let description = job(&node, script, json!({"instances": 2}));
    let running = node.start(&description, &["--job-id=two", "--parallel=2", "--grace=3600"]);
    let number = |n: u32| node.path().join(format!("logs/stdout.two.task.{n}"));
    eventually("both are up", LONG, || (0..2).all(|n| fs::read(number(n)).is_ok_and(|log| log == b"up\n")));
    let (status, text) = cancel(&node, &[]);
    assert_eq!(status, 64, "{text}");
    assert!(text.contains("any of two.task.0, two.task.1; name one, or use --all"), "{text}");
    assert_eq!(cancel(&node, &["task.1", "--now"]).0, 0);
    eventually("the one has ended", LONG, || running.messages().contains("task.1 Stopped (cancelled)"));
    assert!(!running.messages().contains("task.0 Stopped"), "{}", running.messages());
    assert_eq!(cancel(&node, &["two", "--all", "--now"]).0, 0);
    let run = running.wait();
    assert_eq!(run.outcome["state"], "Stopped", "{run:#?}");
    node.assert_clean();
}

#[test]
fn cancelled_without_an_agent() {
    let node = Node::new();
    let running = start(&node, "alone", "echo up; exec sleep 9002", json!({}));
    running.signal(Signal::SIGKILL);
    running.wait();
    assert_eq!(sleepers(9002), 1);
    let (status, text) = cancel(&node, &["alone"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("its agent is gone, so the task itself has been told"), "{text}");
    eventually("it has ended", LONG, || sleepers(9002) == 0);
    let record = node.path().join("state/instances/alone.task.0.exit");
    eventually("and left its record", LONG, || record.exists());
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!((&record["stopped"], &record["signal"]), (&json!("request"), &json!(15)), "{record}");
    assert_eq!(run(&node, "true", json!({})).status, 0);
    node.assert_clean();
}

/// Under the node's daemon: by its agent, and without one, where the agent that comes next tells how it ended.
#[test]
fn the_nodes_task_is_cancelled() {
    for is_alone in [false, true] {
        let node = BootNode::new();
        let logs = node.location("out/");
        let task = json!({"command": "/bin/sh -c 'echo up; exec sleep 9003'", "stdout": logs, "stderr": logs});
        let job = json!({"version": 1, "tasks": {"only": task}});
        node.settings(&json!({"task": {"job": job, "job_id": "job-1"}}));
        let mut agent = node.boot();
        eventually("the program is up", LONG, || node.stored("out/stdout.job-1.only.0") == "up\n");
        if is_alone {
            agent.kill().unwrap();
            agent.wait().unwrap();
            assert_eq!(node.run(&["cancel", "only"]).code, Some(0), "{}", node.log());
            eventually("it has ended", LONG, || sleepers(9003) == 0);
            assert_eq!(node.boot_to_end(), 0, "{}", node.log());
        } else {
            let told = node.run(&["cancel", "only"]);
            let ended = agent.wait().unwrap();
            assert!(told.code == Some(0) && ended.success(), "{told:?}\n{}", node.log());
        }
        let outcome = &node.status()["outcome"];
        assert_eq!((&outcome["state"], &outcome["cause"]), (&json!("Stopped"), &json!("cancelled")), "{outcome:#}");
        assert_eq!((sleepers(9003), node.run(&["cancel"]).code), (0, Some(66)));
    }
}

#[test]
fn a_task_may_run_as_another_user() {
    let node = Node::new();
    let (out, one) = (node.mapped("out/"), node.mapped("single/one"));
    fs::create_dir_all(node.path().join("sent")).unwrap();
    fs::create_dir_all(node.path().join("store/deep")).unwrap();
    fs::write(node.path().join("store/deep/file"), "read\n").unwrap();
    let (input, store) = (node.mapped("in"), format!("file://{}/store/", node.path().display()));
    let sent = format!("file://{}/sent/", node.path().display());
    let script = "\
        id -un; id -G; umask; ulimit -c; ls -ld . | cut -c1-10
        sed -n 's/^NoNewPrivs:\\t//p; s/^CapEff:\\t//p' /proc/self/status
        echo $HOME $USER $LOGNAME
        echo here > here && echo result > $OUT/result && echo one > $ONE && echo written >> /dev/stdout
        cat $SECRET 2>/dev/null || echo kept
        cat $IN/deep/file; echo over > $IN/deep/file || echo refused
        readlink /proc/self/fd/* | grep -c -v -E '/dev/null|logs/std|pipe:|/proc/' ";
    let secret = node.path().join("secret");
    fs::write(&secret, "x").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let more = json!({
        "user": "nobody",
        "environment": {"OUT": out, "ONE": one, "SECRET": secret, "IN": input},
        "inputs": [{"source": store, "target": input, "writable": true}],
        "outputs": [{"source": out, "target": format!("{sent}out/")}, {"source": one, "target": format!("{sent}one")}],
    });
    let run = run(&node, script, more);
    assert!(run.status == 1 || run.status == 0, "{run:#?}");
    let expected = "nobody\n65534\n0022\n0\ndrwxr-xr-x\n1\n0000000000000000\n/nonexistent nobody nobody\nwritten\nkept\n0\nread\nrefused\n";
    let mut lines: Vec<String> = log(&node, &run).lines().map(str::to_owned).collect();
    let mut wanted: Vec<String> = expected.lines().map(str::to_owned).collect();
    // The two lines of the status come in the kernel's order.
    lines.sort();
    wanted.sort();
    assert_eq!(lines, wanted, "{run:#?}");
    assert_eq!(fs::read_to_string(node.path().join("sent/out/result")).unwrap(), "result\n");
    assert_eq!(fs::read_to_string(node.path().join("sent/one")).unwrap(), "one\n");
    node.assert_clean();
}

#[test]
fn a_user_that_is_not_there_is_named() {
    let node = Node::new();
    let run = run(&node, "true", json!({"user": "no-such-user"}));
    assert_ended(
        &run,
        "Failed",
        json!("user"),
        65,
        "user no-such-user: this machine has no user \"no-such-user\" in /etc/passwd",
    );
    node.assert_clean();
}

#[test]
fn limits_that_cannot_be_enforced_are_told_and_the_task_runs() {
    let node = Node::new().after(NONE);
    let run = run(&node, "echo it ran", json!({"limits": {"cpu": 1, "memory": "64MiB", "pids": 10}}));
    assert_eq!(log(&node, &run), "it ran\n");
    for limit in ["1 processors", "64MiB of memory", "10 processes"] {
        assert!(run.stderr.contains(&format!("the task's limit of {limit} is not enforced")), "{}", run.stderr);
    }
    node.assert_clean();
}
