//! Directories that are mounted on: whether one can be, what is there, who uses it, and how it ends.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::error::{ErrorKind, MountError};
use crate::options::UnmountMode;
use crate::overlay::{self, upper};

/// The type of our mounts, as `/proc/mounts` and fstab have it.
pub const FS_TYPE: &str = "fuse.fuse-oss";

/// How long a question to some mount's file system may take before it counts as stuck.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// The mount's own number.
    pub id: u64,
    /// The number of the mount it is on.
    pub parent: u64,
    /// `major:minor` of the file system.
    pub device: String,
    /// Where it is.
    pub path: PathBuf,
    /// `ext4`, `fuse.fuse-oss`, ...
    pub fs_type: String,
    /// What is mounted, as whoever mounted it says.
    pub source: OsString,
    /// Whether nothing can be written through it: the mount, or the whole file system, is read-only.
    pub read_only: bool,
    /// Options of the file system, as the kernel writes them: see [`MountInfo::option`].
    options: Vec<u8>,
}

impl MountInfo {
    /// Understands a line of the table.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let mut fields = line.split(|&byte| byte == b' ');
        let id = text(fields.next()?)?.parse().ok()?;
        let parent = text(fields.next()?)?.parse().ok()?;
        let device = text(fields.next()?)?;
        let path = PathBuf::from(unescape(fields.nth(1)?));
        let of_mount = fields.next()?;
        // Optional fields end with a single dash.
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let fs_type = text(rest.next()?)?;
        let source = unescape(rest.next()?);
        let options = rest.next().unwrap_or_default().to_vec();
        let read_only =
            [of_mount, &options].into_iter().any(|list| list.split(|&byte| byte == b',').any(|o| o == b"ro"));
        Some(Self { id, parent, device, path, fs_type, source, read_only, options })
    }

    /// The value of an option of the file system, such as `upperdir`.
    pub fn option(&self, name: &str) -> Option<OsString> {
        // A comma in a value is escaped.
        let mut options = self.options.split(|&byte| byte == b',');
        options.find_map(|option| option.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(unescape))
    }

    /// Whether this is one of our mounts: one that only shows, or a view over one that can be written to.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE || upper::root_of(self).is_some()
    }
}

/// Undoes the kernel's `\040` for spaces, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Everything that is mounted.
///
/// # Errors
/// When `/proc` is not there.
pub fn mounts() -> io::Result<Vec<MountInfo>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(MountInfo::parse).collect())
}

/// Whether any process of the machine sees an overlay with this upper layer. The path must not have links in it.
pub fn is_upper_of_any(upper: &Path) -> bool {
    let mut seen = BTreeSet::new();
    fs::read_dir("/proc").into_iter().flatten().flatten().any(|process| {
        // Most processes share a namespace: its table is read once.
        let is_new = fs::read_link(process.path().join("ns/mnt")).is_ok_and(|namespace| seen.insert(namespace));
        is_new && {
            let text = fs::read(process.path().join("mountinfo")).unwrap_or_default();
            let mounts = text.split(|&byte| byte == b'\n').filter_map(MountInfo::parse);
            mounts
                .filter(|mount| mount.fs_type == overlay::FS_TYPE)
                .any(|mount| mount.option("upperdir").as_deref() == Some(upper.as_os_str()))
        }
    })
}

/// What is mounted on exactly this path, the uppermost of several.
pub fn mounted_on(path: &Path) -> Option<MountInfo> {
    mounts().ok()?.into_iter().rev().find(|mount| mount.path == path)
}

/// A directory that may be mounted on, held open so that it stays the one that was looked at.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    directory: OwnedFd,
}

