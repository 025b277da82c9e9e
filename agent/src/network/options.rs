//! Mount options: ours, and the user's over them.
//!
//! Ours are what Alibaba Cloud and AWS document for their services. An option of the user's replaces ours when it has the same
//! name or is a different word about the same thing (`soft` for `hard`, `nfsvers=` for `vers=`); otherwise it is added.

use super::source::is_ipv6;
use crate::settings::{NetworkFileSystem, NfsVersion};

/// Read and write sizes in bytes, deadlines in tenths of a second, for NFS over a cloud's network.
const NFS: [&str; 7] = ["rsize=1048576", "wsize=1048576", "hard", "timeo=600", "retrans=2", "noresvport", "retry=0"];

/// For all: nothing on a file server is a device of this machine, or a program that takes another user's rights.
const EVERYWHERE: [&str; 2] = ["nosuid", "nodev"];

/// An option that cannot be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mount option {option:?} {cause}")]
pub struct OptionError {
    /// As it was given.
    pub option: String,
    /// Why not, and what instead.
    pub cause: &'static str,
}

/// Checks an option that a user gives.
///
/// # Errors
/// When it is not one word, or would change what mounting means here.
pub fn check(option: &str) -> Result<(), OptionError> {
    let refuse = |cause| Err(OptionError { option: option.to_owned(), cause });
    if option.is_empty() {
        return refuse("is empty; remove it");
    }
    if option.contains(',') {
        return refuse("holds a comma; give each option by itself");
    }
    if option.starts_with(['-', '='])
        || option.chars().any(|c| c.is_whitespace() || c.is_control())
        || option.len() > 1024
    {
        return refuse("is not an option; write NAME or NAME=VALUE without spaces");
    }
    match name(option) {
        "ro" | "rw" => refuse("is not given here; set `writable` to true or false"),
        "bg" => refuse("would report a mount that is not there yet; remove it: mounting has a deadline of its own"),
        "fg" | "retry" => refuse("is not needed; mounting is tried again until its deadline"),
        "remount" | "bind" | "rbind" | "move" | "loop" | "offset" => {
            refuse("does not mount a network file system; remove it")
        }
        "user" | "users" | "owner" | "group" | "noauto" | "auto" | "nofail" | "fake" => {
            refuse("belongs into /etc/fstab; remove it")
        }
        _ => Ok(()),
    }
}

/// The options for the mount command, joined by commas.
///
/// # Errors
/// The first of the user's options that cannot be had.
pub fn joined(what: &NetworkFileSystem, writable: bool) -> Result<String, OptionError> {
    let more = what.more_options();
    more.iter().try_for_each(|option| check(option))?;
    let ours = ours(what);
    let ours = ours.into_iter().filter(|own| more.iter().all(|theirs| subject(theirs) != subject(own)));
    let access = if writable { "rw" } else { "ro" };
    let all: Vec<&str> = std::iter::once(access).chain(ours).chain(more.iter().map(String::as_str)).collect();
    Ok(all.join(","))
}

fn ours(what: &NetworkFileSystem) -> Vec<&'static str> {
    let mut options: Vec<&'static str> = Vec::new();
    match what {
        NetworkFileSystem::Nfs { host, version, .. } => {
            options.extend(match version {
                NfsVersion::V3 => ["vers=3", "nolock"].as_slice(),
                NfsVersion::V4_0 => ["vers=4", "minorversion=0"].as_slice(),
                NfsVersion::V4_1 => ["vers=4.1"].as_slice(),
            });
            options.push(if is_ipv6(host) { "proto=tcp6" } else { "proto=tcp" });
            options.extend(NFS);
        }
        NetworkFileSystem::Lustre { .. } => options.extend(["noatime", "flock"]),
    }
    options.extend(EVERYWHERE);
    options
}

fn name(option: &str) -> &str {
    option.split_once('=').map_or(option, |(name, _)| name)
}

/// What an option is about: two with the same subject cannot both be meant.
fn subject(option: &str) -> &str {
    match name(option) {
        "vers" | "nfsvers" | "minorversion" | "v2" | "v3" | "v4" | "v4.0" | "v4.1" | "v4.2" => "vers",
        "proto" | "tcp" | "udp" | "rdma" => "proto",
        "hard" | "soft" | "softerr" => "hard",
        "lock" | "nolock" => "lock",
        "resvport" | "noresvport" => "resvport",
        "atime" | "noatime" | "relatime" | "norelatime" | "strictatime" | "lazytime" => "atime",
        "flock" | "localflock" | "noflock" => "flock",
        "suid" | "nosuid" => "suid",
        "dev" | "nodev" => "dev",
        other => other,
    }
}

