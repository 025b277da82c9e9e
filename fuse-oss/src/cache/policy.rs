//! Who has to go when there is no room: S3-FIFO, with weights. Pure, no I/O and no clock.
//!
//! What is new waits in a *small* queue, a tenth of the cache, and leaves it again unless somebody opens it a second time;
//! only what was wanted twice gets into the *main* queue. So one pass over very much data flows through the small queue and
//! the hot set stays. Of what was put out the name is remembered for a while (a *ghost*): when it comes back it was put
//! out too early and goes to the main queue at once. Within the main queue everybody gets as many more rounds as it was used, at
//! most three.
//! (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023.)
//!
//! One rule is ours. An object larger than the cache that is read from front to back, again and again, would put out
//! each piece just before it is wanted: nothing would ever be found. So a new piece does not put out a piece of the same
//! object, but for one in sixteen, by which the cache follows readers that move on. What stays is what comes round again.
//! A piece that was turned away like that, and comes back, puts out what belongs to others.

use std::collections::{HashMap, VecDeque};

use super::ObjectId;

/// What is evicted at once: a small object, or 64 MiB of a larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unit {
    /// Whose.
    pub object: ObjectId,
    /// Which 64 MiB of it.
    pub extent: u32,
}

/// The most rounds that use can earn.
const MOST_USES: u8 = 3;

/// The small queue's share of the whole, as a divisor.
const SMALL_SHARE: u64 = 10;

/// Names of what was put out that are remembered even when the cache holds fewer units.
const LEAST_GHOSTS: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

#[derive(Debug)]
struct Node {
    bytes: u64,
    /// Which of the queue's entries of this unit is the valid one.
    turn: u32,
    uses: u8,
    queue: Queue,
}

/// Who goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// This one, with so many bytes. It is not counted any more.
    Evict(Unit, u64),
    /// Better not take in what is new.
    Refuse,
    /// Nobody can.
    Nobody,
}

/// The queues. See the [module](self).
#[derive(Debug, Default)]
pub struct Policy {
    capacity: u64,
    nodes: HashMap<Unit, Node>,
    small: VecDeque<(Unit, u32)>,
    main: VecDeque<(Unit, u32)>,
    small_bytes: u64,
    used: u64,
    ghosts: Ghosts,
    turn: u32,
}

#[derive(Debug, Default)]
struct Ghosts {
    order: VecDeque<(Unit, u32)>,
    turns: HashMap<Unit, u32>,
}

impl Ghosts {
    fn remember(&mut self, unit: Unit, turn: u32, most: usize) {
        self.turns.insert(unit, turn);
        self.order.push_back((unit, turn));
        while self.turns.len() > most || self.order.len() > 2 * most {
            let Some((unit, turn)) = self.order.pop_front() else { break };
            if self.turns.get(&unit) == Some(&turn) {
                self.turns.remove(&unit);
            }
        }
    }
}

impl Policy {
    /// Nothing yet, of at most `capacity` bytes. It is the caller who keeps to that, with [`Policy::victim`].
    pub fn new(capacity: u64) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// Bytes of all units.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// How many bytes a unit has, if it is there.
    pub fn bytes(&self, unit: &Unit) -> Option<u64> {
        self.nodes.get(unit).map(|node| node.bytes)
    }

    /// Counts `bytes` more for a unit; `first` more when it is new. True when it is.
    pub fn grow(&mut self, unit: Unit, bytes: u64, first: u64) -> bool {
        if let Some(node) = self.nodes.get_mut(&unit) {
            node.bytes += bytes;
            self.used += bytes;
            if node.queue == Queue::Small {
                self.small_bytes += bytes;
            }
            return false;
        }
        let missed = self.ghosts.turns.remove(&unit).is_some();
        self.put(unit, bytes + first, 0, if missed { Queue::Main } else { Queue::Small });
        true
    }

