//! QEMU: the hardware of a cloud's instance, switched on and watched.
//!
//! Everything is emulated (TCG) unless `TEST_VM_ACCEL=kvm` says otherwise: nested virtualisation opens `/dev/kvm` on many machines
//! and works on few of them.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::boot::Boot;
use super::disk::Disk;
use crate::{programs, tools};

/// By which id the kernel finds the root partition, as `tests/vm/image.sh` makes it.
const ROOT_PARTITION: &str = "6a1f0f3e-5d0c-4c2e-9f57-0b1d2c3e4f50";

/// How often the console is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How long a machine may say nothing at all. A boot has silences of some 20 s where nothing else runs.
const SILENCE: Duration = Duration::from_secs(300);

/// How long a machine may go on that never falls silent: twenty times what it needs where nothing else runs.
const LIFE: Duration = Duration::from_secs(2400);

/// One machine is on at a time: it has two processors, and so has the host, as a rule.
static TURN: Mutex<()> = Mutex::new(());

/// What a disk is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// An NVMe controller of its own.
    Nvme,
    /// virtio.
    Virtio,
}

/// What the firmware says of the machine.
#[derive(Debug, Clone)]
pub struct Firmware {
    /// Who made it: `Amazon EC2`, `Alibaba Cloud`.
    pub manufacturer: &'static str,
    /// What it is: `m5d.large`, `Alibaba Cloud ECS`.
    pub product: &'static str,
    /// Its UUID, which is its serial number as well.
    pub uuid: &'static str,
    /// The tag of its board: on Amazon EC2 the instance's id.
    pub asset_tag: &'static str,
}

/// The network that a machine sees, and which of its addresses are somebody.
#[derive(Debug, Clone)]
pub struct Network {
    /// The machine's own network, such as `169.254.0.0/16`.
    pub net: &'static str,
    /// An address in it that the emulated router takes.
    pub router: Ipv4Addr,
    /// The addresses whose port 80 is a port of this host.
    pub open: Vec<(Ipv4Addr, u16)>,
}

/// The address of a machine's network card.
pub const MAC: &str = "52:54:00:12:34:56";

/// A machine that is switched off.
#[derive(Debug)]
pub struct Machine {
    kernel: PathBuf,
    console: PathBuf,
    relay: PathBuf,
    firmware: Firmware,
    network: Network,
    disks: Vec<(Bus, Disk, String)>,
    /// What its kernel is told beside what it is always told.
    told: Vec<String>,
}

impl Machine {
    /// A machine without disks, whose console is written to a file in `folder`.
    ///
    /// # Panics
    /// When what carries its connections has not been built, or the folder cannot be written to.
    pub fn new(folder: &Path, kernel: &Path, firmware: Firmware, network: Network) -> Self {
        // QEMU takes its command line apart at commas and spaces, which the path of the program may have.
        let relay = folder.join("guest-relay");
        symlink(programs::path("guest-relay"), &relay).unwrap_or_else(|error| panic!("cannot make a link: {error}"));
        let console = folder.join("console.log");
        Self { kernel: kernel.to_owned(), console, relay, firmware, network, disks: Vec::new(), told: Vec::new() }
    }

    /// Starts another kernel from now on.
    pub fn boot_with(&mut self, kernel: &Path) {
        kernel.clone_into(&mut self.kernel);
    }

    /// Tells its kernel, and so the service manager, something more from now on.
    pub fn tell_kernel(&mut self, argument: &str) {
        self.told.push(argument.to_owned());
    }

    /// Attaches a disk with a serial number. The first one is the root disk.
    pub fn attach(&mut self, bus: Bus, disk: Disk, serial: &str) {
        self.disks.push((bus, disk, serial.to_owned()));
    }

    /// Takes a disk away.
    pub fn detach(&mut self, serial: &str) {
        self.disks.retain(|(_, _, known)| known != serial);
    }

    /// The disk with this serial number.
    ///
    /// # Panics
    /// When there is none.
    pub fn disk(&self, serial: &str) -> &Disk {
        let found = self.disks.iter().find(|(_, _, known)| known == serial);
        found.map_or_else(|| panic!("the machine has no disk {serial}"), |(_, disk, _)| disk)
    }

