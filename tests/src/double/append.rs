//! OSS's AppendObject.

use std::sync::Mutex;

use crc_fast::{CrcAlgorithm, checksum_combine};

use super::checksum::verify;
use super::content::Content;
use super::error::{Outcome, Refusal};
use super::object::{kept_headers, quoted};
use super::operation::{Reply, lock};
use super::request::Call;
use super::world::{Object, ObjectKind, World};

pub(crate) fn append(world: &Mutex<World>, call: &Call) -> Outcome<Reply> {
    let head = &call.head;
    let position = match head.query.get("position") {
        None => {
            return Err(
                Refusal::new(400, "MissingArgument", "Missing Some Required Arguments: position").ec("0016-00000501")
            );
        }
        Some(text) => head.query.number("position").ok().flatten().ok_or_else(|| {
            Refusal::invalid_argument("position", text, "The position must be a non-negative integer.")
                .ec("0016-00000502")
        })?,
    };
    let more = Content::from(call.body.clone());
    verify(call, &more)?;
    let crc = more.checksum(CrcAlgorithm::Crc64Xz);

    let mut world = lock(world);
    let (now, limit) = (world.now(), world.config.append_limit);
    let objects = &mut world.bucket(head.bucket()?)?.objects;
    let existing = objects.get(&head.key);
    if existing.is_some_and(|object| object.kind != ObjectKind::Appendable) {
        return Err(Refusal::new(409, "ObjectNotAppendable", "The object is not appendable").ec("0026-00000017"));
    }
    let length = existing.map_or(0, |object| object.content.len());
    if position != length {
        return Err(Refusal::new(409, "PositionNotEqualToLength", "Position is not equal to file length")
            .ec("0026-00000016")
            .header("x-oss-next-append-position", length.to_string()));
    }
    if length + more.len() > limit {
        return Err(Refusal::new(
            400,
            "EntityTooLarge",
            "Your proposed append exceeds the maximum allowed object size",
        )
        .field("MaxSizeAllowed", limit.to_string()));
    }
    let mut object = existing.cloned().unwrap_or_else(|| Object {
        content: Content::default(),
        etag: String::new(),
        crc64: 0,
        kind: ObjectKind::Appendable,
        modified: now,
        headers: kept_headers(head),
        archived: false,
        checksum: None,
    });
    object.crc64 = checksum_combine(CrcAlgorithm::Crc64Xz, object.crc64, crc, more.len());
    object.content = object.content.followed_by(more);
    object.modified = now;
    // Not an MD5 of anything, as at the service.
    object.etag = format!("{:016X}{:016X}", object.crc64, object.content.len());
    let reply = Reply::empty(200)
        .header("etag", quoted(&object.etag))
        .header("x-oss-hash-crc64ecma", object.crc64.to_string())
        .header("x-oss-next-append-position", object.content.len().to_string());
    objects.insert(head.key.clone(), object);
    Ok(reply)
}
