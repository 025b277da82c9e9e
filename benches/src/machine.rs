//! The machine that figures come from: they mean little without it.

use std::path::Path;

use nix::sys::statfs::statfs;
use serde::Serialize;

/// What it is and how busy.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// When this was looked at.
    pub time: String,
    /// Processors that we may use.
    pub cores: usize,
    /// The processor's name.
    pub processor: String,
    /// Memory in GiB.
    pub memory_gib: u64,
    /// Name and release of the kernel.
    pub kernel: String,
    /// The three load averages.
    pub load: String,
    /// Directory of caches and local copies, and its file system.
    pub directory: String,
}

impl Machine {
    /// Looks. `directory` is where caches and local copies will be.
    pub fn look(directory: &Path) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let kib: u64 = after(&file("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
        Self {
            time: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: after(&file("/proc/cpuinfo"), "model name"),
            memory_gib: kib >> 20,
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load(),
            directory: format!("{} ({})", directory.display(), file_system(directory)),
        }
    }
}

impl Machine {
    /// Whether something else was running when this was looked at: a load above 0.5 in the last minute.
    pub fn is_busy(&self) -> bool {
        self.load.split(' ').next().and_then(|load| load.parse::<f64>().ok()).is_none_or(|load| load > 0.5)
    }
}

/// The three load averages now.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The kind of file system that holds a directory.
pub fn file_system(directory: &Path) -> String {
    match statfs(directory).map(|stat| stat.filesystem_type().0) {
        Ok(0xef53) => "ext4".to_owned(),
        Ok(0x5846_5342) => "xfs".to_owned(),
        Ok(0x9123_683e) => "btrfs".to_owned(),
        Ok(0x0102_1994) => "tmpfs".to_owned(),
        Ok(0x794c_7630) => "overlay".to_owned(),
        Ok(other) => format!("{other:#x}"),
        Err(errno) => errno.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_can_be_looked_at() {
        let mut machine = Machine::look(Path::new("/proc"));
        assert!(machine.cores > 0 && machine.memory_gib > 0 && !machine.kernel.is_empty(), "{machine:?}");
        assert_eq!(machine.load.split(' ').count(), 3);
        assert_eq!(machine.directory, "/proc (0x9fa0)");
        for (load, busy) in [("0.50 9.00 9.00", false), ("0.51 0.00 0.00", true), ("", true)] {
            machine.load = load.to_owned();
            assert_eq!(machine.is_busy(), busy, "{load}");
        }
    }
}
