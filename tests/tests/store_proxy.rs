//! The REST client behind a forward proxy, for plain and for encrypted endpoints.
//!
//! Proxies come from the environment, so each client is a process of its own.

use std::time::Duration;

use tests::client::{Ended, StoreClient};
use tests::double::{AccessKey, Double, DoubleConfig};
use tests::imds::Imds;
use tests::proxy::{Conduct, Proxy};
use tests::tls::{Authority, TlsFront, Validity};

const BUCKET: &str = "test-bucket";

/// `user:pa@ss` as the proxy is to see it, and as it is written in a URL.
const CREDENTIALS: &str = "Basic dXNlcjpwYUBzcw==";
const IN_URL: &str = "user:pa%40ss@";

/// Names that no resolver knows: only a proxy can reach them.
const ENDPOINT: &str = "storage.invalid";

/// The double behind a proxy, in clear and under TLS.
struct Scene {
    double: Double,
    authority: Authority,
    front: TlsFront,
    plain: Proxy,
    secure: Proxy,
}

impl Scene {
    fn new() -> Self {
        let double = Double::start(DoubleConfig::default());
        double.put(BUCKET, "k", "value");
        let authority = Authority::new();
        let names = [ENDPOINT, "test-bucket.storage.invalid"];
        let front = TlsFront::start(&authority.issue(&names, Validity::Now), double.port());
        let (plain, secure) = (Proxy::start(double.port()), Proxy::start(front.port()));
        Self { double, authority, front, plain, secure }
    }

    /// A client whose proxies have these credentials in their URLs.
    fn client(&self, endpoint: &str, credentials: &str) -> StoreClient {
        StoreClient::new(endpoint)
            .environment("SSL_CERT_FILE", self.authority.file())
            .environment("HTTP_PROXY", format!("http://{credentials}{}", self.plain.authority()))
            .environment("https_proxy", format!("http://{credentials}{}", self.secure.authority()))
    }
}

/// Checks that nothing that was said holds a password.
#[track_caller]
fn assert_discreet(ended: &Ended) {
    for secret in ["pa@ss", "pa%40ss", "dXNlcjpwYUBzcw", "test-secret"] {
        assert!(
            !ended.log.contains(secret) && !ended.error.contains(secret),
            "{secret}: {} {}",
            ended.error,
            ended.log
        );
    }
}

#[test]
fn plain_endpoints_are_reached_through_http_proxy() {
    let scene = Scene::new();
    scene.plain.set_conduct(Conduct::Demand(CREDENTIALS.to_owned()));
    for scheme in ["oss", "s3"] {
        let client = scene.client(&format!("http://{ENDPOINT}"), IN_URL);
        let ended = client.conform(&format!("{scheme}://{BUCKET}/p/")).assert_success();
        assert_discreet(&ended);
    }
    let seen = scene.plain.seen();
    assert_eq!(seen.len(), scene.double.requests().len(), "every request came through the proxy");
    assert!(seen.iter().all(|request| request.target.starts_with("http://test-bucket.storage.invalid/")));
    assert!(seen.iter().all(|request| request.header("proxy-authorization") == Some(CREDENTIALS)));
    assert!(scene.secure.seen().is_empty());
}

#[test]
fn encrypted_endpoints_are_reached_through_a_tunnel_of_https_proxy() {
    let scene = Scene::new();
    scene.secure.set_conduct(Conduct::Demand(CREDENTIALS.to_owned()));
    for scheme in ["oss", "s3"] {
        let client = scene.client(&format!("https://{ENDPOINT}"), IN_URL);
        let ended = client.conform(&format!("{scheme}://{BUCKET}/p/")).assert_success();
        assert_discreet(&ended);
    }
    let seen = scene.secure.seen();
    assert_eq!(seen.len(), scene.front.handshakes(), "every connection came through the proxy");
    assert!(
        seen.iter().all(|request| request.method == "CONNECT" && request.target == "test-bucket.storage.invalid:443")
    );
    assert!(seen.iter().all(|request| request.header("proxy-authorization") == Some(CREDENTIALS)));
    // What is inside is between client and store.
    assert!(seen.iter().all(|request| request.header("authorization").is_none()));
    assert!(scene.plain.seen().is_empty());
}

#[test]
fn no_proxy_is_honoured() {
    let scene = Scene::new();
    let local = format!("http://localhost:{}", scene.double.port());
    let through = scene.client(&local, "").read("s3://test-bucket/k").assert_success();
    assert_eq!((through.stdout.as_slice(), scene.plain.seen().len()), (&b"value"[..], 1));
    for exception in ["localhost", "10.0.0.0/8, localhost", ".localhost", "*"] {
        for (variable, scheme) in [("NO_PROXY", "s3"), ("no_proxy", "oss")] {
            let client = scene.client(&local, "").environment(variable, exception);
            client.read(&format!("{scheme}://test-bucket/k")).assert_success();
        }
        assert_eq!(scene.plain.seen().len(), 1, "{exception:?}");
    }
}

