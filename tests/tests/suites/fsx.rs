//! fsx: random reads, writes, truncations, mappings, holes and copies of one file, each compared with what it must be.
//!
//! Four files at once: a remote one, which is copied up by the first write, and a local one; with and without pressure on the
//! mount's cache, which then holds a fraction of what is read beside it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tests::bucket::{Bucket, sample};
use tests::tools;
use tests::view::View;

/// Everything fsx can do to a file, at sizes that cross pages and blocks. Never nothing at all: an allocation of no bytes is EINVAL
/// everywhere, which fsx takes for a file system that cannot allocate.
const LOCAL: &str = "flen = 3000000
[opsize]
min = 1
max = 300000
[weights]
close_open = 2.0
invalidate = 1.0
mapread = 10.0
mapwrite = 10.0
read = 10.0
write = 10.0
truncate = 5.0
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 2.0
punch_hole = 3.0
sendfile = 3.0
posix_fadvise = 2.0
copy_file_range = 5.0
";

/// What it can do to the head of a file whose length is to stay: in this mode it does not cut the file off when it begins.
const REMOTE: &str = "blockmode = true
flen = 2097152
[opsize]
max = 300000
[weights]
invalidate = 1.0
mapread = 10.0
mapwrite = 10.0
read = 10.0
write = 10.0
truncate = 0.0
fsync = 0.2
fdatasync = 0.2
punch_hole = 3.0
sendfile = 3.0
posix_fadvise = 2.0
copy_file_range = 5.0
";

/// How many bytes of the remote file fsx changes: `flen` above. Whole pages, because it takes that for the end of the file and looks
/// whether what is mapped beyond is zero.
const CHANGED: u64 = 2 << 20;
/// How long that file is.
const REMOTE_LEN: u64 = 9_000_001;
/// How many other objects are read meanwhile, where the cache is small.
const OTHERS: u64 = 12;
const OTHER_LEN: u64 = 4_000_000;

/// fsx at work, ended when it is dropped.
#[derive(Debug)]
struct Exerciser {
    child: Child,
    log: PathBuf,
    what: String,
}

impl Exerciser {
    fn start(view: &View, seconds: u64, seed: u64, settings: &str, name: &str) -> Self {
        let sandbox = &view.bucket.sandbox;
        let (file, log) = (sandbox.path(&format!("{name}.toml")), sandbox.path(&format!("{name}.log")));
        fs::write(&file, settings).unwrap();
        let artefacts = sandbox.path(&format!("{name}.artefacts"));
        fs::create_dir(&artefacts).unwrap();
        let output = File::create(&log).unwrap();
        let mut command = tools::limited(seconds, tools::suite("fsx"));
        command.args(["-S", &seed.to_string()]).arg("-f").arg(&file).arg("-P").arg(artefacts).arg(view.path(name));
        command.stdout(output.try_clone().unwrap()).stderr(output).stdin(Stdio::null());
        Self { child: command.spawn().unwrap(), log, what: format!("fsx -S {seed} on {name}") }
    }

    /// Waits; nothing but the end of its time may end it.
    fn finish(mut self) {
        let status = self.child.wait().unwrap();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let tail = log.len().saturating_sub(8000);
        let tail = log.get(tail..).unwrap_or(&log);
        assert_eq!(status.code(), Some(124), "{}: {status}\n{tail}", self.what);
    }
}

impl Drop for Exerciser {
    fn drop(&mut self) {
        // `timeout` passes it on.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX)),
                nix::sys::signal::Signal::SIGTERM,
            );
            let _ = self.child.wait();
        }
    }
}

fn exercise(seconds: u64) {
    let ample = View::of(Bucket::new());
    let tight = View::of(Bucket::new().cache_size("8MiB").memory_limit("64MiB"));
    let seed = fastrand::u64(..);
    println!("fsx: seed {seed}");
    for view in [&ample, &tight] {
        view.bucket.put("remote", sample(seed, REMOTE_LEN));
        for number in 0..OTHERS {
            view.bucket.put(&format!("others/{number}"), sample(number, OTHER_LEN));
        }
        view.mount();
    }
    let stop = AtomicBool::new(false);
    let read = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| press(&tight.path("others"), &stop, &read));
        let _stop = StopWhenDropped(&stop);
        let mut running = Vec::new();
        for (view, seed) in [(&ample, seed), (&tight, seed.wrapping_add(1))] {
            running.push(Exerciser::start(view, seconds, seed, REMOTE, "remote"));
            running.push(Exerciser::start(view, seconds, seed, LOCAL, "local"));
        }
        running.into_iter().for_each(Exerciser::finish);
    });
    let read = read.into_inner();
    println!("fsx: {} MiB read beside it", read >> 20);
    assert!(read > OTHERS * OTHER_LEN, "there was no pressure on the cache: {read} bytes read");
    for view in [&ample, &tight] {
        // What fsx was not told to change is still what the store has, copied up or not.
        let file = File::open(view.path("remote")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), REMOTE_LEN);
        let mut rest = vec![0; usize::try_from(REMOTE_LEN - CHANGED).unwrap()];
        file.read_exact_at(&mut rest, CHANGED).unwrap();
        assert!(rest == sample(seed, REMOTE_LEN)[usize::try_from(CHANGED).unwrap()..]);
        drop(file);
        view.unmount();
        assert_eq!(view.bucket.double.get(tests::bucket::NAME, "remote").unwrap(), sample(seed, REMOTE_LEN));
    }
}

/// Reads other objects over and over, so that the cache has to give up what it has.
fn press(folder: &Path, stop: &AtomicBool, read: &AtomicU64) {
    let mut buffer = vec![0; 100_000];
    while !stop.load(Ordering::Relaxed) {
        let (number, at) = (fastrand::u64(..OTHERS), fastrand::u64(..OTHER_LEN - 100_000));
        let file = File::open(folder.join(number.to_string())).unwrap();
        tests::bucket::forget_pages(&file).unwrap();
        file.read_exact_at(&mut buffer, at).unwrap();
        let at = usize::try_from(at).unwrap();
        assert!(buffer == sample_of(number)[at..at + buffer.len()], "others/{number} at {at}");
        read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        // It is fsx that is to run.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// [`sample`] takes too long to be made for each read.
fn sample_of(number: u64) -> &'static [u8] {
    static SAMPLES: std::sync::OnceLock<Vec<bytes::Bytes>> = std::sync::OnceLock::new();
    let samples = SAMPLES.get_or_init(|| (0..OTHERS).map(|number| sample(number, OTHER_LEN)).collect());
    &samples[usize::try_from(number).unwrap()]
}

/// Also when the test fails.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn fsx_finds_nothing_in_two_minutes() {
    exercise(120);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_fsx_finds_nothing_in_half_an_hour() {
    exercise(1800);
}
