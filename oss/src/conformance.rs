//! What every store must do, as one test that any of them can be put through.
//!
//! The model in memory and `file://` run it in this crate's unit tests, OSS and S3 in those that have a server. It
//! asks for what a store says it is capable of, and where a store cannot hold a key it must refuse it with
//! [`ErrorKind::Invalid`] and not store something else.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, as in any test")]

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::crc::{crc64, crc64_combine, crc64_nvme};
use crate::error::{ErrorKind, Result};
use crate::location::Key;
use crate::store::{Checksum, ETag, GetOptions, ListPage, ListRequest, PartMeta, PutMode, Store, UploadId};

/// Keys from real buckets that other tools trip over.
pub const ODD_KEYS: &[&str] = &[
    "plain",
    "a//b",
    "/leading",
    ".",
    "..",
    "a/./b",
    "a/../b",
    "100%25",
    "%2e%2e",
    "a?b#c&d=e",
    "a+b c",
    "tab\there",
    "new\nline",
    "数据/样本.bam",
    "\u{1f9ec}",
    "\u{feff}bom",
    "back\\slash",
    "q\"uote'<&>",
    "~",
    "a:b@c",
    "marker/",
    ".hidden",
];

/// Puts `store` through everything, below `prefix`, which is empty or ends in `/` and below which there is nothing.
/// Removes what it has made.
///
/// # Panics
/// When the store does not do what [`Store`] says.
pub async fn conformance(store: Arc<dyn Store>, prefix: &str) {
    conformance_without(store, prefix, &[]).await;
}

/// The same for a server that fails for some [`ODD_KEYS`] through faults of its own, which are left out.
///
/// # Panics
/// When the store does not do what [`Store`] says.
pub async fn conformance_without(store: Arc<dyn Store>, prefix: &str, odd_keys: &'static [&'static str]) {
    let suite = Suite { store, prefix: prefix.to_owned(), left_out: odd_keys };
    suite.whole_objects().await;
    suite.odd_keys().await;
    suite.ranges().await;
    suite.if_match().await;
    suite.if_absent().await;
    suite.listings().await;
    suite.listings_from_inside().await;
    suite.an_object_beside_a_directory().await;
    suite.multipart().await;
    suite.multipart_if_absent().await;
    suite.uploads_in_progress().await;
    suite.copies().await;
    suite.appends().await;
    suite.clean_up().await;
}

struct Suite {
    store: Arc<dyn Store>,
    prefix: String,
    left_out: &'static [&'static str],
}

/// Bytes that look random and are the same every time.
pub fn sample(len: usize, seed: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes.into()
}

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind().clone())
}

fn assert_checksum(checksum: Option<Checksum>, bytes: &[u8]) {
    match checksum {
        Some(Checksum::Crc64(value)) => assert_eq!(value, crc64(bytes)),
        Some(Checksum::Crc64Nvme(value)) => assert_eq!(value, crc64_nvme(bytes)),
        Some(Checksum::Md5(value)) => assert_eq!(value[..], <md5::Md5 as md5::Digest>::digest(bytes)[..]),
        None => {}
    }
}

impl Suite {
    fn key(&self, name: &str) -> Key {
        Key::new(format!("{}{name}", self.prefix))
    }

    async fn put(&self, name: &str, bytes: &[u8]) {
        self.store.put(&self.key(name), Bytes::copy_from_slice(bytes), PutMode::Overwrite).await.unwrap();
    }

    async fn read(&self, name: &str) -> Result<Bytes> {
        self.store.get(&self.key(name), GetOptions::default()).await?.bytes().await
    }

    async fn list(&self, prefix: &str, delimiter: bool, max_keys: Option<u32>) -> ListPage {
        self.list_all(ListRequest {
            prefix: format!("{}{prefix}", self.prefix),
            delimiter,
            max_keys,
            ..ListRequest::default()
        })
        .await
    }

    async fn list_all(&self, mut request: ListRequest) -> ListPage {
        let mut all = ListPage::default();
        let max_keys = request.max_keys;
        loop {
            let page = self.store.list(request.clone()).await.unwrap();
            let entries = page.objects.len() + page.prefixes.len();
            assert!(max_keys.is_none_or(|max| entries <= max as usize), "{entries} entries on a page of {max_keys:?}");
            all.objects.extend(page.objects);
            all.prefixes.extend(page.prefixes);
            match page.continuation {
                None => return all,
                next => request.continuation = next,
            }
        }
    }

