//! Many small files, each opened, read whole and closed, as a renderer reads its textures.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use super::{Case, Limit, Sample, Scale, Stage};
use crate::content::World;
use crate::figures::Unit;
use crate::files::{compare, open};
use crate::mounter::Mounter;
use crate::raw;
use crate::server::Conditions;
use crate::threads::together;

const SIZE: u64 = 64 << 10;
const THREADS: usize = 8;

#[derive(Debug)]
struct SmallFiles {
    keys: Vec<String>,
    far: bool,
}

/// With the store near, and 20 ms away.
pub fn cases(scale: Scale) -> impl Iterator<Item = Box<dyn Case>> {
    let keys: Vec<String> = (0..scale.of(500, 16)).map(|number| format!("textures/tile-{number:05}.exr")).collect();
    [false, true].into_iter().map(move |far| Box::new(SmallFiles { keys: keys.clone(), far }) as _)
}

impl Case for SmallFiles {
    fn name(&self) -> &'static str {
        if self.far { "small-files-20ms" } else { "small-files-cold" }
    }

    fn about(&self) -> String {
        let far = if self.far { ", 20 ms per request" } else { "" };
        format!("{} files of 64 KiB opened, read and closed by {THREADS} threads, cold{far}", self.keys.len())
    }

    fn unit(&self) -> Unit {
        Unit::Seconds
    }

    fn conditions(&self) -> Conditions {
        let latency = Duration::from_millis(if self.far { 20 } else { 0 });
        Conditions { latency, bandwidth: 0 }
    }

    fn prepare(&self, world: &mut World) {
        for key in &self.keys {
            world.add(key, SIZE);
        }
    }

    fn limits(&self) -> &[Limit] {
        &[Limit::Raw(THREADS)]
    }

    fn limit(&self, stage: &Stage, limit: Limit) -> anyhow::Result<Sample> {
        let Limit::Raw(connections) = limit else { anyhow::bail!("a local disk has no cold reads of a store") };
        let get = |file: usize, connection: &mut raw::Connection, body: &mut Vec<u8>| {
            connection.fetch(&self.keys[file], None, body)
        };
        let work = || raw::share_out(stage.server.port(), connections, self.keys.len(), get);
        stage.measure(None, work, std::convert::identity)
    }

    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let mounted = stage.mount(mounter, &lot)?;
        let work = || {
            // Neighbours are read by different threads, as by the workers of one program.
            together(THREADS, |thread| {
                for key in self.keys.iter().skip(thread).step_by(THREADS) {
                    read_whole(&mounted.path(key))?;
                }
                Ok(())
            })
        };
        let sample = stage.measure(Some(&mounted), work, std::convert::identity)?;
        if check {
            for key in &self.keys {
                compare(&mounted.path(key), stage.server.world(), stage.server.world().object(key)?)?;
            }
        }
        Ok(sample)
    }
}

fn read_whole(path: &Path) -> anyhow::Result<()> {
    let mut buffer = Vec::with_capacity(usize::try_from(SIZE)? + 1);
    let read = open(path)?.read_to_end(&mut buffer)?;
    anyhow::ensure!(u64::try_from(read)? == SIZE, "{} has {read} bytes", path.display());
    Ok(())
}
