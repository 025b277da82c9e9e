//! What a person wants: a list of volumes, each with its disk, its file system and its place.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The longest wait for disks, in seconds: an hour.
const LONGEST_WAIT: u64 = 3600;
/// The most disks of one volume: more than any machine has.
const MOST_DISKS: u32 = 256;
/// The most directories of an `each`.
pub(crate) const MOST_SLOTS: usize = 64;
/// The most that a volume may be asked to have, in GB: 1 EB.
const LARGEST_GB: u64 = 1 << 30;
/// The smallest swap, in MiB.
const SMALLEST_SWAP: u64 = 16;

/// All volumes that a node shall have.
///
/// ```yaml
/// volumes:
///   - what: instance-store
///     mount: /data
///   - what: {volume-id: vol-0123456789abcdef0}
///     mount: /reference
///     existing: true
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Request {
    /// The volumes. No two of them may have the same mount point, the same label, or want the same disk.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// How long to wait for disks that are not there yet, in seconds; 0 to 3600, by default 60. A cloud attaches a
    /// data disk while the node is booting already.
    #[serde(default = "default_wait")]
    pub wait: u64,
}

fn default_wait() -> u64 {
    60
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Volume {
    /// The disk or disks.
    pub what: What,
    /// Where it is mounted: an absolute path. It is made when missing; a directory that is not empty is refused.
    pub mount: PathBuf,
    /// One volume for each disk, at `MOUNT/0`, `MOUNT/1`, ... in the order of the names in `/dev/disk/by-id`, instead of one
    /// volume over all; at most 64. Only for `instance-store` and `devices`.
    #[serde(default)]
    pub each: bool,
    /// Mount the file system that is there, and never format. Not for `instance-store` and `only-empty`.
    #[serde(default)]
    pub existing: bool,
    /// The file system: by default xfs, or with `existing` whichever is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs: Option<Fs>,
    /// The label of the file system: letters, digits, `.`, `_`, `-`; at most 12 of them for xfs, 16 for ext4. With a label
    /// the volume is known again by it when its mount point is changed; without, it is known by its mount point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Mount options; by default `noatime`.
    #[serde(default = "default_options")]
    pub options: Vec<String>,
    /// How freed space is given back to the disk.
    #[serde(default)]
    pub trim: Trim,
    /// The size in MiB of a swap file on the volume, `nvme-setup.swap`; at least 16. By default there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<u64>,
    /// How many disks are expected, 1 to 256. Fewer are waited for and then refused; more are refused. Without it, whatever
    /// is there when the first one is there is taken. Only for `instance-store`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
}

fn default_options() -> Vec<String> {
    vec!["noatime".to_owned()]
}

/// Which disk or disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// All disks that are the instance's own, known by their model. One disk becomes a plain volume, several become a
    /// RAID0 with chunks of 256 KiB. Those that somebody else uses are left out.
    InstanceStore,
    /// These devices, as with `instance-store`: each a path in `/dev`, whatever their model. A loop device counts as a disk
    /// here.
    Devices(Vec<PathBuf>),
    /// One device: a path in `/dev`. A loop device counts as a disk here.
    Device(PathBuf),
    /// The data disk with this serial number.
    Serial(String),
    /// The data disk with this name in `/dev/disk/by-id`, with or without the directory.
    ById(String),
    /// The cloud's id for it, `vol-...` or `d-...`: the disk shows it as its serial number, without the dash or the `d-`.
    VolumeId(String),
    /// The one data disk of this size in GB as a cloud's console shows it, which is GiB; the disk may have 1 MiB more or less.
    Size(u64),
    /// The one data disk that is empty. When there are several, none is taken.
    OnlyEmpty,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InstanceStore => f.write_str("instance store"),
            Self::Devices(paths) => {
                let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                f.write_str(&paths.join(", "))
            }
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::Serial(serial) => write!(f, "serial number {serial}"),
            Self::ById(name) => write!(f, "by-id {name}"),
            Self::VolumeId(id) => write!(f, "volume {id}"),
            Self::Size(size) => write!(f, "{size} GB"),
            Self::OnlyEmpty => f.write_str("the only empty disk"),
        }
    }
}

/// A file system that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fs {
    /// The default.
    Xfs,
    /// For those who need it.
    Ext4,
}

