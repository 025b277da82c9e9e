//! The mounts of a node: what, where and how.

use std::path::PathBuf;
use std::time::Duration;

use fuse_oss::Charset;

use super::places::{Claim, Kind, Places};
use super::{MAX_TIME, time};
use crate::job::finding::{At, Findings, Place, is_deceptive, quoted};
use crate::job::validate::{self as job, local_path, mappings};
use crate::settings::description::{MountSource, NetworkFileSystem, NfsVersion, NodeMount};
use crate::settings::format::{MountDocument, VersionDocument};

/// How long a mount may take when nothing is said: long enough for a name server and a file server that boot beside us.
const DEADLINE: Duration = Duration::from_secs(120);

/// The most mounts of a node.
const MAX_MOUNTS: usize = 1_000;

/// Checks each mount by itself and claims its place.
pub(super) fn check(
    documents: Vec<Option<MountDocument>>,
    place: &Place,
    places: &mut Places,
    findings: &mut Findings,
) -> Vec<NodeMount> {
    if documents.len() > MAX_MOUNTS {
        let cause = format!("there are {} mounts, and at most {MAX_MOUNTS} are allowed", documents.len());
        findings.error_with(place, cause, "mount directories and not each of their files");
        return Vec::new();
    }
    let mut mounts = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let Some(document) = document else { continue };
        let errors = findings.error_count();
        let mount = one(document, &place.index(index), places, findings);
        mounts.extend(mount.filter(|_| findings.error_count() == errors));
    }
    mounts
}

fn one(document: MountDocument, place: &Place, places: &mut Places, findings: &mut Findings) -> Option<NodeMount> {
    let written = At::new(place.key("source"), document.source);
    let target = At::new(place.key("target"), document.target);
    let writable = document.writable.unwrap_or(false);
    let options = document.options.unwrap_or_default();
    check_options(&options, writable, &place.key("options"), findings);
    let source = match network(&written.value) {
        Some(Ok(network)) => Some(network),
        Some(Err(refusal)) => {
            findings.error_with(&written.place, format!("{} {}", quoted(&written.value), refusal.0), refusal.1);
            None
        }
        None => job::location(&written, findings)
            .map(|location| Source::Object(MountSource::Object { location, locale: None })),
    };
    let path = mappings::local(&target, findings);
    let deadline = document.deadline.and_then(|time| self::time(time, &place.key("deadline"), 1..=MAX_TIME, findings));
    let mut misplaced = |key: &str, given: bool, kind: &str| {
        if given {
            findings.error_with(&place.key(key), format!("means nothing for {kind}"), "remove it");
        }
    };
    let source = match source? {
        Source::Object(MountSource::Object { location, .. }) => {
            misplaced("version", document.version.is_some(), "object storage");
            misplaced("options", !options.is_empty(), "object storage");
            let locale = super::charset(document.locale.as_deref(), &place.key("locale"), findings);
            let locale = Some(locale).filter(|locale| *locale != Charset::UTF_8).map(|locale| locale.to_string());
            if !mappings::agree(&location, path.as_ref()?, &written, &target, false, findings) {
                return None;
            }
            MountSource::Object { location, locale }
        }
        Source::Object(other) => other,
        Source::Nfs { host, path } => {
            misplaced("locale", document.locale.is_some(), "NAS, which keeps names as they are");
            let version = match document.version {
                None => NfsVersion::default(),
                Some(VersionDocument::V3) => NfsVersion::V3,
                Some(VersionDocument::V4_0) => NfsVersion::V4_0,
                Some(VersionDocument::V4_1) => NfsVersion::V4_1,
            };
            MountSource::Network(NetworkFileSystem::Nfs { host, path, version, options })
        }
        Source::Lustre { device } => {
            misplaced("locale", document.locale.is_some(), "Lustre, which keeps names as they are");
            misplaced("version", document.version.is_some(), "Lustre");
            MountSource::Network(NetworkFileSystem::Lustre { device, options })
        }
    };
    let path = path?.path;
    let (directory, object) = match &source {
        MountSource::Object { location, .. } => (location.is_directory(), Some(location.clone())),
        MountSource::Network(_) => (true, None),
    };
    let kind = Kind::Mount { source: written.value, object, directory, writable };
    places.claim(Claim { path: path.clone(), place: target.place, kind }, findings);
    Some(NodeMount {
        source,
        target: path,
        writable,
        required: document.required.unwrap_or(true),
        deadline: deadline.unwrap_or(DEADLINE),
    })
}

