//! What a network file system is called: from the text in settings or a job to what the mount command is given.
//!
//! The text is hostile, and what becomes of it is an argument of a command that runs as root. So it is taken apart, each part
//! is checked against what it may hold at all, and the argument is put together anew: it never begins with a dash, never has a
//! control character, and its server part never has a comma or a space, whatever was written.

use std::ffi::OsString;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use crate::job::finding::{is_deceptive, quoted};
use crate::settings::{NetworkFileSystem, NfsVersion};

/// The longest server part, in bytes. A host name has 255 at most; the list of a large Lustre's servers is longer.
const MAX_SERVER: usize = 1024;

/// The longest directory, in bytes: what an NFS client accepts.
const MAX_DIRECTORY: usize = 1024;

/// The longest component, in bytes.
const MAX_COMPONENT: usize = 255;

/// What to write.
const SHAPE: &str = "write nas://HOST:/DIRECTORY/ or lustre://HOST@tcp:/NAME";

/// Why a text is not the source of a network mount. Complete with [`SourceError::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; {remedy}")]
pub struct SourceError {
    /// What is wrong, as the rest of a sentence that begins with the text.
    pub cause: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

impl SourceError {
    const fn new(cause: &'static str, remedy: &'static str) -> Self {
        Self { cause, remedy }
    }

    /// The whole message, for the text that was refused.
    pub fn of(self, text: &str) -> String {
        format!("{} {self}", quoted(text))
    }
}

/// The part of a text that names servers, and the directory (or file system) behind it.
type Parts<'a> = (&'a str, &'a str);

impl NetworkFileSystem {
    /// Reads `nas://HOST:/DIRECTORY`, `nfs://HOST:/DIRECTORY`, `lustre://SERVERS:/NAME` or, as the mount command writes it,
    /// `SERVERS:/NAME` with `SERVERS` such as `fs-x.fsx.region.amazonaws.com@tcp` or `10.0.0.1@o2ib:10.0.0.2@o2ib`.
    ///
    /// Protocol version and options are the defaults.
    ///
    /// # Errors
    /// Windows forms (`smb://`, `E:`, a trailing `!`) are refused by name, and so is everything else that is not of this form.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        const WINDOWS: SourceError = SourceError::new(
            "is a mount for Windows, and this node runs Linux",
            "write nas://HOST:/DIRECTORY/ for NFS",
        );
        if matches!(text.as_bytes(), [drive, b':', ..] if drive.is_ascii_alphabetic())
            || text.starts_with("smb://")
            || text.starts_with("cifs://")
            || text.starts_with("\\\\")
            || text.trim_end_matches('/').ends_with('!')
        {
            return Err(WINDOWS);
        }
        match text.split_once("://") {
            Some(("nas" | "nfs", rest)) => nfs(split(rest)?),
            Some(("lustre", rest)) => lustre(split(rest)?),
            Some(_) => Err(SourceError::new("is of a kind that is not supported", "use nas:// (NFS) or lustre://")),
            None if text.contains('@') => lustre(split(text)?),
            None => Err(SourceError::new("does not say what kind of file system it is", SHAPE)),
        }
    }

    /// Whether a text is meant as one of these, be it right or wrong.
    pub fn is_meant(text: &str) -> bool {
        match text.split_once("://") {
            Some((scheme, _)) => matches!(scheme, "nas" | "nfs" | "lustre" | "smb" | "cifs" | "nasplus" | "cpfs"),
            None => text.split_once(":/").is_some_and(|(servers, _)| servers.contains('@')),
        }
    }

    /// What is mounted, as the mount command takes it and the mount table shows it.
    pub fn device(&self) -> OsString {
        match self {
            Self::Nfs { host, path, .. } => {
                let mut device = OsString::from(if is_ipv6(host) { format!("[{host}]:") } else { format!("{host}:") });
                device.push(path);
                device
            }
            Self::Lustre { device, .. } => device.into(),
        }
    }

    /// The type that the mount command is told.
    pub fn fs_type(&self) -> &'static str {
        match self {
            Self::Nfs { .. } => "nfs",
            Self::Lustre { .. } => "lustre",
        }
    }

    /// The options that were asked for beyond the usual ones.
    pub fn more_options(&self) -> &[String] {
        match self {
            Self::Nfs { options, .. } | Self::Lustre { options, .. } => options,
        }
    }
}

/// Whether a server is given by an address of version 6, which mounting has its own protocol name for.
pub(super) fn is_ipv6(host: &str) -> bool {
    host.parse::<Ipv6Addr>().is_ok()
}

