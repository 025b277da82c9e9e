//! Names of things in object storage.
//!
//! A [`Location`] is a scheme, a bucket and a [`Key`]. Keys are raw UTF-8 from end to end: `a//b`, `/a`,
//! `a/../b`, `dir/`, control characters and names of 1,000 bytes are all different objects in a real bucket,
//! so nothing here normalises, decodes or trims. What a key means as a *path* is decided where paths are made
//! (the mount, the download), which must not trust it.

use std::fmt;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Which kind of store a location is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Alibaba Cloud OSS, `oss://bucket/key`.
    Oss,
    /// Amazon S3 and what speaks its protocol, `s3://bucket/key`.
    S3,
    /// Google Cloud Storage, `gs://bucket/key`.
    Gs,
    /// Azure Blob Storage, `az://container/key`.
    Az,
    /// A local directory tree, `file:///path`; the bucket is empty and the key is the path without its first slash.
    File,
}

impl Scheme {
    /// The text before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Oss => "oss",
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
            Self::File => "file",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of an object within its bucket: any UTF-8 string, possibly empty (the bucket itself).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Key(String);

impl Key {
    /// Wraps a raw key. Nothing is changed and nothing is refused.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// The raw key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the key stands for a directory: it is empty or ends in `/`.
    pub fn is_directory(&self) -> bool {
        self.0.is_empty() || self.0.ends_with('/')
    }

    /// The part after the last slash that is not the key's last character: `a/b` and `a/b/` both give `b`.
    pub fn base_name(&self) -> &str {
        let trimmed = self.0.strip_suffix('/').unwrap_or(&self.0);
        trimmed.rsplit('/').next().unwrap_or(trimmed)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        Self(key.to_owned())
    }
}

impl From<String> for Key {
    fn from(key: String) -> Self {
        Self(key)
    }
}

/// A directory or one object in a store.
///
/// `Display` prints exactly what [`FromStr`] reads. In messages use [`Location::escaped`], because a key can hold
/// newlines and terminal control sequences.
///
/// ```
/// use oss::Location;
/// let dir: Location = "oss://genomes/hg38/".parse().unwrap();
/// assert!(dir.is_directory());
/// assert_eq!(dir.join("chr1.fa").to_string(), "oss://genomes/hg38/chr1.fa");
/// assert!("genomes/hg38".parse::<Location>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    scheme: Scheme,
    bucket: String,
    key: Key,
}

/// Why a text is not a [`Location`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// {text:?} has no scheme
    #[error("{text:?} is not a storage location: write oss://, s3://, gs://, az:// or file:// in front of it")]
    NoScheme {
        /// What was given.
        text: String,
    },
    /// The scheme is not one of ours.
    #[error("{text:?}: unknown storage scheme {scheme:?}; known are oss, s3, gs, az and file")]
    UnknownScheme {
        /// What was given.
        text: String,
        /// The part before `://`.
        scheme: String,
    },
    /// There is no bucket between the scheme and the first slash.
    #[error("{text:?} names no bucket: write {scheme}://BUCKET/KEY")]
    NoBucket {
        /// What was given.
        text: String,
        /// The scheme it had.
        scheme: Scheme,
    },
    /// A bucket becomes part of a host name, so it may hold only what a host name may.
    #[error(
        "{text:?}: {bucket:?} cannot be a bucket name (letters, digits, '.', '-' and '_' only, at most 255, not starting with a dot)"
    )]
    BadBucket {
        /// What was given.
        text: String,
        /// The offending part.
        bucket: String,
    },
    /// `file://` wants an absolute path.
    #[error("{text:?} is not an absolute path: write file:///path, with three slashes")]
    RelativeFile {
        /// What was given.
        text: String,
    },
}

impl Location {
    /// Puts a location together from its parts. The bucket of `file://` is empty.
    ///
    /// # Errors
    /// When the bucket could not be part of a host name.
    pub fn new(scheme: Scheme, bucket: &str, key: impl Into<Key>) -> Result<Self, LocationError> {
        let key = key.into();
        let text = || format!("{scheme}://{bucket}/{key}");
        if scheme == Scheme::File {
            if !bucket.is_empty() {
                return Err(LocationError::RelativeFile { text: text() });
            }
        } else if bucket.is_empty() {
            return Err(LocationError::NoBucket { text: text(), scheme });
        } else if !is_bucket_name(bucket) {
            return Err(LocationError::BadBucket { text: text(), bucket: bucket.to_owned() });
        }
        Ok(Self { scheme, bucket: bucket.to_owned(), key })
    }

    /// The kind of store.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The bucket or container; empty for `file://`.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key; for a directory it ends in `/` or is empty.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether this names a directory (a bucket, or a key ending in `/`) and not one object.
    pub fn is_directory(&self) -> bool {
        self.key.is_directory()
    }

    /// The location `relative` below this directory. To a location without a trailing slash one is added first.
    /// The text is appended as it is: `..` and leading slashes mean nothing special in a key.
    #[must_use]
    pub fn join(&self, relative: &str) -> Self {
        let mut key = self.key.as_str().to_owned();
        if !self.is_directory() {
            key.push('/');
        }
        key.push_str(relative);
        self.with_key(key)
    }

