//! The tree of names that one mount shows: a frozen view of listings.
//!
//! A name, its kind, size and time, once seen, stay as they were for the life of the mount; so does a name that was
//! seen missing. The kernel may therefore cache all of it for ever, inode numbers are simply the order in which names
//! were met, and whatever stacks on top of the mount (overlayfs, above all) is never surprised. What has not been looked
//! at is not frozen: it is as the store has it when somebody first looks.
//!
//! How a name is found. The first question about a directory fetches the first page of its listing, which answers
//! everything about a small directory with one request and brings sizes and times along. Where there are more
//! pages, single names are asked for with a HEAD and a one-key listing side by side, so that one file in a directory of a
//! million costs two requests and not a thousand; reading the directory goes on from page to page as the reader does. When
//! questions go from directory to directory, whole subtrees are listed at a time, ahead of the questions.
//!
//! The parts: `plan` decides what is asked for and when, `absorb` takes pages into the `table`, which holds the names in little
//! memory; all three do no I/O. `journal` keeps what was taken in, and `recovery` makes the same tree of it in a process after this
//! one. Here is who asks, and `shared` is what joins all of it to a store: requests run in tasks of their own, and whoever needs
//! something waits until a page has come and looks again.
//!
//! Several locations make one tree: each has its place, which may be inside another's. At its place it wins; what else the outer one
//! has beside it stays visible. All places are put into the table before the first page is, so no page can take one.
//!
//! Names are never dropped: forgetting one would mean forgetting what was shown.

mod absorb;
mod journal;
pub mod listing;
mod plan;
mod prefetch;
mod question;
mod recovery;
mod shared;
mod table;
mod tag;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime};

use oss::{ETag, Key, ListPage, ListRequest, ObjectMeta, Store};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::info;

use crate::blocks::peers::Peers;
use crate::charset::Charset;
use crate::fault::Fault;
pub use journal::Identity;
use journal::{Found, Header, Journal, Record};
use plan::{Fetch, Plan};
pub use prefetch::Progress;
use shared::Shared;
use table::{Dir, Seed, Table};

/// The root directory's inode number, as FUSE has it.
pub const ROOT: u64 = 1;

/// After so many single names were asked for and not found in a directory, the rest of it is listed: that bounds what has to be
/// remembered about missing names, and from then on costs no requests.
const MAX_MISSING: usize = 4096;

/// A directory of so many names, of which a single one was asked for and not just one, is listed on by a page before more are: many
/// such directories end there, and a page costs one request where a single name costs two.
const LISTED_ON: std::ops::Range<usize> = 500..1500;

/// A bucket and how it is reached.
#[derive(Debug)]
pub struct Origin {
    /// The bucket.
    pub store: Arc<dyn Store>,
    /// What tells its objects from those of the same name elsewhere: scheme, endpoint, region, bucket.
    pub identity: String,
    /// How long one read may be retried.
    pub deadline: Duration,
    /// How quick it is.
    pub peers: Peers,
}

/// A name in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its inode number.
    pub ino: u64,
    /// The directory it is in; the root is its own parent.
    pub parent: u64,
    /// It is a prefix, or a made-up parent, and not an object.
    pub directory: bool,
    /// An object's length in bytes; 0 for directories.
    pub size: u64,
    /// When an object was written.
    pub modified: Option<SystemTime>,
}

/// An object as it was when it was first seen, with what is needed to read it.
#[derive(Debug, Clone)]
pub struct File {
    /// Its inode number.
    pub ino: u64,
    /// Where it is.
    pub origin: Arc<Origin>,
    /// Its key.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// When it was written.
    pub modified: Option<SystemTime>,
    /// Its version.
    pub etag: Option<ETag>,
    /// It has to be restored from an archive before it can be read.
    pub archived: bool,
    /// It was read from the store once in this mount, so it is there and we may read it; see [`Namespace::prove`].
    pub proved: bool,
}

/// What is known about a name without asking the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is this.
    Node(Node),
    /// There is no such name.
    Missing,
    /// The store has to be asked.
    Unknown,
}

