//! Bringing a directory of object storage to this machine: many objects at once, verified.
//!
//! Names of objects are hostile: anybody who may write to the bucket chooses them. So a key becomes a path by the rules in [`names`] or
//! not at all, and a path is walked one name at a time from the directory's own descriptor, following no link: whatever is in the
//! bucket, and whoever changes the directory meanwhile, nothing is written outside of it. A file appears when it is whole.

mod names;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use oss::transfer::{Comparison, DownloadOptions, TransferBudget, compare, download};
use oss::{ErrorKind, Key, ListRequest, Location, Store};

use crate::console::{Bar, Console};
use crate::exit;
use crate::outcome::{Cause, Failure};
use names::{Object, Plan, plan};

/// What has become of it.
#[derive(Debug, Default)]
pub struct Pulled {
    /// How many files are here now.
    pub files: usize,
    /// How many bytes they hold.
    pub bytes: u64,
    /// How many of them were here before, with the same content.
    pub kept: usize,
    /// How many came of objects of which the store has no checksum.
    pub unverified: usize,
    /// What is not here, with the reasons.
    pub failed: Vec<Failure>,
}

/// Fetches all objects below `source` into `target`, which is made when it is missing.
///
/// # Errors
/// When the objects cannot be listed, there are none, or the directory cannot be used. What fails later is in [`Pulled::failed`].
pub async fn pull_directory(
    store: &Arc<dyn Store>,
    source: &Location,
    target: &Path,
    budget: &TransferBudget,
    console: &Console,
) -> Result<Pulled, Failure> {
    let objects = list(store, source).await?;
    if objects.is_empty() {
        let message = format!("there is nothing below {}; look whether its name is right", source.escaped());
        return Err(Failure::new(Cause::User, exit::INPUT_MISSING, message));
    }
    let directory = blocking(target.to_owned(), |target| {
        std::fs::create_dir_all(target)?;
        target.canonicalize()
    });
    fetch(store, source, &directory.await?, plan(objects), budget, console).await
}

/// Fetches one object into `target`: a directory that is there, or what the file is to be called.
///
/// # Errors
/// As [`pull_directory`].
pub async fn pull_object(
    store: &Arc<dyn Store>,
    source: &Location,
    target: &Path,
    budget: &TransferBudget,
    console: &Console,
) -> Result<Pulled, Failure> {
    let meta = store.head(source.key()).await.map_err(|error| Failure::reading(&source.escaped(), &error))?;
    let base = source.key().base_name().to_owned();
    let place = blocking(target.to_owned(), move |target| {
        // A trailing slash means a directory, whether it is there or not.
        let wants_directory = target.as_os_str().as_bytes().ends_with(b"/");
        if wants_directory || target.is_dir() {
            std::fs::create_dir_all(target)?;
            return Ok((target.canonicalize()?, base));
        }
        let name = target.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok((parent.canonicalize()?, name.to_owned()))
    });
    let (directory, name) = place.await?;
    let object = Object { key: source.key().clone(), name, size: meta.size };
    fetch(store, source, &directory, plan(vec![object]), budget, console).await
}

/// All objects below `source`, with their names relative to it.
async fn list(store: &Arc<dyn Store>, source: &Location) -> Result<Vec<Object>, Failure> {
    let prefix = source.key().as_str();
    let mut request = ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() };
    let mut objects = Vec::new();
    loop {
        let page = store.list(request.clone()).await.map_err(|error| Failure::reading(&source.escaped(), &error))?;
        objects.extend(page.objects.into_iter().filter_map(|meta| {
            let name = meta.key.as_str().strip_prefix(prefix)?.to_owned();
            Some(Object { key: meta.key, name, size: meta.size })
        }));
        let Some(next) = page.continuation else { return Ok(objects) };
        request.continuation = Some(next);
    }
}

async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let shown = path.display().to_string();
    let done = tokio::task::spawn_blocking(move || work(&path)).await.map_err(Failure::platform)?;
    done.map_err(|error| unusable(&shown, &error))
}

fn unusable(path: &str, error: &io::Error) -> Failure {
    let cause = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Cause::DiskFull,
        _ => Cause::Platform,
    };
    Failure::new(cause, exit::OS, format!("{path} cannot be written: {error}"))
}

/// What one object comes to.
struct Fetched {
    size: u64,
    kept: bool,
    verified: bool,
}

