//! A program takes over from the one that runs, while everything is mounted.
//!
//! `fuse-oss serve --replace` asks the worker, whose keeper then executes the new program in its own place: same process number, same
//! descriptors, so neither the mounts nor whoever watches the process notice. What the keeper knows travels in a file in memory. The new
//! keeper starts a worker of its own; should that never answer, the old program, which is held open until then, is executed
//! again.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tracing::{error, info};

use super::worker::{THIS_PROGRAM, inheritable};
use super::{Files, Held, Keeper, Parts, Phase, ServerSettings};
use crate::error::{ErrorKind, MountError};
use crate::runtime::{CacheLock, RuntimePaths};

/// The format of what travels; raised when a keeper of another version could not go on with it, nor its worker with the journals and
/// ledgers it holds.
pub const FORMAT: u32 = 1;

/// What `fuse-oss keeper --understands` answers, by which a program shows that it can take over.
pub fn understood() -> String {
    format!("fuse-oss keeper state {FORMAT}")
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    format: u32,
    settings: ServerSettings,
    lock: RawFd,
    control: RawFd,
    metrics: Option<RawFd>,
    previous: Option<RawFd>,
    mounts: Vec<HeldState>,
    next_id: u64,
    workers: u64,
    replaced: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeldState {
    id: u64,
    target: PathBuf,
    device: Option<String>,
    parts: Parts,
    files: Vec<RawFd>,
}

impl Keeper {
    /// Executes the program in this process. Returns only if that cannot be done.
    pub(super) fn replace_with(&mut self, program: &Path) {
        info!(program = %program.display(), "another program takes over");
        let previous = File::open(THIS_PROGRAM).map(OwnedFd::from);
        let executed = previous.and_then(|previous| {
            self.replaced += 1;
            self.execute(program, Some(previous))
        });
        if let Err(error) = executed {
            self.replaced -= 1;
            error!(program = %program.display(), %error, "it cannot be executed; this program goes on");
        }
    }

    /// Executes the program that was here before. Returns only if that cannot be done.
    pub(super) fn go_back(&mut self) {
        let Some(previous) = self.previous.take() else { return };
        error!("the new program's worker does not come up; the program before it goes on");
        self.replaced = self.replaced.saturating_sub(1);
        let path = PathBuf::from(format!("/proc/self/fd/{}", previous.as_raw_fd()));
        if let Err(error) = self.execute(&path, None) {
            error!(%error, "it cannot be executed any more");
        }
    }

    fn execute(&self, program: &Path, previous: Option<OwnedFd>) -> std::io::Result<()> {
        let mut inherited = Vec::new();
        let mut pass = |descriptor: std::os::fd::BorrowedFd<'_>| -> std::io::Result<RawFd> {
            let duplicate = inheritable(descriptor)?;
            let raw = duplicate.as_raw_fd();
            inherited.push(duplicate);
            Ok(raw)
        };
        let mut mounts = Vec::new();
        for (id, held) in &self.mounts {
            let files: std::io::Result<Vec<RawFd>> = held.files.borrowed().into_iter().map(&mut pass).collect();
            let (target, device) = (held.target.clone(), held.device.clone());
            mounts.push(HeldState { id: *id, target, device, parts: held.files.parts(), files: files? });
        }
        let state = State {
            format: FORMAT,
            settings: self.settings.clone(),
            lock: pass(self.lock.as_fd())?,
            control: pass(self.control.as_fd())?,
            metrics: self.metrics.as_ref().map(|metrics| pass(metrics.as_fd())).transpose()?,
            previous: previous.as_ref().map(|previous| pass(previous.as_fd())).transpose()?,
            mounts,
            next_id: self.next_id,
            workers: self.workers,
            replaced: self.replaced,
        };
        let mut file = File::from(memfd_create(c"fuse-oss-keeper", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(&state)?)?;
        let number = pass(file.as_fd())?;
        let text = |text: String| std::ffi::CString::new(text).map_err(std::io::Error::other);
        let mut arguments = vec![c"fuse-oss".to_owned(), c"keeper".to_owned(), text(format!("--state-fd={number}"))?];
        for argument in &self.settings.log_arguments {
            arguments.push(text(argument.clone())?);
        }
        let program = text(program.to_str().ok_or(std::io::ErrorKind::InvalidFilename)?.to_owned())?;
        // On success this does not return; the duplicates that were made for it are closed on failure.
        nix::unistd::execv(&program, &arguments)?;
        Ok(())
    }

    /// Goes on with what a keeper has left in the file of this number.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when it is not what a keeper leaves.
    pub fn resume(state: OwnedFd) -> Result<Self, MountError> {
        let bad = |what: &dyn std::fmt::Display| {
            MountError::new(ErrorKind::Internal, format_args!("cannot take over from the keeper before: {what}"))
        };
        let mut text = Vec::new();
        let mut file = File::from(state);
        file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(|error| bad(&error))?;
        let state: State = serde_json::from_slice(&text).map_err(|error| bad(&error))?;
        if state.format != FORMAT {
            return Err(bad(&format_args!("its state has format {}, this program knows {FORMAT}", state.format)));
        }
        let paths = RuntimePaths::new(&state.settings.runtime_dir, &state.settings.cache_dir)?;
        let take = |raw: RawFd| -> Result<OwnedFd, MountError> {
            // Fails for a number that is no open descriptor.
            // SAFETY: only whether it is open is asked.
            let closed = unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } < 0;
            if closed {
                return Err(bad(&format_args!("descriptor {raw} is not open")));
            }
            // SAFETY: the keeper before made it for us alone.
            Ok(unsafe { OwnedFd::from_raw_fd(raw) })
        };
        let lock = CacheLock::inherited(take(state.lock)?)?;
        let control = take(state.control)?.into();
        let metrics = state.metrics.map(take).transpose()?.map(Into::into);
        let mut keeper = Self::assemble(state.settings, paths, lock, control, metrics)?;
        for held in state.mounts {
            let files: Result<Vec<OwnedFd>, MountError> = held.files.into_iter().map(take).collect();
            let files = Files::from_descriptors(files?, held.parts).ok_or_else(|| bad(&"a mount without its files"))?;
            keeper.mounts.insert(held.id, Held { target: held.target, device: held.device, files });
        }
        keeper.previous = state.previous.map(take).transpose()?;
        (keeper.next_id, keeper.workers, keeper.replaced) = (state.next_id, state.workers, state.replaced);
        keeper.phase = Phase::Serving;
        keeper.start_at = Some(Instant::now());
        Ok(keeper)
    }
}
