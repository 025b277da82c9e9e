//! The REST client against the storage double, in both protocols and both ways to address a bucket, in good weather and bad.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

mod faults;
mod rights;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oss::conformance::{ODD_KEYS, conformance, conformance_without, sample};
use oss::crc::{crc64, crc64_combine, crc64_nvme};
use oss::{
    Addressing, Checksum, CredentialSource, ErrorKind, GetOptions, Key, ListRequest, Location, PutMode, Scheme, Secret,
    Settings, Store, StoreSettings, Stores, Timeouts,
};
use tests::double::{Dialect, Double, DoubleConfig, Fault, Often, When};
use tests::moto::Moto;

const BUCKET: &str = "test-bucket";
const REGION: &str = "cn-test";

/// Both protocols.
const SCHEMES: [Scheme; 2] = [Scheme::Oss, Scheme::S3];

fn secret(id: &str, secret: &str, token: Option<&str>) -> CredentialSource {
    CredentialSource::Static {
        access_key_id: id.to_owned(),
        access_key_secret: Secret::new(secret),
        security_token: token.map(Secret::new),
    }
}

/// Settings for a double whose faults are noticed soon.
fn settings(endpoint: &str) -> StoreSettings {
    StoreSettings {
        endpoint: Some(endpoint.to_owned()),
        region: Some(REGION.to_owned()),
        credentials: secret("test-key", "test-secret", None),
        addressing: Addressing::Auto,
        timeouts: Timeouts {
            connect: Duration::from_secs(2),
            read: Duration::from_millis(400),
            total: Duration::from_secs(30),
        },
        metadata_endpoint: None,
    }
}

fn open(scheme: Scheme, settings: StoreSettings) -> Arc<dyn Store> {
    let all = Settings { oss: settings.clone(), s3: settings };
    Stores::new(all).open(&Location::new(scheme, BUCKET, "").unwrap()).unwrap()
}

fn store(scheme: Scheme, double: &Double) -> Arc<dyn Store> {
    open(scheme, settings(&double.endpoint()))
}

/// What a client that never gives up is caught by. Far longer than anything here takes on the slowest machine.
const FOREVER: Duration = Duration::from_secs(300);

async fn no_hang<T>(operation: impl Future<Output = T>) -> T {
    tokio::time::timeout(FOREVER, operation).await.expect("the operation does not come to an end")
}

async fn read(store: &Arc<dyn Store>, key: &str) -> oss::Result<Bytes> {
    store.get(&Key::from(key), GetOptions::default()).await?.bytes().await
}

async fn read_range(store: &Arc<dyn Store>, key: &str, range: std::ops::Range<u64>) -> oss::Result<Bytes> {
    let options = GetOptions { range: Some(range), if_match: None };
    store.get(&Key::from(key), options).await?.bytes().await
}

async fn put(store: &Arc<dyn Store>, key: &str, bytes: &Bytes) -> oss::Result<oss::PutResponse> {
    store.put(&Key::from(key), bytes.clone(), PutMode::Overwrite).await
}

#[tokio::test]
async fn both_protocols_conform_in_path_style() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        conformance(store(scheme, &double), "").await;
        conformance(store(scheme, &double), "below/a prefix+%/").await;
        assert!(double.objects(BUCKET).is_empty() && double.uploads(BUCKET).is_empty());
        let expected = if scheme == Scheme::Oss { Dialect::Oss } else { Dialect::S3 };
        assert_eq!(double.count(|request| request.dialect != expected), 0);
    }
}

#[tokio::test]
async fn both_protocols_conform_virtual_hosted() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let mut settings = settings(&format!("http://localhost:{}", double.port()));
        settings.addressing = Addressing::VirtualHosted;
        conformance(open(scheme, settings), "p/").await;
        assert!(double.objects(BUCKET).is_empty() && double.uploads(BUCKET).is_empty());
    }
}

#[tokio::test]
async fn heads_and_gets_tell_what_the_store_keeps() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let store = store(scheme, &double);
        let (key, bytes) = (Key::new("k"), sample(300_000, 1));
        store.put(&key, bytes.clone(), PutMode::Overwrite).await.unwrap();
        let expected = match scheme {
            Scheme::Oss => Checksum::Crc64(crc64(&bytes)),
            _ => Checksum::Crc64Nvme(crc64_nvme(&bytes)),
        };
        assert_eq!(store.head(&key).await.unwrap().checksum, Some(expected));
        for range in [None, Some(5..10)] {
            let got = store.get(&key, GetOptions { range, if_match: None }).await.unwrap();
            assert!(got.request_id.as_ref().is_some_and(|id| !id.is_empty()), "{got:?}");
        }
    }
}

/// Keys that moto's web framework cannot route.
const MOTO_CANNOT: &[&str] = &["new\nline"];

