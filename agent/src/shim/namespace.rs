//! Building the task's view: a mount namespace of its own, and the steps of the plan inside of it.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

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
    for step in &spec.steps {
        take(step, &spec.hold)?;
    }
    Ok(())
}

fn take(step: &Step, hold: &Path) -> Result<(), String> {
    match step {
        Step::MakeDirectory { path } => {
            fs::create_dir_all(path).map_err(|error| format!("cannot make {}: {error}", path.display()))
        }
        Step::MakeFile { path } => make_file(path),
        Step::Bind { source, target, read_only } => bind(source, target, *read_only),
        Step::Overlay { lower: Some(lower), upper, work, target, whole_files } => {
            overlay(lower, upper, work, target, *whole_files, MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
        }
        Step::Overlay { lower: None, upper, work, target, whole_files } => {
            overlay_host(upper, work, target, *whole_files, hold)
        }
        Step::Seal { target } => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(NONE, target, NONE, flags, NONE)
                .map_err(|e| format!("cannot make {} read-only: {e}", target.display()))
        }
    }
}

fn make_file(path: &Path) -> Result<(), String> {
    let make = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path).map(drop)
    };
    // Something to mount over is all that is wanted: what is there already serves, writable or not.
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
        return Ok(());
    }
    make().map_err(|error| format!("cannot make {}: {error}", path.display()))
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

fn overlay(
    lower: &Path,
    upper: &Path,
    work: &Path,
    target: &Path,
    whole_files: bool,
    flags: MsFlags,
) -> Result<(), String> {
    // The merged root takes its owner and mode from the upper directory: give it those of what it covers.
    let like = fs::metadata(lower).map_err(|error| format!("cannot look at {}: {error}", lower.display()))?;
    let dressed = fs::set_permissions(upper, fs::Permissions::from_mode(like.mode() & 0o7777))
        .and_then(|()| std::os::unix::fs::chown(upper, Some(like.uid()), Some(like.gid())));
    dressed.map_err(|error| format!("cannot prepare {}: {error}", upper.display()))?;

    let features = if whole_files { "metacopy=off,redirect_dir=off" } else { "metacopy=on,redirect_dir=on" };
    let mut options = Vec::from(b"lowerdir=");
    options.extend(escape(lower));
    options.extend(b",upperdir=");
    options.extend(escape(upper));
    options.extend(b",workdir=");
    options.extend(escape(work));
    options.extend(format!(",{features},xino=auto").bytes());
    mount(Some("overlay"), target, Some("overlay"), flags, Some(OsStr::from_bytes(&options))).map_err(|errno| {
        format!(
            "cannot give the task a view of {} that it can write to: overlay: {errno}; the scratch disk ({}) must be \
             xfs (ftype=1), ext4 or btrfs, and the kernel must have overlayfs",
            target.display(),
            upper.display()
        )
    })
}

/// The kernel splits the options at commas and the lower directories at colons; a backslash keeps it from doing so.
fn escape(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes().iter().copied() {
        if matches!(byte, b',' | b':' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

/// An overlay over a directory of the host, in place. What is mounted below it would disappear from sight: it is bound
/// there again from a copy of the tree that is held while this happens.
fn overlay_host(upper: &Path, work: &Path, target: &Path, whole_files: bool, hold: &Path) -> Result<(), String> {
    let failed = |errno: nix::Error| format!("cannot keep the mounts below {} in sight: {errno}", target.display());
    let below = mounts_below(target).map_err(|error| format!("cannot read the mount table: {error}"))?;
    fs::create_dir_all(hold).map_err(|error| format!("cannot make {}: {error}", hold.display()))?;
    mount(Some(target), hold, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).map_err(failed)?;
    overlay(hold, upper, work, target, whole_files, MsFlags::empty())?;
    for path in below {
        let Ok(relative) = path.strip_prefix(target) else { continue };
        mount(Some(&hold.join(relative)), &path, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).map_err(failed)?;
    }
    umount2(hold, MntFlags::MNT_DETACH).map_err(failed)
}

/// The topmost mount points strictly below `directory`, each once.
fn mounts_below(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read("/proc/self/mountinfo")?
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4).map(unescape))
        .filter(|path| path.starts_with(directory) && path != directory)
        .collect();
    found.sort();
    found.dedup();
    let mut topmost: Vec<PathBuf> = Vec::new();
    for path in found {
        if !topmost.iter().any(|above| path.starts_with(above)) {
            topmost.push(path);
        }
    }
    Ok(topmost)
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_paths_are_decoded() {
        assert_eq!(unescape(b"/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape(b"/plain\\"), Path::new("/plain\\"));
    }

    #[test]
    fn overlay_options_cannot_be_injected() {
        assert_eq!(escape(Path::new("/a,upperdir=/etc:x\\")), b"/a\\,upperdir=/etc\\:x\\\\");
    }
}
