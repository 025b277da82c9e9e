//! Preparing disks, through `nvme-setup`'s library.

use std::ops::ControlFlow;
use std::path::Path;

use nvme_setup::{Event, Request, Roots, Setup, SetupError, Trim};

use super::phase::Came;
use super::{Boot, service};
use crate::durable;
use crate::exit;
use crate::node::Node;
use crate::outcome::{Cause, Failure};
use crate::settings::{Identity, NodeSettings};

/// Prepares the volumes that are wanted. What is there already is recognised.
pub async fn prepare(settings: &NodeSettings, identity: &Identity, boot: &Boot) -> Result<Came<()>, Failure> {
    if settings.disks.is_empty() {
        return Ok(Came::ToNothing(()));
    }
    let request: Request = serde_json::from_value(settings.disks.request.clone())
        .map_err(|error| Failure::new(Cause::User, exit::BAD_SETTINGS, format!("disks: {error}")))?;
    let node = match &identity.instance_id {
        Some(id) => nvme_setup::Node::new(id),
        None => nvme_setup::Node::of_machine(&Roots::default()).map_err(Failure::platform)?,
    };
    let mut setup = Setup::new(node);
    // Directories of its own keep an agent out of the way of the machine's.
    if boot.node.runtime != Path::new(Node::RUNTIME) {
        durable::private_directory(&boot.node.runtime)?;
        setup = setup.with_lock(boot.node.runtime.join("nvme-setup.lock"));
    }
    let is_trimmed = request.volumes.iter().any(|volume| volume.trim == Trim::Periodic);
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
        setup.apply(&request, &mut watch)
    };
    let work = tokio::task::spawn_blocking(work);
    while let Some(line) = told.recv().await {
        tracing::info!("{line}");
        boot.teller.event(crate::events::Event {
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
    if is_trimmed {
        service::start_trimming(&boot.programs).await;
    }
    let words: Vec<String> =
        report.settled.iter().map(|settled| format!("{} on {}", settled.volume.display(), settled.device)).collect();
    Ok(Came::To((), Some(words.join("; "))))
}

fn failure(error: &SetupError) -> Failure {
    let (cause, status) = match error {
        // Disks that are waited for in vain are the machine's fault, as far as anybody can tell from here.
        SetupError::Refused(plan) if plan.refusals.iter().all(|refusal| refusal.may_pass) => {
            (Cause::Platform, exit::OS)
        }
        SetupError::Refused(_) => (Cause::User, exit::BAD_SETTINGS),
        _ => (Cause::Platform, exit::OS),
    };
    Failure::new(cause, status, format!("disks: {error}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nvme_setup::{Plan, Refusal};

    use super::*;

    #[test]
    fn a_disk_that_does_not_come_is_the_machines_fault_and_one_that_is_refused_the_settings() {
        let refusal = |may_pass| Refusal {
            volume: Path::new("/data").to_owned(),
            device: None,
            why: "why".to_owned(),
            remedy: "what to do".to_owned(),
            may_pass,
        };
        for (refusals, cause, status) in [
            (vec![refusal(true)], Cause::Platform, exit::OS),
            (vec![refusal(true), refusal(false)], Cause::User, exit::BAD_SETTINGS),
        ] {
            let failed = failure(&SetupError::Refused(Plan { refusals, ..Plan::default() }));
            assert_eq!((failed.cause, failed.exit_status), (cause, status));
            assert!(failed.message.contains("what to do"), "{}", failed.message);
        }
    }
}
