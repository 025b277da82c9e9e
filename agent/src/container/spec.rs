//! What a shim is told about its container, and what it asks of the engine with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::LABEL;
use super::engine::{Engine, Maker};
use super::kept::KEPT;
use crate::job::{ContainerNetwork, Limits};

/// A container that a shim makes and looks after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Who runs it.
    pub engine: Engine,
    /// Its name, which belongs to one attempt of one agent alone.
    pub name: String,
    /// The attempt, for people who look at the engine.
    pub attempt: String,
    /// The image's id.
    pub image: String,
    /// The image as the job calls it, for messages.
    pub image_name: String,
    /// What it sees.
    pub volumes: Vec<Volume>,
    /// Devices of the machine that it may use.
    pub devices: Vec<PathBuf>,
    /// Its network.
    pub network: ContainerNetwork,
    /// What it may use of the machine.
    pub limits: Limits,
    /// Who its program runs as, `UID:GID`: root, unless the job says otherwise.
    pub user: String,
    /// Which other groups that user is in.
    pub groups: Vec<u32>,
    /// Receives where the kernel counts what it uses.
    pub counted: PathBuf,
    /// Receives its id, before it is started.
    pub made: PathBuf,
}

/// A directory or file of the host that a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
    /// Whether what the host mounts inside of it later appears in the container, too: the host's mount must be shared.
    pub follows_host: bool,
}

/// The container, as the engine's interface describes it.
pub(super) fn body(
    spec: &ContainerSpec,
    command: &[String],
    environment: &BTreeMap<String, String>,
    workdir: &Path,
) -> Value {
    let (program, arguments) = command.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let variables: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let network = match spec.network {
        ContainerNetwork::Host => "host",
        ContainerNetwork::Bridge => "bridge",
        ContainerNetwork::None => "none",
    };
    let mounts: Vec<Value> = spec.volumes.iter().map(Volume::mount).collect();
    let devices: Vec<Value> = spec
        .devices
        .iter()
        .map(|path| json!({ "PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm" }))
        .collect();
    let mut host = json!({
        "Privileged": false,
        "AutoRemove": false,
        "NetworkMode": network,
        "Mounts": mounts,
        "Devices": devices,
        // What is printed comes to us through the attached connection. What the engine keeps is for the case that this breaks, and bounded.
        "LogConfig": kept_by(spec.engine.maker),
        "RestartPolicy": { "Name": "no" },
        // SELinux lets a container read nothing that is not labelled for it, and mounts of object storage cannot be labelled.
        "SecurityOpt": ["label=disable"],
    });
    if !spec.groups.is_empty() {
        host["GroupAdd"] = spec.groups.iter().map(u32::to_string).collect();
    }
    if let Some(memory) = spec.limits.memory {
        host["Memory"] = memory.into();
        // Memory and swap together.
        host["MemorySwap"] = memory.into();
    }
    if let Some(millis) = spec.limits.cpu_millis {
        host["NanoCpus"] = (u64::from(millis) * 1_000_000).into();
    }
    if let Some(pids) = spec.limits.pids {
        host["PidsLimit"] = pids.into();
    }
    json!({
        "Image": spec.image,
        // The job names the program: an entry point of the image would be put before it.
        "Entrypoint": [program],
        "Cmd": arguments,
        "Env": variables,
        "WorkingDir": workdir,
        "User": spec.user,
        "Tty": false,
        "OpenStdin": false,
        "AttachStdout": true,
        "AttachStderr": true,
        // The image's own check would run programs beside the task's.
        "Healthcheck": { "Test": ["NONE"] },
        "Labels": { LABEL: spec.attempt },
        "HostConfig": host,
    })
}

/// How the engine keeps the last of what is printed, byte for byte.
fn kept_by(maker: Maker) -> Value {
    match maker {
        Maker::Docker => {
            let half = (KEPT / 2).to_string();
            json!({ "Type": "local", "Config": { "max-size": half, "max-file": "3", "compress": "false" } })
        }
        Maker::Podman => json!({ "Type": "k8s-file", "Config": { "max-size": KEPT.to_string() } }),
    }
}

impl Volume {
    fn mount(&self) -> Value {
        let propagation = if self.follows_host { "rslave" } else { "rprivate" };
        json!({
            "Type": "bind",
            "Source": self.source,
            "Target": self.target,
            "ReadOnly": self.read_only,
            "BindOptions": { "Propagation": propagation },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::engine::Engine;

    #[test]
    fn a_container_is_unprivileged_and_runs_what_the_job_says() {
        let engine: Engine =
            serde_json::from_value(json!({ "socket": "/run/docker.sock", "maker": "docker", "version": "/v1.41" }))
                .unwrap();
        let mut spec = ContainerSpec {
            engine,
            name: "n".to_owned(),
            attempt: "job.task.0".to_owned(),
            image: "sha256:1".to_owned(),
            image_name: "x:1".to_owned(),
            volumes: vec![Volume {
                source: "/run/in".into(),
                target: "/home/in".into(),
                read_only: true,
                follows_host: false,
            }],
            devices: vec!["/dev/fuse".into()],
            network: ContainerNetwork::Host,
            limits: Limits::default(),
            user: "0:0".to_owned(),
            groups: Vec::new(),
            counted: "/run/counted".into(),
            made: "/run/made".into(),
        };
        let environment = [("A".to_owned(), "1\n2".to_owned())].into();
        let command = ["/bin/sh", "-c", "exit 3"].map(str::to_owned);
        let made = body(&spec, &command, &environment, Path::new("/batchcompute/workdir"));
        assert_eq!(made["HostConfig"]["Privileged"], false);
        assert_eq!((&made["Entrypoint"], &made["Cmd"]), (&json!(["/bin/sh"]), &json!(["-c", "exit 3"])));
        assert_eq!((&made["Env"], &made["User"]), (&json!(["A=1\n2"]), &json!("0:0")));
        assert_eq!(made["HostConfig"]["Mounts"][0]["BindOptions"]["Propagation"], "rprivate");
        assert!(made["HostConfig"]["Memory"].is_null() && made["HostConfig"]["PidsLimit"].is_null());
        spec.limits = Limits { cpu_millis: Some(2500), memory: Some(1 << 30), pids: Some(9) };
        let host = body(&spec, &command, &environment, Path::new("/w"))["HostConfig"].take();
        assert_eq!((&host["NanoCpus"], &host["PidsLimit"]), (&json!(2_500_000_000_u64), &json!(9)));
        assert_eq!((&host["Memory"], &host["MemorySwap"]), (&json!(1 << 30), &json!(1 << 30)));
    }
}
