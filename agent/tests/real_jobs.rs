//! Job descriptions that real clients wrote (`bcs`, the Python SDK, Cromwell) become exactly the jobs their authors meant.

#![expect(clippy::unwrap_used, reason = "a test whose data cannot be read has failed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use batch_agent::job::check::{Abilities, Report};
use batch_agent::job::description::{
    Container, ContainerNetwork, ImageSource, Input, Job, Limits, NetworkMount, Output, RetryRules, Task,
};
use batch_agent::job::{Finding, PullPolicy, read_file};
use fuse_oss::{CacheUse, Charset};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jobs").join(name)
}

fn read(name: &str) -> (Job, Vec<Finding>) {
    read_file(&fixture(name)).unwrap_or_else(|error| panic!("{error}"))
}

/// The description, which must have come without any warning.
fn quiet(name: &str) -> Job {
    let (job, warnings) = read(name);
    assert_eq!(warnings, []);
    job
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A container as descriptions of the service can ask for it.
fn container(image: &str, source: ImageSource) -> Container {
    let (pull, network) = (PullPolicy::Missing, ContainerNetwork::Host);
    Container { image: image.parse().unwrap(), source, pull, network, devices: Vec::new() }
}

/// A task as it is when its description says no more than it must.
fn task(name: &str, command: &[&str], logs: &str, timeout: u64) -> Task {
    Task {
        name: name.to_owned(),
        after: Vec::new(),
        command: words(command),
        package: None,
        environment: BTreeMap::new(),
        container: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        logs: Vec::new(),
        network_mounts: Vec::new(),
        stdout: Some(logs.parse().unwrap()),
        stderr: Some(logs.parse().unwrap()),
        instances: 1,
        max_retries: 0,
        retry_rules: RetryRules::default(),
        reserve_on_fail: false,
        timeout: Some(Duration::from_secs(timeout)),
        input_store: None,
        input_cache: CacheUse::default(),
        limits: Limits::default(),
        user: None,
    }
}

fn job(name: &str, task: Task) -> Job {
    Job { name: name.to_owned(), tasks: vec![task], stop_on_failure: true, notification: None }
}

fn input(source: &str, target: &str, writable: bool, locale: Option<&str>) -> Input {
    let locale = locale.map_or(Charset::UTF_8, |locale| locale.parse().unwrap());
    Input { source: source.parse().unwrap(), target: target.into(), writable, locale }
}

fn output(source: &str, target: &str) -> Output {
    Output { source: source.into(), target: target.parse().unwrap(), locale: "GBK".parse().unwrap() }
}

fn nas(source: &str, target: &str, writable: bool) -> NetworkMount {
    NetworkMount { source: source.to_owned(), target: target.into(), writable }
}

#[test]
fn a_single_command_of_bcs() {
    let logs = "oss://my-bucket/bcs/b353ecfc-e4b4-11f1-86d5-02fc00000001/logs/";
    assert_eq!(quiet("single-command.json"), job("single-command", task("task", &["echo", "hello"], logs, 86_400)));
}

#[test]
fn a_package_of_bcs() {
    let base = "oss://my-bucket/bcs/b3c3a1be-e4b4-11f1-9b00-02fc00000001";
    let mut task = task("task", &["python", "main.py", "arg1", "arg 2"], &format!("{base}/logs/"), 86_400);
    task.package = Some(format!("{base}/worker.tar.gz").parse().unwrap());
    assert_eq!(quiet("package-tarball.json"), job("package-job", task));
}

#[test]
fn directory_mappings_of_bcs() {
    let logs = "oss://my-bucket/bcs/b441d05c-e4b4-11f1-9c77-02fc00000001/logs/";
    let mut task = task("task", &["python", "main.py"], logs, 86_400);
    task.inputs = vec![
        input("oss://my-bucket/in/", "/home/input", true, None),
        input("oss://my-bucket/ref/", "/home/ref", true, None),
    ];
    task.outputs = vec![output("/home/output", "oss://my-bucket/out/")];
    assert_eq!(quiet("bcs-directory-mappings.json"), job("dir-map", task));
}

#[test]
fn directory_mappings_of_the_sdk() {
    let mut task = task("my-task", &["python", "/home/admin/myprograms/main.py"], "oss://my-bucket/logs/", 3_600);
    task.inputs = vec![
        input("oss://mybucket/myprograms/", "/home/admin/myprograms", true, Some("GBK")),
        input("oss://mybucket/mydir/", "/home/admin/mydir", true, Some("GBK")),
    ];
    task.outputs = vec![output("/home/admin/result", "oss://mybucket/result/")];
    assert_eq!(quiet("sdk-directory-mappings.json"), job("sdk-dir-map", task));
}

#[test]
fn network_mounts_of_bcs() {
    let logs = "oss://my-bucket/bcs/b57a48dc-e4b4-11f1-99f4-02fc00000001/logs/";
    let mut task = task("task", &["ls", "-l", "/home/admin/nasdir"], logs, 86_400);
    task.inputs = vec![input("oss://my-bucket/ref/genome.fa", "/home/ref/genome.fa", false, None)];
    task.network_mounts = vec![
        nas("nas://xxx.cn-beijing.nas.aliyuncs.com:/", "/home/admin/nasdir", true),
        nas("nas://xxx.cn-beijing.nas.aliyuncs.com:/ro/", "/home/admin/nasro", false),
    ];
    assert_eq!(quiet("nas.json"), job("nas-rw", task));
}

#[test]
fn several_instances_of_the_sdk() {
    let mut task = task("count", &["python", "count.py"], "oss://my-bucket/logs/", 3_600);
    task.package = Some("oss://my-bucket/pkg/worker.tar.gz".parse().unwrap());
    task.environment = BTreeMap::from([("k1".to_owned(), "v1".to_owned()), ("n".to_owned(), "5".to_owned())]);
    task.instances = 3;
    let expected = Job { stop_on_failure: false, ..job("multi-instance", task) };
    assert_eq!(quiet("multi-instance.json"), expected);
}

#[test]
fn a_call_of_cromwell() {
    let run = "my-bucket/cromwell-dir/wf_echo/38b088b2-5131-4ea0-a161-4cf2ca8d15ac";
    let (local, remote) = (format!("/cromwell_root/{run}/call-echo"), format!("oss://{run}/call-echo"));
    let mut task = task("cromwell", &["./worker"], &format!("{remote}/bcs-stdout/"), 3_000);
    task.stderr = Some(format!("{remote}/bcs-stderr/").parse().unwrap());
    task.package = Some(format!("{remote}/worker").parse().unwrap());
    task.environment = BTreeMap::from([
        ("cwd".to_owned(), local.clone()),
        ("exec".to_owned(), "/cromwell_inputs/73a7571e/script".to_owned()),
        ("stdout".to_owned(), format!("{local}/stdout")),
        ("stderr".to_owned(), format!("{local}/stderr")),
    ]);
    let image = "registry.cn-shanghai.aliyuncs.com/batchcompute/myubuntu:0.2";
    task.container = Some(container(image, ImageSource::Registry));
    task.reserve_on_fail = true;
    task.inputs = vec![
        input("oss://my-bucket/inputs/", "/home/inputs", false, None),
        input("oss://my-bucket/data/sample.bam", "/cromwell_inputs/b1946ac9/sample.bam", false, None),
        input(&format!("{remote}/script"), "/cromwell_inputs/73a7571e/script", false, None),
        input(&format!("oss://{run}/"), &format!("/cromwell_inputs/{run}"), true, None),
    ];
    task.network_mounts = vec![nas("nas://0266e49fea-yio75.cn-beijing.nas.aliyuncs.com:/", "/home/nas", true)];
    task.outputs = ["output", "rc", "stdout", "stderr"]
        .iter()
        .map(|name| output(&format!("{local}/{name}"), &format!("{remote}/{name}")))
        .chain([
            output(&format!("{local}/glob-0c8a"), &format!("{remote}/glob-0c8a/")),
            output(&format!("{local}/glob-0c8a.list"), &format!("{remote}/glob-0c8a.list")),
        ])
        .collect();
    assert_eq!(quiet("cromwell-call.json"), job("cromwell_38b088b2_echo", task));
}

#[test]
fn every_one_of_them_can_be_reported() {
    let mut seen = 0;
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (job, warnings) = read(&name);
        let report = Report::new(&job, &warnings, Abilities::default());
        let needs_more = ["nas.json", "cromwell-call.json"].contains(&name.as_str());
        assert_eq!(report.is_runnable(), !needs_more, "{report}");
        assert!(report.to_string().starts_with(&format!("job {}: 1 task;", job.name)), "{report}");
        seen += 1;
    }
    assert_eq!(seen, 7);
}

