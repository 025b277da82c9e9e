//! Segments become one object, on the server.
//!
//! The first segment has the object's own name, so completing the upload replaces it. It is therefore copied aside first,
//! and nothing is removed before the whole is proven: at every moment the bytes are there, either as the whole or as the
//! segments (with the first as `<key>` or as `<key>.part-0`).

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, TryStreamExt};

use super::segmented::{Segment, is_passing, is_whole};
use super::{GrownPart, Names};
use crate::crc::Crc64;
use crate::error::{Error, ErrorKind, Result};
use crate::location::Key;
use crate::store::{GetOptions, ObjectMeta, PartReceipt, PutMode, Store, UploadId};
use crate::sums::Sums;

/// How many parts are copied at once.
const CONCURRENCY: usize = 8;
/// Where the store keeps no checksum of the whole, it is read back to be proven, up to this many bytes.
const READ_BACK: u64 = 1 << 30;

/// What has become of the segments.
#[derive(Debug, Clone, Copy)]
pub(super) enum Composed {
    /// They are one object.
    Whole,
    /// They stay as they are.
    Parts,
}

/// Puts `segments` together into the object of their name, if that can be done and be proven.
///
/// # Errors
/// It may be called again after any, also when the attempt that failed had succeeded after all.
pub(super) async fn compose(
    store: &Arc<dyn Store>,
    names: &Names,
    segments: &[Segment],
    whole: Sums,
) -> Result<Composed> {
    let location = names.root.with_key(names.key.clone()).escaped();
    if let Some(why) = cannot(store, segments) {
        tracing::info!("{location} stays in {} parts: {why}", segments.len());
        return Ok(Composed::Parts);
    }
    let first = match store.head(&names.key).await {
        Err(error) if *error.kind() == ErrorKind::Denied => {
            tracing::info!("{location} stays in {} parts: {error}", segments.len());
            return Ok(Composed::Parts);
        }
        result => result?,
    };
    match attempt(store, names, segments, whole, first).await {
        Ok(()) => {
            clean_up(store, names, segments.len(), whole).await?;
            Ok(Composed::Whole)
        }
        Err(error) if is_passing(&error) => Err(error),
        Err(error) => {
            // If the first segment was replaced already its copy must be put back, or the parts would not be complete.
            put_back(store, names, &segments[0]).await?;
            tracing::warn!("{location} stays in {} parts: {error}", segments.len());
            Ok(Composed::Parts)
        }
    }
}

fn cannot(store: &Arc<dyn Store>, segments: &[Segment]) -> Option<String> {
    let can = store.capabilities();
    if !can.copy_part {
        return Some("the store cannot put objects together".to_owned());
    }
    if segments.len() > usize::try_from(can.max_parts).unwrap_or(usize::MAX) {
        return Some(format!("the store takes {} parts at most", can.max_parts));
    }
    let (_, all_but_last) = segments.split_last()?;
    let short = all_but_last.iter().find(|segment| segment.sums.size < can.min_part_size)?;
    Some(format!("a segment of {} bytes is shorter than the store's smallest part", short.sums.size))
}

/// `now` is what the store holds under the first segment's name.
async fn attempt(
    store: &Arc<dyn Store>,
    names: &Names,
    segments: &[Segment],
    whole: Sums,
    now: ObjectMeta,
) -> Result<()> {
    let (first, rest) = segments.split_first().ok_or_else(|| names.error(ErrorKind::Invalid, "no segments"))?;
    if !first.is(&now) {
        // An attempt whose answer was lost may have succeeded.
        return prove(store, names, whole).await;
    }
    let aside = Segment { key: names.first_copy(), sums: first.sums, etag: None };
    store.copy(&first.key, &aside.key).await?;
    let copied = store.head(&aside.key).await?;
    if !(aside.is(&copied) && may_be_copies(&now, &copied)) {
        return Err(names.error(ErrorKind::Corrupt, "the copy of the first segment is not the same, by checksum"));
    }
    let sources: Vec<_> = std::iter::once(&aside).chain(rest).collect();
    let upload = store.create_multipart(&names.key).await?;
    if let Err(error) = put_together(store, &names.key, &upload, &sources).await {
        if let Err(error) = store.abort_multipart(&names.key, &upload).await {
            tracing::warn!("{error}; the upload stays until the bucket's rule for unfinished uploads removes it");
        }
        // Its answer may have been lost, in which case the proof succeeds.
        return prove(store, names, whole).await.map_err(|_| error);
    }
    prove(store, names, whole).await
}

async fn put_together(store: &Arc<dyn Store>, key: &Key, upload: &UploadId, sources: &[&Segment]) -> Result<()> {
    let copies: Vec<_> = (1_u32..)
        .zip(sources)
        .map(|(number, source)| {
            let sums = source.sums;
            store.copy_part(key, upload, number, &source.key, 0..sums.size, sums.crc64)
        })
        .collect();
    let receipts: Vec<PartReceipt> = stream::iter(copies).buffered(CONCURRENCY).try_collect().await?;
    store.complete_multipart(key, upload, &receipts, PutMode::Overwrite).await?;
    Ok(())
}

