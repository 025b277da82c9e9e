//! Container engines for tests: a real Docker daemon and a real Podman, each with directories of its own, started and stopped by
//! the test.
//!
//! They run in a mount namespace of their own, in which the root mount is shared, as it is on a machine with systemd; the agent under
//! test must run in the same one, because engines see the mounts of their own namespace: [`Engine::join`] puts it there.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::tools::{done, limited, system};

/// How long an engine may take to start, and to stop.
const DEADLINE: Duration = Duration::from_secs(120);

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    directory: TempDir,
    daemon: Option<Child>,
    is_docker: bool,
    /// Where its mounts are, also while it is away.
    namespace: fs::File,
}

impl Engine {
    /// A Docker daemon without a network of its own.
    pub fn docker() -> Self {
        Self::start(true)
    }

    /// Podman's service, with the limits that it needs on machines that allow no more.
    pub fn podman() -> Self {
        Self::start(false)
    }

    fn docker_command(root: &Path) -> Command {
        let mut command = Command::new(system("dockerd", "docker.io"));
        command
            .arg("--data-root")
            .arg(root.join("data"))
            .arg("--exec-root")
            .arg(root.join("exec"))
            .arg("--pidfile")
            .arg(root.join("pid"))
            .arg("-H")
            .arg(format!("unix://{}", socket(root).display()))
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
        command
    }

