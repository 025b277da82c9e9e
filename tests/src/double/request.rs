//! A request taken apart: which protocol it speaks, which bucket and key it names, and its raw spelling, which the
//! signatures are made of.

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::{Outcome, Refusal};
use super::world::is_bucket_name;

/// One of the two protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Alibaba Cloud OSS, native.
    Oss,
    /// Amazon S3.
    S3,
}

impl Dialect {
    /// The prefix of the protocol's own headers.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Oss => "x-oss-",
            Self::S3 => "x-amz-",
        }
    }

    pub(crate) fn request_id_header(self) -> &'static str {
        match self {
            Self::Oss => "x-oss-request-id",
            Self::S3 => "x-amz-request-id",
        }
    }
}

/// Everything of a request but its body.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) dialect: Dialect,
    pub(crate) method: Method,
    /// `None` for the service itself.
    pub(crate) bucket: Option<String>,
    /// Empty for the bucket itself.
    pub(crate) key: String,
    /// The decoded path as it was sent: with the bucket in path style, without in virtual-hosted style.
    pub(crate) path: Vec<u8>,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    /// The Host header as it was sent.
    pub(crate) host: String,
    /// The region in the host name, if it has one.
    pub(crate) endpoint_region: Option<String>,
    /// Set if the bucket is in the path although the host is a name at which the service wants it in the host.
    pub(crate) forbidden_path_style: bool,
}

/// A request with its body.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) head: Head,
    pub(crate) body: Bytes,
}

impl Head {
    /// A header as text; `None` if it is missing.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
    }

    /// A header of the protocol's own, such as `copy-source` for `x-oss-copy-source` or `x-amz-copy-source`.
    pub(crate) fn own_header(&self, name: &str) -> Option<String> {
        self.header(&format!("{}{name}", self.dialect.prefix()))
    }

    /// The values of a header as signatures see them: trimmed, several joined by a comma.
    pub(crate) fn signed_value(&self, name: &str) -> Option<Vec<u8>> {
        let values: Vec<Vec<u8>> =
            self.headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii().to_vec()).collect();
        (!values.is_empty()).then(|| values.join(&b','))
    }

    pub(crate) fn is_oss(&self) -> bool {
        self.dialect == Dialect::Oss
    }

    /// The bucket; only for operations that were found to have one.
    pub(crate) fn bucket(&self) -> Outcome<&str> {
        self.bucket.as_deref().ok_or_else(|| {
            Refusal::new(405, "MethodNotAllowed", "This operation needs a bucket: none is in the host or the path.")
        })
    }
}

/// Query parameters in the order they were sent, decoded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(pub(crate) Vec<(String, String)>);

impl Query {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A number, `None` for an empty text, which Alibaba's SDK sends for "none"; a refusal for any other text.
    pub(crate) fn number(&self, name: &str) -> Outcome<Option<u64>> {
        self.get(name)
            .filter(|text| !text.is_empty())
            .map(|text| {
                // `parse` takes a plus sign, the services do not.
                text.parse()
                    .ok()
                    .filter(|_| !text.starts_with('+'))
                    .ok_or_else(|| Refusal::invalid_argument(name, text, format!("Argument {name} must be an integer")))
            })
            .transpose()
    }
}

/// What stays as it is in a canonical URI: RFC 3986's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const ENCODED_BUT_SLASH: &AsciiSet = &ENCODED.remove(b'/');

/// Percent-encodes everything but unreserved characters.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// The same for bytes of a path, where slashes stay.
pub(crate) fn encode_path(path: &[u8]) -> String {
    percent_encoding::percent_encode(path, ENCODED_BUT_SLASH).to_string()
}

/// Decodes a percent-encoded text; malformed escapes and bytes that are not UTF-8 are refused.
pub(crate) fn decode(text: &str) -> Outcome<String> {
    let refusal = || {
        Refusal::new(400, "InvalidURI", "Couldn't parse the specified URI.")
            .field("URI", text.escape_debug().to_string())
    };
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('%') {
        if !bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
            return Err(refusal());
        }
    }
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| refusal())
}

