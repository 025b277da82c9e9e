//! The plan against a store, played through step by step.

use super::*;
use crate::double::DoubleStore;
use crate::namespace::listing::behind;
use crate::namespace::table::Table;
use oss::{ListRequest, Store};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A store, a table and a plan, with requests under way that are answered when told to.
struct World {
    store: Arc<DoubleStore>,
    table: Table,
    plan: Plan,
    under_way: Vec<Fetch>,
    made: u32,
}

impl World {
    fn new(keys: &BTreeSet<String>, page: usize) -> Self {
        let store = DoubleStore::with_keys(page, &keys.iter().map(String::as_str).collect::<Vec<_>>());
        let mut table = Table::new();
        table.mount(Table::root(), store.origin(), String::new(), crate::charset::Charset::UTF_8);
        let mut world = Self { store, table, plan: Plan::default(), under_way: Vec::new(), made: 0 };
        world.wait_for(Table::root());
        world
    }

    fn make(&mut self, fetches: impl IntoIterator<Item = Fetch>) {
        for fetch in fetches {
            assert!(self.under_way.iter().all(|other| other.job != fetch.job), "{fetch:?} is under way twice");
            self.under_way.push(fetch);
            self.made += 1;
        }
    }

    /// A question; whether it was answered at once.
    fn ask(&mut self, dir: Dir) -> bool {
        if self.table.ask(dir) && self.table.directory(dir).swept != 0 {
            let next = self.plan.hit(self.table.directory(dir).swept, true);
            self.make(next);
        }
        if self.table.directory(dir).listing.is_complete() {
            return true;
        }
        let question = self.table.question(dir);
        let fetches = self.plan.ask(&question, &|base, key, dir| self.table.gap(base, key, dir));
        self.make(fetches);
        assert!(!self.under_way.is_empty(), "somebody waits and nothing is under way");
        false
    }

    fn answer(&mut self, at: usize) {
        let fetch = self.under_way.remove(at);
        let own = matches!(fetch.job, Job::Own(_));
        let from = fetch.from.as_deref();
        let begin = from.filter(|_| fetch.token.is_none());
        let request = ListRequest {
            prefix: self.table.prefix(fetch.base),
            delimiter: own,
            start_after: begin.map(|from| if own { from.to_owned() } else { behind(from) }),
            continuation: fetch.token.clone(),
            max_keys: None,
        };
        let page = futures_util::FutureExt::now_or_never(self.store.list(request)).unwrap().unwrap();
        let token = page.continuation.clone();
        let absorbed = if own {
            self.table.absorb_own(fetch.base, from, fetch.token.is_some(), page).unwrap()
        } else {
            self.table.absorb_sweep(fetch.base, from, fetch.swept, page).unwrap()
        };
        let next = self.plan.arrived(&fetch, Arrived { absorbed, token, room: true });
        self.make(next);
    }

    fn answer_all(&mut self) {
        while !self.under_way.is_empty() {
            self.answer(0);
        }
    }

    /// Asks until there is an answer, in rounds in which everything that is under way is answered. Returns the rounds.
    fn wait_for(&mut self, dir: Dir) -> u32 {
        let mut rounds = 0;
        while !self.ask(dir) {
            for _ in 0..self.under_way.len() {
                self.answer(0);
            }
            rounds += 1;
            assert!(rounds < 1000, "nobody ever answers");
        }
        rounds
    }

    fn dir(&self, path: &str) -> Dir {
        path.split('/').fold(Table::root(), |dir, name| self.table.dir(self.table.find(dir, name).unwrap()).unwrap())
    }
}

fn tree(directories: u32, files: u32) -> BTreeSet<String> {
    (0..directories).flat_map(|d| (0..files).map(move |f| format!("{d:04}/{f:04}"))).collect()
}

#[test]
fn a_walk_costs_what_its_pages_cost() {
    let mut world = World::new(&tree(200, 100), 1000);
    let rounds: u32 = (0..200).map(|d| world.wait_for(world.dir(&format!("{d:04}")))).sum();
    assert!(world.made <= 23 && rounds <= 22, "{} requests, {rounds} rounds", world.made);
    let before = world.made;
    assert!((0..200).all(|d| world.ask(world.dir(&format!("{d:04}")))));
    assert_eq!(world.made, before);
}

