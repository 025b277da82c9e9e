//! What a task sees: a plan of mounts for its private mount namespace.
//!
//! Pure: it looks at the host only through [`Host`] and does nothing. The shim carries the steps out, in their order,
//! inside the new namespace, so nothing here is ever visible outside of it.
//!
//! Every mapping has a *target*, the path the task uses. Targets are placed from the shallowest to the deepest:
//!
//! - Where the host has a fitting mount point, the mapping is simply mounted over it.
//! - Where components are missing, the topmost missing one is made on the host (the only thing a task ever leaves
//!   there, and it is removed again) and a fresh *layer*, a directory on the scratch disk, is bound to it. Everything
//!   deeper is made inside the layer. So parallel instances never meet, and hard links between two outputs under one
//!   made-up parent work because it is one mount.
//! - A single file wanted in a directory that the host has is put into an overlay over that directory: the task sees
//!   what the host has, and what it writes there is its own.
//! - An input that is writable, or that something else is mounted inside of, is an overlay over the frozen mount. Its
//!   upper directory holds exactly what this attempt wrote, which is also how an output inside an input is found again.
//!
//! - A network file system is bound as it is, never through an overlay: what the task writes there is meant to arrive. Nothing
//!   else can be mapped inside of it, because the agent would have to make something there to mount over, and outputs inside
//!   of it are refused: they are there already, among files that are not this attempt's.
//!
//! Each output is answered with the path at which the *host* finds it once the namespace is gone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A directory or anything that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
}

/// What the plan needs to know of the machine.
pub trait Host {
    /// `path` with the symbolic links of its existing ancestors resolved.
    fn resolve(&self, path: &Path) -> PathBuf;
    /// What is at `path`, if anything.
    fn kind(&self, path: &Path) -> Option<Kind>;
}

/// An input, already mounted somewhere on the host.
#[derive(Debug, Clone)]
pub struct InputView {
    /// Where it is mounted: a directory, or one file.
    pub source: PathBuf,
    /// Where the task wants it.
    pub target: PathBuf,
    /// Which of the two it is.
    pub kind: Kind,
    /// Whether the task may change it locally.
    pub writable: bool,
}

/// A network file system, already mounted somewhere on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkView {
    /// Where it is mounted.
    pub source: PathBuf,
    /// Where the task wants it.
    pub target: PathBuf,
    /// Whether the task may write to it.
    pub writable: bool,
}

/// All that a task is to see.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// A directory of this attempt's own on the scratch disk, for layers and uppers.
    pub scratch: &'a Path,
    /// The working directory on the scratch disk and the path the task knows it by.
    pub workdir: (&'a Path, &'a Path),
    /// What it reads.
    pub inputs: &'a [InputView],
    /// The network file systems it uses.
    pub networks: &'a [NetworkView],
    /// What it leaves behind.
    pub outputs: &'a [(PathBuf, Kind)],
    /// Whether the host is a container's image: nothing can be mounted over a part of its files but what an engine mounts there.
    pub in_image: bool,
}

/// One step in the new namespace. The order matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Makes a directory with its parents.
    MakeDirectory {
        /// As the task sees it.
        path: PathBuf,
    },
    /// Makes an empty file, and its parents, to mount over.
    MakeFile {
        /// As the task sees it.
        path: PathBuf,
    },
    /// Shows `source` at `target`.
    Bind {
        /// On the host.
        source: PathBuf,
        /// As the task sees it.
        target: PathBuf,
        /// Whether the task may only read.
        read_only: bool,
    },
    /// Mounts an overlay. `lower` absent means what is at `target` now, with everything mounted below it kept in sight.
    Overlay {
        /// What shows through.
        lower: Option<PathBuf>,
        /// Receives what is written.
        upper: PathBuf,
        /// The kernel's own, beside the upper.
        work: PathBuf,
        /// As the task sees it.
        target: PathBuf,
        /// Whether the upper must hold whole files, because outputs are read from it.
        whole_files: bool,
    },
    /// Makes a mount read-only after what belongs inside of it has been put there.
    Seal {
        /// As the task sees it.
        target: PathBuf,
    },
}

