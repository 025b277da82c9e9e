//! What else may happen to a node when it boots, in a real machine: a table of case, state and message.
//!
//! Each case boots its machine once or more and takes two minutes for each, so none is part of the ordinary tests.

use std::time::Duration;

use serde_json::Value;
use tests::double::{AccessKey, Fault, Often, When};
use tests::vm::boot::Boot;
use tests::vm::plan::{self, Plan};
use tests::vm::site::{self, BUCKET, Cloud, Site};
use tests::vm::table::Case;

/// What the user's own script does, as cloud-init runs it.
const SCRIPT: &str = "#!/bin/sh\necho a script of the user >/dev/ttyS0";

/// Where the killer is in the image.
const KILLER: [(&str, &str); 2] =
    [("killer.sh", "/usr/local/sbin/killer.sh"), ("killer.service", "/etc/systemd/system/killer.service")];

/// What keeps the NAS from coming up.
const NO_NAS: [(&str, &str); 1] = [("none.conf", "/etc/systemd/system/nfs-server.service.d/none.conf")];

/// What makes the NAS one that hangs.
const SILENT_NAS: [(&str, &str); 1] = [("silent.conf", "/etc/systemd/system/nfs-server.service.d/silent.conf")];

/// The node broke as [`Boot::broke`] says, and nothing was harmed; a row of the table.
#[track_caller]
fn broke(case: &Case, site: &Site, boot: &Boot, phase: &str, status: u8, words: &[&str]) {
    let message = boot.broke(phase, status, words);
    site.nothing_was_harmed();
    case.came_to(&format!("{phase} failed"), &format!("{message} (exit status {status})"));
}

/// The task has ended well and found what it should, and nothing was harmed.
#[track_caller]
fn finished(site: &Site, boot: &Boot) {
    boot.finished();
    assert_eq!(site.text("results/computed.sum"), format!("{}  -\n", site.all));
    assert_eq!(site.text("results/mapped.sums"), site::as_sums(&site.input));
    site.nothing_was_harmed();
}

