//! What would happen if a job ran here, said without doing any of it.
//!
//! [`Report::new`] is a pure function of the description: it asks neither the network nor the disk whether anything it names
//! is there. Its `Display` is for people, its serialised form for programs. Values of environment variables and credentials are
//! in neither, because reports end up in tickets and logs.

use std::fmt::{self, Display};
use std::time::Duration;

use fuse_oss::ByteSize;
use oss::Location;
use serde::Serialize;

use super::description::{ImageSource, Job, Limits, Task};
use super::finding::{Warning, visible};
use super::names::Attempt;

/// What stands for the job's id where there is none yet.
const JOB_PLACEHOLDER: &str = "<job>";

/// What the node can do beyond running programs on objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// NAS and Lustre can be mounted for a task.
    pub network_mounts: bool,
    /// Tasks can run in containers.
    pub containers: bool,
}

/// What would happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The job's name.
    pub name: String,
    /// Whether the first instance that fails for good ends the job.
    pub stop_on_failure: bool,
    /// The tasks, in an order in which they could run.
    pub tasks: Vec<TaskReport>,
    /// What does not keep the job from running.
    pub warnings: Vec<Warning>,
}

/// What would happen in a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskReport {
    /// Its name.
    pub name: String,
    /// The tasks it waits for.
    pub after: Vec<String>,
    /// The program and its arguments, as it will get them.
    pub command: Vec<String>,
    /// What is put into the working directory.
    pub package: Option<String>,
    /// The container image.
    pub image: Option<String>,
    /// Where the image is in object storage, when it is not pulled from a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_source: Option<String>,
    /// How many instances there are.
    pub instances: u32,
    /// How often a failed instance is started again.
    pub retries: u32,
    /// Exit codes after which it is not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub never_retried: Vec<u8>,
    /// Whether one that ran out of time is, too.
    pub timeouts_retried: bool,
    /// Whether mounts and directories of an instance that has failed stay for a while.
    pub reserved_on_fail: bool,
    /// How long an attempt may run, in seconds.
    pub timeout_seconds: Option<u64>,
    /// What it sees, network file systems included.
    pub inputs: Vec<InputReport>,
    /// What is uploaded in the end.
    pub outputs: Vec<OutputReport>,
    /// The log objects: `stdout`, `stderr`, then the program's own log files by their local paths.
    pub logs: Vec<OutputReport>,
    /// The names of the author's environment variables.
    pub environment: Vec<String>,
    /// Whether the job brings its own credentials for its inputs.
    pub own_credentials: bool,
    /// The most of its inputs that the node's cache on disk may hold, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_limit: Option<u64>,
    /// The least of its inputs that a random read fetches, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least_fetch: Option<u64>,
    /// The most that each instance may use of the machine.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// Who it runs as, when it is not root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What the task needs and this node does not have; the task will not run here.
    pub missing: Vec<Missing>,
}

/// Something that appears at a local path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InputReport {
    /// Where it comes from.
    pub source: String,
    /// Where it appears.
    pub target: String,
    /// Whether it is a directory and not one file.
    pub directory: bool,
    /// Whether the task may change it.
    pub writable: bool,
    /// Whether it is a network file system, where changes are real.
    pub network: bool,
    /// The character set names appear in, when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
}

/// Something that is uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutputReport {
    /// What: a local path, or `stdout`, `stderr`.
    pub source: String,
    /// Where to. `<job>` stands for the job's id, `<0-2>` for the instance's number.
    pub target: String,
}

/// Something a task needs and the node does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// What the task needs.
    pub needs: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Report {
    /// Says what would happen with a job on a node of these abilities.
    pub fn new(job: &Job, warnings: &[Warning], abilities: Abilities) -> Self {
        Self {
            name: job.name.clone(),
            stop_on_failure: job.stop_on_failure,
            tasks: job.tasks.iter().map(|task| TaskReport::new(task, abilities)).collect(),
            warnings: warnings.to_vec(),
        }
    }

    /// Whether this node has all that the job needs.
    pub fn is_runnable(&self) -> bool {
        self.tasks.iter().all(|task| task.missing.is_empty())
    }
}

