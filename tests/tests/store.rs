//! The REST client against the storage double, in both protocols and both ways to address a bucket, in good weather and bad.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use oss::conformance::{ODD_KEYS, conformance, conformance_without, sample};
use oss::crc::{crc64, crc64_combine, crc64_nvme};
use oss::{
    Addressing, Checksum, CredentialSource, ErrorKind, GetOptions, Key, ListRequest, Location, PutMode, Scheme, Secret,
    Settings, Store, StoreSettings, Stores, Timeouts,
};
use tests::double::{AccessKey, Action, Dialect, Double, DoubleConfig, Fault, Often, Operation, Outage, When};
use tests::imds::Imds;
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

/// Every fault that passes by itself, once, at every kind of request.
#[tokio::test]
async fn each_fault_once_changes_nothing() {
    let faults = [
        Fault::InternalError,
        Fault::SlowDown { retry_after: None },
        Fault::ResetEarly,
        Fault::ResetLate,
        Fault::LoseReply,
        Fault::Stall,
        Fault::StallBody { after: 1 },
        Fault::Truncate,
        Fault::WrongUpload,
        Fault::ErrorInside200,
        Fault::WrongByte,
    ];
    let mut all = tokio::task::JoinSet::new();
    for scheme in SCHEMES {
        for fault in &faults {
            if *fault != Fault::ErrorInside200 || scheme == Scheme::S3 {
                all.spawn(one_fault_at_everything(scheme, fault.clone()));
            }
        }
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
}

async fn one_fault_at_everything(scheme: Scheme, fault: Fault) {
    let double = Double::start(DoubleConfig { min_part_size: Some(1), ..DoubleConfig::default() });
    let store = store(scheme, &double);
    let hit = |operation: Operation| {
        let when = When::any().operation(operation);
        double.fault(fault.clone(), when, Often::Next(1))
    };
    let name = |what: &str| format!("dir/{what}");
    let body = sample(3000, 9);

    hit(Operation::PutObject);
    put(&store, &name("put"), &body).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
    assert_eq!(double.get(BUCKET, &name("put")).unwrap(), body, "{fault:?}");

    hit(Operation::GetObject);
    let got = read(&store, &name("put")).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
    assert_eq!(got, body, "{fault:?}");

    if fault != Fault::WrongByte {
        hit(Operation::GetObject);
        assert_eq!(read_range(&store, &name("put"), 100..2100).await.unwrap(), body.slice(100..2100), "{fault:?}");
    }

    hit(Operation::PutObject);
    let key = Key::new(name("absent"));
    store
        .put(&key, body.clone(), PutMode::IfAbsent)
        .await
        .unwrap_or_else(|error| panic!("{scheme} put if absent with {fault:?}: {error}"));
    assert_eq!(double.get(BUCKET, key.as_str()).unwrap(), body, "{fault:?}");
    let error = store.put(&key, body.slice(1..), PutMode::IfAbsent).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::AlreadyExists);

    hit(Operation::CreateUpload);
    hit(Operation::UploadPart);
    hit(Operation::CopyPart);
    hit(Operation::CompleteUpload);
    let key = Key::new(name("parts"));
    let upload = store.create_multipart(&key).await.unwrap();
    let first = store.put_part(&key, &upload, 1, body.slice(..1000)).await.unwrap();
    let source = Key::new(name("put"));
    let crc = crc64(&body[1000..]);
    let second = store.copy_part(&key, &upload, 2, &source, 1000..body.len() as u64, crc).await.unwrap();
    let done = store
        .complete_multipart(&key, &upload, &[second, first], PutMode::Overwrite)
        .await
        .unwrap_or_else(|error| panic!("{scheme} complete with {fault:?}: {error}"));
    assert!(done.etag.is_some());
    assert_eq!(double.get(BUCKET, key.as_str()).unwrap(), body, "{fault:?}");

    hit(Operation::CopyObject);
    store.copy(&source, &Key::new(name("copy"))).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
    assert_eq!(double.get(BUCKET, &name("copy")).unwrap(), body, "{fault:?}");

    hit(Operation::HeadObject);
    assert_eq!(store.head(&source).await.unwrap().size, body.len() as u64);

    hit(Operation::ListObjects);
    let request = ListRequest { prefix: "dir/".to_owned(), ..ListRequest::default() };
    assert_eq!(store.list(request).await.unwrap().objects.len(), 4, "{fault:?}");

    hit(Operation::DeleteObject);
    store.delete(&source).await.unwrap();
    assert!(double.get(BUCKET, source.as_str()).is_none(), "{fault:?}");
}

