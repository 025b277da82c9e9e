//! The smallest HTTP server that a double can be made of: one function from request to response.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::listener::Listener;

type Handler = dyn Fn(&Request<Bytes>) -> Response<Bytes> + Send + Sync;

/// A server on a free port of 127.0.0.1, on a thread of its own. Dropping it closes its connections.
pub struct Server(Listener);

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("port", &self.0.port()).finish_non_exhaustive()
    }
}

impl Server {
    /// Starts answering requests with `handler`. It may be called inside a runtime and outside.
    ///
    /// # Panics
    /// When no port or thread can be had.
    pub fn start(handler: impl Fn(&Request<Bytes>) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        let handler: Arc<Handler> = Arc::new(handler);
        Self(Listener::start("http-double", move |socket| serve(socket, Arc::clone(&handler))))
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port())
    }
}

async fn serve(socket: TcpStream, handler: Arc<Handler>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        async move {
            let (parts, body) = request.into_parts();
            // A body that breaks off leaves a client that will not read the answer either.
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            Ok::<_, Infallible>(handler(&Request::from_parts(parts, body)).map(Full::new))
        }
    });
    // Errors here are the client's: it went away, or spoke no HTTP.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}
