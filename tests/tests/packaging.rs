//! What is shipped beside the programs: units, samples of user data, and the script that puts all of it into an image. Each is held against
//! the real programs.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde::Deserialize;
use tempfile::TempDir;
use tests::agent::Node;
use tests::{programs, tools};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Everything as a package lays it out, with the programs under test. Made once: it has one place.
fn tree() -> &'static Path {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(|| {
        let built = programs::path("batch-agent");
        let made = Command::new("bash")
            .arg(project().join("systemd/dist.sh"))
            .arg("--programs")
            .arg(built.parent().unwrap())
            .arg("tree")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        project().join("target/dist-tree")
    })
}

// User data.

/// What the samples use of cloud-init's format.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudConfig {
    write_files: Vec<WriteFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteFile {
    path: PathBuf,
    owner: String,
    permissions: String,
    content: String,
}

/// The parts of a multipart document: type and body.
fn parts(text: &str) -> Vec<(String, String)> {
    let (head, body) = text.split_once("\n\n").unwrap();
    assert!(head.starts_with("MIME-Version: 1.0\nContent-Type: multipart/mixed;"), "{head}");
    let boundary = head.split("boundary=\"").nth(1).unwrap().split('"').next().unwrap();
    let (body, rest) = body.split_once(&format!("\n--{boundary}--")).unwrap();
    assert_eq!(rest.trim(), "");
    let body = format!("\n{body}");
    let between = format!("\n--{boundary}\n");
    let mut parts = body.split(&between);
    assert_eq!(parts.next(), Some(""), "nothing stands before the first part");
    let part = |part: &str| {
        let (head, body) = part.split_once("\n\n").unwrap();
        let kind = head.strip_prefix("Content-Type: ").unwrap().split(';').next().unwrap();
        (kind.to_owned(), body.to_owned())
    };
    parts.map(part).collect()
}

/// The node's settings as the instance would get them, and what the agent says to them.
fn settings_of(cloud_config: &str) -> Output {
    assert!(cloud_config.starts_with("#cloud-config\n"), "{cloud_config}");
    let config: CloudConfig = serde_saphyr::from_str(cloud_config).unwrap();
    let file = config.write_files.iter().find(|file| file.path == Path::new("/etc/batch-agent/node.yaml")).unwrap();
    assert_eq!((file.owner.as_str(), file.permissions.as_str()), ("root:root", "0600"));
    let node = Node::new();
    let path = node.path().join("node.yaml");
    fs::write(&path, &file.content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    node.agent().arg("check").arg("--config").arg(&path).output().unwrap()
}

fn summary(checked: Output) -> String {
    assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
    String::from_utf8(checked.stdout).unwrap()
}

#[test]
fn the_sample_for_alibaba_cloud_is_a_node_with_a_task() {
    let summary = summary(settings_of(&read(project().join("systemd/cloud-init/alibaba.yaml"))));
    for expected in [
        "volume      instance-store → /data",
        "/home/nas ",
        "oss://my-bucket/inputs/ ",
        "output      /home/outputs → oss://my-bucket/results/",
        "bootstrap   /home/nas/setup/prepare.sh --quiet (stopped after 10m",
        "task        instance 17 of task render of the job at oss://my-bucket/jobs/render.yaml",
        "at the end  the node is powered off",
    ] {
        assert!(summary.contains(expected), "{expected}: {summary}");
    }
}

#[test]
fn the_sample_for_aws_is_mime_and_prepares_a_node_for_another_scheduler() {
    let parts = parts(&read(project().join("systemd/cloud-init/aws.mime")));
    assert_eq!(parts.len(), 1);
    assert_eq!(parts[0].0, "text/cloud-config");
    let summary = summary(settings_of(&parts[0].1));
    let has = |words: [&str; 3]| summary.lines().any(|line| words.iter().all(|word| line.contains(word)));
    // What the script did that it replaces.
    assert!(has(["volume", "instance-store", "/data"]), "{summary}");
    assert!(
        has(["/fsx", "fs-0123456789abcdef0.fsx.cn-northwest-1.amazonaws.com@tcp:/zxktnbmv", "required"]),
        "{summary}"
    );
    assert!(has(["task", "none", "another scheduler"]), "{summary}");
}

#[test]
fn a_sample_with_a_mistake_is_refused() {
    let sample = read(project().join("systemd/cloud-init/alibaba.yaml"));
    let checked = settings_of(&sample.replace("target: /home/nas", "targett: /home/nas"));
    assert_eq!(checked.status.code(), Some(78), "{checked:?}");
}

// Units.

fn units() -> Vec<(String, String)> {
    let entries = fs::read_dir(project().join("systemd/units")).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), read(&path))).collect()
}

