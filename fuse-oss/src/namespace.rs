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
//! million costs two requests and not a thousand; reading the directory goes on from page to page as the reader does.
//!
//! Nodes are never dropped: forgetting one would mean forgetting what was shown.

pub mod listing;

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use oss::{ETag, Key, ListPage, ListRequest, ObjectMeta, Store};
use tracing::{info, warn};

use crate::blocks::peers::Peers;
use crate::fault::Fault;
pub use listing::is_visible_name;
use listing::{Found, Listing, Progress};

/// The root directory's inode number, as FUSE has it.
pub const ROOT: u64 = 1;

/// The most names one mount remembers, at some 250 bytes each.
const MAX_NODES: usize = 10_000_000;

/// After so many single names were asked for and not found in a directory, the rest of it is listed: that bounds what has to be
/// remembered about missing names, and from then on costs no requests.
const MAX_MISSING: usize = 4096;

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
#[derive(Debug)]
pub struct Node {
    /// Its inode number.
    pub ino: u64,
    /// The directory it is in; the root is its own parent.
    pub parent: u64,
    /// Its name; empty for the root.
    pub name: Arc<str>,
    /// What it is.
    pub body: Body,
}

/// What a name stands for.
#[derive(Debug)]
pub enum Body {
    /// A prefix, or a made-up parent.
    Directory(Box<Directory>),
    /// An object.
    File(File),
}

/// An object as it was when it was first seen.
#[derive(Debug)]
pub struct File {
    /// Where it is.
    pub origin: Arc<Origin>,
    /// Its key, where that is not its directory's prefix and its name.
    key: Option<Box<str>>,
    /// Its length in bytes.
    pub size: u64,
    /// When it was written.
    pub modified: Option<SystemTime>,
    /// Its version.
    pub etag: Option<ETag>,
    /// It has to be restored from an archive before it can be read.
    pub archived: bool,
    /// It was read from the store once in this mount, so it is there and we may read it.
    pub proved: AtomicBool,
    /// How often its content had been found wrong when it was opened last; see [`Blocks::times_wrong`](crate::blocks::Blocks::times_wrong).
    pub times_wrong: AtomicU64,
}

/// A directory, as far as it has been looked at.
#[derive(Debug)]
pub struct Directory {
    origin: Option<Arc<Origin>>,
    state: Mutex<State>,
    /// Held by whoever fetches the next page.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    listing: Listing,
    by_name: HashMap<Arc<str>, u64>,
    /// In the order in which names were met, which is what readdir's offsets count.
    order: Vec<u64>,
    /// Hashes of names that were looked for and are not there. Of two names in 2^64 one would be taken for the other; the
    /// hash is keyed at random, so nobody can find such a pair.
    missing: HashSet<u64>,
}

/// What is known about a name without asking the store.
#[derive(Debug)]
pub enum Known {
    /// It is this.
    Node(Arc<Node>),
    /// There is no such name.
    Missing,
    /// The store has to be asked.
    Unknown,
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
    nodes: RwLock<Vec<Arc<Node>>>,
    hasher: RandomState,
    /// How the mount calls itself in the log.
    label: String,
    hidden: AtomicU64,
    /// Directories have no time of their own in a store: they are as old as the mount.
    pub created: SystemTime,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Directory {
    fn new(origin: Option<Arc<Origin>>, prefix: String) -> Self {
        let state = State {
            listing: Listing::new(prefix),
            by_name: HashMap::new(),
            order: Vec::new(),
            missing: HashSet::new(),
        };
        Self { origin, state: Mutex::new(state), turn: tokio::sync::Mutex::default() }
    }
}

impl Node {
    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Directory> {
        match &self.body {
            Body::Directory(directory) => Some(directory),
            Body::File(_) => None,
        }
    }

