//! A bucket in memory: the reference model of [`Store`], for tests.
//!
//! It does exactly what the trait says and nothing more kindly: keys are raw, listings are cut into pages as small as one
//! likes, append positions are strict, parts have a minimum size, uploads are invisible until completed. What the
//! store is capable of can be set, to stand for OSS, S3 or less. A hook sees every call and can make it fail before
//! it took effect, after it did (the reply was lost), or with a wrong byte.
//!
//! ```
//! use oss::memory::{Fault, MemoryStore, Operation};
//! use oss::{ErrorKind, Key, PutMode, Store};
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let store = MemoryStore::oss();
//! store.hook(|call| match call.operation {
//!     Operation::Put => Fault::After(ErrorKind::Unavailable),
//!     _ => Fault::None,
//! });
//! let key = Key::new("a//b");
//! assert!(store.put(&key, "hello".into(), PutMode::Overwrite).await.is_err());
//! assert_eq!(store.content("a//b").unwrap(), "hello");
//! # });
//! ```

mod fault;
mod uploads;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use md5::{Digest, Md5};

pub use self::fault::{Call, Fault, Keeps, Operation};
use crate::crc::{crc64, crc64_nvme};
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Key, Location, Scheme};
use crate::store::{
    AppendResponse, Capabilities, Checksum, ETag, GetOptions, GetResponse, ListPage, ListRequest, ObjectMeta, PartPage,
    PartReceipt, PutMode, PutResponse, Store, UploadId, UploadMarker, UploadPage,
};

type Hook = Box<dyn FnMut(&Call) -> Fault + Send>;

/// A bucket in memory.
pub struct MemoryStore {
    root: Location,
    capabilities: Capabilities,
    keeps: Keeps,
    page: usize,
    state: Mutex<State>,
    hook: Mutex<Option<Hook>>,
    late: Mutex<Vec<Late>>,
}

/// A request that is still under way.
struct Late {
    /// It arrives when this many more calls have been made.
    calls: u32,
    key: Key,
    /// Of an append.
    position: Option<u64>,
    body: Bytes,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: HashMap<UploadId, Upload>,
    /// Counts writes; entity tags and upload ids are made of it.
    clock: u64,
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    version: u64,
    modified: SystemTime,
    appendable: bool,
    in_one_piece: bool,
}

struct Upload {
    key: Key,
    initiated: SystemTime,
    parts: BTreeMap<u32, (String, Bytes)>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("root", &self.root).finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// A bucket that can do what OSS can, with parts as small as one byte.
    pub fn oss() -> Self {
        Self::new(
            Scheme::Oss,
            Capabilities {
                append: true,
                max_append_size: 5 << 30,
                put_if_absent: true,
                copy_part: true,
                crc64: true,
                min_part_size: 1,
                max_part_size: 5 << 30,
                max_parts: 10_000,
                list_from_inside: true,
                resumable_uploads: true,
            },
            Keeps::Crc64,
        )
    }

    /// A bucket that can do what S3 can: no append, parts of at least 5 MiB.
    pub fn s3() -> Self {
        Self::new(
            Scheme::S3,
            Capabilities {
                append: false,
                max_append_size: 0,
                crc64: false,
                min_part_size: 5 << 20,
                ..Self::oss().capabilities
            },
            Keeps::Crc64Nvme,
        )
    }

    /// A bucket called `memory` that can do this much.
    pub fn new(scheme: Scheme, capabilities: Capabilities, keeps: Keeps) -> Self {
        let bucket = if scheme == Scheme::File { "" } else { "memory" };
        let root = Location::new(scheme, bucket, "").expect("a constant bucket name that is well formed");
        Self {
            root,
            capabilities,
            keeps,
            page: 1000,
            state: Mutex::default(),
            hook: Mutex::default(),
            late: Mutex::default(),
        }
    }

