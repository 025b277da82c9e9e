//! Outputs that travel while the task runs: what is in storage in the end, what is seen before, and what stays of agents that were killed.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use oss::{CredentialSource, Key, Location, Secret, Settings, StoreSettings, Stores};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::agent::{Node, command, eventually, job, merge};
use tests::bucket::sample;
use tests::double::{Content, Double, DoubleConfig, Fault, Often, Operation, Request, When};
use tests::node::BootNode;

const BUCKET: &str = "test-bucket";
const LONG: Duration = Duration::from_secs(180);

/// Of another, under the same prefix: an object, and an upload that is open.
fn theirs(double: &Double, scheme: &str) -> String {
    double.put(BUCKET, "out/theirs", "untouched");
    let settings = StoreSettings {
        endpoint: Some(double.endpoint()),
        region: Some("cn-test".to_owned()),
        credentials: CredentialSource::Static {
            access_key_id: "test-key".to_owned(),
            access_key_secret: Secret::new("test-secret"),
            security_token: None,
        },
        ..StoreSettings::default()
    };
    let stores = Stores::new(Settings { oss: settings.clone(), s3: settings });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let location: Location = format!("{scheme}://{BUCKET}/").parse().unwrap();
        let store = stores.open(&location).unwrap();
        let key = Key::new("out/large-0");
        let id = store.create_multipart(&key).await.unwrap();
        store.put_part(&key, &id, 1, sample(7, 100)).await.unwrap();
        id.0
    })
}

/// What a run of the writer is.
struct Load {
    small: usize,
    large: usize,
    /// The length of large files, in bytes; each is a little different.
    size: u64,
    kills: usize,
}

/// Writes, changes, renames and deletes files at random until it is told to end; then does what is meanest, and leaves a list of what there
/// is and its checksums.
fn writer(node: &BootNode, out: &str, load: &Load) -> String {
    let text = r#"#!/usr/bin/python3
import hashlib, json, os, random, sys, time
out, go, told, small, large, size, seed = sys.argv[1:4] + [int(n) for n in sys.argv[4:8]]
rng = random.Random(seed)
os.chdir(out)
block = rng.randbytes(1 << 20)
def fill(path, length, mode="wb"):
    with open(path, mode) as file:
        done = 0
        while done < length:
            piece = os.urandom(16) + block
            done += file.write(piece[:length - done])
for n in range(large):
    fill(f"large-{n}", size + rng.randrange(1 << 20))
for n in range(small):
    os.makedirs(f"d{n % 50}", exist_ok=True)
    fill(f"d{n % 50}/s{n}", rng.randrange(2000))
print("written", flush=True)
last = 0
while not os.path.exists(go):
    what = rng.randrange(8)
    name = f"d{rng.randrange(50)}/x{rng.randrange(20)}"
    os.makedirs(os.path.dirname(name), exist_ok=True)
    if what < 2:
        fill(name, (1 << 20) + rng.randrange(3 << 20))
    elif what < 3 and os.path.exists(name):
        os.rename(name, f"d{rng.randrange(50)}/moved" if rng.randrange(2) else name + "y")
    elif what < 4 and os.path.exists(name):
        with open(name, "r+b") as file:
            file.seek(rng.randrange(1000))
            file.write(b"changed in the middle")
    elif what < 5 and os.path.exists(name):
        os.remove(name)
    else:
        time.sleep(0.05)
    os.makedirs(f"d{rng.randrange(50)}", exist_ok=True)
# Of the large ones the first stays as it is; each of the next ones changes in a way of its own.
def restore_times(path, change):
    before = os.stat(path)
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
def patch(path):
    with open(path, "r+b") as file:
        file.write(b"patched")
if large > 6:
    restore_times("large-1", patch)
    os.truncate("large-2", 1_500_000)
    os.remove("large-3")
    os.rename("large-4", "renamed")
    os.remove("large-5"); os.symlink("/etc/passwd", "large-5")
    os.remove("large-6"); os.symlink("large-0", "large-6")
    os.rename("d0", "was-d0"); os.symlink("/etc", "d0")
found = {}
for base, directories, files in os.walk("."):
    for name in files:
        path = os.path.join(base, name)
        if os.path.islink(path) and not os.path.realpath(path).startswith(os.path.realpath(".")):
            continue
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        found[os.path.relpath(path, ".")] = digest.hexdigest()
    if not directories and not files:
        found[os.path.relpath(base, ".") + "/"] = hashlib.sha256().hexdigest()
with open(told + ".new", "w") as file:
    json.dump(found, file)
os.rename(told + ".new", told)
"#;
    let program = node.program("writer", text);
    let (go, told, seed) = (node.path("go"), node.path("told"), fastrand::u32(..));
    println!("seed {seed}");
    let Load { small, large, size, .. } = load;
    format!("{program} {out} {} {} {small} {large} {size} {seed}", go.display(), told.display())
}

