//! The rules every job must obey, whatever format it was written in.
//!
//! [`validate`] turns a [`Draft`] into a [`Job`] or says all that is wrong with it. What it lets through is valid by
//! construction, and nothing behind it checks again: names are path components, local paths are absolute and apart from each
//! other, locations are directories where directories are needed, and the tasks have an order.

pub(crate) mod local_path;
pub(crate) mod mappings;
pub(crate) mod notification;
mod order;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuse_oss::{ByteSize, CacheUse};
use oss::Location;

use super::command_line;
use super::description::{Container, ImageSource, Job, Limits, RetryRules, Task};
use super::draft::{Draft, DraftCache, DraftCommand, DraftContainer, DraftLimits, DraftTask};
use super::environment;
use super::finding::{At, Findings, Place, nearest, quoted};
use super::names::{MAX_NAME, check_name};
use crate::account::UserName;
use crate::container::Reference;

/// The most tasks in a job.
const MAX_TASKS: usize = 10_000;

/// The most instances of a task.
const MAX_INSTANCES: i64 = 1_000_000;

/// The most retries of an instance.
const MAX_RETRIES: i64 = 1_000;

/// The longest timeout, in seconds: ten years.
const MAX_TIMEOUT: i64 = 10 * 365 * 86_400;

/// The most processors that a task may be limited to: more than any machine has.
const MAX_CPUS: f64 = 100_000.0;

/// The least memory that a task may be limited to, in bytes: a shell starts with it.
const MIN_MEMORY: u64 = 4 << 20;

/// The most processes and threads there can be on a machine (`PID_MAX_LIMIT`).
const MAX_PIDS: i64 = 1 << 22;

/// The longest single string that the kernel hands to a new program (`MAX_ARG_STRLEN`), in bytes, without its NUL.
const MAX_STRING: usize = 128 * 1024 - 1;

/// Checks a draft. Nothing is returned when there were errors; they are in `findings`.
pub(super) fn validate(draft: Draft, findings: &mut Findings) -> Option<Job> {
    let before = findings.error_count();
    let name = match &draft.name {
        Some(name) => {
            named(&name.place, "the job's name", &name.value, findings);
            name.value.clone()
        }
        None => "job".to_owned(),
    };
    if draft.tasks.len() > MAX_TASKS {
        findings.error_with(
            &draft.tasks_place,
            format!("there are {} tasks, and at most {MAX_TASKS} are allowed", draft.tasks.len()),
            "use instances of one task for equal work",
        );
        return None;
    }
    check_task_list(&draft, findings);
    let notification = draft.notification.as_ref().and_then(|draft| notification::check(draft, findings));
    let order = order::order(&draft.tasks, &draft.edges, &draft.tasks_place, findings);
    let mut tasks: Vec<Option<Task>> =
        draft.tasks.iter().map(|task| Some(check_task(task, draft.slashes_agree, findings))).collect();
    if findings.error_count() > before {
        return None;
    }
    let order = order?;
    let names: Vec<String> = draft.tasks.iter().map(|task| task.name.clone()).collect();
    let tasks = order
        .sequence
        .iter()
        .filter_map(|number| {
            let mut task = tasks[*number].take()?;
            task.after = order.before[*number].iter().map(|earlier| names[*earlier].clone()).collect();
            Some(task)
        })
        .collect();
    Some(Job { name, tasks, stop_on_failure: draft.stop_on_failure, notification })
}

fn check_task_list(draft: &Draft, findings: &mut Findings) {
    if draft.tasks.is_empty() && findings.error_count() == 0 {
        findings.error_with(&draft.tasks_place, "there are no tasks", "a job needs at least one");
    }
    let names: HashSet<&str> = draft.tasks.iter().map(|task| task.name.as_str()).collect();
    for task in &draft.tasks {
        named(&task.place, "the task's name", &task.name, findings);
        // `stdout.<job>.a.1.0` would be instance 0 of task `a.1` and instance 1 of task `a`, tried again.
        if let Some((other, number)) = task.name.rsplit_once('.')
            && number.bytes().all(|b| b.is_ascii_digit())
            && names.contains(other)
        {
            findings.error_with(
                &task.place,
                format!("logs of this task and of the task {} would have the same names", quoted(other)),
                "write '-' instead of '.' in the name",
            );
        }
    }
}

