//! Our own double of the OSS and S3 protocols: a server in this process, with its objects in memory.
//!
//! It exists to catch the client's mistakes, so it shares no code with it and forgives nothing: signatures are
//! checked against the bytes that arrived, limits are the services' own, and what the double does not know is an error
//! and never a silent success. Other people's SDKs are run against it to show that it is the services' protocol
//! that it speaks, and not the client's idea of it.
//!
//! ```
//! use tests::double::{Double, DoubleConfig, Fault, Often, When};
//!
//! let double = Double::start(DoubleConfig::default());
//! double.put("test-bucket", "greeting", "hello");
//! // The next request for anything below logs/ is answered with 503.
//! double.fault(Fault::SlowDown { retry_after: None }, When::any().prefix("logs/"), Often::Next(1));
//! // ... a client at work at double.endpoint() with the key test-key / test-secret ...
//! assert_eq!(double.get("test-bucket", "greeting").unwrap(), b"hello");
//! assert_eq!(double.requests().len(), 0);
//! ```
//!
//! The server runs on a thread with a runtime of its own, so that tests with and without a runtime can use it, and is gone
//! when the [`Double`] is dropped.

mod answer;
mod append;
mod auth;
mod checksum;
mod config;
mod content;
mod error;
mod fault;
mod generated;
mod listing;
mod log;
mod multipart;
mod object;
mod operation;
mod oss_v4;
mod request;
mod server;
mod sigv4;
mod spill;
mod time;
mod v1;
mod world;
mod xml;

#[cfg(test)]
mod wire_tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::SystemTime;

use tokio::net::TcpSocket;
use tokio::sync::mpsc;

pub use config::{AccessKey, Action, BucketConfig, Deny, Dialect, DoubleConfig, KEYS, environment};
pub use content::Content;
pub use fault::{Fault, FaultId, Often, When};
pub use generated::Generated;
pub use log::Request;
pub use operation::Operation;
pub use server::Outage;
pub use world::{Object, ObjectKind, Part, Upload};

use fault::Faults;
use server::{Command, Shared};
use world::{Bucket, World};

/// A running double. Dropping it closes every connection and joins its thread.
#[derive(Debug)]
pub struct Double {
    shared: Arc<Shared>,
    port: u16,
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
    /// Bound and never listening: keeps the port ours while an outage has closed the one that listens.
    _reservation: TcpSocket,
}

impl Double {
    /// Starts a double.
    ///
    /// # Panics
    /// When the port cannot be bound.
    pub fn start(config: DoubleConfig) -> Self {
        let port = config.port;
        match Self::try_start(config) {
            Ok(double) => double,
            Err(error) => panic!("the storage double cannot listen on 127.0.0.1:{port}: {error}"),
        }
    }

    /// Starts a double.
    ///
    /// # Errors
    /// When the port cannot be bound or no thread can be made.
    pub fn try_start(config: DoubleConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            faults: Mutex::new(Faults::new(config.seed)),
            log: Mutex::default(),
            connections: AtomicU64::new(0),
            spill: config.spill.clone(),
            world: Mutex::new(World::new(config.clone())),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store-double")
            .enable_all()
            .build()?;
        let (reservation, listener, port) = {
            // Sockets register with the runtime they are made in.
            let _inside = runtime.enter();
            let reservation = server::bind(config.port)?;
            let port = reservation.local_addr()?.port();
            (reservation, server::bind(port)?.listen(server::BACKLOG)?, port)
        };
        let (commands, inbox) = mpsc::unbounded_channel();
        let server = server::run(Arc::clone(&shared), listener, port, inbox);
        let thread = std::thread::Builder::new().name("store-double".to_owned()).spawn(move || {
            runtime.block_on(server);
            // Connections that hang on purpose must not hold the test up.
            runtime.shutdown_background();
        })?;
        Ok(Self { shared, port, commands, thread: Some(thread), _reservation: reservation })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn world(&self) -> MutexGuard<'_, World> {
        operation::lock(&self.shared.world)
    }

    fn with_bucket<T>(&self, name: &str, use_it: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut world = self.world();
        let Some(bucket) = world.buckets.get_mut(name) else { panic!("the double has no bucket {name:?}") };
        use_it(bucket)
    }

    /// Makes a bucket.
    pub fn add_bucket(&self, config: BucketConfig) {
        self.world().add_bucket(config);
    }

    /// Puts an object there, as if somebody had uploaded it in one piece.
    ///
    /// # Panics
    /// When there is no such bucket, as all of these do.
    pub fn put(&self, bucket: &str, key: &str, content: impl Into<Content>) {
        let object = world::plain_object(content.into(), self.world().now());
        self.with_bucket(bucket, |bucket| bucket.objects.insert(key.to_owned(), object));
    }

    /// Has a directory of objects made up while it is listed and read; nothing else of that prefix is listed then.
    pub fn generate(&self, bucket: &str, generated: Generated) {
        self.with_bucket(bucket, |bucket| bucket.generated = Some(generated));
    }

