//! What a mount says about itself: metrics over their socket, `status`, and log lines that name the store's request.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::Signal;
use tests::double::{AccessKey, Action, Double, DoubleConfig, Fault, Often, Operation, When};
use tests::mounts::{Ran, Sandbox, alive, wait_until};

const BUCKET: &str = "test-bucket";

fn try_mount(sandbox: &Sandbox, double: &Double, location: &str, more: &[&str]) -> Ran {
    Ran::from(sandbox.mounting(double, location, &sandbox.mnt()).args(more).output().unwrap())
}

fn mount(sandbox: &Sandbox, double: &Double, location: &str, more: &[&str]) {
    try_mount(sandbox, double, location, more).succeeded();
}

/// Where `status` says that metrics are.
fn socket(sandbox: &Sandbox) -> PathBuf {
    PathBuf::from(sandbox.status()["metrics_socket"].as_str().expect("a socket for metrics"))
}

/// Status line with headers, and body.
fn http(socket: &Path, request: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Every sample by its name with labels. Names and types are checked on the way.
fn scrape(socket: &Path) -> BTreeMap<String, f64> {
    let (head, body) = http(socket, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.ends_with('\n'), "{body}");
    let (mut samples, mut types, mut helps) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "two types: {line}");
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(helps.insert(rest.split(' ').next().unwrap().to_owned()), "two helps: {line}");
        } else {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = key.split('{').next().unwrap();
            let histogram = ["_bucket", "_sum", "_count"].iter().filter_map(|suffix| name.strip_suffix(suffix));
            let known = types.contains_key(name)
                || histogram.into_iter().any(|name| types.get(name).is_some_and(|kind| kind == "histogram"));
            assert!(known, "no type was given before {line}");
            assert!(samples.insert(key.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
        }
    }
    assert_eq!(helps, types.into_keys().collect());
    samples
}

fn sum(samples: &BTreeMap<String, f64>, names: &[&str]) -> f64 {
    names.iter().map(|name| *samples.get(*name).unwrap_or_else(|| panic!("{name} is missing in {samples:?}"))).sum()
}

const HITS: [&str; 2] = ["fuse_oss_reads_total{tier=\"memory\"}", "fuse_oss_reads_total{tier=\"disk\"}"];
const FETCHED: &[&str] = &["fuse_oss_fetched_bytes_total"];

#[test]
fn the_numbers_move_with_what_is_done() {
    let double = Double::start(DoubleConfig::default());
    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    double.put(BUCKET, "dir/file", bytes.clone());
    double.put(BUCKET, "/lead", "cannot be shown");
    let sandbox = Sandbox::new();
    mount(&sandbox, &double, &format!("oss://{BUCKET}/"), &[]);
    let socket = socket(&sandbox);
    let target = sandbox.mnt().canonicalize().unwrap();
    let of_mount = |name: &str| format!("fuse_oss_{name}{{target=\"{}\",detached=\"false\"}}", target.display());

    let before = scrape(&socket);
    assert_eq!(sum(&before, FETCHED), 0.0);
    assert_eq!(sum(&before, &["fuse_oss_mounts{detached=\"false\"}", &of_mount("mount_open_files")]), 1.0);
    // Finding out that the bucket is there takes a listing.
    assert!(sum(&before, &["fuse_oss_lookups_total"]) >= 1.0);

    let file = File::open(sandbox.mnt().join("dir/file")).unwrap();
    let mut buffer = vec![0; bytes.len()];
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert!(buffer == bytes);
    let once = scrape(&socket);
    let size = f64::from(u32::try_from(bytes.len()).unwrap());
    assert!(sum(&once, FETCHED) >= size, "{once:?}");
    assert!(sum(&once, &["fuse_oss_gets_total"]) >= 1.0);
    assert!(sum(&once, &["fuse_oss_get_first_byte_seconds_count"]) >= 1.0);
    assert!(sum(&once, &["fuse_oss_get_first_byte_seconds_sum"]) > 0.0);
    assert!(sum(&once, &["fuse_oss_reads_total{tier=\"store\"}"]) >= 1.0);
    assert_eq!(sum(&once, &["fuse_oss_opens_total{mode=\"cached\"}"]), 1.0);
    assert_eq!(sum(&once, &[&of_mount("mount_open_files")]), 1.0);
    assert_eq!(sum(&once, &[&of_mount("mount_hidden_keys")]), 1.0);
    assert!(sum(&once, &["fuse_oss_lookups_total"]) > sum(&before, &["fuse_oss_lookups_total"]));
    assert!(sum(&once, &[&of_mount("mount_nodes")]) > sum(&before, &[&of_mount("mount_nodes")]));

    // The second time it is here, once the kernel has been made to forget it.
    let requests = double.count(|request| request.operation == Operation::GetObject);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert!(buffer == bytes);
    let twice = scrape(&socket);
    assert!(sum(&twice, &HITS) > sum(&once, &HITS), "{twice:?}");
    assert_eq!(double.count(|request| request.operation == Operation::GetObject), requests);
    assert_eq!(sum(&twice, FETCHED), sum(&once, FETCHED));

    // The same in JSON, and for people.
    let metrics = sandbox.status()["metrics"].clone();
    assert_eq!(metrics["fetched"].as_f64().unwrap(), sum(&twice, FETCHED), "{metrics}");
    assert_eq!(metrics["get_latency"]["count"].as_f64(), twice.get("fuse_oss_get_first_byte_seconds_count").copied());
    let ratio = metrics["hit_ratio"].as_f64().unwrap();
    assert!(ratio > 0.0 && ratio < 1.0, "{metrics}");
    let shown = sandbox.run(["status"]);
    shown.succeeded();
    for part in ["% without waiting", "from the store", "first byte within p50"] {
        assert!(shown.stdout.contains(part), "{part:?} is missing in {}", shown.stdout);
    }
    // Nothing went wrong, so nothing is said of it.
    assert!(!shown.stdout.contains("failed"), "{}", shown.stdout);
    let failed = twice.iter().filter(|(name, _)| name.starts_with("fuse_oss_failures_total"));
    assert_eq!(failed.map(|(_, value)| value).sum::<f64>(), 0.0);
}

