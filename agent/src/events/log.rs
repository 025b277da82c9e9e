//! The events of a node or of a run, line by line on disk: what is delivered from, and what survives an agent.
//!
//! A directory of segments, `events.jsonl`, `events.part-1.jsonl` and so on, each with at most [`SEGMENT`] bytes; the oldest goes when there
//! are more than [`SEGMENTS`], so the whole is bounded whatever happens to those who are to be told. Beside them stands, for everyone
//! who is told, how far he has been (`NAME.cursor`), replaced atomically. Each line is written with one call; the part of one that an
//! agent killed in the middle has left is closed with a line end and passed over.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::durable::{self, FileError};

/// A segment that is longer is followed by another, in bytes.
const SEGMENT: u64 = 8 << 20;

/// How many segments are kept.
const SEGMENTS: usize = 8;

/// The longest line that is read back, in bytes; none of ours is.
const LONGEST: u64 = 1 << 20;

/// How far somebody has been told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// The segment, from 0.
    pub segment: u64,
    /// The byte in it that is next.
    pub offset: u64,
}

/// A line, and where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The event's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// All of it, as JSON without a line end.
    pub text: String,
    /// Where the next one begins.
    pub next: Cursor,
    /// How many segments were gone before they were read.
    pub lost: u64,
}

#[derive(Debug)]
struct Inner {
    file: File,
    segment: u64,
    length: u64,
    /// The ids of what is there, oldest segment first.
    ids: VecDeque<(u64, HashSet<String>)>,
}

/// The directory.
#[derive(Debug)]
pub(super) struct Log {
    directory: PathBuf,
    inner: Mutex<Inner>,
    grown: Notify,
    limits: (u64, usize),
}

