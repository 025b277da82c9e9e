//! What is wrong with a job description is said exactly: the place, the cause, the remedy; all of it; and never a secret.

#![expect(clippy::unwrap_used, reason = "a test whose data cannot be built has failed")]

mod mutated;

use batch_agent::job::{Format, read};
use serde_json::{Value, json};

/// The problems of a BatchCompute job, one per line.
fn problems(job: &Value) -> Vec<String> {
    problems_of(job.to_string().as_bytes(), Format::Json)
}

fn problems_of(text: &[u8], format: Format) -> Vec<String> {
    match read(text, format) {
        Ok((job, _)) => panic!("accepted as {job:?}"),
        Err(problems) => problems.findings().iter().map(ToString::to_string).collect(),
    }
}

fn warnings(job: &Value) -> Vec<String> {
    match read(job.to_string().as_bytes(), Format::Json) {
        Ok((_, warnings)) => warnings.iter().map(ToString::to_string).collect(),
        Err(problems) => panic!("{problems}"),
    }
}

/// A job with one good task `t`, into which `extra` is merged.
fn with(extra: Value) -> Value {
    let mut job = json!({ "Name": "job", "Type": "DAG", "DAG": { "Tasks": {
        "t": { "Parameters": { "Command": { "CommandLine": "true" } } } } } });
    merge(&mut job["DAG"]["Tasks"]["t"], extra);
    job
}

fn merge(into: &mut Value, extra: Value) {
    match (into, extra) {
        (Value::Object(into), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, extra) => *into = extra,
    }
}

fn command(line: &str) -> Value {
    with(json!({ "Parameters": { "Command": { "CommandLine": line } } }))
}

#[test]
fn the_good_task_is_good() {
    assert_eq!(warnings(&with(json!({}))), [] as [&str; 0]);
}

