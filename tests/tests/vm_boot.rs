//! A bare instance becomes a node that runs its task, with no hand on it: a real kernel, systemd, cloud-init, NVMe disks, NFS, FUSE.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::collections::HashSet;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tests::vm::boot::Boot;
use tests::vm::plan::Plan;
use tests::vm::site::{self, BUCKET, Cloud, SECRET, Site, TOKEN};

/// The user's own script, which cloud-init runs when everything else has been started: it may wait for the agent.
const SCRIPT: &str = "\
#!/bin/bash
exec >/dev/ttyS0 2>&1
batch-agent wait task
echo \"the script of the user data waited: $?\"
";

/// The phases in the order in which they are over; the two kinds of mounts are made side by side.
const PHASES: [&str; 8] =
    ["settings", "identity", "disks", "network-mounts", "object-mounts", "bootstrap", "task", "report"];

#[test]
fn a_bare_instance_boots_runs_its_task_and_harms_nothing() {
    let site = Site::new(Cloud::Aws);
    site.imds.set_user_data(&Plan::of(&site).user_data(SCRIPT));
    let boot = site.machine.power_on().boot();
    site.nothing_was_harmed();
    boot.finished();
    the_machine_is_well(&boot);
    the_task_found_and_left_what_it_should(&site);
    the_disks_are_what_was_asked_for(&site, &boot);
    the_story_is_told(&site, &boot);
    no_secret_got_out(&site, &boot);
}

fn the_machine_is_well(boot: &Boot) {
    let cloud_init = boot.said("cloud-init");
    assert!(cloud_init.contains("status: done\n") && cloud_init.contains("DataSourceEc2"), "{cloud_init}");
    assert_eq!(boot.said("failed"), "", "units that have failed");
    assert_eq!(boot.said("targets"), "active\nactive\n", "what waits for the node goes on");
    assert_eq!(boot.said("service"), "Result=success\nNRestarts=0\nExecMainStatus=0\n");
    assert!(boot.console.contains("the script of the user data waited: 0\n"), "{}", boot.console);
}

fn the_task_found_and_left_what_it_should(site: &Site) {
    assert_eq!(site.text("results/nas.sums"), site::as_sums(&site.nas));
    assert_eq!(site.text("results/mapped.sums"), site::as_sums(&site.input));
    assert_eq!(site.text("results/mounted.sums"), site::as_sums(&site.input));
    assert_eq!(site.text("results/computed.sum"), format!("{}  -\n", site.all));
    let whole = site.store.get(BUCKET, "results/deep/all in one").map(|bytes| hex::encode(Sha256::digest(bytes)));
    assert_eq!(whole, Some(site.all.clone()));

    let said = "worker i-0double in xx-test-1, instance 0 of job-vm\ndone\n";
    assert_eq!(site.text("logs/stdout.job-vm.only.0"), said);
    assert_eq!(site.text("logs/stderr.job-vm.only.0"), "a line of errors\n");
    assert_eq!(site.text("logs/bootstrap.i-0double"), "a.bin\nb.bin\ndeep\n");
    let manifest: Value = serde_json::from_str(&site.text("logs/manifest.job-vm.only.0.json")).unwrap();
    assert!(manifest.to_string().contains("all in one"), "{manifest:#}");
}

fn the_disks_are_what_was_asked_for(site: &Site, boot: &Boot) {
    let data = site.text("results/data.mount");
    assert!(data.starts_with("xfs ") && data.contains("noatime"), "{data}");
    let disks = site.text("results/disks");
    // Of each disk the array is on, with all places that the task sees of it.
    let is_there =
        |line: &&str| line.contains(" raid0 ") && line.split([' ', '\\']).any(|place| place.ends_with("/data"));
    assert_eq!(disks.lines().filter(is_there).count(), 2, "the array is on both disks: {disks}");
    // As `nvme-setup status` shows them: what each is, and why it is not used.
    for (device, role, why) in [
        ("nvme0n1 ", "root", "the root file system lies on it"),
        ("nvme1n1 ", "instance store", "md127 is mounted at /data"),
        ("nvme2n1 ", "instance store", "md127 is mounted at /data"),
        ("vda ", "data disk", "it carries data of no known kind: the byte at 209715200 is not zero"),
        ("vdb ", "data disk", "vdb is mounted at /reference"),
    ] {
        let line = boot.said("disks").lines().find(|line| line.starts_with(device)).unwrap_or_default();
        assert!(line.contains(role) && line.contains(why), "{device}: {line:?} of\n{}", boot.said("disks"));
    }
    assert!(!site.machine.disk("data").is_blank());
    let mdstat = boot.said("mdstat");
    assert!(mdstat.contains("active raid0 ") && mdstat.contains("256k chunks"), "{mdstat}");
    // The first volume of the settings is the node's scratch.
    assert!(boot.console.contains("cache_dir=/data/batch-agent/object-cache"), "{}", boot.console);
}

