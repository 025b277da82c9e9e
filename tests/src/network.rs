//! File servers for tests, as far as mounting can tell: stand-ins for the programs that mount NFS and Lustre.
//!
//! They check their arguments strictly, the options word by word, and play what each server is told to play. What they mount
//! really is mounted: a directory of the test's own, in place of what a server exports. So what is tested with them is everything but
//! the kernel's clients and the real programs' words; those words are kept beside the code that reads them.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::script;

/// The options of an NFS 3 mount, without the access that goes before them.
pub const NFS3: &str =
    "vers=3,nolock,proto=tcp,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport,retry=0,nosuid,nodev";

/// Those of a Lustre mount.
pub const LUSTRE: &str = "noatime,flock,nosuid,nodev";

/// What a server does when it is mounted.
#[derive(Debug, Clone, Copy)]
pub enum Play {
    /// Its directory is mounted.
    Serve,
    /// It is mounted with the other access than was asked for.
    ServeWithOtherAccess,
    /// It is mounted, and the command stays.
    ServeAndStay,
    /// It refuses so many times and then serves.
    ServeAfter(u32),
    /// The command prints this and fails.
    Say(&'static str),
    /// The command ends well and has done nothing.
    Lie,
    /// The command does not come back and does not listen to SIGTERM, and neither does what it has started.
    Hang,
}

/// A directory of programs, and the servers they know.
#[derive(Debug)]
pub struct FileServers {
    directory: tempfile::TempDir,
}

const MOUNT: &str = r#"#!/bin/sh
here=HERE
printf '%s\n' "$*" >>"$here/calls"
wrong() { echo "stand-in: $1" >&2; exit 99; }
[ $# = 6 ] || wrong "$# arguments"
[ "$1" = -t ] && [ "$3" = -o ] || wrong "not mount -t TYPE -o OPTIONS DEVICE TARGET"
[ "$LC_ALL" = C ] || wrong "messages are not in the C locale"
type=$2 options=$4 device=$5 target=$6
case $device in
*@tcp:/*) host=${device%%@*}; expected=lustre ;;
*:/*) host=${device%%:*}; expected=nfs ;;
*) wrong "device $device" ;;
esac
[ "$type" = "$expected" ] || wrong "type $type"
[ -d "$target" ] && [ -z "$(ls -A "$target")" ] || wrong "target $target"
[ -d "$here/$host" ] || wrong "nobody knows $host"
[ "${options#*,}" = "$(cat "$here/$host/options")" ] || wrong "options $options"
access=${options%%,*}
case $access in ro | rw) ;; *) wrong "access $access" ;; esac
serve() {
    export=$here/$host/export${device#*:}
    [ -d "$export" ] || { echo "mount.$type: mounting $device failed, reason given by server: No such file or directory" >&2; exit 32; }
    mount --bind "$export" "$target" && mount -o "remount,bind,$1,nosuid,nodev" "$target" || wrong "the real mount failed"
}
case $(cat "$here/$host/play") in
serve) serve "$access" ;;
other) [ "$access" = ro ] && serve rw || serve ro ;;
stay) serve "$access"; sleep 1000 ;;
after) echo >>"$here/$host/refusals"
    if [ "$(wc -l <"$here/$host/refusals")" -gt "$(cat "$here/$host/count")" ]; then
        serve "$access"
    else
        echo "mount.$type: Connection refused" >&2
        exit 32
    fi ;;
say) cat "$here/$host/words" >&2; exit 32 ;;
lie) ;;
hang) trap '' TERM
    "$here/mount.$type" "$device" "$target" -o "$options" &
    wait ;;
*) wrong "no play" ;;
esac
"#;

impl FileServers {
    /// Programs, and no server yet.
    ///
    /// # Panics
    /// When files cannot be made.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("file-servers-").tempdir().expect("a temporary directory");
        let servers = Self { directory };
        let here = servers.directory.path().display().to_string();
        script(&servers.path("mount"), &MOUNT.replace("HERE", &here));
        // They are only run to hang.
        for helper in ["mount.nfs", "mount.lustre"] {
            script(&servers.path(helper), "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n");
        }
        servers.modprobe("[ \"$*\" = lustre ]");
        servers
    }

    /// The directory with the programs.
    pub fn programs(&self) -> &Path {
        self.directory.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces what `modprobe` does.
    pub fn modprobe(&self, what: &str) {
        script(&self.path("modprobe"), &format!("#!/bin/sh\n{what}\n"));
    }

    /// Takes a program away.
    ///
    /// # Panics
    /// When it is not there.
    pub fn without(&self, program: &str) {
        fs::remove_file(self.path(program)).expect("it is there");
    }

    /// Adds the server `host`, whose exported directories lie below the path that comes back. It expects to be mounted with `options`.
    ///
    /// # Panics
    /// When files cannot be made.
    pub fn server(&self, host: &str, options: &str, play: Play) -> PathBuf {
        let server = self.path(host);
        fs::create_dir_all(server.join("export")).expect("a directory");
        let write = |name: &str, content: &str| fs::write(server.join(name), content).expect("a file");
        write("options", options);
        write(
            "play",
            match play {
                Play::Serve => "serve",
                Play::ServeWithOtherAccess => "other",
                Play::ServeAndStay => "stay",
                Play::ServeAfter(count) => {
                    write("count", &count.to_string());
                    "after"
                }
                Play::Say(words) => {
                    write("words", words);
                    "say"
                }
                Play::Lie => "lie",
                Play::Hang => "hang",
            },
        );
        server.join("export")
    }

    /// The arguments of every mount so far.
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// The processes of these programs that still run, with their command lines.
    ///
    /// # Panics
    /// Without /proc.
    pub fn running(&self) -> Vec<(Pid, String)> {
        let own = self.directory.path().to_string_lossy().into_owned();
        let mut running = Vec::new();
        for process in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            // Agents are told the directory, too.
            if line.contains(&own) && line.starts_with("/bin/sh ") {
                running.push((Pid::from_raw(pid), line));
            }
        }
        running
    }
}

impl Drop for FileServers {
    fn drop(&mut self) {
        for (pid, _) in self.running() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

impl Default for FileServers {
    fn default() -> Self {
        Self::new()
    }
}

/// What is mounted at a path or below it, as mountinfo has it.
///
/// # Panics
/// Without /proc.
pub fn mounted_below(path: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let at = |line: &&str| line.split(' ').nth(4).is_some_and(|at| Path::new(at).starts_with(path));
    table.lines().filter(at).map(str::to_owned).collect()
}

/// A FUSE file system whose server never says anything: what every dead file server looks like to whoever asks.
#[derive(Debug)]
pub struct Dead {
    connection: Option<fs::File>,
    at: PathBuf,
}

impl Dead {
    /// Mounts one at a directory, which is made.
    ///
    /// # Panics
    /// When FUSE mounts cannot work here.
    pub fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).expect("a directory");
        let connection =
            fs::File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse (modprobe fuse)");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", connection.as_raw_fd());
        mount(Some("dead"), at, Some("fuse"), MsFlags::empty(), Some(options.as_str())).expect("a FUSE mount");
        Self { connection: Some(connection), at: at.to_owned() }
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        // Whoever waits for it gets an error then.
        self.connection = None;
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// A directory for targets; what is still mounted in it is taken away when it is dropped.
#[derive(Debug)]
pub struct Targets {
    directory: tempfile::TempDir,
}

impl Targets {
    /// An empty one.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests mount file systems and so must run as root");
        let directory = tempfile::Builder::new().prefix("network-test-").tempdir().expect("a temporary directory");
        Self { directory }
    }

    /// Its own path.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Default for Targets {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        let mounted = mounted_below(self.directory.path());
        for line in mounted.iter().rev() {
            if let Some(at) = line.split(' ').nth(4) {
                let _ = umount2(at, MntFlags::MNT_DETACH);
            }
        }
    }
}
