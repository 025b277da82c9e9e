//! Making connections: names, TCP, proxies, TLS.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::{tls, tunnel};

/// How often an idle connection is probed, so that one whose peer vanished does not look alive for hours.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why no connection was made.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ConnectError {
    message: String,
    permanent: bool,
    /// It is the name that is not known.
    unknown_name: bool,
}

impl ConnectError {
    pub(super) fn other(message: String) -> Self {
        Self { message, permanent: false, unknown_name: false }
    }

    fn permanent(message: String) -> Self {
        Self { message, permanent: true, unknown_name: false }
    }

    /// Whether trying again is hardly any use: a certificate that is not trusted, a proxy setting we do not understand, a name
    /// that the name server says does not exist.
    pub(crate) fn is_permanent(&self) -> bool {
        self.permanent
    }

    /// Whether somebody has to change something first. Not so with names: name servers are sometimes wrong for a while.
    pub(crate) fn is_lasting(&self) -> bool {
        self.permanent && !self.unknown_name
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<Socket, ConnectError>> + Send>>;

/// Connects to where a URI points, through a proxy where one is set.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    dial: Dial,
    proxies: Option<Arc<Matcher>>,
    limit: Duration,
}

impl Connector {
    pub(super) fn new(limit: Duration, proxies: Option<Arc<Matcher>>) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        Self { dial: Dial { tcp }, proxies, limit }
    }
}

impl Service<Uri> for Connector {
    type Response = Socket;
    type Error = ConnectError;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Connecting {
        let Self { dial, proxies, limit } = self.clone();
        Box::pin(async move {
            let place = place(&target);
            let proxy = proxies.and_then(|proxies| proxies.intercept(&target));
            let via = proxy.as_ref().map(super::via).unwrap_or_default();
            let connecting = async {
                match &proxy {
                    None => dial.connect(target).await,
                    Some(proxy) => through_proxy(dial, proxy.uri(), proxy.basic_auth(), target).await,
                }
            };
            tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
                Err(ConnectError::other(format!("no connection to {place} within {} s{via}", limit.as_secs_f32())))
            })
        })
    }
}

async fn through_proxy(
    dial: Dial,
    proxy: &Uri,
    auth: Option<&http::HeaderValue>,
    target: Uri,
) -> Result<Socket, ConnectError> {
    // Without user name and password, which are kept apart from the URI.
    let name = proxy.authority().map_or("", |authority| authority.as_str());
    if !matches!(proxy.scheme_str(), Some("http" | "https")) {
        let scheme = proxy.scheme_str().unwrap_or_default();
        return Err(ConnectError::permanent(format!(
            "the proxy {name} of the environment is a {scheme} proxy; only http:// and https:// proxies can be used"
        )));
    }
    let socket = dial.connect(proxy.clone()).await.map_err(|error| {
        let message = format!("no connection to the proxy {name} of the environment: {error}");
        ConnectError { message, ..error }
    })?;
    if target.scheme_str() != Some("https") {
        return Ok(Socket::Proxied(Box::new(socket)));
    }
    let mut socket = TokioIo::new(socket);
    let host = target.host().unwrap_or_default();
    let port = target.port_u16().unwrap_or(443);
    tunnel::open(&mut socket, &format!("{host}:{port}"), auth).await.map_err(|error| ConnectError {
        message: format!("the proxy {name} of the environment {error}"),
        permanent: error.is_permanent(),
        unknown_name: false,
    })?;
    let stream = handshake(&target, socket).await.map_err(|error| {
        let message = format!("{error} (through the proxy {name})");
        ConnectError { message, ..error }
    })?;
    Ok(Socket::Tunneled(Box::new(TokioIo::new(stream))))
}

/// Connects directly, with TLS when the URI says so.
#[derive(Debug, Clone)]
struct Dial {
    tcp: HttpConnector<Resolver>,
}

impl Dial {
    async fn connect(mut self, target: Uri) -> Result<Socket, ConnectError> {
        let tcp = self.tcp.call(target.clone()).await.map_err(|error| {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
            let mut unknown_name = false;
            while let Some(inner) = cause {
                unknown_name |= inner.downcast_ref::<NoSuchName>().is_some();
                cause = inner.source();
            }
            let message = format!("cannot connect to {}: {}", place(&target), super::chain(&error));
            ConnectError { message, permanent: unknown_name, unknown_name }
        })?;
        if target.scheme_str() != Some("https") {
            return Ok(Socket::Plain(tcp));
        }
        Ok(Socket::Secure(Box::new(TokioIo::new(handshake(&target, tcp.into_inner()).await?))))
    }
}

