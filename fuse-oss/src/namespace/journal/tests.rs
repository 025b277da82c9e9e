//! A mount is killed at every kind of moment, and another process goes on.

use super::*;
use crate::double::{Content, DoubleStore};
use crate::namespace::tests::identity;
use crate::namespace::{Known, Namespace, Placed, ROOT, Table};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use oss::{ETag, Key, ListRequest, Store};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn memory() -> File {
    File::from(memfd_create(c"names", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap())
}

fn copy(file: &File, len: u64) -> File {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let copy = memory();
    copy.write_all_at(&bytes, 0).unwrap();
    copy
}

fn len(file: &File) -> u64 {
    file.metadata().unwrap().len()
}

async fn directory(store: &Arc<DoubleStore>, prefix: &str) -> Source {
    let request = ListRequest { prefix: prefix.into(), delimiter: true, ..ListRequest::default() };
    let first = store.list(request).await.unwrap();
    Source::Directory { origin: store.origin(), prefix: prefix.into(), first }
}

async fn begin(store: &Arc<DoubleStore>, journal: &File) -> Namespace {
    let object = Source::Object { origin: store.origin(), meta: store.head(&Key::new("single")).await.unwrap() };
    let place = |at: &str, charset: &str, source| Placed { at: at.into(), charset: charset.parse().unwrap(), source };
    let entries = vec![
        // Not in the order in which they are put into the table.
        place("all/b/inside", "GBK", directory(store, "a/").await),
        place("all/x", "UTF-8", object),
        place("all", "UTF-8", directory(store, "").await),
        place("part", "GBK", directory(store, "a/").await),
    ];
    Namespace::new("test".into(), identity(), entries, Some(journal.try_clone().unwrap())).unwrap()
}

fn recover(store: &Arc<DoubleStore>, journal: &File) -> Result<Namespace, Fault> {
    let origins: Vec<_> = (0..4).map(|_| store.origin()).collect();
    Namespace::recover("test".into(), &origins, journal.try_clone().unwrap())
}

fn all(namespace: &Namespace) -> Vec<String> {
    namespace.shared.read().all()
}

/// Something that happens to a mount or its store. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Event {
    Look(usize, usize),
    Read(usize, usize),
    Walk(usize),
    Prefetch,
    Put(usize),
    Remove(usize),
    IgnoreStartAfter(bool),
    DenyFlat(bool),
    Outage(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let number = || 0..1000_usize;
    prop_oneof![
        8 => (number(), number()).prop_map(|(dir, name)| Event::Look(dir, name)),
        4 => (number(), 0..8_usize).prop_map(|(dir, from)| Event::Read(dir, from)),
        2 => number().prop_map(Event::Walk),
        1 => Just(Event::Prefetch),
        2 => number().prop_map(Event::Put),
        2 => number().prop_map(Event::Remove),
        1 => any::<bool>().prop_map(Event::IgnoreStartAfter),
        1 => any::<bool>().prop_map(Event::DenyFlat),
        1 => any::<bool>().prop_map(Event::Outage),
    ]
}

fn segment() -> impl Strategy<Value = String> {
    let odd =
        prop_oneof![Just(String::new()), Just(".".to_owned()), Just("..".to_owned()), Just("é#\u{10FFFF}".to_owned())];
    prop_oneof![12 => "[abx][-.0]?[01]?".boxed(), 1 => odd]
}

fn keys() -> impl Strategy<Value = Vec<String>> {
    let key = proptest::collection::vec(segment(), 1..4).prop_map(|segments| segments.join("/"));
    proptest::collection::vec(key, 1..40)
}

/// Inode number, whether it is a directory, length; none where there is nothing.
type Answer = Option<(u64, bool, u64)>;

/// What a mount has told.
#[derive(Default)]
struct Told {
    names: HashMap<(u64, String), Answer>,
    entries: HashMap<u64, Vec<(u64, String)>>,
}

impl Told {
    /// Everything told before still holds, and is told from now on.
    fn look_around(&mut self, namespace: &Namespace) {
        let answer = |known: Known| match known {
            Known::Node(node) => Some(Some((node.ino, node.directory, node.size))),
            Known::Missing => Some(None),
            Known::Unknown => None,
        };
        let known = |parent: u64, name: &str| {
            let table = namespace.shared.read();
            table.dir(parent).and_then(|dir| answer(table.known(dir, name)))
        };
        for ((parent, name), told) in &self.names {
            assert_eq!(known(*parent, name), Some(*told), "{name:?} in {parent}");
        }
        for ino in dirs(namespace) {
            let mut entries = Vec::new();
            namespace.entries(ino, 0, |node, name| {
                entries.push((node.ino, name.to_owned()));
                true
            });
            let before = self.entries.entry(ino).or_default();
            assert_eq!(entries.get(..before.len()), Some(before.as_slice()), "entries of {ino}");
            *before = entries;
            for name in ["a", "a0", "b", "x", "x-1", "nowhere"] {
                if let Some(told) = known(ino, name) {
                    self.names.insert((ino, name.to_owned()), told);
                }
            }
        }
    }
}

fn dirs(namespace: &Namespace) -> Vec<u64> {
    (ROOT..=namespace.len()).filter(|&ino| namespace.node(ino).unwrap().directory).collect()
}

async fn happen(namespace: &Namespace, store: &DoubleStore, keys: &[String], event: &Event) {
    let dirs = dirs(namespace);
    let dir = |number: usize| dirs[number % dirs.len()];
    // Outages and refusals are part of it; what matters is what is shown.
    match *event {
        Event::Look(parent, name) => {
            let key = &keys[name % keys.len()];
            let name = key.split('/').nth(name / keys.len() % 3).unwrap_or("nowhere");
            let parent = dir(parent);
            if namespace.known(parent, name) == Known::Unknown {
                let _ = namespace.lookup(parent, name).await;
            }
        }
        Event::Read(ino, from) => drop(namespace.list_to(dir(ino), from).await),
        Event::Walk(ino) => {
            let mut from = 0;
            while namespace.list_to(dir(ino), from).await.is_ok() {
                let before = from;
                namespace.entries(dir(ino), from, |_, _| {
                    from += 1;
                    true
                });
                if from == before {
                    break;
                }
            }
        }
        Event::Prefetch => drop(namespace.prefetch().await),
        Event::Put(key) => store.put(&keys[key % keys.len()], Content::MadeUp(key as u64)),
        Event::Remove(key) => store.remove(&keys[key % keys.len()]),
        Event::IgnoreStartAfter(is_so) => store.knobs.ignore_start_after.store(is_so, Ordering::Relaxed),
        Event::DenyFlat(is_so) => store.knobs.deny_flat.store(is_so, Ordering::Relaxed),
        Event::Outage(is_so) => store.knobs.outage.store(is_so, Ordering::Relaxed),
    }
}

async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, what).await.expect("it goes on for ever")
}

