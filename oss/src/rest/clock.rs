//! The time that requests are signed with.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use crate::location::Location;

/// Our clock, corrected by the store's.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    offset_millis: AtomicI64,
    said: AtomicBool,
}

impl Clock {
    pub(crate) fn now(&self) -> SystemTime {
        let offset = self.offset_millis.load(Ordering::Relaxed);
        let by = Duration::from_millis(offset.unsigned_abs());
        let now = SystemTime::now();
        let moved = if offset < 0 { now.checked_sub(by) } else { now.checked_add(by) };
        moved.unwrap_or(now)
    }

    /// Goes by the store's clock, which shows `date`, from now on. Said once.
    pub(crate) fn set_to(&self, date: SystemTime, root: &Location) {
        let now = SystemTime::now();
        let millis = |by: Duration| i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        let offset = match date.duration_since(now) {
            Ok(ahead) => millis(ahead),
            Err(behind) => -millis(behind.duration()),
        };
        self.offset_millis.store(offset, Ordering::Relaxed);
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                bucket = %root.escaped(),
                seconds = offset / 1000,
                "this machine's clock is off by so much from the store's; signing with the store's time. Set the clock (NTP)"
            );
        }
    }
}
