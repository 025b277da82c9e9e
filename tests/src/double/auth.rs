//! Who asks, and whether they may: the part of the signature check that both protocols share.
//!
//! The checks come in the services' order: form of the header, clock, key, token, region, signature, policy. The
//! canonical request is built from what arrived, so a client that signs one thing and sends another is caught.

use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::config::{AccessKey, Action};
use super::error::{Outcome, Refusal};
use super::request::{Call, Head};
use super::world::World;
use super::{oss_v4, sigv4, v1};

/// How far a request's time may be from the server's.
const MAX_SKEW: Duration = Duration::from_secs(15 * 60);

/// Who sent a request.
pub(crate) enum Caller {
    /// It was not signed.
    Anonymous,
    /// It was signed with this key.
    Key(AccessKey),
}

/// Checks the signature of a request.
pub(crate) fn authenticate(world: &World, call: &Call) -> Outcome<Caller> {
    let head = &call.head;
    let authorization = head.header("authorization");
    if let Some(authorization) = &authorization {
        return if let Some(fields) = authorization.strip_prefix("OSS4-HMAC-SHA256") {
            oss_v4::verify(world, head, fields).map(Caller::Key)
        } else if let Some(fields) = authorization.strip_prefix("AWS4-HMAC-SHA256") {
            sigv4::verify(world, call, fields).map(Caller::Key)
        } else if let Some(fields) = authorization.strip_prefix("OSS ") {
            v1::verify_header(world, head, fields).map(Caller::Key)
        } else if head.is_oss() {
            Err(Refusal::invalid_argument("Authorization", "...", "Authorization header is invalid."))
        } else {
            Err(Refusal::new(400, "InvalidArgument", "Unsupported Authorization Type")
                .field("ArgumentName", "Authorization"))
        };
    }
    if v1::is_signed_url(head) {
        return v1::verify_url(world, head).map(Caller::Key);
    }
    if head
        .query
        .0
        .iter()
        .any(|(name, _)| matches!(name.to_ascii_lowercase().as_str(), "x-oss-signature" | "x-amz-signature"))
    {
        return Err(Refusal::not_implemented("presigned URLs"));
    }
    Ok(Caller::Anonymous)
}

/// Whether the caller may do `action` on `key` of `bucket`.
pub(crate) fn authorize(
    world: &World,
    head: &Head,
    caller: &Caller,
    action: Action,
    bucket: &str,
    key: &str,
) -> Outcome<()> {
    let allowed = match caller {
        Caller::Key(access_key) => !access_key.denies(action, key),
        // A bucket that does not exist says so to everybody.
        Caller::Anonymous => world
            .buckets
            .get(bucket)
            .is_none_or(|bucket| bucket.config.public_read && matches!(action, Action::Read | Action::List)),
    };
    if allowed {
        return Ok(());
    }
    Err(match (head.is_oss(), caller) {
        (false, _) => Refusal::access_denied("Access Denied"),
        (true, Caller::Anonymous) => {
            Refusal::access_denied("You have no right to access this object because of bucket acl.").ec("0003-00000001")
        }
        (true, Caller::Key(_)) => {
            Refusal::access_denied("You do not have the permission to perform this operation.").ec("0003-00000016")
        }
    })
}

/// The key with this id, if the request has its token and the token still counts.
pub(crate) fn find_key(world: &World, head: &Head, id: &str, token: Option<String>) -> Outcome<AccessKey> {
    let unknown = || {
        let message = if head.is_oss() {
            "The OSS Access Key Id you provided does not exist in our records."
        } else {
            "The AWS Access Key Id you provided does not exist in our records."
        };
        let name = if head.is_oss() { "OSSAccessKeyId" } else { "AWSAccessKeyId" };
        Refusal::new(403, "InvalidAccessKeyId", message).ec("0002-00000902").field(name, id)
    };
    let key = world.keys.iter().find(|key| key.id == id).ok_or_else(unknown)?;
    match (&key.token, token) {
        (None, None) => {}
        // A temporary key is only known together with its token.
        (Some(_), None) => return Err(unknown()),
        (Some(wanted), Some(token)) if *wanted == token => {}
        (_, Some(_)) if head.is_oss() => {
            return Err(Refusal::new(403, "InvalidSecurityToken", "The security token you provided is invalid."));
        }
        (_, Some(_)) => {
            return Err(Refusal::new(400, "InvalidToken", "The provided token is malformed or otherwise invalid."));
        }
    }
    if key.expires.is_some_and(|expires| expires <= world.now()) {
        return Err(if head.is_oss() {
            Refusal::new(403, "SecurityTokenExpired", "The security token you provided has expired.")
                .ec("0002-00000069")
        } else {
            Refusal::new(400, "ExpiredToken", "The provided token has expired.")
        });
    }
    Ok(key.clone())
}

