//! An entry's files: opening, making, closing and removing them.

use std::fs::{File, FileTimes};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, PoisonError, RwLockReadGuard};
use std::time::SystemTime;

use tracing::warn;

use super::whole::{RIGHT, UNCHECKED, UNKNOWN};
use super::{Entry, exclusive, lock, shared};
use crate::cache::files::{Part, read_up_to};
use crate::cache::format::{self, Header, SLOT_LEN, TAIL_MAX};
use crate::geometry::GRANULE;

/// How old the last change of a file may be, in seconds, before another use of it is noted there.
const NOTE_USE_AFTER: u64 = 60;

#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) state: State,
    pub(super) files: Option<Files>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum State {
    /// Nobody has looked yet.
    #[default]
    Unread,
    /// There are no files.
    Absent,
    /// There are.
    There,
}

/// The open files.
#[derive(Debug)]
pub(in crate::cache) struct Files {
    /// The index, or all of a small object.
    pub(in crate::cache) index: File,
    data: OnceLock<File>,
    /// A small object's file that has no index behind its data yet.
    pub(in crate::cache) fresh: AtomicBool,
}

/// The files of an entry, open, and not removed while this is held.
pub(in crate::cache) struct Opened<'a>(RwLockReadGuard<'a, Body>);

impl Opened<'_> {
    pub(in crate::cache) fn files(&self) -> &Files {
        self.0.files.as_ref().expect("made only of bodies with files")
    }
}

