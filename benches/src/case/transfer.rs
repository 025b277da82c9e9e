//! Whole directories to the store and from it: one large file, or many small ones in some directories.
//!
//! What is sent lies in the page cache, as what a task has just written does. What is fetched goes to a file system in memory: the
//! programs differ by what they do, and a disk that takes less than the wire brings would make them all alike.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::{Case, Done, Limit, Sample, Scale, Stage};
use crate::cleanup::Served;
use crate::content::{Object, World};
use crate::copier::{Copier, Errand, Way, run};
use crate::disk;
use crate::figures::Unit;
use crate::files::{compare, lay_down, read_through};
use crate::goal::Goal;
use crate::mounter::Mounter;
use crate::raw;
use crate::server::Conditions;
use crate::{COPIER, GIVEN_UP};

/// How large the large file is.
const LARGE: u64 = 4 << 30;
/// How large each small file is.
const SMALL: u64 = 64 << 10;
/// In how many directories those are.
const DIRECTORIES: u64 = 20;
/// The pieces in which the limit carries the large file.
const PIECE: u64 = 8 << 20;

/// See the module.
#[derive(Debug)]
struct Transfer {
    name: &'static str,
    way: Way,
    small: bool,
    far: bool,
    /// How many files, of which length.
    files: (u64, u64),
}

/// All of them.
pub fn cases(scale: Scale) -> impl Iterator<Item = Box<dyn Case>> {
    let large = (1, scale.of(LARGE, 32 << 20));
    let small = (scale.of(10_000, 64), SMALL);
    [
        ("push-large", Way::Push, false, false),
        ("push-large-20ms", Way::Push, false, true),
        ("push-small", Way::Push, true, false),
        ("push-small-20ms", Way::Push, true, true),
        ("pull-large", Way::Pull, false, false),
        ("pull-large-20ms", Way::Pull, false, true),
        ("pull-small", Way::Pull, true, false),
        ("pull-small-20ms", Way::Pull, true, true),
    ]
    .into_iter()
    .map(move |(name, way, is_small, far)| {
        Box::new(Transfer { name, way, small: is_small, far, files: if is_small { small } else { large } }) as _
    })
}

impl Transfer {
    /// Where the files are, in the store and locally.
    fn directory(&self) -> &'static str {
        if self.small { "transfer/small" } else { "transfer/large" }
    }

    /// The names of all files below that.
    fn names(&self) -> impl Iterator<Item = String> {
        let small = self.small;
        (0..self.files.0).map(move |number| match small {
            true => format!("{:02}/part-{number:05}.bin", number % DIRECTORIES),
            false => "whole.bin".to_owned(),
        })
    }

    /// The object of a name.
    fn object(&self, stage: &Stage, name: &str) -> anyhow::Result<Object> {
        stage.server.world().object(&format!("{}/{name}", self.directory()))
    }

    fn done(&self) -> Done {
        Done { operations: self.files.0, bytes: self.files.0 * self.files.1, seconds: None }
    }

    /// The files to be sent, in the page cache.
    fn source(&self, stage: &Stage) -> anyhow::Result<PathBuf> {
        let root = stage.local(self.directory(), |root| {
            for name in self.names() {
                let path = root.join(&name);
                std::fs::create_dir_all(path.parent().unwrap_or(root)).context("cannot make a directory")?;
                lay_down(&path, stage.server.world(), self.object(stage, &name)?)?;
            }
            // So that no program has the disk busy with what was written here.
            nix::unistd::sync();
            Ok(())
        })?;
        for name in self.names() {
            read_through(&root.join(name))?;
        }
        Ok(root)
    }

    /// The limit: the same bytes by plain HTTP, from memory and to memory.
    fn raw(&self, stage: &Stage, connections: usize) -> anyhow::Result<Sample> {
        let world = stage.server.world();
        let (count, size) = self.files;
        let port = stage.server.port();
        let names: Vec<String> = self.names().collect();
        let pieces = usize::try_from(if self.small { count } else { size.div_ceil(PIECE) })?;
        let from = |piece: usize| u64::try_from(piece).unwrap_or(u64::MAX) * PIECE;
        match self.way {
            Way::Pull => stage.measure(self.unit(), None, || {
                raw::share_out(port, connections, pieces, |piece, connection, body| match names.get(piece) {
                    Some(name) if self.small => connection.fetch(&format!("{}/{name}", self.directory()), None, body),
                    _ => {
                        let range = from(piece)..size.min(from(piece) + PIECE);
                        connection.fetch(&format!("{}/{}", self.directory(), names[0]), Some(range), body)
                    }
                })?;
                Ok(self.done())
            }),
            Way::Push => {
                let sample = stage.measure(self.unit(), None, || {
                    raw::share_out(port, connections, pieces, |piece, connection, _| {
                        let object = self.object(stage, names.get(piece).unwrap_or(&names[0]))?;
                        let length = if self.small { size } else { size.min(from(piece) + PIECE) - from(piece) };
                        connection.put(&format!("raw/{piece}"), world, object, length)
                    })?;
                    Ok(self.done())
                });
                stage.server.forget_uploads();
                sample
            }
        }
    }
}

