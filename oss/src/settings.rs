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
    /// The instance's metadata service; the cloud's own address (`http://100.100.100.200`, `http://169.254.169.254`) when absent.
    pub metadata_endpoint: Option<String>,
}

impl StoreSettings {
    /// Whether the region is known from here: it is set, or the endpoint's name tells it.
    pub fn tells_region(&self) -> bool {
        self.region.is_some() || self.endpoint.as_deref().is_some_and(crate::rest::endpoint::tells_region)
    }
}

/// The settings for all schemes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// For `oss://`.
    pub oss: StoreSettings,
    /// For `s3://`.
    pub s3: StoreSettings,
}

impl Settings {
    /// What the environment says; everything it does not say is left to be derived.
    ///
    /// | | `oss://` | `s3://` |
    /// | --- | --- | --- |
    /// | endpoint | `OSS_ENDPOINT` | `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` |
    /// | region | `OSS_REGION`, `ALIBABA_CLOUD_REGION`, `ALIBABA_CLOUD_REGION_ID` | `AWS_REGION`, `AWS_DEFAULT_REGION` |
    /// | addressing (`auto`, `path`, `virtual-hosted`) | `OSS_ADDRESSING` | `S3_ADDRESSING` |
    /// | access key | `OSS_ACCESS_KEY_ID`, `OSS_ACCESS_KEY_SECRET`, else `ALIBABA_CLOUD_ACCESS_KEY_ID`, `ALIBABA_CLOUD_ACCESS_KEY_SECRET` | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` |
    /// | its STS token | `OSS_SESSION_TOKEN`, `OSS_SECURITY_TOKEN`, else `ALIBABA_CLOUD_SECURITY_TOKEN` | `AWS_SESSION_TOKEN` |
    /// | metadata service | `ALIBABA_CLOUD_IMDS_ENDPOINT`, `ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT` | `AWS_EC2_METADATA_SERVICE_ENDPOINT` |
    ///
    /// Where several are named the first that is set and not empty counts. Without an access key in the environment the
    /// credentials are [`CredentialSource::Automatic`]: what files and roles say is looked up later, because it changes while
    /// the process runs.
    ///
    /// # Errors
    /// [`SettingsError`] when an addressing is none of the three.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let first = |names: &[&str]| names.iter().filter_map(|name| lookup(name)).find(|value| !value.is_empty());
        let addressing = |name: &'static str| match first(&[name]) {
            None => Ok(Addressing::Auto),
            Some(text) => match text.to_ascii_lowercase().as_str() {
                "auto" => Ok(Addressing::Auto),
                "path" => Ok(Addressing::Path),
                "virtual-hosted" | "virtual" => Ok(Addressing::VirtualHosted),
                _ => Err(SettingsError { name, value: text }),
            },
        };
        // Key, secret and token belong together: never the key of one set with the secret of another.
        let access_key = |sets: &[(&str, &str, &[&str])]| {
            let complete = sets.iter().find_map(|(id, secret, token)| {
                Some(CredentialSource::Static {
                    access_key_id: first(&[id])?,
                    access_key_secret: Secret::new(first(&[secret])?),
                    security_token: first(token).map(Secret::new),
                })
            });
            complete.unwrap_or_default()
        };
        Ok(Self {
            oss: StoreSettings {
                credentials: access_key(&[
                    ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", &["OSS_SESSION_TOKEN", "OSS_SECURITY_TOKEN"]),
                    (
                        "ALIBABA_CLOUD_ACCESS_KEY_ID",
                        "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
                        &["ALIBABA_CLOUD_SECURITY_TOKEN"],
                    ),
                ]),
                endpoint: first(&["OSS_ENDPOINT"]),
                region: first(&["OSS_REGION", "ALIBABA_CLOUD_REGION", "ALIBABA_CLOUD_REGION_ID"]),
                addressing: addressing("OSS_ADDRESSING")?,
                metadata_endpoint: first(&[
                    "ALIBABA_CLOUD_IMDS_ENDPOINT",
                    "ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT",
                ]),
                ..StoreSettings::default()
            },
            s3: StoreSettings {
                credentials: access_key(&[("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", &["AWS_SESSION_TOKEN"])]),
                endpoint: first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
                region: first(&["AWS_REGION", "AWS_DEFAULT_REGION"]),
                addressing: addressing("S3_ADDRESSING")?,
                metadata_endpoint: first(&["AWS_EC2_METADATA_SERVICE_ENDPOINT"]),
                ..StoreSettings::default()
            },
        })
    }
}

/// A setting in the environment that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?} is no way to address a bucket: write auto, path or virtual-hosted")]
pub struct SettingsError {
    /// The variable's name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        |name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn the_environment_is_read_in_order_and_empty_is_unset() {
        let settings = Settings::from_lookup(lookup(&[
            ("OSS_ENDPOINT", "http://127.0.0.1:9000"),
            ("OSS_REGION", ""),
            ("ALIBABA_CLOUD_REGION", "cn-hangzhou"),
            ("AWS_ENDPOINT_URL", "http://other"),
            ("AWS_ENDPOINT_URL_S3", "http://localhost:9001"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
            ("S3_ADDRESSING", "Path"),
        ]))
        .unwrap();
        assert_eq!(settings.oss.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(settings.oss.region.as_deref(), Some("cn-hangzhou"));
        assert_eq!(settings.s3.endpoint.as_deref(), Some("http://localhost:9001"));
        assert_eq!(settings.s3.region.as_deref(), Some("eu-west-1"));
        assert_eq!((settings.oss.addressing, settings.s3.addressing), (Addressing::Auto, Addressing::Path));
        assert_eq!(Settings::from_lookup(|_| None).unwrap(), Settings::default());
    }

    #[test]
    fn a_bad_addressing_says_what_is_good() {
        let error = Settings::from_lookup(lookup(&[("OSS_ADDRESSING", "vhost")])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "OSS_ADDRESSING=\"vhost\" is no way to address a bucket: write auto, path or virtual-hosted"
        );
    }
}
