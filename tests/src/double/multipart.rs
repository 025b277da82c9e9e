//! Multipart uploads and their rules: numbers, order, sizes, ETags.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crc_fast::{CrcAlgorithm, checksum_combine};

use super::auth::Caller;
use super::checksum::{Checksum, announced, known, md5_hex, verify};
use super::config::Dialect;
use super::content::Content;
use super::error::{Outcome, Refusal};
use super::listing::{page_limit, speller};
use super::object::{check_overwrite, copy_source, etag_case, kept_headers, parse_range, quoted};
use super::operation::{Reply, lock};
use super::request::{Call, Head};
use super::time::iso;
use super::world::{Object, ObjectKind, Part, Upload, World};
use super::xml::{self, Xml};

const MAX_PARTS: u64 = 10_000;

fn upload<'w>(world: &'w mut World, head: &Head) -> Outcome<&'w mut Upload> {
    let id = head.query.get("uploadId").unwrap_or("");
    let uploads = &mut world.bucket(head.bucket()?)?.uploads;
    uploads.get_mut(id).filter(|upload| upload.key == head.key).ok_or_else(|| Refusal::no_such_upload(id))
}

fn part_number(head: &Head) -> Outcome<u32> {
    let text = head.query.get("partNumber").unwrap_or("");
    let number = text.parse().ok().filter(|number| (1..=MAX_PARTS).contains(number));
    number.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| {
        Refusal::invalid_argument("partNumber", text, "Part number must be an integer between 1 and 10000, inclusive")
    })
}

pub(crate) fn create(world: &mut World, call: &Call) -> Outcome<Reply> {
    let head = &call.head;
    check_overwrite(world, head, head.bucket()?, &head.key)?;
    let algorithm = head.header("x-amz-checksum-algorithm");
    if let Some(name) = algorithm.as_deref().filter(|name| known(name).is_none()) {
        return Err(Refusal::not_implemented(name));
    }
    let upload = Upload {
        id: world.next_upload_id(),
        key: head.key.clone(),
        initiated: world.now(),
        parts: BTreeMap::new(),
        headers: kept_headers(head),
        checksum_algorithm: algorithm.clone(),
        checksum_type: head.header("x-amz-checksum-type"),
    };
    let (_, spell) = speller(head)?;
    let mut document = Xml::new();
    document.element("InitiateMultipartUploadResult", |xml| {
        xml.text("Bucket", head.bucket.as_deref().unwrap_or_default());
        xml.text("Key", &spell(&head.key));
        xml.text("UploadId", &upload.id);
    });
    world.bucket(head.bucket()?)?.uploads.insert(upload.id.clone(), upload);
    let reply = Reply::document(document);
    Ok(match algorithm {
        Some(algorithm) => reply.header("x-amz-checksum-algorithm", algorithm),
        None => reply,
    })
}

pub(crate) fn upload_part(world: &Mutex<World>, call: &Call) -> Outcome<Reply> {
    let head = &call.head;
    let number = part_number(head)?;
    let content = Content::from(call.body.clone());
    let checksum = verify(call, &content)?;
    let part = Part {
        etag: etag_case(head.dialect, md5_hex(&content)),
        crc64: content.checksum(CrcAlgorithm::Crc64Xz),
        modified: lock(world).now(),
        content,
        checksum,
    };
    let mut reply = Reply::empty(200).header("etag", quoted(&part.etag));
    if head.is_oss() {
        reply = reply.header("x-oss-hash-crc64ecma", part.crc64.to_string());
    } else if let Some(sum) = &part.checksum {
        reply = reply.header(&sum.header(), sum.value.clone());
    }
    let mut world = lock(world);
    upload(&mut world, head)?.parts.insert(number, part);
    Ok(reply)
}

