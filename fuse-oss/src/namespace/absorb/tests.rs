//! Pages of every kind, in every order, against a plain reading of what is to be shown.

use super::*;
use crate::double::DoubleStore;
use crate::namespace::listing::behind;
use crate::namespace::{Known, ROOT};
use oss::{ListRequest, Store};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A tree by paths; directories end in a slash.
type Shown = BTreeSet<String>;

struct Bucket {
    store: Arc<DoubleStore>,
    table: Table,
}

impl Bucket {
    fn new(keys: &BTreeSet<String>, prefix: &str, page: usize) -> Self {
        let store = DoubleStore::with_keys(page, &keys.iter().map(String::as_str).collect::<Vec<_>>());
        let mut table = Table::new();
        table.mount(Table::root(), store.origin(), prefix.to_owned(), crate::charset::Charset::UTF_8);
        Self { store, table }
    }

    fn page(&self, base: Dir, delimiter: bool, from: Option<&str>, token: Option<String>) -> ListPage {
        let prefix = self.table.prefix(base);
        let start_after = from.map(|from| if delimiter { from.to_owned() } else { behind(from) });
        let request = ListRequest { prefix, delimiter, start_after, continuation: token, max_keys: None };
        futures_util::FutureExt::now_or_never(self.store.list(request)).unwrap().unwrap()
    }

    /// One page of a directory's own listing; whether there are more.
    fn own(&mut self, dir: Dir) -> bool {
        if self.table.directory(dir).listing.is_complete() {
            return false;
        }
        let from = self.table.directory(dir).listing.reached().map(str::to_owned);
        let page = self.page(dir, true, from.as_deref(), None);
        self.table.absorb_own(dir, from.as_deref(), false, page).unwrap();
        true
    }

    /// Up to `pages` pages of a sweep.
    fn sweep(&mut self, base: Dir, begin: Option<String>, pages: usize) {
        let (mut from, mut token) = (begin, None);
        for number in 0..pages {
            let page = self.page(base, false, from.as_deref(), token.clone());
            token = page.continuation.clone();
            let swept = number as u64 + 1;
            let absorbed = self.table.absorb_sweep(base, from.as_deref(), swept, page).unwrap();
            from = absorbed.last.or(from);
            if token.is_none() {
                return;
            }
        }
    }

    fn dirs(&self) -> Vec<Dir> {
        (1..=self.table.len() as u64).filter_map(|ino| self.table.dir(ino)).collect()
    }

    fn finish(&mut self) {
        while let Some((_, dir)) = self.table.incomplete_from(0) {
            self.own(dir);
        }
    }

    fn shown(&self) -> Shown {
        let mut shown = Shown::new();
        let mut todo = vec![(ROOT, String::new())];
        while let Some((ino, path)) = todo.pop() {
            for (node, name) in self.table.entries(self.table.dir(ino).unwrap(), 0) {
                let path = if node.directory { format!("{path}{name}/") } else { format!("{path}{name}") };
                if node.directory {
                    todo.push((node.ino, path.clone()));
                }
                assert!(shown.insert(path.clone()), "{path:?} came twice");
            }
        }
        shown
    }
}

/// What a mount of `prefix` has to show, and how many keys and prefixes it has to hide, by the definition.
fn expected(keys: &BTreeSet<String>, prefix: &str) -> (Shown, u64) {
    let mut names: BTreeMap<String, bool> = BTreeMap::new();
    let mut hidden = BTreeSet::new();
    for rest in keys.iter().filter_map(|key| key.strip_prefix(prefix)) {
        let mut at = String::new();
        let mut segments = rest.split('/').peekable();
        while let Some(segment) = segments.next() {
            let below = segments.peek().is_some();
            if !below && segment.is_empty() && (!at.is_empty() || !prefix.is_empty()) {
                // A marker; those of the tests hold data.
                hidden.insert(format!("marker of {at}"));
                break;
            }
            if !crate::charset::Charset::UTF_8.shows(segment) {
                hidden.insert(format!("{at}{segment}{}", if below { "/" } else { "" }));
                break;
            }
            at.push_str(segment);
            *names.entry(at.clone()).or_default() |= below;
            at.push('/');
        }
    }
    // Objects that stand beside a directory of their name.
    for rest in keys.iter().filter_map(|key| key.strip_prefix(prefix)) {
        if names.get(rest) == Some(&true) {
            hidden.insert(rest.to_owned());
        }
    }
    let shown = names.into_iter().map(|(name, directory)| if directory { name + "/" } else { name }).collect();
    (shown, hidden.len() as u64)
}

fn set(keys: &[&str]) -> BTreeSet<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

#[test]
fn odd_keys_are_hidden_and_everything_else_is_listed() {
    let long = "n".repeat(256);
    let keys = set(&["/lead", "a//b", "a/./c", "a/../d", "a/ok", "b", "dir/x", "..", ".", "nul\0", "new\nline", &long]);
    for page in 1..12 {
        for swept in [false, true] {
            let mut bucket = Bucket::new(&keys, "", page);
            if swept {
                bucket.sweep(Table::root(), None, usize::MAX);
            }
            bucket.finish();
            let shown = set(&["a/", "a/ok", "b", "dir/", "dir/x", "new\nline"]);
            assert_eq!((bucket.shown(), bucket.table.hidden), (shown, 8), "pages of {page}");
        }
    }
}

