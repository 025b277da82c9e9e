//! A bucket of the protocol double, mounted in a sandbox: the real program, real FUSE, a real HTTP server.
//!
//! ```no_run
//! use tests::bucket::{Bucket, sample};
//!
//! let bucket = Bucket::new().cache_size("20MiB");
//! bucket.put("dir/object", sample(1, 5_000_000));
//! bucket.mount();
//! assert!(std::fs::read(bucket.path("dir/object")).unwrap() == sample(1, 5_000_000));
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use nix::unistd::Pid;

use crate::double::{Double, DoubleConfig, Operation};
use crate::mounts::{Ran, Sandbox, alive, wait_until};

/// The name of the bucket.
pub const NAME: &str = "test-bucket";

/// How long a read may take that needs nobody's help; beyond this it waits for a process that has been stopped.
const HELPLESS: Duration = Duration::from_secs(5);

/// Bytes that are the same for the same seed and look like nothing else.
///
/// # Panics
/// When there are more than fit into memory.
pub fn sample(seed: u64, len: u64) -> Bytes {
    let mut bytes = vec![0; usize::try_from(len).expect("samples fit into memory")];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// A bucket and the place where it is mounted. Everything is gone when it is dropped, the mount before its store.
#[derive(Debug)]
pub struct Bucket {
    /// Where it is mounted.
    pub sandbox: Sandbox,
    /// What holds it.
    pub double: Double,
    location: String,
    environment: Vec<(&'static str, String)>,
    arguments: Vec<String>,
}

impl Bucket {
    /// An empty one, `oss://`, with an ample cache.
    pub fn new() -> Self {
        Self::with(DoubleConfig::default())
    }

    /// One of a double that is set up like this.
    pub fn with(config: DoubleConfig) -> Self {
        Self {
            sandbox: Sandbox::new(),
            double: Double::start(config),
            location: format!("oss://{NAME}/"),
            environment: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// What is mounted: `oss` or `s3`, and a prefix that is empty or ends in a slash.
    #[must_use]
    pub fn location(mut self, scheme: &str, prefix: &str) -> Self {
        self.location = format!("{scheme}://{NAME}/{prefix}");
        self
    }

    /// How much the cache on disk may hold, such as `20MiB`; `0` for none.
    #[must_use]
    pub fn cache_size(self, size: &str) -> Self {
        self.environment("FUSE_OSS_CACHE_SIZE", size)
    }

    /// How much memory the server may take.
    #[must_use]
    pub fn memory_limit(self, size: &str) -> Self {
        self.environment("FUSE_OSS_MEMORY_LIMIT", size)
    }

    /// A variable in the environment of `mount`.
    #[must_use]
    pub fn environment(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// One more argument of `mount`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Puts an object there.
    pub fn put(&self, key: &str, bytes: Bytes) {
        self.double.put(NAME, key, bytes);
    }

    /// Where an object is seen, of a bucket that is mounted whole.
    pub fn path(&self, key: &str) -> PathBuf {
        self.sandbox.mnt().join(key)
    }

    /// Opens an object.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn open(&self, key: &str) -> File {
        File::open(self.path(key)).unwrap_or_else(|error| panic!("cannot open {key:?}: {error}"))
    }

    /// Mounts it.
    ///
    /// # Panics
    /// When that fails.
    pub fn mount(&self) {
        self.mount_at(&self.sandbox.mnt());
    }

    /// Mounts it at another place, which is made when it is missing.
    ///
    /// # Panics
    /// When that fails.
    pub fn mount_at(&self, directory: &Path) {
        self.mount_with(directory, &self.arguments);
    }

    /// Mounts it at another place, with these arguments of `mount` in the place of its own.
    ///
    /// # Panics
    /// When that fails.
    pub fn mount_with(&self, directory: &Path, arguments: &[String]) {
        // A dead mount is there and can neither be looked at nor made.
        if let Err(error) = fs::create_dir(directory) {
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
        }
        self.try_mount_with(directory, arguments).succeeded();
    }

    /// Mounts it on a directory that is there, or an object on a file.
    ///
    /// # Panics
    /// When that fails.
    pub fn mount_on(&self, target: &Path) {
        self.try_mount(target).succeeded();
    }

    /// What the program says when it is to mount it there.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn try_mount(&self, target: &Path) -> Ran {
        self.try_mount_with(target, &self.arguments)
    }

    fn try_mount_with(&self, target: &Path, arguments: &[String]) -> Ran {
        let mut command = self.sandbox.mounting(&self.double, &self.location, target);
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        Ran::from(command.args(arguments).output().expect("the program was built"))
    }

    /// Unmounts it and mounts it again; the server lives on.
    ///
    /// # Panics
    /// When that fails.
    pub fn remount(&self) {
        self.sandbox.umount();
        self.mount();
    }

    /// Ends the server, which may have ended by itself, and waits until it is gone. After SIGTERM nothing is mounted any more.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end_server(&self, signal: Signal) {
        let Some(pid) = self.sandbox.server() else { return };
        if signal == Signal::SIGKILL {
            return self.sandbox.end_server(signal);
        }
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => panic!("cannot end the server: {errno}"),
        }
        wait_until("the server has ended", || !alive(pid));
    }

    /// A new server, with the cache of the one before.
    ///
    /// # Panics
    /// When that fails.
    pub fn restart(&self) {
        self.sandbox.umount();
        self.end_server(Signal::SIGTERM);
        self.mount();
    }

    /// How many GETs of objects there were.
    pub fn gets(&self) -> usize {
        self.double.count(|request| request.operation == Operation::GetObject)
    }

    /// How many bytes the store has sent in answer to them, or was about to.
    pub fn bytes_sent(&self) -> u64 {
        let requests = self.double.requests();
        requests.iter().filter(|request| request.operation == Operation::GetObject).map(|request| request.sent).sum()
    }

    /// The server, stopped until the guard is dropped.
    ///
    /// # Panics
    /// When there is none.
    pub fn stop_server(&self) -> Stopped {
        let pid = self.sandbox.worker().expect("a server");
        kill(pid, Signal::SIGSTOP).expect("it lives");
        let stopped = Stopped(pid);
        wait_until("the server stands still", || {
            fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
        });
        stopped
    }

    /// Whether `read` ends while the server is stopped: whether the kernel can do without it. When it cannot, the server goes
    /// on and `read` ends as well.
    ///
    /// # Panics
    /// When `read` does.
    pub fn works_without_server(&self, read: impl FnOnce() + Send) -> bool {
        std::thread::scope(|scope| {
            let stopped = self.stop_server();
            let (done, wait) = mpsc::channel();
            let reader = scope.spawn(move || {
                read();
                // Nobody listens any more when it took too long.
                let _ = done.send(());
            });
            let alone = wait.recv_timeout(HELPLESS);
            drop(stopped);
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            alone.is_ok()
        })
    }
}

impl Default for Bucket {
    fn default() -> Self {
        Self::new()
    }
}

/// A process that stands still until this is dropped.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that was killed meanwhile needs no waking.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Drops what the kernel has cached of a file, as far as nobody has it mapped.
pub fn forget_pages(file: &File) -> nix::Result<()> {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
}

/// Whether complete objects must be read by the kernel alone here: Linux 6.9 can pass reads through to a file, unless that is on
/// an overlay. Where this is false everything goes through the server and must be as right.
///
/// # Panics
/// When the system does not say what it is.
pub fn passthrough_expected(sandbox: &Sandbox) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().expect("a major version"), numbers.next().expect("a minor version"));
    let cache = statfs(&sandbox.path("cache")).expect("the cache directory is there");
    let on_overlay = cache.filesystem_type() == OVERLAYFS_SUPER_MAGIC;
    let expected = version >= (6, 9) && !on_overlay;
    if !expected {
        println!("no passthrough is expected here: kernel {}, cache on overlayfs: {on_overlay}", release.trim());
    }
    expected
}
