//! A server that is told what happens: it keeps every request, and can be down.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Map, Value, json};

use crate::http_server::Server;

#[derive(Debug, Default)]
struct Kept {
    requests: Mutex<Vec<Value>>,
    is_down: AtomicBool,
    refused: AtomicU32,
    lost: AtomicU32,
}

/// The server.
#[derive(Debug)]
pub struct Receiver {
    server: Server,
    kept: Arc<Kept>,
}

impl Receiver {
    /// One that takes everything.
    pub fn start() -> Self {
        let kept = Arc::new(Kept::default());
        let server = Server::start({
            let kept = Arc::clone(&kept);
            move |request| kept.answer(request)
        });
        Self { server, kept }
    }

    /// Its address, without a path.
    pub fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// Whether it answers with 503 from now on.
    pub fn set_down(&self, is_down: bool) {
        self.kept.is_down.store(is_down, Ordering::SeqCst);
    }

    /// The replies to the next so many requests get lost: it has taken them, and says 500.
    pub fn lose_replies(&self, count: u32) {
        self.kept.lost.store(count, Ordering::SeqCst);
    }

    /// How many requests came while it was down.
    pub fn refused(&self) -> u32 {
        self.kept.refused.load(Ordering::SeqCst)
    }

    /// What it has taken: `method`, `path`, `headers` and `body`.
    pub fn requests(&self) -> Vec<Value> {
        self.kept.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The bodies, as JSON.
    ///
    /// # Panics
    /// When one is none.
    pub fn events(&self) -> Vec<Value> {
        let body = |request: &Value| serde_json::from_str(request["body"].as_str().unwrap_or_default());
        self.requests().iter().map(|request| body(request).expect("an event is JSON")).collect()
    }

    /// The names of the events in the order in which they came, each told once however often it came.
    pub fn names(&self) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let events = self.events().into_iter();
        events
            .filter(|event| seen.insert(text(&event["EventId"]).or(text(&event["id"]))))
            .filter_map(|event| text(&event["Event"]).or(text(&event["event"])))
            .collect()
    }

    /// Writes what it has taken into a file, a request per line.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: &Path) {
        let mut file = std::fs::File::create(path).expect("a file");
        for request in self.requests() {
            writeln!(file, "{request}").expect("a line");
        }
    }
}

impl Kept {
    fn answer(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let with = |status: u16| {
            let mut response = Response::new(Bytes::from_static(b"<Message/>"));
            *response.status_mut() = status.try_into().expect("a status");
            response
        };
        if self.is_down.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return with(503);
        }
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), Value::from(String::from_utf8_lossy(value.as_bytes())))
        };
        let headers: Map<String, Value> = request.headers().iter().map(header).collect();
        let kept = json!({
            "method": request.method().as_str(),
            "path": request.uri().path(),
            "headers": headers,
            "body": String::from_utf8_lossy(request.body()),
        });
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
        let lost = self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        with(if lost.is_ok() { 500 } else { 201 })
    }
}
