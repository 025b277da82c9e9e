//! A forward proxy as companies have them: requests with an absolute URI, and tunnels by CONNECT.
//!
//! Whatever name it is asked for, it goes to one port of 127.0.0.1, so that a test can reach a double under the name of a
//! vendor's endpoint. It remembers what it was asked.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{HeaderMap, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::client;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::listener::Listener;

/// What the proxy does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conduct {
    /// Carries it out.
    Forward,
    /// Carries it out for whoever sends this as `Proxy-Authorization`, and answers others with 407.
    Demand(String),
    /// Answers with this status.
    Refuse(u16),
    /// Closes the connection without a word.
    HangUp,
}

/// A request as the proxy saw it.
#[derive(Debug, Clone)]
pub struct Proxied {
    /// Its method; `CONNECT` for a tunnel.
    pub method: String,
    /// Its target as it was written: an absolute URI, or host and port for a tunnel.
    pub target: String,
    /// Its headers.
    pub headers: HeaderMap,
}

impl Proxied {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

#[derive(Debug)]
struct State {
    port: u16,
    conduct: Conduct,
    seen: Vec<Proxied>,
}

/// A running proxy. Dropping it closes its connections.
#[derive(Debug)]
pub struct Proxy {
    listener: Listener,
    state: Arc<Mutex<State>>,
}

type Body = Either<Incoming, Empty<Bytes>>;

impl Proxy {
    /// Starts one that passes everything on to `port` of 127.0.0.1.
    ///
    /// # Panics
    /// When no port or thread can be had.
    pub fn start(port: u16) -> Self {
        let state = Arc::new(Mutex::new(State { port, conduct: Conduct::Forward, seen: Vec::new() }));
        let served = Arc::clone(&state);
        let listener = Listener::start("proxy", move |socket| serve(socket, Arc::clone(&served)));
        Self { listener, state }
    }

    /// `127.0.0.1:PORT`.
    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.listener.port())
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.authority())
    }

    /// Changes what it does from the next request on.
    pub fn set_conduct(&self, conduct: Conduct) {
        lock(&self.state).conduct = conduct;
    }

    /// Every request so far, in the order of arrival.
    pub fn seen(&self) -> Vec<Proxied> {
        lock(&self.state).seen.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(socket: TcpStream, state: Arc<Mutex<State>>) {
    // If it cannot be set, tests are slower and still right.
    let _ = socket.set_nodelay(true);
    let service = service_fn(|request| answer(request, Arc::clone(&state)));
    // Errors are the client's, which went away, or were wanted.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades().await;
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> io::Result<Response<Body>> {
    let (conduct, port) = {
        let mut state = lock(&state);
        state.seen.push(Proxied {
            method: request.method().to_string(),
            target: request.uri().to_string(),
            headers: request.headers().clone(),
        });
        (state.conduct.clone(), state.port)
    };
    match conduct {
        Conduct::Forward => {}
        Conduct::HangUp => return Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
        Conduct::Refuse(status) => return Ok(short(StatusCode::from_u16(status).map_err(io::Error::other)?)),
        Conduct::Demand(credentials) => {
            if request.headers().get(PROXY_AUTHORIZATION).is_none_or(|sent| sent.as_bytes() != credentials.as_bytes()) {
                let mut refusal = short(StatusCode::PROXY_AUTHENTICATION_REQUIRED);
                refusal.headers_mut().insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"tests\""));
                return Ok(refusal);
            }
        }
    }
    let Ok(upstream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
        return Ok(short(StatusCode::BAD_GATEWAY));
    };
    if request.method() == Method::CONNECT {
        tokio::spawn(tunnel(request, upstream));
        return Ok(short(StatusCode::OK));
    }
    Ok(forward(request, upstream).await.unwrap_or_else(|_| short(StatusCode::BAD_GATEWAY)))
}

fn short(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Either::Right(Empty::new()));
    *response.status_mut() = status;
    response
}

async fn tunnel(request: Request<Incoming>, mut upstream: TcpStream) {
    // Either end may hang up at any time.
    if let Ok(client) = hyper::upgrade::on(request).await {
        let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut upstream).await;
    }
}

/// Passes a request on with the path as it came, byte for byte, which signatures depend on.
async fn forward(mut request: Request<Incoming>, upstream: TcpStream) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    // The path was part of a URI before; without the host it still is one.
    *request.uri_mut() = path.parse::<Uri>().expect("a path is a URI");
    request.headers_mut().remove(PROXY_AUTHORIZATION);
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(upstream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?.map(Either::Left))
}
