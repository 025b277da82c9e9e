//! The settings of a node as a person meets them (`batch-agent check --config`), and who the node is by the doubles of both
//! clouds' metadata services.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use batch_agent::identity::{Note, Sources, complete_storage, discover};
use batch_agent::settings::{Cloud, Identity, SettingsSource, read_with};
use oss::{ErrorKind, Settings};
use tempfile::TempDir;
use tests::agent::Node;
use tests::double::AccessKey;
use tests::imds::Imds;

/// Nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:1";

fn file(node: &Node, text: &str, mode: u32) -> PathBuf {
    let path = node.path().join("node.yaml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn check(node: &Node, path: &Path, more: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        node.agent().arg("check").arg("--config").arg(path).args(more).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn good_settings_are_summed_up() {
    let node = Node::new();
    let text = "\
identity: {cloud: alibaba, region: cn-hangzhou}
disks: {volumes: [{what: instance-store, mount: /data}]}
mounts:
  - {source: 'nas://n.example:/d', target: /home/nas, writable: true}
  - {source: oss://bucket/in/, target: /home/in/, deadline: 1m}
storage: {oss: {access_key_id: LTAI5t, access_key_secret: hunter2}}
environment: {TOKEN: hunter2}
bootstrap: {command: /opt/setup.sh}
";
    let path = file(&node, text, 0o600);
    let (status, stdout, stderr) = check(&node, &path, &["--set", "cache.size=200GB", "-vv"]);
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
    let expected = "\
node        Alibaba Cloud, region cn-hangzhou
scratch     /data/batch-agent
volume      instance-store → /data (formatted when provably empty)
mount       /home/nas  n.example:/d      NFS 3, changes are written to it, required, within 2m
mount       /home/in   oss://bucket/in/  directory, read-only, required, within 1m
cache       below scratch, 200GB; a quarter of the machine's memory, at most 2GiB in memory
storage     oss:// the endpoint of this instance's region, with an access key that was given
storage     s3:// the endpoint of this instance's region, with environment, files or the instance's role
variables   TOKEN
bootstrap   /opt/setup.sh (stopped after 30m)
task        none: the node is prepared for another scheduler
";
    assert_eq!(stdout, expected);

    let (status, json, _) = check(&node, &path, &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((status, &report["mounts"][0]["target"]), (0, &"/home/nas".into()));
    for text in [stdout, json] {
        assert!(!text.contains("hunter2") && !text.contains("LTAI5t"), "{text}");
    }
}

#[test]
fn bad_settings_are_refused_with_all_that_is_wrong() {
    let node = Node::new();
    let text = "\
mounts:
  - {source: 'smb://h/d', target: 'E:'}
  - {source: oss://bucket/in/, target: /proc/in, writeable: true}
storage: {oss: {access_key_id: LTAI5t, access_key_secret: hunter2, region: [hunter2]}}
";
    let path = file(&node, text, 0o600);
    let shown = path.display();
    let (status, stdout, stderr) = check(&node, &path, &["-vv"]);
    assert_eq!((status, stdout.as_str()), (78, ""));
    let expected = format!(
        "batch-agent: the settings have 5 problems:
  mounts[0].source: \"smb://h/d\" is a mount for Windows, and this node runs Linux (line 2 of {shown}); write \
         nas://HOST:/DIRECTORY/ for NFS
  mounts[0].target: the local path \"E:\" is of the Windows form, and this node runs Linux (line 2 of {shown}); write an absolute \
         path such as /home/data/
  mounts[1].writeable: the key \"writeable\" is not known (line 3 of {shown}); did you mean writable?
  mounts[1].target: the local path \"/proc/in\" belongs to the system (line 3 of {shown}); use a directory of its own, such as \
         /home/data/
  storage.oss.region: expected text, got a list (line 4 of {shown}); write text, in quotes if need be
"
    );
    assert_eq!(stderr, expected);

    for (mode, cause, remedy) in [
        (0o644, "holds a storage key and can be read by others", "chmod go-rwx"),
        (0o622, "can be changed by others", "chmod go-w"),
    ] {
        let path = file(&node, "storage: {oss: {access_key_id: a, access_key_secret: hunter2}}", mode);
        let (status, _, stderr) = check(&node, &path, &[]);
        assert_eq!(status, 78);
        assert!(stderr.contains(cause) && stderr.contains(remedy) && !stderr.contains("hunter2"), "{stderr}");
    }
    let (status, _, stderr) = check(&node, Path::new("/nonexistent/node.yaml"), &[]);
    assert!(status == 78 && stderr.contains("cannot read the settings /nonexistent/node.yaml"), "{stderr}");
    let path = file(&node, "", 0o600);
    let (status, _, stderr) = check(&node, &path, &["--set", "storage.oss.access_key_secret=hunter2"]);
    assert!(status == 78 && stderr.contains("every user of the machine can read it"), "{stderr}");
    assert!(!stderr.contains("hunter2"), "{stderr}");
}

#[test]
fn somebody_else_s_file_is_not_believed() {
    assert!(nix::unistd::geteuid().is_root(), "this test gives files away: run it as root");
    let node = Node::new();
    let path = file(&node, "scratch: /data\n", 0o600);
    std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
    let (status, _, stderr) = check(&node, &path, &[]);
    assert!(status == 78 && stderr.contains("belongs to the user 65534"), "{stderr}");

    // A link in a directory of root's leads to a file in a directory of somebody else's.
    let theirs = node.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    let target = theirs.join("node.yaml");
    fs::write(&target, "scratch: /data\n").unwrap();
    std::os::unix::fs::chown(&theirs, Some(65_534), None).unwrap();
    let link = node.path().join("link.yaml");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let (status, _, stderr) = check(&node, &link, &[]);
    assert!(status == 78 && stderr.contains(&format!("{} belongs to the user 65534", theirs.display())), "{stderr}");
}

#[test]
fn the_command_line_is_checked_and_the_schema_is_one() {
    let node = Node::new();
    let run = |arguments: &[&str]| {
        let output = node.agent().args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(run(&["check"]).0, 64);
    assert_eq!(run(&["check", "job.json", "--config", "node.yaml"]).0, 64);
    assert_eq!(run(&["check", "job.json", "--set", "a=b"]).0, 64);
    let (status, schema) = run(&["schema", "--node"]);
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    assert_eq!((status, &schema["title"]), (0, &"batch-agent node".into()));
    let (_, schema) = run(&["schema"]);
    assert!(schema.contains("\"batch-agent job\""));
}

#[test]
fn the_example_is_accepted() {
    let node = Node::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/node.yaml");
    let path = file(&node, &fs::read_to_string(example).unwrap(), 0o600);
    let (status, stdout, stderr) = check(&node, &path, &[]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(!stdout.contains("warnings"), "{stdout}");
}

#[test]
fn files_of_a_directory_are_merged() {
    let directory = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    };
    write("node.yaml", "identity: {cloud: aws, cluster: a}\nenvironment: {A: 1, B: 2}\n");
    write("node.yaml.d/50-cluster.yaml", "identity: {cluster: b}\nenvironment: {B: 3}\n");
    write("node.yaml.d/README.md", "no settings at all: [");
    let source = SettingsSource::Directory(directory.path().to_owned());
    let overrides = ["identity.cluster=c".to_owned(), "environment.C=4".to_owned()];
    let (settings, warnings) = read_with(&source, &overrides, Settings::default()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!((settings.identity.cloud, settings.identity.cluster.as_deref()), (Some(Cloud::Aws), Some("c")));
    let environment: Vec<_> = settings.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(environment, ["A=1", "B=3", "C=4"]);
}

/// Sources with doubles for the services, and a firmware that says `vendor`.
fn sources(vendor: &str, alibaba: &str, aws: &str) -> (Sources, TempDir) {
    let dmi = TempDir::new().unwrap();
    fs::write(dmi.path().join("sys_vendor"), format!("{vendor}\n")).unwrap();
    let sources = Sources {
        dmi: dmi.path().to_owned(),
        alibaba: Some(alibaba.to_owned()),
        aws: Some(aws.to_owned()),
        ..Sources::default()
    };
    (sources, dmi)
}

fn identity(cloud: Cloud, names: [&str; 4], spot: Option<bool>) -> Identity {
    let [region, zone, instance_id, instance_type] = names.map(|name| Some(name.to_owned()));
    Identity { cloud: Some(cloud), region, zone, instance_id, instance_type, spot, ..Identity::default() }
}

fn texts(notes: &[Note]) -> Vec<&str> {
    notes.iter().map(|note| note.text.as_str()).collect()
}

#[tokio::test]
async fn both_clouds_say_who_the_node_is() {
    let (alibaba, aws) = (Imds::aliyun(), Imds::aws());
    aws.set("instance-life-cycle", Some("spot"));
    let on_alibaba = identity(Cloud::Alibaba, ["cn-test", "cn-test-a", "i-double", "ecs.g7.large"], None);
    let on_aws = identity(Cloud::Aws, ["xx-test-1", "xx-test-1a", "i-0double", "m7.large"], Some(true));
    // By the firmware, and, where it says nothing of use, by who answers.
    for (vendor, at_alibaba, at_aws, expected) in [
        ("Alibaba Cloud", alibaba.endpoint(), aws.endpoint(), &on_alibaba),
        ("Amazon EC2", alibaba.endpoint(), aws.endpoint(), &on_aws),
        ("QEMU", alibaba.endpoint(), NOWHERE.to_owned(), &on_alibaba),
        ("QEMU", NOWHERE.to_owned(), aws.endpoint(), &on_aws),
        // One service at both addresses is still only one cloud's.
        ("QEMU", aws.endpoint(), aws.endpoint(), &on_aws),
        ("QEMU", alibaba.endpoint(), alibaba.endpoint(), &on_alibaba),
    ] {
        let (sources, _dmi) = sources(vendor, &at_alibaba, &at_aws);
        let (found, notes) = discover(&Identity::default(), &sources).await;
        assert_eq!((&found, texts(&notes)), (expected, vec![]), "{vendor}");
    }
    aws.set("instance-life-cycle", Some("on-demand"));
    alibaba.set("instance/spot/termination-time", Some("2037-01-01T00:00:00Z"));
    for (vendor, spot) in [("Alibaba Cloud", true), ("Amazon EC2", false)] {
        let (sources, _dmi) = sources(vendor, &alibaba.endpoint(), &aws.endpoint());
        assert_eq!(discover(&Identity::default(), &sources).await.0.spot, Some(spot), "{vendor}");
    }
    for imds in [&alibaba, &aws] {
        assert!(imds.requests().iter().all(|request| [200, 400, 404, 405].contains(&request.status)));
    }
}

#[tokio::test]
async fn what_was_given_is_not_asked_for_and_not_changed() {
    let aws = Imds::aws();
    let given = Identity {
        cloud: Some(Cloud::Aws),
        region: Some("eu-west-1".to_owned()),
        instance_id: Some("i-mine".to_owned()),
        cluster: Some("c".to_owned()),
        spot: Some(false),
        metadata_endpoint: Some(aws.endpoint()),
        ..Identity::default()
    };
    let (sources, _dmi) = sources("Alibaba Cloud", NOWHERE, NOWHERE);
    let (found, notes) = discover(&given, &sources).await;
    let expected =
        Identity { zone: Some("xx-test-1a".to_owned()), instance_type: Some("m7.large".to_owned()), ..given.clone() };
    assert_eq!((&found, texts(&notes)), (&expected, vec![]));
    let asked: Vec<_> = aws.requests().into_iter().map(|request| request.path).collect();
    assert!(asked.iter().all(|path| !path.contains("region") && !path.contains("life-cycle")), "{asked:?}");
    assert_eq!(asked.iter().filter(|path| path.ends_with("/token")).count(), 1, "{asked:?}");

    let all = Identity { zone: Some("z".to_owned()), instance_type: Some("t".to_owned()), ..given };
    let before = aws.requests().len();
    assert_eq!(discover(&all, &sources).await, (all, vec![]));
    assert_eq!(aws.requests().len(), before, "nothing was unknown");
}

#[tokio::test]
async fn a_service_that_comes_up_late_is_waited_for() {
    let alibaba = Imds::aliyun();
    alibaba.fail_with(Some(503));
    let (sources, _dmi) = sources("Alibaba Cloud", &alibaba.endpoint(), NOWHERE);
    let given = Identity { spot: Some(false), ..Identity::default() };
    let late = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        alibaba.fail_with(None);
    };
    let ((found, notes), ()) = tokio::join!(discover(&given, &sources), late);
    let expected = identity(Cloud::Alibaba, ["cn-test", "cn-test-a", "i-double", "ecs.g7.large"], Some(false));
    assert_eq!((found, texts(&notes)), (expected, vec![]));
}

#[tokio::test]
async fn what_cannot_be_found_out_is_said() {
    // Nobody answers, and the firmware knows nothing.
    let (nowhere, _dmi) = sources("QEMU", NOWHERE, NOWHERE);
    let (found, notes) = discover(&Identity::default(), &nowhere).await;
    assert_eq!(found, Identity { cloud: Some(Cloud::None), ..Identity::default() });
    assert!(!notes[0].is_warning && notes[0].text.starts_with("no cloud was found"), "{notes:?}");

    // Two clouds at once cannot be.
    let (alibaba, aws) = (Imds::aliyun(), Imds::aws());
    let (both, _dmi) = sources("QEMU", &alibaba.endpoint(), &aws.endpoint());
    let (found, notes) = discover(&Identity::default(), &both).await;
    assert_eq!(found.cloud, Some(Cloud::None));
    assert!(notes[0].is_warning && notes[0].text.contains("set identity.cloud"), "{notes:?}");

    // Some other cloud's service at the same address, and answers that make no sense.
    aws.set("instance-id", Some("ocid1.instance"));
    let (other, _dmi) = sources("QEMU", NOWHERE, &aws.endpoint());
    assert_eq!(discover(&Identity::default(), &other).await.0.cloud, Some(Cloud::None));
    alibaba.set("zone-id", Some("<html>hello\nworld"));
    alibaba.set("instance/instance-type", None);
    let (odd, _dmi) = sources("Alibaba Cloud", &alibaba.endpoint(), NOWHERE);
    let (found, notes) = discover(&Identity::default(), &odd).await;
    assert_eq!((found.region.as_deref(), found.zone, found.instance_type), (Some("cn-test"), None, None));
    assert_eq!(
        texts(&notes),
        [
            "the metadata service's zone makes no sense: \"<html>hello\\nworld\"",
            "the metadata service does not say the instance type",
        ]
    );

    // The service is turned off, which does not change by asking again.
    let off = Imds::aws();
    off.fail_with(Some(403));
    let (turned_off, _dmi) = sources("Amazon EC2", NOWHERE, &off.endpoint());
    let (found, notes) = discover(&Identity::default(), &turned_off).await;
    assert_eq!((found.cloud, off.requests().len()), (Some(Cloud::Aws), 1));
    assert!(
        notes[0].is_warning && notes[0].text.contains("answered 403 Forbidden when asked for a token"),
        "{notes:?}"
    );

    // The firmware names the cloud, but nobody is there for as long as may be waited.
    let (gone, _dmi) = sources("Amazon EC2", NOWHERE, NOWHERE);
    let gone = Sources { deadline: Duration::from_millis(700), ..gone };
    let (found, notes) = discover(&Identity::default(), &gone).await;
    assert_eq!(found.cloud, Some(Cloud::Aws));
    assert!(
        notes[0].is_warning && notes[0].text.contains("there is no metadata service at http://127.0.0.1:1"),
        "{notes:?}"
    );
    assert!(notes[0].text.contains("unknown stay: region, zone, instance id"), "{notes:?}");
}

#[tokio::test]
async fn storage_is_reached_as_the_node_s_own_role() {
    let aws = Imds::aws();
    aws.set_role("worker", &AccessKey::new("ASIA", "hidden").with_token("t", Duration::from_secs(3600)));
    let given = Identity { metadata_endpoint: Some(aws.endpoint()), ..Identity::default() };
    let (sources, _dmi) = sources("Amazon EC2", NOWHERE, NOWHERE);
    let (found, _) = discover(&given, &sources).await;
    let mut storage = Settings::default();
    complete_storage(&found, &mut storage);
    assert_eq!(storage.s3.region.as_deref(), Some("xx-test-1"));
    // No request has to leave the machine to see that the role was asked for: the endpoint answers nothing.
    storage.s3.endpoint = Some(NOWHERE.to_owned());
    storage.s3.timeouts.total = Duration::from_secs(2);
    let store = oss::Stores::new(storage).open(&"s3://b/".parse().unwrap()).unwrap();
    let error = store.head(&"k".into()).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable, "{error}");
    assert!(aws.requests().iter().any(|request| request.path.ends_with("security-credentials/worker")));
}
