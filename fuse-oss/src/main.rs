//! The mount.
fn main() {}