/// The first `len` bytes of a file hold whole records; the end of the next one, where there is one.
fn end_of_next(journal: &File, from: u64) -> u64 {
    if from == len(journal) {
        return from;
    }
    let mut bytes = [0; 4];
    journal.read_exact_at(&mut bytes, from + 4).unwrap();
    from + FRAME as u64 + u64::from(u32::from_le_bytes(bytes))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn another_process_shows_the_same(
        keys in keys(),
        page in 1..6_usize,
        reversed in proptest::bool::weighted(0.2),
        events in proptest::collection::vec(event(), 1..25),
        after in proptest::collection::vec(event(), 1..25),
        kill in any::<prop::sample::Index>(),
        torn in any::<prop::sample::Index>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(within(Duration::from_secs(3), async {
            let store = DoubleStore::new(page);
            for key in keys.iter().map(String::as_str).chain(["single", "a/b"]) {
                store.put(key, Content::MadeUp(key.len() as u64));
            }
            store.knobs.reversed.store(reversed, Ordering::Relaxed);
            let journal = memory();
            let mut moments = Vec::new();
            {
                let namespace = begin(&store, &journal).await;
                moments.push((len(&journal), all(&namespace)));
                let mut told = Told::default();
                for event in &events {
                    happen(&namespace, &store, &keys, event).await;
                    told.look_around(&namespace);
                    moments.push((len(&journal), all(&namespace)));
                }
                assert!(namespace.is_recoverable());
            }
            let (at, shown) = kill.get(&moments);
            let cut = at + torn.index(usize::try_from((end_of_next(&journal, *at) - at).max(1)).unwrap()) as u64;
            let second = copy(&journal, cut);
            store.knobs.outage.store(false, Ordering::Relaxed);
            {
                let namespace = recover(&store, &second).unwrap();
                assert_eq!((&all(&namespace), namespace.identity), (shown, identity()));
                assert_eq!(len(&second), *at);
                let mut told = Told::default();
                told.look_around(&namespace);
                for event in &after {
                    happen(&namespace, &store, &keys, event).await;
                    told.look_around(&namespace);
                }
                assert_eq!(all(&recover(&store, &second).unwrap()), all(&namespace));
            }
            // The whole of it, too.
            let (at, shown) = moments.last().unwrap();
            let namespace = recover(&store, &copy(&journal, *at)).unwrap();
            assert_eq!(&all(&namespace), shown);
        }));
    }
}

