//! One open file: what it reads next, and reading ahead of it.
//!
//! The kernel sends reads of up to 1 MiB, several at once and not quite in order. [`Window`] decides from their places
//! alone whether somebody reads from front to back; as long as that holds, the stretch that is fetched in advance doubles up to
//! the server's limit, and one read elsewhere takes it back to nothing, so that random readers fetch only what they ask for.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::blocks::Blocks;
use crate::blocks::index::BLOCK;
use crate::blocks::object::Object;
use crate::fault::Fault;
use crate::metrics::Metrics;

/// How far out of order reads of one sequential reader may arrive, in bytes: a few of the kernel's largest requests.
const SLACK: u64 = 4 << 20;

/// Where a reader is and how far ahead of it is fetched. Pure.
#[derive(Debug, Default)]
pub struct Window {
    /// The furthest byte that was read.
    reached: u64,
    /// The first block that was not asked for in advance.
    frontier: u32,
    /// Blocks to be ahead, at present.
    size: u32,
}

impl Window {
    /// Notes a read of `len` bytes at `offset` and says which blocks to fetch in advance, at most `max` from here.
    pub fn on_read(&mut self, offset: u64, len: u64, max: u32) -> Range<u32> {
        let end = offset + len;
        let sequential = offset <= self.reached + SLACK && end + SLACK >= self.reached;
        if !sequential {
            *self = Self { reached: end, frontier: block_after(end), size: 0 };
            return 0..0;
        }
        let progressed = end > self.reached;
        self.reached = self.reached.max(end);
        let next = block_after(self.reached);
        self.frontier = self.frontier.max(next);
        // Asked for in large pieces and not block by block: only when less than half of the window is left.
        if !progressed || self.frontier - next > self.size / 2 {
            return 0..0;
        }
        self.size = (self.size * 2).max(1).min(max);
        let range = self.frontier..next.saturating_add(self.size).max(self.frontier);
        self.frontier = range.end;
        range
    }
}

/// The first block that begins at or after `offset`.
fn block_after(offset: u64) -> u32 {
    u32::try_from(offset.div_ceil(BLOCK)).unwrap_or(u32::MAX)
}

/// An open file.
#[derive(Debug)]
pub struct Reader {
    object: Arc<Object>,
    blocks: Arc<Blocks>,
    metrics: Arc<Metrics>,
    window: Mutex<Window>,
}

impl Reader {
    /// A reader of an object.
    pub fn new(object: Arc<Object>, blocks: Arc<Blocks>, metrics: Arc<Metrics>) -> Self {
        blocks.count_reader(true);
        let window = Mutex::default();
        Self { object, blocks, metrics, window }
    }

    /// The blocks that `len` bytes at `offset` touch. `len` is not 0 and within the object.
    fn span(offset: u64, len: usize) -> Range<u32> {
        let end = offset + u64::try_from(len).unwrap_or(u64::MAX);
        u32::try_from(offset / BLOCK).unwrap_or(u32::MAX)..block_after(end)
    }

    /// Cuts a read off at the object's end.
    pub fn clamp(&self, offset: u64, len: u32) -> usize {
        let left = self.object.size.saturating_sub(offset);
        usize::try_from(left.min(u64::from(len))).unwrap_or(0)
    }

    /// Notes the read and begins to fetch what will be wanted next.
    pub fn read_ahead(&self, offset: u64, len: usize) {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        let max = self.blocks.max_ahead();
        let range = self.window.lock().unwrap_or_else(PoisonError::into_inner).on_read(offset, len, max);
        if !range.is_empty() {
            self.blocks.ahead(&self.object, range);
        }
    }

    /// The bytes, if they are at hand: in memory, or on disk and checked. Never waits for the network.
    pub fn read_now(&self, offset: u64, len: usize) -> Option<Bytes> {
        let span = Self::span(offset, len);
        if span.len() == 1
            && let Some(block) = self.blocks.in_memory(&self.object, span.start)
        {
            return slice(&block, span.start, offset, len).inspect(|_| self.metrics.from_memory.record(len));
        }
        let mut buffer = vec![0; len];
        if self.object.read_checked(offset, &mut buffer) {
            self.metrics.from_disk.record(len);
            return Some(buffer.into());
        }
        let mut parts = Vec::with_capacity(span.len());
        for block in span.clone() {
            parts.push(self.blocks.in_memory(&self.object, block)?);
        }
        gather(&parts, span.start, offset, len).inspect(|_| self.metrics.from_memory.record(len))
    }

