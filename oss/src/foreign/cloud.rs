//! `gs://` and `az://` through `object_store`, over our own HTTP client.
//!
//! What that costs, compared with OSS and S3: its `Path` has no empty, `.` or `..` segments, no control characters and no
//! slash at the end. Keys that have are refused, and a listing that meets an empty segment fails as a whole. A
//! console's marker `dir/` comes out of a listing as `dir`; it is recognised where it is the prefix that was asked for
//! or where something lies below it, and is an empty object `dir` otherwise. There are no checksums of whole objects, no
//! append and no copying of parts.

mod transport;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Error as CloudError, GetRange, ObjectStore, ObjectStoreExt, PutPayload};

use self::transport::Transport;
use crate::crc::crc64;
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location, Scheme};
use crate::store::{
    Capabilities, ETag, GetOptions, GetResponse, ListPage, ListRequest, ObjectMeta, PartReceipt, PutMode, PutResponse,
    Store, UploadId,
};

/// The time a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// The most entries on a page, as both clouds have it at least.
const PAGE: u32 = 1000;

/// A bucket at Google or a container at Azure.
pub(super) struct CloudStore {
    root: Location,
    capabilities: Capabilities,
    objects: Arc<dyn ObjectStore>,
    uploads: Arc<dyn MultipartStore>,
    pages: Arc<dyn PaginatedListStore>,
}

impl fmt::Debug for CloudStore {
    /// The clients' own forms would show their settings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudStore").field("root", &self.root).finish_non_exhaustive()
    }
}

impl CloudStore {
    /// The store of `root`, which is `gs://` or `az://`, with what the environment says.
    pub(super) fn open(root: Location) -> Result<Self> {
        let unusable = |error: CloudError| {
            let message = format!("the settings in the environment are not enough or make no sense: {error}");
            Error::new(ErrorKind::Invalid, "OPEN", &root, message)
        };
        let transport = Transport::new(CONNECT);
        if root.scheme() == Scheme::Az {
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(root.bucket());
            let store = Arc::new(builder.with_http_connector(transport).build().map_err(unusable)?);
            let capabilities =
                Capabilities { max_part_size: 4000 << 20, max_parts: 50_000, min_part_size: 1, ..capabilities() };
            Ok(Self { root, capabilities, objects: store.clone(), uploads: store.clone(), pages: store })
        } else {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(root.bucket());
            let store = Arc::new(builder.with_http_connector(transport).build().map_err(unusable)?);
            let capabilities = capabilities();
            Ok(Self { root, capabilities, objects: store.clone(), uploads: store.clone(), pages: store })
        }
    }

    async fn page(&self, target: &Target, request: &ListRequest, continuation: Option<String>) -> Result<ListPage> {
        let max_keys = request.max_keys.unwrap_or(PAGE).clamp(1, PAGE);
        let options = PaginatedListOptions {
            delimiter: request.delimiter.then_some("/".into()),
            max_keys: Some(usize::try_from(max_keys).unwrap_or(1000)),
            page_token: continuation,
            ..PaginatedListOptions::default()
        };
        let prefix = Some(request.prefix.as_str()).filter(|prefix| !prefix.is_empty());
        let answer = self.pages.list_paginated(prefix, options).await.map_err(|error| target.fault(error))?;
        let keys = keys_of(&request.prefix, &answer.result.objects);
        let objects = keys.into_iter().zip(&answer.result.objects).map(|(key, meta)| describe(key, meta)).collect();
        let prefixes = answer.result.common_prefixes.iter().map(|prefix| format!("{prefix}/")).collect();
        Ok(ListPage { objects, prefixes, continuation: answer.page_token })
    }

    fn at(&self, operation: &'static str, key: &Key) -> Target {
        Target { operation, location: self.root.with_key(key.clone()) }
    }
}

/// As Google has it.
fn capabilities() -> Capabilities {
    Capabilities {
        append: false,
        max_append_size: 0,
        // Of a put it would be; of the completion of an upload it is not, and callers do both.
        put_if_absent: false,
        copy_part: false,
        crc64: false,
        min_part_size: 5 << 20,
        max_part_size: 5 << 30,
        max_parts: 10_000,
        list_from_inside: false,
        resumable_uploads: false,
    }
}

/// What is being done to which object, for messages.
#[derive(Clone)]
struct Target {
    operation: &'static str,
    location: Location,
}

