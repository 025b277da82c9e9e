//! What else may happen to a node when it boots, in a real machine: a table of case, state and message.
//!
//! Each case boots its machine once or more and takes two or three minutes for each, so none is part of the ordinary tests.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::time::Duration;

use serde_json::Value;
use tests::double::AccessKey;
use tests::vm::machine::Running;
use tests::vm::plan::{self, Plan};
use tests::vm::site::{self, BUCKET, Cloud, Site};

/// How long a machine may take from power-on to power-off: some two minutes where nothing else runs, much longer on a busy host.
const LIFE: Duration = Duration::from_secs(900);

/// What an agent says when there is nothing left to do.
const READY: &str = "the node has done its work";

/// Reports and powers off once the agent has come to an end, whichever.
const SCRIPT: &str = "\
#!/bin/bash
exec >/dev/ttyS0 2>&1
batch-agent wait task --timeout 300
echo \"wait: $?\"
systemctl show --property Result --property ExecMainStatus batch-agent.service
systemctl is-active batch-node-mounts.target batch-node-ready.target
echo '== story'
batch-agent status --json
echo '== end of story'
grep /mnt/nas /proc/mounts
ls /data /mnt/input
systemctl --no-block poweroff
";

/// A boot that is over.
struct Boot {
    console: String,
    story: Value,
}

impl Boot {
    fn of(running: Running) -> Self {
        let console = running.off(LIFE);
        let story = console.split_once("== story\n").and_then(|(_, rest)| rest.split_once("== end of story"));
        // The kernel and the journal write to the same console.
        let text: String =
            story.map(|(text, _)| text.lines().filter(|line| !line.starts_with('[')).collect()).unwrap_or_default();
        let story = serde_json::from_str(&text).unwrap_or_else(|error| panic!("no story ({error}) in:\n{console}"));
        Self { console, story }
    }

    fn state(&self, phase: &str) -> &str {
        let steps = self.story["steps"].as_array().unwrap();
        steps.iter().find(|step| step["phase"] == phase).unwrap()["state"].as_str().unwrap()
    }

    /// The agent failed in this phase with a message that has all of `words`, with this exit status, and did nothing after it.
    #[track_caller]
    fn broke(&self, phase: &str, status: u8, words: &[&str]) {
        assert_eq!((self.state(phase), self.state("task")), ("failed", "waiting"), "{}", self.console);
        let message = self.story["trouble"]["message"].as_str().unwrap_or_default();
        for word in words {
            assert!(message.contains(word), "no {word:?} in {message:?}");
        }
        assert!(self.console.contains(&format!("ExecMainStatus={status}\n")), "{}", self.console);
        assert!(self.console.contains("wait: 1\n"), "{}", self.console);
        println!("{phase:<15} failed    {message}");
    }

    #[track_caller]
    fn finished(&self) {
        assert_eq!(self.story["outcome"]["state"], "Finished", "{}", self.console);
        assert_eq!(self.story["trouble"], Value::Null, "{}", self.console);
        println!("{:<15} finished", "task");
    }
}

#[test]
#[ignore = "soak"]
fn soak_vm_reboot_and_stop_and_start() {
    let mut site = Site::new(Cloud::Aws);
    site.imds.set_user_data(&Plan::of(&site).user_data(SCRIPT));
    // cloud-init runs such a script once per instance.
    let boot = Boot::of(site.machine.power_on());
    boot.finished();
    site.nothing_was_harmed();
    site.store.delete(BUCKET, "results/computed.sum");

    // The same disks: everything is found again, and the task has ended before.
    let again = site.machine.power_on().off_after(READY, LIFE);
    assert!(again.contains("it ended before: only.0 Finished"), "{again}");
    assert!(!again.contains("make xfs") && !again.contains("make ext4") && !again.contains("make a RAID0"), "{again}");
    assert!(site.store.get(BUCKET, "results/computed.sum").is_none(), "the task was run again");

    // The instance's own disks are new ones.
    site.empty_instance_store();
    let anew = site.machine.power_on().off_after(READY, LIFE);
    assert!(anew.contains("make xfs") && anew.contains("make a RAID0") && !anew.contains("make ext4"), "{anew}");
    assert!(anew.contains("it ended before: only.0 Finished"), "{anew}");
    site.nothing_was_harmed();
}

#[test]
#[ignore = "soak"]
fn soak_vm_agent_killed_in_every_phase() {
    let files = [("killer.sh", "/usr/local/sbin/killer.sh"), ("killer.service", "/etc/systemd/system/killer.service")];
    let site = Site::with(Cloud::Aws, &files);
    site.imds.set_user_data(&Plan::of(&site).user_data(SCRIPT));
    let boot = Boot::of(site.machine.power_on());
    for phase in ["identity", "disks", "network-mounts", "object-mounts", "bootstrap", "task", "report"] {
        assert!(boot.console.contains(&format!("killer: {phase}: killed")), "{phase} was not met\n{}", boot.console);
    }
    boot.finished();
    assert_eq!(boot.story["agents_before"], 7);
    assert_eq!(site.text("results/computed.sum"), format!("{}  -\n", site.all));
    // The start-up script and the task have run once.
    assert_eq!(site.text("logs/stdout.job-vm.only.0").matches("worker ").count(), 1);
    assert!(site.store.get(BUCKET, "logs/stdout.job-vm.only.0.1").is_none());
    assert_eq!(site.text("logs/bootstrap.i-0double"), "a.bin\nb.bin\ndeep\n");
    site.nothing_was_harmed();
}

