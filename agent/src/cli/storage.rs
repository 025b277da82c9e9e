//! How commands that are given a location reach its storage.

use std::path::{Path, PathBuf};

use clap::Args;
use oss::{Location, Scheme, Settings};

use crate::exit;
use crate::outcome::{Cause, Failure};
use crate::settings::{self, SettingsSource};

/// What such a command can be told.
#[derive(Debug, Args)]
pub(super) struct StorageArguments {
    /// Take how storage is reached from these settings. [default: those in /etc/batch-agent, if there are any, over the environment]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The endpoint of the location's storage.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,

    /// The region of the location's storage.
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
}

impl StorageArguments {
    /// How the storage of `target` is reached.
    pub(super) fn settings(&self, target: &Location) -> Result<Settings, Failure> {
        let bad = |text: String| Failure::new(Cause::User, exit::BAD_SETTINGS, text);
        let read = |source: &SettingsSource| {
            settings::read(source, &[]).map(|(settings, _)| settings.storage).map_err(|error| bad(error.to_string()))
        };
        let mut settings = match &self.config {
            Some(file) => read(&SettingsSource::File(file.clone()))?,
            None if Path::new(settings::DIRECTORY).join("node.yaml").exists() => {
                // Not everybody may read them, nor has to: the environment may say enough.
                read(&SettingsSource::default()).or_else(|failure| {
                    eprintln!("batch-agent: {}; going on without", failure.message);
                    Settings::from_env().map_err(|error| bad(error.to_string()))
                })?
            }
            None => Settings::from_env().map_err(|error| bad(error.to_string()))?,
        };
        let store = if target.scheme() == Scheme::S3 { &mut settings.s3 } else { &mut settings.oss };
        store.endpoint = self.endpoint.clone().or_else(|| store.endpoint.take());
        store.region = self.region.clone().or_else(|| store.region.take());
        Ok(settings)
    }
}
