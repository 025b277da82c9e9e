//! Who asks: where credentials come from, and how they are kept fresh.
//!
//! [`CredentialSource::Automatic`] looks in this order and takes the first that has something:
//!
//! | `oss://` | `s3://` |
//! | --- | --- |
//! | `OSS_ACCESS_KEY_ID`, `OSS_ACCESS_KEY_SECRET`, `OSS_SESSION_TOKEN` (or `OSS_SECURITY_TOKEN`) | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` |
//! | `ALIBABA_CLOUD_ROLE_ARN` assumed with the next lines' credentials | profile in `~/.aws/config` and `~/.aws/credentials`, SSO |
//! | `ALIBABA_CLOUD_ACCESS_KEY_ID`, `_SECRET`, `ALIBABA_CLOUD_SECURITY_TOKEN` | web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`) |
//! | profile files (`OSS_CREDENTIAL_PROFILES_FILE`, `~/.alibabacloud/credentials`, `~/.aliyun/config.json`) | `credential_process` |
//! | `ALIBABA_CLOUD_CREDENTIALS_URI`, OIDC (`ALIBABA_CLOUD_OIDC_TOKEN_FILE`) | container credentials (ECS, EKS) |
//! | the instance's RAM role | the instance's IAM role |
//!
//! The home directory is `$HOME` and nothing else: looking it up in the user database would load another libc's modules into
//! a static binary.
//!
//! Temporary credentials are fetched anew five minutes before they end, by one request at a time while the others go on with
//! the old ones; a fetch that fails is no error as long as the old ones are good. When the store refuses credentials, they are
//! fetched anew once.

mod chain;
mod context;
mod keys;
mod metadata;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::location::Scheme;
use crate::secret::Secret;
use crate::settings::{CredentialSource, StoreSettings};
use crate::sign::Signatory;

pub use keys::{AccessKey, AccessKeys, NoAccessKey};
pub use metadata::{Metadata, MetadataError};

/// How long before their end credentials are replaced.
const MARGIN: Duration = Duration::from_secs(300);

/// After a search that found nothing, how long the next one waits: a search can cost two seconds and a mount asks often.
const HOLD: Duration = Duration::from_secs(5);

/// An access key, with a token and an end when it is temporary.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub access_key_id: String,
    pub secret: Secret,
    pub token: Option<Secret>,
    pub expires: Option<SystemTime>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Identity {
    pub(crate) fn signatory(&self) -> Signatory<'_> {
        Signatory { access_key_id: &self.access_key_id, secret: &self.secret, token: self.token.as_ref() }
    }

    /// Whether the identity is good for `margin` more.
    fn lasts(&self, now: SystemTime, margin: Duration) -> bool {
        self.expires.is_none_or(|end| end > now + margin)
    }
}

/// Why there is no identity. The message holds no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CredentialError(pub String);

/// Something that can produce an identity, with I/O.
#[async_trait]
pub(crate) trait Provider: fmt::Debug + Send + Sync {
    async fn provide(&self) -> Result<Identity, CredentialError>;
}

/// Hands out the current identity and keeps it fresh.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// Absent when the source cannot change: static and anonymous.
    provider: Option<Box<dyn Provider>>,
    current: RwLock<Option<Arc<Identity>>>,
    /// Held while an identity is fetched; remembers how the last fetch ended.
    fetching: tokio::sync::Mutex<Option<(Instant, Result<(), CredentialError>)>>,
}

impl Credentials {
    /// The credentials that the settings of one scheme ask for. Nothing is fetched yet.
    pub(crate) fn new(scheme: Scheme, settings: &StoreSettings) -> Result<Self, CredentialError> {
        match &settings.credentials {
            CredentialSource::Anonymous => Ok(Self::with(None, None)),
            CredentialSource::Static { access_key_id, access_key_secret, security_token } => {
                if access_key_id.is_empty() || access_key_secret.is_empty() {
                    return Err(CredentialError("the access key id or secret given is empty".into()));
                }
                let identity = Identity {
                    access_key_id: access_key_id.clone(),
                    secret: access_key_secret.clone(),
                    token: security_token.clone().filter(|token| !token.is_empty()),
                    expires: None,
                };
                Ok(Self::with(None, Some(identity)))
            }
            CredentialSource::Automatic => {
                Ok(Self::with(Some(chain::automatic(scheme, settings.metadata_endpoint.as_deref())), None))
            }
        }
    }