/// A source whose address is understood.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Object(MountSource),
    Nfs { host: String, path: PathBuf },
    Lustre { device: String },
}

/// What is wrong with a source, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
struct Refusal(&'static str, &'static str);

/// Reads the address of a network file system; nothing when it is something else.
fn network(text: &str) -> Option<Result<Source, Refusal>> {
    const NFS: &str = "write nas://HOST:/DIRECTORY";
    const LUSTRE: &str = "write lustre://HOST@tcp:/NAME";
    if text.chars().any(is_deceptive) {
        return Some(Err(Refusal("holds a control character", "use visible characters only")));
    }
    let mut letters = text.chars();
    if let (Some(drive), Some(':')) = (letters.next(), letters.next())
        && drive.is_ascii_alphabetic()
    {
        return Some(Err(Refusal("is a drive of Windows, and this node runs Linux", NFS)));
    }
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        // As mount(8) takes it.
        None if text.contains('@') && text.contains(":/") => ("lustre", text),
        None => return None,
    };
    Some(match scheme {
        "smb" | "cifs" => Err(Refusal("is a share for Windows, and this node runs Linux", NFS)),
        "nas" | "nfs" if rest.ends_with('!') => {
            Err(Refusal("ends in '!', which is the form for Windows, and this node runs Linux", "remove the '!'"))
        }
        "nas" | "nfs" => nfs(rest).ok_or(Refusal("does not name a server and a directory", NFS)),
        "lustre" => lustre(rest).ok_or(Refusal("does not name a Lustre file system", LUSTRE)),
        "nasplus" | "cpfs" => Err(Refusal("is of a kind that is not supported", "use nas:// (NFS) or lustre://")),
        _ => return None,
    })
}

/// `HOST:/DIRECTORY`.
fn nfs(text: &str) -> Option<Source> {
    // An IPv6 address is in brackets and has colons of its own.
    let (host, path) = text.split_once(":/")?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fine = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_host(host),
    };
    // The root of the server is a directory like any other.
    let path = if path.trim_matches('/').is_empty() {
        PathBuf::from("/")
    } else {
        local_path::normal(&format!("/{path}")).ok()?.path
    };
    fine.then(|| Source::Nfs { host: host.to_owned(), path })
}

/// `NID[,NID...][:NID...]:/NAME[/DIRECTORY]`.
fn lustre(text: &str) -> Option<Source> {
    let (servers, name) = text.split_once(":/")?;
    let is_nid = |nid: &str| {
        nid.split_once('@').is_some_and(|(host, network)| {
            let kind = network.trim_end_matches(|c: char| c.is_ascii_digit());
            is_host(host) && matches!(kind, "tcp" | "o2ib" | "kfi" | "gni")
        })
    };
    let name = name.trim_end_matches('/');
    let parts_fine = name.split('/').all(|part| {
        !matches!(part, "" | "." | "..")
            && part.len() <= 255
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    });
    (servers.len() <= 1024 && servers.split([',', ':']).all(is_nid) && parts_fine && name.len() <= 1024)
        .then(|| Source::Lustre { device: format!("{servers}:/{name}") })
}

