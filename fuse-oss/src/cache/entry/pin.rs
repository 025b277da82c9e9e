//! Holding on to an object so that the kernel can read its file, and dropping one that is wrong.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::whole::UNCHECKED;
use super::{Entry, lock};
use crate::cache::files::Part;
use crate::geometry::Granules;

/// A data file that stays as it is while this lives. See [`Entry::pin`].
#[derive(Debug)]
pub struct Pin {
    file: File,
    _pinned: Unpin,
}

impl AsFd for Pin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[derive(Debug)]
struct Unpin(Arc<Entry>);

impl Drop for Unpin {
    fn drop(&mut self) {
        let entry = &self.0;
        let last = {
            let mut pins = lock(&entry.pins);
            *pins -= 1;
            *pins == 0
        };
        entry.shared.space.unpinned(entry.id);
        if last && entry.doomed.load(Ordering::Acquire) {
            entry.remove_if(|| entry.doomed.load(Ordering::Acquire));
        }
    }
}

impl Entry {
    /// Keeps the object from being evicted, forgotten or cleared, and gives its data file; none unless [`Entry::proved`], and none of
    /// small objects, whose index would be seen.
    pub fn pin(self: &Arc<Self>) -> Option<Pin> {
        if self.is_small() {
            return None;
        }
        {
            let mut pins = lock(&self.pins);
            if !self.proved() {
                return None;
            }
            *pins += 1;
        }
        self.shared.space.pinned(self.id, self.size);
        let pinned = Unpin(Arc::clone(self));
        let file = self.shared.place.open_read_only(self.id, Part::Data).ok()??;
        // Who reads the file itself is not seen reading.
        let now = self.opens.load(Ordering::Relaxed);
        for extent in 0..self.extents() {
            match self.known_group(extent) {
                Some(group) if group.seen.swap(now, Ordering::Relaxed) == now => {}
                _ => self.note_use(extent),
            }
        }
        Some(Pin { file, _pinned: pinned })
    }

    /// Drops everything of this object, because it was found wrong. What somebody has pinned is not served from now on and goes with
    /// the last pin.
    pub fn forget(&self) {
        {
            let pins = lock(&self.pins);
            if *pins > 0 {
                self.doomed.store(true, Ordering::Release);
            }
        }
        if !self.doomed.load(Ordering::Acquire) {
            if self.remove_if(|| true) {
                return;
            }
            self.doomed.store(true, Ordering::Release);
        }
        if let Ok(Some(opened)) = self.opened() {
            // No other process may believe it either.
            let _ = self.shared.place.write(&opened.files().index, self.index_part(), &[0; 8], 0);
            for extent in 0..self.extents() {
                for block in &self.group(&opened, extent).blocks {
                    self.unmark(block, Granules(u64::MAX));
                }
            }
        }
        self.whole.store(UNCHECKED, Ordering::Release);
        // The last pin may have gone meanwhile.
        self.remove_if(|| true);
    }
}
