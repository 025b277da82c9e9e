//! The disks of a node, in the words of `nvme-setup`, which also judges them.

use std::path::PathBuf;

use nvme_setup::{Request, Volume};
use serde_json::{Map, Value as Json};

use super::places::{Claim, Kind, Places};
use super::{local, time};
use crate::job::finding::{Findings, Place, nearest, quoted};
use crate::settings::description::DiskSettings;
use crate::settings::format::DisksDocument;

/// The longest wait for disks, in seconds.
const MAX_WAIT: i64 = 3_600;

/// Checks everything that can be checked without looking at disks. `scratch_is_free` says that the settings leave it to us where scratch is.
pub(super) fn check(
    document: DisksDocument,
    place: &Place,
    scratch_is_free: bool,
    places: &mut Places,
    findings: &mut Findings,
) -> DiskSettings {
    let wait = document.wait.and_then(|wait| time(wait, &place.key("wait"), 0..=MAX_WAIT, findings));
    let mut request = Request { wait: wait.map_or(0, |wait| wait.as_secs()), ..Request::default() };
    let (mut accepted, mut written) = (Vec::new(), Vec::new());
    let volumes = document.volumes.unwrap_or_default();
    for (index, mut value) in volumes.into_iter().enumerate() {
        let place = place.key("volumes").index(index);
        // What is not even a map has been said already.
        if !value.is_object() {
            continue;
        }
        // Brought into its normal form, so that `/data/` and `/data` are one place.
        if let Some(mount) = value.get("mount").and_then(Json::as_str) {
            let Some(path) = local(mount, &place.key("mount"), findings) else { continue };
            value["mount"] = Json::from(path.to_string_lossy());
            places.claim(Claim { path, place: place.key("mount"), kind: Kind::Volume }, findings);
        }
        match serde_path_to_error::deserialize::<_, Volume>(&value) {
            Ok(volume) => {
                request.volumes.push(volume);
                accepted.push(value);
                written.push(place);
            }
            Err(error) => refuse(&place, &error, findings),
        }
    }
    for error in request.check().err().unwrap_or_default() {
        // When two have the same mount point, it is the later one that is in the way.
        let found = request.volumes.iter().rposition(|volume| volume.mount == error.volume);
        findings.error(found.and_then(|index| written.get(index)).unwrap_or(place), error.why);
    }
    if request.volumes.is_empty() {
        return DiskSettings::default();
    }
    let made = request.volumes.iter().position(|volume| !volume.existing);
    let scratch = made.filter(|_| scratch_is_free).map(|index| scratch(&request.volumes[index]));
    if let (Some(path), Some(place)) = (&scratch, made.and_then(|index| written.get(index))) {
        places.claim(Claim { path: path.clone(), place: place.key("mount"), kind: Kind::Scratch }, findings);
    }
    let mut words = Map::new();
    words.insert("volumes".to_owned(), Json::Array(accepted));
    // Without it, nvme-setup has its own idea.
    words.extend(wait.map(|wait| ("wait".to_owned(), Json::from(wait.as_secs()))));
    DiskSettings { request: Json::Object(words), scratch }
}

/// The directory for scratch on a volume.
fn scratch(volume: &Volume) -> PathBuf {
    // One directory for each disk: the first one.
    let root = if volume.each { volume.mount.join("0") } else { volume.mount.clone() };
    root.join("batch-agent")
}

/// Says in our words what serde says: the key or word that is not known comes first in backticks, and then what is known.
fn refuse(place: &Place, error: &serde_path_to_error::Error<serde_json::Error>, findings: &mut Findings) {
    let mut place = error.path().iter().fold(place.clone(), |place, step| match step {
        serde_path_to_error::Segment::Seq { index } => place.index(*index),
        serde_path_to_error::Segment::Map { key } => place.key(key),
        serde_path_to_error::Segment::Enum { variant } => place.key(variant),
        serde_path_to_error::Segment::Unknown => place,
    });
    let message = error.inner().to_string();
    let mut words = message.split('`').skip(1).step_by(2);
    let first = words.next().unwrap_or_default();
    let known: Vec<&str> = words.collect();
    let near = || match nearest(first, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known here are {}", known.join(", ")),
    };
    if message.starts_with("unknown field") {
        // The path may name the key already.
        if !place.to_string().ends_with(first) {
            place = place.key(first);
        }
        findings.error_with(&place, format!("the key {} is not known", quoted(first)), near());
    } else if message.starts_with("unknown variant") {
        findings.error_with(&place, format!("{} is not known", quoted(first)), near());
    } else if message.starts_with("missing field") {
        findings.error_with(&place, format!("the key {first} is missing"), "add it");
    } else {
        findings.error_with(&place, message, "correct the value; a text that looks like a number needs quotes");
    }
}
