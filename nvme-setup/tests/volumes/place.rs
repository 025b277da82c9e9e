//! A node of a test: where it mounts, what it runs, and how it is taken away.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, umount2};
use nvme_setup::{Event, Fs, Node, Report, Request, Setup, SetupError, Volume, What};
use tempfile::TempDir;

use crate::common::{Disk, run};

/// A node with a place for its mount points, its lock and its programs. What it has mounted goes with it.
pub struct Place {
    pub directory: TempDir,
    pub setup: Setup,
    pub node: String,
}

impl Place {
    /// One of a node that no other test has.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::of_node(&format!("i-test-{}-{number}", std::process::id()))
    }

    pub fn of_node(id: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("nvme-setup-place-").tempdir().unwrap();
        fs::create_dir(directory.path().join("programs")).unwrap();
        let setup = Setup::new(Node::new(id))
            .with_lock(directory.path().join("lock"))
            .with_programs(directory.path().join("programs"));
        Self { directory, setup, node: id.to_owned() }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.directory.path()).unwrap().join(name)
    }

    /// One volume on one disk.
    pub fn request(&self, disk: &Disk) -> Request {
        Request { volumes: vec![Volume::new(What::Device(disk.path.clone()), self.at("data"))], wait: 0 }
    }

    pub fn ext4(&self, disk: &Disk) -> Request {
        let mut request = self.request(disk);
        request.volumes[0].fs = Some(Fs::Ext4);
        request
    }

    pub fn apply(&self, request: &Request) -> Result<Report, SetupError> {
        self.setup.apply(request, &mut |_| ControlFlow::Continue(()))
    }

    /// Applies, and stops before the step with this number.
    pub fn apply_until(&self, request: &Request, number: usize) -> Result<Report, SetupError> {
        let mut left = number;
        self.setup.apply(request, &mut |event| match event {
            Event::Begin(_) if left == 0 => ControlFlow::Break(()),
            Event::Begin(_) => {
                left -= 1;
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        })
    }

    /// As after a reboot: nothing is mounted.
    pub fn reboot(&self) {
        for at in mounts_below(&fs::canonicalize(self.directory.path()).unwrap()) {
            for line in fs::read_to_string("/proc/swaps").unwrap().lines() {
                if let Some(file) = line.split_whitespace().next().filter(|file| Path::new(file).starts_with(&at)) {
                    run("swapoff", "mount", &[file]);
                }
            }
            umount2(&at, MntFlags::empty()).unwrap();
        }
    }

    /// A program that is run in place of the system's.
    pub fn program(&self, name: &str, script: &str) {
        let path = self.directory.path().join("programs").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn forget_program(&self, name: &str) {
        fs::remove_file(self.directory.path().join("programs").join(name)).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A panic here would hide the one that ended the test; a disk that stays in use is seen when it is detached.
        let Ok(root) = fs::canonicalize(self.directory.path()) else { return };
        for at in mounts_below(&root) {
            let swap = at.join("nvme-setup.swap");
            if fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.contains(&*swap.to_string_lossy())) {
                let _ = Command::new("/sbin/swapoff").arg(&swap).status();
            }
            let _ = umount2(&at, MntFlags::MNT_DETACH);
        }
    }
}

/// Mount points below a directory, the inner ones first.
pub fn mounts_below(root: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let paths = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.starts_with(root)).collect();
    paths.sort();
    paths.reverse();
    paths
}

pub fn steps(report: &Report) -> Vec<String> {
    report.done.iter().map(|planned| planned.step.to_string()).collect()
}

pub fn refused(result: Result<Report, SetupError>) -> String {
    match result {
        Err(SetupError::Refused(plan)) => plan.refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        other => panic!("{other:?}"),
    }
}
