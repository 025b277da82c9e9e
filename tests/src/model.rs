//! A reference model of a mount, and what is done to the real one to compare the two.
//!
//! The model is a map from keys to bytes ([`Tree`]) and the directories that follow from it. A [`Case`] says what the bucket
//! holds, how small the caches are, how much goes wrong on the wire, and what is done in which order: rounds in which several
//! threads read, list and look up at once, and between them restarts, killed servers, damaged cache files and changes in the
//! bucket. [`run()`] does it and compares every byte. What may differ is said in one place: once the server has been killed, an
//! operation may fail with the errors of a dead mount, and an object that was replaced in the bucket meanwhile may be stale
//! (`Session::wrong`). Nothing else may fail, and no byte may ever
//! differ.
//!
//! A case is plain data, so that a failure prints it whole and the same seeds make it again; only the threads' timing is not
//! the same.

mod damage;
mod operation;
mod run;
mod tree;

use std::fmt;

pub use damage::damage;
pub use operation::{Operation, Pick, Place};
pub use run::run;
pub use tree::Tree;

/// Everything that is done to one bucket.
#[derive(Clone)]
pub struct Case {
    /// What the objects, the faults' dice and the damage are made of.
    pub seed: u64,
    /// How many objects there are at first.
    pub objects: usize,
    /// Whether one of them has 20 to 40 MiB.
    pub large: bool,
    /// Whether S3's protocol is spoken and not OSS's.
    pub s3: bool,
    /// Whether a prefix is mounted and not the whole bucket.
    pub prefix: bool,
    /// The size of the disk cache in MiB; 0 for none.
    pub cache_mib: u64,
    /// How much goes wrong on the wire: the chance of each kind of fault for each request, in thousandths.
    pub trouble: u32,
    /// Whether one byte of every answer to a request for a range is wrong, which nobody can see before the object is complete.
    pub lies: bool,
    /// What is done.
    pub rounds: Vec<Round>,
}

/// What is done between two times of mounting.
#[derive(Debug, Clone)]
pub struct Round {
    /// What each thread does, one operation after another.
    pub threads: Vec<Vec<Operation>>,
    /// After how many operations of all threads together the server is killed, if it is.
    pub kill_after: Option<usize>,
    /// What happens then.
    pub then: Then,
    /// How many objects are replaced, deleted and added before the next round.
    pub changes: [u8; 3],
}

/// What happens between two rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Unmounted and mounted again; the server lives on.
    Remount,
    /// A new server.
    Restart,
    /// A new server, and while there was none, so many of the cache's files were damaged.
    Damage(u8),
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, objects, large, s3, prefix, cache_mib, trouble, lies, rounds } = self;
        writeln!(
            f,
            "case {{ seed: {seed}, objects: {objects}, large: {large}, s3: {s3}, prefix: {prefix}, cache_mib: {cache_mib}, \
             trouble: {trouble}, lies: {lies} }}"
        )?;
        for (number, round) in rounds.iter().enumerate() {
            writeln!(
                f,
                "  round {number}: killed after {:?} operations, then {:?}, changes {:?}",
                round.kill_after, round.then, round.changes
            )?;
            for (number, operations) in round.threads.iter().enumerate() {
                writeln!(f, "    thread {number}:")?;
                for (number, operation) in operations.iter().enumerate() {
                    writeln!(f, "      {number}: {operation:?}")?;
                }
            }
        }
        Ok(())
    }
}
