//! What one process notes, the next one reads.

use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

fn another_process(ledger: &Ledger) -> Ledger {
    Ledger::from_fd(ledger.file.try_clone().unwrap()).unwrap()
}

fn request(number: u64) -> Unique {
    Unique::new(number).0
}

#[derive(Debug, Clone)]
enum Event {
    Open(u64, Access),
    Close(usize),
    CloseToIdle(usize),
    Forget(usize),
    TakeOver,
}

fn event() -> impl Strategy<Value = Event> {
    let access = prop_oneof![Just(Access::Cached), any::<u32>().prop_map(Access::Passthrough)];
    prop_oneof![
        6 => (any::<u64>(), access).prop_map(|(ino, access)| Event::Open(ino, access)),
        3 => any::<usize>().prop_map(Event::Close),
        2 => any::<usize>().prop_map(Event::CloseToIdle),
        2 => any::<usize>().prop_map(Event::Forget),
        1 => Just(Event::TakeOver),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_process_sees_what_is_open(events in proptest::collection::vec(event(), 1..200)) {
        let mut ledger = Ledger::create().unwrap();
        let (mut open, mut idle, mut given) = (Vec::new(), Vec::new(), HashSet::new());
        for (number, event) in (1..).zip(events) {
            match event {
                Event::Open(ino, access) => {
                    let handle = ledger.open(ino, access, request(number)).unwrap();
                    prop_assert!(given.insert(handle), "{} was given twice", handle);
                    open.push((OpenFile { handle, ino, access }, request(number)));
                }
                Event::Close(which) if !open.is_empty() => {
                    let (file, _) = open.swap_remove(which % open.len());
                    ledger.close(file.handle);
                    ledger.close(file.handle);
                    prop_assert_eq!(ledger.find(file.handle), None);
                }
                Event::CloseToIdle(which) if !open.is_empty() => {
                    let (file, request) = open.swap_remove(which % open.len());
                    match (ledger.close_to_idle(file.handle), file.access) {
                        (Some(slot), Access::Passthrough(backing)) => {
                            idle.push(IdleBacking { slot, ino: file.ino, backing });
                        }
                        (None, Access::Cached) => open.push((file, request)),
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                Event::Forget(which) if !idle.is_empty() => {
                    let one = idle.swap_remove(which % idle.len());
                    ledger.forget(one.slot);
                }
                Event::TakeOver => ledger = another_process(&ledger),
                _ => {}
            }
            if number % 8 > 0 {
                continue;
            }
            for seen in [&ledger, &another_process(&ledger)] {
                let all: HashMap<u64, OpenFile> = seen.open_files().map(|file| (file.handle, file)).collect();
                prop_assert_eq!(all.len(), open.len());
                for (file, request) in &open {
                    prop_assert_eq!(all.get(&file.handle), Some(file));
                    prop_assert_eq!(seen.opened_by(*request), Some(*file));
                }
                let unused: HashSet<String> = seen.idle().map(|one| format!("{one:?}")).collect();
                prop_assert_eq!(unused, idle.iter().map(|one| format!("{one:?}")).collect());
            }
        }
    }

    #[test]
    fn whatever_it_holds_it_can_be_read(words in proptest::collection::vec((8..WORDS, any::<u64>()), 1..200), handle: u64) {
        let ledger = Ledger::create().unwrap();
        for (at, word) in words {
            ledger.chunks[0].words()[at].store(word, Ordering::Relaxed);
        }
        let mut other = another_process(&ledger);
        prop_assert!(other.open_files().count() + other.idle().count() <= WORDS / SLOT);
        let _ = (other.find(handle), other.opened_by(request(handle)));
        other.close(handle);
        other.close_to_idle(handle);
        let new = other.open(1, Access::Cached, request(1)).unwrap();
        prop_assert_eq!(other.find(new), Some(OpenFile { handle: new, ino: 1, access: Access::Cached }));
    }
}

#[test]
fn it_grows_and_is_handed_on() {
    let mut ledger = Ledger::create().unwrap();
    let handles: Vec<u64> =
        (0..10_000).map(|ino| ledger.open(ino, Access::Passthrough(7), request(ino)).unwrap()).collect();
    let mut other = another_process(&ledger);
    assert_eq!((ledger.is_adopted(), other.is_adopted()), (false, true));
    drop(ledger);
    for (ino, handle) in (0..).zip(&handles) {
        assert_eq!(other.find(*handle), Some(OpenFile { handle: *handle, ino, access: Access::Passthrough(7) }));
    }
    for handle in &handles {
        other.close(*handle);
    }
    let len = fstat(&other.file).unwrap().st_size;
    let again: HashSet<u64> = (0..10_000).map(|ino| other.open(ino, Access::Cached, request(1)).unwrap()).collect();
    assert!(handles.iter().all(|handle| !again.contains(handle) && other.find(*handle).is_none()));
    assert_eq!(fstat(&other.file).unwrap().st_size, len, "slots are used again");
}

#[test]
fn a_slot_that_was_being_filled_is_free() {
    let mut ledger = Ledger::create().unwrap();
    let handle = ledger.open(5, Access::Cached, request(9)).unwrap();
    ledger.close(handle);
    let words = ledger.words(handle & NUMBER_MASK).unwrap();
    words[0].store(6, Ordering::Relaxed);
    words[1].store(pack(Access::Passthrough(3)), Ordering::Relaxed);
    let other = another_process(&ledger);
    assert_eq!((other.open_files().count(), other.idle().count()), (0, 0));
    assert_eq!(other.find(handle), None);
}

#[test]
fn a_slot_that_is_worn_out_is_not_used_again() {
    let mut ledger = Ledger::create().unwrap();
    let handle = ledger.open(5, Access::Cached, request(9)).unwrap();
    ledger.close(handle);
    let number = handle & NUMBER_MASK;
    ledger.words(number).unwrap()[3].store((MOST_USES - 1) << STATE_BITS, Ordering::Relaxed);
    let last = ledger.open(5, Access::Cached, request(9)).unwrap();
    assert_eq!(last, MOST_USES << NUMBER_BITS | number);
    ledger.close(last);
    for mut ledger in [another_process(&ledger), ledger] {
        let next = ledger.open(5, Access::Cached, request(9)).unwrap();
        assert_ne!(next & NUMBER_MASK, number);
    }
}

#[test]
fn requests_that_come_again_are_known() {
    assert_eq!(Unique::new(8), (Unique(8), false));
    assert_eq!(Unique::new(8 | 1 << 63), (Unique(8), true));
}

#[test]
fn what_is_true_of_the_mount_is_handed_on() {
    let ledger = Ledger::create().unwrap();
    assert_eq!((ledger.passthrough(), ledger.is_distrusted()), (None, false));
    ledger.set_passthrough(true);
    assert_eq!(another_process(&ledger).passthrough(), Some(true));
    ledger.set_passthrough(false);
    assert_eq!(another_process(&ledger).passthrough(), Some(false));
    ledger.distrust();
    assert!(another_process(&ledger).is_distrusted());
}

#[test]
fn what_is_no_ledger_is_refused() {
    let empty = memfd_create(c"no", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    assert!(Ledger::from_fd(empty.try_clone().unwrap()).is_err());
    nix::unistd::ftruncate(&empty, 2 * libc::off_t::try_from(CHUNK).unwrap()).unwrap();
    assert!(Ledger::from_fd(empty.try_clone().unwrap()).is_err());
    fcntl(&empty, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    let error = Ledger::from_fd(empty).unwrap_err();
    assert!(error.to_string().contains("does not begin"), "{error}");
    assert!(Ledger::from_fd(std::fs::File::open("/dev/null").unwrap().into()).is_err());
}

#[test]
#[ignore = "a measurement, to be run by itself and optimised"]
fn how_long_noting_takes() {
    const ROUNDS: u32 = 1_000_000;
    let mut ledger = Ledger::create().unwrap();
    let others: Vec<u64> = (0..1000).map(|ino| ledger.open(ino, Access::Cached, request(ino)).unwrap()).collect();
    let began = std::time::Instant::now();
    for number in 0..ROUNDS {
        let handle = ledger.open(5, Access::Passthrough(number), request(number.into())).unwrap();
        ledger.close(std::hint::black_box(handle));
    }
    println!("{:?} for opening and closing beside {} open files", began.elapsed() / ROUNDS, others.len());
}
