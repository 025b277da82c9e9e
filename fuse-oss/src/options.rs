//! What can be asked of a mount and of the server behind it.

use std::path::PathBuf;
use std::str::FromStr;

use oss::{Location, Settings};
use serde::{Deserialize, Serialize};

use crate::charset::Charset;
use crate::error::{ErrorKind, MountError};
use crate::metrics::Snapshot;
use crate::size::ByteSize;

/// Where the server keeps its cache unless told otherwise.
pub const DEFAULT_CACHE_DIR: &str = "/var/cache/fuse-oss";
/// Where control sockets are unless told otherwise.
pub const DEFAULT_RUNTIME_DIR: &str = "/run/fuse-oss";
/// Sets the runtime directory when the command line does not.
pub const RUNTIME_DIR_VARIABLE: &str = "FUSE_OSS_RUNTIME_DIR";
/// The least memory a server works with: a few blocks in flight for several readers at once.
pub const MIN_MEMORY: ByteSize = ByteSize::new(32 << 20);

/// What is brought in before anybody asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefetch {
    /// Nothing.
    #[default]
    None,
    /// All names, so that walking the mount asks the store nothing.
    Metadata,
    /// All names, and then all content, as far as the cache holds it.
    All,
}

impl FromStr for Prefetch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "metadata" => Ok(Self::Metadata),
            "all" => Ok(Self::All),
            _ => Err(format!("{text:?} cannot be fetched ahead: write none, metadata or all")),
        }
    }
}

/// How files look and who may see them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountOptions {
    /// Permission bits of files. Objects carry read and execute permission and no write permission unless told otherwise.
    pub file_mode: u32,
    /// Permission bits of directories.
    pub dir_mode: u32,
    /// Who owns everything; the user of the server (root) when absent.
    pub uid: Option<u32>,
    /// The group of everything; the group of the server when absent.
    pub gid: Option<u32>,
    /// Whether users other than the server's own may look inside.
    pub allow_other: bool,
    /// Whether files may be executed (`noexec` when not).
    pub exec: bool,
    /// Whether to mount over a directory that has something in it, hiding that.
    pub nonempty: bool,
    /// What is brought in, in the background, as soon as the mount answers.
    #[serde(default)]
    pub prefetch: Prefetch,
    /// The most names it may remember, at some 100 bytes each; ten million when absent. One directory may have four fifths of them.
    #[serde(default)]
    pub max_names: Option<u64>,
    /// What of it the disk cache keeps.
    #[serde(default)]
    pub cache: CacheUse,
    /// Whether the mount can be written to, locally: nothing of that is ever uploaded, and all of it is gone after unmounting.
    #[serde(default)]
    pub writable: Option<Writable>,
}

/// A view that can be written to and keeps what is written to itself: see [`overlay`](crate::overlay).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writable {
    /// The directory, on a local disk, in which a directory for what is written is made; below the cache directory when absent.
    pub upper: Option<PathBuf>,
    /// How much may be written, where the file system can limit that; what is free, less a reserve, when absent.
    pub size: Option<ByteSize>,
    /// Keep whole files in the upper directory, because somebody reads it by itself: a change of mode then copies the file, and
    /// directories that are in the store cannot be renamed.
    #[serde(default)]
    pub whole_files: bool,
}

/// How much of what a mount reads the disk cache may keep, and how it is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheUse {
    /// The most that the disk cache may hold of it; as much as of any mount when absent, and nothing at all when 0. An object that is
    /// longer is not kept at all.
    pub limit: Option<ByteSize>,
    /// The least that a random read of an object over 1 MiB fetches, rounded up to a power of two, at most 8 MiB; what pays with the store
    /// when absent.
    pub fetch: Option<ByteSize>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            file_mode: 0o555,
            dir_mode: 0o555,
            uid: None,
            gid: None,
            allow_other: false,
            exec: true,
            nonempty: false,
            prefetch: Prefetch::None,
            max_names: None,
            cache: CacheUse::default(),
            writable: None,
        }
    }
}

/// One location at one place of the tree that a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountEntry {
    /// Where inside the mount, relative and normalised (`1/genome.fa`); empty for the root itself. Missing parent directories are
    /// made up. A place may be inside a directory of another entry, and then wins over what that one has there.
    pub at: String,
    /// What is shown there: a directory (trailing slash) or one object. One object at the root is a mount on a file.
    pub location: Location,
    /// The character set its names are shown in.
    #[serde(default)]
    pub locale: Charset,
}

impl MountEntry {
    /// A location at a place, its names as its keys are written.
    pub fn new(at: impl Into<String>, location: Location) -> Self {
        Self { at: at.into(), location, locale: Charset::UTF_8 }
    }

    /// How messages call its place.
    fn place(&self) -> String {
        if self.at.is_empty() { "the top of the mount".to_owned() } else { format!("{:?}", self.at) }
    }
}

