//! TLS: ring, the machine's certificate authorities, and Mozilla's where the machine has none.

use std::sync::{Arc, OnceLock};

use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};
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
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().any(|name| std::env::var_os(name).is_some());
    for error in &found.errors {
        if named {
            tracing::warn!(%error, "CA certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read");
        } else {
            tracing::debug!(%error, "some CA certificates could not be read");
        }
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

/// What to do about a handshake that failed for good. None when the next one may succeed.
pub(super) fn advice(error: &Error) -> Option<&'static str> {
    const CLOCK: &str = "check this machine's clock; if it is right, the server needs a new certificate";
    Some(match error {
        Error::InvalidCertificate(cause) => match cause {
            // A bad signature is what an authority that was made anew under its old name looks like.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "if the server is the right one, add the certificate of its authority to this machine's \
                 (update-ca-certificates), or name its file by SSL_CERT_FILE"
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => CLOCK,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "check the endpoint's name; if the server's certificate does not cover names with a bucket in front, use path \
                 addressing"
            }
            _ => "this is not the server that was meant, or it needs another certificate",
        },
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
            "if the server does not speak TLS at this port, write the endpoint with http://, or with another port"
        }
        // The server's own trouble.
        Error::AlertReceived(AlertDescription::InternalError | AlertDescription::UserCanceled) => return None,
        Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the server does not know this name; check the endpoint"
        }
        Error::AlertReceived(_) | Error::PeerIncompatible(_) => {
            "the server and this client have no version or cipher of TLS in common, or the server wants a client certificate"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_the_rest_explained() {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(advice(&unknown).unwrap().contains("SSL_CERT_FILE"));
        let expired = Error::InvalidCertificate(CertificateError::Expired);
        assert!(advice(&expired).unwrap().contains("clock"));
        let name = Error::InvalidCertificate(CertificateError::NotValidForName);
        assert!(advice(&name).unwrap().contains("endpoint"));
        assert!(advice(&Error::AlertReceived(AlertDescription::HandshakeFailure)).is_some());
        assert!(advice(&Error::AlertReceived(AlertDescription::InternalError)).is_none());
        assert!(advice(&Error::DecryptError).is_none());
    }

    #[test]
    fn a_machine_without_certificates_gets_the_built_in_ones() {
        let config = configure(RootCertStore::empty());
        assert_eq!(config.alpn_protocols, [b"http/1.1"]);
        assert!(webpki_roots::TLS_SERVER_ROOTS.len() > 50);
    }
}
