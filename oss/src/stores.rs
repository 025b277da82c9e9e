//! From a location to the store it is in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::Result;
use crate::foreign::ForeignStore;
use crate::http::HttpClient;
use crate::location::{Location, Scheme};
use crate::rest::RestStore;
use crate::settings::{Settings, StoreSettings};
use crate::store::Store;

/// Opens stores and keeps them, so that everything that talks to one bucket shares its connections and credentials.
#[derive(Debug, Default)]
pub struct Stores {
    settings: Settings,
    open: Mutex<HashMap<(Scheme, String), Arc<dyn Store>>>,
    /// The connections to all buckets of a scheme; each scheme has its own time limits.
    oss_client: OnceLock<HttpClient>,
    s3_client: OnceLock<HttpClient>,
}

impl Stores {
    /// Stores that are reached by these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The settings all stores are opened with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The store that `location` is in. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when the settings make no sense for the scheme, such as OSS without endpoint and region.
    pub fn open(&self, location: &Location) -> Result<Arc<dyn Store>> {
        let id = (location.scheme(), location.bucket().to_owned());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(&id) {
            return Ok(Arc::clone(store));
        }
        let store = self.make(&location.with_key(""))?;
        open.insert(id, Arc::clone(&store));
        Ok(store)
    }

    fn make(&self, root: &Location) -> Result<Arc<dyn Store>> {
        let rest = |settings: &StoreSettings, http: &OnceLock<HttpClient>| -> Result<Arc<dyn Store>> {
            let http = http.get_or_init(|| HttpClient::new(settings.timeouts.connect)).clone();
            Ok(Arc::new(RestStore::with_client(root, settings, http)?))
        };
        match root.scheme() {
            Scheme::Oss => rest(&self.settings.oss, &self.oss_client),
            Scheme::S3 => rest(&self.settings.s3, &self.s3_client),
            Scheme::File | Scheme::Gs | Scheme::Az => Ok(Arc::new(ForeignStore::open(root)?)),
        }
    }
}