impl Target {
    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, self.operation, &self.location, message)
    }

    /// The key as the client wants it, if it can hold it unchanged.
    fn path(&self) -> Result<Path> {
        let key = self.location.key().as_str();
        match Path::parse(key) {
            Ok(path) if path.as_ref() == key && !key.is_empty() => Ok(path),
            _ => Err(self.error(
                ErrorKind::Invalid,
                "the client for this cloud cannot hold such a key (empty, '.' or '..' between slashes, a slash at the \
                 beginning or end, or a control character)",
            )),
        }
    }

    fn fault(&self, error: CloudError) -> Error {
        let mut message = String::new();
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(part) = cause {
            let text = part.to_string();
            // Most of them repeat what is underneath.
            if !message.contains(&text) {
                message = if message.is_empty() { text } else { format!("{message}: {text}") };
            }
            cause = part.source();
        }
        let no_bucket = message.contains("NoSuchBucket") || message.contains("ContainerNotFound");
        let kind = match &error {
            CloudError::NotFound { .. } if no_bucket => ErrorKind::NoSuchBucket,
            CloudError::NotFound { .. } => ErrorKind::NotFound,
            CloudError::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            CloudError::Precondition { .. } | CloudError::NotModified { .. } => ErrorKind::Changed,
            CloudError::PermissionDenied { .. } => ErrorKind::Denied,
            CloudError::Unauthenticated { .. } => ErrorKind::BadCredentials,
            CloudError::InvalidPath { .. } | CloudError::UnknownConfigurationKey { .. } => ErrorKind::Invalid,
            CloudError::NotSupported { .. } | CloudError::NotImplemented { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Unavailable,
        };
        self.error(kind, message).with_source(error)
    }
}

fn describe(key: Key, meta: &object_store::ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        key,
        size: meta.size,
        etag: meta.e_tag.clone().map(ETag),
        modified: Some(SystemTime::from(meta.last_modified)),
        checksum: None,
        archived: false,
    }
}

/// The keys of a page, markers with their slash again.
fn keys_of(prefix: &str, objects: &[object_store::ObjectMeta]) -> Vec<Key> {
    let is_marker = |index: usize, object: &object_store::ObjectMeta| {
        let name = object.location.as_ref();
        let below = format!("{name}/");
        object.size == 0
            && (prefix.starts_with(&below)
                || objects[index + 1..].iter().any(|other| other.location.as_ref().starts_with(&below)))
    };
    let key = |(index, object): (usize, &object_store::ObjectMeta)| {
        let name = object.location.as_ref();
        if is_marker(index, object) { Key::new(format!("{name}/")) } else { Key::new(name) }
    };
    objects.iter().enumerate().map(key).collect()
}