#[test]
fn the_socket_is_private_and_the_command_that_status_shows_works() {
    let sandbox = Sandbox::new();
    sandbox.mount();
    let socket = socket(&sandbox);
    let meta = fs::symlink_metadata(&socket).unwrap();
    assert!(meta.file_type().is_socket() && meta.mode() & 0o777 == 0o600, "{meta:?}");
    let shown = sandbox.run(["status"]);
    let curl = shown.stdout.lines().find_map(|line| line.trim_start().strip_prefix("metrics ")).unwrap();
    let said =
        Command::new("sh").args(["-c", &format!("{} --fail --silent --show-error", curl.trim())]).output().unwrap();
    assert!(said.status.success(), "{curl}: {said:?}");
    assert!(String::from_utf8_lossy(&said.stdout).contains("\nfuse_oss_mounts{detached=\"false\"} 1\n"), "{said:?}");

    assert!(http(&socket, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").1.contains("/metrics"));
    assert!(http(&socket, "GET /mounts HTTP/1.1\r\nHost: x\r\n\r\n").0.starts_with("HTTP/1.1 404 "));
    assert!(http(&socket, "DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n").0.starts_with("HTTP/1.1 405 "));

    // A server that was killed leaves its socket, and the next one takes its place.
    sandbox.end_server(Signal::SIGKILL);
    assert!(socket.exists());
    sandbox.mount();
    assert_eq!(sum(&scrape(&socket), &["fuse_oss_mounts{detached=\"false\"}"]), 1.0);
    sandbox.end_server(Signal::SIGTERM);
    assert!(!socket.exists());
}

#[test]
fn who_asks_for_metrics_does_not_keep_a_server_alive_nor_its_clients_waiting() {
    let sandbox = Sandbox::new();
    sandbox.mount();
    let (socket, server) = (socket(&sandbox), sandbox.server().unwrap());
    let mut idlers: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    // All places are taken by clients that say nothing, and mounts do not notice.
    assert!(fs::read_dir(sandbox.mnt()).is_ok());
    sandbox.run(["status"]).succeeded();
    sandbox.umount();
    wait_until("the idle server has ended", || {
        idlers.extend(UnixStream::connect(&socket));
        !alive(server)
    });
    assert!(!socket.exists());
}

#[test]
fn a_server_that_cannot_have_a_socket_for_metrics_serves_all_the_same() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.source().join("file"), "hello").unwrap();
    // A socket's path has at most 107 bytes. HASH.sock still fits in this directory, HASH.metrics does not.
    let room = 107 - "/0123456789abcdef.sock".len() - sandbox.path("").as_os_str().len();
    let run = sandbox.path(&"r".repeat(room));
    let ran = |arguments: &[&str]| {
        let mut command = sandbox.command();
        let output = command.env("FUSE_OSS_RUNTIME_DIR", &run).args(arguments).output();
        Ran::from(output.unwrap())
    };
    let mnt = sandbox.mnt();
    ran(&["mount", &sandbox.location(), mnt.to_str().unwrap()]).succeeded();
    assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "hello");
    let status: serde_json::Value = serde_json::from_str(&ran(&["status", "--json"]).stdout).unwrap();
    assert!(status[0]["metrics_socket"].is_null(), "{status}");
    assert!(status[0]["metrics"]["lookups"].as_u64().unwrap() >= 1, "{status}");
    let log =
        fs::read_dir(&run).unwrap().map(|file| file.unwrap().path()).find(|path| path.extension().unwrap() == "log");
    let log = fs::read_to_string(log.unwrap()).unwrap();
    assert!(log.contains("cannot make the socket for metrics"), "{log}");
    ran(&["umount", mnt.to_str().unwrap()]).succeeded();
}

