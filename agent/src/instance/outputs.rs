//! Bringing a task's outputs home: directories and single files, many at once, verified.
//!
//! Nothing here trusts what the task has left (see [`found`]). A file that cannot be sent is named and does not keep
//! the others from going up.

pub(crate) mod early;
pub(super) mod found;
mod present;
mod uploads;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use jiff::Timestamp;
use oss::transfer::{Comparison, TransferBudget, UploadOptions, compare, upload};
use oss::{ErrorKind, Key, Location, PutMode, Store, Stores};
use serde::{Deserialize, Serialize};

use crate::console::{Bar, Console};
use crate::exit;
use crate::job::Output;
use crate::outcome::{Cause, Failure, Uploaded};
pub use uploads::{LeftBehind, UploadBook};
use uploads::{Written, by_target};

/// A file that has arrived, as the manifest lists it.
#[derive(Debug, Clone, Serialize)]
pub struct Arrived {
    /// Where it was, as the task knew it.
    pub path: PathBuf,
    /// Where it is.
    pub location: String,
    /// Its length in bytes.
    pub size: u64,
    /// CRC-64/XZ of its content, in hexadecimal.
    pub crc64: String,
    /// Its permission bits.
    pub mode: u32,
    /// When it was last changed.
    pub modified: Option<Timestamp>,
}

/// An output, and where the host finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What goes where.
    pub output: Output,
    /// Its path on the host.
    pub path: PathBuf,
    /// Where inputs are mounted inside of it, relative to it. On the host only their empty mount points are left.
    pub without: Vec<PathBuf>,
}

/// What became of a task's outputs.
#[derive(Debug, Default)]
pub struct Delivery {
    /// What has arrived.
    pub arrived: Vec<Arrived>,
    /// How many of those were in storage already, with the same content.
    pub kept: u64,
    /// What was left out on purpose, with the reasons.
    pub skipped: Vec<String>,
    /// What has not arrived, with the reasons.
    pub failed: Vec<Failure>,
}

impl Delivery {
    /// The figures for the outcome.
    pub fn summary(&self) -> Uploaded {
        Uploaded {
            files: self.arrived.len() as u64,
            bytes: self.arrived.iter().map(|file| file.size).sum(),
            failed: self.failed.iter().map(|failure| failure.message.clone()).collect(),
        }
    }
}

/// What is done about objects that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Present {
    /// They are replaced.
    Replace,
    /// Those that hold what the file does, by checksum, are kept: one listing and a request for each of the same length.
    Keep,
}

/// One file on its way.
struct Job {
    store: Arc<dyn Store>,
    target: Location,
    seen_as: PathBuf,
    size: u64,
    open: Open,
    /// Whether an object may be there that holds the same.
    may_be_there: bool,
    /// What was begun of it before.
    begun: Option<Written>,
}

enum Open {
    /// Below an output directory.
    Beneath(Arc<OwnedFd>, PathBuf),
    /// The marker of a directory that is empty.
    Nothing,
}

/// Sends what `sources` name, as many files at once as the budget has requests.
///
/// Large files are written down in `book`, and what is written down there of them is gone on with.
pub async fn deliver(
    sources: &[Source],
    (present, book): (Present, Option<&UploadBook>),
    stores: &Stores,
    budget: &TransferBudget,
    console: &Console,
    label: &str,
) -> Delivery {
    let mut delivery = Delivery::default();
    let mut jobs = Vec::new();
    for source in sources {
        let output = &source.output;
        let store = match stores.open(&output.target) {
            Ok(store) => store,
            Err(error) => {
                delivery.failed.push(Failure::writing(&format!("output {}", output.source.display()), &error));
                continue;
            }
        };
        if output.is_directory() {
            let source = source.clone();
            let walked = tokio::task::spawn_blocking(move || walk(&source)).await;
            match walked {
                Ok(Ok((directory, found))) => {
                    plan_directory(output, &store, directory, found, &mut jobs, &mut delivery)
                }
                Ok(Err(failure)) => delivery.failed.push(failure),
                Err(error) => delivery.failed.push(Failure::platform(error)),
            }
        } else {
            match plan_file(output, &source.path, &store) {
                Ok(job) => jobs.push(job),
                Err(failure) => delivery.failed.push(failure),
            }
        }
    }
    if jobs.is_empty() {
        return delivery;
    }
    if present == Present::Keep {
        present::mark(sources, stores, &mut jobs).await;
    }
    if let Some(book) = book.cloned()
        && let Ok(mut begun) = tokio::task::spawn_blocking(move || by_target(book.read())).await
    {
        for job in &mut jobs {
            job.begun = begun.remove(&job.target);
        }
    }
    let bar = console.bar(label.to_owned(), jobs.iter().map(|job| job.size).sum());
    let results = futures_util::stream::iter(jobs)
        .map(|job| send(job, book, budget.clone(), bar.clone()))
        .buffer_unordered(budget.concurrency())
        .collect::<Vec<_>>();
    let results = bar.told(results).await;
    bar.finish();
    for result in results {
        match result {
            Ok(Some((arrived, kept))) => {
                delivery.kept += u64::from(kept);
                delivery.arrived.push(arrived);
            }
            Ok(None) => {}
            Err(failure) => delivery.failed.push(failure),
        }
    }
    delivery.arrived.sort_by(|a, b| a.path.cmp(&b.path));
    delivery
}

