use std::fs;
use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::*;

use super::resume::keep;
use super::*;
use crate::conformance::sample;
use crate::crc::crc64;
use crate::memory::{Fault, Keeps, MemoryStore, Operation};
use crate::store::{Checksum, PartMeta};

/// A journal that survives those who write it.
#[derive(Debug, Default)]
struct Memory {
    open: Mutex<Option<OpenUpload>>,
    fails: bool,
}

impl UploadJournal for Memory {
    fn beginning(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn begun(&self, upload: &OpenUpload) -> std::io::Result<()> {
        if self.fails {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        *self.open.lock().unwrap() = Some(upload.clone());
        Ok(())
    }

    fn sent(&self, part: &SentPart) -> std::io::Result<()> {
        if let Some(open) = &mut *self.open.lock().unwrap() {
            open.parts.push(part.clone());
        }
        Ok(())
    }

    fn ended(&self) {
        *self.open.lock().unwrap() = None;
    }

    fn outlives_its_future(&self) -> bool {
        true
    }
}

struct Scene {
    directory: tempfile::TempDir,
    model: Arc<MemoryStore>,
    store: Arc<dyn Store>,
    journal: Arc<Memory>,
    key: Key,
}

impl Scene {
    fn new(keeps: Keeps) -> Self {
        let model = Arc::new(MemoryStore::oss().with_checksum(keeps).with_page(3));
        let directory = tempfile::tempdir().unwrap();
        Self { directory, store: model.clone(), model, journal: Arc::default(), key: Key::new("k") }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("file")
    }

    fn write(&self, bytes: &[u8]) {
        fs::write(self.path(), bytes).unwrap();
    }

    fn ahead_of(&self, resume: Option<OpenUpload>) -> impl Future<Output = Result<PartsAhead>> {
        let file = File::open(self.path()).unwrap();
        let stamp = FileStamp::of(&file).unwrap();
        let journal: Arc<dyn UploadJournal> = self.journal.clone();
        async move { PartsAhead::begin(&self.store, &self.key, (file, stamp), 64, &journal, resume).await }
    }

    fn open(&self) -> Option<OpenUpload> {
        self.journal.open.lock().unwrap().clone()
    }

    /// Uploads the file with what the journal has, and says how many parts were sent for it.
    async fn upload(&self) -> (Result<Uploaded>, usize) {
        let parts = Arc::new(Mutex::new(0));
        let count = Arc::clone(&parts);
        self.model.hook(move |call| {
            *count.lock().unwrap() += usize::from(call.operation == Operation::PutPart);
            Fault::None
        });
        let file = File::open(self.path()).unwrap();
        let size = file.metadata().unwrap().len();
        let options = UploadOptions {
            single_limit: 100,
            part_size: 64,
            journal: Some(self.journal.clone()),
            resume: self.open(),
            ..UploadOptions::default()
        };
        let done = upload(&self.store, &self.key, file, size, &options, &TransferBudget::new(2, 1 << 20)).await;
        let sent = *parts.lock().unwrap();
        (done, sent)
    }
}

#[tokio::test]
async fn parts_that_went_ahead_are_not_sent_again() {
    for keeps in [Keeps::Crc64, Keeps::Crc64Nvme, Keeps::Nothing] {
        for ahead in 0..=16 {
            let scene = Scene::new(keeps);
            let bytes = sample(1000, 1);
            scene.write(&bytes);
            // Half of them by one, half by another that goes on.
            let mut sender = scene.ahead_of(None).await.unwrap();
            for _ in 0..ahead / 2 {
                assert!(sender.send_next().await.unwrap().is_some());
            }
            drop(sender);
            let mut sender = scene.ahead_of(scene.open()).await.unwrap();
            for _ in ahead / 2..ahead {
                assert!(sender.send_next().await.unwrap().is_some());
            }
            assert_eq!((sender.left(), scene.model.keys().len()), (16 - ahead, 0));
            drop(sender);
            assert_eq!(scene.model.uploads_in_progress(), 1);
            let (done, sent) = scene.upload().await;
            let done = done.unwrap();
            assert_eq!((done.size, done.crc64, sent), (1000, crc64(&bytes), 16 - ahead));
            assert_eq!(scene.model.content("k").unwrap(), bytes);
            assert_eq!((scene.model.uploads_in_progress(), scene.open()), (0, None));
        }
    }
}

#[tokio::test]
async fn of_a_file_that_has_changed_nothing_is_kept() {
    for size in [1000, 90] {
        let scene = Scene::new(Keeps::Crc64);
        scene.write(&sample(1000, 1));
        let mut sender = scene.ahead_of(None).await.unwrap();
        sender.send_next().await.unwrap();
        let begun = scene.open().unwrap();
        // The clock of file systems ticks slowly.
        std::thread::sleep(Duration::from_millis(20));
        scene.write(&sample(size, 2));
        assert_eq!(*sender.send_next().await.unwrap_err().kind(), ErrorKind::Changed);
        let (done, sent) = scene.upload().await;
        assert_eq!((done.unwrap().size, sent), (size as u64, if size == 90 { 0 } else { 16 }));
        assert_eq!(scene.model.content("k").unwrap(), sample(size, 2));
        assert_eq!((scene.model.uploads_in_progress(), scene.open()), (0, None));
        // Whoever goes ahead with it gives the old one up, too.
        *scene.journal.open.lock().unwrap() = Some(begun);
        assert_eq!(scene.ahead_of(scene.open()).await.unwrap().left(), size.div_ceil(64));
    }
}

#[tokio::test]
async fn a_record_that_is_wrong_costs_a_new_upload_and_nothing_else() {
    type Damage = fn(&mut OpenUpload);
    let damages: [Damage; 5] = [
        |open| open.id = UploadId("of somebody else".into()),
        |open| open.part_size = 0,
        |open| open.part_size = 63,
        |open| open.stamp.changed.1 ^= 1,
        |open| open.parts.truncate(1),
    ];
    for damage in damages {
        let scene = Scene::new(Keeps::Crc64);
        let bytes = sample(1000, 1);
        scene.write(&bytes);
        let mut sender = scene.ahead_of(None).await.unwrap();
        for _ in 0..5 {
            sender.send_next().await.unwrap();
        }
        damage(scene.journal.open.lock().unwrap().as_mut().unwrap());
        assert!(scene.upload().await.0.is_ok());
        assert_eq!(scene.model.content("k").unwrap(), bytes);
    }
}

#[tokio::test]
async fn an_upload_that_was_completed_before_its_end_was_written_down_is_not_done_twice() {
    let scene = Scene::new(Keeps::Crc64);
    scene.write(&sample(1000, 1));
    let mut sender = scene.ahead_of(None).await.unwrap();
    while sender.send_next().await.unwrap().is_some() {}
    let before = scene.open();
    assert!(scene.upload().await.0.is_ok());
    *scene.journal.open.lock().unwrap() = before;
    let (done, sent) = scene.upload().await;
    assert_eq!((done.unwrap().size, sent, scene.open()), (1000, 0, None));
}

#[tokio::test]
async fn an_upload_that_cannot_be_written_down_is_not_begun_ahead_of_time() {
    let mut scene = Scene::new(Keeps::Crc64);
    scene.journal = Arc::new(Memory { fails: true, ..Memory::default() });
    scene.write(&sample(1000, 1));
    assert_eq!(*scene.ahead_of(None).await.unwrap_err().kind(), ErrorKind::LocalFile);
    assert_eq!(scene.model.uploads_in_progress(), 0);
    // In the end it is sent all the same.
    assert!(scene.upload().await.0.is_ok());
    assert_eq!(scene.model.uploads_in_progress(), 0);
}

fn receipt(number: u32, size: u64, seed: u64) -> SentPart {
    let receipt = PartReceipt { number, etag: format!("\"{seed:x}\""), size, crc64: seed, crc64_nvme: None };
    SentPart::new(receipt, Sums { size, crc64: seed, nvme: !seed })
}

fn stamp(size: u64) -> FileStamp {
    FileStamp { device: 1, inode: 2, size, modified: (3, 4), changed: (5, 6) }
}

proptest! {
    #[test]
    fn only_what_all_agree_on_is_kept(
        size in 1_u64..500, part_size in 1_u64..100,
        recorded in proptest::collection::vec((1_u32..8, 0_u64..120, 0_u64..3), 0..12),
        stored in proptest::collection::btree_map(1_u32..8, (0_u64..120, 0_u64..3, 0..3_u8), 0..8),
    ) {
        let parts: Vec<_> = recorded.iter().map(|(number, size, seed)| receipt(*number, *size, *seed)).collect();
        let open = OpenUpload { id: UploadId("u".into()), stamp: stamp(size), part_size, parts };
        let listed: Vec<_> = stored.iter().map(|(number, (size, seed, sum))| PartMeta {
            number: *number,
            size: *size,
            etag: format!("{seed:X}"),
            checksum: match sum {
                0 => None,
                1 => Some(Checksum::Crc64(*seed)),
                _ => Some(Checksum::Crc64Nvme(!*seed)),
            },
        }).collect();
        let kept = keep(&open, Some(&listed));
        for (number, part) in &kept {
            let last = recorded.iter().rfind(|(n, ..)| n == number).unwrap();
            prop_assert_eq!(part, &receipt(last.0, last.1, last.2));
            let (stored_size, seed, _) = stored[number];
            prop_assert_eq!((stored_size, seed), (last.1, last.2));
            let start = u64::from(*number - 1) * part_size;
            prop_assert!(start < size && part.receipt().size == part_size.min(size - start));
        }
        // Without a list our own word is what there is.
        prop_assert!(kept.keys().all(|number| keep(&open, None).contains_key(number)));
    }

    #[test]
    fn wherever_it_is_interrupted_the_rest_makes_the_whole(
        size in 101_usize..700, faults in proptest::collection::vec(0..12_u8, 60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let scene = Scene::new(Keeps::Crc64);
            let bytes = sample(size, 5);
            scene.write(&bytes);
            let mut faults = faults.into_iter();
            scene.model.hook(move |_| match faults.next() {
                Some(0) => Fault::Before(ErrorKind::Unavailable),
                Some(1) => Fault::After(ErrorKind::Unavailable),
                Some(2) => Fault::Before(ErrorKind::NotFound),
                _ => Fault::None,
            });
            for _ in 0..6 {
                // Each is a process of its own that ends at its first failure.
                let Ok(mut sender) = scene.ahead_of(scene.open()).await else { continue };
                while let Ok(Some(_)) = sender.send_next().await {}
            }
            assert_eq!(scene.model.keys().len(), 0, "nothing is seen before the end");
            assert!(scene.upload().await.0.is_ok());
            assert_eq!(scene.model.content("k").unwrap(), bytes);
            assert!(scene.open().is_none());
        });
    }
}

/// Paths are only compared.
#[test]
fn a_stamp_tells_contents_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let of = |path: &Path| FileStamp::of(&File::open(path).unwrap()).unwrap();
    fs::write(&path, "one").unwrap();
    let one = of(&path);
    assert_eq!(one, of(&path));
    std::thread::sleep(Duration::from_millis(20));
    fs::write(&path, "two").unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let two = of(&path);
    assert!(one != two && two.changed > one.changed);
    // A whole record comes back as it was written.
    let open = OpenUpload { id: UploadId("u".into()), stamp: two, part_size: 1, parts: vec![receipt(1, 1, 7)] };
    let text = serde_json::to_string(&open).unwrap();
    assert_eq!(serde_json::from_str::<OpenUpload>(&text).unwrap(), open);
}
