//! Whole files and growing objects over the wire, in both protocols, in good weather and bad.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs::{self, File};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oss::conformance::sample;
use oss::growing::{GrowingObject, GrowingOptions, GrownObject};
use oss::transfer::{DownloadOptions, TransferBudget, UploadOptions, download, upload};
use oss::{
    Addressing, CredentialSource, ErrorKind, Key, Location, Scheme, Secret, Settings, Store, StoreSettings, Stores,
    Timeouts,
};
use tests::double::{Double, DoubleConfig};
use tests::moto::Moto;

const BUCKET: &str = "test-bucket";
const MIB: usize = 1 << 20;
/// Larger files go up in parts.
const SINGLE: usize = 6 * MIB;

fn store(scheme: Scheme, endpoint: &str) -> Arc<dyn Store> {
    let settings = StoreSettings {
        endpoint: Some(endpoint.to_owned()),
        region: Some("cn-test".to_owned()),
        credentials: CredentialSource::Static {
            access_key_id: "test-key".to_owned(),
            access_key_secret: Secret::new("test-secret"),
            security_token: None,
        },
        addressing: Addressing::Auto,
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            read: Duration::from_secs(2),
            total: Duration::from_secs(120),
        },
        metadata_endpoint: None,
    };
    let all = Settings { oss: settings.clone(), s3: settings };
    Stores::new(all).open(&Location::new(scheme, BUCKET, "").unwrap()).unwrap()
}

/// Up and down again, all files at once within one budget.
async fn round_trip(store: &Arc<dyn Store>, sizes: &[usize]) {
    let directory = tempfile::tempdir().unwrap();
    let budget = TransferBudget::new(8, 64 << 20);
    let one = |(number, size): (usize, usize)| {
        let (store, budget) = (Arc::clone(store), budget.clone());
        let (from, to) = (directory.path().join(format!("{number}")), directory.path().join(format!("{number}.back")));
        async move {
            let bytes = sample(size, number as u64);
            fs::write(&from, &bytes).unwrap();
            let key = Key::new(format!("out/{number} 100%"));
            let options = UploadOptions { single_limit: SINGLE as u64, part_size: 5 << 20, ..UploadOptions::default() };
            let up = upload(&store, &key, File::open(&from).unwrap(), size as u64, &options, &budget).await.unwrap();
            assert_eq!(up.size, size as u64);
            let options = DownloadOptions { piece: 3 << 20, ..DownloadOptions::default() };
            let down = download(&store, &key, &to, &options, &budget).await.unwrap();
            assert_eq!((down.size, down.crc64), (up.size, up.crc64));
            // Of objects made of parts S3 knows no checksum that could be compared.
            assert!(down.verified || (store.root().scheme() == Scheme::S3 && size > SINGLE));
            assert!(fs::read(&to).unwrap() == bytes, "file {number} came back changed");
        }
    };
    futures_util::future::join_all(sizes.iter().copied().enumerate().map(one)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_up_and_down_unchanged() {
    for scheme in [Scheme::Oss, Scheme::S3] {
        let double = Double::start(DoubleConfig::default());
        round_trip(&store(scheme, &double.endpoint()), &[0, 1, 100_000, 6 * MIB, 6 * MIB + 1, 23 * MIB + 17]).await;
        assert!(double.uploads(BUCKET).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_up_and_down_unchanged_in_trouble() {
    for scheme in [Scheme::Oss, Scheme::S3] {
        let double = Double::start(DoubleConfig::default());
        double.trouble(0.01);
        let sizes: Vec<_> = (0..24).map(|n| n * n * 40_003).collect();
        round_trip(&store(scheme, &double.endpoint()), &sizes).await;
    }
}

/// Lets an object grow to `bytes` as one does who follows a file.
async fn grow(store: &Arc<dyn Store>, key: &str, bytes: &Bytes, step: usize, options: GrowingOptions) -> GrownObject {
    let mut object = GrowingObject::create(Arc::clone(store), Key::new(key), options).await.unwrap();
    let (mut end, mut failures) = (0, 0);
    while object.len() < bytes.len() as u64 {
        end = (end + step).min(bytes.len());
        let from = usize::try_from(object.len()).unwrap();
        if let Err(error) = object.append(bytes.slice(from..end)).await {
            failures += 1;
            assert!(failures < 20 && *error.kind() != ErrorKind::Changed, "{error:?}");
        }
    }
    object.finish().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_grows_by_append_and_goes_on_in_parts() {
    for chance in [0.0, 0.02] {
        let double = Double::start(DoubleConfig::default());
        let store = store(Scheme::Oss, &double.endpoint());
        double.trouble(chance);
        let bytes = sample(1_000_000, 1);
        let options = GrowingOptions { max_append_size: 400_000, ..GrowingOptions::default() };
        let grown = grow(&store, "logs/out", &bytes, 7_919, options).await;
        double.clear_faults();
        assert_eq!(grown.parts.len(), 3);
        let objects = double.objects(BUCKET);
        assert_eq!(objects.keys().collect::<Vec<_>>(), ["logs/out", "logs/out.part-1", "logs/out.part-2"]);
        let stored: Vec<u8> = objects.values().flat_map(|object| object.bytes()).collect();
        assert!(stored == bytes, "the log is not what was appended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_append_becomes_one_object() {
    for chance in [0.0, 0.02] {
        let double = Double::start(DoubleConfig::default());
        let store = store(Scheme::S3, &double.endpoint());
        double.trouble(chance);
        let bytes = sample(11 * MIB + 5, 1);
        let options = GrowingOptions { segment_size: 5 << 20, ..GrowingOptions::default() };
        let grown = grow(&store, "logs/out", &bytes, 600_011, options).await;
        assert_eq!((grown.parts.len(), grown.size, grown.index), (1, bytes.len() as u64, None));
        assert!(double.get(BUCKET, "logs/out").unwrap() == bytes, "the log is not what was appended");
        if chance == 0.0 {
            assert_eq!(double.objects(BUCKET).len(), 1);
            assert!(double.uploads(BUCKET).is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_ours_keeps_files_and_logs() {
    let moto = Moto::start();
    let endpoint = moto.endpoint().to_owned();
    let answer = tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        let mut socket = std::net::TcpStream::connect(endpoint.trim_start_matches("http://")).unwrap();
        let head = "host: 127.0.0.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        write!(socket, "PUT /{BUCKET} HTTP/1.1\r\n{head}").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let store = store(Scheme::S3, moto.endpoint());
    round_trip(&store, &[0, 5, 6 * MIB, 12 * MIB + 3]).await;
    let bytes = sample(11 * MIB + 5, 1);
    let options = GrowingOptions { segment_size: 5 << 20, ..GrowingOptions::default() };
    let grown = grow(&store, "logs/out", &bytes, 3 * MIB, options).await;
    assert_eq!((grown.parts.len(), grown.index), (1, None));
    let got = store.get(&Key::new("logs/out"), oss::GetOptions::default()).await.unwrap().bytes().await.unwrap();
    assert!(got == bytes, "the log is not what was appended");
}