#[test]
fn systemd_understands_every_unit() {
    let tree = tempfile::tempdir().unwrap();
    copy(self::tree(), tree.path());
    // What the units stand on, as far as it has to be there for being looked at.
    let place = tree.path().join("usr/lib/systemd/system");
    for target in [
        "basic",
        "local-fs",
        "multi-user",
        "network-online",
        "nss-lookup",
        "remote-fs",
        "shutdown",
        "sysinit",
        "umount",
    ] {
        fs::write(place.join(format!("{target}.target")), "[Unit]\nDescription=stand-in\n").unwrap();
    }
    for unit in ["docker", "ecs"] {
        let text = format!("[Service]\nExecStart=/usr/bin/{unit}\n");
        fs::write(place.join(format!("{unit}.service")), text).unwrap();
        fs::write(tree.path().join("usr/bin").join(unit), "").unwrap();
        fs::set_permissions(tree.path().join("usr/bin").join(unit), fs::Permissions::from_mode(0o755)).unwrap();
        let enabled = tree.path().join(format!("etc/systemd/system/{unit}.service.d"));
        fs::create_dir_all(&enabled).unwrap();
        let drop_in = format!("usr/share/batch-agent/drop-ins/{unit}.service.d/batch-node.conf");
        fs::copy(tree.path().join(drop_in), enabled.join("batch-node.conf")).unwrap();
    }
    let names =
        units().into_iter().map(|(name, _)| name).chain(["docker.service".to_owned(), "ecs.service".to_owned()]);
    let verified = Command::new(tools::system("systemd-analyze", "systemd"))
        .args(["verify", "--man=no", "--recursive-errors=yes", "--root"])
        .arg(tree.path())
        .args(names)
        .output()
        .unwrap();
    // Of the units it has loaded it says what it does not understand, and of what it starts whether it is there.
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<&str> = said
        .lines()
        .filter(|line| ["batch-", "fuse-oss", "docker", "ecs"].iter().any(|name| line.contains(name)))
        .collect();
    assert_eq!((verified.status.code(), ours), (Some(0), Vec::new()), "{said}");
}

#[test]
fn units_run_commands_that_the_programs_have() {
    let mut commands = BTreeSet::new();
    for (_, text) in units() {
        for line in text.lines() {
            if let Some((name, command)) = line.split_once('=')
                && name.starts_with("Exec")
                && command.starts_with("/usr/bin/")
            {
                commands.insert(command.to_owned());
            }
        }
    }
    assert!(commands.len() >= 5, "{commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        let program = programs::path(words[0].strip_prefix("/usr/bin/").unwrap());
        // All that is written there is read before --help is looked at.
        let help = Command::new(program).args(&words[1..]).arg("--help").output().unwrap();
        assert!(help.status.success(), "{command}: {help:?}");
        let help = String::from_utf8(help.stdout).unwrap();
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "{command}: {help}");
        }
    }
}

// The image.

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success());
}

/// A root tree in which the programs under test can run: with what they are linked to, a systemd to look at and a cloud-init.
struct Image(TempDir);

