//! Bringing a log file to object storage while it is being written.
//!
//! What the task prints is in a plain file on the scratch disk, so that it is never slowed down by storage. A follower reads the file
//! behind it and appends what is new to a growing object: at most [`LOOK`] after a write when nothing was sent
//! lately, else when the object says that the next piece is worth sending. What could not be sent is sent again, exactly, as soon
//! as storage answers; the file keeps it until then.
//!
//! What has arrived for good is written down ([`Sent`]), and only then removed from the disk: a hole is punched into the file behind
//! the reader. So the disk holds little more than what is still to be sent, and an agent that comes after this one knows where
//! to go on; what was sent beyond what was written down it finds out from the store. When storage takes less than the task writes until
//! the disk is nearly full, the oldest bytes that were not sent are given up; the log says where and how many ([`sequence`]).
//!
//! Files of the task's own ([`Origin::Theirs`]) are followed in the same way, whatever becomes of them, but are never touched: the task may
//! want to read them.

mod patience;
mod punch;
mod sent;
mod sequence;
mod source;
mod space;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oss::growing::{GrowingObject, GrowingOptions};
use oss::{ErrorKind, Location, Store};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use patience::Patience;
use punch::Upkeep;
pub use sent::Sent;
pub use sequence::Place;
pub use source::Origin;
use source::Reader;

/// How often a quiet file is looked at. With a request's own time this keeps a line visible well within two seconds.
const LOOK: Duration = Duration::from_millis(500);
/// How often the disk is looked at while a piece is on its way.
const WATCH: Duration = Duration::from_millis(100);
/// How often a log is sent from its beginning before its trouble is reported.
const WHOLE_TRIES: u32 = 3;

/// A log that is to be followed.
#[derive(Debug)]
pub struct Followed {
    /// Where it is written.
    pub origin: Origin,
    /// Where it goes.
    pub store: Arc<dyn Store>,
    /// The object there. What an earlier run left of that name is replaced.
    pub target: Location,
    /// Where to write down how far it is. Without that the file is kept whole, and an agent that comes after this one begins anew.
    pub sent: Option<PathBuf>,
}

/// Follows one log.
#[derive(Debug)]
pub struct Follower {
    origin: Origin,
    target: Location,
    ended: watch::Sender<bool>,
    task: JoinHandle<Result<Option<u64>, oss::Error>>,
}

impl Follower {
    /// Begins to follow, or goes on where an agent before this one was.
    pub fn start(followed: Followed) -> Self {
        let (ended, receiver) = watch::channel(false);
        let (origin, target) = (followed.origin.clone(), followed.target.clone());
        let task = tokio::spawn(follow(followed, receiver));
        Self { origin, target, ended, task }
    }

    /// Where the log goes.
    pub fn target(&self) -> &Location {
        &self.target
    }

    /// Where it is written.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Sends the rest of a log that is no longer written, and says how many bytes there were in all; none if it was never written.
    ///
    /// # Errors
    /// When storage refuses, or is away for longer than the final deadline.
    pub async fn finish(mut self) -> Result<Option<u64>, oss::Error> {
        self.ended.send_replace(true);
        let failed = |error: tokio::task::JoinError| {
            oss::Error::new(ErrorKind::Unavailable, "APPEND", self.target.escaped(), error.to_string())
        };
        (&mut self.task).await.map_err(failed)?
    }
}

/// Nobody follows a log that nobody waits for.
impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A log on its way.
struct Log {
    followed: Followed,
    ended: watch::Receiver<bool>,
    patience: Patience,
    upkeep: Upkeep,
    /// What an agent before this one has read, where it could not even begin to send.
    reader: Option<Reader>,
}

