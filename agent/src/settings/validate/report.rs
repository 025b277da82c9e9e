//! The rules for who is told what happens to the node.

use std::net::SocketAddr;

use super::super::description::{Report, WebhookSettings};
use super::super::format::{ReportDocument, TopicDocument, WebhookDocument};
use super::directory;
use crate::events::Topic;
use crate::events::topic::TopicError;
use crate::events::webhook::{Webhook, WebhookError};
use crate::job::finding::{At, Findings, Place, quoted};
use crate::job::validate::local_path;
use crate::job::validate::notification::known;

/// Checks the section.
pub(super) fn check(document: ReportDocument, place: &Place, findings: &mut Findings) -> Report {
    let prometheus = document.prometheus.filter(|text| !text.is_empty());
    Report {
        directory: directory(document.directory, &place.key("directory"), findings),
        webhook: document.webhook.and_then(|document| webhook(document, &place.key("webhook"), findings)),
        topic: document.topic.and_then(|document| topic(document, &place.key("topic"), findings)),
        prometheus: prometheus.and_then(|text| loopback(&text, &place.key("prometheus"), findings)),
    }
}

fn events(written: Option<Vec<String>>, place: &Place, findings: &mut Findings) -> Vec<String> {
    let written: Vec<At<String>> = written
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .map(|(index, name)| At::new(place.index(index), name))
        .collect();
    let known = known(&written, findings);
    if known.is_empty() && !written.is_empty() {
        findings.error_with(place, "names no event that is ever told", "name some, or leave it out for all of them");
    }
    known
}

fn webhook(document: WebhookDocument, place: &Place, findings: &mut Findings) -> Option<WebhookSettings> {
    let secret = document.secret.filter(|secret| !secret.is_empty());
    let file = document.secret_file.filter(|text| !text.is_empty());
    let events = events(document.events, &place.key("events"), findings);
    // It is only read, so it may be anywhere.
    let secret_file = file.as_ref().and_then(|text| match local_path::normal(text) {
        Ok(path) => Some(path.path),
        Err(refusal) => {
            findings.error_with(&place.key("secret_file"), refusal.cause, refusal.remedy);
            None
        }
    });
    if secret.is_some() && file.is_some() {
        findings.error_with(&place.key("secret_file"), "is given beside secret", "remove one of them");
    }
    if secret.is_none() && file.is_none() {
        let remedy = "give it a secret, or make sure that nobody else can reach it";
        findings.warn(place, "is not signed: its receiver cannot tell who sends", remedy);
    }
    match Webhook::new(&document.url, secret.as_ref()) {
        Ok(mut webhook) => {
            webhook.events = events;
            Some(WebhookSettings { webhook, secret_file })
        }
        // Neither is shown: both can hold what nobody may see.
        Err(error @ WebhookError::Address) => {
            findings.error(&place.key("url"), error.to_string());
            None
        }
        Err(error) => {
            findings.error(&place.key("secret"), error.to_string());
            None
        }
    }
}

fn topic(document: TopicDocument, place: &Place, findings: &mut Findings) -> Option<Topic> {
    let events = events(document.events, &place.key("events"), findings);
    match Topic::new(&document.endpoint, &document.name) {
        Ok(mut topic) => {
            topic.events = events;
            Some(topic)
        }
        Err(error) => {
            let (key, text) = match error {
                TopicError::Name => ("name", &document.name),
                TopicError::Endpoint => ("endpoint", &document.endpoint),
            };
            findings.error(&place.key(key), format!("{} {error}", quoted(text)));
            None
        }
    }
}

/// An address that only this machine reaches: what the metrics say is nobody else's business, and nobody is asked who he is.
fn loopback(text: &str, place: &Place, findings: &mut Findings) -> Option<SocketAddr> {
    let remedy = "write an address of this machine itself and a port, such as 127.0.0.1:9464";
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() && address.port() != 0 => Some(address),
        Ok(_) => {
            findings.error_with(place, format!("{} can be reached by others", quoted(text)), remedy);
            None
        }
        Err(_) => {
            findings.error_with(place, format!("{} is no address", quoted(text)), remedy);
            None
        }
    }
}
