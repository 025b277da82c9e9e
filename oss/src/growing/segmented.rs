//! Growing where there is no append: the last segment is put again with every flush.
//!
//! A put that was given up may still be under way and land on top of a later, longer one. So a segment is looked at
//! before it is sealed, and put again if it is not the one that was put last.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::compose::{self, Composed};
use super::{GrowingOptions, GrownObject, GrownPart, Names};
use crate::error::{Error, ErrorKind, Result};
use crate::location::Key;
use crate::store::{Checksum, ETag, GetOptions, ObjectMeta, PutMode, Store};
use crate::sums::Sums;

/// How often a segment is put that turns out to be another one each time.
const ATTEMPTS: u32 = 4;
/// The longest time to collect bytes.
const LONGEST: Duration = Duration::from_secs(16);

/// An object that will not change any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) key: Key,
    pub(super) sums: Sums,
    pub(super) etag: Option<ETag>,
}

impl Segment {
    /// Whether this is what the store holds now.
    pub(super) fn is(&self, meta: &ObjectMeta) -> bool {
        if meta.size != self.sums.size {
            return false;
        }
        match (self.sums.agree(meta.checksum), &self.etag, &meta.etag) {
            (Some(agree), ..) => agree,
            (None, Some(ours), Some(theirs)) => ours == theirs,
            (None, ..) => true,
        }
    }
}

/// What is written down of a sealed segment for a process that goes on after this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentMark {
    #[serde(flatten)]
    pub(super) sums: Sums,
    etag: Option<ETag>,
}

/// An object that grows by segments.
#[derive(Debug)]
pub(super) struct Segmented {
    store: Arc<dyn Store>,
    names: Names,
    options: GrowingOptions,
    sealed: Vec<Segment>,
    /// The present segment's bytes that are known to have been put.
    present: Vec<u8>,
    etag: Option<ETag>,
    /// What of the bytes being offered has been put although the call failed.
    done: Sums,
    /// Whether the last put has failed, so that the present segment may be longer than we know.
    in_doubt: bool,
    /// Whether another process has begun it, which may have come further than it has written down.
    is_heir: bool,
    /// What has become of the segments, once that is certain.
    composed: Option<Composed>,
    finished: Option<GrownObject>,
}

impl Segmented {
    pub(super) fn new(store: Arc<dyn Store>, names: Names, options: &GrowingOptions) -> Self {
        Self {
            store,
            names,
            options: options.clone(),
            sealed: Vec::new(),
            present: Vec::new(),
            etag: None,
            done: Sums::default(),
            in_doubt: false,
            is_heir: false,
            composed: None,
            finished: None,
        }
    }

    /// Goes on behind the segments that another process has sealed, and behind what is in the present one, if that is still there.
    pub(super) async fn resume(
        store: Arc<dyn Store>,
        names: Names,
        options: &GrowingOptions,
        sealed: Vec<SegmentMark>,
        present: Sums,
    ) -> Self {
        let segment = |(number, mark): (usize, SegmentMark)| {
            let SegmentMark { sums, etag } = mark;
            Segment { key: names.part(number), sums, etag }
        };
        let sealed = sealed.into_iter().enumerate().map(segment).collect();
        let mut resumed = Self { sealed, in_doubt: true, is_heir: true, ..Self::new(store, names, options) };
        resumed.present = resumed.read_back(present).await.unwrap_or_default();
        resumed
    }

    /// The beginning of the present segment, as the store has it. None if that is anything else; then it must be sent again.
    async fn read_back(&self, present: Sums) -> Option<Vec<u8>> {
        if present.size == 0 || present.size > self.options.segment_size {
            return None;
        }
        let options = GetOptions { range: Some(0..present.size), if_match: None };
        let read = async { self.store.get(&self.key(), options).await?.bytes().await };
        match read.await {
            Ok(bytes) => (Sums::of(&bytes) == present).then(|| bytes.to_vec()),
            Err(error) => {
                tracing::debug!("{error}; the last segment is sent again");
                None
            }
        }
    }