#[test]
fn bad_tasks_are_refused_with_exact_messages() {
    let input = |source: &str, target: &str| with(json!({ "InputMapping": { source: target } }));
    let output = |source: &str, target: &str| with(json!({ "OutputMapping": { source: target } }));
    let entry = |source: &str, target: &str| {
        with(json!({ "Mounts": { "Entries": [{ "Source": source, "Destination": target, "WriteSupport": true }] } }))
    };
    for (job, message) in [
        // Types.
        (with(json!({ "Timeout": "soon" })), "DAG.Tasks.t.Timeout: expected seconds, got \"soon\""),
        (with(json!({ "Timeout": "3600" })), "DAG.Tasks.t.Timeout: expected seconds, got \"3600\""),
        (with(json!({ "Timeout": 1.5 })), "DAG.Tasks.t.Timeout: expected seconds, got 1.5"),
        (with(json!({ "InstanceCount": [3] })), "DAG.Tasks.t.InstanceCount: expected a whole number, got a list"),
        (with(json!({ "WriteSupport": "true" })), "DAG.Tasks.t.WriteSupport: expected true or false, got \"true\""),
        (with(json!({ "InputMapping": [] })), "DAG.Tasks.t.InputMapping: expected an object, got a list"),
        (with(json!({ "Mounts": { "Entries": {} } })), "DAG.Tasks.t.Mounts.Entries: expected a list, got an object"),
        (
            with(json!({ "Mounts": { "Entries": ["x"] } })),
            "DAG.Tasks.t.Mounts.Entries[0]: expected an object, got \"x\"",
        ),
        (
            with(json!({ "Parameters": { "Command": { "CommandLine": ["a"] } } })),
            "DAG.Tasks.t.Parameters.Command.CommandLine: expected text, got a list",
        ),
        (
            with(json!({ "Parameters": { "Command": { "EnvVars": { "A": { "secret": 1 } } } } })),
            "DAG.Tasks.t.Parameters.Command.EnvVars.A: expected text, got an object",
        ),
        (
            with(json!({ "InputMapping": { "oss://b/": 5 } })),
            "DAG.Tasks.t.InputMapping[\"oss://b/\"]: expected text, got 5",
        ),
        (
            with(json!({ "AutoCluster": { "Configs": { "Disks": { "DataDisk": { "Size": "40G" } } } } })),
            "DAG.Tasks.t.AutoCluster.Configs.Disks.DataDisk.Size: expected a whole number, got \"40G\"",
        ),
        // Ranges.
        (with(json!({ "Timeout": 0 })), "DAG.Tasks.t.Timeout: expected 1 to 315360000 seconds, got 0"),
        (with(json!({ "Timeout": -1 })), "DAG.Tasks.t.Timeout: expected 1 to 315360000 seconds, got -1"),
        (with(json!({ "InstanceCount": 0 })), "DAG.Tasks.t.InstanceCount: expected 1 to 1000000 instances, got 0"),
        (
            with(json!({ "InstanceCount": u64::MAX })),
            "DAG.Tasks.t.InstanceCount: expected 1 to 1000000 instances, got 9223372036854775807",
        ),
        (with(json!({ "MaxRetryCount": 1001 })), "DAG.Tasks.t.MaxRetryCount: expected 0 to 1000 retries, got 1001"),
        // Commands.
        (
            command(""),
            "DAG.Tasks.t.Parameters.Command.CommandLine: is missing; a task needs a program to run, such as \
             \"python main.py\"",
        ),
        (
            command("  "),
            "DAG.Tasks.t.Parameters.Command.CommandLine: names no program; write the program first, such as \
             \"python main.py\"",
        ),
        (
            command("echo 'x"),
            "DAG.Tasks.t.Parameters.Command.CommandLine: the single quote that opens at character 6 is never closed; \
             close it, or put a backslash before it",
        ),
        (
            command("a\0b"),
            "DAG.Tasks.t.Parameters.Command.CommandLine: holds a NUL character; remove it: arguments end at NUL",
        ),
        (
            with(json!({ "Parameters": { "Command": { "EnvVars": { "A=B": "x" } } } })),
            "DAG.Tasks.t.Parameters.Command.EnvVars[\"A=B\"]: \"A=B\" cannot be the name of a variable; use letters, \
             digits and '_'",
        ),
        (
            with(json!({ "Parameters": { "Command": { "Docker": { "Image": "--privileged" } } } })),
            "DAG.Tasks.t.Parameters.Command.Docker.Image: \"--privileged\" is not the name of a container image; write \
             it as registry/name:tag",
        ),
        // Locations.
        (
            with(json!({ "Parameters": { "Command": { "PackagePath": "oss://b/dir/" } } })),
            "DAG.Tasks.t.Parameters.Command.PackagePath: \"oss://b/dir/\" is a directory; name one object: a .tar.gz, or \
             a single program",
        ),
        (
            with(json!({ "Parameters": { "StdoutRedirectPath": "b/logs/" } })),
            "DAG.Tasks.t.Parameters.StdoutRedirectPath: \"b/logs/\" is not a storage location: write oss://, s3://, \
             gs://, az:// or file:// in front of it",
        ),
        (
            input("os://b/x", "/x"),
            "DAG.Tasks.t.InputMapping[\"os://b/x\"]: \"os://b/x\" is not in object storage: its scheme is unknown; did \
             you mean oss://?",
        ),
        (
            input("oss:///x", "/x"),
            "DAG.Tasks.t.InputMapping[\"oss:///x\"]: \"oss:///x\" names no bucket: write oss://BUCKET/KEY",
        ),
        // Local paths.
        (
            input("oss://b/x/", "home/"),
            "DAG.Tasks.t.InputMapping[\"oss://b/x/\"]: the local path \"home/\" is not absolute; write it from the root, \
             such as /home/data/",
        ),
        (
            input("oss://b/x/", "/home/../etc/"),
            "DAG.Tasks.t.InputMapping[\"oss://b/x/\"]: the local path \"/home/../etc/\" holds \"..\"; write the path it \
             leads to",
        ),
        (
            output("/", "oss://b/x/"),
            "DAG.Tasks.t.OutputMapping[\"/\"]: the local path \"/\" is the root of the file system; use a directory of \
             its own, such as /home/data/",
        ),
        (
            output("/proc/1/", "oss://b/x/"),
            "DAG.Tasks.t.OutputMapping[\"/proc/1/\"]: the local path \"/proc/1/\" belongs to the system; use a directory \
             of its own, such as /home/data/",
        ),
        (
            entry("oss://b/x/", "E:"),
            "DAG.Tasks.t.Mounts.Entries[0].Destination: the local path \"E:\" is of the Windows form, and this node runs \
             Linux; write an absolute path such as /home/data/",
        ),
        (
            entry("oss://b/x", "/home/x/"),
            "DAG.Tasks.t.Mounts.Entries[0].Destination: \"oss://b/x\" is one object, but the local path \"/home/x/\" is \
             a directory; end both in '/' for a directory, or neither for one file",
        ),
        // Network file systems.
        (
            entry("nas://host:/d/!", "/nas/"),
            "DAG.Tasks.t.Mounts.Entries[0].Source: \"nas://host:/d/!\" is a mount for Windows, and this node runs Linux; \
             write nas://HOST:/DIRECTORY/ for NFS",
        ),
        (
            entry("smb://host/d", "/nas/"),
            "DAG.Tasks.t.Mounts.Entries[0].Source: \"smb://host/d\" is a mount for Windows, and this node runs Linux; \
             write nas://HOST:/DIRECTORY/ for NFS",
        ),
        (
            entry("nas://-o:/d", "/nas/"),
            "DAG.Tasks.t.Mounts.Entries[0].Source: \"nas://-o:/d\" does not name a server; write nas://HOST:/DIRECTORY/ \
             or lustre://HOST@tcp:/NAME",
        ),
        (
            entry("nas://host:/a/../b", "/nas/"),
            "DAG.Tasks.t.Mounts.Entries[0].Source: \"nas://host:/a/../b\" names a directory that cannot be mounted; \
             write an absolute path without \"..\"",
        ),
        (
            with(json!({ "Mounts": { "Entries": [{ "Source": "oss://b/x/" }] } })),
            "DAG.Tasks.t.Mounts.Entries[0].Destination: is missing",
        ),
        (
            with(json!({ "Mounts": { "OSS": { "AccessKeyId": "LTAI" } } })),
            "DAG.Tasks.t.Mounts.OSS.AccessKeySecret: is missing beside the other half of the credentials; give \
             AccessKeyId and AccessKeySecret, or neither to use the node's own",
        ),
        (
            with(json!({ "Mounts": { "OSS": { "AccessKeySecret": 12345 } } })),
            "DAG.Tasks.t.Mounts.OSS.AccessKeySecret: expected text, got a number",
        ),
    ] {
        assert_eq!(problems(&job), [message], "{job}");
    }
}

