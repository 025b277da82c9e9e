//! A place to boot in: a cloud with its metadata service, a bucket, a NAS, disks of every kind, and what the machine is to do there.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::disk::{self, Disk, RootIdentity};
use super::image::{Image, Payload};
use super::machine::{Bus, Firmware, MAC, Machine, Network};
use super::package;
use crate::double::{AccessKey, Double, DoubleConfig};
use crate::imds::Imds;
use crate::tools;

/// The bucket that everything is in.
pub const BUCKET: &str = "lab";
/// The secret half of the role's key. It must not be found anywhere afterwards.
pub const SECRET: &str = "this-is-the-secret-of-the-role";
/// The token of the role.
pub const TOKEN: &str = "this-is-the-token-of-the-role";

/// Whose machine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon EC2, with S3.
    Aws,
    /// Alibaba Cloud ECS, with OSS.
    Alibaba,
}

impl Cloud {
    /// How its object storage is written.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Aws => "s3",
            Self::Alibaba => "oss",
        }
    }

    fn region(self) -> &'static str {
        match self {
            Self::Aws => "xx-test-1",
            Self::Alibaba => "cn-test",
        }
    }

    /// Where the object server is for the machine.
    fn store(self) -> Ipv4Addr {
        match self {
            Self::Aws => Ipv4Addr::new(169, 254, 10, 1),
            Self::Alibaba => Ipv4Addr::new(100, 100, 10, 1),
        }
    }

    /// The network that both are in.
    fn network(self, open: Vec<(Ipv4Addr, u16)>) -> Network {
        match self {
            Self::Aws => Network { net: "169.254.0.0/16", router: Ipv4Addr::new(169, 254, 0, 2), open },
            Self::Alibaba => Network { net: "100.100.0.0/16", router: Ipv4Addr::new(100, 100, 0, 2), open },
        }
    }

    fn metadata(self) -> (Imds, Ipv4Addr) {
        match self {
            Self::Aws => (Imds::aws(), Ipv4Addr::new(169, 254, 169, 254)),
            Self::Alibaba => {
                let imds = Imds::aliyun();
                // cloud-init of Debian 12 knows no tokens there. The agent does, and uses them.
                imds.answer_without_token(true);
                (imds, Ipv4Addr::new(100, 100, 100, 200))
            }
        }
    }

    fn firmware(self) -> Firmware {
        match self {
            Self::Aws => Firmware {
                manufacturer: "Amazon EC2",
                product: "m7.large",
                uuid: "ec2e1916-9099-7caf-fd21-012345abcdef",
                asset_tag: "i-0double",
            },
            Self::Alibaba => Firmware {
                manufacturer: "Alibaba Cloud",
                product: "Alibaba Cloud ECS",
                uuid: "4d2d8e64-19c4-4f4c-a0a9-0b6a5c1d2e3f",
                asset_tag: "Not Specified",
            },
        }
    }
}

/// Everything around a machine, and the machine.
#[derive(Debug)]
pub struct Site {
    /// Whose.
    pub cloud: Cloud,
    /// The object server.
    pub store: Double,
    /// The metadata service.
    pub imds: Imds,
    /// The machine.
    pub machine: Machine,
    /// What the NAS has: names and SHA-256.
    pub nas: Vec<(String, String)>,
    /// What the bucket has below `input/`: names and SHA-256.
    pub input: Vec<(String, String)>,
    /// The SHA-256 of all files of the NAS and all of the bucket, one after the other, by name.
    pub all: String,
    root: RootIdentity,
    foreign: String,
    /// Last, so that it outlives what uses its files.
    folder: TempDir,
}

impl Site {
    /// A place with everything in it, and a machine that is switched off and knows nothing.
    ///
    /// # Panics
    /// When something of it cannot be made.
    pub fn new(cloud: Cloud) -> Self {
        Self::with(cloud, &[])
    }

    /// The same with more in the image: files of `tests/vm/guest`, and where they go.
    ///
    /// # Panics
    /// As [`Site::new`].
    pub fn with(cloud: Cloud, more: &[(&str, &str)]) -> Self {
        Self::with_payload(cloud, more.iter().map(|(name, to)| Payload::File(guest(name), (*to).to_owned())))
    }

    /// The same with the newer kernel.
    ///
    /// # Panics
    /// As [`Site::new`], and when there is none.
    pub fn with_newer_kernel(cloud: Cloud) -> Self {
        let (kernel, modules) = Image::made().newer_kernel();
        let mut site = Self::with_payload(cloud, [Payload::File(modules, "/usr/lib/modules".to_owned())]);
        site.machine.boot_with(&kernel);
        site
    }

