//! Doing what a [`Case`] says.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::Signal;

use super::damage::damage;
use super::operation::walk;
use super::tree::{self, Tree};
use super::{Case, Round, Then};
use crate::bucket::{Bucket, NAME, sample};
use crate::double::{Double, DoubleConfig, Fault, Often, Operation, When};

/// No operation may go on for this long without a byte or a name: something waits for ever.
const HANGS: Duration = Duration::from_secs(90);

/// How often one case may drop the caches of the whole system, which others use as well.
const MOST_DROPS: usize = 1;

/// Objects up to this many bytes are fetched whole, so that a wrong byte is found before anybody sees it.
const SMALL: usize = 256 << 10;

/// Why an operation did not go as the model has it.
#[derive(Debug)]
pub(super) enum Wrong {
    /// The server had been killed: the rest of the round cannot be done.
    Gone,
    /// The object had been replaced: the rest of the operation cannot be done.
    Stale,
    /// What must not be.
    Bad(String),
}

impl Wrong {
    pub(super) fn bad(what: String) -> Self {
        Self::Bad(what)
    }
}

/// What the threads of a round share.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) tree: &'a Tree,
    pub(super) mnt: PathBuf,
    killed: AtomicBool,
    /// Operations that have ended.
    ended: AtomicUsize,
    /// Anything that has been compared.
    pulse: AtomicU64,
    /// What each thread is at.
    at: Mutex<Vec<String>>,
    drops: &'a AtomicUsize,
    double: &'a Double,
    /// What the bucket holds by now instead of what was mounted; no bytes when it was deleted.
    replaced: Mutex<BTreeMap<String, Option<Bytes>>>,
}

impl Session<'_> {
    /// What a failed call means: nothing else than a dead mount's errors may come, and they only from a dead mount, and those of
    /// an object that is another one now.
    pub(super) fn wrong(&self, path: &str, what: &str, error: &io::Error) -> Wrong {
        let of_the_dead = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::EFAULT];
        if self.killed.load(Ordering::SeqCst) && error.raw_os_error().is_some_and(|code| of_the_dead.contains(&code)) {
            return Wrong::Gone;
        }
        // A mapping cannot say more than EFAULT.
        let of_the_stale = [libc::ESTALE, libc::ENOENT, libc::EFAULT];
        let is_replaced = || self.replaced.lock().unwrap_or_else(PoisonError::into_inner).contains_key(path);
        if error.raw_os_error().is_some_and(|code| of_the_stale.contains(&code)) && is_replaced() {
            return Wrong::Stale;
        }
        Wrong::bad(format!("cannot {what} {path:?}: {error}"))
    }

    /// Compares what was read at `start`.
    pub(super) fn compare(&self, file: &tree::File, start: usize, got: &[u8]) -> Result<(), Wrong> {
        self.pulse.fetch_add(1, Ordering::Relaxed);
        let expected = file.bytes.get(start..(start + got.len()).min(file.bytes.len())).unwrap_or_default();
        if expected == got {
            return Ok(());
        }
        Err(Wrong::bad(difference(file, start, expected, got)))
    }

    /// Compares what was read at `start` when `asked` bytes were asked for and no more came.
    pub(super) fn compare_end(&self, file: &tree::File, start: usize, got: &[u8], asked: usize) -> Result<(), Wrong> {
        self.compare(file, start, got)?;
        let due = file.bytes.len().saturating_sub(start).min(asked);
        if got.len() == due {
            return Ok(());
        }
        Err(Wrong::bad(format!(
            "{:?} ends at byte {} and should have {}",
            file.path,
            start + got.len(),
            file.bytes.len()
        )))
    }

    /// Puts other bytes into the bucket in a file's place, often as many, or deletes it.
    pub(super) fn replace(&self, file: &tree::File, delete: bool) {
        let len = file.bytes.len() as u64;
        let seed = self.pulse.load(Ordering::Relaxed);
        let bytes = (!delete).then(|| sample(seed, if seed.is_multiple_of(3) { len / 2 } else { len }));
        let key = self.tree.key(&file.path);
        // Held while it happens, so that the last of several is the one that is noted; and noted before anybody can see it.
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        replaced.insert(file.path.clone(), bytes.clone());
        match bytes {
            Some(bytes) => self.double.put(NAME, &key, bytes),
            None => drop(self.double.delete(NAME, &key)),
        }
    }

    pub(super) fn drop_caches(&self, what: u8) {
        if self.drops.fetch_add(1, Ordering::Relaxed) < MOST_DROPS {
            // Not everybody who is root may, in a container; nothing depends on it.
            let _ = fs::write("/proc/sys/vm/drop_caches", what.to_string());
        }
    }
}

