//! One client on the control socket.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::Server;
use crate::cache::Cache;
use crate::error::{ErrorKind, MountError};
use crate::keeper::message::ToKeeper;
use crate::keeper::replace::understood;
use crate::options::{MountRequest, UnmountMode};
use crate::protocol::{self, Answer, MAX_LINE, Request};

/// How long a program may take to say whether it can take over.
const UNDERSTANDS_LIMIT: Duration = Duration::from_secs(10);

/// How long the keeper may take to have this process end.
const REPLACE_LIMIT: Duration = Duration::from_secs(20);

/// How often a client that waits for long hears how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A connection; while it lives the server does not end for idleness.
pub struct Connection {
    server: Arc<Server>,
}

impl Connection {
    /// Counts one more client.
    pub fn new(server: Arc<Server>) -> Self {
        server.connections.fetch_add(1, Ordering::AcqRel);
        Self { server }
    }

    /// Answers requests until the client has no more.
    pub async fn serve(self, stream: UnixStream) {
        if let Err(error) = self.talk(stream).await {
            debug!(%error, "a client went away");
        }
    }

    async fn talk(&self, stream: UnixStream) -> std::io::Result<()> {
        let peer = stream.peer_cred()?;
        let me = nix::unistd::geteuid().as_raw();
        let (reader, mut writer) = stream.into_split();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let mut reader = BufReader::new(reader).take(limit);
        if peer.uid() != me && peer.uid() != 0 {
            warn!(uid = peer.uid(), "refused a client of another user");
            let error = MountError::new(
                ErrorKind::Denied,
                format_args!("this server belongs to user {me}; run as that user or as root"),
            );
            return writer.write_all(&answer_line(&Answer::Failed(error))).await;
        }
        let mut line = Vec::new();
        loop {
            line.clear();
            reader.set_limit(limit);
            if reader.read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            let _unanswered = Unanswered::new(&self.server);
            let answer = match protocol::decode::<Request>(&line) {
                Ok(Request::CacheVerify) => self.verify(&mut writer).await?,
                Ok(request) => self.answer(request, peer.pid()).await,
                Err(error) => Answer::Failed(error),
            };
            if let Err(error) = writer.write_all(&answer_line(&answer)).await {
                self.undo(&answer).await;
                return Err(error);
            }
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
        }
    }

    async fn answer(&self, request: Request, peer: Option<i32>) -> Answer {
        match request {
            Request::Mount(wire) => {
                if let Err(error) = same_mount_namespace(peer) {
                    return Answer::Failed(error);
                }
                match self.server.mount(MountRequest::from(*wire)).await {
                    Ok(reply) => Answer::Mounted(reply),
                    Err(error) => Answer::Failed(error),
                }
            }
            Request::Unmount { target, mode } => match self.server.unmount(&target, mode).await {
                Ok(()) => Answer::Unmounted,
                Err(error) => Answer::Failed(error),
            },
            Request::Status => Answer::Status(Box::new(self.server.status())),
            Request::CacheList { shard } => {
                self.with_cache(move |cache| Answer::CacheListed(cache.list_shard(shard))).await
            }
            Request::CacheClear => {
                self.server.give_up_idle();
                self.with_cache(|cache| Answer::CacheCleared(Box::new(cache.clear()))).await
            }
            Request::Replace { program } => Answer::Failed(self.replace(program).await),
            Request::GoOver { socket } => Answer::Failed(self.go_over(socket).await),
            // It has many answers; see `talk`.
            Request::CacheVerify => {
                Answer::Failed(MountError::new(ErrorKind::Internal, "verifying has one answer only"))
            }
        }
    }
}

impl Connection {
    async fn with_cache(&self, action: impl FnOnce(&Cache) -> Answer + Send + 'static) -> Answer {
        let Some(cache) = self.server.blocks.cache().cloned() else { return no_cache() };
        let done = self.server.runtime.spawn_blocking(move || action(&cache)).await;
        done.unwrap_or_else(|error| Answer::Failed(MountError::new(ErrorKind::Internal, error)))
    }

    /// Has another program take over. Returns only if it does not.
    async fn replace(&self, program: PathBuf) -> MountError {
        let path = program.clone();
        let fits = self.server.runtime.spawn_blocking(move || understands(&path)).await;
        match fits {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(error) => return MountError::new(ErrorKind::Internal, error),
        }
        let mut refused = self.server.not_replaced.subscribe();
        refused.mark_unchanged();
        self.server.keeping.say(&ToKeeper::Replace { program });
        // This request does not keep the worker from ending.
        self.server.unanswered.fetch_sub(1, Ordering::AcqRel);
        let answer = tokio::time::timeout(REPLACE_LIMIT, refused.changed()).await;
        self.server.unanswered.fetch_add(1, Ordering::AcqRel);
        let said = refused.borrow().clone();
        match (answer, said) {
            (Ok(Ok(())), Some(error)) => error,
            _ => MountError::new(ErrorKind::Internal, "the keeper did not start the program; see the server's log"),
        }
    }

