//! What is where on the node: mounts, volumes, outputs and the agent's own directories must not get into each other's way.
//!
//! Volumes are mounted first, then network file systems, then object storage. So what is prepared earlier must not lie inside
//! of what is mounted later, where nobody would see it; and nothing can be written inside of what is read-only.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oss::Location;

use crate::job::finding::{Findings, Place, quoted};

/// A path and what is there.
#[derive(Debug)]
pub(super) struct Claim {
    pub path: PathBuf,
    pub place: Place,
    pub kind: Kind,
}

/// What is at a path.
#[derive(Debug)]
pub(super) enum Kind {
    Volume,
    Mount { source: String, object: Option<Location>, directory: bool, writable: bool },
    Output { target: Location },
    Scratch,
    Cache,
}

impl Kind {
    fn named(&self) -> String {
        match self {
            Self::Volume => "a volume of disks".to_owned(),
            Self::Mount { source, .. } => format!("the mount of {}", quoted(source)),
            Self::Output { target } => format!("an output to {}", quoted(&target.to_string())),
            Self::Scratch => "the scratch directory".to_owned(),
            Self::Cache => "the cache directory".to_owned(),
        }
    }

    /// Whether it has the path for itself, as a mount point has.
    fn is_mount(&self) -> bool {
        matches!(self, Self::Volume | Self::Mount { .. })
    }
}

/// All claims.
#[derive(Debug, Default)]
pub(super) struct Places(BTreeMap<PathBuf, Vec<Claim>>);

impl Places {
    /// Adds a claim; two mounts on one path are an error at once.
    pub fn claim(&mut self, claim: Claim, findings: &mut Findings) {
        let here = self.0.entry(claim.path.clone()).or_default();
        let taken = here.iter().find(|other| match (&other.kind, &claim.kind) {
            (Kind::Output { .. }, Kind::Output { .. }) => true,
            // nvme-setup judges volumes by each other.
            (Kind::Volume, Kind::Volume) => false,
            (one, other) => one.is_mount() && other.is_mount(),
        });
        if let Some(other) = taken {
            findings.error_with(
                &claim.place,
                format!("{} is taken already, by {} ({})", shown(&claim), other.kind.named(), other.place),
                "give each a path of its own",
            );
        }
        here.push(claim);
    }

    /// Judges every claim by those at the same path and above it.
    pub fn judge(&self, findings: &mut Findings) {
        for claims in self.0.values() {
            for claim in claims {
                for outer in claim.path.ancestors().filter_map(|above| self.0.get(above)).flatten() {
                    if !std::ptr::eq(outer, claim) {
                        judge(claim, outer, findings);
                    }
                }
            }
        }
    }
}

fn shown(claim: &Claim) -> String {
    quoted(&claim.path.to_string_lossy())
}

/// Judges a claim by another one at the same path or above it.
fn judge(claim: &Claim, outer: &Claim, findings: &mut Findings) {
    let same = claim.path == outer.path;
    // Said when it was claimed.
    if same && claim.kind.is_mount() && outer.kind.is_mount() {
        return;
    }
    let inside = if same { "is also" } else { "lies inside" };
    let mut refuse = |why: &str, remedy: &str| {
        let cause = format!("{} {inside} {} ({}), {why}", shown(claim), outer.kind.named(), outer.place);
        findings.error_with(&claim.place, cause, remedy);
    };
    match (&claim.kind, &outer.kind) {
        (_, Kind::Mount { directory: false, .. }) => refuse("which is one file", "use another path"),
        (Kind::Volume, Kind::Mount { .. }) => {
            refuse(
                "which is mounted later and would hide it",
                "use another path, or mount the other one inside of this",
            );
        }
        (Kind::Mount { object: None, .. }, Kind::Mount { object: Some(_), .. }) => {
            refuse(
                "which is mounted later and would hide it",
                "use another path, or mount the other one inside of this",
            );
        }
        (Kind::Scratch | Kind::Cache, Kind::Mount { object: Some(_), .. }) => {
            refuse("where nothing that is written lasts", "use a directory on a disk of the node");
        }
        (Kind::Scratch | Kind::Cache, Kind::Mount { object: None, .. }) => {
            refuse("which other nodes use, too", "use a directory on a disk of the node");
        }
        (Kind::Output { target }, Kind::Mount { object: Some(source), .. }) if same && target == source => {
            refuse(
                "and would be uploaded to where it is read from",
                "upload to another location, or from another path",
            );
        }
        (Kind::Output { .. }, Kind::Mount { writable: false, .. }) => {
            refuse("where nothing can be written", "use another path, or make the mount writable");
        }
        (Kind::Output { .. }, Kind::Output { target }) if !same && target.is_directory() => {
            refuse("and would be uploaded twice", "use directories that are not inside each other");
        }
        (Kind::Output { .. }, Kind::Output { .. }) if !same => refuse("which is one file", "use another path"),
        (Kind::Mount { .. } | Kind::Volume, Kind::Output { .. }) if !same => {
            // It has its own device, and outputs are gathered from one.
            findings.warn(
                &claim.place,
                format!("{} lies inside {}; what it shows is not uploaded", shown(claim), outer.kind.named()),
                "keep mounts out of output directories",
            );
        }
        // A volume made for the cache.
        (Kind::Volume, Kind::Cache | Kind::Scratch) if same => {}
        (Kind::Mount { .. } | Kind::Volume | Kind::Output { .. }, Kind::Cache) => {
            refuse("which belongs to the agent", "use another path");
        }
        (Kind::Cache, Kind::Scratch) if same => refuse("where other things are, too", "use a directory of its own"),
        (Kind::Scratch, Kind::Cache) if !same => refuse("whose files come and go", "use another directory"),
        (Kind::Mount { .. } | Kind::Output { .. }, Kind::Scratch) if same => {
            refuse("which belongs to the agent", "use a directory inside of it, or another path");
        }
        (Kind::Mount { .. } | Kind::Volume | Kind::Output { .. }, Kind::Scratch) if !same => {
            let own = ["tasks", "object-cache"];
            if own.iter().any(|name| claim.path.starts_with(outer.path.join(name))) {
                refuse("in a part that belongs to the agent", "use another directory");
            }
        }
        _ => {}
    }
}