/// The outputs in storage, with their checksums.
fn objects(double: &Double) -> BTreeMap<String, String> {
    let all = double.objects(BUCKET);
    let outputs = all.iter().filter_map(|(key, object)| Some((key.strip_prefix("out/")?.to_owned(), object)));
    let sum = |content: &Content| {
        let chunks = content.chunks(0..content.len());
        hex::encode(chunks.iter().fold(Sha256::new(), |sum, chunk| sum.chain_update(chunk)).finalize())
    };
    outputs.map(|(key, object)| (key, sum(&object.content))).collect()
}

/// Their names.
fn names(double: &Double) -> Vec<String> {
    let all = double.objects(BUCKET).into_keys();
    all.filter_map(|key| key.strip_prefix("out/").map(str::to_owned)).collect()
}

fn succeeded(operation: Operation) -> impl Fn(&Request) -> bool {
    move |request| request.operation == operation && request.status == Some(200)
}

fn kill(mut agent: Child) {
    agent.kill().unwrap();
    agent.wait().unwrap();
}

/// The whole of it, with agents that are killed while the task runs and while its outputs are sent.
fn survives(scheme: &str, load: &Load) {
    let spill = tempfile::tempdir().unwrap();
    let double = Double::start(DoubleConfig { spill: Some(spill.path().to_owned()), ..DoubleConfig::default() });
    let other = theirs(&double, scheme);
    let node = BootNode::new();
    let out = node.path("seen/out");
    let line = writer(&node, &out.to_string_lossy(), load);
    let logs = format!("{scheme}://{BUCKET}/logs/");
    let store = json!({
        "endpoint": double.endpoint(), "region": "cn-test",
        "access_key_id": "test-key", "access_key_secret": "test-secret",
    });
    let task = json!({
        "command": line, "stdout": logs, "stderr": logs,
        "outputs": [{"source": format!("{}/", out.display()), "target": format!("{scheme}://{BUCKET}/out/")}],
    });
    node.settings(&json!({
        "storage": {scheme: store},
        "early_upload": "quiet=1s,from=1MiB,bandwidth=1GiB,cpu=8",
        "task": {"job": {"version": 1, "name": "a job", "tasks": {"only": task}}, "job_id": "job-1"},
    }));
    let parts = || double.count(succeeded(Operation::UploadPart));
    let mut agent = node.boot();
    eventually("everything is written", 10 * LONG, || {
        double.get(BUCKET, "logs/stdout.job-1.only.0").is_some_and(|log| log.starts_with(b"written"))
    });
    let first: usize = (load.large / 2).max(1) * usize::try_from(load.size >> 24).unwrap() / load.kills.max(1);
    for _ in 0..load.kills {
        let before = parts();
        eventually("parts travel", LONG, || parts() > before + first.min(2));
        std::thread::sleep(Duration::from_millis(fastrand::u64(..400)));
        kill(agent);
        agent = node.boot();
    }
    let large = |double: &Double| {
        let uploads = double.uploads(BUCKET);
        let whole = uploads.iter().filter(|upload| upload.id != other && upload.key.starts_with("out/large-"));
        let sizes = whole.map(|upload| upload.parts.values().map(|part| part.content.len()).sum::<u64>());
        sizes.filter(|size| *size >= load.size).count()
    };
    eventually("the large files have travelled", 10 * LONG, || large(&double) == load.large);
    let ahead = parts();
    assert_eq!(names(&double), ["theirs"], "nothing is seen before the end");

    fs::write(node.path("go"), "").unwrap();
    eventually("outputs arrive", LONG, || names(&double).len() > 1);
    kill(agent);
    let begun = Instant::now();
    let mut agent = node.boot();
    let mut status = None;
    eventually("the agent has ended", 10 * LONG, || {
        status = agent.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0), "{}", node.log());
    println!("{scheme}: {ahead} parts ahead of time, {} in all; the end took {:?}", parts(), begun.elapsed());

    let mut expected: BTreeMap<String, String> =
        serde_json::from_str(&fs::read_to_string(node.path("told")).unwrap()).unwrap();
    expected.insert("theirs".to_owned(), hex::encode(Sha256::digest("untouched")));
    expected.remove("./");
    let there = objects(&double);
    assert_eq!(names(&double), expected.keys().cloned().collect::<Vec<_>>());
    let wrong: Vec<_> = expected.iter().filter(|(name, sum)| there[*name] != **sum).collect();
    assert!(wrong.is_empty(), "other content: {wrong:?}");
    let open = double.uploads(BUCKET);
    let foreign = open.iter().filter(|upload| upload.id == other && upload.parts.len() == 1).count();
    assert_eq!((open.len(), foreign), (1, 1), "what is open: {:?}", open.iter().map(|u| &u.key).collect::<Vec<_>>());
    let manifest: Value =
        serde_json::from_slice(&double.get(BUCKET, "logs/manifest.job-1.only.0.json").unwrap()).unwrap();
    let files = expected.keys().filter(|name| !name.ends_with('/')).count() - 1;
    assert_eq!(manifest["files"].as_array().unwrap().len(), files);
    let left = fs::read_dir(node.path("state/uploads")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "nothing is written down any more");
    // What stayed as it was travelled once, but for what was under way at a kill.
    let of_the_first =
        double.count(|request| succeeded(Operation::UploadPart)(request) && request.key == "out/large-0");
    let needed = usize::try_from((load.size >> 24) + 2).unwrap();
    assert!(of_the_first <= needed + load.kills + 2, "{of_the_first} parts were sent of a file of {needed}");
}