#[test]
fn the_directory_keeps_the_name_on_whatever_page_it_comes() {
    let keys = set(&["x", "x-", "x-/z", "x-1", "x.log", "x/y", "x0"]);
    for page in 1..8 {
        for pages in 0..8 {
            let mut bucket = Bucket::new(&keys, "", page);
            bucket.sweep(Table::root(), None, pages);
            bucket.finish();
            assert_eq!(bucket.shown(), set(&["x-/", "x-/z", "x-1", "x.log", "x/", "x/y", "x0"]), "pages of {page}");
            assert_eq!(bucket.table.hidden, 2);
        }
    }
}

#[test]
fn a_sweep_completes_what_it_has_passed_and_nothing_else() {
    let keys: BTreeSet<String> = (0..5).flat_map(|d| (0..4).map(move |f| format!("{d}/{f}"))).collect();
    let mut bucket = Bucket::new(&keys, "", 6);
    bucket.own(Table::root());
    bucket.sweep(Table::root(), Some("1/".to_owned()), 2);
    let complete = |bucket: &Bucket, name: &str| {
        let dir = bucket.table.dir(bucket.table.find(Table::root(), name).unwrap()).unwrap();
        (bucket.table.directory(dir).listing.is_complete(), bucket.table.count(dir))
    };
    assert_eq!(complete(&bucket, "0"), (false, 0));
    assert_eq!(complete(&bucket, "1"), (true, 4));
    assert_eq!(complete(&bucket, "2"), (true, 4));
    // Its last key was seen, and that there is no other was not.
    assert!(!complete(&bucket, "3").0);
    assert_eq!(complete(&bucket, "4"), (false, 0));
}

#[test]
fn a_sweep_in_disorder_changes_nothing() {
    let keys = set(&["a/1", "b/1"]);
    let mut bucket = Bucket::new(&keys, "", 10);
    let mut page = bucket.page(Table::root(), false, None, None);
    page.objects.reverse();
    let refused = bucket.table.absorb_sweep(Table::root(), None, 1, page).unwrap_err();
    assert!(matches!(refused, Refused::Unordered));
    assert_eq!(bucket.shown(), Shown::new());
    assert!(!bucket.table.roots()[0].ordered);
    bucket.finish();
    assert_eq!(bucket.shown(), set(&["a/", "a/1", "b/", "b/1"]));
}

/// What happens to a tree.
#[derive(Debug, Clone)]
enum Step {
    Own(prop::sample::Index),
    Sweep { base: prop::sample::Index, begin: prop::sample::Index, pages: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        any::<prop::sample::Index>().prop_map(Step::Own),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1_usize..5)
            .prop_map(|(base, begin, pages)| Step::Sweep { base, begin, pages }),
    ];
    prop::collection::vec(step, 0..12)
}

proptest! {
    /// Whatever the keys, however they are paged and in whatever order parts of the tree are listed, by directory or swept from
    /// anywhere, what is shown in the end is a plain reading of the definition, and nothing that was shown or known to be
    /// missing on the way is taken back.
    #[test]
    fn the_way_of_listing_never_changes_what_is_shown(
        keys in prop::collection::btree_set("[ab./-]{1,7}", 0..40),
        prefix in prop_oneof![Just(String::new()), "[ab.-]{0,2}/"],
        page in 1_usize..10,
        ignored in any::<bool>(),
        steps in steps(),
    ) {
        let mut bucket = Bucket::new(&keys, &prefix, page);
        bucket.store.knobs.ignore_start_after.store(ignored, std::sync::atomic::Ordering::Relaxed);
        let (shown, hidden) = expected(&keys, &prefix);
        for step in steps {
            let dirs = bucket.dirs();
            match step {
                // Begins behind the key it has reached, so it needs a store that can.
                Step::Own(dir) if !ignored => drop(bucket.own(*dir.get(&dirs))),
                Step::Own(_) => {}
                Step::Sweep { base, begin, pages } => {
                    let base = *base.get(&dirs);
                    let under = bucket.table.prefix(base);
                    let begins: Vec<_> = dirs
                        .iter()
                        .map(|&dir| bucket.table.prefix(dir))
                        .filter(|prefix| prefix.starts_with(&under))
                        .collect();
                    let begin = begin.get(&begins).clone();
                    bucket.sweep(base, (begin != under).then_some(begin), pages);
                }
            }
            let now = bucket.shown();
            prop_assert!(now.is_subset(&shown), "{:?} is not to be shown", now.difference(&shown).collect::<Vec<_>>());
            for path in shown.difference(&now) {
                let path = path.strip_suffix('/').unwrap_or(path);
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                let mut dir = Some(Table::root());
                for name in parent.split('/').filter(|_| !parent.is_empty()) {
                    dir = dir.and_then(|dir| bucket.table.dir(bucket.table.find(dir, name)?));
                }
                let known = dir.map(|dir| bucket.table.known(dir, name));
                prop_assert!(known != Some(Known::Missing), "{path:?} is said to be missing");
            }
        }
        if ignored {
            bucket.sweep(Table::root(), None, usize::MAX);
            bucket.store.knobs.ignore_start_after.store(false, std::sync::atomic::Ordering::Relaxed);
        }
        bucket.finish();
        prop_assert_eq!(bucket.shown(), shown);
        prop_assert!(bucket.table.hidden >= hidden);
        if !ignored {
            prop_assert_eq!(bucket.table.hidden, hidden);
        }
    }
}
