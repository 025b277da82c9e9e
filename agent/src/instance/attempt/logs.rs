//! What is written beside an attempt's outputs: its two logs while it runs, and the manifest at the end.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use oss::{Location, PutMode};
use serde::Serialize;

use crate::instance::Context;
use crate::instance::follow::{Follower, open_log};
use crate::instance::outputs::{Arrived, Delivery};
use crate::instance::workspace::Workspace;
use crate::job::Task;
use crate::job::names::Attempt;
use crate::outcome::Failure;

/// The two log streams on their way to storage.
pub(super) struct Logs {
    pub(super) stdout: Follower,
    pub(super) stderr: Follower,
    stderr_file: std::fs::File,
}

impl Logs {
    pub(super) fn start(
        context: &Context,
        task: &Task,
        attempt: Attempt<'_>,
        workspace: &Workspace,
    ) -> Result<Self, Failure> {
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
            let store = context
                .stores
                .open(&target)
                .map_err(|error| Failure::writing(&format!("log {}", target.escaped()), &error))?;
            let path = workspace.logs().join(file);
            let opened = open_log(&path)
                .map_err(|error| Failure::platform(format!("cannot make {}: {error}", path.display())))?;
            Ok::<_, Failure>((Follower::start(path, store, target), opened))
        };
        let (stdout, _) = begin(&task.stdout, attempt.stdout(), "stdout")?;
        let (stderr, stderr_file) = begin(&task.stderr, attempt.stderr(), "stderr")?;
        Ok(Self { stdout, stderr, stderr_file })
    }

    /// For a program that never ran, its stderr says why, to whoever looks only there.
    pub(super) fn explain(&self, message: &str) {
        let line = format!("batch-agent: {message}\n");
        if let Err(error) = self.stderr_file.write_all_at(line.as_bytes(), 0) {
            tracing::debug!(%error, "the reason could not be written to the task's stderr");
        }
    }

    pub(super) async fn finish(self) -> Vec<Failure> {
        let (stdout_name, stderr_name) = (self.stdout.target().escaped(), self.stderr.target().escaped());
        let (stdout, stderr) = tokio::join!(self.stdout.finish(), self.stderr.finish());
        [(stdout_name, stdout), (stderr_name, stderr)]
            .into_iter()
            .filter_map(|(name, sent)| sent.err().map(|error| Failure::writing(&format!("log {name}"), &error)))
            .collect()
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