#[tokio::test]
async fn a_large_download_survives_every_interruption() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let store = store(scheme, &double);
        let body = sample(5 << 20, 7);
        double.put(BUCKET, "big", body.to_vec());
        double.fault(Fault::Truncate, When::any(), Often::Next(1));
        double.fault(Fault::StallBody { after: 700_000 }, When::any(), Often::Next(1));
        double.fault(Fault::InternalError, When::any(), Often::Next(1));
        double.fault(Fault::ResetEarly, When::any(), Often::Next(1));
        assert_eq!(read(&store, "big").await.unwrap(), body);
        let ranges: Vec<_> = double.requests().into_iter().map(|request| request.range).collect();
        assert_eq!(ranges.len(), 5, "{ranges:?}");
        assert!(
            ranges[1..].iter().all(|range| range.as_deref().is_some_and(|r| r.ends_with("-5242879"))),
            "{ranges:?}"
        );
    }
}

#[tokio::test]
async fn a_download_that_crawls_is_dropped_and_goes_on() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let mut settings = settings(&double.endpoint());
        settings.timeouts.read = Duration::from_secs(1);
        let store = open(scheme, settings);
        let body = sample(3 << 20, 8);
        double.put(BUCKET, "slow", body.to_vec());
        double.fault(Fault::Slow { bytes_per_second: 200 }, When::any(), Often::Next(1));
        assert_eq!(read(&store, "slow").await.unwrap(), body);
        assert!(double.requests().len() >= 2);
    }
}

#[tokio::test]
async fn an_object_replaced_while_it_is_read_is_changed_and_never_mixed() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let store = store(scheme, &double);
        double.put(BUCKET, "k", sample(3 << 20, 1).to_vec());
        double.fault(Fault::StallBody { after: 2 << 20 }, When::any(), Often::Next(1));
        let mut response = store.get(&Key::from("k"), GetOptions::default()).await.unwrap();
        let first = response.body.next().await.unwrap().unwrap();
        assert!(!first.is_empty());
        double.put(BUCKET, "k", sample(3 << 20, 2).to_vec());
        let mut last = None;
        while let Some(item) = response.body.next().await {
            last = Some(item);
        }
        assert_eq!(*last.unwrap().unwrap_err().kind(), ErrorKind::Changed);
    }
}

#[tokio::test]
async fn wrong_bytes_are_an_error_when_they_stay_wrong() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let store = store(scheme, &double);
        double.put(BUCKET, "small", sample(1000, 1).to_vec());
        double.put(BUCKET, "big", sample(3 << 20, 1).to_vec());
        double.fault(Fault::WrongByte, When::any(), Often::Always);
        for key in ["small", "big"] {
            let error = read(&store, key).await.unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Corrupt, "{error}");
        }
        double.clear_faults();
        double.fault(Fault::WrongUpload, When::any(), Often::Always);
        let error = put(&store, "up", &sample(1000, 2)).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Corrupt, "{error}");
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
async fn refusals_say_what_they_are() {
    for scheme in SCHEMES {
        let config = DoubleConfig::default()
            .bucket("elsewhere", "cn-other")
            .key(AccessKey::new("limited", "s").deny(Action::Read, "private/").deny(Action::List, ""))
            .key(AccessKey::new("STS.old", "s").with_expired_token("tok", Duration::from_secs(10)))
            .key(AccessKey::new("STS.new", "s").with_token("tok", Duration::from_secs(600)));
        let double = Double::start(config);
        double.put(BUCKET, "private/x", "1");
        double.put(BUCKET, "cold", "1");
        double.set_archived(BUCKET, "cold", true);
        let with = |credentials: CredentialSource| {
            let mut settings = settings(&double.endpoint());
            settings.credentials = credentials;
            open(scheme, settings)
        };
        let kind = |outcome: oss::Result<Bytes>| outcome.unwrap_err().kind().clone();
        let good = store(scheme, &double);

        assert_eq!(kind(read(&good, "nothing").await), ErrorKind::NotFound);
        assert_eq!(*good.head(&Key::from("nothing")).await.unwrap_err().kind(), ErrorKind::NotFound);
        let limited = with(secret("limited", "s", None));
        assert_eq!(kind(read(&limited, "private/x").await), ErrorKind::Denied);
        assert_eq!(*limited.head(&Key::from("private/x")).await.unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(*limited.list(ListRequest::default()).await.unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(kind(read(&with(secret("nobody", "s", None)), "cold").await), ErrorKind::BadCredentials);
        assert_eq!(kind(read(&with(secret("test-key", "wrong", None)), "cold").await), ErrorKind::BadCredentials);
        assert_eq!(kind(read(&with(secret("STS.old", "s", Some("tok"))), "cold").await), ErrorKind::BadCredentials);
        assert_eq!(kind(read(&with(CredentialSource::Anonymous), "private/x").await), ErrorKind::Denied);
        assert_eq!(with(secret("STS.new", "s", Some("tok"))).head(&Key::from("private/x")).await.unwrap().size, 1);

        let cold = read(&good, "cold").await.unwrap_err();
        assert_eq!(*cold.kind(), ErrorKind::Archived);
        assert!(cold.to_string().contains("restore"), "{cold}");
        assert!(good.head(&Key::from("cold")).await.unwrap().archived);
        let listed = good.list(ListRequest::default()).await.unwrap().objects;
        assert_eq!(listed.iter().map(|o| o.archived).collect::<Vec<_>>(), [true, false]);

        assert_eq!(kind(read_range(&good, "private/x", 5..6).await), ErrorKind::Invalid);

        let all = Settings { oss: settings(&double.endpoint()), s3: settings(&double.endpoint()) };
        let stores = Stores::new(all);
        let missing = stores.open(&Location::new(scheme, "missing", "").unwrap()).unwrap();
        assert_eq!(*missing.list(ListRequest::default()).await.unwrap_err().kind(), ErrorKind::NoSuchBucket);
        assert_eq!(*missing.head(&Key::from("x")).await.unwrap_err().kind(), ErrorKind::NoSuchBucket);
        let elsewhere = stores.open(&Location::new(scheme, "elsewhere", "").unwrap()).unwrap();
        let error = elsewhere.list(ListRequest::default()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WrongRegion { .. }), "{error}");
        assert!(error.to_string().contains("--region"), "{error}");
        let error = elsewhere.head(&Key::from("x")).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WrongRegion { .. } | ErrorKind::Denied), "{error}");
        for error in [cold.to_string(), error.to_string()] {
            assert!(!error.contains("test-secret") && error.lines().count() == 1, "{error}");
        }
    }
}