/// An entry of a mount that was found to exist.
#[derive(Debug)]
pub struct Placed {
    /// Where inside the mount; empty for all of it.
    pub at: String,
    /// The character set names are shown in.
    pub charset: Charset,
    /// What is there.
    pub source: Source,
}

impl From<(String, Source)> for Placed {
    /// An entry whose names are shown as its keys are written.
    fn from((at, source): (String, Source)) -> Self {
        Self { at, charset: Charset::UTF_8, source }
    }
}

/// Where an entry of a mount comes from, after it was found to exist.
#[derive(Debug)]
pub enum Source {
    /// A prefix and the first page of its listing.
    Directory {
        /// Where it is.
        origin: Arc<Origin>,
        /// Empty or ending in a slash.
        prefix: String,
        /// Its first page.
        first: ListPage,
    },
    /// One object.
    Object {
        /// Where it is.
        origin: Arc<Origin>,
        /// What HEAD said.
        meta: ObjectMeta,
    },
}

/// The tree of one mount.
#[derive(Debug)]
pub struct Namespace {
    shared: Arc<Shared>,
    /// Requests under way; given up with the mount.
    tasks: Mutex<JoinSet<()>>,
    runtime: Option<Handle>,
    /// All names are shown as keys are written.
    plain: bool,
    /// What stays the same whichever process answers for the mount.
    pub identity: Identity,
}

impl Namespace {
    /// A tree with these entries, whose places [`check_entries`](crate::options::check_entries) has accepted. What it shows is written
    /// down in `journal`, an empty file, for [`Namespace::recover`]; without one it ends with the process.
    ///
    /// # Errors
    /// [`Fault::TooManyNames`].
    pub fn new(
        label: String,
        identity: Identity,
        entries: Vec<impl Into<Placed>>,
        journal: Option<std::fs::File>,
    ) -> Result<Self, Fault> {
        let header = Header { identity, seed: Seed::random(), entries: entries.len() as u64 };
        let mut journal = match journal {
            Some(file) => Journal::begin(label.clone(), file, &header)?,
            None => Journal::none(),
        };
        let mut table = Table::with_seed(header.seed, header.identity.most_names);
        let mut plan = Plan::default();
        let mut entries: Vec<(u64, Placed)> = (0..).zip(entries.into_iter().map(Into::into)).collect();
        // What is around a place is there before what is at it.
        entries.sort_by_key(|(_, entry)| if entry.at.is_empty() { 0 } else { 1 + entry.at.matches('/').count() });
        let mut firsts = Vec::new();
        for (number, entry) in entries {
            let record = Record::entry(number, &entry);
            firsts.extend(place(&mut table, entry)?);
            journal.append(record, &table);
        }
        for (dir, first) in firsts {
            let record = Record::own(dir, None, false, &first);
            let token = first.continuation.clone();
            let absorbed = table.absorb_own(dir, None, false, first)?;
            journal.append(record, &table);
            plan.begun(dir, absorbed.last, token);
        }
        let namespace = Self::with(label, identity, table, plan, journal);
        namespace.shared.report_hidden();
        Ok(namespace)
    }

    fn with(label: String, identity: Identity, table: Table, plan: Plan, journal: Journal) -> Self {
        let shared = Shared {
            table: RwLock::new(table),
            plan: Mutex::new(plan),
            journal: Mutex::new(journal),
            changed: Notify::new(),
            label,
            said_hidden: AtomicBool::new(false),
            prefetch: Mutex::default(),
        };
        let plain = shared.read().is_plain();
        let (tasks, runtime) = (Mutex::default(), Handle::try_current().ok());
        Self { shared: Arc::new(shared), tasks, runtime, plain, identity }
    }

    /// Whether another process could show the same tree; it cannot when there is no journal, or it could not be written.
    pub fn is_recoverable(&self) -> bool {
        self.shared.journal().is_kept()
    }

