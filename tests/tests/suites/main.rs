//! Suites that were not written here, and programs from Debian, on the writable view: it has to pass for a local disk.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

mod files;
mod fsx;
mod genomes;
mod pjdfstest;
mod places;
mod programs;
mod rendering;
mod stress;
