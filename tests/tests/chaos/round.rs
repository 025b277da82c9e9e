//! One task on one node, with agents that are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};
use tests::agent::eventually;
use tests::double::Double;
use tests::node::{BootNode, LIMIT};

use super::killing::{Kills, Moment};
use super::work::{Expected, Kind, Place, Work};

const BUCKET: &str = "test-bucket";

/// A node that boots for one task after the other, and its store.
#[derive(Debug)]
pub(super) struct ChaosNode<'a> {
    node: BootNode,
    double: &'a Double,
    number: usize,
    mapped: PathBuf,
}

impl<'a> ChaosNode<'a> {
    pub(super) fn new(double: &'a Double, number: usize) -> Self {
        // Mount points of tasks are made on the one real host.
        let mapped = PathBuf::from(format!("/batch-agent-chaos-{}-{number}", std::process::id()));
        Self { node: BootNode::new(), double, number, mapped }
    }

    /// What there is of it on the machine beside its agents: nothing, when its task is over.
    fn left(&self) -> Vec<String> {
        let mut left = self.node.left_behind();
        if self.mapped.exists() {
            left.push(format!("mount point: {}", self.mapped.display()));
        }
        left
    }

    /// The node is done: no process is left, servers of mounts included.
    ///
    /// # Panics
    /// When something is.
    pub(super) fn assert_nothing_left(&self) {
        let left = || {
            let processes = self.node.processes();
            self.left().into_iter().chain(processes.iter().map(|pid| format!("process {pid}"))).collect::<Vec<_>>()
        };
        assert_gone(&format!("node {}", self.number), left);
    }
}

impl Drop for ChaosNode<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.mapped);
    }
}

