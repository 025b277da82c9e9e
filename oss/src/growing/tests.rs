use proptest::prelude::*;

use super::*;
use crate::conformance::sample;
use crate::crc::crc64;
use crate::foreign::ForeignStore;
use crate::location::Scheme;
use crate::memory::{Fault, Keeps, MemoryStore, Operation};
use crate::store::{GetOptions, PutMode};

fn small() -> GrowingOptions {
    GrowingOptions { max_append_size: 70, segment_size: 50, piece: 30, ..GrowingOptions::default() }
}

fn like_s3(keeps: Keeps) -> MemoryStore {
    MemoryStore::s3().with_checksum(keeps).with_capabilities(|can| can.min_part_size = 50)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Appends all of `bytes` in steps, as one who follows a file does: after a failure again, with more.
async fn append_all(grow: &mut GrowingObject, bytes: &Bytes, steps: &[usize]) {
    let mut steps = steps.iter().cycle();
    let mut end = 0;
    let mut failures = 0;
    while grow.len() < bytes.len() as u64 {
        end = (end + steps.next().unwrap()).min(bytes.len());
        let offered = bytes.slice(usize::try_from(grow.len()).unwrap()..end);
        if let Err(error) = grow.append(offered).await {
            failures += 1;
            assert!(failures < 1000, "{error}");
            assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Corrupt), "{error:?}");
        }
    }
}

async fn persist<T, F: Future<Output = Result<T>>>(mut attempt: impl FnMut() -> F) -> T {
    for _ in 0..1000 {
        if let Ok(value) = attempt().await {
            return value;
        }
    }
    panic!("still fails after 1000 attempts");
}

async fn finish(grow: &mut GrowingObject) -> GrownObject {
    for _ in 0..1000 {
        match grow.finish().await {
            Ok(grown) => return grown,
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Corrupt), "{error:?}"),
        }
    }
    panic!("still fails after 1000 attempts");
}

async fn read(store: &dyn Store, grown: &GrownObject) -> Vec<u8> {
    let mut whole = Vec::new();
    for part in &grown.parts {
        let bytes = store.get(&part.key, GetOptions::default()).await.unwrap().bytes().await.unwrap();
        assert_eq!((part.size, part.crc64), (bytes.len() as u64, crc64(&bytes)));
        whole.extend_from_slice(&bytes);
    }
    assert_eq!((grown.size, grown.crc64), (whole.len() as u64, crc64(&whole)));
    whole
}

