//! How much there is, how much there may be, and of which objects.
//!
//! Two limits hold: the cache's own, and a floor of free space that its file system keeps. What is about to be written is
//! counted before, so that many writers at once cannot pass a limit together; free space is asked for at most every 50 ms
//! or every 64 MiB written, and counted on in between.
//!
//! Everything here is memory; nothing is held while files are worked on.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ObjectId;
use super::policy::{Choice, Policy, Unit};

/// How long a look at the free space is good for.
const LOOK_FOR: Duration = Duration::from_millis(50);

/// How much may be written on one look.
const LOOK_BYTES: u64 = 64 << 20;

/// A way to ask how many bytes of the file system are free; none when it cannot be told.
pub type Free = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// What the cache holds, as numbers.
pub struct Space {
    limit: u64,
    floor: u64,
    free: Free,
    table: Mutex<Table>,
    freed: AtomicU64,
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").field("limit", &self.limit).field("floor", &self.floor).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Table {
    policy: Policy,
    objects: HashMap<ObjectId, Record>,
    /// Bytes that somebody is about to write.
    pending: u64,
    looked: Option<Look>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    free: u64,
    written: u64,
}

/// An object that something is cached of.
#[derive(Debug, Clone, Copy)]
struct Record {
    size: u64,
    /// Units that are counted.
    units: u32,
    /// Units that were chosen to go and are on the disk still.
    leaving: u32,
    pins: u32,
    /// Whatever is recorded of it was written or verified by this process.
    proved: bool,
}

/// What has to be done before something can be written.
#[derive(Debug, PartialEq, Eq)]
pub enum Room {
    /// Nothing: the bytes are counted as pending.
    Enough,
    /// This unit, of an object of this size, has to go first; it is not counted any more.
    Evict(Unit, u64, u64),
    /// It cannot be had.
    None,
}