    /// The object `name` in the directory that holds this one.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Self {
        let key = self.key.as_str();
        let directory = &key[..key.rfind('/').map_or(0, |slash| slash + 1)];
        self.with_key(format!("{directory}{name}"))
    }

    /// The same bucket with another key.
    #[must_use]
    pub fn with_key(&self, key: impl Into<Key>) -> Self {
        Self { scheme: self.scheme, bucket: self.bucket.clone(), key: key.into() }
    }

    /// The same location as a directory: with a trailing slash.
    #[must_use]
    pub fn as_directory(&self) -> Self {
        if self.is_directory() { self.clone() } else { self.with_key(format!("{}/", self.key)) }
    }

    /// For messages: control characters, quotes and backslashes are escaped as in a Rust string.
    pub fn escaped(&self) -> String {
        self.to_string().escape_debug().to_string()
    }
}

fn is_bucket_name(bucket: &str) -> bool {
    bucket.len() <= 255
        && !bucket.starts_with('.')
        && bucket.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(LocationError::NoScheme { text: text.to_owned() });
        };
        let scheme = match scheme {
            "oss" => Scheme::Oss,
            "s3" => Scheme::S3,
            "gs" => Scheme::Gs,
            "az" => Scheme::Az,
            "file" => Scheme::File,
            other => {
                return Err(LocationError::UnknownScheme { text: text.to_owned(), scheme: other.to_owned() });
            }
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        match Self::new(scheme, bucket, key) {
            Err(LocationError::BadBucket { bucket, .. }) => {
                Err(LocationError::BadBucket { text: text.to_owned(), bucket })
            }
            Err(LocationError::RelativeFile { .. }) => Err(LocationError::RelativeFile { text: text.to_owned() }),
            Err(LocationError::NoBucket { .. }) => Err(LocationError::NoBucket { text: text.to_owned(), scheme }),
            // `file://` alone has not even the slash that makes it the root directory.
            Ok(_) if scheme == Scheme::File && !rest.starts_with('/') => {
                Err(LocationError::RelativeFile { text: text.to_owned() })
            }
            other => other,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.bucket, self.key)
    }
}

/// As the text it is written as.
impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Location {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.escaped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The keys found in real buckets that other tools trip over.
    const ODD_KEYS: &[&str] = &[
        "",
        "dir/",
        "a//b",
        "/leading",
        "//",
        ".",
        "..",
        "a/./b",
        "a/../b",
        "../../etc/passwd",
        "x",
        "x/y",
        "new\nline",
        "tab\tbell\u{7}",
        "100%25",
        "a?b#c&d=e",
        "a+b c",
        "数据/样本.bam",
        "\u{feff}bom",
        "back\\slash",
        "q\"uote'",
        "~",
        "a:b@c",
    ];

    #[test]
    fn odd_keys_survive_a_round_trip() {
        let long = "n".repeat(300);
        for key in ODD_KEYS.iter().copied().chain([long.as_str()]) {
            let text = format!("oss://bucket/{key}");
            let location: Location = text.parse().unwrap();
            assert_eq!(location.key().as_str(), key);
            assert_eq!(location.to_string(), text);
        }
    }

    #[test]
    fn join_appends_below_a_directory() {
        let dir: Location = "s3://b/d/".parse().unwrap();
        assert_eq!(dir.join("x/y").to_string(), "s3://b/d/x/y");
        assert_eq!(dir.join("../x").to_string(), "s3://b/d/../x");
        let object: Location = "s3://b/d".parse().unwrap();
        assert_eq!(object.join("x").to_string(), "s3://b/d/x");
        assert_eq!("s3://b".parse::<Location>().unwrap().join("x").to_string(), "s3://b/x");
    }

    #[test]
    fn file_locations_are_absolute() {
        let file: Location = "file:///tmp/data/".parse().unwrap();
        assert_eq!((file.bucket(), file.key().as_str()), ("", "tmp/data/"));
        assert!(matches!("file://tmp/x".parse::<Location>(), Err(LocationError::RelativeFile { .. })));
        assert!(matches!("file://".parse::<Location>(), Err(LocationError::RelativeFile { .. })));
        assert!("file:///".parse::<Location>().unwrap().is_directory());
    }

    #[test]
    fn bad_text_is_refused_with_a_remedy() {
        for (text, hint) in [
            ("bucket/key", "write oss://"),
            ("nas://host:/dir", "unknown storage scheme \"nas\""),
            ("oss:///key", "names no bucket"),
            ("oss://bu\ncket/key", "cannot be a bucket name"),
            ("oss://user@host/key", "cannot be a bucket name"),
        ] {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn any_key_survives(key in any::<String>()) {
            let location = Location::new(Scheme::S3, "b", key.as_str()).unwrap();
            let again: Location = location.to_string().parse().unwrap();
            prop_assert_eq!(again.key().as_str(), key.as_str());
            prop_assert!(!location.escaped().chars().any(char::is_control));
        }
    }
}