impl Log {
    /// Opens it, and makes it where it is not there. Events that are written from now on begin a new segment if `anew` says so.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(super) fn open(directory: &Path, anew: bool) -> Result<Self, FileError> {
        Self::with_limits(directory, anew, (SEGMENT, SEGMENTS))
    }

    fn with_limits(directory: &Path, anew: bool, limits: (u64, usize)) -> Result<Self, FileError> {
        durable::private_directory(directory)?;
        let known = segments(directory)?;
        let last = known.last().copied();
        let segment = match last {
            Some(last) if anew && length(&path(directory, last)) > 0 => last + 1,
            Some(last) => last,
            None => 0,
        };
        let (file, length) = append_to(&path(directory, segment))?;
        let mut ids: VecDeque<_> = known.iter().map(|known| (*known, ids_of(&path(directory, *known)))).collect();
        if last != Some(segment) {
            ids.push_back((segment, HashSet::new()));
        }
        let inner = Mutex::new(Inner { file, segment, length, ids });
        Ok(Self { directory: directory.to_owned(), inner, grown: Notify::new(), limits })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of a segment.
    pub(super) fn segment_path(&self, segment: u64) -> PathBuf {
        path(&self.directory, segment)
    }

    /// The segments there are, the oldest first.
    pub(super) fn segments(&self) -> Vec<u64> {
        self.lock().ids.iter().map(|(segment, _)| *segment).collect()
    }

    /// Adds a line, unless one with its id is there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn add(&self, id: &str, text: &str) -> Result<(), FileError> {
        let mut inner = self.lock();
        if inner.ids.iter().any(|(_, ids)| ids.contains(id)) {
            return Ok(());
        }
        if inner.length >= self.limits.0 {
            let segment = inner.segment + 1;
            (inner.file, inner.length) = append_to(&path(&self.directory, segment))?;
            inner.segment = segment;
            inner.ids.push_back((segment, HashSet::new()));
        }
        while inner.ids.len() > self.limits.1 {
            if let Some((oldest, _)) = inner.ids.pop_front() {
                durable::remove(&path(&self.directory, oldest))?;
            }
        }
        let path = path(&self.directory, inner.segment);
        let line = format!("{text}\n");
        if let Err(source) = inner.file.write_all(line.as_bytes()) {
            // A disk that is full takes a part, and the next line would be taken for the rest of it.
            if let Err(error) = inner.file.set_len(inner.length) {
                tracing::debug!(%error, "what was written of an event stays");
            }
            return Err(FileError { action: "write", path, source });
        }
        inner.length += line.len() as u64;
        if let Some((_, ids)) = inner.ids.back_mut() {
            ids.insert(id.to_owned());
        }
        drop(inner);
        self.grown.notify_waiters();
        Ok(())
    }

    /// Where the next line will begin.
    pub(super) fn end(&self) -> Cursor {
        let inner = self.lock();
        Cursor { segment: inner.segment, offset: inner.length }
    }

    /// Makes sure that a crash of the machine does not take what has been added.
    pub(super) fn sync(&self) {
        let file = self.lock().file.try_clone();
        if let Err(error) = file.and_then(|file| file.sync_data()) {
            tracing::debug!(%error, "events may not survive a crash of the machine");
        }
    }

    /// Waits until there is something at `cursor`.
    pub(super) async fn grown_beyond(&self, cursor: Cursor) {
        loop {
            let mut grown = std::pin::pin!(self.grown.notified());
            grown.as_mut().enable();
            if self.end() > cursor {
                return;
            }
            grown.await;
        }
    }

    /// The line at `cursor`; none at the end.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub(super) fn read(&self, cursor: Cursor) -> Result<Option<Line>, FileError> {
        let (known, end) = (self.segments(), self.end());
        let oldest = known.first().copied().unwrap_or(end.segment);
        let lost = oldest.saturating_sub(cursor.segment);
        let mut at = if lost > 0 { Cursor { segment: oldest, offset: 0 } } else { cursor };
        while at < end {
            let path = self.segment_path(at.segment);
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    at = Cursor { segment: at.segment + 1, offset: 0 };
                    continue;
                }
                Err(error) => return Err(FileError { action: "read", path, source: error }),
            };
            let mut text = Vec::new();
            let read = file.seek(SeekFrom::Start(at.offset));
            let read = read.and_then(|_| BufReader::new(file).take(LONGEST).read_until(b'\n', &mut text));
            let read = read.map_err(FileError::on("read", &path))? as u64;
            if read == 0 {
                if at.segment >= end.segment {
                    return Ok(None);
                }
                at = Cursor { segment: at.segment + 1, offset: 0 };
                continue;
            }
            let next = Cursor { offset: at.offset + read, ..at };
            if let Some((id, name, text)) = parse(&text) {
                return Ok(Some(Line { id, name, text, next, lost }));
            }
            // What was left of a line.
            at = next;
        }
        Ok(None)
    }

    fn cursor_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.cursor"))
    }

    /// How far `name` has been told, if that is known.
    pub(super) fn cursor(&self, name: &str) -> Option<Cursor> {
        durable::read_json(&self.cursor_path(name)).ok().flatten()
    }

    /// Everybody who has ever been told, and how far.
    pub(super) fn cursors(&self) -> Vec<(String, Cursor)> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let name = |entry: std::fs::DirEntry| Some(entry.file_name().to_str()?.strip_suffix(".cursor")?.to_owned());
        let named = entries.filter_map(name).filter(|name| !name.starts_with('.'));
        named.map(|name| (self.cursor(&name).unwrap_or_default(), name)).map(|(cursor, name)| (name, cursor)).collect()
    }

    /// Writes down how far `name` has been told.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn set_cursor(&self, name: &str, cursor: Cursor) -> Result<(), FileError> {
        durable::replace_json(&self.cursor_path(name), &cursor)
    }
}

fn path(directory: &Path, segment: u64) -> PathBuf {
    directory.join(name(segment))
}

/// The file name of a segment.
pub(super) fn name(segment: u64) -> String {
    match segment {
        0 => "events.jsonl".to_owned(),
        part => format!("events.part-{part}.jsonl"),
    }
}

