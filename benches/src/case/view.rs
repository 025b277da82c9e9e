//! The writable view: what is the store's and was not changed, beside the same mount when nobody may write to it; and what was written
//! here, beside the disk where it is.
//!
//! Listings are left out: a view has to read a directory to its end before it can show the first name.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::random::Random;
use super::sequential::KEY;
use super::small_files::{DIRECTORY, SmallFiles, count, key};
use super::{Case, Done, Limit, Sample, Scale, Stage, State, settled};
use crate::child::{SMALL_FILE, read_files};
use crate::content::World;
use crate::figures::Unit;
use crate::files::{compare, lay_down, open, read_through};
use crate::goal::Goal;
use crate::mounter::Mounter;
use crate::page_cache::drop_pages;

/// How much of the yardstick a view must reach.
const SHARE: f64 = 0.9;

/// Where in the view files of its own are, since the store's have the same names.
const OWN: &str = "written-here";

#[derive(Debug)]
enum Work {
    /// Reads one large file in order.
    Whole(u64),
    /// Reads 4 KiB at random.
    Random(Random),
    /// Reads small files.
    Small(SmallFiles),
    /// Writes one large file and has it written to the disk.
    Write(u64),
    /// Makes small files.
    Create(u64),
}

#[derive(Debug)]
struct View {
    name: &'static str,
    /// Whether the files were written in the view.
    own: bool,
    state: State,
    work: Work,
}

/// All of them.
pub fn cases(scale: Scale) -> impl Iterator<Item = Box<dyn Case>> {
    let size = scale.of(1 << 30, 2 << 20);
    let whole = || Work::Whole(size);
    let random = |state, jobs, count| Work::Random(Random::small(state, jobs, count, scale));
    let small = |state| Work::Small(SmallFiles::neighbours(state, scale));
    [
        ("view-seq-cold", false, State::Cold, whole()),
        ("view-seq-disk", false, State::Disk, whole()),
        ("view-seq-page", false, State::Page, whole()),
        ("view-4k-j8-cold", false, State::Cold, random(State::Cold, 8, 12_000)),
        ("view-4k-j8-disk", false, State::Disk, random(State::Disk, 8, 20_000)),
        ("view-4k-j1-page", false, State::Page, random(State::Page, 1, 200_000)),
        ("view-4k-j8-page", false, State::Page, random(State::Page, 8, 400_000)),
        ("view-small-cold", false, State::Cold, small(State::Cold)),
        ("view-small-disk", false, State::Disk, small(State::Disk)),
        ("view-small-page", false, State::Page, small(State::Page)),
        ("own-write", true, State::Cold, Work::Write(size)),
        ("own-create", true, State::Cold, Work::Create(count(scale))),
        ("own-seq-disk", true, State::Disk, whole()),
        ("own-seq-page", true, State::Page, whole()),
        ("own-4k-j8-disk", true, State::Disk, random(State::Disk, 8, 20_000)),
        ("own-4k-j1-page", true, State::Page, random(State::Page, 1, 200_000)),
        ("own-4k-j8-page", true, State::Page, random(State::Page, 8, 400_000)),
        ("own-small-disk", true, State::Disk, small(State::Disk)),
        ("own-small-page", true, State::Page, small(State::Page)),
    ]
    .into_iter()
    .map(|(name, own, state, work)| Box::new(View { name, own, state, work }) as _)
}

impl View {
    /// The objects it is about.
    fn objects(&self) -> Vec<(String, u64)> {
        match &self.work {
            Work::Whole(size) | Work::Write(size) => vec![(KEY.to_owned(), *size)],
            Work::Random(random) => {
                let (key, size) = random.object();
                vec![(key.to_owned(), size)]
            }
            Work::Small(files) => files.shares().into_iter().flat_map(|share| share.numbers()).map(small).collect(),
            Work::Create(count) => (0..*count).map(small).collect(),
        }
    }

    /// Writes the files below a directory.
    fn lay(&self, root: &Path, world: &World) -> anyhow::Result<()> {
        for (key, _) in self.objects() {
            let path = root.join(&key);
            let folder = path.parent().context("objects of cases have a directory")?;
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            lay_down(&path, world, world.object(&key)?)?;
        }
        Ok(())
    }

    /// Does what is measured with the files below a directory.
    fn work(&self, root: &Path, world: &World) -> anyhow::Result<Done> {
        match &self.work {
            Work::Whole(size) => {
                read_through(&root.join(KEY))?;
                Ok(Done { operations: 1, bytes: *size, seconds: None })
            }
            Work::Random(random) => random.work(&root.join(random.object().0), world),
            Work::Small(files) => read_files(&root.join(DIRECTORY), &files.shares()).map(|()| files.done()),
            Work::Write(size) => {
                self.lay(root, world)?;
                open(&root.join(KEY))?.sync_all().context("cannot write to the disk")?;
                Ok(Done { operations: 1, bytes: *size, seconds: None })
            }
            Work::Create(count) => {
                self.lay(root, world)?;
                Ok(Done { operations: *count, bytes: *count * SMALL_FILE, seconds: None })
            }
        }
    }

