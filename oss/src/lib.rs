//! Object storage access for the node agent and the mount.
//!
//! From the bottom up: [`Location`] and [`Key`] name things, [`Secret`] and [`credentials`] say who asks,
//! [`Store`] is one bucket and what can be done to it, [`rest`] speaks to OSS and S3, [`foreign`] to Google, Azure and
//! local files; [`transfer`] moves whole files with verification, and [`growing`] is an object that grows while it is read.
//! [`Stores`] hands out the right [`Store`] for a [`Location`].

#[doc(hidden)]
pub mod conformance;
pub mod crc;
pub mod credentials;
mod error;
pub mod foreign;
pub mod growing;
mod http;
mod location;
pub mod memory;
pub mod rest;
mod secret;
mod settings;
mod sign;
mod staged;
mod store;
mod stores;
mod sums;
pub mod transfer;
pub mod web;

pub use error::{Error, ErrorKind, Result};
pub use location::{Key, Location, LocationError, Scheme};
pub use secret::Secret;
pub use settings::{Addressing, CredentialSource, Settings, SettingsError, StoreSettings, Timeouts};
pub use store::{
    AppendResponse, Capabilities, Checksum, ETag, GetOptions, GetResponse, ListPage, ListRequest, ObjectMeta, PartMeta,
    PartPage, PartReceipt, PutMode, PutResponse, Store, UploadId, UploadMarker, UploadMeta, UploadPage,
};
pub use stores::Stores;
