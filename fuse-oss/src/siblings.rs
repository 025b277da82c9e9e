//! Small files that are read one after another, and which of them to fetch before somebody asks. Pure.
//!
//! A job that reads thousands of small files does so in the order of the directory, usually in several processes at once, each with a
//! stretch of its own or each taking every n-th. Waiting for a request per file would be all it does. So each directory has some
//! *walkers*, as an open file has streams: one that goes on from where it was gets the next files fetched ahead, twice as many each
//! time it had to wait for one.

use std::ops::Range;

use lru::LruCache;

/// Walkers of one directory.
const WALKERS: usize = 16;

/// Directories that are watched at once.
const DIRECTORIES: std::num::NonZeroUsize = std::num::NonZeroUsize::new(64).expect("64 is not zero");

/// Files opened in order before anything is fetched ahead.
const PATIENCE: u32 = 2;

/// The most files to be ahead of one walker.
const MOST: usize = 32;

/// How far out of order a walker's files are opened: as many processes take turns.
const SLACK: usize = 12;

/// The walkers of a mount.
#[derive(Debug)]
pub struct Siblings {
    directories: LruCache<u64, Vec<Walker>>,
    opens: u64,
}

#[derive(Debug)]
struct Walker {
    /// The position after the furthest that was opened.
    reached: usize,
    /// The first position that was not asked for in advance.
    frontier: usize,
    window: usize,
    opened: u32,
    last: u64,
}

impl Default for Siblings {
    fn default() -> Self {
        Self { directories: LruCache::new(DIRECTORIES), opens: 0 }
    }
}

impl Siblings {
    /// Notes that the file at `position` of a directory is opened; says which positions to fetch now. `waited` says that its
    /// bytes were not at hand.
    pub fn on_open(&mut self, directory: u64, position: usize, waited: bool) -> Range<usize> {
        self.opens += 1;
        let walkers = self.directories.get_or_insert_mut(directory, Vec::new);
        let found = walkers.iter_mut().filter(|walker| walker.takes(position)).max_by_key(|walker| walker.last);
        let Some(walker) = found else {
            let next = position + 1;
            let walker = Walker { reached: next, frontier: next, window: 0, opened: 1, last: self.opens };
            if walkers.len() < WALKERS {
                walkers.push(walker);
            } else if let Some(oldest) = walkers.iter_mut().min_by_key(|walker| walker.last) {
                *oldest = walker;
            }
            return 0..0;
        };
        walker.last = self.opens;
        if position >= walker.reached {
            walker.opened += 1;
            walker.reached = position + 1;
        }
        walker.frontier = walker.frontier.max(walker.reached);
        if walker.opened <= PATIENCE {
            return 0..0;
        }
        if waited || walker.window == 0 {
            walker.window = (walker.window * 2).clamp(4, MOST);
        }
        let from = walker.frontier;
        walker.frontier = from.max(walker.reached + walker.window);
        from..walker.frontier
    }
}

impl Walker {
    fn takes(&self, position: usize) -> bool {
        // Before anything is known of it, only the next one or a near one says that somebody walks.
        let slack = if self.opened > PATIENCE { SLACK } else { 2 };
        position + slack >= self.reached && position <= self.frontier + slack
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_walks_in_order_gets_the_next_ones() {
        let mut siblings = Siblings::default();
        let mut asked = Vec::new();
        for position in 0..100 {
            asked.extend(siblings.on_open(1, position, true));
        }
        assert!(asked.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{asked:?}");
        assert!(asked[0] <= 4 && *asked.last().unwrap() == 99 + MOST, "{asked:?}");
        // Somebody who does not wait does not make it grow.
        let mut siblings = Siblings::default();
        let last = (0..100).map(|position| siblings.on_open(1, position, false).end).max();
        assert!(last <= Some(104), "{last:?}");
    }

    #[test]
    fn eight_walkers_at_once_with_stretches_or_turns() {
        for place in [|who: usize, step: usize| who * 250 + step, |who: usize, step: usize| step * 8 + who] {
            let mut siblings = Siblings::default();
            let mut asked = std::collections::BTreeSet::new();
            let mut late = 0;
            for step in 0..250 {
                for who in 0..8 {
                    let position = place(who, step);
                    late += usize::from(!asked.contains(&position));
                    asked.extend(siblings.on_open(1, position, true));
                }
            }
            assert!(late <= 8 * 4, "{late} of 2000 files were not asked for in advance");
        }
    }

    #[test]
    fn random_opens_fetch_nothing() {
        let mut siblings = Siblings::default();
        let mut random = fastrand::Rng::with_seed(3);
        let asked: usize = (0..500).map(|_| siblings.on_open(1, random.usize(0..1_000_000), true).len()).sum();
        assert_eq!(asked, 0);
    }

    proptest! {
        #[test]
        fn no_more_than_a_window_ahead(opens in prop::collection::vec((0_u64..3, 0_usize..200, any::<bool>()), 0..200)) {
            let mut siblings = Siblings::default();
            for (directory, position, waited) in opens {
                let range = siblings.on_open(directory, position, waited);
                prop_assert!(range.is_empty() || range.end <= position + SLACK + 1 + MOST);
            }
        }
    }
}