    /// The bytes, from wherever they are.
    ///
    /// # Errors
    /// When a block cannot be had.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Fault> {
        let span = Self::span(offset, len);
        let run = u32::try_from(span.len()).unwrap_or(u32::MAX);
        let mut parts = Vec::with_capacity(span.len());
        let here = |block| self.object.has(block) || self.blocks.in_memory(&self.object, block).is_some();
        let tier = if span.clone().all(here) { &self.metrics.from_disk } else { &self.metrics.from_store };
        for block in span.clone() {
            parts.push(self.blocks.get(&self.object, block, run).await?);
        }
        tier.record(len);
        let bytes = if let [only] = parts.as_slice() {
            slice(only, span.start, offset, len)
        } else {
            gather(&parts, span.start, offset, len)
        };
        bytes.ok_or_else(|| Fault::Internal(format!("a block of {} is too short", self.object.name())))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.blocks.count_reader(false);
    }
}

fn slice(block: &Bytes, number: u32, offset: u64, len: usize) -> Option<Bytes> {
    let from = usize::try_from(offset - u64::from(number) * BLOCK).ok()?;
    (block.len() >= from + len).then(|| block.slice(from..from + len))
}

fn gather(parts: &[Bytes], first: u32, offset: u64, len: usize) -> Option<Bytes> {
    let mut skip = usize::try_from(offset - u64::from(first) * BLOCK).ok()?;
    let mut out = Vec::with_capacity(len);
    for part in parts {
        let part = part.get(skip..)?;
        skip = 0;
        out.extend_from_slice(&part[..part.len().min(len - out.len())]);
    }
    (out.len() == len).then(|| out.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_window_grows_while_reading_on_and_closes_on_a_jump() {
        let mut window = Window::default();
        let mut asked: Vec<u32> = Vec::new();
        let mut sizes = Vec::new();
        for block in 0..100 {
            let range = window.on_read(block * BLOCK, BLOCK, 32);
            if !range.is_empty() {
                sizes.push(range.len());
            }
            asked.extend(range);
        }
        assert!(asked.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{asked:?}");
        assert_eq!(asked.first(), Some(&1));
        assert!(*asked.last().unwrap() >= 110, "{asked:?}");
        assert!(sizes[0] == 1 && *sizes.iter().max().unwrap() >= 16, "{sizes:?}");
        assert!(window.on_read(90_000 * BLOCK, 4096, 32).is_empty());
        assert!(window.on_read(50 * BLOCK, 4096, 32).is_empty());
        assert!(window.on_read(7_000 * BLOCK, 4096, 32).is_empty());
    }

    proptest! {
        #[test]
        fn never_further_ahead_than_allowed(
            max in 0_u32..40, reads in prop::collection::vec((0_u64..200 << 20, 1_u64..1 << 20), 1..60)
        ) {
            let mut window = Window::default();
            for (offset, len) in reads {
                let range = window.on_read(offset, len, max);
                prop_assert!(range.start <= range.end);
                prop_assert!(range.is_empty() || u64::from(range.end) <= window.reached.div_ceil(BLOCK) + u64::from(max));
            }
        }

        #[test]
        fn parts_are_put_together_where_they_belong(offset in 0_u64..(3 << 20), len in 1_usize..(1 << 20)) {
            let size = 4 << 20;
            let byte = crate::double::made_up;
            let len = len.min(usize::try_from(size - offset).unwrap());
            let span = Reader::span(offset, len);
            let parts: Vec<Bytes> = span
                .clone()
                .map(|block| (u64::from(block) * BLOCK..(u64::from(block) + 1) * BLOCK).map(byte).collect())
                .collect();
            let got = gather(&parts, span.start, offset, len).unwrap();
            let expected: Bytes = (offset..offset + len as u64).map(byte).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
