//! What a node is told to do: settings in the words of `node.yaml`, and the user data that brings them.

use super::site::Site;

/// A node's settings, section by section, so that a case can say something else in one of them.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `disks`.
    pub disks: String,
    /// The NAS among `mounts`: the rest of its line.
    pub nas: String,
    /// `storage`.
    pub storage: String,
    /// `bootstrap`.
    pub bootstrap: String,
    /// The program of the task.
    pub command: String,
    /// What it may use of the machine, as a map in one line.
    pub limits: String,
    /// More sections.
    pub more: String,
    at: String,
}

impl Plan {
    /// Everything that a node can be asked to do, in the bucket of `site`. Deadlines are those of a busy host.
    pub fn of(site: &Site) -> Self {
        let at = site.location("");
        Self {
            disks: "\
disks:
  wait: 10m
  volumes:
    - {what: instance-store, mount: /data, count: 2}
    - {what: only-empty, mount: /reference, fs: ext4}
"
            .to_owned(),
            nas: "version: '4.1', deadline: 10m".to_owned(),
            storage: site.storage(),
            bootstrap: format!(
                "\
bootstrap:
  command: /bin/sh -c 'ls /mnt/input && echo ready > /mnt/nas/from-the-bootstrap'
  log: {at}logs/
"
            ),
            command: "./work.sh".to_owned(),
            limits: "{}".to_owned(),
            more: String::new(),
            at,
        }
    }

    /// The settings.
    pub fn text(&self) -> String {
        let Self { disks, nas, storage, bootstrap, command, limits, more, at } = self;
        format!(
            "\
{disks}mounts:
  - {{source: 'nas://127.0.0.1:/srv/nas', target: /mnt/nas, writable: true, {nas}}}
  - {{source: '{at}input/', target: /mnt/input, deadline: 10m}}
{storage}{bootstrap}task:
  job_id: job-vm
  job:
    version: 1
    name: vm
    tasks:
      only:
        command: {command}
        limits: {limits}
        package: {at}work.sh
        inputs: [{{source: '{at}input/', target: /home/input/}}]
        outputs: [{{source: /home/output/, target: '{at}results/'}}]
        stdout: {at}logs/
        stderr: {at}logs/
        timeout: 20m
report: {{directory: '{at}report/'}}
{more}"
        )
    }

    /// User data in MIME form, as clouds pass it on to cloud-init: the settings, and a script.
    pub fn user_data(&self, script: &str) -> String {
        user_data(&self.text(), script)
    }
}

/// User data in MIME form with these settings and this script.
pub fn user_data(settings: &str, script: &str) -> String {
    let settings: String = settings.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=\"==BOUNDARY==\"

--==BOUNDARY==
Content-Type: text/cloud-config; charset=\"us-ascii\"

#cloud-config
write_files:
  - path: /etc/batch-agent/node.yaml
    owner: root:root
    permissions: '0600'
    content: |
{settings}
--==BOUNDARY==
Content-Type: text/x-shellscript; charset=\"us-ascii\"

{script}
--==BOUNDARY==--
"
    )
}
