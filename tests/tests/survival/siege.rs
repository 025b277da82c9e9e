//! Readers and writers at work in two mounts of one server, and an eye on all of them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tests::bucket::{Bucket, sample};
use tests::double::{Fault, Often, Operation, When};
use tests::mounts::Sandbox;
use tests::view::View;

use super::readers::Reader;
use super::server::Server;
use super::writers::Writer;

/// What is never reached unless something waits for ever.
const HANGS: Duration = Duration::from_secs(120);

/// What all readers read: four times what the cache holds.
const OBJECTS: u64 = 8;
const OBJECT_LEN: u64 = 16 << 20;
const CACHE: &str = "32MiB";
const MEMORY: &str = "64MiB";

/// How long the store takes for an answer.
const STORE_DELAY: Duration = Duration::from_millis(10);

/// How many work at once.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Half of them read, half have page faults; half of each in the view, half in a mount that cannot be written to.
    pub readers: usize,
    /// Each in its own part of the view.
    pub writers: usize,
}

/// The mounts and what is known of those who use them.
#[derive(Debug)]
pub struct Siege {
    load: Load,
    view: View,
    objects: Vec<Bytes>,
    watch: Watch,
    writers: Mutex<Vec<Writer>>,
}

/// Shared by all who are at work.
#[derive(Debug)]
pub struct Watch {
    begun: Instant,
    stop: AtomicBool,
    /// What must not be.
    wrong: Mutex<Vec<String>>,
    /// For each who works: when its operation began, in milliseconds after `begun`, and one; 0 between two.
    since: Vec<AtomicU64>,
    operations: [AtomicU64; 2],
    /// Microseconds.
    slowest: [AtomicU64; 2],
}

/// What an operation is, for the account.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Of unmodified remote files.
    Read,
    /// Anything in the view.
    Write,
}

impl Watch {
    /// Does an operation under the eye of the watch.
    pub fn timed<T>(&self, who: usize, kind: Kind, operation: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let since = u64::try_from((begun - self.begun).as_millis()).unwrap_or(u64::MAX - 1) + 1;
        self.since[who].store(since, Ordering::Relaxed);
        let done = operation();
        self.since[who].store(0, Ordering::Relaxed);
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.slowest[kind as usize].fetch_max(took, Ordering::Relaxed);
        self.operations[kind as usize].fetch_add(1, Ordering::Relaxed);
        done
    }

