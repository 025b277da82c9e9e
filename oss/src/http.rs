//! The HTTP client under the REST client and the metadata clients.
//!
//! It is hyper's and not reqwest's, because keys are raw: a request for `a/../b` or `a//b` has to leave exactly so, and
//! every client built on the `url` crate resolves dot segments (the encoded ones, too). Here the path is an [`http::Uri`],
//! which changes nothing.
//!
//! What is not here: redirects (a signed request must not be sent to another host), decompression (stored bytes are
//! handed out as they are) and retries (they belong to the protocol above).

mod body;
mod connect;
mod line;
mod pool;
mod silence;
mod tls;
mod tunnel;
mod upload;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Once};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST, PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, Response, Uri};
use hyper::body::{Body as _, Frame};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::time::Instant;

pub(crate) use body::Body;
pub(crate) use connect::ConnectError;
use connect::Connector;
use line::Lost;
use pool::Pool;
pub(crate) use silence::Silence;
use upload::{Progress, Upload};

/// Less than this, in bytes per second over a whole read timeout, is a stall even though something trickles.
pub(crate) const STALL_RATE: u64 = 1024;

/// A body whose last chunk is handed over can still be in our socket's buffer, at most this many bytes of it (the kernel's
/// default limit, `tcp_wmem`).
const SOCKET_BUFFER: u64 = 4 << 20;

/// How fast the socket's buffer must drain at least before we call the server silent, in bytes per second. It gets at most
/// two more read timeouts for that.
const DRAIN_RATE: u64 = 64 << 10;

const AGENT: HeaderValue = HeaderValue::from_static(concat!("batch-agent/", env!("CARGO_PKG_VERSION")));

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// No connection was made, so the server has not seen the request.
    #[error("{0}")]
    Connect(ConnectError),
    /// The connection was made and then nothing moved.
    #[error("nothing moved for {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The operation's own time was over.
    #[error("there was no time left")]
    Late,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// What came is not HTTP.
    #[error("the answer is not HTTP ({0}); if the server speaks TLS at this port, write the endpoint with https://")]
    NotHttp(String),
}

impl SendError {
    /// A connection that broke under the body of an answer.
    pub(crate) fn broken(error: &hyper::Error) -> Self {
        Self::Broken(whole_chain(error))
    }

    /// Whether the server may have carried the request out.
    pub(crate) fn may_have_arrived(&self) -> bool {
        !matches!(self, Self::Connect(_))
    }
}

/// A pool of connections. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct HttpClient {
    pool: Arc<Pool>,
    /// None also where the environment names none, because asking it costs something with each request.
    proxies: Option<Arc<Matcher>>,
}

impl HttpClient {
    /// A client that uses the proxies of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in either
    /// case). `connect` is the time a connection may take, TLS and proxy included.
    pub(crate) fn new(connect: Duration) -> Self {
        let lookup = |name: &str| std::env::var(name).ok();
        complain_of_proxies(lookup);
        let any = PROXY_VARIABLES.iter().any(|name| lookup(name).is_some_and(|value| !value.is_empty()));
        Self::build(connect, any.then(|| Arc::new(Matcher::from_env())))
    }

    /// A client that never uses a proxy: for instance metadata, which a proxy would answer for its own machine.
    pub(crate) fn direct(connect: Duration) -> Self {
        Self::build(connect, None)
    }

    fn build(connect: Duration, proxies: Option<Arc<Matcher>>) -> Self {
        let connector = Connector::new(connect, proxies.clone());
        Self { pool: Arc::new(Pool::new(connector)), proxies }
    }

    /// For messages: `" (through the proxy HOST:PORT)"` when requests for `target` go through one, else nothing.
    pub(crate) fn via(&self, target: &Uri) -> String {
        self.proxies.as_ref().and_then(|proxies| proxies.intercept(target)).as_ref().map(via).unwrap_or_default()
    }

