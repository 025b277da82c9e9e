//! Random reads into one large object, as an index or an aligner does them.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use std::os::unix::fs::FileExt as _;

use super::{Case, Done, Limit, Sample, Scale, Stage, State};
use crate::content::World;
use crate::figures::Unit;
use crate::files::{compare, open, read_at, read_through};
use crate::goal::Goal;
use crate::mounter::Mounter;
use crate::page_cache::drop_pages;
use crate::raw;
use crate::server::Conditions;
use crate::threads::together;

/// Read cold: so large that a mount that fetches a megabyte for each read hardly ever meets what it fetched before.
const LARGE: (&str, u64) = ("random/index.bin", 16 << 30);
/// Read from caches, which must have all of it before.
const CACHED: &str = "random/cached.bin";

/// Places are multiples of this.
const ALIGNMENT: u64 = 4096;

/// A slow mount does fewer reads in this time, and its rate is known as well.
const AT_MOST: Duration = Duration::from_secs(5);

/// What a cold row must not exceed for each read of 4 KiB.
const FETCHED: u64 = 256 << 10;

/// Many reads.
#[derive(Debug)]
pub(super) struct Random {
    name: &'static str,
    state: State,
    far: bool,
    read: usize,
    jobs: usize,
    /// Reads in all.
    count: u64,
    /// Of the object that is read from caches.
    cached: u64,
}

/// The size of what is read from caches.
fn cached(scale: Scale) -> u64 {
    scale.of(512 << 20, 4 << 20)
}

/// All of them.
pub fn cases(scale: Scale) -> impl Iterator<Item = Box<dyn Case>> {
    const SMALL: usize = 4 << 10;
    const MIDDLE: usize = 128 << 10;
    let cached = cached(scale);
    [
        ("rand4k-j1-cold", State::Cold, false, SMALL, 1, 4_000),
        ("rand4k-j8-cold", State::Cold, false, SMALL, 8, 12_000),
        ("rand4k-j8-20ms", State::Cold, true, SMALL, 8, 800),
        ("rand4k-j1-disk", State::Disk, false, SMALL, 1, 10_000),
        ("rand4k-j8-disk", State::Disk, false, SMALL, 8, 20_000),
        ("rand4k-j1-remount", State::Remounted, false, SMALL, 1, 10_000),
        ("rand4k-j8-remount", State::Remounted, false, SMALL, 8, 20_000),
        ("rand4k-j1-page", State::Page, false, SMALL, 1, 200_000),
        ("rand4k-j8-page", State::Page, false, SMALL, 8, 400_000),
        ("rand128k-j1-cold", State::Cold, false, MIDDLE, 1, 2_000),
        ("rand128k-j8-cold", State::Cold, false, MIDDLE, 8, 4_000),
        ("rand128k-j1-disk", State::Disk, false, MIDDLE, 1, 2_000),
        ("rand128k-j8-disk", State::Disk, false, MIDDLE, 8, 4_000),
        ("rand128k-j1-page", State::Page, false, MIDDLE, 1, 10_000),
        ("rand128k-j8-page", State::Page, false, MIDDLE, 8, 20_000),
    ]
    .into_iter()
    .map(move |(name, state, far, read, jobs, count)| {
        let count = scale.of(count, 64);
        Box::new(Random { name, state, far, read, jobs, count, cached }) as _
    })
}

impl Random {
    /// `count` reads of 4 KiB, at full scale.
    pub(super) fn small(state: State, jobs: usize, count: u64, scale: Scale) -> Self {
        let (count, cached) = (scale.of(count, 64), cached(scale));
        Self { name: "", state, far: false, read: 4 << 10, jobs, count, cached }
    }

    /// What is read, and its size.
    pub(super) fn object(&self) -> (&'static str, u64) {
        if self.state == State::Cold { LARGE } else { (CACHED, self.cached) }
    }

    /// The places that one job reads: the same in every run and for everybody.
    fn places(&self, job: usize) -> impl Iterator<Item = u64> + use<> {
        let seed = u64::try_from(self.read + job).unwrap_or(0);
        let mut random = fastrand::Rng::with_seed(seed);
        let steps = (self.object().1 - u64::try_from(self.read).unwrap_or(0)) / ALIGNMENT;
        let each = self.count / u64::try_from(self.jobs).unwrap_or(1);
        (0..each).map(move |_| random.u64(0..=steps) * ALIGNMENT)
    }

    /// Does the reads. From the page cache a read takes no longer than comparing it would: there, all of the file is compared
    /// afterwards.
    pub(super) fn work(&self, path: &Path, world: &World) -> anyhow::Result<Done> {
        let object = world.object(self.object().0)?;
        let file = open(path)?;
        let compared = self.state != State::Page;
        let done = AtomicU64::new(0);
        let until = Instant::now() + AT_MOST;
        together(self.jobs, |job| {
            let mut buffer = vec![0; self.read];
            let mut count = 0;
            for place in self.places(job) {
                if Instant::now() >= until {
                    break;
                }
                if compared {
                    read_at(&file, place, &mut buffer, world, object)?;
                } else {
                    read_only(&file, place, &mut buffer)?;
                }
                count += 1;
            }
            done.fetch_add(count, Ordering::Relaxed);
            Ok(())
        })?;
        let operations = done.load(Ordering::Relaxed);
        Ok(Done { operations, bytes: operations * u64::try_from(self.read)?, seconds: None })
    }
}