    /// The file, if it is one.
    pub fn file(&self) -> Option<&File> {
        match &self.body {
            Body::File(file) => Some(file),
            Body::Directory(_) => None,
        }
    }
}

impl Namespace {
    /// A tree with these entries, whose places [`check_entries`](crate::options::check_entries) has accepted.
    ///
    /// # Errors
    /// [`Fault::TooManyNames`].
    pub fn new(label: String, entries: Vec<(String, Source)>) -> Result<Self, Fault> {
        let namespace = Self {
            nodes: RwLock::default(),
            hasher: RandomState::new(),
            label,
            hidden: AtomicU64::new(0),
            created: SystemTime::now(),
        };
        let whole = matches!(entries.as_slice(), [(at, _)] if at.is_empty());
        let mut entries = entries;
        let (root, first) = match entries.pop_if(|_| whole) {
            Some((_, Source::Directory { origin, prefix, first })) => {
                (Directory::new(Some(origin), prefix), Some(first))
            }
            Some((_, Source::Object { .. })) => {
                return Err(Fault::Internal("an object cannot be the root of a mount".to_owned()));
            }
            None => (Directory::new(None, String::new()), None),
        };
        let root = namespace.push(ROOT, Arc::from(""), Body::Directory(Box::new(root)))?;
        if let (Some(first), Some(directory)) = (first, root.directory()) {
            namespace.absorb(&root, directory, first)?;
        }
        for (at, source) in entries {
            namespace.place(&root, &at, source)?;
        }
        Ok(namespace)
    }

    fn place(&self, root: &Arc<Node>, at: &str, source: Source) -> Result<(), Fault> {
        let (parents, name) = at.rsplit_once('/').map_or((None, at), |(parents, name)| (Some(parents), name));
        let mut parent = Arc::clone(root);
        for made_up in parents.into_iter().flat_map(|parents| parents.split('/')) {
            let body = || Body::Directory(Box::new(Directory::new(None, String::new())));
            parent = self.settle(&parent, made_up, Some(body))?.ok_or_else(|| missing_place(at))?;
        }
        match source {
            Source::Directory { origin, prefix, first } => {
                let body = || Body::Directory(Box::new(Directory::new(Some(origin), prefix)));
                let node = self.settle(&parent, name, Some(body))?.ok_or_else(|| missing_place(at))?;
                let directory = node.directory().ok_or_else(|| missing_place(at))?;
                self.absorb(&node, directory, first)
            }
            Source::Object { origin, meta } => {
                let body = || Body::File(file(origin, Some(meta.key.as_str().into()), meta));
                self.settle(&parent, name, Some(body)).map(drop)
            }
        }
    }

    /// The node of an inode number the kernel has from us.
    pub fn node(&self, ino: u64) -> Option<Arc<Node>> {
        let index = usize::try_from(ino.checked_sub(1)?).ok()?;
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(index).cloned()
    }

    /// How many names there are.
    pub fn len(&self) -> u64 {
        u64::try_from(self.nodes.read().unwrap_or_else(PoisonError::into_inner).len()).unwrap_or(u64::MAX)
    }

    /// Whether there is nothing, not even a root; never true.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many keys were met that cannot be shown.
    pub fn hidden(&self) -> u64 {
        self.hidden.load(Ordering::Relaxed)
    }

    /// The key of a file.
    pub fn key(&self, node: &Node) -> Option<Key> {
        if let Some(key) = &node.file()?.key {
            return Some(Key::new(&**key));
        }
        let parent = self.node(node.parent)?;
        let state = lock(&parent.directory()?.state);
        Some(Key::new(format!("{}{}", state.listing.prefix(), node.name)))
    }

    /// What is known about a name without asking the store.
    pub fn known(&self, directory: &Directory, name: &str) -> Known {
        let state = lock(&directory.state);
        if let Some(&ino) = state.by_name.get(name) {
            return self.node(ino).map_or(Known::Missing, Known::Node);
        }
        let listed = directory.origin.is_none() || *state.listing.progress() == Progress::Complete;
        if listed || !is_visible_name(name) || state.missing.contains(&self.hasher.hash_one(name)) {
            return Known::Missing;
        }
        Known::Unknown
    }