#[tokio::test]
async fn a_store_that_goes_away_and_comes_back_costs_only_time() {
    for (scheme, outage) in [(Scheme::Oss, Outage::Refuse), (Scheme::S3, Outage::Silent)] {
        let double = Arc::new(Double::start(DoubleConfig::default()));
        let store = store(scheme, &double);
        double.put(BUCKET, "k", "value");
        double.outage(outage);
        let back = Arc::clone(&double);
        let later = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            back.restore();
        });
        assert_eq!(read(&store, "k").await.unwrap(), "value");
        later.await.unwrap();
    }
}

#[tokio::test]
async fn a_store_that_stays_away_is_given_up_in_time() {
    let double = Double::start(DoubleConfig::default());
    double.outage(Outage::Refuse);
    for scheme in SCHEMES {
        let mut settings = settings(&double.endpoint());
        settings.timeouts.total = Duration::from_secs(2);
        let store = open(scheme, settings);
        let error = no_hang(read(&store, "k")).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("attempts") && error.to_string().contains("refused"), "{error}");
    }
}

#[tokio::test]
async fn throttling_is_obeyed_and_reported() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        double.put(BUCKET, "k", "v");
        double.fault(Fault::SlowDown { retry_after: Some(Duration::from_secs(1)) }, When::any(), Often::Next(1));
        let started = Instant::now();
        assert_eq!(read(&store(scheme, &double), "k").await.unwrap(), "v");
        assert!(started.elapsed() >= Duration::from_secs(1), "the store asked for a second");
        double.fault(Fault::SlowDown { retry_after: None }, When::any(), Often::Always);
        let mut settings = settings(&double.endpoint());
        settings.timeouts.total = Duration::from_secs(1);
        let error = read(&open(scheme, settings), "k").await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Throttled { .. }), "{error}");
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
async fn somebody_elses_object_is_not_taken_for_our_own() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let store = store(scheme, &double);
        double.put(BUCKET, "k", "theirs");
        // An attempt of unknown outcome, and then the truth: it is there, and not what we sent.
        double.fault(Fault::ResetLate, When::any().method("PUT"), Often::Next(1));
        let error = store.put(&Key::from("k"), Bytes::from_static(b"ours!!"), PutMode::IfAbsent).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert_eq!(double.get(BUCKET, "k").unwrap(), b"theirs");
    }
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

