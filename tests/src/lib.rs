//! Doubles and test support.

pub mod double;
