//! The agent.

pub mod job;
