//! Which operation a request asks for, and the way every request goes: signature, permission, place, operation.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::Method;

use super::auth::{authenticate, authorize};
use super::config::{Action, Dialect};
use super::content::Content;
use super::error::{Outcome, Refusal};
use super::request::{Call, Head};
use super::world::World;
use super::xml::Xml;
use super::{append, listing, multipart, object, sigv4};

/// A successful answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) content: Content,
    /// The content is an object's own bytes, or a range of them.
    pub(crate) is_object: bool,
}

impl Reply {
    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), content: Content::default(), is_object: false }
    }

    pub(crate) fn document(xml: Xml) -> Self {
        Self { content: xml.finish().into(), ..Self::empty(200) }.header("content-type", "application/xml")
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The request could not be understood.
    Unknown,
    /// GET of an object.
    GetObject,
    /// HEAD of an object.
    HeadObject,
    /// PUT of an object.
    PutObject,
    /// PUT with a copy source.
    CopyObject,
    /// DELETE of an object.
    DeleteObject,
    /// POST with a list of objects to delete.
    DeleteObjects,
    /// GET of a bucket, with or without `list-type=2`.
    ListObjects,
    /// Asking for a bucket's region.
    GetLocation,
    /// HEAD of a bucket.
    HeadBucket,
    /// Beginning a multipart upload.
    CreateUpload,
    /// PUT of a part.
    UploadPart,
    /// PUT of a part with a copy source.
    CopyPart,
    /// Listing an upload's parts.
    ListParts,
    /// Listing a bucket's unfinished uploads.
    ListUploads,
    /// Completing a multipart upload.
    CompleteUpload,
    /// Aborting a multipart upload.
    AbortUpload,
    /// OSS's append.
    AppendObject,
}

/// Parts of the services' interfaces that the double does not have; asking for them must not look like success.
const NOT_HERE: &[&str] = &[
    "acl",
    "cors",
    "encryption",
    "legal-hold",
    "lifecycle",
    "logging",
    "metaQuery",
    "notification",
    "object-lock",
    "policy",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "symlink",
    "tagging",
    "torrent",
    "versionId",
    "versioning",
    "versions",
    "website",
    "x-oss-process",
];

impl Operation {
    pub(crate) fn of(head: &Head) -> Self {
        let query = &head.query;
        if head.bucket.is_none() || query.0.iter().any(|(name, _)| NOT_HERE.contains(&name.as_str())) {
            return Self::Unknown;
        }
        let copy = head.own_header("copy-source").is_some();
        match (&head.method, head.key.is_empty()) {
            (&Method::GET, true) if query.has("location") => Self::GetLocation,
            (&Method::GET, true) if query.has("uploads") => Self::ListUploads,
            (&Method::GET, true) => Self::ListObjects,
            (&Method::HEAD, true) => Self::HeadBucket,
            (&Method::POST, true) if query.has("delete") => Self::DeleteObjects,
            (&Method::GET, false) if query.has("uploadId") => Self::ListParts,
            (&Method::GET, false) => Self::GetObject,
            (&Method::HEAD, false) => Self::HeadObject,
            (&Method::PUT, false) if query.has("uploadId") && copy => Self::CopyPart,
            (&Method::PUT, false) if query.has("uploadId") => Self::UploadPart,
            (&Method::PUT, false) if copy => Self::CopyObject,
            (&Method::PUT, false) => Self::PutObject,
            (&Method::POST, false) if query.has("append") && head.is_oss() => Self::AppendObject,
            (&Method::POST, false) if query.has("uploads") => Self::CreateUpload,
            (&Method::POST, false) if query.has("uploadId") => Self::CompleteUpload,
            (&Method::DELETE, false) if query.has("uploadId") => Self::AbortUpload,
            (&Method::DELETE, false) => Self::DeleteObject,
            _ => Self::Unknown,
        }
    }

    fn action(self) -> Action {
        match self {
            Self::GetObject | Self::HeadObject => Action::Read,
            Self::PutObject
            | Self::CopyObject
            | Self::CreateUpload
            | Self::UploadPart
            | Self::CopyPart
            | Self::ListParts
            | Self::CompleteUpload
            | Self::AppendObject => Action::Write,
            Self::DeleteObject | Self::DeleteObjects => Action::Delete,
            Self::AbortUpload => Action::Abort,
            Self::ListObjects | Self::ListUploads | Self::GetLocation | Self::HeadBucket | Self::Unknown => {
                Action::List
            }
        }
    }
}

