//! What events say, in the job service's own JSON.
//!
//! Keys, their order and their form are the service's: every value is text, numbers too, and times have six decimal places
//! (`2016-11-01T15:25:02.837728Z`). A time that has not come is empty. Programs that were written for the service's messages read these;
//! one key more, `EventId` at the end, tells an event that is delivered twice.

use jiff::Timestamp;
use oss::Location;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::job::names::Attempt;
use crate::outcome::{InstanceOutcome, JobOutcome, State};

/// The longest text that goes into an event as it is, in bytes. A topic takes 64 KiB for all of one.
const LONGEST: usize = 8 << 10;

/// The key of an event's id.
pub const ID: &str = "EventId";

/// The events that others can ask for: the service's, and the node's own.
pub const NAMES: [&str; 26] = [
    "OnJobWaiting",
    "OnJobRunning",
    "OnJobStopped",
    "OnJobFinished",
    "OnJobFailed",
    "OnTaskWaiting",
    "OnTaskRunning",
    "OnTaskStopped",
    "OnTaskFinished",
    "OnTaskFailed",
    "OnInstanceWaiting",
    "OnInstanceRunning",
    "OnInstanceStopped",
    "OnInstanceFinished",
    "OnInstanceFailed",
    "OnInstanceCreated",
    "OnInstanceActive",
    "PhaseStarted",
    "PhaseDone",
    "PhaseSkipped",
    "PhaseFailed",
    "MountDone",
    "MountFailed",
    "DiskStep",
    "SpotReclaim",
    "NodeDone",
];

/// The events that only the service itself can tell; asking for them is no mistake.
pub const OF_THE_SERVICE: [&str; 2] = ["OnClusterDeleted", "OnPriorityChange"];

/// How far something is, in the service's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Stage {
    /// Its turn has not come.
    Waiting,
    /// It runs.
    Running,
    /// It was stopped.
    Stopped,
    /// It succeeded.
    Finished,
    /// It failed.
    Failed,
}

impl From<State> for Stage {
    fn from(state: State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::Finished => Self::Finished,
            State::Failed => Self::Failed,
            State::Stopped => Self::Stopped,
        }
    }
}

/// Something that has happened, ready to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Its name: `OnInstanceRunning`.
    pub name: String,
    /// What it is about, for its id: unique together with the name.
    pub subject: String,
    /// What it says.
    pub body: Map<String, Value>,
}

impl Message {
    fn new(name: String, subject: String, event: &impl Serialize) -> Self {
        let body = match serde_json::to_value(event) {
            Ok(Value::Object(body)) => body,
            // Structures of texts always become an object.
            _ => Map::new(),
        };
        Self { name, subject, body }
    }
}

