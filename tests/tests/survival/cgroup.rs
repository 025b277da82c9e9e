//! A control group with a limit of memory, on either hierarchy.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

/// Gone when it is dropped, if nobody is in it any more.
#[derive(Debug)]
pub struct MemoryGroup {
    path: PathBuf,
    unified: bool,
}

impl MemoryGroup {
    /// A new one that may hold so many bytes.
    ///
    /// # Panics
    /// When the machine has no memory controller that can be used.
    pub fn new(name: &str, bytes: u64) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let unified = !v1.is_dir();
        let parent = if unified { v2 } else { v1 };
        let group = Self { path: parent.join(name), unified };
        let made = fs::create_dir(&group.path);
        let limit = if unified { "memory.max" } else { "memory.limit_in_bytes" };
        let limited = made.and_then(|()| fs::write(group.path.join(limit), bytes.to_string()));
        limited.unwrap_or_else(|error| panic!("these tests need control groups for memory: {error}"));
        if unified {
            // Else it would be put out to swap first.
            let _ = fs::write(group.path.join("memory.swap.max"), "0");
        }
        group
    }

    /// Moves a process into it.
    pub fn add(&self, pid: Pid) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub fn kills(&self) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.path.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("the kernel counts them").trim().parse().unwrap()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Who is still there, when a test has failed, goes on outside.
        let parent = self.path.parent().map(|parent| parent.join("cgroup.procs"));
        for pid in fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = parent.as_ref().map(|parent| fs::write(parent, pid));
        }
        // And a zombie takes a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("{} stays", self.path.display());
    }
}