/// The log's only line that names one of the requests which the store answered so.
fn line_about(log: &str, double: &Double, which: impl Fn(&tests::double::Request) -> bool) -> String {
    let ids: Vec<String> =
        double.requests().iter().filter(|request| which(request)).map(|request| request.id()).collect();
    assert!(!ids.is_empty(), "the store never answered so");
    let mut lines = log.lines().filter(|line| ids.iter().any(|id| line.contains(&format!("[request id {id}]"))));
    let line = lines.next().unwrap_or_else(|| panic!("none of {ids:?} is named in the log:\n{log}"));
    assert_eq!(lines.next(), None, "one line per failure");
    line.to_owned()
}

#[test]
fn a_line_about_a_failure_names_the_stores_request_the_object_and_the_cause() {
    for scheme in ["oss", "s3"] {
        let double = Double::start(DoubleConfig::default());
        for key in ["dir/denied", "dir/busy", "secret/file"] {
            double.put(BUCKET, key, vec![1; 2 << 20]);
        }
        let key = AccessKey::new("test-key", "test-secret").deny(Action::Read, "dir/denied").deny_all("secret/");
        double.set_keys(vec![key]);
        let sandbox = Sandbox::new();
        // Who is refused a mount reads it at once.
        let refusal = try_mount(&sandbox, &double, &format!("{scheme}://{BUCKET}/secret/"), &[]);
        refusal.failed(77, &["secret/", "AccessDenied (403)"]);
        line_about(&refusal.stderr, &double, |request| request.status == Some(403));

        double.clear_requests();
        mount(&sandbox, &double, &format!("{scheme}://{BUCKET}/"), &["--total-timeout=2"]);
        let open = |name: &str| {
            let file = File::open(sandbox.mnt().join(name))?;
            let mut buffer = [0; 4096];
            file.read_at(&mut buffer, 0)
        };
        let refused = |status: u16, key: &'static str| {
            move |request: &tests::double::Request| request.status == Some(status) && request.key == key
        };

        assert_eq!(open("dir/denied").unwrap_err().raw_os_error(), Some(libc::EACCES));
        let line = line_about(&sandbox.log(), &double, refused(403, "dir/denied"));
        for part in ["dir/denied", "AccessDenied (403)", "allow this action"] {
            assert!(line.contains(part), "{part:?} is missing in {line:?}");
        }

        double.fault(Fault::SlowDown { retry_after: None }, When::any().key("dir/busy"), Often::Always);
        assert_eq!(open("dir/busy").unwrap_err().raw_os_error(), Some(libc::EIO));
        let line = line_about(&sandbox.log(), &double, refused(503, "dir/busy"));
        for part in ["dir/busy", "SlowDown", "503", "attempts", "fewer requests"] {
            assert!(line.contains(part), "{part:?} is missing in {line:?}");
        }

        // A listing has no key: it is known by its prefix. In a mount where nothing else was asked: who goes from directory to
        // directory may be answered by a listing of what is above them, which these rules allow.
        sandbox.umount();
        mount(&sandbox, &double, &format!("{scheme}://{BUCKET}/"), &["--total-timeout=2"]);
        let listed = fs::read_dir(sandbox.mnt().join("secret")).and_then(|mut names| names.next().transpose());
        assert_eq!(listed.unwrap_err().raw_os_error(), Some(libc::EACCES));
        let line = line_about(&sandbox.log(), &double, |request| {
            request.status == Some(403) && request.operation == Operation::ListObjects
        });
        assert!(line.contains("secret") && line.contains("AccessDenied (403)"), "{line}");

        let samples = scrape(&socket(&sandbox));
        assert!(sum(&samples, &["fuse_oss_failures_total{kind=\"denied\"}"]) >= 2.0, "{samples:?}");
        assert!(sum(&samples, &["fuse_oss_failures_total{kind=\"unavailable\"}"]) >= 1.0, "{samples:?}");
        let shown = sandbox.run(["status"]);
        assert!(shown.stdout.contains("failed") && shown.stdout.contains(" denied"), "{}", shown.stdout);
    }
}
