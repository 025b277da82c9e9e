//! `fuse-oss` in a place of its own that leaves nothing behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::double::{Double, KEYS};
use crate::programs;

/// A user that owns nothing here.
const NOBODY: u32 = 65534;

/// A directory of its own with everything a mount needs; whatever is still mounted or running in it ends when it is dropped.
#[derive(Debug)]
pub struct Sandbox {
    directory: tempfile::TempDir,
    binary: PathBuf,
}

impl Sandbox {
    /// Makes one.
    ///
    /// # Panics
    /// When FUSE mounts cannot work here: those tests fail instead of being skipped.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests mount file systems and so must run as root");
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse (modprobe fuse)");
        let directory = tempfile::Builder::new().prefix("fuse-oss-test-").tempdir().expect("a temporary directory");
        for name in ["source", "mnt", "cache", "run"] {
            fs::create_dir(directory.path().join(name)).expect("a new directory is empty");
        }
        Self { directory, binary: programs::path("fuse-oss") }
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The directory that is mostly mounted on.
    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// The directory that is mostly mounted.
    pub fn source(&self) -> PathBuf {
        self.path("source")
    }

    /// It, as a location.
    pub fn location(&self) -> String {
        format!("file://{}/", self.source().display())
    }

    /// The program, in this sandbox's runtime and cache directories and with a clean environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("FUSE_OSS_RUNTIME_DIR", self.path("run"))
            .env("FUSE_OSS_CACHE_DIR", self.path("cache"))
            .env("FUSE_OSS_MEMORY_LIMIT", "256MiB")
            .stdin(Stdio::null())
            .current_dir("/");
        command
    }

    /// `mount` of a location of the double's, with its default key; what else is to be said can be added.
    pub fn mounting(&self, double: &Double, location: &str, target: &Path) -> Command {
        let mut command = self.command();
        command.envs(KEYS).arg("mount").arg(location).arg(target);
        command.args(["--endpoint", &double.endpoint(), "--region", "cn-test", "--addressing", "path"]);
        command
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        Ran::from(self.command().args(arguments).output().expect("the program was built"))
    }

    /// Mounts the source directory.
    ///
    /// # Panics
    /// When that fails.
    pub fn mount(&self) {
        self.run(["mount".as_ref(), self.location().as_ref(), self.mnt().as_os_str()]).succeeded();
    }

    /// Unmounts it.
    ///
    /// # Panics
    /// When that fails.
    pub fn umount(&self) {
        self.run(["umount".as_ref(), self.mnt().as_os_str()]).succeeded();
    }

    /// The server of this sandbox, if it lives.
    pub fn server(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.path("cache").join("lock")).ok()?;
        let owner: serde_json::Value = serde_json::from_str(&text).ok()?;
        let pid = i32::try_from(owner["pid"].as_i64()?).ok()?;
        // A number that was used again is not ours.
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        (program.file_name() == self.binary.file_name()).then(|| Pid::from_raw(pid))
    }

    /// The process that does the server's work, if there is one at this moment.
    pub fn worker(&self) -> Option<Pid> {
        let server = self.server()?;
        self.processes().into_iter().find(|pid| parent(*pid) == Some(server))
    }

    /// Every process of every server of this sandbox: keepers and workers.
    pub fn processes(&self) -> Vec<Pid> {
        let here = self.directory.path().as_os_str().as_encoded_bytes();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ours = processes.filter(|process| {
            let program = fs::read_link(process.path().join("exe")).unwrap_or_default();
            let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
            program == self.binary && arguments.windows(here.len()).any(|part| part == here)
        });
        ours.filter_map(|process| process.file_name().to_str()?.parse().ok()).map(Pid::from_raw).collect()
    }

    /// Ends the server and waits until it is gone. SIGKILL is for keeper and worker alike: either would go on without the other.
    ///
    /// # Panics
    /// When there is none, or it does not end.
    pub fn end_server(&self, signal: Signal) {
        let pid = self.server().expect("a server");
        if signal == Signal::SIGKILL {
            return self.kill_all();
        }
        kill(pid, signal).expect("it lives");
        wait_until("the server has ended", || !alive(pid));
    }

    /// Kills whatever of this sandbox's servers there is.
    fn kill_all(&self) {
        let mut processes = self.processes();
        // Parents first: they would start others.
        processes.sort_by_key(|pid| parent(*pid).is_some_and(|parent| self.processes().contains(&parent)));
        for pid in &processes {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while processes.iter().any(|pid| alive(*pid)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What is mounted below this sandbox.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let mounts = fuse_oss::mountpoint::mounts().unwrap_or_default();
        mounts.into_iter().map(|mount| mount.path).filter(|path| path.starts_with(self.directory.path())).collect()
    }

    /// The server's log.
    pub fn log(&self) -> String {
        let mut log = String::new();
        for file in fs::read_dir(self.path("run")).into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|extension| extension == "log") {
                log.push_str(&fs::read_to_string(file.path()).unwrap_or_default());
            }
        }
        log
    }

    /// `fuse-oss status --json`, of the only server.
    ///
    /// # Panics
    /// When there is no server or more than one.
    pub fn status(&self) -> serde_json::Value {
        let ran = self.run(["status", "--json"]);
        let servers: Vec<serde_json::Value> = serde_json::from_str(&ran.stdout).expect("status prints JSON");
        assert_eq!(servers.len(), 1, "{servers:?}");
        servers.into_iter().next().expect("there is one")
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the server ---\n{}", self.log());
        }
        for mount in self.mounts().iter().rev() {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
        self.kill_all();
    }
}

/// A process's parent.
fn parent(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
    Some(Pid::from_raw(parent))
}

/// Whether a process is there and no zombie.
pub fn alive(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

/// Waits for something that happens soon.
///
/// # Panics
/// When it has not after 20 seconds.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit status; none when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// # Panics
    /// Unless it ended well.
    pub fn succeeded(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
    }

    /// # Panics
    /// Unless it ended with this status and one line that holds all of these.
    pub fn failed(&self, code: i32, hints: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let lines = self.stderr.lines().filter(|line| line.starts_with("fuse-oss: ")).count();
        assert_eq!(lines, 1, "one line says what is wrong: {self:?}");
        for hint in hints {
            assert!(self.stderr.contains(hint), "{hint:?} is missing in {:?}", self.stderr);
        }
    }
}

/// A shell script about a directory, run without any rights.
///
/// # Panics
/// When no shell can be started so.
pub fn as_nobody(script: &str, directory: &Path) -> Ran {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg("sh").arg(directory).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    Ran::from(command.uid(NOBODY).gid(NOBODY).output().expect("root may run a shell as anybody"))
}
