//! Signatures of requests: OSS V4 and AWS SigV4.
//!
//! Both hash a canonical form of the request together with the time and a scope (day, region, service) under a key that is
//! derived from the secret once a day. They differ in names, in which headers take part and in how an empty query value is
//! written. What is signed has to be byte for byte what the server reconstructs, so the path and the query that go over the
//! wire are made here as well, by the one encoder that both uses share.
//!
//! The time is an argument: a node whose clock is off signs with the server's.

mod oss;
mod s3;

pub(crate) use oss::sign as sign_oss;
pub(crate) use s3::sign as sign_s3;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::secret::Secret;

/// Everything but the unreserved characters of RFC 3986, which both vendors leave alone in query names and values.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// In a path the slash separates and stays, too; nothing is folded: `//`, `.` and `..` are parts of keys.
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// The payload hash that says "not hashed".
pub(crate) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// Who signs.
#[derive(Clone, Copy)]
pub(crate) struct Signatory<'a> {
    /// The access key's public half.
    pub access_key_id: &'a str,
    /// Its secret half.
    pub secret: &'a Secret,
    /// The STS token of temporary credentials.
    pub token: Option<&'a Secret>,
}

/// What the signature is good for.
pub(crate) struct Scope<'a> {
    /// The region the bucket is in.
    pub region: &'a str,
    /// The time of signing, seconds since 1970: our clock corrected by the server's.
    pub time: jiff::Timestamp,
    /// Keys derived before.
    pub keys: &'a KeyCache,
}

impl Scope<'_> {
    fn stamp(&self) -> Stamp {
        Stamp::new(self.time)
    }
}

/// `20231216T162057Z`, as both protocols write a time.
struct Stamp([u8; 16]);

impl Stamp {
    fn new(time: jiff::Timestamp) -> Self {
        let civil = jiff::tz::Offset::UTC.to_datetime(time);
        let mut text = *b"00000000T000000Z";
        // None of these is negative: the years of a timestamp that anybody signs with have four digits.
        let fields = [
            (0..4, civil.year()),
            (4..6, civil.month().into()),
            (6..8, civil.day().into()),
            (9..11, civil.hour().into()),
            (11..13, civil.minute().into()),
            (13..15, civil.second().into()),
        ];
        for (place, value) in fields {
            let mut value = value.unsigned_abs();
            for digit in text[place].iter_mut().rev() {
                *digit = DIGITS[usize::from(value % 10)];
                value /= 10;
            }
        }
        Self(text)
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits and two letters are UTF-8")
    }

    fn day(&self) -> &str {
        &self.as_str()[..8]
    }

    fn value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.0).expect("digits and letters can be sent")
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Adds bytes in lower-case hexadecimal.
fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// A request before it is signed. The signer adds headers.
pub(crate) struct Unsigned<'a> {
    /// The method.
    pub method: &'a Method,
    /// The canonical path, encoded by [`encode_path`]: on OSS always `/bucket/key`, on S3 the path that is sent.
    pub path: &'a str,
    /// The query as it is sent, made by [`encode_query`].
    pub query: &'a str,
    /// The `Host` header: name and, unless it is the scheme's own, port.
    pub host: &'a str,
    /// All other headers.
    pub headers: &'a mut HeaderMap,
}

/// A credential holds a character that cannot be sent in a header, such as a line break from a careless copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the access key or security token holds characters that no header can carry: it was copied with a line break or is cut off"
)]
pub(crate) struct UnprintableCredential;

/// Encodes a path so that every byte of a key arrives as it is: once, and slashes stay.
pub(crate) fn encode_path(path: &str) -> percent_encoding::PercentEncode<'_> {
    utf8_percent_encode(path, PATH)
}

/// How a parameter without a value is written, on the wire and under the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EmptyValue {
    /// `uploads=`: S3.
    WithEquals,
    /// `uploads`: OSS.
    Bare,
}

/// Encodes and sorts a query. The same text is sent and signed.
pub(crate) fn encode_query(pairs: &[(&str, &str)], empty: EmptyValue) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    let encode = |text| utf8_percent_encode(text, QUERY).to_string();
    let mut encoded: Vec<(String, String)> = pairs.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    encoded.sort();
    let mut query = String::new();
    for (name, value) in encoded {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(&name);
        if !value.is_empty() || empty == EmptyValue::WithEquals {
            query.push('=');
            query.push_str(&value);
        }
    }
    query
}

/// The signing key of the day: four HMACs that need not be done for each request.
#[derive(Default)]
pub(crate) struct KeyCache(Mutex<Option<Arc<SigningKey>>>);