impl Case for Transfer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        let what = match self.files {
            (1, size) => format!("one file of {} MiB", size >> 20),
            (count, size) => format!("{count} files of {} KiB in {DIRECTORIES} directories", size >> 10),
        };
        let way = match self.way {
            Way::Push => "from the page cache to the store",
            Way::Pull => "from the store to a file system in memory",
        };
        format!("{what} {way}{}", if self.far { super::FAR } else { "" })
    }

    fn unit(&self) -> Unit {
        Unit::GibPerSecond
    }

    fn conditions(&self) -> Conditions {
        if self.far { Conditions::FAR } else { Conditions::default() }
    }

    fn prepare(&self, world: &mut World) {
        for name in self.names() {
            world.add_summed(format!("{}/{name}", self.directory()), self.files.1);
        }
    }

    fn limits(&self) -> &[Limit] {
        match (self.small, self.far) {
            (_, false) => &[Limit::Raw(8)],
            (false, true) => &[Limit::Raw(32)],
            (true, true) => &[Limit::Raw(128)],
        }
    }

    fn yardstick(&self) -> &[Limit] {
        self.limits()
    }

    fn goals(&self) -> Vec<Goal> {
        vec![Goal::Peers(1.2), Goal::PeersCpu]
    }

    fn ours(&self) -> &'static str {
        COPIER
    }

    fn limit(&self, stage: &Stage, limit: Limit) -> anyhow::Result<Sample> {
        match limit {
            Limit::Raw(connections) => self.raw(stage, connections),
            _ => anyhow::bail!("{} is no limit of this", limit.name()),
        }
    }

    fn mounted(&self, _stage: &Stage, mounter: &dyn Mounter, _check: bool) -> anyhow::Result<Sample> {
        anyhow::bail!("{} copies nothing", mounter.name())
    }

    fn copied(&self, stage: &Stage, copier: &dyn Copier, check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let place = stage.place(&lot, None);
        let memory;
        let (directory, prefix) = match self.way {
            Way::Push => (self.source(stage)?, "arrived".to_owned()),
            Way::Pull => {
                memory = Memory::mount(&place.target)?;
                (memory.path.join("files"), self.directory().to_owned())
            }
        };
        let errand = Errand { way: self.way, directory, prefix, many: self.small, work: place.work, port: place.port };
        let sample = stage.measure(self.unit(), None, || run(copier, &errand, GIVEN_UP).map(|()| self.done()));
        let expected = self.names().map(|name| Ok((name.clone(), self.object(stage, &name)?)));
        let expected: Vec<(String, Object)> = expected.collect::<anyhow::Result<_>>()?;
        match self.way {
            Way::Push => {
                let keys = expected.into_iter().map(|(name, object)| (format!("{}/{name}", errand.prefix), object));
                // Also after a failure, so that nothing of it is left for the next one.
                let judged = stage.server.judge_uploads(&keys.collect::<Vec<_>>());
                sample.and_then(|sample| judged.map(|()| sample))
            }
            Way::Pull => {
                let sample = sample?;
                if check {
                    verify(stage, &errand.directory, &expected)?;
                }
                Ok(sample)
            }
        }
    }
}

/// Compares all files.
fn verify(stage: &Stage, directory: &Path, expected: &[(String, Object)]) -> anyhow::Result<()> {
    for (name, object) in expected {
        compare(&directory.join(name), stage.server.world(), *object)?;
    }
    Ok(())
}

/// A file system in memory; gone when dropped.
struct Memory {
    path: PathBuf,
    _mount: crate::cleanup::Starting,
}

impl Memory {
    fn mount(at: &Path) -> anyhow::Result<Self> {
        let mount = Served::announce(at)?;
        disk::run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=80%", "tmpfs"]).arg(at))?;
        ensure!(crate::machine::file_system(at) == "tmpfs", "nothing was mounted at {}", at.display());
        Ok(Self { path: at.to_owned(), _mount: mount })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spread_and_each_is_one() {
        for case in cases(Scale(0.01)) {
            let mut world = World::new();
            case.prepare(&mut world);
            let expected = if case.name().contains("small") { 100 } else { 1 };
            assert_eq!(world.objects().len(), expected, "{}", case.name());
            assert!(world.objects().keys().all(|key| world.sum(key).is_some()));
        }
    }
}
