//! Listing a tree with the attributes of everything in it by `ls -lR`, and looking at many of its names in no order.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::{Case, Done, Limit, Sample, Scale, Stage};
use crate::cleanup::die_with_parent;
use crate::content::World;
use crate::figures::Unit;
use crate::files::{Tree, tree_of_listing};
use crate::goal::Goal;
use crate::mounter::Mounter;
use crate::page_cache::drop_everything;
use crate::raw::Connection;
use crate::server::Conditions;

const DIRECTORIES: u64 = 200;
const ROOT: &str = "tree";
/// Names that are looked at in no order.
const LOOKS: u64 = 2000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Walk,
    WalkAgain,
    Look,
}

#[derive(Debug)]
struct Walk {
    name: &'static str,
    how: How,
    far: bool,
    /// In each directory.
    files: u64,
    /// Names looked at.
    looks: u64,
}

/// All of them.
pub fn cases(scale: Scale) -> impl Iterator<Item = Box<dyn Case>> {
    let (files, looks) = (scale.of(100, 2), scale.of(LOOKS, 20));
    [
        ("walk-cold", How::Walk, false),
        ("walk-20ms", How::Walk, true),
        ("walk-again", How::WalkAgain, false),
        ("stat-20ms", How::Look, true),
    ]
    .into_iter()
    .map(move |(name, how, far)| Box::new(Walk { name, how, far, files, looks }) as _)
}

fn name(directory: u64, file: u64) -> String {
    format!("sample-{directory:03}/read-{file:04}.txt")
}

impl Walk {
    /// Different sizes, so that attributes cannot be confused unseen.
    fn size(&self, directory: u64, file: u64) -> u64 {
        directory * self.files + file
    }

    fn objects(&self) -> impl Iterator<Item = (String, u64)> {
        (0..DIRECTORIES).flat_map(move |directory| {
            (0..self.files).map(move |file| (name(directory, file), self.size(directory, file)))
        })
    }

    fn expected(&self) -> Tree {
        let bytes = self.objects().map(|(_, size)| size).sum();
        Tree { files: DIRECTORIES * self.files, directories: DIRECTORIES, bytes }
    }

    fn done(&self) -> Done {
        let operations = if self.how == How::Look { self.looks } else { DIRECTORIES * self.files };
        Done { operations, bytes: 0, seconds: None }
    }

    /// What `ls -lR` prints, kept for comparing later.
    fn list(&self, root: &Path, listing: &mut String) -> anyhow::Result<Done> {
        *listing = list(root)?;
        Ok(self.done())
    }

    fn check(&self, listing: &str) -> anyhow::Result<()> {
        let (found, expected) = (tree_of_listing(listing), self.expected());
        ensure!(found == expected, "the walk found {found:?} and not {expected:?}");
        Ok(())
    }

    /// Looks at names in no order, each once while there are enough.
    fn look(&self, root: &Path) -> anyhow::Result<Done> {
        let mut random = fastrand::Rng::with_seed(self.looks);
        let mut seen = HashSet::new();
        for _ in 0..self.looks {
            let mut place = (random.u64(0..DIRECTORIES), random.u64(0..self.files));
            while !seen.insert(place) {
                place = (random.u64(0..DIRECTORIES), random.u64(0..self.files));
            }
            let (directory, file) = place;
            let path = root.join(name(directory, file));
            let size = path.symlink_metadata().with_context(|| format!("cannot stat {}", path.display()))?.len();
            let expected = self.size(directory, file);
            ensure!(size == expected, "{} has {size} bytes and not {expected}", path.display());
        }
        Ok(self.done())
    }

