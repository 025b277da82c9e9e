//! The files of a log: finding them, noticing what becomes of them, reading them. Blocking.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::sequence::{FileId, Place, Sequence};
use crate::instance::outputs::found::{open_beneath, open_directory};

/// A file that has been replaced is read on for so long after its last byte: programs are told to close it only after that.
const LINGER: Duration = Duration::from_secs(2);

/// Where a log is written.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A file of the agent's own, in a directory that is the agent's alone. It is there, and only ever appended to.
    Own(PathBuf),
    /// A file of the task's, with which the task may do whatever it likes. It may not be there yet.
    Theirs {
        /// A directory that cannot be left on the way.
        root: PathBuf,
        /// The file, below that directory.
        path: PathBuf,
    },
}

impl Origin {
    /// The file, for messages.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Own(path) => path.clone(),
            Self::Theirs { root, path } => root.join(path),
        }
    }

    fn open(&self) -> io::Result<File> {
        match self {
            // Whoever punches holes must be allowed to write.
            Self::Own(path) => File::options().read(true).write(true).open(path),
            Self::Theirs { root, path } => open_beneath(&open_directory(root)?, path),
        }
    }

    /// The file of that identity, under whatever name it has now in its directory.
    fn find(&self, id: FileId) -> Option<File> {
        let is_it = |file: &File| file.metadata().is_ok_and(|metadata| FileId::of(&metadata) == id);
        if let Some(file) = self.open().ok().filter(is_it) {
            return Some(file);
        }
        let Self::Theirs { root, path } = self else { return None };
        let directory = path.parent().unwrap_or(Path::new(""));
        let names = fs::read_dir(root.join(directory)).ok()?.flatten();
        let same = names.filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.ino() == id.inode));
        let open = |name: &OsStr| open_beneath(&open_directory(root).ok()?, &directory.join(name)).ok();
        same.filter_map(|entry| open(&entry.file_name())).find(is_it)
    }
}

impl FileId {
    /// Of an open file.
    pub fn of(metadata: &Metadata) -> Self {
        let born = metadata.created().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let born = born.and_then(|since| u64::try_from(since.as_nanos()).ok());
        Self { device: metadata.dev(), inode: metadata.ino(), born }
    }
}

/// The open files of a log, and what it is made of.
#[derive(Debug)]
pub(super) struct Reader {
    origin: Origin,
    pub(super) sequence: Sequence,
    open: Vec<(FileId, Arc<File>)>,
    /// The most that the file that grows was seen to hold.
    seen: u64,
    /// Whether the sequence is another one than was written down.
    is_changed: bool,
    /// Since when another file has its name, and how long it was then.
    replaced: Option<(Instant, u64)>,
}

