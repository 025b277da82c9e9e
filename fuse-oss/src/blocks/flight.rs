//! A fetch under way: one ranged request for a stretch of an object, asked for again where its body breaks off.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Buf, Bytes};
use oss::ErrorKind;
use tracing::{debug, warn};

use super::buffers::Share;
use super::memory::{BlockId, Piece, Purpose};
use super::object::Object;
use super::plan::Stretch;
use super::race::{Arrived, Head, Race};
use super::{Blocks, unix_seconds};
use crate::fault::Fault;
use crate::geometry::{Granules, by_block, bytes_of, start_of};

/// The pause before a body that broke off is asked for again; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What a connection needs to receive a long body, in bytes.
const RECEIVE: u64 = 256 << 10;

/// The memory that fetching `range` takes, in bytes: what comes, and what it comes through.
pub(super) fn memory(range: &Range<u64>) -> usize {
    let len = range.end - range.start;
    usize::try_from(len + len.min(RECEIVE)).unwrap_or(usize::MAX)
}

/// A fetch under way. Whatever becomes of it, everybody who waits for some of its granules is told.
pub(super) struct Flight {
    blocks: Arc<Blocks>,
    object: Arc<Object>,
    range: Range<u64>,
    /// What has been claimed and is still to come, in order.
    claimed: VecDeque<(u32, Granules)>,
    purpose: Purpose,
}

/// Why a request did not bring everything.
enum Broken {
    /// Asking again is of no use: the store has retried already, or has refused.
    Final(Fault),
    /// The body broke off; what has come is kept.
    Again(Fault),
}

impl Flight {
    /// A fetch of a stretch that has been claimed for it.
    pub(super) fn new(blocks: &Arc<Blocks>, object: &Arc<Object>, stretch: Stretch, purpose: Purpose) -> Self {
        let Stretch { range, claimed } = stretch;
        let (blocks, object) = (Arc::clone(blocks), Arc::clone(object));
        Self { blocks, object, range, claimed: claimed.into(), purpose }
    }

    /// Fetches everything, or tells everybody who waits why not. `share` is its memory, where that has been given already.
    ///
    /// # Errors
    /// The one that everybody was told.
    pub(super) async fn run(mut self, share: Option<Share>) -> Result<(), Fault> {
        let outcome = self.fly(share).await;
        if let Err(fault) = &outcome {
            self.fail(fault);
        }
        outcome
    }

