//! Checksums of bytes in flight, in whichever algorithm the store keeps.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::ETAG;
use http::{HeaderMap, HeaderName};
use md5::{Digest as _, Md5};

use super::call::Dialect;
use super::names;
use crate::crc::{Crc64, Crc64Nvme};
use crate::sign::sha256_hex as sha256;
use crate::store::Checksum;

/// From this size on a body is hashed on a thread of its own, so that other requests go on: MD5 takes 1.5 ms per MiB,
/// SHA-256 between 0.6 ms and 2.5, depending on the processor. The CRCs take 0.05 ms and are computed where the body is.
const OFFLOAD: usize = 512 << 10;

/// A checksum in the making, and what it has to be.
pub(crate) enum Digest {
    Crc64(Crc64, u64),
    Crc64Nvme(Crc64Nvme, u64),
    Md5(Box<Md5>, [u8; 16]),
}

impl Digest {
    pub(crate) fn new(expected: Checksum) -> Self {
        match expected {
            Checksum::Crc64(value) => Self::Crc64(Crc64::new(), value),
            Checksum::Crc64Nvme(value) => Self::Crc64Nvme(Crc64Nvme::new(), value),
            Checksum::Md5(value) => Self::Md5(Box::default(), value),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc64(digest, _) => digest.update(bytes),
            Self::Crc64Nvme(digest, _) => digest.update(bytes),
            Self::Md5(digest, _) => digest.update(bytes),
        }
    }

    /// Compares; the error names both values.
    pub(crate) fn finish(self) -> Result<(), String> {
        match self {
            Self::Crc64(digest, expected) => equal("CRC-64", digest.value(), expected),
            Self::Crc64Nvme(digest, expected) => equal("CRC-64/NVME", digest.value(), expected),
            Self::Md5(digest, expected) => {
                let got: [u8; 16] = digest.finalize().into();
                if got == expected {
                    return Ok(());
                }
                Err(format!("the MD5 of the bytes is {}, the store says {}", hex::encode(got), hex::encode(expected)))
            }
        }
    }
}

/// Compares two CRCs; the error names both.
pub(crate) fn equal(name: &str, ours: u64, theirs: u64) -> Result<(), String> {
    if ours == theirs {
        Ok(())
    } else {
        Err(format!("the {name} of the bytes is {ours:016x}, the store says {theirs:016x}"))
    }
}

/// The MD5 of a body.
pub(crate) async fn md5(body: &Bytes) -> [u8; 16] {
    aside(body, |body| Md5::digest(body).into()).await
}

/// The SHA-256 of a body, in hexadecimal.
pub(crate) async fn sha256_hex(body: &Bytes) -> String {
    aside(body, sha256).await
}

/// Whether a body has this checksum.
pub(crate) async fn is(body: &Bytes, expected: Checksum) -> bool {
    aside(body, move |body| {
        let mut ours = Digest::new(expected);
        ours.update(body);
        ours.finish().is_ok()
    })
    .await
}