fn missing(what: &Path) -> Failure {
    Failure::new(
        Cause::User,
        exit::UPLOAD_FAILED,
        format!("output {}: the program has not written it; correct the mapping or the program", what.display()),
    )
}

fn unreadable(what: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Cause::User, exit::UPLOAD_FAILED, format!("output {}: cannot be read: {error}", what.display()))
}

fn could_not_open(what: &Path, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::NotFound { missing(what) } else { unreadable(what, error) }
}

fn walk(source: &Source) -> Result<(OwnedFd, found::Found), Failure> {
    let seen_as = &source.output.source;
    let directory = found::open_directory(&source.path).map_err(|error| could_not_open(seen_as, &error))?;
    Ok((directory, found::walk(&source.path, seen_as, &source.without, source.output.locale)))
}

fn plan_directory(
    output: &Output,
    store: &Arc<dyn Store>,
    directory: OwnedFd,
    found: found::Found,
    jobs: &mut Vec<Job>,
    delivery: &mut Delivery,
) {
    let directory = Arc::new(directory);
    for entry in found.files {
        jobs.push(Job {
            store: Arc::clone(store),
            target: output.target.join(&entry.name),
            seen_as: output.source.join(&entry.name),
            size: entry.size,
            open: Open::Beneath(Arc::clone(&directory), entry.path),
            may_be_there: false,
            begun: None,
        });
    }
    for name in found.empty_directories {
        jobs.push(Job {
            store: Arc::clone(store),
            target: output.target.join(&name),
            seen_as: output.source.join(&name),
            size: 0,
            open: Open::Nothing,
            may_be_there: false,
            begun: None,
        });
    }
    delivery.skipped.extend(found.skipped);
    let problem = |text| Failure::new(Cause::User, exit::UPLOAD_FAILED, format!("output {text}"));
    delivery.failed.extend(found.problems.into_iter().map(problem));
}

fn plan_file(output: &Output, path: &Path, store: &Arc<dyn Store>) -> Result<Job, Failure> {
    let failed = |error: std::io::Error| could_not_open(&output.source, &error);
    let (parent, name) = path.parent().zip(path.file_name()).ok_or_else(|| missing(&output.source))?;
    let directory = found::open_directory(parent).map_err(failed)?;
    let file = found::open_beneath(&directory, Path::new(name)).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    Ok(Job {
        store: Arc::clone(store),
        target: output.target.clone(),
        seen_as: output.source.clone(),
        size,
        open: Open::Beneath(Arc::new(directory), PathBuf::from(name)),
        may_be_there: false,
        begun: None,
    })
}

/// Sends one file. Nothing comes of a marker; with a file comes whether it was there.
async fn send(
    job: Job,
    book: Option<&UploadBook>,
    budget: TransferBudget,
    bar: Bar,
) -> Result<Option<(Arrived, bool)>, Failure> {
    let what = format!("output {} to {}", job.seen_as.display(), job.target.escaped());
    let (directory, path) = match job.open {
        Open::Nothing => {
            let key: Key = job.target.key().clone();
            let sent = job.store.put(&key, bytes::Bytes::new(), PutMode::Overwrite).await;
            return sent.map(|_| None).map_err(|error| Failure::writing(&what, &error));
        }
        Open::Beneath(directory, path) => (directory, path),
    };
    let open = tokio::task::spawn_blocking(move || -> std::io::Result<(File, std::fs::Metadata)> {
        let file = found::open_beneath(&*directory, &path)?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    });
    let opened = open.await.map_err(Failure::platform)?;
    let (file, metadata) = opened.map_err(|error| could_not_open(&job.seen_as, &error))?;
    let arrived = |size: u64, crc64: u64| Arrived {
        path: job.seen_as.clone(),
        location: job.target.to_string(),
        size,
        crc64: format!("{crc64:016x}"),
        mode: std::os::unix::fs::MetadataExt::mode(&metadata) & 0o7777,
        modified: metadata.modified().ok().and_then(|time| Timestamp::try_from(time).ok()),
    };
    let key = job.target.key();
    if job.may_be_there {
        let copy = file.try_clone().map_err(|error| unreadable(&job.seen_as, &error))?;
        match compare(&job.store, key, copy, &budget).await {
            Ok(Comparison::Same(crc64)) => {
                bar.advance(metadata.len());
                return Ok(Some((arrived(metadata.len(), crc64), true)));
            }
            Ok(Comparison::Different | Comparison::Unknown) => {}
            // Who may write need not be allowed to look.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {}
            Err(error) => return Err(Failure::writing(&what, &error)),
        }
    }
    let options = UploadOptions {
        progress: Some(bar.share()),
        journal: book.map(|book| book.journal(&job.target, job.begun.as_ref())),
        resume: job.begun.and_then(|begun| begun.upload),
        ..UploadOptions::default()
    };
    let sent = upload(&job.store, key, file, metadata.len(), &options, &budget).await;
    let sent = sent.map_err(|error| Failure::writing(&what, &error))?;
    Ok(Some((arrived(sent.size, sent.crc64), false)))
}
