//! Writing down how far a log is, and removing from the disk what nobody needs any more.
//!
//! Always in this order: a byte may go only after it was written down that it has arrived, or that it is given up. Both take a
//! moment on a busy disk, so they are done beside the sending, from a copy of what was known when they began.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, fstatfs};
use oss::growing::{GrowingMark, GrowingObject};
use tokio::task::JoinHandle;

use super::sent::Sent;
use super::source::{Origin, Reader};
use super::space::Space;

/// A hole is punched, and progress written down, when this many more bytes have arrived: so much of a log stays on the disk at least.
const STEP: u64 = 16 << 20;
/// The same when the disk is nearly full.
const SMALL_STEP: u64 = 1 << 20;
/// Nothing is sent that lies further behind what was last written down: so much an agent that comes after this one may find sent of which
/// nobody has told it. A few seconds of sending, for a disk that is slow to keep it.
const AHEAD: u64 = 256 << 20;
/// Holes begin and end at multiples of this, so that the file system need not write zeros.
const BLOCK: u64 = 4096;

/// Looks after what is written down of one log, and after its file.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// Where to write it down; without it nothing is ever removed.
    path: Option<PathBuf>,
    target: String,
    /// The latest that is certain.
    mark: Option<GrowingMark>,
    /// How much of it was written down, or is being so.
    written: u64,
    /// How much of it was certainly written down.
    saved: u64,
    /// Up to where we have made the file that grows a hole.
    punched: u64,
    /// Whether an agent before this one may have made one.
    is_heir: bool,
    /// Work that goes on: up to where it has punched, or none if it could not be written down.
    work: Option<JoinHandle<Option<u64>>>,
}

impl Upkeep {
    pub(super) fn new(path: Option<PathBuf>, target: String) -> Self {
        Self { path, target, mark: None, written: 0, saved: 0, punched: 0, is_heir: false, work: None }
    }

    /// Whether the beginning of the file is gone.
    pub(super) fn has_punched(&self) -> bool {
        self.punched > 0 || self.is_heir || self.work.is_some()
    }

    /// A new object has been begun. This is written down before anything is sent, so that another agent does not begin it again.
    pub(super) async fn begin(&mut self, object: &GrowingObject, reader: &Reader) {
        (self.mark, self.written, self.saved) = (object.mark(), 0, 0);
        self.write_down(reader).await;
    }

    /// Before this position of the log some may have been sent of which nothing is written down; from there on, nothing was, by whichever
    /// agent.
    pub(super) fn fence(&self) -> u64 {
        self.saved + AHEAD
    }

    /// The log is about to be sent up to this position.
    pub(super) async fn before_sending(&mut self, reader: &mut Reader, end: u64) {
        if reader.has_changed() || end > self.fence() {
            self.write_down(reader).await;
        }
    }

    /// An agent before this one has come so far.
    pub(super) fn go_on(&mut self, mark: GrowingMark) {
        (self.written, self.saved) = (mark.arrived(), mark.arrived());
        self.is_heir = !mark.is_empty();
        self.mark = Some(mark);
    }

    /// Something has arrived.
    pub(super) async fn after_sending(&mut self, object: &GrowingObject, reader: &mut Reader) {
        let Some(mark) = object.mark() else { return };
        reader.sequence.forget(mark.len());
        reader.close_unneeded();
        let arrived = mark.arrived();
        self.mark = Some(mark);
        if self.work.as_ref().is_some_and(|work| !work.is_finished()) {
            return;
        }
        self.settle().await;
        // What becomes of a file of the task's own is not for us to say: what has arrived of it must be known whatever happens.
        let must_be_known = matches!(reader.origin(), Origin::Theirs { .. });
        let step = match Space::of(&reader.directory()) {
            _ if must_be_known => 1,
            Some(space) if space.is_short() => SMALL_STEP,
            _ => STEP,
        };
        if arrived >= self.written + step {
            self.start(reader);
        }
    }

    /// The disk is looked at. If it is nearly full, the oldest bytes behind the position `kept` of the log are given up, but for the
    /// newest.
    pub(super) async fn make_room(&mut self, reader: &mut Reader, kept: u64) {
        let (Some(_), Origin::Own(_)) = (&self.path, reader.origin()) else { return };
        let Some(space) = Space::of(&reader.directory()) else { return };
        let size = reader.size();
        let from = reader.sequence.offset(kept);
        let excess = space.excess(size.saturating_sub(from));
        if excess == 0 {
            return;
        }
        self.settle().await;
        let before = reader.sequence.clone();
        let to = reader.next_line(from + excess).min(size);
        let dropped = reader.sequence.drop_until(kept, to);
        if dropped.is_empty() {
            return;
        }
        tracing::warn!(
            log = self.target,
            bytes = dropped.end - dropped.start,
            "the disk is nearly full and storage does not take the log quickly enough: its oldest unsent bytes are given up"
        );
        if !self.write_down(reader).await {
            // Nobody may find a hole there that nothing explains.
            reader.sequence = before;
        }
    }

