//! Digests of bodies and objects: MD5, the CRC that OSS sends, and S3's choice of checksums.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use md5::Digest as _;

use super::content::Content;
use super::error::{Outcome, Refusal};
use super::request::Call;

/// A checksum of S3: the algorithm as headers spell it, the value in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checksum {
    pub(crate) algorithm: &'static str,
    pub(crate) value: String,
    /// Of the checksums of the parts, and not of the bytes.
    pub(crate) composite: bool,
}

/// The algorithms, as `x-amz-checksum-<name>` spells them.
const ALGORITHMS: [&str; 4] = ["crc64nvme", "crc32", "crc32c", "sha256"];

impl Checksum {
    /// The checksum of some bytes; `None` if the algorithm is not one of ours.
    pub(crate) fn of(algorithm: &str, content: &Content) -> Option<Self> {
        let algorithm = known(algorithm)?;
        let short = |crc: u64| u32::try_from(crc).map(|crc| crc.to_be_bytes().to_vec()).ok();
        let bytes = match algorithm {
            "crc64nvme" => content.checksum(CrcAlgorithm::Crc64Nvme).to_be_bytes().to_vec(),
            "crc32" => short(content.checksum(CrcAlgorithm::Crc32IsoHdlc))?,
            "crc32c" => short(content.checksum(CrcAlgorithm::Crc32Iscsi))?,
            _ => sha256(content).to_vec(),
        };
        Some(Self { algorithm, value: STANDARD.encode(bytes), composite: false })
    }

    /// What S3 stores if the client sends none.
    pub(crate) fn default_of(content: &Content) -> Self {
        let value = STANDARD.encode(content.checksum(CrcAlgorithm::Crc64Nvme).to_be_bytes());
        Self { algorithm: "crc64nvme", value, composite: false }
    }

    /// The checksum of parts' checksums, `value-N`.
    pub(crate) fn composite(algorithm: &str, parts: &[&Checksum]) -> Option<Self> {
        let joined: Vec<u8> = parts.iter().filter_map(|part| STANDARD.decode(&part.value).ok()).flatten().collect();
        let mut sum = Self::of(algorithm, &joined.into())?;
        sum.value = format!("{}-{}", sum.value, parts.len());
        sum.composite = true;
        Some(sum)
    }

    pub(crate) fn header(&self) -> String {
        format!("x-amz-checksum-{}", self.algorithm)
    }

    /// The name of its element in XML.
    pub(crate) fn element(&self) -> String {
        format!("Checksum{}", self.algorithm.to_ascii_uppercase())
    }

    pub(crate) fn kind(&self) -> &'static str {
        if self.composite { "COMPOSITE" } else { "FULL_OBJECT" }
    }
}

/// The canonical spelling of an algorithm that is known.
pub(crate) fn known(algorithm: &str) -> Option<&'static str> {
    ALGORITHMS.into_iter().find(|known| known.eq_ignore_ascii_case(algorithm))
}

/// The checksum that a request says its body has, from a header or a trailer.
pub(crate) fn announced(call: &Call) -> Outcome<Option<Checksum>> {
    let mut found = None;
    for (name, value) in call.head.headers.iter() {
        let Some(algorithm) = name.as_str().strip_prefix("x-amz-checksum-") else { continue };
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        match algorithm {
            "algorithm" | "type" | "mode" => continue,
            _ => {}
        }
        let algorithm = known(algorithm).ok_or_else(|| Refusal::not_implemented(name.as_str()))?;
        if found.is_some() {
            return Err(Refusal::new(
                400,
                "InvalidRequest",
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
            ));
        }
        found = Some(Checksum { algorithm, value, composite: false });
    }
    Ok(found)
}

/// Checks what a request says about its body against the body: `Content-MD5` and S3's checksums. Gives the
/// checksum to keep.
pub(crate) fn verify(call: &Call, content: &Content) -> Outcome<Option<Checksum>> {
    if let Some(announced) = call.head.header("content-md5") {
        let wanted = STANDARD.decode(&announced).ok().filter(|md5| md5.len() == 16);
        let Some(wanted) = wanted else {
            return Err(Refusal::new(400, "InvalidDigest", "The Content-MD5 you specified is not valid.")
                .field("Content-MD5", announced));
        };
        if wanted != md5_raw(content) {
            let code = if call.head.is_oss() { "InvalidDigest" } else { "BadDigest" };
            return Err(Refusal::new(400, code, "The Content-MD5 you specified did not match what we received.")
                .field("ExpectedDigest", announced)
                .field("CalculatedDigest", STANDARD.encode(md5_raw(content))));
        }
    }
    let Some(announced) = announced(call)? else { return Ok(None) };
    let actual = Checksum::of(announced.algorithm, content);
    if actual.as_ref() != Some(&announced) {
        return Err(Refusal::new(
            400,
            "BadDigest",
            format!(
                "The {} you specified did not match the calculated checksum.",
                announced.algorithm.to_ascii_uppercase()
            ),
        ));
    }
    Ok(actual)
}

pub(crate) fn md5_raw(content: &Content) -> [u8; 16] {
    let mut md5 = md5::Md5::new();
    for chunk in content.chunks(0..content.len()) {
        md5.update(&chunk);
    }
    md5.finalize().into()
}

pub(crate) fn md5_hex(content: &Content) -> String {
    hex::encode(md5_raw(content))
}

pub(crate) fn sha256(content: &Content) -> [u8; 32] {
    let mut sha = sha2::Sha256::new();
    for chunk in content.chunks(0..content.len()) {
        sha.update(&chunk);
    }
    sha.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_have_their_published_check_values() {
        let of = |algorithm: &str| {
            hex::encode(STANDARD.decode(Checksum::of(algorithm, &"123456789".into()).unwrap().value).unwrap())
        };
        // From the catalogue of parametrised CRC algorithms.
        assert_eq!(of("crc32"), "cbf43926");
        assert_eq!(of("CRC32C"), "e3069283");
        assert_eq!(of("crc64nvme"), "ae8b14860a799888");
        // FIPS 180-4's example.
        assert_eq!(
            hex::encode(sha256(&"abc".into())),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        // RFC 1321's test suite.
        assert_eq!(md5_hex(&"abc".into()), "900150983cd24fb0d6963f7d28e17f72");
        assert!(Checksum::of("crc7", &"".into()).is_none());
    }

    #[test]
    fn a_composite_checksum_is_of_the_parts_checksums() {
        let parts = [Checksum::of("sha256", &"a".into()).unwrap(), Checksum::of("sha256", &"b".into()).unwrap()];
        let joined = [sha256(&"a".into()), sha256(&"b".into())].concat();
        let want = format!("{}-2", STANDARD.encode(sha256(&joined.into())));
        assert_eq!(Checksum::composite("SHA256", &[&parts[0], &parts[1]]).unwrap().value, want);
    }
}
