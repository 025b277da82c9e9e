//! The environment a task starts with.
//!
//! It is put together from nothing: what BatchCompute promises, then what the job's author set. The agent's own environment
//! holds credentials and settings and none of it gets in.
//!
//! Who wins, when both name a variable:
//! - The variables that say *which instance this is* ([`OWN`]) are ours, always. Authors copy environments from one job
//!   to the next, and an instance that believes to be another one processes the wrong data and reports success.
//! - What we do not know (a region on a machine outside any cloud) is not set, and the author's value stays.
//! - Everything else (`PATH`, `HOME`, `USER`, ...) is a default, and the author's value wins.

use std::collections::BTreeMap;
use std::path::Path;

use crate::account::Account;

/// The variables an author cannot change. The three last are the names that older programs read.
pub const OWN: &[&str] = &[
    "BATCH_COMPUTE_DAG_JOB_ID",
    "BATCH_COMPUTE_DAG_TASK_ID",
    "BATCH_COMPUTE_DAG_INSTANCE_ID",
    "BATCH_COMPUTE_DAG_INSTANCE_COUNT",
    "BATCH_COMPUTE_OSS_HOST",
    "BATCH_COMPUTE_REGION",
    "BATCH_COMPUTE_CLUSTER_ID",
    "BATCH_COMPUTE_WORKER_ID",
    "BATCH_COMPUTE_JOB_ID",
    "BATCH_COMPUTE_TASK_ID",
    "BATCH_COMPUTE_INSTANCE_ID",
];

/// Those of them that are about a job.
const OF_A_JOB: &[&str] = &[
    "BATCH_COMPUTE_DAG_JOB_ID",
    "BATCH_COMPUTE_DAG_TASK_ID",
    "BATCH_COMPUTE_DAG_INSTANCE_ID",
    "BATCH_COMPUTE_DAG_INSTANCE_COUNT",
    "BATCH_COMPUTE_JOB_ID",
    "BATCH_COMPUTE_TASK_ID",
    "BATCH_COMPUTE_INSTANCE_ID",
];

/// `PATH` of a root login on Debian and its relatives (`ENV_SUPATH` of login.defs).
const LOGIN_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `PATH` in a container, as the guide gives it: without `/usr/local`.
const CONTAINER_PATH: &str = "/sbin:/usr/sbin:/bin:/usr/bin";

/// What the environment says about the machine and the place on it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine<'a> {
    /// The region, such as `cn-hangzhou`.
    pub region: Option<&'a str>,
    /// The endpoint of OSS, such as `http://oss-cn-hangzhou-internal.aliyuncs.com`.
    pub oss_host: Option<&'a str>,
    /// The cluster's id. A container is not told.
    pub cluster: Option<&'a str>,
    /// The node's id. A container is not told.
    pub worker: Option<&'a str>,
    /// The working directory.
    pub working_directory: &'a str,
    /// Where else programs are found on this machine: the agent's own `PATH`, which is searched after root's.
    pub more_path: Option<&'a str>,
}

/// What the environment says about an instance and where it runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// The job's id.
    pub job: &'a str,
    /// The task's name.
    pub task: &'a str,
    /// The instance, from 0.
    pub instance: u32,
    /// How many instances the task has.
    pub instances: u32,
    /// Where it runs.
    pub machine: Machine<'a>,
    /// The image it runs in, if it does not run on the machine itself.
    pub container: Option<InImage<'a>>,
    /// Who it runs as, when it is not root.
    pub account: Option<&'a Account>,
}

/// What matters of an image.
#[derive(Debug, Clone, Copy, Default)]
pub struct InImage<'a> {
    /// Where the image says that its programs are. It knows: what the guide gives is searched after it.
    pub path: Option<&'a str>,
}

/// The environment of a start-up script: root's, the cluster's variables, and which node this is.
pub fn of_the_machine(machine: &Machine<'_>, cluster: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = build(&Facts { machine: *machine, ..Facts::default() }, cluster);
    // There is no job.
    all.retain(|name, _| !OF_A_JOB.contains(&name.as_str()) || cluster.contains_key(name));
    all
}

/// The whole environment of an instance, merged with the author's variables.
pub fn build(facts: &Facts<'_>, author: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: &str| all.insert(name.to_owned(), value.to_owned());
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let (name, home, shell) = facts.account.map_or_else(
        || ("root", "/root".to_owned(), "/bin/bash".to_owned()),
        |account| (account.name.as_str(), path(&account.home), path(&account.shell)),
    );
    set("HOME", &home);
    set("PWD", facts.machine.working_directory);
    set("USER", name);
    match facts.container {
        Some(image) => drop(set("PATH", &container_path(image.path))),
        None => {
            set("PATH", &joined(LOGIN_PATH, facts.machine.more_path));
            // An image may have neither a login nor this shell.
            set("LOGNAME", name);
            set("SHELL", &shell);
        }
    }

    all.extend(author.iter().map(|(name, value)| (name.clone(), value.clone())));

    let instance = facts.instance.to_string();
    let instances = facts.instances.to_string();
    let (cluster, worker) =
        if facts.container.is_some() { (None, None) } else { (facts.machine.cluster, facts.machine.worker) };
    for (name, value) in [
        ("BATCH_COMPUTE_DAG_JOB_ID", Some(facts.job)),
        ("BATCH_COMPUTE_DAG_TASK_ID", Some(facts.task)),
        ("BATCH_COMPUTE_DAG_INSTANCE_ID", Some(instance.as_str())),
        ("BATCH_COMPUTE_DAG_INSTANCE_COUNT", Some(instances.as_str())),
        ("BATCH_COMPUTE_OSS_HOST", facts.machine.oss_host),
        ("BATCH_COMPUTE_REGION", facts.machine.region),
        ("BATCH_COMPUTE_CLUSTER_ID", cluster),
        ("BATCH_COMPUTE_WORKER_ID", worker),
        ("BATCH_COMPUTE_JOB_ID", Some(facts.job)),
        ("BATCH_COMPUTE_TASK_ID", Some(facts.task)),
        ("BATCH_COMPUTE_INSTANCE_ID", Some(instance.as_str())),
    ] {
        if let Some(value) = value {
            all.insert(name.to_owned(), value.to_owned());
        }
    }
    all
}

