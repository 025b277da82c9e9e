//! What a task sees at which local path, and what becomes of it: inputs, network mounts, outputs and logs together.
//!
//! The rules are the guide's (3.3 and "environment variables"): one location may appear at several local paths, but a local
//! path shows one thing. Mappings may be nested where that means something: objects inside a mapped directory, an output
//! inside an input. An output directory inside another one is refused, because its files would belong to both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fuse_oss::{Charset, CharsetError};
use oss::Location;

use super::local_path::{self, LocalPath};
use super::location;
use crate::job::description::{Input, LogFile, NetworkMount, Output};
use crate::job::draft::{DraftInput, DraftOutput, DraftTask};
use crate::job::finding::{At, Findings, Place, nearest, quoted};
use crate::job::names::{Attempt, MAX_JOB_ID};
use crate::settings::NetworkFileSystem;

/// The most mappings of a task. The kernel allows a mount namespace 100,000 mounts, and checking takes time.
const MAX_MAPPINGS: usize = 10_000;

/// What the longest job id, instance and attempt take of a log object's name, in bytes.
const LOG_SUFFIX: usize = MAX_JOB_ID + "...1000000.1000".len();

/// Character sets to suggest where one is written that nobody knows. `bcs` also lists ANSI, which is another one on every machine, and EUC-TW,
/// which the standard tables do not have: names are then as they are without any.
const LOCALES: &[&str] = &["GBK", "GB2312", "GB18030", "BIG5", "UTF-8", "EUC-JP", "EUC-KR", "SHIFT-JIS", "KSC5601"];

/// What names in outputs are in which are not UTF-8 when a job does not say, because that is what the Python SDK says in every job.
const OUTPUT_LOCALE: &str = "GBK";

/// A task's mappings, checked.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    pub inputs: Vec<Input>,
    pub network_mounts: Vec<NetworkMount>,
    pub outputs: Vec<Output>,
    pub logs: Vec<LogFile>,
}