/// The service's own tutorial maps directories without the local path's slash (`bcs sub -r oss://b/in/:/home/input`).
#[test]
fn directories_without_a_slash_are_taken_as_the_tutorial_means_them() {
    let text = r#"{"Name":"log-count","DAG":{"Tasks":{"split":{
        "Mounts":{"Entries":[{"Source":"oss://b/log-count/","Destination":"/home/input","WriteSupport":true}],"NAS":{}},
        "OutputMapping":{"/home/output":"oss://b/log-count/"},
        "Parameters":{"Command":{"CommandLine":"python split.py","EnvVars":{
            "BATCH_COMPUTE_DOCKER_IMAGE":"localhost:5000/myubuntu",
            "BATCH_COMPUTE_DOCKER_REGISTRY_OSS_PATH":"oss://b/dockers"}}}}}}}"#;
    let (job, warnings) = batch_agent::job::read(text.as_bytes(), batch_agent::job::Format::Json).unwrap();
    let task = &job.tasks[0];
    assert_eq!(task.inputs, [input("oss://b/log-count/", "/home/input", true, None)]);
    assert_eq!(task.outputs, [output("/home/output", "oss://b/log-count/")]);
    let tree = ImageSource::Tree("oss://b/dockers/".parse().unwrap());
    assert_eq!(task.container, Some(container("localhost:5000/myubuntu", tree)));
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "DAG.Tasks.split.Mounts.Entries[0].Destination: the local path \"/home/input\" has no trailing slash and is taken \
         for a directory; end both sides in '/' for a directory",
            "DAG.Tasks.split.OutputMapping[\"/home/output\"]: the local path \"/home/output\" has no trailing slash and is \
         taken for a directory; end both sides in '/' for a directory",
        ]
    );
}
