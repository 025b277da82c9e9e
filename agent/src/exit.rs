//! Exit statuses for failures of our own, as in `sysexits.h`. The outcome JSON, not the number, is the truth.

/// The command line was wrong.
pub const USAGE: u8 = 64;
/// The job description or settings hold bad data.
pub const BAD_DATA: u8 = 65;
/// Something the task reads is missing.
pub const INPUT_MISSING: u8 = 66;
/// Object storage cannot be reached.
pub const STORAGE_UNAVAILABLE: u8 = 69;
/// A fault of the agent's own.
pub const INTERNAL: u8 = 70;
/// A mount, a disk or the system failed us.
pub const OS: u8 = 71;
/// Outputs or logs could not be uploaded.
pub const UPLOAD_FAILED: u8 = 74;
/// Storage refused us.
pub const DENIED: u8 = 77;
/// The settings make no sense.
pub const BAD_SETTINGS: u8 = 78;
