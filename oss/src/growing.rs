//! One object that grows while others read it: a log.
//!
//! Stores differ in what they offer for this, and each is used in the way that sends the least twice:
//!
//! - *Append* (`appended`; OSS, local files): every flush appends what is new. When the object has reached the store's
//!   limit (5 GB on OSS) it goes on in `<key>.part-1`, `.part-2`, ...
//! - *No append* (`segmented`; S3, Google, Azure): the object is put again with every flush while it is below 8 MiB. Then it is
//!   sealed and goes on in `<key>.part-1`, ..., each of which grows in the same way. [`GrowingObject::finish`] puts them
//!   together into the one object on the server (`compose`) where the store can and the rights allow it; where not,
//!   the parts stay and `<key>.index.json` says what they are.
//!
//! Both are exact: whatever requests and replies are lost, the parts one after the other are the bytes that were
//! appended, without a gap and without a duplicate. That holds across processes, too: [`GrowingObject::mark`] is what has to be
//! written down now and then, and [`GrowingObject::resume`] goes on behind it, whatever was sent since.
//!
//! [`GrownReader`] reads what has grown, or is growing, as one text.

mod appended;
mod compose;
mod reader;
mod segmented;
mod tail;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::appended::Appended;
pub use self::reader::GrownReader;
use self::segmented::{SegmentMark, Segmented};
use self::tail::TailMark;
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location};
use crate::store::Store;
use crate::sums::Sums;

/// How an object grows. The defaults are right; tests make them small.
#[derive(Debug, Clone)]
pub struct GrowingOptions {
    /// No appended object becomes longer than this many bytes, nor than its store allows.
    pub max_append_size: u64,
    /// Where there is no append, an object that has reached this many bytes is sealed: 8 MiB. It must not be less than the
    /// store's smallest part, or the segments can never be put together.
    pub segment_size: u64,
    /// At most this many bytes are appended by one request: 8 MiB.
    pub piece: usize,
    /// The shortest [`GrowingObject::suggested_interval`]: 1 s.
    pub shortest_interval: Duration,
    /// How many bytes a second may be sent again on average, where there is no append: 512 KiB.
    pub resend_rate: u64,
}

impl Default for GrowingOptions {
    fn default() -> Self {
        Self {
            max_append_size: u64::MAX,
            segment_size: 8 << 20,
            piece: 8 << 20,
            shortest_interval: Duration::from_secs(1),
            resend_rate: 512 << 10,
        }
    }
}

/// What a grown object has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrownObject {
    /// The objects whose bytes, in this order, are what was appended. Mostly one.
    pub parts: Vec<GrownPart>,
    /// Their length together, in bytes.
    pub size: u64,
    /// Their CRC-64/XZ, one after the other.
    pub crc64: u64,
    /// The object that lists the parts, where one was written.
    pub index: Option<Key>,
}

/// A part of a grown object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrownPart {
    /// Its key.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// Its CRC-64/XZ.
    pub crc64: u64,
}

/// What has to be known of a growing object to go on with it in another process: what has arrived and need never be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrowingMark(Mark);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
enum Mark {
    Append(TailMark),
    Segments { sealed: Vec<SegmentMark>, present: Sums },
}

impl GrowingMark {
    /// How many bytes have arrived for good.
    pub fn len(&self) -> u64 {
        match &self.0 {
            Mark::Append(tail) => tail.len(),
            Mark::Segments { sealed, .. } => sealed.iter().map(|segment| segment.sums.size).sum(),
        }
    }

    /// How many bytes have arrived, some of which perhaps not for good: they may have to be appended again.
    pub fn arrived(&self) -> u64 {
        match &self.0 {
            Mark::Append(_) => self.len(),
            Mark::Segments { present, .. } => self.len() + present.size,
        }
    }

    /// Whether that is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An object that grows.
#[derive(Debug)]
pub struct GrowingObject {
    how: How,
    len: u64,
}

#[derive(Debug)]
enum How {
    Appended(Appended),
    Segmented(Segmented),
}

impl GrowingObject {
    /// A new, empty one. What an earlier attempt has left under this name is removed: the object, its parts and its
    /// index. The object itself appears with the first bytes.
    ///
    /// # Errors
    /// The store's own. A store that lets us neither look nor remove is no error yet.
    pub async fn create(store: Arc<dyn Store>, key: Key, options: GrowingOptions) -> Result<Self> {
        let names = Names { root: store.root().clone(), key };
        remove_leftovers(&*store, &names).await?;
        let how = if store.capabilities().append {
            How::Appended(Appended::new(store, names, &options))
        } else {
            How::Segmented(Segmented::new(store, names, &options))
        };
        Ok(Self { how, len: 0 })
    }

    /// Goes on with one that another process has begun, behind `mark`. [`GrowingObject::len`] is then what the mark says has arrived, or
    /// has arrived for good, and the same bytes must be appended from there on that the other process has appended, or was about to; what of them is there already
    /// is not sent again. `options` are those of the other process.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the store is of another kind than the one that `mark` is of.
    pub async fn resume(store: Arc<dyn Store>, key: Key, options: &GrowingOptions, mark: GrowingMark) -> Result<Self> {
        let names = Names { root: store.root().clone(), key };
        let mut len = mark.len();
        let how = match (store.capabilities().append, mark.0) {
            (true, Mark::Append(tail)) => How::Appended(Appended::resume(store, names, options, tail)),
            (false, Mark::Segments { sealed, present }) => {
                let segmented = Segmented::resume(store, names, options, sealed, present).await;
                len = segmented.len();
                How::Segmented(segmented)
            }
            _ => return Err(names.error(ErrorKind::Invalid, "it was begun in another kind of store")),
        };
        Ok(Self { how, len })
    }