/// Waits until nothing is left of something.
fn assert_gone(name: &str, left: impl Fn() -> Vec<String>) {
    let end = Instant::now() + LIMIT;
    loop {
        let left = left();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left behind by {name}:\n{}", left.join("\n"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A round.
#[derive(Debug)]
pub(super) struct Round<'a> {
    node: &'a ChaosNode<'a>,
    /// What it is called in messages.
    name: String,
    job: String,
    kind: Kind,
    work: Work,
    directory: PathBuf,
    /// The directory in the bucket that is the task's alone.
    prefix: String,
    seconds: usize,
    dice: Rng,
    kills: Kills,
}

impl<'a> Round<'a> {
    pub(super) fn new(node: &'a ChaosNode<'a>, number: usize, kind: Kind, seed: u64) -> Self {
        let mut dice = Rng::with_seed(seed.wrapping_add(number as u64));
        let directory = node.node.path(&format!("task-{number}"));
        fs::create_dir(&directory).unwrap();
        let scheme = if number.is_multiple_of(2) { "oss" } else { "s3" };
        let prefix = format!("{number}/");
        let place = Place {
            directory: &directory,
            mapped: node.mapped.to_string_lossy().into_owned(),
            store: format!("{scheme}://{BUCKET}/{prefix}"),
            // No other test sleeps so long.
            seconds: 700_000 + number,
        };
        let work = Work::new(kind, &place, &mut dice);
        let (name, job) = (format!("task {number} ({kind:?}, {scheme})"), format!("job-{number}"));
        let seconds = place.seconds;
        Self { node, name, job, kind, work, directory, prefix, seconds, dice, kills: Kills::default() }
    }

    /// Runs it to its end, and says how often an agent was killed.
    pub(super) fn run(mut self) -> Kills {
        for (key, content) in &self.work.inputs {
            self.node.double.put(BUCKET, &format!("{}{key}", self.prefix), content.clone());
        }
        // What agents said of tasks before this one is nobody's any more.
        let _ = fs::remove_file(self.node.node.path("log"));
        let endpoint = self.node.double.endpoint();
        let store = json!({
            "endpoint": endpoint, "region": "cn-test",
            "access_key_id": "test-key", "access_key_secret": "test-secret",
        });
        self.node.node.settings(&json!({
            "storage": {"oss": store, "s3": store},
            "report": {"directory": format!("oss://{BUCKET}/node-{}/", self.node.number)},
            "task": {"job_id": self.job, "job": {"version": 1, "tasks": {"only": self.work.task}}},
        }));
        self.siege();
        if self.kind == Kind::IsCancelled {
            self.cancel();
            self.siege();
        }
        self.to_the_end();
        self.verify();
        // What has ended is not done again.
        if self.dice.bool() {
            self.siege();
            self.to_the_end();
            self.verify();
        }
        if self.work.expected.is_reserved {
            let released = self.node.node.run(&["release", &self.job]);
            assert_eq!(released.code, Some(0), "{}: {released:?}", self.name);
        }
        assert_gone(&self.name, || self.left());
        fs::remove_dir_all(&self.directory).unwrap();
        self.kills
    }

    /// Starts agents and kills them.
    fn siege(&mut self) {
        for _ in 0..self.dice.usize(1..4) {
            let mut agent = self.boot();
            self.kill(&mut agent);
        }
    }

    fn boot(&self) -> Child {
        self.node.node.boot()
    }

    fn kill(&mut self, agent: &mut Child) -> bool {
        let before = self.node.node.log().len();
        let moment = Moment::any(&mut self.dice);
        let was_killed = moment.kill(agent, || self.node.node.log().get(before..).unwrap_or_default().to_owned());
        if was_killed {
            let has_ended = self.node.node.log().get(before..).unwrap_or_default().contains("the program has ended");
            self.kills.count(self.runs() > 0, has_ended);
        }
        was_killed
    }

    /// Cancels the task once it runs, while its agent is there or after that was killed.
    fn cancel(&mut self) {
        let up = self.directory.join("up");
        let mut agent = self.boot();
        eventually(&format!("{}: it is up", self.name), LIMIT, || up.exists());
        if self.dice.bool() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
        let cancelled = self.node.node.run(&["cancel", &self.job]);
        assert_eq!(cancelled.code, Some(0), "{}: {cancelled:?}", self.name);
        self.kill(&mut agent);
    }

    fn to_the_end(&self) {
        let status = self.node.node.boot_to_end();
        assert_eq!(status, 0, "{}: {}", self.name, self.node.node.log());
    }

    /// How often the program was begun.
    fn runs(&self) -> usize {
        fs::read_to_string(self.directory.join("runs")).unwrap_or_default().lines().count()
    }

    /// Compares what it came to with what it had to come to.
    fn verify(&self) {
        let Expected { state, cause, exit_code, signal, exit_status, runs, .. } = self.work.expected.clone();
        let (name, status) = (&self.name, self.node.node.status());
        let outcome = &status["outcome"];
        assert_eq!(self.runs(), runs as usize, "{name}: how often the program ran; {outcome:#}");
        let attempts = runs.max(1);
        let found = json!({
            "job": status["job_id"], "state": outcome["state"], "cause": outcome["cause"], "exit_code": outcome["exit_code"],
            "signal": outcome["signal"], "exit_status": outcome["exit_status"], "attempts": outcome["attempts"],
            "retries": outcome["retries"], "reserved": outcome["reserved"].is_object(),
        });
        let wanted = json!({
            "job": self.job, "state": state, "cause": cause, "exit_code": exit_code,
            "signal": signal, "exit_status": exit_status, "attempts": attempts,
            "retries": attempts - 1, "reserved": self.work.expected.is_reserved,
        });
        assert_eq!(found, wanted, "{name}: {outcome:#}");
        self.verify_objects(attempts);
        self.verify_events(state);
    }

    fn verify_objects(&self, attempts: u32) {
        let name = &self.name;
        let expected = &self.work.expected;
        let mut wanted: BTreeMap<String, Vec<u8>> = expected.objects.clone();
        let mut others: BTreeSet<String> = self.work.inputs.keys().cloned().collect();
        others.insert(format!("report.{}.only.0.html", self.job));
        if expected.exit_code.is_some() || expected.signal.is_some() {
            others.insert(format!("manifest.{}.only.0.json", self.job));
        }
        for attempt in 1..=attempts {
            let suffix = if attempt == 1 { String::new() } else { format!(".{attempt}") };
            let id = format!("{}.only.0{suffix}", self.job);
            let (stdout, stderr) = expected.logs[attempt as usize - 1].clone();
            wanted.insert(format!("stdout.{id}"), stdout);
            wanted.insert(format!("stderr.{id}"), stderr);
            others.insert(format!("metrics.{id}.jsonl"));
        }
        let objects = self.node.double.objects(BUCKET);
        let mine: BTreeMap<&str, Vec<u8>> = objects
            .iter()
            .filter_map(|(key, object)| Some((key.strip_prefix(&self.prefix)?, object.bytes())))
            .collect();
        for (key, content) in &wanted {
            let found = mine.get(key.as_str()).unwrap_or_else(|| panic!("{name}: no object {key}; {:?}", mine.keys()));
            let is_explained = expected.runs == 0 && key.starts_with("stderr.") && found.starts_with(content);
            if found != content && !is_explained {
                let same = found.iter().zip(content).take_while(|(a, b)| a == b).count();
                panic!(
                    "{name}: {key} has {} bytes and must have {}; {same} are right, then {:?}",
                    found.len(),
                    content.len(),
                    String::from_utf8_lossy(&found[same..found.len().min(same + 200)])
                );
            }
        }
        // Metrics need a moment to be worth a line.
        let unknown: Vec<_> =
            mine.keys().filter(|key| !wanted.contains_key(**key) && !others.contains(**key)).collect();
        assert!(unknown.is_empty(), "{name}: objects that nothing explains: {unknown:?}");
        for key in others.iter().filter(|key| !key.starts_with("metrics.")) {
            assert!(mine.contains_key(key.as_str()), "{name}: no object {key}; {:?}", mine.keys());
        }
        if let Some(manifest) = mine.get(format!("manifest.{}.only.0.json", self.job).as_str()) {
            let manifest: Value = serde_json::from_slice(manifest).unwrap();
            assert_eq!(manifest["files"].as_array().map(Vec::len), Some(self.uploaded()), "{name}: {manifest:#}");
        }
        let uploads = self.node.double.uploads(BUCKET);
        let open: Vec<_> = uploads.iter().filter(|upload| upload.key.starts_with(&self.prefix)).collect();
        assert!(open.is_empty(), "{name}: uploads that nobody ends: {open:?}");
    }

    /// How many files it has as outputs.
    fn uploaded(&self) -> usize {
        self.work.expected.objects.keys().filter(|key| *key != "own.log").count()
    }

    /// That it ended was told, once, and as it did.
    fn verify_events(&self, state: &str) {
        let events = self.node.double.get(BUCKET, &format!("node-{}/events.i-test.jsonl", self.node.number)).unwrap();
        let events = String::from_utf8(events).unwrap();
        let mine = events
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|event| event["JobId"] == *self.job && event["InstanceId"] == "0");
        let ends: Vec<String> = mine
            .filter_map(|event| event["Event"].as_str().map(str::to_owned))
            .filter(|event| ["Finished", "Failed", "Stopped"].iter().any(|end| event.ends_with(end)))
            .collect();
        assert_eq!(ends, [format!("OnInstance{state}")], "{}", self.name);
    }

    /// What of it is on the machine.
    fn left(&self) -> Vec<String> {
        let mut left = self.node.left();
        let sleeps = format!("sleep\0{}\0", self.seconds);
        for process in fs::read_dir("/proc").unwrap().flatten() {
            if fs::read(process.path().join("cmdline")).is_ok_and(|line| line == sleeps.as_bytes()) {
                left.push(format!("process {}", process.file_name().display()));
            }
        }
        left
    }
}