/// The whole life of an object in `model`, with faults.
async fn live(model: MemoryStore, size: usize, steps: &[usize], faults: Vec<u8>, wrong: bool) {
    let (model, bytes) = (Arc::new(model), sample(size, 3));
    let store: Arc<dyn Store> = model.clone();
    // What an earlier, longer attempt has left.
    for name in ["log", "log.part-0", "log.part-1", "log.part-2", "log.index.json", "log.part-x", "log.2"] {
        store.put(&Key::new(name), "old".into(), PutMode::Overwrite).await.unwrap();
    }
    let mut faults = faults.into_iter();
    let mut aborts_failed = 0;
    let failed = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&failed);
    model.hook(move |call| {
        let fault = match faults.next() {
            Some(0) => Fault::Before(ErrorKind::Unavailable),
            Some(1) => Fault::After(ErrorKind::Unavailable),
            Some(2) => Fault::Late(ErrorKind::Unavailable),
            Some(3) if wrong && call.operation != Operation::Append && call.operation != Operation::Get => {
                Fault::WrongByte
            }
            _ => Fault::None,
        };
        let upload = matches!(call.operation, Operation::AbortMultipart | Operation::CreateMultipart);
        aborts_failed += usize::from(upload && fault != Fault::None);
        counter.store(aborts_failed, std::sync::atomic::Ordering::Relaxed);
        fault
    });
    let mut grow = persist(|| GrowingObject::create(Arc::clone(&store), Key::new("log"), small())).await;
    append_all(&mut grow, &bytes, steps).await;
    let grown = finish(&mut grow).await;
    assert_eq!(finish(&mut grow).await, grown);
    model.unhook();
    assert_eq!(read(&*store, &grown).await, bytes);
    let mut expected: Vec<_> = grown.parts.iter().map(|part| part.key.as_str().to_owned()).collect();
    expected.extend(grown.index.iter().map(|key| key.as_str().to_owned()));
    expected.extend(["log.2".to_owned(), "log.part-x".to_owned()]);
    expected.sort();
    let mut keys = model.keys();
    if grown.parts.len() == 1 {
        // Removing the segments is not tried for ever, but nobody takes what is left for a part.
        let is_number = |key: &str| key.strip_prefix("log.part-").is_some_and(|n| n != "x" && n != "0");
        assert!(!keys.iter().any(|key| is_number(key)) || keys.iter().any(|key| key == "log.index.json"));
        let mut reader = GrownReader::new(Arc::clone(&store), Key::new("log"));
        let mut text = Vec::new();
        while let Some(bytes) = reader.next().await.unwrap() {
            text.extend_from_slice(&bytes);
        }
        assert_eq!(text, bytes);
        keys.retain(|key| expected.contains(key) || !(key.starts_with("log.part-") || key == "log.index.json"));
    }
    keys.retain(|key| expected.contains(key) || key != "log.part-0");
    assert_eq!(keys, expected);
    let failed = failed.load(std::sync::atomic::Ordering::Relaxed);
    assert!(model.uploads_in_progress() <= failed, "{} uploads stay", model.uploads_in_progress());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_appended_is_what_is_there(
        size in 0_usize..400, steps in proptest::collection::vec(1_usize..60, 1..6),
        faults in proptest::collection::vec(0..12_u8, 0..120), kind in 0..8
    ) {
        let model = match kind {
            0 => MemoryStore::oss(),
            1 => MemoryStore::oss().with_checksum(Keeps::Nothing),
            2 => like_s3(Keeps::Crc64Nvme),
            3 => like_s3(Keeps::Crc64),
            4 => like_s3(Keeps::Md5),
            5 => like_s3(Keeps::Nothing),
            6 => like_s3(Keeps::Crc64Nvme).with_capabilities(|can| can.copy_part = false),
            _ => like_s3(Keeps::Crc64Nvme).with_capabilities(|can| can.max_parts = 3),
        };
        // A wrong byte is found by whoever keeps a checksum of everything.
        runtime().block_on(live(model, size, &steps, faults, matches!(kind, 2 | 3 | 6 | 7)));
    }

    #[test]
    fn local_files_grow(size in 0_usize..400, steps in proptest::collection::vec(1_usize..60, 1..6)) {
        runtime().block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let store: Arc<dyn Store> =
                Arc::new(ForeignStore::open(&Location::new(Scheme::File, "", "").unwrap()).unwrap());
            let key = format!("{}/logs/out", directory.path().to_str().unwrap().trim_start_matches('/'));
            let bytes = sample(size, 4);
            let mut grow = GrowingObject::create(Arc::clone(&store), Key::new(key), small()).await.unwrap();
            append_all(&mut grow, &bytes, &steps).await;
            let grown = finish(&mut grow).await;
            assert_eq!(read(&*store, &grown).await, bytes);
            assert_eq!(grown.parts.len(), size.div_ceil(70).max(1));
        });
    }
}

#[tokio::test]
async fn segments_become_one_object_and_an_index_says_so_where_they_cannot() {
    for (can_copy, faulty) in [(true, false), (false, false), (true, true)] {
        let model = Arc::new(like_s3(Keeps::Crc64Nvme).with_capabilities(|can| can.copy_part = can_copy));
        let store: Arc<dyn Store> = model.clone();
        let bytes = sample(170, 1);
        let mut grow = GrowingObject::create(Arc::clone(&store), Key::new("log"), small()).await.unwrap();
        append_all(&mut grow, &bytes, &[33]).await;
        assert_eq!(model.keys(), ["log", "log.part-1", "log.part-2", "log.part-3"]);
        if faulty {
            model.hook(|call| match call.operation {
                Operation::CopyPart => Fault::WrongByte,
                _ => Fault::None,
            });
        }
        let grown = finish(&mut grow).await;
        assert_eq!(read(&*store, &grown).await, bytes);
        if can_copy && !faulty {
            assert_eq!(model.keys(), ["log"]);
            assert_eq!(model.content("log").unwrap(), bytes);
        } else {
            assert_eq!(model.keys(), ["log", "log.index.json", "log.part-1", "log.part-2", "log.part-3"]);
            let index: serde_json::Value = serde_json::from_slice(&model.content("log.index.json").unwrap()).unwrap();
            assert_eq!(index["size"], 170);
            assert_eq!(index["crc64"], format!("{:016x}", crc64(&bytes)));
            assert_eq!(index["parts"][3]["key"], "log.part-3");
            assert_eq!(index["parts"][3]["size"], 20);
        }
        assert_eq!(model.uploads_in_progress(), 0);
    }
}