/// The plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Mount points to be made on the host first, and removed when no instance uses them any more. In an image: all places at which
    /// the engine has to mount something.
    pub mount_points: Vec<(PathBuf, Kind)>,
    /// Directories to be made on the scratch disk first.
    pub directories: Vec<PathBuf>,
    /// What the shim does in the new namespace.
    pub steps: Vec<Step>,
    /// For each output, in the order given, where the host finds it.
    pub outputs: Vec<PathBuf>,
    /// Outputs that are written to the image's own files, which have to be brought from there when the program has ended.
    pub fetched: Vec<Fetched>,
}

/// A file that a program leaves among the files of its container, and not in anything mounted there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// In the container.
    pub source: PathBuf,
    /// Where it is brought to, on the host.
    pub target: PathBuf,
    /// Whether the image has such a file by itself: then only one that was changed is an output.
    pub was_there: bool,
}

/// Why a task's mappings cannot all be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// A mount point is there, but of the other kind.
    #[error(
        "{} cannot be a {}: this machine has a {} of that name; map to another path",
        target.display(), name(*.wanted), name(*.found)
    )]
    WrongKind {
        /// The path wanted.
        target: PathBuf,
        /// What the mapping is.
        wanted: Kind,
        /// What is there.
        found: Kind,
    },
    /// A path leads through something that is a file.
    #[error("{} cannot be reached: {} is a file", target.display(), file.display())]
    ThroughFile {
        /// The path wanted.
        target: PathBuf,
        /// The file in its way.
        file: PathBuf,
    },
    /// Something is wanted inside of what can only be read.
    #[error("{} cannot be mapped: {} is mapped read-only there; map them to separate paths", target.display(), cover.display())]
    Covered {
        /// The path wanted.
        target: PathBuf,
        /// What it lies in.
        cover: PathBuf,
    },
    /// Something is wanted inside of a network file system.
    #[error(
        "{} cannot be mapped: it lies in {}, which is a network file system, and nothing is made there to mount over; map them to \
         separate paths",
        target.display(), network.display()
    )]
    InsideNetwork {
        /// The path wanted.
        target: PathBuf,
        /// Where the network file system is.
        network: PathBuf,
    },
    /// An output lies in a network file system.
    #[error(
        "output {} lies in {}, which is a network file system: what is written there stays there and is not uploaded; let the program \
         write what is to be uploaded to another directory, such as /home/output",
        target.display(), network.display()
    )]
    OutputInNetwork {
        /// The output.
        target: PathBuf,
        /// Where the network file system is.
        network: PathBuf,
    },
    /// A file directly below `/` cannot be told from another instance's.
    #[error("output {}: files directly in / cannot be kept apart from those of other instances; let the program write to a directory, such as /home/output", target.display())]
    OutputInRoot {
        /// The output.
        target: PathBuf,
    },
    /// An output is a file that is mapped as a read-only input.
    #[error("output {} is also a read-only input; set WriteSupport for it, or write to another path", target.display())]
    OutputIsReadOnlyInput {
        /// The output.
        target: PathBuf,
    },
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => "directory",
        Kind::File => "file",
    }
}

/// Something mounted in the namespace.
struct Cover {
    at: PathBuf,
    kind: Kind,
    /// The directory (or file) on the host that receives what the task writes below `at`; none when it cannot write, or when
    /// that is a network file system.
    behind: Option<PathBuf>,
    network: bool,
}

struct Planner<'a> {
    host: &'a dyn Host,
    scratch: &'a Path,
    in_image: bool,
    covers: Vec<Cover>,
    layers: usize,
    view: View,
}