/// A key, ready to sign with.
struct SigningKey {
    secret: Secret,
    day: String,
    region: String,
    /// What the signature is said to be good for: `20231216/cn-hangzhou/oss/aliyun_v4_request`.
    scope: String,
    /// Has taken in the key.
    mac: Hmac<Sha256>,
}

impl SigningKey {
    /// Signs the hash of a canonical request, where `algorithm` is what both protocols begin with.
    fn sign(&self, algorithm: &str, stamp: &Stamp, canonical: &str) -> [u8; 32] {
        let mut text = String::with_capacity(192);
        for part in [algorithm, "\n", stamp.as_str(), "\n", &self.scope, "\n"] {
            text.push_str(part);
        }
        push_hex(&mut text, &Sha256::digest(canonical));
        let mut mac = self.mac.clone();
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyCache(***)")
    }
}

impl KeyCache {
    fn get(&self, secret: &Secret, day: &str, region: &str, dialect: &Chain) -> Arc<SigningKey> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hit) = cached.as_ref().filter(|c| c.day == day && c.region == region && c.secret == *secret) {
            return Arc::clone(hit);
        }
        let seed = format!("{}{}", dialect.prefix, secret.expose());
        let mut key = hmac(seed.as_bytes(), day.as_bytes());
        for step in [region, dialect.service, dialect.terminator] {
            key = hmac(&key, step.as_bytes());
        }
        let made = Arc::new(SigningKey {
            secret: secret.clone(),
            day: day.to_owned(),
            region: region.to_owned(),
            scope: format!("{day}/{region}/{}/{}", dialect.service, dialect.terminator),
            mac: keyed(&key),
        });
        *cached = Some(Arc::clone(&made));
        made
    }
}

/// The constants in which the two key derivations differ.
struct Chain {
    prefix: &'static str,
    service: &'static str,
    terminator: &'static str,
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = keyed(key);
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

/// Adds a header's value as both protocols canonicalise it: trimmed, runs of spaces made one.
fn push_canonical(out: &mut String, value: &[u8]) {
    let text = String::from_utf8_lossy(value);
    if !text.starts_with(' ') && !text.ends_with(' ') && !text.contains("  ") {
        out.push_str(&text);
        return;
    }
    let mut first = true;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !std::mem::take(&mut first) {
            out.push(' ');
        }
        out.push_str(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    #[test]
    fn queries_are_sorted_after_encoding() {
        let pairs = [("prefix", "a b+c/"), ("list-type", "2"), ("append", "")];
        assert_eq!(encode_query(&pairs, EmptyValue::Bare), "append&list-type=2&prefix=a%20b%2Bc%2F");
        assert_eq!(encode_query(&pairs, EmptyValue::WithEquals), "append=&list-type=2&prefix=a%20b%2Bc%2F");
    }

    #[test]
    fn nothing_prints_a_key() {
        let cache = KeyCache::default();
        let chain = Chain { prefix: "AWS4", service: "s3", terminator: "aws4_request" };
        cache.get(&Secret::new("hunter2"), "20240101", "r", &chain);
        assert_eq!(format!("{cache:?}"), "KeyCache(***)");
    }

    #[test]
    fn values_are_canonical() {
        for (value, canonical) in [("a", "a"), ("", ""), (" ", ""), (" a  b ", "a b"), ("a b", "a b"), ("a   b", "a b")]
        {
            let mut out = "x:".to_owned();
            push_canonical(&mut out, value.as_bytes());
            assert_eq!(out, format!("x:{canonical}"), "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn a_time_is_written_as_a_formatter_would(seconds in -62_135_596_800_i64..253_402_207_200) {
            let time = jiff::Timestamp::from_second(seconds).unwrap();
            let stamp = Stamp::new(time);
            prop_assert_eq!(stamp.as_str(), time.strftime("%Y%m%dT%H%M%SZ").to_string());
            prop_assert_eq!(stamp.day(), &stamp.as_str()[..8]);
            let value = stamp.value();
            prop_assert_eq!(value.as_bytes(), &stamp.0);
        }

        #[test]
        fn hexadecimal_is_what_it_is(bytes in any::<Vec<u8>>()) {
            let mut text = String::new();
            push_hex(&mut text, &bytes);
            prop_assert_eq!(text, hex::encode(bytes));
        }

        #[test]
        fn a_path_is_encoded_once_and_survives_as_a_uri(key in any::<String>()) {
            let path = format!("/{}", encode_path(&key));
            let uri: http::Uri = format!("http://bucket.example.com{path}").parse().unwrap();
            prop_assert_eq!(uri.path(), &path);
            prop_assert_eq!(uri.query(), None);
            let decoded = percent_decode_str(&path[1..]).decode_utf8().unwrap();
            prop_assert_eq!(decoded.as_ref(), key.as_str());
        }
    }
}