#[test]
fn agents_are_killed_and_every_file_arrives_once_on_oss() {
    survives("oss", &Load { small: 60, large: 7, size: 20 << 20, kills: 3 });
}

#[test]
fn agents_are_killed_and_every_file_arrives_once_on_s3() {
    survives("s3", &Load { small: 20, large: 7, size: 2 << 20, kills: 1 });
}

/// By the environment: `EARLY_FILES`, `EARLY_GIB`, `EARLY_KILLS`.
#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_twenty_thousand_files_and_a_large_one_survive_kills() {
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (files, gib) = (number("EARLY_FILES", 20_000), number("EARLY_GIB", 20));
    let load = Load {
        small: usize::try_from(files).unwrap(),
        large: 1,
        size: gib << 30,
        kills: usize::try_from(number("EARLY_KILLS", 20)).unwrap(),
    };
    survives("oss", &load);
}

/// A task that writes a large file, waits until it is told to go on, and then does the rest. Each attempt waits for a file of its own.
fn waiting(node: &Node, rest: &str, more: &Value) -> Value {
    let (out, go) = (node.mapped("out"), node.path().join("go"));
    let line = format!(
        "/bin/sh -c 'echo begun; head -c 3000000 /dev/urandom > {out}/file; while ! [ -e {} ]; do sleep 0.1; done; {rest}'",
        go.display()
    );
    let mut task = command(&line);
    merge(&mut task, &json!({"OutputMapping": {format!("{out}/"): "oss://test-bucket/out/"}}));
    merge(&mut task, more);
    job(&task)
}

fn early(double: &Double, how: &str) -> Node {
    Node::with_double(&double.endpoint()).environment("BATCH_AGENT_EARLY_UPLOAD", how)
}

const EAGER: &str = "quiet=1s,from=1MiB,cpu=8";

