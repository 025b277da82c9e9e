//! What the store holds: buckets, objects, unfinished uploads. Everything here is behind one lock.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crc_fast::CrcAlgorithm;

use super::checksum::Checksum;
use super::config::{AccessKey, BucketConfig, DoubleConfig};
use super::content::Content;
use super::error::{Outcome, Refusal};
use super::generated::Generated;

/// How an object came to be; OSS tells in `x-oss-object-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// By PUT or copy.
    Normal,
    /// By a multipart upload.
    Multipart,
    /// By append.
    Appendable,
}

impl ObjectKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Multipart => "Multipart",
            Self::Appendable => "Appendable",
        }
    }
}

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its bytes.
    pub content: Content,
    /// Its ETag without quotes.
    pub etag: String,
    /// CRC-64/XZ of its bytes.
    pub crc64: u64,
    /// How it was made.
    pub kind: ObjectKind,
    /// When it was made or last appended to, by the server's clock.
    pub modified: SystemTime,
    /// Headers that come back with it: Content-Type and others, and the user's metadata.
    pub headers: Vec<(String, String)>,
    /// Whether it has to be restored before it can be read.
    pub archived: bool,
    /// What S3 checks and returns with `x-amz-checksum-mode`.
    pub(crate) checksum: Option<Checksum>,
}

impl Object {
    /// All of its bytes in one buffer.
    pub fn bytes(&self) -> Vec<u8> {
        self.content.to_vec()
    }
}

/// One part of an unfinished upload.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its bytes.
    pub content: Content,
    /// Its ETag without quotes.
    pub etag: String,
    /// CRC-64/XZ of its bytes.
    pub crc64: u64,
    pub(crate) modified: SystemTime,
    pub(crate) checksum: Option<Checksum>,
}

/// A multipart upload that is neither completed nor aborted.
#[derive(Debug, Clone)]
pub struct Upload {
    /// What names it.
    pub id: String,
    /// The object it will become.
    pub key: String,
    /// When it was begun.
    pub initiated: SystemTime,
    /// The parts so far, by number.
    pub parts: BTreeMap<u32, Part>,
    pub(crate) headers: Vec<(String, String)>,
    /// The algorithm and type that S3's client announced.
    pub(crate) checksum_algorithm: Option<String>,
    pub(crate) checksum_type: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) config: BucketConfig,
    pub(crate) objects: BTreeMap<String, Object>,
    pub(crate) uploads: BTreeMap<String, Upload>,
    pub(crate) generated: Option<Generated>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: DoubleConfig,
    pub(crate) buckets: BTreeMap<String, Bucket>,
    pub(crate) keys: Vec<AccessKey>,
    pub(crate) clock_offset: i64,
    next_upload: u64,
}

impl World {
    pub(crate) fn new(config: DoubleConfig) -> Self {
        let mut world = Self {
            keys: config.keys.clone(),
            clock_offset: config.clock_offset,
            buckets: BTreeMap::new(),
            next_upload: 0,
            config,
        };
        for bucket in world.config.buckets.clone() {
            world.add_bucket(bucket);
        }
        world
    }

    pub(crate) fn add_bucket(&mut self, config: BucketConfig) {
        assert!(is_bucket_name(&config.name), "{:?} is not a name that the services allow for a bucket", config.name);
        let bucket = Bucket { objects: BTreeMap::new(), uploads: BTreeMap::new(), generated: None, config };
        self.buckets.insert(bucket.config.name.clone(), bucket);
    }

    /// The time by the server's clock.
    pub(crate) fn now(&self) -> SystemTime {
        let offset = Duration::from_secs(self.clock_offset.unsigned_abs());
        let now = SystemTime::now();
        if self.clock_offset < 0 { now - offset } else { now + offset }
    }

    pub(crate) fn bucket(&mut self, name: &str) -> Outcome<&mut Bucket> {
        if !is_bucket_name(name) {
            return Err(
                Refusal::new(400, "InvalidBucketName", "The specified bucket is not valid.").field("BucketName", name)
            );
        }
        self.buckets.get_mut(name).ok_or_else(|| Refusal::no_such_bucket(name))
    }

    pub(crate) fn object(&mut self, bucket: &str, key: &str) -> Outcome<&mut Object> {
        let now = self.now();
        let bucket = self.bucket(bucket)?;
        if let Some(number) = bucket.generated.as_ref().and_then(|generated| generated.number(key)) {
            // From now on it is one like any other.
            let make = || plain_object(Generated::content(number), now);
            bucket.objects.entry(key.to_owned()).or_insert_with(make);
        }
        bucket.objects.get_mut(key).ok_or_else(|| Refusal::no_such_key(key))
    }

    /// Unlike any other, the same in every run, and in no order that a client could rely on.
    pub(crate) fn next_upload_id(&mut self) -> String {
        self.next_upload += 1;
        format!("{:032X}", u128::from(self.next_upload).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    }
}

/// A normal object of these bytes as if it had been PUT.
pub(crate) fn plain_object(content: Content, modified: SystemTime) -> Object {
    let etag = if content.len() <= 1 << 30 {
        super::checksum::md5_hex(&content)
    } else {
        // Hashing 100 GB would take minutes; the ETag of a multipart upload is no MD5 of the content either.
        format!("{:016x}{:016x}-1000", content.checksum(CrcAlgorithm::Crc64Nvme), content.len())
    };
    Object {
        crc64: content.checksum(CrcAlgorithm::Crc64Xz),
        checksum: Some(Checksum::default_of(&content)),
        content,
        etag,
        kind: ObjectKind::Normal,
        modified,
        headers: vec![("content-type".to_owned(), "application/octet-stream".to_owned())],
        archived: false,
    }
}

/// Whether the services allow this name: 3 to 63 of lower-case letters, digits, hyphens and (S3) dots, a letter or
/// digit at both ends.
pub(crate) fn is_bucket_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    (3..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && edge(name.chars().next())
        && edge(name.chars().last())
        && !name.contains("..")
}
