//! The REST client over TLS: in front of the storage double, with certificates that are good and that are not.
//!
//! CA certificates come from the environment, so each client is a process of its own.

use std::path::Path;

use serde_json::json;
use tests::agent::{Node, command, job, merge};
use tests::client::{Ended, StoreClient};
use tests::double::{AccessKey, Dialect, Double, DoubleConfig, Fault, Often, When};
use tests::tls::{Authority, TlsFront, Validity};

const BUCKET: &str = "test-bucket";

/// Path style and virtual-hosted names.
const NAMES: [&str; 2] = ["localhost", "test-bucket.localhost"];

/// A client of `https://localhost:PORT`.
fn client(port: u16, certificates: &Path) -> StoreClient {
    StoreClient::new(&format!("https://localhost:{port}")).environment("SSL_CERT_FILE", certificates)
}

#[test]
fn both_protocols_conform_over_tls() {
    let double = Double::start(DoubleConfig::default());
    let authority = Authority::new();
    // Each reaches its bucket its own way: what the other would connect to has no certificate.
    for (scheme, dialect, name) in [("oss", Dialect::Oss, NAMES[1]), ("s3", Dialect::S3, NAMES[0])] {
        let front = TlsFront::start(&authority.issue(&[name], Validity::Now), double.port());
        double.clear_requests();
        let ended = client(front.port(), authority.file()).conform(&format!("{scheme}://{BUCKET}/p/")).assert_success();
        assert!(double.requests().iter().all(|request| request.dialect == dialect));
        assert!(!ended.log.contains("test-secret"));
        assert!(front.handshakes() > 0);
    }
    assert!(double.objects(BUCKET).is_empty() && double.uploads(BUCKET).is_empty());
}

#[test]
fn damage_inside_tls_is_found_without_a_signed_hash() {
    let double = Double::start(DoubleConfig::default());
    let authority = Authority::new();
    let front = TlsFront::start(&authority.issue(&NAMES, Validity::Now), double.port());
    for scheme in ["oss", "s3"] {
        let location = format!("{scheme}://{BUCKET}/object");
        let fault = double.fault(Fault::WrongUpload, When::any(), Often::Next(1));
        client(front.port(), authority.file()).write(&location, 100_000, None).assert_success();
        assert_eq!(double.happened(fault), 1);
        let stored = double.get(BUCKET, "object").unwrap();
        assert!(stored == oss::conformance::sample(100_000, 1), "sent again after it had arrived damaged");
        let fault = double.fault(Fault::WrongByte, When::any(), Often::Next(1));
        let ended = client(front.port(), authority.file()).read(&location).assert_success();
        assert!(double.happened(fault) == 1 && ended.stdout == stored);
    }
}

/// Checks a refusal: it names the endpoint, the cause and the remedy, and the client did not try for minutes.
#[track_caller]
fn assert_refused(ended: &Ended, front: &TlsFront, double: &Double, says: &[&str]) {
    assert!(!ended.success, "{}", ended.log);
    let place = format!("localhost:{}", front.port());
    for text in [&[place.as_str(), "GET "], says].concat() {
        assert!(ended.error.contains(text), "no {text:?} in: {}", ended.error);
    }
    assert_eq!(ended.error.lines().count(), 1);
    assert!((1..=5).contains(&front.connections()), "{} attempts", front.connections());
    assert_eq!(
        (front.handshakes(), double.requests().len()),
        (0, 0),
        "nothing was sent to a server that is not trusted"
    );
}

#[test]
fn certificates_that_are_not_good_are_refused_and_explained() {
    let double = Double::start(DoubleConfig::default());
    let (known, unknown) = (Authority::new(), Authority::new());
    let cases: [(_, &[&str]); 4] = [
        (unknown.issue(&NAMES, Validity::Now), &["UnknownIssuer", "SSL_CERT_FILE", "update-ca-certificates"]),
        (known.issue(&["elsewhere.example"], Validity::Now), &["elsewhere.example", "check the endpoint's name"]),
        (known.issue(&NAMES, Validity::Expired), &["expired", "clock"]),
        (known.issue(&NAMES, Validity::NotYet), &["not valid yet", "clock"]),
    ];
    for (certificate, says) in cases {
        for scheme in ["oss", "s3"] {
            let front = TlsFront::start(&certificate, double.port());
            let ended = client(front.port(), known.file()).read(&format!("{scheme}://{BUCKET}/k"));
            assert_refused(&ended, &front, &double, says);
        }
    }
}

