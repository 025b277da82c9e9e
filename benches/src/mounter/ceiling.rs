//! No mount of a store: the ceiling of the daemon path, started like one.

use std::path::Path;
use std::process::Command;

use super::{Mounter, Place};
use crate::child::Task;
use crate::content::Object;

/// See [`crate::daemon`].
#[derive(Debug)]
pub struct Ceiling {
    /// What it serves.
    pub object: Object,
}

impl Mounter for Ceiling {
    fn name(&self) -> &'static str {
        "daemon path"
    }

    fn program(&self) -> &Path {
        Path::new("/proc/self/exe")
    }

    fn command(&self, place: &Place) -> anyhow::Result<Command> {
        Task::Daemon { target: place.target.clone(), object: self.object }.command()
    }
}
