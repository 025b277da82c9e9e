//! Directories and files that are mounted on: whether one can be, what is there, who uses it, and how it ends.

use std::collections::BTreeSet;
use std::ffi::{CStr, OsStr, OsString};
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
use tracing::debug;

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
    /// What of the file system it shows: `/` is all of it.
    pub root: PathBuf,
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
        let root = PathBuf::from(unescape(fields.next()?));
        let path = PathBuf::from(unescape(fields.next()?));
        let of_mount = fields.next()?;
        // Optional fields end with a single dash.
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let fs_type = text(rest.next()?)?;
        let source = unescape(rest.next()?);
        let options = rest.next().unwrap_or_default().to_vec();
        let read_only =
            [of_mount, &options].into_iter().any(|list| list.split(|&byte| byte == b',').any(|o| o == b"ro"));
        Some(Self { id, parent, device, root, path, fs_type, source, read_only, options })
    }

    /// The value of an option of the file system, such as `upperdir`.
    pub fn option(&self, name: &str) -> Option<OsString> {
        // A comma in a value is escaped.
        let mut options = self.options.split(|&byte| byte == b',');
        options.find_map(|option| option.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(unescape))
    }

    /// Whether the file system has this option, one without a value, such as `noload`.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.split(|&byte| byte == b',').any(|option| option == name.as_bytes())
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

/// What a mount shows at its top, and so what it is mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Top {
    /// A directory.
    Directory,
    /// One file.
    File,
}

/// A directory or file that may be mounted on, held open so that it stays the one that was looked at.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    top: Top,
    held: OwnedFd,
}

impl Target {
    /// Looks at what is to be mounted on. A directory must exist, have nothing mounted on it and, unless `nonempty`, be empty; so must a
    /// regular file, but one that is missing is made, and removed by [`remove_made`] when nothing is mounted on it any more.
    ///
    /// # Errors
    /// [`ErrorKind::TargetMissing`], [`ErrorKind::TargetBusy`], [`ErrorKind::Usage`] when it is a directory and not a file.
    pub fn check(path: &Path, top: Top, nonempty: bool) -> Result<Self, MountError> {
        let shown = path.display();
        let missing = |cause: &dyn std::fmt::Display, remedy: &str| {
            MountError::new(ErrorKind::TargetMissing, format_args!("cannot mount on {shown}: {cause}; {remedy}"))
        };
        let busy =
            |cause: String| MountError::new(ErrorKind::TargetBusy, format_args!("cannot mount on {shown}: {cause}"));
        if top == Top::File && fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            make_file(path).map_err(|error| {
                missing(
                    &format_args!("the file is not there and cannot be made: {error}"),
                    "create its directory first (mkdir -p)",
                )
            })?;
        }
        let real = path.canonicalize().map_err(|error| match error.raw_os_error() {
            Some(libc::ENOTCONN | libc::ECONNABORTED) => {
                busy("a FUSE mount whose process has died is still there; remove it with: umount -l PATH".to_owned())
            }
            _ => missing(&error, "create the directory first (mkdir -p)"),
        })?;
        if let Some(mount) = mounted_on(&real) {
            return Err(busy(format!(
                "{} ({}) is mounted there already; unmount it first (umount {}) or choose another place",
                mount.source.display(),
                mount.fs_type,
                real.display()
            )));
        }
        let held = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_PATH | libc::O_CLOEXEC)
            .open(&real)
            .map_err(|error| missing(&error, "create the directory first (mkdir -p)"))?;
        let metadata = held.metadata().map_err(|error| missing(&error, "look at it with stat(1)"))?;
        match top {
            Top::Directory if !metadata.is_dir() => {
                return Err(missing(&"it is not a directory", "a mount of a directory needs a directory"));
            }
            Top::File if metadata.is_dir() => {
                return Err(MountError::new(
                    ErrorKind::Usage,
                    format_args!(
                        "cannot mount on {shown}: it is a directory, and what is to be mounted is one object; name a file, \
                         or write the location with a trailing slash if that is a directory"
                    ),
                ));
            }
            Top::File if !metadata.is_file() => {
                return Err(missing(&"it is no regular file", "one object is mounted on a regular file"));
            }
            Top::Directory if !nonempty && fs::read_dir(&real).is_ok_and(|mut names| names.next().is_some()) => {
                return Err(busy(
                    "the directory is not empty and the mount would hide what is in it; choose an empty one, or say -o nonempty"
                        .to_owned(),
                ));
            }
            Top::File if !nonempty && metadata.len() > 0 => {
                return Err(busy(
                    "the file is not empty and the mount would hide what is in it; choose another name, or say -o nonempty"
                        .to_owned(),
                ));
            }
            Top::Directory | Top::File => {}
        }
        Ok(Self { path: real, top, held: held.into() })
    }

    /// The absolute path, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The type of the file system's root, as mount(2) wants it: the file type's bits of a mode, octal.
    pub fn root_mode(&self) -> &'static str {
        match self.top {
            Top::Directory => "40000",
            Top::File => "100000",
        }
    }

    /// A path that leads to what was looked at, whatever its name leads to by now.
    pub fn held(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.held.as_raw_fd()))
    }
}