    /// Switches it on, when no other machine is on any more.
    ///
    /// # Panics
    /// When QEMU cannot be started.
    pub fn power_on(&self) -> Running {
        let qemu = tools::system("qemu-system-x86_64", "qemu-system-x86");
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // It must not go on when the test is killed; a signal at the end of its parent is the only thing that nothing can skip.
        let mut command = Command::new(tools::system("setpriv", "util-linux"));
        command.args(["--pdeathsig", "KILL", "--"]).arg(qemu).args(self.arguments());
        let error = self.console.with_extension("qemu");
        let said = fs::File::create(&error).unwrap_or_else(|error| panic!("cannot make a file: {error}"));
        for line in [&self.console, &self.report()] {
            fs::write(line, "").unwrap_or_else(|error| panic!("cannot make a file: {error}"));
        }
        let out = said.try_clone().unwrap_or_else(|error| panic!("cannot share a file: {error}"));
        let child = command.stdin(Stdio::null()).stdout(out).stderr(said).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        Running { child, console: self.console.clone(), report: self.report(), error, _turn: turn }
    }

    /// What it writes to its second serial line, which is for what it is told to report.
    fn report(&self) -> PathBuf {
        self.console.with_file_name("report.log")
    }

    fn arguments(&self) -> Vec<String> {
        let kvm = std::env::var("TEST_VM_ACCEL").is_ok_and(|accel| accel == "kvm");
        // An old processor has less to be set up and to be emulated.
        let accel =
            if kvm { ["-accel", "kvm", "-cpu", "host"] } else { ["-accel", "tcg,thread=multi", "-cpu", "Nehalem"] };
        let mut all: Vec<String> = accel.map(str::to_owned).to_vec();
        let mut add = |name: &str, value: String| all.extend([name.to_owned(), value]);
        for (name, value) in [
            ("-machine", "q35"),
            ("-smp", "2"),
            ("-m", "1536"),
            ("-display", "none"),
            // Without it the kernel gathers randomness for seconds.
            ("-object", "rng-builtin,id=random"),
            ("-device", "virtio-rng-pci,rng=random"),
        ] {
            add(name, value.to_owned());
        }
        add("-serial", format!("file:{}", self.console.display()));
        add("-serial", format!("file:{}", self.report().display()));
        let Firmware { manufacturer, product, uuid, asset_tag } = &self.firmware;
        add("-uuid", (*uuid).to_owned());
        add("-smbios", format!("type=1,manufacturer={manufacturer},product={product},serial={uuid}"));
        add("-smbios", format!("type=2,manufacturer={manufacturer},asset={asset_tag}"));
        let Network { net, router, open } = &self.network;
        let mut network = format!("user,id=net,restrict=on,ipv6=off,net={net},host={router}");
        for (address, port) in open {
            network.push_str(&format!(",guestfwd=tcp:{address}:80-cmd:{} {port}", self.relay.display()));
        }
        add("-netdev", network);
        add("-device", format!("virtio-net-pci,netdev=net,mac={MAC}"));
        for (index, (bus, disk, serial)) in self.disks.iter().enumerate() {
            // What the machine flushes has to outlive the machine, and not this host.
            let drive = "if=none,format=raw,discard=unmap,cache=unsafe";
            add("-drive", format!("{drive},id=disk{index},file={}", disk.path().display()));
            let device = match bus {
                Bus::Nvme => "nvme",
                Bus::Virtio => "virtio-blk-pci",
            };
            add("-device", format!("{device},drive=disk{index},serial={serial}"));
        }
        add("-kernel", self.kernel.display().to_string());
        let kernel = [
            &*format!("root=PARTUUID={ROOT_PARTITION}"),
            "rootwait rw console=ttyS0 net.ifnames=0 quiet panic=-1",
            // What the service manager does is in the journal, and so on the console; that it still waits for something is no progress.
            "systemd.show_status=no",
            // Both save seconds and concern nothing that is tested here.
            "cryptomgr.notests=1 mitigations=off",
            // A disk of the fabric is one disk, as on an instance, and not one path of several.
            "nvme_core.multipath=N",
        ];
        let told = self.told.iter().map(String::as_str);
        add("-append", kernel.into_iter().chain(told).collect::<Vec<_>>().join(" "));
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            all.push(flag.to_owned());
        }
        all
    }
}