/// Takes the head of a request apart. `buckets` are the names that exist, `fixed` the only dialect spoken, if one is.
///
/// A head comes back even for a URI that is refused, so that the refusal can be sent and logged.
pub(crate) fn parse(
    request: &http::request::Parts,
    buckets: &dyn Fn(&str) -> bool,
    fixed: Option<Dialect>,
) -> (Head, Outcome<()>) {
    let raw_path = request.uri.path();
    let raw_query = request.uri.query().unwrap_or("");
    let host =
        request.headers.get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned()).unwrap_or_default();
    let mut result = Ok(());
    let mut note = |outcome: Outcome<String>, raw: &str| {
        outcome.unwrap_or_else(|refusal| {
            result = Err(refusal);
            raw.to_owned()
        })
    };
    let path = note(decode(raw_path), raw_path);
    let query = Query(
        raw_query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                // The services read a plus in a query as a space, so who means a plus must escape it.
                let (name, value) = (name.replace('+', " "), value.replace('+', " "));
                (note(decode(&name), &name), note(decode(&value), &value))
            })
            .collect(),
    );
    let dialect = fixed.unwrap_or_else(|| recognise(&request.headers, &query, &host));
    let address = Address::of(&host, buckets);
    let (bucket, key) = match &address.bucket {
        Some(bucket) => (Some(bucket.clone()), path.strip_prefix('/').unwrap_or(&path).to_owned()),
        None => {
            let (bucket, key) = path.strip_prefix('/').unwrap_or(&path).split_once('/').map_or_else(
                || (path.trim_start_matches('/').to_owned(), String::new()),
                |(bucket, key)| (bucket.to_owned(), key.to_owned()),
            );
            (if bucket.is_empty() && key.is_empty() { None } else { Some(bucket) }, key)
        }
    };
    let forbidden_path_style = address.bucket.is_none() && address.named && bucket.is_some() && dialect == Dialect::Oss;
    let head = Head {
        dialect,
        method: request.method.clone(),
        bucket,
        key,
        path: path.into_bytes(),
        query,
        headers: request.headers.clone(),
        host,
        endpoint_region: address.region,
        forbidden_path_style,
    };
    (head, result)
}

/// Which protocol a request speaks, by the first thing in it that only one of them has.
fn recognise(headers: &HeaderMap, query: &Query, host: &str) -> Dialect {
    let authorization = headers.get("authorization").map(|value| value.as_bytes()).unwrap_or_default();
    if authorization.starts_with(b"AWS") {
        return Dialect::S3;
    }
    if authorization.starts_with(b"OSS") {
        return Dialect::Oss;
    }
    let any = |prefix: &str| {
        headers.keys().any(|name| name.as_str().starts_with(prefix))
            || query.0.iter().any(|(name, _)| name.to_ascii_lowercase().starts_with(prefix))
    };
    if any("x-amz-") || (host.contains("s3.") && !any("x-oss-")) { Dialect::S3 } else { Dialect::Oss }
}

/// What a host name says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Address {
    bucket: Option<String>,
    region: Option<String>,
    /// It is one of the services' own names, and not an IP address or `localhost`.
    named: bool,
}

impl Address {
    fn of(host: &str, buckets: &dyn Fn(&str) -> bool) -> Self {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        if name.is_empty() || name == "localhost" || name.starts_with('[') || name.parse::<std::net::IpAddr>().is_ok() {
            return Self::default();
        }
        // A bucket's name may hold dots, so every split is tried, and a bucket that exists wins.
        let splits = || name.match_indices('.').map(|(at, _)| (&name[..at], &name[at + 1..]));
        if let Some((bucket, rest)) = splits().find(|(bucket, _)| buckets(bucket)) {
            return Self { bucket: Some(bucket.to_owned()), region: region(rest), named: true };
        }
        let of_service = |rest: &str| region(rest).is_some() || rest == "localhost";
        if let Some((bucket, rest)) = splits().find(|(bucket, rest)| is_bucket_name(bucket) && of_service(rest)) {
            return Self { bucket: Some(bucket.to_owned()), region: region(rest), named: true };
        }
        if region(name).is_some() {
            return Self { bucket: None, region: region(name), named: true };
        }
        Self { bucket: None, region: None, named: false }
    }
}

