//! The automatic search for credentials.

use std::time::Duration;

use async_trait::async_trait;
use reqsign_core::{Context, ProvideCredential};

use super::context::{ProcessEnv, context};
use super::{CredentialError, Identity, Metadata, Provider};
use crate::location::Scheme;
use crate::secret::Secret;

/// For the whole search: token services answer in seconds, and a person waits.
const SEARCH: Duration = Duration::from_secs(60);

/// The search for the cloud of `scheme`, with its metadata service at `metadata` if that is given.
pub(super) fn automatic(scheme: Scheme, metadata: Option<&str>) -> Box<dyn Provider> {
    let context = context(ProcessEnv);
    let metadata = Metadata::new(scheme, metadata);
    match scheme {
        Scheme::Oss => Box::new(Alibaba {
            chain: reqsign_aliyun_oss::DefaultCredentialProvider::builder().no_ecs_ram_role().build(),
            context,
            metadata,
        }),
        _ => Box::new(Amazon {
            chain: reqsign_aws_v4::DefaultCredentialProvider::builder().no_imds().build(),
            context,
            metadata,
        }),
    }
}

#[derive(Debug)]
struct Alibaba {
    chain: reqsign_aliyun_oss::DefaultCredentialProvider,
    context: Context,
    metadata: Metadata,
}

#[async_trait]
impl Provider for Alibaba {
    async fn provide(&self) -> Result<Identity, CredentialError> {
        let var = |name| self.context.env_var(name).filter(|value| !value.is_empty());
        if let (Some(access_key_id), Some(secret)) = (var("OSS_ACCESS_KEY_ID"), var("OSS_ACCESS_KEY_SECRET")) {
            let token = var("OSS_SESSION_TOKEN").or_else(|| var("OSS_SECURITY_TOKEN"));
            let (secret, token) = (Secret::new(secret), token.map(Secret::new));
            return Ok(Identity { access_key_id, secret, token, expires: None });
        }
        let found = tokio::time::timeout(SEARCH, self.chain.provide_credential(&self.context)).await;
        let others = match found {
            Ok(Ok(Some(found))) if !found.access_key_id.is_empty() && !found.access_key_secret.is_empty() => {
                return Ok(Identity {
                    access_key_id: found.access_key_id,
                    secret: Secret::new(found.access_key_secret),
                    token: found.security_token.filter(|token| !token.is_empty()).map(Secret::new),
                    expires: found.expires_in.map(|end| end.as_system_time()),
                });
            }
            Ok(Ok(_)) => "no credentials in the environment or in configuration files".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the search took over {} s", SEARCH.as_secs()),
        };
        if var("ALIBABA_CLOUD_ECS_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err(CredentialError(format!("{others}; the metadata service is disabled by the environment")));
        }
        self.metadata
            .identity(var("ALIBABA_CLOUD_ECS_METADATA"))
            .await
            .map_err(|error| CredentialError(format!("{others}; {error}")))
    }
}

#[derive(Debug)]
struct Amazon {
    chain: reqsign_aws_v4::DefaultCredentialProvider,
    context: Context,
    metadata: Metadata,
}

#[async_trait]
impl Provider for Amazon {
    async fn provide(&self) -> Result<Identity, CredentialError> {
        let found = tokio::time::timeout(SEARCH, self.chain.provide_credential(&self.context)).await;
        let others = match found {
            Ok(Ok(Some(found))) if !found.access_key_id.is_empty() && !found.secret_access_key.is_empty() => {
                return Ok(Identity {
                    access_key_id: found.access_key_id,
                    secret: Secret::new(found.secret_access_key),
                    token: found.session_token.filter(|token| !token.is_empty()).map(Secret::new),
                    expires: found.expires_in.map(|end| end.as_system_time()),
                });
            }
            Ok(Ok(_)) => "no credentials in the environment or in configuration files".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the search took over {} s", SEARCH.as_secs()),
        };
        let disabled = self.context.env_var("AWS_EC2_METADATA_DISABLED");
        if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err(CredentialError(format!("{others}; the metadata service is disabled by the environment")));
        }
        self.metadata.identity(None).await.map_err(|error| CredentialError(format!("{others}; {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqsign_core::StaticEnv;

    fn env(pairs: &[(&str, &str)]) -> StaticEnv {
        StaticEnv {
            home_dir: None,
            envs: pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }
    }

    fn alibaba(pairs: &[(&str, &str)]) -> Alibaba {
        Alibaba {
            chain: reqsign_aliyun_oss::DefaultCredentialProvider::builder().no_ecs_ram_role().build(),
            context: context(env(pairs)),
            metadata: Metadata::new(Scheme::Oss, Some("http://127.0.0.1:1")),
        }
    }

    fn amazon(pairs: &[(&str, &str)]) -> Amazon {
        Amazon {
            chain: reqsign_aws_v4::DefaultCredentialProvider::builder().no_imds().build(),
            context: context(env(pairs)),
            metadata: Metadata::new(Scheme::S3, Some("http://127.0.0.1:1")),
        }
    }

    #[tokio::test]
    async fn the_store_s_own_variables_come_first() {
        let all = [
            ("OSS_ACCESS_KEY_ID", "oss"),
            ("OSS_ACCESS_KEY_SECRET", "s"),
            ("OSS_SECURITY_TOKEN", "t"),
            ("ALIBABA_CLOUD_ACCESS_KEY_ID", "general"),
            ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "g"),
            ("ALIBABA_CLOUD_SECURITY_TOKEN", "gt"),
        ];
        let identity = alibaba(&all).provide().await.unwrap();
        assert_eq!((identity.access_key_id.as_str(), identity.token.unwrap().expose()), ("oss", "t"));
        let identity = alibaba(&all[3..]).provide().await.unwrap();
        assert_eq!((identity.access_key_id.as_str(), identity.token.unwrap().expose()), ("general", "gt"));
    }

    #[tokio::test]
    async fn nothing_anywhere_says_where_it_looked() {
        let error = alibaba(&[("OSS_ACCESS_KEY_ID", "alone")]).provide().await.unwrap_err();
        assert!(error.0.contains("environment") && error.0.contains("127.0.0.1:1"), "{error}");
        let error = alibaba(&[("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")]).provide().await.unwrap_err();
        assert!(error.0.contains("disabled"), "{error}");
        let error = amazon(&[]).provide().await.unwrap_err();
        assert!(error.0.contains("environment") && error.0.contains("127.0.0.1:1"), "{error}");
    }

    #[tokio::test]
    async fn files_are_found_by_home_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(
            &file,
            r#"{"current":"default","profiles":[{"name":"default","mode":"AK","access_key_id":"filed","access_key_secret":"s"}]}"#,
        )
        .unwrap();
        let path = file.to_str().unwrap();
        let identity = alibaba(&[("ALIBABA_CLOUD_CONFIG_FILE", path)]).provide().await.unwrap();
        assert_eq!(identity.access_key_id, "filed");

        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        std::fs::write(
            dir.path().join(".aws/credentials"),
            "[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = s\n",
        )
        .unwrap();
        let mut provider = amazon(&[]);
        provider.context = context(StaticEnv { home_dir: Some(dir.path().to_owned()), envs: [].into() });
        let identity = provider.provide().await.unwrap();
        assert_eq!((identity.access_key_id.as_str(), identity.expires), ("AKIAFILE", None));
    }
}
