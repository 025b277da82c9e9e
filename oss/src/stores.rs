//! From a location to the store it is in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::foreign::ForeignStore;
use crate::location::{Location, Scheme};
use crate::settings::Settings;
use crate::store::Store;

/// Opens stores and keeps them, so that everything that talks to one bucket shares its connections and credentials.
#[derive(Debug, Default)]
pub struct Stores {
    settings: Settings,
    open: Mutex<HashMap<(Scheme, String), Arc<dyn Store>>>,
}

impl Stores {
    /// Stores that are reached by these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, open: Mutex::default() }
    }

    /// The settings all stores are opened with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The store that `location` is in. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the settings make no sense for the scheme, such as OSS without endpoint and region.
    pub fn open(&self, location: &Location) -> Result<Arc<dyn Store>> {
        let id = (location.scheme(), location.bucket().to_owned());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(&id) {
            return Ok(Arc::clone(store));
        }
        let store = Self::make(&self.settings, &location.with_key(""))?;
        open.insert(id, Arc::clone(&store));
        Ok(store)
    }

    fn make(_settings: &Settings, root: &Location) -> Result<Arc<dyn Store>> {
        match root.scheme() {
            Scheme::File | Scheme::Gs | Scheme::Az => Ok(Arc::new(ForeignStore::open(root)?)),
            Scheme::Oss | Scheme::S3 => {
                Err(Error::new(ErrorKind::Unsupported, "OPEN", root.escaped(), "not built yet"))
            }
        }
    }
}
