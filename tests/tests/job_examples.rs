//! Whole jobs: the example on every kind of store, and the job descriptions of real clients.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use oss::{Key, Location, PutMode, Settings, Store, Stores};
use serde_json::{Value, json};
use tests::agent::{Finished, Node, package, script};
use tests::double::{Double, DoubleConfig};
use tests::moto::Moto;

const RESULT: &str = r#"{"INFO": 2460, "WARN": 2448, "DEBUG": 2509, "ERROR": 2583}"#;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A client of the store that a node uses, for the test's own look at it.
struct Bucket {
    runtime: tokio::runtime::Runtime,
    store: Arc<dyn Store>,
}

impl Bucket {
    fn open(location: &Location, endpoint: &str, region: &str) -> Self {
        let mut settings = Settings::default();
        for store in [&mut settings.oss, &mut settings.s3] {
            store.endpoint = Some(endpoint.to_owned());
            store.region = Some(region.to_owned());
            store.credentials = oss::CredentialSource::Static {
                access_key_id: "test-key".to_owned(),
                access_key_secret: oss::Secret::new("test-secret"),
                security_token: None,
            };
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { store: Stores::new(settings).open(location).unwrap(), runtime }
    }

    fn put(&self, key: &str, content: Vec<u8>) {
        self.runtime.block_on(self.store.put(&Key::from(key), content.into(), PutMode::Overwrite)).unwrap();
    }

    fn get(&self, key: &str) -> Vec<u8> {
        self.runtime.block_on(oss::transfer::download_bytes(&self.store, &Key::from(key), 1 << 20)).unwrap().to_vec()
    }
}

/// Lays the example out for `store` and answers with its files, by their path below the store.
fn prepared(store: &str) -> Vec<(String, Vec<u8>)> {
    let directory = tempfile::tempdir().unwrap();
    let status = Command::new("python3")
        .arg(repository().join("examples/log-count/prepare.py"))
        .args(["--store", store, "--into"])
        .arg(directory.path())
        .status()
        .unwrap();
    assert!(status.success());
    let files = ["data/log-count-data.txt", "worker.tar.gz", "job.json"];
    files.iter().map(|name| ((*name).to_owned(), std::fs::read(directory.path().join(name)).unwrap())).collect()
}

fn log_count(node: &Node, store: &str, bucket: &Bucket) {
    let location: Location = store.parse().unwrap();
    let prefix = location.key().as_str();
    let mut job = Value::Null;
    for (name, content) in prepared(store) {
        if name == "job.json" {
            job = serde_json::from_slice(&content).unwrap();
        } else {
            bucket.put(&format!("{prefix}{name}"), content);
        }
    }
    let run = node.run(&job);
    assert_eq!(run.status, 0, "{run:#?}");
    let result = bucket.get(&format!("{prefix}merge_result.json"));
    assert_eq!(String::from_utf8(result).unwrap().trim(), RESULT);
    let id = run.outcome["job_id"].as_str().unwrap();
    let merged = bucket.get(&format!("{prefix}logs/stdout.{id}.merge.0"));
    assert_eq!(String::from_utf8(merged).unwrap().trim(), RESULT, "the program's own output is in storage, too");
    node.assert_clean();
}

#[test]
fn log_count_on_oss() {
    let double = Double::start(DoubleConfig::default());
    let store = "oss://test-bucket/examples/log-count/";
    let bucket = Bucket::open(&store.parse().unwrap(), &double.endpoint(), "cn-test");
    log_count(&Node::with_double(&double.endpoint()), store, &bucket);
    assert!(double.uploads("test-bucket").is_empty(), "no multipart upload is left open");
}

#[test]
fn log_count_on_s3() {
    let double = Double::start(DoubleConfig::default());
    let store = "s3://test-bucket/log-count/";
    let bucket = Bucket::open(&store.parse().unwrap(), &double.endpoint(), "cn-test");
    log_count(&Node::with_double(&double.endpoint()), store, &bucket);
    assert!(double.uploads("test-bucket").is_empty(), "no multipart upload is left open");
}

#[test]
fn log_count_on_somebody_elses_s3() {
    let moto = Moto::start();
    let made = Command::new("curl")
        .args(["-sSf", "-X", "PUT"])
        .arg(format!("{}/moto-bucket", moto.endpoint()))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let store = "s3://moto-bucket/log-count/";
    let bucket = Bucket::open(&store.parse().unwrap(), moto.endpoint(), "us-east-1");
    let node = Node::with_double(moto.endpoint()).environment("AWS_REGION", "us-east-1");
    log_count(&node, store, &bucket);
}

/// A description as a client has written it, from `agent/tests/fixtures/jobs`.
fn fixture(name: &str) -> Value {
    let path = repository().join("agent/tests/fixtures/jobs").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

fn location_of(job: &Value, task: &str, stream: &str) -> Location {
    let directory = job["DAG"]["Tasks"][task]["Parameters"][stream].as_str().unwrap();
    directory.parse().unwrap()
}

/// What a task's instance has printed.
fn stdout(double: &Double, job: &Value, run: &Finished, task: &str, instance: u32) -> String {
    let directory = location_of(job, task, "StdoutRedirectPath");
    let id = run.outcome["job_id"].as_str().unwrap_or_else(|| panic!("{run:#?}"));
    let key = directory.join(&format!("stdout.{id}.{task}.{instance}"));
    let content = double.get(key.bucket(), key.key().as_str()).unwrap_or_else(|| panic!("no {key}: {run:#?}"));
    String::from_utf8(content).unwrap()
}

/// The descriptions that need neither NAS nor Docker, unchanged, one after the other: they name real paths such as
/// `/home/input`. The programs are `python ...`, which Debian does not have by that name: the node's PATH brings one.
#[test]
fn descriptions_of_real_clients_run() {
    let double = Double::start(
        DoubleConfig::empty()
            .bucket("my-bucket", "cn-test")
            .bucket("mybucket", "cn-test")
            .key(tests::double::AccessKey::new("test-key", "test-secret")),
    );
    let node = Node::with_double(&double.endpoint());
    let bin = node.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    script(&bin.join("python"), "#!/bin/sh\nexec python3 \"$@\"\n");
    let run = |job: &Value| {
        let output = node
            .run_command(job, &[])
            .env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{}", bin.display()))
            .output()
            .unwrap();
        let outcome = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Finished {
            status: output.status.code().unwrap_or(-1),
            outcome,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    };

    let single = fixture("single-command.json");
    let ran = run(&single);
    assert_eq!((ran.status, stdout(&double, &single, &ran, "task", 0).as_str()), (0, "hello\n"), "{ran:#?}");

    let tarball = fixture("package-tarball.json");
    let main = "import sys; print(sys.argv[1:])";
    let location: Location =
        tarball["DAG"]["Tasks"]["task"]["Parameters"]["Command"]["PackagePath"].as_str().unwrap().parse().unwrap();
    double.put(location.bucket(), location.key().as_str(), package(&[("main.py", main)]));
    let ran = run(&tarball);
    assert_eq!(
        (ran.status, stdout(&double, &tarball, &ran, "task", 0).as_str()),
        (0, "['arg1', 'arg 2']\n"),
        "{ran:#?}"
    );

    // It runs `python main.py` and names no package: the description is kept, and only the program is brought along.
    let mut mapped = fixture("bcs-directory-mappings.json");
    let main =
        "print(open('/home/input/a').read(), open('/home/ref/b').read()); open('/home/output/sum', 'w').write('AB')";
    double.put("my-bucket", "main/main.py", main);
    double.put("my-bucket", "in/a", "A");
    double.put("my-bucket", "ref/b", "B");
    mapped["DAG"]["Tasks"]["task"]["Parameters"]["Command"]["PackagePath"] = json!("oss://my-bucket/main/main.py");
    let ran = run(&mapped);
    assert_eq!((ran.status, stdout(&double, &mapped, &ran, "task", 0).as_str()), (0, "A B\n"), "{ran:#?}");
    assert_eq!(double.get("my-bucket", "out/sum").unwrap(), b"AB");

    let sdk = fixture("sdk-directory-mappings.json");
    let main =
        "import os; print(sorted(os.listdir('/home/admin/mydir'))); open('/home/admin/result/r', 'w').write('done')";
    double.put("mybucket", "myprograms/main.py", main);
    double.put("mybucket", "mydir/x", "x");
    double.put("mybucket", "mydir/y/z", "z");
    let ran = run(&sdk);
    assert_eq!((ran.status, stdout(&double, &sdk, &ran, "my-task", 0).as_str()), (0, "['x', 'y']\n"), "{ran:#?}");
    assert_eq!(double.get("mybucket", "result/r").unwrap(), b"done");

    let several = fixture("multi-instance.json");
    let count = "import os; e = os.environ; print(e['BATCH_COMPUTE_DAG_INSTANCE_ID'], e['BATCH_COMPUTE_DAG_INSTANCE_COUNT'], e['k1'], e['n'])";
    double.put("my-bucket", "pkg/worker.tar.gz", package(&[("count.py", count)]));
    let ran = run(&several);
    assert_eq!(ran.status, 0, "{ran:#?}");
    for instance in 0..3 {
        assert_eq!(stdout(&double, &several, &ran, "count", instance), format!("{instance} 3 v1 5\n"));
    }

    // Cromwell's, without the image and the NAS: a package without suffix or mode bits, outputs that share a directory
    // with files of the program's own, hard links between them.
    let mut cromwell = fixture("cromwell-call.json");
    let task = &mut cromwell["DAG"]["Tasks"]["cromwell"];
    task["Parameters"]["Command"]["Docker"] = json!({"Image": ""});
    task["Mounts"]["Entries"]
        .as_array_mut()
        .unwrap()
        .retain(|entry| entry["Source"].as_str().unwrap().starts_with("oss://"));
    let call = "cromwell-dir/wf_echo/38b088b2-5131-4ea0-a161-4cf2ca8d15ac/call-echo";
    let worker = "#!/bin/bash\nexport script=$cwd/$(basename $exec)\nexport rc=$cwd/rc\n\n(\nmkdir -p $cwd\ncp -rf $exec $script\ncd $cwd\n/bin/bash -c $script\n)\n";
    let body = "#!/bin/bash\necho out > output; echo text > stdout; echo > stderr; mkdir -p glob-0c8a; ln output glob-0c8a/output; echo output > glob-0c8a.list; echo 7 > rc";
    double.put("my-bucket", &format!("{call}/worker"), worker);
    double.put("my-bucket", &format!("{call}/script"), body);
    double.put("my-bucket", "inputs/i", "i");
    double.put("my-bucket", "data/sample.bam", "bam");
    let ran = run(&cromwell);
    // The wrapped command is `bash -c $script`, which wants the script executable; as copied from a mount it is.
    assert_eq!(ran.status, 0, "{ran:#?}");
    for (name, content) in [
        ("output", "out\n"),
        ("stdout", "text\n"),
        ("rc", "7\n"),
        ("glob-0c8a/output", "out\n"),
        ("glob-0c8a.list", "output\n"),
    ] {
        assert_eq!(
            double.get("my-bucket", &format!("{call}/{name}")).unwrap_or_else(|| panic!("{name}: {ran:#?}")),
            content.as_bytes()
        );
    }
    node.assert_clean();
}

#[test]
fn check_accepts_every_description_and_touches_nothing() {
    let node = Node::new();
    let mut seen = 0;
    for entry in std::fs::read_dir(repository().join("agent/tests/fixtures/jobs")).unwrap() {
        let path = entry.unwrap().path();
        let output = node.agent().arg("check").arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {said}{}", path.display(), String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("oss://"), "{said}");
        seen += 1;
    }
    assert!(seen >= 7);
    assert_eq!(std::fs::read_dir(node.path()).unwrap().count(), 0);
}
