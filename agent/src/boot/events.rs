//! What happens to the node, line by line, for whoever wants to know.
//!
//! Events are JSON Lines in a file of the state directory, in the order in which they happened, and go to the log as well. Each has an
//! id of its own, so that what is delivered twice can be told. The file is of one boot.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use crate::durable::FileError;
use crate::settings::Identity;

/// Something that has happened.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Event<'a> {
    /// `PhaseStarted`, `PhaseDone`, `PhaseFailed`, `MountDone`, `MountFailed`, `NodeReady`, `TaskEnded`, ...
    pub event: &'a str,
    /// What it is about: a phase, a mount point, a task.
    pub subject: &'a str,
    /// How long it took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'a str>,
}

#[derive(Serialize)]
struct Line<'a> {
    id: String,
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<&'a str>,
    #[serde(flatten)]
    event: Event<'a>,
}

/// The file of events.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    boot_id: String,
    file: Mutex<(File, u64)>,
}

impl Events {
    /// Opens the file of this boot; that of another boot is put aside, and the one that was aside goes.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn open(state: &Path, boot_id: &str) -> Result<Self, FileError> {
        let path = state.join("events.jsonl");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let is_of_this_boot = text.lines().next().is_none_or(|line| line.contains(boot_id));
        if !is_of_this_boot {
            let aside = path.with_extension("jsonl.before");
            std::fs::rename(&path, &aside).map_err(FileError::on("rename", &path))?;
        }
        let so_far = if is_of_this_boot { u64::try_from(text.lines().count()).unwrap_or(0) } else { 0 };
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(FileError::on("open", &path))?;
        // An agent that was killed in the middle of a line has left a part of one.
        if is_of_this_boot && !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").map_err(FileError::on("write", &path))?;
        }
        Ok(Self { path, boot_id: boot_id.to_owned(), file: Mutex::new((file, so_far)) })
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one down.
    pub fn tell(&self, event: Event<'_>, identity: Option<&Identity>) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.1 += 1;
        let id = format!("{}-{}", self.boot_id, file.1);
        let instance_id = identity.and_then(|identity| identity.instance_id.as_deref());
        let line = Line { id, time: Timestamp::now(), instance_id, event };
        let written = serde_json::to_vec(&line).map_err(std::io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            file.0.write_all(&text)
        });
        if let Err(error) = written {
            tracing::warn!(%error, event = event.event, "an event cannot be written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_an_id_of_its_own_and_a_boot_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let event = Event { event: "PhaseDone", subject: "disks", elapsed_ms: Some(3), message: Some("a\nb") };
        for _ in 0..2 {
            let events = Events::open(directory.path(), "boot-1").unwrap();
            events.tell(event, None);
            events.tell(event, None);
        }
        let path = directory.path().join("events.jsonl");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"id\":\"boot-1-5\",\"ti").unwrap();
        Events::open(directory.path(), "boot-1").unwrap().tell(event, None);
        let text = std::fs::read_to_string(&path).unwrap();
        let ids: Vec<String> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .map(|line| line["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(ids, ["boot-1-1", "boot-1-2", "boot-1-3", "boot-1-4", "boot-1-6"]);
        Events::open(directory.path(), "boot-2").unwrap().tell(event, None);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
        assert!(std::fs::read_to_string(directory.path().join("events.jsonl.before")).unwrap().contains("boot-1-6"));
    }
}