/// The image's own `PATH`, then what it does not name of the guide's.
fn container_path(image: Option<&str>) -> String {
    match image.filter(|path| !path.is_empty()) {
        Some(path) => joined(path, Some(CONTAINER_PATH)),
        None => CONTAINER_PATH.to_owned(),
    }
}

/// A `PATH`, then what else there is that it does not name. Of the latter only absolute directories: an empty one would be the working
/// directory, where anything may lie.
fn joined(path: &str, more: Option<&str>) -> String {
    let known: Vec<&str> = path.split(':').collect();
    let more =
        more.unwrap_or("").split(':').filter(|directory| directory.starts_with('/') && !known.contains(directory));
    known.iter().copied().chain(more).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'_> = Facts {
        job: "job-1",
        task: "count",
        instance: 2,
        instances: 3,
        machine: Machine {
            region: Some("cn-hangzhou"),
            oss_host: Some("http://oss-cn-hangzhou-internal.aliyuncs.com"),
            cluster: Some("cls-1"),
            worker: Some("i-1"),
            working_directory: "/batchcompute/workdir",
            more_path: None,
        },
        container: None,
        account: None,
    };

    fn author(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_machine_gets_all_variables_and_a_container_those_of_the_guide() {
        let machine = build(&FACTS, &BTreeMap::new());
        let expected = author(&[
            ("BATCH_COMPUTE_CLUSTER_ID", "cls-1"),
            ("BATCH_COMPUTE_DAG_INSTANCE_COUNT", "3"),
            ("BATCH_COMPUTE_DAG_INSTANCE_ID", "2"),
            ("BATCH_COMPUTE_DAG_JOB_ID", "job-1"),
            ("BATCH_COMPUTE_DAG_TASK_ID", "count"),
            ("BATCH_COMPUTE_INSTANCE_ID", "2"),
            ("BATCH_COMPUTE_JOB_ID", "job-1"),
            ("BATCH_COMPUTE_OSS_HOST", "http://oss-cn-hangzhou-internal.aliyuncs.com"),
            ("BATCH_COMPUTE_REGION", "cn-hangzhou"),
            ("BATCH_COMPUTE_TASK_ID", "count"),
            ("BATCH_COMPUTE_WORKER_ID", "i-1"),
            ("HOME", "/root"),
            ("LOGNAME", "root"),
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("PWD", "/batchcompute/workdir"),
            ("SHELL", "/bin/bash"),
            ("USER", "root"),
        ]);
        assert_eq!(machine, expected);
        let image = |path| build(&Facts { container: Some(InImage { path }), ..FACTS }, &BTreeMap::new());
        let container = image(None);
        assert_eq!(container["PATH"], "/sbin:/usr/sbin:/bin:/usr/bin");
        assert_eq!(image(Some("/opt/conda/bin:/usr/bin"))["PATH"], "/opt/conda/bin:/usr/bin:/sbin:/usr/sbin:/bin");
        let own = ["HOME", "PATH", "PWD", "USER"];
        let names: Vec<&str> =
            container.keys().map(String::as_str).filter(|name| !name.starts_with("BATCH_")).collect();
        assert_eq!(names, own);
        assert!(!container.contains_key("BATCH_COMPUTE_CLUSTER_ID"));
        assert!(!container.contains_key("BATCH_COMPUTE_WORKER_ID"));
    }

    #[test]
    fn the_author_decides_all_but_who_the_instance_is() {
        let all: Vec<_> = OWN.iter().map(|name| (*name, "mine")).chain([("PATH", "/opt/bin"), ("x", "y")]).collect();
        let merged = build(&FACTS, &author(&all));
        assert!(OWN.iter().all(|name| merged[*name] != "mine"));
        assert_eq!((merged["PATH"].as_str(), merged["x"].as_str()), ("/opt/bin", "y"));
        let unknown = build(
            &Facts { machine: Machine { region: None, ..FACTS.machine }, ..FACTS },
            &author(&[("BATCH_COMPUTE_REGION", "mine")]),
        );
        assert_eq!(unknown["BATCH_COMPUTE_REGION"], "mine");
    }
}
