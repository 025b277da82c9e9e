//! Which hierarchies of control groups this machine has, and which controllers are in which. Pure but for [`Hierarchy::all`] and
//! [`Hierarchy::of`].
//!
//! A machine may have one hierarchy with everything in it (v2), one for each controller (v1), or both at once: v1 for some controllers
//! and v2 beside them with the others, or with none (hybrid). So every controller is looked for by itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fuse_oss::mountpoint::{self, MountInfo};

/// What we use of the kernel's controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Cpu,
    /// Of v1 only; v2 counts processor time in every group.
    Cpuacct,
    Memory,
    Pids,
    /// Of v1 only; v2 can freeze every group.
    Freezer,
}

impl Controller {
    const ALL: [Self; 5] = [Self::Cpu, Self::Cpuacct, Self::Memory, Self::Pids, Self::Freezer];

    /// As the kernel calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Freezer => "freezer",
        }
    }
}

/// Which of the kernel's two interfaces a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Version {
    V1,
    V2,
}

/// One tree of control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// The controllers of v1 that we use; those of a v2 group are in its `cgroup.controllers`.
    pub(super) controllers: Vec<Controller>,
    /// The directory of the group that this process is in.
    pub(super) own: PathBuf,
}

impl Hierarchy {
    /// All hierarchies that are mounted and are of use to us.
    pub(super) fn all() -> io::Result<Vec<Self>> {
        Ok(Self::among(&mountpoint::mounts()?, &fs::read_to_string("/proc/self/cgroup")?))
    }

    /// The same, with the groups that the process `pid` is in.
    pub(super) fn of(pid: i32) -> io::Result<Vec<Self>> {
        Ok(Self::among(&mountpoint::mounts()?, &fs::read_to_string(format!("/proc/{pid}/cgroup"))?))
    }

    /// The hierarchies among `mounts`, for a process of these groups (`/proc/PID/cgroup`).
    fn among(mounts: &[MountInfo], groups: &str) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for mount in mounts {
            let (version, controllers) = match mount.fs_type.as_str() {
                "cgroup2" => (Version::V2, Vec::new()),
                "cgroup" => {
                    let has = |controller: &Controller| mount.has_option(controller.name());
                    (Version::V1, Controller::ALL.into_iter().filter(has).collect::<Vec<_>>())
                }
                _ => continue,
            };
            // A tree of systemd's own, or of controllers that we do not use; or one that is mounted twice.
            let is_of_no_use = version == Version::V1 && controllers.is_empty();
            if is_of_no_use || found.iter().any(|other| other.version == version && other.controllers == controllers) {
                continue;
            }
            let Some(group) = group_of(version, &controllers, groups) else { continue };
            // What is mounted may be a part of the tree, as in containers; a group outside of it is not to be seen.
            let own = Path::new(group).strip_prefix(&mount.root).map_or_else(
                |_| mount.path.clone(),
                |inside| if inside.as_os_str().is_empty() { mount.path.clone() } else { mount.path.join(inside) },
            );
            found.push(Self { version, mount: mount.path.clone(), controllers, own });
        }
        found
    }
}

/// The group in the hierarchy of these controllers: its line is `number:controllers:path`, for v2 `0::path`.
fn group_of<'a>(version: Version, controllers: &[Controller], groups: &'a str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match (version, controllers.first()) {
            (Version::V1, Some(first)) => names.split(',').any(|name| name == first.name()),
            _ => names.is_empty(),
        };
        is_it.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among(mounts: &str, groups: &str) -> Vec<(Version, String, Vec<Controller>, String)> {
        let mounts: Vec<MountInfo> = mounts.lines().filter_map(|line| MountInfo::parse(line.as_bytes())).collect();
        let shown = |path: PathBuf| path.to_str().unwrap().to_owned();
        Hierarchy::among(&mounts, groups)
            .into_iter()
            .map(|found| (found.version, shown(found.mount), found.controllers, shown(found.own)))
            .collect()
    }

    #[test]
    fn one_tree_with_everything() {
        let mounts = "\
22 1 0:20 / /proc rw - proc proc rw
29 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot";
        let found = among(mounts, "0::/system.slice/batch-agent.service\n");
        let own = "/sys/fs/cgroup/system.slice/batch-agent.service".to_owned();
        assert_eq!(found, [(Version::V2, "/sys/fs/cgroup".to_owned(), vec![], own)]);
    }

    #[test]
    fn a_tree_for_each_controller_and_an_empty_one_beside_them() {
        let mounts = "\
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:32 / /also/here rw - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let groups = "6:freezer:/\n4:memory:/a:b\n2:cpu,cpuacct:/x\n1:name=systemd:/y\n0::/y\n";
        let mounted = |name: &str| format!("/sys/fs/cgroup/{name}");
        assert_eq!(
            among(mounts, groups),
            [
                (
                    Version::V1,
                    mounted("cpu,cpuacct"),
                    vec![Controller::Cpu, Controller::Cpuacct],
                    mounted("cpu,cpuacct/x")
                ),
                (Version::V1, mounted("memory"), vec![Controller::Memory], mounted("memory/a:b")),
                (Version::V1, mounted("freezer"), vec![Controller::Freezer], mounted("freezer")),
                (Version::V2, mounted("unified"), vec![], mounted("unified/y")),
            ]
        );
    }

    #[test]
    fn a_part_of_a_tree_as_in_a_container() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let of = |group: &str| among(mounts, &format!("4:memory:{group}\n")).remove(0).3;
        assert_eq!(of("/docker/abc/deeper"), "/sys/fs/cgroup/memory/deeper");
        assert_eq!(of("/docker/abc"), "/sys/fs/cgroup/memory");
        assert_eq!(of("/elsewhere"), "/sys/fs/cgroup/memory");
        assert_eq!(among("", "0::/\n"), []);
        assert_eq!(among(mounts, "3:pids:/\n"), []);
    }
}