/// A machine that is switched on. Dropping it pulls the plug.
#[derive(Debug)]
pub struct Running {
    child: Child,
    console: PathBuf,
    report: PathBuf,
    error: PathBuf,
    /// Last, so that the next machine finds this one gone.
    _turn: MutexGuard<'static, ()>,
}

impl Running {
    /// Waits until it has switched itself off; what became of it, as its epilogue says.
    ///
    /// # Panics
    /// When it has stopped getting anywhere, or QEMU failed, with the end of the console; and when there is no report.
    pub fn boot(self) -> Boot {
        let report = self.report.clone();
        let console = self.off();
        Boot::of(console, text(&report))
    }

    /// Waits until it has switched itself off; what it has written to its console.
    ///
    /// # Panics
    /// When it has stopped getting anywhere, or QEMU failed, with the end of the console.
    pub fn off(mut self) -> String {
        let mut progress = Progress::from(Instant::now());
        loop {
            let status = self.child.try_wait().unwrap_or_else(|error| panic!("cannot wait for QEMU: {error}"));
            let console = text(&self.console);
            if let Some(status) = status {
                assert!(status.success(), "QEMU failed ({status}):\n{}", self.last_words());
                return console;
            }
            if let Some(why) = progress.is_over(console.len() + text(&self.report).len(), Instant::now()) {
                panic!("the machine is on, and {why}:\n{}", self.last_words());
            }
            thread::sleep(LOOK);
        }
    }

    /// The end of what it has written, and what QEMU says. All of the console is kept, in a file that is named.
    fn last_words(&self) -> String {
        let console = text(&self.console);
        let lines: Vec<&str> = console.lines().collect();
        let end = lines[lines.len().saturating_sub(120)..].join("\n");
        format!(
            "{end}\n{}\n{}\nthe {} lines of its console are in {}",
            text(&self.report),
            text(&self.error),
            lines.len(),
            keep(&console)
        )
    }
}

/// What has been written to a serial line so far.
fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\r', "")
}

/// Keeps a console beyond the test, beside the programs under test; its path, or why there is none.
fn keep(console: &str) -> String {
    let name = thread::current().name().unwrap_or("machine").replace("::", ".");
    let path = programs::path("guest-relay").with_file_name(format!("{name}.console"));
    fs::write(&path, console).map_or_else(|error| format!("no file: {error}"), |()| path.display().to_string())
}

/// Whether a machine gets anywhere, as its console shows. A busy host makes everything slow, and nothing silent.
#[derive(Debug)]
struct Progress {
    began: Instant,
    grew: Instant,
    len: usize,
}

impl Progress {
    fn from(now: Instant) -> Self {
        Self { began: now, grew: now, len: 0 }
    }

    /// Why there is no point in waiting any longer for a console that is this long now.
    fn is_over(&mut self, len: usize, now: Instant) -> Option<String> {
        if len > self.len {
            (self.len, self.grew) = (len, now);
        }
        let (silent, all) = (now.duration_since(self.grew), now.duration_since(self.began));
        if silent > SILENCE {
            Some(format!("the console has said nothing for {} s", silent.as_secs()))
        } else if all > LIFE {
            Some(format!("the console goes on and on, for {} s", all.as_secs()))
        } else {
            None
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when it is gone already; `wait` takes its status then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_given_up_when_it_falls_silent_and_not_when_it_is_slow() {
        let began = Instant::now();
        let mut progress = Progress::from(began);
        let mut now = began;
        for len in 1..=8 {
            now += SILENCE - Duration::from_secs(1);
            assert_eq!(progress.is_over(len, now), None);
        }
        let silent = progress.is_over(8, now + SILENCE + Duration::from_secs(1)).unwrap();
        assert!(silent.contains("nothing for 301 s"), "{silent}");
    }

    #[test]
    fn a_machine_that_goes_on_for_ever_is_given_up() {
        let began = Instant::now();
        let mut progress = Progress::from(began);
        let over = (1..).find_map(|second: u64| {
            let len = usize::try_from(second).unwrap();
            progress.is_over(len, began + Duration::from_secs(second)).map(|_| second)
        });
        assert_eq!(over, Some(LIFE.as_secs() + 1));
    }
}