impl Entry {
    /// The files, open; none when there are none.
    pub(in crate::cache) fn opened(&self) -> io::Result<Option<Opened<'_>>> {
        loop {
            let body = shared(&self.body);
            match (body.state, &body.files) {
                (State::Absent, _) => return Ok(None),
                (State::There, Some(_)) => {
                    self.used_lately.store(true, Ordering::Relaxed);
                    return Ok(Some(Opened(body)));
                }
                _ => {}
            }
            drop(body);
            self.change_body(|body| self.open(body))?;
        }
    }

    /// The files, if they are open and nobody is busy with them.
    pub(in crate::cache) fn opened_now(&self) -> Option<Opened<'_>> {
        let body = self.body.try_read().ok()?;
        body.files.as_ref()?;
        self.used_lately.store(true, Ordering::Relaxed);
        Some(Opened(body))
    }

    /// The files, made if there are none.
    pub(in crate::cache) fn opened_or_made(&self) -> io::Result<Opened<'_>> {
        loop {
            if let Some(opened) = self.opened()? {
                return Ok(opened);
            }
            self.change_body(|body| if body.state == State::Absent { self.make(body) } else { Ok(()) })?;
        }
    }

    fn change_body(&self, change: impl FnOnce(&mut Body) -> io::Result<()>) -> io::Result<()> {
        let mut body = exclusive(&self.body);
        let before = body.files.is_some();
        let changed = change(&mut body);
        let after = body.files.is_some();
        drop(body);
        if after && !before {
            self.used_lately.store(true, Ordering::Relaxed);
            self.shared.descriptors.opened(&self.me);
        } else if before && !after {
            self.shared.descriptors.closed();
        }
        changed
    }

    fn open(&self, body: &mut Body) -> io::Result<()> {
        if body.files.is_some() || body.state == State::Absent {
            return Ok(());
        }
        let file = self.shared.place.open(self.id, self.index_part());
        let index = match (file, body.state) {
            (Ok(Some(index)), State::Unread) => {
                if !self.read_header(&index)? {
                    // Torn, of another format or of another object: begun anew.
                    drop(index);
                    self.remove_files();
                    body.state = State::Absent;
                    return Ok(());
                }
                index
            }
            (Ok(Some(index)), _) => index,
            (Ok(None), state) => {
                if state == State::There {
                    // Somebody has removed it behind our back.
                    self.blank();
                    self.shared.space.removed_all(self.id, self.extents());
                }
                body.state = State::Absent;
                return Ok(());
            }
            (Err(error), state) => {
                if state == State::Unread {
                    body.state = State::Absent;
                }
                return Err(error);
            }
        };
        body.state = State::There;
        body.files = Some(Files { index, data: OnceLock::new(), fresh: AtomicBool::new(false) });
        Ok(())
    }

    /// Takes in what the header says; of a small object, all that the index says. `false` when it is not one of this object's.
    fn read_header(&self, index: &File) -> io::Result<bool> {
        let mut buffer = [0; TAIL_MAX + 1];
        let (header, used_again) = if self.is_small() {
            let read = read_up_to(index, &mut buffer, self.size)?;
            let Some(tail) = format::decode_tail(&buffer[..read]) else { return Ok(false) };
            tail
        } else {
            let read = read_up_to(index, &mut buffer[..TAIL_MAX], 0)?;
            let usage = usize::try_from(format::USAGE_AT).unwrap_or(0);
            let used_again = buffer[usage..usage + 4] == format::USED_AGAIN;
            let Some(header) = Header::decode(&buffer[..read]) else { return Ok(false) };
            (header, used_again)
        };
        if header.digest != self.id.0 || header.size != self.size {
            return Ok(false);
        }
        self.used_again.store(used_again, Ordering::Relaxed);
        self.used_again_noted.store(used_again, Ordering::Relaxed);
        let trusted = self.shared.space.proved(self.id);
        self.trusted.store(trusted, Ordering::Relaxed);
        if header.complete {
            self.assumed_present.store(true, Ordering::Relaxed);
            self.missing.store(0, Ordering::Release);
            if trusted {
                self.assumed_proved.store(true, Ordering::Relaxed);
                self.unproved.store(0, Ordering::Release);
            }
        }
        let mut record = lock(&self.record);
        record.sum = record.sum.or(header.sum);
        record.complete = header.complete;
        // A checksum that was told since then decides anew.
        record.right = header.right && record.sum == header.sum;
        record.description = header.description;
        self.set_kind(record.sum);
        let whole = match record.sum {
            _ if !header.complete => UNCHECKED,
            None => UNKNOWN,
            Some(_) if record.right => RIGHT,
            Some(_) => UNCHECKED,
        };
        self.whole.store(whole, Ordering::Release);
        drop(record);
        if self.is_small() {
            self.groups[0].get_or_init(|| self.decode_group(0, &buffer[..SLOT_LEN]));
        }
        Ok(true)
    }

    fn make(&self, body: &mut Body) -> io::Result<()> {
        let place = &self.shared.place;
        let index = place.create(self.id, self.index_part(), 0)?;
        let files = Files { index, data: OnceLock::new(), fresh: AtomicBool::new(self.is_small()) };
        if !self.is_small() {
            self.write_header(&files, &lock(&self.record))?;
            let data = place.create(self.id, Part::Data, self.size)?;
            let _ = files.data.set(data);
        }
        body.state = State::There;
        body.files = Some(files);
        Ok(())
    }

    /// The file with the data.
    pub(in crate::cache) fn data<'a>(&self, files: &'a Files) -> io::Result<&'a File> {
        if self.is_small() {
            return Ok(&files.index);
        }
        if let Some(data) = files.data.get() {
            return Ok(data);
        }
        let place = &self.shared.place;
        // What was cut off or is missing reads as zeros then, and its checksums tell.
        let data = match place.open(self.id, Part::Data)? {
            Some(data) => {
                if data.metadata()?.len() != self.size {
                    place.resize(&data, Part::Data, self.size)?;
                }
                data
            }
            None => place.create(self.id, Part::Data, self.size)?,
        };
        Ok(files.data.get_or_init(|| data))
    }

    /// The file with the data, if it is open.
    pub(in crate::cache) fn data_now<'a>(&self, files: &'a Files) -> Option<&'a File> {
        if self.is_small() { Some(&files.index) } else { files.data.get() }
    }

    /// Nothing is there any more. `body` is held exclusively.
    pub(super) fn blank(&self) {
        let granules = self.size.div_ceil(GRANULE);
        self.unproved.store(granules, Ordering::Release);
        self.missing.store(granules, Ordering::Release);
        for group in self.groups.iter().filter_map(OnceLock::get) {
            for block in &group.blocks {
                block.proved.store(0, Ordering::Release);
                block.present.store(0, Ordering::Release);
            }
        }
        for flag in [&self.assumed_present, &self.assumed_proved, &self.trusted, &self.doomed] {
            flag.store(false, Ordering::Release);
        }
        for flag in [&self.used_again, &self.used_again_noted] {
            flag.store(false, Ordering::Relaxed);
        }
        self.whole.store(UNCHECKED, Ordering::Release);
        let mut record = lock(&self.record);
        (record.complete, record.right) = (false, false);
    }

    /// Data before index: should only the first come to pass, the index is of no use and a scan removes it, while data without an
    /// index would stay for ever.
    fn remove_files(&self) {
        let parts: &[Part] = if self.is_small() { &[Part::Small] } else { &[Part::Data, Part::Index] };
        for part in parts {
            if let Err(error) = self.shared.place.remove(self.id, *part) {
                let path = self.shared.place.path_of(self.id, *part);
                warn!(path = %path.display(), %error, "cannot remove a cache file");
            }
        }
    }

    /// Removes the object from the disk if nobody has it pinned and `still` says so. True when it is gone.
    pub(in crate::cache) fn remove_if(&self, still: impl FnOnce() -> bool) -> bool {
        let mut gone = false;
        let _ = self.change_body(|body| {
            let pins = lock(&self.pins);
            if *pins > 0 || !still() {
                return Ok(());
            }
            self.blank();
            drop(pins);
            // Closed first, so that the space is free when this returns.
            body.files = None;
            if body.state != State::Absent {
                self.remove_files();
            }
            body.state = State::Absent;
            self.shared.space.removed_all(self.id, self.extents());
            gone = true;
            Ok(())
        });
        gone
    }

    /// Closes the files unless they were used since the last time this was asked. True when they are closed now.
    pub(in crate::cache) fn close_if_idle(&self) -> bool {
        if self.used_lately.swap(false, Ordering::Relaxed) {
            return false;
        }
        let Ok(mut body) = self.body.try_write() else { return false };
        // A small object's file that has no index yet would be taken for another's.
        if body.files.as_ref().is_some_and(|files| files.fresh.load(Ordering::Acquire)) {
            return false;
        }
        if body.files.take().is_some() {
            self.shared.descriptors.closed();
        }
        true
    }

    /// Writes down that it was used, for the order of eviction after a restart. What cannot be written is only a worse guess.
    fn note_on_disk(&self, files: &Files) {
        if self.is_used_again() && !self.used_again_noted.load(Ordering::Relaxed) {
            let at = if self.is_small() {
                files.index.metadata().map_or(0, |meta| meta.len().saturating_sub(4))
            } else {
                format::USAGE_AT
            };
            if at > self.size || !self.is_small() {
                let _ = self.shared.place.write(&files.index, self.index_part(), &format::USED_AGAIN, at);
            }
        }
        if self.touched.load(Ordering::Relaxed) {
            let now = SystemTime::now();
            let old = files.index.metadata().and_then(|meta| meta.modified()).ok();
            let age = old.and_then(|old| now.duration_since(old).ok()).map_or(0, |age| age.as_secs());
            if age >= NOTE_USE_AFTER {
                let _ = files.index.set_times(FileTimes::new().set_modified(now));
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.complete() && self.unproved.load(Ordering::Acquire) == 0 {
            self.shared.space.set_proved(self.id);
        }
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = body.files.take() {
            self.shared.descriptors.closed();
            self.note_on_disk(&files);
        }
        self.shared.gone(self.id);
    }
}
