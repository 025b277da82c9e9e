//! Mounts: ours and those of others, each with its normal options.

mod fuse_oss;
mod mount_s3;
mod rclone;
mod s3fs;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::unistd::{SysconfVar, sysconf};

use crate::cleanup::Served;

pub use fuse_oss::FuseOss;
pub use mount_s3::MountS3;
pub use rclone::Rclone;
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
}

/// What a mount is given. All directories exist and are empty unless used before.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Where to mount.
    pub target: &'a Path,
    /// For the disk cache.
    pub cache: &'a Path,
    /// For anything else.
    pub work: &'a Path,
    /// The server's port on 127.0.0.1.
    pub port: u16,
}

impl Place<'_> {
    /// The server's URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// A command with next to no environment: proxies, certificates, credentials and settings of whoever runs the benchmark
/// would make it measure something else.
fn clean(program: &Path) -> Command {
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

/// The first line that the program says about its version.
pub fn version(mounter: &dyn Mounter) -> anyhow::Result<String> {
    let program = mounter.program().display();
    let output = mounter.version().stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
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
        let log = place.work.join("log");
        let sink = || std::fs::File::options().create(true).append(true).open(&log).context("cannot make a log file");
        let mut command = mounter.command(place)?;
        command.stdin(Stdio::null()).stdout(sink()?).stderr(sink()?).current_dir(place.work);
        let mut served = Served::start(command, place.target)?;
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let deadline = Instant::now() + APPEARS_WITHIN;
        while !served.is_mounted() {
            if let Some(status) = served.ended() {
                bail!("{} ended ({status}) without mounting: {}", mounter.name(), last_lines(&said()));
            }
            if Instant::now() >= deadline {
                bail!("{} did not mount within {APPEARS_WITHIN:?}: {}", mounter.name(), last_lines(&said()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let mounted = Self { served, target: place.target.to_owned() };
        // The first question is answered when the program is ready.
        std::fs::metadata(&mounted.target)
            .with_context(|| format!("the mount of {} does not answer: {}", mounter.name(), last_lines(&said())))?;
        Ok(mounted)
    }

    /// A file or directory in the mount.
    pub fn path(&self, key: &str) -> PathBuf {
        self.target.join(key)
    }

    /// What the program has used so far; zero when the kernel does not say.
    pub fn usage(&self) -> Usage {
        let file =
            |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", self.served.pid())).unwrap_or_default();
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        Usage {
            cpu: cpu_ticks(&file("stat")) / crate::figures::float(u64::try_from(ticks).unwrap_or(100)),
            peak_memory: peak_memory(&file("status")),
        }
    }
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
    fn only_the_end_of_a_long_log_is_said() {
        assert_eq!(last_lines("1\n2\n3\n4\n5\n6\n7\n"), "3 | 4 | 5 | 6 | 7");
        assert_eq!(last_lines(""), "");
    }
}