/// Plans what the task of `request` sees.
///
/// # Errors
/// When two mappings, or a mapping and the host, cannot both be had.
pub fn plan(request: &Request<'_>, host: &dyn Host) -> Result<View, ViewError> {
    let Request { scratch, in_image, .. } = *request;
    let mut planner = Planner { host, scratch, in_image, covers: Vec::new(), layers: 0, view: View::default() };
    planner.view.outputs = vec![PathBuf::new(); request.outputs.len()];

    enum Item<'a> {
        Workdir,
        Input(&'a InputView),
        Network(&'a NetworkView),
        Output(usize, Kind),
    }
    let mut items = vec![(host.resolve(request.workdir.1), Item::Workdir)];
    items.extend(request.inputs.iter().map(|input| (host.resolve(&input.target), Item::Input(input))));
    items.extend(request.networks.iter().map(|network| (host.resolve(&network.target), Item::Network(network))));
    let outputs = request.outputs.iter().enumerate();
    items.extend(outputs.map(|(index, (target, kind))| (host.resolve(target), Item::Output(index, *kind))));
    // Parents first. The sort is stable: of an input and an output at one path, the input comes first.
    items.sort_by_key(|(target, _)| target.components().count());

    let mut sealed = Vec::new();
    for (position, (target, item)) in items.iter().enumerate() {
        match item {
            Item::Workdir => planner.layer(target, request.workdir.0)?,
            Item::Input(input) => {
                let inside = items.iter().skip(position + 1).filter(|(other, _)| other.starts_with(target));
                let (mut nested, mut holds_output) = (false, false);
                for (_, item) in inside {
                    nested = true;
                    holds_output |= matches!(item, Item::Output(..));
                }
                planner.input(input, target, nested, holds_output)?;
                if nested && !input.writable && input.kind == Kind::Directory && !holds_output {
                    sealed.push(target.clone());
                }
            }
            Item::Network(network) => planner.network(network, target)?,
            Item::Output(index, kind) => {
                planner.view.outputs[*index] = planner.output(target, *kind)?;
            }
        }
    }
    planner.view.steps.extend(sealed.into_iter().map(|target| Step::Seal { target }));
    Ok(planner.view)
}

impl Planner<'_> {
    /// The deepest mount that `target` lies in.
    fn cover(&self, target: &Path) -> Option<&Cover> {
        self.covers.iter().filter(|cover| target.starts_with(&cover.at)).max_by_key(|c| c.at.components().count())
    }

    /// Where the host keeps what the task writes at `target`, if that is in something the task may write to.
    fn behind(&self, target: &Path) -> Result<Option<PathBuf>, ViewError> {
        let Some(cover) = self.cover(target) else { return Ok(None) };
        if cover.kind == Kind::File && cover.at != target {
            return Err(ViewError::ThroughFile { target: target.to_owned(), file: cover.at.clone() });
        }
        let below = target.strip_prefix(&cover.at).unwrap_or(Path::new(""));
        Ok(cover.behind.as_ref().map(
            |behind| {
                if below.as_os_str().is_empty() { behind.clone() } else { behind.join(below) }
            },
        ))
    }

    fn new_directory(&mut self, label: &str) -> PathBuf {
        let path = self.scratch.join(format!("{label}-{}", self.layers));
        self.layers += 1;
        self.view.directories.push(path.clone());
        path
    }

    /// Makes sure that something of `kind` is at `target` to be mounted over.
    fn mount_point(&mut self, target: &Path, kind: Kind) -> Result<(), ViewError> {
        if self.behind(target)?.is_some() {
            self.view.steps.push(match kind {
                Kind::Directory => Step::MakeDirectory { path: target.to_owned() },
                Kind::File => Step::MakeFile { path: target.to_owned() },
            });
            return Ok(());
        }
        if let Some(cover) = self.cover(target) {
            let (target, at) = (target.to_owned(), cover.at.clone());
            return Err(match cover.network {
                true => ViewError::InsideNetwork { target, network: at },
                false => ViewError::Covered { target, cover: at },
            });
        }
        match self.host.kind(target) {
            Some(found) if found == kind && !self.in_image => return Ok(()),
            Some(found) if found != kind => {
                return Err(ViewError::WrongKind { target: target.to_owned(), wanted: kind, found });
            }
            _ => {}
        }
        let first_missing = self.first_missing(target)?;
        let in_root = first_missing.parent() == Some(Path::new("/"));
        // Engines make what is missing in a container's own files.
        if first_missing == target && (kind == Kind::Directory || in_root || self.in_image) {
            self.view.mount_points.push((target.to_owned(), kind));
            return Ok(());
        }
        self.open_up(&first_missing, target)?;
        self.mount_point(target, kind)
    }

    /// The shallowest ancestor of `target`, or `target` itself, that the host does not have.
    fn first_missing(&self, target: &Path) -> Result<PathBuf, ViewError> {
        let mut first = target.to_owned();
        for ancestor in target.ancestors().skip(1) {
            match self.host.kind(ancestor) {
                Some(Kind::Directory) => break,
                Some(Kind::File) => {
                    return Err(ViewError::ThroughFile { target: target.to_owned(), file: ancestor.to_owned() });
                }
                None => first = ancestor.to_owned(),
            }
        }
        Ok(first)
    }

    /// Makes the place where `target` is missing writable for this task alone: a fresh layer when whole directories are
    /// missing, an overlay over the parent when only the last name is.
    fn open_up(&mut self, first_missing: &Path, target: &Path) -> Result<(), ViewError> {
        if first_missing != target {
            let layer = self.new_directory("layer");
            return self.layer(first_missing, &layer);
        }
        let parent = target.parent().unwrap_or(Path::new("/")).to_owned();
        self.overlay(None, &parent, true);
        Ok(())
    }

    /// Binds a directory of the scratch disk to `target`.
    fn layer(&mut self, target: &Path, source: &Path) -> Result<(), ViewError> {
        self.mount_point(target, Kind::Directory)?;
        self.view.steps.push(Step::Bind { source: source.to_owned(), target: target.to_owned(), read_only: false });
        self.covers.push(Cover {
            at: target.to_owned(),
            kind: Kind::Directory,
            behind: Some(source.to_owned()),
            network: false,
        });
        Ok(())
    }

    fn overlay(&mut self, lower: Option<&Path>, target: &Path, whole_files: bool) -> PathBuf {
        let upper = self.new_directory("upper");
        let work = self.new_directory("work");
        self.view.steps.push(Step::Overlay {
            lower: lower.map(Path::to_owned),
            upper: upper.clone(),
            work,
            target: target.to_owned(),
            whole_files,
        });
        let cover = Cover { at: target.to_owned(), kind: Kind::Directory, behind: Some(upper.clone()), network: false };
        self.covers.push(cover);
        upper
    }

    fn input(&mut self, input: &InputView, target: &Path, nested: bool, holds_output: bool) -> Result<(), ViewError> {
        self.mount_point(target, input.kind)?;
        match input.kind {
            Kind::Directory if input.writable || nested => {
                self.overlay(Some(&input.source), target, holds_output);
            }
            Kind::File if input.writable => {
                // An overlay cannot cover one file: it covers the directory the file is mounted in, out of the task's
                // way, and the file is bound from there.
                let Some((directory, name)) = input.source.parent().zip(input.source.file_name()) else {
                    return Err(ViewError::ThroughFile { target: target.to_owned(), file: input.source.clone() });
                };
                let view = self.new_directory("file");
                let upper = self.overlay(Some(directory), &view, holds_output);
                self.covers.pop();
                let source = view.join(name);
                self.view.steps.push(Step::Bind { source, target: target.to_owned(), read_only: false });
                let behind = Some(upper.join(name));
                self.covers.push(Cover { at: target.to_owned(), kind: Kind::File, behind, network: false });
            }
            kind => {
                let source = input.source.clone();
                self.view.steps.push(Step::Bind { source, target: target.to_owned(), read_only: true });
                self.covers.push(Cover { at: target.to_owned(), kind, behind: None, network: false });
            }
        }
        Ok(())
    }

    fn network(&mut self, network: &NetworkView, target: &Path) -> Result<(), ViewError> {
        self.mount_point(target, Kind::Directory)?;
        let (source, read_only) = (network.source.clone(), !network.writable);
        self.view.steps.push(Step::Bind { source, target: target.to_owned(), read_only });
        self.covers.push(Cover { at: target.to_owned(), kind: Kind::Directory, behind: None, network: true });
        Ok(())
    }

    fn output(&mut self, target: &Path, kind: Kind) -> Result<PathBuf, ViewError> {
        if self.cover(target).is_none() {
            match kind {
                Kind::Directory => self.make_room_for_directory(target)?,
                Kind::File if self.in_image && self.first_missing(target)? == target => return self.fetched(target),
                Kind::File => self.make_room_for_file(target)?,
            }
        }
        let Some(behind) = self.behind(target)? else {
            let target = target.to_owned();
            return Err(match self.cover(&target).filter(|cover| cover.network) {
                Some(cover) => ViewError::OutputInNetwork { network: cover.at.clone(), target },
                None => ViewError::OutputIsReadOnlyInput { target },
            });
        };
        let exact = self.cover(target).is_some_and(|cover| cover.at == target);
        match kind {
            Kind::Directory => self.view.steps.push(Step::MakeDirectory { path: target.to_owned() }),
            Kind::File if !exact => {
                let parent = target.parent().unwrap_or(Path::new("/")).to_owned();
                self.view.steps.push(Step::MakeDirectory { path: parent });
            }
            Kind::File => {}
        }
        Ok(behind)
    }

    /// An output directory is a layer of its own, fresh whatever the host has there; where its parents are missing, too, it
    /// lies in theirs.
    fn make_room_for_directory(&mut self, target: &Path) -> Result<(), ViewError> {
        let first_missing = match self.host.kind(target) {
            Some(_) => target.to_owned(),
            None => self.first_missing(target)?,
        };
        if first_missing != target {
            return self.open_up(&first_missing, target);
        }
        let layer = self.new_directory("output");
        self.layer(target, &layer)
    }

    /// A file in a directory that the image has is not covered by anything: it is brought from the container's own files.
    fn fetched(&mut self, source: &Path) -> Result<PathBuf, ViewError> {
        let was_there = match self.host.kind(source) {
            Some(found @ Kind::Directory) => {
                return Err(ViewError::WrongKind { target: source.to_owned(), wanted: Kind::File, found });
            }
            found => found.is_some(),
        };
        let target = self.new_directory("fetched").join("file");
        self.view.fetched.push(Fetched { source: source.to_owned(), target: target.clone(), was_there });
        Ok(target)
    }

    fn make_room_for_file(&mut self, target: &Path) -> Result<(), ViewError> {
        if let Some(Kind::Directory) = self.host.kind(target) {
            return Err(ViewError::WrongKind { target: target.to_owned(), wanted: Kind::File, found: Kind::Directory });
        }
        let first_missing = match self.host.kind(target) {
            Some(_) => target.to_owned(),
            None => self.first_missing(target)?,
        };
        if first_missing == target && target.parent() == Some(Path::new("/")) {
            return Err(ViewError::OutputInRoot { target: target.to_owned() });
        }
        self.open_up(&first_missing, target)
    }
}

/// The machine we run on.
#[derive(Debug, Clone, Default)]
pub struct ThisHost {
    /// Mount points that agents have made. They count as missing: what one instance has made is as little there for another
    /// as if that other one had come first.
    pub made: BTreeSet<PathBuf>,
}

impl Host for ThisHost {
    fn resolve(&self, path: &Path) -> PathBuf {
        for ancestor in path.ancestors() {
            if let Ok(real) = ancestor.canonicalize() {
                return match path.strip_prefix(ancestor) {
                    Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
                    _ => real,
                };
            }
        }
        path.to_owned()
    }

    fn kind(&self, path: &Path) -> Option<Kind> {
        if self.made.contains(path) {
            return None;
        }
        let metadata = std::fs::metadata(path).ok()?;
        Some(if metadata.is_dir() { Kind::Directory } else { Kind::File })
    }
}

#[cfg(test)]
mod tests;