#[tokio::test]
async fn a_storm_of_faults_loses_and_changes_no_byte() {
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig { min_part_size: Some(1), ..DoubleConfig::default() });
        double.trouble(0.02);
        let store = store(scheme, &double);
        let mut tasks = Vec::new();
        for worker in 0..8_u64 {
            let store = Arc::clone(&store);
            tasks.push(tokio::spawn(async move {
                for round in 0..12_u64 {
                    let name = format!("w{worker}/r{round}");
                    let body = sample(1 << (8 + round), worker * 100 + round);
                    put(&store, &name, &body).await.unwrap();
                    assert_eq!(read(&store, &name).await.unwrap(), body, "{name}");
                    let middle = body.len() as u64 / 2;
                    assert_eq!(read_range(&store, &name, 3..middle).await.unwrap(), body.slice(3..body.len() / 2));
                    let key = Key::new(format!("{name}.parts"));
                    let upload = store.create_multipart(&key).await.unwrap();
                    let half = body.len() / 2;
                    let one = store.put_part(&key, &upload, 1, body.slice(..half)).await.unwrap();
                    let two = store.put_part(&key, &upload, 2, body.slice(half..)).await.unwrap();
                    store.complete_multipart(&key, &upload, &[one, two], PutMode::IfAbsent).await.unwrap();
                    assert_eq!(read(&store, key.as_str()).await.unwrap(), body, "{key}");
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        double.clear_faults();
        assert_eq!(double.objects(BUCKET).len(), 8 * 12 * 2);
    }
}

/// Settings that leave credentials, and on OSS the region, to the instance's metadata.
fn instance_settings(double: &Double, imds: &Imds) -> StoreSettings {
    let mut settings = settings(&double.endpoint());
    settings.credentials = CredentialSource::Automatic;
    settings.metadata_endpoint = Some(imds.endpoint());
    settings
}

/// The search for credentials begins in the environment; a test of the instance's role means something only where that is
/// empty.
fn assert_no_credentials_around() {
    for name in ["OSS_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"] {
        assert!(std::env::var_os(name).is_none(), "unset {name} to run this test");
    }
}

#[tokio::test]
async fn an_instance_role_is_used_and_replaced_when_the_store_refuses_it() {
    assert_no_credentials_around();
    for scheme in SCHEMES {
        let double = Double::start(DoubleConfig::default());
        let imds = if scheme == Scheme::Oss { Imds::aliyun() } else { Imds::aws() };
        let hour = Duration::from_secs(3600);
        let old = AccessKey::new("STS.old", "s1").with_token("t1", hour);
        let new = AccessKey::new("STS.new", "s2").with_token("t2", hour);
        imds.set_role("my-role", &old);
        double.set_keys(vec![old]);
        double.put(BUCKET, "k", "v");
        let mut settings = instance_settings(&double, &imds);
        if scheme == Scheme::Oss {
            settings.region = None;
        }
        let store = open(scheme, settings);
        assert_eq!(read(&store, "k").await.unwrap(), "v");
        let asked = imds.requests().len();
        assert_eq!(read(&store, "k").await.unwrap(), "v");
        assert_eq!(imds.requests().len(), asked, "credentials are kept");

        // Rotated before their time. A refused HEAD of OSS says why in a header; one of S3 cannot, and is believed only
        // when the credentials are older than these.
        double.set_keys(vec![new.clone()]);
        imds.set_role("my-role", &new);
        imds.expire_tokens();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        if scheme == Scheme::Oss {
            assert_eq!(store.head(&Key::from("k")).await.unwrap().size, 1);
        }
        assert_eq!(read(&store, "k").await.unwrap(), "v");

        // Gone altogether: an error, at once, that says what to do.
        double.set_keys(vec![]);
        imds.remove_role();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let error = read(&store, "k").await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::BadCredentials, "{error}");
        assert!(error.to_string().contains("RAM/IAM role"), "{error}");
        for secret in ["s1", "s2", "t1", "t2"] {
            assert!(!error.to_string().contains(&format!("\"{secret}\"")), "{error}");
        }
    }
}

#[tokio::test]
async fn a_machine_in_no_cloud_is_told_so_soon() {
    assert_no_credentials_around();
    let double = Double::start(DoubleConfig::default());
    for scheme in SCHEMES {
        let mut settings = settings(&double.endpoint());
        settings.credentials = CredentialSource::Automatic;
        // An address of the block that is reserved for documentation: nothing answers there, not even a refusal.
        settings.metadata_endpoint = Some("http://192.0.2.1".to_owned());
        // Whoever waited for the whole operation's deadline would be caught.
        settings.timeouts.total = FOREVER * 2;
        let store = open(scheme, settings);
        let error = no_hang(read(&store, "k")).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::BadCredentials, "{error}");
        assert!(error.to_string().contains("OSS_ACCESS_KEY_ID"), "{error}");
        assert!(!error.to_string().contains("attempts"), "nothing is tried twice: {error}");
    }
    let mut settings = settings(&double.endpoint());
    settings.region = None;
    settings.metadata_endpoint = Some("http://192.0.2.1".to_owned());
    let error = read(&open(Scheme::Oss, settings), "k").await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("--region") && error.to_string().contains("OSS_REGION"), "{error}");
}