    /// Counts fewer bytes for a unit.
    pub fn shrink(&mut self, unit: &Unit, bytes: u64) {
        if let Some(node) = self.nodes.get_mut(unit) {
            let bytes = bytes.min(node.bytes);
            node.bytes -= bytes;
            self.used -= bytes;
            if node.queue == Queue::Small {
                self.small_bytes -= bytes;
            }
        }
    }

    /// Takes in what was there before the start; to be called in the order of last use, oldest first. Does nothing when the unit is
    /// known. True when it was not.
    pub fn restore(&mut self, unit: Unit, bytes: u64, used_again: bool) -> bool {
        let new = !self.nodes.contains_key(&unit);
        if new {
            self.put(unit, bytes, 0, if used_again { Queue::Main } else { Queue::Small });
        }
        new
    }

    /// Puts back what [`Policy::victim`] chose and could not be evicted.
    pub fn put_back(&mut self, unit: Unit, bytes: u64) {
        self.ghosts.turns.remove(&unit);
        if !self.nodes.contains_key(&unit) {
            self.put(unit, bytes, 0, Queue::Main);
        }
    }

    /// Notes that a unit was wanted again. True when it is there and had no use left from before.
    pub fn used_again(&mut self, unit: &Unit) -> bool {
        self.nodes.get_mut(unit).is_some_and(|node| {
            let first = node.uses == 0;
            node.uses = (node.uses + 1).min(MOST_USES);
            first
        })
    }

    /// Stops counting a unit that is gone. True when it was counted.
    pub fn remove(&mut self, unit: &Unit) -> bool {
        self.take(unit).is_some()
    }

    /// Chooses who goes, to make room for `newcomer` where there is one. `lucky` newcomers may put out their own kind. Units that
    /// may not go now are passed over.
    pub fn victim(&mut self, newcomer: Option<Unit>, lucky: bool, may_go: impl Fn(&Unit) -> bool) -> Choice {
        // One that grows at this moment keeps its place.
        let mut aside = None;
        let choice = self.choose(newcomer, lucky, may_go, &mut aside);
        if let Some(place) = aside {
            self.small.push_front(place);
        }
        choice
    }

    fn choose(
        &mut self,
        newcomer: Option<Unit>,
        lucky: bool,
        may_go: impl Fn(&Unit) -> bool,
        aside: &mut Option<(Unit, u32)>,
    ) -> Choice {
        let mut aside_bytes = 0;
        // One that was put out or refused before, and is wanted again, may put out others, but not its own kind.
        let missed = newcomer.is_some_and(|newcomer| self.ghosts.turns.contains_key(&newcomer));
        let is_kin = |unit: &Unit| !lucky && newcomer.is_some_and(|newcomer| newcomer.object == unit.object);
        let mut kin_passed = false;
        // Everybody is looked at once for each round that it has earned, and then once more.
        let mut looks = (usize::from(MOST_USES) + 2) * (self.small.len() + self.main.len());
        while looks > 0 {
            looks -= 1;
            let of_small = (self.small_bytes - aside_bytes) * SMALL_SHARE >= self.capacity || self.main.is_empty();
            let queue = if of_small && !self.small.is_empty() { &mut self.small } else { &mut self.main };
            let Some((unit, turn)) = queue.pop_front() else { break };
            let Some(node) = self.nodes.get_mut(&unit).filter(|node| node.turn == turn) else {
                // Left behind by one that was removed.
                continue;
            };
            if newcomer == Some(unit) && node.queue == Queue::Small {
                *aside = Some((unit, turn));
                aside_bytes = node.bytes;
                continue;
            }
            let free_to_go = newcomer != Some(unit) && node.uses == 0 && may_go(&unit);
            if free_to_go && is_kin(&unit) && !missed {
                queue.push_front((unit, turn));
                return self.refuse(newcomer);
            }
            if !free_to_go || is_kin(&unit) {
                kin_passed |= free_to_go;
                node.uses = node.uses.saturating_sub(1);
                if node.queue == Queue::Small {
                    node.queue = Queue::Main;
                    self.small_bytes -= node.bytes;
                }
                self.main.push_back((unit, turn));
                continue;
            }
            return self.evict(unit);
        }
        // Those in the main queue went round and may not go; the few that wait in the small one were not asked.
        let waiting = self.small.iter().find(|(unit, turn)| {
            let valid = self.nodes.get(unit).is_some_and(|node| node.turn == *turn);
            valid && newcomer != Some(*unit) && may_go(unit)
        });
        match waiting.map(|(unit, _)| *unit) {
            Some(unit) if is_kin(&unit) => self.refuse(newcomer),
            Some(unit) => self.evict(unit),
            None if kin_passed => self.refuse(newcomer),
            None => Choice::Nobody,
        }
    }

