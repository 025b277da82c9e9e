//! Reads `/proc/*/mountinfo` and `/proc/swaps`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::device::DeviceNumber;

/// A line of mountinfo, as far as it matters here. See proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountLine {
    /// The file system's device; major 0 for one that has no single device (btrfs, overlay, NFS).
    pub number: DeviceNumber,
    /// Where it is mounted.
    pub at: PathBuf,
    /// Its type.
    pub fs_type: String,
    /// What is mounted, as whoever mounted it said; for a file system on disks the path of one of them.
    pub source: OsString,
}

/// All mounts that mountinfo lists, and the lines that could not be understood.
pub(crate) fn mounts(text: &[u8]) -> (Vec<MountLine>, Vec<String>) {
    let mut understood = Vec::new();
    let mut strange = Vec::new();
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        match mount_line(line) {
            Some(mount) => understood.push(mount),
            None => strange.push(String::from_utf8_lossy(line).into_owned()),
        }
    }
    (understood, strange)
}

fn mount_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|&byte| byte == b' ');
    let number = std::str::from_utf8(fields.nth(2)?).ok()?.parse().ok()?;
    let at = PathBuf::from(unescape(fields.nth(1)?));
    // Optional fields follow the options; a lone dash ends them.
    let mut rest = fields.skip(1).skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8(rest.next()?.to_vec()).ok()?;
    let source = unescape(rest.next()?);
    Some(MountLine { number, at, fs_type, source })
}

/// The paths in `/proc/swaps`: devices and files. A file's disk is mounted, so only devices matter to anyone here.
pub(crate) fn swaps(text: &[u8]) -> Vec<PathBuf> {
    text.split(|&byte| byte == b'\n')
        .skip(1)
        .filter_map(|line| line.split(|byte| byte.is_ascii_whitespace()).next())
        .filter(|path| path.starts_with(b"/"))
        .map(|path| PathBuf::from(unescape(path)))
        .map(|path| {
            // A device node that was removed after swapon.
            match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
                Some(path) => PathBuf::from(OsString::from_vec(path.to_vec())),
                None => path,
            }
        })
        .collect()
}

/// Undoes the kernel's `\040` for spaces, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        out.push(code.unwrap_or(byte));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_with_and_without_optional_fields() {
        let text = b"27 1 259:1 / / rw,relatime - ext4 /dev/root rw\n\
            30 27 0:25 /@ /my\\040data\\134x rw shared:3 master:1 - btrfs /dev/nvme1n1 rw,subvol=/@\n";
        let (mounts, strange) = mounts(text);
        assert!(strange.is_empty());
        assert_eq!(mounts[0].number, DeviceNumber { major: 259, minor: 1 });
        assert_eq!((&*mounts[0].at, &*mounts[0].fs_type), ("/".as_ref(), "ext4"));
        assert_eq!(mounts[1].number.major, 0);
        assert_eq!(mounts[1].at, PathBuf::from("/my data\\x"));
        assert_eq!((&*mounts[1].fs_type, mounts[1].source.to_str()), ("btrfs", Some("/dev/nvme1n1")));
    }

    #[test]
    fn a_line_that_is_not_understood_is_reported() {
        let (mounts, strange) = mounts(b"27 1 259 / / rw - ext4 /dev/root rw\n27 1 8:1 / / rw ext4\n");
        assert!(mounts.is_empty());
        assert_eq!(strange.len(), 2);
    }

    #[test]
    fn swaps_without_the_heading() {
        let text = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
            /dev/dm-1                               partition\t1048572\t\t0\t\t-2\n\
            /swap\\040file                           file\t1048572\t\t0\t\t-3\n\
            /dev/vdb\\040(deleted)                   partition\t4\t0\t-4\n";
        assert_eq!(swaps(text), ["/dev/dm-1", "/swap file", "/dev/vdb"].map(PathBuf::from));
        assert!(swaps(b"Filename Type\n").is_empty());
    }

    #[test]
    fn a_backslash_without_an_octal_number_stays() {
        assert_eq!(unescape(b"a\\9b\\04\\040"), "a\\9b\\04 ");
    }
}