    async fn names(&self, prefix: &str, delimiter: bool, max_keys: Option<u32>) -> (Vec<String>, Vec<String>) {
        let all = self.list(prefix, delimiter, max_keys).await;
        let cut = |key: &str| key.strip_prefix(&self.prefix).unwrap().to_owned();
        let objects: Vec<_> = all.objects.iter().map(|object| cut(object.key.as_str())).collect();
        let prefixes: Vec<_> = all.prefixes.iter().map(|prefix| cut(prefix)).collect();
        assert!(objects.is_sorted() && prefixes.is_sorted(), "not in byte order: {objects:?} {prefixes:?}");
        (objects, prefixes)
    }

    async fn clean_up(&self) {
        let mut left = self.list("", false, None).await.objects;
        // What is deep first, because a directory on a file system must be empty to go.
        while !left.is_empty() {
            let before: BTreeSet<_> = left.iter().map(|object| object.key.clone()).collect();
            for object in left.iter().rev() {
                self.store.delete(&object.key).await.unwrap();
            }
            left = self.list("", false, None).await.objects;
            let root = Key::new(self.prefix.clone());
            left.retain(|object| object.key != root);
            assert!(left.iter().any(|object| !before.contains(&object.key)) || left.is_empty(), "stays: {left:?}");
        }
    }

    async fn whole_objects(&self) {
        assert_eq!(kind(self.read("absent").await), Some(ErrorKind::NotFound));
        assert_eq!(kind(self.store.head(&self.key("absent")).await), Some(ErrorKind::NotFound));
        self.store.delete(&self.key("absent")).await.unwrap();
        for size in [0, 1, 1000, 300_000, 2_500_000] {
            let bytes = sample(size, size as u64);
            let written = self.store.put(&self.key("whole"), bytes.clone(), PutMode::Overwrite).await.unwrap();
            assert_checksum(written.checksum, &bytes);
            let meta = self.store.head(&self.key("whole")).await.unwrap();
            assert_eq!((meta.key.clone(), meta.size), (self.key("whole"), size as u64));
            assert_checksum(meta.checksum, &bytes);
            if written.etag.is_some() {
                assert_eq!(meta.etag, written.etag);
            }
            let got = self.store.get(&self.key("whole"), GetOptions::default()).await.unwrap();
            assert_eq!((got.range.clone(), got.meta.size, &got.meta.etag), (0..size as u64, size as u64, &meta.etag));
            assert!(got.bytes().await.unwrap() == bytes, "{size} bytes came back changed");
        }
        self.store.delete(&self.key("whole")).await.unwrap();
        assert_eq!(kind(self.read("whole").await), Some(ErrorKind::NotFound));
        self.store.delete(&self.key("whole")).await.unwrap();
    }

    async fn odd_keys(&self) {
        let mut held = Vec::new();
        for (number, name) in ODD_KEYS.iter().enumerate().filter(|(_, name)| !self.left_out.contains(name)) {
            let name = format!("odd/{name}");
            let bytes = if name.ends_with('/') { Bytes::new() } else { sample(10 + number, 7) };
            match self.store.put(&self.key(&name), bytes.clone(), PutMode::Overwrite).await {
                Ok(_) => held.push((name, bytes)),
                Err(error) => assert_eq!(*error.kind(), ErrorKind::Invalid, "{error}"),
            }
        }
        assert!(held.iter().any(|(name, _)| name == "odd/plain"));
        let (objects, _) = self.names("odd/", false, None).await;
        let mut expected: Vec<_> = held.iter().map(|(name, _)| name.clone()).collect();
        expected.sort();
        assert_eq!(objects, expected);
        for (name, bytes) in &held {
            assert_eq!(self.store.head(&self.key(name)).await.unwrap().size, bytes.len() as u64, "{name:?}");
            assert_eq!(self.read(name).await.unwrap(), bytes, "{name:?}");
            self.store.delete(&self.key(name)).await.unwrap();
            assert_eq!(kind(self.read(name).await), Some(ErrorKind::NotFound), "{name:?}");
        }
        assert_eq!(
            kind(self.store.put(&Key::new(""), Bytes::new(), PutMode::Overwrite).await),
            Some(ErrorKind::Invalid)
        );
    }

