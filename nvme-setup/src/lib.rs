//! The block devices of a machine: which there are, what they carry, which of them may be used as scratch space, and how
//! they become mounted file systems.
//!
//! Looking comes in three parts, each of which can be had alone:
//!
//! 1. [`Inventory::read`] takes what the kernel says, from sysfs and `/proc`: devices, how they are stacked, what is
//!    mounted or swapped on. Nothing is opened.
//! 2. [`Examiner::examine`] finds out what a device carries: `blkid` for signatures, and where it knows none, samples of
//!    the device itself. Devices are opened for reading only.
//! 3. [`judge()`] is a pure function of both. It says whether a device could be used, and each reason why not.
//!
//! [`volumes()`] is another: the volumes that are on the disks already, and how far each is.
//!
//! Doing comes in two: [`plan()`] is a pure function of a [`World`] (all of the above at one moment) and a [`Request`]; it
//! gives steps or refusals. A [`Setup`] looks, plans and does the steps, until everything is there.
//!
//! The rule throughout: a device may be used only when it is *proved* to be free and empty. Whatever could not be looked
//! at, was not understood, or contradicts itself is a refusal.

pub mod command;
mod device;
mod examine;
mod identity;
mod inventory;
mod judge;
mod lock;
mod mark;
mod mounts;
mod plan;
mod request;
mod sample;
mod setup;
mod signature;
mod step;
mod sysfs;
mod text;
mod tools;
mod trace;
mod volumes;
mod world;

pub use device::{Device, DeviceNumber, Kind, Mount, Role, Transport};
pub use examine::{Evidence, Examiner};
pub use identity::{Nameless, Node, Owner, Uuid};
pub use inventory::{Facts, Inventory, InventoryError};
pub use judge::{Reason, Rules, Verdict, judge};
pub use plan::plan;
pub use request::{Fs, Request, RequestError, Trim, Volume, What};
pub use setup::{Applied, Event, Released, Report, Setup, SetupError, StepError};
pub use signature::{Content, Signature};
pub use step::{Plan, Planned, Refusal, Settled, Step, Target};
pub use sysfs::Roots;
pub use text::{human_size, printable};
pub use trace::{Member, Traces};
pub use volumes::{VolumeState, VolumeStatus, volumes};
pub use world::{Place, World};
