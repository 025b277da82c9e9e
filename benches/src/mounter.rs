//! Mounts: ours and those of others, each with its normal options.

mod ceiling;
mod fuse_oss;
mod mount_s3;
mod rclone;
mod s3fs;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::unistd::{SysconfVar, sysconf};

use crate::cleanup::Served;

pub use ceiling::Ceiling;
pub use fuse_oss::FuseOss;
pub use mount_s3::MountS3;
pub use rclone::{Rclone, rclone_config};
pub use s3fs::S3fs;

/// How long a mount may take to appear.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);

/// A program that mounts the bucket.
pub trait Mounter: Sync {
    /// Its name in tables.
    fn name(&self) -> &'static str;

    /// The program.
    fn program(&self) -> &Path;

    /// The command that prints its version on the first line of its standard output.
    fn version(&self) -> Command {
        let mut command = clean(self.program());
        command.arg("--version");
        command
    }

    /// The command that mounts the bucket and stays in the foreground, with a disk cache that survives it.
    ///
    /// # Errors
    /// When what it needs cannot be prepared.
    fn command(&self, place: &Place) -> anyhow::Result<Command>;

    /// The command that people type, when it is another one: it mounts, leaves a server behind and ends; and the command that
    /// then prints the server's process number, as the figure `"pid"` of some JSON.
    ///
    /// # Errors
    /// When what it needs cannot be prepared.
    fn background(&self, _place: &Place) -> anyhow::Result<Option<Background>> {
        Ok(None)
    }
}

/// See [`Mounter::background`].
#[derive(Debug)]
pub struct Background {
    /// Mounts and ends.
    pub mount: Command,
    /// Says where the server is.
    pub status: Command,
}

/// What a mount is given. All directories exist and are empty unless used before.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where to mount.
    pub target: PathBuf,
    /// For the disk cache.
    pub cache: PathBuf,
    /// For anything else.
    pub work: PathBuf,
    /// The server's port on 127.0.0.1.
    pub port: u16,
    /// The memory that the program is told to keep to, in MiB, where it can be told.
    pub memory_limit: Option<u64>,
    /// Whether programs may change what they see, locally. Only ours can.
    pub writable: bool,
}

