//! What goes wrong with a container engine.

use std::io;
use std::path::PathBuf;

use oss::Location;

use crate::exit;
use crate::outcome::{Cause, Failure};

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is none.
    #[error(
        "this machine has no container engine: nothing listens on {}; install one (apt install docker.io, or podman and then \
         systemctl enable --now podman.socket), or name its socket (containers.socket in the settings, --engine-socket)",
        looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Missing {
        /// The sockets there could have been.
        looked: Vec<PathBuf>,
    },
    /// It does not answer, or breaks off.
    #[error("the container engine at {} does not answer ({source}); is it running? (systemctl status docker podman.socket)", socket.display())]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It answered, and refused.
    #[error("the container engine cannot {action}: {message}")]
    Refused {
        /// What it was asked, as a verb with its object.
        action: String,
        /// Its HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// It answered something else than its interface promises.
    #[error("the container engine's answer to \"{action}\" is not understood: {problem}")]
    Nonsense {
        /// What it was asked.
        action: String,
        /// What is wrong with the answer.
        problem: String,
    },
}

impl EngineError {
    /// Whether the engine says that the thing is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// Whether these are the words of a full disk.
pub(super) fn is_disk_full(message: &str) -> bool {
    message.contains("no space left on device") || message.contains("disk quota exceeded")
}

/// Why there is no image to run a task in.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The engine itself.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The registry does not have it, or does not show it to us.
    #[error(
        "there is no image {image}, or this node may not see it: {message}; check its name, and its registry's login \
         (containers.registries in the settings)"
    )]
    NotFound {
        /// Its name.
        image: String,
        /// What the engine said.
        message: String,
    },
    /// The registry refused us.
    #[error(
        "the registry refuses the image {image}: {message}; check the login for {registry} (containers.registries in the settings)"
    )]
    Denied {
        /// Its name.
        image: String,
        /// Whose registry.
        registry: String,
        /// What the engine said.
        message: String,
    },
    /// It did not come, however often it was tried.
    #[error("the image {image} could not be pulled, tried {attempts} times in {seconds} s: {message}")]
    Unavailable {
        /// Its name.
        image: String,
        /// How often.
        attempts: u32,
        /// How long.
        seconds: u64,
        /// The last thing that was said.
        message: String,
    },
    /// It does not fit.
    #[error("the disk of the container engine ({}) has no room for the image {image}: {problem}; give it a larger disk, or remove images (docker image prune -a)", root.display())]
    NoSpace {
        /// Its name.
        image: String,
        /// Where the engine keeps images.
        root: PathBuf,
        /// How much is missing.
        problem: String,
    },
    /// It is for other machines.
    #[error("the image {image} is not for this machine ({here}) but for {there}; build it for {here}")]
    Platform {
        /// Its name.
        image: String,
        /// This machine's architecture.
        here: String,
        /// Those it is for.
        there: String,
    },
    /// The archive or registry tree is not one.
    #[error("{}: {problem}", location.escaped())]
    Broken {
        /// Where it is.
        location: Location,
        /// What is wrong, and what to do about it.
        problem: String,
    },
    /// Files in object storage could not be read through the mount.
    #[error("{} cannot be read: {source}", location.escaped())]
    Unreadable {
        /// Where it is.
        location: Location,
        /// What the system said.
        source: io::Error,
    },
}

impl ImageError {
    /// What it means for the task.
    pub(super) fn failure(&self) -> Failure {
        let (cause, exit_status) = match self {
            Self::Engine(_) => (Cause::Platform, exit::OS),
            Self::NotFound { .. } => (Cause::User, exit::INPUT_MISSING),
            Self::Denied { .. } => (Cause::Storage, exit::DENIED),
            Self::Unavailable { .. } | Self::Unreadable { .. } => (Cause::Storage, exit::STORAGE_UNAVAILABLE),
            Self::NoSpace { .. } => (Cause::DiskFull, exit::OS),
            Self::Platform { .. } | Self::Broken { .. } => (Cause::User, exit::BAD_DATA),
        };
        Failure::new(cause, exit_status, format!("container image: {self}"))
    }
}
