//! What a double is started with: buckets, keys, limits and how much it tolerates.

use std::time::{Duration, SystemTime};

pub use super::request::Dialect;

/// How a [`Double`](super::Double) is set up. `DoubleConfig::default()` has one bucket, `test-bucket`, in the region
/// `cn-test`, and one key, `test-key` with the secret `test-secret`.
#[derive(Debug, Clone)]
pub struct DoubleConfig {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// The only protocol that is spoken. `None` recognises it by each request.
    pub dialect: Option<Dialect>,
    /// The buckets there are.
    pub buckets: Vec<BucketConfig>,
    /// The keys that are known.
    pub keys: Vec<AccessKey>,
    /// Whether OSS's old signature (header and URL) is accepted. Off, because new users cannot use it any more.
    pub allow_v1: bool,
    /// The least size in bytes of every part but the last; `None` takes the service's own, 100 KiB or 5 MiB.
    pub min_part_size: Option<u64>,
    /// The most bytes an appendable object can have; 5 GiB unless changed.
    pub append_limit: u64,
    /// How far the server's clock is ahead of ours (or behind, if negative), in seconds.
    pub clock_offset: i64,
    /// A directory for the bytes of bodies that are not small; in memory when absent. For tests with more than fits there.
    pub spill: Option<std::path::PathBuf>,
    /// The seed of faults that happen by chance.
    pub seed: u64,
}

impl Default for DoubleConfig {
    fn default() -> Self {
        Self::empty().bucket("test-bucket", "cn-test").key(AccessKey::new("test-key", "test-secret"))
    }
}

/// The default key, as programs find it in their environment.
pub const KEYS: [(&str, &str); 4] = [
    ("OSS_ACCESS_KEY_ID", "test-key"),
    ("OSS_ACCESS_KEY_SECRET", "test-secret"),
    ("AWS_ACCESS_KEY_ID", "test-key"),
    ("AWS_SECRET_ACCESS_KEY", "test-secret"),
];

/// An environment in which `oss://` and `s3://` are the double at `endpoint`, in its default region and with its default key.
pub fn environment(endpoint: &str) -> impl Iterator<Item = (&str, &str)> {
    let place = [
        ("OSS_ENDPOINT", endpoint),
        ("OSS_REGION", "cn-test"),
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_REGION", "cn-test"),
    ];
    place.into_iter().chain(KEYS)
}

impl DoubleConfig {
    /// No bucket and no key.
    pub fn empty() -> Self {
        Self {
            port: 0,
            dialect: None,
            buckets: Vec::new(),
            keys: Vec::new(),
            allow_v1: false,
            min_part_size: None,
            append_limit: 5 << 30,
            clock_offset: 0,
            spill: None,
            seed: 1,
        }
    }

    /// Adds a private bucket.
    #[must_use]
    pub fn bucket(mut self, name: &str, region: &str) -> Self {
        self.buckets.push(BucketConfig { name: name.to_owned(), region: region.to_owned(), public_read: false });
        self
    }

    /// Adds a key.
    #[must_use]
    pub fn key(mut self, key: AccessKey) -> Self {
        self.keys.push(key);
        self
    }
}

/// A bucket.
#[derive(Debug, Clone)]
pub struct BucketConfig {
    /// Its name, which must be one that the services allow.
    pub name: String,
    /// Where it lives, such as `cn-hangzhou`.
    pub region: String,
    /// Whether anybody may read and list it without signing.
    pub public_read: bool,
}

/// Somebody's credentials and what they may not do.
#[derive(Clone)]
pub struct AccessKey {
    /// The public half.
    pub id: String,
    /// The secret half.
    pub secret: String,
    /// The token that must come with it (STS).
    pub token: Option<String>,
    /// When it stops being accepted, by the server's clock.
    pub expires: Option<SystemTime>,
    /// What is refused with `AccessDenied`; everything else is allowed.
    pub deny: Vec<Deny>,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl AccessKey {
    /// A lasting key that may do everything.
    pub fn new(id: &str, secret: &str) -> Self {
        Self { id: id.to_owned(), secret: secret.to_owned(), token: None, expires: None, deny: Vec::new() }
    }

    /// Makes it temporary: requests must carry `token`, and are refused after `lifetime` from now.
    #[must_use]
    pub fn with_token(mut self, token: &str, lifetime: Duration) -> Self {
        self.token = Some(token.to_owned());
        self.expires = SystemTime::now().checked_add(lifetime);
        self
    }

    /// The same, but expired `ago` before now.
    #[must_use]
    pub fn with_expired_token(mut self, token: &str, ago: Duration) -> Self {
        self.token = Some(token.to_owned());
        self.expires = SystemTime::now().checked_sub(ago);
        self
    }

    /// Denies `action` on every key that starts with `prefix` in every bucket.
    #[must_use]
    pub fn deny(mut self, action: Action, prefix: &str) -> Self {
        self.deny.push(Deny { action: Some(action), prefix: prefix.to_owned() });
        self
    }

    /// Denies everything on every key that starts with `prefix` in every bucket.
    #[must_use]
    pub fn deny_all(mut self, prefix: &str) -> Self {
        self.deny.push(Deny { action: None, prefix: prefix.to_owned() });
        self
    }

    pub(crate) fn denies(&self, action: Action, key: &str) -> bool {
        self.deny.iter().any(|deny| deny.action.is_none_or(|a| a == action) && key.starts_with(&deny.prefix))
    }
}

/// One line of a deny list.
#[derive(Debug, Clone)]
pub struct Deny {
    /// What is denied; `None` is everything.
    pub action: Option<Action>,
    /// On which keys. For [`Action::List`], on listings whose prefix begins so.
    pub prefix: String,
}

/// Kinds of operation that a policy can deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// GET and HEAD of an object, and reading the source of a copy.
    Read,
    /// PUT, append, copy and every step of a multipart upload but aborting it.
    Write,
    /// Deleting an object or a list of objects.
    Delete,
    /// Aborting a multipart upload.
    Abort,
    /// Listing objects or uploads, and asking about the bucket.
    List,
}