impl Image {
    fn new() -> Self {
        let image = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(image.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        image.write("etc/os-release", "ID=test\n");
        image.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        image.write("usr/lib/systemd/systemd", "");
        image.executable("usr/lib/systemd/systemd");
        image.write("usr/lib/systemd/system/multi-user.target", "[Unit]\n");
        image.write("usr/lib/systemd/system/cloud-init.service", "[Service]\nExecStart=/bin/true\n");
        image.write(
            "etc/cloud/cloud.cfg",
            "cloud_init_modules:\n - seed_random\n - write_files\ncloud_config_modules:\n - locale\n",
        );
        // Stands in for cloud-init, which is only asked whether it runs.
        image.program(&tools::system("true", "coreutils"), "usr/bin/cloud-init");
        for name in ["batch-agent", "fuse-oss", "nvme-setup"] {
            image.libraries(&programs::path(name));
        }
        image
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn executable(&self, path: &str) {
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn program(&self, from: &Path, to: &str) {
        fs::create_dir_all(self.at(to).parent().unwrap()).unwrap();
        fs::copy(from, self.at(to)).unwrap();
        self.libraries(from);
    }

    fn libraries(&self, program: &Path) {
        let listed = Command::new("ldd").arg(program).output().unwrap();
        for path in String::from_utf8(listed.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/')) {
            let inside = path.trim_start_matches('/');
            fs::create_dir_all(self.at(inside).parent().unwrap()).unwrap();
            fs::copy(path, self.at(inside)).unwrap();
        }
    }

    /// Runs the script that lies in the tree of a package.
    fn install(&self, options: &[&str]) -> (i32, String) {
        let ran = Command::new("bash")
            .arg(tree().join("usr/share/batch-agent/image/install.sh"))
            .arg("--root")
            .arg(self.0.path())
            .args(options)
            .output()
            .unwrap();
        (ran.status.code().unwrap(), String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap())
    }

    /// Every file and link, with its content.
    fn content(&self) -> Vec<u8> {
        let sums = "find . -type f -exec sha256sum {} + -o -type l -printf '%p -> %l\\n' | sort; find . -printf '%p %m %u\\n' | sort";
        Command::new("sh").args(["-c", sums]).current_dir(self.0.path()).output().unwrap().stdout
    }
}

#[test]
fn an_image_gets_the_agent_and_is_proved_good_and_a_second_time_changes_nothing() {
    let image = Image::new();
    let (status, said) = image.install(&["--check"]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("WRONG: batch-agent.service starts with the machine"), "{said}");

    for memory in ["boot.json", "events/node/events.jsonl", "log-book/x.json", ".task.json.tmp-17"] {
        image.write(&format!("var/lib/batch-agent/{memory}"), "{}");
    }
    let (status, said) = image.install(&["--check"]);
    assert!(status == 1 && said.contains("WRONG: the agent has no memory of this machine"), "{said}");
    image.write("var/lib/systemd/random-seed", "not random");
    let (status, said) = image.install(&["--order-after-mounts", "docker.service"]);
    assert_eq!(status, 0, "{said}");
    assert!(said.ends_with("the image is good\n"), "{said}");
    assert_eq!(read(image.at("etc/machine-id")), "");
    assert_eq!(fs::read_dir(image.at("var/lib/batch-agent")).unwrap().count(), 0);
    assert!(!image.at("var/lib/systemd/random-seed").exists());
    assert!(image.at("etc/systemd/system/multi-user.target.wants/batch-agent.service").is_symlink());
    assert!(
        read(image.at("etc/systemd/system/docker.service.d/batch-node.conf"))
            .contains("Requires=batch-node-mounts.target")
    );
    assert!(!image.at("etc/systemd/system/ecs.service.d").exists());

    let before = image.content();
    let (status, said) = image.install(&["--order-after-mounts", "docker.service"]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("changed: 0\n"), "{said}");
    assert_eq!(before, image.content());
}

#[test]
fn an_image_that_would_not_be_a_node_is_not_called_good() {
    type Damage = fn(&Image);
    let cases: [(Damage, &str); 6] = [
        (|image| image.write("etc/cloud/cloud-init.disabled", ""), "cloud-init is not switched off"),
        (|image| fs::remove_file(image.at("usr/bin/cloud-init")).unwrap(), "cloud-init is there and runs"),
        (
            |image| {
                image.write(
                    "etc/cloud/cloud.cfg",
                    "cloud_init_modules:\n - seed_random\ncloud_final_modules:\n - write_files\n",
                )
            },
            "cloud-init writes files before the agent starts",
        ),
        (|image| image.write("etc/batch-agent/node.yaml", "mounts: 3\n"), "they are good"),
        (|image| image.write("var/lib/cloud/instance", ""), "cloud-init has forgotten this machine"),
        (
            |image| {
                fs::remove_file(image.at("etc/systemd/system/batch-agent.service")).ok();
                fs::create_dir_all(image.at("etc/systemd/system")).unwrap();
                symlink("/dev/null", image.at("etc/systemd/system/batch-agent.service")).unwrap();
            },
            "batch-agent.service starts with the machine",
        ),
    ];
    let image = Image::new();
    assert_eq!(image.install(&[]).0, 0);
    for (damage, what) in cases {
        let damaged = Image(tempfile::tempdir().unwrap());
        copy(image.0.path(), damaged.0.path());
        damage(&damaged);
        let (status, said) = damaged.install(&["--check"]);
        assert_eq!(status, 1, "{what}: {said}");
        assert!(said.contains(&format!("WRONG: {what}")), "{what}: {said}");
    }
}

#[test]
fn what_is_not_understood_is_refused_before_anything_is_changed() {
    type Oddity = fn(&Image);
    let elsewhere = tempfile::tempdir().unwrap();
    let outside = elsewhere.path().to_owned();
    let cases: [(Oddity, &str); 4] = [
        (|image| fs::remove_file(image.at("etc/os-release")).unwrap(), "no os-release"),
        (|image| fs::remove_file(image.at("usr/lib/systemd/systemd")).unwrap(), "no systemd"),
        (|image| image.write("var/lib/batch-agent/scratch/work/result", "x"), "may not have been uploaded"),
        (|_| {}, "leads out of the image"),
    ];
    for (number, (oddity, why)) in cases.into_iter().enumerate() {
        let image = Image::new();
        oddity(&image);
        if number == 3 {
            symlink(&outside, image.at("var/lib/batch-agent")).unwrap_or_else(|_| {
                fs::create_dir_all(image.at("var/lib")).unwrap();
                symlink(&outside, image.at("var/lib/batch-agent")).unwrap();
            });
        }
        let before = image.content();
        let (status, said) = image.install(&[]);
        assert_eq!(status, 65, "{why}: {said}");
        assert!(said.contains(why), "{why}: {said}");
        assert_eq!(before, image.content(), "{why}");
    }
    let image = Image::new();
    for options in [&["--order-after-mounts", "ssh.service"] as &[&str], &["--force"], &["--running"]] {
        assert_eq!(image.install(options).0, 64, "{options:?}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}