    async fn ranges(&self) {
        let bytes = sample(2_500_000, 1);
        self.put("ranges", &bytes).await;
        let size = bytes.len() as u64;
        for range in [0..1, 0..size, 5..6, 1_000_000..2_200_000, size - 1..size, 100..size + 100] {
            let options = GetOptions { range: Some(range.clone()), if_match: None };
            let got = self.store.get(&self.key("ranges"), options).await.unwrap();
            let end = range.end.min(size);
            assert_eq!((got.range.clone(), got.meta.size), (range.start..end, size));
            let (from, to) = (usize::try_from(range.start).unwrap(), usize::try_from(end).unwrap());
            assert!(got.bytes().await.unwrap() == bytes[from..to], "{range:?} came back changed");
        }
        let past = GetOptions { range: Some(size..size + 1), if_match: None };
        assert_eq!(kind(self.store.get(&self.key("ranges"), past).await), Some(ErrorKind::Invalid));
    }

    async fn if_match(&self) {
        self.put("match", b"one").await;
        let Some(etag) = self.store.head(&self.key("match")).await.unwrap().etag else { return };
        let with = |etag: &ETag| GetOptions { range: Some(0..3), if_match: Some(etag.clone()) };
        let got = self.store.get(&self.key("match"), with(&etag)).await.unwrap();
        assert_eq!(got.bytes().await.unwrap(), "one");
        self.put("match", b"two").await;
        assert_eq!(kind(self.store.get(&self.key("match"), with(&etag)).await), Some(ErrorKind::Changed));
        assert_eq!(self.read("match").await.unwrap(), "two");
    }

    async fn if_absent(&self) {
        if !self.store.capabilities().put_if_absent {
            return;
        }
        let key = self.key("absent");
        self.store.put(&key, "one".into(), PutMode::IfAbsent).await.unwrap();
        assert_eq!(kind(self.store.put(&key, "two".into(), PutMode::IfAbsent).await), Some(ErrorKind::AlreadyExists));
        assert_eq!(self.read("absent").await.unwrap(), "one");
        self.put("absent", b"three").await;
        assert_eq!(self.read("absent").await.unwrap(), "three");
    }

    async fn listings(&self) {
        let names =
            ["l/a.txt", "l/a/x", "l/a/y/z", "l/a/y/zz", "l/a0", "l/b/1", "l/b-c", "l/c", "l/d/e/f/g", "l/d/e/h", "m"];
        for name in names {
            self.put(name, name.as_bytes()).await;
        }
        let mut sorted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        sorted.retain(|name| name.starts_with("l/"));
        sorted.sort();
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for page in [None, Some(1), Some(2), Some(3), Some(1000)] {
            assert_eq!(self.names("l/", false, page).await, (sorted.clone(), vec![]));
            assert_eq!(
                self.names("l/", true, page).await,
                (own(&["l/a.txt", "l/a0", "l/b-c", "l/c"]), own(&["l/a/", "l/b/", "l/d/"]))
            );
            assert_eq!(self.names("l/a", true, page).await, (own(&["l/a.txt", "l/a0"]), own(&["l/a/"])));
            assert_eq!(self.names("l/a/", true, page).await, (own(&["l/a/x"]), own(&["l/a/y/"])));
            assert_eq!(self.names("l/a/y/z", false, page).await, (own(&["l/a/y/z", "l/a/y/zz"]), vec![]));
            assert_eq!(self.names("l", true, page).await, (vec![], own(&["l/"])));
            assert_eq!(self.names("l/absent/", true, page).await, (vec![], vec![]));
            assert_eq!(self.names("l/c/", false, page).await, (vec![], vec![]));
        }
        for object in self.list("l/", false, None).await.objects {
            assert_eq!(object.size, (object.key.as_str().len() - self.prefix.len()) as u64);
            assert!(object.modified.is_some());
            assert_eq!(object.etag, self.store.head(&object.key).await.unwrap().etag);
        }
    }