impl Space {
    /// Nothing yet.
    pub fn new(limit: u64, floor: u64, free: Free) -> Self {
        let table = Table { policy: Policy::new(limit), objects: HashMap::new(), pending: 0, looked: None };
        Self { limit, floor, free, table: Mutex::new(table), freed: AtomicU64::new(0) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.table().policy.used()
    }

    /// How often room was made, for whoever found none before.
    pub fn times_freed(&self) -> u64 {
        self.freed.load(Ordering::Relaxed)
    }

    fn note_freed(&self) {
        self.freed.fetch_add(1, Ordering::Relaxed);
    }

    /// The most there may be.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether anything is cached of an object, as far as is known.
    pub fn knows(&self, id: ObjectId) -> bool {
        self.table().objects.contains_key(&id)
    }

    /// Whether whatever is recorded of an object was written or verified by this process.
    pub fn proved(&self, id: ObjectId) -> bool {
        self.table().objects.get(&id).is_some_and(|record| record.proved)
    }

    /// Remembers [`Space::proved`] while nobody has the object open.
    pub fn set_proved(&self, id: ObjectId) {
        if let Some(record) = self.table().objects.get_mut(&id) {
            record.proved = true;
        }
    }

    /// Says whether `bytes` more may be written for a unit, and what has to be done before. To be asked again when that is done;
    /// [`Space::written`] or [`Space::given_up`] end it.
    pub fn room(&self, unit: Unit, bytes: u64, lucky: bool) -> Room {
        let mut table = self.table();
        if bytes > self.limit {
            return Room::None;
        }
        if self.fits(&mut table, bytes) {
            table.pending += bytes;
            return Room::Enough;
        }
        match table.choose(Some(unit), lucky) {
            Some((unit, size, freed)) => Room::Evict(unit, size, freed),
            None => Room::None,
        }
    }

    fn fits(&self, table: &mut Table, bytes: u64) -> bool {
        if table.policy.used().saturating_add(table.pending).saturating_add(bytes) > self.limit {
            return false;
        }
        let look = match &mut table.looked {
            Some(look) if look.written < LOOK_BYTES && look.at.elapsed() < LOOK_FOR => look,
            // Without an answer only the limit holds.
            looked => looked.insert(Look { at: Instant::now(), free: (self.free)().unwrap_or(u64::MAX), written: 0 }),
        };
        let left = look.free.saturating_sub(table.pending).saturating_sub(bytes);
        left >= self.floor
    }

    /// Bytes that were counted as pending are written: for a unit of an object of `size` bytes that now has `bytes` more, and `first`
    /// more if it is new.
    pub fn written(&self, unit: Unit, size: u64, pending: u64, bytes: u64, first: u64) {
        let mut table = self.table();
        table.pending -= pending;
        if let Some(look) = &mut table.looked {
            look.written += bytes;
            look.free = look.free.saturating_sub(bytes);
        }
        if table.policy.grow(unit, bytes, first) {
            // The process wrote it, so a new object is proved as long as nothing of it is from before.
            table.record(unit.object, size).units += 1;
        }
    }

    /// Bytes that were counted as pending are not written.
    pub fn given_up(&self, pending: u64) {
        self.table().pending -= pending;
        self.note_freed();
    }

    /// Fewer bytes are recorded of a unit.
    pub fn shrunk(&self, unit: &Unit, bytes: u64) {
        self.table().policy.shrink(unit, bytes);
        self.note_freed();
    }

    /// Counts what is there from earlier; see [`Policy::restore`].
    pub fn restore(&self, unit: Unit, size: u64, bytes: u64, used_again: bool) {
        let mut table = self.table();
        if table.policy.restore(unit, bytes, used_again) {
            table.record(unit.object, size).units += 1;
        }
    }

    /// While more is there than may be: what has to go. It is not counted any more.
    pub fn excess(&self) -> Option<(Unit, u64, u64)> {
        let mut table = self.table();
        if table.policy.used() <= self.limit { None } else { table.choose(None, false) }
    }

    /// A unit that [`Space::room`] chose is gone from the disk: so many bytes are free again.
    pub fn freed(&self, bytes: u64) {
        if let Some(look) = &mut self.table().looked {
            look.free = look.free.saturating_add(bytes);
        }
    }

    /// A unit that was chosen is gone from the disk.
    pub fn left(&self, unit: &Unit) {
        self.table().change(unit.object, |record| record.leaving = record.leaving.saturating_sub(1));
        self.note_freed();
    }

    /// A unit that was chosen could not be evicted, and is counted again.
    pub fn put_back(&self, unit: Unit, bytes: u64) {
        let mut table = self.table();
        let counted = table.policy.bytes(&unit).is_some();
        if !counted {
            table.policy.put_back(unit, bytes);
        }
        table.change(unit.object, |record| {
            record.leaving = record.leaving.saturating_sub(1);
            record.units += u32::from(!counted);
        });
    }

    /// Nothing of a unit is there any more. It is counted if somebody found it while it went.
    pub fn removed(&self, unit: &Unit) {
        let mut table = self.table();
        if table.policy.remove(unit) {
            table.change(unit.object, |record| record.units = record.units.saturating_sub(1));
        }
    }

    /// Whether nothing is counted of an object.
    pub fn is_empty(&self, id: ObjectId) -> bool {
        self.table().objects.get(&id).is_none_or(|record| record.units == 0)
    }

    /// Nothing of an object is there any more; it has this many extents.
    pub fn removed_all(&self, id: ObjectId, extents: u32) {
        self.note_freed();
        let mut table = self.table();
        for extent in 0..extents {
            table.policy.remove(&Unit { object: id, extent });
        }
        table.change(id, |record| {
            record.units = 0;
            record.proved = false;
        });
    }

    /// Notes that a unit was wanted again. True the first time.
    pub fn used_again(&self, unit: &Unit) -> bool {
        self.table().policy.used_again(unit)
    }

    /// Somebody holds on to the object; it is not chosen meanwhile.
    pub fn pinned(&self, id: ObjectId, size: u64) {
        self.table().record(id, size).pins += 1;
    }

    /// The opposite.
    pub fn unpinned(&self, id: ObjectId) {
        self.note_freed();
        self.table().change(id, |record| record.pins = record.pins.saturating_sub(1));
    }
}

#[cfg(test)]
impl Space {
    /// Whether a unit is counted.
    pub fn has(&self, unit: &Unit) -> bool {
        self.table().policy.bytes(unit).is_some()
    }

    /// Chooses this very unit to go, if it is counted, and says how many bytes it has.
    pub fn take(&self, unit: &Unit) -> Option<u64> {
        let mut table = self.table();
        let bytes = table.policy.bytes(unit)?;
        table.policy.remove(unit);
        table.change(unit.object, |record| {
            record.units -= 1;
            record.leaving += 1;
        });
        Some(bytes)
    }
}

impl Table {
    fn record(&mut self, id: ObjectId, size: u64) -> &mut Record {
        self.objects.entry(id).or_insert(Record { size, units: 0, leaving: 0, pins: 0, proved: false })
    }

