//! A bound on log lines that a task can cause.
//!
//! A program that asks for a name in a loop while the store refuses would otherwise write a line each time, and the log is on a
//! file system in memory.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many lines per [`WINDOW`].
const LINES: u32 = 30;
const WINDOW: Duration = Duration::from_secs(10);

/// Counts lines and says when to leave one out.
#[derive(Debug, Default)]
pub struct LogLimit {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    /// Whether a line may be written at `now`; if so, how many were left out before it.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            state.since = Some(now);
            state.lines = 0;
        }
        if state.lines >= LINES {
            state.left_out += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let limit = LogLimit::default();
        let start = Instant::now();
        assert_eq!((0..1000).filter(|_| limit.allow(start).is_some()).count(), 30);
        assert_eq!(limit.allow(start + WINDOW), Some(970));
        assert_eq!(limit.allow(start + WINDOW), Some(0));
    }
}
