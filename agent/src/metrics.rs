//! What the node and its tasks use: processors, memory, disks, network, graphics processors, object mounts.
//!
//! One thread takes a sample every five seconds ([`INTERVAL`]), more often while a task is young. It reads files of `/proc` and of
//! control groups, which the kernel answers at once; whatever could hang (a dead mount, a driver's tool, the server of object mounts) is
//! asked beside it (`question`) and never waited for. Samples go where somebody wants them:
//!
//! - a [`Recording`] is what one task used: a line of JSON every thirty seconds, curves for its report, figures for its outcome;
//! - [`Metrics::latest`] is what the node uses now, for Prometheus and `batch-agent status`.
//!
//! Files are read directly and not through a library: that is a handful of small parsers, costs a third of a millisecond, and knows the
//! roles of disks, pressure and control groups.

pub mod exposition;
mod gpu;
mod place;
mod probe;
mod question;
mod reading;
mod recording;
pub mod sample;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use fuse_oss::ServeSettings;
use fuse_oss::client::Client;
use fuse_oss::runtime::RuntimePaths;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::node::Node;
use crate::programs::Programs;
use place::Place;
use probe::Processes;
use question::Question;
use reading::{Reading, float, rate};
use recording::State as RecordingState;
pub(crate) use recording::file;
pub use recording::{Recorded, Recording, TaskSource};
use sample::{Gpu, Level, Objects, Role, Sample};

/// How often a sample is taken.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// How often the same is said of the node, and of each task.
pub const REPORT: Duration = Duration::from_secs(30);

/// How often samples are taken of a task that is younger than the first of these; most tasks that are tried out end within seconds.
const YOUNG: [(Duration, Duration); 2] =
    [(Duration::from_secs(10), Duration::from_millis(500)), (Duration::from_secs(60), Duration::from_secs(1))];

/// How long is waited in the beginning for those who are asked beside.
const FIRST: Duration = Duration::from_millis(200);

/// What is looked at.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Places in file systems, and what they are for. The first of one file system gives it its name.
    pub places: Vec<(PathBuf, Role)>,
    /// Where the tool for graphics processors is looked for.
    pub programs: Programs,
    /// The runtime and the cache directory of the server of object mounts, which say where it can be asked.
    pub fuse_oss: Option<(PathBuf, PathBuf)>,
    /// A file that is replaced by [`Latest`] every [`REPORT`].
    pub latest: Option<PathBuf>,
}

impl Watched {
    /// The places that every node has: those of its system, its scratch directory and its object cache.
    pub fn of(node: &Node, serve: &ServeSettings, programs: Programs) -> Self {
        Self {
            places: vec![
                ("/".into(), Role::System),
                (node.scratch.clone(), Role::Data),
                (serve.cache_dir.clone(), Role::Cache),
            ],
            programs,
            fuse_oss: Some((serve.runtime_dir.clone(), serve.cache_dir.clone())),
            latest: None,
        }
    }
}

/// What the node uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latest {
    /// All of it.
    pub node: Sample,
    /// The tasks that run, by their names.
    pub tasks: BTreeMap<String, Sample>,
}

#[derive(Debug)]
struct Inner {
    before: Reading,
    recordings: BTreeMap<u64, RecordingState>,
    next: u64,
    latest: Option<Latest>,
    /// What was sampled since the file was written the last time.
    window: Option<Sample>,
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    places: Vec<Place>,
    gpus: Option<Question<Vec<Gpu>>>,
    objects: Option<Question<Option<Objects>>>,
    file: Option<PathBuf>,
    inner: Mutex<Inner>,
    woken: Condvar,
}

/// Takes samples as long as there is a clone of it. Cheap to clone; by default, takes none.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Option<Arc<Sampler>>);

#[derive(Debug)]
struct Sampler(Arc<Shared>);

impl Drop for Sampler {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.woken.notify_all();
    }
}

impl Metrics {
    /// Begins to take samples.
    pub fn start(watched: Watched) -> Self {
        let places: Vec<Place> = watched.places.iter().map(|(path, role)| Place::new(path, *role)).collect();
        let gpus = gpu::command(&watched.programs).map(|command| Question::new(REPORT, move || gpu::ask(&command)));
        let objects = watched.fuse_oss.map(|(runtime_dir, cache_dir)| {
            let before = Mutex::new(None);
            Question::new(REPORT, move || objects(&runtime_dir, &cache_dir, &before))
        });
        let shared = Arc::new(Shared {
            places,
            gpus,
            objects,
            file: watched.latest,
            inner: Mutex::new(Inner {
                before: Reading::take(&[]),
                recordings: BTreeMap::new(),
                next: 0,
                latest: None,
                window: None,
                ended: false,
            }),
            woken: Condvar::new(),
        });
        shared.ask();
        let end = Instant::now() + FIRST;
        for place in &shared.places {
            place.wait(end);
        }
        // Device counters can be read only now that it is known which.
        let first = Reading::take(&shared.devices());
        shared.lock().before = first;
        let weak = Arc::downgrade(&shared);
        if let Err(error) = thread::Builder::new().name("metrics".to_owned()).spawn(move || run(&weak)) {
            tracing::warn!(%error, "nothing is measured");
        }
        Self(Some(Arc::new(Sampler(shared))))
    }

    /// What was used lately; none in the first moments.
    pub fn latest(&self) -> Option<Latest> {
        self.0.as_ref().and_then(|sampler| sampler.0.lock().latest.clone())
    }