    /// The same tree on the local disk. The files have their sizes and no content, which a walk does not look at.
    fn local_tree(&self, stage: &Stage) -> anyhow::Result<std::path::PathBuf> {
        stage.local(ROOT, |root| {
            for directory in 0..DIRECTORIES {
                std::fs::create_dir(root.join(format!("sample-{directory:03}"))).context("cannot make a directory")?;
            }
            self.objects().try_for_each(|(name, size)| {
                let file = File::create_new(root.join(name)).context("cannot make a file")?;
                file.set_len(size).context("cannot make a file")
            })
        })
    }
}

/// Runs `ls -lR`.
fn list(root: &Path) -> anyhow::Result<String> {
    let mut command = Command::new("ls");
    command.arg("-lR").arg(root).env("LC_ALL", "C").stdin(Stdio::null());
    die_with_parent(&mut command);
    let output = command.output().context("cannot run ls")?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "ls ended: {} {said}", output.status);
    String::from_utf8(output.stdout).context("ls printed something that is no text")
}

impl Case for Walk {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        let far = if self.far { super::FAR } else { "" };
        let objects = DIRECTORIES * self.files;
        match self.how {
            How::Walk => format!("ls -lR over {objects} objects in {DIRECTORIES} directories, cold{far}"),
            How::WalkAgain => format!("ls -lR over {objects} objects in {DIRECTORIES} directories, again{far}"),
            How::Look => format!("stat of {} of {objects} objects in no order by one thread, cold{far}", self.looks),
        }
    }

    fn unit(&self) -> Unit {
        Unit::Seconds
    }

    fn conditions(&self) -> Conditions {
        if self.far { Conditions::FAR } else { Conditions::default() }
    }

    fn prepare(&self, world: &mut World) {
        for (name, size) in self.objects() {
            world.add(format!("{ROOT}/{name}"), size);
        }
    }

    fn limits(&self) -> &[Limit] {
        match (self.how, self.far) {
            (How::Walk, false) => &[Limit::Raw(1), Limit::Local],
            (How::WalkAgain, _) => &[Limit::Local],
            _ => &[Limit::Raw(1)],
        }
    }

    fn yardstick(&self) -> &[Limit] {
        if self.far { &[Limit::Raw(1)] } else { &[Limit::Local] }
    }

    fn goals(&self) -> Vec<Goal> {
        match (self.how, self.far) {
            // At most 1.5 times as long.
            (How::Walk, false) => vec![Goal::Share(1.0 / 1.5)],
            (How::Walk, true) => vec![Goal::Figure(1.3), Goal::Requests(25)],
            (How::WalkAgain, _) => vec![Goal::Requests(0)],
            (How::Look, _) => vec![Goal::Figure(1.0)],
        }
    }

    fn limit(&self, stage: &Stage, limit: Limit) -> anyhow::Result<Sample> {
        if limit == Limit::Local {
            let root = self.local_tree(stage)?;
            if self.how == How::Walk {
                drop_everything()?;
            }
            // The program itself and what it looks up are in memory, as they are when it walks a mount.
            let lot = stage.lot()?;
            File::create(lot.cache().join("file")).context("cannot make a file")?;
            list(&lot.cache())?;
            if self.how == How::WalkAgain {
                list(&root)?;
            }
            let mut listing = String::new();
            let sample = stage.measure(self.unit(), None, || self.list(&root, &mut listing))?;
            self.check(&listing)?;
            return Ok(sample);
        }
        // One listing without delimiter, page after page: the fewest requests that tell all names.
        stage.measure(self.unit(), None, || {
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
            Ok(self.done())
        })
    }

    /// Names and sizes are compared always.
    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, _check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let mounted = stage.mount(mounter, &lot)?;
        let root = mounted.path(ROOT);
        if self.how == How::Look {
            return stage.measure(self.unit(), Some(&mounted), || self.look(&root));
        }
        if self.how == How::WalkAgain {
            self.check(&list(&root)?)?;
        }
        let mut listing = String::new();
        let sample = stage.measure(self.unit(), Some(&mounted), || self.list(&root, &mut listing))?;
        self.check(&listing)?;
        Ok(sample)
    }
}