    fn evict(&mut self, unit: Unit) -> Choice {
        let (turn, most) = (self.next_turn(), self.most_ghosts());
        self.ghosts.remember(unit, turn, most);
        Choice::Evict(unit, self.take(&unit).unwrap_or(0))
    }

    /// Should it be wanted again, it was no accident.
    fn refuse(&mut self, newcomer: Option<Unit>) -> Choice {
        let (turn, most) = (self.next_turn(), self.most_ghosts());
        if let Some(newcomer) = newcomer {
            self.ghosts.remember(newcomer, turn, most);
        }
        Choice::Refuse
    }

    fn most_ghosts(&self) -> usize {
        self.nodes.len().max(LEAST_GHOSTS)
    }

    fn next_turn(&mut self) -> u32 {
        self.turn = self.turn.wrapping_add(1);
        self.turn
    }

    fn put(&mut self, unit: Unit, bytes: u64, uses: u8, queue: Queue) {
        let turn = self.next_turn();
        self.nodes.insert(unit, Node { bytes, turn, uses, queue });
        self.used += bytes;
        match queue {
            Queue::Small => {
                self.small_bytes += bytes;
                self.small.push_back((unit, turn));
            }
            Queue::Main => self.main.push_back((unit, turn)),
        }
        // What removed units left behind goes when it is more than the rest.
        if self.small.len() + self.main.len() > 2 * self.nodes.len() + 64 {
            let nodes = &self.nodes;
            let valid = |(unit, turn): &(Unit, u32)| nodes.get(unit).is_some_and(|node| node.turn == *turn);
            self.small.retain(valid);
            self.main.retain(valid);
        }
    }

