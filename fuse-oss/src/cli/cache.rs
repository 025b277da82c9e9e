//! `fuse-oss cache`: what is in the cache, whether it is all right, and to empty it.
//!
//! A server that uses the directory is asked, because it alone knows what is open. Where none runs, its lock is taken and the
//! directory is worked on directly; nothing can be mounted with it meanwhile.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fuse_oss::cache::maintenance::ago;
use fuse_oss::cache::{Cache, Cleared, Listed, Verified};
use fuse_oss::client::Client;
use fuse_oss::runtime::{CacheLock, RuntimePaths, private_dir};
use fuse_oss::server::human;
use fuse_oss::{ErrorKind, MountError};
use serde::Serialize;

use super::arguments::{CacheCommand, CacheCommands};

/// How often a terminal shows how far verifying is.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Whoever can be asked.
enum Owner {
    Server(Client),
    /// The lock is held as long as this lives.
    Ourselves {
        cache: Cache,
        _lock: CacheLock,
    },
}

impl Owner {
    fn find(cache_dir: &Path, runtime_dir: &Path) -> Result<Self, MountError> {
        let paths = RuntimePaths::new(runtime_dir, cache_dir)?;
        if let Some(client) = Client::connect(&paths.socket)? {
            return Ok(Self::Server(client));
        }
        let shown = cache_dir.display();
        if !cache_dir.exists() {
            let message = format_args!("there is no cache directory {shown}; name the right one with --cache-dir");
            return Err(MountError::new(ErrorKind::NotFound, message));
        }
        let cache_dir = private_dir(cache_dir, "cache directory")?;
        let lock = CacheLock::take(&cache_dir, &paths)?;
        // Nothing is put into it, so it needs no limits.
        let cache = Cache::new(&cache_dir, u64::MAX, 0, Arc::default()).map_err(|error| {
            MountError::new(ErrorKind::System, format_args!("cannot use the cache directory {shown}: {error}"))
        })?;
        Ok(Self::Ourselves { cache, _lock: lock })
    }

    fn list(&mut self) -> Result<Vec<Listed>, MountError> {
        match self {
            Self::Ourselves { cache, .. } => Ok(cache.list()),
            Self::Server(client) => {
                let mut all = Vec::new();
                for shard in 0..=u8::MAX {
                    all.extend(client.cache_list(shard)?);
                }
                Ok(all)
            }
        }
    }

    fn verify(&mut self, mut progress: impl FnMut(u64, u64)) -> Result<Verified, MountError> {
        match self {
            Self::Ourselves { cache, .. } => Ok(cache.verify_while(|so_far| {
                progress(so_far.objects, so_far.bytes);
                true
            })),
            Self::Server(client) => client.cache_verify(progress),
        }
    }

    fn clear(&mut self) -> Result<Cleared, MountError> {
        match self {
            Self::Ourselves { cache, .. } => Ok(cache.clear()),
            Self::Server(client) => client.cache_clear(),
        }
    }
}

/// Does what was asked.
pub fn run(arguments: &CacheCommands) -> Result<(), MountError> {
    let mut owner = Owner::find(&arguments.cache_dir, &arguments.runtime_dir)?;
    match arguments.command {
        CacheCommand::Ls { json } => list(&mut owner, json),
        CacheCommand::Verify { json } => verify(&mut owner, json),
        CacheCommand::Clear => clear(&mut owner),
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    listed: &'a Listed,
    complete: bool,
}

fn list(owner: &mut Owner, json: bool) -> Result<(), MountError> {
    let mut list = owner.list()?;
    list.sort_by(|a, b| a.location.cmp(&b.location));
    if json {
        let shown: Vec<Shown<'_>> =
            list.iter().map(|listed| Shown { listed, complete: listed.is_complete() }).collect();
        return print_json(&shown);
    }
    let now = SystemTime::now();
    let mut out = String::new();
    if !list.is_empty() {
        out.push_str("      SIZE     CACHED       USED  OBJECT\n");
    }
    for it in &list {
        let share = if it.is_complete() {
            "complete".to_owned()
        } else {
            let percent = u128::from(it.cached) * 100 / u128::from(it.size.max(1));
            format!("{percent} %")
        };
        let (size, used) = (human(it.size), ago(it.last_used, now));
        out.push_str(&format!("{size:>10} {share:>10} {used:>10}  {}\n", printable(&it.location)));
    }
    let (cached, disk) = list.iter().fold((0, 0), |(cached, disk), it| (cached + it.cached, disk + it.disk));
    out.push_str(&format!("{} objects, {} of them, {} on the disk\n", list.len(), human(cached), human(disk)));
    print(&out)
}

fn verify(owner: &mut Owner, json: bool) -> Result<(), MountError> {
    let terminal = std::io::stderr().is_terminal();
    let mut shown = Instant::now();
    let verified = owner.verify(|objects, bytes| {
        if terminal && shown.elapsed() >= SHOW_EVERY {
            shown = Instant::now();
            eprint!("\r{objects} objects, {} read  ", human(bytes));
        }
    })?;
    if terminal {
        eprint!("\r{:60}\r", "");
    }
    if json {
        print_json(&verified)?;
    } else {
        let mut out = String::new();
        for damaged in &verified.damaged {
            let what = if damaged.wrong {
                "is not what its store describes".to_owned()
            } else {
                format!("{} damaged", human(damaged.bytes))
            };
            out.push_str(&format!("{}: {what}\n", printable(&damaged.location)));
        }
        out.push_str(&format!("{} objects, {} read\n", verified.objects, human(verified.bytes)));
        print(&out)?;
    }
    if verified.damaged_objects > 0 {
        return Err(MountError::new(
            ErrorKind::Damaged,
            format_args!(
                "{} objects were damaged; the damaged parts are forgotten and fetched again when they are wanted. If nobody wrote \
                 in the cache directory, look at its disk (dmesg, smartctl)",
                verified.damaged_objects
            ),
        ));
    }
    Ok(())
}

fn clear(owner: &mut Owner) -> Result<(), MountError> {
    let cleared = owner.clear()?;
    let mut out = format!("{} objects removed, {} free again\n", cleared.objects, human(cleared.disk));
    if cleared.stayed_objects > 0 {
        out.push_str(&format!("{} objects stay, because they are in use:\n", cleared.stayed_objects));
        for stayed in &cleared.stayed {
            out.push_str(&format!("  {} ({})\n", printable(&stayed.location), human(stayed.disk)));
        }
    }
    print(&out)
}

/// Locations are escaped before they are stored, but whoever wrote in the directory need not have been us.
fn printable(location: &str) -> String {
    if location.contains(char::is_control) { location.escape_debug().to_string() } else { location.to_owned() }
}

fn print_json(value: &impl Serialize) -> Result<(), MountError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| MountError::new(ErrorKind::Internal, format_args!("cannot print the answer: {error}")))?;
    print(&format!("{text}\n"))
}

/// Prints; that the reader has seen enough (`| head`) is all right.
fn print(text: &str) -> Result<(), MountError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(MountError::new(ErrorKind::System, format_args!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