impl Fs {
    /// As the kernel and blkid call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        }
    }

    /// How long a label may be, in bytes.
    fn longest_label(self) -> usize {
        match self {
            Self::Xfs => 12,
            Self::Ext4 => 16,
        }
    }
}

impl fmt::Display for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How freed space is given back to the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trim {
    /// Not at all.
    #[default]
    None,
    /// At once (mount option `discard`). Deleting gets slower.
    Discard,
    /// By `nvme-setup trim`, which a timer runs.
    Periodic,
}

/// Something in a request that cannot be done by anybody, whatever disks there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("volume {}: {why}", volume.display())]
pub struct RequestError {
    /// The mount point of the volume.
    pub volume: PathBuf,
    /// What is wrong and what to do.
    pub why: String,
}

impl Volume {
    /// A volume with all defaults.
    pub fn new(what: What, mount: impl Into<PathBuf>) -> Self {
        Self {
            what,
            mount: mount.into(),
            each: false,
            existing: false,
            fs: None,
            label: None,
            options: default_options(),
            trim: Trim::default(),
            swap: None,
            count: None,
        }
    }

    /// What the volume is known by over its life: its label, or else its mount point.
    pub(crate) fn key(&self) -> String {
        match &self.label {
            // A label cannot be taken for a path: it has no slash.
            Some(label) => label.clone(),
            None => self.mount.to_string_lossy().into_owned(),
        }
    }

    /// Whether it may have several disks.
    pub(crate) fn is_set(&self) -> bool {
        matches!(self.what, What::InstanceStore | What::Devices(_))
    }

    /// The mount options in the form of mount(8).
    pub(crate) fn mount_options(&self) -> String {
        let discard = (self.trim == Trim::Discard).then(|| "discard".to_owned());
        self.options.iter().cloned().chain(discard).collect::<Vec<_>>().join(",")
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |fine: bool, why: &str| {
            if !fine {
                problems.push(why.to_owned());
            }
        };
        check(
            is_clean(&self.mount),
            "`mount` must be an absolute path without `.`, `..`, control characters, and not `/`",
        );
        let forbidden = FORBIDDEN.iter().any(|top| self.mount.starts_with(top));
        check(!forbidden, "`mount` lies where the system itself lives; choose a directory of its own, such as /data");
        check(
            !self.each || self.is_set(),
            "`each` is for `instance-store` and `devices`: a single disk has only one volume",
        );
        let guessed = matches!(self.what, What::InstanceStore | What::OnlyEmpty);
        check(
            !(self.existing && (guessed || self.is_set())),
            "`existing` needs one disk that is named: by device, serial, by-id, volume-id or size",
        );
        check(
            !(self.existing && self.label.is_some()),
            "`label` is given to a new file system, and `existing` makes none",
        );
        check(!(self.each && self.swap.is_some()), "`swap` is for one volume; with `each` it is not clear which one");
        check(
            self.swap.is_none_or(|size| (SMALLEST_SWAP..=LARGEST_GB).contains(&size)),
            "`swap` is in MiB, at least 16",
        );
        check(
            self.count.is_none() || self.what == What::InstanceStore,
            "`count` is for `instance-store`: any other number of disks is known already",
        );
        check(self.count.is_none_or(|count| (1..=MOST_DISKS).contains(&count)), "`count` must be 1 to 256");
        if let Some(label) = &self.label {
            let longest = self.fs.unwrap_or(Fs::Xfs).longest_label();
            let fine = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
            check(
                (1..=longest).contains(&label.len()) && label.chars().all(fine) && !label.starts_with(['-', '.']),
                "`label` must be letters, digits, `.`, `_` and `-`, and at most 12 of them for xfs or 16 for ext4",
            );
        }
        for option in &self.options {
            let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-=:/+".contains(&byte);
            check(
                !option.is_empty() && option.bytes().all(fine) && !option.starts_with('-'),
                &format!("the mount option {option:?} is not one option of letters, digits and `._-=:/+`"),
            );
            let name = option.split('=').next().unwrap_or_default();
            check(
                !["bind", "rbind", "move", "remount", "loop", "offset"].contains(&name) && !name.starts_with("make-"),
                &format!("`{option}` makes something other than a mount of this disk"),
            );
        }
        let read_only = self.options.iter().any(|option| option == "ro");
        check(self.existing || !read_only, "a new volume that is mounted read-only is of no use; remove `ro`");
        check(!(read_only && self.swap.is_some()), "`swap` needs a volume that is not read-only");
        let text = match &self.what {
            What::Device(path) => Vec::from([path.to_string_lossy().into_owned()]),
            What::Devices(paths) => paths.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
            What::Serial(text) | What::ById(text) | What::VolumeId(text) => Vec::from([text.clone()]),
            What::Size(size) => {
                check((1..=LARGEST_GB).contains(size), "`size` is in GB, at least 1");
                Vec::new()
            }
            What::InstanceStore | What::OnlyEmpty => Vec::new(),
        };
        check(text.iter().all(|text| !text.trim().is_empty()), "`what` names nothing");
        match &self.what {
            What::Devices(paths) => {
                check(!paths.is_empty(), "`devices` names no device");
                check(paths.len() <= 256, "`devices` names more than 256 devices");
            }
            What::VolumeId(id) => check(
                volume_serials(id).is_some(),
                "`volume-id` must be `vol-...` (Amazon) or `d-...` (Alibaba Cloud); give any other disk by its serial number",
            ),
            _ => {}
        }
        problems
    }
}

