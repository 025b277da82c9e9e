//! Bad weather: replies that are late, broken, wrong or missing, and a store that is away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use oss::conformance::sample;
use oss::crc::crc64;
use oss::{ErrorKind, GetOptions, Key, ListRequest, PutMode, Scheme};
use tests::double::{Double, DoubleConfig, Fault, Often, Operation, Outage, When};

use super::{BUCKET, SCHEMES, no_hang, open, put, read, read_range, settings, store};

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
