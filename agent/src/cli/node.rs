//! Where the agent keeps things on this machine, as the command line says it.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::exit;
use crate::node::Node;
use crate::outcome::{Cause, Failure};

/// For every command that looks at what the agent has written down.
#[derive(Debug, Args)]
pub(super) struct StateArguments {
    /// Where the agent keeps what must survive a reboot.
    #[arg(long, value_name = "DIR", default_value = Node::STATE, env = "BATCH_AGENT_STATE_DIR")]
    pub(super) state_dir: PathBuf,
}

/// For every command that runs tasks.
#[derive(Debug, Args)]
pub(super) struct NodeArguments {
    /// Where working directories, outputs and the object cache are: the largest and fastest disk.
    /// [default: `boot`: as the settings say, or on their first volume; else STATE/scratch]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,

    #[command(flatten)]
    state: StateArguments,

    /// Where sockets and mounts of tasks are.
    #[arg(long, value_name = "DIR", default_value = Node::RUNTIME, env = "BATCH_AGENT_RUNTIME_DIR")]
    runtime_dir: PathBuf,

    /// The fuse-oss program. [default: the one beside this program, else the one on PATH]
    #[arg(long, value_name = "FILE", env = "BATCH_AGENT_FUSE_OSS")]
    fuse_oss: Option<PathBuf>,
}

impl NodeArguments {
    /// The directories, with scratch below the state's where nothing is said.
    pub(super) fn node(&self) -> Result<Node, Failure> {
        let state = absolute(&self.state.state_dir)?;
        Ok(Node {
            scratch: self.scratch.as_deref().map_or_else(|| Ok(state.join("scratch")), absolute)?,
            runtime: absolute(&self.runtime_dir)?,
            state,
        })
    }

    /// Whether nothing is said of scratch.
    pub(super) fn scratch_is_free(&self) -> bool {
        self.scratch.is_none()
    }

    /// The `fuse-oss` that belongs to this `batch-agent`: they are installed and built side by side.
    pub(super) fn fuse_oss(&self) -> PathBuf {
        const NAME: &str = "fuse-oss";
        let beside = || std::env::current_exe().ok().map(|program| program.with_file_name(NAME));
        let found = self.fuse_oss.clone().or_else(|| beside().filter(|path| path.exists()));
        found.unwrap_or_else(|| PathBuf::from(NAME))
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(Cause::User, exit::USAGE, format!("{}: {error}", path.display())))
}
