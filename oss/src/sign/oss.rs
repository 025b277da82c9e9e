//! OSS signature version 4: `OSS4-HMAC-SHA256`, in the `Authorization` header.
//!
//! The canonical path is `/bucket/key` also when the bucket is in the host name. Signed are `x-oss-*`, `content-type` and
//! `content-md5`, and what the request lists as additional headers. An empty list is not written at all: the service
//! refuses `AdditionalHeaders=` with nothing behind it (EC 0002-00000209).

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderName, HeaderValue};

use super::{Chain, Scope, Signatory, UNSIGNED_PAYLOAD, UnprintableCredential, Unsigned, push_canonical, push_hex};

const CHAIN: Chain = Chain { prefix: "aliyun_v4", service: "oss", terminator: "aliyun_v4_request" };
const DATE: HeaderName = HeaderName::from_static("x-oss-date");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-oss-content-sha256");
const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-oss-security-token");

/// Signs a request. The payload is not part of the signature; its integrity is checked by CRC-64.
pub(crate) fn sign(request: Unsigned<'_>, who: Signatory<'_>, scope: &Scope<'_>) -> Result<(), UnprintableCredential> {
    sign_with(request, who, scope, &[])
}

/// `additional` are names of further headers to sign, in lower case and sorted; each must be present or be `host`.
fn sign_with(
    request: Unsigned<'_>,
    who: Signatory<'_>,
    scope: &Scope<'_>,
    additional: &[&str],
) -> Result<(), UnprintableCredential> {
    let Unsigned { method, path, query, host, headers } = request;
    let stamp = scope.stamp();
    headers.insert(DATE, stamp.value());
    headers.insert(CONTENT_SHA256, HeaderValue::from_static(UNSIGNED_PAYLOAD));
    if let Some(token) = who.token {
        let mut value = HeaderValue::from_str(token.expose()).map_err(|_| UnprintableCredential)?;
        value.set_sensitive(true);
        headers.insert(SECURITY_TOKEN, value);
    }

    let mut signed: Vec<(&str, &[u8])> = Vec::with_capacity(headers.len() + 1);
    signed.extend(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).filter(|(name, _)| {
        name.starts_with("x-oss-") || matches!(*name, "content-type" | "content-md5") || additional.contains(name)
    }));
    if additional.contains(&HOST.as_str()) {
        signed.push((HOST.as_str(), host.as_bytes()));
    }
    signed.sort_unstable();

    let mut canonical = String::with_capacity(512 + path.len() + query.len());
    for part in [method.as_str(), "\n", path, "\n", query, "\n"] {
        canonical.push_str(part);
    }
    for (name, value) in &signed {
        canonical.push_str(name);
        canonical.push(':');
        push_canonical(&mut canonical, value);
        canonical.push('\n');
    }
    let additional = additional.join(";");
    for part in ["\n", &additional, "\n", UNSIGNED_PAYLOAD] {
        canonical.push_str(part);
    }

    let key = scope.keys.get(who.secret, stamp.day(), scope.region, &CHAIN);
    let mut text = String::with_capacity(256);
    for part in ["OSS4-HMAC-SHA256 Credential=", who.access_key_id, "/", &key.scope] {
        text.push_str(part);
    }
    if !additional.is_empty() {
        text.push_str(",AdditionalHeaders=");
        text.push_str(&additional);
    }
    text.push_str(",Signature=");
    push_hex(&mut text, &key.sign("OSS4-HMAC-SHA256", &stamp, &canonical));
    let mut value = HeaderValue::try_from(text).map_err(|_| UnprintableCredential)?;
    value.set_sensitive(true);
    headers.insert(AUTHORIZATION, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{EmptyValue, KeyCache, encode_path, encode_query};
    use super::*;
    use crate::secret::Secret;
    use http::{HeaderMap, Method};
    use reqsign_core::{Context, SignRequest};

    /// The vector of the vendor's own V4 signer tests (the Go and Python SDKs, version 2, share it).
    fn vendor_vector(token: Option<&str>, additional: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-oss-head1", "value"),
            ("abc", "value"),
            ("zabc", "value"),
            ("xyz", "value"),
            ("content-type", "text/plain"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let query = encode_query(
            &[
                ("param1", "value1"),
                ("+param1", "value3"),
                ("|param1", "value4"),
                ("+param2", ""),
                ("|param2", ""),
                ("param2", ""),
            ],
            EmptyValue::Bare,
        );
        let path = encode_path("/bucket/1234+-/123/1.txt").to_string();
        let keys = KeyCache::default();
        let token = token.map(Secret::new);
        sign_with(
            Unsigned {
                method: &Method::PUT,
                path: &path,
                query: &query,
                host: "bucket.oss-cn-hangzhou.aliyuncs.com",
                headers: &mut headers,
            },
            Signatory { access_key_id: "ak", secret: &Secret::new("sk"), token: token.as_ref() },
            &Scope {
                region: "cn-hangzhou",
                time: jiff::Timestamp::from_second(if token.is_some() { 1_702_784_856 } else { 1_702_743_657 })
                    .unwrap(),
                keys: &keys,
            },
            additional,
        )
        .unwrap();
        headers[AUTHORIZATION].to_str().unwrap().to_owned()
    }

    #[test]
    fn the_vendors_vectors() {
        assert_eq!(
            vendor_vector(None, &[]),
            "OSS4-HMAC-SHA256 Credential=ak/20231216/cn-hangzhou/oss/aliyun_v4_request,\
             Signature=e21d18daa82167720f9b1047ae7e7f1ce7cb77a31e8203a7d5f4624fa0284afe"
        );
        assert_eq!(
            vendor_vector(Some("token"), &[]),
            "OSS4-HMAC-SHA256 Credential=ak/20231217/cn-hangzhou/oss/aliyun_v4_request,\
             Signature=b94a3f999cf85bcdc00d332fbd3734ba03e48382c36fa4d5af5df817395bd9ea"
        );
    }

    #[tokio::test]
    async fn the_same_as_reqsign() {
        let long_key = "样本/a b//..//+%?#&=~*'()!@:;,.-_";
        for (method, key, query) in [
            (Method::GET, long_key, vec![("partNumber", "3"), ("uploadId", "A/B+C="), ("append", "")]),
            (Method::POST, "/leading", vec![("uploads", "")]),
            (Method::HEAD, "", vec![]),
        ] {
            for token in [None, Some("a+token/==")] {
                let path = format!("/{}", encode_path(key));
                let query = encode_query(&query, EmptyValue::Bare);
                let host = "bucket.oss-cn-shanghai.aliyuncs.com:8080";
                let url = format!("http://{host}{path}?{query}");
                let request = http::Request::builder()
                    .method(method.clone())
                    .uri(&url)
                    .header(HOST, host)
                    .header("content-type", "application/octet-stream")
                    .header("x-oss-forbid-overwrite", "true")
                    .body(())
                    .unwrap();
                let (mut theirs, ()) = request.into_parts();
                let mut ours = theirs.headers.clone();
                ours.remove(HOST);
                reqsign_aliyun_oss::RequestSigner::new("bucket")
                    .with_region("cn-shanghai")
                    .with_signing_version(reqsign_aliyun_oss::SigningVersion::V4)
                    .sign_request(
                        &Context::new(),
                        &mut theirs,
                        Some(&reqsign_aliyun_oss::Credential {
                            access_key_id: "LTAI".into(),
                            access_key_secret: "secret".into(),
                            security_token: token.map(str::to_owned),
                            expires_in: None,
                        }),
                        None,
                    )
                    .await
                    .unwrap();
                let stamp = theirs.headers[DATE].to_str().unwrap();
                let civil = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", stamp).unwrap();
                let time = civil.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
                let token = token.map(Secret::new);
                sign_with(
                    Unsigned {
                        method: &method,
                        path: &format!("/bucket{path}"),
                        query: &query,
                        host,
                        headers: &mut ours,
                    },
                    Signatory { access_key_id: "LTAI", secret: &Secret::new("secret"), token: token.as_ref() },
                    &Scope { region: "cn-shanghai", time, keys: &KeyCache::default() },
                    &["host"],
                )
                .unwrap();
                let theirs = theirs.headers[AUTHORIZATION].to_str().unwrap().replace(", ", ",");
                assert_eq!(ours[AUTHORIZATION].to_str().unwrap(), theirs, "{method} {url}");
            }
        }
    }

    #[test]
    fn a_broken_token_is_named_and_not_printed() {
        let mut headers = HeaderMap::new();
        let token = Secret::new("line\nbreak");
        let error = sign(
            Unsigned { method: &Method::GET, path: "/b/", query: "", host: "h", headers: &mut headers },
            Signatory { access_key_id: "ak", secret: &Secret::new("sk"), token: Some(&token) },
            &Scope { region: "r", time: jiff::Timestamp::UNIX_EPOCH, keys: &KeyCache::default() },
        )
        .unwrap_err();
        assert!(!error.to_string().contains("break\n") && error.to_string().contains("security token"));
    }
}
