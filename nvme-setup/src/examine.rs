//! Finds out what a device carries, by looking only.
//!
//! A disk that does not answer holds whoever reads it, and no signal ends that (Amazon recommends an NVMe timeout of
//! for ever). So everything that touches a device is done by a thread or a program that can be left behind, with a
//! deadline. One bad disk costs its deadline and nothing else.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::unistd::geteuid;
use serde::Serialize;

use crate::command::Command;
use crate::device::{Device, Kind};
use crate::identity::Node;
use crate::inventory::number_of;
use crate::sample::{Sampled, sample};
use crate::signature::{Content, Probed, understand};
use crate::trace::{Traces, trace};

/// How long opening, probing and sampling a device may each take. A disk that is restored from a snapshot while it is
/// being read takes tens of milliseconds for each sample.
const LIMIT: Duration = Duration::from_secs(30);

/// How often a device is asked for before it counts as kept by somebody, and how long to sleep between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// How many devices are looked at at once.
const AT_ONCE: usize = 8;

/// What was found out about a device by looking at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// What it carries.
    pub content: Content,
    /// Whether the kernel keeps it for somebody: a mount, an array, a program. Only asked of a device that seems empty, so
    /// that nobody who is about to mount one is disturbed.
    pub claimed: bool,
}

impl Evidence {
    fn unknown(why: impl Into<String>) -> Self {
        Self { content: Content::Unknown { why: why.into() }, claimed: false }
    }
}

/// Looks at devices.
#[derive(Debug, Clone)]
pub struct Examiner {
    /// Another blkid than the system's.
    blkid: Option<PathBuf>,
    limit: Duration,
}

impl Default for Examiner {
    fn default() -> Self {
        Self { blkid: None, limit: LIMIT }
    }
}

impl Examiner {
    /// One that runs the program at `blkid` instead of the system's.
    #[must_use]
    pub fn with_blkid(mut self, blkid: impl Into<PathBuf>) -> Self {
        self.blkid = Some(blkid.into());
        self
    }

    /// One whose every step may take this long.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Looks at several devices side by side. The result is by name.
    pub fn examine_all<'a>(&self, devices: impl IntoIterator<Item = &'a Device>) -> BTreeMap<String, Evidence> {
        let devices: Vec<&Device> = devices.into_iter().collect();
        let next = AtomicUsize::new(0);
        let found = Mutex::new(BTreeMap::new());
        let work = || {
            while let Some(device) = devices.get(next.fetch_add(1, Ordering::Relaxed)) {
                let evidence = self.examine(device);
                found.lock().unwrap_or_else(PoisonError::into_inner).insert(device.name.clone(), evidence);
            }
        };
        thread::scope(|scope| {
            for _ in 1..AT_ONCE.min(devices.len()) {
                // Where no thread can be had, there are fewer; this one does the work in any case.
                let _ = thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at one device. Never fails: what could not be found out is [`Content::Unknown`], which is a refusal.
    pub fn examine(&self, device: &Device) -> Evidence {
        let content = self.content(device);
        if !matches!(content, Content::Empty { .. }) {
            return Evidence { content, claimed: false };
        }
        let path = device.path.clone();
        match self.in_time("opening it", move || is_claimed(&path)) {
            Ok(claimed) => Evidence { content, claimed },
            Err(why) => Evidence::unknown(why),
        }
    }

    /// What one device carries, without asking whether somebody keeps it.
    pub(crate) fn content(&self, device: &Device) -> Content {
        let unknown = |why: String| Content::Unknown { why };
        match device.kind {
            Kind::Optical | Kind::Floppy => return unknown(format!("{} is not looked at", device.kind)),
            _ if device.size == 0 => return unknown("its size is 0: there is no medium or file in it".to_owned()),
            _ if device.suspended => return unknown("it is suspended (dmsetup resume ends that)".to_owned()),
            _ => {}
        }
        let subject = device.clone();
        let file = match self.in_time("opening it", move || open(&subject)) {
            Ok(file) => file,
            Err(why) => return unknown(why),
        };
        match self.probe(&device.path) {
            Probed::Signature(signature) => Content::Signature(signature),
            Probed::Ambiguous => Content::Ambiguous,
            Probed::Unknown(why) => unknown(why),
            Probed::Nothing => {
                let size = device.size;
                match self.in_time("reading it", move || sample(&file, size)) {
                    Ok(Sampled::Nonzero { at }) => Content::Data { first_nonzero_at: at },
                    Ok(Sampled::Zeros { bytes }) => Content::Empty { sampled: bytes },
                    Err(why) => unknown(why),
                }
            }
        }
    }

    /// What this node has left on those of the devices that are neither empty nor mounted, by name. What could not be found out is not
    /// there: then the device is judged by what it carries.
    pub fn traces_all<'a>(
        &self,
        devices: impl IntoIterator<Item = &'a Device>,
        evidence: &BTreeMap<String, Evidence>,
        node: &Node,
    ) -> BTreeMap<String, Traces> {
        let is_interesting = |device: &&Device| {
            let content = evidence.get(&device.name).map(|evidence| &evidence.content);
            matches!(content, Some(Content::Signature(_) | Content::Data { .. } | Content::Ambiguous))
                && device.mounts.is_empty()
                && device.size > 4 << 20
        };
        let found = |device: &Device| Some((device.name.clone(), self.traces(device, node).ok()?));
        devices.into_iter().filter(is_interesting).filter_map(found).collect()
    }

    /// What this node has left on a device. An error is a reason why that could not be found out.
    pub(crate) fn traces(&self, device: &Device, node: &Node) -> Result<Traces, String> {
        let (subject, prefix) = (device.clone(), *node.prefix());
        self.in_time("reading it", move || {
            let file = open(&subject)?;
            let mut traces = trace(&file, subject.size, &prefix)?;
            traces.claimed = is_claimed(&subject.path)?;
            Ok(traces)
        })
    }

    fn probe(&self, path: &Path) -> Probed {
        let blkid = match &self.blkid {
            Some(program) => Ok(Command::at(program, self.limit)),
            None => Command::find("blkid", "util-linux", self.limit),
        };
        match blkid.and_then(|blkid| blkid.args(["-p", "-o", "export"]).args([path]).run()) {
            Ok(output) => understand(output),
            Err(error) => Probed::Unknown(error.to_string()),
        }
    }

    /// Does something in a thread, and leaves it there when it takes too long. An error is a reason.
    pub(crate) fn in_time<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new()
            // Nobody may be waiting any more.
            .spawn(move || drop(sender.send(work())))
            .map_err(|error| format!("no thread could be started for {what}: {error}"))?;
        match receiver.recv_timeout(self.limit) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                let remedy = if geteuid().is_root() {
                    "forbidden even to root: by a device cgroup or a security module"
                } else {
                    "run this as root"
                };
                Err(format!("{what} is not allowed ({error}): {remedy}"))
            }
            Ok(Err(error)) => Err(format!("{what} failed: {error}")),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(format!("{what} took longer than {:?}: the device does not answer, see dmesg", self.limit))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(format!("{what} ended without a result")),
        }
    }
}