#[test]
fn so_does_a_walk_through_a_deeper_tree() {
    let keys: BTreeSet<String> = (0..20_000).map(|n| format!("{}/{}/{}/{n:05}", n / 5000, n / 1000, n / 100)).collect();
    let mut world = World::new(&keys, 1000);
    let mut todo = vec![Table::root()];
    while let Some(dir) = todo.pop() {
        world.wait_for(dir);
        let below: Vec<u64> = world.table.entries(dir, 0).filter(|(n, _)| n.directory).map(|(n, _)| n.ino).collect();
        todo.extend(below.iter().rev().filter_map(|&ino| world.table.dir(ino)));
    }
    assert!(world.made <= 28, "{} requests", world.made);
}

#[test]
fn random_questions_fill_a_small_tree_in_a_few_rounds() {
    for seed in 0..20 {
        let mut world = World::new(&tree(200, 100), 1000);
        let mut random = fastrand(seed);
        let rounds: u32 = (0..2000).map(|_| world.wait_for(world.dir(&format!("{:04}", random(200))))).sum();
        assert!(rounds <= 20, "seed {seed}: {rounds} rounds, {} requests", world.made);
    }
}

#[test]
fn random_questions_in_a_huge_tree_cost_one_request_each() {
    let mut world = World::new(&tree(4000, 5), 50);
    let mut random = fastrand(7);
    let before = world.made;
    for _ in 0..300 {
        world.wait_for(world.dir(&format!("{:04}", random(4000))));
    }
    let made = world.made - before;
    assert!(made <= 400, "{made} requests for 300 questions");
}

#[test]
fn a_large_directory_that_nobody_asks_about_is_not_swallowed() {
    let mut keys = tree(10, 10);
    keys.extend((0..100_000).map(|f| format!("0005-huge/{f}")));
    let mut world = World::new(&keys, 100);
    for d in 0..10 {
        let rounds = world.wait_for(world.dir(&format!("{d:04}")));
        assert!(rounds <= 4, "{rounds} rounds for {d}");
    }
    assert!(world.made <= 90, "{} requests", world.made);
}

#[test]
fn directories_with_much_below_them_are_soon_listed_by_themselves() {
    let keys: BTreeSet<String> =
        (0..50).flat_map(|d| (0..500).map(move |f| format!("{d:02}/below/{}/{f}", f / 10))).collect();
    let mut world = World::new(&keys, 10);
    let before = world.made;
    for d in 0..50 {
        world.wait_for(world.dir(&format!("{d:02}")));
    }
    let made = world.made - before;
    assert!(made <= 90, "{made} requests for 50 questions");
}

#[test]
fn a_store_that_cannot_begin_inside_is_swept_from_the_front() {
    let mut plan = Plan::default();
    let table = {
        let mut table = Table::new();
        table.mount(Table::root(), DoubleStore::new(10).origin(), String::new(), crate::charset::Charset::UTF_8);
        for name in ["a", "b", "c"] {
            table.settle_directory(Table::root(), name).unwrap();
        }
        table
    };
    let dir = table.dir(table.find(Table::root(), "c").unwrap()).unwrap();
    let question = Question {
        dir,
        root: Some(0),
        prefix: "c/".into(),
        reached: None,
        base: Some((Table::root(), String::new())),
        sweepable: true,
        from_inside: false,
        base_names: 3,
    };
    let fetches = plan.ask(&question, &|_, _, _| None);
    assert_eq!(fetches.iter().map(|fetch| fetch.from.clone()).collect::<Vec<_>>(), [None, None]);
    assert!(fetches.iter().any(|fetch| fetch.job == Job::Own(dir)));
    assert!(plan.ask(&question, &|_, _, _| None).is_empty());
}

/// Numbers below what is asked for, the same for the same seed.
fn fastrand(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

proptest! {
    /// Whatever is asked in whatever order and however late answers come, everybody is answered, nothing is asked for twice at
    /// a time, and nothing is done that was not paid for.
    #[test]
    fn everybody_is_answered(
        keys in prop::collection::btree_set("[ab]/[ab]{0,2}/?[abc.-]{0,4}", 1..60),
        page in 1_usize..6,
        script in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..80),
    ) {
        let mut world = World::new(&keys, page);
        for (index, ask) in script {
            if ask || world.under_way.is_empty() {
                let dirs: Vec<Dir> =
                    (1..=world.table.len() as u64).filter_map(|ino| world.table.dir(ino)).collect();
                world.ask(*index.get(&dirs));
            } else {
                world.answer(index.index(world.under_way.len()));
            }
        }
        let dirs: Vec<Dir> = (1..=world.table.len() as u64).filter_map(|ino| world.table.dir(ino)).collect();
        for dir in dirs {
            world.wait_for(dir);
        }
        world.answer_all();
    }
}