    /// The node of an inode number the kernel has from us.
    pub fn node(&self, ino: u64) -> Option<Node> {
        self.shared.read().node(ino)
    }

    /// The character set that the names in a directory are shown in. All names here are as the store has them.
    pub fn charset(&self, ino: u64) -> Charset {
        if self.plain {
            return Charset::UTF_8;
        }
        let table = self.shared.read();
        table.dir(ino).map(|dir| table.charset(dir)).unwrap_or_default()
    }

    /// Its name; empty for the root.
    pub fn name(&self, ino: u64) -> Option<String> {
        self.shared.read().name(ino).map(str::to_owned)
    }

    /// What is needed to read a file; none for a directory.
    pub fn file(&self, ino: u64) -> Option<File> {
        self.shared.read().file(ino)
    }

    /// Notes that a file was read from the store, so that opening it again need not.
    pub fn prove(&self, ino: u64) {
        self.shared.read().prove(ino);
    }

    /// Sets how often a file's content has been found wrong, and returns what it was when this was asked last; see
    /// [`Blocks::times_wrong`](crate::blocks::Blocks::times_wrong).
    pub fn swap_times_wrong(&self, ino: u64, times: u64) -> u64 {
        let known = self.shared.read().swap_times_wrong(ino, times);
        known.unwrap_or_else(|| self.shared.write().first_time_wrong(ino, times))
    }

    /// How many names there are.
    pub fn len(&self) -> u64 {
        u64::try_from(self.shared.read().len()).unwrap_or(u64::MAX)
    }

    /// Whether there is nothing, not even a root; never true.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many objects there are, and how many bytes they hold together.
    pub fn totals(&self) -> (u64, u64) {
        let table = self.shared.read();
        (table.files, table.bytes)
    }

    /// How many keys were met that cannot be shown.
    pub fn hidden(&self) -> u64 {
        self.shared.read().hidden
    }

    /// Which name of its directory this is, in the order in which reading the directory shows them.
    pub fn position(&self, ino: u64) -> Option<usize> {
        self.shared.read().position(ino)
    }

    /// The next files after this one in its directory, in the order in which reading it shows them, as far as they are known; at most
    /// `count`, and fewer where many directories stand between them.
    pub fn siblings_after(&self, ino: u64, count: usize) -> Vec<Node> {
        /// Directories are passed over, but not without end.
        const PASSED_OVER: usize = 64;
        let table = self.shared.read();
        let place = table.node(ino).and_then(|node| table.dir(node.parent)).zip(table.position(ino));
        let Some((dir, position)) = place else { return Vec::new() };
        let next = table.entries(dir, position + 1).take(count.saturating_add(PASSED_OVER));
        next.map(|(node, _)| node).filter(|node| !node.directory).take(count).collect()
    }

    /// Up to `count` of all files that are known, by inode number from `from` on, which is the order in which they were met. To go
    /// on, ask from the last one's number plus one.
    pub fn files_in_order(&self, from: u64, count: usize) -> Vec<Node> {
        let table = self.shared.read();
        let last = u64::try_from(table.len()).unwrap_or(u64::MAX);
        let nodes = (from.max(ROOT)..=last).filter_map(|ino| table.node(ino));
        nodes.filter(|node| !node.directory).take(count).collect()
    }

    /// What is known about a name without asking the store.
    pub fn known(&self, parent: u64, name: &str) -> Known {
        let table = self.shared.read();
        let Some(dir) = table.dir(parent) else { return Known::Missing };
        let known = table.known(dir, name);
        self.asked(table, dir);
        known
    }

    /// Remembers that somebody asked about a directory, and pays the sweep that had listed it before.
    fn asked(&self, table: RwLockReadGuard<'_, Table>, dir: Dir) {
        if !table.ask(dir) {
            return;
        }
        let (swept, room) = (table.directory(dir).swept, table.has_room());
        drop(table);
        if swept != 0 {
            let next = self.shared.plan().hit(swept, room);
            self.launch(next);
        }
    }

