//! The example that users run first: its job is what its text says, and its programs count right.
//!
//! The programs run here without the agent, in plain directories; running the job through mounts is another test's business.

#![expect(clippy::unwrap_used, reason = "a test whose example cannot be prepared has failed")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use batch_agent::job::description::Job;
use batch_agent::job::read_file;
use flate2::read::GzDecoder;
use tempfile::TempDir;

const RESULT: &str = "{\"INFO\": 2460, \"WARN\": 2448, \"DEBUG\": 2509, \"ERROR\": 2583}\n";

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/log-count")
}

/// Runs a Python program and gives its output; it must succeed without a word on stderr.
fn python(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = Command::new("python3")
        .args(arguments)
        .current_dir(directory)
        .envs(environment.iter().copied())
        .output()
        .unwrap_or_else(|error| panic!("python3 cannot be run ({error}); install it: apt-get install python3"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    assert!(output.status.success(), "{arguments:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// The example laid out in a directory of its own, for the store given.
fn prepared(store: &str) -> (TempDir, Job) {
    let directory = tempfile::tempdir().unwrap();
    let into = directory.path().to_str().unwrap();
    python(&example(), &["prepare.py", "--store", store, "--into", into], &[]);
    let (job, warnings) = read_file(&directory.path().join("job.json")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(warnings, []);
    (directory, job)
}

#[test]
fn the_job_goes_through_three_tasks() {
    let (_directory, job) = prepared("s3://bucket/some/where");
    let tasks: Vec<_> = job
        .tasks
        .iter()
        .map(|task| {
            let input = &task.inputs[0];
            let output = &task.outputs[0];
            (
                task.name.as_str(),
                task.after.join(" "),
                task.instances,
                task.logs.len(),
                format!("{} → {}", input.source, input.target.display()),
                format!("{} → {}", output.source.display(), output.target),
            )
        })
        .collect();
    let at = |text: &str| text.replace("STORE", "s3://bucket/some/where");
    assert_eq!(
        tasks,
        [
            ("split", String::new(), 1, 1, at("STORE/data/ → /home/input"), at("/home/output → STORE/split_results/")),
            (
                "count",
                "split".to_owned(),
                3,
                0,
                at("STORE/split_results/ → /home/input"),
                at("/home/output → STORE/count_results/")
            ),
            (
                "merge",
                "count".to_owned(),
                1,
                0,
                at("STORE/count_results/ → /home/input"),
                at("/home/output/merge_result.json → STORE/merge_result.json")
            ),
        ]
    );
    for task in &job.tasks {
        assert_eq!(task.package.as_ref().unwrap().to_string(), at("STORE/worker.tar.gz"));
        assert_eq!(task.stdout.as_ref().unwrap().to_string(), at("STORE/logs/"));
    }
}

#[test]
fn both_formats_say_the_same() {
    let (directory, mut json) = prepared("gs://bucket/");
    let (yaml, warnings) = read_file(&directory.path().join("job.yaml")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(warnings, []);
    // BatchCompute's inputs may be changed locally unless the job says no; ours may if it says yes.
    for input in json.tasks.iter_mut().flat_map(|task| &mut task.inputs) {
        input.writable = false;
    }
    assert_eq!(yaml, json);
}

#[test]
fn the_log_holds_each_level_word_as_a_level_only() {
    let (directory, _job) = prepared("oss://b/");
    let log = fs::read_to_string(directory.path().join("data/log-count-data.txt")).unwrap();
    assert_eq!(log.lines().count(), 10_000);
    for (level, count) in [("INFO", 2460), ("WARN", 2448), ("DEBUG", 2509), ("ERROR", 2583)] {
        assert_eq!(log.matches(level).count(), count, "{level}");
        assert_eq!(log.lines().filter(|line| line.split_whitespace().nth(2) == Some(level)).count(), count, "{level}");
    }
}

#[test]
fn what_is_prepared_twice_is_the_same() {
    let (first, _) = prepared("oss://b/");
    let (second, _) = prepared("oss://b");
    for name in ["data/log-count-data.txt", "worker.tar.gz", "job.json", "job.yaml"] {
        let read = |directory: &TempDir| fs::read(directory.path().join(name)).unwrap();
        assert!(read(&first) == read(&second), "{name}");
    }
}

#[test]
fn the_programs_count_right() {
    let (directory, job) = prepared("oss://b/");
    let root = directory.path();
    let package = GzDecoder::new(File::open(root.join("worker.tar.gz")).unwrap());
    tar::Archive::new(package).unpack(root.join("work")).unwrap();
    let step = |task: &str, input: &str, output: &str, environment: &[(&str, &str)]| {
        let replaced: Vec<String> = job.task(task).unwrap().command[1..]
            .iter()
            .map(|word| word.replace("/home/input", input).replace("/home/output", output))
            .collect();
        let words: Vec<&str> = replaced.iter().map(String::as_str).collect();
        python(&root.join("work"), &words, environment)
    };
    step("split", "../data", "../parts", &[]);
    assert_eq!(fs::read_dir(root.join("parts")).unwrap().count(), 3);
    assert!(fs::read_to_string(root.join("work/split.log")).unwrap().contains("2.txt: lines 6667 to 10000"));
    for instance in ["0", "1", "2"] {
        let environment = [("BATCH_COMPUTE_DAG_INSTANCE_ID", instance), ("BATCH_COMPUTE_DAG_INSTANCE_COUNT", "3")];
        let printed = step("count", "../parts", "../counts", &environment);
        assert!(printed.starts_with(&format!("instance {instance} of 3 counted {instance}.txt\n")), "{printed}");
    }
    assert_eq!(step("merge", "../counts", "../result", &[]), RESULT);
    assert_eq!(fs::read_to_string(root.join("result/merge_result.json")).unwrap(), RESULT);
}
