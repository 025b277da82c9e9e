//! Faults, outages, connections and the log.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn every_fault_happens_and_says_so() {
    let double = Double::start(DoubleConfig::default());
    let text = "x".repeat(100_000);
    double.put("test-bucket", "k", text.as_str());
    let get = Draft::new("GET", "/test-bucket/k").oss(&Signer::default());
    let put = Draft::new("PUT", "/test-bucket/new").body("hello").oss(&Signer::default());
    let with = |fault: Fault, draft: &Draft| {
        double.delete("test-bucket", "new");
        double.clear_requests();
        let id = double.fault(fault.clone(), When::any(), Often::Next(1));
        // Only what never comes is waited for briefly: a busy machine may take long for everything else.
        let patience = match fault {
            Fault::Stall | Fault::StallUpload => Duration::from_millis(300),
            Fault::StallBody { .. } => Duration::from_secs(2),
            _ => Duration::from_secs(30),
        };
        let answer = send_patiently(&double, draft, patience);
        assert_eq!(double.happened(id), 1, "{fault:?}");
        assert_eq!(double.requests()[0].fault, Some(fault));
        // It was for one request only.
        let after = send(&double, &get);
        assert_eq!((after.status, after.body.len()), (200, text.len()));
        double.clear_faults();
        answer
    };
    let effect = || double.get("test-bucket", "new");

    let answer = with(Fault::InternalError, &put);
    assert_eq!((answer.status, answer.code().as_str(), effect()), (500, "InternalError", None));
    let answer = with(Fault::SlowDown { retry_after: Some(Duration::from_secs(7)) }, &put);
    assert_eq!((answer.status, answer.headers["retry-after"].as_str(), effect()), (503, "7", None));
    let answer = with(Fault::SlowDown { retry_after: None }, &put);
    assert_eq!((answer.code().as_str(), answer.headers.get("retry-after")), ("SlowDown", None));
    for fault in [Fault::ResetEarly, Fault::ResetLate] {
        let answer = with(fault.clone(), &put);
        assert_eq!((answer.status, answer.end, effect()), (0, Some(ErrorKind::ConnectionReset), None), "{fault:?}");
    }
    let answer = with(Fault::LoseReply, &put);
    assert_eq!((answer.status, answer.end, effect()), (0, Some(ErrorKind::ConnectionReset), Some(b"hello".to_vec())));
    let answer = with(Fault::Stall, &put);
    assert_eq!((answer.status, answer.end, effect()), (0, Some(ErrorKind::WouldBlock), None));
    let big = Draft::new("PUT", "/test-bucket/new").body(vec![0; 20 << 20]).oss(&Signer::default());
    let answer = with(Fault::StallUpload, &big);
    assert_eq!((answer.status, effect()), (0, None));
    assert_eq!(double.count(|request| request.received > 0), 0);
    let answer = with(Fault::StallBody { after: 1234 }, &get);
    assert_eq!((answer.status, answer.body.len(), answer.end), (200, 1234, Some(ErrorKind::WouldBlock)));
    let answer = with(Fault::Truncate, &get);
    assert_eq!((answer.status, answer.body.len(), answer.whole), (200, 50_000, false));
    let answer = with(Fault::WrongByte, &get);
    let wrong = answer.body.iter().filter(|byte| **byte != b'x').count();
    assert_eq!((answer.body.len(), wrong, answer.whole), (100_000, 1, true));
    let answer = with(Fault::WrongUpload, &put);
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, b"hello").to_string();
    assert_ne!(answer.headers["x-oss-hash-crc64ecma"], crc);
    assert_eq!(effect(), Some(b"hemlo".to_vec()));

    let began = Instant::now();
    let answer = with(Fault::Slow { bytes_per_second: 200_000 }, &get);
    assert_eq!(answer.body, text.as_bytes());
    // 100 kB at 200 kB/s; only the lower bound can be relied on.
    assert!(began.elapsed() >= Duration::from_millis(300));
    let began = Instant::now();
    with(Fault::Latency(Duration::from_millis(50)), &get);
    assert!(began.elapsed() >= Duration::from_millis(50));

    let copy =
        Draft::new("PUT", "/test-bucket/new").header("x-amz-copy-source", "test-bucket/k").s3(&Signer::default());
    let answer = with(Fault::ErrorInside200, &copy);
    assert_eq!((answer.status, answer.code().as_str(), effect()), (200, "InternalError", None));
}