    /// The same with other capabilities.
    #[must_use]
    pub fn with_capabilities(mut self, change: impl FnOnce(&mut Capabilities)) -> Self {
        change(&mut self.capabilities);
        self
    }

    /// The same keeping another checksum.
    #[must_use]
    pub fn with_checksum(mut self, keeps: Keeps) -> Self {
        self.keeps = keeps;
        self
    }

    /// The same with at most `entries` on a page of a listing, whatever is asked for.
    #[must_use]
    pub fn with_page(mut self, entries: usize) -> Self {
        self.page = entries.max(1);
        self
    }

    /// From now on asks `hook` about every call.
    pub fn hook(&self, hook: impl FnMut(&Call) -> Fault + Send + 'static) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    /// From now on everything works again.
    pub fn unhook(&self) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// An object's bytes, without asking the hook.
    pub fn content(&self, key: &str) -> Option<Bytes> {
        self.state().objects.get(key).map(|object| object.bytes.clone())
    }

    /// All keys, without asking the hook.
    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// How many uploads were neither completed nor given up.
    pub fn uploads_in_progress(&self) -> usize {
        self.state().uploads.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, kind: ErrorKind, operation: Operation, key: &Key, message: impl Into<String>) -> Error {
        Error::new(kind, operation.name(), self.root.with_key(key.clone()), message)
    }

    /// Asks the hook; fails if the call is to fail before it took effect.
    fn begin(&self, operation: Operation, key: &Key, range: Option<Range<u64>>, len: usize) -> Result<Fault> {
        self.let_arrive();
        let call = Call { operation, key: key.clone(), range, len };
        let mut hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner);
        match hook.as_mut().map_or(Fault::None, |hook| hook(&call)) {
            Fault::Before(kind) => Err(self.error(kind, operation, key, "made to fail before it took effect")),
            Fault::Late(kind) if !matches!(operation, Operation::Put | Operation::Append) => {
                Err(self.error(kind, operation, key, "made to fail before it took effect"))
            }
            fault => Ok(fault),
        }
    }

    /// Keeps a request to arrive later, and fails, if that is its fault.
    fn postpone(
        &self,
        operation: Operation,
        key: &Key,
        position: Option<u64>,
        body: &Bytes,
        fault: &Fault,
    ) -> Result<()> {
        let Fault::Late(kind) = fault else { return Ok(()) };
        let late = Late { calls: 2, key: key.clone(), position, body: body.clone() };
        self.late.lock().unwrap_or_else(PoisonError::into_inner).push(late);
        Err(self.error(kind.clone(), operation, key, "made to take effect later"))
    }

