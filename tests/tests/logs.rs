//! Logs of running tasks: through storage that fails, agents that are killed and disks that fill up; and `batch-agent logs`, which reads
//! them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::agent::eventually;
use tests::disk::LoopDisk;
use tests::double::{Double, DoubleConfig, Fault, FaultId, Often, Operation, Outage, When};
use tests::mounts::Ran;
use tests::node::{BootNode, LIMIT};

const BUCKET: &str = "test-bucket";

/// How long a whole log may take on a machine that is busy with other tests.
const LONG: Duration = Duration::from_secs(300);

/// A node whose storage is a double.
struct Place {
    node: BootNode,
    double: Double,
    scheme: &'static str,
}

impl Place {
    fn new(scheme: &'static str, config: DoubleConfig) -> Self {
        Self { node: BootNode::new(), double: Double::start(config), scheme }
    }

    fn location(&self, key: &str) -> String {
        format!("{}://{BUCKET}/{key}", self.scheme)
    }

    fn storage(&self) -> Value {
        let store = json!({
            "endpoint": self.double.endpoint(), "region": "cn-test",
            "access_key_id": "test-key", "access_key_secret": "test-secret",
        });
        json!({ self.scheme: store })
    }

    /// Settings for a task that runs this line in a shell.
    fn settings(&self, line: &str, more: &Value) {
        let mut task = json!({
            "command": ["bash", "-c", line], "stdout": self.location("logs/"), "stderr": self.location("logs/"),
        });
        tests::agent::merge(&mut task, more);
        let job = json!({"version": 1, "name": "a job", "tasks": {"only": task}});
        self.node.settings(&json!({"storage": self.storage(), "task": {"job": job, "job_id": "job-1"}}));
    }

    /// `batch-agent logs`.
    fn logs(&self, arguments: &[&str]) -> Ran {
        let config = self.node.path("node.yaml");
        let config = config.to_string_lossy();
        self.node.run(&[&["logs", "--config", &config][..], arguments].concat())
    }

    /// The file of a stream while the task runs.
    fn file(&self, stream: &str) -> PathBuf {
        self.node.path("state/scratch/tasks/job-1.only.0/logs").join(stream)
    }

    /// The log as its objects have it, without `batch-agent logs`.
    fn stored(&self, key: &str) -> Vec<u8> {
        let part = |number: usize| if number == 0 { key.to_owned() } else { format!("{key}.part-{number}") };
        (0..).map_while(|number| self.double.get(BUCKET, &part(number))).collect::<Vec<_>>().concat()
    }
}

/// What [`writer`] writes, line by line.
fn line(number: u64) -> String {
    format!("{number:012} the quick brown fox jumps over the lazy dog and comes back again to do it once more an\n")
}

const LINE: u64 = 100;

/// A shell line that writes lines `from..to` as quickly as it can.
fn writer(from: u64, to: u64) -> String {
    format!(
        "seq -f '%012.0f the quick brown fox jumps over the lazy dog and comes back again to do it once more an' {from} {}",
        to - 1
    )
}

/// That these bytes are the lines `0..lines`.
#[track_caller]
fn assert_lines(chunks: impl IntoIterator<Item = bytes::Bytes>, lines: u64) {
    let (mut at, mut rest) = (0, Vec::new());
    for chunk in chunks {
        rest.extend_from_slice(&chunk);
        let whole = rest.len() / 100 * 100;
        for found in rest[..whole].chunks(100) {
            assert!(found == line(at).as_bytes(), "line {at} is {:?}", String::from_utf8_lossy(found));
            at += 1;
        }
        rest.drain(..whole);
    }
    assert!(rest.is_empty() && at == lines, "{at} of {lines} lines, and {} bytes", rest.len());
}

#[test]
fn a_line_is_what_the_writer_writes() {
    assert_eq!(line(7).len() as u64, LINE);
    let written = std::process::Command::new("bash").arg("-c").arg(writer(3, 6)).output().expect("bash is there");
    assert_eq!(String::from_utf8_lossy(&written.stdout), [3, 4, 5].map(line).concat());
}

/// All chunks of a log's objects in order.
fn chunks(place: &Place, key: &str) -> Vec<bytes::Bytes> {
    let part = |number: usize| if number == 0 { key.to_owned() } else { format!("{key}.part-{number}") };
    let objects = (0..).map_while(|number| place.double.object(BUCKET, &part(number)));
    objects.flat_map(|object| object.content.chunks(0..object.content.len())).collect()
}