/// A name or an IPv4 address; nothing that a mount command could take for an option.
fn is_host(host: &str) -> bool {
    host.len() <= 253
        && host.starts_with(|c: char| c.is_ascii_alphanumeric())
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// Options of network file systems: one in each item, and none that turns the mount into something else.
fn check_options(options: &[String], writable: bool, place: &Place, findings: &mut Findings) {
    for (index, option) in options.iter().enumerate() {
        let place = place.index(index);
        let name = option.split('=').next().unwrap_or_default();
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '=' | ':' | '/' | '+');
        let refusal = if !option.starts_with(|c: char| c.is_ascii_alphanumeric()) || !option.chars().all(fine) {
            Some(("is not one mount option", "write one option in each item, such as nconnect=4"))
        } else {
            match name {
                "bind" | "rbind" | "move" | "remount" | "loop" => {
                    Some(("makes something other than this mount", "remove it"))
                }
                "vers" | "nfsvers" | "minorversion" => Some(("is the version of the protocol", "use version: instead")),
                "ro" if writable => Some(("contradicts writable: true", "remove one of them")),
                "rw" if !writable => Some(("contradicts the mount, which is read-only", "use writable: true instead")),
                _ => None,
            }
        };
        if let Some((cause, remedy)) = refusal {
            findings.error_with(&place, format!("{} {cause}", quoted(option)), remedy);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_of_network_file_systems_are_read() {
        let nfs = |host: &str, path: &str| Source::Nfs { host: host.to_owned(), path: path.into() };
        let lustre = |device: &str| Source::Lustre { device: device.to_owned() };
        for (text, expected) in [
            ("nas://0123-x.cn-hangzhou.nas.aliyuncs.com:/", nfs("0123-x.cn-hangzhou.nas.aliyuncs.com", "/")),
            ("nas://h:/a//b/", nfs("h", "/a/b")),
            ("nfs://10.0.0.1:/export", nfs("10.0.0.1", "/export")),
            ("nas://[fd00::1]:/x", nfs("[fd00::1]", "/x")),
            (
                "lustre://fs-0a.fsx.us-east-1.amazonaws.com@tcp:/fsx",
                lustre("fs-0a.fsx.us-east-1.amazonaws.com@tcp:/fsx"),
            ),
            ("fs-0a.fsx.us-east-1.amazonaws.com@tcp:/fsx", lustre("fs-0a.fsx.us-east-1.amazonaws.com@tcp:/fsx")),
            (
                "lustre://10.0.0.1@tcp1,10.0.0.2@tcp1:10.0.0.3@o2ib:/x/d",
                lustre("10.0.0.1@tcp1,10.0.0.2@tcp1:10.0.0.3@o2ib:/x/d"),
            ),
        ] {
            assert_eq!(network(text), Some(Ok(expected)), "{text}");
        }
        for text in ["oss://b/d/", "file:///x/", "/home/x", "", "s3://b/a@b:/c"] {
            assert_eq!(network(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_that_cannot_be_mounted_are_refused_by_name() {
        for (text, cause) in [
            ("smb://h/share", "Windows"),
            ("nas://h:/d!", "form for Windows"),
            ("E:", "drive of Windows"),
            ("E:\\data", "drive of Windows"),
            ("nas://h/d", "server and a directory"),
            ("nas://:/d", "server and a directory"),
            ("nas://-o:/d", "server and a directory"),
            ("nas://h,rw:/d", "server and a directory"),
            ("nas://h:/a/../b", "server and a directory"),
            ("nas://[::x]:/d", "server and a directory"),
            ("nas://h:/a\nb", "control character"),
            ("lustre://h:/fsx", "Lustre file system"),
            ("lustre://h@tcp:/", "Lustre file system"),
            ("lustre://h@tcp:/a b", "Lustre file system"),
            ("-o@tcp:/x", "Lustre file system"),
            ("cpfs://h:/d", "not supported"),
        ] {
            let refusal = network(text).unwrap().unwrap_err();
            assert!(refusal.0.contains(cause), "{text}: {}", refusal.0);
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_no_option_and_has_no_holes(text in "(nas|nfs|lustre)://[a-z@.,:/!\\[\\] -]{0,24}") {
            match network(&text) {
                Some(Ok(Source::Nfs { host, path })) => {
                    prop_assert!(!host.starts_with('-') && !host.contains([',', ' ', '/']));
                    prop_assert!(path.is_absolute() && !path.to_string_lossy().contains("/.."));
                }
                Some(Ok(Source::Lustre { device })) => {
                    prop_assert!(!device.starts_with('-') && !device.contains(' ') && device.contains('@'));
                }
                _ => {}
            }
        }
    }
}