async fn follow(followed: Followed, ended: watch::Receiver<bool>) -> Result<Option<u64>, oss::Error> {
    let patience = Patience::new(followed.target.clone(), ended.clone());
    let upkeep = Upkeep::new(followed.sent.clone(), followed.target.to_string());
    let mut log = Log { followed, ended, patience, upkeep, reader: None };
    let Some((mut reader, mut object)) = log.begin().await? else { return Ok(None) };
    let mut tries = 1;
    loop {
        match log.send_all(&mut reader, &mut object).await {
            // Somebody else has written to the object, or it holds other bytes than were sent.
            Err(error) if is_broken(&error) && reader.sequence.is_whole() && !log.upkeep.has_punched() => {
                if tries >= WHOLE_TRIES {
                    return Err(error);
                }
                tries += 1;
                let target = log.followed.target.escaped();
                tracing::warn!(%error, log = %target, "log is sent again from its beginning");
                reader.restart();
                object = log.create(&mut reader).await?;
            }
            Err(error) if is_broken(&error) && object.abandon() => {
                let target = log.followed.target.escaped();
                tracing::warn!(%error, log = %target, "log goes on in a new object; its beginning is not on this node any more");
                let text =
                    "\n[batch-agent: something else has changed this log up to here; it goes on in this object]\n";
                reader.sequence.say(object.len(), text.to_owned());
            }
            Err(error) => {
                // The file is not lost with the error: whoever keeps it knows how far it was sent.
                log.upkeep.finish(&object, &reader).await;
                return Err(error);
            }
            Ok(size) => return Ok(Some(size)),
        }
    }
}

/// Whether the object is not what was sent, so that sending it again helps nothing.
fn is_broken(error: &oss::Error) -> bool {
    matches!(error.kind(), ErrorKind::Changed | ErrorKind::Corrupt | ErrorKind::NotAppendable)
}