    /// The bytes of an object.
    pub fn get(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        self.object(bucket, key).map(|object| object.bytes())
    }

    /// An object as it is now.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Object> {
        self.with_bucket(bucket, |bucket| bucket.objects.get(key).cloned())
    }

    /// All objects of a bucket as they are now.
    pub fn objects(&self, bucket: &str) -> BTreeMap<String, Object> {
        self.with_bucket(bucket, |bucket| bucket.objects.clone())
    }

    /// Deletes an object; whether there was one.
    pub fn delete(&self, bucket: &str, key: &str) -> bool {
        self.with_bucket(bucket, |bucket| bucket.objects.remove(key).is_some())
    }

    /// Moves an object to the archive tier, where it cannot be read, or back; whether there was one.
    pub fn set_archived(&self, bucket: &str, key: &str, archived: bool) -> bool {
        self.with_bucket(bucket, |bucket| {
            bucket.objects.get_mut(key).map(|object| object.archived = archived).is_some()
        })
    }

    /// The multipart uploads that are neither completed nor aborted.
    pub fn uploads(&self, bucket: &str) -> Vec<Upload> {
        self.with_bucket(bucket, |bucket| bucket.uploads.values().cloned().collect())
    }

    /// Replaces the keys that are known, as when credentials are rotated or rights are taken away.
    pub fn set_keys(&self, keys: Vec<AccessKey>) {
        self.world().keys = keys;
    }

    /// Sets how far the server's clock is ahead of ours, in seconds.
    pub fn set_clock_offset(&self, seconds: i64) {
        self.world().clock_offset = seconds;
    }

    /// The time by the server's clock.
    pub fn now(&self) -> SystemTime {
        self.world().now()
    }

    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log(|log| log.clone())
    }

    /// How many requests there were of which this is true.
    pub fn count(&self, condition: impl Fn(&Request) -> bool) -> usize {
        self.shared.log(|log| log.iter().filter(|request| condition(request)).count())
    }

    /// The most requests of which this is true that were waited for at the same moment.
    pub fn most_at_once(&self, condition: impl Fn(&Request) -> bool) -> usize {
        self.shared.log(|log| log::most_at_once(log.iter().filter(|request| condition(request))))
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.log(Vec::clear);
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Switches a fault on.
    pub fn fault(&self, fault: Fault, when: When, often: Often) -> FaultId {
        self.shared.faults(|faults| faults.add(fault, when, often))
    }

    /// Switches on every fault that a client has to survive without losing or changing a byte, each with this
    /// probability. A wrong byte comes only in GETs without a range: in one with a range nobody could see it.
    pub fn trouble(&self, chance: f64) -> Vec<FaultId> {
        let faults = [
            (Fault::InternalError, When::any()),
            (Fault::SlowDown { retry_after: None }, When::any()),
            (Fault::ResetEarly, When::any()),
            (Fault::ResetLate, When::any()),
            (Fault::LoseReply, When::any()),
            (Fault::Stall, When::any()),
            (Fault::StallUpload, When::any()),
            (Fault::StallBody { after: 1 }, When::any()),
            (Fault::Slow { bytes_per_second: 1 << 20 }, When::any()),
            (Fault::Truncate, When::any()),
            (Fault::WrongByte, When::any().ranged(false)),
            (Fault::WrongUpload, When::any()),
            (Fault::ErrorInside200, When::any().that(|request| request.dialect == Dialect::S3)),
        ];
        faults.into_iter().map(|(fault, when)| self.fault(fault, when, Often::Chance(chance))).collect()
    }

    /// How often a fault has happened, also after it was switched off.
    pub fn happened(&self, id: FaultId) -> u64 {
        self.shared.faults(|faults| faults.happened(id))
    }

    /// Switches one fault off.
    pub fn remove_fault(&self, id: FaultId) {
        self.shared.faults(|faults| faults.remove(id));
    }

    /// Switches all faults off.
    pub fn clear_faults(&self) {
        self.shared.faults(Faults::clear);
    }

    /// Makes the whole server unreachable. When this returns, nobody can connect any more; connections that are open go
    /// dead at the same time.
    pub fn outage(&self, kind: Outage) {
        self.set_outage(Some(kind));
    }

    /// Makes it reachable again, at the same port. When this returns, it is.
    pub fn restore(&self) {
        self.set_outage(None);
    }

    fn set_outage(&self, outage: Option<Outage>) {
        let (done, wait) = std::sync::mpsc::channel();
        // Both fail only if the server's thread has panicked, and then it is as unreachable as can be.
        if self.commands.send(Command::Outage(outage, done)).is_ok()
            && let Ok(Err(error)) = wait.recv()
        {
            panic!("the storage double cannot listen on 127.0.0.1:{} again: {error}", self.port);
        }
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the server's thread has been printed; one more here would end the process.
            let _ = thread.join();
        }
    }
}
