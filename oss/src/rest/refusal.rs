//! What a store's refusal means.
//!
//! Refusals come as an XML body, on `HEAD` as headers only, and from things in between (proxies, load balancers) as anything.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::AsHeaderName;
use http::{HeaderMap, StatusCode};

use super::endpoint::region_of;
use super::names;
use super::xml::{self, ErrorBody};
use crate::error::ErrorKind;

/// How far the clocks may be apart before a refusal is put down to it. The stores allow 15 minutes.
const SKEW: Duration = Duration::from_secs(300);

/// The condition under which a request was sent, which gives a 412 its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    None,
    /// The object must have a given entity tag.
    IsUnchanged,
    /// There must be no object.
    IsAbsent,
}

/// A refusal, as far as it can be understood.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub status: StatusCode,
    pub code: Option<String>,
    pub message: String,
    pub request_id: Option<String>,
    /// The region or endpoint that the bucket really has.
    region: Option<String>,
    next_append: Option<u64>,
    retry_after: Option<Duration>,
    /// The server's clock.
    pub date: Option<SystemTime>,
}

fn text(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim).filter(|value| !value.is_empty())
}

/// The store's name for a request.
pub(crate) fn request_id(headers: &HeaderMap) -> Option<&str> {
    text(headers, &names::OSS_REQUEST_ID).or_else(|| text(headers, &names::S3_REQUEST_ID))
}