#[test]
fn the_metadata_service_is_never_asked_through_a_proxy() {
    for scheme in ["oss", "s3"] {
        let scene = Scene::new();
        let imds = if scheme == "oss" { Imds::aliyun() } else { Imds::aws() };
        let key = AccessKey::new("STS.role", "s").with_token("tok", Duration::from_secs(3600));
        imds.set_role("worker", &key);
        scene.double.set_keys(vec![key]);
        let client = scene
            .client(&format!("http://{ENDPOINT}"), "")
            .environment("ALL_PROXY", scene.plain.url())
            .environment("ALIBABA_CLOUD_IMDS_ENDPOINT", imds.endpoint())
            .environment("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.endpoint());
        let client = ["OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
            .into_iter()
            .fold(client, StoreClient::without);
        assert_eq!(client.read(&format!("{scheme}://test-bucket/k")).assert_success().stdout, b"value");
        assert!(imds.requests().len() >= 2 && imds.requests().iter().all(|request| request.status == 200));
        let targets: Vec<String> = scene.plain.seen().into_iter().map(|request| request.target).collect();
        assert!(!targets.is_empty() && targets.iter().all(|target| target.contains(ENDPOINT)), "{targets:?}");
    }
}

#[test]
fn a_proxy_that_wants_other_credentials_is_named_at_once() {
    let scene = Scene::new();
    scene.plain.set_conduct(Conduct::Demand(CREDENTIALS.to_owned()));
    scene.secure.set_conduct(Conduct::Demand(CREDENTIALS.to_owned()));
    for (endpoint, proxy) in [("http", &scene.plain), ("https", &scene.secure)] {
        for credentials in ["", "user:pa%40ssed@"] {
            let before = proxy.seen().len();
            let ended = scene.client(&format!("{endpoint}://{ENDPOINT}"), credentials).read("oss://test-bucket/k");
            assert!(!ended.success);
            for text in [&proxy.authority(), "USER:PASSWORD", "the proxy"] {
                assert!(ended.error.contains(text), "{text}: {}", ended.error);
            }
            assert!((1..=5).contains(&(proxy.seen().len() - before)), "not for minutes");
            assert_discreet(&ended);
        }
    }
    assert!(scene.double.requests().is_empty());
}

#[test]
fn a_proxy_that_refuses_is_named_with_what_it_said() {
    let scene = Scene::new();
    for (endpoint, proxy) in [("http", &scene.plain), ("https", &scene.secure)] {
        proxy.set_conduct(Conduct::Refuse(403));
        let ended = scene.client(&format!("{endpoint}://{ENDPOINT}"), IN_URL).read("s3://test-bucket/k");
        assert!(!ended.success);
        assert!(ended.error.contains(&proxy.authority()) && ended.error.contains("403"), "{}", ended.error);
        assert!((1..=5).contains(&proxy.seen().len()), "not for minutes");
        assert_discreet(&ended);
    }
}

#[test]
fn a_proxy_that_dies_is_named_when_patience_is_at_its_end() {
    let scene = Scene::new();
    for (endpoint, proxy) in [("http", &scene.plain), ("https", &scene.secure)] {
        proxy.set_conduct(Conduct::HangUp);
        let client =
            scene.client(&format!("{endpoint}://{ENDPOINT}"), IN_URL).environment("STORE_CLIENT_TOTAL_MS", "1500");
        let ended = client.read("oss://test-bucket/k");
        assert!(!ended.success);
        assert!(ended.error.contains(&proxy.authority()) && ended.error.contains("proxy"), "{}", ended.error);
        assert!(proxy.seen().len() > 1, "it may come back, so it is asked again");
        assert_discreet(&ended);
    }
    let gone = Proxy::start(scene.double.port());
    let (url, authority) = (gone.url(), gone.authority());
    drop(gone);
    for endpoint in ["http", "https"] {
        let client = scene.client(&format!("{endpoint}://{ENDPOINT}"), "");
        let client = client.environment("HTTP_PROXY", &url).environment("https_proxy", &url);
        let ended = client.environment("STORE_CLIENT_TOTAL_MS", "1500").read("s3://test-bucket/k");
        assert!(!ended.success);
        for text in [authority.as_str(), "the proxy", "refused"] {
            assert!(ended.error.contains(text), "{text}: {}", ended.error);
        }
    }
}

#[test]
fn a_proxy_that_comes_back_costs_only_time() {
    let scene = Scene::new();
    for (endpoint, proxy) in [("http", &scene.plain), ("https", &scene.secure)] {
        for conduct in [Conduct::HangUp, Conduct::Refuse(502)] {
            proxy.set_conduct(conduct);
            let before = proxy.seen().len();
            std::thread::scope(|scope| {
                let client = scene.client(&format!("{endpoint}://{ENDPOINT}"), "");
                let reading = scope.spawn(move || client.read("oss://test-bucket/k"));
                tests::agent::eventually("a second attempt", Duration::from_secs(60), || {
                    proxy.seen().len() >= before + 2
                });
                proxy.set_conduct(Conduct::Forward);
                assert_eq!(reading.join().unwrap().assert_success().stdout, b"value");
            });
        }
    }
}

#[test]
fn a_setting_that_is_no_proxy_is_said_without_its_password() {
    let scene = Scene::new();
    let ended = StoreClient::new(&scene.double.endpoint())
        .environment("HTTP_PROXY", "http://user:pa@ss word@proxy.invalid:1")
        .read("s3://test-bucket/k")
        .assert_success();
    assert!(ended.log.contains("HTTP_PROXY is not the URL of a proxy"), "{}", ended.log);
    assert_discreet(&ended);
}