    /// Sends a request with an absolute URI and waits for the head of the answer.
    ///
    /// `read` is how long nothing may move: while the body goes out, and then until the answer begins. Whatever moves, it is
    /// over at `end`. Dropping the future drops the connection.
    pub(crate) async fn send(
        &self,
        request: Request<Bytes>,
        read: Duration,
        end: Option<Instant>,
    ) -> Result<Response<Body>, SendError> {
        let total = u64::try_from(request.body().len()).unwrap_or(u64::MAX);
        let (head, body) = request.into_parts();
        let progress = Progress::new();
        let exchange = self.exchange(Request::from_parts(head, Upload::new(body, Arc::clone(&progress))));
        tokio::pin!(exchange);

        let drain = Duration::from_secs(total.min(SOCKET_BUFFER) / DRAIN_RATE).min(read * 2);
        let mut window_start = progress.start();
        let mut window_bytes = 0;
        loop {
            let all_handed = progress.bytes() >= total;
            let limit = if all_handed { read + drain } else { read };
            let silent_at = progress.last() + limit;
            let window_end = window_start + read;
            let wake = if all_handed { silent_at } else { silent_at.min(window_end) };
            let wake = end.map_or(wake, |end| wake.min(end));
            match tokio::time::timeout_at(wake, exchange.as_mut()).await {
                Ok(outcome) => return outcome,
                Err(_) => {
                    let now = Instant::now();
                    if end.is_some_and(|end| end <= now) {
                        return Err(SendError::Late);
                    }
                    let handed = progress.bytes();
                    let limit = if handed >= total { read + drain } else { read };
                    if now >= progress.last() + limit {
                        return Err(SendError::Timeout(limit));
                    }
                    if handed < total && now >= window_end {
                        if handed - window_bytes < STALL_RATE.saturating_mul(read.as_secs()) {
                            return Err(SendError::Timeout(read));
                        }
                        (window_start, window_bytes) = (now, handed);
                    }
                }
            }
        }
    }

    /// One request, over whichever connection can take it.
    async fn exchange(&self, mut request: Request<Upload>) -> Result<Response<Body>, SendError> {
        let length = request.body().len();
        let target = request.uri().clone();
        let headers = request.headers_mut();
        if !headers.contains_key(HOST) {
            headers.insert(HOST, host(&target).map_err(SendError::Connect)?);
        }
        headers.insert(USER_AGENT, AGENT);
        let forwarded = self.forwarded(&target);
        if let Some(auth) = forwarded.as_ref().and_then(Intercept::basic_auth) {
            headers.insert(PROXY_AUTHORIZATION, auth.clone());
        }
        if matches!(*request.method(), Method::PUT | Method::POST) {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        if forwarded.is_none() {
            // A proxy wants to know for whom, a server only what.
            let mut only = http::uri::Parts::default();
            only.path_and_query = target.path_and_query().cloned();
            *request.uri_mut() = Uri::from_parts(only).unwrap_or_default();
        }
        let place = self.pool.place(&target).map_err(SendError::Connect)?;
        loop {
            let line = self.pool.line(&place, &target).await.map_err(SendError::Connect)?;
            let kept = line.kept;
            match line.exchange(request).await {
                Ok((answer, line)) => return Ok(answer.map(|body| Body::new(body, line, place))),
                // The server closed the connection while it was idle. Each round uses one of those up.
                Err(Lost::Unsent(unsent)) if kept => request = *unsent,
                Err(Lost::Unsent(_)) => {
                    let why = format!("{} closes connections as soon as they are made", place.authority());
                    return Err(SendError::Connect(ConnectError::other(why)));
                }
                Err(Lost::Broken(error)) => return Err(error),
            }
        }
    }

    /// The proxy that requests for `target` are sent to as they are. Through a tunnel it sees our credentials for it in the
    /// CONNECT; without one, in each request.
    fn forwarded(&self, target: &Uri) -> Option<Intercept> {
        let proxies = self.proxies.as_ref().filter(|_| target.scheme() == Some(&Scheme::HTTP))?;
        proxies.intercept(target)
    }
}

/// The `Host` of requests for `target`: with the port, unless it is the scheme's own.
fn host(target: &Uri) -> Result<HeaderValue, ConnectError> {
    let unusable = || ConnectError::other("the request says no host".to_owned());
    let authority = target.authority().ok_or_else(unusable)?;
    let standard = if target.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let text = match authority.port_u16() {
        Some(port) if port != standard && !authority.as_str().contains('@') => {
            return HeaderValue::from_str(authority.as_str()).map_err(|_| unusable());
        }
        Some(port) if port != standard => format!("{}:{port}", authority.host()),
        _ => authority.host().to_owned(),
    };
    HeaderValue::try_from(text).map_err(|_| unusable())
}

/// For messages. The name is without user and password, which the matcher keeps apart.
fn via(proxy: &Intercept) -> String {
    proxy.uri().authority().map(|name| format!(" (through the proxy {name})")).unwrap_or_default()
}

/// The variables that name proxies.
const PROXY_VARIABLES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// Says once which proxy settings mean nothing: they are ignored, as every program does, and their owner wonders.
fn complain_of_proxies(lookup: impl Fn(&str) -> Option<String>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for name in unusable_proxies(lookup) {
            // Not the value: there can be a password in it.
            tracing::warn!(
                "{name} is not the URL of a proxy and is ignored: write one like http://proxy.example.com:3128"
            );
        }
    });
}