    fn podman_command(root: &Path) -> Command {
        let settings = root.join("containers.conf");
        fs::write(&settings, PODMAN).expect("podman's settings");
        // Whose signatures are wanted is read from the home directory, and a machine need not have a file for all.
        let policy = root.join(".config/containers/policy.json");
        fs::create_dir_all(root.join(".config/containers")).expect("a directory");
        fs::write(policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("podman's policy");
        // A registry on this machine speaks no TLS; Docker knows that by itself.
        let registries = root.join("registries.conf");
        fs::write(&registries, "[[registry]]\nprefix = \"localhost\"\nlocation = \"localhost\"\ninsecure = true\n")
            .expect("podman's registries");
        let mut command = Command::new(system("podman", "podman"));
        command
            .env("HOME", root)
            .env("CONTAINERS_CONF", settings)
            .env("CONTAINERS_REGISTRIES_CONF", registries)
            .args(["--runtime", "runc", "--log-level", "info"])
            .arg("--root")
            .arg(root.join("data"))
            .arg("--runroot")
            .arg(root.join("exec"))
            .arg("--tmpdir")
            .arg(root.join("tmp"))
            .args(["system", "service", "--time", "0"])
            .arg(format!("unix://{}", socket(root).display()));
        command
    }

    fn spawn(root: &Path, is_docker: bool, place: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Child {
        let mut command = if is_docker { Self::docker_command(root) } else { Self::podman_command(root) };
        let log = fs::File::options().append(true).create(true).open(root.join("log")).expect("a file for the log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        // SAFETY: only system calls are made between fork and exec.
        unsafe { command.pre_exec(place) };
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    fn start(is_docker: bool) -> Self {
        let directory = directory();
        let daemon = Self::spawn(directory.path(), is_docker, own_mounts);
        let namespace = format!("/proc/{}/ns/mnt", daemon.id());
        let namespace = fs::File::open(namespace).expect("the engine's mount namespace");
        let mut engine = Self { directory, daemon: Some(daemon), is_docker, namespace };
        engine.wait_for_answer();
        engine
    }

    fn wait_for_answer(&mut self) {
        let end = Instant::now() + DEADLINE;
        while !self.answers() {
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().ok().flatten());
            assert!(ended.is_none() && Instant::now() < end, "no engine:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Has it end by this signal and starts it again, where its mounts are.
    pub fn restart(&mut self, signal: Signal) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = kill(Pid::from_raw(i32::try_from(daemon.id()).unwrap_or(0)), signal);
            let _ = daemon.wait();
            self.end_runtime();
        }
        let namespace = self.namespace.try_clone().expect("a file");
        let place = move || setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(io::Error::from);
        self.daemon = Some(Self::spawn(self.directory.path(), self.is_docker, place));
        self.wait_for_answer();
    }

    /// Docker's own containerd dies with it. Where nobody collects it, the next daemon would wait for it.
    fn end_runtime(&self) {
        let file = self.directory.path().join("exec/containerd/containerd.pid");
        let Some(pid) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) else { return };
        let is_alive = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
        };
        let end = Instant::now() + DEADLINE;
        while is_alive() && Instant::now() < end {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = fs::remove_file(file);
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        let id = self.daemon.as_ref().map_or(0, Child::id);
        Pid::from_raw(i32::try_from(id).unwrap_or(0))
    }

    fn answers(&self) -> bool {
        let mut curl = limited(10, "curl");
        curl.args(["-sf", "-o", "/dev/null", "--unix-socket"]).arg(self.socket()).arg("http://localhost/_ping");
        curl.status().is_ok_and(|status| status.success())
    }

    /// Has a command run where the engine's mounts are.
    pub fn join<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let namespace = self.namespace.try_clone().expect("a file");
        // SAFETY: only a system call is made between fork and exec, on a descriptor that stays open.
        unsafe { command.pre_exec(move || setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(io::Error::from)) }
    }

    /// Runs the client with these arguments to its end, which must be a good one.
    #[track_caller]
    pub fn client(&self, arguments: &[&str]) -> Output {
        done(&mut self.client_command(arguments))
    }

    /// Makes a file in a container. What the client says of it is not looked at: where the program waits for that file, the container may
    /// be gone before the client has asked how its own program ended.
    pub fn touch(&self, container: &str, path: &str) {
        let _ = self.client_command(&["exec", container, "touch", path]).output();
    }

    fn client_command(&self, arguments: &[&str]) -> Command {
        let mut command = if self.is_docker {
            let mut command = limited(120, system("docker", "docker.io"));
            command.arg("-H").arg(format!("unix://{}", self.socket().display()));
            command
        } else {
            let mut command = limited(120, system("podman", "podman"));
            command.arg("--remote").arg("--url").arg(format!("unix://{}", self.socket().display()));
            command
        };
        command.args(arguments);
        command
    }

    /// What the client prints.
    #[track_caller]
    pub fn says(&self, arguments: &[&str]) -> String {
        String::from_utf8_lossy(&self.client(arguments).stdout).trim().to_owned()
    }

    /// Makes an image of BusyBox by this name. `changes` are as in a Dockerfile.
    #[track_caller]
    pub fn import(&self, name: &str, changes: &[&str]) {
        let tar = self.directory.path().join("busybox.tar");
        if !tar.exists() {
            fs::write(&tar, busybox(&[])).expect("an archive");
        }
        let mut arguments = vec!["import"];
        for change in changes {
            arguments.extend(["--change", change]);
        }
        let tar = tar.to_string_lossy().into_owned();
        arguments.extend([tar.as_str(), name]);
        self.client(&arguments);
    }

    /// What is mounted where the engine is, as the kernel's table says it.
    pub fn mounts(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap_or_default()
    }

    /// The containers there are, running or not, by name.
    pub fn containers(&self) -> Vec<String> {
        self.says(&["ps", "--all", "--format", "{{.Names}}"]).lines().map(str::to_owned).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.answers() {
            for name in self.client_command(&["ps", "--all", "--quiet"]).output().into_iter().flat_map(|output| {
                String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
            }) {
                let _ = self.client_command(&["rm", "--force", &name]).output();
            }
        }
        let Some(mut daemon) = self.daemon.take() else { return };
        let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap_or(0));
        let _ = kill(pid, Signal::SIGTERM);
        let end = Instant::now() + DEADLINE;
        while daemon.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() >= end {
                let _ = daemon.kill();
                let _ = daemon.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        end_left_behind(self.directory.path());
        let own = self.directory.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for at in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.starts_with(&own)) {
            let _ = umount2(at, MntFlags::MNT_DETACH);
        }
    }
}

/// Processes that an engine has left, by the directories that are in their command lines.
fn end_left_behind(directory: &Path) {
    let own = directory.to_string_lossy().into_owned();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command_line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if pid != std::process::id().cast_signed() && String::from_utf8_lossy(&command_line).contains(&own) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// A short one: the paths of sockets are limited.
fn directory() -> TempDir {
    tempfile::Builder::new().prefix("engine-").tempdir().expect("a temporary directory")
}

fn socket(root: &Path) -> PathBuf {
    root.join("engine.sock")
}

/// Between fork and exec: mounts of its own, shared among themselves.
fn own_mounts() -> io::Result<()> {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SHARED, nothing)?;
    Ok(())
}

const PODMAN: &str = r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "host"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

/// A root tree with BusyBox under the names of all its programs that tests use, and these files.
pub fn busybox(files: &[(&str, &str)]) -> Vec<u8> {
    const APPLETS: [&str; 27] = [
        "sh", "basename", "cat", "echo", "env", "ls", "sleep", "true", "false", "id", "mkdir", "rm", "touch", "ln",
        "cp", "head", "dd", "kill", "test", "grep", "pwd", "sed", "seq", "stat", "mount", "tail", "yes",
    ];
    let program = system("busybox", "busybox-static");
    let mut archive = tar::Builder::new(Vec::new());
    let header = |path: &str, mode, size| {
        let mut header = tar::Header::new_gnu();
        header.set_path(path).expect("a short path");
        header.set_mode(mode);
        header.set_size(size);
        header
    };
    for directory in ["bin/", "etc/", "home/", "tmp/", "root/", "dev/", "proc/", "sys/"] {
        let mut header = header(directory, 0o755, 0);
        header.set_entry_type(tar::EntryType::Directory);
        header.set_cksum();
        archive.append(&header, io::empty()).expect("a directory");
    }
    let content = fs::read(program).expect("busybox");
    let mut busybox = header("bin/busybox", 0o755, content.len() as u64);
    busybox.set_cksum();
    archive.append(&busybox, content.as_slice()).expect("busybox");
    for applet in APPLETS {
        let mut header = header(&format!("bin/{applet}"), 0o777, 0);
        header.set_entry_type(tar::EntryType::Symlink);
        archive.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("a link");
    }
    // Enough of it for scripts that are no more than a shell's.
    let content = "#!/bin/sh\nexec /bin/sh \"$@\"\n";
    let mut bash = header("bin/bash", 0o755, content.len() as u64);
    bash.set_cksum();
    archive.append(&bash, content.as_bytes()).expect("a script");
    for (path, content) in files {
        let mut header = header(path, 0o644, content.len() as u64);
        header.set_cksum();
        archive.append(&header, content.as_bytes()).expect("a file");
    }
    archive.into_inner().expect("an archive")
}

/// An OCI archive of one image, of BusyBox in one layer: `compress` makes the layer of its tar archive, whose kind has this name at the
/// end of its media type. The index names it `tag`.
pub fn oci_archive(tag: &str, variables: &[&str], kind: &str, compress: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    use serde_json::{Value, json};
    let tree = busybox(&[]);
    let digest = |content: &[u8]| {
        let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        (format!("sha256:{hex}"), format!("blobs/sha256/{hex}"))
    };
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, content).expect("a file");
    };
    let mut blob = |media_type: &str, content: &[u8]| -> Value {
        let (digest, path) = digest(content);
        add(&path, content);
        json!({ "mediaType": format!("application/vnd.oci.image.{media_type}"), "digest": digest, "size": content.len() })
    };
    let layer = blob(&format!("layer.v1.tar+{kind}"), &compress(&tree));
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Env": variables }, "rootfs": { "type": "layers", "diff_ids": [digest(&tree).0] },
    });
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    add("index.json", json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string().as_bytes());
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    archive.into_inner().expect("an archive")
}

