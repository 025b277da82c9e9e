//! Going on with an upload in parts that somebody else has begun: a process before this one, or one that sent parts ahead of time.
//!
//! Three things must agree before a part is kept: what we wrote down when it was sent (number, length, checksums, entity tag), what
//! the store says has arrived, and that the file is still the very same by its [`FileStamp`]. The parts' checksums are combined to
//! the whole's as if all had been sent now, and the store's own is compared with that in the end.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use super::source::FileStamp;
use crate::error::{ErrorKind, Result};
use crate::location::Key;
use crate::store::{Capabilities, Checksum, PartMeta, PartReceipt, Store, UploadId};
use crate::sums::Sums;
use crate::transfer::plan::pieces;

/// A part that the store has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SentPart {
    receipt: PartReceipt,
    /// Its CRC-64/NVME, whichever checksum the store keeps.
    nvme: u64,
}

impl SentPart {
    pub(super) fn new(receipt: PartReceipt, sums: Sums) -> Self {
        Self { receipt, nvme: sums.nvme }
    }

    pub(super) fn receipt(&self) -> &PartReceipt {
        &self.receipt
    }

    pub(super) fn sums(&self) -> Sums {
        Sums { size: self.receipt.size, crc64: self.receipt.crc64, nvme: self.nvme }
    }
}

/// An upload in parts that is neither completed nor given up, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OpenUpload {
    /// The store's name for it.
    pub id: UploadId,
    /// The file it is of.
    pub stamp: FileStamp,
    /// The length of each part but the last, in bytes.
    pub part_size: u64,
    /// The parts that have arrived, in the order in which they did. Of two with one number the last counts.
    pub parts: Vec<SentPart>,
}

impl OpenUpload {
    /// The checksums of the whole file, if all of it was sent.
    fn whole(&self) -> Option<Sums> {
        let kept = keep(self, None);
        let all = pieces(self.stamp.size, self.part_size).len();
        (kept.len() == all).then(|| kept.values().fold(Sums::default(), |whole, part| whole.then(part.sums())))
    }
}

/// Writes down what becomes of an upload in parts, so that another process can go on with it or give it up. Its methods block for
/// as long as a small write takes.
pub trait UploadJournal: fmt::Debug + Send + Sync {
    /// An upload is about to be begun. What was written down before is void.
    ///
    /// # Errors
    /// When that cannot be written down.
    fn beginning(&self) -> io::Result<()>;

    /// It has begun; no part of it is sent before this returns.
    ///
    /// # Errors
    /// When that cannot be written down.
    fn begun(&self, upload: &OpenUpload) -> io::Result<()>;

    /// A part has arrived. Should this be lost, the part is sent again.
    ///
    /// # Errors
    /// When that cannot be written down.
    fn sent(&self, part: &SentPart) -> io::Result<()>;

    /// It is completed or given up, or it never began: the store holds nothing of it.
    fn ended(&self);

    /// Whether an upload whose future is dropped stays as it is, for whoever reads this journal next, and is not given up.
    fn outlives_its_future(&self) -> bool;
}

/// Which parts need not be sent again, by their numbers. `listed` is what the store says has arrived; without it, our receipts
/// are believed, and the store will refuse the completion should they be wrong. Pure.
pub(super) fn keep(upload: &OpenUpload, listed: Option<&[PartMeta]>) -> BTreeMap<u32, SentPart> {
    let bare = |etag: &str| etag.trim_matches('"').to_ascii_lowercase();
    let there: Option<BTreeMap<u32, &PartMeta>> =
        listed.map(|parts| parts.iter().map(|part| (part.number, part)).collect());
    let wanted: BTreeMap<u32, u64> = pieces(upload.stamp.size, upload.part_size)
        .enumerate()
        .filter_map(|(index, range)| Some((u32::try_from(index + 1).ok()?, range.end - range.start)))
        .collect();
    let last_word: BTreeMap<u32, &SentPart> = upload.parts.iter().map(|part| (part.receipt.number, part)).collect();
    let is_good = |number: u32, part: &SentPart| {
        let receipt = &part.receipt;
        let fits = wanted.get(&number) == Some(&receipt.size) && !receipt.etag.is_empty();
        fits && there.as_ref().is_none_or(|there| {
            there.get(&number).is_some_and(|stored| {
                let same_sum = match stored.checksum {
                    Some(Checksum::Crc64(sum)) => sum == receipt.crc64,
                    Some(Checksum::Crc64Nvme(sum)) => sum == part.nvme,
                    Some(Checksum::Md5(_)) | None => true,
                };
                stored.size == receipt.size && bare(&stored.etag) == bare(&receipt.etag) && same_sum
            })
        })
    };
    last_word.into_iter().filter(|(number, part)| is_good(*number, part)).map(|(n, part)| (n, part.clone())).collect()
}

/// Whether parts of this length make an upload of the file that the store takes. Pure.
fn is_possible(upload: &OpenUpload, store: &Capabilities) -> bool {
    let part = upload.part_size;
    part >= store.min_part_size.max(1)
        && part <= store.max_part_size
        && upload.stamp.size.div_ceil(part) <= u64::from(store.max_parts)
        && upload.stamp.size > 0
}

/// What has become of an upload that was begun before.
pub(super) enum Found {
    /// It is open, and these parts of it stay.
    Open(BTreeMap<u32, SentPart>),
    /// It was completed, and the object is there: all of the file's parts had been sent.
    Completed(Sums, Option<crate::store::ETag>),
    /// It is gone.
    Gone,
    /// It is open and of no use: the file is another one now.
    Useless,
}

/// Looks what has become of `upload`.
pub(super) async fn find(store: &Arc<dyn Store>, key: &Key, stamp: FileStamp, upload: &OpenUpload) -> Result<Found> {
    if upload.stamp != stamp || !is_possible(upload, &store.capabilities()) {
        return Ok(Found::Useless);
    }
    let listed = match list(store, key, &upload.id).await {
        Ok(listed) => Some(listed),
        Err(error) => match error.kind() {
            // Who may write need not be allowed to look.
            ErrorKind::Denied | ErrorKind::Unsupported => None,
            ErrorKind::NotFound => {
                let Some(whole) = upload.whole() else { return Ok(Found::Gone) };
                return Ok(match store.head(key).await {
                    Ok(meta) if meta.size == whole.size && whole.agree(meta.checksum) == Some(true) => {
                        Found::Completed(whole, meta.etag)
                    }
                    _ => Found::Gone,
                });
            }
            _ => return Err(error),
        },
    };
    Ok(Found::Open(keep(upload, listed.as_deref())))
}

async fn list(store: &Arc<dyn Store>, key: &Key, id: &UploadId) -> Result<Vec<PartMeta>> {
    let (mut parts, mut after) = (Vec::new(), 0);
    loop {
        let page = store.list_parts(key, id, after).await?;
        parts.extend(page.parts);
        let Some(next) = page.continuation else { return Ok(parts) };
        after = next;
    }
}
