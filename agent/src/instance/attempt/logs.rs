//! What is written beside an attempt's outputs: its logs while it runs, and the manifest at the end.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use oss::{Location, PutMode};
use serde::Serialize;

use crate::durable;
use crate::instance::Context;
use crate::instance::follow::{Followed, Follower, Origin, open_log};
use crate::instance::outputs::{Arrived, Delivery, Source};
use crate::instance::workspace::Workspace;
use crate::job::Task;
use crate::job::names::Attempt;
use crate::logs::{Entry, LogBook, LogPlace};
use crate::outcome::Failure;

/// The logs of an attempt on their way to storage.
pub(super) struct Logs {
    pub(super) stdout: Follower,
    pub(super) stderr: Follower,
    stderr_file: std::fs::File,
    /// The program's own, by the paths it knows them by.
    files: Vec<(PathBuf, Follower)>,
    /// Why some of them cannot even be followed.
    failures: Vec<Failure>,
    /// Where logs are kept that cannot be sent.
    unsent: PathBuf,
}

impl Logs {
    /// Begins to follow the two streams, or goes on with them.
    pub(super) fn start(
        context: &Context,
        task: &Task,
        attempt: Attempt<'_>,
        workspace: &Workspace,
    ) -> Result<Self, Failure> {
        let progress = workspace.record.log_progress(&context.node);
        durable::private_directory(&progress)?;
        let begin = |directory: &Option<Location>, object: String, file: &str| {
            // Without a place in storage the logs stay on the node, where `batch-agent run` says.
            let local = || {
                Location::new(
                    oss::Scheme::File,
                    "",
                    format!("{}/", local_logs(context).display()).trim_start_matches('/'),
                )
            };
            let directory = match directory {
                Some(directory) => directory.clone(),
                None => local().map_err(Failure::platform)?,
            };
            let target = directory.join(&object);
            let path = workspace.logs().join(file);
            let opened = open_log(&path)
                .map_err(|error| Failure::platform(format!("cannot make {}: {error}", path.display())))?;
            let follower = follow(context, Origin::Own(path), target, progress.join(file))?;
            Ok::<_, Failure>((follower, opened))
        };
        let (stdout, _) = begin(&task.stdout, attempt.stdout(), "stdout")?;
        let (stderr, stderr_file) = begin(&task.stderr, attempt.stderr(), "stderr")?;
        let place = |follower: &Follower, file: &str| LogPlace {
            target: follower.target().clone(),
            file: workspace.logs().join(file),
            progress: progress.join(file),
        };
        let settings = context.stores.settings();
        let entry = Entry::new(attempt, place(&stdout, "stdout"), place(&stderr, "stderr"), settings);
        LogBook::of_node(&context.node).enter(&entry)?;
        let unsent = context.node.unsent_logs();
        Ok(Self { stdout, stderr, stderr_file, files: Vec::new(), failures: Vec::new(), unsent })
    }

    /// Begins to follow log files of the program's own, once it is known where the host finds them. One that cannot be followed is a
    /// failure in the end; the program runs already.
    pub(super) fn follow_files(&mut self, context: &Context, workspace: &Workspace, sources: &[Source]) {
        let progress = workspace.record.log_progress(&context.node);
        let scratch = &workspace.record.scratch;
        for (number, source) in sources.iter().enumerate() {
            let seen_as = source.output.source.clone();
            // All that a task can write to is on its scratch directory; links that lead out of that lead nowhere.
            let origin = match source.path.strip_prefix(scratch) {
                Ok(path) => Origin::Theirs { root: scratch.clone(), path: path.to_owned() },
                Err(_) => {
                    let message = format!("log file {} lies outside of the task", seen_as.display());
                    self.failures.push(Failure::platform(message));
                    continue;
                }
            };
            match follow(context, origin, source.output.target.clone(), progress.join(format!("file-{number}"))) {
                Ok(follower) => self.files.push((seen_as, follower)),
                Err(failure) => self.failures.push(failure),
            }
        }
    }