/// Opens a device for reading and makes sure that it is the one that sysfs described.
fn open(device: &Device) -> io::Result<File> {
    // O_NONBLOCK: a drive without a medium answers at once.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&device.path)?;
    let metadata = file.metadata()?;
    let wrong = |why: String| Err(io::Error::other(why));
    if !metadata.file_type().is_block_device() {
        return wrong(format!("{} is no block device", device.path.display()));
    }
    let number = number_of(metadata.rdev());
    if number != device.number {
        return wrong(format!("{} is device {number}, and not {}", device.path.display(), device.number));
    }
    let size = file.seek(SeekFrom::End(0))?;
    if size != device.size {
        return wrong(format!("it has {size} bytes, and {} according to sysfs", device.size));
    }
    Ok(file)
}

/// Whether the kernel keeps a device for somebody, in whatever mount namespace.
///
/// Opening with `O_EXCL` and without `O_CREAT` asks for that claim (open(2)). It is given back at once.
fn is_claimed(path: &Path) -> io::Result<bool> {
    // A program that another thread is just starting has copies of our own open files for a moment.
    for _ in 0..TRIES {
        match OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(path) {
            Ok(_) => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceNumber;

    fn device(path: &Path, size: u64) -> Device {
        let mut device = Device::new("x", DeviceNumber { major: 259, minor: 0 }, Kind::Disk);
        device.path = path.to_owned();
        device.size = size;
        device
    }

    fn why(evidence: &Evidence) -> &str {
        match &evidence.content {
            Content::Unknown { why } => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_block_device_is_not_looked_at() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let evidence = Examiner::default().examine(&device(file.path(), 4096));
        assert!(why(&evidence).contains("is no block device"), "{evidence:?}");
        let evidence = Examiner::default().examine(&device(Path::new("/nonexistent/disk"), 4096));
        assert!(why(&evidence).starts_with("opening it failed: No such file"), "{evidence:?}");
    }

    #[test]
    fn drives_without_medium_and_suspended_mappings_are_not_opened() {
        let nowhere = Path::new("/nonexistent/disk");
        assert!(why(&Examiner::default().examine(&device(nowhere, 0))).contains("size is 0"));
        let mut suspended = device(nowhere, 4096);
        suspended.suspended = true;
        assert!(why(&Examiner::default().examine(&suspended)).contains("is suspended"));
        let mut optical = device(nowhere, 4096);
        optical.kind = Kind::Optical;
        assert_eq!(why(&Examiner::default().examine(&optical)), "an optical drive is not looked at");
    }

    #[test]
    fn a_step_that_hangs_is_left_behind() {
        let examiner = Examiner::default().with_limit(Duration::from_millis(50));
        let (keep, hang) = mpsc::channel::<()>();
        let error = examiner.in_time("reading it", move || Ok(hang.recv().is_ok())).unwrap_err();
        assert_eq!(error, "reading it took longer than 50ms: the device does not answer, see dmesg");
        drop(keep);
        assert!(examiner.in_time("reading it", || -> io::Result<()> { panic!("a fault") }).is_err());
    }
}