#[test]
fn mappings_that_contradict_each_other_are_refused() {
    let task = "DAG.Tasks.t";
    for (job, message) in [
        (
            with(json!({ "InputMapping": { "oss://b/x/": "/data/", "oss://b/y/": "/data//" } })),
            format!(
                "{task}.InputMapping[\"oss://b/y/\"]: \"/data\" is taken already, by \"oss://b/x/\"; give each location a \
                 local path of its own"
            ),
        ),
        (
            with(json!({ "InputMapping": { "oss://b/x/": "/data/" },
                "Mounts": { "Entries": [{ "Source": "nas://h:/d", "Destination": "/data", "WriteSupport": true }] } })),
            format!(
                "{task}.Mounts.Entries[0].Destination: \"/data\" is taken already, by \"oss://b/x/\"; give each location \
                 a local path of its own"
            ),
        ),
        (
            with(json!({ "InputMapping": { "oss://b/x/": "/data/" }, "OutputMapping": { "/data/": "oss://b/x/" } })),
            format!(
                "{task}.OutputMapping[\"/data/\"]: \"/data\" is an input already, from \"oss://b/x/\"; upload to another \
                 location than is read from, or give outputs a directory of their own"
            ),
        ),
        (
            with(json!({ "OutputMapping": { "/o/": "oss://b/x/", "/o//": "oss://b/y/" } })),
            format!(
                "{task}.OutputMapping[\"/o//\"]: \"/o\" is an output already, to \"oss://b/x/\"; map each local path to \
                 one location"
            ),
        ),
        (
            with(json!({ "OutputMapping": { "/o/": "oss://b/x/", "/o/sub/": "oss://b/y/" } })),
            format!(
                "{task}.OutputMapping[\"/o/sub/\"]: \"/o/sub\" lies inside the output \"/o\", so its files would be \
                 uploaded twice; map directories that are not inside each other"
            ),
        ),
        (
            with(json!({ "InputMapping": { "oss://b/x": "/data", "oss://b/y": "/data/y" } })),
            format!(
                "{task}.InputMapping[\"oss://b/y\"]: \"/data/y\" lies inside \"/data\", which is a file; use another \
                 local path, or end the other one in '/' on both sides"
            ),
        ),
        (
            with(json!({ "LogMapping": { "/a/": "oss://b/logs/" } })),
            format!(
                "{task}.LogMapping[\"/a/\"]: the log \"/a/\" is a directory; name one file; map a whole directory as an output"
            ),
        ),
        (
            with(json!({ "LogMapping": { "/a/x.log": "oss://b/l/", "/b/x.log": "oss://b/l/" } })),
            format!(
                "{task}: \"/a/x.log\" and \"/b/x.log\" would both become \"oss://b/l/x.log.JOB.t.0\"; map them to \
                 different objects"
            ),
        ),
        (
            with(json!({ "LogMapping": { "/a/stdout": "oss://b/l/" },
                "Parameters": { "StdoutRedirectPath": "oss://b/l/" } })),
            format!(
                "{task}: \"stdout\" and \"/a/stdout\" would both become \"oss://b/l/stdout.JOB.t.0\"; map them to \
                 different objects"
            ),
        ),
    ] {
        assert_eq!(problems(&job), [message], "{job}");
    }
}