#[tokio::test]
async fn a_server_that_is_not_ours_conforms() {
    let moto = Moto::start();
    let endpoint = moto.endpoint().to_owned();
    let made = tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        let mut socket = std::net::TcpStream::connect(endpoint.trim_start_matches("http://")).unwrap();
        let request =
            format!("PUT /{BUCKET} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    });
    let made = made.await.unwrap();
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    let mut settings = settings(moto.endpoint());
    settings.region = None;
    settings.timeouts.read = Duration::from_secs(20);
    conformance_without(open(Scheme::S3, settings), "p/", MOTO_CANNOT).await;
}

#[tokio::test]
async fn odd_keys_are_themselves_and_nothing_else() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let store = store(scheme, &double);
        for key in ODD_KEYS {
            // OSS has no keys that begin with a slash or a backslash.
            match put(&store, key, &Bytes::from(key.as_bytes())).await {
                Ok(_) => assert_eq!(double.get(BUCKET, key).unwrap(), key.as_bytes(), "{key:?}"),
                Err(error) => {
                    assert_eq!(*error.kind(), ErrorKind::Invalid, "{key:?}: {error}");
                    assert!(scheme == Scheme::Oss && key.starts_with(['/', '\\']), "{key:?}: {error}");
                }
            }
        }
        let listed = store.list(ListRequest::default()).await.unwrap().objects;
        let stored = double.objects(BUCKET);
        assert_eq!(listed.iter().map(|o| o.key.as_str()).collect::<Vec<_>>(), stored.keys().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn an_empty_key_never_means_the_bucket() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let store = store(scheme, &double);
        let empty = Key::default();
        for outcome in [
            store.delete(&empty).await.err(),
            store.head(&empty).await.err(),
            store.get(&empty, GetOptions::default()).await.err(),
            store.put(&empty, Bytes::new(), PutMode::Overwrite).await.err(),
            store.copy(&Key::from("a"), &empty).await.err(),
        ] {
            assert_eq!(*outcome.unwrap().kind(), ErrorKind::Invalid);
        }
        assert!(double.requests().is_empty());
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_corrected_once() {
    for (scheme, offset) in [(Scheme::Oss, 7200), (Scheme::S3, -7200), (Scheme::Oss, -100_000), (Scheme::S3, 100_000)] {
        let double = Double::start(DoubleConfig { clock_offset: offset, ..DoubleConfig::default() });
        let store = store(scheme, &double);
        let body = sample(10, 1);
        double.put(BUCKET, "k", body.to_vec());
        // HEAD first: its refusal has no body that could say why.
        assert_eq!(store.head(&Key::from("k")).await.unwrap().size, 10);
        assert_eq!(read(&store, "k").await.unwrap(), body);
        put(&store, "l", &body).await.unwrap();
        assert_eq!(double.requests().len(), 4, "only the first was refused");
        assert_eq!(double.count(|request| request.status == Some(403)), 1);
    }
}

#[tokio::test]
async fn appends_are_exact_and_never_sent_twice() {
    let double = Double::start(DoubleConfig::default());
    let store = store(Scheme::Oss, &double);
    let key = Key::from("log");
    let (first, second) = (sample(1000, 1), sample(500, 2));
    let done = store.append(&key, 0, first.clone()).await.unwrap();
    assert_eq!((done.next_position, done.crc64), (1000, Some(crc64(&first))));

    let error = store.append(&key, 7, second.clone()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::PositionMismatch { next: Some(1000) });

    // Refusals and damage on the way are retried, because nothing was done.
    double.fault(Fault::SlowDown { retry_after: None }, When::any(), Often::Next(1));
    double.fault(Fault::WrongUpload, When::any(), Often::Next(1));
    let done = store.append(&key, 1000, second.clone()).await.unwrap();
    assert_eq!(done.crc64, Some(crc64_combine(crc64(&first), crc64(&second), 500)));

    // A lost reply is not: whether it was done has to be found out.
    double.clear_requests();
    double.fault(Fault::LoseReply, When::any(), Often::Next(1));
    let error = store.append(&key, 1500, second.clone()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unavailable);
    assert_eq!(double.requests().len(), 1);
    assert_eq!(double.get(BUCKET, "log").unwrap().len(), 2000);

    double.put(BUCKET, "normal", "x");
    let error = store.append(&Key::from("normal"), 1, second.clone()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::NotAppendable);
    let s3 = self::store(Scheme::S3, &double);
    assert_eq!(*s3.append(&key, 0, second).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn pages_are_followed_to_the_end() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let store = store(scheme, &double);
        for number in 0..2345 {
            double.put(BUCKET, &format!("dir{}/o {number:05}+", number % 3), "x");
        }
        let mut request = ListRequest::default();
        let (mut keys, mut pages) = (Vec::new(), 0);
        loop {
            let page = store.list(request.clone()).await.unwrap();
            keys.extend(page.objects.into_iter().map(|object| object.key.to_string()));
            pages += 1;
            match page.continuation {
                Some(next) => request.continuation = Some(next),
                None => break,
            }
        }
        assert_eq!(pages, 3);
        assert_eq!(keys, double.objects(BUCKET).into_keys().collect::<Vec<_>>());
        let rolled = store.list(ListRequest { delimiter: true, ..ListRequest::default() }).await.unwrap();
        assert_eq!((rolled.objects.len(), rolled.prefixes), (0, vec!["dir0/".into(), "dir1/".into(), "dir2/".into()]));
    }
}

#[tokio::test]
async fn connections_are_used_again() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let store = store(scheme, &double);
        let body = sample(3 << 20, 1);
        for _ in 0..10 {
            put(&store, "k", &body).await.unwrap();
            assert_eq!(read(&store, "k").await.unwrap(), body);
            assert!(read(&store, "missing").await.is_err());
            store.list(ListRequest::default()).await.unwrap();
            store.head(&Key::from("k")).await.unwrap();
        }
        assert_eq!(double.connections(), 1, "one request at a time needs one connection");
    }
}