    /// Finds a name, asking the store where necessary.
    ///
    /// # Errors
    /// When the store fails. Nothing is frozen then: the next look asks again.
    pub async fn lookup(&self, node: &Arc<Node>, name: &str) -> Result<Option<Arc<Node>>, Fault> {
        let Some(directory) = node.directory() else { return Ok(None) };
        {
            let _turn = directory.turn.lock().await;
            match self.known(directory, name) {
                Known::Node(node) => return Ok(Some(node)),
                Known::Missing => return Ok(None),
                Known::Unknown => {}
            }
            let list_all = lock(&directory.state).missing.len() >= MAX_MISSING;
            while list_all || *lock(&directory.state).listing.progress() == Progress::Fresh {
                self.next_page(node, directory).await?;
                match self.known(directory, name) {
                    Known::Node(node) => return Ok(Some(node)),
                    Known::Missing => return Ok(None),
                    Known::Unknown => {}
                }
            }
        }
        let Some(origin) = &directory.origin else { return Ok(None) };
        match probe(origin, &self.prefix(directory), name).await? {
            Some(Found::Directory { name }) => {
                let prefix = format!("{}{name}/", self.prefix(directory));
                let body = || Body::Directory(Box::new(Directory::new(Some(Arc::clone(origin)), prefix)));
                self.settle(node, &name, Some(body))
            }
            Some(Found::File { name, meta }) => {
                self.settle(node, &name, Some(|| Body::File(file(Arc::clone(origin), None, meta))))
            }
            None => self.settle(node, name, None::<fn() -> Body>),
        }
    }

    fn prefix(&self, directory: &Directory) -> String {
        lock(&directory.state).listing.prefix().to_owned()
    }

    /// Up to `count` names of a directory, from the `from`th on in the order they were met; fewer, or none, when no more are known.
    pub fn entries(&self, directory: &Directory, from: usize, count: usize) -> Vec<Arc<Node>> {
        let state = lock(&directory.state);
        let inos = state.order.iter().skip(from).take(count);
        inos.filter_map(|&ino| self.node(ino)).collect()
    }

    /// Whether the names from the `from`th on can be told without asking the store: some are known, or there are no more.
    pub fn can_tell(&self, directory: &Directory, from: usize) -> bool {
        let state = lock(&directory.state);
        state.order.len() > from || directory.origin.is_none() || *state.listing.progress() == Progress::Complete
    }

    /// Lists on until there is something at `from`, or nothing more at all.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list_to(&self, node: &Arc<Node>, from: usize) -> Result<(), Fault> {
        let Some(directory) = node.directory() else { return Ok(()) };
        let _turn = directory.turn.lock().await;
        while !self.can_tell(directory, from) {
            self.next_page(node, directory).await?;
        }
        Ok(())
    }

    /// Fetches one page. The caller has the turn and knows that there is one.
    async fn next_page(&self, node: &Arc<Node>, directory: &Directory) -> Result<(), Fault> {
        let Some(origin) = &directory.origin else { return Ok(()) };
        let request = {
            let state = lock(&directory.state);
            let continuation = match state.listing.progress() {
                Progress::Fresh => None,
                Progress::Partial(token) => Some(token.clone()),
                Progress::Complete => return Ok(()),
            };
            let prefix = state.listing.prefix().to_owned();
            ListRequest { prefix, delimiter: true, continuation, ..ListRequest::default() }
        };
        let asked = request.continuation.clone();
        let page = origin.store.list(request).await?;
        if page.continuation.is_some() && page.continuation == asked {
            // A server that answers every page with the same token would keep us here for ever.
            return Err(Fault::Internal(
                "the store's listing does not advance (same continuation token twice)".to_owned(),
            ));
        }
        self.absorb(node, directory, page)
    }

