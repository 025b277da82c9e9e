//! Tasks in containers, under a real Docker daemon and a real Podman that the tests start.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use serde_json::{Value, json};
use tests::agent::{Finished, Node, job, merge, package};
use tests::docker::Engine;
use tests::double::{Double, DoubleConfig};

const BUCKET: &str = "test-bucket";
const IMAGE: &str = "registry.example/busybox:1";

/// An engine, a store and a node that knows both.
struct Site {
    engine: Engine,
    double: Double,
    node: Node,
}

impl Site {
    fn new(engine: Engine) -> Self {
        let double = Double::start(DoubleConfig::default());
        let node = Node::with_double(&double.endpoint())
            .environment("BATCH_AGENT_ENGINE_SOCKET", engine.socket().to_str().unwrap());
        Self { engine, double, node }
    }

    fn run(&self, job: &Value) -> Finished {
        let mut command = self.node.run_command(job, &[]);
        tests::agent::finished(&self.engine.join(&mut command).output().unwrap())
    }

    fn log(&self, stream: &str, run: &Finished) -> String {
        let id = run.outcome["job_id"].as_str().unwrap_or_else(|| panic!("{run:?}"));
        let key = format!("logs/{stream}.{id}.task.0");
        let content = self.double.get(BUCKET, &key).unwrap_or_else(|| panic!("no {key}: {run:?}"));
        String::from_utf8(content).unwrap()
    }

    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.engine.containers(), Vec::<String>::new(), "containers are left");
        self.node.assert_clean();
    }
}

/// A task of this command line in the image, with more of a description.
fn task(line: &str, more: Value) -> Value {
    let mut task = json!({"Parameters": {"Command": {"CommandLine": line, "Docker": {"Image": IMAGE}}}});
    merge(&mut task, &more);
    job(&task)
}

fn a_plain_task(engine: Engine) {
    let site = Site::new(engine);
    site.engine.import(IMAGE, &["ENV FROM_IMAGE=yes", "ENTRYPOINT [\"/bin/false\"]", "USER 1000"]);
    site.double.put(BUCKET, "in/a.txt", "alpha");
    site.double.put(BUCKET, "ref/genome.fa", "ACGT");
    let script = "#!/bin/sh\nid -u; pwd; echo $PATH $FROM_IMAGE $BATCH_COMPUTE_DAG_INSTANCE_ID ${BATCH_COMPUTE_WORKER_ID-none}\n\
                  cat /home/in/a.txt /home/ref.fa; echo; echo changed > /home/in/b.txt; cat /home/in/b.txt\n\
                  echo result > /home/out/r; echo single > /tmp/rc; echo problem >&2; exit 3\n";
    site.double.put(BUCKET, "worker.tar.gz", package(&[("main.sh", script)]));
    let run = site.run(&task(
        "./main.sh",
        json!({
            "Parameters": {"Command": {"PackagePath": "oss://test-bucket/worker.tar.gz"}},
            "InputMapping": {"oss://test-bucket/in/": "/home/in/", "oss://test-bucket/ref/genome.fa": "/home/ref.fa"},
            "OutputMapping": {"/home/out/": "oss://test-bucket/out/", "/tmp/rc": "oss://test-bucket/rc"},
        }),
    ));
    assert_eq!(run.status, 3, "{run:#?}\n{}", site.engine.log());
    assert_eq!(
        site.log("stdout", &run),
        "0\n/batchcompute/workdir\n/sbin:/usr/sbin:/bin:/usr/bin yes 0 none\nalphaACGT\nchanged\n"
    );
    assert_eq!(site.log("stderr", &run), "problem\n");
    for (key, content) in [("out/r", "result\n"), ("rc", "single\n")] {
        let found = site.double.get(BUCKET, key).unwrap_or_else(|| panic!("no {key}: {run:#?}\n{}", site.engine.log()));
        assert_eq!(String::from_utf8(found).unwrap(), content);
    }
    assert!(site.double.get(BUCKET, "in/b.txt").is_none());
    site.assert_clean();
}

#[test]
fn a_plain_task_under_docker() {
    a_plain_task(Engine::docker());
}

#[test]
fn a_plain_task_under_podman() {
    a_plain_task(Engine::podman());
}