impl Target {
    /// Looks at a directory: it must exist, have nothing mounted on it and, unless `nonempty`, be empty.
    ///
    /// # Errors
    /// [`ErrorKind::TargetMissing`], [`ErrorKind::TargetBusy`].
    pub fn check(path: &Path, nonempty: bool) -> Result<Self, MountError> {
        let shown = path.display();
        let missing = |cause: &dyn std::fmt::Display, remedy: &str| {
            MountError::new(ErrorKind::TargetMissing, format_args!("cannot mount on {shown}: {cause}; {remedy}"))
        };
        let busy =
            |cause: String| MountError::new(ErrorKind::TargetBusy, format_args!("cannot mount on {shown}: {cause}"));
        let real = path.canonicalize().map_err(|error| match error.raw_os_error() {
            Some(libc::ENOTCONN | libc::ECONNABORTED) => busy(
                "a FUSE mount whose process has died is still there; remove it with: umount -l DIRECTORY".to_owned(),
            ),
            _ => missing(&error, "create the directory first (mkdir -p)"),
        })?;
        if !real.is_dir() {
            return Err(missing(&"it is not a directory", "a mount needs a directory"));
        }
        if let Some(mount) = mounted_on(&real) {
            return Err(busy(format!(
                "{} ({}) is mounted there already; unmount it first (umount {}) or choose another directory",
                mount.source.display(),
                mount.fs_type,
                real.display()
            )));
        }
        if !nonempty && fs::read_dir(&real).is_ok_and(|mut names| names.next().is_some()) {
            return Err(busy(
                "the directory is not empty and the mount would hide what is in it; choose an empty one, or say -o nonempty"
                    .to_owned(),
            ));
        }
        let directory = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_PATH | libc::O_CLOEXEC)
            .open(&real)
            .map_err(|error| missing(&error, "create the directory first (mkdir -p)"))?;
        Ok(Self { path: real, directory: directory.into() })
    }

    /// The absolute path, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to the directory that was looked at, whatever its name leads to by now.
    pub fn held(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }
}

/// Whether a mount's file system answers: its error, if it has one, or none at all when it is stuck. In a thread that is left
/// behind when it does not come back.
pub fn answers(path: &Path) -> Option<Result<(), Errno>> {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || {
            let result = nix::sys::stat::lstat(&path).and_then(|_| nix::sys::statfs::statfs(&path)).map(drop);
            // Nobody listens any more when it took too long.
            let _ = sender.send(result);
        })
        .ok()?;
    receiver.recv_timeout(PROBE_LIMIT).ok()
}

/// Whether what is mounted there is one of ours whose process has died.
pub fn is_dead(mount: &MountInfo) -> bool {
    let answer = if mount.fs_type == FS_TYPE {
        answers(&mount.path)
    } else if mount.is_ours() {
        // A view's own root is on the local disk and always answers. A name that is not there has to be looked for below.
        answers(&mount.path.join(format!(".fuse-oss-{:016x}", upper::random())))
    } else {
        return false;
    };
    matches!(answer, Some(Err(Errno::ENOTCONN | Errno::ECONNABORTED)))
}

/// Takes a mount out of the tree.
///
/// # Errors
/// [`ErrorKind::TargetBusy`] with the names of those who use it; [`ErrorKind::System`].
pub fn unmount(path: &Path, mode: UnmountMode) -> Result<(), MountError> {
    let flags = match mode {
        UnmountMode::WhenIdle => MntFlags::UMOUNT_NOFOLLOW,
        UnmountMode::Lazy => MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH,
    };
    match umount2(path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => {
            let users = users(path);
            let by =
                if users.is_empty() { "by a process that /proc does not show".to_owned() } else { users.join(", ") };
            Err(MountError::new(
                ErrorKind::TargetBusy,
                format_args!(
                    "cannot unmount {}: it is in use: {by}; end that, or detach the mount with --lazy",
                    path.display()
                ),
            ))
        }
        Err(Errno::EINVAL) => {
            Err(MountError::new(ErrorKind::NotMounted, format_args!("nothing is mounted on {}", path.display())))
        }
        Err(errno) => Err(MountError::new(
            ErrorKind::System,
            format_args!("cannot unmount {}: {}; unmounting needs root", path.display(), errno.desc()),
        )),
    }
}

/// Who uses a mount: processes with files, working directories, programs or mappings there, and mounts on top of it. Found
/// by names in `/proc` only, so that nothing here can hang on the mount.
pub fn users(path: &Path) -> Vec<String> {
    let all = mounts().unwrap_or_default();
    let own = all.iter().rev().find(|mount| mount.path == path).map(|mount| mount.id);
    let mut users: Vec<String> = all
        .iter()
        .filter(|mount| Some(mount.parent) == own)
        .map(|mount| format!("{} is mounted inside at {}", mount.source.display(), mount.path.display()))
        .collect();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else { continue };
        if let Some(how) = how_used(&process.path(), path, own) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            users.push(format!("process {pid} ({}) {how}", command.trim().escape_debug()));
        }
    }
    users
}

