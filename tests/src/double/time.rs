//! Times as the protocols write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

fn format(time: SystemTime, pattern: &str) -> String {
    // A clock before 1677 or after 2262 is none that a test sets.
    Timestamp::try_from(time).unwrap_or_default().strftime(pattern).to_string()
}

/// `2026-11-20T09:35:00.000Z`.
pub(crate) fn iso(time: SystemTime) -> String {
    format(time, "%Y-%m-%dT%H:%M:%S.000Z")
}

/// `20261120T093500Z`.
pub(crate) fn basic(time: SystemTime) -> String {
    format(time, "%Y%m%dT%H%M%SZ")
}

/// Reads what [`basic`] writes.
pub(crate) fn parse_basic(text: &str) -> Option<SystemTime> {
    if text.len() != 16 {
        return None;
    }
    let time = DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?.to_zoned(TimeZone::UTC).ok()?;
    let seconds = time.timestamp().as_second();
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read() {
        let time = UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        assert_eq!(iso(time), "2013-05-24T00:00:00.000Z");
        assert_eq!(basic(time), "20130524T000000Z");
        assert_eq!(parse_basic("20130524T000000Z"), Some(time));
        for bad in ["", "20130524", "20130524T000000", "2013-05-24T00:00:00Z", "20130524T000000Z0", "20131324T000000Z"]
        {
            assert_eq!(parse_basic(bad), None, "{bad}");
        }
    }
}