#[test]
fn parts_of_an_attempt_that_is_retried_or_was_never_finished_are_given_up() {
    let double = Double::start(DoubleConfig::default());
    let node = early(&double, EAGER);
    let other = theirs(&double, "oss");
    let has_travelled =
        || double.uploads(BUCKET).iter().any(|upload| upload.key == "out/file" && !upload.parts.is_empty());

    // The first attempt's outputs do not count.
    let rest = format!(
        "cat {0}/second 2>/dev/null && rm {1}/file || {{ touch {0}/second; exit 1; }}",
        node.path().display(),
        node.mapped("out")
    );
    let run = node.start(&waiting(&node, &rest, &json!({"MaxRetryCount": 1})), &[]);
    eventually("parts travel", LONG, has_travelled);
    assert_eq!(names(&double).len(), 1, "nothing is seen before the end");
    fs::write(node.path().join("go"), "").unwrap();
    let run = run.wait();
    assert_eq!((run.status, run.instance("task", 0)["retries"].as_u64()), (0, Some(1)), "{run:?}");
    assert_eq!(names(&double), ["theirs"]);
    assert_eq!(double.uploads(BUCKET).len(), 1);
    node.assert_clean();

    // One that is stopped is uploaded: of parts that are there already.
    fs::remove_file(node.path().join("go")).unwrap();
    let run = node.start(&waiting(&node, "true", &json!({})), &[]);
    eventually("parts travel", LONG, has_travelled);
    double.clear_requests();
    run.signal(Signal::SIGTERM);
    assert_eq!(run.wait().status, 143);
    assert_eq!(double.count(|request| request.operation == Operation::UploadPart && request.key == "out/file"), 0);
    assert_eq!((names(&double).len(), double.uploads(BUCKET).len()), (2, 1));

    // A killed agent's parts are given up by whoever comes next, and nobody else's.
    double.delete(BUCKET, "out/file");
    let run = node.start(&waiting(&node, "true", &json!({})), &[]);
    eventually("parts travel", LONG, has_travelled);
    run.signal(Signal::SIGKILL);
    drop(run);
    assert_eq!(node.run(&job(&command("true"))).status, 0);
    let open = double.uploads(BUCKET);
    assert_eq!(open.iter().map(|upload| &upload.id).collect::<Vec<_>>(), [&other]);
    assert_eq!(names(&double), ["theirs"]);
    node.assert_clean();
}

#[test]
fn nothing_travels_before_the_end_where_that_is_not_wanted() {
    let double = Double::start(DoubleConfig::default());
    let node = early(&double, "off");
    let run = node.start(&waiting(&node, "true", &json!({})), &[]);
    eventually("it runs", LONG, || double.objects(BUCKET).keys().any(|key| key.starts_with("logs/stdout")));
    std::thread::sleep(Duration::from_secs(3));
    assert!(double.uploads(BUCKET).is_empty());
    fs::write(node.path().join("go"), "").unwrap();
    assert_eq!(run.wait().status, 0);
    assert_eq!(double.count(|request| request.operation == Operation::CreateUpload), 0);
    assert_eq!(names(&double), ["file"]);
    let wrong = early(&double, "cpu=all").run(&job(&command("true")));
    assert!(wrong.status == 64 && wrong.stderr.contains("cpu=all"), "{wrong:?}");
}

/// Storage that fails while the task runs costs nothing but the head start.
#[test]
fn storage_that_refuses_parts_meanwhile_is_no_failure() {
    let double = Double::start(DoubleConfig::default());
    let node = early(&double, EAGER);
    let fault = double.fault(Fault::InternalError, When::any().operation(Operation::CompleteUpload), Often::Next(1));
    let run = node.start(&waiting(&node, "true", &json!({})), &[]);
    eventually("parts travel", LONG, || double.uploads(BUCKET).iter().any(|upload| !upload.parts.is_empty()));
    fs::write(node.path().join("go"), "").unwrap();
    let run = run.wait();
    assert_eq!(run.status, 0, "{run:?}");
    assert_eq!(double.happened(fault), 1);
    assert_eq!(names(&double), ["file"]);
    assert!(double.uploads(BUCKET).is_empty());
    node.assert_clean();
}
