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

/// `<ListBucketResult>`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Listing {
    pub is_truncated: bool,
    pub encoding_type: String,
    pub next_continuation_token: Option<String>,
    pub contents: Vec<Entry>,
    pub common_prefixes: Vec<CommonPrefix>,
}

/// An object in a listing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Entry {
    pub key: String,
    #[serde(default)]
    pub last_modified: String,
    #[serde(rename = "ETag", default)]
    pub etag: String,
    pub size: u64,
    #[serde(default)]
    pub storage_class: String,
    #[serde(default)]
    pub restore_info: String,
}

/// A prefix keys were rolled up to.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CommonPrefix {
    pub prefix: String,
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
    fn a_listing_with_unknown_elements() {
        let body = br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix></Prefix>
            <KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
            <Contents><Key>a%20b%0A</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;abc&quot;</ETag>
            <ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><Size>5</Size><StorageClass>STANDARD</StorageClass>
            <Owner><ID>x</ID></Owner></Contents>
            <CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes>
            <Contents><Key>e</Key><Size>0</Size></Contents>
            <NextContinuationToken>tok=</NextContinuationToken></ListBucketResult>"#;
        let listing: Listing = parse(body, "listing").unwrap();
        assert!(listing.is_truncated && listing.encoding_type == "url");
        assert_eq!(listing.next_continuation_token.as_deref(), Some("tok="));
        assert_eq!(listing.contents.len(), 2, "elements of two kinds may be mixed");
        assert_eq!((listing.contents[0].etag.as_str(), listing.contents[0].size), ("\"abc\"", 5));
        assert_eq!(decode_key(&listing.contents[0].key, false).unwrap(), "a b\n");
        assert_eq!(listing.common_prefixes[0].prefix, "d/");
        let empty: Listing = parse(b"<ListBucketResult></ListBucketResult>", "listing").unwrap();
        assert!(empty.contents.is_empty() && !empty.is_truncated);
    }

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
