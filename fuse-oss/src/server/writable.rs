//! Mounts that can be written to: how one is put together, and what is left of it.
//!
//! ```text
//! 1. RUNTIME_DIR/<hash>.lower/<number>   the FUSE mount, as any other, in a place that nobody else may enter
//! 2. TARGET                              an overlay with that as its lower layer, as soon as it answers
//! 3.                                     the FUSE mount is detached from the tree: the overlay has a clone of its own
//! ```
//!
//! From then on the session lives exactly as long as the overlay, and its end is the sign that what was written can go. That may be
//! much and is done beside everything else; the server does not end before.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::statvfs::statvfs;
use tracing::{info, warn};

use super::Server;
use crate::error::{ErrorKind, MountError};
use crate::mountpoint::{Target, Top};
use crate::options::{MountOptions, Writable, WritableStatus};
use crate::overlay::leftovers::{Leftovers, sweep_directory};
use crate::overlay::upper::Upper;
use crate::overlay::{Overlay, dress};
use crate::size::ByteSize;

/// How long making what a view needs may take.
const PREPARATION: Duration = Duration::from_secs(60);

/// How long the end of a server waits for what was written in views to be removed. What is left then, the next one removes.
const LAST_REMOVALS: Duration = Duration::from_secs(20);

/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A mount that is about to become the lower layer of a view. Detached from the tree when it is dropped; it lives on if it has become
/// one, and ends if it has not.
#[derive(Debug)]
pub struct Lower {
    path: PathBuf,
    target: Target,
}

impl Lower {
    /// Makes a directory to mount on. `number` is used once per server.
    fn new(directory: &Path, number: u64) -> Result<Self, MountError> {
        let path = directory.join(number.to_string());
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| {
            MountError::new(ErrorKind::System, format_args!("cannot make {}: {error}", path.display()))
        })?;
        let target = Target::check(&path, Top::Directory, false)?;
        Ok(Self { path, target })
    }

    /// Where the lower layer is to be mounted.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        // Nothing is mounted there when mounting failed.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        if let Err(error) = fs::remove_dir(&self.path) {
            warn!(path = %self.path.display(), %error, "cannot remove a directory that was mounted on");
        }
        // Others may be under way in it.
        if let Some(directory) = self.path.parent() {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// The two parts of a view that is being made. What is not taken out of it goes when it is dropped.
#[derive(Debug)]
pub struct View {
    lower: Option<Lower>,
    upper: Option<Upper>,
}

impl View {
    /// Where the lower layer is to be mounted.
    pub fn lower(&self) -> Option<&Target> {
        self.lower.as_ref().map(Lower::target)
    }

    /// What was made for the upper layer, as long as nobody has taken it.
    pub fn upper(&self) -> Option<&Upper> {
        self.upper.as_ref()
    }

    /// What was made for the upper layer; whoever has it removes it once the view has ended.
    pub fn take_upper(&mut self) -> Option<Upper> {
        self.upper.take()
    }

    /// The mount that is to be covered.
    pub fn take_lower(&mut self) -> Option<Lower> {
        self.lower.take()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.lower.take();
        if let Some(upper) = self.upper.take() {
            remove(upper);
        }
    }
}

fn remove(upper: Upper) {
    let path = upper.root().to_owned();
    if let Err(error) = upper.remove() {
        warn!(path = %path.display(), %error, "cannot remove what was written in a view that has ended; the next server tries again");
    }
}

/// Mounts the overlay.
fn cover(
    lower: &Lower,
    layers: &(PathBuf, PathBuf),
    target: &Target,
    options: &MountOptions,
    source: &str,
) -> Result<(), MountError> {
    let (upper, work) = layers;
    // What FUSE does by itself, an overlay does not: it looks below with our rights, not with those of whoever asks.
    let mask = if options.allow_other { 0o7777 } else { 0o700 };
    dress(&lower.path, upper, mask)?;
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if !options.exec {
        flags |= MsFlags::MS_NOEXEC;
    }
    let whole_files = options.writable.as_ref().is_some_and(|writable| writable.whole_files);
    // Whoever reads the upper directory by itself may want it to survive us.
    let volatile = !whole_files;
    let overlay = Overlay { lower: &lower.path, upper, work, whole_files, volatile, source, flags };
    Ok(overlay.mount(&target.held(), target.path())?)
}

/// Something that is being removed, or may be: the server does not end while there is one.
#[derive(Debug)]
pub struct Discarding(Arc<Server>);

impl Discarding {
    /// Counts one more.
    pub fn new(server: &Arc<Server>) -> Self {
        server.removing.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(server))
    }

    /// Removes, in a thread of its own, what was written in a view that has ended.
    pub fn discard(self, upper: Upper) {
        let discard = move || {
            remove(upper);
            drop(self);
        };
        if let Err(error) = std::thread::Builder::new().name("discard".to_owned()).spawn(discard) {
            warn!(%error, "cannot start a thread; what was written in a view is removed by the next server");
        }
    }
}

