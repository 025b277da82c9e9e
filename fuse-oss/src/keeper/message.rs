//! What keeper and worker say to one another over their [`Link`](super::link::Link).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Parts;
use crate::error::MountError;

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToKeeper {
    /// Everything that was handed over is answered again, and clients are.
    Ready,
    /// It cannot serve, and ends.
    Failed(MountError),
    /// It is about to mount. The descriptors are those of [`Files`](super::Files), in that order. From now on the mount is
    /// the keeper's, too.
    Held {
        /// The mount's number.
        id: u64,
        /// Where it is to be.
        target: PathBuf,
        /// Which descriptors there are.
        parts: Parts,
    },
    /// It is mounted and answers.
    Established {
        /// The mount's number.
        id: u64,
        /// What is seen at its target, as `major:minor`.
        device: String,
    },
    /// The mount is gone, or was never made.
    Gone {
        /// The mount's number.
        id: u64,
    },
    /// A worker that has lost its keeper begins to go over to another one. The descriptors are the lock on the cache directory, the control
    /// socket and, if there is one, the socket for metrics.
    Orphaned {
        /// The first number for mounts to come.
        next_id: u64,
        /// How many workers there were, this one included.
        workers: u64,
        /// How many times a program has taken over.
        replaced: u64,
        /// Whether there is a socket for metrics.
        metrics: bool,
    },
    /// A client asks that this program take over from the one that runs.
    Replace {
        /// The path of the program.
        program: PathBuf,
    },
    /// Nothing is mounted any more; it ends now, and there is nothing left to keep.
    Ended,
}

/// From the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToWorker {
    /// A mount to go on with. The descriptors are those of [`Files`](super::Files), in that order.
    Mount {
        /// Its number.
        id: u64,
        /// Where it is.
        target: PathBuf,
        /// What is seen there, as `major:minor`.
        device: String,
        /// Which descriptors there are.
        parts: Parts,
    },
    /// Somebody began to mount here, and was killed before that was done: what is there has to go.
    Abandoned {
        /// Where.
        target: PathBuf,
    },
    /// All has been handed over: serve.
    Begin {
        /// The first number for mounts to come.
        next_id: u64,
        /// How many workers there were before this one.
        before: u64,
        /// How many times a program has taken over.
        replaced: u64,
    },
    /// Unmount everything and end. Sent again when somebody is in a hurry.
    End {
        /// How long a mount in use is waited for, in milliseconds.
        patience_ms: u64,
    },
    /// Write what is to be kept, and end without unmounting: a successor goes on.
    HandOver,
    /// The program was not replaced.
    NotReplaced(MountError),
}
