//! What stays of an instance that has failed for good, when its job asks for that: its mounts, directories and namespace, for a person
//! to look into with `batch-agent enter`, and for a while.
//!
//! Nobody needs to be there for it. The namespace is held by a mount ([`Anchor`]) and not by a process, a container that has ended by its engine
//! ([`Visit`](crate::container::Visit) says how it is entered), and the record of the attempt says until when. The end is seen to by a process of its own (`batch-agent release --when-due`), which outlives the agent; should it be killed,
//! by the next agent. After a start of the machine there is nothing left to look into.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::Context;
use super::inputs::Mounter;
use super::record::Record;
use crate::durable::{self, FileError};
use crate::node::Node;
use crate::outcome::Reserved;
use crate::shim::ProcessId;

/// How long things stay when nobody says otherwise.
pub const LIMIT: Duration = Duration::from_secs(8 * 3600);

/// How long killed processes may take to disappear.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The file system of the kernel's namespace files (`NSFS_MAGIC`).
const NSFS: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x6e73_6673);

/// What a record says of an attempt whose things stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Until when.
    pub until: Timestamp,
    /// In which boot of the machine.
    pub boot_id: String,
    /// Where the server of its inputs is.
    pub fuse_oss: PathBuf,
    /// Where that server's cache is.
    pub cache: PathBuf,
}

impl Reservation {
    /// Whether its time is over.
    pub fn is_over(&self) -> bool {
        let boot_id = ProcessId::of(1).map(|init| init.boot_id);
        self.until <= Timestamp::now() || boot_id.is_none_or(|boot_id| boot_id != self.boot_id)
    }
}

/// Where an attempt's namespace is held: a file in a directory that nothing is propagated from.
#[derive(Debug)]
pub struct Anchor(PathBuf);

impl Anchor {
    /// That of an attempt.
    pub fn of(record: &Record) -> Self {
        Self(record.runtime.join("namespace"))
    }

    /// The file.
    pub fn file(&self) -> PathBuf {
        self.0.join("mnt")
    }

    /// Makes the file that the shim mounts its namespace on.
    pub(super) fn prepare(&self) -> Result<PathBuf, FileError> {
        const NONE: Option<&str> = None;
        durable::private_directory(&self.0)?;
        let failed = |errno: nix::Error| FileError::on("mount", &self.0)(errno.into());
        mount(Some(&self.0), &self.0, NONE, MsFlags::MS_BIND, NONE).map_err(failed)?;
        mount(NONE, &self.0, NONE, MsFlags::MS_PRIVATE, NONE).map_err(failed)?;
        let file = self.file();
        fs::File::create(&file).map_err(FileError::on("make", &file))?;
        Ok(file)
    }

    /// Whether a namespace is held there.
    pub fn holds(&self) -> bool {
        nix::sys::statfs::statfs(&self.file()).is_ok_and(|found| found.filesystem_type() == NSFS)
    }

    /// Lets the namespace go, with every process that is in it.
    pub(super) fn let_go(&self) -> Result<(), FileError> {
        if self.holds() {
            let namespace = fs::File::open(self.file()).map_err(FileError::on("open", &self.file()))?;
            end_all_in(&namespace).map_err(FileError::on("empty", &self.file()))?;
        }
        for place in [self.file(), self.0.clone()] {
            while fuse_oss::mountpoint::mounted_on(&place).is_some() {
                umount2(&place, MntFlags::MNT_DETACH)
                    .map_err(|errno| FileError::on("unmount", &place)(errno.into()))?;
            }
        }
        Ok(())
    }
}

/// Ends every process whose mount namespace is this one. As long as its file is open the namespace is there, and its number is no
/// other's.
pub fn end_all_in(namespace: &fs::File) -> io::Result<()> {
    let id = |found: fs::Metadata| (found.dev(), found.ino());
    let wanted = id(namespace.metadata()?);
    if wanted == id(fs::metadata("/proc/self/ns/mnt")?) {
        return Err(io::Error::other("it is the machine's own"));
    }
    let end = Instant::now() + KILL_DEADLINE;
    loop {
        let mut found = 0;
        for process in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that is gone, or a zombie, has none.
            if fs::metadata(process.path().join("ns/mnt")).is_ok_and(|its| id(its) == wanted) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                found += 1;
            }
        }
        if found == 0 {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(io::Error::other(format!("{found} processes in it do not die; they hang in the kernel")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Keeps what the attempt has made, and sees to its end.
///
/// # Errors
/// When it cannot be kept, in words that follow "it could not be reserved: ".
pub(super) fn reserve(context: &Context, record: &mut Record) -> Result<Reserved, String> {
    // A container that is over shows what it has seen as long as it is there, or another one does.
    if record.container.is_none() && !Anchor::of(record).holds() {
        return Err("its namespace could not be held".to_owned());
    }
    let boot_id = ProcessId::of(1).map(|init| init.boot_id).ok_or("/proc does not say which boot this is")?;
    let until = Timestamp::now().checked_add(context.reserve).map_err(|error| error.to_string())?;
    let (fuse_oss, cache) = context.mounter.places();
    record.reserved = Some(Reservation { until, boot_id, fuse_oss: fuse_oss.to_owned(), cache: cache.to_owned() });
    record.save(&context.node).map_err(|error| error.to_string())?;
    if let Err(error) = see_to_the_end(record, &context.node) {
        tracing::warn!(%error, "what is reserved goes only when an agent is started after its time");
    }
    let state = if context.node.state == Path::new(Node::STATE) {
        String::new()
    } else {
        format!("--state-dir {} ", shell_words::quote(&context.node.state.to_string_lossy()))
    };
    Ok(Reserved { until, enter: format!("batch-agent enter {state}{}", shell_words::quote(&record.id)) })
}

/// Waits until nothing is reserved any more: until that moment, or until somebody ends it before.
pub async fn over(node: &Node, until: Timestamp) {
    /// How often is looked.
    const LOOK: Duration = Duration::from_secs(5);
    let is_reserved = || Record::all(node).is_ok_and(|records| records.iter().any(|record| record.reserved.is_some()));
    while Timestamp::now() < until && is_reserved() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Starts the process that takes it away when its time is over.
fn see_to_the_end(record: &Record, node: &Node) -> io::Result<()> {
    let mut command = std::process::Command::new("/proc/self/exe");
    command
        .arg0("batch-agent")
        .args(["release", "--when-due", "--state-dir"])
        .arg(&node.state)
        .arg(&record.id)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: setsid is async-signal-safe. It fails only for a leader of a group, which a new process is not.
    unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from)) };
    // The runtime reaps it, should it end before this process.
    tokio::process::Command::from(command).kill_on_drop(false).spawn().map(drop)
}

/// A mounter for what an attempt's inputs were mounted with.
pub fn mounter(reservation: &Reservation) -> Mounter {
    Mounter::new(fuse_oss::ServeSettings {
        cache_dir: reservation.cache.clone(),
        runtime_dir: reservation.fuse_oss.clone(),
        // Nothing is mounted with it.
        ..fuse_oss::ServeSettings::new("fuse-oss")
    })
}
