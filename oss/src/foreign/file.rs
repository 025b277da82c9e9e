//! `file://`: the local file system as a store.
//!
//! What a key means here, where a file system differs from a bucket:
//! - `a/b` is the file `/a/b`. Keys with empty, `.` or `..` segments are refused; nothing is decoded or normalised.
//! - `dir/` is the directory. It can be written (empty), which makes it; deleting it removes it if it is empty. Empty
//!   directories are listed as zero-byte objects `dir/`, others only by what is in them. `x` beside `x/y` cannot be.
//! - Only regular files are objects. A symbolic link in the last place of a key is never followed, and a listing does
//!   not go through the ones it meets: this code runs as root over trees that others can write to. (Links on the
//!   way to the directory that the location names are the administrator's, and work.)
//! - A write appears whole or not at all, is on the disk when it returns, and leaves nothing behind (see [`staged`](crate::staged)).
//!   Directories on the way are made. Appends go to the file itself and are not synced.
//! - An entity tag is made of inode number, modification time in nanoseconds and length. There are no stored checksums:
//!   writes answer with the checksum of what was written, heads and listings have none.
//! - Multipart uploads live as long as the store object.

mod disk;
mod fault;
mod name;
mod upload;
mod walk;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use self::disk::{Disk, Target, capabilities, read_chunk, short};
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location};
use crate::store::{
    AppendResponse, Capabilities, GetOptions, GetResponse, ListPage, ListRequest, ObjectMeta, PartPage, PartReceipt,
    PutMode, PutResponse, Store, UploadId, UploadMarker, UploadPage,
};

/// The local file system.
#[derive(Debug)]
pub(super) struct FileStore {
    disk: Arc<Disk>,
}

impl FileStore {
    /// The whole local tree.
    pub(super) fn new(root: Location) -> Self {
        Self { disk: Arc::new(Disk::new(root, PathBuf::from("/"))) }
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &Key,
        work: impl FnOnce(&Disk, &Target) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let disk = Arc::clone(&self.disk);
        let target = Target { operation, location: disk.root.with_key(key.clone()) };
        let location = target.location.clone();
        let done = tokio::task::spawn_blocking(move || work(&disk, &target)).await;
        done.unwrap_or_else(|error| {
            let message = "the work was given up because the program is ending, or failed inside";
            Err(Error::new(ErrorKind::Unavailable, operation, location, message).with_source(error))
        })
    }
}

#[async_trait]
impl Store for FileStore {
    fn root(&self) -> &Location {
        &self.disk.root
    }

    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.blocking("HEAD", key, |disk, target| disk.head(target)).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResponse> {
        let (file, meta, range, first) =
            self.blocking("GET", key, move |disk, target| disk.get(target, options)).await?;
        let behind_first = range.start + first.len() as u64..range.end;
        let head = stream::iter((!first.is_empty()).then_some(Ok(first)));
        let Some(file) = file.filter(|_| !behind_first.is_empty()) else {
            return Ok(GetResponse { meta, range, request_id: None, body: head.boxed() });
        };
        let store = Self { disk: Arc::clone(&self.disk) };
        let state = (store, key.clone(), Arc::new(file), behind_first);
        let tail = stream::unfold(Some(state), |state| async move {
            let (store, key, file, left) = state.filter(|(.., left)| !left.is_empty())?;
            let (reader, wanted) = (Arc::clone(&file), left.clone());
            let chunk = store
                .blocking("GET", &key, move |_, target| read_chunk(&reader, &wanted).map_err(|e| short(target, e)))
                .await;
            let state = chunk.as_ref().ok().map(|chunk| left.start + chunk.len() as u64..left.end);
            Some((chunk, state.map(|left| (store, key, file, left))))
        });
        Ok(GetResponse { meta, range, request_id: None, body: head.chain(tail).boxed() })
    }

    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<PutResponse> {
        self.blocking("PUT", key, move |disk, target| disk.put(target, &body, mode)).await
    }

    async fn create_multipart(&self, key: &Key) -> Result<UploadId> {
        self.blocking("CREATE UPLOAD", key, |disk, target| disk.create_multipart(target)).await
    }

    async fn put_part(&self, key: &Key, upload: &UploadId, number: u32, body: Bytes) -> Result<PartReceipt> {
        let upload = upload.clone();
        self.blocking("PUT PART", key, move |disk, target| disk.put_part(target, &upload, number, &body)).await
    }