fn unusable_proxies(lookup: impl Fn(&str) -> Option<String>) -> Vec<&'static str> {
    let anywhere = Uri::from_static("http://host.invalid/");
    let usable = |value: &str| Matcher::builder().all(value.to_owned()).build().intercept(&anywhere).is_some();
    let set = |name: &&str| lookup(name).is_some_and(|value| !value.is_empty() && !usable(&value));
    PROXY_VARIABLES.into_iter().filter(set).collect()
}

/// Why a connection broke.
fn describe(error: &hyper::Error) -> SendError {
    if error.is_parse() { SendError::NotHttp(whole_chain(error)) } else { SendError::broken(error) }
}

/// Reads a body that is expected to be small. `read` is how long nothing may come.
pub(crate) async fn collect(mut body: Body, limit: usize, read: Duration) -> Result<Bytes, SendError> {
    let mut all = BytesMut::new();
    while let Some(chunk) = next_chunk(&mut body, read).await? {
        if all.len() + chunk.len() > limit {
            return Err(SendError::Broken(format!("the answer is longer than {limit} bytes")));
        }
        if all.is_empty() && body.is_end_stream() {
            return Ok(chunk);
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

/// The next bytes of a body, none at its end. A body that ends before its announced length is an error.
async fn next_chunk(body: &mut Body, read: Duration) -> Result<Option<Bytes>, SendError> {
    let mut silence = Silence::default();
    poll_fn(|cx| {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
                return silence.poll(cx, read).map(|()| Err(SendError::Timeout(read)));
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                None => return Poll::Ready(Ok(None)),
                Some(Err(error)) => return Poll::Ready(Err(SendError::broken(&error))),
                Some(Ok(Ok(data))) if !data.is_empty() => return Poll::Ready(Ok(Some(data))),
                // Nothing, or trailers.
                Some(Ok(_)) => {}
            }
        }
    })
    .await
}

/// An error and its causes in one line.
fn whole_chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(_) => format!("{error}: {}", chain(error)),
        None => error.to_string(),
    }
}

