//! A lean object server in this process: path-style S3, signatures ignored. What is uploaded is counted and sampled, not kept.
//!
//! It is the yardstick's other end and must not be what is measured, nor take the processors from what is: there is no
//! framework, only a blocking thread for every connection, which writes straight from the buffer that all objects are cut from.
//! (`sendfile` from a file in memory was tried: on the loopback device it costs half as much processor time again, in the
//! receiver most of all, which then copies page by page.) What it can do with a given number of connections is measured in every
//! run ("raw HTTP"). Latency and bandwidth can be added, as real storage has them; threads sleep to within a tenth of a
//! millisecond.

mod answer;
mod connection;
mod listing;
mod upload;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::content::{Object, World};
use upload::Uploads;

/// The only bucket.
pub const BUCKET: &str = "bench";

/// A connection's thread needs little.
const STACK: usize = 256 << 10;

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
    /// Those of them that named an object: the rest are listings.
    pub objects: u64,
    /// Bytes of objects handed to connections. A client that hangs up early may have got fewer.
    pub bytes: u64,
    /// Bytes that came in the bodies of requests, frames included.
    pub taken: u64,
}

impl Traffic {
    /// What came after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests - earlier.requests,
            objects: self.objects - earlier.objects,
            bytes: self.bytes - earlier.bytes,
            taken: self.taken - earlier.taken,
        }
    }
}

/// What connections share with the owner.
#[derive(Debug)]
struct Shared {
    world: World,
    uploads: Uploads,
    latency_micros: AtomicU64,
    bandwidth: AtomicU64,
    requests: AtomicU64,
    objects: AtomicU64,
    bytes: AtomicU64,
    taken: AtomicU64,
    ending: AtomicBool,
    /// What is open, by number, so that it can be hung up at the end.
    open: Mutex<HashMap<u64, TcpStream>>,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn conditions(&self) -> Conditions {
        Conditions {
            latency: Duration::from_micros(self.latency_micros.load(Ordering::Relaxed)),
            bandwidth: self.bandwidth.load(Ordering::Relaxed),
        }
    }
}

/// The running server; ends when dropped.
#[derive(Debug)]
pub struct Server {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `world` on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port or thread can be had.
    pub fn start(world: World) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            world,
            uploads: Uploads::default(),
            latency_micros: AtomicU64::new(0),
            bandwidth: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            open: Mutex::new(HashMap::new()),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.context("cannot listen on 127.0.0.1 for the object server")?;
        let port = listener.local_addr().context("the object server's socket has no address")?.port();
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || accept(&listener, &accepting))
            .context("cannot start the object server's thread")?;
        Ok(Self { port, shared, acceptor: Some(acceptor) })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it serves.
    pub fn world(&self) -> &World {
        &self.shared.world
    }

    /// Forgets what was uploaded so far, and compares it with what should have been: each key once, of its length, and with the right
    /// bytes in all places that were looked at.
    ///
    /// # Errors
    /// With the first difference.
    pub fn judge_uploads(&self, expected: &[(String, Object)]) -> anyhow::Result<()> {
        let mut came = self.shared.uploads.take();
        for (key, object) in expected {
            let taken = came.remove(key).with_context(|| format!("{key} was not uploaded"))?;
            let (is, should) = (taken.size(), object.size);
            ensure!(taken.is(self.world(), *object), "WRONG BYTES in {key}, of which {is} came and not {should}");
        }
        if let Some(key) = came.keys().next() {
            anyhow::bail!("{} objects more were uploaded than should have been, such as {key}", came.len());
        }
        ensure!(!self.shared.uploads.is_open(), "an upload in parts was neither completed nor given up");
        Ok(())
    }

    /// Forgets what was uploaded so far.
    pub fn forget_uploads(&self) {
        self.shared.uploads.take();
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
            taken: self.shared.taken.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        // Wakes the acceptor; when it cannot be reached it is not waiting.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        // Their threads see the end of the stream.
        self.shared.open().values().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for number in 0.. {
        let Ok((stream, _)) = listener.accept() else { continue };
        if shared.ending.load(Ordering::SeqCst) {
            return;
        }
        // Small answers must not wait for a full packet; where it cannot be set the figures show it.
        let _ = stream.set_nodelay(true);
        let Ok(other) = stream.try_clone() else { continue };
        shared.open().insert(number, other);
        let serving = Arc::clone(shared);
        let thread = std::thread::Builder::new().name("store".to_owned()).stack_size(STACK).spawn(move || {
            // Errors here are the client's: it went away, or spoke no HTTP.
            let _ = connection::serve(&stream, &serving);
            serving.open().remove(&number);
        });
        if thread.is_err() {
            shared.open().remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Connection;

    #[test]
    fn objects_ranges_listings_and_what_is_missing() {
        let mut world = World::new();
        world.add("a b/ü.bin", 20 << 20);
        world.add("empty", 0);
        let server = Server::start(world).unwrap();
        let object = server.world().get("a b/ü.bin").unwrap();
        let mut raw = Connection::open(server.port()).unwrap();
        let mut body = Vec::new();
        // Large and small, both across the place where the buffer begins again (it has 8 MiB and a bit), and on one connection.
        for (from, to) in [(5, 19 << 20), ((5 << 20) + 1, (5 << 20) + 4097), (0, 1)] {
            assert_eq!(raw.get("a%20b/%C3%BC.bin", Some(from..to), &mut body).unwrap(), 206);
            assert_eq!(body.len() as u64, to - from);
            assert!(server.world().matches(object, from, &body));
        }
        // Whole, beyond the end, and not there.
        assert_eq!(raw.get("a%20b/%C3%BC.bin", None, &mut body).unwrap(), 200);
        assert!(body.len() == 20 << 20 && server.world().matches(object, 0, &body));
        assert_eq!(raw.get("a%20b/%C3%BC.bin", Some(20 << 20..21 << 20), &mut body).unwrap(), 416);
        assert_eq!(raw.get("empty", None, &mut body).unwrap(), 200);
        assert!(body.is_empty());
        assert_eq!(raw.get("nothing", None, &mut body).unwrap(), 404);
        assert_eq!(raw.get("?list-type=2&encoding-type=url", None, &mut body).unwrap(), 200);
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains("<Key>a%20b/%C3%BC.bin</Key>") && text.contains("<KeyCount>2</KeyCount>"), "{text}");
        assert_eq!((server.traffic().requests, server.traffic().objects), (8, 7));
        assert_eq!(server.traffic().bytes, (19 << 20) - 5 + 4096 + 1 + (20 << 20));
        drop(server);
        assert!(raw.get("empty", None, &mut body).is_err());
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
        // A tenth of a second for the body, after the latency.
        assert!(start.elapsed() >= Duration::from_millis(150), "{:?}", start.elapsed());
        assert!(server.world().matches(server.world().get("x").unwrap(), 0, &body) && body.len() == 1 << 20);
    }
}
