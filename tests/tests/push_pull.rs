//! `batch-agent push` and `pull`: the real program between a directory and the double.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use tests::agent::{Node, eventually};
use tests::bucket::sample;
use tests::double::{AccessKey, Action, Double, DoubleConfig, Fault, Often, Operation, When};

const BUCKET: &str = "test-bucket";
const LONG: Duration = Duration::from_secs(120);

/// A node that has nothing but the program, and its storage.
struct Place {
    node: Node,
    double: Double,
    scheme: &'static str,
}

/// What a command came to.
#[derive(Debug)]
struct Ran {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new(scheme: &'static str) -> Self {
        let double = Double::start(DoubleConfig::default());
        let node = Node::with_double(&double.endpoint());
        Self { node, double, scheme }
    }

    fn location(&self, key: &str) -> String {
        format!("{}://{BUCKET}/{key}", self.scheme)
    }

    fn command(&self, verb: &str, from: &str, to: &str) -> Command {
        let mut command = self.node.agent();
        command.args([verb, from, to]);
        command
    }

    fn run(&self, verb: &str, from: &str, to: &str) -> Ran {
        let output = self.command(verb, from, to).output().expect("batch-agent starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran {
            status: output.status.code().expect("an exit status"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    fn push(&self, from: &Path, key: &str) -> Ran {
        self.run("push", &from.to_string_lossy(), &self.location(key))
    }

    fn pull(&self, key: &str, to: &Path) -> Ran {
        self.run("pull", &self.location(key), &to.to_string_lossy())
    }

    /// How many requests have brought content.
    fn writes(&self) -> usize {
        self.double.count(|request| matches!(request.operation, Operation::PutObject | Operation::UploadPart))
    }

    fn reads(&self) -> usize {
        self.double.count(|request| request.operation == Operation::GetObject)
    }
}

/// Every path below a directory, sorted, directories with a slash.
fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut queue = vec![root.to_owned()];
    while let Some(directory) = queue.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let entry = entry.expect("an entry");
            let name = entry.path().strip_prefix(root).expect("below it").to_string_lossy().into_owned();
            if entry.file_type().expect("a type").is_dir() {
                queue.push(entry.path());
                found.push(format!("{name}/"));
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_directory_goes_up_and_down_and_only_what_is_missing_travels_again() {
    for scheme in ["oss", "s3"] {
        let place = Place::new(scheme);
        let (from, to) = (place.node.path().join("from"), place.node.path().join("new/to"));
        fs::create_dir_all(from.join("a/empty")).expect("a directory");
        let odd = "odd %2F\n\u{4e2d} *";
        let files = [("a/one", 10_000), ("zero", 0), (odd, 77), ("large", 21 << 20)];
        for (seed, (name, size)) in files.iter().enumerate() {
            fs::write(from.join(name), sample(seed as u64, *size)).expect("a file");
        }
        symlink("a/one", from.join("inside")).expect("a link");
        symlink("/etc/passwd", from.join("outside")).expect("a link");
        nix::unistd::mkfifo(&from.join("pipe"), Mode::S_IRWXU).expect("a pipe");
        place.double.put(BUCKET, "out/theirs", "untouched");

        let run = place.push(&from, "out/");
        assert_eq!(run.status, 0, "{run:?}");
        assert!(run.stdout.starts_with("5 files there, 22040173 bytes"), "{run:?}");
        assert!(run.stderr.contains("outside") && run.stderr.contains("pipe"), "{run:?}");
        let keys: Vec<_> = place.double.objects(BUCKET).into_keys().collect();
        let mut expected = vec!["out/a/empty/", "out/a/one", "out/inside", "out/large", "out/theirs", "out/zero"];
        let odd_key = format!("out/{odd}");
        expected.insert(4, &odd_key);
        assert_eq!(keys, expected);
        assert!(place.double.get(BUCKET, "out/large").expect("it is there") == sample(3, 21 << 20));
        assert!(place.double.uploads(BUCKET).is_empty());

        // One has changed without another length, and one is gone.
        place.double.put(BUCKET, "out/a/one", sample(9, 10_000));
        place.double.delete(BUCKET, "out/zero");
        place.double.clear_requests();
        let run = place.push(&from, "out/");
        assert!(run.status == 0 && run.stdout.contains("3 of them already"), "{scheme}: {run:?}");
        assert!(place.double.get(BUCKET, "out/a/one").expect("it is there") == sample(0, 10_000));
        // The two, and the marker.
        assert_eq!(place.writes(), 3, "{scheme}");
        assert_eq!(place.double.get(BUCKET, "out/theirs").expect("it is there"), b"untouched");

        let run = place.pull("out/", &to);
        assert!(run.status == 0 && run.stdout.starts_with("6 files here"), "{run:?}");
        assert_eq!(tree(&to), ["a/", "a/empty/", "a/one", "inside", "large", odd, "theirs", "zero"]);
        for (seed, (name, size)) in files.iter().enumerate() {
            assert!(fs::read(to.join(name)).expect("a file") == sample(seed as u64, *size), "{name:?}");
        }
        // One has changed without another length; what is here besides stays.
        fs::write(to.join("theirs"), "replaced!").expect("a file");
        fs::write(to.join("mine"), "mine").expect("a file");
        place.double.clear_requests();
        let run = place.pull("out/", &to);
        assert_eq!(run.status, 0, "{run:?}");
        assert_eq!(fs::read(to.join("theirs")).expect("a file"), b"untouched");
        assert_eq!(fs::read(to.join("mine")).expect("a file"), b"mine");
        assert!(run.stdout.contains("5 of them already") && place.reads() == 1, "{scheme}: {run:?}");
    }
}

#[test]
fn one_file_goes_up_and_down_under_either_name() {
    let place = Place::new("oss");
    let file = place.node.path().join("file");
    fs::write(&file, "content").expect("a file");
    for (key, object) in [("dir/", "dir/file"), ("other", "other")] {
        assert_eq!(place.push(&file, key).status, 0);
        assert_eq!(place.double.get(BUCKET, object).expect("it is there"), b"content");
    }
    let here = place.node.path().join("here");
    fs::create_dir(&here).expect("a directory");
    assert_eq!(place.pull("other", &here).status, 0);
    assert_eq!(place.pull("other", &here.join("name")).status, 0);
    assert_eq!(tree(&here), ["name", "other"]);

    let run = place.push(&here, "dir");
    assert!(run.status == 64 && run.stderr.contains(&format!("write {}/", place.location("dir"))), "{run:?}");
    assert_eq!(place.push(&here.join("gone"), "dir/").status, 66);
    assert_eq!(place.pull("gone", &here).status, 66);
    assert_eq!(place.pull("gone/", &here.join("new")).status, 66);
    assert!(!here.join("new").exists());
}

#[test]
fn hostile_objects_stay_outside_and_everything_else_comes() {
    let place = Place::new("oss");
    let outer = place.node.path().join("outer");
    let to = outer.join("to");
    fs::create_dir_all(&to).expect("a directory");
    fs::create_dir(outer.join("elsewhere")).expect("a directory");
    fs::write(outer.join("victim"), "safe").expect("a file");
    symlink("../elsewhere", to.join("link")).expect("a link");
    symlink("../victim", to.join("last")).expect("a link");
    let long = format!("in/{}", "n".repeat(300));
    let bad = ["in/../up", "in/a/../../../up", "in//etc/x", "in/a//b", "in/.", "in/link/through", "in/x", &long];
    for key in bad {
        place.double.put(BUCKET, key, "hostile");
    }
    for key in ["in/good", "in/x/y", "in/last"] {
        place.double.put(BUCKET, key, "good");
    }
    place.double.put(BUCKET, "in/marker/", "");
    let run = place.pull("in/", &to);
    assert_eq!(run.status, 71, "{run:?}");
    assert!(run.stderr.contains("8 did not arrive"), "{run:?}");
    // The link itself is replaced, and not what it points to.
    assert_eq!(
        tree(&outer),
        ["elsewhere/", "to/", "to/good", "to/last", "to/link", "to/marker/", "to/x/", "to/x/y", "victim"]
    );
    assert_eq!(fs::read(outer.join("victim")).expect("a file"), b"safe");
    assert_eq!(fs::read(to.join("last")).expect("a file"), b"good");
    assert!(!place.node.path().join("up").exists());
}

#[test]
fn what_fails_is_named_and_the_rest_arrives_through_trouble() {
    let place = Place::new("oss");
    let (from, to) = (place.node.path().join("from"), place.node.path().join("to"));
    fs::create_dir(&from).expect("a directory");
    for number in 0..200_u64 {
        fs::write(from.join(number.to_string()), sample(number, number * 331)).expect("a file");
    }
    // Not the kinds that stand still: they cost the client's read timeout each, and `transfers` has them with a short one.
    let faults = [
        (Fault::InternalError, When::any()),
        (Fault::SlowDown { retry_after: None }, When::any()),
        (Fault::ResetEarly, When::any()),
        (Fault::ResetLate, When::any()),
        (Fault::LoseReply, When::any()),
        (Fault::Truncate, When::any()),
        (Fault::WrongByte, When::any().ranged(false)),
        (Fault::WrongUpload, When::any()),
    ];
    let faults = faults.map(|(fault, when)| place.double.fault(fault, when, Often::Chance(0.01)));
    let key = || AccessKey::new("test-key", "test-secret");
    place.double.set_keys(vec![key().deny(Action::Write, "out/7")]);
    let run = place.push(&from, "out/");
    assert_eq!(run.status, 77, "{run:?}");
    assert!(run.stderr.contains("out/7") && run.stderr.contains("11 did not arrive"), "{run:?}");
    assert_eq!(place.double.objects(BUCKET).len(), 189);
    place.double.set_keys(vec![key()]);
    assert_eq!(place.push(&from, "out/").status, 0);
    let run = place.pull("out/", &to);
    assert_eq!(run.status, 0, "{run:?}");
    for number in 0..200_u64 {
        assert!(fs::read(to.join(number.to_string())).expect("a file") == sample(number, number * 331), "{number}");
    }
    assert!(faults.iter().any(|fault| place.double.happened(*fault) > 0), "nothing went wrong");
}

#[test]
fn a_command_that_is_stopped_leaves_nothing_half_done_and_goes_on_the_next_time() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let place = Place::new("oss");
        let (from, to) = (place.node.path().join("from"), place.node.path().join("to"));
        fs::create_dir(&from).expect("a directory");
        fs::write(from.join("a small one"), "small").expect("a file");
        fs::write(from.join("large"), sample(1, 40 << 20)).expect("a file");
        let slow =
            place.double.fault(Fault::Latency(LONG), When::any().operation(Operation::UploadPart), Often::Always);
        let stop = |mut command: Command, ready: &dyn Fn() -> bool| {
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("batch-agent starts");
            eventually("it is at work", LONG, ready);
            kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it is there");
            child.wait().expect("it is ours").code()
        };
        let expected = (signal == Signal::SIGTERM).then_some(143);
        let push = place.command("push", &from.to_string_lossy(), &place.location("out/"));
        let small =
            || place.double.get(BUCKET, "out/a small one").is_some() && !place.double.uploads(BUCKET).is_empty();
        assert_eq!(stop(push, &small), expected);
        assert!(place.double.get(BUCKET, "out/large").is_none());
        if signal == Signal::SIGTERM {
            assert!(place.double.uploads(BUCKET).is_empty(), "its parts are given up");
        }
        place.double.remove_fault(slow);
        let run = place.push(&from, "out/");
        assert!(run.status == 0 && run.stdout.contains("1 of them already"), "{run:?}");

        let slow = place.double.fault(
            Fault::Latency(LONG),
            When::any().operation(Operation::GetObject).key("out/large"),
            Often::Always,
        );
        let pull = place.command("pull", &place.location("out/"), &to.to_string_lossy());
        assert_eq!(stop(pull, &|| to.join("a small one").exists()), expected);
        assert_eq!(tree(&to), ["a small one"]);
        place.double.remove_fault(slow);
        let run = place.pull("out/", &to);
        assert!(run.status == 0 && run.stdout.contains("1 of them already"), "{run:?}");
        assert!(fs::read(to.join("large")).expect("a file") == sample(1, 40 << 20));
    }
}

#[test]
fn a_push_that_was_killed_goes_on_inside_the_file() {
    for scheme in ["oss", "s3"] {
        let place = Place::new(scheme);
        let file = place.node.path().join("large");
        fs::write(&file, sample(1, 70 << 20)).expect("a file");
        let parts = |key: &str| {
            let key = key.to_owned();
            place.double.count(move |request| {
                request.operation == Operation::UploadPart && request.status == Some(200) && request.key == key
            })
        };
        let stuck =
            place.double.fault(Fault::Latency(LONG), When::any().operation(Operation::CompleteUpload), Often::Always);
        let mut push = place.command("push", &file.to_string_lossy(), &place.location("out/large"));
        let mut child = push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("batch-agent starts");
        eventually("all parts have arrived", LONG, || parts("out/large") == 5);
        child.kill().expect("it is there");
        child.wait().expect("it is ours");
        place.double.remove_fault(stuck);
        assert!(place.double.get(BUCKET, "out/large").is_none());
        place.double.clear_requests();
        let run = place.push(&file, "out/large");
        assert_eq!(run.status, 0, "{run:?}");
        assert!(place.double.get(BUCKET, "out/large").expect("it is there") == sample(1, 70 << 20));
        // The answer to the last one may not have come before it was killed.
        assert!(parts("out/large") <= 1, "{scheme}: {} parts travelled twice", parts("out/large"));
        assert!(place.double.uploads(BUCKET).is_empty());
        let left = fs::read_dir(place.node.path().join("state/pushes")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "nothing is written down any more");
    }
}
