//! Bringing a log file to object storage while it is being written.
//!
//! The task writes into a plain file on the scratch disk and is never slowed down by storage. A follower reads the file
//! behind it and appends what is new to a growing object: at most [`LOOK`] after a write when nothing was sent
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
use oss::{ErrorKind, Location, Store};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often a quiet file is looked at. With a request's own time this keeps a line visible well within two seconds.
const LOOK: Duration = Duration::from_millis(500);
/// The most that is sent at once.
const PIECE: usize = 4 << 20;
/// How long the rest may take to arrive after the task has ended: storage that is away comes back, a node cannot wait for ever.
const FINAL_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// How often a log is sent from its beginning before its trouble is reported.
const WHOLE_TRIES: u32 = 3;
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
            oss::Error::new(ErrorKind::Unavailable, "APPEND", self.target.escaped(), error.to_string())
        };
        self.task.await.map_err(failed)?
    }
}

async fn follow(
    path: PathBuf,
    store: Arc<dyn Store>,
    target: Location,
    ended: watch::Receiver<bool>,
) -> Result<u64, oss::Error> {
    let file = Arc::new(File::open(&path).map_err(|error| read_failed(&path, error))?);
    let mut patience = Patience { target, ended, give_up: None };
    let mut tries = 0;
    loop {
        tries += 1;
        match send_all(&path, &file, &store, &mut patience).await {
            // Somebody else has written to the object, or it holds other bytes than were sent. The file still has them all.
            Err(error) if matches!(error.kind(), ErrorKind::Changed | ErrorKind::Corrupt) && tries < WHOLE_TRIES => {
                tracing::warn!(%error, log = %patience.target.escaped(), "log is sent again from its beginning");
            }
            result => return result,
        }
    }
}

/// Sends the file from its beginning to its end, and answers with its length.
async fn send_all(
    path: &Path,
    file: &Arc<File>,
    store: &Arc<dyn Store>,
    patience: &mut Patience,
) -> Result<u64, oss::Error> {
    let key = patience.target.key().clone();
    let mut object = loop {
        match GrowingObject::create(Arc::clone(store), key.clone(), GrowingOptions::default()).await {
            Ok(object) => break object,
            Err(error) => patience.wait(error).await?,
        }
    };
    let mut next_send = Instant::now();
    loop {
        // Asked before the data is read: what was written before the end was known is then certainly seen.
        let is_over = *patience.ended.borrow_and_update();
        if !is_over && Instant::now() < next_send {
            tokio::select! {
                () = tokio::time::sleep_until(next_send) => {}
                _ = patience.ended.changed() => {}
            }
            continue;
        }
        let piece = read(file, object.len()).await.map_err(|error| read_failed(path, error))?;
        if piece.is_empty() && is_over {
            break;
        }
        if piece.is_empty() {
            next_send = Instant::now() + LOOK;
            continue;
        }
        let is_full = piece.len() == PIECE;
        match object.append(piece).await {
            // A full piece means that there is more.
            Ok(()) if is_full => {}
            Ok(()) => next_send = Instant::now() + object.suggested_interval(),
            Err(error) => patience.wait(error).await?,
        }
    }
    loop {
        match object.finish().await {
            Ok(grown) => return Ok(grown.size),
            Err(error) => patience.wait(error).await?,
        }
    }
}

fn read_failed(path: &Path, error: io::Error) -> oss::Error {
    oss::Error::new(ErrorKind::LocalFile, "READ", path.display(), error.to_string()).with_source(error)
}

async fn read(file: &Arc<File>, position: u64) -> io::Result<Bytes> {
    let file = Arc::clone(file);
    let read = move || {
        let there = file.metadata()?.len().saturating_sub(position);
        let mut piece = vec![0; usize::try_from(there).unwrap_or(PIECE).min(PIECE)];
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

/// How long to bear with a store that does not answer.
struct Patience {
    target: Location,
    ended: watch::Receiver<bool>,
    give_up: Option<Instant>,
}

impl Patience {
    /// Waits before another try, or gives up: at once for what no waiting mends, after the deadline once the task has ended.
    async fn wait(&mut self, error: oss::Error) -> Result<(), oss::Error> {
        if *self.ended.borrow() && self.give_up.is_none() {
            self.give_up = Some(Instant::now() + FINAL_DEADLINE);
        }
        let may_pass = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Throttled { .. });
        // While the task runs there is nothing to lose by hoping that somebody mends it.
        let hopeless = error.is_lasting() && self.give_up.is_some();
        if !may_pass || hopeless || self.give_up.is_some_and(|end| Instant::now() >= end) {
            return Err(error);
        }
        tracing::warn!(%error, log = %self.target.escaped(), "log not sent yet; trying again");
        tokio::time::sleep(RETRY).await;
        Ok(())
    }
}

/// Makes an empty log file that only root can read, or opens the one that is there already.
///
/// # Errors
/// When it cannot be made.
pub fn open_log(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // The directory is root's alone, so there is nothing that this could follow.
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}