#[test]
fn mappings_that_only_look_odd_are_accepted() {
    // Objects of several buckets in one directory, an object in a mapped directory, a location at two paths, an output
    // inside an input, one file of an output directory to a place of its own.
    let job = with(json!({
        "InputMapping": { "oss://b1/data/file1": "/home/data/file1", "oss://b2/data/file2": "/home/data/file2" },
        "Mounts": { "Entries": [
            { "Source": "oss://b/ref/", "Destination": "/ref/", "WriteSupport": true },
            { "Source": "oss://b/ref/", "Destination": "/ref2/", "WriteSupport": true },
            { "Source": "s3://c/extra", "Destination": "/ref/extra", "WriteSupport": false }
        ] },
        "OutputMapping": { "/ref/out/": "oss://b/out/", "/ref/out/rc": "oss://b/rc", "/p": "gs://b/p" }
    }));
    assert_eq!(warnings(&job), [] as [&str; 0]);
}

#[test]
fn bad_jobs_are_refused_with_exact_messages() {
    let good = || with(json!({}));
    let tasks = |names: &[&str], dependencies: Value| {
        let task = json!({ "Parameters": { "Command": { "CommandLine": "true" } } });
        let tasks: serde_json::Map<_, _> = names.iter().map(|name| ((*name).to_owned(), task.clone())).collect();
        json!({ "Name": "j", "DAG": { "Tasks": tasks, "Dependencies": dependencies } })
    };
    let change = |pointer: &str, value: Value| {
        let mut job = good();
        *job.pointer_mut(pointer).unwrap() = value;
        job
    };
    for (job, message) in [
        (
            json!([]),
            "expected an object with the job's keys, got a list; a job description begins with { \"Name\": ..., \"DAG\": ... }",
        ),
        (json!({}), "DAG: is missing; a job holds its tasks in DAG.Tasks"),
        (json!({ "Name": "x" }), "DAG: is missing; a job holds its tasks in DAG.Tasks"),
        (change("/DAG/Tasks", json!({})), "DAG.Tasks: there are no tasks; a job needs at least one"),
        (change("/DAG/Tasks", json!([])), "DAG.Tasks: expected an object, got a list"),
        (change("/DAG/Tasks/t", json!("x")), "DAG.Tasks.t: expected an object, got text"),
        (
            json!({ "Name": "x", "Type": "App", "App": { "AppName": "a" } }),
            "App: the App's description is not there, and the job says only what goes into it; give it with --app FILE (in a \
             node's settings: task.app, task.app_file or task.app_object)",
        ),
        (change("/Type", json!("DGA")), "Type: expected DAG or App, got \"DGA\"; did you mean DAG?"),
        (change("/Name", json!("a/b")), "Name: the job's name \"a/b\" holds '/'; use letters, digits, '-' and '_'"),
        (
            tasks(&["../x"], json!({})),
            "DAG.Tasks[\"../x\"]: the task's name \"../x\" holds '/'; use letters, digits, '-' and '_'",
        ),
        (tasks(&[""], json!({})), "DAG.Tasks[\"\"]: the task's name \"\" is empty; use letters, digits, '-' and '_'"),
        (
            tasks(&["a", "a.1"], json!({})),
            "DAG.Tasks[\"a.1\"]: logs of this task and of the task \"a\" would have the same names; write '-' instead of \
             '.' in the name",
        ),
        (
            tasks(&["a", "b"], json!({ "a": ["b"], "b": ["a"] })),
            "DAG.Tasks: tasks wait for each other in a circle: a → b → a; remove one of these dependencies",
        ),
        (
            tasks(&["a"], json!({ "a": ["a"] })),
            "DAG.Dependencies.a[0]: the task \"a\" waits for itself; remove the dependency",
        ),
        (
            tasks(&["split", "count"], json!({ "split": ["cuont"] })),
            "DAG.Dependencies.split[0]: there is no task \"cuont\"; did you mean \"count\"?",
        ),
        (tasks(&["a"], json!({ "a": [1] })), "DAG.Dependencies.a[0]: expected a task's name, got a number"),
        (tasks(&["a"], json!({ "a": 1 })), "DAG.Dependencies.a: expected a list of tasks, got a number"),
    ] {
        assert_eq!(problems(&job), [message], "{job}");
    }
}

