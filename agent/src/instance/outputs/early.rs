//! Sending outputs while the task still runs, so that little is left to be sent when it has ended.
//!
//! Large files that are [`quiet`] travel as *parts* of uploads that stay open, so that nothing can be seen in storage, and written down in
//! the attempt's [`UploadBook`], so that whoever delivers the outputs completes them if the files are still the same by then. Parts of
//! a file that has changed or is gone are given up at once; of what is left the book takes care, whatever happens to this process.
//!
//! All of it is done by one thread of the lowest priority, with a runtime and connections of its own, within the budget of
//! [`EarlyUpload`]: what it has cost is looked at after each part, and then it rests. It learns of files by [`closed`], where the kernel
//! lets it, and by looking through the directories now and then, which is never more than a hundredth of its time.
//!
//! The task is at work in those directories meanwhile, and may be hostile. A root is opened once, by a path that leads through no link;
//! what is below it is opened as [`found`] opens it, so that nothing outside is ever read; and a wrong guess about a file costs
//! requests and never a wrong object, because in the end the object is made of the file that is there then.

mod closed;
mod pace;
mod quiet;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use oss::transfer::{FileStamp, PartsAhead, UploadJournal, UploadOptions};
use oss::{ErrorKind, Location, Settings, Store, Stores, UploadId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::closed::{Closings, Event};
use self::pace::Threads;
pub use self::pace::{EarlyUpload, EarlyUploadError};
use self::quiet::{Verdict, judge, unless_open_for_writing};
use super::uploads::{UploadBook, Written, by_target};
use super::{Source, found};

/// How often is looked whether something has happened.
const TICK: Duration = Duration::from_secs(1);

/// How often the directories are looked through: at most so often, where closings are told and where they are not...
const SCAN_IF_TOLD: Duration = Duration::from_secs(300);
const SCAN_IF_NOT: Duration = Duration::from_secs(15);
/// ... and so that it takes at most this part of the time. The same goes for looking whether files have changed.
const SHARE: u32 = 100;

/// How many files may be waited for or watched. Further ones go up in the end.
const MOST_FILES: usize = 10_000;

/// In how many directories is looked each time.
const MOST_DIRECTORIES: usize = 1_000_000;

/// The longest part, in bytes: one is in memory at a time.
const LONGEST_PART: u64 = 64 << 20;

/// How long nothing is tried after storage has failed.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// How long the beginning of an upload is waited for when all is to end: only its answer says what is to be given up.
const LAST_ANSWER: Duration = Duration::from_secs(10);

/// What is sent ahead, at work until it is stopped.
#[derive(Debug)]
pub(in crate::instance) struct Early {
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Early {
    /// Begins with the directories and files of `sources` below `scratch`. Nothing if there is nothing that could be sent ahead.
    pub(in crate::instance) fn start(
        sources: &[Source],
        scratch: &Path,
        book: &UploadBook,
        settings: &Settings,
        budget: EarlyUpload,
    ) -> Option<Self> {
        if !budget.enabled || sources.is_empty() {
            return None;
        }
        let (stop, stopped) = watch::channel(false);
        let (sources, scratch, book, settings) = (sources.to_vec(), scratch.to_owned(), book.clone(), settings.clone());
        let work = move || {
            let threads = Threads::default();
            threads.join();
            let joining = threads.clone();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(2)
                .on_thread_start(move || joining.join())
                .build();
            match runtime {
                Ok(runtime) => {
                    runtime.block_on(async {
                        let stores = Stores::new(settings);
                        if let Some(mut sender) = Sender::new(&sources, &scratch, book, &stores, budget, threads) {
                            sender.run(stopped).await;
                        }
                    });
                    runtime.shutdown_background();
                }
                Err(error) => tracing::warn!(%error, "outputs are sent only when the task has ended"),
            }
        };
        let thread = std::thread::Builder::new().name("early-upload".to_owned()).spawn(work);
        match thread {
            Ok(thread) => Some(Self { stop, thread: Some(thread) }),
            Err(error) => {
                tracing::warn!(%error, "outputs are sent only when the task has ended");
                None
            }
        }
    }

    /// Stops it. When this returns, the book is nobody else's.
    pub(in crate::instance) async fn stop(mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed; what it has left is written down.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

/// A directory, or the one that holds a single file.
struct Root {
    directory: Arc<OwnedFd>,
    /// As the kernel names it, for comparing with what it tells of.
    path: PathBuf,
    /// The name of the file, if it is a single one.
    file: Option<PathBuf>,
    without: Vec<PathBuf>,
    target: Location,
    store: Arc<dyn Store>,
}

impl Root {
    fn open(source: &Source, scratch: &Path, stores: &Stores) -> Option<Self> {
        let output = &source.output;
        let store = stores.open(&output.target).ok()?;
        if !store.capabilities().resumable_uploads {
            return None;
        }
        let (path, file) = if output.is_directory() {
            (source.path.as_path(), None)
        } else {
            (source.path.parent()?, Some(PathBuf::from(source.path.file_name()?)))
        };
        let directory = open_below(scratch, path)
            .inspect_err(|error| tracing::debug!(%error, "{} is sent only in the end", output.source.display()))
            .ok()?;
        let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()?;
        let target = output.target.clone();
        Some(Self { directory: Arc::new(directory), path, file, without: source.without.clone(), target, store })
    }

    /// What the object of a file is called; nothing for one whose name says that it is none of ours.
    fn target(&self, path: &Path) -> Option<Location> {
        match &self.file {
            Some(file) => (file == path).then(|| self.target.clone()),
            None => {
                let is_without = self.without.iter().any(|without| path.starts_with(without));
                path.to_str().filter(|_| !is_without).map(|name| self.target.join(name))
            }
        }
    }

    fn open_file(&self, path: &Path) -> io::Result<File> {
        found::open_beneath(&*self.directory, path)
    }
}

/// Opens a directory below another, through no link at all.
fn open_below(scratch: &Path, path: &Path) -> io::Result<OwnedFd> {
    let inside = path.strip_prefix(scratch).map_err(|_| io::ErrorKind::InvalidInput)?;
    let top = found::open_directory(scratch)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    Ok(openat2(&top, inside, OpenHow::new().flags(flags).mode(Mode::empty()).resolve(resolve))?)
}

/// A file by its root and its path below it.
type Name = (usize, PathBuf);

/// A file that may be finished.
struct Candidate {
    stamp: Option<FileStamp>,
    /// Since when it was not seen to change.
    since: Instant,
    /// When to look again.
    due: Instant,
}

/// A file of which parts have arrived.
struct Ahead {
    stamp: FileStamp,
    id: UploadId,
    journal: Arc<dyn UploadJournal>,
}

struct Sender {
    roots: Vec<Root>,
    book: UploadBook,
    budget: EarlyUpload,
    threads: Threads,
    closings: Vec<Closings>,
    next_scan: Instant,
    candidates: HashMap<Name, Candidate>,
    ahead: BTreeMap<Name, Ahead>,
    /// What an agent before this one has begun.
    begun: HashMap<Location, Written>,
    /// Nothing is begun before.
    rest_until: Instant,
    /// When to see whether files have changed.
    next_check: Instant,
    /// An upload whose beginning has not been heard of.
    beginning: Option<JoinHandle<oss::Result<PartsAhead>>>,
}

impl Sender {
    fn new(
        sources: &[Source],
        scratch: &Path,
        book: UploadBook,
        stores: &Stores,
        budget: EarlyUpload,
        threads: Threads,
    ) -> Option<Self> {
        let roots: Vec<Root> = sources.iter().filter_map(|source| Root::open(source, scratch, stores)).collect();
        if roots.is_empty() {
            return None;
        }
        // All are below scratch, and so on its file system.
        let closings = Closings::watch(scratch)
            .inspect_err(|error| tracing::debug!(%error, "files that are closed are not told of; they are looked for"));
        let begun = by_target(book.read());
        let now = Instant::now();
        Some(Self {
            roots,
            book,
            budget,
            threads,
            closings: closings.into_iter().collect(),
            next_scan: now,
            candidates: HashMap::new(),
            ahead: BTreeMap::new(),
            begun,
            rest_until: now,
            next_check: now,
            beginning: None,
        })
    }

    /// Works until it is told to stop.
    async fn run(&mut self, mut stopped: watch::Receiver<bool>) {
        let told = stopped.clone();
        tokio::select! {
            () = self.work(&told) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        // Only its answer says what is to be completed or given up.
        if let Some(beginning) = self.beginning.take() {
            let _ = tokio::time::timeout(LAST_ANSWER, beginning).await;
        }
    }

    /// Can be dropped wherever it waits: what has arrived is written down.
    async fn work(&mut self, stopped: &watch::Receiver<bool>) {
        let tick = TICK.min(self.budget.quiet / 2);
        let mut current: Option<(Name, PartsAhead)> = None;
        let mut next_look = Instant::now();
        loop {
            if Instant::now() >= next_look {
                next_look = Instant::now() + tick;
                self.look(stopped);
                self.give_up_changed(&mut current).await;
            }
            let (begun, before) = (Instant::now(), self.threads.used());
            if current.is_none() && begun >= self.rest_until {
                current = self.begin_next().await;
            }
            let sent = match &mut current {
                Some((_, parts)) => parts.send_next().await,
                None => Ok(None),
            };
            let mut rest = tick;
            match (sent, current.take()) {
                (Ok(Some(bytes)), sending) => {
                    current = sending;
                    let cost = self.threads.used().saturating_sub(before);
                    rest = self.budget.rest(bytes, begun.elapsed(), cost);
                }
                (Err(error), Some((name, _))) => self.failed(name, &error),
                (Ok(None) | Err(_), _) => {}
            }
            tokio::time::sleep(rest).await;
        }
    }

    /// Takes in what has happened in the directories.
    fn look(&mut self, stopped: &watch::Receiver<bool>) {
        let mut scan = Instant::now() >= self.next_scan;
        for closings in &self.closings {
            match closings.take(self.budget.from) {
                Ok(events) => {
                    for event in events {
                        match event {
                            Event::Anything => self.next_scan = self.next_scan.min(Instant::now() + SCAN_IF_NOT),
                            Event::File(path) => {
                                // A file may be below several roots: then it is sent for each.
                                for (number, root) in self.roots.iter().enumerate() {
                                    if let Ok(path) = path.strip_prefix(&root.path) {
                                        note(&mut self.candidates, (number, path.to_owned()));
                                    }
                                }
                            }
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "closed files are no longer told of; they are looked for");
                    scan = true;
                }
            }
        }
        if scan {
            let begun = Instant::now();
            for (number, root) in self.roots.iter().enumerate() {
                match &root.file {
                    Some(file) => note(&mut self.candidates, (number, file.clone())),
                    None => scan_directory(root, number, self.budget.from, &mut self.candidates, stopped),
                }
            }
            let every = if self.closings.is_empty() { SCAN_IF_NOT } else { SCAN_IF_TOLD };
            self.next_scan = Instant::now() + every.max(begun.elapsed() * SHARE);
        }
        self.candidates.retain(|name, _| !self.ahead.contains_key(name));
    }

    /// Gives up the parts of files that have changed or are gone.
    async fn give_up_changed(&mut self, current: &mut Option<(Name, PartsAhead)>) {
        let begun = Instant::now();
        if begun < self.next_check {
            return;
        }
        let is_the_same = |(number, path): &Name, ahead: &Ahead| {
            let now = self.roots[*number].open_file(path).and_then(|file| FileStamp::of(&file));
            now.is_ok_and(|now| now == ahead.stamp)
        };
        let changed: Vec<Name> =
            self.ahead.iter().filter(|(name, ahead)| !is_the_same(name, ahead)).map(|(name, _)| name.clone()).collect();
        self.next_check = Instant::now() + begun.elapsed() * SHARE;
        for name in changed {
            if current.as_ref().is_some_and(|(sending, _)| *sending == name) {
                *current = None;
            }
            let Some(ahead) = self.ahead.remove(&name) else { continue };
            let root = &self.roots[name.0];
            let Some(target) = root.target(&name.1) else { continue };
            match root.store.abort_multipart(target.key(), &ahead.id).await {
                Ok(()) => ahead.journal.ended(),
                // It stays written down.
                Err(error) => tracing::debug!(%error, "parts of a file that has changed are given up later"),
            }
            note(&mut self.candidates, name);
        }
    }

    /// Begins with the file that has been quiet for longest, or goes on with it.
    async fn begin_next(&mut self) -> Option<(Name, PartsAhead)> {
        let now = Instant::now();
        let mut due: Vec<(Instant, Name)> = self
            .candidates
            .iter()
            .filter(|(_, candidate)| candidate.due <= now)
            .map(|(name, candidate)| (candidate.since, name.clone()))
            .collect();
        due.sort();
        for (_, name) in due {
            let Some((file, stamp, target)) = self.take_if_quiet(&name) else { continue };
            let root = &self.roots[name.0];
            let (store, key) = (Arc::clone(&root.store), target.key().clone());
            let written = self.begun.remove(&target);
            let journal = self.book.journal(&target, written.as_ref());
            let resume = written.and_then(|written| written.upload);
            let preferred = UploadOptions::default().part_size;
            let kept = Arc::clone(&journal);
            // Apart, so that its answer is heard although all is to end.
            let beginning =
                tokio::spawn(
                    async move { PartsAhead::begin(&store, &key, (file, stamp), preferred, &kept, resume).await },
                );
            let begun = self.beginning.insert(beginning).await;
            self.beginning = None;
            match begun {
                Ok(Ok(parts)) => {
                    self.ahead.insert(name.clone(), Ahead { stamp, id: parts.id().clone(), journal });
                    return Some((name, parts));
                }
                Ok(Err(error)) => {
                    self.failed(name, &error);
                    return None;
                }
                Err(error) => {
                    tracing::debug!(%error, "an upload was not begun");
                    return None;
                }
            }
        }
        None
    }

    /// The file, if it can be sent now. It is then no candidate any more; nor is one that never can be.
    fn take_if_quiet(&mut self, name: &Name) -> Option<(File, FileStamp, Location)> {
        let root = &self.roots[name.0];
        let opened = root.target(&name.1).zip(root.open_file(&name.1).ok());
        let Some((target, file)) = opened else {
            self.candidates.remove(name);
            return None;
        };
        let stamp = match unless_open_for_writing(&file) {
            Ok(stamp) => stamp,
            Err(error) => {
                tracing::debug!(%error, "{} is sent only in the end", name.1.display());
                self.candidates.remove(name);
                return None;
            }
        };
        let candidate = self.candidates.get_mut(name)?;
        let Some(stamp) = stamp else {
            candidate.due = Instant::now() + self.budget.quiet;
            return None;
        };
        if candidate.stamp.is_some_and(|before| before != stamp) {
            candidate.since = Instant::now();
        }
        candidate.stamp = Some(stamp);
        let capabilities = root.store.capabilities();
        let is_too_large = stamp.size.div_ceil(u64::from(capabilities.max_parts.max(1))) > LONGEST_PART;
        let verdict = judge(SystemTime::now(), &stamp, candidate.since.elapsed(), self.budget.quiet, self.budget.from);
        match verdict {
            Verdict::Wait(left) => {
                candidate.due = Instant::now() + left;
                None
            }
            Verdict::Quiet if !is_too_large => {
                self.candidates.remove(name);
                Some((file, stamp, target))
            }
            _ => {
                self.candidates.remove(name);
                None
            }
        }
    }

    fn failed(&mut self, name: Name, error: &oss::Error) {
        match error.kind() {
            // It is seen to when the directories are looked at next.
            ErrorKind::Changed => {}
            ErrorKind::Unavailable | ErrorKind::Throttled { .. } => {
                tracing::debug!("outputs are not sent ahead for a while: {error}");
                self.rest_until = Instant::now() + AFTER_FAILURE;
            }
            _ => {
                tracing::info!("outputs are sent only when the task has ended: {error}");
                self.rest_until = Instant::now() + 60 * AFTER_FAILURE;
            }
        }
        if !self.ahead.contains_key(&name) {
            note(&mut self.candidates, name);
        }
    }
}

/// Keeps in mind that a file may be finished.
fn note(candidates: &mut HashMap<Name, Candidate>, name: Name) {
    if candidates.len() < MOST_FILES || candidates.contains_key(&name) {
        let now = Instant::now();
        candidates.entry(name).or_insert(Candidate { stamp: None, since: now, due: now });
    }
}

/// Looks for large files below a root. Directories are opened one by one below it, following no link, because the task changes them
/// meanwhile.
fn scan_directory(
    root: &Root,
    number: usize,
    least: u64,
    candidates: &mut HashMap<Name, Candidate>,
    stopped: &watch::Receiver<bool>,
) {
    let mut queue = vec![PathBuf::new()];
    // A task may make directories faster than they can be looked through.
    for _ in 0..MOST_DIRECTORIES {
        let Some(directory) = queue.pop().filter(|_| !*stopped.borrow()) else { return };
        let Ok(listing) = open_listing(root, &directory) else { continue };
        let Ok(reader) = nix::dir::Dir::from_fd(listing) else { continue };
        let Ok(handle) = open_listing(root, &directory) else { continue };
        for entry in reader.into_iter().flatten() {
            use std::os::unix::ffi::OsStrExt;
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let Ok(stat) = nix::sys::stat::fstatat(&handle, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) else {
                continue;
            };
            let path = directory.join(name);
            match stat.st_mode & libc::S_IFMT {
                libc::S_IFDIR if !root.without.contains(&path) => queue.push(path),
                libc::S_IFREG if u64::try_from(stat.st_size).is_ok_and(|size| size >= least) => {
                    note(candidates, (number, path));
                }
                _ => {}
            }
        }
    }
}

fn open_listing(root: &Root, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(openat2(&*root.directory, path, OpenHow::new().flags(flags).resolve(resolve))?)
}