#[test]
fn a_machine_without_ca_certificates_has_the_built_in_ones_and_plain_http() {
    let double = Double::start(DoubleConfig::default());
    double.put(BUCKET, "k", "value");
    let authority = Authority::new();
    let empty = tempfile::tempdir().unwrap();
    let front = TlsFront::start(&authority.issue(&NAMES, Validity::Now), double.port());
    // Not the test's authority, so refused by those that are built in.
    let bare = |endpoint: &str| {
        StoreClient::new(endpoint)
            .environment("SSL_CERT_FILE", empty.path().join("none"))
            .environment("SSL_CERT_DIR", empty.path())
    };
    let ended = bare(&format!("https://localhost:{}", front.port())).read("s3://test-bucket/k");
    assert_refused(&ended, &front, &double, &["UnknownIssuer"]);
    assert!(ended.log.contains("using the built-in ones"), "{}", ended.log);
    assert!(ended.log.contains("WARN") && ended.log.contains("SSL_CERT_FILE or SSL_CERT_DIR names"), "{}", ended.log);
    assert_eq!(bare(&double.endpoint()).read("s3://test-bucket/k").assert_success().stdout, b"value");
}

#[test]
fn http_and_https_mistaken_for_each_other_are_explained() {
    let double = Double::start(DoubleConfig::default());
    let authority = Authority::new();
    let front = TlsFront::start(&authority.issue(&NAMES, Validity::Now), double.port());
    let ended = client(double.port(), authority.file()).read("s3://test-bucket/k");
    assert!(!ended.success && ended.error.contains("write the endpoint with http://"), "{}", ended.error);
    assert!(double.connections() <= 5, "{} attempts", double.connections());
    let ended = StoreClient::new(&format!("http://localhost:{}", front.port())).read("s3://test-bucket/k");
    assert!(!ended.success && ended.error.contains("write the endpoint with https://"), "{}", ended.error);
    assert!(front.connections() <= 5, "{} attempts", front.connections());
}

#[test]
fn a_job_runs_on_a_store_behind_tls() {
    let double = Double::start(DoubleConfig::default().key(AccessKey::new("other", "s")));
    double.put(BUCKET, "in/data.txt", "over the wire\n");
    let authority = Authority::new();
    let front = TlsFront::start(&authority.issue(&NAMES, Validity::Now), double.port());
    let certificates = authority.file().to_string_lossy().into_owned();
    let mut nodes = Vec::new();
    for scheme in ["oss", "s3"] {
        let node = Node::with_double(&format!("https://localhost:{}", front.port()))
            .environment("SSL_CERT_FILE", &certificates);
        let (input, output) = (node.mapped("in/"), node.mapped("out/"));
        let store = format!("{scheme}://{BUCKET}/");
        let mut task = command(&format!("/bin/cp {input}data.txt {output}copy.txt"));
        merge(
            &mut task,
            &json!({
                "InputMapping": {format!("{store}in/"): input},
                "OutputMapping": {output: format!("{store}{scheme}-out/")},
            }),
        );
        let finished = node.run(&tests::agent::job_on(&store, &task));
        assert_eq!(finished.status, 0, "{} {}", finished.outcome, finished.stderr);
        assert_eq!(double.get(BUCKET, &format!("{scheme}-out/copy.txt")).unwrap(), b"over the wire\n");
        nodes.push(node);
    }

    // Without the authority: a clear end, and soon.
    let node = Node::with_double(&format!("https://localhost:{}", front.port()));
    let input = node.mapped("in/");
    let mut task = command(&format!("/bin/cat {input}data.txt"));
    merge(&mut task, &json!({"InputMapping": {format!("oss://{BUCKET}/in/"): input}}));
    let finished = node.run(&job(&task));
    assert_ne!(finished.status, 0);
    assert!(finished.message().contains("UnknownIssuer"), "{finished:?}");
    assert!(finished.message().contains("SSL_CERT_FILE"), "{finished:?}");
    nodes.push(node);
    // The mounts' servers live on for a while after the last mount: for all nodes at the same time.
    nodes.iter().for_each(Node::assert_clean);
}
