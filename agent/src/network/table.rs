//! What is mounted, by the kernel's table, and whether it is what is wanted.
//!
//! Reading the table touches no mount, so it never hangs. What the table says of a mount differs a little from what was asked
//! for: NFS keeps the server's name as it was given, Lustre replaces it by its address.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use fuse_oss::mountpoint::{self, MountInfo};
use nvme_setup::printable;

use super::options;
use super::probe::within;
use super::source::lustre_parts;
use crate::settings::NetworkFileSystem;

/// How long a name server may take, when it has to be asked whether two names mean one server.
const NAME_LIMIT: Duration = Duration::from_secs(5);

/// What is mounted at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum There {
    /// Nothing.
    Nothing,
    /// What is wanted.
    Same,
    /// Something else.
    Other {
        /// What.
        what: String,
        /// How it is not what is wanted.
        difference: String,
    },
}

/// Addresses by names.
type Addresses = BTreeMap<String, Vec<IpAddr>>;

/// The uppermost mount exactly at `path`, which must not have links in it.
pub(super) fn at(path: &Path) -> io::Result<Option<MountInfo>> {
    Ok(mountpoint::mounts()?.into_iter().rev().find(|mount| mount.path == path))
}

/// The innermost mount that `path` lies in, without looking at the path itself.
pub(super) fn holder(path: &Path) -> Option<MountInfo> {
    let mounts = mountpoint::mounts().ok()?.into_iter();
    mounts.filter(|mount| path.starts_with(&mount.path)).max_by_key(|mount| mount.path.components().count())
}

/// Whether somebody other than this kernel has to answer for a file system of that type.
pub(super) fn is_remote(fs_type: &str) -> bool {
    let family = fs_type.split_once('.').map_or(fs_type, |(family, _)| family);
    matches!(
        family,
        "nfs" | "nfs4" | "lustre" | "fuse" | "fuseblk" | "cifs" | "smb3" | "9p" | "ceph" | "afs" | "gpfs" | "beegfs"
    )
}

/// What a mount is, in words.
pub(super) fn shown(mount: &MountInfo) -> String {
    format!("{} ({})", printable(&mount.source.to_string_lossy()), printable(&mount.fs_type))
}

/// What is mounted at `path`, which must not have links in it. May ask a name server.
pub(super) fn there(what: &NetworkFileSystem, writable: bool, path: &Path) -> io::Result<There> {
    let Some(mount) = at(path)? else { return Ok(There::Nothing) };
    let addresses = addresses(what, &mount);
    Ok(match difference(what, writable, &mount, &addresses) {
        None => There::Same,
        Some(difference) => There::Other { what: shown(&mount), difference },
    })
}

/// How a mount is not what is wanted.
fn difference(what: &NetworkFileSystem, writable: bool, mount: &MountInfo, addresses: &Addresses) -> Option<String> {
    let wanted = what.device().to_string_lossy().into_owned();
    let types: &[&str] = match what {
        NetworkFileSystem::Nfs { .. } => &["nfs", "nfs4"],
        NetworkFileSystem::Lustre { .. } => &["lustre"],
    };
    let is_same = types.contains(&mount.fs_type.as_str())
        && match what {
            NetworkFileSystem::Nfs { .. } => same_export(&wanted, &mount.source.to_string_lossy()),
            NetworkFileSystem::Lustre { .. } => same_lustre(&wanted, &mount.source.to_string_lossy(), addresses),
        };
    if !is_same {
        return Some("it is not what is wanted there".to_owned());
    }
    if mount.read_only == writable {
        let (is, wanted) = if writable { ("read-only", "writable") } else { ("writable", "read-only") };
        return Some(format!("it is {is} and wanted {wanted}"));
    }
    let found = mount.option("vers").map(|version| version.to_string_lossy().into_owned());
    match (options::version(what), found) {
        (Some(wanted), Some(found)) if !is_version(&wanted, &found) => {
            Some(format!("it speaks NFS {} and is wanted with NFS {wanted}", printable(&found)))
        }
        _ => None,
    }
}

/// Whether the kernel's `found` is what `wanted` asks for; `4` is any of 4.0, 4.1, 4.2.
fn is_version(wanted: &str, found: &str) -> bool {
    wanted == found || found.strip_prefix(wanted).is_some_and(|minor| minor.starts_with('.'))
}

/// `host:/directory`, but for slashes at the end, which the kernel keeps as they were given.
fn same_export(wanted: &str, found: &str) -> bool {
    let trimmed = |text: &str| text.trim_end_matches('/').to_owned();
    trimmed(wanted) == trimmed(found)
}

fn same_lustre(wanted: &str, found: &str, addresses: &Addresses) -> bool {
    let (Some((wanted, wanted_name)), Some((found, found_name))) = (lustre_parts(wanted), lustre_parts(found)) else {
        return false;
    };
    let separators = [':', ','];
    let (wanted, found): (Vec<&str>, Vec<&str>) =
        (wanted.split(separators).collect(), found.split(separators).collect());
    wanted_name == found_name
        && wanted.len() == found.len()
        && wanted.iter().zip(found).all(|(wanted, found)| wanted == &found || same_server(wanted, found, addresses))
}

/// `HOST@NETWORK`; `tcp` and `tcp0` are one network.
fn same_server(wanted: &str, found: &str, addresses: &Addresses) -> bool {
    let (Some((wanted, wanted_network)), Some((found, found_network))) =
        (wanted.split_once('@'), found.split_once('@'))
    else {
        return false;
    };
    let network = |name: &str| {
        name.strip_suffix('0').filter(|name| name.ends_with(char::is_alphabetic)).unwrap_or(name).to_owned()
    };
    let known = || addresses.get(wanted).zip(found.parse().ok()).is_some_and(|(known, found)| known.contains(&found));
    network(wanted_network) == network(found_network) && (wanted == found || known())
}

