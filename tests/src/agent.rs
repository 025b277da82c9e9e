//! A node for tests: the real `batch-agent` with directories of its own, and proof that nothing of it stays behind.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use batch_agent::cgroup::agent_mark;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use tempfile::TempDir;

use crate::{double, programs};

/// How long what an agent has started may take to go away by itself once the agent is gone.
const QUIET_DEADLINE: Duration = Duration::from_secs(20);

/// A node with its own state, runtime and scratch directories.
#[derive(Debug)]
pub struct Node {
    directory: TempDir,
    environment: Vec<(String, String)>,
    options: Vec<String>,
    scratch: PathBuf,
    root: PathBuf,
    prelude: Option<String>,
}

/// A finished `batch-agent`.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: i32,
    /// The outcome it has printed; null when it printed none.
    pub outcome: Value,
    /// What it said.
    pub stderr: String,
}

impl Finished {
    /// The outcome of an instance.
    ///
    /// # Panics
    /// When there is none.
    pub fn instance(&self, task: &str, instance: usize) -> &Value {
        let tasks = self.outcome["tasks"].as_array().unwrap_or_else(|| panic!("no outcome: {self:?}"));
        let task = tasks.iter().find(|found| found["name"] == task).unwrap_or_else(|| panic!("no {task}: {self:?}"));
        &task["instances"][instance]
    }

