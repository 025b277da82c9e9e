//! QEMU: the hardware of a cloud's instance, switched on and watched.
//!
//! Everything is emulated (TCG) unless `TEST_VM_ACCEL=kvm` says otherwise: nested virtualisation opens `/dev/kvm` on many machines
//! and works on few of them.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::disk::Disk;
use crate::{programs, tools};

/// By which id the kernel finds the root partition, as `tests/vm/image.sh` makes it.
const ROOT_PARTITION: &str = "6a1f0f3e-5d0c-4c2e-9f57-0b1d2c3e4f50";

/// How often the console is looked at.
const LOOK: Duration = Duration::from_millis(200);

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
    firmware: Firmware,
    network: Network,
    disks: Vec<(Bus, Disk, String)>,
}

impl Machine {
    /// A machine without disks, whose console is written to a file in `folder`.
    pub fn new(folder: &Path, kernel: &Path, firmware: Firmware, network: Network) -> Self {
        Self { kernel: kernel.to_owned(), console: folder.join("console.log"), firmware, network, disks: Vec::new() }
    }

    /// Starts another kernel from now on.
    pub fn boot_with(&mut self, kernel: &Path) {
        kernel.clone_into(&mut self.kernel);
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

    /// Switches it on.
    ///
    /// # Panics
    /// When QEMU cannot be started.
    pub fn power_on(&self) -> Running {
        let qemu = tools::system("qemu-system-x86_64", "qemu-system-x86");
        // It must not go on when the test is killed; a signal at the end of its parent is the only thing that nothing can skip.
        let mut command = Command::new(tools::system("setpriv", "util-linux"));
        command.args(["--pdeathsig", "KILL", "--"]).arg(qemu).args(self.arguments());
        let error = self.console.with_extension("qemu");
        let said = fs::File::create(&error).unwrap_or_else(|error| panic!("cannot make a file: {error}"));
        fs::write(&self.console, "").unwrap_or_else(|error| panic!("cannot make a file: {error}"));
        let out = said.try_clone().unwrap_or_else(|error| panic!("cannot share a file: {error}"));
        let child = command.stdin(Stdio::null()).stdout(out).stderr(said).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        Running { child, console: self.console.clone(), monitor: self.monitor(), error, began: Instant::now() }
    }

    fn monitor(&self) -> PathBuf {
        self.console.with_file_name("monitor")
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
        add("-monitor", format!("unix:{},server=on,wait=off", self.monitor().display()));
        add("-serial", format!("file:{}", self.console.display()));
        let Firmware { manufacturer, product, uuid, asset_tag } = &self.firmware;
        add("-uuid", (*uuid).to_owned());
        add("-smbios", format!("type=1,manufacturer={manufacturer},product={product},serial={uuid}"));
        add("-smbios", format!("type=2,manufacturer={manufacturer},asset={asset_tag}"));
        let relay = programs::path("guest-relay");
        let Network { net, router, open } = &self.network;
        let mut network = format!("user,id=net,restrict=on,ipv6=off,net={net},host={router}");
        for (address, port) in open {
            network.push_str(&format!(",guestfwd=tcp:{address}:80-cmd:{} {port}", relay.display()));
        }
        add("-netdev", network);
        add("-device", format!("virtio-net-pci,netdev=net,mac={MAC}"));
        for (index, (bus, disk, serial)) in self.disks.iter().enumerate() {
            add("-drive", format!("if=none,id=disk{index},format=raw,discard=unmap,file={}", disk.path().display()));
            let device = match bus {
                Bus::Nvme => "nvme",
                Bus::Virtio => "virtio-blk-pci",
            };
            add("-device", format!("{device},drive=disk{index},serial={serial}"));
        }
        add("-kernel", self.kernel.display().to_string());
        let kernel = [
            &format!("root=PARTUUID={ROOT_PARTITION}"),
            "rootwait rw console=ttyS0 net.ifnames=0 quiet panic=-1",
            // Both save seconds and concern nothing that is tested here.
            "cryptomgr.notests=1 mitigations=off",
            // A disk of the fabric is one disk, as on an instance, and not one path of several.
            "nvme_core.multipath=N",
        ];
        add("-append", kernel.join(" "));
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
    monitor: PathBuf,
    error: PathBuf,
    began: Instant,
}

impl Running {
    /// What it has written to its console so far.
    pub fn console(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&text).replace('\r', "")
    }

    /// How long ago it was switched on.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits until it has switched itself off; what it has written.
    ///
    /// # Panics
    /// When it has not within `limit`, or QEMU failed, with the end of the console.
    pub fn off(mut self, limit: Duration) -> String {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().ok().flatten() {
                assert!(
                    status.success(),
                    "QEMU failed ({status}): {}",
                    fs::read_to_string(&self.error).unwrap_or_default()
                );
                return self.console();
            }
            assert!(
                Instant::now() < end,
                "the machine is still on after {} s:\n{}",
                limit.as_secs(),
                self.last_words()
            );
            thread::sleep(LOOK);
        }
    }

    /// Waits until its console says `text`.
    ///
    /// # Panics
    /// When it does not within `limit`, with the end of the console.
    pub fn says(&mut self, text: &str, limit: Duration) {
        let end = Instant::now() + limit;
        while !self.console().contains(text) {
            assert!(Instant::now() < end, "no {text:?} after {} s:\n{}", limit.as_secs(), self.last_words());
            let off = self.child.try_wait().ok().flatten();
            assert!(
                off.is_none() || self.console().contains(text),
                "off ({off:?}) without {text:?}:\n{}",
                self.last_words()
            );
            thread::sleep(LOOK);
        }
    }

    /// Waits until its console says `text` and presses the power button; what it has written when it is off.
    ///
    /// # Panics
    /// When it does not say that, or is still on, within `limit`.
    pub fn off_after(mut self, text: &str, limit: Duration) -> String {
        self.says(text, limit);
        let mut monitor = UnixStream::connect(&self.monitor).unwrap_or_else(|error| panic!("no monitor: {error}"));
        writeln!(monitor, "system_powerdown").unwrap_or_else(|error| panic!("no monitor: {error}"));
        // It is read before the connection ends; closing it at once would take the command back.
        let console = self.off(limit);
        drop(monitor);
        console
    }

    fn last_words(&self) -> String {
        let text = self.console();
        let lines: Vec<&str> = text.lines().collect();
        let error = fs::read_to_string(&self.error).unwrap_or_default();
        format!("{}\n{error}", lines[lines.len().saturating_sub(120)..].join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when it is gone already; `wait` takes its status then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