/// A registry of images, of Docker's own making, that wants a login.
#[derive(Debug)]
pub struct Registry {
    directory: TempDir,
    process: Child,
    port: u16,
}

impl Registry {
    /// Who may use it.
    pub const USER: &str = "tester";
    /// With this password.
    pub const PASSWORD: &str = "hunter2-of-the-registry";
    /// The password as the registry knows it (bcrypt).
    const KNOWN: &str = "tester:$2b$05$uUK/o1dlA/qBwTG6P4QFQODS9kWuJ0NHLSbOC5KAska9z1DMML0Nq";

    /// Starts it on a port of its own.
    pub fn start() -> Self {
        let directory = directory();
        let root = directory.path();
        let port = free_port();
        fs::write(root.join("htpasswd"), format!("{}\n", Self::KNOWN)).expect("a file");
        let settings = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n\
             auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            root.join("dockers").display(),
            root.join("htpasswd").display()
        );
        fs::write(root.join("config.yml"), settings).expect("settings");
        let log = fs::File::create(root.join("log")).expect("a log");
        let process = Command::new(system("docker-registry", "docker-registry"))
            .arg("serve")
            .arg(root.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("a registry");
        let registry = Self { directory, process, port };
        fs::write(registry.logins(), registry.config()).expect("logins");
        fs::set_permissions(registry.logins(), PermissionsExt::from_mode(0o600)).expect("logins");
        let end = Instant::now() + DEADLINE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                Instant::now() < end,
                "no registry: {}",
                fs::read_to_string(registry.directory.path().join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        registry
    }

    /// Host and port.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// A file with the login, as `docker login` writes it.
    pub fn logins(&self) -> PathBuf {
        self.directory.path().join("config.json")
    }

    fn config(&self) -> String {
        use base64::Engine as _;
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", Self::USER, Self::PASSWORD));
        serde_json::json!({ "auths": { self.host(): { "auth": auth } } }).to_string()
    }

    /// Has the engine push an image of this name to it.
    #[track_caller]
    pub fn push(&self, engine: &Engine, image: &str) {
        let mut push = engine.client_command(&["push", image]);
        push.env("DOCKER_CONFIG", self.directory.path());
        done(&mut push);
    }

    /// Its files, by their paths below its root directory.
    pub fn tree(&self) -> Vec<(String, Vec<u8>)> {
        let root = self.directory.path().join("dockers");
        let (mut files, mut directories) = (Vec::new(), vec![root.clone()]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("a directory").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let name = path.strip_prefix(&root).expect("below it").to_string_lossy().into_owned();
                    files.push((name, fs::read(&path).expect("a file")));
                }
            }
        }
        files
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}
