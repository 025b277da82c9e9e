//! One object that grows while others read it: a log.
//!
//! Stores differ in what they offer for this, and each is used in the way that sends the least twice:
//!
//! - *Append* (`appended`; OSS, local files): every flush appends what is new. When the object has reached the store's
//!   limit (5 GB on OSS) it goes on in `<key>.part-1`, `.part-2`, ...
//! - *No append* (`segmented`; S3, Google, Azure): the object is put again with every flush while it is below 8 MiB. Then it is
//!   sealed and goes on in `<key>.part-1`, ..., each of which grows in the same way. [`GrowingObject::finish`] puts them
//!   together into the one object on the server (`compose`) where the store can and the rights allow it; where not,
//!   the parts stay and `<key>.index.json` says what they are.
//!
//! Both are exact: whatever requests and replies are lost, the parts one after the other are the bytes that were
//! appended, without a gap and without a duplicate.

mod appended;
mod compose;
mod segmented;
mod tail;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::appended::Appended;
use self::segmented::Segmented;
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location};
use crate::store::Store;

/// How an object grows. The defaults are right; tests make them small.
#[derive(Debug, Clone)]
pub struct GrowingOptions {
    /// No appended object becomes longer than this many bytes, nor than its store allows.
    pub max_append_size: u64,
    /// Where there is no append, an object that has reached this many bytes is sealed: 8 MiB. It must not be less than the
    /// store's smallest part, or the segments can never be put together.
    pub segment_size: u64,
    /// At most this many bytes are appended by one request: 8 MiB.
    pub piece: usize,
    /// The shortest [`GrowingObject::suggested_interval`]: 1 s.
    pub shortest_interval: Duration,
    /// How many bytes a second may be sent again on average, where there is no append: 512 KiB.
    pub resend_rate: u64,
}

impl Default for GrowingOptions {
    fn default() -> Self {
        Self {
            max_append_size: u64::MAX,
            segment_size: 8 << 20,
            piece: 8 << 20,
            shortest_interval: Duration::from_secs(1),
            resend_rate: 512 << 10,
        }
    }
}

/// What a grown object has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrownObject {
    /// The objects whose bytes, in this order, are what was appended. Mostly one.
    pub parts: Vec<GrownPart>,
    /// Their length together, in bytes.
    pub size: u64,
    /// Their CRC-64/XZ, one after the other.
    pub crc64: u64,
    /// The object that lists the parts, where one was written.
    pub index: Option<Key>,
}

/// A part of a grown object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrownPart {
    /// Its key.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// Its CRC-64/XZ.
    pub crc64: u64,
}

/// An object that grows.
#[derive(Debug)]
pub struct GrowingObject {
    how: How,
    len: u64,
}

#[derive(Debug)]
enum How {
    Appended(Appended),
    Segmented(Segmented),
}

impl GrowingObject {
    /// A new, empty one. What an earlier attempt has left under this name is removed: the object, its parts and its
    /// index. The object itself appears with the first bytes.
    ///
    /// # Errors
    /// The store's own. A store that lets us neither look nor remove is no error yet.
    pub async fn create(store: Arc<dyn Store>, key: Key, options: GrowingOptions) -> Result<Self> {
        let names = Names { root: store.root().clone(), key };
        remove_leftovers(&*store, &names).await?;
        let how = if store.capabilities().append {
            How::Appended(Appended::new(store, names, &options))
        } else {
            How::Segmented(Segmented::new(store, names, &options))
        };
        Ok(Self { how, len: 0 })
    }

    /// How many bytes have been appended by calls that succeeded.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing has been appended yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `bytes`; when this returns, readers see them.
    ///
    /// After a failure, and when the future was dropped, call it again with the same bytes (those behind [`GrowingObject::len`]),
    /// to which more may have been added at the end. What had arrived of them is not sent again.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is called again with other bytes; [`ErrorKind::Changed`] when something else writes to or
    /// removes the object; [`ErrorKind::Corrupt`] when the store holds other bytes than were sent. The last two are
    /// final: create the object again and append everything from the beginning. Others are the store's own, after a few
    /// attempts, and worth another try later.
    pub async fn append(&mut self, bytes: Bytes) -> Result<()> {
        let added = bytes.len() as u64;
        match &mut self.how {
            How::Appended(appended) => appended.append(bytes).await?,
            How::Segmented(segmented) => segmented.append(bytes).await?,
        }
        self.len += added;
        Ok(())
    }

