//! A bare instance becomes a node that runs its task, with no hand on it: a real kernel, systemd, cloud-init, NVMe disks, NFS, FUSE.

use std::time::Duration;

use serde_json::Value;
use tests::vm::site::{self, BUCKET, Cloud, SECRET, Site, TOKEN};

/// How long a machine may take from power-on to its task, its story and power-off, everything emulated on a busy host.
const LIFE: Duration = Duration::from_secs(480);

/// What the user's own script does: cloud-init runs it when everything else has been started.
const SCRIPT: &str = "\
#!/bin/bash
exec >/dev/ttyS0 2>&1
batch-agent wait task --timeout 400
echo \"wait: $?\"
batch-agent status
batch-agent status --timing
nvme-setup status
systemctl --failed --no-legend
grep -h WARN /var/log/cloud-init.log
echo '== the script of the user data is done'
systemctl --no-block poweroff
";

fn settings(site: &Site) -> String {
    let at = |key: &str| site.location(key);
    format!(
        "\
disks:
  volumes:
    - {{what: instance-store, mount: /data, count: 2}}
    - {{what: only-empty, mount: /reference, fs: ext4}}
mounts:
  - {{source: 'nas://127.0.0.1:/srv/nas', target: /mnt/nas, writable: true, version: '4.1'}}
  - {{source: '{input}', target: /mnt/input}}
{storage}bootstrap:
  command: /bin/sh -c 'ls /mnt/input && echo ready > /mnt/nas/from-the-bootstrap'
  log: {logs}
task:
  job_id: job-vm
  job:
    version: 1
    name: vm
    tasks:
      only:
        command: ./work.sh
        package: {package}
        inputs: [{{source: '{input}', target: /home/input/}}]
        outputs: [{{source: /home/output/, target: '{results}'}}]
        stdout: {logs}
        stderr: {logs}
        timeout: 5m
report: {{directory: '{report}'}}
",
        input = at("input/"),
        logs = at("logs/"),
        results = at("results/"),
        report = at("report/"),
        package = at("work.sh"),
        storage = site.storage(),
    )
}

#[test]
fn a_bare_instance_boots_runs_its_task_and_harms_nothing() {
    let site = Site::new(Cloud::Aws);
    site.imds.set_user_data(&site::user_data(&settings(&site), SCRIPT));
    let console = site.machine.power_on().off(LIFE);
    println!("{console}");
    site.nothing_was_harmed();
    assert!(console.contains("== the script of the user data is done"), "{console}");

    assert_eq!(site.text("results/nas.sums"), site::as_sums(&site.nas));
    assert_eq!(site.text("results/mapped.sums"), site::as_sums(&site.input));
    assert_eq!(site.text("results/mounted.sums"), site::as_sums(&site.input));
    assert!(site.text("results/computed.sum").starts_with(&site.all));
    let data = site.text("results/data.mount");
    assert!(data.starts_with("xfs ") && data.contains("noatime"), "{data}");
    let disks = site.text("results/disks");
    assert!(disks.contains("raid0"), "{disks}");

    assert!(site.text("logs/stdout.job-vm.only.0").ends_with("done\n"));
    assert_eq!(site.text("logs/stderr.job-vm.only.0"), "a line of errors\n");
    let node: Value = serde_json::from_str(&site.text("report/node.i-0double.json")).unwrap_or_default();
    assert_eq!(node["outcome"]["state"], "finished", "{node:#}");
    let events = site.text("report/events.i-0double.jsonl");
    for event in ["PhaseDone", "MountDone", "NodeDone"] {
        assert!(events.contains(event), "no {event}: {events}");
    }
    let everything = site.store.objects(BUCKET).into_iter().filter(|(key, _)| !key.starts_with("input/"));
    for text in everything.map(|(_, object)| String::from_utf8_lossy(&object.bytes()).into_owned()).chain([console]) {
        assert!(!text.contains(SECRET) && !text.contains(TOKEN), "a secret got out: {text}");
    }
}
