//! How much of the disk cache one mount may take. Pure.
//!
//! The cache belongs to all mounts and puts out what was not used for longest, whoever brought it in. A mount that may take only so
//! much of it keeps a list of its own: the files that it has opened, in the order in which they were opened last, each with its whole
//! length, so that what is on the disk is never more than the list says. A file that would make it too much takes the place of those
//! that were not opened for longest and that nobody has open; when that is not enough, or it is longer than all the mount may take, it
//! is read without the disk.

use lru::LruCache;

/// What a mount may still take.
#[derive(Debug)]
pub struct Allowance {
    limit: u64,
    used: u64,
    /// Lengths by inode number.
    files: LruCache<u64, u64>,
}

/// Whether a file may be on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It may, once these have been taken off it, by inode number.
    Admitted(Vec<u64>),
    /// It may not.
    Refused,
}

impl Allowance {
    /// One of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, used: 0, files: LruCache::unbounded() }
    }

    /// The most there may be, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Decides about a file of `size` bytes that is about to be opened. `is_open` says which others somebody has open.
    pub fn admit(&mut self, ino: u64, size: u64, is_open: impl Fn(u64) -> bool) -> Admission {
        if self.files.get(&ino).is_some() {
            return Admission::Admitted(Vec::new());
        }
        let Some(most) = self.limit.checked_sub(size) else { return Admission::Refused };
        let mut out: Vec<(u64, u64)> = Vec::new();
        let mut left = self.used;
        // The first of them was not opened for longest.
        for (&other, &other_size) in self.files.iter().rev() {
            if left <= most {
                break;
            }
            if !is_open(other) {
                left -= other_size;
                out.push((other, other_size));
            }
        }
        if left > most {
            return Admission::Refused;
        }
        for (other, _) in &out {
            self.files.pop(other);
        }
        self.used = left + size;
        self.files.push(ino, size);
        Admission::Admitted(out.into_iter().map(|(other, _)| other).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_was_not_opened_for_longest_makes_room() {
        let mut allowance = Allowance::new(10);
        let none = |_| false;
        for ino in [1, 2] {
            assert_eq!(allowance.admit(ino, 5, none), Admission::Admitted(vec![]));
        }
        assert_eq!(allowance.admit(1, 5, none), Admission::Admitted(vec![]));
        assert_eq!(allowance.admit(3, 4, none), Admission::Admitted(vec![2]));
        assert_eq!(allowance.admit(4, 11, none), Admission::Refused);
        assert_eq!(allowance.admit(5, 10, |ino| ino == 1), Admission::Refused);
        assert_eq!(allowance.admit(5, 5, |ino| ino == 1), Admission::Admitted(vec![3]));
        assert_eq!(allowance.admit(6, 0, none), Admission::Admitted(vec![]));
        assert_eq!(Allowance::new(0).admit(1, 1, none), Admission::Refused);
    }

    proptest! {
        #[test]
        fn there_is_never_more_than_may_be(
            limit in 0_u64..40, opens in proptest::collection::vec((0_u64..12, any::<u16>()), 0..60),
        ) {
            let mut allowance = Allowance::new(limit);
            let mut there = BTreeMap::new();
            for (ino, open) in opens {
                let size = ino * 3 % 17;
                match allowance.admit(ino, size, |other| open & 1 << other != 0) {
                    Admission::Admitted(out) => {
                        for other in out {
                            prop_assert!(open & 1 << other == 0 && other != ino);
                            prop_assert!(there.remove(&other).is_some());
                        }
                        there.insert(ino, size);
                    }
                    Admission::Refused => prop_assert!(!there.contains_key(&ino)),
                }
                prop_assert!(there.values().sum::<u64>() <= limit);
            }
        }
    }
}
