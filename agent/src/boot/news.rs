//! Who is told what happens to the node, and the events by which a cluster knows its nodes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use oss::Secret;

use super::phase::Phase;
use super::story::{State, Step};
use super::{Boot, Known, mounts};
use crate::events::message::{self, ClusterNode};
use crate::events::webhook::Webhook;
use crate::metrics::sample::Role;
use crate::metrics::{self, Metrics, Watched, exposition};
use crate::report::{Span, Timeline};
use crate::settings::WebhookSettings;

/// Tells from now on everybody whom the settings name, and what has happened so far.
pub(super) fn begin(known: &Known, boot: &Boot) {
    let (events, report) = (boot.teller.events(), &known.settings.report);
    if let Some(directory) = &report.directory {
        events.to_objects(directory, &known.name(), &known.stores);
    }
    match report.webhook.as_ref().map(with_secret).transpose() {
        Ok(Some(webhook)) => events.to_webhook(webhook),
        Ok(None) => {}
        // Better nobody than somebody who cannot tell from whom it is.
        Err(why) => tracing::error!("the webhook is not told what happens: {why}"),
    }
    if let Some(topic) = &report.topic {
        events.to_topic(topic.clone(), &known.stores);
    }
    tell(known, boot, false);
}

/// Measures what the node uses from now on, and says so where the settings want it.
pub(super) fn measure(known: &mut Known, boot: &Boot) {
    let serve = mounts::serve_settings(&known.settings, &known.node, &boot.fuse_oss);
    let mut watched = Watched::of(&known.node, &serve, boot.programs.clone());
    watched.latest = Some(metrics::latest_file(&known.node.state));
    // A server that is away for good is no reason not to know that.
    let mounts = known.settings.mounts.iter().map(|mount| (mount.target.clone(), Role::Mount));
    watched.places.extend(mounts);
    known.metrics = Metrics::start(watched);
    if let Some(address) = known.settings.report.prometheus {
        let metrics = known.metrics.clone();
        tokio::spawn(async move {
            let Err(error) = exposition::serve(address, metrics).await;
            tracing::error!("metrics cannot be asked for at {address}: {error}; another program may listen there");
        });
    }
}

/// The steps that came before the task.
pub(super) fn timeline(boot: &Boot) -> Timeline {
    let teller = Arc::clone(&boot.teller);
    Timeline::ask(move || {
        let story = teller.story();
        let before = story.steps.iter().filter(|step| !matches!(step.phase, Phase::Task | Phase::Report));
        let span = |step: &Step| {
            Some(Span {
                name: step.phase.name().to_owned(),
                started: step.started.filter(|_| step.state != State::Skipped)?,
                ended: step.ended,
                failed: step.state == State::Failed,
                message: step.message.clone(),
            })
        };
        before.filter_map(span).collect()
    })
}

/// The node is prepared.
pub(super) fn active(known: &Known, boot: &Boot) {
    tell(known, boot, true);
}

fn tell(known: &Known, boot: &Boot, is_active: bool) {
    let story = boot.teller.story();
    let address = own_address().map(|address| address.to_string()).unwrap_or_default();
    let node = ClusterNode {
        cluster: known.identity.cluster.as_deref().unwrap_or_default(),
        instance: &known.name(),
        address: &address,
        boot: &story.boot_id,
        created: story.started,
    };
    boot.teller.events().tell(message::node(node, is_active));
}

fn with_secret(settings: &WebhookSettings) -> Result<Webhook, String> {
    match &settings.secret_file {
        None => Ok(settings.webhook.clone()),
        Some(path) => {
            let secret = read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            settings.webhook.signed_with(&secret).map_err(|error| format!("the secret in {} {error}", path.display()))
        }
    }
}

fn read(path: &Path) -> std::io::Result<Secret> {
    std::fs::read_to_string(path).map(|text| Secret::new(text.trim()))
}

/// The address that this machine has towards the outside. Nothing is sent: the kernel looks into its routes.
fn own_address() -> Option<IpAddr> {
    /// Reserved for documentation: everything that is not near is routed as it is.
    const ANYWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(SocketAddr::from((ANYWHERE, 9))).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}
