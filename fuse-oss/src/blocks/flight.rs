//! A fetch under way: one ranged request for a run of neighbouring blocks, asked for again where its body breaks off.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use oss::{ErrorKind, GetOptions};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, warn};

use super::index::{BLOCK, block_len};
use super::memory::BlockId;
use super::object::Object;
use super::{Blocks, unix_seconds};
use crate::fault::Fault;

/// The pause before a body that broke off is asked for again; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// A fetch under way. Whatever becomes of it, everybody who waits for one of its blocks is told.
pub(super) struct Flight {
    blocks: Arc<Blocks>,
    object: Arc<Object>,
    next: u32,
    end: u32,
}

/// Why a request did not bring everything.
enum Broken {
    /// Asking again is of no use: the store has retried already, or has refused.
    Final(Fault),
    /// The body broke off; what has come is kept.
    Again(Fault),
}

impl Flight {
    /// A fetch of the blocks `first..end`, which have been claimed for it.
    pub(super) fn new(blocks: &Arc<Blocks>, object: &Arc<Object>, first: u32, end: u32) -> Self {
        Self { blocks: Arc::clone(blocks), object: Arc::clone(object), next: first, end }
    }

    /// Fetches them all, or tells everybody who waits why not. `permit` is its memory, where that has been acquired already.
    pub(super) async fn run(mut self, permit: Option<OwnedSemaphorePermit>) {
        let permit = match permit {
            Some(permit) => Some(permit),
            None => {
                let kib = self.blocks.kib(self.end - self.next);
                // The semaphore is never closed, so this cannot fail.
                Arc::clone(&self.blocks.budget).acquire_many_owned(kib).await.ok()
            }
        };
        let mut writes = Vec::new();
        let mut deadline = Instant::now() + self.object.origin.deadline;
        let mut pause = FIRST_PAUSE;
        loop {
            let before = self.next;
            match self.request(&mut writes).await {
                Ok(()) => break,
                Err(Broken::Final(fault)) => {
                    self.fail(&fault);
                    break;
                }
                Err(Broken::Again(fault)) => {
                    if self.next > before {
                        deadline = Instant::now() + self.object.origin.deadline;
                        pause = FIRST_PAUSE;
                    }
                    if Instant::now() + pause >= deadline {
                        self.fail(&fault);
                        break;
                    }
                    debug!(object = self.object.name(), block = self.next, %fault, "asking again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
        // The memory of a block counts until it is on the disk: a slow disk slows fetching down instead of piling blocks up.
        for write in writes {
            let _ = write.await;
        }
        drop(permit);
    }

    async fn request(&mut self, writes: &mut Vec<tokio::task::JoinHandle<()>>) -> Result<(), Broken> {
        let object = Arc::clone(&self.object);
        let start = u64::from(self.next) * BLOCK;
        let end = (u64::from(self.end) * BLOCK).min(object.size);
        // Asked for as a whole, the store's client verifies the checksum of a small object itself.
        let range = (start > 0 || end < object.size).then_some(start..end);
        let options = GetOptions { range, if_match: object.etag.clone() };
        let response =
            object.origin.store.get(&object.key, options).await.map_err(|error| Broken::Final(error.into()))?;
        let meta = &response.meta;
        let same_etag = object.etag.is_none() || meta.etag.is_none() || meta.etag == object.etag;
        // Without a version the time has to do; listings and answers may round it differently, to a second.
        let same_time = object.etag.is_some() || same_second(object.modified, meta.modified);
        if meta.size != object.size || !same_etag || !same_time {
            return Err(Broken::Final(Fault::Replaced(format!(
                "{} was replaced in its store while mounted (it has {} bytes now and had {}); mount again to see the new one",
                object.name(),
                meta.size,
                object.size
            ))));
        }
        object.learn(meta.checksum);
        let mut body = response.body;
        let mut rest = Bytes::new();
        while self.next < self.end {
            let want = block_len(object.size, self.next);
            let mut block = BytesMut::with_capacity(want);
            while block.len() < want {
                if rest.is_empty() {
                    rest = match body.next().await {
                        Some(Ok(chunk)) => chunk,
                        Some(Err(error)) => return Err(broken(error)),
                        None => return Err(Broken::Again(short(&object))),
                    };
                    continue;
                }
                let take = rest.len().min(want - block.len());
                block.extend_from_slice(&rest.split_to(take));
            }
            if self.next + 1 == self.end {
                // The end of the body is where a wrong checksum shows.
                while let Some(chunk) = body.next().await {
                    if !chunk.map_err(broken)?.is_empty() {
                        return Err(Broken::Again(short(&object)));
                    }
                }
            }
            self.deliver(block.freeze(), writes);
        }
        Ok(())
    }

    fn deliver(&mut self, bytes: Bytes, writes: &mut Vec<tokio::task::JoinHandle<()>>) {
        let id: BlockId = (self.object.id, self.next);
        self.next += 1;
        self.blocks.fetched.fetch_add(u64::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
        self.blocks.memory.deliver(id, &Ok(bytes.clone()));
        if self.blocks.disk.is_some() {
            let (blocks, object) = (Arc::clone(&self.blocks), Arc::clone(&self.object));
            writes.push(self.blocks.runtime.spawn_blocking(move || blocks.keep(&object, id.1, &bytes)));
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
                warn!(object = self.object.name(), %fault, "no longer what was mounted; reads of it fail (ESTALE) until it is mounted again");
            }
        } else if self.object.may_complain(unix_seconds())
            && let Some(left_out) = self.blocks.log_limit.allow(Instant::now())
        {
            warn!(object = self.object.name(), block = self.next, %fault, left_out, "cannot be read");
        }
        while self.next < self.end {
            let id = (self.object.id, self.next);
            self.next += 1;
            self.blocks.memory.deliver(id, &Err(fault.clone()));
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.next < self.end {
            self.fail(&Fault::Internal("the fetch was given up".to_owned()));
        }
    }
}

fn broken(error: oss::Error) -> Broken {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Corrupt | ErrorKind::Throttled { .. } => Broken::Again(error.into()),
        _ => Broken::Final(error.into()),
    }
}

fn short(object: &Object) -> Fault {
    let target = object.name();
    oss::Error::new(ErrorKind::Unavailable, "GET", target, "the answer has another length than it announced").into()
}

fn same_second(a: Option<SystemTime>, b: Option<SystemTime>) -> bool {
    let seconds = |time: Option<SystemTime>| time?.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
    a.is_none() || b.is_none() || seconds(a) == seconds(b)
}