    /// Starts requests.
    fn launch(&self, fetches: impl IntoIterator<Item = Fetch>) {
        let mut fetches = fetches.into_iter().peekable();
        if fetches.peek().is_none() {
            return;
        }
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        for fetch in fetches {
            let task = Arc::clone(&self.shared).run(fetch.clone());
            match Handle::try_current().ok().or_else(|| self.runtime.clone()) {
                Some(runtime) => drop(tasks.spawn_on(task, &runtime)),
                None => self.shared.plan().failed(&fetch, Fault::Internal("there is no runtime".to_owned())),
            }
        }
    }

    /// Has a directory listed until the table gives an answer.
    async fn until<T>(&self, dir: Dir, answer: impl Fn(&Table) -> Option<T>) -> Result<T, Fault> {
        let mut failures_before = None;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Before looking: a page that comes in between must not be missed.
            changed.as_mut().enable();
            if let Some(answer) = answer(&self.shared.read()) {
                return Ok(answer);
            }
            let question = self.shared.read().question(dir);
            let fetches = {
                let mut plan = self.shared.plan();
                let (failures, fault) = plan.failures(dir);
                let before = *failures_before.get_or_insert(failures);
                if let Some(fault) = fault.filter(|_| failures > before) {
                    return Err(fault);
                }
                plan.ask(&question, &|base, key, dir| self.shared.read().gap(base, key, dir))
            };
            self.launch(fetches);
            changed.await;
        }
    }

    /// Finds a name, asking the store where necessary.
    ///
    /// # Errors
    /// When the store fails. Nothing is frozen then: the next look asks again.
    pub async fn lookup(&self, parent: u64, name: &str) -> Result<Option<Node>, Fault> {
        let dir = {
            let table = self.shared.read();
            let Some(dir) = table.dir(parent) else { return Ok(None) };
            self.asked(table, dir);
            dir
        };
        let known = self
            .until(dir, |table| match table.known(dir, name) {
                // The first page answers most questions, and after very many misses only all pages help.
                Known::Unknown if table.directory(dir).listing.is_fresh() || table.missing(dir) >= MAX_MISSING => None,
                known => Some(known),
            })
            .await?;
        let known = if known == Known::Unknown && self.shared.plan().was_probed(dir) {
            // The second such name, and more are to be expected.
            self.until(dir, |table| match table.known(dir, name) {
                Known::Unknown if LISTED_ON.contains(&table.count(dir)) => None,
                known => Some(known),
            })
            .await?
        } else {
            known
        };
        match known {
            Known::Node(node) => return Ok(Some(node)),
            Known::Missing => return Ok(None),
            Known::Unknown => {}
        }
        if let Some(known) = self.when_passed(dir, name).await {
            return Ok(known);
        }
        self.probe(dir, name).await
    }

    /// Waits for a sweep that is going through a directory just now, and says what it brought about a name.
    async fn when_passed(&self, dir: Dir, name: &str) -> Option<Option<Node>> {
        let (root, prefix) = {
            let table = self.shared.read();
            (table.directory(dir).root, table.prefix(dir))
        };
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.shared.read().known(dir, name) {
                Known::Node(node) => return Some(Some(node)),
                Known::Missing => return Some(None),
                Known::Unknown => {}
            }
            if !self.shared.plan().is_passing(root, &prefix) {
                return None;
            }
            changed.await;
        }
    }

    /// Asks the store for one name: is there anything below it, or an object of that key?
    async fn probe(&self, dir: Dir, name: &str) -> Result<Option<Node>, Fault> {
        let (origin, prefix, reached) = {
            let table = self.shared.read();
            let Some(root) = table.root_of(dir) else { return Ok(None) };
            let reached = table.directory(dir).listing.reached().map(str::to_owned);
            (Arc::clone(&root.origin), table.prefix(dir), reached)
        };
        if self.shared.has_room() {
            let next = self.shared.plan().probed(dir, reached);
            self.launch(next);
        }
        let key = format!("{prefix}{name}");
        let below = ListRequest { prefix: format!("{key}/"), max_keys: Some(1), ..ListRequest::default() };
        let key = Key::new(key);
        let (below, object) = tokio::join!(origin.store.list(below), origin.store.head(&key));
        let below = below?;
        let found = if !below.objects.is_empty() || !below.prefixes.is_empty() {
            Found::Directory
        } else {
            match object {
                Ok(meta) => Found::Object(meta),
                Err(error) if *error.kind() == oss::ErrorKind::NotFound => Found::Missing,
                Err(error) => return Err(error.into()),
            }
        };
        let record = self.shared.record(|| Record::name(dir, name, &found));
        let ino = self.shared.change(record, |table| settle(table, dir, name, &found))?;
        Ok(ino.and_then(|ino| self.node(ino)))
    }

    /// Shows the names of a directory from the `from`th on, in the order they were met, for as long as `show` takes them. One lock for
    /// all of them, so it must not come back here.
    pub fn entries(&self, ino: u64, from: usize, mut show: impl FnMut(&Node, &str) -> bool) {
        let table = self.shared.read();
        let Some(dir) = table.dir(ino) else { return };
        for (node, name) in table.entries(dir, from) {
            if !show(&node, name) {
                return;
            }
        }
    }

    /// Whether the names from the `from`th on can be told without asking the store: some are known, or there are no more. What is no
    /// directory has none.
    pub fn can_tell(&self, ino: u64, from: usize) -> bool {
        let table = self.shared.read();
        let Some(dir) = table.dir(ino) else { return true };
        let can = can_tell(&table, dir, from);
        self.asked(table, dir);
        can
    }

    /// Lists on until there is something at `from`, or nothing more at all.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list_to(&self, ino: u64, from: usize) -> Result<(), Fault> {
        let dir = {
            let table = self.shared.read();
            let Some(dir) = table.dir(ino) else { return Ok(()) };
            self.asked(table, dir);
            dir
        };
        self.until(dir, |table| can_tell(table, dir, from).then_some(())).await
    }
}

