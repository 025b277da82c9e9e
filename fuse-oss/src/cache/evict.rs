//! Putting out what has to go.

use tracing::warn;

use super::entry::{EXTENT, Entry, exclusive};
use super::files::Part;
use super::format::SLOT_LEN;
use super::policy::Unit;
use super::{ObjectId, Shared};

impl Shared {
    /// Removes a unit that was chosen, of an object of `size` bytes, from the disk.
    pub(super) fn evict(self: &std::sync::Arc<Self>, unit: Unit, size: u64, bytes: u64) {
        let entry = self.find(unit.object, size);
        if entry.evict(unit.extent) {
            self.space.left(&unit);
            self.space.freed(bytes);
            self.metrics.evictions.one();
            self.metrics.evicted.add(bytes);
        } else {
            self.space.put_back(unit, bytes);
        }
    }

    /// Puts out what is more than there may be.
    pub(super) fn shrink_to_limit(self: &std::sync::Arc<Self>) {
        // What is pinned comes back, and must not be asked for ever.
        let mut failures = 0;
        while failures < 100
            && let Some((unit, size, bytes)) = self.space.excess()
        {
            let before = self.metrics.evictions.get();
            self.evict(unit, size, bytes);
            if self.metrics.evictions.get() == before {
                failures += 1;
            }
        }
    }

    /// Whether nothing is counted of an object any more, and everything that is there was counted.
    fn is_nothing_left(&self, id: ObjectId) -> bool {
        self.is_scanned() && self.space.is_empty(id)
    }
}

impl Entry {
    /// Removes an extent, which for most objects is all, from the disk. `false` when somebody has the object pinned.
    fn evict(&self, extent: u32) -> bool {
        if self.extents() == 1 {
            return self.remove_if(|| true);
        }
        let unit = self.unit(extent);
        let Ok(Some(opened)) = self.opened() else {
            // Somebody has removed the whole object meanwhile.
            return true;
        };
        let files = opened.files();
        let group = self.group(&opened, extent);
        let gate = exclusive(&group.gate);
        if !self.blank_extent(group) {
            return false;
        }
        // From here on nobody in this process believes in it; now the disk, what is believed first.
        self.not_whole(files);
        let blocks = self.blocks_of(extent);
        let (slots, len) = (self.slot_place(blocks.start), blocks.len() * SLOT_LEN);
        let place = &self.shared.place;
        let zeroed = match place.punch(&files.index, Part::Index, slots, u64::try_from(len).unwrap_or(u64::MAX)) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => place.write(&files.index, Part::Index, &vec![0; len], slots),
        };
        let start = u64::from(extent) * EXTENT;
        let punched =
            self.data(files).and_then(|data| place.punch(data, Part::Data, start, EXTENT.min(self.size - start)));
        self.shared.space.removed(&unit);
        drop(gate);
        drop(opened);
        match (zeroed, punched) {
            (Ok(()), Ok(true)) => {
                self.remove_if(|| self.shared.is_nothing_left(self.id));
            }
            // A file system that cannot make holes: then all of it has to go.
            (Ok(()), Ok(false)) => {
                self.remove_if(|| true);
            }
            (Err(error), _) | (_, Err(error)) => {
                let path = place.path_of(self.id, Part::Data);
                warn!(path = %path.display(), %error, "cannot put a part of a cache file out; all of it goes");
                self.remove_if(|| true);
            }
        }
        true
    }
}