/// A time as the service writes it; empty for one that has not come.
fn time(time: Option<Timestamp>) -> String {
    time.map_or(String::new(), |time| time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
}

/// A text that fits into an event.
pub(super) fn short(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct JobEvent<'a> {
    category: &'a str,
    job_id: &'a str,
    job_name: String,
    event: &'a str,
    state: Stage,
    creation_time: String,
    start_time: String,
    end_time: String,
    message: String,
}

/// `OnJob...`.
pub fn job(id: &str, name: &str, stage: Stage, started: Timestamp, outcome: Option<&JobOutcome>) -> Message {
    let event = format!("OnJob{stage:?}");
    let failed = outcome.into_iter().flat_map(|outcome| &outcome.tasks).flat_map(|task| &task.instances);
    let message = failed.filter_map(|instance| instance.message.as_deref().map(|_| instance.summary())).next();
    let started = (stage != Stage::Waiting).then_some(started).or(outcome.map(|outcome| outcome.started));
    let body = JobEvent {
        category: "Job",
        job_id: id,
        job_name: short(name),
        event: &event,
        state: stage,
        creation_time: time(Some(started.unwrap_or_else(Timestamp::now))),
        start_time: time(started),
        end_time: time(outcome.map(|outcome| outcome.ended)),
        message: short(&message.unwrap_or_default()),
    };
    Message::new(event.clone(), id.to_owned(), &body)
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct TaskEvent<'a> {
    category: &'a str,
    job_id: &'a str,
    task: &'a str,
    event: &'a str,
    state: Stage,
    start_time: String,
    end_time: String,
}

/// `OnTask...`.
pub fn task(job: &str, name: &str, stage: Stage, started: Option<Timestamp>, ended: Option<Timestamp>) -> Message {
    let event = format!("OnTask{stage:?}");
    let body = TaskEvent {
        category: "Job",
        job_id: job,
        task: name,
        event: &event,
        state: stage,
        start_time: time(started),
        end_time: time(ended),
    };
    Message::new(event.clone(), format!("{job}.{name}"), &body)
}

/// Where an instance's output goes, as far as it goes into object storage.
#[derive(Debug, Clone, Copy, Default)]
pub struct Streams<'a> {
    /// The directory of its standard output.
    pub stdout: Option<&'a Location>,
    /// And of its standard error.
    pub stderr: Option<&'a Location>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct InstanceEvent<'a> {
    category: &'a str,
    job_id: &'a str,
    task: &'a str,
    instance_id: String,
    event: &'a str,
    state: Stage,
    start_time: String,
    end_time: String,
    retry_count: String,
    progress: String,
    stdout_redirect_path: String,
    stderr_redirect_path: String,
    exit_code: String,
    error_code: &'a str,
    error_message: String,
    detail: String,
}

/// `OnInstance...` of a job, with what came of it if it has ended.
pub fn instance(
    attempt: Attempt<'_>,
    streams: Streams<'_>,
    stage: Stage,
    started: Option<Timestamp>,
    outcome: Option<&InstanceOutcome>,
) -> Message {
    let event = format!("OnInstance{stage:?}");
    let object = |directory: Option<&Location>, name: String| {
        directory.map_or(String::new(), |directory| directory.join(&name).to_string())
    };
    // The program's own; where it has none, what `batch-agent run` exits with.
    let exit_code = outcome.map_or(0, |outcome| outcome.exit_code.unwrap_or(i32::from(outcome.exit_status)));
    let signal = outcome.and_then(|outcome| outcome.signal);
    let body = InstanceEvent {
        category: "Job",
        job_id: attempt.job,
        task: attempt.task,
        instance_id: attempt.instance.to_string(),
        event: &event,
        state: stage,
        start_time: time(started),
        end_time: time(outcome.map(|outcome| outcome.ended)),
        retry_count: outcome.map_or(attempt.number.saturating_sub(1), |outcome| outcome.retries).to_string(),
        progress: if stage == Stage::Finished { "100" } else { "0" }.to_owned(),
        stdout_redirect_path: object(streams.stdout, attempt.stdout()),
        stderr_redirect_path: object(streams.stderr, attempt.stderr()),
        exit_code: exit_code.to_string(),
        error_code: outcome.and_then(|outcome| outcome.cause).map_or("", |cause| cause.as_str()),
        error_message: short(outcome.and_then(|outcome| outcome.message.as_deref()).unwrap_or_default()),
        detail: signal.map_or(String::new(), |signal| format!("killed by signal {signal}")),
    };
    Message::new(event.clone(), attempt.to_string(), &body)
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeEvent<'a> {
    category: &'a str,
    cluster_id: &'a str,
    group: &'a str,
    instance_id: &'a str,
    inner_ip_address: &'a str,
    hints: &'a str,
    state: &'a str,
    creation_time: String,
    event: &'a str,
}

/// A node of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct ClusterNode<'a> {
    /// The cluster it belongs to; may be empty.
    pub cluster: &'a str,
    /// Its own id.
    pub instance: &'a str,
    /// Its address inside of the cluster's network; may be empty.
    pub address: &'a str,
    /// Which start of the machine this is.
    pub boot: &'a str,
    /// When the agent began.
    pub created: Timestamp,
}