    fn absorb(&self, node: &Arc<Node>, directory: &Directory, page: ListPage) -> Result<(), Fault> {
        let Some(origin) = &directory.origin else { return Ok(()) };
        // One lock for the whole page: between "the listing is complete" and "these are its names" nobody may look.
        let mut state = lock(&directory.state);
        let absorbed = state.listing.absorb(page);
        let prefix = state.listing.prefix().to_owned();
        self.report_hidden(&absorbed.hidden);
        for found in absorbed.found {
            match found {
                Found::Directory { name } => {
                    let prefix = format!("{prefix}{name}/");
                    let body = || Body::Directory(Box::new(Directory::new(Some(Arc::clone(origin)), prefix)));
                    self.settle_in(&mut state, node.ino, &name, Some(body))?;
                }
                Found::File { name, meta } => {
                    let body = || Body::File(file(Arc::clone(origin), None, meta));
                    self.settle_in(&mut state, node.ino, &name, Some(body))?;
                }
            }
        }
        Ok(())
    }

    /// Freezes what was found out about a name, unless it was frozen already: the first answer stands. Returns what stands.
    fn settle<F: FnOnce() -> Body>(
        &self,
        parent: &Arc<Node>,
        name: &str,
        found: Option<F>,
    ) -> Result<Option<Arc<Node>>, Fault> {
        let Some(directory) = parent.directory() else { return Ok(None) };
        self.settle_in(&mut lock(&directory.state), parent.ino, name, found)
    }

    fn settle_in<F: FnOnce() -> Body>(
        &self,
        state: &mut State,
        parent: u64,
        name: &str,
        found: Option<F>,
    ) -> Result<Option<Arc<Node>>, Fault> {
        if let Some(&ino) = state.by_name.get(name) {
            return Ok(self.node(ino));
        }
        let hash = self.hasher.hash_one(name);
        if state.missing.contains(&hash) {
            return Ok(None);
        }
        let Some(body) = found else {
            state.missing.insert(hash);
            return Ok(None);
        };
        let name: Arc<str> = Arc::from(name);
        let node = self.push(parent, Arc::clone(&name), body())?;
        state.by_name.insert(name, node.ino);
        state.order.push(node.ino);
        Ok(Some(node))
    }

