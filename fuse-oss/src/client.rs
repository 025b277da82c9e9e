//! The other end of the control socket: what `fuse-oss mount`, `umount` and `status` and the node agent use.
//!
//! Everything blocks, with a deadline: no runtime is needed, and a server that hangs cannot take its clients with it.
//!
//! ```no_run
//! use fuse_oss::client::Client;
//! use fuse_oss::{MountEntry, MountOptions, MountRequest, ServeSettings, UnmountMode};
//!
//! # fn main() -> Result<(), fuse_oss::ClientError> {
//! let settings = ServeSettings::new("/usr/bin/fuse-oss");
//! let mut client = Client::connect_or_start(&settings)?;
//! let mounted = client.mount(&MountRequest {
//!     target: "/mnt/genomes".into(),
//!     entries: vec![MountEntry::new("", "oss://genomes/hg38/".parse().unwrap())],
//!     options: MountOptions::default(),
//!     stores: oss::Settings::default(),
//! })?;
//! client.unmount(&mounted.target, UnmountMode::WhenIdle)?;
//! # Ok(())
//! # }
//! ```

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::cache::{Cleared, Listed, Verified};
use crate::error::{ClientError, ErrorKind, MountError};
use crate::options::{MountReply, MountRequest, ServeSettings, Status, UnmountMode};
use crate::protocol::{self, Answer, MAX_LINE, Request};
use crate::runtime::{RuntimePaths, sockets};

/// How long a server may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a server that is alive may take to say what it has mounted.
const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// How long an unmount may take.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(60);
/// How long emptying the cache may take; a file of a terabyte takes seconds.
const CLEAR_LIMIT: Duration = Duration::from_secs(600);
/// How long a server that is verifying its cache may say nothing about it.
const VERIFY_LIMIT: Duration = Duration::from_secs(60);
/// What a mount may take beyond what its store may take.
const MOUNT_MARGIN: Duration = Duration::from_secs(60);

/// How long a server started by a client lives on after its last mount.
const IDLE_EXIT_SECONDS: u64 = 3;

/// What a server started by a client keeps of its environment. Credentials are not among it: they come with each mount
/// request, and one mount's are not another's.
const KEPT_VARIABLES: &[&str] = &[
    "PATH",
    "HOME",
    "TZ",
    "LANG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "RUST_LOG",
    // Where credential chains find files and which entry of them is meant; the files keep their own secrets.
    "ALIBABA_CLOUD_PROFILE",
    "ALIBABA_CLOUD_CREDENTIALS_FILE",
    "ALIBABA_CLOUD_CONFIG_FILE",
    "ALIBABA_CLOUD_ECS_METADATA",
    "ALIBABA_CLOUD_ROLE_ARN",
    "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
    "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
];

/// How long another program may take to take over.
const REPLACE_LIMIT: Duration = Duration::from_secs(60);

/// Gives up what a [`Client`] is waiting for, from another thread. A mount that is given up is undone by the server.
#[derive(Debug)]
pub struct Cancellation(UnixStream);

