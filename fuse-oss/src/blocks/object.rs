//! One version of one object, as a mount shows it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use oss::{ETag, Key};
use sha2::{Digest, Sha256};

use crate::cache::{Cache, Description, Entry, ObjectId};
use crate::geometry::Granules;
use crate::namespace::Origin;

/// An object as it was when a mount first saw it.
#[derive(Debug)]
pub struct Object {
    /// Its identity.
    pub id: ObjectId,
    /// Where it is.
    pub origin: Arc<Origin>,
    /// Its key.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// Its version.
    pub etag: Option<ETag>,
    /// When it was written.
    pub modified: Option<SystemTime>,
    /// It is read without the disk cache.
    pub(super) passing: bool,
    /// What the disk has of it, where there is a disk cache.
    pub(super) entry: Option<Arc<Entry>>,
    replaced: AtomicBool,
    complained: AtomicU64,
}

impl Object {
    /// An object that nothing is cached of.
    pub fn new(
        origin: Arc<Origin>,
        key: Key,
        size: u64,
        etag: Option<ETag>,
        modified: Option<SystemTime>,
        salt: u64,
    ) -> Self {
        let id = identify(&origin.identity, &key, size, etag.as_ref(), modified, salt);
        let (replaced, complained) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { id, origin, key, size, etag, modified, passing: false, entry: None, replaced, complained }
    }

    /// The same object, read without the disk cache, and so another one than that which others may have there.
    #[must_use]
    pub fn passing(self) -> Self {
        let digest: [u8; 32] = Sha256::new().chain_update(b"passing").chain_update(self.id.0).finalize().into();
        let mut id = self.id;
        id.0.copy_from_slice(&digest[..16]);
        Self { id, passing: true, ..self }
    }

    /// The same object with what the disk has of it.
    #[must_use]
    pub fn cached(self, cache: &Cache) -> Self {
        let describe = || Description { location: self.name(), etag: self.etag.as_ref().map(|etag| etag.0.clone()) };
        let entry = (self.size > 0).then(|| cache.entry(self.id, self.size, describe));
        Self { entry, ..self }
    }

    /// Its name for messages.
    pub fn name(&self) -> String {
        self.origin.store.root().with_key(self.key.clone()).escaped()
    }

    /// What the disk cache has of a block.
    pub fn on_disk(&self, block: u32) -> Granules {
        self.entry.as_ref().map_or(Granules::EMPTY, |entry| entry.present(block))
    }

    /// Whether the disk cache has all of `range`.
    pub fn has_on_disk(&self, range: &Range<u64>) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.has(range))
    }

    /// Whether the disk cache has all of it.
    pub fn is_complete(&self) -> bool {
        self.size == 0 || self.entry.as_ref().is_some_and(|entry| entry.complete())
    }

    /// Whether the disk cache has all of it and this process has checked all of that.
    pub fn is_proved(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.proved())
    }

    /// Notes that somebody opens it: what is opened again is kept longer.
    pub fn touch(&self) {
        if let Some(entry) = &self.entry {
            entry.touch();
        }
    }

    /// Whether the store has said that the object is another one now. Says true from then on.
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Notes that the store has another version now; true for the first who does.
    pub fn set_replaced(&self) -> bool {
        !self.replaced.swap(true, Ordering::Relaxed)
    }

    /// Whether a line about this object's trouble is due: not more often than every ten seconds (`now` in seconds).
    pub fn may_complain(&self, now: u64) -> bool {
        let last = self.complained.load(Ordering::Relaxed);
        (last == 0 || now >= last + 10)
            && self.complained.compare_exchange(last, now.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// `salt` keeps objects apart that have neither a version nor a time: nothing could tell an old one from a new one.
fn identify(
    identity: &str,
    key: &Key,
    size: u64,
    etag: Option<&ETag>,
    modified: Option<SystemTime>,
    salt: u64,
) -> ObjectId {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(bytes);
    };
    field(identity.as_bytes());
    field(key.as_str().as_bytes());
    field(&size.to_le_bytes());
    match (etag, modified) {
        (Some(etag), _) => field(etag.0.as_bytes()),
        (None, Some(time)) => field(format!("{time:?}").as_bytes()),
        (None, None) => field(&salt.to_le_bytes()),
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    ObjectId(id)
}
