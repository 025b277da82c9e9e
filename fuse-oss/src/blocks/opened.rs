//! Which objects are known: those that somebody reads, and some that somebody has read.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};

use lru::LruCache;

use super::object::Object;
use crate::cache::ObjectId;

/// Objects that stay known after the last reader closed them.
const WARM_OBJECTS: usize = 1024;

#[derive(Debug)]
pub(super) struct Objects {
    pub(super) open: HashMap<ObjectId, Weak<Object>>,
    pub(super) warm: LruCache<ObjectId, Arc<Object>>,
    sweep_at: usize,
}

/// An object, and the one that it took the place of among the warm ones: to be dropped without the lock, because the last one to let
/// go of an object writes down that it was used.
pub(super) type Opened = (Arc<Object>, Option<(ObjectId, Arc<Object>)>);

impl Objects {
    /// None yet.
    pub(super) fn none() -> Self {
        let warm = LruCache::new(NonZeroUsize::new(WARM_OBJECTS).expect("1024 is not zero"));
        Self { open: HashMap::new(), warm, sweep_at: 2 * WARM_OBJECTS }
    }

    pub(super) fn known(&mut self, id: ObjectId) -> Option<Opened> {
        let known = self.open.get(&id).and_then(Weak::upgrade)?;
        let out = self.warm.push(id, Arc::clone(&known));
        Some((known, out))
    }

    pub(super) fn add(&mut self, object: Arc<Object>) -> Opened {
        self.open.insert(object.id, Arc::downgrade(&object));
        let out = self.warm.push(object.id, Arc::clone(&object));
        // The table of weak references is swept when it has doubled since the last time.
        if self.open.len() >= self.sweep_at {
            self.open.retain(|_, object| object.strong_count() > 0);
            self.sweep_at = 2 * self.open.len().max(WARM_OBJECTS);
        }
        (object, out)
    }
}
