//! Logs of running tasks: through storage that fails, agents that are killed and disks that fill up; and `batch-agent logs`, which reads
//! them.

mod flood;
mod outage;
mod place;
mod survival;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use serde_json::{Value, json};
use tests::agent::eventually;
use tests::double::{DoubleConfig, Operation};
use tests::node::LIMIT;

use place::{BUCKET, LINE, LONG, Place, assert_lines, chunks, writer};

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
