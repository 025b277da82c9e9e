//! The stores that are reached without our own REST client: local files, Google Cloud Storage and Azure Blob Storage.
//!
//! `file://` is written here from the system calls up (`file`), because it is what people try first and because
//! `object_store`'s local file system cannot keep the contract of [`Store`]: it percent-decodes and normalises names,
//! follows symbolic links, has no append, and lists staging files of other writers. Google and Azure (`cloud`) go
//! through `object_store`, whose `Path` cannot hold every key: those it cannot hold are refused, never changed.

mod cloud;
mod file;

use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location, Scheme};
use crate::store::{
    AppendResponse, Capabilities, GetOptions, GetResponse, ListPage, ListRequest, ObjectMeta, PartPage, PartReceipt,
    PutMode, PutResponse, Store, UploadId, UploadMarker, UploadPage,
};

/// A store behind `file://`, `gs://` or `az://`.
#[derive(Debug)]
pub struct ForeignStore(Box<dyn Store>);

impl ForeignStore {
    /// Opens the store that `root` is in; nothing is sent yet. For `gs://` and `az://` credentials come from the
    /// environment, by the names their vendors' tools use (`GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`,
    /// ...), or from the instance's metadata.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a scheme that another client serves; [`ErrorKind::Invalid`] when the environment's
    /// settings make no sense.
    pub fn open(root: &Location) -> Result<Self> {
        let root = root.with_key("");
        Ok(Self(match root.scheme() {
            Scheme::File => Box::new(file::FileStore::new(root)),
            Scheme::Gs | Scheme::Az => Box::new(cloud::CloudStore::open(root)?),
            Scheme::Oss | Scheme::S3 => {
                return Err(Error::new(ErrorKind::Unsupported, "OPEN", root, "this is not a foreign store"));
            }
        }))
    }
}

#[async_trait]
impl Store for ForeignStore {
    fn root(&self) -> &Location {
        self.0.root()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.0.head(key).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResponse> {
        self.0.get(key, options).await
    }

    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<PutResponse> {
        self.0.put(key, body, mode).await
    }

    async fn create_multipart(&self, key: &Key) -> Result<UploadId> {
        self.0.create_multipart(key).await
    }

    async fn put_part(&self, key: &Key, upload: &UploadId, number: u32, body: Bytes) -> Result<PartReceipt> {
        self.0.put_part(key, upload, number, body).await
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
        self.0.copy_part(key, upload, number, source, range, crc64).await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<PutResponse> {
        self.0.complete_multipart(key, upload, parts, mode).await
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<()> {
        self.0.abort_multipart(key, upload).await
    }

    async fn list_parts(&self, key: &Key, upload: &UploadId, after: u32) -> Result<PartPage> {
        self.0.list_parts(key, upload, after).await
    }

    async fn list_uploads(&self, prefix: &str, after: Option<&UploadMarker>) -> Result<UploadPage> {
        self.0.list_uploads(prefix, after).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        self.0.list(request).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.0.delete(key).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<PutResponse> {
        self.0.copy(from, to).await
    }

    async fn append(&self, key: &Key, position: u64, body: Bytes) -> Result<AppendResponse> {
        self.0.append(key, position, body).await
    }
}