pub(crate) fn named(place: &Place, what: &str, name: &str, findings: &mut Findings) {
    if let Err(error) = check_name(name) {
        let shown = if name.len() > MAX_NAME { String::new() } else { format!(" {}", quoted(name)) };
        findings.error(place, format!("{what}{shown} {error}"));
    }
}

fn check_task(draft: &DraftTask, slashes_agree: bool, findings: &mut Findings) -> Task {
    let mappings = mappings::check(draft, slashes_agree, findings);
    Task {
        name: draft.name.clone(),
        after: Vec::new(),
        command: draft.command.as_ref().map(|command| check_command(command, findings)).unwrap_or_default(),
        package: draft.package.as_ref().and_then(|package| check_package(package, findings)),
        environment: check_environment(&draft.environment, findings),
        container: draft.container.as_ref().and_then(|container| check_container(container, findings)),
        inputs: mappings.inputs,
        outputs: mappings.outputs,
        logs: mappings.logs,
        network_mounts: mappings.network_mounts,
        stdout: draft.stdout.as_ref().and_then(|stdout| check_directory(stdout, findings)),
        stderr: draft.stderr.as_ref().and_then(|stderr| check_directory(stderr, findings)),
        instances: number(draft.instances.as_ref(), "instances", 1..=MAX_INSTANCES, findings).unwrap_or(1),
        max_retries: number(draft.retries.as_ref(), "retries", 0..=MAX_RETRIES, findings).unwrap_or(0),
        retry_rules: check_retry_rules(draft, findings),
        reserve_on_fail: draft.reserve_on_fail,
        timeout: number(draft.timeout.as_ref(), "seconds", 1..=MAX_TIMEOUT, findings)
            .map(|seconds| Duration::from_secs(seconds.into())),
        input_store: draft.input_store.clone(),
        input_cache: check_cache(&draft.input_cache, findings),
        limits: check_limits(&draft.limits, findings),
        user: draft.user.as_ref().and_then(|user| check_user(user, findings)),
    }
}

fn check_retry_rules(draft: &DraftTask, findings: &mut Findings) -> RetryRules {
    let code = |written: &At<i64>| {
        let code = u8::try_from(written.value).ok().filter(|code| *code > 0);
        if code.is_none() {
            findings.error_with(
                &written.place,
                format!("expected an exit code from 1 to 255, got {}", written.value),
                "for a signal N that kills the program, write 128 + N",
            );
        }
        code
    };
    RetryRules { never: draft.never_retry.iter().filter_map(code).collect(), timeouts: draft.retry_timeouts }
}

/// How inputs use the cache. The format's reference has no units for these numbers; they are bytes here.
fn check_cache(written: &DraftCache, findings: &mut Findings) -> CacheUse {
    let mut size = |written: &Option<At<i64>>, little: u64, what: &str| {
        let At { place, value } = written.as_ref()?;
        let Ok(bytes) = u64::try_from(*value) else {
            findings.error(place, format!("expected bytes, got {value}"));
            return None;
        };
        if bytes > 0 && bytes < little {
            findings.warn(
                place,
                format!("{what} is {bytes} bytes, which is very little"),
                "the number is one of bytes",
            );
        }
        Some(ByteSize::new(bytes))
    };
    let limit = size(&written.limit, 64 << 20, "the most that the cache may hold of the inputs");
    let fetch = size(&written.fetch, 4096, "the least that is fetched at once").filter(|fetch| fetch.bytes() > 0);
    let limit = if written.disk == Some(false) { Some(ByteSize::new(0)) } else { limit };
    CacheUse { limit, fetch }
}

