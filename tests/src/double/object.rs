//! Whole objects: GET, HEAD, PUT, COPY, DELETE.

use std::ops::Range;
use std::sync::Mutex;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use http::Method;

use super::auth::{Caller, authorize};
use super::checksum::{Checksum, md5_hex, verify};
use super::config::{Action, Dialect};
use super::content::Content;
use super::error::{Outcome, Refusal};
use super::operation::{Reply, lock};
use super::request::{Call, Head, decode, encode};
use super::world::{Object, ObjectKind, World};
use super::xml::{self, Xml};

/// The largest object that can be copied in one request, in bytes.
const MAX_COPY: u64 = 5 << 30;

/// An ETag as each service writes it: OSS in upper case, both in quotes.
pub(crate) fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

/// A digest as each service spells it in an ETag.
pub(crate) fn etag_case(dialect: Dialect, hex: String) -> String {
    if dialect == Dialect::Oss { hex.to_ascii_uppercase() } else { hex }
}

pub(crate) fn get(world: &mut World, call: &Call, caller: &Caller) -> Outcome<Reply> {
    let head = &call.head;
    let bucket = head.bucket()?;
    let (oss, is_head) = (head.is_oss(), head.method == Method::HEAD);
    let missing = !world.bucket(bucket)?.objects.contains_key(&head.key);
    // S3 does not tell whether a key exists to those who may not list.
    if missing && !oss {
        authorize(world, head, caller, Action::List, bucket, &head.key)?;
    }
    let object = world.object(bucket, &head.key)?;
    check_conditions(head, "", object)?;
    let mut reply = Reply { headers: object.headers.clone(), ..Reply::empty(200) }
        .header("etag", quoted(&object.etag))
        .header("last-modified", httpdate::fmt_http_date(object.modified))
        .header("accept-ranges", "bytes");
    if oss {
        let class = if object.archived { "Archive" } else { "Standard" };
        reply = reply
            .header("x-oss-object-type", object.kind.as_str())
            .header("x-oss-storage-class", class)
            .header("x-oss-hash-crc64ecma", object.crc64.to_string());
        if object.kind == ObjectKind::Appendable {
            reply = reply.header("x-oss-next-append-position", object.content.len().to_string());
        }
        if object.kind == ObjectKind::Normal
            && let Ok(md5) = hex::decode(&object.etag)
        {
            reply = reply.header("content-md5", STANDARD.encode(md5));
        }
    } else if object.archived {
        reply = reply.header("x-amz-storage-class", "GLACIER");
    }
    if object.archived && !is_head {
        return Err(archived(head));
    }
    let len = object.content.len();
    let standard = !oss || head.header("x-oss-range-behavior").as_deref() == Some("standard");
    let range = match head.header("range") {
        Some(text) => parse_range(&text, len, standard).map_err(|()| unsatisfiable(&text, len))?,
        None => None,
    };
    match range {
        Some(range) => {
            reply.status = 206;
            reply = reply.header("content-range", format!("bytes {}-{}/{len}", range.start, range.end - 1));
            reply.content = object.content.slice(range);
        }
        None => {
            if let Some(sum) = object.checksum.as_ref().filter(|_| head.header("x-amz-checksum-mode").is_some()) {
                reply = reply.header(&sum.header(), sum.value.clone()).header("x-amz-checksum-type", sum.kind());
            }
            reply.content = object.content.clone();
        }
    }
    reply.is_object = true;
    Ok(reply)
}

fn archived(head: &Head) -> Refusal {
    let refusal = Refusal::new(403, "InvalidObjectState", "The operation is not valid for the object's state");
    if head.is_oss() { refusal.field("ObjectName", &head.key) } else { refusal.field("StorageClass", "GLACIER") }
}

fn unsatisfiable(range: &str, len: u64) -> Refusal {
    Refusal::new(416, "InvalidRange", "The requested range cannot be satisfied.")
        .field("RangeRequested", range)
        .field("ActualObjectSize", len.to_string())
        .header("content-range", format!("bytes */{len}"))
}

