//! Many small files, each opened, read whole and closed by one of several processes, as a renderer reads its textures.
//!
//! Each process has a share of *neighbours*, as the parts of a split job do. In `small-turns` every eighth file is a process's, as
//! with workers that take the next name from one list: there no process by itself reads in order.

use super::{Case, Done, Limit, Sample, Scale, Stage, State};
use crate::child::{SMALL_FILE, Share, read_files, small_file};
use crate::content::World;
use crate::figures::Unit;
use crate::files::{compare, lay_down};
use crate::goal::Goal;
use crate::mounter::Mounter;
use crate::page_cache::drop_pages;
use crate::raw;
use crate::server::Conditions;

const PROCESSES: u64 = 8;
/// Where they are.
pub(super) const DIRECTORY: &str = "textures";

/// All of them, once.
#[derive(Debug)]
pub(super) struct SmallFiles {
    name: &'static str,
    state: State,
    far: bool,
    in_turns: bool,
    count: u64,
}

/// All of them.
pub fn cases(scale: Scale) -> impl Iterator<Item = Box<dyn Case>> {
    let count = count(scale);
    [
        ("small-cold", State::Cold, false, false),
        ("small-20ms", State::Cold, true, false),
        ("small-turns-20ms", State::Cold, true, true),
        ("small-page", State::Page, false, false),
        ("small-disk", State::Disk, false, false),
        ("small-remount", State::Remounted, false, false),
    ]
    .into_iter()
    .map(move |(name, state, far, in_turns)| Box::new(SmallFiles { name, state, far, in_turns, count }) as _)
}

/// How many there are.
pub(super) fn count(scale: Scale) -> u64 {
    scale.of(2000, 16)
}

/// The name of one.
pub(super) fn key(number: u64) -> String {
    format!("{DIRECTORY}/{}", small_file(number))
}

impl SmallFiles {
    /// Shares of neighbours.
    pub(super) fn neighbours(state: State, scale: Scale) -> Self {
        Self { name: "", state, far: false, in_turns: false, count: count(scale) }
    }

    /// Who reads which.
    pub(super) fn shares(&self) -> Vec<Share> {
        let mut shares = Vec::new();
        for process in 0..PROCESSES {
            let (from, to) = (self.count * process / PROCESSES, self.count * (process + 1) / PROCESSES);
            shares.push(if self.in_turns {
                let count = (self.count - process).div_ceil(PROCESSES);
                Share { first: process, count, step: PROCESSES }
            } else {
                Share { first: from, count: to - from, step: 1 }
            });
        }
        shares
    }

    /// What has been done when all have read theirs.
    pub(super) fn done(&self) -> Done {
        Done { operations: self.count, bytes: self.count * SMALL_FILE, seconds: None }
    }
}

impl Case for SmallFiles {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        let shares = if self.in_turns { "taking turns" } else { "each with its share of neighbours" };
        let far = if self.far { super::FAR } else { "" };
        let state = self.state.about();
        format!(
            "{} files of 64 KiB opened, read and closed by {PROCESSES} processes, {shares}, {state}{far}",
            self.count
        )
    }

    fn unit(&self) -> Unit {
        Unit::Seconds
    }

    fn conditions(&self) -> Conditions {
        if self.far { Conditions::FAR } else { Conditions::default() }
    }

    fn prepare(&self, world: &mut World) {
        for number in 0..self.count {
            world.add(key(number), SMALL_FILE);
        }
    }

    fn limits(&self) -> &[Limit] {
        match (self.state, self.far) {
            (State::Cold, false) => &[Limit::Raw(8)],
            (State::Cold, true) => &[Limit::Raw(8), Limit::Raw(32)],
            _ => &[Limit::Local],
        }
    }

    fn yardstick(&self) -> &[Limit] {
        match self.state {
            State::Cold => &[Limit::Raw(8)],
            _ => &[Limit::Local],
        }
    }

    fn goals(&self) -> Vec<Goal> {
        match self.state {
            State::Cold if self.in_turns => vec![Goal::ObjectRequests(self.count)],
            State::Cold if self.far => vec![Goal::Peers(5.0), Goal::ObjectRequests(self.count)],
            State::Cold => vec![Goal::Peers(2.0), Goal::ObjectRequests(self.count)],
            _ => vec![Goal::ObjectRequests(0)],
        }
    }

    fn limit(&self, stage: &Stage, limit: Limit) -> anyhow::Result<Sample> {
        match limit {
            Limit::Raw(connections) => {
                let get = |file: usize, connection: &mut raw::Connection, body: &mut Vec<u8>| {
                    connection.fetch(&key(u64::try_from(file)?), None, body)
                };
                let count = usize::try_from(self.count)?;
                stage.measure(self.unit(), None, || {
                    raw::share_out(stage.server.port(), connections, count, get)?;
                    Ok(self.done())
                })
            }
            Limit::Local => {
                let root = stage.local(DIRECTORY, |root| {
                    (0..self.count).try_for_each(|number| {
                        let object = stage.server.world().object(&key(number))?;
                        lay_down(&root.join(small_file(number)), stage.server.world(), object)
                    })
                })?;
                match self.state {
                    State::Page => read_files(&root, &self.shares())?,
                    _ => drop_pages(&root)?,
                }
                stage.measure(self.unit(), None, || read_files(&root, &self.shares()).map(|()| self.done()))
            }
            Limit::Daemon | Limit::ReadOnly | Limit::ByHand => anyhow::bail!("{} is no limit of this", limit.name()),
        }
    }

    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let mounted = stage.mount_in_state(mounter, &lot, self.state, |mounted| {
            read_files(&mounted.path(DIRECTORY), &self.shares())
        })?;
        let root = mounted.path(DIRECTORY);
        let work = || read_files(&root, &self.shares()).map(|()| self.done());
        let sample = stage.measure(self.unit(), Some(&mounted), work)?;
        if check {
            for number in 0..self.count {
                let object = stage.server.world().object(&key(number))?;
                compare(&mounted.path(&key(number)), stage.server.world(), object)?;
            }
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_in_one_share() {
        for count in [16, 17, 23, 2000] {
            for in_turns in [false, true] {
                let case = SmallFiles { name: "", state: State::Cold, far: false, in_turns, count };
                let mut all: Vec<u64> = case.shares().into_iter().flat_map(Share::numbers).collect();
                all.sort_unstable();
                assert_eq!(all, (0..count).collect::<Vec<_>>());
            }
        }
    }
}