    fn push(&self, parent: u64, name: Arc<str>, body: Body) -> Result<Arc<Node>, Fault> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= MAX_NODES {
            return Err(Fault::TooManyNames(MAX_NODES));
        }
        let ino = u64::try_from(nodes.len()).unwrap_or(u64::MAX).saturating_add(1);
        let node = Arc::new(Node { ino, parent, name, body });
        nodes.push(Arc::clone(&node));
        Ok(node)
    }

    fn report_hidden(&self, keys: &[String]) {
        let Some(first) = keys.first() else { return };
        let before = self.hidden.fetch_add(u64::try_from(keys.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if before == 0 {
            warn!(
                mount = self.label,
                key = %first.escape_debug(),
                "there are keys that a file system cannot show (empty, '.' or '..' segments, NUL, names over 255 bytes, \
                 or an object beside a directory of the same name); this is the first, further ones are counted in `fuse-oss status`"
            );
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let hidden = self.hidden();
        if hidden > 0 {
            info!(mount = self.label, hidden, "keys were not shown");
        }
    }
}

fn missing_place(at: &str) -> Fault {
    Fault::Internal(format!("no place for entry {at:?}"))
}

fn file(origin: Arc<Origin>, key: Option<Box<str>>, meta: ObjectMeta) -> File {
    File {
        origin,
        key,
        size: meta.size,
        modified: meta.modified,
        etag: meta.etag,
        archived: meta.archived,
        proved: AtomicBool::new(false),
        times_wrong: AtomicU64::new(0),
    }
}

/// Asks the store for one name: is there anything below it, or an object of that key?
async fn probe(origin: &Origin, prefix: &str, name: &str) -> Result<Option<Found>, Fault> {
    let key = format!("{prefix}{name}");
    let below = ListRequest { prefix: format!("{key}/"), max_keys: Some(1), ..ListRequest::default() };
    let key = Key::new(key);
    let (below, object) = tokio::join!(origin.store.list(below), origin.store.head(&key));
    let below = below?;
    if !below.objects.is_empty() || !below.prefixes.is_empty() {
        return Ok(Some(Found::Directory { name: name.to_owned() }));
    }
    match object {
        Ok(meta) => Ok(Some(Found::File { name: name.to_owned(), meta })),
        Err(error) if *error.kind() == oss::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::double::{Content, DoubleStore};
    use std::collections::BTreeSet;

    async fn tree(store: &Arc<DoubleStore>, prefix: &str) -> Namespace {
        let request = ListRequest { prefix: prefix.into(), delimiter: true, ..ListRequest::default() };
        let first = store.list(request).await.unwrap();
        let source = Source::Directory { origin: store.origin(), prefix: prefix.into(), first };
        Namespace::new("test".into(), vec![(String::new(), source)]).unwrap()
    }

    async fn names(namespace: &Namespace, node: &Arc<Node>) -> BTreeSet<String> {
        let mut from = 0;
        let mut names = BTreeSet::new();
        loop {
            namespace.list_to(node, from).await.unwrap();
            let batch = namespace.entries(node.directory().unwrap(), from, 7);
            if batch.is_empty() {
                return names;
            }
            from += batch.len();
            for node in batch {
                assert!(names.insert(node.name.to_string()), "{} came twice", node.name);
            }
        }
    }

    async fn find(namespace: &Namespace, path: &str) -> Option<Arc<Node>> {
        let mut node = namespace.node(ROOT).unwrap();
        for name in path.split('/') {
            node = match namespace.known(node.directory()?, name) {
                Known::Node(node) => node,
                Known::Missing => return None,
                Known::Unknown => namespace.lookup(&node, name).await.unwrap()?,
            };
        }
        Some(node)
    }

    #[tokio::test]
    async fn a_small_directory_costs_one_request() {
        let store = DoubleStore::with_keys(1000, &["d/a", "d/b", "d/e/f", "d/marked/"]);
        let namespace = tree(&store, "d/").await;
        for (path, size) in [("a", Some(3)), ("b", Some(3)), ("e", None), ("marked", None)] {
            let node = find(&namespace, path).await.unwrap();
            assert_eq!(node.file().map(|file| file.size), size, "{path}");
        }
        assert!(find(&namespace, "none").await.is_none());
        assert!(find(&namespace, "a/below").await.is_none());
        assert_eq!(store.knobs.lists.load(Ordering::Relaxed), 1);
        assert_eq!(store.knobs.heads.load(Ordering::Relaxed), 0);
        let file = find(&namespace, "e/f").await.unwrap();
        assert_eq!(namespace.key(&file).unwrap().as_str(), "d/e/f");
        assert!(names(&namespace, &find(&namespace, "marked").await.unwrap()).await.is_empty());
    }

    #[tokio::test]
    async fn one_name_of_a_large_directory_costs_two() {
        let keys: Vec<String> = (0..500).map(|i| format!("{i:03}")).collect();
        let store = DoubleStore::with_keys(10, &keys.iter().map(String::as_str).collect::<Vec<_>>());
        let namespace = tree(&store, "").await;
        assert!(find(&namespace, "437").await.is_some());
        assert!(find(&namespace, "nope").await.is_none());
        assert!(find(&namespace, "nope").await.is_none());
        assert_eq!(store.knobs.lists.load(Ordering::Relaxed), 3);
        assert_eq!(store.knobs.heads.load(Ordering::Relaxed), 2);
        let root = namespace.node(ROOT).unwrap();
        assert_eq!(names(&namespace, &root).await.len(), 500);
    }

    #[tokio::test]
    async fn what_was_seen_stays_and_what_was_missing_stays_missing() {
        let keys: Vec<String> = (0..50).map(|i| format!("k{i:02}")).collect();
        let store = DoubleStore::with_keys(10, &keys.iter().map(String::as_str).collect::<Vec<_>>());
        let namespace = tree(&store, "").await;
        let seen = find(&namespace, "k33").await.unwrap();
        assert!(find(&namespace, "k33x").await.is_none());
        store.put("k33x", Content::MadeUp(1));
        store.put("k33", Content::MadeUp(77));
        store.remove("k34");
        store.put("k40/now/a/directory", Content::MadeUp(1));
        let again = find(&namespace, "k33").await.unwrap();
        assert_eq!((again.ino, again.file().unwrap().size), (seen.ino, 3));
        let root = namespace.node(ROOT).unwrap();
        let names = names(&namespace, &root).await;
        assert!(names.contains("k33") && !names.contains("k33x") && !names.contains("k34"), "{names:?}");
        assert!(find(&namespace, "k40").await.unwrap().directory().is_some());
        assert!(find(&namespace, "k33x").await.is_none());
    }

    #[tokio::test]
    async fn the_directory_keeps_the_name_whichever_way_it_is_found() {
        let keys: Vec<String> =
            ["x", "x/y"].into_iter().map(str::to_owned).chain((0..30).map(|i| format!("x-{i:02}"))).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        for page in [1, 10, 1000] {
            let store = DoubleStore::with_keys(page, &keys);
            let by_lookup = tree(&store, "").await;
            assert!(find(&by_lookup, "x").await.unwrap().directory().is_some(), "pages of {page}");
            let by_listing = tree(&store, "").await;
            assert_eq!(names(&by_listing, &by_listing.node(ROOT).unwrap()).await.len(), 31);
            assert!(find(&by_listing, "x").await.unwrap().directory().is_some(), "pages of {page}");
            assert_eq!(by_listing.hidden(), 1);
        }
    }

    #[tokio::test]
    async fn entries_stand_at_their_places() {
        let store = DoubleStore::with_keys(1000, &["d/a", "one"]);
        let request = ListRequest { prefix: "d/".into(), delimiter: true, ..ListRequest::default() };
        let first = store.list(request).await.unwrap();
        let meta = store.head(&Key::new("one")).await.unwrap();
        let entries = vec![
            ("0".to_owned(), Source::Directory { origin: store.origin(), prefix: "d/".into(), first }),
            ("1/x/renamed".to_owned(), Source::Object { origin: store.origin(), meta }),
        ];
        let namespace = Namespace::new("test".into(), entries).unwrap();
        let object = find(&namespace, "1/x/renamed").await.unwrap();
        assert_eq!(namespace.key(&object).unwrap().as_str(), "one");
        assert_eq!(namespace.key(&find(&namespace, "0/a").await.unwrap()).unwrap().as_str(), "d/a");
        assert_eq!(names(&namespace, &find(&namespace, "1").await.unwrap()).await, ["x".to_owned()].into());
        assert!(find(&namespace, "1/y").await.is_none());
    }

    #[tokio::test]
    async fn many_misses_end_in_one_listing() {
        let keys: Vec<String> = (0..100).map(|i| format!("{i:03}")).collect();
        let store = DoubleStore::with_keys(10, &keys.iter().map(String::as_str).collect::<Vec<_>>());
        let namespace = tree(&store, "").await;
        for i in 0..MAX_MISSING + 50 {
            assert!(find(&namespace, &format!("miss{i}")).await.is_none());
        }
        let heads = store.knobs.heads.load(Ordering::Relaxed);
        assert!(heads <= u64::try_from(MAX_MISSING).unwrap() + 1, "{heads}");
        assert!(find(&namespace, "099").await.is_some());
    }
}
