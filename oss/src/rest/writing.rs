//! Writes: whole objects, parts, copies, appends.
//!
//! Every upload is verified once, by the cheapest means that store and connection have:
//!
//! | | verified by |
//! | --- | --- |
//! | OSS | the CRC-64 in its answer, by us; where a damaged write could not be sent again, by `Content-MD5` as well, by the store |
//! | Amazon's S3 | `x-amz-checksum-crc64nvme`, by the store, per part and for the whole |
//! | other S3, over TLS or unsigned | `Content-MD5`, by the store; its entity tag, by us |
//! | other S3, over plain HTTP | the SHA-256 that the signature covers, by the store |
//!
//! The last would not be made safer by a `Content-MD5` beside it, which is a weaker hash of the same bytes and takes twice as
//! long; to compare the entity tag would cost the same. The entity tag of a completed upload costs nothing and is compared.
//!
//! After a reply was lost, a conditional write that is sent again is refused because of its own success; the object is then compared with what
//! was sent. That cannot be told from somebody else having written the very same bytes, which amounts to the same.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, Method};

use super::call::{Call, Dialect, Replay, Reply};
use super::fault::{Failure, Fault};
use super::refusal::Condition;
use super::xml::{self, Complete, Initiated, Part, Written};
use super::{RestStore, digest};
use crate::crc::{crc64, crc64_combine, crc64_nvme, crc64_nvme_combine};
use crate::error::{Error, ErrorKind, Result};
use crate::location::Key;
use crate::sign::encode_path;
use crate::store::{AppendResponse, Checksum, ETag, ObjectMeta, PartReceipt, PutMode, PutResponse, UploadId};

/// The type of what we write; nobody has told us another.
const CONTENT_TYPE: &str = "application/octet-stream";

/// The headers by which Amazon's S3 is told checksums.
const CRC64_NVME: &str = "x-amz-checksum-crc64nvme";
const CHECKSUM_ALGORITHM: &str = "x-amz-checksum-algorithm";
const CHECKSUM_TYPE: &str = "x-amz-checksum-type";

/// From this size on, in bytes, a refused copy is made in parts: OSS copies up to 1 GiB in one request, S3 up to 5.
const COPY_AT_ONCE: u64 = 1 << 30;

/// The parts of such a copy.
const COPY_PART: u64 = 512 << 20;

/// What was sent, for comparing it with what arrived.
struct Sent {
    body: Bytes,
    crc64: u64,
    /// Computed where the request carries it.
    md5: Option<[u8; 16]>,
    nvme: Option<u64>,
}

impl Sent {
    fn size(&self) -> u64 {
        length(&self.body)
    }

    /// Whether the store's answer to a put agrees. Nothing to compare with is agreement.
    fn agrees(&self, dialect: Dialect, headers: &HeaderMap) -> Result<(), String> {
        if dialect == Dialect::Oss {
            return match digest::of_answer(dialect, headers) {
                Some(Checksum::Crc64(theirs)) => digest::equal("CRC-64", self.crc64, theirs),
                _ => Ok(()),
            };
        }
        if let (Some(ours), Some(theirs)) = (self.nvme, digest::crc64_nvme(headers)) {
            return digest::equal("CRC-64/NVME", ours, theirs);
        }
        let etag = headers.get("etag").and_then(|value| value.to_str().ok()).unwrap_or_default();
        match (self.md5, digest::etag_md5(etag, headers)) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                Err(format!("the MD5 of the bytes is {}, the store says {etag}", hex::encode(ours)))
            }
            _ => Ok(()),
        }
    }

    /// Whether an object that is there is surely the one that was sent, by whichever checksum the store has of it.
    async fn is(&self, meta: &ObjectMeta) -> bool {
        match meta.checksum.filter(|_| meta.size == self.size()) {
            Some(checksum) => digest::is(&self.body, checksum).await,
            None => false,
        }
    }
}

fn etag_of(headers: &HeaderMap) -> Option<ETag> {
    headers.get("etag").and_then(|value| value.to_str().ok()).map(|etag| ETag(etag.to_owned()))
}

fn length(body: &Bytes) -> u64 {
    u64::try_from(body.len()).unwrap_or(u64::MAX)
}

