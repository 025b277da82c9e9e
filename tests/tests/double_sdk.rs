//! Other people's SDKs against our storage double: proof that it speaks the services' protocols, and not only ours.
//!
//! The checks are in `tests/sdk/*.py`, by each SDK's own means, its verification of checksums among them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use tests::double::{AccessKey, Dialect, Double, DoubleConfig, Operation};
use tests::moto::Moto;
use tests::python;

const REGION: &str = "cn-test";
const BUCKET: &str = "sdk-bucket";

/// Runs a script against a fresh double and checks that it really asked for all of `operations`.
fn run(script: &str, arguments: &[&str], allow_v1: bool, dialect: Dialect, operations: &[Operation]) {
    let config = DoubleConfig { allow_v1, ..DoubleConfig::empty() }
        .bucket(BUCKET, REGION)
        .key(AccessKey::new("test-key", "test-secret"))
        .key(AccessKey::new("STS.good", "good-secret").with_token("good/token+=", Duration::from_secs(3600)))
        .key(AccessKey::new("STS.old", "old-secret").with_expired_token("old-token", Duration::from_secs(1)));
    let double = Double::start(config);
    let setting = serde_json::json!({
        "endpoint": double.endpoint(),
        "region": REGION,
        "bucket": BUCKET,
        "key": {"id": "test-key", "secret": "test-secret"},
        "temporary": {"id": "STS.good", "secret": "good-secret", "token": "good/token+="},
        "expired": {"id": "STS.old", "secret": "old-secret", "token": "old-token"},
    });
    let output = python::script(script).args(arguments).env("STORE_DOUBLE", setting.to_string()).output();
    let output = output.unwrap_or_else(|error| panic!("{script} cannot be run: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script} {arguments:?} failed:\n{text}");
    assert!(text.contains("checks passed"), "{script} {arguments:?} did not come to its end:\n{text}");
    for operation in operations {
        let done = |status: Option<u16>| status.is_some_and(|status| (200..300).contains(&status));
        let times = double
            .count(|request| request.operation == *operation && request.dialect == dialect && done(request.status));
        assert!(times > 0, "{script} never did {operation:?}");
    }
    assert!(double.uploads(BUCKET).is_empty(), "{script} left uploads behind: {:?}", double.uploads(BUCKET));
}

const COMMON: [Operation; 14] = [
    Operation::GetObject,
    Operation::HeadObject,
    Operation::PutObject,
    Operation::CopyObject,
    Operation::DeleteObject,
    Operation::DeleteObjects,
    Operation::ListObjects,
    Operation::GetLocation,
    Operation::CreateUpload,
    Operation::UploadPart,
    Operation::ListParts,
    Operation::ListUploads,
    Operation::CompleteUpload,
    Operation::AbortUpload,
];

fn with(more: &[Operation]) -> Vec<Operation> {
    COMMON.iter().chain(more).copied().collect()
}

#[test]
fn oss2_with_v4_signatures() {
    let operations = with(&[Operation::AppendObject, Operation::CopyPart]);
    run("with_oss2.py", &["v4"], false, Dialect::Oss, &operations);
}

#[test]
fn oss2_with_v1_signatures_where_they_are_allowed() {
    let operations = with(&[Operation::AppendObject, Operation::CopyPart]);
    run("with_oss2.py", &["v1"], true, Dialect::Oss, &operations);
}

#[test]
fn alibabacloud_oss_v2() {
    run("with_oss_v2.py", &[], false, Dialect::Oss, &with(&[Operation::AppendObject]));
}

#[test]
fn boto3() {
    let operations = with(&[Operation::CopyPart, Operation::HeadBucket]);
    run("with_boto3.py", &[], false, Dialect::S3, &operations);
}

/// The scripts can fail: against a double that refuses V1, the V1 run does.
#[test]
#[should_panic(expected = "0002-00000080")]
fn v1_signatures_are_refused_where_they_are_not_allowed() {
    run("with_oss2.py", &["v1"], false, Dialect::Oss, &[]);
}

#[test]
fn moto_is_there_and_is_gone_when_dropped() {
    let moto = Moto::start();
    let address = moto.endpoint().strip_prefix("http://").unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream
        .write_all(b"PUT /moto-bucket HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(moto);
    assert!(TcpStream::connect(&address).is_err());
}