/// The region in a service's host name: `oss-<region>[-internal].*`, `s3.oss-<region>[-internal].*`, `s3.<region>.*`.
fn region(name: &str) -> Option<String> {
    let s3 = name.strip_prefix("s3.").or_else(|| name.strip_prefix("s3-"));
    let label = s3.unwrap_or(name).split('.').next()?;
    match (label.strip_prefix("oss-"), s3) {
        (Some(region), _) => Some(region.strip_suffix("-internal").unwrap_or(region).to_owned()),
        // `s3.amazonaws.com` has no region.
        (None, Some(_)) if label != "amazonaws" && label.contains('-') => Some(label.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(host: &str, target: &str) -> (Head, Outcome<()>) {
        let request = http::Request::builder().uri(target).header("host", host).body(()).unwrap();
        parse(&request.into_parts().0, &|name| name == "b" || name == "dotted.b", None)
    }

    #[test]
    fn a_bucket_is_in_the_host_or_in_the_path() {
        for (host, target, bucket, key, region) in [
            ("127.0.0.1:80", "/b/k", Some("b"), "k", None),
            ("127.0.0.1:80", "/b", Some("b"), "", None),
            ("127.0.0.1:80", "/b/", Some("b"), "", None),
            ("127.0.0.1:80", "/", None, "", None),
            ("127.0.0.1:80", "/b//k", Some("b"), "/k", None),
            ("127.0.0.1:80", "/b/a/../k", Some("b"), "a/../k", None),
            ("localhost:80", "/nope/k", Some("nope"), "k", None),
            ("[::1]:80", "/b/k", Some("b"), "k", None),
            ("b.localhost:80", "/k", Some("b"), "k", None),
            ("b.localhost:80", "//k", Some("b"), "/k", None),
            ("new.localhost", "/k", Some("new"), "k", None),
            ("b.oss-cn-x.aliyuncs.com", "/k/", Some("b"), "k/", Some("cn-x")),
            ("b.oss-cn-x-internal.aliyuncs.com", "/k", Some("b"), "k", Some("cn-x")),
            ("dotted.b.s3.eu-west-1.amazonaws.com", "/%E6%95%B0", Some("dotted.b"), "数", Some("eu-west-1")),
            ("b.s3.amazonaws.com", "/a+b", Some("b"), "a+b", None),
            ("b.s3.oss-cn-x.aliyuncs.com", "/k", Some("b"), "k", Some("cn-x")),
            ("oss-like.oss-cn-x.aliyuncs.com", "/k", Some("oss-like"), "k", Some("cn-x")),
            ("other.oss-cn-x.aliyuncs.com", "/k", Some("other"), "k", Some("cn-x")),
            ("s3.eu-west-1.amazonaws.com", "/b/k", Some("b"), "k", Some("eu-west-1")),
        ] {
            let (head, result) = head(host, target);
            assert!(result.is_ok());
            assert_eq!(
                (head.bucket.as_deref(), head.key.as_str(), head.endpoint_region.as_deref()),
                (bucket, key, region),
                "{host} {target}"
            );
        }
        let oss_path_style = head("oss-cn-x.aliyuncs.com", "/b/k").0;
        assert!(oss_path_style.forbidden_path_style);
        assert!(!head("127.0.0.1", "/b/k").0.forbidden_path_style);
    }

    #[test]
    fn malformed_escapes_are_refused() {
        for target in ["/b/%", "/b/%4", "/b/%zz", "/b/%ff", "/b?prefix=%ff", "/b?prefix=%+1"] {
            assert_eq!(head("127.0.0.1", target).1.unwrap_err().code, "InvalidURI", "{target}");
        }
    }

    #[test]
    fn a_plus_in_a_query_is_a_space() {
        let query = head("127.0.0.1", "/b?prefix=a+b%2Bc&append&x=").0.query;
        assert_eq!(query.get("prefix"), Some("a b+c"));
        assert_eq!((query.get("append"), query.get("x"), query.get("y")), (Some(""), Some(""), None));
    }
}
