//! The block devices of a machine: which there are, what they carry, and which of them may be used as scratch space.
//!
//! Everything here only looks. It comes in three steps, each of which can be had alone:
//!
//! 1. [`Inventory::read`] takes what the kernel says, from sysfs and `/proc`: devices, how they are stacked, what is
//!    mounted or swapped on. Nothing is opened.
//! 2. [`Examiner::examine`] finds out what a device carries: `blkid` for signatures, and where it knows none, samples of
//!    the device itself. Devices are opened for reading only.
//! 3. [`judge()`] is a pure function of both. It says whether a device could be used, and each reason why not.
//!
//! The rule throughout: a device may be used only when it is *proved* to be free and empty. Whatever could not be looked
//! at, was not understood, or contradicts itself is a refusal.

pub mod command;
mod device;
mod examine;
mod inventory;
mod judge;
mod mounts;
mod sample;
mod signature;
mod sysfs;
mod text;

pub use device::{Device, DeviceNumber, Kind, Mount, Role, Transport};
pub use examine::{Evidence, Examiner};
pub use inventory::{Facts, Inventory, InventoryError};
pub use judge::{Reason, Rules, Verdict, judge};
pub use signature::{Content, Signature};
pub use sysfs::Roots;
pub use text::{human_size, printable};
