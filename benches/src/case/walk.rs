//! Listing a tree with the attributes of everything in it, as `ls -lR`, `find -size` and every build tool do.

use std::time::Duration;

use anyhow::ensure;

use super::{Case, Limit, Sample, Scale, Stage};
use crate::content::World;
use crate::figures::Unit;
use crate::files::{Tree, walk};
use crate::mounter::Mounter;
use crate::raw::Connection;
use crate::server::Conditions;

const DIRECTORIES: u64 = 50;
const ROOT: &str = "tree";

#[derive(Debug)]
struct Walk {
    /// In each directory.
    files: u64,
    far: bool,
}

/// With the store near, and 20 ms away.
pub fn cases(scale: Scale) -> impl Iterator<Item = Box<dyn Case>> {
    let files = scale.of(100, 2);
    [false, true].into_iter().map(move |far| Box::new(Walk { files, far }) as _)
}

impl Walk {
    /// Different sizes, so that attributes cannot be confused unseen.
    fn objects(&self) -> impl Iterator<Item = (String, u64)> {
        let files = self.files;
        (0..DIRECTORIES).flat_map(move |directory| {
            (0..files)
                .map(move |file| (format!("{ROOT}/sample-{directory:03}/read-{file:04}.txt"), directory * files + file))
        })
    }

    fn expected(&self) -> Tree {
        let bytes = self.objects().map(|(_, size)| size).sum();
        Tree { files: DIRECTORIES * self.files, directories: DIRECTORIES, bytes }
    }
}

impl Case for Walk {
    fn name(&self) -> &'static str {
        if self.far { "walk-20ms" } else { "walk-cold" }
    }

    fn about(&self) -> String {
        let far = if self.far { ", 20 ms per request" } else { "" };
        format!("listing and stat of {} objects in {DIRECTORIES} directories, cold{far}", DIRECTORIES * self.files)
    }

    fn unit(&self) -> Unit {
        Unit::Seconds
    }

    fn conditions(&self) -> Conditions {
        let latency = Duration::from_millis(if self.far { 20 } else { 0 });
        Conditions { latency, bandwidth: 0 }
    }

    fn prepare(&self, world: &mut World) {
        for (key, size) in self.objects() {
            world.add(key, size);
        }
    }

    fn limits(&self) -> &[Limit] {
        &[Limit::Raw(1)]
    }

    /// One listing without delimiter, page after page: the fewest requests that tell all names.
    fn limit(&self, stage: &Stage, _limit: Limit) -> anyhow::Result<Sample> {
        let work = || {
            let mut connection = Connection::open(stage.server.port())?;
            let (mut names, mut after, mut body) = (0, String::new(), Vec::new());
            loop {
                connection.fetch(&format!("?list-type=2&prefix={ROOT}/&start-after={after}"), None, &mut body)?;
                let text = std::str::from_utf8(&body)?;
                names += text.matches("<Key>").count();
                let Some((_, rest)) = text.split_once("<NextContinuationToken>") else { break };
                after = rest.split('<').next().unwrap_or_default().to_owned();
            }
            ensure!(u64::try_from(names)? == DIRECTORIES * self.files, "the listing had {names} names");
            Ok(())
        };
        stage.measure(None, work, std::convert::identity)
    }

    /// Names and sizes are compared always.
    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, _check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let mounted = stage.mount(mounter, &lot)?;
        let mut found = Tree::default();
        let work = || {
            found = walk(&mounted.path(ROOT))?;
            Ok(())
        };
        let sample = stage.measure(Some(&mounted), work, std::convert::identity)?;
        let expected = self.expected();
        ensure!(found == expected, "the walk found {found:?} and not {expected:?}");
        Ok(sample)
    }
}
