//! An engine, a store and a node that knows both; jobs, and what is asked of all of them.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tests::agent::{Finished, Node, eventually, finished, job, merge};
use tests::docker::Engine;
use tests::double::{Double, DoubleConfig};

pub(crate) const BUCKET: &str = "test-bucket";
pub(crate) const IMAGE: &str = "registry.example/busybox:1";

/// How long anything may take that a loaded machine does slowly.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// An engine, a store and a node that knows both.
pub(crate) struct Site {
    // Before the engine, whose namespace it uses.
    pub(crate) node: Node,
    pub(crate) engine: Engine,
    pub(crate) double: Double,
}

impl Site {
    pub(crate) fn new(engine: Engine) -> Self {
        Self::with_faults(engine, 0)
    }

    /// One on which faults of the platform are answered so often by another attempt.
    pub(crate) fn with_faults(engine: Engine, faults: u32) -> Self {
        let double = Double::start(DoubleConfig::default().bucket("my-bucket", "cn-test"));
        let node = Node::with_double(&double.endpoint())
            .environment("BATCH_AGENT_ENGINE_SOCKET", engine.socket().to_str().unwrap())
            .option("--pull-timeout=2")
            .option(&format!("--fault-retries={faults}"));
        Self { node, engine, double }
    }

    pub(crate) fn command(&self, job: &Value, more: &[&str]) -> Command {
        let mut command = self.node.run_command(job, more);
        self.engine.join(&mut command);
        command
    }

    pub(crate) fn run(&self, job: &Value) -> Finished {
        self.run_with(job, &[])
    }

    pub(crate) fn run_with(&self, job: &Value, more: &[&str]) -> Finished {
        finished(&self.command(job, more).output().unwrap())
    }

    /// Starts a job and waits until its program has said "up".
    pub(crate) fn start(&self, id: &str, job: &Value) -> Child {
        let mut command = self.command(job, &["--job-id", id]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        eventually("the program is up", LIMIT, || {
            self.double.get(BUCKET, &format!("logs/stdout.{id}.task.0")).is_some_and(|log| log.starts_with(b"up\n"))
        });
        child
    }

    pub(crate) fn log(&self, stream: &str, run: &Finished) -> String {
        let id = run.outcome["job_id"].as_str().unwrap_or_else(|| panic!("{run:?}"));
        let key = format!("logs/{stream}.{id}.task.0");
        let content = self.double.get(BUCKET, &key).unwrap_or_else(|| panic!("no {key}: {run:?}"));
        String::from_utf8(content).unwrap()
    }

    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.engine.containers(), Vec::<String>::new(), "containers are left");
        self.node.assert_clean();
        let own = self.node.path().to_string_lossy().into_owned();
        let table = self.engine.mounts();
        let left: Vec<&str> = table.lines().filter(|line| line.contains(&own)).collect();
        assert!(left.is_empty(), "mounts are left:\n{}", left.join("\n"));
    }
}

/// A task of this command line in the image, with more of a description.
pub(crate) fn task(line: &str, more: Value) -> Value {
    let mut task = json!({"Parameters": {"Command": {"CommandLine": line, "Docker": {"Image": IMAGE}}}});
    merge(&mut task, &more);
    job(&task)
}

/// A job of one task in our own format.
pub(crate) fn own(task: Value) -> Value {
    let mut whole = json!({"container": {"image": IMAGE}, "stdout": "oss://test-bucket/logs/", "stderr": "oss://test-bucket/logs/"});
    merge(&mut whole, &task);
    json!({"version": 1, "tasks": {"task": whole}})
}

#[track_caller]
pub(crate) fn assert_failed(run: &Finished, status: i32, cause: &str, message: &[&str]) {
    assert_eq!(run.status, status, "{run:#?}");
    let instance = run.instance("task", 0);
    assert_eq!((&instance["state"], &instance["cause"]), (&json!("Failed"), &json!(cause)), "{run:#?}");
    for part in message {
        assert!(run.message().contains(part), "{:?} lacks {part:?}", run.message());
    }
}
