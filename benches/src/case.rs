//! What is measured. A case is one file in this folder and one line in [`all`].

mod random;
mod sequential;
mod small_files;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::Context as _;

use crate::cleanup::Scratch;
use crate::content::World;
use crate::figures::Unit;
use crate::mounter::{Mounted, Mounter, Place};
use crate::server::{Conditions, Server, Traffic};

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

    /// What bounds every mount: each is measured in the same run, and the best of them is what ratios refer to.
    fn limits(&self) -> &[Limit];

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
}

/// A yardstick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Plain HTTP with this many connections at once.
    Raw(usize),
    /// The same files on the local disk.
    Local,
}

impl Limit {
    /// Its name in tables.
    pub fn name(self) -> String {
        match self {
            Self::Raw(1) => "raw HTTP, 1 connection".to_owned(),
            Self::Raw(connections) => format!("raw HTTP, {connections} connections"),
            Self::Local => "local disk".to_owned(),
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// In the case's unit.
    pub value: f64,
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
        ((crate::figures::float(whole) * self.0).round() as u64).max(least)
    }
}

/// All cases, in the order they run.
pub fn all(scale: Scale) -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    cases.extend(sequential::cases(scale));
    cases.push(Box::new(random::RandomCold::new(scale)));
    cases.extend(small_files::cases(scale));
    cases.extend(walk::cases(scale));
    cases
}

/// What cases work with.
#[derive(Debug)]
pub struct Stage {
    /// The store.
    pub server: Server,
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
        Self { server, scratch, next: AtomicU32::new(0) }
    }

    /// New directories, with an empty cache.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn lot(&self) -> anyhow::Result<Lot> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let root = self.scratch.path().join(number.to_string());
        for name in ["cache", "mnt", "work"] {
            std::fs::create_dir_all(root.join(name)).context("cannot make a directory")?;
        }
        Ok(Lot { root })
    }

    /// Mounts.
    ///
    /// # Errors
    /// See [`Mounted::start`].
    pub fn mount(&self, mounter: &dyn Mounter, lot: &Lot) -> anyhow::Result<Mounted> {
        let (target, cache, work) = (lot.root.join("mnt"), lot.cache(), lot.root.join("work"));
        Mounted::start(mounter, &Place { target: &target, cache: &cache, work: &work, port: self.server.port() })
    }

    /// A local copy of an object, made when first asked for.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn local_copy(&self, key: &str) -> anyhow::Result<PathBuf> {
        let path = self.scratch.path().join("local").join(key);
        if !path.exists() {
            let directory = path.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(directory).context("cannot make a directory")?;
            crate::files::lay_down(&path, self.server.world(), self.server.world().object(key)?)?;
        }
        Ok(path)
    }

    /// Runs `work` and takes the time, the store's traffic and what the mount's program used. `value` makes the figure out of
    /// seconds.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn measure(
        &self,
        mounted: Option<&Mounted>,
        work: impl FnOnce() -> anyhow::Result<()>,
        value: impl FnOnce(f64) -> f64,
    ) -> anyhow::Result<Sample> {
        let (traffic, usage) = (self.server.traffic(), mounted.map(Mounted::usage));
        let begun = Instant::now();
        work()?;
        let seconds = begun.elapsed().as_secs_f64();
        let after = mounted.map(Mounted::usage);
        Ok(Sample {
            value: value(seconds),
            traffic: self.server.traffic().since(traffic),
            cpu: usage.zip(after).map(|(before, after)| after.cpu - before.cpu),
            peak_memory: after.map(|usage| usage.peak_memory),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_at_least_one_limit() {
        let cases = all(Scale(0.01));
        let names: std::collections::BTreeSet<_> = cases.iter().map(|case| case.name()).collect();
        assert_eq!(names.len(), cases.len());
        assert!(cases.iter().all(|case| !case.limits().is_empty()));
    }

    #[test]
    fn every_limit_can_be_measured_and_brings_the_right_bytes() {
        let parent = tempfile::tempdir().unwrap();
        let cases = all(Scale(0.004));
        let mut world = World::new();
        cases.iter().for_each(|case| case.prepare(&mut world));
        let stage = Stage::new(Server::start(world).unwrap(), Scratch::new(parent.path()).unwrap());
        for case in &cases {
            for limit in case.limits() {
                let sample = case.limit(&stage, *limit).unwrap();
                assert!(sample.value.is_finite() && sample.value > 0.0, "{}: {sample:?}", case.name());
                assert_eq!(sample.traffic.requests == 0, *limit == Limit::Local, "{}", case.name());
            }
        }
    }

    #[test]
    fn scales() {
        assert_eq!((Scale(0.5).of(500, 8), Scale(0.001).of(500, 8), Scale(1.0).of(500, 8)), (250, 8, 500));
    }
}