async fn some_names() -> (Arc<DoubleStore>, File, Vec<String>) {
    let store = DoubleStore::with_keys(3, &["single", "a/b", "a/c", "a/d", "a/e", "b/c/d", "b/e", "z", "z/z"]);
    let journal = memory();
    let namespace = begin(&store, &journal).await;
    namespace.prefetch().await.unwrap();
    let shown = all(&namespace);
    (store, journal, shown)
}

#[tokio::test]
async fn what_was_damaged_is_refused() {
    let (store, journal, shown) = some_names().await;
    assert_eq!(all(&recover(&store, &copy(&journal, len(&journal))).unwrap()), shown);
    for at in 0..len(&journal) {
        let damaged = copy(&journal, len(&journal));
        let mut byte = [0];
        damaged.read_exact_at(&mut byte, at).unwrap();
        damaged.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        match recover(&store, &damaged) {
            Err(Fault::Unrecoverable(_)) => {}
            // A length that leads beyond the end looks like a record that was not written whole.
            Ok(_) => assert!(len(&damaged) < len(&journal), "byte {at}"),
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
}

#[tokio::test]
async fn what_was_never_begun_whole_is_refused() {
    let (store, journal, _) = some_names().await;
    let mut first = end_of_next(&journal, 0);
    for _ in 0..4 {
        first = end_of_next(&journal, first);
    }
    for cut in [0, 1, 20, first - 1] {
        let fault = recover(&store, &copy(&journal, cut)).unwrap_err();
        assert!(matches!(fault, Fault::Unrecoverable(_)), "{cut}: {fault}");
        assert!(fault.to_string().contains("mounted anew"));
    }
    let two = [store.origin(), store.origin()];
    assert!(Namespace::recover("test".into(), &two, journal.try_clone().unwrap()).is_err());
    let entries = vec![(String::new(), directory(&store, "").await)];
    let fault = Namespace::new("test".into(), identity(), entries, Some(journal)).unwrap_err();
    assert!(matches!(fault, Fault::Internal(_)), "somebody else's names are not written over: {fault}");
}

#[tokio::test]
async fn another_version_that_understands_it_otherwise_is_refused() {
    let (store, journal, _) = some_names().await;
    let (_, mut replay) = Replay::open(journal.try_clone().unwrap()).unwrap();
    let mut at = replay.end;
    let mut records = replay.records;
    while let Some((input, _)) = replay.next().unwrap() {
        if let Input::Sweep { .. } | Input::Own { .. } = input {
            break;
        }
        (at, records) = (replay.end, replay.records);
    }
    // The same page again, and other sums behind it.
    let mut payload = replay.buffer[8..].to_vec();
    let last = payload.len() - 1;
    payload[last] ^= 1;
    let mut record = Record([vec![0; FRAME], payload].concat());
    let bytes = record.framed(records).unwrap().to_vec();
    let other = copy(&journal, at);
    other.write_all_at(&bytes, at).unwrap();
    let fault = recover(&store, &other).unwrap_err();
    assert!(fault.to_string().contains("something else"), "{fault}");
}

#[tokio::test]
async fn a_full_disk_costs_the_recovery_and_nothing_else() {
    let (store, journal, _) = some_names().await;
    let disk = copy(&journal, len(&journal));
    let namespace = recover(&store, &disk).unwrap();
    assert!(namespace.is_recoverable());
    fcntl(&disk, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    let all_of_it = namespace.node(ROOT).unwrap();
    let Known::Node(mount) = namespace.known(all_of_it.ino, "all") else { panic!("no mount") };
    namespace.shared.change(Some(Record::name(Table::root(), "no", &Found::Missing)), |table| {
        table.settle_missing(Table::root(), "no")
    });
    assert!(!namespace.is_recoverable());
    assert!(namespace.lookup(mount.ino, "z").await.unwrap().is_some());
    assert_eq!(len(&disk), 0);
    assert!(recover(&store, &disk).is_err());
}

fn meta(number: u64) -> ObjectMeta {
    ObjectMeta {
        key: Key::new(format!("sample-{:05}/read-{number:07}_L001_R1.fastq.gz", number / 100)),
        size: number * 1_000_003,
        etag: Some(ETag(format!(
            "\"{:032X}\"",
            u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
        ))),
        modified: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + number * 7919 % 86_400)),
        checksum: None,
        archived: false,
    }
}

/// How long this thread has had a processor; others may want it, too.
fn busy() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let spent = usage.user_time() + usage.system_time();
    Duration::from_micros(u64::try_from(spent.num_microseconds()).unwrap())
}

