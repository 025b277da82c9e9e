//! Who `batch-agent run` tells what happens.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oss::{Location, Secret, Stores};

use super::run::RunArguments;
use crate::durable;
use crate::events::webhook::WebhookError;
use crate::events::{self, Events, Topic, Webhook};
use crate::exit;
use crate::instance::Context;
use crate::job::JobDescription;
use crate::job::names::Attempt;
use crate::outcome::{Cause, Failure};
use crate::run::Part;

/// Recipients of events, checked.
pub(super) struct Recipients {
    directory: Option<Location>,
    webhook: Option<Webhook>,
    topic: Option<Topic>,
    part: Part,
}

/// Events of this run, and those of runs before it that were not delivered.
pub(super) struct News {
    pub(super) events: Events,
    before: Vec<Events>,
}

impl Recipients {
    /// Those that the command line and the job name.
    pub(super) fn new(arguments: &RunArguments, job: &JobDescription, part: &Part) -> Result<Self, Failure> {
        let bad = |text: String| Failure::new(Cause::User, exit::USAGE, text);
        let secret = arguments.webhook_secret.as_deref().map(secret_in).transpose()?;
        let webhook = arguments.webhook.as_ref().map(|url| Webhook::new(url, secret.as_ref())).transpose();
        let mut webhook = webhook.map_err(|error| match error {
            WebhookError::Address => bad(format!("the address given with --webhook {error}")),
            _ => bad(format!("the secret given with --webhook-secret {error}")),
        })?;
        if let Some(webhook) = &mut webhook {
            let names = events::message::NAMES;
            if let Some(unknown) = arguments.webhook_events.iter().find(|event| !names.contains(&event.as_str())) {
                return Err(bad(format!("--webhook-event {unknown}: no such event; there are {}", names.join(", "))));
            }
            webhook.events.clone_from(&arguments.webhook_events);
        }
        if let Some(directory) = arguments.report.as_ref().filter(|location| !location.is_directory()) {
            return Err(bad(format!("--report {}: a directory ends in '/'", directory.escaped())));
        }
        Ok(Self { directory: arguments.report.clone(), webhook, topic: job.notification.clone(), part: part.clone() })
    }

    /// Begins to tell them. Where nobody wants to be told, nothing is written.
    pub(super) fn start(self, context: &Context) -> Result<News, Failure> {
        let root = context.node.state.join("events/runs");
        let before = events::left_behind(&root);
        for events in &before {
            events.resume(self.webhook.as_ref(), &context.stores);
        }
        if self.directory.is_none() && self.webhook.is_none() && self.topic.is_none() {
            return Ok(News { events: Events::default(), before });
        }
        durable::private_directory(&root)?;
        let (job, unique) = (context.job.as_str(), format!("{:08x}", fastrand::u32(..)));
        let name = match &self.part {
            Part::Whole { .. } => job.to_owned(),
            Part::One { task, instance } => Attempt { job, task, instance: *instance, number: 1 }.to_string(),
        };
        let directory = root.join(crate::instance::record::file_name(&format!("{name}-{unique}")));
        let events = Events::open(&directory, &unique, false)?;
        self.tell(&events, &context.stores, &name);
        Ok(News { events, before })
    }

    fn tell(&self, events: &Events, stores: &Arc<Stores>, name: &str) {
        if let Some(webhook) = &self.webhook {
            events.to_webhook(webhook.clone());
        }
        if let Some(topic) = &self.topic {
            events.to_topic(topic.clone(), stores);
        }
        if let Some(directory) = &self.directory {
            events.to_objects(directory, name, stores);
        }
    }
}

impl News {
    /// Waits for the recipients, at most so long.
    pub(super) async fn finish(self, limit: Duration) {
        if self.events.is_behind() {
            tracing::info!("waiting for those who are told what happens, at most {} s", limit.as_secs());
        }
        let end = Instant::now() + limit;
        let missing = self.events.delivered(limit).await;
        for recipient in &missing {
            tracing::error!("{recipient} has not been told everything; the next run that tells it goes on");
        }
        if missing.is_empty() {
            self.events.remove();
        }
        for events in self.before {
            events.delivered(end.saturating_duration_since(Instant::now())).await;
            if events.is_through() {
                events.remove();
            }
        }
    }
}

/// Reads a secret.
fn secret_in(path: &Path) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(Cause::User, exit::INPUT_MISSING, format!("cannot read the secret in {}: {error}", path.display()))
    })?;
    Ok(Secret::new(text.trim()))
}