    /// Begins to record what `name` uses. Lines go to `file`, after those of an agent before this one, which are taken up.
    pub fn record(&self, name: &str, file: Option<&Path>) -> Recording {
        let Some(sampler) = &self.0 else { return Recording::nothing() };
        let shared = &sampler.0;
        shared.tick();
        let mut inner = shared.lock();
        let number = inner.next;
        inner.next += 1;
        inner.recordings.insert(number, RecordingState::new(name, file));
        drop(inner);
        shared.woken.notify_all();
        Recording::new(self.clone(), number)
    }

    fn shared(&self) -> Option<&Shared> {
        self.0.as_ref().map(|sampler| &*sampler.0)
    }
}

/// The thread.
fn run(shared: &Weak<Shared>) {
    let mut due = Instant::now();
    let mut report = Instant::now();
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let now = Instant::now();
        if now >= due {
            shared.tick();
            if now >= report {
                shared.report();
                report = now + REPORT;
            }
        }
        let inner = shared.lock();
        if inner.ended {
            return;
        }
        let youngest = inner.recordings.values().map(|recording| recording.age()).min();
        let pause =
            youngest.and_then(|age| YOUNG.iter().find(|(young, _)| age < *young)).map_or(INTERVAL, |(_, pause)| *pause);
        due = now + pause;
        // Woken by a new recording, which has just had a sample.
        drop(shared.woken.wait_timeout(inner, pause));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn devices(&self) -> Vec<(u32, u32)> {
        self.places.iter().filter_map(Place::device).collect()
    }

    /// Asks those who are asked beside.
    fn ask(&self) {
        self.places.iter().for_each(Place::ask);
        if let Some(gpus) = &self.gpus {
            gpus.ask();
        }
        if let Some(objects) = &self.objects {
            objects.ask();
        }
    }

    /// Takes a sample: of the time since the last one.
    fn tick(&self) {
        self.ask();
        let devices = self.devices();
        let mut inner = self.lock();
        let now = Reading::take(&devices);
        let node = self.sample(&now, &inner.before);
        inner.before = now;
        let mut processes = Processes::default();
        let mut tasks = BTreeMap::new();
        for recording in inner.recordings.values_mut() {
            let sample = recording.add(&node, &mut processes);
            tasks.insert(recording.name().to_owned(), sample);
        }
        inner.window = Some(match inner.window.take() {
            Some(window) => window.and(node.clone()),
            None => node.clone(),
        });
        inner.latest = Some(Latest { node, tasks });
    }

    fn sample(&self, now: &Reading, before: &Reading) -> Sample {
        let gpus = self.gpus.as_ref().and_then(|gpus| gpus.answer().0);
        let objects = self.objects.as_ref().and_then(|objects| objects.answer().0.flatten());
        Sample {
            time: Timestamp::now(),
            seconds: now.since(before),
            cpu: now.cpu(before),
            memory: now.memory(),
            pressure: now.pressure(before),
            disks: place::disks(&self.places, now, before),
            network: now.network(before),
            gpus: gpus.unwrap_or_default(),
            objects,
            task: None,
        }
    }

    /// Says what was used since it did so the last time.
    fn report(&self) {
        let mut inner = self.lock();
        let (Some(node), Some(latest)) = (inner.window.take(), &inner.latest) else { return };
        let latest = Latest { node, tasks: latest.tasks.clone() };
        drop(inner);
        if let Some(path) = &self.file
            && let Err(error) = write(path, &latest)
        {
            tracing::debug!(%error, "what the node uses cannot be written to {}", path.display());
        }
    }
}

/// Replaces the file. It is no loss if a crash of the machine takes it, so the disk is not waited for.
fn write(path: &Path, latest: &Latest) -> std::io::Result<()> {
    let temporary = path.with_extension("json.new");
    std::fs::write(&temporary, serde_json::to_vec(latest)?)?;
    std::fs::rename(&temporary, path)
}

/// Where the node's daemon says what it uses.
pub fn latest_file(state: &Path) -> PathBuf {
    state.join("metrics.json")
}

/// Reads what [`Watched::latest`] says, unless it is older than a few reports.
pub fn read(path: &Path) -> Option<Latest> {
    let latest: Latest = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let age = Timestamp::now().duration_since(latest.node.time).as_secs_f64();
    (age < 4.0 * REPORT.as_secs_f64()).then_some(latest)
}

/// Asks the server of object mounts.
fn objects(runtime_dir: &Path, cache_dir: &Path, before: &Mutex<Option<(Instant, u64, u64)>>) -> Option<Objects> {
    // This looks at the cache directory, which may be on a disk that does not answer.
    let socket = RuntimePaths::new(runtime_dir, cache_dir).ok()?.socket;
    let status = Client::connect(&socket).ok().flatten()?.status().ok()?;
    let served = [status.metrics.from_memory, status.metrics.from_disk, status.metrics.from_store];
    let reads: u64 = served.iter().map(|tier| tier.reads).sum();
    let (now, fetched) = (Instant::now(), status.fetched.bytes());
    let last = before.lock().unwrap_or_else(PoisonError::into_inner).replace((now, fetched, reads));
    let rates = last.map(|(then, fetched_then, reads_then)| {
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        (rate(fetched, fetched_then, seconds), rate(reads, reads_then, seconds))
    });
    let (fetched, reads) = rates.unwrap_or_default();
    Some(Objects {
        fetched,
        reads,
        cached: Level::of(float(status.cache_used.bytes())),
        memory: Level::of(float(status.memory_used.bytes())),
    })
}

#[cfg(test)]
mod tests;