impl Refusal {
    /// Reads a refusal; `body` is empty after `HEAD`.
    pub(crate) fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        // OSS puts the body of a refused HEAD into a header.
        let from_header = || BASE64_STANDARD.decode(text(headers, "x-oss-err")?).ok();
        let hidden = if body.is_empty() { from_header() } else { None };
        let body = hidden.as_deref().unwrap_or(body);
        let parsed = if xml::is_error(body) { xml::parse::<ErrorBody>(body, "error").ok() } else { None };
        let some = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let error = parsed.unwrap_or_default();
        let region = some(error.region)
            .or_else(|| text(headers, "x-amz-bucket-region").map(str::to_owned))
            .or_else(|| region_of(error.endpoint.trim()))
            .or_else(|| some(error.endpoint));
        let server_time = || error.server_time.trim().parse::<jiff::Timestamp>().ok().map(SystemTime::from);
        let message = some(error.message).unwrap_or_else(|| {
            status.canonical_reason().map_or_else(|| "the store gave no reason".to_owned(), str::to_owned)
        });
        Self {
            status,
            code: some(error.code),
            message,
            request_id: request_id(headers).map(str::to_owned).or_else(|| some(error.request_id)),
            region,
            next_append: text(headers, "x-oss-next-append-position").and_then(|value| value.parse().ok()),
            retry_after: text(headers, "retry-after").and_then(retry_after),
            date: text(headers, "date").and_then(|value| httpdate::parse_http_date(value).ok()).or_else(server_time),
        }
    }

    /// What it means to the caller.
    pub(crate) fn kind(&self, condition: Condition) -> ErrorKind {
        let wrong_region = || ErrorKind::WrongRegion { region: self.region.clone() };
        let throttled = || ErrorKind::Throttled { retry_after: self.retry_after };
        let mentions = |what: &str| self.message.to_ascii_lowercase().contains(what);
        if let Some(code) = self.code.as_deref() {
            let kind = match code {
                "NoSuchKey" | "NoSuchVersion" | "NoSuchUpload" | "SymlinkTargetNotExist" => ErrorKind::NotFound,
                "NoSuchBucket" => ErrorKind::NoSuchBucket,
                // The wording of OSS for a bucket in another region.
                "AccessDenied" if mentions("specified endpoint") => wrong_region(),
                "PermanentRedirect" | "TemporaryRedirect" | "Redirect" | "IllegalLocationConstraintException" => {
                    wrong_region()
                }
                "AuthorizationHeaderMalformed" | "SignatureDoesNotMatch" | "InvalidArgument" | "InvalidRegion"
                    if mentions("region") =>
                {
                    wrong_region()
                }
                "InvalidAccessKeyId"
                | "InvalidAccessKey"
                | "InvalidAccessKeyIdFormat"
                | "SignatureDoesNotMatch"
                | "AuthorizationHeaderMalformed"
                | "InvalidSecurityToken"
                | "InvalidToken"
                | "ExpiredToken"
                | "SecurityTokenExpired"
                | "TokenRefreshRequired"
                | "SecurityTokenNotSupported"
                | "RequestTimeTooSkewed"
                | "RequestExpired" => ErrorKind::BadCredentials,
                "InvalidObjectState" => ErrorKind::Archived,
                "FileAlreadyExists" | "ObjectAlreadyExists" | "FileImmutable" => ErrorKind::AlreadyExists,
                "PositionNotEqualToLength" => ErrorKind::PositionMismatch { next: self.next_append },
                "ObjectNotAppendable" => ErrorKind::NotAppendable,
                "SlowDown"
                | "Throttling"
                | "ThrottlingException"
                | "TooManyRequests"
                | "RequestLimitExceeded"
                | "QpsLimitExceeded"
                | "BandwidthLimitExceeded"
                | "DownloadTrafficRateLimitExceeded"
                | "UploadTrafficRateLimitExceeded" => throttled(),
                "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => {
                    ErrorKind::Corrupt
                }
                // The server lost patience or bytes; both pass.
                "RequestTimeout" | "IncompleteBody" | "ConditionalRequestConflict" | "OperationAborted" => {
                    ErrorKind::Unavailable
                }
                "NotImplemented" | "MethodNotAllowed" => ErrorKind::Unsupported,
                "InvalidRange" => ErrorKind::Invalid,
                _ if code.starts_with("KMS.") || code.starts_with("Kms") => ErrorKind::Denied,
                _ => self.kind_of_status(condition),
            };
            return kind;
        }
        self.kind_of_status(condition)
    }

    fn kind_of_status(&self, condition: Condition) -> ErrorKind {
        match self.status.as_u16() {
            301 | 307 | 308 => ErrorKind::WrongRegion { region: self.region.clone() },
            // A HEAD that was signed for another region.
            400 if self.code.is_none() && self.region.is_some() => {
                ErrorKind::WrongRegion { region: self.region.clone() }
            }
            401 => ErrorKind::BadCredentials,
            403 => ErrorKind::Denied,
            404 => ErrorKind::NotFound,
            304 | 412 if condition == Condition::IsAbsent => ErrorKind::AlreadyExists,
            304 | 412 => ErrorKind::Changed,
            429 => ErrorKind::Throttled { retry_after: self.retry_after },
            // What says when to come back is overloaded and not broken.
            503 if self.retry_after.is_some() => ErrorKind::Throttled { retry_after: self.retry_after },
            405 | 501 => ErrorKind::Unsupported,
            408 | 500 | 502..=599 => ErrorKind::Unavailable,
            _ => ErrorKind::Invalid,
        }
    }

    /// Whether the store may have done what it was asked for all the same: something in between failed, or it itself did, late.
    pub(crate) fn may_have_happened(&self) -> bool {
        match self.status.as_u16() {
            500 | 502 | 504 | 408 => true,
            // With a code it is the store's own word that it was too busy; without, a balancer's who may have lost its answer.
            503 => self.code.is_none(),
            _ => self.status.is_success(),
        }
    }

    /// Whether fresh credentials may help, for certain (`Some(true)`), perhaps (`Some(false)`), or not.
    pub(crate) fn wants_credentials(&self) -> Option<bool> {
        match self.code.as_deref() {
            Some(
                "InvalidAccessKeyId"
                | "InvalidSecurityToken"
                | "InvalidToken"
                | "ExpiredToken"
                | "SecurityTokenExpired"
                | "TokenRefreshRequired",
            ) => Some(true),
            // After a role's policy was changed the old credentials can stay refused.
            Some("AccessDenied") => Some(false),
            None if matches!(self.status.as_u16(), 401 | 403) => Some(false),
            // HEAD with an expired token.
            None if self.status == StatusCode::BAD_REQUEST => Some(false),
            _ => None,
        }
    }

    /// The server's time, when the refusal is due to ours being off. `now` is what we signed with.
    pub(crate) fn skewed_from(&self, now: SystemTime) -> Option<SystemTime> {
        let date = self.date?;
        let apart = date.duration_since(now).unwrap_or_else(|error| error.duration());
        let suspicious = matches!(self.status.as_u16(), 400 | 401 | 403);
        let says_so = matches!(self.code.as_deref(), Some("RequestTimeTooSkewed" | "RequestExpired"));
        let off = apart > SKEW || (says_so && apart > Duration::from_secs(1));
        (suspicious && off).then_some(date)
    }
}