/// The causes of an error in one line, without the outermost, which for hyper says nothing.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let part = inner.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        cause = inner.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn read_head(socket: &mut tokio::net::TcpStream) -> String {
        let mut seen = Vec::new();
        while !seen.windows(4).any(|w| w == b"\r\n\r\n") {
            let mut chunk = [0; 1024];
            let n = socket.read(&mut chunk).await.unwrap();
            assert!(n > 0, "the client hung up");
            seen.extend_from_slice(&chunk[..n]);
        }
        String::from_utf8(seen).unwrap()
    }

    #[tokio::test]
    async fn paths_are_sent_as_they_are_and_localhost_names_resolve() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let mut heads = Vec::new();
            let (mut socket, _) = listener.accept().await.unwrap();
            for _ in 0..3 {
                heads.push(read_head(&mut socket).await);
                socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            }
            heads
        });
        let client = HttpClient::direct(Duration::from_secs(5));
        for path in ["//", "/a/../b/./c//d", "/%2e%2e/%00%F0%9F?x&y=%2F"] {
            let uri = format!("http://bucket.localhost:{port}{path}");
            let request = Request::put(uri).body(Bytes::new()).unwrap();
            assert_eq!(client.send(request, Duration::from_secs(5), None).await.unwrap().status(), 204);
        }
        let heads = server.await.unwrap();
        for (head, path) in heads.iter().zip(["//", "/a/../b/./c//d", "/%2e%2e/%00%F0%9F?x&y=%2F"]) {
            assert!(head.starts_with(&format!("PUT {path} HTTP/1.1\r\n")), "{head}");
            assert!(head.contains(&format!("host: bucket.localhost:{port}\r\n")), "{head}");
            assert!(head.contains("content-length: 0\r\n") && head.contains("user-agent: batch-agent/"), "{head}");
        }
    }

    #[tokio::test]
    async fn a_silent_server_is_a_timeout_and_a_closed_port_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = HttpClient::direct(Duration::from_secs(5));
        let get = || Request::get(format!("http://{address}/")).body(Bytes::new()).unwrap();
        let error = client.send(get(), Duration::from_millis(50), None).await.unwrap_err();
        assert!(matches!(error, SendError::Timeout(_)) && error.may_have_arrived(), "{error}");
        drop(listener);
        let error = client.send(get(), Duration::from_secs(5), None).await.unwrap_err();
        assert!(matches!(&error, SendError::Connect(c) if !c.is_permanent()) && !error.may_have_arrived(), "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
    }

    #[test]
    fn proxies_that_cannot_be_used_are_named() {
        let values = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://user:pa ss@proxy.example.com:3128".to_owned()),
            "HTTP_PROXY" => Some("proxy.example.com:3128".to_owned()),
            "ALL_PROXY" => Some("ftp://proxy.example.com".to_owned()),
            "http_proxy" => Some(String::new()),
            _ => None,
        };
        assert_eq!(unusable_proxies(values), ["HTTPS_PROXY", "ALL_PROXY"]);
    }

    #[tokio::test]
    async fn a_proxy_gets_absolute_requests_tunnels_and_credentials() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://user:pass@{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let plain = read_head(&mut socket).await;
            socket.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
            drop(socket);
            let (mut socket, _) = listener.accept().await.unwrap();
            let tunnel = read_head(&mut socket).await;
            socket.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
            (plain, tunnel)
        });
        let matcher = Matcher::builder().all(proxy).no("internal.example").build();
        let client = HttpClient::build(Duration::from_secs(5), Some(Arc::new(matcher)));
        let request = Request::get("http://b.example.com/a/../b").body(Bytes::new()).unwrap();
        client.send(request, Duration::from_secs(5), None).await.unwrap();
        let request = Request::get("https://b.example.com/x").body(Bytes::new()).unwrap();
        let error = client.send(request, Duration::from_secs(5), None).await.unwrap_err();
        assert!(matches!(&error, SendError::Connect(_)) && error.to_string().contains("proxy"), "{error}");
        assert!(!error.to_string().contains("pass"), "{error}");
        let (plain, tunnel) = server.await.unwrap();
        assert!(plain.starts_with("GET http://b.example.com/a/../b HTTP/1.1\r\n"), "{plain}");
        assert!(plain.contains("proxy-authorization: Basic dXNlcjpwYXNz\r\n"), "{plain}");
        assert!(tunnel.starts_with("CONNECT b.example.com:443 HTTP/1.1\r\n"), "{tunnel}");
        assert!(tunnel.contains("Proxy-Authorization: Basic dXNlcjpwYXNz\r\n"), "{tunnel}");
    }
}
