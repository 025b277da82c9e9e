//! What the REST client does at Amazon's own S3 and nowhere else: CRC-64/NVME on the way there and back.
//!
//! It knows Amazon by the endpoint's name, so it is run behind a proxy that leads every name to the double.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oss::conformance::sample;
use oss::crc::crc64_nvme;
use tests::client::StoreClient;
use tests::double::{Double, DoubleConfig, Fault, Often, Operation, When};
use tests::proxy::{Proxied, Proxy};
use tests::tls::{Authority, TlsFront, Validity};

const BUCKET: &str = "test-bucket";
const OBJECT: &str = "s3://test-bucket/object";
const ENDPOINT: &str = "http://s3.us-east-1.amazonaws.com";

/// The double as Amazon's us-east-1, in clear and under TLS.
struct Amazon {
    double: Double,
    authority: Authority,
    _front: TlsFront,
    plain: Proxy,
    secure: Proxy,
}

impl Amazon {
    fn new() -> Self {
        let mut config = DoubleConfig { min_part_size: Some(1000), ..DoubleConfig::default() };
        config.buckets[0].region = "us-east-1".to_owned();
        let double = Double::start(config);
        let authority = Authority::new();
        let name = "test-bucket.s3.us-east-1.amazonaws.com";
        let front = TlsFront::start(&authority.issue(&[name], Validity::Now), double.port());
        let (plain, secure) = (Proxy::start(double.port()), Proxy::start(front.port()));
        Self { double, authority, _front: front, plain, secure }
    }

    fn client(&self) -> StoreClient {
        StoreClient::new(ENDPOINT).environment("AWS_REGION", "us-east-1").environment("HTTP_PROXY", self.plain.url())
    }

    /// The same with no endpoint named, which means HTTPS.
    fn secure(&self) -> StoreClient {
        self.client()
            .without("AWS_ENDPOINT_URL")
            .environment("SSL_CERT_FILE", self.authority.file())
            .environment("HTTPS_PROXY", self.secure.url())
    }
}

fn of(bytes: &[u8]) -> String {
    STANDARD.encode(crc64_nvme(bytes).to_be_bytes())
}

/// The headers of a request that have to do with checksums, but for the one that SDKs add for themselves.
fn checksums(request: &Proxied) -> Vec<(String, String)> {
    let ours = |name: &str| {
        name.starts_with("x-amz-checksum-") || matches!(name, "x-amz-mp-object-size" | "content-md5" | "x-amz-trailer")
    };
    let headers = request.headers.iter().filter(|(name, _)| ours(name.as_str()));
    let mut found: Vec<_> =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    found.sort();
    found
}

#[test]
fn it_conforms_in_clear_and_under_tls() {
    let amazon = Amazon::new();
    amazon.client().conform(&format!("s3://{BUCKET}/p/")).assert_success();
    let seen = amazon.plain.seen();
    let first = &seen[0];
    assert!(first.target.starts_with("http://test-bucket.s3.us-east-1.amazonaws.com/"), "{}", first.target);
    assert!(seen.iter().all(|request| request.header("content-md5").is_none()), "one checksum is enough");
    amazon.secure().conform(&format!("s3://{BUCKET}/p/")).assert_success();
    assert!(amazon.secure.seen().iter().all(|request| request.method == "CONNECT"));
    assert!(!amazon.secure.seen().is_empty());
    assert!(amazon.double.objects(BUCKET).is_empty() && amazon.double.uploads(BUCKET).is_empty());
}

