//! AWS signature version 4 for S3, in the `Authorization` header.
//!
//! S3 differs from other AWS services in that the path is encoded once and not normalised.

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderName, HeaderValue};

use super::{Chain, Scope, Signatory, UnprintableCredential, Unsigned, push_canonical, push_hex};

const CHAIN: Chain = Chain { prefix: "AWS4", service: "s3", terminator: "aws4_request" };
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Whether a header is part of the signature: not those that a proxy on the way may change.
fn is_signed(name: &str) -> bool {
    !matches!(name, "content-length" | "connection" | "transfer-encoding" | "expect" | "user-agent" | "authorization")
}

/// Signs a request. `payload` is the body's SHA-256 in hexadecimal or [`UNSIGNED_PAYLOAD`](super::UNSIGNED_PAYLOAD). Every
/// header present takes part but those that a proxy on the way may change.
pub(crate) fn sign(
    request: Unsigned<'_>,
    payload: &str,
    who: Signatory<'_>,
    scope: &Scope<'_>,
) -> Result<(), UnprintableCredential> {
    let Unsigned { method, path, query, host, headers } = request;
    let stamp = scope.stamp();
    headers.insert(DATE, stamp.value());
    headers.insert(CONTENT_SHA256, HeaderValue::from_str(payload).map_err(|_| UnprintableCredential)?);
    if let Some(token) = who.token {
        let mut value = HeaderValue::from_str(token.expose()).map_err(|_| UnprintableCredential)?;
        value.set_sensitive(true);
        headers.insert(SECURITY_TOKEN, value);
    }

    let mut signed: Vec<(&str, &[u8])> = Vec::with_capacity(headers.len() + 1);
    let present = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    signed.extend(present.filter(|(name, _)| is_signed(name)));
    signed.push((HOST.as_str(), host.as_bytes()));
    signed.sort_unstable();

    let mut canonical = String::with_capacity(512 + path.len() + query.len());
    for part in [method.as_str(), "\n", path, "\n", query, "\n"] {
        canonical.push_str(part);
    }
    let mut names = String::with_capacity(128);
    for (name, value) in &signed {
        canonical.push_str(name);
        canonical.push(':');
        push_canonical(&mut canonical, value);
        canonical.push('\n');
        if !names.is_empty() {
            names.push(';');
        }
        names.push_str(name);
    }
    for part in ["\n", &names, "\n", payload] {
        canonical.push_str(part);
    }

    let key = scope.keys.get(who.secret, stamp.day(), scope.region, &CHAIN);
    let mut text = String::with_capacity(320);
    for part in
        ["AWS4-HMAC-SHA256 Credential=", who.access_key_id, "/", &key.scope, ", SignedHeaders=", &names, ", Signature="]
    {
        text.push_str(part);
    }
    push_hex(&mut text, &key.sign("AWS4-HMAC-SHA256", &stamp, &canonical));
    let mut value = HeaderValue::try_from(text).map_err(|_| UnprintableCredential)?;
    value.set_sensitive(true);
    headers.insert(AUTHORIZATION, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{EmptyValue, KeyCache, UNSIGNED_PAYLOAD, encode_path, encode_query, sha256_hex};
    use super::*;
    use crate::secret::Secret;
    use http::{HeaderMap, Method};
    use reqsign_core::{Context, SignRequest};

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// The examples of "Signature Calculations for the Authorization Header" in the S3 API reference.
    fn amazon_example(
        method: &Method,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, &'static str)],
        payload: &str,
    ) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        sign(
            Unsigned {
                method,
                path: &encode_path(path).to_string(),
                query: &encode_query(query, EmptyValue::WithEquals),
                host: "examplebucket.s3.amazonaws.com",
                headers: &mut map,
            },
            payload,
            Signatory {
                access_key_id: "AKIAIOSFODNN7EXAMPLE",
                secret: &Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
                token: None,
            },
            &Scope { region: "us-east-1", time: "2013-05-24T00:00:00Z".parse().unwrap(), keys: &KeyCache::default() },
        )
        .unwrap();
        let text = map[AUTHORIZATION].to_str().unwrap();
        assert!(
            text.starts_with("AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request")
        );
        text.split_once("SignedHeaders=").unwrap().1.to_owned()
    }

    #[test]
    fn amazons_examples() {
        assert_eq!(
            amazon_example(&Method::GET, "/test.txt", &[], &[("range", "bytes=0-9")], EMPTY),
            "host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(
            amazon_example(
                &Method::PUT,
                "/test$file.text",
                &[],
                &[("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
                &sha256_hex(b"Welcome to Amazon S3."),
            ),
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class, \
             Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
        assert_eq!(
            amazon_example(&Method::GET, "/", &[("lifecycle", "")], &[], EMPTY),
            "host;x-amz-content-sha256;x-amz-date, \
             Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            amazon_example(&Method::GET, "/", &[("prefix", "J"), ("max-keys", "2")], &[], EMPTY),
            "host;x-amz-content-sha256;x-amz-date, \
             Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[tokio::test]
    async fn the_same_as_reqsign() {
        for (method, key, query) in [
            (Method::GET, "样本/a b//..//+%?#&=~*'()!@:;,.-_", vec![("partNumber", "3"), ("uploadId", "A/B+C=")]),
            (Method::POST, "/leading", vec![("uploads", "")]),
            (Method::HEAD, "", vec![]),
        ] {
            for token in [None, Some("a+token/==")] {
                let path = format!("/bucket/{}", encode_path(key));
                let query = encode_query(&query, EmptyValue::WithEquals);
                let host = "localhost:9000";
                let request = http::Request::builder()
                    .method(method.clone())
                    .uri(format!("http://{host}{path}?{query}"))
                    .header("content-type", "application/octet-stream")
                    .header("if-none-match", "*")
                    .body(())
                    .unwrap();
                let (mut theirs, ()) = request.into_parts();
                let mut ours = theirs.headers.clone();
                reqsign_aws_v4::RequestSigner::new("s3", "eu-west-1")
                    .sign_request(
                        &Context::new(),
                        &mut theirs,
                        Some(&reqsign_aws_v4::Credential {
                            access_key_id: "AKIA".into(),
                            secret_access_key: "secret".into(),
                            session_token: token.map(str::to_owned),
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
                sign(
                    Unsigned { method: &method, path: &path, query: &query, host, headers: &mut ours },
                    UNSIGNED_PAYLOAD,
                    Signatory { access_key_id: "AKIA", secret: &Secret::new("secret"), token: token.as_ref() },
                    &Scope { region: "eu-west-1", time, keys: &KeyCache::default() },
                )
                .unwrap();
                assert_eq!(ours[AUTHORIZATION], theirs.headers[AUTHORIZATION], "{method} {key}");
            }
        }
    }
}