#[test]
fn sizes_that_only_an_attack_has_are_refused_at_once() {
    let mut job = with(json!({}));
    let tasks = (0..20_000).map(|number| (format!("t{number}"), json!({ "Timeout": "x" })));
    job["DAG"]["Tasks"] = tasks.collect::<serde_json::Map<_, _>>().into();
    let dependencies = (0..20_000).map(|number| (format!("x{number}"), json!(["y"])));
    job["DAG"]["Dependencies"] = dependencies.collect::<serde_json::Map<_, _>>().into();
    let Err(found) = read(job.to_string().as_bytes(), Format::Json) else { panic!("accepted") };
    assert_eq!((found.count(), found.findings().len()), (40_001, 100));

    let mappings = (0..20_000).map(|number| (format!("oss://b/{number}"), json!("/a".repeat(90))));
    let job = with(json!({ "InputMapping": mappings.collect::<serde_json::Map<_, _>>() }));
    assert_eq!(
        problems(&job),
        [
            "DAG.Tasks.t: there are 20000 mappings, and at most 10000 are allowed; map directories and not each of their files"
        ]
    );
}

#[test]
fn all_problems_are_found_at_once() {
    let mut job = with(json!({ "Timeout": "soon", "InstanceCount": 0, "InputMapping": { "x": "y" } }));
    job["DAG"]["Dependencies"] = json!({ "nobody": ["t"] });
    job["Priority"] = json!("high");
    assert_eq!(
        problems(&job),
        [
            "Priority: expected a whole number, got \"high\"",
            "DAG.Tasks.t.Timeout: expected seconds, got \"soon\"",
            "DAG.Dependencies.nobody[0]: there is no task \"nobody\"; name tasks of this job",
            "DAG.Tasks.t.InputMapping.x: \"x\" is not a storage location: write oss://, s3://, gs://, az:// or file:// in \
         front of it",
            "DAG.Tasks.t.InputMapping.x: the local path \"y\" is not absolute; write it from the root, such as /home/data/",
            "DAG.Tasks.t.InstanceCount: expected 1 to 1000000 instances, got 0",
        ]
    );
}