    async fn copy_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        source: &Key,
        range: Range<u64>,
        crc64: u64,
    ) -> Result<PartReceipt> {
        let (length, end) = (range.end.saturating_sub(range.start), range.end);
        let body = self.get(source, GetOptions { range: Some(range), if_match: None }).await?;
        if body.range.end != end {
            let source = self.root().with_key(source.clone());
            let message = format!("the range ends at {end}, the file at {}", body.range.end);
            return Err(Error::new(ErrorKind::Invalid, "COPY PART", source, message));
        }
        let bytes = body.bytes().await?;
        let receipt = self.put_part(key, upload, number, bytes).await?;
        if (receipt.size, receipt.crc64) != (length, crc64) {
            let source = self.root().with_key(source.clone());
            let message = "the bytes of the range are not those that were expected, by checksum";
            return Err(Error::new(ErrorKind::Corrupt, "COPY PART", source, message));
        }
        Ok(receipt)
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<PutResponse> {
        let (upload, parts) = (upload.clone(), parts.to_vec());
        self.blocking("COMPLETE UPLOAD", key, move |disk, target| disk.complete(target, &upload, &parts, mode)).await
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<()> {
        let upload = upload.clone();
        self.blocking("ABORT UPLOAD", key, move |disk, target| disk.abort(target, &upload)).await
    }

    async fn list_parts(&self, key: &Key, upload: &UploadId, after: u32) -> Result<PartPage> {
        let upload = upload.clone();
        self.blocking("LIST PARTS", key, move |disk, target| disk.list_parts(target, &upload, after)).await
    }

    async fn list_uploads(&self, prefix: &str, after: Option<&UploadMarker>) -> Result<UploadPage> {
        Ok(self.disk.list_uploads(prefix, after))
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let key = Key::new(request.prefix.clone());
        self.blocking("LIST", &key, move |disk, target| disk.list(target, &request)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.blocking("DELETE", key, |disk, target| disk.delete(target)).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<PutResponse> {
        let source = Target { operation: "COPY", location: self.root().with_key(from.clone()) };
        self.blocking("COPY", to, move |disk, target| disk.copy(&source, target)).await
    }

    async fn append(&self, key: &Key, position: u64, body: Bytes) -> Result<AppendResponse> {
        self.blocking("APPEND", key, move |disk, target| disk.append(target, position, &body)).await
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use futures_util::future::join_all;
    use proptest::prelude::*;

    use super::*;
    use crate::conformance::sample;
    use crate::location::Scheme;
    use crate::memory::MemoryStore;
    use crate::store::ObjectMeta;

    fn store() -> FileStore {
        FileStore::new(Location::new(Scheme::File, "", "").unwrap())
    }

    fn key(directory: &Path, name: &str) -> Key {
        Key::new(format!("{}/{name}", directory.to_str().unwrap().trim_start_matches('/')))
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn kind<T>(result: Result<T>) -> ErrorKind {
        result.err().unwrap().kind().clone()
    }

    async fn keys(store: &dyn Store, prefix: &str, delimiter: bool, max_keys: Option<u32>) -> Vec<String> {
        let mut request = ListRequest { prefix: prefix.to_owned(), delimiter, max_keys, ..ListRequest::default() };
        let mut all = Vec::new();
        loop {
            let page = store.list(request.clone()).await.unwrap();
            all.extend(page.objects.into_iter().map(|object: ObjectMeta| object.key.to_string()));
            all.extend(page.prefixes);
            match page.continuation {
                Some(next) => request.continuation = Some(next),
                None => break,
            }
        }
        // Objects and prefixes of one page are apart, so only the whole can be compared.
        all.sort();
        all
    }

    #[tokio::test]
    async fn links_and_special_files_are_no_objects() {
        let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (path, store) = (directory.path(), store());
        fs::write(outside.path().join("secret"), "secret").unwrap();
        symlink(outside.path().join("secret"), path.join("link")).unwrap();
        symlink(outside.path(), path.join("links")).unwrap();
        symlink("nowhere", path.join("dangling")).unwrap();
        nix::unistd::mkfifo(&path.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(path.join(OsStr::from_bytes(b"not\xffutf-8")), "").unwrap();
        fs::write(path.join("file"), "1").unwrap();
        let prefix = key(path, "").to_string();
        assert_eq!(keys(&store, &prefix, false, None).await, [format!("{prefix}file")]);
        assert_eq!(keys(&store, &prefix, true, None).await, [format!("{prefix}file")]);

        assert_eq!(kind(store.get(&key(path, "link"), GetOptions::default()).await), ErrorKind::Invalid);
        assert_eq!(kind(store.head(&key(path, "link")).await), ErrorKind::Invalid);
        assert_eq!(kind(store.append(&key(path, "link"), 6, "x".into()).await), ErrorKind::Invalid);
        assert_eq!(kind(store.append(&key(path, "dangling"), 0, "x".into()).await), ErrorKind::Invalid);
        assert_eq!(kind(store.get(&key(path, "pipe"), GetOptions::default()).await), ErrorKind::NotFound);
        for name in ["link", "links", "links/", "pipe", "dangling"] {
            store.delete(&key(path, name)).await.unwrap();
        }
        assert_eq!(fs::read_dir(path).unwrap().count(), 6);
        // A write replaces the link and not what it points to.
        store.put(&key(path, "link"), "new".into(), PutMode::Overwrite).await.unwrap();
        assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_to_string(path.join("link")).unwrap(), "new");
    }

    #[tokio::test]
    async fn nothing_half_done_is_seen_or_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (path, store) = (directory.path(), store());
        let upload = store.create_multipart(&key(path, "x")).await.unwrap();
        store.put_part(&key(path, "x"), &upload, 1, sample(1000, 1)).await.unwrap();
        assert_eq!(keys(&store, key(path, "").as_str(), false, None).await, [key(path, "").to_string()]);
        drop(store);
        assert_eq!(names(path), Vec::<String>::new());
        // The temporary name of another program is neither listed nor taken for an object.
        fs::write(path.join(".oss-tmp.1"), "").unwrap();
        let store = self::store();
        assert_eq!(keys(&store, key(path, ".").as_str(), false, None).await, Vec::<String>::new());
        assert_eq!(kind(store.head(&key(path, ".oss-tmp.1")).await), ErrorKind::Invalid);
        assert_eq!(kind(store.put_part(&key(path, "x"), &upload, 1, "".into()).await), ErrorKind::NotFound);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_writers_at_once_exactly_one_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let (path, store) = (directory.path(), store());
        let (new, log) = (key(path, "new"), key(path, "log"));
        let puts = join_all((0..8).map(|n| store.put(&new, sample(10, n), PutMode::IfAbsent))).await;
        assert_eq!(puts.iter().filter(|result| result.is_ok()).count(), 1);
        let appends = join_all((0..8).map(|n| store.append(&log, 0, sample(10, n)))).await;
        assert_eq!(appends.iter().filter(|result| result.is_ok()).count(), 1);
        for error in appends.into_iter().filter_map(Result::err) {
            assert_eq!(*error.kind(), ErrorKind::PositionMismatch { next: Some(10) });
        }
        assert_eq!(names(path), ["log", "new"]);
    }

    #[tokio::test]
    async fn every_content_has_its_own_entity_tag() {
        let directory = tempfile::tempdir().unwrap();
        let (path, store) = (directory.path(), store());
        let mut seen = std::collections::HashSet::new();
        for n in 0..50 {
            let written = store.put(&key(path, "x"), sample(10, n), PutMode::Overwrite).await.unwrap();
            assert!(seen.insert(written.etag.unwrap().0), "after {n} writes");
        }
    }

    #[tokio::test]
    async fn a_reader_gets_what_it_opened_or_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (path, store) = (directory.path(), store());
        let (x, bytes) = (key(path, "x"), sample(5 << 20, 1));
        store.put(&x, bytes.clone(), PutMode::Overwrite).await.unwrap();
        let reader = store.get(&x, GetOptions::default()).await.unwrap();
        store.put(&x, "other".into(), PutMode::Overwrite).await.unwrap();
        assert!(reader.bytes().await.unwrap() == bytes);

        store.put(&x, bytes, PutMode::Overwrite).await.unwrap();
        let reader = store.get(&x, GetOptions::default()).await.unwrap();
        fs::File::options().write(true).open(path.join("x")).unwrap().set_len(3 << 20).unwrap();
        assert_eq!(kind(reader.bytes().await), ErrorKind::Changed);
    }

    #[tokio::test]
    async fn a_file_is_no_directory_and_a_directory_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let (path, store) = (directory.path(), store());
        store.put(&key(path, "file"), "1".into(), PutMode::Overwrite).await.unwrap();
        store.put(&key(path, "dir/x"), "2".into(), PutMode::Overwrite).await.unwrap();
        for (name, body) in [("file/x", "3"), ("file/", ""), ("dir", "3"), ("dir/", "3")] {
            let result = store.put(&key(path, name), body.into(), PutMode::Overwrite).await;
            assert_eq!(kind(result), ErrorKind::Invalid, "{name}");
        }
        assert_eq!(kind(store.head(&key(path, "file/x")).await), ErrorKind::NotFound);
        assert_eq!(kind(store.head(&key(path, "file/")).await), ErrorKind::NotFound);
        assert_eq!(kind(store.head(&key(path, "dir")).await), ErrorKind::NotFound);
        for name in ["file/x", "file/", "dir", "dir/"] {
            store.delete(&key(path, name)).await.unwrap();
        }
        assert_eq!(keys(&store, key(path, "").as_str(), false, None).await.len(), 2);
        assert_eq!(kind(store.head(&key(path, "../x")).await), ErrorKind::Invalid);
        let parent = ListRequest { prefix: key(path, "../").to_string(), ..ListRequest::default() };
        assert_eq!(kind(store.list(parent).await), ErrorKind::Invalid);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn listings_are_those_of_the_model(
            files in proptest::collection::btree_set("(d[.0%-]{0,2}/){0,3}f[.0-]{0,2}", 1..12),
            prefix in "(d[.0%-]{0,2}/){0,2}[df]?[.0-]?", delimiter in any::<bool>(), page in 1..5_u32
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let directory = tempfile::tempdir().unwrap();
                let (real, model) = (store(), MemoryStore::oss());
                for file in &files {
                    for store in [&real as &dyn Store, &model] {
                        let key = key(directory.path(), file);
                        store.put(&key, Bytes::copy_from_slice(file.as_bytes()), PutMode::Overwrite).await.unwrap();
                    }
                }
                let prefix = key(directory.path(), &prefix).to_string();
                for page in [None, Some(page)] {
                    assert_eq!(
                        keys(&real, &prefix, delimiter, page).await,
                        keys(&model, &prefix, delimiter, page).await
                    );
                }
            });
        }
    }
}
