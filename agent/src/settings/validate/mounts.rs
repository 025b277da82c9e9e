//! The mounts of a node: what, where and how.

use std::time::Duration;

use fuse_oss::Charset;

use super::places::{Claim, Kind, Places};
use super::{MAX_TIME, time};
use crate::job::finding::{At, Findings, Place, quoted};
use crate::job::validate::{self as job, mappings};
use crate::network;
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
    check_options(&options, document.version.is_some(), &place.key("options"), findings);
    let source = if NetworkFileSystem::is_meant(&written.value) || is_drive(&written.value) {
        match NetworkFileSystem::parse(&written.value) {
            Ok(network) => Some(MountSource::Network(network)),
            Err(refusal) => {
                let cause = format!("{} {}", quoted(&written.value), refusal.cause);
                findings.error_with(&written.place, cause, refusal.remedy);
                None
            }
        }
    } else {
        job::location(&written, findings).map(|location| MountSource::Object { location, locale: None })
    };
    let path = mappings::local(&target, findings);
    let deadline = document.deadline.and_then(|time| self::time(time, &place.key("deadline"), 1..=MAX_TIME, findings));
    let mut misplaced = |key: &str, given: bool, kind: &str| {
        if given {
            findings.error_with(&place.key(key), format!("means nothing for {kind}"), "remove it");
        }
    };
    let source = match source? {
        MountSource::Object { location, .. } => {
            misplaced("version", document.version.is_some(), "object storage");
            misplaced("options", !options.is_empty(), "object storage");
            let locale = super::charset(document.locale.as_deref(), &place.key("locale"), findings);
            let locale = Some(locale).filter(|locale| *locale != Charset::UTF_8).map(|locale| locale.to_string());
            if !mappings::agree(&location, path.as_ref()?, &written, &target, false, findings) {
                return None;
            }
            MountSource::Object { location, locale }
        }
        MountSource::Network(network) => {
            misplaced("locale", document.locale.is_some(), "a network file system, which keeps names as they are");
            MountSource::Network(match network {
                NetworkFileSystem::Nfs { host, path, version, .. } => {
                    let version = match document.version {
                        None => version,
                        Some(VersionDocument::V3) => NfsVersion::V3,
                        Some(VersionDocument::V4_0) => NfsVersion::V4_0,
                        Some(VersionDocument::V4_1) => NfsVersion::V4_1,
                    };
                    NetworkFileSystem::Nfs { host, path, version, options }
                }
                NetworkFileSystem::Lustre { device, .. } => {
                    misplaced("version", document.version.is_some(), "Lustre");
                    NetworkFileSystem::Lustre { device, options }
                }
            })
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

/// `E:`, `E:\\data`: what BatchCompute's clients write for Windows.
fn is_drive(text: &str) -> bool {
    matches!(text.as_bytes(), [drive, b':', ..] if drive.is_ascii_alphabetic())
}

/// Options of network file systems. The version is better said by its own key, and must not be said twice.
fn check_options(options: &[String], has_version: bool, place: &Place, findings: &mut Findings) {
    for (index, option) in options.iter().enumerate() {
        let place = place.index(index);
        if let Err(error) = network::options::check(option) {
            findings.error(&place, format!("the mount option {} {}", quoted(option), error.cause));
        } else if has_version && matches!(option.split('=').next(), Some("vers" | "nfsvers" | "minorversion")) {
            findings.error_with(&place, format!("{} is said by version already", quoted(option)), "remove one of them");
        }
    }
}
