//! A task that looks for the agent's credentials: in environments, in arguments, in /proc, in files. As another user it finds them
//! nowhere, as root only where the agent itself has them: in its own process, and in the file in which a person gave them.
//!
//! Each test gives the credentials in another way, with a secret that can be told from everything else, and has the task search while
//! its input is mounted. That the search can find something is part of it: the task plants the secret itself and must find that.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tests::agent::{Finished, Node, command, job, merge};
use tests::double::{AccessKey, Double, DoubleConfig};
use tests::imds::Imds;
use tests::node::BootNode;

const BUCKET: &str = "test-bucket";

/// What is searched: the halves of the secret, which the task puts together, and where.
struct Search {
    halves: [String; 2],
    places: Vec<String>,
}

impl Search {
    fn new(own: &Path) -> Self {
        let half = || format!("{:016x}", fastrand::u64(..));
        let places = ["/run", "/dev/shm", "/etc/batch-agent", "/var/lib/batch-agent", "/batchcompute"];
        let places = places.map(str::to_owned).into_iter().chain([own.display().to_string()]).collect();
        Self { halves: [half(), half()], places }
    }

    fn secret(&self) -> String {
        self.halves.concat()
    }

    fn key(&self) -> AccessKey {
        AccessKey::new("marked-key", &self.secret())
    }

    /// The program: it searches as root and as somebody else, and says where it has found the secret, one line each.
    ///
    /// The secret is in no argument or variable of its own, but for what it plants: a file, and a process with both.
    fn script(&self) -> String {
        let [first, second] = &self.halves;
        format!(
            "m={first}; m=${{m}}{second}\n\
             echo $m > planted; chmod 644 planted\n\
             SECRET=$m tail -f /dev/null $m >/dev/null 2>&1 & planted=$!\n\
             for i in $(seq 100); do echo $m | grep -aqsF -f - /proc/$planted/cmdline && break; sleep 0.1; done\n\
             search() {{\n\
             who=$1; shift\n\
             echo $m | \"$@\" grep -alsF -f - /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/mountinfo | sed \"s/^/$who /\"\n\
             echo $m | \"$@\" grep -arslF -D skip -f - {places} | sed \"s/^/$who /\"\n\
             }}\n\
             search root env\n\
             search other setpriv --reuid=65534 --regid=65534 --clear-groups env\n\
             echo planted $planted\n\
             kill $planted; wait 2>/dev/null; rm planted\n",
            places = self.places.join(" ")
        )
    }
}

/// What a search has found, without what it has planted itself.
fn found(log: &str, host: &Path) -> BTreeSet<String> {
    let planted =
        log.lines().find_map(|line| line.strip_prefix("planted ")).unwrap_or_else(|| panic!("cut off: {log}"));
    let found: BTreeSet<&str> = log.lines().filter(|line| !line.starts_with("planted ")).collect();
    let own = [
        format!("root /proc/{planted}/environ"),
        format!("root /proc/{planted}/cmdline"),
        format!("other /proc/{planted}/cmdline"),
        "root /batchcompute/workdir/planted".to_owned(),
        "other /batchcompute/workdir/planted".to_owned(),
    ];
    for place in &own {
        assert!(found.contains(place.as_str()), "the search does not find {place}: {log}");
    }
    let is_own = |line: &str| {
        own.iter().any(|own| own == line)
            || (line.ends_with("/work/planted") && line.contains(&*host.to_string_lossy()))
    };
    found.into_iter().filter(|line| !is_own(line)).map(str::to_owned).collect()
}

fn double(key: AccessKey) -> Double {
    let double = Double::start(DoubleConfig::empty().bucket(BUCKET, "cn-test").key(key));
    double.put(BUCKET, "in/a.txt", "alpha");
    double
}

/// A task that searches, with an input of this scheme.
fn searching(node: &Node, search: &Search, scheme: &str, more: &Value) -> Value {
    let script = search.script();
    let mut task = command("/bin/sh -s");
    task["Parameters"]["Command"]["CommandLine"] = json!(shell_words_join(&["/bin/sh", "-c", &script]));
    task["InputMapping"] = json!({format!("{scheme}://test-bucket/in/"): node.mapped("in/")});
    task["Parameters"]["StdoutRedirectPath"] = json!(format!("{scheme}://test-bucket/logs/"));
    task["Parameters"]["StderrRedirectPath"] = json!(format!("{scheme}://test-bucket/logs/"));
    merge(&mut task, more);
    job(&task)
}

