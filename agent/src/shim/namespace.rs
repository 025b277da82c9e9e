//! Building the task's view: a mount namespace of its own, and the steps of the plan inside of it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use fuse_oss::mountpoint;
use fuse_oss::overlay::{Overlay, dress};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::Spec;
use crate::instance::view::Step;

const NONE: Option<&str> = None;

/// Moves this process into a mount namespace of its own and builds the view there. Mounts the host makes later are
/// still seen (they propagate in); nothing goes out.
pub(super) fn enter(spec: &Spec) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| {
        format!("cannot make a mount namespace: {errno}; the agent must run as root with CAP_SYS_ADMIN")
    })?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)
        .map_err(|errno| format!("cannot keep the task's mounts from the host: {errno}"))?;
    build(spec)
}

/// Takes the steps of the plan in the namespace that this process is in.
pub(super) fn build(spec: &Spec) -> Result<(), String> {
    for step in &spec.steps {
        take(step, spec)?;
    }
    Ok(())
}

fn take(step: &Step, spec: &Spec) -> Result<(), String> {
    match step {
        Step::MakeDirectory { path } => make(path, spec, || fs::create_dir_all(path)),
        Step::MakeFile { path } => make(path, spec, || make_file(path)),
        Step::Bind { source, target, read_only } => bind(source, target, *read_only),
        Step::Overlay { lower, upper, work, target, whole_files } => {
            // Outputs are read from it.
            let (source, whole_files, volatile) = ("overlay", *whole_files, false);
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            match lower {
                Some(lower) => overlay(&Overlay { lower, upper, work, whole_files, volatile, source, flags }, target),
                None => {
                    // The host's own programs keep what they may do.
                    let flags = MsFlags::empty();
                    let lower = &spec.hold;
                    overlay_host(&Overlay { lower, upper, work, whole_files, volatile, source, flags }, target)
                }
            }?;
            // It looks like what is below, and that is root's. What is below stays as it is.
            give(target, spec)
        }
        Step::Seal { target } => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(NONE, target, NONE, flags, NONE)
                .map_err(|e| format!("cannot make {} read-only: {e}", target.display()))
        }
    }
}

/// Makes something that only this task sees, and so is its user's, with every parent that was missing.
fn make(path: &Path, spec: &Spec, made: impl FnOnce() -> std::io::Result<()>) -> Result<(), String> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| path.symlink_metadata().is_err()).collect();
    made().map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    missing.into_iter().try_for_each(|path| give(path, spec))
}

/// Gives it to the task's user, if that is another one than root.
fn give(path: &Path, spec: &Spec) -> Result<(), String> {
    let Some(account) = &spec.account else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid))
        .map_err(|error| format!("cannot give {} to the user {}: {error}", path.display(), account.name))
}

fn make_file(path: &Path) -> std::io::Result<()> {
    // Something to mount over is all that is wanted: what is there already serves, writable or not.
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path).map(drop)
}

fn bind(source: &Path, target: &Path, read_only: bool) -> Result<(), String> {
    let failed = |errno| format!("cannot mount {} at {}: {errno}", source.display(), target.display());
    mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE).map_err(failed)?;
    if read_only {
        let flags =
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(NONE, target, NONE, flags, NONE).map_err(failed)?;
    }
    Ok(())
}

fn overlay(overlay: &Overlay<'_>, target: &Path) -> Result<(), String> {
    let mounted = dress(overlay.lower, overlay.upper, 0o7777).and_then(|()| overlay.mount(target, target));
    mounted.map_err(|error| error.to_string())
}

/// An overlay over a directory of the host, in place. What is mounted below it would disappear from sight: it is bound
/// there again from a copy of the tree that is held while this happens.
fn overlay_host(over: &Overlay<'_>, target: &Path) -> Result<(), String> {
    let failed = |errno: nix::Error| format!("cannot keep the mounts below {} in sight: {errno}", target.display());
    let hold = over.lower;
    let mounts = mountpoint::mounts().map_err(|error| format!("cannot read the mount table: {error}"))?;
    let below = topmost_below(target, mounts.into_iter().map(|mount| mount.path).collect());
    fs::create_dir_all(hold).map_err(|error| format!("cannot make {}: {error}", hold.display()))?;
    mount(Some(target), hold, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).map_err(failed)?;
    overlay(over, target)?;
    for path in below {
        let Ok(relative) = path.strip_prefix(target) else { continue };
        mount(Some(&hold.join(relative)), &path, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).map_err(failed)?;
    }
    umount2(hold, MntFlags::MNT_DETACH).map_err(failed)
}

/// The topmost of the mount points strictly below `directory`, each once.
fn topmost_below(directory: &Path, mut found: Vec<PathBuf>) -> Vec<PathBuf> {
    found.retain(|path| path.starts_with(directory) && path != directory);
    found.sort();
    let mut topmost: Vec<PathBuf> = Vec::new();
    for path in found {
        if !topmost.iter().any(|above| path.starts_with(above)) {
            topmost.push(path);
        }
    }
    topmost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_inside_of_another_mount_comes_along_with_it() {
        let paths = ["/a", "/a/b/c", "/a/b", "/ab", "/a/b-c", "/a/b", "/"].map(PathBuf::from).to_vec();
        assert_eq!(topmost_below(Path::new("/a"), paths), [Path::new("/a/b"), Path::new("/a/b-c")]);
    }
}