/// What occupies a local path.
#[derive(Debug)]
struct Claim {
    place: Place,
    kind: ClaimKind,
    directory: bool,
    /// The remote side, as written.
    remote: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClaimKind {
    Input,
    Network,
    Output,
}

/// Checks all mappings of a task, each by itself and then against each other.
pub(super) fn check(task: &DraftTask, slashes_agree: bool, findings: &mut Findings) -> Mappings {
    let mut mappings = Mappings::default();
    let count = task.inputs.len() + task.outputs.len() + task.logs.len();
    if count > MAX_MAPPINGS {
        findings.error_with(
            &task.place,
            format!("there are {count} mappings, and at most {MAX_MAPPINGS} are allowed"),
            "map directories and not each of their files",
        );
        return mappings;
    }
    let mut claims = BTreeMap::new();
    for written in &task.inputs {
        input(written, slashes_agree, &mut mappings, &mut claims, findings);
    }
    let many = task.instances.as_ref().is_some_and(|count| count.value > 1);
    // One that nobody knows was objected to where inputs have it.
    let locale = task.output_locale.as_deref().unwrap_or(OUTPUT_LOCALE).parse().or_else(|_| OUTPUT_LOCALE.parse());
    for written in &task.outputs {
        output(written, locale.clone().unwrap_or_default(), slashes_agree, &mut mappings, &mut claims, findings);
    }
    nesting(&claims, findings);
    for written in &task.logs {
        log(written, &task.name, &claims, &mut mappings, findings);
    }
    collisions(task, &mappings, many, findings);
    mappings
}

fn input(
    written: &DraftInput,
    slashes_agree: bool,
    mappings: &mut Mappings,
    claims: &mut BTreeMap<PathBuf, Claim>,
    findings: &mut Findings,
) {
    if NetworkFileSystem::is_meant(&written.source.value) {
        return network_mount(written, mappings, claims, findings);
    }
    let (Some(source), Some(target)) = (location(&written.source, findings), local(&written.target, findings)) else {
        return;
    };
    if !agree(&source, &target, &written.source, &written.target, slashes_agree, findings) {
        return;
    }
    let locale = written.locale.as_deref().and_then(|locale| charset(locale, &written.source.place, findings));
    let locale = locale.unwrap_or_default();
    let claim = Claim {
        place: written.target.place.clone(),
        kind: ClaimKind::Input,
        directory: source.is_directory(),
        remote: written.source.value.clone(),
    };
    if claim_path(&target.path, claim, claims, findings) {
        mappings.inputs.push(Input { source, target: target.path, writable: written.writable.unwrap_or(true), locale });
    }
}

fn network_mount(
    written: &DraftInput,
    mappings: &mut Mappings,
    claims: &mut BTreeMap<PathBuf, Claim>,
    findings: &mut Findings,
) {
    if let Err(refusal) = network_source(&written.source.value) {
        findings.error_with(
            &written.source.place,
            format!("{} {}", quoted(&written.source.value), refusal.0),
            refusal.1,
        );
        return;
    }
    let Some(target) = local(&written.target, findings) else { return };
    if written.writable.is_none() {
        findings.warn(
            &written.source.place,
            "does not say whether the task may write and is mounted read-only",
            "give WriteSupport (in YAML, writable) true or false",
        );
    }
    let claim = Claim {
        place: written.target.place.clone(),
        kind: ClaimKind::Network,
        directory: true,
        remote: written.source.value.clone(),
    };
    if claim_path(&target.path, claim, claims, findings) {
        mappings.network_mounts.push(NetworkMount {
            source: written.source.value.clone(),
            target: target.path,
            writable: written.writable.unwrap_or(false),
        });
    }
}

/// Checks what will become an argument of a mount command.
pub(crate) fn network_source(text: &str) -> Result<(), (&'static str, &'static str)> {
    NetworkFileSystem::parse(text).map(drop).map_err(|error| (error.cause, error.remedy))
}

fn output(
    written: &DraftOutput,
    locale: Charset,
    slashes_agree: bool,
    mappings: &mut Mappings,
    claims: &mut BTreeMap<PathBuf, Claim>,
    findings: &mut Findings,
) {
    let (Some(source), Some(target)) = (local(&written.source, findings), location(&written.target, findings)) else {
        return;
    };
    if !agree(&target, &source, &written.target, &written.source, slashes_agree, findings) {
        return;
    }
    let claim = Claim {
        place: written.source.place.clone(),
        kind: ClaimKind::Output,
        directory: target.is_directory(),
        remote: written.target.value.clone(),
    };
    let own = written.locale.as_deref().and_then(|locale| charset(locale, &written.source.place, findings));
    if claim_path(&source.path, claim, claims, findings) {
        mappings.outputs.push(Output { source: source.path, target, locale: own.unwrap_or(locale) });
    }
}

fn log(
    written: &DraftOutput,
    task: &str,
    claims: &BTreeMap<PathBuf, Claim>,
    mappings: &mut Mappings,
    findings: &mut Findings,
) {
    let (Some(source), Some(target)) = (local(&written.source, findings), location(&written.target, findings)) else {
        return;
    };
    let network =
        source.path.ancestors().find(|above| claims.get(*above).is_some_and(|c| c.kind == ClaimKind::Network));
    if let Some(network) = network {
        let (log, network) = (quoted(&written.source.value), quoted(&network.to_string_lossy()));
        findings.error_with(
            &written.source.place,
            format!("the log {log} lies inside the network file system {network}, and is not uploaded from there"),
            "let the program write it to another directory, such as /home/log/",
        );
        return;
    }
    let name_length = source.path.file_name().map_or(0, |name| name.len());
    if source.slash || claims.get(&source.path).is_some_and(|claim| claim.directory) {
        findings.error_with(
            &written.source.place,
            format!("the log {} is a directory", quoted(&written.source.value)),
            "name one file; map a whole directory as an output",
        );
    } else if target.is_directory() && name_length + task.len() + LOG_SUFFIX > 255 {
        findings.error_with(
            &written.source.place,
            "the log's name leaves no room in 255 bytes for the job, task and instance that are added to it",
            "use a shorter name, or map it to an object",
        );
    } else {
        mappings.logs.push(LogFile { source: source.path, target });
    }
}

pub(crate) fn local(written: &At<String>, findings: &mut Findings) -> Option<LocalPath> {
    match local_path::parse(&written.value) {
        Ok(path) => Some(path),
        Err(refusal) => {
            findings.error_with(&written.place, refusal.cause, refusal.remedy);
            None
        }
    }
}

/// A directory goes with a directory and an object with a file; trailing slashes say which is meant.
///
/// A directory's local path may lack its slash, because there is only one thing it can mean; an object cannot be mapped
/// to a path with a slash, because that may mean the directory it should be put in, or an object whose slash was forgotten.
pub(crate) fn agree(
    remote: &Location,
    local: &LocalPath,
    remote_written: &At<String>,
    local_written: &At<String>,
    slashes_agree: bool,
    findings: &mut Findings,
) -> bool {
    match (remote.is_directory(), local.slash) {
        (false, true) => {
            findings.error_with(
                &local_written.place,
                format!(
                    "{} is one object, but the local path {} is a directory",
                    quoted(&remote_written.value),
                    quoted(&local_written.value)
                ),
                "end both in '/' for a directory, or neither for one file",
            );
            false
        }
        (true, false) if slashes_agree => {
            findings.warn(
                &local_written.place,
                format!(
                    "the local path {} has no trailing slash and is taken for a directory",
                    quoted(&local_written.value)
                ),
                "end both sides in '/' for a directory",
            );
            true
        }
        _ => true,
    }
}

/// A character set by its name; none, with a warning, when names cannot be shown in it.
fn charset(text: &str, place: &Place, findings: &mut Findings) -> Option<Charset> {
    let error = match text.parse() {
        Ok(charset) => return Some(charset),
        Err(error) => error,
    };
    let upper = text.to_ascii_uppercase().replace('_', "-");
    let remedy = match nearest(&upper, LOCALES.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => "leave it out for UTF-8".to_owned(),
    };
    let cause = match error {
        CharsetError::Unknown(_) => "is not known",
        CharsetError::Unsuitable { .. } => "cannot be a file system's",
    };
    findings.warn(place, format!("the locale {} {cause}, and names are shown in UTF-8", quoted(text)), remedy);
    None
}

/// Takes a local path for a mapping. Says whether it was free; the same mapping twice is one, with a warning.
fn claim_path(path: &Path, claim: Claim, claims: &mut BTreeMap<PathBuf, Claim>, findings: &mut Findings) -> bool {
    let Some(other) = claims.get(path) else {
        claims.insert(path.to_owned(), claim);
        return true;
    };
    let shown = quoted(&path.to_string_lossy());
    let is_same = other.remote == claim.remote && other.kind == claim.kind;
    match (other.kind, claim.kind) {
        _ if is_same => {
            findings.warn(
                &claim.place,
                format!("{} is mapped to {shown} already, in {}", quoted(&claim.remote), other.place),
                "remove one of them",
            );
        }
        (ClaimKind::Output, ClaimKind::Output) => findings.error_with(
            &claim.place,
            format!("{shown} is an output already, to {}", quoted(&other.remote)),
            "map each local path to one location",
        ),
        // Read from one place and written to another: what the task changes there is its output.
        (ClaimKind::Input, ClaimKind::Output) if other.remote != claim.remote && other.directory == claim.directory => {
            claims.insert(path.to_owned(), claim);
            return true;
        }
        (_, ClaimKind::Output) => findings.error_with(
            &claim.place,
            format!("{shown} is an input already, from {}", quoted(&other.remote)),
            "upload to another location than is read from, or give outputs a directory of their own",
        ),
        _ => findings.error_with(
            &claim.place,
            format!("{shown} is taken already, by {}", quoted(&other.remote)),
            "give each location a local path of its own",
        ),
    }
    false
}

/// Judges mappings that lie inside each other.
fn nesting(claims: &BTreeMap<PathBuf, Claim>, findings: &mut Findings) {
    for (path, claim) in claims {
        for (above, outer) in path.ancestors().skip(1).filter_map(|above| claims.get_key_value(above)) {
            let (inner, outer_path) = (quoted(&path.to_string_lossy()), quoted(&above.to_string_lossy()));
            if !outer.directory {
                findings.error_with(
                    &claim.place,
                    format!("{inner} lies inside {outer_path}, which is a file"),
                    "use another local path, or end the other one in '/' on both sides",
                );
            } else if outer.kind == ClaimKind::Network && claim.kind == ClaimKind::Output {
                findings.error_with(
                    &claim.place,
                    format!(
                        "{inner} lies inside the network file system {outer_path}: what is written there stays there and is not \
                         uploaded"
                    ),
                    "let the program write what is to be uploaded to another directory, such as /home/output/",
                );
            } else if outer.kind == ClaimKind::Network {
                findings.error_with(
                    &claim.place,
                    format!(
                        "{inner} lies inside the network file system {outer_path}, where nothing is made to mount over"
                    ),
                    "map them to local paths that are not inside each other",
                );
            } else if outer.kind == ClaimKind::Output && claim.kind == ClaimKind::Output && claim.directory {
                findings.error_with(
                    &claim.place,
                    format!("{inner} lies inside the output {outer_path}, so its files would be uploaded twice"),
                    "map directories that are not inside each other",
                );
            } else if outer.kind == ClaimKind::Output && claim.kind != ClaimKind::Output {
                findings.warn(
                    &claim.place,
                    format!("{inner} lies inside the output {outer_path}; what it shows is not uploaded"),
                    "keep inputs out of output directories",
                );
            }
        }
    }
}

/// Finds objects that more than one upload would write.
fn collisions(task: &DraftTask, mappings: &Mappings, many: bool, findings: &mut Findings) {
    // Any id and number will do: they are the same for all.
    let attempt = Attempt { job: "JOB", task: &task.name, instance: 0, number: 1 };
    let mut written: BTreeMap<Location, (&Path, bool)> = BTreeMap::new();
    let streams = [(&task.stdout, attempt.stdout(), "stdout"), (&task.stderr, attempt.stderr(), "stderr")];
    for (directory, object, what) in &streams {
        if let Some(directory) = directory.as_ref().and_then(|directory| directory.value.parse::<Location>().ok()) {
            written.insert(directory.as_directory().join(object), (Path::new(what), true));
        }
    }
    let logs = mappings.logs.iter().map(|log| (attempt.log(log), &log.source, log.target.is_directory()));
    let files = mappings.outputs.iter().filter(|output| !output.is_directory());
    let files = files.map(|output| (output.target.clone(), &output.source, false));
    for (object, source, has_own_name) in logs.chain(files) {
        let place = task.place.clone();
        if many && !has_own_name {
            findings.warn(
                &place,
                format!("all instances write the same object {}, and the last one stays", quoted(&object.to_string())),
                "map a directory, and let the program put its instance's number into the file's name",
            );
        }
        if let Some((other, _)) = written.insert(object.clone(), (source, has_own_name)) {
            findings.error_with(
                &place,
                format!(
                    "{} and {} would both become {}",
                    quoted(&other.to_string_lossy()),
                    quoted(&source.to_string_lossy()),
                    quoted(&object.to_string())
                ),
                "map them to different objects",
            );
        }
    }
}
