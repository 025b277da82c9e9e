//! What is measured. A case is one file in this folder and one line in [`all`].

mod boot;
mod first_byte;
mod memory;
mod no_op;
mod random;
mod sequential;
mod small_files;
mod transfer;
mod view;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::cleanup::Scratch;
use crate::content::World;
use crate::copier::Copier;
use crate::figures::{Unit, float, gib_per_second};
use crate::goal::Goal;
use crate::mounter::{Ceiling, FuseOss, Mounted, Mounter, Place};
use crate::page_cache;
use crate::server::{Conditions, Server, Traffic};
use crate::threads::readers_cpu;

/// One thing to measure.
pub trait Case: Sync {
    /// Its name on the command line and in JSON.
    fn name(&self) -> &'static str;

    /// One line that says what is done, with its sizes.
    fn about(&self) -> String;

    /// What its figures are in.
    fn unit(&self) -> Unit;

    /// How far away the store is.
    fn conditions(&self) -> Conditions {
        Conditions::default()
    }

    /// Adds the objects that it needs.
    fn prepare(&self, world: &mut World);

    /// What is measured beside the mounts, in the same run.
    fn limits(&self) -> &[Limit];

    /// Those of them that bound every mount: ratios refer to the lowest. None when there is no such thing.
    fn yardstick(&self) -> &[Limit];

    /// What our own program must reach.
    fn goals(&self) -> Vec<Goal>;

    /// The program that is judged: [`OURS`](crate::OURS), or [`COPIER`](crate::COPIER) where not mounts but copiers are measured.
    fn ours(&self) -> &'static str {
        crate::OURS
    }

    /// Whether only our own mount is measured, because no peer has such a thing.
    fn ours_only(&self) -> bool {
        false
    }

    /// Measures a limit once.
    ///
    /// # Errors
    /// When it cannot be measured or brings wrong bytes.
    fn limit(&self, stage: &Stage, limit: Limit) -> anyhow::Result<Sample>;

    /// Measures a mount once; with `check`, also compares all bytes, outside the time that is measured.
    ///
    /// # Errors
    /// When it cannot be measured or brings wrong bytes.
    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, check: bool) -> anyhow::Result<Sample>;

    /// The same of a program that copies.
    ///
    /// # Errors
    /// As [`Self::mounted`].
    fn copied(&self, _stage: &Stage, copier: &dyn Copier, _check: bool) -> anyhow::Result<Sample> {
        anyhow::bail!("{} mounts nothing", copier.name())
    }
}

/// A yardstick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Plain HTTP with this many connections at once.
    Raw(usize),
    /// The same files on the local disk.
    Local,
    /// A FUSE file system that answers from memory: see [`crate::daemon`].
    Daemon,
    /// Our own mount as it is when nobody may write to it.
    ReadOnly,
    /// The same commands by hand.
    ByHand,
}

impl Limit {
    /// Its name in tables.
    pub fn name(self) -> String {
        match self {
            Self::Raw(1) => "raw HTTP, 1 connection".to_owned(),
            Self::Raw(connections) => format!("raw HTTP, {connections} connections"),
            Self::Local => "local disk".to_owned(),
            Self::Daemon => "daemon path".to_owned(),
            Self::ReadOnly => "read-only mount".to_owned(),
            Self::ByHand => "by hand".to_owned(),
        }
    }
}

/// Where the bytes are when the time begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// In the store only.
    Cold,
    /// In the disk cache, read by this very mount before; the page cache is empty.
    Disk,
    /// In the disk cache that an earlier mount filled, whose program has ended; the page cache is empty.
    Remounted,
    /// In the page cache, read by this very mount a moment ago.
    Page,
}

impl State {
    /// In words.
    pub fn about(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Disk => "from the disk cache, page cache dropped",
            Self::Remounted => "from the disk cache, mounted anew by a new process, page cache dropped",
            Self::Page => "again, from the page cache",
        }
    }
}

/// What [`Conditions::FAR`] are, in words.
const FAR: &str = ", 20 ms per request, 90 MB/s per connection";

/// What was done while the time ran.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Done {
    /// Reads, files or names.
    pub operations: u64,
    /// Bytes that the reader got.
    pub bytes: u64,
    /// The time that it took, where the reader has taken it itself.
    pub seconds: Option<f64>,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// In the case's unit.
    pub value: f64,
    /// What was done.
    pub done: Done,
    /// Processor time of the readers meanwhile, with the kernel's part, in seconds.
    pub readers: f64,
    /// What the store was asked for meanwhile.
    pub traffic: Traffic,
    /// Processor time of the mount's program meanwhile, in seconds.
    pub cpu: Option<f64>,
    /// The most memory that program had, in bytes.
    pub peak_memory: Option<u64>,
}

/// Sizes of everything for `--scale`.
#[derive(Debug, Clone, Copy)]
pub struct Scale(pub f64);