/// Takes names in by sweeps; returns how long that took, without making the pages.
fn fill(journal: Option<&File>, names: u64) -> (Namespace, Arc<DoubleStore>, Duration) {
    let store = DoubleStore::new(1000);
    let first = ListPage { continuation: Some("more".to_owned()), ..ListPage::default() };
    let source = Source::Directory { origin: store.origin(), prefix: String::new(), first };
    let journal = journal.map(|journal| journal.try_clone().unwrap());
    let namespace = Namespace::new("test".into(), identity(), vec![(String::new(), source)], journal).unwrap();
    let (mut from, mut taken) = (None::<String>, Duration::ZERO);
    for number in (0..names).step_by(1000) {
        let objects: Vec<ObjectMeta> = (number..number + 1000).map(meta).collect();
        let page = ListPage { objects, prefixes: Vec::new(), continuation: (number + 1000 < names).then(String::new) };
        let began = busy();
        let record = namespace.shared.record(|| Record::sweep(Table::root(), from.as_deref(), &page));
        let change = |table: &mut Table| table.absorb_sweep(Table::root(), from.as_deref(), 1, page);
        let absorbed = namespace.shared.change(record, change).unwrap();
        taken += busy() - began;
        from = absorbed.last;
    }
    (namespace, store, taken)
}

#[test]
fn a_name_takes_little_room() {
    const NAMES: u64 = 20_000;
    let journal = memory();
    let (namespace, store, _) = fill(Some(&journal), NAMES);
    let each = len(&journal) / NAMES;
    assert!((20..100).contains(&each), "{each} bytes for a name");
    let again = Namespace::recover("test".into(), &[store.origin()], journal).unwrap();
    assert_eq!(all(&again), all(&namespace));
}

#[test]
#[ignore = "a measurement, to be run by itself and optimised"]
fn how_long_it_takes() {
    for names in [100_000, 1_000_000] {
        let mut ratios = Vec::new();
        for _ in 0..5 {
            let (_, _, without) = fill(None, names);
            let journal = memory();
            let (_, store, with) = fill(Some(&journal), names);
            let began = busy();
            let again = Namespace::recover("test".into(), &[store.origin()], journal.try_clone().unwrap()).unwrap();
            let taken = busy() - began;
            assert_eq!(again.len(), 1 + names + names.div_ceil(100));
            let each = len(&journal) / names;
            println!(
                "{names} names: {without:?} without, {with:?} with, {taken:?} to take them in again, {each} bytes each"
            );
            ratios.push(with.as_secs_f64() / without.as_secs_f64());
        }
        ratios.sort_by(f64::total_cmp);
        println!("{names} names: median ratio {:.3}", ratios[ratios.len() / 2]);
    }
}
