//! How much memory the mount's program takes while many large objects are read at once.

use super::{Case, Done, Limit, Sample, Scale, Stage};
use crate::content::World;
use crate::figures::Unit;
use crate::files::{compare, read_through};
use crate::goal::Goal;
use crate::mounter::Mounter;
use crate::server::Conditions;
use crate::threads::together;

const READERS: usize = 64;
/// What a program that can be told is told to keep to, in MiB.
const LIMIT: u64 = 256;
/// What it may have beyond that: its code, its threads, its tables.
const MARGIN: u64 = 32;

#[derive(Debug)]
struct Memory {
    name: &'static str,
    far: bool,
    size: u64,
}

/// With the store near, and far, where more must be under way.
pub fn cases(scale: Scale) -> impl Iterator<Item = Box<dyn Case>> {
    let size = scale.of(32 << 20, 1 << 20);
    [("memory-64", false), ("memory-64-20ms", true)]
        .into_iter()
        .map(move |(name, far)| Box::new(Memory { name, far, size }) as _)
}

fn key(reader: usize) -> String {
    format!("many/lane-{reader:02}.bcl")
}

impl Case for Memory {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        let far = if self.far { super::FAR } else { "" };
        format!(
            "peak memory with {READERS} objects of {} MiB read in order at once, --memory-limit {LIMIT}MiB, cold{far}",
            self.size >> 20
        )
    }

    fn unit(&self) -> Unit {
        Unit::Mib
    }

    fn conditions(&self) -> Conditions {
        if self.far { Conditions::FAR } else { Conditions::default() }
    }

    fn prepare(&self, world: &mut World) {
        for reader in 0..READERS {
            world.add(key(reader), self.size);
        }
    }

    fn limits(&self) -> &[Limit] {
        &[]
    }

    fn yardstick(&self) -> &[Limit] {
        &[]
    }

    fn goals(&self) -> Vec<Goal> {
        vec![Goal::Figure(crate::figures::float(LIMIT + MARGIN))]
    }

    fn limit(&self, _stage: &Stage, _limit: Limit) -> anyhow::Result<Sample> {
        anyhow::bail!("memory has no limit but the one that is set")
    }

    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let mounted = stage.mount_with(mounter, &lot, Some(LIMIT))?;
        let work = || {
            together(READERS, |reader| read_through(&mounted.path(&key(reader))).map(drop))?;
            let bytes = self.size * u64::try_from(READERS)?;
            Ok(Done { operations: u64::try_from(READERS)?, bytes, seconds: None })
        };
        let sample = stage.measure(self.unit(), Some(&mounted), work)?;
        if check {
            let world = stage.server.world();
            for reader in 0..READERS {
                compare(&mounted.path(&key(reader)), world, world.object(&key(reader))?)?;
            }
        }
        Ok(sample)
    }
}
