//! The container of an attempt: what is done for it before its shim makes it, and after it has ended.

use std::path::PathBuf;

use super::Context;
use super::record::Record;
use super::view::View;
use super::workspace::Workspace;
use crate::account::Account;
use crate::container::{self, ContainerRecord, ContainerSpec, Image, Places};
use crate::durable;
use crate::job::{ImageSource, Task};
use crate::outcome::{Cause, Failure};
use crate::shim::ExitRecord;

/// Finds the engine and writes down that there may be a container from now on, if the task runs in one.
pub(super) async fn begin(context: &Context, task: &Task, workspace: &mut Workspace) -> Result<(), Failure> {
    if task.container.is_none() {
        return Ok(());
    }
    let engine = container::find_engine(&context.containers).await?;
    tracing::debug!(%engine, "containers are run by");
    let record = &mut workspace.record;
    record.container = Some(ContainerRecord::new(engine, &record.runtime));
    record.save(&context.node).map_err(Failure::platform)
}

/// Makes sure that the engine has the task's image, if the task runs in one.
pub(super) async fn image(context: &Context, task: &Task, workspace: &Workspace) -> Result<Option<Image>, Failure> {
    let (Some(wanted), Some(record)) = (&task.container, &workspace.record.container) else { return Ok(None) };
    let mut places = Places { mount: PathBuf::new(), scratch: workspace.record.scratch.clone() };
    let mount = workspace.record.image();
    if let ImageSource::Archive(location) | ImageSource::Tree(location) = &wanted.source {
        durable::private_directory(&mount).map_err(Failure::platform)?;
        let stores = context.stores.settings().clone();
        let mounted = context.mounter.mount_one(location, &mount, stores).await;
        places.mount = mounted
            .map_err(|failure| Failure { message: format!("container image: {}", failure.message), ..failure })?;
    }
    let image = container::get_image(&context.containers, &record.engine, wanted, places).await?;
    // What is left is taken away with the rest.
    let _ = context.mounter.unmount(&mount).await;
    Ok(Some(image))
}

/// The container as the shim is to make it, with the view that has been planned for its image.
pub(super) fn specify(
    context: &Context,
    task: &Task,
    workspace: &Workspace,
    image: &Image,
    account: Option<&Account>,
    view: &mut View,
) -> Option<ContainerSpec> {
    let (wanted, record) = (task.container.as_ref()?, workspace.record.container.as_ref()?);
    let node_mounts = context.containers.mounts_that_are_there();
    let record_of = &workspace.record;
    let (steps, volumes) = container::stage(view, &record_of.scratch, &record_of.stage(), &node_mounts);
    view.steps = steps;
    // The engine makes them among the image's files. What the node has mounted is the machine's.
    view.mount_points.retain(|(path, _)| node_mounts.iter().any(|mount| path.starts_with(mount) && path != mount));
    Some(ContainerSpec {
        engine: record.engine.clone(),
        name: record.name.clone(),
        attempt: workspace.record.id.clone(),
        image: image.id.clone(),
        image_name: wanted.image.to_string(),
        volumes,
        devices: wanted.devices.clone(),
        network: wanted.network,
        limits: task.limits,
        user: account.map_or_else(|| "0:0".to_owned(), |account| format!("{}:{}", account.uid, account.gid)),
        groups: account.map(|account| account.groups.clone()).unwrap_or_default(),
        counted: workspace.record.container_group(),
        made: workspace.record.container_made(),
    })
}

/// Brings home what the program has left among the container's own files.
pub(super) async fn fetch(record: &Record, exit: &ExitRecord) -> Result<(), Failure> {
    let Some(container) = record.container.clone().filter(|container| !container.fetched.is_empty()) else {
        return Ok(());
    };
    let started = exit.started;
    let fetched = tokio::task::spawn_blocking(move || container::fetch(&container, started)).await;
    fetched
        .map_err(Failure::platform)?
        .map_err(|message| Failure::new(Cause::Platform, crate::exit::UPLOAD_FAILED, message))
}