impl Cancellation {
    /// Hangs up: the client's call fails at once.
    pub fn cancel(&self) {
        // It fails only on a connection that is gone already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    server: u32,
}

impl Client {
    /// Connects to the server on this socket; none when nobody listens there.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] when it is another user's; [`ErrorKind::NoServer`].
    pub fn connect(socket: &Path) -> Result<Option<Self>, ClientError> {
        let shown = socket.display();
        let stream = match UnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                    io::ErrorKind::PermissionDenied => Err(MountError::new(
                        ErrorKind::Denied,
                        format_args!(
                            "cannot reach the server at {shown}: {error}; run as the user who started it, or as root"
                        ),
                    )),
                    _ => Err(MountError::new(
                        ErrorKind::NoServer,
                        format_args!("cannot reach the server at {shown}: {error}"),
                    )),
                };
            }
        };
        let peer = getsockopt(&stream, PeerCredentials).map_err(|errno| {
            MountError::new(ErrorKind::NoServer, format_args!("cannot tell who listens at {shown}: {}", errno.desc()))
        })?;
        // We are about to send credentials: only to root, or to ourselves.
        if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(MountError::new(
                ErrorKind::Denied,
                format_args!("the server at {shown} is run by user {}; refusing to send it anything", peer.uid()),
            ));
        }
        Ok(Some(Self { stream, server: u32::try_from(peer.pid()).unwrap_or(0) }))
    }

    /// Connects to the server that owns the cache directory, starting it when there is none. A server started here ends by itself
    /// some seconds after its last mount has gone.
    ///
    /// # Errors
    /// [`ErrorKind::NoServer`] when it does not start, with what it said; [`ErrorKind::CacheInUse`] when the cache directory
    /// belongs to a server that listens elsewhere; its own refusals ([`ErrorKind::Invalid`], [`ErrorKind::System`]).
    pub fn connect_or_start(settings: &ServeSettings) -> Result<Self, ClientError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let paths = RuntimePaths::new(&settings.runtime_dir, &settings.cache_dir)?;
            if let Some(client) = Self::connect(&paths.socket)? {
                return Ok(client);
            }
            match start(settings, deadline) {
                Ok(()) => {}
                // Somebody else started one in the same moment, or the last one is about to end: look again.
                Err(error) if error.kind == ErrorKind::CacheInUse && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100));
                    if let Some(client) =
                        Self::connect(&RuntimePaths::new(&settings.runtime_dir, &settings.cache_dir)?.socket)?
                    {
                        return Ok(client);
                    }
                    if socket_elsewhere(&error, &paths.socket) {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Err(MountError::new(
                    ErrorKind::NoServer,
                    format_args!(
                        "the server for {} does not answer; its log is {}",
                        settings.cache_dir.display(),
                        paths.log.display()
                    ),
                ));
            }
        }
    }

    /// A way to give up what this client will wait for.
    ///
    /// # Errors
    /// [`ErrorKind::System`] when the process has too many descriptors.
    pub fn cancellation(&self) -> Result<Cancellation, ClientError> {
        let stream = self.stream.try_clone();
        stream
            .map(Cancellation)
            .map_err(|error| MountError::new(ErrorKind::System, format_args!("cannot copy a descriptor: {error}")))
    }

    /// The server's process.
    pub fn server_pid(&self) -> u32 {
        self.server
    }

    /// Mounts; returns when the mount answers.
    ///
    /// # Errors
    /// The server's refusal; its kind says what to do.
    pub fn mount(&mut self, request: &MountRequest) -> Result<MountReply, ClientError> {
        let store = request.stores.oss.timeouts.total.max(request.stores.s3.timeouts.total);
        let target = std::path::absolute(&request.target).map_err(|error| {
            MountError::new(
                ErrorKind::TargetMissing,
                format_args!("cannot mount on {}: {error}", request.target.display()),
            )
        })?;
        let request = MountRequest { target, ..request.clone() };
        match self.ask(&Request::Mount(Box::new((&request).into())), store.saturating_add(MOUNT_MARGIN))? {
            Answer::Mounted(reply) => Ok(reply),
            other => Err(unexpected(other)),
        }
    }

    /// Unmounts.
    ///
    /// # Errors
    /// [`ErrorKind::NotMounted`]; [`ErrorKind::TargetBusy`] with the names of those who use it.
    pub fn unmount(&mut self, target: &Path, mode: UnmountMode) -> Result<(), ClientError> {
        let request = Request::Unmount { target: target.to_owned(), mode };
        match self.ask(&request, UNMOUNT_LIMIT)? {
            Answer::Unmounted => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// What is mounted.
    ///
    /// # Errors
    /// [`ErrorKind::NoServer`] when it does not answer.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(&Request::Status, STATUS_LIMIT)? {
            Answer::Status(status) => Ok(*status),
            other => Err(unexpected(other)),
        }
    }

    /// What the cache holds of objects whose digests begin with this byte.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the server has no cache on disk; [`ErrorKind::NoServer`].
    pub fn cache_list(&mut self, shard: u8) -> Result<Vec<Listed>, ClientError> {
        match self.ask(&Request::CacheList { shard }, UNMOUNT_LIMIT)? {
            Answer::CacheListed(list) => Ok(list),
            other => Err(unexpected(other)),
        }
    }

    /// Reads the whole cache back and forgets what is damaged. `progress` is told about every second how many objects and bytes were
    /// read. Hanging up ends it.
    ///
    /// # Errors
    /// As [`Client::cache_list`].
    pub fn cache_verify(&mut self, mut progress: impl FnMut(u64, u64)) -> Result<Verified, ClientError> {
        let answer = self.exchange(&Request::CacheVerify, VERIFY_LIMIT, |answer| match answer {
            Answer::CacheVerifying { objects, bytes } => {
                progress(*objects, *bytes);
                true
            }
            _ => false,
        });
        match answer? {
            Answer::CacheVerified(verified) => Ok(*verified),
            other => Err(unexpected(other)),
        }
    }

    /// Empties the cache, but for what is in use.
    ///
    /// # Errors
    /// As [`Client::cache_list`].
    pub fn cache_clear(&mut self) -> Result<Cleared, ClientError> {
        match self.ask(&Request::CacheClear, CLEAR_LIMIT)? {
            Answer::CacheCleared(cleared) => Ok(*cleared),
            other => Err(unexpected(other)),
        }
    }

    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Answer, ClientError> {
        self.exchange(request, limit, |_| false)
    }

    /// Sends a request and reads answers, each within `limit`, until there is one that `more` does not say another follows.
    fn exchange(
        &mut self,
        request: &Request,
        limit: Duration,
        mut more: impl FnMut(&Answer) -> bool,
    ) -> Result<Answer, ClientError> {
        let line = protocol::encode(request)?;
        let mut deadline = Instant::now() + limit;
        let server = self.server;
        let gone = |error: &dyn std::fmt::Display| {
            MountError::new(
                ErrorKind::NoServer,
                format_args!("the fuse-oss server (process {server}) went away: {error}"),
            )
        };
        self.stream
            .set_write_timeout(Some(limit))
            .and_then(|()| self.stream.write_all(&line))
            .map_err(|error| gone(&error))?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new(&self.stream);
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).map_err(|error| gone(&error))?;
            let room = u64::try_from(MAX_LINE.saturating_sub(answer.len())).unwrap_or(0);
            match (&mut reader).take(room).read_until(b'\n', &mut answer) {
                Ok(_) if answer.last() == Some(&b'\n') => match protocol::decode(&answer)? {
                    Answer::Failed(error) => return Err(error),
                    said if more(&said) => {
                        answer.clear();
                        deadline = Instant::now() + limit;
                    }
                    said => return Ok(said),
                },
                Ok(_) => return Err(gone(&"the connection ended without an answer")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if Instant::now() >= deadline {
                        return Err(MountError::new(
                            ErrorKind::NoServer,
                            format_args!(
                                "the fuse-oss server (process {server}) has not answered for {} s",
                                limit.as_secs()
                            ),
                        ));
                    }
                }
                Err(error) => return Err(gone(&error)),
            }
        }
    }
}