fn split(rest: &str) -> Result<Parts<'_>, SourceError> {
    // An address of version 6 has colons of its own.
    let from = if rest.starts_with('[') { rest.find(']').unwrap_or(0) } else { 0 };
    let Some(at) = rest[from..].find(":/").map(|at| from + at) else {
        return Err(SourceError::new("has no \":/\" between server and directory", SHAPE));
    };
    Ok((&rest[..at], &rest[at + 1..]))
}

fn nfs((server, directory): Parts<'_>) -> Result<NetworkFileSystem, SourceError> {
    const NO_SERVER: SourceError = SourceError::new("does not name a server", SHAPE);
    let host = match server.strip_prefix('[') {
        Some(address) => {
            let address: Ipv6Addr =
                address.strip_suffix(']').and_then(|address| address.parse().ok()).ok_or(NO_SERVER)?;
            address.to_string()
        }
        None if is_host(server) => server.to_owned(),
        None => return Err(NO_SERVER),
    };
    Ok(NetworkFileSystem::Nfs { host, path: normal(directory)?, version: NfsVersion::default(), options: Vec::new() })
}

/// `SERVER[,SERVER...][:SERVER...]` and `/NAME[/DIRECTORY]`: commas between the addresses of one management server, colons
/// between servers that stand in for each other.
fn lustre((servers, name): Parts<'_>) -> Result<NetworkFileSystem, SourceError> {
    let nids = servers.split([':', ',']);
    if servers.len() > MAX_SERVER || !nids.clone().all(is_nid) {
        return Err(SourceError::new("does not name a server", SHAPE));
    }
    let path = normal(name)?;
    let mut parts = path.components().skip(1).map(|part| part.as_os_str().to_string_lossy());
    let is_name = |name: &str| {
        name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if !parts.next().is_some_and(|name| is_name(&name)) {
        return Err(SourceError::new("has no name of a Lustre file system after \":/\"", SHAPE));
    }
    // Lustre's mount options, which this becomes one of in the kernel, are separated by commas.
    if path.to_string_lossy().contains([',', ' ']) {
        return Err(SourceError::new(
            "names a directory that cannot be mounted",
            "mount the directory above it; Lustre takes no commas and spaces here",
        ));
    }
    Ok(NetworkFileSystem::Lustre { device: format!("{servers}:{}", path.display()), options: Vec::new() })
}

/// A host name or an address of version 4. Nothing that a command could take for an option.
fn is_host(text: &str) -> bool {
    text.len() <= 255
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// `HOST@NETWORK`: the network is `tcp`, `o2ib`, `efa`, ... with a number where there are several.
fn is_nid(text: &str) -> bool {
    text.split_once('@').is_some_and(|(host, network)| {
        is_host(host)
            && network.len() <= 16
            && network.starts_with(|c: char| c.is_ascii_lowercase())
            && network.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    })
}

/// The directory, without `.`, doubled and trailing slashes.
fn normal(directory: &str) -> Result<PathBuf, SourceError> {
    const REFUSED: SourceError =
        SourceError::new("names a directory that cannot be mounted", "write an absolute path without \"..\"");
    if directory.len() > MAX_DIRECTORY || directory.chars().any(is_deceptive) {
        return Err(REFUSED);
    }
    let mut path = PathBuf::from("/");
    for component in directory.split('/') {
        match component {
            "" | "." => {}
            ".." => return Err(REFUSED),
            name if name.len() > MAX_COMPONENT => return Err(REFUSED),
            name => path.push(name),
        }
    }
    Ok(path)
}

/// The servers and the name of a Lustre device, both as written.
pub(super) fn lustre_parts(device: &str) -> Option<(&str, &Path)> {
    let (servers, name) = device.split_once(":/")?;
    Some((servers, Path::new(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(text: &str) -> String {
        NetworkFileSystem::parse(text)
            .unwrap_or_else(|error| panic!("{}", error.of(text)))
            .device()
            .into_string()
            .unwrap()
    }

    #[test]
    fn what_the_services_hand_out_is_understood() {
        for (text, expected) in [
            ("nas://xxx.cn-beijing.nas.aliyuncs.com:/", "xxx.cn-beijing.nas.aliyuncs.com:/"),
            (
                "nas://0266e49fea-yio75.cn-beijing.nas.aliyuncs.com:/a//b/./c/",
                "0266e49fea-yio75.cn-beijing.nas.aliyuncs.com:/a/b/c",
            ),
            ("nfs://10.0.0.1:/srv/data, old (1)/", "10.0.0.1:/srv/data, old (1)"),
            ("nfs://fs-1.efs.us-east-1.amazonaws.com:/", "fs-1.efs.us-east-1.amazonaws.com:/"),
            ("nas://[fd00::0:1]:/d", "[fd00::1]:/d"),
            (
                "lustre://fs-abcdef.fsx.cn-northwest-1.amazonaws.com@tcp:/zxktnbmv",
                "fs-abcdef.fsx.cn-northwest-1.amazonaws.com@tcp:/zxktnbmv",
            ),
            (
                "fs-abcdef.fsx.cn-northwest-1.amazonaws.com@tcp:/zxktnbmv/",
                "fs-abcdef.fsx.cn-northwest-1.amazonaws.com@tcp:/zxktnbmv",
            ),
            (
                "10.0.0.1@o2ib,10.1.0.1@tcp1:10.0.0.2@o2ib:/scratch/team",
                "10.0.0.1@o2ib,10.1.0.1@tcp1:10.0.0.2@o2ib:/scratch/team",
            ),
        ] {
            assert_eq!(device(text), expected);
            assert!(NetworkFileSystem::is_meant(text), "{text}");
        }
    }

    #[test]
    fn what_is_not_meant_for_this_node_is_refused_by_name() {
        for (text, expected) in [
            ("smb://host/share", "is a mount for Windows"),
            ("E:", "is a mount for Windows"),
            ("E:\\data", "is a mount for Windows"),
            ("\\\\host\\share", "is a mount for Windows"),
            ("nas://xxx.cn-beijing.nas.aliyuncs.com:/!", "is a mount for Windows"),
            ("nas://host:/d/!", "is a mount for Windows"),
            ("nas://host:/d!/", "is a mount for Windows"),
            ("cpfs://host:/d", "is of a kind that is not supported"),
            ("NAS://host:/d", "is of a kind that is not supported"),
            ("nas://host/d", "has no \":/\""),
            ("nas://host:d", "has no \":/\""),
            ("nas://host:2049/d", "has no \":/\""),
            ("host:/d", "does not say what kind"),
            ("", "does not say what kind"),
            ("nas://:/d", "does not name a server"),
            ("nas://-o:/d", "does not name a server"),
            ("nas://a,b:/d", "does not name a server"),
            ("nas://a b:/d", "does not name a server"),
            ("nas://user@host:/d", "does not name a server"),
            ("nas://[::1:/d", "does not name a server"),
            ("nas://[x]:/d", "does not name a server"),
            ("nas://host:/a/../b", "names a directory that cannot"),
            ("nas://host:/a\nb", "names a directory that cannot"),
            ("lustre://host:/name", "does not name a server"),
            ("lustre://host@tcp,rw:/name", "does not name a server"),
            ("lustre://host@tcp::/name", "does not name a server"),
            ("lustre://host@tcp:/", "has no name of a Lustre"),
            ("lustre://host@tcp:/na me", "has no name of a Lustre"),
            ("lustre://host@tcp:/name/a,rw", "names a directory that cannot"),
            ("-o rw@tcp:/name", "does not name a server"),
        ] {
            let error = NetworkFileSystem::parse(text).expect_err(text).of(text);
            assert!(error.contains(expected), "{text}: {error}");
            assert!(error.contains("; "), "no remedy: {error}");
        }
    }

    proptest! {
        /// Whatever is written: what comes out is one argument that can only be a device, and it means itself.
        #[test]
        fn nothing_can_be_smuggled_in(
            scheme in prop::sample::select(vec!["nas://", "nfs://", "lustre://", ""]),
            server in "[-a-z0-9.,@: \\[\\]!=]{0,20}",
            path in "(:/|/|:)[-a-z0-9.,@:/ !=\n\u{202e}]{0,20}",
        ) {
            let text = format!("{scheme}{server}{path}");
            if let Ok(parsed) = NetworkFileSystem::parse(&text) {
                let device = parsed.device().into_string().unwrap();
                prop_assert!(!device.starts_with('-') && !device.chars().any(is_deceptive), "{device:?}");
                let from = if device.starts_with('[') { device.find(']').unwrap() } else { 0 };
                let at = from + device[from..].find(":/").unwrap();
                let (servers, directory) = (&device[..at], &device[at + 1..]);
                prop_assert!(!servers.contains([' ', '=', '/', '!']), "{device:?}");
                prop_assert!(directory.starts_with('/') && !directory.split('/').any(|part| part == ".."), "{device:?}");
                match &parsed {
                    NetworkFileSystem::Nfs { .. } => prop_assert!(!servers.contains([',', '@']), "{device:?}"),
                    NetworkFileSystem::Lustre { .. } => prop_assert!(!directory.contains([',', ' ']), "{device:?}"),
                }
                let again = match &parsed {
                    NetworkFileSystem::Nfs { .. } => format!("nas://{device}"),
                    NetworkFileSystem::Lustre { .. } => device.clone(),
                };
                prop_assert_eq!(NetworkFileSystem::parse(&again).unwrap(), parsed);
            }
        }
    }
}
