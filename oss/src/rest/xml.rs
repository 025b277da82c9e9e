//! The XML bodies of the protocol. Unknown elements are ignored: every server adds some.

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

/// The longest XML answer that is read. A page of a listing holds 1000 keys of at most 1 KiB, which URL encoding can triple,
/// and twice that in other elements.
pub(crate) const LIMIT: usize = 16 << 20;

/// Parses a body. The error says what was expected and not what was there, which can be anything.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], what: &str) -> Result<T, String> {
    let text = std::str::from_utf8(body).map_err(|_| format!("the store's {what} is not UTF-8"))?;
    // S3 sends white space to keep the connection alive while it puts parts together.
    quick_xml::de::from_str(text.trim_start()).map_err(|error| format!("the store's {what} cannot be read: {error}"))
}

/// `<Error>`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ErrorBody {
    pub code: String,
    pub message: String,
    pub request_id: String,
    pub region: String,
    pub endpoint: String,
    pub server_time: String,
}

/// Whether a body is an `<Error>`, which S3 can send with status 200 after a long operation failed.
pub(crate) fn is_error(body: &[u8]) -> bool {
    let mut rest = body.trim_ascii_start();
    if rest.starts_with(b"<?xml") {
        let end = rest.windows(2).position(|pair| pair == b"?>").map_or(rest.len(), |at| at + 2);
        rest = rest[end..].trim_ascii_start();
    }
    rest.starts_with(b"<Error>") || rest.starts_with(b"<Error ")
}

/// `<InitiateMultipartUploadResult>`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Initiated {
    pub upload_id: String,
}

/// `<CopyObjectResult>`, `<CopyPartResult>` and `<CompleteMultipartUploadResult>`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Written {
    #[serde(rename = "ETag")]
    pub etag: String,
    /// In base64. S3 gives it here, and not in a header as for a put.
    #[serde(rename = "ChecksumCRC64NVME")]
    pub crc64_nvme: String,
}

/// `<CompleteMultipartUpload>`.
#[derive(Debug, Serialize)]
#[serde(rename = "CompleteMultipartUpload")]
pub(crate) struct Complete<'a> {
    #[serde(rename = "Part")]
    pub parts: Vec<Part<'a>>,
}

/// A part in the list that completes an upload.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Part<'a> {
    pub part_number: u32,
    #[serde(rename = "ETag")]
    pub etag: &'a str,
}

/// `<ListPartsResult>`. What must be there has no default, so that a page that is something else is refused.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Parts {
    pub is_truncated: bool,
    #[serde(default)]
    pub next_part_number_marker: u32,
    #[serde(rename = "Part", default)]
    pub parts: Vec<ListedPart>,
}

/// A part in the list of those that have arrived.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ListedPart {
    pub part_number: u32,
    #[serde(rename = "ETag")]
    pub etag: String,
    pub size: u64,
    /// OSS tells it.
    #[serde(default)]
    pub hash_crc64ecma: Option<u64>,
    /// S3 tells it, in base64.
    #[serde(rename = "ChecksumCRC64NVME", default)]
    pub crc64_nvme: Option<String>,
}

/// `<ListMultipartUploadsResult>`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Uploads {
    pub is_truncated: bool,
    #[serde(default)]
    pub encoding_type: String,
    #[serde(default)]
    pub next_key_marker: String,
    #[serde(default)]
    pub next_upload_id_marker: String,
    #[serde(rename = "Upload", default)]
    pub uploads: Vec<ListedUpload>,
}

/// An upload in the list of those in progress.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ListedUpload {
    pub key: String,
    pub upload_id: String,
    #[serde(default)]
    pub initiated: String,
}

/// Decodes a key of a listing with `encoding-type=url`. Amazon writes a space as `+` and a plus as `%2B`; OSS writes neither.
/// None when the key is not UTF-8.
pub(crate) fn decode_key(text: &str, plus_is_space: bool) -> Option<String> {
    let spaced = if plus_is_space && text.contains('+') { text.replace('+', " ") } else { text.to_owned() };
    percent_decode_str(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_as_each_store_encodes_them() {
        assert_eq!(decode_key("a+b%2Bc", true).unwrap(), "a b+c");
        assert_eq!(decode_key("a+b%2Bc", false).unwrap(), "a+b+c");
        assert_eq!(decode_key("%FF", false), None);
    }

    #[test]
    fn errors_are_recognised_inside_a_success() {
        for body in ["<Error><Code>x</Code></Error>", " \n<?xml version=\"1.0\"?>\n <Error>", "<Error xmlns=\"\">"] {
            assert!(is_error(body.as_bytes()), "{body}");
        }
        for body in ["", "<?xml", "<CopyObjectResult><Error>", "<ErrorDocument>"] {
            assert!(!is_error(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn completion_is_escaped() {
        let body = Complete { parts: vec![Part { part_number: 1, etag: "\"a<b\"" }] };
        assert_eq!(
            quick_xml::se::to_string(&body).unwrap().replace('"', "&quot;"),
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>&quot;a&lt;b&quot;</ETag></Part></CompleteMultipartUpload>"
        );
    }
}