    fn with(provider: Option<Box<dyn Provider>>, identity: Option<Identity>) -> Self {
        Self { provider, current: RwLock::new(identity.map(Arc::new)), fetching: tokio::sync::Mutex::default() }
    }

    /// The identity to sign with at `now` (the store's time, not ours); none for anonymous access.
    pub(crate) async fn get(&self, now: SystemTime) -> Result<Option<Arc<Identity>>, CredentialError> {
        let current = self.current();
        let Some(provider) = &self.provider else {
            return Ok(current);
        };
        if let Some(identity) = current.as_ref().filter(|identity| identity.lasts(now, MARGIN)) {
            return Ok(Some(Arc::clone(identity)));
        }
        let usable = current.filter(|identity| identity.lasts(now, Duration::ZERO));
        let mut last = match &usable {
            // Somebody is at it already; the old identity is still good.
            Some(identity) => match self.fetching.try_lock() {
                Ok(guard) => guard,
                Err(_) => return Ok(Some(Arc::clone(identity))),
            },
            None => self.fetching.lock().await,
        };
        if let Some(identity) = self.current().filter(|identity| identity.lasts(now, MARGIN)) {
            return Ok(Some(identity));
        }
        if let Some((when, outcome)) = last.as_ref().filter(|(when, _)| when.elapsed() < HOLD) {
            let _ = when;
            match (&usable, outcome) {
                (Some(identity), _) => return Ok(Some(Arc::clone(identity))),
                (None, Err(error)) => return Err(error.clone()),
                (None, Ok(())) => {}
            }
        }
        let outcome = self.fetch(provider.as_ref()).await;
        *last = Some((Instant::now(), outcome.as_ref().map(|_| ()).map_err(Clone::clone)));
        match (outcome, usable) {
            (Ok(identity), _) => Ok(Some(identity)),
            (Err(error), Some(identity)) => {
                tracing::warn!(%error, "credentials could not be refreshed; the present ones are still good");
                Ok(Some(identity))
            }
            (Err(error), None) => Err(error),
        }
    }

    /// After the store has refused `rejected`: fetches anew unless that was done within `hold`. Tells whether there is another
    /// identity now, so that trying again makes sense.
    pub(crate) async fn replace(&self, rejected: &Identity, hold: Duration) -> bool {
        let Some(provider) = &self.provider else {
            return false;
        };
        let mut last = self.fetching.lock().await;
        if self.current().is_some_and(|identity| *identity != *rejected) {
            return true;
        }
        if last.as_ref().is_some_and(|(when, _)| when.elapsed() < hold) {
            return false;
        }
        let outcome = self.fetch(provider.as_ref()).await;
        *last = Some((Instant::now(), outcome.as_ref().map(|_| ()).map_err(Clone::clone)));
        match outcome {
            Ok(identity) => *identity != *rejected,
            Err(error) => {
                tracing::warn!(%error, "the store refused the credentials and there are no others");
                false
            }
        }
    }

    fn current(&self) -> Option<Arc<Identity>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn fetch(&self, provider: &dyn Provider) -> Result<Arc<Identity>, CredentialError> {
        let identity = Arc::new(provider.provide().await?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&identity));
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Gives identities named by a counter, each good for as long as told, or fails.
    #[derive(Debug, Clone, Default)]
    struct Script {
        calls: Arc<AtomicU32>,
        life: Option<Duration>,
        fail_after: Option<u32>,
    }