impl Log {
    /// Waits for the file and begins the object, or goes on with both. None if there never is a file.
    async fn begin(&mut self) -> Result<Option<(Reader, GrowingObject)>, oss::Error> {
        if let Some(begun) = self.resume().await? {
            return Ok(Some(begun));
        }
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => match self.wait_for_file().await? {
                Some(reader) => reader,
                None => return Ok(None),
            },
        };
        let object = self.create(&mut reader).await?;
        Ok(Some((reader, object)))
    }

    async fn wait_for_file(&mut self) -> Result<Option<Reader>, oss::Error> {
        loop {
            let is_over = *self.ended.borrow_and_update();
            let opened = tokio::task::block_in_place(|| Reader::open(&self.followed.origin));
            let opened = opened.map_err(|error| self.read_failed(&error))?;
            if opened.is_some() || is_over {
                return Ok(opened);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = self.ended.changed() => {}
            }
        }
    }

    /// What an agent before this one has begun. If that was no object yet, there may be a reader for it.
    async fn resume(&mut self) -> Result<Option<(Reader, GrowingObject)>, oss::Error> {
        let Some(path) = &self.followed.sent else { return Ok(None) };
        let target = &self.followed.target;
        let sent = Sent::read(path).unwrap_or_else(|error| {
            tracing::warn!(%error, log = %target.escaped(), "how far the log was sent is not known; it is sent again");
            None
        });
        let Some(sent) = sent.filter(|sent| sent.target == target.to_string()) else { return Ok(None) };
        let Some(mark) = sent.mark else {
            self.reader = Reader::resume(&self.followed.origin, sent.sequence).map(|reader| reader.without_lost(0));
            return Ok(None);
        };
        let Some(mut reader) = Reader::resume(&self.followed.origin, sent.sequence) else { return Ok(None) };
        if mark.arrived() > 0 {
            self.patience.has_worked_before();
        }
        self.upkeep.go_on(mark.clone());
        let (store, key, options) = (Arc::clone(&self.followed.store), target.key().clone(), GrowingOptions::default());
        let fence = self.upkeep.fence();
        let resume = GrowingObject::resume(store, key, &options, mark);
        let object = watched(&mut self.upkeep, &mut reader, fence, resume).await?;
        let reader = reader.without_lost(object.len());
        tracing::info!(log = %target.escaped(), bytes = object.len(), "going on with a log that was being sent");
        Ok(Some((reader, object)))
    }

    async fn create(&mut self, reader: &mut Reader) -> Result<GrowingObject, oss::Error> {
        let key = self.followed.target.key().clone();
        loop {
            let store = Arc::clone(&self.followed.store);
            let create = GrowingObject::create(store, key.clone(), GrowingOptions::default());
            // Nothing has been sent yet, so everything may be given up.
            match watched(&mut self.upkeep, reader, 0, create).await {
                Ok(object) => {
                    self.upkeep.begin(&object, reader).await;
                    return Ok(object);
                }
                Err(error) => watched(&mut self.upkeep, reader, 0, self.patience.wait(error)).await?,
            }
        }
    }

    /// Sends the log to its end, and answers with its length.
    async fn send_all(&mut self, reader: &mut Reader, object: &mut GrowingObject) -> Result<u64, oss::Error> {
        let mut next_send = Instant::now();
        loop {
            // Asked before the data is read: what was written before the end was known is then certainly seen.
            let is_over = *self.ended.borrow_and_update();
            let most = object.suggested_piece();
            let has_much = reader.size().saturating_sub(reader.sequence.offset(object.len())) >= most as u64;
            if !is_over && !has_much && Instant::now() < next_send {
                tokio::select! {
                    () = tokio::time::sleep_until(next_send.min(Instant::now() + LOOK)) => {}
                    _ = self.ended.changed() => {}
                }
                continue;
            }
            // It waits for the disk.
            let read = tokio::task::block_in_place(|| reader.read(object.len(), most, is_over));
            let piece = read.map_err(|error| self.read_failed(&error))?;
            if piece.is_empty() && is_over {
                break;
            }
            let began = Instant::now();
            if piece.is_empty() {
                next_send = began + LOOK;
                continue;
            }
            self.upkeep.before_sending(reader, object.len() + piece.len() as u64).await;
            self.send(reader, object, &piece).await?;
            self.upkeep.after_sending(object, reader).await;
            // If a whole piece is there already, it does not wait for this.
            next_send = began + object.suggested_interval();
        }
        loop {
            match object.finish().await {
                Ok(grown) => return Ok(grown.size),
                Err(error) if self.is_final(&error) => return Err(error),
                Err(error) => self.patience.wait(error).await?,
            }
        }
    }

    /// Sends a piece, however long that takes. Meanwhile the disk is looked after.
    async fn send(&mut self, reader: &mut Reader, object: &mut GrowingObject, piece: &Bytes) -> Result<(), oss::Error> {
        // Bytes that may have been sent stay: the same ones must be sent again.
        let end = object.len() + piece.len() as u64;
        let kept = if object.has_caught_up() { end } else { end.max(self.upkeep.fence()) };
        loop {
            let error = match watched(&mut self.upkeep, reader, kept, object.append(piece.clone())).await {
                Ok(()) => {
                    self.patience.worked();
                    return Ok(());
                }
                Err(error) if self.is_final(&error) => return Err(error),
                Err(error) => error,
            };
            watched(&mut self.upkeep, reader, kept, self.patience.wait(error)).await?;
        }
    }

    /// Whether sending the same again helps nothing. Where there is no append, what is sent replaces what is there.
    fn is_final(&self, error: &oss::Error) -> bool {
        is_broken(error) && self.followed.store.capabilities().append
    }

    fn read_failed(&self, error: &io::Error) -> oss::Error {
        oss::Error::new(ErrorKind::LocalFile, "READ", self.followed.origin.path().display(), error.to_string())
    }
}

/// Does something that takes time, and looks after the disk meanwhile.
async fn watched<T>(upkeep: &mut Upkeep, reader: &mut Reader, kept: u64, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(WATCH) => upkeep.make_room(reader, kept).await,
        }
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

#[cfg(test)]
mod tests;