impl Place {
    /// The server's URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// A command with next to no environment: proxies, certificates, credentials and settings of whoever runs the benchmark
/// would make it measure something else.
pub fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in ["PATH", "HOME", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// The program's path, if it is on the PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// The first line that a program says when it is asked for its version.
///
/// # Errors
/// When it cannot be run or fails.
pub fn version(mut command: Command) -> anyhow::Result<String> {
    let program = command.get_program().to_owned();
    let program = program.display();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{program} does not say its version: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A live mount; gone when dropped.
#[derive(Debug)]
pub struct Mounted {
    served: Served,
    target: PathBuf,
}

/// What a mount's program has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Processor time in seconds.
    pub cpu: f64,
    /// The most memory it had at once, in bytes.
    pub peak_memory: u64,
}

impl Mounted {
    /// Mounts and waits until the mount answers.
    ///
    /// # Errors
    /// When it does not, with what the program said.
    pub fn start(mounter: &dyn Mounter, place: &Place) -> anyhow::Result<Self> {
        let log = Log(place.work.join("log"));
        let mut command = mounter.command(place)?;
        log.take(&mut command)?;
        command.current_dir(&place.work);
        let mut served = Served::start(command, &place.target)?;
        let deadline = Instant::now() + APPEARS_WITHIN;
        while !served.is_mounted() {
            if let Some(status) = served.ended() {
                bail!("{} ended ({status}) without mounting: {}", mounter.name(), log.end());
            }
            if Instant::now() >= deadline {
                bail!("{} did not mount within {APPEARS_WITHIN:?}: {}", mounter.name(), log.end());
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        let mounted = Self { served, target: place.target.clone() };
        // The first question is answered when the program is ready.
        std::fs::metadata(&mounted.target)
            .with_context(|| format!("the mount of {} does not answer: {}", mounter.name(), log.end()))?;
        Ok(mounted)
    }

    /// The same by the command that people type, if that is another one. `ready` is called as soon as it has ended.
    ///
    /// # Errors
    /// See [`Self::start`]; those of `ready`.
    pub fn start_as_people_do(
        mounter: &dyn Mounter,
        place: &Place,
        ready: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let Some(Background { mut mount, mut status }) = mounter.background(place)? else {
            let mounted = Self::start(mounter, place)?;
            ready(&place.target)?;
            return Ok(mounted);
        };
        let log = Log(place.work.join("log"));
        log.take(&mut mount)?;
        let starting = Served::announce(&place.target)?;
        let ended = mount.current_dir(&place.work).status();
        let ended = ended.with_context(|| format!("cannot start {}", mounter.program().display()))?;
        if !ended.success() {
            bail!("{} ended ({ended}) without mounting: {}", mounter.name(), log.end());
        }
        let outcome = ready(&place.target);
        let served = starting.served_by(server(mounter, &mut status)?);
        outcome.map(|()| Self { served, target: place.target.clone() })
    }

    /// The mount that another program has had made at this place, with the server that it has left behind.
    ///
    /// # Errors
    /// When there is no such server.
    pub fn left_behind(mounter: &dyn Mounter, place: &Place) -> anyhow::Result<Self> {
        let background = mounter.background(place)?;
        let Background { mut status, .. } = background.context("it leaves no server behind")?;
        let served = Served::announce(&place.target)?.served_by(server(mounter, &mut status)?);
        Ok(Self { served, target: place.target.clone() })
    }

    /// A file or directory in the mount.
    pub fn path(&self, key: &str) -> PathBuf {
        self.target.join(key)
    }

    /// How far the kernel reads ahead in this mount, in KiB. It offers file systems 128 at most; this is where more is said.
    ///
    /// # Errors
    /// When the kernel has no such setting.
    pub fn set_read_ahead(&self, kib: u32) -> anyhow::Result<()> {
        let device = std::fs::metadata(&self.target).context("the mount does not answer")?.dev();
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        std::fs::write(&path, kib.to_string()).with_context(|| format!("cannot write {path}"))
    }

    /// What the program, with all processes that it has started, has used so far; zero when the kernel does not say.
    pub fn usage(&self) -> Usage {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        let ticks = crate::figures::float(u64::try_from(ticks).unwrap_or(100));
        let file = |pid: i32, name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let all = family(self.served.pid().as_raw(), &parents());
        all.into_iter().fold(Usage::default(), |sum, pid| Usage {
            cpu: sum.cpu + cpu_ticks(&file(pid, "stat")) / ticks,
            peak_memory: sum.peak_memory + peak_memory(&file(pid, "status")),
        })
    }
}

/// Where a program's messages go.
struct Log(PathBuf);

impl Log {
    fn take(&self, command: &mut Command) -> anyhow::Result<()> {
        let sink =
            || std::fs::File::options().create(true).append(true).open(&self.0).context("cannot make a log file");
        command.stdin(Stdio::null()).stdout(sink()?).stderr(sink()?);
        Ok(())
    }

    fn end(&self) -> String {
        last_lines(&std::fs::read_to_string(&self.0).unwrap_or_default())
    }
}

/// Asks for the process number of a server.
fn server(mounter: &dyn Mounter, status: &mut Command) -> anyhow::Result<i32> {
    let said = status.stdin(Stdio::null()).output().context("cannot ask for the server")?;
    let said = String::from_utf8_lossy(&said.stdout);
    server_of(&said).with_context(|| format!("{} does not say its server: {said}", mounter.name()))
}

/// The first process number in a server's status.
fn server_of(status: &str) -> Option<i32> {
    let status: serde_json::Value = serde_json::from_str(status).ok()?;
    let servers = status.as_array().map_or(std::slice::from_ref(&status), Vec::as_slice);
    servers.iter().find_map(|server| server.get("pid")?.as_i64()?.try_into().ok())
}

/// Every process with its parent.
fn parents() -> Vec<(i32, i32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, parent(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// The parent out of `/proc/PID/stat`.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// A process and all that descend from it.
fn family(first: i32, parents: &[(i32, i32)]) -> Vec<i32> {
    let mut family = vec![first];
    let mut looked_at = 0;
    while let Some(&member) = family.get(looked_at) {
        let children = parents.iter().filter(|(pid, parent)| *parent == member && !family.contains(pid));
        let children: Vec<i32> = children.map(|(pid, _)| *pid).collect();
        family.extend(children);
        looked_at += 1;
    }
    family
}

/// User and system time out of `/proc/PID/stat`, in clock ticks.
fn cpu_ticks(stat: &str) -> f64 {
    // The name, in parentheses, can hold anything.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum()
}

/// The peak of resident memory out of `/proc/PID/status`, in bytes.
fn peak_memory(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 10";
        assert!((cpu_ticks(stat) - 300.0).abs() < 1e-9);
        assert_eq!(peak_memory("VmPeak:\t 9 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 5 kB\n"), 1234 * 1024);
        assert!(cpu_ticks("") == 0.0 && peak_memory("") == 0);
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(peak_memory(&own) > 1 << 20);
    }

    #[test]
    fn a_program_is_all_its_processes() {
        assert_eq!(parent("12 (a) b) S 77 12 12 0"), Some(77));
        assert_eq!(family(5, &[(5, 1), (6, 5), (7, 6), (8, 1), (9, 5)]), [5, 6, 9, 7]);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(parents().iter().any(|(pid, _)| *pid == own));
        assert_eq!(server_of(r#"[{"version": "1", "pid": 42}]"#), Some(42));
        assert_eq!(server_of(r#"{"pid": 43}"#), Some(43));
        assert_eq!(server_of("[]"), None);
    }

    #[test]
    fn only_the_end_of_a_long_log_is_said() {
        assert_eq!(last_lines("1\n2\n3\n4\n5\n6\n7\n"), "3 | 4 | 5 | 6 | 7");
        assert_eq!(last_lines(""), "");
    }
}
