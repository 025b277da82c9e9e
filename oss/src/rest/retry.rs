//! When to try again, and after how long.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::ErrorKind;

/// The first pause. A connection that broke is usually fine again at once.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause. A store that comes back after an outage is noticed within this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The first pause when the store asked us to slow down without saying for how long.
const FIRST_THROTTLED_PAUSE: Duration = Duration::from_millis(500);

/// We wait at most this long on a server's word; more looks like a mistake and the total deadline would end it anyway.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// How often such a failure may happen to one operation when trying again is unlikely to help: bytes that arrive changed, a name that does not resolve.
pub(crate) const FEW: u32 = 5;

/// What a failed attempt calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Nothing: it would fail again.
    None,
    /// Again after a pause, until the deadline.
    Wait,
    /// Again after a pause, [`FEW`] times.
    WaitFew,
    /// Again after at least this pause: the server said so.
    WaitFor(Duration),
    /// Again after the pauses for a store that is overloaded.
    SlowDown,
    /// Again with the server's time.
    Clock,
    /// Again with other credentials.
    Credentials,
}

/// The pause before attempt `attempt + 1`: doubled each time, half of it random so that many clients do not come back at once.
/// None when trying again is no use. `random` is uniform in 0..1.
pub(crate) fn pause(remedy: Remedy, attempt: u32, random: f64) -> Option<Duration> {
    let double = |first: Duration| {
        let full = first.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
        full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    };
    match remedy {
        Remedy::None => None,
        Remedy::Wait | Remedy::WaitFew => Some(double(FIRST_PAUSE)),
        Remedy::SlowDown => Some(double(FIRST_THROTTLED_PAUSE)),
        Remedy::WaitFor(asked) => {
            let asked = asked.min(LONGEST_RETRY_AFTER);
            Some(asked + double(FIRST_PAUSE).min(asked / 4 + FIRST_PAUSE))
        }
        Remedy::Clock | Remedy::Credentials => Some(Duration::ZERO),
    }
}

/// What an answer's meaning calls for. Clock and credentials are decided by whoever can change them.
pub(crate) fn remedy_for(kind: &ErrorKind) -> Remedy {
    match kind {
        ErrorKind::Throttled { retry_after: Some(asked) } => Remedy::WaitFor(*asked),
        ErrorKind::Throttled { retry_after: None } => Remedy::SlowDown,
        ErrorKind::Unavailable => Remedy::Wait,
        ErrorKind::Corrupt => Remedy::WaitFew,
        _ => Remedy::None,
    }
}

/// The end of an operation with all its attempts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(total: Duration) -> Self {
        let now = Instant::now();
        // An absurd setting means no deadline in practice: a year.
        Self(now.checked_add(total).unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 3600)))
    }

    pub(crate) fn instant(self) -> Instant {
        self.0
    }

    /// The same, later by time that was not ours.
    pub(crate) fn later_by(self, time: Duration) -> Self {
        Self(self.0.checked_add(time).unwrap_or(self.0))
    }

    /// Whether a pause still leaves time for an attempt.
    pub(crate) fn allows(self, pause: Duration) -> bool {
        Instant::now() + pause < self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        assert_eq!(pause(Remedy::Wait, 1, 0.0), Some(Duration::from_millis(50)));
        assert_eq!(pause(Remedy::Wait, 1, 1.0), Some(Duration::from_millis(100)));
        assert_eq!(pause(Remedy::Wait, 40, 1.0), Some(LONGEST_PAUSE));
        assert_eq!(pause(Remedy::None, 1, 0.5), None);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        assert_eq!(remedy_for(&ErrorKind::Unavailable), Remedy::Wait);
        assert_eq!(remedy_for(&ErrorKind::Throttled { retry_after: None }), Remedy::SlowDown);
        for kind in
            [ErrorKind::NotFound, ErrorKind::Denied, ErrorKind::Invalid, ErrorKind::Changed, ErrorKind::Archived]
        {
            assert_eq!(remedy_for(&kind), Remedy::None);
        }
    }

    proptest! {
        #[test]
        fn a_server_s_wish_is_honoured_within_reason(asked in 0u64..1_000_000, attempt in 1u32..100, random in 0.0f64..1.0) {
            let asked = Duration::from_millis(asked);
            let got = pause(Remedy::WaitFor(asked), attempt, random).unwrap();
            prop_assert!(got >= asked.min(LONGEST_RETRY_AFTER));
            prop_assert!(got <= LONGEST_RETRY_AFTER + LONGEST_PAUSE * 2);
        }
    }
}
