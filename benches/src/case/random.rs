//! Random reads of 4 KiB into one large object, as an index or an aligner does them; nothing is cached.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Case, Limit, Sample, Scale, Stage};
use crate::content::World;
use crate::figures::{Unit, float};
use crate::files::{open, read_at};
use crate::mounter::Mounter;
use crate::raw;
use crate::threads::together;

const KEY: &str = "random/index.bin";

/// Large enough that a mount that fetches a megabyte for each read hardly ever meets what it fetched before.
const SIZE: u64 = 16 << 30;
const READ: usize = 4096;
const THREADS: usize = 8;

/// A slow mount does fewer reads in this time, and its rate is known as well.
const AT_MOST: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct RandomCold {
    offsets: Vec<u64>,
}

impl RandomCold {
    /// The same places in every run.
    pub fn new(scale: Scale) -> Self {
        let count = scale.of(2000, 64);
        let mut random = fastrand::Rng::with_seed(4096);
        Self { offsets: (0..count).map(|_| random.u64(0..SIZE / 4096) * 4096).collect() }
    }
}

impl Case for RandomCold {
    fn name(&self) -> &'static str {
        "random-cold"
    }

    fn about(&self) -> String {
        format!("{} reads of 4 KiB by {THREADS} threads anywhere in one object of 16 GiB, cold", self.offsets.len())
    }

    fn unit(&self) -> Unit {
        Unit::PerSecond
    }

    fn prepare(&self, world: &mut World) {
        world.add(KEY, SIZE);
    }

    fn limits(&self) -> &[Limit] {
        &[Limit::Raw(THREADS)]
    }

    fn limit(&self, stage: &Stage, limit: Limit) -> anyhow::Result<Sample> {
        let Limit::Raw(connections) = limit else { anyhow::bail!("a local disk has no cold reads of a store") };
        let world = stage.server.world();
        let object = world.object(KEY)?;
        let get = |read: usize, connection: &mut raw::Connection, body: &mut Vec<u8>| {
            let offset = self.offsets[read];
            connection.fetch(KEY, Some(offset..offset + 4096), body)?;
            anyhow::ensure!(body.len() == READ && world.matches(object, offset, body), "WRONG BYTES at {offset}");
            Ok(())
        };
        let count = self.offsets.len();
        let work = || raw::share_out(stage.server.port(), connections, count, get);
        stage.measure(None, work, |seconds| float(u64::try_from(count).unwrap_or(0)) / seconds)
    }

    /// Every read is compared, always: it costs next to nothing beside a read.
    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, _check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let mounted = stage.mount(mounter, &lot)?;
        let file = open(&mounted.path(KEY))?;
        let world = stage.server.world();
        let object = world.object(KEY)?;
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let until = Instant::now() + AT_MOST;
        let work = || {
            together(THREADS, |_| {
                let mut buffer = [0; READ];
                while Instant::now() < until
                    && let Some(&offset) = self.offsets.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    read_at(&file, offset, &mut buffer, world, object)?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let rate = |seconds| float(u64::try_from(done.load(Ordering::Relaxed)).unwrap_or(0)) / seconds;
        let sample = stage.measure(Some(&mounted), work, rate);
        // Before the mount goes.
        drop(file);
        sample
    }
}