/// Where nothing is mounted: the system's own trees.
const FORBIDDEN: [&str; 13] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/root/.ssh",
    "/sbin",
    "/sys",
    "/usr",
];

fn is_clean(path: &Path) -> bool {
    path.is_absolute()
        && path.components().count() > 1
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        // `/data/./x` and `/data//x` have clean components, too.
        && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str()
        && path.to_str().is_some_and(|text| !text.chars().any(char::is_control))
}

/// The serial numbers that a disk with this cloud id may show.
pub(crate) fn volume_serials(id: &str) -> Option<Vec<String>> {
    let fine = |rest: &&str| !rest.is_empty() && rest.chars().all(|character| character.is_ascii_alphanumeric());
    if let Some(rest) = id.strip_prefix("vol-").filter(fine) {
        return Some(vec![format!("vol{rest}")]);
    }
    let rest = id.strip_prefix("d-").filter(fine)?;
    Some(vec![rest.to_owned()])
}

impl Request {
    /// Checks everything that can be checked without looking at disks.
    ///
    /// # Errors
    /// Everything that is wrong, volume by volume.
    pub fn check(&self) -> Result<(), Vec<RequestError>> {
        let mut errors = Vec::new();
        for volume in &self.volumes {
            let found = volume.problems();
            errors.extend(found.into_iter().map(|why| RequestError { volume: volume.mount.clone(), why }));
        }
        let mut at: BTreeMap<&Path, usize> = BTreeMap::new();
        let mut keys: BTreeMap<String, &Path> = BTreeMap::new();
        for (index, volume) in self.volumes.iter().enumerate() {
            let mut clash = |why: String| errors.push(RequestError { volume: volume.mount.clone(), why });
            if at.insert(&volume.mount, index).is_some() {
                clash("two volumes have this mount point; give each its own".into());
                continue;
            }
            if let Some(other) = keys.insert(volume.key(), &volume.mount) {
                clash(format!("it has the same label as {}; give each its own", other.display()));
            }
            for other in &self.volumes {
                // The directories of `each` belong to it.
                if other.each && other.mount != volume.mount && volume.mount.starts_with(&other.mount) {
                    clash(format!("it lies inside {}, which has one directory for each disk", other.mount.display()));
                }
            }
            if self.volumes[..index].iter().any(|other| other.what == volume.what) {
                clash(format!("another volume asks for the same disk ({}); leave one of them out", volume.what));
            }
        }
        if self.wait > LONGEST_WAIT {
            let why = format!("`wait` is {} seconds; it must be 0 to {LONGEST_WAIT}", self.wait);
            errors.push(RequestError { volume: PathBuf::from("(all)"), why });
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(volumes: Vec<Volume>) -> String {
        let errors = Request { volumes, wait: 0 }.check().err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_plain_request_is_fine() {
        assert_eq!(errors(vec![Volume::new(What::InstanceStore, "/data")]), "");
        let json = r#"{"volumes": [{"what": {"volume-id": "vol-0a1"}, "mount": "/ref", "existing": true},
            {"what": "instance-store", "mount": "/data", "each": true, "fs": "ext4", "trim": "discard"}]}"#;
        let request: Request = serde_json::from_str(json).unwrap();
        assert_eq!(request.check(), Ok(()));
        assert_eq!(request.wait, 60);
        assert_eq!(request.volumes[0].options, ["noatime"]);
        assert_eq!(request.volumes[1].mount_options(), "noatime,discard");
    }

    #[test]
    fn unknown_fields_are_errors() {
        for json in [
            r#"{"volumes": [{"what": "instance-store", "mount": "/data", "force": true}]}"#,
            r#"{"volume": []}"#,
            r#"{"volumes": [{"what": "everything", "mount": "/data"}]}"#,
            r#"{"volumes": [{"what": {"serial": "a", "size": 3}, "mount": "/data"}]}"#,
        ] {
            assert!(serde_json::from_str::<Request>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn what_cannot_be_is_said() {
        let base = || Volume::new(What::InstanceStore, "/data");
        let device = || Volume::new(What::Device("/dev/vdb".into()), "/data");
        for (volume, expected) in [
            (Volume::new(What::InstanceStore, "data"), "must be an absolute path"),
            (Volume::new(What::InstanceStore, "/data/../etc"), "must be an absolute path"),
            (Volume::new(What::InstanceStore, "/"), "must be an absolute path"),
            (Volume::new(What::InstanceStore, "/data/"), "must be an absolute path"),
            (Volume::new(What::InstanceStore, "/usr/local"), "where the system itself lives"),
            (Volume { existing: true, ..base() }, "`existing` needs one disk"),
            (Volume { each: true, ..device() }, "`each` is for"),
            (Volume { label: Some("thirteen-long".into()), ..base() }, "`label` must be"),
            (Volume { label: Some("a b".into()), ..base() }, "`label` must be"),
            (Volume { options: vec!["noatime,ro".into()], ..base() }, "is not one option"),
            (Volume { options: vec!["remount".into()], ..base() }, "something other than a mount"),
            (Volume { options: vec!["ro".into()], ..base() }, "of no use"),
            (Volume { swap: Some(1), ..base() }, "at least 16"),
            (Volume { count: Some(0), ..base() }, "1 to 256"),
            (Volume { count: Some(2), ..device() }, "`count` is for"),
            (Volume::new(What::VolumeId("0123".into()), "/data"), "`volume-id` must be"),
            (Volume::new(What::Size(0), "/data"), "`size` is in GB"),
            (Volume::new(What::Serial(" ".into()), "/data"), "names nothing"),
        ] {
            let found = errors(vec![volume]);
            assert!(found.contains(expected), "{expected}: {found}");
        }
        assert_eq!(errors(vec![Volume { fs: Some(Fs::Ext4), label: Some("thirteen-long".into()), ..base() }]), "");
    }

    #[test]
    fn two_volumes_that_meet_are_an_error_by_name() {
        let at = |what, mount: &str| Volume::new(what, mount);
        let found = errors(vec![at(What::InstanceStore, "/a"), at(What::OnlyEmpty, "/a")]);
        assert!(found.contains("volume /a: two volumes have this mount point"), "{found}");
        let found = errors(vec![at(What::Size(5), "/a"), at(What::Size(5), "/b")]);
        assert!(found.contains("volume /b: another volume asks for the same disk (5 GB)"), "{found}");
        let each = Volume { each: true, ..at(What::InstanceStore, "/a") };
        let found = errors(vec![each, at(What::OnlyEmpty, "/a/1")]);
        assert!(found.contains("volume /a/1: it lies inside /a"), "{found}");
    }

    #[test]
    fn a_cloud_id_as_disks_show_it() {
        assert_eq!(volume_serials("vol-0a1b").unwrap(), ["vol0a1b"]);
        assert_eq!(volume_serials("d-bp67acfm").unwrap(), ["bp67acfm"]);
        for bad in ["", "vol-", "d-", "bp67", "vol-0/1"] {
            assert_eq!(volume_serials(bad), None);
        }
    }
}