/// The lock on the store. A test that panicked while it held it must not make every other request fail.
pub(crate) fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what a request asks for.
pub(crate) fn perform(world: &Mutex<World>, call: Call) -> Outcome<Reply> {
    let caller = authenticate(&lock(world), &call)?;
    let head = &call.head;
    let operation = Operation::of(head);
    let bucket = head.bucket()?.to_owned();
    let key = head.key.clone();
    if head.forbidden_path_style {
        return Err(Refusal::new(403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access."));
    }
    {
        let mut world = lock(world);
        // Listings are denied by what they ask for.
        let subject = if key.is_empty() { head.query.get("prefix").unwrap_or("") } else { &key };
        // Bulk deletes are judged key by key.
        if operation != Operation::DeleteObjects {
            authorize(&world, head, &caller, operation.action(), &bucket, subject)?;
        } else if matches!(caller, super::auth::Caller::Anonymous) {
            authorize(&world, head, &caller, Action::Delete, &bucket, "")?;
        }
        check_endpoint(&mut world, head, &bucket)?;
    }
    check_key(head, &key)?;
    if !head.is_oss() && call.head.headers.contains_key("transfer-encoding") {
        return Err(Refusal::not_implemented("Transfer-Encoding"));
    }
    let has_body = matches!(operation, Operation::PutObject | Operation::UploadPart | Operation::AppendObject);
    let says_length = ["content-length", "transfer-encoding"].iter().any(|name| call.head.headers.contains_key(*name));
    if has_body && !says_length {
        return Err(Refusal::new(411, "MissingContentLength", "You must provide the Content-Length HTTP header."));
    }
    let call = sigv4::unchunk(call)?;
    match operation {
        Operation::Unknown => {
            Err(Refusal::not_implemented(&format!("{} with {:?}", call.head.method, call.head.query)))
        }
        Operation::GetObject | Operation::HeadObject => object::get(&mut lock(world), &call, &caller),
        Operation::PutObject => object::put(world, &call),
        Operation::CopyObject => object::copy(&mut lock(world), &call, &caller),
        Operation::DeleteObject => object::delete(&mut lock(world), &call),
        Operation::DeleteObjects => object::delete_many(&mut lock(world), &call, &caller),
        Operation::ListObjects => listing::list(&mut lock(world), &call),
        Operation::GetLocation | Operation::HeadBucket => location(&mut lock(world), &call.head),
        Operation::CreateUpload => multipart::create(&mut lock(world), &call),
        Operation::UploadPart => multipart::upload_part(world, &call),
        Operation::CopyPart => multipart::copy_part(&mut lock(world), &call, &caller),
        Operation::ListParts => multipart::list_parts(&mut lock(world), &call),
        Operation::ListUploads => multipart::list_uploads(&mut lock(world), &call),
        Operation::CompleteUpload => multipart::complete(&mut lock(world), &call),
        Operation::AbortUpload => multipart::abort(&mut lock(world), &call),
        Operation::AppendObject => append::append(world, &call),
    }
}

/// Refuses a request that came to another region's host.
fn check_endpoint(world: &mut World, head: &Head, bucket: &str) -> Outcome<()> {
    let region = world.bucket(bucket)?.config.region.clone();
    if head.endpoint_region.as_ref().is_none_or(|asked| *asked == region) {
        return Ok(());
    }
    let message = "The bucket you are attempting to access must be addressed using the specified endpoint. \
                   Please send all future requests to this endpoint.";
    Err(if head.is_oss() {
        Refusal::access_denied(message)
            .ec("0003-00001403")
            .field("Bucket", bucket)
            .field("Endpoint", format!("oss-{region}.aliyuncs.com"))
    } else {
        Refusal::new(301, "PermanentRedirect", message)
            .field("Bucket", bucket)
            .field("Endpoint", format!("{bucket}.s3.{region}.amazonaws.com"))
            .header("x-amz-bucket-region", region)
    })
}

/// Refuses keys that the service cannot hold.
pub(crate) fn check_key(head: &Head, key: &str) -> Outcome<()> {
    match head.dialect {
        Dialect::Oss if key.len() > 1023 => {
            Err(Refusal::new(400, "InvalidObjectName", "The length of object name must be less than 1024.")
                .field("ObjectName", key))
        }
        Dialect::S3 if key.len() > 1024 => Err(Refusal::new(400, "KeyTooLongError", "Your key is too long")
            .field("Size", key.len().to_string())
            .field("MaxSizeAllowed", "1024")),
        _ => Ok(()),
    }
}

fn location(world: &mut World, head: &Head) -> Outcome<Reply> {
    let region = world.bucket(head.bucket()?)?.config.region.clone();
    let reply = if head.method == Method::HEAD {
        Reply::empty(200)
    } else {
        let mut xml = Xml::new();
        // OSS writes `oss-cn-hangzhou`, S3 writes nothing for its first region.
        let text = match head.dialect {
            Dialect::Oss => format!("oss-{region}"),
            Dialect::S3 if region == "us-east-1" => String::new(),
            Dialect::S3 => region.clone(),
        };
        xml.text("LocationConstraint", &text);
        Reply::document(xml)
    };
    Ok(if head.is_oss() { reply } else { reply.header("x-amz-bucket-region", region) })
}
