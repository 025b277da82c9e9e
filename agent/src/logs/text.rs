//! The text of a log, wherever it is now.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use oss::Store;
use oss::growing::GrownReader;

use super::book::LogPlace;
use crate::instance::{LogSource, Sent};

/// The most that is read from a file at once.
const PIECE: usize = 1 << 20;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// Its object.
    #[error(transparent)]
    Store(#[from] oss::Error),
    /// Its file, or what is known of it.
    #[error("cannot read the log {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads a log of this node from its beginning.
///
/// What has arrived for good is taken from the store, because the file has a hole there; the rest from the file. What is known of
/// that is written down before the hole is punched. So bytes from the file count only if it is not known *after* they were read that
/// they may have been a part of the hole.
#[derive(Debug)]
pub struct LogText {
    place: LogPlace,
    store: Arc<dyn Store>,
    position: u64,
    /// Kept open: it is removed when the attempt has ended.
    file: Option<File>,
    reader: Option<GrownReader>,
}

impl LogText {
    /// The log that is there.
    pub fn new(place: LogPlace, store: Arc<dyn Store>) -> Self {
        Self { place, store, position: 0, file: None, reader: None }
    }

    /// The next bytes; none when there are no more now. `has_ended` says that all of it is in the store, which had to be found out
    /// before.
    ///
    /// # Errors
    /// When it cannot be read. It may be tried again.
    pub async fn next(&mut self, has_ended: bool) -> Result<Option<Bytes>, TextError> {
        if has_ended {
            return self.next_of_store(u64::MAX).await;
        }
        loop {
            let before = self.sent()?;
            let stored = before.as_ref().map_or(0, Sent::settled);
            if self.position < stored {
                return self.next_of_store(stored).await;
            }
            let Some(bytes) = self.next_of_file(before.as_ref())? else { return Ok(None) };
            let after = self.sent()?.map_or(0, |sent| sent.settled());
            if self.position < after {
                continue;
            }
            self.position += bytes.len() as u64;
            self.reader = None;
            return Ok(Some(bytes));
        }
    }

    /// Up to this position.
    async fn next_of_store(&mut self, end: u64) -> Result<Option<Bytes>, TextError> {
        let (store, key, position) = (&self.store, self.place.target.key(), self.position);
        let reader = self.reader.get_or_insert_with(|| GrownReader::at(Arc::clone(store), key.clone(), position));
        let Some(mut bytes) = reader.next().await? else { return Ok(None) };
        if self.position + bytes.len() as u64 > end {
            // The rest is taken from the file, or read anew.
            bytes.truncate(usize::try_from(end - self.position).unwrap_or(usize::MAX));
            self.reader = None;
        }
        self.position += bytes.len() as u64;
        Ok(Some(bytes))
    }

    fn sent(&self) -> Result<Option<Sent>, TextError> {
        Sent::read(&self.place.progress)
            .map_err(|error| TextError::File { path: error.path.display().to_string(), source: error.source })
    }

    fn next_of_file(&mut self, sent: Option<&Sent>) -> Result<Option<Bytes>, TextError> {
        let failed = |path: &Path, source| TextError::File { path: path.display().to_string(), source };
        let (offset, end) = match sent.map(|sent| sent.sequence.at(self.position)) {
            Some(Some(LogSource::Text(text))) => return Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
            Some(Some(LogSource::File { offset, end, .. })) => (offset, end),
            // Nothing is sent yet.
            None => (self.position, None),
            Some(None) => return Ok(None),
        };
        if self.file.is_none() {
            match File::open(&self.place.file) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed(&self.place.file, error)),
            }
        }
        let Some(file) = &self.file else { return Ok(None) };
        let most = end.map_or(PIECE, |end| usize::try_from(end - offset).unwrap_or(PIECE).min(PIECE));
        let mut bytes = vec![0; most];
        let length = file.read_at(&mut bytes, offset).map_err(|error| failed(&self.place.file, error))?;
        bytes.truncate(length);
        Ok((length > 0).then(|| bytes.into()))
    }
}
