//! The programs of the system that change something: where they are, which package has them, how long they may take.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::{Command, CommandError};

/// How long making a file system may take: `mkfs.ext4` on a large disk that is busy with being restored.
const FORMATTING: Duration = Duration::from_secs(600);
/// How long mounting may take: the journal of a large file system is replayed.
const MOUNTING: Duration = Duration::from_secs(300);
/// How long anything else may take.
const OTHERS: Duration = Duration::from_secs(60);

/// Finds programs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tools {
    /// Looked in before the system's own places.
    pub(crate) first: Option<PathBuf>,
}

impl Tools {
    /// A program of the system by its name.
    pub(crate) fn find(&self, program: &str) -> Result<Command, CommandError> {
        let (package, limit) = match program {
            "mkfs.xfs" => ("xfsprogs", FORMATTING),
            "mkfs.ext4" => ("e2fsprogs", FORMATTING),
            "mdadm" => ("mdadm", OTHERS),
            "mount" | "umount" => ("util-linux (on Debian: mount)", MOUNTING),
            // As long as it takes: large disks need minutes.
            "fstrim" => ("util-linux", FORMATTING),
            _ => ("util-linux", OTHERS),
        };
        let own = self.first.as_ref().map(|directory| directory.join(program)).filter(|path| path.is_file());
        match own {
            Some(path) => Ok(Command::at(path, limit)),
            None => Command::find(program, package, limit),
        }
    }

    /// Runs a program that has to succeed.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<(), CommandError> {
        let output = self.find(program)?.args(arguments).run()?;
        if output.code() == Some(0) { Ok(()) } else { Err(output.failed()) }
    }
}