    /// What to write down for [`GrowingObject::resume`]: what is behind it need not be kept. None while something is in doubt.
    pub fn mark(&self) -> Option<GrowingMark> {
        match &self.how {
            How::Appended(appended) => appended.mark().map(Mark::Append).map(GrowingMark),
            How::Segmented(segmented) => {
                let (sealed, present) = segmented.mark();
                Some(GrowingMark(Mark::Segments { sealed, present }))
            }
        }
    }

    /// Whether all that the process before this one has sent is accounted for. Until then the bytes that follow must be the ones that
    /// it would have sent.
    pub fn has_caught_up(&self) -> bool {
        match &self.how {
            How::Appended(appended) => appended.has_caught_up(),
            How::Segmented(_) => true,
        }
    }

    /// After [`ErrorKind::Changed`], [`ErrorKind::Corrupt`] or [`ErrorKind::NotAppendable`], when the beginning is not there any more to
    /// be appended again: leaves the present part as something else has made it, and goes on in the next one with the bytes behind
    /// [`GrowingObject::len`], which can have gone back as far as the mark. Whether that can be done: where there is no append, it is not needed, and the same bytes may be appended
    /// again.
    pub fn abandon(&mut self) -> bool {
        match &mut self.how {
            How::Appended(appended) => {
                self.len -= appended.abandon();
                true
            }
            How::Segmented(_) => false,
        }
    }

    /// With how many bytes at once an append costs least, where there are so many.
    pub fn suggested_piece(&self) -> usize {
        match &self.how {
            How::Appended(appended) => appended.piece(),
            How::Segmented(segmented) => segmented.piece(),
        }
    }

    /// How many bytes have been appended by calls that succeeded.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing has been appended yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `bytes`; when this returns, readers see them.
    ///
    /// After a failure, and when the future was dropped, call it again with the same bytes (those behind [`GrowingObject::len`]),
    /// to which more may have been added at the end. What had arrived of them is not sent again.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is called again with other bytes; [`ErrorKind::Changed`] when something else writes to or
    /// removes the object; [`ErrorKind::Corrupt`] when the store holds other bytes than were sent. The last two are
    /// final: create the object again and append everything from the beginning. Others are the store's own, after a few
    /// attempts, and worth another try later.
    pub async fn append(&mut self, bytes: Bytes) -> Result<()> {
        let added = bytes.len() as u64;
        match &mut self.how {
            How::Appended(appended) => appended.append(bytes).await?,
            How::Segmented(segmented) => segmented.append(bytes).await?,
        }
        self.len += added;
        Ok(())
    }

    /// How long to collect bytes before the next append.
    ///
    /// Where the store can append nothing is sent twice, and this is the shortest interval. Where it cannot, every append
    /// sends the last unsealed segment again. In the first one the interval stays the shortest, so that a log is seen as it is
    /// written: up to its first 8 MiB that costs at most 3600 requests an hour of 4 MiB on average. After that the interval
    /// grows with the segment, so that on average no more than [`GrowingOptions::resend_rate`] bytes a second are sent again:
    /// by default 1 s up to 512 KiB, 16 s shortly before 8 MiB.
    pub fn suggested_interval(&self) -> Duration {
        match &self.how {
            How::Appended(appended) => appended.interval(),
            How::Segmented(segmented) => segmented.interval(),
        }
    }

    /// The object grows no more. Verifies what is there, and puts segments together. If nothing was ever appended an empty
    /// object is written. May be called again after a failure.
    ///
    /// # Errors
    /// As [`GrowingObject::append`], whose last call must have succeeded ([`ErrorKind::Invalid`]).
    pub async fn finish(&mut self) -> Result<GrownObject> {
        match &mut self.how {
            How::Appended(appended) => appended.finish().await,
            How::Segmented(segmented) => segmented.finish().await,
        }
    }
}

/// What the objects are called.
#[derive(Debug, Clone)]
struct Names {
    root: Location,
    key: Key,
}

impl Names {
    /// The object itself for 0, `.part-<number>` for the others.
    fn part(&self, number: usize) -> Key {
        if number == 0 { self.key.clone() } else { Key::new(format!("{}.part-{number}", self.key)) }
    }

    /// Where the first segment is kept while the object is put together. ([`Names::part`] of 0 is the object.)
    fn first_copy(&self) -> Key {
        Key::new(format!("{}.part-0", self.key))
    }

    /// The list of the parts.
    fn index(&self) -> Key {
        Key::new(format!("{}.index.json", self.key))
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, "GROW", self.root.with_key(self.key.clone()), message)
    }
}

/// Removes what an earlier attempt has left.
async fn remove_leftovers(store: &dyn Store, names: &Names) -> Result<()> {
    let mut left = Vec::new();
    for key in [names.index(), names.first_copy(), names.key.clone()] {
        match store.head(&key).await {
            Ok(_) => left.push((key, true)),
            Err(error) if error.is_not_found() => {}
            // Without the right to list, S3 answers so for what is absent, too.
            Err(error) if *error.kind() == ErrorKind::Denied => left.push((key, false)),
            Err(error) => return Err(error),
        }
    }
    // Parts follow each other without a gap, because they are removed from the last.
    for number in 1.. {
        let key = names.part(number);
        match store.head(&key).await {
            Ok(_) => left.push((key, true)),
            Err(error) if error.is_not_found() || *error.kind() == ErrorKind::Denied => break,
            Err(error) => return Err(error),
        }
    }
    for (key, is_there) in left.iter().rev() {
        match store.delete(key).await {
            Err(error) if *error.kind() == ErrorKind::Denied => {
                if *is_there {
                    tracing::warn!("{error}; what an earlier attempt has left there stays");
                }
            }
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
