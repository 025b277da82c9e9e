//! What the store tells of uploads in progress.

use std::sync::{Mutex, PoisonError};

use http::Method;

use super::call::{Call, Dialect, Reply};
use super::fault::Fault;
use super::xml::{self, Parts, Uploads};
use super::{RestStore, digest, parse_time};
use crate::error::{ErrorKind, Result};
use crate::location::Key;
use crate::store::{Checksum, PartMeta, PartPage, UploadId, UploadMarker, UploadMeta, UploadPage};

/// The most entries on a page, by either vendor's limit.
const PAGE: &str = "1000";

impl RestStore {
    pub(super) async fn parts_page(&self, key: &Key, upload: &UploadId, after: u32) -> Result<PartPage> {
        let call = Call::new("LIST-PARTS", Method::GET, Some(key))
            .query("uploadId", upload.0.as_str())
            .query("part-number-marker", after.to_string())
            .query("max-parts", PAGE);
        let page: Parts = self.page(&call, "list of an upload's parts").await?;
        let continuation = page.is_truncated.then_some(page.next_part_number_marker);
        if continuation.is_some_and(|next| next <= after) {
            return Err(self.endless(&call));
        }
        let parts = page.parts.into_iter().map(|part| PartMeta {
            number: part.part_number,
            size: part.size,
            etag: part.etag,
            checksum: part.hash_crc64ecma.map(Checksum::Crc64).or_else(|| {
                let nvme = part.crc64_nvme.as_deref().and_then(digest::decode_crc64_nvme);
                nvme.map(Checksum::Crc64Nvme)
            }),
        });
        Ok(PartPage { parts: parts.collect(), continuation })
    }

    pub(super) async fn uploads_page(&self, prefix: &str, after: Option<&UploadMarker>) -> Result<UploadPage> {
        let place = Key::new(prefix);
        let mut call = Call::new("LIST-UPLOADS", Method::GET, None)
            .query("uploads", "")
            .query("encoding-type", "url")
            .query("max-uploads", PAGE);
        if !prefix.is_empty() {
            call = call.query("prefix", prefix);
        }
        if let Some(after) = after {
            call = call.query("key-marker", after.key.as_str()).query("upload-id-marker", after.id.0.as_str());
        }
        let page: Uploads = self.page(&call, "list of uploads").await?;
        let is_encoded = page.encoding_type.eq_ignore_ascii_case("url");
        let key_of = |text: &str| {
            if !is_encoded {
                return Some(Key::new(text));
            }
            xml::decode_key(text, self.channel.dialect() == Dialect::S3).map(Key::new)
        };
        let uploads = page.uploads.iter().filter_map(|upload| {
            let meta = UploadMeta {
                // One that is not UTF-8 is none of ours.
                key: key_of(&upload.key)?,
                id: UploadId(upload.upload_id.clone()),
                initiated: parse_time(&upload.initiated),
            };
            Some(meta)
        });
        let uploads = uploads.collect();
        let next = page.is_truncated.then(|| {
            let key = key_of(&page.next_key_marker)?;
            Some(UploadMarker { key, id: UploadId(page.next_upload_id_marker.clone()) })
        });
        let continuation = match next {
            None => None,
            Some(Some(next)) if after != Some(&next) && !next.key.as_str().is_empty() => Some(next),
            Some(_) => {
                // Going on would never end, and stopping would hide what is there.
                let why = "the store says there is more and not where";
                return Err(self.channel.error(ErrorKind::Unavailable, "LIST-UPLOADS", Some(&place), why));
            }
        };
        Ok(UploadPage { uploads, continuation })
    }

    fn endless(&self, call: &Call<'_>) -> crate::error::Error {
        let why = "the store says there is more and not where";
        self.channel.error(ErrorKind::Unavailable, call.operation, call.key, why)
    }

    /// Asks for a page; one that was cut off on the way is asked for again.
    async fn page<T: serde::de::DeserializeOwned + Send>(&self, call: &Call<'_>, what: &str) -> Result<T> {
        let parsed = Mutex::new(None);
        let check = |reply: &Reply| {
            let page = xml::parse(&reply.bytes, what);
            let page = page.map_err(|why| Fault::in_answer(ErrorKind::Unavailable, why))?;
            *parsed.lock().unwrap_or_else(PoisonError::into_inner) = Some(page);
            Ok(())
        };
        self.channel.run(call, self.channel.deadline(), &check).await.map_err(|failure| failure.error)?;
        let page = parsed.into_inner().unwrap_or_else(PoisonError::into_inner);
        page.ok_or_else(|| self.channel.error(ErrorKind::Unavailable, call.operation, call.key, "no answer was read"))
    }
}