/// Every kind of request fails in its own way, one in `1 / chance` altogether.
fn trouble(double: &Double, chance: f64) -> Vec<FaultId> {
    let faults = [
        Fault::InternalError,
        Fault::SlowDown { retry_after: None },
        Fault::ResetEarly,
        Fault::ResetLate,
        Fault::LoseReply,
    ];
    let share = chance / 5.0;
    faults.into_iter().map(|fault| double.fault(fault, When::any(), Often::Chance(share))).collect()
}

/// A log of so many lines at full speed, through faults, an outage, and agents that are killed.
fn survive(scheme: &'static str, lines: u64, outage: Duration, kills: u32, append_limit: u64) {
    let config = DoubleConfig { append_limit, spill: Some("/var/tmp".into()), ..DoubleConfig::default() };
    let place = Place::new(scheme, config);
    let faults = trouble(&place.double, 0.1);
    place.settings(&writer(0, lines), &json!({}));
    let began = Instant::now();
    let mut agent = place.node.boot();
    let key = "logs/stdout.job-1.only.0";
    let arrived = |least: u64| {
        let bytes: u64 = place
            .double
            .objects(BUCKET)
            .iter()
            .filter(|(name, _)| name.starts_with(key))
            .map(|(_, o)| o.content.len())
            .sum();
        bytes >= least
    };
    let ended = |agent: &mut std::process::Child| agent.try_wait().expect("it is ours").is_some();
    for kill in 0..kills {
        // They are spread over the log.
        let least = (lines * LINE) * u64::from(kill) / u64::from(kills + 1);
        eventually("more of the log has arrived", LONG, || arrived(least) || ended(&mut agent));
        if kill == kills / 2 {
            place.double.outage(if scheme == "oss" { Outage::Refuse } else { Outage::Silent });
            std::thread::sleep(outage);
            place.double.restore();
        }
        std::thread::sleep(Duration::from_millis(u64::from(kill) * 37 % 300));
        agent.kill().expect("it is ours");
        agent.wait().expect("it is ours");
        agent = place.node.boot();
    }
    eventually("the task and its log are over", LONG + outage, || ended(&mut agent));
    let happened: u64 = faults.iter().map(|fault| place.double.happened(*fault)).sum();
    place.double.clear_faults();
    eprintln!(
        "{scheme}: {} MB in {:?}, {kills} kills, {happened} faults in {} requests, {} bytes sent",
        lines * LINE / 1_000_000,
        began.elapsed(),
        place.double.requests().len(),
        place.double.requests().iter().map(|request| request.received).sum::<u64>()
    );
    assert_eq!(place.node.status()["outcome"]["exit_code"], 0, "{}", place.node.log());
    assert_lines(chunks(&place, key), lines);
    if scheme == "oss" && lines * LINE > append_limit {
        assert!(place.double.object(BUCKET, &format!("{key}.part-1")).is_some(), "it goes on in another object");
    } else {
        assert!(place.double.object(BUCKET, &format!("{key}.part-1")).is_none(), "it is one object");
    }
    assert!(place.double.uploads(BUCKET).is_empty(), "a multipart upload is left open");
}

#[test]
fn a_long_log_arrives_on_oss_through_faults_an_outage_and_kills() {
    survive("oss", 1_500_000, Duration::from_secs(5), 6, 64 << 20);
}