/// The range that a Range header asks for; `None` for the whole object, an error for a range that is not there.
///
/// By default OSS ignores a range that does not lie within the object *entirely* and sends everything with
/// status 200; with `x-oss-range-behavior: standard` it does what S3 and the standard say.
pub(crate) fn parse_range(text: &str, len: u64, standard: bool) -> Result<Option<Range<u64>>, ()> {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let number = |text: &str| -> Option<u64> {
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
    };
    let (start, end, inside) = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1), last < len),
        (Some(first), None) if last.is_empty() => (first, len, first < len),
        (None, Some(suffix)) if first.is_empty() => (len.saturating_sub(suffix), len, suffix > 0 && suffix <= len),
        _ => return Ok(None),
    };
    if !standard && !inside {
        return Ok(None);
    }
    let end = end.min(len);
    if start >= end { Err(()) } else { Ok(Some(start..end)) }
}

/// `If-Match` and its kin, for an object or (with a prefix like `x-oss-copy-source-`) for the source of a copy.
fn check_conditions(head: &Head, prefix: &str, object: &Object) -> Outcome<()> {
    let header = |name: &str| head.header(&format!("{prefix}{name}"));
    let listed = |list: &str| {
        list.split(',').any(|etag| {
            let etag = etag.trim();
            etag == "*" || etag.trim_matches('"') == object.etag
        })
    };
    // Dates in HTTP have whole seconds.
    let second = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let date = |name: &str| header(name).and_then(|text| httpdate::parse_http_date(&text).ok()).map(second);
    if header("if-match").is_some_and(|list| !listed(&list)) {
        return Err(Refusal::precondition_failed("If-Match"));
    }
    if date("if-unmodified-since").is_some_and(|date| second(object.modified) > date) && header("if-match").is_none() {
        return Err(Refusal::precondition_failed("If-Unmodified-Since"));
    }
    let unchanged = match header("if-none-match") {
        Some(list) => listed(&list),
        None => date("if-modified-since").is_some_and(|date| second(object.modified) <= date),
    };
    if !unchanged {
        return Ok(());
    }
    if !prefix.is_empty() && !head.is_oss() {
        return Err(Refusal::precondition_failed("x-amz-copy-source-If-None-Match"));
    }
    Err(Refusal::new(304, "NotModified", "Not Modified")
        .header("etag", quoted(&object.etag))
        .header("last-modified", httpdate::fmt_http_date(object.modified)))
}

/// Whether what the request says about an object that is already there lets it be replaced.
pub(crate) fn check_overwrite(world: &mut World, head: &Head, bucket: &str, key: &str) -> Outcome<()> {
    let existing = world.bucket(bucket)?.objects.get(key);
    let (if_match, if_none_match) = (head.header("if-match"), head.header("if-none-match"));
    if head.is_oss() {
        if if_match.is_some() || if_none_match.is_some() {
            return Err(Refusal::not_implemented("If-Match and If-None-Match on a write"));
        }
        if existing.is_some() && head.header("x-oss-forbid-overwrite").as_deref() == Some("true") {
            let message = "The object you specified already exists and can not be overwritten.";
            return Err(Refusal::new(409, "FileAlreadyExists", message));
        }
        return Ok(());
    }
    match if_none_match.as_deref() {
        None => {}
        Some("*") if existing.is_some() => return Err(Refusal::precondition_failed("If-None-Match")),
        Some("*") => {}
        Some(_) => return Err(Refusal::not_implemented("If-None-Match other than * on a write")),
    }
    match (if_match, existing) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(Refusal::no_such_key(key)),
        (Some(etag), Some(object)) if etag.trim_matches('"') == object.etag => Ok(()),
        (Some(_), Some(_)) => Err(Refusal::precondition_failed("If-Match")),
    }
}

/// The headers that are kept with an object and come back with it.
pub(crate) fn kept_headers(head: &Head) -> Vec<(String, String)> {
    let meta = format!("{}meta-", head.dialect.prefix());
    let mut kept: Vec<(String, String)> = head
        .headers
        .iter()
        .filter(|(name, _)| {
            let name = name.as_str();
            name.starts_with(&meta)
                || [
                    "cache-control",
                    "content-disposition",
                    "content-encoding",
                    "content-language",
                    "content-type",
                    "expires",
                ]
                .contains(&name)
        })
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        // What `aws-chunked` says is about the transfer, and not about the object.
        .filter(|(name, value)| name != "content-encoding" || value != "aws-chunked")
        .collect();
    if !kept.iter().any(|(name, _)| name == "content-type") {
        let default = if head.is_oss() { "application/octet-stream" } else { "binary/octet-stream" };
        kept.push(("content-type".to_owned(), default.to_owned()));
    }
    kept
}

