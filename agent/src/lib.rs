//! The node agent: it takes a job description, and a machine, and brings the results home.
//!
//! Where things are: [`job`] reads descriptions; [`run`] runs a whole job, deciding by [`schedule`] what comes next;
//! [`instance`] is the life of one instance, from its mounts to its uploads; [`shim`] is the small process that the
//! program really runs under, and [`enter`] how a person gets beside it; [`container`] runs it in an image; [`network`] mounts NAS and
//! Lustre; [`outcome`] is what is reported, by [`events`], [`metrics`] and [`report`]; [`logs`] reads logs again, and `pull` fetches whole
//! directories. A node is described by [`settings`] and found out by [`identity`]; [`boot`] is its life, and [`spot`] tells when the
//! cloud wants it back. [`cli`] is the command line over all of it.

pub mod account;
pub mod boot;
pub mod cgroup;
pub mod cli;
pub mod console;
pub mod container;
mod disk;
pub mod durable;
pub mod enter;
pub mod events;
pub mod exit;
pub mod identity;
pub mod instance;
pub mod job;
pub mod logs;
pub mod metrics;
pub mod network;
pub mod node;
pub mod outcome;
pub mod programs;
mod pull;
pub mod report;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod shim;
pub mod spot;
mod sweep;
