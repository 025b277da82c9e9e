//! The task of a node: one instance of one task of a job that is in the settings, in a file or in object storage.

use std::time::Duration;

use serde_json::Value as Json;

use crate::instance::reserve::LIMIT;

use crate::job::finding::{At, Finding, Findings, Place, nearest, quoted};
use crate::job::names::JobId;
use crate::job::validate::{self as job, local_path};
use crate::job::{self as jobs, APP_DESCRIPTION, Format, JobDescription};
use crate::settings::description::{NodeTask, TaskSource};
use crate::settings::format::TaskDocument;

/// The longest that what a failed task leaves may stay, in seconds: a year.
const MAX_RESERVE: u64 = 365 * 86_400;

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
    let app = match (document.app, document.app_file, document.app_object) {
        (None, None, None) => None,
        (Some(app), None, None) => Some(TaskSource::Inline(app.to_string())),
        (None, Some(path), None) => file(&path, &place.key("app_file"), findings),
        (None, None, Some(location)) => object(location, place.key("app_object"), "App", findings),
        _ => {
            findings.error_with(place, "names more than one App", "keep one of app, app_file and app_object");
            None
        }
    };
    let source = match (document.job, document.file, document.object) {
        (Some(job), None, None) => {
            let task = document.task.as_deref();
            inline(&job, app.as_ref(), task, instance, place, findings).map(TaskSource::Inline)
        }
        (None, Some(path), None) => file(&path, &place.key("file"), findings),
        (None, None, Some(location)) => object(location, place.key("object"), "job", findings),
        (None, None, None) => {
            findings.error_with(place, "names no job", "write one of job, file and object");
            None
        }
        _ => {
            findings.error_with(place, "names more than one job", "keep one of job, file and object");
            None
        }
    };
    let reserve = match document.reserve.map(|reserve| (reserve.0, u64::try_from(reserve.0))) {
        None => LIMIT,
        Some((_, Ok(seconds @ 1..=MAX_RESERVE))) => Duration::from_secs(seconds),
        Some((seconds, _)) => {
            let cause = format!("expected 1 to {MAX_RESERVE} seconds, got {seconds}");
            findings.error_with(&place.key("reserve"), cause, "write a length of time such as 8h");
            LIMIT
        }
    };
    Some(NodeTask { source: source?, app, reserve, job_id, task: document.task, instance })
}

fn file(path: &str, place: &Place, findings: &mut Findings) -> Option<TaskSource> {
    match local_path::normal(path) {
        Ok(path) => Some(TaskSource::File(path.path)),
        Err(refusal) => {
            findings.error_with(place, refusal.cause, refusal.remedy);
            None
        }
    }
}

fn object(location: String, place: Place, what: &str, findings: &mut Findings) -> Option<TaskSource> {
    let object = At::new(place, location);
    let location = job::location(&object, findings);
    if location.as_ref().is_some_and(oss::Location::is_directory) {
        let cause = format!("{} is a directory", quoted(&object.value));
        findings.error_with(&object.place, cause, format!("name the one object that is the {what} description"));
    }
    location.map(TaskSource::Object)
}

/// The text of a job that is written in the settings. It is checked here, unless it is made from an App that is somewhere else.
fn inline(
    job: &Json,
    app: Option<&TaskSource>,
    task: Option<&str>,
    instance: u32,
    place: &Place,
    findings: &mut Findings,
) -> Option<String> {
    let text = job.to_string();
    let app = match app {
        None => None,
        Some(TaskSource::Inline(app)) => Some(app.as_bytes()),
        Some(TaskSource::File(_) | TaskSource::Object(_)) => return Some(text),
    };
    match jobs::read_with_app(text.as_bytes(), Format::Json, app) {
        Ok((job, warnings)) => {
            adopt(Vec::new(), warnings, place, findings);
            pick(&job, task, instance, place, findings);
            Some(text)
        }
        Err(problems) => {
            adopt(problems.findings().to_vec(), problems.warnings().to_vec(), place, findings);
            None
        }
    }
}

/// Takes over what was found about the job and about its App, each where it is in the settings.
fn adopt(errors: Vec<Finding>, warnings: Vec<Finding>, place: &Place, findings: &mut Findings) {
    let of_app = |finding: &Finding| finding.path.starts_with(APP_DESCRIPTION);
    let (app_errors, errors): (Vec<_>, Vec<_>) = errors.into_iter().map(placeless).partition(of_app);
    let (app_warnings, warnings): (Vec<_>, Vec<_>) = warnings.into_iter().map(placeless).partition(of_app);
    findings.adopt(&place.key("job"), errors, warnings);
    let inner = |mut finding: Finding| {
        let path = finding.path.trim_start_matches(APP_DESCRIPTION).trim_start_matches('.');
        finding.path = path.to_owned();
        finding
    };
    let inner = |list: Vec<Finding>| list.into_iter().map(inner).collect();
    findings.adopt(&place.key("app"), inner(app_errors), inner(app_warnings));
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