/// Refuses a time that is more than 15 minutes from the server's.
pub(crate) fn check_clock(world: &World, claimed: SystemTime, text: &str) -> Outcome<()> {
    let now = world.now();
    let skew = now.duration_since(claimed).unwrap_or_else(|early| early.duration());
    if skew <= MAX_SKEW {
        return Ok(());
    }
    Err(Refusal::new(
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
    )
    .ec("0002-00000504")
    .field("MaxAllowedSkewMilliseconds", MAX_SKEW.as_millis().to_string())
    .field("RequestTime", text)
    .field("ServerTime", super::time::iso(now)))
}

pub(crate) fn signature_mismatch(head: &Head, key_id: &str, provided: &str, to_sign: &str) -> Refusal {
    let name = if head.is_oss() { "OSSAccessKeyId" } else { "AWSAccessKeyId" };
    Refusal::new(
        403,
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
    )
    .ec("0002-00000040")
    .field(name, key_id)
    .field("SignatureProvided", provided)
    .field("StringToSign", to_sign)
}

/// `Credential=<id>/<date>/<region>/<service>/<terminator>`, taken apart.
pub(crate) struct Scope<'a> {
    pub(crate) key_id: &'a str,
    pub(crate) date: &'a str,
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
    pub(crate) terminator: &'a str,
}

impl<'a> Scope<'a> {
    pub(crate) fn parse(credential: &'a str) -> Option<Self> {
        // The id comes first and may hold anything, the rest may not.
        let mut fields = credential.rsplitn(5, '/');
        let (terminator, service, region, date, key_id) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(Self { key_id, date, region, service, terminator })
    }

    /// `<date>/<region>/<service>/<terminator>`.
    pub(crate) fn text(&self) -> String {
        format!("{}/{}/{}/{}", self.date, self.region, self.service, self.terminator)
    }

    /// The key that signs, derived from the secret.
    pub(crate) fn signing_key(&self, prefix: &str, secret: &str) -> Vec<u8> {
        [self.date, self.region, self.service, self.terminator]
            .iter()
            .fold(format!("{prefix}{secret}").into_bytes(), |key, step| hmac_sha256(&key, step.as_bytes()))
    }
}

/// Splits `name=value` fields at commas. A name that comes twice, or a field without `=`, makes it `None`.
pub(crate) fn fields(text: &str) -> Option<Vec<(&str, &str)>> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for field in text.split(',') {
        let (name, value) = field.trim().split_once('=')?;
        if found.iter().any(|(known, _)| *known == name) {
            return None;
        }
        found.push((name, value));
    }
    Some(found)
}

pub(crate) fn field<'a>(fields: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    fields.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

pub(crate) fn hmac_sha256(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

pub(crate) fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signing_key_is_that_of_the_published_example() {
        // AWS's documented example of deriving a SigV4 key.
        let scope =
            Scope { key_id: "", date: "20120215", region: "us-east-1", service: "iam", terminator: "aws4_request" };
        assert_eq!(
            hex::encode(scope.signing_key("AWS4", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")),
            "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d"
        );
    }

    #[test]
    fn a_credential_is_taken_apart_from_the_right() {
        let scope = Scope::parse("id/with/slash/20261120/r/oss/aliyun_v4_request").unwrap();
        assert_eq!(
            (scope.key_id, scope.date, scope.text().as_str()),
            ("id/with/slash", "20261120", "20261120/r/oss/aliyun_v4_request")
        );
        assert!(Scope::parse("id/20261120/r/oss").is_none());
    }

    #[test]
    fn fields_come_in_any_order_but_once() {
        assert_eq!(fields(" A=1, B=x;y,C="), Some(vec![("A", "1"), ("B", "x;y"), ("C", "")]));
        assert_eq!(fields("A=1,A=2"), None);
        assert_eq!(fields("A"), None);
    }
}