    /// Reads all that there is to read.
    fn read_all(&self, root: &Path) -> anyhow::Result<()> {
        self.objects().iter().try_for_each(|(key, _)| read_through(&root.join(key)).map(drop))
    }

    fn makes(&self) -> bool {
        matches!(self.work, Work::Write(_) | Work::Create(_))
    }

    fn check(&self, root: &Path, world: &World) -> anyhow::Result<()> {
        // Random reads have been compared where there is nothing that holds all of it.
        if self.state == State::Cold && matches!(self.work, Work::Random(_)) {
            return Ok(());
        }
        self.objects().iter().try_for_each(|(key, _)| compare(&root.join(key), world, world.object(key)?))
    }
}

fn small(number: u64) -> (String, u64) {
    (key(number), SMALL_FILE)
}

impl Case for View {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        let files = if self.own { "written in the view" } else { "of the store, in a view" };
        let state = match self.state {
            State::Disk if self.own => "page cache dropped",
            state => state.about(),
        };
        match &self.work {
            Work::Whole(size) => format!("a file of {} MiB {files}, read by 1 MiB in order, {state}", size >> 20),
            Work::Random(random) => {
                format!("4 KiB anywhere in a file of {} MiB {files}, {state}", random.object().1 >> 20)
            }
            Work::Small(files_read) => {
                let count = files_read.done().operations;
                format!("{count} files of 64 KiB {files}, opened, read and closed by 8 processes, {state}")
            }
            Work::Write(size) => format!("a file of {} MiB written in the view, and to the disk", size >> 20),
            Work::Create(count) => format!("{count} files of 64 KiB made in the view by one thread"),
        }
    }

    fn unit(&self) -> Unit {
        match self.work {
            Work::Whole(_) | Work::Write(_) => Unit::GibPerSecond,
            Work::Random(_) => Unit::PerSecond,
            Work::Small(_) | Work::Create(_) => Unit::Seconds,
        }
    }

    fn prepare(&self, world: &mut World) {
        self.objects().into_iter().for_each(|(key, size)| world.add(key, size));
    }

    fn limits(&self) -> &[Limit] {
        if self.own { &[Limit::Local] } else { &[Limit::ReadOnly] }
    }

    fn yardstick(&self) -> &[Limit] {
        self.limits()
    }

    fn goals(&self) -> Vec<Goal> {
        vec![Goal::Share(SHARE)]
    }

    fn ours_only(&self) -> bool {
        true
    }

    fn limit(&self, stage: &Stage, limit: Limit) -> anyhow::Result<Sample> {
        let world = stage.server.world();
        match limit {
            Limit::ReadOnly => {
                let lot = stage.lot()?;
                let fill = |mounted: &crate::mounter::Mounted| self.read_all(&mounted.path(""));
                let mounted = stage.mount_in_state(stage.ours()?, &lot, self.state, fill)?;
                stage.measure(self.unit(), Some(&mounted), || self.work(&mounted.path(""), world))
            }
            Limit::Local if self.makes() => {
                let lot = stage.lot()?;
                let root = lot.cache().join(OWN);
                nix::unistd::sync();
                stage.measure(self.unit(), None, || self.work(&root, world))
            }
            Limit::Local => {
                let lot = stage.lot()?;
                let root: PathBuf = lot.cache().join(OWN);
                self.lay(&root, world)?;
                // What is still being written to the disk would be in the way of one of the two.
                nix::unistd::sync();
                match self.state {
                    State::Page => self.read_all(&root)?,
                    _ => drop_pages(&root)?,
                }
                stage.measure(self.unit(), None, || self.work(&root, world))
            }
            Limit::Raw(_) | Limit::Daemon | Limit::ByHand => anyhow::bail!("{} is no limit of a view", limit.name()),
        }
    }

    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, check: bool) -> anyhow::Result<Sample> {
        let (lot, world) = (stage.lot()?, stage.server.world());
        let mounted = stage.mount_writable(mounter, &lot)?;
        let root = if self.own { mounted.path(OWN) } else { mounted.path("") };
        if self.makes() {
            nix::unistd::sync();
        } else {
            if self.own {
                self.lay(&root, world)?;
                nix::unistd::sync();
            }
            settled(&mounted, &lot, self.state, |_| self.read_all(&root))?;
        }
        let sample = stage.measure(self.unit(), Some(&mounted), || self.work(&root, world))?;
        if check {
            self.check(&root, world)?;
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_what_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let scale = Scale(0.002);
        for view in [Work::Write(3 << 20), Work::Create(20), Work::Whole(2 << 20)] {
            let view = View { name: "", own: true, state: State::Page, work: view };
            let mut world = World::new();
            view.prepare(&mut world);
            let root = directory.path().join(format!("{:?}", view.work));
            if !view.makes() {
                view.lay(&root, &world).unwrap();
            }
            let done = view.work(&root, &world).unwrap();
            assert!(done.bytes > 1 << 20);
            view.check(&root, &world).unwrap();
            view.read_all(&root).unwrap();
        }
        assert_eq!(
            View {
                name: "",
                own: false,
                state: State::Cold,
                work: Work::Small(SmallFiles::neighbours(State::Cold, scale))
            }
            .objects()
            .len(),
            16
        );
    }
}