#[test]
fn what_is_odd_but_works_is_a_warning() {
    for (job, message) in [
        (
            with(json!({ "InstanceCuont": 3 })),
            "DAG.Tasks.t.InstanceCuont: is not a key known here and is ignored; did you mean InstanceCount?",
        ),
        (with(json!({ "Zebra": 3 })), "DAG.Tasks.t.Zebra: is not a key known here and is ignored; it has no effect"),
        (
            command("ls | wc"),
            "DAG.Tasks.t.Parameters.Command.CommandLine: | is passed to the program as it is, because this is not a \
             shell line; for a shell, write /bin/bash -c '...'",
        ),
        (
            with(json!({ "Parameters": { "Command": { "EnvVars": { "N": 5 } } } })),
            "DAG.Tasks.t.Parameters.Command.EnvVars.N: expected text, got a number; its text is used; put the value in \
             quotes",
        ),
        (
            with(json!({ "Parameters": { "Command": { "EnvVars": { "BATCH_COMPUTE_DAG_INSTANCE_ID": "0" } } } })),
            "DAG.Tasks.t.Parameters.Command.EnvVars.BATCH_COMPUTE_DAG_INSTANCE_ID: is set by the agent, whose value is \
             used; remove it, or use another name",
        ),
        (
            with(json!({ "Parameters": { "StderrRedirectPath": "oss://b/logs" } })),
            "DAG.Tasks.t.Parameters.StderrRedirectPath: \"oss://b/logs\" has no trailing slash and is taken for a \
             directory; end it in '/'",
        ),
        (
            with(json!({ "InstanceCount": 2, "OutputMapping": { "/o": "oss://b/o" } })),
            "DAG.Tasks.t: all instances write the same object \"oss://b/o\", and the last one stays; map a directory, \
             and let the program put its instance's number into the file's name",
        ),
        (
            with(json!({ "Mounts": { "Entries": [{ "Source": "nas://h:/d", "Destination": "/n" }] } })),
            "DAG.Tasks.t.Mounts.Entries[0].Source: does not say whether the task may write and is mounted read-only; \
             give WriteSupport (in YAML, writable) true or false",
        ),
        (
            with(json!({ "InputMapping": { "oss://b/x/": "/o/in/" }, "OutputMapping": { "/o/": "oss://b/o/" } })),
            "DAG.Tasks.t.InputMapping[\"oss://b/x/\"]: \"/o/in\" lies inside the output \"/o\"; what it shows is not \
             uploaded; keep inputs out of output directories",
        ),
        (
            with(
                json!({ "InputMapping": { "oss://b/x": "/x" }, "Parameters": { "InputMappingConfig": { "Locale": "klingon" } } }),
            ),
            "DAG.Tasks.t.InputMapping[\"oss://b/x\"]: the locale \"klingon\" is not known, and names are shown in UTF-8; \
             leave it out for UTF-8",
        ),
        (
            with(json!({ "InputMapping": { "oss://b/x": "/x" }, "OutputMapping": { "/o/": "oss://b/o/" },
                "Parameters": { "InputMappingConfig": { "Locale": "utf-16" } } })),
            "DAG.Tasks.t.InputMapping[\"oss://b/x\"]: the locale \"utf-16\" cannot be a file system's, and names are shown in \
             UTF-8; did you mean UTF-8?",
        ),
        (
            with(json!({ "Mounts": { "CacheTotalSize": 40960 } })),
            "DAG.Tasks.t.Mounts.CacheTotalSize: the most that the cache may hold of the inputs is 40960 bytes, which is very \
             little; the number is one of bytes",
        ),
    ] {
        assert_eq!(warnings(&job), [message], "{job}");
    }
}