    /// What is due arrives; whether it is accepted interests nobody any more.
    fn let_arrive(&self) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.iter_mut().for_each(|request| request.calls -= 1);
        for request in late.extract_if(.., |request| request.calls == 0) {
            let _ = match request.position {
                None => self.store(Operation::Put, &request.key, request.body, true, PutMode::Overwrite).map(|_| ()),
                Some(position) => self.extend(&request.key, position, request.body).map(|_| ()),
            };
        }
    }

    /// Fails if the call is to fail after it took effect.
    fn end<T>(&self, operation: Operation, key: &Key, fault: Fault, value: T) -> Result<T> {
        match fault {
            Fault::After(kind) => Err(self.error(kind, operation, key, "made to fail after it took effect")),
            _ => Ok(value),
        }
    }

    fn checksum(&self, object: &Object) -> Option<Checksum> {
        match self.keeps {
            Keeps::Nothing => None,
            Keeps::Crc64 => Some(Checksum::Crc64(crc64(&object.bytes))),
            Keeps::Crc64Nvme => Some(Checksum::Crc64Nvme(crc64_nvme(&object.bytes))),
            Keeps::Md5 => object.in_one_piece.then(|| Checksum::Md5(Md5::digest(&object.bytes).into())),
        }
    }

    fn meta(&self, key: &str, object: &Object) -> ObjectMeta {
        ObjectMeta {
            key: Key::new(key),
            size: object.bytes.len() as u64,
            etag: Some(etag(object)),
            modified: Some(object.modified),
            checksum: self.checksum(object),
            archived: false,
        }
    }

    fn find(&self, operation: Operation, key: &Key) -> Result<Object> {
        let object = self.state().objects.get(key.as_str()).cloned();
        object.ok_or_else(|| self.error(ErrorKind::NotFound, operation, key, "there is no such object"))
    }

    /// Writes an object as one step.
    fn store(
        &self,
        operation: Operation,
        key: &Key,
        bytes: Bytes,
        in_one_piece: bool,
        mode: PutMode,
    ) -> Result<PutResponse> {
        if key.as_str().is_empty() {
            return Err(self.error(ErrorKind::Invalid, operation, key, "a key cannot be empty"));
        }
        let mut state = self.state();
        if mode == PutMode::IfAbsent {
            if !self.capabilities.put_if_absent {
                return Err(self.error(ErrorKind::Unsupported, operation, key, "this store has no put-if-absent"));
            }
            if state.objects.contains_key(key.as_str()) {
                return Err(self.error(ErrorKind::AlreadyExists, operation, key, "the object is there already"));
            }
        }
        let version = state.tick();
        let object = Object { bytes, version, modified: SystemTime::now(), appendable: false, in_one_piece };
        let response = PutResponse { etag: Some(etag(&object)), checksum: self.checksum(&object) };
        state.objects.insert(key.as_str().to_owned(), object);
        Ok(response)
    }

    /// Appends as one step.
    fn extend(&self, key: &Key, position: u64, body: Bytes) -> Result<AppendResponse> {
        let operation = Operation::Append;
        let mut state = self.state();
        let version = state.tick();
        let old = state.objects.get(key.as_str());
        if old.is_some_and(|object| !object.appendable) {
            return Err(self.error(ErrorKind::NotAppendable, operation, key, "it was not made by append"));
        }
        let mut bytes = old.map_or_else(Vec::new, |object| object.bytes.to_vec());
        let length = bytes.len() as u64;
        if length != position {
            let message = format!("the object is {length} bytes long, not {position}");
            return Err(self.error(ErrorKind::PositionMismatch { next: Some(length) }, operation, key, message));
        }
        let next_position = length + body.len() as u64;
        if next_position > self.capabilities.max_append_size {
            return Err(self.error(ErrorKind::Invalid, operation, key, "the object would become too long"));
        }
        bytes.extend_from_slice(&body);
        let object =
            Object { bytes: bytes.into(), version, modified: SystemTime::now(), appendable: true, in_one_piece: false };
        let crc64 = (self.keeps == Keeps::Crc64).then(|| crc64(&object.bytes));
        state.objects.insert(key.as_str().to_owned(), object);
        Ok(AppendResponse { next_position, crc64 })
    }

    fn clip(&self, operation: Operation, key: &Key, wanted: Option<Range<u64>>, size: u64) -> Result<Range<u64>> {
        match wanted {
            None => Ok(0..size),
            Some(range) if range.start < range.end && range.start < size => Ok(range.start..range.end.min(size)),
            Some(range) => {
                let message = format!("the range {}..{} lies outside of {size} bytes", range.start, range.end);
                Err(self.error(ErrorKind::Invalid, operation, key, message))
            }
        }
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

fn etag(object: &Object) -> ETag {
    ETag(format!("\"{:x}\"", object.version))
}

/// The bytes, or with one of them changed.
fn perhaps_wrong(bytes: Bytes, fault: &Fault) -> Bytes {
    if *fault != Fault::WrongByte || bytes.is_empty() {
        return bytes;
    }
    let mut bytes = bytes.to_vec();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x40;
    bytes.into()
}

#[async_trait]
impl Store for MemoryStore {
    fn root(&self) -> &Location {
        &self.root
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        let fault = self.begin(Operation::Head, key, None, 0)?;
        let object = self.find(Operation::Head, key)?;
        self.end(Operation::Head, key, fault, self.meta(key.as_str(), &object))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResponse> {
        let fault = self.begin(Operation::Get, key, options.range.clone(), 0)?;
        let object = self.find(Operation::Get, key)?;
        let meta = self.meta(key.as_str(), &object);
        if options.if_match.is_some() && options.if_match != meta.etag {
            return Err(self.error(ErrorKind::Changed, Operation::Get, key, "the object has another entity tag"));
        }
        let whole = options.range.is_none();
        let range = self.clip(Operation::Get, key, options.range, meta.size)?;
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = perhaps_wrong(object.bytes.slice(at(range.start)..at(range.end)), &fault);
        let verdict = if whole && fault == Fault::WrongByte && meta.checksum.is_some() {
            Some(Err(self.error(ErrorKind::Corrupt, Operation::Get, key, "the checksum is wrong")))
        } else {
            None
        };
        // In pieces, as from a network.
        let pieces: Vec<_> = bytes.chunks(64 << 10).map(|piece| Ok(bytes.slice_ref(piece))).chain(verdict).collect();
        self.end(Operation::Get, key, fault, ())?;
        Ok(GetResponse { meta, range, request_id: None, body: futures_util::stream::iter(pieces).boxed() })
    }

    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<PutResponse> {
        let fault = self.begin(Operation::Put, key, None, body.len())?;
        self.postpone(Operation::Put, key, None, &body, &fault)?;
        let response = self.store(Operation::Put, key, perhaps_wrong(body, &fault), true, mode)?;
        self.end(Operation::Put, key, fault, response)
    }

    async fn create_multipart(&self, key: &Key) -> Result<UploadId> {
        let fault = self.begin(Operation::CreateMultipart, key, None, 0)?;
        let id = {
            let mut state = self.state();
            let id = UploadId(format!("upload-{}", state.tick()));
            state
                .uploads
                .insert(id.clone(), Upload { key: key.clone(), initiated: SystemTime::now(), parts: BTreeMap::new() });
            id
        };
        self.end(Operation::CreateMultipart, key, fault, id)
    }

    async fn put_part(&self, key: &Key, upload: &UploadId, number: u32, body: Bytes) -> Result<PartReceipt> {
        let fault = self.begin(Operation::PutPart, key, None, body.len())?;
        let stored = perhaps_wrong(body.clone(), &fault);
        let receipt = self.add_part(Operation::PutPart, key, upload, number, stored, &body)?;
        self.end(Operation::PutPart, key, fault, receipt)
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
        let operation = Operation::CopyPart;
        if !self.capabilities.copy_part {
            return Err(self.error(ErrorKind::Unsupported, operation, key, "this store cannot copy parts"));
        }
        let fault = self.begin(operation, key, Some(range.clone()), 0)?;
        let object = self.find(operation, source)?;
        let clipped = self.clip(operation, source, Some(range.clone()), object.bytes.len() as u64)?;
        if clipped != range {
            return Err(self.error(ErrorKind::Invalid, operation, source, "the range ends behind the object's end"));
        }
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = object.bytes.slice(at(range.start)..at(range.end));
        let stored = perhaps_wrong(bytes.clone(), &fault);
        let mut receipt = self.add_part(operation, key, upload, number, stored, &bytes)?;
        // As a server that does not look at the bytes: the caller's word.
        receipt.crc64 = crc64;
        self.end(operation, key, fault, receipt)
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<PutResponse> {
        let operation = Operation::CompleteMultipart;
        let fault = self.begin(operation, key, None, 0)?;
        let whole = {
            let state = self.state();
            match state.uploads.get(upload).filter(|upload| upload.key == *key) {
                Some(upload) => self.assemble(key, upload, parts)?,
                None => return Err(self.error(ErrorKind::NotFound, operation, key, "there is no such upload")),
            }
        };
        let response = self.store(operation, key, whole, false, mode)?;
        self.state().uploads.remove(upload);
        self.end(operation, key, fault, response)
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<()> {
        let fault = self.begin(Operation::AbortMultipart, key, None, 0)?;
        self.state().uploads.remove(upload);
        self.end(Operation::AbortMultipart, key, fault, ())
    }

    async fn list_parts(&self, key: &Key, upload: &UploadId, after: u32) -> Result<PartPage> {
        self.parts_page(key, upload, after)
    }

    async fn list_uploads(&self, prefix: &str, after: Option<&UploadMarker>) -> Result<UploadPage> {
        self.uploads_page(prefix, after)
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let key = Key::new(request.prefix.clone());
        let fault = self.begin(Operation::List, &key, None, 0)?;
        let asked = request.max_keys.map_or(self.page, |keys| usize::try_from(keys).unwrap_or(usize::MAX).max(1));
        let limit = asked.min(self.page);
        let prefix = request.prefix.as_str();
        // A continuation is the last entry before, marked as a key or as a prefix whose keys are all behind us.
        let (behind, rolled) = match request.continuation.as_deref().map(|token| token.split_at_checked(1)) {
            None => (request.behind(), None),
            Some(Some(("k", key))) => (Some(key), None),
            Some(Some(("p", key))) => (Some(key), Some(key)),
            Some(_) => return Err(self.error(ErrorKind::Invalid, Operation::List, &key, "not our continuation")),
        };
        let from = behind.filter(|behind| *behind > prefix).map_or(Bound::Included(prefix), Bound::Excluded);
        let mut page = ListPage::default();
        let mut last = String::new();
        for (key, object) in self.state().objects.range::<str, _>((from, Bound::Unbounded)) {
            let Some(rest) = key.strip_prefix(prefix) else { break };
            if rolled.is_some_and(|rolled| key.starts_with(rolled))
                || page.prefixes.last().is_some_and(|rolled| key.starts_with(rolled))
                || behind.is_some_and(|behind| key.as_str() <= behind)
            {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == limit {
                page.continuation = Some(last);
                break;
            }
            match rest.split_once('/').filter(|_| request.delimiter) {
                Some((segment, _))
                    if request.behind().is_some_and(|after| *format!("{prefix}{segment}/") <= *after) => {}
                Some((segment, _)) => {
                    page.prefixes.push(format!("{prefix}{segment}/"));
                    last = format!("p{prefix}{segment}/");
                }
                None => {
                    page.objects.push(ObjectMeta { checksum: None, ..self.meta(key, object) });
                    last = format!("k{key}");
                }
            }
        }
        self.end(Operation::List, &key, fault, page)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let fault = self.begin(Operation::Delete, key, None, 0)?;
        self.state().objects.remove(key.as_str());
        self.end(Operation::Delete, key, fault, ())
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<PutResponse> {
        let fault = self.begin(Operation::Copy, to, None, 0)?;
        let object = self.find(Operation::Copy, from)?;
        let bytes = perhaps_wrong(object.bytes, &fault);
        let response = self.store(Operation::Copy, to, bytes, object.in_one_piece, PutMode::Overwrite)?;
        self.end(Operation::Copy, to, fault, response)
    }

    async fn append(&self, key: &Key, position: u64, body: Bytes) -> Result<AppendResponse> {
        let operation = Operation::Append;
        if !self.capabilities.append {
            return Err(self.error(ErrorKind::Unsupported, operation, key, "this store has no append"));
        }
        let fault = self.begin(operation, key, None, body.len())?;
        self.postpone(operation, key, Some(position), &body, &fault)?;
        let response = self.extend(key, position, perhaps_wrong(body, &fault))?;
        self.end(operation, key, fault, response)
    }
}