#[tokio::test]
async fn without_the_right_to_copy_or_remove_the_log_is_there_all_the_same() {
    let model = Arc::new(like_s3(Keeps::Crc64Nvme));
    let store: Arc<dyn Store> = model.clone();
    model.hook(|call| match call.operation {
        Operation::Put => Fault::None,
        Operation::Head if !call.key.as_str().ends_with("json") => Fault::None,
        _ => Fault::Before(ErrorKind::Denied),
    });
    let bytes = sample(120, 1);
    let mut grow = GrowingObject::create(Arc::clone(&store), Key::new("log"), small()).await.unwrap();
    append_all(&mut grow, &bytes, &[33]).await;
    let grown = finish(&mut grow).await;
    model.unhook();
    assert_eq!(read(&*store, &grown).await, bytes);
    assert_eq!(model.keys(), ["log", "log.index.json", "log.part-1", "log.part-2"]);
}

#[tokio::test]
async fn the_right_to_write_is_enough() {
    for model in [MemoryStore::oss(), like_s3(Keeps::Crc64Nvme)] {
        let model = Arc::new(model);
        let store: Arc<dyn Store> = model.clone();
        model.hook(|call| match call.operation {
            Operation::Put | Operation::Append => Fault::None,
            _ => Fault::Before(ErrorKind::Denied),
        });
        let bytes = sample(120, 1);
        let mut grow = GrowingObject::create(Arc::clone(&store), Key::new("log"), small()).await.unwrap();
        append_all(&mut grow, &bytes, &[33]).await;
        let grown = finish(&mut grow).await;
        model.unhook();
        assert_eq!(read(&*store, &grown).await, bytes);
    }
}

