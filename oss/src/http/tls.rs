//! TLS: ring, the machine's certificate authorities, and Mozilla's where the machine has none.

use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

/// The TLS client of the process. Reading the machine's certificates takes some ten milliseconds, so it is done once and
/// only when something speaks TLS.
pub(super) fn connector() -> TlsConnector {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    TlsConnector::from(Arc::clone(CONFIG.get_or_init(|| Arc::new(configure(system_roots())))))
}

fn configure(mut roots: RootCertStore) -> ClientConfig {
    if roots.is_empty() {
        // A minimal image without the `ca-certificates` package. Where the machine has roots, they alone count: its owner may
        // have taken some out on purpose.
        tracing::info!("this machine has no CA certificates; using the built-in ones");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// The roots of the machine, or of the file that `SSL_CERT_FILE` names. What cannot be parsed is left out.
fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "some CA certificates could not be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_certificates_gets_the_built_in_ones() {
        let config = configure(RootCertStore::empty());
        assert_eq!(config.alpn_protocols, [b"http/1.1"]);
        assert!(webpki_roots::TLS_SERVER_ROOTS.len() > 50);
    }
}
