//! Which local paths a job may name.
//!
//! Mounts and outputs live in a mount namespace of the instance, so a bad path cannot harm the machine. It can still harm
//! the task: a mount over `/usr` or `/proc` leaves nothing that runs. And a path with `..` in it, or below the agent's own
//! directories, is a mistake or an attack.

use std::path::PathBuf;

use crate::job::finding::{is_deceptive, quoted};

/// The longest path that is accepted, in bytes. The kernel's limit is 4096, and the agent puts its own directory in front.
const MAX_PATH: usize = 3072;

/// The longest component, in bytes: the limit of Linux file systems.
const MAX_COMPONENT: usize = 255;

/// The deepest path, in components.
const MAX_DEPTH: usize = 100;

/// Nothing may be mounted here or below: the kernel's views, what the machine boots from, and the agent's own state.
const CLOSED_TREES: &[&str] = &[
    "/proc",
    "/sys",
    "/dev",
    "/boot",
    "/run/batch-agent",
    "/run/fuse-oss",
    "/run/systemd",
    "/var/lib/batch-agent",
    "/etc/batch-agent",
];

/// Nothing may be mounted exactly here, because that would hide what every program needs. Below is fine.
const CLOSED: &[&str] = &[
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/sbin",
    "/etc",
    "/var",
    "/var/lib",
    "/run",
];

/// A path as the job wrote it, made safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalPath {
    /// Absolute, without `.`, `..`, doubled or trailing slashes.
    pub path: PathBuf,
    /// Whether it was written with a trailing slash.
    pub slash: bool,
}

/// What is wrong with a path, and what to do about it.
pub(crate) struct Refusal {
    pub cause: String,
    pub remedy: &'static str,
}

/// Checks a path that something is to be put at, and brings it into its normal form.
pub(crate) fn parse(text: &str) -> Result<LocalPath, Refusal> {
    let local = normal(text)?;
    if CLOSED_TREES.iter().any(|closed| local.path.starts_with(closed))
        || CLOSED.iter().any(|closed| local.path.as_os_str() == *closed)
    {
        return refuse(text, "belongs to the system", "use a directory of its own, such as /home/data/");
    }
    Ok(local)
}

fn refuse<T>(text: &str, cause: &str, remedy: &'static str) -> Result<T, Refusal> {
    Err(Refusal { cause: format!("the local path {} {cause}", quoted(text)), remedy })
}

/// Brings a path into its normal form, wherever it leads.
pub(crate) fn normal(text: &str) -> Result<LocalPath, Refusal> {
    let refuse = |cause: &str, remedy| refuse(text, cause, remedy);
    if text.is_empty() {
        return refuse("is empty", "write an absolute path such as /home/data/");
    }
    if is_windows(text) {
        return refuse(
            "is of the Windows form, and this node runs Linux",
            "write an absolute path such as /home/data/",
        );
    }
    if !text.starts_with('/') {
        return refuse("is not absolute", "write it from the root, such as /home/data/");
    }
    if text.chars().any(is_deceptive) {
        return refuse("holds a control character", "use visible characters only");
    }
    if text.len() > MAX_PATH {
        return refuse("is longer than 3072 bytes", "use a shorter path");
    }
    let mut path = PathBuf::from("/");
    for component in text.split('/') {
        match component {
            "" | "." => {}
            ".." => return refuse("holds \"..\"", "write the path it leads to"),
            name if name.len() > MAX_COMPONENT => {
                return refuse("holds a name of more than 255 bytes", "use a shorter name");
            }
            name => path.push(name),
        }
    }
    if path.components().count() > MAX_DEPTH {
        return refuse("is more than 100 directories deep", "use a shorter path");
    }
    if path.as_os_str() == "/" {
        return refuse("is the root of the file system", "use a directory of its own, such as /home/data/");
    }
    Ok(LocalPath { path, slash: text.ends_with('/') || text.ends_with("/.") })
}

/// `E:`, `E:\data`: what `bcs` writes for Windows nodes.
fn is_windows(text: &str) -> bool {
    let mut chars = text.chars();
    matches!((chars.next(), chars.next()), (Some(drive), Some(':')) if drive.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(text: &str) -> String {
        match parse(text) {
            Ok(path) => panic!("{text:?} was accepted as {path:?}"),
            Err(refusal) => refusal.cause,
        }
    }

    #[test]
    fn paths_are_normalised() {
        for (text, path, slash) in [
            ("/home/input/", "/home/input", true),
            ("/home/input", "/home/input", false),
            ("//home///in/./put//", "/home/in/put", true),
            ("/root/test/", "/root/test", true),
            ("/etc/app/app.conf", "/etc/app/app.conf", false),
            ("/usr/local/app/", "/usr/local/app", true),
            ("/developer", "/developer", false),
            ("/数据/a b", "/数据/a b", false),
        ] {
            assert_eq!(parse(text).ok(), Some(LocalPath { path: path.into(), slash }), "{text}");
        }
    }

    #[test]
    fn paths_that_would_do_harm_are_refused() {
        for (text, why) in [
            ("", "is empty"),
            ("home/x", "is not absolute"),
            ("E:", "Windows"),
            ("E:\\data", "Windows"),
            ("/", "root of the file system"),
            ("/./", "root of the file system"),
            ("/home/../etc", "holds \"..\""),
            ("/..", "holds \"..\""),
            ("/a\0b", "control character"),
            ("/a\nb", "control character"),
            ("/a\u{202e}b", "control character"),
            ("/proc", "belongs to the system"),
            ("/proc/sys/kernel", "belongs to the system"),
            ("//sys/", "belongs to the system"),
            ("/dev/shm", "belongs to the system"),
            ("/run/batch-agent/tasks", "belongs to the system"),
            ("/usr/", "belongs to the system"),
            ("/etc", "belongs to the system"),
        ] {
            assert!(refusal(text).contains(why), "{text:?}: {}", refusal(text));
        }
        assert!(refusal(&format!("/{}", "n".repeat(256))).contains("255 bytes"));
        assert!(refusal(&"/n".repeat(200)).contains("100 directories deep"));
        assert!(refusal(&"/nnnn".repeat(1000)).contains("3072 bytes"));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_safe(text in "/?([a-z.]{0,3}/){0,4}[a-z.]{0,3}|\\PC{0,12}") {
            if let Ok(local) = parse(&text) {
                let path = local.path.to_str().unwrap();
                prop_assert!(path.starts_with('/') && path.len() > 1 && !path.ends_with('/'));
                prop_assert!(path[1..].split('/').all(|name| !matches!(name, "" | "." | "..")));
                prop_assert_eq!(parse(path).ok().map(|again| again.path), Some(local.path.clone()));
            }
        }
    }
}
