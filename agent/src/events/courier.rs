//! Telling one recipient, event by event, in order.
//!
//! An event that is not received holds up those after it: they are kept in the log and come in order once the recipient is back. Only
//! one that the recipient has understood and refused is left out, after a few attempts, and that is said. How far a recipient has been told
//! is written down after each event that is followed by silence, and at most once a second in a burst: an agent that is killed in between
//! tells the last ones again.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oss::credentials::AccessKeys;
use oss::web::WebClient;
use tokio::sync::watch;

use super::Refusal;
use super::log::{Cursor, Line, Log};
use super::topic::Topic;
use super::webhook::Webhook;

/// The pause after the first failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause between attempts, and the longest that a recipient can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How often an event is offered that the recipient refuses.
const REFUSALS: u32 = 3;

/// How often a recipient that does not answer is mentioned.
const COMPLAIN: Duration = Duration::from_secs(600);

/// How often the cursor is written in a burst.
const SAVE: Duration = Duration::from_secs(1);

/// Somebody who is told.
#[derive(Debug)]
pub(super) enum Recipient {
    Webhook {
        webhook: Webhook,
        client: WebClient,
    },
    Topic {
        topic: Topic,
        client: WebClient,
        keys: AccessKeys,
    },
    /// This process's standard output, which systemd sends to the journal.
    Journal,
}

impl Recipient {
    /// What it is called on disk.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Webhook { webhook, .. } => webhook.name(),
            Self::Topic { topic, .. } => topic.file_name(),
            Self::Journal => "journal".to_owned(),
        }
    }

    /// For people.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Webhook { webhook, .. } => format!("the webhook at {}", webhook.server()),
            Self::Topic { topic, .. } => topic.shown(),
            Self::Journal => "the journal".to_owned(),
        }
    }

    fn wants(&self, event: &str) -> bool {
        let all = |events: &[String]| events.is_empty() || events.iter().any(|wanted| wanted == event);
        match self {
            Self::Webhook { webhook, .. } => all(&webhook.events),
            // Whoever listens to a topic knows the service's events and no others.
            Self::Topic { topic, .. } => event.starts_with("On") && all(&topic.events),
            Self::Journal => true,
        }
    }

    async fn deliver(&self, line: &Line) -> Result<(), Refusal> {
        match self {
            Self::Webhook { webhook, client } => webhook.deliver(client, line).await,
            Self::Topic { topic, client, keys } => topic.deliver(client, keys, line).await,
            Self::Journal => {
                let text = format!("{}\n", line.text);
                // A pipe that nobody reads blocks. Nobody reads it where it cannot be written, and there is nowhere else to go with it.
                let write = move || std::io::stdout().write_all(text.as_bytes());
                let _ = tokio::task::spawn_blocking(write).await;
                Ok(())
            }
        }
    }
}

/// Tells `recipient` what is in `log` and what will be, for ever. `told` says how far it is.
pub(super) async fn run(recipient: Recipient, log: Arc<Log>, told: watch::Sender<Cursor>) {
    let name = recipient.name();
    let mut saved = Instant::now();
    loop {
        let cursor = *told.borrow();
        let line = match log.read(cursor) {
            Ok(line) => line,
            Err(error) => {
                tracing::warn!(%error, "events cannot be read back");
                tokio::time::sleep(LONGEST_PAUSE).await;
                continue;
            }
        };
        let next = match line {
            Some(line) => {
                if line.lost > 0 {
                    tracing::error!(
                        "{} has not taken events for so long that the oldest are gone, {} files of them",
                        recipient.shown(),
                        line.lost
                    );
                }
                if recipient.wants(&line.name) {
                    insist(&recipient, &line).await;
                }
                line.next
            }
            None => {
                log.grown_beyond(cursor).await;
                log.sync();
                continue;
            }
        };
        if saved.elapsed() >= SAVE || next >= log.end() {
            save(&log, &name, next);
            saved = Instant::now();
        }
        told.send_replace(next);
    }
}

fn save(log: &Log, name: &str, cursor: Cursor) {
    if let Err(error) = log.set_cursor(name, cursor) {
        tracing::warn!(%error, "how far events were delivered cannot be written down; some may be delivered again");
    }
}

/// Tells one event until it is received.
async fn insist(recipient: &Recipient, line: &Line) {
    let (mut pause, mut refusals, mut complained): (_, _, Option<Instant>) = (FIRST_PAUSE, 0, None);
    loop {
        let Err(refusal) = recipient.deliver(line).await else {
            if complained.is_some() {
                tracing::info!("{} takes events again", recipient.shown());
            }
            return;
        };
        refusals += u32::from(refusal.of_this);
        if refusals >= REFUSALS {
            tracing::warn!(
                event = line.name,
                id = line.id,
                "{} does not take an event, which is left out: {}",
                recipient.shown(),
                refusal.why
            );
            return;
        }
        if complained.is_none_or(|at| at.elapsed() >= COMPLAIN) {
            tracing::warn!(
                event = line.name,
                "{} cannot be told what happens: {}; trying again until it can",
                recipient.shown(),
                refusal.why
            );
            complained = Some(Instant::now());
        }
        // All nodes of a cluster come back at once otherwise.
        let wait = refusal.after.unwrap_or(pause).clamp(pause, LONGEST_PAUSE.max(pause));
        tokio::time::sleep(wait.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
