//! How much room unsent logs may take.

use std::path::Path;

/// The most that is kept free for everybody else on the disk, in bytes.
const MOST_RESERVE: u64 = 1 << 30;
/// Of what is unsent, the newest so many bytes are never given up.
const MOST_KEPT: u64 = 64 << 20;
/// Both are at most this part of the disk.
const SHARE: u64 = 10;

/// A disk's size and what root could still write to it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size.
    pub total: u64,
    /// What is free.
    pub free: u64,
}

impl Space {
    /// Of the disk that holds `path`, which is local, so that asking does not hang.
    pub fn of(path: &Path) -> Option<Self> {
        let stat = nix::sys::statvfs::statvfs(path).ok()?;
        let unit = stat.fragment_size();
        Some(Self { total: stat.blocks() * unit, free: stat.blocks_free() * unit })
    }

    fn reserve(self) -> u64 {
        MOST_RESERVE.min(self.total / SHARE)
    }

    /// Whether so little is free that everything that can go must go.
    pub fn is_short(self) -> bool {
        self.free < self.reserve()
    }

    /// How many of the oldest of `unsent` bytes have to be given up: so many that twice the reserve is free, but for the newest.
    pub fn excess(self, unsent: u64) -> u64 {
        let kept = MOST_KEPT.min(self.total / SHARE);
        if self.is_short() { (2 * self.reserve() - self.free).min(unsent.saturating_sub(kept)) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_the_reserve_is_touched() {
        let gib = 1 << 30;
        let disk = |free| Space { total: 100 * gib, free };
        assert_eq!(disk(gib).excess(50 * gib), 0);
        assert_eq!(disk(gib - 1).excess(50 * gib), gib + 1);
        assert_eq!(disk(0).excess(gib), gib - MOST_KEPT);
        assert_eq!(disk(0).excess(MOST_KEPT), 0);
        let small = Space { total: 1000, free: 50 };
        assert_eq!((small.excess(10_000), small.excess(180), small.excess(100)), (150, 80, 0));
        assert!(Space::of(Path::new("/")).is_some_and(|space| space.total >= space.free));
    }
}