/// Succeeds if the object is the whole.
async fn prove(store: &Arc<dyn Store>, names: &Names, whole: Sums) -> Result<()> {
    let wrong = || names.error(ErrorKind::Corrupt, "the object that was put together is not what was appended");
    let meta = store.head(&names.key).await?;
    match is_whole(&whole, &meta) {
        Some(true) => return Ok(()),
        Some(false) => return Err(wrong()),
        None if whole.size > READ_BACK => {
            let message = "the store has no checksum to prove the whole by, and it is too long to be read back";
            return Err(names.error(ErrorKind::Unsupported, message));
        }
        None => {}
    }
    let options = GetOptions { range: (whole.size > 0).then_some(0..whole.size), if_match: meta.etag };
    let (mut crc, mut body) = (Crc64::new(), store.get(&names.key, options).await?.body);
    while let Some(bytes) = body.next().await.transpose()? {
        crc.update(&bytes);
    }
    if crc.value() == whole.crc64 { Ok(()) } else { Err(wrong()) }
}

/// Makes the object the first segment again, from its copy, and removes the copy.
async fn put_back(store: &Arc<dyn Store>, names: &Names, first: &Segment) -> Result<()> {
    let aside = names.first_copy();
    match store.head(&first.key).await {
        Ok(meta) if first.is(&meta) => {}
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {
            let kept = store.head(&aside).await?;
            store.copy(&aside, &first.key).await?;
            let back = store.head(&first.key).await?;
            // A copy is another object, with another entity tag.
            let copy = Segment { etag: None, ..first.clone() };
            if !(copy.is(&back) && may_be_copies(&kept, &back)) {
                return Err(names.error(ErrorKind::Corrupt, format!("the first segment is now only in {aside}")));
            }
        }
    }
    if store.head(&aside).await.is_ok()
        && let Err(error) = store.delete(&aside).await
    {
        tracing::warn!("{error}; it is a copy of the first segment and may be removed");
    }
    Ok(())
}

/// Whether nothing speaks against these being copies of each other.
fn may_be_copies(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    let comparable = match (one.checksum, other.checksum) {
        (Some(one), Some(other)) => std::mem::discriminant(&one) == std::mem::discriminant(&other),
        _ => false,
    };
    one.size == other.size && (!comparable || one.checksum == other.checksum)
}

/// Removes what the whole was made of, the last first, so that what is left after an interruption has no gap. The copy of the first
/// segment, by which readers know that the object is the whole, goes when nothing else is left that could mislead them.
async fn clean_up(store: &Arc<dyn Store>, names: &Names, parts: usize, whole: Sums) -> Result<()> {
    let stays = |error: &Error| tracing::warn!("{error}; its bytes are in {} and it may be removed", names.key);
    let mut is_clean = true;
    for number in (1..parts).rev() {
        if let Err(error) = store.delete(&names.part(number)).await {
            stays(&error);
            is_clean = false;
        }
    }
    let index = names.index();
    if is_clean && let Err(error) = store.delete(&index).await {
        tracing::debug!("{error}");
        // One that is there, from an attempt before this one or with a wrong byte in it, must not mislead.
        is_clean = matches!(store.head(&index).await, Err(error) if *error.kind() == ErrorKind::NotFound);
    }
    if !is_clean {
        let part = GrownPart { key: names.key.clone(), size: whole.size, crc64: whole.crc64 };
        write_index(store, names, &[part], whole).await?;
    }
    if let Err(error) = store.delete(&names.first_copy()).await {
        stays(&error);
    }
    Ok(())
}

/// The list of the parts, as it is stored.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Index {
    format: u32,
    size: u64,
    crc64: String,
    pub(super) parts: Vec<IndexPart>,
}

/// A part in it.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct IndexPart {
    pub(super) key: String,
    pub(super) size: u64,
    crc64: String,
}

/// Writes the object that says which parts, in which order, make the whole.
pub(super) async fn write_index(
    store: &Arc<dyn Store>,
    names: &Names,
    parts: &[GrownPart],
    whole: Sums,
) -> Result<Key, Error> {
    let hex = |crc: u64| format!("{crc:016x}");
    let parts = parts
        .iter()
        .map(|part| IndexPart { key: part.key.as_str().to_owned(), size: part.size, crc64: hex(part.crc64) })
        .collect();
    let index = Index { format: 1, size: whole.size, crc64: hex(whole.crc64), parts };
    let text = serde_json::to_vec_pretty(&index)
        .map_err(|error| names.error(ErrorKind::Invalid, "the index cannot be written as JSON").with_source(error))?;
    let key = names.index();
    let sums = Sums::of(&text);
    let answer = store.put(&key, Bytes::from(text), PutMode::Overwrite).await?;
    if sums.agree(answer.checksum) == Some(false) {
        return Err(names.error(ErrorKind::Corrupt, "the store received another index than was sent, by checksum"));
    }
    Ok(key)
}