impl TaskReport {
    fn new(task: &Task, abilities: Abilities) -> Self {
        let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let storage = task.inputs.iter().map(|input| InputReport {
            source: input.source.to_string(),
            target: path(&input.target),
            directory: input.source.is_directory(),
            writable: input.writable,
            network: false,
            locale: (!input.locale.is_utf8()).then(|| input.locale.name().to_owned()),
        });
        let network = task.network_mounts.iter().map(|mount| InputReport {
            source: mount.source.clone(),
            target: path(&mount.target),
            directory: true,
            writable: mount.writable,
            network: true,
            locale: None,
        });
        Self {
            name: task.name.clone(),
            after: task.after.clone(),
            command: task.command.clone(),
            package: task.package.as_ref().map(Location::to_string),
            image: task.container.as_ref().map(|container| container.image.to_string()),
            image_source: task.container.as_ref().and_then(|container| match &container.source {
                ImageSource::Registry => None,
                ImageSource::Archive(location) | ImageSource::Tree(location) => Some(location.to_string()),
            }),
            instances: task.instances,
            retries: task.max_retries,
            never_retried: task.retry_rules.never.iter().copied().collect(),
            timeouts_retried: task.retry_rules.timeouts,
            reserved_on_fail: task.reserve_on_fail,
            timeout_seconds: task.timeout.map(|timeout| timeout.as_secs()),
            inputs: storage.chain(network).collect(),
            outputs: task
                .outputs
                .iter()
                .map(|output| OutputReport { source: path(&output.source), target: output.target.to_string() })
                .collect(),
            logs: logs(task),
            environment: task.environment.keys().cloned().collect(),
            own_credentials: task.input_store.is_some(),
            cache_limit: task.input_cache.limit.map(ByteSize::bytes),
            least_fetch: task.input_cache.fetch.map(ByteSize::bytes),
            limits: task.limits,
            user: task.user.as_ref().map(ToString::to_string),
            missing: missing(task, abilities),
        }
    }
}

/// The log objects of a task, with placeholders for what is known only when it runs.
fn logs(task: &Task) -> Vec<OutputReport> {
    let attempt = Attempt { job: JOB_PLACEHOLDER, task: &task.name, instance: 0, number: 1 };
    let numbered = |object: String| match object.strip_suffix(".0") {
        Some(stem) if task.instances > 1 => format!("{stem}.<0-{}>", task.instances - 1),
        _ => object,
    };
    let stream = |directory: &Option<Location>, what: &str, name: String| {
        let directory = directory.as_ref()?;
        Some(OutputReport { source: what.to_owned(), target: numbered(directory.join(&name).to_string()) })
    };
    let streams = [stream(&task.stdout, "stdout", attempt.stdout()), stream(&task.stderr, "stderr", attempt.stderr())];
    let files = task.logs.iter().map(|log| {
        let object = attempt.log(log).to_string();
        OutputReport {
            source: log.source.to_string_lossy().into_owned(),
            target: if log.target.is_directory() { numbered(object) } else { object },
        }
    });
    streams.into_iter().flatten().chain(files).collect()
}

fn missing(task: &Task, abilities: Abilities) -> Vec<Missing> {
    let mut missing = Vec::new();
    if !abilities.network_mounts {
        missing.extend(task.network_mounts.iter().map(|mount| Missing {
            needs: format!("the network file system {} at {}", mount.source, mount.target.display()),
            remedy: "mount it on the machine and remove it from the job; this version does not mount it for a task",
        }));
    }
    if let (Some(container), false) = (&task.container, abilities.containers) {
        missing.push(Missing {
            needs: format!("the container image {}", container.image),
            remedy: "install its programs on the machine and remove it from the job; this version runs no containers",
        });
    }
    missing
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = if self.stop_on_failure {
            "the first instance that fails for good ends it"
        } else {
            "it runs on when an instance fails"
        };
        let plural = if self.tasks.len() == 1 { "" } else { "s" };
        writeln!(f, "job {}: {} task{plural}; {policy}", visible(&self.name), self.tasks.len())?;
        for task in &self.tasks {
            writeln!(f)?;
            task.fmt(f)?;
        }
        if !self.warnings.is_empty() {
            writeln!(f, "\nwarnings")?;
            for warning in &self.warnings {
                writeln!(f, "  {warning}")?;
            }
        }
        Ok(())
    }
}

