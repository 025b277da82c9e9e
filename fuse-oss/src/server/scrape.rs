//! Where metrics are asked for: `GET /metrics` over HTTP/1.1 on a Unix socket of its own.
//!
//! ```text
//! curl --unix-socket /run/fuse-oss/HASH.metrics http://localhost/metrics
//! ```
//!
//! One request per connection, [`PLACES`] connections at once; whoever comes then waits in the socket's queue. [`Limits`] say how
//! long a client may take, and [`HEAD_LIMIT`] how long its request may be, so the worst one can hold up other scrapers for some
//! seconds, and never a mount: nothing here is shared with reads but a few short locks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::log_limit::LogLimit;
use crate::metrics::exposition;
use crate::options::Status;

/// Connections that are answered at once: a scraper or two, and a person.
const PLACES: usize = 8;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the head of its request.
    pub head: Duration,
    /// From the beginning of the connection to the last byte of the answer.
    pub whole: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: Duration::from_secs(5), whole: Duration::from_secs(10) }
    }
}

/// The longest head of a request in bytes, and the most headers it may have.
const HEAD_LIMIT: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// The pause after a connection could not be accepted, which is mostly for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// Answers scrapers for ever; connections end with it when it is dropped.
pub async fn serve<S>(listener: UnixListener, limits: Limits, status: S)
where
    S: Fn() -> Status + Send + Sync + 'static,
{
    let status = Arc::new(status);
    let complaints = LogLimit::default();
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= PLACES {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(talk(stream, limits, Arc::clone(&status)));
                }
                Err(error) => {
                    if let Some(left_out) = complaints.allow(Instant::now()) {
                        warn!(%error, left_out, "cannot accept a client that asks for metrics");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn talk<S: Fn() -> Status>(stream: UnixStream, limits: Limits, status: Arc<S>) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &*status);
        async { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .keep_alive(false)
        // Who says all it has to say before it listens is answered, too.
        .half_close(true)
        .header_read_timeout(limits.head)
        .max_headers(MAX_HEADERS)
        .max_header_size(HEAD_LIMIT)
        .max_buf_size(HEAD_LIMIT);
    match tokio::time::timeout(limits.whole, http.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a client that asked for metrics was not answered"),
        Err(_) => debug!("a client that asked for metrics was too slow"),
    }
}

/// The answer to a request. The status is asked for only where it is shown.
fn answer(method: &Method, path: &str, status: impl Fn() -> Status) -> Response<String> {
    let (code, media, body) = match (method, path) {
        (&Method::GET, "/metrics") => (StatusCode::OK, exposition::CONTENT_TYPE, exposition::text(&status())),
        (&Method::GET, "/") => (StatusCode::OK, PLAIN, "fuse-oss: metrics are at /metrics\n".to_owned()),
        (_, "/metrics" | "/") => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET is answered here\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, PLAIN, "there is nothing here; metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    if code == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::ByteSize;
    use std::path::Path;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn status() -> Status {
        Status {
            pid: 1,
            worker: 2,
            before: 0,
            replaced: 0,
            version: "1.2.3".to_owned(),
            cache_dir: "/c".into(),
            cache_used: ByteSize::new(0),
            cache_size: ByteSize::new(0),
            memory_used: ByteSize::new(0),
            memory_limit: ByteSize::new(0),
            fetched: ByteSize::new(0),
            corrupt: 0,
            metrics: crate::metrics::Snapshot::default(),
            metrics_socket: None,
            mounts: vec![],
        }
    }

    async fn ask(socket: &Path, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut reply = Vec::new();
        // A refused client may be cut off while it is still being told; what has come counts.
        let _ = stream.read_to_end(&mut reply).await;
        String::from_utf8(reply).unwrap()
    }

    fn started(limits: Limits) -> (tempfile::TempDir, std::path::PathBuf, JoinSet<()>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let mut serving = JoinSet::new();
        serving.spawn(serve(UnixListener::bind(&socket).unwrap(), limits, status));
        (dir, socket, serving)
    }

    #[test]
    fn only_metrics_are_answered() {
        let ask = |method: Method, path| answer(&method, path, status);
        let metrics = ask(Method::GET, "/metrics");
        assert_eq!(metrics.status(), 200);
        assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        assert!(metrics.body().contains("fuse_oss_info{version=\"1.2.3\""), "{}", metrics.body());
        assert!(ask(Method::GET, "/").body().contains("/metrics"));
        let refused = ask(Method::POST, "/metrics");
        assert_eq!((refused.status().as_u16(), &refused.headers()["allow"]), (405, &HeaderValue::from_static("GET")));
        for path in ["/metrics/", "/metrics/../etc", "//", "/favicon.ico"] {
            assert_eq!(ask(Method::GET, path).status(), 404, "{path}");
        }
    }

    #[tokio::test]
    async fn it_speaks_http_and_closes() {
        let (_dir, socket, _serving) = started(Limits::default());
        let reply = ask(&socket, b"GET /metrics?x=y HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("connection: close"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(ask(&socket, b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 405 "));
        assert!(ask(&socket, b"hello there\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    }

    #[tokio::test]
    async fn a_head_without_end_is_cut_off() {
        let (_dir, socket, _serving) = started(Limits::default());
        let mut request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nx: ".to_vec();
        request.resize(4 * HEAD_LIMIT, b'a');
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        // It may hang up before it has heard everything.
        let _ = stream.write_all(&request).await;
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply).await;
        assert!(reply.is_empty() || reply.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&reply));
    }

    #[tokio::test]
    async fn silent_clients_are_sent_away_and_others_get_their_turn() {
        let long = Duration::from_secs(3600);
        let short = Duration::from_millis(20);
        for limits in [Limits { head: short, whole: long }, Limits { head: long, whole: short }] {
            let (_dir, socket, _serving) = started(limits);
            let mut silent = Vec::new();
            for _ in 0..3 * PLACES {
                let mut stream = UnixStream::connect(&socket).await.unwrap();
                stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
                silent.push(stream);
            }
            // On a busy machine even this one may be too slow for limits as short as these.
            while !ask(&socket, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.starts_with("HTTP/1.1 200 ")
            {
            }
            for mut stream in silent {
                let mut reply = Vec::new();
                let _ = stream.read_to_end(&mut reply).await;
                assert!(!reply.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&reply));
            }
        }
    }
}
