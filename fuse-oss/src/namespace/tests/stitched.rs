//! Several locations in one tree, against a plain model of what is to be shown.

use super::*;
use crate::options::{MountEntry, check_entries};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;

/// A location at its place.
#[derive(Debug, Clone)]
struct Place {
    at: String,
    store: usize,
    /// A prefix, or the key of one object.
    key: String,
    object: bool,
    charset: Charset,
}

/// What a tree of places is to show: directories, and files by path with store and key.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shown {
    directories: BTreeSet<String>,
    files: BTreeMap<String, (usize, String)>,
    hidden: u64,
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

/// The model.
struct Model<'a> {
    places: &'a [Place],
    stores: &'a [BTreeMap<String, u64>],
    shown: Shown,
}

impl Model<'_> {
    fn is_place(&self, path: &str) -> bool {
        self.places.iter().any(|place| place.at == path)
    }

    fn is_on_the_way(&self, path: &str) -> bool {
        self.places.iter().any(|place| path.is_empty() || place.at.starts_with(&format!("{path}/")))
    }

    fn show(mut self) -> Shown {
        self.shown.directories.insert(String::new());
        for place in self.places {
            for (at, _) in place.at.match_indices('/') {
                self.shown.directories.insert(place.at[..at].to_owned());
            }
            if place.object {
                self.shown.files.insert(place.at.clone(), (place.store, place.key.clone()));
            } else {
                self.directory(&place.at, place.store, &place.key, place.charset);
            }
        }
        self.shown
    }

    fn directory(&mut self, path: &str, store: usize, prefix: &str, charset: Charset) {
        self.shown.directories.insert(path.to_owned());
        let (mut below, mut objects) = (BTreeSet::new(), Vec::new());
        for (key, size) in &self.stores[store] {
            let Some(rest) = key.strip_prefix(prefix) else { continue };
            match rest.split_once('/') {
                Some((name, _)) => drop(below.insert(name.to_owned())),
                None => objects.push((rest.to_owned(), *size)),
            }
        }
        for (name, size) in objects {
            let at = join(path, &name);
            let is_taken = self.is_place(&at) || self.is_on_the_way(&at) || below.contains(&name);
            if name.is_empty() && !prefix.is_empty() {
                self.shown.hidden += u64::from(size > 0);
            } else if !charset.shows(&name) || is_taken {
                self.shown.hidden += 1;
            } else {
                self.shown.files.insert(at, (store, format!("{prefix}{name}")));
            }
        }
        for place in self.places {
            let rest =
                if path.is_empty() { Some(place.at.as_str()) } else { place.at.strip_prefix(&format!("{path}/")) };
            if let Some((name, _)) = rest.and_then(|rest| rest.split_once('/'))
                && !self.is_place(&join(path, name))
            {
                below.insert(name.to_owned());
            }
        }
        for name in below {
            let at = join(path, &name);
            if !charset.shows(&name) || self.is_place(&at) {
                self.shown.hidden += 1;
            } else {
                self.directory(&at, store, &format!("{prefix}{name}/"), charset);
            }
        }
    }
}

/// Stores of these keys, and a tree of these places; none when one of them has nothing to show.
async fn stitch(
    places: &[Place],
    keys: &[BTreeMap<String, u64>],
    page: usize,
    journal: Option<&File>,
) -> Option<(Namespace, Vec<Arc<DoubleStore>>)> {
    let stores: Vec<Arc<DoubleStore>> = keys.iter().map(|_| DoubleStore::new(page)).collect();
    let origins: Vec<Arc<Origin>> = stores.iter().map(DoubleStore::origin).collect();
    for (store, keys) in stores.iter().zip(keys) {
        for (key, size) in keys {
            store.put(key, Content::MadeUp(*size));
        }
    }
    let mut entries = Vec::new();
    for place in places {
        let origin = Arc::clone(&origins[place.store]);
        let source = if place.object {
            Source::Object { meta: origin.store.head(&Key::new(place.key.as_str())).await.ok()?, origin }
        } else {
            let request = ListRequest { prefix: place.key.clone(), delimiter: true, ..ListRequest::default() };
            let first = origin.store.list(request).await.ok()?;
            Source::Directory { origin, prefix: place.key.clone(), first }
        };
        entries.push(Placed { at: place.at.clone(), charset: place.charset, source });
    }
    let journal = journal.map(|journal| journal.try_clone().unwrap());
    Some((Namespace::new("test".into(), identity(), entries, journal).unwrap(), stores))
}

/// All that a tree shows, by walking it.
async fn shown(namespace: &Namespace, stores: &[Arc<DoubleStore>]) -> Shown {
    let mut shown = Shown::default();
    let mut todo = vec![(ROOT, String::new())];
    while let Some((ino, path)) = todo.pop() {
        shown.directories.insert(path.clone());
        for name in names(namespace, ino).await {
            let Known::Node(node) = namespace.known(ino, &name) else { panic!("{path}/{name} is not known") };
            let at = join(&path, &name);
            if node.directory {
                todo.push((node.ino, at));
            } else {
                shown.files.insert(at, of(namespace, &node, stores));
            }
        }
    }
    shown.hidden = namespace.hidden();
    shown
}

