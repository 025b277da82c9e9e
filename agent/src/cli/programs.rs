//! Where the system's programs are, as the command line says it.

use std::path::PathBuf;

use clap::Args;

use crate::programs::Programs;

/// For every command that runs programs of the system.
#[derive(Debug, Args)]
pub(super) struct ProgramArguments {
    /// The directories in which mount, mount.nfs, modprobe and their like are, on a system that keeps them elsewhere. PATH is
    /// not asked. [default: /usr/sbin:/usr/bin:/sbin:/bin]
    #[arg(long, value_name = "DIR[:DIR...]", value_delimiter = ':', env = "BATCH_AGENT_PROGRAM_PATH")]
    program_path: Vec<PathBuf>,
}

impl ProgramArguments {
    /// The programs of these directories.
    pub(super) fn programs(&self) -> Programs {
        if self.program_path.is_empty() {
            Programs::default()
        } else {
            Programs::new(self.program_path.iter().cloned())
        }
    }
}
