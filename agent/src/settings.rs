//! What a node is to be: the settings, once they have been read.
//!
//! They come from `/etc/batch-agent/node.yaml` with `node.yaml.d/*.yaml` merged over it and the command line over that (or from
//! `--config FILE` alone), are checked at the edge and turned into [`NodeSettings`], which is valid by construction. Nothing
//! behind the edge knows YAML.
//!
//! ```text
//! files → trees → tree → document → NodeSettings
//!        (each    (all   (has the   (obeys the
//!         value    one)   form)      rules)
//!         with its
//!         line)
//! ```
//!
//! Whatever is wrong on that way is collected, and each finding names its place, as a path and as a line of a file.

mod check;
mod description;
mod files;
mod format;
mod overrides;
mod secrets;
mod shape;
#[cfg(test)]
mod tests;
mod tree;
mod validate;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use oss::Settings;

pub use self::check::SettingsReport;
use self::format::SettingsDocument;
pub use self::shape::json_schema;
use self::tree::{Node, Origin, Value};
use crate::job::finding::{Findings, Place};
use crate::job::{Problems, Warning};
pub use description::{
    AtEnd, Bootstrap, CacheSettings, Cloud, ContainerSettings, DiskSettings, Identity, MountSource, NetworkFileSystem,
    NfsVersion, NodeMount, NodeSettings, NodeTask, Program, Report, TaskSource, WebhookSettings,
};

/// Where the settings of a node are.
pub const DIRECTORY: &str = "/etc/batch-agent";

/// Which files settings are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingsSource {
    /// `node.yaml` in this directory, and `node.yaml.d/*.yaml` merged over it in the order of their names.
    Directory(PathBuf),
    /// This file and no other.
    File(PathBuf),
}

impl Default for SettingsSource {
    fn default() -> Self {
        Self::Directory(DIRECTORY.into())
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// There is nothing to read.
    #[error(
        "there are no settings: neither {0}/node.yaml nor a file {0}/node.yaml.d/*.yaml; write one (`batch-agent schema --node` \
         describes it), or name a file with --config",
        directory.display()
    )]
    Missing {
        /// Where they would be.
        directory: PathBuf,
    },
    /// A file could not be read.
    #[error("cannot read the settings {}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Somebody else could have written the file.
    #[error("{0} {cause}; run: {command} {0}", path.display())]
    Unsafe {
        /// The file, or a directory on the way to it.
        path: PathBuf,
        /// What is wrong with its owner or mode.
        cause: String,
        /// What to run on it.
        command: &'static str,
    },
    /// A variable of the environment is wrong.
    #[error("{0}")]
    Environment(#[from] oss::SettingsError),
    /// What they say is wrong.
    #[error("{0}")]
    Invalid(Problems),
}

/// Reads the settings of this node. Each override is `KEY.PATH=VALUE` and counts more than all files.
///
/// What the settings do not say of object storage is taken from the environment ([`Settings::from_env`]).
///
/// # Errors
/// When files are missing, cannot be read or trusted, or for everything that is wrong with what they say.
pub fn read(source: &SettingsSource, overrides: &[String]) -> Result<(NodeSettings, Vec<Warning>), SettingsError> {
    read_with(source, overrides, Settings::from_env()?)
}

/// What messages call the whole.
const SUBJECT: &str = "the settings";

/// [`read`] with another idea of object storage than the environment's.
///
/// # Errors
/// As [`read`].
pub fn read_with(
    source: &SettingsSource,
    overrides: &[String],
    base: Settings,
) -> Result<(NodeSettings, Vec<Warning>), SettingsError> {
    let (paths, ignored) = match source {
        SettingsSource::Directory(directory) => files::find(directory)?,
        SettingsSource::File(path) => (vec![path.clone()], Vec::new()),
    };
    if let (SettingsSource::Directory(directory), [], []) = (source, paths.as_slice(), overrides) {
        return Err(SettingsError::Missing { directory: directory.clone() });
    }
    let mut findings = Findings::default();
    for path in ignored {
        let cause = format!("{} is not read", path.display());
        findings.warn(&Place::root(), cause, "give it a name that ends in .yaml, or take it away");
    }
    let mut tree = Node { origin: Origin { order: 0, line: 0, source: SUBJECT.into() }, value: Value::Map(Vec::new()) };
    for (order, path) in paths.iter().enumerate() {
        let file = files::read(path)?;
        let Some(node) = tree::parse(&file.text, &file.name, order, &mut findings) else { continue };
        if file.is_open && secrets::are_in(&[], &node) {
            open_secret(path, &mut findings);
        }
        tree.merge(node);
    }
    overrides::apply(&mut tree, overrides, paths.len(), &mut findings);
    judge(&tree, base, findings).map_err(SettingsError::Invalid)
}

fn open_secret(path: &Path, findings: &mut Findings) {
    let path = path.display();
    findings.error_with(
        &Place::root(),
        format!("{path} holds a storage key and can be read by others"),
        format!("run: chmod go-rwx {path}; then replace the key, which may have been seen"),
    );
}

/// From the merged tree to settings.
fn judge(tree: &Node, base: Settings, mut findings: Findings) -> Result<(NodeSettings, Vec<Warning>), Problems> {
    // Nothing that was written is shown then, because a secret can be in it.
    let document = if secrets::swallowed(tree, &Place::root(), &mut findings) {
        SettingsDocument::default()
    } else {
        shape::read(tree, &mut findings)
    };
    let settings = validate::validate(document, base, &mut findings);
    let origins = tree.origins();
    findings.locate(|path| match locate(path, &origins) {
        Some(origin) => ((origin.order, origin.line), format!(" ({origin})")),
        None => ((0, 0), String::new()),
    });
    findings.finish_about(SUBJECT).map(|warnings| (settings, warnings))
}

/// Where the thing of that path was written, or else what it would be a part of.
fn locate<'o>(path: &str, origins: &'o HashMap<String, Origin>) -> Option<&'o Origin> {
    let mut path = path;
    loop {
        if path.is_empty() {
            return None;
        }
        if let Some(origin) = origins.get(path) {
            return Some(origin);
        }
        path = &path[..path.rfind(['.', '['])?];
    }
}
