//! A lean object server in this process: path-style S3, read-only, signatures ignored.
//!
//! It is the yardstick's other end and must not be what is measured: it serves slices of one buffer without copying,
//! hashes nothing and keeps connections. What it can do with a given number of connections is measured in every run ("raw
//! HTTP"). Latency and bandwidth can be added, as real storage has them.

mod answer;
mod listing;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use crate::content::World;

/// The only bucket.
pub const BUCKET: &str = "bench";

/// How far away the store seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions {
    /// Pause before each answer.
    pub latency: Duration,
    /// Bytes per second that one connection carries; 0 is unlimited.
    pub bandwidth: u64,
}

impl Conditions {
    /// As real storage in the same region is: 20 ms per request, 90 MB/s per connection.
    pub const FAR: Self = Self { latency: Duration::from_millis(20), bandwidth: 90_000_000 };
}

/// What the server was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Requests of all kinds.
    pub requests: u64,
    /// Those of them that named an object (GET and HEAD): the rest are listings.
    pub objects: u64,
    /// Bytes of objects handed to connections. A client that hangs up early may have got fewer.
    pub bytes: u64,
}

impl Traffic {
    /// What came after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests - earlier.requests,
            objects: self.objects - earlier.objects,
            bytes: self.bytes - earlier.bytes,
        }
    }
}

/// What connections share with the owner.
#[derive(Debug)]
struct Shared {
    world: World,
    latency_micros: AtomicU64,
    bandwidth: AtomicU64,
    requests: AtomicU64,
    objects: AtomicU64,
    bytes: AtomicU64,
}

/// The running server; ends when dropped.
#[derive(Debug)]
pub struct Server {
    port: u16,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Server {
    /// Serves `world` on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port or thread can be had.
    pub fn start(world: World) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            world,
            latency_micros: AtomicU64::new(0),
            bandwidth: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let threads = std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8));
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("store")
            .enable_all()
            .build()
            .context("cannot start the object server's threads")?;
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("cannot listen on 127.0.0.1 for the object server")?;
        let port = listener.local_addr().context("the object server's socket has no address")?.port();
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { port, shared, runtime: Some(runtime) })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it serves.
    pub fn world(&self) -> &World {
        &self.shared.world
    }

    /// Seems to be this far away from now on.
    pub fn set_conditions(&self, conditions: Conditions) {
        let micros = u64::try_from(conditions.latency.as_micros()).unwrap_or(u64::MAX);
        self.shared.latency_micros.store(micros, Ordering::Relaxed);
        self.shared.bandwidth.store(conditions.bandwidth, Ordering::Relaxed);
    }

    /// What it was asked for so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            requests: self.shared.requests.load(Ordering::Relaxed),
            objects: self.shared.objects.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Small answers must not wait for a full packet; where it cannot be set the figures show it.
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer::answer(Arc::clone(&shared), request));
            // Errors here are the client's: it went away, or spoke no HTTP.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Connection;

    #[test]
    fn objects_ranges_listings_and_what_is_missing() {
        let mut world = World::new();
        world.add("a b/ü.bin", 3 << 20);
        world.add("empty", 0);
        let server = Server::start(world).unwrap();
        let object = server.world().get("a b/ü.bin").unwrap();
        let mut raw = Connection::open(server.port()).unwrap();
        let mut body = Vec::new();
        assert_eq!(raw.get("a%20b/%C3%BC.bin", Some(5..2 << 20), &mut body).unwrap(), 206);
        assert_eq!(body.len(), (2 << 20) - 5);
        assert!(server.world().matches(object, 5, &body));
        // On the same connection, whole, beyond the end, and not there.
        assert_eq!(raw.get("a%20b/%C3%BC.bin", None, &mut body).unwrap(), 200);
        assert!(body.len() == 3 << 20 && server.world().matches(object, 0, &body));
        assert_eq!(raw.get("a%20b/%C3%BC.bin", Some(3 << 20..4 << 20), &mut body).unwrap(), 416);
        assert_eq!(raw.get("empty", None, &mut body).unwrap(), 200);
        assert!(body.is_empty());
        assert_eq!(raw.get("nothing", None, &mut body).unwrap(), 404);
        assert_eq!(raw.get("?list-type=2&encoding-type=url", None, &mut body).unwrap(), 200);
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains("<Key>a%20b/%C3%BC.bin</Key>") && text.contains("<KeyCount>2</KeyCount>"), "{text}");
        assert_eq!((server.traffic().requests, server.traffic().objects), (6, 5));
        assert_eq!(server.traffic().bytes, (2 << 20) - 5 + (3 << 20));
    }

    #[test]
    fn latency_and_bandwidth_are_at_least_what_was_asked() {
        let mut world = World::new();
        world.add("x", 1 << 20);
        let server = Server::start(world).unwrap();
        server.set_conditions(Conditions { latency: Duration::from_millis(50), bandwidth: 10 << 20 });
        let mut raw = Connection::open(server.port()).unwrap();
        let mut body = Vec::new();
        let start = std::time::Instant::now();
        raw.get("x", None, &mut body).unwrap();
        // A tenth of a second for the body, all but its last piece, after the latency.
        assert!(start.elapsed() >= Duration::from_millis(140), "{:?}", start.elapsed());
        assert_eq!(body.len(), 1 << 20);
    }
}
