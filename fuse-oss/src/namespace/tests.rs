//! The namespace against a store that counts.

use super::*;
use crate::double::{Content, DoubleStore};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

mod stitched;

pub fn identity() -> Identity {
    let created = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    Identity { created, salt: 7, uid: 1, gid: 2, most_names: 1_000_000 }
}

async fn tree(store: &Arc<DoubleStore>, prefix: &str) -> Namespace {
    let request = ListRequest { prefix: prefix.into(), delimiter: true, ..ListRequest::default() };
    let first = store.list(request).await.unwrap();
    let source = Source::Directory { origin: store.origin(), prefix: prefix.into(), first };
    Namespace::new("test".into(), identity(), vec![(String::new(), source)], None).unwrap()
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
    let namespace = Namespace::new("test".into(), identity(), entries, None).unwrap();
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

/// 20,000 objects in 200 directories, or so.
fn wide(directories: u32, files: u32) -> Arc<DoubleStore> {
    let store = DoubleStore::new(1000);
    for d in 0..directories {
        for f in 0..files {
            store.put(&format!("d{d:03}/f{f:03}"), Content::MadeUp(u64::from(d * files + f)));
        }
    }
    store
}

fn lists(store: &DoubleStore) -> u64 {
    store.knobs.lists.load(Ordering::Relaxed)
}

async fn walk(namespace: &Namespace) -> usize {
    let mut todo = vec![ROOT];
    let mut seen = 0;
    while let Some(ino) = todo.pop() {
        let mut from = 0;
        loop {
            if !namespace.can_tell(ino, from) {
                namespace.list_to(ino, from).await.unwrap();
            }
            let before = from;
            let mut below = Vec::new();
            namespace.entries(ino, from, |node, _| {
                from += 1;
                if node.directory {
                    below.push(node.ino);
                }
                true
            });
            todo.extend(below.into_iter().rev());
            if from == before {
                break;
            }
        }
        seen += from;
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walk_costs_the_pages_of_the_tree_and_the_next_one_nothing() {
    for delay in [0, 3] {
        let store = wide(200, 100);
        store.knobs.list_delay_ms.store(delay, Ordering::Relaxed);
        let namespace = tree(&store, "").await;
        assert_eq!(walk(&namespace).await, 20_200);
        assert!(lists(&store) <= 25, "{} listings", lists(&store));
        let before = lists(&store);
        assert_eq!(walk(&namespace).await, 20_200);
        assert_eq!((lists(&store), store.knobs.heads.load(Ordering::Relaxed)), (before, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_walkers_at_once_cost_little_more() {
    let store = wide(200, 100);
    store.knobs.list_delay_ms.store(3, Ordering::Relaxed);
    let namespace = Arc::new(tree(&store, "").await);
    let walkers: Vec<_> = (0..8)
        .map(|_| {
            let namespace = Arc::clone(&namespace);
            tokio::spawn(async move { walk(&namespace).await })
        })
        .collect();
    for walker in walkers {
        assert_eq!(walker.await.unwrap(), 20_200);
    }
    assert!(lists(&store) <= 30, "{} listings", lists(&store));
}

#[tokio::test(flavor = "multi_thread")]
async fn random_looks_wait_a_few_times_only() {
    let store = wide(200, 100);
    store.knobs.list_delay_ms.store(10, Ordering::Relaxed);
    let namespace = tree(&store, "").await;
    let mut waited = 0;
    for look in 0..2000_u64 {
        let number = look * 7919 % 20_000;
        let (directory, file) = (format!("d{:03}", number / 100), format!("f{:03}", number % 100));
        let Known::Node(directory) = namespace.known(ROOT, &directory) else { panic!("{directory} is not known") };
        let node = match namespace.known(directory.ino, &file) {
            Known::Node(node) => node,
            Known::Missing => panic!("{file} is missing"),
            Known::Unknown => {
                waited += 1;
                namespace.lookup(directory.ino, &file).await.unwrap().unwrap()
            }
        };
        assert_eq!(node.size, number);
    }
    // At 20 ms each, 0.8 s.
    assert!(waited <= 40, "waited {waited} times");
}

#[tokio::test]
async fn looking_at_the_top_does_not_list_the_bucket() {
    let store = wide(900, 30);
    let namespace = tree(&store, "").await;
    assert_eq!(names(&namespace, ROOT).await.len(), 900);
    assert!(find(&namespace, "d500/f007").await.is_some());
    assert_eq!(lists(&store), 2);
}

#[tokio::test]
async fn where_only_directories_may_be_listed_that_is_what_is_done() {
    let store = wide(20, 20);
    store.knobs.deny_flat.store(true, Ordering::Relaxed);
    let namespace = tree(&store, "").await;
    assert_eq!(walk(&namespace).await, 420);
    // Each directory, the root, and a few attempts.
    assert!(lists(&store) <= 25, "{} listings", lists(&store));
}

#[tokio::test]
async fn a_store_in_disorder_is_listed_by_directory() {
    let store = wide(20, 20);
    store.knobs.reversed.store(true, Ordering::Relaxed);
    let namespace = tree(&store, "").await;
    assert_eq!(walk(&namespace).await, 420);
    namespace.prefetch().await.unwrap();
    assert_eq!(namespace.len(), 421);
}

#[tokio::test]
async fn a_listing_that_never_ends_is_an_error() {
    let store = wide(3, 3);
    let namespace = tree(&store, "").await;
    store.knobs.endless.store(true, Ordering::Relaxed);
    let node = find(&namespace, "d000").await.unwrap();
    let fault = namespace.list_to(node.ino, 0).await.unwrap_err();
    assert!(fault.to_string().contains("does not advance"), "{fault}");
    // One name can still be had by itself.
    assert!(namespace.lookup(node.ino, "f000").await.unwrap().is_some());
    let before = lists(&store);
    assert!(before <= 200, "{before} listings");
    // Nothing was frozen: when the store has recovered, so has the mount.
    store.knobs.endless.store(false, Ordering::Relaxed);
    assert_eq!(walk(&namespace).await, 12);
}

#[tokio::test]
async fn a_directory_that_goes_on_and_on_leaves_room_for_others() {
    let store = wide(2, 200);
    store.put("other/file", Content::MadeUp(5));
    let request = ListRequest { delimiter: true, ..ListRequest::default() };
    let source =
        Source::Directory { origin: store.origin(), prefix: String::new(), first: store.list(request).await.unwrap() };
    let identity = Identity { most_names: 150, ..identity() };
    let namespace = Namespace::new("test".into(), identity, vec![(String::new(), source)], None).unwrap();
    let large = find(&namespace, "d000").await.unwrap();
    let fault = namespace.list_to(large.ino, 199).await.unwrap_err();
    assert!(fault.to_string().contains("120 names"), "{fault}");
    assert_eq!(fault.errno_at_open(), libc::ENOMEM);
    assert!(namespace.len() <= 150);
    // What is known of it stays, what it has beyond cannot be had, and others are not affected.
    assert!(namespace.can_tell(large.ino, 119) && find(&namespace, "d000/f000").await.is_some());
    assert_eq!(find(&namespace, "other/file").await.unwrap().size, 5);
    let lists_before = lists(&store);
    assert!(namespace.lookup(large.ino, "f199").await.is_err());
    assert!(lists(&store) <= lists_before + 2);
}

#[tokio::test]
async fn a_refusal_is_told_to_everybody_who_waits_and_asked_again() {
    let store = wide(3, 3);
    let namespace = Arc::new(tree(&store, "").await);
    store.knobs.deny.store(true, Ordering::Relaxed);
    store.knobs.list_delay_ms.store(5, Ordering::Relaxed);
    let waiting: Vec<_> = ["d000", "d000", "d001", "d002", "d002"]
        .into_iter()
        .map(|name| {
            let namespace = Arc::clone(&namespace);
            tokio::spawn(async move {
                let node = find(&namespace, name).await.unwrap();
                namespace.list_to(node.ino, 0).await
            })
        })
        .collect();
    for waiting in waiting {
        assert!(waiting.await.unwrap().is_err());
    }
    store.knobs.deny.store(false, Ordering::Relaxed);
    assert_eq!(walk(&namespace).await, 12);
}

#[tokio::test]
async fn a_name_asked_for_again_and_again_in_a_large_directory_lists_it_on() {
    let store = DoubleStore::new(10);
    for f in 0..900 {
        store.put(&format!("d000/f{f:03}"), Content::MadeUp(f));
    }
    store.knobs.list_delay_ms.store(1, Ordering::Relaxed);
    let namespace = tree(&store, "").await;
    for f in (0..900).rev().step_by(3) {
        assert_eq!(find(&namespace, &format!("d000/f{f:03}")).await.unwrap().size, f);
    }
    let heads = store.knobs.heads.load(Ordering::Relaxed);
    assert!(heads <= 150, "{heads} names were asked for one by one");
}

#[tokio::test]
async fn files_know_what_comes_after_them() {
    let store = DoubleStore::with_keys(1000, &["a", "b", "c/x", "c/y", "d", "e", "f"]);
    let namespace = tree(&store, "").await;
    let a = find(&namespace, "a").await.unwrap();
    let after = |node: &Node, count| {
        let next = namespace.siblings_after(node.ino, count).into_iter();
        next.map(|node| namespace.name(node.ino).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(after(&a, 3), ["b", "d", "e"]);
    assert_eq!(after(&a, 100), ["b", "d", "e", "f"]);
    let f = find(&namespace, "f").await.unwrap();
    assert!(after(&f, 3).is_empty());
    assert_eq!((namespace.position(a.ino), namespace.position(f.ino)), (Some(0), Some(5)));
    assert!(namespace.siblings_after(u64::MAX, 1).is_empty());
    walk(&namespace).await;
    let all = |from, count| {
        let files = namespace.files_in_order(from, count).into_iter();
        files.map(|node| key(&namespace, &node)).collect::<Vec<_>>()
    };
    assert_eq!(all(0, 100), ["a", "b", "d", "e", "f", "c/x", "c/y"]);
    let two = namespace.files_in_order(0, 2);
    assert_eq!(all(two[1].ino + 1, 2), ["d", "e"]);
    assert_eq!(namespace.totals(), (7, 1 + 1 + 3 + 3 + 1 + 1 + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_listed_ahead_of_time() {
    let store = wide(50, 100);
    let meta = {
        store.put("single", Content::MadeUp(5));
        store.head(&Key::new("single")).await.unwrap()
    };
    let source = |prefix: &'static str| {
        let store = Arc::clone(&store);
        async move {
            let request = ListRequest { prefix: prefix.into(), delimiter: true, ..ListRequest::default() };
            let first = store.list(request).await.unwrap();
            Source::Directory { origin: store.origin(), prefix: prefix.into(), first }
        }
    };
    let entries = vec![
        ("all".to_owned(), source("").await),
        ("some/one".to_owned(), source("d001/").await),
        ("some/file".to_owned(), Source::Object { origin: store.origin(), meta }),
    ];
    let namespace = Namespace::new("test".into(), identity(), entries, None).unwrap();
    assert_eq!(namespace.prefetched(), None);
    // Somebody looks around meanwhile, so that sweeps meet.
    let looks = async {
        for d in [40, 20, 30, 10] {
            find(&namespace, &format!("all/d{d:03}/f000")).await.unwrap();
        }
    };
    let (outcome, ()) = tokio::join!(namespace.prefetch(), looks);
    outcome.unwrap();
    assert_eq!(namespace.prefetched(), Some(Progress { finished: true, error: None }));
    let before = lists(&store);
    // What is shown: two trees, two places, one object.
    assert_eq!(walk(&namespace).await, 5001 + 50 + 100 + 4);
    assert_eq!(lists(&store), before);
}

#[tokio::test]
async fn listing_ahead_of_time_fails_without_harm() {
    let store = wide(5, 5);
    let namespace = tree(&store, "").await;
    store.knobs.deny.store(true, Ordering::Relaxed);
    assert!(namespace.prefetch().await.is_err());
    let progress = namespace.prefetched().unwrap();
    assert!(progress.finished && progress.error.unwrap().contains("no"));
    store.knobs.deny.store(false, Ordering::Relaxed);
    assert_eq!(walk(&namespace).await, 30);
}

/// What this process has in memory, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_hundred_thousand_names_take_little_memory() {
    const ALONE: &str = "FUSE_OSS_TEST_ALONE";
    const NAMES: u64 = 100_000;
    if std::env::var_os(ALONE).is_none() {
        // Other tests of this process would be measured, too.
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "namespace::tests::a_hundred_thousand_names_take_little_memory"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("bytes each"), "{said}");
        return;
    }
    let store = DoubleStore::new(1000);
    let meta = |number: u64| ObjectMeta {
        key: Key::new(format!("sample-{:03}/read-{number:06}_L001_R1.fastq.gz", number / 100)),
        size: number,
        etag: Some(ETag(format!("\"{number:032X}\""))),
        modified: Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789 + number)),
        checksum: None,
        archived: false,
    };
    let before = resident();
    let first = ListPage { continuation: Some("more".to_owned()), ..ListPage::default() };
    let source = Source::Directory { origin: store.origin(), prefix: String::new(), first };
    let namespace = Namespace::new("test".into(), identity(), vec![(String::new(), source)], None).unwrap();
    let (mut from, mut number) = (None::<String>, 0);
    while number < NAMES {
        let objects: Vec<ObjectMeta> = (number..number + 1000).map(meta).collect();
        number += 1000;
        let page =
            ListPage { objects, prefixes: Vec::new(), continuation: (number < NAMES).then(|| number.to_string()) };
        let absorbed = namespace.shared.write().absorb_sweep(Table::root(), from.as_deref(), 1, page).unwrap();
        from = absorbed.last;
    }
    let taken = resident().saturating_sub(before);
    assert_eq!(namespace.len(), 1 + NAMES + NAMES / 100);
    let last = namespace.files_in_order(NAMES, 2000).pop().unwrap();
    let file = namespace.file(last.ino).unwrap();
    assert_eq!((file.etag, file.modified, file.size), {
        let meta = meta(NAMES - 1);
        (meta.etag, meta.modified, meta.size)
    });
    println!("{taken} bytes for {NAMES} names, {} bytes each", taken / NAMES);
    assert!(taken > NAMES * 40, "{taken} bytes are too few to be true");
    assert!(taken <= 64 << 20, "{taken} bytes for {NAMES} names");
    assert!(taken / NAMES <= 300, "{} bytes for each name", taken / NAMES);
}

#[tokio::test]
async fn a_directory_that_may_not_be_listed_does_not_keep_the_others_from_being() {
    let store = wide(20, 5);
    let namespace = tree(&store, "").await;
    store.knobs.deny_flat.store(true, Ordering::Relaxed);
    *store.denied_prefix.lock().unwrap() = Some("d003/".to_owned());
    let fault = namespace.prefetch().await.unwrap_err();
    assert_eq!(fault.errno_at_open(), libc::EACCES);
    assert_eq!(namespace.len(), 1 + 20 + 19 * 5);
    assert!(namespace.prefetched().unwrap().error.is_some());
}

#[tokio::test]
async fn sweeps_come_back_after_an_outage() {
    let store = wide(60, 50);
    let namespace = tree(&store, "").await;
    find(&namespace, "d000/f000").await.unwrap();
    store.knobs.outage.store(true, Ordering::Relaxed);
    for d in [3, 6, 9, 12, 15] {
        let directory = find(&namespace, &format!("d{d:03}")).await.unwrap();
        assert!(namespace.list_to(directory.ino, 0).await.is_err());
    }
    store.knobs.outage.store(false, Ordering::Relaxed);
    let before = lists(&store);
    assert_eq!(walk(&namespace).await, 3060);
    let made = lists(&store) - before;
    assert!(made < 30, "{made} listings");
}

#[tokio::test]
async fn an_outage_is_told_in_a_tree_that_seemed_small() {
    let store = DoubleStore::new(10);
    for d in 0..100 {
        for f in 0..5 {
            store.put(&format!("d{d:03}/f{f}"), Content::MadeUp(1));
        }
    }
    let namespace = tree(&store, "").await;
    assert_eq!(names(&namespace, ROOT).await.len(), 100);
    // Two children asked about: a sweep, which passes some of them and makes the tree look small.
    for d in [0, 1] {
        find(&namespace, &format!("d{d:03}/f0")).await.unwrap();
    }
    // Let it come to where its credits end.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    store.knobs.outage.store(true, Ordering::Relaxed);
    let directory = find(&namespace, "d090").await.unwrap();
    assert!(!namespace.can_tell(directory.ino, 0), "it was listed before");
    let outcome = tokio::time::timeout(Duration::from_secs(5), namespace.list_to(directory.ino, 0)).await;
    assert!(outcome.expect("nobody is told").is_err());
}

#[tokio::test]
async fn a_server_that_begins_at_the_front_again_comes_to_the_end() {
    let keys: Vec<String> = (0..40).map(|i| format!("d/k{i:02}")).chain(["e/x".to_owned(), "f/x".to_owned()]).collect();
    let store = DoubleStore::with_keys(4, &keys.iter().map(String::as_str).collect::<Vec<_>>());
    let namespace = tree(&store, "").await;
    let directory = find(&namespace, "d").await.unwrap();
    // A sweep has come as far as here, and its token is of no use to the directory's own listing.
    let dir = namespace.shared.read().dir(directory.ino).unwrap();
    let (mut from, mut continuation) = (None, None);
    for number in 1..4 {
        let request = ListRequest { prefix: "d/".into(), continuation, ..ListRequest::default() };
        let page = store.list(request).await.unwrap();
        continuation = page.continuation.clone();
        from = namespace.shared.write().absorb_sweep(dir, from.as_deref(), number, page).unwrap().last;
    }
    store.knobs.ignore_start_after.store(true, Ordering::Relaxed);
    let outcome = tokio::time::timeout(Duration::from_secs(5), namespace.list_to(directory.ino, 39)).await;
    outcome.expect("it lists for ever").unwrap();
    assert_eq!(names(&namespace, directory.ino).await.len(), 40);
}
