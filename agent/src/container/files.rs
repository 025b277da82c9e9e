//! The files of an image, looked at before its container is made: what a task's mappings meet there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::engine::{Engine, Entry, to_look_into};
use super::error::EngineError;
use crate::instance::view::{Host, Kind};

/// How many links a path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

/// A look into an image, by way of a container that is never started. It is removed when this is dropped.
#[derive(Debug)]
pub(super) struct ImageFiles<'a> {
    engine: &'a Engine,
    container: String,
    seen: RefCell<BTreeMap<PathBuf, Option<Entry>>>,
    failed: RefCell<Option<EngineError>>,
}

impl<'a> ImageFiles<'a> {
    /// Opens the image with this id; `name` is the container's.
    ///
    /// # Errors
    /// When the engine cannot make a container.
    pub(super) fn open(engine: &'a Engine, image: &str, name: &str) -> Result<Self, EngineError> {
        engine.remove(name)?;
        let container = engine.create(name, &to_look_into(image))?;
        Ok(Self { engine, container, seen: RefCell::default(), failed: RefCell::default() })
    }

    /// The first failure of the engine; while there was one, everything seemed to be missing.
    pub(super) fn failure(&self) -> Option<EngineError> {
        self.failed.borrow_mut().take()
    }

    /// What is at a path that leads through no links but at its end.
    fn entry(&self, path: &Path) -> Option<Entry> {
        if let Some(seen) = self.seen.borrow().get(path) {
            return seen.clone();
        }
        if self.failed.borrow().is_some() {
            return None;
        }
        let entry = self.engine.entry(&self.container, path).unwrap_or_else(|error| {
            *self.failed.borrow_mut() = Some(error);
            None
        });
        self.seen.borrow_mut().insert(path.to_owned(), entry.clone());
        entry
    }
}

impl Drop for ImageFiles<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.engine.remove(&self.container) {
            tracing::debug!(%error, "a container that was only looked into stays until its task is cleaned up after");
        }
    }
}

impl Host for ImageFiles<'_> {
    fn resolve(&self, path: &Path) -> PathBuf {
        resolve(path, &|path| self.entry(path))
    }

    fn kind(&self, path: &Path) -> Option<Kind> {
        if path == Path::new("/") {
            return Some(Kind::Directory);
        }
        match self.entry(path)? {
            Entry::Directory => Some(Kind::Directory),
            Entry::Other => Some(Kind::File),
            // It leads nowhere, or it would have been resolved.
            Entry::Link(_) => None,
        }
    }
}

/// What a container sees before anything of its task is mapped: the image's files, and the node's mounts over them.
pub(super) struct Shown<'a> {
    pub image: &'a dyn Host,
    pub machine: &'a dyn Host,
    pub node_mounts: &'a [PathBuf],
}

impl Shown<'_> {
    fn is_the_nodes(&self, path: &Path) -> bool {
        self.node_mounts.iter().any(|mount| path.starts_with(mount))
    }
}

impl Host for Shown<'_> {
    fn resolve(&self, path: &Path) -> PathBuf {
        // Links of the node's lead elsewhere in the container.
        if self.is_the_nodes(path) { path.to_owned() } else { self.image.resolve(path) }
    }

    fn kind(&self, path: &Path) -> Option<Kind> {
        if self.is_the_nodes(path) {
            return self.machine.kind(path);
        }
        // The engine makes what leads to a mount.
        let leads_to_one = self.node_mounts.iter().any(|mount| mount.starts_with(path));
        if leads_to_one { Some(Kind::Directory) } else { self.image.kind(path) }
    }
}

/// The path without links, as far as it exists in the image. What engines say of links differs; all of it is taken from the link
/// itself on, step by step.
fn resolve(path: &Path, entry: &dyn Fn(&Path) -> Option<Entry>) -> PathBuf {
    let mut resolved = PathBuf::from("/");
    let mut rest: Vec<PathBuf> = parts(path);
    rest.reverse();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == Path::new("..") {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&part);
        match entry(&next) {
            Some(Entry::Link(target)) if links < MAX_LINKS && !target.as_os_str().is_empty() => {
                links += 1;
                if target.is_absolute() {
                    resolved = PathBuf::from("/");
                }
                let mut ahead = parts(&target);
                ahead.reverse();
                rest.extend(ahead);
            }
            Some(_) => resolved = next,
            None => {
                resolved = next;
                while let Some(part) = rest.pop() {
                    resolved.push(part);
                }
            }
        }
    }
    resolved
}

fn parts(path: &Path) -> Vec<PathBuf> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(PathBuf::from(name)),
            Component::ParentDir => Some(PathBuf::from("..")),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(&'static [&'static str]);

    impl Host for Fake {
        fn resolve(&self, path: &Path) -> PathBuf {
            path.to_owned()
        }
        fn kind(&self, path: &Path) -> Option<Kind> {
            self.0.iter().any(|known| Path::new(known) == path).then_some(Kind::Directory)
        }
    }

    #[test]
    fn the_nodes_mounts_lie_over_the_images_files() {
        let (image, machine) = (Fake(&["/", "/data", "/data/old", "/home"]), Fake(&["/", "/data", "/data/in", "/etc"]));
        let node_mounts = ["/data".into(), "/mnt/nas/projects".into()];
        let shown = Shown { image: &image, machine: &machine, node_mounts: &node_mounts };
        let there = |path: &str| shown.kind(Path::new(path)).is_some();
        assert!(there("/data") && there("/data/in") && there("/home") && there("/mnt/nas"));
        assert!(!there("/data/old") && !there("/etc") && !there("/mnt/nas/projects"));
    }

    #[test]
    fn links_of_the_image_are_followed_inside_of_it() {
        let link = |to: &str| Some(Entry::Link(to.into()));
        let entry = |path: &Path| match path.to_str().unwrap() {
            "/home" => link("/data/users"),
            "/data" | "/data/users" | "/data/users/x" => Some(Entry::Directory),
            "/up" => link("../../../etc"),
            "/loop" => link("/loop"),
            "/data/relative" => link("users/x"),
            _ => None,
        };
        for (path, expected) in [
            ("/home/in", "/data/users/in"),
            ("/home/x/y/z", "/data/users/x/y/z"),
            ("/data/relative/f", "/data/users/x/f"),
            ("/up/passwd", "/etc/passwd"),
            ("/new/a/b", "/new/a/b"),
            ("/loop/a", "/loop/a"),
        ] {
            assert_eq!(resolve(Path::new(path), &entry), Path::new(expected), "{path}");
        }
    }
}