/// Seconds, or a date.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let when = httpdate::parse_http_date(value).ok()?;
    Some(when.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, headers: &[(&'static str, &str)], body: &str) -> Refusal {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        Refusal::read(StatusCode::from_u16(status).unwrap(), &map, body.as_bytes())
    }

    fn kind(status: u16, code: &str, message: &str) -> ErrorKind {
        let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        refusal(status, &[], &body).kind(Condition::None)
    }

    #[test]
    fn codes() {
        for (status, code, expected) in [
            (404, "NoSuchKey", ErrorKind::NotFound),
            (404, "NoSuchBucket", ErrorKind::NoSuchBucket),
            (404, "NoSuchUpload", ErrorKind::NotFound),
            (403, "AccessDenied", ErrorKind::Denied),
            (403, "InvalidAccessKeyId", ErrorKind::BadCredentials),
            (403, "SignatureDoesNotMatch", ErrorKind::BadCredentials),
            (403, "SecurityTokenExpired", ErrorKind::BadCredentials),
            (400, "ExpiredToken", ErrorKind::BadCredentials),
            (403, "InvalidObjectState", ErrorKind::Archived),
            (409, "FileAlreadyExists", ErrorKind::AlreadyExists),
            (409, "ObjectNotAppendable", ErrorKind::NotAppendable),
            (416, "InvalidRange", ErrorKind::Invalid),
            (501, "NotImplemented", ErrorKind::Unsupported),
            (503, "SlowDown", ErrorKind::Throttled { retry_after: None }),
            (503, "ServiceUnavailable", ErrorKind::Unavailable),
            (500, "InternalError", ErrorKind::Unavailable),
            (400, "RequestTimeout", ErrorKind::Unavailable),
            (400, "BadDigest", ErrorKind::Corrupt),
            (400, "InvalidPart", ErrorKind::Invalid),
            (400, "KMS.DisabledException", ErrorKind::Denied),
        ] {
            assert_eq!(kind(status, code, "m"), expected, "{code}");
        }
    }

    #[test]
    fn another_region_in_all_its_forms() {
        let oss = refusal(
            403,
            &[],
            "<Error><Code>AccessDenied</Code><Message>The bucket you are attempting to access must be addressed using the \
             specified endpoint. Please send all future requests to this endpoint.</Message>\
             <Endpoint>oss-cn-beijing.aliyuncs.com</Endpoint></Error>",
        );
        let beijing = ErrorKind::WrongRegion { region: Some("cn-beijing".into()) };
        assert_eq!(oss.kind(Condition::None), beijing);
        let malformed = refusal(
            400,
            &[],
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting \
             'eu-west-1'</Message><Region>eu-west-1</Region></Error>",
        );
        let ireland = ErrorKind::WrongRegion { region: Some("eu-west-1".into()) };
        assert_eq!(malformed.kind(Condition::None), ireland);
        assert_eq!(refusal(301, &[("x-amz-bucket-region", "eu-west-1")], "").kind(Condition::None), ireland);
        assert_eq!(refusal(400, &[("x-amz-bucket-region", "eu-west-1")], "").kind(Condition::None), ireland);
    }

    #[test]
    fn a_refused_head_of_oss_carries_its_body_in_a_header() {
        let body = BASE64_STANDARD.encode("<Error><Code>NoSuchBucket</Code><Message>gone</Message></Error>");
        let refusal = refusal(404, &[("x-oss-err", &body), ("x-oss-request-id", "5F")], "");
        assert_eq!(refusal.kind(Condition::None), ErrorKind::NoSuchBucket);
        assert_eq!((refusal.message.as_str(), refusal.request_id.as_deref()), ("gone", Some("5F")));
    }

    #[test]
    fn statuses_without_a_code_and_bodies_that_are_no_xml() {
        let html = refusal(502, &[], "<html>bad gateway</html>");
        assert_eq!(html.kind(Condition::None), ErrorKind::Unavailable);
        assert!(html.may_have_happened() && html.message == "Bad Gateway");
        assert!(refusal(503, &[], "<html>").may_have_happened());
        assert!(!refusal(503, &[], "<Error><Code>SlowDown</Code></Error>").may_have_happened());
        assert_eq!(refusal(412, &[], "").kind(Condition::IsUnchanged), ErrorKind::Changed);
        assert_eq!(refusal(412, &[], "").kind(Condition::IsAbsent), ErrorKind::AlreadyExists);
        let wait = refusal(503, &[("retry-after", "7")], "");
        assert_eq!(wait.kind(Condition::None), ErrorKind::Throttled { retry_after: Some(Duration::from_secs(7)) });
        let position = refusal(
            409,
            &[("x-oss-next-append-position", "42")],
            "<Error><Code>PositionNotEqualToLength</Code></Error>",
        );
        assert_eq!(position.kind(Condition::None), ErrorKind::PositionMismatch { next: Some(42) });
    }

    #[test]
    fn a_clock_that_is_off_is_seen_with_and_without_a_code() {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let date = httpdate::fmt_http_date(now + hour);
        assert!(refusal(403, &[("date", &date)], "").skewed_from(now).is_some());
        assert!(refusal(404, &[("date", &date)], "").skewed_from(now).is_none());
        let here = httpdate::fmt_http_date(now);
        assert!(refusal(403, &[("date", &here)], "").skewed_from(now).is_none());
        let in_body = "<Error><Code>RequestTimeTooSkewed</Code><ServerTime>2037-01-01T00:00:00Z</ServerTime></Error>";
        assert!(refusal(403, &[], in_body).skewed_from(now).is_some());
    }
}
