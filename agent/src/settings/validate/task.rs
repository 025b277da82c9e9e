//! The task of a node: one instance of one task of a job that is in the settings, in a file or in object storage.

use serde_json::Value as Json;

use crate::job::finding::{At, Finding, Findings, Place, nearest, quoted};
use crate::job::names::JobId;
use crate::job::validate::{self as job, local_path};
use crate::job::{self as jobs, Format, JobDescription};
use crate::settings::description::{NodeTask, TaskSource};
use crate::settings::format::TaskDocument;

/// Checks the task. A job that is in the settings themselves is checked with them.
pub(super) fn check(document: TaskDocument, place: &Place, findings: &mut Findings) -> Option<NodeTask> {
    let job_id = document.job_id.filter(|id| !id.is_empty());
    if let Some(id) = &job_id
        && let Err(error) = id.parse::<JobId>()
    {
        findings.error(&place.key("job_id"), format!("the id {} {error}", quoted(id)));
    }
    if let Some(name) = &document.task {
        job::named(&place.key("task"), "the task's name", name, findings);
    }
    let instance = document.instance.unwrap_or(0);
    let source = match (document.job, document.file, document.object) {
        (Some(job), None, None) => {
            inline(&job, document.task.as_deref(), instance, place, findings).map(TaskSource::Inline)
        }
        (None, Some(file), None) => match local_path::normal(&file) {
            Ok(path) => Some(TaskSource::File(path.path)),
            Err(refusal) => {
                findings.error_with(&place.key("file"), refusal.cause, refusal.remedy);
                None
            }
        },
        (None, None, Some(object)) => {
            let object = At::new(place.key("object"), object);
            let location = job::location(&object, findings);
            if location.as_ref().is_some_and(oss::Location::is_directory) {
                let cause = format!("{} is a directory", quoted(&object.value));
                findings.error_with(&object.place, cause, "name the one object that is the job description");
            }
            location.map(TaskSource::Object)
        }
        (None, None, None) => {
            findings.error_with(place, "names no job", "write one of job, file and object");
            None
        }
        _ => {
            findings.error_with(place, "names more than one job", "keep one of job, file and object");
            None
        }
    };
    Some(NodeTask { source: source?, job_id, task: document.task, instance })
}

/// The text of a job that is written in the settings.
fn inline(job: &Json, task: Option<&str>, instance: u32, place: &Place, findings: &mut Findings) -> Option<String> {
    let text = job.to_string();
    let at = place.key("job");
    match jobs::read(text.as_bytes(), Format::Json) {
        Ok((job, warnings)) => {
            findings.adopt(&at, Vec::new(), warnings.into_iter().map(placeless).collect());
            pick(&job, task, instance, place, findings);
            Some(text)
        }
        Err(problems) => {
            let placeless = |list: &[Finding]| list.iter().cloned().map(placeless).collect();
            findings.adopt(&at, placeless(problems.findings()), placeless(problems.warnings()));
            None
        }
    }
}

/// The finding without the line and column of a text that nobody has written.
fn placeless(mut finding: Finding) -> Finding {
    if let Some((cause, place)) = finding.cause.rsplit_once(" (line ")
        && place.ends_with(')')
    {
        finding.cause = cause.to_owned();
    }
    finding
}

/// Whether the job has the task and the instance.
fn pick(job: &JobDescription, task: Option<&str>, instance: u32, place: &Place, findings: &mut Findings) {
    let names = || job.tasks.iter().map(|task| task.name.as_str());
    let found = match (task, job.tasks.as_slice()) {
        (Some(name), _) => match job.task(name) {
            Some(task) => task,
            None => {
                let remedy = match nearest(name, names()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "name a task of the job".to_owned(),
                };
                return findings.error_with(
                    &place.key("task"),
                    format!("the job has no task {}", quoted(name)),
                    remedy,
                );
            }
        },
        (None, [only]) => only,
        (None, several) => {
            let remedy = format!("add task: with one of {}", names().take(10).collect::<Vec<_>>().join(", "));
            return findings.error_with(place, format!("the job has {} tasks", several.len()), remedy);
        }
    };
    if instance >= found.instances {
        findings.error_with(
            &place.key("instance"),
            format!("the task {} has {} instances, and they count from 0", quoted(&found.name), found.instances),
            "name one of them",
        );
    }
}