/// One line of a report: what it is about, and what there is to say, made safe for a terminal.
fn line(f: &mut fmt::Formatter<'_>, what: &str, text: &str) -> fmt::Result {
    writeln!(f, "  {what:<12}{}", visible(text))
}

impl Display for TaskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "task {}", visible(&self.name))?;
        if !self.after.is_empty() {
            line(f, "after", &self.after.join(", "))?;
        }
        line(f, "runs", &shell_words::join(&self.command))?;
        if let Some(package) = &self.package {
            line(f, "package", package)?;
        }
        if let Some(image) = &self.image {
            let from = self.image_source.as_ref().map(|from| format!(" from {from}")).unwrap_or_default();
            line(f, "container", &format!("{image}{from}"))?;
        }
        if let Some(user) = &self.user {
            line(f, "user", user)?;
        }
        line(f, "instances", &self.effort())?;
        if !self.limits.is_empty() {
            line(f, "at most", &limits(&self.limits))?;
        }
        if self.reserved_on_fail {
            line(f, "on failure", "mounts and directories stay for a while; see batch-agent enter")?;
        }
        for input in &self.inputs {
            line(f, "input", &input.text())?;
        }
        if self.own_credentials {
            line(f, "", "inputs are read with the job's own credentials")?;
        }
        match self.cache_limit {
            Some(0) => line(f, "", "inputs are not kept in the cache on disk")?,
            Some(limit) => line(f, "", &format!("inputs take at most {} of the cache on disk", ByteSize::new(limit)))?,
            None => {}
        }
        if let Some(least) = self.least_fetch {
            line(f, "", &format!("random reads of inputs fetch at least {}", ByteSize::new(least)))?;
        }
        for output in &self.outputs {
            line(f, "output", &format!("{} → {}", output.source, output.target))?;
        }
        for log in &self.logs {
            let (what, text) = match log.source.as_str() {
                stream @ ("stdout" | "stderr") => (stream, log.target.clone()),
                file => ("log", format!("{file} → {}", log.target)),
            };
            line(f, what, &text)?;
        }
        if !self.environment.is_empty() {
            line(f, "variables", &self.environment.join(", "))?;
        }
        for missing in &self.missing {
            line(f, "CANNOT RUN", &format!("needs {}; {}", missing.needs, missing.remedy))?;
        }
        Ok(())
    }
}

impl TaskReport {
    /// How many instances, how often, how long.
    fn effort(&self) -> String {
        let mut text = self.instances.to_string();
        match self.retries {
            0 => {}
            1 => text.push_str(", started again once on failure"),
            times => text.push_str(&format!(", started again up to {times} times on failure")),
        }
        if self.retries > 0 && !self.never_retried.is_empty() {
            let codes: Vec<String> = self.never_retried.iter().map(u8::to_string).collect();
            text.push_str(&format!(" (not after exit code {})", codes.join(", ")));
        }
        if self.retries > 0 && self.timeouts_retried {
            text.push_str(", also when time ran out");
        }
        match self.timeout_seconds {
            Some(seconds) => text.push_str(&format!(", stopped after {}", length(Duration::from_secs(seconds)))),
            None => text.push_str(", without a time limit"),
        }
        text
    }
}