/// Which object of which store a file is.
fn of(namespace: &Namespace, node: &Node, stores: &[Arc<DoubleStore>]) -> (usize, String) {
    let file = namespace.file(node.ino).unwrap();
    let is_it = |store: &Arc<DoubleStore>| std::ptr::addr_eq(Arc::as_ptr(store), Arc::as_ptr(&file.origin.store));
    (stores.iter().position(is_it).unwrap(), file.key.as_str().to_owned())
}

/// What may be asked before everything is looked at.
#[derive(Debug, Clone)]
enum Look {
    Find(String),
    List(String),
    Everything,
}

fn looks() -> impl Strategy<Value = Vec<Look>> {
    let path = "[ab#](/[ab#.]{1,2}){0,3}";
    let look = prop_oneof![
        4 => path.prop_map(Look::Find),
        3 => path.prop_map(Look::List),
        1 => Just(Look::Everything),
    ];
    proptest::collection::vec(look, 0..12)
}

fn places() -> impl Strategy<Value = Vec<Place>> {
    let charset = proptest::sample::select(&["UTF-8", "GBK"][..]).prop_map(|name| name.parse().unwrap());
    let at = prop_oneof![1 => Just(String::new()), 4 => "[ab](/[ab]){0,3}"];
    let key = prop_oneof![Just(String::new()), "([ab]/){1,2}", "[ab](/[ab]){0,2}"];
    let place = (at, 0_usize..3, key, charset).prop_map(|(at, store, key, charset)| {
        let object = !key.is_empty() && !key.ends_with('/');
        Place { at, store, key, object, charset }
    });
    let is_tree = |places: &Vec<Place>| {
        let location = |place: &Place| format!("oss://double{}/{}", place.store, place.key).parse().unwrap();
        let entries: Vec<_> = places.iter().map(|place| MountEntry::new(place.at.clone(), location(place))).collect();
        check_entries(&entries).is_ok()
    };
    let is_below_the_top = |places: &Vec<Place>| !places.iter().any(|place| place.object && place.at.is_empty());
    proptest::collection::vec(place, 1..5)
        .prop_filter("they are no tree", is_tree)
        .prop_filter("nothing to walk", is_below_the_top)
}

fn keys() -> impl Strategy<Value = Vec<BTreeMap<String, u64>>> {
    let keys = proptest::collection::btree_map("[ab](/?[ab#\u{4e2d}.]){0,5}/?", 0_u64..3, 0..25);
    proptest::collection::vec(keys, 3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_stitched_tree_is_what_the_model_says(
        places in places(), mut keys in keys(), looks in looks(), page in 1_usize..6,
    ) {
        for place in places.iter().filter(|place| place.object) {
            keys[place.store].entry(place.key.clone()).or_insert(1);
        }
        let model = Model { places: &places, stores: &keys, shown: Shown::default() }.show();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let journal = File::from(memfd_create(c"names", MFdFlags::MFD_CLOEXEC).unwrap());
            let Some((namespace, stores)) = stitch(&places, &keys, page, Some(&journal)).await else { return Ok(()) };
            for look in &looks {
                match look {
                    Look::Find(path) => match find(&namespace, path).await {
                        Some(node) if node.directory => prop_assert!(model.directories.contains(path), "{path}"),
                        Some(node) => prop_assert_eq!(Some(&of(&namespace, &node, &stores)), model.files.get(path)),
                        None => prop_assert!(!model.directories.contains(path) && !model.files.contains_key(path), "{}", path),
                    },
                    Look::List(path) => {
                        if let Some(node) = find(&namespace, path).await {
                            drop(names(&namespace, node.ino).await);
                        }
                    }
                    Look::Everything => namespace.prefetch().await.unwrap(),
                }
            }
            // Another process goes on from here and shows the same.
            let before = namespace.shared.read().all();
            drop(namespace);
            let origins: Vec<_> = places.iter().map(|place| stores[place.store].origin()).collect();
            let namespace = Namespace::recover("test".into(), &origins, journal).unwrap();
            prop_assert_eq!(namespace.shared.read().all(), before);
            prop_assert_eq!(shown(&namespace, &stores).await, model);
            Ok(())
        })?;
    }
}

fn place(at: &str, store: usize, key: &str) -> Place {
    let object = !key.is_empty() && !key.ends_with('/');
    Place { at: at.to_owned(), store, key: key.to_owned(), object, charset: Charset::UTF_8 }
}

fn listed(keys: &[&str]) -> BTreeMap<String, u64> {
    keys.iter().map(|key| ((*key).to_owned(), 1)).collect()
}

