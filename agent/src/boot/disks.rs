//! Preparing disks, through `nvme-setup`'s library.

use std::ops::ControlFlow;
use std::path::PathBuf;

use nvme_setup::{Event, Request, Roots, Setup, SetupError};

use super::phase::Came;
use super::story::Teller;
use crate::exit;
use crate::outcome::{Cause, Failure};
use crate::settings::{Identity, NodeSettings};

/// Prepares the volumes that are wanted, and answers with where they are, in the order of the settings. What is there already is
/// recognised.
pub async fn prepare(
    settings: &NodeSettings,
    identity: &Identity,
    teller: &Teller,
) -> Result<Came<Vec<PathBuf>>, Failure> {
    if settings.disks.is_empty() {
        return Ok(Came::ToNothing(Vec::new()));
    }
    let request: Request = serde_json::from_value(settings.disks.request.clone())
        .map_err(|error| Failure::new(Cause::User, exit::BAD_SETTINGS, format!("disks: {error}")))?;
    let node = match &identity.instance_id {
        Some(id) => nvme_setup::Node::new(id),
        None => nvme_setup::Node::of_machine(&Roots::default()).map_err(Failure::platform)?,
    };
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel::<String>();
    let work = move || {
        let mut watch = |event: Event<'_>| {
            let line = match event {
                Event::Waiting { refusals } => {
                    let why: Vec<String> = refusals.iter().map(ToString::to_string).collect();
                    format!("waiting: {}", why.join("; "))
                }
                Event::Begin(planned) => format!("{}: {}", planned.volume.display(), planned.step),
                Event::Done { .. } => return ControlFlow::Continue(()),
            };
            // The phase that listens may have been given up; what has begun is still finished.
            let _ = sender.send(line);
            ControlFlow::Continue(())
        };
        Setup::new(node).apply(&request, &mut watch)
    };
    let work = tokio::task::spawn_blocking(work);
    while let Some(line) = told.recv().await {
        tracing::info!("{line}");
        teller.event(crate::events::Event {
            event: "DiskStep",
            subject: "disks",
            elapsed_ms: None,
            message: Some(&line),
        });
    }
    let report = work.await.map_err(Failure::platform)?.map_err(|error| failure(&error))?;
    for note in &report.notes {
        tracing::warn!("{note}");
    }
    let volumes: Vec<PathBuf> = report.settled.iter().map(|settled| settled.volume.clone()).collect();
    let words: Vec<String> =
        report.settled.iter().map(|settled| format!("{} on {}", settled.volume.display(), settled.device)).collect();
    Ok(Came::To(volumes, Some(words.join("; "))))
}

fn failure(error: &SetupError) -> Failure {
    let (cause, status) = match error {
        SetupError::Refused(_) => (Cause::User, exit::BAD_SETTINGS),
        _ => (Cause::Platform, exit::OS),
    };
    Failure::new(cause, status, format!("disks: {error}"))
}