/// As [`job`]'s command line is split again.
fn shell_words_join(words: &[&str]) -> String {
    let quote = |word: &&str| format!("'{}'", word.replace('\'', "'\\''"));
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// The log of the search, after a look at what the agent itself has said and written.
fn log(run: &Finished, double: &Double, search: &Search, node: &Node) -> String {
    assert_eq!(run.status, 0, "{run:#?}");
    let secret = search.secret();
    assert!(!run.stderr.contains(&secret) && !run.outcome.to_string().contains(&secret), "{run:#?}");
    let objects = double.objects(BUCKET);
    for (key, object) in &objects {
        let content = String::from_utf8_lossy(&object.content.to_vec()).into_owned();
        assert!(!content.contains(&secret), "{key}: {content}");
    }
    for file in files(node.path()).into_iter().filter(|file| !file.starts_with(node.path().join("given"))) {
        let content = fs::read(&file).unwrap_or_default();
        let is_job = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("job-"));
        let holds = content.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(is_job || !holds, "{} holds the secret afterwards", file.display());
    }
    let key = objects.keys().find(|key| key.starts_with("logs/stdout.")).unwrap_or_else(|| panic!("{run:#?}"));
    String::from_utf8(objects[key].content.to_vec()).unwrap()
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// A file that only root can read, as a person would give credentials.
fn give(node: &Node, text: &str) -> String {
    let path = node.path().join("given");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn credentials_from_the_environment() {
    let node = Node::with_double("http://127.0.0.1:1");
    let search = Search::new(node.path());
    let double = double(search.key());
    let endpoint = double.endpoint();
    let node = ["OSS_ENDPOINT", "AWS_ENDPOINT_URL"].iter().fold(node, |node, name| node.environment(name, &endpoint));
    let node =
        ["OSS_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"].iter().fold(node, |node, name| node.environment(name, "marked-key"));
    let secret = search.secret();
    let secrets = [
        "OSS_ACCESS_KEY_SECRET",
        "AWS_SECRET_ACCESS_KEY",
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
        "ALIBABA_CLOUD_SECURITY_TOKEN",
    ];
    let node = secrets.iter().fold(node, |node, name| node.environment(name, &secret));
    let running = node.start(&searching(&node, &search, "oss", &json!({})), &[]);
    // What was given to the agent's process is in that process, and the kernel shows it to root.
    let agent = format!("root /proc/{}/environ", running.pid());
    let run = running.wait();
    let found = found(&log(&run, &double, &search, &node), node.path());
    assert!(found.iter().all(|place| *place == agent), "{found:#?}");
    node.assert_clean();
}

#[test]
fn credentials_from_a_file() {
    let node = Node::with_double("http://127.0.0.1:1");
    let search = Search::new(node.path());
    let double = double(search.key());
    let file = give(
        &node,
        &format!("[default]\naws_access_key_id = marked-key\naws_secret_access_key = {}\n", search.secret()),
    );
    let mut agent = Node::new();
    for (name, value) in
        [("AWS_ENDPOINT_URL", &*double.endpoint()), ("AWS_REGION", "cn-test"), ("AWS_SHARED_CREDENTIALS_FILE", &file)]
    {
        agent = agent.environment(name, value);
    }
    let run = agent.run(&searching(&agent, &search, "s3", &json!({})));
    let found = found(&log(&run, &double, &search, &agent), agent.path());
    assert_eq!(found, BTreeSet::from([format!("root {file}")]), "where a person has put it");
    agent.assert_clean();
}

#[test]
fn credentials_of_the_instances_role() {
    let node = Node::new();
    let search = Search::new(node.path());
    let key = search.key().with_token(&format!("token-{}", search.secret()), Duration::from_secs(3600));
    let double = double(key.clone());
    let imds = Imds::aliyun();
    imds.set_role("worker", &key);
    let node = node
        .environment("OSS_ENDPOINT", &double.endpoint())
        .environment("OSS_REGION", "cn-test")
        .environment("ALIBABA_CLOUD_IMDS_ENDPOINT", &imds.endpoint());
    let run = node.run(&searching(&node, &search, "oss", &json!({})));
    let found = found(&log(&run, &double, &search, &node), node.path());
    assert_eq!(found, BTreeSet::new());
    node.assert_clean();
}

#[test]
fn credentials_that_a_job_brings() {
    let node = Node::with_double("http://127.0.0.1:1");
    let search = Search::new(node.path());
    let config = DoubleConfig::empty()
        .bucket(BUCKET, "cn-test")
        .key(search.key())
        .key(AccessKey::new("test-key", "test-secret"));
    let double = Double::start(config);
    double.put(BUCKET, "in/a.txt", "alpha");
    let node = node.environment("OSS_ENDPOINT", &double.endpoint());
    // Who puts secrets into a job keeps it from others.
    fs::set_permissions(node.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let own = json!({"Mounts": {"OSS": {"AccessKeyId": "marked-key", "AccessKeySecret": search.secret()}}});
    let run = node.run(&searching(&node, &search, "oss", &own));
    let found = found(&log(&run, &double, &search, &node), node.path());
    let elsewhere: Vec<_> =
        found.iter().filter(|place| !place.starts_with(&format!("root {}/job-", node.path().display()))).collect();
    assert!(elsewhere.is_empty(), "only the description that a person has written: {elsewhere:#?}");
    node.assert_clean();
}

#[test]
fn credentials_from_a_nodes_settings() {
    let node = BootNode::new();
    let search = Search::new(&node.path(""));
    let double = double(search.key());
    let task = |user: Value| {
        json!({
            "command": ["/bin/sh", "-c", search.script()],
            "user": user,
            "inputs": [{"source": "oss://test-bucket/in/", "target": node.path("in")}],
            "stdout": "oss://test-bucket/logs/",
            "stderr": "oss://test-bucket/logs/",
        })
    };
    node.settings(&json!({
        "storage": {"oss": {
            "endpoint": double.endpoint(),
            "region": "cn-test",
            "access_key_id": "marked-key",
            "access_key_secret": search.secret(),
        }},
        "task": {"job_id": "j", "job": {"version": 1, "tasks": {"only": task(json!("root"))}}},
    }));
    assert_eq!(node.boot_to_end(), 0, "{}", node.log());
    assert!(!node.log().contains(&search.secret()));
    let objects = double.objects(BUCKET);
    let log = String::from_utf8(objects["logs/stdout.j.only.0"].content.to_vec()).unwrap();
    let found = found(&log, &node.path(""));
    let given = format!("root {}", node.path("node.yaml").display());
    assert_eq!(found, BTreeSet::from([given]), "{}", node.log());
}