pub(crate) fn copy_part(world: &mut World, call: &Call, caller: &Caller) -> Outcome<Reply> {
    let head = &call.head;
    let number = part_number(head)?;
    let source = copy_source(world, head, caller)?;
    let content = match head.own_header("copy-source-range") {
        None => source.content,
        Some(text) => {
            let len = source.content.len();
            // Unlike a range of a GET, this one must have both ends and lie within the object.
            let range =
                parse_range(&text, len, false).ok().flatten().filter(|_| !text.ends_with('-') && !text.contains("=-"));
            let range = range.ok_or_else(|| {
                let message = format!("Range specified is not valid for source object of size: {len}");
                if head.is_oss() {
                    Refusal::new(416, "InvalidRange", message)
                } else {
                    Refusal::invalid_argument("x-amz-copy-source-range", &text, message)
                }
            })?;
            source.content.slice(range)
        }
    };
    let part = Part {
        etag: etag_case(head.dialect, md5_hex(&content)),
        crc64: content.checksum(CrcAlgorithm::Crc64Xz),
        modified: world.now(),
        // Amazon gives a copied part the checksum that the upload was begun with.
        checksum: upload(world, head)?.checksum_algorithm.as_deref().and_then(|name| Checksum::of(name, &content)),
        content,
    };
    let mut document = Xml::new();
    document.element("CopyPartResult", |xml| {
        xml.text("LastModified", &iso(part.modified));
        xml.text("ETag", &quoted(&part.etag));
        if let Some(sum) = &part.checksum {
            xml.text(&sum.element(), &sum.value);
        }
    });
    let mut reply = Reply::document(document);
    if head.is_oss() {
        reply = reply.header("etag", quoted(&part.etag)).header("x-oss-hash-crc64ecma", part.crc64.to_string());
    }
    upload(world, head)?.parts.insert(number, part);
    Ok(reply)
}

/// One part that a completion names.
struct Named<'a> {
    number: u32,
    etag: &'a str,
    checksum: Option<(&'static str, &'a str)>,
}

/// The parts that the body of a completion names.
fn named_parts(root: &xml::Node) -> Option<Vec<Named<'_>>> {
    if root.name != "CompleteMultipartUpload" {
        return None;
    }
    let parts = root.children.iter().filter(|child| child.name == "Part");
    let parts: Option<Vec<Named<'_>>> = parts
        .map(|part| {
            let checksum = part.children.iter().find_map(|child| {
                let algorithm = known(child.name.strip_prefix("Checksum")?)?;
                Some((algorithm, child.text.as_str()))
            });
            let number = part.child_text("PartNumber")?.parse().ok()?;
            Some(Named { number, etag: part.child_text("ETag")?.trim_matches('"'), checksum })
        })
        .collect();
    parts.filter(|parts| !parts.is_empty())
}

pub(crate) fn complete(world: &mut World, call: &Call) -> Outcome<Reply> {
    let head = &call.head;
    let bucket = head.bucket()?;
    let min = world.config.min_part_size.unwrap_or(match head.dialect {
        Dialect::Oss => 100 << 10,
        Dialect::S3 => 5 << 20,
    });
    let now = world.now();
    let upload = upload(world, head)?.clone();
    let all = head.is_oss() && head.header("x-oss-complete-all").as_deref() == Some("yes");
    let numbers = if all {
        if !call.body.is_empty() {
            return Err(Refusal::new(400, "InvalidArgument", "x-oss-complete-all does not go with a body."));
        }
        upload.parts.keys().copied().collect()
    } else {
        let root = xml::parse(&call.body).ok_or_else(Refusal::malformed_xml)?;
        let named = named_parts(&root).ok_or_else(Refusal::malformed_xml)?;
        check_named(&upload, &named)?;
        named.iter().map(|part| part.number).collect::<Vec<u32>>()
    };
    let parts: Vec<&Part> = numbers.iter().filter_map(|number| upload.parts.get(number)).collect();
    let Some((_, but_last)) = parts.split_last() else {
        return Err(Refusal::malformed_xml());
    };
    if let Some(at) = but_last.iter().position(|part| part.content.len() < min) {
        return Err(Refusal::new(
            400,
            "EntityTooSmall",
            "Your proposed upload is smaller than the minimum allowed size",
        )
        .field("ProposedSize", parts[at].content.len().to_string())
        .field("MinSizeAllowed", min.to_string())
        .field("PartNumber", numbers[at].to_string())
        .field("ETag", &parts[at].etag));
    }
    check_overwrite(world, head, bucket, &head.key)?;

    let content = parts.iter().fold(Content::default(), |whole, part| whole.followed_by(part.content.clone()));
    let crc64 =
        parts.iter().fold(0, |crc, part| checksum_combine(CrcAlgorithm::Crc64Xz, crc, part.crc64, part.content.len()));
    let digests: Vec<u8> = parts.iter().filter_map(|part| hex::decode(&part.etag).ok()).flatten().collect();
    let etag = format!("{}-{}", etag_case(head.dialect, md5_hex(&digests.into())), parts.len());
    let checksum = if head.is_oss() { None } else { Some(whole_checksum(call, &upload, &parts, &content)?) };

    let mut document = Xml::new();
    document.element("CompleteMultipartUploadResult", |xml| {
        xml.text("Location", &format!("http://{}/{}", head.host, head.key));
        xml.text("Bucket", bucket);
        xml.text("Key", &head.key);
        xml.text("ETag", &quoted(&etag));
        if let Some(sum) = &checksum {
            xml.text(&sum.element(), &sum.value);
            xml.text("ChecksumType", sum.kind());
        }
    });
    let object = Object {
        content,
        etag: etag.clone(),
        crc64,
        kind: ObjectKind::Multipart,
        modified: now,
        headers: upload.headers,
        archived: false,
        checksum,
    };
    let bucket = world.bucket(bucket)?;
    bucket.uploads.remove(&upload.id);
    bucket.objects.insert(head.key.clone(), object);
    let reply = Reply::document(document);
    Ok(if head.is_oss() {
        reply.header("etag", quoted(&etag)).header("x-oss-hash-crc64ecma", crc64.to_string())
    } else {
        reply
    })
}

