//! What an attempt's program will see, and what its shim is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fuse_oss::Charset;

use crate::account::Account;
use crate::cgroup::{GroupSpec, group_name};
use crate::container::Image;
use crate::exit;
use crate::instance::outputs::Source;
use crate::instance::record::Sources;
use crate::instance::reserve::Anchor;
use crate::instance::view::{self, Fetched, Host, InputView, Kind, NetworkView};
use crate::instance::workspace::Workspace;
use crate::instance::{Context, container};
use crate::job::names::Attempt;
use crate::job::{Limits, Output, Task, environment};
use crate::outcome::{Cause, Failure};
use crate::shim::Spec;

/// The working directory, as every task knows it.
pub(super) const WORKDIR: &str = "/batchcompute/workdir";

/// What is to be done.
pub(super) struct Planned {
    /// By the shim.
    pub spec: Spec,
    /// Where its results will be found.
    pub sources: Sources,
    /// What has to be made on the host first.
    pub mount_points: Vec<(PathBuf, Kind)>,
    /// What has to be brought from the container's own files in the end.
    pub fetched: Vec<Fetched>,
}

/// Plans the task's view and makes what it needs on the scratch disk.
pub(super) fn plan(
    context: &Context,
    task: &Task,
    attempt: Attempt<'_>,
    workspace: &Workspace,
    (inputs, networks): (&[InputView], &[NetworkView]),
    account: Option<&Account>,
    (host, image): (&dyn Host, Option<&Image>),
) -> Result<Planned, Failure> {
    let kind = |output: &Output| if output.is_directory() { Kind::Directory } else { Kind::File };
    let logs: Vec<Output> = task
        .logs
        .iter()
        .map(|log| Output {
            source: log.source.clone(),
            target: attempt.log(log),
            // Of one file whose name is given.
            locale: Charset::UTF_8,
        })
        .collect();
    let mut wanted: Vec<_> = task.outputs.iter().map(|output| (output.source.clone(), kind(output))).collect();
    wanted.extend(logs.iter().map(|log| (log.source.clone(), Kind::File)));
    let (scratch, workdir) = (workspace.views(), workspace.workdir());
    let request = view::Request {
        scratch: &scratch,
        workdir: (&workdir, Path::new(WORKDIR)),
        inputs,
        networks,
        outputs: &wanted,
        in_image: image.is_some(),
    };
    let mut view =
        view::plan(&request, host).map_err(|error| Failure::new(Cause::User, exit::BAD_DATA, error.to_string()))?;
    for directory in &view.directories {
        std::fs::create_dir(directory)
            .map_err(|error| Failure::platform(format!("cannot make {}: {error}", directory.display())))?;
    }
    if let Some(account) = account {
        for directory in view.directories.iter().chain([&workdir]) {
            account.give(directory).map_err(|error| {
                let (directory, user) = (directory.display(), &account.name);
                Failure::platform(format!("cannot give {directory} to the user {user}: {error}"))
            })?;
        }
    }
    let source = |(output, path): (Output, PathBuf)| {
        let networks = task.network_mounts.iter().map(|mount| &mount.target);
        let shown = task.inputs.iter().map(|input| &input.target).chain(networks);
        let inside = shown.filter_map(|target| target.strip_prefix(&output.source).ok());
        let without = inside.filter(|inside| !inside.as_os_str().is_empty()).map(Path::to_owned).collect();
        Source { output, path, without }
    };
    let mut found = std::mem::take(&mut view.outputs).into_iter();
    let sources = Sources {
        outputs: task.outputs.iter().cloned().zip(found.by_ref()).map(source).collect(),
        logs: logs.into_iter().zip(found).map(source).collect(),
    };
    let place = &context.place;
    let oss = &context.stores.settings().oss;
    let of_region = || oss.region.as_ref().map(|region| format!("https://oss-{region}.aliyuncs.com"));
    let oss_host = oss.endpoint.clone().or_else(of_region);
    let facts = environment::Facts {
        job: attempt.job,
        task: attempt.task,
        instance: attempt.instance,
        instances: task.instances,
        machine: environment::Machine {
            region: place.region.as_deref(),
            oss_host: oss_host.as_deref(),
            cluster: place.cluster.as_deref(),
            worker: place.worker.as_deref(),
            working_directory: WORKDIR,
            more_path: if image.is_some() { None } else { context.place.path.as_deref() },
        },
        container: image.map(|image| environment::InImage { path: image.variable("PATH") }),
        account,
    };
    let container = image.and_then(|image| container::specify(context, task, workspace, image, account, &mut view));
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let spec = Spec {
        version: crate::shim::SPEC_VERSION,
        command: task.command.clone(),
        environment: environment::build(&facts, &task.environment),
        workdir: PathBuf::from(WORKDIR),
        stdout: workspace.logs().join("stdout"),
        stderr: workspace.logs().join("stderr"),
        place: crate::shim::Place::Own,
        container,
        steps: view.steps,
        // A container's view is the engine's, and goes with it.
        pin: (task.reserve_on_fail && image.is_none()).then(|| anchor(workspace)).flatten(),
        hold: workspace.hold(),
        exit_record: workspace.record.exit_record(&context.node),
        timeout_ms: task.timeout.map(millis),
        grace_ms: millis(context.grace),
        group: Some(GroupSpec {
            name: group_name(&workspace.record.id, &context.node.runtime),
            record: workspace.record.group(),
            // Of a container, only its shim is in the group; the engine limits the container.
            limits: if image.is_some() { Limits::default() } else { task.limits },
        }),
        takes_over: false,
        account: account.cloned(),
    };
    Ok(Planned { spec, sources, mount_points: view.mount_points, fetched: view.fetched })
}

/// Where the namespace is to be held. A task runs without that, too.
fn anchor(workspace: &Workspace) -> Option<PathBuf> {
    let prepared = Anchor::of(&workspace.record).prepare();
    prepared.inspect_err(|error| tracing::warn!(%error, "should the task fail, it cannot be reserved")).ok()
}