/// Computes something of a body, on a thread of its own when that takes long.
async fn aside<T: Default + Send + 'static>(body: &Bytes, compute: impl FnOnce(&[u8]) -> T + Send + 'static) -> T {
    if body.len() < OFFLOAD {
        return compute(body);
    }
    let body = body.clone();
    let computing = tokio::task::spawn_blocking(move || compute(&body));
    // It fails only when the runtime is shutting down, and with it whoever asked: the request will not be sent.
    computing.await.unwrap_or_default()
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// The checksum of the whole object that a store's answer names.
pub(crate) fn of_answer(dialect: Dialect, headers: &HeaderMap) -> Option<Checksum> {
    match dialect {
        Dialect::Oss => text(headers, &names::OSS_CRC64)?.trim().parse().ok().map(Checksum::Crc64),
        Dialect::S3 => {
            let md5 = || etag_md5(headers.get(ETAG)?.to_str().ok()?, headers).map(Checksum::Md5);
            crc64_nvme(headers).map(Checksum::Crc64Nvme).or_else(md5)
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The CRC-64/NVME of the whole object in an answer of S3. Not one that was put together of the parts' own, which nobody can
/// compute who does not know the parts.
pub(crate) fn crc64_nvme(headers: &HeaderMap) -> Option<u64> {
    let value = text(headers, &names::S3_CRC64_NVME)?;
    let composite = text(headers, &names::S3_CHECKSUM_TYPE).is_some_and(|kind| kind.eq_ignore_ascii_case("COMPOSITE"));
    decode_crc64_nvme(value).filter(|_| !composite)
}

/// A CRC-64/NVME as S3 writes it.
pub(crate) fn decode_crc64_nvme(text: &str) -> Option<u64> {
    let bytes: [u8; 8] = BASE64_STANDARD.decode(text.trim()).ok()?.try_into().ok()?;
    Some(u64::from_be_bytes(bytes))
}

/// The same for S3 to read.
pub(crate) fn encode_crc64_nvme(value: u64) -> String {
    base64(&value.to_be_bytes())
}

/// The MD5 that an entity tag of S3 is, when it is one: not for objects made of parts, and not for those encrypted with keys
/// of KMS or of the customer, whose tags look the same and are something else.
pub(crate) fn etag_md5(etag: &str, headers: &HeaderMap) -> Option<[u8; 16]> {
    let etag = bare(etag);
    let by_kms = || text(headers, &names::S3_ENCRYPTION).is_some_and(|value| value.starts_with("aws:kms"));
    if etag.len() != 32 || by_kms() || headers.contains_key(&names::S3_CUSTOMER_KEY) {
        return None;
    }
    hex::decode(etag).ok()?.try_into().ok()
}

/// An entity tag without its quotes.
pub(crate) fn bare(etag: &str) -> &str {
    etag.trim().trim_matches('"')
}

/// The entity tag that S3 gives an object made of parts: the MD5 of the parts' MD5s, and their number. None when a part's tag
/// is no MD5.
pub(crate) fn composite_etag<'a>(parts: impl ExactSizeIterator<Item = &'a str>) -> Option<String> {
    let count = parts.len();
    let mut whole = Md5::new();
    for etag in parts {
        let part: [u8; 16] = hex::decode(bare(etag)).ok()?.try_into().ok()?;
        whole.update(part);
    }
    Some(format!("{}-{count}", hex::encode(whole.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), http::HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn each_store_s_checksum_is_found_and_compared() {
        let body = b"123456789";
        for (dialect, pairs) in [
            (Dialect::Oss, headers(&[("x-oss-hash-crc64ecma", "11051210869376104954")])),
            (Dialect::S3, headers(&[("x-amz-checksum-crc64nvme", "rosUhgp5mIg="), ("etag", "\"x\"")])),
            (Dialect::S3, headers(&[("etag", "\"25f9e794323b453885f5181f1b624d0b\"")])),
        ] {
            let expected = of_answer(dialect, &pairs).unwrap();
            let mut digest = Digest::new(expected);
            digest.update(&body[..4]);
            digest.update(&body[4..]);
            digest.finish().unwrap();
            let mut digest = Digest::new(expected);
            digest.update(b"12345678X");
            assert!(digest.finish().unwrap_err().contains("the store says"));
        }
    }

    #[test]
    fn tags_that_are_no_md5_are_not_taken_for_one() {
        let md5 = "\"25f9e794323b453885f5181f1b624d0b\"";
        assert!(etag_md5(md5, &headers(&[])).is_some());
        assert!(etag_md5(md5, &headers(&[("x-amz-server-side-encryption", "AES256")])).is_some());
        assert!(etag_md5(md5, &headers(&[("x-amz-server-side-encryption", "aws:kms")])).is_none());
        assert!(etag_md5("\"25f9e794323b453885f5181f1b624d0b-2\"", &headers(&[])).is_none());
        assert!(etag_md5("\"abc\"", &headers(&[])).is_none());
    }

    #[test]
    fn the_tag_of_parts() {
        let parts = ["\"d41d8cd98f00b204e9800998ecf8427e\"", "25f9e794323b453885f5181f1b624d0b"];
        let mut both = Vec::new();
        for part in parts {
            both.extend(hex::decode(bare(part)).unwrap());
        }
        assert_eq!(composite_etag(parts.into_iter()).unwrap(), format!("{}-2", hex::encode(Md5::digest(&both))));
        assert_eq!(composite_etag(["x"].into_iter()), None);
    }

    #[tokio::test]
    async fn large_bodies_are_hashed_the_same() {
        let body = Bytes::from(vec![7; OFFLOAD + 1]);
        assert_eq!(md5(&body).await, <[u8; 16]>::from(Md5::digest(&body)));
        assert_eq!(sha256_hex(&body).await, sha256(&body));
        assert!(is(&body, Checksum::Md5(md5(&body).await)).await);
        assert!(!is(&body, Checksum::Crc64(1)).await);
    }
}
