//! Access keys for the cloud's other services, by the same chain as for its storage.

use std::time::SystemTime;

use super::{CredentialError, Credentials};
use crate::location::Scheme;
use crate::secret::Secret;
use crate::settings::StoreSettings;

/// An access key, with a token when it is temporary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// Its public part.
    pub id: String,
    /// Its secret part.
    pub secret: Secret,
    /// What has to go with it when it is temporary.
    pub token: Option<Secret>,
}

/// Why there is no access key. The message holds no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no access key: {0}")]
pub struct NoAccessKey(String);

impl From<CredentialError> for NoAccessKey {
    fn from(error: CredentialError) -> Self {
        Self(error.0)
    }
}

/// Hands out the current access key and keeps it fresh.
#[derive(Debug)]
pub struct AccessKeys(Credentials);

impl AccessKeys {
    /// The keys that storage of this scheme is reached with. Nothing is fetched yet.
    ///
    /// # Errors
    /// When the settings hold an empty key.
    pub fn new(scheme: Scheme, settings: &StoreSettings) -> Result<Self, NoAccessKey> {
        Ok(Self(Credentials::new(scheme, settings)?))
    }

    /// The key to sign with now.
    ///
    /// # Errors
    /// When none can be had; also where storage is meant to be asked without one.
    pub async fn get(&self) -> Result<AccessKey, NoAccessKey> {
        let identity = self.0.get(SystemTime::now()).await?;
        let identity = identity.ok_or_else(|| NoAccessKey("storage is set to be asked without one".to_owned()))?;
        Ok(AccessKey {
            id: identity.access_key_id.clone(),
            secret: identity.secret.clone(),
            token: identity.token.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::CredentialSource;

    #[tokio::test]
    async fn a_given_key_is_handed_out_and_shown_nowhere() {
        let credentials = CredentialSource::Static {
            access_key_id: "id".to_owned(),
            access_key_secret: Secret::new("hidden"),
            security_token: Some(Secret::new("token")),
        };
        let settings = StoreSettings { credentials, ..StoreSettings::default() };
        let key = AccessKeys::new(Scheme::Oss, &settings).unwrap().get().await.unwrap();
        assert_eq!((key.id.as_str(), key.secret.expose()), ("id", "hidden"));
        assert!(!format!("{key:?}").contains("hidden"));
        let settings = StoreSettings { credentials: CredentialSource::Anonymous, ..StoreSettings::default() };
        AccessKeys::new(Scheme::Oss, &settings).unwrap().get().await.unwrap_err();
    }
}
