//! Object storage as a local file system.
//!
//! A mount shows buckets, prefixes and single objects of `oss://`, `s3://`, `gs://`, `az://` and `file://` as a read-only
//! tree, or as one that can be changed locally ([`overlay`]): nothing of that is ever uploaded. One server, `fuse-oss serve`, owns a
//! cache directory and a memory budget and serves all mounts of a machine; [`client::Client`] asks it to mount and unmount.
//!
//! A server is two processes: the [`keeper`] holds what must not be lost, and its worker, the [`server`] proper, may be killed at any time.
//! What the next worker has to know travels in the journal of names ([`namespace`]) and the [`filesystem::ledger`] of open files.
//!
//! From the top down: [`filesystem`] is what the kernel asks, with [`filesystem::handles`] for what it reads by itself;
//! [`namespace`] is the frozen tree of names; [`reader`] an open file and [`siblings`] the files beside it, which decide what to fetch
//! ahead; [`allowance`] what a mount may keep; [`blocks`] the chain of memory, disk and store that bytes come from, counted by
//! [`geometry`]; [`cache`] the disk. [`observed`] counts what is asked of stores, for [`metrics`]. Beside them, the server's
//! [`protocol`] and [`runtime`] files, [`charset`] between names and keys, [`mountpoint`] and [`transport`] towards the kernel.
//!
//! # Locks
//!
//! `flock(2)`, POSIX locks (`fcntl(2)` with `F_SETLK`, `lockf(3)`) and open file description locks (`F_OFD_SETLK`) work on both kinds of mounts,
//! at the kernel's speed: the server does not offer to keep locks, so the kernel keeps them by itself. They hold between all processes
//! of the node that use the same mount, and end with the process. They do not reach other nodes, nor another mount of the same
//! bucket on this one: two such mounts are two file systems.

pub mod allowance;
pub mod blocks;
pub mod cache;
pub mod charset;
pub mod client;
pub mod daemon;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "a test double: its numbers are small")]
mod double;
mod error;
pub mod fault;
pub mod filesystem;
pub mod geometry;
pub mod keeper;
pub mod log_limit;
pub mod metrics;
pub mod mountpoint;
pub mod namespace;
pub mod observed;
mod options;
pub mod overlay;
pub mod protocol;
pub mod reader;
pub mod runtime;
pub mod server;
pub mod siblings;
mod size;
pub mod transport;

pub use charset::{Charset, CharsetError};
pub use error::{ClientError, ErrorKind, MountError};
pub use options::{
    CacheUse, DEFAULT_CACHE_DIR, DEFAULT_RUNTIME_DIR, MIN_MEMORY, MountEntry, MountOptions, MountReply, MountRequest,
    MountStatus, Prefetch, PrefetchStatus, RUNTIME_DIR_VARIABLE, ServeSettings, Status, UnmountMode, Writable,
    WritableStatus, check_entries, default_runtime_dir,
};
pub use size::{ByteSize, ByteSizeError};
