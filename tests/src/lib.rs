//! Doubles and test support.