/// The mark of a file that is there only to be mounted on. On the file itself, so that it is known by whoever unmounts, also after a
/// crash; and of the kind that only root can set, so that nobody can have root remove another file.
const MADE: &CStr = c"trusted.fuse-oss.made";

/// Makes an empty file to be mounted on.
fn make_file(path: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)?;
    // SAFETY: a descriptor that is open, a name that ends in a zero, and a value of no bytes.
    let marked = unsafe { libc::fsetxattr(file.as_raw_fd(), MADE.as_ptr(), std::ptr::null(), 0, 0) };
    if marked != 0 {
        let error = io::Error::last_os_error();
        debug!(path = %path.display(), %error, "the file that was made to be mounted on cannot be marked and will stay behind");
    }
    Ok(())
}

/// Removes a file that [`Target::check`] has made, if it is still one, is empty, and nothing is mounted on it.
pub fn remove_made(path: &Path) {
    if mounted_on(path).is_some() {
        return;
    }
    let is_ours = || -> io::Result<bool> {
        // Before opening it, which can have effects on what is no file.
        if !fs::symlink_metadata(path)?.is_file() {
            return Ok(false);
        }
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > 0 {
            return Ok(false);
        }
        // SAFETY: as above; no buffer, so only the length of the value is asked for.
        Ok(unsafe { libc::fgetxattr(file.as_raw_fd(), MADE.as_ptr(), std::ptr::null_mut(), 0) } >= 0)
    };
    if is_ours().unwrap_or(false)
        && let Err(error) = fs::remove_file(path)
    {
        debug!(path = %path.display(), %error, "the file that was made to be mounted on stays behind");
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
        Ok(()) => {
            remove_made(path);
            Ok(())
        }
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
                root: "/".into(),
                path: "/mnt/a b\\c".into(),
                fs_type: FS_TYPE.into(),
                source: "oss://b/x y/".into(),
                read_only: true,
                options: br"ro,a=b\054c".to_vec(),
            }
        );
        assert_eq!((mount.option("a"), mount.option("ro"), mount.option("b")), (Some("b,c".into()), None, None));
        assert!(mount.has_option("ro") && !mount.has_option("a"));
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
            Target::check(path, Top::Directory, nonempty).map(drop).map_err(|error| (error.kind, error.message))
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
    fn a_file_is_made_to_be_mounted_on_and_only_that_one_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let check = |path: &Path, nonempty| {
            Target::check(path, Top::File, nonempty).map_err(|error| (error.kind, error.message))
        };
        let made = dir.path().join("made");
        let target = check(&made, false).unwrap();
        assert_eq!((target.root_mode(), fs::metadata(&made).unwrap().len()), ("100000", 0));
        // Again, as it is still there.
        check(&made, false).unwrap();
        if nix::unistd::geteuid().is_root() {
            remove_made(&made);
            assert!(!made.exists());
            check(&made, false).unwrap();
            fs::write(&made, "by somebody").unwrap();
        }
        remove_made(&made);
        assert!(made.exists());
        let own = dir.path().join("own");
        fs::write(&own, "").unwrap();
        check(&own, false).unwrap();
        remove_made(&own);
        assert!(own.exists());
        fs::write(&own, "content").unwrap();
        let (kind, message) = check(&own, false).unwrap_err();
        assert!(kind == ErrorKind::TargetBusy && message.contains("not empty"), "{message}");
        check(&own, true).unwrap();
        let (kind, message) = check(dir.path(), true).unwrap_err();
        assert!(kind == ErrorKind::Usage && message.contains("is one object"), "{message}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        for (path, hint) in [
            (Path::new("/dev/null"), "no regular file"),
            (&dir.path().join("none/file"), "cannot be made"),
            (&link, "No such file"),
        ] {
            let (kind, message) = check(path, true).unwrap_err();
            assert!(kind == ErrorKind::TargetMissing && message.contains(hint), "{message}");
        }
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
