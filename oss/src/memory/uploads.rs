//! Uploads in parts: taking parts in, putting them together, and telling what there is.

use bytes::Bytes;

use super::{Keeps, MemoryStore, Operation, Upload};
use crate::crc::{crc64, crc64_nvme};
use crate::error::{ErrorKind, Result};
use crate::location::Key;
use crate::store::{Checksum, PartMeta, PartPage, PartReceipt, UploadId, UploadMarker, UploadMeta, UploadPage};

impl MemoryStore {
    pub(super) fn add_part(
        &self,
        operation: Operation,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
        sent: &Bytes,
    ) -> Result<PartReceipt> {
        if !(1..=self.capabilities.max_parts).contains(&number) {
            return Err(self.error(
                ErrorKind::Invalid,
                operation,
                key,
                format!("no part can have the number {number}"),
            ));
        }
        if body.len() as u64 > self.capabilities.max_part_size {
            return Err(self.error(ErrorKind::Invalid, operation, key, "the part is too large"));
        }
        let mut state = self.state();
        let etag = format!("\"part-{}\"", state.tick());
        match state.uploads.get_mut(upload).filter(|upload| upload.key == *key) {
            Some(upload) => upload.parts.insert(number, (etag.clone(), body)),
            None => return Err(self.error(ErrorKind::NotFound, operation, key, "there is no such upload")),
        };
        Ok(PartReceipt { number, etag, size: sent.len() as u64, crc64: crc64(sent), crc64_nvme: None })
    }

    /// The parts in the order of `receipts`, put together.
    pub(super) fn assemble(&self, key: &Key, upload: &Upload, receipts: &[PartReceipt]) -> Result<Bytes> {
        let refuse = |message: String| Err(self.error(ErrorKind::Invalid, Operation::CompleteMultipart, key, message));
        let (mut whole, mut last) = (Vec::new(), 0);
        for (index, receipt) in receipts.iter().enumerate() {
            let number = receipt.number;
            let Some((_, bytes)) = upload.parts.get(&number).filter(|(etag, _)| *etag == receipt.etag) else {
                return refuse(format!("part {number} has not arrived or has been sent again"));
            };
            if number <= last {
                return refuse(format!("part {number} is out of order"));
            }
            if (bytes.len() as u64) < self.capabilities.min_part_size && index + 1 < receipts.len() {
                return refuse(format!("part {number} is too small"));
            }
            last = number;
            whole.extend_from_slice(bytes);
        }
        if receipts.is_empty() { refuse("an upload has at least one part".into()) } else { Ok(whole.into()) }
    }

    pub(super) fn parts_page(&self, key: &Key, upload: &UploadId, after: u32) -> Result<PartPage> {
        let operation = Operation::ListParts;
        let fault = self.begin(operation, key, None, 0)?;
        let page = {
            let state = self.state();
            let Some(upload) = state.uploads.get(upload).filter(|upload| upload.key == *key) else {
                return Err(self.error(ErrorKind::NotFound, operation, key, "there is no such upload"));
            };
            let mut parts = upload.parts.range(after.saturating_add(1)..).map(|(number, (etag, bytes))| PartMeta {
                number: *number,
                size: bytes.len() as u64,
                etag: etag.clone(),
                checksum: match self.keeps {
                    Keeps::Crc64 => Some(Checksum::Crc64(crc64(bytes))),
                    Keeps::Crc64Nvme => Some(Checksum::Crc64Nvme(crc64_nvme(bytes))),
                    Keeps::Nothing | Keeps::Md5 => None,
                },
            });
            let shown: Vec<_> = parts.by_ref().take(self.page).collect();
            let continuation = parts.next().and(shown.last()).map(|last| last.number);
            PartPage { parts: shown, continuation }
        };
        self.end(operation, key, fault, page)
    }

    pub(super) fn uploads_page(&self, prefix: &str, after: Option<&UploadMarker>) -> Result<UploadPage> {
        let (operation, place) = (Operation::ListUploads, Key::new(prefix));
        let fault = self.begin(operation, &place, None, 0)?;
        let mut found: Vec<UploadMeta> = {
            let state = self.state();
            let uploads = state.uploads.iter().filter(|(_, upload)| upload.key.as_str().starts_with(prefix));
            let meta = |(id, upload): (&UploadId, &Upload)| UploadMeta {
                key: upload.key.clone(),
                id: id.clone(),
                initiated: Some(upload.initiated),
            };
            uploads.map(meta).collect()
        };
        found.sort_by(|a, b| (&a.key, &a.id.0).cmp(&(&b.key, &b.id.0)));
        found.retain(|upload| after.is_none_or(|after| (&upload.key, &upload.id.0) > (&after.key, &after.id.0)));
        let is_cut = found.len() > self.page;
        found.truncate(self.page);
        let last = found.last().filter(|_| is_cut);
        let continuation = last.map(|last| UploadMarker { key: last.key.clone(), id: last.id.clone() });
        self.end(operation, &place, fault, UploadPage { uploads: found, continuation })
    }
}