/// Where a URI points, for messages: host, and port where it is named.
fn place(target: &Uri) -> String {
    let host = target.host().unwrap_or_default();
    target.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

async fn handshake<S>(target: &Uri, stream: S) -> Result<TlsStream<S>, ConnectError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let host = target.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned())
        .map_err(|_| ConnectError::permanent(format!("{host:?} is not a name that a certificate can be for")))?;
    tls::connector().connect(name, stream).await.map_err(|error| {
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let advice = cause.and_then(tls::advice);
        let hint = advice.map(|advice| format!("; {advice}")).unwrap_or_default();
        ConnectError {
            message: format!("TLS with {}: {error}{hint}", place(target)),
            permanent: advice.is_some(),
            unknown_name: false,
        }
    })
}

/// Resolves names with the system's resolver, but `localhost` and all below it to loopback, as RFC 6761 says: so
/// `bucket.localhost` works on machines whose resolver does not know it.
#[derive(Debug, Clone)]
struct Resolver;

/// The name server answered that the name does not exist.
#[derive(Debug, thiserror::Error)]
#[error("there is no host {name:?}: {source}")]
struct NoSuchName {
    name: String,
    source: std::io::Error,
}

type Resolving = Pin<
    Box<dyn Future<Output = Result<std::vec::IntoIter<SocketAddr>, Box<dyn std::error::Error + Send + Sync>>> + Send>,
>;

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Resolving;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Resolving {
        Box::pin(async move {
            if is_localhost(name.as_str()) {
                let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                return Ok(both.map(|ip| SocketAddr::new(ip, 0)).to_vec().into_iter());
            }
            match tokio::net::lookup_host((name.as_str(), 0)).await {
                Ok(found) => Ok(found.collect::<Vec<_>>().into_iter()),
                // The standard library keeps getaddrinfo's code to itself; its text for EAI_NONAME is stable in glibc and musl.
                Err(source) if source.to_string().contains("Name or service not known") => {
                    Err(NoSuchName { name: name.as_str().to_owned(), source }.into())
                }
                Err(source) => Err(source.into()),
            }
        })
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
}

/// A connection.
pub(super) enum Socket {
    Plain(TokioIo<TcpStream>),
    Secure(Box<TokioIo<TlsStream<TcpStream>>>),
    /// To a proxy that forwards plain requests.
    Proxied(Box<Socket>),
    /// TLS through a proxy's tunnel.
    Tunneled(Box<TokioIo<TlsStream<TokioIo<Socket>>>>),
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new().proxy(matches!(self, Self::Proxied(_)))
    }
}

/// Hands a call on to whichever connection it is.
macro_rules! each {
    ($self:ident, $socket:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Plain($socket) => {
                let $socket = Pin::new($socket);
                $call
            }
            Self::Secure($socket) => {
                let $socket = Pin::new($socket.as_mut());
                $call
            }
            Self::Proxied($socket) => {
                let $socket = Pin::new($socket.as_mut());
                $call
            }
            Self::Tunneled($socket) => {
                let $socket = Pin::new($socket.as_mut());
                $call
            }
        }
    };
}

impl Read for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        each!(self, socket => socket.poll_read(cx, buf))
    }
}

impl Write for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        each!(self, socket => socket.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        each!(self, socket => socket.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        each!(self, socket => socket.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Secure(socket) => socket.is_write_vectored(),
            Self::Proxied(socket) => socket.is_write_vectored(),
            Self::Tunneled(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        each!(self, socket => socket.poll_write_vectored(cx, bufs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_recognised_at_the_end_only() {
        for name in ["localhost", "bucket.localhost", "a.b.LOCALHOST", "localhost."] {
            assert!(is_localhost(name), "{name}");
        }
        for name in ["localhost.example.com", "notlocalhost", "", "example.com"] {
            assert!(!is_localhost(name), "{name}");
        }
    }

    #[tokio::test]
    async fn localhost_resolves_without_a_resolver() {
        let name: Name = "bucket.localhost".parse().unwrap();
        let found: Vec<_> = Resolver.call(name).await.unwrap().collect();
        assert_eq!(found[0].ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
}