    #[async_trait]
    impl Provider for Script {
        async fn provide(&self) -> Result<Identity, CredentialError> {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            if self.fail_after.is_some_and(|limit| call >= limit) {
                return Err(CredentialError("scripted".into()));
            }
            Ok(Identity {
                access_key_id: format!("id{call}"),
                secret: Secret::new("s"),
                token: None,
                expires: self.life.map(|life| SystemTime::now() + life),
            })
        }
    }

    fn scripted(script: &Script) -> Arc<Credentials> {
        Arc::new(Credentials::with(Some(Box::new(script.clone())), None))
    }

    async fn id(credentials: &Credentials) -> String {
        credentials.get(SystemTime::now()).await.unwrap().unwrap().access_key_id.clone()
    }

    #[tokio::test]
    async fn many_askers_cause_one_fetch() {
        let script = Script { life: Some(Duration::from_secs(3600)), ..Script::default() };
        let credentials = scripted(&script);
        let askers = (0..20).map(|_| {
            let credentials = Arc::clone(&credentials);
            tokio::spawn(async move { id(&credentials).await })
        });
        for asker in askers.collect::<Vec<_>>() {
            assert_eq!(asker.await.unwrap(), "id0");
        }
        assert_eq!(script.calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn credentials_about_to_end_are_replaced_but_kept_when_that_fails() {
        let script = Script { life: Some(Duration::from_secs(200)), fail_after: Some(1), ..Script::default() };
        let credentials = scripted(&script);
        assert_eq!(id(&credentials).await, "id0");
        assert_eq!(id(&credentials).await, "id0", "within the margin, the fetch was a moment ago");
        *credentials.fetching.lock().await = None;
        assert_eq!(id(&credentials).await, "id0", "the refresh failed and the old one is good");
        assert_eq!(script.calls.load(Ordering::SeqCst), 2);
        *credentials.fetching.lock().await = None;
        let later = SystemTime::now() + Duration::from_secs(400);
        assert!(credentials.get(later).await.is_err(), "by the store's clock it has ended");
    }

    #[tokio::test]
    async fn nothing_found_is_remembered_for_a_moment() {
        let script = Script { fail_after: Some(0), ..Script::default() };
        let credentials = scripted(&script);
        for _ in 0..5 {
            assert!(credentials.get(SystemTime::now()).await.is_err());
        }
        assert_eq!(script.calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn refused_credentials_are_fetched_once_for_all_that_were_refused() {
        let script = Script { life: Some(Duration::from_secs(3600)), ..Script::default() };
        let credentials = scripted(&script);
        let old = credentials.get(SystemTime::now()).await.unwrap().unwrap();
        assert!(!credentials.replace(&old, Duration::from_secs(60)).await, "they are fresh already");
        assert!(credentials.replace(&old, Duration::ZERO).await);
        assert!(credentials.replace(&old, Duration::ZERO).await, "somebody else has done it");
        assert_eq!(id(&credentials).await, "id1");
        assert_eq!(script.calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn static_and_anonymous_never_fetch() {
        let mut settings = StoreSettings { credentials: CredentialSource::Anonymous, ..StoreSettings::default() };
        let anonymous = Credentials::new(Scheme::Oss, &settings).unwrap();
        assert!(anonymous.get(SystemTime::now()).await.unwrap().is_none());
        settings.credentials = CredentialSource::Static {
            access_key_id: "id".into(),
            access_key_secret: Secret::new("hunter2"),
            security_token: Some(Secret::default()),
        };
        let fixed = Credentials::new(Scheme::Oss, &settings).unwrap();
        let identity = fixed.get(SystemTime::now()).await.unwrap().unwrap();
        assert!(identity.token.is_none());
        assert!(!fixed.replace(&identity, Duration::ZERO).await);
        assert!(!format!("{fixed:?} {identity:?}").contains("hunter2"));
        settings.credentials = CredentialSource::Static {
            access_key_id: "id".into(),
            access_key_secret: Secret::default(),
            security_token: None,
        };
        assert!(Credentials::new(Scheme::Oss, &settings).unwrap_err().0.contains("empty"));
    }
}
