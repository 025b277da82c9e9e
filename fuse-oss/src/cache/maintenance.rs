//! What people ask of a cache: what is in it, whether it is all right, and to empty it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::files::Part;
use super::scan::{Found, Look};
use super::{Cache, ObjectId};

/// An object of which something is cached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Where it is, escaped.
    pub location: String,
    /// Its version.
    pub etag: Option<String>,
    /// Its length in bytes.
    pub size: u64,
    /// How many of them are here.
    pub cached: u64,
    /// How many bytes of the disk that takes, with the index.
    pub disk: u64,
    /// When it was last opened or written, to the minute; in seconds since 1970.
    pub last_used: u64,
}

impl Listed {
    /// Whether all of it is here.
    pub fn is_complete(&self) -> bool {
        self.cached >= self.size
    }
}

/// Something that was not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damaged {
    /// Whose, escaped.
    pub location: String,
    /// How many bytes were damaged.
    pub bytes: u64,
    /// The bytes are those that came, and not those that the store has: the checksum of the whole object is wrong.
    pub wrong: bool,
}

/// What verifying found. What is damaged is forgotten by then, and fetched again when it is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Objects that were read.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What was damaged; the first thousand.
    pub damaged: Vec<Damaged>,
    /// How many objects had damage.
    pub damaged_objects: u64,
    /// It was given up before the end.
    pub stopped: bool,
}

/// Something that could not be cleared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stayed {
    /// Whose, escaped.
    pub location: String,
    /// Bytes of the disk.
    pub disk: u64,
}

/// What clearing did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleared {
    /// Objects that are gone.
    pub objects: u64,
    /// Bytes of the disk that are free again.
    pub disk: u64,
    /// What somebody has open, which stays; the first thousand.
    pub stayed: Vec<Stayed>,
    /// How many stayed.
    pub stayed_objects: u64,
}

/// The most that is listed by name.
const MOST_NAMES: usize = 1000;

impl Cache {
    /// Everything that is cached.
    pub fn list(&self) -> Vec<Listed> {
        (0..=u8::MAX).flat_map(|shard| self.list_shard(shard)).collect()
    }

    /// Everything that is cached of objects whose digests begin with this byte: a part of a list that may be long.
    pub fn list_shard(&self, shard: u8) -> Vec<Listed> {
        let found = self.0.names(shard).into_iter().filter(|(_, part)| *part != Part::Data);
        let found = found.filter_map(|(id, part)| match self.0.look(id, part) {
            Ok(Look::Ours(found)) => Some(listed(&found)),
            _ => None,
        });
        found.collect()
    }

    /// Reads everything back from the disk and compares it with its checksums. What is damaged is forgotten.
    pub fn verify(&self) -> Verified {
        self.verify_while(|_| true)
    }

    /// The same, as long as `go_on` says so; it is shown what was found so far, about once per MiB.
    pub fn verify_while(&self, mut go_on: impl FnMut(&Verified) -> bool) -> Verified {
        let mut verified = Verified::default();
        for shard in 0..=u8::MAX {
            for (id, part) in self.0.names(shard) {
                let Some(found) = self.found(id, part) else { continue };
                let entry = self.0.find(id, found.header.size);
                entry.prepare(|| found.header.description.clone());
                let outcome = entry.check(|bytes| {
                    verified.bytes += bytes;
                    go_on(&verified)
                });
                let Some(checked) = outcome else {
                    verified.stopped = true;
                    return verified;
                };
                verified.objects += 1;
                if checked.wrong {
                    self.0.metrics.corrupt.one();
                    entry.forget();
                }
                if checked.wrong || checked.damaged > 0 {
                    verified.damaged_objects += 1;
                    if verified.damaged.len() < MOST_NAMES {
                        let location = name(&found);
                        verified.damaged.push(Damaged { location, bytes: checked.damaged, wrong: checked.wrong });
                    }
                }
            }
        }
        verified
    }

    fn found(&self, id: ObjectId, part: Part) -> Option<Found> {
        match self.0.look(id, part) {
            Ok(Look::Ours(found)) if part != Part::Data => Some(found),
            _ => None,
        }
    }

    /// Removes everything that nobody has open.
    pub fn clear(&self) -> Cleared {
        let mut cleared = Cleared::default();
        for shard in 0..=u8::MAX {
            for (id, part) in self.0.names(shard) {
                if part == Part::Data {
                    self.clear_orphan(id);
                    continue;
                }
                match self.0.look(id, part) {
                    Ok(Look::Ours(found)) => self.clear_one(&found, &mut cleared),
                    Ok(Look::Leftover) => self.0.clean(id, part),
                    Ok(Look::Foreign) | Err(_) => {}
                }
            }
        }
        cleared
    }

    fn clear_one(&self, found: &Found, cleared: &mut Cleared) {
        let entry = self.0.find(found.id, found.header.size);
        if entry.remove_if(|| Arc::strong_count(&entry) == 1) {
            cleared.objects += 1;
            cleared.disk += disk(found);
            return;
        }
        cleared.stayed_objects += 1;
        if cleared.stayed.len() < MOST_NAMES {
            cleared.stayed.push(Stayed { location: name(found), disk: disk(found) });
        }
    }

    /// Data without an index is of no use to anybody. It has a name that only this cache gives, in a directory that only its owner may
    /// enter, and whoever asks for everything to be removed means that, too.
    fn clear_orphan(&self, id: ObjectId) {
        let removed = self.0.unless_held(id, || {
            if self.0.place.path_of(id, Part::Index).exists() { Ok(()) } else { self.0.place.remove(id, Part::Data) }
        });
        if let Some(Err(error)) = removed {
            let path = self.0.place.path_of(id, Part::Data);
            tracing::warn!(path = %path.display(), %error, "cannot remove a cache file");
        }
    }
}

fn listed(found: &Found) -> Listed {
    let header = &found.header;
    Listed {
        location: name(found),
        etag: header.description.etag.clone(),
        size: header.size,
        cached: found.extents.iter().map(|(_, there, _)| there).sum(),
        disk: disk(found),
        last_used: found.used.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    }
}

fn disk(found: &Found) -> u64 {
    found.extents.iter().map(|(_, _, stored)| stored).sum()
}

fn name(found: &Found) -> String {
    let location = &found.header.description.location;
    if location.is_empty() { format!("(object {})", hex::encode(found.id.0)) } else { location.clone() }
}

/// How long ago that was, for people.
pub fn ago(seconds: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let ago = now.saturating_sub(seconds);
    match ago {
        0..60 => "now".to_owned(),
        60..3600 => format!("{} min", ago / 60),
        3600..86_400 => format!("{} h", ago / 3600),
        _ => format!("{} d", ago / 86_400),
    }
}