/// A mount, as it is asked for.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// The directory to mount on, which must exist; for one object alone a file, which is made when it is missing.
    pub target: PathBuf,
    /// What it shows; see [`check_entries`].
    pub entries: Vec<MountEntry>,
    /// How it looks.
    pub options: MountOptions,
    /// How the stores are reached and with which credentials.
    pub stores: Settings,
}

/// What a successful mount says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountReply {
    /// The absolute path it is mounted on.
    pub target: PathBuf,
    /// The server's process.
    pub pid: u32,
}

/// How a mount in use is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnmountMode {
    /// Refused, with the names of the processes that use it.
    #[default]
    WhenIdle,
    /// Taken out of the tree at once; processes that have files open keep reading them.
    Lazy,
}

/// The server that is wanted: [`Client::connect_or_start`](crate::client::Client::connect_or_start) finds it by its cache
/// directory or starts it.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// The `fuse-oss` program.
    pub binary: PathBuf,
    /// The cache directory, which a server owns alone. Made when missing.
    pub cache_dir: PathBuf,
    /// How much the cache may hold; a fifth of its file system when absent.
    pub cache_size: Option<ByteSize>,
    /// How much memory blocks may take; a quarter of the machine's, at most 2 GiB, when absent.
    pub memory_limit: Option<ByteSize>,
    /// Where control sockets are.
    pub runtime_dir: PathBuf,
}

impl ServeSettings {
    /// The defaults, for the program at `binary`.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            cache_dir: PathBuf::from(DEFAULT_CACHE_DIR),
            cache_size: None,
            memory_limit: None,
            runtime_dir: default_runtime_dir(),
        }
    }
}

/// The runtime directory from the environment, or the usual one.
pub fn default_runtime_dir() -> PathBuf {
    std::env::var_os(RUNTIME_DIR_VARIABLE)
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_RUNTIME_DIR), PathBuf::from)
}

/// A mount as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// The absolute path it is mounted on.
    pub target: PathBuf,
    /// What it shows.
    pub entries: Vec<MountEntry>,
    /// Detached from the tree and only kept for processes that still use it.
    pub detached: bool,
    /// Names seen so far.
    pub nodes: u64,
    /// Keys met that no file system can show.
    pub hidden: u64,
    /// Files open now.
    pub open_files: u64,
    /// How far bringing things in ahead of time has come; absent when that was not asked for.
    #[serde(default)]
    pub prefetch: Option<PrefetchStatus>,
    /// Where what is written goes; absent when the mount cannot be written to.
    #[serde(default)]
    pub writable: Option<WritableStatus>,
    /// Why it answers with errors only, until it is unmounted; absent as long as all is well.
    #[serde(default)]
    pub down: Option<String>,
}

/// What was written in a view, and how much more may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritableStatus {
    /// The directory that receives it, removed after unmounting.
    pub upper: PathBuf,
    /// Bytes in it; absent where the file system does not count them.
    pub used: Option<ByteSize>,
    /// The most there may be; absent where only the disk is the limit.
    pub limit: Option<ByteSize>,
    /// Bytes that can still be written, as far as the limit and the disk allow.
    pub available: ByteSize,
}

/// How far bringing things in ahead of time has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchStatus {
    /// What was asked for.
    pub kind: Prefetch,
    /// Names known so far, directories included.
    pub names: u64,
    /// Objects known so far; all of them once all names are.
    pub objects_total: u64,
    /// Their length in bytes.
    pub bytes_total: u64,
    /// Objects whose content is there; always 0 when only names were asked for.
    pub objects_done: u64,
    /// Their length in bytes.
    pub bytes_done: u64,
    /// Nothing more is brought in: all is there, or it was given up.
    pub finished: bool,
    /// Why it was given up. The mount itself goes on as if nothing had been asked for.
    pub error: Option<String>,
}

/// What `status` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The server's process: the one to send signals to.
    pub pid: u32,
    /// The process that does its work, and that may be killed at any time.
    pub worker: u32,
    /// How many such processes there were before: each was killed, or has made room for another program.
    #[serde(default)]
    pub before: u64,
    /// How many times another program has taken over (`serve --replace`).
    #[serde(default)]
    pub replaced: u64,
    /// Its version.
    pub version: String,
    /// Its cache directory.
    pub cache_dir: PathBuf,
    /// Bytes in the disk cache now.
    pub cache_used: ByteSize,
    /// The most there may be.
    pub cache_size: ByteSize,
    /// Bytes of blocks in memory now.
    pub memory_used: ByteSize,
    /// The most there may be, blocks under way included.
    pub memory_limit: ByteSize,
    /// Bytes fetched from stores since the server started.
    pub fetched: ByteSize,
    /// Blocks or objects whose checksum was wrong and that were fetched again.
    pub corrupt: u64,
    /// Everything that is counted.
    #[serde(default)]
    pub metrics: Snapshot,
    /// Where `GET /metrics` is answered in Prometheus' text format; absent when that socket could not be made.
    #[serde(default)]
    pub metrics_socket: Option<PathBuf>,
    /// The mounts.
    pub mounts: Vec<MountStatus>,
}