/// Which byte is wrong, and what it looks like.
fn difference(file: &tree::File, start: usize, expected: &[u8], got: &[u8]) -> String {
    let same = expected.iter().zip(got).take_while(|(expected, got)| expected == got).count();
    let name = format!("byte {} of {:?} ({} bytes long)", start + same, file.path, file.bytes.len());
    let (Some(right), Some(wrong)) = (expected.get(same), got.get(same)) else {
        return format!("{name} should not be there: {} bytes came at {start}", got.len());
    };
    let bad = expected.iter().zip(got).filter(|(expected, got)| expected != got).count();
    let rest = &got[same..];
    let zeros = rest.iter().take_while(|byte| **byte == 0).count();
    // Sixteen bytes are found in one place only, unless there is something to see.
    let elsewhere = rest.get(..16).and_then(|piece| file.bytes.windows(16).position(|window| window == piece));
    let elsewhere = elsewhere.map_or(String::new(), |at| format!("; what is there belongs at {at}"));
    format!(
        "{name} is {wrong:#04x} and should be {right:#04x}; {bad} of {} bytes read at {start} differ, {zeros} zeros from there \
         on{elsewhere}",
        got.len()
    )
}

/// Does all that a case says. Nothing of it is left when this returns.
///
/// # Errors
/// What was not as the model has it: the operation, the file, the byte, and the end of the server's log.
///
/// # Panics
/// When it cannot be mounted or unmounted.
pub fn run(case: &Case) -> Result<(), String> {
    let prefix = if case.prefix { "pre fix/数/" } else { "" };
    let mut tree = Tree::new(case.seed, case.objects, case.large, prefix);
    let bucket = Bucket::with(DoubleConfig { seed: case.seed, ..DoubleConfig::default() })
        .location(if case.s3 { "s3" } else { "oss" }, prefix)
        .cache_size(&format!("{}MiB", case.cache_mib))
        .memory_limit("32MiB")
        .argument("--read-timeout=2")
        .argument("--connect-timeout=2");
    let drops = AtomicUsize::new(0);
    let mut history = String::new();
    put(&bucket, &tree);
    trouble(&bucket, &tree, case);
    bucket.mount();
    for (number, round) in case.rounds.iter().enumerate() {
        let session = Session {
            tree: &tree,
            mnt: bucket.sandbox.mnt(),
            killed: AtomicBool::new(false),
            ended: AtomicUsize::new(0),
            pulse: AtomicU64::new(0),
            at: Mutex::new(vec![String::new(); round.threads.len()]),
            drops: &drops,
            double: &bucket.double,
            replaced: Mutex::default(),
        };
        if let Err(what) = perform(&bucket, &session, round) {
            let log = bucket.sandbox.log();
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            let log: Vec<&str> = lines.into_iter().rev().collect();
            return Err(format!("round {number}: {what}\n{history}the end of the server's log:\n{}", log.join("\n")));
        }
        let killed = session.killed.into_inner();
        let replaced = session.replaced.into_inner().unwrap_or_else(PoisonError::into_inner);
        if killed {
            history.push_str(&format!("after round {number} the server was killed\n"));
        } else {
            bucket.sandbox.umount();
        }
        if round.then != Then::Remount {
            bucket.end_server(Signal::SIGTERM);
        }
        if let Then::Damage(times) = round.then {
            let seed = case.seed.wrapping_add(number as u64);
            let done = damage(&bucket.sandbox.path("cache"), times, seed).map_err(|error| error.to_string())?;
            history.push_str(&format!("after round {number} files of the cache were damaged: {done:#?}\n"));
        }
        if number + 1 < case.rounds.len() {
            for (path, bytes) in replaced {
                tree.replaced(&path, bytes);
            }
            tree.change(round.changes);
            bucket.double.clear_faults();
            put(&bucket, &tree);
            trouble(&bucket, &tree, case);
            // What a killed server has left is removed by whoever mounts next.
            bucket.mount();
        }
    }
    Ok(())
}

/// Makes the bucket hold what the tree has.
fn put(bucket: &Bucket, tree: &Tree) {
    let keys = tree.keys();
    for key in bucket.double.objects(NAME).keys().filter(|key| !keys.contains_key(*key)) {
        bucket.double.delete(NAME, key);
    }
    for (key, bytes) in keys {
        let same = bucket
            .double
            .object(NAME, &key)
            .is_some_and(|object| object.content.len() == bytes.len() as u64 && object.bytes() == bytes);
        if !same {
            bucket.put(&key, bytes);
        }
    }
}