    /// For a program that never ran, its stderr says why, to whoever looks only there.
    pub(super) fn explain(&self, message: &str) {
        let line = format!("batch-agent: {message}\n");
        if let Err(error) = self.stderr_file.write_all_at(line.as_bytes(), 0) {
            tracing::debug!(%error, "the reason could not be written to the task's stderr");
        }
    }

    /// Sends the rest of all logs. What cannot be sent of the two streams is kept on the node.
    pub(super) async fn finish(self) -> Vec<Failure> {
        let (unsent, mut failures) = (self.unsent, self.failures);
        let streams = [self.stdout, self.stderr].into_iter().map(|follower| (None, follower));
        let files = self.files.into_iter().map(|(seen_as, follower)| (Some(seen_as), follower));
        let finishing = streams.chain(files).map(|(seen_as, follower)| {
            let unsent = &unsent;
            async move {
                let (target, origin) = (follower.target().clone(), follower.origin().clone());
                match (follower.finish().await, seen_as) {
                    (Ok(Some(_)), _) => None,
                    (Ok(None), seen_as) => {
                        let log = seen_as.unwrap_or_default();
                        tracing::warn!("log file {} was never written; nothing is uploaded for it", log.display());
                        None
                    }
                    (Err(error), _) => {
                        let mut failure = Failure::writing(&format!("log {}", target.escaped()), &error);
                        if let Origin::Own(path) = origin {
                            failure.message.push_str(&keep(&path, unsent, target.key().base_name()));
                        }
                        Some(failure)
                    }
                }
            }
        });
        failures.extend(futures_util::future::join_all(finishing).await.into_iter().flatten());
        failures
    }
}

fn follow(context: &Context, origin: Origin, target: Location, sent: PathBuf) -> Result<Follower, Failure> {
    let store =
        context.stores.open(&target).map_err(|error| Failure::writing(&format!("log {}", target.escaped()), &error))?;
    Ok(Follower::start(Followed { origin, store, target, sent: Some(sent) }))
}

/// Keeps a log that could not be sent, which would be removed with everything else of the attempt. Says where it is, for a message.
fn keep(path: &Path, directory: &Path, name: &str) -> String {
    let kept = directory.join(name);
    match durable::private_directory(directory)
        .map_err(|error| error.source)
        .and_then(|()| std::fs::rename(path, &kept))
    {
        Ok(()) => format!("; what had not arrived is in {}", kept.display()),
        Err(error) => format!("; what had not arrived could not be kept: {error}"),
    }
}

fn local_logs(context: &Context) -> PathBuf {
    context.node.state.join("logs").join(context.job.as_str())
}

/// What an attempt has delivered, as it stands beside its logs.
#[derive(Serialize)]
struct Manifest<'a> {
    version: u32,
    job: &'a str,
    task: &'a str,
    instance: u32,
    attempt: u32,
    files: &'a [Arrived],
    failed: Vec<&'a str>,
}

/// Writes the manifest beside the logs, last, so that whoever finds it finds everything it names.
pub(super) async fn send_manifest(
    context: &Context,
    attempt: Attempt<'_>,
    beside: &Location,
    delivery: &Delivery,
) -> Result<(), Failure> {
    let target = beside.sibling(&attempt.manifest());
    let manifest = Manifest {
        version: 1,
        job: attempt.job,
        task: attempt.task,
        instance: attempt.instance,
        attempt: attempt.number,
        files: &delivery.arrived,
        failed: delivery.failed.iter().map(|failure| failure.message.as_str()).collect(),
    };
    let what = format!("manifest {}", target.escaped());
    let body = serde_json::to_vec_pretty(&manifest).map_err(Failure::platform)?;
    let store = context.stores.open(&target).map_err(|error| Failure::writing(&what, &error))?;
    store
        .put(target.key(), body.into(), PutMode::Overwrite)
        .await
        .map(drop)
        .map_err(|error| Failure::writing(&what, &error))
}
