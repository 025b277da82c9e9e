//! The log of events as objects: `events.<name>.jsonl`, and `events.<name>.part-1.jsonl` when that is full.
//!
//! A segment is small and bounded, so it is written again as a whole when it has grown; the pause between two times grows with what
//! that costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use oss::{Location, PutMode, Stores};
use tokio::sync::watch;

use super::log::{Cursor, Log};

/// What it is called on disk.
pub(super) const NAME: &str = "object";

/// The least pause between two times.
const PAUSE: Duration = Duration::from_secs(2);

/// The pause is this many times as long as writing took.
const SHARE: u32 = 20;

/// The longest pause, also after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The name of the object of a segment.
fn object(name: &str, segment: u64) -> String {
    match segment {
        0 => format!("events.{name}.jsonl"),
        part => format!("events.{name}.part-{part}.jsonl"),
    }
}

/// Keeps the objects in `directory` as the log is, for ever. `hurry` says that nobody will wait long any more.
pub(super) async fn run(
    log: Arc<Log>,
    stores: Arc<Stores>,
    directory: Location,
    name: String,
    told: watch::Sender<Cursor>,
    hurry: watch::Receiver<bool>,
) {
    let mut complained = false;
    loop {
        let cursor = *told.borrow();
        log.grown_beyond(cursor).await;
        let began = Instant::now();
        let mut pause = match bring_up(&log, &stores, &directory, &name, cursor).await {
            Ok(end) => {
                if let Err(error) = log.set_cursor(NAME, end) {
                    tracing::debug!(%error, "events will be written again");
                }
                told.send_replace(end);
                complained = false;
                (began.elapsed() * SHARE).max(PAUSE)
            }
            Err(error) => {
                if !complained {
                    tracing::warn!("events cannot be written to {}: {error}; trying again", directory.escaped());
                    complained = true;
                }
                began.elapsed().max(PAUSE)
            }
        };
        pause = pause.min(LONGEST_PAUSE);
        if *hurry.borrow() {
            pause = PAUSE / 4;
        }
        let mut hurry = hurry.clone();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Once only: who hurries already has the short pause.
            _ = hurry.changed(), if !*hurry.borrow() => {}
        }
    }
}

async fn bring_up(
    log: &Log,
    stores: &Stores,
    directory: &Location,
    name: &str,
    from: Cursor,
) -> Result<Cursor, String> {
    let end = log.end();
    let store = stores.open(directory).map_err(|error| error.to_string())?;
    for segment in log.segments().into_iter().filter(|segment| *segment >= from.segment) {
        let path = log.segment_path(segment);
        let content =
            tokio::fs::read(&path).await.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        if content.is_empty() {
            continue;
        }
        let target = directory.join(&object(name, segment));
        store.put(target.key(), content.into(), PutMode::Overwrite).await.map_err(|error| error.to_string())?;
    }
    Ok(end)
}