/// `OnInstanceCreated`, when the agent begins to prepare the node, and `OnInstanceActive`, when it is prepared.
pub fn node(node: ClusterNode<'_>, is_active: bool) -> Message {
    let (event, state) = if is_active { ("OnInstanceActive", "Running") } else { ("OnInstanceCreated", "Starting") };
    let body = NodeEvent {
        category: "Cluster",
        cluster_id: node.cluster,
        group: "",
        instance_id: node.instance,
        inner_ip_address: node.address,
        hints: "",
        state,
        creation_time: time(Some(node.created)),
        event,
    };
    Message::new(event.to_owned(), format!("{}.{}", node.instance, node.boot), &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Cause, Uploaded};

    fn outcome() -> InstanceOutcome {
        InstanceOutcome {
            task: "Echo".to_owned(),
            instance: 0,
            retries: 1,
            attempts: 2,
            state: State::Failed,
            exit_code: None,
            signal: Some(9),
            cause: Some(Cause::OutOfMemory),
            message: Some("it is gone".to_owned()),
            started: "2016-11-01T15:35:02.837728Z".parse().unwrap(),
            ended: "2016-11-01T15:45:02Z".parse().unwrap(),
            elapsed_ms: None,
            usage: None,
            figures: None,
            stdout: None,
            stderr: None,
            outputs: Uploaded::default(),
            reserved: None,
            exit_status: 137,
        }
    }

    #[test]
    fn instances_are_told_as_the_service_tells_them() {
        let logs: Location = "oss://bucket/tests/logs/".parse().unwrap();
        let attempt = Attempt { job: "job-1", task: "Echo", instance: 0, number: 2 };
        let streams = Streams { stdout: Some(&logs), stderr: None };
        let outcome = outcome();
        let told = instance(attempt, streams, Stage::Failed, Some(outcome.started), Some(&outcome));
        let expected = concat!(
            r#"{"Category":"Job","JobId":"job-1","Task":"Echo","InstanceId":"0","Event":"OnInstanceFailed","State":"Failed","#,
            r#""StartTime":"2016-11-01T15:35:02.837728Z","EndTime":"2016-11-01T15:45:02.000000Z","RetryCount":"1","#,
            r#""Progress":"0","StdoutRedirectPath":"oss://bucket/tests/logs/stdout.job-1.Echo.0.2","StderrRedirectPath":"","#,
            r#""ExitCode":"137","ErrorCode":"out-of-memory","ErrorMessage":"it is gone","Detail":"killed by signal 9"}"#
        );
        assert_eq!(serde_json::to_string(&told.body).unwrap(), expected);
        assert_eq!((told.name.as_str(), told.subject.as_str()), ("OnInstanceFailed", "job-1.Echo.0.2"));
        let waiting = instance(attempt, streams, Stage::Waiting, None, None);
        assert_eq!((&waiting.body["ExitCode"], &waiting.body["StartTime"]), (&"0".into(), &"".into()));
    }

    #[test]
    fn jobs_tasks_and_nodes_have_the_services_keys_in_its_order() {
        let keys = |message: &Message| message.body.keys().cloned().collect::<Vec<_>>().join(" ");
        let now = Timestamp::now();
        assert_eq!(
            keys(&job("job-1", "test-job", Stage::Waiting, now, None)),
            "Category JobId JobName Event State CreationTime StartTime EndTime Message"
        );
        let told = task("job-1", "Echo", Stage::Finished, Some(now), Some(now));
        assert_eq!(keys(&told), "Category JobId Task Event State StartTime EndTime");
        let of = ClusterNode { cluster: "cls-1", instance: "i-1", address: "10.0.0.1", boot: "b", created: now };
        let told = node(of, false);
        assert_eq!(keys(&told), "Category ClusterId Group InstanceId InnerIpAddress Hints State CreationTime Event");
        assert_eq!((&told.body["Event"], &told.body["State"]), (&"OnInstanceCreated".into(), &"Starting".into()));
    }

    #[test]
    fn every_name_that_is_told_can_be_asked_for() {
        for stage in [Stage::Waiting, Stage::Running, Stage::Stopped, Stage::Finished, Stage::Failed] {
            for kind in ["Job", "Task", "Instance"] {
                assert!(NAMES.contains(&format!("On{kind}{stage:?}").as_str()));
            }
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = "é".repeat(LONGEST);
        assert!(short(&long).len() <= LONGEST + 3 && short(&long).ends_with("é..."));
        assert_eq!(short("short"), "short");
    }
}
