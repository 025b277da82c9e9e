//! What is done with volumes that are there: taken away again (swap off, unmount, stop the array; nothing is ever
//! wiped), or trimmed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::hand::text;
use super::{Setup, SetupError, StepError};
use crate::device::{Device, Kind};
use crate::identity::{Made, Owner, Uuid};
use crate::plan::plan;
use crate::request::{Request, Trim, Volume};
use crate::signature::Content;
use crate::step::swap_file;
use crate::world::{Place, World, mount_points};

/// What was taken away.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Released {
    /// The swap files that were swapped off.
    pub swapped_off: Vec<PathBuf>,
    /// The directories that were unmounted.
    pub unmounted: Vec<PathBuf>,
    /// The arrays that were stopped, by path.
    pub stopped: Vec<PathBuf>,
}

impl Setup {
    /// Takes the volumes of a request away, or without one everything that was made by this program for this node. What is
    /// not there is no error.
    ///
    /// # Errors
    /// When something is in use. What was taken away before stays so; running it again goes on.
    pub fn release(&self, request: Option<&Request>) -> Result<Released, SetupError> {
        let _lock = self.locked(std::time::Duration::ZERO)?;
        let all = Request::default();
        let world = self.observe(request.unwrap_or(&all))?;
        let mut released = Released::default();
        let fail = |what: String, source: StepError| SetupError::Release { what, source: Box::new(source) };
        for at in self.mounts(&world, request)? {
            let file = swap_file(&at);
            if world.swap_files.contains(&file) {
                let result = text(&file).and_then(|file| Ok(self.tools.run("swapoff", &[file])?));
                result.map_err(|error| fail(format!("swap off {}", file.display()), error))?;
                released.swapped_off.push(file);
            }
            let result = text(&at).and_then(|at| Ok(self.tools.run("umount", &[at])?));
            result.map_err(|error| fail(format!("unmount {} (`fuser -vm` shows who uses it)", at.display()), error))?;
            released.unmounted.push(at);
        }
        let wanted = request.map(|request| self.array_uuids(request));
        // As it is after the unmounting.
        let world = self.observe(request.unwrap_or(&all))?;
        for array in world.inventory.devices().iter().filter(|device| device.kind == Kind::Array) {
            let Some(uuid) = self.array_of(&world, array) else { continue };
            if wanted.as_ref().is_some_and(|wanted| !wanted.contains(&uuid)) {
                continue;
            }
            if !array.mounts.is_empty() || array.swap || !world.inventory.descendants(array).is_empty() {
                let why = "is still in use".to_owned();
                let error = StepError::Changed { what: array.path.display().to_string(), why };
                return Err(fail(format!("stop the array {}", array.path.display()), error));
            }
            let result = text(&array.path).and_then(|path| Ok(self.tools.run("mdadm", &["--stop", path])?));
            result.map_err(|error| fail(format!("stop the array {}", array.path.display()), error))?;
            released.stopped.push(array.path.clone());
        }
        Ok(released)
    }

    /// Gives freed space back to the disks of those mounted volumes that ask for it with [`Trim::Periodic`]. Returns where
    /// they are mounted.
    ///
    /// # Errors
    /// When `fstrim` fails, as on a disk that cannot be trimmed.
    pub fn trim(&self, request: &Request) -> Result<Vec<PathBuf>, SetupError> {
        let periodic = |volume: &&Volume| volume.trim == Trim::Periodic;
        let volumes: Vec<_> = request.volumes.iter().filter(periodic).cloned().collect();
        let request = Request { volumes, wait: 0 };
        let world = self.observe(&request)?;
        let mut trimmed = Vec::new();
        for at in self.mounts(&world, Some(&request))? {
            let result = text(&at).and_then(|at| Ok(self.tools.run("fstrim", &[at])?));
            result.map_err(|error| SetupError::Release {
                what: format!("trim {}", at.display()),
                source: Box::new(error),
            })?;
            trimmed.push(at);
        }
        Ok(trimmed)
    }

    /// Where volumes are mounted, the inner ones first.
    fn mounts(&self, world: &World, request: Option<&Request>) -> Result<Vec<PathBuf>, SetupError> {
        let mut found: BTreeSet<PathBuf> = BTreeSet::new();
        match request {
            Some(request) => {
                found.extend(plan(world, request, self.node()).settled.into_iter().map(|settled| settled.volume));
            }
            None => {
                for (at, place) in mount_points(&self.roots)? {
                    let Place::Mounted { number, .. } = place else { continue };
                    let device = world.inventory.devices().iter().find(|device| device.number == number);
                    if device.is_some_and(|device| self.is_ours(world, device)) {
                        found.insert(at);
                    }
                }
            }
        }
        Ok(found.into_iter().rev().collect())
    }

    /// Whether a device carries something that was made by this program for this node.
    fn is_ours(&self, world: &World, device: &Device) -> bool {
        let uuid = carried(world, device);
        uuid.and_then(|uuid| self.node().owner(uuid)) == Some(Owner::ThisNode)
    }

    /// The array of this node's that a device is: all that it lies on are members of it.
    fn array_of(&self, world: &World, array: &Device) -> Option<Uuid> {
        let members: Vec<Option<Uuid>> = array
            .parents
            .iter()
            .map(|name| {
                let member = world.inventory.get(name)?;
                carried(world, member).filter(|uuid| self.node().owner(*uuid) == Some(Owner::ThisNode))
            })
            .collect();
        let first = (*members.first()?)?;
        members.iter().all(|member| *member == Some(first)).then_some(first)
    }

    fn array_uuids(&self, request: &Request) -> BTreeSet<Uuid> {
        request.volumes.iter().map(|volume| self.node().uuid(&volume.key(), Made::Array)).collect()
    }
}

/// The UUID of what a device carries, in the form of ours.
fn carried(world: &World, device: &Device) -> Option<Uuid> {
    match &world.evidence.get(&device.name)?.content {
        Content::Signature(signature) => signature.uuid.as_deref()?.parse().ok(),
        _ => None,
    }
}