impl Scale {
    /// A number of things, at least `least`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and rounded on purpose")]
    pub fn of(self, whole: u64, least: u64) -> u64 {
        ((float(whole) * self.0).round() as u64).max(least)
    }
}

/// All cases, in the order they run.
pub fn all(scale: Scale) -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    cases.extend(sequential::cases(scale));
    cases.extend(random::cases(scale));
    cases.extend(small_files::cases(scale));
    cases.extend(view::cases(scale));
    cases.extend(walk::cases(scale));
    cases.push(Box::new(first_byte::FirstByte));
    cases.push(Box::new(no_op::NoOp));
    cases.push(Box::new(boot::Boot));
    cases.extend(memory::cases(scale));
    cases.extend(transfer::cases(scale));
    cases
}

/// What cases work with.
#[derive(Debug)]
pub struct Stage {
    /// The store.
    pub server: Server,
    /// Our own mount, for limits that are taken from it.
    ours: Option<FuseOss>,
    scratch: Scratch,
    next: AtomicU32,
}

/// The directories of one mount after another; a disk cache outlives the mount that filled it. All are removed when dropped.
#[derive(Debug)]
pub struct Lot {
    root: PathBuf,
}

impl Lot {
    /// The disk cache.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }
}

impl Drop for Lot {
    fn drop(&mut self) {
        // The mount is gone by now; if it is not, nothing is deleted, and the scratch directory's end says so.
        if !crate::cleanup::mounts().iter().any(|mount| mount.starts_with(&self.root)) {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

impl Stage {
    /// With everything in `scratch`.
    pub fn new(server: Server, scratch: Scratch) -> Self {
        Self { server, ours: None, scratch, next: AtomicU32::new(0) }
    }

    /// Says which program our own mount is.
    #[must_use]
    pub fn with_ours(self, ours: FuseOss) -> Self {
        Self { ours: Some(ours), ..self }
    }

    /// Our own mount, for limits that are taken from it.
    ///
    /// # Errors
    /// When nobody has said which program it is.
    pub fn ours(&self) -> anyhow::Result<&FuseOss> {
        self.ours.as_ref().context("it is not known which program is measured")
    }

    /// New directories, with an empty cache.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn lot(&self) -> anyhow::Result<Lot> {
        ensure!(!crate::cleanup::is_ending(), "the benchmark is ending");
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let root = self.scratch.path().join(number.to_string());
        for name in ["cache", "mnt", "work"] {
            std::fs::create_dir_all(root.join(name)).context("cannot make a directory")?;
        }
        Ok(Lot { root })
    }

    /// What a mount is given.
    pub fn place(&self, lot: &Lot, memory_limit: Option<u64>) -> Place {
        let (target, work) = (lot.root.join("mnt"), lot.root.join("work"));
        Place { target, cache: lot.cache(), work, port: self.server.port(), memory_limit, writable: false }
    }

    /// Mounts.
    ///
    /// # Errors
    /// See [`Mounted::start`].
    pub fn mount(&self, mounter: &dyn Mounter, lot: &Lot) -> anyhow::Result<Mounted> {
        self.mount_with(mounter, lot, None)
    }

    /// Mounts with a limit of memory, in MiB.
    ///
    /// # Errors
    /// See [`Mounted::start`].
    pub fn mount_with(&self, mounter: &dyn Mounter, lot: &Lot, memory_limit: Option<u64>) -> anyhow::Result<Mounted> {
        Mounted::start(mounter, &self.place(lot, memory_limit))
    }

    /// Mounts so that everything may be changed, locally. What is written is on the disk of the cache.
    ///
    /// # Errors
    /// See [`Mounted::start`].
    pub fn mount_writable(&self, mounter: &dyn Mounter, lot: &Lot) -> anyhow::Result<Mounted> {
        Mounted::start(mounter, &Place { writable: true, ..self.place(lot, None) })
    }

    /// Mounts and has things where they are wanted; `fill` reads them once.
    ///
    /// # Errors
    /// Those of mounting, of `fill` and of dropping caches.
    pub fn mount_in_state(
        &self,
        mounter: &dyn Mounter,
        lot: &Lot,
        state: State,
        fill: impl FnOnce(&Mounted) -> anyhow::Result<()>,
    ) -> anyhow::Result<Mounted> {
        let mut mounted = self.mount(mounter, lot)?;
        if state == State::Remounted {
            fill(&mounted)?;
            page_cache::settle(&lot.cache());
            // What the old process had in memory is gone, and the page cache of its mount with it.
            drop(mounted);
            page_cache::drop_pages(&lot.cache())?;
            mounted = self.mount(mounter, lot)?;
        } else {
            settled(&mounted, lot, state, fill)?;
        }
        Ok(mounted)
    }

    /// Mounts the ceiling of the daemon path, with this object, under the name [`crate::daemon::FILE`].
    ///
    /// # Errors
    /// See [`Mounted::start`]; when the kernel's read-ahead cannot be set.
    pub fn daemon(&self, lot: &Lot, key: &str) -> anyhow::Result<Mounted> {
        let mounted = self.mount(&Ceiling { object: self.server.world().object(key)? }, lot)?;
        mounted.set_read_ahead(1024)?;
        Ok(mounted)
    }

    /// A local copy of an object, made when first asked for.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn local_copy(&self, key: &str) -> anyhow::Result<PathBuf> {
        let (directory, name) = key.rsplit_once('/').context("objects of cases have a directory")?;
        let root = self.local(directory, |_| Ok(()))?;
        let path = root.join(name);
        if !path.exists() {
            crate::files::lay_down(&path, self.server.world(), self.server.world().object(key)?)?;
        }
        Ok(path)
    }

    /// A local directory, filled when first asked for.
    ///
    /// # Errors
    /// Those of `fill`.
    pub fn local(&self, name: &str, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
        let path = self.scratch.path().join("local").join(name);
        if !path.exists() {
            ensure!(!crate::cleanup::is_ending(), "the benchmark is ending");
            std::fs::create_dir_all(&path).context("cannot make a directory")?;
            fill(&path)?;
        }
        Ok(path)
    }

    /// Does `work` and takes the time, the store's traffic and what the mount's program used.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn measure(
        &self,
        unit: Unit,
        mounted: Option<&Mounted>,
        work: impl FnOnce() -> anyhow::Result<Done>,
    ) -> anyhow::Result<Sample> {
        let (traffic, usage, readers) = (self.server.traffic(), mounted.map(Mounted::usage), readers_cpu());
        let begun = Instant::now();
        let done = work()?;
        let seconds = done.seconds.unwrap_or_else(|| begun.elapsed().as_secs_f64());
        let readers = readers_cpu() - readers;
        let after = mounted.map(Mounted::usage);
        let peak_memory = after.map(|usage| usage.peak_memory);
        Ok(Sample {
            value: match unit {
                Unit::GibPerSecond => gib_per_second(done.bytes, seconds),
                Unit::PerSecond => float(done.operations) / seconds,
                Unit::Seconds => seconds,
                Unit::Mib => float(peak_memory.unwrap_or(0)) / float(1 << 20),
            },
            done,
            readers,
            traffic: self.server.traffic().since(traffic),
            cpu: usage.zip(after).map(|(before, after)| after.cpu - before.cpu),
            peak_memory,
        })
    }
}

