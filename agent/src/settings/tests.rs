//! Settings from text to what is behind the edge: every key, every rule, and how files are merged.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fuse_oss::{ByteSize, Charset};
use oss::{Addressing, CredentialSource};
use proptest::prelude::*;

use super::*;
use crate::job::Output;

mod mounts;

fn settings(text: &str) -> Result<(NodeSettings, Vec<Warning>), Problems> {
    let mut findings = Findings::default();
    match tree::parse(text, &"n.yaml".into(), 0, &mut findings) {
        Some(tree) => judge(&tree, Settings::default(), findings),
        None => Err(findings.finish_about(SUBJECT).unwrap_err()),
    }
}

fn good(text: &str) -> NodeSettings {
    match settings(text) {
        Ok((settings, warnings)) => {
            assert_eq!(warnings, []);
            settings
        }
        Err(problems) => panic!("{problems}"),
    }
}

fn problems(text: &str) -> Vec<String> {
    settings(text).unwrap_err().findings().iter().map(ToString::to_string).collect()
}

fn warnings(text: &str) -> Vec<String> {
    settings(text).unwrap().1.iter().map(ToString::to_string).collect()
}

const FULL: &str = "\
identity: {cloud: aws, region: us-east-1, zone: us-east-1a, instance_id: i-0a, instance_type: c5d.9xlarge, spot: true,
  cluster: render-7, metadata_endpoint: 'http://127.0.0.1:8080/'}
scratch: /data/scratch
disks:
  wait: 2m
  volumes:
    - {what: instance-store, mount: /data}
    - {what: {serial: '0123'}, mount: /ref, existing: true}
