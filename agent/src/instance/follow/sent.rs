//! What is written down of a log on its way, for an agent that comes after this one and for whoever reads the log on the node.

use std::path::Path;

use oss::growing::GrowingMark;
use serde::{Deserialize, Serialize};

use super::sequence::Sequence;
use crate::durable::{self, FileError};

/// The version of [`Sent`].
const VERSION: u32 = 1;

/// How far a log has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    version: u32,
    /// Where it goes.
    pub target: String,
    /// What has arrived; none while there is no object yet.
    pub mark: Option<GrowingMark>,
    /// What it is made of from there on, at least.
    pub sequence: Sequence,
}

impl Sent {
    /// Everything before `mark` has arrived.
    pub fn new(target: String, mark: Option<GrowingMark>, mut sequence: Sequence) -> Self {
        sequence.forget(mark.as_ref().map_or(0, GrowingMark::len));
        Self { version: VERSION, target, mark, sequence }
    }

    /// How much of the log has arrived for good, so that it may be on this node no more.
    pub fn settled(&self) -> u64 {
        self.mark.as_ref().map_or(0, GrowingMark::len)
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        durable::replace_json(path, self)
    }

    /// Reads it. None if there is nothing, or nothing that can be used.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>, FileError> {
        let sent = durable::read_json::<Self>(path)?;
        Ok(sent.filter(|sent| sent.version == VERSION && sent.sequence.is_sound()))
    }
}