    /// Changes a record, which goes when it says nothing any more.
    fn change(&mut self, id: ObjectId, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.objects.get_mut(&id) {
            change(record);
            if (record.units, record.leaving, record.pins) == (0, 0, 0) {
                self.objects.remove(&id);
            }
        }
    }

    fn choose(&mut self, newcomer: Option<Unit>, lucky: bool) -> Option<(Unit, u64, u64)> {
        let objects = &self.objects;
        let may_go = |unit: &Unit| objects.get(&unit.object).is_none_or(|record| record.pins == 0);
        match self.policy.victim(newcomer, lucky, may_go) {
            Choice::Evict(unit, bytes) => {
                // Its record stays until it is gone from the disk: who asks for the object meanwhile has to look.
                let record = self.objects.get_mut(&unit.object)?;
                record.units = record.units.saturating_sub(1);
                record.leaving += 1;
                Some((unit, record.size, bytes))
            }
            Choice::Refuse | Choice::Nobody => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn unit(object: u8, extent: u32) -> Unit {
        Unit { object: ObjectId([object; 16]), extent }
    }

    #[test]
    fn what_is_about_to_be_written_counts() {
        let space = Space::new(100, 0, Box::new(|| None));
        assert_eq!(space.room(unit(1, 0), 60, false), Room::Enough);
        assert_eq!(space.room(unit(2, 0), 60, false), Room::None);
        space.written(unit(1, 0), 60, 60, 50, 5);
        assert_eq!(space.used(), 55);
        assert_eq!(space.room(unit(2, 0), 60, false), Room::Evict(unit(1, 0), 60, 55));
        assert!(space.knows(unit(1, 0).object), "it is still on the disk");
        space.left(&unit(1, 0));
        assert!(!space.knows(unit(1, 0).object));
        assert_eq!(space.room(unit(2, 0), 60, false), Room::Enough);
        space.given_up(60);
        assert_eq!(space.room(unit(2, 0), 101, false), Room::None);
    }

    #[test]
    fn the_floor_is_kept_with_few_looks() {
        let (free, looks) = (Arc::new(AtomicU64::new(1000)), Arc::new(AtomicU64::new(0)));
        let (asked, counted) = (Arc::clone(&free), Arc::clone(&looks));
        let look = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Some(asked.load(Ordering::Relaxed))
        };
        let space = Space::new(10_000, 500, Box::new(look));
        for object in 0..5 {
            assert_eq!(space.room(unit(object, 0), 100, false), Room::Enough);
            space.written(unit(object, 0), 100, 100, 100, 0);
        }
        // What was written is counted off, though nobody looked again (but for a slow machine's sake).
        free.store(500, Ordering::Relaxed);
        assert_eq!(space.room(unit(9, 0), 100, false), Room::Evict(unit(0, 0), 100, 100));
        space.freed(100);
        free.store(600, Ordering::Relaxed);
        assert_eq!(space.room(unit(9, 0), 100, false), Room::Enough);
        space.given_up(100);
        std::thread::sleep(2 * LOOK_FOR);
        free.store(0, Ordering::Relaxed);
        let gone: Vec<Room> = (0..5).map(|_| space.room(unit(9, 0), 100, false)).collect();
        assert!(matches!(gone[..4], [Room::Evict(..), Room::Evict(..), Room::Evict(..), Room::Evict(..)]), "{gone:?}");
        assert_eq!(gone[4], Room::None);
        assert!(looks.load(Ordering::Relaxed) < 20);
    }

    #[test]
    fn what_is_pinned_is_not_chosen() {
        let space = Space::new(10, 0, Box::new(|| None));
        for object in 1..3 {
            assert_eq!(space.room(unit(object, 0), 5, false), Room::Enough);
            space.written(unit(object, 0), 5, 5, 5, 0);
            space.pinned(unit(object, 0).object, 5);
        }
        assert_eq!(space.room(unit(3, 0), 5, false), Room::None);
        space.unpinned(unit(2, 0).object);
        assert_eq!(space.room(unit(3, 0), 5, false), Room::Evict(unit(2, 0), 5, 5));
        space.put_back(unit(2, 0), 5);
        assert_eq!(space.used(), 10);
        space.removed_all(unit(2, 0).object, 1);
        assert!(!space.knows(unit(2, 0).object));
        space.removed_all(unit(1, 0).object, 1);
        assert!(space.is_empty(unit(1, 0).object) && space.knows(unit(1, 0).object), "a pin keeps the record");
        space.unpinned(unit(1, 0).object);
        assert!(!space.knows(unit(1, 0).object));
    }
}