/// Order, presence, ETags and checksums of the parts that a completion names.
fn check_named(upload: &Upload, named: &[Named<'_>]) -> Outcome<()> {
    if !named.is_sorted_by(|a, b| a.number < b.number) {
        return Err(Refusal::new(400, "InvalidPartOrder", "The list of parts was not in ascending order."));
    }
    for part in named {
        let stored = upload.parts.get(&part.number).filter(|stored| stored.etag == part.etag);
        let sums_agree = match (part.checksum, stored.and_then(|stored| stored.checksum.as_ref())) {
            (Some((algorithm, value)), Some(stored)) => stored.algorithm == algorithm && stored.value == value,
            (Some(_), None) => false,
            (None, _) => true,
        };
        if stored.is_none() || !sums_agree {
            return Err(Refusal::new(400, "InvalidPart", "One or more of the specified parts could not be found or the specified entity tag might not have matched the part's entity tag.")
                .field("UploadId", &upload.id)
                .field("PartNumber", part.number.to_string())
                .field("ETag", part.etag));
        }
    }
    Ok(())
}

/// The checksum of the finished object: of the kind that was asked for when the upload began, and equal to the one
/// that the completion announces, if it does.
fn whole_checksum(call: &Call, upload: &Upload, parts: &[&Part], content: &Content) -> Outcome<Checksum> {
    let sums: Option<Vec<&Checksum>> = parts.iter().map(|part| part.checksum.as_ref()).collect();
    let full = upload.checksum_type.as_deref() == Some("FULL_OBJECT");
    let sum = match (&upload.checksum_algorithm, sums) {
        (Some(algorithm), Some(sums)) if !full && known(algorithm) != Some("crc64nvme") => {
            Checksum::composite(algorithm, &sums)
        }
        (Some(algorithm), _) => Checksum::of(algorithm, content),
        (None, _) => None,
    };
    let sum = sum.unwrap_or_else(|| Checksum::default_of(content));
    if let Some(size) = call.head.header("x-amz-mp-object-size").filter(|size| *size != content.len().to_string()) {
        return Err(Refusal::new(
            400,
            "InvalidRequest",
            "The provided 'x-amz-mp-object-size' header does not match what was computed.",
        )
        .field("x-amz-mp-object-size", size));
    }
    if call.head.header("x-amz-checksum-type").is_some_and(|kind| Some(kind) != upload.checksum_type) {
        return Err(Refusal::new(400, "BadDigest", "The checksum type is not the one the upload was begun with."));
    }
    match announced(call)? {
        Some(announced) if announced.algorithm != sum.algorithm || announced.value != sum.value => Err(Refusal::new(
            400,
            "BadDigest",
            format!("The {} you specified did not match the calculated checksum.", announced.algorithm),
        )),
        _ => Ok(sum),
    }
}

pub(crate) fn abort(world: &mut World, call: &Call) -> Outcome<Reply> {
    let id = upload(world, &call.head)?.id.clone();
    world.bucket(call.head.bucket()?)?.uploads.remove(&id);
    Ok(Reply::empty(204))
}

pub(crate) fn list_parts(world: &mut World, call: &Call) -> Outcome<Reply> {
    let head = &call.head;
    let limit = page_limit(head, "max-parts", 1000)?;
    let marker = head.query.number("part-number-marker")?.unwrap_or(0);
    let upload = upload(world, head)?;
    let after: Vec<(&u32, &Part)> = upload.parts.iter().filter(|(number, _)| u64::from(**number) > marker).collect();
    let shown = &after[..after.len().min(usize::try_from(limit).unwrap_or(1000))];
    let (url, spell) = speller(head)?;
    let mut document = Xml::new();
    document.element("ListPartsResult", |xml| {
        xml.text("Bucket", head.bucket.as_deref().unwrap_or_default());
        xml.text("Key", &spell(&head.key));
        if url {
            xml.text("EncodingType", "url");
        }
        xml.text("UploadId", &upload.id);
        xml.text("PartNumberMarker", &marker.to_string());
        xml.text("NextPartNumberMarker", &shown.last().map_or(0, |(number, _)| **number).to_string());
        xml.text("MaxParts", &limit.to_string());
        xml.text("IsTruncated", if shown.len() < after.len() { "true" } else { "false" });
        for (number, part) in shown {
            xml.element("Part", |xml| {
                xml.text("PartNumber", &number.to_string());
                xml.text("LastModified", &iso(part.modified));
                xml.text("ETag", &quoted(&part.etag));
                xml.text("Size", &part.content.len().to_string());
                if head.is_oss() {
                    xml.text("HashCrc64ecma", &part.crc64.to_string());
                } else if let Some(sum) = &part.checksum {
                    xml.text(&sum.element(), &sum.value);
                }
            });
        }
    });
    Ok(Reply::document(document))
}

pub(crate) fn list_uploads(world: &mut World, call: &Call) -> Outcome<Reply> {
    let head = &call.head;
    let query = |name: &str| head.query.get(name).unwrap_or("");
    if !query("delimiter").is_empty() {
        return Err(Refusal::not_implemented("delimiter in a list of uploads"));
    }
    let limit = page_limit(head, "max-uploads", 1000)?;
    let (url, spell) = speller(head)?;
    let (prefix, key_marker, id_marker) = (query("prefix"), query("key-marker"), query("upload-id-marker"));
    let bucket = world.bucket(head.bucket()?)?;
    let mut uploads: Vec<&Upload> = bucket
        .uploads
        .values()
        .filter(|upload| upload.key.starts_with(prefix))
        .filter(|upload| {
            let key = upload.key.as_str();
            // Without an upload's id the marker leaves out all uploads of its key.
            key > key_marker || (key == key_marker && !id_marker.is_empty() && upload.id.as_str() > id_marker)
        })
        .collect();
    uploads.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
    let shown = &uploads[..uploads.len().min(usize::try_from(limit).unwrap_or(1000))];
    let more = shown.len() < uploads.len();
    let mut document = Xml::new();
    document.element("ListMultipartUploadsResult", |xml| {
        xml.text("Bucket", &bucket.config.name);
        if url {
            xml.text("EncodingType", "url");
        }
        xml.text("Prefix", &spell(prefix));
        xml.text("Delimiter", "");
        xml.text("KeyMarker", &spell(key_marker));
        xml.text("UploadIdMarker", id_marker);
        match shown.last().filter(|_| more) {
            Some(last) => {
                xml.text("NextKeyMarker", &spell(&last.key));
                xml.text("NextUploadIdMarker", &last.id);
            }
            // Alibaba's SDK insists on the elements.
            None if head.is_oss() => {
                xml.text("NextKeyMarker", "");
                xml.text("NextUploadIdMarker", "");
            }
            None => {}
        }
        xml.text("MaxUploads", &limit.to_string());
        xml.text("IsTruncated", if more { "true" } else { "false" });
        for upload in shown {
            xml.element("Upload", |xml| {
                xml.text("Key", &spell(&upload.key));
                xml.text("UploadId", &upload.id);
                xml.text("Initiated", &iso(upload.initiated));
            });
        }
    });
    Ok(Reply::document(document))
}