#[test]
fn faults_meet_what_they_are_for() {
    let double = started();
    let ranged = Draft::new("GET", TARGET).header("range", "bytes=0-3").oss(&Signer::default());
    let id = double.fault(Fault::WrongByte, When::any().ranged(true), Often::Always);
    assert_eq!(oss(&double, "GET", TARGET).body, b"hello");
    assert_ne!(send(&double, &ranged).body, b"hell");
    double.remove_fault(id);
    assert_eq!(double.happened(id), 1);
    assert_eq!(send(&double, &ranged).body, b"hell");
    // A listing has no checksum, so a wrong byte in it would prove nothing.
    double.fault(Fault::WrongByte, When::any(), Often::Always);
    assert!(oss(&double, "GET", "/test-bucket/").text().contains("<Key>a b</Key>"));
    double.clear_faults();

    let when = When::any()
        .method("GET")
        .prefix("a")
        .query("x")
        .operation(Operation::GetObject)
        .key("a b")
        .that(|request| request.number < 1000);
    double.fault(Fault::InternalError, when, Often::Always);
    assert_eq!(oss(&double, "GET", "/test-bucket/a%20b?x=1").status, 500);
    assert_eq!(oss(&double, "GET", TARGET).status, 200);
    assert_eq!(oss(&double, "HEAD", "/test-bucket/a%20b?x=1").status, 200);
    double.clear_faults();

    let id = double.fault(Fault::InternalError, When::any(), Often::Chance(0.5));
    let failed = (0..100).filter(|_| oss(&double, "GET", TARGET).status == 500).count();
    assert_eq!(double.happened(id), failed as u64);
    assert!((20..80).contains(&failed), "{failed} of 100 at a chance of one half");
    assert_eq!(double.trouble(0.0).len(), 13);
}

#[test]
fn an_outage_begins_and_ends_at_once() {
    let double = started();
    let get = Draft::new("GET", TARGET).oss(&Signer::default());
    let connect = || TcpStream::connect(("127.0.0.1", double.port()));
    for _ in 0..3 {
        let mut open = connect().unwrap();
        double.outage(Outage::Refuse);
        assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
        open.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(open.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        double.restore();
        assert_eq!(send(&double, &get).body, b"hello");
    }
    double.outage(Outage::Silent);
    let silent = send_patiently(&double, &get, Duration::from_millis(200));
    assert_eq!((silent.status, silent.end), (0, Some(ErrorKind::WouldBlock)));
    double.restore();
    assert_eq!(send(&double, &get).body, b"hello");
}

#[test]
fn the_log_tells_what_was_asked_and_answered() {
    let double = started();
    let range = Draft::new("GET", "/test-bucket/a%20b?x=%2B").header("range", "bytes=0-1").oss(&Signer::default());
    send(&double, &range);
    send(&double, &Draft::new("PUT", "/test-bucket/p").body("12345").s3(&Signer::default()));
    oss(&double, "GET", "/test-bucket/none");
    let log = double.requests();
    let told: Vec<_> =
        log.iter().map(|r| (r.number, r.dialect, r.operation, r.key.as_str(), r.status, r.received, r.sent)).collect();
    assert_eq!(
        told[..2],
        [
            (0, Dialect::Oss, Operation::GetObject, "a b", Some(206), 0, 2),
            (1, Dialect::S3, Operation::PutObject, "p", Some(200), 5, 0),
        ]
    );
    assert_eq!(
        (log[0].query("x"), log[0].range.as_deref(), log[0].bucket.as_str()),
        (Some("+"), Some("bytes=0-1"), "test-bucket")
    );
    assert_eq!(log[2].code.as_deref(), Some("NoSuchKey"));
    assert_eq!(double.count(|request| request.method == "GET"), 2);
    assert_eq!(double.connections(), 3);
    double.clear_requests();
    assert!(double.requests().is_empty());
}

#[test]
fn one_connection_serves_many_requests() {
    let double = started();
    let get = Draft::new("GET", TARGET).oss(&Signer::default());
    let mut stream = TcpStream::connect(("127.0.0.1", double.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for _ in 0..3 {
        let headers: String = get.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        write!(stream, "GET {TARGET} HTTP/1.1\r\n{headers}\r\n").unwrap();
        assert_eq!(read_answer(&mut stream, false).body, b"hello");
    }
    assert_eq!(double.connections(), 1);
}

#[test]
fn nothing_is_left_when_it_is_dropped() {
    let double = started();
    let port = double.port();
    double.fault(Fault::Stall, When::any(), Often::Always);
    let hanging = std::thread::scope(|scope| {
        let get = Draft::new("GET", TARGET).oss(&Signer::default());
        let double = &double;
        let waiting = scope.spawn(move || send_patiently(double, &get, Duration::from_millis(100)));
        waiting.join().unwrap()
    });
    assert_eq!(hanging.status, 0);
    drop(double);
    assert_eq!(TcpStream::connect(("127.0.0.1", port)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