    /// Goes over to another keeper. Returns only if that is not possible, or takes too long.
    async fn go_over(&self, socket: PathBuf) -> MountError {
        let server = Arc::clone(&self.server);
        // Sending waits for the other end.
        let gone = self.server.runtime.spawn_blocking(move || server.keeping.go_over(&socket, server.numbers())).await;
        match gone {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(error) => return MountError::new(ErrorKind::Internal, error),
        }
        // This request does not keep the worker from ending.
        self.server.unanswered.fetch_sub(1, Ordering::AcqRel);
        tokio::time::sleep(REPLACE_LIMIT).await;
        self.server.unanswered.fetch_add(1, Ordering::AcqRel);
        MountError::new(ErrorKind::Internal, "the server did not end")
    }

    /// Reads the cache back, and tells the client every second how far that is. It ends when the client has gone.
    async fn verify(&self, writer: &mut (impl AsyncWriteExt + Unpin)) -> std::io::Result<Answer> {
        let (progress, mut seen) = watch::channel((0, 0));
        // With the receiver gone nobody wants to know any more.
        let verify = move |cache: &Cache| {
            let verified = cache.verify_while(|so_far| progress.send((so_far.objects, so_far.bytes)).is_ok());
            Answer::CacheVerified(Box::new(verified))
        };
        let mut verifying = std::pin::pin!(self.with_cache(verify));
        loop {
            tokio::select! {
                answer = &mut verifying => return Ok(answer),
                () = tokio::time::sleep(TELL_EVERY) => {
                    let (objects, bytes) = *seen.borrow_and_update();
                    writer.write_all(&answer_line(&Answer::CacheVerifying { objects, bytes })).await?;
                }
            }
        }
    }

    /// A mount whose client has gone while it was being made belongs to nobody: it would stay for ever.
    async fn undo(&self, answer: &Answer) {
        let Answer::Mounted(reply) = answer else { return };
        warn!(target = %reply.target.display(), "whoever asked for this mount has gone; it is undone");
        if let Err(error) = self.server.unmount(&reply.target, UnmountMode::Lazy).await {
            warn!(%error, target = %reply.target.display(), "and stays");
        }
    }
}

/// A request that is being answered.
struct Unanswered<'a>(&'a Server);

impl<'a> Unanswered<'a> {
    fn new(server: &'a Server) -> Self {
        server.unanswered.fetch_add(1, Ordering::AcqRel);
        Self(server)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.unanswered.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.server.connections.fetch_sub(1, Ordering::AcqRel);
        self.server.changed.notify_waiters();
    }
}

fn answer_line(answer: &Answer) -> Vec<u8> {
    protocol::encode(answer).unwrap_or_else(|error| {
        // Only a path that is not UTF-8 cannot be encoded, and this has none.
        protocol::encode(&Answer::Failed(error)).unwrap_or_default()
    })
}

fn no_cache() -> Answer {
    Answer::Failed(MountError::new(
        ErrorKind::Invalid,
        "the server that uses this directory has no cache on disk (--cache-size 0)",
    ))
}

/// Whether a program can go on with what this one holds: it is asked.
fn understands(program: &Path) -> Result<(), MountError> {
    let refused = |why: &dyn std::fmt::Display| {
        MountError::new(
            ErrorKind::Invalid,
            format_args!("{} cannot take over: {why}; this program goes on", program.display()),
        )
    };
    let mut command = Command::new(program);
    command.arg("keeper").arg("--understands").env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| refused(&error))?;
    let deadline = Instant::now() + UNDERSTANDS_LIMIT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(refused(&"it does not answer"));
            }
            Err(error) => return Err(refused(&error)),
        }
    };
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        // It has ended; what it said is in the pipe.
        let _ = std::io::Read::read_to_string(&mut std::io::Read::take(stdout, 4096), &mut said);
    }
    if status.success() && said.trim() == understood() {
        return Ok(());
    }
    let what = format!(
        "it is no fuse-oss that understands this one's state ({status}, it said {:?}, wanted is {:?})",
        said.trim(),
        understood()
    );
    Err(refused(&what))
}

/// A mount made here would be invisible to a client that lives in another mount namespace, and it would wonder.
fn same_mount_namespace(peer: Option<i32>) -> Result<(), MountError> {
    let Some(pid) = peer else { return Ok(()) };
    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/mnt"));
    match (namespace("self"), namespace(&pid.to_string())) {
        (Ok(ours), Ok(theirs)) if ours != theirs => Err(MountError::new(
            ErrorKind::Invalid,
            format_args!(
                "the server (process {}) is in another mount namespace than this program (process {pid}), which would not see the \
                 mount; use another --cache-dir, so that a server is started here",
                std::process::id()
            ),
        )),
        _ => Ok(()),
    }
}