/// The addresses of the servers of a Lustre that may be the one in the table: asked for only when everything else agrees.
fn addresses(what: &NetworkFileSystem, mount: &MountInfo) -> Addresses {
    let NetworkFileSystem::Lustre { device, .. } = what else { return Addresses::new() };
    let found = mount.source.to_string_lossy().into_owned();
    let names = (lustre_parts(device).map(|(_, name)| name), lustre_parts(&found).map(|(_, name)| name));
    if mount.fs_type != "lustre" || names.0 != names.1 || *device == found {
        return Addresses::new();
    }
    let Some((servers, _)) = lustre_parts(device) else { return Addresses::new() };
    let hosts: Vec<String> =
        servers.split([':', ',']).filter_map(|nid| nid.split_once('@')).map(|(host, _)| host.to_owned()).collect();
    let ask = move || {
        let address =
            |host: &String| (host.as_str(), 0).to_socket_addrs().ok().map(|found| found.map(|a| a.ip()).collect());
        hosts.iter().filter_map(|host| Some((host.clone(), address(host)?))).collect()
    };
    within(NAME_LIMIT, ask).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount by its line in mountinfo, found as the real ones are.
    fn mount(fs_type: &str, source: &str, of_mount: &str, options: &str) -> MountInfo {
        MountInfo::parse(format!("40 30 0:50 / /t {of_mount} shared:1 - {fs_type} {source} {options}").as_bytes())
            .unwrap()
    }

    fn differ(what: &str, writable: bool, mount: &MountInfo) -> Option<String> {
        let addresses = [("fs".to_owned(), vec!["10.0.0.7".parse().unwrap()])].into();
        difference(&NetworkFileSystem::parse(what).unwrap(), writable, mount, &addresses)
    }

    const V3: &str = "rw,vers=3,rsize=1048576,wsize=1048576,namlen=255,hard,nolock,noresvport,proto=tcp,addr=10.0.0.1";

    #[test]
    fn nfs_is_the_same_when_server_directory_access_and_version_are() {
        let found = mount("nfs", "h:/d", "rw,relatime", V3);
        assert_eq!(differ("nas://h:/d/", true, &found), None);
        assert_eq!(differ("nas://h:/d", true, &mount("nfs", "h:/d/", "rw,relatime", V3)), None);
        assert_eq!(differ("nas://h:/", true, &mount("nfs", "h:/", "rw,relatime", V3)), None);
        assert_eq!(differ("nas://h:/a b", true, &mount("nfs", "h:/a\\040b", "rw", V3)), None);
        assert!(differ("nas://h:/other", true, &found).unwrap().contains("not what is wanted"));
        assert!(differ("nas://h:/d", false, &found).unwrap().contains("is writable and wanted read-only"));
        let read_only = mount("nfs", "h:/d", "ro,relatime", V3);
        assert_eq!(differ("nas://h:/d", false, &read_only), None);
        assert!(differ("nas://h:/d", true, &read_only).unwrap().contains("is read-only and wanted writable"));
        let newer = mount("nfs4", "h:/d", "rw", "rw,vers=4.1,proto=tcp");
        assert_eq!(differ("nas://h:/d", true, &newer).unwrap(), "it speaks NFS 4.1 and is wanted with NFS 3");
        assert!(
            differ("nas://h:/d", true, &mount("tmpfs", "h:/d", "rw", "rw")).is_some(),
            "the name alone proves nothing"
        );
    }

    #[test]
    fn lustre_is_known_by_its_address() {
        let found = mount("lustre", "10.0.0.7@tcp:/name", "rw,noatime", "rw,flock,lazystatfs");
        assert_eq!(differ("lustre://fs@tcp:/name", true, &found), None);
        assert_eq!(differ("fs@tcp0:/name", true, &found), None);
        assert_eq!(differ("10.0.0.7@tcp:/name", true, &found), None);
        for other in ["fs@tcp1:/name", "fs@o2ib:/name", "fs@tcp:/other", "unknown@tcp:/name", "fs@tcp:fs@tcp:/name"] {
            assert!(differ(other, true, &found).is_some(), "{other}");
        }
    }

    #[test]
    fn who_answers_is_known_by_the_type() {
        for remote in ["nfs", "nfs4", "lustre", "fuse", "fuse.fuse-oss", "fuse.sshfs", "cifs"] {
            assert!(is_remote(remote), "{remote}");
        }
        for local in ["ext4", "xfs", "tmpfs", "overlay", "proc", "fusectl", "nfsd"] {
            assert!(!is_remote(local), "{local}");
        }
    }

    #[test]
    fn version_four_is_any_of_its_minors() {
        assert!(is_version("4", "4.1") && is_version("4.1", "4.1") && is_version("3", "3"));
        assert!(!is_version("4.1", "4.0") && !is_version("3", "4.0") && !is_version("4.1", "4.10"));
    }

    #[test]
    fn the_table_of_this_machine_is_read() {
        let what = NetworkFileSystem::parse("nas://h:/d").unwrap();
        assert!(matches!(there(&what, true, Path::new("/proc")).unwrap(), There::Other { .. }));
        assert_eq!(there(&what, true, Path::new("/nowhere")).unwrap(), There::Nothing);
        assert_eq!(holder(Path::new("/proc/self/x")).unwrap().path, Path::new("/proc"));
    }
}