    /// How many bytes are there.
    pub(super) fn len(&self) -> u64 {
        self.sealed.iter().map(|segment| segment.sums.size).sum::<u64>() + self.present.len() as u64
    }

    /// The sealed segments, and what is known of the present one, which has to be kept all the same.
    pub(super) fn mark(&self) -> (Vec<SegmentMark>, Sums) {
        let mark = |segment: &Segment| SegmentMark { sums: segment.sums, etag: segment.etag.clone() };
        (self.sealed.iter().map(mark).collect(), Sums::of(&self.present))
    }

    /// What is left of the present segment; then every byte is sent once by whoever has so much.
    pub(super) fn piece(&self) -> usize {
        let limit = self.limit();
        if self.present.len() >= limit { limit } else { limit - self.present.len() }
    }

    fn limit(&self) -> usize {
        usize::try_from(self.options.segment_size).unwrap_or(usize::MAX).max(1)
    }

    /// Sending the present segment again must not take more than the rate allows.
    pub(super) fn interval(&self) -> Duration {
        // The first segment is what people look at while a task starts, and all there is of most logs. And one that is full is sent no
        // more: what comes next begins another.
        if self.sealed.is_empty() || self.present.len() >= self.limit() {
            return self.options.shortest_interval;
        }
        let bytes = u32::try_from(self.present.len()).unwrap_or(u32::MAX);
        let rate = u32::try_from(self.options.resend_rate).unwrap_or(u32::MAX).max(1);
        let shortest = self.options.shortest_interval;
        Duration::from_secs_f64(f64::from(bytes) / f64::from(rate)).clamp(shortest, LONGEST.max(shortest))
    }

    fn key(&self) -> Key {
        self.names.part(self.sealed.len())
    }

    pub(super) async fn append(&mut self, offered: Bytes) -> Result<()> {
        if self.finished.is_some() {
            return Err(self.names.error(ErrorKind::Invalid, "the object is finished"));
        }
        let again = || self.names.error(ErrorKind::Invalid, "append was called again with other bytes than before");
        let done = usize::try_from(self.done.size).unwrap_or(usize::MAX);
        if done > offered.len() || Sums::of(&offered[..done]) != self.done {
            return Err(again());
        }
        let mut left = offered.slice(done..);
        while !left.is_empty() {
            let limit = self.limit();
            if self.present.len() >= limit {
                self.seal().await?;
            }
            let bytes = left.split_to(left.len().min(limit - self.present.len()));
            self.put(&bytes).await?;
            self.done = self.done.then(Sums::of(&bytes));
        }
        self.done = Sums::default();
        Ok(())
    }

    /// Puts the present segment with `more` behind it. Nothing is remembered of `more` unless that succeeds.
    async fn put(&mut self, more: &[u8]) -> Result<()> {
        let body = [&self.present[..], more].concat();
        self.in_doubt = true;
        let answer = self.store.put(&self.key(), Bytes::from(body), PutMode::Overwrite).await?;
        self.present.extend_from_slice(more);
        if Sums::of(&self.present).agree(answer.checksum) == Some(false) {
            // It is put again with the next flush, or before it is sealed.
            self.present.truncate(self.present.len() - more.len());
            let message = "the store received other bytes than were sent, by checksum";
            return Err(self.names.error(ErrorKind::Corrupt, message));
        }
        self.etag = answer.etag;
        self.in_doubt = false;
        Ok(())
    }