    /// The message of the only instance of the task `task`.
    pub fn message(&self) -> &str {
        self.instance("task", 0)["message"].as_str().unwrap_or("")
    }
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Node {
    /// A node that reaches no storage but local directories.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("batch-agent-test-").tempdir().expect("a temporary directory");
        let scratch = directory.path().join("scratch");
        // Paths that tasks map things to, which no other test uses: mount points are made on the one real host.
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!("/batch-agent-test-{}-{number}", std::process::id()));
        // No test asks a metadata service unless it brings one: nothing listens on port 1.
        let nowhere = "http://127.0.0.1:1".to_owned();
        let nowhere = ["ALIBABA_CLOUD_IMDS_ENDPOINT", "AWS_EC2_METADATA_SERVICE_ENDPOINT"]
            .map(|name| (name.to_owned(), nowhere.clone()));
        // A failure is a failure, without three more attempts and their pauses, unless a test is about those.
        let once = ("BATCH_AGENT_FAULT_RETRIES".to_owned(), "0".to_owned());
        let environment = nowhere.into_iter().chain([once]).collect();
        Self { directory, environment, options: Vec::new(), scratch, root, prelude: None }
    }

    /// A node whose `oss://` and `s3://` are the double at `endpoint`, in the double's default region and with its default key.
    pub fn with_double(endpoint: &str) -> Self {
        let mut node = Self::new();
        for (name, value) in double::environment(endpoint) {
            node = node.environment(name, value);
        }
        node
    }

    /// Sets a variable of the agent's environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds an option to every `batch-agent run`.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// Puts the scratch directory somewhere else.
    #[must_use]
    pub fn scratch(mut self, scratch: &Path) -> Self {
        self.scratch = scratch.to_owned();
        self
    }

    /// Has every agent run in a mount namespace of its own, after these shell commands in it.
    #[must_use]
    pub fn after(mut self, prelude: &str) -> Self {
        self.prelude = Some(prelude.to_owned());
        self
    }

    /// A directory of the test's own.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path for mappings that exists nowhere and belongs to this test alone.
    pub fn mapped(&self, path: &str) -> String {
        self.root.join(path).to_string_lossy().into_owned()
    }

    /// `batch-agent` with an environment that holds nothing but what the node was given.
    pub fn agent(&self) -> Command {
        let program = programs::path("batch-agent");
        let mut command = match &self.prelude {
            None => Command::new(program),
            Some(prelude) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "/bin/sh", "-ec", &format!("{prelude}; exec \"$0\" \"$@\"")]).arg(program);
                command
            }
        };
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("BATCH_AGENT_STATE_DIR", self.path().join("state"));
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null());
        command
    }

    /// `batch-agent run` for a job description, not yet started.
    pub fn run_command(&self, job: &Value, more: &[&str]) -> Command {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let file = self.path().join(format!("job-{number}.json"));
        fs::write(&file, job.to_string()).expect("the job is written");
        let mut command = self.agent();
        command.arg("run").arg(&file);
        command.arg("--state-dir").arg(self.path().join("state"));
        command.arg("--runtime-dir").arg(self.path().join("run"));
        command.arg("--scratch").arg(&self.scratch);
        command.args(&self.options).args(more);
        command
    }

    /// Runs a job to its end.
    pub fn run(&self, job: &Value) -> Finished {
        self.run_with(job, &[])
    }

    /// Runs a job with further options.
    pub fn run_with(&self, job: &Value, more: &[&str]) -> Finished {
        let output = self.run_command(job, more).output().expect("batch-agent starts");
        finished(&output)
    }

    /// Starts a job and leaves it running. Its messages go to a file, because nobody reads them meanwhile.
    pub fn start(&self, job: &Value, more: &[&str]) -> Running {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let stderr = self.path().join(format!("stderr-{number}"));
        let mut command = self.run_command(job, more);
        command.stdout(Stdio::piped()).stderr(fs::File::create(&stderr).expect("a file for messages"));
        Running { child: Some(command.spawn().expect("batch-agent starts")), stderr }
    }

    /// What processes, mounts, mount points and files of this node there are, one line each.
    pub fn left_behind(&self) -> Vec<String> {
        let own = self.path().to_string_lossy().into_owned();
        let scratch = self.scratch.to_string_lossy().into_owned();
        let mut left = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&own) && line.contains("fuse"))
                .map(|line| format!("mount: {line}")),
        );
        for process in fs::read_dir("/proc").expect("/proc").flatten() {
            let command_line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command_line = String::from_utf8_lossy(&command_line).replace('\0', " ");
            if command_line.contains(&own) {
                left.push(format!("process {}: {command_line}", process.file_name().to_string_lossy()));
            }
        }
        let mark = agent_mark(&self.path().join("run"));
        for group in control_groups().into_iter().filter(|group| group.to_string_lossy().contains(&mark)) {
            left.push(format!("control group: {}", group.display()));
        }
        if self.root.exists() {
            left.push(format!("mount point: {}", self.root.display()));
        }
        for directory in ["run/tasks", "state/instances", "state/uploads", "state/pushes"]
            .map(|name| self.path().join(name))
            .iter()
            .chain([&Path::new(&scratch).join("tasks")])
        {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("file: {}", entry.path().display())));
        }
        left
    }

    /// Waits until nothing of the node is left, and fails with a list of what is.
    ///
    /// # Panics
    /// When something stays.
    pub fn assert_clean(&self) {
        let end = Instant::now() + QUIET_DEADLINE;
        loop {
            let left = self.left_behind();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left behind:\n{}", left.join("\n"));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

/// Whatever a failed test leaves is taken away, so that the next one begins on a clean machine.
impl Drop for Node {
    fn drop(&mut self) {
        let own = self.path().to_string_lossy().into_owned();
        for line in self.left_behind() {
            if let Some(group) = line.strip_prefix("control group: ") {
                empty(Path::new(group));
            }
            if let Some(pid) = line.strip_prefix("process ").and_then(|rest| rest.split(':').next()?.parse().ok()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut inside: Vec<_> =
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.starts_with(&own)).collect();
        inside.sort_unstable();
        for at in inside.into_iter().rev() {
            let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir(&self.root);
    }
}

/// The control groups of tasks, of all agents: at the top of the trees, or scopes of systemd.
pub fn control_groups() -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let inside = |path: &Path| -> Vec<PathBuf> {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect()
    };
    let trees = inside(top).into_iter().chain([top.to_owned()]);
    let ours = ["batch-agent", "batch.slice/batch-agent.slice"];
    trees.flat_map(|tree| ours.map(|ours| inside(&tree.join(ours))).concat()).collect()
}

/// Removes the control groups of the agent with this runtime directory, for a test that ends before its agent has.
pub fn remove_control_groups(runtime: &Path) {
    let mark = agent_mark(runtime);
    control_groups().iter().filter(|group| group.to_string_lossy().contains(&mark)).for_each(|group| empty(group));
}

/// Kills whoever is in a control group and removes it, for a test that has failed.
fn empty(group: &Path) {
    for inside in [group.join("task"), group.join("shim"), group.to_owned()] {
        for pid in fs::read_to_string(inside.join("cgroup.procs")).unwrap_or_default().lines() {
            let Ok(pid) = pid.parse() else { continue };
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(50));
        let _ = fs::remove_dir(inside);
    }
}

/// What a `batch-agent run` that has ended came to.
pub fn finished(output: &Output) -> Finished {
    use std::os::unix::process::ExitStatusExt;
    let status = output.status.code().or(output.status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
    let outcome = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Finished { status, outcome, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
}

/// A running `batch-agent`; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    stderr: PathBuf,
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> nix::unistd::Pid {
        let id = self.child.as_ref().map_or(0, Child::id);
        nix::unistd::Pid::from_raw(i32::try_from(id).unwrap_or(0))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("it is there");
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Finished {
        let output = self.child.take().expect("waited for once").wait_with_output().expect("its end");
        Finished { stderr: self.messages(), ..finished(&output) }
    }

    /// What it has said so far.
    pub fn messages(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within `limit`; `what` says what was waited for.
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A job of one task, `task`, in the service's format. `task` is merged over the defaults: two log directories
/// under `oss://test-bucket/logs/` and no mappings.
pub fn job(task: &Value) -> Value {
    job_on("oss://test-bucket/", task)
}

/// The same in another store.
pub fn job_on(store: &str, task: &Value) -> Value {
    let mut whole = serde_json::json!({
        "InstanceCount": 1,
        "Parameters": {
            "Command": {"CommandLine": "", "PackagePath": "", "EnvVars": {}},
            "StdoutRedirectPath": format!("{store}logs/"),
            "StderrRedirectPath": format!("{store}logs/"),
        },
    });
    merge(&mut whole, task);
    serde_json::json!({"Name": "test", "Type": "DAG", "DAG": {"Tasks": {"task": whole}, "Dependencies": {}}})
}

/// The part of a task that is its command line.
pub fn command(line: &str) -> Value {
    serde_json::json!({"Parameters": {"Command": {"CommandLine": line}}})
}

/// Puts `over` over `under`, object by object.
pub fn merge(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// A gzipped tar archive of these files, all executable.
pub fn package(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, name, content.as_bytes()).expect("a tar entry");
    }
    builder.into_inner().and_then(GzEncoder::finish).expect("a tar archive")
}

/// Makes an executable file.
///
/// # Panics
/// When it cannot be written.
pub fn script(path: &Path, content: &str) {
    let mut file = fs::File::create(path).expect("a script");
    file.write_all(content.as_bytes()).expect("a script");
    file.set_permissions(fs::Permissions::from_mode(0o755)).expect("a script");
}