/// The NFS version that will be asked for, as the mount table writes it: `3`, `4.0`, `4.1`; `4` for any of those; nothing when
/// it is left to the mount command.
pub(super) fn version(what: &NetworkFileSystem) -> Option<String> {
    let NetworkFileSystem::Nfs { version, options, .. } = what else { return None };
    let theirs: Vec<&String> = options.iter().filter(|option| subject(option) == "vers").collect();
    if theirs.is_empty() {
        let version = match version {
            NfsVersion::V3 => "3",
            NfsVersion::V4_0 => "4.0",
            NfsVersion::V4_1 => "4.1",
        };
        return Some(version.to_owned());
    }
    let mut major = None;
    let mut minor = None;
    for option in theirs {
        match option.split_once('=') {
            Some(("minorversion", value)) => minor = Some(value),
            Some((_, value)) => major = Some(value),
            None => major = option.strip_prefix('v'),
        }
    }
    match (major?, minor) {
        ("4", Some(minor)) => Some(format!("4.{minor}")),
        (major, _) => Some(major.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nas(version: NfsVersion, more: &[&str]) -> NetworkFileSystem {
        NetworkFileSystem::Nfs {
            host: "h".to_owned(),
            path: "/d".into(),
            version,
            options: more.iter().map(|&option| option.to_owned()).collect(),
        }
    }

    #[test]
    fn the_documented_options_are_used() {
        let sizes = "rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport,retry=0,nosuid,nodev";
        for (version, expected) in [
            (NfsVersion::V3, "vers=3,nolock,proto=tcp"),
            (NfsVersion::V4_0, "vers=4,minorversion=0,proto=tcp"),
            (NfsVersion::V4_1, "vers=4.1,proto=tcp"),
        ] {
            assert_eq!(joined(&nas(version, &[]), true).unwrap(), format!("rw,{expected},{sizes}"));
        }
        let lustre = NetworkFileSystem::parse("fs@tcp:/name").unwrap();
        assert_eq!(joined(&lustre, false).unwrap(), "ro,noatime,flock,nosuid,nodev");
        let six = NetworkFileSystem::parse("nas://[::1]:/d").unwrap();
        assert!(joined(&six, false).unwrap().contains(",proto=tcp6,"));
    }

    #[test]
    fn an_option_of_the_users_replaces_ours() {
        let more = ["nfsvers=4.2", "soft", "timeo=50", "resvport", "suid", "nconnect=4"];
        assert_eq!(
            joined(&nas(NfsVersion::V4_0, &more), true).unwrap(),
            "rw,proto=tcp,rsize=1048576,wsize=1048576,retrans=2,retry=0,nodev,nfsvers=4.2,soft,timeo=50,resvport,suid,nconnect=4"
        );
        assert!(joined(&nas(NfsVersion::V3, &["lock"]), true).unwrap().contains("vers=3,proto=tcp"));
    }

    #[test]
    fn the_version_is_known_however_it_is_written() {
        for (more, expected) in [
            (&[][..], "4.0"),
            (&["vers=3"], "3"),
            (&["nfsvers=4.2"], "4.2"),
            (&["vers=4", "minorversion=1"], "4.1"),
            (&["v4.1"], "4.1"),
            (&["vers=4"], "4"),
        ] {
            assert_eq!(version(&nas(NfsVersion::V4_0, more)).as_deref(), Some(expected), "{more:?}");
        }
    }

    #[test]
    fn options_that_would_change_what_mounting_means_are_refused_by_name() {
        for (option, expected) in [
            ("", "is empty"),
            ("a,b", "give each option by itself"),
            ("rw", "set `writable`"),
            ("bg", "not there yet"),
            ("retry=5", "until its deadline"),
            ("remount", "does not mount a network file system"),
            ("nofail", "/etc/fstab"),
            ("a b", "is not an option"),
            ("-o", "is not an option"),
        ] {
            let error = joined(&nas(NfsVersion::V3, &[option]), true).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        /// Whatever the user adds: access stays what was asked for, it comes first, and each subject is there once.
        #[test]
        fn nothing_is_smuggled_in(more in prop::collection::vec("[a-z=,. 0-9]{0,6}|ro|rw|vers=3|soft|bg", 0..4)) {
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            let what = nas(NfsVersion::V3, &more);
            if let Ok(options) = joined(&what, false) {
                let list: Vec<&str> = options.split(',').collect();
                prop_assert_eq!(list[0], "ro");
                prop_assert!(!list[1..].iter().any(|option| matches!(*option, "ro" | "rw" | "remount" | "bg" | "")));
                let ours = ours(&what);
                for theirs in &more {
                    let rivals = list.iter().filter(|o| ours.contains(*o) && subject(o) == subject(theirs) && *o != theirs);
                    prop_assert_eq!(rivals.count(), 0, "{}", options);
                }
            }
        }
    }
}
