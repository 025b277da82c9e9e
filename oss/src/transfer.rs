//! Whole files to and from object storage: in parallel, in bounded memory, verified by checksum.
//!
//! A file travels in pieces of equal length (see `plan`). All transfers of a process share one [`TransferBudget`], so that a
//! thousand small files and one of a terabyte use the same number of connections and the same memory.
//!
//! Nothing half done is ever seen: an object appears when its upload is completed and a file when it is whole and its
//! checksum is right. A transfer that fails or is dropped gives its upload up and leaves no file behind. Checksums of the
//! pieces are taken as they pass through memory and combined, so verification reads nothing twice (but for objects of
//! which the store knows an MD5 only, which cannot be combined).

mod budget;
mod buffers;
mod compare;
mod download;
mod plan;
mod upload;

use std::io;
use std::sync::Arc;

use nix::libc;

pub use self::budget::TransferBudget;
pub use self::compare::{Comparison, compare};
pub use self::download::{DownloadOptions, Downloaded, download, download_bytes};
pub use self::upload::{FileStamp, OpenUpload, PartsAhead, SentPart, UploadJournal, UploadOptions, Uploaded, upload};
use crate::error::{Error, ErrorKind};
use crate::location::Location;

/// Is told how many bytes of the file have arrived so far. Called from any thread, often; must return at once. When a
/// download begins again because its checksum was wrong, the number falls back to 0.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// The error for a local file that could not be read or written.
fn local(operation: &'static str, target: &Location, what: &str, error: io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::DiskFull,
        _ => ErrorKind::LocalFile,
    };
    Error::new(kind, operation, target, format!("{what}: {error}")).with_source(error)
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    target: &Location,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        let message = "the transfer was given up because the program is ending, or failed inside";
        Error::new(ErrorKind::Unavailable, operation, target, message).with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::conformance::sample;
    use crate::crc::crc64;
    use crate::foreign::ForeignStore;
    use crate::location::{Key, Scheme};
    use crate::memory::{Fault, Keeps, MemoryStore, Operation};
    use crate::store::{PutMode, Store};

    fn file_of(directory: &Path, bytes: &[u8]) -> File {
        let path = directory.join("source");
        fs::write(&path, bytes).unwrap();
        File::open(path).unwrap()
    }

    fn small_parts() -> UploadOptions {
        UploadOptions { single_limit: 100, part_size: 64, ..UploadOptions::default() }
    }

    fn small_pieces() -> DownloadOptions {
        DownloadOptions { piece: 50, ..DownloadOptions::default() }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Up and down again through `store`, spawned, so that the futures are seen to be `Send`.
    async fn round_trip(store: Arc<dyn Store>, key: Key, bytes: Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let (source, target) = (file_of(directory.path(), &bytes), directory.path().join("target"));
        let task = tokio::spawn(async move {
            let budget = TransferBudget::new(3, 1 << 20);
            let seen = Arc::new(Mutex::new(Vec::new()));
            let log = Arc::clone(&seen);
            let progress: Progress = Arc::new(move |done| log.lock().unwrap().push(done));
            let options = UploadOptions { progress: Some(progress), ..small_parts() };
            let size = bytes.len() as u64;
            let up = upload(&store, &key, source, size, &options, &budget).await.unwrap();
            assert_eq!((up.size, up.crc64), (size, crc64(&bytes)));
            assert_eq!(seen.lock().unwrap().iter().max(), Some(&size));
            let down = download(&store, &key, &target, &small_pieces(), &budget).await.unwrap();
            assert_eq!((down.size, down.crc64), (size, crc64(&bytes)));
            assert_eq!(fs::read(&target).unwrap(), bytes);
            assert_eq!(download_bytes(&store, &key, size).await.unwrap(), bytes);
            if size > 0 {
                let error = download_bytes(&store, &key, size - 1).await.unwrap_err();
                assert_eq!(*error.kind(), ErrorKind::Invalid);
            }
        });
        task.await.unwrap();
        assert_eq!(names(directory.path()), ["source", "target"]);
    }

    #[tokio::test]
    async fn every_size_survives_on_every_kind_of_store() {
        let directory = tempfile::tempdir().unwrap();
        let local = ForeignStore::open(&Location::new(Scheme::File, "", "").unwrap()).unwrap();
        let local: Arc<dyn Store> = Arc::new(local);
        let local_key = Key::new(format!("{}/new/object", directory.path().to_str().unwrap().trim_start_matches('/')));
        for size in [0, 1, 50, 64, 100, 101, 128, 129, 1000, 5003] {
            let bytes = sample(size, 3).to_vec();
            for keeps in [Keeps::Nothing, Keeps::Crc64, Keeps::Crc64Nvme, Keeps::Md5] {
                let store: Arc<dyn Store> = Arc::new(MemoryStore::oss().with_checksum(keeps));
                round_trip(store, Key::new("a//b"), bytes.clone()).await;
            }
            round_trip(Arc::clone(&local), local_key.clone(), bytes).await;
        }
        assert_eq!(names(&directory.path().join("new")), ["object"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_fault_gives_the_right_bytes_or_an_error(
            size in 0_usize..600, faults in proptest::collection::vec(0..40_u8, 40), keeps in 0..2
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let directory = tempfile::tempdir().unwrap();
                let bytes = sample(size, 5);
                let keeps = if keeps == 0 { Keeps::Crc64 } else { Keeps::Crc64Nvme };
                let model = Arc::new(MemoryStore::oss().with_checksum(keeps));
                let (store, key): (Arc<dyn Store>, _) = (model.clone(), Key::new("k"));
                let mut faults = faults.into_iter();
                model.hook(move |_| match faults.next() {
                    Some(0) => Fault::Before(ErrorKind::Unavailable),
                    Some(1) => Fault::After(ErrorKind::Unavailable),
                    Some(2) => Fault::WrongByte,
                    _ => Fault::None,
                });
                let (source, budget) = (file_of(directory.path(), &bytes), TransferBudget::new(2, 1 << 20));
                let up = upload(&store, &key, source, size as u64, &small_parts(), &budget).await;
                if up.is_ok() {
                    assert_eq!(model.content("k").unwrap(), bytes);
                }
                let target = directory.path().join("target");
                match download(&store, &key, &target, &small_pieces(), &budget).await {
                    Ok(down) => {
                        assert!(down.verified);
                        assert_eq!(fs::read(&target).unwrap(), model.content("k").unwrap());
                    }
                    Err(_) => assert!(!target.exists()),
                }
                assert!(names(directory.path()).len() <= 2);
            });
        }
    }

    #[tokio::test]
    async fn a_failed_upload_gives_its_parts_up_and_shows_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let model = Arc::new(MemoryStore::oss());
        let store: Arc<dyn Store> = model.clone();
        let mut parts = 0;
        model.hook(move |call| {
            let part = call.operation == Operation::PutPart;
            parts += i32::from(part);
            if part && parts == 4 { Fault::Before(ErrorKind::Denied) } else { Fault::None }
        });
        let source = file_of(directory.path(), &sample(1000, 1));
        let budget = TransferBudget::default();
        let error = upload(&store, &Key::new("k"), source, 1000, &small_parts(), &budget).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Denied);
        assert_eq!((model.uploads_in_progress(), model.keys().len()), (0, 0));
    }

    #[tokio::test]
    async fn a_dropped_upload_gives_its_parts_up() {
        let directory = tempfile::tempdir().unwrap();
        let model = Arc::new(MemoryStore::oss());
        let store: Arc<dyn Store> = model.clone();
        let (begun, wait) = tokio::sync::oneshot::channel();
        let mut begun = Some(begun);
        model.hook(move |call| {
            if call.operation == Operation::PutPart
                && let Some(begun) = begun.take()
            {
                begun.send(()).unwrap();
            }
            Fault::None
        });
        let source = file_of(directory.path(), &sample(100_000, 1));
        let budget = TransferBudget::new(1, 1);
        let shared = budget.clone();
        let task =
            tokio::spawn(async move { upload(&store, &Key::new("k"), source, 100_000, &small_parts(), &shared).await });
        wait.await.unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        tokio::time::timeout(Duration::from_secs(60), budget.settled()).await.unwrap();
        assert_eq!((model.uploads_in_progress(), model.keys().len()), (0, 0));
    }

    #[tokio::test]
    async fn an_upload_that_is_dropped_while_it_is_created_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let model = Arc::new(MemoryStore::oss());
        let store: Arc<dyn Store> = model.clone();
        let budget = TransferBudget::default();
        let source = file_of(directory.path(), &sample(1000, 1));
        let (key, options) = (Key::new("k"), small_parts());
        let mut upload = Box::pin(upload(&store, &key, source, 1000, &options, &budget));
        // Polled once: the request is on its way, and its answer was not seen.
        assert!(futures_util::FutureExt::now_or_never(&mut upload).is_none());
        drop(upload);
        tokio::time::timeout(Duration::from_secs(60), budget.settled()).await.unwrap();
        assert_eq!((model.uploads_in_progress(), model.keys().len()), (0, 0));
    }

    #[tokio::test]
    async fn a_completion_whose_reply_was_lost_is_found_out() {
        let directory = tempfile::tempdir().unwrap();
        for (fault, ok) in
            [(Fault::After(ErrorKind::Unavailable), true), (Fault::Before(ErrorKind::Unavailable), false)]
        {
            let model = Arc::new(MemoryStore::oss());
            let store: Arc<dyn Store> = model.clone();
            model.hook(move |call| match call.operation {
                Operation::CompleteMultipart => fault.clone(),
                _ => Fault::None,
            });
            let source = file_of(directory.path(), &sample(1000, 1));
            let result = upload(&store, &Key::new("k"), source, 1000, &small_parts(), &TransferBudget::default()).await;
            assert_eq!((result.is_ok(), model.keys().len()), (ok, usize::from(ok)));
            assert_eq!(model.uploads_in_progress(), 0);
        }
    }

    #[tokio::test]
    async fn a_file_that_is_written_to_is_not_uploaded() {
        let directory = tempfile::tempdir().unwrap();
        for size in [50_usize, 1000] {
            for (name, change) in [("longer", 1_i64), ("shorter", -1), ("same length", 0)] {
                let model = Arc::new(MemoryStore::oss());
                let store: Arc<dyn Store> = model.clone();
                let source = file_of(directory.path(), &sample(size, 1));
                let path = directory.path().join("source");
                // The clock of file systems ticks slowly.
                source.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
                let claimed = size as u64;
                let once = AtomicUsize::new(0);
                let touch = move || {
                    let file = File::options().write(true).open(&path).unwrap();
                    file.set_len(claimed.checked_add_signed(change).unwrap()).unwrap();
                    (&mut &file).write_all(b"x").unwrap();
                };
                if size == 50 {
                    // In one piece there is no request during which the file could change; it has changed before.
                    if change == 0 {
                        continue;
                    }
                    touch();
                } else {
                    model.hook(move |call| {
                        if call.operation == Operation::PutPart && once.fetch_add(1, Ordering::Relaxed) == 0 {
                            touch();
                        }
                        Fault::None
                    });
                }
                let budget = TransferBudget::new(1, 1 << 20);
                let error = upload(&store, &Key::new("k"), source, claimed, &small_parts(), &budget).await.unwrap_err();
                assert_eq!(*error.kind(), ErrorKind::Changed, "{name}: {error}");
                assert_eq!((model.uploads_in_progress(), model.keys().len()), (0, 0));
            }
        }
    }

    #[tokio::test]
    async fn wrong_bytes_are_found() {
        let directory = tempfile::tempdir().unwrap();
        for (operation, size) in [(Operation::Put, 90), (Operation::PutPart, 1000)] {
            for keeps in [Keeps::Crc64, Keeps::Crc64Nvme] {
                let model = Arc::new(MemoryStore::oss().with_checksum(keeps));
                let store: Arc<dyn Store> = model.clone();
                model.hook(move |call| if call.operation == operation { Fault::WrongByte } else { Fault::None });
                let source = file_of(directory.path(), &sample(size, 1));
                let budget = TransferBudget::default();
                let error = upload(&store, &Key::new("k"), source, size as u64, &small_parts(), &budget).await;
                assert_eq!(*error.unwrap_err().kind(), ErrorKind::Corrupt);
            }
        }
        // Once: the download begins again. Always: it fails and leaves no file.
        for (keeps, limit) in [(Keeps::Crc64, 1), (Keeps::Md5, 1), (Keeps::Crc64Nvme, usize::MAX)] {
            let model = Arc::new(MemoryStore::oss().with_checksum(keeps));
            let store: Arc<dyn Store> = model.clone();
            store.put(&Key::new("k"), sample(1000, 1), PutMode::Overwrite).await.unwrap();
            let wrong = AtomicUsize::new(0);
            model.hook(move |call| match call.operation {
                Operation::Get if wrong.fetch_add(1, Ordering::Relaxed) < limit => Fault::WrongByte,
                _ => Fault::None,
            });
            let target = directory.path().join("target");
            let result = download(&store, &Key::new("k"), &target, &small_pieces(), &TransferBudget::default()).await;
            if limit == 1 {
                assert!(result.unwrap().verified);
                assert_eq!(fs::read(&target).unwrap(), sample(1000, 1));
                fs::remove_file(&target).unwrap();
            } else {
                assert_eq!(*result.unwrap_err().kind(), ErrorKind::Corrupt);
            }
            assert_eq!(names(directory.path()), ["source"]);
        }
    }

    #[tokio::test]
    async fn an_object_that_is_replaced_or_too_large_is_not_downloaded() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "before").unwrap();
        let model = Arc::new(MemoryStore::oss());
        let (store, key): (Arc<dyn Store>, _) = (model.clone(), Key::new("k"));
        store.put(&key, sample(1000, 1), PutMode::Overwrite).await.unwrap();
        let budget = TransferBudget::new(1, 1);
        let limited = DownloadOptions { limit: 999, ..small_pieces() };
        let error = download(&store, &key, &target, &limited, &budget).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("1000 bytes long, at most 999"), "{error}");

        let gets = AtomicU64::new(0);
        let other = Arc::clone(&model);
        let replace = move || {
            other.unhook();
            futures_util::FutureExt::now_or_never(other.put(&Key::new("k"), sample(1000, 2), PutMode::Overwrite))
        };
        // The hook is held while it runs, so the object is replaced from outside of it.
        let (tell, told) = std::sync::mpsc::channel();
        let replacer = std::thread::spawn(move || {
            told.recv().unwrap();
            replace().unwrap().unwrap();
        });
        let go_on = Arc::new(Mutex::new(Some(replacer)));
        model.hook(move |call| {
            if call.operation == Operation::Get && gets.fetch_add(1, Ordering::Relaxed) == 3 {
                tell.send(()).unwrap();
            }
            Fault::None
        });
        let options = DownloadOptions {
            progress: Some(Arc::new(move |done| {
                if done >= 200
                    && let Some(thread) = go_on.lock().unwrap().take()
                {
                    thread.join().unwrap();
                }
            })),
            ..small_pieces()
        };
        let error = download(&store, &key, &target, &options, &budget).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Changed, "{error}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "before");
        assert_eq!(names(directory.path()), ["target"]);
    }

    #[tokio::test]
    async fn a_local_failure_says_so() {
        let location = Location::new(Scheme::Oss, "b", "k").unwrap();
        let full = local("DOWNLOAD", &location, "x", io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(*full.kind(), ErrorKind::DiskFull);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::oss());
        store.put(&Key::new("k"), "x".into(), PutMode::Overwrite).await.unwrap();
        let target = Path::new("/nonexistent-directory/file");
        let (key, options, budget) = (Key::new("k"), DownloadOptions::default(), TransferBudget::default());
        let error = download(&store, &key, target, &options, &budget).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::LocalFile);
        assert!(error.to_string().contains("/nonexistent-directory/file"), "{error}");
    }

    #[tokio::test]
    async fn all_transfers_together_keep_to_the_budget() {
        let directory = tempfile::tempdir().unwrap();
        let model = Arc::new(MemoryStore::oss());
        let budget = TransferBudget::new(2, 1 << 20);
        let permissions = DownloadOptions { permissions: Some(0o600), durable: true, ..small_pieces() };
        let all = (0..20).map(|number| {
            let (store, budget): (Arc<dyn Store>, _) = (model.clone(), budget.clone());
            let (path, options) = (directory.path().join(number.to_string()), permissions.clone());
            let bytes = sample(500, number);
            fs::write(&path, &bytes).unwrap();
            async move {
                let key = Key::new(number.to_string());
                upload(&store, &key, File::open(&path).unwrap(), 500, &small_parts(), &budget).await.unwrap();
                download(&store, &key, &path, &options, &budget).await.unwrap();
                assert_eq!(fs::read(&path).unwrap(), bytes);
                let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
                assert_eq!(mode & 0o777, 0o600);
            }
        });
        futures_util::future::join_all(all).await;
    }
}