    async fn fly(&mut self, share: Option<Share>) -> Result<(), Fault> {
        let share = match share {
            Some(share) => Some(share),
            None => self.blocks.reserve(memory(&self.range)).await,
        };
        // The budget is never closed, so there always is a share.
        let Some(mut share) = share else { return Ok(()) };
        let mut deadline = Instant::now() + self.object.origin.deadline;
        let mut pause = FIRST_PAUSE;
        loop {
            let before = self.claimed.len();
            match self.request(&mut share).await {
                Ok(()) => return Ok(()),
                Err(Broken::Final(fault)) => return Err(fault),
                Err(Broken::Again(fault)) => {
                    if self.claimed.len() < before {
                        deadline = Instant::now() + self.object.origin.deadline;
                        pause = FIRST_PAUSE;
                    }
                    if Instant::now() + pause >= deadline {
                        return Err(fault);
                    }
                    debug!(object = self.object.name(), offset = self.range.start, %fault, "asking again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                    // What had been begun went back with its buffer.
                    drop(share);
                    let Some(again) = self.blocks.reserve(memory(&self.range)).await else { return Ok(()) };
                    share = again;
                }
            }
        }
    }

    async fn request(&mut self, share: &mut Share) -> Result<(), Broken> {
        let object = Arc::clone(&self.object);
        let mut race = Race::new(&object, &self.blocks.metrics, self.range.start, self.range.end);
        let mut rest = Bytes::new();
        let mut request_id = None;
        let total = self.range.end - self.range.start;
        for (block, within) in by_block(self.range.clone()) {
            let mut buffer = self.blocks.buffers.buffer(within.len(), share);
            let mut filled = 0;
            while filled < within.len() {
                if rest.is_empty() {
                    rest = match race.next().await {
                        Ok(Arrived::Bytes(bytes)) => bytes,
                        Ok(Arrived::Head(head)) => {
                            check_version(&object, &head)?;
                            if let Some(entry) = &object.entry {
                                entry.learn(head.meta.checksum);
                            }
                            request_id = head.request_id;
                            continue;
                        }
                        Ok(Arrived::End) => return Err(Broken::Again(short(&object, request_id.as_deref()))),
                        Err(error) => return Err(broken(error)),
                    };
                    continue;
                }
                let take = rest.len().min(within.len() - filled);
                buffer.bytes_mut()[filled..filled + take].copy_from_slice(&rest[..take]);
                rest.advance(take);
                filled += take;
            }
            let end = start_of(block) + u64::from(within.end);
            if end == self.range.end {
                // The end of the body is where a wrong checksum shows.
                match race.next().await {
                    Ok(Arrived::End) => {}
                    Ok(_) => return Err(Broken::Again(short(&object, request_id.as_deref()))),
                    Err(error) => return Err(broken(error)),
                }
                race.finished(total);
            }
            self.range.start = end;
            self.deliver(block, &within, &buffer.freeze());
        }
        Ok(())
    }

    /// Hands out what was claimed of a part of a block; the rest was only in between.
    fn deliver(&mut self, block: u32, within: &Range<u32>, bytes: &Bytes) {
        let Some((_, granules)) = self.claimed.pop_front_if(|(of, _)| *of == block) else { return };
        let id: BlockId = (self.object.id, block);
        for run in granules.runs() {
            let piece = bytes_of(self.object.size, block, &run);
            let from = start_of(block) + u64::from(within.start);
            let at = |byte: u64| usize::try_from(byte - from).expect("inside the part");
            let piece = Piece { first: run.start, bytes: bytes.slice(at(piece.start)..at(piece.end)) };
            if self.purpose == Purpose::Ahead {
                self.blocks.metrics.ahead.bytes(piece.bytes.len());
            }
            self.blocks.memory.deliver(id, piece.clone(), self.purpose);
            self.blocks.writer.put(&self.object, block, piece);
        }
    }

    fn fail(&mut self, fault: &Fault) {
        let replaced = match fault {
            Fault::Replaced(_) => true,
            Fault::Store(error) => matches!(error.kind(), ErrorKind::Changed | ErrorKind::NotFound),
            _ => false,
        };
        if replaced {
            if self.object.set_replaced() {
                self.blocks.metrics.replaced.one();
                warn!(object = self.object.name(), %fault, "no longer what was mounted; reads of it fail (ESTALE) until it is mounted again");
            }
        } else if self.object.may_complain(unix_seconds())
            && let Some(left_out) = self.blocks.log_limit.allow(Instant::now())
        {
            warn!(object = self.object.name(), offset = self.range.start, %fault, left_out, "cannot be read");
        }
        for (block, granules) in std::mem::take(&mut self.claimed) {
            self.blocks.memory.fail((self.object.id, block), granules, fault);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.claimed.is_empty() {
            self.fail(&Fault::Internal("the fetch was given up".to_owned()));
        }
    }
}

/// Whether an answer is about the version that the mount shows.
fn check_version(object: &Object, head: &Head) -> Result<(), Broken> {
    let meta = &head.meta;
    let same_etag = object.etag.is_none() || meta.etag.is_none() || meta.etag == object.etag;
    // Without a version the time has to do; listings and answers may round it differently, to a second.
    let same_time = object.etag.is_some() || same_second(object.modified, meta.modified);
    if meta.size == object.size && same_etag && same_time {
        return Ok(());
    }
    Err(Broken::Final(Fault::Replaced(format!(
        "{} was replaced in its store while mounted (it has {} bytes now and had {}; request {}); mount again to see the new one",
        object.name(),
        meta.size,
        object.size,
        head.request_id.as_deref().unwrap_or("unknown")
    ))))
}

fn broken(error: oss::Error) -> Broken {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Corrupt | ErrorKind::Throttled { .. } => Broken::Again(error.into()),
        _ => Broken::Final(error.into()),
    }
}

fn short(object: &Object, request_id: Option<&str>) -> Fault {
    let why = "the answer has another length than it announced";
    oss::Error::new(ErrorKind::Unavailable, "GET", object.name(), why).with_request_id(request_id).into()
}

fn same_second(a: Option<SystemTime>, b: Option<SystemTime>) -> bool {
    let seconds = |time: Option<SystemTime>| time?.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
    a.is_none() || b.is_none() || seconds(a) == seconds(b)
}