#[test]
fn checksums_are_sent_as_amazons_own_sdk_sends_them() {
    let amazon = Amazon::new();
    let body = sample(2500, 1);
    let parts = [&body[..2000], &body[2000..]];
    let task = serde_json::json!({
        "endpoint": ENDPOINT,
        "proxy": amazon.plain.url(),
        "parts": parts.map(hex::encode),
        "crcs": parts.map(of),
        "whole": of(&body),
    });
    let script = tests::python::script("amazon_headers.py").env("AMAZON_HEADERS", task.to_string()).output().unwrap();
    assert!(script.status.success(), "{}", String::from_utf8_lossy(&script.stderr));
    assert_eq!(amazon.double.get(BUCKET, "sdk").unwrap(), body);
    let theirs: Vec<_> = amazon.plain.seen().iter().map(checksums).collect();

    let before = amazon.plain.seen().len();
    amazon.client().write(OBJECT, 2500, None).assert_success();
    amazon.client().write(OBJECT, 2500, Some(2000)).assert_success();
    assert_eq!(amazon.double.get(BUCKET, "object").unwrap(), body);
    let ours: Vec<_> = amazon.plain.seen()[before..].iter().map(checksums).collect();

    assert_eq!(ours, theirs);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let crc = |bytes: &[u8]| pair("x-amz-checksum-crc64nvme", &of(bytes));
    let full = || pair("x-amz-checksum-type", "FULL_OBJECT");
    assert_eq!(ours[0], [crc(&body)], "the object");
    assert_eq!(ours[1], [pair("x-amz-checksum-algorithm", "CRC64NVME"), full()], "the upload");
    assert_eq!(ours[2], [crc(parts[0])], "a part");
    assert_eq!(ours[3], [crc(parts[1])], "a part");
    assert_eq!(ours[4], [crc(&body), full(), pair("x-amz-mp-object-size", "2500")], "the completion");
}

#[test]
fn damaged_uploads_are_refused_and_sent_again() {
    let amazon = Amazon::new();
    for part in [None, Some(2000)] {
        // Under TLS, where no signature covers the body, and in clear, where one does.
        for client in [Amazon::secure, Amazon::client] {
            let operation = if part.is_some() { Operation::UploadPart } else { Operation::PutObject };
            amazon.double.clear_requests();
            let once = amazon.double.fault(Fault::WrongUpload, When::any().operation(operation), Often::Next(1));
            client(&amazon).write(OBJECT, 4500, part).assert_success();
            assert_eq!(amazon.double.happened(once), 1);
            let refused = amazon
                .double
                .count(|request| matches!(request.code.as_deref(), Some("BadDigest" | "XAmzContentSHA256Mismatch")));
            assert_eq!(refused, 1, "{:?}", amazon.double.requests());
            assert_eq!(amazon.double.get(BUCKET, "object").unwrap(), sample(4500, 1));

            let always = amazon.double.fault(Fault::WrongUpload, When::any().operation(operation), Often::Always);
            let ended = client(&amazon).write("s3://test-bucket/never", 4500, part);
            assert!(!ended.success && amazon.double.get(BUCKET, "never").is_none());
            assert!(ended.error.contains("BadDigest") || ended.error.contains("XAmzContentSHA256"), "{}", ended.error);
            amazon.double.remove_fault(always);
        }
    }
}

#[test]
fn damaged_downloads_are_found_by_the_checksum_of_the_whole() {
    let amazon = Amazon::new();
    // Made of parts: its entity tag is no MD5, so nothing but the CRC can tell.
    amazon.client().write(OBJECT, 4500, Some(2000)).assert_success();
    let once = amazon.double.fault(Fault::WrongByte, When::any(), Often::Next(1));
    assert_eq!(amazon.client().read(OBJECT).assert_success().stdout, sample(4500, 1));
    assert_eq!(amazon.double.happened(once), 1);
    amazon.double.fault(Fault::WrongByte, When::any(), Often::Always);
    let ended = amazon.client().read(OBJECT);
    assert!(!ended.success && ended.error.contains("CRC-64/NVME"), "{}", ended.error);
}

#[test]
fn an_upload_whose_completion_went_unanswered_is_known_by_its_checksum() {
    let amazon = Amazon::new();
    let when = When::any().operation(Operation::CompleteUpload);
    let lost = amazon.double.fault(Fault::LoseReply, when, Often::Next(1));
    amazon.client().write(OBJECT, 4500, Some(2000)).assert_success();
    assert_eq!(amazon.double.happened(lost), 1);
    assert_eq!(amazon.double.get(BUCKET, "object").unwrap(), sample(4500, 1));
}
