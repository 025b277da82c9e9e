//! Volumes on real block devices: made, found again, interrupted everywhere, taken away. Needs root and loop devices.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails its test by panicking")]

mod array;
#[path = "../common/mod.rs"]
mod common;
mod content;
mod interrupted;
mod life;
mod place;
mod program;