/// Switches on what goes wrong on the wire. All of it must go by unseen, but for the lies, which no client can see.
fn trouble(bucket: &Bucket, tree: &Tree, case: &Case) {
    let chance = case.trouble;
    if case.lies {
        bucket.double.fault(Fault::WrongByte, When::any().ranged(true), Often::Always);
    }
    if chance == 0 {
        return;
    }
    let often = |parts: f64| Often::Chance(f64::from(chance) / 1000.0 * parts);
    let mut keys = tree.keys();
    keys.retain(|_, bytes| bytes.len() <= SMALL);
    let whole = When::any().operation(Operation::GetObject).ranged(false).that(move |r| keys.contains_key(&r.key));
    for (fault, when, often) in [
        (Fault::Latency(Duration::from_millis(7)), When::any(), often(5.0)),
        (Fault::InternalError, When::any(), often(1.0)),
        (Fault::SlowDown { retry_after: None }, When::any(), often(0.3)),
        (Fault::ResetEarly, When::any(), often(1.0)),
        (Fault::ResetLate, When::any(), often(1.0)),
        (Fault::LoseReply, When::any(), often(1.0)),
        (Fault::Truncate, When::any(), often(1.0)),
        (Fault::WrongByte, whole, often(2.0)),
        (Fault::Slow { bytes_per_second: 8 << 20 }, When::any(), often(0.5)),
        (Fault::Stall, When::any(), often(0.05)),
        (Fault::StallBody { after: 10_000 }, When::any(), often(0.05)),
    ] {
        bucket.double.fault(fault, when, often);
    }
}

/// One round: all threads, and whoever kills the server or notices that nothing goes on.
fn perform(bucket: &Bucket, session: &Session<'_>, round: &Round) -> Result<(), String> {
    let failures = Mutex::new(Vec::new());
    if round.threads.iter().flatten().any(|operation| matches!(operation, super::Operation::Replace { .. })) {
        // What was never seen may be shown as it is by then; what was seen has to stay.
        walk(session).map_err(|wrong| format!("at the beginning: {wrong:?}"))?;
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(&round.threads)
            .map(|(number, operations)| {
                let failures = &failures;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for (step, operation) in operations.iter().enumerate() {
                        let what = format!("thread {number}, operation {step}: {operation:?}");
                        set(session, number, &what);
                        match operation.perform(session, &mut held) {
                            Ok(()) | Err(Wrong::Stale) => {}
                            Err(Wrong::Gone) => break,
                            Err(Wrong::Bad(why)) => {
                                failures.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{what}: {why}"));
                                break;
                            }
                        }
                        session.pulse.fetch_add(1, Ordering::Relaxed);
                        session.ended.fetch_add(1, Ordering::Relaxed);
                    }
                    set(session, number, "");
                })
            })
            .collect();
        let mut last = (0, Instant::now());
        while threads.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
            let pulse = session.pulse.load(Ordering::Relaxed);
            if pulse != last.0 {
                last = (pulse, Instant::now());
            }
            let hangs = last.1.elapsed() > HANGS;
            if hangs {
                let at = session.at.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
                failures.lock().unwrap_or_else(PoisonError::into_inner).push(format!("nothing goes on in\n{at}"));
                last.1 = Instant::now();
            }
            let due = round.kill_after.is_some_and(|after| session.ended.load(Ordering::Relaxed) >= after);
            if (due || hangs) && !session.killed.swap(true, Ordering::SeqCst) {
                bucket.end_server(Signal::SIGKILL);
            }
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn set(session: &Session<'_>, thread: usize, what: &str) {
    if let Some(at) = session.at.lock().unwrap_or_else(PoisonError::into_inner).get_mut(thread) {
        what.clone_into(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_says_which_byte_and_what_it_looks_like() {
        let bytes: Bytes = (0..12_000_u32).map(|n| u8::try_from(n * n / 7 % 251 + 1).unwrap()).collect();
        let file = tree::File { path: "dir/file".to_owned(), bytes: bytes.clone() };
        let mut got = bytes[100..300].to_vec();
        got[50..80].fill(0);
        let text = difference(&file, 100, &bytes[100..300], &got);
        let expected =
            format!("byte 150 of \"dir/file\" (12000 bytes long) is 0x00 and should be {:#04x}; 30 of", bytes[150]);
        assert!(text.starts_with(&expected) && text.contains("30 zeros"), "{text}");
        got.copy_from_slice(&bytes[1000..1200]);
        assert!(difference(&file, 100, &bytes[100..300], &got).contains("belongs at 100"));
        let text = difference(&file, 11_990, &bytes[11_990..], &[bytes[11_990..].to_vec(), vec![1]].concat());
        assert!(text.starts_with("byte 12000 of"), "{text}");
    }
}
