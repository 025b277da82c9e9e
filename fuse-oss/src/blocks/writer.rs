//! Writing to the cache behind the readers' backs.
//!
//! What was fetched is handed out first and written to the disk by threads of their own. They are as important as everybody else:
//! when they fall behind, a stream goes through ever new memory instead of the same few warm buffers, which costs more than their
//! work. A disk that is slower than the network does not slow readers down, though: when too much waits, the older half of what waits
//! is given up, in one stretch, so that what is missing later is missing in large pieces.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::warn;

use super::memory::Piece;
use super::object::Object;
use crate::cache::ObjectId;
use crate::metrics::Metrics;

/// How long a writer lets small pieces come together before it writes them: waking it for each would cost more than the writing.
const GATHER: Duration = Duration::from_millis(2);

/// So much is worth beginning at once, in bytes.
const ENOUGH: usize = 1 << 20;

/// Something to be written.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) object: Arc<Object>,
    pub(super) block: u32,
    pub(super) piece: Piece,
}

/// The queue to the disk.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Arc<(Mutex<Queue>, Condvar)>,
    /// The most that may wait, in bytes; 0 when there is no disk cache.
    most: usize,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Write>,
    bytes: usize,
    /// What is being written at this moment.
    writing: Vec<ObjectId>,
    /// Threads that let more come together.
    gathering: usize,
    /// Threads that have nothing to do.
    asleep: usize,
    closed: bool,
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Starts `threads` that call `write` for everything that is put in, until the writer is dropped.
    pub(super) fn start<F>(threads: usize, most: usize, metrics: Arc<Metrics>, write: F) -> Self
    where
        F: Fn(&Write) + Clone + Send + 'static,
    {
        let queue = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        let mut started = 0;
        for number in 0..threads {
            let (queue, write) = (Arc::clone(&queue), write.clone());
            let run = move || work(&queue, write);
            match thread::Builder::new().name(format!("keep-{number}")).spawn(run) {
                Ok(_) => started += 1,
                Err(error) => warn!(%error, "cannot start a thread that writes to the cache"),
            }
        }
        let most = if started == 0 { 0 } else { most };
        Self { queue, most, metrics }
    }

    /// Has a piece written some time soon, or not at all when the disk cannot keep up.
    pub(super) fn put(&self, object: &Arc<Object>, block: u32, piece: Piece) {
        if self.most == 0 || object.entry.is_none() {
            return;
        }
        let (queue, wake) = &*self.queue;
        let (given_up, sleeps) = {
            let mut queue = lock(queue);
            queue.bytes += piece.bytes.len();
            queue.waiting.push_back(Write { object: Arc::clone(object), block, piece });
            let given_up = if queue.bytes > self.most { queue.give_up(self.most / 2) } else { Vec::new() };
            // One that gathers is as good as awake, unless there is enough for another.
            (given_up, queue.asleep > 0 && (queue.gathering == 0 || queue.bytes > ENOUGH))
        };
        if sleeps {
            wake.notify_one();
        }
        self.count(&given_up);
    }

    /// Gives up what has waited longest, at least `bytes` of it if there is as much.
    pub(super) fn give_up(&self, bytes: usize) -> usize {
        let given_up = {
            let mut queue = lock(&self.queue.0);
            let keep = queue.bytes.saturating_sub(bytes);
            queue.give_up(keep)
        };
        self.count(&given_up)
    }

    fn count(&self, given_up: &[Write]) -> usize {
        let bytes = given_up.iter().map(|write| write.piece.bytes.len()).sum();
        self.metrics.not_kept.bytes(bytes);
        bytes
    }

    /// Whether something of an object waits to be written, or is being written.
    pub(super) fn has(&self, object: ObjectId) -> bool {
        let queue = lock(&self.queue.0);
        queue.writing.contains(&object) || queue.waiting.iter().any(|write| write.object.id == object)
    }

    /// Whether nothing waits and nothing is being written.
    pub(super) fn is_idle(&self) -> bool {
        let queue = lock(&self.queue.0);
        queue.waiting.is_empty() && queue.writing.is_empty()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        lock(&self.queue.0).closed = true;
        self.queue.1.notify_all();
    }
}

impl Queue {
    fn give_up(&mut self, keep: usize) -> Vec<Write> {
        let mut given_up = Vec::new();
        while self.bytes > keep
            && let Some(write) = self.waiting.pop_front()
        {
            self.bytes -= write.piece.bytes.len();
            given_up.push(write);
        }
        given_up
    }
}

fn work(queue: &(Mutex<Queue>, Condvar), write: impl Fn(&Write)) {
    let (queue, wake) = queue;
    let mut locked = lock(queue);
    loop {
        if locked.waiting.is_empty() {
            if locked.closed {
                return;
            }
            locked.asleep += 1;
            locked = wake.wait(locked).unwrap_or_else(PoisonError::into_inner);
            locked.asleep -= 1;
            if locked.bytes < ENOUGH && !locked.closed {
                locked.gathering += 1;
                drop(locked);
                thread::sleep(GATHER);
                locked = lock(queue);
                locked.gathering -= 1;
            }
        }
        if let Some(next) = locked.waiting.pop_front() {
            locked.bytes -= next.piece.bytes.len();
            let id = next.object.id;
            locked.writing.push(id);
            drop(locked);
            write(&next);
            drop(next);
            locked = lock(queue);
            if let Some(done) = locked.writing.iter().position(|writing| *writing == id) {
                locked.writing.swap_remove(done);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::double::{Content, DoubleStore};
    use oss::Key;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_slow_disk_costs_the_older_half_and_no_reader() {
        let store = DoubleStore::new(10);
        store.put("k", Content::MadeUp(1 << 20));
        let object = Object::new(store.origin(), Key::new("k"), 1 << 20, None, None, 0);
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::<Metrics>::default();
        let cache = crate::cache::Cache::new(dir.path(), 1 << 30, 0, Arc::clone(&metrics)).unwrap();
        let object = Arc::new(object.cached(&cache));
        let (gate, written) = (Arc::new(Mutex::new(())), Arc::new(AtomicUsize::new(0)));
        let held = gate.lock().unwrap();
        let writer = {
            let (gate, written) = (Arc::clone(&gate), Arc::clone(&written));
            Writer::start(1, 100_000, Arc::clone(&metrics), move |_| {
                drop(gate.lock().unwrap());
                written.fetch_add(1, Ordering::Relaxed);
            })
        };
        for first in 0..20 {
            writer.put(&object, 0, Piece { first, bytes: vec![0; 16 << 10].into() });
        }
        assert!(!writer.is_idle());
        let given_up = metrics.not_kept.get();
        assert!((1..20 * (16 << 10)).contains(&given_up), "{given_up}");
        assert!(writer.give_up(1) > 0);
        drop(held);
        while !writer.is_idle() {
            thread::yield_now();
        }
        let lost = usize::try_from(metrics.not_kept.get()).unwrap() / (16 << 10);
        assert_eq!(written.load(Ordering::Relaxed) + lost, 20);
    }
}