async fn fetch(
    store: &Arc<dyn Store>,
    source: &Location,
    directory: &Path,
    plan: Plan,
    budget: &TransferBudget,
    console: &Console,
) -> Result<Pulled, Failure> {
    let root = blocking(directory.to_owned(), |path| open_root(path).map(Arc::new)).await?;
    let mut pulled = Pulled::default();
    for (key, reason) in plan.refused {
        let message = format!("{} is not fetched: {reason}", source.with_key(key).escaped());
        pulled.failed.push(Failure::new(Cause::User, exit::OS, message));
    }
    for parts in plan.directories {
        let (root, shown) = (Arc::clone(&root), directory.join(parts.join("/")));
        let made = blocking(shown, move |_| directory_below(&root, &parts).map(drop));
        pulled.failed.extend(made.await.err());
    }
    let bar = console.bar(source.escaped(), plan.files.iter().map(|file| file.size).sum());
    let mut results = futures_util::stream::iter(plan.files)
        .map(|file| {
            let place = Place { root: Arc::clone(&root), directory: directory.to_owned(), parts: file.parts };
            one(store, file.key, file.size, place, budget, bar.clone())
        })
        .buffer_unordered(budget.concurrency());
    let work = async {
        while let Some(result) = results.next().await {
            match result {
                Ok(fetched) => {
                    pulled.files += 1;
                    pulled.bytes += fetched.size;
                    pulled.kept += usize::from(fetched.kept);
                    pulled.unverified += usize::from(!fetched.verified);
                }
                Err((failure, goes_on)) => {
                    pulled.failed.push(failure);
                    if !goes_on {
                        return;
                    }
                }
            }
        }
    };
    bar.told(work).await;
    drop(results);
    bar.finish();
    // Once for all, in the place of once for each.
    let synced = blocking(directory.to_owned(), move |path| Ok(nix::unistd::syncfs(File::open(path)?)?));
    pulled.failed.extend(synced.await.err());
    Ok(pulled)
}

/// Where a file goes.
struct Place {
    root: Arc<OwnedFd>,
    directory: PathBuf,
    parts: Vec<String>,
}

/// Fetches one object. With a failure comes whether the others can still be fetched.
async fn one(
    store: &Arc<dyn Store>,
    key: Key,
    size: u64,
    place: Place,
    budget: &TransferBudget,
    bar: Bar,
) -> Result<Fetched, (Failure, bool)> {
    let shown = place.directory.join(place.parts.join("/"));
    let what = format!("{} to {}", store.root().with_key(key.clone()).escaped(), shown.display());
    let opened = blocking(shown.clone(), move |_| {
        let (name, above) = place.parts.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = directory_below(&place.root, above)?;
        let present = open_present(&parent, name, size)?;
        Ok((parent, name.clone(), present))
    });
    let (parent, name, present) = opened.await.map_err(|failure| {
        let goes_on = failure.cause != Cause::DiskFull;
        (failure, goes_on)
    })?;
    let failed = |error: oss::Error| (Failure::reading(&what, &error), !concerns_all(error.kind()));
    if let Some(file) = present
        && let Comparison::Same(_) = compare(store, &key, file, budget).await.map_err(failed)?
    {
        bar.advance(size);
        return Ok(Fetched { size, kept: true, verified: true });
    }
    // The descriptor is the directory, wherever somebody moves it meanwhile.
    let target = PathBuf::from(format!("/proc/self/fd/{}/{name}", parent.as_raw_fd()));
    let options = DownloadOptions {
        listed: Some(size),
        progress: Some(bar.share()),
        called: Some(shown),
        ..DownloadOptions::default()
    };
    let done = download(store, &key, &target, &options, budget).await;
    // Not before: the path leads through it.
    drop(parent);
    let done = done.map_err(failed)?;
    Ok(Fetched { size: done.size, kept: false, verified: done.verified })
}

/// Whether what has failed one object will fail the next ones.
fn concerns_all(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::DiskFull | ErrorKind::NoSuchBucket | ErrorKind::BadCredentials | ErrorKind::WrongRegion { .. }
    )
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Opens a directory below `root`, which is made if it is missing. Each of its names is one, and no link is followed. Blocking.
fn directory_below(root: &OwnedFd, parts: &[String]) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut directory = root.try_clone()?;
    for part in parts {
        let name = part.as_str();
        directory = match openat(&directory, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => {
                match mkdirat(&directory, name, Mode::from_bits_truncate(0o777)) {
                    // Another object below it was quicker.
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                openat(&directory, name, flags, Mode::empty())
            }
            opened => opened,
        }
        .map_err(|errno| match errno {
            Errno::ENOTDIR | Errno::ELOOP => {
                io::Error::other(format!("{part:?} on the way is a file or a link, and not a directory: move it away"))
            }
            other => other.into(),
        })?;
    }
    Ok(directory)
}

/// The file of this name if it may be what the object is: a regular one of its length. Blocking.
fn open_present(parent: &OwnedFd, name: &str, size: u64) -> io::Result<Option<File>> {
    // O_NONBLOCK: opening a pipe must not wait for a writer that will never come.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let file = match openat(parent, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        // Whatever it is, it is replaced, or that fails and says why.
        Err(_) => return Ok(None),
    };
    let metadata = file.metadata()?;
    Ok((metadata.is_file() && metadata.len() == size).then_some(file))
}