#[test]
fn what_old_clients_write_loosely_is_accepted_quietly() {
    let job = with(json!({
        "Timeout": 60.0, "InstanceCount": null, "ClusterId": "", "Daemonize": false, "AutoCluster": "cls-1", "LogMapping": null,
        "Mounts": { "NAS": {}, "OSS": { "AccessKeyId": "", "AccessKeySecret": "", "SecurityToken": "" }, "CacheSupport": false },
        "Parameters": {
            "StdoutRedirectPath": "", "InputMappingConfig": { "Locale": "", "Lock": true },
            "Command": { "PackagePath": "", "Docker": { "Image": "" }, "EnvVars": { "A": null, "B": "",
                "BATCH_COMPUTE_DOCKER_REGISTRY_OSS_PATH": "oss://b/dockers" } }
        }
    }));
    assert_eq!(warnings(&job), [] as [&str; 0]);
    let (job, _) = read(job.to_string().as_bytes(), Format::Detect).unwrap();
    let task = &job.tasks[0];
    assert_eq!(task.timeout.unwrap().as_secs(), 60);
    assert!(task.container.is_none() && task.package.is_none() && task.stdout.is_none() && task.input_store.is_none());
    assert_eq!(task.environment.keys().collect::<Vec<_>>(), ["B", "BATCH_COMPUTE_DOCKER_REGISTRY_OSS_PATH"]);
}

#[test]
fn mounts_of_a_cluster_made_for_the_task_are_the_tasks() {
    let job = with(json!({
        "Mounts": { "Entries": [{ "Source": "oss://b/x/", "Destination": "/x/", "WriteSupport": false }] },
        "AutoCluster": { "Configs": { "Mounts": { "Locale": "gbk", "Entries": [
            { "Source": "oss://b/y/", "Destination": "/y/", "WriteSupport": true }
        ] } } }
    }));
    let (job, _) = read(job.to_string().as_bytes(), Format::Json).unwrap();
    let seen: Vec<_> = job.tasks[0]
        .inputs
        .iter()
        .map(|input| (input.target.to_str().unwrap(), input.writable, input.locale.name()))
        .collect();
    assert_eq!(seen, [("/x", false, "UTF-8"), ("/y", true, "GBK")]);
}

#[test]
fn credentials_of_the_job_are_kept_and_never_shown() {
    let job = with(json!({
        "Mounts": { "OSS": { "AccessKeyId": "LTAI-id", "AccessKeySecret": "very-secret", "SecurityToken": "a-token" } },
        "Parameters": { "Command": { "EnvVars": { "PASSWORD": "in-the-environment" } } }
    }));
    let (job, warnings) = read(job.to_string().as_bytes(), Format::Json).unwrap();
    let Some(oss::StoreSettings {
        credentials: oss::CredentialSource::Static { access_key_id, access_key_secret, security_token },
        ..
    }) = &job.tasks[0].input_store
    else {
        panic!("no credentials")
    };
    assert_eq!(access_key_id, "LTAI-id");
    assert_eq!(access_key_secret.expose(), "very-secret");
    assert_eq!(security_token.as_ref().unwrap().expose(), "a-token");
    let shown = format!("{job:?} {warnings:?}");
    assert!(shown.contains("PASSWORD"));
    for secret in ["very-secret", "a-token", "in-the-environment"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn broken_documents_are_refused_with_their_place() {
    for (text, format, message) in [
        (
            "{\"Name\": \"x\",\n \"DAG\": }",
            Format::Detect,
            "the job description is not JSON: expected value at line 2 column 9; correct it there",
        ),
        (
            "",
            Format::Json,
            "the job description is not JSON: EOF while parsing a value at line 1 column 0; correct it there",
        ),
        (
            "{\"DAG\":{}} x",
            Format::Json,
            "the job description is not JSON: trailing characters at line 1 column 12; correct it there",
        ),
    ] {
        assert_eq!(problems_of(text.as_bytes(), format), [message], "{text}");
    }
    let twice = r#"{"DAG":{"Tasks":{"a":{"Parameters":{"Command":{"CommandLine":"x"}}},"a":{"Timeout":1}}}}"#;
    assert_eq!(
        problems_of(twice.as_bytes(), Format::Json),
        ["DAG.Tasks.a: is given twice; remove one of them, or give it another name"]
    );
}