/// The array of the instance's own disks is there, and in use.
#[track_caller]
fn has_its_array(boot: &Boot) {
    let (mdstat, mounts) = (boot.said("mdstat"), boot.said("mounts"));
    let array = mdstat.lines().find(|line| line.contains(" : active raid0 ")).unwrap_or_default();
    assert_eq!(array.matches("nvme").count(), 2, "{mdstat}");
    let device = array.split(' ').next().unwrap_or_default();
    assert!(mounts.contains(&format!("/dev/{device} /data xfs ")), "{array:?}: {mounts}");
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_reboot_and_stop_and_start() {
    let case = Case::begin("reboot, stop and start");
    let mut site = Site::new(Cloud::Aws);
    site.imds.set_user_data(&Plan::of(&site).user_data(SCRIPT));
    let first = site.machine.power_on().boot();
    finished(&site, &first);
    has_its_array(&first);
    let kept = first.said("kept").to_owned();
    assert!(kept.starts_with(&site.all), "what the task has left on the array: {kept:?}");
    case.came_to("finished", "switched on for the first time");
    site.store.delete(BUCKET, "results/computed.sum");

    // The same disks: everything is found again, and the task has ended before.
    let again = site.machine.power_on().boot();
    ended_before(&site, &again);
    has_its_array(&again);
    assert_eq!(again.said("kept"), kept);
    assert!(!again.console.contains("make xfs") && !again.console.contains("make ext4"), "{}", again.console);
    assert!(!again.console.contains("make a RAID0"), "{}", again.console);
    case.came_to("finished", "rebooted: array and file systems as they were, the task was not run again");

    // The instance's own disks are new ones.
    site.empty_instance_store();
    let anew = site.machine.power_on().boot();
    ended_before(&site, &anew);
    has_its_array(&anew);
    assert_eq!(anew.said("kept"), "");
    assert!(anew.console.contains("make xfs") && anew.console.contains("make a RAID0"), "{}", anew.console);
    assert!(!anew.console.contains("make ext4"), "the cloud disk is as it was: {}", anew.console);
    case.came_to("finished", "stopped and started: its own disks made anew, the cloud disk as it was");
}

/// The node is prepared and knows that its task has ended in a boot before this one.
#[track_caller]
fn ended_before(site: &Site, boot: &Boot) {
    boot.finished();
    assert!(boot.console.contains("it ended before: only.0 Finished"), "{}", boot.console);
    assert!(site.store.get(BUCKET, "results/computed.sum").is_none(), "the task was run again");
    assert_eq!(boot.said("targets"), "active\nactive\n");
    site.nothing_was_harmed();
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_agent_killed_in_every_phase() {
    let case = Case::begin("agent killed in every phase");
    let site = Site::with(Cloud::Aws, &KILLER);
    site.imds.set_user_data(&Plan::of(&site).user_data(SCRIPT));
    // Else it is over before it can be killed in it.
    site.store.fault(Fault::Latency(Duration::from_secs(3)), When::any().prefix("report/"), Often::Always);
    let boot = site.machine.power_on().boot();
    let phases = ["identity", "disks", "network-mounts", "object-mounts", "bootstrap", "task", "report"];
    for phase in phases {
        let killed = format!("killer: {phase}: killed");
        assert!(boot.console.contains(&killed), "{phase} was not met\n{}", boot.console);
    }
    finished(&site, &boot);
    assert_eq!(boot.story["agents_before"], phases.len());
    // The start-up script and the task have run once.
    assert_eq!(site.text("logs/stdout.job-vm.only.0").matches("worker ").count(), 1);
    assert!(site.store.get(BUCKET, "logs/stdout.job-vm.only.0.1").is_none());
    assert_eq!(site.text("logs/bootstrap.i-0double"), "a.bin\nb.bin\ndeep\n");
    let begun: Vec<String> = phases.iter().map(|phase| format!("{phase} {}x", boot.step(phase)["begun"])).collect();
    case.came_to("finished", &format!("the eighth agent has done the rest; begun: {}", begun.join(", ")));
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_alibaba_with_its_metadata_role_and_oss() {
    let case = Case::begin("Alibaba Cloud: metadata, RAM role, OSS");
    let site = Site::new(Cloud::Alibaba);
    let mut plan = Plan::of(&site);
    plan.more = "at_end: poweroff\n".to_owned();
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let console = site.machine.power_on().off();
    assert!(console.contains("powering off"), "{console}");
    assert_eq!(site.text("results/computed.sum"), format!("{}  -\n", site.all));
    assert_eq!(site.text("results/mapped.sums"), site::as_sums(&site.input));
    assert!(site.text("results/disks").contains(" raid0 "), "its own NVMe disks have any model");
    assert!(site.text("logs/stdout.job-vm.only.0").starts_with("worker i-double in cn-test,"));
    let node: Value = serde_json::from_str(&site.text("report/node.i-double.json")).unwrap_or_default();
    assert_eq!((&node["identity"]["cloud"], &node["outcome"]["state"]), (&"alibaba".into(), &"Finished".into()));
    site.nothing_was_harmed();
    case.came_to("finished", "and has switched itself off");
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_newer_kernel_reads_by_itself() {
    let case = Case::begin("the kernel from backports");
    let site = Site::with_newer_kernel(Cloud::Aws);
    let mut plan = Plan::of(&site);
    // Whole in the cache after the first time, and opened anew for the second.
    plan.bootstrap =
        "bootstrap: {command: \"/bin/sh -c 'cat /mnt/input/a.bin | md5sum; sleep 5; cat /mnt/input/a.bin | md5sum; \
                      echo ready > /mnt/nas/from-the-bootstrap'\"}\n"
            .to_owned();
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let boot = site.machine.power_on().boot();
    finished(&site, &boot);
    let opened = boot.said("fuse-oss").lines().find(|line| line.contains("read by the kernel alone"));
    let opened = opened.unwrap_or_else(|| panic!("{}", boot.said("fuse-oss"))).split_whitespace().collect::<Vec<_>>();
    let opened = opened.join(" ");
    assert!(!opened.contains(" 0 read by the kernel alone"), "{opened}");
    case.came_to("finished", &format!("Linux {}: {opened}", boot.said("kernel").trim()));
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_nas_is_down() {
    let case = Case::begin("NFS server down");
    let site = Site::with(Cloud::Aws, &NO_NAS);
    let mut plan = Plan::of(&site);
    plan.nas = "version: '4.1', deadline: 20s".to_owned();
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let boot = site.machine.power_on().boot();
    broke(&case, &site, &boot, "network-mounts", 71, &["127.0.0.1:/srv/nas", "refused"]);
    assert_eq!(boot.state("object-mounts"), "done", "one dead server costs its own mount");
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_nas_is_down_and_not_required() {
    let case = Case::begin("NFS server down, required: false");
    let site = Site::with(Cloud::Aws, &NO_NAS);
    let mut plan = Plan::of(&site);
    plan.nas = "version: '4.1', deadline: 20s, required: false".to_owned();
    plan.bootstrap = String::new();
    plan.command = "/bin/true".to_owned();
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let boot = site.machine.power_on().boot();
    boot.finished();
    site.nothing_was_harmed();
    let mount = &boot.story["mounts"][0];
    let message = mount["message"].as_str().unwrap_or_default();
    assert!(mount["state"] == "failed" && message.contains("refused"), "{mount}");
    case.came_to("finished", &format!("a mount has failed: {message}"));
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_nas_hangs() {
    let case = Case::begin("NFS server that never answers");
    let site = Site::with(Cloud::Aws, &SILENT_NAS);
    let mut plan = Plan::of(&site);
    plan.nas = "version: '4.1', deadline: 20s".to_owned();
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let boot = site.machine.power_on().boot();
    broke(&case, &site, &boot, "network-mounts", 71, &["127.0.0.1:/srv/nas", "did not answer within 20s"]);
    assert_eq!(boot.state("object-mounts"), "done", "one hung server costs its own mount and its deadline");
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_bad_user_data() {
    let case = Case::begin("bad user data");
    let site = Site::new(Cloud::Aws);
    let settings = Plan::of(&site).text().replace("writable: true", "writeable: true");
    site.imds.set_user_data(&plan::user_data(&settings, SCRIPT));
    let boot = site.machine.power_on().boot();
    let words = ["mounts[0].writeable", "did you mean writable?", "/etc/batch-agent/node.yaml"];
    broke(&case, &site, &boot, "settings", 78, &words);
    assert_eq!(boot.state("disks"), "waiting");
    assert!(site.machine.disk("data").is_blank(), "a node that is not understood touches no disk");
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_out_of_memory() {
    let case = Case::begin("a task beyond its limit of memory");
    let site = Site::new(Cloud::Aws);
    let mut plan = Plan::of(&site);
    // It looks for the end of a line in what has none, and keeps everything until then.
    plan.command = "tail /dev/zero".to_owned();
    plan.limits = "{memory: 96MiB}".to_owned();
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let boot = site.machine.power_on().boot();
    site.nothing_was_harmed();
    let outcome = &boot.story["outcome"];
    assert_eq!((&outcome["state"], &outcome["cause"]), (&"Failed".into(), &"out-of-memory".into()), "{outcome:#}");
    // Where the kernel kills a whole group it may count the one that it began with twice.
    let kills = outcome["usage"]["oom_kills"].as_u64().unwrap_or_default();
    assert!(outcome["signal"] == 9 && (1..=2).contains(&kills), "{outcome:#}");
    let peak = outcome["usage"]["memory_peak_bytes"].as_u64().unwrap_or_default();
    assert!((64 << 20..=96 << 20).contains(&peak), "{outcome:#}");
    // A failed task is no failed node.
    assert_eq!((&boot.story["trouble"], boot.section("wait").1), (&Value::Null, "0"), "{}", boot.console);
    assert_eq!((boot.state("report"), boot.said("failed")), ("done", ""), "{}", boot.console);
    case.came_to("task failed", outcome["message"].as_str().unwrap_or_default());
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_wrong_credentials() {
    let case = Case::begin("wrong credentials");
    let site = Site::new(Cloud::Aws);
    site.store.set_keys(vec![AccessKey::new("SOMEBODY", "else")]);
    site.imds.set_user_data(&Plan::of(&site).user_data(SCRIPT));
    let boot = site.machine.power_on().boot();
    broke(&case, &site, &boot, "object-mounts", 77, &["cannot mount s3://lab/input/", "403"]);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_vm_missing_disk() {
    let case = Case::begin("missing disk");
    let site = Site::new(Cloud::Aws);
    let mut plan = Plan::of(&site);
    plan.disks = plan.disks.replace("count: 2", "count: 3").replace("wait: 10m", "wait: 5s");
    site.imds.set_user_data(&plan.user_data(SCRIPT));
    let boot = site.machine.power_on().boot();
    broke(&case, &site, &boot, "disks", 71, &["/data", "3", "2"]);
    assert_eq!(boot.state("object-mounts"), "waiting", "nothing is mounted after a disk that failed");
}
