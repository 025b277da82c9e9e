//! What to install where something is missing: names of packages by distribution.

use std::fs;

/// A Linux distribution, as `/etc/os-release` names it, and its kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct System {
    /// `ID`: `ubuntu`, `amzn`, `alinux`.
    id: String,
    /// `ID_LIKE`, the distributions it descends from.
    like: Vec<String>,
    /// `VERSION_ID`: `22.04`, `2`, `2023`.
    version: String,
    /// As `uname -r` shows it.
    pub kernel: String,
}

impl System {
    /// The one we run on.
    pub fn here() -> Self {
        let text = fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self::parse(&text.unwrap_or_default(), kernel.trim())
    }

    fn parse(os_release: &str, kernel: &str) -> Self {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        Self {
            id: value("ID"),
            like: value("ID_LIKE").split_whitespace().map(str::to_owned).collect(),
            version: value("VERSION_ID"),
            kernel: kernel.to_owned(),
        }
    }

    fn is(&self, id: &str) -> bool {
        self.id == id || self.like.iter().any(|like| like == id)
    }

    /// How to get `mount.nfs`.
    pub fn nfs_client(&self) -> String {
        if self.is("debian") || self.is("ubuntu") {
            "install the package nfs-common".to_owned()
        } else if self.is("rhel") || self.is("fedora") || self.is("centos") || ["amzn", "alinux"].contains(&&*self.id) {
            "install the package nfs-utils".to_owned()
        } else {
            "install the package nfs-common (Debian, Ubuntu) or nfs-utils (others)".to_owned()
        }
    }

    /// How to get the kernel's NFS client.
    pub fn nfs_module(&self) -> String {
        if self.id == "ubuntu" {
            format!("install the package linux-modules-extra-{}, or boot a kernel with NFS", self.kernel)
        } else {
            format!("install the modules of the kernel {}, or boot a kernel with NFS", self.kernel)
        }
    }

    /// How to get `mount.lustre` and modules that fit the kernel.
    pub fn lustre_client(&self) -> String {
        let kernel = &self.kernel;
        match (self.id.as_str(), self.version.as_str()) {
            ("amzn", "2") => "run: amazon-linux-extras install -y lustre; where its module does not fit the kernel, update \
                the kernel and reboot: yum update -y kernel"
                .to_owned(),
            ("amzn", _) => "run: dnf install -y lustre-client; where its module does not fit the kernel, update the kernel \
                and reboot: dnf update -y kernel"
                .to_owned(),
            ("ubuntu", _) => format!(
                "add the Lustre client repository for this release and run: apt install lustre-client-modules-{kernel}"
            ),
            ("rhel" | "centos" | "rocky" | "almalinux", _) => {
                "add the Lustre client repository for this release and run: dnf install kmod-lustre-client lustre-client"
                    .to_owned()
            }
            _ => format!("install the Lustre client built for the kernel {kernel} (lustre-client and its modules)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_distribution_gets_the_name_of_its_own_package() {
        let kernel = "6.1.0-13-amd64";
        for (os_release, nfs, lustre) in [
            ("ID=debian\nVERSION_ID=\"12\"\n", "nfs-common", "built for the kernel 6.1.0-13-amd64"),
            (
                "NAME=x\nID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"22.04\"\n",
                "nfs-common",
                "lustre-client-modules-6.1.0-13-amd64",
            ),
            (
                "ID=\"amzn\"\nID_LIKE=\"centos rhel fedora\"\nVERSION_ID=\"2\"\n",
                "nfs-utils",
                "amazon-linux-extras install -y lustre",
            ),
            ("ID=\"amzn\"\nID_LIKE=\"fedora\"\nVERSION_ID=\"2023\"\n", "nfs-utils", "dnf install -y lustre-client"),
            (
                "ID=\"alinux\"\nID_LIKE=\"rhel fedora centos anolis\"\nVERSION_ID=\"3\"\n",
                "nfs-utils",
                "built for the kernel",
            ),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", "nfs-utils", "kmod-lustre-client"),
            ("", "nfs-common (Debian, Ubuntu) or nfs-utils", "built for the kernel"),
        ] {
            let system = System::parse(os_release, kernel);
            assert!(system.nfs_client().contains(nfs), "{os_release}: {}", system.nfs_client());
            assert!(system.lustre_client().contains(lustre), "{os_release}: {}", system.lustre_client());
        }
        assert!(!System::here().kernel.is_empty());
    }
}
