//! Storage that is away for an hour: longer than credentials last, longer than the agent that began the log, and perhaps longer than the
//! task.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::agent::eventually;
use tests::double::{AccessKey, DoubleConfig, Outage};
use tests::imds::Imds;
use tests::node::LIMIT;

use crate::place::{LINE, LONG, Place, STDOUT, assert_lines, chunks, has_ended, steady_writer};

/// So much is written before storage goes away: more than what S3 keeps in one object.
const BEFORE: u64 = 200_000;

/// When the task ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ends {
    /// While storage is away, near the beginning.
    Early,
    /// After storage has come back.
    Late,
}

/// Storage is away for so long. Meanwhile the credentials expire, for a quarter of the time there are no others either, and the agent
/// is killed so often. Afterwards every line is there once.
fn without_storage(scheme: &'static str, outage: Duration, ends: Ends, kills: u32) {
    let (imds, cloud) = if scheme == "oss" { (Imds::aliyun(), "alibaba") } else { (Imds::aws(), "aws") };
    // Short ones would expire before the task has begun.
    let first = AccessKey::new("first", "secret-1").with_token("token-1", (outage / 2).max(LIMIT));
    let place = Place::new(
        scheme,
        DoubleConfig { keys: vec![first.clone()], spill: Some("/var/tmp".into()), ..DoubleConfig::default() },
    );
    imds.set_role("worker", &first);
    let (end, count) = (place.node.path("end"), place.node.path("count"));
    place.settings_of_node(
        &steady_writer(BEFORE, 300, &end, &count),
        &json!({}),
        &json!({
            "identity": {"cloud": cloud, "metadata_endpoint": imds.endpoint(), "region": "cn-test", "spot": false},
            "storage": {scheme: {"endpoint": place.double.endpoint(), "region": "cn-test"}},
        }),
    );
    let mut agent = place.node.boot();
    eventually("the log has begun to arrive", LIMIT, || place.arrived() >= BEFORE * LINE);
    place.double.outage(if scheme == "oss" { Outage::Refuse } else { Outage::Silent });
    let began = Instant::now();
    let until = |share: f64| std::thread::sleep(outage.mul_f64(share).saturating_sub(began.elapsed()));
    until(0.05);
    if ends == Ends::Early {
        fs::write(&end, "").expect("it is written");
    }
    for kill in 1..=kills {
        until(0.05 + 0.4 * f64::from(kill) / f64::from(kills));
        assert!(!has_ended(&mut agent), "it has given up: {}", place.node.log());
        agent.kill().expect("it is ours");
        agent.wait().expect("it is ours");
        agent = place.node.boot();
    }
    until(0.5);
    imds.fail_with(Some(503));
    until(0.75);
    let second = AccessKey::new("second", "secret-2").with_token("token-2", outage * 10 + LONG);
    imds.set_role("worker", &second);
    imds.fail_with(None);
    place.double.set_keys(vec![second]);
    until(1.0);
    assert!(!has_ended(&mut agent), "it has given up: {}", place.node.log());
    let before = place.arrived();
    place.double.restore();
    let back = Instant::now();
    eventually("the log goes on", LONG, || place.arrived() > before);
    let again = back.elapsed();
    fs::write(&end, "").expect("it is written");
    eventually("the task and its log are over", LONG + outage, || has_ended(&mut agent));
    let log = place.node.log();
    assert_eq!(place.node.status()["outcome"]["exit_code"], 0, "{log}");
    let lines: u64 = fs::read_to_string(&count).expect("the task has ended").trim().parse().expect("a number");
    assert_lines(chunks(&place, STDOUT), lines);
    eprintln!(
        "{scheme}: {outage:?} without storage, {kills} kills: {lines} lines, the first {again:?} and the last {:?} after it was back; the \
         agents have said {} lines",
        back.elapsed(),
        log.lines().count()
    );
}

#[test]
fn a_log_waits_for_storage_with_the_task_on_oss() {
    without_storage("oss", Duration::from_secs(6), Ends::Late, 1);
}

#[test]
fn a_log_waits_for_storage_after_the_task_on_s3() {
    without_storage("s3", Duration::from_secs(6), Ends::Early, 1);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_an_hour_without_storage_on_oss_costs_no_log() {
    without_storage("oss", Duration::from_secs(3600), Ends::Early, 3);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_an_hour_without_storage_on_s3_costs_no_log() {
    without_storage("s3", Duration::from_secs(3600), Ends::Late, 3);
}