#[async_trait]
impl Store for CloudStore {
    fn root(&self) -> &Location {
        &self.root
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        let target = self.at("HEAD", key);
        let meta = self.objects.head(&target.path()?).await.map_err(|error| target.fault(error))?;
        Ok(describe(key.clone(), &meta))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResponse> {
        let target = self.at("GET", key);
        let path = target.path()?;
        let outside = |range: &Range<u64>| {
            target.error(ErrorKind::Invalid, format!("the range {}..{} lies outside", range.start, range.end))
        };
        if let Some(range) = options.range.as_ref().filter(|range| range.is_empty()) {
            return Err(outside(range));
        }
        let asked = object_store::GetOptions {
            range: options.range.clone().map(GetRange::Bounded),
            if_match: options.if_match.map(|etag| etag.0),
            ..object_store::GetOptions::default()
        };
        let answer = match (self.objects.get_opts(&path, asked).await, options.range) {
            (Ok(answer), _) => answer,
            (Err(error), range) => {
                let error = target.fault(error);
                // The client does not tell a range outside of the object from other failures.
                if let (ErrorKind::Unavailable, Some(range)) = (error.kind(), range)
                    && self.head(key).await.is_ok_and(|meta| range.start >= meta.size)
                {
                    return Err(outside(&range));
                }
                return Err(error);
            }
        };
        let (meta, range) = (describe(key.clone(), &answer.meta), answer.range.clone());
        let body = answer.into_stream().map(move |chunk| chunk.map_err(|error| target.fault(error)));
        Ok(GetResponse { meta, range, request_id: None, body: body.boxed() })
    }

    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<PutResponse> {
        let target = self.at("PUT", key);
        let mode = match mode {
            PutMode::Overwrite => object_store::PutMode::Overwrite,
            PutMode::IfAbsent => object_store::PutMode::Create,
        };
        let path = target.path()?;
        let answer = self.objects.put_opts(&path, PutPayload::from(body), mode.into()).await;
        let answer = answer.map_err(|error| target.fault(error))?;
        Ok(PutResponse { etag: answer.e_tag.map(ETag), checksum: None })
    }

    async fn create_multipart(&self, key: &Key) -> Result<UploadId> {
        let target = self.at("CREATE UPLOAD", key);
        let id = self.uploads.create_multipart(&target.path()?).await;
        id.map(UploadId).map_err(|error| target.fault(error))
    }

    async fn put_part(&self, key: &Key, upload: &UploadId, number: u32, body: Bytes) -> Result<PartReceipt> {
        let target = self.at("PUT PART", key);
        let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        let index = index.filter(|_| number <= self.capabilities.max_parts).ok_or_else(|| {
            let message = format!("parts are numbered from 1 to {}", self.capabilities.max_parts);
            target.error(ErrorKind::Invalid, message)
        })?;
        let (size, crc64) = (body.len() as u64, crc64(&body));
        let part = self.uploads.put_part(&target.path()?, &upload.0, index, PutPayload::from(body)).await;
        let part = part.map_err(|error| target.fault(error))?;
        Ok(PartReceipt { number, etag: part.content_id, size, crc64, crc64_nvme: None })
    }

    async fn copy_part(&self, key: &Key, _: &UploadId, _: u32, _: &Key, _: Range<u64>, _: u64) -> Result<PartReceipt> {
        Err(self.at("COPY PART", key).error(ErrorKind::Unsupported, "this store cannot copy parts"))
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<PutResponse> {
        let target = self.at("COMPLETE UPLOAD", key);
        if mode == PutMode::IfAbsent {
            let message = "the client for this cloud cannot complete an upload only if the object is absent";
            return Err(target.error(ErrorKind::Unsupported, message));
        }
        // The client numbers them itself.
        if parts.is_empty() || !parts.iter().map(|part| part.number).eq(1..=u32::try_from(parts.len()).unwrap_or(0)) {
            return Err(target.error(ErrorKind::Invalid, "the parts must be numbered 1, 2, 3, ... without a gap"));
        }
        let ids = parts.iter().map(|part| PartId { content_id: part.etag.clone() }).collect();
        let answer = self.uploads.complete_multipart(&target.path()?, &upload.0, ids).await;
        let answer = answer.map_err(|error| target.fault(error))?;
        Ok(PutResponse { etag: answer.e_tag.map(ETag), checksum: None })
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<()> {
        let target = self.at("ABORT UPLOAD", key);
        match self.uploads.abort_multipart(&target.path()?, &upload.0).await {
            Ok(()) | Err(CloudError::NotFound { .. }) => Ok(()),
            Err(error) => Err(target.fault(error)),
        }
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let target = self.at("LIST", &Key::new(request.prefix.clone()));
        let mut page = self.page(&target, &request, request.continuation.clone()).await?;
        // Skipped here: not every version and emulator of both services can begin inside a listing.
        let Some(after) = request.behind() else { return Ok(page) };
        loop {
            page.objects.retain(|object| object.key.as_str() > after);
            page.prefixes.retain(|prefix| prefix.as_str() > after);
            if page.continuation.is_none() || !page.objects.is_empty() || !page.prefixes.is_empty() {
                return Ok(page);
            }
            let next = self.page(&target, &request, page.continuation.clone()).await?;
            if next.continuation.is_some() && next.continuation == page.continuation {
                return Err(target.error(ErrorKind::Unavailable, "the store gives the same page again and again"));
            }
            page = next;
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let target = self.at("DELETE", key);
        match self.objects.delete(&target.path()?).await {
            Ok(()) | Err(CloudError::NotFound { .. }) => Ok(()),
            Err(error) => Err(target.fault(error)),
        }
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<PutResponse> {
        let (source, target) = (self.at("COPY", from), self.at("COPY", to));
        self.objects.copy(&source.path()?, &target.path()?).await.map_err(|error| source.fault(error))?;
        Ok(PutResponse::default())
    }
}

#[cfg(test)]
mod tests {
    use object_store::list::PaginatedListResult;
    use object_store::memory::InMemory;

    use super::*;
    use crate::conformance::conformance;

    /// Pages of a listing as the clouds make them: by raw prefix, in byte order, with prefixes among the entries.
    struct Pages(Arc<InMemory>);

    #[async_trait]
    impl PaginatedListStore for Pages {
        async fn list_paginated(
            &self,
            prefix: Option<&str>,
            options: PaginatedListOptions,
        ) -> object_store::Result<PaginatedListResult> {
            let prefix = prefix.unwrap_or_default();
            let mut all: Vec<_> = self.0.list(None).map(|meta| meta.unwrap()).collect().await;
            all.sort_by(|a, b| a.location.as_ref().cmp(b.location.as_ref()));
            let mut page = object_store::ListResult {
                common_prefixes: Vec::new(),
                objects: Vec::new(),
                extensions: Default::default(),
            };
            let (mut last, mut token) = (options.page_token.unwrap_or_default(), None);
            for meta in all {
                let Some(rest) = meta.location.as_ref().strip_prefix(prefix) else { continue };
                let rolled = rest.split_once('/').filter(|_| options.delimiter.is_some());
                let entry = rolled.map_or(meta.location.to_string(), |(name, _)| format!("{prefix}{name}/"));
                if entry <= last {
                    continue;
                }
                if page.objects.len() + page.common_prefixes.len() == options.max_keys.unwrap() {
                    token = Some(last);
                    break;
                }
                last.clone_from(&entry);
                match rolled {
                    Some(_) => page.common_prefixes.push(Path::parse(entry).unwrap()),
                    None => page.objects.push(meta),
                }
            }
            Ok(PaginatedListResult { result: page, page_token: token })
        }
    }

    /// Uploads as Google has them: parts have tags, and an upload that is gone is not found.
    struct Uploads(Arc<InMemory>);

    #[async_trait]
    impl MultipartStore for Uploads {
        async fn create_multipart(&self, path: &Path) -> object_store::Result<String> {
            self.0.create_multipart(path).await
        }

        async fn put_part(
            &self,
            path: &Path,
            id: &String,
            index: usize,
            data: PutPayload,
        ) -> object_store::Result<PartId> {
            let bytes: Vec<u8> = data.iter().flatten().copied().collect();
            self.0.put_part(path, id, index, data).await?;
            Ok(PartId { content_id: format!("{:x}", crc64(&bytes)) })
        }

        async fn complete_multipart(
            &self,
            path: &Path,
            id: &String,
            parts: Vec<PartId>,
        ) -> object_store::Result<object_store::PutResult> {
            self.0.complete_multipart(path, id, parts).await
        }

        async fn abort_multipart(&self, path: &Path, id: &String) -> object_store::Result<()> {
            let gone = |source| CloudError::NotFound { path: path.to_string(), source: Box::new(source) };
            self.0.abort_multipart(path, id).await.map_err(|error: CloudError| gone(error))
        }
    }

    #[tokio::test]
    async fn what_lies_over_the_client_conforms() {
        let memory = Arc::new(InMemory::new());
        let root = Location::new(Scheme::Gs, "bucket", "").unwrap();
        let capabilities = Capabilities { min_part_size: 1, ..capabilities() };
        let store = CloudStore {
            root,
            capabilities,
            objects: memory.clone(),
            uploads: Arc::new(Uploads(memory.clone())),
            pages: Arc::new(Pages(memory)),
        };
        conformance(Arc::new(store), "some/where/").await;
    }

    fn target(key: &str) -> Target {
        Target { operation: "GET", location: Location::new(Scheme::Gs, "b", key).unwrap() }
    }

    #[test]
    fn keys_are_held_unchanged_or_refused() {
        for key in ["a", "a b/c", "100%25", "数据", "a?b#c", "back\\slash", "..a"] {
            assert_eq!(target(key).path().unwrap().as_ref(), key);
        }
        for key in ["", "/", "/a", "a/", "a//b", ".", "a/../b", "new\nline"] {
            assert_eq!(*target(key).path().unwrap_err().kind(), ErrorKind::Invalid, "{key:?}");
        }
    }

    #[test]
    fn markers_get_their_slash_back() {
        let object = |name: &str, size| object_store::ObjectMeta {
            location: Path::parse(name).unwrap(),
            last_modified: SystemTime::UNIX_EPOCH.into(),
            size,
            e_tag: None,
            version: None,
        };
        let page = [object("d", 0), object("d/e", 0), object("d/empty", 0), object("d/e/f", 0), object("d/g", 1)];
        let keys = |prefix| keys_of(prefix, &page).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(keys("d/"), ["d/", "d/e/", "d/empty", "d/e/f", "d/g"]);
        assert_eq!(keys_of("x/", &[object("x", 0)]), [Key::new("x/")]);
        assert_eq!(keys_of("x", &[object("x", 0)]), [Key::new("x")]);
    }

    #[test]
    fn failures_mean_what_they_say() {
        let cause = |text: &str| -> Box<dyn std::error::Error + Send + Sync> { text.into() };
        let path = || "k".to_owned();
        for (error, kind) in [
            (CloudError::NotFound { path: path(), source: cause("gone") }, ErrorKind::NotFound),
            (
                CloudError::NotFound { path: path(), source: cause("<Code>NoSuchBucket</Code>") },
                ErrorKind::NoSuchBucket,
            ),
            (CloudError::PermissionDenied { path: path(), source: cause("no") }, ErrorKind::Denied),
            (CloudError::Unauthenticated { path: path(), source: cause("who") }, ErrorKind::BadCredentials),
            (CloudError::Precondition { path: path(), source: cause("tag") }, ErrorKind::Changed),
            (CloudError::Generic { store: "GCS", source: cause("timeout") }, ErrorKind::Unavailable),
        ] {
            let error = target("k").fault(error);
            assert_eq!(*error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with("GET gs://b/k: "), "{error}");
        }
    }
}