fn how_used(process: &Path, path: &Path, mount: Option<u64>) -> Option<String> {
    let inside = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(path));
    for (name, how) in [("cwd", "works in it"), ("root", "has it as its root"), ("exe", "is a program of it")] {
        if inside(&process.join(name)) {
            return Some(how.to_owned());
        }
    }
    for descriptor in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
        let info = process.join("fdinfo").join(descriptor.file_name());
        let by_mount = mount.is_some()
            && fs::read_to_string(info).is_ok_and(|info| {
                info.lines().filter_map(|line| line.strip_prefix("mnt_id:")).any(|id| id.trim().parse().ok() == mount)
            });
        if by_mount || inside(&descriptor.path()) {
            let open = fs::read_link(descriptor.path()).unwrap_or_default();
            return Some(format!("has {} open", open.display().to_string().escape_debug()));
        }
    }
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    let mapped = maps.split(|&byte| byte == b'\n').any(|line| {
        let at = line.iter().position(|&byte| byte == b'/');
        at.is_some_and(|at| Path::new(OsStr::from_bytes(&line[at..])).starts_with(path))
    });
    mapped.then(|| "has files of it mapped".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountinfo_line_is_understood() {
        let line =
            br"36 35 0:52 / /mnt/a\040b\134c rw,noatime shared:1 master:2 - fuse.fuse-oss oss://b/x\040y/ ro,a=b\054c";
        let mount = MountInfo::parse(line).unwrap();
        assert_eq!(
            mount,
            MountInfo {
                id: 36,
                parent: 35,
                device: "0:52".into(),
                path: "/mnt/a b\\c".into(),
                fs_type: FS_TYPE.into(),
                source: "oss://b/x y/".into(),
                read_only: true,
                options: br"ro,a=b\054c".to_vec(),
            }
        );
        assert_eq!((mount.option("a"), mount.option("ro"), mount.option("b")), (Some("b,c".into()), None, None));
        assert!(mount.is_ours());
        assert_eq!(MountInfo::parse(b""), None);
        assert!(mounts().unwrap().iter().any(|mount| mount.path == Path::new("/")));
    }

    #[test]
    fn a_view_is_told_from_other_overlays_by_its_upper_layer() {
        let line =
            |upper: &str| format!("36 35 0:52 / /mnt rw - overlay oss://b/ rw,lowerdir=/l,upperdir={upper},workdir=/w");
        let is_ours = |upper: &str| MountInfo::parse(line(upper).as_bytes()).unwrap().is_ours();
        assert!(is_ours("/cache/upper/fuse-oss-upper-0123456789abcdef/upper"));
        assert!(!is_ours("/cache/upper/fuse-oss-upper-0123456789abcdef"));
        assert!(!is_ours("/var/lib/docker/overlay2/0123/upper"));
        assert!(!is_upper_of_any(Path::new("/none")));
    }

    #[test]
    fn targets_are_looked_at_before_they_are_mounted_on() {
        let dir = tempfile::tempdir().unwrap();
        let check = |path: &Path, nonempty| {
            Target::check(path, nonempty).map(drop).map_err(|error| (error.kind, error.message))
        };
        check(dir.path(), false).unwrap();
        let (kind, message) = check(&dir.path().join("none"), false).unwrap_err();
        assert!(kind == ErrorKind::TargetMissing && message.contains("mkdir -p"), "{message}");
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert_eq!(check(&file, false).unwrap_err().0, ErrorKind::TargetMissing);
        let (kind, message) = check(dir.path(), false).unwrap_err();
        assert!(kind == ErrorKind::TargetBusy && message.contains("not empty"), "{message}");
        check(dir.path(), true).unwrap();
        let (kind, message) = check(Path::new("/proc"), true).unwrap_err();
        assert!(kind == ErrorKind::TargetBusy && message.contains("mounted there already"), "{message}");
    }

    #[test]
    fn users_are_found_by_pid_and_command() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&path).spawn().unwrap();
        let users = users(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(users.iter().any(|user| user == &format!("process {} (sleep) works in it", child.id())), "{users:?}");
    }
}
