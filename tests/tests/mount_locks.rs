//! Locks between processes of this node, on a mount that only shows and on one that can be written to.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use tests::bucket::{Bucket, sample};
use tests::python;

const LOCKS: &str = r#"
import ctypes, fcntl, os, struct, sys
kind, how, path, wait = sys.argv[1:5]
shared = how == "shared"
f = open(path, "rb" if shared or wait == "readonly" else "r+b")
def lock(block):
    if kind == "flock":
        fcntl.flock(f, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if block else fcntl.LOCK_NB))
        return
    # The first byte only. F_OFD_SETLK is 37, F_OFD_SETLKW 38.
    request = {("posix", False): fcntl.F_SETLK, ("posix", True): fcntl.F_SETLKW, ("ofd", False): 37, ("ofd", True): 38}[kind, block]
    fcntl.fcntl(f, request, struct.pack("hhqqi4x", fcntl.F_RDLCK if shared else fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
try:
    lock(wait == "wait")
except BlockingIOError:
    print("refused", flush=True)
    sys.exit()
print("held", flush=True)
sys.stdin.read()
"#;

/// A process that holds a lock, or was refused it; it ends, without letting go of the lock first, when it is dropped.
struct Locker {
    process: Child,
    said: io::BufReader<ChildStdout>,
}

impl Locker {
    fn start(kind: &str, how: &str, path: &Path, mode: &str) -> Self {
        let mut process = Command::new(python::interpreter())
            .args(["-c", LOCKS, kind, how])
            .arg(path)
            .arg(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = io::BufReader::new(process.stdout.take().unwrap());
        Self { process, said }
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        io::BufRead::read_line(&mut self.said, &mut line).unwrap();
        line.trim().to_owned()
    }

    fn holds(kind: &str, how: &str, path: &Path, mode: &str) -> (Self, bool) {
        let mut locker = Self::start(kind, how, path, mode);
        let answer = locker.answer();
        assert!(matches!(answer.as_str(), "held" | "refused"), "{kind} {how}: {answer:?}");
        (locker, answer == "held")
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn locks_work_within_the_node() {
    let bucket = Bucket::new().argument("--writable");
    bucket.put("object", sample(1, 5000));
    bucket.mount();
    let shows = bucket.sandbox.path("shows");
    fs::create_dir(&shows).unwrap();
    fs::write(bucket.sandbox.source().join("object"), "in the store").unwrap();
    bucket.sandbox.run(["mount".as_ref(), bucket.sandbox.location().as_ref(), shows.as_os_str()]).succeeded();
    fs::write(bucket.path("local"), "local").unwrap();

    let views = [(bucket.path("object"), "try"), (bucket.path("local"), "try"), (shows.join("object"), "readonly")];
    for (path, mode) in &views {
        for kind in ["flock", "posix", "ofd"] {
            let holds = |how: &str| Locker::holds(kind, how, path, mode);
            let (first, got) = holds("shared");
            assert!(got, "{kind} on {}", path.display());
            let (second, got) = holds("shared");
            assert!(got, "{kind}: two may share");
            // POSIX and OFD locks for writing need a file that is open for writing.
            if *mode == "readonly" && kind != "flock" {
                continue;
            }
            assert!(!holds("exclusive").1, "{kind}: one cannot have it alone while two share it");
            drop(first);
            assert!(!holds("exclusive").1, "{kind}: nor while one does");
            drop(second);
            let (alone, got) = holds("exclusive");
            assert!(got, "{kind}: a lock ends with its process");
            assert!(!holds("shared").1 && !holds("exclusive").1, "{kind}: it is held alone");
            // Who waits gets it when its holder is killed.
            let mut waiting =
                Locker::start(kind, "shared", path, if *mode == "readonly" { "readonly" } else { "wait" });
            if *mode == "readonly" {
                assert_eq!(waiting.answer(), "refused");
            } else {
                drop(alone);
                assert_eq!(waiting.answer(), "held", "{kind}: the next one gets it");
            }
        }
    }
}
