//! Logs through storage that fails, outages, and agents that are killed.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::agent::eventually;
use tests::double::{Double, DoubleConfig, Fault, FaultId, Often, Outage, When};

use crate::place::{BUCKET, LINE, LONG, Place, STDOUT, assert_lines, chunks, has_ended, writer};

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
    for kill in 0..kills {
        // They are spread over the log.
        let least = (lines * LINE) * u64::from(kill) / u64::from(kills + 1);
        eventually("more of the log has arrived", LONG, || place.arrived() >= least || has_ended(&mut agent));
        if kill == kills / 2 {
            place.double.outage(if scheme == "oss" { Outage::Refuse } else { Outage::Silent });
            std::thread::sleep(outage);
            place.double.restore();
        }
        std::thread::sleep(Duration::from_millis(u64::from(kill) * 37 % 300));
        assert!(!has_ended(&mut agent), "there is nothing left to kill after {kill} kills: {}", place.node.log());
        agent.kill().expect("it is ours");
        agent.wait().expect("it is ours");
        agent = place.node.boot();
    }
    eventually("the task and its log are over", LONG + outage, || has_ended(&mut agent));
    let happened: u64 = faults.iter().map(|fault| place.double.happened(*fault)).sum();
    place.double.clear_faults();
    eprintln!(
        "{scheme}: {} MB in {:?}, {kills} kills, an outage of {outage:?}, objects of at most {append_limit} bytes, {happened} faults in \
         {} requests, {} bytes sent",
        lines * LINE / 1_000_000,
        began.elapsed(),
        place.double.requests().len(),
        place.double.requests().iter().map(|request| request.received).sum::<u64>()
    );
    assert_eq!(place.node.status()["outcome"]["exit_code"], 0, "{}", place.node.log());
    assert_lines(chunks(&place, STDOUT), lines);
    if scheme == "oss" && lines * LINE > append_limit {
        assert!(place.double.object(BUCKET, &format!("{STDOUT}.part-1")).is_some(), "it goes on in another object");
    } else {
        assert!(place.double.object(BUCKET, &format!("{STDOUT}.part-1")).is_none(), "it is one object");
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
