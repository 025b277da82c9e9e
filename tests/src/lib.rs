//! Doubles and test support: what stands in for the cloud while the tests run.

pub mod agent;
pub mod bucket;
pub mod client;
pub mod disk;
pub mod docker;
pub mod double;
pub mod http_server;
pub mod imds;
mod listener;
pub mod mapped;
pub mod model;
pub mod moto;
pub mod mounts;
pub mod network;
pub mod node;
pub mod programs;
pub mod proxy;
pub mod python;
pub mod receiver;
pub mod tls;
pub mod tools;
pub mod view;
pub mod vm;