fn the_story_is_told(site: &Site, boot: &Boot) {
    let node: Value = serde_json::from_str(&site.text("report/node.i-0double.json")).unwrap();
    assert_eq!((&node["outcome"]["state"], &node["outcome"]["exit_code"]), (&"Finished".into(), &0.into()), "{node:#}");
    // As the machine's control groups, which are of version 2, have counted it.
    let usage = &node["outcome"]["usage"];
    let used = ["user_ms", "system_ms"].map(|name| usage[name].as_u64().unwrap());
    assert!(used.iter().sum::<u64>() > 0, "{usage}");
    assert!(usage["memory_peak_bytes"].as_u64().unwrap() > 1 << 20, "{usage}");
    assert_eq!(usage["oom_kills"], 0, "{usage}");
    let identity = &node["identity"];
    let who = ["cloud", "region", "zone", "instance_id", "instance_type"].map(|name| identity[name].as_str().unwrap());
    assert_eq!(who, ["aws", "xx-test-1", "xx-test-1a", "i-0double", "m7.large"]);
    assert_eq!((&node["trouble"], &node["agents_before"]), (&Value::Null, &0.into()));

    let events = site.text("report/events.i-0double.jsonl");
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut done: Vec<&str> = events
        .iter()
        .filter(|event| event["event"] == "PhaseDone")
        .map(|event| event["subject"].as_str().unwrap())
        .collect();
    // Whichever came first.
    done[3..5].sort_unstable_by(|a, b| b.cmp(a));
    done[3..5].reverse();
    assert_eq!(done, PHASES, "the end of the report, too, is sent before the agent ends");
    for mount in ["/mnt/nas", "/mnt/input"] {
        assert!(events.iter().any(|event| event["event"] == "MountDone" && event["subject"] == mount), "{mount}");
    }
    let id = |event: &Value| event["id"].as_str().or(event["EventId"].as_str()).unwrap().to_owned();
    let ids: HashSet<String> = events.iter().map(id).collect();
    assert_eq!(ids.len(), events.len(), "every event has an id of its own");
    // The node's own events, and those in the words of the job service.
    let (own, of_the_job): (Vec<&Value>, Vec<&Value>) = events.iter().partition(|event| event["id"].is_string());
    assert!(own[3..].iter().all(|event| event["instance_id"] == "i-0double"), "{events:#?}");
    assert!(of_the_job.iter().any(|event| event["Event"] == "OnInstanceFinished"), "{events:#?}");
    // What the machine itself says is the same.
    for phase in PHASES {
        let line = boot.said("status").lines().find(|line| line.trim_start().starts_with(phase)).unwrap_or_default();
        assert!(line.contains(" done "), "{phase}: {line:?} of\n{}", boot.said("status"));
    }
    assert!(boot.said("status").contains("only.0 Finished"), "{}", boot.said("status"));
    assert!(boot.said("timing").contains("from the agent's start to the program's"), "{}", boot.said("timing"));
}

/// Neither in what was sent, nor on the console, nor anywhere on a disk.
fn no_secret_got_out(site: &Site, boot: &Boot) {
    let has = |text: &str| [SECRET, TOKEN].iter().any(|secret| text.contains(secret));
    for (key, object) in site.store.objects(BUCKET) {
        assert!(!has(&String::from_utf8_lossy(&object.bytes())), "a secret got into {key}");
    }
    assert!(!has(&boot.console) && !has(&boot.report), "a secret got onto the console");
    for serial in ["vol0root", "data", "hypervisor"] {
        assert!(!site.machine.disk(serial).has(&[SECRET, TOKEN]), "a secret got onto the disk {serial}");
    }
}
