//! Tasks under control where systemd owns the tree of control groups, of version 2 or of version 1: in a real machine.
//!
//! One machine boots and runs one job after the other; what each came to is in its report.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use serde_json::{Value, json};
use tests::vm::plan::Plan;
use tests::vm::site::{Cloud, Site};

/// Which control groups the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A group of the task's own, with less memory than it wants. What is in there is killed and the rest goes on.
const INNER: &str = "\
    if [ -d /sys/fs/cgroup/memory ]; then
        inner=/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)/inner
        mkdir $inner && echo 16777216 > $inner/memory.limit_in_bytes
        (echo 0 > $inner/cgroup.procs; exec tail /dev/zero)
        exit 0
    fi
    own=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
    mkdir $own/rest $own/inner && echo 0 > $own/rest/cgroup.procs && echo +memory > $own/cgroup.subtree_control
    echo 16777216 > $own/inner/memory.max
    (echo 0 > $own/inner/cgroup.procs; exec tail /dev/zero)
    exit 0";

/// Daemons, stopped processes, processes that ignore what they are told, and no end of them.
const STUBBORN: &str = "\
    trap '' TERM HUP INT
    setsid sh -c 'sleep 5001 & sleep 5001' &
    (setsid sh -c '(sleep 5001 &) &' &)
    sleep 5001 & kill -STOP $!
    sh -c 'while :; do sleep 5001 & sleep 0.05; done' &
    while :; do sleep 5001; done";

/// The jobs by name: the script, and what else the description says.
fn jobs() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("where", "cat /proc/self/cgroup", json!({})),
        ("greedy", "exec tail /dev/zero", json!({"limits": {"memory": "48MiB"}})),
        ("grouped", "tail /dev/zero; echo went on", json!({"limits": {"memory": "48MiB"}})),
        ("inner", INNER, json!({})),
        ("honest", "exit 137", json!({"limits": {"memory": "48MiB"}})),
        ("stubborn", STUBBORN, json!({"timeout": 4, "limits": {"pids": 200}})),
        ("busy", "timeout 4 sh -c 'while :; do :; done'; exit 0", json!({"limits": {"cpu": 0.25}})),
        ("other", "id -un; grep NoNewPrivs /proc/self/status", json!({"user": "nobody"})),
    ]
}