pub(crate) fn put(world: &Mutex<World>, call: &Call) -> Outcome<Reply> {
    let head = &call.head;
    let content = Content::from(call.body.clone());
    let checksum = verify(call, &content)?.or_else(|| (!head.is_oss()).then(|| Checksum::default_of(&content)));
    let etag = etag_case(head.dialect, md5_hex(&content));
    let crc64 = content.checksum(CrcAlgorithm::Crc64Xz);
    let mut world = lock(world);
    let bucket = head.bucket()?;
    check_overwrite(&mut world, head, bucket, &head.key)?;
    let object = Object {
        content,
        etag: etag.clone(),
        crc64,
        kind: ObjectKind::Normal,
        modified: world.now(),
        headers: kept_headers(head),
        archived: false,
        checksum: checksum.clone(),
    };
    world.bucket(bucket)?.objects.insert(head.key.clone(), object);
    let mut reply = Reply::empty(200).header("etag", quoted(&etag));
    if head.is_oss() {
        let md5 = hex::decode(&etag).map(|md5| STANDARD.encode(md5)).unwrap_or_default();
        reply = reply.header("x-oss-hash-crc64ecma", crc64.to_string()).header("content-md5", md5);
    } else if let Some(sum) = checksum {
        reply = reply.header(&sum.header(), sum.value.clone()).header("x-amz-checksum-type", sum.kind());
    }
    Ok(reply)
}

/// The object that a copy-source header names, once the caller may read it and the conditions on it hold.
pub(crate) fn copy_source(world: &mut World, head: &Head, caller: &Caller) -> Outcome<Object> {
    let text = head.own_header("copy-source").unwrap_or_default();
    let decoded = decode(&text)?;
    let (bucket, key) = decoded
        .strip_prefix('/')
        .unwrap_or(&decoded)
        .split_once('/')
        .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
        .ok_or_else(|| {
            Refusal::invalid_argument(
                "copy-source",
                &text,
                "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
            )
        })?;
    authorize(world, head, caller, Action::Read, bucket, key)?;
    let object = world.object(bucket, key)?.clone();
    check_conditions(head, &format!("{}copy-source-", head.dialect.prefix()), &object)?;
    if object.archived {
        return Err(archived(head));
    }
    Ok(object)
}

pub(crate) fn copy(world: &mut World, call: &Call, caller: &Caller) -> Outcome<Reply> {
    let head = &call.head;
    let mut object = copy_source(world, head, caller)?;
    if object.content.len() > MAX_COPY {
        let message =
            "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120";
        return Err(Refusal::new(400, "InvalidRequest", message));
    }
    let bucket = head.bucket()?;
    check_overwrite(world, head, bucket, &head.key)?;
    if head.own_header("metadata-directive").as_deref() == Some("REPLACE") {
        object.headers = kept_headers(head);
    }
    object.modified = world.now();
    object.kind = ObjectKind::Normal;
    object.etag = etag_case(head.dialect, md5_hex(&object.content));
    object.checksum = Some(Checksum::default_of(&object.content));
    let mut document = Xml::new();
    document.element("CopyObjectResult", |xml| {
        xml.text("LastModified", &super::time::iso(object.modified));
        xml.text("ETag", &quoted(&object.etag));
        if let Some(sum) = object.checksum.as_ref().filter(|_| !head.is_oss()) {
            xml.text(&sum.element(), &sum.value);
            xml.text("ChecksumType", sum.kind());
        }
    });
    let mut reply = Reply::document(document);
    if head.is_oss() {
        reply = reply.header("etag", quoted(&object.etag)).header("x-oss-hash-crc64ecma", object.crc64.to_string());
    }
    world.bucket(bucket)?.objects.insert(head.key.clone(), object);
    Ok(reply)
}

