//! The namespace against a store that counts.

use super::*;
use crate::double::{Content, DoubleStore};
use std::collections::BTreeSet;

async fn tree(store: &Arc<DoubleStore>, prefix: &str) -> Namespace {
    let request = ListRequest { prefix: prefix.into(), delimiter: true, ..ListRequest::default() };
    let first = store.list(request).await.unwrap();
    let source = Source::Directory { origin: store.origin(), prefix: prefix.into(), first };
    Namespace::new("test".into(), vec![(String::new(), source)]).unwrap()
}

async fn names(namespace: &Namespace, ino: u64) -> BTreeSet<String> {
    let mut from = 0;
    let mut names = BTreeSet::new();
    loop {
        namespace.list_to(ino, from).await.unwrap();
        let before = from;
        namespace.entries(ino, from, |_, name| {
            from += 1;
            assert!(names.insert(name.to_owned()), "{name} came twice");
            from < before + 7
        });
        if from == before {
            return names;
        }
    }
}

async fn find(namespace: &Namespace, path: &str) -> Option<Node> {
    let mut node = namespace.node(ROOT).unwrap();
    for name in path.split('/') {
        node = match namespace.known(node.ino, name) {
            Known::Node(node) => node,
            Known::Missing => return None,
            Known::Unknown => namespace.lookup(node.ino, name).await.unwrap()?,
        };
    }
    Some(node)
}

fn key(namespace: &Namespace, node: &Node) -> String {
    namespace.file(node.ino).unwrap().key.as_str().to_owned()
}

#[tokio::test]
async fn a_small_directory_costs_one_request() {
    let store = DoubleStore::with_keys(1000, &["d/a", "d/b", "d/e/f", "d/marked/"]);
    let namespace = tree(&store, "d/").await;
    for (path, size) in [("a", Some(3)), ("b", Some(3)), ("e", None), ("marked", None)] {
        let node = find(&namespace, path).await.unwrap();
        assert_eq!((!node.directory).then_some(node.size), size, "{path}");
    }
    assert!(find(&namespace, "none").await.is_none());
    assert!(find(&namespace, "a/below").await.is_none());
    assert_eq!(store.knobs.lists.load(Ordering::Relaxed), 1);
    assert_eq!(store.knobs.heads.load(Ordering::Relaxed), 0);
    let file = find(&namespace, "e/f").await.unwrap();
    assert_eq!(key(&namespace, &file), "d/e/f");
    assert!(names(&namespace, find(&namespace, "marked").await.unwrap().ino).await.is_empty());
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
    assert_eq!(names(&namespace, ROOT).await.len(), 500);
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
    assert_eq!((again.ino, again.size), (seen.ino, 3));
    let names = names(&namespace, ROOT).await;
    assert!(names.contains("k33") && !names.contains("k33x") && !names.contains("k34"), "{names:?}");
    assert!(find(&namespace, "k40").await.unwrap().directory);
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
        assert!(find(&by_lookup, "x").await.unwrap().directory, "pages of {page}");
        let by_listing = tree(&store, "").await;
        assert_eq!(names(&by_listing, ROOT).await.len(), 31);
        assert!(find(&by_listing, "x").await.unwrap().directory, "pages of {page}");
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
    assert_eq!(key(&namespace, &object), "one");
    assert_eq!(key(&namespace, &find(&namespace, "0/a").await.unwrap()), "d/a");
    assert_eq!(names(&namespace, find(&namespace, "1").await.unwrap().ino).await, ["x".to_owned()].into());
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
