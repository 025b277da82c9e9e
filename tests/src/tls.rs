//! TLS in front of the doubles: certificates made on the spot, and a server that unwraps what it gets and passes it on.
//!
//! ```
//! use tests::double::{Double, DoubleConfig};
//! use tests::tls::{Authority, TlsFront, Validity};
//!
//! let double = Double::start(DoubleConfig::default());
//! let authority = Authority::new();
//! let front = TlsFront::start(&authority.issue(&["localhost"], Validity::Now), double.port());
//! // ... a client that trusts what authority.file() holds, at work at https://localhost:PORT ...
//! assert_eq!(front.connections(), 0);
//! ```

use std::fmt;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::NamedTempFile;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::listener::Listener;

/// When a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Today.
    Now,
    /// Until some years ago.
    Expired,
    /// From some decades on.
    NotYet,
}

/// A certificate authority that nobody knows but who is given its file.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: NamedTempFile,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("file", &self.file.path()).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, with a file that holds its certificate and is removed when this is dropped.
    ///
    /// # Panics
    /// When no temporary file can be written.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("ring makes keys");
        let mut params = CertificateParams::default();
        // Two of one name with two keys would be taken for one whose certificates are forged.
        static COUNTER: AtomicUsize = AtomicUsize::new(0);
        let number = COUNTER.fetch_add(1, Ordering::SeqCst);
        params.distinguished_name.push(DnType::CommonName, format!("authority {number} of the tests"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).expect("the parameters are complete");
        let mut file = NamedTempFile::new().expect("a temporary file");
        file.write_all(certificate.pem().as_bytes()).expect("the certificate is written");
        Self { issuer: Issuer::new(params, key), file }
    }

    /// The file with its certificate, for `SSL_CERT_FILE`.
    pub fn file(&self) -> &Path {
        self.file.path()
    }

    /// A certificate for a server of these names.
    ///
    /// # Panics
    /// When a name is none.
    pub fn issue(&self, names: &[&str], validity: Validity) -> Certificate {
        let key = KeyPair::generate().expect("ring makes keys");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("host names and IP addresses");
        match validity {
            Validity::Now => {}
            Validity::Expired => params.not_after = date_time_ymd(2020, 1, 1),
            Validity::NotYet => params.not_before = date_time_ymd(2100, 1, 1),
        }
        let certificate = params.signed_by(&key, &self.issuer).expect("the parameters are complete");
        Certificate { certificate: certificate.der().clone(), key: key.serialize_der() }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// A server's certificate and its key.
pub struct Certificate {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

/// A server that speaks TLS on a free port of 127.0.0.1 and passes on what is inside. Dropping it closes its connections.
#[derive(Debug)]
pub struct TlsFront {
    listener: Listener,
    handshakes: Arc<AtomicUsize>,
}

impl TlsFront {
    /// Starts one in front of `port` on 127.0.0.1.
    ///
    /// # Panics
    /// When no port or thread can be had.
    pub fn start(certificate: &Certificate, port: u16) -> Self {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certificate.key.clone()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring supports the default protocol versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.certificate.clone()], key)
            .expect("the key belongs to the certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let handshakes = Arc::new(AtomicUsize::new(0));
        let done = Arc::clone(&handshakes);
        let listener = Listener::start("tls-front", move |socket| {
            let (acceptor, done) = (acceptor.clone(), Arc::clone(&done));
            async move {
                // Failures from here on are the client's, or what the double was told to do; the client sees an end.
                let Ok(mut outside) = acceptor.accept(socket).await else { return };
                done.fetch_add(1, Ordering::SeqCst);
                let Ok(mut inside) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
        Self { listener, handshakes }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.listener.port()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.listener.connections()
    }

    /// How many of them the client went on with after it had seen the certificate.
    pub fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::SeqCst)
    }
}