fn can_tell(table: &Table, dir: Dir, from: usize) -> bool {
    table.count(dir) > from || table.directory(dir).listing.is_complete()
}

/// Puts an entry at its place, making up the directories on the way. Returns the first page of its listing, which is taken in when
/// all entries have their places.
fn place(table: &mut Table, entry: Placed) -> Result<Option<(Dir, ListPage)>, Fault> {
    let Placed { at, charset, source } = entry;
    let no_place = || Fault::Internal(format!("no place for entry {at:?}"));
    let mut dir = Table::root();
    let (parents, name) = at.rsplit_once('/').map_or((None, at.as_str()), |(parents, name)| (Some(parents), name));
    for made_up in parents.into_iter().flat_map(|parents| parents.split('/')) {
        dir = table.place_directory(dir, made_up, charset)?.ok_or_else(no_place)?;
    }
    match source {
        Source::Directory { origin, prefix, first } => {
            if !name.is_empty() {
                dir = table.place_directory(dir, name, charset)?.ok_or_else(no_place)?;
            }
            table.mount(dir, origin, prefix, charset);
            Ok(Some((dir, first)))
        }
        Source::Object { origin, meta } if name.is_empty() => {
            table.place_alone(origin, &meta);
            Ok(None)
        }
        Source::Object { origin, meta } => {
            // Its name is one of the directory it is in.
            table.place_object(dir, name, charset, origin, &meta)?;
            Ok(None)
        }
    }
}

/// Freezes what the store said about one name, unless it was frozen before. Returns what stands.
fn settle(table: &mut Table, dir: Dir, name: &str, found: &Found) -> Result<Option<u64>, Fault> {
    match found {
        Found::Directory => table.settle_directory(dir, name),
        Found::Object(meta) => table.settle_file(dir, name, meta),
        Found::Missing => Ok(table.settle_missing(dir, name)),
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let hidden = self.hidden();
        if hidden > 0 {
            info!(mount = self.shared.label, hidden, "keys were not shown");
        }
    }
}

#[cfg(test)]
mod tests;