    fn take(&mut self, unit: &Unit) -> Option<u64> {
        let node = self.nodes.remove(unit)?;
        self.used -= node.bytes;
        if node.queue == Queue::Small {
            self.small_bytes -= node.bytes;
        }
        Some(node.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unit(object: u32, extent: u32) -> Unit {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&object.to_le_bytes());
        Unit { object: ObjectId(id), extent }
    }

    /// A cache that this policy or another one runs, one byte per unit.
    trait Simulated {
        /// Opens a unit and reads it; true when it was there.
        fn read(&mut self, unit: Unit) -> bool;
    }

    struct Ours {
        policy: Policy,
        capacity: u64,
        pass: u32,
    }

    impl Simulated for Ours {
        fn read(&mut self, unit: Unit) -> bool {
            if self.policy.bytes(&unit).is_some() {
                self.policy.used_again(&unit);
                return true;
            }
            while self.policy.used() >= self.capacity {
                let lucky = (unit.extent.wrapping_mul(0x9e37_79b1) ^ self.pass.wrapping_mul(0x85eb_ca6b)) >> 28 == 0;
                match self.policy.victim(Some(unit), lucky, |_| true) {
                    Choice::Evict(..) => {}
                    Choice::Refuse | Choice::Nobody => return false,
                }
            }
            self.policy.grow(unit, 1, 0);
            false
        }
    }

    struct LeastRecent(lru::LruCache<Unit, ()>);

    impl Simulated for LeastRecent {
        fn read(&mut self, unit: Unit) -> bool {
            self.0.put(unit, ()).is_some()
        }
    }

    fn both(capacity: u32) -> (Ours, LeastRecent) {
        let room = usize::try_from(capacity).unwrap();
        let capacity = u64::from(capacity);
        (
            Ours { policy: Policy::new(capacity), capacity, pass: 0 },
            LeastRecent(lru::LruCache::new(room.try_into().unwrap())),
        )
    }

    /// 300 hot objects are read again and again while 20,000 others are read once each.
    fn scan(cache: &mut impl Simulated) -> (u32, u32) {
        for _ in 0..3 {
            for hot in 0..300 {
                cache.read(unit(hot, 0));
            }
        }
        let (mut hits, mut reads) = (0, 0);
        for cold in 0..20_000 {
            cache.read(unit(1000 + cold, 0));
            if cold % 10 == 0 {
                hits += u32::from(cache.read(unit(cold / 10 % 300, 0)));
                reads += 1;
            }
        }
        (hits, reads)
    }

    #[test]
    fn a_scan_does_not_put_out_the_hot_set() {
        let (mut ours, mut least_recent) = both(400);
        let (our_hits, reads) = scan(&mut ours);
        let (their_hits, _) = scan(&mut least_recent);
        assert!(our_hits * 100 > reads * 99, "{our_hits} of {reads}");
        assert!(their_hits * 100 < reads, "the simulation is too easy: {their_hits} of {reads}");
    }

    #[test]
    fn an_object_larger_than_the_cache_is_partly_found_again() {
        let (mut ours, mut least_recent) = both(100);
        for pass in 0..5 {
            ours.pass = pass;
            let extents = 0..200;
            let our_hits = extents.clone().filter(|extent| ours.read(unit(1, *extent))).count();
            let their_hits = extents.filter(|extent| least_recent.read(unit(1, *extent))).count();
            assert_eq!(their_hits, 0);
            assert!(pass == 0 || our_hits > 70, "pass {pass}: {our_hits} of 200");
        }
    }

    #[test]
    fn a_new_hot_set_replaces_the_old_one() {
        let (mut ours, _) = both(100);
        for set in [0, 1000, 2000] {
            for _ in 0..6 {
                for hot in set..set + 80 {
                    ours.read(unit(hot, 0));
                }
            }
            let hits = (set..set + 80).filter(|hot| ours.read(unit(*hot, 0))).count();
            assert!(hits > 70, "{hits} of 80 of set {set}");
        }
        // A very large object, too, once it was read twice.
        for pass in 0..4 {
            ours.pass = pass;
            for extent in 0..90 {
                ours.read(unit(5000, extent));
            }
        }
        let hits = (0..90).filter(|extent| ours.read(unit(5000, *extent))).count();
        assert!(hits > 60, "{hits} of 90");
    }

    #[test]
    fn who_was_used_again_before_the_start_stays_longer() {
        let mut policy = Policy::new(10);
        for object in 0..10 {
            assert!(policy.restore(unit(object, 0), 1, object % 2 == 0));
            assert!(!policy.restore(unit(object, 0), 5, false));
        }
        let gone: Vec<Choice> = (0..6).map(|_| policy.victim(None, false, |_| true)).collect();
        let expected = [1, 3, 5, 7, 9, 0].map(|object| Choice::Evict(unit(object, 0), 1));
        assert_eq!(gone, expected);
        assert_eq!(policy.used(), 4);
    }

    #[test]
    fn who_may_not_go_stays() {
        let mut policy = Policy::new(4);
        for object in 0..4 {
            policy.grow(unit(object, 0), 1, 0);
        }
        let spare = |policy: &mut Policy| policy.victim(Some(unit(3, 0)), false, |it| *it != unit(1, 0));
        assert_eq!(spare(&mut policy), Choice::Evict(unit(0, 0), 1));
        assert_eq!(spare(&mut policy), Choice::Evict(unit(2, 0), 1));
        assert_eq!(spare(&mut policy), Choice::Nobody);
        policy.put_back(unit(2, 0), 1);
        assert_eq!(policy.used(), 3);
        assert_eq!(spare(&mut policy), Choice::Evict(unit(2, 0), 1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Grow(u32, u32, u64),
        Shrink(u32, u32, u64),
        Use(u32, u32),
        Remove(u32, u32),
        Restore(u32, u32, u64, bool),
        Evict(u32, u32, bool, bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let (object, extent, bytes) = (0_u32..6, 0_u32..4, 1_u64..50);
        let step = prop_oneof![
            4 => (object.clone(), extent.clone(), bytes.clone()).prop_map(|(o, e, b)| Step::Grow(o, e, b)),
            1 => (object.clone(), extent.clone(), bytes.clone()).prop_map(|(o, e, b)| Step::Shrink(o, e, b)),
            2 => (object.clone(), extent.clone()).prop_map(|(o, e)| Step::Use(o, e)),
            1 => (object.clone(), extent.clone()).prop_map(|(o, e)| Step::Remove(o, e)),
            1 => (object.clone(), extent.clone(), bytes, any::<bool>()).prop_map(|(o, e, b, u)| Step::Restore(o, e, b, u)),
            4 => (object, extent, any::<bool>(), any::<bool>()).prop_map(|(o, e, n, l)| Step::Evict(o, e, n, l)),
        ];
        prop::collection::vec(step, 1..300)
    }

    proptest! {
        /// Beside a plain table: what is counted is what was put in and not taken out, only what is there and may go is chosen,
        /// and whenever somebody may go somebody is, or the newcomer is of the same object.
        #[test]
        fn counts_and_choices(steps in steps()) {
            let mut policy = Policy::new(200);
            let mut table: HashMap<Unit, u64> = HashMap::new();
            for step in steps {
                match step {
                    Step::Grow(o, e, bytes) => {
                        let new = policy.grow(unit(o, e), bytes, 3);
                        prop_assert_eq!(new, !table.contains_key(&unit(o, e)));
                        *table.entry(unit(o, e)).or_insert(3) += bytes;
                    }
                    Step::Shrink(o, e, bytes) => {
                        policy.shrink(&unit(o, e), bytes);
                        table.entry(unit(o, e)).and_modify(|have| *have = have.saturating_sub(bytes));
                    }
                    Step::Use(o, e) => {
                        let there = policy.used_again(&unit(o, e));
                        prop_assert!(!there || table.contains_key(&unit(o, e)));
                    }
                    Step::Remove(o, e) => {
                        prop_assert_eq!(policy.remove(&unit(o, e)), table.remove(&unit(o, e)).is_some());
                    }
                    Step::Restore(o, e, bytes, used) => {
                        policy.restore(unit(o, e), bytes, used);
                        table.entry(unit(o, e)).or_insert(bytes);
                    }
                    Step::Evict(o, e, newcomer, lucky) => {
                        let newcomer = newcomer.then(|| unit(o, e));
                        let may = |it: &Unit| it.extent != 3;
                        match policy.victim(newcomer, lucky, may) {
                            Choice::Evict(it, bytes) => {
                                prop_assert!(may(&it) && newcomer != Some(it));
                                prop_assert!(lucky || newcomer.is_none_or(|newcomer| newcomer.object != it.object));
                                prop_assert_eq!(table.remove(&it), Some(bytes));
                            }
                            Choice::Refuse => {
                                let newcomer = newcomer.unwrap();
                                prop_assert!(!lucky && table.keys().any(|it| it.object == newcomer.object));
                            }
                            Choice::Nobody => {
                                prop_assert!(!table.keys().any(|it| may(it) && newcomer != Some(*it)));
                            }
                        }
                    }
                }
                prop_assert_eq!(policy.used(), table.values().sum::<u64>());
                let small: u64 =
                    policy.nodes.values().filter(|node| node.queue == Queue::Small).map(|node| node.bytes).sum();
                prop_assert_eq!(policy.small_bytes, small);
                for (it, bytes) in &table {
                    prop_assert_eq!(policy.bytes(it), Some(*bytes));
                }
                prop_assert!(policy.small.len() + policy.main.len() <= 2 * policy.nodes.len() + 65);
            }
        }
    }
}