fn read_only(file: &File, place: u64, buffer: &mut [u8]) -> anyhow::Result<()> {
    file.read_exact_at(buffer, place).with_context(|| format!("cannot read at {place}"))
}

impl Case for Random {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        let (_, size) = self.object();
        let jobs = if self.jobs == 1 { "one thread".to_owned() } else { format!("{} threads", self.jobs) };
        let far = if self.far { super::FAR } else { "" };
        format!(
            "{} reads of {} KiB by {jobs} anywhere in one object of {} MiB, {}{far}",
            self.count,
            self.read >> 10,
            size >> 20,
            self.state.about()
        )
    }

    fn unit(&self) -> Unit {
        Unit::PerSecond
    }

    fn conditions(&self) -> Conditions {
        if self.far { Conditions::FAR } else { Conditions::default() }
    }

    fn prepare(&self, world: &mut World) {
        let (key, size) = self.object();
        world.add(key, size);
    }

    fn limits(&self) -> &[Limit] {
        match (self.state, self.jobs) {
            (State::Cold, 1) => &[Limit::Raw(1), Limit::Daemon],
            (State::Cold, _) if self.far => &[Limit::Raw(8)],
            (State::Cold, _) => &[Limit::Raw(8), Limit::Daemon],
            _ => &[Limit::Local],
        }
    }

    fn yardstick(&self) -> &[Limit] {
        match (self.state, self.jobs) {
            (State::Cold, 1) => &[Limit::Raw(1)],
            (State::Cold, _) => &[Limit::Raw(8)],
            _ => &[Limit::Local],
        }
    }

    fn goals(&self) -> Vec<Goal> {
        match (self.read, self.state, self.jobs) {
            (4096, State::Cold, 8) if self.far => vec![Goal::Share(0.9), Goal::FetchedPerOperation(FETCHED)],
            (4096, State::Cold, 8) => vec![Goal::Share(0.35), Goal::Peers(8.0)],
            (4096, State::Disk | State::Remounted | State::Page, _) => vec![Goal::Share(0.9)],
            _ => Vec::new(),
        }
    }

    fn limit(&self, stage: &Stage, limit: Limit) -> anyhow::Result<Sample> {
        let world = stage.server.world();
        let (key, _) = self.object();
        match limit {
            Limit::Raw(connections) => {
                let object = world.object(key)?;
                let places: Vec<u64> = (0..self.jobs).flat_map(|job| self.places(job)).collect();
                let get = |number: usize, connection: &mut raw::Connection, body: &mut Vec<u8>| {
                    let place = places[number];
                    connection.fetch(key, Some(place..place + u64::try_from(self.read)?), body)?;
                    anyhow::ensure!(
                        body.len() == self.read && world.matches(object, place, body),
                        "WRONG BYTES at {place}"
                    );
                    Ok(())
                };
                stage.measure(self.unit(), None, || {
                    raw::share_out(stage.server.port(), connections, places.len(), get)?;
                    let operations = u64::try_from(places.len())?;
                    Ok(Done { operations, bytes: operations * u64::try_from(self.read)?, seconds: None })
                })
            }
            Limit::Local => {
                let path = stage.local_copy(key)?;
                match self.state {
                    State::Page => drop(read_through(&path)?),
                    _ => drop_pages(&path)?,
                }
                stage.measure(self.unit(), None, || self.work(&path, world))
            }
            Limit::Daemon => {
                let lot = stage.lot()?;
                let mounted = stage.daemon(&lot, key)?;
                let path = mounted.path(crate::daemon::FILE);
                stage.measure(self.unit(), Some(&mounted), || self.work(&path, world))
            }
            Limit::ReadOnly | Limit::ByHand => anyhow::bail!("{} is no limit of this", limit.name()),
        }
    }

    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let world = stage.server.world();
        let (key, _) = self.object();
        let mounted =
            stage.mount_in_state(mounter, &lot, self.state, |mounted| read_through(&mounted.path(key)).map(drop))?;
        let path = mounted.path(key);
        let sample = stage.measure(self.unit(), Some(&mounted), || self.work(&path, world))?;
        if check && self.state != State::Cold {
            compare(&path, world, world.object(key)?)?;
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stay_inside_the_object_and_jobs_differ() {
        for read in [4096, 128 << 10] {
            let random = |jobs| Random {
                name: "",
                state: State::Disk,
                far: false,
                read,
                jobs,
                count: 800,
                cached: (4 << 20) + 4096,
            };
            let all = random(8);
            for job in 0..8 {
                assert_eq!(all.places(job).count(), 100);
                assert!(all.places(job).all(|place| place + read as u64 <= all.cached && place % 4096 == 0));
            }
            assert!(all.places(0).ne(all.places(1)) && all.places(3).eq(all.places(3)));
        }
    }
}