    /// `l/` is as [`listings`](Self::listings) left it.
    async fn listings_from_inside(&self) {
        let (keys, rolled) = self.names("l/", false, None).await;
        assert!(keys.len() > 5 && rolled.is_empty());
        let mut tops = self.names("l/", true, None).await;
        tops.0.append(&mut tops.1);
        let starts = ["", "l", "l/", "l/a", "l/a.", "l/a/", "l/a/y/z", "l/a/zz", "l/b/", "l/c", "l/zz", "m"];
        for start in starts.map(str::to_owned).into_iter().chain(keys.iter().cloned()) {
            for max_keys in [None, Some(1), Some(2)] {
                for (delimiter, all) in [(false, &keys), (true, &tops.0)] {
                    let page = self
                        .list_all(ListRequest {
                            prefix: format!("{}l/", self.prefix),
                            delimiter,
                            start_after: Some(format!("{}{start}", self.prefix)),
                            max_keys,
                            ..ListRequest::default()
                        })
                        .await;
                    let mut got: Vec<_> = page.objects.iter().map(|object| object.key.to_string()).collect();
                    got.extend(page.prefixes);
                    got.sort();
                    let mut want: Vec<_> = all
                        .iter()
                        .filter(|name| name.as_str() > start.as_str())
                        .map(|name| format!("{}{name}", self.prefix))
                        .collect();
                    want.sort();
                    assert_eq!(got, want, "after {start:?}, {max_keys:?} at a time, delimiter {delimiter}");
                }
            }
        }
    }

    /// A marker lists as itself; an object beside a directory of its name is either held or refused.
    async fn an_object_beside_a_directory(&self) {
        let marker = self.store.put(&self.key("dirs/empty/"), Bytes::new(), PutMode::Overwrite).await;
        self.put("dirs/full/x", b"1").await;
        let (objects, prefixes) = self.names("dirs/", true, None).await;
        match kind(marker) {
            None => {
                assert_eq!((objects, prefixes), (vec![], vec!["dirs/empty/".to_owned(), "dirs/full/".to_owned()]));
                assert_eq!(self.names("dirs/empty/", true, None).await, (vec!["dirs/empty/".to_owned()], vec![]));
                self.store.delete(&self.key("dirs/empty/")).await.unwrap();
                assert_eq!(self.names("dirs/empty/", true, None).await, (vec![], vec![]));
            }
            Some(ErrorKind::Invalid) => {
                assert_eq!((objects, prefixes), (vec![], vec!["dirs/full/".to_owned()]));
            }
            Some(other) => panic!("{other:?}"),
        }
        assert_eq!(kind(self.read("dirs/full").await), Some(ErrorKind::NotFound));
        match self.store.put(&self.key("dirs/full"), "2".into(), PutMode::Overwrite).await {
            Ok(_) => {
                assert_eq!(self.read("dirs/full").await.unwrap(), "2");
                let (objects, prefixes) = self.names("dirs/f", true, None).await;
                assert_eq!((objects, prefixes), (vec!["dirs/full".to_owned()], vec!["dirs/full/".to_owned()]));
            }
            Err(error) => assert_eq!(*error.kind(), ErrorKind::Invalid, "{error}"),
        }
        assert_eq!(self.read("dirs/full/x").await.unwrap(), "1");
    }

    fn part_size(&self) -> usize {
        usize::try_from(self.store.capabilities().min_part_size).unwrap().max(1000)
    }

