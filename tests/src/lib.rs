//! Doubles and test support.

pub mod programs;