mounts:
  - {source: 'nas://host:/dir', target: /home/nas, writable: true, version: 4.1, options: [nconnect=4], required: no, deadline: 30s}
  - {source: 'lustre://fs-x.fsx.us-east-1.amazonaws.com@tcp:/name', target: /fsx}
  - {source: oss://bucket/dir/, target: /home/input/, writable: true, locale: gbk}
  - {source: oss://bucket/one.fa, target: /home/ref/one.fa}
outputs: [{source: /home/output/, target: oss://bucket/prefix/}]
cache: {directory: /data/cache, size: 200GB, memory: 2GiB}
storage:
  oss: {endpoint: 'http://127.0.0.1:9000', region: cn-test, addressing: path, access_key_id: id, access_key_secret: hunter2}
  s3: {region: us-east-1}
environment: {N: 5, ON: yes}
user_data: {SGE_MASTER_IP_ADDRESS: 10.0.0.1}
bootstrap: {command: \"/opt/setup.sh 'a b'\", timeout: 10m, log: oss://bucket/logs/}
task:
  job: {version: 1, tasks: {a: {command: \"true\", instances: 3}, b: {command: \"false\"}}}
  job_id: job-1
  task: a
  instance: 2
report: {directory: oss://bucket/node-logs/}
at_end: poweroff
poweroff_deadline: 30m
";

#[test]
fn every_key_is_read() {
    let node = good(FULL);
    let some = |text: &str| Some(text.to_owned());
    let identity = Identity {
        cloud: Some(Cloud::Aws),
        region: some("us-east-1"),
        zone: some("us-east-1a"),
        instance_id: some("i-0a"),
        instance_type: some("c5d.9xlarge"),
        spot: Some(true),
        cluster: some("render-7"),
        metadata_endpoint: some("http://127.0.0.1:8080"),
    };
    assert_eq!(node.identity, identity);
    assert_eq!(node.scratch, Some("/data/scratch".into()));
    assert_eq!(
        node.disks.request.to_string(),
        r#"{"volumes":[{"what":"instance-store","mount":"/data"},{"what":{"serial":"0123"},"mount":"/ref","existing":true}],"wait":120}"#
    );
    let mount = |source, target: &str, writable| NodeMount {
        source,
        target: target.into(),
        writable,
        required: true,
        deadline: Duration::from_secs(120),
    };
    let object = |text: &str, locale: Option<&str>| MountSource::Object {
        location: text.parse().unwrap(),
        locale: locale.map(str::to_owned),
    };
    let nas = MountSource::Network(NetworkFileSystem::Nfs {
        host: "host".to_owned(),
        path: "/dir".into(),
        version: NfsVersion::V4_1,
        options: vec!["nconnect=4".to_owned()],
    });
    let lustre = MountSource::Network(NetworkFileSystem::Lustre {
        device: "fs-x.fsx.us-east-1.amazonaws.com@tcp:/name".to_owned(),
        options: vec![],
    });
    let expected = [
        NodeMount { required: false, deadline: Duration::from_secs(30), ..mount(nas, "/home/nas", true) },
        mount(lustre, "/fsx", false),
        mount(object("oss://bucket/dir/", Some("GBK")), "/home/input", true),
        mount(object("oss://bucket/one.fa", None), "/home/ref/one.fa", false),
    ];
    assert_eq!(node.mounts, expected);
    let target = "oss://bucket/prefix/".parse().unwrap();
    assert_eq!(node.outputs, [Output { source: "/home/output".into(), target, locale: Charset::UTF_8 }]);
    let cache = CacheSettings {
        directory: Some("/data/cache".into()),
        size: Some(ByteSize::new(200_000_000_000)),
        memory: Some(ByteSize::new(2 << 30)),
    };
    assert_eq!(node.cache, cache);
    let oss = &node.storage.oss;
    assert_eq!((oss.endpoint.as_deref(), oss.region.as_deref()), (Some("http://127.0.0.1:9000"), Some("cn-test")));
    assert_eq!(oss.addressing, Addressing::Path);
    let CredentialSource::Static { access_key_id, access_key_secret, security_token: None } = &oss.credentials else {
        panic!("{oss:?}");
    };
    assert_eq!((access_key_id.as_str(), access_key_secret.expose()), ("id", "hunter2"));
    assert_eq!(node.storage.s3.region.as_deref(), Some("us-east-1"));
    assert_eq!((node.environment["N"].as_str(), node.environment["ON"].as_str()), ("5", "yes"));
    assert_eq!(node.user_data["SGE_MASTER_IP_ADDRESS"], "10.0.0.1");
    let bootstrap = Bootstrap {
        program: Program { command: vec!["/opt/setup.sh".to_owned(), "a b".to_owned()] },
        deadline: Duration::from_secs(600),
        log: Some("oss://bucket/logs/".parse().unwrap()),
    };
    assert_eq!(node.bootstrap.as_ref(), Some(&bootstrap));
    let task = node.task.as_ref().unwrap();
    assert_eq!((task.job_id.as_deref(), task.task.as_deref(), task.instance), (Some("job-1"), Some("a"), 2));
    let TaskSource::Inline(job) = &task.source else { panic!("{task:?}") };
    assert!(crate::job::read(job.as_bytes(), crate::job::Format::Json).is_ok());
    assert_eq!(node.report.directory, Some("oss://bucket/node-logs/".parse().unwrap()));
    assert_eq!(node.at_end, AtEnd::PowerOff { deadline: Duration::from_secs(1800) });
    assert!(!format!("{node:?}").contains("hunter2"));
    let job = "task: {job: {DAG: {Tasks: {a: {Mounts: {OSS: {AccessKeyId: a, AccessKeySecret: hunter2}}, \
               Parameters: {Command: {CommandLine: x}}}}}}}";
    let (node, _) = settings(job).unwrap();
    assert!(matches!(&node.task.as_ref().unwrap().source, TaskSource::Inline(job) if job.contains("hunter2")));
    assert!(!format!("{node:?}").contains("hunter2"));
}

#[test]
fn a_job_in_the_settings_means_what_it_means_in_a_file() {
    let job = "\
version: 1
name: 007
tasks:
  a:
    command: [echo, 5, yes, 1.10, 0x10, ~x, '7']
    environment: {N: 5, ON: yes, V: 1.10, F: 1.5, Z: 007, T: true, Q: '5', E: '', L: 1e3, B: 18446744073709551616}
    inputs: [{source: oss://b/d/, target: /home/x, writable: yes}, {source: oss://b/e/, target: /home/y, writable: true}]
    instances: 3
    timeout: 90
  b:
    command: |
      /bin/sh -c 'echo a
      echo b'
    timeout: 1h30m
    after: [a]
";
    let (direct, _) = crate::job::read(job.as_bytes(), crate::job::Format::Yaml).unwrap();
    let indented: String = job.lines().map(|line| format!("    {line}\n")).collect();
    let node = good(&format!("task:\n  task: b\n  job:\n{indented}"));
    let TaskSource::Inline(text) = node.task.unwrap().source else { panic!() };
    let (inline, _) = crate::job::read(text.as_bytes(), crate::job::Format::Detect).unwrap();
    assert_eq!(inline, direct);
    for task in [&inline.tasks[0], &direct.tasks[0]] {
        assert_eq!((task.environment["ON"].as_str(), task.environment["V"].as_str()), ("yes", "1.10"));
    }
}

#[test]
fn a_job_may_be_made_from_an_app() {
    let job = "task: {job: {Type: App, App: {AppName: copy, Inputs: {from: oss://b/in/}}}, ";
    let app = "app: {Name: copy, CommandLine: 'cp -r ${from} /tmp', InputParameters: {from: {LocalPath: /home/in/}}}}";
    let node = good(&format!("{job}{app}"));
    let task = node.task.unwrap();
    let (TaskSource::Inline(job_text), Some(TaskSource::Inline(app_text))) = (&task.source, &task.app) else {
        panic!()
    };
    let format = crate::job::Format::Detect;
    let (read, _) = crate::job::read_with_app(job_text.as_bytes(), format, Some(app_text.as_bytes())).unwrap();
    assert_eq!(read.tasks[0].command, ["cp", "-r", "/home/in/", "/tmp"]);
    // What lies elsewhere is read when its turn comes.
    let node = good(&format!("{job}app_file: /opt/app.json}}"));
    assert_eq!(node.task.unwrap().app, Some(TaskSource::File("/opt/app.json".into())));
    let node = good(&format!("{job}app_object: oss://b/app.json}}"));
    assert_eq!(node.task.unwrap().app, Some(TaskSource::Object("oss://b/app.json".parse().unwrap())));
    assert_eq!(
        problems(&format!("{job}app: {{CommandLine: 'cp ${{form}}', InputParameters: {{from: {{}}}}}}}}")),
        ["task.app.CommandLine: \"${form}\" is no parameter of the App (line 1 of n.yaml); did you mean ${from}?"]
    );
    assert!(problems(&format!("{job}app_file: /a, app_object: oss://b/c}}"))[0].contains("names more than one App"));
    assert!(
        problems(&format!("{job}instance: 0}}"))[0].starts_with("task.job.App: the App's description is not there")
    );
}

#[test]
fn nothing_needs_to_be_said() {
    let node = good("");
    assert!(node.mounts.is_empty() && node.disks.is_empty() && node.task.is_none() && node.bootstrap.is_none());
    assert_eq!(node.identity, Identity::default());
    let bare = good("identity: {cloud: auto, region:, zone:}\nmounts:\nbootstrap: {command: [a, b c]}\n");
    assert_eq!(bare.identity, Identity::default());
    assert_eq!(bare.bootstrap.unwrap().deadline, Duration::from_secs(1800));
}

#[test]
fn a_report_says_what_would_happen_and_no_secrets() {
    let report = SettingsReport::new(&good(FULL), &[]).to_string();
    let expected = "\
node        AWS, region us-east-1, zone us-east-1a, instance i-0a, type c5d.9xlarge, cluster render-7, metadata service \
http://127.0.0.1:8080, spot
scratch     /data/scratch
volume      instance-store → /data (formatted when provably empty)
volume      {\"serial\":\"0123\"} → /ref (as it is, never formatted)
mount       /home/nas         host:/dir                                   NFS 4.1, changes are written to it, nconnect=4, may be missing, within 30s
mount       /fsx              fs-x.fsx.us-east-1.amazonaws.com@tcp:/name  Lustre, read-only, required, within 2m
mount       /home/input       oss://bucket/dir/                           directory, changes stay local and are dropped, names in GBK, required, within 2m
mount       /home/ref/one.fa  oss://bucket/one.fa                         one file, read-only, required, within 2m
output      /home/output → oss://bucket/prefix/
cache       /data/cache, 200GB; 2GiB in memory
storage     oss:// http://127.0.0.1:9000 in cn-test, with an access key that was given
storage     s3:// the endpoint of us-east-1, with environment, files or the instance's role
variables   N, ON
user data   SGE_MASTER_IP_ADDRESS
bootstrap   /opt/setup.sh 'a b' (stopped after 10m, output to oss://bucket/logs/)
task        instance 2 of task a of the job in the settings
report      oss://bucket/node-logs/
at the end  the node is powered off: at once when everything has been uploaded, else after 30m
";
    assert_eq!(report, expected);
}

#[test]
fn rules_are_kept_with_place_and_line() {
    for (text, message) in [
        (
            "scratch: data",
            "scratch: the local path \"data\" is not absolute (line 1 of n.yaml); write it from the root, such as /home/data/",
        ),
        (
            "cache: {size: big}",
            "cache.size: \"big\" is not a size: write a number with B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, \
             TiB (powers of 1024) (line 1 of n.yaml)",
        ),
        ("cache: {memory: 1MiB}", "cache.memory: 1MiB is too little (line 1 of n.yaml); write at least 32MiB"),
        ("disks: {wait: 2h}", "disks.wait: expected 0 to 3600 seconds, got 7200 (line 1 of n.yaml)"),
        (
            "storage: {oss: {access_key_id: x}}",
            "storage.oss.access_key_id: is given without access_key_secret (line 1 of n.yaml); add it",
        ),
        (
            "storage: {oss: {security_token: hunter2}}",
            "storage.oss.security_token: is given without an access key (line 1 of n.yaml); add access_key_id and \
             access_key_secret",
        ),
        (
            "storage: {s3: {endpoint: 'https://user:hunter2@host'}}",
            "storage.s3.endpoint: is no endpoint (line 1 of n.yaml); write it as https://HOST, without user or password",
        ),
        (
            "identity: {region: a b}",
            "identity.region: \"a b\" cannot be a name (line 1 of n.yaml); use letters, digits, '-', '_' and '.', at \
             most 128 of them",
        ),
        (
            "identity: {metadata_endpoint: 'http://x/y'}",
            "identity.metadata_endpoint: \"http://x/y\" is no address of a metadata service (line 1 of n.yaml); write it as \
             http://HOST or http://HOST:PORT",
        ),
        (
            "bootstrap: {command: ''}",
            "bootstrap.command: names no program (line 1 of n.yaml); write the program first, such as \"python main.py\"",
        ),
        ("bootstrap: {timeout: 5m}", "bootstrap: the key command is missing (line 1 of n.yaml); add it"),
        (
            "bootstrap: {command: x, timeout: 8d}",
            "bootstrap.timeout: expected 1 to 604800 seconds, got 691200 (line 1 of n.yaml)",
        ),
        ("task: {}", "task: names no job (line 1 of n.yaml); write one of job, file and object"),
        (
            "task: {file: /a, object: oss://b/c}",
            "task: names more than one job (line 1 of n.yaml); keep one of job, file and object",
        ),
        (
            "task: {object: oss://b/c/}",
            "task.object: \"oss://b/c/\" is a directory (line 1 of n.yaml); name the one object that is the job description",
        ),
        (
            "task: {file: /a, job_id: ../x}",
            "task.job_id: the id \"../x\" holds '/'; use letters, digits, '-' and '_' (line 1 of n.yaml)",
        ),
        (
            "task:\n  job:\n    version: 1\n    tasks:\n      a:\n        command: x\n        timeot: 3\n",
            "task.job.tasks.a.timeot: the key \"timeot\" is not known (line 7 of n.yaml); did you mean timeout?",
        ),
        (
            "task: {job: {version: 1, tasks: {a: {command: x}, b: {command: y}}}}",
            "task: the job has 2 tasks (line 1 of n.yaml); add task: with one of a, b",
        ),
        (
            "task: {task: cuont, job: {version: 1, tasks: {count: {command: x}}}}",
            "task.task: the job has no task \"cuont\" (line 1 of n.yaml); did you mean count?",
        ),
        (
            "task: {instance: 3, job: {version: 1, tasks: {a: {command: x, instances: 3}}}}",
            "task.instance: the task \"a\" has 3 instances, and they count from 0 (line 1 of n.yaml); name one of them",
        ),
        (
            "report: {directory: bucket/x}",
            "report.directory: \"bucket/x\" is not a storage location: write oss://, s3://, gs://, az:// or file:// in \
             front of it (line 1 of n.yaml)",
        ),
        (
            "disks: {volumes: [{what: instance-store}]}",
            "disks.volumes[0]: the key mount is missing (line 1 of n.yaml); add it",
        ),
        (
            "disks: {volumes: [{what: instance-stor, mount: /data}]}",
            "disks.volumes[0].what: \"instance-stor\" is not known (line 1 of n.yaml); did you mean instance-store?",
        ),
        (
            "disks: {volumes: [{what: {serial: 5}, mount: /data}]}",
            "disks.volumes[0].what.serial: invalid type: integer `5`, expected a string (line 1 of n.yaml); correct the value; a text \
             that looks like a number needs quotes",
        ),
        (
            "disks: {volumes: [{what: instance-store, mount: /data, exsting: true}]}",
            "disks.volumes[0].exsting: the key \"exsting\" is not known (line 1 of n.yaml); did you mean existing?",
        ),
        (
            "disks: {volumes: [{what: instance-store, mount: /data, existing: true}]}",
            "disks.volumes[0]: `existing` needs one disk that is named: by device, serial, by-id, volume-id or size (line 1 of n.yaml)",
        ),
        (
            "environment: {A=B: x}",
            "environment[\"A=B\"]: \"A=B\" cannot be the name of a variable (line 1 of n.yaml); use letters, digits and '_'",
        ),
    ] {
        assert_eq!(problems(text), [message], "{text}");
    }
}

#[test]
fn scratch_is_on_the_first_volume_that_is_made_for_the_node() {
    for (text, expected) in [
        ("disks: {volumes: [{what: instance-store, mount: /data}]}", Some("/data/batch-agent")),
        ("disks: {volumes: [{what: instance-store, mount: /data, each: true}]}", Some("/data/0/batch-agent")),
        (
            "disks: {volumes: [{what: {serial: s}, mount: /ref, existing: true}, {what: only-empty, mount: /b}]}",
            Some("/b/batch-agent"),
        ),
        ("disks: {volumes: [{what: {serial: s}, mount: /ref, existing: true}]}", None),
        ("disks: {volumes: [{what: instance-store, mount: /data}]}\nscratch: /s", None),
        ("", None),
    ] {
        let node = good(text);
        assert_eq!(node.disks.scratch.as_deref(), expected.map(Path::new), "{text}");
    }
}

#[test]
fn what_is_odd_is_a_warning() {
    for (text, warning) in [
        (
            "at_end: poweroff",
            "at_end: means nothing without a task, whose end it waits for (line 1 of n.yaml); add a task, or remove it",
        ),
        (
            "poweroff_deadline: 2h",
            "poweroff_deadline: means nothing on a node that stays (line 1 of n.yaml); add at_end: poweroff, or remove it",
        ),
        (
            "environment: {A: x}\nuser_data: {A: y}",
            "user_data.A: is also in environment, whose value is used (line 2 of n.yaml); remove one of them",
        ),
        (
            "report: {directory: oss://b/logs}",
            "report.directory: \"oss://b/logs\" has no trailing slash and is taken for a directory (line 1 of n.yaml); end it in '/'",
        ),
        (
            "task: {job: {DAG: {Tasks: {a: {Parameters: {Command: {CommandLine: x}}, Nonsense: 1}}}}}",
            "task.job.DAG.Tasks.a.Nonsense: is not a key known here and is ignored (line 1 of n.yaml); it has no effect",
        ),
    ] {
        assert_eq!(warnings(text), [warning], "{text}");
    }
}

#[test]
fn files_are_merged_and_each_finding_names_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, mode| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let source = SettingsSource::Directory(directory.path().to_owned());
    let read = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        read_with(&source, &overrides, Settings::default())
    };
    assert!(matches!(read(&[]), Err(SettingsError::Missing { .. })));
    assert_eq!(read(&["scratch=/x"]).unwrap().0.scratch, Some("/x".into()));

    let main = write("node.yaml", "cache: {size: 1GB, memory: 1GB}\nscratch: /a\n", 0o644);
    write("node.yaml.d/10-a.yaml", "cache: {size: 2GB}\n", 0o644);
    let last = write("node.yaml.d/20-b.yaml", "# later\nscratch:\ncache: {size: 3GB}\n", 0o644);
    let (settings, _) = read(&["cache.memory=2GB"]).unwrap();
    let (size, memory) = (ByteSize::new(3_000_000_000), ByteSize::new(2_000_000_000));
    assert_eq!((settings.cache.size, settings.cache.memory, settings.scratch), (Some(size), Some(memory), None));

    write("node.yaml.d/20-b.yaml", "# later\nscrach: /x\ncache: {size: 3XB}\n", 0o644);
    let text = read(&["identity.spot=maybe"]).unwrap_err().to_string();
    let last = last.display();
    assert_eq!(
        text,
        format!(
            "the settings have 3 problems:\n  scrach: the key \"scrach\" is not known (line 2 of {last}); did you mean \
             scratch?\n  cache.size: \"3XB\" is not a size: write a number with B, KB, MB, GB, TB (powers of 1000) or KiB, \
             MiB, GiB, TiB (powers of 1024) (line 3 of {last})\n  identity.spot: expected true or false, got text (--set \
             identity.spot); correct the value"
        )
    );

    write("node.yaml.d/20-b.yaml", "", 0o600);
    let key = "storage: {s3: {access_key_id: a, access_key_secret: hunter2}}\n";
    write("node.yaml", key, 0o640);
    let text = read(&[]).unwrap_err().to_string();
    let main = main.display();
    assert_eq!(
        text,
        format!(
            "{main} holds a storage key and can be read by others; run: chmod go-rwx {main}; then replace the key, which \
             may have been seen"
        )
    );
    write("node.yaml", key, 0o600);
    assert!(read(&[]).is_ok());
}

proptest! {
    #[test]
    fn no_settings_break_the_reader_and_no_secret_gets_out(
        cuts in proptest::collection::vec((0..2600_usize, 0..12_usize, "[a-z{}:,\\[\\]/'\" -]{0,4}"), 1..4)
    ) {
        let mut text = FULL.to_owned();
        for (at, length, with) in cuts {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            text.replace_range(at..end, &with);
        }
        // Cut apart, a secret is no secret any more; moved to another place, it is the author's mistake.
        prop_assume!(text.contains("access_key_secret: hunter2}"));
        match settings(&text) {
            Ok((settings, warnings)) => {
                let shown = format!("{settings:?} {warnings:?}");
                prop_assert!(!shown.contains("hunter2"));
                prop_assert!(!SettingsReport::new(&settings, &warnings).to_string().contains("hunter2"));
            }
            Err(problems) => prop_assert!(!problems.to_string().contains("hunter2"), "{}", problems),
        }
    }
}

#[test]
fn who_is_told_is_checked_and_no_secret_is_shown() {
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let text = format!(
        "report:\n  webhook: {{url: 'https://hooks.example.com/token', secret: {secret}, events: [OnInstanceFailed]}}\n  \
         topic: {{name: t, endpoint: 'http://1.mns.cn-x.aliyuncs.com/'}}\n  prometheus: '[::1]:9464'\n"
    );
    let node = good(&text);
    let webhook = node.report.webhook.as_ref().unwrap();
    assert!(webhook.webhook.is_signed() && webhook.webhook.events == ["OnInstanceFailed"]);
    assert_eq!(node.report.prometheus.unwrap().port(), 9464);
    let shown = format!("{node:?} {}", SettingsReport::new(&node, &[]));
    assert!(
        shown.contains("webhook at https://hooks.example.com; topic t at http://1.mns.cn-x.aliyuncs.com"),
        "{shown}"
    );
    assert!(!shown.contains("token") && !shown.contains("MfKQ"), "{shown}");
    for (text, problem) in [
        ("report: {prometheus: '0.0.0.0:9464'}", "can be reached by others"),
        ("report: {prometheus: here}", "is no address"),
        ("report: {webhook: {url: 'hooks.example.com/token'}}", "report.webhook.url: is no http"),
        ("report: {webhook: {url: 'http://a/', secret: short}}", "report.webhook.secret: is shorter than 16 bytes"),
        (
            "report: {webhook: {url: 'http://a/', secret_file: /etc/batch-agent/x, events: [Never]}}",
            "names no event that is ever told",
        ),
        ("report: {topic: {name: a/b, endpoint: 'http://a'}}", "is no name of a topic"),
        ("report: {topic: {name: a, endpoint: 'a b'}}", "is no address of the message service"),
    ] {
        let said = problems(text).join("\n");
        assert!(said.contains(problem) && !said.contains("token"), "{text}: {said}");
    }
    assert!(warnings("report: {webhook: {url: 'http://a/'}}").join("\n").contains("is not signed"));
}