    async fn multipart(&self) {
        let (key, store) = (self.key("multi"), &self.store);
        let size = self.part_size();
        let (one, two, three) = (sample(size, 1), sample(size + 1, 2), sample(10, 3));
        let upload = store.create_multipart(&key).await.unwrap();
        let last = store.put_part(&key, &upload, 3, three.clone()).await.unwrap();
        let replaced = store.put_part(&key, &upload, 1, sample(size, 9)).await.unwrap();
        let (first, second) = futures_util::future::join(
            store.put_part(&key, &upload, 1, one.clone()),
            store.put_part(&key, &upload, 2, two.clone()),
        )
        .await;
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!((first.number, first.size, first.crc64), (1, size as u64, crc64(&one)));
        assert_ne!(first.etag, replaced.etag);
        assert_eq!(kind(self.read("multi").await), Some(ErrorKind::NotFound), "an upload shows before it is complete");
        let written =
            store.complete_multipart(&key, &upload, &[first, second, last], PutMode::Overwrite).await.unwrap();
        let whole = Bytes::from([&one[..], &two, &three].concat());
        assert_checksum(written.checksum, &whole);
        assert!(self.read("multi").await.unwrap() == whole, "parts were put together wrongly");
        assert_checksum(store.head(&key).await.unwrap().checksum, &whole);

        let upload = store.create_multipart(&key).await.unwrap();
        store.put_part(&key, &upload, 1, one.clone()).await.unwrap();
        store.abort_multipart(&key, &upload).await.unwrap();
        store.abort_multipart(&key, &upload).await.unwrap();
        assert!(self.read("multi").await.unwrap() == whole);

        if store.capabilities().copy_part {
            let upload = store.create_multipart(&key).await.unwrap();
            let (cut, end) = (size as u64, whole.len() as u64);
            let (head, tail) = whole.split_at(size);
            let a = store.copy_part(&key, &upload, 1, &key, 0..cut, crc64(head)).await.unwrap();
            let b = store.copy_part(&key, &upload, 2, &key, cut..end, crc64(tail)).await.unwrap();
            assert_eq!((a.size, a.crc64, b.size), (cut, crc64(head), end - cut));
            assert_eq!(crc64_combine(a.crc64, b.crc64, b.size), crc64(&whole));
            let written = store.complete_multipart(&key, &upload, &[a, b], PutMode::Overwrite).await.unwrap();
            assert_checksum(written.checksum, &whole);
            assert!(self.read("multi").await.unwrap() == whole, "copied parts were put together wrongly");
        }
    }

    async fn multipart_if_absent(&self) {
        if !self.store.capabilities().put_if_absent {
            return;
        }
        let key = self.key("multi-absent");
        for expected in [None, Some(ErrorKind::AlreadyExists)] {
            let upload = self.store.create_multipart(&key).await.unwrap();
            let part = self.store.put_part(&key, &upload, 1, "x".into()).await.unwrap();
            let done = self.store.complete_multipart(&key, &upload, &[part], PutMode::IfAbsent).await;
            assert_eq!(kind(done), expected);
            self.store.abort_multipart(&key, &upload).await.unwrap();
        }
        assert_eq!(self.read("multi-absent").await.unwrap(), "x");
    }

    /// What is told of uploads in progress, where the store tells anything.
    async fn uploads_in_progress(&self) {
        let (key, store) = (self.key("open 100% +\u{4e2d}"), &self.store);
        let size = self.part_size();
        let upload = store.create_multipart(&key).await.unwrap();
        if kind(store.list_parts(&key, &upload, 0).await) == Some(ErrorKind::Unsupported) {
            assert!(!store.capabilities().resumable_uploads);
            assert_eq!(kind(store.list_uploads(key.as_str(), None).await), Some(ErrorKind::Unsupported));
            return store.abort_multipart(&key, &upload).await.unwrap();
        }
        assert_eq!(self.parts(&key, &upload).await.unwrap(), []);
        let (one, last) = (sample(size, 1), sample(10, 3));
        let third = store.put_part(&key, &upload, 3, last.clone()).await.unwrap();
        store.put_part(&key, &upload, 1, sample(size + 1, 9)).await.unwrap();
        let first = store.put_part(&key, &upload, 1, one.clone()).await.unwrap();
        let parts = self.parts(&key, &upload).await.unwrap();
        assert_eq!(parts.len(), 2);
        for (part, (receipt, bytes)) in parts.iter().zip([(&first, &one), (&third, &last)]) {
            let bare = |etag: &str| etag.trim_matches('"').to_owned();
            assert_eq!((part.number, part.size), (receipt.number, receipt.size));
            assert_eq!(bare(&part.etag), bare(&receipt.etag));
            assert_checksum(part.checksum, bytes);
        }

        let other = store.create_multipart(&key).await.unwrap();
        let elsewhere = self.key("open 100% +\u{4e2d} x");
        let third_upload = store.create_multipart(&elsewhere).await.unwrap();
        let mut expected = vec![(key.clone(), upload.clone()), (key.clone(), other.clone())];
        expected.sort_by(|a, b| a.1.0.cmp(&b.1.0));
        expected.push((elsewhere.clone(), third_upload.clone()));
        assert_eq!(self.uploads(key.as_str()).await, expected);
        assert_eq!(self.uploads(elsewhere.as_str()).await, expected[2..]);
        store.abort_multipart(&elsewhere, &third_upload).await.unwrap();
        store.abort_multipart(&key, &other).await.unwrap();
        store.complete_multipart(&key, &upload, &[first], PutMode::Overwrite).await.unwrap();
        assert_eq!(self.uploads(key.as_str()).await, []);
        assert_eq!(kind(self.parts(&key, &upload).await), Some(ErrorKind::NotFound));
    }