/// Checks that the entries make a tree: normalised places, one entry at each, and nothing inside a single object. Directories
/// may be inside one another, and objects inside directories.
///
/// # Errors
/// [`ErrorKind::Usage`], naming the entries.
pub fn check_entries(entries: &[MountEntry]) -> Result<(), MountError> {
    let usage = |text: String| Err(MountError::new(ErrorKind::Usage, text));
    if entries.is_empty() {
        return usage("nothing to mount: give at least one location".to_owned());
    }
    // A name is shown in the character set of the directory around it, which may be any entry's.
    let mut locales: Vec<Charset> = entries.iter().map(|entry| entry.locale).collect();
    locales.dedup();
    for entry in entries.iter().filter(|entry| !entry.at.is_empty()) {
        if let Some(bad) = entry.at.split('/').find(|name| !locales.iter().all(|locale| locale.shows(name))) {
            return usage(format!(
                "{:?} cannot be a place inside a mount: {bad:?} is no file name; use a relative path without '.', '..' and double slashes",
                entry.at
            ));
        }
    }
    let mut sorted: Vec<&MountEntry> = entries.iter().collect();
    // With "/" sorting before everything else in a name, an entry is followed directly by what is inside it.
    sorted.sort_by(|a, b| a.at.split('/').cmp(b.at.split('/')));
    for pair in sorted.windows(2) {
        let [outer, inner] = pair else { continue };
        let (outer_name, inner_name) = (outer.location.escaped(), inner.location.escaped());
        if outer.at == inner.at {
            return usage(match outer.location == inner.location {
                true => format!("{outer_name} is to be at {} twice; leave one of them out", outer.place()),
                false => {
                    format!(
                        "{outer_name} and {inner_name} are both to be at {}; give each its own place",
                        outer.place()
                    )
                }
            });
        }
        let is_inside = inner.at.strip_prefix(outer.at.as_str()).is_some_and(|rest| rest.starts_with('/'));
        if (is_inside || outer.at.is_empty()) && !outer.location.is_directory() {
            return usage(format!(
                "{inner_name} at {:?} would be inside {outer_name} at {}, which is one object; give it another place, \
                 or write the outer one with a trailing slash if it is a directory",
                inner.at,
                outer.place()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[(&str, &str)]) -> Vec<MountEntry> {
        list.iter().map(|(at, location)| MountEntry::new(*at, location.parse().unwrap())).collect()
    }

    #[test]
    fn entries_make_a_tree() {
        for list in [
            &[("", "oss://b/d/")][..],
            &[("", "oss://b/d")],
            &[("0", "oss://b/d/"), ("1/genome.fa", "s3://c/genome.fa"), ("1/x", "oss://b/d/")],
            // "a" and "a.b" and "a/..." sort around each other in plain string order.
            &[("a.b", "oss://b/d/"), ("a/b", "oss://b/e/"), ("a-", "oss://b/e/")],
            &[("a.b", "oss://b/d"), ("a", "oss://b/x/"), ("a/b", "oss://b/e/"), ("a/b/c/d", "oss://b/e")],
            &[("x/y/z", "oss://b/e/"), ("", "oss://b/d/"), ("y/x", "oss://b/d")],
        ] {
            check_entries(&entries(list)).unwrap();
        }
        let long = "\u{4e2d}".repeat(100);
        let mut gbk = entries(&[(&long, "oss://b/d/")]);
        assert!(check_entries(&gbk).unwrap_err().message.contains("is no file name"));
        gbk[0].locale = "GBK".parse().unwrap();
        check_entries(&gbk).unwrap();
    }

    #[test]
    fn conflicts_and_odd_places_are_refused_by_name() {
        for (list, hint) in [
            (&[][..], "nothing to mount"),
            (
                &[("", "oss://b/d"), ("x", "oss://b/e/")],
                "oss://b/e/ at \"x\" would be inside oss://b/d at the top of the mount",
            ),
            (&[("x", "oss://b/d"), ("x", "oss://b/e")], "oss://b/d and oss://b/e are both to be at \"x\""),
            (&[("", "oss://b/d/"), ("x", "oss://b/q"), ("", "oss://b/e/")], "both to be at the top of the mount"),
            (&[("x", "oss://b/d"), ("x", "oss://b/d")], "oss://b/d is to be at \"x\" twice"),
            (&[("x", "oss://b/d"), ("x-", "oss://b/q/"), ("x/y/z", "oss://b/e")], "which is one object"),
            (&[("../x", "oss://b/d/")], "is no file name"),
            (&[("/x", "oss://b/d/")], "is no file name"),
            (&[("x/", "oss://b/d/")], "is no file name"),
        ] {
            let error = check_entries(&entries(list)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.message.contains(hint), "{error}");
        }
    }
}