fn segments(directory: &Path) -> Result<Vec<u64>, FileError> {
    let entries = std::fs::read_dir(directory).map_err(FileError::on("read", directory))?;
    let number = |name: &str| match name.strip_prefix("events.")?.strip_suffix("jsonl")? {
        "" => Some(0),
        part => part.strip_prefix("part-")?.strip_suffix('.')?.parse().ok(),
    };
    let mut found: Vec<u64> = entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    found.sort_unstable();
    Ok(found)
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

/// Opens a segment to be added to. What is left of a line at its end becomes a line, which nobody can read.
fn append_to(path: &Path) -> Result<(File, u64), FileError> {
    let open = || -> std::io::Result<(File, u64)> {
        let mut file = OpenOptions::new().append(true).read(true).create(true).mode(0o600).open(path)?;
        let mut length = file.metadata()?.len();
        if length > 0 {
            let mut last = [0];
            file.seek(SeekFrom::Start(length - 1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                length += 1;
            }
        }
        Ok((file, length))
    };
    open().map_err(FileError::on("open", path))
}

fn ids_of(path: &Path) -> HashSet<String> {
    let text = std::fs::read(path).unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(|line| parse(line).map(|(id, ..)| id)).collect()
}

/// Id, name and text of a line.
fn parse(line: &[u8]) -> Option<(String, String, String)> {
    #[derive(Deserialize)]
    struct Known {
        #[serde(alias = "EventId")]
        id: String,
        #[serde(alias = "Event")]
        event: String,
    }
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let text = std::str::from_utf8(line).ok()?;
    let known: Known = serde_json::from_str(text).ok()?;
    Some((known.id, known.event, text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str) -> String {
        format!("{{\"Event\":\"OnJobRunning\",\"EventId\":\"{id}\"}}")
    }

    fn ids(log: &Log, mut cursor: Cursor) -> Vec<String> {
        let mut ids = Vec::new();
        while let Some(line) = log.read(cursor).unwrap() {
            cursor = line.next;
            ids.push(line.id);
        }
        ids
    }

    #[test]
    fn what_was_added_is_read_in_order_by_another_agent_too() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path(), false).unwrap();
        for id in ["a", "b", "a", "c"] {
            log.add(id, &line(id)).unwrap();
        }
        assert_eq!(ids(&log, Cursor::default()), ["a", "b", "c"], "what is there is not added again");
        let second = log.read(log.read(Cursor::default()).unwrap().unwrap().next).unwrap().unwrap();
        log.set_cursor("webhook", second.next).unwrap();
        drop(log);
        // Killed in the middle of a line.
        let file = directory.path().join("events.jsonl");
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"Event\":\"OnJo").unwrap();
        let log = Log::open(directory.path(), false).unwrap();
        log.add("d", &line("d")).unwrap();
        log.add("b", &line("b")).unwrap();
        assert_eq!(ids(&log, log.cursor("webhook").unwrap()), ["c", "d"]);
        let log = Log::open(directory.path(), true).unwrap();
        log.add("e", &line("e")).unwrap();
        assert_eq!(log.segments(), [0, 1]);
        assert_eq!(ids(&log, log.cursor("webhook").unwrap()), ["c", "d", "e"]);
    }

    #[test]
    fn it_is_bounded_and_says_what_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::with_limits(directory.path(), false, (100, 3)).unwrap();
        for number in 0..100 {
            let id = format!("event-{number:03}");
            log.add(&id, &line(&id)).unwrap();
        }
        let here = std::fs::read_dir(directory.path()).unwrap().count();
        assert!(here <= 3, "{here} files");
        let first = log.read(Cursor::default()).unwrap().unwrap();
        assert!(first.lost > 0 && first.next.segment > 0, "{first:?}");
        assert_eq!(ids(&log, Cursor::default()).last().map(String::as_str), Some("event-099"));
        // The numbers go on in another agent.
        let log = Log::with_limits(directory.path(), false, (100, 3)).unwrap();
        assert_eq!(log.read(Cursor::default()).unwrap().unwrap().id, first.id);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path(), false).unwrap();
        let (end, adding) = (log.end(), async { log.add("a", &line("a")).unwrap() });
        tokio::join!(log.grown_beyond(end), adding);
        log.grown_beyond(end).await;
    }
}
