//! Jobs: reading their descriptions, and what follows from a description alone.
//!
//! A description is a file that somebody else wrote, in BatchCompute's JSON or in our own YAML. It goes one way:
//!
//! ```text
//! bytes → document → draft → Job
//!         (parsed)   (one of (checked: everything
//!                    two      behind this point
//!                    formats) trusts it)
//! ```
//!
//! An App job needs a second document, the App's description, and becomes one draft with it. [`read_file`] and [`read`] go that whole
//! way and either give a [`Job`] with warnings or every problem there is. Nothing in this module touches the network, and only
//! [`read_file`] touches the disk.

mod batchcompute;
pub mod check;
pub mod command_line;
pub mod description;
pub use description::{
    Container, ContainerNetwork, ImageSource, Input, Job as JobDescription, Limits, LogFile, NetworkMount, Output,
    PullPolicy, RetryRules, Task,
};
pub(crate) mod document;
pub(crate) mod draft;
pub mod environment;
pub(crate) mod finding;
pub mod names;
pub mod schema;
pub(crate) mod validate;
pub(crate) mod yaml;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

pub(crate) use self::batchcompute::app::PLACE as APP_DESCRIPTION;
use self::description::Job;
pub use self::document::MAX_BYTES;
use self::draft::Draft;
pub use self::finding::{Finding, Problems, Warning};
use self::finding::{Findings, Place};

/// What a description is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Whatever its keys say: `DAG` or `App` is BatchCompute's, `tasks` is ours.
    #[default]
    Detect,
    /// JSON, and so probably BatchCompute's; our own keys are recognised.
    Json,
    /// Our own.
    Yaml,
}

impl Format {
    /// The format a file of that name should have.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(json) if json.eq_ignore_ascii_case("json") => Self::Json,
            _ => Self::Detect,
        }
    }
}

/// Why a file did not become a job.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It could not be read at all.
    #[error("cannot read the job description {}: {cause}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The App's could not be.
    #[error("cannot read the App description {}: {cause}", path.display())]
    App {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// It was read, and something is wrong with it.
    #[error("{}: {problems}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Everything that is wrong.
        problems: Problems,
    },
}

/// Reads a description from a file; the name's extension helps to tell the format.
///
/// # Errors
/// When the file cannot be read, is larger than [`MAX_BYTES`], or is no valid job.
pub fn read_file(path: &Path) -> Result<(Job, Vec<Warning>), ReadError> {
    read_file_with_app(path, None)
}

/// [`read_file`] with the file that describes the App which an App job is made from.
///
/// # Errors
/// When a file cannot be read, is larger than [`MAX_BYTES`], or they are no valid job together.
pub fn read_file_with_app(path: &Path, app: Option<&Path>) -> Result<(Job, Vec<Warning>), ReadError> {
    let bytes = contents(path).map_err(|cause| ReadError::File { path: path.to_owned(), cause })?;
    let app = match app {
        Some(path) => Some(contents(path).map_err(|cause| ReadError::App { path: path.to_owned(), cause })?),
        None => None,
    };
    read_with_app(&bytes, Format::of(path), app.as_deref())
        .map_err(|problems| ReadError::Invalid { path: path.to_owned(), problems })
}

/// What is in the file of a description; one byte more than is allowed, when there is more.
pub(crate) fn contents(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A pipe or device has no length to ask for.
    File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))?;
    Ok(bytes)
}

/// Reads a description from memory.
///
/// # Errors
/// Everything that is wrong with it, each with its place, cause and remedy.
pub fn read(bytes: &[u8], format: Format) -> Result<(Job, Vec<Warning>), Problems> {
    read_with_app(bytes, format, None)
}

/// [`read`] with the description of the App which an App job is made from, in JSON or YAML.
///
/// # Errors
/// Everything that is wrong with either, each with its place, cause and remedy.
pub fn read_with_app(bytes: &[u8], format: Format, app: Option<&[u8]>) -> Result<(Job, Vec<Warning>), Problems> {
    let text = document::text(bytes)?;
    let mut findings = Findings::default();
    let app = match app {
        Some(bytes) => Some(batchcompute::app::parse(bytes, &mut findings)?),
        None => None,
    };
    let draft = draft(text, format, app.as_ref(), &mut findings)?;
    // Rules are checked even after errors of form, so that all are found in one go.
    match validate::validate(draft, &mut findings) {
        Some(job) => findings.finish().map(|warnings| (job, warnings)),
        None => Err(findings.finish().err().unwrap_or_else(|| {
            Problems::single(&Place::root(), "the job description cannot be understood", "see `batch-agent schema`")
        })),
    }
}

/// Finds out the format and reads the text into a draft.
fn draft(text: &str, format: Format, app: Option<&Value>, findings: &mut Findings) -> Result<Draft, Problems> {
    let is_json = format == Format::Json || (format == Format::Detect && text.trim_start().starts_with('{'));
    let document = if is_json {
        match document::json(text, findings) {
            Ok(document) => Some(document),
            // YAML can begin with a brace, too; but whoever writes "DAG" in quotes means JSON.
            Err(error) if format == Format::Json || text.contains("\"DAG\"") => return Err(broken_json(&error)),
            Err(_) => None,
        }
    } else if format == Format::Detect && has_key(text, &["DAG", "App"]) {
        // BatchCompute's keys in YAML's clothes, such as a person would write by hand.
        document::yaml(text, findings).ok()
    } else {
        None
    };
    match document {
        Some(document) if document.as_object().is_none_or(batchcompute::is_meant) => {
            Ok(batchcompute::read(&document, app, findings))
        }
        _ => {
            batchcompute::app::unused(app, findings);
            yaml::read(text)
        }
    }
}

/// Whether one of the keys stands at the beginning of a line.
fn has_key(text: &str, keys: &[&str]) -> bool {
    text.lines().any(|line| {
        let key = line.split(':').next().unwrap_or_default().trim_end().trim_matches(['"', '\'']);
        keys.contains(&key)
    })
}

fn broken_json(error: &serde_json::Error) -> Problems {
    // serde_json's messages end in the place, and quote nothing of the document but single characters and numbers.
    Problems::single(&Place::root(), format!("the job description is not JSON: {error}"), "correct it there")
}