    /// Makes sure that the present segment is there, and begins the next.
    async fn seal(&mut self) -> Result<()> {
        let mut segment = Segment { key: self.key(), sums: Sums::of(&self.present), etag: self.etag.clone() };
        for _ in 0..ATTEMPTS {
            if !self.in_doubt {
                match self.store.head(&segment.key).await {
                    // Another, or gone: put it again.
                    Ok(meta) if !segment.is(&meta) => {}
                    Err(error) if error.is_not_found() => {}
                    // Who may write only has to take the store's answer to the put for the truth.
                    Err(error) if *error.kind() != ErrorKind::Denied => return Err(error),
                    _ => {
                        self.sealed.push(segment);
                        self.present.clear();
                        self.etag = None;
                        return Ok(());
                    }
                }
            }
            self.put(&[]).await?;
            segment.etag.clone_from(&self.etag);
        }
        let message =
            "the object is another one whenever it is looked at: something else writes to it under the same name";
        Err(self.names.error(ErrorKind::Changed, message))
    }

    pub(super) async fn finish(&mut self) -> Result<GrownObject> {
        if let Some(finished) = &self.finished {
            return Ok(finished.clone());
        }
        if self.done.size > 0 {
            let message = "the last append has failed; it must be repeated before the object is finished";
            return Err(self.names.error(ErrorKind::Invalid, message));
        }
        if self.sealed.is_empty() && self.present.is_empty() {
            self.put(&[]).await?;
            self.seal().await?;
        } else if !self.present.is_empty() {
            self.seal().await?;
        } else if self.in_doubt {
            // The beginning of a segment that was never accepted.
            match self.store.delete(&self.key()).await {
                Err(error) if *error.kind() == ErrorKind::Denied => {
                    tracing::warn!("{error}; it is no part of the log and may be removed");
                }
                result => result?,
            }
            self.in_doubt = false;
        }
        if self.is_heir {
            self.remove_what_is_behind().await?;
        }
        let whole = self.sealed.iter().fold(Sums::default(), |whole, segment| whole.then(segment.sums));
        let grown = |parts: Vec<GrownPart>, index| GrownObject { parts, size: whole.size, crc64: whole.crc64, index };
        let part = |segment: &Segment| GrownPart {
            key: segment.key.clone(),
            size: segment.sums.size,
            crc64: segment.sums.crc64,
        };
        let parts: Vec<_> = self.sealed.iter().map(part).collect();
        let finished = if parts.len() == 1 {
            grown(parts, None)
        } else {
            let composed = match self.composed {
                Some(composed) => composed,
                None => compose::compose(&self.store, &self.names, &self.sealed, whole).await?,
            };
            self.composed = Some(composed);
            match composed {
                Composed::Whole => {
                    let key = self.names.key.clone();
                    grown(vec![GrownPart { key, size: whole.size, crc64: whole.crc64 }], None)
                }
                Composed::Parts => {
                    let index = compose::write_index(&self.store, &self.names, &parts, whole).await?;
                    grown(parts, Some(index))
                }
            }
        };
        self.finished = Some(finished.clone());
        Ok(finished)
    }
}

impl Segmented {
    /// Removes the segments that a process before this one has put behind the last. That happens when it had come further than it had
    /// written down, and what it had not written down was then sent in fewer bytes.
    async fn remove_what_is_behind(&self) -> Result<()> {
        let mut behind = Vec::new();
        for number in self.sealed.len().. {
            let key = self.names.part(number);
            match self.store.head(&key).await {
                Ok(_) => behind.push(key),
                // Who may write only is told so of what is absent, too.
                Err(error) if error.is_not_found() || *error.kind() == ErrorKind::Denied => break,
                Err(error) => return Err(error),
            }
        }
        for key in behind.iter().rev() {
            self.store.delete(key).await?;
        }
        Ok(())
    }
}

/// Whether the object is `whole`: nothing if the store has no checksum to tell by.
pub(super) fn is_whole(whole: &Sums, meta: &ObjectMeta) -> Option<bool> {
    if meta.size != whole.size {
        return Some(false);
    }
    match meta.checksum {
        Some(checksum @ (Checksum::Crc64(_) | Checksum::Crc64Nvme(_))) => whole.agree(Some(checksum)),
        _ => None,
    }
}

/// A failure of the store to which there is no other way than to try again.
pub(super) fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Throttled { .. } | ErrorKind::BadCredentials)
}