fn check_limits(written: &DraftLimits, findings: &mut Findings) -> Limits {
    let cpu_millis = written.cpu.as_ref().and_then(|At { place, value }| {
        if (0.01..=MAX_CPUS).contains(value) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within 10 and 10^8")]
            return Some((value * 1000.0).round() as u32);
        }
        findings.error(place, format!("expected 0.01 to {MAX_CPUS} processors, got {value}"));
        None
    });
    let memory = written.memory.as_ref().and_then(|At { place, value }| {
        if *value >= MIN_MEMORY {
            return Some(*value);
        }
        findings.error_with(
            place,
            format!("{value} bytes are too little to start any program with"),
            format!("write at least {}", ByteSize::new(MIN_MEMORY)),
        );
        None
    });
    Limits { cpu_millis, memory, pids: number(written.pids.as_ref(), "processes", 1..=MAX_PIDS, findings) }
}

fn check_user(written: &At<String>, findings: &mut Findings) -> Option<UserName> {
    match written.value.parse() {
        Ok(user) => Some(user),
        Err(error) => {
            findings.error_with(
                &written.place,
                format!("{} {error}", quoted(&written.value)),
                "write USER, or USER:GROUP",
            );
            None
        }
    }
}

/// A number within its range.
fn number(
    written: Option<&At<i64>>,
    what: &str,
    range: std::ops::RangeInclusive<i64>,
    findings: &mut Findings,
) -> Option<u32> {
    let At { place, value } = written?;
    if range.contains(value) {
        return u32::try_from(*value).ok();
    }
    findings.error(place, format!("expected {} to {} {what}, got {value}", range.start(), range.end()));
    None
}

pub(crate) fn check_command(command: &At<DraftCommand>, findings: &mut Findings) -> Vec<String> {
    let place = &command.place;
    let words = match &command.value {
        DraftCommand::Line(line) => {
            warn_of_shell_syntax(place, line, findings);
            match command_line::split(line) {
                Ok(words) => words,
                Err(error) => {
                    findings.error_with(place, error.to_string(), "close it, or put a backslash before it");
                    return Vec::new();
                }
            }
        }
        DraftCommand::Words(words) => words.clone(),
    };
    if words.first().is_none_or(String::is_empty) {
        findings.error_with(place, "names no program", "write the program first, such as \"python main.py\"");
    }
    if words.iter().any(|word| word.contains('\0')) {
        findings.error_with(place, "holds a NUL character", "remove it: arguments end at NUL");
    }
    if words.iter().any(|word| word.len() > MAX_STRING) {
        findings.error_with(place, "has an argument of 128 KiB or more", "pass long data in a file");
    }
    words
}

/// Says that what only a shell would understand in a command line will not be understood.
pub(crate) fn warn_of_shell_syntax(place: &Place, line: &str, findings: &mut Findings) {
    if let Some(syntax) = command_line::shell_syntax(line) {
        findings.warn(
            place,
            format!("{syntax} is passed to the program as it is, because this is not a shell line"),
            "for a shell, write /bin/bash -c '...'",
        );
    }
}

pub(crate) fn check_environment(written: &[At<(String, String)>], findings: &mut Findings) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    for At { place, value: (name, value) } in written {
        if name.is_empty() || name.contains(['=', '\0']) {
            findings.error_with(
                place,
                format!("{} cannot be the name of a variable", quoted(name)),
                "use letters, digits and '_'",
            );
        } else if value.contains('\0') {
            findings.error_with(place, "the value holds a NUL character", "remove it: values end at NUL");
        } else if name.len() + value.len() + 1 > MAX_STRING {
            findings.error_with(place, "the value is 128 KiB or longer", "pass long data in a file");
        } else {
            if environment::OWN.contains(&name.as_str()) {
                findings.warn(place, "is set by the agent, whose value is used", "remove it, or use another name");
            }
            environment.insert(name.clone(), value.clone());
        }
    }
    environment
}

