//! Bringing a log file to object storage while it is being written.
//!
//! The task writes into a plain file on the scratch disk and is never slowed down by storage. A follower reads the file
//! behind it and appends what is new to a growing object: at most [`FIRST_LOOK`] after a write when nothing was sent
//! lately, else when the object says that the next piece is worth sending. What could not be sent is sent again, exactly, as soon
//! as storage answers; the file keeps it until then.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oss::growing::{GrowingObject, GrowingOptions};
use oss::{Location, Store};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often a quiet file is looked at. With a request's own time this keeps a line visible well within two seconds.
const FIRST_LOOK: Duration = Duration::from_millis(500);
/// The most that is sent at once.
const PIECE: usize = 4 << 20;
/// How long the rest may take to arrive after the task has ended: storage that is away comes back, a node cannot wait for ever.
const FINAL_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// The pause between two tries while storage is away.
const RETRY: Duration = Duration::from_secs(2);

/// Follows one file.
#[derive(Debug)]
pub struct Follower {
    target: Location,
    ended: watch::Sender<bool>,
    task: JoinHandle<Result<u64, oss::Error>>,
}

impl Follower {
    /// Begins to follow `file`, which exists. An object that an earlier run left at `target` is replaced.
    pub fn start(file: PathBuf, store: Arc<dyn Store>, target: Location) -> Self {
        let (ended, receiver) = watch::channel(false);
        let task = tokio::spawn(follow(file, store, target.clone(), receiver));
        Self { target, ended, task }
    }

    /// Where the log goes.
    pub fn target(&self) -> &Location {
        &self.target
    }

    /// Sends the rest of a file that is no longer written, and says how many bytes there were in all.
    ///
    /// # Errors
    /// When storage refuses, or is away for longer than the final deadline.
    pub async fn finish(self) -> Result<u64, oss::Error> {
        self.ended.send_replace(true);
        let failed = |error: tokio::task::JoinError| {
            oss::Error::new(oss::ErrorKind::Unavailable, "APPEND", self.target.escaped(), error.to_string())
        };
        self.task.await.map_err(failed)?
    }
}

async fn follow(
    path: PathBuf,
    store: Arc<dyn Store>,
    target: Location,
    mut ended: watch::Receiver<bool>,
) -> Result<u64, oss::Error> {
    let read_failed = |error: io::Error| {
        oss::Error::new(oss::ErrorKind::Invalid, "READ", path.display(), error.to_string()).with_source(error)
    };
    let file = Arc::new(File::open(&path).map_err(read_failed)?);
    let mut give_up: Option<Instant> = None;
    let mut object = loop {
        let created = GrowingObject::create(Arc::clone(&store), target.key().clone(), GrowingOptions::default()).await;
        match created {
            Ok(object) => break object,
            Err(error) => wait_to_retry(&target, error, &mut ended, &mut give_up).await?,
        }
    };
    let mut position = 0;
    let mut next_send = Instant::now();
    loop {
        // Read before the data: what was written before the end was known is then certainly seen.
        let is_over = *ended.borrow_and_update();
        let piece = if is_over || Instant::now() >= next_send {
            read(&file, position).await.map_err(read_failed)?
        } else {
            Bytes::new()
        };
        if piece.is_empty() {
            if is_over {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(FIRST_LOOK.min(next_send.saturating_duration_since(Instant::now()).max(Duration::from_millis(50)))) => {}
                _ = ended.changed() => {}
            }
            continue;
        }
        match object.append(piece.clone()).await {
            Ok(()) => {
                position += piece.len() as u64;
                // A full piece means that there is more: send on. Else wait for more to come.
                next_send =
                    Instant::now() + if piece.len() == PIECE { Duration::ZERO } else { object.suggested_interval() };
            }
            Err(error) => wait_to_retry(&target, error, &mut ended, &mut give_up).await?,
        }
    }
    loop {
        match object.finish().await {
            Ok(_) => return Ok(position),
            Err(error) => wait_to_retry(&target, error, &mut ended, &mut give_up).await?,
        }
    }
}

async fn read(file: &Arc<File>, position: u64) -> io::Result<Bytes> {
    let file = Arc::clone(file);
    let read = move || {
        let mut piece = vec![0; PIECE];
        let mut filled = 0;
        while filled < piece.len() {
            match file.read_at(&mut piece[filled..], position + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        piece.truncate(filled);
        Ok(Bytes::from(piece))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Waits before another try, or gives up: at once for what no waiting mends, after the deadline once the task has ended.
async fn wait_to_retry(
    target: &Location,
    error: oss::Error,
    ended: &mut watch::Receiver<bool>,
    give_up: &mut Option<Instant>,
) -> Result<(), oss::Error> {
    use oss::ErrorKind as Kind;
    let is_over = *ended.borrow();
    if is_over && give_up.is_none() {
        *give_up = Some(Instant::now() + FINAL_DEADLINE);
    }
    let hopeless = !matches!(error.kind(), Kind::Unavailable | Kind::Throttled { .. } | Kind::Corrupt);
    if hopeless || give_up.is_some_and(|end| Instant::now() >= end) {
        return Err(error);
    }
    tracing::warn!(%error, log = %target.escaped(), "log not sent yet; trying again");
    tokio::time::sleep(RETRY).await;
    Ok(())
}

/// Makes an empty log file that only root can read.
///
/// # Errors
/// When it cannot be made.
pub fn create_log(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}