#[tokio::test]
async fn an_inner_location_wins_and_its_neighbours_stay() {
    let keys = [listed(&["a/file", "a/in/old", "a/in/deep/older", "a/way", "b"]), listed(&["x/new", "one"])];
    let places = [place("", 0, ""), place("a/in", 1, "x/"), place("a/way/to/one", 1, "one")];
    let (namespace, stores) = stitch(&places, &keys, 2, None).await.unwrap();
    let tree = shown(&namespace, &stores).await;
    let files: Vec<_> = tree.files.iter().map(|(at, (store, key))| (at.as_str(), *store, key.as_str())).collect();
    assert_eq!(files, [("a/file", 0, "a/file"), ("a/in/new", 1, "x/new"), ("a/way/to/one", 1, "one"), ("b", 0, "b")]);
    // The file where a directory is needed, and the directory that is covered.
    assert_eq!(namespace.hidden(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walk_around_a_covered_directory_costs_its_pages_and_no_more() {
    let outer = wide(200, 100);
    outer.knobs.list_delay_ms.store(2, Ordering::Relaxed);
    let inner = DoubleStore::with_keys(1000, &["only"]);
    let mut entries = Vec::new();
    for (at, store) in [("", &outer), ("d100", &inner), ("d150/f050", &inner), ("none/such/place", &inner)] {
        let request = ListRequest { delimiter: true, ..ListRequest::default() };
        let first = store.list(request).await.unwrap();
        entries.push((at.to_owned(), Source::Directory { origin: store.origin(), prefix: String::new(), first }));
    }
    let namespace = Namespace::new("test".into(), identity(), entries, None).unwrap();
    // Two hundred directories, one of which is another; one file is a directory with one; and the three that were made up.
    assert_eq!(walk(&namespace).await, 200 + 199 * 100 + 1 + 1 + 3 + 1);
    assert!(lists(&outer) <= 35, "{} listings", lists(&outer));
    assert_eq!((lists(&inner), namespace.hidden()), (3, 2));
    let file = find(&namespace, "d150/f050/only").await.unwrap();
    assert_eq!(key(&namespace, &file), "only");
}

#[tokio::test(flavor = "multi_thread")]
async fn locations_of_the_same_keys_do_not_wait_for_one_another() {
    let (first, second) = (wide(100, 50), wide(100, 50));
    let mut entries = Vec::new();
    for (at, store) in [("x", &first), ("y", &second)] {
        let page = store.list(ListRequest { delimiter: true, ..ListRequest::default() }).await.unwrap();
        entries.push((at.to_owned(), Source::Directory { origin: store.origin(), prefix: String::new(), first: page }));
    }
    let namespace = Namespace::new("test".into(), identity(), entries, None).unwrap();
    // A sweep goes through the first, and says nothing of the second.
    for d in 0..30 {
        assert!(find(&namespace, &format!("x/d{d:03}/f000")).await.is_some());
    }
    // From here on whoever waits for it waits in vain.
    first.knobs.list_delay_ms.store(3_600_000, Ordering::Relaxed);
    let found = tokio::time::timeout(Duration::from_secs(60), find(&namespace, "y/d010/f001")).await;
    assert!(found.expect("it waits for the other location").is_some());
    assert_eq!(lists(&second), 2);
}

#[tokio::test]
async fn one_object_can_be_all_there_is() {
    let store = DoubleStore::with_keys(10, &["dir/one"]);
    let meta = store.head(&Key::new("dir/one")).await.unwrap();
    let source = Source::Object { origin: store.origin(), meta };
    let namespace = Namespace::new("test".into(), identity(), vec![(String::new(), source)], None).unwrap();
    let root = namespace.node(ROOT).unwrap();
    assert_eq!((root.directory, root.size, namespace.len()), (false, 7, 1));
    assert_eq!(key(&namespace, &root), "dir/one");
    assert_eq!(namespace.known(ROOT, "x"), Known::Missing);
    assert_eq!(namespace.lookup(ROOT, "x").await.unwrap(), None);
    namespace.prefetch().await.unwrap();
    assert_eq!((namespace.totals(), namespace.files_in_order(0, 9).len()), ((1, 7), 1));
    assert!(namespace.siblings_after(ROOT, 5).is_empty());
}

#[tokio::test]
async fn names_longer_than_a_record_says_are_kept_whole() {
    let long = "\u{4e2d}".repeat(127);
    let keys = [listed(&[&long, &format!("{long}x"), &format!("{long}\u{4e2d}"), &format!("{long}/below")])];
    let gbk = "GBK".parse().unwrap();
    let (namespace, stores) = stitch(&[Place { charset: gbk, ..place("", 0, "") }], &keys, 10, None).await.unwrap();
    let tree = shown(&namespace, &stores).await;
    assert_eq!(namespace.charset(ROOT), gbk);
    assert_eq!(tree.files.keys().collect::<Vec<_>>(), [&format!("{long}/below"), &format!("{long}x")]);
    // What is too long in any set, and the object beside the directory.
    assert_eq!(tree.hidden, 2);
}