fn script() -> String {
    let mut script = "\
#!/bin/bash
exec >/dev/ttyS1 2>&1
batch-agent wait task
cd /root
"
    .to_owned();
    for (name, line, more) in jobs() {
        let mut task =
            json!({"command": ["/bin/sh", "-c", line], "stdout": "file:///root/logs/", "stderr": "file:///root/logs/"});
        tests::agent::merge(&mut task, &more);
        let job = json!({"version": 1, "tasks": {"task": task}});
        script += &format!(
            "cat >{name}.json <<'EOF'\n{job}\nEOF\n\
             batch-agent run {name}.json --job-id {name} --grace 1 >{name}.out 2>{name}.err\n\
             echo; echo \"== {name} $(cat {name}.out)\"; sed 's/^/-- {name} /' {name}.err; sed 's/^/++ {name} /' logs/stdout.{name}.task.0\n"
        );
    }
    // An agent that is killed leaves its task in its scope, and the next one takes both away.
    script += "\
sed 's/cat .proc.self.cgroup/sleep 5002/' where.json >left.json
batch-agent run left.json --job-id left >/dev/null 2>&1 &
until pgrep -f 'sleep 5002' >/dev/null; do sleep 0.2; done
kill -9 %1; wait
echo \"== scopes $(systemctl list-units --no-legend --plain 'batch-*.scope' | grep -c left)\"
batch-agent cancel left; sed 's/^/-- cancel /' <<<\"$?\"
batch-agent run where.json --job-id again >/dev/null 2>&1
echo \"== rest $(pgrep -fc 'sleep 500[12]') $(systemctl list-units --all --no-legend --plain 'batch-*.scope' | wc -l) $(find /sys/fs/cgroup -name 'batch-*.scope' -o -name 'batch-*.task.0-*' | wc -l)\"
for i in 1 2 3 4 5; do date +%s%N; batch-agent run where.json --job-id noop >/dev/null 2>&1; done | sed 's/^/time /'
date +%s%N | sed 's/^/time /'
";
    script
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_tasks_under_systemd_and_version_2() {
    tasks_under_systemd(Version::V2);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_tasks_under_systemd_and_version_1() {
    tasks_under_systemd(Version::V1);
}

fn tasks_under_systemd(version: Version) {
    let mut site = Site::new(Cloud::Aws);
    if version == Version::V1 {
        for argument in ["systemd.unified_cgroup_hierarchy=0", "systemd.legacy_systemd_cgroup_controller=1"] {
            site.machine.tell_kernel(argument);
        }
    }
    site.imds.set_user_data(&Plan::of(&site).user_data(&script()));
    let report = site.machine.power_on().boot().report;
    println!("{report}");

    let line = |prefix: &str| report.lines().find_map(|line| line.trim().strip_prefix(prefix));
    let outcome = |name: &str| -> Value {
        let text = line(&format!("== {name} ")).unwrap_or_else(|| panic!("no outcome of {name}"));
        let job: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"));
        job["tasks"][0]["instances"][0].clone()
    };
    let ended = |name: &str| {
        let outcome = outcome(name);
        let text = |key: &str| outcome[key].as_str().unwrap_or_default().to_owned();
        (text("state"), text("cause"), outcome["exit_status"].as_u64().unwrap(), text("message"))
    };
    let said = |name: &str, words: &str| {
        let prefix = format!("-- {name} ");
        report.lines().any(|line| line.trim().starts_with(&prefix) && line.contains(words))
    };
    let printed = |name: &str| line(&format!("++ {name} ")).unwrap_or_default().to_owned();

    let groups: Vec<&str> = report.lines().filter_map(|line| line.trim().strip_prefix("++ where ")).collect();
    let (scope, top) = ("/batch.slice/batch-agent.slice/batch-where.task.0-", "/batch-agent/batch-where.task.0-");
    // In version 1 the freezer is none of systemd's: there the group is ours, at the top.
    let trees: &[(&str, &str, &str)] = match version {
        Version::V1 => &[
            ("name=systemd", scope, ".scope"),
            ("memory", scope, ".scope/task"),
            ("cpu,cpuacct", scope, ".scope/task"),
            ("pids", scope, ".scope/task"),
            ("freezer", top, "/task"),
        ],
        Version::V2 => &[("", scope, ".scope/task")],
    };
    for (tree, begin, end) in trees {
        let group = groups.iter().find_map(|line| line.split_once(':')?.1.strip_prefix(tree)?.strip_prefix(':'));
        let group = group.unwrap_or_else(|| panic!("not in {tree}: {groups:?}"));
        assert!(group.starts_with(begin) && group.ends_with(end), "{tree}: {group}");
    }
    let ran_out = |name: &str| {
        let (state, cause, status, message) = ended(name);
        assert_eq!((state.as_str(), cause.as_str(), status), ("Failed", "out-of-memory", 137), "{name}: {message}");
    };
    ran_out("greedy");
    assert_eq!(outcome("greedy")["usage"]["oom_kills"], 1);
    if version == Version::V1 {
        let (state, _, status, message) = ended("grouped");
        assert_eq!((state.as_str(), status), ("Finished", 0), "{message}");
        assert_eq!(printed("grouped"), "went on", "in version 1 processes are killed one by one");
    } else {
        ran_out("grouped");
        assert_eq!(printed("grouped"), "", "a task that is out of memory ends as a whole");
    }
    let (state, cause, status, message) = ended("inner");
    assert_eq!((state.as_str(), cause.as_str(), status), ("Finished", "", 0), "{message}");
    assert!(message.contains("the kernel has killed one process of it for want of memory"), "{message}");
    let (_, cause, status, message) = ended("honest");
    assert_eq!((cause.as_str(), status), ("user", 137));
    assert!(message.contains("exit code 137, and not for want of memory"), "{message}");
    let (_, cause, _, message) = ended("stubborn");
    assert_eq!(cause, "timeout", "{message}");
    assert!(said("stubborn", "of its processes had to be killed; none is left"));
    let usage = &outcome("busy")["usage"];
    let used = usage["user_ms"].as_u64().unwrap() + usage["system_ms"].as_u64().unwrap();
    let elapsed = outcome("busy")["elapsed_ms"].as_u64().unwrap();
    assert!(used > 100 && used < elapsed / 2, "{used} ms of {elapsed} ms");
    assert_eq!(printed("other"), "nobody");
    assert!(report.contains("NoNewPrivs:\t1"), "no_new_privs");
    for (name, ..) in jobs() {
        for trouble in ["is not enforced", "control group", "scope"] {
            assert!(!said(name, trouble), "{name}: {trouble}");
        }
    }
    assert_eq!(line("== scopes "), Some("1"), "the task of an agent that was killed is still in its scope");
    assert!(said("cancel", "0"));
    assert_eq!(line("== rest "), Some("0 0 0"));
}
