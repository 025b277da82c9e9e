//! OSS's current signature, `OSS4-HMAC-SHA256`.
//!
//! Always signed: `x-oss-*`, `content-type`, `content-md5`. Whatever else is, is named in `AdditionalHeaders`,
//! which must not be empty. The canonical URI has the bucket in front whether or not it was in the path.

use super::auth::{Scope, check_clock, field, fields, find_key, hmac_sha256, sha256_hex, signature_mismatch};
use super::config::AccessKey;
use super::error::{Outcome, Refusal};
use super::request::{Head, encode, encode_path};
use super::world::World;

/// The one payload hash that OSS takes in headers.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

pub(crate) fn verify(world: &World, head: &Head, authorization: &str) -> Outcome<AccessKey> {
    let invalid = |message: &str| Refusal::new(400, "InvalidArgument", message);
    if !authorization.starts_with(' ') {
        return Err(invalid("Authorization header is invalid."));
    }
    let fields = fields(authorization).ok_or_else(|| invalid("Authorization header is invalid."))?;
    if let Some((name, _)) =
        fields.iter().find(|(name, _)| !["Credential", "AdditionalHeaders", "Signature"].contains(name))
    {
        return Err(invalid(&format!("Invalid field {name:?} in Authorization header.")));
    }
    let signature =
        field(&fields, "Signature").ok_or_else(|| invalid("Signature is missing in Authorization header."))?;
    let scope = field(&fields, "Credential")
        .and_then(Scope::parse)
        .ok_or_else(|| invalid("Invalid credential in Authorization header."))?;
    let additional = match field(&fields, "AdditionalHeaders") {
        None => Vec::new(),
        Some(text) => additional_headers(head, text)?,
    };

    let date_header = head.header("x-oss-date");
    let (claimed, stamp) = match &date_header {
        Some(text) => (super::time::parse_basic(text), text.clone()),
        None => {
            let date = head.header("date").and_then(|date| httpdate::parse_http_date(&date).ok());
            (date, date.map(super::time::basic).unwrap_or_default())
        }
    };
    let claimed = claimed.ok_or_else(|| {
        Refusal::access_denied("OSS authentication requires a valid Date or x-oss-date header.").ec("0002-00000503")
    })?;
    check_clock(world, claimed, &stamp)?;
    if scope.terminator != "aliyun_v4_request" {
        return Err(invalid("Invalid request type in Authorization header."));
    }
    if !stamp.starts_with(scope.date) || scope.date.len() != 8 {
        return Err(invalid("Invalid signing date in Authorization header."));
    }
    if head.header("x-oss-content-sha256").as_deref() != Some(UNSIGNED) {
        return Err(invalid("The x-oss-content-sha256 header must be UNSIGNED-PAYLOAD."));
    }
    let key = find_key(world, head, scope.key_id, head.header("x-oss-security-token"))?;
    if scope.service != "oss" {
        return Err(invalid("Invalid signing product in Authorization header.").ec("0002-00000227"));
    }
    let bucket = head.bucket.as_ref().and_then(|name| world.buckets.get(name));
    if bucket.is_some_and(|bucket| bucket.config.region != scope.region) {
        return Err(invalid("Invalid signing region in Authorization header.").ec("0002-00000226"));
    }

    let canonical = canonical_request(head, &additional);
    let to_sign = format!("OSS4-HMAC-SHA256\n{stamp}\n{}\n{}", scope.text(), sha256_hex(&canonical));
    let wanted = hex::encode(hmac_sha256(&scope.signing_key("aliyun_v4", &key.secret), to_sign.as_bytes()));
    if wanted != signature {
        return Err(signature_mismatch(head, &key.id, signature, &to_sign)
            .field("CanonicalRequest", String::from_utf8_lossy(&canonical)));
    }
    Ok(key)
}

/// The names in `AdditionalHeaders`: sorted, lower case, present, each once, and none that is signed anyway.
fn additional_headers<'a>(head: &Head, text: &'a str) -> Outcome<Vec<&'a str>> {
    let invalid = || {
        Refusal::new(400, "InvalidArgument", "Invalid additional headers in Authorization header.").ec("0002-00000209")
    };
    let names: Vec<&str> = text.split(';').collect();
    let good = names.iter().all(|name| {
        !name.is_empty()
            && !name.bytes().any(|b| b.is_ascii_uppercase())
            && !always_signed(name)
            && head.headers.contains_key(*name)
    });
    if good && names.is_sorted_by(|a, b| a < b) { Ok(names) } else { Err(invalid()) }
}

fn always_signed(name: &str) -> bool {
    name.starts_with("x-oss-") || name == "content-type" || name == "content-md5"
}

fn canonical_request(head: &Head, additional: &[&str]) -> Vec<u8> {
    let uri = match &head.bucket {
        Some(bucket) => format!("/{bucket}/{}", head.key),
        None => "/".to_owned(),
    };
    let mut query: Vec<(String, String)> =
        head.query.0.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    query.sort();
    let query: Vec<String> = query
        .into_iter()
        .map(|(name, value)| if value.is_empty() { name } else { format!("{name}={value}") })
        .collect();
    let mut names: Vec<&str> = head
        .headers
        .keys()
        .map(|name| name.as_str())
        .filter(|name| always_signed(name) || additional.contains(name))
        .collect();
    names.sort_unstable();

    let mut out = format!("{}\n{}\n{}\n", head.method, encode_path(uri.as_bytes()), query.join("&")).into_bytes();
    for name in names {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        out.extend_from_slice(&head.signed_value(name).unwrap_or_default());
        out.push(b'\n');
    }
    out.extend_from_slice(format!("\n{}\n{UNSIGNED}", additional.join(";")).as_bytes());
    out
}