    async fn parts(&self, key: &Key, upload: &UploadId) -> Result<Vec<PartMeta>> {
        let (mut parts, mut after) = (Vec::new(), 0);
        loop {
            let page = self.store.list_parts(key, upload, after).await?;
            parts.extend(page.parts);
            let Some(next) = page.continuation else { return Ok(parts) };
            after = next;
        }
    }

    async fn uploads(&self, prefix: &str) -> Vec<(Key, UploadId)> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.list_uploads(prefix, after.as_ref()).await.unwrap();
            assert!(page.uploads.iter().all(|upload| upload.initiated.is_some()));
            found.extend(page.uploads.into_iter().map(|upload| (upload.key, upload.id)));
            let Some(next) = page.continuation else { break };
            after = Some(next);
        }
        // By key; of uploads to one object some servers tell the oldest first, others go by their ids.
        found.sort_by(|a, b| (&a.0, &a.1.0).cmp(&(&b.0, &b.1.0)));
        found
    }

    async fn copies(&self) {
        let bytes = sample(100_000, 5);
        self.put("from here", &bytes).await;
        let written = self.store.copy(&self.key("from here"), &self.key("to+there")).await.unwrap();
        assert_checksum(written.checksum, &bytes);
        assert_eq!(self.read("to+there").await.unwrap(), bytes);
        assert_eq!(self.read("from here").await.unwrap(), bytes);
        let absent = self.store.copy(&self.key("absent source"), &self.key("to")).await;
        assert_eq!(kind(absent), Some(ErrorKind::NotFound));
    }

    async fn appends(&self) {
        let (key, store) = (self.key("log"), &self.store);
        if !store.capabilities().append {
            assert_eq!(kind(store.append(&key, 0, "x".into()).await), Some(ErrorKind::Unsupported));
            return;
        }
        assert!(matches!(
            kind(store.append(&key, 5, "x".into()).await),
            Some(ErrorKind::PositionMismatch { next: Some(0) | None })
        ));
        let mut whole = Vec::new();
        for piece in ["one ", "two ", "three"] {
            let position = whole.len() as u64;
            whole.extend_from_slice(piece.as_bytes());
            let answer = store.append(&key, position, piece.into()).await.unwrap();
            assert_eq!(answer.next_position, whole.len() as u64);
            assert!(answer.crc64.is_none_or(|crc| crc == crc64(&whole)));
            let again = kind(store.append(&key, position, piece.into()).await);
            assert_eq!(again, Some(ErrorKind::PositionMismatch { next: Some(whole.len() as u64) }));
        }
        assert_eq!(self.read("log").await.unwrap(), whole);
        assert_checksum(store.head(&key).await.unwrap().checksum, &whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreign::ForeignStore;
    use crate::location::{Location, Scheme};
    use crate::memory::{Keeps, MemoryStore};

    #[tokio::test]
    async fn the_model_conforms() {
        for store in [MemoryStore::oss(), MemoryStore::s3(), MemoryStore::oss().with_page(1)] {
            conformance(Arc::new(store), "").await;
        }
        for keeps in [Keeps::Nothing, Keeps::Crc64, Keeps::Crc64Nvme, Keeps::Md5] {
            conformance(Arc::new(MemoryStore::oss().with_checksum(keeps).with_page(2)), "deep/er/").await;
        }
    }

    #[tokio::test]
    async fn local_files_conform() {
        let directory = tempfile::tempdir().unwrap();
        let store = ForeignStore::open(&Location::new(Scheme::File, "", "").unwrap()).unwrap();
        let prefix = format!("{}/100% of//", directory.path().to_str().unwrap().trim_start_matches('/'));
        conformance(Arc::new(store), &prefix.replace("//", "/")).await;
        let left: Vec<_> = std::fs::read_dir(directory.path().join("100% of")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