    /// How long to collect bytes before the next append.
    ///
    /// Where the store can append nothing is sent twice, and this is the shortest interval. Where it cannot, every append
    /// sends the last unsealed segment again. In the first one the interval stays the shortest, so that a log is seen as it is
    /// written: up to its first 8 MiB that costs at most 3600 requests an hour of 4 MiB on average. After that the interval
    /// grows with the segment, so that on average no more than [`GrowingOptions::resend_rate`] bytes a second are sent again:
    /// by default 1 s up to 512 KiB, 16 s shortly before 8 MiB.
    pub fn suggested_interval(&self) -> Duration {
        match &self.how {
            How::Appended(appended) => appended.interval(),
            How::Segmented(segmented) => segmented.interval(),
        }
    }

    /// The object grows no more. Verifies what is there, and puts segments together. If nothing was ever appended an empty
    /// object is written. May be called again after a failure.
    ///
    /// # Errors
    /// As [`GrowingObject::append`], whose last call must have succeeded ([`ErrorKind::Invalid`]).
    pub async fn finish(&mut self) -> Result<GrownObject> {
        match &mut self.how {
            How::Appended(appended) => appended.finish().await,
            How::Segmented(segmented) => segmented.finish().await,
        }
    }
}

/// What the objects are called.
#[derive(Debug, Clone)]
struct Names {
    root: Location,
    key: Key,
}

impl Names {
    /// The object itself for 0, `.part-<number>` for the others.
    fn part(&self, number: usize) -> Key {
        if number == 0 { self.key.clone() } else { Key::new(format!("{}.part-{number}", self.key)) }
    }

    /// Where the first segment is kept while the object is put together. ([`Names::part`] of 0 is the object.)
    fn first_copy(&self) -> Key {
        Key::new(format!("{}.part-0", self.key))
    }

    /// The list of the parts.
    fn index(&self) -> Key {
        Key::new(format!("{}.index.json", self.key))
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, "GROW", self.root.with_key(self.key.clone()), message)
    }
}

/// Removes what an earlier attempt has left.
async fn remove_leftovers(store: &dyn Store, names: &Names) -> Result<()> {
    let mut left = Vec::new();
    for key in [names.index(), names.first_copy(), names.key.clone()] {
        match store.head(&key).await {
            Ok(_) => left.push((key, true)),
            Err(error) if error.is_not_found() => {}
            // Without the right to list, S3 answers so for what is absent, too.
            Err(error) if *error.kind() == ErrorKind::Denied => left.push((key, false)),
            Err(error) => return Err(error),
        }
    }
    // Parts follow each other without a gap, because they are removed from the last.
    for number in 1.. {
        let key = names.part(number);
        match store.head(&key).await {
            Ok(_) => left.push((key, true)),
            Err(error) if error.is_not_found() || *error.kind() == ErrorKind::Denied => break,
            Err(error) => return Err(error),
        }
    }
    for (key, is_there) in left.iter().rev() {
        match store.delete(key).await {
            Err(error) if *error.kind() == ErrorKind::Denied => {
                if *is_there {
                    tracing::warn!("{error}; what an earlier attempt has left there stays");
                }
            }
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
            // Removing the segments is not tried for ever.
            keys.retain(|key| expected.contains(key) || !key.starts_with("log.part-"));
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
                let index: serde_json::Value =
                    serde_json::from_slice(&model.content("log.index.json").unwrap()).unwrap();
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
        let store: Arc<dyn Store> = Arc::new(MemoryStore::oss());
        let mut grow = GrowingObject::create(store, Key::new("log"), GrowingOptions::default()).await.unwrap();
        grow.append(sample(9 << 20, 1)).await.unwrap();
        assert_eq!(grow.suggested_interval(), Duration::from_secs(1));
    }
}