#[test]
fn a_long_log_arrives_on_s3_through_faults_an_outage_and_kills() {
    survive("s3", 1_500_000, Duration::from_secs(5), 6, 5 << 30);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_ten_gigabytes_of_log_arrive_on_oss() {
    survive("oss", 100_000_000, Duration::from_secs(300), 20, 1 << 30);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_ten_gigabytes_of_log_arrive_on_s3() {
    survive("s3", 100_000_000, Duration::from_secs(300), 20, 5 << 30);
}

/// The scratch disk is small, storage is away, and the program writes more than fits: the program is not disturbed, the newest lines
/// arrive, and the log says how many bytes are missing.
#[test]
fn a_disk_that_fills_up_costs_the_oldest_lines_and_the_log_says_so() {
    let place = Place::new("oss", DoubleConfig::default());
    let disk = LoopDisk::ext4(400 << 20);
    let scratch = disk.mounted();
    // 600 MB in small steps, and then an end that can be waited for.
    let go = place.node.path("go");
    let command = format!(
        "for i in $(seq 0 99); do seq -f '%012.0f the quick brown fox jumps over the lazy dog and comes back again to do it once more an' \
         $((i*60000)) $((i*60000+59999)) || exit 9; sleep 0.1; done; while [ ! -e {} ]; do sleep 0.1; done",
        go.display()
    );
    place.settings(&command, &json!({}));
    let text = fs::read_to_string(place.node.path("node.yaml")).expect("they were written");
    let mut settings: Value = serde_json::from_str(&text).expect("JSON is YAML");
    settings["scratch"] = json!(scratch);
    place.node.settings(&settings);
    let stdout = "logs/stdout.job-1.only.0";
    let mut agent = place.node.boot();
    eventually("the log has begun to arrive", LIMIT, || place.double.object(BUCKET, stdout).is_some());
    place.double.outage(Outage::Refuse);
    let file = scratch.join("tasks/job-1.only.0/logs/stdout");
    eventually("everything is written", LONG, || fs::metadata(&file).is_ok_and(|file| file.len() == 600_000_000));
    place.double.restore();
    fs::write(&go, "").expect("it is written");
    eventually("the task and its log are over", LONG, || agent.try_wait().expect("it is ours").is_some());
    assert_eq!(place.node.status()["outcome"]["exit_code"], 0, "{}", place.node.log());
    let log = String::from_utf8(place.stored(stdout)).expect("it is text");
    let notes: Vec<&str> = log.lines().filter(|line| line.starts_with("[batch-agent: ")).collect();
    assert!(!notes.is_empty(), "nothing was dropped");
    let count = |note: &&str| note.split(' ').nth(1).and_then(|count| count.parse::<u64>().ok()).expect("a count");
    let missing: u64 = notes.iter().map(count).sum();
    // Each note is a line of its own, with a line break before it.
    let ours: usize = notes.iter().map(|note| note.len() + 2).sum();
    assert_eq!(log.len() as u64 - ours as u64 + missing, 600_000_000, "{notes:?}");
    assert!(log.ends_with(&line(5_999_999)), "the newest lines are there");
    assert!(place.logs(&["only"]).stdout == log, "the reader says what the objects say");
}

/// `batch-agent logs` on the node, from the first line to the last, while holes are punched and after the end; and from anywhere.
#[test]
fn logs_are_read_on_the_node_and_anywhere() {
    for scheme in ["oss", "s3"] {
        let place = Place::new(scheme, DoubleConfig { append_limit: 32 << 20, ..DoubleConfig::default() });
        let (go, lines) = (place.node.path("go"), 800_000);
        let command = format!(
            "echo oops >&2; {}; while [ ! -e {} ]; do sleep 0.1; done; {}",
            writer(0, lines - 10),
            go.display(),
            writer(lines - 10, lines)
        );
        assert_eq!(place.logs(&[]).code, Some(66));
        place.settings(&command, &json!({}));
        let mut agent = place.node.boot();
        let key = "logs/stdout.job-1.only.0";
        let location = place.location(key);
        std::thread::scope(|scope| {
            let followers = [vec!["-f"], vec!["-f", "only.0"], vec!["-f", &location]].map(|arguments| {
                let place = &place;
                scope.spawn(move || {
                    eventually("there is a log", LIMIT, || {
                        place.node.path("state/log-book/job-1.only.0.json").exists()
                    });
                    place.logs(&arguments)
                })
            });
            let blocks = || fs::metadata(place.file("stdout")).map_or(u64::MAX, |file| file.blocks() * 512);
            let size = || fs::metadata(place.file("stdout")).map_or(0, |file| file.len());
            eventually("most of it is written", LONG, || size() == (lines - 10) * LINE);
            eventually("its beginning is not on the disk any more", LONG, || blocks() < size() / 2);
            let now = place.logs(&["only"]);
            assert_eq!(now.code, Some(0), "{}", now.stderr);
            assert_lines([now.stdout.into()], lines - 10);
            assert_eq!(place.logs(&["--stderr"]).stdout, "oops\n");
            fs::write(&go, "").expect("it is written");
            eventually("the task is over", LONG, || agent.try_wait().expect("it is ours").is_some());
            for follower in followers {
                let followed = follower.join().expect("it ends");
                assert_eq!(followed.code, Some(0), "{}", followed.stderr);
                assert_lines([followed.stdout.into()], lines);
            }
        });
        assert!(!place.file("stdout").exists());
        for arguments in [vec!["job-1.only.0"], vec![location.as_str()]] {
            let after = place.logs(&arguments);
            assert_eq!(after.code, Some(0), "{}", after.stderr);
            assert_lines([after.stdout.into()], lines);
        }
        assert_eq!(place.logs(&["--stderr", &location]).stdout, "oops\n");
        assert_eq!(place.logs(&["nobody"]).code, Some(66));
        assert_eq!(place.logs(&[&place.location("logs/none")]).code, Some(66));
        assert_eq!(place.logs(&[&place.location("logs/")]).code, Some(64));
        assert_lines(chunks(&place, key), lines);
    }
}

/// A file that the program writes by itself arrives while it is written, rotated, and after an agent was killed.
#[test]
fn log_files_are_followed_while_they_are_written() {
    let place = Place::new("oss", DoubleConfig::default());
    let step = |name: &str| place.node.path(name);
    let wait = |name: &str| format!("while [ ! -e {} ]; do sleep 0.1; done", step(name).display());
    let command = format!(
        "cd /batchcompute/workdir; {}; mkdir var; echo one > var/app.log; {}; mv var/app.log var/app.log.1; echo three > var/app.log; \
         echo two >> var/app.log.1; {}; : > var/app.log; echo four >> var/app.log; {}",
        wait("begin"),
        wait("rotate"),
        wait("cut"),
        wait("end")
    );
    place.settings(
        &command,
        &json!({"logs": [
            {"source": "/batchcompute/workdir/var/app.log", "target": place.location("logs/")},
            {"source": "/batchcompute/workdir/never.log", "target": place.location("logs/never")},
        ]}),
    );
    let mut agent = place.node.boot();
    let key = "logs/app.log.job-1.only.0";
    let is = |text: &'static str| {
        eventually(text, LIMIT, || place.double.get(BUCKET, key).is_some_and(|log| log == text.as_bytes()));
    };
    let go = |name: &str| fs::write(step(name), "").expect("it is written");
    place.node.until("task", "running");
    go("begin");
    is("one\n");
    go("rotate");
    is("one\ntwo\nthree\n");
    // Whatever becomes of the file now, what has arrived of it is known.
    let progress = place.node.path("state/instances/job-1.only.0.logs/file-0");
    eventually("that is written down", LIMIT, || {
        let text = fs::read(&progress).unwrap_or_default();
        serde_json::from_slice::<Value>(&text).is_ok_and(|sent| sent["mark"]["present"]["size"] == 14)
    });
    agent.kill().expect("it is ours");
    agent.wait().expect("it is ours");
    go("cut");
    agent = place.node.boot();
    is("one\ntwo\nthree\nfour\n");
    go("end");
    eventually("the task is over", LIMIT, || agent.try_wait().expect("it is ours").is_some());
    assert_eq!(place.node.status()["outcome"]["exit_code"], 0, "{}", place.node.log());
    is("one\ntwo\nthree\nfour\n");
    assert!(place.double.object(BUCKET, "logs/never").is_none());
    assert!(place.node.log().contains("was never written"), "{}", place.node.log());
}

/// What a log costs: requests in proportion to the time, and bytes sent again within their bound.
#[test]
fn what_a_log_costs_is_bounded() {
    for (scheme, requests, again) in [("oss", 1.5, 0.0), ("s3", 1.5, 4.0 * 1_048_576.0)] {
        let place = Place::new(scheme, DoubleConfig::default());
        place.settings("for i in $(seq 100); do head -c 100 /dev/zero | tr '\\0' x; sleep 0.1; done", &json!({}));
        let began = Instant::now();
        assert_eq!(place.node.boot_to_end(), 0, "{}", place.node.log());
        let seconds = began.elapsed().as_secs_f64();
        let key = "logs/stdout.job-1.only.0";
        let writes = |request: &tests::double::Request| {
            request.key == key && matches!(request.operation, Operation::AppendObject | Operation::PutObject)
        };
        let count = place.double.count(writes);
        let sent: u64 =
            place.double.requests().iter().filter(|request| writes(request)).map(|request| request.received).sum();
        let count = f64::from(u32::try_from(count).expect("not many"));
        let sent = f64::from(u32::try_from(sent).expect("not much"));
        assert!(count <= requests * seconds + 3.0, "{count} requests in {seconds} s");
        assert!(sent - 10_000.0 <= again * seconds, "{sent} bytes for 10000 in {seconds} s");
        eprintln!("{scheme}: {count} requests and {sent} bytes for 10000 in {seconds:.1} s");
    }
}