    /// Says what must not be, and ends it all.
    pub fn wrong(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether to go on.
    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn is_hanging(&self) -> Option<usize> {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let limit = u64::try_from(HANGS.as_millis()).unwrap_or(u64::MAX);
        self.since.iter().position(|since| {
            let since = since.load(Ordering::Relaxed);
            since != 0 && now.saturating_sub(since) > limit
        })
    }

    fn done(&self) -> [u64; 2] {
        [&self.operations[0], &self.operations[1]].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Siege {
    /// Mounts a slow bucket twice: as it is, and as a view.
    pub fn lay(load: Load) -> Self {
        let view = View::of(Bucket::new().cache_size(CACHE).memory_limit(MEMORY));
        let objects: Vec<Bytes> = (0..OBJECTS).map(|number| sample(number, OBJECT_LEN + number * 1001)).collect();
        for (number, object) in objects.iter().enumerate() {
            view.bucket.put(&format!("objects/{number}"), object.clone());
        }
        let writers: Vec<Writer> = (0..load.writers).map(Writer::new).collect();
        for writer in &writers {
            writer.stored().for_each(|(key, bytes)| view.bucket.put(&key, bytes));
        }
        let slow = When::any().operation(Operation::GetObject);
        view.bucket.double.fault(Fault::Latency(STORE_DELAY), slow, Often::Always);
        view.mount();
        view.mount_read_only();
        let watch = Watch {
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            wrong: Mutex::default(),
            since: (0..load.readers + load.writers).map(|_| AtomicU64::new(0)).collect(),
            operations: Default::default(),
            slowest: Default::default(),
        };
        Self { load, view, objects, watch, writers: Mutex::new(writers) }
    }

    /// Lets everybody work while `trouble` is made, and looks at everything when that is over.
    ///
    /// # Panics
    /// When anybody has seen an error or a wrong byte, or something hangs.
    pub fn run(&self, trouble: impl FnOnce(&Self, &Sandbox)) {
        let sandbox = &self.view.bucket.sandbox;
        let server = Server::of(sandbox);
        let mut writers = std::mem::take(&mut *self.writers.lock().unwrap());
        let (view, plain) = (self.view.root(), self.view.read_only());
        std::thread::scope(|scope| {
            for who in 0..self.load.readers {
                let root: &Path = if who % 4 < 2 { &view } else { &plain };
                let reader = Reader { who, mapped: who % 2 == 0, in_order: who % 8 < 4, folder: root.join("objects") };
                scope.spawn(move || reader.work(&self.watch, &self.objects));
            }
            for writer in &mut writers {
                let who = self.load.readers + writer.number();
                let root = &view;
                scope.spawn(move || writer.work(&self.watch, who, root));
            }
            let _end = Ending(self, server);
            self.wait_for_progress();
            trouble(self, sandbox);
            self.wait_for_progress();
        });
        // Whatever a process of now says.
        self.watch.stop.store(true, Ordering::Relaxed);
        let wrong = self.watch.wrong.lock().unwrap();
        assert!(
            wrong.is_empty(),
            "{} things went wrong, first:\n{}",
            wrong.len(),
            wrong[..wrong.len().min(5)].join("\n")
        );
        writers.iter().for_each(|writer| writer.check(&view));
    }

    /// Whether nothing has gone wrong so far.
    pub fn is_well(&self) -> bool {
        if let Some(who) = self.watch.is_hanging() {
            let what = if who < self.load.readers { "reader" } else { "writer" };
            self.watch.wrong(format!("{what} {who} has waited for more than {HANGS:?}"));
        }
        self.watch.goes_on()
    }

    /// Waits until as many reads as there are readers, and as many writes, have been done.
    pub fn wait_for_progress(&self) {
        let before = self.watch.done();
        let enough = |now: [u64; 2]| {
            let due = [self.load.readers, self.load.writers].map(|count| u64::try_from(count).unwrap());
            now[0] >= before[0] + due[0] && now[1] >= before[1] + due[1]
        };
        while self.is_well() && !enough(self.watch.done()) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What was done, for people.
    pub fn account(&self) -> String {
        let [reads, writes] = self.watch.done();
        let slowest = |kind: Kind| Duration::from_micros(self.watch.slowest[kind as usize].load(Ordering::Relaxed));
        format!(
            "{reads} reads, the slowest {:?}; {writes} changes, the slowest {:?}",
            slowest(Kind::Read),
            slowest(Kind::Write)
        )
    }

    /// Unmounts.
    pub fn end(self) {
        let Self { view, .. } = self;
        view.unmount();
        for number in 0..OBJECTS {
            let stored = view.bucket.double.get(tests::bucket::NAME, &format!("objects/{number}"));
            assert!(stored.unwrap() == sample(number, OBJECT_LEN + number * 1001));
        }
    }
}

/// Ends the work, also when the trouble has panicked; and those who hang, by ending the server they wait for.
struct Ending<'a>(&'a Siege, Server);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.watch.stop.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        let works = |since: &AtomicU64| since.load(Ordering::Relaxed) != 0;
        while self.0.watch.since.iter().any(works) {
            if begun.elapsed() > HANGS {
                self.0.watch.wrong("somebody still waits when all is over".to_owned());
                // Without descriptors the kernel gives up the connection, and whoever waits gets an error.
                super::server::kill(self.1.keeper);
                self.0.view.bucket.sandbox.end_server(nix::sys::signal::Signal::SIGKILL);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The first difference, for people.
pub fn difference(what: &str, got: &[u8], wanted: &[u8]) -> String {
    let at = got.iter().zip(wanted).position(|(one, other)| one != other).unwrap_or(got.len().min(wanted.len()));
    format!("{what}: wrong at {at}; {} bytes where {} should be", got.len(), wanted.len())
}
