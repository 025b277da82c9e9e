//! Jobs on a store that fails at random: not one byte may be lost or changed.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use serde_json::{Value, json};
use tests::agent::{Node, command, job_on, merge};
use tests::double::{Double, DoubleConfig};

const BUCKET: &str = "test-bucket";

/// Bytes that look random and are the same for one seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// A small job that uses everything: a package, a mounted directory with files of several sizes, a mounted object, both log
/// streams, an output directory and a single output.
fn small_job(node: &Node, store: &str) -> Value {
    let (input, output) = (node.mapped("in"), node.mapped("out"));
    let line = format!(
        "/bin/sh -c 'cp -r {input}/. {output}/ && cat {} > {} && cat {input}/middle && echo done >&2'",
        node.mapped("one"),
        node.mapped("single/copy")
    );
    let mut task = command(&line);
    merge(
        &mut task,
        &json!({
            "Parameters": {"Command": {"PackagePath": format!("{store}program")}},
            "InputMapping": {format!("{store}in/"): format!("{input}/"), format!("{store}one"): node.mapped("one")},
            "OutputMapping": {format!("{output}/"): format!("{store}out/"), node.mapped("single/copy"): format!("{store}copy")},
        }),
    );
    job_on(store, &task)
}

/// Runs the job `times` times on `store` with every kind of fault at 1 %.
fn survive(store: &str, times: u64) {
    for round in 0..times {
        let double = Double::start(DoubleConfig { seed: round, ..DoubleConfig::default() });
        // A stalled request is given up after this long; the store never takes so long by itself.
        let node = Node::with_double(&double.endpoint()).option("--read-timeout=2");
        let files = [
            ("in/empty", 0),
            ("in/small", 100),
            ("in/middle", 300_000),
            ("in/sub/large", 3 << 20),
            ("one", 1 << 20),
            ("program", 10),
        ];
        for (seed, (name, length)) in files.iter().enumerate() {
            double.put(BUCKET, name, noise(round * 100 + seed as u64, *length));
        }
        let faults = double.trouble(0.01);
        let run = node.run(&small_job(&node, store));
        double.clear_faults();
        let happened: u64 = faults.into_iter().map(|fault| double.happened(fault)).sum();
        assert_eq!(run.status, 0, "round {round}, {happened} faults: {run:#?}");

        let get = |key: &str| double.get(BUCKET, key).unwrap_or_else(|| panic!("round {round}: no {key}"));
        for name in ["empty", "small", "middle", "sub/large"] {
            assert!(get(&format!("out/{name}")) == get(&format!("in/{name}")), "round {round}: out/{name} differs");
        }
        assert!(get("copy") == get("one"), "round {round}: the single file differs");
        let id = run.outcome["job_id"].as_str().unwrap();
        assert!(get(&format!("logs/stdout.{id}.task.0")) == get("in/middle"), "round {round}: stdout differs");
        assert_eq!(get(&format!("logs/stderr.{id}.task.0")), b"done\n", "round {round}");
        assert!(double.uploads(BUCKET).is_empty(), "round {round}: a multipart upload is left open");
        eprintln!("round {round} on {store}: {happened} faults in {} requests", double.requests().len());
        node.assert_clean();
    }
}

#[test]
fn ten_runs_on_a_failing_oss_lose_nothing() {
    survive("oss://test-bucket/", 10);
}

#[test]
fn ten_runs_on_a_failing_s3_lose_nothing() {
    survive("s3://test-bucket/", 10);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_ninety_runs_on_a_failing_oss() {
    survive("oss://test-bucket/", 90);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_ninety_runs_on_a_failing_s3() {
    survive("s3://test-bucket/", 90);
}
