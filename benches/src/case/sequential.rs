//! One large object from front to back: from the store, from the disk cache of an earlier mount, and from the page cache.

use super::{Case, Limit, Sample, Scale, Stage};
use crate::content::World;
use crate::figures::{Unit, gib_per_second};
use crate::files::{compare, drop_from_page_cache, read_through};
use crate::mounter::Mounter;
use crate::raw;

const KEY: &str = "large/lane1.fastq";

/// What one raw request asks for.
const CHUNK: u64 = 8 << 20;

/// Where the bytes are when the time begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Store,
    DiskCache,
    PageCache,
}

#[derive(Debug)]
struct Sequential {
    from: From,
    size: u64,
}

/// The three of them.
pub fn cases(scale: Scale) -> impl Iterator<Item = Box<dyn Case>> {
    let size = scale.of(1 << 30, 1 << 20);
    [From::Store, From::DiskCache, From::PageCache]
        .into_iter()
        .map(move |from| Box::new(Sequential { from, size }) as _)
}

impl Case for Sequential {
    fn name(&self) -> &'static str {
        match self.from {
            From::Store => "sequential-cold",
            From::DiskCache => "sequential-disk",
            From::PageCache => "sequential-page",
        }
    }

    fn about(&self) -> String {
        let where_from = match self.from {
            From::Store => "cold",
            From::DiskCache => "from the disk cache, mounted anew, page cache dropped",
            From::PageCache => "again, from the page cache",
        };
        format!("one object of {} MiB read in order by one thread, {where_from}", self.size >> 20)
    }

    fn unit(&self) -> Unit {
        Unit::GibPerSecond
    }

    fn prepare(&self, world: &mut World) {
        world.add(KEY, self.size);
    }

    fn limits(&self) -> &[Limit] {
        match self.from {
            From::Store => &[Limit::Raw(1), Limit::Raw(8)],
            From::DiskCache | From::PageCache => &[Limit::Local],
        }
    }

    fn limit(&self, stage: &Stage, limit: Limit) -> anyhow::Result<Sample> {
        let value = |seconds| gib_per_second(self.size, seconds);
        match limit {
            Limit::Raw(connections) => {
                let chunks = usize::try_from(self.size.div_ceil(CHUNK))?;
                let get = |chunk: usize, connection: &mut raw::Connection, body: &mut Vec<u8>| {
                    let from = u64::try_from(chunk)? * CHUNK;
                    connection.fetch(KEY, Some(from..self.size.min(from + CHUNK)), body)
                };
                stage.measure(None, || raw::share_out(stage.server.port(), connections, chunks, get), value)
            }
            Limit::Local => {
                let path = stage.local_copy(KEY)?;
                if self.from == From::DiskCache {
                    drop_from_page_cache(&path)?;
                } else {
                    read_through(&path)?;
                }
                stage.measure(None, || read_through(&path).map(drop), value)
            }
        }
    }

    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let mut mounted = stage.mount(mounter, &lot)?;
        if self.from != From::Store {
            read_through(&mounted.path(KEY))?;
        }
        if self.from == From::DiskCache {
            // A new process: what the old one had in memory is gone, and the page cache of its mount with it.
            drop(mounted);
            drop_from_page_cache(&lot.cache())?;
            mounted = stage.mount(mounter, &lot)?;
        }
        let path = mounted.path(KEY);
        let read = || read_through(&path).map(drop);
        let sample = stage.measure(Some(&mounted), read, |seconds| gib_per_second(self.size, seconds))?;
        if check {
            // The page cache has what was just read.
            compare(&path, stage.server.world(), stage.server.world().object(KEY)?)?;
        }
        Ok(sample)
    }
}