    /// The log will not be sent any further by this agent.
    pub(super) async fn finish(&mut self, object: &GrowingObject, reader: &Reader) {
        self.settle().await;
        self.mark = object.mark().or(self.mark.take());
        self.write_down(reader).await;
    }

    /// Waits for work that goes on. Whether it could be written down.
    async fn settle(&mut self) -> bool {
        let Some(work) = self.work.take() else { return true };
        match work.await.unwrap_or(None) {
            Some(punched) => (self.saved, self.punched) = (self.written, punched.max(self.punched)),
            None => return false,
        }
        true
    }

    /// Writes down what is known, and punches. Whether it is written down.
    pub(super) async fn write_down(&mut self, reader: &Reader) -> bool {
        self.settle().await;
        self.start(reader);
        self.settle().await
    }

    /// Begins to write down what is known, and to punch.
    fn start(&mut self, reader: &Reader) {
        let Some(path) = self.path.clone() else { return };
        self.written = self.mark.as_ref().map_or(0, GrowingMark::arrived);
        let sent = Sent::new(self.target.clone(), self.mark.clone(), reader.sequence.clone());
        let is_own = matches!(reader.origin(), Origin::Own(_));
        let file = reader.growing().filter(|_| is_own).cloned();
        let punched = self.punched;
        self.work = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = sent.save(&path) {
                tracing::warn!(%error, log = sent.target, "how far the log was sent cannot be written down");
                return None;
            }
            let Some(file) = file else { return Some(0) };
            Some(punch(&file, &sent.sequence.unneeded(sent.settled()), punched))
        }));
    }
}

/// Removes these ranges of a file from the disk. What lies before `punched` is gone already; answers up to where it is now.
fn punch(file: &Arc<File>, ranges: &[Range<u64>], punched: u64) -> u64 {
    let mut now = punched;
    for range in ranges {
        let start = range.start.next_multiple_of(BLOCK).max(punched);
        let end = range.end / BLOCK * BLOCK;
        if end <= start {
            continue;
        }
        match punch_hole(file, start..end) {
            Ok(()) if range.start == 0 => now = end,
            Ok(()) => {}
            // A file system that cannot: everything stays.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return now,
            Err(errno) => {
                tracing::warn!("a log that was sent cannot be removed from the disk: {}", errno.desc());
                return now;
            }
        }
    }
    now
}

fn punch_hole(file: &(impl AsFd + AsRawFd), range: Range<u64>) -> nix::Result<()> {
    settle_pages(file, &range);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let offset = |bytes: u64| libc::off_t::try_from(bytes).map_err(|_| Errno::EFBIG);
    fallocate(file, flags, offset(range.start)?, offset(range.end - range.start)?)
}

/// Has the disk take this range. xfs and btrfs would have it do so while they punch, and all the while they keep everybody else from
/// writing to the file: the task would wait for the disk. ext4 drops what the disk has not been given yet, so there is nothing to wait for.
fn settle_pages(file: &(impl AsFd + AsRawFd), range: &Range<u64>) {
    if fstatfs(file).is_ok_and(|system| system.filesystem_type() == EXT4_SUPER_MAGIC) {
        return;
    }
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let offset = |bytes: u64| libc::off64_t::try_from(bytes).unwrap_or(libc::off64_t::MAX);
    let (start, len) = (offset(range.start), offset(range.end - range.start));
    // It only makes the next call quicker, so it may fail.
    // SAFETY: no memory is handed over, and the descriptor is open as long as `file` is borrowed.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, flags) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_not_needed_takes_no_room_and_the_rest_is_as_it_was() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![1; 64 * 4096]).unwrap();
        file.as_file().sync_all().unwrap();
        let blocks = || file.as_file().metadata().unwrap().blocks();
        let before = blocks();
        let open = Arc::new(file.as_file().try_clone().unwrap());
        assert_eq!(punch(&open, &[0..10 * 4096 + 5, 20 * 4096..30 * 4096], 0), 10 * 4096);
        assert_eq!(before - blocks(), 20 * 8);
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(bytes.len(), 64 * 4096);
        let expected = |at: usize| u8::from(!(0..10).contains(&(at / 4096)) && !(20..30).contains(&(at / 4096)));
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
        assert_eq!(punch(&open, std::slice::from_ref(&(0..12 * 4096)), 10 * 4096), 12 * 4096);
    }
}
