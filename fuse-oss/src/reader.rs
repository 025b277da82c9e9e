//! One open file: what it reads next, and reading ahead of it.

pub mod streams;

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::blocks::object::Object;
use crate::blocks::{Blocks, LONGEST, Parts, SMALL};
use crate::fault::Fault;
use streams::{Advice, Limits, Streams};

/// An open file.
#[derive(Debug)]
pub struct Reader {
    object: Arc<Object>,
    blocks: Arc<Blocks>,
    streams: Mutex<Streams>,
    /// When it fetched ahead last, in seconds.
    streaming: AtomicU64,
    /// The least that a random read brings along, in bytes.
    least: u64,
}

impl Reader {
    /// A reader of an object.
    pub fn new(object: Arc<Object>, blocks: Arc<Blocks>) -> Self {
        Self { object, blocks, streams: Mutex::default(), streaming: AtomicU64::new(0), least: 0 }
    }

    /// The same, but a random read of a large object brings at least so many bytes along: a power of two, up to [`LONGEST`].
    #[must_use]
    pub fn at_least(self, bytes: u64) -> Self {
        Self { least: bytes.min(LONGEST).checked_next_power_of_two().unwrap_or(LONGEST), ..self }
    }

    /// The object.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// What a read of `len` bytes at `offset` gives at most.
    pub fn clamp(&self, offset: u64, len: u32) -> Range<u64> {
        let start = offset.min(self.object.size);
        start..start.saturating_add(u64::from(len)).min(self.object.size)
    }

    /// Hands `answer` the bytes of `range`, if they are at hand. Never waits for the network.
    pub fn read_now<T>(&self, range: &Range<u64>, answer: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.blocks.at_hand(&self.object, range, answer)
    }

    /// Notes a read that [`Reader::read_now`] has answered, and begins to fetch what will be wanted next.
    pub fn went_on(&self, range: &Range<u64>) {
        let advice = self.advice(range, false);
        self.fetch_ahead(&advice);
    }

    /// Hands `answer` the bytes of `range`, if the disk has them all; reads them there, which may take a moment.
    pub fn read_disk<T>(&self, range: &Range<u64>, answer: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let advice = self.advice(range, true);
        self.fetch_ahead(&advice);
        self.blocks.from_disk(&self.object, range, answer)
    }

    /// The bytes, from wherever they are.
    ///
    /// # Errors
    /// When they cannot be had.
    pub async fn read(&self, range: Range<u64>) -> Result<Parts, Fault> {
        let advice = self.advice(&range, true);
        self.fetch_ahead(&advice);
        self.blocks.get(&self.object, range, &advice.along).await
    }

    /// What to do about a read of `range`; `stalled` says that it was not at hand.
    fn advice(&self, range: &Range<u64>, stalled: bool) -> Advice {
        let size = self.object.size;
        if size <= SMALL {
            return Advice { along: 0..size, ahead: 0..0, request: SMALL };
        }
        let peers = &self.object.origin.peers;
        let ahead = self.blocks.max_ahead(&self.streaming);
        let limits = Limits { size, ahead, unit: peers.unit().max(self.least), latency: peers.latency() };
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).on_read(range, stalled, Instant::now(), &limits)
    }

    fn fetch_ahead(&self, advice: &Advice) {
        if advice.ahead.is_empty() {
            return;
        }
        if !self.object.is_complete() {
            self.blocks.ahead(&self.object, &advice.ahead, advice.request);
        } else if !self.object.is_proved() {
            self.blocks.prove_ahead(&self.object, advice.ahead.clone());
        }
    }
}