/// Has things where they are wanted in a mount that is there; `fill` reads or writes them once.
fn settled(
    mounted: &Mounted,
    lot: &Lot,
    state: State,
    fill: impl FnOnce(&Mounted) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if state == State::Cold {
        return Ok(());
    }
    fill(mounted)?;
    page_cache::settle(&lot.cache());
    if state == State::Disk { page_cache::drop_pages(&lot.cache()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_something_to_be_compared_with() {
        let cases = all(Scale(0.01));
        let names: std::collections::BTreeSet<_> = cases.iter().map(|case| case.name()).collect();
        assert_eq!(names.len(), cases.len());
        for case in &cases {
            assert!(case.yardstick().iter().all(|limit| case.limits().contains(limit)), "{}", case.name());
            assert!(!case.yardstick().is_empty() || !case.goals().is_empty(), "{}", case.name());
            let share = case.goals().iter().any(|goal| matches!(goal, Goal::Share(_)));
            assert!(!share || !case.yardstick().is_empty(), "{}", case.name());
        }
    }

    /// Those that need neither a mount nor another process of this program, nor empty the machine's caches; the others are
    /// measured by every run.
    #[test]
    fn limits_can_be_measured_and_bring_the_right_bytes() {
        let parent = tempfile::tempdir().unwrap();
        let cases = all(Scale(0.002));
        let mut world = World::new();
        cases.iter().for_each(|case| case.prepare(&mut world));
        let stage = Stage::new(Server::start(world).unwrap(), Scratch::new(parent.path()).unwrap());
        let mut measured = 0;
        for case in &cases {
            let page = case.name().starts_with("rand") && case.name().ends_with("page");
            for limit in case.limits() {
                if matches!(limit, Limit::Raw(_)) || page {
                    let sample = case.limit(&stage, *limit).unwrap();
                    assert!(sample.value.is_finite() && sample.value > 0.0, "{}: {sample:?}", case.name());
                    assert_eq!(sample.traffic.requests == 0, *limit == Limit::Local, "{}", case.name());
                    measured += 1;
                }
            }
        }
        assert!(measured > 20, "{measured}");
    }

    #[test]
    fn scales() {
        assert_eq!((Scale(0.5).of(500, 8), Scale(0.001).of(500, 8), Scale(1.0).of(500, 8)), (250, 8, 500));
    }
}