pub(crate) fn delete(world: &mut World, call: &Call) -> Outcome<Reply> {
    world.bucket(call.head.bucket()?)?.objects.remove(&call.head.key);
    Ok(Reply::empty(204))
}

pub(crate) fn delete_many(world: &mut World, call: &Call, caller: &Caller) -> Outcome<Reply> {
    let head = &call.head;
    let content = Content::from(call.body.clone());
    let checked = verify(call, &content)?.is_some() || head.headers.contains_key("content-md5");
    if !checked {
        let (code, message) = if head.is_oss() {
            ("MissingArgument", "Missing Some Required Arguments: Content-MD5")
        } else {
            ("InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
        };
        return Err(Refusal::new(400, code, message));
    }
    let root = xml::parse(&call.body).filter(|root| root.name == "Delete").ok_or_else(Refusal::malformed_xml)?;
    let quiet = root.child_text("Quiet") == Some("true");
    let objects: Vec<&xml::Node> = root.children.iter().filter(|child| child.name == "Object").collect();
    let keys: Option<Vec<&str>> =
        objects.iter().map(|object| object.child_text("Key").filter(|key| !key.is_empty())).collect();
    let keys = keys.filter(|keys| (1..=1000).contains(&keys.len())).ok_or_else(Refusal::malformed_xml)?;
    let bucket = head.bucket()?;
    let encoded = head.query.get("encoding-type") == Some("url") || root.child_text("EncodingType") == Some("url");
    let spell = |key: &str| if encoded { encode(key) } else { key.to_owned() };
    let mut document = Xml::new();
    let mut denied = Vec::new();
    for key in &keys {
        match authorize(world, head, caller, Action::Delete, bucket, key) {
            Ok(()) => {}
            // OSS refuses the whole request, S3 key by key.
            Err(refusal) if head.is_oss() => return Err(refusal),
            Err(_) => denied.push(*key),
        }
    }
    for key in keys.iter().filter(|key| !denied.contains(key)) {
        world.bucket(bucket)?.objects.remove(*key);
    }
    document.element("DeleteResult", |xml| {
        if encoded {
            xml.text("EncodingType", "url");
        }
        for key in &keys {
            if denied.contains(key) {
                xml.element("Error", |xml| {
                    xml.text("Key", &spell(key));
                    xml.text("Code", "AccessDenied");
                    xml.text("Message", "Access Denied");
                });
            } else if !quiet {
                xml.element("Deleted", |xml| xml.text("Key", &spell(key)));
            }
        }
    });
    Ok(Reply::document(document))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_by_the_standard() {
        let range = |text: &str, len| parse_range(text, len, true);
        assert_eq!(range("bytes=0-0", 10), Ok(Some(0..1)));
        assert_eq!(range("bytes=2-5", 10), Ok(Some(2..6)));
        assert_eq!(range("bytes=2-", 10), Ok(Some(2..10)));
        assert_eq!(range("bytes=-3", 10), Ok(Some(7..10)));
        assert_eq!(range("bytes=-30", 10), Ok(Some(0..10)));
        assert_eq!(range("bytes=5-100", 10), Ok(Some(5..10)));
        for gone in ["bytes=10-", "bytes=10-20", "bytes=-0"] {
            assert_eq!(range(gone, 10), Err(()), "{gone}");
        }
        assert_eq!(range("bytes=0-", 0), Err(()));
        for nonsense in ["bytes=5-2", "byte=0-1", "bytes=-", "bytes=a-b", "bytes=+1-2", "bytes=0-1,2-3", ""] {
            assert_eq!(range(nonsense, 10), Ok(None), "{nonsense}");
        }
    }

    #[test]
    fn oss_ignores_a_range_that_is_not_inside() {
        let range = |text: &str| parse_range(text, 1000, false);
        assert_eq!(range("bytes=0-499"), Ok(Some(0..500)));
        assert_eq!(range("bytes=-500"), Ok(Some(500..1000)));
        assert_eq!(range("bytes=-1000"), Ok(Some(0..1000)));
        for outside in ["bytes=0-1000", "bytes=1000-2000", "bytes=1000-", "bytes=-2000"] {
            assert_eq!(range(outside), Ok(None), "{outside}");
        }
        assert_eq!(parse_range("bytes=0-", 0, false), Ok(None));
    }
}