fn limits(limits: &Limits) -> String {
    let cpu = limits.cpu_millis.map(|millis| format!("{} processors", f64::from(millis) / 1000.0));
    let memory = limits.memory.map(|bytes| format!("{} of memory", ByteSize::new(bytes)));
    let pids = limits.pids.map(|pids| format!("{pids} processes and threads"));
    [cpu, memory, pids].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

impl InputReport {
    fn text(&self) -> String {
        let kind = if self.directory { "directory" } else { "one file" };
        let access = match (self.network, self.writable) {
            (true, true) => "changes are written to it",
            (false, true) => "changes stay local and are dropped",
            (_, false) => "read-only",
        };
        let locale = self.locale.as_ref().map(|locale| format!(", names in {locale}")).unwrap_or_default();
        format!("{} → {} ({kind}, {access}{locale})", self.source, self.target)
    }
}

/// `1d 2h`, `90s` as `1m 30s`.
pub(crate) fn length(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    let mut parts = Vec::new();
    for (unit, seconds) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if rest >= seconds {
            parts.push(format!("{}{unit}", rest / seconds));
            rest %= seconds;
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Format, read};

    const JOB: &str = r#"{"Name":"demo","JobFailOnInstanceFail":false,"DAG":{"Tasks":{
        "count":{"InstanceCount":3,"MaxRetryCount":2,"Timeout":5400,
            "InputMapping":{"oss://b/in/":"/home/in/","oss://b/ref.fa":"/home/ref.fa"},
            "OutputMapping":{"/home/out/":"oss://b/out/"},
            "LogMapping":{"/home/a.log":"oss://b/logs/"},
            "Mounts":{"Entries":[{"Source":"nas://n.example:/d/","Destination":"/nas/","WriteSupport":true}],
                "CacheSupport":true,"CacheTotalSize":104857600,"CacheBlockSize":1048576,
                "OSS":{"AccessKeyId":"LTAI5t","AccessKeySecret":"very-secret"}},
            "Parameters":{"StdoutRedirectPath":"oss://b/logs/","Command":{"CommandLine":"python count.py 'a b' > x",
                "PackagePath":"oss://b/worker.tar.gz","EnvVars":{"TOKEN":"hidden-value","n":"5"},
                "Docker":{"Image":"registry.example/x:1"}},"InputMappingConfig":{"Locale":"GBK"}}},
        "split":{"WriteSupport":false,"Parameters":{"Command":{"CommandLine":"true"}}}},
        "Dependencies":{"split":["count"]}}}"#;

    #[test]
    fn a_report_says_what_would_happen_and_no_secrets() {
        let (job, warnings) = read(JOB.as_bytes(), Format::Json).unwrap();
        let report = Report::new(&job, &warnings, Abilities::default());
        let expected = "\
job demo: 2 tasks; it runs on when an instance fails

task split
  runs        true
  instances   1, stopped after 1d

task count
  after       split
  runs        python count.py 'a b' '>' x
  package     oss://b/worker.tar.gz
  container   registry.example/x:1
  instances   3, started again up to 2 times on failure, stopped after 1h 30m
  input       oss://b/in/ → /home/in (directory, changes stay local and are dropped, names in GBK)
  input       oss://b/ref.fa → /home/ref.fa (one file, changes stay local and are dropped, names in GBK)
  input       nas://n.example:/d/ → /nas (directory, changes are written to it)
              inputs are read with the job's own credentials
              inputs take at most 100MiB of the cache on disk
              random reads of inputs fetch at least 1MiB
  output      /home/out → oss://b/out/
  stdout      oss://b/logs/stdout.<job>.count.<0-2>
  log         /home/a.log → oss://b/logs/a.log.<job>.count.<0-2>
  variables   TOKEN, n
  CANNOT RUN  needs the network file system nas://n.example:/d/ at /nas; mount it on the machine and remove it from the \
job; this version does not mount it for a task
  CANNOT RUN  needs the container image registry.example/x:1; install its programs on the machine and remove it from the \
job; this version runs no containers

warnings
  DAG.Tasks.count.Parameters.Command.CommandLine: > is passed to the program as it is, because this is not a shell line; \
for a shell, write /bin/bash -c '...'
";
        assert_eq!(report.to_string(), expected);
        assert!(!report.is_runnable());
        let json = serde_json::to_string(&report).unwrap();
        for secret in ["hidden-value", "very-secret", "LTAI5t"] {
            assert!(!json.contains(secret) && !report.to_string().contains(secret), "{secret}");
        }
        let able = Abilities { network_mounts: true, containers: true };
        let report = Report::new(&job, &warnings, able);
        assert!(report.is_runnable() && report.warnings == warnings);
    }

    #[test]
    fn hostile_names_cannot_forge_lines() {
        let text = "version: 1\ntasks:\n  a:\n    command: [echo, \"x\\ny\\e[31m\"]\n    inputs:\n      - {source: \"oss://b/k\\n\", target: /x}\n";
        let (job, warnings) = read(text.as_bytes(), Format::Yaml).unwrap();
        let shown = Report::new(&job, &warnings, Abilities::default()).to_string();
        assert!(shown.contains("echo 'x\\ny\\u{1b}[31m'") && shown.contains("oss://b/k\\n →"), "{shown}");
    }
}
