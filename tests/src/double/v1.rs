//! OSS's old signature, in the header or in the URL. Accepted only where a test wants somebody else's SDK served.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;

use super::auth::{check_clock, find_key, signature_mismatch};
use super::config::AccessKey;
use super::error::{Outcome, Refusal};
use super::request::Head;
use super::world::World;

/// The query parameters that are part of the signed resource, of those that the double knows.
const SUBRESOURCES: &[&str] = &[
    "acl",
    "append",
    "bucketInfo",
    "continuation-token",
    "delete",
    "location",
    "objectMeta",
    "partNumber",
    "position",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "restore",
    "security-token",
    "sequential",
    "stat",
    "symlink",
    "tagging",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "x-oss-process",
    "x-oss-request-payer",
    "x-oss-traffic-limit",
];

pub(crate) fn is_signed_url(head: &Head) -> bool {
    head.query.has("OSSAccessKeyId")
}

fn check_allowed(world: &World) -> Outcome<()> {
    if world.config.allow_v1 {
        return Ok(());
    }
    Err(Refusal::new(400, "InvalidArgument", "Signature version 1 is not supported for this user; use version 4.")
        .ec("0002-00000080"))
}

pub(crate) fn verify_header(world: &World, head: &Head, credential: &str) -> Outcome<AccessKey> {
    check_allowed(world)?;
    let (id, signature) = credential
        .trim()
        .rsplit_once(':')
        .ok_or_else(|| Refusal::new(400, "InvalidArgument", "Authorization header is invalid."))?;
    let date = head.header("x-oss-date").or_else(|| head.header("date")).unwrap_or_default();
    let claimed = httpdate::parse_http_date(&date)
        .map_err(|_| Refusal::access_denied("OSS authentication requires a valid Date.").ec("0002-00000503"))?;
    check_clock(world, claimed, &date)?;
    let key = find_key(world, head, id, head.header("x-oss-security-token"))?;
    check(head, key, signature, &date)
}

pub(crate) fn verify_url(world: &World, head: &Head) -> Outcome<AccessKey> {
    check_allowed(world)?;
    let get = |name: &str| {
        head.query
            .get(name)
            .ok_or_else(|| Refusal::access_denied(format!("Query-string authentication requires the {name} parameter")))
    };
    let (id, signature, expires) = (get("OSSAccessKeyId")?, get("Signature")?, get("Expires")?);
    let until = head.query.number("Expires")?.unwrap_or(0);
    let now = world.now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    if until < now {
        return Err(Refusal::access_denied("Request has expired.").field("Expires", expires));
    }
    let key = find_key(world, head, id, head.query.get("security-token").map(str::to_owned))?;
    check(head, key, signature, expires)
}

fn check(head: &Head, key: AccessKey, signature: &str, date: &str) -> Outcome<AccessKey> {
    let to_sign = string_to_sign(head, date);
    let mut mac = Hmac::<Sha1>::new_from_slice(key.secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(to_sign.as_bytes());
    if STANDARD.encode(mac.finalize().into_bytes()) == signature {
        return Ok(key);
    }
    Err(signature_mismatch(head, &key.id, signature, &to_sign))
}

fn string_to_sign(head: &Head, date: &str) -> String {
    let header = |name: &str| head.header(name).unwrap_or_default();
    let mut names: Vec<&str> =
        head.headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("x-oss-")).collect();
    names.sort_unstable();
    let headers: String = names.iter().map(|name| format!("{name}:{}\n", header(name))).collect();
    let mut subresources: Vec<(&str, &str)> = head
        .query
        .0
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| SUBRESOURCES.contains(name))
        .collect();
    subresources.sort_unstable();
    let subresources: Vec<String> = subresources
        .into_iter()
        .map(|(name, value)| if value.is_empty() { name.to_owned() } else { format!("{name}={value}") })
        .collect();
    let resource = match &head.bucket {
        Some(bucket) => format!("/{bucket}/{}", head.key),
        None => "/".to_owned(),
    };
    let mark = if subresources.is_empty() { "" } else { "?" };
    format!(
        "{}\n{}\n{}\n{date}\n{headers}{resource}{mark}{}",
        head.method,
        header("content-md5"),
        header("content-type"),
        subresources.join("&")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_has_the_documented_signature() {
        // From OSS's documentation of the signature in the header.
        let (parts, ()) = http::Request::builder()
            .method("PUT")
            .uri("/nelson")
            .header("host", "oss-example.oss-cn-hangzhou.aliyuncs.com")
            .header("content-md5", "ODBGOERFMDMzQTczRUY3NUE3NzA5QzdFNUYzMDQxNEM=")
            .header("content-type", "text/html")
            .header("x-oss-meta-author", "foo@bar.com")
            .header("x-oss-magic", "abracadabra")
            .body(())
            .unwrap()
            .into_parts();
        let head = super::super::request::parse(&parts, &|_| false, None).0;
        let key = AccessKey::new("44CF9590006BF252F707", "OtxrzxIsfpFjA7SwPzILwy8Bw21TLhquhboDYROV");
        let date = "Thu, 17 Nov 2005 18:49:58 GMT";
        assert!(check(&head, key.clone(), "26NBxoKdsyly4EDv6inkoDft/yA=", date).is_ok());
        assert!(check(&head, key, "26NBxoKdsyly4EDv6inkoDft/yB=", date).is_err());
    }
}