#[tokio::test]
async fn a_wrong_byte_in_an_append_is_found_and_final() {
    let model = Arc::new(MemoryStore::oss());
    let mut grow = GrowingObject::create(model.clone(), Key::new("log"), small()).await.unwrap();
    grow.append("right".into()).await.unwrap();
    model.hook(|_| Fault::WrongByte);
    assert_eq!(*grow.append("wrong".into()).await.unwrap_err().kind(), ErrorKind::Corrupt);
    model.unhook();
    assert_eq!(*grow.append("wrong".into()).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(*grow.finish().await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(grow.len(), 5);
}

#[tokio::test]
async fn another_writer_is_noticed() {
    let model = Arc::new(MemoryStore::oss());
    let mut grow = GrowingObject::create(model.clone(), Key::new("log"), small()).await.unwrap();
    grow.append("ours".into()).await.unwrap();
    model.append(&Key::new("log"), 4, "theirs".into()).await.unwrap();
    let error = grow.append("ours".into()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Changed, "{error}");
    assert!(error.to_string().contains("something else writes to it"), "{error}");

    let mut grow = GrowingObject::create(model.clone(), Key::new("other"), small()).await.unwrap();
    grow.append("ours".into()).await.unwrap();
    model.delete(&Key::new("other")).await.unwrap();
    assert_eq!(*grow.append("ours".into()).await.unwrap_err().kind(), ErrorKind::Changed);
}

#[tokio::test]
async fn other_bytes_after_a_failure_are_refused_and_the_right_ones_taken() {
    for model in [MemoryStore::oss(), like_s3(Keeps::Crc64)] {
        let model = Arc::new(model);
        let mut grow = GrowingObject::create(model.clone(), Key::new("log"), small()).await.unwrap();
        let bytes = sample(120, 1);
        let mut writes = 0;
        model.hook(move |call| {
            writes += usize::from(matches!(call.operation, Operation::Append | Operation::Put));
            if writes > 2 { Fault::Before(ErrorKind::Unavailable) } else { Fault::None }
        });
        assert!(grow.append(bytes.clone()).await.is_err());
        model.unhook();
        assert_eq!(grow.len(), 0);
        assert_eq!(*grow.append(sample(120, 2)).await.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(*grow.append(bytes.slice(..5)).await.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(*grow.finish().await.unwrap_err().kind(), ErrorKind::Invalid);
        grow.append(bytes.clone()).await.unwrap();
        let grown = finish(&mut grow).await;
        assert_eq!(read(&*model, &grown).await, bytes);
    }
}

#[tokio::test]
async fn the_interval_grows_with_what_is_sent_again() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::s3());
    let mut grow = GrowingObject::create(store, Key::new("log"), GrowingOptions::default()).await.unwrap();
    assert_eq!(grow.suggested_interval(), Duration::from_secs(1));
    for _ in 0..8 {
        grow.append(sample(1 << 20, 1)).await.unwrap();
    }
    assert_eq!(grow.suggested_interval(), Duration::from_secs(1), "the first segment is seen as it is written");
    grow.append("x".into()).await.unwrap();
    assert_eq!(grow.suggested_interval(), Duration::from_secs(1));
    for _ in 0..4 {
        grow.append(sample(1 << 20, 1)).await.unwrap();
    }
    assert_eq!(grow.suggested_interval().as_secs(), 8);
    grow.append(sample((4 << 20) - 1, 1)).await.unwrap();
    assert_eq!(grow.suggested_interval(), Duration::from_secs(1), "what is full is not sent again");
    let store: Arc<dyn Store> = Arc::new(MemoryStore::oss());
    let mut grow = GrowingObject::create(store, Key::new("log"), GrowingOptions::default()).await.unwrap();
    grow.append(sample(9 << 20, 1)).await.unwrap();
    assert_eq!(grow.suggested_interval(), Duration::from_secs(1));
}

/// Follows `bytes` through processes that are killed at any request, each of which knows only the mark that was written down last.
async fn live_and_die(model: MemoryStore, bytes: Bytes, steps: &[usize], kills: Vec<u8>) {
    let model = Arc::new(model);
    let store: Arc<dyn Store> = model.clone();
    let key = || Key::new("log");
    let (mut mark, mut end, mut kills) = (None::<GrowingMark>, 0, kills.into_iter());
    let mut steps = steps.iter().cycle();
    let grown = loop {
        let mut grow = match mark.clone() {
            None => GrowingObject::create(Arc::clone(&store), key(), small()).await.unwrap(),
            Some(mark) => GrowingObject::resume(Arc::clone(&store), key(), &small(), mark).await.unwrap(),
        };
        mark = mark.or(grow.mark());
        // How many of its writes succeed, and what becomes of the one that does not; then nothing works for this process any more.
        let (mut left, fate) = (kills.next().map_or(usize::MAX, usize::from), kills.next().unwrap_or(0) % 3);
        model.hook(move |call| {
            let writes = !matches!(call.operation, Operation::Head | Operation::Get | Operation::List);
            left = left.saturating_sub(usize::from(writes));
            match (left, fate) {
                (1.., _) => Fault::None,
                (0, 0) => Fault::Before(ErrorKind::Denied),
                (0, 1) => Fault::After(ErrorKind::Denied),
                (0, _) => Fault::Late(ErrorKind::Denied),
            }
        });
        let mut life = async || -> Result<GrownObject> {
            while grow.len() < bytes.len() as u64 {
                let at = usize::try_from(grow.len()).unwrap();
                end = end.max((at + steps.next().unwrap()).min(bytes.len()));
                grow.append(bytes.slice(at..end.min(at + 60))).await?;
                if fastrand::bool() {
                    mark = grow.mark().or(mark.take());
                }
            }
            grow.finish().await
        };
        match life().await {
            Ok(grown) => break grown,
            Err(error) => assert_eq!(*error.kind(), ErrorKind::Denied, "{error}"),
        }
    };
    model.unhook();
    assert_eq!(read(&*store, &grown).await, bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_process_goes_on_where_the_one_before_it_was_killed(
        size in 0_usize..400, steps in proptest::collection::vec(1_usize..60, 1..6),
        kills in proptest::collection::vec(1..12_u8, 0..16), kind in 0..4
    ) {
        let model = match kind {
            0 => MemoryStore::oss(),
            1 => MemoryStore::oss().with_checksum(Keeps::Nothing),
            2 => like_s3(Keeps::Crc64Nvme),
            _ => like_s3(Keeps::Crc64Nvme).with_capabilities(|can| can.copy_part = false),
        };
        runtime().block_on(live_and_die(model, sample(size, 3), &steps, kills));
    }
}

#[tokio::test]
async fn a_log_that_something_else_has_changed_goes_on_in_the_next_part() {
    let model = Arc::new(MemoryStore::oss());
    let mut grow = GrowingObject::create(model.clone(), Key::new("log"), small()).await.unwrap();
    grow.append("ours ".into()).await.unwrap();
    let mark = grow.mark().unwrap();
    model.append(&Key::new("log"), 5, "theirs".into()).await.unwrap();
    let heir = GrowingObject::resume(model.clone(), Key::new("log"), &small(), mark).await.unwrap();
    for mut grow in [grow, heir] {
        // The second one cannot know that it was not the first that has sent what it finds, but for its checksum.
        let error = grow.append("and more".into()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Changed | ErrorKind::Corrupt), "{error}");
        assert!(grow.mark().is_none() && grow.abandon());
        grow.append("and more".into()).await.unwrap();
        assert_eq!(grow.mark().unwrap().len(), 13);
        assert_eq!(grow.finish().await.unwrap().parts.len(), 2);
        assert_eq!(model.content("log").unwrap(), "ours theirs");
        assert_eq!(model.content("log.part-1").unwrap(), "and more");
        model.delete(&Key::new("log.part-1")).await.unwrap();
    }
    let text = serde_json::to_string(&GrowingObject::create(model, Key::new("x"), small()).await.unwrap().mark());
    assert_eq!(text.unwrap(), r#"{"by":"append","sealed":[],"present":{"size":0,"crc64":0}}"#);
}