impl RestStore {
    /// Gives a call its body and the checksums by which the store verifies it.
    async fn with_body<'a>(&self, mut call: Call<'a>, body: Bytes, vouch: bool) -> Result<(Call<'a>, Sent)> {
        let mut sent = Sent { crc64: crc64(&body), body: body.clone(), md5: None, nvme: None };
        match self.channel.dialect() {
            // The answer's CRC-64 shows damage, and the put is sent again; where it cannot be, the store has to look first.
            Dialect::Oss if !vouch => {}
            Dialect::S3 if self.is_amazon().await? => {
                let nvme = crc64_nvme(&body);
                sent.nvme = Some(nvme);
                call = call.header(CRC64_NVME, &digest::encode_crc64_nvme(nvme));
            }
            // Over plain HTTP the signature covers the body as well, but not every server looks: what comes back as the entity
            // tag is looked at by us.
            _ => {
                let md5 = digest::md5(&body).await;
                sent.md5 = Some(md5);
                call = call.header("content-md5", &digest::base64(&md5));
            }
        }
        call.body = body;
        Ok((call, sent))
    }

    async fn is_amazon(&self) -> Result<bool> {
        Ok(self.channel.endpoint().await?.amazon)
    }

    /// Makes a write fail when the object exists.
    fn if_absent<'a>(&self, mut call: Call<'a>, mode: PutMode) -> Call<'a> {
        if mode == PutMode::IfAbsent {
            call.condition = Condition::IsAbsent;
            call = match self.channel.dialect() {
                Dialect::Oss => call.header("x-oss-forbid-overwrite", "true"),
                Dialect::S3 => call.header("if-none-match", "*"),
            };
        }
        call
    }

    pub(super) async fn put_object(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<PutResponse> {
        let call = Call::new("PUT", Method::PUT, Some(key)).header("content-type", CONTENT_TYPE);
        let call = self.if_absent(call, mode);
        let (call, sent) = self.with_body(call, body, mode == PutMode::IfAbsent).await?;
        let dialect = self.channel.dialect();
        let check = |reply: &Reply| {
            sent.agrees(dialect, &reply.headers).map_err(|why| Fault::in_answer(ErrorKind::Corrupt, why))
        };
        match self.channel.run(&call, self.channel.deadline(), &check).await {
            Ok(reply) => {
                let checksum = digest::of_answer(dialect, &reply.headers);
                Ok(PutResponse { etag: etag_of(&reply.headers), checksum })
            }
            Err(failure) => {
                let (meta, error) = self.perhaps_done(key, failure).await?;
                if sent.is(&meta).await {
                    Ok(PutResponse { etag: meta.etag, checksum: meta.checksum })
                } else {
                    Err(error)
                }
            }
        }
    }

    /// The object as it is, when a refusal "it exists already" (or "the upload is gone") after a lost reply may be due to our
    /// own success; with the refusal, which is the outcome if it was not.
    async fn perhaps_done(&self, key: &Key, failure: Failure) -> Result<(ObjectMeta, Error)> {
        let Failure { error, ambiguous } = failure;
        let telling = matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound);
        if !(ambiguous && telling) {
            return Err(error);
        }
        match self.head_object(key).await {
            Ok(meta) => Ok((meta, error)),
            Err(_) => Err(error),
        }
    }

    pub(super) async fn initiate(&self, key: &Key) -> Result<UploadId> {
        let mut call = Call::new("CREATE-UPLOAD", Method::POST, Some(key))
            .query("uploads", "")
            .header("content-type", CONTENT_TYPE);
        if self.is_amazon().await? {
            call = call.header(CHECKSUM_ALGORITHM, "CRC64NVME").header(CHECKSUM_TYPE, "FULL_OBJECT");
        }
        let parse = |reply: &Reply| xml::parse::<Initiated>(&reply.bytes, "answer to the beginning of an upload");
        let check =
            |reply: &Reply| parse(reply).map(|_| ()).map_err(|why| Fault::in_answer(ErrorKind::Unavailable, why));
        let reply = self.channel.run(&call, self.channel.deadline(), &check).await?;
        match parse(&reply) {
            Ok(initiated) => Ok(UploadId(initiated.upload_id)),
            Err(why) => Err(self.channel.error(ErrorKind::Unavailable, "CREATE-UPLOAD", Some(key), why)),
        }
    }

    pub(super) async fn upload_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let call = part_call("PUT-PART", key, upload, number);
        let (call, sent) = self.with_body(call, body, false).await?;
        let dialect = self.channel.dialect();
        let check = |reply: &Reply| {
            sent.agrees(dialect, &reply.headers).map_err(|why| Fault::in_answer(ErrorKind::Corrupt, why))?;
            let untagged = || Fault::in_answer(ErrorKind::Unavailable, "the part got no entity tag");
            etag_of(&reply.headers).map(|_| ()).ok_or_else(untagged)
        };
        let reply = self.channel.run(&call, self.channel.deadline(), &check).await?;
        let etag = etag_of(&reply.headers).map(|etag| etag.0).unwrap_or_default();
        Ok(PartReceipt { number, etag, size: sent.size(), crc64: sent.crc64, crc64_nvme: sent.nvme })
    }

    pub(super) async fn upload_part_copy(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        source: &Key,
        range: Range<u64>,
        crc64: Option<u64>,
    ) -> Result<PartReceipt> {
        if range.is_empty() {
            let why = format!("a part cannot be made of the empty range {}..{}", range.start, range.end);
            return Err(self.channel.error(ErrorKind::Invalid, "COPY-PART", Some(key), why));
        }
        let name = if self.is_oss() { "x-oss-copy-source-range" } else { "x-amz-copy-source-range" };
        let call = part_call("COPY-PART", key, upload, number)
            .header(name, &format!("bytes={}-{}", range.start, range.end - 1));
        let call = self.with_source(call, source);
        let check = |reply: &Reply| {
            if let (Some(ours), Some(Checksum::Crc64(theirs))) = (crc64, crc_of_copy(&reply.headers)) {
                digest::equal("CRC-64", ours, theirs).map_err(|why| Fault::in_answer(ErrorKind::Corrupt, why))?;
            }
            written(reply).map(|_| ()).map_err(|why| Fault::in_answer(ErrorKind::Unavailable, why))
        };
        let reply = self.channel.run(&call, self.channel.deadline(), &check).await?;
        let (etag, crc64_nvme) =
            written(&reply).map_err(|why| self.channel.error(ErrorKind::Unavailable, "COPY-PART", Some(key), why))?;
        let crc64 = crc64.or(match crc_of_copy(&reply.headers) {
            Some(Checksum::Crc64(theirs)) => Some(theirs),
            _ => None,
        });
        let (size, crc64) = (range.end - range.start, crc64.unwrap_or_default());
        Ok(PartReceipt { number, etag: etag.0, size, crc64, crc64_nvme })
    }

    fn with_source<'a>(&self, call: Call<'a>, source: &Key) -> Call<'a> {
        let name = if self.is_oss() { "x-oss-copy-source" } else { "x-amz-copy-source" };
        call.header(name, &format!("/{}/{}", self.channel.root().bucket(), encode_path(source.as_str())))
    }

    /// `verify` says that the parts' CRCs are known.
    pub(super) async fn complete(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
        verify: bool,
    ) -> Result<PutResponse> {
        let mut sorted: Vec<&PartReceipt> = parts.iter().collect();
        sorted.sort_by_key(|part| part.number);
        if sorted.is_empty() || sorted.windows(2).any(|pair| pair[0].number == pair[1].number) {
            let why = if sorted.is_empty() { "an upload without parts" } else { "two parts with one number" };
            return Err(self.channel.error(ErrorKind::Invalid, "COMPLETE", Some(key), why));
        }
        let size: u64 = sorted.iter().map(|part| part.size).sum();
        let crc64 = sorted.iter().fold(0, |crc, part| crc64_combine(crc, part.crc64, part.size));
        let composite = digest::composite_etag(sorted.iter().map(|part| part.etag.as_str()));
        let list = sorted.iter().map(|part| Part { part_number: part.number, etag: &part.etag });
        let body = quick_xml::se::to_string(&Complete { parts: list.collect() })
            .map_err(|error| self.channel.error(ErrorKind::Invalid, "COMPLETE", Some(key), error.to_string()))?;

        let mut call = Call::new("COMPLETE", Method::POST, Some(key))
            .query("uploadId", upload.0.as_str())
            .header("content-type", "application/xml");
        call.body = Bytes::from(body);
        // The whole's CRC of the parts', where the store will compute the same. One part without leaves it to the store alone.
        let nvme = sorted.iter().try_fold(0, |crc, part| Some(crc64_nvme_combine(crc, part.crc64_nvme?, part.size)));
        let nvme = if self.is_amazon().await? { nvme } else { None };
        if let Some(nvme) = nvme {
            call = call
                .header(CRC64_NVME, &digest::encode_crc64_nvme(nvme))
                .header(CHECKSUM_TYPE, "FULL_OBJECT")
                .header("x-amz-mp-object-size", &size.to_string());
        }
        let call = self.if_absent(call, mode);
        let check =
            |reply: &Reply| written(reply).map(|_| ()).map_err(|why| Fault::in_answer(ErrorKind::Unavailable, why));
        // An answer to a later attempt can be "no such upload": the first one did it.
        let reply = match self.channel.run(&call, self.channel.deadline(), &check).await {
            Ok(reply) => reply,
            Err(failure) => {
                let (meta, error) = self.perhaps_done(key, failure).await?;
                let etag = meta.etag.as_ref().map(|etag| digest::bare(&etag.0).to_ascii_lowercase());
                let same = match (meta.checksum, nvme) {
                    (Some(Checksum::Crc64(theirs)), _) if verify => theirs == crc64,
                    (Some(Checksum::Crc64Nvme(theirs)), Some(ours)) => theirs == ours,
                    _ => etag.is_some() && etag == composite,
                };
                let is_ours = meta.size == size && same;
                return if is_ours { Ok(PutResponse { etag: meta.etag, checksum: meta.checksum }) } else { Err(error) };
            }
        };
        let (etag, stores_nvme) = written(&reply).ok().unzip();
        let stores_nvme = stores_nvme.flatten();
        let corrupt = |why: String| {
            let error = self.channel.error(ErrorKind::Corrupt, "COMPLETE", Some(key), why);
            Err(error.with_status(reply.status.as_u16(), None))
        };
        // Not sent again: the upload is used up. The caller knows where the bytes came from and begins anew.
        match digest::of_answer(self.channel.dialect(), &reply.headers) {
            Some(Checksum::Crc64(theirs)) if verify => {
                if let Err(why) = digest::equal("CRC-64", crc64, theirs) {
                    return corrupt(why);
                }
            }
            _ => {}
        }
        if let (Some(ours), Some(theirs)) = (nvme, stores_nvme)
            && let Err(why) = digest::equal("CRC-64/NVME", ours, theirs)
        {
            return corrupt(why);
        }
        if let (Dialect::S3, Some(etag), Some(composite)) = (self.channel.dialect(), &etag, &composite) {
            let theirs = digest::bare(&etag.0).to_ascii_lowercase();
            // Only tags of that form can be compared: other servers and encryption by KMS have their own.
            let comparable = theirs.rsplit_once('-').is_some_and(|(hash, _)| hash.len() == 32);
            let by_kms = reply.header("x-amz-server-side-encryption").is_some_and(|value| value.starts_with("aws:kms"));
            if comparable && !by_kms && theirs != *composite {
                return corrupt(format!("the parts make the entity tag {composite}, the store says {theirs}"));
            }
        }
        let checksum = match self.channel.dialect() {
            Dialect::Oss => digest::of_answer(Dialect::Oss, &reply.headers),
            Dialect::S3 => stores_nvme.map(Checksum::Crc64Nvme),
        };
        Ok(PutResponse { etag, checksum })
    }

    pub(super) async fn abort(&self, key: &Key, upload: &UploadId) -> Result<()> {
        let call = Call::new("ABORT-UPLOAD", Method::DELETE, Some(key)).query("uploadId", upload.0.as_str());
        match self.plain(&call).await {
            Ok(_) => Ok(()),
            Err(failure) if *failure.error.kind() == ErrorKind::NotFound => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    pub(super) async fn copy_object(&self, from: &Key, to: &Key) -> Result<PutResponse> {
        let mut call = self.with_source(Call::new("COPY", Method::PUT, Some(to)), from);
        if self.is_amazon().await? {
            // Also of a source that has another checksum or none.
            call = call.header(CHECKSUM_ALGORITHM, "CRC64NVME");
        }
        let check =
            |reply: &Reply| written(reply).map(|_| ()).map_err(|why| Fault::in_answer(ErrorKind::Unavailable, why));
        match self.channel.run(&call, self.channel.deadline(), &check).await {
            Ok(reply) => {
                let (etag, nvme) = written(&reply).ok().unzip();
                let checksum = crc_of_copy(&reply.headers).or(nvme.flatten().map(Checksum::Crc64Nvme));
                Ok(PutResponse { etag, checksum })
            }
            // Too large for one request: the stores say so in different words.
            Err(failure) if *failure.error.kind() == ErrorKind::Invalid && failure.error.status().is_some() => {
                let source = self.head_object(from).await?;
                if source.size < COPY_AT_ONCE {
                    return Err(failure.error);
                }
                self.copy_in_parts(&source, to).await
            }
            Err(failure) => Err(failure.error),
        }
    }

    async fn copy_in_parts(&self, source: &ObjectMeta, to: &Key) -> Result<PutResponse> {
        let upload = self.initiate(to).await?;
        let copied = self.copy_all_parts(source, to, &upload).await;
        if copied.is_err() {
            // The reason for giving up is worth more than that of a failed tidying, which costs storage and no data.
            if let Err(error) = self.abort(to, &upload).await {
                tracing::warn!(%error, "parts of an upload that was given up stay behind");
            }
        }
        copied
    }

    async fn copy_all_parts(&self, source: &ObjectMeta, to: &Key, upload: &UploadId) -> Result<PutResponse> {
        let mut parts = Vec::new();
        let mut start = 0;
        for number in 1.. {
            let end = (start + COPY_PART).min(source.size);
            parts.push(self.upload_part_copy(to, upload, number, &source.key, start..end, None).await?);
            start = end;
            if start >= source.size {
                break;
            }
        }
        let done = self.complete(to, upload, &parts, PutMode::Overwrite, false).await?;
        if let (Some(Checksum::Crc64(theirs)), Some(Checksum::Crc64(ours))) = (done.checksum, source.checksum) {
            digest::equal("CRC-64", ours, theirs)
                .map_err(|why| self.channel.error(ErrorKind::Corrupt, "COPY", Some(to), why))?;
        }
        Ok(done)
    }

    pub(super) async fn append_object(&self, key: &Key, position: u64, body: Bytes) -> Result<AppendResponse> {
        if !self.is_oss() {
            let why = "S3 has no append operation";
            return Err(self.channel.error(ErrorKind::Unsupported, "APPEND", Some(key), why));
        }
        let call = Call::new("APPEND", Method::POST, Some(key))
            .query("append", "")
            .query("position", position.to_string())
            .header("content-type", CONTENT_TYPE);
        let expected = position.saturating_add(length(&body));
        // The answer's CRC is the whole object's, which only the caller knows, so the store has to verify these bytes.
        let (mut call, sent) = self.with_body(call, body, true).await?;
        call.replay = Replay::UnlessAmbiguous;
        let check = |reply: &Reply| {
            let next = next_position(reply);
            if next.is_some_and(|next| next != expected) {
                let why = format!("the object should be {expected} bytes long now, the store says {next:?}");
                return Err(Fault::in_answer(ErrorKind::Corrupt, why));
            }
            match digest::of_answer(Dialect::Oss, &reply.headers) {
                Some(Checksum::Crc64(theirs)) if position == 0 => {
                    digest::equal("CRC-64", sent.crc64, theirs).map_err(|why| Fault::in_answer(ErrorKind::Corrupt, why))
                }
                _ => Ok(()),
            }
        };
        let reply = self.channel.run(&call, self.channel.deadline(), &check).await.map_err(Error::from)?;
        let crc64 = match digest::of_answer(Dialect::Oss, &reply.headers) {
            Some(Checksum::Crc64(value)) => Some(value),
            _ => None,
        };
        Ok(AppendResponse { next_position: next_position(&reply).unwrap_or(expected), crc64 })
    }
}

fn part_call<'a>(operation: &'static str, key: &'a Key, upload: &'a UploadId, number: u32) -> Call<'a> {
    Call::new(operation, Method::PUT, Some(key))
        .query("partNumber", number.to_string())
        .query("uploadId", upload.0.as_str())
}

/// The entity tag in the body of an answer, and the CRC-64/NVME where it has one.
fn written(reply: &Reply) -> Result<(ETag, Option<u64>), String> {
    let body: Written = xml::parse(&reply.bytes, "answer to a write")?;
    if body.etag.is_empty() {
        Err("the store's answer to a write has no entity tag".to_owned())
    } else {
        Ok((ETag(body.etag), digest::decode_crc64_nvme(&body.crc64_nvme)))
    }
}

/// The checksum that OSS gives of a copy.
fn crc_of_copy(headers: &HeaderMap) -> Option<Checksum> {
    digest::of_answer(Dialect::Oss, headers)
}

fn next_position(reply: &Reply) -> Option<u64> {
    reply.header("x-oss-next-append-position")?.trim().parse().ok()
}
