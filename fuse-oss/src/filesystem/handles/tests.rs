//! What is open when another process takes over; without a kernel.

use super::*;
use std::os::fd::AsFd;

fn request(number: u64) -> Unique {
    Unique::new(number).0
}

fn take_over(ledger: &Ledger) -> Inodes {
    let ledger = Ledger::from_fd(ledger.as_fd().try_clone_to_owned().unwrap()).unwrap();
    // No FUSE device: closing a backing id fails, as if it had been closed before.
    Inodes::adopt(ledger, std::fs::File::open("/dev/null").unwrap().into())
}

fn open(inodes: &Inodes, ino: u64) -> Option<(usize, Option<u32>)> {
    inodes.open.get(&ino).map(|kind| match kind {
        Kind::Cached(count) => (*count, None),
        Kind::Passthrough(count, backing) => (*count, Some(backing.raw)),
    })
}

#[test]
fn what_was_open_stays_open_in_its_way() {
    let mut ledger = Ledger::create().unwrap();
    let cached: Vec<u64> = (1..4).map(|n| ledger.open(10, Access::Cached, request(n)).unwrap()).collect();
    let passed: Vec<u64> = (4..6).map(|n| ledger.open(20, Access::Passthrough(3), request(n)).unwrap()).collect();
    let mut inodes = take_over(&ledger);
    assert_eq!((open(&inodes, 10), open(&inodes, 20), open(&inodes, 30)), (Some((3, None)), Some((2, Some(3))), None));
    let file = |inodes: &Inodes, handle: u64| inodes.ledger.find(handle).unwrap();
    for (closed, handle) in cached.iter().enumerate() {
        let file = file(&inodes, *handle);
        assert_eq!(inodes.close(&file), closed == 2, "the last one is told");
        assert_eq!(inodes.ledger.find(*handle), None);
    }
    for handle in &passed {
        let file = file(&inodes, *handle);
        assert!(!inodes.close(&file));
    }
    assert!(inodes.open.is_empty());
    assert_eq!(inodes.ledger.open_files().count(), 0);
    // Kept for the next one who opens it, and known to the next process.
    assert_eq!(inodes.idle.peek(&20).map(|idle| idle.backing.raw), Some(3));
    assert_eq!(inodes.ledger.idle().map(|idle| (idle.ino, idle.backing)).collect::<Vec<_>>(), [(20, 3)]);
}

#[test]
fn backing_ids_that_nobody_uses_go_with_the_process() {
    let mut ledger = Ledger::create().unwrap();
    let handle = ledger.open(20, Access::Passthrough(3), request(1)).unwrap();
    ledger.close_to_idle(handle).unwrap();
    // Opened again, and killed before the idle one was forgotten.
    let again = ledger.open(20, Access::Passthrough(3), request(2)).unwrap();
    let other = ledger.open(21, Access::Passthrough(4), request(3)).unwrap();
    ledger.close_to_idle(other).unwrap();
    let inodes = take_over(&ledger);
    assert_eq!(open(&inodes, 20), Some((1, Some(3))));
    assert_eq!(open(&inodes, 21), None);
    assert_eq!(inodes.ledger.idle().count(), 0);
    assert!(inodes.ledger.find(again).is_some());
}

#[test]
fn few_idle_backing_ids_are_kept_and_all_are_noted() {
    let mut inodes = take_over(&Ledger::create().unwrap());
    let device: Arc<OwnedFd> = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
    for ino in 0..300_u32 {
        let access = Access::Passthrough(ino);
        let handle = inodes.ledger.open(ino.into(), access, request(1)).unwrap();
        let id = Id::Adopted(Adopted { id: ino, device: Arc::clone(&device) });
        inodes.open.insert(ino.into(), Kind::Passthrough(1, Backing { id, raw: ino, pin: None }));
        let file = OpenFile { handle, ino: ino.into(), access };
        inodes.close(&file);
    }
    let mut noted: Vec<u64> = inodes.ledger.idle().map(|idle| idle.ino).collect();
    noted.sort_unstable();
    assert_eq!(noted, (300 - IDLE.get() as u64..300).collect::<Vec<_>>());
    let handles = Handles::with(inodes);
    handles.give_up_idle();
    assert_eq!(handles.inodes().ledger.idle().count(), 0);
    assert_eq!(handles.count(), 0);
}

#[test]
fn what_was_agreed_with_the_kernel_stands() {
    let handles = Handles::new(Ledger::create().unwrap());
    assert!(!handles.may_pass_through(INodeNo(1)));
    handles.negotiated(true);
    assert!(handles.may_pass_through(INodeNo(1)));
    let inodes = take_over(&handles.inodes().ledger);
    assert!(inodes.dropped.is_none());
    let second = Handles::with(inodes);
    second.negotiated(false);
    assert!(second.may_pass_through(INodeNo(1)), "the new process only plays shaking hands");
    second.found_wrong();
    assert!(take_over(&second.inodes().ledger).dropped.is_some());
}

#[test]
fn what_is_given_up_is_noted_nowhere_any_more() {
    let mut ledger = Ledger::create().unwrap();
    let handle = ledger.open(20, Access::Passthrough(3), request(1)).unwrap();
    let mut inodes = take_over(&ledger);
    let file = inodes.ledger.find(handle).unwrap();
    inodes.close(&file);
    assert_eq!(inodes.ledger.idle().count(), 1);
    let handles = Handles::with(inodes);
    handles.give_up(INodeNo(20));
    assert_eq!(handles.inodes().ledger.idle().count(), 0);
    assert!(handles.inodes().idle.is_empty());
}

#[test]
fn making_a_reader_may_ask_what_is_open() {
    let mut ledger = Ledger::create().unwrap();
    let handle = ledger.open(10, Access::Cached, request(1)).unwrap();
    let handles = Handles::with(take_over(&ledger));
    let mut asked = false;
    let reader = handles.adopt_reader(INodeNo(10), FileHandle(handle), || {
        asked = handles.is_open(INodeNo(10));
        None
    });
    assert!(reader.is_none() && asked);
    let none = handles.adopt_reader(INodeNo(11), FileHandle(handle), || unreachable!("it is another file's handle"));
    assert!(none.is_none());
}