#[test]
#[ignore = "soak"]
fn soak_vm_alibaba_with_its_metadata_role_and_oss() {
    let site = Site::new(Cloud::Alibaba);
    let mut plan = Plan::of(&site);
    plan.more = "at_end: poweroff\n".to_owned();
    site.imds.set_user_data(&plan.user_data("#!/bin/sh\necho user data >/dev/ttyS0"));
    let console = site.machine.power_on().off(LIFE);
    assert!(console.contains("powering off"), "{console}");
    assert_eq!(site.text("results/computed.sum"), format!("{}  -\n", site.all));
    assert_eq!(site.text("results/mapped.sums"), site::as_sums(&site.input));
    assert!(site.text("results/disks").contains(" raid0 "), "its own NVMe disks have any model");
    assert!(site.text("logs/stdout.job-vm.only.0").starts_with("worker i-double in cn-test,"));
    let node: Value = serde_json::from_str(&site.text("report/node.i-double.json")).unwrap();
    assert_eq!((&node["identity"]["cloud"], &node["outcome"]["state"]), (&"alibaba".into(), &"Finished".into()));
    site.nothing_was_harmed();
}

#[test]
#[ignore = "soak"]
fn soak_vm_newer_kernel_reads_by_itself() {
    let site = Site::with_newer_kernel(Cloud::Aws);
    let mut plan = Plan::of(&site);
    // Whole in the cache after the first time, and opened anew for the second.
    plan.bootstrap = "bootstrap: {command: \"/bin/sh -c 'cat /mnt/input/a.bin | md5sum; sleep 5; cat /mnt/input/a.bin | md5sum; \
                      echo ready > /mnt/nas/from-the-bootstrap; uname -r > /dev/ttyS0; fuse-oss status > /dev/ttyS0'\"}\n"
        .to_owned();
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let boot = Boot::of(site.machine.power_on());
    boot.finished();
    let opened = boot.console.lines().find(|line| line.contains("read by the kernel alone")).unwrap_or_default();
    assert!(!opened.is_empty() && !opened.contains(" 0 read by the kernel alone"), "{opened:?} in\n{}", boot.console);
    assert_eq!(site.text("results/computed.sum"), format!("{}  -\n", site.all));
    site.nothing_was_harmed();
}

#[test]
#[ignore = "soak"]
fn soak_vm_nas_is_down() {
    let site = Site::with(Cloud::Aws, &[("none.conf", "/etc/systemd/system/nfs-server.service.d/none.conf")]);
    let mut plan = Plan::of(&site);
    plan.nas = "version: '4.1', deadline: 20s".to_owned();
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let boot = Boot::of(site.machine.power_on());
    boot.broke("network-mounts", 71, &["127.0.0.1:/srv/nas", "refused"]);
    assert_eq!(boot.state("object-mounts"), "done", "one dead server costs its own mount");
    site.nothing_was_harmed();
}

#[test]
#[ignore = "soak"]
fn soak_vm_nas_is_down_and_not_required() {
    let site = Site::with(Cloud::Aws, &[("none.conf", "/etc/systemd/system/nfs-server.service.d/none.conf")]);
    let mut plan = Plan::of(&site);
    plan.nas = "version: '4.1', deadline: 10s, required: false".to_owned();
    plan.bootstrap = String::new();
    plan.command = "/bin/true".to_owned();
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let boot = Boot::of(site.machine.power_on());
    boot.finished();
    let mount = &boot.story["mounts"][0];
    assert!(mount["state"] == "failed" && mount["message"].as_str().unwrap().contains("refused"), "{mount}");
}

#[test]
#[ignore = "soak"]
fn soak_vm_bad_user_data() {
    let site = Site::new(Cloud::Aws);
    let plan = Plan::of(&site);
    let settings = plan.text().replace("writable: true", "writeable: true");
    site.imds.set_user_data(&plan::user_data(&settings, SCRIPT));
    let boot = Boot::of(site.machine.power_on());
    boot.broke("settings", 78, &["mounts[0].writeable", "did you mean writable?", "/etc/batch-agent/node.yaml"]);
    assert_eq!(boot.state("disks"), "waiting");
    assert!(site.machine.disk("data").is_blank(), "a node that is not understood touches no disk");
    site.nothing_was_harmed();
}

#[test]
#[ignore = "soak"]
fn soak_vm_wrong_credentials() {
    let site = Site::new(Cloud::Aws);
    site.store.set_keys(vec![AccessKey::new("SOMEBODY", "else")]);
    site.imds.set_user_data(&Plan::of(&site).user_data(SCRIPT));
    let boot = Boot::of(site.machine.power_on());
    boot.broke("object-mounts", 77, &["cannot mount s3://lab/input/", "403"]);
    assert_eq!(boot.state("bootstrap"), "waiting");
    site.nothing_was_harmed();
}

#[test]
#[ignore = "soak"]
fn soak_vm_missing_disk() {
    let site = Site::new(Cloud::Aws);
    let mut plan = Plan::of(&site);
    plan.disks = plan.disks.replace("count: 2", "count: 3").replace("disks:", "disks:\n  wait: 5s");
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let boot = Boot::of(site.machine.power_on());
    boot.broke("disks", 71, &["/data", "3", "2"]);
    assert_eq!(boot.state("object-mounts"), "waiting", "nothing is mounted after a disk that failed");
    site.nothing_was_harmed();
}