    fn with_payload(cloud: Cloud, more: impl IntoIterator<Item = Payload>) -> Self {
        let folder =
            tempfile::Builder::new().prefix("vm-").tempdir().unwrap_or_else(|error| panic!("no directory: {error}"));
        let path = |name: &str| folder.path().join(name);
        let key = AccessKey::new("ROLEKEYID", SECRET).with_token(TOKEN, Duration::from_secs(6 * 3600));
        let (imds, address) = cloud.metadata();
        imds.set_role("worker", &key);
        let card = format!("network/interfaces/macs/{MAC}");
        for (name, value) in [
            ("device-number", "0"),
            ("mac", MAC),
            // Without it cloud-init takes the machine for one of EC2-Classic and asks for an address twice.
            ("vpc-id", "vpc-0double"),
            ("local-ipv4s", "169.254.0.15"),
            ("subnet-ipv4-cidr-block", "169.254.0.0/16"),
        ] {
            imds.set(&format!("{card}/{name}"), Some(value));
        }
        let store = Double::start(DoubleConfig::empty().bucket(BUCKET, cloud.region()).key(key));

        // What is read: some files small, one larger than a block.
        let (mut nas, mut input, mut all) = (Vec::new(), Vec::new(), Vec::new());
        make_directory(&path("nas"));
        for (seed, name, len) in [(1, "genome.fa", 3_000_017), (2, "genome.fa.fai", 211)] {
            let file = path("nas").join(name);
            nas.push((name.to_owned(), disk::made_up(&file, len, seed)));
            all.extend(read(&file));
        }
        for (seed, name, len) in [(3, "a.bin", 5_000_011), (4, "b.bin", 17), (5, "deep/er/c.txt", 70_001)] {
            let file = path("object");
            input.push((name.to_owned(), disk::made_up(&file, len, seed)));
            let bytes = read(&file);
            if name.ends_with(".bin") {
                all.extend(&bytes);
            }
            store.put(BUCKET, &format!("input/{name}"), bytes);
        }
        disk::made_up(&path("object"), 0, 0);
        store.put(BUCKET, "work.sh", read(&guest("task.sh")));
        let whole = path("object");
        fs::write(&whole, &all).unwrap_or_else(|error| panic!("cannot write: {error}"));
        let all = Disk::at(&whole).sha256();

        let image = Image::made();
        let mut payload = payload(cloud, &path("nas"), package::debian(&path("package")));
        payload.extend(more);
        let root = image.with(&path("root.img"), &payload);
        let network = cloud.network(vec![(address, port(&imds.endpoint())), (cloud.store(), store.port())]);
        let mut machine = Machine::new(folder.path(), &image.kernel(), cloud.firmware(), network);
        let identity = root.identity();
        machine.attach(Bus::Nvme, root, "vol0root");
        let foreign = Disk::foreign(&path("foreign.img"), 400);
        let sum = foreign.sha256();
        machine.attach(Bus::Virtio, foreign, "foreign");
        machine.attach(Bus::Virtio, Disk::empty(&path("data.img"), 512), "data");
        let site = Self { cloud, store, imds, machine, nas, input, all, root: identity, foreign: sum, folder };
        site.with_instance_store()
    }

    fn with_instance_store(mut self) -> Self {
        self.empty_instance_store();
        self
    }

    /// What stopping and starting does to a machine that is off: its own disks are new ones.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn empty_instance_store(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        match self.cloud {
            Cloud::Aws => {
                self.machine.detach("hypervisor");
                let drawer = Disk::drawer(&path("drawer.img"), 1300, &[("store0", 512), ("store1", 512)]);
                self.machine.attach(Bus::Virtio, drawer, "hypervisor");
            }
            // There, every NVMe disk that is not a cloud disk is the instance's own.
            Cloud::Alibaba => {
                for name in ["store0", "store1"] {
                    self.machine.detach(name);
                    self.machine.attach(Bus::Nvme, Disk::empty(&path(name), 512), name);
                }
            }
        }
    }

    /// The settings of the object server for the node.
    pub fn storage(&self) -> String {
        let Self { cloud, .. } = self;
        let (scheme, at, region) = (cloud.scheme(), cloud.store(), cloud.region());
        format!("storage: {{{scheme}: {{endpoint: 'http://{at}', region: {region}}}}}\n")
    }

    /// A location in the bucket.
    pub fn location(&self, key: &str) -> String {
        format!("{}://{BUCKET}/{key}", self.cloud.scheme())
    }

    /// An object as text.
    ///
    /// # Panics
    /// When there is none, with those that there are.
    pub fn text(&self, key: &str) -> String {
        let Some(bytes) = self.store.get(BUCKET, key) else {
            let all: Vec<String> = self.store.objects(BUCKET).into_keys().collect();
            panic!("there is no object {key}; there are {}", all.join(", "));
        };
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The root disk and the disk of somebody else are what they were.
    ///
    /// # Panics
    /// When one is not.
    pub fn nothing_was_harmed(&self) {
        assert!(self.machine.disk("vol0root").identity() == self.root, "the root disk is not what it was");
        assert_eq!(self.machine.disk("foreign").sha256(), self.foreign, "somebody's data is not what it was");
    }
}

/// What lists of checksums say: the sum and the name of each file, as `sha256sum` prints them.
pub fn as_sums(files: &[(String, String)]) -> String {
    let mut lines: Vec<String> = files.iter().map(|(name, sum)| format!("{sum}  ./{name}\n")).collect();
    lines.sort_by(|a, b| a[64..].cmp(&b[64..]));
    lines.concat()
}

fn port(endpoint: &str) -> u16 {
    let port = endpoint.rsplit(':').next().and_then(|port| port.parse().ok());
    port.unwrap_or_else(|| panic!("no port in {endpoint}"))
}

fn payload(cloud: Cloud, nas: &Path, package: PathBuf) -> Vec<Payload> {
    let to = |from: PathBuf, to: &str| Payload::File(from, to.to_owned());
    let unit = |name: &str| to(guest(name), &format!("/etc/systemd/system/{name}"));
    let program = |name: &str| to(guest(name), &format!("/usr/local/sbin/{name}"));
    let mut all = vec![Payload::Package(package), to(nas.to_owned(), "/srv/nas/reference")];
    all.extend([unit("epilogue.service"), program("epilogue.sh")]);
    if cloud == Cloud::Aws {
        all.extend([unit("instance-store.service"), program("instance-store.sh")]);
    }
    all
}

fn guest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/guest").join(name)
}

fn make_directory(path: &Path) {
    tools::done(std::process::Command::new("mkdir").arg(path));
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}
