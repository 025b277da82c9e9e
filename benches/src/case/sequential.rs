//! One large object from front to back, by `read` and by `mmap`: from the store, from the disk cache, and from the page cache.

use super::{Case, Done, Limit, Sample, Scale, Stage, State};
use crate::child;
use crate::content::World;
use crate::figures::Unit;
use crate::files::{compare, read_through};
use crate::goal::Goal;
use crate::mounter::Mounter;
use crate::page_cache::drop_pages;
use crate::raw;
use crate::server::Conditions;

/// The object.
pub(super) const KEY: &str = "large/lane1.fastq";

/// What one raw request asks for.
const CHUNK: u64 = 8 << 20;

/// One connection to a store far away is given this part of the object only: its rate is the same.
const FAR_PART: u64 = 8;

#[derive(Debug)]
struct Sequential {
    name: &'static str,
    state: State,
    far: bool,
    mapped: bool,
    size: u64,
}

/// All of them.
pub fn cases(scale: Scale) -> impl Iterator<Item = Box<dyn Case>> {
    let size = scale.of(1 << 30, 2 << 20);
    [
        ("seq-cold", State::Cold, false, false),
        ("seq-20ms", State::Cold, true, false),
        ("seq-disk", State::Disk, false, false),
        ("seq-remount", State::Remounted, false, false),
        ("seq-page", State::Page, false, false),
        ("mmap-cold", State::Cold, false, true),
        ("mmap-disk", State::Disk, false, true),
        ("mmap-page", State::Page, false, true),
    ]
    .into_iter()
    .map(move |(name, state, far, mapped)| Box::new(Sequential { name, state, far, mapped, size }) as _)
}

impl Sequential {
    /// Reads all of it.
    fn read(&self, path: &std::path::Path) -> anyhow::Result<Done> {
        let seconds = if self.mapped {
            Some(child::map(path)?)
        } else {
            read_through(path)?;
            None
        };
        Ok(Done { operations: 1, bytes: self.size, seconds })
    }
}

impl Case for Sequential {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        let how = if self.mapped { "mapped and copied" } else { "read by 1 MiB" };
        let far = if self.far { super::FAR } else { "" };
        format!("one object of {} MiB {how} in order by one thread, {}{far}", self.size >> 20, self.state.about())
    }

    fn unit(&self) -> Unit {
        Unit::GibPerSecond
    }

    fn conditions(&self) -> Conditions {
        if self.far { Conditions::FAR } else { Conditions::default() }
    }

    fn prepare(&self, world: &mut World) {
        world.add(KEY, self.size);
    }

    fn limits(&self) -> &[Limit] {
        match (self.state, self.far) {
            (State::Cold, false) => &[Limit::Raw(1), Limit::Raw(8), Limit::Daemon],
            (State::Cold, true) => &[Limit::Raw(1), Limit::Raw(8), Limit::Raw(32), Limit::Daemon],
            _ => &[Limit::Local],
        }
    }

    fn yardstick(&self) -> &[Limit] {
        match (self.state, self.far) {
            (State::Cold, false) => &[Limit::Raw(8), Limit::Daemon],
            (State::Cold, true) => &[Limit::Raw(32), Limit::Daemon],
            _ => &[Limit::Local],
        }
    }

    fn goals(&self) -> Vec<Goal> {
        match (self.state, self.mapped) {
            (State::Cold, false) if self.far => vec![Goal::Share(0.8)],
            (State::Cold, false) => vec![Goal::Share(0.8), Goal::Peers(1.0)],
            (State::Disk | State::Remounted | State::Page, false) | (State::Page, true) => vec![Goal::Share(0.9)],
            (_, true) => Vec::new(),
        }
    }

    fn limit(&self, stage: &Stage, limit: Limit) -> anyhow::Result<Sample> {
        match limit {
            Limit::Raw(connections) => {
                let part = if self.far && connections == 1 { FAR_PART } else { 1 };
                let size = (self.size / part).max(1);
                // Every connection has something to do, in short runs too.
                let chunk = CHUNK.min(size.div_ceil(u64::try_from(connections)?));
                let chunks = usize::try_from(size.div_ceil(chunk))?;
                let get = |number: usize, connection: &mut raw::Connection, body: &mut Vec<u8>| {
                    let from = u64::try_from(number)? * chunk;
                    connection.fetch(KEY, Some(from..size.min(from + chunk)), body)
                };
                stage.measure(self.unit(), None, || {
                    raw::share_out(stage.server.port(), connections, chunks, get)?;
                    Ok(Done { operations: 1, bytes: size, seconds: None })
                })
            }
            Limit::Local => {
                let path = stage.local_copy(KEY)?;
                match self.state {
                    State::Page => drop(read_through(&path)?),
                    _ => drop_pages(&path)?,
                }
                stage.measure(self.unit(), None, || self.read(&path))
            }
            Limit::Daemon => {
                let lot = stage.lot()?;
                let mounted = stage.daemon(&lot, KEY)?;
                let path = mounted.path(crate::daemon::FILE);
                let sample = stage.measure(self.unit(), Some(&mounted), || self.read(&path))?;
                compare(&path, stage.server.world(), stage.server.world().object(KEY)?)?;
                Ok(sample)
            }
            Limit::ReadOnly | Limit::ByHand => anyhow::bail!("{} is no limit of this", limit.name()),
        }
    }

    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let mounted =
            stage.mount_in_state(mounter, &lot, self.state, |mounted| read_through(&mounted.path(KEY)).map(drop))?;
        // Opened anew, whatever was read before.
        let path = mounted.path(KEY);
        let sample = stage.measure(self.unit(), Some(&mounted), || self.read(&path))?;
        if check {
            // The page cache has what was just read.
            compare(&path, stage.server.world(), stage.server.world().object(KEY)?)?;
        }
        Ok(sample)
    }
}
