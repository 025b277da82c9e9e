//! A virtual machine that boots like an instance of a cloud: firmware that names its maker, a metadata service at its real address,
//! user data for cloud-init, disks that are there when it wakes up, and nobody who logs in.
//!
//! [`image`] is the system it boots; `tests/vm/image.sh` is its recipe. [`disk`] are the disks, files of the host that are compared
//! before and after. [`machine`] starts QEMU and reads the console. [`site`] is a whole place to boot in: machine, object storage,
//! metadata, user data. [`plan`] is what the machine is told to do, [`boot`] what became of it, and [`table`] the same of many machines,
//! for people.
//!
//! The machine reaches nothing but the addresses it is given here: QEMU's network is closed (`restrict=on`), and each open address is
//! relayed, connection by connection, to a port of a double in this process. Everything a machine needs dies with the test: QEMU is
//! killed when the thread that started it ends, the files are in a directory that is removed.

pub mod boot;
pub mod disk;
pub mod image;
pub mod machine;
pub mod package;
pub mod plan;
pub mod site;
pub mod table;
