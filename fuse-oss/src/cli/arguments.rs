//! What can be written on the command line, and what --help says about it.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use fuse_oss::{ByteSize, Charset, DEFAULT_CACHE_DIR, DEFAULT_RUNTIME_DIR, Prefetch, RUNTIME_DIR_VARIABLE};

/// Mount object storage (oss://, s3://, gs://, az://, file://) as a file system: read-only, or with changes that stay local.
#[derive(Debug, Parser)]
#[command(
    name = "fuse-oss",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_long_help = "\
EXAMPLES
  fuse-oss mount oss://genomes/hg38/ /mnt/hg38 --region cn-hangzhou
  fuse-oss mount oss://genomes/hg38/genome.fa /data/genome.fa
  fuse-oss mount s3://bucket/ /mnt/bucket --endpoint http://10.0.0.5:9000 --region us-east-1
  fuse-oss mount oss://genomes/hg38/ /mnt/hg38 --writable --upper /scratch --upper-size 100GiB
  fuse-oss umount /mnt/hg38
  /etc/fstab:  oss://genomes/hg38/  /mnt/hg38  fuse.fuse-oss  ro,allow_other,region=cn-hangzhou,_netdev  0 0

WHEN SOMETHING IS WRONG
  What is mounted, by which process, how full is the cache, does it help?    fuse-oss status
  Why did it fail?          the message says; more is in RUNTIME_DIR/*.log and with -v
  'Transport endpoint is not connected'   server and keeper died: fuse-oss umount DIR, then mount again
  A worker was killed       its keeper starts another, and readers only wait (Linux 6.9 and later; before, it is mounted anew)
  Cannot unmount, in use    the message names the processes; --lazy detaches the mount all the same
  Disk quota exceeded, no space left   in a --writable mount: status shows how much was written; mount with more --upper-size, or with
                            --upper on a larger disk. Writing one byte to an object copies all of it there first
  An old file is shown      a mount shows objects as they were when first looked at: mount again
  Stale file handle (ESTALE)   the object was replaced while mounted: mount again
  Something is missing      keys that are no file names ('a//b', '..', over 255 bytes) are not shown, nor is an object 'x'
                            beside a directory 'x/' or where another entry is: fuse-oss status counts them

EXIT STATUS
  0 done   64 usage   66 bucket, directory or object missing   69 storage unavailable   70 internal error
  71 mount or operating system   74 damage in the cache   77 denied, bad credentials   78 bad settings, wrong region"
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to log.
    #[command(flatten)]
    pub log: LogArguments,
}

/// How to log.
#[derive(Debug, Clone, Args)]
pub struct LogArguments {
    /// How the log on standard error is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// Log more; twice for everything. RUST_LOG, when set, decides instead.
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
}

impl LogArguments {
    /// The same for a process of ours.
    pub fn as_arguments(&self) -> Vec<String> {
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        let verbose = std::iter::repeat_n("--verbose".to_owned(), usize::from(self.verbose));
        std::iter::once(format!("--log-format={format}")).chain(verbose).collect()
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount a bucket, prefix or local directory; returns once the mount answers.
    Mount(Box<MountArguments>),
    /// Unmount; says who uses the mount when somebody does.
    #[command(visible_alias = "unmount")]
    Umount(UmountArguments),
    /// Show the servers of this machine and what they have mounted.
    Status(StatusArguments),
    /// Show, verify or empty the cache on disk.
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Cache(CacheCommands),
    /// Run the server that answers for all mounts of a cache directory (mount starts one when none runs).
    Serve(ServeArguments),
    /// Write manual pages and shell completions below a directory, as they go below /usr/share. For packages.
    #[command(hide = true)]
    Manual {
        /// Where.
        directory: PathBuf,
    },
    /// Go on as the keeper of a server; only `serve --replace` starts this.
    #[command(hide = true)]
    Keeper(KeeperArguments),
    /// Do a server's work; only `serve` starts this.
    #[command(hide = true)]
    Worker(WorkerArguments),
}

/// Which cache and how much of everything; the same for `serve` and for a server that `mount` starts.
#[derive(Debug, Clone, Args)]
pub struct CacheArguments {
    /// Directory for cached blocks; survives restarts. One server owns it, and all mounts that name it share it.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_CACHE_DIR, env = "FUSE_OSS_CACHE_DIR")]
    pub cache_dir: PathBuf,
    /// The most the cache may hold, such as 500GB or 200GiB; 0 for no cache on disk [default: a fifth of its file system;
    /// a twentieth, at most 10 GiB, of it always stays free].
    #[arg(long, value_name = "SIZE", env = "FUSE_OSS_CACHE_SIZE")]
    pub cache_size: Option<ByteSize>,
    /// Memory for blocks, such as 512MiB, shared by all mounts of the server [default: a quarter of the machine's memory, at
    /// most 2 GiB].
    #[arg(long, value_name = "SIZE", env = "FUSE_OSS_MEMORY_LIMIT")]
    pub memory_limit: Option<ByteSize>,
    /// Directory for control sockets and logs.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUNTIME_DIR, env = RUNTIME_DIR_VARIABLE)]
    pub runtime_dir: PathBuf,
}

/// `fuse-oss mount`.
#[derive(Debug, Clone, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "\
SEVERAL LOCATIONS IN ONE TREE
  fuse-oss mount oss://genomes/hg38/ /mnt --entry extra=oss://mine/extra/ --entry known/dbsnp.vcf=s3://other/db.vcf
  Each --entry puts a directory (trailing slash) or one object at a place of the tree, also inside what another one shows there:
  it wins at its place, and what is beside it stays visible. Without LOCATION the tree has the entries and nothing else.
ONE OBJECT AT ONE PATH
  fuse-oss mount oss://genomes/hg38/genome.fa /home/data/genome.fa
  Nothing else in /home/data is hidden. The file is made when it is missing, and removed again after unmounting. While it is mounted it
  can be neither renamed nor removed (EBUSY).
NAMES IN OTHER CHARACTER SETS
  fuse-oss mount oss://renders/ /mnt --locale GBK
  Keys are UTF-8; programs see and use names in GBK. What GBK does not have is shown as #U and four digits, or #L and six: the
  character's number in Unicode. Tables are those of the WHATWG standard (euro sign in GBK: 0x80).
LOCKS
  flock and fcntl locks work among the processes of this machine, and do not reach others.
CREDENTIALS
  From the environment of this command: OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET (OSS_SESSION_TOKEN) for oss://,
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN) for s3://; without them the instance's RAM or IAM role. They are
  handed to the server over its socket and appear in no process list and no log.")]
pub struct MountArguments {
    /// What to mount: oss://BUCKET/PREFIX/, s3://BUCKET/PREFIX/, gs://..., az://..., file:///DIRECTORY/ (trailing slash), or one
    /// object (none).
    pub location: Option<String>,
    /// Where: an existing, empty directory; for one object a file.
    pub directory: PathBuf,
    /// Put another location at a place of the tree, such as data/known.vcf=oss://BUCKET/KEY; as often as wanted.
    #[arg(long = "entry", value_name = "AT=LOCATION", value_parser = entry, action = ArgAction::Append)]
    pub entries: Vec<(String, oss::Location)>,
    /// Character set in which names are shown: GBK, GB18030, Big5, Shift_JIS, EUC-KR, ..., or a locale such as zh_CN.GBK.
    #[arg(long, value_name = "CHARSET", default_value = "UTF-8")]
    pub locale: Charset,
    /// Options as mount(8) and fstab have them, separated by commas; every long option below without its dashes, such as
    /// region=cn-hangzhou,allow_other,file_mode=0444, and nonempty, noexec.
    #[arg(short = 'o', value_name = "OPTIONS", action = ArgAction::Append)]
    pub fstab_options: Vec<String>,
    /// Serve this mount from this process, until it is unmounted or Ctrl-C.
    #[arg(short, long)]
    pub foreground: bool,
    /// Let users other than the one who mounts look inside.
    #[arg(long)]
    pub allow_other: bool,
    /// Permission bits of files, octal.
    #[arg(long, value_name = "MODE", value_parser = octal, default_value = "0555")]
    pub file_mode: u32,
    /// Permission bits of directories, octal.
    #[arg(long, value_name = "MODE", value_parser = octal, default_value = "0555")]
    pub dir_mode: u32,
    /// User id that owns everything [default: the server's, usually root].
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group id of everything [default: the server's, usually root].
    #[arg(long)]
    pub gid: Option<u32>,
    /// Mount over a directory that is not empty, hiding what is in it.
    #[arg(long)]
    pub nonempty: bool,
    /// Let programs change the mount, locally: create, write, rename and delete anything. None of it is ever uploaded, and all of it is
    /// gone after unmounting.
    #[arg(long)]
    pub writable: bool,
    /// Directory on a local disk (xfs, ext4 or btrfs) that receives what is written [default: CACHE_DIR/upper].
    #[arg(long, value_name = "DIR", requires = "writable")]
    pub upper: Option<PathBuf>,
    /// How much may be written, such as 100GiB, where the disk has project quotas [default: what is free, less a twentieth of
    /// the disk, at most 10 GiB].
    #[arg(long, value_name = "SIZE", requires = "writable")]
    pub upper_size: Option<ByteSize>,
    /// Bring in ahead of time, in the background: metadata (all names) or all (names, then content, as far as the cache holds it);
    /// fuse-oss status shows how far it is.
    #[arg(long, value_name = "WHAT", value_parser = prefetch, default_value = "none")]
    pub prefetch: Prefetch,
    /// The most that the cache on disk may hold of this mount; 0 for nothing. An object that is longer is not kept at all [default: the same
    /// as of others].
    #[arg(long, value_name = "SIZE")]
    pub mount_cache_size: Option<ByteSize>,
    /// The least that a random read fetches, up to 8MiB [default: what pays with the store].
    #[arg(long, value_name = "SIZE")]
    pub fetch_size: Option<ByteSize>,
    /// The most names the mount remembers, at some 100 bytes of memory each; one directory may have four fifths of them [default:
    /// 10000000].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1000..=100_000_000))]
    pub max_names: Option<u64>,
    /// Where the store is asked: https://oss-cn-hangzhou-internal.aliyuncs.com, http://127.0.0.1:9000 [default: the region's].
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// The bucket's region: cn-hangzhou, us-east-1 [default: from the endpoint's name or the instance].
    #[arg(long)]
    pub region: Option<String>,
    /// How the bucket is put into URLs: auto, path or virtual-hosted.
    #[arg(long, value_name = "HOW", value_parser = addressing)]
    pub addressing: Option<oss::Addressing>,
    /// Do not sign requests: public buckets.
    #[arg(long)]
    pub anonymous: bool,
    /// Seconds for a connection to be made [default: 5].
    #[arg(long, value_name = "SECONDS")]
    pub connect_timeout: Option<u64>,
    /// Seconds for the first byte of an answer, and between two pieces of it [default: 30].
    #[arg(long, value_name = "SECONDS")]
    pub read_timeout: Option<u64>,
    /// Seconds after which a read gives up retrying and fails with an I/O error [default: 300].
    #[arg(long, value_name = "SECONDS")]
    pub total_timeout: Option<u64>,
    /// Which cache and how much.
    #[command(flatten)]
    pub cache: CacheArguments,
    /// Flags that mount(8) passes to a helper; they have no effect but -f.
    #[command(flatten)]
    pub helper: HelperArguments,
}

/// The flags mount(8) gives to `/sbin/mount.TYPE`.
#[derive(Debug, Clone, Default, Args)]
pub struct HelperArguments {
    /// Check everything and do not mount (mount -f).
    #[arg(long, hide = true)]
    pub fake: bool,
}

/// `fuse-oss umount`.
#[derive(Debug, Args)]
pub struct UmountArguments {
    /// The directory it is mounted on.
    pub directory: PathBuf,
    /// Take the mount out of the tree now, even if it is in use; processes that have files open keep them.
    #[arg(short, long)]
    pub lazy: bool,
    /// Directory of control sockets.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUNTIME_DIR, env = RUNTIME_DIR_VARIABLE)]
    pub runtime_dir: PathBuf,
}

/// `fuse-oss status`.
#[derive(Debug, Args)]
#[command(after_help = "\
METRICS
  Everything that is counted is in --json under 'metrics'. For Prometheus and its like, each server
  answers on a Unix socket beside its control socket; only its user and root may connect. The path
  (RUNTIME_DIR/HASH.metrics) is in the status:
    curl --unix-socket PATH http://localhost/metrics
  Reads that the kernel answers by itself, from its page cache or of files it reads alone, are not
  counted.")]
pub struct StatusArguments {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Directory of control sockets.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUNTIME_DIR, env = RUNTIME_DIR_VARIABLE)]
    pub runtime_dir: PathBuf,
}

/// `fuse-oss cache`.
#[derive(Debug, Args)]
pub struct CacheCommands {
    /// What to do with it.
    #[command(subcommand)]
    pub command: CacheCommand,
    /// The cache's directory.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_CACHE_DIR, env = "FUSE_OSS_CACHE_DIR", global = true)]
    pub cache_dir: PathBuf,
    /// Directory of control sockets.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUNTIME_DIR, env = RUNTIME_DIR_VARIABLE, global = true)]
    pub runtime_dir: PathBuf,
}

/// What to do with the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the objects that something is cached of, with how much and when it was last used.
    #[command(
        visible_alias = "list",
        after_help = "\
EXAMPLES
  fuse-oss cache ls                            what is cached
  fuse-oss cache ls --json | jq '.[] | select(.complete | not).location'
USED is how long ago an object was last opened or fetched."
    )]
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read everything back from the disk, compare it with its checksums, and forget what is damaged.
    #[command(after_help = "\
EXAMPLE
  fuse-oss cache verify --cache-dir /scratch/cache && echo all is well
What is damaged is fetched again when it is wanted; nothing has to be repaired. Damage that nobody but the disk can have
done is a reason to look at the disk (dmesg, smartctl).
EXIT STATUS
  0 all is well   74 something was damaged   other numbers: see fuse-oss --help")]
    Verify {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove everything from the cache that is not in use.
    #[command(after_help = "\
EXAMPLE
  fuse-oss cache clear
Mounts go on; what they need is fetched again. Objects that a program has open stay, and are named.")]
    Clear,
}

/// `fuse-oss serve`.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Which cache and how much.
    #[command(flatten)]
    pub cache: CacheArguments,
    /// End this many seconds after the last mount has gone [default: never].
    #[arg(long, value_name = "SECONDS")]
    pub idle_exit: Option<u64>,
    /// Go into the background once ready; the log then goes to RUNTIME_DIR/HASH.log.
    #[arg(long)]
    pub detach: bool,
    /// Have the server that runs for this cache directory go on with this program: mounts stay, whoever reads from them waits for a
    /// moment.
    #[arg(long, conflicts_with_all = ["detach", "idle_exit"])]
    pub replace: bool,
    /// Seconds to wait, on SIGTERM, for mounts that are in use; then they are detached. A second signal detaches them at once.
    #[arg(long, value_name = "SECONDS", default_value_t = STOP_TIMEOUT, value_parser = clap::value_parser!(u64).range(..=3600))]
    pub stop_timeout: u64,
    /// Treat the kernel as one that cannot send requests again (before 6.9), to try what happens then.
    #[arg(long, hide = true)]
    pub without_resend: bool,
}

/// How long mounts in use are waited for when a server ends, in seconds, unless told otherwise.
pub const STOP_TIMEOUT: u64 = 10;

/// `fuse-oss keeper`.
#[derive(Debug, Args)]
pub struct KeeperArguments {
    /// Say what state this program can go on with, and do nothing.
    #[arg(long)]
    pub understands: bool,
    /// The descriptor of the state.
    #[arg(long)]
    pub state_fd: Option<i32>,
}

/// `fuse-oss worker`.
#[derive(Debug, Args)]
pub struct WorkerArguments {
    /// The descriptor of the line to the keeper.
    #[arg(long)]
    pub link_fd: i32,
    /// The descriptor of the control socket.
    #[arg(long)]
    pub control_fd: i32,
    /// The descriptor of the cache directory's lock.
    #[arg(long)]
    pub lock_fd: i32,
    /// The descriptor of the socket for metrics.
    #[arg(long)]
    pub metrics_fd: Option<i32>,
    /// The server's settings, as JSON.
    #[arg(long)]
    pub settings: String,
}

/// Reads what is to be brought in ahead of time.
pub fn prefetch(text: &str) -> Result<Prefetch, String> {
    text.parse()
}

/// Reads a place and the location that is to be there. A place may have equals signs in it, a scheme has none.
pub fn entry(text: &str) -> Result<(String, oss::Location), String> {
    let bad = || format!("{text:?} does not say what is to be where: write AT=LOCATION, such as data/x=oss://BUCKET/x");
    let scheme = text.find("://").ok_or_else(bad)?;
    let equals = text[..scheme].rfind('=').ok_or_else(bad)?;
    let location = text[equals + 1..].parse().map_err(|error: oss::LocationError| error.to_string())?;
    Ok((text[..equals].to_owned(), location))
}

/// Reads permission bits.
pub fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| format!("{text:?} is no octal mode between 0000 and 0777"))
}

/// Reads how a bucket is addressed.
pub fn addressing(text: &str) -> Result<oss::Addressing, String> {
    match text {
        "auto" => Ok(oss::Addressing::Auto),
        "path" => Ok(oss::Addressing::Path),
        "virtual-hosted" | "virtual" => Ok(oss::Addressing::VirtualHosted),
        _ => Err(format!("{text:?} is no way to address a bucket: write auto, path or virtual-hosted")),
    }
}