/// Has the server of a cache directory go on with the program that calls this, and waits until it does.
///
/// # Errors
/// [`ErrorKind::NoServer`] when none runs; [`ErrorKind::Invalid`] when this program cannot take over; [`ErrorKind::Internal`] when it
/// did not come up, in which case the program before it goes on.
pub fn replace(cache_dir: &Path, runtime_dir: &Path) -> Result<(), ClientError> {
    let no_server = |what: &str| {
        MountError::new(ErrorKind::NoServer, format_args!("no server for {}: {what}", cache_dir.display()))
    };
    let socket = RuntimePaths::new(runtime_dir, cache_dir)?.socket;
    let mut client = Client::connect(&socket)?.ok_or_else(|| no_server("none runs; start one with fuse-oss serve"))?;
    let before = client.status()?;
    let program = std::env::current_exe().map_err(|error| {
        MountError::new(ErrorKind::System, format_args!("cannot tell where this program is: {error}"))
    })?;
    match client.ask(&Request::Replace { program }, REPLACE_LIMIT) {
        Ok(other) => return Err(unexpected(other)),
        // The worker has ended, as it should.
        Err(error) if error.kind == ErrorKind::NoServer => {}
        Err(error) => return Err(error),
    }
    let deadline = Instant::now() + REPLACE_LIMIT;
    while Instant::now() < deadline {
        let status = Client::connect(&socket).and_then(|client| client.map(|mut client| client.status()).transpose());
        match status {
            Ok(Some(status)) if status.worker != before.worker => {
                return if status.replaced > before.replaced {
                    Ok(())
                } else {
                    Err(MountError::new(
                        ErrorKind::Internal,
                        "the program did not come up, and the one before it goes on; see the server's log",
                    ))
                };
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    Err(no_server("it did not answer after the program was replaced; see its log"))
}

fn unexpected(_: Answer) -> MountError {
    MountError::new(ErrorKind::Internal, "the server answered something else than was asked")
}

/// The servers of a runtime directory that answer, with what they have mounted.
pub fn servers(runtime_dir: &Path) -> Vec<(Client, Status)> {
    let mut found = Vec::new();
    for socket in sockets(runtime_dir) {
        let asked = Client::connect(&socket).and_then(|client| {
            let Some(mut client) = client else { return Ok(None) };
            let status = client.status()?;
            Ok(Some((client, status)))
        });
        match asked {
            Ok(Some(server)) => found.push(server),
            Ok(None) => {}
            Err(error) => tracing::warn!(socket = %socket.display(), %error, "a server does not answer"),
        }
    }
    found
}

/// Runs `fuse-oss serve --detach`, which returns when the server answers on its socket or cannot start.
fn start(settings: &ServeSettings, deadline: Instant) -> Result<(), MountError> {
    let no_server = |text: String| MountError::new(ErrorKind::NoServer, text);
    let mut command = Command::new(&settings.binary);
    command.arg("serve").arg("--detach").arg(format!("--idle-exit={IDLE_EXIT_SECONDS}"));
    command.arg("--cache-dir").arg(absolute(&settings.cache_dir)?);
    command.arg("--runtime-dir").arg(absolute(&settings.runtime_dir)?);
    if let Some(size) = settings.cache_size {
        command.arg("--cache-size").arg(size.to_string());
    }
    if let Some(limit) = settings.memory_limit {
        command.arg("--memory-limit").arg(limit.to_string());
    }
    command.env_clear();
    command.envs(KEPT_VARIABLES.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let binary = settings.binary.display();
    let mut child = command.spawn().map_err(|error| {
        no_server(format!("cannot start a server with {binary}: {error}; check where the fuse-oss program is"))
    })?;
    let status =
        wait(&mut child, deadline).map_err(|error| no_server(format!("{binary} serve does not start: {error}")))?;
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        // It has exited; what it said is in the pipe.
        let _ = stdout.take(1 << 16).read_to_string(&mut said);
    }
    Err(serde_json::from_str(said.trim())
        .unwrap_or_else(|_| no_server(format!("{binary} serve ended at once ({status})"))))
}

fn absolute(path: &Path) -> Result<PathBuf, MountError> {
    std::path::absolute(path)
        .map_err(|error| MountError::new(ErrorKind::Invalid, format_args!("bad path {}: {error}", path.display())))
}

fn wait(child: &mut Child, deadline: Instant) -> io::Result<std::process::ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("not ready after {} s", START_LIMIT.as_secs()),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the owner of a locked cache directory listens on another socket than the one we look at.
fn socket_elsewhere(error: &MountError, socket: &Path) -> bool {
    let ours = socket.canonicalize().unwrap_or_else(|_| socket.to_owned());
    !error.message.contains(&format!("socket {}", ours.display())) && fs::metadata(socket).is_err()
}