impl Drop for Discarding {
    fn drop(&mut self) {
        self.0.removing.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_waiters();
        self.0.changed.notify_one();
    }
}

impl Server {
    /// Where what is written goes unless another directory is named, and where all such directories are known.
    pub(super) fn upper_registry(&self) -> PathBuf {
        self.cache_dir.join("upper")
    }

    /// Makes what a view needs before anything is mounted.
    pub(super) async fn prepare_view(
        &self,
        writable: Writable,
        target: &Path,
        number: u64,
    ) -> Result<View, MountError> {
        if let Some(directory) = writable.upper.as_deref().filter(|directory| directory.starts_with(target)) {
            return Err(MountError::new(
                ErrorKind::Usage,
                format_args!(
                    "what is written cannot go to {}, which the mount on {} would hide; choose a directory outside of it",
                    directory.display(),
                    target.display()
                ),
            ));
        }
        let (registry, lower) = (self.upper_registry(), self.paths.lower.clone());
        if let Some(directory) = writable.upper.clone() {
            // Of servers with another cache directory; those of this one are known from the start.
            self.runtime.spawn_blocking(move || sweep_directory(&directory));
        }
        let prepare = move || {
            let upper = Upper::create(&registry, writable.upper.as_deref(), writable.size.map(ByteSize::bytes))?;
            let is_text = upper.root().to_str().is_some();
            let mut view = View { lower: None, upper: Some(upper) };
            if !is_text {
                // Everybody's status could not say where it is.
                return Err(MountError::new(
                    ErrorKind::Usage,
                    "the path of the directory for what is written is not UTF-8; choose another",
                ));
            }
            view.lower = Some(Lower::new(&lower, number)?);
            Ok(view)
        };
        let preparing = self.runtime.spawn_blocking(prepare);
        match tokio::time::timeout(PREPARATION, preparing).await {
            Ok(view) => view.map_err(|error| MountError::new(ErrorKind::Internal, error))?,
            // Should it be made after all, it is dropped and so removed.
            Err(_) => Err(MountError::new(
                ErrorKind::System,
                "making a directory for what is written takes too long: its disk hangs, or is a dead network mount",
            )),
        }
    }

    /// Covers a mount that answers with a view of it, and takes it out of the tree; the session `id` becomes that view's.
    pub(super) async fn cover(
        &self,
        id: u64,
        lower: Lower,
        target: Target,
        options: MountOptions,
        source: String,
    ) -> Result<(), MountError> {
        let layers = {
            let table = self.table();
            let upper = table.sessions.get(&id).and_then(|active| active.upper.as_ref());
            upper.map(|upper| (upper.upper(), upper.work()))
        };
        let Some(layers) = layers else {
            return Err(MountError::new(
                ErrorKind::Internal,
                format_args!("the mount for {} ended while it was made", target.path().display()),
            ));
        };
        let covering = self.runtime.spawn_blocking(move || {
            let covered = cover(&lower, &layers, &target, &options, &source);
            drop(lower);
            covered.map(|()| crate::mountpoint::mounted_on(target.path()))
        });
        let mount = covering.await.map_err(|error| MountError::new(ErrorKind::Internal, error))??;
        if let Some(active) = self.table().sessions.get_mut(&id) {
            active.device = mount.map(|mount| mount.device).unwrap_or_default();
        }
        Ok(())
    }

    /// Removes, in a thread of its own, what was written in a view that has ended.
    pub(super) fn discard(self: &Arc<Self>, upper: Upper) {
        Discarding::new(self).discard(upper);
    }

    /// Removes, in the background, what servers that died left of views: those of this cache directory, whose lock we hold.
    pub(super) fn sweep_uppers(&self) {
        // Found now: what is being made when they are removed is none of them.
        let left = Leftovers::find(&self.upper_registry());
        self.runtime.spawn_blocking(move || left.remove());
    }

    /// Waits until the sessions of these targets have ended and what was written in them is gone, but not for ever.
    pub(super) async fn discarded(&self, targets: &[PathBuf]) {
        let is_there = |target: &PathBuf| {
            self.table()
                .sessions
                .values()
                .any(|active| active.upper.is_some() && active.target == *target && !active.detached)
        };
        let gone = async {
            while self.removing.load(Ordering::Acquire) > 0 || targets.iter().any(is_there) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(LAST_REMOVALS, gone).await.is_err() {
            info!("what was written in views is not all removed yet; the next server goes on");
        }
    }
}

/// What `status` says of a view.
pub(super) fn status(upper: &Upper) -> WritableStatus {
    let usage = upper.usage();
    let free = statvfs(upper.root()).map_or(0, |stat| stat.blocks_available() * stat.fragment_size());
    let limit = usage.map(|usage| usage.limit).filter(|limit| *limit > 0);
    let left = usage.zip(limit).map_or(u64::MAX, |(usage, limit)| limit.saturating_sub(usage.used));
    WritableStatus {
        upper: upper.upper(),
        used: usage.map(|usage| ByteSize::new(usage.used)),
        limit: limit.map(ByteSize::new),
        available: ByteSize::new(free.min(left)),
    }
}
