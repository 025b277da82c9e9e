//! How a store is reached and who asks: what the user may set, with the environment as its default.

use std::time::Duration;

use crate::secret::Secret;

/// Where credentials come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CredentialSource {
    /// Environment, then configuration files, then the instance's role; see [`credentials`](crate::credentials).
    #[default]
    Automatic,
    /// Given by the user or by the job.
    Static {
        /// The access key's public half.
        access_key_id: String,
        /// Its secret half.
        access_key_secret: Secret,
        /// The STS token of temporary credentials.
        security_token: Option<Secret>,
    },
    /// Requests are not signed: public buckets.
    Anonymous,
}

/// How the bucket is put into a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing {
    /// Path style when the endpoint's host is an IP address, or for `s3://` a name without a dot such as
    /// `localhost`; virtual-hosted otherwise. (The vendors' SDKs do the same.)
    #[default]
    Auto,
    /// `https://endpoint/bucket/key`.
    Path,
    /// `https://bucket.endpoint/key`.
    VirtualHosted,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection to be made, TLS included.
    pub connect: Duration,
    /// For the first byte of an answer, and between any two reads of its body.
    pub read: Duration,
    /// For one operation with all its retries.
    pub total: Duration,
}

impl Default for Timeouts {
    /// Connect 5 s, read 30 s, total 5 minutes: long enough to sit out a store's restart, short enough for a person.
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), read: Duration::from_secs(30), total: Duration::from_secs(300) }
    }
}

/// The settings for one scheme.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreSettings {
    /// `https://oss-cn-hangzhou.aliyuncs.com`, `http://127.0.0.1:9000`; a bare host means https. From the region when absent.
    pub endpoint: Option<String>,
    /// `cn-hangzhou`, `us-east-1`. From the endpoint's name or the instance's metadata when absent.
    pub region: Option<String>,
    /// Who asks.
    pub credentials: CredentialSource,
    /// How the bucket is put into a URL.
    pub addressing: Addressing,
    /// How long to wait for what.
    pub timeouts: Timeouts,
}

/// The settings for all schemes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// For `oss://`.
    pub oss: StoreSettings,
    /// For `s3://`.
    pub s3: StoreSettings,
}