fn check_container(written: &DraftContainer, findings: &mut Findings) -> Option<Container> {
    let At { place, value: name } = &written.image;
    let image = name.parse::<Reference>();
    if let Err(error) = &image {
        findings.error_with(place, format!("{} {error}", quoted(name)), "write it as registry/name:tag");
    }
    let source = match (&written.archive, &written.registry_tree) {
        (None, None) => Some(ImageSource::Registry),
        (Some(archive), None) => match location(archive, findings) {
            Some(location) if location.is_directory() => {
                let cause = format!("{} is a directory", quoted(&archive.value));
                findings.error_with(
                    &archive.place,
                    cause,
                    "name the one object that is the archive, such as image.tar",
                );
                None
            }
            location => location.map(ImageSource::Archive),
        },
        (None, Some(tree)) => location(tree, findings).map(|location| ImageSource::Tree(location.as_directory())),
        (Some(_), Some(tree)) => {
            findings.error_with(&tree.place, "is given beside an archive", "say one place where the image is");
            None
        }
    };
    let devices = written.devices.iter().filter_map(|device| check_device(device, findings)).collect();
    let (pull, network) = (written.pull, written.network);
    Some(Container { image: image.ok()?, source: source?, pull, network, devices })
}

/// A device of the machine: nothing else of it is shown in this way.
fn check_device(written: &At<String>, findings: &mut Findings) -> Option<PathBuf> {
    let remedy = "write an absolute path below /dev, such as /dev/fuse";
    match local_path::normal(&written.value) {
        // A colon separates paths in an engine's own notation.
        Ok(local)
            if local.path.starts_with("/dev/") && local.path != Path::new("/dev") && !written.value.contains(':') =>
        {
            Some(local.path)
        }
        Ok(_) => {
            findings.error_with(&written.place, format!("{} is not a device", quoted(&written.value)), remedy);
            None
        }
        Err(refusal) => {
            findings.error_with(&written.place, refusal.cause, remedy);
            None
        }
    }
}

fn check_package(package: &At<String>, findings: &mut Findings) -> Option<Location> {
    let location = location(package, findings)?;
    if location.is_directory() {
        findings.error_with(
            &package.place,
            format!("{} is a directory", quoted(&package.value)),
            "name one object: a .tar.gz, or a single program",
        );
        return None;
    }
    Some(location)
}

/// A directory that receives logs. Without its slash the service refused it; it can mean nothing else, so we add it.
pub(crate) fn check_directory(written: &At<String>, findings: &mut Findings) -> Option<Location> {
    let location = location(written, findings)?;
    if !location.is_directory() {
        findings.warn(
            &written.place,
            format!("{} has no trailing slash and is taken for a directory", quoted(&written.value)),
            "end it in '/'",
        );
    }
    Some(location.as_directory())
}

/// A place in object storage.
pub(crate) fn location(written: &At<String>, findings: &mut Findings) -> Option<Location> {
    match written.value.parse::<Location>() {
        Ok(location) => Some(location),
        Err(error) => {
            match (written.value.split_once("://"), &error) {
                (Some((scheme, _)), oss::LocationError::UnknownScheme { .. }) => {
                    let cause = format!("{} is not in object storage: its scheme is unknown", quoted(&written.value));
                    match nearest(scheme, ["oss", "s3", "gs", "az", "file"]) {
                        Some(near) => findings.error_with(&written.place, cause, format!("did you mean {near}://?")),
                        None => {
                            findings.error_with(&written.place, cause, "use oss://, s3://, gs://, az:// or file://")
                        }
                    }
                }
                _ if written.value.len() > 200 => findings
                    .error(&written.place, format!("{} is not a location in object storage", quoted(&written.value))),
                _ => findings.error(&written.place, error.to_string()),
            }
            None
        }
    }
}
