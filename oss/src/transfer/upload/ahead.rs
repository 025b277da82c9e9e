//! Sending a file's parts ahead of time, one by one, at the caller's pace. The upload stays open: [`upload`](super::upload) completes it
//! later, if the file is still the same, through [`UploadOptions::resume`](super::UploadOptions::resume).

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::resume::{Found, OpenUpload, SentPart, UploadJournal, find};
use super::source::{FileStamp, Source};
use super::{OPERATION, corrupt, is_ambiguous};
use crate::error::{Error, ErrorKind, Result};
use crate::location::Key;
use crate::store::{Store, UploadId};
use crate::transfer::plan::{part_size, pieces};
use crate::transfer::{blocking, local};

/// The parts of one file on their way. Dropped, it leaves the upload open, and the journal knows of it.
pub struct PartsAhead {
    store: Arc<dyn Store>,
    key: Key,
    id: UploadId,
    source: Arc<Source>,
    journal: Arc<dyn UploadJournal>,
    left: VecDeque<(u32, Range<u64>)>,
}

impl std::fmt::Debug for PartsAhead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartsAhead").field("key", &self.key).field("left", &self.left.len()).finish_non_exhaustive()
    }
}

impl PartsAhead {
    /// Begins an upload of `file`, or goes on with `resume` if that is of the same content. `stamp` is what the caller has found the
    /// file to be.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] when the file is another one by now, [`ErrorKind::LocalFile`] when it cannot be read or the journal cannot
    /// be written, [`ErrorKind::Invalid`] when the store cannot hold it, and the store's own.
    pub async fn begin(
        store: &Arc<dyn Store>,
        key: &Key,
        (file, stamp): (File, FileStamp),
        preferred: u64,
        journal: &Arc<dyn UploadJournal>,
        resume: Option<OpenUpload>,
    ) -> Result<Self> {
        let location = store.root().with_key(key.clone());
        let source = Source::new(location.clone(), file, stamp.size)?;
        if source.stamp != stamp {
            return Err(source.changed());
        }
        let of = |id, length, kept: &BTreeMap<u32, SentPart>| {
            let all = pieces(stamp.size, length).zip(1..).map(|(range, number)| (number, range));
            let left = all.filter(|(number, _)| !kept.contains_key(number)).collect();
            let (store, key, journal) = (Arc::clone(store), key.clone(), Arc::clone(journal));
            Self { store, key, id, source: Arc::new(source), journal, left }
        };
        if let Some(open) = resume {
            match find(store, key, stamp, &open).await? {
                Found::Open(kept) => return Ok(of(open.id, open.part_size, &kept)),
                Found::Completed(..) | Found::Useless => {
                    store.abort_multipart(key, &open.id).await?;
                    journal.ended();
                }
                Found::Gone => journal.ended(),
            }
        }
        let length = part_size(stamp.size, preferred, &store.capabilities())
            .ok_or_else(|| Error::new(ErrorKind::Invalid, OPERATION, &location, "the store cannot hold the file"))?;
        let unwritten = |error| local(OPERATION, &location, "the journal of uploads cannot be written", error);
        let before = Arc::clone(journal);
        blocking(OPERATION, &location, move || before.beginning()).await?.map_err(unwritten)?;
        let id = match store.create_multipart(key).await {
            Ok(id) => id,
            Err(error) => {
                // Whether it was begun after all is not known when the answer was lost.
                if !is_ambiguous(&error) {
                    journal.ended();
                }
                return Err(error);
            }
        };
        let open = OpenUpload { id: id.clone(), stamp, part_size: length, parts: Vec::new() };
        let begun = Arc::clone(journal);
        if let Err(error) = blocking(OPERATION, &location, move || begun.begun(&open)).await? {
            // Nobody would know of it.
            if store.abort_multipart(key, &id).await.is_ok() {
                journal.ended();
            }
            return Err(unwritten(error));
        }
        Ok(of(id, length, &BTreeMap::new()))
    }

    /// The upload, for giving it up.
    pub fn id(&self) -> &UploadId {
        &self.id
    }

    /// How many parts are left to be sent.
    pub fn left(&self) -> usize {
        self.left.len()
    }

    /// Sends the next part, and says how many bytes it had; nothing when all have arrived.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] when the file is being written to, and the store's own. The part can then be sent again.
    pub async fn send_next(&mut self) -> Result<Option<u64>> {
        let Some((number, range)) = self.left.front().cloned() else { return Ok(None) };
        let (bytes, sums) = self.source.read(range).await?;
        self.source.check_unchanged()?;
        let receipt = self.store.put_part(&self.key, &self.id, number, bytes).await?;
        if (receipt.crc64, receipt.size) != (sums.crc64, sums.size) {
            return Err(corrupt(&self.source.location));
        }
        self.left.pop_front();
        let unwritten =
            |error| local(OPERATION, &self.source.location, "the journal of uploads cannot be written", error);
        self.journal.sent(&SentPart::new(receipt, sums)).map_err(unwritten)?;
        Ok(Some(sums.size))
    }
}
