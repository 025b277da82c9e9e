//! The request of a command line: a file, or one volume in options.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use nvme_setup::{Fs, Request, Trim, Volume, What};

/// The largest settings file, in bytes.
const LARGEST: u64 = 1 << 20;

/// Which volumes.
#[derive(Debug, Args)]
pub struct Options {
    /// Read the volumes from a YAML file instead of from these options: `volumes:`, each with `what`, `mount` and so on, and
    /// `wait`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mount", "device", "serial", "by_id", "volume_id", "size", "only_empty",
        "each", "existing", "fs", "label", "option", "trim", "swap", "count", "wait"])]
    config: Option<PathBuf>,

    /// Where to mount it: an absolute path; made when missing.
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,

    /// This device instead of the instance-store disks; several times: these as one RAID0.
    #[arg(long, value_name = "PATH")]
    device: Vec<PathBuf>,

    /// The data disk with this serial number.
    #[arg(long, value_name = "SERIAL", conflicts_with = "device")]
    serial: Option<String>,

    /// The data disk with this name in /dev/disk/by-id.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["device", "serial"])]
    by_id: Option<String>,

    /// The data disk with this id of the cloud's: vol-... or d-...
    #[arg(long, value_name = "ID", conflicts_with_all = ["device", "serial", "by_id"])]
    volume_id: Option<String>,

    /// The one data disk of this size, in GB as the cloud shows it (which is GiB; 1 MiB more or less).
    #[arg(long, value_name = "GB", conflicts_with_all = ["device", "serial", "by_id", "volume_id"])]
    size: Option<u64>,

    /// The one data disk that is empty.
    #[arg(long, conflicts_with_all = ["device", "serial", "by_id", "volume_id", "size"])]
    only_empty: bool,

    /// One volume for each disk, at DIR/0, DIR/1, ...
    #[arg(long)]
    each: bool,

    /// Mount what is there; never format.
    #[arg(long)]
    existing: bool,

    /// The file system to make [default: xfs].
    #[arg(long)]
    fs: Option<FsName>,

    /// The label of the file system: at most 12 letters, digits, `.`, `_`, `-` for xfs, 16 for ext4.
    #[arg(long)]
    label: Option<String>,

    /// A mount option; may be given several times [default: noatime].
    #[arg(long = "option", short = 'o', value_name = "OPTION")]
    option: Vec<String>,

    /// How freed space is given back to the disk: discard at once, or when `nvme-setup trim` is run.
    #[arg(long, default_value = "none")]
    trim: TrimName,

    /// A swap file on it of this size, in MiB.
    #[arg(long, value_name = "MIB")]
    swap: Option<u64>,

    /// How many instance-store disks are expected.
    #[arg(long)]
    count: Option<u32>,

    /// How long to wait for disks that are not there yet, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FsName {
    Xfs,
    Ext4,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TrimName {
    None,
    Discard,
    Periodic,
}

/// What is wrong with a request: the command line, or the settings file.
#[derive(Debug)]
pub enum Wrong {
    Usage(String),
    Settings(String),
}

impl Options {
    /// The request, or `None` where nothing at all is said.
    pub fn request(&self) -> Result<Option<Request>, Wrong> {
        let request = match (&self.config, &self.mount) {
            (Some(path), _) => read(path).map_err(Wrong::Settings)?,
            (None, Some(mount)) => Request { volumes: vec![self.volume(mount)], wait: self.wait },
            (None, None) if self.says_something() => {
                return Err(Wrong::Usage("say where to mount it with --mount DIR".into()));
            }
            (None, None) => return Ok(None),
        };
        request.check().map_err(|errors| {
            let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            if self.config.is_some() { Wrong::Settings(text) } else { Wrong::Usage(text) }
        })?;
        Ok(Some(request))
    }

    fn says_something(&self) -> bool {
        !self.device.is_empty()
            || self.serial.is_some()
            || self.by_id.is_some()
            || self.volume_id.is_some()
            || self.size.is_some()
            || self.only_empty
            || self.each
            || self.existing
            || self.label.is_some()
            || self.swap.is_some()
            || self.count.is_some()
            || self.fs.is_some()
            || !self.option.is_empty()
    }

    fn volume(&self, mount: &Path) -> Volume {
        let what = match (&*self.device, &self.serial, &self.by_id, &self.volume_id, self.size) {
            ([only], ..) if !self.each => What::Device(only.clone()),
            ([_, ..], ..) => What::Devices(self.device.clone()),
            (_, Some(serial), ..) => What::Serial(serial.clone()),
            (_, _, Some(name), ..) => What::ById(name.clone()),
            (_, _, _, Some(id), _) => What::VolumeId(id.clone()),
            (_, _, _, _, Some(size)) => What::Size(size),
            _ if self.only_empty => What::OnlyEmpty,
            _ => What::InstanceStore,
        };
        let mut volume = Volume::new(what, mount);
        volume.each = self.each;
        volume.existing = self.existing;
        volume.fs = self.fs.map(|fs| match fs {
            FsName::Xfs => Fs::Xfs,
            FsName::Ext4 => Fs::Ext4,
        });
        volume.label.clone_from(&self.label);
        if !self.option.is_empty() {
            volume.options.clone_from(&self.option);
        }
        volume.trim = match self.trim {
            TrimName::None => Trim::None,
            TrimName::Discard => Trim::Discard,
            TrimName::Periodic => Trim::Periodic,
        };
        volume.swap = self.swap;
        volume.count = self.count;
        volume
    }
}

fn read(path: &Path) -> Result<Request, String> {
    let mut text = String::new();
    let result = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text));
    result.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > LARGEST {
        return Err(format!("{} is larger than {} KiB", path.display(), LARGEST >> 10));
    }
    serde_saphyr::from_str_with_options(&text, serde_saphyr::options! { with_snippet: false })
        .map_err(|error| format!("{}: {error}", path.display()))
}
