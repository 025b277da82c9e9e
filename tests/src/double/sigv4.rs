//! S3's signature, `AWS4-HMAC-SHA256`, and the one form of chunked body its SDKs send by default.

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};

use super::auth::{Scope, check_clock, field, fields, find_key, hmac_sha256, sha256_hex, signature_mismatch};
use super::config::AccessKey;
use super::error::{Outcome, Refusal};
use super::request::{Call, Head, encode, encode_path};
use super::world::World;

const TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

pub(crate) fn verify(world: &World, call: &Call, authorization: &str) -> Outcome<AccessKey> {
    let head = &call.head;
    let malformed = |why: &str| {
        Refusal::new(400, "AuthorizationHeaderMalformed", format!("The authorization header is malformed; {why}"))
    };
    let fields = fields(authorization).ok_or_else(|| malformed("it is not a list of fields."))?;
    let get = |name: &str| field(&fields, name).ok_or_else(|| malformed(&format!("{name} is missing.")));
    let (credential, signed, signature) = (get("Credential")?, get("SignedHeaders")?, get("Signature")?);
    let scope = Scope::parse(credential).ok_or_else(|| malformed("the Credential is mal-formed."))?;

    let stamp = head
        .header("x-amz-date")
        .or_else(|| head.header("date").and_then(|date| httpdate::parse_http_date(&date).ok()).map(super::time::basic));
    let stamp = stamp.unwrap_or_default();
    let claimed = super::time::parse_basic(&stamp)
        .ok_or_else(|| Refusal::access_denied("AWS authentication requires a valid Date or x-amz-date header"))?;
    check_clock(world, claimed, &stamp)?;
    if scope.terminator != "aws4_request" || scope.service != "s3" {
        return Err(malformed("the credential scope must end in s3/aws4_request."));
    }
    if scope.date.len() != 8 || !stamp.starts_with(scope.date) {
        return Err(malformed("the date of the scope is not that of the request."));
    }
    let payload = head.header("x-amz-content-sha256").ok_or_else(|| {
        Refusal::new(400, "InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    })?;
    let key = find_key(world, head, scope.key_id, head.header("x-amz-security-token"))?;
    let bucket = head.bucket.as_ref().and_then(|name| world.buckets.get(name));
    if let Some(bucket) = bucket.filter(|bucket| bucket.config.region != scope.region) {
        let (wrong, right) = (scope.region, bucket.config.region.as_str());
        return Err(malformed(&format!("the region '{wrong}' is wrong; expecting '{right}'"))
            .field("Region", right)
            .header("x-amz-bucket-region", right));
    }

    let names: Vec<&str> = signed.split(';').collect();
    if !names.is_sorted_by(|a, b| a < b) || names.iter().any(|name| name.bytes().any(|b| b.is_ascii_uppercase())) {
        return Err(malformed("SignedHeaders must be sorted, in lower case and each name once."));
    }
    let must = |name: &str| name == "host" || name == "content-md5" || name.starts_with("x-amz-");
    let unsigned: Vec<&str> =
        head.headers.keys().map(|name| name.as_str()).filter(|name| must(name) && !names.contains(name)).collect();
    if !unsigned.is_empty() {
        return Err(Refusal::access_denied("There were headers present in the request which were not signed")
            .field("HeadersNotSigned", unsigned.join(", ")));
    }

    let canonical = canonical_request(head, &names, &payload);
    let to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{}\n{}", scope.text(), sha256_hex(&canonical));
    let wanted = hex::encode(hmac_sha256(&scope.signing_key("AWS4", &key.secret), to_sign.as_bytes()));
    if wanted != signature {
        return Err(signature_mismatch(head, &key.id, signature, &to_sign)
            .field("CanonicalRequest", String::from_utf8_lossy(&canonical)));
    }
    check_payload(call, &payload)?;
    Ok(key)
}

fn canonical_request(head: &Head, signed: &[&str], payload: &str) -> Vec<u8> {
    let mut query: Vec<(String, String)> =
        head.query.0.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    query.sort();
    let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut out = format!("{}\n{}\n{}\n", head.method, encode_path(&head.path), query.join("&")).into_bytes();
    for name in signed {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        out.extend_from_slice(&collapse(&head.signed_value(name).unwrap_or_default()));
        out.push(b'\n');
    }
    out.extend_from_slice(format!("\n{}\n{payload}", signed.join(";")).as_bytes());
    out
}

/// Runs of spaces become one.
fn collapse(value: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(value.len());
    for &b in value {
        if b != b' ' || out.last() != Some(&b' ') {
            out.push(b);
        }
    }
    out
}

/// Checks the payload hash, unless it says that there is none.
fn check_payload(call: &Call, payload: &str) -> Outcome<()> {
    match payload {
        "UNSIGNED-PAYLOAD" | TRAILER => Ok(()),
        streaming if streaming.starts_with("STREAMING-") => Err(Refusal::not_implemented(streaming)),
        hash if hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            let actual = sha256_hex(&call.body);
            if hash == actual {
                return Ok(());
            }
            Err(Refusal::new(
                400,
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
            )
            .field("ClientComputedContentSHA256", hash)
            .field("S3ComputedContentSHA256", actual))
        }
        other => Err(Refusal::invalid_argument(
            "x-amz-content-sha256",
            other,
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER or a valid sha256 value.",
        )),
    }
}

/// Undoes `aws-chunked`, and puts the trailers it ends with among the headers.
pub(crate) fn unchunk(mut call: Call) -> Outcome<Call> {
    if call.head.header("x-amz-content-sha256").as_deref() != Some(TRAILER) {
        return Ok(call);
    }
    let incomplete = || Refusal::new(400, "IncompleteBody", "The request body terminated unexpectedly");
    let mut rest = call.body.clone();
    let mut decoded = Vec::with_capacity(rest.len());
    loop {
        let line = take_line(&mut rest).ok_or_else(incomplete)?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16).map_err(|_| incomplete())?;
        if size == 0 {
            break;
        }
        if rest.len() < size {
            return Err(incomplete());
        }
        decoded.extend_from_slice(&rest.split_to(size));
        if take_line(&mut rest).as_deref() != Some("") {
            return Err(incomplete());
        }
    }
    let announced = call.head.header("x-amz-trailer");
    loop {
        let line = take_line(&mut rest).ok_or_else(incomplete)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(incomplete)?;
        if announced.as_deref() != Some(name) {
            let message = "The request contained trailing data that was not announced.";
            return Err(Refusal::new(400, "MalformedTrailerError", message));
        }
        let name: HeaderName = name.parse().map_err(|_| incomplete())?;
        call.head.headers.insert(name, HeaderValue::from_str(value.trim()).map_err(|_| incomplete())?);
    }
    let length = call.head.header("x-amz-decoded-content-length").and_then(|text| text.parse().ok());
    if length != Some(decoded.len()) {
        return Err(incomplete());
    }
    call.body = decoded.into();
    Ok(call)
}

/// Takes the text up to the next line end away from the front of `rest`.
fn take_line(rest: &mut Bytes) -> Option<String> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let line = rest.split_to(end);
    rest.split_to(2).clear();
    String::from_utf8(line.to_vec()).ok()
}
