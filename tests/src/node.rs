//! A node that boots: `batch-agent boot` with directories and settings of its own, of which nothing stays behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use batch_agent::cgroup::agent_mark;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::agent::{control_groups, eventually, script};
use crate::mounts::{Ran, alive};
use crate::programs;

/// How long anything may take on a machine that is busy with other tests.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A node.
#[derive(Debug)]
pub struct BootNode {
    directory: tempfile::TempDir,
}

impl Default for BootNode {
    fn default() -> Self {
        Self::new()
    }
}

impl BootNode {
    /// One with a local directory as its store.
    ///
    /// # Panics
    /// When its directories cannot be made.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("batch-node-test-").tempdir().expect("a temporary directory");
        let node = Self { directory };
        for name in ["store/in/deep", "store/out", "state", "run"] {
            fs::create_dir_all(node.path(name)).expect("a new directory is empty");
        }
        fs::write(node.path("store/in/file"), "hello\n").expect("it is written");
        fs::write(node.path("store/in/deep/er"), "deeper\n").expect("it is written");
        node
    }

    /// A path of its own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A place in its store.
    pub fn location(&self, name: &str) -> String {
        format!("file://{}", self.path("store").join(name).display())
    }

    /// Makes a program.
    pub fn program(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        script(&path, text);
        path.to_string_lossy().into_owned()
    }

    /// Writes its settings; every node has an identity of its own and no cloud.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn settings(&self, settings: &Value) {
        let mut all = serde_json::json!({"identity": {"cloud": "none", "instance_id": "i-test"}});
        crate::agent::merge(&mut all, settings);
        let path = self.path("node.yaml");
        fs::write(&path, all.to_string()).expect("they are written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("they are ours");
    }

    fn agent(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs::path("batch-agent"));
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("BATCH_AGENT_STATE_DIR", self.path("state"))
            .env("BATCH_AGENT_RUNTIME_DIR", self.path("run"))
            .env("FUSE_OSS_RUNTIME_DIR", self.path("fuse-oss"))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command of the agent to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.agent(arguments).output().expect("the program was built"))
    }

    /// Boots in the background. What it says is in the file `log`, after what the ones before it said.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn boot(&self) -> Child {
        self.boot_command().spawn().expect("the program was built")
    }

    /// What [`BootNode::boot`] starts, not started yet.
    ///
    /// # Panics
    /// When there is no place for its log.
    pub fn boot_command(&self) -> Command {
        let log = fs::File::options().append(true).create(true).open(self.path("log")).expect("a log");
        let config = self.path("node.yaml");
        let mut command = self.agent(&["boot", "--config"]);
        command.arg(config).stdout(Stdio::null()).stderr(log);
        command
    }

    /// Boots and waits for the end of the agent; its exit status.
    ///
    /// # Panics
    /// When it does not end.
    pub fn boot_to_end(&self) -> i32 {
        let mut child = self.boot();
        let mut status = None;
        eventually("the agent has ended", LIMIT, || {
            status = child.try_wait().expect("it is ours");
            status.is_some()
        });
        status.and_then(|status| status.code()).unwrap_or(-1)
    }

    /// What the agents have said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// `batch-agent status --json`; null before an agent has begun.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.run(&["status", "--json"]).stdout).unwrap_or_default()
    }

    /// A step of it.
    pub fn step(&self, phase: &str) -> Value {
        let status = self.status();
        let steps = status["steps"].as_array().cloned().unwrap_or_default();
        steps.into_iter().find(|step| step["phase"] == phase).unwrap_or_default()
    }

    /// Waits until a step is in this state.
    pub fn until(&self, phase: &str, state: &str) {
        eventually(&format!("{phase} is {state}"), LIMIT, || self.step(phase)["state"] == state);
    }

    /// What lies in its store; empty when nothing does.
    pub fn stored(&self, name: &str) -> String {
        fs::read_to_string(self.path("store").join(name)).unwrap_or_default()
    }

    /// The names of the objects of a directory of its store.
    pub fn objects(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path("store").join(directory)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// What is mounted below its directory.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let mounts = fuse_oss::mountpoint::mounts().unwrap_or_default();
        mounts.into_iter().map(|mount| mount.path).filter(|path| path.starts_with(self.directory.path())).collect()
    }

    /// What mounts, control groups and files of tasks there are, one line each: none when no task is running or reserved.
    pub fn left_behind(&self) -> Vec<String> {
        let mark = agent_mark(&self.path("run"));
        let groups = control_groups().into_iter().filter(|group| group.to_string_lossy().contains(&mark));
        let mut left: Vec<String> = groups.map(|group| format!("control group: {}", group.display())).collect();
        left.extend(self.mounts().iter().map(|mount| format!("mount: {}", mount.display())));
        for directory in ["run/tasks", "state/instances", "state/scratch/tasks"] {
            let entries = fs::read_dir(self.path(directory)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("file: {}", entry.path().display())));
        }
        left
    }

    /// Every process that was started for it.
    pub fn processes(&self) -> Vec<Pid> {
        let here = self.directory.path().as_os_str().as_encoded_bytes();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ours = processes.filter(|process| {
            let of = |file: &str| fs::read(process.path().join(file)).unwrap_or_default();
            let names_us = |text: Vec<u8>| text.windows(here.len()).any(|part| part == here);
            names_us(of("cmdline")) || names_us(of("environ"))
        });
        let this = i32::try_from(std::process::id()).unwrap_or(0);
        ours.filter_map(|process| process.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != this)
            .map(Pid::from_raw)
            .collect()
    }
}

impl Drop for BootNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agents' log ---\n{}\n--- status ---\n{}", self.log(), self.run(&["status"]).stdout);
        }
        let processes = self.processes();
        for pid in &processes {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        for pid in processes {
            for _ in 0..500 {
                if !alive(pid) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        crate::agent::remove_control_groups(&self.path("run"));
        for mount in self.mounts().iter().rev() {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
}

/// Whether a path has something mounted on it.
pub fn is_mounted(path: &Path) -> bool {
    fuse_oss::mountpoint::mounted_on(path).is_some()
}