impl Reader {
    /// The log's one file, if it is there.
    pub(super) fn open(origin: &Origin) -> io::Result<Option<Self>> {
        let file = match origin.open() {
            Ok(file) => file,
            Err(_) if matches!(origin, Origin::Theirs { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let id = FileId::of(&file.metadata()?);
        let open = vec![(id, Arc::new(file))];
        Ok(Some(Self {
            origin: origin.clone(),
            sequence: Sequence::new(id),
            open,
            seen: 0,
            is_changed: false,
            replaced: None,
        }))
    }

    /// What another agent has followed, as far as it is still there; none if that is another file of our own altogether.
    pub(super) fn resume(origin: &Origin, sequence: Sequence) -> Option<Self> {
        let mut open: Vec<(FileId, Arc<File>)> = Vec::new();
        for id in sequence.files() {
            if let Some(file) = origin.find(id) {
                open.push((id, Arc::new(file)));
            }
        }
        if matches!(origin, Origin::Own(_)) && open.is_empty() {
            return None;
        }
        let mut reader = Self { origin: origin.clone(), sequence, open, seen: 0, is_changed: true, replaced: None };
        reader.seen = reader.size();
        Some(reader)
    }

    /// The same with words in place of what has not been sent, which is everything from `position` on, and can be had no more.
    pub(super) fn without_lost(mut self, position: u64) -> Self {
        let len = |id| find(&self.open, id).and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        self.sequence.lose(position, len);
        self
    }

    /// Whether the sequence has to be written down before anything more is sent; asked once.
    pub(super) fn has_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// A directory on the disk that the log is on.
    pub(super) fn directory(&self) -> PathBuf {
        match &self.origin {
            Origin::Own(path) => path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned),
            Origin::Theirs { root, .. } => root.clone(),
        }
    }

    /// The file that grows, if it could be opened.
    pub(super) fn growing(&self) -> Option<&Arc<File>> {
        find(&self.open, self.sequence.file())
    }

    /// How long the file that grows is.
    pub(super) fn size(&self) -> u64 {
        self.growing().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len())
    }

    /// Begins again with what is there now.
    pub(super) fn restart(&mut self) {
        self.sequence = Sequence::new(self.sequence.file());
    }

    /// The bytes from `position` of the log on, at most `most`. Empty when there are no more now; `is_over` says that nobody
    /// writes any more.
    pub(super) fn read(&mut self, position: u64, most: usize, is_over: bool) -> io::Result<Bytes> {
        let mut piece = Vec::new();
        self.fill(position, most, &mut piece)?;
        if piece.is_empty() && self.look(position, is_over)? {
            self.fill(position, most, &mut piece)?;
        }
        Ok(piece.into())
    }

    fn fill(&self, position: u64, most: usize, piece: &mut Vec<u8>) -> io::Result<()> {
        while piece.len() < most {
            let room = most - piece.len();
            match self.sequence.at(position + piece.len() as u64) {
                Some(Place::Text(text)) => piece.extend_from_slice(&text.as_bytes()[..text.len().min(room)]),
                Some(Place::File { file, offset, end }) => {
                    let Some(open) = find(&self.open, file) else { break };
                    let there = end.unwrap_or(open.metadata()?.len()).saturating_sub(offset);
                    let wanted = usize::try_from(there).unwrap_or(room).min(room);
                    if wanted == 0 || !read_at(open, offset, wanted, piece)? {
                        break;
                    }
                }
                None => return Err(io::Error::other("what comes next in the log is not known any more")),
            }
        }
        Ok(())
    }

    /// Finds out what the task has done with its file. Whether there may be more to read now. Everything before `position` has been
    /// read, and nothing behind it is there.
    fn look(&mut self, position: u64, is_over: bool) -> io::Result<bool> {
        if matches!(self.origin, Origin::Own(_)) {
            return Ok(false);
        }
        let offset = self.sequence.offset(position);
        let size = self.size();
        if self.growing().is_some() && size < offset.max(self.seen) {
            let lost = self.seen.saturating_sub(offset);
            tracing::info!(log = %self.origin.path().display(), "the log file was cut off; going on from its beginning");
            let text = (lost > 0).then(|| {
                format!("\n[batch-agent: {lost} bytes of this log are missing here: the file was cut off before they were read]\n")
            });
            self.sequence.cut_off(position, text);
            self.is_changed = true;
            (self.seen, self.replaced) = (size, None);
            return Ok(true);
        }
        self.seen = self.seen.max(size);
        let Ok(now) = self.origin.open() else { return Ok(false) };
        let id = FileId::of(&now.metadata()?);
        if id == self.sequence.file() && self.growing().is_some() {
            self.replaced = None;
            return Ok(false);
        }
        let (since, then) = *self.replaced.get_or_insert_with(|| (Instant::now(), size));
        if then != size {
            self.replaced = Some((Instant::now(), size));
            return Ok(false);
        }
        if since.elapsed() < LINGER && !is_over && self.growing().is_some() {
            return Ok(false);
        }
        tracing::info!(log = %self.origin.path().display(), "the log file was replaced; going on with the new one");
        self.sequence.follow_with(offset, None, id);
        self.is_changed = true;
        self.open.push((id, Arc::new(now)));
        (self.seen, self.replaced) = (0, None);
        Ok(true)
    }

    /// Closes the files that nobody needs any more.
    pub(super) fn close_unneeded(&mut self) {
        let needed = self.sequence.files();
        self.open.retain(|(id, _)| needed.contains(id));
    }

    /// The beginning of the first line behind `offset` of the file that grows, if it is not far.
    pub(super) fn next_line(&self, offset: u64) -> u64 {
        const FAR: usize = 64 << 10;
        let mut bytes = Vec::new();
        let there = self.growing().is_some_and(|file| read_at(file, offset, FAR, &mut bytes).is_ok());
        let end = bytes.iter().position(|byte| *byte == b'\n').filter(|_| there);
        end.map_or(offset, |end| offset + end as u64 + 1)
    }
}

fn find(open: &[(FileId, Arc<File>)], id: FileId) -> Option<&Arc<File>> {
    open.iter().find(|(known, _)| *known == id).map(|(_, file)| file)
}

/// Adds up to `most` bytes to `piece`. Whether there were any.
fn read_at(file: &File, offset: u64, most: usize, piece: &mut Vec<u8>) -> io::Result<bool> {
    let before = piece.len();
    piece.resize(before + most, 0);
    let mut filled = before;
    while filled < piece.len() {
        match file.read_at(&mut piece[filled..], offset + (filled - before) as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                piece.truncate(before);
                return Err(error);
            }
        }
    }
    piece.truncate(filled);
    Ok(filled > before)
}
